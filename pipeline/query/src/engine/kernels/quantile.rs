//! Quantiles of plain values and of classic histogram buckets.

/// The `q`-quantile of `values`, which get sorted. NaN sorts first; a rank between two values is a weighted mean of them.
/// NaN for no values or `q = NaN`, -Inf below 0, +Inf above 1.
pub fn quantile(q: f64, values: &mut [f64]) -> f64 {
    if values.is_empty() || q.is_nan() {
        return f64::NAN;
    }
    if q < 0.0 {
        return f64::NEG_INFINITY;
    }
    if q > 1.0 {
        return f64::INFINITY;
    }
    values.sort_unstable_by(nan_first);
    let last = (values.len() - 1) as f64;
    let rank = q * last;
    let lower = rank.floor().max(0.0);
    let upper = (lower + 1.0).min(last);
    let weight = rank - rank.floor();
    values[lower as usize] * (1.0 - weight) + values[upper as usize] * weight
}

/// Ascending, with every NaN before everything else.
pub fn nan_first(a: &f64, b: &f64) -> std::cmp::Ordering {
    a.partial_cmp(b).unwrap_or_else(|| b.is_nan().cmp(&a.is_nan()))
}

/// Median absolute deviation; `scratch` is used for sorting. NaN if any value is. `values` is not empty.
pub fn mad(values: &[f64], scratch: &mut Vec<f64>) -> f64 {
    if values.iter().any(|v| v.is_nan()) {
        return f64::NAN;
    }
    scratch.clear();
    scratch.extend_from_slice(values);
    let median = quantile(0.5, scratch);
    scratch.clear();
    scratch.extend(values.iter().map(|v| (v - median).abs()));
    quantile(0.5, scratch)
}

/// One bucket of a classic histogram: observations `<= upper`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Bucket {
    /// Upper bound (`le`).
    pub upper: f64,
    /// Cumulative number of observations.
    pub count: f64,
}

/// Buckets whose counts fell where they must not.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Forced {
    /// Smallest and largest upper bound of a bucket that was lifted.
    pub upper_min: f64,
    /// See `upper_min`.
    pub upper_max: f64,
    /// Largest amount by which one was lifted.
    pub diff_max: f64,
}

/// Relative difference of two counts that is taken for a rounding error.
const SMALL_DELTA: f64 = 1e-12;

/// Merges buckets with equal bounds (which must be sorted) and drops the empty rest.
fn coalesce(buckets: &mut Vec<Bucket>) {
    buckets.dedup_by(|next, kept| {
        let same = next.upper == kept.upper;
        if same {
            kept.count += next.count;
        }
        same
    });
}

/// Whether two counts differ by no more than rounding.
fn almost_equal(a: f64, b: f64) -> bool {
    if a == b {
        return true;
    }
    let sum = a.abs() + b.abs();
    let diff = (a - b).abs();
    if a == 0.0 || b == 0.0 || sum < f64::MIN_POSITIVE {
        return diff < SMALL_DELTA * f64::MIN_POSITIVE;
    }
    diff / sum.min(f64::MAX) < SMALL_DELTA
}

/// Lifts counts that are lower than one before them; differences that look like rounding are lifted silently.
fn make_monotonic(buckets: &mut [Bucket]) -> Option<Forced> {
    let mut forced: Option<Forced> = None;
    let mut previous = buckets[0].count;
    for bucket in &mut buckets[1..] {
        let count = bucket.count;
        if count == previous {
            continue;
        }
        if almost_equal(previous, count) || count < previous {
            if !almost_equal(previous, count) {
                let f = forced.get_or_insert(Forced { upper_min: bucket.upper, upper_max: bucket.upper, diff_max: 0.0 });
                f.upper_min = f.upper_min.min(bucket.upper);
                f.upper_max = f.upper_max.max(bucket.upper);
                f.diff_max = f.diff_max.max(previous - count);
            }
            bucket.count = previous;
            continue;
        }
        previous = count;
    }
    forced
}

/// The `q`-quantile of a classic histogram, linear inside a bucket, and what had to be lifted. `buckets` are sorted by bound and not
/// empty; they are changed. NaN without a `+Inf` bucket, with fewer than two buckets, or without observations.
pub fn bucket_quantile(q: f64, buckets: &mut Vec<Bucket>) -> (f64, Option<Forced>) {
    if q.is_nan() {
        return (f64::NAN, None);
    }
    if q < 0.0 {
        return (f64::NEG_INFINITY, None);
    }
    if q > 1.0 {
        return (f64::INFINITY, None);
    }
    if buckets.last().is_none_or(|b| b.upper != f64::INFINITY) {
        return (f64::NAN, None);
    }
    coalesce(buckets);
    let forced = make_monotonic(buckets);
    let last = buckets.len() - 1;
    let observations = buckets[last].count;
    if last == 0 || observations == 0.0 {
        return (f64::NAN, None);
    }
    let mut rank = q * observations;
    // Spelled as a negation because a NaN count must not count as reached.
    let hit = search(last, |i| buckets[i].count >= rank);
    if hit == last {
        return (buckets[last - 1].upper, forced);
    }
    if hit == 0 && buckets[0].upper <= 0.0 {
        return (buckets[0].upper, forced);
    }
    let Bucket { upper: end, mut count } = buckets[hit];
    let mut start = 0.0;
    if hit > 0 {
        start = buckets[hit - 1].upper;
        count -= buckets[hit - 1].count;
        rank -= buckets[hit - 1].count;
    }
    (start + (end - start) * (rank / count), forced)
}

/// Smallest `i < n` for which `reached` holds, else `n`; a binary search, which also fixes what happens when it is not monotonic.
fn search(n: usize, reached: impl Fn(usize) -> bool) -> usize {
    let (mut low, mut high) = (0, n);
    while low < high {
        let middle = (low + high) / 2;
        if reached(middle) {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    low
}

/// Share of the observations of a classic histogram in `(lower, upper]`, linear inside a bucket. `buckets` are sorted by bound and not
/// empty; they are changed.
pub fn bucket_fraction(lower: f64, upper: f64, buckets: &mut Vec<Bucket>) -> f64 {
    if buckets.last().is_none_or(|b| b.upper != f64::INFINITY) {
        return f64::NAN;
    }
    coalesce(buckets);
    let count = buckets[buckets.len() - 1].count;
    if count == 0.0 || lower.is_nan() || upper.is_nan() {
        return f64::NAN;
    }
    if lower >= upper {
        return 0.0;
    }
    let rank_of = |value| bucket_rank(buckets, value).filter(|r| *r <= count).unwrap_or(count);
    (rank_of(upper) - rank_of(lower)) / count
}

/// Number of observations at or below `value`; `None` when it lies at or above every finite bound.
fn bucket_rank(buckets: &[Bucket], value: f64) -> Option<f64> {
    let mut low = if buckets[0].upper > 0.0 { 0.0 } else { f64::NEG_INFINITY };
    let mut rank = 0.0;
    for bucket in buckets {
        if low >= value {
            return Some(rank);
        }
        if bucket.upper > value {
            // A bucket without a lower bound cannot be cut: all of it counts.
            let inside = (value - low) / (bucket.upper - low);
            return Some(if low == f64::NEG_INFINITY { bucket.count } else { rank + (bucket.count - rank) * inside });
        }
        rank = bucket.count;
        low = bucket.upper;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn buckets(pairs: &[(f64, f64)]) -> Vec<Bucket> {
        pairs.iter().map(|&(upper, count)| Bucket { upper, count }).collect()
    }

    #[test]
    fn quantiles_of_values() {
        for (q, want) in [(0.0, 1.0), (0.5, 2.5), (1.0, 4.0), (0.25, 1.75)] {
            assert_eq!(quantile(q, &mut [4.0, 1.0, 3.0, 2.0]), want, "{q}");
        }
        assert_eq!(quantile(1.1, &mut [1.0]), f64::INFINITY);
        assert_eq!(quantile(-1.0, &mut [1.0]), f64::NEG_INFINITY);
        assert!(quantile(0.5, &mut []).is_nan());
        assert_eq!(quantile(1.0, &mut [f64::NAN, 1.0, 2.0]), 2.0);
        assert_eq!(mad(&[4.0, 6.0, 2.0, 1.0, 999.0, 1.0, 2.0], &mut Vec::new()), 1.0);
        assert!(mad(&[1.0, f64::NAN, 2.0], &mut Vec::new()).is_nan());
    }

    #[test]
    fn quantiles_of_buckets() {
        let inf = f64::INFINITY;
        let ordinary = [(0.1, 1.0), (0.5, 3.0), (inf, 4.0)];
        let close = |a: f64, b: f64| assert!((a - b).abs() < 1e-12, "{a} {b}");
        close(bucket_quantile(0.5, &mut buckets(&ordinary)).0, 0.1 + 0.4 * 0.5);
        close(bucket_quantile(0.99, &mut buckets(&ordinary)).0, 0.5);
        assert!(bucket_quantile(0.5, &mut buckets(&[(0.1, 1.0)])).0.is_nan());
        assert!(bucket_quantile(0.5, &mut buckets(&[(inf, 1.0)])).0.is_nan());
        let (_, forced) = bucket_quantile(0.5, &mut buckets(&[(0.1, 3.0), (0.5, 1.0), (inf, 4.0)]));
        assert_eq!(forced, Some(Forced { upper_min: 0.5, upper_max: 0.5, diff_max: 2.0 }));
        let (_, silent) = bucket_quantile(0.5, &mut buckets(&[(0.1, 3.0), (0.5, 3.0 - 1e-14), (inf, 4.0)]));
        assert_eq!(silent, None);
    }

    #[test]
    fn fractions_of_buckets() {
        let inf = f64::INFINITY;
        let make = || buckets(&[(1.0, 1.0), (2.0, 3.0), (inf, 4.0)]);
        assert_eq!(bucket_fraction(0.0, 1.5, &mut make()), 0.5);
        assert_eq!(bucket_fraction(f64::NEG_INFINITY, inf, &mut make()), 1.0);
        assert_eq!(bucket_fraction(2.0, 1.0, &mut make()), 0.0);
        assert!(bucket_fraction(f64::NAN, 1.0, &mut make()).is_nan());
    }
}
