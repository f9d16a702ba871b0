//! Groups of appends to records of partitions, and heartbeats.
//!
//! # Invariants
//! - One group is on its way at a time: what arrives meanwhile is the next group, so records grow with the load.
//! - A group's appends are answered together, when the broker has acknowledged every record of it.

use super::Shared;
use super::client::Context;
use super::topic::partition_of;
use crate::bus::record::{Content, Encoder, FLAG_HEARTBEAT, Scope, Stamp};
use crate::bus::{BusError, Partition};
use crate::{Append, SampleBatch, SeriesRegistry};
use fletch_schemas::{MetricMetadata, TenantId};
use futures::future::join_all;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::future_producer::{DeliveryFuture, OwnedDeliveryResult};
use rdkafka::producer::{FutureProducer, FutureRecord};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};

/// Appends of one group at most.
const GROUP_APPENDS_MAX: usize = 1_024;
/// A group takes no further append once it weighs this much.
const GROUP_BYTES_MAX: u64 = 4 << 20;

/// An append that waits.
#[derive(Debug)]
pub(super) struct Command {
    pub(super) append: Append,
    pub(super) answer: oneshot::Sender<Result<(), BusError>>,
    /// Room in the queue, given back when the append is answered.
    pub(super) room: OwnedSemaphorePermit,
}

/// Bytes of an append in the queue and, about, on the wire.
pub(super) fn weight(append: &Append) -> u64 {
    let metadata: usize = append.metadata.iter().map(|(_, m)| m.metric.len() + m.help.len() + m.unit.len() + 32).sum();
    (append.batch.len() * 20 + metadata + 64) as u64
}

/// One record and where it goes.
pub(super) struct Outgoing {
    pub(super) partition: i32,
    pub(super) payload: Vec<u8>,
}

/// Splits groups by partition and encodes them.
#[derive(Debug)]
pub(super) struct Splitter {
    registry: Arc<SeriesRegistry>,
    partitions: u32,
    /// Partition of each series, by its number.
    partition_of: Vec<Partition>,
    encoder: Encoder,
    batches: Vec<SampleBatch>,
    metadata: Vec<Vec<(TenantId, MetricMetadata)>>,
}

impl Splitter {
    pub(super) fn new(registry: Arc<SeriesRegistry>, partitions: u32) -> Self {
        let count = partitions as usize;
        let encoder = Encoder::new(registry.clone(), Scope::Record);
        let (batches, metadata) = (vec![SampleBatch::default(); count], vec![Vec::new(); count]);
        Self { registry, partitions, partition_of: Vec::new(), encoder, batches, metadata }
    }

    /// The records of a group, each partition's in order.
    pub(super) fn split(&mut self, appends: Vec<Append>) -> Vec<Outgoing> {
        self.learn();
        for append in appends {
            let SampleBatch { series, times, values } = append.batch;
            for ((series, time), value) in series.into_iter().zip(times).zip(values) {
                self.batches[self.partition_of[series.index()] as usize].push(series, time, value);
            }
            for (tenant, metadata) in append.metadata {
                let partition = partition_of(&tenant, &metadata.metric, self.partitions);
                self.metadata[partition as usize].push((tenant, metadata));
            }
        }
        (0..self.partitions).flat_map(|partition| self.encode(partition)).collect()
    }

    /// Computes the partitions of series that are new since the last group.
    fn learn(&mut self) {
        let Self { registry, partition_of: known, partitions, .. } = self;
        registry.with(|all| {
            let new = &all[known.len().min(all.len())..];
            known.extend(new.iter().map(|s| partition_of(&s.tenant, s.labels.metric(), *partitions)));
        });
    }

    fn encode(&mut self, partition: Partition) -> Vec<Outgoing> {
        let (batch, metadata) = (&mut self.batches[partition as usize], &mut self.metadata[partition as usize]);
        if batch.is_empty() && metadata.is_empty() {
            return Vec::new();
        }
        let mut bytes = Vec::new();
        let content = Content { series: &batch.series, times: &batch.times, values: &batch.values, metadata, sources: &[] };
        let ends = self.encoder.encode(content, Stamp::kafka(0), &mut bytes);
        let starts = std::iter::once(0).chain(ends.iter().copied());
        let partition = i32::try_from(partition).unwrap_or(i32::MAX);
        let records = starts.zip(ends).map(|(start, &end)| Outgoing { partition, payload: bytes[start..end].to_vec() }).collect();
        batch.series.clear();
        batch.times.clear();
        batch.values.clear();
        metadata.clear();
        records
    }
}

/// The task that writes groups.
pub(super) struct KafkaWriter {
    shared: Arc<Shared>,
    producer: FutureProducer<Context>,
    splitter: Splitter,
}

impl KafkaWriter {
    pub(super) fn new(shared: Arc<Shared>, producer: FutureProducer<Context>) -> Self {
        let splitter = Splitter::new(shared.wiring.registry.clone(), shared.partitions);
        Self { shared, producer, splitter }
    }

    /// Runs until every sender of the queue is gone.
    pub(super) async fn run(mut self, mut queue: mpsc::Receiver<Command>) {
        while let Some(first) = queue.recv().await {
            let mut bytes = weight(&first.append);
            let mut appends = vec![first.append];
            let mut answers = vec![(first.answer, first.room)];
            while bytes < GROUP_BYTES_MAX && appends.len() < GROUP_APPENDS_MAX {
                let Ok(next) = queue.try_recv() else { break };
                bytes += weight(&next.append);
                appends.push(next.append);
                answers.push((next.answer, next.room));
            }
            let begun = std::time::Instant::now();
            let result = self.group(appends).await;
            let metrics = &self.shared.wiring.metrics;
            metrics.groups.inc();
            metrics.sync_seconds.observe(begun.elapsed().as_secs_f64());
            for (answer, _room) in answers {
                // Nobody waits when the request was cancelled.
                drop(answer.send(result.clone().map_err(BusError::Kafka)));
            }
        }
    }

    async fn group(&mut self, appends: Vec<Append>) -> Result<(), String> {
        let records = self.splitter.split(appends);
        let bytes: usize = records.iter().map(|r| r.payload.len()).sum();
        self.shared.wiring.metrics.bytes.inc_by(bytes as u64);
        let (sent, refused) = send_all(&self.producer, &self.shared.topic, records).await;
        let mut first_error = refused;
        for result in sent {
            match result {
                Ok(delivery) => self.shared.acknowledged(delivery.partition, delivery.offset),
                Err((error, _)) => first_error = first_error.or_else(|| Some(error.to_string())),
            }
        }
        first_error.map_or(Ok(()), Err)
    }
}

/// Hands all records to the client in order and waits for every answer. A full client is waited for. Returns the answers, and the error of
/// a record that the client did not take (those behind it are not sent).
async fn send_all(producer: &FutureProducer<Context>, topic: &str, records: Vec<Outgoing>) -> (Vec<OwnedDeliveryResult>, Option<String>) {
    let mut waiting: Vec<DeliveryFuture> = Vec::with_capacity(records.len());
    let mut answers = Vec::with_capacity(records.len());
    let mut refused = None;
    'records: for record in records {
        loop {
            match enqueue(producer, topic, &record) {
                Ok(answer) => {
                    waiting.push(answer);
                    break;
                }
                Err(KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull)) if !waiting.is_empty() => {
                    answers.extend(wait(std::mem::take(&mut waiting)).await);
                }
                Err(error) => {
                    refused = Some(error.to_string());
                    break 'records;
                }
            }
        }
    }
    answers.extend(wait(waiting).await);
    (answers, refused)
}

/// Hands one record to the client.
pub(super) fn enqueue(producer: &FutureProducer<Context>, topic: &str, record: &Outgoing) -> Result<DeliveryFuture, KafkaError> {
    let message = FutureRecord::<(), [u8]>::to(topic).partition(record.partition).payload(&record.payload[..]);
    producer.send_result(message).map_err(|(error, _)| error)
}

async fn wait(waiting: Vec<DeliveryFuture>) -> Vec<OwnedDeliveryResult> {
    // The answer is missing only when the producer was dropped, which holds the sender: then it was not acknowledged.
    join_all(waiting).await.into_iter().flatten().collect()
}

/// Puts a heartbeat into every owned partition again and again.
pub(super) fn beat(shared: Arc<Shared>, producer: FutureProducer<Context>, every: Duration) -> impl Future<Output = ()> {
    let mut payload = Vec::new();
    let mut encoder = Encoder::new(shared.wiring.registry.clone(), Scope::Record);
    encoder.encode(Content::default(), Stamp::kafka(FLAG_HEARTBEAT), &mut payload);
    async move {
        loop {
            shared.wiring.clock.sleep(every).await;
            let owned: Vec<_> = shared.owned.lock().keys().copied().collect();
            for partition in owned {
                let partition = i32::try_from(partition).unwrap_or(i32::MAX);
                // Not waited for: the next one comes in any case, and the timeout of messages bounds how many wait.
                if let Err(error) = enqueue(&producer, &shared.topic, &Outgoing { partition, payload: payload.clone() }) {
                    tracing::warn!(partition, %error, "a heartbeat could not be sent");
                }
            }
        }
    }
}
