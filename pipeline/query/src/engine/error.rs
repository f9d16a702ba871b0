//! Why a query has no answer, in Prometheus' words and kinds.

use fletch_promql::ParseError;

/// What a [`QueryError`] is: Prometheus' `errorType`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// The query itself is wrong (HTTP 400).
    BadData,
    /// The query is right, its evaluation on this data is not possible (HTTP 422).
    Execution,
    /// It took too long (HTTP 503).
    Timeout,
    /// Nobody waits for the answer any more (HTTP 499).
    Canceled,
    /// Our fault or the storage's (HTTP 500).
    Internal,
}

impl ErrorKind {
    /// The value of `errorType` in the HTTP API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::BadData => "bad_data",
            Self::Execution => "execution",
            Self::Timeout => "timeout",
            Self::Canceled => "canceled",
            Self::Internal => "internal",
        }
    }
}

/// Why a query has no answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum QueryError {
    /// The text is not PromQL.
    #[error("{0}")]
    Parse(#[from] ParseError),
    /// The parameters do not make a query.
    #[error("{0}")]
    BadData(String),
    /// More steps than a series may have in one answer.
    #[error(
        "exceeded maximum resolution of {} points per timeseries. Try decreasing the query resolution (?step=XX), \
         or raise `query_points_max`",
        thousands(*limit)
    )]
    TooManyPoints {
        /// The limit `query_points_max`.
        limit: usize,
    },
    /// More samples than a query may load or compute.
    #[error(
        "query processing would load too many samples into memory in query execution: more than `query_samples_max` = {limit}; \
         select fewer series or a shorter range"
    )]
    TooManySamples {
        /// The limit `query_samples_max`.
        limit: usize,
    },
    /// A selector found more series than it may.
    #[error("the selector {selector} matches {found} series, more than `query_series_max` = {limit}; add label matchers")]
    TooManySeries {
        /// The selector as it was asked.
        selector: String,
        /// How many series it found.
        found: usize,
        /// The limit `query_series_max`.
        limit: usize,
    },
    /// The data does not allow the operation.
    #[error("{0}")]
    Execution(String),
    /// The deadline passed.
    #[error("query timed out in {0}")]
    Timeout(&'static str),
    /// The caller gave up.
    #[error("query was canceled in {0}")]
    Canceled(&'static str),
    /// Samples could not be read.
    #[error("expanding series: {0}")]
    Storage(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// An invariant of ours does not hold.
    #[error("internal error: {0}")]
    Internal(String),
}

impl QueryError {
    /// An error of [`ErrorKind::Execution`].
    pub fn execution(message: impl Into<String>) -> Self {
        Self::Execution(message.into())
    }

    /// A failure of a [`super::SeriesSource`].
    pub fn storage(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Storage(error.into())
    }

    /// Its kind. Decide on this, never on the text.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Parse(_) | Self::BadData(_) | Self::TooManyPoints { .. } => ErrorKind::BadData,
            Self::TooManySamples { .. } | Self::TooManySeries { .. } | Self::Execution(_) => ErrorKind::Execution,
            Self::Timeout(_) => ErrorKind::Timeout,
            Self::Canceled(_) => ErrorKind::Canceled,
            Self::Storage(_) | Self::Internal(_) => ErrorKind::Internal,
        }
    }
}

/// `11000` as `11,000`, the way Prometheus writes this limit.
fn thousands(number: usize) -> String {
    let digits = number.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}
