//! `samples` files row by row in bounded memory: read as stretches of one series, written as one file that grows.
//!
//! ```text
//!  files ──SamplesCursor──▶ (metric, series_id, times, values) …  ──merge──▶ …  ──SamplesWriter──▶ row groups ──▶ EncodedFile
//! ```
//!
//! # Invariants
//! - A cursor holds one batch of its file; it checks order and keys of everything that it hands out.
//! - A writer holds the row groups written so far, compressed, and the rows of the one that is open.
//!
//! # When it fails
//! The error names the file. A file with start times is refused: nothing here carries them on yet.

use super::columns::{Batches, KeyColumns, append_times, append_values};
use super::layout::{self, Effort};
use super::source::FileSource;
use super::write::{encoded, failed, widen_box, write_group};
use super::{EncodedFile, ROW_GROUP_ROWS, SeriesSlice};
use crate::StorageError;
use crate::delta::{FileIdentity, KeyRanges};
use arrow::array::Array;
use fletch_schemas::date_of_ms;
use fletch_schemas::tables::Table;
use parquet::arrow::ArrowSchemaConverter;
use parquet::errors::ParquetError;
use parquet::file::writer::SerializedFileWriter;
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

/// Rows that one cursor holds.
const CURSOR_ROWS: usize = 8_192;

/// Bytes of a row before the first row group of a file tells better.
const ROW_BYTES_GUESS: u64 = 2;

/// Metric and series id: what rows of one series share.
pub(crate) type SeriesKey = (Arc<str>, i64);

/// A stretch of one series in a batch.
#[derive(Debug)]
struct Stretch {
    key: SeriesKey,
    rows: Range<usize>,
}

/// Reads a file from its first row to its last.
pub(crate) struct SamplesCursor {
    name: String,
    batches: Batches,
    stretches: VecDeque<Stretch>,
    times: Vec<i64>,
    values: Vec<f64>,
    /// The last row that was read.
    last: Option<(SeriesKey, i64)>,
    ended: bool,
}

impl SamplesCursor {
    /// Opens a file whose bytes were verified ([`FileSource::verified`]) and reads its first rows.
    ///
    /// # Errors
    /// As [`FileSource::open`].
    pub(crate) async fn open(source: &FileSource) -> Result<Self, StorageError> {
        let file = source.open().await?;
        let columns = ["metric", "series_id", "time", "value", "start_time"];
        let batches = Batches::open_sized(&file, &columns, None, CURSOR_ROWS)?;
        let (stretches, times, values) = Default::default();
        let mut cursor = Self { name: source.name().to_owned(), batches, stretches, times, values, last: None, ended: false };
        cursor.fill().await?;
        Ok(cursor)
    }

    /// The series of the next rows; `None` at the end.
    pub(crate) fn key(&self) -> Option<&SeriesKey> {
        self.stretches.front().map(|s| &s.key)
    }

    /// The next rows of the series that it stands at, and whether more rows of it may follow them.
    pub(crate) fn rows(&self) -> (&[i64], &[f64], bool) {
        match self.stretches.front() {
            Some(s) => (&self.times[s.rows.clone()], &self.values[s.rows.clone()], self.stretches.len() == 1 && !self.ended),
            None => (&[], &[], false),
        }
    }

    /// Leaves so many of these rows behind, and reads on when none are left.
    ///
    /// # Errors
    /// The file cannot be read or is not sorted.
    pub(crate) async fn advance(&mut self, rows: usize) -> Result<(), StorageError> {
        if let Some(s) = self.stretches.front_mut() {
            s.rows.start = s.rows.end.min(s.rows.start + rows);
            if s.rows.is_empty() {
                self.stretches.pop_front();
            }
        }
        if self.stretches.is_empty() { self.fill().await } else { Ok(()) }
    }

    async fn fill(&mut self) -> Result<(), StorageError> {
        self.times.clear();
        self.values.clear();
        while self.stretches.is_empty() && !self.ended {
            let Some(batch) = self.batches.next().await? else {
                self.ended = true;
                break;
            };
            let starts = batch.column_by_name("start_time");
            if starts.is_some_and(|column| column.null_count() < column.len()) {
                let why = format!("`{}` has start times, which this version cannot merge: the file stays as it is", self.name);
                return Err(StorageError::Conflict(why));
            }
            let keys = KeyColumns::of(&self.name, &batch)?;
            let (stretches, last) = (&mut self.stretches, &self.last);
            let mut metric: Option<Arc<str>> = last.as_ref().map(|(key, _)| key.0.clone());
            keys.each_series(|name, series_id, rows| {
                let known = metric.take().filter(|m| m.as_ref() == name);
                let key = (known.unwrap_or_else(|| Arc::from(name)), series_id);
                metric = Some(key.0.clone());
                stretches.push_back(Stretch { key, rows });
                Ok(())
            })?;
            append_times(&self.name, &batch, &mut self.times)?;
            append_values(&self.name, &batch, &mut self.values)?;
            self.check()?;
        }
        Ok(())
    }

    /// Every row must come after the one before it.
    fn check(&mut self) -> Result<(), StorageError> {
        let corrupt = |why: &str| StorageError::Corrupt { path: self.name.clone(), why: why.to_owned() };
        for stretch in &self.stretches {
            let times = self.times.get(stretch.rows.clone()).filter(|_| stretch.rows.end <= self.values.len());
            let times = times.ok_or_else(|| corrupt("its columns differ in length"))?;
            let (Some(&first), Some(&newest)) = (times.first(), times.last()) else { continue };
            let after = self.last.as_ref().is_none_or(|(key, time)| (key, *time) < (&stretch.key, first));
            if !after || !times.is_sorted_by(|a, b| a < b) {
                return Err(corrupt("its rows are not sorted by metric, series and time"));
            }
            self.last = Some((stretch.key.clone(), newest));
        }
        Ok(())
    }
}

/// Writes one `samples` file of a (tenant, date) as its rows come, marked as a compaction's.
pub(crate) struct SamplesWriter {
    identity: FileIdentity,
    effort: Effort,
    file: Option<SerializedFileWriter<Vec<u8>>>,
    open: OpenGroup,
    keys: KeyRanges,
    first_id: Option<i64>,
    last: Option<(SeriesKey, i64)>,
    rows: usize,
    written_rows: u64,
    written_bytes: u64,
}

/// Rows of the row group that is not full yet.
#[derive(Default)]
struct OpenGroup {
    stretches: Vec<Stretch>,
    times: Vec<i64>,
    values: Vec<f64>,
}

impl OpenGroup {
    fn slices(&self) -> impl Iterator<Item = SeriesSlice<'_>> {
        self.stretches.iter().map(|s| SeriesSlice {
            metric: &s.key.0,
            series_id: s.key.1,
            times: &self.times[s.rows.clone()],
            values: &self.values[s.rows.clone()],
        })
    }
}

impl SamplesWriter {
    /// A file without rows yet.
    pub(crate) fn new(identity: FileIdentity, effort: Effort) -> Self {
        let (file, open, keys, first_id, last) = Default::default();
        Self { identity, effort, file, open, keys, first_id, last, rows: 0, written_rows: 0, written_bytes: 0 }
    }

    /// The series of the last row.
    pub(crate) fn last_key(&self) -> Option<&SeriesKey> {
        self.last.as_ref().map(|(key, _)| key)
    }

    /// About how many bytes the file would have now.
    pub(crate) fn bytes_estimate(&self) -> u64 {
        let open = self.open.times.len() as u64;
        let per_row = |rows: u64| (self.written_bytes * rows).checked_div(self.written_rows).unwrap_or(ROW_BYTES_GUESS * rows);
        self.written_bytes + per_row(open)
    }

    /// Appends rows of a series; they come after everything so far.
    ///
    /// # Errors
    /// [`StorageError::Unsorted`], [`StorageError::Parquet`].
    pub(crate) fn push(&mut self, key: &SeriesKey, mut times: &[i64], mut values: &[f64]) -> Result<(), StorageError> {
        let (Some(&first), Some(&newest)) = (times.first(), times.last()) else { return Ok(()) };
        self.check(key, first, newest, times.len() == values.len())?;
        widen_box(&mut self.keys, key, first, newest);
        self.first_id.get_or_insert(key.1);
        self.last = Some((key.clone(), newest));
        self.rows += times.len();
        while !times.is_empty() {
            let room = ROW_GROUP_ROWS - self.open.times.len();
            let (now, later) = times.split_at(times.len().min(room));
            let (now_values, later_values) = values.split_at(now.len());
            self.append(key, now, now_values);
            (times, values) = (later, later_values);
            if self.open.times.len() == ROW_GROUP_ROWS {
                self.close_group()?;
            }
        }
        Ok(())
    }

    fn check(&self, key: &SeriesKey, first: i64, newest: i64, even: bool) -> Result<(), StorageError> {
        let unsorted = |why| StorageError::Unsorted { metric: key.0.to_string(), series_id: key.1, why };
        if !even {
            return Err(unsorted("it has not as many times as values"));
        }
        if self.last.as_ref().is_some_and(|(last, time)| (last, *time) >= (key, first)) {
            return Err(unsorted("it comes after a larger key"));
        }
        if date_of_ms(first) != self.identity.date || date_of_ms(newest) != self.identity.date {
            return Err(unsorted("it has times of another date than the file"));
        }
        Ok(())
    }

    fn append(&mut self, key: &SeriesKey, times: &[i64], values: &[f64]) {
        let start = self.open.times.len();
        self.open.times.extend_from_slice(times);
        self.open.values.extend_from_slice(values);
        let end = self.open.times.len();
        match self.open.stretches.last_mut() {
            Some(last) if last.key == *key => last.rows.end = end,
            _ => self.open.stretches.push(Stretch { key: key.clone(), rows: start..end }),
        }
    }

    fn close_group(&mut self) -> Result<(), StorageError> {
        if self.open.times.is_empty() {
            return Ok(());
        }
        let written = self.write_open();
        self.written_bytes = written.map_err(|source| failed(&self.identity, source))?;
        self.written_rows += self.open.times.len() as u64;
        self.open.stretches.clear();
        self.open.times.clear();
        self.open.values.clear();
        Ok(())
    }

    fn write_open(&mut self) -> Result<u64, ParquetError> {
        let slices: Vec<SeriesSlice<'_>> = self.open.slices().collect();
        let file = match &mut self.file {
            Some(file) => file,
            none => none.insert(begin(&slices, self.open.times.len(), self.effort)?),
        };
        write_group(file.next_row_group()?, &slices, self.effort)?;
        Ok(file.bytes_written() as u64)
    }

    /// The file; `None` when it would have no rows.
    ///
    /// # Errors
    /// [`StorageError::Parquet`].
    pub(crate) fn finish(mut self) -> Result<Option<EncodedFile>, StorageError> {
        self.close_group()?;
        let Some(file) = self.file.take() else { return Ok(None) };
        let bytes = file.into_inner().map_err(|source| failed(&self.identity, source))?;
        let mut file = encoded(&self.identity, bytes, self.rows, self.keys);
        file.entry.compacted = self.first_id.zip(self.last.map(|((_, id), _)| id));
        Ok(Some(file))
    }
}

/// Begins a file; `series` are the rows of its first row group.
fn begin(series: &[SeriesSlice<'_>], rows: usize, effort: Effort) -> Result<SerializedFileWriter<Vec<u8>>, ParquetError> {
    let schema = Table::Samples.file_schema();
    let encodings = layout::choose(series, rows, effort)?;
    let properties = layout::samples_properties(&schema, encodings, effort)?;
    let columns = ArrowSchemaConverter::new().convert(&schema)?;
    SerializedFileWriter::new(Vec::new(), columns.root_schema_ptr(), Arc::new(properties))
}
