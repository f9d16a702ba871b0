//! `rate`, `increase`, `delta`, `irate`, `idelta`, `resets`, `changes`, and the `anchored` and `smoothed` forms.
//!
//! ```text
//!        range start                        range end
//!  ────────(──────•────────•────────•────────]──▶        slope between first and last sample,
//!          │←────→│                 │←──────→│           extrapolated to an edge that is closer than 1.1 average
//!          to_start                  to_end              distances, else by half an average distance
//! ```
//!
//! Everything that depends on times alone ([`Geometry`]) is computed once for all series that share them. Counter resets of a series are
//! listed once; a window adds the values before the resets inside it, in order, so no cumulative error builds up.

use super::super::matrix::Mask;
use super::super::windows::{Spans, Windows};

/// What extrapolation needs to know about each window; the same for every series with these times.
#[derive(Debug, Default, Clone)]
pub struct Geometry {
    sampled_s: Vec<f64>,
    to_start_s: Vec<f64>,
    to_end_s: Vec<f64>,
}

impl Geometry {
    /// Fills the columns for all windows; windows with fewer than two samples get zeros.
    pub fn find(&mut self, times: &[i64], windows: &Windows, spans: Spans) {
        self.find_with(times, windows, spans, |i| windows.get(i).len() as f64);
    }

    /// The same where `times` do not say how many samples a window has.
    pub fn find_with(&mut self, times: &[i64], windows: &Windows, spans: Spans, samples: impl Fn(usize) -> f64) {
        for column in [&mut self.sampled_s, &mut self.to_start_s, &mut self.to_end_s] {
            column.clear();
            column.reserve(windows.len());
        }
        for i in 0..windows.len() {
            let rows = windows.get(i);
            let (mut sampled, mut to_start, mut to_end) = (0.0, 0.0, 0.0);
            if rows.len() >= 2 {
                let (first, last) = (times[rows.start], times[rows.end - 1]);
                let end = spans.end(i);
                sampled = (last - first) as f64 / 1000.0;
                let average = sampled / (samples(i) - 1.0);
                let limit = average * 1.1;
                to_start = (first - (end - spans.width_ms)) as f64 / 1000.0;
                to_end = (end - last) as f64 / 1000.0;
                to_start = if to_start >= limit { average / 2.0 } else { to_start };
                to_end = if to_end >= limit { average / 2.0 } else { to_end };
            }
            self.sampled_s.push(sampled);
            self.to_start_s.push(to_start);
            self.to_end_s.push(to_end);
        }
    }
}

/// Which member of the family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RateKind {
    /// Per second, counter resets corrected.
    Rate,
    /// Over the range, counter resets corrected.
    Increase,
    /// Over the range, of a gauge.
    Delta,
}

impl RateKind {
    fn is_counter(self) -> bool {
        self != Self::Delta
    }
}

/// Rows where a counter fell: `values[row] < values[row - 1]`.
pub fn list_resets(values: &[f64], resets: &mut Vec<u32>) {
    resets.clear();
    // Looking for any reset first keeps the usual case a plain vector loop.
    if !values.windows(2).fold(false, |any, pair| any | (pair[1] < pair[0])) {
        return;
    }
    resets.extend((1..values.len()).filter(|&i| values[i] < values[i - 1]).map(|i| i as u32));
}

/// `rate`, `increase` or `delta` of one series for every window with two samples. `resets` comes from [`list_resets`] and is empty for
/// `delta`.
pub fn extrapolated(
    kind: RateKind,
    values: &[f64],
    resets: &[u32],
    windows: &Windows,
    geometry: &Geometry,
    width_ms: i64,
    out: &mut [f64],
) {
    // Prometheus multiplies by a factor that is divided by the range; dividing by one leaves a number as it is.
    let divisor = if kind == RateKind::Rate { width_ms as f64 / 1000.0 } else { 1.0 };
    let counter = kind.is_counter();
    let mut reset_at = 0;
    for (i, out) in out.iter_mut().enumerate() {
        let rows = windows.get(i);
        if rows.len() < 2 {
            continue;
        }
        let first = values[rows.start];
        let mut result = values[rows.end - 1] - first;
        if !resets.is_empty() {
            while reset_at < resets.len() && resets[reset_at] as usize <= rows.start {
                reset_at += 1;
            }
            let inside = resets[reset_at..].iter().take_while(|r| (**r as usize) < rows.end);
            result = inside.fold(result, |sum, r| sum + values[*r as usize - 1]);
        }
        let sampled = geometry.sampled_s[i];
        let mut to_start = geometry.to_start_s[i];
        if counter && result > 0.0 && first >= 0.0 {
            let to_zero = sampled * (first / result);
            to_start = if to_zero < to_start { to_zero } else { to_start };
        }
        let factor = (sampled + to_start + geometry.to_end_s[i]) / sampled / divisor;
        *out = result * factor;
    }
}

/// `irate` (`per_second`) or `idelta`: the last two samples of each window.
pub fn instant(per_second: bool, times: &[i64], values: &[f64], windows: &Windows, out: &mut [f64]) {
    for (i, out) in out.iter_mut().enumerate() {
        let rows = windows.get(i);
        if rows.len() < 2 {
            continue;
        }
        let (a, b) = (rows.end - 2, rows.end - 1);
        let reset = per_second && values[b] < values[a];
        let result = if reset { values[b] } else { values[b] - values[a] };
        *out = if per_second { result / ((times[b] - times[a]) as f64 / 1000.0) } else { result };
    }
}

/// For each row how many rows up to it satisfy `counts(previous, this)`; a window's count is then one subtraction.
pub fn running_count(values: &[f64], counts: impl Fn(f64, f64) -> bool, running: &mut Vec<u32>) {
    running.clear();
    running.reserve(values.len());
    let mut total = 0;
    let mut previous = f64::NAN;
    for (i, &value) in values.iter().enumerate() {
        total += u32::from(i > 0 && counts(previous, value));
        previous = value;
        running.push(total);
    }
}

/// Whether a value is another one for `changes`: any two NaN are the same.
pub fn is_change(previous: f64, value: f64) -> bool {
    value != previous && !(value.is_nan() && previous.is_nan())
}

/// Whether a value is a counter reset.
pub fn is_reset(previous: f64, value: f64) -> bool {
    value < previous
}

/// How `anchored` and `smoothed` treat one window: the samples around it and the values on its edges.
#[derive(Debug, Clone, Copy)]
pub struct Edges {
    /// Start of the range (exclusive).
    pub start_ms: i64,
    /// End of the range (inclusive).
    pub end_ms: i64,
    /// Interpolate on the edges instead of carrying samples to them.
    pub smoothed: bool,
}

/// Rows that stand for a window under [`Edges`]: `first` is the last sample at or before the start (or the first one after it), `last`
/// the last sample in the window (smoothed: the first one at or after its end). `None` when nothing lies after the start, or everything
/// after the end.
fn edge_rows(times: &[i64], edges: Edges) -> Option<(usize, usize)> {
    let mut last = times.len().checked_sub(1)?;
    let first = times[..last].partition_point(|t| *t <= edges.start_ms).saturating_sub(1);
    if edges.smoothed {
        last = times[..last].partition_point(|t| *t < edges.end_ms);
    }
    (times[last] > edges.start_ms && times[first] <= edges.end_ms).then_some((first, last))
}

/// Linear value at `at_ms` between rows `a` and `a + 1`; a counter that fell between them counts from zero.
fn interpolate(times: &[i64], values: &[f64], a: usize, at_ms: i64, counter: bool) -> f64 {
    let from = if counter && values[a + 1] < values[a] { 0.0 } else { values[a] };
    from + (values[a + 1] - from) * (at_ms - times[a]) as f64 / (times[a + 1] - times[a]) as f64
}

/// Linear value at `at_ms` between rows `a` and `a + 1` of a gauge.
pub fn interpolate_at(times: &[i64], values: &[f64], a: usize, at_ms: i64) -> f64 {
    interpolate(times, values, a, at_ms, false)
}

/// Values on the two edges.
fn edge_values(times: &[i64], values: &[f64], rows: (usize, usize), edges: Edges, counter: bool) -> (f64, f64) {
    let (first, last) = rows;
    let left = if edges.smoothed && times[first] < edges.start_ms && first + 1 < times.len() {
        interpolate(times, values, first, edges.start_ms, counter)
    } else {
        values[first]
    };
    let right = if edges.smoothed && last > 0 && times[last] > edges.end_ms {
        interpolate(times, values, last - 1, edges.end_ms, counter)
    } else {
        values[last]
    };
    (left, right)
}

/// Rows strictly inside the range.
fn inner_rows(times: &[i64], rows: (usize, usize), edges: Edges) -> std::ops::Range<usize> {
    let (first, last) = rows;
    let from = if times[first] <= edges.start_ms { first + 1 } else { first };
    let to = if times[last] >= edges.end_ms { last } else { last + 1 };
    from..to.max(from)
}

/// `rate`, `increase`, `delta` of one anchored or smoothed window. The slices hold the samples from one look-back before the range's
/// start to its end (smoothed: one look-back after it).
pub fn extended(kind: RateKind, times: &[i64], values: &[f64], edges: Edges) -> Option<f64> {
    let rows = edge_rows(times, edges)?;
    let (left, right) = edge_values(times, values, rows, edges, kind.is_counter());
    let mut result = right - left;
    if kind.is_counter() {
        let mut previous = left;
        for &value in &values[inner_rows(times, rows, edges)] {
            result += if value < previous { previous } else { 0.0 };
            previous = value;
        }
        result += if right < previous { previous } else { 0.0 };
    }
    if kind == RateKind::Rate {
        result /= (edges.end_ms - edges.start_ms) as f64 / 1000.0;
    }
    Some(result)
}

/// First row that `resets` and `changes` look at in an anchored window; `None` when nothing lies after its start.
pub fn anchored_first(times: &[i64], edges: Edges) -> Option<usize> {
    edge_rows(times, Edges { smoothed: false, ..edges }).map(|(first, _)| first)
}

/// An anchored or smoothed window as samples: one on each edge, and those inside.
pub fn extend_samples(times: &[i64], values: &[f64], edges: Edges) -> Option<(Vec<i64>, Vec<f64>)> {
    let rows = edge_rows(times, edges)?;
    let (left, right) = edge_values(times, values, rows, edges, false);
    let inner = inner_rows(times, rows, edges);
    let mut out = (vec![edges.start_ms], vec![left]);
    out.0.extend_from_slice(&times[inner.clone()]);
    out.1.extend_from_slice(&values[inner]);
    out.0.push(edges.end_ms);
    out.1.push(right);
    Some(out)
}

/// Marks the windows that hold at least `samples` samples.
pub fn mark(windows: &Windows, samples: u32, mask: &mut Mask) {
    mask.clear();
    for (i, (lo, hi)) in windows.lo.iter().zip(&windows.hi).enumerate() {
        if hi - lo >= samples {
            mask.set(i);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// `rate` and its relatives written down from their definition, one window at a time.
    fn naive(kind: RateKind, times: &[i64], values: &[f64], start: i64, end: i64) -> Option<f64> {
        let inside: Vec<(i64, f64)> = times.iter().copied().zip(values.iter().copied()).filter(|(t, _)| *t > start && *t <= end).collect();
        if inside.len() < 2 {
            return None;
        }
        let (first, last) = (inside[0], inside[inside.len() - 1]);
        let mut result = last.1 - first.1;
        if kind.is_counter() {
            for pair in inside.windows(2) {
                if pair[1].1 < pair[0].1 {
                    result += pair[0].1;
                }
            }
        }
        let mut to_start = (first.0 - start) as f64 / 1000.0;
        let mut to_end = (end - last.0) as f64 / 1000.0;
        let sampled = (last.0 - first.0) as f64 / 1000.0;
        let average = sampled / (inside.len() - 1) as f64;
        if to_start >= average * 1.1 {
            to_start = average / 2.0;
        }
        if kind.is_counter() && result > 0.0 && first.1 >= 0.0 {
            to_start = to_start.min(sampled * (first.1 / result));
        }
        if to_end >= average * 1.1 {
            to_end = average / 2.0;
        }
        let mut factor = (sampled + to_start + to_end) / sampled;
        if kind == RateKind::Rate {
            factor /= (end - start) as f64 / 1000.0;
        }
        Some(result * factor)
    }

    fn series() -> impl Strategy<Value = (Vec<i64>, Vec<f64>)> {
        prop::collection::vec((1i64..40_000, prop_oneof![8 => 0f64..1e6, 1 => Just(0.0), 1 => Just(f64::NAN)]), 0..60).prop_map(|rows| {
            let times = rows.iter().scan(0, |t, r| {
                *t += r.0;
                Some(*t)
            });
            (times.collect(), rows.iter().map(|r| r.1).collect())
        })
    }

    proptest! {
        #[test]
        fn extrapolation_equals_the_definition((times, values) in series(), width in 1i64..300_000, step in 1i64..60_000, first in 0i64..100_000) {
            let spans = Spans { first_ms: first, step_ms: step, width_ms: width, len: 20 };
            let (mut windows, mut geometry, mut resets) = (Windows::default(), Geometry::default(), Vec::new());
            windows.find(&times, spans);
            geometry.find(&times, &windows, spans);
            for kind in [RateKind::Rate, RateKind::Increase, RateKind::Delta] {
                resets.clear();
                if kind.is_counter() {
                    list_resets(&values, &mut resets);
                }
                let mut out = vec![0.0; spans.len];
                extrapolated(kind, &values, &resets, &windows, &geometry, width, &mut out);
                for (i, got) in out.iter().enumerate() {
                    let want = naive(kind, &times, &values, spans.end(i) - width, spans.end(i));
                    prop_assert_eq!(want.is_some(), windows.get(i).len() >= 2);
                    if let Some(want) = want {
                        prop_assert!(got.to_bits() == want.to_bits() || (got.is_nan() && want.is_nan()), "{:?} {} {} {}", kind, i, got, want);
                    }
                }
            }
        }

        #[test]
        fn running_counts_equal_a_rescan((_times, values) in series(), lo in 0usize..60, len in 1usize..60) {
            let lo = lo.min(values.len());
            let hi = (lo + len).min(values.len());
            prop_assume!(hi > lo);
            let mut running = Vec::new();
            for counts in [is_change as fn(f64, f64) -> bool, is_reset] {
                running_count(&values, counts, &mut running);
                let want = values[lo..hi].windows(2).filter(|p| counts(p[0], p[1])).count() as u32;
                prop_assert_eq!(running[hi - 1] - running[lo], want);
            }
        }
    }

    #[test]
    fn edges_carry_or_interpolate() {
        let times = [0, 10_000, 20_000, 30_000];
        let values = [0.0, 10.0, 5.0, 15.0];
        let anchored = Edges { start_ms: 5_000, end_ms: 25_000, smoothed: false };
        assert_eq!(extended(RateKind::Increase, &times[..3], &values[..3], anchored), Some(15.0));
        assert_eq!(extended(RateKind::Delta, &times[..3], &values[..3], anchored), Some(5.0));
        let smoothed = Edges { smoothed: true, ..anchored };
        assert_eq!(extended(RateKind::Increase, &times, &values, smoothed), Some(15.0));
        assert_eq!(extended(RateKind::Increase, &times[..1], &values[..1], anchored), None);
        assert_eq!(extended(RateKind::Rate, &times[3..], &values[3..], smoothed), None);
    }
}
