//! Reads rows of some series from a file of a tier: only the pages that hold them, only the columns that are asked for.

use super::columns::{Batches, append_times};
use super::read::wanted_rows;
use super::source::OpenFile;
use super::{Selection, SeriesRows};
use crate::StorageError;
use arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Float64Type, Int64Type, TimestampMicrosecondType};
use fletch_schemas::STALE_BITS;
use parquet::arrow::arrow_reader::RowSelection;

/// Rows of some series of a tier.
#[derive(Debug, Default)]
pub struct TierRows {
    /// Which rows belong to which series.
    pub series: Vec<SeriesRows>,
    /// Ends of windows, milliseconds.
    pub ends: Vec<i64>,
    /// The columns in the order in which they were asked for, parallel to `ends`: counts and times (milliseconds) as numbers, NULL as the
    /// stale marker, which is no value of a tier.
    pub columns: Vec<Vec<f64>>,
}

/// Reads these columns of the rows of some series. Rows outside of the time range may be among them.
///
/// # Errors
/// As [`read_selected`](super::read_selected).
pub async fn read_tier_rows(file: &OpenFile, selection: &Selection<'_>, columns: &[&str]) -> Result<TierRows, StorageError> {
    let wanted = wanted_rows(file, selection).await?;
    let mut out = TierRows { columns: vec![Vec::new(); columns.len()], ..TierRows::default() };
    if wanted.is_empty() {
        return Ok(out);
    }
    let name = file.source.name();
    let rows = RowSelection::from_consecutive_ranges(wanted.iter().map(|w| w.rows.clone()), file.rows());
    let total: usize = wanted.iter().map(|w| w.rows.len()).sum();
    let asked: Vec<&str> = std::iter::once("time").chain(columns.iter().copied()).collect();
    let mut batches = Batches::open(file, &asked, Some(rows))?;
    while let Some(batch) = batches.next().await? {
        append_times(name, &batch, &mut out.ends)?;
        for (column, values) in columns.iter().zip(&mut out.columns) {
            append(name, &batch, column, values)?;
        }
    }
    if out.ends.len() != total {
        let why = format!("{} rows were read where its index names {total}", out.ends.len());
        return Err(StorageError::Corrupt { path: name.to_owned(), why });
    }
    let mut at = 0;
    out.series = wanted;
    for series in &mut out.series {
        let len = series.rows.len();
        series.rows = at..at + len;
        at += len;
    }
    Ok(out)
}

fn append(name: &str, batch: &RecordBatch, column: &str, values: &mut Vec<f64>) -> Result<(), StorageError> {
    let corrupt = |why: String| StorageError::Corrupt { path: name.to_owned(), why };
    let found: &ArrayRef = batch.column_by_name(column).ok_or_else(|| corrupt(format!("it has no column `{column}`")))?;
    let null = f64::from_bits(STALE_BITS);
    match found.data_type() {
        DataType::Int64 => values.extend(found.as_primitive::<Int64Type>().iter().map(|v| v.map_or(null, |v| v as f64))),
        DataType::Timestamp(..) => {
            let micros = cast(found, &fletch_schemas::tables::time_type()).map_err(|e| corrupt(format!("column `{column}`: {e}")))?;
            let micros = micros.as_primitive::<TimestampMicrosecondType>();
            values.extend(micros.iter().map(|v| v.map_or(null, |us| us.div_euclid(1_000) as f64)));
        }
        DataType::Float64 => values.extend(found.as_primitive::<Float64Type>().iter().map(|v| v.unwrap_or(null))),
        other => return Err(corrupt(format!("column `{column}` is {other}"))),
    }
    Ok(())
}
