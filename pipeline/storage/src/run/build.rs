//! Makes a run of a micro-batch: counting sort by dense series number, then a check that each series is in order.
//!
//! ```text
//!  arrival   7 3 7 8 3 …   ──count──▶  3:2 7:2 8:1  ──prefix──▶  0 2 4  ──scatter──▶  [3 3 | 7 7 | 8]
//! ```
//! Arrival order is kept inside a series, and senders send in order: the check nearly always passes, and only series that fail it are sorted.

use super::{Run, RunSlice, beats};
use fletch_ingest::SeriesRef;
use fletch_schemas::SampleColumns;
use std::sync::Arc;

/// Buffers that are used again for each batch.
#[derive(Debug, Default)]
pub struct Scratch {
    /// Per series number: count, then write position. All zero between calls.
    counts: Vec<u32>,
    touched: Vec<u32>,
    rows: Vec<(i64, f64)>,
}

/// Columns of samples in arrival order, equal lengths.
#[derive(Debug, Clone, Copy)]
pub struct Arrived<'a> {
    /// Series of each sample.
    pub series: &'a [SeriesRef],
    /// Milliseconds.
    pub times: &'a [i64],
    /// Values.
    pub values: &'a [f64],
}

/// A run under construction: slices can still shrink before it is closed.
#[derive(Debug, Default)]
pub struct Draft {
    /// Ascending.
    pub refs: Vec<SeriesRef>,
    /// Parallel to `refs`; a slice may be empty.
    pub slices: Vec<RunSlice>,
    /// Their columns.
    pub columns: SampleColumns,
    /// Copies of a (series, time) inside the batch that were dropped.
    pub dropped: u64,
}

impl Draft {
    /// Times of series `i` of the draft.
    pub fn times(&self, i: usize) -> &[i64] {
        let s = self.slices[i];
        &self.columns.times[s.time_start as usize..][..s.len as usize]
    }

    /// Keeps the samples of series `i` for which `keep(time, value)` holds; returns how many went.
    pub fn retain(&mut self, i: usize, mut keep: impl FnMut(i64, f64) -> bool) -> u64 {
        let slice = &mut self.slices[i];
        let start = slice.value_start as usize;
        let mut kept = 0;
        for row in start..start + slice.len as usize {
            let (time, value) = (self.columns.times[row], self.columns.values[row]);
            if keep(time, value) {
                self.columns.times[start + kept as usize] = time;
                self.columns.values[start + kept as usize] = value;
                kept += 1;
            }
        }
        let gone = slice.len - kept;
        slice.len = kept;
        u64::from(gone)
    }

    /// The run; `None` when no sample is left.
    pub fn close(mut self) -> Option<Run> {
        if self.slices.iter().any(|s| s.len == 0) {
            let slices = &self.slices;
            let mut at = 0;
            self.refs.retain(|_| {
                at += 1;
                slices[at - 1].len > 0
            });
            self.slices.retain(|s| s.len > 0);
        }
        if self.refs.is_empty() {
            return None;
        }
        Run::new(self.refs, self.slices, Arc::new(self.columns))
    }
}

impl Scratch {
    /// Sorts the samples at `rows` (all when `None`).
    ///
    /// Row numbers beyond the columns and columns of different lengths are bugs of the caller and panic; 2^32 samples do not fit a batch.
    pub fn sort(&mut self, arrived: Arrived<'_>, rows: Option<&[u32]>) -> Draft {
        match rows {
            None => self.sort_rows(arrived, 0..arrived.series.len()),
            Some(rows) => self.sort_rows(arrived, rows.iter().map(|&r| r as usize)),
        }
    }

    fn sort_rows(&mut self, arrived: Arrived<'_>, rows: impl Iterator<Item = usize> + Clone) -> Draft {
        self.count(arrived.series, rows.clone());
        let mut draft = self.layout();
        for row in rows {
            let position = &mut self.counts[arrived.series[row].index()];
            draft.columns.times[*position as usize] = arrived.times[row];
            draft.columns.values[*position as usize] = arrived.values[row];
            *position += 1;
        }
        for &series in &self.touched {
            self.counts[series as usize] = 0;
        }
        for i in 0..draft.slices.len() {
            if !draft.times(i).is_sorted_by(|a, b| a < b) {
                self.repair(&mut draft, i);
            }
        }
        draft
    }

    fn count(&mut self, series: &[SeriesRef], rows: impl Iterator<Item = usize>) {
        self.touched.clear();
        for row in rows {
            let number = series[row].index();
            if number >= self.counts.len() {
                self.counts.resize(number + 1, 0);
            }
            if self.counts[number] == 0 {
                self.touched.push(series[row].0);
            }
            self.counts[number] += 1;
        }
        // New series get rising numbers and senders keep their order, so this is a few ascending stretches.
        self.touched.sort();
    }

    /// Turns counts into write positions and slices.
    fn layout(&mut self) -> Draft {
        let mut draft =
            Draft { refs: Vec::with_capacity(self.touched.len()), slices: Vec::with_capacity(self.touched.len()), ..Draft::default() };
        let mut start = 0_u32;
        for &series in &self.touched {
            let len = std::mem::replace(&mut self.counts[series as usize], start);
            draft.refs.push(SeriesRef(series));
            draft.slices.push(RunSlice { time_start: start, value_start: start, len });
            start += len;
        }
        draft.columns.times = vec![0; start as usize];
        draft.columns.values = vec![0.0; start as usize];
        draft
    }

    /// Sorts one series by time and leaves one sample per time.
    fn repair(&mut self, draft: &mut Draft, i: usize) {
        let slice = draft.slices[i];
        let start = slice.value_start as usize;
        let range = start..start + slice.len as usize;
        self.rows.clear();
        self.rows.extend(draft.columns.times[range.clone()].iter().copied().zip(draft.columns.values[range].iter().copied()));
        self.rows.sort_by_key(|(t, _)| *t);
        let mut end = start;
        for &(time, value) in &self.rows {
            if end > start && draft.columns.times[end - 1] == time {
                draft.dropped += 1;
                if beats(value, draft.columns.values[end - 1]) {
                    draft.columns.values[end - 1] = value;
                }
                continue;
            }
            draft.columns.times[end] = time;
            draft.columns.values[end] = value;
            end += 1;
        }
        draft.slices[i].len = u32::try_from(end - start).expect("not longer than before");
    }
}
