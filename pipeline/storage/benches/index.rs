//! Matchers against the label index of 100,000 series: 1,000 metrics on 100 hosts.

use criterion::{Criterion, criterion_group, criterion_main};
use fletch_ingest::SeriesRef;
use fletch_schemas::{Labels, MatchOp, Matcher};
use fletch_storage::index::{LabelIndex, PatternCache};
use std::hint::black_box;

const METRICS: u32 = 1_000;
const HOSTS: u32 = 100;

fn index() -> LabelIndex {
    let mut index = LabelIndex::default();
    for i in 0..METRICS * HOSTS {
        let (metric, host) = (format!("metric_{}", i / HOSTS), format!("host_{}", i % HOSTS));
        let env = if i % 3 == 0 { "prod" } else { "dev" };
        let pairs = [("__name__", metric.as_str()), ("env", env), ("host", host.as_str())];
        index.insert(SeriesRef(i), &Labels::from_pairs(pairs).expect("valid labels"));
    }
    index
}

fn select(c: &mut Criterion) {
    let index = index();
    let cache = PatternCache::default();
    let metric = || Matcher::equal("__name__", "metric_500");
    let cases = [
        ("metric", vec![metric()]),
        ("metric_and_host", vec![metric(), Matcher::equal("host", "host_7")]),
        ("metric_and_8_hosts", vec![metric(), Matcher::new("host", MatchOp::Regex, "host_(1|2|3|4|5|6|7|8)")]),
        ("metric_minus_host", vec![metric(), Matcher::new("host", MatchOp::NotEqual, "host_7")]),
        ("env_and_prefix", vec![Matcher::equal("env", "prod"), Matcher::new("__name__", MatchOp::Regex, "metric_5.*")]),
        ("all", vec![]),
    ];
    let mut group = c.benchmark_group("index");
    for (name, matchers) in cases {
        group.bench_function(name, |b| {
            b.iter(|| black_box(index.select(&cache.conditions(&matchers, 4_096).expect("valid matchers"))).len());
        });
    }
    group.finish();
}

criterion_group!(benches, select);
criterion_main!(benches);
