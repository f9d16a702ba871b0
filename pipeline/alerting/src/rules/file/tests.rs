//! Files as texts; errors as the user reads them.

use super::*;

const GOOD: &str = r#"
groups:
  - name: node
    interval: 15s
    limit: 10
    query_offset: 1m
    labels: {team: infra, severity: low}
    rules:
      - alert: Down
        expr: up   ==  0
        for: 5m
        keep_firing_for: 1h30m
        labels: {severity: page, code: 17}
        annotations:
          summary: "{{ $labels.instance }} is down"
      - alert: Down
        expr: up == 0
        labels: {severity: page, code: 17}
  - name: empty
"#;

fn parsed(text: &str) -> Result<Vec<Group>, Vec<RuleError>> {
    parse("r.yml", text, &TenantId::default(), Defaults::default())
}

fn errors(text: &str) -> String {
    parsed(text).expect_err("refused").iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

/// A file with one rule of these lines.
fn rule(lines: &str) -> String {
    format!("groups:\n- name: g\n  rules:\n  - {}\n", lines.replace('\n', "\n    "))
}

#[test]
fn a_file_is_read_with_all_its_fields() {
    let groups = parsed(GOOD).expect("valid");
    assert_eq!(groups.len(), 2);
    let node = &groups[0];
    assert_eq!((node.interval_ms, node.limit, node.query_offset_ms), (15_000, 10, 60_000));
    let down = &node.rules[0];
    assert_eq!(down.expr, "up == 0");
    assert_eq!(down.policy, Policy { hold_ms: 300_000, keep_firing_ms: 5_400_000, limit: 10 });
    let labels: Vec<(&str, &str)> = down.labels.iter().map(|(n, t)| (n.as_str(), t.text())).collect();
    assert_eq!(labels, [("code", "17"), ("severity", "page"), ("team", "infra")]);
    assert_eq!(groups[1].interval_ms, 60_000);
    assert_ne!(down.id, node.rules[1].id, "equal rules are told apart by their order");
    let again = parsed(&GOOD.replace("5m", "6m")).expect("valid");
    assert_eq!(again[0].rules[0].id, down.id, "`for` is no part of the identity");
}

#[test]
fn empty_files_have_no_groups() {
    for text in ["", "# nothing\n", "groups:\n", "groups: []", "---\n"] {
        assert!(parsed(text).expect(text).is_empty(), "{text:?}");
    }
}

#[test]
fn errors_name_file_line_group_and_rule() {
    let cases = [
        ("alert: A\nexpr: sum(", r#"r.yml: 5:11: group "g", rule 1, "A": could not parse expression: 1:5: parse error: "#),
        ("alert: A", r#"r.yml: 4:5: group "g", rule 1, "A": field 'expr' must be set in rule"#),
        ("expr: up", r#"r.yml: 4:5: group "g", rule 1, "": one of 'record' or 'alert' must be set"#),
        ("alert: A\nrecord: a\nexpr: up", r#"group "g", rule 1, "A": only one of 'record' and 'alert' must be set"#),
        ("record: a:b\nexpr: up", r#"group "g", rule 1, "a:b": recording rules are not built yet"#),
        ("alert: A\nexpr: up\nfor: 5 minutes", r#"rule 1, "A": field 'for': "#),
        ("alert: A\nexpr: up\nlabels: {__name__: x}", r#"rule 1, "A": invalid label name: __name__"#),
        ("alert: A\nexpr: up\nlabels: {a: '{{ nosuch }}'}", r#"label "a": template: __alert_A:1: function "nosuch" not defined"#),
        ("alert: A\nexpr: up\nannotations: {a: '{{ .X'}", r#"annotation "a": template: __alert_A:"#),
        ("alert: A\nexpr: up\nfro: 5m", "r.yml: 6:5: yaml: unknown field `fro`"),
        ("alert: A\nalert: B\nexpr: up", "r.yml: 5:5: yaml: duplicate mapping key"),
    ];
    for (lines, part) in cases {
        let text = errors(&rule(lines));
        assert!(text.contains(part), "{lines}\n got: {text}\nwant: {part}");
    }
}

#[test]
fn groups_are_checked_too_and_all_errors_are_reported() {
    let text = "groups:\n- name: g\n  interval: 5\n- name: g\n  limit: -1\n- name: ''\n  query_offset: x\n";
    let text = errors(text);
    for part in [
        "field 'interval'",
        "groupname: \"g\" is repeated in the same file",
        "limit must not be negative",
        "groupname must not be empty",
        "field 'query_offset'",
    ] {
        assert!(text.contains(part), "{part} in {text}");
    }
    assert_eq!(text.lines().count(), 5, "{text}");
    assert!(errors("groups: 7").starts_with("r.yml: 1:"), "{}", errors("groups: 7"));
    assert!(errors("rules: []").contains("unknown field `rules`"));
    assert!(errors("a: [").contains("yaml: "));
}

#[test]
fn patterns_are_expanded_and_a_missing_file_is_an_error() {
    let dir = tempfile::tempdir().expect("temp dir");
    for name in ["b.yml", "a.yml", "c.txt"] {
        std::fs::write(dir.path().join(name), "").expect("write");
    }
    let of = |name: &str| dir.path().join(name).display().to_string();
    let paths = expand(&[of("*.yml"), of("a.yml"), of("*.nothing")]).expect("valid");
    assert_eq!(paths, [dir.path().join("a.yml"), dir.path().join("b.yml")]);
    assert!(expand(&[of("no.yml")]).expect_err("missing")[0].to_string().contains("does not point to an existing file"));
    assert!(expand(&["[".to_owned()]).expect_err("malformed")[0].to_string().contains("not a valid pattern"));
}
