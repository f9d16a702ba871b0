//! The one-minute tier: `samples_1m`, computed once from what each commit of `samples` added.
//!
//! ```text
//!  samples  v41 ─ v42 ─ v43 ──▶ touched (series, window) pairs ──▶ computed again from raw ──▶ samples_1m { add, remove, txn tier:1m = 43 }
//! ```
//!
//! # Invariants
//! - **R1** Windows are `(time − 60 s, time]`; a row's date is that of its `time`.
//! - **R2** `tier:1m` is the version of `samples` whose files are all accounted for; it is in the commit that adds the rows, so a window is written once
//!   whatever dies when, and two jobs at once cannot both commit.
//! - **R3** A row equals the aggregate of the raw rows of its window as of that version: late samples re-open their windows, and the file that
//!   held the old row is replaced.
//! - **R4** Windows that end after `tier:1m:until` are still open: they wait for a later version instead of being written and replaced.
//!
//! # When it fails
//! Nothing is committed; the next run begins at the same version. Uploaded files that no commit names are removed by the sweep for orphans.
//!
//! # Not here
//! Retention, other tiers, choosing columns by the kind of the metric: every row has all columns.

mod rewrite;
mod touched;
mod window;

use crate::StorageError;
use crate::delta::{Commit, DeltaTable, FileEntry, Snapshot, TxnUpdate};
use crate::parquet_file::FileSource;
use fletch_common::{SharedClock, failpoint};
use std::sync::Arc;
use touched::Touched;

/// Width of a window, in milliseconds.
pub const WINDOW_MS: i64 = 60_000;

/// How long after the end of a window its samples are waited for before it is first written.
const GRACE_MS: i64 = 60_000;

/// The version of `samples` that was consumed.
const CURSOR: &str = "tier:1m";

/// Windows that end at or before this were written; milliseconds.
const UNTIL: &str = "tier:1m:until";

/// What a run did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TierReport {
    /// Version of `samples` that is now consumed.
    pub consumed: i64,
    /// Rows written, rows that were carried over from replaced files included.
    pub rows: u64,
    /// Files added.
    pub added: usize,
    /// Files replaced because late samples re-opened windows of theirs.
    pub replaced: usize,
}

/// Keeps the tier behind `samples`. One job at a time is enough (a lease saves work); two are safe.
#[derive(Debug)]
pub struct TierJob {
    samples: Arc<DeltaTable>,
    tier: Arc<DeltaTable>,
    clock: SharedClock,
}

impl TierJob {
    /// A job between two open tables.
    pub fn new(samples: Arc<DeltaTable>, tier: Arc<DeltaTable>, clock: SharedClock) -> Self {
        Self { samples, tier, clock }
    }

    /// The table that it writes.
    pub fn tier(&self) -> &Arc<DeltaTable> {
        &self.tier
    }

    /// The version of `samples` that is consumed; its log must not be cut above it.
    pub fn consumed(&self) -> Option<i64> {
        self.tier.snapshot().txn(CURSOR)
    }

    /// Consumes everything up to the newest version of `samples`.
    ///
    /// # Errors
    /// A file or the log cannot be read, or another job was faster ([`StorageError::Fenced`]); nothing was changed then.
    pub async fn run(&self) -> Result<TierReport, StorageError> {
        let tier = self.tier.refresh().await?;
        let samples = self.samples.refresh().await?;
        let (cursor, until) = (tier.txn(CURSOR), tier.txn(UNTIL));
        if cursor.unwrap_or(-1) >= samples.version() {
            return Ok(TierReport { consumed: samples.version(), ..TierReport::default() });
        }
        let (added, newest_ms) = self.added_since(cursor, &samples).await?;
        let old_until = until.unwrap_or(i64::MIN);
        let new_until = old_until.max((newest_ms - GRACE_MS).div_euclid(WINDOW_MS) * WINDOW_MS);
        let touched = self.touched(&samples, &added, old_until, new_until).await?;
        let mut commit = Commit::new("TIER");
        let mut report = TierReport { consumed: samples.version(), ..TierReport::default() };
        for (tenant, date, windows) in touched.by_partition() {
            let rows = window::compute(&self.samples, &samples, &tenant, date, &windows).await?;
            let change = rewrite::merge(
                &self.tier,
                &tier,
                &tenant,
                date,
                rows,
                &windows,
                old_until,
                rewrite::Times { committed_ms: newest_ms, now_ms: self.clock.now_ms() },
            )
            .await?;
            report.rows += change.rows;
            commit.adds.extend(change.added);
            commit.removes.extend(change.removed);
        }
        (report.added, report.replaced) = (commit.adds.len(), commit.removes.len());
        commit.txns.push(TxnUpdate { app_id: CURSOR.to_owned(), expected: cursor, version: samples.version() });
        commit.txns.push(TxnUpdate { app_id: UNTIL.to_owned(), expected: until, version: new_until });
        failpoint::pass("tier-before-commit")?;
        self.tier.commit(&commit).await?;
        Ok(report)
    }

    /// Files that joined `samples` after version `cursor`, and the time of the newest commit.
    async fn added_since(&self, cursor: Option<i64>, samples: &Snapshot) -> Result<(Vec<Arc<FileEntry>>, i64), StorageError> {
        let newest = self.samples.read_commit(samples.version()).await?.ok_or_else(|| StorageError::Corrupt {
            path: format!("{}/_delta_log", self.samples.name()),
            why: format!("version {} is gone", samples.version()),
        })?;
        let newest_ms = newest.info().map_or(0, |info| info.timestamp);
        let everything = || Ok((samples.files().cloned().collect(), newest_ms));
        let Some(cursor) = cursor else { return everything() };
        let mut added = Vec::new();
        for version in cursor + 1..=samples.version() {
            let Some(commit) = self.samples.read_commit(version).await? else {
                // The log was cut while tiers were switched off.
                tracing::warn!(
                    version,
                    "a version of samples is gone before the tier has consumed it: the tier is computed again from all files"
                );
                return everything();
            };
            added.extend(self.samples.added(&commit)?.into_iter().filter(|file| file.data_change).map(Arc::new));
        }
        Ok((added, newest_ms))
    }

    /// Which windows of which series have to be computed: those that new files fall into and that are closed, and those that closed since.
    async fn touched(&self, samples: &Snapshot, added: &[Arc<FileEntry>], old_until: i64, new_until: i64) -> Result<Touched, StorageError> {
        let mut touched = Touched::default();
        for file in added {
            touched.add(&file.tenant, &self.read(file).await?, i64::MIN, new_until);
        }
        let added: std::collections::HashSet<&str> = added.iter().map(|f| f.path.as_str()).collect();
        let from = old_until.saturating_sub(WINDOW_MS);
        for file in samples.files().filter(|f| f.keys.may_hold_times(from, new_until) && !added.contains(f.path.as_str())) {
            touched.add(&file.tenant, &self.read(file).await?, old_until, new_until);
        }
        Ok(touched)
    }

    async fn read(&self, file: &FileEntry) -> Result<crate::parquet_file::SamplesRows, StorageError> {
        let path = self.samples.object_path(&file.path)?;
        crate::parquet_file::read_samples(&FileSource::object(self.samples.store().clone(), path, file)).await
    }
}

#[cfg(test)]
mod tests;
