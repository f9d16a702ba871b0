//! Runs many one-partition plans over few partitions: partition `p` of `n` runs children `p`, `p + n`, … one after the other.
//!
//! Each day with overlapping files is a plan of its own. A plain union would start all of them at once and hold all of their files open; here
//! at most `n` are under way.
//!
//! # Invariants
//! - Every child has one partition and the same schema; together the partitions give every row of every child exactly once.
//! - No order is promised. Nothing is pushed through.

use arrow::datatypes::SchemaRef;
use datafusion::common::stats::Precision;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::common::{Result, Statistics, internal_err};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::{Distribution, EquivalenceProperties, Partitioning, PhysicalExpr};
use datafusion::physical_plan::execution_plan::{Boundedness, EmissionType};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{
    ChildStats, ChildrenPropertiesMode, DisplayAs, DisplayFormatType, ExecutionPlan, PlanProperties, ReplaceChildrenOptions, StatisticsArgs,
};
use futures::{StreamExt, TryStreamExt};
use std::fmt;
use std::sync::Arc;

/// See the module.
#[derive(Debug)]
pub(crate) struct SerialUnionExec {
    inputs: Vec<Arc<dyn ExecutionPlan>>,
    partitions: usize,
    properties: Arc<PlanProperties>,
}

impl SerialUnionExec {
    /// Runs `inputs` (at least one, one partition each, one schema) in at most `partitions_max` partitions.
    ///
    /// # Errors
    /// No inputs.
    pub(crate) fn try_new(inputs: Vec<Arc<dyn ExecutionPlan>>, partitions_max: usize) -> Result<Self> {
        let Some(first) = inputs.first() else { return internal_err!("a serial union needs an input") };
        let partitions = partitions_max.clamp(1, inputs.len());
        let properties = PlanProperties::new(
            EquivalenceProperties::new(first.schema()),
            Partitioning::UnknownPartitioning(partitions),
            EmissionType::Incremental,
            Boundedness::Bounded,
        );
        Ok(Self { inputs, partitions, properties: Arc::new(properties) })
    }
}

impl DisplayAs for SerialUnionExec {
    fn fmt_as(&self, _t: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SerialUnionExec: inputs={}, partitions={}", self.inputs.len(), self.partitions)
    }
}

impl ExecutionPlan for SerialUnionExec {
    fn name(&self) -> &'static str {
        "SerialUnionExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn required_input_distribution(&self) -> Vec<Distribution> {
        vec![Distribution::SinglePartition; self.inputs.len()]
    }

    fn maintains_input_order(&self) -> Vec<bool> {
        vec![false; self.inputs.len()]
    }

    fn benefits_from_input_partitioning(&self) -> Vec<bool> {
        vec![false; self.inputs.len()]
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        self.inputs.iter().collect()
    }

    fn apply_expressions(&self, _f: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn replace_children(
        self: Arc<Self>,
        children: Vec<Arc<dyn ExecutionPlan>>,
        _options: ReplaceChildrenOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        Ok(Arc::new(Self::try_new(children, self.partitions)?))
    }

    fn with_new_children(self: Arc<Self>, children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        self.replace_children(children, ReplaceChildrenOptions::new(ChildrenPropertiesMode::Recompute))
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let mine: Vec<_> = self.inputs.iter().skip(partition).step_by(self.partitions).cloned().collect();
        let schema: SchemaRef = self.schema();
        // A child starts when the one before it has ended.
        let rows = futures::stream::iter(mine).map(move |input| input.execute(0, context.clone())).try_flatten();
        Ok(Box::pin(RecordBatchStreamAdapter::new(schema, rows)))
    }

    fn child_stats_requests(&self, _partition: Option<usize>) -> Vec<ChildStats> {
        self.inputs.iter().map(|_| ChildStats::At(None)).collect()
    }

    fn statistics_from_inputs(&self, input_stats: &[Arc<Statistics>], args: &StatisticsArgs) -> Result<Arc<Statistics>> {
        let mut statistics = Statistics::new_unknown(&self.schema());
        if args.partition().is_none() {
            let rows = input_stats.iter().fold(Precision::Exact(0), |sum, s| sum.add(&s.num_rows));
            statistics.num_rows = rows.to_inexact();
        }
        Ok(Arc::new(statistics))
    }
}
