//! The maintenance role: tiers, retention, checkpoints, log clean-up and vacuum, under a lease so that one process does the work; and
//! compaction, in a task of its own under leases per (tenant, date), so that a long merge holds nothing else up.

use crate::config::Settings;
use anyhow::Context;
use fletch_common::SharedClock;
use fletch_common::metrics::{Counter, Registry};
use fletch_schemas::tables::Table;
use fletch_storage::compact::{self, Compactor, When};
use fletch_storage::delta::store::{Leases, table_root};
use fletch_storage::delta::{DeltaTable, VacuumReport};
use fletch_storage::retention::{Consumed, Retention, RetentionReport};
use fletch_storage::tiers::{TierJob, TierReport, Tiers};
use fletch_storage::{Advice, Storage, StorageError};
use object_store::ObjectStore;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// How often there is a look for work.
const EVERY: Duration = Duration::from_secs(10);
/// How often tiers take in what came more than a day late, milliseconds.
const LATE_EVERY_MS: i64 = 600_000;
/// How often expired rows are removed, logs are cut and replaced files deleted, milliseconds.
const SWEEP_EVERY_MS: i64 = 3_600_000;
/// How often there is a look for files to compact.
const COMPACT_EVERY: Duration = Duration::from_secs(120);
/// How long a lease holds; a process that dies is followed after this.
const LEASE: Duration = Duration::from_secs(60);

#[derive(Debug, Clone, Default)]
struct Metrics {
    rows: Counter,
    replaced: Counter,
    merged: Counter,
    expired_files: Counter,
    expired_rows: Counter,
    failures: Counter,
}

impl Metrics {
    fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register("fletch_tier_rows", "Rows written to tiers", metrics.rows.clone());
        registry.register(
            "fletch_tier_replaced_files",
            "Files of tiers replaced because late samples re-opened their windows, or because there were many small ones",
            metrics.replaced.clone(),
        );
        registry.register(
            "fletch_tier_merged_rows",
            "Rows of tiers that late samples were merged into because raw samples of their windows may be gone",
            metrics.merged.clone(),
        );
        registry.register("fletch_retention_files", "Files that retention removed", metrics.expired_files.clone());
        registry.register("fletch_retention_rows", "Rows that retention removed", metrics.expired_rows.clone());
        registry.register("fletch_tier_failures", "Runs of the maintenance role that failed", metrics.failures.clone());
        metrics
    }
}

/// What others need of the role.
#[derive(Debug)]
pub(super) struct Started {
    /// The tiers that it writes, for those who read them.
    pub(super) tiers: Arc<Tiers>,
    /// For operators who want it done now.
    pub(super) role: Arc<Role>,
}

/// Starts the role.
pub(super) async fn start(
    settings: &Settings,
    storage: &Arc<Storage>,
    store: &Arc<dyn ObjectStore>,
    clock: &SharedClock,
    registry: &mut Registry,
    stop: &CancellationToken,
    tasks: &mut JoinSet<()>,
) -> anyhow::Result<Started> {
    let metrics = Metrics::register(registry);
    let open = async |table: Table| {
        let opened = DeltaTable::open_or_create(store.clone(), table_root(table), table, clock.clone()).await;
        opened.map(Arc::new).with_context(|| format!("opening table {}", table.name()))
    };
    // Handles of its own: the jobs follow the logs at their own pace.
    let (samples, series) = (open(Table::Samples).await?, open(Table::Series).await?);
    let mut jobs = Vec::new();
    for tier in &settings.tiers.tiers {
        jobs.push(TierJob::new(*tier, samples.clone(), series.clone(), open(tier.table).await?, clock.clone()));
    }
    let tiers = Tiers::new(jobs.iter().map(|job| (job.tier(), job.table().clone())).collect());
    let leases = Leases::new(store.clone(), clock.clone());
    let holder = format!("{}:{}", std::process::id(), uuid::Uuid::new_v4());
    let retention = Retention::new(settings.tiers.policy.clone(), clock.clone());
    let (storage, clock, one_process) = (storage.clone(), clock.clone(), settings.kafka.is_none());
    let mut compactor = Compactor::new(compact::Settings::default(), clock.clone());
    if !one_process {
        // A process on its own would only wait for the leases of its earlier lives.
        compactor = compactor.with_leases(leases.clone(), holder.clone());
    }
    compactor.metrics().register(registry);
    let (compacting, tiering) = (tokio::sync::Mutex::default(), tokio::sync::Mutex::default());
    let role = Arc::new(Role {
        jobs,
        samples,
        series,
        retention,
        storage,
        compactor,
        compacting,
        tiering,
        one_process,
        leases,
        holder,
        clock,
        metrics,
    });
    tasks.spawn(role.clone().run(stop.clone()));
    tasks.spawn(role.clone().run_compaction(stop.clone()));
    Ok(Started { tiers: Arc::new(tiers), role })
}

/// The role of this process.
#[derive(Debug)]
pub(crate) struct Role {
    /// One per tier; none when tiers are switched off.
    jobs: Vec<TierJob>,
    samples: Arc<DeltaTable>,
    series: Arc<DeltaTable>,
    retention: Retention,
    storage: Arc<Storage>,
    compactor: Compactor,
    /// One compaction at a time in this process.
    compacting: tokio::sync::Mutex<()>,
    /// One run of the tiers at a time in this process: two would only fence each other.
    tiering: tokio::sync::Mutex<()>,
    /// Nobody else reads or writes the store: the bus is the embedded log.
    one_process: bool,
    leases: Leases,
    holder: String,
    clock: SharedClock,
    metrics: Metrics,
}

/// What is due beside the tiers.
#[derive(Clone, Copy)]
struct Due {
    late: bool,
    sweep: bool,
}

impl Role {
    async fn run(self: Arc<Self>, stop: CancellationToken) {
        let started_ms = self.clock.now_ms();
        let (mut late_ms, mut swept_ms) = (started_ms, started_ms);
        while stop.run_until_cancelled(self.clock.sleep(EVERY)).await.is_some() {
            let now_ms = self.clock.now_ms();
            let due =
                Due { late: now_ms.saturating_sub(late_ms) >= LATE_EVERY_MS, sweep: now_ms.saturating_sub(swept_ms) >= SWEEP_EVERY_MS };
            late_ms = if due.late { now_ms } else { late_ms };
            swept_ms = if due.sweep { now_ms } else { swept_ms };
            if let Err(error) = self.once(due).await {
                self.metrics.failures.inc();
                // Being overtaken is how two processes share the work, not a failure to report.
                if error.advice() != Advice::Fenced {
                    tracing::warn!(%error, "the maintenance role failed; it begins again at the same version");
                }
            }
        }
    }

    async fn run_compaction(self: Arc<Self>, stop: CancellationToken) {
        while stop.run_until_cancelled(self.clock.sleep(COMPACT_EVERY)).await.is_some() {
            match stop.run_until_cancelled(self.compact(When::Background)).await {
                Some(Err(error)) => tracing::warn!(%error, "compaction failed; the files stay as they are until the next look"),
                Some(Ok(_)) => {}
                None => return,
            }
        }
    }

    async fn compact(&self, when: When) -> Result<compact::Report, StorageError> {
        let _one = self.compacting.lock().await;
        self.storage.compact(&self.compactor, when).await
    }

    /// Compacts everything that is small, overlaps or was never compacted, on every day.
    ///
    /// # Errors
    /// See [`Storage::compact`].
    pub(crate) async fn compact_now(&self) -> Result<compact::Report, StorageError> {
        self.compact(When::Now).await
    }

    /// Deletes replaced files without waiting for their retention, and cuts the logs where they are old enough.
    ///
    /// # Errors
    /// [`StorageError::Conflict`] when other processes may share the store; the store failed.
    pub(crate) async fn vacuum_now(&self) -> Result<VacuumReport, StorageError> {
        if !self.one_process {
            let text = "vacuum=true deletes replaced files at once, which other processes on this store may be reading: with kafka as the bus \
                        they go by themselves when their retention ends";
            return Err(StorageError::Conflict(text.to_owned()));
        }
        // The tiers have to consume what was committed: files that they have not accounted for stay.
        let tiering = self.tiering.lock().await;
        for job in &self.jobs {
            self.note(job, job.catch_up().await?);
            self.note(job, job.run_late().await?);
        }
        drop(tiering);
        let report = self.storage.vacuum(true, self.followed()).await?;
        self.cut_logs().await?;
        Ok(report)
    }

    /// The version of `samples` that every follower has consumed; `None` when nothing follows it.
    fn followed(&self) -> Option<i64> {
        match self.consumed() {
            Some(lowest) => lowest.map(|c| c.version),
            None => Some(-1),
        }
    }

    async fn once(&self, due: Due) -> Result<(), StorageError> {
        let Some(_lease) = self.leases.acquire("maintenance", &self.holder, LEASE).await? else { return Ok(()) };
        let tiering = self.tiering.lock().await;
        for job in &self.jobs {
            self.note(job, job.run().await?);
            if due.late {
                self.note(job, job.run_late().await?);
            }
            job.table().checkpoint_if_due().await?;
        }
        drop(tiering);
        if due.sweep {
            self.expire().await?;
            self.sweep().await?;
        }
        Ok(())
    }

    fn note(&self, job: &TierJob, report: TierReport) {
        if report.rows > 0 {
            self.metrics.rows.inc_by(report.rows);
            self.metrics.replaced.inc_by(report.replaced as u64);
            self.metrics.merged.inc_by(report.merged);
            tracing::debug!(tier = job.tier().name, ?report, "tier");
        }
    }

    /// Removes expired rows: raw ones that every tier has, then those of tiers, then rows of `series` that nothing needs any more.
    async fn expire(&self) -> Result<(), StorageError> {
        if self.retention.policy().is_off() {
            return Ok(());
        }
        let mut tables = vec![self.samples.as_ref()];
        tables.extend(self.jobs.iter().map(|job| job.table().as_ref()));
        if let Some(consumed) = self.consumed() {
            self.expired(Table::Samples, self.retention.samples(&self.samples, consumed).await?);
        }
        for job in &self.jobs {
            self.expired(job.tier().table, self.retention.tier(job.table()).await?);
        }
        self.expired(Table::Series, self.retention.series(&self.series, &tables).await?);
        Ok(())
    }

    /// What the tiers still need of `samples`: `Some(None)` nothing because there are none, `None` everything because one has not begun.
    fn consumed(&self) -> Option<Option<Consumed>> {
        let mut lowest: Option<Consumed> = None;
        for job in &self.jobs {
            let (version, until_ms) = (job.consumed()?, job.until_ms()?);
            let so_far = lowest.unwrap_or(Consumed { version, until_ms });
            lowest = Some(Consumed { version: version.min(so_far.version), until_ms: until_ms.min(so_far.until_ms) });
        }
        Some(lowest)
    }

    fn expired(&self, table: Table, report: RetentionReport) {
        if report.removed > 0 {
            self.metrics.expired_files.inc_by(report.removed as u64);
            self.metrics.expired_rows.inc_by(report.rows);
            tracing::info!(table = table.name(), files = report.removed, rewritten = report.rewritten, rows = report.rows, "expired");
        }
    }

    /// Cuts the logs and deletes the bytes of files that were replaced. Only a table's own retention keeps a view that is open elsewhere safe, so
    /// it is not shortened here.
    async fn sweep(&self) -> Result<(), StorageError> {
        self.cut_logs().await?;
        let mut report = self.storage.vacuum(false, self.followed()).await?;
        for job in &self.jobs {
            let tier = job.table().vacuum(&job.table().vacuum_by_options(), |_| false).await?;
            report.files += tier.files;
            report.bytes += tier.bytes;
        }
        if report.files > 0 {
            tracing::info!(files = report.files, bytes = report.bytes, "deleted replaced files");
        }
        Ok(())
    }

    /// The log of `samples` stays from what its slowest follower has not consumed; that of `series` is cut with its checkpoints.
    async fn cut_logs(&self) -> Result<(), StorageError> {
        self.samples.cleanup_log(self.followed().map(|version| version + 1)).await?;
        for job in &self.jobs {
            job.table().cleanup_log(None).await?;
        }
        Ok(())
    }
}
