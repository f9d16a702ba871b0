//! Keeps one row per key of a sorted stream: of rows with the same (metric, series_id, time) the one whose value wins.
//!
//! ```text
//!  key    a  a  b  c │ c  c  d          │ = batch boundary
//!  value  1  2  7  N │ 3  1  5          N = NULL, the stale marker
//!  keep      ▲  ▲    │ ▲     ▲
//! ```
//!
//! # Invariants
//! - The input has one partition, sorted by (metric, series_id, time), of one tenant and one day. The output has the same order and columns.
//! - Float beats NULL; of two floats the larger in the total order of floats wins. Which copy came first does not matter.
//! - Nothing that would see a losing row goes below: no limit, no predicate of the parent, no exact row count.
//!
//! A batch waits until the next one shows whether its last row is beaten; so one batch is held back, never more.

use arrow::array::{Array, AsArray, BooleanArray, Float64Array, Int64Array, StringArray, TimestampMicrosecondArray};
use arrow::compute::filter_record_batch;
use arrow::datatypes::{Float64Type, Int64Type, SchemaRef, TimestampMicrosecondType};
use arrow::record_batch::RecordBatch;
use datafusion::common::stats::Precision;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::common::{Result, Statistics, internal_datafusion_err};
use datafusion::execution::{RecordBatchStream, SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::{Distribution, LexOrdering, OrderingRequirements, PhysicalExpr};
use datafusion::physical_plan::metrics::{BaselineMetrics, ExecutionPlanMetricsSet, MetricsSet};
use datafusion::physical_plan::{
    ChildStats, ChildrenPropertiesMode, DisplayAs, DisplayFormatType, ExecutionPlan, PlanProperties, ReplaceChildrenOptions, StatisticsArgs,
};
use fletch_storage::run::beats;
use futures::{Stream, StreamExt};
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

/// See the module.
#[derive(Debug, Clone)]
pub(crate) struct DedupExec {
    input: Arc<dyn ExecutionPlan>,
    ordering: LexOrdering,
    columns: KeyColumns,
    metrics: ExecutionPlanMetricsSet,
}

/// Where the key and the value are in the input.
#[derive(Debug, Clone, Copy)]
struct KeyColumns {
    metric: usize,
    series_id: usize,
    time: usize,
    value: usize,
}

impl DedupExec {
    /// Deduplicates `input`, which has one partition in the order `ordering` and columns `metric`, `series_id`, `time`, `value`.
    ///
    /// # Errors
    /// A column is missing.
    pub(crate) fn try_new(input: Arc<dyn ExecutionPlan>, ordering: LexOrdering) -> Result<Self> {
        let schema = input.schema();
        let columns = KeyColumns {
            metric: schema.index_of("metric")?,
            series_id: schema.index_of("series_id")?,
            time: schema.index_of("time")?,
            value: schema.index_of("value")?,
        };
        Ok(Self { input, ordering, columns, metrics: ExecutionPlanMetricsSet::new() })
    }
}

impl DisplayAs for DedupExec {
    fn fmt_as(&self, _t: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DedupExec: one row per (metric, series_id, time)")
    }
}

impl ExecutionPlan for DedupExec {
    fn name(&self) -> &'static str {
        "DedupExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        self.input.properties()
    }

    fn required_input_distribution(&self) -> Vec<Distribution> {
        vec![Distribution::SinglePartition]
    }

    fn required_input_ordering(&self) -> Vec<Option<OrderingRequirements>> {
        vec![Some(OrderingRequirements::from(self.ordering.clone()))]
    }

    fn maintains_input_order(&self) -> Vec<bool> {
        vec![true]
    }

    fn benefits_from_input_partitioning(&self) -> Vec<bool> {
        vec![false]
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.input]
    }

    fn apply_expressions(&self, _f: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn replace_children(
        self: Arc<Self>,
        mut children: Vec<Arc<dyn ExecutionPlan>>,
        _options: ReplaceChildrenOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let input = children.pop().ok_or_else(|| internal_datafusion_err!("DedupExec has one child"))?;
        Ok(Arc::new(Self::try_new(input, self.ordering.clone())?))
    }

    fn with_new_children(self: Arc<Self>, children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        self.replace_children(children, ReplaceChildrenOptions::new(ChildrenPropertiesMode::Recompute))
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let input = self.input.execute(partition, context)?;
        let metrics = BaselineMetrics::new(&self.metrics, partition);
        let state = State { columns: self.columns, pending: None, best: 0 };
        Ok(Box::pin(DedupStream { schema: self.schema(), input, state, ended: false, metrics }))
    }

    fn metrics(&self) -> Option<MetricsSet> {
        Some(self.metrics.clone_inner())
    }

    fn child_stats_requests(&self, partition: Option<usize>) -> Vec<ChildStats> {
        vec![ChildStats::At(partition)]
    }

    fn statistics_from_inputs(&self, input_stats: &[Arc<Statistics>], _args: &StatisticsArgs) -> Result<Arc<Statistics>> {
        let rows = input_stats.first().map_or(Precision::Absent, |s| s.num_rows.to_inexact());
        let mut statistics = Statistics::new_unknown(&self.schema());
        statistics.num_rows = rows;
        Ok(Arc::new(statistics))
    }
}

struct DedupStream {
    schema: SchemaRef,
    input: SendableRecordBatchStream,
    state: State,
    ended: bool,
    metrics: BaselineMetrics,
}

impl Stream for DedupStream {
    type Item = Result<RecordBatch>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        while !this.ended {
            let next = ready!(this.input.poll_next_unpin(cx));
            let timer = this.metrics.elapsed_compute().timer();
            let done = match next {
                Some(Ok(batch)) => this.state.push(batch),
                Some(Err(error)) => Err(error),
                None => {
                    this.ended = true;
                    this.state.finish()
                }
            };
            timer.done();
            if let Some(result) = done.transpose() {
                return this.metrics.record_poll(Poll::Ready(Some(result)));
            }
        }
        Poll::Ready(None)
    }
}

impl RecordBatchStream for DedupStream {
    fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }
}

/// A batch whose last key may still lose its row to the next batch.
struct Pending {
    batch: RecordBatch,
    /// Rows that lost; empty means none did.
    lost: Vec<usize>,
}

/// The row of the newest key that wins so far is row `best` of `pending`.
struct State {
    columns: KeyColumns,
    pending: Option<Pending>,
    best: usize,
}

impl State {
    /// Takes the next batch; returns what can be given out.
    fn push(&mut self, batch: RecordBatch) -> Result<Option<RecordBatch>> {
        if batch.num_rows() == 0 {
            return Ok(None);
        }
        let rows = Rows::of(&batch, self.columns)?;
        let mut lost = Vec::new();
        // Row of `batch` that wins for the newest key, or `None` while that is still the row of `pending`.
        let mut best: Option<usize> = None;
        let mut start = 0;
        if let Some(before) = &mut self.pending {
            let old = Rows::of(&before.batch, self.columns)?;
            while start < rows.len() && rows.same_key(start, &old, self.best) {
                let value = match best {
                    None => old.value(self.best),
                    Some(row) => rows.value(row),
                };
                if wins(rows.value(start), value) {
                    match best.replace(start) {
                        None => before.lost.push(self.best),
                        Some(row) => lost.push(row),
                    }
                } else {
                    lost.push(start);
                }
                start += 1;
            }
            if start == rows.len() && best.is_none() {
                // Nothing but copies that lost: the batch adds nothing.
                return Ok(None);
            }
        }
        for row in start..rows.len() {
            match best {
                Some(winner) if rows.same_key(row, &rows, winner) => {
                    let beaten = if wins(rows.value(row), rows.value(winner)) { winner } else { row };
                    lost.push(beaten);
                    if beaten == winner {
                        best = Some(row);
                    }
                }
                _ => best = Some(row),
            }
        }
        self.best = best.expect("a batch that is kept has a winning last key");
        let ready = self.pending.replace(Pending { batch, lost });
        ready.map_or(Ok(None), Pending::rows)
    }

    fn finish(&mut self) -> Result<Option<RecordBatch>> {
        self.pending.take().map_or(Ok(None), Pending::rows)
    }
}

impl Pending {
    /// The rows that won; `None` when none did.
    fn rows(self) -> Result<Option<RecordBatch>> {
        if self.lost.is_empty() {
            return Ok(Some(self.batch));
        }
        let mut keep = vec![true; self.batch.num_rows()];
        for row in self.lost {
            keep[row] = false;
        }
        let left = filter_record_batch(&self.batch, &BooleanArray::from(keep))?;
        Ok((left.num_rows() > 0).then_some(left))
    }
}

/// Whether value `a` replaces `b`; `None` is the stale marker.
fn wins(a: Option<f64>, b: Option<f64>) -> bool {
    match (a, b) {
        (None, _) => false,
        (Some(_), None) => true,
        (Some(a), Some(b)) => beats(a, b),
    }
}

/// The typed columns of one batch.
struct Rows<'a> {
    metric: &'a StringArray,
    series_id: &'a Int64Array,
    time: &'a TimestampMicrosecondArray,
    value: &'a Float64Array,
}

impl<'a> Rows<'a> {
    fn of(batch: &'a RecordBatch, columns: KeyColumns) -> Result<Self> {
        let wrong = |name: &str| internal_datafusion_err!("column `{name}` has an unexpected type");
        Ok(Self {
            metric: batch.column(columns.metric).as_string_opt().ok_or_else(|| wrong("metric"))?,
            series_id: batch.column(columns.series_id).as_primitive_opt::<Int64Type>().ok_or_else(|| wrong("series_id"))?,
            time: batch.column(columns.time).as_primitive_opt::<TimestampMicrosecondType>().ok_or_else(|| wrong("time"))?,
            value: batch.column(columns.value).as_primitive_opt::<Float64Type>().ok_or_else(|| wrong("value"))?,
        })
    }

    fn len(&self) -> usize {
        self.time.len()
    }

    /// Times differ nearly always, so they are compared first and names hardly ever.
    fn same_key(&self, row: usize, other: &Self, other_row: usize) -> bool {
        self.time.value(row) == other.time.value(other_row)
            && self.series_id.value(row) == other.series_id.value(other_row)
            && self.metric.value(row) == other.metric.value(other_row)
    }

    fn value(&self, row: usize) -> Option<f64> {
        self.value.is_valid(row).then(|| self.value.value(row))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::datatypes::{DataType, Field, Schema};
    use fletch_schemas::tables::time_type;

    const COLUMNS: KeyColumns = KeyColumns { metric: 0, series_id: 1, time: 2, value: 3 };

    fn batch(rows: &[(i64, i64, Option<f64>)]) -> RecordBatch {
        let schema = Schema::new(vec![
            Field::new("metric", DataType::Utf8, false),
            Field::new("series_id", DataType::Int64, false),
            Field::new("time", time_type(), false),
            Field::new("value", DataType::Float64, true),
        ]);
        RecordBatch::try_new(
            Arc::new(schema),
            vec![
                Arc::new(StringArray::from(vec!["m"; rows.len()])),
                Arc::new(Int64Array::from_iter_values(rows.iter().map(|r| r.0))),
                Arc::new(TimestampMicrosecondArray::from_iter_values(rows.iter().map(|r| r.1)).with_timezone("UTC")),
                Arc::new(Float64Array::from_iter(rows.iter().map(|r| r.2))),
            ],
        )
        .expect("valid rows")
    }

    fn run(batches: &[&[(i64, i64, Option<f64>)]]) -> Vec<(i64, i64, Option<f64>)> {
        let mut state = State { columns: COLUMNS, pending: None, best: 0 };
        let mut out = Vec::new();
        for rows in batches {
            out.extend(state.push(batch(rows)).expect("typed columns"));
        }
        out.extend(state.finish().expect("typed columns"));
        out.iter()
            .flat_map(|b| {
                let rows = Rows::of(b, COLUMNS).expect("typed columns");
                (0..rows.len()).map(|i| (rows.series_id.value(i), rows.time.value(i), rows.value(i))).collect::<Vec<_>>()
            })
            .collect()
    }

    #[test]
    fn the_larger_float_wins_and_beats_null() {
        let rows = run(&[&[(1, 1, Some(1.0)), (1, 1, Some(2.0)), (1, 2, Some(7.0)), (1, 3, None), (1, 3, Some(-1.0)), (2, 3, None)]]);
        assert_eq!(rows, vec![(1, 1, Some(2.0)), (1, 2, Some(7.0)), (1, 3, Some(-1.0)), (2, 3, None)]);
        assert_eq!(run(&[&[(1, 1, Some(-0.0)), (1, 1, Some(0.0))]])[0].2.map(f64::to_bits), Some(0));
        assert!(run(&[&[(1, 1, Some(f64::NAN)), (1, 1, Some(f64::INFINITY))]])[0].2.is_some_and(f64::is_nan));
    }

    /// Every way to cut the same rows into batches gives the same answer.
    #[test]
    fn batch_boundaries_do_not_matter() {
        let rows =
            [(1, 1, Some(1.0)), (1, 1, Some(3.0)), (1, 1, Some(2.0)), (1, 2, None), (1, 2, None), (1, 2, Some(0.0)), (2, 2, Some(9.0))];
        let expected = vec![(1, 1, Some(3.0)), (1, 2, Some(0.0)), (2, 2, Some(9.0))];
        for cuts in 0..(1_u32 << (rows.len() - 1)) {
            let mut batches: Vec<&[(i64, i64, Option<f64>)]> = Vec::new();
            let mut start = 0;
            for at in 1..=rows.len() {
                if at == rows.len() || cuts >> (at - 1) & 1 == 1 {
                    batches.push(&rows[start..at]);
                    start = at;
                }
            }
            assert_eq!(run(&batches), expected, "cuts {cuts:b}");
        }
    }
}
