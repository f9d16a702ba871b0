//! Kernels of the write path: one flush file from sorted columns.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use fletch_schemas::TenantId;
use fletch_storage::delta::FileIdentity;
use fletch_storage::parquet_file::{SeriesSlice, write_samples};
use std::hint::black_box;

const SERIES: usize = 10_000;
const SAMPLES: usize = 20;

fn flush(c: &mut Criterion) {
    let times: Vec<i64> = (0..SAMPLES as i64).map(|i| i * 15_000).collect();
    let values: Vec<f64> = (0..SERIES * SAMPLES).map(|i| (i % 977) as f64 * 0.25).collect();
    let names: Vec<String> = (0..SERIES).map(|i| format!("metric_{:05}", i / 10)).collect();
    let identity = FileIdentity::new(TenantId::default(), 0, None, 0);
    let mut group = c.benchmark_group("flush");
    group.throughput(Throughput::Elements((SERIES * SAMPLES) as u64));
    group.bench_function("write_samples", |b| {
        b.iter(|| {
            let slices = names.iter().enumerate().map(|(i, metric)| {
                let rows = i * SAMPLES..(i + 1) * SAMPLES;
                SeriesSlice { metric, series_id: i as i64, times: &times, values: &values[rows] }
            });
            black_box(write_samples(slices, &identity))
        });
    });
    group.finish();
}

criterion_group!(benches, flush);
criterion_main!(benches);
