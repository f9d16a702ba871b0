//! The reader thread: joins the group, starts each partition where the tables ended, and delivers.
//!
//! # Invariants
//! - Everything that touches a partition (assignment, delivery, revocation) happens on this thread, one after the other.
//! - `from` of a delivery is `to` of the one before, also across the gaps that transaction markers leave in the offsets.
//! - What was read of a revoked partition and not delivered is dropped: the topic has it.

use super::client::{self, log};
use super::{KafkaSettings, KafkaState, Shared};
use crate::bus::record::{Decoded, Decoder, Record, RecordError, Scope};
use crate::bus::{BatchSink, BusError, Partition};
use crate::{Delivery, SampleBatch};
use rdkafka::Offset;
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Message};
use rdkafka::topic_partition_list::TopicPartitionList;
use rdkafka::types::RDKafkaRespErr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// How long the thread waits for a message before it looks whether it shall stop.
const POLL: Duration = Duration::from_millis(100);
/// How long a question for the ends of a partition may take.
const WATERMARKS_TIMEOUT: Duration = Duration::from_secs(30);
/// How long going back to an offset may take.
const SEEK_TIMEOUT: Duration = Duration::from_secs(30);
/// Samples of all partitions that are collected before they are delivered.
const MERGE_SAMPLES_MIN: usize = 256 << 10;
/// Messages after which they are delivered, whatever they hold.
const MERGE_MESSAGES_MAX: usize = 1_024;

/// A partition of ours.
#[derive(Debug)]
pub(super) struct Owned {
    /// The next offset to take.
    next: i64,
    /// `to` of the last delivery.
    pub(super) delivered: i64,
    /// Where each sink begins.
    starts: Vec<i64>,
    /// Whether its end was seen.
    at_end: bool,
    /// Whether everything up to a seen end was delivered.
    caught_up: bool,
    pending: Option<Pending>,
}

/// Read, not delivered.
#[derive(Debug)]
struct Pending {
    /// Offset of its first message.
    first: i64,
    append_time_ms: i64,
    content: Decoded,
}

/// Handles assignments.
#[derive(Debug)]
pub(super) struct ReaderContext {
    shared: Arc<Shared>,
}

impl ClientContext for ReaderContext {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::warn!(%error, reason, "kafka");
    }
}

impl ConsumerContext for ReaderContext {
    fn rebalance(&self, consumer: &BaseConsumer<Self>, event: RDKafkaRespErr, partitions: &mut TopicPartitionList) {
        let result = match event {
            RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS => self.assign(consumer, partitions),
            _ => self.revoke(consumer, partitions),
        };
        if let Err(error) = result {
            self.shared.fail(&error.to_string());
        }
        self.shared.progress.send_replace(());
    }

    fn commit_callback(&self, result: KafkaResult<()>, _offsets: &TopicPartitionList) {
        if let Err(error) = result {
            // For tools only; the next one replaces it.
            tracing::debug!(%error, "kafka did not take an offset");
        }
    }
}

impl ReaderContext {
    fn assign(&self, consumer: &BaseConsumer<Self>, partitions: &TopicPartitionList) -> Result<(), BusError> {
        let mut starts = TopicPartitionList::new();
        for element in partitions.elements() {
            let start = self.begin(consumer, element.partition())?;
            starts
                .add_partition_offset(element.topic(), element.partition(), Offset::Offset(start))
                .map_err(|e| client::failed("assigning", &e))?;
        }
        consumer.incremental_assign(&starts).map_err(|e| client::failed("taking over partitions", &e))?;
        self.shared.joined.store(true, Ordering::Release);
        self.shared.judge();
        Ok(())
    }

    /// Asks the sinks where a partition continues and whether the topic still has that.
    fn begin(&self, consumer: &BaseConsumer<Self>, number: i32) -> Result<i64, BusError> {
        let topic = &self.shared.topic;
        let partition = Partition::try_from(number).map_err(|_| BusError::Kafka(format!("partition {number} was assigned")))?;
        let doing = format!("asking for the ends of partition {number} of `{topic}`");
        let (low, high) = consumer.fetch_watermarks(topic, number, WATERMARKS_TIMEOUT).map_err(|e| client::failed(&doing, &e))?;
        let mut answers = Vec::new();
        for sink in &self.shared.wiring.sinks {
            answers.push(sink.assigned(partition)?);
        }
        let leader = answers.iter().flatten().next().copied();
        let out_of_range = |wanted: i64| out_of_range(topic, number, wanted, low, high);
        if let Some(wanted) = leader.filter(|o| !(low..=high).contains(o)) {
            return Err(out_of_range(wanted));
        }
        if leader.is_none() && low > 0 && !answers.is_empty() {
            return Err(out_of_range(0));
        }
        let follow = leader.unwrap_or(low);
        let mut starts = Vec::with_capacity(answers.len());
        for answer in answers {
            let wanted = answer.unwrap_or(follow);
            if wanted > high {
                return Err(out_of_range(wanted));
            }
            starts.push(wanted.max(low));
        }
        let start = starts.iter().min().copied().unwrap_or(follow);
        tracing::info!(topic, partition, start, low, high, "took over a partition");
        let owned = Owned { next: start, delivered: start, starts, at_end: false, caught_up: start >= high, pending: None };
        self.shared.owned.lock().insert(partition, owned);
        Ok(start)
    }

    /// Begins a partition anew that is still ours: the offset in the tables is not where this process left it.
    fn restart(&self, consumer: &BaseConsumer<Self>, partition: Partition) -> Result<(), BusError> {
        if self.shared.owned.lock().remove(&partition).is_none() {
            return Ok(());
        }
        for sink in &self.shared.wiring.sinks {
            sink.revoked(partition);
        }
        let number = i32::try_from(partition).map_err(|_| BusError::Kafka(format!("partition {partition} was overtaken")))?;
        let start = self.begin(consumer, number)?;
        let doing = format!("going back to offset {start} of partition {partition}");
        consumer.seek(&self.shared.topic, number, Offset::Offset(start), SEEK_TIMEOUT).map_err(|e| client::failed(&doing, &e))
    }

    fn revoke(&self, consumer: &BaseConsumer<Self>, partitions: &TopicPartitionList) -> Result<(), BusError> {
        for element in partitions.elements() {
            let Ok(partition) = Partition::try_from(element.partition()) else { continue };
            if self.shared.owned.lock().remove(&partition).is_none() {
                continue;
            }
            tracing::info!(topic = self.shared.topic, partition, "a partition was taken away");
            for sink in &self.shared.wiring.sinks {
                sink.revoked(partition);
            }
        }
        if consumer.assignment_lost() {
            // The group went on without us: what we own is open until the next assignment.
            self.shared.joined.store(false, Ordering::Release);
        }
        self.shared.judge();
        consumer.incremental_unassign(partitions).map_err(|e| client::failed("giving partitions back", &e))
    }
}

fn out_of_range(topic: &str, partition: i32, wanted: i64, low: i64, high: i64) -> BusError {
    let gap = if wanted < low { format!("{wanted} to {low}") } else { format!("{high} to {wanted}") };
    BusError::Corrupt(format!(
        "the tables continue at offset {wanted} of partition {partition} of topic `{topic}`, but the topic holds {low} to {high}: offsets {gap} are \
         missing; either its retention is shorter than the time since the last commit, or this store and this topic do not belong together"
    ))
}

impl Shared {
    /// Says anew how far the process is.
    fn judge(&self) {
        let now = match self.joined.load(Ordering::Acquire) {
            false => KafkaState::Joining,
            true if self.owned.lock().values().all(|o| o.caught_up) => KafkaState::Ready,
            true => KafkaState::Replaying,
        };
        self.state.send_if_modified(|state| {
            let changed = !matches!(state, KafkaState::Failed(_)) && *state != now;
            if changed {
                *state = now;
            }
            changed
        });
    }
}

/// Tells Kafka how far the tables are.
pub(super) fn commit(consumer: &BaseConsumer<ReaderContext>, topic: &str, partition: Partition, next: i64) {
    let Ok(number) = i32::try_from(partition) else { return };
    let mut offsets = TopicPartitionList::new();
    let committed =
        offsets.add_partition_offset(topic, number, Offset::Offset(next)).and_then(|()| consumer.commit(&offsets, CommitMode::Async));
    if let Err(error) = committed {
        tracing::debug!(%error, partition, "kafka did not take an offset");
    }
}

/// Joins the group and starts the thread.
pub(super) fn start(settings: &KafkaSettings, shared: &Arc<Shared>) -> Result<(), BusError> {
    let defaults = [("session.timeout.ms", "15000"), ("queued.max.messages.kbytes", "32768")];
    let fixed = [
        ("group.id", settings.group.as_str()),
        ("enable.auto.commit", "false"),
        ("auto.offset.reset", "error"),
        ("isolation.level", "read_committed"),
        ("partition.assignment.strategy", "cooperative-sticky"),
        ("enable.partition.eof", "true"),
        ("allow.auto.create.topics", "false"),
    ];
    let config = client::settings_config(settings, &defaults, &fixed);
    let context = ReaderContext { shared: shared.clone() };
    let consumer: Arc<BaseConsumer<ReaderContext>> = Arc::new(config.create_with_context(context).map_err(|e| client::wrong_property(&e))?);
    *shared.consumer.lock() = Arc::downgrade(&consumer);
    consumer.subscribe(&[&settings.topic]).map_err(|e| client::failed("joining the group", &e))?;
    let shared = shared.clone();
    let reader = Reader { decoder: Decoder::new(shared.wiring.registry.clone(), Scope::Record), consumer, shared };
    let started = std::thread::Builder::new().name("kafka-reader".into()).spawn(move || reader.run());
    started.map(drop).map_err(|source| BusError::Io { doing: "starting the thread kafka-reader".into(), source })
}

struct Reader {
    shared: Arc<Shared>,
    consumer: Arc<BaseConsumer<ReaderContext>>,
    decoder: Decoder,
}

/// Says that the thread is gone, however it ends.
struct Gone(Arc<Shared>);

impl Drop for Gone {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.fail("the thread that reads the bus has panicked");
        }
        self.0.reader_gone.send_replace(true);
    }
}

impl Reader {
    fn run(mut self) {
        let _gone = Gone(self.shared.clone());
        while !self.shared.stop.load(Ordering::Acquire) && self.shared.failed().is_none() {
            if let Err(error) = self.round() {
                self.shared.fail(&error.to_string());
            }
        }
        // Leaves the group, which revokes what is left.
        drop(self.consumer);
    }

    /// Takes what is there and delivers it.
    fn round(&mut self) -> Result<(), BusError> {
        let overtaken = std::mem::take(&mut *self.shared.overtaken.lock());
        for partition in overtaken {
            self.consumer.context().restart(&self.consumer, partition)?;
        }
        let (mut messages, mut samples, mut wait) = (0, 0, POLL);
        let consumer = self.consumer.clone();
        while messages < MERGE_MESSAGES_MAX && samples < MERGE_SAMPLES_MIN {
            match consumer.poll(wait) {
                None => break,
                Some(Ok(message)) => samples += self.take(&message)?,
                Some(Err(error)) => self.event(error)?,
            }
            messages += 1;
            wait = Duration::ZERO;
        }
        if messages > 0 {
            self.deliver_all();
        }
        Ok(())
    }

    fn event(&mut self, error: KafkaError) -> Result<(), BusError> {
        match error {
            KafkaError::PartitionEOF(number) => {
                let mut all = self.shared.owned.lock();
                if let Some(owned) = Partition::try_from(number).ok().and_then(|p| all.get_mut(&p)) {
                    owned.at_end = true;
                }
                Ok(())
            }
            KafkaError::MessageConsumptionFatal(code) => Err(BusError::Kafka(format!("reading the bus: {code}"))),
            KafkaError::MessageConsumption(code @ (RDKafkaErrorCode::AutoOffsetReset | RDKafkaErrorCode::OffsetOutOfRange)) => Err(
                BusError::Corrupt(format!("the topic of the bus lost records before they were read ({code}): its retention is too short")),
            ),
            error => {
                // The client goes on by itself when the broker is back.
                tracing::warn!(%error, "reading the bus");
                Ok(())
            }
        }
    }

    /// Decodes a message and adds it to what is pending of its partition. Returns the number of samples.
    fn take(&mut self, message: &BorrowedMessage<'_>) -> Result<usize, BusError> {
        let Ok(partition) = Partition::try_from(message.partition()) else { return Ok(0) };
        let expected = self.shared.owned.lock().get(&partition).is_some_and(|o| o.next <= message.offset());
        if !expected || self.shared.paused.load(Ordering::Acquire) {
            return Ok(0);
        }
        let append_time_ms = message.timestamp().to_millis().unwrap_or_else(|| self.shared.wiring.clock.now_ms());
        let content = self.decode(message)?;
        let samples = content.batch.len();
        self.give_out(partition, message.offset(), append_time_ms, content);
        Ok(samples)
    }

    fn decode(&mut self, message: &BorrowedMessage<'_>) -> Result<Decoded, BusError> {
        let mut content = Decoded::default();
        let (topic, partition, offset) = (&self.shared.topic, message.partition(), message.offset());
        match Record::check(message.payload().unwrap_or_default()).and_then(|record| self.decoder.decode(&record, &mut content)) {
            Ok(()) => Ok(content),
            Err(error @ (RecordError::Magic | RecordError::Short { .. })) => {
                tracing::error!(topic, partition, offset, %error, "skipped a message that is not a record of ours");
                self.shared.wiring.metrics.skipped.inc();
                Ok(Decoded::default())
            }
            Err(error) => Err(BusError::Corrupt(format!("message {offset} of partition {partition} of topic `{topic}`: {error}"))),
        }
    }

    fn give_out(&mut self, partition: Partition, offset: i64, append_time_ms: i64, mut content: Decoded) {
        let all = self.shared.owned.lock();
        let Some(owned) = all.get(&partition) else { return };
        let starts = owned.starts.clone();
        // A merged delivery never reaches over the start of a sink.
        let split = owned.pending.as_ref().is_some_and(|p| starts.iter().any(|start| (p.first + 1..=offset).contains(start)));
        drop(all);
        if split {
            self.deliver(partition);
        }
        let Some(from) = self.shared.owned.lock().get_mut(&partition).map(|o| std::mem::replace(&mut o.next, offset + 1)) else { return };
        if self.shared.wiring.sinks.iter().any(|sink| sink.wants_groups()) {
            let group = delivery(partition, from..offset + 1, append_time_ms, content);
            self.give(&group, &starts, |sink, start| sink.wants_groups() && start <= offset);
            // Copies the samples only when a sink has kept them.
            let batch = Arc::try_unwrap(group.batch).unwrap_or_else(|shared| SampleBatch::clone(&shared));
            content = Decoded { batch, metadata: group.metadata, sources: group.sources };
        }
        if let Some(owned) = self.shared.owned.lock().get_mut(&partition) {
            let pending = owned.pending.get_or_insert_with(|| Pending { first: offset, append_time_ms, content: Decoded::default() });
            pending.append_time_ms = append_time_ms;
            pending.content.batch.append(&mut content.batch);
            pending.content.metadata.append(&mut content.metadata);
        }
    }

    /// Delivers what is pending of every partition.
    fn deliver_all(&mut self) {
        let partitions: Vec<_> = self.shared.owned.lock().keys().copied().collect();
        for partition in partitions {
            self.deliver(partition);
            if let Some(owned) = self.shared.owned.lock().get_mut(&partition) {
                owned.caught_up |= owned.at_end;
            }
        }
        self.shared.judge();
        self.shared.progress.send_replace(());
    }

    fn deliver(&mut self, partition: Partition) {
        let mut all = self.shared.owned.lock();
        let Some(owned) = all.get_mut(&partition) else { return };
        let Some(pending) = owned.pending.take() else { return };
        let (from, to, starts) = (owned.delivered, owned.next, owned.starts.clone());
        drop(all);
        let first = pending.first;
        let delivery = delivery(partition, from..to, pending.append_time_ms, pending.content);
        self.give(&delivery, &starts, |sink, start| !sink.wants_groups() && start <= first);
        if let Some(owned) = self.shared.owned.lock().get_mut(&partition) {
            owned.delivered = to;
        }
    }

    fn give(&self, delivery: &Delivery, starts: &[i64], wants: impl Fn(&dyn BatchSink, i64) -> bool) {
        for (sink, start) in self.shared.wiring.sinks.iter().zip(starts) {
            if wants(sink.as_ref(), *start) {
                sink.deliver(delivery);
            }
        }
    }
}

fn delivery(partition: Partition, offsets: std::ops::Range<i64>, append_time_ms: i64, content: Decoded) -> Delivery {
    let Decoded { batch, metadata, sources } = content;
    Delivery { partition, from: offsets.start, to: offsets.end, append_time_ms, batch: Arc::new(batch), metadata, sources }
}
