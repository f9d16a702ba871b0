//! The PromQL evaluator: operators are plain functions over `[series × steps]` columns.
//!
//! ```text
//!  text ──parse──▶ plan (cached) ──▶ time range of every selector ──▶ SeriesSource::select, all at once
//!                                                                            │
//!            QueryResult ◀── names dropped, rows sorted ◀── Evaluator ◀──────┘   no waiting from here on
//! ```
//!
//! Start with [`Engine`], then `eval` (the walk), `series` and `range` (samples to rows), `kernels` (the inner loops), `binary` and
//! `aggregate` (rows to rows). [`json`] writes results as Prometheus' HTTP API does.
//!
//! # Invariants
//! - **E1** Semantics are those of Prometheus 3.x: ranges and look-back are open on the left, names are dropped when the query ends, every
//!   experimental function and modifier is on.
//! - **E2** Labels are looked at once per series and operator, never per sample or per step.
//! - **E3** Evaluation neither waits nor reads a clock except to see whether its deadline has passed. The same plan over the same series
//!   gives the same result.
//! - **E4** No matrix is larger than `query_samples_max` cells, no answer longer than `query_points_max` steps.
//!
//! # On failure
//! Every failure is a [`QueryError`], whose [`ErrorKind`] says who is to blame. Nothing is half answered.
//!
//! # Not here
//! Where samples come from ([`SeriesSource`]), HTTP, result caches, rules. Native histograms are not stored yet: their functions see none.

mod aggregate;
mod annotations;
mod binary;
mod control;
mod error;
mod eval;
mod functions;
mod histogram;
mod info;
pub mod json;
pub mod kernels;
mod labels;
pub mod matrix;
pub mod number;
mod plan;
mod plans;
mod query;
mod range;
mod relabel;
mod run;
mod scalar;
mod series;
mod source;
mod tier_rate;
pub mod windows;

#[cfg(test)]
mod tests;

pub use error::{ErrorKind, QueryError};
pub use labels::compare as compare_labels;
pub use matrix::{Grid, Matrix, Row, RowMask};
pub use query::{
    EngineSettings, InstantQuery, LOOKBACK_MS_DEFAULT, QueryOptions, QueryResult, QueryStats, RangeQuery, SUBQUERY_STEP_MS_DEFAULT, Value,
};
pub use source::{Origin, SeriesSource, Windows, WindowsOf};

use control::Control;
use eval::Times;
use fletch_promql::ValueType;
use plans::Plans;
use run::{Job, Run};
use std::time::{Duration, Instant};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio_util::sync::CancellationToken;

/// Evaluates PromQL over any [`SeriesSource`]. One per process; cheap to share.
#[derive(Debug)]
pub struct Engine {
    settings: EngineSettings,
    plans: Plans,
    /// One permit per running query.
    running: Semaphore,
}

impl Engine {
    /// An engine with an empty plan cache.
    pub fn new(settings: EngineSettings) -> Self {
        let plans = Plans::new(&settings.limits);
        let running = Semaphore::new(settings.limits.queries_concurrent_max.clamp(1, Semaphore::MAX_PERMITS));
        Self { settings, plans, running }
    }

    /// The settings it runs with.
    pub fn settings(&self) -> &EngineSettings {
        &self.settings
    }

    /// Evaluates a query at one time.
    ///
    /// # Errors
    /// See [`QueryError`].
    pub async fn instant(&self, source: &dyn SeriesSource, query: InstantQuery<'_>) -> Result<QueryResult, QueryError> {
        self.instant_with(source, query, |result| result).await
    }

    /// [`instant`](Self::instant), and then `finish` on the thread that evaluated: the place to write a long answer down without holding
    /// up the server's own threads.
    ///
    /// # Errors
    /// See [`QueryError`].
    pub async fn instant_with<R: Send + 'static>(
        &self,
        source: &dyn SeriesSource,
        query: InstantQuery<'_>,
        finish: impl FnOnce(QueryResult) -> R + Send + 'static,
    ) -> Result<R, QueryError> {
        let started = Instant::now();
        let plan = self.plans.get(query.text)?;
        let times = self.times((query.at_ms, query.at_ms, 0), &query.options, false);
        self.run(source, Run { plan, grid: Grid::instant(query.at_ms), times, started }, query.options, finish).await
    }

    /// Evaluates a query over a range of times.
    ///
    /// # Errors
    /// See [`QueryError`]; [`ErrorKind::BadData`] also for an end before the start, a step that is not positive, and expressions that
    /// are neither scalar nor instant vector.
    pub async fn range(&self, source: &dyn SeriesSource, query: RangeQuery<'_>) -> Result<QueryResult, QueryError> {
        self.range_with(source, query, |result| result).await
    }

    /// [`range`](Self::range), and then `finish` on the thread that evaluated; see [`instant_with`](Self::instant_with).
    ///
    /// # Errors
    /// See [`range`](Self::range).
    pub async fn range_with<R: Send + 'static>(
        &self,
        source: &dyn SeriesSource,
        query: RangeQuery<'_>,
        finish: impl FnOnce(QueryResult) -> R + Send + 'static,
    ) -> Result<R, QueryError> {
        let started = Instant::now();
        let grid = self.grid(&query)?;
        let plan = self.plans.get(query.text)?;
        if !matches!(plan.returns, ValueType::Scalar | ValueType::Vector) {
            return Err(QueryError::BadData(format!(
                "invalid expression type {} for range query, must be Scalar or instant Vector",
                annotations::quoted(&plan.returns.to_string())
            )));
        }
        let times = self.times((query.start_ms, query.end_ms, query.step_ms), &query.options, true);
        self.run(source, Run { plan, grid, times, started }, query.options, finish).await
    }

    /// Whether a text is a query, without running it.
    ///
    /// # Errors
    /// [`QueryError::Parse`].
    pub fn check(&self, text: &str) -> Result<ValueType, QueryError> {
        self.plans.get(text).map(|plan| plan.returns)
    }

    fn grid(&self, query: &RangeQuery<'_>) -> Result<Grid, QueryError> {
        if query.end_ms < query.start_ms {
            return Err(QueryError::BadData("end timestamp must not be before start time".to_owned()));
        }
        if query.step_ms <= 0 {
            let text = "zero or negative query resolution step widths are not accepted. Try a positive integer";
            return Err(QueryError::BadData(text.to_owned()));
        }
        // As in Prometheus the limit counts the distances between steps.
        let limit = self.settings.limits.query_points_max;
        let grid = Grid::range(query.start_ms, query.end_ms, query.step_ms);
        grid.filter(|g| g.len <= limit.saturating_add(1)).ok_or(QueryError::TooManyPoints { limit })
    }

    fn times(&self, (start_ms, end_ms, step_ms): (i64, i64, i64), options: &QueryOptions, is_range: bool) -> Times {
        let lookback_ms = options.lookback_ms.filter(|l| *l > 0).unwrap_or(self.settings.lookback_ms);
        Times { start_ms, end_ms, step_ms, lookback_ms, subquery_step_ms: self.settings.subquery_step_ms, is_range }
    }

    async fn run<R: Send + 'static>(
        &self,
        source: &dyn SeriesSource,
        run: Run,
        options: QueryOptions,
        finish: impl FnOnce(QueryResult) -> R + Send + 'static,
    ) -> Result<R, QueryError> {
        let limits = &self.settings.limits;
        let deadline = options.deadline.or_else(|| run.started.checked_add(Duration::from_secs(limits.query_seconds_max)));
        let cancel = options.cancel.as_ref().map_or_else(CancellationToken::new, CancellationToken::child_token);
        // Whoever drops this future stops the evaluation, also when it runs on another thread.
        let _abandoned = cancel.clone().drop_guard();
        let control = Control::new(limits, deadline, cancel);
        let _permit = match self.running.try_acquire() {
            Ok(permit) => permit,
            Err(_) => self.wait_in_line(&control).await?,
        };
        let job = Job::load(source, run, control, options.limit).await?;
        if job.cost_ns() <= INLINE_NS_MAX {
            return job.evaluate().map(finish);
        }
        match tokio::task::spawn_blocking(move || job.evaluate().map(finish)).await {
            Ok(done) => done,
            Err(error) => Err(QueryError::Internal(format!("the evaluation ended early: {error}"))),
        }
    }

    async fn wait_in_line(&self, control: &Control) -> Result<SemaphorePermit<'_>, QueryError> {
        let permit = async { self.running.acquire().await.map_err(|e| QueryError::Internal(e.to_string())) };
        control.until_stopped("query queue", permit).await
    }
}

/// Longest estimated evaluation that runs on the thread that asked: a hop to another thread costs tens of microseconds, and waiting
/// connections can bear half a millisecond.
const INLINE_NS_MAX: f64 = 500_000.0;
