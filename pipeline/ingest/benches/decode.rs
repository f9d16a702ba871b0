//! What a sample costs from the compressed body to the columns, by step. Bodies are 2,000 series × 1 sample with about 250 bytes of labels.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use fletch_common::Limits;
use fletch_ingest::SeriesRegistry;
use fletch_ingest::decode::testing::devops_request;
use fletch_ingest::decode::{DecodeContext, Decoded, LabelPolicy, RemoteWriteCache, RemoteWriteDecoder, decode_json, decode_text};
use fletch_schemas::{Labels, TenantId};
use std::hint::black_box;
use std::sync::Arc;

const SERIES: usize = 2_000;
const NOW_MS: i64 = 1_700_000_000_000;

fn remote_write(c: &mut Criterion) {
    let message = devops_request(SERIES, NOW_MS).encoded();
    let body = devops_request(SERIES, NOW_MS).compressed();
    let tenant = TenantId::default();
    let mut group = c.benchmark_group("remote_write");
    group.throughput(Throughput::Elements(SERIES as u64));

    let mut buffer = vec![0; message.len()];
    group.bench_function("snappy", |b| {
        b.iter(|| snap::raw::Decoder::new().decompress(black_box(&body), &mut buffer).expect("a good body"));
    });

    let decoder = RemoteWriteDecoder::new(Arc::new(SeriesRegistry::new()), Limits::default());
    let (mut connection, mut out) = (RemoteWriteCache::default(), Decoded::new());
    let mut walk = |connection: &mut RemoteWriteCache| {
        out.clear();
        decoder.decode_uncompressed(black_box(&message), &tenant, NOW_MS, connection, &mut out).expect("a good message");
    };
    group.bench_function("walk_guess", |b| b.iter(|| walk(&mut connection)));
    // One sample of a foreign series between any two would do the same: without a place in the order every series is looked up.
    let shuffled = shuffled_message();
    let mut out = Decoded::new();
    group.bench_function("walk_hash_map", |b| {
        let mut turn = 0;
        b.iter(|| {
            out.clear();
            turn = (turn + 1) % shuffled.len();
            let message = black_box(&shuffled[turn]);
            decoder.decode_uncompressed(message, &tenant, NOW_MS, &mut connection, &mut out).expect("a good message");
        });
    });
    let (mut connection, mut out) = (RemoteWriteCache::default(), Decoded::new());
    group.bench_function("whole", |b| {
        b.iter(|| {
            out.clear();
            decoder.decode(black_box(&body), &tenant, NOW_MS, &mut connection, &mut out).expect("a good body");
        });
    });
    group.bench_function("first_sight", |b| {
        b.iter(|| {
            let decoder = RemoteWriteDecoder::new(Arc::new(SeriesRegistry::new()), Limits::default());
            let (mut connection, mut out) = (RemoteWriteCache::default(), Decoded::new());
            decoder.decode_uncompressed(black_box(&message), &tenant, NOW_MS, &mut connection, &mut out).expect("a good message");
        });
    });
    group.finish();
}

/// The series of one request in two orders without a common pair of neighbours, so that the guess fails each time.
fn shuffled_message() -> [Vec<u8>; 2] {
    let message = devops_request(SERIES, NOW_MS).encoded();
    let mut series = Vec::new();
    let mut rest = &message[..];
    while let [0x0a, low, high, behind @ ..] = rest {
        // Each series is between 128 and 16,383 bytes long: two bytes of length.
        let len = usize::from(low & 0x7f) | usize::from(*high) << 7;
        series.push(&rest[..len + 3]);
        rest = &behind[len..];
    }
    assert_eq!(series.len(), SERIES, "the request is as its builder documents it");
    let order = |step: usize| (0..SERIES).flat_map(|i| series[i * step % SERIES]).copied().collect();
    [order(7), order(1_999)]
}

fn hash(c: &mut Criterion) {
    let labels = Labels::from_pairs((0..11).map(|i| (format!("label_{i:02}"), format!("value_{i:06}")))).expect("distinct names");
    let mut group = c.benchmark_group("hash");
    group.throughput(Throughput::Bytes(labels.as_bytes().len() as u64));
    group.bench_function("series_id", |b| b.iter(|| Labels::series_id_of(black_box(labels.as_bytes()), 0)));
    group.finish();
}

fn push(c: &mut Criterion) {
    let (registry, tenant, limits) = (SeriesRegistry::new(), TenantId::default(), Limits::default());
    let label_policy = LabelPolicy::Refuse;
    let context = DecodeContext { tenant: &tenant, now_ms: NOW_MS, limits: &limits, registry: &registry, label_policy };
    let line = |i: usize| format!("http_requests_total{{code=\"200\",host=\"host_{i}\",method=\"GET\"}} {i} {NOW_MS}\n");
    let metric = |i: usize| format!(r#"{{"name":"cpu","value":{i},"timestamp":{NOW_MS},"tags":{{"host":"host_{i}","region":"eu"}}}}"#);
    let text: String = (0..SERIES).map(line).collect();
    let json = format!(r#"{{"metrics":[{}]}}"#, (0..SERIES).map(metric).collect::<Vec<_>>().join(","));
    let mut group = c.benchmark_group("push");
    group.throughput(Throughput::Elements(SERIES as u64));
    let mut out = Decoded::new();
    group.bench_function("text", |b| {
        b.iter(|| {
            out.clear();
            decode_text(&context, black_box(text.as_bytes()), &mut out).expect("a good body");
        });
    });
    group.bench_function("json", |b| {
        b.iter(|| {
            out.clear();
            decode_json(&context, black_box(json.as_bytes()), &mut out).expect("a good body");
        });
    });
    group.finish();
}

criterion_group!(benches, remote_write, hash, push);
criterion_main!(benches);
