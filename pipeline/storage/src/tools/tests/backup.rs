//! Backup → wipe → restore gives the same answers and the same files; interrupted ones go on; damage never passes.

use super::*;
use crate::delta::Snapshot;
use crate::delta::store::{claim_bus, claimed_bus};
use crate::delta::testing::Fault;
use crate::engine::Storage;
use crate::engine::tests::{Content, LIMITS, content, labels, tenant, truth};
use crate::tools::{BackupOptions, BackupReport, RestoreOptions, RestoreReport};
use fletch_common::SharedClock;
use fletch_ingest::{BatchSink, Delivery, SampleBatch, SeriesRegistry};
use object_store::memory::InMemory;

async fn back_up(world: &World, target: &Arc<dyn ObjectStore>) -> Result<BackupReport, StorageError> {
    back_up_with(world, target, BackupOptions::default()).await
}

async fn back_up_with(world: &World, target: &Arc<dyn ObjectStore>, options: BackupOptions) -> Result<BackupReport, StorageError> {
    // Snapshots are named by their time.
    world.clock.advance(std::time::Duration::from_millis(1));
    let clock: SharedClock = world.clock.clone();
    backup(&plain(&world.store), target, &options, &clock, &Silent).await
}

async fn bring_back(from: &Arc<dyn ObjectStore>, to: &Arc<FaultStore>, keep_bus: bool) -> Result<RestoreReport, StorageError> {
    restore(from, &plain(to), &RestoreOptions { snapshot: None, keep_bus }, &Silent).await
}

fn memory() -> Arc<dyn ObjectStore> {
    Arc::new(InMemory::new())
}

/// A server with a bus of its own on a store.
async fn serve(store: &Arc<FaultStore>, clock: &Arc<JumpClock>, bus: &str) -> (Arc<Storage>, Arc<SeriesRegistry>) {
    claim_bus(store.as_ref(), &format!("log:{bus}")).await.expect("may claim");
    let registry = Arc::new(SeriesRegistry::new());
    let storage = Storage::open(settings(), store.clone(), registry.clone(), clock.clone()).await.expect("opens");
    storage.set_bus_id(bus).expect("first name");
    (storage, registry)
}

async fn select(storage: &Storage, name: &str) -> Content {
    content(&storage.view(&tenant(name)).select(&[], i64::MIN, i64::MAX, &LIMITS).await.expect("selects"))
}

async fn snapshot(store: &Arc<FaultStore>, name: &str) -> Snapshot {
    TableReader::new(plain(store), name).snapshot().await.expect("reads").expect("is there")
}

/// Tables of a store as files: name to bytes.
async fn tables_of(store: &Arc<FaultStore>) -> Vec<(String, bytes::Bytes)> {
    objects(store.as_ref()).await.into_iter().filter(|(path, _)| path.starts_with("tables/")).collect()
}

#[tokio::test]
async fn a_restored_store_answers_and_reads_as_before_and_goes_on_under_a_new_bus() {
    let world = world().await;
    claim_bus(world.store.as_ref(), "log:log").await.expect("claims");
    let target = memory();
    let report = back_up(&world, &target).await.expect("backs up");
    assert_eq!((report.copied_files, report.present_files), (15, 0), "5 of each table");
    assert_eq!(report.manifest.bus.as_deref(), Some("log:log"));
    assert!(report.samples_until_ms.is_some());
    let to = FaultStore::new();
    let back = bring_back(&target, &to, false).await.expect("restores");
    assert_eq!((back.files, &back.manifest), (15, &report.manifest));
    assert_eq!(tables_of(&to).await, tables_of(&world.store).await, "byte for byte, logs included");
    assert_eq!(verify(&plain(&to), VerifyOptions::default(), &Silent).await.expect("reads").problems, []);

    let error = claim_bus(to.as_ref(), "log:log").await.expect_err("the old bus must be asked for").to_string();
    assert!(error.contains("--keep-bus") && error.contains(&back.manifest.id), "{error}");
    let (storage, registry) = serve(&to, &world.clock, "new").await;
    assert_eq!(claimed_bus(to.as_ref()).await.expect("reads").as_deref(), Some("log:new"));
    assert_eq!(storage.assigned(0).expect("assigned"), None, "a new bus begins anew");
    for name in ["a", "b.c"] {
        assert_eq!(select(&storage, name).await, truth(&ROWS, name));
    }
    let mut batch = SampleBatch::default();
    batch.push(registry.resolve(&tenant("a"), &labels("x")), NOON + 120_000, 3.0);
    let (metadata, sources) = (Vec::new(), Vec::new());
    storage.deliver(&Delivery { partition: 0, from: 0, to: 1, append_time_ms: 0, batch: Arc::new(batch), metadata, sources });
    let all: Vec<Row> = ROWS.iter().copied().chain([("a", "x", NOON + 120_000, 3.0)]).collect();
    assert_eq!(select(&storage, "a").await, truth(&all, "a"));
    storage.flush().await.expect("flushes");
    let samples = snapshot(&to, "samples").await;
    assert_eq!((samples.version(), samples.txn("bus:new:0"), samples.txn("bus:log:0")), (3, Some(1), Some(2)));
    // The tier goes on from the version that it had.
    let job = tier_job(&to, &world.clock).await;
    assert_eq!(job.catch_up().await.expect("runs").consumed, 3);
    assert_eq!(verify(&plain(&to), VerifyOptions::default(), &Silent).await.expect("reads").problems, []);
}

#[tokio::test]
async fn the_old_bus_goes_on_when_it_is_asked_for() {
    let world = world().await;
    claim_bus(world.store.as_ref(), "log:log").await.expect("claims");
    let (target, to) = (memory(), FaultStore::new());
    back_up(&world, &target).await.expect("backs up");
    bring_back(&target, &to, true).await.expect("restores");
    assert_eq!(claimed_bus(to.as_ref()).await.expect("reads").as_deref(), Some("log:log"));
    claim_bus(to.as_ref(), "log:new").await.expect_err("another bus may not");
    let (storage, _) = serve(&to, &world.clock, "log").await;
    assert_eq!(storage.assigned(0).expect("assigned"), Some(2), "reads back what the backup lacks");
    let unclaimed = super::world().await;
    let target = memory();
    back_up(&unclaimed, &target).await.expect("backs up");
    bring_back(&target, &FaultStore::new(), true).await.expect_err("there is no bus to keep");
}

#[tokio::test]
async fn the_second_backup_copies_only_what_is_new_and_both_can_be_restored() {
    let world = world().await;
    let target = memory();
    let first = back_up(&world, &target).await.expect("backs up");
    let process = world.start(settings()).await;
    process.push(&[("a", "x", NOON + 180_000, 4.0)]);
    process.storage.flush().await.expect("flushes");
    let second = back_up_with(&world, &target, BackupOptions { check: true, metadata: Some("states".into()) }).await.expect("backs up");
    assert_eq!((second.copied_files, second.present_files), (1, 15));
    let all: Vec<Row> = ROWS.iter().copied().chain([("a", "x", NOON + 180_000, 4.0)]).collect();
    for (manifest, rows) in [(&first.manifest, &ROWS[..]), (&second.manifest, &all)] {
        let to = FaultStore::new();
        let options = RestoreOptions { snapshot: Some(manifest.id.clone()), keep_bus: false };
        restore(&target, &plain(&to), &options, &Silent).await.expect("restores");
        let (storage, _) = serve(&to, &world.clock, "new").await;
        assert_eq!(select(&storage, "a").await, truth(rows, "a"));
        let states = metadata_of(target.as_ref(), manifest).await.expect("reads");
        assert_eq!(states.as_deref(), manifest.metadata.as_ref().map(|_| &b"states"[..]));
    }
    let listed: Vec<String> = manifests(target.as_ref()).await.expect("reads").into_iter().map(|m| m.id).collect();
    assert_eq!(listed, [first.manifest.id, second.manifest.id]);
    let error = choose(target.as_ref(), Some("nope")).await.expect_err("is not there").to_string();
    assert!(error.contains(&listed[1]), "{error}");
}

#[tokio::test]
async fn an_interrupted_backup_has_no_manifest_and_the_next_one_goes_on() {
    for broken in [".parquet", "_delta_log/00000000000000000001.json", "manifest.json"] {
        let world = world().await;
        let faulty = FaultStore::new();
        let target = plain(&faulty);
        faulty.break_put(broken, Fault::Fails);
        back_up(&world, &target).await.expect_err(broken);
        assert_eq!(manifests(target.as_ref()).await.expect("reads"), [], "{broken}");
        choose(target.as_ref(), None).await.expect_err("nothing to restore");
        let report = back_up(&world, &target).await.expect("goes on");
        assert_eq!(report.copied_files + report.present_files, 15);
        assert_eq!(report.present_files, if broken == "manifest.json" { 15 } else { report.present_files }, "{broken}");
        bring_back(&target, &FaultStore::new(), false).await.expect("restores");
    }
    let world = world().await;
    let faulty = FaultStore::new();
    faulty.break_put("manifest.json", Fault::LosesAnswer);
    back_up(&world, &plain(&faulty)).await.expect("a lost answer is recognised");
}

#[tokio::test]
async fn an_interrupted_restore_goes_on_and_nobody_uses_the_store_before() {
    let world = world().await;
    claim_bus(world.store.as_ref(), "log:log").await.expect("claims");
    let target = memory();
    back_up(&world, &target).await.expect("backs up");
    for broken in [".parquet", "series/_delta_log/00000000000000000001.json", "samples/_delta_log/00000000000000000002.json"] {
        let to = FaultStore::new();
        to.break_put(broken, Fault::Fails);
        bring_back(&target, &to, false).await.expect_err(broken);
        let error = claim_bus(to.as_ref(), "log:new").await.expect_err("not yet").to_string();
        assert!(error.contains("not finished"), "{error}");
        bring_back(&target, &to, true).await.expect_err("another restore than the one that began");
        bring_back(&target, &to, false).await.expect("goes on");
        assert_eq!(tables_of(&to).await, tables_of(&world.store).await);
        claim_bus(to.as_ref(), "log:new").await.expect("now");
        bring_back(&target, &to, false).await.expect_err("it is not empty any more");
    }
}

#[tokio::test]
async fn only_an_empty_store_is_restored_into() {
    let world = world().await;
    let target = memory();
    back_up(&world, &target).await.expect("backs up");
    let error = bring_back(&target, &world.store, false).await.expect_err("not empty").to_string();
    assert!(error.contains("not empty"), "{error}");
}

#[tokio::test]
async fn damage_is_never_copied() {
    let world = world().await;
    let target = memory();
    // In the source.
    let file = snapshot(&world.store, "samples").await.files().next().expect("has files").clone();
    let path = TableReader::new(plain(&world.store), "samples").object_path(&file.path).expect("a path");
    let good = world.store.get(&path).await.expect("there").bytes().await.expect("reads");
    let mut bad = good.to_vec();
    bad[10] ^= 1;
    world.store.put(&path, bad.clone().into()).await.expect("puts");
    let error = back_up(&world, &target).await.expect_err("damaged").to_string();
    assert!(error.contains(file.path.rsplit('/').next().expect("a name")), "{error}");
    assert_eq!(manifests(target.as_ref()).await.expect("reads"), []);
    world.store.put(&path, good.into()).await.expect("puts");
    back_up(&world, &target).await.expect("backs up");
    // In the target: the same size, so only reading it shows.
    target.put(&path, bad.into()).await.expect("puts");
    back_up(&world, &target).await.expect("sizes are right");
    back_up_with(&world, &target, BackupOptions { check: true, metadata: None }).await.expect_err("read back");
    let to = FaultStore::new();
    bring_back(&target, &to, false).await.expect_err("checked on the way");
    claim_bus(to.as_ref(), "log:new").await.expect_err("never finished");
    // In a manifest.
    let manifest = choose(target.as_ref(), None).await.expect("is there");
    let path = Path::from(format!("snapshots/{}/manifest.json", manifest.id));
    let text = target.get(&path).await.expect("there").bytes().await.expect("reads");
    let changed = String::from_utf8(text.to_vec()).expect("text").replace("\"rows\":7", "\"rows\":8");
    target.put(&path, changed.into()).await.expect("puts");
    choose(target.as_ref(), None).await.expect_err("its hash is wrong");
}

#[tokio::test]
async fn what_a_tier_has_not_consumed_goes_along_though_samples_has_replaced_it() {
    let world = world().await;
    let process = world.start(settings()).await;
    process.push(&[("a", "x", NOON + 180_000, 4.0)]);
    process.storage.flush().await.expect("flushes");
    // What a compaction does: one file for two, no new rows.
    let samples = table(&world.store, &world.clock, Table::Samples).await;
    let before = samples.snapshot();
    let old: Vec<_> = before.partition(&tenant("a"), 1_000).to_vec();
    assert_eq!(old.len(), 2);
    let identity = crate::delta::FileIdentity::new(tenant("a"), 1_000, None, 1_000);
    let (ids, values) = ([labels("x").series_id(0), labels("y").series_id(0)], [1.0, 2.0, 4.0]);
    let times = [NOON, NOON + 60_000, NOON + 180_000];
    let mut slices = [
        crate::parquet_file::SeriesSlice { metric: "m", series_id: ids[0], times: &times, values: &values },
        crate::parquet_file::SeriesSlice { metric: "m", series_id: ids[1], times: &times[..1], values: &[-0.0] },
    ];
    slices.sort_by_key(|s| s.series_id);
    let file = crate::parquet_file::write_samples(slices, &identity).expect("writes");
    samples.upload(&file.entry, file.bytes.clone()).await.expect("uploads");
    let commit = crate::delta::Commit { adds: vec![file.entry], removes: old, data_change: false, ..crate::delta::Commit::new("OPTIMIZE") };
    samples.commit(&commit).await.expect("commits");

    let (target, to) = (memory(), FaultStore::new());
    back_up(&world, &target).await.expect("backs up");
    bring_back(&target, &to, false).await.expect("restores");
    let job = tier_job(&to, &world.clock).await;
    assert_eq!(job.catch_up().await.expect("finds the file of version 3").consumed, 4);
    let (storage, _) = serve(&to, &world.clock, "new").await;
    let all: Vec<Row> = ROWS.iter().copied().chain([("a", "x", NOON + 180_000, 4.0)]).collect();
    assert_eq!(select(&storage, "a").await, truth(&all, "a"));
    assert_eq!(verify(&plain(&to), VerifyOptions::default(), &Silent).await.expect("reads").problems, []);
}
