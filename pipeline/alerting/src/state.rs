//! The one state machine of alerts. Pure: `now` is an argument, nothing is read or written.
//!
//! ```text
//!               condition true            held for `for`
//!   (inactive) ───────────────▶ Pending ────────────────▶ Firing ◀──┐ true again
//!        ▲                        │  ▲                      │  │    │
//!        └──── condition false ───┘  └── `for` was raised ──┘  └─▶ kept for `keep_firing_for`
//!                                                                       │ over
//!        (gone) ◀── after RESOLVED_RETENTION_MS ── Resolved ◀───────────┘
//! ```
//!
//! PromQL rules feed it the result of a tick, streaming rules the verdicts of a closed window; `now` is the tick or the end of the window,
//! never the wall clock, so a replay gives the same history.
//!
//! # Invariants
//! - **A1** One alert per label set. Two results with one label set are an error and change nothing.
//! - **A2** Above its limit a rule has no alerts at all, and an error; never a part of them.
//! - **A3** Ids are functions of (tenant, rule, labels) and (alert, kind, time): the same input gives the same ids, so writing a transition
//!   twice is harmless.
//!
//! # Not here
//! Labels and annotations from templates (`rules`), persistence (`store`), who is told (`notify`).

use fletch_schemas::{Labels, TenantId};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use xxhash_rust::xxh3::xxh3_128;

/// How long a resolved alert is kept, in milliseconds (Prometheus' value).
pub const RESOLVED_RETENTION_MS: i64 = 15 * 60 * 1_000;

/// Expanded annotations, ascending by name.
pub type Annotations = BTreeMap<String, String>;

/// A 128-bit identity, written as 32 hex digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Id(pub u128);

impl Id {
    /// Hash of parts; the separator cannot occur in UTF-8, so no two lists of texts collide by concatenation.
    pub fn of(parts: &[&[u8]]) -> Self {
        Self(xxh3_128(&parts.join(&0xFF_u8)))
    }

    /// The reverse of `to_string`.
    pub fn parse(text: &str) -> Option<Self> {
        u128::from_str_radix(text, 16).ok().map(Self)
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// Identity of an alert: hash(tenant, rule, labels).
pub fn alert_id(tenant: &TenantId, rule: Id, labels: &Labels) -> Id {
    Id::of(&[tenant.as_str().as_bytes(), &rule.0.to_be_bytes(), labels.as_bytes()])
}

/// What a rule says about its alerts beyond the condition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Policy {
    /// `for`: how long the condition must hold before the alert fires, in milliseconds.
    pub hold_ms: i64,
    /// `keep_firing_for`, in milliseconds.
    pub keep_firing_ms: i64,
    /// Most pending and firing alerts of the rule; 0 = no limit.
    pub limit: usize,
}

/// One label set for which the condition holds now.
#[derive(Debug, Clone, PartialEq)]
pub struct Verdict {
    /// Labels of the alert, `alertname` included.
    pub labels: Labels,
    /// Expanded annotations.
    pub annotations: Annotations,
    /// Value of the expression.
    pub value: f64,
}

/// Where an alert stands. Each state carries exactly the times it needs, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum AlertState {
    /// The condition holds since `since_ms`, not yet for `for`.
    Pending {
        /// First evaluation that found the condition true.
        since_ms: i64,
    },
    /// The alert fires.
    Firing {
        /// First evaluation that found the condition true.
        since_ms: i64,
        /// Evaluation at which it began to fire.
        fired_ms: i64,
        /// Set while the condition is false and only `keep_firing_for` keeps it firing.
        kept_since_ms: Option<i64>,
    },
    /// It fired and no longer does.
    Resolved {
        /// As in `Firing`.
        since_ms: i64,
        /// As in `Firing`.
        fired_ms: i64,
        /// Evaluation at which it stopped.
        at_ms: i64,
    },
}

impl AlertState {
    /// `pending`, `firing` or `resolved`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pending { .. } => "pending",
            Self::Firing { .. } => "firing",
            Self::Resolved { .. } => "resolved",
        }
    }

    /// Whether the alert is pending or firing.
    pub fn is_active(self) -> bool {
        !matches!(self, Self::Resolved { .. })
    }

    /// Whether the alert fires.
    pub fn is_firing(self) -> bool {
        matches!(self, Self::Firing { .. })
    }

    /// When the condition became true, in milliseconds.
    pub fn since_ms(self) -> i64 {
        match self {
            Self::Pending { since_ms } | Self::Firing { since_ms, .. } | Self::Resolved { since_ms, .. } => since_ms,
        }
    }
}

/// One alert of a rule.
#[derive(Debug, Clone, PartialEq)]
pub struct Alert {
    /// hash(tenant, rule, labels).
    pub id: Id,
    /// Labels, `alertname` included.
    pub labels: Labels,
    /// Annotations as last expanded.
    pub annotations: Annotations,
    /// Value at the last evaluation that found the condition true.
    pub value: f64,
    /// Where it stands.
    pub state: AlertState,
}

/// What happened to an alert.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TransitionKind {
    /// The condition became true (or `for` was raised above the time held).
    Pending,
    /// It began to fire.
    Firing,
    /// It stopped firing.
    Resolved,
    /// The condition became false before it fired.
    Inactive,
}

impl TransitionKind {
    /// Lower-case name, as stored.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Firing => "firing",
            Self::Resolved => "resolved",
            Self::Inactive => "inactive",
        }
    }

    /// The reverse of [`as_str`](Self::as_str).
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Pending, Self::Firing, Self::Resolved, Self::Inactive].into_iter().find(|k| k.as_str() == text)
    }
}

/// One line of the history.
#[derive(Debug, Clone, PartialEq)]
pub struct Transition {
    /// hash(alert, kind, time).
    pub id: Id,
    /// Whose.
    pub alert_id: Id,
    /// What happened.
    pub kind: TransitionKind,
    /// Time of the evaluation, in milliseconds.
    pub at_ms: i64,
    /// Labels of the alert.
    pub labels: Labels,
    /// Annotations at that time.
    pub annotations: Annotations,
    /// Value at that time.
    pub value: f64,
}

impl Transition {
    fn of(alert: &Alert, kind: TransitionKind, at_ms: i64) -> Self {
        Self {
            id: Id::of(&[&alert.id.0.to_be_bytes(), kind.as_str().as_bytes(), &at_ms.to_be_bytes()]),
            alert_id: alert.id,
            kind,
            at_ms,
            labels: alert.labels.clone(),
            annotations: alert.annotations.clone(),
            value: alert.value,
        }
    }
}

/// Why a rule's results are not alerts.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StateError {
    /// A1.
    #[error("vector contains metrics with the same labelset after applying alert labels: {0}")]
    DuplicateLabels(Labels),
    /// A2.
    #[error("exceeded limit of {limit} with {count} alerts")]
    Limit {
        /// Most alerts the rule may have.
        limit: usize,
        /// Alerts it would have.
        count: usize,
    },
}

/// What one evaluation changed.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Changes {
    /// History of this evaluation, in the order of the label sets.
    pub transitions: Vec<Transition>,
    /// Alerts that are new or differ from before.
    pub changed: Vec<Id>,
    /// Alerts that are gone.
    pub removed: Vec<Id>,
    /// A2 was applied.
    pub error: Option<StateError>,
}

/// All alerts of one rule.
#[derive(Debug, Clone, PartialEq)]
pub struct RuleAlerts {
    tenant: TenantId,
    rule: Id,
    alerts: BTreeMap<Labels, Alert>,
}

impl RuleAlerts {
    /// A rule without alerts.
    pub fn new(tenant: TenantId, rule: Id) -> Self {
        Self { tenant, rule, alerts: BTreeMap::new() }
    }

    /// A rule with the alerts that were stored: every clock simply goes on.
    pub fn restore(tenant: TenantId, rule: Id, alerts: impl IntoIterator<Item = Alert>) -> Self {
        Self { tenant, rule, alerts: alerts.into_iter().map(|a| (a.labels.clone(), a)).collect() }
    }

    /// Alerts by label set, resolved ones included.
    pub fn iter(&self) -> impl Iterator<Item = &Alert> {
        self.alerts.values()
    }

    /// Applies the verdicts of one evaluation at `now_ms`: the label sets named hold, all others do not.
    ///
    /// # Errors
    /// [`StateError::DuplicateLabels`]; then nothing has changed. A limit that is exceeded is reported in [`Changes::error`], because
    /// it does change the alerts.
    pub fn evaluate(&mut self, now_ms: i64, verdicts: Vec<Verdict>, policy: Policy) -> Result<Changes, StateError> {
        let verdicts = by_labels(verdicts)?;
        let before = self.alerts.clone();
        let mut changes = Changes::default();
        let true_now: Vec<Labels> = verdicts.keys().cloned().collect();
        for (_, verdict) in verdicts {
            self.hold(now_ms, verdict);
        }
        self.alerts.retain(|labels, alert| true_now.binary_search(labels).is_ok() || !is_over(alert.state, now_ms));
        let mut count = 0;
        for alert in self.alerts.values_mut() {
            let holds = true_now.binary_search(&alert.labels).is_ok();
            alert.state = if holds { when_true(alert.state, now_ms, policy) } else { when_false(alert.state, now_ms, policy) };
            count += usize::from(alert.state.is_active());
        }
        if policy.limit > 0 && count > policy.limit {
            self.clear(now_ms);
            changes.error = Some(StateError::Limit { limit: policy.limit, count });
        }
        diff(&before, &self.alerts, now_ms, &mut changes);
        Ok(changes)
    }

    /// Ends every alert, as for a rule that is no longer there: firing ones are resolved, the others are gone.
    pub fn end(&mut self, now_ms: i64) -> Changes {
        let before = self.alerts.clone();
        let mut changes = Changes::default();
        self.clear(now_ms);
        diff(&before, &self.alerts, now_ms, &mut changes);
        changes
    }

    fn hold(&mut self, now_ms: i64, verdict: Verdict) {
        let Verdict { labels, annotations, value } = verdict;
        if let Some(alert) = self.alerts.get_mut(&labels).filter(|a| a.state.is_active()) {
            alert.annotations = annotations;
            alert.value = value;
            return;
        }
        let id = alert_id(&self.tenant, self.rule, &labels);
        let state = AlertState::Pending { since_ms: now_ms };
        self.alerts.insert(labels.clone(), Alert { id, labels, annotations, value, state });
    }

    fn clear(&mut self, now_ms: i64) {
        self.alerts.retain(|_, alert| !matches!(alert.state, AlertState::Pending { .. }));
        for alert in self.alerts.values_mut() {
            alert.state = resolve(alert.state, now_ms);
        }
    }
}

fn by_labels(verdicts: Vec<Verdict>) -> Result<BTreeMap<Labels, Verdict>, StateError> {
    let mut map = BTreeMap::new();
    for verdict in verdicts {
        if let Some(twice) = map.insert(verdict.labels.clone(), verdict) {
            return Err(StateError::DuplicateLabels(twice.labels));
        }
    }
    Ok(map)
}

fn when_true(state: AlertState, now_ms: i64, policy: Policy) -> AlertState {
    let since_ms = state.since_ms();
    let held = now_ms.saturating_sub(since_ms) >= policy.hold_ms;
    match state {
        AlertState::Firing { fired_ms, .. } if held => AlertState::Firing { since_ms, fired_ms, kept_since_ms: None },
        _ if held => AlertState::Firing { since_ms, fired_ms: now_ms, kept_since_ms: None },
        // Also for a firing alert: `for` was raised above the time it has held, so it has not held long enough.
        _ => AlertState::Pending { since_ms },
    }
}

fn when_false(state: AlertState, now_ms: i64, policy: Policy) -> AlertState {
    let AlertState::Firing { since_ms, fired_ms, kept_since_ms } = state else { return state };
    let kept_since = kept_since_ms.unwrap_or(now_ms);
    if policy.keep_firing_ms > 0 && now_ms.saturating_sub(kept_since) < policy.keep_firing_ms {
        if now_ms.saturating_sub(since_ms) < policy.hold_ms {
            return AlertState::Pending { since_ms };
        }
        return AlertState::Firing { since_ms, fired_ms, kept_since_ms: Some(kept_since) };
    }
    resolve(state, now_ms)
}

fn resolve(state: AlertState, now_ms: i64) -> AlertState {
    match state {
        AlertState::Firing { since_ms, fired_ms, .. } => AlertState::Resolved { since_ms, fired_ms, at_ms: now_ms },
        other => other,
    }
}

/// Whether an alert whose condition is false can be forgotten.
fn is_over(state: AlertState, now_ms: i64) -> bool {
    match state {
        AlertState::Pending { .. } => true,
        AlertState::Firing { .. } => false,
        AlertState::Resolved { at_ms, .. } => now_ms.saturating_sub(at_ms) > RESOLVED_RETENTION_MS,
    }
}

fn diff(before: &BTreeMap<Labels, Alert>, after: &BTreeMap<Labels, Alert>, now_ms: i64, changes: &mut Changes) {
    for (labels, alert) in after {
        let old = before.get(labels);
        if old.is_none_or(|old| !same(old, alert)) {
            changes.changed.push(alert.id);
        }
        if let Some(kind) = transition_kind(old.map(|a| a.state), alert.state) {
            changes.transitions.push(Transition::of(alert, kind, now_ms));
        }
    }
    for (labels, alert) in before {
        if after.contains_key(labels) {
            continue;
        }
        changes.removed.push(alert.id);
        if matches!(alert.state, AlertState::Pending { .. }) {
            changes.transitions.push(Transition::of(alert, TransitionKind::Inactive, now_ms));
        }
    }
}

/// Equality with values by their bits, so that a NaN equals itself.
fn same(a: &Alert, b: &Alert) -> bool {
    a.state == b.state && a.value.to_bits() == b.value.to_bits() && a.annotations == b.annotations
}

fn transition_kind(old: Option<AlertState>, new: AlertState) -> Option<TransitionKind> {
    match (old, new) {
        (Some(AlertState::Pending { .. }), AlertState::Pending { .. }) => None,
        (_, AlertState::Pending { .. }) => Some(TransitionKind::Pending),
        (Some(AlertState::Firing { .. }), AlertState::Firing { .. }) => None,
        (_, AlertState::Firing { .. }) => Some(TransitionKind::Firing),
        (Some(AlertState::Firing { .. }), AlertState::Resolved { .. }) => Some(TransitionKind::Resolved),
        (_, AlertState::Resolved { .. }) => None,
    }
}

#[cfg(test)]
mod tests;
