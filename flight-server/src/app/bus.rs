//! Which bus a process uses, and when it is ready.

use crate::config::Settings;
use anyhow::Context;
use fletch_alerting::Alerting;
use fletch_common::SharedClock;
use fletch_ingest::bus::embedded::{EmbeddedLog, LogMetrics, LogSettings, LogState, Wiring};
use fletch_ingest::bus::kafka::{KafkaBus, KafkaSettings, KafkaState};
use fletch_ingest::decode::RemoteWriteDecoder;
use fletch_ingest::source::{SourceDeps, SourceMetrics, SourceRunner};
use fletch_ingest::{Bus, SeriesRegistry};
use fletch_storage::Storage;
use fletch_storage::delta::store::claim_bus;
use object_store::ObjectStore;
use prometheus_client::registry::Registry;
use std::sync::Arc;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// An open bus.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) bus: Arc<dyn Bus>,
    pub(super) readiness: Readiness,
}

/// What readiness depends on.
#[derive(Debug, Clone)]
pub(super) enum Readiness {
    /// The replay of the embedded log.
    Log(watch::Receiver<LogState>),
    /// Partitions of the bus on Kafka.
    Kafka(Arc<KafkaBus>),
}

impl Readiness {
    pub(super) fn not_ready(&self) -> Option<String> {
        match self {
            Self::Log(state) => match &*state.borrow() {
                LogState::Ready => None,
                LogState::Replaying => Some("reading back the log; what was acknowledged before the start is not yet all visible".into()),
                LogState::Failed(why) => Some(format!("the log has failed: {why}")),
            },
            Self::Kafka(bus) => match &*bus.state().borrow() {
                KafkaState::Ready => None,
                KafkaState::Joining => Some("waiting for its partitions of the bus".into()),
                KafkaState::Replaying => Some("reading what the bus has and the tables have not".into()),
                KafkaState::Failed(why) => Some(format!("the bus has failed: {why}")),
            },
        }
    }

    /// What queries here do not see.
    pub(super) fn warnings(&self) -> Option<String> {
        if let Some(why) = self.not_ready() {
            return Some(format!("the answer may lack samples: {why}"));
        }
        let Self::Kafka(bus) = self else { return None };
        let assignment = bus.assignment();
        let (owned, all) = (assignment.owned.len(), assignment.partitions as usize);
        let text = format!(
            "this process holds {owned} of {all} partitions of the bus; samples of the others are in its answers once they are in the tables"
        );
        (owned < all).then_some(text)
    }

    /// After the last flush: gives the partitions to the others at once.
    pub(super) async fn leave(&self) {
        if let Self::Kafka(bus) = self {
            bus.leave().await;
        }
    }
}

/// Opens the bus and begins to deliver to storage, then alerting.
pub(super) async fn open(
    settings: &Settings,
    store: &Arc<dyn ObjectStore>,
    storage: &Arc<Storage>,
    alerting: &Arc<Alerting>,
    registry: &Arc<SeriesRegistry>,
    clock: &SharedClock,
    metrics: &mut Registry,
) -> anyhow::Result<Opened> {
    let wiring = Wiring {
        registry: registry.clone(),
        clock: clock.clone(),
        sinks: vec![storage.clone(), alerting.stream_sink()],
        admission: Some(storage.clone()),
        metrics: LogMetrics::register(metrics),
    };
    let Some(kafka) = &settings.kafka else {
        let uuid = EmbeddedLog::identify(&settings.data_dir)?;
        claim_bus(store.as_ref(), &format!("log:{uuid}")).await?;
        storage.set_bus_id(&uuid.to_string())?;
        let log_settings = LogSettings::new(settings.data_dir.clone(), settings.log_bytes_max);
        let log = EmbeddedLog::open(log_settings, wiring).await.context("opening the embedded log")?;
        let readiness = Readiness::Log(log.state());
        return Ok(Opened { bus: log, readiness });
    };
    let kafka = KafkaSettings {
        topic: kafka.topic.clone(),
        group: kafka.group.clone(),
        partitions: kafka.partitions,
        properties: kafka.properties.clone(),
        ..KafkaSettings::new(kafka.brokers.clone())
    };
    let identity = KafkaBus::identify(&kafka).await.context("`--kafka-brokers`")?;
    claim_bus(store.as_ref(), &format!("kafka:{identity}")).await?;
    storage.set_bus_id(&identity)?;
    let bus = KafkaBus::open(kafka, wiring).await.context("opening the bus on kafka")?;
    Ok(Opened { readiness: Readiness::Kafka(bus.clone()), bus })
}

/// What sources need besides the bus.
pub(super) struct SourceParts<'a> {
    pub(super) registry: &'a Arc<SeriesRegistry>,
    pub(super) remote_write: &'a Arc<RemoteWriteDecoder>,
    pub(super) clock: &'a SharedClock,
    pub(super) stop: &'a CancellationToken,
}

/// Starts reading foreign topics.
pub(super) fn start_sources(
    settings: &Settings,
    opened: &Opened,
    parts: &SourceParts<'_>,
    metrics: &mut Registry,
    tasks: &mut JoinSet<()>,
) -> anyhow::Result<()> {
    if settings.kafka_sources.is_empty() {
        return Ok(());
    }
    let metrics = SourceMetrics::register(metrics);
    let excluded_topics = settings.kafka.as_ref().map(|k| vec![k.topic.clone(), format!("{}-sources", k.topic)]).unwrap_or_default();
    for source in &settings.kafka_sources {
        let deps = SourceDeps {
            bus: opened.bus.clone(),
            registry: parts.registry.clone(),
            limits: settings.limits.clone(),
            clock: parts.clock.clone(),
            remote_write: parts.remote_write.clone(),
            excluded_topics: excluded_topics.clone(),
            metrics: metrics.clone(),
        };
        let runner = SourceRunner::start(source.clone(), deps, parts.stop.clone()).context("config key `fletch.sources.kafka`")?;
        tasks.spawn(async move {
            if let Err(error) = runner.finished().await {
                tracing::error!(%error, "a kafka source has ended; the rest of the server goes on");
            }
        });
    }
    Ok(())
}

/// Memory of this machine, from the kernel; 4 GiB when it does not say.
pub(super) fn machine_memory_bytes() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib = text.lines().find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    kib.map_or(4 << 30, |kib| kib << 10)
}
