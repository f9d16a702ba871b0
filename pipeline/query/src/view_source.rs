//! PromQL over a [`ReadView`]: the seam between the evaluator and storage.

use crate::engine::{QueryError, SeriesSource};
use async_trait::async_trait;
use fletch_schemas::{Matcher, SeriesSet};
use fletch_storage::view::SelectLimits;
use fletch_storage::{ReadView, StorageError};

/// One tenant's view as a source of series; every selector of a query sees the same version.
#[derive(Debug, Clone)]
pub struct ViewSource {
    view: ReadView,
    limits: SelectLimits,
}

impl ViewSource {
    /// A source over `view` under `limits`.
    pub fn new(view: ReadView, limits: &fletch_common::Limits) -> Self {
        Self { view, limits: limits.into() }
    }

    /// The view.
    pub fn view(&self) -> &ReadView {
        &self.view
    }
}

#[async_trait]
impl SeriesSource for ViewSource {
    async fn select(&self, matchers: &[Matcher], min_ms: i64, max_ms: i64) -> Result<SeriesSet, QueryError> {
        self.view.select(matchers, min_ms, max_ms, &self.limits).await.map_err(query_error)
    }
}

fn query_error(error: StorageError) -> QueryError {
    match error {
        StorageError::Limit(text) => QueryError::Execution(text),
        StorageError::Regex { .. } => QueryError::BadData(error.to_string()),
        other => QueryError::storage(other),
    }
}
