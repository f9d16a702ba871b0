//! The table as a whole: races, lost answers, fences, checkpoints, clean-up.

use super::action::{Action, CommitLog, TextMap, decode_path, encode_path, schema_json};
use super::testing::{Fault, FaultStore, JumpClock, entry, open, root, tenant};
use super::*;
use crate::StorageError;
use fletch_common::Clock;
use fletch_schemas::tables::Table;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

const HOUR: Duration = Duration::from_secs(3600);

fn commit_of(adds: Vec<FileEntry>, txn: Option<(&str, Option<i64>, i64)>) -> Commit {
    let mut commit = Commit::new("WRITE");
    commit.adds = adds;
    commit.txns.extend(txn.map(|(app, expected, version)| TxnUpdate { app_id: app.to_owned(), expected, version }));
    commit
}

fn memory() -> Arc<dyn ObjectStore> {
    Arc::new(InMemory::new())
}

/// All that two equal snapshots agree on. What `data_change` was is not kept by checkpoints.
fn state(snapshot: &Snapshot) -> (i64, BTreeMap<String, i64>, Vec<FileEntry>, Vec<RemovedFile>, Totals) {
    let txns = snapshot.txns().map(|(a, v)| (a.to_owned(), v)).collect();
    let files = snapshot.files().map(|f| FileEntry { data_change: false, ..f.as_ref().clone() }).collect();
    (snapshot.version(), txns, files, snapshot.removed().cloned().collect(), snapshot.totals())
}

#[tokio::test]
async fn a_table_is_created_once_and_found_again() {
    let (store, clock) = (memory(), JumpClock::new());
    let (a, b) = tokio::join!(open(store.clone(), clock.clone()), open(store.clone(), clock.clone()));
    let (a, b) = (a.expect("opens"), b.expect("opens"));
    assert_eq!((a.snapshot().version(), b.snapshot().version()), (0, 0));
    assert_eq!(a.snapshot().metadata(), b.snapshot().metadata());
    let c = open(store, clock).await.expect("opens");
    assert_eq!(c.snapshot().metadata(), a.snapshot().metadata());
    let metadata = c.snapshot().metadata().expect("has metadata").clone();
    let configuration = &metadata.configuration;
    assert_eq!(configuration["delta.dataSkippingStatsColumns"].as_deref(), Some("metric,series_id,time"));
    assert_eq!(configuration["delta.logRetentionDuration"].as_deref(), Some("interval 86400 seconds"));
    assert_eq!(configuration["delta.deletedFileRetentionDuration"].as_deref(), Some("interval 21600 seconds"));
}

#[tokio::test]
async fn a_lost_answer_while_creating_is_found_out() {
    for fault in [Fault::LosesAnswer, Fault::LandsThenConflicts, Fault::ConflictOfNobody, Fault::Fails, Fault::LandsLater] {
        let store = FaultStore::new();
        store.break_put("0.json", fault);
        let table = open(store, JumpClock::new()).await.unwrap_or_else(|e| panic!("{fault:?}: {e}"));
        assert_eq!(table.snapshot().version(), 0, "{fault:?}");
    }
}

#[test]
fn the_schema_is_written_as_delta_names_it() {
    let text = schema_json(&Table::Series.table_schema()).expect("expressible");
    let json: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let field = |name: &str| json["fields"].as_array().expect("fields").iter().find(|f| f["name"] == name).expect("there").clone();
    assert_eq!(json["fields"][0]["name"], "tenant");
    assert_eq!(json["fields"][1]["type"], "date");
    assert_eq!(field("first_seen")["type"], "timestamp");
    assert_eq!(field("probe")["type"], "integer");
    assert_eq!(field("samples")["nullable"], true);
    assert_eq!(field("series_id")["nullable"], false);
    assert_eq!(
        field("labels")["type"],
        serde_json::json!({"type": "map", "keyType": "string", "valueType": "string", "valueContainsNull": true})
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_racing_writers_both_land_every_commit_once() {
    const COMMITS: i64 = 25;
    let store = memory();
    let mut writers = Vec::new();
    for app in ["bus:x:0", "bus:x:1"] {
        let table = open(store.clone(), JumpClock::new()).await.expect("opens");
        writers.push(tokio::spawn(async move {
            let mut paths = Vec::new();
            for i in 0..COMMITS {
                let file = entry("default", (i % 3) as i32, 1);
                paths.push(file.path.clone());
                let expected = (i > 0).then_some(i * 10);
                let done = table.commit(&commit_of(vec![file], Some((app, expected, (i + 1) * 10)))).await;
                assert!(done.expect("lands").txn(app) >= Some((i + 1) * 10));
            }
            paths
        }));
    }
    let mut expected = BTreeSet::new();
    for writer in writers {
        expected.extend(writer.await.expect("no panic"));
    }
    let table = open(store, JumpClock::new()).await.expect("opens");
    let snapshot = table.snapshot();
    assert_eq!(snapshot.version(), 2 * COMMITS);
    assert_eq!(snapshot.files().map(|f| f.path.clone()).collect::<BTreeSet<_>>(), expected);
    assert_eq!(snapshot.totals().files, 2 * COMMITS as u64);
    assert_eq!((snapshot.txn("bus:x:0"), snapshot.txn("bus:x:1")), (Some(COMMITS * 10), Some(COMMITS * 10)));
}

#[tokio::test]
async fn one_table_is_shared_by_many_tasks() {
    let table = Arc::new(open(memory(), JumpClock::new()).await.expect("opens"));
    let tasks: Vec<_> = (0..20)
        .map(|_| {
            let table = table.clone();
            tokio::spawn(async move { table.commit(&commit_of(vec![entry("default", 0, 1)], None)).await.map(|s| s.version()) })
        })
        .collect();
    let mut versions = BTreeSet::new();
    for task in tasks {
        versions.insert(task.await.expect("no panic").expect("lands"));
    }
    assert_eq!(versions.len(), 20);
    assert_eq!(table.snapshot().totals().files, 20);
}

#[tokio::test]
async fn a_start_waits_for_a_store_that_is_out() {
    let (store, clock) = (FaultStore::new(), JumpClock::new());
    let before_ms = clock.now_ms();
    for _ in 0..3 {
        store.break_get("bus.json");
    }
    super::store::wait_until_it_answers(store.as_ref(), clock.as_ref()).await.expect("answers the fourth time");
    assert_eq!(clock.now_ms() - before_ms, 1_000 + 2_000 + 4_000);
    for _ in 0..1_000 {
        store.break_get("bus.json");
    }
    let error = super::store::wait_until_it_answers(store.as_ref(), clock.as_ref()).await.expect_err("out for good");
    assert!(error.to_string().contains("bus.json"), "{error}");
}

#[tokio::test]
async fn the_owner_that_was_replaced_is_fenced() {
    let (store, clock) = (memory(), JumpClock::new());
    let (zombie, heir) = (open(store.clone(), clock.clone()).await.expect("opens"), open(store, clock).await.expect("opens"));
    zombie.commit(&commit_of(vec![entry("t", 0, 1)], Some(("bus:x:0", None, 10)))).await.expect("lands");
    heir.refresh().await.expect("refreshes");
    heir.commit(&commit_of(vec![entry("t", 0, 1)], Some(("bus:x:0", Some(10), 25)))).await.expect("lands");
    let refused = zombie.commit(&commit_of(vec![entry("t", 0, 1)], Some(("bus:x:0", Some(10), 20)))).await;
    match refused {
        Err(StorageError::Fenced { table: "samples", app_id, stored: Some(25), expected: Some(10) }) => assert_eq!(app_id, "bus:x:0"),
        other => panic!("{other:?}"),
    }
    assert_eq!(heir.refresh().await.expect("refreshes").totals().files, 2);
    let fresh = zombie.commit(&commit_of(Vec::new(), Some(("bus:y:0", Some(1), 2)))).await;
    assert!(matches!(fresh, Err(StorageError::Fenced { stored: None, .. })), "{fresh:?}");
}

/// After any broken answer the commit is there exactly once, also when rivals come in between.
#[tokio::test]
async fn ambiguous_answers_end_in_one_commit() {
    let faults = [Fault::Fails, Fault::LosesAnswer, Fault::LandsThenConflicts, Fault::ConflictOfNobody, Fault::LandsLater];
    for first in faults {
        for second in faults {
            let (store, clock) = (FaultStore::new(), JumpClock::new());
            let table = open(store.clone(), clock.clone()).await.expect("opens");
            store.break_put("01.json", first);
            store.break_put("01.json", second);
            let file = entry("t", 0, 1);
            let landed = table.commit(&commit_of(vec![file.clone()], Some(("bus:x:0", None, 9)))).await;
            let landed = landed.unwrap_or_else(|e| panic!("{first:?}, {second:?}: {e}"));
            assert!(landed.holds(&file), "{first:?}, {second:?}");
            let seen = open(store, clock).await.expect("opens").snapshot();
            assert_eq!((seen.version(), seen.totals().files, seen.txn("bus:x:0")), (1, 1, Some(9)), "{first:?}, {second:?}");
        }
    }
}

#[tokio::test]
async fn a_commit_of_unknown_outcome_is_finished_by_giving_it_again() {
    for fault in [Fault::LosesAnswer, Fault::Fails] {
        for tailer_sees_it_first in [false, true] {
            let (store, clock) = (FaultStore::new(), JumpClock::new());
            let table = open(store.clone(), clock.clone()).await.expect("opens");
            store.break_put("01.json", fault);
            (0..6).for_each(|_| store.break_get("01.json"));
            let commit = commit_of(vec![entry("t", 0, 1)], Some(("bus:x:0", None, 9)));
            let unknown = table.commit(&commit).await;
            assert!(matches!(unknown, Err(StorageError::ObjectStore { .. })), "{unknown:?}");
            if tailer_sees_it_first {
                table.refresh().await.expect("refreshes");
            }
            let again = table.commit(&commit).await.expect("it is the same commit, not a rival");
            assert_eq!((again.version(), again.totals().files), (1, 1), "{fault:?}");
        }
    }
}

#[tokio::test]
async fn a_late_try_loses_against_a_rival_and_the_commit_still_lands_once() {
    let (store, clock) = (FaultStore::new(), JumpClock::new());
    let (mine, rival) = (open(store.clone(), clock.clone()).await.expect("opens"), open(store.clone(), clock).await.expect("opens"));
    store.break_put("01.json", Fault::Fails);
    (0..6).for_each(|_| store.break_get("01.json"));
    let commit = commit_of(vec![entry("t", 0, 1)], Some(("bus:x:0", None, 9)));
    mine.commit(&commit).await.expect_err("unknown");
    rival.commit(&commit_of(vec![entry("t", 0, 1)], None)).await.expect("lands");
    let landed = mine.commit(&commit).await.expect("lands behind the rival");
    assert_eq!((landed.version(), landed.totals().files), (2, 2));
}

#[tokio::test]
async fn two_compactions_of_one_file_do_not_double_its_rows() {
    let (store, clock) = (memory(), JumpClock::new());
    let (a, b) = (open(store.clone(), clock.clone()).await.expect("opens"), open(store, clock).await.expect("opens"));
    a.commit(&commit_of(vec![entry("t", 0, 10), entry("t", 0, 10)], None)).await.expect("lands");
    let inputs: Vec<_> = b.refresh().await.expect("refreshes").files().cloned().collect();
    let compaction = || {
        let mut commit = Commit::new("OPTIMIZE");
        commit.removes = inputs.clone();
        commit.adds = vec![entry("t", 0, 20)];
        commit.data_change = false;
        commit
    };
    let after = a.commit(&compaction()).await.expect("lands");
    assert_eq!((after.totals().files, after.totals().rows, after.removed().count()), (1, 20, 2));
    let second = b.commit(&compaction()).await;
    assert!(matches!(second, Err(StorageError::Superseded { table: "samples", .. })), "{second:?}");
    assert_eq!(b.refresh().await.expect("refreshes").totals().rows, 20);
}

#[tokio::test]
async fn a_required_version_holds_a_commit_back_and_is_not_written() {
    let table = open(memory(), JumpClock::new()).await.expect("opens");
    let mut commit = commit_of(vec![entry("t", 0, 1)], None);
    commit.requires.push(TxnRequire { app_id: "deletes".into(), expected: None });
    assert_eq!(table.commit(&commit).await.expect("lands").txn("deletes"), None);
    table.commit(&commit_of(Vec::new(), Some(("deletes", None, 1)))).await.expect("a commit without files lands");
    let mut late = commit_of(vec![entry("t", 0, 1)], None);
    late.requires.push(TxnRequire { app_id: "deletes".into(), expected: None });
    let refused = table.commit(&late).await;
    assert!(matches!(refused, Err(StorageError::Fenced { stored: Some(1), expected: None, .. })), "{refused:?}");
}

#[tokio::test]
async fn a_commit_that_names_something_twice_is_refused() {
    let table = open(memory(), JumpClock::new()).await.expect("opens");
    let file = entry("t", 0, 1);
    let twice = table.commit(&commit_of(vec![file.clone(), file], None)).await;
    assert!(matches!(twice, Err(StorageError::Conflict(_))), "{twice:?}");
    let mut apps = commit_of(Vec::new(), Some(("a", None, 1)));
    apps.txns.push(apps.txns[0].clone());
    assert!(matches!(table.commit(&apps).await, Err(StorageError::Conflict(_))));
    assert_eq!(table.snapshot().version(), 0);
}

async fn raw_commit(store: &Arc<dyn ObjectStore>, version: i64, lines: &str) {
    let path = root().join("_delta_log").join(format!("{version:020}.json"));
    store.put(&path, lines.to_owned().into()).await.expect("puts");
}

#[tokio::test]
async fn a_schema_change_under_a_commit_refuses_it() {
    let (store, clock) = (memory(), JumpClock::new());
    let table = open(store.clone(), clock).await.expect("opens");
    let mut metadata = table.snapshot().metadata().expect("has metadata").as_ref().clone();
    metadata.configuration.insert("x".into(), Some("y".into()));
    let line = serde_json::to_string(&Action { meta_data: Some(metadata), ..Action::default() }).expect("JSON");
    raw_commit(&store, 1, &line).await;
    let refused = table.commit(&commit_of(vec![entry("t", 0, 1)], None)).await;
    assert!(matches!(&refused, Err(StorageError::Conflict(why)) if why.contains("samples")), "{refused:?}");
    table.commit(&commit_of(vec![entry("t", 0, 1)], None)).await.expect("planned on the new schema it lands");
}

#[tokio::test]
async fn a_newer_protocol_is_refused_by_name() {
    let (store, clock) = (memory(), JumpClock::new());
    let table = open(store.clone(), clock.clone()).await.expect("opens");
    raw_commit(&store, 1, r#"{"protocol":{"minReaderVersion":3,"minWriterVersion":7,"readerFeatures":["deletionVectors"]}}"#).await;
    for error in [table.refresh().await.map(drop), open(store, clock).await.map(drop)] {
        assert!(matches!(error, Err(StorageError::Protocol { table: "samples", reader: 3, writer: 7 })), "{error:?}");
    }
    assert_eq!(table.snapshot().version(), 0);
}

#[tokio::test]
async fn another_table_in_our_place_is_refused_by_column() {
    let (store, clock) = (memory(), JumpClock::new());
    DeltaTable::open_or_create(store.clone(), root(), Table::Series, clock.clone()).await.expect("opens");
    let wrong = open(store, clock).await;
    assert!(matches!(&wrong, Err(StorageError::Conflict(why)) if why.contains("\"time\"")), "{wrong:?}");
}

#[tokio::test]
async fn other_writers_lines_are_tolerated() {
    let (store, clock) = (memory(), JumpClock::new());
    let table = open(store.clone(), clock).await.expect("opens");
    let lines = concat!(
        r#"{"add":{"path":"tenant=a%252Eb/date=1969-12-31/x%20y.parquet","partitionValues":{"tenant":"a.b","date":"1969-12-31"},"size":5,"#,
        r#""modificationTime":7,"dataChange":true,"stats":"{\"numRecords\":3,\"minValues\":{\"time\":\"1969-12-31T23:59:59.998Z\",\"value\":1.5},"#,
        r#"\"maxValues\":{\"time\":\"1969-12-31T23:59:59.999Z\"},\"nullCount\":{}}","clusteringProvider":"x","baseRowId":4}}"#,
        "\n",
        r#"{"domainMetadata":{"domain":"x","configuration":"","removed":false}}"#,
        "\n\n",
        r#"{"txn":{"appId":"spark","version":3}}"#,
    );
    raw_commit(&store, 1, lines).await;
    let snapshot = table.refresh().await.expect("refreshes");
    let file = snapshot.files().next().expect("one file").as_ref().clone();
    assert_eq!(file.path, "tenant=a%2Eb/date=1969-12-31/x y.parquet");
    assert_eq!((file.tenant, file.date, file.rows, file.hash, file.committed_ms), (tenant("a.b"), -1, 3, None, 7));
    assert_eq!(file.keys.times_ms, Some((-2, 0)));
    assert_eq!(snapshot.txn("spark"), Some(3));
    // A remove that does not say where the file was.
    raw_commit(&store, 2, r#"{"remove":{"path":"tenant=a%252Eb/date=1969-12-31/x%20y.parquet","deletionTimestamp":9}}"#).await;
    let snapshot = table.refresh().await.expect("refreshes");
    assert_eq!((snapshot.totals().files, snapshot.tenants().count(), snapshot.removed().count()), (0, 0, 1));
}

#[tokio::test]
async fn a_path_that_leaves_the_table_is_never_followed() {
    let table = open(memory(), JumpClock::new()).await.expect("opens");
    for path in ["../x.parquet", "a/../../x", "s3://other/x", "/x", "a//b"] {
        assert!(matches!(table.object_path(path), Err(StorageError::Corrupt { .. })), "{path}");
    }
    assert_eq!(table.object_path("tenant=a%2Eb/x").expect("fine").as_ref(), "tables/samples/tenant=a%2Eb/x");
}

#[test]
fn a_flipped_byte_in_a_commit_is_an_error_or_changes_nothing() {
    let mut file = entry("a.b", -1, 3);
    file.bus = None;
    let commit = commit_of(vec![file], Some(("bus:x:0", Some(3), 9)));
    let log = Commit { removes: vec![Arc::new(entry("t", 0, 1))], ..commit };
    let bytes = log.bytes("samples", 5).expect("builds");
    let good = CommitLog::parse(4, "4.json", &bytes).expect("parses");
    assert_eq!(good.id(), Some(log.id));
    let known = |log: &CommitLog| log.actions.iter().filter(|a| a.commit_info.is_none()).cloned().collect::<Vec<_>>();
    for at in 0..bytes.len() {
        for bit in [0, 3, 7] {
            let mut damaged = bytes.to_vec();
            damaged[at] ^= 1 << bit;
            if let Ok(read) = CommitLog::parse(4, "4.json", &damaged) {
                assert_eq!(known(&read), known(&good), "byte {at} bit {bit}");
            }
        }
        if let Ok(read) = CommitLog::parse(4, "4.json", &bytes[..at]) {
            panic!("cut at {at} it reads as {read:?}");
        }
    }
}

#[tokio::test]
async fn a_checkpoint_opens_to_the_same_state_and_later_commits_follow() {
    let (store, clock) = (memory(), JumpClock::new());
    let table = open(store.clone(), clock.clone()).await.expect("opens");
    for i in 0..5 {
        table
            .commit(&commit_of(vec![entry("a.b", i - 2, 7)], Some(("bus:x:0", (i > 0).then_some(i64::from(i)), i64::from(i) + 1))))
            .await
            .expect("lands");
    }
    let mut removal = Commit::new("DELETE");
    removal.removes = table.snapshot().files().take(2).cloned().collect();
    table.commit(&removal).await.expect("lands");
    assert_eq!(table.checkpoint().await.expect("writes"), 6);
    table.commit(&commit_of(vec![entry("c", 9, 1)], None)).await.expect("lands");
    let opened = open(store.clone(), clock).await.expect("opens");
    assert_eq!(state(&opened.snapshot()), state(&table.snapshot()));
    assert_eq!(opened.snapshot().removed().map(|r| r.removed_by).collect::<Vec<_>>(), [6, 6]);
    assert_eq!(opened.snapshot().metadata(), table.snapshot().metadata());
}

#[tokio::test]
async fn checkpoints_come_every_hundred_commits_and_never_go_back() {
    let (store, clock) = (memory(), JumpClock::new());
    let table = open(store.clone(), clock.clone()).await.expect("opens");
    for _ in 0..CHECKPOINT_EVERY_COMMITS - 2 {
        table.commit(&commit_of(Vec::new(), None)).await.expect("lands");
    }
    assert_eq!(table.checkpoint_if_due().await.expect("looks"), None);
    table.commit(&commit_of(Vec::new(), None)).await.expect("lands");
    assert_eq!(table.checkpoint_if_due().await.expect("writes"), Some(99));
    assert_eq!(table.checkpoint_if_due().await.expect("looks"), None);
    let hint = root().join("_delta_log").join("_last_checkpoint");
    let newer = r#"{"version":150,"size":1}"#;
    store.put(&hint, newer.into()).await.expect("puts");
    table.checkpoint().await.expect("writes");
    let stored = store.get(&hint).await.expect("there").bytes().await.expect("reads");
    assert_eq!(stored, newer.as_bytes());
    // A hint that names nothing is not believed.
    assert_eq!(open(store, clock).await.expect("opens").snapshot().version(), 99);
}

#[tokio::test]
async fn a_damaged_checkpoint_is_passed_over_or_named() {
    let (store, clock) = (memory(), JumpClock::new());
    let table = open(store.clone(), clock.clone()).await.expect("opens");
    for _ in 0..3 {
        table.commit(&commit_of(vec![entry("t", 0, 1)], None)).await.expect("lands");
    }
    table.checkpoint().await.expect("writes");
    let expected = state(&table.snapshot());
    let path = root().join("_delta_log").join(format!("{:020}.checkpoint.parquet", 3));
    let good = store.get(&path).await.expect("there").bytes().await.expect("reads");
    for at in (0..good.len()).step_by(97) {
        let mut bad = good.to_vec();
        bad[at] ^= 0x10;
        store.put(&path, bad.into()).await.expect("puts");
        let opened = open(store.clone(), clock.clone()).await.expect("the commits are still there");
        assert_eq!(state(&opened.snapshot()), expected, "byte {at}");
    }
    store.put(&path, good.slice(..good.len() / 2).into()).await.expect("puts");
    store.delete(&root().join("_delta_log").join(format!("{:020}.json", 1))).await.expect("deletes");
    let error = open(store, clock).await.expect_err("nothing complete is left");
    assert!(matches!(&error, StorageError::Corrupt { path, .. } if path.ends_with("01.json")), "{error}");
}

#[tokio::test]
async fn clean_up_leaves_a_log_without_gaps_and_respects_followers() {
    let (store, clock) = (memory(), JumpClock::new());
    let table = open(store.clone(), clock.clone()).await.expect("opens");
    for _ in 0..4 {
        table.commit(&commit_of(vec![entry("t", 0, 1)], None)).await.expect("lands");
    }
    assert_eq!(table.cleanup_log(None).await.expect("cleans"), 0, "no checkpoint yet");
    table.checkpoint().await.expect("writes");
    assert_eq!(table.cleanup_log(None).await.expect("cleans"), 0, "too young");
    clock.advance(25 * HOUR);
    assert_eq!(table.cleanup_log(Some(2)).await.expect("cleans"), 2);
    assert!(table.read_commit(1).await.expect("reads").is_none());
    let commit = table.read_commit(2).await.expect("reads").expect("a follower still needs it");
    assert_eq!(table.added(&commit).expect("adds").len(), 1);
    assert_eq!(table.cleanup_log(None).await.expect("cleans"), 2);
    assert!(table.read_commit(4).await.expect("reads").is_some(), "the checkpoint's own commit stays");
    let opened = open(store, clock).await.expect("opens");
    assert_eq!(state(&opened.snapshot()), state(&table.snapshot()));
}

/// A process that slept while others committed, made checkpoints and cleaned up must not win a version of long ago.
#[tokio::test]
async fn a_sleeper_below_the_cleaned_log_opens_afresh() {
    let (store, clock) = (memory(), JumpClock::new());
    let sleeper = open(store.clone(), clock.clone()).await.expect("opens");
    let active = open(store.clone(), clock.clone()).await.expect("opens");
    for _ in 0..5 {
        active.commit(&commit_of(vec![entry("t", 0, 1)], None)).await.expect("lands");
    }
    active.checkpoint().await.expect("writes");
    clock.advance(25 * HOUR);
    active.cleanup_log(None).await.expect("cleans");
    let landed = sleeper.commit(&commit_of(vec![entry("t", 0, 1)], None)).await.expect("lands");
    assert_eq!((landed.version(), landed.totals().files), (6, 6));
    assert!(active.read_commit(1).await.expect("reads").is_none());
}

#[tokio::test]
async fn vacuum_deletes_what_the_log_gave_up_and_nothing_else() {
    let (store, clock) = (memory(), JumpClock::new());
    let table = open(store.clone(), clock.clone()).await.expect("opens");
    let files: Vec<_> = (0..4).map(|_| entry("a.b", 0, 1)).collect();
    let orphan = entry("a.b", 0, 1);
    for file in files.iter().chain([&orphan]) {
        table.upload(file, b"x".to_vec().into()).await.expect("uploads");
    }
    table.commit(&commit_of(files.clone(), None)).await.expect("lands");
    let mut removal = Commit::new("DELETE");
    removal.removes = files[..3].iter().cloned().map(Arc::new).collect();
    table.commit(&removal).await.expect("lands");
    let vacuum = table.vacuum_by_options();
    let none = VacuumReport { kept: 3, ..VacuumReport::default() };
    assert_eq!(table.vacuum(&vacuum, |_| false).await.expect("runs"), none, "too young");
    clock.advance(7 * HOUR);
    let held = Vacuum { removed_by_max: Some(1), ..vacuum.clone() };
    assert_eq!(table.vacuum(&held, |_| false).await.expect("runs"), none, "a follower needs them");
    let size = files[0].size;
    let report = table.vacuum(&vacuum, |path| path == files[1].path).await.expect("runs");
    assert_eq!(report, VacuumReport { files: 2, bytes: files[0].size + files[2].size, kept: 1 });
    let report = table.vacuum(&vacuum, |_| false).await.expect("runs");
    assert_eq!(report, VacuumReport { files: 1, bytes: size, kept: 0 });
    assert_eq!(table.vacuum(&vacuum, |_| false).await.expect("runs"), VacuumReport::default(), "nothing is deleted twice");
    for (file, there) in files.iter().zip([false, false, false, true]).chain([(&orphan, true)]) {
        let found = store.head(&table.object_path(&file.path).expect("a path")).await;
        assert_eq!(found.is_ok(), there, "{}", file.path);
    }
}

#[tokio::test]
async fn old_tombstones_leave_with_a_checkpoint_once_their_bytes_are_gone() {
    let (store, clock) = (memory(), JumpClock::new());
    let table = open(store.clone(), clock.clone()).await.expect("opens");
    let files = [entry("t", 0, 1), entry("t", 0, 1)];
    table.commit(&commit_of(files.to_vec(), None)).await.expect("lands");
    let mut removal = Commit::new("DELETE");
    removal.removes = files.iter().cloned().map(Arc::new).collect();
    table.commit(&removal).await.expect("lands");
    let left = async || {
        table.checkpoint().await.expect("writes");
        let opened = open(store.clone(), clock.clone()).await.expect("opens");
        assert_eq!(state(&opened.snapshot()), state(&table.snapshot()));
        opened.snapshot().removed().count()
    };
    clock.advance(31 * HOUR);
    assert_eq!(left().await, 2, "a vacuum that was held back still finds them");
    table.vacuum(&table.vacuum_by_options(), |path| path == files[0].path).await.expect("runs");
    assert_eq!(left().await, 1);
    clock.advance(31 * 24 * HOUR);
    assert_eq!(left().await, 0, "not for ever");
}

#[test]
fn an_entry_survives_its_form_in_the_log() {
    for (name, date) in [("default", 0), ("a.b!(c)*'", -98_615), ("x_y-z", 20_000)] {
        let file = FileEntry { data_change: true, ..entry(name, date, 5) };
        let add = file.to_add();
        assert_eq!(FileEntry::from_add(&add).expect("reads"), file);
        assert!(!add.path.contains(['(', ')', '\'', '*']), "{}", add.path);
    }
    let dotted = entry("a.b", 0, 1).to_add();
    assert!(dotted.path.starts_with("tenant=a%252Eb/date=1970-01-01/"), "{}", dotted.path);
    assert_eq!(
        entry("a.b", -98_615, 1).to_add().partition_values,
        TextMap::from([("tenant".into(), Some("a.b".into())), ("date".into(), Some("1700-01-01".into())),])
    );
}

#[test]
fn entries_that_are_not_ours_to_understand_are_named() {
    let good = entry("t", 0, 1).to_add();
    type Damage = fn(&mut Add);
    let broken: [(&str, Damage); 5] = [
        ("tenant", |a| drop(a.partition_values.remove("tenant"))),
        ("date", |a| drop(a.partition_values.insert("date".into(), Some("yesterday".into())))),
        ("reserved", |a| drop(a.partition_values.insert("tenant".into(), Some("..".into())))),
        ("size", |a| a.size = -1),
        ("URL", |a| a.path = "%zz".into()),
    ];
    for (what, damage) in broken {
        let mut add = good.clone();
        damage(&mut add);
        let why = FileEntry::from_add(&add).expect_err(what);
        assert!(why.contains(what), "{what}: {why}");
    }
    let without_stats = Add { stats: Some("not json".into()), ..good };
    assert_eq!(FileEntry::from_add(&without_stats).expect("reads").keys, KeyRanges::default());
}

#[test]
fn file_hashes_are_text_and_back() {
    let hash = FileHash::of(b"abc");
    assert_eq!(FileHash::parse(&hash.to_string()), Some(hash));
    for bad in ["", "xxh3-128:12", "sha256:00", "xxh3-128:zz"] {
        assert_eq!(FileHash::parse(bad), None, "{bad}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn any_path_survives_its_encoding(path in "\\PC{0,40}") {
        prop_assert_eq!(decode_path(&encode_path(&path)), Some(path));
    }

    #[test]
    fn decoding_any_text_does_not_panic(text in "[%0-9a-fA-F+é]{0,20}") {
        let _ = decode_path(&text);
    }

    /// Whatever was committed, the state is the model's, however the table is opened.
    #[test]
    fn any_history_reads_the_same_from_checkpoints_and_from_the_start(
        steps in prop::collection::vec((0u8..5, 0usize..8, any::<u8>()), 1..30)
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("builds");
        runtime.block_on(history(steps));
    }
}

/// Runs random commits against a plain model, with checkpoints in between.
async fn history(steps: Vec<(u8, usize, u8)>) {
    let (store, clock) = (memory(), JumpClock::new());
    let table = open(store.clone(), clock.clone()).await.expect("opens");
    let mut model: BTreeMap<String, FileEntry> = BTreeMap::new();
    let mut offset = None;
    for (kind, pick, salt) in steps {
        let mut commit = Commit::new("STEP");
        match kind {
            0 | 1 => {
                commit.adds = (0..=pick % 3).map(|_| entry(["a.b", "c", "d!"][pick % 3], i32::from(salt) - 128, 1 + pick as u64)).collect()
            }
            2 => {
                let victims = model.values().skip(pick).take(2);
                commit.removes = victims.cloned().map(Arc::new).collect();
                commit.adds = vec![entry("c", 3, 9)];
            }
            3 => {
                let next = offset.unwrap_or(0) + i64::from(salt);
                commit.txns = vec![TxnUpdate { app_id: "bus:x:0".into(), expected: offset, version: next }];
                offset = Some(next);
            }
            _ => {
                table.checkpoint().await.expect("writes");
                continue;
            }
        }
        commit.removes.iter().for_each(|f| drop(model.remove(&f.path)));
        model.extend(commit.adds.iter().map(|f| (f.path.clone(), f.clone())));
        table.commit(&commit).await.expect("lands");
    }
    let snapshot = table.snapshot();
    let plain = |f: &FileEntry| FileEntry { data_change: false, ..f.clone() };
    let mut files: Vec<FileEntry> = snapshot.files().map(|f| plain(f)).collect();
    files.sort_by(|a, b| a.path.cmp(&b.path));
    assert_eq!(files, model.values().map(plain).collect::<Vec<_>>());
    assert_eq!(snapshot.txn("bus:x:0"), offset);
    assert_eq!(snapshot.totals().rows, model.values().map(|f| f.rows).sum::<u64>());
    assert!(model.values().all(|f| snapshot.holds(f)));
    let opened = open(store.clone(), clock.clone()).await.expect("opens");
    assert_eq!(state(&opened.snapshot()), state(&snapshot));
    forget_checkpoints(&store).await;
    let replayed = open(store, clock).await.expect("opens");
    assert_eq!(state(&replayed.snapshot()), state(&snapshot));
}

async fn forget_checkpoints(store: &Arc<dyn ObjectStore>) {
    use futures::TryStreamExt;
    let found: Vec<_> = store.list(None).try_collect().await.expect("lists");
    for meta in found {
        let name = meta.location.filename().unwrap_or_default();
        if name.contains("checkpoint") {
            store.delete(&meta.location).await.expect("deletes");
        }
    }
}

#[test]
fn ranges_of_dates_and_tenants_are_read_from_a_snapshot() {
    let mut snapshot = Snapshot::empty("samples");
    let files: Vec<_> = [("a", -1), ("a", 0), ("a", 5), ("b", 0)].map(|(t, d)| entry(t, d, 1)).to_vec();
    let actions: Vec<_> = files.iter().map(|f| Action { add: Some(f.to_add()), ..Action::default() }).collect();
    snapshot.apply_actions(0, &actions).expect("applies");
    let a = tenant("a");
    assert_eq!(snapshot.dates(&a).collect::<Vec<_>>(), [-1, 0, 5]);
    assert_eq!(snapshot.tenant_files(&a, -1..=4).map(|f| f.date).collect::<Vec<_>>(), [-1, 0]);
    assert_eq!(snapshot.tenant_files(&a, std::ops::RangeInclusive::new(4, -1)).count(), 0);
    assert_eq!(snapshot.partition(&tenant("b"), 0).len(), 1);
    assert_eq!(snapshot.partition(&tenant("z"), 0).len(), 0);
    assert_eq!(snapshot.tenants().count(), 2);
    assert!(snapshot.partition(&a, 5)[0].keys.may_hold_metric("b"));
    assert!(!snapshot.partition(&a, 5)[0].keys.may_hold_metric("c"));
    assert!(!snapshot.partition(&a, 0)[0].keys.may_hold_times(12, 99));
    assert!(snapshot.partition(&a, 0)[0].keys.may_hold_times(11, 99));
}

#[test]
fn a_commit_that_does_not_follow_is_refused() {
    let mut snapshot = Snapshot::empty("samples");
    let log = CommitLog { version: 3, actions: Vec::new() };
    assert!(matches!(snapshot.apply(&log), Err(StorageError::Corrupt { .. })));
    assert_eq!(snapshot.version(), -1);
}

#[test]
fn a_checkpoint_in_parts_needs_every_part() {
    let check = |names: &[&str]| {
        let names: Vec<String> = names.iter().map(|n| (*n).to_owned()).collect();
        checkpoint::check_parts(&Path::from("x"), &names).is_ok()
    };
    assert!(check(&["5.checkpoint.parquet"]));
    assert!(check(&["5.checkpoint.0000000001.0000000001.parquet"]));
    assert!(check(&["5.checkpoint.0000000001.0000000002.parquet", "5.checkpoint.0000000002.0000000002.parquet"]));
    assert!(!check(&["5.checkpoint.0000000001.0000000002.parquet"]));
    assert!(!check(&["5.checkpoint.0000000001.0000000003.parquet", "5.checkpoint.0000000003.0000000003.parquet"]));
}

/// What must be durable is, and nothing else is needed to start again: the same log on a folder.
#[tokio::test]
async fn a_table_lives_on_a_local_folder() {
    let folder = tempfile::tempdir().expect("a folder");
    let local = || Arc::new(store::FsyncLocal::create(folder.path()).expect("opens"));
    let clock = JumpClock::new();
    let table = open(local(), clock.clone()).await.expect("opens");
    let file = entry("a.b*", -1, 4);
    table.upload(&file, b"bytes".to_vec().into()).await.expect("uploads");
    table.commit(&commit_of(vec![file.clone()], Some(("bus:x:0", None, 3)))).await.expect("lands");
    table.checkpoint().await.expect("writes");
    table.commit(&commit_of(vec![entry("t", 1, 1)], Some(("bus:x:0", Some(3), 4)))).await.expect("lands");
    let opened = open(local(), clock).await.expect("opens");
    assert_eq!(state(&opened.snapshot()), state(&table.snapshot()));
    assert!(folder.path().join("tables/samples").join(&file.path).is_file());
}

#[test]
fn a_log_path_is_twenty_digits() {
    let log = super::log::Log { store: memory(), root: root(), table: "samples" };
    assert_eq!(log.commit_path(42), Path::from("tables/samples/_delta_log/00000000000000000042.json"));
}
