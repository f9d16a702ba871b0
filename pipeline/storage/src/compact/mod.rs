//! Compaction: the files of a (tenant, date) become few large ones whose key ranges do not meet, each sample once.
//!
//! ```text
//!  flush files   a▒▒▒▒▒▒▒z  a▒▒▒▒▒z  a▒▒▒▒▒▒z       overlapping, small, copies possible
//!       │ plan ─▶ verify hashes ─▶ streaming merge ─▶ upload ─▶ one commit { remove inputs, add outputs, data_change = false }
//!       ▼
//!  outputs       a▓▓▓▓▓▓g  h▓▓▓▓▓p  q▓▓▓▓▓▓z          sorted, disjoint, about the target size
//! ```
//!
//! # Invariants
//! - **K1** What a query sees before and after is the same: outputs hold exactly the rows of the inputs, one per key (the rule of
//!   [`crate::run::beats`]).
//! - **K2** Each input is verified against the hash in its `add` before a row of it is used.
//! - **K3** A commit lands only while every input is still in the table: of two compactions with a common input one fails
//!   ([`StorageError::Superseded`]) and plans again. The lease only saves the work.
//! - **K4** Memory is bounded by the settings, not by the size of a day.
//! - **K5** No file older than an hour is committed.
//!
//! # When it fails
//! Nothing was changed, or (after an unclear answer) the log says what happened: the next run plans on what it says. Outputs that certainly no
//! commit names are deleted again; others stay as files that nobody names.
//!
//! # Parts
//! [`plan`] which files, [`merge`] the rows of `samples`, [`series`] the rows of `series`.
//!
//! # Not here
//! How views follow (`engine`), when to run (the maintenance role), deleting replaced files (`delta::maintenance`).

mod merge;
pub mod plan;
mod series;

#[cfg(test)]
mod tests;

use crate::delta::store::Leases;
use crate::delta::{BusRange, Commit, DeltaTable, FileEntry, FileIdentity};
use crate::parquet_file::EncodedFile;
use crate::{Advice, StorageError};
use fletch_common::metrics::{Counter, Histogram, Registry, duration_buckets};
use fletch_common::{SharedClock, failpoint};
use fletch_schemas::tables::Table;
use object_store::ObjectStoreExt;
pub use plan::{Job, When};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A file older than this is never committed: the sweep of files that no commit names could take it.
const FILE_AGE_MS_MAX: i64 = 3_600_000;
/// How often a table is planned again in one run after another compaction was faster.
const ROUNDS_MAX: u32 = 5;
/// How often a commit without a clear answer is given to the table again: it finds out and finishes.
const COMMIT_ATTEMPTS_MAX: u32 = 4;
/// Pause between two of these.
const COMMIT_PAUSE: Duration = Duration::from_secs(1);
/// How long the lease of a (tenant, date) holds: a merge that takes longer may be made twice, one that died is begun again after this.
const LEASE: Duration = Duration::from_secs(120);

/// The numbers that one tunes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Bytes that an output is cut at. Up to a quarter more, so that the cut falls between two metrics.
    pub target_bytes: u64,
    /// So many files of one size class on a day that is not closed are worth a merge; each class is as many times larger.
    pub fan_in: usize,
    /// A day before today is closed when its newest file was committed so long ago.
    pub quiet: Duration,
    /// A single file of a flush is not written again in the background below this many bytes.
    pub rewrite_bytes_min: u64,
    /// Late files are merged into well-sized ones only when they have one byte for so many bytes there.
    pub rewrite_ratio: u64,
    /// Most bytes of inputs of one merge; smaller files go first.
    pub job_bytes_max: u64,
    /// Most inputs of one merge.
    pub job_files_max: usize,
    /// Inputs that are kept in memory as a whole, together; the others are read in parts, after a pass over all bytes for their hash.
    pub whole_bytes_max: u64,
    /// Most rows of one merge of `series`, which is made in memory.
    pub series_rows_max: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            target_bytes: 128 << 20,
            fan_in: 8,
            quiet: Duration::from_secs(3_600),
            rewrite_bytes_min: 1 << 20,
            rewrite_ratio: 8,
            job_bytes_max: 4 << 30,
            job_files_max: 512,
            whole_bytes_max: 128 << 20,
            series_rows_max: 1 << 20,
        }
    }
}

/// What runs of the compaction did.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Report {
    /// Merges that were committed.
    pub jobs: u64,
    /// Files that left the table.
    pub removed: u64,
    /// Files that joined it.
    pub added: u64,
    /// Rows of the inputs.
    pub rows_in: u64,
    /// Rows of the outputs: fewer when there were copies.
    pub rows_out: u64,
    /// Bytes of the inputs.
    pub bytes_in: u64,
    /// Bytes of the outputs.
    pub bytes_out: u64,
    /// Merges that another process was faster with; they were planned again.
    pub conflicts: u64,
    /// Merges that another process has the lease of.
    pub busy: u64,
    /// Merges that failed; their inputs stay as they are.
    pub failed: u64,
}

impl Report {
    /// Adds another report.
    pub fn add(&mut self, other: &Self) {
        self.jobs += other.jobs;
        self.removed += other.removed;
        self.added += other.added;
        self.rows_in += other.rows_in;
        self.rows_out += other.rows_out;
        self.bytes_in += other.bytes_in;
        self.bytes_out += other.bytes_out;
        self.conflicts += other.conflicts;
        self.busy += other.busy;
        self.failed += other.failed;
    }
}

/// What compaction counts. Clones share their values.
#[derive(Debug, Clone)]
pub struct Metrics {
    /// Merges that were committed.
    pub runs: Counter,
    /// Rows that they wrote.
    pub rows: Counter,
    /// Bytes that they read.
    pub bytes_read: Counter,
    /// Bytes that they wrote.
    pub bytes_written: Counter,
    /// Copies of a (series, time) that they dropped.
    pub copies_dropped: Counter,
    /// How long each took.
    pub seconds: Histogram,
    /// Merges that failed.
    pub failures: Counter,
    /// Merges that another process was faster with.
    pub conflicts: Counter,
}

impl Default for Metrics {
    fn default() -> Self {
        let (runs, rows, bytes_read, bytes_written, copies_dropped, failures, conflicts) = Default::default();
        let seconds = Histogram::new(duration_buckets());
        Self { runs, rows, bytes_read, bytes_written, copies_dropped, seconds, failures, conflicts }
    }
}

impl Metrics {
    /// Adds them to the registry of the process.
    pub fn register(&self, registry: &mut Registry) {
        let m = self.clone();
        registry.register("fletch_compaction_runs", "Merges of files that were committed", m.runs);
        registry.register("fletch_compaction_rows", "Rows that compaction wrote", m.rows);
        registry.register("fletch_compaction_read_bytes", "Bytes of files that compaction replaced", m.bytes_read);
        registry.register("fletch_compaction_written_bytes", "Bytes of files that compaction wrote", m.bytes_written);
        registry.register("fletch_compaction_copies_dropped", "Copies of a sample that compaction dropped", m.copies_dropped);
        registry.register("fletch_compaction_seconds", "Duration of a merge", m.seconds);
        registry.register("fletch_compaction_failures", "Merges that failed; their inputs stay", m.failures);
        registry.register("fletch_compaction_conflicts", "Merges that another process was faster with", m.conflicts);
    }
}

/// Compacts tables. One at a time per (tenant, date) is enough; any number are safe.
#[derive(Debug)]
pub struct Compactor {
    settings: Settings,
    clock: SharedClock,
    leases: Option<(Leases, String)>,
    metrics: Metrics,
}

impl Compactor {
    /// A compactor without leases.
    pub fn new(settings: Settings, clock: SharedClock) -> Self {
        Self { settings, clock, leases: None, metrics: Metrics::default() }
    }

    /// Takes a lease per (tenant, date) as `holder`, so that processes do not do the same work.
    #[must_use]
    pub fn with_leases(self, leases: Leases, holder: String) -> Self {
        Self { leases: Some((leases, holder)), ..self }
    }

    /// What it counts.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Compacts `samples` or `series` where the plan finds work. A merge that fails leaves its inputs and the others go on.
    ///
    /// # Errors
    /// The log cannot be read, or the first error of a merge when no merge succeeded; [`StorageError::Conflict`] for another table.
    pub async fn run(&self, table: &DeltaTable, when: When) -> Result<Report, StorageError> {
        if !matches!(table.table(), Table::Samples | Table::Series) {
            return Err(StorageError::Conflict(format!("table `{}` has no compaction", table.name())));
        }
        let (mut report, mut first_error) = (Report::default(), None);
        for _ in 0..ROUNDS_MAX {
            let snapshot = table.refresh().await?;
            let jobs = plan::plan(&snapshot, &self.settings, when, self.clock.now_ms());
            let mut again = false;
            for job in &jobs {
                match self.guarded(table, job).await {
                    Ok(Some(done)) => report.add(&done),
                    Ok(None) => report.busy += 1,
                    Err(StorageError::Superseded { path, .. }) => {
                        tracing::info!(table = table.name(), path, "another compaction was faster; planning again");
                        self.metrics.conflicts.inc();
                        report.conflicts += 1;
                        again = true;
                    }
                    Err(error) => {
                        self.metrics.failures.inc();
                        report.failed += 1;
                        tracing::warn!(table = table.name(), tenant = %job.tenant, date = job.date, %error, "a merge failed; its files stay as they are");
                        first_error.get_or_insert(error);
                    }
                }
            }
            if !again {
                break;
            }
        }
        match first_error {
            Some(error) if report.jobs == 0 => Err(error),
            _ => Ok(report),
        }
    }

    /// Merges under the lease; `None` when another process has it.
    async fn guarded(&self, table: &DeltaTable, job: &Job) -> Result<Option<Report>, StorageError> {
        let Some((leases, holder)) = &self.leases else { return self.merge(table, job).await.map(Some) };
        let name = format!("compact-{}-{}-{}", table.name(), job.tenant.path_segment(), job.date);
        let Some(lease) = leases.acquire(&name, holder, LEASE).await? else { return Ok(None) };
        let done = self.merge(table, job).await;
        if let Err(error) = leases.retire(&lease).await {
            tracing::debug!(%error, "a lease ends by itself");
        }
        done.map(Some)
    }

    async fn merge(&self, table: &DeltaTable, job: &Job) -> Result<Report, StorageError> {
        let started = Instant::now();
        let began_ms = self.clock.now_ms();
        let outputs = match table.table() {
            Table::Series => series::merge(table, job, began_ms).await?,
            _ => merge::merge(table, job, &self.settings, began_ms).await?,
        };
        let mut commit = Commit::new("OPTIMIZE");
        commit.data_change = false;
        commit.removes = job.inputs.clone();
        commit.adds = outputs;
        let landed = self.land(table, &commit, began_ms).await;
        if landed.as_ref().is_err_and(nothing_landed) {
            discard(table, &commit.adds).await;
        }
        landed?;
        let report = Report {
            jobs: 1,
            removed: job.inputs.len() as u64,
            added: commit.adds.len() as u64,
            rows_in: job.inputs.iter().map(|f| f.rows).sum(),
            rows_out: commit.adds.iter().map(|f| f.rows).sum(),
            bytes_in: job.inputs.iter().map(|f| f.size).sum(),
            bytes_out: commit.adds.iter().map(|f| f.size).sum(),
            ..Report::default()
        };
        self.count(&report, started.elapsed());
        tracing::info!(table = table.name(), tenant = %job.tenant, date = job.date, ?report, "compacted");
        Ok(report)
    }

    async fn land(&self, table: &DeltaTable, commit: &Commit, began_ms: i64) -> Result<(), StorageError> {
        if self.clock.now_ms().saturating_sub(began_ms) > FILE_AGE_MS_MAX {
            return Err(StorageError::Limit("a merge took longer than an hour; it will be made again".into()));
        }
        failpoint::pass("compact-before-commit")?;
        let mut attempt = 1;
        loop {
            match table.commit(commit).await {
                Err(error) if attempt < COMMIT_ATTEMPTS_MAX && error.advice() == Advice::Retry => {
                    tracing::warn!(%error, "a compaction's commit got no clear answer; asking again");
                    attempt += 1;
                    self.clock.sleep(COMMIT_PAUSE).await;
                }
                done => {
                    done?;
                    break;
                }
            }
        }
        failpoint::pass("compact-after-commit")?;
        Ok(())
    }

    fn count(&self, report: &Report, took: Duration) {
        self.metrics.runs.inc();
        self.metrics.rows.inc_by(report.rows_out);
        self.metrics.bytes_read.inc_by(report.bytes_in);
        self.metrics.bytes_written.inc_by(report.bytes_out);
        self.metrics.copies_dropped.inc_by(report.rows_in.saturating_sub(report.rows_out));
        self.metrics.seconds.observe(took.as_secs_f64());
    }
}

/// Whether this answer to a commit proves that nothing of it is, or will be, in the log.
fn nothing_landed(error: &StorageError) -> bool {
    matches!(error, StorageError::Superseded { .. } | StorageError::Fenced { .. } | StorageError::Conflict(_) | StorageError::Limit(_))
}

/// Deletes files that no commit names and none will.
async fn discard(table: &DeltaTable, files: &[FileEntry]) {
    for file in files {
        let Ok(path) = table.object_path(&file.path) else { continue };
        if let Err(error) = table.store().delete(&path).await {
            tracing::debug!(%path, %error, "a file that nobody names stays for now");
        }
    }
}

/// The identity of an output: the youngest commit time of the inputs, and the part of the bus that they cover if it is one partition's.
fn identity_of(job: &Job, written_ms: i64) -> FileIdentity {
    let committed_ms = job.inputs.iter().map(|f| f.committed_ms).max().unwrap_or(written_ms);
    FileIdentity::new(job.tenant.clone(), job.date, bus_of(&job.inputs), committed_ms).written_at(written_ms)
}

fn bus_of(inputs: &[Arc<FileEntry>]) -> Option<BusRange> {
    let mut all = inputs.iter().map(|f| f.bus);
    let first = all.next()??;
    all.try_fold(first, |sum, bus| {
        let bus = bus.filter(|b| b.partition == sum.partition)?;
        Some(BusRange { partition: sum.partition, from: sum.from.min(bus.from), to: sum.to.max(bus.to) })
    })
}

/// Uploads an output; returns its entry as the commit names it.
async fn upload(table: &DeltaTable, file: EncodedFile) -> Result<FileEntry, StorageError> {
    table.upload(&file.entry, file.bytes).await?;
    Ok(FileEntry { data_change: false, ..file.entry })
}
