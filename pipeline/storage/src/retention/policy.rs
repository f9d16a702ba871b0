//! How long rows are kept: by table, tenant and metric.

use super::DAY_MS;
use fletch_schemas::TenantId;
use fletch_schemas::pattern::{PatternError, Test};
use fletch_schemas::tables::Table;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Retention of each table in milliseconds; 0 = for ever. A table that is missing is not touched.
pub type Keep = BTreeMap<Table, i64>;

/// Metric names, as a fully anchored pattern.
#[derive(Debug, Clone)]
pub struct MetricPattern {
    text: Arc<str>,
    test: Arc<Test>,
}

impl MetricPattern {
    /// Makes a pattern ready.
    ///
    /// # Errors
    /// The text is no pattern.
    pub fn new(text: &str) -> Result<Self, PatternError> {
        Ok(Self { text: text.into(), test: Arc::new(Test::compile(text)?) })
    }

    /// As it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether it is this metric's.
    pub fn matches(&self, metric: &str) -> bool {
        self.test.matches(metric)
    }
}

/// Other retentions for some tenants or metrics.
#[derive(Debug, Clone, Default)]
pub struct Override {
    /// Whose rows; `None` for everybody's.
    pub tenant: Option<TenantId>,
    /// Of which metrics; `None` for all.
    pub metric: Option<MetricPattern>,
    /// The tables that it changes.
    pub keep: Keep,
}

/// All retentions. Of the overrides that name a row's tenant, metric and table, the first counts.
#[derive(Debug, Clone, Default)]
pub struct Policy {
    /// Where no override says otherwise.
    pub defaults: Keep,
    /// In the order in which they are tried.
    pub overrides: Vec<Override>,
}

/// One retention of a tenant's rows in one table: for the metrics that `metric` names and no rule before it.
#[derive(Debug, Clone)]
pub(crate) struct Rule {
    pub(crate) metric: Option<MetricPattern>,
    /// Milliseconds; 0 = for ever.
    pub(crate) keep_ms: i64,
}

impl Policy {
    /// Raw 7 days, 1 m 30 days, 5 m 90 days, 1 h 365 days.
    pub fn usual() -> Self {
        let days = [(Table::Samples, 7), (Table::Samples1m, 30), (Table::Samples5m, 90), (Table::Samples1h, 365)];
        Self { defaults: days.into_iter().map(|(table, days)| (table, days * DAY_MS)).collect(), overrides: Vec::new() }
    }

    /// Whether nothing ever expires.
    pub fn is_off(&self) -> bool {
        self.defaults.values().chain(self.overrides.iter().flat_map(|o| o.keep.values())).all(|keep| *keep == 0)
    }

    /// The rules of a tenant for a table; the last one names every metric. Empty for a table that is not touched.
    pub(crate) fn rules(&self, tenant: &TenantId, table: Table) -> Vec<Rule> {
        let mut rules = Vec::new();
        for other in self.overrides.iter().filter(|o| o.tenant.as_ref().is_none_or(|t| t == tenant)) {
            let Some(&keep_ms) = other.keep.get(&table) else { continue };
            rules.push(Rule { metric: other.metric.clone(), keep_ms });
            if other.metric.is_none() {
                return rules;
            }
        }
        match self.defaults.get(&table) {
            Some(&keep_ms) => rules.push(Rule { metric: None, keep_ms }),
            None if rules.is_empty() => {}
            None => rules.push(Rule { metric: None, keep_ms: 0 }),
        }
        rules
    }

    /// How long any of a tenant's rows live in any of these tables; 0 = for ever.
    pub(crate) fn longest(&self, tenant: &TenantId, tables: &[Table]) -> i64 {
        let keeps = tables.iter().flat_map(|table| {
            let rules = self.rules(tenant, *table);
            if rules.is_empty() { vec![0] } else { rules.iter().map(|r| r.keep_ms).collect() }
        });
        keeps.reduce(|a, b| if a == 0 || b == 0 { 0 } else { a.max(b) }).unwrap_or(0)
    }
}

/// The rule of a metric.
pub(crate) fn rule_of(rules: &[Rule], metric: &str) -> usize {
    rules.iter().position(|r| r.metric.as_ref().is_none_or(|m| m.matches(metric))).unwrap_or(rules.len().saturating_sub(1))
}
