//! Appends that carry the offset of a foreign topic: one transaction for the records and the offset.
//!
//! ```text
//!  claim src:x/t:3   init_transactions of `<topic>:src:x/t:3`   whoever had it is fenced, its open transaction ends
//!                    read `<topic>-sources` to its end          → next = 41
//!  append            { records of the group, src:x/t:3 = 57 }   committed or not, as one
//! ```
//!
//! # Invariants
//! - The offset is read after the predecessor was fenced and after every transaction before that has ended: what it committed is seen,
//!   and it commits nothing more.
//!
//! # When it fails
//! After a failed append its outcome is unknown and the claim is gone: the reader of the source claims again, which gives the true offset.

use super::client::{self, Context, failed};
use super::topic::sources_topic;
use super::writer::{Outgoing, Splitter, enqueue};
use super::{KafkaSettings, START_TIMEOUT, Shared};
use crate::bus::BusError;
use crate::{Append, SourceOffset};
use futures::FutureExt;
use parking_lot::Mutex;
use rdkafka::Offset;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::Message;
use rdkafka::producer::{FutureProducer, FutureRecord, Producer};
use rdkafka::topic_partition_list::TopicPartitionList;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::OwnedSemaphorePermit;

/// A transaction whose producer has died ends after this at the latest; until then readers of the bus wait.
const TRANSACTION_TIMEOUT_MS: &str = "10000";
/// Shorter than the transaction, as the client demands.
const MESSAGE_TIMEOUT_MS: &str = "9000";
/// How long a commit or an abort may take.
const COMMIT_TIMEOUT: Duration = Duration::from_secs(20);
/// How long the offsets may take to be read, transactions of others that must end first included.
const READ_TIMEOUT: Duration = Duration::from_secs(45);
/// Pause between two looks at the topic.
const POLL: Duration = Duration::from_millis(100);

/// The claimed sources of this process.
#[derive(Debug)]
pub(super) struct SourceWriters {
    settings: Arc<KafkaSettings>,
    shared: Arc<Shared>,
    claimed: Mutex<HashMap<String, Arc<Mutex<SourceWriter>>>>,
    known: Mutex<BTreeMap<String, i64>>,
}

/// The transactional producer of one source partition.
struct SourceWriter {
    producer: FutureProducer<Context>,
    splitter: Splitter,
    topic: String,
    sources_topic: String,
}

impl std::fmt::Debug for SourceWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SourceWriter")
    }
}

impl SourceWriters {
    pub(super) fn new(settings: KafkaSettings, shared: Arc<Shared>) -> Self {
        Self { settings: Arc::new(settings), shared, claimed: Mutex::default(), known: Mutex::default() }
    }

    /// Offsets as last read or committed.
    pub(super) fn known(&self) -> Vec<SourceOffset> {
        self.known.lock().iter().map(|(source, &next)| SourceOffset { source: source.clone(), next }).collect()
    }

    /// Fences whoever appended for `source`, then says where to continue.
    pub(super) async fn claim(&self, source: &str) -> Result<Option<i64>, BusError> {
        self.unclaim(source);
        let (settings, shared, name) = (self.settings.clone(), self.shared.clone(), source.to_owned());
        let (writer, offsets) = client::blocking(move || {
            let writer = SourceWriter::open(&settings, &shared, &name)?;
            Ok((writer, read_offsets(&settings)?))
        })
        .await?;
        self.claimed.lock().insert(source.to_owned(), Arc::new(Mutex::new(writer)));
        let next = offsets.get(source).copied();
        self.known.lock().extend(offsets);
        Ok(next)
    }

    pub(super) fn unclaim(&self, source: &str) {
        self.claimed.lock().remove(source);
    }

    /// Makes an append with one source offset durable.
    pub(super) async fn append(&self, append: Append, room: OwnedSemaphorePermit) -> Result<(), BusError> {
        let [offset] = append.sources.as_slice() else {
            return Err(BusError::Settings("an append to the bus on kafka carries the offset of one source partition".into()));
        };
        let offset = offset.clone();
        let writer = self.claimed.lock().get(&offset.source).cloned();
        let writer = writer.ok_or_else(|| BusError::Kafka(format!("`{}` is not claimed by this process", offset.source)))?;
        let (shared, source) = (self.shared.clone(), offset.clone());
        let result = client::blocking(move || {
            let _room = room;
            writer.lock().append(append, &source, &shared)
        })
        .await;
        match result {
            Ok(()) => {
                self.known.lock().insert(offset.source, offset.next);
            }
            Err(_) => self.unclaim(&offset.source),
        }
        result
    }

    /// Waits for the transactions that run and takes no more.
    pub(super) async fn close(&self) {
        let writers: Vec<_> = self.claimed.lock().drain().map(|(_, writer)| writer).collect();
        let waited = client::blocking(move || {
            writers.iter().for_each(|writer| drop(writer.lock()));
            Ok(())
        });
        // It waits for locks only.
        let _ = waited.await;
    }
}

impl SourceWriter {
    fn open(settings: &KafkaSettings, shared: &Shared, source: &str) -> Result<Self, BusError> {
        let id = format!("{}:{source}", settings.topic);
        let fixed = [
            ("transactional.id", id.as_str()),
            ("transaction.timeout.ms", TRANSACTION_TIMEOUT_MS),
            ("message.timeout.ms", MESSAGE_TIMEOUT_MS),
            ("enable.idempotence", "true"),
            ("acks", "all"),
            ("linger.ms", "0"),
            ("allow.auto.create.topics", "false"),
        ];
        let config = client::settings_config(settings, &[("compression.type", "lz4")], &fixed);
        let producer: FutureProducer<Context> = config.create_with_context(Context).map_err(|e| client::wrong_property(&e))?;
        producer.init_transactions(START_TIMEOUT).map_err(|e| failed(&format!("claiming `{source}`"), &e))?;
        Ok(Self {
            producer,
            splitter: Splitter::new(shared.wiring.registry.clone(), shared.partitions),
            topic: settings.topic.clone(),
            sources_topic: sources_topic(&settings.topic),
        })
    }

    fn append(&mut self, append: Append, source: &SourceOffset, shared: &Shared) -> Result<(), BusError> {
        let records = self.splitter.split(vec![append]);
        let doing = format!("appending what `{}` holds below {}", source.source, source.next);
        self.producer.begin_transaction().map_err(|e| failed(&doing, &e))?;
        let sent = self.send(&records, source).and_then(|answers| {
            self.producer.commit_transaction(COMMIT_TIMEOUT)?;
            Ok(answers)
        });
        let answers = sent.map_err(|error| {
            // Its failure changes nothing: the next claim ends the transaction.
            let _ = self.producer.abort_transaction(COMMIT_TIMEOUT);
            failed(&doing, &error)
        })?;
        let bytes: usize = records.iter().map(|r| r.payload.len()).sum();
        shared.wiring.metrics.bytes.inc_by(bytes as u64);
        shared.wiring.metrics.groups.inc();
        // A commit answers every message first, so nothing is waited for here.
        for delivery in answers.into_iter().filter_map(|answer| answer.now_or_never()?.ok()?.ok()) {
            shared.acknowledged(delivery.partition, delivery.offset);
        }
        Ok(())
    }

    fn send(
        &self,
        records: &[Outgoing],
        source: &SourceOffset,
    ) -> Result<Vec<rdkafka::producer::future_producer::DeliveryFuture>, KafkaError> {
        let answers = records.iter().map(|record| enqueue(&self.producer, &self.topic, record)).collect::<Result<_, _>>()?;
        let next = source.next.to_string();
        let offset = FutureRecord::to(&self.sources_topic).partition(0).key(&source.source).payload(&next);
        // The commit fails when this message does.
        self.producer.send_result(offset).map(drop).map_err(|(error, _)| error)?;
        Ok(answers)
    }
}

/// Reads the compacted topic to its end.
fn read_offsets(settings: &KafkaSettings) -> Result<BTreeMap<String, i64>, BusError> {
    let topic = sources_topic(&settings.topic);
    let begun = Instant::now();
    let late = || BusError::Kafka(format!("reading `{topic}` took longer than {} s", READ_TIMEOUT.as_secs()));
    let end = wait_for_transactions(settings, &topic, begun)?.ok_or_else(late)?;
    let mut offsets = BTreeMap::new();
    if end == 0 {
        return Ok(offsets);
    }
    let consumer = offsets_reader(settings, "read_committed")?;
    let mut from = TopicPartitionList::new();
    let assigned = from.add_partition_offset(&topic, 0, Offset::Beginning).and_then(|()| consumer.assign(&from));
    assigned.map_err(|e| failed(&format!("reading `{topic}`"), &e))?;
    while begun.elapsed() < READ_TIMEOUT {
        match consumer.poll(POLL) {
            Some(Ok(message)) => {
                note(&mut offsets, message.key(), message.payload());
                // While others append all the time, the reader never is at the end; what counts lies below the end as it was.
                if message.offset() + 1 >= end {
                    return Ok(offsets);
                }
            }
            Some(Err(KafkaError::PartitionEOF(_))) => return Ok(offsets),
            Some(Err(error)) => tracing::warn!(%error, topic, "reading the offsets of sources"),
            None => {}
        }
    }
    Err(late())
}

/// Waits until every transaction that was open has ended: the end for readers of committed messages has then reached the true end as it was
/// in the beginning. `None` when that takes too long.
fn wait_for_transactions(settings: &KafkaSettings, topic: &str, begun: Instant) -> Result<Option<i64>, BusError> {
    let watermarks = |consumer: &BaseConsumer<Context>| {
        consumer.fetch_watermarks(topic, 0, START_TIMEOUT).map_err(|e| failed(&format!("asking for the end of `{topic}`"), &e))
    };
    let (_, end) = watermarks(&offsets_reader(settings, "read_uncommitted")?)?;
    let committed = offsets_reader(settings, "read_committed")?;
    while begun.elapsed() < READ_TIMEOUT {
        if watermarks(&committed)?.1 >= end {
            return Ok(Some(end));
        }
        // Nothing is assigned: this only waits.
        let _ = committed.poll(POLL);
    }
    Ok(None)
}

fn offsets_reader(settings: &KafkaSettings, isolation: &str) -> Result<BaseConsumer<Context>, BusError> {
    // Assigned by hand: the group is named because the client demands it, and never joined.
    let group = format!("{}-sources", settings.group);
    let fixed = [
        ("group.id", group.as_str()),
        ("enable.auto.commit", "false"),
        ("auto.offset.reset", "earliest"),
        ("isolation.level", isolation),
        ("enable.partition.eof", "true"),
    ];
    let config = client::settings_config(settings, &[], &fixed);
    config.create_with_context(Context).map_err(|e| client::wrong_property(&e))
}

fn note(offsets: &mut BTreeMap<String, i64>, key: Option<&[u8]>, payload: Option<&[u8]>) {
    let text = |bytes: Option<&[u8]>| bytes.and_then(|b| std::str::from_utf8(b).ok()).map(str::to_owned);
    match (text(key), text(payload).and_then(|p| p.parse().ok())) {
        (Some(source), Some(next)) => {
            offsets.insert(source, next);
        }
        (key, _) => tracing::warn!(?key, "skipped an entry in the topic of source offsets that is not ours"),
    }
}
