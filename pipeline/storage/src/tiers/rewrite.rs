//! From rows to files of a tier: new rows beside what stays of the files whose windows were re-opened.
//!
//! Each run of a job adds a file per partition that it touches. When a partition has [`CROWD`] files of about one size, the next file takes
//! their rows in: a day of a tier ends as a handful of files, and a row is written again a few times, not once per run.

use super::Tier;
use super::kinds::{Kinds, RowKind};
use super::row::{Row, StoredRows, batch};
use super::touched::Windows;
use crate::StorageError;
use crate::delta::{DeltaTable, FileEntry, FileIdentity, Snapshot};
use crate::parquet_file::{FileSource, write_batch};
use arrow::array::{BooleanArray, UInt32Array};
use arrow::compute::{SortColumn, concat_batches, filter_record_batch, lexsort_to_indices, take_record_batch};
use arrow::error::ArrowError;
use arrow::record_batch::RecordBatch;
use fletch_schemas::TenantId;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use std::collections::HashMap;
use std::sync::Arc;

/// Files of about one size in a partition that are put together.
const CROWD: usize = 8;
/// Files of up to this size count as one size; each further size is [`CROWD`] times the one before.
const SMALL_BYTES: u64 = 64 << 10;

/// What a partition's rows change.
#[derive(Debug, Default)]
pub(super) struct Change {
    pub(super) added: Option<FileEntry>,
    pub(super) removed: Vec<Arc<FileEntry>>,
    pub(super) rows: u64,
    /// Rows that late samples were merged into because their raw neighbours may be gone.
    pub(super) merged: u64,
}

/// What is known anew of one partition.
pub(super) struct News<'a> {
    pub(super) tier: Tier,
    pub(super) tenant: &'a TenantId,
    pub(super) date: i32,
    /// Rows of `windows`, which are exact.
    pub(super) rows: Vec<Row>,
    pub(super) windows: &'a Windows,
    /// Rows of windows whose raw samples may be gone in part: late samples alone.
    pub(super) late: Vec<Row>,
    /// Whether `late` may hold samples that the stored rows count already. Stored rows are left alone then.
    pub(super) late_known: bool,
    pub(super) kinds: &'a Kinds,
    /// Windows up to here were written before.
    pub(super) until_ms: i64,
    /// When the newest raw row was committed, and when this is written; milliseconds.
    pub(super) committed_ms: i64,
    pub(super) now_ms: i64,
}

impl News<'_> {
    /// Rows with the columns of their kinds.
    fn batch(&self, rows: &[Row]) -> Result<RecordBatch, ArrowError> {
        let kinds: Vec<RowKind> = rows.iter().map(|r| self.kinds.of(&r.metric, r.series_id)).collect();
        batch(rows, &kinds)
    }
}

/// Uploads the file that holds the news of a partition and whatever else was in the files that it replaces.
///
/// # Errors
/// A file cannot be read or written.
pub(super) async fn merge(table: &DeltaTable, snapshot: &Snapshot, news: News<'_>) -> Result<Change, StorageError> {
    let arrow = |source| StorageError::Arrow { doing: "merging rows of the tier", source };
    let mut change = Change::default();
    let mut late: HashMap<(Arc<str>, i64, i64), &Row> = news.late.iter().map(|r| ((r.metric.clone(), r.series_id, r.time_ms), r)).collect();
    let mut batches = vec![news.batch(&news.rows).map_err(arrow)?];
    let mut committed_ms = news.committed_ms;
    for (file, crowded) in concerned(snapshot, &news) {
        let old = read(table, &file).await?;
        let rows = StoredRows::of(&old)?;
        let (mut joined, mut kinds) = (Vec::new(), Vec::new());
        let mut keep = Vec::with_capacity(old.num_rows());
        let mut metric: Arc<str> = Arc::from("");
        for row in 0..old.num_rows() {
            let (name, id, time) = rows.key(row);
            if name != metric.as_ref() {
                metric = Arc::from(name);
            }
            let again = news.windows.get(&(metric.clone(), id)).is_some_and(|ends| ends.binary_search(&time).is_ok());
            let found = late.remove(&(metric.clone(), id, time)).filter(|_| !news.late_known);
            if let Some(late) = found {
                joined.push(rows.joined(row, late));
                kinds.push(rows.kind(row));
            }
            keep.push(!again && found.is_none());
        }
        if !crowded && keep.iter().all(|k| *k) {
            continue;
        }
        change.merged += joined.len() as u64;
        batches.push(filter_record_batch(&old, &BooleanArray::from(keep)).map_err(arrow)?);
        batches.push(batch(&joined, &kinds).map_err(arrow)?);
        committed_ms = committed_ms.max(file.committed_ms);
        change.removed.push(file);
    }
    // What has no row yet is one, of whatever is left.
    let rest: Vec<Row> = late.into_values().cloned().collect();
    batches.push(news.batch(&rest).map_err(arrow)?);
    let merged = sorted(&concat_batches(&news.tier.table.file_schema(), &batches).map_err(arrow)?).map_err(arrow)?;
    if merged.num_rows() > 0 {
        let identity = FileIdentity::new(news.tenant.clone(), news.date, None, committed_ms).written_at(news.now_ms);
        let encoded = write_batch(news.tier.table, &[merged], &identity)?;
        table.upload(&encoded.entry, encoded.bytes).await?;
        change.rows = encoded.entry.rows;
        change.added = Some(encoded.entry);
    }
    Ok(change)
}

/// Files of the partition that may hold rows of windows which were written before and are touched again, and files that are to be put
/// together (true).
fn concerned(snapshot: &Snapshot, news: &News<'_>) -> Vec<(Arc<FileEntry>, bool)> {
    let files = snapshot.partition(news.tenant, news.date);
    let again = || news.windows.values().flatten().copied().filter(|end| *end <= news.until_ms);
    let all = || again().chain(news.late.iter().map(|row| row.time_ms));
    let (from, to) = (all().min(), all().max());
    let reopened = |file: &FileEntry| from.zip(to).is_some_and(|(from, to)| file.keys.may_hold_times(from, to));
    let mut sizes: HashMap<u32, usize> = HashMap::new();
    for file in files {
        *sizes.entry(size_class(file)).or_default() += 1;
    }
    let brings_rows = !news.rows.is_empty() || !news.late.is_empty();
    let crowded = |file: &FileEntry| brings_rows && sizes.get(&size_class(file)).is_some_and(|n| *n >= CROWD);
    files.iter().map(|file| (file.clone(), crowded(file))).filter(|(file, crowded)| *crowded || reopened(file)).collect()
}

fn size_class(file: &FileEntry) -> u32 {
    (file.size / SMALL_BYTES).max(1).ilog(CROWD as u64)
}

/// All rows of a file, after its hash was compared with the one in the log.
pub(super) async fn read(table: &DeltaTable, file: &FileEntry) -> Result<RecordBatch, StorageError> {
    let source = FileSource::object(table.store().clone(), table.object_path(&file.path)?, file);
    let failed = |source| StorageError::Parquet { doing: "reading", path: file.path.clone(), source };
    let reader = ParquetRecordBatchReaderBuilder::try_new(source.bytes().await?).map_err(failed)?.build().map_err(failed)?;
    let arrow = |source| StorageError::Arrow { doing: "reading rows of the tier", source };
    let batches = reader.collect::<Result<Vec<_>, _>>().map_err(arrow)?;
    concat_batches(&table.table().file_schema(), &batches).map_err(arrow)
}

fn sorted(rows: &RecordBatch) -> Result<RecordBatch, arrow::error::ArrowError> {
    let keys: Vec<SortColumn> = rows.columns()[..3].iter().map(|c| SortColumn { values: c.clone(), options: None }).collect();
    let order: UInt32Array = lexsort_to_indices(&keys, None)?;
    take_record_batch(rows, &order)
}
