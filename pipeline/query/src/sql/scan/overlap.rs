//! Finds which files and batches can hold copies of one sample: those whose key ranges overlap.
//!
//! ```text
//!  time ──▶   A ████████            A and B overlap in time, metrics and series ids: they are merged and deduplicated together
//!               B ──████████        C meets neither: it is read as it is
//!                            C ████
//! ```
//!
//! # Invariants
//! - Parts of different groups share no key. A part never overlaps itself: one row per key is what storage promises.
//! - Only ranges decide, never contents; a missing range overlaps everything.

use arrow::array::AsArray;
use arrow::compute::{max, min};
use arrow::datatypes::{Int64Type, TimestampMicrosecondType};
use arrow::record_batch::RecordBatch;
use fletch_schemas::day_start_ms;
use fletch_storage::delta::FileEntry;
use std::sync::Arc;

const DAY_MS: i64 = 86_400_000;

/// Where rows come from.
#[derive(Debug, Clone)]
pub(crate) enum Source {
    /// A file of the table.
    File(Arc<FileEntry>),
    /// Samples that are in no file, sorted by key.
    Batch(RecordBatch),
}

/// Rows with the box that their keys lie in; all ends included.
#[derive(Debug, Clone)]
pub(crate) struct Part {
    pub(crate) source: Source,
    metrics: Option<(Arc<str>, Arc<str>)>,
    series_ids: (i64, i64),
    times_ms: (i64, i64),
}

impl Part {
    /// A file, by what the log says of it.
    pub(crate) fn file(file: Arc<FileEntry>) -> Self {
        let day = day_start_ms(file.date);
        Self {
            metrics: file.keys.metrics.clone(),
            series_ids: file.keys.series_ids.unwrap_or((i64::MIN, i64::MAX)),
            times_ms: file.keys.times_ms.unwrap_or((day, day + DAY_MS - 1)),
            source: Source::File(file),
        }
    }

    /// A batch with columns `metric`, `series_id` and `time`, sorted by them. `None` when it has no rows.
    pub(crate) fn batch(batch: RecordBatch) -> Option<Self> {
        let last = batch.num_rows().checked_sub(1)?;
        let metrics = batch.column_by_name("metric")?.as_string_opt::<i32>()?;
        let metrics = (Arc::from(metrics.value(0)), Arc::from(metrics.value(last)));
        let ids = batch.column_by_name("series_id")?.as_primitive_opt::<Int64Type>()?;
        let times = batch.column_by_name("time")?.as_primitive_opt::<TimestampMicrosecondType>()?;
        Some(Self {
            metrics: Some(metrics),
            series_ids: (min(ids)?, max(ids)?),
            times_ms: (min(times)?.div_euclid(1_000), max(times)?.div_euclid(1_000)),
            source: Source::Batch(batch),
        })
    }

    fn overlaps(&self, other: &Self) -> bool {
        let metrics = match (&self.metrics, &other.metrics) {
            (Some(a), Some(b)) => a.0 <= b.1 && b.0 <= a.1,
            _ => true,
        };
        metrics && meet(self.series_ids, other.series_ids) && meet(self.times_ms, other.times_ms)
    }
}

fn meet(a: (i64, i64), b: (i64, i64)) -> bool {
    a.0 <= b.1 && b.0 <= a.1
}

/// Splits parts into groups that share no key, in order of time. A group of one needs no deduplication.
pub(crate) fn groups(mut parts: Vec<Part>) -> Vec<Vec<Part>> {
    parts.sort_by_key(|p| p.times_ms);
    let mut root: Vec<usize> = (0..parts.len()).collect();
    // Parts that may still overlap a later one: their time has not ended.
    let mut open: Vec<usize> = Vec::new();
    for (at, part) in parts.iter().enumerate() {
        open.retain(|&o| parts[o].times_ms.1 >= part.times_ms.0);
        for &other in &open {
            if part.overlaps(&parts[other]) {
                let (a, b) = (find(&mut root, at), find(&mut root, other));
                root[a.max(b)] = a.min(b);
            }
        }
        open.push(at);
    }
    let mut groups: Vec<Vec<Part>> = Vec::new();
    let mut group_of: Vec<Option<usize>> = vec![None; parts.len()];
    for (at, part) in parts.into_iter().enumerate() {
        let top = find(&mut root, at);
        let group = *group_of[top].get_or_insert_with(|| {
            groups.push(Vec::new());
            groups.len() - 1
        });
        groups[group].push(part);
    }
    groups
}

fn find(root: &mut [usize], mut at: usize) -> usize {
    while root[at] != at {
        root[at] = root[root[at]];
        at = root[at];
    }
    at
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::datatypes::Schema;

    fn part(metrics: (&str, &str), series_ids: (i64, i64), times_ms: (i64, i64)) -> Part {
        let source = Source::Batch(RecordBatch::new_empty(Arc::new(Schema::empty())));
        Part { source, metrics: Some((metrics.0.into(), metrics.1.into())), series_ids, times_ms }
    }

    fn sizes(parts: Vec<Part>) -> Vec<usize> {
        groups(parts).iter().map(Vec::len).collect()
    }

    #[test]
    fn only_boxes_that_meet_in_every_column_are_merged() {
        let a = part(("a", "m"), (0, 10), (0, 100));
        assert_eq!(sizes(vec![a.clone(), part(("b", "c"), (5, 5), (100, 200))]), [2], "an edge is shared");
        assert_eq!(sizes(vec![a.clone(), part(("b", "c"), (5, 5), (101, 200))]), [1, 1], "other times");
        assert_eq!(sizes(vec![a.clone(), part(("n", "z"), (5, 5), (50, 60))]), [1, 1], "other metrics");
        assert_eq!(sizes(vec![a.clone(), part(("a", "z"), (11, 12), (50, 60))]), [1, 1], "other series");
        let unknown = Part { metrics: None, ..part(("", ""), (0, 0), (0, 0)) };
        assert_eq!(sizes(vec![a, unknown]), [2], "a missing range overlaps everything");
    }

    #[test]
    fn overlap_is_passed_on() {
        let day = |times| part(("a", "z"), (0, 9), times);
        // The long part joins two that do not meet each other.
        assert_eq!(sizes(vec![day((0, 10)), day((20, 30)), day((40, 50)), day((5, 25))]), [3, 1]);
        assert_eq!(sizes(Vec::new()), [0; 0]);
    }
}
