//! The state of every assigned partition, and what moves it.
//!
//! ```text
//!             claimed, in range                     full, or the letters cannot be delivered
//!  Waiting ───────────────────────▶ Reading ──────────────────────────────────────────────▶ Blocked
//!     ▲                             │  ▲  └──────────────── appended ◀─────────────────────┘   │
//!     └── append failed, or unknown ┘  └─────────────────── appended ──────────────────────────┘
//!  revoked: the partition and its batch are dropped
//! ```
//!
//! One turn: read for a while ([`LINGER`] or until a bound is met), settle what has changed, append what was read.

use super::batch::{Batch, Decoding};
use super::config::OnGap;
use super::dead_letter::{DeadLetters, Fault};
use super::feed::{Event, Feed};
use super::format::Message;
use super::metrics::{PartitionLabels, SourceMetrics, of, of_reason};
use super::position::{self, Range, Start, TopicPartition};
use super::{Gap, SourceError};
use crate::{Bus, BusError};
use fletch_common::SharedClock;
use futures::future::join_all;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::runtime::Handle;

/// How long messages are collected before they are appended; the most that a message waits for its neighbours.
pub(super) const LINGER: Duration = Duration::from_millis(100);
/// Messages of one round of appends; a bound of its own because empty and poison messages have no rows.
const ROUND_MESSAGES_MAX: usize = 100_000;
/// Rows of one round of appends. One message may exceed it.
const ROUND_ROWS_MAX: usize = 65_536;
/// Bytes of messages and letters of one round of appends. One message may exceed it.
const ROUND_BYTES_MAX: usize = 8 << 20;
/// Bytes of batches that are kept while their partitions are blocked. Further ones are dropped and read again.
const HELD_BYTES_MAX: usize = 64 << 20;
/// Source partitions that are claimed at the same time, and in one turn.
const CLAIMS_MAX: usize = 8;
/// First pause after a failure; doubled with each further one.
const RETRY_MS_MIN: i64 = 500;
/// Longest pause after a failure.
const RETRY_MS_MAX: i64 = 30_000;
/// Longest pause when the bus has no room.
const FULL_RETRY_MS_MAX: i64 = 5_000;
/// How often Kafka is told the positions.
const COMMIT_EVERY_MS: i64 = 1_000;
/// How often the same kind of trouble is logged.
const LOG_EVERY_MS: i64 = 10_000;
/// How often the partitions of the topics are asked for again while some are not here.
const RECHECK_MS: i64 = 1_000;

/// What a source works with.
#[derive(Debug)]
pub(super) struct Wiring {
    pub(super) group: String,
    pub(super) cluster: String,
    pub(super) on_gap: OnGap,
    /// How long partitions may be elsewhere before the source of a bus of one process gives up.
    pub(super) grace_ms: i64,
    pub(super) bus: Arc<dyn Bus>,
    pub(super) decoding: Decoding,
    pub(super) letters: Option<Arc<dyn DeadLetters>>,
    pub(super) clock: SharedClock,
    pub(super) metrics: SourceMetrics,
    pub(super) runtime: Handle,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Not fetched: its position must be asked of the bus first.
    Waiting {
        retry_at_ms: i64,
    },
    Reading,
    /// Paused, its batch is tried again.
    Blocked {
        retry_at_ms: i64,
    },
}

/// One assigned partition.
#[derive(Debug)]
struct Partition {
    of: TopicPartition,
    source: String,
    place: Place,
    batch: Batch,
    /// Below this, messages have been read already.
    next: i64,
    /// What the bus has.
    durable: i64,
    /// Where the partition ends, as last heard.
    end: Option<i64>,
    failures: u32,
    /// Messages of one append; halved while appends are too large for the bus.
    messages_max: usize,
    /// A message that is too large for the bus by itself.
    condemned: Option<(i64, String)>,
}

/// How a batch fared.
#[derive(Debug)]
enum Outcome {
    Stored,
    Blocked { reason: &'static str, retry_ms: Option<i64>, error: String },
    Failed(String),
    TooLarge(String),
    Closed(BusError),
}

/// What was read since the last round, over all partitions.
#[derive(Debug, Default)]
struct Round {
    messages: usize,
    rows: usize,
    bytes: usize,
    /// A partition has as many messages as one of its appends may have.
    full: bool,
}

impl Round {
    fn is_due(&self) -> bool {
        self.full || self.messages >= ROUND_MESSAGES_MAX || self.rows >= ROUND_ROWS_MAX || self.bytes >= ROUND_BYTES_MAX
    }
}

/// What events change.
#[derive(Debug, Default)]
struct State {
    partitions: Vec<Partition>,
    /// Index of the partition of the last message: they come in runs.
    last: usize,
    round: Round,
    /// Whether the assignment is to be checked.
    changed: bool,
    /// Whether every partition of the topics is here, as far as that matters.
    all_here: bool,
    /// Since when it is not, and when to look again.
    incomplete: Option<(i64, i64)>,
    out_of_range: bool,
    fatal: Option<String>,
    /// When trouble may be logged again.
    trouble_at_ms: i64,
    /// When faults may be logged again.
    faults_at_ms: i64,
    /// When unbounded labels may be logged again.
    labels_at_ms: i64,
}

/// A source: the feed, its partitions, and what they are appended to.
#[derive(Debug)]
pub(super) struct Collector<F> {
    feed: F,
    wiring: Wiring,
    state: State,
    to_commit: BTreeMap<TopicPartition, i64>,
    commit_at_ms: i64,
}

impl<F: Feed> Collector<F> {
    pub(super) fn new(feed: F, wiring: Wiring) -> Self {
        let state = State { all_here: !wiring.bus.single_process(), ..State::default() };
        Self { feed, wiring, state, to_commit: BTreeMap::new(), commit_at_ms: 0 }
    }

    #[cfg(test)]
    pub(super) fn feed(&mut self) -> &mut F {
        &mut self.feed
    }

    /// Reads for at most `wait`, then appends what was read.
    ///
    /// # Errors
    /// When the source cannot go on.
    pub(super) fn turn(&mut self, wait: Duration) -> Result<(), SourceError> {
        self.read(wait)?;
        self.check_all_here()?;
        if std::mem::take(&mut self.state.out_of_range) {
            self.look_again();
        }
        self.place()?;
        self.append()?;
        self.commit(false);
        Ok(())
    }

    /// Appends what was read and tells Kafka the positions. What does not succeed now is read again at the next start.
    pub(super) fn finish(&mut self) -> Result<(), SourceError> {
        self.append()?;
        self.commit(true);
        Ok(())
    }

    fn read(&mut self, wait: Duration) -> Result<(), SourceError> {
        let begun = Instant::now();
        loop {
            let left = wait.saturating_sub(begun.elapsed());
            let (state, wiring) = (&mut self.state, &self.wiring);
            self.feed.poll(left, &mut |event| state.take(event, wiring));
            if let Some(reason) = self.state.fatal.take() {
                return Err(SourceError::Client { group: self.wiring.group.clone(), reason });
            }
            if self.state.changed || self.state.out_of_range || self.state.round.is_due() || begun.elapsed() >= wait {
                return Ok(());
            }
        }
    }

    /// F5: a bus of one process must have all partitions of the topics here.
    fn check_all_here(&mut self) -> Result<(), SourceError> {
        let now_ms = self.wiring.clock.now_ms();
        let again = self.state.incomplete.is_some_and(|(_, again_at_ms)| again_at_ms <= now_ms);
        if !std::mem::take(&mut self.state.changed) && !again || !self.wiring.bus.single_process() {
            return Ok(());
        }
        let since_ms = self.state.incomplete.map_or(now_ms, |(since_ms, _)| since_ms);
        self.state.incomplete = Some((since_ms, now_ms + RECHECK_MS));
        let all = match self.feed.partitions() {
            Ok(all) => all,
            Err(error) => {
                // Not known is not missing: the time of grace begins with an answer.
                self.state.incomplete = Some((now_ms, now_ms + RECHECK_MS));
                self.state.trouble(&error, &self.wiring);
                return Ok(());
            }
        };
        let assigned: BTreeSet<TopicPartition> = self.state.partitions.iter().map(|p| p.of.clone()).collect();
        let Some(missing) = position::missing(&all, &assigned) else {
            (self.state.all_here, self.state.incomplete) = (true, None);
            return Ok(());
        };
        self.state.all_here = false;
        self.stop_reading(now_ms);
        if now_ms - since_ms < self.wiring.grace_ms {
            return Ok(());
        }
        let (group, missing) = (self.wiring.group.clone(), missing.to_string());
        Err(SourceError::NotAlone { group, assigned: assigned.len(), total: all.len(), missing })
    }

    /// The client has met an offset that a topic does not have. It does not say where, so every position is asked for again.
    fn look_again(&mut self) {
        let retry_at_ms = self.wiring.clock.now_ms() + RETRY_MS_MIN;
        self.stop_reading(retry_at_ms);
    }

    fn stop_reading(&mut self, retry_at_ms: i64) {
        for partition in self.state.partitions.iter_mut().filter(|p| !matches!(p.place, Place::Waiting { .. })) {
            partition.lose_place(&mut self.feed, retry_at_ms);
        }
    }

    /// F2, F3: asks the bus where the waiting partitions go on, and starts them there. A few at a time: the group wants to be polled.
    fn place(&mut self) -> Result<(), SourceError> {
        let now_ms = self.wiring.clock.now_ms();
        if !self.state.all_here {
            return Ok(());
        }
        let due = |p: &Partition| matches!(p.place, Place::Waiting { retry_at_ms } if retry_at_ms <= now_ms);
        let due = self.state.partitions.iter().enumerate().filter(|(_, p)| due(p)).take(CLAIMS_MAX);
        let claims = due.map(|(i, p)| {
            let (bus, source) = (self.wiring.bus.clone(), p.source.clone());
            async move { (i, bus.claim_source(&source).await) }
        });
        let claimed = self.wiring.runtime.block_on(join_all(claims));
        // All ranges before the first start: a fetch that waits for messages holds up every later question to its broker.
        let found: Vec<_> =
            claimed.into_iter().map(|(i, claimed)| self.find(i, claimed).map(|found| (i, found))).collect::<Result<_, _>>()?;
        for (i, found) in found {
            self.start(i, found);
        }
        Ok(())
    }

    /// Where a claimed partition begins, and which offset that is.
    fn find(&self, i: usize, claimed: Result<Option<i64>, BusError>) -> Result<Result<(Start, i64), String>, SourceError> {
        let of = &self.state.partitions[i].of;
        let stored = match claimed {
            Err(source @ BusError::Closed) => return Err(SourceError::Bus { group: self.wiring.group.clone(), source }),
            Err(error) => return Ok(Err(error.to_string())),
            Ok(stored) => stored,
        };
        let range = match self.feed.range(of) {
            Err(error) => return Ok(Err(error)),
            Ok(range) => range,
        };
        let start = resolve(of, stored, range, &self.wiring)?;
        Ok(Ok((start, if let Start::At(next) = start { next } else { range.low })))
    }

    fn start(&mut self, i: usize, found: Result<(Start, i64), String>) {
        let Self { feed, wiring, state, .. } = self;
        let partition = &mut state.partitions[i];
        match found.and_then(|(start, next)| feed.start(&partition.of, start).map(|()| next)) {
            Ok(next) => {
                (partition.place, partition.next, partition.durable) = (Place::Reading, next, next);
                tracing::info!(partition = %partition.of, next, "reading a foreign topic");
            }
            Err(error) => {
                let retry_ms = partition.next_retry_ms();
                partition.place = Place::Waiting { retry_at_ms: wiring.clock.now_ms() + retry_ms };
                tracing::warn!(partition = %partition.of, error, retry_ms, "cannot start to read a foreign topic");
            }
        }
    }

    /// Delivers what was read: letters first, then the append. All partitions at the same time, so that they share an fsync.
    fn append(&mut self) -> Result<(), SourceError> {
        self.state.round = Round::default();
        let Wiring { bus, letters, clock, metrics, runtime, .. } = &self.wiring;
        let now_ms = clock.now_ms();
        let due = self.state.partitions.iter_mut().enumerate().filter(|(_, p)| match p.place {
            Place::Waiting { .. } => false,
            Place::Reading => !p.batch.is_empty(),
            Place::Blocked { retry_at_ms } => retry_at_ms <= now_ms,
        });
        let sends = due.map(|(i, p)| async move { (i, p.send(bus.as_ref(), letters.as_deref(), metrics).await) });
        let outcomes = runtime.block_on(join_all(sends));
        outcomes.into_iter().try_for_each(|(i, outcome)| self.settle(i, outcome))
    }

    fn settle(&mut self, i: usize, outcome: Outcome) -> Result<(), SourceError> {
        let now_ms = self.wiring.clock.now_ms();
        match outcome {
            Outcome::Stored => self.stored(i, now_ms),
            Outcome::Blocked { reason, retry_ms, error } => self.blocked(i, now_ms, reason, retry_ms, &error),
            Outcome::Closed(source) => return Err(SourceError::Bus { group: self.wiring.group.clone(), source }),
            Outcome::Failed(error) => {
                let partition = &mut self.state.partitions[i];
                let retry_ms = partition.next_retry_ms();
                tracing::warn!(partition = %partition.of, error, retry_ms, "an append of a foreign topic failed; asking the bus what it has");
                self.wiring.metrics.append_failures.get_or_create(&of(&partition.of.topic)).inc();
                partition.lose_place(&mut self.feed, now_ms + retry_ms);
            }
            Outcome::TooLarge(error) => {
                let partition = &mut self.state.partitions[i];
                partition.shrink(error);
                partition.lose_place(&mut self.feed, now_ms);
            }
        }
        Ok(())
    }

    fn stored(&mut self, i: usize, now_ms: i64) {
        let Self { feed, wiring, state, to_commit, .. } = self;
        let partition = &mut state.partitions[i];
        if matches!(partition.place, Place::Blocked { .. }) {
            feed.resume(&partition.of);
        }
        if let Some(next) = partition.batch.next() {
            partition.durable = next;
            to_commit.insert(partition.of.clone(), next);
        }
        partition.count(&wiring.metrics, wiring.letters.is_some());
        partition.show_lag(&wiring.metrics);
        if let Some((offset, fault)) = partition.batch.last_fault.take().filter(|_| state.faults_at_ms <= now_ms) {
            state.faults_at_ms = now_ms + LOG_EVERY_MS;
            let (faulty, letters) = (partition.batch.faulty, wiring.letters.is_some());
            tracing::warn!(partition = %partition.of, offset, fault, faulty, dead_letters = letters, "messages of a foreign topic cannot be used");
        }
        if let Some(label) = partition.batch.decoded.unbounded_label.filter(|_| state.labels_at_ms <= now_ms) {
            state.labels_at_ms = now_ms + LOG_EVERY_MS;
            tracing::warn!(partition = %partition.of, label, "series of a foreign topic have a label whose values are unbounded");
        }
        partition.batch.clear();
        (partition.place, partition.failures) = (Place::Reading, 0);
        partition.messages_max = partition.messages_max.saturating_mul(2).min(ROUND_MESSAGES_MAX);
    }

    fn blocked(&mut self, i: usize, now_ms: i64, reason: &'static str, retry_ms: Option<i64>, error: &str) {
        let held = self.state.partitions.iter().filter(|p| matches!(p.place, Place::Blocked { .. })).map(|p| p.batch.bytes).sum::<usize>();
        let Self { feed, wiring, state, .. } = self;
        let partition = &mut state.partitions[i];
        let first = partition.place == Place::Reading;
        let retry_at_ms = now_ms + retry_ms.unwrap_or_else(|| partition.next_retry_ms());
        if first {
            wiring.metrics.pauses.get_or_create(&of_reason(&partition.of.topic, reason)).inc();
            tracing::warn!(partition = %partition.of, error, "a foreign topic has to wait");
        }
        if first && held + partition.batch.bytes > HELD_BYTES_MAX {
            return partition.lose_place(feed, retry_at_ms);
        }
        if first {
            feed.pause(&partition.of);
        }
        partition.place = Place::Blocked { retry_at_ms };
    }

    fn commit(&mut self, wait: bool) {
        let now_ms = self.wiring.clock.now_ms();
        if self.to_commit.is_empty() || !wait && now_ms < self.commit_at_ms {
            return;
        }
        self.feed.commit(&self.to_commit, wait);
        self.to_commit.clear();
        self.commit_at_ms = now_ms + COMMIT_EVERY_MS;
    }
}

/// Where to start, or the gap, when it is not accepted.
fn resolve(partition: &TopicPartition, stored: Option<i64>, range: Range, wiring: &Wiring) -> Result<Start, SourceError> {
    position::start(partition, stored, range).or_else(|gap: Gap| match wiring.on_gap {
        OnGap::Stop => Err(SourceError::Gap { group: wiring.group.clone(), gap }),
        OnGap::Skip => {
            tracing::error!(%gap, "messages of a foreign topic are lost; going on without them, as `on_gap: skip` says");
            wiring.metrics.gaps.get_or_create(&of(&partition.topic)).inc();
            Ok(Start::Earliest)
        }
    })
}

impl State {
    fn take(&mut self, event: Event<'_>, wiring: &Wiring) {
        match event {
            Event::Message(message) => self.message(&message, wiring),
            Event::Assigned(list) => {
                self.changed = true;
                for one in list {
                    if !self.partitions.iter().any(|p| p.of == one) {
                        self.partitions.push(Partition::new(one, &wiring.cluster));
                    }
                }
            }
            Event::Revoked(list) => {
                self.changed = true;
                for gone in self.partitions.extract_if(.., |p| list.contains(&p.of)) {
                    wiring.bus.unclaim_source(&gone.source);
                    wiring.metrics.lag.remove(&gone.lag_labels());
                }
            }
            Event::Ends(ends) => {
                for (of, end) in ends {
                    if let Some(partition) = self.partitions.iter_mut().find(|p| p.of == of) {
                        partition.end = Some(end);
                        partition.show_lag(&wiring.metrics);
                    }
                }
            }
            Event::OutOfRange(error) => {
                self.out_of_range = true;
                self.trouble(&error, wiring);
            }
            Event::Trouble(error) => self.trouble(&error, wiring),
            Event::Fatal(error) => self.fatal = Some(error),
        }
    }

    fn message(&mut self, message: &Message<'_>, wiring: &Wiring) {
        let is_it = |p: &Partition| p.of.number == message.partition && p.of.topic == message.topic;
        if !self.partitions.get(self.last).is_some_and(is_it) {
            let Some(found) = self.partitions.iter().position(is_it) else { return };
            self.last = found;
        }
        let partition = &mut self.partitions[self.last];
        // What was fetched before a pause or a new start may still be on its way.
        if partition.place != Place::Reading || message.offset < partition.next {
            return;
        }
        partition.next = message.offset + 1;
        let (rows, bytes) = (partition.batch.rows(), partition.batch.bytes);
        match partition.condemned.take_if(|(offset, _)| *offset == message.offset) {
            Some((_, error)) => {
                let fault = Fault { kind: "too_large", decoder: "fletch.bus", message: error };
                partition.batch.condemn(&wiring.decoding, message, fault);
            }
            None => partition.batch.add(&wiring.decoding, message, wiring.clock.now_ms()),
        }
        self.round.messages += 1;
        self.round.rows += partition.batch.rows() - rows;
        self.round.bytes += partition.batch.bytes - bytes;
        self.round.full |= partition.batch.messages >= partition.messages_max;
    }

    fn trouble(&mut self, error: &str, wiring: &Wiring) {
        let now_ms = wiring.clock.now_ms();
        if self.trouble_at_ms <= now_ms {
            self.trouble_at_ms = now_ms + LOG_EVERY_MS;
            tracing::warn!(group = wiring.group, error, "kafka source");
        }
    }
}

impl Partition {
    fn new(of: TopicPartition, cluster: &str) -> Self {
        Self {
            source: of.source(cluster),
            of,
            place: Place::Waiting { retry_at_ms: i64::MIN },
            batch: Batch::default(),
            next: 0,
            durable: 0,
            end: None,
            failures: 0,
            messages_max: ROUND_MESSAGES_MAX,
            condemned: None,
        }
    }

    /// F4, F1. On anything but [`Outcome::Stored`] the batch is still there, less the letters that were delivered.
    async fn send(&mut self, bus: &dyn Bus, letters: Option<&dyn DeadLetters>, metrics: &SourceMetrics) -> Outcome {
        if let Some(door) = letters.filter(|_| !self.batch.letters.is_empty()) {
            let before = self.batch.letters.len();
            let delivered = door.deliver(&mut self.batch.letters).await;
            metrics.dead_letters.get_or_create(&of(&self.of.topic)).inc_by((before - self.batch.letters.len()) as u64);
            if let Err(error) = delivered {
                return Outcome::Blocked { reason: "dead_letter_topic", retry_ms: None, error };
            }
        }
        let Some(append) = self.batch.append(&self.source) else { return Outcome::Stored };
        match bus.append(append).await {
            Ok(()) => Outcome::Stored,
            Err(error @ BusError::Full { retry_after, .. }) => {
                let retry_ms = i64::try_from(retry_after.as_millis()).unwrap_or(i64::MAX).clamp(RETRY_MS_MIN, FULL_RETRY_MS_MAX);
                Outcome::Blocked { reason: "bus_full", retry_ms: Some(retry_ms), error: error.to_string() }
            }
            Err(error @ BusError::TooLarge { .. }) => Outcome::TooLarge(error.to_string()),
            Err(error @ BusError::Closed) => Outcome::Closed(error),
            Err(error) => Outcome::Failed(error.to_string()),
        }
    }

    /// Drops what was read; the position is asked of the bus again.
    fn lose_place(&mut self, feed: &mut impl Feed, retry_at_ms: i64) {
        feed.stop(&self.of);
        self.batch.clear();
        self.place = Place::Waiting { retry_at_ms };
    }

    /// After an append that was too large for the bus: smaller ones, and in the end the message itself is poison.
    fn shrink(&mut self, error: String) {
        if self.batch.messages > 1 {
            self.messages_max = self.batch.messages.div_ceil(2);
        } else {
            self.condemned = self.batch.next().map(|next| (next - 1, error));
        }
    }

    fn next_retry_ms(&mut self) -> i64 {
        let retry_ms = (RETRY_MS_MIN << self.failures.min(16)).min(RETRY_MS_MAX);
        self.failures = self.failures.saturating_add(1);
        retry_ms
    }

    fn count(&self, metrics: &SourceMetrics, has_letters: bool) {
        let (topic, batch) = (&self.of.topic, &self.batch);
        let stats = &batch.decoded.stats;
        metrics.records.get_or_create(&of(topic)).inc_by(batch.messages as u64);
        metrics.samples.get_or_create(&of(topic)).inc_by(stats.accepted);
        for (reason, refused) in stats.rejected_by_reason() {
            metrics.rejected.get_or_create(&of_reason(topic, reason.as_str())).inc_by(refused);
        }
        for (kind, messages) in &batch.poison {
            metrics.poison.get_or_create(&of_reason(topic, kind)).inc_by(*messages);
        }
        if !has_letters {
            metrics.dropped.get_or_create(&of(topic)).inc_by(batch.faulty);
        }
    }

    fn lag_labels(&self) -> PartitionLabels {
        PartitionLabels { topic: self.of.topic.clone(), partition: self.of.number }
    }

    fn show_lag(&self, metrics: &SourceMetrics) {
        if let (Some(end), false) = (self.end, matches!(self.place, Place::Waiting { .. })) {
            metrics.lag.get_or_create(&self.lag_labels()).set((end - self.durable).max(0));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_is_due_at_each_of_its_bounds() {
        let round = |messages, rows, bytes| Round { messages, rows, bytes, full: false }.is_due();
        assert!(!round(ROUND_MESSAGES_MAX - 1, ROUND_ROWS_MAX - 1, ROUND_BYTES_MAX - 1));
        assert!(round(ROUND_MESSAGES_MAX, 0, 0) && round(1, ROUND_ROWS_MAX, 0) && round(1, 0, ROUND_BYTES_MAX));
        assert!(Round { full: true, ..Round::default() }.is_due());
    }

    #[test]
    fn pauses_double_up_to_the_longest() {
        let mut partition = Partition::new(TopicPartition::new("t", 0), "c");
        let pauses: Vec<i64> = (0..9).map(|_| partition.next_retry_ms()).collect();
        assert_eq!(pauses, [500, 1_000, 2_000, 4_000, 8_000, 16_000, 30_000, 30_000, 30_000]);
        partition.failures = u32::MAX;
        assert_eq!(partition.next_retry_ms(), RETRY_MS_MAX);
    }
}
