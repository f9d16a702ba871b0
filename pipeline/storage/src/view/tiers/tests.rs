//! How rows and raw samples of one series become one curve.

use super::*;
use fletch_schemas::stale_marker;
use proptest::prelude::*;

const WIDTH: i64 = 60_000;

fn row(end_ms: i64, count: f64, value: f64) -> Row {
    Row { end_ms, width_ms: WIDTH, count, value, edges: None }
}

#[test]
fn of_each_window_the_side_with_more_samples_counts() {
    let rows = [row(60_000, 3.0, 10.0), row(120_000, 2.0, 20.0), row(240_000, 1.0, 40.0)];
    // One of three is left of the first window, all of the second, nothing of the last; a window without a row is raw.
    let times = [1_000, 61_000, 120_000, 150_000, 250_000];
    let values = [1.0, 2.0, 3.0, 4.0, stale_marker()];
    let (t, v) = joined(&rows, (&times, &values), TierValue::Sum);
    assert_eq!(t, [60_000, 61_000, 120_000, 150_000, 240_000, 250_000]);
    assert_eq!(v[..5], [10.0, 2.0, 3.0, 4.0, 40.0]);
    let (t, v) = joined(&rows, (&times, &values), TierValue::Count);
    assert_eq!((t, v), (vec![60_000, 61_000, 120_000, 150_000, 240_000], vec![10.0, 1.0, 1.0, 1.0, 40.0]));
    assert_eq!(joined(&[], (&[], &[]), TierValue::Sum), (vec![], vec![]));
}

#[test]
fn stale_markers_do_not_make_a_window_whole() {
    let (_, v) = joined(&[row(60_000, 2.0, 9.0)], (&[1, 2], &[1.0, stale_marker()]), TierValue::Sum);
    assert_eq!(v, [9.0]);
}

proptest! {
    #[test]
    fn the_curve_of_a_row_has_the_increase_of_its_samples(values in prop::collection::vec(0_u32..1_000, 1..40)) {
        let values: Vec<f64> = values.into_iter().map(f64::from).collect();
        let rise = |v: &[f64]| v.windows(2).fold(0.0, |sum, w| sum + if w[1] < w[0] { w[1] } else { w[1] - w[0] });
        let times: Vec<i64> = (0..values.len() as i64).map(|i| 1 + i * 1_000).collect();
        let edges = Edges { first: values[0], first_ms: times[0], last_ms: times[times.len() - 1], increase: rise(&values) };
        let row = Row { end_ms: WIDTH, width_ms: WIDTH, count: values.len() as f64, value: values[values.len() - 1], edges: Some(edges) };
        let (mut t, mut v) = (Vec::new(), Vec::new());
        row.push(&mut t, &mut v);
        prop_assert!(t.is_sorted_by(|a, b| a < b), "{:?}", t);
        prop_assert_eq!((t[0], t[t.len() - 1]), (times[0], times[times.len() - 1]));
        prop_assert!((rise(&v) - rise(&values)).abs() < 1e-6, "{:?} for {:?}", v, values);
        prop_assert_eq!((v[0], v[v.len() - 1]), (values[0], values[values.len() - 1]));
    }
}
