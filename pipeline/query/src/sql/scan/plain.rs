//! Tables whose rows need no merging: `series`, which the read view hands over, and tiers, which are files that share no key.

use super::files::FileScan;
use super::keys::KeyRange;
use super::samples::pushdown_of;
use crate::sql::error::storage;
use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use datafusion::catalog::memory::MemorySourceConfig;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::Result;
use datafusion::logical_expr::{Expr, TableProviderFilterPushDown, TableType};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::empty::EmptyExec;
use fletch_schemas::tables::Table;
use fletch_storage::ReadView;
use fletch_storage::delta::FileEntry;
use std::sync::Arc;

/// Table `series`: one row per series and day it was active, live values laid over the stored ones.
#[derive(Debug)]
pub(crate) struct SeriesTable {
    view: ReadView,
    schema: SchemaRef,
}

impl SeriesTable {
    /// The series that `view` shows.
    pub(crate) fn new(view: ReadView) -> Self {
        Self { view, schema: Table::Series.table_schema() }
    }
}

#[async_trait]
impl TableProvider for SeriesTable {
    fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> Result<Vec<TableProviderFilterPushDown>> {
        Ok(filters.iter().map(|f| pushdown_of(f)).collect())
    }

    async fn scan(
        &self,
        _state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        _limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let range = KeyRange::of(filters);
        let (min_date, max_date) = range.dates();
        let batches = if range.is_empty() {
            Vec::new()
        } else {
            self.view.series_batches(range.only_metric(), min_date, max_date).await.map_err(storage)?
        };
        Ok(MemorySourceConfig::try_new_exec(&[batches], self.schema.clone(), projection.cloned())?)
    }
}

/// A tier: its writer replaces rows, so its files share no key.
#[derive(Debug)]
pub(crate) struct TierTable {
    view: ReadView,
    table: Table,
    files: Vec<Arc<FileEntry>>,
    schema: SchemaRef,
}

impl TierTable {
    /// The rows of tier `table` in `files`, all of them files of the tenant of `view`.
    pub(crate) fn new(view: ReadView, table: Table, files: Vec<Arc<FileEntry>>) -> Self {
        Self { view, table, files, schema: table.table_schema() }
    }
}

#[async_trait]
impl TableProvider for TierTable {
    fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> Result<Vec<TableProviderFilterPushDown>> {
        Ok(filters.iter().map(|f| pushdown_of(f)).collect())
    }

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        _limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let all: Vec<usize> = (0..self.schema.fields().len()).collect();
        let columns = projection.unwrap_or(&all);
        let range = KeyRange::of(filters);
        let files: Vec<_> = self.files.iter().filter(|f| !range.is_empty() && range.may_touch(f)).cloned().collect();
        if files.is_empty() {
            return Ok(Arc::new(EmptyExec::new(Arc::new(self.schema.project(columns)?))));
        }
        FileScan::new(&self.view, self.table, state, filters)?.unordered(&files, columns, state.config().target_partitions())
    }
}
