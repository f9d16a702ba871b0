//! The seam between the evaluator and whatever holds samples.

use super::error::QueryError;
use async_trait::async_trait;
use fletch_schemas::{Matcher, SeriesSet};

/// Where selectors find their series. One source is one consistent view: every selector of a query asks the same one.
#[async_trait]
pub trait SeriesSource: Send + Sync {
    /// Every series that satisfies all `matchers`, with its samples from `min_ms` to `max_ms`, both included. Samples outside of the
    /// range do no harm. Stale markers stay in, as their NaN bits.
    async fn select(&self, matchers: &[Matcher], min_ms: i64, max_ms: i64) -> Result<SeriesSet, QueryError>;
}
