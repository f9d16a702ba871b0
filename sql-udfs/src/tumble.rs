//! `tumble(time, size)`: the end of the window that a row falls in.
//!
//! ```text
//!   size = 60 s      (0, 60]        (60, 120]
//!                 ──┴────────────┴────────────┴──▶ time
//!   time    0   1 … 60 │ 61 … 120 │ 121
//!   tumble  0   60 … 60│120 … 120 │ 180
//! ```
//!
//! # Invariants
//! - Windows are aligned to the Unix epoch, open on the left, closed on the right, and named by their end. A time on an edge belongs to
//!   the window that ends there.
//! - The result has the type of `time`, zone included; NULL stays NULL.
//!
//! # When it fails
//! A size that is not a positive, fixed number of nanoseconds (months, zero, negative, finer than the unit of `time`) is refused by name; so is
//! a window whose end does not fit the type. `hop` exists only to say that it is not supported.

use arrow::array::{Array, ArrayRef, AsArray, PrimitiveArray};
use arrow::datatypes::{
    ArrowTimestampType, DataType, IntervalUnit, TimeUnit, TimestampMicrosecondType, TimestampMillisecondType, TimestampNanosecondType,
    TimestampSecondType,
};
use arrow::error::ArrowError;
use datafusion::common::{Result, ScalarValue, exec_err, plan_err};
use datafusion::logical_expr::sort_properties::{ExprProperties, SortProperties};
use datafusion::logical_expr::{ColumnarValue, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDFImpl, Signature, Volatility};
use std::sync::Arc;

/// The end of the window `(end − size, end]` that holds `time`, both in one unit. `None` when it does not fit an `i64`.
///
/// `size` must be positive.
pub fn window_end(time: i64, size: i64) -> Option<i64> {
    debug_assert!(size > 0, "the size of a window is checked before it gets here");
    match time.rem_euclid(size) {
        0 => Some(time),
        past => time.checked_add(size - past),
    }
}

/// Window ends of a whole timestamp column.
///
/// # Shapes and units
/// `times`: a timestamp array of any unit, nulls allowed. `size_ns`: nanoseconds, positive. Returns an array of the same type and length.
///
/// # Errors
/// When the size is not positive or not a multiple of the unit of `times`, when an end does not fit, or when `times` is no timestamp.
pub fn ends(times: &ArrayRef, size_ns: i64) -> Result<ArrayRef, ArrowError> {
    match times.data_type() {
        DataType::Timestamp(TimeUnit::Second, _) => ends_of::<TimestampSecondType>(times, size_ns, 1_000_000_000),
        DataType::Timestamp(TimeUnit::Millisecond, _) => ends_of::<TimestampMillisecondType>(times, size_ns, 1_000_000),
        DataType::Timestamp(TimeUnit::Microsecond, _) => ends_of::<TimestampMicrosecondType>(times, size_ns, 1_000),
        DataType::Timestamp(TimeUnit::Nanosecond, _) => ends_of::<TimestampNanosecondType>(times, size_ns, 1),
        other => Err(ArrowError::InvalidArgumentError(format!("tumble() needs a timestamp, not {other}"))),
    }
}

fn ends_of<T: ArrowTimestampType>(times: &ArrayRef, size_ns: i64, unit_ns: i64) -> Result<ArrayRef, ArrowError> {
    if size_ns <= 0 || size_ns % unit_ns != 0 {
        let text = format!("tumble(): the window size must be a positive multiple of {unit_ns} ns, the unit of `time`, not {size_ns} ns");
        return Err(ArrowError::InvalidArgumentError(text));
    }
    let size = size_ns / unit_ns;
    let too_late = |t: i64| ArrowError::InvalidArgumentError(format!("tumble(): the window of {t} ends after the last timestamp"));
    let ends: PrimitiveArray<T> = times.as_primitive::<T>().try_unary(|t| window_end(t, size).ok_or_else(|| too_late(t)))?;
    let zone = match times.data_type() {
        DataType::Timestamp(_, zone) => zone.clone(),
        _ => None,
    };
    Ok(Arc::new(ends.with_timezone_opt(zone)))
}

/// Nanoseconds of a window size as SQL gives it: an interval of days and smaller units, or a duration.
///
/// # Errors
/// When it is NULL, holds months, or does not fit.
pub fn size_ns(size: &ScalarValue) -> Result<i64> {
    let fixed = match size {
        ScalarValue::IntervalMonthDayNano(Some(v)) if v.months != 0 => {
            return plan_err!("tumble(): a window of months has no fixed length; use days");
        }
        ScalarValue::IntervalMonthDayNano(Some(v)) => days_ns(v.days).and_then(|days| days.checked_add(v.nanoseconds)),
        ScalarValue::IntervalDayTime(Some(v)) => days_ns(v.days).and_then(|days| days.checked_add(i64::from(v.milliseconds) * 1_000_000)),
        ScalarValue::DurationSecond(Some(v)) => v.checked_mul(1_000_000_000),
        ScalarValue::DurationMillisecond(Some(v)) => v.checked_mul(1_000_000),
        ScalarValue::DurationMicrosecond(Some(v)) => v.checked_mul(1_000),
        ScalarValue::DurationNanosecond(Some(v)) => Some(*v),
        other => return plan_err!("tumble(): the window size must be an interval such as INTERVAL '1 minute', not {other}"),
    };
    match fixed {
        Some(ns) if ns > 0 => Ok(ns),
        _ => plan_err!("tumble(): the window size must be positive and shorter than 292 years, not {size}"),
    }
}

fn days_ns(days: i32) -> Option<i64> {
    i64::from(days).checked_mul(86_400_000_000_000)
}

/// The SQL function `tumble(time, size)`; see the module.
#[derive(Debug, PartialEq, Eq, Hash)]
pub struct Tumble {
    signature: Signature,
}

impl Default for Tumble {
    fn default() -> Self {
        Self { signature: Signature::user_defined(Volatility::Immutable) }
    }
}

impl ScalarUDFImpl for Tumble {
    fn name(&self) -> &str {
        "tumble"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn coerce_types(&self, arg_types: &[DataType]) -> Result<Vec<DataType>> {
        let [time, size] = arg_types else {
            return plan_err!("tumble() takes two arguments, tumble(time, size), not {}", arg_types.len());
        };
        let time = match time {
            DataType::Timestamp(..) => time.clone(),
            DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View | DataType::Date32 | DataType::Date64 | DataType::Null => {
                DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()))
            }
            other => return plan_err!("tumble() needs a timestamp as its first argument, not {other}"),
        };
        let size = match size {
            DataType::Interval(IntervalUnit::MonthDayNano | IntervalUnit::DayTime) | DataType::Duration(_) => size.clone(),
            DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View | DataType::Interval(_) => {
                DataType::Interval(IntervalUnit::MonthDayNano)
            }
            other => return plan_err!("tumble() needs an interval as its second argument, not {other}"),
        };
        Ok(vec![time, size])
    }

    fn return_type(&self, arg_types: &[DataType]) -> Result<DataType> {
        Ok(arg_types[0].clone())
    }

    fn return_field_from_args(&self, args: ReturnFieldArgs<'_>) -> Result<arrow::datatypes::FieldRef> {
        // A wrong size is an error of the statement, not of some row of it.
        if let Some(Some(size)) = args.scalar_arguments.get(1) {
            size_ns(size)?;
        }
        let time = &args.arg_fields[0];
        Ok(Arc::new(arrow::datatypes::Field::new(self.name(), time.data_type().clone(), time.is_nullable())))
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let [time, size] = args.args.as_slice() else {
            return exec_err!("tumble() takes two arguments, not {}", args.args.len());
        };
        let ColumnarValue::Scalar(size) = size else {
            return exec_err!("tumble(): the window size must be a constant");
        };
        let size = size_ns(size)?;
        match time {
            ColumnarValue::Array(times) => Ok(ColumnarValue::Array(ends(times, size)?)),
            ColumnarValue::Scalar(time) => {
                let ends = ends(&time.to_array()?, size)?;
                Ok(ColumnarValue::Scalar(ScalarValue::try_from_array(&ends, 0)?))
            }
        }
    }

    fn output_ordering(&self, inputs: &[ExprProperties]) -> Result<SortProperties> {
        // It never falls when the time does not fall, so rows sorted by time are sorted by window.
        match inputs {
            [time, size] if size.sort_properties == SortProperties::Singleton => Ok(time.sort_properties),
            _ => Ok(SortProperties::Unordered),
        }
    }
}

/// The SQL function `hop(time, slide, size)`: refused by name, because one row belongs to several windows.
#[derive(Debug, PartialEq, Eq, Hash)]
pub struct Hop {
    signature: Signature,
}

impl Default for Hop {
    fn default() -> Self {
        Self { signature: Signature::user_defined(Volatility::Immutable) }
    }
}

const HOP_REFUSED: &str = "hop() is not supported; use tumble(time, size)";

impl ScalarUDFImpl for Hop {
    fn name(&self) -> &str {
        "hop"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn coerce_types(&self, _arg_types: &[DataType]) -> Result<Vec<DataType>> {
        plan_err!("{HOP_REFUSED}")
    }

    fn return_type(&self, _arg_types: &[DataType]) -> Result<DataType> {
        plan_err!("{HOP_REFUSED}")
    }

    fn invoke_with_args(&self, _args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        plan_err!("{HOP_REFUSED}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::TimestampMicrosecondArray;
    use arrow::datatypes::IntervalMonthDayNano;

    const MIN_US: i64 = 60_000_000;
    const MIN_NS: i64 = 60_000_000_000;

    #[test]
    fn a_window_is_open_on_the_left_and_closed_on_the_right() {
        for (time, end) in [(0, 0), (1, 60), (59, 60), (60, 60), (61, 120), (-1, 0), (-60, -60), (-61, -60)] {
            assert_eq!(window_end(time, 60), Some(end), "{time}");
        }
        assert_eq!(window_end(i64::MAX, 60), None);
    }

    #[test]
    fn columns_keep_their_type_and_nulls() {
        let times = TimestampMicrosecondArray::from(vec![Some(1), None, Some(MIN_US), Some(MIN_US + 1)]).with_timezone("UTC");
        let expected = TimestampMicrosecondArray::from(vec![Some(MIN_US), None, Some(MIN_US), Some(2 * MIN_US)]).with_timezone("UTC");
        let times: ArrayRef = Arc::new(times);
        let got = ends(&times, MIN_NS).expect("a valid size");
        assert_eq!(got.as_primitive::<TimestampMicrosecondType>(), &expected);
        assert_eq!(got.data_type(), times.data_type());
    }

    #[test]
    fn sizes_are_checked_by_name() {
        let interval = |months, days, nanos| ScalarValue::IntervalMonthDayNano(Some(IntervalMonthDayNano::new(months, days, nanos)));
        assert_eq!(size_ns(&interval(0, 1, 5)).ok(), Some(86_400_000_000_005));
        assert_eq!(size_ns(&ScalarValue::DurationSecond(Some(60))).ok(), Some(MIN_NS));
        for (size, word) in [
            (interval(1, 0, 0), "months"),
            (interval(0, 0, 0), "positive"),
            (interval(0, 0, -1), "positive"),
            (interval(0, i32::MAX, 0), "292 years"),
            (ScalarValue::Null, "interval"),
        ] {
            let error = size_ns(&size).expect_err("a size that is no window").to_string();
            assert!(error.contains(word), "{size}: {error}");
        }
        let times: ArrayRef = Arc::new(TimestampMicrosecondArray::from(vec![1]));
        assert!(ends(&times, 1_500).is_err(), "finer than a microsecond");
        assert!(ends(&(Arc::new(TimestampMicrosecondArray::from(vec![i64::MAX])) as ArrayRef), MIN_NS).is_err(), "past the end");
    }
}
