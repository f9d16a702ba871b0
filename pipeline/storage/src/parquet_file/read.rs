//! Reads `samples` files into plain columns: whole files, or the rows of some series in a time range.
//!
//! A whole file is fetched in one request and its hash is checked before anything is decoded. A selection reads the footer and the key
//! columns once per [`OpenFile`], then only the pages of the wanted rows; the hash cannot be checked there.
//!
//! Decoding is CPU work on the calling task: large files belong on a blocking thread ([`decode_samples`](SamplesRows::decode)).

use super::columns::{Batches, KeyColumns, append_times, append_values, batches_of};
use super::contained;
use super::source::{FileSource, OpenFile};
use crate::StorageError;
use bytes::Bytes;
use parquet::arrow::arrow_reader::RowSelection;
use parquet::file::page_index::column_index::ColumnIndexMetaData;
use std::ops::Range;
use std::sync::Arc;

/// Rows of one series.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeriesRows {
    /// Its metric; shared between the series of a metric.
    pub metric: Arc<str>,
    /// Its stored id.
    pub series_id: i64,
    /// Its rows in `times` and `values`; never empty.
    pub rows: Range<usize>,
}

/// Decoded rows, by series in the order of (metric, series_id).
#[derive(Debug, Clone, Default, PartialEq)]
pub struct SamplesRows {
    /// Which rows belong to which series; ascending, not overlapping, with gaps where a selection cut rows off.
    pub series: Vec<SeriesRows>,
    /// Milliseconds since the Unix epoch, strictly increasing within a series.
    pub times: Vec<i64>,
    /// Parallel to `times`; a stale marker is its NaN bits.
    pub values: Vec<f64>,
}

/// What to read of a file.
#[derive(Debug, Clone, Copy)]
pub struct Selection<'a> {
    /// (metric, series_id), in any order.
    pub keys: &'a [(&'a str, i64)],
    /// First millisecond, inclusive.
    pub from_ms: i64,
    /// Last millisecond, inclusive.
    pub to_ms: i64,
}

/// Reads a whole file, after checking its hash.
///
/// # Errors
/// [`StorageError::Corrupt`] and [`StorageError::Parquet`] naming the file, [`StorageError::ObjectStore`].
pub async fn read_samples(source: &FileSource) -> Result<SamplesRows, StorageError> {
    let bytes = source.bytes().await?;
    SamplesRows::decode(source, bytes)
}

/// Reads the rows of some series in a time range. Series without rows there are left out.
///
/// # Errors
/// As [`read_samples`].
pub async fn read_selected(file: &OpenFile, selection: &Selection<'_>) -> Result<SamplesRows, StorageError> {
    let wanted = wanted_rows(file, selection).await?;
    if wanted.is_empty() {
        return Ok(SamplesRows::default());
    }
    let ranges = wanted.iter().map(|w| w.rows.clone());
    let row_selection = RowSelection::from_consecutive_ranges(ranges, file.rows());
    let total = wanted.iter().map(|w| w.rows.len()).sum();
    let mut out = SamplesRows { series: Vec::new(), times: Vec::with_capacity(total), values: Vec::with_capacity(total) };
    let name = file.source.name();
    let mut batches = Batches::open(file, &["time", "value"], Some(row_selection))?;
    while let Some(batch) = batches.next().await? {
        append_times(name, &batch, &mut out.times)?;
        append_values(name, &batch, &mut out.values)?;
    }
    if out.times.len() != total || out.values.len() != total {
        let why = format!("{} rows were read where its index names {total}", out.times.len());
        return Err(StorageError::Corrupt { path: name.to_owned(), why });
    }
    out.place(wanted);
    out.check_times(name)?;
    out.trim(selection.from_ms, selection.to_ms);
    Ok(out)
}

/// Rows of the file that the selection needs, ascending; rows that page statistics exclude are left out already.
pub(super) async fn wanted_rows(file: &OpenFile, selection: &Selection<'_>) -> Result<Vec<SeriesRows>, StorageError> {
    let index = file.keys().await?;
    let pages = time_pages(file);
    let mut wanted = Vec::with_capacity(selection.keys.len());
    let mut metric: Arc<str> = Arc::from("");
    for &(name, series_id) in selection.keys {
        let Some(rows) = index.rows(name, series_id) else { continue };
        if metric.as_ref() != name {
            metric = Arc::from(name);
        }
        if let Some(rows) = within(&pages, rows, selection.from_ms, selection.to_ms) {
            wanted.push(SeriesRows { metric: metric.clone(), series_id, rows });
        }
    }
    wanted.sort_by_key(|w| w.rows.start);
    wanted.dedup();
    Ok(wanted)
}

/// A page of the time column: its rows in the file, and its first and last time in milliseconds.
struct TimePage {
    rows: Range<usize>,
    times_ms: (i64, i64),
}

/// The pages of the time column; none when the file has no page index.
fn time_pages(file: &OpenFile) -> Vec<TimePage> {
    let metadata = file.metadata.metadata();
    let (Some(columns), Some(offsets)) = (metadata.column_index(), metadata.offset_index()) else { return Vec::new() };
    let schema = metadata.file_metadata().schema_descr();
    let Some(time) = schema.columns().iter().position(|c| c.path().string() == "time") else { return Vec::new() };
    let mut pages = Vec::new();
    let mut group_start = 0;
    for (g, group) in metadata.row_groups().iter().enumerate() {
        let group_rows = usize::try_from(group.num_rows()).unwrap_or(0);
        let indexes = columns.get(g).and_then(|c| c.get(time)).zip(offsets.get(g).and_then(|o| o.get(time)));
        let Some((ColumnIndexMetaData::INT64(bounds), offsets)) = indexes else { return Vec::new() };
        let starts = offsets.page_locations().iter().map(|p| usize::try_from(p.first_row_index).unwrap_or(0));
        let ends = starts.clone().skip(1).chain([group_rows]);
        for (page, (start, end)) in starts.zip(ends).enumerate() {
            let ms = |bound: Option<&i64>| bound.map(|us| us.div_euclid(1000));
            let known = u64::try_from(page).is_ok_and(|p| p < bounds.num_pages());
            let bound = if known { ms(bounds.min_value(page)).zip(ms(bounds.max_value(page))) } else { None };
            pages.push(TimePage { rows: group_start + start..group_start + end, times_ms: bound.unwrap_or((i64::MIN, i64::MAX)) });
        }
        group_start += group_rows;
    }
    pages
}

/// The part of `rows` whose pages can hold the time range, as one range: times of a series ascend, so what is left out lies at its ends.
fn within(pages: &[TimePage], rows: Range<usize>, from_ms: i64, to_ms: i64) -> Option<Range<usize>> {
    if from_ms > to_ms {
        return None;
    }
    if pages.is_empty() {
        return Some(rows);
    }
    let first = pages.partition_point(|p| p.rows.end <= rows.start);
    let touched = pages[first..].iter().take_while(|p| p.rows.start < rows.end);
    let mut hits = touched.filter(|p| p.times_ms.0 <= to_ms && from_ms <= p.times_ms.1).map(|p| p.rows.clone());
    let start = hits.next()?;
    let end = hits.last().map_or(start.end, |p| p.end);
    let cut = rows.start.max(start.start)..rows.end.min(end);
    (!cut.is_empty()).then_some(cut)
}

impl SamplesRows {
    /// Decodes the bytes of a whole file. The caller has checked their hash ([`FileSource::check`]).
    ///
    /// # Errors
    /// [`StorageError::Corrupt`] and [`StorageError::Parquet`] naming the file.
    pub fn decode(source: &FileSource, bytes: Bytes) -> Result<Self, StorageError> {
        contained(source.name(), || {
            let mut out = Self::default();
            for batch in batches_of(source, bytes, &["metric", "series_id", "time", "value"])? {
                let batch = batch.map_err(|e| source.parquet("reading", e.into()))?;
                let keys = KeyColumns::of(source.name(), &batch)?;
                let base = out.times.len();
                keys.each_series(|metric, series_id, rows| out.push_rows(metric, series_id, base + rows.start..base + rows.end))?;
                append_times(source.name(), &batch, &mut out.times)?;
                append_values(source.name(), &batch, &mut out.values)?;
            }
            out.check_times(source.name())?;
            Ok(out)
        })
    }

    fn push_rows(&mut self, metric: &str, series_id: i64, rows: Range<usize>) -> Result<(), &'static str> {
        let mut name = None;
        if let Some(last) = self.series.last_mut() {
            let same_metric = last.metric.as_ref() == metric;
            if same_metric && last.series_id == series_id {
                last.rows.end = rows.end;
                return Ok(());
            }
            if (last.metric.as_ref(), last.series_id) > (metric, series_id) {
                return Err("its rows are not sorted by metric and series");
            }
            name = same_metric.then(|| last.metric.clone());
        }
        self.series.push(SeriesRows { metric: name.unwrap_or_else(|| Arc::from(metric)), series_id, rows });
        Ok(())
    }

    /// Gives every wanted stretch of rows its place in the columns, which hold nothing else.
    fn place(&mut self, wanted: Vec<SeriesRows>) {
        let mut at = 0;
        self.series = wanted;
        for series in &mut self.series {
            let len = series.rows.len();
            series.rows = at..at + len;
            at += len;
        }
    }

    fn check_times(&self, name: &str) -> Result<(), StorageError> {
        let sorted = |s: &SeriesRows| self.times.get(s.rows.clone()).is_some_and(|times| times.is_sorted_by(|a, b| a < b));
        match self.series.iter().find(|s| !sorted(s)) {
            None => Ok(()),
            Some(bad) => {
                let why = format!("times of `{}` (series {}) do not ascend", bad.metric, bad.series_id);
                Err(StorageError::Corrupt { path: name.to_owned(), why })
            }
        }
    }

    /// Narrows every series to a time range; rows outside stay in the columns and belong to nobody.
    fn trim(&mut self, from_ms: i64, to_ms: i64) {
        let times = &self.times;
        self.series.retain_mut(|series| {
            let all = &times[series.rows.clone()];
            let start = series.rows.start + all.partition_point(|t| *t < from_ms);
            let end = series.rows.start + all.partition_point(|t| *t <= to_ms);
            series.rows = start..end.max(start);
            !series.rows.is_empty()
        });
    }
}
