//! Aggregates of raw samples over windows, from every raw file that can hold samples of them.

use super::Tier;
use super::row::{Row, aggregate};
use super::touched::Windows;
use crate::StorageError;
use crate::delta::{DeltaTable, FileEntry};
use crate::parquet_file::{FileSource, SamplesRows, Selection, read_samples, read_selected};
use fletch_schemas::is_stale;
use std::collections::HashMap;
use std::sync::Arc;

/// Raw rows that are decoded at once; windows of more rows are computed series by series, some at a time.
const RAW_ROWS_MAX: u64 = 32 << 20;

/// Computes the windows of one partition from these raw files; files without samples of them are not read.
///
/// # Errors
/// A file cannot be read.
pub(super) async fn compute(tier: Tier, table: &DeltaTable, raw: &[Arc<FileEntry>], windows: &Windows) -> Result<Vec<Row>, StorageError> {
    let earliest = windows.values().filter_map(|ends| ends.first()).min().copied().unwrap_or(i64::MAX);
    let latest = windows.values().filter_map(|ends| ends.last()).max().copied().unwrap_or(i64::MIN);
    let from = earliest.saturating_sub(tier.width_ms).saturating_add(1);
    let files: Vec<&Arc<FileEntry>> = raw.iter().filter(|f| f.keys.may_hold_times(from, latest)).collect();
    let rows: u64 = files.iter().map(|f| f.rows).sum();
    if rows <= RAW_ROWS_MAX {
        let mut raw = Vec::with_capacity(files.len());
        for file in files {
            raw.push(read_samples(&source(table, file)?).await?);
        }
        return Ok(aggregates(tier, &raw, windows));
    }
    let pieces = usize::try_from(rows.div_ceil(RAW_ROWS_MAX)).unwrap_or(usize::MAX);
    let mut out = Vec::new();
    let all: Vec<_> = windows.iter().collect();
    for some in all.chunks(all.len().div_ceil(pieces).max(1)) {
        let keys: Vec<(&str, i64)> = some.iter().map(|((metric, id), _)| (metric.as_ref(), *id)).collect();
        let mut raw = Vec::with_capacity(files.len());
        for file in &files {
            let open = source(table, file)?.open().await?;
            raw.push(read_selected(&open, &Selection { keys: &keys, from_ms: from, to_ms: latest }).await?);
        }
        let some: Windows = some.iter().map(|(key, ends)| ((*key).clone(), (*ends).clone())).collect();
        out.extend(aggregates(tier, &raw, &some));
    }
    Ok(out)
}

fn source(table: &DeltaTable, file: &FileEntry) -> Result<FileSource, StorageError> {
    Ok(FileSource::object(table.store().clone(), table.object_path(&file.path)?, file))
}

fn aggregates(tier: Tier, raw: &[SamplesRows], windows: &Windows) -> Vec<Row> {
    let slices = slices_by_series(raw, windows);
    let mut rows = Vec::new();
    for ((metric, series_id), ends) in windows {
        let Some(parts) = slices.get(&(metric.as_ref(), *series_id)) else { continue };
        let (times, values) = merged(parts);
        rows.extend(ends.iter().filter_map(|&end| {
            let from = times.partition_point(|t| *t <= end - tier.width_ms);
            let to = times.partition_point(|t| *t <= end);
            aggregate(metric, *series_id, end, &times[from..to], &values[from..to])
        }));
    }
    rows
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
