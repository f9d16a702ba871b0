//! Answers from tiers beside answers from samples, over a real storage in memory.

use super::*;
use crate::engine::{Engine, EngineSettings, QueryOptions, QueryResult, RangeQuery, Value};
use fletch_common::{Limits, ManualClock};
use fletch_ingest::{Append, BatchSink, Bus, BusError, Delivery, SampleBatch, SeriesRegistry, SourceOffset};
use fletch_schemas::tables::Table;
use fletch_schemas::{Labels, TenantId, stale_marker};
use fletch_storage::delta::DeltaTable;
use fletch_storage::delta::store::table_root;
use fletch_storage::retention::{Consumed, Policy, Retention};
use fletch_storage::tiers::{Tier, TierJob, Tiers};
use fletch_storage::{Settings, Storage};
use object_store::memory::InMemory;

/// A full hour.
const NOON: i64 = 1_767_268_800_000;
const MINUTE: i64 = 60_000;
const HOUR: i64 = 60 * MINUTE;
const DAY: i64 = 24 * HOUR;
/// First sample.
const START: i64 = NOON - 40 * HOUR;

/// A bus that nobody reads.
#[derive(Debug)]
struct NoBus;

#[async_trait]
impl Bus for NoBus {
    async fn append(&self, _append: Append) -> Result<(), BusError> {
        Err(BusError::Closed)
    }

    fn release(&self, _partition: u32, _next: i64) {}

    fn overtaken(&self, _partition: u32) {}

    fn source_offsets(&self) -> Vec<SourceOffset> {
        Vec::new()
    }

    async fn close(&self) {}
}

/// The same view without tiers.
struct RawOnly(ViewSource);

#[async_trait]
impl SeriesSource for RawOnly {
    async fn select(&self, matchers: &[Matcher], min_ms: i64, max_ms: i64) -> Result<SeriesSet, QueryError> {
        self.0.view.select(matchers, min_ms, max_ms, &self.0.limits).await.map_err(query_error)
    }
}

struct World {
    clock: Arc<ManualClock>,
    storage: Arc<Storage>,
    registry: Arc<SeriesRegistry>,
    samples: Arc<DeltaTable>,
    jobs: Vec<TierJob>,
    engine: Engine,
    offset: i64,
    _bus: Arc<dyn Bus>,
}

impl World {
    async fn new() -> Self {
        let (store, registry, clock) = (Arc::new(InMemory::new()), Arc::new(SeriesRegistry::new()), ManualClock::at(NOON));
        let storage = Storage::open(Settings::default(), store.clone(), registry.clone(), clock.clone()).await.expect("memory");
        storage.set_bus_id("log").expect("the first bus");
        let bus: Arc<dyn Bus> = Arc::new(NoBus);
        storage.set_bus(Arc::downgrade(&bus));
        storage.assigned(0).expect("nobody else is there");
        let open = async |table| {
            let table = DeltaTable::open_or_create(store.clone(), table_root(table), table, clock.clone()).await;
            Arc::new(table.expect("memory"))
        };
        let (samples, series) = (open(Table::Samples).await, open(Table::Series).await);
        let mut jobs = Vec::new();
        for tier in Tier::ALL {
            jobs.push(TierJob::new(tier, samples.clone(), series.clone(), open(tier.table).await, clock.clone()));
        }
        storage.set_tiers(Arc::new(Tiers::new(jobs.iter().map(|job| (job.tier(), job.table().clone())).collect())));
        let engine = Engine::new(EngineSettings::default());
        Self { clock, storage, registry, samples, jobs, engine, offset: 0, _bus: bus }
    }

    fn insert(&mut self, rows: &[(&str, &str, i64, f64)]) {
        let mut batch = SampleBatch::default();
        for &(metric, host, time, value) in rows {
            let labels = Labels::from_pairs([("__name__", metric), ("host", host)]).expect("valid");
            batch.push(self.registry.resolve(&TenantId::default(), &labels), time, value);
        }
        let (batch, metadata, sources) = (Arc::new(batch), Vec::new(), Vec::new());
        let (from, to) = (self.offset, self.offset + 1);
        self.storage.deliver(&Delivery { partition: 0, from, to, append_time_ms: NOON, batch, metadata, sources });
        self.offset = to;
    }

    /// Two gauges and two counters with a reset every third hour, a sample every five minutes; a stale marker in each.
    async fn filled() -> Self {
        let mut world = Self::new().await;
        let mut rows = Vec::new();
        for i in 1..40 * 12 {
            let time = START + i * 5 * MINUTE - 7_000;
            for (host, by) in [("a", 1.0), ("b", 3.0)] {
                let gauge = if i == 100 { stale_marker() } else { (i * 37 % 101) as f64 * by };
                rows.push(("g", host, time, gauge));
                rows.push(("c_total", host, time, (i % 36) as f64 * by));
            }
        }
        world.insert(&rows);
        world.flush_and_run(NOON).await;
        // Two hours later the tiers are sure of the first flush.
        let later: Vec<_> = (0..20).map(|i| ("g", "a", NOON + i * 5 * MINUTE, i as f64)).collect();
        world.insert(&later);
        world.flush_and_run(NOON + 2 * HOUR).await;
        world
    }

    async fn flush_and_run(&self, now_ms: i64) {
        self.clock.set(now_ms);
        self.storage.flush().await.expect("memory");
        for job in &self.jobs {
            job.run().await.expect("memory");
            job.run_late().await.expect("memory");
        }
    }

    fn source(&self) -> ViewSource {
        ViewSource::new(self.storage.view(&TenantId::default()), &Limits::default())
    }

    async fn ask(&self, source: &dyn SeriesSource, text: &str, start_ms: i64, end_ms: i64, step_ms: i64) -> QueryResult {
        let query = RangeQuery { text, start_ms, end_ms, step_ms, options: QueryOptions::default() };
        self.engine.range(source, query).await.unwrap_or_else(|e| panic!("{text}: {e}"))
    }

    /// Answers from tiers and from raw.
    async fn both(&self, text: &str, start_ms: i64, end_ms: i64, step_ms: i64) -> (QueryResult, String, String) {
        let from_tiers = self.ask(&self.source(), text, start_ms, end_ms, step_ms).await;
        let from_raw = self.ask(&RawOnly(self.source()), text, start_ms, end_ms, step_ms).await;
        assert!(from_raw.tiers.is_empty());
        let (shown, raw) = (shown(&from_tiers), shown(&from_raw));
        (from_tiers, shown, raw)
    }
}

fn shown(result: &QueryResult) -> String {
    let Value::Matrix(matrix) = &result.value else { panic!("a matrix") };
    let row = |row: usize| {
        let cells = (0..matrix.steps()).map(|s| if matrix.mask(row).has(s) { format!("{:?}", matrix.values(row)[s]) } else { "-".into() });
        format!("{} {}\n", matrix.labels(row), cells.collect::<Vec<_>>().join(" "))
    };
    (0..matrix.rows()).map(row).collect()
}

const FUNCTIONS: [&str; 8] = ["count", "sum", "min", "max", "avg", "first", "last", "present"];

#[tokio::test]
async fn windows_of_a_tier_give_the_answers_of_samples() {
    let world = World::filled().await;
    for function in FUNCTIONS {
        for (window, step, tier) in [("1h", HOUR, "1h"), ("6h", 2 * HOUR, "1h"), ("1h", 15 * MINUTE, "5m"), ("7m", 21 * MINUTE, "1m")] {
            let text = format!("{function}_over_time(g[{window}])");
            let (answer, tiers, raw) = world.both(&text, START, NOON + 2 * HOUR, step).await;
            assert_eq!(answer.tiers, [tier], "{text}");
            assert_eq!(tiers, raw, "{text}");
            assert!(answer.infos.is_empty(), "{:?}", answer.infos);
            assert!(raw.lines().count() == 2);
        }
        let text = format!("sum by (host) ({function}_over_time(g[1h] offset 1h)) + 0");
        let (answer, tiers, raw) = world.both(&text, START, NOON, HOUR).await;
        assert_eq!((answer.tiers, tiers), (vec!["1h"], raw), "{text}");
    }
    let (answer, tiers, raw) = world.both("absent_over_time(g[1h])", START - 5 * HOUR, NOON, HOUR).await;
    assert_eq!((answer.tiers, tiers), (vec!["1h"], raw));
}

#[tokio::test]
async fn rates_of_rows_are_rates_of_samples() {
    let world = World::filled().await;
    for (text, step) in [("rate(c_total[1h])", HOUR), ("increase(c_total[6h])", 2 * HOUR), ("sum(rate(g[3h]))", HOUR)] {
        // From before the first sample: windows with few samples, and with extrapolation to zero.
        let (answer, tiers, raw) = world.both(text, START - 2 * HOUR, NOON + 3 * HOUR, step).await;
        assert_eq!(answer.tiers, ["1h"], "{text}");
        let numbers = |text: &str| text.split_whitespace().map(|n| n.parse::<f64>().ok()).collect::<Vec<_>>();
        let (tiers, raw) = (numbers(&tiers), numbers(&raw));
        assert!(raw.len() > 20 && raw.len() == tiers.len());
        for (a, b) in tiers.into_iter().zip(raw) {
            let same = a.zip(b).map_or(a == b, |(a, b)| (a - b).abs() <= 1e-12 * b.abs());
            assert!(same, "{text}: {a:?} for {b:?}");
        }
    }
}

#[tokio::test]
async fn whatever_does_not_fit_is_read_from_samples() {
    let world = World::filled().await;
    for (text, start, step) in [
        ("sum_over_time(g[1h])", START + 1, HOUR),
        ("sum_over_time(g[90s])", START, HOUR),
        ("sum_over_time(g[1h])", START, 90_000),
        ("rate(c_total[1h])", START + 1, HOUR),
        ("delta(g[1h])", START, HOUR),
        ("stddev_over_time(g[1h])", START, HOUR),
        ("max_over_time(g[1h:1m])", START, HOUR),
        ("g", START, HOUR),
    ] {
        let (answer, tiers, raw) = world.both(text, start, NOON, step).await;
        assert_eq!((answer.tiers, answer.infos.len(), tiers), (vec![], 0, raw), "{text}");
    }
}

#[tokio::test]
async fn late_samples_count_before_a_tier_has_them() {
    let mut world = World::filled().await;
    world.insert(&[("g", "a", START + 3 * HOUR + 1, 5_000.0), ("g", "new", START + 3 * HOUR + 1, 7.0)]);
    for round in ["in memory", "in a file", "in tiers"] {
        for function in FUNCTIONS {
            let text = format!("{function}_over_time(g[1h])");
            let (answer, tiers, raw) = world.both(&text, START, NOON + 2 * HOUR, HOUR).await;
            assert_eq!(tiers, raw, "{round}: {text} from {:?}", answer.tiers);
            assert!(raw.contains("new"));
        }
        if round == "in memory" {
            world.clock.set(NOON + 3 * HOUR);
            world.storage.flush().await.expect("memory");
        } else {
            world.flush_and_run(NOON + 5 * HOUR).await;
        }
    }
}

#[tokio::test]
async fn what_has_expired_is_read_from_tiers_and_said() {
    let mut world = World::filled().await;
    let queries = [
        ("sum_over_time(g[1h])", HOUR, "1h", false),
        ("avg_over_time(g[2h])", HOUR, "1h", false),
        ("max_over_time(g[10m])", 5 * MINUTE, "5m", false),
        // A tier row of a minute holds one sample here, so these are exact, too.
        ("increase(c_total[2h])", 61 * MINUTE + 1, "1m", true),
        ("rate(c_total[50m])", 7 * MINUTE, "1m", false),
        ("c_total", 13 * MINUTE, "1m", true),
    ];
    let mut before = Vec::new();
    for (text, step, ..) in queries {
        before.push(shown(&world.ask(&RawOnly(world.source()), text, START, NOON - HOUR, step).await));
    }
    world.flush_and_run(NOON + 10 * DAY).await;
    let retention = Retention::new(Policy::usual(), world.clock.clone());
    let version = world.jobs.iter().filter_map(TierJob::consumed).min().expect("all ran");
    let until_ms = world.jobs.iter().filter_map(TierJob::until_ms).min().expect("all ran");
    let report = retention.samples(&world.samples, Some(Consumed { version, until_ms })).await.expect("memory");
    // The file of the second flush stays: the last hour of it is not over for the widest tier.
    assert_eq!(report.removed, 3);
    world.storage.refresh().await.expect("memory");
    assert_eq!(
        shown(&world.ask(&RawOnly(world.source()), "count_over_time(g[100d])", NOON - HOUR, NOON - HOUR, 1).await),
        "",
        "raw is gone"
    );
    for ((text, step, tier, said), want) in queries.into_iter().zip(before) {
        let answer = world.ask(&world.source(), text, START, NOON - HOUR, step).await;
        assert_eq!(shown(&answer), want, "{text}");
        assert_eq!(answer.tiers, [tier], "{text}");
        let info = answer.infos.iter().any(|info| info.ends_with(&format!("have expired; read from tier {tier}")));
        assert_eq!(info, said, "{text}: {:?}", answer.infos);
    }
    // The next wider tier follows when rows of the narrowest have expired, too.
    let days = [(Table::Samples1m, 5 * DAY)].into_iter().collect();
    let minutes = Retention::new(Policy { defaults: days, overrides: Vec::new() }, world.clock.clone());
    assert!(minutes.tier(world.jobs[0].table()).await.expect("memory").removed > 0);
    let answer = world.ask(&world.source(), "c_total", START, NOON - HOUR, 15 * MINUTE).await;
    assert_eq!((shown(&answer).lines().count(), answer.infos.len(), answer.tiers), (2, 1, vec!["5m"]));
    // What is written today for back then is there at once.
    world.insert(&[("g", "old", START + 2 * HOUR - 1, 9.0)]);
    for text in ["last_over_time(g[1h])", "g", "max_over_time(g[90s])"] {
        let answer = world.ask(&world.source(), text, START, NOON - HOUR, HOUR).await;
        assert!(shown(&answer).contains(r#"host="old""#), "{text}");
    }
    // Windows that do not fit: each row counts in the window that its end lies in.
    let answer = world.ask(&world.source(), "count_over_time(g[30h1m30s])", NOON - HOUR, NOON - HOUR, HOUR).await;
    assert_eq!((answer.infos.len(), answer.tiers), (1, vec!["5m"]));
}
