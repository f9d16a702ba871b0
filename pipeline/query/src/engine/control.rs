//! When a query has to stop: deadline, cancellation, and the limits on what it may hold.

use super::error::QueryError;
use fletch_common::Limits;
use std::future::Future;
use std::time::Instant;
use tokio_util::sync::CancellationToken;

/// Series between two looks at the clock: at a few microseconds per series well below a millisecond.
const SERIES_PER_CHECK: usize = 64;

/// Stops a query that took too long, was given up, or would grow too big.
#[derive(Debug, Clone)]
pub(crate) struct Control {
    deadline: Option<Instant>,
    cancel: CancellationToken,
    /// Most samples or cells that one step of the query may hold.
    pub(crate) samples_max: usize,
    /// Most series of one selector.
    pub(crate) series_max: usize,
}

impl Control {
    /// Limits of the deployment, deadline and cancellation of one query.
    pub(crate) fn new(limits: &Limits, deadline: Option<Instant>, cancel: CancellationToken) -> Self {
        Self { deadline, cancel, samples_max: limits.query_samples_max, series_max: limits.query_series_max }
    }

    /// Waits for `work`, but not past the query's deadline or cancellation; `place` says where the query was then.
    ///
    /// # Errors
    /// Those of `work`, [`QueryError::Timeout`], [`QueryError::Canceled`].
    pub(crate) async fn until_stopped<T>(
        &self,
        place: &'static str,
        work: impl Future<Output = Result<T, QueryError>>,
    ) -> Result<T, QueryError> {
        let bounded = async {
            match self.deadline {
                None => work.await,
                Some(deadline) => tokio::time::timeout_at(deadline.into(), work).await.unwrap_or(Err(QueryError::Timeout(place))),
            }
        };
        self.cancel.run_until_cancelled(bounded).await.unwrap_or(Err(QueryError::Canceled(place)))
    }

    /// Looks at the clock and the cancellation.
    ///
    /// # Errors
    /// [`QueryError::Timeout`], [`QueryError::Canceled`].
    pub(crate) fn check(&self) -> Result<(), QueryError> {
        if self.cancel.is_cancelled() {
            return Err(QueryError::Canceled("expression evaluation"));
        }
        if self.deadline.is_some_and(|d| Instant::now() >= d) {
            return Err(QueryError::Timeout("expression evaluation"));
        }
        Ok(())
    }

    /// [`check`](Self::check) for one in [`SERIES_PER_CHECK`] series.
    ///
    /// # Errors
    /// See [`check`](Self::check).
    #[inline]
    pub(crate) fn check_series(&self, i: usize) -> Result<(), QueryError> {
        if i % SERIES_PER_CHECK == SERIES_PER_CHECK - 1 { self.check() } else { Ok(()) }
    }

    /// Whether a matrix of this size may be made.
    ///
    /// # Errors
    /// [`QueryError::TooManySamples`].
    pub(crate) fn check_cells(&self, rows: usize, steps: usize) -> Result<(), QueryError> {
        let fits = rows.checked_mul(steps).is_some_and(|cells| cells <= self.samples_max);
        if fits { Ok(()) } else { Err(QueryError::TooManySamples { limit: self.samples_max }) }
    }
}
