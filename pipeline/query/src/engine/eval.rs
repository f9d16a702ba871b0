//! Walks a plan: operators call each other and hand over whole matrices.
//!
//! ```text
//!  plan ──requests()──▶ selectors with their time ranges ──(select, awaited by the engine)──▶ Loaded ──Evaluator──▶ matrices
//! ```
//!
//! Loading and evaluation walk the plan with the same rules for times ([`Times`]), so what a selector asks for is what its operator will
//! look at. Evaluation never waits for anything.

mod call;

use super::aggregate::{Grouping, choose_rows, count_values, fold, is_choice};
use super::annotations::Annotations;
use super::binary::{set_operation, vector_scalar, vectors};
use super::control::Control;
use super::error::QueryError;
use super::functions::map;
use super::labels::Keep;
use super::matrix::{Grid, Matrix};
use super::plan::{Aggregate, Node, Plan, RangeNode, RangeSource, TimeShift, VectorScalar, Vectors};
use super::range::RangeInput;
use super::scalar::{Column, scalars};
use super::series::{self, Pick};
use super::source::{Windows, WindowsOf};
use super::windows::Spans;
use fletch_promql::ast::{AggregateOp, AtModifier, Duration, DurationContext, EdgeMode};
use fletch_promql::functions::FunctionId;
use fletch_schemas::{SampleColumns, SeriesSet, Slice};
use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;

/// The times of one query.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Times {
    /// First evaluation time.
    pub(crate) start_ms: i64,
    /// Last evaluation time; the same as the first for an instant query.
    pub(crate) end_ms: i64,
    /// Step of a range query; 0 for an instant query.
    pub(crate) step_ms: i64,
    /// How old the newest sample of a series may be.
    pub(crate) lookback_ms: i64,
    /// Step of subqueries that name none.
    pub(crate) subquery_step_ms: i64,
    /// Whether this is a range query, of however many steps.
    pub(crate) is_range: bool,
}

impl Times {
    fn durations(&self) -> DurationContext {
        DurationContext { step_ms: self.step_ms, range_ms: self.end_ms.saturating_sub(self.start_ms) }
    }

    fn range_ms(&self, duration: &Duration) -> Result<i64, QueryError> {
        duration.resolve_range_ms(self.durations()).map_err(|e| QueryError::BadData(e.to_string()))
    }

    /// The time that the first step looks at, and how far it moves from step to step.
    fn reference(&self, shift: &TimeShift, grid: Grid) -> Result<(i64, i64), QueryError> {
        let (mut first, step) = match shift.at {
            None => (grid.start_ms, grid.step_ms),
            Some(AtModifier::Timestamp(ms)) => (ms, 0),
            Some(AtModifier::Start) => (self.start_ms, 0),
            Some(AtModifier::End) => (self.end_ms, 0),
        };
        for offset in &shift.offsets {
            let ms = offset.resolve_offset_ms(self.durations()).map_err(|e| QueryError::BadData(e.to_string()))?;
            first = first.saturating_sub(ms);
        }
        Ok((first, step))
    }

    fn spans(&self, shift: &TimeShift, width_ms: i64, grid: Grid) -> Result<Spans, QueryError> {
        let (first_ms, step_ms) = self.reference(shift, grid)?;
        Ok(Spans { first_ms, step_ms, width_ms, len: grid.len })
    }

    /// The steps of a subquery whose windows are `spans`: multiples of the step after the first window's start.
    fn subquery_grid(&self, spans: Spans, step: Option<&Duration>, control: &Control) -> Result<Grid, QueryError> {
        let step_ms = step.map_or(Ok(self.subquery_step_ms), |s| self.range_ms(s))?;
        if step_ms <= 0 {
            return Err(QueryError::BadData("the step of a subquery must be at least 1ms".to_owned()));
        }
        if spans.len == 0 {
            return Ok(Grid { start_ms: 0, step_ms, len: 0 });
        }
        let after = spans.first_ms.saturating_sub(spans.width_ms);
        let start_ms = after.div_euclid(step_ms).saturating_add(1).saturating_mul(step_ms);
        let grid = Grid::range(start_ms, spans.end(spans.len - 1), step_ms);
        let grid = grid.ok_or(QueryError::TooManySamples { limit: control.samples_max })?;
        control.check_cells(1, grid.len)?;
        Ok(grid)
    }
}

/// What one selector needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Request {
    /// Number of the selector.
    pub(crate) selector: usize,
    /// First millisecond needed.
    pub(crate) min_ms: i64,
    /// Last millisecond needed.
    pub(crate) max_ms: i64,
    /// How many steps look at it.
    pub(crate) steps: usize,
    /// How much of it each step looks at: the width of a range, 0 for an instant selector.
    pub(crate) width_ms: i64,
    /// The range function that looks at it, where that is all that does.
    pub(crate) windows: Option<WindowsOf>,
}

/// Time ranges of every selector below `node`, evaluated on `grid`. Selectors that are never looked at are left out.
///
/// # Errors
/// Durations that have no value for these times, subqueries of too many steps.
pub(crate) fn requests(
    plan: &Plan,
    node: &Node,
    grid: Grid,
    times: &Times,
    control: &Control,
    out: &mut Vec<Request>,
) -> Result<(), QueryError> {
    if grid.len == 0 {
        return Ok(());
    }
    let mut visit = |node: &Node| requests(plan, node, grid, times, control, out);
    match node {
        Node::Number(_) | Node::Text(_) => Ok(()),
        Node::Invariant(inner) => requests(plan, inner, grid.first(), times, control, out),
        Node::Select(id) => request(plan, *id, times.lookback_ms, Use::Instant, grid, times, out),
        Node::Range(range) => {
            let width_ms = times.range_ms(&range.width)?;
            match &range.source {
                RangeSource::Selector(id) => request(plan, *id, width_ms, Use::Range(None), grid, times, out),
                RangeSource::Subquery(inner, step) => {
                    let spans = times.spans(&range.time, width_ms, grid)?;
                    let inner_grid = times.subquery_grid(spans, step.as_ref(), control)?;
                    requests(plan, inner, inner_grid, times, control, out)
                }
            }
        }
        Node::Negate(inner) => visit(inner),
        Node::Scalars(_, a, b) => visit(a).and_then(|()| visit(b)),
        Node::VectorScalar(v) => visit(&v.vector).and_then(|()| visit(&v.scalar)),
        Node::Vectors(v) => visit(&v.lhs).and_then(|()| visit(&v.rhs)),
        Node::Aggregate(a) => {
            if let Some(param) = &a.param {
                visit(param)?;
            }
            visit(&a.input)
        }
        Node::Call(call) => {
            for arg in &call.args {
                match arg {
                    Node::Range(range) if let RangeSource::Selector(id) = range.source => {
                        request(plan, id, times.range_ms(&range.width)?, Use::Range(Some(call.func.id)), grid, times, out)?;
                    }
                    arg => requests(plan, arg, grid, times, control, out)?,
                }
            }
            Ok(())
        }
    }
}

/// Who looks at a selector.
#[derive(Clone, Copy)]
enum Use {
    Instant,
    /// A range vector, and the function that it is for.
    Range(Option<FunctionId>),
}

fn request(plan: &Plan, id: usize, width_ms: i64, by: Use, grid: Grid, times: &Times, out: &mut Vec<Request>) -> Result<(), QueryError> {
    let selector = &plan.selectors[id];
    let spans = times.spans(&selector.time, width_ms, grid)?;
    let ranged = matches!(by, Use::Range(_));
    let windows = match by {
        Use::Range(Some(function)) if selector.edges == EdgeMode::Plain => {
            Some(WindowsOf { function, first_end_ms: spans.first_ms, step_ms: spans.step_ms, width_ms, steps: spans.len })
        }
        _ => None,
    };
    let before = if ranged && selector.edges != EdgeMode::Plain { times.lookback_ms } else { 0 };
    let after = if selector.edges == EdgeMode::Smoothed { times.lookback_ms } else { 0 };
    let min_ms = spans.first_ms.saturating_sub(width_ms).saturating_sub(before).saturating_add(1);
    let max_ms = spans.end(grid.len - 1).saturating_add(after);
    // A window of no width selects nothing, but whoever answers expects a range that is one.
    let width_ms = if ranged { width_ms } else { 0 };
    out.push(Request { selector: id, min_ms: min_ms.min(max_ms), max_ms, steps: grid.len, width_ms, windows });
    Ok(())
}

/// The series of every selector.
#[derive(Debug, Default)]
pub(crate) struct Loaded {
    /// What was selected; selectors that ask the same share an entry.
    pub(crate) sets: Vec<SeriesSet>,
    /// Entry of each selector; `None` for one that is never looked at.
    pub(crate) of: Vec<Option<usize>>,
    /// What such a selector finds.
    none: SeriesSet,
    /// Selectors that were answered by rows which stand for samples.
    pub(crate) windows: HashMap<usize, Windows>,
}

impl Loaded {
    /// Selected sets, and which of them belongs to each selector.
    pub(crate) fn new(sets: Vec<SeriesSet>, of: Vec<Option<usize>>, windows: HashMap<usize, Windows>) -> Self {
        Self { sets, of, none: SeriesSet::default(), windows }
    }

    /// Everything that was selected.
    pub(crate) fn all(&self) -> impl Iterator<Item = &SeriesSet> {
        let rows = self.windows.values().map(|windows| match windows {
            Windows::Values(set) | Windows::Average { sums: set, .. } | Windows::Counters { curves: set, .. } => set,
        });
        self.sets.iter().chain(rows)
    }

    /// What a selector found.
    pub(crate) fn set(&self, selector: usize) -> &SeriesSet {
        match self.windows.get(&selector) {
            Some(Windows::Values(set) | Windows::Average { sums: set, .. } | Windows::Counters { curves: set, .. }) => set,
            None => self.of.get(selector).copied().flatten().map_or(&self.none, |i| &self.sets[i]),
        }
    }
}

/// Evaluates a plan over loaded series.
pub(crate) struct Evaluator<'a> {
    plan: &'a Plan,
    loaded: &'a Loaded,
    times: Times,
    control: &'a Control,
    /// Warnings and infos so far.
    pub(crate) notes: Annotations,
}

impl<'a> Evaluator<'a> {
    /// An evaluator for one run.
    pub(crate) fn new(plan: &'a Plan, loaded: &'a Loaded, times: Times, control: &'a Control) -> Self {
        Self { plan, loaded, times, control, notes: Annotations::default() }
    }

    /// Evaluates an instant vector.
    ///
    /// # Errors
    /// Whatever an operator finds.
    pub(crate) fn vector(&mut self, node: &Node, grid: Grid) -> Result<Matrix, QueryError> {
        self.control.check()?;
        if grid.len == 0 {
            return Ok(Matrix::empty(grid));
        }
        match node {
            Node::Invariant(inner) => self.invariant(inner, grid),
            Node::Select(id) => self.select(*id, grid, Pick::Value),
            Node::Negate(inner) => Ok(map(self.vector(inner, grid)?, |v| -v)),
            Node::VectorScalar(v) => self.vector_scalar(v, grid),
            Node::Vectors(v) => self.vectors(v, grid),
            Node::Aggregate(a) => self.aggregate(a, grid),
            Node::Call(call) => self.call(call, grid),
            Node::Number(_) | Node::Text(_) | Node::Scalars(..) | Node::Range(_) => Err(unexpected("an instant vector")),
        }
    }

    fn invariant(&mut self, inner: &Node, grid: Grid) -> Result<Matrix, QueryError> {
        let once = self.vector(inner, grid.first())?;
        self.control.check_cells(once.rows(), grid.len)?;
        Ok(once.broadcast(grid))
    }

    /// Evaluates a scalar.
    ///
    /// # Errors
    /// Whatever an operator finds.
    pub(crate) fn scalar(&mut self, node: &Node, grid: Grid) -> Result<Column, QueryError> {
        match node {
            Node::Number(value) => Ok(Column::Const(*value)),
            Node::Invariant(inner) => Ok(self.scalar(inner, grid.first())?.broadcast()),
            Node::Negate(inner) => Ok(self.scalar(inner, grid)?.map(|v| -v)),
            Node::Scalars(op, a, b) => {
                let (a, b) = (self.scalar(a, grid)?, self.scalar(b, grid)?);
                Ok(a.zip(b, |a, b| scalars(*op, a, b)))
            }
            Node::Call(call) => self.scalar_call(call, grid),
            _ => Err(unexpected("a scalar")),
        }
    }

    fn select(&mut self, id: usize, grid: Grid, pick: Pick) -> Result<Matrix, QueryError> {
        let selector = &self.plan.selectors[id];
        let spans = self.times.spans(&selector.time, self.times.lookback_ms, grid)?;
        if selector.edges == EdgeMode::Smoothed && pick == Pick::Value {
            return series::smoothed(self.loaded.set(id), spans, grid, self.control);
        }
        series::instant(self.loaded.set(id), spans, grid, pick, self.control)
    }

    fn vector_scalar(&mut self, v: &VectorScalar, grid: Grid) -> Result<Matrix, QueryError> {
        let (vector, scalar) = if v.scalar_left {
            let scalar = self.scalar(&v.scalar, grid)?;
            (self.vector(&v.vector, grid)?, scalar)
        } else {
            let vector = self.vector(&v.vector, grid)?;
            (vector, self.scalar(&v.scalar, grid)?)
        };
        if v.op.is_trim() && !vector.is_empty() {
            self.notes.incompatible_types(v.op.as_str(), v.span);
        }
        Ok(vector_scalar(v.op, vector, &scalar, v.scalar_left, v.return_bool))
    }

    fn vectors(&mut self, v: &Vectors, grid: Grid) -> Result<Matrix, QueryError> {
        let lhs = self.vector(&v.lhs, grid)?;
        let rhs = self.vector(&v.rhs, grid)?;
        if v.op.is_set() {
            return set_operation(v.op, &lhs, &rhs, &v.matching, self.control);
        }
        let joined = vectors(v.op, &lhs, &rhs, &v.matching, v.return_bool, self.control)?;
        if joined.refused_pairs {
            self.notes.incompatible_types(v.op.as_str(), v.span);
        }
        Ok(joined.matrix)
    }

    fn aggregate(&mut self, a: &Aggregate, grid: Grid) -> Result<Matrix, QueryError> {
        if let (AggregateOp::CountValues, Some(Node::Text(label))) = (a.op, &a.param) {
            let input = self.vector(&a.input, grid)?;
            return count_values(&input, label, &a.grouping, a.without, self.control);
        }
        let param = match &a.param {
            Some(param) => self.scalar(param, grid)?,
            None => Column::Const(0.0),
        };
        let input = self.vector(&a.input, grid)?;
        let keep = if a.without { Keep::Without(&a.grouping) } else { Keep::Only(&a.grouping) };
        let grouping = Grouping::of(&input, keep);
        if is_choice(a.op) {
            return choose_rows(a.op, &param, a.param_span, &input, &grouping, &mut self.notes, self.control);
        }
        if a.op == AggregateOp::Quantile {
            self.check_quantile(&param, grid, a.param_span);
        }
        fold(a.op, &param, &input, &grouping, self.control)
    }

    /// Warns about the worst quantiles only: any NaN, the largest above 1, the smallest below 0.
    fn check_quantile(&mut self, q: &Column, grid: Grid, at: fletch_promql::Span) {
        let (mut low, mut high) = (0.0, 1.0);
        let mut nan = false;
        for q in q.iter(grid.len) {
            nan |= q.is_nan();
            low = f64::min(low, q);
            high = f64::max(high, q);
        }
        for (wrong, q) in [(nan, f64::NAN), (high > 1.0, high), (low < 0.0, low)] {
            if wrong {
                self.notes.invalid_quantile(q, at);
            }
        }
    }

    /// A range vector on `grid`.
    fn range(&mut self, node: &RangeNode, grid: Grid) -> Result<RangeInput<'a>, QueryError> {
        let width_ms = self.times.range_ms(&node.width)?;
        let spans = self.times.spans(&node.time, width_ms, grid)?;
        let lookback_ms = self.times.lookback_ms;
        match &node.source {
            RangeSource::Selector(id) => {
                let edges = self.plan.selectors[*id].edges;
                Ok(RangeInput { set: Cow::Borrowed(self.loaded.set(*id)), dropped: Vec::new(), spans, edges, lookback_ms })
            }
            RangeSource::Subquery(inner, step) => {
                let inner_grid = self.times.subquery_grid(spans, step.as_ref(), self.control)?;
                let matrix = self.vector(inner, inner_grid)?;
                let dropped = (0..matrix.rows()).map(|row| matrix.drop_name(row)).collect();
                let set = Cow::Owned(into_series(matrix)?);
                Ok(RangeInput { set, dropped, spans, edges: EdgeMode::Plain, lookback_ms })
            }
        }
    }

    /// The samples of a range vector that is a query of its own, at one time. Stale markers are gone, series without samples too.
    ///
    /// # Errors
    /// Whatever an operator finds.
    pub(crate) fn samples(&mut self, node: &Node, grid: Grid) -> Result<(SeriesSet, Vec<bool>), QueryError> {
        let node = match node {
            Node::Invariant(inner) => inner,
            node => node,
        };
        let Node::Range(range) = node else { return Err(unexpected("a range vector")) };
        let input = self.range(range, grid)?;
        let mut out = SeriesSet::default();
        let mut dropped = Vec::new();
        for i in 0..input.set.len() {
            let (times, values) = series::without_stale(input.set.times(i), input.set.values(i));
            let samples = if input.edges == EdgeMode::Plain {
                let end = input.spans.end(0);
                let from = super::windows::seek(&times, end.saturating_sub(input.spans.width_ms));
                let to = super::windows::seek(&times, end);
                Some((times[from..to].to_vec(), values[from..to].to_vec()))
            } else {
                let (edges, rows) = input.edge_window(0, &times);
                super::kernels::rate::extend_samples(&times[rows.clone()], &values[rows], edges)
            };
            if let Some((times, values)) = samples.filter(|(times, _)| !times.is_empty()) {
                out.push(input.set.labels[i].clone(), times, values);
                dropped.push(input.dropped.get(i).copied().unwrap_or(false));
            }
        }
        Ok((out, dropped))
    }
}

fn unexpected(wanted: &str) -> QueryError {
    QueryError::Internal(format!("the plan has something else where {wanted} belongs"))
}

/// The steps of a matrix as samples. Rows without gaps share one column of times and keep their values where they are.
fn into_series(matrix: Matrix) -> Result<SeriesSet, QueryError> {
    let grid = matrix.grid;
    let too_many = || QueryError::Internal("a subquery has more than 2^32 cells".to_owned());
    u32::try_from(matrix.rows() * grid.len).map_err(|_| too_many())?;
    let times: Vec<i64> = (0..grid.len).map(|i| grid.time(i)).collect();
    let mut gappy = SampleColumns::default();
    let mut slices = Vec::with_capacity(matrix.rows());
    for (i, row) in matrix.iter().enumerate() {
        if let super::matrix::RowMask::Full = row.mask {
            slices.push(Slice { columns: 0, time_start: 0, value_start: (i * grid.len) as u32, len: grid.len as u32 });
            continue;
        }
        let start = gappy.times.len() as u32;
        row.mask.for_each(grid.len, |s| {
            gappy.times.push(times[s]);
            gappy.values.push(row.values[s]);
        });
        slices.push(Slice { columns: 1, time_start: start, value_start: start, len: gappy.times.len() as u32 - start });
    }
    let labels = matrix.all_labels().to_vec();
    let dense = SampleColumns { times, values: matrix.into_values() };
    Ok(SeriesSet { labels, slices, columns: vec![Arc::new(dense), Arc::new(gappy)] })
}
