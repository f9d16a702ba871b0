//! The bus on Kafka: one topic, many processes, each the owner of some of its partitions.
//!
//! ```text
//!  append ─▶ queue ─▶ writer: group ─▶ by partition ─▶ records ─▶ topic (acks=all) ─▶ answer
//!                                                                 │
//!  owner of P3:  reader thread ◀── read_committed, from sinks' offset ┘ ─▶ sinks, in offset order
//!                heartbeat every second into each owned partition
//!  append with a source offset ─▶ transaction { records, offset into the compacted topic `<topic>-sources` } ─▶ answer
//! ```
//!
//! # Invariants
//! - **K1** An append is answered when every in-sync replica has it. It is delivered by the owner of its partitions, which may be another
//!   process.
//! - **K2** The tables alone say where a partition is continued. Kafka's committed offsets are written for tools and never read.
//! - **K3** The broker's append time counts; a topic that does not stamp it is refused.
//! - **K4** All samples of a metric of a tenant are in one partition, for ever ([`partition_of`], pinned by `golden_partitions`).
//! - **K5** Source offsets and the samples they cover are one transaction, of a producer that fences its predecessors.
//!
//! # When it fails
//! - The broker does not acknowledge: [`BusError::Kafka`], the outcome is unknown, the sender retries, storage drops the copy.
//! - An offset that the topic does not have, a damaged record, a sink that refuses its partition: [`KafkaState::Failed`]; the process leaves
//!   the group so that another may take over.
//! - A record that is not ours (no mark): skipped, logged and counted. It was never acknowledged by us.
//!
//! # Not here
//! The record format ([`super::record`]), foreign topics (`crate::source`).

mod client;
mod reader;
mod sources;
#[cfg(test)]
mod tests;
mod topic;
mod writer;

use super::embedded::Wiring;
use super::{Bus, BusError, Partition};
use crate::{Append, SourceOffset};
use async_trait::async_trait;
use parking_lot::Mutex;
use rdkafka::consumer::BaseConsumer;
use reader::{Owned, ReaderContext};
use sources::SourceWriters;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use writer::{Command, KafkaWriter};

pub use topic::partition_of;

/// Appends that wait in the queue at most; further ones wait before it.
const QUEUE_APPENDS_MAX: usize = 1_024;
/// Bytes of samples in the queue and on their way at most (64 MiB, counted in KiB by the semaphore).
const QUEUE_KIB_MAX: u32 = 64 << 10;
/// How long [`Bus::close`] waits for what was acknowledged to come back to this process.
const CLOSE_WAIT: Duration = Duration::from_secs(30);
/// How long a request to the broker may take that is made before the bus works.
const START_TIMEOUT: Duration = Duration::from_secs(30);

/// What a user can tune.
#[derive(Debug, Clone)]
pub struct KafkaSettings {
    /// `host:port,…`
    pub brokers: String,
    /// Topic of the bus; created when it is absent. `<topic>-sources` holds the offsets of foreign topics.
    pub topic: String,
    /// Consumer group of the processes that share the store.
    pub group: String,
    /// Partitions of the topic when it is created. An existing topic keeps its own.
    pub partitions: u32,
    /// Any librdkafka property. What the guarantees rest on (`acks`, `isolation.level`, `enable.auto.commit`, …) cannot be changed.
    pub properties: BTreeMap<String, String>,
    /// Time between two heartbeats.
    pub heartbeat: Duration,
}

impl KafkaSettings {
    /// Topic `fletch-bus` of 8 partitions, group `fletch`, a heartbeat per second.
    pub fn new(brokers: impl Into<String>) -> Self {
        Self {
            brokers: brokers.into(),
            topic: "fletch-bus".into(),
            group: "fletch".into(),
            partitions: 8,
            properties: BTreeMap::new(),
            heartbeat: Duration::from_secs(1),
        }
    }
}

/// Where the bus is in its life.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KafkaState {
    /// Waits for the group to assign partitions: at the start, and after it has lost them.
    Joining,
    /// Reads what the sinks do not have yet of at least one partition.
    Replaying,
    /// Has read every partition it owns to its end once.
    Ready,
    /// Nothing is delivered or accepted any more; says why.
    Failed(Arc<str>),
}

/// Which part of the bus this process has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assignment {
    /// Partitions of the topic.
    pub partitions: u32,
    /// Those of this process, ascending.
    pub owned: Vec<Partition>,
}

/// What the reader, the writer and the front share.
#[derive(Debug)]
struct Shared {
    wiring: Wiring,
    topic: String,
    partitions: u32,
    state: watch::Sender<KafkaState>,
    owned: Mutex<BTreeMap<Partition, Owned>>,
    /// Partitions that the reader has to begin anew: see [`Bus::overtaken`].
    overtaken: Mutex<BTreeSet<Partition>>,
    /// Whether the group has given this process its partitions (perhaps none) yet.
    joined: AtomicBool,
    /// Changes with every delivery and every change of `owned`.
    progress: watch::Sender<()>,
    /// The last offset of each partition that the broker acknowledged to this process.
    acknowledged: Mutex<BTreeMap<Partition, i64>>,
    consumer: Mutex<Weak<BaseConsumer<ReaderContext>>>,
    /// Set by `close`: nothing more is delivered, but the partitions stay ours until the storage has flushed.
    paused: AtomicBool,
    /// Set when the bus is dropped: the reader leaves the group.
    stop: AtomicBool,
    reader_gone: watch::Sender<bool>,
}

impl Shared {
    fn fail(&self, why: &str) {
        tracing::error!(why, "the kafka bus has failed: nothing is accepted or delivered any more");
        self.state.send_replace(KafkaState::Failed(why.into()));
        self.progress.send_replace(());
    }

    fn failed(&self) -> Option<Arc<str>> {
        match &*self.state.borrow() {
            KafkaState::Failed(why) => Some(why.clone()),
            _ => None,
        }
    }

    fn acknowledged(&self, partition: i32, offset: i64) {
        if let Ok(partition) = Partition::try_from(partition) {
            let mut all = self.acknowledged.lock();
            let last = all.entry(partition).or_insert(offset);
            *last = offset.max(*last);
        }
    }

    /// Whether everything acknowledged has come back, as far as its partitions are ours.
    fn drained(&self) -> bool {
        let owned = self.owned.lock();
        let acknowledged = self.acknowledged.lock();
        acknowledged.iter().all(|(partition, offset)| owned.get(partition).is_none_or(|o| o.delivered > *offset))
    }
}

/// The bus on Kafka.
#[derive(Debug)]
pub struct KafkaBus {
    shared: Arc<Shared>,
    identity: String,
    queue: Mutex<Option<mpsc::Sender<Command>>>,
    queue_room: Arc<Semaphore>,
    writer: tokio::sync::Mutex<Option<tokio::task::JoinHandle<()>>>,
    sources: SourceWriters,
    heartbeat: tokio::task::JoinHandle<()>,
}

impl KafkaBus {
    /// The name of the bus, `<cluster id>/<topic>`: under `bus:<name>:<partition>` the tables keep its offsets.
    ///
    /// # Errors
    /// [`BusError::Kafka`] when the cluster does not answer.
    pub async fn identify(settings: &KafkaSettings) -> Result<String, BusError> {
        let settings = settings.clone();
        client::blocking(move || topic::identify(&settings)).await
    }

    /// Creates the topics if they are absent, checks them, joins the group and begins to deliver. Returns before partitions are assigned.
    /// Must be called in a tokio runtime. Sinks are called on a thread of their own and may block.
    ///
    /// # Errors
    /// [`BusError::Kafka`] when the cluster does not answer; [`BusError::Settings`] when the topic is not fit for a bus or a property is wrong.
    pub async fn open(settings: KafkaSettings, wiring: Wiring) -> Result<Arc<Self>, BusError> {
        let identity = Self::identify(&settings).await?;
        let partitions = topic::prepare(&settings, &wiring.clock).await?;
        let shared = Arc::new(Shared {
            wiring,
            topic: settings.topic.clone(),
            partitions,
            state: watch::Sender::new(KafkaState::Joining),
            owned: Mutex::default(),
            overtaken: Mutex::default(),
            joined: AtomicBool::new(false),
            progress: watch::Sender::new(()),
            acknowledged: Mutex::default(),
            consumer: Mutex::new(Weak::new()),
            paused: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            reader_gone: watch::Sender::new(false),
        });
        let producer = client::producer(&settings)?;
        reader::start(&settings, &shared)?;
        let (queue, waiting) = mpsc::channel(QUEUE_APPENDS_MAX);
        let writer = KafkaWriter::new(shared.clone(), producer.clone());
        let heartbeat = writer::beat(shared.clone(), producer, settings.heartbeat);
        tracing::info!(bus = identity, partitions, "opened the bus on kafka");
        Ok(Arc::new(Self {
            sources: SourceWriters::new(settings, shared.clone()),
            identity,
            queue: Mutex::new(Some(queue)),
            queue_room: Arc::new(Semaphore::new(QUEUE_KIB_MAX as usize)),
            writer: tokio::sync::Mutex::new(Some(tokio::spawn(writer.run(waiting)))),
            heartbeat: tokio::spawn(heartbeat),
            shared,
        }))
    }

    /// `bus:<cluster id>/<topic>:<partition>`: under this name the tables keep the offset of a partition.
    pub fn app_id(&self, partition: Partition) -> String {
        format!("bus:{}:{partition}", self.identity)
    }

    /// The state now and every change of it.
    pub fn state(&self) -> watch::Receiver<KafkaState> {
        self.shared.state.subscribe()
    }

    /// Which partitions this process has.
    pub fn assignment(&self) -> Assignment {
        Assignment { partitions: self.shared.partitions, owned: self.shared.owned.lock().keys().copied().collect() }
    }

    /// Leaves the group: every partition is revoked from the sinks, and others take over at once. For after [`Bus::close`] and the last
    /// flush; dropping the bus does the same without waiting.
    pub async fn leave(&self) {
        self.stop();
        let _ = self.shared.reader_gone.subscribe().wait_for(|gone| *gone).await;
    }

    fn stop(&self) {
        self.heartbeat.abort();
        self.shared.stop.store(true, Ordering::Release);
    }

    fn check_open(&self) -> Result<mpsc::Sender<Command>, BusError> {
        if let Some(why) = self.shared.failed() {
            return Err(BusError::Corrupt(why.to_string()));
        }
        self.queue.lock().clone().ok_or(BusError::Closed)
    }
}

impl Drop for KafkaBus {
    fn drop(&mut self) {
        self.stop();
    }
}

#[async_trait]
impl Bus for KafkaBus {
    async fn append(&self, append: Append) -> Result<(), BusError> {
        let queue = self.check_open()?;
        if let Some(admission) = &self.shared.wiring.admission {
            admission.admit()?;
        }
        let kib = u32::try_from(writer::weight(&append) >> 10).unwrap_or(u32::MAX).clamp(1, QUEUE_KIB_MAX);
        let room = self.queue_room.clone().acquire_many_owned(kib).await.map_err(|_| BusError::Closed)?;
        if !append.sources.is_empty() {
            return self.sources.append(append, room).await;
        }
        let (answer, answered) = oneshot::channel();
        queue.send(Command { append, answer, room }).await.map_err(|_| BusError::Closed)?;
        drop(queue);
        answered.await.unwrap_or(Err(BusError::Closed))
    }

    /// Tells Kafka, for tools that show the lag.
    fn release(&self, partition: Partition, next: i64) {
        let consumer = self.shared.consumer.lock().upgrade();
        if let Some(consumer) = consumer {
            reader::commit(&consumer, &self.shared.topic, partition, next);
        }
    }

    fn overtaken(&self, partition: Partition) {
        self.shared.overtaken.lock().insert(partition);
    }

    fn source_offsets(&self) -> Vec<SourceOffset> {
        self.sources.known()
    }

    async fn claim_source(&self, source: &str) -> Result<Option<i64>, BusError> {
        self.check_open()?;
        self.sources.claim(source).await
    }

    fn unclaim_source(&self, source: &str) {
        self.sources.unclaim(source);
    }

    fn single_process(&self) -> bool {
        false
    }

    async fn close(&self) {
        drop(self.queue.lock().take());
        if let Some(writer) = self.writer.lock().await.take() {
            let _ = writer.await;
        }
        self.sources.close().await;
        let mut progress = self.shared.progress.subscribe();
        let drained = progress.wait_for(|()| self.shared.drained() || self.shared.failed().is_some());
        if tokio::time::timeout(CLOSE_WAIT, drained).await.is_err() {
            tracing::warn!("some acknowledged records did not come back before the stop: the next owner reads them");
        }
        self.shared.paused.store(true, Ordering::Release);
    }
}
