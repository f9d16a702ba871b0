//! The tiers `samples_1m`, `samples_5m`, `samples_1h`: computed once from what each commit of `samples` added.
//!
//! ```text
//!  samples  v41 ─ v42 ─ v43 ──▶ touched (series, window) pairs ──▶ computed again from raw ──▶ samples_1m { add, remove, txn tier:1m = 43 }
//!                                     └ older than 24 h when they came: a queue with a cursor of its own, tier:1m:late
//! ```
//!
//! # Invariants
//! - **R1** Windows are `(time − width, time]`; a row's date is that of its `time`.
//! - **R2** `tier:<tier>` is the version of `samples` whose files are all accounted for; it is in the commit that adds the rows, so a window is
//!   written once whatever dies when, and two jobs at once cannot both commit. A commit of one queue requires the other's cursor to stand still.
//! - **R3** A row equals the aggregate of the raw rows of its window as of that version (for rows that came more than 24 h late: as of
//!   `tier:<tier>:late`): late samples re-open their windows, and the file that held the old row is replaced. Every tier is computed from raw:
//!   a sum of sums is rounded differently from a sum. The exception: where retention may have removed raw of a window, late samples are merged
//!   into its row, and `increase` stays as it was.
//! - **R4** Windows that end after `tier:<tier>:until` are still open: they wait for a later version instead of being written and replaced. A
//!   tier whose next window is still open does nothing.
//! - **R5** Which columns a row has follows from the kind in the `series` row of its day ([`kinds`]).
//!
//! # When it fails
//! Nothing is committed; the next run begins at the same version. Uploaded files that no commit names are removed by the sweep for orphans.
//!
//! # Not here
//! Retention ([`crate::retention`]), reading tiers ([`crate::view`]).

mod kinds;
mod rewrite;
mod row;
mod tables;
mod tier;
mod touched;
mod window;

pub use tables::{TierSnapshot, Tiers};
pub use tier::Tier;

use crate::StorageError;
use crate::delta::{Commit, DeltaTable, FileEntry, Snapshot, TxnRequire, TxnUpdate};
use crate::parquet_file::{FileSource, SamplesRows, read_samples};
use crate::retention::{OPERATION as RETENTION, Removed};
use fletch_common::{SharedClock, failpoint};
use kinds::KindReader;
use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use touched::{Touched, Windows};

/// How long after the end of a window its samples are waited for before it is first written.
const GRACE_MS: i64 = 60_000;

/// Rows that are older than this when they are committed go to the slower queue.
pub const LATE_MS: i64 = 24 * 60 * 60 * 1_000;

/// What a run did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TierReport {
    /// Version of `samples` that is now consumed.
    pub consumed: i64,
    /// Rows written, rows that were carried over from replaced files included.
    pub rows: u64,
    /// Files added.
    pub added: usize,
    /// Files replaced because late samples re-opened windows of theirs, or because there were many small ones.
    pub replaced: usize,
    /// Rows that late samples were merged into because raw samples of their windows may be gone.
    pub merged: u64,
}

/// Keeps one tier behind `samples`. One job at a time is enough (a lease saves work); two are safe.
#[derive(Debug)]
pub struct TierJob {
    tier: Tier,
    samples: Arc<DeltaTable>,
    kinds: KindReader,
    table: Arc<DeltaTable>,
    clock: SharedClock,
}

/// Where a tier stands.
struct Marks {
    cursor: Option<i64>,
    until: Option<i64>,
    seen: Option<i64>,
    late: Option<i64>,
    late_seen: Option<i64>,
}

/// What joined `samples` since a version.
struct Added {
    files: Vec<Arc<FileEntry>>,
    /// Nobody knows what joined since, so these are all files: rows may be among them that are accounted for already.
    all: bool,
}

impl TierJob {
    /// A job between open tables; `table` is that of `tier`.
    pub fn new(tier: Tier, samples: Arc<DeltaTable>, series: Arc<DeltaTable>, table: Arc<DeltaTable>, clock: SharedClock) -> Self {
        Self { tier, samples, kinds: KindReader::new(series), table, clock }
    }

    /// Which tier.
    pub fn tier(&self) -> Tier {
        self.tier
    }

    /// The table that it writes.
    pub fn table(&self) -> &Arc<DeltaTable> {
        &self.table
    }

    /// The version of `samples` that is consumed by both queues; its log must not be cut above it, and what came later must stay.
    pub fn consumed(&self) -> Option<i64> {
        let marks = self.marks(&self.table.snapshot());
        marks.cursor.map(|cursor| marks.late.map_or(cursor, |late| late.min(cursor)))
    }

    /// Windows that end at or before this are written, milliseconds.
    pub fn until_ms(&self) -> Option<i64> {
        self.table.snapshot().txn(&self.tier.until())
    }

    /// Consumes everything up to the newest version of `samples`, except rows that came more than [`LATE_MS`] late.
    ///
    /// # Errors
    /// A file or the log cannot be read, or another job was faster ([`StorageError::Fenced`]); nothing was changed then.
    pub async fn run(&self) -> Result<TierReport, StorageError> {
        self.run_to_newest(false).await
    }

    /// As [`run`](Self::run), also when no window has closed since: then nothing but the cursor moves, and files of `samples` that were
    /// replaced need not be kept for this tier any more.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub async fn catch_up(&self) -> Result<TierReport, StorageError> {
        self.run_to_newest(true).await
    }

    async fn run_to_newest(&self, at_once: bool) -> Result<TierReport, StorageError> {
        let (tier, samples) = (self.table.refresh().await?, self.samples.refresh().await?);
        let marks = self.marks(&tier);
        let idle = TierReport { consumed: marks.cursor.unwrap_or(-1), ..TierReport::default() };
        if marks.cursor.is_some_and(|cursor| cursor >= samples.version()) {
            return Ok(idle);
        }
        let newest_ms = self.committed_ms(samples.version()).await?;
        let old_until = marks.until.unwrap_or(i64::MIN);
        let new_until = old_until.max(self.tier.floor(newest_ms.saturating_sub(GRACE_MS)));
        if marks.cursor.is_some() && new_until == old_until && !at_once {
            return Ok(idle);
        }
        let added = self.added_since(marks.cursor, samples.version(), &samples).await?;
        let touched = self.touched(&samples, &added, old_until, new_until).await?;
        let mut txns = vec![
            TxnUpdate { app_id: self.tier.cursor(), expected: marks.cursor, version: samples.version() },
            TxnUpdate { app_id: self.tier.until(), expected: marks.until, version: new_until },
            TxnUpdate { app_id: self.tier.seen(), expected: marks.seen, version: newest_ms },
        ];
        let mut requires = Vec::new();
        if added.all {
            // Late rows are among them.
            txns.push(TxnUpdate { app_id: self.tier.late(), expected: marks.late, version: samples.version() });
            txns.push(TxnUpdate { app_id: self.tier.late_seen(), expected: marks.late_seen, version: newest_ms });
        } else {
            requires.push(TxnRequire { app_id: self.tier.late(), expected: marks.late });
        }
        let known = Known { tier: &tier, samples: &samples, until_ms: old_until, committed_ms: newest_ms };
        self.commit(known, &added, touched, txns, requires, samples.version()).await
    }

    /// Consumes rows that came more than [`LATE_MS`] late, up to the version that [`run`](Self::run) has consumed. Meant to run seldom:
    /// whatever came in the meantime costs one rewriting of the files that it falls into.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub async fn run_late(&self) -> Result<TierReport, StorageError> {
        let (tier, samples) = (self.table.refresh().await?, self.samples.refresh().await?);
        let marks = self.marks(&tier);
        let (Some(cursor), Some(late), Some(until_ms)) = (marks.cursor, marks.late, marks.until) else { return Ok(TierReport::default()) };
        if late >= cursor {
            return Ok(TierReport { consumed: late, ..TierReport::default() });
        }
        let added = self.added_since(Some(late), cursor, &samples).await?;
        let mut touched = Touched::new(self.tier);
        for file in &added.files {
            touched.add(&file.tenant, &self.read(file).await?, i64::MIN, until_ms.min(late_before(file)));
        }
        let seen_ms = marks.seen.unwrap_or(i64::MIN);
        let txns = vec![
            TxnUpdate { app_id: self.tier.late(), expected: marks.late, version: cursor },
            TxnUpdate { app_id: self.tier.late_seen(), expected: marks.late_seen, version: seen_ms },
        ];
        let requires = vec![TxnRequire { app_id: self.tier.cursor(), expected: marks.cursor }];
        let committed_ms = added.files.iter().map(|f| f.committed_ms).max().unwrap_or(seen_ms);
        let known = Known { tier: &tier, samples: &samples, until_ms, committed_ms };
        self.commit(known, &added, touched, txns, requires, cursor).await
    }

    /// Computes what was touched and commits it with the marks.
    async fn commit(
        &self,
        known: Known<'_>,
        added: &Added,
        touched: Touched,
        txns: Vec<TxnUpdate>,
        requires: Vec<TxnRequire>,
        consumed: i64,
    ) -> Result<TierReport, StorageError> {
        let mut commit = Commit { txns, requires, ..Commit::new("TIER") };
        let mut report = TierReport { consumed, ..TierReport::default() };
        let series = self.kinds.snapshot().await?;
        let mut days = HashSet::new();
        for (tenant, date, windows) in touched.by_partition() {
            let removed = Removed::of(known.samples, &tenant);
            let (windows, gone) = removed.split(self.tier, windows);
            // The window that ends at midnight holds samples of the day before.
            let raw: Vec<Arc<FileEntry>> = known.samples.tenant_files(&tenant, date.saturating_sub(1)..=date).cloned().collect();
            let arrived: Vec<Arc<FileEntry>> = added.files.iter().filter(|f| f.tenant == tenant).cloned().collect();
            let news = rewrite::News {
                tier: self.tier,
                tenant: &tenant,
                date,
                rows: window::compute(self.tier, &self.samples, &raw, &windows).await?,
                windows: &windows,
                late: window::compute(self.tier, &self.samples, &arrived, &gone).await?,
                late_known: added.all,
                kinds: &self.kinds.day(&series, &tenant, date).await?,
                until_ms: known.until_ms,
                committed_ms: known.committed_ms,
                now_ms: self.clock.now_ms(),
            };
            let change = rewrite::merge(&self.table, known.tier, news).await?;
            report.rows += change.rows;
            report.merged += change.merged;
            commit.adds.extend(change.added);
            commit.removes.extend(change.removed);
            days.insert((tenant, date));
        }
        self.kinds.keep(&series, &days);
        (report.added, report.replaced) = (commit.adds.len(), commit.removes.len());
        failpoint::pass("tier-before-commit")?;
        self.table.commit(&commit).await?;
        Ok(report)
    }

    fn marks(&self, tier: &Snapshot) -> Marks {
        let txn = |app_id: String| tier.txn(&app_id);
        Marks {
            cursor: txn(self.tier.cursor()),
            until: txn(self.tier.until()),
            seen: txn(self.tier.seen()),
            late: txn(self.tier.late()),
            late_seen: txn(self.tier.late_seen()),
        }
    }

    /// When a version of `samples` was committed.
    async fn committed_ms(&self, version: i64) -> Result<i64, StorageError> {
        let commit = self.samples.read_commit(version).await?.ok_or_else(|| StorageError::Corrupt {
            path: format!("{}/_delta_log", self.samples.name()),
            why: format!("version {version} is gone"),
        })?;
        Ok(commit.info().map_or(0, |info| info.timestamp))
    }

    /// Files that joined `samples` after version `cursor`, up to version `to`. What retention wrote again is not new.
    async fn added_since(&self, cursor: Option<i64>, to: i64, samples: &Snapshot) -> Result<Added, StorageError> {
        let everything = || Ok(Added { files: samples.files().cloned().collect(), all: true });
        let Some(cursor) = cursor else { return everything() };
        let mut files = Vec::new();
        for version in cursor + 1..=to {
            let Some(commit) = self.samples.read_commit(version).await? else {
                // The log was cut while tiers were switched off.
                tracing::warn!(
                    version,
                    tier = self.tier.name,
                    "a version of samples is gone before the tier has consumed it: the tier is computed again from all files"
                );
                return everything();
            };
            if commit.info().is_none_or(|info| info.operation != RETENTION) {
                files.extend(self.samples.added(&commit)?.into_iter().filter(|file| file.data_change).map(Arc::new));
            }
        }
        Ok(Added { files, all: false })
    }

    /// Which windows of which series have to be computed: those that new files fall into and that are closed, and those that closed since.
    async fn touched(&self, samples: &Snapshot, added: &Added, old_until: i64, new_until: i64) -> Result<Touched, StorageError> {
        let mut touched = Touched::new(self.tier);
        for file in &added.files {
            let after = if added.all { i64::MIN } else { late_before(file).min(old_until) };
            touched.add(&file.tenant, &self.read(file).await?, after, new_until);
        }
        let read: HashSet<&str> = added.files.iter().map(|f| f.path.as_str()).collect();
        let from = old_until.saturating_sub(self.tier.width_ms);
        for file in samples.files().filter(|f| f.keys.may_hold_times(from, new_until) && !read.contains(f.path.as_str())) {
            touched.add(&file.tenant, &self.read(file).await?, old_until, new_until);
        }
        Ok(touched)
    }

    async fn read(&self, file: &FileEntry) -> Result<SamplesRows, StorageError> {
        let path = self.samples.object_path(&file.path)?;
        read_samples(&FileSource::object(self.samples.store().clone(), path, file)).await
    }
}

/// What a run knows before it computes anything.
struct Known<'a> {
    tier: &'a Snapshot,
    samples: &'a Snapshot,
    until_ms: i64,
    committed_ms: i64,
}

/// Windows that end at or before this are late in a file: a fixed property of it, so that each row is in exactly one of the two queues.
fn late_before(file: &FileEntry) -> i64 {
    file.committed_ms.saturating_sub(LATE_MS)
}

impl Removed {
    /// Windows that raw has all samples of, and windows that retention may have removed samples of.
    fn split(&self, tier: Tier, windows: Windows) -> (Windows, Windows) {
        if self.is_empty() {
            return (windows, BTreeMap::new());
        }
        let (mut whole, mut gone) = (Windows::new(), Windows::new());
        for (key, ends) in windows {
            let (lacking, complete) = ends.into_iter().partition(|end| self.may_lack(&key.0, end.saturating_sub(tier.width_ms)));
            for (side, ends) in [(&mut whole, complete), (&mut gone, lacking)] {
                let ends: Vec<i64> = ends;
                if !ends.is_empty() {
                    side.insert(key.clone(), ends);
                }
            }
        }
        (whole, gone)
    }
}

#[cfg(test)]
mod tests;
