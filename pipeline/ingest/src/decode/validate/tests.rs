use super::*;
use fletch_schemas::Labels;

fn small() -> Limits {
    Limits { label_name_bytes_max: 8, label_value_bytes_max: 10, labels_per_series_max: 3, ..Limits::default() }
}

fn check(pairs: &[(&[u8], &[u8])], policy: LabelPolicy) -> Result<Labels, LabelProblem> {
    let limits = small();
    let mut list = Pairs::new(&limits);
    for (name, value) in pairs {
        list.push(*name, *value);
    }
    let mut bytes = b"left over".to_vec();
    list.canonical(&limits, policy, &mut bytes)?;
    Ok(Labels::from_canonical(&bytes).expect("`canonical` writes canonical bytes"))
}

const NAME: (&[u8], &[u8]) = (b"__name__", b"up");

#[test]
fn good_sets_are_sorted_and_lose_empty_values() {
    for (pairs, text) in [
        (vec![NAME], r#"{__name__="up"}"#),
        (vec![(&b"job"[..], &b"a"[..]), NAME], r#"{__name__="up", job="a"}"#),
        (vec![NAME, (b"zone", b""), (b"job", b"")], r#"{__name__="up"}"#),
        (vec![NAME, (b"job", b""), (b"job", b"x")], r#"{__name__="up", job="x"}"#),
        (vec![NAME, (b"", b"")], r#"{__name__="up"}"#),
        (vec![(b"__name__", "a.b ü".as_bytes()), ("ö".as_bytes(), b"\0")], r#"{__name__="a.b ü", ö="\0"}"#),
    ] {
        assert_eq!(check(&pairs, LabelPolicy::Refuse).map(|l| l.to_string()), Ok(text.to_owned()));
    }
}

#[test]
fn every_problem_names_the_culprit() {
    let long = [b'x'; 11];
    for (pairs, reason, label) in [
        (vec![], RejectReason::MissingName, Some("__name__")),
        (vec![(&b"a"[..], &b"b"[..])], RejectReason::MissingName, Some("__name__")),
        (vec![(b"__name__", b"")], RejectReason::MissingName, Some("__name__")),
        (vec![NAME, (b"", b"v")], RejectReason::BadName, None),
        (vec![NAME, (b"a\0b", b"v")], RejectReason::BadName, Some("a\\0b")),
        (vec![(b"__name__", b"u\0p")], RejectReason::BadName, Some("u\\0p")),
        (vec![NAME, (b"a", b"1"), (b"a", b"1")], RejectReason::Duplicate, Some("a")),
        (vec![NAME, NAME], RejectReason::Duplicate, Some("__name__")),
        (vec![NAME, (b"a\xff", b"v")], RejectReason::NotUtf8, Some("a\u{FFFD}")),
        (vec![NAME, (b"a", b"\xc3")], RejectReason::NotUtf8, Some("a")),
        (vec![NAME, (&long[..9], b"v")], RejectReason::NameTooLong, Some("xxxxxxxxx")),
        (vec![NAME, (b"a", &long[..])], RejectReason::ValueTooLong, Some("a")),
        (vec![NAME, (b"a", b"1"), (b"b", b"1"), (b"c", b"1")], RejectReason::TooManyLabels, None),
        (vec![NAME, (b"user_id", b"1")], RejectReason::RefusedLabel, Some("user_id")),
    ] {
        let problem = check(&pairs, LabelPolicy::Refuse).expect_err("each of these is bad");
        assert_eq!((problem.reason(), problem.label()), (reason, label), "{problem}");
        assert!(label.is_none_or(|l| problem.to_string().contains(l)), "{problem}");
    }
}

#[test]
fn limits_are_inclusive() {
    let value = [b'x'; 10];
    assert!(check(&[NAME, (b"12345678", &value), (b"b", b"1")], LabelPolicy::Refuse).is_ok());
}

#[test]
fn refused_labels_are_exact_and_a_matter_of_policy() {
    let limits = Limits::default();
    for name in REFUSED_LABELS {
        let mut pairs = Pairs::new(&limits);
        pairs.push(&b"__name__"[..], &b"up"[..]);
        pairs.push(name.as_bytes(), &b"1"[..]);
        let mut bytes = Vec::new();
        assert_eq!(pairs.canonical(&limits, LabelPolicy::Warn, &mut bytes), Ok(Some(name)));
        assert_eq!(pairs.canonical(&limits, LabelPolicy::Refuse, &mut bytes), Err(LabelProblem::Refused { name }));
    }
    for name in ["User_id", "userid", "user_id_", "uid"] {
        assert!(check(&[NAME, (name.as_bytes(), b"1")], LabelPolicy::Refuse).is_ok(), "{name}");
    }
}

#[test]
fn messages_stay_short() {
    let limits = Limits::default();
    let huge = vec![b'x'; 10 << 20];
    let mut pairs = Pairs::new(&limits);
    pairs.push(&b"__name__"[..], &huge[..]);
    for _ in 0..1000 {
        pairs.push(&huge[..], &huge[..]);
    }
    assert!(pairs.list.len() <= limits.labels_per_series_max + 1);
    assert!(pairs.describe().len() < 500, "{}", pairs.describe());
    let problem = pairs.canonical(&limits, LabelPolicy::Warn, &mut Vec::new()).expect_err("too many");
    assert_eq!(problem, LabelProblem::TooManyLabels { count: 1001, max: limits.labels_per_series_max });
    pairs.clear();
    pairs.push(&b"a"[..], &huge[..]);
    let problem = pairs.canonical(&limits, LabelPolicy::Warn, &mut Vec::new()).expect_err("too long");
    assert!(problem.to_string().len() < 300 && problem.to_string().contains("10485760 bytes"), "{problem}");
}

#[test]
fn series_are_described_as_people_write_them() {
    let describe = |pairs: &[(&str, &str)]| super::describe(pairs.iter().copied());
    assert_eq!(describe(&[]), "{}");
    assert_eq!(describe(&[("__name__", "up")]), "up");
    assert_eq!(describe(&[("a", "1"), ("__name__", "up"), ("b", "\"")]), r#"up{a="1", b="\""}"#);
    assert_eq!(describe(&[("a", "1")]), r#"{a="1"}"#);
    let many: Vec<(String, String)> = (0..100).map(|i| (format!("label_{i}"), "v".repeat(50))).collect();
    let text = super::describe(many.iter().map(|(n, v)| (n.as_str(), v.as_str())));
    assert!(text.len() < 400 && text.ends_with(", …}"), "{text}");
}

#[test]
fn clipping_respects_characters() {
    assert_eq!(clip("abc", 3), "abc");
    assert_eq!(clip("abcd", 3), "abc…");
    assert_eq!(clip("aöö", 2), "a…");
    assert_eq!(clip("a\nb\0", 10), "a\u{FFFD}b\\0");
}
