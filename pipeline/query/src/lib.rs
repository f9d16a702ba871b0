//! From a question to columns: the PromQL evaluator, and SQL over the same data.
//!
//! ```text
//!  PromQL text ──▶ engine (operators on [series × steps] columns) ──▶ QueryResult ──▶ engine::json
//!  SQL text    ──▶ sql (DataFusion over the catalog)             ──▶ record batches
//! ```
//!
//! Start with [`engine::Engine`] and [`engine::SeriesSource`], the seam through which it finds samples.
//!
//! # Not here
//! The language (`fletch-promql`), the files and runs (`fletch-storage`), HTTP and Flight (`fletch`).

pub mod engine;
pub mod sql;
mod tier_choice;
mod view_source;

pub use view_source::ViewSource;
