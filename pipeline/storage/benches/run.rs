//! From a micro-batch to a run, and from small runs to a large one: 10,000 series.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use fletch_ingest::SeriesRef;
use fletch_storage::run::Run;
use fletch_storage::run::build::{Arrived, Scratch};
use fletch_storage::run::merge::merge;
use std::hint::black_box;

const SERIES: u32 = 10_000;

/// `rounds` scrapes of all series, beginning with round `first`.
fn batch(first: i64, rounds: i64) -> (Vec<SeriesRef>, Vec<i64>, Vec<f64>) {
    let rows = (first..first + rounds).flat_map(|round| (0..SERIES).map(move |s| (SeriesRef(s), round * 15_000, f64::from(s))));
    let mut columns = (Vec::new(), Vec::new(), Vec::new());
    for (series, time, value) in rows {
        columns.0.push(series);
        columns.1.push(time);
        columns.2.push(value);
    }
    columns
}

fn run_of(first: i64, rounds: i64) -> Run {
    let (series, times, values) = batch(first, rounds);
    let draft = Scratch::default().sort(Arrived { series: &series, times: &times, values: &values }, None);
    draft.close().expect("it has samples")
}

fn build(c: &mut Criterion) {
    let (series, times, values) = batch(0, 10);
    let mut scratch = Scratch::default();
    let mut group = c.benchmark_group("run");
    group.throughput(Throughput::Elements(series.len() as u64));
    group.bench_function("counting_sort_100k", |b| {
        b.iter(|| black_box(scratch.sort(Arrived { series: &series, times: &times, values: &values }, None).close()));
    });
    group.finish();
}

fn merging(c: &mut Criterion) {
    let runs: Vec<Run> = (0..5).map(|i| run_of(i * 10, 10)).collect();
    let inputs: Vec<&Run> = runs.iter().collect();
    let mut group = c.benchmark_group("run");
    group.throughput(Throughput::Elements(runs.iter().map(|r| r.samples() as u64).sum()));
    group.bench_function("merge_5_runs_500k", |b| b.iter(|| black_box(merge(&inputs))));
    group.finish();
}

criterion_group!(benches, build, merging);
criterion_main!(benches);
