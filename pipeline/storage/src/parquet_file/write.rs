//! Writes files: `samples` from sorted slices in one pass over plain columns, other tables from Arrow batches.

use super::keys_chunk::{self, KeyRun, push_run};
use super::layout::{self, Effort, Encodings};
use super::packed;
use super::stream::SeriesKey;
use super::{EncodedFile, PAGE_ROWS, ROW_GROUP_ROWS};
use crate::StorageError;
use crate::delta::{FileEntry, FileIdentity, KeyRanges};
use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::{Int64Type as ArrowInt64, TimestampMicrosecondType};
use fletch_schemas::tables::Table;
use fletch_schemas::{date_of_ms, is_stale};
use parquet::arrow::{ArrowSchemaConverter, ArrowWriter};
use parquet::data_type::{DoubleType, Int64Type};
use parquet::errors::ParquetError;
use parquet::file::writer::{SerializedFileWriter, SerializedRowGroupWriter};
use std::sync::Arc;

/// Samples of one series, ascending in time.
#[derive(Debug, Clone, Copy)]
pub struct SeriesSlice<'a> {
    /// Its metric.
    pub metric: &'a str,
    /// Its stored id.
    pub series_id: i64,
    /// Milliseconds since the Unix epoch, strictly increasing.
    pub times: &'a [i64],
    /// Parallel to `times`; a stale marker is its NaN bits.
    pub values: &'a [f64],
}

/// Writes a `samples` file of one (tenant, date). Slices come in the order of (metric, series_id); those of one series may follow each
/// other as long as time goes on.
///
/// # Errors
/// [`StorageError::Unsorted`] when rows are out of order, of another date, or when there are none; [`StorageError::Parquet`].
pub fn write_samples<'a>(series: impl IntoIterator<Item = SeriesSlice<'a>>, identity: &FileIdentity) -> Result<EncodedFile, StorageError> {
    write_samples_with(series, identity, Effort::FLUSH)
}

/// As [`write_samples`], with an effort of your own.
///
/// # Errors
/// As [`write_samples`].
pub fn write_samples_with<'a>(
    series: impl IntoIterator<Item = SeriesSlice<'a>>,
    identity: &FileIdentity,
    effort: Effort,
) -> Result<EncodedFile, StorageError> {
    let series: Vec<SeriesSlice<'a>> = series.into_iter().filter(|s| !s.times.is_empty()).collect();
    let keys = check(&series, identity.date)?;
    let rows = series.iter().map(|s| s.times.len()).sum();
    let bytes = encode(&series, rows, effort).map_err(|source| failed(identity, source))?;
    Ok(encoded(identity, bytes, rows, keys))
}

/// Writes a file of any table from batches that are sorted already. The key columns become the file's ranges.
///
/// # Errors
/// [`StorageError::Unsorted`] when there are no rows, [`StorageError::Parquet`] when a batch does not have the table's columns.
pub fn write_batch(table: Table, batches: &[RecordBatch], identity: &FileIdentity) -> Result<EncodedFile, StorageError> {
    write_batch_with(table, batches, identity, Effort::FLUSH)
}

/// As [`write_batch`], with an effort of your own.
pub(super) fn write_batch_with(
    table: Table,
    batches: &[RecordBatch],
    identity: &FileIdentity,
    effort: Effort,
) -> Result<EncodedFile, StorageError> {
    let parquet = |source| failed(identity, source);
    let rows = batches.iter().map(RecordBatch::num_rows).sum();
    if rows == 0 {
        return Err(StorageError::Unsorted { metric: String::new(), series_id: 0, why: "a file needs rows" });
    }
    let properties = layout::table_properties(table, batches, effort).map_err(parquet)?;
    let mut writer = ArrowWriter::try_new(Vec::new(), table.file_schema(), Some(properties)).map_err(parquet)?;
    let mut keys = KeyRanges::default();
    for batch in batches.iter().filter(|b| b.num_rows() > 0) {
        writer.write(batch).map_err(parquet)?;
        widen(&mut keys, batch);
    }
    let bytes = writer.into_inner().map_err(parquet)?;
    Ok(encoded(identity, bytes, rows, keys))
}

pub(super) fn encoded(identity: &FileIdentity, bytes: Vec<u8>, rows: usize, keys: KeyRanges) -> EncodedFile {
    let entry = FileEntry::of_written(identity, &bytes, rows as u64, keys);
    EncodedFile { bytes: bytes.into(), entry }
}

pub(super) fn failed(identity: &FileIdentity, source: ParquetError) -> StorageError {
    StorageError::Parquet { doing: "writing", path: identity.path(), source }
}

/// Checks the order of the slices and returns the ranges of their keys. Order within a slice is the run's invariant.
fn check(series: &[SeriesSlice<'_>], date: i32) -> Result<KeyRanges, StorageError> {
    let unsorted = |s: &SeriesSlice<'_>, why| StorageError::Unsorted { metric: s.metric.to_owned(), series_id: s.series_id, why };
    let (Some(first), Some(last)) = (series.first(), series.last()) else {
        return Err(StorageError::Unsorted { metric: String::new(), series_id: 0, why: "a file needs rows" });
    };
    let mut ids = (i64::MAX, i64::MIN);
    let mut times = (i64::MAX, i64::MIN);
    let mut previous: Option<(&str, i64, i64)> = None;
    for s in series {
        debug_assert!(s.times.is_sorted_by(|a, b| a < b), "P1: times of a slice are strictly increasing");
        let (from, to) = (s.times[0], s.times[s.times.len() - 1]);
        if s.times.len() != s.values.len() {
            return Err(unsorted(s, "it has not as many times as values"));
        }
        if previous.is_some_and(|p| (s.metric, s.series_id, from) <= p) {
            return Err(unsorted(s, "it comes after a larger key"));
        }
        if from > to || date_of_ms(from) != date || date_of_ms(to) != date {
            return Err(unsorted(s, "it has times of another date than the file"));
        }
        previous = Some((s.metric, s.series_id, to));
        ids = (ids.0.min(s.series_id), ids.1.max(s.series_id));
        times = (times.0.min(from), times.1.max(to));
    }
    // The index rounds every maximum up to the next millisecond, also when it reads it back from the log.
    let times_ms = Some((times.0, times.1.saturating_add(1)));
    Ok(KeyRanges { metrics: Some((Arc::from(first.metric), Arc::from(last.metric))), series_ids: Some(ids), times_ms })
}

fn encode(series: &[SeriesSlice<'_>], rows: usize, effort: Effort) -> Result<Vec<u8>, ParquetError> {
    let schema = Table::Samples.file_schema();
    let encodings: Encodings = layout::choose(series, rows, effort)?;
    let properties = layout::samples_properties(&schema, encodings, effort)?;
    let columns = ArrowSchemaConverter::new().convert(&schema)?;
    let mut writer = SerializedFileWriter::new(Vec::with_capacity(rows * 2 + 4096), columns.root_schema_ptr(), Arc::new(properties))?;
    let mut rest = series.iter().copied();
    let mut cut: Option<SeriesSlice<'_>> = None;
    loop {
        let group = next_group(&mut rest, &mut cut);
        if group.is_empty() {
            break;
        }
        write_group(writer.next_row_group()?, &group, effort)?;
    }
    writer.into_inner()
}

/// The slices of the next row group; the one at its end may be cut in two.
fn next_group<'a>(rest: &mut impl Iterator<Item = SeriesSlice<'a>>, cut: &mut Option<SeriesSlice<'a>>) -> Vec<SeriesSlice<'a>> {
    let mut group = Vec::new();
    let mut room = ROW_GROUP_ROWS;
    while room > 0 {
        let Some(slice) = cut.take().or_else(|| rest.next()) else { break };
        let take = room.min(slice.times.len());
        let (times, later_times) = slice.times.split_at(take);
        let (values, later_values) = slice.values.split_at(take);
        group.push(SeriesSlice { times, values, ..slice });
        room -= take;
        if !later_times.is_empty() {
            *cut = Some(SeriesSlice { times: later_times, values: later_values, ..slice });
        }
    }
    group
}

pub(super) fn write_group(
    mut group: SerializedRowGroupWriter<'_, Vec<u8>>,
    series: &[SeriesSlice<'_>],
    effort: Effort,
) -> Result<(), ParquetError> {
    let schema = group_schema()?;
    let mut metrics: Vec<KeyRun<&str>> = Vec::new();
    let mut ids: Vec<KeyRun<i64>> = Vec::new();
    for s in series {
        push_run(&mut metrics, s.metric, s.times.len());
        push_run(&mut ids, s.series_id, s.times.len());
    }
    let (bytes, close) = keys_chunk::write(schema.column(0), &metrics, true, effort)?;
    group.append_column(&bytes, close)?;
    let (bytes, close) = keys_chunk::write(schema.column(1), &ids, metrics.len() == 1, effort)?;
    group.append_column(&bytes, close)?;
    if effort.per_page {
        let times: Vec<i64> = series.iter().flat_map(|s| s.times).map(|ms| ms.saturating_mul(1000)).collect();
        let (bytes, close) = packed::write_times(schema.column(2), &times, effort)?;
        group.append_column(&bytes, close)?;
        let values: Vec<f64> = series.iter().flat_map(|s| s.values).copied().collect();
        let (bytes, close) = packed::write_values(schema.column(3), &values, is_stale, effort)?;
        group.append_column(&bytes, close)?;
        let (bytes, close) = packed::write_nulls(schema.column(4), values.len(), effort)?;
        group.append_column(&bytes, close)?;
    } else {
        write_times(&mut group, series)?;
        write_values(&mut group, series)?;
        write_start_times(&mut group, series.iter().map(|s| s.times.len()).sum())?;
    }
    group.close().map(drop)
}

fn group_schema() -> Result<parquet::schema::types::SchemaDescriptor, ParquetError> {
    ArrowSchemaConverter::new().convert(&Table::Samples.file_schema())
}

fn missing_column() -> ParquetError {
    ParquetError::General("the row group has fewer columns than the table".to_owned())
}

fn write_times(group: &mut SerializedRowGroupWriter<'_, Vec<u8>>, series: &[SeriesSlice<'_>]) -> Result<(), ParquetError> {
    let mut column = group.next_column()?.ok_or_else(missing_column)?;
    let mut page: Vec<i64> = Vec::with_capacity(PAGE_ROWS);
    for s in series {
        let mut rest = s.times;
        while !rest.is_empty() {
            let (now, later) = rest.split_at(rest.len().min(PAGE_ROWS - page.len()));
            page.extend(now.iter().map(|ms| ms.saturating_mul(1000)));
            rest = later;
            if page.len() == PAGE_ROWS {
                column.typed::<Int64Type>().write_batch(&page, None, None)?;
                page.clear();
            }
        }
    }
    if !page.is_empty() {
        column.typed::<Int64Type>().write_batch(&page, None, None)?;
    }
    column.close()
}

/// One page of values: what is not null, and a level for every row.
struct ValuePage {
    values: Vec<f64>,
    levels: Vec<i16>,
}

impl ValuePage {
    fn extend(&mut self, values: &[f64]) {
        let before = self.values.len();
        self.values.extend(values.iter().copied().filter(|v| !is_stale(*v)));
        if self.values.len() - before == values.len() {
            self.levels.resize(self.levels.len() + values.len(), 1);
        } else {
            self.levels.extend(values.iter().map(|v| i16::from(!is_stale(*v))));
        }
    }
}

fn write_values(group: &mut SerializedRowGroupWriter<'_, Vec<u8>>, series: &[SeriesSlice<'_>]) -> Result<(), ParquetError> {
    let mut column = group.next_column()?.ok_or_else(missing_column)?;
    let mut page = ValuePage { values: Vec::with_capacity(PAGE_ROWS), levels: Vec::with_capacity(PAGE_ROWS) };
    for s in series {
        let mut rest = s.values;
        while !rest.is_empty() {
            let (now, later) = rest.split_at(rest.len().min(PAGE_ROWS - page.levels.len()));
            page.extend(now);
            rest = later;
            if page.levels.len() == PAGE_ROWS {
                column.typed::<DoubleType>().write_batch(&page.values, Some(&page.levels), None)?;
                page.values.clear();
                page.levels.clear();
            }
        }
    }
    if !page.levels.is_empty() {
        column.typed::<DoubleType>().write_batch(&page.values, Some(&page.levels), None)?;
    }
    column.close()
}

fn write_start_times(group: &mut SerializedRowGroupWriter<'_, Vec<u8>>, rows: usize) -> Result<(), ParquetError> {
    let mut column = group.next_column()?.ok_or_else(missing_column)?;
    let nulls = vec![0_i16; rows.min(PAGE_ROWS)];
    let mut left = rows;
    while left > 0 {
        let now = left.min(PAGE_ROWS);
        column.typed::<Int64Type>().write_batch(&[], Some(&nulls[..now]), None)?;
        left -= now;
    }
    column.close()
}

/// Widens the ranges by rows of one series; series come in the order of their keys.
pub(super) fn widen_box(keys: &mut KeyRanges, key: &SeriesKey, first_ms: i64, newest_ms: i64) {
    let low = keys.metrics.take().map_or_else(|| key.0.clone(), |(low, _)| low);
    keys.metrics = Some((low, key.0.clone()));
    keys.series_ids = union(keys.series_ids, Some((key.1, key.1)));
    // The index rounds every maximum up to the next millisecond, also when it reads it back from the log.
    keys.times_ms = union(keys.times_ms, Some((first_ms, newest_ms.saturating_add(1))));
}

/// Widens the ranges by the key columns of a batch. A column of another type than ours gives no range.
fn widen(keys: &mut KeyRanges, batch: &RecordBatch) {
    if let Some(metrics) = batch.column_by_name("metric").and_then(|c| c.as_string_opt::<i32>()) {
        let found = arrow::compute::min_string(metrics).zip(arrow::compute::max_string(metrics));
        if let Some((min, max)) = found {
            let (low, high) = keys.metrics.take().unwrap_or_else(|| (Arc::from(min), Arc::from(max)));
            let low = if min < low.as_ref() { Arc::from(min) } else { low };
            let high = if max > high.as_ref() { Arc::from(max) } else { high };
            keys.metrics = Some((low, high));
        }
    }
    if let Some(ids) = batch.column_by_name("series_id").and_then(|c| c.as_primitive_opt::<ArrowInt64>()) {
        keys.series_ids = union(keys.series_ids, arrow::compute::min(ids).zip(arrow::compute::max(ids)));
    }
    if let Some(times) = batch.column_by_name("time").and_then(|c| c.as_primitive_opt::<TimestampMicrosecondType>()) {
        let ms = |us: i64| us.div_euclid(1000);
        let found = arrow::compute::min(times).zip(arrow::compute::max(times)).map(|(a, b)| (ms(a), ms(b).saturating_add(1)));
        keys.times_ms = union(keys.times_ms, found);
    }
}

fn union(a: Option<(i64, i64)>, b: Option<(i64, i64)>) -> Option<(i64, i64)> {
    match (a, b) {
        (Some((x, y)), Some((u, v))) => Some((x.min(u), y.max(v))),
        (a, b) => a.or(b),
    }
}
