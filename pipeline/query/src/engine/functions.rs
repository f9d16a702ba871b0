//! Functions of one instant vector, value by value: mathematics, dates, rounding, clamping.

use super::matrix::Matrix;
use super::scalar::Column;
use chrono::{DateTime, Datelike, Timelike, Utc};
use fletch_promql::functions::FunctionId;

/// The mathematical functions of one number; `None` for others.
pub(crate) fn math(id: FunctionId) -> Option<fn(f64) -> f64> {
    use FunctionId as F;
    Some(match id {
        F::Abs => f64::abs,
        F::Ceil => f64::ceil,
        F::Floor => f64::floor,
        F::Exp => f64::exp,
        F::Sqrt => f64::sqrt,
        F::Ln => f64::ln,
        F::Log2 => f64::log2,
        F::Log10 => f64::log10,
        F::Sin => f64::sin,
        F::Cos => f64::cos,
        F::Tan => f64::tan,
        F::Asin => f64::asin,
        F::Acos => f64::acos,
        F::Atan => f64::atan,
        F::Sinh => f64::sinh,
        F::Cosh => f64::cosh,
        F::Tanh => f64::tanh,
        F::Asinh => f64::asinh,
        F::Acosh => f64::acosh,
        F::Atanh => f64::atanh,
        F::Rad => |v| v * std::f64::consts::PI / 180.0,
        F::Deg => |v| v * 180.0 / std::f64::consts::PI,
        F::Sgn => sign,
        _ => return None,
    })
}

/// -1, 1, or the number itself when it is a zero or NaN.
fn sign(v: f64) -> f64 {
    if v < 0.0 {
        -1.0
    } else if v > 0.0 {
        1.0
    } else {
        v
    }
}

/// The functions of a date, given as seconds since 1970 (UTC); `None` for others.
pub(crate) fn date(id: FunctionId) -> Option<fn(f64) -> f64> {
    use FunctionId as F;
    Some(match id {
        F::DaysInMonth => |v| of_date(v, |t| f64::from(days_in_month(t))),
        F::DayOfMonth => |v| of_date(v, |t| f64::from(t.day())),
        F::DayOfWeek => |v| of_date(v, |t| f64::from(t.weekday().num_days_from_sunday())),
        F::DayOfYear => |v| of_date(v, |t| f64::from(t.ordinal())),
        F::Hour => |v| of_date(v, |t| f64::from(t.hour())),
        F::Minute => |v| of_date(v, |t| f64::from(t.minute())),
        F::Month => |v| of_date(v, |t| f64::from(t.month())),
        F::Year => |v| of_date(v, |t| f64::from(t.year())),
        _ => return None,
    })
}

/// NaN for times that no calendar reaches.
fn of_date(seconds: f64, part: impl Fn(DateTime<Utc>) -> f64) -> f64 {
    DateTime::from_timestamp(seconds as i64, 0).map_or(f64::NAN, part)
}

fn days_in_month(t: DateTime<Utc>) -> u8 {
    match t.month() {
        2 if t.date_naive().leap_year() => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Applies `f` to every cell; the rows lose their names at the end.
pub(crate) fn map(mut input: Matrix, f: impl Fn(f64) -> f64) -> Matrix {
    input.all_values_mut().iter_mut().for_each(|v| *v = f(*v));
    input.drop_all_names();
    input
}

/// Applies `f` to every cell and its step.
pub(crate) fn map_steps(mut input: Matrix, f: impl Fn(f64, usize) -> f64) -> Matrix {
    let steps = input.steps().max(1);
    for row in input.all_values_mut().chunks_exact_mut(steps) {
        row.iter_mut().enumerate().for_each(|(s, v)| *v = f(*v, s));
    }
    input.drop_all_names();
    input
}

/// `round`: to the nearest multiple, halves up.
pub(crate) fn round(input: Matrix, to: &Column) -> Matrix {
    // Multiplying with the inverse loses less than dividing by a fraction would.
    map_steps(input, |v, s| {
        let inverse = 1.0 / to.get(s);
        (v * inverse + 0.5).floor() / inverse
    })
}

/// `clamp`, `clamp_min`, `clamp_max`; steps whose bounds contradict each other have no result.
pub(crate) fn clamp(mut input: Matrix, low: &Column, high: &Column) -> Matrix {
    let steps = input.steps();
    let empty = |s: usize| high.get(s) < low.get(s);
    if (0..steps).any(empty) {
        let mut present = Vec::new();
        for row in 0..input.rows() {
            let mut mask = super::matrix::Mask::none(steps);
            mask.copy_from(input.mask(row));
            (0..steps).filter(|s| empty(*s)).for_each(|s| mask.unset(s));
            present.extend_from_slice(mask.words());
        }
        input.set_presence(present);
    }
    map_steps(input, |v, s| go_max(low.get(s), go_min(high.get(s), v)))
}

/// The larger of two; NaN when either is.
pub(crate) fn go_max(a: f64, b: f64) -> f64 {
    if a.is_nan() || b.is_nan() { f64::NAN } else { a.max(b) }
}

/// The smaller of two; NaN when either is.
pub(crate) fn go_min(a: f64, b: f64) -> f64 {
    if a.is_nan() || b.is_nan() { f64::NAN } else { a.min(b) }
}

/// `scalar`: the only row's value, NaN where there is none or more than one.
pub(crate) fn to_scalar(input: &Matrix) -> Column {
    let mut values = vec![f64::NAN; input.steps()];
    let mut seen = vec![false; input.steps()];
    for row in input.iter() {
        row.mask.for_each(values.len(), |s| {
            values[s] = if seen[s] { f64::NAN } else { row.values[s] };
            seen[s] = true;
        });
    }
    Column::Steps(values)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates() {
        let day = |id| date(id).expect("a date function")(1_136_239_445.0);
        use FunctionId as F;
        let parts = [F::Year, F::Month, F::DayOfMonth, F::Hour, F::Minute, F::DayOfWeek, F::DayOfYear, F::DaysInMonth].map(day);
        assert_eq!(parts, [2006.0, 1.0, 2.0, 22.0, 4.0, 1.0, 2.0, 31.0]);
        assert!(date(F::Year).expect("a date function")(1e300).is_nan());
    }

    #[test]
    fn extremes_spread_nan() {
        assert!(go_max(f64::NAN, 1.0).is_nan() && go_min(1.0, f64::NAN).is_nan());
        assert_eq!((go_max(1.0, 2.0), go_min(1.0, 2.0)), (2.0, 1.0));
    }
}
