//! Quotas per tenant: how many series, and how many samples a second.
//!
//! ```text
//!  a series that the registry does not know ─▶ SeriesQuotas::admit ─▶ refused by name, or counted and given a number
//!  a decoded batch                          ─▶ SampleQuotas::take  ─▶ passes, or "again in n s" before anything is appended
//! ```
//!
//! # Invariants
//! - **L1** A series that has a number is never refused: only new ones are checked, so samples of known series cost nothing here.
//! - **K2** One series is counted once, however many requests bring it at the same time.
//! - **K3** A batch passes as a whole or not at all; one that is larger than the burst passes when the bucket is full, and the next ones wait longer.
//!
//! # What is counted
//! Series that are active, as [`SeriesQuotas::rebase`] was last told, and those that were admitted since. Without `rebase` nothing is ever
//! forgotten. Values per label leave `__name__` out.
//!
//! # Not here
//! Which series are active (storage), configuration, alarms.

use crate::SeriesRef;
use fletch_common::SharedClock;
use fletch_common::limits::TenantLimits;
use fletch_schemas::{Labels, METRIC_NAME, TenantId};
use parking_lot::{Mutex, RwLock};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;
use xxhash_rust::xxh3::xxh3_64;

/// Tenants whose buckets are remembered; above, those that are full (and so as good as new) are forgotten.
const BUCKETS_MAX: usize = 10_000;
/// The burst of a rate without one of its own, in seconds of that rate.
const BURST_SECONDS: u64 = 10;
/// Longest pause that is asked for.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(60);

/// Why a new series is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum QuotaProblem {
    /// The tenant has too many.
    #[error("tenant `{tenant}` has {series} active series, the limit is {max} (`series_max`): new series are refused, known ones go on")]
    Series {
        /// Whose.
        tenant: TenantId,
        /// How many.
        series: u64,
        /// The limit.
        max: u64,
    },
    /// The metric has too many.
    #[error(
        "metric `{metric}` has {series} active series, the limit is {max} (`series_per_metric_max`): new series are refused, known ones go on"
    )]
    Metric {
        /// Which, clipped.
        metric: String,
        /// How many.
        series: u64,
        /// The limit.
        max: u64,
    },
    /// The label has too many values.
    #[error("label `{label}` has {values} values, the limit is {max} (`values_per_label_max`): series with new values are refused")]
    Values {
        /// Which, clipped.
        label: String,
        /// How many.
        values: u64,
        /// The limit.
        max: u64,
    },
}

/// What is active of one tenant.
#[derive(Debug, Default)]
pub struct ActiveSeries {
    /// Number of series.
    pub series: u64,
    metrics: HashMap<Box<str>, u64>,
    values: HashMap<Box<str>, HashSet<u64>>,
}

impl ActiveSeries {
    /// Takes in one label pair that `series` active series have. Each pair once.
    pub fn note_pair(&mut self, name: &str, value: &str, series: u64) {
        if name == METRIC_NAME {
            self.metrics.insert(value.into(), series);
        } else {
            self.values_of(name).insert(hash(value));
        }
    }

    fn values_of(&mut self, name: &str) -> &mut HashSet<u64> {
        if !self.values.contains_key(name) {
            self.values.insert(name.into(), HashSet::new());
        }
        self.values.get_mut(name).expect("it was just put there")
    }

    fn check(&self, tenant: &TenantId, labels: &Labels, limits: &TenantLimits) -> Result<(), QuotaProblem> {
        let over = |max: u64, count: u64| max > 0 && count >= max;
        if over(limits.series_max, self.series) {
            return Err(QuotaProblem::Series { tenant: tenant.clone(), series: self.series, max: limits.series_max });
        }
        let of_metric = self.metrics.get(labels.metric()).copied().unwrap_or(0);
        if over(limits.series_per_metric_max, of_metric) {
            let metric = crate::decode::clip(labels.metric());
            return Err(QuotaProblem::Metric { metric, series: of_metric, max: limits.series_per_metric_max });
        }
        if limits.values_per_label_max == 0 {
            return Ok(());
        }
        for (name, value) in labels.iter().filter(|(name, _)| *name != METRIC_NAME) {
            let Some(known) = self.values.get(name) else { continue };
            let values = known.len() as u64;
            if over(limits.values_per_label_max, values) && !known.contains(&hash(value)) {
                return Err(QuotaProblem::Values { label: crate::decode::clip(name), values, max: limits.values_per_label_max });
            }
        }
        Ok(())
    }

    /// Counts a series. Values are kept only where they are limited.
    fn add(&mut self, labels: &Labels, with_values: bool) {
        self.series += 1;
        match self.metrics.get_mut(labels.metric()) {
            Some(count) => *count += 1,
            None => drop(self.metrics.insert(labels.metric().into(), 1)),
        }
        if with_values {
            for (name, value) in labels.iter().filter(|(name, _)| *name != METRIC_NAME) {
                self.values_of(name).insert(hash(value));
            }
        }
    }
}

fn hash(value: &str) -> u64 {
    xxh3_64(value.as_bytes())
}

/// Limits by tenant.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct QuotaSettings {
    /// For tenants that are not named.
    pub default: TenantLimits,
    /// For those that are.
    pub tenants: HashMap<TenantId, TenantLimits>,
}

impl QuotaSettings {
    /// What holds for a tenant.
    pub fn of(&self, tenant: &TenantId) -> &TenantLimits {
        self.tenants.get(tenant).unwrap_or(&self.default)
    }

    /// Whether any tenant has a limit on series.
    pub fn limits_series(&self) -> bool {
        std::iter::once(&self.default).chain(self.tenants.values()).any(TenantLimits::limits_series)
    }
}

/// Says which new series get a number.
#[derive(Debug)]
pub struct SeriesQuotas {
    settings: QuotaSettings,
    counts: RwLock<HashMap<TenantId, Arc<Mutex<ActiveSeries>>>>,
}

impl SeriesQuotas {
    /// Quotas that have seen nothing yet.
    pub fn new(settings: QuotaSettings) -> Self {
        Self { settings, counts: RwLock::default() }
    }

    /// Limits by tenant.
    pub fn settings(&self) -> &QuotaSettings {
        &self.settings
    }

    /// Replaces what is counted for a tenant by what is active. Series that are admitted between the counting and this call are counted again
    /// by the next one.
    pub fn rebase(&self, tenant: &TenantId, active: ActiveSeries) {
        *self.of(tenant).lock() = active;
    }

    /// Checks a series without a number, and gives it one with `resolve`. `find` says whether another request was faster (K2).
    ///
    /// # Errors
    /// [`QuotaProblem`] naming limit and label; the series then has no number.
    pub(crate) fn admit(
        &self,
        tenant: &TenantId,
        labels: &Labels,
        find: impl FnOnce() -> Option<SeriesRef>,
        resolve: impl FnOnce() -> SeriesRef,
    ) -> Result<(SeriesRef, bool), QuotaProblem> {
        let limits = self.settings.of(tenant);
        if !limits.limits_series() {
            return Ok((resolve(), true));
        }
        let counts = self.of(tenant);
        let mut counts = counts.lock();
        if let Some(known) = find() {
            return Ok((known, false));
        }
        counts.check(tenant, labels, limits)?;
        counts.add(labels, limits.values_per_label_max > 0);
        Ok((resolve(), true))
    }

    fn of(&self, tenant: &TenantId) -> Arc<Mutex<ActiveSeries>> {
        if let Some(known) = self.counts.read().get(tenant) {
            return known.clone();
        }
        self.counts.write().entry(tenant.clone()).or_default().clone()
    }
}

/// A batch came too early.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "tenant `{tenant}` sends more than {rate} samples a second (`samples_per_second_max`, burst {burst}); \
     again in {} s", retry_after.as_secs()
)]
pub struct RateExceeded {
    /// Whose.
    pub tenant: TenantId,
    /// The limit.
    pub rate: u64,
    /// How many may come at once.
    pub burst: u64,
    /// When it is worth to be tried again; whole seconds, at least one.
    pub retry_after: Duration,
}

/// A bucket of a tenant: how many thousandths of a sample are in it, and as of when. Below zero: what a large batch took in advance.
#[derive(Debug, Clone, Copy)]
struct Bucket {
    milli: i64,
    at_ms: i64,
}

/// Says whether a tenant may bring samples now.
#[derive(Debug)]
pub struct SampleQuotas {
    settings: QuotaSettings,
    clock: SharedClock,
    buckets: Mutex<HashMap<TenantId, Bucket>>,
}

impl SampleQuotas {
    /// Full buckets for everybody.
    pub fn new(settings: QuotaSettings, clock: SharedClock) -> Self {
        Self { settings, clock, buckets: Mutex::default() }
    }

    /// Takes `samples` from the tenant's bucket.
    ///
    /// # Errors
    /// [`RateExceeded`] when it is empty; nothing is taken then.
    pub fn take(&self, tenant: &TenantId, samples: usize) -> Result<(), RateExceeded> {
        let limits = self.settings.of(tenant);
        let rate = limits.samples_per_second_max;
        if rate == 0 || samples == 0 {
            return Ok(());
        }
        let burst = if limits.samples_burst_max > 0 { limits.samples_burst_max } else { rate.saturating_mul(BURST_SECONDS) };
        let (now_ms, full) = (self.clock.now_ms(), signed(burst.saturating_mul(1_000)));
        let mut buckets = self.buckets.lock();
        if buckets.len() >= BUCKETS_MAX && !buckets.contains_key(tenant) {
            buckets.retain(|other, bucket| bucket.filled(self.rate_of(other), i64::MAX, now_ms) < self.full_of(other));
        }
        let bucket = buckets.entry(tenant.clone()).or_insert(Bucket { milli: full, at_ms: now_ms });
        // A clock that was put back must not lock a tenant out.
        *bucket = Bucket { milli: bucket.filled(rate, full, now_ms), at_ms: now_ms };
        let wanted = signed((samples as u64).saturating_mul(1_000));
        if bucket.milli < wanted.min(full) {
            let missing = u64::try_from(wanted.min(full).saturating_sub(bucket.milli)).unwrap_or(0);
            let seconds = missing.div_ceil(rate.saturating_mul(1_000)).max(1);
            let retry_after = Duration::from_secs(seconds).min(RETRY_AFTER_MAX);
            return Err(RateExceeded { tenant: tenant.clone(), rate, burst, retry_after });
        }
        bucket.milli = bucket.milli.saturating_sub(wanted);
        Ok(())
    }

    fn rate_of(&self, tenant: &TenantId) -> u64 {
        self.settings.of(tenant).samples_per_second_max
    }

    fn full_of(&self, tenant: &TenantId) -> i64 {
        let limits = self.settings.of(tenant);
        let burst = if limits.samples_burst_max > 0 {
            limits.samples_burst_max
        } else {
            limits.samples_per_second_max.saturating_mul(BURST_SECONDS)
        };
        signed(burst.saturating_mul(1_000))
    }
}

impl Bucket {
    /// What is in it at `now_ms`: a rate of n samples a second is n thousandths a millisecond.
    fn filled(&self, rate: u64, full: i64, now_ms: i64) -> i64 {
        let elapsed = now_ms.saturating_sub(self.at_ms).max(0);
        self.milli.saturating_add(elapsed.saturating_mul(signed(rate))).min(full)
    }
}

fn signed(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SeriesRegistry;
    use crate::series::Admission;
    use fletch_common::ManualClock;

    fn limits(series: u64, metric: u64, values: u64) -> TenantLimits {
        TenantLimits { series_max: series, series_per_metric_max: metric, values_per_label_max: values, ..TenantLimits::default() }
    }

    fn registry(default: TenantLimits, named: &[(&str, TenantLimits)]) -> SeriesRegistry {
        let tenants = named.iter().map(|(name, limits)| (tenant(name), limits.clone())).collect();
        let registry = SeriesRegistry::new();
        registry.set_quotas(Arc::new(SeriesQuotas::new(QuotaSettings { default, tenants })));
        registry
    }

    fn tenant(name: &str) -> TenantId {
        TenantId::new(name).expect("valid")
    }

    fn labels(metric: &str, host: &str) -> Labels {
        Labels::from_pairs([("__name__", metric), ("host", host)]).expect("valid")
    }

    fn admit(registry: &SeriesRegistry, of: &str, metric: &str, host: &str) -> Result<bool, QuotaProblem> {
        match registry.admit_canonical(&tenant(of), labels(metric, host).as_bytes()) {
            Ok((_, new)) => Ok(new),
            Err(Admission::Quota(problem)) => Err(problem),
            Err(Admission::Labels(error)) => panic!("{error}"),
        }
    }

    #[test]
    fn each_limit_refuses_new_series_by_name_and_known_ones_go_on() {
        let r = registry(limits(3, 0, 0), &[("metric", limits(0, 2, 0)), ("values", limits(0, 0, 2)), ("free", limits(0, 0, 0))]);
        for host in ["a", "b", "c"] {
            assert_eq!(admit(&r, "default", "m", host), Ok(true));
        }
        let error = admit(&r, "default", "other", "a").expect_err("the fourth");
        assert_eq!(error, QuotaProblem::Series { tenant: tenant("default"), series: 3, max: 3 });
        assert!(error.to_string().contains("`series_max`"), "{error}");
        assert_eq!(admit(&r, "default", "m", "b"), Ok(false), "L1");
        assert_eq!(r.find(&tenant("default"), &labels("other", "a")), None, "it has no number");

        assert_eq!([admit(&r, "metric", "m", "a"), admit(&r, "metric", "m", "b")], [Ok(true), Ok(true)]);
        assert_eq!(admit(&r, "metric", "m", "c"), Err(QuotaProblem::Metric { metric: "m".into(), series: 2, max: 2 }));
        assert_eq!(admit(&r, "metric", "n", "c"), Ok(true), "another metric");

        assert_eq!([admit(&r, "values", "m", "a"), admit(&r, "values", "m", "b")], [Ok(true), Ok(true)]);
        assert_eq!(admit(&r, "values", "m", "c"), Err(QuotaProblem::Values { label: "host".into(), values: 2, max: 2 }));
        assert_eq!(admit(&r, "values", "n", "a"), Ok(true), "a known value, another metric: metric names are not limited by it");
        for n in 0..20 {
            assert_eq!(admit(&r, "free", "m", &n.to_string()), Ok(true));
        }
    }

    #[test]
    fn every_decoder_refuses_by_reason_and_label_and_takes_the_rest() {
        use crate::decode::testing::WriteRequest;
        use crate::decode::{
            DecodeContext, Decoded, LabelPolicy, RejectReason, RemoteWriteCache, RemoteWriteDecoder, decode_json, decode_text,
        };
        let (tenant, bounds) = (TenantId::default(), fletch_common::Limits::default());
        let fresh = || Arc::new(registry(limits(0, 0, 1), &[]));
        let judge = |mut out: Decoded, what: &str| {
            assert_eq!((out.stats.accepted, out.stats.rejected_for(RejectReason::LabelValuesLimit)), (2, 1), "{what}");
            let reject = out.rejects.remove(0);
            assert_eq!((reject.label.as_deref(), reject.reason.as_str()), (Some("host"), "label_values_limit"), "{what}");
            assert!(reject.message.contains("`values_per_label_max`") && reject.message.contains("\"b\""), "{what}: {}", reject.message);
        };
        for what in ["text", "json"] {
            let registry = fresh();
            let context =
                DecodeContext { tenant: &tenant, now_ms: 1_000, limits: &bounds, registry: &registry, label_policy: LabelPolicy::Refuse };
            let mut out = Decoded::new();
            let metric = |host: &str| format!(r#"{{"name":"m","value":1,"labels":{{"host":"{host}"}}}}"#);
            let json = format!(r#"{{"metrics":[{},{},{}]}}"#, metric("a"), metric("b"), metric("a"));
            let decoded = match what {
                "text" => decode_text(&context, b"m{host=\"a\"} 1\nm{host=\"b\"} 1\nm{host=\"a\"} 2\n", &mut out),
                _ => decode_json(&context, json.as_bytes(), &mut out),
            };
            decoded.expect("the request is fine");
            judge(out, what);
        }
        let decoder = RemoteWriteDecoder::new(fresh(), bounds.clone());
        let series = |host: &'static str| [("__name__", "m"), ("host", host)];
        let body = ["a", "b", "a"].into_iter().fold(WriteRequest::new(), |r, host| r.series(&series(host), &[(1_000, 1.0)])).compressed();
        let mut connection = RemoteWriteCache::default();
        for round in ["first", "again"] {
            let mut out = Decoded::new();
            decoder.decode(&body, &tenant, 1_000, &mut connection, &mut out).expect("the request is fine");
            judge(out, round);
        }
    }

    #[test]
    fn what_is_not_active_any_more_makes_room() {
        let quotas = Arc::new(SeriesQuotas::new(QuotaSettings { default: limits(2, 0, 2), tenants: HashMap::new() }));
        let r = SeriesRegistry::new();
        r.set_quotas(quotas.clone());
        assert_eq!([admit(&r, "default", "m", "a"), admit(&r, "default", "m", "b")], [Ok(true), Ok(true)]);
        admit(&r, "default", "m", "c").expect_err("full");
        let mut active = ActiveSeries { series: 1, ..ActiveSeries::default() };
        active.note_pair("__name__", "m", 1);
        active.note_pair("host", "b", 1);
        quotas.rebase(&tenant("default"), active);
        assert_eq!(admit(&r, "default", "m", "c"), Ok(true));
        admit(&r, "default", "m", "d").expect_err("full again");
        assert_eq!(admit(&r, "default", "m", "a"), Ok(false), "it has a number");
    }

    #[test]
    fn a_series_is_counted_once_whoever_brings_it() {
        let r = Arc::new(registry(limits(10, 0, 0), &[]));
        std::thread::scope(|scope| {
            for _ in 0..8 {
                let r = r.clone();
                scope.spawn(move || {
                    for host in 0..10 {
                        admit(&r, "default", "m", &host.to_string()).expect("ten series in all");
                    }
                });
            }
        });
        assert_eq!(r.len(), 10);
        admit(&r, "default", "m", "x").expect_err("the eleventh");
    }

    #[test]
    fn the_rate_is_kept_by_a_bucket_with_a_burst() {
        let clock = ManualClock::at(1_000);
        let rate = TenantLimits { samples_per_second_max: 100, samples_burst_max: 300, ..TenantLimits::default() };
        let tenants = HashMap::from([(tenant("free"), TenantLimits::default())]);
        let quotas = SampleQuotas::new(QuotaSettings { default: rate, tenants }, clock.clone());
        let take = |n| quotas.take(&tenant("a"), n).map_err(|e| e.retry_after.as_secs());
        assert_eq!([take(200), take(100)], [Ok(()), Ok(())], "the burst");
        assert_eq!(take(1), Err(1));
        assert_eq!(take(250), Err(3), "when there is enough");
        clock.advance(Duration::from_millis(10));
        assert_eq!([take(1), take(1)], [Ok(()), Err(1)]);
        clock.advance(Duration::from_secs(3_600));
        assert_eq!(take(1_000), Ok(()), "K3: larger than the burst, on a full bucket");
        assert_eq!(take(1), Err(8), "which it has overdrawn");
        clock.advance(Duration::from_secs(7));
        assert_eq!(take(1), Err(1));
        clock.advance(Duration::from_millis(10));
        assert_eq!(take(1), Ok(()));
        clock.set(0);
        clock.advance(Duration::from_millis(5));
        assert_eq!(take(1), Err(1), "a clock put back gives nothing");
        clock.advance(Duration::from_millis(10));
        assert_eq!(take(1), Ok(()), "and takes nothing");
        assert_eq!(quotas.take(&tenant("b"), 300), Ok(()), "others have buckets of their own");
        for _ in 0..100 {
            assert_eq!(quotas.take(&tenant("free"), 1_000_000), Ok(()), "0 = no limit");
        }
        let error = quotas.take(&tenant("b"), 1).expect_err("empty").to_string();
        assert!(error.contains("`samples_per_second_max`") && error.contains("tenant `b`"), "{error}");
    }

    #[test]
    fn buckets_of_quiet_tenants_are_forgotten() {
        let clock = ManualClock::at(0);
        let rate = TenantLimits { samples_per_second_max: 1, samples_burst_max: 1, ..TenantLimits::default() };
        let quotas = SampleQuotas::new(QuotaSettings { default: rate, tenants: HashMap::new() }, clock.clone());
        for n in 0..BUCKETS_MAX {
            quotas.take(&tenant(&format!("t{n}")), 1).expect("the first");
        }
        clock.advance(Duration::from_secs(1));
        quotas.take(&tenant("t0"), 1).expect("full again");
        quotas.take(&tenant("new"), 1).expect("the first");
        assert_eq!(quotas.buckets.lock().len(), 2, "the empty one and the new one");
    }
}
