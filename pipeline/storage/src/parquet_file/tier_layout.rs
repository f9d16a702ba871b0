//! How the columns of a tier's file are laid out.
//!
//! ```text
//!  metric, series_id, count              dictionary: few values in long stretches
//!  time, first_time, last_time           DELTA_BINARY_PACKED: equal distances cost next to nothing
//!  sum, min, max, first, last, increase  BYTE_STREAM_SPLIT, or a dictionary where the rows repeat values
//! ```
//!
//! Rows of a tier are written a few times and read for months: zstd works harder than at a flush.

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::Float64Type;
use parquet::basic::{Compression, Encoding, ZstdLevel};
use parquet::errors::ParquetError;
use parquet::file::properties::WriterPropertiesBuilder;
use parquet::schema::types::ColumnPath;
use std::collections::HashSet;

/// Level of zstd.
const ZSTD_LEVEL: i32 = 6;

/// Rows on which it is decided whether a column repeats its values.
const SAMPLE_ROWS: usize = 4_096;

/// A column of which fewer than one in so many values are different gets a dictionary.
const REPEATS_MIN: usize = 8;

const TIMES: [&str; 3] = ["time", "first_time", "last_time"];
const FLOATS: [&str; 6] = ["sum", "min", "max", "first", "last", "increase"];

/// Lays out the columns of these rows.
pub(super) fn properties(builder: WriterPropertiesBuilder, batches: &[RecordBatch]) -> Result<WriterPropertiesBuilder, ParquetError> {
    let mut builder = builder.set_compression(Compression::ZSTD(ZstdLevel::try_new(ZSTD_LEVEL)?));
    for name in TIMES {
        let column = ColumnPath::from(name);
        builder = builder.set_column_dictionary_enabled(column.clone(), false).set_column_encoding(column, Encoding::DELTA_BINARY_PACKED);
    }
    for name in FLOATS.into_iter().filter(|name| !repeats(batches, name)) {
        let column = ColumnPath::from(name);
        builder = builder.set_column_dictionary_enabled(column.clone(), false).set_column_encoding(column, Encoding::BYTE_STREAM_SPLIT);
    }
    Ok(builder)
}

fn repeats(batches: &[RecordBatch], name: &str) -> bool {
    let Some(values) = batches.iter().max_by_key(|b| b.num_rows()).and_then(|b| b.column_by_name(name)) else { return false };
    let Some(values) = values.as_primitive_opt::<Float64Type>() else { return false };
    let every = (values.len() / SAMPLE_ROWS).max(1);
    let sample: Vec<u64> = (0..values.len()).step_by(every).filter(|i| values.is_valid(*i)).map(|i| values.value(i).to_bits()).collect();
    let different: HashSet<u64> = sample.iter().copied().collect();
    different.len().saturating_mul(REPEATS_MIN) <= sample.len()
}
