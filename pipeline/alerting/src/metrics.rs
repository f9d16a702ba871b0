//! Self-metrics of alerting.

use fletch_common::metrics::{Counter, EncodeLabelSet, Family, Gauge, Histogram, Registry, duration_buckets};

/// Label `state` of [`Metrics::alerts`].
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct StateLabel {
    /// `pending` or `firing`.
    pub state: &'static str,
}

/// Label `receiver` of the notification counters.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ReceiverLabel {
    /// Name of the receiver.
    pub receiver: String,
}

/// All of them; cheap to clone, clones count together.
#[derive(Debug, Clone)]
pub struct Metrics {
    /// Rules evaluated.
    pub evaluations: Counter,
    /// Evaluations that failed.
    pub evaluation_failures: Counter,
    /// Ticks of a group that were skipped because the one before took too long, or the clock jumped.
    pub missed: Counter,
    /// Duration of one evaluation of a rule, in seconds.
    pub evaluation_seconds: Histogram,
    /// Alerts by state.
    pub alerts: Family<StateLabel, Gauge>,
    /// Notifications delivered.
    pub notifications_sent: Family<ReceiverLabel, Counter>,
    /// Deliveries that failed, each attempt counted.
    pub notifications_failed: Family<ReceiverLabel, Counter>,
    /// Notifications given up.
    pub notifications_given_up: Family<ReceiverLabel, Counter>,
    /// Notifications that wait.
    pub notifications_pending: Gauge,
    /// Writes to the metadata store that failed; what they held is written again.
    pub store_failures: Counter,
}

impl Metrics {
    /// Metrics that are in `registry`.
    pub fn new(registry: &mut Registry) -> Self {
        let metrics = Self::unregistered();
        let m = &metrics;
        registry.register("fletch_rule_evaluations", "Rules evaluated", m.evaluations.clone());
        registry.register("fletch_rule_evaluation_failures", "Rule evaluations that failed", m.evaluation_failures.clone());
        registry.register("fletch_rule_group_ticks_missed", "Ticks of rule groups that were skipped", m.missed.clone());
        registry.register("fletch_rule_evaluation_seconds", "Duration of a rule evaluation", m.evaluation_seconds.clone());
        registry.register("fletch_alerts", "Alerts by state", m.alerts.clone());
        registry.register("fletch_notifications_sent", "Notifications delivered", m.notifications_sent.clone());
        registry.register("fletch_notifications_failed", "Failed attempts to deliver a notification", m.notifications_failed.clone());
        registry.register("fletch_notifications_given_up", "Notifications given up", m.notifications_given_up.clone());
        registry.register("fletch_notifications_pending", "Notifications that wait to be delivered", m.notifications_pending.clone());
        registry.register("fletch_alerting_store_failures", "Failed writes of alerting to the metadata store", m.store_failures.clone());
        metrics
    }

    /// Metrics that nobody reads.
    pub fn unregistered() -> Self {
        Self {
            evaluations: Counter::default(),
            evaluation_failures: Counter::default(),
            missed: Counter::default(),
            evaluation_seconds: Histogram::new(duration_buckets()),
            alerts: Family::default(),
            notifications_sent: Family::default(),
            notifications_failed: Family::default(),
            notifications_given_up: Family::default(),
            notifications_pending: Gauge::default(),
            store_failures: Counter::default(),
        }
    }
}
