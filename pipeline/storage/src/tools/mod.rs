//! What an operator does to a store as a whole, with or without a server on it: look, check, copy away, bring back.
//!
//! ```text
//!  summary   tables ─▶ rows, bytes, dates, tenants, offsets                     reads logs (and some footers)
//!  verify    tables ─▶ problems, each with what to do about it                  reads everything
//!  backup    tables at one version each ─▶ files that the target lacks ─▶ manifest, last
//!  restore   manifest ─▶ files ─▶ logs, last ─▶ a store for a new server
//! ```
//!
//! # Invariants
//! - **O1** Nothing here writes to a store that it only looks at: no lock, no claim, no new table.
//! - **O2** Several tables are read in the order tiers, `samples`, `series`: a tier's cursor then never passes the version of `samples`, and no
//!   sample lacks its labels, whatever a server commits meanwhile.
//!
//! # Not here
//! Printing (the binary), the metadata database (`fletch-alerting`).

pub mod backup;
pub mod restore;
pub mod summary;
pub mod verify;

mod manifest;
#[cfg(test)]
mod tests;

pub use backup::{BackupOptions, BackupReport, backup};
pub use manifest::{LogObject, Manifest, MetadataCopy, StoredFile, TableManifest, manifests};
pub use restore::{RestoreOptions, RestoreReport, choose, metadata_of, restore};
pub use summary::{StoreSummary, TableDetails, TableSummary, describe, summarize};
pub use verify::{Problem, VerifyOptions, VerifyReport, verify};

use crate::StorageError;
use crate::delta::TableReader;
use object_store::ObjectStore;
use std::sync::Arc;

/// Is told how far a long job is.
pub trait Progress: Send + Sync {
    /// A part begins: what it does, and how much there is to do.
    fn begin(&self, doing: &str, files: u64, bytes: u64);
    /// One more file of `bytes` is done.
    fn advance(&self, bytes: u64);
}

/// Tells nobody.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Progress for Silent {
    fn begin(&self, _doing: &str, _files: u64, _bytes: u64) {}

    fn advance(&self, _bytes: u64) {}
}

/// Tables in the order in which they must be read (O2).
pub(crate) async fn tables_in_reading_order(store: &Arc<dyn ObjectStore>) -> Result<Vec<TableReader>, StorageError> {
    let mut tables = TableReader::all(store).await?;
    tables.sort_by_key(|table| match table.name() {
        "series" => 2,
        "samples" => 1,
        _ => 0,
    });
    Ok(tables)
}
