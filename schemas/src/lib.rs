//! What a sample, a series, a tier and a table *are*. No I/O, no async, no clock.
//!
//! ```text
//!  label pairs ──▶ Labels (canonical bytes) ──▶ series_id = xxh3-64(bytes)
//!  samples     ──▶ SampleColumns + Slice    ──▶ SeriesSet (what a selector returns)
//!  tables      ──▶ tables::samples() …      ──▶ Arrow schema = Delta schema = Parquet schema
//! ```
//!
//! Start with [`Labels`], then [`SeriesSet`], then [`tables`]. What may never change between versions (the hash,
//! the paths, the columns) is written down in `FORMAT.md` beside this crate and pinned by tests here.
//!
//! # Not here
//! Reading, writing, indexing (`fletch-storage`), the PromQL language (`fletch-promql`).

mod labels;
mod matcher;
pub mod pattern;
mod sample;
mod series_set;
pub mod tables;
mod tenant;

pub use labels::{LabelError, Labels, LabelsBuilder, METRIC_NAME};
pub use matcher::{MatchOp, Matcher};
pub use sample::{
    MetricKind, MetricMetadata, STALE_BITS, TIME_FUTURE_MAX_MS, TIME_MIN_MS, date_of_ms, day_start_ms, is_stale, stale_marker,
};
pub use series_set::{SampleColumns, SeriesSet, Slice};
pub use tenant::{TENANT_BYTES_MAX, TenantError, TenantId};
