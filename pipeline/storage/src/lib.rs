//! Storage: hot runs and their index in memory, Delta tables on the object store, one read view over both.
//!
//! ```text
//!  Delivery ─▶ engine ─▶ runs (sorted columns per series, in memory) ─┐
//!                │ flush: one Parquet file per (tenant, date)          ├─▶ ReadView ─▶ select(matchers) / SQL scan
//!                ▼                                                     │
//!           delta::DeltaTable (files + offsets in one commit) ─▶ delta::Snapshot ──┘
//! ```
//!
//! # Invariants
//! - **S1** A file that no commit names does not exist for readers.
//! - **S2** A flush commits `series` first and `samples` last; `samples`' commit holds the offsets (`txn`) of what its files cover.
//! - **S3** Rows of a file are sorted by (metric, series_id, time), one row per key.
//! - **S4** A run is unflushed in a view if and only if its `from` is at or above the view's offset of its partition.
//!
//! # Not here
//! Decoding and the bus (`fletch-ingest`), PromQL and SQL (`fletch-query`).

pub mod compact;
pub mod delta;
pub mod engine;
pub mod index;
pub mod parquet_file;
pub mod retention;
pub mod run;
pub mod tiers;
pub mod tools;
pub mod view;

mod error;

pub use engine::{FlushReport, Settings, Storage};
pub use error::{Advice, StorageError};
pub use view::{ReadView, SelectLimits};
