//! Aggregates of raw samples over windows.
//!
//! Stale markers are no values: they count nowhere, and a window of nothing else has no row. Minimum and maximum ignore NaN while there is a
//! number, as `min_over_time` and `max_over_time` do.

use super::WINDOW_MS;
use super::touched::Windows;
use crate::StorageError;
use crate::delta::{DeltaTable, Snapshot};
use crate::parquet_file::{FileSource, SamplesRows, read_samples};
use fletch_schemas::{TenantId, is_stale};
use std::collections::HashMap;
use std::sync::Arc;

/// One row of the tier.
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

/// Aggregates one window; `None` when it holds no value. `times` ascend; both have one length.
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
    for (time, value) in samples {
        row.count += 1;
        row.sum += value;
        // Comparisons with NaN are false, so a NaN so far is replaced and a new NaN is not taken.
        row.min = if value < row.min || row.min.is_nan() { value } else { row.min };
        row.max = if value > row.max || row.max.is_nan() { value } else { row.max };
        row.increase += if value < row.last { value } else { value - row.last };
        (row.last, row.last_time_ms) = (value, time);
    }
    Some(row)
}

/// Computes the windows of one partition from every raw file that can hold samples of them.
///
/// # Errors
/// A file cannot be read.
pub(super) async fn compute(
    table: &DeltaTable,
    samples: &Snapshot,
    tenant: &TenantId,
    date: i32,
    windows: &Windows,
) -> Result<Vec<Row>, StorageError> {
    let earliest = windows.values().filter_map(|ends| ends.first()).min().copied().unwrap_or(i64::MAX);
    let latest = windows.values().filter_map(|ends| ends.last()).max().copied().unwrap_or(i64::MIN);
    let mut raw = Vec::new();
    // The window that ends at midnight holds samples of the day before.
    for file in
        samples.tenant_files(tenant, date - 1..=date).filter(|f| f.keys.may_hold_times(earliest.saturating_sub(WINDOW_MS) + 1, latest))
    {
        let path = table.object_path(&file.path)?;
        raw.push(read_samples(&FileSource::object(table.store().clone(), path, file)).await?);
    }
    let slices = slices_by_series(&raw, windows);
    let mut rows = Vec::new();
    for ((metric, series_id), ends) in windows {
        let Some(parts) = slices.get(&(metric.as_ref(), *series_id)) else { continue };
        let (times, values) = merged(parts);
        rows.extend(ends.iter().filter_map(|&end| {
            let from = times.partition_point(|t| *t <= end - WINDOW_MS);
            let to = times.partition_point(|t| *t <= end);
            aggregate(metric, *series_id, end, &times[from..to], &values[from..to])
        }));
    }
    Ok(rows)
}

type Part<'a> = (&'a [i64], &'a [f64]);

fn slices_by_series<'a>(raw: &'a [SamplesRows], windows: &Windows) -> HashMap<(&'a str, i64), Vec<Part<'a>>> {
    let mut found: HashMap<(&str, i64), Vec<Part<'_>>> = HashMap::new();
    for rows in raw {
        for series in rows.series.iter().filter(|s| windows.contains_key(&(s.metric.clone(), s.series_id))) {
            let part = (&rows.times[series.rows.clone()], &rows.values[series.rows.clone()]);
            found.entry((series.metric.as_ref(), series.series_id)).or_default().push(part);
        }
    }
    found
}

/// All parts in time order, one value per time: a value before the stale marker, of two values the larger in total order.
fn merged(parts: &[Part<'_>]) -> (Vec<i64>, Vec<f64>) {
    let mut all: Vec<(i64, f64)> = parts.iter().flat_map(|(t, v)| t.iter().copied().zip(v.iter().copied())).collect();
    let ascending = all.windows(2).all(|w| w[0].0 < w[1].0);
    if !ascending {
        // The winner of equal times sorts first, and `dedup` keeps the first.
        all.sort_by(|a, b| a.0.cmp(&b.0).then(is_stale(a.1).cmp(&is_stale(b.1))).then(b.1.total_cmp(&a.1)));
        all.dedup_by_key(|s| s.0);
    }
    all.into_iter().unzip()
}
