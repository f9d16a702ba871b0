//! Tiers against a plain aggregation of everything that was written, whatever the order of arrival.

use super::rewrite::read;
use super::row::aggregate;
use super::*;
use crate::delta::FileIdentity;
use crate::delta::store::table_root;
use crate::delta::testing::{Fault, FaultStore};
use crate::parquet_file::{SeriesRow, SeriesSlice, write_samples, write_series};
use crate::retention::{Consumed, DAY_MS, Keep, Policy, Retention};
use arrow::array::{Array, AsArray};
use arrow::datatypes::{Float64Type, Int64Type, TimestampMicrosecondType};
use fletch_common::{Clock, ManualClock, SharedClock};
use fletch_schemas::tables::Table;
use fletch_schemas::{Labels, MetricKind, TenantId, date_of_ms, is_stale, stale_marker};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::time::Duration;

const START_MS: i64 = 1_700_000_000_000;
const MINUTE: Tier = Tier::ALL[0];
const WINDOW_MS: i64 = MINUTE.width_ms;

struct World {
    store: Arc<FaultStore>,
    clock: Arc<ManualClock>,
    samples: Arc<DeltaTable>,
    series: Arc<DeltaTable>,
    tier: Tier,
    table: Arc<DeltaTable>,
    job: TierJob,
    written: BTreeMap<(i64, i64), f64>,
    kinds: BTreeMap<i64, MetricKind>,
}

type Sample = (i64, i64, f64);

/// A row of the tier as anybody reads it: series, end, count, (sum, min, max), (first, first_time, last_time, increase), last.
type Seen = (i64, i64, i64, [Option<u64>; 3], [Option<u64>; 4], Option<u64>);

impl World {
    async fn new(tier: Tier) -> Self {
        let (store, clock) = (FaultStore::new(), ManualClock::at(START_MS));
        let shared: SharedClock = clock.clone();
        let open = |table| DeltaTable::open_or_create(store.clone(), table_root(table), table, shared.clone());
        let samples = Arc::new(open(Table::Samples).await.expect("memory"));
        let series = Arc::new(open(Table::Series).await.expect("memory"));
        let table = Arc::new(open(tier.table).await.expect("memory"));
        let job = TierJob::new(tier, samples.clone(), series.clone(), table.clone(), shared.clone());
        Self { store, clock, samples, series, tier, table, job, written: BTreeMap::new(), kinds: BTreeMap::new() }
    }

    /// A row of `series` for a day.
    async fn describe(&mut self, series_id: i64, kind: MetricKind, date: i32) {
        let labels = Labels::from_pairs([("__name__", "m".to_owned()), ("i", series_id.to_string())]).expect("valid");
        let (unit, help) = (String::new(), String::new());
        let row = SeriesRow { series_id, probe: 0, labels, kind, unit, help, first_seen_ms: None, last_seen_ms: None, samples: None };
        let file = write_series(&[row], &FileIdentity::new(TenantId::default(), date, None, self.clock.now_ms())).expect("rows");
        self.series.upload(&file.entry, file.bytes).await.expect("memory");
        self.series.commit(&Commit { adds: vec![file.entry], ..Commit::new("WRITE") }).await.expect("memory");
        self.kinds.insert(series_id, kind);
    }

    /// One flush at `now_ms`.
    async fn flush(&mut self, now_ms: i64, samples: &[Sample]) {
        self.clock.set(now_ms);
        let mut by_date: BTreeMap<i32, BTreeMap<i64, BTreeMap<i64, f64>>> = BTreeMap::new();
        for &(series, time, value) in samples {
            by_date.entry(date_of_ms(time)).or_default().entry(series).or_default().insert(time, value);
            self.written.insert((series, time), value);
        }
        let mut commit = Commit::new("WRITE");
        for (date, series) in by_date {
            let columns: Vec<(i64, Vec<i64>, Vec<f64>)> =
                series.into_iter().map(|(id, s)| (id, s.keys().copied().collect(), s.values().copied().collect())).collect();
            let slices = columns.iter().map(|(id, times, values)| SeriesSlice { metric: "m", series_id: *id, times, values });
            let file = write_samples(slices, &FileIdentity::new(TenantId::default(), date, None, now_ms)).expect("sorted");
            self.samples.upload(&file.entry, file.bytes).await.expect("memory");
            commit.adds.push(file.entry);
        }
        self.samples.commit(&commit).await.expect("memory");
    }

    async fn run(&self) -> TierReport {
        self.job.run().await.expect("runs")
    }

    async fn rows(&self) -> Vec<Seen> {
        let mut rows = Vec::new();
        for file in self.table.refresh().await.expect("memory").files() {
            let batch = read(&self.table, file).await.expect("whole");
            let time = |c: usize, i: usize| {
                let times = batch.column(c).as_primitive::<TimestampMicrosecondType>();
                times.is_valid(i).then(|| (times.value(i) / 1_000).cast_unsigned())
            };
            let float = |c: usize, i: usize| {
                let values = batch.column(c).as_primitive::<Float64Type>();
                values.is_valid(i).then(|| values.value(i).to_bits())
            };
            let int = |c: usize, i: usize| batch.column(c).as_primitive::<Int64Type>().value(i);
            for i in 0..batch.num_rows() {
                let end = time(2, i).expect("a key").cast_signed();
                assert_eq!(date_of_ms(end), file.date, "R1");
                let (ranges, edges) = ([float(4, i), float(5, i), float(6, i)], [float(7, i), time(9, i), time(10, i), float(11, i)]);
                rows.push((int(1, i), end, int(3, i), ranges, edges, float(8, i)));
            }
        }
        rows.sort_unstable();
        rows
    }

    /// R3 and R5 by brute force, for windows that are closed at `until_ms`. Values whose sums are exact keep it simple.
    fn expected(&self, until_ms: i64) -> Vec<Seen> {
        let mut windows: BTreeMap<(i64, i64), Vec<(i64, f64)>> = BTreeMap::new();
        for (&(series, time), &value) in self.written.iter().filter(|(_, v)| !is_stale(**v)) {
            let width = self.tier.width_ms;
            let end = (time + width - 1).div_euclid(width) * width;
            windows.entry((series, end)).or_default().push((time, value));
        }
        let closed = windows.into_iter().filter(|((_, end), _)| *end <= until_ms);
        closed.map(|((series, end), samples)| brute(series, end, &samples, self.kinds.get(&series).copied())).collect()
    }

    fn until(&self, newest_ms: i64) -> i64 {
        (newest_ms - GRACE_MS).div_euclid(self.tier.width_ms) * self.tier.width_ms
    }
}

fn brute(series: i64, end: i64, samples: &[(i64, f64)], kind: Option<MetricKind>) -> Seen {
    let values: Vec<f64> = samples.iter().map(|s| s.1).collect();
    let (first, last) = (samples[0], samples[samples.len() - 1]);
    let best = |pick: fn(f64, f64) -> f64| values.iter().copied().fold(f64::NAN, pick);
    let increase: f64 = values.windows(2).fold(0.0, |sum, v| sum + if v[1] < v[0] { v[1] } else { v[1] - v[0] });
    let bits = |v: f64, has: bool| has.then(|| v.to_bits());
    let (ranges, edges) = (kind != Some(MetricKind::Counter), kind != Some(MetricKind::Gauge));
    let time = |t: i64| edges.then_some(t.cast_unsigned());
    let sum = values.iter().skip(1).fold(values[0], |a, b| a + b);
    (
        series,
        end,
        values.len() as i64,
        [bits(sum, ranges), bits(best(f64::min), ranges), bits(best(f64::max), ranges)],
        [bits(first.1, edges), time(first.0), time(last.0), bits(increase, edges)],
        Some(last.1.to_bits()),
    )
}

#[tokio::test]
async fn windows_are_written_once_they_are_closed_and_never_twice() {
    let mut world = World::new(MINUTE).await;
    let samples: Vec<Sample> = (0..40).map(|i| (i % 2, START_MS + i * 10_000, i as f64)).collect();
    world.flush(START_MS + 400_000, &samples).await;
    let first = world.run().await;
    assert!(first.rows > 0 && first.replaced == 0);
    assert_eq!(world.rows().await, world.expected(world.until(START_MS + 400_000)));
    let again = world.run().await;
    assert_eq!((again.rows, again.added), (0, 0));
    // The open windows close with a later version that brings nothing of theirs.
    world.flush(START_MS + 600_000, &[(7, START_MS + 590_000, 1.0)]).await;
    let later = world.run().await;
    assert_eq!(later.replaced, 0, "no file was written twice for windows that were merely open");
    assert_eq!(world.rows().await, world.expected(START_MS + 400_000 + WINDOW_MS));
}

#[tokio::test]
async fn a_tier_waits_for_its_next_window() {
    let mut world = World::new(Tier::ALL[2]).await;
    world.flush(START_MS, &[(1, START_MS - 7_200_000, 1.0)]).await;
    assert_eq!(world.run().await.consumed, 1);
    world.flush(START_MS + 60_000, &[(1, START_MS - 7_100_000, 2.0)]).await;
    assert_eq!(world.run().await.consumed, 1, "an hour is not over");
    world.flush(START_MS + 3_600_000, &[]).await;
    assert_eq!(world.run().await.consumed, 3);
    assert_eq!(world.rows().await, world.expected(START_MS));
}

#[tokio::test]
async fn late_samples_reopen_their_windows_only() {
    let mut world = World::new(MINUTE).await;
    let samples: Vec<Sample> = (0..200).map(|i| (i % 4, START_MS + i * 3_000, (i * 7 % 50) as f64)).collect();
    world.flush(START_MS + 3_600_000, &samples).await;
    world.run().await;
    world.flush(START_MS + 3_700_000, &[(1, START_MS + 100_500, 99.0), (9, START_MS + 5_000, 3.0)]).await;
    assert_eq!(world.run().await.replaced, 1);
    assert_eq!(world.rows().await, world.expected(START_MS + 3_600_000));
}

#[tokio::test]
async fn what_comes_a_day_late_waits_for_the_slower_queue() {
    let mut world = World::new(MINUTE).await;
    world.flush(START_MS, &[(1, START_MS - 199_000, 4.0)]).await;
    world.run().await;
    let before = world.rows().await;
    let now = START_MS + LATE_MS + 600_000;
    // Late for an old row, late for a window without one, and in time.
    world.flush(now, &[(1, START_MS - 190_000, 2.0), (1, 1_000, 7.0), (1, now - 300_000, 1.0)]).await;
    world.run().await;
    assert_eq!(world.rows().await.len(), before.len() + 1);
    assert_eq!(world.job.consumed(), Some(1), "the slower queue holds the log");
    let report = world.job.run_late().await.expect("runs");
    assert_eq!((report.replaced, report.merged, world.job.consumed()), (1, 0, Some(2)));
    assert_eq!(world.rows().await, world.expected(now));
    assert_eq!(world.job.run_late().await.expect("runs").added, 0);
}

#[tokio::test]
async fn late_samples_are_merged_into_rows_whose_raw_is_gone() {
    let mut world = World::new(MINUTE).await;
    world.flush(START_MS, &[(1, START_MS - 199_000, 4.0), (1, START_MS - 190_000, 10.0)]).await;
    world.run().await;
    let now = START_MS + 3 * DAY_MS;
    world.flush(now, &[(1, now - 120_000, 1.0)]).await;
    world.run().await;
    world.job.run_late().await.expect("runs");
    let keep: Keep = [(Table::Samples, DAY_MS)].into_iter().collect();
    let retention = Retention::new(Policy { defaults: keep, overrides: Vec::new() }, world.clock.clone());
    let consumed = Consumed { version: world.job.consumed().expect("ran"), until_ms: world.job.until_ms().expect("ran") };
    assert_eq!(retention.samples(&world.samples, Some(consumed)).await.expect("runs").removed, 1);
    world.flush(now + 300_000, &[(1, START_MS - 195_000, 6.0), (2, START_MS - 195_000, 5.0)]).await;
    world.run().await;
    let report = world.job.run_late().await.expect("runs");
    assert_eq!((report.merged, report.replaced), (1, 1));
    let mut want = world.expected(now);
    // 4, 6, 10 are one increase of 6 in any case.
    want.retain(|row| row.1 <= now - 120_000 + WINDOW_MS);
    let rows = world.rows().await;
    assert_eq!(rows.iter().filter(|r| r.0 == 1 && r.1 < START_MS).map(|r| r.2).collect::<Vec<_>>(), [3]);
    assert_eq!(rows, want);
}

#[tokio::test]
async fn a_log_that_was_cut_while_tiers_were_off_makes_the_tier_from_all_files() {
    let mut world = World::new(MINUTE).await;
    let minutes = |from: i64| -> Vec<Sample> { (0..40).map(|i| (i % 2, START_MS + (from + i) * 10_000, i as f64)).collect() };
    world.flush(START_MS + 400_000, &minutes(0)).await;
    world.run().await;
    for n in 1..4 {
        world.flush(START_MS + (n + 1) * 400_000, &minutes(n * 40)).await;
    }
    let cut = world.samples.object_path("_delta_log/00000000000000000002.json").expect("a path");
    object_store::ObjectStoreExt::delete(world.samples.store().as_ref(), &cut).await.expect("was there");
    world.run().await;
    assert_eq!(world.rows().await, world.expected(START_MS + 1_600_000 - GRACE_MS));
    assert_eq!(world.job.consumed(), Some(4));
}

#[tokio::test]
async fn resets_gaps_nan_stale_markers_and_midnight_come_out_as_documented() {
    let mut world = World::new(MINUTE).await;
    let midnight = (date_of_ms(START_MS) as i64 + 1) * DAY_MS;
    let samples = [
        (1, midnight - 30_000, 10.0),
        (1, midnight - 20_000, 15.0),
        (1, midnight - 10_000, 2.0),
        (1, midnight, 5.0),
        (2, midnight + 1, f64::NAN),
        (2, midnight + 2, 4.0),
        (3, midnight + 3, stale_marker()),
    ];
    world.flush(midnight + 300_000, &samples).await;
    world.run().await;
    let rows = world.rows().await;
    let four = Some(4.0_f64.to_bits());
    assert_eq!(rows.len(), 2, "a window of stale markers has no row");
    assert_eq!((rows[0].1, rows[0].2, rows[0].4[3]), (midnight, 4, Some(10.0_f64.to_bits())));
    assert_eq!((rows[1].2, rows[1].3[1], rows[1].3[2]), (2, four, four));
}

#[test]
fn sums_are_compensated_and_infinities_stay() {
    let metric: Arc<str> = Arc::from("m");
    let sum = |values: &[f64]| {
        let times: Vec<i64> = (0..values.len() as i64).collect();
        aggregate(&metric, 1, 100, &times, values).expect("values").sum
    };
    assert_eq!(sum(&[1e16, 1.0, -1e16]), 1.0);
    assert_eq!(sum(&[1.0, f64::INFINITY, 2.0]), f64::INFINITY);
    assert!(sum(&[f64::INFINITY, f64::NEG_INFINITY]).is_nan());
}

#[tokio::test]
async fn columns_follow_the_kind_of_the_day() {
    let mut world = World::new(MINUTE).await;
    let day = date_of_ms(START_MS);
    world.describe(1, MetricKind::Counter, day).await;
    world.describe(2, MetricKind::Gauge, day).await;
    world.describe(3, MetricKind::Histogram, day).await;
    // Two processes that disagree.
    world.describe(4, MetricKind::Counter, day).await;
    world.describe(4, MetricKind::Gauge, day).await;
    world.kinds.remove(&4);
    // Only the day before knows it: the window that ends at midnight.
    let midnight = (i64::from(day) + 1) * DAY_MS;
    let mut samples: Vec<Sample> = (1..6).map(|i| (i, START_MS, i as f64)).collect();
    samples.push((2, midnight - 5, 3.0));
    world.flush(midnight + 600_000, &samples).await;
    world.run().await;
    assert_eq!(world.rows().await, world.expected(midnight));
}

#[tokio::test]
async fn of_two_jobs_at_once_one_commits() {
    let mut world = World::new(MINUTE).await;
    world.flush(START_MS + 300_000, &[(1, START_MS, 1.0)]).await;
    let second = TierJob::new(MINUTE, world.samples.clone(), world.series.clone(), world.table.clone(), world.clock.clone());
    let (a, b) = tokio::join!(world.job.run(), second.run());
    assert!(a.is_ok() || b.is_ok());
    world.clock.advance(Duration::from_secs(1));
    assert_eq!(world.rows().await, world.expected(START_MS + 240_000));
}

#[tokio::test]
async fn many_small_files_of_a_day_become_one() {
    let mut world = World::new(MINUTE).await;
    for n in 0..40 {
        world.flush(START_MS + 70_000 * n, &[(1, START_MS + 70_000 * n - 65_000, n as f64)]).await;
        world.run().await;
    }
    assert!(world.table.snapshot().totals().files < 10, "{:?}", world.table.snapshot().totals());
    assert_eq!(world.rows().await, world.expected(world.until(START_MS + 70_000 * 39)));
}

/// How many files arrive, when, and with which samples.
fn arrivals() -> impl Strategy<Value = Vec<(i64, Vec<Sample>)>> {
    let value = prop_oneof![
        6 => (0_i64..200).prop_map(|v| v as f64 * 0.25),
        1 => Just(f64::NAN),
        1 => Just(stale_marker()),
        1 => Just(0.0),
    ];
    // Times around two midnights; some are a day late or later.
    let sample = (1_i64..5, 0_i64..400, value).prop_map(|(series, slot, value)| (series, START_MS + slot * 731_000, value));
    prop::collection::vec((1_i64..40_000_000, prop::collection::vec(sample, 0..30)), 1..8)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn a_tier_is_the_aggregate_of_raw_whatever_comes_when(arrivals in arrivals(), which in 0_usize..3, order in any::<u64>()) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        runtime.block_on(async {
            let mut world = World::new(Tier::ALL[which]).await;
            for date in 0..5 {
                world.describe(1, MetricKind::Counter, date_of_ms(START_MS) + date).await;
                world.describe(2, MetricKind::Gauge, date_of_ms(START_MS) + date).await;
            }
            let (mut now, mut seen) = (START_MS, std::collections::HashSet::new());
            for (n, (pause, samples)) in arrivals.into_iter().enumerate() {
                now += pause;
                // One value per (series, time): which of two wins is another test's matter.
                let new: Vec<Sample> = samples.into_iter().filter(|s| seen.insert((s.0, s.1))).collect();
                world.flush(now, &new).await;
                if order >> n & 1 == 1 {
                    world.run().await;
                }
                if order >> (n + 20) & 1 == 1 {
                    world.job.run_late().await.expect("runs");
                }
            }
            let end = now + 400_000_000;
            world.flush(end, &[]).await;
            world.run().await;
            world.job.run_late().await.expect("runs");
            assert_eq!(world.rows().await, world.expected(world.until(end)));
            assert_eq!(world.job.consumed(), Some(world.samples.snapshot().version()));
        });
    }
}

#[tokio::test]
async fn a_run_whose_answers_get_lost_is_made_again_and_counts_once() {
    for fault in [Fault::LosesAnswer, Fault::LandsThenConflicts] {
        let mut world = World::new(MINUTE).await;
        world.flush(START_MS + 300_000, &[(1, START_MS, 1.0), (1, START_MS + 10, 2.0)]).await;
        world.store.break_get(".parquet");
        world.job.run().await.expect_err("its file cannot be read");
        assert_eq!(world.job.consumed(), None);
        world.store.break_put("samples_1m/_delta_log/00000000000000000001.json", fault);
        world.run().await;
        world.run().await;
        assert_eq!(world.rows().await, world.expected(START_MS + 240_000));
    }
}

/// Bytes of a day of each tier relative to the day's raw file: synthetic gauges and counters, a sample every 15 s.
#[tokio::test]
async fn tiers_of_typical_data_are_as_small_as_documented() {
    use super::row::batch;
    use super::window::compute;
    use crate::parquet_file::write_batch;
    const SERIES: i64 = 40;
    let day = i64::from(date_of_ms(START_MS)) * DAY_MS;
    let mut random = 0x9E37_79B9_7F4A_7C15_u64;
    let mut step = move || {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (random >> 33) % 1_000
    };
    let mut columns = Vec::new();
    for id in 0..SERIES {
        let jitter = step().cast_signed() * 15;
        let (mut times, mut values, mut value) = (Vec::new(), Vec::new(), 5_000.0);
        for i in 0..5_760_i64 {
            times.push(day + jitter + i * 15_000);
            value += if id % 2 == 0 { step() as f64 } else { (step() as f64 - 500.0) * 0.01 };
            values.push(value);
        }
        columns.push((id, times, values));
    }
    let identity = || FileIdentity::new(TenantId::default(), date_of_ms(START_MS), None, START_MS);
    let slices = columns.iter().map(|(id, times, values)| SeriesSlice { metric: "m", series_id: *id, times, values });
    let raw = write_samples(slices, &identity()).expect("sorted");
    let world = World::new(MINUTE).await;
    world.samples.upload(&raw.entry, raw.bytes).await.expect("memory");
    let files = [Arc::new(raw.entry)];
    let mut sizes = Vec::new();
    for tier in Tier::ALL {
        let ends: Vec<i64> =
            (1..=DAY_MS / tier.width_ms).map(|i| day + i * tier.width_ms).filter(|end| date_of_ms(*end) == date_of_ms(day)).collect();
        let windows: Windows = (0..SERIES).map(|id| ((Arc::from("m"), id), ends.clone())).collect();
        let rows = compute(tier, &world.samples, &files, &windows).await.expect("memory");
        for by_kind in [true, false] {
            let kind = |id: i64| {
                if !by_kind {
                    kinds::RowKind::All
                } else if id % 2 == 0 {
                    kinds::RowKind::Counter
                } else {
                    kinds::RowKind::Gauge
                }
            };
            let kinds: Vec<kinds::RowKind> = rows.iter().map(|r| kind(r.series_id)).collect();
            let file = write_batch(tier.table, &[batch(&rows, &kinds).expect("columns")], &identity()).expect("rows");
            sizes.push((tier.name, by_kind, file.entry.size as f64 / files[0].size as f64));
        }
    }
    for ((name, by_kind, share), most) in sizes.iter().zip([1.2, 1.8, 0.25, 0.4, 0.03, 0.05]) {
        assert!(share <= &most, "{name} by kind {by_kind}: {share}");
    }
}
