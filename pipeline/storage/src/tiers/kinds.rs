//! Which columns a series gets: by the kind of metric that its row in `series` names for the day.
//!
//! A row of `series` is appended once per (tenant, date, series) and never changes its kind, so the kind of a series is fixed for a day
//! without anything to remember here. Two rows that disagree, and a series without a kind, get all columns.

use crate::StorageError;
use crate::delta::{DeltaTable, FileEntry, Snapshot};
use crate::parquet_file::{FileSource, SeriesKind, read_series_kinds};
use fletch_schemas::{MetricKind, TenantId};
use parking_lot::Mutex;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

/// The columns of a row that are not NULL.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum RowKind {
    /// All of them.
    #[default]
    All,
    /// count, first, last, their times, increase.
    Counter,
    /// count, sum, min, max, last.
    Gauge,
}

impl RowKind {
    fn of(kind: MetricKind) -> Self {
        match kind {
            MetricKind::Counter => Self::Counter,
            MetricKind::Gauge => Self::Gauge,
            _ => Self::All,
        }
    }
}

/// Kinds of the series of one day.
#[derive(Debug, Default)]
pub(super) struct Kinds(HashMap<Arc<str>, HashMap<i64, RowKind>>);

impl Kinds {
    /// The kind of a series; all columns for one that nobody described.
    pub(super) fn of(&self, metric: &str, series_id: i64) -> RowKind {
        self.0.get(metric).and_then(|ids| ids.get(&series_id)).copied().unwrap_or_default()
    }

    fn add(&mut self, rows: &[SeriesKind]) {
        for row in rows {
            let kind = RowKind::of(row.kind);
            let ids = self.0.entry(row.metric.clone()).or_default();
            ids.entry(row.series_id).and_modify(|known| *known = if *known == kind { kind } else { RowKind::All }).or_insert(kind);
        }
    }
}

/// Reads kinds from `series`, each file once as long as it is used.
#[derive(Debug)]
pub(super) struct KindReader {
    series: Arc<DeltaTable>,
    read: Mutex<HashMap<String, Arc<Vec<SeriesKind>>>>,
}

impl KindReader {
    pub(super) fn new(series: Arc<DeltaTable>) -> Self {
        Self { series, read: Mutex::default() }
    }

    /// The newest version of `series`.
    pub(super) async fn snapshot(&self) -> Result<Arc<Snapshot>, StorageError> {
        self.series.refresh().await
    }

    /// Kinds of a tenant's series on a day; those of the day before for series that have no row of the day: the window that ends at
    /// midnight may be all there is of them.
    pub(super) async fn day(&self, series: &Snapshot, tenant: &TenantId, date: i32) -> Result<Kinds, StorageError> {
        let mut kinds = self.kinds_of(series.partition(tenant, date)).await?;
        for (metric, ids) in self.kinds_of(series.partition(tenant, date.saturating_sub(1))).await?.0 {
            let known = kinds.0.entry(metric).or_default();
            for (id, kind) in ids {
                known.entry(id).or_insert(kind);
            }
        }
        Ok(kinds)
    }

    /// Forgets files of other days than these.
    pub(super) fn keep(&self, series: &Snapshot, days: &HashSet<(TenantId, i32)>) {
        let used: HashSet<&str> = days
            .iter()
            .flat_map(|(tenant, date)| series.tenant_files(tenant, date.saturating_sub(1)..=*date))
            .map(|file| file.path.as_str())
            .collect();
        self.read.lock().retain(|path, _| used.contains(path.as_str()));
    }

    async fn kinds_of(&self, files: &[Arc<FileEntry>]) -> Result<Kinds, StorageError> {
        let mut kinds = Kinds::default();
        for file in files {
            kinds.add(&self.file(file).await?);
        }
        Ok(kinds)
    }

    async fn file(&self, file: &FileEntry) -> Result<Arc<Vec<SeriesKind>>, StorageError> {
        if let Some(known) = self.read.lock().get(&file.path) {
            return Ok(known.clone());
        }
        let path = self.series.object_path(&file.path)?;
        let rows = Arc::new(read_series_kinds(&FileSource::object(self.series.store().clone(), path, file)).await?);
        self.read.lock().insert(file.path.clone(), rows.clone());
        Ok(rows)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_that_disagree_get_all_columns() {
        let row = |series_id, kind| SeriesKind { metric: "m".into(), series_id, kind };
        let mut kinds = Kinds::default();
        kinds.add(&[row(1, MetricKind::Counter), row(2, MetricKind::Gauge), row(3, MetricKind::Histogram)]);
        kinds.add(&[row(1, MetricKind::Counter), row(2, MetricKind::Unknown)]);
        let found: Vec<RowKind> = (1..=4).map(|id| kinds.of("m", id)).collect();
        assert_eq!(found, [RowKind::Counter, RowKind::All, RowKind::All, RowKind::All]);
    }
}
