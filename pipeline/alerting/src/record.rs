//! From the changes of one evaluation to what is durable and what is told.
//!
//! ```text
//!  Changes ─▶ ledger: who must be told ─▶ one transaction (alerts, history, outbox, marks) ─▶ dispatcher
//! ```
//!
//! PromQL and streaming rules end here both.
//!
//! # When it fails
//! A store that fails does not silence alerts: notifications go out from memory, and what could not be written is written with the rule's next
//! evaluation (all its alerts, and up to [`HISTORY_UNSAVED_MAX`] lines of history).

use crate::metrics::Metrics;
use crate::notify::dispatcher::Dispatcher;
use crate::notify::ledger::{Ledger, Source};
use crate::notify::payload::GroupId;
use crate::state::{Alert, Changes, Id, RuleAlerts};
use crate::store::{Batch, HistoryRow, Mark, StateStore, StoreError, StoredAlert};
use fletch_schemas::TenantId;
use parking_lot::Mutex;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

/// Most lines of history of one rule that wait for the store to come back; older ones are lost beyond it.
pub const HISTORY_UNSAVED_MAX: usize = 10_000;

/// A rule as the store and the receivers see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subject {
    /// Whose rule.
    pub tenant: TenantId,
    /// Identity of the rule.
    pub rule: Id,
    /// Its name, which is the `alertname` of its alerts.
    pub name: String,
    /// Where its expression can be looked at.
    pub generator_url: String,
}

/// Writes changes and tells receivers.
pub struct Recorder {
    store: Arc<dyn StateStore>,
    ledger: Arc<Mutex<Ledger>>,
    dispatcher: Arc<Dispatcher>,
    metrics: Metrics,
    /// Held while planning, writing and enqueuing, so that of two notifications about one group the later one also replaces the earlier one.
    turn: tokio::sync::Mutex<Turn>,
}

#[derive(Debug, Default)]
struct Turn {
    /// What the store has not taken, by rule.
    unsaved: HashMap<Id, Unsaved>,
    /// Rules whose alerts the ledger has from their own evaluation, not only from the store (which has no `generator_url`).
    seen: HashSet<Id>,
}

#[derive(Debug, Default)]
struct Unsaved {
    removed: Vec<Id>,
    history: Vec<HistoryRow>,
}

impl Recorder {
    /// A recorder that has written everything so far.
    pub fn new(store: Arc<dyn StateStore>, ledger: Arc<Mutex<Ledger>>, dispatcher: Arc<Dispatcher>, metrics: Metrics) -> Self {
        Self { store, ledger, dispatcher, metrics, turn: tokio::sync::Mutex::default() }
    }

    /// Records the evaluation of one rule at `now_ms`: `alerts` as they are after `changes`. `marks` go into the same transaction.
    ///
    /// # Errors
    /// [`StoreError`]: notifications are on their way all the same, the rest is written with the rule's next evaluation, the marks are not.
    pub async fn record(
        &self,
        subject: &Subject,
        now_ms: i64,
        alerts: &RuleAlerts,
        changes: Changes,
        marks: Vec<Mark>,
    ) -> Result<(), StoreError> {
        let mut turn = self.turn.lock().await;
        let first = turn.seen.insert(subject.rule);
        let group = GroupId { tenant: subject.tenant.clone(), alertname: subject.name.clone() };
        let due = {
            let mut ledger = self.ledger.lock();
            if first || !changes.changed.is_empty() || !changes.removed.is_empty() {
                ledger.update(now_ms, &group, Source { rule: subject.rule, generator_url: &subject.generator_url }, alerts.iter());
            }
            ledger.plan(now_ms, &group)
        };
        let missed = turn.unsaved.remove(&subject.rule);
        let mut batch = batch(subject, alerts, changes, missed);
        batch.outbox = due.into_iter().map(|(_, entry)| entry).collect();
        batch.marks = marks;
        let result = self.store.save(&batch).await;
        let Batch { mut history, removed, outbox, .. } = batch;
        self.dispatcher.enqueue(outbox);
        if result.is_err() {
            self.metrics.store_failures.inc();
            let too_many = history.len().saturating_sub(HISTORY_UNSAVED_MAX);
            history.drain(..too_many);
            turn.unsaved.insert(subject.rule, Unsaved { removed, history });
        }
        result
    }

    /// Ends a rule that is no longer there: what fires is resolved and told, and nothing of it is kept but the history.
    pub async fn end(&self, subject: &Subject, now_ms: i64, mut alerts: RuleAlerts) {
        let mut changes = alerts.end(now_ms);
        // Nobody evaluates the rule again, so nobody would forget what is resolved after its 15 minutes.
        changes.removed.extend(alerts.iter().map(|a| a.id));
        changes.changed.clear();
        if let Err(error) = self.record(subject, now_ms, &alerts, changes, Vec::new()).await {
            tracing::error!(rule = %subject.name, %error, "the end of a rule could not be saved; it is ended again at the next start");
        }
        let mut turn = self.turn.lock().await;
        turn.seen.remove(&subject.rule);
        turn.unsaved.remove(&subject.rule);
    }
}

fn batch(subject: &Subject, alerts: &RuleAlerts, changes: Changes, missed: Option<Unsaved>) -> Batch {
    let all = missed.is_some();
    let Unsaved { mut removed, mut history } = missed.unwrap_or_default();
    let changed: BTreeSet<Id> = changes.changed.into_iter().collect();
    let row = |alert: &Alert| StoredAlert {
        tenant: subject.tenant.clone(),
        rule: subject.rule,
        rule_name: subject.name.clone(),
        alert: alert.clone(),
        last_sent_ms: None,
    };
    let gone: BTreeSet<Id> = changes.removed.into_iter().collect();
    let rows: Vec<StoredAlert> = alerts.iter().filter(|a| (all || changed.contains(&a.id)) && !gone.contains(&a.id)).map(row).collect();
    // An alert that was removed, which could not be written, and has come back is there.
    removed.retain(|id| !rows.iter().any(|r| r.alert.id == *id));
    removed.extend(gone);
    history.extend(changes.transitions.into_iter().map(|transition| HistoryRow {
        tenant: subject.tenant.clone(),
        rule: subject.rule,
        rule_name: subject.name.clone(),
        transition,
    }));
    Batch { alerts: rows, removed, history, ..Batch::default() }
}
