//! What `/api/v1/rules` and `/api/v1/alerts` answer, in Prometheus' shape.

use super::group::{GroupRun, Health, LastRun, RuleRun};
use crate::go;
use crate::notify::payload::label_map;
use crate::state::{Alert, AlertState};
use serde::Serialize;
use std::collections::BTreeMap;

/// `data` of `/api/v1/rules`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RulesSnapshot {
    /// By file and name.
    pub groups: Vec<GroupSnapshot>,
}

/// `data` of `/api/v1/alerts`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct AlertsSnapshot {
    /// Pending and firing alerts of all rules.
    pub alerts: Vec<AlertSnapshot>,
}

/// One group.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct GroupSnapshot {
    /// Name of the group.
    pub name: String,
    /// File it is in.
    pub file: String,
    /// Its rules.
    pub rules: Vec<RuleSnapshot>,
    /// Seconds.
    pub interval: f64,
    /// 0 = none.
    pub limit: usize,
    /// Duration of the last evaluation, in seconds.
    pub evaluation_time: f64,
    /// RFC 3339; year 1 = never.
    pub last_evaluation: String,
}

/// One alerting rule.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RuleSnapshot {
    /// `firing`, `pending` or `inactive`: the highest of its alerts; `unknown` before the first evaluation.
    pub state: &'static str,
    /// Name of the rule.
    pub name: String,
    /// Its expression, canonical.
    pub query: String,
    /// `for`, in seconds.
    pub duration: f64,
    /// `keep_firing_for`, in seconds.
    pub keep_firing_for: f64,
    /// As written, templates not expanded.
    pub labels: BTreeMap<String, String>,
    /// As written, templates not expanded.
    pub annotations: BTreeMap<String, String>,
    /// Pending and firing alerts.
    pub alerts: Vec<AlertSnapshot>,
    /// `ok`, `err` or `unknown`.
    pub health: &'static str,
    /// Why the last evaluation failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
    /// Duration of the last evaluation, in seconds.
    pub evaluation_time: f64,
    /// RFC 3339; year 1 = never.
    pub last_evaluation: String,
    /// `alerting`.
    #[serde(rename = "type")]
    pub kind: &'static str,
}

/// One pending or firing alert.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct AlertSnapshot {
    /// With `alertname`.
    pub labels: BTreeMap<String, String>,
    /// Expanded.
    pub annotations: BTreeMap<String, String>,
    /// `pending` or `firing`.
    pub state: &'static str,
    /// RFC 3339.
    pub active_at: String,
    /// Since when only `keep_firing_for` keeps it firing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keep_firing_since: Option<String>,
    /// Go's `%e`.
    pub value: String,
}

/// Which rules a caller wants: the parameters of `/api/v1/rules`. An empty list means all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RulesFilter {
    /// `rule_name[]`.
    pub rule_names: Vec<String>,
    /// `rule_group[]`.
    pub groups: Vec<String>,
    /// `file[]`.
    pub files: Vec<String>,
    /// `exclude_alerts`.
    pub exclude_alerts: bool,
}

impl RulesFilter {
    /// The groups with the rules wanted; groups of which none is left are left out.
    pub(crate) fn apply(&self, groups: &[std::sync::Arc<GroupRun>]) -> RulesSnapshot {
        let wanted = |list: &[String], name: &str| list.is_empty() || list.iter().any(|n| n == name);
        let mut out = Vec::new();
        for run in groups.iter().filter(|g| wanted(&self.groups, &g.group.name) && wanted(&self.files, &g.group.file)) {
            let rules = run.rules.iter().filter(|r| wanted(&self.rule_names, &r.rule.name));
            let rules: Vec<RuleSnapshot> = rules.map(|r| rule(r, self.exclude_alerts)).collect();
            if !rules.is_empty() {
                out.push(group(run, rules));
            }
        }
        out.sort_by(|a, b| (&a.file, &a.name).cmp(&(&b.file, &b.name)));
        RulesSnapshot { groups: out }
    }
}

/// Pending and firing alerts of all groups.
pub(crate) fn alerts(groups: &[std::sync::Arc<GroupRun>]) -> AlertsSnapshot {
    let rules = groups.iter().flat_map(|g| &g.rules);
    AlertsSnapshot { alerts: rules.flat_map(|r| active(r)).collect() }
}

fn group(run: &GroupRun, rules: Vec<RuleSnapshot>) -> GroupSnapshot {
    let last = *run.last.lock();
    GroupSnapshot {
        name: run.group.name.clone(),
        file: run.group.file.clone(),
        rules,
        interval: seconds(run.group.interval_ms),
        limit: run.group.limit,
        evaluation_time: last.seconds,
        last_evaluation: last_evaluation(last),
    }
}

fn rule(run: &RuleRun, exclude_alerts: bool) -> RuleSnapshot {
    let written = |pairs: &[(String, crate::template::Template)]| pairs.iter().map(|(n, t)| (n.clone(), t.text().to_owned())).collect();
    let alerts = active(run);
    let state = run.state.lock();
    let (health, last_error) = match &state.health {
        Health::Unknown => ("unknown", None),
        Health::Ok => ("ok", None),
        Health::Err(reason) => ("err", Some(reason.clone())),
    };
    let has = |name: &str| alerts.iter().any(|a| a.state == name);
    RuleSnapshot {
        state: match (has("firing"), has("pending"), state.last.at_ms) {
            (true, _, _) => "firing",
            (_, true, _) => "pending",
            (_, _, Some(_)) => "inactive",
            (_, _, None) => "unknown",
        },
        name: run.rule.name.clone(),
        query: run.rule.expr.clone(),
        duration: seconds(run.rule.policy.hold_ms),
        keep_firing_for: seconds(run.rule.policy.keep_firing_ms),
        labels: written(&run.rule.labels),
        annotations: written(&run.rule.annotations),
        health,
        last_error,
        evaluation_time: state.last.seconds,
        last_evaluation: last_evaluation(state.last),
        kind: "alerting",
        alerts: if exclude_alerts { Vec::new() } else { alerts },
    }
}

fn active(run: &RuleRun) -> Vec<AlertSnapshot> {
    run.state.lock().alerts.iter().filter(|a| a.state.is_active()).map(alert).collect()
}

fn alert(alert: &Alert) -> AlertSnapshot {
    let kept = if let AlertState::Firing { kept_since_ms, .. } = alert.state { kept_since_ms } else { None };
    AlertSnapshot {
        labels: label_map(&alert.labels),
        annotations: alert.annotations.clone(),
        state: alert.state.name(),
        active_at: go::rfc3339(alert.state.since_ms()),
        keep_firing_since: kept.map(go::rfc3339),
        value: go::float_exponent(alert.value),
    }
}

#[allow(clippy::cast_precision_loss, reason = "durations are far below 2^53 milliseconds")]
fn seconds(ms: i64) -> f64 {
    ms as f64 / 1_000.0
}

fn last_evaluation(last: LastRun) -> String {
    last.at_ms.map_or_else(|| go::ZERO_TIME.to_owned(), go::rfc3339)
}
