//! The merge of `series` files of a (tenant, date), in memory: one row per series.
//!
//! Rows of one series differ only where they were written without knowing of each other: what one of them knows is kept.

use super::{Job, identity_of, upload};
use crate::StorageError;
use crate::delta::{DeltaTable, FileEntry};
use crate::parquet_file::{Effort, FileSource, SeriesRow, read_series, write_series_with};
use fletch_schemas::MetricKind;
use std::sync::Arc;

/// Merges the inputs of a job into one file, uploaded and not yet named by a commit.
///
/// # Errors
/// An input cannot be read or is damaged, the output cannot be written.
pub(super) async fn merge(table: &DeltaTable, job: &Job, now_ms: i64) -> Result<Vec<FileEntry>, StorageError> {
    let mut inputs: Vec<&FileEntry> = job.inputs.iter().map(AsRef::as_ref).collect();
    // The youngest last: what it says about a family counts.
    inputs.sort_by_key(|f| f.committed_ms);
    let mut rows = Vec::new();
    for entry in inputs {
        // The hash is checked by the read.
        rows.extend(read_series(&FileSource::object(table.store().clone(), table.object_path(&entry.path)?, entry)).await?);
    }
    let identity = identity_of(job, now_ms);
    let encoding = tokio::task::spawn_blocking(move || {
        let rows = unique(rows);
        let key = |row: &SeriesRow| (Arc::<str>::from(row.labels.metric()), row.series_id);
        let ends = rows.iter().map(key).min().zip(rows.iter().map(key).max());
        let mut file = write_series_with(&rows, &identity, Effort::COMPACT)?;
        file.entry.compacted = ends.map(|(first, last)| (first.1, last.1));
        Ok::<_, StorageError>(file)
    });
    let file = encoding.await.map_err(|e| StorageError::Conflict(format!("a merge ended: {e}")))??;
    Ok(vec![upload(table, file).await?])
}

/// One row per (id, labels), in no order that matters; of equal ones the later says more.
fn unique(mut rows: Vec<SeriesRow>) -> Vec<SeriesRow> {
    rows.sort_by(|a, b| (a.series_id, &a.labels).cmp(&(b.series_id, &b.labels)));
    let mut out: Vec<SeriesRow> = Vec::with_capacity(rows.len());
    for row in rows {
        match out.last_mut() {
            Some(last) if last.series_id == row.series_id && last.labels == row.labels => join(last, row),
            _ => out.push(row),
        }
    }
    out
}

fn join(kept: &mut SeriesRow, later: SeriesRow) {
    let either = |a: Option<i64>, b: Option<i64>, pick: fn(i64, i64) -> i64| match (a, b) {
        (Some(a), Some(b)) => Some(pick(a, b)),
        (a, b) => a.or(b),
    };
    kept.first_seen_ms = either(kept.first_seen_ms, later.first_seen_ms, i64::min);
    // Two counts of one day cannot be added: their samples may be the same ones.
    let both = kept.samples.is_some() == later.samples.is_some() && kept.samples == later.samples;
    kept.samples = kept.samples.filter(|_| both);
    kept.last_seen_ms = if both { either(kept.last_seen_ms, later.last_seen_ms, i64::max) } else { None };
    if later.kind != MetricKind::Unknown {
        kept.kind = later.kind;
    }
    if !later.unit.is_empty() {
        kept.unit = later.unit;
    }
    if !later.help.is_empty() {
        kept.help = later.help;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fletch_schemas::Labels;

    #[test]
    fn rows_of_one_series_become_one_that_knows_what_both_knew() {
        let row = |id, host: &str, first, help: &str| SeriesRow {
            series_id: id,
            probe: 0,
            labels: Labels::from_pairs([("__name__", "m"), ("host", host)]).expect("valid"),
            kind: MetricKind::Unknown,
            unit: String::new(),
            help: help.to_owned(),
            first_seen_ms: first,
            last_seen_ms: None,
            samples: None,
        };
        let merged =
            unique(vec![row(2, "b", None, ""), row(1, "a", Some(9), "old"), row(2, "b", Some(4), "b"), row(1, "a", Some(5), "new")]);
        assert_eq!(merged, [row(1, "a", Some(5), "new"), row(2, "b", Some(4), "b")]);
        let two = unique(vec![row(1, "a", None, ""), row(1, "b", None, "")]);
        assert_eq!(two.len(), 2, "two label sets under one id are never lost");
    }
}
