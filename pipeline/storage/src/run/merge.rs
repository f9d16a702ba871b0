//! One run of several, by copying slices.
//!
//! ```text
//!  run 1   a: ▒▒▒▒      b: ▒▒▒        c: ▒▒
//!  run 2   a:     ▓▓▓                 c:   ▓▓▓       ──▶   a: ▒▒▒▒▓▓▓   b: ▒▒▒   c: ▒▒▓▓▓
//! ```
//! Slices of one series nearly always follow each other in time: they are copied. Only where they overlap their samples are merged one by one.

use super::write::RunWriter;
use super::{Run, beats};
use fletch_ingest::SeriesRef;

/// A stretch of one series: equal lengths, times strictly increasing.
#[derive(Debug, Clone, Copy)]
pub struct Piece<'a> {
    /// Milliseconds.
    pub times: &'a [i64],
    /// Values.
    pub values: &'a [f64],
}

impl<'a> Piece<'a> {
    /// The part in `[min_ms, max_ms]`.
    #[must_use]
    pub fn between(&self, min_ms: i64, max_ms: i64) -> Self {
        let rows = super::rows_between(self.times, min_ms, max_ms);
        Self { times: &self.times[rows.clone()], values: &self.values[rows] }
    }
}

/// Appends the union of the pieces, ascending in time, one sample per time (the one that [`beats`] the others). Returns how many copies were dropped.
pub fn merge_pieces(pieces: &mut [Piece<'_>], times: &mut Vec<i64>, values: &mut Vec<f64>) -> u64 {
    pieces.sort_by_key(|p| p.times.first().copied().unwrap_or(i64::MIN));
    let ordered = pieces.windows(2).all(|w| match (w[0].times.last(), w[1].times.first()) {
        (Some(last), Some(first)) => last < first,
        _ => true,
    });
    if ordered {
        for piece in pieces.iter() {
            times.extend_from_slice(piece.times);
            values.extend_from_slice(piece.values);
        }
        return 0;
    }
    merge_overlapping(pieces, times, values)
}

/// The slow path. Each piece is ascending, so the stable sort does no more than merge them.
fn merge_overlapping(pieces: &[Piece<'_>], times: &mut Vec<i64>, values: &mut Vec<f64>) -> u64 {
    let mut rows: Vec<(i64, f64)> = Vec::with_capacity(pieces.iter().map(|p| p.times.len()).sum());
    for piece in pieces {
        rows.extend(piece.times.iter().copied().zip(piece.values.iter().copied()));
    }
    rows.sort_by_key(|(t, _)| *t);
    let start = times.len();
    let mut dropped = 0;
    for (time, value) in rows {
        if times.len() > start && times.last() == Some(&time) {
            dropped += 1;
            if let Some(kept) = values.last_mut()
                && beats(value, *kept)
            {
                *kept = value;
            }
        } else {
            times.push(time);
            values.push(value);
        }
    }
    dropped
}

/// All series of the runs, ascending.
pub fn union_refs<'a>(runs: impl IntoIterator<Item = &'a Run>) -> Vec<SeriesRef> {
    let mut refs = Vec::new();
    let mut count = 0;
    for run in runs {
        refs.extend_from_slice(run.refs());
        count += 1;
    }
    if count > 1 {
        // Ascending stretches one after another: the stable sort merges them.
        refs.sort();
        refs.dedup();
    }
    refs
}

/// Merges runs of one (tenant, date) into one whose columns hold the series in the order of `order` (each series of the runs once; see [`union_refs`]).
/// Returns it with the number of copies dropped.
pub fn merge_in_order(runs: &[&Run], order: &[SeriesRef]) -> (Run, u64) {
    let samples = runs.iter().map(|r| r.samples()).sum();
    let mut writer = RunWriter::with_capacity(order.len(), samples);
    let mut pieces = Vec::with_capacity(runs.len());
    for &series in order {
        pieces.clear();
        pieces.extend(runs.iter().filter_map(|run| run.series(series)).map(|(times, values)| Piece { times, values }));
        writer.push(series, &mut pieces);
    }
    writer.finish()
}

/// Merges runs of one (tenant, date) into one, columns ascending by series. Walks all runs side by side: no look-ups.
pub fn merge(runs: &[&Run]) -> (Run, u64) {
    let samples = runs.iter().map(|r| r.samples()).sum();
    let order = union_refs(runs.iter().copied());
    let mut writer = RunWriter::with_capacity(order.len(), samples);
    let mut next = vec![0_usize; runs.len()];
    let mut pieces = Vec::with_capacity(runs.len());
    for series in order {
        pieces.clear();
        for (run, at) in runs.iter().zip(&mut next) {
            if run.refs().get(*at) == Some(&series) {
                let slice = run.slices()[*at];
                pieces.push(Piece { times: run.times(slice), values: run.values(slice) });
                *at += 1;
            }
        }
        writer.push(series, &mut pieces);
    }
    writer.finish()
}
