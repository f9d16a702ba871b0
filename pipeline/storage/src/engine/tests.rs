//! The engine against a store that breaks on purpose and a bus that remembers everything.

use super::*;
use crate::SelectLimits;
use crate::delta::testing::{Fault, FaultStore, JumpClock};
use crate::run::beats;
use fletch_common::Clock;
use fletch_ingest::{Append, SampleBatch, SourceOffset};
use fletch_schemas::tables::Table;
use fletch_schemas::{Labels, Matcher, MetricKind, MetricMetadata, SeriesSet, stale_marker};
use parking_lot::Mutex;
use proptest::prelude::*;
use std::collections::BTreeMap;

pub(crate) const DAY: i64 = 86_400_000;
/// A time in the middle of a day, long ago.
pub(crate) const NOON: i64 = 1_000 * DAY + DAY / 2;
pub(crate) const LIMITS: SelectLimits = SelectLimits { series_max: 1_000, samples_max: 1_000_000 };

/// One sample as tests write it: (tenant, host, time, value) of metric `m`, or of the metric before a `/` in the host.
pub(crate) type Row = (&'static str, &'static str, i64, f64);
/// Everything that a tenant has: bits by (labels, time).
pub(crate) type Content = BTreeMap<(String, i64), u64>;

pub(crate) fn tenant(name: &str) -> TenantId {
    TenantId::new(name).expect("valid")
}

pub(crate) fn labels(host: &str) -> Labels {
    let (metric, host) = host.split_once('/').unwrap_or(("m", host));
    Labels::from_pairs([("__name__", metric), ("host", host)]).expect("valid")
}

/// What the samples come to, whatever their order.
pub(crate) fn truth(rows: &[Row], name: &str) -> Content {
    let mut out: BTreeMap<(String, i64), f64> = BTreeMap::new();
    for &(tenant, host, time, value) in rows.iter().filter(|r| r.0 == name) {
        let _ = tenant;
        out.entry((labels(host).to_string(), time))
            .and_modify(|v| {
                if beats(value, *v) {
                    *v = value
                }
            })
            .or_insert(value);
    }
    out.into_iter().map(|(k, v)| (k, v.to_bits())).collect()
}

pub(crate) fn content(set: &SeriesSet) -> Content {
    let mut out = Content::new();
    for i in 0..set.len() {
        assert!(set.times(i).is_sorted_by(|a, b| a < b), "C1");
        assert!(!set.times(i).is_empty(), "series without samples are left out");
        for (&time, value) in set.times(i).iter().zip(set.values(i)) {
            let twice = out.insert((set.labels[i].to_string(), time), value.to_bits());
            assert!(twice.is_none(), "V3: {} at {time}", set.labels[i]);
        }
    }
    out
}

/// One record of the scripted bus.
#[derive(Debug, Clone)]
struct Record {
    rows: Vec<Row>,
    sources: Vec<SourceOffset>,
}

/// What outlives a process: the store, the clock, the log.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) store: Arc<FaultStore>,
    pub(crate) clock: Arc<JumpClock>,
    log: Mutex<Vec<Record>>,
    released: Mutex<i64>,
    overtaken: Mutex<Vec<Partition>>,
}

#[derive(Debug)]
struct ScriptedBus(Arc<World>);

#[async_trait::async_trait]
impl Bus for ScriptedBus {
    async fn append(&self, _append: Append) -> Result<(), BusError> {
        Err(BusError::Closed)
    }

    fn release(&self, _partition: Partition, next: i64) {
        *self.0.released.lock() = next;
    }

    fn overtaken(&self, partition: Partition) {
        self.0.overtaken.lock().push(partition);
    }

    fn source_offsets(&self) -> Vec<SourceOffset> {
        Vec::new()
    }

    async fn close(&self) {}
}

/// One life of a process on a world.
pub(crate) struct Process {
    pub(crate) storage: Arc<Storage>,
    registry: Arc<SeriesRegistry>,
    world: Arc<World>,
    _bus: Arc<dyn Bus>,
}

pub(crate) fn settings() -> Settings {
    Settings { attempts_max: 2, ..Settings::default() }
}

impl World {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            store: FaultStore::new(),
            clock: JumpClock::new(),
            log: Mutex::default(),
            released: Mutex::new(0),
            overtaken: Mutex::default(),
        })
    }

    /// Starts a process, which takes back from the log what the tables do not have.
    pub(crate) async fn start(self: &Arc<Self>, settings: Settings) -> Process {
        let registry = Arc::new(SeriesRegistry::new());
        let storage = Storage::open(settings, self.store.clone(), registry.clone(), self.clock.clone()).await.expect("opens");
        storage.set_bus_id("log").expect("first name");
        let bus: Arc<dyn Bus> = Arc::new(ScriptedBus(self.clone()));
        storage.set_bus(Arc::downgrade(&bus));
        let from = storage.assigned(0).expect("assigned").unwrap_or(0);
        let process = Process { storage, registry, world: self.clone(), _bus: bus };
        let records = self.log.lock().clone();
        for (offset, record) in (0_i64..).zip(&records).skip(usize::try_from(from).expect("not negative")) {
            process.deliver(offset, record);
        }
        process
    }

    fn end(&self) -> i64 {
        i64::try_from(self.log.lock().len()).expect("short")
    }
}

impl Process {
    fn deliver(&self, offset: i64, record: &Record) {
        let mut batch = SampleBatch::default();
        for &(name, host, time, value) in &record.rows {
            batch.push(self.registry.resolve(&tenant(name), &labels(host)), time, value);
        }
        let metadata = Vec::new();
        let (append_time_ms, sources) = (self.world.clock.now_ms(), record.sources.clone());
        let delivery = Delivery { partition: 0, from: offset, to: offset + 1, append_time_ms, batch: Arc::new(batch), metadata, sources };
        self.storage.deliver(&delivery);
    }

    /// Appends a record to the log and delivers it.
    pub(crate) fn push(&self, rows: &[Row]) {
        self.push_from(rows, &[]);
    }

    fn push_from(&self, rows: &[Row], sources: &[(&str, i64)]) {
        let sources = sources.iter().map(|&(source, next)| SourceOffset { source: source.into(), next }).collect();
        let record = Record { rows: rows.to_vec(), sources };
        let offset = self.world.end();
        self.world.log.lock().push(record.clone());
        self.deliver(offset, &record);
    }

    pub(crate) async fn read(&self, name: &str) -> Content {
        content(&self.storage.view(&tenant(name)).select(&[], i64::MIN, i64::MAX, &LIMITS).await.expect("selects"))
    }

    /// Rows of `samples` as the files hold them, every copy counted.
    pub(crate) async fn stored(&self, name: &str) -> Vec<(i64, u64)> {
        let view = self.storage.view(&tenant(name));
        let mut rows = Vec::new();
        for file in view.files(Table::Samples) {
            let source = self.storage.core.source(Table::Samples, &file).expect("a path");
            let samples = crate::parquet_file::read_samples(&source).await.expect("reads");
            rows.extend(samples.times.iter().copied().zip(samples.values.iter().map(|v| v.to_bits())));
        }
        rows.sort_unstable();
        rows
    }
}

const ROWS: [Row; 6] = [
    ("a", "x", NOON, 1.0),
    ("a", "x", NOON + 10, 2.0),
    ("a", "y", NOON, -0.0),
    ("b", "x", NOON, 7.0),
    ("a", "other/z", NOON + DAY, f64::INFINITY),
    ("a", "x", -DAY - 1, 5.0),
];

#[tokio::test]
async fn what_is_delivered_is_visible_and_after_a_flush_still_once() {
    let world = World::new();
    let process = world.start(settings()).await;
    process.push(&ROWS);
    let before = process.storage.view(&tenant("a"));
    assert_eq!(process.read("a").await, truth(&ROWS, "a"));
    assert_eq!(process.storage.unflushed_bytes(), 16 * 6);
    let report = process.storage.flush().await.expect("flushes");
    assert_eq!((report.files, report.rows, report.series_rows), (4, 6, 5), "one file per (tenant, date), 1969 included");
    assert_eq!(process.storage.unflushed_bytes(), 0);
    assert_eq!(*world.released.lock(), 1);
    for name in ["a", "b"] {
        assert_eq!(process.read(name).await, truth(&ROWS, name));
        assert_eq!(process.stored(name).await.len(), truth(&ROWS, name).len());
    }
    assert_eq!(content(&before.select(&[], i64::MIN, i64::MAX, &LIMITS).await.expect("V1")), truth(&ROWS, "a"));
    assert_eq!(process.read("nobody").await, Content::new());
    assert_eq!(process.storage.tenants(), [tenant("a"), tenant("b")]);
    assert_eq!(process.storage.flush().await.expect("nothing to do").files, 0);
}

#[tokio::test]
async fn a_restart_shows_the_same_from_files_and_log() {
    let world = World::new();
    let process = world.start(settings()).await;
    process.push(&ROWS);
    process.storage.flush().await.expect("flushes");
    process.push(&[("a", "x", NOON + 20, 3.0)]);
    drop(process);
    let process = world.start(settings()).await;
    let all: Vec<Row> = ROWS.iter().copied().chain([("a", "x", NOON + 20, 3.0)]).collect();
    assert_eq!(process.read("a").await, truth(&all, "a"));
    assert_eq!(process.read("b").await, truth(&all, "b"));
    process.storage.flush().await.expect("flushes");
    drop(process);
    let process = world.start(Settings { resident_bytes_max: 0, ..settings() }).await;
    assert_eq!(process.read("a").await, truth(&all, "a"), "read from files each time, nothing stays in memory");
    assert_eq!(process.stored("a").await.len(), truth(&all, "a").len());
    let one = process.storage.view(&tenant("a")).select(&[Matcher::equal("host", "y")], NOON, NOON, &LIMITS).await.expect("selects");
    assert_eq!(content(&one), truth(&[("a", "y", NOON, -0.0)], "a"));
}

#[tokio::test]
async fn copies_are_dropped_across_memory_and_files_and_the_larger_value_wins() {
    let world = World::new();
    let process = world.start(settings()).await;
    process.push(&[("a", "x", NOON, 1.0), ("a", "x", NOON + 1, stale_marker()), ("a", "x", NOON + 1, stale_marker())]);
    process.push(&[("a", "x", NOON, 1.0), ("a", "x", NOON + 1, stale_marker())]);
    let dropped = || process.storage.metrics().copies_dropped.get();
    assert_eq!(dropped(), 3);
    process.storage.flush().await.expect("flushes");
    process.push(&[("a", "x", NOON, 1.0), ("a", "x", NOON + 1, stale_marker())]);
    assert_eq!(dropped(), 5);
    process.push(&[("a", "x", NOON, 2.0), ("a", "x", NOON + 1, -1.0)]);
    assert_eq!(dropped(), 5, "larger values are kept");
    let rows = [("a", "x", NOON, 2.0), ("a", "x", NOON + 1, -1.0)];
    assert_eq!(process.read("a").await, truth(&rows, "a"));
    process.storage.flush().await.expect("flushes");
    drop(process);
    let process = world.start(settings()).await;
    process.push(&[("a", "x", NOON, 2.0), ("a", "x", NOON + 1, -1.0), ("a", "x", NOON + 2, 3.0)]);
    assert_eq!(process.storage.metrics().copies_dropped.get(), 2, "the retry index is loaded at the assignment");
    let rows = [("a", "x", NOON, 2.0), ("a", "x", NOON + 1, -1.0), ("a", "x", NOON + 2, 3.0)];
    assert_eq!(process.read("a").await, truth(&rows, "a"));
}

#[tokio::test]
async fn every_bit_of_a_value_survives_the_round_trip() {
    let bits = [0x7ff8_0000_0000_0001, 0xfff8_0000_0000_0000, 0x7ff0_0000_0000_0001, 0x8000_0000_0000_0000, 0x7ff0_0000_0000_0000, 1];
    let values = bits.into_iter().map(f64::from_bits).chain([stale_marker()]);
    let rows: Vec<Row> = (NOON..).zip(values).map(|(time, value)| ("a", "x", time, value)).collect();
    let world = World::new();
    let process = world.start(settings()).await;
    process.push(&rows);
    assert_eq!(process.read("a").await, truth(&rows, "a"));
    process.storage.flush().await.expect("flushes");
    drop(process);
    assert_eq!(world.start(settings()).await.read("a").await, truth(&rows, "a"));
}

/// Breaks one step of a flush, in each way and in each life.
#[tokio::test]
async fn a_flush_that_breaks_loses_nothing_and_doubles_nothing() {
    let steps = [".parquet", "series/_delta_log/00000000000000000001.json", "samples/_delta_log/00000000000000000001.json"];
    let faults = [Fault::Fails, Fault::LosesAnswer, Fault::LandsLater, Fault::LandsThenConflicts];
    for step in steps {
        for fault in faults {
            for crash in [false, true] {
                broken_flush(step, fault, crash).await;
            }
        }
    }
}

async fn broken_flush(step: &str, fault: Fault, crash: bool) {
    let what = format!("{step} {fault:?} crash: {crash}");
    let world = World::new();
    // With one attempt the flush itself gives up at the first error that it may.
    let mut process = world.start(Settings { attempts_max: 1, ..settings() }).await;
    process.push(&ROWS);
    world.store.break_put(step, fault);
    let first = process.storage.flush().await;
    assert_eq!(process.read("a").await, truth(&ROWS, "a"), "{what}: readable after {first:?}");
    process.push(&[("a", "x", NOON + 20, 3.0)]);
    if crash {
        process = world.start(settings()).await;
    }
    process.storage.flush().await.expect(&what);
    process.storage.flush().await.expect(&what);
    let all: Vec<Row> = ROWS.iter().copied().chain([("a", "x", NOON + 20, 3.0)]).collect();
    for process in [&process, &world.start(settings()).await] {
        for name in ["a", "b"] {
            assert_eq!(process.read(name).await, truth(&all, name), "{what}");
            assert_eq!(process.stored(name).await.len(), truth(&all, name).len(), "{what}: nothing twice in the files");
        }
    }
    assert_eq!(*world.released.lock(), 2, "{what}");
}

#[tokio::test]
async fn a_lost_answer_is_recognised_by_the_next_flush() {
    let world = World::new();
    let process = world.start(Settings { attempts_max: 1, ..settings() }).await;
    process.push(&ROWS);
    let log = "samples/_delta_log/00000000000000000001.json";
    world.store.break_put(log, Fault::LosesAnswer);
    for _ in 0..6 {
        world.store.break_get(log);
    }
    process.storage.flush().await.expect_err("nobody could tell whether it landed");
    assert_eq!(process.read("a").await, truth(&ROWS, "a"));
    process.push(&[("b", "x", NOON + 1, 3.0)]);
    let report = process.storage.flush().await.expect("our own commit is no rival");
    assert_eq!((report.fenced.as_slice(), report.rows), (&[][..], 1));
    let all: Vec<Row> = ROWS.iter().copied().chain([("b", "x", NOON + 1, 3.0)]).collect();
    for name in ["a", "b"] {
        assert_eq!(process.read(name).await, truth(&all, name));
        assert_eq!(process.stored(name).await.len(), truth(&all, name).len());
    }
}

#[tokio::test]
async fn a_zombie_is_fenced_and_drops_what_it_holds() {
    let world = World::new();
    let zombie = world.start(settings()).await;
    zombie.push(&ROWS);
    let owner = world.start(settings()).await;
    owner.push(&[("a", "new", NOON, 1.0)]);
    owner.storage.flush().await.expect("flushes");
    let report = zombie.storage.flush().await.expect("what is left is nothing");
    assert_eq!((report.fenced.as_slice(), report.rows), (&[0][..], 0));
    assert_eq!(zombie.storage.unflushed_bytes(), 0);
    assert_eq!(zombie.storage.view(&tenant("a")).warnings().len(), 1);
    zombie.push(&[("a", "x", NOON + 99, 1.0)]);
    let rows: Vec<Row> = ROWS.iter().copied().chain([("a", "new", NOON, 1.0)]).collect();
    assert_eq!(zombie.read("a").await, truth(&rows, "a"), "it reads the owner's files and takes nothing more");
    assert_eq!(*world.overtaken.lock(), [0], "the bus is told");
    zombie.storage.revoked(0);
    assert_eq!(zombie.storage.assigned(0).expect("assigned again"), Some(2));
    assert!(zombie.storage.view(&tenant("a")).warnings().is_empty());
}

#[tokio::test]
async fn a_view_sees_what_others_commit_after_a_refresh() {
    let world = World::new();
    let reader = world.start(settings()).await;
    let writer = world.start(settings()).await;
    writer.push(&ROWS);
    writer.storage.flush().await.expect("flushes");
    let old = reader.storage.view(&tenant("a"));
    reader.storage.refresh().await.expect("reads the log");
    assert_eq!(reader.read("a").await, truth(&ROWS, "a"));
    assert_eq!(content(&old.select(&[], i64::MIN, i64::MAX, &LIMITS).await.expect("V1")), Content::new());
}

#[tokio::test]
async fn revoked_data_is_dropped_with_its_series() {
    let world = World::new();
    let process = world.start(settings()).await;
    process.push(&ROWS);
    process.storage.revoked(0);
    assert_eq!(process.read("a").await, Content::new());
    assert_eq!(process.storage.unflushed_bytes(), 0);
    let names = process.storage.view(&tenant("a")).label_names(&[], i64::MIN, i64::MAX).await.expect("names");
    assert!(names.is_empty(), "{names:?}");
    assert_eq!(process.storage.flush().await.expect("nothing").files, 0);
}

#[tokio::test]
async fn offsets_of_foreign_topics_travel_with_the_samples() {
    let world = World::new();
    let process = world.start(settings()).await;
    process.push_from(&ROWS[..1], &[("src:topic:0", 7)]);
    process.push_from(&ROWS[1..2], &[("src:topic:0", 9), ("src:topic:1", 3)]);
    process.storage.flush().await.expect("flushes");
    process.push_from(&ROWS[2..3], &[("src:topic:1", 4)]);
    process.storage.flush().await.expect("flushes");
    let snapshot = process.storage.samples_table().snapshot();
    assert_eq!((snapshot.txn("src:topic:0"), snapshot.txn("src:topic:1"), snapshot.txn("bus:log:0")), (Some(9), Some(4), Some(3)));
}

#[tokio::test]
async fn heartbeats_move_the_offset_without_files() {
    let world = World::new();
    let process = world.start(settings()).await;
    process.push(&[]);
    let report = process.storage.flush().await.expect("commits");
    assert_eq!((report.files, *world.released.lock()), (0, 1));
    assert_eq!(world.start(settings()).await.storage.assigned(0).expect("assigned"), Some(1));
}

#[tokio::test]
async fn rows_of_the_next_day_are_written_ahead_in_the_last_hour() {
    let world = World::new();
    let now = world.clock.now_ms();
    let to_last_hour = (now.div_euclid(DAY) + 1) * DAY - now - 1_800_000;
    world.clock.advance(Duration::from_millis(u64::try_from(to_last_hour.rem_euclid(DAY)).expect("not negative")));
    let process = world.start(settings()).await;
    let now = world.clock.now_ms();
    process.push(&[("a", "x", now, 1.0)]);
    assert_eq!(process.storage.flush().await.expect("flushes").series_rows, 2);
    process.push(&[("a", "x", now + 1, 1.0)]);
    assert_eq!(process.storage.flush().await.expect("flushes").series_rows, 0);
    world.clock.advance(Duration::from_secs(3_600));
    process.push(&[("a", "x", now + 3_600_000, 1.0)]);
    let report = process.storage.flush().await.expect("flushes");
    assert_eq!((report.rows, report.series_rows), (1, 0), "the new day has its row already");
    drop(process);
    assert_eq!(world.start(settings()).await.read("a").await.len(), 3);
}

#[tokio::test]
async fn admission_refuses_above_the_budget_until_a_flush() {
    let world = World::new();
    let process = world.start(Settings { unflushed_bytes_max: 16, ..settings() }).await;
    assert!(process.storage.admit().is_ok());
    process.push(&ROWS[..1]);
    assert!(matches!(process.storage.admit(), Err(BusError::Full { what: "unflushed data", limit: 16, .. })));
    process.storage.flush().await.expect("flushes");
    assert!(process.storage.admit().is_ok());
}

#[tokio::test]
async fn the_background_flushes_by_interval_and_follows_the_tables() {
    let world = World::new();
    let process = world.start(settings()).await;
    let reader = world.start(settings()).await;
    let stop = CancellationToken::new();
    let tasks = [&process, &reader].map(|p| tokio::spawn(p.storage.clone().run_background(stop.clone())));
    process.push(&ROWS);
    for _ in 0..100_000 {
        // The jumping clock lets the task sleep its interval at once.
        tokio::task::yield_now().await;
        if reader.read("b").await == truth(&ROWS, "b") {
            break;
        }
    }
    assert_eq!(reader.read("b").await, truth(&ROWS, "b"));
    assert!(process.storage.unflushed_bytes() == 0);
    stop.cancel();
    for task in tasks {
        task.await.expect("ends");
    }
}

#[tokio::test]
async fn many_small_deliveries_leave_few_runs_and_many_flushes_few_copies() {
    let world = World::new();
    let process = world.start(settings()).await;
    let mut rows = Vec::new();
    for flush in 0..12_i64 {
        for i in 0..40_i64 {
            let row = ("a", ["x", "y", "z"][usize::try_from(i % 3).expect("small")], NOON + flush * 100 + i, 1.0);
            rows.push(row);
            process.push(&[row]);
        }
        assert!(process.storage.metrics().runs.get() <= 8);
        process.storage.flush().await.expect("flushes");
    }
    assert_eq!(process.read("a").await, truth(&rows, "a"));
    let state = process.storage.core.state.read();
    let day = state.day(&tenant("a"), 1_000).expect("it has data");
    assert!(day.resident.len() <= 8, "{} groups", day.resident.len());
    assert_eq!(day.resident.iter().map(|g| g.entries.len()).sum::<usize>(), 12, "E1");
    assert!(day.cold.is_empty() && day.hot.is_empty());
}

#[tokio::test]
async fn eviction_keeps_the_budget_and_evicted_files_are_read_again() {
    let world = World::new();
    let process = world.start(Settings { resident_bytes_max: 1_500, ..settings() }).await;
    let rows: Vec<Row> = (0..30).map(|day| ("a", "x", NOON + day * DAY, 1.0)).collect();
    for row in &rows {
        process.push(&[*row]);
    }
    process.storage.flush().await.expect("flushes");
    let resident = || process.storage.metrics().resident_bytes.get();
    assert!(resident() <= 1_500, "{}", resident());
    for _ in 0..2 {
        assert_eq!(process.read("a").await, truth(&rows, "a"));
        assert!(resident() <= 1_500, "{}", resident());
    }
}

#[tokio::test]
async fn a_damaged_file_is_named_and_the_others_are_served() {
    let world = World::new();
    let process = world.start(settings()).await;
    process.push(&[("a", "x", NOON, 1.0), ("a", "x", NOON + DAY, 1.0)]);
    process.storage.flush().await.expect("flushes");
    let view = process.storage.view(&tenant("a"));
    let file = view.files(Table::Samples)[0].clone();
    let path = process.storage.samples_table().object_path(&file.path).expect("a path");
    use object_store::ObjectStoreExt;
    world.store.put(&path, "no parquet".into()).await.expect("puts");
    drop((view, process));
    let registry = Arc::new(SeriesRegistry::new());
    let storage = Storage::open(settings(), world.store.clone(), registry, world.clock.clone()).await.expect("opens in spite of it");
    let view = storage.view(&tenant("a"));
    let error = view.select(&[], NOON, NOON, &LIMITS).await.expect_err("the file is damaged");
    assert!(error.to_string().contains(&file.path), "{error}");
    assert_eq!(view.select(&[], NOON + DAY, NOON + DAY, &LIMITS).await.expect("the other day").samples(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_never_see_less_than_was_acknowledged_while_flushes_run() {
    let world = World::new();
    let process = Arc::new(world.start(settings()).await);
    let stop = CancellationToken::new();
    let (flusher, stopped) = (process.clone(), stop.clone());
    let flushes = tokio::spawn(async move {
        while !stopped.is_cancelled() {
            flusher.storage.flush().await.expect("flushes");
        }
    });
    for i in 0..200_i64 {
        process.push(&[("a", "x", NOON + i, 1.0), ("a", "y", NOON + i, 2.0)]);
        let seen = process.read("a").await.len();
        assert_eq!(seen, 2 * (usize::try_from(i).expect("small") + 1));
    }
    stop.cancel();
    flushes.await.expect("ends");
}

#[tokio::test]
async fn metadata_is_kept_and_stored_with_the_series() {
    let world = World::new();
    let process = world.start(settings()).await;
    let said = MetricMetadata { metric: "m".into(), kind: MetricKind::Counter, unit: "s".into(), help: "h".into() };
    let batch = Arc::new(SampleBatch::default());
    let metadata = vec![(tenant("a"), said.clone())];
    let offset = world.end();
    world.log.lock().push(Record { rows: Vec::new(), sources: Vec::new() });
    process.storage.deliver(&Delivery {
        partition: 0,
        from: offset,
        to: offset + 1,
        append_time_ms: 0,
        batch,
        metadata,
        sources: Vec::new(),
    });
    process.push(&[("a", "x", NOON, 1.0)]);
    assert_eq!(process.storage.view(&tenant("a")).metadata(), std::slice::from_ref(&said));
    assert!(process.storage.view(&tenant("b")).metadata().is_empty());
    process.storage.flush().await.expect("flushes");
    drop(process);
    assert_eq!(world.start(settings()).await.storage.view(&tenant("a")).metadata(), [said]);
}

pub(crate) fn rows() -> impl Strategy<Value = Vec<Row>> {
    let value = prop_oneof![Just(stale_marker()), Just(f64::NAN), (0..3_i32).prop_map(f64::from)];
    let row = (0..2_usize, 0..3_usize, -3..6_i64, value).prop_map(|(tenant, host, time, value)| {
        // Times on both sides of a midnight.
        (["a", "b"][tenant], ["x", "y", "other/x"][host], 1_000 * DAY + time * 7_000, value)
    });
    proptest::collection::vec(row, 1..40)
}

/// What happens after each delivery.
#[derive(Debug, Clone, Copy)]
enum Then {
    Nothing,
    Flush,
    Restart,
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn any_order_of_arrival_flushes_and_restarts_gives_the_same_answer(
        rows in rows(),
        cuts in proptest::collection::vec((1..12_usize, prop_oneof![Just(Then::Nothing), Just(Then::Flush), Just(Then::Restart)]), 1..8),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        runtime.block_on(async {
            let world = World::new();
            let mut process = world.start(settings()).await;
            let mut rest = rows.as_slice();
            for (len, then) in cuts {
                let (now, later) = rest.split_at(len.min(rest.len()));
                rest = later;
                process.push(now);
                match then {
                    Then::Nothing => {}
                    Then::Flush => drop(process.storage.flush().await.expect("flushes")),
                    Then::Restart => process = world.start(settings()).await,
                }
            }
            process.push(rest);
            for name in ["a", "b"] {
                assert_eq!(process.read(name).await, truth(&rows, name));
            }
            process.storage.flush().await.expect("flushes");
            let restarted = world.start(settings()).await;
            for name in ["a", "b"] {
                assert_eq!(restarted.read(name).await, truth(&rows, name));
            }
        });
    }
}
