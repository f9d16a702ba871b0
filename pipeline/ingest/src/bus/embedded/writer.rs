//! The writer thread: takes what waits, makes it durable as one group, delivers it, answers.
//!
//! # Invariants
//! - The position behind the last durable record moves only after an fsync; what is written is always written there.
//! - A group that does not fit is taken back as if it had never been encoded.
//!
//! # When it fails
//! A failed write or fsync ends the process: the page cache may now differ from the disk, and only a recovery can tell.

use super::files::LogFiles;
use super::recovery::note;
use super::replay::newest;
use super::{PARTITION, Running, Shared};
use crate::bus::BusError;
use crate::bus::record::{Content, Encoder, FLAG_HEAD, FLAG_HEARTBEAT, Scope, Stamp};
use crate::{Append, Delivery};
use fletch_common::failpoint;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};

/// Appends of one group at most.
const GROUP_APPENDS_MAX: usize = 1_024;
/// A group takes no further append once it weighs this much.
const GROUP_BYTES_MAX: u64 = 4 << 20;
/// Heartbeats without an fsync at most, in an idle log: then one is paid so that the offset moves and the log can be cut.
const IDLE_HEARTBEATS_MAX: u32 = 60;
/// The buffer is given back to the allocator when a group has made it larger than this.
const BUFFER_BYTES_MAX: usize = 16 << 20;

/// What the writer is asked to do.
#[derive(Debug)]
pub(super) enum Command {
    /// Make durable, deliver, answer.
    Append {
        append: Append,
        answer: oneshot::Sender<Result<(), BusError>>,
        /// Room in the queue, given back when the append is answered.
        room: OwnedSemaphorePermit,
    },
    /// Let time move.
    Heartbeat,
}

/// Bytes of an append in the queue and, about, in the log.
pub(super) fn weight(append: &Append) -> u64 {
    let metadata: usize = append.metadata.iter().map(|(_, m)| m.metric.len() + m.help.len() + m.unit.len() + 32).sum();
    (append.batch.len() * 20 + metadata + 64) as u64
}

type Answer = (oneshot::Sender<Result<(), BusError>>, OwnedSemaphorePermit);

/// State of the writer thread.
pub(super) struct Writer {
    shared: Arc<Shared>,
    encoder: Encoder,
    /// The active segment; none before the first write.
    active: Option<Active>,
    /// Offset of the next record.
    next: i64,
    /// Everything below is on the disk.
    synced: i64,
    /// `to` of the last live delivery.
    delivered: i64,
    idle_heartbeats: u32,
    buffer: Vec<u8>,
}

struct Active {
    file: Arc<File>,
    generation: u64,
    /// Where the next record goes.
    position: u64,
    /// Length of the head: a segment with `position == head` is empty.
    head: u64,
}

/// Why a group was not written.
enum Refused {
    Error(BusError),
    /// It does not fit into an empty segment.
    TooLarge {
        bytes: u64,
        limit: u64,
    },
}

impl From<BusError> for Refused {
    fn from(error: BusError) -> Self {
        Self::Error(error)
    }
}

impl Writer {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        let durable = shared.log.lock().durable;
        let encoder = Encoder::new(shared.wiring.registry.clone(), Scope::Segment);
        Self { shared, encoder, active: None, next: durable, synced: durable, delivered: durable, idle_heartbeats: 0, buffer: Vec::new() }
    }

    /// Runs until every sender of the queue is gone.
    pub(super) fn run(mut self, mut queue: mpsc::Receiver<Command>) {
        let _running = Running(self.shared.clone());
        let mut held: Option<Command> = None;
        while let Some(command) = held.take().or_else(|| queue.blocking_recv()) {
            match command {
                Command::Heartbeat => self.heartbeat(),
                Command::Append { append, answer, room } => {
                    let mut bytes = weight(&append);
                    let mut appends = vec![append];
                    let mut answers = vec![(answer, room)];
                    while bytes < GROUP_BYTES_MAX && appends.len() < GROUP_APPENDS_MAX {
                        match queue.try_recv() {
                            Ok(Command::Append { append, answer, room }) => {
                                bytes += weight(&append);
                                appends.push(append);
                                answers.push((answer, room));
                            }
                            Ok(other) => {
                                held = Some(other);
                                break;
                            }
                            Err(_) => break,
                        }
                    }
                    self.group(appends, answers);
                }
            }
        }
        self.sync_heartbeats();
    }

    /// Makes a group durable and answers it; one that is too large as a whole is written append by append.
    fn group(&mut self, appends: Vec<Append>, answers: Vec<Answer>) {
        if let Some(why) = self.shared.failed() {
            return refuse(answers, || BusError::Corrupt(why.to_string()));
        }
        let sizes: Vec<_> = appends.iter().map(|a| (a.batch.len(), a.metadata.len(), a.sources.len())).collect();
        let mut group = merge(appends);
        match self.write(&group) {
            Ok(append_time_ms) => {
                group.sources = newest(group.sources);
                self.publish(group, append_time_ms);
                answers.into_iter().for_each(|(answer, _room)| drop(answer.send(Ok(()))));
            }
            Err(Refused::TooLarge { .. }) if answers.len() > 1 => {
                for (append, answer) in split(group, &sizes).into_iter().zip(answers) {
                    self.group(vec![append], vec![answer]);
                }
            }
            Err(Refused::TooLarge { bytes, limit }) => refuse(answers, || BusError::TooLarge { bytes, limit }),
            Err(Refused::Error(error)) => self.refuse_group(answers, error),
        }
    }

    fn refuse_group(&self, answers: Vec<Answer>, error: BusError) {
        if let BusError::Full { what, limit, retry_after } = error {
            self.shared.wiring.metrics.refused.inc_by(answers.len() as u64);
            return refuse(answers, || BusError::Full { what, limit, retry_after });
        }
        tracing::error!(%error, "the log cannot be written");
        refuse(answers, || BusError::Io { doing: error.to_string(), source: std::io::ErrorKind::Other.into() });
    }

    /// Encodes, writes and syncs one group. Returns its append time.
    fn write(&mut self, group: &Append) -> Result<i64, Refused> {
        let append_time_ms = self.shared.wiring.clock.now_ms();
        let content = Content {
            series: &group.batch.series,
            times: &group.batch.times,
            values: &group.batch.values,
            metadata: &group.metadata,
            sources: &group.sources,
        };
        let records = self.encode(content, 0, append_time_ms)?;
        let begun = std::time::Instant::now();
        self.write_buffer(records);
        if let Err(error) = failpoint::pass("log-before-fsync") {
            end_process("passing a failpoint before the fsync of the log", &error);
        }
        self.sync();
        if let Err(error) = failpoint::pass("log-after-fsync") {
            end_process("passing a failpoint after the fsync of the log", &error);
        }
        let metrics = &self.shared.wiring.metrics;
        metrics.groups.inc();
        metrics.sync_seconds.observe(begun.elapsed().as_secs_f64());
        Ok(append_time_ms)
    }

    /// Fills the buffer with records that fit behind the last one, in a new segment if they must. Returns how many they are.
    fn encode(&mut self, content: Content<'_>, flags: u16, append_time_ms: i64) -> Result<i64, Refused> {
        if self.active.is_none() {
            self.begin_segment(append_time_ms)?;
        }
        let segment_bytes = self.shared.log.lock().files.segment_bytes();
        loop {
            let Some(active) = &self.active else { return Err(BusError::Closed.into()) };
            let (position, head, generation) = (active.position, active.head, active.generation);
            let stamp = self.stamp(flags, append_time_ms, generation);
            self.buffer.clear();
            let records = self.encoder.encode(content, stamp, &mut self.buffer).len();
            let bytes = self.buffer.len() as u64;
            if position + bytes <= segment_bytes {
                return Ok(records as i64);
            }
            self.encoder.undo();
            if position == head {
                return Err(Refused::TooLarge { bytes, limit: segment_bytes - head });
            }
            // Without the names of the old segment the group may be longer still: then the next round refuses it.
            self.begin_segment(append_time_ms)?;
        }
    }

    fn stamp(&self, flags: u16, append_time_ms: i64, generation: u64) -> Stamp {
        let log = self.shared.log.lock().files.uuid();
        Stamp { flags, append_time_ms, log, generation, offset: self.next, synced: self.synced }
    }

    /// Ends the active segment and begins the next one.
    fn begin_segment(&mut self, append_time_ms: i64) -> Result<(), BusError> {
        self.shared.log.lock().files.room_for_segment()?;
        self.sync_heartbeats();
        let mut log = self.shared.log.lock();
        let generation = log.files.next_generation();
        let sources = super::sources_of(&log.sources);
        let uuid = log.files.uuid();
        let stamp = Stamp { flags: FLAG_HEAD, append_time_ms, log: uuid, generation, offset: self.next, synced: self.synced };
        self.buffer.clear();
        let mut head = Encoder::new(self.shared.wiring.registry.clone(), Scope::Segment);
        head.encode(Content { sources: &sources, ..Content::default() }, stamp, &mut self.buffer);
        if self.buffer.len() as u64 >= log.files.segment_bytes() {
            let (bytes, limit) = (self.buffer.len() as u64, log.files.segment_bytes());
            return Err(BusError::TooLarge { bytes, limit });
        }
        let file = start_segment(&mut log.files, self.active.take(), &self.buffer, self.next)?;
        self.shared.wiring.metrics.held_bytes.set(i64::try_from(log.files.used_bytes()).unwrap_or(i64::MAX));
        let head = self.buffer.len() as u64;
        self.active = Some(Active { file, generation, position: head, head });
        self.encoder.new_scope();
        Ok(())
    }

    fn write_buffer(&mut self, records: i64) {
        let Some(active) = &mut self.active else { return };
        if let Err(error) = active.file.write_all_at(&self.buffer, active.position) {
            end_process("writing the log", &error);
        }
        active.position += self.buffer.len() as u64;
        self.next += records;
        self.shared.wiring.metrics.bytes.inc_by(self.buffer.len() as u64);
        if self.buffer.capacity() > BUFFER_BYTES_MAX {
            self.buffer = Vec::new();
        }
    }

    fn sync(&mut self) {
        if let Some(active) = &self.active
            && let Err(error) = active.file.sync_data()
        {
            end_process("syncing the log", &error);
        }
        self.synced = self.next;
        self.idle_heartbeats = 0;
    }

    /// After the fsync: moves the durable end and, when live, delivers.
    fn publish(&mut self, group: Append, append_time_ms: i64) {
        let Append { batch, metadata, sources } = group;
        let shared = self.shared.clone();
        let live = {
            let mut log = shared.log.lock();
            note(&mut log.sources, sources.clone());
            self.advance(&mut log)
        };
        if live {
            let (from, to) = (std::mem::replace(&mut self.delivered, self.next), self.next);
            let batch = Arc::new(batch);
            shared.deliver(&Delivery { partition: PARTITION, from, to, append_time_ms, batch, metadata, sources });
        }
    }

    /// Says what is durable now. Returns whether the writer delivers it.
    fn advance(&mut self, log: &mut super::Log) -> bool {
        if !log.live {
            // Until it is live the replay delivers, up to what is durable when it ends.
            self.delivered = self.synced;
        }
        log.durable = self.synced;
        if let Some(last) = log.files.last_mut() {
            last.end = self.synced;
        }
        log.live
    }

    /// Writes a heartbeat without an fsync and lets time move. Without room in the log it only lets time move.
    fn heartbeat(&mut self) {
        if self.shared.failed().is_some() {
            return;
        }
        let append_time_ms = self.shared.wiring.clock.now_ms();
        match self.encode(Content::default(), FLAG_HEARTBEAT, append_time_ms) {
            Ok(records) => {
                self.write_buffer(records);
                self.idle_heartbeats += 1;
            }
            Err(Refused::Error(BusError::Full { .. })) => {}
            Err(Refused::TooLarge { .. }) => tracing::error!("a heartbeat does not fit into a segment of the log"),
            Err(Refused::Error(error)) => tracing::error!(%error, "the log cannot be written: a heartbeat is missing in it"),
        }
        if self.idle_heartbeats >= IDLE_HEARTBEATS_MAX {
            self.sync_heartbeats();
        }
        let live = self.shared.log.lock().live;
        if live {
            let (from, to) = (std::mem::replace(&mut self.delivered, self.synced), self.synced);
            let batch = Arc::default();
            self.shared.deliver(&Delivery {
                partition: PARTITION,
                from,
                to,
                append_time_ms,
                batch,
                metadata: Vec::new(),
                sources: Vec::new(),
            });
        }
    }

    /// Makes heartbeats durable that were written without an fsync.
    fn sync_heartbeats(&mut self) {
        if self.synced < self.next {
            self.sync();
            let shared = self.shared.clone();
            self.advance(&mut shared.log.lock());
        }
    }
}

fn start_segment(files: &mut LogFiles, active: Option<Active>, head: &[u8], first: i64) -> Result<Arc<File>, BusError> {
    if let Some(active) = active {
        files.seal(active.position)?;
    }
    files.begin_segment(head, first)
}

fn refuse(answers: Vec<Answer>, error: impl Fn() -> BusError) {
    for (answer, _room) in answers {
        // Nobody waits when the request was cancelled.
        drop(answer.send(Err(error())));
    }
}

pub(super) fn merge(appends: Vec<Append>) -> Append {
    let mut appends = appends.into_iter();
    let mut all = appends.next().unwrap_or_default();
    for mut one in appends {
        all.batch.append(&mut one.batch);
        all.metadata.append(&mut one.metadata);
        all.sources.append(&mut one.sources);
    }
    all
}

/// The reverse of [`merge`].
pub(super) fn split(mut all: Append, sizes: &[(usize, usize, usize)]) -> Vec<Append> {
    let mut parts: Vec<_> = sizes
        .iter()
        .rev()
        .map(|&(samples, metadata, sources)| {
            let rows = all.batch.len() - samples;
            let mut part = Append::default();
            part.batch.series = all.batch.series.split_off(rows);
            part.batch.times = all.batch.times.split_off(rows);
            part.batch.values = all.batch.values.split_off(rows);
            part.metadata = all.metadata.split_off(all.metadata.len() - metadata);
            part.sources = all.sources.split_off(all.sources.len() - sources);
            part
        })
        .collect();
    parts.reverse();
    parts
}

/// Nothing that this process believes about the log can be trusted now.
fn end_process(doing: &str, error: &dyn std::fmt::Display) -> ! {
    tracing::error!(doing, %error, "ending the process: the log may differ from what the kernel shows");
    std::process::abort()
}
