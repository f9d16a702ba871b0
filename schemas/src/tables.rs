//! The tables of the lakehouse: their columns, partitioning and statistics.
//!
//! Every table is a Delta table (reader 1, writer 2) partitioned by `tenant`, `date`; rows of a file are sorted by
//! `metric, series_id, time`. Files hold the columns without the two partition columns. Times are µs, UTC, never naive.

use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use std::sync::Arc;

/// Names of the partition columns, outermost first.
pub const PARTITION_COLUMNS: [&str; 2] = ["tenant", "date"];

/// One table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Table {
    /// One row per sample.
    Samples,
    /// One row per series and day it was active.
    Series,
    /// One-minute windows of `samples`.
    Samples1m,
    /// Five-minute windows of `samples`.
    Samples5m,
    /// One-hour windows of `samples`.
    Samples1h,
}

impl Table {
    /// Name, and folder below `tables/`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Samples => "samples",
            Self::Series => "series",
            Self::Samples1m => "samples_1m",
            Self::Samples5m => "samples_5m",
            Self::Samples1h => "samples_1h",
        }
    }

    /// Columns of a file (without the partition columns).
    pub fn file_schema(self) -> SchemaRef {
        Arc::new(Schema::new(match self {
            Self::Samples => samples_fields(),
            Self::Series => series_fields(),
            Self::Samples1m | Self::Samples5m | Self::Samples1h => tier_fields(),
        }))
    }

    /// Columns of the table: the partition columns first, then those of its files.
    pub fn table_schema(self) -> SchemaRef {
        let mut fields = vec![Field::new("tenant", DataType::Utf8, false), Field::new("date", DataType::Date32, false)];
        fields.extend(self.file_schema().fields().iter().map(|f| f.as_ref().clone()));
        Arc::new(Schema::new(fields))
    }

    /// Columns with file statistics. `value` has none: a NaN would make them lie.
    pub fn stats_columns(self) -> &'static [&'static str] {
        match self {
            Self::Samples | Self::Samples1m | Self::Samples5m | Self::Samples1h => &["metric", "series_id", "time"],
            Self::Series => &["metric", "series_id"],
        }
    }
}

/// The type of every time column.
pub fn time_type() -> DataType {
    DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()))
}

/// The type of the `labels` column.
pub fn labels_type() -> DataType {
    let entries = Field::new(
        "key_value",
        DataType::Struct(vec![Field::new("key", DataType::Utf8, false), Field::new("value", DataType::Utf8, true)].into()),
        false,
    );
    DataType::Map(Arc::new(entries), false)
}

fn key_fields() -> Vec<Field> {
    vec![
        Field::new("metric", DataType::Utf8, false),
        Field::new("series_id", DataType::Int64, false),
        Field::new("time", time_type(), false),
    ]
}

fn samples_fields() -> Vec<Field> {
    let mut fields = key_fields();
    fields.push(Field::new("value", DataType::Float64, true));
    fields.push(Field::new("start_time", time_type(), true));
    fields
}

fn tier_fields() -> Vec<Field> {
    let mut fields = key_fields();
    fields.push(Field::new("count", DataType::Int64, false));
    for name in ["sum", "min", "max", "first", "last"] {
        fields.push(Field::new(name, DataType::Float64, true));
    }
    fields.push(Field::new("first_time", time_type(), true));
    fields.push(Field::new("last_time", time_type(), true));
    fields.push(Field::new("increase", DataType::Float64, true));
    fields
}

fn series_fields() -> Vec<Field> {
    vec![
        Field::new("metric", DataType::Utf8, false),
        Field::new("series_id", DataType::Int64, false),
        Field::new("probe", DataType::Int32, false),
        Field::new("labels", labels_type(), false),
        Field::new("type", DataType::Utf8, true),
        Field::new("unit", DataType::Utf8, true),
        Field::new("help", DataType::Utf8, true),
        Field::new("first_seen", time_type(), true),
        Field::new("last_seen", time_type(), true),
        Field::new("samples", DataType::Int64, true),
        Field::new("job", DataType::Utf8, true),
        Field::new("instance", DataType::Utf8, true),
    ]
}
