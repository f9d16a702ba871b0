//! Which samples fall into the window of each step.
//!
//! A window is open on the left and closed on the right. Both bounds of all windows come from one search, [`upper_bounds`], which guesses
//! the next bound from the last advance and corrects the guess: about 3 ns per step on regular data, never worse than linear in the
//! number of samples, and no binary search per step.
//!
//! ```text
//!  times   10 20 30 40 50 60          range 25, step 20, first step at 30
//!  step 0  (5, 30]   rows [0, 3)      hi = bounds at 30, 50, 70;  lo = bounds at 5, 25, 45
//!  step 1  (25, 50]  rows [2, 5)
//! ```

/// For each `i < n` the number of `times` that are `<= first_ms + i * step_ms`. `times` ascend strictly, `step_ms >= 0`.
pub fn upper_bounds(times: &[i64], first_ms: i64, step_ms: i64, n: usize, out: &mut Vec<u32>) {
    out.clear();
    out.reserve(n);
    let mut at = seek(times, first_ms);
    let mut advance = 0;
    let mut until = first_ms;
    for _ in 0..n {
        let mut guess = (at + advance).min(times.len());
        while guess < times.len() && times[guess] <= until {
            guess += 1;
        }
        while guess > 0 && times[guess - 1] > until {
            guess -= 1;
        }
        advance = guess - at;
        at = guess;
        out.push(at as u32);
        until = until.saturating_add(step_ms);
    }
}

/// Samples that a guess may be away from the right place before a binary search takes over.
const SEEK_SLACK: usize = 8;

/// Number of `times` that are `<= until`, found by interpolation when they are regular.
pub fn seek(times: &[i64], until: i64) -> usize {
    let (Some(&first), Some(&last)) = (times.first(), times.last()) else { return 0 };
    if until < first {
        return 0;
    }
    if until >= last {
        return times.len();
    }
    let span = (last - first) as f64;
    let guess = ((until - first) as f64 / span * (times.len() - 1) as f64) as usize;
    let low = guess.saturating_sub(SEEK_SLACK);
    let high = (guess + SEEK_SLACK).min(times.len() - 1);
    if times[low] <= until && times[high] > until {
        return low + times[low..high].partition_point(|t| *t <= until);
    }
    times.partition_point(|t| *t <= until)
}

/// Rows `[lo[i], hi[i])` of a series for each step.
#[derive(Debug, Default, Clone)]
pub struct Windows {
    /// First row of each window.
    pub lo: Vec<u32>,
    /// One past the last row of each window.
    pub hi: Vec<u32>,
}

/// Where the windows of all steps lie in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Spans {
    /// End (inclusive) of the first window, in milliseconds.
    pub first_ms: i64,
    /// How far each window's end lies behind the one before it; 0 when all are the same (the `@` modifier).
    pub step_ms: i64,
    /// Width of each window.
    pub width_ms: i64,
    /// Number of windows.
    pub len: usize,
}

impl Spans {
    /// End of window `i`.
    #[inline]
    pub fn end(&self, i: usize) -> i64 {
        self.first_ms.saturating_add(self.step_ms.saturating_mul(i as i64))
    }
}

impl Windows {
    /// Finds the windows of `spans` in `times`, reusing the buffers.
    pub fn find(&mut self, times: &[i64], spans: Spans) {
        let Spans { first_ms, step_ms, width_ms, len } = spans;
        upper_bounds(times, first_ms, step_ms, len, &mut self.hi);
        let start = first_ms.saturating_sub(width_ms);
        if step_ms > 0 && width_ms % step_ms == 0 && ((width_ms / step_ms) as usize) < len {
            // The left bound of a step is the right bound of the step `width / step` before it.
            let back = (width_ms / step_ms) as usize;
            upper_bounds(times, start, step_ms, back, &mut self.lo);
            self.lo.extend_from_slice(&self.hi[..len - back]);
        } else {
            upper_bounds(times, start, step_ms, len, &mut self.lo);
        }
    }

    /// The rows of window `i`.
    #[inline]
    pub fn get(&self, i: usize) -> std::ops::Range<usize> {
        self.lo[i] as usize..self.hi[i] as usize
    }

    /// Number of windows.
    pub fn len(&self) -> usize {
        self.hi.len()
    }

    /// Whether there are no windows.
    pub fn is_empty(&self) -> bool {
        self.hi.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn naive(times: &[i64], first: i64, step: i64, n: usize) -> Vec<u32> {
        (0..n as i64).map(|i| times.iter().filter(|t| **t <= first + i * step).count() as u32).collect()
    }

    proptest! {
        #[test]
        fn bounds_equal_a_count(gaps in prop::collection::vec(1i64..50, 0..80), first in -100i64..4000, step in 0i64..300, n in 0usize..40) {
            let times: Vec<i64> = gaps.iter().scan(0, |t, g| { *t += g; Some(*t) }).collect();
            let mut out = Vec::new();
            upper_bounds(&times, first, step, n, &mut out);
            prop_assert_eq!(out, naive(&times, first, step, n));
        }

        #[test]
        fn windows_equal_two_counts(
            gaps in prop::collection::vec(1i64..50, 0..80), first in -100i64..2000, step in 1i64..100, factor in 0i64..6, odd in 0i64..2, len in 0usize..30,
        ) {
            let times: Vec<i64> = gaps.iter().scan(0, |t, g| { *t += g; Some(*t) }).collect();
            let width_ms = step * factor + odd;
            let mut windows = Windows::default();
            windows.find(&times, Spans { first_ms: first, step_ms: step, width_ms, len });
            prop_assert_eq!(&windows.hi, &naive(&times, first, step, len));
            prop_assert_eq!(&windows.lo, &naive(&times, first - width_ms, step, len));
        }
    }
}
