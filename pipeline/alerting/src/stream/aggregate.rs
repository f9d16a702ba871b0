//! The six aggregates of a window, kept together: one partial state per group and window serves every aggregate of a rule.
//!
//! # Invariants
//! - Results equal DataFusion's over the same rows: NULL (the stale marker) is skipped by all but `count(*)`; minimum and maximum order NaN above
//!   everything; over no values they are NULL and counts are 0.
//! - `last_value(value ORDER BY time)` is the value at the greatest time, NULL included.

use arrow::array::{ArrayRef, Float64Array, Int64Array};
use fletch_schemas::is_stale;
use std::sync::Arc;

/// Which aggregate of `value`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Aggregate {
    CountRows,
    Count,
    Sum,
    Avg,
    Min,
    Max,
    Last,
}

/// Partial state of one group in one window.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct State {
    rows: i64,
    count: i64,
    sum: f64,
    min: f64,
    max: f64,
    last_time: i64,
    last: Option<f64>,
}

impl Default for State {
    fn default() -> Self {
        Self { rows: 0, count: 0, sum: 0.0, min: f64::NAN, max: f64::NEG_INFINITY, last_time: i64::MIN, last: None }
    }
}

impl State {
    /// Counts one sample in.
    pub(super) fn add(&mut self, time_ms: i64, value: f64) {
        self.rows += 1;
        let value = (!is_stale(value)).then_some(value);
        if time_ms >= self.last_time {
            self.last_time = time_ms;
            self.last = value;
        }
        let Some(value) = value else { return };
        if self.count == 0 {
            (self.min, self.max) = (value, value);
        } else {
            self.min = if value.total_cmp(&self.min).is_lt() { value } else { self.min };
            self.max = if value.total_cmp(&self.max).is_gt() { value } else { self.max };
        }
        self.count += 1;
        self.sum += value;
    }

    fn float(&self, aggregate: Aggregate) -> Option<f64> {
        let some = |value| (self.count > 0).then_some(value);
        match aggregate {
            Aggregate::Sum => some(self.sum),
            Aggregate::Avg => some(self.sum / self.count as f64),
            Aggregate::Min => some(self.min),
            Aggregate::Max => some(self.max),
            Aggregate::Last => self.last,
            Aggregate::CountRows | Aggregate::Count => None,
        }
    }
}

/// One aggregate over the states of all groups, as the column that DataFusion would give.
pub(super) fn column(aggregate: Aggregate, states: &[State]) -> ArrayRef {
    match aggregate {
        Aggregate::CountRows => Arc::new(Int64Array::from_iter_values(states.iter().map(|s| s.rows))),
        Aggregate::Count => Arc::new(Int64Array::from_iter_values(states.iter().map(|s| s.count))),
        _ => Arc::new(Float64Array::from_iter(states.iter().map(|s| s.float(aggregate)))),
    }
}
