//! The inner loops of the PromQL evaluator, and one small and one wide query as a whole.
//!
//! Shapes: 1,000 series of 720 samples every 10 s that share their times, 60 steps of one minute. Throughput is counted in output points,
//! so `elem/s` inverted is the time per point.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use fletch_query::engine::kernels::over_time::{OverTime, over_time, sum_or_avg_lockstep};
use fletch_query::engine::kernels::rate::{Geometry, RateKind, extrapolated, list_resets};
use fletch_query::engine::kernels::sum::LOCKSTEP;
use fletch_query::engine::windows::{Spans, Windows, upper_bounds};
use fletch_query::engine::{Engine, EngineSettings, QueryError, QueryOptions, RangeQuery, SeriesSource, json};
use fletch_schemas::{Labels, Matcher, SampleColumns, SeriesSet, Slice};
use std::hint::black_box;
use std::sync::Arc;

const SERIES: usize = 1_000;
const SAMPLES: usize = 720;
const STEPS: usize = 60;
const SCRAPE_MS: i64 = 10_000;
const STEP_MS: i64 = 60_000;

fn times() -> Vec<i64> {
    (0..SAMPLES as i64).map(|i| i * SCRAPE_MS).collect()
}

/// A counter that resets twice.
fn counter(seed: usize) -> Vec<f64> {
    let mut value = 0.0;
    (0..SAMPLES)
        .map(|i| {
            value = if (i + seed) % 300 == 299 { 0.0 } else { value + ((i * 7 + seed * 13) % 11) as f64 };
            value
        })
        .collect()
}

fn spans(width_ms: i64) -> Spans {
    Spans { first_ms: STEP_MS * 10, step_ms: STEP_MS, width_ms, len: STEPS }
}

fn windows(c: &mut Criterion) {
    let times = times();
    let mut group = c.benchmark_group("windows");
    group.throughput(Throughput::Elements(STEPS as u64));
    group.bench_function("upper bounds", |b| {
        let mut out = Vec::new();
        b.iter(|| upper_bounds(black_box(&times), STEP_MS * 10, STEP_MS, STEPS, &mut out));
    });
    group.bench_function("5m", |b| {
        let mut windows = Windows::default();
        b.iter(|| windows.find(black_box(&times), spans(300_000)));
    });
    group.finish();
}

fn rate(c: &mut Criterion) {
    let times = times();
    let values = counter(3);
    let (mut windows, mut geometry, mut resets) = (Windows::default(), Geometry::default(), Vec::new());
    windows.find(&times, spans(300_000));
    geometry.find(&times, &windows, spans(300_000));
    let mut group = c.benchmark_group("rate[5m]");
    group.throughput(Throughput::Elements(STEPS as u64));
    let mut out = vec![0.0; STEPS];
    group.bench_function("shared bounds", |b| {
        b.iter(|| {
            list_resets(black_box(&values), &mut resets);
            extrapolated(RateKind::Rate, &values, &resets, &windows, &geometry, 300_000, &mut out);
        });
    });
    group.bench_function("own bounds", |b| {
        b.iter(|| {
            windows.find(black_box(&times), spans(300_000));
            geometry.find(&times, &windows, spans(300_000));
            list_resets(&values, &mut resets);
            extrapolated(RateKind::Rate, &values, &resets, &windows, &geometry, 300_000, &mut out);
        });
    });
    group.finish();
}

fn over_time_kernels(c: &mut Criterion) {
    let times = times();
    let columns: Vec<Vec<f64>> = (0..LOCKSTEP).map(counter).collect();
    let mut group = c.benchmark_group("over_time");
    for (name, width_ms) in [("1m", 60_000), ("480s", 480_000), ("59m", 3_540_000)] {
        let mut windows = Windows::default();
        windows.find(&times, spans(width_ms));
        group.throughput(Throughput::Elements(STEPS as u64));
        for kind in [OverTime::Sum, OverTime::Avg, OverTime::Max, OverTime::Stddev] {
            let (mut out, mut scratch) = (vec![0.0; STEPS], Vec::new());
            group.bench_function(BenchmarkId::new(format!("{kind:?}"), name), |b| {
                b.iter(|| over_time(kind, &times, black_box(&columns[0]), &windows, &mut out, &mut scratch));
            });
        }
        group.throughput(Throughput::Elements((STEPS * LOCKSTEP) as u64));
        group.bench_function(BenchmarkId::new("Sum in lockstep", name), |b| {
            let mut outs = vec![vec![0.0; STEPS]; LOCKSTEP];
            let slices: [&[f64]; LOCKSTEP] = std::array::from_fn(|k| columns[k].as_slice());
            b.iter(|| {
                let mut rows = outs.iter_mut().map(Vec::as_mut_slice);
                let mut rows: [&mut [f64]; LOCKSTEP] = std::array::from_fn(|_| rows.next().expect("LOCKSTEP rows"));
                sum_or_avg_lockstep(false, black_box(slices), &windows, &mut rows);
            });
        });
    }
    group.finish();
}

/// The same series for every selector: `host` and `core` labels over one column of times.
struct Shared(SeriesSet);

impl Shared {
    fn new(series: usize) -> Self {
        let mut columns = SampleColumns { times: times(), values: Vec::new() };
        let mut set = SeriesSet::default();
        for i in 0..series {
            let pairs = [("__name__", "cpu_total".to_owned()), ("host", format!("h{}", i / 10)), ("core", format!("{}", i % 10))];
            set.labels.push(Labels::from_pairs(pairs).expect("valid labels"));
            set.slices.push(Slice { columns: 0, time_start: 0, value_start: columns.values.len() as u32, len: SAMPLES as u32 });
            columns.values.extend(counter(i));
        }
        set.columns.push(Arc::new(columns));
        Self(set)
    }
}

#[async_trait::async_trait]
impl SeriesSource for Shared {
    async fn select(&self, _: &[Matcher], _: i64, _: i64) -> Result<SeriesSet, QueryError> {
        Ok(self.0.clone())
    }
}

fn queries(c: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    let engine = Engine::new(EngineSettings::default());
    let mut group = c.benchmark_group("query");
    for (series, text) in [
        (1, "max_over_time(cpu_total[1m])"),
        (SERIES, "sum by (host) (rate(cpu_total[5m]))"),
        (SERIES, "avg by (host) (avg_over_time(cpu_total[480s]))"),
        (SERIES, "sum without (core) (cpu_total)"),
        (SERIES, "topk(5, cpu_total)"),
    ] {
        let source = Shared::new(series);
        group.throughput(Throughput::Elements((series * STEPS) as u64));
        group.bench_function(BenchmarkId::new(text, series), |b| {
            let mut out = Vec::new();
            b.iter(|| {
                let (start_ms, end_ms) = (STEP_MS * 10, STEP_MS * (9 + STEPS as i64));
                let query = RangeQuery { text, start_ms, end_ms, step_ms: STEP_MS, options: QueryOptions::default() };
                let result = runtime.block_on(engine.range(&source, query)).expect("the query runs");
                out.clear();
                json::write_data(&mut out, &result);
                black_box(out.len())
            });
        });
    }
    group.finish();
}

criterion_group!(benches, windows, rate, over_time_kernels, queries);
criterion_main!(benches);
