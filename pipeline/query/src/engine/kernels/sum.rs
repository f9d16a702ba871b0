//! Compensated sums, in the order and with the corner cases of Prometheus.
//!
//! Prometheus adds with Neumaier's variant of Kahan summation, which branches on every sample. [`two_sum`] finds the same error term
//! without a branch, so the fast loops use it and fall back to [`neumaier`] only when the sum is not finite (there the two differ).

/// One step of Neumaier summation: the new sum and its compensation. An infinite sum loses its compensation.
#[inline]
pub fn neumaier(inc: f64, sum: f64, comp: f64) -> (f64, f64) {
    let total = sum + inc;
    let comp = if total.is_infinite() {
        0.0
    } else if sum.abs() >= inc.abs() {
        comp + ((sum - total) + inc)
    } else {
        comp + ((inc - total) + sum)
    };
    (total, comp)
}

/// The sum of two numbers and its exact rounding error. Wrong (NaN) when anything is not finite.
#[inline(always)]
pub fn two_sum(a: f64, b: f64) -> (f64, f64) {
    let total = a + b;
    let b_part = total - a;
    let error = (a - (total - b_part)) + (b - b_part);
    (total, error)
}

/// Sum of all values as `sum_over_time` defines it; 0 for none.
#[inline]
pub fn sum(values: &[f64]) -> f64 {
    let (mut total, mut comp) = (0.0, 0.0);
    for &v in values {
        let (next, error) = two_sum(total, v);
        total = next;
        comp += error;
    }
    if (total + comp).is_finite() { total + comp } else { sum_slow(values) }
}

/// [`sum`] by the branching loop, right for infinities and NaN too.
#[cold]
pub fn sum_slow(values: &[f64]) -> f64 {
    let (total, comp) = values.iter().fold((0.0, 0.0), |(s, c), v| neumaier(*v, s, c));
    if total.is_infinite() { total } else { total + comp }
}

/// Mean of all values as `avg_over_time` defines it. `values` is not empty.
#[inline]
pub fn mean(values: &[f64]) -> f64 {
    let (mut total, mut comp) = (values[0], 0.0);
    for &v in &values[1..] {
        let (next, error) = two_sum(total, v);
        total = next;
        comp += error;
    }
    let count = values.len() as f64;
    if (total + comp).is_finite() { total / count + comp / count } else { mean_slow(values.iter().copied()) }
}

/// Mean that switches to an incremental mean when the plain sum would overflow. NaN for no values.
#[cold]
pub fn mean_slow(values: impl Iterator<Item = f64>) -> f64 {
    let mut mean = Mean::default();
    values.for_each(|v| mean.add(v));
    mean.value()
}

/// A mean under construction; see [`mean_slow`].
#[derive(Debug, Default, Clone, Copy)]
struct Mean {
    count: f64,
    sum: f64,
    mean: f64,
    comp: f64,
    incremental: bool,
}

impl Mean {
    fn add(&mut self, value: f64) {
        self.count += 1.0;
        if self.count == 1.0 {
            self.sum = value;
            return;
        }
        if !self.incremental {
            let (sum, comp) = neumaier(value, self.sum, self.comp);
            if !sum.is_infinite() {
                (self.sum, self.comp) = (sum, comp);
                return;
            }
            self.incremental = true;
            self.mean = self.sum / (self.count - 1.0);
            self.comp /= self.count - 1.0;
        }
        let weight = (self.count - 1.0) / self.count;
        (self.mean, self.comp) = neumaier(value / self.count, weight * self.mean, weight * self.comp);
    }

    fn value(&self) -> f64 {
        if self.incremental { self.mean + self.comp } else { self.sum / self.count + self.comp / self.count }
    }
}

/// How many series [`sum_lockstep`] adds at a time: enough independent chains of additions to fill the pipeline.
pub const LOCKSTEP: usize = 4;

/// [`sum`] and the number of values for the same window of [`LOCKSTEP`] series. `values[k]` are equally long.
#[inline]
pub fn sum_lockstep(values: [&[f64]; LOCKSTEP]) -> [(f64, f64); LOCKSTEP] {
    let n = values[0].len();
    let [a, b, c, d] = values.map(|v| &v[..n]);
    let mut total = [0.0; LOCKSTEP];
    let mut comp = [0.0; LOCKSTEP];
    for i in 0..n {
        let next = [a[i], b[i], c[i], d[i]];
        for k in 0..LOCKSTEP {
            let (sum, error) = two_sum(total[k], next[k]);
            total[k] = sum;
            comp[k] += error;
        }
    }
    std::array::from_fn(|k| (total[k], comp[k]))
}

/// Population variance by Welford's method with compensated mean and squares. `values` is not empty.
pub fn variance(values: &[f64]) -> f64 {
    let mut count = 0.0;
    let (mut mean, mut mean_comp) = (0.0, 0.0);
    let (mut squares, mut squares_comp) = (0.0, 0.0);
    for &v in values {
        count += 1.0;
        let delta = v - (mean + mean_comp);
        (mean, mean_comp) = neumaier(delta / count, mean, mean_comp);
        (squares, squares_comp) = neumaier(delta * (v - (mean + mean_comp)), squares, squares_comp);
    }
    (squares + squares_comp) / count
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn same(a: f64, b: f64) -> bool {
        a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan()) || (a == 0.0 && b == 0.0)
    }

    proptest! {
        #[test]
        fn fast_sums_equal_the_branching_ones(values in prop::collection::vec(any::<f64>(), 1..60)) {
            prop_assert!(same(sum(&values), sum_slow(&values)));
            prop_assert!(same(mean(&values), mean_slow(values.iter().copied())));
        }

        #[test]
        fn fast_sums_of_ordinary_values_equal_too(values in prop::collection::vec(-1e6f64..1e6, 1..60)) {
            prop_assert!(same(sum(&values), sum_slow(&values)));
            prop_assert!(same(mean(&values), mean_slow(values.iter().copied())));
            let locked = sum_lockstep([&values; LOCKSTEP]);
            prop_assert!(locked.iter().all(|(t, c)| same(t + c, sum(&values))));
        }
    }

    #[test]
    fn cancellation_and_overflow_are_survived() {
        assert_eq!(sum(&[5.0, 1e100, 5.0, -1e100]), 10.0);
        assert!((mean(&[f64::MAX, f64::MAX, f64::MAX]) / f64::MAX - 1.0).abs() < 1e-12);
        assert_eq!(sum(&[f64::INFINITY, 1.0]), f64::INFINITY);
        assert!(sum(&[f64::INFINITY, f64::NEG_INFINITY]).is_nan());
        assert_eq!(variance(&[1.0, 2.0, 3.0, 4.0]), 1.25);
    }
}
