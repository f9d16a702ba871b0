//! The Parquet files of the tables: written in one pass from sorted columns, read back as plain columns per series.
//!
//! ```text
//!  SeriesSlice (metric, series_id, times ms, values) …  ──write_samples──▶ EncodedFile { bytes, entry }  ──upload, commit──▶ store
//!  store / folder / bytes  ──FileSource──▶ read_samples ──▶ SamplesRows { series: [(metric, id, rows)], times ms, values }
//! ```
//!
//! # Invariants
//! - **P1** Rows of a file are sorted by (metric, series_id, time); one row per key. The writer checks it.
//! - **P2** A stale marker is NULL in the file and its NaN bits in memory; every other value keeps its bits.
//! - **P3** There are no statistics of `value`: a NaN would make them lie.
//! - **P4** Damaged bytes are an error that names the file, never a panic.
//!
//! # Not here
//! Which files to read (`delta::Snapshot`), merging of files and runs (`run`, `view`).

pub(crate) mod audit;
mod columns;
mod keys;
mod keys_chunk;
mod layout;
mod packed;
mod read;
mod series;
mod series_kinds;
mod source;
mod stream;
mod tier_layout;
mod tier_rows;
mod write;

#[cfg(test)]
mod tests;

pub use keys::KeyIndex;
pub use layout::Effort;
pub use read::{SamplesRows, Selection, SeriesRows, read_samples, read_selected};
pub(crate) use series::write_series_with;
pub use series::{SeriesRow, read_series, write_series};
pub(crate) use series::{decode as decode_series, series_batch};
pub use series_kinds::{SeriesKind, read_series_kinds};
pub use source::{FileSource, OpenFile};
pub(crate) use stream::{SamplesCursor, SamplesWriter, SeriesKey};
pub use tier_rows::{TierRows, read_tier_rows};
pub use write::{SeriesSlice, write_batch, write_samples, write_samples_with};

use crate::StorageError;
use crate::delta::FileEntry;
use bytes::Bytes;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Rows of a page: what a read of one series decodes at least.
pub const PAGE_ROWS: usize = 20_480;

/// Rows of a row group.
pub const ROW_GROUP_ROWS: usize = 1 << 20;

/// A file in memory that is ready to be uploaded and committed.
#[derive(Debug, Clone)]
pub struct EncodedFile {
    /// All of it.
    pub bytes: Bytes,
    /// What a commit says about it.
    pub entry: FileEntry,
}

/// Runs a decoder over untrusted bytes. The Parquet library checks most of what it reads but not all: what it panics on is damage (P4).
pub(crate) fn contained<T>(path: &str, decode: impl FnOnce() -> Result<T, StorageError>) -> Result<T, StorageError> {
    catch_unwind(AssertUnwindSafe(decode)).unwrap_or_else(|_| Err(panicked(path)))
}

pub(crate) fn panicked(path: &str) -> StorageError {
    StorageError::Corrupt { path: path.to_owned(), why: "it cannot be decoded".to_owned() }
}
