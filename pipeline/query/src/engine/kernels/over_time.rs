//! The `*_over_time` functions: one value per window from all samples inside it.

use super::super::windows::Windows;
use super::quantile::{mad, quantile};
use super::sum::{LOCKSTEP, mean, mean_slow, sum, sum_lockstep, sum_slow, variance};

/// The functions that only look at the values of a window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OverTime {
    /// Compensated sum.
    Sum,
    /// Compensated mean.
    Avg,
    /// Smallest value; NaN only when all are.
    Min,
    /// Largest value; NaN only when all are.
    Max,
    /// Number of samples.
    Count,
    /// Newest value.
    Last,
    /// Oldest value.
    First,
    /// 1.
    Present,
    /// Population standard deviation.
    Stddev,
    /// Population variance.
    Stdvar,
    /// Median absolute deviation.
    Mad,
    /// Time of the newest sample, in seconds.
    TsLast,
    /// Time of the oldest sample, in seconds.
    TsFirst,
    /// Time of the newest of the largest values, in seconds.
    TsMax,
    /// Time of the newest of the smallest values, in seconds.
    TsMin,
}

/// Fills `out` for every window that holds a sample; other cells stay as they are. `scratch` is working space.
pub fn over_time(kind: OverTime, times: &[i64], values: &[f64], windows: &Windows, out: &mut [f64], scratch: &mut Vec<f64>) {
    let seconds = |row: usize| times[row] as f64 / 1000.0;
    match kind {
        OverTime::Sum => each(windows, out, |r| sum(&values[r])),
        OverTime::Avg => each(windows, out, |r| mean(&values[r])),
        OverTime::Min => each(windows, out, |r| min(&values[r])),
        OverTime::Max => each(windows, out, |r| max(&values[r])),
        OverTime::Count => each(windows, out, |r| r.len() as f64),
        OverTime::Last => each(windows, out, |r| values[r.end - 1]),
        OverTime::First => each(windows, out, |r| values[r.start]),
        OverTime::Present => each(windows, out, |_| 1.0),
        OverTime::Stddev => each(windows, out, |r| variance(&values[r]).sqrt()),
        OverTime::Stdvar => each(windows, out, |r| variance(&values[r])),
        OverTime::Mad => each(windows, out, |r| mad(&values[r], scratch)),
        OverTime::TsLast => each(windows, out, |r| seconds(r.end - 1)),
        OverTime::TsFirst => each(windows, out, |r| seconds(r.start)),
        OverTime::TsMax => each(windows, out, |r| seconds(r.start + newest(&values[r], |v, best| v >= best))),
        OverTime::TsMin => each(windows, out, |r| seconds(r.start + newest(&values[r], |v, best| v <= best))),
    }
}

/// `quantile_over_time`: `q[i]` is the quantile of step `i`.
pub fn quantile_over_time(q: impl Fn(usize) -> f64, values: &[f64], windows: &Windows, out: &mut [f64], scratch: &mut Vec<f64>) {
    for (i, out) in out.iter_mut().enumerate() {
        let rows = windows.get(i);
        if !rows.is_empty() {
            scratch.clear();
            scratch.extend_from_slice(&values[rows]);
            *out = quantile(q(i), scratch);
        }
    }
}

/// [`OverTime::Sum`] or [`OverTime::Avg`] of [`LOCKSTEP`] series with the same windows; `outs[k]` belongs to `values[k]`.
pub fn sum_or_avg_lockstep(avg: bool, values: [&[f64]; LOCKSTEP], windows: &Windows, outs: &mut [&mut [f64]; LOCKSTEP]) {
    for i in 0..windows.len() {
        let rows = windows.get(i);
        if rows.is_empty() {
            continue;
        }
        let inside = values.map(|v| &v[rows.clone()]);
        let count = rows.len() as f64;
        for ((out, inside), (total, comp)) in outs.iter_mut().zip(inside).zip(sum_lockstep(inside)) {
            out[i] = match ((total + comp).is_finite(), avg) {
                (true, true) => total / count + comp / count,
                (true, false) => total + comp,
                (false, true) => mean_slow(inside.iter().copied()),
                (false, false) => sum_slow(inside),
            };
        }
    }
}

#[inline]
fn each(windows: &Windows, out: &mut [f64], mut value: impl FnMut(std::ops::Range<usize>) -> f64) {
    for (i, out) in out.iter_mut().enumerate() {
        let rows = windows.get(i);
        if !rows.is_empty() {
            *out = value(rows);
        }
    }
}

/// Lanes of [`extreme`]: enough to hide the latency of a comparison and to fill a vector register or two.
const LANES: usize = 8;

/// Largest value that is not NaN, else NaN.
pub fn max(values: &[f64]) -> f64 {
    extreme(values, |v, best| v > best)
}

/// Smallest value that is not NaN, else NaN.
pub fn min(values: &[f64]) -> f64 {
    extreme(values, |v, best| v < best)
}

#[inline(always)]
fn extreme(values: &[f64], better: impl Fn(f64, f64) -> bool + Copy) -> f64 {
    let pick = |best: f64, v: f64| if better(v, best) || best.is_nan() { v } else { best };
    let mut lanes = [f64::NAN; LANES];
    let chunks = values.chunks_exact(LANES);
    let rest = chunks.remainder();
    for chunk in chunks {
        for k in 0..LANES {
            lanes[k] = pick(lanes[k], chunk[k]);
        }
    }
    rest.iter().chain(&lanes).fold(f64::NAN, |best, v| if v.is_nan() { best } else { pick(best, *v) })
}

/// Row of the last value for which `better(value, best so far)` holds.
fn newest(values: &[f64], better: impl Fn(f64, f64) -> bool) -> usize {
    let mut best = 0;
    for (i, &v) in values.iter().enumerate() {
        if better(v, values[best]) || values[best].is_nan() {
            best = i;
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::windows::Spans;
    use proptest::prelude::*;

    fn same(a: f64, b: f64) -> bool {
        a == b || (a.is_nan() && b.is_nan())
    }

    fn run(kind: OverTime, times: &[i64], values: &[f64], windows: &Windows) -> Vec<f64> {
        let mut out = vec![f64::MIN; windows.len()];
        over_time(kind, times, values, windows, &mut out, &mut Vec::new());
        out
    }

    proptest! {
        #[test]
        fn extremes_equal_a_fold(values in prop::collection::vec(prop_oneof![4 => -5f64..5.0, 1 => Just(f64::NAN)], 1..40)) {
            let fold = |better: fn(f64, f64) -> bool| {
                values.iter().fold(values[0], |best, v| if better(*v, best) || best.is_nan() { *v } else { best })
            };
            prop_assert!(same(max(&values), fold(|v, b| v > b)));
            prop_assert!(same(min(&values), fold(|v, b| v < b)));
        }

        #[test]
        fn lockstep_equals_one_by_one(values in prop::collection::vec(-1e3f64..1e3, 40), special in 0usize..40, width in 1i64..20) {
            let times: Vec<i64> = (0..10).collect();
            let mut values = values;
            values[special] = f64::INFINITY;
            let columns: [&[f64]; LOCKSTEP] = std::array::from_fn(|k| &values[k * 10..][..10]);
            let mut windows = Windows::default();
            windows.find(&times, Spans { first_ms: 0, step_ms: 1, width_ms: width, len: 12 });
            for (avg, kind) in [(false, OverTime::Sum), (true, OverTime::Avg)] {
                let mut outs = vec![vec![f64::MIN; 12]; LOCKSTEP];
                let [a, b, c, d] = outs.as_mut_slice() else { unreachable!() };
                sum_or_avg_lockstep(avg, columns, &windows, &mut [a, b, c, d]);
                for k in 0..LOCKSTEP {
                    let want = run(kind, &times, columns[k], &windows);
                    prop_assert!(outs[k].iter().zip(&want).all(|(x, y)| same(*x, *y)));
                }
            }
        }
    }

    #[test]
    fn each_function_on_one_window() {
        let times = [1_000, 2_000, 3_000, 4_000];
        let values = [3.0, 1.0, 3.0, 1.0];
        let mut windows = Windows::default();
        windows.find(&times, Spans { first_ms: 4_000, step_ms: 0, width_ms: 4_000, len: 1 });
        let cases = [
            (OverTime::Sum, 8.0),
            (OverTime::Avg, 2.0),
            (OverTime::Min, 1.0),
            (OverTime::Max, 3.0),
            (OverTime::Count, 4.0),
            (OverTime::Last, 1.0),
            (OverTime::First, 3.0),
            (OverTime::Present, 1.0),
            (OverTime::Stddev, 1.0),
            (OverTime::Stdvar, 1.0),
            (OverTime::Mad, 1.0),
            (OverTime::TsLast, 4.0),
            (OverTime::TsFirst, 1.0),
            (OverTime::TsMax, 3.0),
            (OverTime::TsMin, 4.0),
        ];
        for (kind, want) in cases {
            assert_eq!(run(kind, &times, &values, &windows), [want], "{kind:?}");
        }
    }
}
