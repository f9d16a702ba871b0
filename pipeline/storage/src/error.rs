//! Why storage could not do what it was asked to, and what the caller should do next.

use object_store::path::Path;

/// What the caller should do next. Decide on this, never on the variant or the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Advice {
    /// Transient: the same call may succeed later, unchanged.
    Retry,
    /// The request is wrong or over a limit; retrying cannot help.
    Reject,
    /// Stored bytes are not what we wrote: stop and page someone.
    Corrupt,
    /// Another process owns what we tried to write: drop the unflushed data and begin again at the assignment.
    Fenced,
}

/// Errors of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StorageError {
    /// The object store failed while we were `doing` something to `path`.
    #[error("{doing} `{path}`: {source}")]
    ObjectStore {
        /// What we were doing.
        doing: &'static str,
        /// To which object.
        path: Path,
        /// The cause.
        #[source]
        source: object_store::Error,
    },
    /// A Parquet file could not be written or read.
    #[error("{doing} parquet `{path}`: {source}")]
    Parquet {
        /// What we were doing.
        doing: &'static str,
        /// Which file.
        path: String,
        /// The cause.
        #[source]
        source: parquet::errors::ParquetError,
    },
    /// Arrow refused arrays that we built.
    #[error("{doing}: {source}")]
    Arrow {
        /// What we were doing.
        doing: &'static str,
        /// The cause.
        #[source]
        source: arrow::error::ArrowError,
    },
    /// Stored bytes are not what they must be.
    #[error("`{path}` is damaged: {why}")]
    Corrupt {
        /// Which object.
        path: String,
        /// What is wrong with it.
        why: String,
    },
    /// Other writers won the commit race every time; nothing of ours is visible.
    #[error("commit to `{table}` lost the race {attempts} times")]
    CommitRace {
        /// Which table.
        table: &'static str,
        /// How often we tried.
        attempts: u32,
    },
    /// Somebody else moved the offset of a partition that we thought ours.
    #[error("`{table}`: `{app_id}` stands at {stored:?}, we expected {expected:?}: another process owns this partition")]
    Fenced {
        /// Which table.
        table: &'static str,
        /// Whose offset.
        app_id: String,
        /// What the table says.
        stored: Option<i64>,
        /// What we last read or wrote.
        expected: Option<i64>,
    },
    /// A file that this commit removes is not in the table any more: plan the job again on the new snapshot.
    #[error("`{table}`: `{path}` was already removed by another commit; plan again on the new snapshot")]
    Superseded {
        /// Which table.
        table: &'static str,
        /// Which file.
        path: String,
    },
    /// A table was changed by a writer of a newer protocol than ours.
    #[error(
        "`{table}` asks for delta reader {reader} / writer {writer}, this version knows reader 1 / writer 2; upgrade fletch or restore the table"
    )]
    Protocol {
        /// Which table.
        table: &'static str,
        /// `minReaderVersion` of the table.
        reader: i32,
        /// `minWriterVersion` of the table.
        writer: i32,
    },
    /// Rows that we were given to write are not sorted or do not belong into the file.
    #[error("rows of `{metric}` (series {series_id}) cannot be written: {why}")]
    Unsorted {
        /// Metric of the rows.
        metric: String,
        /// Series of the rows.
        series_id: i64,
        /// What is wrong.
        why: &'static str,
    },
    /// A limit was hit; the text names it.
    #[error("{0}")]
    Limit(String),
    /// A matcher's regular expression is not valid.
    #[error("invalid regular expression `{pattern}`: {why}")]
    Regex {
        /// The expression.
        pattern: String,
        /// What is wrong with it.
        why: String,
    },
    /// The data directory or store belongs to something else.
    #[error("{0}")]
    Conflict(String),
    /// A failpoint fired.
    #[error(transparent)]
    Failpoint(#[from] fletch_common::failpoint::FailpointError),
}

impl StorageError {
    /// Lists every variant on purpose: a new one must choose its advice to compile.
    pub fn advice(&self) -> Advice {
        match self {
            Self::ObjectStore { source: object_store::Error::NotFound { .. }, .. } => Advice::Corrupt,
            Self::ObjectStore { .. } | Self::CommitRace { .. } | Self::Failpoint(_) => Advice::Retry,
            Self::Parquet { .. } | Self::Corrupt { .. } => Advice::Corrupt,
            Self::Protocol { .. } | Self::Superseded { .. } | Self::Unsorted { .. } => Advice::Reject,
            Self::Arrow { .. } | Self::Limit(_) | Self::Regex { .. } | Self::Conflict(_) => Advice::Reject,
            Self::Fenced { .. } => Advice::Fenced,
        }
    }
}
