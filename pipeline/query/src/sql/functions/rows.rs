//! A table whose rows are computed when they are asked for, all at once.

use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;
use async_trait::async_trait;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::common::{Result, internal_err};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::logical_expr::{Expr, TableType};
use datafusion::physical_expr::{EquivalenceProperties, Partitioning, PhysicalExpr};
use datafusion::physical_plan::execution_plan::{Boundedness, EmissionType};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{
    ChildrenPropertiesMode, DisplayAs, DisplayFormatType, ExecutionPlan, PlanProperties, ReplaceChildrenOptions,
};
use futures::{StreamExt, TryStreamExt};
use std::fmt;
use std::sync::Arc;

/// What computes the rows.
#[async_trait]
pub(super) trait Compute: fmt::Debug + Send + Sync {
    /// For EXPLAIN: what is computed, in one line.
    fn name(&self) -> String;
    /// All rows.
    async fn batches(&self) -> Result<Vec<RecordBatch>>;
}

/// See the module.
#[derive(Debug)]
pub(super) struct ComputedTable {
    schema: SchemaRef,
    compute: Arc<dyn Compute>,
}

impl ComputedTable {
    /// A table of this schema, which every computed batch has.
    pub(super) fn new(schema: SchemaRef, compute: Arc<dyn Compute>) -> Self {
        Self { schema, compute }
    }
}

#[async_trait]
impl TableProvider for ComputedTable {
    fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }

    fn table_type(&self) -> TableType {
        TableType::Temporary
    }

    async fn scan(
        &self,
        _state: &dyn Session,
        projection: Option<&Vec<usize>>,
        _filters: &[Expr],
        _limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let schema = match projection {
            Some(columns) => Arc::new(self.schema.project(columns)?),
            None => self.schema.clone(),
        };
        let properties = PlanProperties::new(
            EquivalenceProperties::new(schema),
            Partitioning::UnknownPartitioning(1),
            EmissionType::Final,
            Boundedness::Bounded,
        );
        Ok(Arc::new(ComputeExec { compute: self.compute.clone(), projection: projection.cloned(), properties: Arc::new(properties) }))
    }
}

#[derive(Debug)]
struct ComputeExec {
    compute: Arc<dyn Compute>,
    projection: Option<Vec<usize>>,
    properties: Arc<PlanProperties>,
}

impl DisplayAs for ComputeExec {
    fn fmt_as(&self, _t: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ComputeExec: {}", self.compute.name())
    }
}

impl ExecutionPlan for ComputeExec {
    fn name(&self) -> &'static str {
        "ComputeExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        Vec::new()
    }

    fn apply_expressions(&self, _f: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn replace_children(
        self: Arc<Self>,
        children: Vec<Arc<dyn ExecutionPlan>>,
        _options: ReplaceChildrenOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        if children.is_empty() { Ok(self) } else { internal_err!("ComputeExec has no children") }
    }

    fn with_new_children(self: Arc<Self>, children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        self.replace_children(children, ReplaceChildrenOptions::new(ChildrenPropertiesMode::Recompute))
    }

    fn execute(&self, partition: usize, _context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        if partition != 0 {
            return internal_err!("ComputeExec has one partition, not {partition}");
        }
        let (compute, projection) = (self.compute.clone(), self.projection.clone());
        let rows = futures::stream::once(async move {
            let batches = compute.batches().await?;
            let project = move |batch: RecordBatch| match &projection {
                Some(columns) => Ok(batch.project(columns)?),
                None => Ok(batch),
            };
            Ok::<_, datafusion::error::DataFusionError>(futures::stream::iter(batches).map(project))
        });
        Ok(Box::pin(RecordBatchStreamAdapter::new(self.schema(), rows.try_flatten())))
    }
}
