use super::build::{Arrived, Scratch};
use super::merge::{merge, merge_in_order, union_refs};
use super::*;
use fletch_schemas::stale_marker;
use proptest::prelude::*;
use std::collections::BTreeMap;

type Row = (u32, i64, f64);

fn run_of(rows: &[Row]) -> (Option<Run>, u64) {
    let series: Vec<SeriesRef> = rows.iter().map(|r| SeriesRef(r.0)).collect();
    let times: Vec<i64> = rows.iter().map(|r| r.1).collect();
    let values: Vec<f64> = rows.iter().map(|r| r.2).collect();
    let draft = Scratch::default().sort(Arrived { series: &series, times: &times, values: &values }, None);
    let dropped = draft.dropped;
    (draft.close(), dropped)
}

/// What any storage must answer: the winner per (series, time), by bits.
fn truth(rows: &[Row]) -> BTreeMap<(u32, i64), u64> {
    let mut out: BTreeMap<(u32, i64), f64> = BTreeMap::new();
    for &(series, time, value) in rows {
        out.entry((series, time))
            .and_modify(|v| {
                if beats(value, *v) {
                    *v = value
                }
            })
            .or_insert(value);
    }
    out.into_iter().map(|(k, v)| (k, v.to_bits())).collect()
}

fn content(run: &Run) -> BTreeMap<(u32, i64), u64> {
    run.iter().flat_map(|(r, t, v)| t.iter().zip(v).map(move |(&t, v)| ((r.0, t), v.to_bits()))).collect()
}

fn assert_sound(run: &Run) {
    assert!(run.refs().is_sorted_by(|a, b| a < b), "R1");
    for (series, times, values) in run.iter() {
        assert!(times.is_sorted_by(|a, b| a < b), "R1");
        assert_eq!(times.len(), values.len());
        assert!(run.min_ms() <= times[0] && times[times.len() - 1] <= run.max_ms());
        let found = run.series(series).expect("it is in the run");
        assert!(std::ptr::eq(found.0, times) && std::ptr::eq(found.1, values));
    }
    assert_eq!(run.samples(), run.iter().map(|(_, t, _)| t.len()).sum::<usize>());
}

#[test]
fn the_larger_value_wins_and_the_stale_marker_loses() {
    let stale = stale_marker();
    let nan = f64::from_bits(0x7ff8_0000_0000_0001);
    for (a, b, expected) in [
        (2.0, 1.0, true),
        (1.0, 2.0, false),
        (1.0, 1.0, false),
        (0.0, -0.0, true),
        (stale, 1.0, false),
        (-5.0, stale, true),
        (stale, stale, false),
        (nan, stale, true),
        (nan, f64::INFINITY, true),
    ] {
        assert_eq!(beats(a, b), expected, "{a} {b}");
    }
}

#[test]
fn a_batch_in_arrival_order_becomes_a_sorted_run() {
    let (run, dropped) = run_of(&[(7, 10, 1.0), (3, 10, 2.0), (7, 20, 3.0), (3, 5, 4.0), (3, 10, 9.0), (8, -1, 0.5)]);
    let run = run.expect("it has samples");
    assert_sound(&run);
    assert_eq!(dropped, 1);
    assert_eq!(run.series(SeriesRef(3)), Some((&[5, 10][..], &[4.0, 9.0][..])));
    assert_eq!(run.series(SeriesRef(7)), Some((&[10, 20][..], &[1.0, 3.0][..])));
    assert_eq!(run.series(SeriesRef(4)), None);
    assert_eq!((run.min_ms(), run.max_ms(), run.samples()), (-1, 20, 5));
}

#[test]
fn scratch_is_clean_after_each_use_and_takes_a_choice_of_rows() {
    let mut scratch = Scratch::default();
    let (series, times, values) = ([SeriesRef(1), SeriesRef(0), SeriesRef(1)], [1, 2, 3], [1.0, 2.0, 3.0]);
    let arrived = Arrived { series: &series, times: &times, values: &values };
    for _ in 0..2 {
        let run = scratch.sort(arrived, Some(&[0, 2])).close().expect("two samples");
        assert_eq!(run.refs(), &[SeriesRef(1)]);
        assert_eq!(run.series(SeriesRef(1)), Some((&[1, 3][..], &[1.0, 3.0][..])));
    }
}

#[test]
fn a_draft_that_loses_all_samples_is_no_run() {
    let arrived = Arrived { series: &[SeriesRef(1), SeriesRef(2)], times: &[1, 2], values: &[1.0, 2.0] };
    let mut draft = Scratch::default().sort(arrived, None);
    assert_eq!(draft.retain(0, |_, _| false), 1);
    assert_eq!(draft.retain(1, |t, _| t != 2), 1);
    assert!(draft.close().is_none());
}

#[test]
fn series_with_equal_times_share_them_after_a_merge() {
    let rows = |base: i64| -> Vec<Row> { (0..40).flat_map(|s| (0..5).map(move |i| (s, base + i, f64::from(s)))).collect() };
    let (a, b) = (run_of(&rows(0)).0.expect("run"), run_of(&rows(5)).0.expect("run"));
    let (merged, dropped) = merge(&[&b, &a]);
    assert_sound(&merged);
    assert_eq!(dropped, 0);
    assert_eq!(merged.columns().times.len(), 10, "one stretch of times for all 40 series");
    assert_eq!(merged.columns().values.len(), 400);
    assert!(matches!(merged.lookup, Lookup::Dense { .. }));
}

#[test]
fn parts_that_break_the_invariants_are_refused() {
    let columns = Arc::new(SampleColumns { times: vec![1, 2], values: vec![1.0, 2.0] });
    let slice = |start, len| RunSlice { time_start: start, value_start: start, len };
    assert!(Run::new(vec![SeriesRef(1)], vec![slice(1, 2)], columns.clone()).is_none(), "outside");
    assert!(Run::new(vec![SeriesRef(1)], vec![slice(0, 0)], columns.clone()).is_none(), "empty");
    assert!(Run::new(vec![SeriesRef(1), SeriesRef(1)], vec![slice(0, 1), slice(1, 1)], columns.clone()).is_none(), "twice");
    assert!(Run::new(vec![SeriesRef(2), SeriesRef(1)], vec![slice(0, 1), slice(1, 1)], columns).is_some(), "unsorted is sorted");
}

#[test]
fn ranges_include_both_ends() {
    let times = [10, 20, 30];
    for (min, max, expected) in
        [(10, 30, 0..3), (11, 30, 1..3), (10, 29, 0..2), (20, 20, 1..2), (31, 40, 3..3), (0, 9, 0..0), (25, 15, 2..2)]
    {
        assert_eq!(rows_between(&times, min, max), expected, "{min}..={max}");
    }
    assert_eq!(rows_between(&[], 0, 1), 0..0);
}

fn rows() -> impl Strategy<Value = Vec<Row>> {
    let value = prop_oneof![Just(stale_marker()), Just(f64::NAN), (0..4_i32).prop_map(f64::from)];
    proptest::collection::vec((0..6_u32, -5..20_i64, value), 0..60)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_split_and_order_of_runs_merges_to_the_same(rows in rows(), cuts in proptest::collection::vec(0..60_usize, 0..4), reverse: bool) {
        let mut cuts: Vec<usize> = cuts.into_iter().map(|c| c.min(rows.len())).chain([0, rows.len()]).collect();
        cuts.sort_unstable();
        let mut runs: Vec<Run> = cuts.windows(2).filter_map(|w| run_of(&rows[w[0]..w[1]]).0).collect();
        if reverse {
            runs.reverse();
        }
        let refs: Vec<&Run> = runs.iter().collect();
        let (merged, _) = merge(&refs);
        assert_sound(&merged);
        prop_assert_eq!(content(&merged), truth(&rows));
        let mut order = union_refs(refs.iter().copied());
        order.reverse();
        let (other, _) = merge_in_order(&refs, &order);
        assert_sound(&other);
        prop_assert_eq!(content(&other), truth(&rows));
    }
}
