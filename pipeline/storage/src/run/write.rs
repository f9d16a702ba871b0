//! Writes the columns of a run series by series, sharing times with the series before where they are equal.

use super::merge::{Piece, merge_pieces};
use super::{Run, RunSlice};
use fletch_ingest::SeriesRef;
use fletch_schemas::SampleColumns;
use std::sync::Arc;

/// Columns that grow by one series at a time.
#[derive(Debug, Default)]
pub struct ColumnsWriter {
    columns: SampleColumns,
    last_times: Option<(usize, usize)>,
}

impl ColumnsWriter {
    /// Room for this many samples (memory is only touched as it is written).
    pub fn with_capacity(samples: usize) -> Self {
        let columns = SampleColumns { times: Vec::with_capacity(samples), values: Vec::with_capacity(samples) };
        Self { columns, last_times: None }
    }

    /// Number of samples so far.
    pub fn len(&self) -> usize {
        self.columns.values.len()
    }

    /// Whether nothing was written.
    pub fn is_empty(&self) -> bool {
        self.columns.values.is_empty()
    }

    /// Adds one series given in pieces that may overlap in time; returns where it is and how many copies were dropped.
    ///
    /// `None` when the pieces are all empty, or when the columns are full (2^32 rows: far above every budget).
    pub fn push(&mut self, pieces: &mut [Piece<'_>]) -> Option<(RunSlice, u64)> {
        let (time_start, value_start) = (self.columns.times.len(), self.columns.values.len());
        let dropped = merge_pieces(pieces, &mut self.columns.times, &mut self.columns.values);
        let len = self.columns.values.len() - value_start;
        if len == 0 {
            return None;
        }
        let time_start = self.share_times(time_start, len);
        let fits = |n: usize| u32::try_from(n).ok();
        let slice = RunSlice { time_start: fits(time_start)?, value_start: fits(value_start)?, len: fits(len)? };
        Some((slice, dropped))
    }

    /// Gives the times just written back when the series before has the very same ones.
    fn share_times(&mut self, start: usize, len: usize) -> usize {
        if let Some((last_start, last_len)) = self.last_times
            && last_len == len
            && self.columns.times[last_start..last_start + len] == self.columns.times[start..]
        {
            self.columns.times.truncate(start);
            return last_start;
        }
        self.last_times = Some((start, len));
        start
    }

    /// The columns, without spare room.
    pub fn finish(mut self) -> Arc<SampleColumns> {
        self.columns.times.shrink_to_fit();
        self.columns.values.shrink_to_fit();
        Arc::new(self.columns)
    }
}

/// A run that grows by one series at a time, in any order of series.
#[derive(Debug, Default)]
pub struct RunWriter {
    refs: Vec<SeriesRef>,
    slices: Vec<RunSlice>,
    columns: ColumnsWriter,
    dropped: u64,
}

impl RunWriter {
    /// Room for this many series and samples.
    pub fn with_capacity(series: usize, samples: usize) -> Self {
        Self {
            refs: Vec::with_capacity(series),
            slices: Vec::with_capacity(series),
            columns: ColumnsWriter::with_capacity(samples),
            dropped: 0,
        }
    }

    /// Adds one series; each series at most once.
    pub fn push(&mut self, series: SeriesRef, pieces: &mut [Piece<'_>]) {
        if let Some((slice, dropped)) = self.columns.push(pieces) {
            self.refs.push(series);
            self.slices.push(slice);
            self.dropped += dropped;
        }
    }

    /// The run, and how many copies of (series, time) were dropped while it was written.
    pub fn finish(self) -> (Run, u64) {
        let run =
            Run::new(self.refs, self.slices, self.columns.finish()).expect("the writer makes non-empty slices inside its own columns");
        (run, self.dropped)
    }
}
