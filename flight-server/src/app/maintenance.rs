//! The maintenance role: the one-minute tier, checkpoints and log clean-up, under a lease so that one process does the work.

use crate::config::Settings;
use anyhow::Context;
use fletch_common::SharedClock;
use fletch_common::metrics::{Counter, Registry};
use fletch_schemas::tables::Table;
use fletch_storage::delta::DeltaTable;
use fletch_storage::delta::store::{Leases, table_root};
use fletch_storage::tiers::TierJob;
use fletch_storage::{Advice, StorageError};
use object_store::ObjectStore;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// How often there is a look for work.
const EVERY: Duration = Duration::from_secs(10);
/// How often logs are cut and replaced files deleted, milliseconds.
const SWEEP_EVERY_MS: i64 = 3_600_000;
/// How long a lease holds; a process that dies is followed after this.
const LEASE: Duration = Duration::from_secs(60);

#[derive(Debug, Clone, Default)]
struct Metrics {
    rows: Counter,
    replaced: Counter,
    failures: Counter,
}

/// Starts the role; the answer is the tier it writes, for those who read it.
pub(super) async fn start(
    settings: &Settings,
    store: &Arc<dyn ObjectStore>,
    clock: &SharedClock,
    registry: &mut Registry,
    stop: &CancellationToken,
    tasks: &mut JoinSet<()>,
) -> anyhow::Result<Option<Arc<DeltaTable>>> {
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
    let role = Role {
        job,
        samples,
        leases: Leases::new(store.clone(), clock.clone()),
        holder: format!("{}:{}", std::process::id(), uuid::Uuid::new_v4()),
        clock: clock.clone(),
        metrics,
    };
    tasks.spawn(role.run(stop.clone()));
    Ok(tier)
}

struct Role {
    /// `None` when tiers are switched off.
    job: Option<TierJob>,
    samples: Arc<DeltaTable>,
    leases: Leases,
    holder: String,
    clock: SharedClock,
    metrics: Metrics,
}

impl Role {
    async fn run(self, stop: CancellationToken) {
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

    /// Cuts the logs and deletes the bytes of files that were replaced. The log of `samples` stays from what the tier has not consumed.
    async fn sweep(&self) -> Result<(), StorageError> {
        let Some(job) = &self.job else {
            return self.samples.cleanup_log(None).await.map(drop);
        };
        if let Some(consumed) = job.consumed() {
            self.samples.cleanup_log(Some(consumed + 1)).await?;
        }
        let tier = job.tier();
        tier.cleanup_log(None).await?;
        // Only the table's own retention keeps a view that is open elsewhere safe, so it is not shortened here.
        let report = tier.vacuum(&tier.vacuum_by_options(), |_| false).await?;
        if report.files > 0 {
            tracing::info!(files = report.files, bytes = report.bytes, "deleted replaced files of samples_1m");
        }
        Ok(())
    }
}
