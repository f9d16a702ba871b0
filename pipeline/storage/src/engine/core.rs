//! What all parts of the engine share.

use super::facts::FactsCache;
use super::insert::Inserter;
use super::metrics::Metrics;
use super::settings::Settings;
use super::state::{Resident, State, TenantData, changed_days};
use super::upkeep::Retired;
use crate::StorageError;
use crate::delta::store::table_root;
use crate::delta::{DeltaTable, FileEntry, Snapshot};
use crate::index::{PatternCache, Tenant};
use crate::parquet_file::OpenFile;
use crate::run::{Run, SAMPLE_BYTES};
use crate::tiers::Tiers;
use ahash::HashMap;
use fletch_common::SharedClock;
use fletch_ingest::{Bus, Partition, SeriesRegistry};
use fletch_schemas::TenantId;
use fletch_schemas::tables::Table;
use object_store::ObjectStore;
use parking_lot::{Mutex, RwLock};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use tokio::sync::{Notify, OnceCell};

/// A file that is being read: all who want it wait for the one who reads it.
pub(crate) type Loading = Arc<OnceCell<Arc<Run>>>;

/// Shared by the engine and its views.
#[derive(Debug)]
pub(crate) struct Core {
    pub(crate) settings: Settings,
    pub(crate) store: Arc<dyn ObjectStore>,
    pub(crate) registry: Arc<SeriesRegistry>,
    pub(crate) clock: SharedClock,
    pub(crate) samples: DeltaTable,
    pub(crate) series: DeltaTable,
    pub(crate) metrics: Metrics,
    pub(crate) patterns: PatternCache,
    /// Indexes by tenant.
    pub(crate) tenants: RwLock<HashMap<TenantId, Arc<Tenant>>>,
    pub(crate) state: RwLock<State>,
    /// Held over a whole delivery: deliveries of several partitions wait for each other. Taken before `state`.
    pub(crate) inserter: Mutex<Inserter>,
    /// Snapshots are adopted one after another. Taken before `state`.
    adopting: Mutex<()>,
    /// One flush at a time.
    pub(crate) flush_turn: tokio::sync::Mutex<()>,
    /// One reader of `series` files at a time.
    pub(crate) series_turn: tokio::sync::Mutex<()>,
    pub(crate) loading: Mutex<HashMap<String, Loading>>,
    pub(crate) facts: FactsCache,
    /// Files that left the tables and that a view may still name.
    pub(crate) retired: Retired,
    pub(crate) open_files: Mutex<Vec<(String, Arc<OpenFile>)>>,
    /// Opened files of tiers, oldest first.
    pub(crate) tier_files: Mutex<VecDeque<(String, Arc<OpenFile>)>>,
    /// The tiers that queries may read; set once at the start.
    pub(crate) tiers: OnceLock<Arc<Tiers>>,
    pub(crate) bus_id: OnceLock<String>,
    pub(crate) bus: RwLock<Option<Weak<dyn Bus>>>,
    pub(crate) flush_wanted: Notify,
    /// Somebody asked for a flush whatever size and age say.
    pub(crate) flush_asked: AtomicBool,
    pub(crate) last_flush_ms: AtomicI64,
    /// Estimate of what was appended to the log since the last flush.
    pub(crate) log_bytes: AtomicU64,
    pub(crate) runtime: tokio::runtime::Handle,
    ticks: AtomicU64,
}

impl Core {
    pub(crate) async fn open(
        settings: Settings,
        store: Arc<dyn ObjectStore>,
        registry: Arc<SeriesRegistry>,
        clock: SharedClock,
    ) -> Result<Self, StorageError> {
        // `samples` before `series`: labels are committed before their samples, so the later look holds all of them.
        let samples = DeltaTable::open_or_create(store.clone(), table_root(Table::Samples), Table::Samples, clock.clone()).await?;
        let series = DeltaTable::open_or_create(store.clone(), table_root(Table::Series), Table::Series, clock.clone()).await?;
        let empty = Arc::new(Snapshot::empty(Table::Samples.name()));
        let state = State::new(empty.clone(), empty);
        let core = Self {
            last_flush_ms: AtomicI64::new(clock.now_ms()),
            settings,
            store,
            registry,
            clock,
            samples,
            series,
            metrics: Metrics::default(),
            patterns: PatternCache::default(),
            tenants: RwLock::default(),
            state: RwLock::new(state),
            inserter: Mutex::default(),
            adopting: Mutex::new(()),
            flush_turn: tokio::sync::Mutex::new(()),
            series_turn: tokio::sync::Mutex::new(()),
            loading: Mutex::default(),
            facts: FactsCache::default(),
            retired: Retired::default(),
            open_files: Mutex::default(),
            tier_files: Mutex::default(),
            tiers: OnceLock::new(),
            bus_id: OnceLock::new(),
            bus: RwLock::new(None),
            flush_wanted: Notify::new(),
            flush_asked: AtomicBool::new(false),
            log_bytes: AtomicU64::new(0),
            runtime: tokio::runtime::Handle::current(),
            ticks: AtomicU64::new(0),
        };
        core.adopt(&core.samples.snapshot(), &core.series.snapshot());
        Ok(core)
    }

    /// The next tick of the use counter.
    pub(crate) fn tick(&self) -> u64 {
        self.ticks.fetch_add(1, Ordering::Relaxed)
    }

    /// Index of a tenant, made if need be: only for tenants that have data.
    pub(crate) fn tenant(&self, id: &TenantId) -> Arc<Tenant> {
        if let Some(known) = self.find_tenant(id) {
            return known;
        }
        let mut tenants = self.tenants.write();
        tenants.entry(id.clone()).or_insert_with(|| Arc::new(Tenant::new(id.clone(), self.registry.clone()))).clone()
    }

    pub(crate) fn find_tenant(&self, id: &TenantId) -> Option<Arc<Tenant>> {
        self.tenants.read().get(id).cloned()
    }

    /// The data of a tenant as of now, with the snapshots it belongs to.
    pub(crate) fn look(&self, tenant: &TenantId) -> (Arc<Snapshot>, Arc<Snapshot>, Arc<TenantData>) {
        let state = self.state.read();
        (state.samples.clone(), state.series.clone(), state.tenant(tenant).cloned().unwrap_or_default())
    }

    /// Takes over everything committed to both tables, and returns the newest `samples`.
    pub(crate) async fn refresh(&self) -> Result<Arc<Snapshot>, StorageError> {
        let samples = self.samples.refresh().await?;
        let series = self.series.refresh().await?;
        self.follow(&samples, &series).await;
        Ok(samples)
    }

    /// Makes newer snapshots what views see. Whoever learns of a commit first calls this; the others change nothing.
    pub(crate) fn adopt(&self, samples: &Arc<Snapshot>, series: &Arc<Snapshot>) {
        let _one = self.adopting.lock();
        let old = self.state.read().samples.clone();
        let newer = samples.version() > old.version();
        let changed = if newer { changed_days(&old, samples) } else { Vec::new() };
        for (tenant, _) in &changed {
            self.tenant(tenant);
        }
        self.retired.note(&old, samples, &changed);
        let old_series = self.state.read().series.clone();
        if series.version() > old_series.version() {
            self.retired.note(&old_series, series, &changed_days(&old_series, series));
        }
        let mut state = self.state.write();
        state.adopt(samples, series, &changed, self.tick());
        let gone = self.trim(&mut state);
        drop(state);
        // Giving back large memory takes a while: not under the lock.
        drop(gone);
    }

    /// Keeps the budget of resident copies, and the gauges, after a change. Returns what left, to be dropped when the lock is free.
    #[must_use]
    pub(crate) fn trim(&self, state: &mut State) -> Vec<Arc<Resident>> {
        let gone = state.evict(self.settings.resident_bytes_max);
        self.gauge(state);
        gone
    }

    pub(crate) fn gauge(&self, state: &State) {
        let signed = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        self.metrics.unflushed_bytes.set(signed(state.hot_samples.saturating_mul(SAMPLE_BYTES)));
        self.metrics.runs.set(signed(state.hot_runs));
        self.metrics.resident_bytes.set(signed(state.resident_bytes));
    }

    pub(crate) fn count_series(&self) {
        let series = self.tenants.read().values().map(|t| i64::try_from(t.len()).unwrap_or(i64::MAX)).sum();
        self.metrics.series.set(series);
    }

    /// Bytes of samples that no table holds.
    pub(crate) fn unflushed_bytes(&self) -> u64 {
        u64::try_from(self.metrics.unflushed_bytes.get()).unwrap_or(0)
    }

    /// App id of a partition; `None` before the bus was named.
    pub(crate) fn app_id(&self, partition: Partition) -> Option<String> {
        self.bus_id.get().map(|bus| format!("bus:{bus}:{partition}"))
    }

    /// Bytes that a file will take in memory.
    pub(crate) fn decoded_bytes(entry: &FileEntry) -> u64 {
        entry.rows.saturating_mul(SAMPLE_BYTES)
    }

    /// Runs a future to its end from code that is not async: a thread of the bus, or (in tests) a task.
    pub(crate) fn block_on<T: Send>(&self, future: impl Future<Output = T> + Send) -> T {
        use tokio::runtime::{Handle, RuntimeFlavor};
        match Handle::try_current() {
            Err(_) => self.runtime.block_on(future),
            Ok(here) if here.runtime_flavor() == RuntimeFlavor::MultiThread => tokio::task::block_in_place(|| here.block_on(future)),
            // A runtime of one thread cannot drive the future while we wait for it here: another thread does.
            Ok(_) => std::thread::scope(|scope| {
                let waiter = scope.spawn(|| {
                    let _runtime = self.runtime.enter();
                    futures::executor::block_on(future)
                });
                waiter.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            }),
        }
    }
}
