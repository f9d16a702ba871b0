//! Which tier answers a range function: a decision on times alone.
//!
//! ```text
//!  equal      every window of the query is whole windows of the tier     count, sum, avg, min, max, first, last, present _over_time, rate, increase
//!  expired    raw samples are gone: the narrowest tier that is still there, stretch by stretch
//!  raw        everything else
//! ```
//!
//! Where a tier is equal, so are the answers: counts, extremes, first and last to the bit; sums, averages and rates up to the
//! rounding of one addition per window.

use crate::engine::WindowsOf;
use fletch_promql::functions::FunctionId as F;
use fletch_storage::tiers::Tier;
use fletch_storage::view::TierValue;

/// Shortest range for which a tier is read although raw samples are there: the last hour or so is raw anyway, and mostly in memory.
const SPAN_MIN_MS: i64 = 2 * 3_600_000;

/// A tier at the time of a query; times are milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TierState {
    /// Width of its windows.
    pub(crate) width_ms: i64,
    /// Rows up to here may be gone.
    pub(crate) gone_until_ms: Option<i64>,
    /// Up to here it holds every sample.
    pub(crate) settled_until_ms: i64,
}

/// What answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Choice {
    /// Samples.
    Raw,
    /// This tier (by number), with the same answer.
    Equal(usize),
    /// Whatever tiers are left; see [`stretches`].
    Expired,
}

/// What a function needs of rows; two values for averages and rates.
pub(crate) fn values_of(function: F) -> Option<&'static [TierValue]> {
    Some(match function {
        F::CountOverTime | F::PresentOverTime | F::AbsentOverTime => &[TierValue::Count],
        F::SumOverTime => &[TierValue::Sum],
        F::AvgOverTime => &[TierValue::Sum, TierValue::Count],
        F::MinOverTime => &[TierValue::Min],
        F::MaxOverTime => &[TierValue::Max],
        F::FirstOverTime => &[TierValue::First],
        F::LastOverTime => &[TierValue::Last],
        F::Rate | F::Increase => &[TierValue::Counter, TierValue::Count],
        _ => return None,
    })
}

/// Whether it is worth a look at the tiers at all; cheap, and never wrong with no.
pub(crate) fn may_fit(ask: &WindowsOf, raw_gone_until_ms: Option<i64>) -> bool {
    let after_ms = ask.after_ms();
    let narrowest = Tier::ALL[0].width_ms;
    let aligned = [ask.width_ms, ask.first_end_ms].iter().all(|ms| ms.rem_euclid(narrowest) == 0);
    raw_gone_until_ms.is_some_and(|gone| gone > after_ms) || (aligned && ask.last_end_ms().saturating_sub(after_ms) >= SPAN_MIN_MS)
}

/// Chooses for a function that [`values_of`] knows. `tiers`: narrow windows first. `raw_gone_until_ms`: raw samples up to here may be gone.
pub(crate) fn choose(ask: &WindowsOf, raw_gone_until_ms: Option<i64>, tiers: &[TierState]) -> Choice {
    let (after_ms, last_ms) = (ask.after_ms(), ask.last_end_ms());
    let raw_gone = raw_gone_until_ms.is_some_and(|gone| gone > after_ms);
    // What a tier is not sure of is read from raw: without half of the range it saves nothing.
    let enough_ms = if raw_gone { after_ms } else { after_ms.midpoint(last_ms) };
    let equal = |tier: &TierState| {
        let whole = |ms: i64| ms.rem_euclid(tier.width_ms) == 0;
        let aligned = ask.width_ms > 0 && whole(ask.width_ms) && whole(ask.first_end_ms) && (ask.steps <= 1 || whole(ask.step_ms));
        let complete = tier.gone_until_ms.is_none_or(|gone| gone <= after_ms);
        aligned && complete && tier.settled_until_ms > enough_ms
    };
    let long = last_ms.saturating_sub(after_ms) >= SPAN_MIN_MS;
    match tiers.iter().rposition(equal) {
        Some(tier) if long || raw_gone => Choice::Equal(tier),
        _ if raw_gone && !tiers.is_empty() => Choice::Expired,
        _ => Choice::Raw,
    }
}

/// Where raw is gone, which tier is left: (number, exclusive start, inclusive end), within `(after_ms, last_ms]`, latest first. Bounds
/// between tiers are ends of windows of both.
pub(crate) fn stretches(raw_gone_until_ms: i64, tiers: &[TierState], after_ms: i64, last_ms: i64) -> Vec<(usize, i64, i64)> {
    let mut found = Vec::new();
    let Some(narrowest) = tiers.first() else { return found };
    let mut until_ms = window_end(narrowest.width_ms, raw_gone_until_ms);
    for (at, tier) in tiers.iter().enumerate() {
        let bound = tier.gone_until_ms.zip(tiers.get(at + 1)).map(|(gone, wider)| window_end(wider.width_ms, gone));
        let from_ms = bound.unwrap_or(i64::MIN).min(until_ms);
        let (from, until) = (from_ms.max(after_ms), until_ms.min(last_ms));
        if from < until {
            found.push((at, from, until));
        }
        until_ms = from_ms;
    }
    found
}

/// End of the window that a time falls in.
pub(crate) fn window_end(width_ms: i64, time_ms: i64) -> i64 {
    time_ms.saturating_sub(1).div_euclid(width_ms).saturating_mul(width_ms).saturating_add(width_ms)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: i64 = 60_000;
    const HOUR: i64 = 60 * MINUTE;
    const DAY: i64 = 24 * HOUR;
    const NOW: i64 = 20_000 * DAY;

    fn ask(after_ms: i64, width_ms: i64, step_ms: i64, steps: usize) -> WindowsOf {
        WindowsOf { function: F::MaxOverTime, first_end_ms: after_ms + width_ms, step_ms, width_ms, steps }
    }

    fn tiers(gone_days: [Option<i64>; 3]) -> [TierState; 3] {
        let tier = |width_ms, gone: Option<i64>| TierState {
            width_ms,
            gone_until_ms: gone.map(|days| NOW - days * DAY),
            settled_until_ms: NOW - HOUR,
        };
        [tier(MINUTE, gone_days[0]), tier(5 * MINUTE, gone_days[1]), tier(HOUR, gone_days[2])]
    }

    #[test]
    fn the_widest_tier_whose_windows_fit_answers() {
        let all = tiers([None; 3]);
        let cases = [
            ("days of hours", ask(NOW - DAY, HOUR, HOUR, 24), Choice::Equal(2)),
            ("one long window", ask(NOW - 30 * DAY, 30 * DAY, 0, 1), Choice::Equal(2)),
            ("the step decides", ask(NOW - DAY, HOUR, 10 * MINUTE, 100), Choice::Equal(1)),
            ("the width decides", ask(NOW - DAY, 7 * MINUTE, 7 * MINUTE, 100), Choice::Equal(0)),
            ("the start decides", ask(NOW - DAY + MINUTE, HOUR, HOUR, 20), Choice::Equal(0)),
            ("not aligned", ask(NOW - DAY + 1, HOUR, HOUR, 20), Choice::Raw),
            ("a step of seconds", ask(NOW - DAY, HOUR, 15_000, 20), Choice::Raw),
            ("too short", ask(NOW - HOUR, HOUR, 0, 1), Choice::Raw),
            ("no width", ask(NOW - DAY, 0, HOUR, 20), Choice::Raw),
            ("before 1970", ask(-DAY, HOUR, HOUR, 24), Choice::Equal(2)),
        ];
        for (name, ask, want) in cases {
            assert_eq!(choose(&ask, None, &all), want, "{name}");
            assert!(want == Choice::Raw || may_fit(&ask, None), "{name}");
        }
        assert_eq!(choose(&ask(NOW - DAY, HOUR, HOUR, 24), None, &[]), Choice::Raw);
    }

    #[test]
    fn a_tier_that_lacks_rows_or_has_not_come_so_far_is_not_equal() {
        let day = ask(NOW - 40 * DAY, HOUR, 5 * MINUTE, 100);
        assert_eq!(choose(&day, None, &tiers([None, Some(39), None])), Choice::Equal(0));
        assert_eq!(choose(&day, None, &tiers([Some(39), Some(39), None])), Choice::Raw);
        assert_eq!(choose(&day, Some(NOW - 39 * DAY), &tiers([Some(39), Some(39), None])), Choice::Expired);
        assert_eq!(choose(&day, Some(NOW - 41 * DAY), &tiers([Some(39), Some(39), None])), Choice::Raw);
        assert_eq!(choose(&ask(NOW - HOUR, 4 * HOUR, 0, 1), None, &tiers([None; 3])), Choice::Raw);
        assert_eq!(choose(&ask(NOW - 2 * HOUR, 4 * HOUR, 0, 1), None, &tiers([None; 3])), Choice::Raw, "a quarter of it");
        assert_eq!(choose(&ask(NOW - 4 * HOUR, 4 * HOUR, 0, 1), None, &tiers([None; 3])), Choice::Equal(2), "three quarters");
        assert_eq!(choose(&ask(NOW - 40 * DAY, HOUR, 0, 1), Some(NOW - 7 * DAY), &tiers([None; 3])), Choice::Equal(2), "short, but gone");
    }

    #[test]
    fn what_is_gone_comes_from_the_narrowest_tier_that_is_left() {
        let all = tiers([Some(30), Some(90), Some(365)]);
        let gone = NOW - 7 * DAY;
        assert_eq!(
            stretches(gone, &all, NOW - 400 * DAY, NOW),
            [(0, NOW - 30 * DAY, gone), (1, NOW - 90 * DAY, NOW - 30 * DAY), (2, NOW - 400 * DAY, NOW - 90 * DAY)]
        );
        assert_eq!(stretches(gone, &all, NOW - 20 * DAY, NOW - 10 * DAY), [(0, NOW - 20 * DAY, NOW - 10 * DAY)]);
        assert_eq!(stretches(gone, &all, NOW - 2 * DAY, NOW), []);
        // Bounds are ends of windows of the wider tier, so that no window is cut in two.
        let odd = tiers([Some(30), None, None]).map(|t| TierState { gone_until_ms: t.gone_until_ms.map(|g| g - 90_001), ..t });
        assert_eq!(stretches(gone, &odd, i64::MIN, NOW)[0].1, NOW - 30 * DAY);
        assert_eq!(stretches(gone, &[], NOW - 400 * DAY, NOW), []);
    }
}
