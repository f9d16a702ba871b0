//! Functions of classic histograms: buckets (`le`) of one histogram are brought together once, then read column by column.

use super::annotations::Annotations;
use super::control::Control;
use super::error::QueryError;
use super::kernels::quantile::{Bucket, bucket_fraction, bucket_quantile};
use super::labels::{from_key, with};
use super::matrix::{Grid, Mask, Matrix};
use super::number::{open_metrics, parse};
use super::scalar::Column;
use fletch_promql::Span;
use fletch_schemas::Labels;
use hashbrown::HashMap;

/// Label that holds the upper bound of a bucket.
const LE: &str = "le";

/// The buckets of one histogram.
struct Histogram {
    /// Labels without `le`.
    labels: Labels,
    /// Upper bound and row of each bucket, ascending by bound.
    buckets: Vec<(f64, usize)>,
}

/// Brings the buckets together. Rows whose `le` is no number are named in a warning and left out.
fn histograms(input: &Matrix, at: Span, notes: &mut Annotations) -> Vec<Histogram> {
    let mut known: HashMap<Vec<u8>, usize> = HashMap::new();
    let mut found: Vec<Histogram> = Vec::new();
    let mut key = Vec::new();
    for row in 0..input.rows() {
        let labels = input.labels(row);
        let le = labels.get(LE).unwrap_or("");
        let Some(upper) = parse(le) else {
            notes.bad_bucket_label(labels.metric(), le, at);
            continue;
        };
        key_without_le(labels, &mut key);
        let at = match known.get(key.as_slice()) {
            Some(at) => *at,
            None => {
                known.insert(key.clone(), found.len());
                found.push(Histogram { labels: from_key(&key), buckets: Vec::new() });
                found.len() - 1
            }
        };
        found[at].buckets.push((upper, row));
    }
    found.iter_mut().for_each(|h| h.buckets.sort_by(|a, b| a.0.total_cmp(&b.0)));
    found
}

fn key_without_le(labels: &Labels, key: &mut Vec<u8>) {
    key.clear();
    for (name, value) in labels.iter().filter(|(name, _)| *name != LE) {
        for text in [name, value] {
            key.extend_from_slice(text.as_bytes());
            key.push(0xFF);
        }
    }
}

/// Calls `value` for every step of a histogram that has a bucket, with the buckets of that step.
fn each_step(
    histogram: &Histogram,
    input: &Matrix,
    values: &mut [f64],
    mask: &mut Mask,
    scratch: &mut Vec<Bucket>,
    mut value: impl FnMut(usize, &mut Vec<Bucket>) -> f64,
) {
    mask.clear();
    let columns: Vec<_> = histogram.buckets.iter().map(|(upper, row)| (*upper, input.values(*row), input.mask(*row))).collect();
    for (step, out) in values.iter_mut().enumerate() {
        scratch.clear();
        scratch.extend(columns.iter().filter(|c| c.2.has(step)).map(|c| Bucket { upper: c.0, count: c.1[step] }));
        if !scratch.is_empty() {
            mask.set(step);
            *out = value(step, scratch);
        }
    }
}

/// `histogram_quantile(q, input)`. `q_at` and `input_at` are where the arguments stand.
///
/// # Errors
/// [`Control::check`].
pub(crate) fn quantile(
    q: &Column,
    input: &Matrix,
    (q_at, input_at): (Span, Span),
    notes: &mut Annotations,
    control: &Control,
) -> Result<Matrix, QueryError> {
    let grid = input.grid;
    check_quantiles(q, grid, q_at, notes);
    let histograms = histograms(input, input_at, notes);
    let mut out = Matrix::with_capacity(grid, histograms.len());
    quantiles_into(&mut out, q, &histograms, input, |labels| labels.clone(), input_at, notes, control)?;
    Ok(out)
}

/// `histogram_quantiles(input, label, q…)`: one set of rows per quantile, named in `label`.
///
/// # Errors
/// Limits, [`Control::check`].
pub(crate) fn quantiles(
    input: &Matrix,
    label: &str,
    qs: &[(Column, Span)],
    input_at: Span,
    monotonic_at: Span,
    notes: &mut Annotations,
    control: &Control,
) -> Result<Matrix, QueryError> {
    let grid = input.grid;
    qs.iter().for_each(|(q, at)| check_quantiles(q, grid, *at, notes));
    let histograms = histograms(input, input_at, notes);
    control.check_cells(histograms.len() * qs.len(), grid.len)?;
    let mut out = Matrix::with_capacity(grid, histograms.len() * qs.len());
    for (q, _) in qs {
        // The label names one quantile; where it changes from step to step, each of its values has rows of its own.
        let mut named: Vec<f64> = Vec::new();
        q.iter(grid.len).for_each(|v| {
            if !named.iter().any(|n| n.to_bits() == v.to_bits()) {
                named.push(v);
            }
        });
        for value in named {
            let text = open_metrics(value);
            let mut part = Matrix::with_capacity(grid, histograms.len());
            let rename = |labels: &Labels| with(labels, label, &text);
            quantiles_into(&mut part, &Column::Const(value), &histograms, input, rename, monotonic_at, notes, control)?;
            push_where(&mut out, &part, |s| q.get(s).to_bits() == value.to_bits());
        }
    }
    Ok(out)
}

fn push_where(out: &mut Matrix, part: &Matrix, at: impl Fn(usize) -> bool) {
    for row in part.iter() {
        let mut mask = Mask::none(part.steps());
        row.mask.for_each(part.steps(), |s| {
            if at(s) {
                mask.set(s);
            }
        });
        out.push(row.labels.clone(), row.drop_name, row.values, mask.row());
    }
}

#[allow(clippy::too_many_arguments, reason = "the arguments of the PromQL function and what every operator gets")]
fn quantiles_into(
    out: &mut Matrix,
    q: &Column,
    histograms: &[Histogram],
    input: &Matrix,
    rename: impl Fn(&Labels) -> Labels,
    at: Span,
    notes: &mut Annotations,
    control: &Control,
) -> Result<(), QueryError> {
    let grid = input.grid;
    let (mut values, mut mask, mut scratch) = (vec![0.0; grid.len], Mask::none(grid.len), Vec::new());
    for (i, histogram) in histograms.iter().enumerate() {
        control.check_series(i)?;
        each_step(histogram, input, &mut values, &mut mask, &mut scratch, |step, buckets| {
            let (value, forced) = bucket_quantile(q.get(step), buckets);
            if let Some(forced) = forced {
                notes.forced_monotonicity(histogram.labels.metric(), forced, grid.time(step), at);
            }
            value
        });
        out.push(rename(&histogram.labels), true, &values, mask.row());
    }
    Ok(())
}

fn check_quantiles(q: &Column, grid: Grid, at: Span, notes: &mut Annotations) {
    let steps = if matches!(q, Column::Const(_)) { grid.len.min(1) } else { grid.len };
    for q in q.iter(steps).filter(|q| !(0.0..=1.0).contains(q)) {
        notes.invalid_quantile(q, at);
    }
}

/// `histogram_fraction(lower, upper, input)`.
///
/// # Errors
/// [`Control::check`].
pub(crate) fn fraction(
    lower: &Column,
    upper: &Column,
    input: &Matrix,
    input_at: Span,
    notes: &mut Annotations,
    control: &Control,
) -> Result<Matrix, QueryError> {
    let grid = input.grid;
    let histograms = histograms(input, input_at, notes);
    let mut out = Matrix::with_capacity(grid, histograms.len());
    let (mut values, mut mask, mut scratch) = (vec![0.0; grid.len], Mask::none(grid.len), Vec::new());
    for (i, histogram) in histograms.iter().enumerate() {
        control.check_series(i)?;
        each_step(histogram, input, &mut values, &mut mask, &mut scratch, |step, buckets| {
            bucket_fraction(lower.get(step), upper.get(step), buckets)
        });
        out.push(histogram.labels.clone(), true, &values, mask.row());
    }
    Ok(out)
}
