//! Delivers the outbox: one task per receiver, a few deliveries at a time, one per group.
//!
//! ```text
//!  enqueue (already durable) ─▶ queue by group ─▶ Notifier ─ 2xx ──────▶ sent       ─▶ store, ledger
//!                                 ▲                        ├ may pass ─▶ backoff ────┘ (same queue)
//!                                 └── a newer entry of     └ final, or too old ─▶ failed ─▶ store, ledger
//!                                     the group replaces
//! ```
//!
//! # Invariants
//! - **N1** An entry is in the store before it is here, unless the store itself failed (then it is sent all the same: a missed alert is worse
//!   than a second one).
//! - **N2** It is sent, given up or superseded; never forgotten. What does not fit into the queue waits in the store.
//!
//! # When it fails
//! A crash between the answer and the record sends the entry again. A stop waits [`STOP_GRACE`] for what is on its way.

use super::ledger::Ledger;
use super::{Notifier, NotifyError};
use crate::metrics::{Metrics, ReceiverLabel};
use crate::state::Id;
use crate::store::{NotificationStatus, OutboxEntry, StateStore};
use fletch_common::SharedClock;
use fletch_schemas::TenantId;
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Most groups of one receiver that wait in memory; the rest waits in the store.
pub const QUEUE_MAX: usize = 10_000;
/// Deliveries of one receiver at the same time.
pub const IN_FLIGHT_MAX: usize = 4;
/// Wait before the second attempt; doubles from there.
pub const BACKOFF_MIN_MS: i64 = 1_000;
/// Longest wait between attempts.
pub const BACKOFF_MAX_MS: i64 = 60_000;
/// After this age an entry is given up; what is still true then is planned anew.
pub const AGE_MAX_MS: i64 = 24 * 3_600 * 1_000;
/// How long a stop waits for deliveries on their way.
pub const STOP_GRACE: Duration = Duration::from_secs(5);

/// Identity of a queue slot: one entry waits per group.
type Slot = (TenantId, String);
/// The slots whose delivery is on its way, and of which entry.
type Busy = BTreeMap<Slot, Id>;

#[derive(Debug, Clone)]
struct Queued {
    entry: OutboxEntry,
    next_ms: i64,
}

/// What all receivers share.
#[derive(Clone)]
pub struct Shared {
    /// Where attempts are recorded.
    pub store: Arc<dyn StateStore>,
    /// Who knows what.
    pub ledger: Arc<Mutex<Ledger>>,
    /// The only clock.
    pub clock: SharedClock,
    /// Counters.
    pub metrics: Metrics,
    /// Most groups of one receiver that wait in memory, usually [`QUEUE_MAX`].
    pub queue_max: usize,
}

/// All receivers' queues and tasks.
pub struct Dispatcher {
    receivers: BTreeMap<String, Arc<Receiver>>,
    tasks: Mutex<Vec<JoinHandle<()>>>,
    cancel: CancellationToken,
    metrics: Metrics,
}

impl Dispatcher {
    /// Starts one task per notifier and gives each its part of `pending`.
    pub fn start(notifiers: Vec<Arc<dyn Notifier>>, shared: &Shared, pending: Vec<OutboxEntry>) -> Self {
        let cancel = CancellationToken::new();
        let mut receivers = BTreeMap::new();
        let mut tasks = Vec::new();
        for notifier in notifiers {
            let name = notifier.name().to_owned();
            let receiver = Arc::new(Receiver {
                notifier,
                shared: shared.clone(),
                queue: Mutex::new(BTreeMap::new()),
                wake: Notify::new(),
                overflowed: AtomicBool::new(false),
            });
            tasks.push(tokio::spawn(run(Arc::clone(&receiver), cancel.clone())));
            receivers.insert(name, receiver);
        }
        let dispatcher = Self { receivers, tasks: Mutex::new(tasks), cancel, metrics: shared.metrics.clone() };
        dispatcher.enqueue(pending);
        dispatcher
    }

    /// Takes entries that are in the store.
    pub fn enqueue(&self, entries: Vec<OutboxEntry>) {
        for entry in entries {
            match self.receivers.get(&entry.receiver) {
                Some(receiver) => receiver.put(entry),
                None => tracing::warn!(receiver = %entry.receiver, "a notification waits for a receiver that is no longer configured"),
            }
        }
        self.count();
    }

    fn count(&self) {
        let waiting: usize = self.receivers.values().map(|r| r.queue.lock().len()).sum();
        self.metrics.notifications_pending.set(i64::try_from(waiting).unwrap_or(i64::MAX));
    }

    /// Stops taking, waits for what is on its way, ends the tasks. What is left waits in the store.
    pub async fn stop(&self) {
        self.cancel.cancel();
        let tasks = std::mem::take(&mut *self.tasks.lock());
        for task in tasks {
            if let Err(error) = task.await {
                tracing::error!(%error, "a receiver's task ended badly");
            }
        }
    }
}

struct Receiver {
    notifier: Arc<dyn Notifier>,
    shared: Shared,
    queue: Mutex<BTreeMap<Slot, Queued>>,
    wake: Notify,
    /// Something is pending in the store that is not in the queue.
    overflowed: AtomicBool,
}

/// A delivery that ended.
struct Done {
    entry: OutboxEntry,
    result: Result<(), NotifyError>,
}

impl Receiver {
    fn put(&self, entry: OutboxEntry) {
        let slot = (entry.tenant.clone(), entry.alertname.clone());
        let mut queue = self.queue.lock();
        if queue.len() >= self.shared.queue_max && !queue.contains_key(&slot) {
            if !self.overflowed.swap(true, Ordering::Relaxed) {
                tracing::error!(
                    receiver = self.notifier.name(),
                    queue_max = self.shared.queue_max,
                    "the queue is full; further notifications wait in the store"
                );
            }
            return;
        }
        queue.insert(slot, Queued { entry, next_ms: i64::MIN });
        drop(queue);
        self.wake.notify_one();
    }

    /// The next entry that may be sent now, and when to look again if there is none.
    fn take(&self, now_ms: i64, busy: &Busy) -> Result<OutboxEntry, Option<i64>> {
        let mut queue = self.queue.lock();
        let next = queue.iter().filter(|(slot, _)| !busy.contains_key(*slot)).min_by_key(|(_, q)| (q.next_ms, q.entry.created_ms));
        let Some((slot, queued)) = next else { return Err(None) };
        if queued.next_ms > now_ms {
            return Err(Some(queued.next_ms));
        }
        let slot = slot.clone();
        queue.remove(&slot).map(|q| q.entry).ok_or(None)
    }

    async fn deliver(self: Arc<Self>, entry: OutboxEntry) -> Done {
        if self.is_too_old(&entry) {
            let result = Err(NotifyError::passing(format!("waited for more than {} h", AGE_MAX_MS / 3_600_000)));
            return Done { entry, result };
        }
        let result = self.notifier.notify(&entry).await;
        Done { entry, result }
    }

    fn is_too_old(&self, entry: &OutboxEntry) -> bool {
        self.shared.clock.now_ms().saturating_sub(entry.created_ms) >= AGE_MAX_MS
    }

    async fn settle(&self, done: Done) {
        let Done { mut entry, result } = done;
        let now_ms = self.shared.clock.now_ms();
        let label = ReceiverLabel { receiver: entry.receiver.clone() };
        entry.attempts = entry.attempts.saturating_add(1);
        let (mut retry_at, mut too_old) = (None, false);
        match result {
            Ok(()) => {
                (entry.status, entry.finished_ms) = (NotificationStatus::Sent, Some(now_ms));
                entry.last_error.clear();
                self.shared.metrics.notifications_sent.get_or_create(&label).inc();
            }
            Err(error) => {
                self.shared.metrics.notifications_failed.get_or_create(&label).inc();
                entry.last_error = error.reason.clone();
                too_old = error.retry && self.is_too_old(&entry);
                if error.retry && !too_old {
                    retry_at = Some(now_ms.saturating_add(wait_ms(&entry, &error)));
                } else {
                    (entry.status, entry.finished_ms) = (NotificationStatus::Failed, Some(now_ms));
                    self.shared.metrics.notifications_given_up.get_or_create(&label).inc();
                }
                let given_up = retry_at.is_none();
                let (receiver, alertname, attempts) = (&entry.receiver, &entry.alertname, entry.attempts);
                tracing::warn!(%receiver, %alertname, attempts, given_up, %error, "a notification was not delivered");
            }
        }
        if let Err(error) = self.shared.store.record_attempt(&entry).await {
            self.shared.metrics.store_failures.inc();
            tracing::error!(%error, "a delivery could not be recorded; after a restart it may be sent again");
        }
        match retry_at {
            Some(next_ms) => self.put_back(entry, next_ms),
            None if too_old => self.shared.ledger.lock().abandon(&entry),
            None => self.shared.ledger.lock().complete(now_ms, &entry),
        }
    }

    /// Back into its slot, unless a newer entry is there: that one says all of it.
    fn put_back(&self, entry: OutboxEntry, next_ms: i64) {
        let slot = (entry.tenant.clone(), entry.alertname.clone());
        self.queue.lock().entry(slot).or_insert(Queued { entry, next_ms });
    }

    /// Reads again what did not fit, once there is room; what is on its way is not read.
    async fn refill(&self, busy: &Busy) {
        if self.queue.lock().len() > self.shared.queue_max / 2 || !self.overflowed.swap(false, Ordering::Relaxed) {
            return;
        }
        match self.shared.store.outbox().await {
            Ok(entries) => {
                let mine = |e: &OutboxEntry| e.status == NotificationStatus::Pending && e.receiver == self.notifier.name();
                for entry in entries.into_iter().filter(mine) {
                    let slot = (entry.tenant.clone(), entry.alertname.clone());
                    if busy.get(&slot) != Some(&entry.id) && !self.queue.lock().contains_key(&slot) {
                        self.put(entry);
                    }
                }
            }
            Err(error) => {
                self.overflowed.store(true, Ordering::Relaxed);
                tracing::error!(%error, "the notifications that wait in the store could not be read");
            }
        }
    }
}

/// Exponential, with a jitter of up to a half that depends on entry and attempt alone; never less than the receiver asked for.
fn wait_ms(entry: &OutboxEntry, error: &NotifyError) -> i64 {
    let doubled = BACKOFF_MIN_MS.saturating_mul(1_i64.checked_shl(entry.attempts.saturating_sub(1).min(20)).unwrap_or(i64::MAX));
    let base = doubled.min(BACKOFF_MAX_MS);
    let seed = Id::of(&[&entry.id.0.to_be_bytes(), &entry.attempts.to_be_bytes()]).0;
    let jitter = i64::try_from(seed % 1_000).unwrap_or(0);
    let asked = error.after.map_or(0, |d| i64::try_from(d.as_millis()).unwrap_or(BACKOFF_MAX_MS));
    (base - base / 2 * jitter / 1_000).max(asked)
}

async fn run(receiver: Arc<Receiver>, cancel: CancellationToken) {
    let mut in_flight: FuturesUnordered<BoxFuture<'static, Done>> = FuturesUnordered::new();
    let mut busy = Busy::new();
    let clock = Arc::clone(&receiver.shared.clock);
    loop {
        receiver.refill(&busy).await;
        let mut look_again = None;
        while in_flight.len() < IN_FLIGHT_MAX {
            match receiver.take(clock.now_ms(), &busy) {
                Ok(entry) => {
                    busy.insert((entry.tenant.clone(), entry.alertname.clone()), entry.id);
                    in_flight.push(Box::pin(Arc::clone(&receiver).deliver(entry)));
                }
                Err(at_ms) => {
                    look_again = at_ms;
                    break;
                }
            }
        }
        let pause = async {
            match look_again {
                Some(at_ms) => {
                    let ms = u64::try_from(at_ms.saturating_sub(clock.now_ms())).unwrap_or(0);
                    clock.sleep(Duration::from_millis(ms)).await;
                }
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = cancel.cancelled() => break,
            Some(done) = in_flight.next() => {
                busy.remove(&(done.entry.tenant.clone(), done.entry.alertname.clone()));
                receiver.settle(done).await;
            }
            () = receiver.wake.notified() => {}
            () = pause => {}
        }
    }
    let drain = async {
        while let Some(done) = in_flight.next().await {
            receiver.settle(done).await;
        }
    };
    tokio::select! {
        () = drain => {}
        () = clock.sleep(STOP_GRACE) => tracing::warn!(receiver = receiver.notifier.name(), "stopped with deliveries on their way"),
    }
}

#[cfg(test)]
mod tests;
