//! Which rows of a file belong to which series: read once from the two key columns, then every selection is exact row ranges.

use super::columns::{Batches, KeyColumns};
use super::source::OpenFile;
use crate::StorageError;
use std::ops::Range;
use std::sync::Arc;

/// The series of a file, in the order of its rows: by (metric, series_id).
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct KeyIndex {
    metrics: Vec<Arc<str>>,
    /// First series of each metric, and the end: one longer than `metrics`.
    metric_starts: Vec<usize>,
    series_ids: Vec<i64>,
    /// First row of each series, and the end: one longer than `series_ids`.
    row_starts: Vec<usize>,
}

impl KeyIndex {
    /// Number of series.
    pub fn len(&self) -> usize {
        self.series_ids.len()
    }

    /// Whether the file has no rows.
    pub fn is_empty(&self) -> bool {
        self.series_ids.is_empty()
    }

    /// Rows of one series; `None` when the file has none.
    pub fn rows(&self, metric: &str, series_id: i64) -> Option<Range<usize>> {
        let m = self.metrics.binary_search_by(|other| other.as_ref().cmp(metric)).ok()?;
        let (from, to) = (self.metric_starts[m], self.metric_starts[m + 1]);
        let s = from + self.series_ids[from..to].binary_search(&series_id).ok()?;
        Some(self.row_starts[s]..self.row_starts[s + 1])
    }

    /// Every series and its rows, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&Arc<str>, i64, Range<usize>)> {
        self.metrics.iter().enumerate().flat_map(move |(m, metric)| {
            let series = self.metric_starts[m]..self.metric_starts[m + 1];
            series.map(move |s| (metric, self.series_ids[s], self.row_starts[s]..self.row_starts[s + 1]))
        })
    }

    /// Bytes in memory.
    pub fn memory_bytes(&self) -> usize {
        let names: usize = self.metrics.iter().map(|m| m.len() + 32).sum();
        names + 8 * (self.metric_starts.len() + self.series_ids.len() + self.row_starts.len())
    }

    /// Adds a row; `false` when it is not in order.
    pub(super) fn push(&mut self, metric: &str, series_id: i64, row: usize) -> bool {
        let same_metric = match self.metrics.last() {
            Some(last) if last.as_ref() == metric => true,
            Some(last) if last.as_ref() > metric => return false,
            _ => {
                self.metrics.push(Arc::from(metric));
                self.metric_starts.push(self.series_ids.len());
                false
            }
        };
        match self.series_ids.last() {
            Some(&last) if same_metric && last == series_id => return true,
            Some(&last) if same_metric && last > series_id => return false,
            _ => {}
        }
        self.series_ids.push(series_id);
        self.row_starts.push(row);
        true
    }

    pub(super) fn finish(mut self, rows: usize) -> Self {
        self.metric_starts.push(self.series_ids.len());
        self.row_starts.push(rows);
        self
    }
}

/// Reads the key columns of a file.
pub(super) async fn load(file: &OpenFile) -> Result<KeyIndex, StorageError> {
    let mut index = KeyIndex::default();
    let mut row = 0;
    let mut batches = Batches::open(file, &["metric", "series_id"], None)?;
    while let Some(batch) = batches.next().await? {
        let keys = KeyColumns::of(file.source.name(), &batch)?;
        keys.each_series(|metric, series_id, range| {
            let ordered = index.push(metric, series_id, row + range.start);
            if ordered { Ok(()) } else { Err("its rows are not sorted by metric and series") }
        })?;
        row += batch.num_rows();
    }
    if row != file.rows() {
        let why = format!("its key columns have {row} rows, its footer says {}", file.rows());
        return Err(StorageError::Corrupt { path: file.source.name().to_owned(), why });
    }
    Ok(index.finish(row))
}
