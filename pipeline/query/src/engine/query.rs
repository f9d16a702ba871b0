//! What a query is, what it returns, and what it may change for itself.

use super::matrix::Matrix;
use fletch_common::Limits;
use fletch_schemas::SeriesSet;
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// How old the newest sample of a series may be unless a query says otherwise: Prometheus' default.
pub const LOOKBACK_MS_DEFAULT: i64 = 5 * 60 * 1000;

/// Step of subqueries that name none: Prometheus' default evaluation interval.
pub const SUBQUERY_STEP_MS_DEFAULT: i64 = 60 * 1000;

/// What a user of the engine may tune.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineSettings {
    /// Bounds of every query.
    pub limits: Limits,
    /// Look-back of queries that do not give one, in milliseconds.
    pub lookback_ms: i64,
    /// Step of subqueries that name none, in milliseconds.
    pub subquery_step_ms: i64,
}

impl Default for EngineSettings {
    fn default() -> Self {
        Self { limits: Limits::default(), lookback_ms: LOOKBACK_MS_DEFAULT, subquery_step_ms: SUBQUERY_STEP_MS_DEFAULT }
    }
}

/// When and why a query stops early, and what it changes for itself.
#[derive(Debug, Clone, Default)]
pub struct QueryOptions {
    /// Look-back in milliseconds; `None` or 0 for the engine's.
    pub lookback_ms: Option<i64>,
    /// The query ends with [`QueryError::Timeout`](super::QueryError::Timeout) when this has passed. `None`: `query_seconds_max` from now.
    pub deadline: Option<Instant>,
    /// The query ends with [`QueryError::Canceled`](super::QueryError::Canceled) when this is cancelled. Dropping the future of a query does the same.
    pub cancel: Option<CancellationToken>,
    /// Most series of the answer, 0 for all; a warning tells when some are left out.
    pub limit: usize,
}

/// A query at one time.
#[derive(Debug, Clone)]
pub struct InstantQuery<'a> {
    /// The expression.
    pub text: &'a str,
    /// Evaluation time, in milliseconds since the Unix epoch.
    pub at_ms: i64,
    /// Look-back, deadline, cancellation.
    pub options: QueryOptions,
}

/// A query over a range of times.
#[derive(Debug, Clone)]
pub struct RangeQuery<'a> {
    /// The expression.
    pub text: &'a str,
    /// First evaluation time, in milliseconds since the Unix epoch.
    pub start_ms: i64,
    /// Last possible evaluation time.
    pub end_ms: i64,
    /// Distance of evaluation times.
    pub step_ms: i64,
    /// Look-back, deadline, cancellation.
    pub options: QueryOptions,
}

/// The answer to a query.
#[derive(Debug)]
pub struct QueryResult {
    /// What was computed.
    pub value: Value,
    /// Doubts about the answer, in Prometheus' words, with positions.
    pub warnings: Vec<String>,
    /// Hints, in Prometheus' words, with positions.
    pub infos: Vec<String>,
    /// What it cost.
    pub stats: QueryStats,
    /// Tiers that it read instead of samples, by name.
    pub tiers: Vec<&'static str>,
}

/// What a query returns.
#[derive(Debug)]
pub enum Value {
    /// One number.
    Scalar {
        /// Evaluation time.
        time_ms: i64,
        /// The number.
        value: f64,
    },
    /// A text.
    Text {
        /// Evaluation time.
        time_ms: i64,
        /// The text.
        value: String,
    },
    /// One value per series, at one time. The order of rows is that of `sort`, `topk` and the like, else unspecified.
    Vector(Matrix),
    /// Values of series at the steps of a range query, ordered by labels.
    Matrix(Matrix),
    /// Samples as they are stored: an instant query for a range vector. Ordered by labels, no stale markers.
    Samples(SeriesSet),
}

/// What a query cost.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct QueryStats {
    /// Series that selectors found.
    pub series: usize,
    /// Samples that selectors found.
    pub samples: usize,
    /// Time until the plan was there.
    pub prepare: Duration,
    /// Time until all samples were there.
    pub select: Duration,
    /// Time of the evaluation.
    pub evaluate: Duration,
}

impl Value {
    /// Keeps the first `series` series; says whether there were more.
    pub(super) fn truncate(&mut self, series: usize) -> bool {
        match self {
            Self::Scalar { .. } | Self::Text { .. } => false,
            Self::Vector(matrix) | Self::Matrix(matrix) => matrix.truncate(series),
            Self::Samples(set) => {
                let more = set.len() > series;
                set.labels.truncate(series);
                set.slices.truncate(series);
                more
            }
        }
    }
}
