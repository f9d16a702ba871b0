//! The wiring: opens the stages in the order of the data, runs until a signal, stops them in reverse.
//!
//! ```text
//!  start   data folder lock ─▶ store ─▶ storage ─▶ alerting ─▶ bus (replays) ─▶ sources ─▶ HTTP, Flight SQL
//!  stop    HTTP, Flight SQL drain ─▶ sources ─▶ bus closes ─▶ storage flushes ─▶ alerting ─▶ lock
//! ```
//!
//! # When it fails
//! A step of the start that fails ends the process with one error that names the flag or file to change. After a signal every step gets its time; a second
//! signal ends the process at once (nothing acknowledged is lost by that: the log has it).

mod bus;
mod cardinality;
mod ingest_metrics;
mod logging;
mod maintenance;
mod queries;

pub use logging::start_logging;

use crate::config::Settings;
use anyhow::Context;
use fletch_alerting::Alerting;
use fletch_common::{SharedClock, SystemClock};
use fletch_ingest::bus::DataDirLock;
use fletch_ingest::decode::RemoteWriteDecoder;
use fletch_ingest::quota::SampleQuotas;
use fletch_ingest::{Bus, SeriesRegistry};
use fletch_query::engine::{Engine, EngineSettings};
use fletch_query::sql::{SqlEngine, SqlSettings};
use fletch_schemas::TenantId;
use fletch_storage::delta::store::{open_store, wait_until_it_answers};
use fletch_storage::{Storage, StorageError};
use ingest_metrics::IngestMetrics;
use object_store::ObjectStore;
use prometheus_client::registry::Registry;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// What every handler reaches.
#[derive(Debug)]
pub struct App {
    /// As configured.
    pub settings: Settings,
    /// The clock of the process.
    pub clock: SharedClock,
    /// All series of the process.
    pub registry: Arc<SeriesRegistry>,
    /// Hot runs and tables.
    pub storage: Arc<Storage>,
    /// Where samples become durable.
    pub bus: Arc<dyn Bus>,
    /// Decoder of remote write.
    pub remote_write: Arc<RemoteWriteDecoder>,
    /// PromQL.
    pub engine: Arc<Engine>,
    /// SQL.
    pub sql: Arc<SqlEngine>,
    /// Rules and alerts.
    pub alerting: Arc<Alerting>,
    /// Our own metrics.
    pub metrics: Registry,
    /// Counters of the write APIs.
    pub ingest_metrics: IngestMetrics,
    /// How many samples a tenant may push.
    pub sample_quotas: SampleQuotas,
    /// When the process started, milliseconds.
    pub started_ms: i64,
    pub(crate) maintenance: Arc<maintenance::Role>,
    readiness: bus::Readiness,
}

impl App {
    /// Why the server is not ready, if it is not.
    pub fn not_ready(&self) -> Option<String> {
        self.readiness.not_ready()
    }

    /// What every answer to a query should say about what this process cannot see now.
    pub fn warnings(&self) -> Option<String> {
        self.readiness.warnings()
    }

    /// Brings gauges up to date that are computed only when somebody looks.
    pub fn refresh_metrics(&self) {
        let _ = self.storage.metrics();
        self.ingest_metrics.series.set(i64::try_from(self.registry.len()).unwrap_or(i64::MAX));
    }
}

/// Runs the server until SIGINT or SIGTERM.
///
/// # Errors
/// What failed at the start, naming what to change.
pub async fn run(settings: Settings) -> anyhow::Result<()> {
    // Only one TLS provider is linked; a second installation is an error that says the first one is there.
    let _ = rustls::crypto::ring::default_provider().install_default();
    for warning in &settings.warnings {
        tracing::warn!("{warning}");
    }
    let _lock = DataDirLock::acquire(&settings.data_dir)?;
    let listeners = Listeners::bind(&settings).await?;
    let stop = CancellationToken::new();
    let mut tasks = JoinSet::new();
    let app = start(settings, &stop, &mut tasks).await?;
    let serving = CancellationToken::new();
    let (http_addr, flight_addr) = (listeners.http.local_addr()?, listeners.flight.local_addr()?);
    let http = tokio::spawn(crate::http::server::serve(listeners.http, crate::http::router(app.clone()), serving.clone()));
    let flight = crate::flight::FlightSql::new(app.sql.clone(), app.storage.clone());
    let flight = tokio::spawn(flight.serve(listeners.flight, serving.clone().cancelled_owned()));
    announce(&app.settings, http_addr, flight_addr);
    signal().await;
    tracing::info!("stopping: no new requests; a second signal ends the process at once");
    tokio::spawn(async {
        signal().await;
        std::process::exit(130);
    });
    serving.cancel();
    let _ = http.await;
    let _ = flight.await;
    stop.cancel();
    while tasks.join_next().await.is_some() {}
    app.bus.close().await;
    match app.storage.flush().await {
        Ok(report) => tracing::info!(files = report.files, rows = report.rows, version = report.version, "flushed"),
        Err(error) => tracing::error!(%error, "could not flush at the stop; the log has everything and the next start reads it back"),
    }
    app.readiness.leave().await;
    app.alerting.stop().await;
    tracing::info!("stopped");
    Ok(())
}

struct Listeners {
    http: TcpListener,
    flight: TcpListener,
}

impl Listeners {
    /// Taken before anything is opened, so that a port in use costs nothing.
    async fn bind(settings: &Settings) -> anyhow::Result<Self> {
        let bind = |addr: SocketAddr, flag: &'static str| async move {
            TcpListener::bind(addr).await.with_context(|| format!("cannot listen on {addr}: choose another address with `{flag}`"))
        };
        Ok(Self { http: bind(settings.http_addr, "--http-addr").await?, flight: bind(settings.flight_addr, "--flight-addr").await? })
    }
}

async fn start(settings: Settings, stop: &CancellationToken, tasks: &mut JoinSet<()>) -> anyhow::Result<Arc<App>> {
    let clock: SharedClock = Arc::new(SystemClock);
    let mut metrics = Registry::default();
    let registry = Arc::new(SeriesRegistry::new());
    let store = open_store(&settings.object_store, std::env::vars()).context("`--object-store`")?;
    wait_until_it_answers(store.as_ref(), clock.as_ref()).await.context("`--object-store`")?;
    let storage = open_storage(&settings, store.clone(), registry.clone(), clock.clone()).await?;
    storage.metrics().register(&mut metrics);
    let quotas = cardinality::install_quotas(&settings, &storage, &registry, &clock).await?;
    let engine = Arc::new(Engine::new(EngineSettings { limits: settings.limits.clone(), ..EngineSettings::default() }));
    let alerting = queries::start_alerting(&settings, &storage, &engine, &registry, &clock, &mut metrics).await?;
    let opened = bus::open(&settings, &store, &storage, &alerting, &registry, &clock, &mut metrics).await?;
    storage.set_bus(Arc::downgrade(&opened.bus));
    let remote_write = Arc::new(RemoteWriteDecoder::new(registry.clone(), settings.limits.clone()));
    let parts = bus::SourceParts { registry: &registry, remote_write: &remote_write, clock: &clock, stop };
    bus::start_sources(&settings, &opened, &parts, &mut metrics, tasks)?;
    tasks.spawn(storage.clone().run_background(stop.clone()));
    cardinality::start(&settings, &storage, quotas, &clock, &mut metrics, stop, tasks);
    let maintenance = maintenance::start(&settings, &storage, &store, &clock, &mut metrics, stop, tasks).await?;
    let permits = Arc::new(Semaphore::new(settings.limits.queries_concurrent_max));
    let sql_settings =
        SqlSettings { limits: settings.limits.clone(), spill_dir: Some(settings.data_dir.join("spill")), ..SqlSettings::default() };
    let sql = SqlEngine::new(sql_settings, store, clock.clone(), engine.clone(), permits.clone())?;
    storage.set_tiers(maintenance.tiers.clone());
    sql.set_tiers(maintenance.tiers);
    let ingest_metrics = IngestMetrics::register(&mut metrics);
    Ok(Arc::new(App {
        started_ms: clock.now_ms(),
        sample_quotas: SampleQuotas::new(settings.quotas(), clock.clone()),
        readiness: opened.readiness,
        bus: opened.bus,
        settings,
        clock,
        registry,
        storage,
        remote_write,
        engine,
        sql,
        alerting,
        metrics,
        ingest_metrics,
        maintenance: maintenance.role,
    }))
}

async fn open_storage(
    settings: &Settings,
    store: Arc<dyn ObjectStore>,
    registry: Arc<SeriesRegistry>,
    clock: SharedClock,
) -> Result<Arc<Storage>, StorageError> {
    let memory = settings.memory_bytes.unwrap_or_else(|| bus::machine_memory_bytes() / 4);
    let storage_settings = fletch_storage::Settings {
        flush_interval: settings.flush_interval,
        flush_bytes: (256 << 20).min(memory / 4),
        unflushed_bytes_max: (1 << 30).min(memory / 2),
        resident_bytes_max: memory,
        log_bytes_max: settings.kafka.is_none().then_some(settings.log_bytes_max),
        regex_bytes_max: settings.limits.regex_bytes_max,
        ..fletch_storage::Settings::default()
    };
    Storage::open(storage_settings, store, registry, clock).await
}

/// Says on standard output what listens where, and what to try first.
#[allow(clippy::print_stdout, reason = "the first lines are for the person who started it, whatever the log level")]
fn announce(settings: &Settings, http: SocketAddr, flight: SocketAddr) {
    println!("fletch {} is running", env!("CARGO_PKG_VERSION"));
    println!("  HTTP        http://{http}          PromQL, SQL, remote write (/api/v1/write)");
    println!("  Flight SQL  grpc://{flight}");
    println!("  tables      {}/tables", settings.object_store);
    println!("try:");
    println!("  curl -d 'room_temperature_celsius{{room=\"kitchen\"}} 21.5' http://{http}/api/v1/metrics/write");
    println!("  curl 'http://{http}/api/v1/query?query=room_temperature_celsius'");
}

async fn signal() {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut interrupt), Ok(mut terminate)) = (signal(SignalKind::interrupt()), signal(SignalKind::terminate())) else {
        tracing::error!("cannot listen for signals; end the process with SIGKILL");
        return std::future::pending().await;
    };
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
}

/// The tenant that rules work for.
pub(crate) fn rules_tenant(settings: &Settings) -> anyhow::Result<TenantId> {
    TenantId::new(&settings.rules_tenant).context("config key `fletch.rules_tenant`")
}
