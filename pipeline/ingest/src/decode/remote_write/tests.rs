use super::super::testing::{SeriesMessage, WriteRequest, compress, fuzz};
use super::*;
use crate::decode::{DecodeAdvice, METADATA_PER_REQUEST_MAX};
use fletch_schemas::{Labels, MetricMetadata, STALE_BITS, TIME_FUTURE_MAX_MS, TIME_MIN_MS};
use proptest::prelude::*;

const NOW: i64 = 1_700_000_000_000;

/// A decoder with its registry, one connection and one tenant.
struct Rig {
    decoder: RemoteWriteDecoder,
    connection: RemoteWriteCache,
    tenant: TenantId,
}

impl Rig {
    fn new() -> Self {
        Self::with(Limits::default())
    }

    fn with(limits: Limits) -> Self {
        let decoder = RemoteWriteDecoder::new(Arc::new(SeriesRegistry::new()), limits);
        Self { decoder, connection: RemoteWriteCache::default(), tenant: TenantId::default() }
    }

    fn decode(&mut self, request: WriteRequest) -> Decoded {
        self.try_decode(&request.compressed()).expect("the request as a whole is fine")
    }

    fn try_decode(&mut self, body: &[u8]) -> Result<Decoded, DecodeError> {
        let mut out = Decoded::new();
        self.decoder.decode(body, &self.tenant, NOW, &mut self.connection, &mut out).map(|()| out)
    }

    /// Samples as text: labels, time, bits of the value.
    fn rows(&self, out: &Decoded) -> Vec<(String, i64, u64)> {
        rows(&self.decoder.registry, out)
    }

    fn ways(&self) -> [u64; 3] {
        [self.connection.guessed, self.connection.mapped, self.connection.parsed]
    }
}

fn rows(registry: &SeriesRegistry, out: &Decoded) -> Vec<(String, i64, u64)> {
    let batch = &out.batch;
    (0..batch.len()).map(|i| (registry.get(batch.series[i]).labels.to_string(), batch.times[i], batch.values[i].to_bits())).collect()
}

fn up(job: &str) -> [(&str, &str); 2] {
    [("__name__", "up"), ("job", job)]
}

#[test]
fn the_second_request_is_all_guesses() {
    let mut rig = Rig::new();
    let request = || (0..100).fold(WriteRequest::new(), |r, n| r.series(&up(&n.to_string()), &[(NOW, f64::from(n))]));
    let first = rig.decode(request());
    assert_eq!(rig.ways(), [0, 0, 100]);
    let second = rig.decode(request());
    // The first series of the second request follows the last of the first only now.
    assert_eq!(rig.ways(), [99, 1, 100]);
    let third = rig.decode(request());
    assert_eq!(rig.ways(), [199, 1, 100]);
    assert_eq!(rig.rows(&first), rig.rows(&second));
    assert_eq!((first.batch == third.batch, third.stats.accepted, rig.decoder.cache().len()), (true, 100, 100));
}

#[test]
fn other_connections_profit_and_other_tenants_do_not() {
    let mut rig = Rig::new();
    let request = || (0..10).fold(WriteRequest::new(), |r, n| r.series(&up(&n.to_string()), &[(NOW, 1.0)]));
    let mine = rig.decode(request());
    rig.connection = RemoteWriteCache::default();
    rig.decode(request());
    assert_eq!(rig.ways(), [9, 1, 0]);
    // The same connection turns to another tenant: its place in the order of the first one must not count.
    rig.tenant = TenantId::new("other").expect("valid");
    let theirs = rig.decode(request());
    assert_eq!(rig.ways(), [9, 1, 10]);
    assert!(theirs.batch.series.iter().all(|s| !mine.batch.series.contains(s)));
    let registry = &rig.decoder.registry;
    assert!(theirs.batch.series.iter().all(|s| registry.get(*s).tenant == rig.tenant));
}

/// Entry numbers of one decoder mean other series in another one.
#[test]
fn a_connection_may_be_used_with_another_decoder() {
    let request = |from: u32| (from..from + 5).fold(WriteRequest::new(), |r, n| r.series(&up(&n.to_string()), &[(NOW, f64::from(n))]));
    let (mut a, mut b) = (Rig::new(), Rig::new());
    for from in [3, 0, 3] {
        a.decode(request(from));
    }
    b.decode(request(0));
    std::mem::swap(&mut a.connection, &mut b.connection);
    let out = b.decode(request(0));
    assert!(b.rows(&out).iter().zip(0..).all(|(row, n)| row.0.contains(&format!("job=\"{n}\""))));
    assert!(out.batch.values.iter().copied().eq((0..5).map(f64::from)));
}

#[test]
fn a_cache_that_is_too_small_changes_nothing_but_speed() {
    let mut rig = Rig::new();
    rig.decoder = RemoteWriteDecoder::new(Arc::new(SeriesRegistry::new()), Limits::default()).with_cache_bytes_max(500);
    let request = || (0..50).fold(WriteRequest::new(), |r, n| r.series(&up(&n.to_string()), &[(NOW, f64::from(n))]));
    let first = rig.decode(request());
    let second = rig.decode(request());
    assert_eq!((first.batch == second.batch, rig.decoder.registry.len()), (true, 50));
    assert!(rig.decoder.cache().drops() > 10 && rig.decoder.cache().bytes() <= 500);
}

/// One bad series between two good ones: what is refused and with which words.
#[test]
fn one_bad_series_never_sinks_the_others() {
    let long = "x".repeat(10 << 20);
    let named = |s: SeriesMessage| s.label("__name__", "bad").label("a", "1");
    let cases: Vec<(&str, SeriesMessage, RejectReason, &str)> = vec![
        ("duplicate", named(SeriesMessage::default()).label("a", "2"), RejectReason::Duplicate, "label `a` is given twice"),
        ("no name", SeriesMessage::default().label("a", "1"), RejectReason::MissingName, "`__name__`) is missing"),
        ("empty name", named(SeriesMessage::default()).label("", "v"), RejectReason::BadName, "empty name"),
        ("NUL name", named(SeriesMessage::default()).label("a\0b", "v"), RejectReason::BadName, "`a\\0b` contains a NUL"),
        ("NUL metric", SeriesMessage::default().label("__name__", "\0"), RejectReason::BadName, "`\\0` contains a NUL"),
        ("name not UTF-8", named(SeriesMessage::default()).label(b"\xff", "v"), RejectReason::NotUtf8, "not UTF-8"),
        ("value not UTF-8", named(SeriesMessage::default()).label("b", b"\xff"), RejectReason::NotUtf8, "value of label `b` is not UTF-8"),
        (
            "10 MB value",
            named(SeriesMessage::default()).label("b", &long),
            RejectReason::ValueTooLong,
            "label `b` is 10485760 bytes, the limit is 4096",
        ),
        (
            "10 MB name",
            named(SeriesMessage::default()).label(&long, "v"),
            RejectReason::NameTooLong,
            "is 10485760 bytes, the limit is 1024",
        ),
        (
            "many",
            (0..60).fold(named(SeriesMessage::default()), |s, n| s.label(format!("l{n}"), "v")),
            RejectReason::TooManyLabels,
            "62 labels, the limit is 60",
        ),
        ("broken label", named(SeriesMessage::default()).field(1, &[0x0a, 9]), RejectReason::Malformed, "past the end"),
        ("wrong wire type", named(SeriesMessage::default()).raw(&[0x10, 1]), RejectReason::Malformed, "wrong wire type"),
        ("broken sample", named(SeriesMessage::default()).field(2, &[0x09, 1]), RejectReason::Malformed, "cut off"),
    ];
    for (what, bad, reason, words) in cases {
        let mut rig = Rig::new();
        let request =
            WriteRequest::new().series(&up("1"), &[(NOW, 1.0)]).raw_series(|_| bad.sample(NOW, 5.0)).series(&up("2"), &[(NOW, 2.0)]);
        for round in 0..3 {
            let out = rig.decode(request.clone());
            assert_eq!(out.stats.accepted, 2, "{what} {round}");
            assert_eq!(
                rig.rows(&out).iter().map(|r| r.0.as_str()).collect::<Vec<_>>(),
                [r#"{__name__="up", job="1"}"#, r#"{__name__="up", job="2"}"#]
            );
            let [reject] = &out.rejects[..] else { panic!("{what}: {:?}", out.rejects) };
            assert_eq!((reject.place, reject.reason), (Place::Series(1), reason), "{what}");
            assert!(reject.message.contains(words) && reject.message.len() < 500, "{what}: {}", reject.message);
            assert_eq!(out.stats.rejected_for(reason), reject.samples);
            let names_it = matches!(what, "no name" | "NUL metric") || reject.message.starts_with("bad{");
            assert!(names_it, "{what}: {}", reject.message);
        }
    }
}

#[test]
fn unusual_forms_are_the_same_series() {
    let plain = [("__name__", "up"), ("a", "1"), ("b", "2")];
    let mut rig = Rig::new();
    let expected = rig.decode(WriteRequest::new().series(&plain, &[(NOW, 1.0), (NOW + 1, 2.0)]));
    let forms: [fn(SeriesMessage) -> SeriesMessage; 7] = [
        // Telegraf puts the name last.
        |s| s.label("b", "2").label("a", "1").label("__name__", "up").sample(NOW, 1.0).sample(NOW + 1, 2.0),
        |s| s.label("__name__", "up").label("a", "1").label("c", "").label("b", "2").sample(NOW, 1.0).sample(NOW + 1, 2.0),
        |s| s.sample(NOW, 1.0).sample(NOW + 1, 2.0).label("__name__", "up").label("a", "1").label("b", "2"),
        |s| s.label("__name__", "up").sample(NOW, 1.0).label("a", "1").sample(NOW + 1, 2.0).label("b", "2"),
        // Unknown fields, before and between.
        |s| {
            s.field(9, b"new").label("__name__", "up").label("a", "1").label("b", "2").sample(NOW, 1.0).raw(&[0x38, 1]).sample(NOW + 1, 2.0)
        },
        // A tag and a length in more bytes than they need.
        |s| {
            s.raw(&[0x8a, 0x00, 14, 0x0a, 8])
                .raw(b"__name__")
                .raw(&[0x12, 2])
                .raw(b"up")
                .label("a", "1")
                .label("b", "2")
                .sample(NOW, 1.0)
                .sample(NOW + 1, 2.0)
        },
        |s| {
            s.raw(&[0x0a, 0x8e, 0x00, 0x0a, 8])
                .raw(b"__name__")
                .raw(&[0x12, 2])
                .raw(b"up")
                .label("a", "1")
                .label("b", "2")
                .sample(NOW, 1.0)
                .sample(NOW + 1, 2.0)
        },
    ];
    for (n, form) in forms.into_iter().enumerate() {
        for _ in 0..3 {
            let out = rig.decode(WriteRequest::new().raw_series(form));
            assert_eq!(
                (out.batch == expected.batch, out.stats.accepted, out.rejects.len()),
                (true, 2, 0),
                "form {n}: {:?}",
                rig.rows(&out)
            );
        }
    }
    assert_eq!(rig.decoder.registry.len(), 1);
}

#[test]
fn values_keep_their_bits_and_zeroes_are_read_back() {
    let mut rig = Rig::new();
    let bits = [STALE_BITS, 0x7ff8_0000_0000_0001, 0xfff8_0000_0000_1234, f64::INFINITY.to_bits(), (-0.0_f64).to_bits(), 1, 0];
    let samples: Vec<(i64, f64)> = bits.iter().zip(0..).map(|(b, n)| (NOW + n, f64::from_bits(*b))).collect();
    let out = rig.decode(WriteRequest::new().series(&up("x"), &samples).series(&up("zero"), &[(0, 0.0), (0, 1.0), (-1, 0.0)]));
    // Senders leave out what compares equal to zero, and so does the builder: the minus of -0 is lost before it gets here.
    let expected: Vec<u64> = bits.iter().map(|b| if *b == (-0.0_f64).to_bits() { 0 } else { *b }).collect();
    assert_eq!(out.batch.values[..7].iter().map(|v| v.to_bits()).collect::<Vec<_>>(), expected);
    assert_eq!((&out.batch.times[7..], &out.batch.values[7..]), (&[0, 0, -1][..], &[0.0, 1.0, 0.0][..]));
    let minus_zero = [&[0x09][..], &(-0.0_f64).to_le_bytes(), &[0x10, 5]].concat();
    let reversed = [&[0x10, 5, 0x09][..], &1.5_f64.to_le_bytes()].concat();
    let out = rig.decode(WriteRequest::new().raw_series(|s| s.label("__name__", "up").field(2, &minus_zero).field(2, &reversed)));
    assert_eq!(rig.rows(&out).iter().map(|r| (r.1, r.2)).collect::<Vec<_>>(), [(5, (-0.0_f64).to_bits()), (5, 1.5_f64.to_bits())]);
}

#[test]
fn times_are_checked_at_their_exact_limits() {
    let mut rig = Rig::new();
    let edge = NOW + TIME_FUTURE_MAX_MS;
    let times = [TIME_MIN_MS, TIME_MIN_MS - 1, edge, edge + 1, i64::MIN, i64::MAX, edge + 2, NOW];
    let samples: Vec<(i64, f64)> = times.iter().map(|t| (*t, 1.0)).collect();
    for round in 0..2 {
        // Once in one go, once over the long way, because an exemplar follows.
        let request = if round == 0 {
            WriteRequest::new().series(&up("x"), &samples)
        } else {
            let s = samples.iter().fold(SeriesMessage::default().label("__name__", "up").label("job", "x"), |s, (t, v)| s.sample(*t, *v));
            WriteRequest::new().raw_series(|_| s.field(3, b""))
        };
        let out = rig.decode(request);
        assert_eq!(out.batch.times, [TIME_MIN_MS, edge, NOW]);
        assert_eq!((out.stats.rejected_for(RejectReason::TooOld), out.stats.rejected_for(RejectReason::InFuture)), (2, 3));
        let [old, future] = &out.rejects[..] else { panic!("one reject per reason: {:?}", out.rejects) };
        assert!(old.message.starts_with(r#"up{job="x"}: 2 samples: too_old"#), "{}", old.message);
        let says = format!(r#"up{{job="x"}}: 3 samples: time {} ms is more than 10 min ahead of the server's {NOW} ms"#, edge + 2);
        assert_eq!(future.message, says);
    }
}

#[test]
fn histograms_are_refused_by_name_and_exemplars_dropped() {
    let mut rig = Rig::new();
    let histogram = |s: SeriesMessage| s.label("__name__", "latency").label("job", "x").field(4, b"anything").field(4, b"");
    for _ in 0..2 {
        let request = WriteRequest::new()
            .raw_series(histogram)
            .raw_series(|s| histogram(s).sample(NOW, 1.0))
            .raw_series(|s| s.label("__name__", "only_exemplars").field(3, b"x"))
            .raw_series(|s| s.label("__name__", "both").field(3, b"x").sample(NOW, 2.0))
            .raw_series(|s| s.label("a", "1").field(4, b""));
        let out = rig.decode(request);
        assert_eq!(out.batch.values, [1.0, 2.0]);
        assert_eq!((out.stats.exemplars_ignored, out.stats.rejected_for(RejectReason::NativeHistogram)), (2, 4));
        assert_eq!(out.rejects.len(), 3);
        assert_eq!(
            out.rejects[0].message,
            r#"latency{job="x"}: 2 native histograms refused, they are not stored yet; send classic histograms (`_bucket` series)"#
        );
        assert_eq!(out.rejects[2].reason, RejectReason::MissingName);
    }
    assert_eq!(rig.decoder.registry.len(), 2, "a series without samples gets no number");
}

#[test]
fn metadata_comes_alone_or_along() {
    let mut rig = Rig::new();
    let said = MetricMetadata {
        metric: "http_requests_total".into(),
        kind: MetricKind::Counter,
        unit: "requests".into(),
        help: "How many.".into(),
    };
    let alone = rig.decode(WriteRequest::new().metadata(&said));
    assert_eq!((alone.metadata, alone.stats.metadata, alone.batch.len()), (vec![(rig.tenant.clone(), said.clone())], 1, 0));
    let newer = MetricMetadata { kind: MetricKind::Gauge, help: "h".repeat(10_000), ..said.clone() };
    let nameless = MetricMetadata { metric: String::new(), ..said.clone() };
    let mut request = WriteRequest::new().metadata(&said).series(&up("x"), &[(NOW, 1.0)]).metadata(&newer).metadata(&nameless);
    request.push(3, b"\x12\x01\xff");
    let out = rig.decode(request);
    assert_eq!(
        (out.metadata.len(), out.metadata[0].1.kind, out.metadata[0].1.help.len(), out.batch.len()),
        (1, MetricKind::Gauge, 4096, 1)
    );
    assert_eq!(out.rejects.iter().map(|r| r.place).collect::<Vec<_>>(), [Place::Metadata(2), Place::Metadata(3)]);
    let many = (0..=METADATA_PER_REQUEST_MAX)
        .fold(WriteRequest::new(), |r, n| r.metadata(&MetricMetadata { metric: n.to_string(), ..Default::default() }));
    let out = rig.decode(many);
    assert_eq!((out.metadata.len(), out.stats.rejected_for(RejectReason::Metadata)), (METADATA_PER_REQUEST_MAX, 1));
}

#[test]
fn nothing_at_all_is_a_good_request() {
    let mut rig = Rig::new();
    let out = rig.decode(WriteRequest::new());
    assert!(out.is_empty() && out.rejects.is_empty());
    let out = rig.decode(WriteRequest::new().series(&up("x"), &[]).raw_series(|s| s));
    assert!(out.is_empty() && out.rejects.is_empty() && rig.decoder.registry.is_empty());
}

#[test]
fn unbounded_labels_are_counted_or_refused() {
    let labels = [("__name__", "up"), ("user_id", "7")];
    let mut rig = Rig::new();
    for expected in [1, 0] {
        let out = rig.decode(WriteRequest::new().series(&labels, &[(NOW, 1.0)]));
        assert_eq!((out.batch.len(), out.stats.unbounded_labels), (1, expected), "counted when the series is new");
    }
    rig.decoder = RemoteWriteDecoder::new(Arc::default(), Limits::default()).with_label_policy(LabelPolicy::Refuse);
    let out = rig.decode(WriteRequest::new().series(&labels, &[(NOW, 1.0)]));
    assert_eq!((out.batch.len(), out.rejects[0].label.as_deref()), (0, Some("user_id")));
}

#[test]
fn sizes_are_checked_at_their_exact_limits_before_anything_is_allocated() {
    let request = WriteRequest::new().series(&up("x"), &[(NOW, 1.0)]);
    let (message, body) = (request.clone().encoded(), request.compressed());
    let limits = |decompressed, compressed| Limits {
        request_decompressed_bytes_max: decompressed,
        request_bytes_max: compressed,
        ..Limits::default()
    };
    assert!(Rig::with(limits(message.len(), body.len())).try_decode(&body).is_ok());
    for limits in [limits(message.len() - 1, body.len()), limits(message.len(), body.len() - 1)] {
        let error = Rig::with(limits).try_decode(&body).expect_err("one byte too many");
        assert_eq!(error.advice(), DecodeAdvice::TooLarge, "{error}");
    }
    // A header that claims 4 GiB - 1 and nothing behind it.
    let mut rig = Rig::new();
    let bomb = [0xff, 0xff, 0xff, 0xff, 0x0f, 0, 0];
    let error = rig.try_decode(&bomb).expect_err("a bomb");
    assert_eq!(
        error.to_string(),
        "the decompressed body is 4294967295 bytes, the limit is 33554432 (`request_decompressed_bytes_max`); send smaller requests"
    );
    assert!(rig.decoder.buffers.lock().is_empty(), "no buffer was taken for it");
}

#[test]
fn samples_are_counted_at_their_exact_limit() {
    let limits = Limits { request_samples_max: 4, ..Limits::default() };
    let samples = |n: i64| (0..n).map(|t| (NOW + t, 1.0)).collect::<Vec<_>>();
    for long_way in [false, true] {
        let request = |n: i64| {
            let request = WriteRequest::new().series(&up("a"), &samples(2));
            let request = if long_way {
                request.raw_series(|s| s.field(3, b"").label("__name__", "b").sample(NOW, 1.0))
            } else {
                request.series(&up("b"), &samples(1))
            };
            request.series(&up("c"), &samples(n - 3))
        };
        let mut rig = Rig::with(limits.clone());
        for _ in 0..2 {
            assert_eq!(rig.decode(request(4)).batch.len(), 4);
            assert_eq!(rig.try_decode(&request(5).compressed()).expect_err("one too many"), DecodeError::TooManySamples { max: 4 });
        }
    }
}

#[test]
fn garbage_is_a_clear_error_and_leaves_nothing_behind() {
    let good = WriteRequest::new().series(&up("x"), &[(NOW, 1.0)]).encoded();
    let body = compress(&good);
    let framed = [&b"\xff\x06\x00\x00sNaPpY"[..], &[0; 20]].concat();
    let cut = [&good[..], &[0x0a, 100, 1]].concat();
    let cases: [(&str, Vec<u8>, &str); 7] = [
        ("empty", vec![], "the body is not a snappy block: it is empty"),
        ("truncated snappy", body[..body.len() - 3].to_vec(), "the body is not a snappy block: "),
        ("text", b"up 1\n".to_vec(), "the body is not a snappy block: "),
        ("framed", framed, "the block format"),
        ("cut message", compress(&cut), "a field reaches past the end of its message at byte"),
        ("group", compress(&[0x0b]), "unknown wire type at byte 0"),
        ("series is a number", compress(&[0x08, 1]), "wrong wire type at byte 0"),
    ];
    let mut rig = Rig::new();
    for (what, body, words) in cases {
        let mut out = rig.decode(WriteRequest::new().series(&up("before"), &[(NOW, 1.0)]));
        let error = rig.decoder.decode(&body, &rig.tenant, NOW, &mut rig.connection, &mut out).expect_err(what);
        assert!(error.to_string().contains(words), "{what}: {error}");
        assert_eq!(error.advice(), DecodeAdvice::Malformed);
        assert_eq!((out.batch.len(), out.stats.accepted, out.rejects.len()), (1, 1, 0), "{what}");
    }
}

#[test]
fn several_requests_go_into_one_batch() {
    let mut rig = Rig::new();
    let mut out = Decoded::new();
    for n in 0..3 {
        let body = WriteRequest::new().series(&up("x"), &[(NOW + n, 1.0)]).compressed();
        rig.decoder.decode(&body, &rig.tenant, NOW, &mut rig.connection, &mut out).expect("good");
    }
    assert_eq!((out.batch.len(), out.stats.accepted), (3, 3));
    let append = out.take_append(Vec::new());
    assert_eq!((append.batch.len(), out.is_empty(), out.stats.accepted), (3, true, 3));
}

#[test]
fn buffers_are_reused_and_large_ones_given_back() {
    let mut rig = Rig::new();
    let small = WriteRequest::new().series(&up("x"), &[(NOW, 1.0)]);
    rig.decode(small.clone());
    rig.decode(small.clone());
    assert_eq!(rig.decoder.buffers.lock().len(), 1);
    let mut large = small;
    large.push(15, &vec![0; BUFFER_KEPT_BYTES_MAX + 1]);
    rig.decode(large);
    assert!(rig.decoder.buffers.lock().is_empty());
}

#[test]
fn parallel_senders_agree_while_the_cache_overflows() {
    let registry = Arc::new(SeriesRegistry::new());
    let decoder = RemoteWriteDecoder::new(registry.clone(), Limits::default()).with_cache_bytes_max(20_000);
    let send = |seed: usize| {
        let (tenant, mut connection) = (TenantId::default(), RemoteWriteCache::default());
        for round in 0..20 {
            let jobs: Vec<String> = (0..300).map(|n| ((n * 7 + seed * round) % 300).to_string()).collect();
            let request = jobs.iter().fold(WriteRequest::new(), |r, job| r.series(&up(job), &[(NOW, job.parse().expect("a number"))]));
            let mut out = Decoded::new();
            decoder.decode(&request.compressed(), &tenant, NOW, &mut connection, &mut out).expect("good");
            for (job, (labels, _, bits)) in jobs.iter().zip(rows(&registry, &out)) {
                assert_eq!(labels, format!(r#"{{__name__="up", job="{job}"}}"#));
                assert_eq!(f64::from_bits(bits).to_string(), *job);
            }
        }
    };
    std::thread::scope(|scope| (1..=4).for_each(|seed| drop(scope.spawn(move || send(seed)))));
    assert_eq!(registry.len(), 300);
    assert!(decoder.cache().drops() > 0 && decoder.cache().bytes() <= 20_000);
}

/// A random series: labels by small numbers so that the same sets come again, in some order, and some samples.
#[derive(Debug, Clone)]
struct Random {
    labels: Vec<(String, String)>,
    samples: Vec<(i64, f64)>,
    labels_behind: bool,
    exemplar: bool,
}

fn random_series() -> impl Strategy<Value = Random> {
    let label = (0..6_u8, 0..4_u8).prop_map(|(n, v)| {
        let name = if n == 0 { "__name__".to_owned() } else { format!("l{n}") };
        (name, if v == 0 { String::new() } else { v.to_string() })
    });
    let time = prop_oneof![Just(NOW), Just(0), Just(NOW + TIME_FUTURE_MAX_MS + 1), Just(TIME_MIN_MS - 1), NOW - 100..NOW];
    let samples = prop::collection::vec((time, prop_oneof![Just(0.0), Just(f64::from_bits(STALE_BITS)), any::<f64>()]), 0..4);
    let rare = || prop::bool::weighted(0.1);
    (prop::collection::vec(label, 0..5), prop::bool::weighted(0.8), samples, rare(), rare()).prop_map(
        |(mut labels, name, samples, labels_behind, exemplar)| {
            if name {
                labels.push(("__name__".into(), "m".into()));
            }
            Random { labels, samples, labels_behind, exemplar }
        },
    )
}

impl Random {
    /// The series as a message; `long_way` so that no cache is asked.
    fn message(&self, long_way: bool) -> SeriesMessage {
        let labels = |s| self.labels.iter().fold(s, |s: SeriesMessage, (n, v)| s.label(n, v));
        let samples = |s| self.samples.iter().fold(s, |s: SeriesMessage, (t, v)| s.sample(*t, *v));
        let s = SeriesMessage::default();
        let s = if self.exemplar { s.field(3, b"e") } else { s };
        if long_way || self.labels_behind { labels(samples(s)) } else { samples(labels(s)) }
    }

    /// What must come out, computed in the plainest way.
    fn model(&self) -> Option<Vec<(String, i64, u64)>> {
        let labels = Labels::from_pairs(self.labels.iter().map(|(n, v)| (n, v))).ok().filter(|l| !l.metric().is_empty())?;
        let good = self.samples.iter().filter(|(t, _)| (TIME_MIN_MS..=NOW + TIME_FUTURE_MAX_MS).contains(t));
        Some(good.map(|(t, v)| (labels.to_string(), *t, if *v == 0.0 { 0 } else { v.to_bits() })).collect())
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    /// Invariant W1: guesses, the map, first sight and the long way give one result, which is the model's.
    #[test]
    fn all_ways_give_the_same_result(requests in prop::collection::vec(prop::collection::vec(random_series(), 0..12), 1..5)) {
        let (mut quick, mut long) = (Rig::new(), Rig::new());
        for series in requests.iter().chain(&requests) {
            let request = |long_way| series.iter().fold(WriteRequest::new(), |r, s| r.raw_series(|_| s.message(long_way)));
            let (a, b) = (quick.decode(request(false)), long.decode(request(true)));
            let model: Vec<_> = series.iter().filter_map(Random::model).flatten().collect();
            prop_assert_eq!(quick.rows(&a), &model[..]);
            prop_assert_eq!(long.rows(&b), &model[..]);
            prop_assert_eq!(a.stats, b.stats);
            prop_assert_eq!(a.rejects, b.rejects);
        }
        prop_assert_eq!(long.ways()[..2].to_vec(), vec![0, 0]);
    }

    #[test]
    fn arbitrary_bytes_never_panic(data in prop::collection::vec(any::<u8>(), 0..300)) {
        fuzz::remote_write(&data);
        fuzz::remote_write_message(&data);
        fuzz::remote_write(&compress(&data));
    }

    #[test]
    fn mutated_requests_never_panic(
        series in prop::collection::vec(random_series(), 1..6),
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in any::<prop::sample::Index>(),
    ) {
        let request = series.iter().fold(WriteRequest::new(), |r, s| r.raw_series(|_| s.message(false)));
        let request = request.metadata(&MetricMetadata { metric: "m".into(), ..MetricMetadata::default() });
        for (mut bytes, decode) in [(request.clone().encoded(), fuzz::remote_write_message as fn(&[u8])), (request.compressed(), fuzz::remote_write)] {
            for (at, byte) in &flips {
                let at = at.index(bytes.len());
                bytes[at] = *byte;
                decode(&bytes);
            }
            decode(&bytes[..cut.index(bytes.len())]);
        }
    }
}
