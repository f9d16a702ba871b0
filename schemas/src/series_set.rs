//! Samples of many series in memory, and what a selector returns.
//!
//! ```text
//!  SampleColumns   times  [t0 t1 t2 | t0 t1 t2 t3 | …]      values [v v v | v v v | v v v v | …]
//!  Slice           time_start ──┘                          value_start ──┘      len
//! ```
//!
//! # Invariants
//! - **C1** A slice's times are strictly increasing; its times and values have the same length.
//! - **C2** Slices with equal `(columns, time_start, len)` have the very same times: window bounds found for one hold for all.
//! - **C3** The stale marker is kept as its NaN bits ([`crate::is_stale`]); nothing here is null.

use crate::Labels;
use std::sync::Arc;

/// Two plain columns. Several slices may share a stretch of `times`.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct SampleColumns {
    /// Milliseconds since the Unix epoch.
    pub times: Vec<i64>,
    /// Values; the stale marker by its bits.
    pub values: Vec<f64>,
}

/// The samples of one series inside one [`SampleColumns`] of a [`SeriesSet`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slice {
    /// Which of [`SeriesSet::columns`].
    pub columns: u32,
    /// First row in `times`.
    pub time_start: u32,
    /// First row in `values`.
    pub value_start: u32,
    /// Number of samples.
    pub len: u32,
}

/// What a selector returns: one slice per series, in any order of series.
#[derive(Debug, Default, Clone)]
pub struct SeriesSet {
    /// Label set of each series (with `__name__`); no two are equal.
    pub labels: Vec<Labels>,
    /// Samples of each series, parallel to `labels`.
    pub slices: Vec<Slice>,
    /// What the slices point into.
    pub columns: Vec<Arc<SampleColumns>>,
}

impl SeriesSet {
    /// Number of series.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Whether no series matched.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// Times of series `i`, in milliseconds, strictly increasing.
    pub fn times(&self, i: usize) -> &[i64] {
        let s = self.slices[i];
        &self.columns[s.columns as usize].times[s.time_start as usize..][..s.len as usize]
    }

    /// Values of series `i`, parallel to [`times`](Self::times).
    pub fn values(&self, i: usize) -> &[f64] {
        let s = self.slices[i];
        &self.columns[s.columns as usize].values[s.value_start as usize..][..s.len as usize]
    }

    /// Number of samples over all series.
    pub fn samples(&self) -> usize {
        self.slices.iter().map(|s| s.len as usize).sum()
    }

    /// Adds a series with samples of its own (tests, and small results).
    pub fn push(&mut self, labels: Labels, times: Vec<i64>, values: Vec<f64>) {
        debug_assert_eq!(times.len(), values.len(), "C1");
        let len = u32::try_from(times.len()).expect("a series in memory has fewer than 2^32 samples");
        let columns = u32::try_from(self.columns.len()).expect("fewer than 2^32 column sets");
        self.columns.push(Arc::new(SampleColumns { times, values }));
        self.labels.push(labels);
        self.slices.push(Slice { columns, time_start: 0, value_start: 0, len });
    }
}
