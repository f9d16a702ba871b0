//! How the tables of a read view are scanned: one module per kind of table, and the plan nodes they share.
//!
//! [`samples`] merges files and memory, [`metric`] lays out selected series, [`plain`] reads `series` and tiers, [`cardinality`] the label
//! index. [`keys`] reads conditions,
//! [`overlap`] says what must be deduplicated, [`dedup`] and [`serial`] are plan nodes, [`files`] builds Parquet scans.

pub(crate) mod cardinality;
mod dedup;
mod files;
mod keys;
pub(crate) mod metric;
mod overlap;
pub(crate) mod plain;
pub(crate) mod samples;
mod serial;

pub(crate) use files::STORE_URL;
pub(crate) use keys::KeyRange;
