//! Every kind of damage is planted and must be found, by name.

use super::*;
use crate::delta::{Commit, FileEntry, FileIdentity};
use crate::parquet_file::{EncodedFile, SeriesRow, SeriesSlice, write_samples, write_series};
use crate::tools::verify::{Problem, VerifyOptions, VerifyReport};
use bytes::Bytes;
use fletch_schemas::{Labels, MetricKind, TenantId};

async fn check(world: &World, fast: bool) -> VerifyReport {
    let store: Arc<dyn ObjectStore> = world.store.clone();
    verify(&store, VerifyOptions { fast }, &Silent).await.expect("the store answers")
}

async fn path_of(world: &World, of: Table, which: usize) -> Path {
    let table = table(&world.store, &world.clock, of).await;
    let snapshot = table.snapshot();
    let file = snapshot.files().nth(which).expect("there are so many files").clone();
    table.object_path(&file.path).expect("a path")
}

async fn read(world: &World, path: &Path) -> Vec<u8> {
    world.store.get(path).await.expect("there").bytes().await.expect("reads").to_vec()
}

async fn put(world: &World, path: &Path, bytes: impl Into<Bytes>) {
    world.store.put(path, bytes.into().into()).await.expect("puts");
}

/// The only problem that a check finds.
async fn only(world: &World, fast: bool) -> Problem {
    let report = check(world, fast).await;
    assert_eq!(report.problems.len(), 1, "{:#?}", report.problems);
    assert_eq!(report.problems_total, 1);
    let problem = report.problems[0].clone();
    assert!(!problem.advice.is_empty() && !problem.object.is_empty());
    problem
}

/// Puts a file into a table as its own commit.
async fn commit(world: &World, of: Table, file: EncodedFile) {
    let table = table(&world.store, &world.clock, of).await;
    table.upload(&file.entry, file.bytes.clone()).await.expect("uploads");
    let commit = Commit { adds: vec![file.entry], ..Commit::new("WRITE") };
    table.commit(&commit).await.expect("commits");
}

fn identity(date: i32) -> FileIdentity {
    FileIdentity::new(TenantId::new("a").expect("valid"), date, None, 1_000)
}

#[tokio::test]
async fn a_whole_store_is_all_good_and_stays_untouched() {
    let world = world().await;
    let before = objects(world.store.as_ref()).await;
    for fast in [false, true] {
        let report = check(&world, fast).await;
        assert_eq!((report.problems.as_slice(), report.notes.as_slice()), (&[][..], &[][..]));
        let facts: Vec<(&str, Option<i64>, u64, u64)> =
            report.tables.iter().map(|t| (t.name.as_str(), t.version, t.files, if fast { 0 } else { t.rows })).collect();
        assert_eq!(facts[0], ("samples", Some(2), 5, if fast { 0 } else { 7 }));
        assert_eq!((facts[1].0, facts[2].0), ("samples_1m", "series"));
        assert_eq!(report.tables[2].rows, if fast { 0 } else { 6 });
    }
    assert_eq!(objects(world.store.as_ref()).await, before);
}

#[tokio::test]
async fn a_flipped_byte_is_found_in_every_file() {
    let world = world().await;
    for (of, files) in [(Table::Samples, 5), (Table::Series, 5), (Table::Samples1m, 2)] {
        for which in 0..files {
            let path = path_of(&world, of, which).await;
            let good = read(&world, &path).await;
            let mut bad = good.clone();
            bad[good.len() / 2] ^= 0x10;
            put(&world, &path, bad).await;
            let problem = only(&world, false).await;
            assert_eq!(problem.table, of.name());
            assert!(path.as_ref().ends_with(&problem.object) && problem.what.contains("hash"), "{problem:?}");
            assert_eq!(check(&world, true).await.problems_total, 0, "sizes are right");
            put(&world, &path, good).await;
        }
    }
    assert_eq!(check(&world, false).await.problems_total, 0);
}

#[tokio::test]
async fn truncated_and_missing_files_are_found_even_by_the_fast_check() {
    let world = world().await;
    for of in [Table::Samples, Table::Series, Table::Samples1m] {
        let path = path_of(&world, of, 0).await;
        let good = read(&world, &path).await;
        put(&world, &path, good[..good.len() - 1].to_vec()).await;
        for fast in [true, false] {
            let problem = only(&world, fast).await;
            assert!(problem.what.contains("bytes, the log says"), "{problem:?}");
        }
        world.store.delete(&path).await.expect("deletes");
        for fast in [true, false] {
            let problem = only(&world, fast).await;
            assert!(problem.what.contains("is not there") && problem.table == of.name(), "{problem:?}");
        }
        put(&world, &path, good).await;
    }
}

#[tokio::test]
async fn a_deleted_version_of_the_log_is_found() {
    for version in [0, 1] {
        for of in [Table::Samples, Table::Series] {
            let world = world().await;
            let path = Path::from(format!("tables/{}/_delta_log/{version:020}.json", of.name()));
            world.store.delete(&path).await.expect("deletes");
            let problem = only(&world, true).await;
            assert_eq!(problem.table, of.name());
            let named = if version == 0 { "begins at version 1" } else { "gap" };
            assert!(problem.what.contains(named), "{problem:?}");
            let report = check(&world, false).await;
            assert_eq!(report.problems_total, 1, "the other tables are fine: {:#?}", report.problems);
            assert_eq!(report.notes.len(), usize::from(of == Table::Series), "labels cannot be checked without `series`");
        }
    }
}

#[tokio::test]
async fn a_damaged_commit_is_found() {
    let world = world().await;
    let path = Path::from("tables/samples/_delta_log/00000000000000000002.json");
    let mut bytes = read(&world, &path).await;
    let at = bytes.len() - 10;
    bytes[at] ^= 1;
    put(&world, &path, bytes).await;
    let problem = only(&world, true).await;
    assert!(problem.object.ends_with("2.json") && problem.what.contains("hash"), "{problem:?}");
}

#[tokio::test]
async fn checkpoints_are_compared_with_the_commits() {
    let world = world().await;
    let samples = table(&world.store, &world.clock, Table::Samples).await;
    samples.checkpoint().await.expect("checkpoints");
    let report = check(&world, true).await;
    assert_eq!((report.problems_total, report.tables[0].checkpoints), (0, 1));
    // The log below a checkpoint may be gone, whatever the hint says.
    let first = Path::from("tables/samples/_delta_log/00000000000000000000.json");
    let kept = read(&world, &first).await;
    world.store.delete(&first).await.expect("deletes");
    assert_eq!(check(&world, false).await.problems_total, 0, "cut below a checkpoint");
    put(&world, &first, kept).await;
    // Another table's checkpoint in its place: readable, and wrong.
    let series = table(&world.store, &world.clock, Table::Series).await;
    series.checkpoint().await.expect("checkpoints");
    let at = |name: &str| Path::from(format!("tables/{name}/_delta_log/00000000000000000002.checkpoint.parquet"));
    let bytes = read(&world, &at("series")).await;
    put(&world, &at("samples"), bytes).await;
    let problem = only(&world, true).await;
    assert!(problem.object.contains("checkpoint") && problem.what.contains("hash"), "{problem:?}");
    world.store.delete(&Path::from("tables/samples/_delta_log/_last_checkpoint")).await.expect("deletes");
    let problem = only(&world, true).await;
    assert!(problem.object.contains("checkpoint") && problem.what.contains("does not hold file"), "{problem:?}");
    world.store.delete(&at("samples")).await.expect("deletes");
    put(&world, &Path::from("tables/samples/_delta_log/_last_checkpoint"), "{").await;
    let problem = only(&world, true).await;
    assert!(problem.object.ends_with("_last_checkpoint"), "{problem:?}");
}

#[tokio::test]
async fn samples_without_labels_are_found() {
    let world = world().await;
    let times = [NOON + 120_000];
    let slice = SeriesSlice { metric: "m", series_id: 42, times: &times, values: &[1.0] };
    commit(&world, Table::Samples, write_samples([slice], &identity(1_000)).expect("writes")).await;
    let problem = only(&world, false).await;
    assert!(problem.what.contains("`m` (series 42) has no row in `series` for 1972-09-27"), "{problem:?}");
    assert_eq!(check(&world, true).await.problems_total, 0);
    // A row of another day does not help, one of this day does.
    let labels = Labels::from_pairs([("__name__", "m"), ("host", "new")]).expect("valid");
    let row = |id| SeriesRow {
        series_id: id,
        probe: 0,
        labels: labels.clone(),
        kind: MetricKind::Unknown,
        unit: String::new(),
        help: String::new(),
        first_seen_ms: None,
        last_seen_ms: None,
        samples: None,
    };
    commit(&world, Table::Series, write_series(&[row(labels.series_id(0))], &identity(999)).expect("writes")).await;
    only(&world, false).await;
    commit(&world, Table::Series, write_series(&[row(42)], &identity(1_000)).expect("writes")).await;
    let problem = only(&world, false).await;
    assert!(problem.table == "series" && problem.what.contains("with another hash"), "{problem:?}");
}

#[tokio::test]
async fn statistics_dates_and_copies_that_are_not_true_are_found() {
    let known = crate::engine::tests::labels("x").series_id(0);
    let (times, values) = ([NOON + 1_000, NOON + 2_000], [1.0, 2.0]);
    let good = |times: &[i64]| {
        let slice = SeriesSlice { metric: "m", series_id: known, times, values: &values[..times.len()] };
        write_samples([slice], &identity(1_000)).expect("writes")
    };
    type Lie = fn(&mut FileEntry);
    let lies: [(Lie, &str); 5] = [
        (|e| e.rows = 3, "the log says 3 rows, it has 2"),
        (|e| e.keys.times_ms = Some((NOON + 1_001, NOON + 2_000)), "times outside"),
        (|e| e.keys.series_ids = Some((i64::MIN, i64::MIN + 1)), "series ids outside"),
        (|e| e.keys.metrics = Some(("a".into(), "b".into())), "metrics outside"),
        (|e| e.hash = None, ""),
    ];
    for (lie, named) in lies {
        let world = world().await;
        let mut file = good(&times);
        lie(&mut file.entry);
        commit(&world, Table::Samples, file).await;
        if named.is_empty() {
            let report = check(&world, false).await;
            assert_eq!((report.problems_total, report.tables[0].without_hash), (0, 1));
        } else {
            let problem = only(&world, false).await;
            assert!(problem.what.contains(named), "{problem:?}");
        }
    }
    let world = world().await;
    let mut file = good(&times[..1]);
    file.entry.date = 1_001;
    file.entry.path = file.entry.path.replace("1972-09-27", "1972-09-28");
    commit(&world, Table::Samples, file).await;
    let report = check(&world, false).await;
    assert!(report.problems.iter().any(|p| p.what.contains("times of another date")), "{:#?}", report.problems);
}

#[tokio::test]
async fn order_copies_and_columns_of_foreign_files_are_checked() {
    use crate::parquet_file::audit::{audit, expected_columns};
    use crate::parquet_file::{FileSource, write_batch};
    use arrow::array::{ArrayRef, Float64Array, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray};
    let schema = crate::delta::schema_json(&Table::Samples.table_schema()).expect("expressible");
    let partitions = ["tenant".to_owned(), "date".to_owned()];
    let expected = expected_columns(&schema, &partitions);
    let problems = |rows: &[(&str, i64, i64)], expected: &[_]| {
        let time: TimestampMicrosecondArray = rows.iter().map(|r| Some(r.2 * 1_000)).collect();
        let empty: TimestampMicrosecondArray = rows.iter().map(|_| None::<i64>).collect();
        let columns: Vec<ArrayRef> = vec![
            Arc::new(StringArray::from_iter_values(rows.iter().map(|r| r.0))),
            Arc::new(Int64Array::from_iter_values(rows.iter().map(|r| r.1))),
            Arc::new(time.with_timezone("UTC")),
            Arc::new(Float64Array::from_iter_values(rows.iter().map(|_| 1.0))),
            Arc::new(empty.with_timezone("UTC")),
        ];
        let batch = RecordBatch::try_new(Table::Samples.file_schema(), columns).expect("fits");
        let file = write_batch(Table::Samples, &[batch], &identity(0)).expect("writes");
        let source = FileSource::object(FaultStore::new(), Path::from("x"), &file.entry);
        audit(&source, file.bytes, expected).expect("reads").problems
    };
    assert_eq!(problems(&[("a", 1, 5), ("a", 1, 6), ("a", 2, 1), ("b", 1, 1)], &expected), [""; 0]);
    let twice = problems(&[("a", 1, 5), ("a", 1, 5), ("a", 1, 5)], &expected);
    assert_eq!(twice, ["`a` (series 1) has time 5 ms twice (and 1 more)"]);
    assert!(problems(&[("a", 1, 5), ("a", 1, 4)], &expected)[0].contains("do not ascend"));
    assert!(problems(&[("a", 2, 5), ("a", 1, 6)], &expected)[0].contains("not sorted"));
    assert!(problems(&[("b", 1, 5), ("a", 1, 6)], &expected)[0].contains("not sorted"));
    let mut other = expected.clone();
    other[3].kind = "long".into();
    assert!(problems(&[("a", 1, 5)], &other)[0].contains("column `value` is \"double\""));
    other.remove(3);
    assert!(problems(&[("a", 1, 5)], &other)[0].contains("`value` that the table does not have"));
}
