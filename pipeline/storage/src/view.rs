//! What one query sees: an immutable, consistent view over files and runs of one tenant.
//!
//! ```text
//!  ReadView = version of `samples` + version of `series` + { hot runs, resident copies, names of cold files }   taken under one lock
//!  select ──index──▶ series ──▶ slices of runs in [min, max] ──▶ one run: its slice, not copied │ several: merged, each time once
//!                                 ▲ cold files are read first
//! ```
//!
//! # Invariants
//! - **V1** A view never changes; flushes, evictions and commits of others do not touch it. Files that it names stay readable for the
//!   retention of removed files.
//! - **V2** Unflushed in a view are exactly the runs at or above its version's offsets.
//! - **V3** Each (series, time) is answered once: the larger value, a stale marker last.
//! - **V4** `select` does not wait when everything it needs is in memory.
//!
//! # Parts
//! [`select`] series with samples, [`tiers`] the same where windows of a tier answer, [`rows`] Arrow batches for SQL.
//!
//! # Not here
//! Deadlines and admission (the caller), what PromQL makes of it.

mod cardinality;
mod rows;
mod select;
mod tiers;

#[cfg(test)]
mod tests;

pub use cardinality::{HeadStats, cardinality_schema};
pub use rows::unflushed_schema;
pub use tiers::{Stretch, TierValue, WindowsAsk};

use crate::StorageError;
use crate::delta::store::table_root;
use crate::delta::{FileEntry, Snapshot};
use crate::engine::core::Core;
use crate::engine::state::TenantData;
use crate::index::Tenant;
use fletch_schemas::tables::Table;
use fletch_schemas::{Labels, Matcher, MetricMetadata, TenantId, date_of_ms, day_start_ms};
use object_store::ObjectStore;
use roaring::RoaringBitmap;
use std::ops::RangeInclusive;
use std::sync::Arc;

/// Bounds of one selection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SelectLimits {
    /// Most series.
    pub series_max: usize,
    /// Most samples.
    pub samples_max: usize,
}

impl From<&fletch_common::Limits> for SelectLimits {
    fn from(limits: &fletch_common::Limits) -> Self {
        Self { series_max: limits.query_series_max, samples_max: limits.query_samples_max }
    }
}

/// An immutable view of one tenant's data: one version of each table and the runs that are not in it. Cheap to make and to clone.
#[derive(Debug, Clone)]
pub struct ReadView {
    core: Arc<Core>,
    tenant: Arc<Tenant>,
    samples: Arc<Snapshot>,
    series: Arc<Snapshot>,
    data: Arc<TenantData>,
}

impl ReadView {
    pub(crate) fn new(core: Arc<Core>, tenant: &TenantId) -> Self {
        let (samples, series, data) = core.look(tenant);
        // A tenant without data gets an index of its own for this view: names in requests must not fill memory.
        let index = core.find_tenant(tenant).unwrap_or_else(|| Arc::new(Tenant::new(tenant.clone(), core.registry.clone())));
        Self { core, tenant: index, samples, series, data }
    }

    /// Whose data it shows.
    pub fn tenant(&self) -> &TenantId {
        self.tenant.id()
    }

    /// Label sets of the series that match any of `sets` (all series when empty) and were active on a day of the range. Sorted.
    ///
    /// # Errors
    /// A bad regular expression, or a file of `series` that cannot be read.
    pub async fn series(&self, sets: &[Vec<Matcher>], min_ms: i64, max_ms: i64) -> Result<Vec<Labels>, StorageError> {
        let found = self.active(sets, min_ms, max_ms).await?;
        let mut labels: Vec<Labels> = self.core.registry.with(|all| found.iter().map(|r| all[r as usize].labels.clone()).collect());
        labels.sort();
        Ok(labels)
    }

    /// Names of their labels, sorted.
    ///
    /// # Errors
    /// As [`series`](Self::series).
    pub async fn label_names(&self, sets: &[Vec<Matcher>], min_ms: i64, max_ms: i64) -> Result<Vec<String>, StorageError> {
        let found = self.active(sets, min_ms, max_ms).await?;
        Ok(self.tenant.read().labels().names(Some(&found)))
    }

    /// Values of one of their labels, sorted.
    ///
    /// # Errors
    /// As [`series`](Self::series).
    pub async fn label_values(&self, name: &str, sets: &[Vec<Matcher>], min_ms: i64, max_ms: i64) -> Result<Vec<String>, StorageError> {
        let found = self.active(sets, min_ms, max_ms).await?;
        Ok(self.tenant.read().labels().values(name, Some(&found)))
    }

    /// Series that match any of the sets and are known on a date of the range.
    async fn active(&self, sets: &[Vec<Matcher>], min_ms: i64, max_ms: i64) -> Result<RoaringBitmap, StorageError> {
        if min_ms > max_ms {
            return Ok(RoaringBitmap::new());
        }
        let conditions: Vec<_> =
            sets.iter().map(|set| self.core.patterns.conditions(set, self.core.settings.regex_bytes_max)).collect::<Result<_, _>>()?;
        let dates = dates_of(min_ms, max_ms);
        self.core.ensure_series(&self.tenant, &self.series, dates.clone()).await?;
        let index = self.tenant.read();
        let known = index.known_on(dates);
        if conditions.is_empty() {
            return Ok(known);
        }
        let mut found = RoaringBitmap::new();
        for set in &conditions {
            found |= RoaringBitmap::from_sorted_iter(index.select(set)).unwrap_or_default();
        }
        Ok(found & known)
    }

    /// What senders said about metric families, sorted by name.
    pub fn metadata(&self) -> Vec<MetricMetadata> {
        self.tenant.metadata()
    }

    /// Why this view may lack data, for the `warnings` of an answer.
    pub fn warnings(&self) -> Vec<String> {
        let state = self.core.state.read();
        let fenced = state.partitions.iter().filter(|(_, p)| p.fenced);
        fenced
            .map(|(partition, _)| {
                format!("partition {partition} of the bus is owned by another process: its newest samples are missing here")
            })
            .collect()
    }

    /// Version of a table that this view shows; -1 for a table that is not part of views.
    pub fn version(&self, table: Table) -> i64 {
        self.snapshot(table).map_or(-1, |s| s.version())
    }

    /// Files of this tenant in a table, ascending by date; none for a table that is not part of views.
    pub fn files(&self, table: Table) -> Vec<Arc<FileEntry>> {
        let files = |s: &Arc<Snapshot>| s.tenant_files(self.tenant.id(), i32::MIN..=i32::MAX).cloned().collect();
        self.snapshot(table).map(files).unwrap_or_default()
    }

    fn snapshot(&self, table: Table) -> Option<&Arc<Snapshot>> {
        match table {
            Table::Samples => Some(&self.samples),
            Table::Series => Some(&self.series),
            Table::Samples1m | Table::Samples5m | Table::Samples1h => None,
        }
    }

    /// Where the files are.
    pub fn object_store(&self) -> Arc<dyn ObjectStore> {
        self.core.store.clone()
    }

    /// Folder of a table in [`object_store`](Self::object_store); paths of file entries are below it.
    pub fn table_path(&self, table: Table) -> object_store::path::Path {
        table_root(table)
    }
}

/// The dates that a range of times touches. Times outside of the calendar count as its ends.
fn dates_of(min_ms: i64, max_ms: i64) -> RangeInclusive<i32> {
    let clamp = |ms: i64| ms.clamp(day_start_ms(i32::MIN), day_start_ms(i32::MAX));
    date_of_ms(clamp(min_ms))..=date_of_ms(clamp(max_ms))
}
