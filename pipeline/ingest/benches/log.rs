//! Cost of a record per sample: encoding with known and with new series, decoding.
//!
//! The load is that of a fleet: 10,000 series of about 250 bytes of labels, groups of 2,000 and of 32,000 samples in scrape order.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use fletch_ingest::bus::record::{Content, Decoded, Decoder, Encoder, Record, Scope, Stamp};
use fletch_ingest::{SampleBatch, SeriesRef, SeriesRegistry};
use fletch_schemas::{Labels, TenantId};
use std::hint::black_box;
use std::sync::Arc;

const SERIES: usize = 10_000;

fn registry() -> Arc<SeriesRegistry> {
    let registry = Arc::new(SeriesRegistry::new());
    for n in 0..SERIES {
        let (host, metric) = (n / 100, n % 100);
        let mut pairs = vec![("__name__".to_owned(), format!("metric_{metric}_total")), ("host".to_owned(), format!("host_{host}"))];
        pairs.extend((0..10).map(|i| (format!("label_{i}"), format!("value_{i}_of_host_{host}"))));
        let labels = Labels::from_pairs(pairs).expect("valid labels");
        registry.resolve(&TenantId::default(), &labels);
    }
    registry
}

fn batch(samples: usize) -> SampleBatch {
    let mut batch = SampleBatch::default();
    for n in 0..samples {
        let series = u32::try_from(n % SERIES).expect("few series");
        batch.push(SeriesRef(series), 1_700_000_000_000 + n as i64, n as f64);
    }
    batch
}

fn content(batch: &SampleBatch) -> Content<'_> {
    Content { series: &batch.series, times: &batch.times, values: &batch.values, ..Content::default() }
}

fn encode(c: &mut Criterion) {
    let registry = registry();
    let mut group = c.benchmark_group("record_encode");
    for samples in [2_000, 32_000] {
        let batch = batch(samples);
        let mut out = Vec::new();
        group.throughput(Throughput::Elements(samples as u64));
        let mut known = Encoder::new(registry.clone(), Scope::Segment);
        known.encode(content(&batch), Stamp::kafka(0), &mut out);
        group.bench_with_input(BenchmarkId::new("known_series", samples), &batch, |b, batch| {
            b.iter(|| {
                out.clear();
                black_box(known.encode(content(batch), Stamp::kafka(0), &mut out));
            });
        });
        let mut alone = Encoder::new(registry.clone(), Scope::Record);
        group.bench_with_input(BenchmarkId::new("new_series", samples), &batch, |b, batch| {
            b.iter(|| {
                out.clear();
                black_box(alone.encode(content(batch), Stamp::kafka(0), &mut out));
            });
        });
    }
    group.finish();
}

fn decode(c: &mut Criterion) {
    let registry = registry();
    let batch = batch(32_000);
    let mut bytes = Vec::new();
    let ends = Encoder::new(registry.clone(), Scope::Record).encode(content(&batch), Stamp::kafka(0), &mut bytes).to_vec();
    let mut group = c.benchmark_group("record_decode");
    group.throughput(Throughput::Elements(batch.len() as u64));
    group.bench_function("every_record_alone", |b| {
        let mut decoder = Decoder::new(registry.clone(), Scope::Record);
        b.iter(|| {
            let mut out = Decoded::default();
            let mut start = 0;
            for &end in &ends {
                let record = Record::check(&bytes[start..end]).expect("right");
                decoder.decode(&record, &mut out).expect("decodes");
                start = end;
            }
            black_box(out.batch.len())
        });
    });
    group.finish();
}

criterion_group!(benches, encode, decode);
criterion_main!(benches);
