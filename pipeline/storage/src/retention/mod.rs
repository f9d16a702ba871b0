//! Retention: rows whose time is over leave their table by a commit; the vacuum deletes bytes later.
//!
//! ```text
//!  file of (tenant, date) ─▶ all of its metrics expired ─▶ remove
//!                        └─▶ some of them (a metric has a shorter retention) ─▶ remove + add without their rows; a very large file
//!                                                                              waits until all of them have
//! ```
//!
//! # Invariants
//! - **N1** A row leaves only when its file's latest time is older than the retention of its metric, and not before [`COMMITTED_MIN_MS`] after
//!   the file was committed: what was written for 1970 today is there today.
//! - **N2** A raw file leaves only when every tier has consumed the version that added it and has written every window that it touches.
//! - **N3** What left a table is written down in the commit ([`Removed`]), so that tiers and queries know what raw cannot tell any more.
//! - **N4** A row of `series` outlives every row that needs it: raw and tiers, the midnight window of the next day included.
//! - **N5** Reads never filter by retention: what is in a table is there.
//!
//! # When it fails
//! A commit that is overtaken (compaction has replaced a file) changes nothing; the next run plans again.
//!
//! # Not here
//! The bytes ([`crate::delta`]'s vacuum), when to run and the configuration (the server).

mod policy;
mod removed;

#[cfg(test)]
mod tests;

pub use policy::{Keep, MetricPattern, Override, Policy};
pub use removed::Removed;

use crate::StorageError;
use crate::delta::{Commit, DeltaTable, FileEntry, FileIdentity, Snapshot, TxnUpdate};
use crate::parquet_file::{EncodedFile, FileSource, SeriesSlice, read_samples, write_batch, write_samples};
use arrow::array::{AsArray, BooleanArray, RecordBatch};
use arrow::compute::{concat_batches, filter_record_batch};
use fletch_common::SharedClock;
use fletch_schemas::tables::Table;
use fletch_schemas::{TenantId, day_start_ms};
use parking_lot::Mutex;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use policy::{Rule, rule_of};
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

/// The operation of retention's commits. Rows that such a commit adds are not new.
pub const OPERATION: &str = "RETENTION";

/// Milliseconds of a day.
pub const DAY_MS: i64 = 86_400_000;

/// How long a file stays after it was committed, whatever its rows' times are.
pub const COMMITTED_MIN_MS: i64 = DAY_MS;

/// Files that one run writes again without some metrics; the next run goes on.
const REWRITES_MAX: usize = 16;

/// Rows of a file that is written again at most: it is in memory as a whole. A larger file waits until the time of all its metrics is over.
const REWRITE_ROWS_MAX: u64 = 32 << 20;

/// What the tiers still need of `samples`.
#[derive(Debug, Clone, Copy)]
pub struct Consumed {
    /// The lowest version that a tier has consumed.
    pub version: i64,
    /// The lowest time up to which a tier's windows are written, milliseconds.
    pub until_ms: i64,
}

/// What a run did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RetentionReport {
    /// Files that left.
    pub removed: usize,
    /// Files among them whose other rows were written again.
    pub rewritten: usize,
    /// Rows that left.
    pub rows: u64,
}

/// Enforces a policy. It remembers which files it has found nothing to do in.
#[derive(Debug)]
pub struct Retention {
    policy: Policy,
    clock: SharedClock,
    /// (table, file, its expired rules): no metric of these rules is in it.
    looked_at: Mutex<HashSet<(Table, String, Vec<usize>)>>,
}

impl Retention {
    /// Retention by this policy.
    pub fn new(policy: Policy, clock: SharedClock) -> Self {
        Self { policy, clock, looked_at: Mutex::default() }
    }

    /// The policy.
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// Removes what has expired from `samples`. `consumed`: what tiers still need; `None` when there are no tiers.
    ///
    /// # Errors
    /// A file, or the log from `consumed` on, cannot be read; the commit failed. Nothing was changed unless the commit's outcome is unknown.
    pub async fn samples(&self, samples: &DeltaTable, consumed: Option<Consumed>) -> Result<RetentionReport, StorageError> {
        let snapshot = samples.refresh().await?;
        let (mut needed, mut until_ms) = (HashSet::new(), i64::MAX);
        if let Some(consumed) = consumed {
            until_ms = consumed.until_ms;
            for version in consumed.version + 1..=snapshot.version() {
                // Without the log nobody knows which files the tiers have not seen.
                let Some(commit) = samples.read_commit(version).await? else { return Ok(RetentionReport::default()) };
                needed.extend(samples.added(&commit)?.into_iter().map(|file| file.path));
            }
        }
        let may_go = |file: &FileEntry, latest_ms: i64| latest_ms <= until_ms && !needed.contains(&file.path);
        self.expire(samples, &snapshot, may_go).await
    }

    /// Removes what has expired from a tier's table.
    ///
    /// # Errors
    /// As [`samples`](Self::samples).
    pub async fn tier(&self, tier: &DeltaTable) -> Result<RetentionReport, StorageError> {
        let snapshot = tier.refresh().await?;
        self.expire(tier, &snapshot, |_, _| true).await
    }

    /// Removes rows of `series` of days that no table in `tables` (all that are written) can have rows of any more.
    ///
    /// # Errors
    /// As [`samples`](Self::samples).
    pub async fn series(&self, series: &DeltaTable, tables: &[&DeltaTable]) -> Result<RetentionReport, StorageError> {
        let snapshot = series.refresh().await?;
        let names: Vec<Table> = tables.iter().map(|t| t.table()).collect();
        let mut first_dates: BTreeMap<TenantId, i32> = BTreeMap::new();
        for table in tables {
            let rows = table.refresh().await?;
            for tenant in rows.tenants() {
                let first = rows.dates(tenant).next().unwrap_or(i32::MAX);
                first_dates.entry(tenant.clone()).and_modify(|known| *known = first.min(*known)).or_insert(first);
            }
        }
        let (now_ms, mut commit) = (self.clock.now_ms(), Commit::new(OPERATION));
        let mut report = RetentionReport::default();
        for tenant in snapshot.tenants() {
            let keep_ms = self.policy.longest(tenant, &names);
            // Rows that stay longer than they have to (an outage of the store, late data) need theirs as well.
            let needed_from = first_dates.get(tenant).copied().unwrap_or(i32::MAX).saturating_sub(1);
            for date in snapshot.dates(tenant).filter(|date| keep_ms > 0 && *date < needed_from) {
                // The window that ends at the next midnight is a row of the next day.
                let end_ms = day_start_ms(date.saturating_add(2));
                let old = |file: &&Arc<FileEntry>| now_ms.saturating_sub(file.committed_ms) >= COMMITTED_MIN_MS;
                if end_ms.saturating_add(keep_ms) < now_ms {
                    commit.removes.extend(snapshot.partition(tenant, date).iter().filter(old).cloned());
                }
            }
        }
        report.removed = commit.removes.len();
        report.rows = commit.removes.iter().map(|f| f.rows).sum();
        self.land(series, &commit).await.map(|()| report)
    }

    async fn expire(
        &self,
        table: &DeltaTable,
        snapshot: &Snapshot,
        may_go: impl Fn(&FileEntry, i64) -> bool,
    ) -> Result<RetentionReport, StorageError> {
        let now_ms = self.clock.now_ms();
        let mut plan = Plan::default();
        for tenant in snapshot.tenants() {
            let rules = self.policy.rules(tenant, table.table());
            for file in snapshot.tenant_files(tenant, i32::MIN..=i32::MAX) {
                let latest_ms = file.keys.times_ms.map_or(day_start_ms(file.date.saturating_add(1)), |(_, max)| max);
                let expired: Vec<usize> =
                    (0..rules.len()).filter(|at| rules[*at].keep_ms > 0 && latest_ms.saturating_add(rules[*at].keep_ms) < now_ms).collect();
                let old = now_ms.saturating_sub(file.committed_ms) >= COMMITTED_MIN_MS;
                if !expired.is_empty() && old && may_go(file, latest_ms) {
                    self.judge(table, tenant, file, &rules, expired, latest_ms, &mut plan).await?;
                }
            }
        }
        self.forget(table, snapshot);
        let Plan { mut commit, horizons, report, .. } = plan;
        commit.txns.extend(horizons.into_iter().filter_map(|(app_id, latest_ms)| {
            let expected = snapshot.txn(&app_id);
            (expected.is_none_or(|known| known < latest_ms)).then_some(TxnUpdate { app_id, expected, version: latest_ms })
        }));
        self.land(table, &commit).await.map(|()| report)
    }

    /// What to do with one file of which the rules in `expired` have expired.
    #[allow(clippy::too_many_arguments, reason = "one file's circumstances; a struct would be built once and taken apart at once")]
    async fn judge(
        &self,
        table: &DeltaTable,
        tenant: &TenantId,
        file: &Arc<FileEntry>,
        rules: &[Rule],
        expired: Vec<usize>,
        latest_ms: i64,
        plan: &mut Plan,
    ) -> Result<(), StorageError> {
        let one_metric = file.keys.metrics.as_ref().filter(|(a, b)| a == b).map(|(a, _)| rule_of(rules, a));
        if expired.len() == rules.len() || one_metric.is_some_and(|rule| expired.contains(&rule)) {
            let gone: Vec<usize> = one_metric.map_or_else(|| expired.clone(), |rule| vec![rule]);
            plan.note(tenant, rules, gone, latest_ms);
            plan.report.rows += file.rows;
            plan.report.removed += 1;
            plan.commit.removes.push(file.clone());
            return Ok(());
        }
        let seen = (table.table(), file.path.clone(), expired.clone());
        if one_metric.is_some()
            || file.rows > REWRITE_ROWS_MAX
            || plan.report.rewritten >= REWRITES_MAX
            || self.looked_at.lock().contains(&seen)
        {
            return Ok(());
        }
        let now_ms = self.clock.now_ms();
        let Some(rest) = rest_of(table, file, |metric| expired.contains(&rule_of(rules, metric)), now_ms).await? else {
            self.looked_at.lock().insert(seen);
            return Ok(());
        };
        plan.note(tenant, rules, rest.rules(rules), latest_ms);
        plan.report.removed += 1;
        plan.report.rows += file.rows.saturating_sub(rest.file.as_ref().map_or(0, |f| f.entry.rows));
        plan.commit.removes.push(file.clone());
        if let Some(written) = rest.file {
            plan.report.rewritten += 1;
            table.upload(&written.entry, written.bytes).await?;
            plan.commit.adds.push(written.entry);
        }
        Ok(())
    }

    async fn land(&self, table: &DeltaTable, commit: &Commit) -> Result<(), StorageError> {
        if commit.removes.is_empty() {
            return Ok(());
        }
        table.commit(commit).await.map(drop)
    }

    fn forget(&self, table: &DeltaTable, snapshot: &Snapshot) {
        let mut looked_at = self.looked_at.lock();
        if looked_at.iter().any(|(of, ..)| *of == table.table()) {
            let there: HashSet<&str> = snapshot.files().map(|f| f.path.as_str()).collect();
            looked_at.retain(|(of, path, _)| *of != table.table() || there.contains(path.as_str()));
        }
    }
}

/// What one run commits.
struct Plan {
    commit: Commit,
    /// App id → latest time of a row that leaves.
    horizons: BTreeMap<String, i64>,
    report: RetentionReport,
}

impl Default for Plan {
    fn default() -> Self {
        Self { commit: Commit::new(OPERATION), horizons: BTreeMap::new(), report: RetentionReport::default() }
    }
}

impl Plan {
    fn note(&mut self, tenant: &TenantId, rules: &[Rule], gone: Vec<usize>, latest_ms: i64) {
        for rule in gone {
            let horizon = self.horizons.entry(removed::app_id(tenant, rules, rule)).or_insert(latest_ms);
            *horizon = latest_ms.max(*horizon);
        }
    }
}

/// What stays of a file.
struct Rest {
    /// `None` when nothing does.
    file: Option<EncodedFile>,
    /// Metrics that leave.
    gone: BTreeSet<Arc<str>>,
}

impl Rest {
    fn rules(&self, rules: &[Rule]) -> Vec<usize> {
        self.gone.iter().map(|metric| rule_of(rules, metric)).collect::<BTreeSet<_>>().into_iter().collect()
    }
}

/// The file without the metrics that `leaves` names; `None` when it has none of them.
async fn rest_of(table: &DeltaTable, file: &FileEntry, leaves: impl Fn(&str) -> bool, now_ms: i64) -> Result<Option<Rest>, StorageError> {
    let source = FileSource::object(table.store().clone(), table.object_path(&file.path)?, file);
    let identity = FileIdentity::new(file.tenant.clone(), file.date, file.bus, file.committed_ms).written_at(now_ms);
    if table.table() == Table::Samples {
        return rest_of_samples(&source, &identity, leaves).await;
    }
    let failed = |e| StorageError::Parquet { doing: "reading", path: file.path.clone(), source: e };
    let reader = ParquetRecordBatchReaderBuilder::try_new(source.bytes().await?).map_err(failed)?.build().map_err(failed)?;
    let arrow = |source| StorageError::Arrow { doing: "reading rows of a tier", source };
    let batches = reader.collect::<Result<Vec<_>, _>>().map_err(arrow)?;
    let rows: RecordBatch = concat_batches(&table.table().file_schema(), &batches).map_err(arrow)?;
    let metrics = rows.column(0).as_string::<i32>();
    let gone: BTreeSet<Arc<str>> =
        metrics.iter().flatten().collect::<BTreeSet<_>>().into_iter().filter(|m| leaves(m)).map(Arc::from).collect();
    if gone.is_empty() {
        return Ok(None);
    }
    let stays: BooleanArray = metrics.iter().map(|m| Some(m.is_none_or(|m| !gone.contains(m)))).collect();
    let kept = filter_record_batch(&rows, &stays).map_err(arrow)?;
    let written = if kept.num_rows() > 0 { Some(write_batch(table.table(), &[kept], &identity)?) } else { None };
    Ok(Some(Rest { file: written, gone }))
}

async fn rest_of_samples(
    source: &FileSource,
    identity: &FileIdentity,
    leaves: impl Fn(&str) -> bool,
) -> Result<Option<Rest>, StorageError> {
    let rows = read_samples(source).await?;
    let metrics: BTreeSet<Arc<str>> = rows.series.iter().map(|s| s.metric.clone()).collect();
    let gone: BTreeSet<Arc<str>> = metrics.into_iter().filter(|m| leaves(m)).collect();
    if gone.is_empty() {
        return Ok(None);
    }
    let stays = rows.series.iter().filter(|s| !gone.contains(&s.metric));
    let slices: Vec<SeriesSlice<'_>> = stays
        .map(|s| {
            let (times, values) = (&rows.times[s.rows.clone()], &rows.values[s.rows.clone()]);
            SeriesSlice { metric: &s.metric, series_id: s.series_id, times, values }
        })
        .collect();
    let written = if slices.is_empty() { None } else { Some(write_samples(slices, identity)?) };
    Ok(Some(Rest { file: written, gone }))
}
