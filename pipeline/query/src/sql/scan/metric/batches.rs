//! Turns selected series into record batches.
//!
//! ```text
//!  stretches   day 1   day 2   day 3          with at least as many stretches as partitions, each partition takes whole ones;
//!  units       p0      p1      p0             with fewer, every stretch is split by series between partitions that share its selection
//! ```

use crate::sql::error::storage;
use arrow::array::{ArrayRef, Float64Array, StringBuilder, TimestampMicrosecondArray};
use arrow::buffer::NullBuffer;
use arrow::datatypes::SchemaRef;
use arrow::record_batch::{RecordBatch, RecordBatchOptions};
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::common::{Result, internal_err};
use datafusion::execution::memory_pool::{MemoryConsumer, MemoryReservation};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::{EquivalenceProperties, Partitioning, PhysicalExpr};
use datafusion::physical_plan::execution_plan::{Boundedness, EmissionType};
use datafusion::physical_plan::metrics::{BaselineMetrics, ExecutionPlanMetricsSet, MetricsSet};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{
    ChildrenPropertiesMode, DisplayAs, DisplayFormatType, ExecutionPlan, PlanProperties, ReplaceChildrenOptions,
};
use fletch_schemas::{Matcher, SeriesSet, is_stale};
use fletch_storage::run::rows_between;
use fletch_storage::{ReadView, SelectLimits};
use futures::stream::try_unfold;
use std::collections::VecDeque;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use tokio::sync::OnceCell;

/// Bytes that a sample and a series count for in the memory pool.
const SAMPLE_BYTES: usize = 16;
const SERIES_BYTES: usize = 256;

/// What a [`MetricExec`] reads.
#[derive(Debug)]
pub(super) struct Scan {
    pub(super) view: ReadView,
    /// Times to select, one after the other; milliseconds, both ends included; they do not overlap.
    pub(super) stretches: Vec<(i64, i64)>,
    pub(super) matchers: Vec<Matcher>,
    pub(super) limits: SelectLimits,
    /// Output columns: 0 is `time`, 1 is `value`, the others are labels.
    pub(super) columns: Vec<usize>,
    /// Label of each output column, parallel to `columns`.
    pub(super) labels: Vec<Option<String>>,
    /// Rows after which a partition may stop.
    pub(super) limit: Option<usize>,
}

/// A leaf that selects series and lays out their samples as rows.
#[derive(Debug)]
pub(super) struct MetricExec {
    scan: Arc<Scan>,
    partitions: Vec<Vec<Unit>>,
    properties: Arc<PlanProperties>,
    metrics: ExecutionPlanMetricsSet,
}

/// Part `part` of `parts` of the series of one stretch.
#[derive(Debug, Clone)]
struct Unit {
    stretch: (i64, i64),
    selected: Arc<OnceCell<Arc<Selected>>>,
    part: usize,
    parts: usize,
}

#[derive(Debug)]
struct Selected {
    set: SeriesSet,
    _memory: MemoryReservation,
}

impl MetricExec {
    pub(super) fn new(schema: SchemaRef, scan: Scan, partitions_max: usize) -> Self {
        let partitions = units(&scan.stretches, partitions_max.max(1));
        let properties = PlanProperties::new(
            EquivalenceProperties::new(schema),
            Partitioning::UnknownPartitioning(partitions.len()),
            EmissionType::Incremental,
            Boundedness::Bounded,
        );
        Self { scan: Arc::new(scan), partitions, properties: Arc::new(properties), metrics: ExecutionPlanMetricsSet::new() }
    }
}

fn units(stretches: &[(i64, i64)], partitions: usize) -> Vec<Vec<Unit>> {
    let parts = if stretches.len() >= partitions { 1 } else { partitions };
    let mut out = vec![Vec::new(); partitions];
    for (at, &stretch) in stretches.iter().enumerate() {
        let selected = Arc::new(OnceCell::new());
        for part in 0..parts {
            out[(at + part) % partitions].push(Unit { stretch, selected: selected.clone(), part, parts });
        }
    }
    out
}

impl DisplayAs for MetricExec {
    fn fmt_as(&self, _t: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let matchers: Vec<String> = self.scan.matchers.iter().map(Matcher::to_string).collect();
        write!(f, "MetricExec: select={{{}}}, stretches={}", matchers.join(", "), self.scan.stretches.len())?;
        if let (Some(first), Some(last)) = (self.scan.stretches.first(), self.scan.stretches.last()) {
            write!(f, ", time_ms=[{}, {}]", first.0, last.1)?;
        }
        self.scan.limit.map_or(Ok(()), |limit| write!(f, ", limit={limit}"))
    }
}

impl ExecutionPlan for MetricExec {
    fn name(&self) -> &'static str {
        "MetricExec"
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
        if children.is_empty() { Ok(self) } else { internal_err!("MetricExec has no children") }
    }

    fn with_new_children(self: Arc<Self>, children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        self.replace_children(children, ReplaceChildrenOptions::new(ChildrenPropertiesMode::Recompute))
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let Some(units) = self.partitions.get(partition) else { return internal_err!("there is no partition {partition}") };
        let cursor = Cursor {
            scan: self.scan.clone(),
            schema: self.schema(),
            units: units.iter().cloned().collect(),
            rows: None,
            left: self.scan.limit.unwrap_or(usize::MAX),
            batch_rows: context.session_config().batch_size(),
            context,
            metrics: BaselineMetrics::new(&self.metrics, partition),
        };
        let stream = try_unfold(cursor, |mut cursor| async move { Ok(cursor.next().await?.map(|batch| (batch, cursor))) });
        Ok(Box::pin(RecordBatchStreamAdapter::new(self.schema(), stream)))
    }

    fn metrics(&self) -> Option<MetricsSet> {
        Some(self.metrics.clone_inner())
    }
}

/// Where one partition stands.
struct Cursor {
    scan: Arc<Scan>,
    schema: SchemaRef,
    units: VecDeque<Unit>,
    rows: Option<Rows>,
    left: usize,
    batch_rows: usize,
    context: Arc<TaskContext>,
    metrics: BaselineMetrics,
}

/// The series of one unit that are not laid out yet.
struct Rows {
    selected: Arc<Selected>,
    stretch: (i64, i64),
    parts: usize,
    /// The next series, and how many of its samples were given out.
    series: usize,
    done: usize,
}

impl Cursor {
    async fn next(&mut self) -> Result<Option<RecordBatch>> {
        loop {
            if self.left == 0 {
                return Ok(None);
            }
            if let Some(rows) = &mut self.rows {
                let timer = self.metrics.elapsed_compute().timer();
                let pieces = rows.take(self.batch_rows.min(self.left));
                let count: usize = pieces.iter().map(|(_, rows)| rows.len()).sum();
                if count > 0 {
                    let batch = layout(&self.scan, &self.schema, &rows.selected.set, &pieces, count)?;
                    timer.done();
                    self.left -= count;
                    self.metrics.record_output(count);
                    return Ok(Some(batch));
                }
                self.rows = None;
            }
            let Some(unit) = self.units.pop_front() else { return Ok(None) };
            let (scan, context) = (self.scan.clone(), self.context.clone());
            let selected = unit.selected.get_or_try_init(|| select(scan, context, unit.stretch)).await?.clone();
            self.rows = Some(Rows { selected, stretch: unit.stretch, parts: unit.parts, series: unit.part, done: 0 });
        }
    }
}

async fn select(scan: Arc<Scan>, context: Arc<TaskContext>, stretch: (i64, i64)) -> Result<Arc<Selected>> {
    let set = scan.view.select(&scan.matchers, stretch.0, stretch.1, &scan.limits).await.map_err(storage)?;
    let memory = MemoryConsumer::new("MetricExec").register(context.memory_pool());
    memory.try_grow(set.samples() * SAMPLE_BYTES + set.len() * SERIES_BYTES)?;
    Ok(Arc::new(Selected { set, _memory: memory }))
}

impl Rows {
    /// The next stretches of samples, together at most `rows_max`: (series, rows of it).
    fn take(&mut self, rows_max: usize) -> Vec<(usize, Range<usize>)> {
        let set = &self.selected.set;
        let (mut pieces, mut count) = (Vec::new(), 0);
        while count < rows_max && self.series < set.len() {
            let inside = rows_between(set.times(self.series), self.stretch.0, self.stretch.1);
            let start = inside.start + self.done;
            let end = inside.end.min(start + rows_max - count);
            if start < end {
                pieces.push((self.series, start..end));
                count += end - start;
            }
            if end >= inside.end {
                self.series += self.parts;
                self.done = 0;
            } else {
                self.done += end - start;
            }
        }
        pieces
    }
}

fn layout(scan: &Scan, schema: &SchemaRef, set: &SeriesSet, pieces: &[(usize, Range<usize>)], count: usize) -> Result<RecordBatch> {
    let columns = scan.columns.iter().zip(&scan.labels).map(|(&column, label)| match (column, label) {
        (_, Some(label)) => label_column(set, pieces, count, label),
        (0, None) => times_column(set, pieces, count),
        _ => values_column(set, pieces, count),
    });
    let options = RecordBatchOptions::new().with_row_count(Some(count));
    Ok(RecordBatch::try_new_with_options(schema.clone(), columns.collect(), &options)?)
}

fn times_column(set: &SeriesSet, pieces: &[(usize, Range<usize>)], count: usize) -> ArrayRef {
    let mut times = Vec::with_capacity(count);
    for (series, rows) in pieces {
        times.extend(set.times(*series)[rows.clone()].iter().map(|ms| ms * 1_000));
    }
    Arc::new(TimestampMicrosecondArray::from(times).with_timezone("UTC"))
}

fn values_column(set: &SeriesSet, pieces: &[(usize, Range<usize>)], count: usize) -> ArrayRef {
    let mut values = Vec::with_capacity(count);
    for (series, rows) in pieces {
        values.extend_from_slice(&set.values(*series)[rows.clone()]);
    }
    let nulls = values.iter().any(|&v| is_stale(v)).then(|| values.iter().map(|&v| !is_stale(v)).collect::<NullBuffer>());
    Arc::new(Float64Array::new(values.into(), nulls))
}

fn label_column(set: &SeriesSet, pieces: &[(usize, Range<usize>)], count: usize, label: &str) -> ArrayRef {
    let mut texts = StringBuilder::with_capacity(count, count * 8);
    for (series, rows) in pieces {
        match set.labels[*series].get(label) {
            Some(text) => rows.clone().for_each(|_| texts.append_value(text)),
            None => texts.append_nulls(rows.len()),
        }
    }
    Arc::new(texts.finish())
}

#[cfg(test)]
pub(super) mod testing {
    use super::*;

    /// All rows of a set, as one partition of `parts` gives them in batches of `batch_rows`.
    pub(in super::super) fn rows(set: SeriesSet, stretch: (i64, i64), part: usize, parts: usize, batch_rows: usize) -> Vec<(usize, i64)> {
        let pool: Arc<dyn datafusion::execution::memory_pool::MemoryPool> =
            Arc::new(datafusion::execution::memory_pool::UnboundedMemoryPool::default());
        let memory = MemoryConsumer::new("test").register(&pool);
        let selected = Arc::new(Selected { set, _memory: memory });
        let mut rows = Rows { selected: selected.clone(), stretch, parts, series: part, done: 0 };
        let mut out = Vec::new();
        loop {
            let pieces = rows.take(batch_rows);
            if pieces.is_empty() {
                return out;
            }
            let count: usize = pieces.iter().map(|(_, r)| r.len()).sum();
            assert!(count <= batch_rows, "a batch has {count} rows");
            out.extend(
                pieces
                    .into_iter()
                    .flat_map(|(s, r)| r.map(move |i| (s, i)).collect::<Vec<_>>())
                    .map(|(s, i)| (s, selected.set.times(s)[i])),
            );
        }
    }
}
