//! The topics of the bus: their names, creation and fitness, and which partition a metric is in.

use super::client::{self, Context, failed};
use super::{KafkaSettings, START_TIMEOUT};
use crate::bus::{BusError, Partition};
use fletch_common::SharedClock;
use fletch_schemas::TenantId;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::RDKafkaErrorCode;
use std::time::Duration;
use xxhash_rust::xxh3::Xxh3;

/// The shard of every series: a metric has one shard, more would need rules that read several partitions. It has its place in the hash
/// already, so that a metric of several shards one day keeps shard 0 where it is.
const SHARD: u64 = 0;

/// How often, and with which pause, the cluster is asked about a topic that it has just created.
const SETTLE_ATTEMPTS_MAX: u32 = 100;
const SETTLE_PAUSE: Duration = Duration::from_millis(200);

/// The partition of all samples and of the metadata of a metric: xxh3-64 of tenant, 0xFF, metric, 0xFF, shard (0 as u64, little-endian),
/// modulo the number of partitions.
pub fn partition_of(tenant: &TenantId, metric: &str, partitions: u32) -> Partition {
    let mut hash = Xxh3::new();
    hash.update(tenant.as_str().as_bytes());
    hash.update(&[0xff]);
    hash.update(metric.as_bytes());
    hash.update(&[0xff]);
    hash.update(&SHARD.to_le_bytes());
    let partition = hash.digest() % u64::from(partitions.max(1));
    Partition::try_from(partition).expect("a remainder of a u32 fits a u32")
}

/// The compacted topic with the offsets of foreign topics.
pub(super) fn sources_topic(topic: &str) -> String {
    format!("{topic}-sources")
}

/// `<cluster id>/<topic>`.
pub(super) fn identify(settings: &KafkaSettings) -> Result<String, BusError> {
    let client: BaseConsumer<Context> =
        client::settings_config(settings, &[], &[]).create_with_context(Context).map_err(|e| client::wrong_property(&e))?;
    let cluster = client.client().fetch_cluster_id(START_TIMEOUT);
    let cluster =
        cluster.ok_or_else(|| BusError::Kafka(format!("no answer from `{}`: is it the address of a Kafka cluster?", settings.brokers)))?;
    Ok(format!("{cluster}/{}", settings.topic))
}

/// Creates what is absent, refuses what is not fit. Returns the number of partitions of the bus.
pub(super) async fn prepare(settings: &KafkaSettings, clock: &SharedClock) -> Result<u32, BusError> {
    let admin: AdminClient<Context> =
        client::settings_config(settings, &[], &[]).create_with_context(Context).map_err(|e| client::wrong_property(&e))?;
    let partitions = i32::try_from(settings.partitions.max(1)).map_err(|_| BusError::Settings("too many partitions for a topic".into()))?;
    let bus = NewTopic::new(&settings.topic, partitions, TopicReplication::Fixed(-1)).set("message.timestamp.type", "LogAppendTime");
    create(&admin, bus).await?;
    let sources = sources_topic(&settings.topic);
    create(&admin, NewTopic::new(&sources, 1, TopicReplication::Fixed(-1)).set("cleanup.policy", "compact")).await?;
    // A broker may say "created" before it can say anything about the topic.
    for _ in 0..SETTLE_ATTEMPTS_MAX {
        if let Some(kind) = timestamp_type(&admin, &settings.topic).await? {
            fit(&settings.topic, &kind)?;
            let asked = settings.clone();
            if let Some(partitions) = client::blocking(move || count_partitions(&asked)).await? {
                return Ok(partitions);
            }
        }
        clock.sleep(SETTLE_PAUSE).await;
    }
    Err(BusError::Kafka(format!("the cluster does not describe topic `{}`: may this user see it?", settings.topic)))
}

async fn create(admin: &AdminClient<Context>, topic: NewTopic<'_>) -> Result<(), BusError> {
    let name = topic.name.to_owned();
    let doing = || format!("creating topic `{name}`");
    let results = admin.create_topics([&topic], &options()).await.map_err(|e| failed(&doing(), &e))?;
    for result in results {
        match result {
            Ok(_) | Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
            Err((_, code)) => return Err(BusError::Kafka(format!("{}: {code}", doing()))),
        }
    }
    Ok(())
}

fn options() -> AdminOptions {
    // Also waits until the new topic is known to the brokers.
    AdminOptions::new().request_timeout(Some(START_TIMEOUT)).operation_timeout(Some(START_TIMEOUT))
}

async fn timestamp_type(admin: &AdminClient<Context>, topic: &str) -> Result<Option<String>, BusError> {
    let doing = format!("reading the configuration of topic `{topic}`");
    let results = admin.describe_configs([&ResourceSpecifier::Topic(topic)], &options()).await.map_err(|e| failed(&doing, &e))?;
    match results.into_iter().next() {
        Some(Ok(config)) => Ok(config.get("message.timestamp.type").and_then(|entry| entry.value.clone())),
        Some(Err(RDKafkaErrorCode::UnknownTopicOrPartition)) | None => Ok(None),
        Some(Err(code)) => Err(BusError::Kafka(format!("{doing}: {code}"))),
    }
}

fn fit(topic: &str, timestamp_type: &str) -> Result<(), BusError> {
    if timestamp_type == "LogAppendTime" {
        return Ok(());
    }
    Err(BusError::Settings(format!(
        "topic `{topic}` has message.timestamp.type={timestamp_type}, the bus needs LogAppendTime (time on the stream is the broker's, not a \
         sender's): use another topic, or `kafka-configs.sh --alter --entity-type topics --entity-name {topic} --add-config \
         message.timestamp.type=LogAppendTime`"
    )))
}

/// `None` while the topic has partitions without a leader, or none.
fn count_partitions(settings: &KafkaSettings) -> Result<Option<u32>, BusError> {
    let topic = settings.topic.as_str();
    let client: BaseConsumer<Context> =
        client::settings_config(settings, &[], &[]).create_with_context(Context).map_err(|e| client::wrong_property(&e))?;
    let metadata = client.fetch_metadata(Some(topic), START_TIMEOUT).map_err(|e| failed("asking for the partitions of the bus", &e))?;
    let Some(found) = metadata.topics().iter().find(|t| t.name() == topic) else { return Ok(None) };
    let count = u32::try_from(found.partitions().len()).map_err(|_| BusError::Settings("too many partitions for a bus".into()))?;
    if count == 0 || found.partitions().iter().any(|p| p.leader() < 0) {
        return Ok(None);
    }
    if count != settings.partitions {
        tracing::info!(topic, count, setting = settings.partitions, "the topic of the bus keeps the partitions it was created with");
    }
    Ok(Some(count))
}
