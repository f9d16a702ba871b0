//! Function calls: which arguments a function has, and which kernel answers it.

use super::super::control::Control;
use super::super::error::QueryError;
use super::super::functions::{clamp, date, go_max, go_min, map, math, round, to_scalar};
use super::super::histogram;
use super::super::info::enrich;
use super::super::kernels::over_time::OverTime;
use super::super::kernels::rate::RateKind;
use super::super::matrix::{Grid, Mask, Matrix, RowMask};
use super::super::plan::{Call, Node, RangeSource};
use super::super::range::{Kernel, RangeInput, apply, check_edges};
use super::super::relabel::{by_labels, by_value, join, replace};
use super::super::scalar::Column;
use super::super::series::Pick;
use super::super::source::Windows;
use super::super::tier_rate::rate_of_rows;
use super::{Evaluator, unexpected};
use fletch_promql::functions::FunctionId as F;
use fletch_schemas::{Labels, SeriesSet, pattern};
use std::borrow::Cow;

impl Evaluator<'_> {
    /// A call that returns an instant vector.
    pub(super) fn call(&mut self, call: &Call, grid: Grid) -> Result<Matrix, QueryError> {
        let id = call.func.id;
        if call.args.iter().any(is_range) {
            return self.range_call(call, grid);
        }
        if let Some(f) = math(id) {
            return Ok(map(self.vector_arg(call, 0, grid)?, f));
        }
        if let Some(f) = date(id) {
            return self.date_call(call, f, grid);
        }
        match id {
            F::Absent => {
                let input = self.vector_arg(call, 0, grid)?;
                self.absent(call, &input)
            }
            F::Clamp | F::ClampMin | F::ClampMax => self.clamp_call(call, grid),
            F::Round => {
                let input = self.vector_arg(call, 0, grid)?;
                let to = if call.args.len() > 1 { self.scalar_arg(call, 1, grid)? } else { Column::Const(1.0) };
                Ok(round(input, &to))
            }
            F::Vector => {
                let column = self.scalar_arg(call, 0, grid)?;
                Ok(one_row(Labels::empty(), &column, grid))
            }
            F::Timestamp => self.timestamp(call, grid),
            F::LabelReplace | F::LabelJoin => self.relabel(call, grid),
            F::Sort | F::SortDesc | F::SortByLabel | F::SortByLabelDesc => self.sort(call, grid),
            F::Info => self.info(call, grid),
            F::HistogramQuantile | F::HistogramQuantiles | F::HistogramFraction => self.histogram(call, grid),
            // These look at native histograms and start times, which stored samples do not have yet: they see none.
            F::HistogramAvg | F::HistogramCount | F::HistogramStddev | F::HistogramStdvar | F::HistogramSum | F::StartTimestamp => {
                self.vector_arg(call, 0, grid)?;
                Ok(Matrix::empty(grid))
            }
            _ => Err(unexpected("a function of an instant vector")),
        }
    }

    /// A call that returns a scalar.
    pub(super) fn scalar_call(&mut self, call: &Call, grid: Grid) -> Result<Column, QueryError> {
        let seconds = |ms: i64| Column::Const(ms as f64 / 1000.0);
        Ok(match call.func.id {
            F::Time => Column::times(grid),
            F::Pi => Column::Const(std::f64::consts::PI),
            F::Start => seconds(self.times.start_ms),
            F::End => seconds(self.times.end_ms),
            F::Range => seconds(self.times.end_ms.saturating_sub(self.times.start_ms)),
            F::Step => seconds(self.times.step_ms),
            F::Scalar => to_scalar(&self.vector_arg(call, 0, grid)?),
            F::MaxOf => self.scalar_arg(call, 0, grid)?.zip(self.scalar_arg(call, 1, grid)?, go_max),
            F::MinOf => self.scalar_arg(call, 0, grid)?.zip(self.scalar_arg(call, 1, grid)?, go_min),
            _ => return Err(unexpected("a function that returns a scalar")),
        })
    }

    fn vector_arg(&mut self, call: &Call, i: usize, grid: Grid) -> Result<Matrix, QueryError> {
        let arg = call.args.get(i).ok_or_else(|| unexpected("an argument"))?;
        self.vector(arg, grid)
    }

    fn scalar_arg(&mut self, call: &Call, i: usize, grid: Grid) -> Result<Column, QueryError> {
        let arg = call.args.get(i).ok_or_else(|| unexpected("an argument"))?;
        self.scalar(arg, grid)
    }

    /// A function of a range vector.
    fn range_call(&mut self, call: &Call, grid: Grid) -> Result<Matrix, QueryError> {
        let id = call.func.id;
        let mut params = Vec::new();
        let mut source = None;
        for (arg, span) in call.args.iter().zip(&call.spans) {
            match arg {
                Node::Range(range) => source = Some((range, *span)),
                arg => params.push(self.scalar(arg, grid)?),
            }
        }
        let (range, _) = source.ok_or_else(|| unexpected("a range vector"))?;
        let wrong: Vec<f64> = match (id, params.first()) {
            (F::QuantileOverTime, Some(q)) => distinct(q, grid).filter(|q| !(0.0..=1.0).contains(q)).collect(),
            _ => Vec::new(),
        };
        let kernel = Kernel::of(id, params).ok_or_else(|| unexpected("a function of a range vector"))?;
        let control = self.control;
        let input = self.range(range, grid)?;
        check_edges(input.edges, id, call.func.name)?;
        let rows = match range.source {
            RangeSource::Selector(selector) => self.loaded.windows.get(&selector),
            RangeSource::Subquery(..) => None,
        };
        let out = match rows {
            None => apply(&kernel, &input, grid, control)?,
            Some(Windows::Average { counts, .. }) => average(&input, counts, grid, control)?,
            Some(Windows::Counters { counts, .. }) => {
                let kind = if id == F::Rate { RateKind::Rate } else { RateKind::Increase };
                rate_of_rows(kind, &input, counts, grid, control)?
            }
            // A row that stands for many samples says how many.
            Some(Windows::Values(_)) if id == F::CountOverTime => apply(&Kernel::Over(OverTime::Sum), &input, grid, control)?,
            Some(Windows::Values(_)) => apply(&kernel, &input, grid, control)?,
        };
        match id {
            F::AbsentOverTime => return self.absent(call, &out),
            F::Rate | F::Increase => self.check_counters(call, &out),
            F::QuantileOverTime if !out.is_empty() => {
                wrong.into_iter().for_each(|q| self.notes.invalid_quantile(q, call.spans[0]));
            }
            _ => {}
        }
        Ok(out)
    }

    /// Tells of metrics that are not named like counters.
    fn check_counters(&mut self, call: &Call, out: &Matrix) {
        let mut last = "";
        for labels in out.all_labels() {
            let name = labels.metric();
            let counter = ["_total", "_sum", "_count", "_bucket"].iter().any(|suffix| name.ends_with(suffix));
            if !name.is_empty() && name != last && !counter {
                self.notes.possible_non_counter(name, call.spans[0]);
            }
            last = name;
        }
    }

    /// 1 at every step at which no row of `input` has a value.
    fn absent(&mut self, call: &Call, input: &Matrix) -> Result<Matrix, QueryError> {
        let mut mask = Mask::all(input.steps());
        input.iter().for_each(|row| mask.and_not(row.mask));
        let labels = call.absent_labels.iter().map(|(n, v)| (n.as_str(), v.as_str()));
        let labels = Labels::from_pairs(labels).map_err(|e| QueryError::Internal(e.to_string()))?;
        let mut out = Matrix::empty(input.grid);
        out.push(labels, false, &vec![1.0; input.steps()], mask.row());
        Ok(out)
    }

    fn date_call(&mut self, call: &Call, f: fn(f64) -> f64, grid: Grid) -> Result<Matrix, QueryError> {
        if !call.args.is_empty() {
            return Ok(map(self.vector_arg(call, 0, grid)?, f));
        }
        let seconds = (0..grid.len).map(|i| f((grid.time(i) / 1000) as f64)).collect();
        Ok(one_row(Labels::empty(), &Column::Steps(seconds), grid))
    }

    fn clamp_call(&mut self, call: &Call, grid: Grid) -> Result<Matrix, QueryError> {
        let input = self.vector_arg(call, 0, grid)?;
        let first = self.scalar_arg(call, 1, grid)?;
        let (low, high) = match call.func.id {
            F::ClampMin => (first, Column::Const(f64::INFINITY)),
            F::ClampMax => (Column::Const(f64::NEG_INFINITY), first),
            _ => (first, self.scalar_arg(call, 2, grid)?),
        };
        Ok(clamp(input, &low, &high))
    }

    /// Of a selector the time of the sample it found, of anything else the evaluation time.
    fn timestamp(&mut self, call: &Call, grid: Grid) -> Result<Matrix, QueryError> {
        let mut out = match call.args.first() {
            Some(Node::Select(id)) => self.select(*id, grid, Pick::Time)?,
            Some(Node::Invariant(inner)) if matches!(**inner, Node::Select(_)) => {
                let Node::Select(id) = **inner else { return Err(unexpected("a selector")) };
                let once = self.select(id, grid.first(), Pick::Time)?;
                self.control.check_cells(once.rows(), grid.len)?;
                once.broadcast(grid)
            }
            _ => {
                let input = self.vector_arg(call, 0, grid)?;
                super::super::functions::map_steps(input, |_, s| grid.time(s) as f64 / 1000.0)
            }
        };
        out.drop_all_names();
        Ok(out)
    }

    fn relabel(&mut self, call: &Call, grid: Grid) -> Result<Matrix, QueryError> {
        let texts = texts(&call.args[1..])?;
        if call.func.id == F::LabelJoin {
            let [dst, separator, sources @ ..] = texts.as_slice() else { return Err(unexpected("labels")) };
            let input = self.vector_arg(call, 0, grid)?;
            return join(input, dst, separator, sources);
        }
        let [dst, replacement, src, text] = texts.as_slice() else { return Err(unexpected("labels")) };
        let regex = call.pattern.get_or_init(|| pattern::compile(text).ok()).as_ref();
        let input = self.vector_arg(call, 0, grid)?;
        replace(input, dst, replacement, src, (text, regex))
    }

    fn sort(&mut self, call: &Call, grid: Grid) -> Result<Matrix, QueryError> {
        let input = self.vector_arg(call, 0, grid)?;
        if self.times.is_range {
            self.notes.sort_in_range_query(call.span);
        }
        if grid.len != 1 {
            return Ok(input);
        }
        let names = texts(&call.args[1..])?;
        Ok(match call.func.id {
            F::Sort => by_value(&input, false),
            F::SortDesc => by_value(&input, true),
            id => by_labels(&input, &names, id == F::SortByLabelDesc),
        })
    }

    fn info(&mut self, call: &Call, grid: Grid) -> Result<Matrix, QueryError> {
        let base = self.vector_arg(call, 0, grid)?;
        let Some(Node::Select(id)) = call.args.get(1) else { return Err(unexpected("the info selector")) };
        let info = self.select(*id, grid, Pick::Time)?;
        enrich(&base, &info, &self.plan.selectors[*id].matchers, self.control)
    }

    fn histogram(&mut self, call: &Call, grid: Grid) -> Result<Matrix, QueryError> {
        let control = self.control;
        match call.func.id {
            F::HistogramQuantile => {
                let q = self.scalar_arg(call, 0, grid)?;
                let input = self.vector_arg(call, 1, grid)?;
                histogram::quantile(&q, &input, (call.spans[0], call.spans[1]), &mut self.notes, control)
            }
            F::HistogramFraction => {
                let lower = self.scalar_arg(call, 0, grid)?;
                let upper = self.scalar_arg(call, 1, grid)?;
                let input = self.vector_arg(call, 2, grid)?;
                histogram::fraction(&lower, &upper, &input, call.spans[2], &mut self.notes, control)
            }
            _ => {
                let input = self.vector_arg(call, 0, grid)?;
                let Some(Node::Text(label)) = call.args.get(1) else { return Err(unexpected("a label")) };
                let mut qs = Vec::new();
                for i in 2..call.args.len() {
                    qs.push((self.scalar_arg(call, i, grid)?, call.spans[i]));
                }
                histogram::quantiles(&input, label, &qs, call.spans[0], call.spans[1], &mut self.notes, control)
            }
        }
    }
}

fn is_range(node: &Node) -> bool {
    matches!(node, Node::Range(_))
}

fn texts(args: &[Node]) -> Result<Vec<&str>, QueryError> {
    args.iter()
        .map(|node| match node {
            Node::Text(text) => Ok(text.as_str()),
            _ => Err(unexpected("a text")),
        })
        .collect()
}

fn distinct(column: &Column, grid: Grid) -> impl Iterator<Item = f64> + '_ {
    let steps = if matches!(column, Column::Const(_)) { grid.len.min(1) } else { grid.len };
    column.iter(steps)
}

fn one_row(labels: Labels, column: &Column, grid: Grid) -> Matrix {
    let values: Vec<f64> = column.iter(grid.len).collect();
    let mut out = Matrix::empty(grid);
    out.push(labels, false, &values, RowMask::Full);
    out
}

/// Averages from sums (`input`) and counts of the same series.
fn average(input: &RangeInput<'_>, counts: &SeriesSet, grid: Grid, control: &Control) -> Result<Matrix, QueryError> {
    let sum = Kernel::Over(OverTime::Sum);
    let mut sums = apply(&sum, input, grid, control)?;
    let counts = RangeInput { set: Cow::Borrowed(counts), dropped: Vec::new(), ..*input };
    let counts = apply(&sum, &counts, grid, control)?;
    if sums.all_labels() != counts.all_labels() {
        return Err(QueryError::Internal("sums and counts of a tier are of other series".to_owned()));
    }
    sums.all_values_mut().iter_mut().zip(counts.all_values()).for_each(|(sum, count)| *sum /= count);
    Ok(sums)
}
