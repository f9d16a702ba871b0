//! Straight lines and smoothing: `deriv`, `predict_linear`, `double_exponential_smoothing`.

use super::sum::neumaier;

/// Least-squares line through the samples: its slope per second, and its value at `intercept_ms`. The slices have one length, >= 1.
pub fn line(times: &[i64], values: &[f64], intercept_ms: i64) -> (f64, f64) {
    let first = values[0];
    if values[1..].iter().all(|v| *v == first) {
        return if first.is_infinite() { (f64::NAN, f64::NAN) } else { (0.0, first) };
    }
    let mut sums = [(0.0, 0.0); 4];
    for (&time, &value) in times.iter().zip(values) {
        let x = time.saturating_sub(intercept_ms) as f64 / 1e3;
        for (sum, inc) in sums.iter_mut().zip([x, value, x * value, x * x]) {
            *sum = neumaier(inc, sum.0, sum.1);
        }
    }
    let n = values.len() as f64;
    let [x, y, xy, xx] = sums.map(|(sum, comp)| sum + comp);
    let slope = (xy - x * y / n) / (xx - x * x / n);
    (slope, y / n - slope * x / n)
}

/// Holt's linear smoothing with smoothing factor `sf` and trend factor `tf`, both in (0, 1). `values` has at least two entries.
pub fn double_exponential(values: &[f64], sf: f64, tf: f64) -> f64 {
    let mut before = 0.0;
    let mut level = values[0];
    let mut trend = values[1] - values[0];
    for (i, value) in values[1..].iter().enumerate() {
        if i > 0 {
            trend = tf * (level - before) + (1.0 - tf) * trend;
        }
        let next = sf * value + (1.0 - sf) * (level + trend);
        (before, level) = (level, next);
    }
    level
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_found() {
        let times = [0, 10_000, 20_000, 30_000];
        assert_eq!(line(&times, &[1.0, 2.0, 3.0, 4.0], 0), (0.1, 1.0));
        assert_eq!(line(&times, &[7.0; 4], 0), (0.0, 7.0));
        assert!(line(&times, &[f64::INFINITY; 4], 0).0.is_nan());
        assert!(line(&times, &[1.0, f64::NAN, 3.0, 4.0], 0).0.is_nan());
        assert!(line(&times, &[f64::NAN; 4], 0).0.is_nan());
    }

    #[test]
    fn smoothing_follows_a_trend() {
        assert_eq!(double_exponential(&[0.0, 1.0], 0.5, 0.5), 1.0);
        let ramp: Vec<f64> = (0..100).map(f64::from).collect();
        assert!((double_exponential(&ramp, 0.01, 0.1) - 99.0).abs() < 1e-9);
    }
}
