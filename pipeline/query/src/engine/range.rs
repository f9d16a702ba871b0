//! Functions over range vectors: from the samples of each series to one value per window.
//!
//! ```text
//!  group of series with equal times ──▶ windows, extrapolation geometry, presence   (once per group)
//!                                   └─▶ kernel over the values                      (once per series, four at a time for sums)
//! ```

use super::control::Control;
use super::error::QueryError;
use super::kernels::over_time::{OverTime, over_time, quantile_over_time, sum_or_avg_lockstep};
use super::kernels::rate::{self, Edges, Geometry, RateKind};
use super::kernels::regression::{double_exponential, line};
use super::kernels::sum::LOCKSTEP;
use super::matrix::{Grid, Mask, Matrix};
use super::scalar::Column;
use super::series::{Groups, RowsMut, has_stale, without_stale};
use super::windows::{Spans, Windows, seek};
use fletch_promql::ast::EdgeMode;
use fletch_promql::functions::FunctionId;
use fletch_schemas::SeriesSet;
use std::borrow::Cow;

/// A range vector ready for a function.
#[derive(Debug)]
pub(crate) struct RangeInput<'a> {
    /// The samples.
    pub(crate) set: Cow<'a, SeriesSet>,
    /// Whether a series has lost its name already (inside a subquery); empty when none has.
    pub(crate) dropped: Vec<bool>,
    /// The windows.
    pub(crate) spans: Spans,
    /// `anchored` or `smoothed`.
    pub(crate) edges: EdgeMode,
    /// How far those reach beyond the window.
    pub(crate) lookback_ms: i64,
}

/// A range function with its parameters.
#[derive(Debug)]
pub(crate) enum Kernel {
    /// `rate`, `increase`, `delta`.
    Rate(RateKind),
    /// `irate` (per second) or `idelta`.
    Instant(bool),
    /// `resets`.
    Resets,
    /// `changes`.
    Changes,
    /// `deriv`.
    Deriv,
    /// `predict_linear` by so many seconds.
    Predict(Column),
    /// `double_exponential_smoothing` with smoothing and trend factor.
    Smooth(Column, Column),
    /// `quantile_over_time`.
    Quantile(Column),
    /// The functions without a parameter.
    Over(OverTime),
}

impl Kernel {
    /// The kernel of a function; `params` are its scalar arguments in order. `None` when it is not a range function.
    pub(crate) fn of(id: FunctionId, params: Vec<Column>) -> Option<Self> {
        use FunctionId as F;
        let mut params = params.into_iter();
        Some(match id {
            F::Rate => Self::Rate(RateKind::Rate),
            F::Increase => Self::Rate(RateKind::Increase),
            F::Delta => Self::Rate(RateKind::Delta),
            F::Irate => Self::Instant(true),
            F::Idelta => Self::Instant(false),
            F::Resets => Self::Resets,
            F::Changes => Self::Changes,
            F::Deriv => Self::Deriv,
            F::PredictLinear => Self::Predict(params.next()?),
            F::DoubleExponentialSmoothing => Self::Smooth(params.next()?, params.next()?),
            F::QuantileOverTime => Self::Quantile(params.next()?),
            F::SumOverTime => Self::Over(OverTime::Sum),
            F::AvgOverTime => Self::Over(OverTime::Avg),
            F::MinOverTime => Self::Over(OverTime::Min),
            F::MaxOverTime => Self::Over(OverTime::Max),
            F::CountOverTime => Self::Over(OverTime::Count),
            F::LastOverTime => Self::Over(OverTime::Last),
            F::FirstOverTime => Self::Over(OverTime::First),
            F::PresentOverTime | F::AbsentOverTime => Self::Over(OverTime::Present),
            F::StddevOverTime => Self::Over(OverTime::Stddev),
            F::StdvarOverTime => Self::Over(OverTime::Stdvar),
            F::MadOverTime => Self::Over(OverTime::Mad),
            F::TsOfLastOverTime => Self::Over(OverTime::TsLast),
            F::TsOfFirstOverTime => Self::Over(OverTime::TsFirst),
            F::TsOfMaxOverTime => Self::Over(OverTime::TsMax),
            F::TsOfMinOverTime => Self::Over(OverTime::TsMin),
            _ => return None,
        })
    }

    /// Fewest samples of a window that give a value.
    fn samples_min(&self) -> u32 {
        match self {
            Self::Rate(_) | Self::Instant(_) | Self::Deriv | Self::Predict(_) | Self::Smooth(..) => 2,
            Self::Resets | Self::Changes | Self::Quantile(_) | Self::Over(_) => 1,
        }
    }

    /// Whether the result is still the metric: `last_over_time` and `first_over_time` only choose a sample.
    fn keeps_name(&self) -> bool {
        matches!(self, Self::Over(OverTime::Last | OverTime::First))
    }

    fn lockstep(&self) -> Option<bool> {
        match self {
            Self::Over(OverTime::Sum) => Some(false),
            Self::Over(OverTime::Avg) => Some(true),
            _ => None,
        }
    }
}

/// Buffers that all series of a call share.
#[derive(Default)]
struct Scratch {
    windows: Windows,
    geometry: Geometry,
    counts: Vec<u32>,
    floats: Vec<f64>,
}

/// Applies `kernel` to every series on `grid`, whose times are those of the answer.
///
/// # Errors
/// Limits, [`Control::check`], and factors of `double_exponential_smoothing` outside of (0, 1).
pub(crate) fn apply(kernel: &Kernel, input: &RangeInput<'_>, grid: Grid, control: &Control) -> Result<Matrix, QueryError> {
    let set = input.set.as_ref();
    let mut rows = RowsMut::new(grid, set.len(), control)?;
    if input.edges == EdgeMode::Plain {
        plain(kernel, input, grid, &mut rows, control)?;
    } else {
        with_edges(kernel, input, grid, &mut rows, control)?;
    }
    let mut dropped = vec![!kernel.keeps_name(); set.len()];
    input.dropped.iter().zip(&mut dropped).for_each(|(inner, own)| *own |= inner);
    Ok(rows.finish(set, dropped))
}

fn plain(kernel: &Kernel, input: &RangeInput<'_>, grid: Grid, rows: &mut RowsMut, control: &Control) -> Result<(), QueryError> {
    let set = input.set.as_ref();
    let mut scratch = Scratch::default();
    let mut mask = Mask::none(grid.len);
    let mut clean = Vec::new();
    for group in Groups::of(set).iter() {
        clean.clear();
        for &i in group {
            if has_stale(set.values(i as usize)) {
                control.check()?;
                let (times, values) = without_stale(set.times(i as usize), set.values(i as usize));
                prepare(kernel, &times, input.spans, &mut scratch, &mut mask);
                run(kernel, &times, &values, input.spans, grid, &mut scratch, &mask, rows.row(i as usize))?;
                rows.set_mask(i as usize, &mask);
            } else {
                clean.push(i as usize);
            }
        }
        let Some(&first) = clean.first() else { continue };
        prepare(kernel, set.times(first), input.spans, &mut scratch, &mut mask);
        if !mask.is_empty() {
            run_group(kernel, input, grid, &clean, &mut scratch, &mask, rows, control)?;
        }
    }
    Ok(())
}

/// Computes what depends on times alone.
fn prepare(kernel: &Kernel, times: &[i64], spans: Spans, scratch: &mut Scratch, mask: &mut Mask) {
    scratch.windows.find(times, spans);
    rate::mark(&scratch.windows, kernel.samples_min(), mask);
    if matches!(kernel, Kernel::Rate(_)) {
        scratch.geometry.find(times, &scratch.windows, spans);
    }
}

/// All series of a group that have no stale markers.
#[allow(clippy::too_many_arguments, reason = "the loop's state; a struct would only rename it")]
fn run_group(
    kernel: &Kernel,
    input: &RangeInput<'_>,
    grid: Grid,
    group: &[usize],
    scratch: &mut Scratch,
    mask: &Mask,
    rows: &mut RowsMut,
    control: &Control,
) -> Result<(), QueryError> {
    let set = input.set.as_ref();
    let mut rest = group;
    if let Some(avg) = kernel.lockstep() {
        let fours = group.chunks_exact(LOCKSTEP);
        rest = fours.remainder();
        for (n, four) in fours.enumerate() {
            control.check_series(n)?;
            run_lockstep(avg, set, four, &scratch.windows, mask, rows);
        }
    }
    for &i in rest {
        // A sort per window can take long for a single series: unlike elsewhere each one looks at the clock.
        control.check()?;
        run(kernel, set.times(i), set.values(i), input.spans, grid, scratch, mask, rows.row(i))?;
        rows.set_mask(i, mask);
    }
    Ok(())
}

fn run_lockstep(avg: bool, set: &SeriesSet, four: &[usize], windows: &Windows, mask: &Mask, rows: &mut RowsMut) {
    let values: [&[f64]; LOCKSTEP] = std::array::from_fn(|k| set.values(four[k]));
    let steps = windows.len();
    // The series of a group ascend, but only `split_at_mut` convinces the compiler that their rows do not overlap.
    let mut tail = rows.values.as_mut_slice();
    let mut taken = 0;
    let mut outs = std::array::from_fn(|k| {
        let start = four[k] * steps;
        let (_, after) = std::mem::take(&mut tail).split_at_mut(start - taken);
        let (row, after) = after.split_at_mut(steps);
        tail = after;
        taken = start + steps;
        row
    });
    sum_or_avg_lockstep(avg, values, windows, &mut outs);
    four.iter().for_each(|i| rows.set_mask(*i, mask));
}

/// One series.
#[allow(clippy::too_many_arguments, reason = "the loop's state; a struct would only rename it")]
fn run(
    kernel: &Kernel,
    times: &[i64],
    values: &[f64],
    spans: Spans,
    grid: Grid,
    scratch: &mut Scratch,
    mask: &Mask,
    out: &mut [f64],
) -> Result<(), QueryError> {
    let Scratch { windows, geometry, counts, floats } = scratch;
    match kernel {
        Kernel::Rate(kind) => {
            counts.clear();
            if *kind != RateKind::Delta {
                rate::list_resets(values, counts);
            }
            rate::extrapolated(*kind, values, counts, windows, geometry, spans.width_ms, out);
        }
        Kernel::Instant(per_second) => rate::instant(*per_second, times, values, windows, out),
        Kernel::Resets => count(values, rate::is_reset, windows, counts, mask, out),
        Kernel::Changes => count(values, rate::is_change, windows, counts, mask, out),
        Kernel::Deriv => mask.row().for_each(grid.len, |s| {
            let rows = windows.get(s);
            out[s] = line(&times[rows.clone()], &values[rows.clone()], times[rows.start]).0;
        }),
        Kernel::Predict(by) => mask.row().for_each(grid.len, |s| {
            let rows = windows.get(s);
            let (slope, intercept) = line(&times[rows.clone()], &values[rows], grid.time(s));
            out[s] = slope * by.get(s) + intercept;
        }),
        Kernel::Smooth(sf, tf) => smooth(values, sf, tf, windows, mask, out)?,
        Kernel::Quantile(q) => quantile_over_time(|s| q.get(s), values, windows, out, floats),
        Kernel::Over(kind) => over_time(*kind, times, values, windows, out, floats),
    }
    Ok(())
}

fn count(values: &[f64], counts: impl Fn(f64, f64) -> bool, windows: &Windows, running: &mut Vec<u32>, mask: &Mask, out: &mut [f64]) {
    rate::running_count(values, counts, running);
    mask.row().for_each(out.len(), |s| {
        let rows = windows.get(s);
        out[s] = f64::from(running[rows.end - 1] - running[rows.start]);
    });
}

fn smooth(values: &[f64], sf: &Column, tf: &Column, windows: &Windows, mask: &Mask, out: &mut [f64]) -> Result<(), QueryError> {
    for (s, out) in out.iter_mut().enumerate() {
        let rows = windows.get(s);
        if rows.is_empty() {
            continue;
        }
        for (name, short, factor) in [("smoothing", "sf", sf.get(s)), ("trend", "tf", tf.get(s))] {
            // Prometheus refuses factors at and outside of the bounds, but not NaN.
            if factor <= 0.0 || factor >= 1.0 {
                return Err(QueryError::Execution(format!("invalid {name} factor. Expected: 0 < {short} < 1, got: {factor:.6}")));
            }
        }
        if mask.has(s) {
            *out = double_exponential(&values[rows], sf.get(s), tf.get(s));
        }
    }
    Ok(())
}

/// Series by series and window by window: `anchored` and `smoothed` look at samples outside of their windows.
fn with_edges(kernel: &Kernel, input: &RangeInput<'_>, grid: Grid, rows: &mut RowsMut, control: &Control) -> Result<(), QueryError> {
    let set = input.set.as_ref();
    let mut mask = Mask::none(grid.len);
    for i in 0..set.len() {
        control.check()?;
        let (times, values) = without_stale(set.times(i), set.values(i));
        mask.clear();
        for (s, out) in rows.row(i).iter_mut().enumerate() {
            let (edges, inside) = input.edge_window(s, &times);
            if let Some(value) = edge_value(kernel, &times[inside.clone()], &values[inside], edges) {
                *out = value;
                mask.set(s);
            }
        }
        rows.set_mask(i, &mask);
    }
    Ok(())
}

impl RangeInput<'_> {
    /// The window of a step, and the rows of the samples that `anchored` or `smoothed` may look at.
    pub(crate) fn edge_window(&self, step: usize, times: &[i64]) -> (Edges, std::ops::Range<usize>) {
        let end_ms = self.spans.end(step);
        let start_ms = end_ms.saturating_sub(self.spans.width_ms);
        let smoothed = self.edges == EdgeMode::Smoothed;
        let until = if smoothed { end_ms.saturating_add(self.lookback_ms) } else { end_ms };
        (Edges { start_ms, end_ms, smoothed }, seek(times, start_ms.saturating_sub(self.lookback_ms))..seek(times, until))
    }
}

fn edge_value(kernel: &Kernel, times: &[i64], values: &[f64], edges: Edges) -> Option<f64> {
    let counts: fn(f64, f64) -> bool = match kernel {
        Kernel::Rate(kind) => return rate::extended(*kind, times, values, edges),
        Kernel::Resets => rate::is_reset,
        Kernel::Changes => rate::is_change,
        _ => return None,
    };
    let first = rate::anchored_first(times, edges)?;
    Some(values[first..].windows(2).filter(|p| counts(p[0], p[1])).count() as f64)
}

/// Functions that may follow `anchored`, as the error message lists them.
const ANCHORED: [FunctionId; 5] = [FunctionId::Changes, FunctionId::Delta, FunctionId::Increase, FunctionId::Rate, FunctionId::Resets];

/// Functions that may follow `smoothed`.
const SMOOTHED: [FunctionId; 3] = [FunctionId::Delta, FunctionId::Increase, FunctionId::Rate];

/// Whether the function may be used with the selector's edge modifier.
///
/// # Errors
/// [`QueryError::Execution`], listing those that may.
pub(crate) fn check_edges(edges: EdgeMode, id: FunctionId, name: &str) -> Result<(), QueryError> {
    let (word, allowed): (_, &[FunctionId]) = match edges {
        EdgeMode::Plain => return Ok(()),
        EdgeMode::Anchored => ("anchored", &ANCHORED),
        EdgeMode::Smoothed => ("smoothed", &SMOOTHED),
    };
    if allowed.contains(&id) {
        return Ok(());
    }
    let names: Vec<&str> = fletch_promql::functions::FUNCTIONS.iter().filter(|f| allowed.contains(&f.id)).map(|f| f.name).collect();
    Err(QueryError::Execution(format!("{word} modifier can only be used with: {} - not with {name}", names.join(", "))))
}
