//! Runs: sorted columns of samples in memory. Fresh samples, flushed samples that stay and files read from the store are all runs.
//!
//! ```text
//!  refs     [ 3   7   8 ]                                  ascending dense series numbers
//!  slices   [ s3  s7  s8 ]   (time_start, value_start, len) parallel to refs
//!  columns  times [t t t | t t | …]   values [v v v | v v v | v v | …]    series with equal times may share a stretch of `times`
//! ```
//!
//! # Invariants
//! - **R1** `refs` is strictly ascending; every slice lies inside the columns and has strictly increasing times; no slice is empty.
//! - **R2** A run belongs to one (tenant, date). A [`HotRun`] also to one partition and offsets `[from, to)` of it.
//! - **R3** A run never changes: merging makes a new one.
//! - **R4** Of two samples with one (series, time) the larger by [`beats`] stays, wherever they meet.
//!
//! # Parts
//! [`build`] makes a run of a micro-batch, [`merge`] one run of several, [`mod@write`] is the column writer both use.
//!
//! # Not here
//! Which runs a query sees (`view`), when they are merged or dropped (`engine`).

pub mod build;
pub mod merge;
pub mod write;

#[cfg(test)]
mod tests;

use fletch_ingest::{Partition, SeriesRef};
use fletch_schemas::{SampleColumns, is_stale};
use std::sync::Arc;

/// Bytes that one sample counts for in budgets: its time and its value.
pub const SAMPLE_BYTES: u64 = 16;

/// Whether value `a` replaces value `b` of the same (series, time): the larger in the total order of floats; a stale marker loses to everything.
pub fn beats(a: f64, b: f64) -> bool {
    if is_stale(a) {
        return false;
    }
    is_stale(b) || a.total_cmp(&b).is_gt()
}

/// Where the samples of one series are in the columns of its run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RunSlice {
    /// First row in `times`.
    pub time_start: u32,
    /// First row in `values`.
    pub value_start: u32,
    /// Number of samples, at least 1.
    pub len: u32,
}

/// Finds a series in `refs`.
#[derive(Debug)]
enum Lookup {
    /// Binary search in `refs`: small or sparse runs.
    Search,
    /// `positions[ref - base]` is the index in `refs`, or `u32::MAX`.
    Dense { base: u32, positions: Vec<u32> },
}

/// Sorted samples of one (tenant, date).
#[derive(Debug)]
pub struct Run {
    refs: Vec<SeriesRef>,
    slices: Vec<RunSlice>,
    columns: Arc<SampleColumns>,
    samples: usize,
    min_ms: i64,
    max_ms: i64,
    lookup: Lookup,
}

impl Run {
    /// Puts a run together; sorts `refs` and `slices` by series when they are not.
    ///
    /// `None` when a part breaks R1 (a series twice, a slice outside the columns or empty): such parts come from damaged files only.
    pub fn new(mut refs: Vec<SeriesRef>, mut slices: Vec<RunSlice>, columns: Arc<SampleColumns>) -> Option<Self> {
        if refs.len() != slices.len() || !slices.iter().all(|s| inside(s, &columns)) {
            return None;
        }
        if !refs.is_sorted() {
            (refs, slices) = sorted_by_ref(&refs, &slices);
        }
        if refs.windows(2).any(|w| w[0] == w[1]) {
            return None;
        }
        let (mut samples, mut min_ms, mut max_ms) = (0_usize, i64::MAX, i64::MIN);
        for slice in &slices {
            let start = slice.time_start as usize;
            samples += slice.len as usize;
            min_ms = min_ms.min(columns.times[start]);
            max_ms = max_ms.max(columns.times[start + slice.len as usize - 1]);
        }
        let lookup = Lookup::for_run(&refs, samples);
        Some(Self { refs, slices, columns, samples, min_ms, max_ms, lookup })
    }

    /// Series numbers, strictly ascending.
    pub fn refs(&self) -> &[SeriesRef] {
        &self.refs
    }

    /// Slices parallel to [`refs`](Self::refs).
    pub fn slices(&self) -> &[RunSlice] {
        &self.slices
    }

    /// What the slices point into.
    pub fn columns(&self) -> &Arc<SampleColumns> {
        &self.columns
    }

    /// Number of samples.
    pub fn samples(&self) -> usize {
        self.samples
    }

    /// Whether there are no samples.
    pub fn is_empty(&self) -> bool {
        self.samples == 0
    }

    /// Earliest time, in milliseconds (`i64::MAX` of an empty run).
    pub fn min_ms(&self) -> i64 {
        self.min_ms
    }

    /// Latest time, in milliseconds (`i64::MIN` of an empty run).
    pub fn max_ms(&self) -> i64 {
        self.max_ms
    }

    /// Whether it may hold samples in `[min_ms, max_ms]`.
    pub fn overlaps(&self, min_ms: i64, max_ms: i64) -> bool {
        self.min_ms <= max_ms && min_ms <= self.max_ms
    }

    /// Bytes it takes in memory.
    pub fn bytes(&self) -> u64 {
        let columns = 8 * (self.columns.times.capacity() + self.columns.values.capacity());
        let keys = self.refs.capacity() * 4 + self.slices.capacity() * size_of::<RunSlice>();
        let lookup = match &self.lookup {
            Lookup::Search => 0,
            Lookup::Dense { positions, .. } => positions.capacity() * 4,
        };
        (columns + keys + lookup + size_of::<Self>()) as u64
    }

    /// The slice of a series.
    pub fn find(&self, series: SeriesRef) -> Option<RunSlice> {
        let at = match &self.lookup {
            Lookup::Search => self.refs.binary_search(&series).ok()?,
            Lookup::Dense { base, positions } => *positions.get(series.0.checked_sub(*base)? as usize)? as usize,
        };
        self.slices.get(at).copied()
    }

    /// Times of a slice of this run.
    pub fn times(&self, slice: RunSlice) -> &[i64] {
        &self.columns.times[slice.time_start as usize..][..slice.len as usize]
    }

    /// Values of a slice of this run.
    pub fn values(&self, slice: RunSlice) -> &[f64] {
        &self.columns.values[slice.value_start as usize..][..slice.len as usize]
    }

    /// Times and values of a series.
    pub fn series(&self, series: SeriesRef) -> Option<(&[i64], &[f64])> {
        self.find(series).map(|s| (self.times(s), self.values(s)))
    }

    /// All series with their times and values, ascending by series.
    pub fn iter(&self) -> impl Iterator<Item = (SeriesRef, &[i64], &[f64])> {
        self.refs.iter().zip(&self.slices).map(|(&r, &s)| (r, self.times(s), self.values(s)))
    }
}

impl Lookup {
    /// A dense table where it costs at most four bytes per sample: then finding a series is one load.
    fn for_run(refs: &[SeriesRef], samples: usize) -> Self {
        let (Some(first), Some(last)) = (refs.first(), refs.last()) else { return Self::Search };
        let range = (last.0 - first.0) as usize + 1;
        if range > samples.max(4 * refs.len()) || refs.len() < DENSE_SERIES_MIN {
            return Self::Search;
        }
        let mut positions = vec![u32::MAX; range];
        for (at, series) in (0_u32..).zip(refs) {
            positions[(series.0 - first.0) as usize] = at;
        }
        Self::Dense { base: first.0, positions }
    }
}

/// Below this many series a binary search is as fast as the table.
const DENSE_SERIES_MIN: usize = 16;

fn inside(slice: &RunSlice, columns: &SampleColumns) -> bool {
    let end = |start: u32| start as usize + slice.len as usize;
    slice.len > 0 && end(slice.time_start) <= columns.times.len() && end(slice.value_start) <= columns.values.len()
}

fn sorted_by_ref(refs: &[SeriesRef], slices: &[RunSlice]) -> (Vec<SeriesRef>, Vec<RunSlice>) {
    let mut both: Vec<(SeriesRef, RunSlice)> = refs.iter().copied().zip(slices.iter().copied()).collect();
    both.sort_by_key(|(r, _)| *r);
    both.into_iter().unzip()
}

/// The rows of `times` (strictly increasing) that lie in `[min_ms, max_ms]`.
pub fn rows_between(times: &[i64], min_ms: i64, max_ms: i64) -> std::ops::Range<usize> {
    // Most selections take the newest part or all of a slice: look at the ends before searching.
    let start = match times.first() {
        Some(&first) if first >= min_ms => 0,
        _ => times.partition_point(|&t| t < min_ms),
    };
    let end = match times.last() {
        Some(&last) if last <= max_ms => times.len(),
        _ => times.partition_point(|&t| t <= max_ms),
    };
    start..end.max(start)
}

/// A run that came from the bus: it is unflushed in a view if and only if `from` is at or above the view's offset of `partition`.
#[derive(Debug, Clone)]
pub struct HotRun {
    /// Which partition.
    pub partition: Partition,
    /// Offset of its first record.
    pub from: i64,
    /// The next offset after it.
    pub to: i64,
    /// Its samples.
    pub run: Arc<Run>,
}
