//! A store with two tenants, 1969, 1970 and a tier, looked at, damaged on purpose, copied away and brought back.

use super::*;
use crate::delta::DeltaTable;
use crate::delta::store::table_root;
use crate::delta::testing::{FaultStore, JumpClock};
use crate::engine::tests::{DAY, NOON, Row, World, settings};
use crate::tiers::{Tier, TierJob};
use fletch_schemas::tables::Table;
use futures::TryStreamExt;
use object_store::ObjectStoreExt;
use object_store::path::Path;

mod backup;
mod verify;

pub(crate) const ROWS: [Row; 7] = [
    ("a", "x", NOON, 1.0),
    ("a", "x", NOON + 60_000, 2.0),
    ("a", "y", NOON, -0.0),
    ("b.c", "x", 0, 7.0),
    ("b.c", "other/z", DAY, f64::NAN),
    ("b.c", "x", -DAY - 120_001, 5.0),
    ("a", "later/x", NOON + DAY, 5.0),
];

pub(crate) fn plain(store: &Arc<FaultStore>) -> Arc<dyn ObjectStore> {
    store.clone()
}

pub(crate) async fn table(store: &Arc<FaultStore>, clock: &Arc<JumpClock>, table: Table) -> Arc<DeltaTable> {
    Arc::new(DeltaTable::open_or_create(store.clone(), table_root(table), table, clock.clone()).await.expect("opens"))
}

/// Two flushes of [`ROWS`] and a run of the tier.
pub(crate) async fn world() -> Arc<World> {
    let world = World::new();
    let process = world.start(settings()).await;
    process.push(&ROWS[..4]);
    process.storage.flush().await.expect("flushes");
    process.push(&ROWS[4..]);
    process.storage.flush().await.expect("flushes");
    run_tier(&world).await;
    world
}

pub(crate) async fn run_tier(world: &Arc<World>) {
    tier_job(&world.store, &world.clock).await.run().await.expect("runs");
}

/// The job of the one-minute tier on a store.
pub(crate) async fn tier_job(store: &Arc<FaultStore>, clock: &Arc<JumpClock>) -> TierJob {
    let (samples, series) = (table(store, clock, Table::Samples).await, table(store, clock, Table::Series).await);
    TierJob::new(Tier::ALL[0], samples, series, table(store, clock, Table::Samples1m).await, clock.clone())
}

/// Everything on a store: path and bytes.
pub(crate) async fn objects(store: &dyn ObjectStore) -> Vec<(String, bytes::Bytes)> {
    let mut out = Vec::new();
    let all: Vec<object_store::ObjectMeta> = store.list(None).try_collect().await.expect("lists");
    for meta in all {
        let bytes = store.get(&meta.location).await.expect("there").bytes().await.expect("reads");
        out.push((meta.location.to_string(), bytes));
    }
    out.sort();
    out
}

#[tokio::test]
async fn a_summary_has_what_the_tables_have() {
    let world = world().await;
    let before = objects(world.store.as_ref()).await;
    let store = plain(&world.store);
    let summary = summarize(&store).await.expect("reads");
    let names: Vec<&str> = summary.tables.iter().map(|t| t.name.as_str()).collect();
    assert_eq!(names, ["samples", "samples_1m", "series"]);
    let samples = &summary.tables[0];
    assert_eq!((samples.rows, samples.files, samples.version), (7, 5, 2));
    assert_eq!(samples.dates, Some(("1969-12-30".to_owned(), "1972-09-28".to_owned())));
    let tenants: Vec<(&str, u64, u64)> = samples.tenants.iter().map(|t| (t.name.as_str(), t.files, t.rows)).collect();
    assert_eq!(tenants, [("a", 2, 4), ("b.c", 3, 3)]);
    assert_eq!(samples.offsets.get("bus:log:0"), Some(&2));
    assert_eq!(summary.tables[1].offsets.get("tier:1m"), Some(&2));
    let bytes: u64 = before.iter().filter(|(p, _)| p.starts_with("tables/samples/tenant")).map(|(_, b)| b.len() as u64).sum();
    assert_eq!(samples.bytes, bytes);
    let logs: u64 = before.iter().filter(|(p, _)| p.starts_with("tables/samples/_delta_log")).map(|(_, b)| b.len() as u64).sum();
    assert_eq!(samples.log_bytes, logs);
    assert_eq!(samples.bytes_per_row, Some(bytes as f64 / 7.0));
    assert_eq!(summary.tables[2].bytes_per_sample, Some(summary.tables[2].bytes as f64 / 7.0), "per sample, not per series");
    assert_eq!((summary.bus, summary.not_tables.len()), (None, 0));
    assert_eq!(objects(world.store.as_ref()).await, before, "looking changes nothing");
}

#[tokio::test]
async fn a_table_is_described_down_to_its_encodings() {
    let world = world().await;
    let store = plain(&world.store);
    let details = describe(&store, "samples").await.expect("reads").expect("is there");
    let columns: Vec<&str> = details.columns.iter().map(|(name, ..)| name.as_str()).collect();
    assert_eq!(columns, ["tenant", "date", "metric", "series_id", "time", "value", "start_time"]);
    assert_eq!(details.columns[5], ("value".to_owned(), "double".to_owned(), true));
    assert_eq!(details.partition_columns, ["tenant", "date"]);
    assert_eq!(details.properties["delta.checkpointInterval"].as_deref(), Some("100"));
    let partitions: Vec<(&str, &str, u64)> = details.partitions.iter().map(|p| (p.tenant.as_str(), p.date.as_str(), p.rows)).collect();
    let b: Vec<(&str, u64)> = partitions.iter().filter(|p| p.0 == "b.c").map(|p| (p.1, p.2)).collect();
    assert_eq!(b, [("1969-12-30", 1), ("1970-01-01", 1), ("1970-01-02", 1)]);
    let encoded: Vec<&str> = details.encodings.iter().map(|c| c.column.as_str()).collect();
    assert_eq!(encoded, ["metric", "series_id", "time", "value", "start_time"]);
    assert!(details.encodings.iter().all(|c| !c.encodings.is_empty() && !c.compression.is_empty() && c.compressed_bytes > 0));
    assert_eq!(describe(&store, "nothing").await.expect("reads"), None);
}

#[tokio::test]
async fn an_empty_store_has_no_tables_and_a_folder_without_a_log_is_named() {
    let store = FaultStore::new();
    assert_eq!(summarize(&plain(&store)).await.expect("reads").tables, []);
    store.put(&Path::from("tables/odd/x.parquet"), "x".into()).await.expect("puts");
    let summary = summarize(&plain(&store)).await.expect("reads");
    assert_eq!((summary.tables.len(), summary.not_tables), (0, vec!["odd".to_owned()]));
}
