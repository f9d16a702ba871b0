//! A group of rules at work: its ticks, the evaluation of its rules one after the other, what is known about each.
//!
//! ```text
//!  ticks     ──┬────────┬────────┬────────┬──▶     k · interval + offset(file, group): groups do not all run at once
//!              │ r1 r2 r3│        ╳ missed │        a tick that comes while the one before runs is skipped and counted
//! ```
//!
//! # When it fails
//! A query that fails leaves the alerts as they are and is the rule's `lastError`; the next rule runs all the same.

use super::file::{Group, Rule};
use crate::InstantQuery;
use crate::metrics::{Metrics, StateLabel};
use crate::record::{Recorder, Subject};
use crate::state::{Alert, Annotations, Changes, RuleAlerts, Verdict};
use crate::store::Mark;
use crate::template::{Context, table_link};
use fletch_common::SharedClock;
use fletch_schemas::{Labels, METRIC_NAME, TenantId};
use parking_lot::Mutex;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;

/// Label with the name of the rule.
pub const ALERT_NAME: &str = "alertname";
/// Most results of one rule's expression.
pub const RESULTS_MAX: usize = 100_000;
/// After so many expanded results the task gives way to others.
const RESULTS_PER_TURN: usize = 64;

/// What all groups share.
#[derive(Clone)]
pub(crate) struct Shared {
    pub(crate) tenant: TenantId,
    pub(crate) external_url: Arc<str>,
    pub(crate) external_labels: Labels,
    pub(crate) queries: Arc<dyn InstantQuery>,
    pub(crate) recorder: Arc<Recorder>,
    pub(crate) clock: SharedClock,
    pub(crate) metrics: Metrics,
    /// Evaluations that may run at the same time.
    pub(crate) permits: Arc<Semaphore>,
    /// Ticks done by all groups.
    pub(crate) ticks: watch::Sender<u64>,
}

/// Whether a rule works.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Health {
    /// Not evaluated yet.
    Unknown,
    /// The last evaluation succeeded.
    Ok,
    /// It failed, and why.
    Err(String),
}

/// What is known about the last evaluation of a rule or group.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(crate) struct LastRun {
    pub(crate) at_ms: Option<i64>,
    pub(crate) seconds: f64,
}

/// A rule at work.
pub(crate) struct RuleRun {
    pub(crate) rule: Rule,
    pub(crate) subject: Subject,
    pub(crate) state: Mutex<RuleState>,
}

/// What changes with each evaluation; read by the API.
#[derive(Debug, Clone)]
pub(crate) struct RuleState {
    pub(crate) alerts: RuleAlerts,
    pub(crate) health: Health,
    pub(crate) last: LastRun,
}

impl RuleRun {
    /// A rule that goes on with the alerts it had.
    pub(crate) fn new(rule: Rule, shared: &Shared, alerts: Vec<Alert>) -> Self {
        let generator_url = format!("{}{}", shared.external_url.trim_end_matches('/'), table_link(&rule.expr));
        let subject = Subject { tenant: shared.tenant.clone(), rule: rule.id, name: rule.name.clone(), generator_url };
        let alerts = RuleAlerts::restore(shared.tenant.clone(), rule.id, alerts);
        count(&shared.metrics, &alerts, 1);
        Self { rule, subject, state: Mutex::new(RuleState { alerts, health: Health::Unknown, last: LastRun::default() }) }
    }

    /// Evaluates the rule at a tick.
    pub(crate) async fn evaluate(&self, shared: &Shared, tick_ms: i64, query_offset_ms: i64) {
        let started = Instant::now();
        let result = self.try_evaluate(shared, tick_ms, query_offset_ms).await;
        let seconds = started.elapsed().as_secs_f64();
        shared.metrics.evaluations.inc();
        shared.metrics.evaluation_seconds.observe(seconds);
        let health = match result {
            Ok(()) => Health::Ok,
            Err(reason) => {
                shared.metrics.evaluation_failures.inc();
                tracing::warn!(rule = %self.rule.name, %reason, "a rule could not be evaluated");
                Health::Err(reason)
            }
        };
        let mut state = self.state.lock();
        state.health = health;
        state.last = LastRun { at_ms: Some(tick_ms), seconds };
    }

    async fn try_evaluate(&self, shared: &Shared, tick_ms: i64, query_offset_ms: i64) -> Result<(), String> {
        let rows = shared.queries.instant(&shared.tenant, &self.rule.expr, tick_ms.saturating_sub(query_offset_ms)).await?;
        if rows.len() > RESULTS_MAX {
            return Err(format!("the expression has {} results, at most {RESULTS_MAX} are allowed", rows.len()));
        }
        self.apply(shared, tick_ms, rows, Vec::new()).await.map(drop)
    }

    /// Moves the alerts by the results at `at_ms` and records what changed; `marks` are saved with it. Answers whether anything was recorded.
    async fn apply(&self, shared: &Shared, at_ms: i64, rows: Vec<(Labels, f64)>, marks: Vec<Mark>) -> Result<bool, String> {
        let verdicts = self.verdicts(shared, at_ms, rows).await?;
        let (alerts, changes) = {
            let mut state = self.state.lock();
            count(&shared.metrics, &state.alerts, -1);
            let changes = state.alerts.evaluate(at_ms, verdicts, self.rule.policy);
            count(&shared.metrics, &state.alerts, 1);
            (state.alerts.clone(), changes.map_err(|e| e.to_string())?)
        };
        let error = changes.error.clone();
        // A streaming rule closes many windows in which nothing happens; those are not worth a transaction.
        let worth_it = marks.is_empty() || !changes.changed.is_empty() || !changes.removed.is_empty() || !changes.transitions.is_empty();
        let saved = worth_it && self.save(shared, at_ms, &alerts, changes, marks).await;
        error.map_or(Ok(saved), |e| Err(e.to_string()))
    }

    async fn save(&self, shared: &Shared, at_ms: i64, alerts: &RuleAlerts, changes: Changes, marks: Vec<Mark>) -> bool {
        let saved = shared.recorder.record(&self.subject, at_ms, alerts, changes, marks).await;
        if let Err(error) = &saved {
            tracing::error!(rule = %self.rule.name, %error, "alerts could not be saved; they are kept in memory and saved at the next evaluation");
        }
        saved.is_ok()
    }

    /// Applies the verdicts of a closed window of a streaming rule. Answers whether the marks were saved with it.
    pub(crate) async fn judge(&self, shared: &Shared, end_ms: i64, rows: Vec<(Labels, f64)>, marks: Vec<Mark>) -> bool {
        let started = Instant::now();
        let result = self.apply(shared, end_ms, rows, marks).await;
        shared.metrics.evaluations.inc();
        let mut state = self.state.lock();
        state.last = LastRun { at_ms: Some(end_ms), seconds: started.elapsed().as_secs_f64() };
        match result {
            Ok(saved) => {
                state.health = Health::Ok;
                saved
            }
            Err(reason) => {
                shared.metrics.evaluation_failures.inc();
                tracing::warn!(rule = %self.rule.name, %reason, "a window could not be judged");
                state.health = Health::Err(reason);
                false
            }
        }
    }

    /// Saves marks without an evaluation; also the time at which receivers are told again. Answers whether they were saved.
    pub(crate) async fn save_marks(&self, shared: &Shared, at_ms: i64, marks: Vec<Mark>) -> bool {
        let alerts = self.state.lock().alerts.clone();
        self.save(shared, at_ms, &alerts, Changes::default(), marks).await
    }

    /// Says in the rule's health why it does not work.
    pub(crate) fn fail(&self, reason: String) {
        tracing::warn!(rule = %self.rule.name, %reason, "a streaming rule failed");
        self.state.lock().health = Health::Err(reason);
    }

    /// Whether it has alerts that time alone can change.
    pub(crate) fn is_active(&self) -> bool {
        self.state.lock().alerts.iter().next().is_some()
    }

    /// Labels and annotations of each result, templates expanded.
    async fn verdicts(&self, shared: &Shared, tick_ms: i64, rows: Vec<(Labels, f64)>) -> Result<Vec<Verdict>, String> {
        let context = Context::new(
            shared.tenant.clone(),
            tick_ms,
            Arc::clone(&shared.external_url),
            shared.external_labels.clone(),
            Arc::clone(&shared.queries),
        );
        let mut verdicts = Vec::with_capacity(rows.len());
        for (i, (metric, value)) in rows.into_iter().enumerate() {
            let mut builder = metric.to_builder();
            builder.remove(METRIC_NAME);
            for (name, template) in &self.rule.labels {
                builder.set(name, &template.expand(&metric, value, &context).await);
            }
            builder.set(ALERT_NAME, &self.rule.name);
            let labels = builder.build().map_err(|e| e.to_string())?;
            let mut annotations = Annotations::new();
            for (name, template) in &self.rule.annotations {
                annotations.insert(name.clone(), template.expand(&metric, value, &context).await);
            }
            verdicts.push(Verdict { labels, annotations, value });
            if (i + 1) % RESULTS_PER_TURN == 0 {
                tokio::task::yield_now().await;
            }
        }
        Ok(verdicts)
    }

    /// Takes the alerts out, for a rule that goes on as another object.
    pub(crate) fn detach(&self, shared: &Shared) -> Vec<Alert> {
        let state = self.state.lock();
        count(&shared.metrics, &state.alerts, -1);
        state.alerts.iter().cloned().collect()
    }

    /// Ends the rule: what fires is resolved and told.
    pub(crate) async fn end(&self, shared: &Shared, now_ms: i64) {
        let alerts = {
            let state = self.state.lock();
            count(&shared.metrics, &state.alerts, -1);
            state.alerts.clone()
        };
        shared.recorder.end(&self.subject, now_ms, alerts).await;
    }
}

/// Adds (or takes away) a rule's alerts to the gauge.
fn count(metrics: &Metrics, alerts: &RuleAlerts, sign: i64) {
    let (mut pending, mut firing) = (0, 0);
    for alert in alerts.iter().filter(|a| a.state.is_active()) {
        *(if alert.state.is_firing() { &mut firing } else { &mut pending }) += sign;
    }
    metrics.alerts.get_or_create(&StateLabel { state: "pending" }).inc_by(pending);
    metrics.alerts.get_or_create(&StateLabel { state: "firing" }).inc_by(firing);
}

/// A group at work.
pub(crate) struct GroupRun {
    pub(crate) group: Group,
    pub(crate) rules: Vec<Arc<RuleRun>>,
    pub(crate) last: Mutex<LastRun>,
}

impl GroupRun {
    /// Evaluates all rules at one tick, in order.
    pub(crate) async fn tick(&self, shared: &Shared, tick_ms: i64) {
        let started = Instant::now();
        for rule in &self.rules {
            let Ok(_permit) = shared.permits.acquire().await else { return };
            rule.evaluate(shared, tick_ms, self.group.query_offset_ms).await;
        }
        *self.last.lock() = LastRun { at_ms: Some(tick_ms), seconds: started.elapsed().as_secs_f64() };
        shared.ticks.send_modify(|ticks| *ticks += 1);
    }

    /// Ticks after `start_ms` until cancelled; an evaluation that has begun is finished.
    pub(crate) async fn run(self: Arc<Self>, shared: Shared, start_ms: i64, cancel: CancellationToken) {
        let schedule = Schedule::of(&self.group);
        let mut last = schedule.last_tick(start_ms);
        loop {
            let next = schedule.after(last, shared.clock.now_ms());
            let wait = Duration::from_millis(u64::try_from(next.saturating_sub(shared.clock.now_ms())).unwrap_or(0));
            tokio::select! {
                biased;
                () = cancel.cancelled() => return,
                () = shared.clock.sleep(wait) => {}
            }
            // Late: the newest tick that is due runs, those before it are skipped.
            let tick = schedule.last_tick(shared.clock.now_ms()).max(next);
            let missed = (tick - next) / schedule.interval_ms;
            if missed > 0 {
                shared.metrics.missed.inc_by(missed.unsigned_abs());
                tracing::warn!(file = %self.group.file, group = %self.group.name, missed, "ticks of a rule group were skipped");
            }
            self.tick(&shared, tick).await;
            last = tick;
        }
    }
}

/// The times at which a group is evaluated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Schedule {
    interval_ms: i64,
    offset_ms: i64,
}

impl Schedule {
    /// The offset depends on file and name alone, so it is the same after a restart.
    pub(crate) fn of(group: &Group) -> Self {
        let hash = crate::state::Id::of(&[group.file.as_bytes(), group.name.as_bytes()]).0;
        let interval_ms = group.interval_ms.max(1);
        let offset_ms = i64::try_from(hash % interval_ms.unsigned_abs() as u128).expect("less than the interval");
        Self { interval_ms, offset_ms }
    }

    /// The newest tick that is not after `now_ms`.
    pub(crate) fn last_tick(self, now_ms: i64) -> i64 {
        (now_ms - self.offset_ms).div_euclid(self.interval_ms) * self.interval_ms + self.offset_ms
    }

    /// The tick after `last`. A clock that was set back by more than an interval starts the schedule anew instead of pausing it.
    fn after(self, last: i64, now_ms: i64) -> i64 {
        let newest = self.last_tick(now_ms);
        if newest < last - self.interval_ms { newest + self.interval_ms } else { last + self.interval_ms }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(name: &str, interval_ms: i64) -> Group {
        Group { file: "f".into(), name: name.into(), interval_ms, query_offset_ms: 0, limit: 0, rules: vec![] }
    }

    #[test]
    fn ticks_are_aligned_and_spread_by_name() {
        let schedules: Vec<Schedule> = (0..50).map(|i| Schedule::of(&group(&format!("g{i}"), 60_000))).collect();
        for s in &schedules {
            for now in [0, 1, 59_999, 60_000, 1_700_000_000_123] {
                let tick = s.last_tick(now);
                assert!(tick <= now && now - tick < 60_000);
                assert_eq!((tick - s.offset_ms).rem_euclid(60_000), 0);
            }
        }
        let spread: std::collections::BTreeSet<i64> = schedules.iter().map(|s| s.offset_ms / 6_000).collect();
        assert!(spread.len() >= 8, "50 groups cover nearly every tenth of the interval: {spread:?}");
        assert_eq!(Schedule::of(&group("g1", 60_000)), schedules[1]);
    }

    #[test]
    fn a_clock_set_back_does_not_stop_the_schedule() {
        let s = Schedule { interval_ms: 10, offset_ms: 3 };
        assert_eq!(s.after(103, 104), 113);
        assert_eq!(s.after(103, 99), 113);
        assert_eq!(s.after(103, 50), 53);
    }
}
