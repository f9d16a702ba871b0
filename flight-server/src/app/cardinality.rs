//! Watches how many series there are: alarms, gauges with a bounded number of names, and what the quotas count.
//!
//! ```text
//!  every minute, per tenant:  label index ─▶ active series by metric and label ─▶ quotas, gauges, warnings
//! ```
//!
//! A warning is written when something rises above its threshold and again each time it has doubled since, not once a minute.

use crate::config::Settings;
use fletch_common::metrics::{EncodeLabelSet, Family, Gauge, Registry};
use fletch_common::{Limits, SharedClock};
use fletch_ingest::SeriesRegistry;
use fletch_ingest::quota::{ActiveSeries, QuotaSettings, SeriesQuotas};
use fletch_schemas::{METRIC_NAME, TenantId};
use fletch_storage::Storage;
use fletch_storage::index::Cardinality;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// How often there is a look.
const EVERY: Duration = Duration::from_secs(60);
/// Metrics with a gauge of their own, over all tenants.
const METRICS_NAMED_MAX: usize = 20;
/// Tenants with a gauge of their own.
const TENANTS_NAMED_MAX: usize = 100;
/// Names per tenant and kind that can raise an alarm.
const ALARMS_NAMED_MAX: usize = 100;
/// Alarms that are remembered so as not to be repeated; above, they are forgotten and may be repeated.
const REMEMBERED_MAX: usize = 10_000;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TenantLabel {
    tenant: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct MetricLabel {
    tenant: String,
    metric: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KindLabel {
    kind: &'static str,
}

/// `fletch_cardinality_*`.
#[derive(Debug, Clone, Default)]
struct Metrics {
    active: Gauge,
    tenants: Family<TenantLabel, Gauge>,
    metrics: Family<MetricLabel, Gauge>,
    alarms: Family<KindLabel, Gauge>,
}

impl Metrics {
    fn register(registry: &mut Registry) -> Self {
        let m = Self::default();
        registry.register("fletch_cardinality_active_series", "Series with samples today, as of the last minute", m.active.clone());
        registry.register("fletch_cardinality_tenant_series", "The same by tenant, the largest 100 of them", m.tenants.clone());
        registry.register("fletch_cardinality_metric_series", "The same by metric, the largest 20 of them", m.metrics.clone());
        registry.register("fletch_cardinality_alarms", "Metrics, labels and totals above their alarm threshold", m.alarms.clone());
        m
    }
}

/// Puts quotas into the registry of series where the settings have any, before the first sample comes.
pub(super) async fn install_quotas(
    settings: &Settings,
    storage: &Storage,
    registry: &SeriesRegistry,
    clock: &SharedClock,
) -> anyhow::Result<Option<Arc<SeriesQuotas>>> {
    let quotas = settings.quotas();
    if !quotas.limits_series() {
        return Ok(None);
    }
    // What is stored of today gets its numbers first: after a restart known series go on, whoever sends first.
    let now_ms = clock.now_ms();
    for tenant in storage.tenants() {
        if quotas.of(&tenant).limits_series() {
            storage.view(&tenant).series(&[], now_ms.saturating_sub(3_600_000), now_ms).await?;
        }
    }
    let quotas = Arc::new(SeriesQuotas::new(quotas));
    rebase(&quotas, storage, now_ms);
    registry.set_quotas(quotas.clone());
    Ok(Some(quotas))
}

fn rebase(quotas: &SeriesQuotas, storage: &Storage, now_ms: i64) {
    for tenant in storage.tenants() {
        let limits = quotas.settings().of(&tenant);
        if !limits.limits_series() {
            continue;
        }
        let mut active = ActiveSeries::default();
        active.series = storage.each_active_pair(&tenant, now_ms, |name, value, series| {
            if name == METRIC_NAME || limits.values_per_label_max > 0 {
                active.note_pair(name, value, series);
            }
        });
        quotas.rebase(&tenant, active);
    }
}

/// Starts to watch.
pub(super) fn start(
    settings: &Settings,
    storage: &Arc<Storage>,
    quotas: Option<Arc<SeriesQuotas>>,
    clock: &SharedClock,
    registry: &mut Registry,
    stop: &CancellationToken,
    tasks: &mut JoinSet<()>,
) {
    let mut watch = Watch {
        storage: storage.clone(),
        quotas,
        clock: clock.clone(),
        metrics: Metrics::register(registry),
        alarms: Alarms::new(&settings.limits),
    };
    let stop = stop.clone();
    tasks.spawn(async move {
        // The first look comes at once: gauges of a fresh process are not zero for a minute.
        loop {
            let looked = tokio::task::spawn_blocking(move || {
                watch.look();
                watch
            });
            let Ok(back) = looked.await else {
                tracing::error!("watching the number of series has failed; gauges and quotas stay as they are");
                return;
            };
            watch = back;
            if stop.run_until_cancelled(watch.clock.sleep(EVERY)).await.is_none() {
                return;
            }
        }
    });
}

struct Watch {
    storage: Arc<Storage>,
    quotas: Option<Arc<SeriesQuotas>>,
    clock: SharedClock,
    metrics: Metrics,
    alarms: Alarms,
}

impl Watch {
    fn look(&mut self) {
        let now_ms = self.clock.now_ms();
        if let Some(quotas) = &self.quotas {
            rebase(quotas, &self.storage, now_ms);
        }
        let mut found: Vec<(TenantId, Cardinality)> = Vec::new();
        for tenant in self.storage.tenants() {
            found.extend(self.storage.active_cardinality(&tenant, now_ms, ALARMS_NAMED_MAX).map(|c| (tenant, c)));
        }
        found.sort_by(|(a, x), (b, y)| y.series.cmp(&x.series).then_with(|| a.cmp(b)));
        let signed = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        self.metrics.active.set(signed(found.iter().map(|(_, c)| c.series).sum()));
        self.metrics.tenants.clear();
        for (tenant, c) in found.iter().take(TENANTS_NAMED_MAX) {
            self.metrics.tenants.get_or_create(&TenantLabel { tenant: tenant.to_string() }).set(signed(c.series));
        }
        let mut metrics: Vec<(u64, &TenantId, &String)> =
            found.iter().flat_map(|(tenant, c)| c.series_by_metric.iter().map(move |(metric, n)| (*n, tenant, metric))).collect();
        metrics.sort_by(|a, b| b.0.cmp(&a.0).then_with(|| (a.1, a.2).cmp(&(b.1, b.2))));
        self.metrics.metrics.clear();
        for (series, tenant, metric) in metrics.into_iter().take(METRICS_NAMED_MAX) {
            let label = MetricLabel { tenant: tenant.to_string(), metric: metric.clone() };
            self.metrics.metrics.get_or_create(&label).set(signed(series));
        }
        for (kind, above) in self.alarms.judge(&found) {
            self.metrics.alarms.get_or_create(&KindLabel { kind }).set(signed(above));
        }
    }
}

/// Thresholds, and what was warned of.
#[derive(Debug)]
struct Alarms {
    series: u64,
    per_metric: u64,
    per_label: u64,
    /// By (kind, tenant, name): the count that was last warned of.
    warned: HashMap<(&'static str, String, String), u64>,
}

impl Alarms {
    fn new(limits: &Limits) -> Self {
        Self {
            series: limits.alarm_series,
            per_metric: limits.alarm_series_per_metric,
            per_label: limits.alarm_values_per_label,
            warned: HashMap::new(),
        }
    }

    /// Warns, and says how many of each kind are above their threshold.
    fn judge(&mut self, found: &[(TenantId, Cardinality)]) -> [(&'static str, u64); 3] {
        if self.warned.len() > REMEMBERED_MAX {
            self.warned.clear();
        }
        let total: u64 = found.iter().map(|(_, c)| c.series).sum();
        let mut above = [("total", 0), ("metric", 0), ("label", 0)];
        if self.raise("total", "", "", total, self.series) {
            above[0].1 += 1;
        }
        for (tenant, c) in found {
            for (metric, series) in &c.series_by_metric {
                above[1].1 += u64::from(self.raise("metric", tenant.as_str(), metric, *series, self.per_metric));
            }
            // Names of metrics are no label that somebody filled with ids.
            for (label, values) in c.values_by_label.iter().filter(|(label, _)| label != METRIC_NAME) {
                above[2].1 += u64::from(self.raise("label", tenant.as_str(), label, *values, self.per_label));
            }
        }
        above
    }

    /// Whether `count` is above `threshold`; warns if nobody was warned since it was half of that.
    fn raise(&mut self, kind: &'static str, tenant: &str, name: &str, count: u64, threshold: u64) -> bool {
        if threshold == 0 || count <= threshold {
            return false;
        }
        let key = (kind, tenant.to_owned(), name.to_owned());
        if self.warned.get(&key).is_some_and(|last| count < last.saturating_mul(2)) {
            return true;
        }
        match kind {
            "metric" => {
                tracing::warn!(tenant, metric = name, series = count, threshold, "a metric has many series: which label has an id in it?")
            }
            "label" => tracing::warn!(tenant, label = name, values = count, threshold, "a label has many values: is it an id?"),
            _ => tracing::warn!(series = count, threshold, "there are many active series: `SELECT * FROM cardinality` says where"),
        }
        self.warned.insert(key, count);
        true
    }
}

impl Settings {
    /// Quotas by tenant.
    pub fn quotas(&self) -> QuotaSettings {
        let default = self.limits.of_tenants();
        let tenants = self.tenants.iter().map(|(tenant, section)| (tenant.clone(), section.limits.over(&default))).collect();
        QuotaSettings { default, tenants }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(series: u64, metric: u64, label: u64) -> Vec<(TenantId, Cardinality)> {
        let c = Cardinality {
            series,
            series_by_metric: vec![("m".to_owned(), metric), ("n".to_owned(), 1)],
            values_by_label: vec![("__name__".to_owned(), 1_000_000), ("host".to_owned(), label)],
            ..Cardinality::default()
        };
        vec![(TenantId::default(), c)]
    }

    #[test]
    fn alarms_are_raised_above_their_thresholds_and_repeated_when_doubled() {
        let mut alarms = Alarms::new(&Limits::default());
        let judged = |alarms: &mut Alarms, series, metric, label| alarms.judge(&found(series, metric, label)).map(|(_, n)| n);
        assert_eq!(judged(&mut alarms, 10_000_000, 10_000, 1_000), [0, 0, 0], "at the threshold, not above");
        assert_eq!(alarms.warned.len(), 0);
        assert_eq!(judged(&mut alarms, 10_000_001, 10_001, 1_001), [1, 1, 1]);
        assert_eq!(alarms.warned.len(), 3);
        judged(&mut alarms, 10_000_001, 20_001, 1_001);
        assert_eq!(alarms.warned[&("metric", "default".to_owned(), "m".to_owned())], 10_001, "not yet doubled");
        judged(&mut alarms, 10_000_001, 20_002, 1_001);
        assert_eq!(alarms.warned[&("metric", "default".to_owned(), "m".to_owned())], 20_002);
        let mut off = Alarms::new(&Limits { alarm_series: 0, alarm_series_per_metric: 0, alarm_values_per_label: 0, ..Limits::default() });
        assert_eq!(judged(&mut off, u64::MAX, u64::MAX, u64::MAX), [0, 0, 0]);
    }
}
