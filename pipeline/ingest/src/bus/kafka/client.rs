//! Clients of librdkafka: what is always set, what a user may set, where their log lines go.

use super::KafkaSettings;
use crate::bus::BusError;
use rdkafka::client::ClientContext;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::consumer::ConsumerContext;
use rdkafka::error::KafkaError;
use rdkafka::producer::FutureProducer;
use rdkafka::types::RDKafkaErrorCode;
use std::collections::BTreeMap;

/// Sends log lines and errors of librdkafka to our log.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Context;

impl ClientContext for Context {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        // The end of a partition is reported as an error, several times a second on a quiet bus.
        if !matches!(error.rdkafka_error_code(), Some(RDKafkaErrorCode::PartitionEOF)) {
            tracing::warn!(%error, reason, "kafka");
        }
    }
}

impl ConsumerContext for Context {}

/// One line of librdkafka.
pub(crate) fn log(level: RDKafkaLogLevel, facility: &str, message: &str) {
    match level {
        RDKafkaLogLevel::Emerg | RDKafkaLogLevel::Alert | RDKafkaLogLevel::Critical | RDKafkaLogLevel::Error => {
            tracing::error!(facility, "kafka: {message}");
        }
        RDKafkaLogLevel::Warning => tracing::warn!(facility, "kafka: {message}"),
        RDKafkaLogLevel::Notice | RDKafkaLogLevel::Info => tracing::info!(facility, "kafka: {message}"),
        RDKafkaLogLevel::Debug => tracing::debug!(facility, "kafka: {message}"),
    }
}

/// Defaults, then the user's properties, then what the guarantees rest on.
pub(crate) fn config(
    brokers: &str,
    properties: &BTreeMap<String, String>,
    defaults: &[(&str, &str)],
    fixed: &[(&str, &str)],
) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("client.id", "fletch").set("log.connection.close", "false").set("reconnect.backoff.max.ms", "2000");
    let defaults = defaults.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
    config.extend(defaults.chain(properties.clone()));
    config.set("bootstrap.servers", brokers);
    config.extend(fixed.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())));
    config
}

/// The producer of groups and heartbeats.
pub(super) fn producer(settings: &KafkaSettings) -> Result<FutureProducer<Context>, BusError> {
    let defaults = [("compression.type", "lz4"), ("message.timeout.ms", "30000")];
    // A group is one message per partition already: waiting for more would only add latency.
    let fixed = [("enable.idempotence", "true"), ("acks", "all"), ("linger.ms", "0"), ("allow.auto.create.topics", "false")];
    let config = config(&settings.brokers, &settings.properties, &defaults, &fixed);
    config.create_with_context(Context).map_err(|e| wrong_property(&e))
}

/// A client for questions about topics.
pub(super) fn settings_config(settings: &KafkaSettings, defaults: &[(&str, &str)], fixed: &[(&str, &str)]) -> ClientConfig {
    config(&settings.brokers, &settings.properties, defaults, fixed)
}

/// A client that cannot be made has a wrong property; librdkafka names it.
pub(crate) fn wrong_property(error: &KafkaError) -> BusError {
    BusError::Settings(format!("kafka properties: {error}"))
}

/// An error of the broker while we were `doing` something.
pub(crate) fn failed(doing: &str, error: &KafkaError) -> BusError {
    BusError::Kafka(format!("{doing}: {error}"))
}

/// Runs calls of librdkafka that wait.
pub(crate) async fn blocking<T: Send + 'static>(run: impl FnOnce() -> Result<T, BusError> + Send + 'static) -> Result<T, BusError> {
    tokio::task::spawn_blocking(run).await.map_err(|e| BusError::Kafka(format!("a call of the client has failed: {e}")))?
}
