//! The embedded log: the bus of a single process, a folder of recycled segment files with one partition.
//!
//! ```text
//!  <data-dir>/log/identity            the uuid of the log
//!                 0000000000000007.seg  head(sources) r r r r …      sealed: ends where the next one begins
//!                 0000000000000008.seg  head(sources) r r ▒▒▒▒▒      active: zeros or old records behind the last group
//!                 0000000000000006.spare                             released, waits to be written again
//!
//!  append ─▶ queue ─▶ writer thread: group ─▶ encode ─▶ write ─▶ fdatasync ─▶ sinks ─▶ answer
//!  open   ─▶ replay thread: find the end ─▶ sinks say where to start ─▶ read back, in large batches ─▶ ready
//! ```
//!
//! # Invariants
//! - **E1** Durable before delivered before answered. Until the replay has ended, appends are answered when they are durable and
//!   delivered by the replay, which reads them back.
//! - **E2** A group is written whole into one segment or not at all; recovery drops an incomplete one. So the source offsets of a group
//!   and its samples stand or fall together.
//! - **E3** Each start of the process begins a new segment (a new generation) before its first write: bytes that a crash left behind the
//!   end can never look like what follows it.
//! - **E4** A heartbeat is written without an fsync and delivered without moving the offset; the next fsync moves it. So no sink ever
//!   stores an offset that a power loss takes out of the log.
//! - **E5** The files, spare ones included, never exceed the budget; only whole segments below
//!   [`Bus::release`] are given back.
//!
//! # When it fails
//! - A failed write or fsync ends the process: what the kernel then holds of the file is unknown, the recovery is not.
//! - No room: [`BusError::Full`], nothing was written. A group is refused as a whole.
//! - A record that was once on the disk and is now damaged, or an offset of a sink that the log does not have: [`EmbeddedLog::open`] fails,
//!   or [`LogState::Failed`] when the replay meets it.
//!
//! # Not here
//! The record format ([`super::record`]).

mod files;
mod recovery;
mod replay;
#[cfg(test)]
mod tests;
mod writer;

use super::{Admission, BatchSink, Bus, BusError, Partition};
use crate::{Append, Delivery, SeriesRegistry, SourceOffset};
use async_trait::async_trait;
use files::LogFiles;
use fletch_common::SharedClock;
use fletch_common::metrics::{Counter, Gauge, Histogram, Registry, duration_buckets};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use writer::{Command, Writer};

/// The one partition of the log.
const PARTITION: Partition = 0;
/// Appends that wait in the queue at most; further ones wait before it.
const QUEUE_APPENDS_MAX: usize = 1_024;
/// Bytes of samples that wait in the queue at most (64 MiB, counted in KiB by the semaphore).
const QUEUE_KIB_MAX: u32 = 64 << 10;
/// When to come back after a refusal: a flush takes a few seconds.
pub(super) const RETRY_AFTER: Duration = Duration::from_secs(5);

/// What a user can tune.
#[derive(Debug, Clone)]
pub struct LogSettings {
    /// The data directory (the caller holds its [`super::DataDirLock`]); the log is in its folder `log`.
    pub data_dir: PathBuf,
    /// Budget of the files, in bytes.
    pub bytes_max: u64,
    /// Length of a segment, in bytes; at most half of the budget.
    pub segment_bytes: u64,
    /// Time between two heartbeats.
    pub heartbeat: Duration,
}

impl LogSettings {
    /// Default budget: 1 GiB.
    pub const BYTES_MAX_DEFAULT: u64 = 1 << 30;

    /// Segments of 64 MiB, or of a quarter of a smaller budget; a heartbeat per second.
    pub fn new(data_dir: impl Into<PathBuf>, bytes_max: u64) -> Self {
        let segment_bytes = (64 << 20).min(bytes_max / 4 / 4096 * 4096);
        Self { data_dir: data_dir.into(), bytes_max, segment_bytes, heartbeat: Duration::from_secs(1) }
    }
}

/// What the log works with.
#[derive(Debug, Clone)]
pub struct Wiring {
    /// The series of the process.
    pub registry: Arc<SeriesRegistry>,
    /// The clock of append times and heartbeats.
    pub clock: SharedClock,
    /// Who receives, in this order. The first that knows an offset also decides where sinks without an opinion start.
    pub sinks: Vec<Arc<dyn BatchSink>>,
    /// Who may refuse an append before it is written.
    pub admission: Option<Arc<dyn Admission>>,
    /// Counters.
    pub metrics: LogMetrics,
}

/// Where the log is in its life.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LogState {
    /// Reading back what the sinks do not have yet.
    Replaying,
    /// Delivering live: an append is visible when it is answered.
    Ready,
    /// Nothing is delivered or accepted any more; says why.
    Failed(Arc<str>),
}

/// How full the log is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogUsage {
    /// Bytes of the segments that are not released.
    pub bytes: u64,
    /// The budget.
    pub bytes_max: u64,
}

/// Self-metrics of a bus of either kind.
#[derive(Debug, Clone)]
pub struct LogMetrics {
    /// Groups made durable.
    pub groups: Counter,
    /// Bytes written.
    pub bytes: Counter,
    /// Appends refused for lack of room.
    pub refused: Counter,
    /// Seconds of write and fdatasync per group.
    pub sync_seconds: Histogram,
    /// Messages in the topic of the bus that are not ours.
    pub skipped: Counter,
    /// Bytes of the segments that are not released.
    pub held_bytes: Gauge,
}

impl LogMetrics {
    /// Registers them as `fletch_log_*`.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register("fletch_log_groups", "Groups of appends made durable", metrics.groups.clone());
        registry.register("fletch_log_written_bytes", "Bytes written to the log", metrics.bytes.clone());
        registry.register("fletch_log_refused", "Appends refused because the log or the disk is full", metrics.refused.clone());
        registry.register("fletch_log_sync_seconds", "Write and fdatasync of one group", metrics.sync_seconds.clone());
        registry.register("fletch_log_skipped", "Messages in the topic of the bus that are not records", metrics.skipped.clone());
        registry.register("fletch_log_held_bytes", "Bytes of the log that are not released", metrics.held_bytes.clone());
        metrics
    }
}

impl Default for LogMetrics {
    fn default() -> Self {
        Self {
            groups: Counter::default(),
            bytes: Counter::default(),
            refused: Counter::default(),
            sync_seconds: Histogram::new(duration_buckets()),
            skipped: Counter::default(),
            held_bytes: Gauge::default(),
        }
    }
}

/// What the writer, the replay, `release` and readers of the state share.
#[derive(Debug)]
struct Shared {
    wiring: Wiring,
    state: watch::Sender<LogState>,
    /// Threads that still run; `close` waits for 0.
    running: watch::Sender<usize>,
    log: Mutex<Log>,
}

/// The log as of the last fsync.
#[derive(Debug)]
struct Log {
    files: LogFiles,
    /// Everything below is on the disk.
    durable: i64,
    /// Whether the writer delivers (else the replay still does).
    live: bool,
    sources: BTreeMap<String, i64>,
}

impl Shared {
    fn fail(&self, why: &str) {
        tracing::error!(why, "the log has failed: nothing is accepted or delivered any more");
        self.state.send_replace(LogState::Failed(why.into()));
    }

    fn failed(&self) -> Option<Arc<str>> {
        match &*self.state.borrow() {
            LogState::Failed(why) => Some(why.clone()),
            _ => None,
        }
    }

    fn deliver(&self, delivery: &Delivery) {
        for sink in &self.wiring.sinks {
            sink.deliver(delivery);
        }
    }
}

/// Counts a thread out when it ends; an unwinding one takes the log with it.
#[derive(Debug)]
struct Running(Arc<Shared>);

impl Drop for Running {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.fail("a thread of the log has panicked");
        }
        self.0.running.send_modify(|n| *n -= 1);
    }
}

/// The embedded log.
#[derive(Debug)]
pub struct EmbeddedLog {
    shared: Arc<Shared>,
    queue: Mutex<Option<mpsc::Sender<Command>>>,
    queue_room: Arc<Semaphore>,
    heartbeat: tokio::task::JoinHandle<()>,
    uuid: uuid::Uuid,
}

impl EmbeddedLog {
    /// Opens or creates the log, asks every sink where to start, and begins to replay. Returns before the replay has ended.
    /// Must be called in a tokio runtime (the heartbeat runs there); sinks are asked on a thread of their own and may block.
    ///
    /// # Errors
    /// - [`BusError::Settings`]: a segment is longer than half of the budget or too short.
    /// - [`BusError::Corrupt`]: a sink wants an offset that the log does not have, or a durable record is damaged.
    /// - [`BusError::Io`]; whatever a sink answers.
    pub async fn open(settings: LogSettings, wiring: Wiring) -> Result<Arc<Self>, BusError> {
        check(&settings)?;
        let (heartbeat, clock) = (settings.heartbeat, wiring.clock.clone());
        let (opened, answer) = oneshot::channel();
        spawn("log-replay", move || match recovery::recover(&settings, wiring) {
            // The receiver is gone only when `open` was cancelled: then there is nobody to replay for.
            Ok((shared, plan)) => {
                if opened.send(Ok(shared.clone())).is_ok() {
                    replay::run(shared, plan);
                }
            }
            Err(error) => drop(opened.send(Err(error))),
        })?;
        let shared = answer.await.map_err(|_| BusError::Closed)??;
        let (queue, waiting) = mpsc::channel(QUEUE_APPENDS_MAX);
        let writer = Writer::new(shared.clone());
        spawn("log-writer", move || writer.run(waiting))?;
        let heartbeat = tokio::spawn(beat(clock, heartbeat, queue.downgrade()));
        let uuid = shared.log.lock().files.uuid();
        let queue_room = Arc::new(Semaphore::new(QUEUE_KIB_MAX as usize));
        Ok(Arc::new(Self { shared, queue: Mutex::new(Some(queue)), queue_room, heartbeat, uuid }))
    }

    /// The uuid of the log in a data directory, which gets one if it has none. For before [`open`](Self::open): the store may refuse a log
    /// that is not its own, and storage must know the name before the log asks for offsets.
    ///
    /// # Errors
    /// [`BusError::Io`]; [`BusError::Corrupt`] when there is one that cannot be read.
    pub fn identify(data_dir: &Path) -> Result<uuid::Uuid, BusError> {
        files::identity(&data_dir.join("log"))
    }

    /// `bus:<log uuid>:<partition>`: under this name the tables keep the offset of a partition.
    pub fn app_id(&self, partition: Partition) -> String {
        format!("bus:{}:{partition}", self.uuid)
    }

    /// The state now and every change of it.
    pub fn state(&self) -> watch::Receiver<LogState> {
        self.shared.state.subscribe()
    }

    /// Whether the replay has ended and the log has not failed.
    pub fn is_ready(&self) -> bool {
        *self.shared.state.borrow() == LogState::Ready
    }

    /// Waits for the end of the replay.
    ///
    /// # Errors
    /// [`BusError::Corrupt`] when it failed.
    pub async fn wait_ready(&self) -> Result<(), BusError> {
        let mut state = self.state();
        let state = state.wait_for(|state| *state != LogState::Replaying).await.map_err(|_| BusError::Closed)?;
        match &*state {
            LogState::Failed(why) => Err(BusError::Corrupt(why.to_string())),
            _ => Ok(()),
        }
    }

    /// How full it is.
    pub fn usage(&self) -> LogUsage {
        let log = self.shared.log.lock();
        LogUsage { bytes: log.files.used_bytes(), bytes_max: log.files.bytes_max() }
    }

    /// The offsets that can be read back: first, and the next to be written. Heartbeats that are not on the disk yet do not count.
    pub fn range(&self) -> std::ops::Range<i64> {
        let log = self.shared.log.lock();
        log.files.first_offset()..log.durable
    }
}

impl Drop for EmbeddedLog {
    fn drop(&mut self) {
        self.heartbeat.abort();
    }
}

#[async_trait]
impl Bus for EmbeddedLog {
    async fn append(&self, append: Append) -> Result<(), BusError> {
        if let Some(why) = self.shared.failed() {
            return Err(BusError::Corrupt(why.to_string()));
        }
        if let Some(admission) = &self.shared.wiring.admission {
            admission.admit()?;
        }
        let queue = self.queue.lock().clone().ok_or(BusError::Closed)?;
        let kib = u32::try_from(writer::weight(&append) >> 10).unwrap_or(u32::MAX).clamp(1, QUEUE_KIB_MAX);
        let room = self.queue_room.clone().acquire_many_owned(kib).await.map_err(|_| BusError::Closed)?;
        let (answer, answered) = oneshot::channel();
        queue.send(Command::Append { append, answer, room }).await.map_err(|_| BusError::Closed)?;
        drop(queue);
        answered.await.unwrap_or(Err(BusError::Closed))
    }

    fn release(&self, partition: Partition, next: i64) {
        if partition == PARTITION {
            let mut log = self.shared.log.lock();
            log.files.release(next);
            self.shared.wiring.metrics.held_bytes.set(i64::try_from(log.files.used_bytes()).unwrap_or(i64::MAX));
        }
    }

    fn overtaken(&self, _partition: Partition) {
        self.shared.fail(
            "another process writes to the tables under the identity of this log; two servers run on copies of one data folder: stop one of them, \
             and give it a folder and a store of its own",
        );
    }

    fn source_offsets(&self) -> Vec<SourceOffset> {
        sources_of(&self.shared.log.lock().sources)
    }

    fn single_process(&self) -> bool {
        true
    }

    async fn close(&self) {
        self.heartbeat.abort();
        drop(self.queue.lock().take());
        // The sender lives in `shared`, so waiting cannot fail.
        let _ = self.shared.running.subscribe().wait_for(|n| *n == 0).await;
    }
}

fn sources_of(sources: &BTreeMap<String, i64>) -> Vec<SourceOffset> {
    sources.iter().map(|(source, &next)| SourceOffset { source: source.clone(), next }).collect()
}

fn check(settings: &LogSettings) -> Result<(), BusError> {
    let LogSettings { bytes_max, segment_bytes, .. } = settings;
    if *segment_bytes < files::SEGMENT_BYTES_MIN || segment_bytes.saturating_mul(2) > *bytes_max {
        let min = files::SEGMENT_BYTES_MIN;
        let text = format!(
            "a log of {bytes_max} bytes with segments of {segment_bytes} bytes is not possible: at least two segments of {min} bytes or more must fit"
        );
        return Err(BusError::Settings(text));
    }
    Ok(())
}

fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> Result<(), BusError> {
    let started = std::thread::Builder::new().name(name.to_owned()).spawn(run);
    started.map(drop).map_err(|source| BusError::Io { doing: format!("starting the thread {name}"), source })
}

/// Asks for a heartbeat again and again until the log is closed. A full queue is activity enough: the next beat comes.
async fn beat(clock: SharedClock, every: Duration, queue: mpsc::WeakSender<Command>) {
    loop {
        clock.sleep(every).await;
        let Some(queue) = queue.upgrade() else { return };
        if let Err(mpsc::error::TrySendError::Closed(_)) = queue.try_send(Command::Heartbeat) {
            return;
        }
    }
}
