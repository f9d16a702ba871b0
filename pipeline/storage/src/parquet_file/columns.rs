//! Batches of a file under decoding, and their columns as plain slices.

use super::source::{FileSource, OpenFile};
use super::{contained, panicked};
use crate::StorageError;
use arrow::array::{Array, ArrayRef, AsArray, Float64Array, Int64Array, RecordBatch, TimestampMicrosecondArray};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Int32Type, Schema};
use bytes::Bytes;
use fletch_schemas::STALE_BITS;
use fletch_schemas::tables::time_type;
use futures::{FutureExt, StreamExt, stream::BoxStream};
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{
    ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder, RowSelection,
};
use parquet::arrow::async_reader::ParquetRecordBatchStreamBuilder;
use std::ops::Range;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

/// Rows that are decoded at once.
const BATCH_ROWS: usize = 65_536;

/// Batches that come from a store.
pub(super) struct Batches {
    name: String,
    stream: BoxStream<'static, parquet::errors::Result<RecordBatch>>,
}

impl Batches {
    /// Some columns of a file, of all rows or of the selected ones.
    pub(super) fn open(file: &OpenFile, columns: &[&str], selection: Option<RowSelection>) -> Result<Self, StorageError> {
        Self::open_sized(file, columns, selection, BATCH_ROWS)
    }

    /// As [`open`](Self::open), with batches of at most so many rows.
    pub(super) fn open_sized(
        file: &OpenFile,
        columns: &[&str],
        selection: Option<RowSelection>,
        batch_rows: usize,
    ) -> Result<Self, StorageError> {
        let source = &file.source;
        contained(source.name(), || {
            let builder = ParquetRecordBatchStreamBuilder::new_with_metadata(source.reader(), with_dictionary(&file.metadata));
            let mask = ProjectionMask::columns(builder.parquet_schema(), columns.iter().copied());
            let mut builder = builder.with_projection(mask).with_batch_size(batch_rows);
            if let Some(selection) = selection {
                builder = builder.with_row_selection(selection);
            }
            let stream = builder.build().map_err(|e| source.parquet("reading", e))?;
            Ok(Self { name: source.name().to_owned(), stream: stream.boxed() })
        })
    }

    /// The next batch.
    pub(super) async fn next(&mut self) -> Result<Option<RecordBatch>, StorageError> {
        let next = AssertUnwindSafe(self.stream.next()).catch_unwind().await.map_err(|_| panicked(&self.name))?;
        let failed = |source| StorageError::Parquet { doing: "reading", path: self.name.clone(), source };
        next.transpose().map_err(failed)
    }
}

/// All batches of a file in memory. Call it, and drain it, inside of [`contained`].
pub(super) fn batches_of(source: &FileSource, bytes: Bytes, columns: &[&str]) -> Result<ParquetRecordBatchReader, StorageError> {
    let failed = |e| source.parquet("reading", e);
    let metadata = ArrowReaderMetadata::load(&bytes, ArrowReaderOptions::new()).map_err(failed)?;
    let builder = ParquetRecordBatchReaderBuilder::new_with_metadata(bytes, with_dictionary(&metadata));
    let mask = ProjectionMask::columns(builder.parquet_schema(), columns.iter().copied());
    builder.with_projection(mask).with_batch_size(BATCH_ROWS).build().map_err(failed)
}

/// Asks for `metric` as a dictionary, so that its text is not copied for every row.
fn with_dictionary(metadata: &ArrowReaderMetadata) -> ArrowReaderMetadata {
    let fields = metadata.schema().fields().iter().map(|field| match (field.name().as_str(), field.data_type()) {
        ("metric", DataType::Utf8) => {
            let dictionary = DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Utf8));
            Arc::new(field.as_ref().clone().with_data_type(dictionary))
        }
        _ => field.clone(),
    });
    let schema = Arc::new(Schema::new_with_metadata(fields.collect::<Vec<_>>(), metadata.schema().metadata().clone()));
    let hinted = ArrowReaderMetadata::try_new(metadata.metadata().clone(), ArrowReaderOptions::new().with_schema(schema));
    hinted.unwrap_or_else(|_| metadata.clone())
}

/// A column by name, without nulls unless `nullable`, cast to `kind` if another writer chose another type.
fn column(name: &str, batch: &RecordBatch, column: &str, kind: &DataType, nullable: bool) -> Result<ArrayRef, StorageError> {
    let corrupt = |why: String| StorageError::Corrupt { path: name.to_owned(), why };
    let found = batch.column_by_name(column).ok_or_else(|| corrupt(format!("it has no column `{column}`")))?;
    if !nullable && found.null_count() > 0 {
        return Err(corrupt(format!("column `{column}` has nulls")));
    }
    if found.data_type() == kind {
        return Ok(found.clone());
    }
    cast(found, kind).map_err(|_| corrupt(format!("column `{column}` is {}, expected {kind}", found.data_type())))
}

/// The two key columns of a batch.
pub(super) struct KeyColumns<'a> {
    name: &'a str,
    metrics: ArrayRef,
    ids: Int64Array,
}

impl<'a> KeyColumns<'a> {
    pub(super) fn of(name: &'a str, batch: &RecordBatch) -> Result<Self, StorageError> {
        let dictionary = DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Utf8));
        let metrics = column(name, batch, "metric", &dictionary, false)?;
        let ids = column(name, batch, "series_id", &DataType::Int64, false)?;
        Ok(Self { name, metrics, ids: ids.as_primitive().clone() })
    }

    /// Calls back for every stretch of rows with equal keys, in order.
    pub(super) fn each_series(
        &self,
        mut each: impl FnMut(&str, i64, Range<usize>) -> Result<(), &'static str>,
    ) -> Result<(), StorageError> {
        let corrupt = |why: &str| StorageError::Corrupt { path: self.name.to_owned(), why: why.to_owned() };
        let dictionary = self.metrics.as_dictionary::<Int32Type>();
        let texts = dictionary.values().as_string::<i32>();
        let (keys, ids) = (dictionary.keys().values(), self.ids.values());
        let mut start = 0;
        while start < ids.len() {
            let (key, id) = (keys[start], ids[start]);
            let same = keys[start..].iter().zip(&ids[start..]).take_while(|(k, i)| **k == key && **i == id).count();
            let at = usize::try_from(key)
                .ok()
                .filter(|at| *at < texts.len() && texts.is_valid(*at))
                .ok_or_else(|| corrupt("a metric is missing"))?;
            each(texts.value(at), id, start..start + same).map_err(corrupt)?;
            start += same;
        }
        Ok(())
    }
}

/// Appends the times of a batch, in milliseconds.
pub(super) fn append_times(name: &str, batch: &RecordBatch, times: &mut Vec<i64>) -> Result<(), StorageError> {
    let found = column(name, batch, "time", &time_type(), false)?;
    let found: &TimestampMicrosecondArray = found.as_primitive();
    times.extend(found.values().iter().map(|us| us.div_euclid(1000)));
    Ok(())
}

/// Appends the values of a batch; a null becomes the stale marker.
pub(super) fn append_values(name: &str, batch: &RecordBatch, values: &mut Vec<f64>) -> Result<(), StorageError> {
    let found = column(name, batch, "value", &DataType::Float64, true)?;
    let found: &Float64Array = found.as_primitive();
    let before = values.len();
    values.extend_from_slice(found.values());
    if let Some(nulls) = found.nulls().filter(|n| n.null_count() > 0) {
        let added = &mut values[before..];
        for (row, value) in added.iter_mut().enumerate() {
            if nulls.is_null(row) {
                *value = f64::from_bits(STALE_BITS);
            }
        }
    }
    Ok(())
}
