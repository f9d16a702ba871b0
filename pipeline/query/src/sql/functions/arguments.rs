//! Constants as arguments of table functions.

use arrow::array::RecordBatch;
use arrow::datatypes::Schema;
use arrow::record_batch::RecordBatchOptions;
use chrono::DateTime;
use datafusion::catalog::TableFunctionArgs;
use datafusion::common::tree_node::TreeNode;
use datafusion::common::{DFSchema, Result, ScalarValue, plan_err};
use datafusion::logical_expr::{ColumnarValue, Expr};
use std::sync::Arc;

/// Latest and earliest time in seconds that is a time in milliseconds, with room to add durations.
const SECONDS_MAX: f64 = 9_007_199_254_740.0;

/// Arguments of one call.
pub(super) struct Arguments<'a> {
    function: &'static str,
    args: TableFunctionArgs<'a, 'a>,
}

impl<'a> Arguments<'a> {
    /// Arguments of a call of `function`.
    pub(super) fn new<'e: 'a, 's: 'a>(function: &'static str, args: TableFunctionArgs<'e, 's>) -> Self {
        Self { function, args: TableFunctionArgs::new(args.exprs(), args.session()) }
    }

    /// The arguments as written.
    pub(super) fn exprs(&self) -> &'a [Expr] {
        self.args.exprs()
    }

    /// A text.
    pub(super) fn text(&self, name: &str, expr: &Expr) -> Result<String> {
        match self.constant(name, expr)?.try_as_str() {
            Some(Some(text)) => Ok(text.to_owned()),
            _ => plan_err!("{}(): `{name}` must be a text in single quotes", self.function),
        }
    }

    /// A time in milliseconds: a timestamp, a date, RFC 3339 text, or seconds since 1970 as a number.
    pub(super) fn time_ms(&self, name: &str, expr: &Expr) -> Result<i64> {
        let value = self.constant(name, expr)?;
        let ms = match &value {
            ScalarValue::TimestampSecond(Some(v), _) => v.checked_mul(1_000),
            ScalarValue::TimestampMillisecond(Some(v), _) => Some(*v),
            ScalarValue::TimestampMicrosecond(Some(v), _) => Some(v.div_euclid(1_000)),
            ScalarValue::TimestampNanosecond(Some(v), _) => Some(v.div_euclid(1_000_000)),
            ScalarValue::Date32(Some(day)) => Some(i64::from(*day) * 86_400_000),
            other => match other.try_as_str() {
                Some(Some(text)) => time_of_text(text),
                _ => number(other).and_then(seconds_ms),
            },
        };
        match ms {
            Some(ms) => Ok(ms),
            None => plan_err!("{}(): `{name}` must be a timestamp, RFC 3339 text or seconds since 1970, not {value}", self.function),
        }
    }

    /// A duration in milliseconds: an interval, text such as `30s`, or a number of seconds.
    pub(super) fn duration_ms(&self, name: &str, expr: &Expr) -> Result<i64> {
        let value = self.constant(name, expr)?;
        let ms = match &value {
            ScalarValue::IntervalMonthDayNano(_) | ScalarValue::IntervalDayTime(_) => interval_ms(&value),
            ScalarValue::DurationSecond(_) | ScalarValue::DurationMillisecond(_) => interval_ms(&value),
            ScalarValue::DurationMicrosecond(_) | ScalarValue::DurationNanosecond(_) => interval_ms(&value),
            other => match other.try_as_str() {
                Some(Some(text)) => fletch_promql::parse_duration(text).ok().or_else(|| text.parse().ok().and_then(seconds_ms)),
                _ => number(other).and_then(seconds_ms),
            },
        };
        match ms {
            Some(ms) if ms > 0 => Ok(ms),
            _ => plan_err!(
                "{}(): `{name}` must be a positive interval, text such as '30s' or a number of seconds, not {value}",
                self.function
            ),
        }
    }

    fn constant(&self, name: &str, expr: &Expr) -> Result<ScalarValue> {
        if expr.exists(|e| Ok(matches!(e, Expr::Placeholder(_))))? {
            return plan_err!("{}(): parameters cannot be used here; write the value of `{name}`", self.function);
        }
        let schema = DFSchema::empty();
        let physical = match self.args.session().create_physical_expr(expr.clone(), &schema) {
            Ok(physical) => physical,
            Err(e) => return plan_err!("{}(): `{name}` must be a constant: {}", self.function, e.strip_backtrace()),
        };
        let options = RecordBatchOptions::new().with_row_count(Some(1));
        let row = RecordBatch::try_new_with_options(Arc::new(Schema::empty()), Vec::new(), &options)?;
        match physical.evaluate(&row)? {
            ColumnarValue::Scalar(value) => Ok(value),
            ColumnarValue::Array(array) => ScalarValue::try_from_array(&array, 0),
        }
    }
}

fn time_of_text(text: &str) -> Option<i64> {
    match DateTime::parse_from_rfc3339(text) {
        Ok(time) => Some(time.timestamp_millis()),
        Err(_) => text.parse().ok().and_then(seconds_ms),
    }
}

/// Milliseconds of an interval without months. The size of a window has the same rules.
fn interval_ms(value: &ScalarValue) -> Option<i64> {
    fletch_udfs::tumble::size_ns(value).ok().map(|ns| ns / 1_000_000)
}

fn number(value: &ScalarValue) -> Option<f64> {
    match value {
        ScalarValue::Int64(Some(v)) => Some(*v as f64),
        ScalarValue::UInt64(Some(v)) => Some(*v as f64),
        ScalarValue::Int32(Some(v)) => Some(f64::from(*v)),
        ScalarValue::Float64(Some(v)) => Some(*v),
        _ => None,
    }
}

fn seconds_ms(seconds: f64) -> Option<i64> {
    (seconds.is_finite() && seconds.abs() <= SECONDS_MAX).then(|| (seconds * 1_000.0).round() as i64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use datafusion::prelude::{SessionContext, lit};

    fn with<T>(test: impl FnOnce(&Arguments<'_>) -> T) -> T {
        let state = SessionContext::new().state();
        test(&Arguments::new("f", TableFunctionArgs::new(&[], &state)))
    }

    #[test]
    fn times_and_durations_have_several_forms() {
        with(|a| {
            for (expr, ms) in [
                (lit(1.5), 1_500),
                (lit(2_i64), 2_000),
                (lit("1970-01-01T00:00:03Z"), 3_000),
                (lit("-4"), -4_000),
                (lit(ScalarValue::TimestampNanosecond(Some(5_000_000_001), None)), 5_000),
                (lit(1_i64) + lit(1_i64), 2_000),
            ] {
                assert_eq!(a.time_ms("t", &expr).ok(), Some(ms), "{expr}");
            }
            for (expr, ms) in [(lit("30s"), 30_000), (lit("1m30s"), 90_000), (lit(15_i64), 15_000), (lit("0.5"), 500)] {
                assert_eq!(a.duration_ms("step", &expr).ok(), Some(ms), "{expr}");
            }
        });
    }

    #[test]
    fn what_is_not_a_constant_is_refused_by_name() {
        with(|a| {
            for bad in
                [datafusion::prelude::col("x"), datafusion::logical_expr::expr_fn::placeholder("$1"), lit("soon"), lit(f64::NAN), lit(true)]
            {
                let error = a.time_ms("start", &bad).expect_err("no time").to_string();
                assert!(error.contains("f()") && error.contains("`start`"), "{bad}: {error}");
            }
            for bad in [lit(0_i64), lit("-1s"), lit("x")] {
                assert!(a.duration_ms("step", &bad).is_err(), "{bad}");
            }
        });
    }
}
