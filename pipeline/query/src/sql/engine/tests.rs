//! The engine over a real storage in memory: what statements see, and what they cannot do.

use super::*;
use crate::engine::EngineSettings;
use arrow::array::AsArray;
use arrow::datatypes::{Float64Type, Int64Type};
use arrow::util::pretty::pretty_format_batches;
use fletch_common::ManualClock;
use fletch_ingest::{Append, BatchSink, Bus, BusError, Delivery, SampleBatch, SeriesRegistry, SourceOffset};
use fletch_schemas::tables::Table;
use fletch_schemas::{Labels, TenantId, stale_marker};
use fletch_storage::delta::DeltaTable;
use fletch_storage::delta::store::table_root;
use fletch_storage::tiers::TierJob;
use fletch_storage::{Settings, Storage};
use object_store::memory::InMemory;
use parking_lot::Mutex;

/// 2026-01-01T12:00:00Z.
const NOON: i64 = 1_767_268_800_000;
const DAY: i64 = 86_400_000;

/// A bus that nobody reads.
#[derive(Debug)]
struct NoBus;

#[async_trait::async_trait]
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

/// A process: storage and engine on a store in memory.
struct Process {
    storage: Arc<Storage>,
    registry: Arc<SeriesRegistry>,
    sql: Arc<SqlEngine>,
    store: Arc<InMemory>,
    clock: SharedClock,
    offsets: Mutex<HashMap<u32, i64>>,
    _bus: Arc<dyn Bus>,
}

async fn process() -> Process {
    process_with(SqlSettings { threads: 2, ..SqlSettings::default() }).await
}

async fn process_with(settings: SqlSettings) -> Process {
    let (store, registry) = (Arc::new(InMemory::new()), Arc::new(SeriesRegistry::new()));
    let clock: SharedClock = ManualClock::at(NOON + DAY);
    let storage = Storage::open(Settings::default(), store.clone(), registry.clone(), clock.clone()).await.expect("an empty store opens");
    storage.set_bus_id("log").expect("the first bus");
    let bus: Arc<dyn Bus> = Arc::new(NoBus);
    storage.set_bus(Arc::downgrade(&bus));
    for partition in 0..2 {
        storage.assigned(partition).expect("nobody else is there");
    }
    let promql = Arc::new(Engine::new(EngineSettings::default()));
    let permits = Arc::new(Semaphore::new(settings.limits.queries_concurrent_max));
    let sql = SqlEngine::new(settings, store.clone(), clock.clone(), promql, permits).expect("threads");
    Process { storage, registry, sql, store, clock, offsets: Mutex::default(), _bus: bus }
}

impl Process {
    /// Delivers samples (labels as `metric{host}`, time, value) in a partition.
    fn insert(&self, tenant: &str, partition: u32, rows: &[(&str, i64, f64)]) {
        let tenant = TenantId::new(tenant).expect("valid");
        let mut batch = SampleBatch::default();
        for &(series, time, value) in rows {
            let (metric, host) = series.split_once('/').unwrap_or((series, ""));
            let labels = Labels::from_pairs([("__name__", metric), ("host", host)]).expect("valid");
            batch.push(self.registry.resolve(&tenant, &labels), time, value);
        }
        let mut offsets = self.offsets.lock();
        let from = offsets.entry(partition).or_default();
        let (batch, metadata, sources) = (Arc::new(batch), Vec::new(), Vec::new());
        self.storage.deliver(&Delivery { partition, from: *from, to: *from + 1, append_time_ms: NOON, batch, metadata, sources });
        *from += 1;
    }

    async fn flush(&self) {
        self.storage.flush().await.expect("a store in memory does not fail");
    }

    fn query(&self, tenant: &str, sql: &str) -> SqlQuery {
        SqlQuery::new(self.storage.view(&TenantId::new(tenant).expect("valid")), sql)
    }

    async fn rows(&self, sql: &str) -> Result<Vec<RecordBatch>, SqlError> {
        self.sql.execute(self.query("default", sql)).await?.collect().await
    }

    /// The answer as a table of text, without the frame.
    async fn table(&self, sql: &str) -> Vec<String> {
        let batches = self.rows(sql).await.unwrap_or_else(|e| panic!("{sql}: {e:?}"));
        let text = pretty_format_batches(&batches).expect("printable").to_string();
        let cells = |line: &str| line.trim_matches('|').split('|').map(str::trim).collect::<Vec<_>>().join(" ").trim_end().to_owned();
        text.lines().filter(|l| l.starts_with('|')).skip(1).map(cells).collect()
    }

    async fn number(&self, sql: &str) -> i64 {
        let batches = self.rows(sql).await.unwrap_or_else(|e| panic!("{sql}: {e:?}"));
        batches[0].column(0).as_primitive::<Int64Type>().value(0)
    }

    async fn error(&self, sql: &str) -> SqlError {
        match self.rows(sql).await {
            Ok(rows) => panic!("{sql}: {rows:?}"),
            Err(error) => error,
        }
    }
}

#[tokio::test]
async fn samples_are_seen_once_wherever_they_are() {
    let p = process().await;
    let (early, late) = ([("cpu/a", NOON, 1.0), ("cpu/b", NOON, 2.0)], [("cpu/a", NOON + 1_000, 3.0)]);
    p.insert("default", 0, &early);
    p.insert("default", 0, &late);
    let all = "SELECT metric, time, value FROM samples ORDER BY time, value";
    let hot = p.table(all).await;
    assert_eq!(hot.len(), 3);
    assert_eq!(hot[0], "cpu 2026-01-01T12:00:00Z 1.0");
    p.flush().await;
    assert_eq!(p.table(all).await, hot, "stored");
    // The same samples again through another partition, which cannot know of them; one of them with a larger value.
    p.insert("default", 1, &early);
    p.insert("default", 1, &[("cpu/a", NOON + 1_000, 30.0)]);
    let larger = [hot[0].clone(), hot[1].clone(), "cpu 2026-01-01T12:00:01Z 30.0".to_owned()];
    assert_eq!(p.table(all).await, larger, "a file and memory");
    p.flush().await;
    assert_eq!(p.storage.view(&TenantId::default()).files(fletch_schemas::tables::Table::Samples).len(), 2);
    assert_eq!(p.table(all).await, larger, "two files");
    assert_eq!(p.number("SELECT count(*) FROM samples").await, 3);
    assert_eq!(p.number("SELECT count(*) FROM samples WHERE metric = 'cpu'").await, 3);
    assert_eq!(p.number("SELECT count(*) FROM (SELECT * FROM samples LIMIT 3)").await, 3);
    // The losing copies of 3.0 must not come back through a condition, a limit or a count.
    assert_eq!(p.number("SELECT count(*) FROM samples WHERE value = 3.0").await, 0);
    assert_eq!(p.number("SELECT count(*) FROM samples WHERE value >= 2 AND time >= '2026-01-01T12:00:01Z'").await, 1);
    assert_eq!(p.number(r#"SELECT count(*) FROM m."cpu" WHERE host = 'a' AND value = 30"#).await, 1);
}

#[tokio::test]
async fn nan_and_stale_markers_count_the_same_everywhere() {
    let p = process().await;
    let rows = [("t/a", NOON, 81.0), ("t/a", NOON + 1, f64::NAN), ("t/a", NOON + 2, stale_marker()), ("t/a", NOON + 3, 5.0)];
    p.insert("default", 0, &rows);
    let statements = [
        "SELECT count(*) FROM samples WHERE value > 80",
        "SELECT count(value) FROM samples",
        "SELECT count(*) FROM samples",
        r#"SELECT count(*) FROM m."t" WHERE value > 80"#,
        r#"SELECT count(value) FROM m."t""#,
        "SELECT count(*) FROM samples WHERE value IS NULL",
    ];
    let expected = [2, 3, 4, 2, 3, 1];
    for round in ["hot", "stored", "stored twice"] {
        for (sql, expected) in statements.iter().zip(expected) {
            assert_eq!(p.number(sql).await, expected, "{round}: {sql}");
        }
        let max = p.rows("SELECT max(value), min(value) FROM samples").await.expect("an answer");
        let max = max[0].column(0).as_primitive::<Float64Type>().value(0);
        assert!(max.is_nan() || max == 81.0, "{round}: {max}");
        p.flush().await;
        if round == "stored" {
            p.insert("default", 1, &rows);
            p.flush().await;
        }
    }
}

#[tokio::test]
async fn metric_views_have_labels_as_columns() {
    let p = process().await;
    p.insert("default", 0, &[("cpu/a", NOON - DAY, 1.0), ("cpu/b", NOON, 2.0), ("cpu", NOON + 60_000, 4.0), ("mem/a", NOON, 9.0)]);
    p.flush().await;
    p.insert("default", 0, &[("cpu/a", NOON + 60_001, 8.0)]);
    assert_eq!(
        p.table(r#"SELECT * FROM m."cpu" ORDER BY time"#).await,
        ["2025-12-31T12:00:00Z 1.0 a", "2026-01-01T12:00:00Z 2.0 b", "2026-01-01T12:01:00Z 4.0", "2026-01-01T12:01:00.001Z 8.0 a"]
    );
    let where_ = |condition: &str| format!(r#"SELECT sum(value) FROM m."cpu" WHERE {condition}"#);
    for (condition, sum) in [
        ("host = 'a'", "9.0"),
        ("host IN ('a', 'b')", "11.0"),
        ("host <> 'a'", "2.0"),
        ("host IS NULL", "4.0"),
        ("host IS NOT NULL", "11.0"),
        ("host LIKE '_' AND value < 8", "3.0"),
        ("time >= '2026-01-01T12:01:00Z'", "12.0"),
        ("time > '2026-01-01T12:01:00Z' AND host = 'a'", "8.0"),
        ("time < now() - INTERVAL '1 day'", "1.0"),
        ("host = 'a' OR value = 2", "11.0"),
        ("host = ''", ""),
    ] {
        assert_eq!(p.table(&where_(condition)).await, [sum], "{condition}");
    }
    assert_eq!(p.number(r#"SELECT count(*) FROM m."cpu""#).await, 4);
    assert_eq!(p.rows(r#"SELECT time FROM m."cpu" LIMIT 2"#).await.map(|b| b.iter().map(RecordBatch::num_rows).sum()), Ok(2));
    let windows = r#"SELECT tumble(time, INTERVAL '1m') AS t, sum(value) FROM m."cpu" WHERE time > '2026-01-01' GROUP BY 1 ORDER BY 1"#;
    assert_eq!(p.table(windows).await, ["2026-01-01T12:00:00Z 2.0", "2026-01-01T12:01:00Z 4.0", "2026-01-01T12:02:00Z 8.0"]);
    let plan = p.table(r#"EXPLAIN SELECT value FROM m."cpu" WHERE host = 'a' AND time >= '2026-01-01T00:00:00Z'"#).await.join("\n");
    assert!(plan.contains(r#"host="a""#) && !plan.contains("FilterExec"), "{plan}");
}

#[tokio::test]
async fn nothing_but_key_conditions_goes_below_the_deduplication() {
    let p = process().await;
    p.insert("default", 0, &[("cpu/a", NOON, 1.0)]);
    p.flush().await;
    p.insert("default", 1, &[("cpu/a", NOON, 2.0)]);
    let plan = p.table("EXPLAIN SELECT time FROM samples WHERE metric = 'cpu' AND value > 1 ORDER BY value LIMIT 1").await.join("\n");
    let (above, below) = plan.split_at(plan.rfind("DedupExec").unwrap_or_else(|| panic!("{plan}")));
    assert!(above.contains("value@") && below.contains("predicate=metric"), "{plan}");
    assert!(!below.contains("value@") && !below.contains("fetch=") && !below.contains("limit="), "{plan}");
}

#[tokio::test]
async fn cardinality_counts_metrics_labels_and_pairs_of_the_tenant() {
    let p = process().await;
    p.insert("default", 0, &[("cpu/a", NOON, 1.0), ("cpu/b", NOON, 1.0), ("mem/a", NOON - DAY, 1.0), ("bare", NOON, 1.0)]);
    p.insert("other", 0, &[("cpu/z", NOON, 1.0)]);
    for round in ["hot", "stored"] {
        assert_eq!(
            p.table("SELECT * FROM cardinality ORDER BY kind, series DESC, name, value").await,
            [
                "label __name__  4 3",
                "label host  3 2",
                "metric cpu  2",
                "metric bare  1",
                "metric mem  1",
                "pair __name__ cpu 2",
                "pair host a 2",
                "pair __name__ bare 1",
                "pair __name__ mem 1",
                "pair host b 1",
            ],
            "{round}"
        );
        let top = p.table("SELECT name, series FROM cardinality WHERE kind = 'metric' ORDER BY series DESC LIMIT 1").await;
        assert_eq!(top, ["cpu 2"], "{round}");
        p.flush().await;
    }
    assert_eq!(p.number("SELECT count(*) FROM cardinality").await, 10, "projected to nothing");
    let other = p.sql.execute(p.query("nobody", "SELECT count(*) FROM cardinality")).await.expect("plans").collect().await.expect("runs");
    assert_eq!(other[0].column(0).as_primitive::<Int64Type>().value(0), 0);
}

#[tokio::test]
async fn names_can_be_listed_and_unknown_ones_are_not_found() {
    let p = process().await;
    p.insert("default", 0, &[("cpu/a", NOON, 1.0)]);
    let tables = p.table("SELECT table_schema, table_name, table_type FROM information_schema.tables WHERE table_schema <> 'information_schema' ORDER BY 1, 2").await;
    assert_eq!(tables, ["m cpu VIEW", "public cardinality BASE TABLE", "public samples BASE TABLE", "public series BASE TABLE"]);
    assert!(p.table("SHOW TABLES").await.iter().any(|l| l.contains("cpu")));
    assert_eq!(p.table("DESCRIBE samples").await.len(), 7);
    assert_eq!(p.number("SELECT count(*) FROM series").await, 1);
    for sql in [
        "SELECT * FROM nope",
        r#"SELECT * FROM m."nope""#,
        "SELECT * FROM '/etc/passwd'",
        "SELECT * FROM \"file:///etc/passwd\"",
        "SELECT * FROM x.y.z",
    ] {
        assert_eq!(p.error(sql).await.kind, SqlErrorKind::NotFound, "{sql}: {}", p.error(sql).await);
    }
    let error = p.error("SELECT nope FROM samples").await;
    assert_eq!((error.kind, error.position.map(|at| (at.line, at.column))), (SqlErrorKind::BadData, Some((1, 8))), "{error}");
    assert!(error.message.contains("`nope`") && error.message.contains("value"), "{error}");
}

#[tokio::test]
async fn a_tenant_sees_its_own_rows_only() {
    let p = process().await;
    p.insert("a", 0, &[("cpu/a", NOON, 1.0)]);
    p.insert("b", 0, &[("mem/b", NOON, 2.0)]);
    for round in ["hot", "stored"] {
        for (tenant, metric) in [("a", "cpu"), ("b", "mem")] {
            let rows =
                p.sql.execute(p.query(tenant, "SELECT tenant, metric FROM samples")).await.expect("planned").collect().await.expect("rows");
            let row = |c: usize| rows[0].column(c).as_string::<i32>().value(0).to_owned();
            assert_eq!((rows.len(), rows[0].num_rows(), row(0), row(1)), (1, 1, tenant.to_owned(), metric.to_owned()), "{round}");
            let other = if metric == "cpu" { "mem" } else { "cpu" };
            let error = p.sql.execute(p.query(tenant, &format!(r#"SELECT * FROM m."{other}""#))).await.expect_err("another tenant's");
            assert_eq!(error.kind, SqlErrorKind::NotFound);
            let tables = p.sql.tables(&p.query(tenant, "").view, |_, _| true, Some(WireTypes::default())).await.expect("a list");
            let names: Vec<String> = tables.iter().map(|t| format!("{}.{}", t.schema, t.name)).collect();
            assert_eq!(names, [format!("m.{metric}"), "public.samples".into(), "public.series".into(), "public.cardinality".into()]);
        }
        p.flush().await;
    }
}

#[tokio::test]
async fn the_tier_is_a_table_once_it_has_rows() {
    let p = process().await;
    assert_eq!(p.error("SELECT * FROM samples_1m").await.kind, SqlErrorKind::NotFound);
    let open = async |table| {
        Arc::new(DeltaTable::open_or_create(p.store.clone(), table_root(table), table, p.clock.clone()).await.expect("memory"))
    };
    let (samples, series) = (open(Table::Samples).await, open(Table::Series).await);
    let minute = Tier::ALL[0];
    let tier = open(minute.table).await;
    p.sql.set_tiers(Arc::new(Tiers::new(vec![(minute, open(minute.table).await)])));
    p.insert(
        "default",
        0,
        &[("cpu/a", NOON, 1.0), ("cpu/a", NOON + 1, 2.0), ("cpu/a", NOON + 60_000, 3.0), ("cpu/b", NOON + 1, stale_marker())],
    );
    p.insert("other", 0, &[("cpu/a", NOON, 100.0)]);
    p.flush().await;
    TierJob::new(minute, samples, series, tier, p.clock.clone()).run().await.expect("memory");
    let tier = p.table("SELECT time, count, sum FROM samples_1m WHERE count > 0 AND metric = 'cpu' ORDER BY time").await;
    assert_eq!(tier, ["2026-01-01T12:00:00Z 1 1.0", "2026-01-01T12:01:00Z 2 5.0"]);
    let raw = "SELECT tumble(time, INTERVAL '1m') AS time, count(value) AS count, sum(value) FROM samples WHERE value IS NOT NULL GROUP BY 1 ORDER BY 1";
    assert_eq!(p.table(raw).await, tier);
    assert!(p.table("SHOW TABLES").await.iter().any(|l| l.contains("samples_1m")));
}

#[tokio::test]
async fn promql_and_series_are_tables() {
    let p = process().await;
    p.insert("default", 0, &[("cpu/a", NOON, 1.0), ("cpu/b", NOON, 2.0), ("cpu/a", NOON + 30_000, 3.0)]);
    let rows = p.table("SELECT * FROM promql('cpu', '2026-01-01T12:00:00Z', '2026-01-01T12:00:30Z', '30s') ORDER BY labels, time").await;
    assert_eq!(
        rows,
        [
            r#"2026-01-01T12:00:00Z 1.0 cpu {"host":"a"}"#,
            r#"2026-01-01T12:00:30Z 3.0 cpu {"host":"a"}"#,
            r#"2026-01-01T12:00:00Z 2.0 cpu {"host":"b"}"#,
            r#"2026-01-01T12:00:30Z 2.0 cpu {"host":"b"}"#,
        ]
    );
    let sums = format!("SELECT value, metric FROM promql('sum(cpu)', {}, {}, INTERVAL '1 minute')", NOON / 1_000, NOON / 1_000);
    assert_eq!(p.table(&sums).await, ["3.0"]);
    let joined =
        r#"SELECT s.labels, x.value FROM series('cpu{host="b"}') s JOIN samples x ON s.series_id = x.series_id AND s.metric = x.metric"#;
    assert_eq!(p.table(joined).await, [r#"{"host":"b"} 2.0"#]);
    p.flush().await;
    assert_eq!(p.table(joined).await, [r#"{"host":"b"} 2.0"#]);
    for (sql, kind) in [
        ("SELECT * FROM promql('sum(', 0, 1, 1)", SqlErrorKind::BadData),
        ("SELECT * FROM promql('cpu', 0, 1)", SqlErrorKind::BadData),
        ("SELECT * FROM promql(1, 0, 1, 1)", SqlErrorKind::BadData),
        ("SELECT * FROM promql('cpu', 'x', 1, 1)", SqlErrorKind::BadData),
        ("SELECT * FROM promql($1, 0, 1, 1)", SqlErrorKind::BadData),
        ("SELECT * FROM series('{')", SqlErrorKind::BadData),
        ("SELECT * FROM series('{}')", SqlErrorKind::BadData),
        ("SELECT hop(time, INTERVAL '1s', INTERVAL '1m') FROM samples", SqlErrorKind::BadData),
        ("SELECT tumble(time, INTERVAL '0s') FROM samples", SqlErrorKind::BadData),
    ] {
        assert_eq!(p.error(sql).await.kind, kind, "{sql}: {}", p.error(sql).await);
    }
}

#[tokio::test]
async fn parameters_are_bound_and_described() {
    let p = process().await;
    p.insert("default", 0, &[("cpu/a", NOON, 1.0), ("cpu/b", NOON, 2.0)]);
    let with = |sql: &str, params| SqlQuery { params, ..p.query("default", sql) };
    let run = async |query| p.sql.execute(query).await?.collect().await;
    let host = Params::Positional(vec![ScalarValue::from("b"), ScalarValue::from(0_i64)]);
    let rows = run(with(r#"SELECT value FROM m."cpu" WHERE host = $1 AND value > $2"#, host)).await.expect("an answer");
    assert_eq!(rows[0].column(0).as_primitive::<Float64Type>().values(), &[2.0]);
    let named = Params::Named([("h".to_owned(), ScalarValue::from("a"))].into_iter().collect());
    assert_eq!(run(with(r#"SELECT value FROM m."cpu" WHERE host = $h"#, named)).await.map(|r| r[0].num_rows()), Ok(1));
    let marks = Params::Positional(vec![ScalarValue::from("b"), ScalarValue::from(1.5)]);
    assert_eq!(run(with(r#"SELECT value FROM m."cpu" WHERE host = ? AND value > ?"#, marks)).await.map(|r| r[0].num_rows()), Ok(1));
    let any = run(with("SELECT $1 AS x", Params::Positional(vec![ScalarValue::from("text")]))).await.expect("any type");
    assert_eq!(any[0].column(0).as_string::<i32>().value(0), "text");
    let described =
        p.sql.describe(with("SELECT metric, value + $2 AS v FROM samples WHERE metric = $1", Params::None)).await.expect("a plan");
    assert_eq!(described.schema.fields().len(), 2);
    assert_eq!(described.parameters, [("$1".to_owned(), Some(DataType::Utf8)), ("$2".to_owned(), Some(DataType::Float64))]);
    assert_eq!(p.sql.describe(with("SELECT $1", Params::None)).await.map(|d| d.parameters.len()), Ok(1));
    let missing = run(with("SELECT * FROM samples WHERE value > $1", Params::None)).await;
    assert!(missing.is_err_and(|e| e.kind != SqlErrorKind::Internal));
}

#[tokio::test]
async fn statements_that_write_or_reach_out_are_refused() {
    let p = process().await;
    for sql in [
        "CREATE EXTERNAL TABLE t STORED AS CSV LOCATION '/etc/passwd'",
        "COPY samples TO '/tmp/x.csv'",
        "INSERT INTO samples SELECT * FROM samples",
        "SET datafusion.execution.batch_size = 1",
        "DROP TABLE samples",
        "CREATE VIEW v AS SELECT 1",
        "SELECT * FROM read_parquet('/etc/passwd')",
        "SELECT * FROM parquet_metadata('/etc/passwd')",
    ] {
        let error = p.error(sql).await;
        assert!(matches!(error.kind, SqlErrorKind::BadData | SqlErrorKind::NotFound), "{sql}: {error:?}");
    }
}

/// Shapes that pass the guards do not end the process, whatever the planner makes of them.
#[tokio::test]
async fn the_largest_shapes_that_are_let_through_are_planned() {
    let p = process().await;
    let (sum, or) = (vec!["1"; 200].join("+"), vec!["metric = 'a'"; 200].join(" OR "));
    assert_eq!(p.number(&format!("SELECT {sum}")).await, 200);
    assert_eq!(p.number(&format!("SELECT count(*) FROM samples WHERE {or}")).await, 0);
    let nested = format!("SELECT {}1{}", "(".repeat(50), ")".repeat(50));
    assert_eq!(p.number(&nested).await, 1);
    let unions = vec!["SELECT 1"; 200].join(" UNION ALL ");
    assert_eq!(p.number(&format!("SELECT count(*) FROM ({unions})")).await, 200);
    let deep = format!("SELECT abs({}1{})", "abs(".repeat(60), ")".repeat(60));
    assert_eq!(p.number(&deep).await, 1);
}

#[tokio::test]
async fn limits_end_a_statement_and_give_everything_back() {
    let limits = Limits { sql_rows_max: 1_000, queries_concurrent_max: 1, ..Limits::default() };
    let p = process_with(SqlSettings { limits, threads: 2, memory_bytes: 8 << 20, ..SqlSettings::default() }).await;
    let rows = p.error("SELECT value FROM generate_series(1, 100000)").await;
    assert_eq!(rows.kind, SqlErrorKind::Limit, "{rows}");
    let memory = p.error("SELECT count(*) FROM (SELECT (value * 7919) % 2000003 AS v FROM generate_series(1, 2000000) GROUP BY 1)").await;
    assert_eq!(memory.kind, SqlErrorKind::Limit, "{memory}");
    let slow = SqlQuery {
        timeout: Some(Duration::from_millis(200)),
        ..p.query("default", "SELECT count(*) FROM generate_series(1, 100000000000) a WHERE value % 7 = 3")
    };
    let started = Instant::now();
    let late = match p.sql.execute(slow).await {
        Ok(stream) => stream.collect().await.expect_err("it takes hours"),
        Err(error) => error,
    };
    assert_eq!(late.kind, SqlErrorKind::Timeout, "{late}");
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    // It is gone, not only unheard: no thread computes on.
    let metrics = p.sql.runtime.as_ref().expect("not dropped").metrics();
    let gone = async {
        while metrics.num_alive_tasks() > 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(5), gone).await.expect("the statement was aborted");
    // The one permit is free again: a statement that was dropped without being read gives it back, too.
    drop(p.sql.execute(p.query("default", "SELECT value FROM generate_series(1, 900)")).await.expect("planned"));
    assert_eq!(p.number("SELECT 1").await, 1);
    assert_eq!(p.sql.permits.available_permits(), 1);
    assert_eq!(p.sql.base.runtime_env().memory_pool.reserved(), 0);
}
