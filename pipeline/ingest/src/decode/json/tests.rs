use super::super::testing::fuzz;
use super::*;
use crate::SeriesRegistry;
use crate::decode::{DecodeAdvice, LabelPolicy, PushAnswer};
use fletch_common::Limits;
use fletch_schemas::{TIME_FUTURE_MAX_MS, TIME_MIN_MS, TenantId};
use proptest::prelude::*;

const NOW: i64 = 1_700_000_000_000;

type Decode = fn(&DecodeContext<'_>, &[u8], &mut Decoded) -> Result<(), DecodeError>;

fn decode_with(decode: Decode, limits: &Limits, body: &[u8]) -> Result<(Decoded, SeriesRegistry), DecodeError> {
    let (registry, tenant, mut out) = (SeriesRegistry::new(), TenantId::default(), Decoded::new());
    let context = DecodeContext { tenant: &tenant, now_ms: NOW, limits, registry: &registry, label_policy: LabelPolicy::Refuse };
    decode(&context, body, &mut out)?;
    Ok((out, registry))
}

fn decode(body: &str) -> (Decoded, SeriesRegistry) {
    decode_with(decode_json, &Limits::default(), body.as_bytes()).expect("the body as a whole is fine")
}

fn rows_with(decode: Decode, body: &str) -> Vec<String> {
    let (out, registry) = decode_with(decode, &Limits::default(), body.as_bytes()).expect("the body as a whole is fine");
    assert_eq!(out.rejects, [], "nothing is refused: {body}");
    let row = |i: usize| format!("{} {} {}", registry.get(out.batch.series[i]).labels, out.batch.values[i], out.batch.times[i]);
    (0..out.batch.len()).map(row).collect()
}

#[test]
fn the_documented_shapes_are_read() {
    let a = r#"{"name":"cpu","type":"gauge","value":0.5,"timestamp":1600000000,"tags":{"host":"a"}}"#;
    let b = r#"{"name":"mem","value":7,"timestamp":1600000000123,"labels":{"host":"b"}}"#;
    let rows = [r#"{__name__="cpu", host="a"} 0.5 1600000000000"#, r#"{__name__="mem", host="b"} 7 1600000000123"#];
    assert_eq!(rows_with(decode_json, &format!(r#"{{"metrics":[{a},{b}]}}"#)), rows);
    assert_eq!(rows_with(decode_json, &format!(r#" {{ "job" : [1,{{}}], "metrics" : [ {a} , {b} ] , "x":null }} "#)), rows);
    assert_eq!(rows_with(decode_json, &format!("[{a},\n{b}]")), rows);
    assert_eq!(rows_with(decode_json, &format!("\n{b}\n")), rows[1..]);
    assert_eq!(rows_with(decode_prometheus_json, &format!(" {b}\n")), rows[1..]);
    assert!(rows_with(decode_json, r#"{"metrics":[]}"#).is_empty() && rows_with(decode_json, "[]").is_empty());
}

#[test]
fn keys_are_read_as_documented() {
    for (metric, row) in [
        (r#"{"name":"a","value":1}"#, r#"{__name__="a"} 1 1700000000000"#),
        (r#"{"name":"a","value":1,"timestamp":null,"tags":null,"type":null,"host":{"x":[1]}}"#, r#"{__name__="a"} 1 1700000000000"#),
        (r#"{"name":"a","value":"1e3","timestamp":"1600000000"}"#, r#"{__name__="a"} 1000 1600000000000"#),
        (r#"{"name":"a","value":"NaN"}"#, r#"{__name__="a"} NaN 1700000000000"#),
        (r#"{"name":"a","value":"+Inf"}"#, r#"{__name__="a"} inf 1700000000000"#),
        (r#"{"name":"a","value":-0.1,"timestamp":1600000000.123}"#, r#"{__name__="a"} -0.1 1600000000123"#),
        (r#"{"name":"a","value":1,"timestamp":"2020-09-13T12:26:40.5Z"}"#, r#"{__name__="a"} 1 1600000000500"#),
        (r#"{"name":"a","value":1,"timestamp":-1}"#, r#"{__name__="a"} 1 -1000"#),
        (r#"{"name":"a\u00fc\n","value":1,"tags":{"\u0061":"\"\ud83d\ude00"}}"#, "{__name__=\"aü\\n\", a=\"\\\"😀\"} 1 1700000000000"),
        (r#"{"n\u0061me":"a","value":1,"tags":{"x":"","x":"1"}}"#, r#"{__name__="a", x="1"} 1 1700000000000"#),
        (r#"{"value":1,"labels":{"__name__":"a"}}"#, r#"{__name__="a"} 1 1700000000000"#),
        (r#"{"labels":{"__name__":"a","b":"1"},"name":"a","value":1}"#, r#"{__name__="a", b="1"} 1 1700000000000"#),
        // A reader that goes through a rounded float would be off by one in the last bit.
        (r#"{"name":"a","value":17005001.000000000119}"#, r#"{__name__="a"} 17005001 1700000000000"#),
    ] {
        assert_eq!(rows_with(decode_json, metric), [row], "{metric}");
    }
    let exact = [0.1 + 0.2, 5e-324, f64::MAX, 123_456_789.123_456_78, 9_007_199_254_740_993.0];
    let body: Vec<String> = exact.iter().map(|v| format!(r#"{{"name":"a","value":{v:e}}}"#)).collect();
    let (out, _) = decode(&format!("[{}]", body.join(",")));
    assert_eq!(out.batch.values, exact);
}

#[test]
fn one_bad_metric_never_sinks_the_others() {
    use RejectReason as R;
    for (metric, reason, words) in [
        ("7", R::Malformed, "a metric must be an object, not a number"),
        ("null", R::Malformed, "not null"),
        ("[]", R::Malformed, "not an array"),
        ("{}", R::BadValue, "key `value` is missing"),
        (r#"{"name":"a"}"#, R::BadValue, "key `value` is missing"),
        (r#"{"name":"a","value":null}"#, R::BadValue, "key `value` is missing"),
        (r#"{"name":"a","value":true}"#, R::BadValue, "`value` must be a number or a string, not a boolean"),
        (r#"{"name":"a","value":[1]}"#, R::BadValue, "not an array"),
        (r#"{"name":"a","value":"x"}"#, R::BadValue, "the value `x` is not a number"),
        (r#"{"name":"a","value":""}"#, R::BadValue, "the value `` is not a number"),
        (r#"{"name":"a","value":1e400}"#, R::BadValue, "too large"),
        (r#"{"name":"a","value":1,"timestamp":"then"}"#, R::BadTime, "the timestamp `then` is not a time"),
        (r#"{"name":"a","value":1,"timestamp":{}}"#, R::BadTime, "not an object"),
        (r#"{"name":"a","value":1,"timestamp":99999999999999}"#, R::InFuture, "a: time 99999999999999 ms is more than 10 min ahead"),
        (r#"{"name":"a","value":1,"timestamp":-99999999999}"#, R::TooOld, "before the year 1700"),
        (r#"{"value":1}"#, R::MissingName, "`__name__`) is missing"),
        (r#"{"name":"","value":1}"#, R::MissingName, "missing"),
        (r#"{"name":7,"value":1}"#, R::Malformed, "`name` must be a string, not a number"),
        (r#"{"name":"a","value":1,"type":7}"#, R::Malformed, "`type` must be a string"),
        (r#"{"name":"a","value":1,"tags":[]}"#, R::Malformed, "`tags` must be an object, not an array"),
        (r#"{"name":"a","value":1,"labels":"x"}"#, R::Malformed, "`labels` must be an object, not a string"),
        (r#"{"name":"a","value":1,"tags":{"b":1}}"#, R::Malformed, "the value of label `b` must be a string, not a number"),
        (r#"{"name":"a","value":1,"tags":{"b":null}}"#, R::Malformed, "not null"),
        (r#"{"name":"a","value":1,"tags":{},"labels":{}}"#, R::Malformed, "not both"),
        (r#"{"name":"a","value":1,"value":2}"#, R::Malformed, "key `value` is given twice"),
        (r#"{"name":"a","n\u0061me":"a","value":2}"#, R::Malformed, "key `name` is given twice"),
        (r#"{"name":"a","value":1,"tags":{"b":"1","b":"1"}}"#, R::Duplicate, "label `b` is given twice"),
        (r#"{"name":"a","value":1,"tags":{"__name__":"b"}}"#, R::Duplicate, "`__name__` is given twice"),
        (r#"{"name":"a","value":1,"tags":{"__name__":"a","__name__":"a"}}"#, R::Duplicate, "`__name__` is given twice"),
        (r#"{"name":"a","value":1,"tags":{"":"b"}}"#, R::BadName, "empty name"),
        (r#"{"name":"a\u0000","value":1}"#, R::BadName, "`a\\0` contains a NUL"),
        (r#"{"name":"a","value":1,"tags":{"guid":"b"}}"#, R::RefusedLabel, "label `guid` is refused"),
        (r#"{"name":"\ud800","value":1}"#, R::Malformed, "broken escape"),
        (r#"{"\ud800":1}"#, R::Malformed, "cannot be read"),
    ] {
        let (out, registry) = decode(&format!(r#"{{"metrics":[{{"name":"first","value":1}},{metric},{{"name":"last","value":2}}]}}"#));
        assert_eq!(
            (out.stats.accepted, out.stats.rejected(), out.batch.values.as_slice()),
            (2, 1, &[1.0, 2.0][..]),
            "{metric}: {:?}",
            out.rejects
        );
        let reject = &out.rejects[0];
        assert_eq!((reject.place, reject.reason), (Place::Metric(1), reason), "{metric}: {reject}");
        assert!(reject.message.contains(words), "{metric}: {reject}");
        assert_eq!(registry.len(), 2, "{metric}");
    }
}

#[test]
fn answers_name_index_label_and_reason() {
    let answer = |body: &str| serde_json::to_value(PushAnswer::of(&decode(body).0)).expect("plain data");
    let good = answer(r#"{"metrics":[{"name":"a","value":1},{"name":"b","value":2}]}"#);
    assert_eq!(good, serde_json::json!({"status": "success", "accepted": 2, "rejected": 0, "errors": []}));
    let mixed = answer(r#"[{"name":"a","value":1},{"name":"b","value":2,"tags":{"uuid":"x"}}]"#);
    assert_eq!(mixed["errors"][0]["index"], 1);
    assert_eq!(mixed["errors"][0]["label"], "uuid");
    assert_eq!(mixed["errors"][0]["reason"], "refused_label");
    assert!(mixed["errors"][0]["error"].as_str().is_some_and(|e| e.starts_with(r#"b{uuid="x"}: label `uuid` is refused"#)), "{mixed}");
    assert_eq!((&mixed["status"], &mixed["accepted"], &mixed["rejected"]), (&"success".into(), &1.into(), &1.into()));
    assert_eq!(answer(r#"{"name":"a"}"#)["status"], "error");
    assert_eq!(answer("[]")["errors"][0]["error"], "the request holds no samples");
}

#[test]
fn what_is_no_list_of_metrics_is_refused_whole() {
    let deep = "[".repeat(100_000);
    for (body, words) in [
        ("", "EOF"),
        ("  ", "EOF"),
        ("nonsense", "expected"),
        ("7", "expected {\"metrics\": […]}, an array of metrics or one metric"),
        ("\"text\"", "expected {\"metrics\""),
        (r#"{"metrics":{}}"#, "expected an array of metrics"),
        (r#"{"metrics":null}"#, "expected an array of metrics"),
        (r#"{"metrics":[],"metrics":[]}"#, "key `metrics` is given twice"),
        (r#"[{"name":"a","value":1}"#, "EOF"),
        (r#"[{"name":"a","value":1},]"#, "trailing comma"),
        (r#"[{"name":"a","value":1}] x"#, "trailing characters"),
        (r#"{"name":"a","value":1} {"name":"a","value":1}"#, "trailing characters"),
        (r#"[{"name":"a","value":NaN}]"#, "expected value"),
        (&deep, ""),
    ] {
        let error = decode_with(decode_json, &Limits::default(), body.as_bytes()).map(|_| ()).expect_err("not usable");
        assert_eq!(error.advice(), DecodeAdvice::Malformed);
        assert!(error.to_string().contains(words) && error.to_string().len() < 400, "{error}");
    }
    let error = decode_with(decode_json, &Limits::default(), b"[\"\xff\"]").map(|_| ()).expect_err("not UTF-8");
    assert_eq!(error, DecodeError::NotUtf8 { offset: 2 });
    let many = decode_with(decode_prometheus_json, &Limits::default(), b"[]").map(|(out, _)| out.rejects[0].to_string());
    assert_eq!(many, Ok("metric 0: a metric must be an object, not an array".to_owned()));
}

#[test]
fn a_refused_body_leaves_nothing_behind() {
    let (registry, tenant, limits, mut out) = (SeriesRegistry::new(), TenantId::default(), Limits::default(), Decoded::new());
    let context = DecodeContext { tenant: &tenant, now_ms: NOW, limits: &limits, registry: &registry, label_policy: LabelPolicy::Refuse };
    decode_json(&context, br#"[{"name":"a","value":1}]"#, &mut out).expect("good");
    decode_json(&context, br#"[{"name":"b","value":2,"type":"gauge"},{},{"name"]"#, &mut out).expect_err("cut off");
    assert_eq!((out.batch.values.as_slice(), out.stats.accepted, out.rejects_total, out.metadata.len()), (&[1.0][..], 1, 0, 0));
}

#[test]
fn types_become_metadata_once_per_metric() {
    let body = r#"[
        {"name":"a","type":"Counter","value":1,"unit":"bytes","help":"h\n"},
        {"name":"a","type":"counter","value":1,"tags":{"x":"1"}},
        {"name":"b","type":"whatever","value":1},
        {"name":"c","value":1},
        {"labels":{"__name__":"d"},"type":"gauge","value":1},
        {"name":"bad","type":"gauge","value":1,"tags":{"guid":"1"}}
    ]"#;
    let (out, _) = decode(body);
    let said: Vec<_> = out.metadata.iter().map(|(_, m)| (m.metric.as_str(), m.kind, m.unit.as_str(), m.help.as_str())).collect();
    assert_eq!(said, [("a", MetricKind::Counter, "bytes", "h\n"), ("b", MetricKind::Unknown, "", ""), ("d", MetricKind::Gauge, "", "")]);
    assert_eq!((out.stats.metadata, out.stats.accepted), (3, 5));
}

#[test]
fn messages_of_prometheus_kafka_adapter_are_read() {
    let message = r#"{"labels":{"__name__":"foo","instance":"x:9090"},"name":"foo","timestamp":"2020-09-13T12:26:40Z","value":"-0.5"}"#;
    assert_eq!(rows_with(decode_prometheus_json, message), [r#"{__name__="foo", instance="x:9090"} -0.5 1600000000000"#]);
    let inf = r#"{"labels":{"__name__":"foo"},"name":"foo","timestamp":"1970-01-01T00:00:00Z","value":"+Inf"}"#;
    assert_eq!(rows_with(decode_prometheus_json, inf), [r#"{__name__="foo"} inf 0"#]);
}

#[test]
fn limits_are_exact() {
    let metric = r#"{"name":"a","value":1}"#;
    let two = format!("[{metric},{metric}]");
    let limits = Limits { request_samples_max: 2, request_decompressed_bytes_max: two.len(), ..Limits::default() };
    let decode = |limits: &Limits, body: &str| decode_with(decode_json, limits, body.as_bytes()).map(|(out, _)| out.batch.len());
    assert_eq!(decode(&limits, &two), Ok(2));
    assert_eq!(decode(&limits, &format!("{two} ")).map_err(|e| e.advice()), Err(DecodeAdvice::TooLarge));
    let one_less = Limits { request_samples_max: 1, ..limits };
    assert_eq!(decode(&one_less, &two), Err(DecodeError::TooManySamples { max: 1 }));
    let times = [(TIME_MIN_MS, 1), (TIME_MIN_MS - 1, 0), (NOW + TIME_FUTURE_MAX_MS, 1), (NOW + TIME_FUTURE_MAX_MS + 1, 0)];
    for (time, taken) in times {
        let body = format!(r#"{{"name":"a","value":1,"timestamp":{time}}}"#);
        assert_eq!(decode(&Limits::default(), &body), Ok(taken), "{time}");
    }
}

#[test]
fn huge_texts_are_one_refused_metric_with_a_short_message() {
    let huge = "v".repeat(10 << 20);
    let body = format!(r#"[{{"name":"a","value":1,"tags":{{"x":"{huge}"}}}},{{"name":"a","value":"{huge}"}},{{"name":"a","value":1}}]"#);
    let (out, _) = decode(&body);
    assert_eq!((out.stats.accepted, out.rejects_total), (1, 2));
    assert!(out.rejects.iter().all(|r| r.message.len() < 400), "{:?}", out.rejects);
    let labels: Vec<String> = (0..100_000).map(|n| format!(r#""l{n}":"v""#)).collect();
    let (out, _) = decode(&format!(r#"{{"name":"a","value":1,"tags":{{{}}}}}"#, labels.join(",")));
    assert!(out.rejects[0].message.contains("the series has 100001 labels, the limit is 60"), "{}", out.rejects[0]);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn arbitrary_bytes_never_panic(data in prop::collection::vec(any::<u8>(), 0..200), text in "[\\[\\]{}\":,a\\\\u0-9ntrue.]{0,80}") {
        for data in [&data[..], text.as_bytes()] {
            fuzz::json(data);
            fuzz::prometheus_json(data);
        }
    }

    #[test]
    fn mutated_bodies_never_panic(flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8), cut in any::<prop::sample::Index>()) {
        let mut body = br#"{"metrics":[{"name":"a\u00fc","type":"gauge","value":1.5e3,"timestamp":1600000000,"tags":{"x":"\"y"}},{"name":"b","value":"NaN","timestamp":"2020-09-13T12:26:40Z","labels":{"__name__":"b"}}]}"#.to_vec();
        fuzz::json(&body[..cut.index(body.len())]);
        for (at, byte) in flips {
            let at = at.index(body.len());
            body[at] = byte;
            fuzz::json(&body);
        }
    }
}
