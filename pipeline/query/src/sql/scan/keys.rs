//! What the conditions of a statement say about the key columns: the metrics, the times and the days it can touch.
//!
//! # Invariants
//! - A [`KeyRange`] is never narrower than the conditions: a row that satisfies all of them lies inside. Conditions that are not understood
//!   only make it wider.
//! - [`time_bound`] is exact: sample times are whole milliseconds, so a bound in microseconds is rounded to the millisecond that means the same.
//!
//! # Not here
//! Conditions on `value` (they never go below the deduplication) and on labels ([`super::metric`]).

use arrow::datatypes::{DataType, TimeUnit};
use datafusion::common::{Column, ScalarValue};
use datafusion::logical_expr::expr::InList;
use datafusion::logical_expr::utils::split_conjunction;
use datafusion::logical_expr::{Between, BinaryExpr, Cast, Expr, Operator};
use fletch_schemas::{date_of_ms, day_start_ms};
use fletch_storage::delta::FileEntry;
use std::collections::BTreeSet;

/// Earliest time that a column of microseconds can hold, in milliseconds.
const MIN_MS: i64 = i64::MIN / 1_000;
/// Latest time that a column of microseconds can hold, in milliseconds.
const MAX_MS: i64 = i64::MAX / 1_000;
const DAY_MS: i64 = 86_400_000;
/// A hundred thousand years around 1970: far outside of what is accepted, well inside of what a date holds.
const FAR_DAYS: i128 = 36_525_000;
/// Stands for an open end: more nanoseconds than a time in milliseconds can have.
const OPEN: i128 = 1 << 100;

/// The metrics and times that a scan may not leave out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct KeyRange {
    /// `None`: every metric.
    pub(crate) metrics: Option<BTreeSet<String>>,
    /// Earliest time, milliseconds, included.
    pub(crate) min_ms: i64,
    /// Latest time, milliseconds, included.
    pub(crate) max_ms: i64,
}

impl Default for KeyRange {
    fn default() -> Self {
        Self { metrics: None, min_ms: MIN_MS, max_ms: MAX_MS }
    }
}

impl KeyRange {
    /// What all of these conditions together leave.
    pub(crate) fn of(filters: &[Expr]) -> Self {
        let mut range = Self::default();
        for filter in filters {
            for part in split_conjunction(filter) {
                range.narrow(part);
            }
        }
        range
    }

    /// The single metric that is left, if there is only one.
    pub(crate) fn only_metric(&self) -> Option<&str> {
        let metrics = self.metrics.as_ref()?;
        if metrics.len() == 1 { metrics.first().map(String::as_str) } else { None }
    }

    /// Whether nothing can satisfy the conditions.
    pub(crate) fn is_empty(&self) -> bool {
        self.min_ms > self.max_ms || self.metrics.as_ref().is_some_and(BTreeSet::is_empty)
    }

    /// Whether a file can hold rows of it.
    pub(crate) fn may_touch(&self, file: &FileEntry) -> bool {
        let day = day_start_ms(file.date);
        let in_time = day <= self.max_ms && self.min_ms < day + DAY_MS;
        let metric = self.metrics.as_ref().is_none_or(|all| all.iter().any(|m| file.keys.may_hold_metric(m)));
        in_time && metric && file.keys.may_hold_times(self.min_ms, self.max_ms)
    }

    /// First and last day, for tables that have no times. Clamped to days that exist.
    pub(crate) fn dates(&self) -> (i32, i32) {
        let far = i64::try_from(FAR_DAYS).expect("a small constant") * DAY_MS;
        (date_of_ms(self.min_ms.clamp(-far, far)), date_of_ms(self.max_ms.clamp(-far, far)))
    }

    fn narrow(&mut self, part: &Expr) {
        if let Some((min, max)) = time_bound(part).or_else(|| date_bound(part)) {
            self.min_ms = self.min_ms.max(min);
            self.max_ms = self.max_ms.min(max);
        } else if let Some(names) = equal_texts(part, "metric") {
            let left = match self.metrics.take() {
                None => names,
                Some(before) => before.intersection(&names).cloned().collect(),
            };
            self.metrics = Some(left);
        }
    }
}

/// The times, in milliseconds, both ends included, that satisfy a comparison of `time` with a constant. Exact; `None` for anything else.
pub(crate) fn time_bound(part: &Expr) -> Option<(i64, i64)> {
    const MS: i128 = 1_000_000;
    let (min, max) = bound(part, "time", nanos)?;
    let clamp = |ms: i128| i64::try_from(ms.clamp(i128::from(MIN_MS), i128::from(MAX_MS))).expect("clamped to 64 bits");
    // An open end is far outside of what a time can be, so that rounding it does no harm.
    Some((clamp(min.div_euclid(MS) + i128::from(min.rem_euclid(MS) != 0)), clamp(max.div_euclid(MS))))
}

/// The times of the days that satisfy a comparison of `date` with a constant.
fn date_bound(part: &Expr) -> Option<(i64, i64)> {
    let (min, max) = bound(part, "date", |value| match value {
        ScalarValue::Date32(Some(day)) => Some(i128::from(*day)),
        _ => None,
    })?;
    let start = |day: i128| i64::try_from(day.clamp(-FAR_DAYS, FAR_DAYS)).expect("clamped to 64 bits") * DAY_MS;
    Some((start(min), start(max) + DAY_MS - 1))
}

/// Integers, both ends included, that satisfy a comparison of column `name` with a constant that `read` understands.
fn bound(part: &Expr, name: &str, read: impl Fn(&ScalarValue) -> Option<i128>) -> Option<(i128, i128)> {
    match part {
        Expr::BinaryExpr(BinaryExpr { left, op, right }) => {
            let (op, value) = match (is_key(left, name), is_key(right, name)) {
                (true, false) => (*op, literal(right)?),
                (false, true) => (op.swap()?, literal(left)?),
                _ => return None,
            };
            let value = read(value)?;
            match op {
                Operator::Eq => Some((value, value)),
                Operator::GtEq => Some((value, OPEN)),
                Operator::Gt => Some((value + 1, OPEN)),
                Operator::LtEq => Some((-OPEN, value)),
                Operator::Lt => Some((-OPEN, value - 1)),
                _ => None,
            }
        }
        Expr::Between(Between { expr, negated: false, low, high }) if is_key(expr, name) => {
            Some((read(literal(low)?)?, read(literal(high)?)?))
        }
        _ => None,
    }
}

/// Whether `expr` is the column, or the column in a finer unit: comparisons with `now()` are made in nanoseconds.
fn is_key(expr: &Expr, name: &str) -> bool {
    match expr {
        Expr::Cast(Cast { expr, field }) => {
            matches!(field.data_type(), DataType::Timestamp(TimeUnit::Nanosecond, _)) && is_column(expr, name)
        }
        other => is_column(other, name),
    }
}

/// The texts of which column `name` must be one: `name = 'a'`, `name IN ('a', 'b')`, and either of these joined by OR.
pub(crate) fn equal_texts(part: &Expr, name: &str) -> Option<BTreeSet<String>> {
    match part {
        Expr::BinaryExpr(BinaryExpr { left, op: Operator::Eq, right }) => {
            let value = match (is_column(left, name), is_column(right, name)) {
                (true, false) => right,
                (false, true) => left,
                _ => return None,
            };
            Some(BTreeSet::from([text(value)?.to_owned()]))
        }
        Expr::BinaryExpr(BinaryExpr { left, op: Operator::Or, right }) => {
            let mut all = equal_texts(left, name)?;
            all.append(&mut equal_texts(right, name)?);
            Some(all)
        }
        Expr::InList(InList { expr, list, negated: false }) if is_column(expr, name) => {
            list.iter().map(|e| text(e).map(str::to_owned)).collect()
        }
        _ => None,
    }
}

/// Whether `expr` is the plain column `name`.
pub(crate) fn is_column(expr: &Expr, name: &str) -> bool {
    matches!(expr, Expr::Column(Column { name: column, .. }) if column == name)
}

/// The constant that `expr` is.
pub(crate) fn literal(expr: &Expr) -> Option<&ScalarValue> {
    match expr {
        Expr::Literal(value, _) => Some(value),
        _ => None,
    }
}

/// The text that `expr` is a constant of.
pub(crate) fn text(expr: &Expr) -> Option<&str> {
    literal(expr)?.try_as_str().flatten()
}

/// Nanoseconds since the Unix epoch of a timestamp constant.
fn nanos(value: &ScalarValue) -> Option<i128> {
    match value {
        ScalarValue::TimestampSecond(Some(v), _) => Some(i128::from(*v) * 1_000_000_000),
        ScalarValue::TimestampMillisecond(Some(v), _) => Some(i128::from(*v) * 1_000_000),
        ScalarValue::TimestampMicrosecond(Some(v), _) => Some(i128::from(*v) * 1_000),
        ScalarValue::TimestampNanosecond(Some(v), _) => Some(i128::from(*v)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use datafusion::prelude::{col, lit};

    fn at(us: i64) -> Expr {
        lit(ScalarValue::TimestampMicrosecond(Some(us), Some("UTC".into())))
    }

    #[test]
    fn times_are_rounded_to_the_millisecond_that_means_the_same() {
        let cases = [
            (col("time").gt_eq(at(1_000)), (1, MAX_MS)),
            (col("time").gt_eq(at(1_001)), (2, MAX_MS)),
            (col("time").gt(at(1_000)), (2, MAX_MS)),
            (col("time").gt(at(999)), (1, MAX_MS)),
            (col("time").lt(at(2_000)), (MIN_MS, 1)),
            (col("time").lt(at(2_001)), (MIN_MS, 2)),
            (col("time").lt_eq(at(-1)), (MIN_MS, -1)),
            (at(5_000).gt(col("time")), (MIN_MS, 4)),
            (col("time").between(at(1), at(3_999)), (1, 3)),
            (col("time").eq(at(3_000)), (3, 3)),
        ];
        for (expr, expected) in cases {
            assert_eq!(time_bound(&expr), Some(expected), "{expr}");
        }
        let finer = Expr::Cast(Cast::new(Box::new(col("time")), DataType::Timestamp(TimeUnit::Nanosecond, Some("UTC".into()))));
        let ns = lit(ScalarValue::TimestampNanosecond(Some(1_000_001), Some("UTC".into())));
        assert_eq!(time_bound(&finer.gt(ns)), Some((2, MAX_MS)));
        assert_eq!(time_bound(&col("time").not_eq(at(1))), None);
        assert_eq!(time_bound(&col("value").eq(at(1))), None);
    }

    #[test]
    fn conditions_narrow_together_and_unknown_ones_do_nothing() {
        let day = |d| lit(ScalarValue::Date32(Some(d)));
        let range = KeyRange::of(&[
            col("metric").in_list(vec![lit("a"), lit("b")], false).and(col("date").eq(day(1))),
            col("metric").eq(lit("b")).or(col("metric").eq(lit("c"))),
            col("value").gt(lit(80.0)),
            col("metric").not_eq(lit("b")),
        ]);
        assert_eq!(range.only_metric(), Some("b"));
        assert_eq!((range.min_ms, range.max_ms), (86_400_000, 172_799_999));
        assert_eq!(range.dates(), (1, 1));
        assert!(!range.is_empty());
        assert!(KeyRange::of(&[col("metric").eq(lit("a")), col("metric").eq(lit("b"))]).is_empty());
        assert_eq!(KeyRange::of(&[col("metric").eq(lit("a")).or(col("value").gt(lit(1.0)))]), KeyRange::default());
    }
}
