//! The maintenance role: the one-minute tier, checkpoints, log clean-up and vacuum, under a lease so that one process does the work; and
//! compaction, in a task of its own under leases per (tenant, date), so that a long merge holds nothing else up.

use crate::config::Settings;
use anyhow::Context;
use fletch_common::SharedClock;
use fletch_common::metrics::{Counter, Registry};
use fletch_schemas::tables::Table;
use fletch_storage::compact::{self, Compactor, When};
use fletch_storage::delta::store::{Leases, table_root};
use fletch_storage::delta::{DeltaTable, VacuumReport};
use fletch_storage::tiers::TierJob;
use fletch_storage::{Advice, Storage, StorageError};
use object_store::ObjectStore;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// How often there is a look for work.
const EVERY: Duration = Duration::from_secs(10);
/// How often logs are cut and replaced files deleted, milliseconds.
const SWEEP_EVERY_MS: i64 = 3_600_000;
/// How often there is a look for files to compact.
const COMPACT_EVERY: Duration = Duration::from_secs(120);
/// How often the tier is asked to consume what was committed before replaced files are deleted at once; another process may be faster.
const TIER_ATTEMPTS_MAX: u32 = 3;
/// How long a lease holds; a process that dies is followed after this.
const LEASE: Duration = Duration::from_secs(60);

#[derive(Debug, Clone, Default)]
struct Metrics {
    rows: Counter,
    replaced: Counter,
    failures: Counter,
}

/// What others need of the role.
#[derive(Debug)]
pub(super) struct Started {
    /// The tier that it writes, for those who read it.
    pub(super) tier: Option<Arc<DeltaTable>>,
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
    let metrics = Metrics::default();
    registry.register("fletch_tier_rows", "Rows written to samples_1m", metrics.rows.clone());
    registry.register(
        "fletch_tier_replaced_files",
        "Files of samples_1m replaced because late samples re-opened their windows",
        metrics.replaced.clone(),
    );
    registry.register("fletch_tier_failures", "Runs of the tier job that failed", metrics.failures.clone());
    let open = |table| DeltaTable::open_or_create(store.clone(), table_root(table), table, clock.clone());
    // A handle of its own: the job follows the log at its own pace.
    let samples = Arc::new(open(Table::Samples).await.context("opening table samples")?);
    let mut job = None;
    if settings.tiers {
        let tier = Arc::new(open(Table::Samples1m).await.context("opening table samples_1m")?);
        job = Some(TierJob::new(samples.clone(), tier, clock.clone()));
    }
    let tier = job.as_ref().map(|job| job.tier().clone());
    let leases = Leases::new(store.clone(), clock.clone());
    let holder = format!("{}:{}", std::process::id(), uuid::Uuid::new_v4());
    let (storage, clock, one_process) = (storage.clone(), clock.clone(), settings.kafka.is_none());
    let mut compactor = Compactor::new(compact::Settings::default(), clock.clone());
    if !one_process {
        // A process on its own would only wait for the leases of its earlier lives.
        compactor = compactor.with_leases(leases.clone(), holder.clone());
    }
    compactor.metrics().register(registry);
    let compacting = tokio::sync::Mutex::default();
    let role = Arc::new(Role { job, samples, storage, compactor, compacting, one_process, leases, holder, clock, metrics });
    tasks.spawn(role.clone().run(stop.clone()));
    tasks.spawn(role.clone().run_compaction(stop.clone()));
    Ok(Started { tier, role })
}

/// The role of this process.
#[derive(Debug)]
pub(crate) struct Role {
    /// `None` when tiers are switched off.
    job: Option<TierJob>,
    samples: Arc<DeltaTable>,
    storage: Arc<Storage>,
    compactor: Compactor,
    /// One compaction at a time in this process.
    compacting: tokio::sync::Mutex<()>,
    /// Nobody else reads or writes the store: the bus is the embedded log.
    one_process: bool,
    leases: Leases,
    holder: String,
    clock: SharedClock,
    metrics: Metrics,
}

impl Role {
    async fn run(self: Arc<Self>, stop: CancellationToken) {
        let mut swept_ms = self.clock.now_ms();
        while stop.run_until_cancelled(self.clock.sleep(EVERY)).await.is_some() {
            let due = self.clock.now_ms().saturating_sub(swept_ms) >= SWEEP_EVERY_MS;
            swept_ms = if due { self.clock.now_ms() } else { swept_ms };
            if let Err(error) = self.once(due).await {
                self.metrics.failures.inc();
                // Being overtaken is how two processes share the work, not a failure to report.
                if error.advice() != Advice::Fenced {
                    tracing::warn!(%error, "the tier job failed; it begins again at the same version");
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
        // The tier has to consume what was committed: files that it has not accounted for stay.
        for _ in 0..TIER_ATTEMPTS_MAX {
            let Some(job) = &self.job else { break };
            match job.run().await {
                Err(error) if error.advice() == Advice::Fenced => {}
                done => {
                    done?;
                    break;
                }
            }
        }
        let report = self.storage.vacuum(true, self.consumed()).await?;
        self.cut_logs().await?;
        Ok(report)
    }

    /// The version of `samples` that every follower has consumed; `None` when nothing follows it.
    fn consumed(&self) -> Option<i64> {
        self.job.as_ref().map(|job| job.consumed().unwrap_or(-1))
    }

    async fn once(&self, sweep: bool) -> Result<(), StorageError> {
        let Some(_lease) = self.leases.acquire("maintenance", &self.holder, LEASE).await? else { return Ok(()) };
        if let Some(job) = &self.job {
            let report = job.run().await?;
            if report.rows > 0 {
                self.metrics.rows.inc_by(report.rows);
                self.metrics.replaced.inc_by(report.replaced as u64);
                tracing::debug!(rows = report.rows, replaced = report.replaced, consumed = report.consumed, "samples_1m");
            }
            job.tier().checkpoint_if_due().await?;
        }
        if sweep { self.sweep().await } else { Ok(()) }
    }

    /// Cuts the logs and deletes the bytes of files that were replaced. Only a table's own retention keeps a view that is open elsewhere safe, so
    /// it is not shortened here.
    async fn sweep(&self) -> Result<(), StorageError> {
        self.cut_logs().await?;
        let mut report = self.storage.vacuum(false, self.consumed()).await?;
        if let Some(job) = &self.job {
            let tier = job.tier().vacuum(&job.tier().vacuum_by_options(), |_| false).await?;
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
        self.samples.cleanup_log(self.consumed().map(|version| version + 1)).await?;
        match &self.job {
            Some(job) => job.tier().cleanup_log(None).await.map(drop),
            None => Ok(()),
        }
    }
}
