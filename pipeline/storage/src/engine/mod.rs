//! The engine: takes deliveries, keeps runs, flushes them into the tables, and comes back after a crash.
//!
//! ```text
//!  assigned ─▶ offset of `samples` ─▶ the bus delivers from there ─▶ insert ─▶ runs ─▶ flush ─▶ tables ─▶ release the log
//!                                                                             └──────── view() ───────┘
//! ```
//!
//! # Invariants
//! - **S2**, **S4** of the crate; **A1**–**A2** ([`insert`]), **E1**–**E3** ([`state`]), **G1**–**G3** ([`flush`]), **W1**–**W3** ([`load`]).
//! - Locks are taken in this order: `inserter`, `adopting`, `state`, a tenant's index. None is held over an await.
//!
//! # When it fails
//! A crash loses what is in memory; the offset in `samples` says from where the bus delivers it again. A flush that fails leaves
//! everything in memory and readable.
//!
//! # Not here
//! Queries (`view`), the log of a table (`delta`), what compaction writes (`compact`), tiers.

mod background;
pub(crate) mod core;
pub(crate) mod facts;
pub(crate) mod flush;
mod insert;
pub(crate) mod load;
mod metrics;
mod settings;
pub(crate) mod state;
mod upkeep;

#[cfg(test)]
pub(crate) mod tests;

pub use metrics::Metrics;
pub use settings::Settings;

use self::core::Core;
use crate::{ReadView, StorageError};
use fletch_common::SharedClock;
use fletch_ingest::bus::Admission;
use fletch_ingest::{BatchSink, Bus, BusError, Delivery, Partition, SeriesRegistry};
use fletch_schemas::TenantId;
use object_store::ObjectStore;
use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// When a refused append is worth to be tried again: a flush takes a few seconds.
const RETRY_AFTER: Duration = Duration::from_secs(5);

/// What a flush did.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct FlushReport {
    /// Files of `samples` that were committed.
    pub files: usize,
    /// Rows in them.
    pub rows: u64,
    /// Rows added to `series`.
    pub series_rows: u64,
    /// Version of `samples` that holds everything delivered before the flush began.
    pub version: i64,
    /// Partitions that another process owns: what was unflushed of them was dropped here.
    pub fenced: Vec<Partition>,
}

/// Hot runs, label index and tables of one process.
#[derive(Debug)]
pub struct Storage {
    pub(crate) core: Arc<Core>,
}

impl Storage {
    /// Opens (or creates) the tables below `tables/` of `store` and loads the newest files into memory. To be called in a tokio runtime that
    /// lives as long as the storage.
    ///
    /// # Errors
    /// The store cannot be read, or holds something that is not ours.
    pub async fn open(
        settings: Settings,
        store: Arc<dyn ObjectStore>,
        registry: Arc<SeriesRegistry>,
        clock: SharedClock,
    ) -> Result<Arc<Self>, StorageError> {
        let core = Core::open(settings, store, registry, clock).await?;
        core.warm_newest().await;
        Ok(Arc::new(Self { core: Arc::new(core) }))
    }

    /// Names the bus whose offsets the tables hold: the log's uuid, or cluster id + topic id. To be called once, before the bus is opened:
    /// it asks for offsets at once ([`BatchSink::assigned`]).
    ///
    /// # Errors
    /// [`StorageError::Conflict`] when it was named otherwise before.
    pub fn set_bus_id(&self, bus_id: &str) -> Result<(), StorageError> {
        let known = self.core.bus_id.get_or_init(|| bus_id.to_owned());
        if known == bus_id {
            return Ok(());
        }
        Err(StorageError::Conflict(format!("storage follows bus `{known}` already, not `{bus_id}`")))
    }

    /// The bus that is told what was committed ([`Bus::release`]).
    pub fn set_bus(&self, bus: Weak<dyn Bus>) {
        *self.core.bus.write() = Some(bus);
    }

    /// The tiers that queries may read. Only the first call counts.
    pub fn set_tiers(&self, tiers: Arc<crate::tiers::Tiers>) {
        let _ = self.core.tiers.set(tiers);
    }

    /// An immutable view of one tenant; cheap.
    pub fn view(&self, tenant: &TenantId) -> ReadView {
        ReadView::new(self.core.clone(), tenant)
    }

    /// Tenants that have data here, sorted.
    pub fn tenants(&self) -> Vec<TenantId> {
        let state = self.core.state.read();
        let all: BTreeSet<TenantId> = state.samples.tenants().chain(state.tenants.keys()).cloned().collect();
        all.into_iter().collect()
    }

    /// Commits everything delivered so far.
    ///
    /// # Errors
    /// The store failed as often as the settings allow; the data stays in memory and readable.
    pub async fn flush(&self) -> Result<FlushReport, StorageError> {
        self.core.flush().await
    }

    /// Takes over what other processes committed, now.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn refresh(&self) -> Result<(), StorageError> {
        self.core.refresh().await.map(drop)
    }

    /// Flushes by size and interval, follows the tables and writes checkpoints until `stop`. Does not flush at the end: close the bus, then
    /// call [`flush`](Self::flush).
    pub async fn run_background(self: Arc<Self>, stop: CancellationToken) {
        self.core.clone().run_background(stop).await;
    }

    /// Asks the background task for a flush now.
    pub fn request_flush(&self) {
        self.core.flush_asked.store(true, Ordering::Relaxed);
        self.core.flush_wanted.notify_one();
    }

    /// Bytes of samples in memory that no table holds yet.
    pub fn unflushed_bytes(&self) -> u64 {
        self.core.unflushed_bytes()
    }

    /// Whether there is room for more unflushed data; ask before an append.
    ///
    /// # Errors
    /// [`BusError::Full`].
    pub fn admission(&self) -> Result<(), BusError> {
        let limit = self.core.settings.unflushed_bytes_max;
        if self.core.unflushed_bytes() < limit {
            return Ok(());
        }
        self.core.flush_wanted.notify_one();
        Err(BusError::Full { what: "unflushed data", limit, retry_after: RETRY_AFTER })
    }

    /// Self-metrics; register them once.
    pub fn metrics(&self) -> &Metrics {
        self.core.count_series();
        &self.core.metrics
    }

    /// The table of samples, for maintenance (checkpoints, vacuum) and tiers.
    pub fn samples_table(&self) -> &crate::delta::DeltaTable {
        &self.core.samples
    }

    /// The table of series, for maintenance.
    pub fn series_table(&self) -> &crate::delta::DeltaTable {
        &self.core.series
    }
}

impl Admission for Storage {
    fn admit(&self) -> Result<(), BusError> {
        self.admission()
    }
}

impl BatchSink for Storage {
    fn deliver(&self, delivery: &Delivery) {
        self.core.deliver(delivery);
    }

    fn assigned(&self, partition: Partition) -> Result<Option<i64>, BusError> {
        let app_id = self
            .core
            .app_id(partition)
            .ok_or_else(|| BusError::Settings("storage was not told which bus it follows (set_bus_id)".into()))?;
        let loading = async {
            self.core.refresh().await?;
            let offset = self.core.take_partition(partition, app_id);
            self.core.load_retry_index().await;
            Ok::<_, StorageError>(offset)
        };
        self.core.block_on(loading).map_err(|e| BusError::Corrupt(format!("partition {partition} cannot be taken: {e}")))
    }

    fn revoked(&self, partition: Partition) {
        self.core.drop_partition(partition, false);
    }
}
