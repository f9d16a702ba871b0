//! Compaction against brute force, rivals, and a store that breaks on purpose.

use super::*;
use crate::StorageError;
use crate::delta::store::table_root;
use crate::delta::testing::Fault;
use crate::engine::tests::{Content, DAY, LIMITS, NOON, Process, Row, World, content, rows, settings, tenant, truth};
use crate::tiers::{Tier, TierJob};
use fletch_schemas::tables::Table;
use futures::TryStreamExt;
use object_store::{ObjectStore, ObjectStoreExt};
use proptest::prelude::*;
use tokio_util::sync::CancellationToken;

fn compactor(world: &World, settings: Settings) -> Compactor {
    Compactor::new(settings, world.clock.clone())
}

/// The handle of another process.
async fn handle(world: &World, table: Table) -> DeltaTable {
    DeltaTable::open_or_create(world.store.clone(), table_root(table), table, world.clock.clone()).await.expect("opens")
}

async fn parquet_files(world: &World, table: Table) -> usize {
    let all: Vec<_> = world.store.list(Some(&table_root(table))).try_collect().await.expect("lists");
    all.iter().filter(|o| o.location.as_ref().ends_with(".parquet") && !o.location.as_ref().contains("_delta_log")).count()
}

/// Three flushes of tenant `a` whose keys overlap, with a copy that memory does not know of.
async fn three_flushes(world: &Arc<World>) -> (Process, Vec<Row>) {
    let all: Vec<Row> = vec![
        ("a", "x", NOON, 1.0),
        ("a", "y", NOON, 5.0),
        ("a", "x", NOON + 10, 2.0),
        ("a", "other/z", NOON, 3.0),
        ("a", "x", NOON, 4.0),
        ("a", "x", NOON + 20, 4.0),
    ];
    let process = world.start(settings()).await;
    for two in all.chunks(2) {
        process.push(two);
        process.storage.flush().await.expect("flushes");
    }
    (process, all)
}

fn active(process: &Process, table: Table) -> usize {
    process.storage.view(&tenant("a")).files(table).len()
}

#[tokio::test]
async fn small_files_become_one_with_each_sample_once_and_views_follow() {
    let world = World::new();
    let (process, all) = three_flushes(&world).await;
    assert_eq!((active(&process, Table::Samples), active(&process, Table::Series)), (3, 2));
    assert_eq!(process.stored("a").await.len(), 6, "a copy of (x, noon) among them");
    let read_before = process.storage.metrics().files_read.get();
    let report = process.storage.compact(&compactor(&world, Settings::default()), When::Now).await.expect("compacts");
    assert_eq!((report.jobs, report.removed, report.added, report.conflicts, report.failed), (2, 5, 2, 0, 0));
    assert_eq!((report.rows_in - report.rows_out, active(&process, Table::Samples), active(&process, Table::Series)), (1, 1, 1));
    assert_eq!(process.stored("a").await.len(), 5);
    assert_eq!(process.read("a").await, truth(&all, "a"));
    assert_eq!(process.storage.metrics().files_read.get(), read_before, "its inputs were in memory: nothing was read");
    let file = process.storage.view(&tenant("a")).files(Table::Samples)[0].clone();
    assert!(file.compacted.is_some() && !file.data_change && file.hash.is_some());
    assert_eq!(file.bus, Some(BusRange { partition: 0, from: 0, to: 3 }));
    let again = process.storage.compact(&compactor(&world, Settings::default()), When::Now).await.expect("nothing to do");
    assert_eq!(again, Report::default());
    drop(process);
    let process = world.start(settings()).await;
    assert_eq!(process.read("a").await, truth(&all, "a"));
    process.push(&[("a", "x", NOON, 4.0), ("a", "new", NOON, 1.0)]);
    assert_eq!(process.storage.metrics().copies_dropped.get(), 1, "the retry index knows the output's samples");
    process.storage.flush().await.expect("flushes");
    assert_eq!(active(&process, Table::Series), 2, "only the new series got a row");
}

#[tokio::test]
async fn of_two_compactions_of_one_file_the_second_fails_and_leaves_nothing() {
    let world = World::new();
    let (process, all) = three_flushes(&world).await;
    let (first, second) = (handle(&world, Table::Samples).await, handle(&world, Table::Samples).await);
    let compactor = compactor(&world, Settings::default());
    let job = plan::plan(&second.snapshot(), &Settings::default(), When::Now, 0).remove(0);
    compactor.merge(&first, &job).await.expect("the first one lands");
    let files = parquet_files(&world, Table::Samples).await;
    let error = compactor.merge(&second, &job).await.expect_err("its inputs are gone");
    assert!(matches!(error, StorageError::Superseded { table: "samples", .. }), "{error}");
    assert_eq!(parquet_files(&world, Table::Samples).await, files, "what it wrote is deleted again");
    let (a, b) = tokio::join!(compactor.run(&first, When::Now), compactor.run(&second, When::Now));
    assert_eq!((a.expect("runs"), b.expect("plans again")), (Report::default(), Report::default()));
    process.storage.refresh().await.expect("refreshes");
    assert_eq!((process.read("a").await, process.stored("a").await.len()), (truth(&all, "a"), 5));
}

#[tokio::test]
async fn a_lease_keeps_a_second_process_from_the_same_work() {
    let world = World::new();
    let (process, _) = three_flushes(&world).await;
    let leases = Leases::new(world.store.clone(), world.clock.clone());
    let lease = leases.acquire("compact-samples-a-1000", "other", Duration::from_secs(60)).await.expect("asks").expect("free");
    let ours = compactor(&world, Settings::default()).with_leases(leases.clone(), "me".into());
    let report = process.storage.compact(&ours, When::Now).await.expect("runs");
    assert_eq!((report.jobs, report.busy, active(&process, Table::Samples)), (1, 1, 3), "only `series`");
    leases.retire(&lease).await.expect("gives it back");
    assert_eq!(process.storage.compact(&ours, When::Now).await.expect("runs").jobs, 1);
    let left: Vec<_> = world.store.list(Some(&"lease".into())).try_collect().await.expect("lists");
    assert!(left.is_empty(), "{left:?}");
}

/// Breaks the upload or the commit, in each way, in this life or with a restart after it: what a crash at the failpoints around the commit
/// leaves in the store is among these.
#[tokio::test]
async fn a_compaction_that_breaks_loses_nothing_and_doubles_nothing() {
    let faults = [Fault::Fails, Fault::LosesAnswer, Fault::LandsLater, Fault::LandsThenConflicts];
    for step in [".parquet", "samples/_delta_log/00000000000000000004.json"] {
        for fault in faults {
            for crash in [false, true] {
                let what = format!("{step} {fault:?} crash: {crash}");
                let world = World::new();
                let (mut process, all) = three_flushes(&world).await;
                world.store.break_put(step, fault);
                let first = process.storage.compact(&compactor(&world, Settings::default()), When::Now).await;
                assert_eq!(process.read("a").await, truth(&all, "a"), "{what}: after {first:?}");
                if crash {
                    process = world.start(settings()).await;
                }
                process.storage.compact(&compactor(&world, Settings::default()), When::Now).await.expect(&what);
                assert_eq!(process.read("a").await, truth(&all, "a"), "{what}");
                assert_eq!((process.stored("a").await.len(), active(&process, Table::Samples)), (5, 1), "{what}");
            }
        }
    }
}

#[tokio::test]
async fn a_damaged_input_is_named_and_other_days_are_compacted() {
    let world = World::new();
    let process = world.start(settings()).await;
    for i in 0..2 {
        process.push(&[("a", "x", NOON + i, 1.0), ("a", "x", NOON + DAY + i, 1.0)]);
        process.storage.flush().await.expect("flushes");
    }
    let file = process.storage.view(&tenant("a")).files(Table::Samples)[0].clone();
    let path = process.storage.samples_table().object_path(&file.path).expect("a path");
    let mut bytes = world.store.get(&path).await.expect("gets").bytes().await.expect("reads").to_vec();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    world.store.put(&path, bytes.into()).await.expect("puts");
    let compactor = compactor(&world, Settings { whole_bytes_max: 0, ..Settings::default() });
    let report = compactor.run(process.storage.samples_table(), When::Now).await.expect("the other day is compacted");
    assert_eq!((report.jobs, report.failed), (1, 1));
    let error = compactor.run(process.storage.samples_table(), When::Now).await.expect_err("nothing else is left to do");
    assert!(matches!(&error, StorageError::Corrupt { path, .. } if path.contains(&file.path)), "{error}");
}

#[tokio::test]
async fn a_view_keeps_its_files_until_it_closes_and_others_keep_theirs_for_the_retention() {
    let world = World::new();
    let (process, all) = three_flushes(&world).await;
    drop(process);
    // Nothing stays in memory: every read is a read of files.
    let process = world.start(no_memory()).await;
    let view = process.storage.view(&tenant("a"));
    process.storage.compact(&compactor(&world, Settings::default()), When::Now).await.expect("compacts");
    let vacuum = |at_once, consumed| process.storage.vacuum(at_once, consumed);
    let report = vacuum(true, None).await.expect("runs");
    assert_eq!((report.files, report.kept), (0, 5), "the view names all of them");
    let old = content(&view.select(&[], i64::MIN, i64::MAX, &LIMITS).await.expect("its files are there"));
    assert_eq!(old, truth(&all, "a"));
    drop(view);
    assert_eq!(vacuum(false, None).await.expect("runs").files, 0, "six hours for readers of other processes");
    assert_eq!(vacuum(true, Some(3)).await.expect("runs").files, 2, "a follower has not consumed the compaction of samples: only `series`");
    world.clock.advance(Duration::from_secs(6 * 3600 + 1));
    assert_eq!(vacuum(false, None).await.expect("runs").files, 3);
    assert_eq!((parquet_files(&world, Table::Samples).await, parquet_files(&world, Table::Series).await), (1, 1));
    assert_eq!(process.read("a").await, truth(&all, "a"));
}

#[tokio::test]
async fn a_reader_that_missed_the_flush_before_a_compaction_sees_its_rows_too() {
    let world = World::new();
    let process = world.start(settings()).await;
    process.push(&[("a", "x", NOON, 1.0)]);
    process.storage.flush().await.expect("flushes");
    let reader = world.start(settings()).await;
    process.push(&[("a", "x", NOON + 1, 2.0)]);
    process.storage.flush().await.expect("flushes");
    process.storage.compact(&compactor(&world, Settings::default()), When::Now).await.expect("compacts");
    let read_before = reader.storage.metrics().files_read.get();
    reader.storage.refresh().await.expect("refreshes");
    assert_eq!(reader.storage.metrics().files_read.get(), read_before + 1, "the output is read before its version is adopted");
    assert_eq!(reader.read("a").await, truth(&[("a", "x", NOON, 1.0), ("a", "x", NOON + 1, 2.0)], "a"));
    assert_eq!(reader.storage.metrics().files_read.get(), read_before + 1, "and stays in memory");
}

/// Settings of storage without any memory for copies of files.
fn no_memory() -> crate::Settings {
    crate::Settings { resident_bytes_max: 0, ..settings() }
}

#[tokio::test]
async fn series_longer_than_what_a_cursor_holds_are_merged_in_order_of_time() {
    let world = World::new();
    let process = world.start(settings()).await;
    let mut all: Vec<Row> = Vec::new();
    // Three files, each with every third sample of one series and a stretch that all of them have.
    for part in 0..3_i64 {
        let own = (0..9_000).map(|i| ("a", "x", NOON + i * 3 + part, 0.5));
        let shared = (0..9_000).map(|i| ("a", "y", NOON + i, 1.0 + part as f64));
        let rows: Vec<Row> = own.chain(shared).collect();
        process.push(&rows);
        process.storage.flush().await.expect("flushes");
        all.extend(rows);
    }
    let settings = Settings { target_bytes: 1, whole_bytes_max: 0, ..Settings::default() };
    let report = process.storage.compact(&compactor(&world, settings), When::Now).await.expect("compacts");
    assert_eq!((report.rows_out, report.failed), (27_000 + 9_000 + 2, 0), "and two rows of `series`");
    assert_eq!(active(&process, Table::Samples), 2, "cut between the two series");
    assert_eq!(process.read("a").await, truth(&all, "a"));
    assert_eq!(world.start(no_memory()).await.read("a").await, truth(&all, "a"));
}

#[tokio::test]
async fn the_tier_computes_nothing_again_for_a_compaction() {
    let world = World::new();
    let (process, _) = three_flushes(&world).await;
    let samples = Arc::new(handle(&world, Table::Samples).await);
    let (series, tier) = (Arc::new(handle(&world, Table::Series).await), Arc::new(handle(&world, Table::Samples1m).await));
    let job = TierJob::new(Tier::ALL[0], samples, series, tier, world.clock.clone());
    assert!(job.run().await.expect("runs").rows > 0);
    process.storage.compact(&compactor(&world, Settings::default()), When::Now).await.expect("compacts");
    let report = job.catch_up().await.expect("runs");
    assert_eq!((report.consumed, report.rows, report.added, report.replaced), (4, 0, 0, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_see_every_sample_once_while_flushes_compactions_and_evictions_run() {
    let world = World::new();
    let process = Arc::new(world.start(crate::Settings { resident_bytes_max: 6_000, ..settings() }).await);
    let stop = CancellationToken::new();
    let (flusher, stopped) = (process.clone(), stop.clone());
    let flushes = tokio::spawn(async move {
        while !stopped.is_cancelled() {
            flusher.storage.flush().await.expect("flushes");
            tokio::task::yield_now().await;
        }
    });
    let (compacts, stopped, elsewhere) = (process.clone(), stop.clone(), handle(&world, Table::Samples).await);
    let rival = compactor(&world, Settings { target_bytes: 1_500, ..Settings::default() });
    let compactions = tokio::spawn(async move {
        let mut jobs = 0;
        while !stopped.is_cancelled() {
            let (ours, theirs) = tokio::join!(compacts.storage.compact(&rival, When::Now), rival.run(&elsewhere, When::Now));
            jobs += ours.expect("runs").jobs + theirs.expect("runs").jobs;
        }
        jobs
    });
    for i in 0..150_i64 {
        process.push(&[("a", "x", NOON + i, 1.0), ("a", "y", NOON + i, 2.0)]);
        let seen = process.read("a").await.len();
        assert_eq!(seen, 2 * (usize::try_from(i).expect("small") + 1));
    }
    stop.cancel();
    flushes.await.expect("ends");
    assert!(compactions.await.expect("ends") > 0);
    process.storage.flush().await.expect("flushes");
    process.storage.compact(&compactor(&world, Settings::default()), When::Now).await.expect("compacts");
    assert_eq!(process.stored("a").await.len(), 300);
    assert_eq!(world.start(settings()).await.read("a").await.len(), 300);
}

/// What happens after each delivery.
#[derive(Debug, Clone, Copy)]
enum Then {
    Nothing,
    Flush,
    Compact,
    CompactElsewhere,
    Background,
    Vacuum,
    Restart,
}

fn then() -> impl Strategy<Value = Then> {
    use Then::{Background, Compact, CompactElsewhere, Flush, Nothing, Restart, Vacuum};
    prop_oneof![
        1 => Just(Nothing),
        4 => Just(Flush),
        2 => Just(Compact),
        1 => Just(CompactElsewhere),
        1 => Just(Background),
        1 => Just(Vacuum),
        1 => Just(Restart),
    ]
}

async fn all_of(process: &Process) -> [Content; 2] {
    [process.read("a").await, process.read("b").await]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn any_arrival_flushes_and_compactions_give_what_brute_force_gives(
        rows in rows(),
        cuts in proptest::collection::vec((1..8_usize, then()), 1..12),
        target_bytes in prop_oneof![Just(1_u64), Just(2_000), Just(128 << 20)],
        resident_bytes_max in prop_oneof![Just(0_u64), Just(900), Just(1 << 30)],
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        runtime.block_on(async {
            let world = World::new();
            let storage = crate::Settings { resident_bytes_max, ..settings() };
            let small = Settings { target_bytes, fan_in: 2, rewrite_bytes_min: 0, ..Settings::default() };
            let compactor = compactor(&world, small);
            let mut process = world.start(storage.clone()).await;
            let (mut rest, mut pushed) = (rows.as_slice(), 0);
            for (len, then) in cuts {
                let (now, later) = rest.split_at(len.min(rest.len()));
                rest = later;
                pushed += now.len();
                process.push(now);
                match then {
                    Then::Nothing => {}
                    Then::Flush => drop(process.storage.flush().await.expect("flushes")),
                    Then::Compact => drop(process.storage.compact(&compactor, When::Now).await.expect("compacts")),
                    Then::CompactElsewhere => {
                        compactor.run(&handle(&world, Table::Samples).await, When::Now).await.expect("compacts");
                        compactor.run(&handle(&world, Table::Series).await, When::Now).await.expect("compacts");
                    }
                    Then::Background => drop(process.storage.compact(&compactor, When::Background).await.expect("compacts")),
                    Then::Vacuum => drop(process.storage.vacuum(true, None).await.expect("runs")),
                    Then::Restart => process = world.start(storage.clone()).await,
                }
                let so_far = ["a", "b"].map(|name| truth(&rows[..pushed], name));
                assert_eq!(all_of(&process).await, so_far, "after {then:?}");
            }
            process.push(rest);
            process.storage.flush().await.expect("flushes");
            process.storage.compact(&compactor, When::Now).await.expect("compacts");
            let expected = ["a", "b"].map(|name| truth(&rows, name));
            for process in [&process, &world.start(storage).await] {
                assert_eq!(all_of(process).await, expected);
                assert_eq!([process.stored("a").await.len(), process.stored("b").await.len()], [expected[0].len(), expected[1].len()]);
            }
            let snapshot = process.storage.samples_table().snapshot();
            assert!(plan::plan(&snapshot, &compactor.settings, When::Now, world_now(&world)).is_empty(), "nothing is left to do");
        });
    }
}

fn world_now(world: &World) -> i64 {
    use fletch_common::Clock;
    world.clock.now_ms()
}
