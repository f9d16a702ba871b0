//! The consumer group, as the rest of the source sees it: events in, commands out.
//!
//! # Invariants
//! - Who is assigned what and what is fetched are two things. A partition that the group gives us is not fetched before
//!   [`Feed::start`] says at which offset: Kafka's committed offset is never asked for.
//! - Everything happens on the thread that calls [`Feed::poll`], rebalances included: while an append is waited for, nothing is given away.

use super::config::KafkaSource;
use super::format::Message;
use super::position::{Range, Start, TopicPartition};
use parking_lot::Mutex;
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Headers, Message as _};
use rdkafka::statistics::Statistics;
use rdkafka::topic_partition_list::TopicPartitionList;
use rdkafka::types::RDKafkaRespErr;
use rdkafka::{Offset, util::Timeout};
use regex::Regex;
use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

/// How long the broker may take to answer a question.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// What comes out of the consumer group.
#[derive(Debug)]
pub(super) enum Event<'a> {
    Message(Message<'a>),
    Assigned(Vec<TopicPartition>),
    Revoked(Vec<TopicPartition>),
    /// A partition is fetched at an offset that its topic does not have; the client does not say which.
    OutOfRange(String),
    /// The client goes on by itself.
    Trouble(String),
    /// The client does not.
    Fatal(String),
    /// Where partitions end, for the lag.
    Ends(Vec<(TopicPartition, i64)>),
}

/// The consumer group.
pub(super) trait Feed {
    /// Waits for the next event at most for `wait`, and hands over whatever there is.
    fn poll(&mut self, wait: Duration, on: &mut dyn FnMut(Event<'_>));
    /// All partitions of the topics, whoever has them.
    fn partitions(&self) -> Result<BTreeSet<TopicPartition>, String>;
    /// What a partition holds.
    fn range(&self, of: &TopicPartition) -> Result<Range, String>;
    /// Begins to fetch an assigned partition.
    fn start(&mut self, of: &TopicPartition, at: Start) -> Result<(), String>;
    /// Ends fetching; the partition stays assigned.
    fn stop(&mut self, of: &TopicPartition);
    /// Pauses fetching without losing the position.
    fn pause(&mut self, of: &TopicPartition);
    /// Goes on after a pause.
    fn resume(&mut self, of: &TopicPartition);
    /// Tells Kafka, for tools that show the lag.
    fn commit(&mut self, offsets: &BTreeMap<TopicPartition, i64>, wait: bool);
}

/// What librdkafka calls back with, until the next look at it.
#[derive(Debug, Default)]
struct Heard {
    changes: Vec<Event<'static>>,
    ends: Vec<(TopicPartition, i64)>,
    /// The text of the last error: the error that `poll` returns has only a code.
    reason: String,
}

#[derive(Debug, Default)]
struct Context {
    heard: Mutex<Heard>,
}

impl ClientContext for Context {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        match level {
            RDKafkaLogLevel::Emerg | RDKafkaLogLevel::Alert | RDKafkaLogLevel::Critical | RDKafkaLogLevel::Error => {
                tracing::error!(facility, "kafka source: {message}");
            }
            RDKafkaLogLevel::Warning => tracing::warn!(facility, "kafka source: {message}"),
            RDKafkaLogLevel::Notice | RDKafkaLogLevel::Info => tracing::info!(facility, "kafka source: {message}"),
            RDKafkaLogLevel::Debug => tracing::debug!(facility, "kafka source: {message}"),
        }
    }

    fn stats(&self, statistics: Statistics) {
        let ends = statistics.topics.iter().flat_map(|(topic, t)| {
            // -1 stands for messages without a partition, a negative offset for "not known yet".
            let known = t.partitions.iter().filter(|(number, p)| **number >= 0 && p.ls_offset >= 0);
            known.map(|(number, p)| (TopicPartition::new(topic, *number), p.ls_offset))
        });
        self.heard.lock().ends = ends.collect();
    }

    fn error(&self, _error: KafkaError, reason: &str) {
        reason.clone_into(&mut self.heard.lock().reason);
    }
}

impl ConsumerContext for Context {
    /// Answers the group at once; fetching begins later, when the position is known.
    fn rebalance(&self, consumer: &BaseConsumer<Self>, kind: RDKafkaRespErr, list: &mut TopicPartitionList) {
        let partitions: Vec<TopicPartition> = list.elements().iter().map(|e| TopicPartition::new(e.topic(), e.partition())).collect();
        let (event, answered) = if kind == RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS {
            (Event::Assigned(partitions), consumer.incremental_assign(&TopicPartitionList::new()))
        } else {
            let fetched = consumer.assignment().map(|fetched| both(&fetched, &partitions));
            (Event::Revoked(partitions), fetched.and_then(|fetched| consumer.incremental_unassign(&fetched)))
        };
        let mut heard = self.heard.lock();
        heard.changes.push(event);
        if let Err(error) = answered {
            heard.changes.push(Event::Trouble(format!("answering a rebalance: {error}")));
        }
    }

    fn commit_callback(&self, result: KafkaResult<()>, _offsets: &TopicPartitionList) {
        if let Err(error) = result {
            tracing::debug!(%error, "kafka source: offsets for lag tools are not committed");
        }
    }
}

fn both(fetched: &TopicPartitionList, partitions: &[TopicPartition]) -> TopicPartitionList {
    let mut list = TopicPartitionList::new();
    for one in partitions.iter().filter(|p| fetched.find_partition(&p.topic, p.number).is_some()) {
        list.add_partition(&one.topic, one.number);
    }
    list
}

fn only(of: &TopicPartition) -> TopicPartitionList {
    let mut list = TopicPartitionList::new();
    list.add_partition(&of.topic, of.number);
    list
}

/// A consumer of librdkafka.
pub(super) struct KafkaFeed {
    consumer: BaseConsumer<Context>,
    names: Vec<String>,
    patterns: Vec<Regex>,
    left_out: Vec<String>,
}

impl KafkaFeed {
    /// Creates the client; it joins the group with [`join`](Self::join).
    pub(super) fn new(source: &KafkaSource, patterns: Vec<Regex>, excluded_topics: &[String]) -> Result<Self, KafkaError> {
        let consumer = source.consumer(excluded_topics).create_with_context(Context::default())?;
        let left_out = source.dead_letter_topic.iter().chain(excluded_topics).cloned().collect();
        Ok(Self { consumer, names: source.topics.clone(), patterns, left_out })
    }

    /// The cluster's id; `None` while no broker answers.
    pub(super) fn cluster_id(&self, wait: Duration) -> Option<String> {
        self.consumer.client().fetch_cluster_id(wait)
    }

    /// Joins the group.
    pub(super) fn join(&self) -> Result<(), KafkaError> {
        let names: Vec<&str> = self.names.iter().map(String::as_str).collect();
        self.consumer.subscribe(&names)
    }

    fn is_ours(&self, topic: &str) -> bool {
        let matched = || !topic.starts_with("__") && self.patterns.iter().any(|p| p.is_match(topic));
        !self.left_out.iter().any(|t| t == topic) && (self.names.iter().any(|t| t == topic) || matched())
    }

    fn failed(&self, error: &KafkaError) -> Event<'static> {
        let reason = std::mem::take(&mut self.consumer.context().heard.lock().reason);
        let text = if reason.is_empty() { error.to_string() } else { reason };
        match error {
            KafkaError::MessageConsumptionFatal(_) => Event::Fatal(text),
            other if other.rdkafka_error_code() == Some(RDKafkaErrorCode::AutoOffsetReset) => Event::OutOfRange(text),
            _ => Event::Trouble(text),
        }
    }
}

impl Feed for KafkaFeed {
    fn poll(&mut self, wait: Duration, on: &mut dyn FnMut(Event<'_>)) {
        let polled = self.consumer.poll(Timeout::After(wait));
        let (changes, ends) = {
            let mut heard = self.consumer.context().heard.lock();
            (std::mem::take(&mut heard.changes), std::mem::take(&mut heard.ends))
        };
        changes.into_iter().for_each(&mut *on);
        if !ends.is_empty() {
            on(Event::Ends(ends));
        }
        match polled {
            Some(Ok(message)) => hand_over(&message, on),
            Some(Err(error)) => on(self.failed(&error)),
            None => {}
        }
    }

    fn partitions(&self) -> Result<BTreeSet<TopicPartition>, String> {
        let mut all = BTreeSet::new();
        let wanted = if self.patterns.is_empty() { self.names.iter().map(|t| Some(t.as_str())).collect() } else { vec![None] };
        for topic in wanted {
            let metadata = self.consumer.fetch_metadata(topic, ANSWER_TIMEOUT).map_err(|e| format!("asking for the partitions: {e}"))?;
            for topic in metadata.topics().iter().filter(|t| self.is_ours(t.name())) {
                all.extend(topic.partitions().iter().map(|p| TopicPartition::new(topic.name(), p.id())));
            }
        }
        Ok(all)
    }

    fn range(&self, of: &TopicPartition) -> Result<Range, String> {
        let range = self.consumer.fetch_watermarks(&of.topic, of.number, ANSWER_TIMEOUT);
        range.map(|(low, high)| Range { low, high }).map_err(|error| format!("asking for the offsets of `{of}`: {error}"))
    }

    fn start(&mut self, of: &TopicPartition, at: Start) -> Result<(), String> {
        let offset = match at {
            Start::Earliest => Offset::Beginning,
            Start::At(offset) => Offset::Offset(offset),
        };
        let mut list = TopicPartitionList::new();
        let added = list.add_partition_offset(&of.topic, of.number, offset);
        added.and_then(|()| self.consumer.incremental_assign(&list)).map_err(|error| format!("starting `{of}`: {error}"))?;
        // A pause outlives the assignment in which it was made.
        self.resume(of);
        Ok(())
    }

    fn stop(&mut self, of: &TopicPartition) {
        if let Err(error) = self.consumer.incremental_unassign(&only(of)) {
            tracing::warn!(partition = %of, %error, "kafka source: cannot stop fetching");
        }
    }

    fn pause(&mut self, of: &TopicPartition) {
        if let Err(error) = self.consumer.pause(&only(of)) {
            tracing::warn!(partition = %of, %error, "kafka source: cannot pause");
        }
    }

    fn resume(&mut self, of: &TopicPartition) {
        if let Err(error) = self.consumer.resume(&only(of)) {
            tracing::warn!(partition = %of, %error, "kafka source: cannot resume");
        }
    }

    fn commit(&mut self, offsets: &BTreeMap<TopicPartition, i64>, wait: bool) {
        let mut list = TopicPartitionList::new();
        for (of, next) in offsets {
            // An absolute offset is always representable.
            let _ = list.add_partition_offset(&of.topic, of.number, Offset::Offset(*next));
        }
        let mode = if wait { CommitMode::Sync } else { CommitMode::Async };
        if let Err(error) = self.consumer.commit(&list, mode) {
            tracing::debug!(%error, "kafka source: offsets for lag tools are not committed");
        }
    }
}

fn hand_over(message: &BorrowedMessage<'_>, on: &mut dyn FnMut(Event<'_>)) {
    // The client unwraps the name of a header as UTF-8, and a foreign producer may have written anything.
    let headers = catch_unwind(AssertUnwindSafe(|| {
        message.headers().map(|headers| headers.iter().map(|h| (h.key, h.value)).collect::<Vec<_>>()).unwrap_or_default()
    }));
    on(Event::Message(Message {
        topic: message.topic(),
        partition: message.partition(),
        offset: message.offset(),
        key: message.key(),
        value: message.payload(),
        headers: headers.as_deref().ok(),
    }));
}
