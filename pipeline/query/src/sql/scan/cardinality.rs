//! Table `cardinality`: what makes the label index large, from the lengths of its postings.

use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use datafusion::catalog::memory::MemorySourceConfig;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::Result;
use datafusion::logical_expr::{Expr, TableType};
use datafusion::physical_plan::ExecutionPlan;
use fletch_storage::ReadView;
use fletch_storage::view::cardinality_schema;
use std::sync::Arc;

/// Its name; it has no files, so it is no [`Table`](fletch_schemas::tables::Table).
pub(crate) const CARDINALITY: &str = "cardinality";

/// One row per metric, label and label pair of a tenant, as of the scan.
#[derive(Debug)]
pub(crate) struct CardinalityTable {
    view: ReadView,
    schema: SchemaRef,
}

impl CardinalityTable {
    /// The index that `view` reads.
    pub(crate) fn new(view: ReadView) -> Self {
        Self { view, schema: cardinality_schema() }
    }
}

#[async_trait]
impl TableProvider for CardinalityTable {
    fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    async fn scan(
        &self,
        _state: &dyn Session,
        projection: Option<&Vec<usize>>,
        _filters: &[Expr],
        _limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let batch = self.view.cardinality_batch();
        Ok(MemorySourceConfig::try_new_exec(&[vec![batch]], self.schema.clone(), projection.cloned())?)
    }
}
