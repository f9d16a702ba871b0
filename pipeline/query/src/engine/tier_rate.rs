//! `rate` and `increase` over rows of a tier: the same formula as over samples.
//!
//! ```text
//!  row      first ── increase ── last, count      ──▶   curve   first • (peak •) • last      counts  n
//!                                                       result from the curve, average distance from the counts
//! ```
//!
//! A curve has the first and last sample of each window and its increase, so all that the formula takes from samples is there, except how
//! many there were: that comes from the counts.

use super::control::Control;
use super::error::QueryError;
use super::kernels::rate::{self, Geometry, RateKind};
use super::matrix::{Grid, Mask, Matrix};
use super::range::RangeInput;
use super::series::{RowsMut, without_stale};
use super::windows::Windows;
use fletch_schemas::{Labels, SeriesSet};
use std::collections::HashMap;

/// Applies the formula to curves (`input`) and counts of the same series.
///
/// # Errors
/// Limits and [`Control::check`].
pub(crate) fn rate_of_rows(
    kind: RateKind,
    input: &RangeInput<'_>,
    counts: &SeriesSet,
    grid: Grid,
    control: &Control,
) -> Result<Matrix, QueryError> {
    let (set, spans) = (input.set.as_ref(), input.spans);
    let of: HashMap<&Labels, usize> = counts.labels.iter().zip(0..).collect();
    let mut rows = RowsMut::new(grid, set.len(), control)?;
    let (mut windows, mut counted, mut geometry) = (Windows::default(), Windows::default(), Geometry::default());
    let (mut resets, mut mask, mut sums) = (Vec::new(), Mask::none(grid.len), Vec::new());
    for i in 0..set.len() {
        control.check_series(i)?;
        // A series without counts has stale markers only.
        let Some(&at) = of.get(&set.labels[i]) else { continue };
        let (times, values) = without_stale(set.times(i), set.values(i));
        windows.find(&times, spans);
        counted.find(counts.times(at), spans);
        running_sums(counts.values(at), &mut sums);
        let samples = |step: usize| {
            let rows = counted.get(step);
            sums[rows.end.max(rows.start)] - sums[rows.start]
        };
        mask.clear();
        (0..grid.len).filter(|step| samples(*step) >= 2.0).for_each(|step| mask.set(step));
        geometry.find_with(&times, &windows, spans, samples);
        rate::list_resets(&values, &mut resets);
        rate::extrapolated(kind, &values, &resets, &windows, &geometry, spans.width_ms, rows.row(i));
        rows.set_mask(i, &mask);
    }
    Ok(rows.finish(set, vec![true; set.len()]))
}

/// `sums[i]` is the sum of everything before `i`. Counts are whole numbers, so differences are exact.
fn running_sums(values: &[f64], sums: &mut Vec<f64>) {
    sums.clear();
    sums.push(0.0);
    let mut total = 0.0;
    sums.extend(values.iter().map(|value| {
        total += value;
        total
    }));
}
