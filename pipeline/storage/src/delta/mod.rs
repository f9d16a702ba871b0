//! The tables of the lakehouse as Delta tables: reader 1, writer 2, JSON commits by conditional create, classic checkpoints.
//!
//! ```text
//!  tables/samples/_delta_log/00…042.json               one commit: files + offsets, atomically
//!                           /00…000.checkpoint.parquet  the state at a version
//!                           /_last_checkpoint
//!                /tenant=a%2Eb/date=2026-01-31/<uuid>.parquet
//! ```
//!
//! [`DeltaTable`] is a table: [`snapshot`](DeltaTable::snapshot) for readers, [`commit`](DeltaTable::commit) for writers, and
//! `checkpoint`, `cleanup_log`, `vacuum` for the one that holds the maintenance lease.
//!
//! # Invariants
//! - **T1** A version is written by one conditional create and never changes. Whoever creates it has won it.
//! - **T2** After anything but plain success the version is read back: a commit lands once or not at all, also when answers get lost.
//! - **T3** A commit is checked against the very version that it follows: fences, removed files, schema.
//! - **T4** Only files that the log marks removed are ever deleted. A file that no commit names yet is never touched.
//!
//! # Not here
//! What is inside of the files ([`crate::parquet_file`]), when to flush or compact (`engine`).

mod action;
mod checkpoint;
mod commit;
mod file;
mod log;
mod maintenance;
mod reader;
mod snapshot;
pub mod store;
mod table;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

pub use action::{Action, Add, CommitInfo, CommitLog, Metadata, Protocol, Remove, Txn, schema_json};
pub use commit::{Commit, TxnRequire, TxnUpdate};
pub(crate) use file::date_text;
pub use file::{BusRange, FileEntry, FileHash, FileIdentity, KeyRanges, RemovedFile};
pub use maintenance::{Vacuum, VacuumReport};
pub use reader::TableReader;
pub use snapshot::{Snapshot, Totals};
pub use table::{CHECKPOINT_EVERY_COMMITS, DeltaTable, TableOptions};
