//! Runs every `cases/sql/*.slt` three times, on the same data in memory, in files, and in both, in one process over a store in a folder.
//!
//! ```text
//!  # load                                             lines of the head of a file, in order
//!  # 0 cpu{host="a"} 12:00:00=1 12:00:15=NaN          partition of the bus, series, time of day = value; NaN, +Inf, -Inf, stale
//!  # flush
//!  # 1 cpu{host="a"} 12:00:00=1                       the same sample through another partition: storage keeps the copy, reads merge it
//!  # end
//!
//!              hot: flushes are left out     mixed: as written     stored: as written, and a flush at the end
//! ```
//!
//! The day is 2026-01-01 unless a line `# day 2026-01-02` changes it; `now()` is 2026-01-03T00:00:00Z. `# tenant other` changes whose samples follow;
//! statements run as tenant `default`.

use arrow::datatypes::DataType;
use arrow::util::display::{ArrayFormatter, FormatOptions};
use async_trait::async_trait;
use fletch_common::{ManualClock, SharedClock};
use fletch_ingest::{Append, BatchSink, Bus, BusError, Delivery, Partition, SampleBatch, SeriesRegistry, SourceOffset};
use fletch_promql::{ParseLimits, parse_selector};
use fletch_query::engine::{Engine, EngineSettings};
use fletch_query::sql::{SqlEngine, SqlError, SqlQuery, SqlSettings};
use fletch_schemas::{Labels, TenantId, stale_marker};
use fletch_storage::delta::store::open_store;
use fletch_storage::{Settings, Storage};
use sqllogictest::{AsyncDB, DBOutput, DefaultColumnType, Runner};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tempfile::TempDir;
use tokio::sync::Semaphore;

/// 2026-01-01T00:00:00Z in milliseconds.
const DAY_ZERO: i64 = 1_767_225_600_000;
const DAY: i64 = 86_400_000;
const PARTITIONS: Partition = 2;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Hot,
    Mixed,
    Stored,
}

/// A bus that nobody appends to: samples are delivered by hand.
#[derive(Debug)]
struct NoBus;

#[async_trait]
impl Bus for NoBus {
    async fn append(&self, _append: Append) -> Result<(), BusError> {
        Err(BusError::Closed)
    }

    fn release(&self, _partition: Partition, _next: i64) {}

    fn overtaken(&self, _partition: Partition) {}

    fn source_offsets(&self) -> Vec<SourceOffset> {
        Vec::new()
    }

    async fn close(&self) {}
}

/// One process with the data of one file.
struct Process {
    storage: Arc<Storage>,
    registry: Arc<SeriesRegistry>,
    sql: Arc<SqlEngine>,
    offsets: HashMap<Partition, i64>,
    tenant: TenantId,
    day: i64,
    _bus: Arc<dyn Bus>,
    _folder: TempDir,
}

impl Process {
    async fn start() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let store = open_store(&format!("file://{}", folder.path().display()), []).expect("a store in a folder");
        let registry = Arc::new(SeriesRegistry::new());
        let clock: SharedClock = ManualClock::at(DAY_ZERO + 2 * DAY);
        let storage = Storage::open(Settings::default(), store.clone(), registry.clone(), clock.clone()).await.expect("storage opens");
        storage.set_bus_id("log").expect("the first bus");
        let bus: Arc<dyn Bus> = Arc::new(NoBus);
        storage.set_bus(Arc::downgrade(&bus));
        for partition in 0..PARTITIONS {
            storage.assigned(partition).expect("nobody else is there");
        }
        let settings = SqlSettings { threads: 2, ..SqlSettings::default() };
        let promql = Arc::new(Engine::new(EngineSettings::default()));
        let sql = SqlEngine::new(settings, store, clock, promql, Arc::new(Semaphore::new(4))).expect("sql threads");
        let (offsets, tenant, day) = (HashMap::new(), TenantId::default(), DAY_ZERO);
        Self { storage, registry, sql, offsets, tenant, day, _bus: bus, _folder: folder }
    }

    /// Does what the head of a file says.
    async fn load(&mut self, script: &str, mode: Mode) {
        let head = script.lines().skip_while(|l| l.trim() != "# load").skip(1).take_while(|l| l.trim() != "# end");
        for line in head.filter_map(|l| l.trim().strip_prefix('#')).map(str::trim).filter(|l| !l.is_empty()) {
            match line.split_once(' ').unwrap_or((line, "")) {
                ("flush", _) => self.flush(mode != Mode::Hot).await,
                ("day", date) => self.day = day_of(date),
                ("tenant", name) => self.tenant = TenantId::new(name).expect("a tenant"),
                (partition, rest) => self.insert(partition.parse().unwrap_or_else(|_| panic!("no directive: {line}")), rest),
            }
        }
        self.flush(mode == Mode::Stored).await;
    }

    async fn flush(&self, wanted: bool) {
        if wanted {
            self.storage.flush().await.expect("a folder does not fail");
        }
    }

    fn insert(&mut self, partition: Partition, line: &str) {
        let (series, samples) = match line.split_once('}') {
            Some((series, samples)) => (format!("{series}}}"), samples),
            None => line.split_once(' ').map(|(s, rest)| (s.to_owned(), rest)).expect("a series and samples"),
        };
        let matchers = parse_selector(&series, &ParseLimits::default()).unwrap_or_else(|e| panic!("{line}: {e}"));
        let labels = Labels::from_pairs(matchers.into_iter().map(|m| (m.name, m.value))).expect("labels");
        let mut batch = SampleBatch::default();
        for sample in samples.split_whitespace() {
            let (time, value) = sample.split_once('=').unwrap_or_else(|| panic!("no sample: {sample}"));
            batch.push(self.registry.resolve(&self.tenant, &labels), self.day + time_of_day(time), value_of(value));
        }
        let from = self.offsets.entry(partition).or_default();
        let (batch, append_time_ms) = (Arc::new(batch), DAY_ZERO);
        self.storage.deliver(&Delivery {
            partition,
            from: *from,
            to: *from + 1,
            append_time_ms,
            batch,
            metadata: Vec::new(),
            sources: Vec::new(),
        });
        *from += 1;
    }
}

fn value_of(text: &str) -> f64 {
    if text == "stale" { stale_marker() } else { text.parse().unwrap_or_else(|_| panic!("no value: {text}")) }
}

fn day_of(date: &str) -> i64 {
    let days: i64 = date.strip_prefix("2026-01-").and_then(|d| d.parse().ok()).unwrap_or_else(|| panic!("no day of January 2026: {date}"));
    DAY_ZERO + (days - 1) * DAY
}

fn time_of_day(text: &str) -> i64 {
    let (time, millis) = text.split_once('.').unwrap_or((text, "0"));
    let parts: Vec<i64> = time.split(':').chain([millis]).map(|p| p.parse().unwrap_or_else(|_| panic!("no time: {text}"))).collect();
    match parts[..] {
        [hours, minutes, seconds, millis] => ((hours * 60 + minutes) * 60 + seconds) * 1_000 + millis,
        _ => panic!("no time: {text}"),
    }
}

/// One connection of the runner.
struct Connection(Arc<Process>);

#[async_trait]
impl AsyncDB for Connection {
    type Error = SqlError;
    type ColumnType = DefaultColumnType;

    async fn run(&mut self, sql: &str) -> Result<DBOutput<DefaultColumnType>, SqlError> {
        let view = self.0.storage.view(&TenantId::default());
        let answer = self.0.sql.execute(SqlQuery::new(view, sql)).await?;
        let types = answer.schema.fields().iter().map(|f| column_type(f.data_type())).collect();
        let options = FormatOptions::default().with_null("NULL");
        let mut rows = Vec::new();
        for batch in answer.collect().await? {
            let cells: Vec<_> = batch.columns().iter().map(|c| ArrayFormatter::try_new(c, &options).expect("printable")).collect();
            let cell = |f: &ArrayFormatter<'_>, row| {
                Some(f.value(row).to_string()).filter(|t| !t.is_empty()).unwrap_or_else(|| "(empty)".to_owned())
            };
            rows.extend((0..batch.num_rows()).map(|row| cells.iter().map(|f| cell(f, row)).collect::<Vec<_>>()));
        }
        Ok(DBOutput::Rows { types, rows })
    }

    async fn shutdown(&mut self) {}

    fn engine_name(&self) -> &str {
        "fletch"
    }
}

fn column_type(kind: &DataType) -> DefaultColumnType {
    match kind {
        kind if kind.is_integer() => DefaultColumnType::Integer,
        kind if kind.is_floating() => DefaultColumnType::FloatingPoint,
        _ => DefaultColumnType::Text,
    }
}

fn cases() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("cases/sql");
    let entries = std::fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let mut files: Vec<PathBuf> =
        entries.map(|e| e.expect("an entry").path()).filter(|p| p.extension().is_some_and(|x| x == "slt")).collect();
    files.sort();
    files
}

async fn run(mode: Mode) {
    let files = cases();
    assert!(files.len() >= 5, "the cases are there");
    let mut failures = Vec::new();
    for file in files {
        let script = std::fs::read_to_string(&file).expect("readable");
        let mut process = Process::start().await;
        process.load(&script, mode).await;
        let process = Arc::new(process);
        let mut runner = Runner::new(|| {
            let connection = Connection(process.clone());
            async move { Ok(connection) }
        });
        runner.with_column_validator(sqllogictest::strict_column_validator);
        if let Err(error) = runner.run_file_async(&file).await {
            failures.push(format!("{mode:?}: {}", error.display(false)));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n\n"));
}

#[tokio::test]
async fn hot() {
    run(Mode::Hot).await;
}

#[tokio::test]
async fn mixed() {
    run(Mode::Mixed).await;
}

#[tokio::test]
async fn stored() {
    run(Mode::Stored).await;
}
