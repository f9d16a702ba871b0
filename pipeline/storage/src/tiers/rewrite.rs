//! From rows to files of the tier: new rows beside what stays of the files whose windows were re-opened.

use super::touched::Windows;
use super::window::Row;
use crate::StorageError;
use crate::delta::{DeltaTable, FileEntry, FileIdentity, Snapshot};
use crate::parquet_file::{FileSource, write_batch};
use arrow::array::{ArrayRef, AsArray, BooleanArray, Float64Array, Int64Array, StringArray, TimestampMicrosecondArray, UInt32Array};
use arrow::compute::{SortColumn, concat_batches, filter_record_batch, lexsort_to_indices, take_record_batch};
use arrow::datatypes::{Int64Type, TimestampMicrosecondType};
use arrow::record_batch::RecordBatch;
use fletch_schemas::TenantId;
use fletch_schemas::tables::Table;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use std::sync::Arc;

/// What a partition's rows change.
#[derive(Debug, Default)]
pub(super) struct Change {
    pub(super) added: Option<FileEntry>,
    pub(super) removed: Vec<Arc<FileEntry>>,
    pub(super) rows: u64,
}

/// When the newest raw row was committed, and when its window is written; milliseconds.
#[derive(Debug, Clone, Copy)]
pub(super) struct Times {
    pub(super) committed_ms: i64,
    pub(super) now_ms: i64,
}

/// Uploads the file that holds `rows` and whatever else was in the files that it replaces.
///
/// # Errors
/// A file cannot be read or written.
#[allow(clippy::too_many_arguments, reason = "the parts of one partition's change; a struct would be built once and taken apart at once")]
pub(super) async fn merge(
    table: &DeltaTable,
    tier: &Snapshot,
    tenant: &TenantId,
    date: i32,
    rows: Vec<Row>,
    windows: &Windows,
    old_until: i64,
    times: Times,
) -> Result<Change, StorageError> {
    let arrow = |source| StorageError::Arrow { doing: "merging rows of the tier", source };
    let mut change = Change::default();
    let mut batches = vec![batch(&rows).map_err(arrow)?];
    for file in reopened(tier, tenant, date, windows, old_until) {
        let old = read(table, &file).await?;
        let keep = untouched(&old, windows);
        if keep.true_count() == old.num_rows() {
            continue;
        }
        batches.push(filter_record_batch(&old, &keep).map_err(arrow)?);
        change.removed.push(file);
    }
    let schema = Table::Samples1m.file_schema();
    let merged = sorted(&concat_batches(&schema, &batches).map_err(arrow)?).map_err(arrow)?;
    if merged.num_rows() > 0 {
        let encoded = write_batch(
            Table::Samples1m,
            &[merged],
            &FileIdentity::new(tenant.clone(), date, None, times.committed_ms).written_at(times.now_ms),
        )?;
        table.upload(&encoded.entry, encoded.bytes).await?;
        change.rows = encoded.entry.rows;
        change.added = Some(encoded.entry);
    }
    Ok(change)
}

/// Files that may hold rows of windows which were written before and are touched again.
fn reopened(tier: &Snapshot, tenant: &TenantId, date: i32, windows: &Windows, old_until: i64) -> Vec<Arc<FileEntry>> {
    let late = || windows.values().flatten().copied().filter(|end| *end <= old_until);
    let (Some(from), Some(to)) = (late().min(), late().max()) else { return Vec::new() };
    tier.partition(tenant, date).iter().filter(|f| f.keys.may_hold_times(from, to)).cloned().collect()
}

async fn read(table: &DeltaTable, file: &FileEntry) -> Result<RecordBatch, StorageError> {
    let source = FileSource::object(table.store().clone(), table.object_path(&file.path)?, file);
    let failed = |source| StorageError::Parquet { doing: "reading", path: file.path.clone(), source };
    let reader = ParquetRecordBatchReaderBuilder::try_new(source.bytes().await?).map_err(failed)?.build().map_err(failed)?;
    let arrow = |source| StorageError::Arrow { doing: "reading rows of the tier", source };
    let batches = reader.collect::<Result<Vec<_>, _>>().map_err(arrow)?;
    concat_batches(&Table::Samples1m.file_schema(), &batches).map_err(arrow)
}

/// Rows whose (series, window) is not computed again.
fn untouched(rows: &RecordBatch, windows: &Windows) -> BooleanArray {
    let metrics = rows.column(0).as_string::<i32>();
    let ids = rows.column(1).as_primitive::<Int64Type>();
    let times = rows.column(2).as_primitive::<TimestampMicrosecondType>();
    let touched = |row: usize| {
        let ends = windows.get(&(Arc::from(metrics.value(row)), ids.value(row)));
        ends.is_some_and(|ends| ends.binary_search(&times.value(row).div_euclid(1_000)).is_ok())
    };
    (0..rows.num_rows()).map(|row| Some(!touched(row))).collect()
}

fn sorted(rows: &RecordBatch) -> Result<RecordBatch, arrow::error::ArrowError> {
    let keys: Vec<SortColumn> = rows.columns()[..3].iter().map(|c| SortColumn { values: c.clone(), options: None }).collect();
    let order: UInt32Array = lexsort_to_indices(&keys, None)?;
    take_record_batch(rows, &order)
}

fn batch(rows: &[Row]) -> Result<RecordBatch, arrow::error::ArrowError> {
    let time = |get: fn(&Row) -> i64| -> ArrayRef {
        Arc::new(TimestampMicrosecondArray::from_iter_values(rows.iter().map(|r| get(r) * 1_000)).with_timezone("UTC"))
    };
    let float = |get: fn(&Row) -> f64| -> ArrayRef { Arc::new(Float64Array::from_iter_values(rows.iter().map(get))) };
    let int = |get: fn(&Row) -> i64| -> ArrayRef { Arc::new(Int64Array::from_iter_values(rows.iter().map(get))) };
    let columns: Vec<ArrayRef> = vec![
        Arc::new(StringArray::from_iter_values(rows.iter().map(|r| r.metric.as_ref()))),
        int(|r| r.series_id),
        time(|r| r.time_ms),
        int(|r| r.count),
        float(|r| r.sum),
        float(|r| r.min),
        float(|r| r.max),
        float(|r| r.first),
        float(|r| r.last),
        time(|r| r.first_time_ms),
        time(|r| r.last_time_ms),
        float(|r| r.increase),
    ];
    RecordBatch::try_new(Table::Samples1m.file_schema(), columns)
}
