//! Table `samples`: files and unflushed samples of one view, each sample once.
//!
//! ```text
//!  parts that overlap nothing   DataSourceExec(files) ───────────────────────────────┐
//!                               DataSourceExec(memory) ──────────────────────────────┤
//!  groups that overlap          Dedup ◀ SortPreservingMerge ◀ Union(files, memory) ┐ ├─▶ Union
//!                               Dedup ◀ …                                          ├─┘
//!                                                                 SerialUnionExec ─┘
//! ```
//!
//! # Invariants
//! - Files are those of the view's version, pruned by their key ranges; runs are those the view calls unflushed. Nothing is read twice.
//! - Below a deduplication go conditions on metric, series_id, time and date only: a condition on `value`, a limit or an exact row count there
//!   would see rows that lose. Conditions stay above as well (they are answered `Inexact`).
//! - `value` has no statistics in files, so a condition on it prunes nothing; with a NaN in the data a pruned file would lose rows.
//!
//! # When it fails
//! A file that cannot be read ends the query. Nothing is skipped.

use super::dedup::DedupExec;
use super::files::{FileScan, ordering};
use super::keys::KeyRange;
use super::overlap::{Part, Source, groups};
use super::serial::SerialUnionExec;
use crate::sql::error::storage;
use arrow::array::{ArrayRef, StringArray};
use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;
use async_trait::async_trait;
use datafusion::catalog::memory::MemorySourceConfig;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::{Result, internal_datafusion_err};
use datafusion::datasource::source::DataSourceExec;
use datafusion::logical_expr::{Expr, TableProviderFilterPushDown, TableType};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::expressions::Column;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::empty::EmptyExec;
use datafusion::physical_plan::projection::ProjectionExec;
use datafusion::physical_plan::sorts::sort_preserving_merge::SortPreservingMergeExec;
use datafusion::physical_plan::union::UnionExec;
use fletch_schemas::tables::Table;
use fletch_storage::ReadView;
use std::sync::Arc;

/// Columns that the deduplication reads.
const DEDUP_COLUMNS: [&str; 4] = ["metric", "series_id", "time", "value"];

/// Columns that conditions may go down on.
const KEY_COLUMNS: [&str; 5] = ["tenant", "date", "metric", "series_id", "time"];

/// See the module.
#[derive(Debug)]
pub(crate) struct SamplesTable {
    view: ReadView,
    schema: SchemaRef,
}

impl SamplesTable {
    /// The samples that `view` shows.
    pub(crate) fn new(view: ReadView) -> Self {
        Self { view, schema: Table::Samples.table_schema() }
    }

    fn parts(&self, range: &KeyRange) -> Result<Vec<Part>> {
        if range.is_empty() {
            return Ok(Vec::new());
        }
        let files = self.view.files(Table::Samples);
        let mut parts: Vec<Part> = files.into_iter().filter(|f| range.may_touch(f)).map(Part::file).collect();
        let batches = self.view.unflushed_batches(range.only_metric(), range.min_ms, range.max_ms).map_err(storage)?;
        for batch in batches {
            parts.extend(Part::batch(self.table_columns(&batch)?));
        }
        Ok(parts)
    }

    /// The columns of the table, in its order, of a batch that lacks the tenant.
    fn table_columns(&self, batch: &RecordBatch) -> Result<RecordBatch> {
        let tenant: ArrayRef = Arc::new(StringArray::from_iter_values(std::iter::repeat_n(self.view.tenant().as_str(), batch.num_rows())));
        let columns = self.schema.fields().iter().map(|field| match field.name().as_str() {
            "tenant" => Ok(tenant.clone()),
            name => batch.column_by_name(name).cloned().ok_or_else(|| internal_datafusion_err!("unflushed samples lack column `{name}`")),
        });
        Ok(RecordBatch::try_new(self.schema.clone(), columns.collect::<Result<Vec<_>>>()?)?)
    }
}

#[async_trait]
impl TableProvider for SamplesTable {
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
        let (mut alone, mut merged) = (Vec::new(), Vec::new());
        for mut group in groups(self.parts(&KeyRange::of(filters))?) {
            match group.len() {
                1 => alone.append(&mut group),
                _ => merged.push(group),
            }
        }
        let scan = FileScan::new(&self.view, Table::Samples, state, filters)?;
        let mut plans = self.plain(&scan, alone, columns, state)?;
        if !merged.is_empty() {
            plans.push(self.deduplicated(&scan, merged, columns, state)?);
        }
        match plans.len() {
            0 => Ok(Arc::new(EmptyExec::new(Arc::new(self.schema.project(columns)?)))),
            1 => Ok(plans.remove(0)),
            _ => UnionExec::try_new(plans),
        }
    }
}

impl SamplesTable {
    /// Parts that overlap nothing: read as they are, in any order.
    fn plain(&self, scan: &FileScan, parts: Vec<Part>, columns: &[usize], state: &dyn Session) -> Result<Vec<Arc<dyn ExecutionPlan>>> {
        let (mut files, mut batches) = (Vec::new(), Vec::new());
        for part in parts {
            match part.source {
                Source::File(file) => files.push(file),
                Source::Batch(batch) => batches.push(vec![batch]),
            }
        }
        let mut plans: Vec<Arc<dyn ExecutionPlan>> = Vec::new();
        if !files.is_empty() {
            plans.push(scan.unordered(&files, columns, state.config().target_partitions())?);
        }
        if !batches.is_empty() {
            plans.push(MemorySourceConfig::try_new_exec(&batches, self.schema.clone(), Some(columns.to_vec()))?);
        }
        Ok(plans)
    }

    /// Groups that overlap: merged in key order and deduplicated, one group after the other in few partitions.
    fn deduplicated(
        &self,
        scan: &FileScan,
        merged: Vec<Vec<Part>>,
        columns: &[usize],
        state: &dyn Session,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let mut wide = columns.to_vec();
        for name in DEDUP_COLUMNS {
            let at = self.schema.index_of(name)?;
            if !wide.contains(&at) {
                wide.push(at);
            }
        }
        let groups = merged.into_iter().map(|group| self.one_group(scan, group, &wide)).collect::<Result<Vec<_>>>()?;
        let rows: Arc<dyn ExecutionPlan> = Arc::new(SerialUnionExec::try_new(groups, state.config().target_partitions())?);
        if wide.len() == columns.len() {
            return Ok(rows);
        }
        let schema = rows.schema();
        let kept = (0..columns.len()).map(|at| {
            let name = schema.field(at).name();
            (Arc::new(Column::new(name, at)) as Arc<dyn PhysicalExpr>, name.clone())
        });
        Ok(Arc::new(ProjectionExec::try_new(kept.collect::<Vec<_>>(), rows.clone())?))
    }

    fn one_group(&self, scan: &FileScan, group: Vec<Part>, wide: &[usize]) -> Result<Arc<dyn ExecutionPlan>> {
        let mut inputs: Vec<Arc<dyn ExecutionPlan>> = Vec::new();
        let mut files = Vec::new();
        for part in group {
            match part.source {
                Source::File(file) => files.push(file),
                Source::Batch(batch) => {
                    let source = MemorySourceConfig::try_new(&[vec![batch]], self.schema.clone(), Some(wide.to_vec()))?;
                    let source = source.try_with_sort_information(vec![ordering(&self.schema)?])?;
                    inputs.push(DataSourceExec::from_data_source(source));
                }
            }
        }
        if !files.is_empty() {
            inputs.push(scan.ordered(&files, wide)?);
        }
        let input = if inputs.len() == 1 { inputs.remove(0) } else { UnionExec::try_new(inputs)? };
        let order = ordering(&input.schema())?;
        let merged = SortPreservingMergeExec::new(order.clone(), input);
        Ok(Arc::new(DedupExec::try_new(Arc::new(merged), order)?))
    }
}

/// Conditions on nothing but key columns go down and are checked again above.
pub(super) fn pushdown_of(filter: &Expr) -> TableProviderFilterPushDown {
    let columns = filter.column_refs();
    let keys_only = !columns.is_empty() && columns.iter().all(|c| KEY_COLUMNS.contains(&c.name.as_str()));
    if keys_only && !filter.is_volatile() { TableProviderFilterPushDown::Inexact } else { TableProviderFilterPushDown::Unsupported }
}
