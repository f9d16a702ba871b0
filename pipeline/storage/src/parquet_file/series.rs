//! Files of the table `series`: which labels a series id had on a day.

use super::columns::batches_of;
use super::layout::Effort;
use super::source::FileSource;
use super::write::write_batch_with;
use super::{EncodedFile, contained};
use crate::StorageError;
use crate::delta::FileIdentity;
use arrow::array::{
    Array, ArrayRef, AsArray, Int32Array, Int64Array, MapArray, MapBuilder, MapFieldNames, RecordBatch, StringArray, StringBuilder,
    StructArray, TimestampMicrosecondArray,
};
use arrow::compute::cast;
use arrow::datatypes::{Int32Type, Int64Type, TimestampMicrosecondType};
use bytes::Bytes;
use fletch_schemas::tables::Table;
use fletch_schemas::{Labels, MetricKind};
use std::sync::Arc;

/// One row of the table `series`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeriesRow {
    /// Its stored id: the hash of `labels` with `probe` as seed.
    pub series_id: i64,
    /// 0 unless two label sets have one hash.
    pub probe: u32,
    /// All labels, `__name__` included; `metric`, `job` and `instance` are taken from them.
    pub labels: Labels,
    /// What the values mean; NULL in the table when nobody said.
    pub kind: MetricKind,
    /// Unit of the metric; empty when nobody said.
    pub unit: String,
    /// Help of the metric; empty when nobody said.
    pub help: String,
    /// First sample of the day, milliseconds.
    pub first_seen_ms: Option<i64>,
    /// Last sample of the day, milliseconds; known once the day is closed.
    pub last_seen_ms: Option<i64>,
    /// Number of samples of the day; known once the day is closed.
    pub samples: Option<i64>,
}

/// Writes a `series` file of one (tenant, date). Rows may come in any order.
///
/// # Errors
/// [`StorageError::Unsorted`] when there are no rows; [`StorageError::Parquet`], [`StorageError::Arrow`].
pub fn write_series(rows: &[SeriesRow], identity: &FileIdentity) -> Result<EncodedFile, StorageError> {
    write_series_with(rows, identity, Effort::FLUSH)
}

/// As [`write_series`], with an effort of your own.
pub(crate) fn write_series_with(rows: &[SeriesRow], identity: &FileIdentity, effort: Effort) -> Result<EncodedFile, StorageError> {
    let mut sorted: Vec<&SeriesRow> = rows.iter().collect();
    sorted.sort_by_key(|row| (row.labels.metric(), row.series_id));
    let batch = series_batch(&sorted).map_err(|source| StorageError::Arrow { doing: "building series rows", source })?;
    write_batch_with(Table::Series, &[batch], identity, effort)
}

/// Rows as a batch with the columns of a `series` file, in the given order.
pub(crate) fn series_batch(rows: &[&SeriesRow]) -> Result<RecordBatch, arrow::error::ArrowError> {
    let text = |of: &dyn Fn(&SeriesRow) -> Option<String>| -> ArrayRef { Arc::new(rows.iter().map(|r| of(r)).collect::<StringArray>()) };
    let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    let time = |of: &dyn Fn(&SeriesRow) -> Option<i64>| -> ArrayRef {
        let times: TimestampMicrosecondArray = rows.iter().map(|r| of(r).map(|ms| ms.saturating_mul(1000))).collect();
        Arc::new(times.with_timezone("UTC"))
    };
    let columns: Vec<ArrayRef> = vec![
        Arc::new(StringArray::from_iter_values(rows.iter().map(|r| r.labels.metric()))),
        Arc::new(Int64Array::from_iter_values(rows.iter().map(|r| r.series_id))),
        Arc::new(Int32Array::from_iter_values(rows.iter().map(|r| r.probe.cast_signed()))),
        Arc::new(labels_array(rows)?),
        text(&|r| (r.kind != MetricKind::Unknown).then(|| r.kind.as_str().to_owned())),
        text(&|r| some(&r.unit)),
        text(&|r| some(&r.help)),
        time(&|r| r.first_seen_ms),
        time(&|r| r.last_seen_ms),
        Arc::new(rows.iter().map(|r| r.samples).collect::<Int64Array>()),
        text(&|r| r.labels.get("job").map(str::to_owned)),
        text(&|r| r.labels.get("instance").map(str::to_owned)),
    ];
    RecordBatch::try_new(Table::Series.file_schema(), columns)
}

fn labels_array(rows: &[&SeriesRow]) -> Result<MapArray, arrow::error::ArrowError> {
    let names = MapFieldNames { entry: "key_value".into(), key: "key".into(), value: "value".into() };
    let mut builder = MapBuilder::new(Some(names), StringBuilder::new(), StringBuilder::new());
    for row in rows {
        for (name, value) in row.labels.iter() {
            builder.keys().append_value(name);
            builder.values().append_value(value);
        }
        builder.append(true)?;
    }
    Ok(builder.finish())
}

/// Reads a `series` file, after checking its hash.
///
/// # Errors
/// [`StorageError::Corrupt`] and [`StorageError::Parquet`] naming the file, [`StorageError::ObjectStore`].
pub async fn read_series(source: &FileSource) -> Result<Vec<SeriesRow>, StorageError> {
    let bytes = source.bytes().await?;
    decode(source, bytes)
}

/// As [`read_series`], from bytes that were checked.
pub(crate) fn decode(source: &FileSource, bytes: Bytes) -> Result<Vec<SeriesRow>, StorageError> {
    let wanted = ["series_id", "probe", "labels", "type", "unit", "help", "first_seen", "last_seen", "samples"];
    contained(source.name(), || {
        let mut rows = Vec::new();
        for batch in batches_of(source, bytes, &wanted)? {
            let batch = batch.map_err(|e| source.parquet("reading", e.into()))?;
            let columns = Columns::of(source.name(), &batch)?;
            for row in 0..batch.num_rows() {
                rows.push(columns.row(row).map_err(|why| StorageError::Corrupt { path: source.name().to_owned(), why })?);
            }
        }
        Ok(rows)
    })
}

/// The columns of a batch with their types checked.
struct Columns {
    series_id: ArrayRef,
    probe: ArrayRef,
    labels: ArrayRef,
    kind: ArrayRef,
    unit: ArrayRef,
    help: ArrayRef,
    first_seen: ArrayRef,
    last_seen: ArrayRef,
    samples: ArrayRef,
}

impl Columns {
    fn of(name: &str, batch: &RecordBatch) -> Result<Self, StorageError> {
        let schema = Table::Series.file_schema();
        let column = |wanted: &str| {
            let corrupt = |why: String| StorageError::Corrupt { path: name.to_owned(), why };
            let found = batch.column_by_name(wanted).ok_or_else(|| corrupt(format!("it has no column `{wanted}`")))?;
            let kind = schema.field_with_name(wanted).map_err(|e| corrupt(e.to_string()))?.data_type();
            cast(found, kind).map_err(|_| corrupt(format!("column `{wanted}` is {}, expected {kind}", found.data_type())))
        };
        Ok(Self {
            series_id: column("series_id")?,
            probe: column("probe")?,
            labels: column("labels")?,
            kind: column("type")?,
            unit: column("unit")?,
            help: column("help")?,
            first_seen: column("first_seen")?,
            last_seen: column("last_seen")?,
            samples: column("samples")?,
        })
    }

    fn row(&self, row: usize) -> Result<SeriesRow, String> {
        if self.series_id.is_null(row) || self.probe.is_null(row) || self.labels.is_null(row) {
            return Err(format!("row {row} has a null key"));
        }
        let text = |column: &ArrayRef| column.is_valid(row).then(|| column.as_string::<i32>().value(row).to_owned());
        let time = |column: &ArrayRef| {
            let times = column.as_primitive::<TimestampMicrosecondType>();
            times.is_valid(row).then(|| times.value(row).div_euclid(1000))
        };
        let samples = self.samples.as_primitive::<Int64Type>();
        Ok(SeriesRow {
            series_id: self.series_id.as_primitive::<Int64Type>().value(row),
            probe: self.probe.as_primitive::<Int32Type>().value(row).cast_unsigned(),
            labels: labels_of(&self.labels.as_map().value(row)).map_err(|why| format!("row {row}: {why}"))?,
            kind: text(&self.kind).map_or(MetricKind::Unknown, |t| MetricKind::parse(&t)),
            unit: text(&self.unit).unwrap_or_default(),
            help: text(&self.help).unwrap_or_default(),
            first_seen_ms: time(&self.first_seen),
            last_seen_ms: time(&self.last_seen),
            samples: samples.is_valid(row).then(|| samples.value(row)),
        })
    }
}

fn labels_of(pairs: &StructArray) -> Result<Labels, String> {
    let (names, values) = (pairs.column(0).as_string::<i32>(), pairs.column(1).as_string::<i32>());
    Labels::from_pairs(names.iter().flatten().zip(values.iter().map(Option::unwrap_or_default))).map_err(|e| e.to_string())
}
