//! The kinds in files of `series`, without the labels: what tiers need of them.

use super::columns::{KeyColumns, batches_of};
use super::contained;
use super::source::FileSource;
use crate::StorageError;
use arrow::array::{Array, AsArray};
use arrow::compute::cast;
use arrow::datatypes::DataType;
use fletch_schemas::MetricKind;
use std::sync::Arc;

/// What one row of `series` says about a metric's kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeriesKind {
    /// Metric of the series; shared between its series.
    pub metric: Arc<str>,
    /// Stored id of the series.
    pub series_id: i64,
    /// What the values mean.
    pub kind: MetricKind,
}

/// Reads the kinds in a `series` file, after checking its hash.
///
/// # Errors
/// As [`read_series`](super::read_series).
pub async fn read_series_kinds(source: &FileSource) -> Result<Vec<SeriesKind>, StorageError> {
    let bytes = source.bytes().await?;
    contained(source.name(), || {
        let mut rows: Vec<SeriesKind> = Vec::new();
        for batch in batches_of(source, bytes, &["metric", "series_id", "type"])? {
            let batch = batch.map_err(|e| source.parquet("reading", e.into()))?;
            let corrupt = |why: String| StorageError::Corrupt { path: source.name().to_owned(), why };
            let kinds = batch.column_by_name("type").ok_or_else(|| corrupt("it has no column `type`".to_owned()))?;
            let kinds = cast(kinds, &DataType::Utf8).map_err(|e| corrupt(format!("column `type`: {e}")))?;
            let kinds = kinds.as_string::<i32>();
            KeyColumns::of(source.name(), &batch)?.each_series(|metric, series_id, range| {
                let metric = match rows.last() {
                    Some(last) if last.metric.as_ref() == metric => last.metric.clone(),
                    _ => Arc::from(metric),
                };
                for at in range {
                    let kind = if kinds.is_valid(at) { MetricKind::parse(kinds.value(at)) } else { MetricKind::Unknown };
                    rows.push(SeriesKind { metric: metric.clone(), series_id, kind });
                }
                Ok(())
            })?;
        }
        Ok(rows)
    })
}
