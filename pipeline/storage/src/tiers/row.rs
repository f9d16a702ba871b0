//! One row of a tier, and its way into and out of batches.

use super::kinds::RowKind;
use crate::StorageError;
use arrow::array::{Array, ArrayRef, AsArray, Float64Array, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray};
use arrow::datatypes::{Float64Type, Int64Type, TimestampMicrosecondType};
use arrow::error::ArrowError;
use fletch_schemas::is_stale;
use fletch_schemas::tables::Table;
use std::sync::Arc;

/// One row of a tier with all that is known of its window.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Row {
    pub(super) metric: Arc<str>,
    pub(super) series_id: i64,
    /// End of the window, milliseconds.
    pub(super) time_ms: i64,
    pub(super) count: i64,
    pub(super) sum: f64,
    pub(super) min: f64,
    pub(super) max: f64,
    pub(super) first: f64,
    pub(super) last: f64,
    pub(super) first_time_ms: i64,
    pub(super) last_time_ms: i64,
    /// From first to last inside the window, resets counted.
    pub(super) increase: f64,
}

/// Aggregates one window; `None` when it holds no value. `times` ascend; both have one length. Stale markers are no values. The sum is a
/// compensated one, so that it is that of `sum_over_time`; `min` and `max` ignore NaN while there is a number, as `min_over_time` does.
pub(super) fn aggregate(metric: &Arc<str>, series_id: i64, end_ms: i64, times: &[i64], values: &[f64]) -> Option<Row> {
    let mut samples = times.iter().copied().zip(values.iter().copied()).filter(|(_, v)| !is_stale(*v));
    let (first_time_ms, first) = samples.next()?;
    let mut row = Row {
        metric: metric.clone(),
        series_id,
        time_ms: end_ms,
        count: 1,
        sum: first,
        min: first,
        max: first,
        first,
        last: first,
        first_time_ms,
        last_time_ms: first_time_ms,
        increase: 0.0,
    };
    let mut lost = 0.0;
    for (time, value) in samples {
        row.count += 1;
        (row.sum, lost) = add(row.sum, lost, value);
        row.min = least(row.min, value);
        row.max = most(row.max, value);
        row.increase += if value < row.last { value } else { value - row.last };
        (row.last, row.last_time_ms) = (value, time);
    }
    row.sum += if row.sum.is_infinite() { 0.0 } else { lost };
    Some(row)
}

/// Neumaier's step: the sum so far, and what rounding has taken from it.
fn add(sum: f64, lost: f64, value: f64) -> (f64, f64) {
    let total = sum + value;
    if total.is_infinite() {
        return (total, 0.0);
    }
    let taken = if sum.abs() >= value.abs() { (sum - total) + value } else { (value - total) + sum };
    (total, lost + taken)
}

// Comparisons with NaN are false, so a NaN so far is replaced and a new NaN is not taken.
fn least(a: f64, b: f64) -> f64 {
    if b < a || a.is_nan() { b } else { a }
}

fn most(a: f64, b: f64) -> f64 {
    if b > a || a.is_nan() { b } else { a }
}

/// Rows as a batch with the columns of a tier; what a row's kind (one for each row) does not name is NULL.
pub(super) fn batch(rows: &[Row], kinds: &[RowKind]) -> Result<RecordBatch, ArrowError> {
    let time = |get: fn(&Row) -> i64, not: RowKind| -> ArrayRef {
        let times: TimestampMicrosecondArray =
            rows.iter().zip(kinds).map(|(r, k)| (*k != not).then(|| get(r).saturating_mul(1_000))).collect();
        Arc::new(times.with_timezone("UTC"))
    };
    let float = |get: fn(&Row) -> f64, not: Option<RowKind>| -> ArrayRef {
        let values: Float64Array = rows.iter().zip(kinds).map(|(r, k)| (Some(*k) != not).then(|| get(r))).collect();
        Arc::new(values)
    };
    let int = |get: fn(&Row) -> i64| -> ArrayRef { Arc::new(Int64Array::from_iter_values(rows.iter().map(get))) };
    let ends = TimestampMicrosecondArray::from_iter_values(rows.iter().map(|r| r.time_ms.saturating_mul(1_000))).with_timezone("UTC");
    let (counter, gauge) = (Some(RowKind::Counter), Some(RowKind::Gauge));
    let columns: Vec<ArrayRef> = vec![
        Arc::new(StringArray::from_iter_values(rows.iter().map(|r| r.metric.as_ref()))),
        int(|r| r.series_id),
        Arc::new(ends),
        int(|r| r.count),
        float(|r| r.sum, counter),
        float(|r| r.min, counter),
        float(|r| r.max, counter),
        float(|r| r.first, gauge),
        float(|r| r.last, None),
        time(|r| r.first_time_ms, RowKind::Gauge),
        time(|r| r.last_time_ms, RowKind::Gauge),
        float(|r| r.increase, gauge),
    ];
    RecordBatch::try_new(Table::Samples1m.file_schema(), columns)
}

/// The columns of stored rows, with their types checked.
pub(super) struct StoredRows<'a> {
    batch: &'a RecordBatch,
}

impl<'a> StoredRows<'a> {
    /// Rows of a batch that has exactly the columns of a tier.
    pub(super) fn of(batch: &'a RecordBatch) -> Result<Self, StorageError> {
        let schema = Table::Samples1m.file_schema();
        let same = batch.num_columns() == schema.fields().len()
            && batch.schema().fields().iter().zip(schema.fields()).all(|(a, b)| a.name() == b.name() && a.data_type() == b.data_type());
        if same { Ok(Self { batch }) } else { Err(StorageError::Corrupt { path: "rows of a tier".into(), why: "other columns".into() }) }
    }

    pub(super) fn key(&self, row: usize) -> (&'a str, i64, i64) {
        let columns = self.batch.columns();
        let time = columns[2].as_primitive::<TimestampMicrosecondType>().value(row).div_euclid(1_000);
        (columns[0].as_string::<i32>().value(row), columns[1].as_primitive::<Int64Type>().value(row), time)
    }

    /// Which columns a row has.
    pub(super) fn kind(&self, row: usize) -> RowKind {
        let has = |column: usize| self.batch.column(column).is_valid(row);
        match (has(4), has(7)) {
            (true, false) => RowKind::Gauge,
            (false, true) => RowKind::Counter,
            _ => RowKind::All,
        }
    }

    /// The row with late samples laid over it whose raw neighbours may be gone: everything but `increase`, which cannot be known any more.
    /// Columns that the stored row does not have stay what `late` says; they are NULL in the file.
    pub(super) fn joined(&self, row: usize, late: &Row) -> Row {
        let float = |column: usize| {
            let values = self.batch.column(column).as_primitive::<Float64Type>();
            values.is_valid(row).then(|| values.value(row))
        };
        let time = |column: usize| {
            let times = self.batch.column(column).as_primitive::<TimestampMicrosecondType>();
            times.is_valid(row).then(|| times.value(row).div_euclid(1_000))
        };
        let mut joined = late.clone();
        joined.count += self.batch.column(3).as_primitive::<Int64Type>().value(row);
        joined.sum += float(4).unwrap_or(0.0);
        joined.min = float(5).map_or(late.min, |old| least(old, late.min));
        joined.max = float(6).map_or(late.max, |old| most(old, late.max));
        if let (Some(old), Some(at)) = (float(7), time(9).filter(|at| *at <= late.first_time_ms)) {
            (joined.first, joined.first_time_ms) = (old, at);
        }
        // A gauge has no time of its last value; that of an earlier commit stays.
        let last_at = time(10).unwrap_or(i64::MAX);
        if let Some(old) = float(8).filter(|_| last_at >= late.last_time_ms) {
            (joined.last, joined.last_time_ms) = (old, last_at.min(late.time_ms));
        }
        joined.increase = float(11).unwrap_or(late.increase);
        joined
    }
}
