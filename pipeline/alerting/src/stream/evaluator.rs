//! Streaming rules at work: one task that takes deliveries from the bus and judges windows as they close.
//!
//! ```text
//!  BatchSink::deliver ─▶ queue ─▶ task: subscriptions ─▶ RuleWindows ─▶ closed windows ─▶ RuleRun::judge ─▶ alerts + mark, one transaction
//! ```
//!
//! # Restart
//! The mark of a rule (its watermark per partition) is saved with the verdicts that moved it. At an assignment the samples of windows that end after the mark
//! are read from the tables as they are below storage's offset, the bus delivers everything from there on, and a (series, time) counts once: the open
//! windows are as they were. Windows up to the mark are not judged again. A rule without a mark begins at the time of the first record it meets.
//!
//! # When it fails
//! A rule whose filter cannot be evaluated loses that batch and says so in `lastError`. The queue is bounded: when the task falls behind by
//! [`QUEUE_MAX`] deliveries, the bus waits for it.

use super::compile::Compiled;
use super::rule::{Row, RuleWindows, Subscription};
use crate::rules::group::{RuleRun, Shared};
use crate::store::{Mark, StateStore};
use async_trait::async_trait;
use fletch_ingest::{BatchSink, BusError, Delivery, Partition, SampleBatch, Series, SeriesRegistry};
use fletch_schemas::{SeriesSet, TenantId};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use tokio::sync::mpsc;

/// Deliveries that wait for the task at most.
pub const QUEUE_MAX: usize = 1_024;

/// The mark of a quiet rule is saved when its watermark has moved this far, in milliseconds.
const MARK_EVERY_MS: i64 = 10_000;

/// Samples from before the bus' first delivery.
#[async_trait]
pub trait SampleHistory: Send + Sync + std::fmt::Debug {
    /// Freezes what is stored of a tenant now.
    fn freeze(&self, tenant: &TenantId) -> Arc<dyn FrozenSamples>;
}

/// One moment of the stored samples.
#[async_trait]
pub trait FrozenSamples: Send + Sync + std::fmt::Debug {
    /// All series of a metric with their samples from `from_ms` on.
    ///
    /// # Errors
    /// A sentence for the log.
    async fn since(&self, metric: &str, from_ms: i64) -> Result<SeriesSet, String>;
}

/// A loaded streaming rule.
#[derive(Clone)]
pub(crate) struct StreamRule {
    pub(crate) run: Arc<RuleRun>,
    pub(crate) compiled: Arc<Compiled>,
    pub(crate) lateness_ms: i64,
}

enum Message {
    Assigned(Partition, Arc<dyn FrozenSamples>),
    Delivered(Partition, i64, Arc<SampleBatch>),
    Revoked(Partition),
}

/// The end of the bus at which streaming rules listen.
pub struct StreamSink {
    tenant: TenantId,
    history: Arc<dyn SampleHistory>,
    // `None` after `close`.
    queue: parking_lot::Mutex<Option<mpsc::Sender<Message>>>,
    has_rules: bool,
}

impl std::fmt::Debug for StreamSink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StreamSink").field("tenant", &self.tenant).finish_non_exhaustive()
    }
}

impl StreamSink {
    /// Starts the task. Must be called in a tokio runtime.
    pub(crate) fn start(
        shared: Shared,
        rules: Vec<StreamRule>,
        store: Arc<dyn StateStore>,
        registry: Arc<SeriesRegistry>,
        history: Arc<dyn SampleHistory>,
    ) -> (Arc<Self>, tokio::task::JoinHandle<()>) {
        let (queue, waiting) = mpsc::channel(QUEUE_MAX);
        let sink = Arc::new(Self {
            tenant: shared.tenant.clone(),
            history,
            queue: parking_lot::Mutex::new(Some(queue)),
            has_rules: !rules.is_empty(),
        });
        let evaluator = Evaluator { shared, rules, store, registry, partitions: BTreeMap::new() };
        (sink, tokio::spawn(evaluator.run(waiting)))
    }

    /// No more deliveries: the task ends when it has judged what waits.
    pub(crate) fn close(&self) {
        self.queue.lock().take();
    }

    fn send(&self, message: Message) {
        let queue = self.queue.lock().clone();
        // Closed: the bus has stopped before, nobody is left to tell. The threads of a bus may block.
        if let Some(queue) = queue {
            let _ = queue.blocking_send(message);
        }
    }
}

impl BatchSink for StreamSink {
    fn deliver(&self, delivery: &Delivery) {
        if self.has_rules {
            self.send(Message::Delivered(delivery.partition, delivery.append_time_ms, delivery.batch.clone()));
        }
    }

    fn wants_groups(&self) -> bool {
        self.has_rules
    }

    fn assigned(&self, partition: Partition) -> Result<Option<i64>, BusError> {
        if self.has_rules {
            self.send(Message::Assigned(partition, self.history.freeze(&self.tenant)));
        }
        Ok(None)
    }

    fn revoked(&self, partition: Partition) {
        if self.has_rules {
            self.send(Message::Revoked(partition));
        }
    }
}

/// One rule on one partition.
struct Live {
    rule: StreamRule,
    windows: Option<RuleWindows>,
    saved_ms: i64,
}

#[derive(Default)]
struct PartitionRules {
    live: Vec<Live>,
    /// By series: which rules its samples go to. Shorter than the registry: the rest is unknown yet.
    subscribers: Vec<Option<Arc<Subscribers>>>,
    decided: usize,
}

struct Subscribers {
    series: Arc<Series>,
    /// Index of the rule, and its group.
    rules: Vec<(usize, u32)>,
}

struct Evaluator {
    shared: Shared,
    rules: Vec<StreamRule>,
    store: Arc<dyn StateStore>,
    registry: Arc<SeriesRegistry>,
    partitions: BTreeMap<Partition, PartitionRules>,
}

impl Evaluator {
    async fn run(mut self, mut waiting: mpsc::Receiver<Message>) {
        while let Some(message) = waiting.recv().await {
            match message {
                Message::Assigned(partition, frozen) => self.assign(partition, frozen.as_ref()).await,
                Message::Revoked(partition) => drop(self.partitions.remove(&partition)),
                Message::Delivered(partition, append_time_ms, batch) => self.deliver(partition, append_time_ms, &batch).await,
            }
        }
    }

    async fn assign(&mut self, partition: Partition, frozen: &dyn FrozenSamples) {
        let marks = match self.store.marks("stream/").await {
            Ok(marks) => marks.into_iter().map(|m| (m.name, m.value)).collect(),
            Err(error) => {
                tracing::error!(%error, "the marks of streaming rules cannot be read: they begin at the current time");
                HashMap::new()
            }
        };
        let mut state = PartitionRules::default();
        for rule in &self.rules {
            let mark = marks.get(&mark_name(rule, partition)).and_then(|v| v.parse::<i64>().ok());
            let windows = mark.map(|at| RuleWindows::new(rule.compiled.clone(), rule.lateness_ms, at));
            state.live.push(Live { rule: rule.clone(), windows, saved_ms: mark.unwrap_or(i64::MIN) });
        }
        for live in &mut state.live {
            if let Err(error) = rebuild(live, &self.registry, &self.shared.tenant, frozen).await {
                tracing::error!(rule = %live.rule.run.rule.name, %error, "open windows cannot be rebuilt; they hold only what arrives from now on");
            }
        }
        self.partitions.insert(partition, state);
    }

    async fn deliver(&mut self, partition: Partition, append_time_ms: i64, batch: &SampleBatch) {
        let state = self.partitions.entry(partition).or_insert_with(|| PartitionRules {
            live: self.rules.iter().map(|rule| Live { rule: rule.clone(), windows: None, saved_ms: i64::MIN }).collect(),
            ..PartitionRules::default()
        });
        state.begin(append_time_ms);
        state.add(batch, &self.registry, &self.shared.tenant);
        for live in &mut state.live {
            judge(live, partition, append_time_ms, &self.shared).await;
        }
    }
}

/// Name of a rule's mark. It holds the hash of the statement: a changed rule begins anew.
fn mark_name(rule: &StreamRule, partition: Partition) -> String {
    format!("stream/{}/{}/{partition}", rule.run.rule.id, rule.compiled.hash)
}

async fn rebuild(live: &mut Live, registry: &SeriesRegistry, tenant: &TenantId, frozen: &dyn FrozenSamples) -> Result<(), String> {
    let Some(windows) = &mut live.windows else { return Ok(()) };
    let from_ms = windows.watermark_ms().div_euclid(live.rule.compiled.size_ms) * live.rule.compiled.size_ms + 1;
    let set = frozen.since(&live.rule.compiled.metric, from_ms).await?;
    for i in 0..set.len() {
        let Subscription::Group(group) = windows.subscribe(&set.labels[i]).map_err(|e| e.to_string())? else { continue };
        let series = registry.resolve(tenant, &set.labels[i]);
        let samples: Vec<_> = set.times(i).iter().zip(set.values(i)).map(|(t, v)| (series, &set.labels[i], group, *t, *v)).collect();
        windows.add(&samples).map_err(|e| e.to_string())?;
    }
    Ok(())
}

impl PartitionRules {
    /// Rules without a mark begin at the time of the first record.
    fn begin(&mut self, append_time_ms: i64) {
        for live in self.live.iter_mut().filter(|l| l.windows.is_none()) {
            let start_ms = append_time_ms.saturating_sub(live.rule.lateness_ms);
            live.windows = Some(RuleWindows::new(live.rule.compiled.clone(), live.rule.lateness_ms, start_ms));
        }
    }

    /// Hands every sample to the rules that its series is subscribed to. A series that no rule wants costs one look at an array per sample.
    fn add(&mut self, batch: &SampleBatch, registry: &SeriesRegistry, tenant: &TenantId) {
        self.decide(registry, tenant);
        let mut rows: Vec<Vec<Row<'_>>> = vec![Vec::new(); self.live.len()];
        for (i, series) in batch.series.iter().enumerate() {
            let Some(Some(subscribers)) = self.subscribers.get(series.index()) else { continue };
            for (rule, group) in &subscribers.rules {
                rows[*rule].push((*series, &subscribers.series.labels, *group, batch.times[i], batch.values[i]));
            }
        }
        for (live, rows) in self.live.iter_mut().zip(rows).filter(|(_, rows)| !rows.is_empty()) {
            let added = live.windows.as_mut().map_or(Ok(()), |windows| windows.add(&rows));
            if let Err(error) = added {
                live.rule.run.fail(format!("WHERE: {error}"));
            }
        }
    }

    /// Decides about series that are new since the last batch.
    fn decide(&mut self, registry: &SeriesRegistry, tenant: &TenantId) {
        let new: Vec<Arc<Series>> = registry.with(|all| all.get(self.decided..).unwrap_or_default().to_vec());
        self.decided += new.len();
        for series in new {
            let mut rules = Vec::new();
            if series.tenant == *tenant {
                for (i, live) in self.live.iter_mut().enumerate() {
                    match live.windows.as_mut().map(|w| w.subscribe(&series.labels)) {
                        Some(Ok(Subscription::Group(group))) => rules.push((i, group)),
                        Some(Err(error)) => live.rule.run.fail(format!("WHERE on {}: {error}", series.labels)),
                        Some(Ok(Subscription::No)) | None => {}
                    }
                }
            }
            self.subscribers.push((!rules.is_empty()).then(|| Arc::new(Subscribers { series, rules })));
        }
    }
}

/// Judges the windows that close at this append time.
async fn judge(live: &mut Live, partition: Partition, append_time_ms: i64, shared: &Shared) {
    let Live { rule, windows: Some(windows), saved_ms } = live else { return };
    windows.advance(append_time_ms);
    let mut active = rule.run.is_active();
    while let Some(closed) = windows.next_closed(active) {
        match closed {
            Ok(window) => {
                let mark = Mark { name: mark_name(rule, partition), value: window.end_ms.to_string() };
                if rule.run.judge(shared, window.end_ms, window.holds, vec![mark]).await {
                    *saved_ms = window.end_ms;
                }
                active = rule.run.is_active();
            }
            Err(error) => rule.run.fail(error.to_string()),
        }
    }
    let size = rule.compiled.size_ms;
    let judged_ms = windows.watermark_ms().div_euclid(size) * size;
    if judged_ms.saturating_sub(*saved_ms) >= MARK_EVERY_MS.max(size) {
        let mark = Mark { name: mark_name(rule, partition), value: judged_ms.to_string() };
        if rule.run.save_marks(shared, judged_ms, vec![mark]).await {
            *saved_ms = judged_ms;
        }
    }
}
