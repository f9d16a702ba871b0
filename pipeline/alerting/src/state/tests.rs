//! The machine as tables: one line per evaluation, one column per label set.

use super::*;

const MIN: i64 = 60_000;

fn labels(name: &str) -> Labels {
    Labels::from_pairs([("alertname", "A"), ("x", name)]).expect("valid")
}

fn verdict(name: &str, value: f64) -> Verdict {
    Verdict { labels: labels(name), annotations: Annotations::new(), value }
}

fn machine() -> RuleAlerts {
    RuleAlerts::new(TenantId::default(), Id(7))
}

fn text(state: Option<AlertState>) -> String {
    match state {
        None => "-".to_owned(),
        Some(AlertState::Pending { since_ms }) => format!("pending@{}", since_ms / MIN),
        Some(AlertState::Firing { since_ms, fired_ms, kept_since_ms }) => {
            let kept = kept_since_ms.map(|k| format!(" kept@{}", k / MIN)).unwrap_or_default();
            format!("firing@{}/{}{kept}", since_ms / MIN, fired_ms / MIN)
        }
        Some(AlertState::Resolved { at_ms, .. }) => format!("resolved@{}", at_ms / MIN),
    }
}

/// Runs `(minute, condition holds, expected state, expected transition)` lines for one label set.
fn run(policy: Policy, lines: &[(i64, bool, &str, &str)]) {
    let mut m = machine();
    for (minute, holds, state, transition) in lines {
        let verdicts = if *holds { vec![verdict("a", 1.0)] } else { vec![] };
        let changes = m.evaluate(minute * MIN, verdicts, policy).expect("no duplicate");
        assert_eq!(text(m.alerts.get(&labels("a")).map(|a| a.state)), *state, "state at minute {minute}");
        let kinds: Vec<&str> = changes.transitions.iter().map(|t| t.kind.as_str()).collect();
        assert_eq!(kinds.join(" "), *transition, "transition at minute {minute}");
    }
}

#[test]
fn pending_then_firing_then_resolved_then_gone() {
    let policy = Policy { hold_ms: 2 * MIN, ..Policy::default() };
    run(
        policy,
        &[
            (0, false, "-", ""),
            (1, true, "pending@1", "pending"),
            (2, true, "pending@1", ""),
            (3, true, "firing@1/3", "firing"),
            (4, true, "firing@1/3", ""),
            (5, false, "resolved@5", "resolved"),
            (20, false, "resolved@5", ""),
            (21, false, "-", ""),
        ],
    );
}

#[test]
fn a_gap_before_firing_starts_the_clock_again() {
    let policy = Policy { hold_ms: 2 * MIN, ..Policy::default() };
    run(
        policy,
        &[
            (1, true, "pending@1", "pending"),
            (2, false, "-", "inactive"),
            (3, true, "pending@3", "pending"),
            (5, true, "firing@3/5", "firing"),
        ],
    );
}

#[test]
fn without_for_it_fires_at_once_and_a_resolved_alert_starts_anew() {
    run(
        Policy::default(),
        &[
            (1, true, "firing@1/1", "firing"),
            (2, false, "resolved@2", "resolved"),
            (3, true, "firing@3/3", "firing"),
            (4, true, "firing@3/3", ""),
        ],
    );
}

#[test]
fn keep_firing_for_bridges_gaps_and_restarts_with_each() {
    let policy = Policy { keep_firing_ms: 3 * MIN, ..Policy::default() };
    run(
        policy,
        &[
            (0, true, "firing@0/0", "firing"),
            (1, false, "firing@0/0 kept@1", ""),
            (3, false, "firing@0/0 kept@1", ""),
            (4, true, "firing@0/0", ""),
            (5, false, "firing@0/0 kept@5", ""),
            (7, false, "firing@0/0 kept@5", ""),
            (8, false, "resolved@8", "resolved"),
        ],
    );
}

#[test]
fn keep_firing_for_does_not_keep_a_pending_alert() {
    let policy = Policy { hold_ms: 5 * MIN, keep_firing_ms: 5 * MIN, limit: 0 };
    run(policy, &[(0, true, "pending@0", "pending"), (1, false, "-", "inactive")]);
}

#[test]
fn a_raised_for_returns_a_firing_alert_to_pending() {
    let mut m = machine();
    let with = |minutes: i64| Policy { hold_ms: minutes * MIN, ..Policy::default() };
    m.evaluate(0, vec![verdict("a", 1.0)], with(0)).expect("ok");
    m.evaluate(2 * MIN, vec![verdict("a", 1.0)], with(0)).expect("ok");
    let changes = m.evaluate(3 * MIN, vec![verdict("a", 1.0)], with(10)).expect("ok");
    assert_eq!(text(m.alerts.get(&labels("a")).map(|a| a.state)), "pending@0");
    assert_eq!(changes.transitions[0].kind, TransitionKind::Pending);
    m.evaluate(10 * MIN, vec![verdict("a", 1.0)], with(10)).expect("ok");
    assert_eq!(text(m.alerts.get(&labels("a")).map(|a| a.state)), "firing@0/10");
}

#[test]
fn a_raised_for_also_returns_an_alert_that_is_only_kept_firing() {
    let mut m = machine();
    let with = |hold: i64| Policy { hold_ms: hold * MIN, keep_firing_ms: 5 * MIN, limit: 0 };
    m.evaluate(0, vec![verdict("a", 1.0)], with(0)).expect("ok");
    m.evaluate(MIN, vec![], with(10)).expect("ok");
    assert_eq!(text(m.alerts.get(&labels("a")).map(|a| a.state)), "pending@0");
    m.evaluate(2 * MIN, vec![], with(10)).expect("ok");
    assert_eq!(text(m.alerts.get(&labels("a")).map(|a| a.state)), "-");
}

#[test]
fn duplicate_label_sets_are_an_error_and_change_nothing() {
    let mut m = machine();
    m.evaluate(0, vec![verdict("a", 1.0)], Policy::default()).expect("ok");
    let before = m.clone();
    let error = m.evaluate(MIN, vec![verdict("b", 1.0), verdict("b", 2.0)], Policy::default()).expect_err("duplicate");
    assert_eq!(error, StateError::DuplicateLabels(labels("b")));
    assert!(error.to_string().starts_with("vector contains metrics with the same labelset after applying alert labels"));
    assert_eq!(m, before);
}

#[test]
fn above_the_limit_there_are_no_alerts_and_an_error() {
    let mut m = machine();
    let policy = Policy { limit: 2, ..Policy::default() };
    let two = vec![verdict("a", 1.0), verdict("b", 1.0)];
    assert_eq!(m.evaluate(0, two.clone(), policy).expect("ok").error, None);
    let mut three = two;
    three.push(verdict("c", 1.0));
    let changes = m.evaluate(MIN, three, policy).expect("ok");
    assert_eq!(changes.error.expect("limit").to_string(), "exceeded limit of 2 with 3 alerts");
    assert_eq!(m.iter().filter(|a| a.state.is_active()).count(), 0);
    // The two that had fired are resolved, so that nobody believes them for ever.
    assert_eq!(changes.transitions.iter().filter(|t| t.kind == TransitionKind::Resolved).count(), 2);
}

#[test]
fn resolved_alerts_do_not_count_towards_the_limit() {
    let mut m = machine();
    let policy = Policy { limit: 1, ..Policy::default() };
    m.evaluate(0, vec![verdict("a", 1.0)], policy).expect("ok");
    assert_eq!(m.evaluate(MIN, vec![verdict("b", 1.0)], policy).expect("ok").error, None);
}

#[test]
fn value_and_annotations_follow_the_last_true_evaluation() {
    let mut m = machine();
    m.evaluate(0, vec![verdict("a", 1.0)], Policy::default()).expect("ok");
    let changes = m.evaluate(MIN, vec![verdict("a", f64::NAN)], Policy::default()).expect("ok");
    assert_eq!(changes.changed.len(), 1);
    assert!(m.iter().next().expect("one").value.is_nan());
    let unchanged = m.evaluate(2 * MIN, vec![verdict("a", f64::NAN)], Policy::default()).expect("ok");
    assert_eq!(unchanged, Changes::default());
}

#[test]
fn restored_alerts_go_on_and_ids_are_functions_of_their_input() {
    let policy = Policy { hold_ms: 5 * MIN, ..Policy::default() };
    let mut a = machine();
    a.evaluate(0, vec![verdict("a", 1.0)], policy).expect("ok");
    let mut b = RuleAlerts::restore(TenantId::default(), Id(7), a.iter().cloned());
    assert_eq!(a.evaluate(5 * MIN, vec![verdict("a", 1.0)], policy), b.evaluate(5 * MIN, vec![verdict("a", 1.0)], policy));
    assert!(b.iter().all(|x| x.state.is_firing()));
    let other_rule = alert_id(&TenantId::default(), Id(8), &labels("a"));
    assert_ne!(other_rule, alert_id(&TenantId::default(), Id(7), &labels("a")));
    assert_eq!(Id::parse(&other_rule.to_string()), Some(other_rule));
}

#[test]
fn the_end_of_a_rule_resolves_what_fires() {
    let mut m = machine();
    m.evaluate(0, vec![verdict("a", 1.0)], Policy::default()).expect("ok");
    m.evaluate(MIN, vec![verdict("a", 1.0), verdict("b", 1.0)], Policy { hold_ms: MIN, ..Policy::default() }).expect("ok");
    let kinds: Vec<_> = m.end(2 * MIN).transitions.iter().map(|t| t.kind).collect();
    assert_eq!(kinds, [TransitionKind::Resolved, TransitionKind::Inactive]);
}
