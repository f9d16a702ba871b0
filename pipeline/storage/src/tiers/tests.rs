//! The tier against a plain aggregation of everything that was written, whatever the order of arrival.

use super::window::{Row, aggregate};
use super::*;
use crate::delta::store::table_root;
use crate::parquet_file::{SeriesSlice, write_samples};
use arrow::array::AsArray;
use arrow::datatypes::{Float64Type, Int64Type, TimestampMicrosecondType};
use fletch_common::{ManualClock, SharedClock};
use fletch_schemas::tables::Table;
use fletch_schemas::{TenantId, date_of_ms, stale_marker};
use object_store::memory::InMemory;
use std::collections::BTreeMap;
use std::time::Duration;

const START_MS: i64 = 1_700_000_000_000;

struct World {
    clock: Arc<ManualClock>,
    samples: Arc<DeltaTable>,
    tier: Arc<DeltaTable>,
    job: TierJob,
    written: BTreeMap<(i64, i64), f64>,
}

type Sample = (i64, i64, f64);

impl World {
    async fn new() -> Self {
        let (store, clock) = (Arc::new(InMemory::new()), ManualClock::at(START_MS));
        let shared: SharedClock = clock.clone();
        let open = |table| DeltaTable::open_or_create(store.clone(), table_root(table), table, shared.clone());
        let samples = Arc::new(open(Table::Samples).await.expect("memory"));
        let tier = Arc::new(open(Table::Samples1m).await.expect("memory"));
        let job = TierJob::new(samples.clone(), tier.clone(), shared.clone());
        Self { clock, samples, tier, job, written: BTreeMap::new() }
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
            let identity = crate::delta::FileIdentity::new(TenantId::default(), date, None, now_ms);
            let file = write_samples(slices, &identity).expect("sorted");
            self.samples.upload(&file.entry, file.bytes).await.expect("memory");
            commit.adds.push(file.entry);
        }
        self.samples.commit(&commit).await.expect("memory");
    }

    async fn rows(&self) -> Vec<Row> {
        let mut rows = Vec::new();
        for file in self.tier.refresh().await.expect("memory").files() {
            let path = self.tier.object_path(&file.path).expect("ours");
            let bytes = FileSource::object(self.tier.store().clone(), path, file).bytes().await.expect("whole");
            let reader =
                parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder::try_new(bytes).expect("parquet").build().expect("parquet");
            for batch in reader {
                let batch = batch.expect("parquet");
                let time = |c: usize, i: usize| batch.column(c).as_primitive::<TimestampMicrosecondType>().value(i) / 1_000;
                let float = |c: usize, i: usize| batch.column(c).as_primitive::<Float64Type>().value(i);
                rows.extend((0..batch.num_rows()).map(|i| {
                    assert_eq!(date_of_ms(time(2, i)), file.date, "R1");
                    Row {
                        metric: "m".into(),
                        series_id: batch.column(1).as_primitive::<Int64Type>().value(i),
                        time_ms: time(2, i),
                        count: batch.column(3).as_primitive::<Int64Type>().value(i),
                        sum: float(4, i),
                        min: float(5, i),
                        max: float(6, i),
                        first: float(7, i),
                        last: float(8, i),
                        first_time_ms: time(9, i),
                        last_time_ms: time(10, i),
                        increase: float(11, i),
                    }
                }));
            }
        }
        rows.sort_by_key(|r| (r.series_id, r.time_ms));
        rows
    }

    /// R3 by brute force, for windows that are closed at `until_ms`.
    fn expected(&self, until_ms: i64) -> Vec<Row> {
        let mut windows: BTreeMap<(i64, i64), (Vec<i64>, Vec<f64>)> = BTreeMap::new();
        for (&(series, time), &value) in &self.written {
            let window = windows.entry((series, touched::window_end(time))).or_default();
            window.0.push(time);
            window.1.push(value);
        }
        let closed = windows.into_iter().filter(|((_, end), _)| *end <= until_ms);
        closed.filter_map(|((series, end), (t, v))| aggregate(&Arc::from("m"), series, end, &t, &v)).collect()
    }
}

fn same(a: &[Row], b: &[Row]) {
    assert_eq!(format!("{a:?}"), format!("{b:?}"));
}

#[tokio::test]
async fn windows_are_written_once_they_are_closed_and_never_twice() {
    let mut world = World::new().await;
    let samples: Vec<Sample> = (0..40).map(|i| (i % 2, START_MS + i * 10_000, i as f64)).collect();
    world.flush(START_MS + 400_000, &samples).await;
    let first = world.job.run().await.expect("runs");
    assert!(first.rows > 0 && first.replaced == 0);
    let until = (START_MS + 400_000 - GRACE_MS).div_euclid(WINDOW_MS) * WINDOW_MS;
    same(&world.rows().await, &world.expected(until));
    let again = world.job.run().await.expect("runs");
    assert_eq!((again.rows, again.added), (0, 0));
    // The open windows close with a later version that brings nothing of theirs.
    world.flush(START_MS + 600_000, &[(7, START_MS + 590_000, 1.0)]).await;
    let later = world.job.run().await.expect("runs");
    assert_eq!(later.replaced, 0, "no file was written twice for windows that were merely open");
    same(&world.rows().await, &world.expected(START_MS + 400_000 + WINDOW_MS));
}

#[tokio::test]
async fn late_samples_reopen_their_windows_only() {
    let mut world = World::new().await;
    let samples: Vec<Sample> = (0..200).map(|i| (i % 4, START_MS + i * 3_000, (i * 7 % 50) as f64)).collect();
    world.flush(START_MS + 3_600_000, &samples).await;
    world.job.run().await.expect("runs");
    world.flush(START_MS + 3_700_000, &[(1, START_MS + 100_500, 99.0), (9, START_MS + 5_000, 3.0)]).await;
    let report = world.job.run().await.expect("runs");
    assert_eq!(report.replaced, 1);
    same(&world.rows().await, &world.expected(START_MS + 3_600_000));
}

#[tokio::test]
async fn a_log_that_was_cut_while_tiers_were_off_makes_the_tier_from_all_files() {
    let mut world = World::new().await;
    let minutes = |from: i64| -> Vec<Sample> { (0..40).map(|i| (i % 2, START_MS + (from + i) * 10_000, i as f64)).collect() };
    world.flush(START_MS + 400_000, &minutes(0)).await;
    world.job.run().await.expect("runs");
    for n in 1..4 {
        world.flush(START_MS + (n + 1) * 400_000, &minutes(n * 40)).await;
    }
    let cut = world.samples.object_path("_delta_log/00000000000000000002.json").expect("a path");
    object_store::ObjectStoreExt::delete(world.samples.store().as_ref(), &cut).await.expect("was there");
    world.job.run().await.expect("runs");
    same(&world.rows().await, &world.expected(START_MS + 1_600_000 - GRACE_MS));
}

#[tokio::test]
async fn resets_gaps_nan_stale_markers_and_midnight_come_out_as_documented() {
    let mut world = World::new().await;
    let midnight = (date_of_ms(START_MS) as i64 + 1) * 86_400_000;
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
    world.job.run().await.expect("runs");
    let rows = world.rows().await;
    assert_eq!(rows.len(), 2, "a window of stale markers has no row");
    assert_eq!((rows[0].time_ms, rows[0].count, rows[0].increase), (midnight, 4, 10.0));
    assert_eq!((rows[1].min, rows[1].max, rows[1].count), (4.0, 4.0, 2));
}

#[tokio::test]
async fn of_two_jobs_at_once_one_commits() {
    let mut world = World::new().await;
    world.flush(START_MS + 300_000, &[(1, START_MS, 1.0)]).await;
    let second = TierJob::new(world.samples.clone(), world.tier.clone(), world.clock.clone());
    let (a, b) = tokio::join!(world.job.run(), second.run());
    assert!(a.is_ok() || b.is_ok());
    world.clock.advance(Duration::from_secs(1));
    same(&world.rows().await, &world.expected(START_MS + 240_000));
}

#[tokio::test]
async fn any_split_into_flushes_gives_the_same_tier() {
    let samples: Vec<Sample> = (0..300_i64).map(|i| (i % 3, START_MS + (i * 7_919) % 900_000, (i % 17) as f64)).collect();
    let mut tiers = Vec::new();
    for cut in [300, 50, 7] {
        let mut world = World::new().await;
        for (n, chunk) in samples.chunks(cut).enumerate() {
            world.flush(START_MS + 900_000 + n as i64 * 1_000, chunk).await;
            world.job.run().await.expect("runs");
        }
        world.flush(START_MS + 2_000_000, &[]).await;
        world.job.run().await.expect("runs");
        same(&world.rows().await, &world.expected(START_MS + 1_900_000));
        tiers.push(format!("{:?}", world.rows().await));
    }
    assert!(tiers.windows(2).all(|w| w[0] == w[1]));
}
