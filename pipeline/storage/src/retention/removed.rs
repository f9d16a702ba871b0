//! What retention has removed of a table, as its commits say it.
//!
//! Each commit of retention raises `retention:<tenant>:["<pattern>","<not this>",…]` to the latest time (ms) of a row that it removed: rows of
//! metrics that the first pattern names (`""`: all) and the others do not may be gone up to that time. So what a past configuration has
//! removed stays known under any later one.

use super::policy::{MetricPattern, Rule};
use crate::delta::Snapshot;
use fletch_schemas::TenantId;

/// Times up to which a tenant's rows of a table may be gone.
#[derive(Debug, Default)]
pub struct Removed(Vec<Horizon>);

#[derive(Debug)]
struct Horizon {
    metric: Option<MetricPattern>,
    not: Vec<MetricPattern>,
    until_ms: i64,
}

impl Removed {
    /// As a version of a table has it.
    pub fn of(samples: &Snapshot, tenant: &TenantId) -> Self {
        let prefix = app_prefix(tenant);
        Self(samples.txns().filter_map(|(app, until_ms)| horizon(app.strip_prefix(&prefix)?, until_ms)).collect())
    }

    /// Whether everything is there.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether rows of this metric after `after_ms` may be gone.
    pub fn may_lack(&self, metric: &str, after_ms: i64) -> bool {
        self.until_ms(|h| h.names(metric)).is_some_and(|until| after_ms < until)
    }

    /// The time up to which rows of some metric may be gone; `None`: of all metrics.
    pub fn horizon_ms(&self, metric: Option<&str>) -> Option<i64> {
        self.until_ms(|h| metric.is_none_or(|m| h.names(m)))
    }

    fn until_ms(&self, which: impl Fn(&Horizon) -> bool) -> Option<i64> {
        self.0.iter().filter(|h| which(h)).map(|h| h.until_ms).max()
    }
}

impl Horizon {
    fn names(&self, metric: &str) -> bool {
        self.metric.as_ref().is_none_or(|m| m.matches(metric)) && !self.not.iter().any(|m| m.matches(metric))
    }
}

fn app_prefix(tenant: &TenantId) -> String {
    format!("retention:{tenant}:")
}

/// The app id of the metrics that the rule at `at` is for.
pub(super) fn app_id(tenant: &TenantId, rules: &[Rule], at: usize) -> String {
    let text = |rule: &Rule| rule.metric.as_ref().map_or("", MetricPattern::as_str).to_owned();
    let patterns: Vec<String> = rules[at..=at].iter().chain(&rules[..at]).map(text).collect();
    format!("{}{}", app_prefix(tenant), serde_json::json!(patterns))
}

/// A horizon that this version cannot read is one of all metrics: nothing may be taken for complete that is not.
fn horizon(patterns: &str, until_ms: i64) -> Option<Horizon> {
    let parsed: Option<Vec<String>> = serde_json::from_str(patterns).ok();
    let compiled: Option<Vec<MetricPattern>> = parsed.and_then(|all| all.iter().map(|text| MetricPattern::new(text).ok()).collect());
    let mut patterns = compiled.unwrap_or_default().into_iter();
    let metric = patterns.next().filter(|m| !m.as_str().is_empty());
    Some(Horizon { metric, not: patterns.collect(), until_ms })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::retention::{Override, Policy};
    use fletch_schemas::tables::Table;

    #[test]
    fn a_horizon_names_the_metrics_of_its_rule_only() {
        let tenant = TenantId::default();
        let keep = |ms| [(Table::Samples, ms)].into_iter().collect();
        let other = |text: &str, ms| Override { tenant: None, metric: Some(MetricPattern::new(text).expect("a pattern")), keep: keep(ms) };
        let policy = Policy { defaults: keep(7), overrides: vec![other("node_.*", 3), other("node_load|up", 0)] };
        let rules = policy.rules(&tenant, Table::Samples);
        for (at, named, others) in [(0, "node_x", ["up", "x"]), (1, "up", ["node_load", "x"]), (2, "x", ["up", "node_x"])] {
            let app = app_id(&tenant, &rules, at);
            let found = horizon(app.strip_prefix(&app_prefix(&tenant)).expect("ours"), 5).expect("readable");
            assert!(found.names(named), "{app}");
            assert!(others.iter().all(|o| !found.names(o)), "{app}");
        }
        assert!(horizon("from the future", 5).expect("some").names("anything"));
    }
}
