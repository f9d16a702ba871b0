//! The seam between the evaluator and whatever holds samples.

use super::error::QueryError;
use async_trait::async_trait;
use fletch_promql::functions::FunctionId;
use fletch_schemas::{Matcher, SeriesSet};

/// Where selectors find their series. One source is one consistent view: every selector of a query asks the same one.
#[async_trait]
pub trait SeriesSource: Send + Sync {
    /// Every series that satisfies all `matchers`, with its samples from `min_ms` to `max_ms`, both included. Samples outside of the
    /// range do no harm. Stale markers stay in, as their NaN bits.
    async fn select(&self, matchers: &[Matcher], min_ms: i64, max_ms: i64) -> Result<SeriesSet, QueryError>;

    /// The same question for a range function whose windows are all that is looked at: an answer from rows that stand for many samples,
    /// or `None`, and the samples are selected.
    async fn windows(&self, _matchers: &[Matcher], _ask: &WindowsOf) -> Result<Option<Windows>, QueryError> {
        Ok(None)
    }

    /// Where answers so far came from, for the one who asked the query.
    fn origin(&self) -> Origin {
        Origin::default()
    }
}

/// The windows of a range function over a plain selector: `(end - width, end]` for each end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WindowsOf {
    /// The function.
    pub function: FunctionId,
    /// End of the first window, milliseconds.
    pub first_end_ms: i64,
    /// From one end to the next; 0 when all windows are the same.
    pub step_ms: i64,
    /// Width of the windows.
    pub width_ms: i64,
    /// How many windows, at least 1.
    pub steps: usize,
}

impl WindowsOf {
    /// Before the first sample of the first window.
    pub fn after_ms(&self) -> i64 {
        self.first_end_ms.saturating_sub(self.width_ms)
    }

    /// End of the last window.
    pub fn last_end_ms(&self) -> i64 {
        let steps = i64::try_from(self.steps.saturating_sub(1)).unwrap_or(i64::MAX);
        self.first_end_ms.saturating_add(self.step_ms.saturating_mul(steps))
    }
}

/// Rows that stand for samples.
#[derive(Debug, Clone)]
pub enum Windows {
    /// Of each row the value that the function asks for: smallest, largest, first, last, sum, or count.
    Values(SeriesSet),
    /// For averages; both with the same series in the same order.
    Average {
        /// Sums of rows.
        sums: SeriesSet,
        /// Counts of rows.
        counts: SeriesSet,
    },
    /// For rates of counters.
    Counters {
        /// First and last sample of each row, and a peak between them where the counter fell.
        curves: SeriesSet,
        /// How many samples each row stands for.
        counts: SeriesSet,
    },
}

/// Where answers came from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Origin {
    /// Tiers that were read, by name, each once.
    pub tiers: Vec<&'static str>,
    /// What the one who asked should know.
    pub infos: Vec<String>,
}
