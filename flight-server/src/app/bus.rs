//! Which bus a process uses, and when it is ready.

use crate::config::Settings;
use anyhow::Context;
use fletch_alerting::Alerting;
use fletch_common::SharedClock;
use fletch_ingest::bus::embedded::{EmbeddedLog, LogMetrics, LogSettings, LogState, Wiring};
use fletch_ingest::decode::RemoteWriteDecoder;
use fletch_ingest::{BatchSink, Bus, SeriesRegistry};
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
#[derive(Debug)]
pub(super) enum Readiness {
    /// The replay of the embedded log.
    Log(watch::Receiver<LogState>),
}

impl Readiness {
    pub(super) fn not_ready(&self) -> Option<String> {
        match self {
            Self::Log(state) => match &*state.borrow() {
                LogState::Ready => None,
                LogState::Replaying => Some("reading back the log; what was acknowledged before the start is not yet all visible".into()),
                LogState::Failed(why) => Some(format!("the log has failed: {why}")),
            },
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
    let uuid = EmbeddedLog::identify(&settings.data_dir)?;
    claim_bus(store.as_ref(), &format!("log:{uuid}")).await?;
    storage.set_bus_id(&uuid.to_string())?;
    let sinks: Vec<Arc<dyn BatchSink>> = vec![storage.clone(), alerting.stream_sink()];
    let wiring = Wiring {
        registry: registry.clone(),
        clock: clock.clone(),
        sinks,
        admission: Some(storage.clone()),
        metrics: LogMetrics::register(metrics),
    };
    let log = EmbeddedLog::open(LogSettings::new(settings.data_dir.clone(), settings.log_bytes_max), wiring).await.context("opening the embedded log")?;
    let readiness = Readiness::Log(log.state());
    Ok(Opened { bus: log, readiness })
}

/// Starts reading foreign topics.
#[allow(clippy::too_many_arguments, reason = "wiring: each part is passed once")]
pub(super) fn start_sources(
    settings: &Settings,
    opened: &Opened,
    registry: &Arc<SeriesRegistry>,
    remote_write: &Arc<RemoteWriteDecoder>,
    clock: &SharedClock,
    metrics: &mut Registry,
    stop: &CancellationToken,
    tasks: &mut JoinSet<()>,
) -> anyhow::Result<()> {
    let _ = (settings, opened, registry, remote_write, clock, metrics, stop, tasks);
    Ok(())
}

/// Memory of this machine, from the kernel; 4 GiB when it does not say.
pub(super) fn machine_memory_bytes() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib = text.lines().find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    kib.map_or(4 << 30, |kib| kib << 10)
}
