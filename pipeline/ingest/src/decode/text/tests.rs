use super::super::testing::fuzz;
use super::*;
use crate::SeriesRegistry;
use crate::decode::{DecodeAdvice, LabelPolicy};
use fletch_common::Limits;
use fletch_schemas::{MetricMetadata, TIME_FUTURE_MAX_MS, TenantId};
use proptest::prelude::*;

const NOW: i64 = 1_700_000_000_000;

fn decode_with(limits: &Limits, body: &[u8]) -> Result<(Decoded, SeriesRegistry), DecodeError> {
    let (registry, tenant, mut out) = (SeriesRegistry::new(), TenantId::default(), Decoded::new());
    let context = DecodeContext { tenant: &tenant, now_ms: NOW, limits, registry: &registry, label_policy: LabelPolicy::Refuse };
    decode_text(&context, body, &mut out)?;
    Ok((out, registry))
}

fn decode(body: impl AsRef<[u8]>) -> (Decoded, SeriesRegistry) {
    decode_with(&Limits::default(), body.as_ref()).expect("the body as a whole is fine")
}

/// `labels value time` of each sample.
fn rows(body: impl AsRef<[u8]>) -> Vec<String> {
    let (out, registry) = decode(body);
    assert_eq!(out.rejects, [], "nothing is refused");
    let row = |i: usize| format!("{} {} {}", registry.get(out.batch.series[i]).labels, out.batch.values[i], out.batch.times[i]);
    (0..out.batch.len()).map(row).collect()
}

#[test]
fn good_lines_are_read() {
    for (line, row) in [
        ("up 1", r#"{__name__="up"} 1 1700000000000"#),
        ("up{} 1", r#"{__name__="up"} 1 1700000000000"#),
        ("up{a=\"1\"} 1 1600000000000", r#"{__name__="up", a="1"} 1 1600000000000"#),
        ("up{b=\"2\",a=\"1\",} 1 1600000000", r#"{__name__="up", a="1", b="2"} 1 1600000000000"#),
        ("up{a=\"1\"} 1 1600000000.5", r#"{__name__="up", a="1"} 1 1600000000500"#),
        ("up 1 2020-09-13T12:26:40Z", r#"{__name__="up"} 1 1600000000000"#),
        ("\t up \t { a = \"1\" , b=\"2\" } \t -1.5e3 \t 0 \t", r#"{__name__="up", a="1", b="2"} -1500 0"#),
        ("up{a=\"1\"}2", r#"{__name__="up", a="1"} 2 1700000000000"#),
        ("a:b:c_9 NaN", r#"{__name__="a:b:c_9"} NaN 1700000000000"#),
        ("up +Inf", r#"{__name__="up"} inf 1700000000000"#),
        ("up -Inf", r#"{__name__="up"} -inf 1700000000000"#),
        ("up{a=\"\"} 1", r#"{__name__="up"} 1 1700000000000"#),
        (r#"up{a="q\"b\\n\nx\ty"} 1"#, r#"{__name__="up", a="q\"b\\n\nx\\ty"} 1 1700000000000"#),
        ("up{a=\"}{, #\"} 1", r#"{__name__="up", a="}{, #"} 1 1700000000000"#),
        (r#"{"a.b"} 1"#, r#"{__name__="a.b"} 1 1700000000000"#),
        (r#"{"a.b", "l.x"="v", y="w"} 1"#, r#"{__name__="a.b", l.x="v", y="w"} 1 1700000000000"#),
        (r#"{l="v","a\"b"} 1"#, r#"{__name__="a\"b", l="v"} 1 1700000000000"#),
        (r#"{__name__="up"} 1"#, r#"{__name__="up"} 1 1700000000000"#),
        ("up{a=\"ü€\"} 1", r#"{__name__="up", a="ü€"} 1 1700000000000"#),
        ("up 1 # {trace_id=\"x\"} 0.5 1", r#"{__name__="up"} 1 1700000000000"#),
        ("up 1 5 # {trace_id=\"x\"} 0.5", r#"{__name__="up"} 1 5000"#),
    ] {
        assert_eq!(rows(line), [row], "{line}");
        assert_eq!(rows(format!("\n{line}\r\n\r\n")), [row], "{line} with CR LF");
    }
    assert!(rows("").is_empty() && rows("\n \n\t\r\n# EOF\n#\n#x\n# any comment").is_empty());
}

#[test]
fn bad_lines_are_refused_with_number_and_reason() {
    use RejectReason as R;
    for (line, reason, words) in [
        ("up", R::BadValue, "the value is missing"),
        ("up ", R::BadValue, "the value is missing"),
        ("up{a=\"1\"}", R::BadValue, "the value is missing"),
        ("up one", R::BadValue, "the value `one` is not a number"),
        ("up 0x10", R::BadValue, "is not a number"),
        ("up 1_0", R::BadValue, "is not a number"),
        ("up 1e999", R::BadValue, "too large"),
        ("up 1 soon", R::BadTime, "the time `soon` is not a time"),
        ("up 1 2 3", R::Malformed, "unexpected `3` behind the time"),
        ("up 1 99999999999999", R::InFuture, "more than 10 min ahead"),
        ("up 1 -99999999999", R::TooOld, "before the year 1700"),
        ("9up 1", R::Malformed, "cannot begin with `9`"),
        ("a.b 1", R::Malformed, "unexpected `.` behind the metric name `a`; quote unusual names: {\"the.name\"} 1"),
        ("ü 1", R::Malformed, "cannot begin with `ü`"),
        ("\0 1", R::Malformed, "cannot begin with `\\0`"),
        ("1", R::Malformed, "cannot begin with `1`"),
        ("up{a=\"1\" 1", R::Malformed, "expected `,` or `}` between labels, found `1`"),
        ("up{a=\"1\" b=\"2\"} 1", R::Malformed, "found `b`"),
        ("up{a=\"1\"", R::Malformed, "not closed by `}`"),
        ("up{", R::Malformed, "not closed by `}`"),
        ("up{a=\"1} 1", R::Malformed, "not closed"),
        ("up{a=\"1\\\"} 1", R::Malformed, "not closed"),
        ("up{a=1} 1", R::Malformed, "expected a text in double quotes"),
        ("up{a='1'} 1", R::Malformed, "expected a text in double quotes"),
        ("up{a} 1", R::Malformed, "label `a` has no value"),
        ("up{,} 1", R::Malformed, "cannot begin with `,`"),
        ("up{a:b=\"1\"} 1", R::Malformed, "label `a` has no value"),
        ("up{1a=\"1\"} 1", R::Malformed, "cannot begin with `1`"),
        ("up{a=\"1\",a=\"2\"} 1", R::Duplicate, "label `a` is given twice"),
        ("up{\"other\"} 1", R::Duplicate, "label `__name__` is given twice"),
        ("{\"a\",\"b\"} 1", R::Duplicate, "`__name__` is given twice"),
        ("{a=\"1\"} 1", R::MissingName, "`__name__`) is missing"),
        ("{} 1", R::MissingName, "missing"),
        ("{\"\"} 1", R::MissingName, "missing"),
        ("up{\"\"=\"x\"} 1", R::BadName, "empty name"),
        ("up{\"a\0b\"=\"x\"} 1", R::BadName, "NUL"),
        ("up{user_id=\"7\"} 1", R::RefusedLabel, "label `user_id` is refused"),
    ] {
        let (out, registry) = decode(format!("first 1\n\n# x\n{line}\r\nlast 2"));
        assert_eq!((out.stats.accepted, out.stats.rejected()), (2, 1), "{line:?}: {:?}", out.rejects);
        let reject = &out.rejects[0];
        assert_eq!((reject.place, reject.reason), (Place::Line(4), reason), "{line:?}: {reject}");
        assert!(reject.to_string().starts_with("line 4: ") && reject.message.contains(words), "{line:?}: {reject}");
        assert_eq!(registry.len(), 2, "{line:?}: a refused line makes no series");
    }
    let (out, _) = decode(b"a 1\nb{x=\"\xff\"} 1\nc 1");
    assert_eq!((out.stats.accepted, out.rejects[0].reason, out.rejects[0].place), (2, RejectReason::NotUtf8, Place::Line(2)));
}

#[test]
fn comments_become_metadata() {
    let body = concat!(
        "# HELP http_requests_total Requests\\nby code \\\\ \\\"all\\\".\n",
        "# TYPE http_requests_total counter\n",
        "http_requests_total 5\n",
        "# UNIT http_requests_total requests\n",
        "#\tTYPE\t\"a.b\"\tgauge\r\n",
        "# TYPE plain untyped\n",
        "# HELP only_help\n",
        "#TYPE x nonsense\n",
        "# HELPME x\n",
        "# EOF\n",
    );
    let (out, _) = decode(body);
    assert_eq!((out.rejects.len(), out.stats.accepted, out.stats.metadata), (0, 1, 4), "{:?}", out.rejects);
    let entry =
        |metric: &str, kind, unit: &str, help: &str| MetricMetadata { metric: metric.into(), kind, unit: unit.into(), help: help.into() };
    let said: Vec<_> = out.metadata.into_iter().map(|(_, m)| m).collect();
    assert_eq!(
        said,
        [
            entry("http_requests_total", MetricKind::Counter, "requests", "Requests\nby code \\ \\\"all\\\"."),
            entry("a.b", MetricKind::Gauge, "", ""),
            entry("plain", MetricKind::Unknown, "", ""),
            entry("only_help", MetricKind::Unknown, "", ""),
        ]
    );
    for (line, words) in [
        ("# TYPE x nonsense", "`nonsense` is no type"),
        ("# TYPE x", "`` is no type"),
        ("# TYPE", "a metric name must follow"),
        ("# HELP \"x", "not closed"),
        ("# TYPE a\0b gauge", "NUL"),
    ] {
        let (out, _) = decode(format!("{line}\nup 1"));
        assert_eq!((out.stats.accepted, out.metadata.len(), out.rejects.len()), (1, 0, 1), "{line}");
        assert!(out.rejects[0].reason == RejectReason::Metadata && out.rejects[0].message.contains(words), "{}", out.rejects[0]);
    }
}

#[test]
fn exemplars_are_counted() {
    let (out, _) = decode("a 1 # {trace_id=\"x\"} 0.5\nb 1 2 # {}\nc 1");
    assert_eq!((out.stats.accepted, out.stats.exemplars_ignored), (3, 2));
}

#[test]
fn the_future_ends_at_its_limit() {
    let edge = NOW + TIME_FUTURE_MAX_MS;
    let (out, _) = decode(format!("a 1 {edge}\nb 1 {}", edge + 1));
    assert_eq!((out.batch.times, out.rejects[0].place), (vec![edge], Place::Line(2)));
}

#[test]
fn limits_are_exact() {
    let limits = Limits { request_samples_max: 2, request_decompressed_bytes_max: 20, ..Limits::default() };
    assert_eq!(decode_with(&limits, b"# x\na 1\nbad\n").map(|(out, _)| out.rejects_total), Ok(1));
    let error = |body: &[u8]| decode_with(&limits, body).map(|_| ()).expect_err("above a limit");
    assert_eq!(error(b"a 1\nb 2\nc 3"), DecodeError::TooManySamples { max: 2 });
    assert!(decode_with(&limits, &[b'\n'; 20]).is_ok());
    assert_eq!(error(&[b'\n'; 21]).advice(), DecodeAdvice::TooLarge);
}

#[test]
fn a_huge_label_is_one_refused_line() {
    let body = format!("a 1\nb{{x=\"{}\"}} 1\n{} 1\nc 1", "v".repeat(10 << 20), "n".repeat(10 << 20));
    let (out, _) = decode(body);
    assert_eq!((out.stats.accepted, out.stats.rejected_for(RejectReason::ValueTooLong)), (2, 2));
    assert!(out.rejects.iter().all(|r| r.message.len() < 400 && r.message.contains("10485760 bytes")), "{:?}", out.rejects);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    /// Any labels and value survive being written and read.
    #[test]
    fn written_lines_are_read_back(name in "[^\0]{1,8}", labels in prop::collection::btree_map("[^\0]{1,6}", "(?s).{1,8}", 0..4), value in any::<f64>()) {
        prop_assume!(!labels.contains_key("__name__"));
        let quote = |text: &str| format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n"));
        let mut parts: Vec<String> = labels.iter().map(|(n, v)| format!("{}={}", quote(n), quote(v))).collect();
        parts.push(quote(&name));
        let (out, registry) = decode(format!("{{{}}} {value:e} 1", parts.join(",")));
        prop_assert_eq!(&out.rejects, &[]);
        let got = &registry.get(out.batch.series[0]).labels;
        let mut expected: Vec<(&str, &str)> = labels.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
        expected.push(("__name__", &name));
        expected.sort_unstable();
        prop_assert_eq!(got.iter().collect::<Vec<_>>(), expected);
        prop_assert!(out.batch.values[0].to_bits() == value.to_bits() || value.is_nan());
    }

    #[test]
    fn arbitrary_bytes_never_panic(data in prop::collection::vec(any::<u8>(), 0..200), text in "[a{}=\",\\\\# \t\n\r0-9.eT:]{0,80}") {
        fuzz::text(&data);
        fuzz::text(text.as_bytes());
        fuzz::sniff(&data);
        fuzz::sniff(text.as_bytes());
    }

    #[test]
    fn mutated_lines_never_panic(flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8)) {
        let mut body = b"# HELP a.b text\n# TYPE \"a\\\\b\" gauge\nup{a=\"1\",\"b.c\"=\"\\\"\xc3\xbc\"} 1.5e3 1600000000 # {x=\"y\"} 1\n{\"q\", l=\"v\"} NaN 2020-09-13T12:26:40Z\n".to_vec();
        for (at, byte) in flips {
            let at = at.index(body.len());
            body[at] = byte;
            fuzz::text(&body);
        }
    }
}
