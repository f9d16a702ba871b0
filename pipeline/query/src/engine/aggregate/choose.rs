//! The aggregations that choose some of the input rows: topk, bottomk, limitk, limit_ratio.

use super::super::annotations::Annotations;
use super::super::control::Control;
use super::super::error::QueryError;
use super::super::labels::{compare, ratio_offset};
use super::super::matrix::{Mask, Matrix, words_for};
use super::super::number::general;
use super::super::scalar::Column;
use super::Grouping;
use fletch_promql::Span;
use fletch_promql::ast::AggregateOp;
use std::cmp::Ordering;

/// Whether the operator chooses rows.
pub(crate) fn is_choice(op: AggregateOp) -> bool {
    matches!(op, AggregateOp::Topk | AggregateOp::Bottomk | AggregateOp::Limitk | AggregateOp::LimitRatio)
}

/// The chosen cells of `input`. At a single step the rows of `topk` and `bottomk` come group by group, best first.
///
/// # Errors
/// A parameter that is NaN or too large, [`Control::check`].
pub(crate) fn choose_rows(
    op: AggregateOp,
    param: &Column,
    span: Span,
    input: &Matrix,
    grouping: &Grouping,
    notes: &mut Annotations,
    control: &Control,
) -> Result<Matrix, QueryError> {
    let steps = input.steps();
    let none = Matrix::empty(input.grid);
    let (low, high, nan) = bounds(param, steps);
    if op == AggregateOp::LimitRatio {
        if low == 0.0 && high == 0.0 && !nan {
            return Ok(none);
        }
        check_ratio(low, high, nan, span, notes)?;
    } else {
        if high < 1.0 && !nan {
            return Ok(none);
        }
        check_count(low, high, nan)?;
    }
    let mut chosen = Chosen::new(input);
    for rows in grouping.members() {
        match op {
            AggregateOp::Limitk => chosen.limit(param, rows),
            AggregateOp::LimitRatio => chosen.ratio(param, &rows),
            _ => chosen.best(op == AggregateOp::Topk, param, &rows, control)?,
        }
    }
    Ok(chosen.finish())
}

/// Smallest and largest number of a parameter, and whether any is NaN.
fn bounds(param: &Column, steps: usize) -> (f64, f64, bool) {
    param.iter(steps).fold((f64::INFINITY, f64::NEG_INFINITY, false), |(low, high, nan), v| (low.min(v), high.max(v), nan || v.is_nan()))
}

fn check_count(low: f64, high: f64, nan: bool) -> Result<(), QueryError> {
    if nan {
        return Err(QueryError::execution("Parameter value is NaN"));
    }
    if low <= i64::MIN as f64 {
        return Err(QueryError::Execution(format!("Scalar value {} underflows int64", general(low))));
    }
    if high >= i64::MAX as f64 {
        return Err(QueryError::Execution(format!("Scalar value {} overflows int64", general(high))));
    }
    Ok(())
}

fn check_ratio(low: f64, high: f64, nan: bool, span: Span, notes: &mut Annotations) -> Result<(), QueryError> {
    if nan {
        return Err(QueryError::execution("Ratio value is NaN"));
    }
    if high > 1.0 {
        notes.invalid_ratio(high, 1.0, span);
    }
    if low < -1.0 {
        notes.invalid_ratio(low, -1.0, span);
    }
    Ok(())
}

struct Chosen<'a> {
    input: &'a Matrix,
    present: Vec<u64>,
    /// Chosen rows in the order of their rank; only kept for a single step.
    order: Vec<usize>,
}

impl<'a> Chosen<'a> {
    fn new(input: &'a Matrix) -> Self {
        Self { input, present: vec![0; input.rows() * words_for(input.steps())], order: Vec::new() }
    }

    fn take(&mut self, row: usize, step: usize) {
        self.present[row * words_for(self.input.steps()) + step / 64] |= 1 << (step % 64);
        if self.input.steps() == 1 {
            self.order.push(row);
        }
    }

    /// The first `k` rows of a group, in the order of their labels.
    fn limit(&mut self, k: &Column, mut rows: Vec<usize>) {
        rows.sort_by(|a, b| compare(self.input.labels(*a), self.input.labels(*b)));
        for step in 0..self.input.steps() {
            let k = k.get(step).max(0.0) as usize;
            let here = rows.iter().filter(|r| self.input.mask(**r).has(step)).take(k);
            here.copied().collect::<Vec<_>>().into_iter().for_each(|row| self.take(row, step));
        }
    }

    /// A share of the rows, chosen by their labels alone.
    fn ratio(&mut self, ratio: &Column, rows: &[usize]) {
        for &row in rows {
            let offset = ratio_offset(self.input.labels(row));
            let mut wanted = Mask::none(self.input.steps());
            wanted.copy_from(self.input.mask(row));
            for step in 0..self.input.steps() {
                let ratio = ratio.get(step).clamp(-1.0, 1.0);
                let inside = (ratio >= 0.0 && offset < ratio) || (ratio < 0.0 && offset >= 1.0 + ratio);
                if inside && wanted.has(step) {
                    self.take(row, step);
                }
            }
        }
    }

    /// The `k` largest or smallest of a group.
    fn best(&mut self, largest: bool, k: &Column, rows: &[usize], control: &Control) -> Result<(), QueryError> {
        let mut heap = Heap { largest, entries: Vec::new() };
        for step in 0..self.input.steps() {
            control.check_series(step)?;
            let k = (k.get(step).max(0.0) as usize).min(self.input.rows());
            heap.entries.clear();
            if k > 0 {
                for &row in rows.iter().filter(|r| self.input.mask(**r).has(step)) {
                    heap.offer(k, self.input.values(row)[step], row);
                }
            }
            heap.sort();
            (0..heap.entries.len()).for_each(|i| self.take(heap.entries[i].1, step));
        }
        Ok(())
    }

    fn finish(self) -> Matrix {
        let mut out = self.input.clone();
        if self.input.steps() == 1 {
            return out.reordered(&self.order);
        }
        out.set_presence(self.present);
        out
    }
}

/// The best entries so far, the worst of them on top: the same binary heap as Prometheus uses, so that ties fall the same way.
struct Heap {
    largest: bool,
    entries: Vec<(f64, usize)>,
}

impl Heap {
    /// Whether `a` is worse than `b`. NaN is worse than everything, even than NaN.
    fn worse(&self, a: f64, b: f64) -> bool {
        a.is_nan() || if self.largest { a < b } else { a > b }
    }

    fn offer(&mut self, k: usize, value: f64, row: usize) {
        if self.entries.len() < k {
            self.entries.push((value, row));
            self.rise(self.entries.len() - 1);
            return;
        }
        let worst = self.entries[0].0;
        let better = if self.largest { worst < value } else { worst > value };
        if better || (worst.is_nan() && !value.is_nan()) {
            self.entries[0] = (value, row);
            self.sink(0);
        }
    }

    fn rise(&mut self, mut at: usize) {
        while at > 0 {
            let parent = (at - 1) / 2;
            if !self.worse(self.entries[at].0, self.entries[parent].0) {
                break;
            }
            self.entries.swap(at, parent);
            at = parent;
        }
    }

    fn sink(&mut self, mut at: usize) {
        loop {
            let mut child = 2 * at + 1;
            if child >= self.entries.len() {
                break;
            }
            if child + 1 < self.entries.len() && self.worse(self.entries[child + 1].0, self.entries[child].0) {
                child += 1;
            }
            if !self.worse(self.entries[child].0, self.entries[at].0) {
                break;
            }
            self.entries.swap(at, child);
            at = child;
        }
    }

    /// Best first.
    fn sort(&mut self) {
        let largest = self.largest;
        self.entries.sort_by(|a, b| match (a.0.is_nan(), b.0.is_nan()) {
            (true, true) => Ordering::Equal,
            (true, false) => Ordering::Greater,
            (false, true) => Ordering::Less,
            (false, false) => {
                let order = a.0.partial_cmp(&b.0).unwrap_or(Ordering::Equal);
                if largest { order.reverse() } else { order }
            }
        });
    }
}
