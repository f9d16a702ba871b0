//! How the columns of a `samples` file are laid out: the one place that decides on encodings, compression, statistics and page sizes.
//!
//! ```text
//!  metric, series_id   dictionary + one RLE run per series (written by hand in `keys_chunk`: measured 27–30 ns per row cheaper)
//!  time                DELTA_BINARY_PACKED or PLAIN      ┐ flush: the smaller one on a sample of the file's rows
//!  value               BYTE_STREAM_SPLIT or PLAIN        ┘ compaction: the smallest for each page, or the dictionary (`packed`)
//!  start_time          all null
//! ```
//!
//! Everything is zstd, at the level of the [`Effort`]. Aligned times want the deltas, unaligned ones PLAIN; constant values want PLAIN: no encoding is best everywhere.

use super::{PAGE_ROWS, ROW_GROUP_ROWS, SeriesSlice};
use arrow::array::RecordBatch;
use arrow::datatypes::Schema;
use fletch_schemas::is_stale;
use fletch_schemas::tables::Table;
use parquet::arrow::add_encoded_arrow_schema_to_metadata;
use parquet::basic::{Compression, Encoding, ZstdLevel};
use parquet::data_type::{DataType, DoubleType, Int64Type};
use parquet::errors::ParquetError;
use parquet::file::metadata::SortingColumn;
use parquet::file::properties::{EnabledStatistics, WriterProperties, WriterPropertiesBuilder};
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;
use parquet::schema::types::ColumnPath;
use std::sync::Arc;

/// How much work a file is worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Effort {
    /// Level of zstd, 1 to 22.
    pub zstd_level: i32,
    /// Whether `time` and `value` get the best encoding for each page ([`super::packed`]) or one for the file.
    pub per_page: bool,
}

impl Effort {
    /// A flush: soon read, soon compacted.
    pub const FLUSH: Self = Self { zstd_level: 1, per_page: false };
    /// A compaction: what it writes stays for as long as the data lives. Bytes per sample of a file of 20 hosts × 2 h × 10 s (devops) and of 8
    /// node exporters × 1 h × 15 s (`examples/encodings.rs`):
    ///
    /// | | zstd 1 | 3 | 6 | 9 | 12 |
    /// |---|---|---|---|---|---|
    /// | devops, one encoding per file | 1.004 | 0.937 | 0.932 | 0.901 | 0.897 |
    /// | devops, one per page of 20,480 rows | 1.004 | 0.936 | 0.932 | 0.900 | 0.895 |
    /// | devops, one per page of 65,536 rows | 0.961 | 0.873 | 0.848 | **0.843** | 0.840 |
    /// | node, one encoding per file | 2.024 | 1.970 | 1.872 | 1.857 | 1.858 |
    /// | node, one per page of 20,480 rows | 1.790 | 1.769 | 1.714 | 1.699 | 1.693 |
    /// | node, one per page of 65,536 rows | 1.867 | 1.733 | 1.676 | **1.671** | 1.662 |
    ///
    /// Levels above 12 were slower by a factor of 5 and more for 1 to 8 %.
    pub const COMPACT: Self = Self { zstd_level: 9, per_page: true };
}

/// Rows of the sample on which encodings are tried.
const SAMPLE_ROWS: usize = 8_192;

/// Below this many rows the trial costs more than it can save.
const TRIAL_ROWS_MIN: usize = 4_096;

/// The encodings that depend on the data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Encodings {
    pub(super) time: Encoding,
    pub(super) value: Encoding,
}

impl Encodings {
    /// What fits most data.
    const USUAL: Self = Self { time: Encoding::DELTA_BINARY_PACKED, value: Encoding::BYTE_STREAM_SPLIT };
}

/// Tries the candidates on a sample of the rows.
pub(super) fn choose(series: &[SeriesSlice<'_>], rows: usize, effort: Effort) -> Result<Encodings, ParquetError> {
    if rows < TRIAL_ROWS_MIN || effort.per_page {
        return Ok(Encodings::USUAL);
    }
    let (times, values) = sample(series, rows);
    let time_trial = |encoding| trial::<Int64Type>("required int64 c;", encoding, &times, effort);
    let value_trial = |encoding| trial::<DoubleType>("required double c;", encoding, &values, effort);
    let usual = Encodings::USUAL;
    Ok(Encodings {
        time: if time_trial(Encoding::PLAIN)? < time_trial(usual.time)? { Encoding::PLAIN } else { usual.time },
        value: if value_trial(Encoding::PLAIN)? < value_trial(usual.value)? { Encoding::PLAIN } else { usual.value },
    })
}

/// Rows of series that are spread evenly over the file, whole stretches of them: neighbours are what the encodings live on.
fn sample(series: &[SeriesSlice<'_>], rows: usize) -> (Vec<i64>, Vec<f64>) {
    let every = (rows / SAMPLE_ROWS).max(1);
    let (mut times, mut values) = (Vec::with_capacity(SAMPLE_ROWS), Vec::with_capacity(SAMPLE_ROWS));
    for slice in series.iter().step_by(every.min(series.len()).max(1)) {
        let take = slice.times.len().min(SAMPLE_ROWS.saturating_sub(times.len()));
        times.extend(slice.times[..take].iter().map(|t| t.saturating_mul(1000)));
        values.extend(slice.values[..take].iter().filter(|v| !is_stale(**v)));
    }
    (times, values)
}

fn trial<T: DataType>(column: &str, encoding: Encoding, values: &[T::T], effort: Effort) -> Result<i64, ParquetError> {
    let schema = Arc::new(parse_message_type(&format!("message m {{ {column} }}"))?);
    let properties = base(effort)?.set_encoding(encoding).build();
    let mut writer = SerializedFileWriter::new(Vec::new(), schema, Arc::new(properties))?;
    let mut group = writer.next_row_group()?;
    if let Some(mut column) = group.next_column()? {
        column.typed::<T>().write_batch(values, None, None)?;
        column.close()?;
    }
    let size = group.close()?.compressed_size();
    writer.close()?;
    Ok(size)
}

/// Properties of a `samples` file.
pub(super) fn samples_properties(schema: &Schema, encodings: Encodings, effort: Effort) -> Result<WriterProperties, ParquetError> {
    let builder = base(effort)?
        .set_column_encoding(ColumnPath::from("time"), encodings.time)
        .set_column_encoding(ColumnPath::from("value"), encodings.value)
        .set_column_statistics_enabled(ColumnPath::from("time"), EnabledStatistics::Page)
        .set_sorting_columns(Some(sorted_by(&[0, 1, 2])));
    let mut properties = builder.build();
    // Without it a reader guesses the types, and an all-column scan was measured 37 % slower.
    add_encoded_arrow_schema_to_metadata(schema, &mut properties);
    Ok(properties)
}

/// Properties of every other table's files, which the Arrow writer writes.
pub(super) fn table_properties(table: Table, batches: &[RecordBatch], effort: Effort) -> Result<WriterProperties, ParquetError> {
    let schema = table.file_schema();
    let keys: Vec<i32> =
        (0..).zip(schema.fields()).filter(|(_, f)| table.stats_columns().contains(&f.name().as_str())).map(|(i, _)| i).collect();
    let mut builder = base(effort)?.set_dictionary_enabled(true).set_sorting_columns(Some(sorted_by(&keys)));
    for name in table.stats_columns() {
        builder = builder.set_column_statistics_enabled(ColumnPath::from(*name), EnabledStatistics::Page);
    }
    if matches!(table, Table::Samples1m | Table::Samples5m | Table::Samples1h) {
        builder = super::tier_layout::properties(builder, batches)?;
    }
    Ok(builder.build())
}

fn base(effort: Effort) -> Result<WriterPropertiesBuilder, ParquetError> {
    Ok(WriterProperties::builder()
        .set_created_by(concat!("fletch ", env!("CARGO_PKG_VERSION")).to_owned())
        .set_compression(Compression::ZSTD(ZstdLevel::try_new(effort.zstd_level)?))
        .set_dictionary_enabled(false)
        .set_statistics_enabled(EnabledStatistics::None)
        .set_max_row_group_row_count(Some(ROW_GROUP_ROWS))
        .set_data_page_row_count_limit(PAGE_ROWS)
        .set_data_page_size_limit(64 << 20)
        .set_write_batch_size(PAGE_ROWS))
}

fn sorted_by(columns: &[i32]) -> Vec<SortingColumn> {
    columns.iter().map(|&column_idx| SortingColumn { column_idx, descending: false, nulls_first: false }).collect()
}
