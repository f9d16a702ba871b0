//! The flush: everything delivered so far into files and one commit per table.
//!
//! ```text
//!  seal ─▶ per (tenant, date): merge in file order ─▶ encode ─▶ upload      samples files, and `series` files for new series
//!       ─▶ commit `series`   { files, offsets }       (only if there are new series)
//!       ─▶ commit `samples`  { files, offsets, offsets of foreign topics }   ── the point of no return
//!       ─▶ adopt: the runs behind the files are replaced by one decoded copy of each ─▶ release the log
//! ```
//!
//! # Invariants
//! - **G1** `series` before `samples`: a stored sample never lacks its labels.
//! - **G2** The fence of each table is the offset that this process read at the assignment or wrote last.
//! - **G3** One flush at a time; nothing of it is visible before its `samples` commit, all of it after.
//!
//! # When it fails
//! The store fails: tried again with pauses, then the error is returned; runs stay and are readable, the next flush writes all of it
//! again. A commit whose answer was lost is recognised by its offset. Fenced: the partition's unflushed data is dropped (its new owner
//! reads it from the bus), and the rest is written again without it.

use super::FlushReport;
use super::core::Core;
use super::facts::Facts;
use super::state::{Resident, tail_to_merge};
use crate::delta::{BusRange, Commit, DeltaTable, FileIdentity, Snapshot, TxnUpdate};
use crate::index::Tenant;
use crate::parquet_file::{EncodedFile, SeriesRow, SeriesSlice, write_samples, write_series};
use crate::run::merge::{merge_in_order, union_refs};
use crate::run::{HotRun, Run, SAMPLE_BYTES};
use crate::{Advice, StorageError};
use fletch_common::failpoint;
use fletch_ingest::{Bus, Partition, Series, SeriesRef, SeriesRegistry};
use fletch_schemas::{MetricKind, TenantId, date_of_ms};
use futures::{StreamExt, TryStreamExt, stream};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Files that are merged, encoded and uploaded at the same time.
const WRITES_MAX: usize = 2;
/// A file older than this is never committed: the sweep of files that no commit names could take it.
const FILE_AGE_MS_MAX: i64 = 3_600_000;
/// In the last part of a day the rows of the next day are written ahead, so that midnight does not begin with all series at once.
const AHEAD_MS: i64 = 3_600_000;
const DAY_MS: i64 = 86_400_000;
/// First pause before a failed step is tried again; doubles up to [`PAUSE_MAX`].
const PAUSE_MIN: Duration = Duration::from_millis(200);
/// Longest such pause.
const PAUSE_MAX: Duration = Duration::from_secs(10);
/// Most samples of a decoded copy that is made by merging copies of several files.
const RESIDENT_SAMPLES_MAX: usize = 16 << 20;

/// What one flush writes.
#[derive(Debug)]
struct Plan {
    partitions: Vec<Part>,
    sources: Vec<TxnUpdate>,
    groups: BTreeMap<(TenantId, i32), Vec<HotRun>>,
}

/// A partition in a flush: `[from, to)` of it, under which name, with which fences.
#[derive(Debug, Clone)]
struct Part {
    partition: Partition,
    app_id: String,
    from: Option<i64>,
    series_from: Option<i64>,
    to: i64,
}

/// What was written for one (tenant, date).
#[derive(Debug)]
struct Written {
    tenant: Arc<Tenant>,
    date: i32,
    run: Arc<Run>,
    file: EncodedFile,
    dropped: u64,
    series: Vec<SeriesFile>,
}

/// A file of `series` with the rows in it.
#[derive(Debug)]
struct SeriesFile {
    tenant: Arc<Tenant>,
    date: i32,
    file: EncodedFile,
    rows: Vec<(SeriesRef, u32)>,
    facts: Facts,
}

impl Core {
    /// Commits everything delivered so far. See the module.
    pub(crate) async fn flush(&self) -> Result<FlushReport, StorageError> {
        let _turn = self.flush_turn.lock().await;
        let started = Instant::now();
        let mut report = FlushReport::default();
        let done = self.flush_until_done(&mut report).await;
        self.unseal();
        match done {
            Ok(true) => {
                self.metrics.flushes.inc();
                self.metrics.flush_seconds.observe(started.elapsed().as_secs_f64());
                tracing::info!(files = report.files, rows = report.rows, version = report.version, "flushed");
                Ok(report)
            }
            Ok(false) => Ok(report),
            Err(error) => {
                self.metrics.flush_failures.inc();
                Err(error)
            }
        }
    }

    /// Whether anything was committed.
    async fn flush_until_done(&self, report: &mut FlushReport) -> Result<bool, StorageError> {
        // Each round but the last loses a partition or recognises an earlier commit of ours, in one of two tables.
        let rounds = 3 + 3 * self.state.read().partitions.len();
        for _ in 0..rounds {
            let Some(plan) = self.seal() else {
                report.version = self.state.read().samples.version();
                return Ok(false);
            };
            match self.flush_plan(&plan, report).await {
                Ok(()) => return Ok(true),
                Err(StorageError::Fenced { table, app_id, stored, expected }) => {
                    self.refresh().await?;
                    self.fenced(&plan, table, &app_id, stored, expected, report);
                }
                Err(error) => return Err(error),
            }
        }
        Err(StorageError::CommitRace { table: "samples", attempts: u32::try_from(rounds).unwrap_or(u32::MAX) })
    }

    /// Somebody moved an offset of ours: an earlier flush of ours whose answer was lost, or another process.
    fn fenced(&self, plan: &Plan, table: &'static str, app_id: &str, stored: Option<i64>, expected: Option<i64>, report: &mut FlushReport) {
        let source = self.state.read().sources.get(app_id).map(|s| s.partition);
        let Some(part) = plan.partitions.iter().find(|p| p.app_id == app_id || Some(p.partition) == source) else { return };
        let mut state = self.state.write();
        if state.tried.iter().any(|(app, to)| app == app_id && Some(*to) == stored) {
            // That commit covers the very records below this offset that ours covered: take it over.
            state.recognise(part.partition, table == self.series.name());
            return;
        }
        drop(state);
        let partition = part.partition;
        tracing::error!(
            table,
            app_id,
            ?stored,
            ?expected,
            partition,
            "another process owns this partition: its unflushed data is dropped here"
        );
        self.metrics.fenced.inc();
        self.drop_partition(partition, true);
        if let Some(bus) = self.bus() {
            bus.overtaken(partition);
        }
        report.fenced.push(partition);
    }

    /// Decides what the flush covers and keeps runs from growing over that line. `None` when nothing moved.
    fn seal(&self) -> Option<Plan> {
        let mut state = self.state.write();
        let mut partitions = Vec::new();
        for (&partition, p) in &mut state.partitions {
            if let (true, Some(to)) = (p.moved(), p.delivered) {
                p.sealed = Some(to);
                let (from, series_from) = (p.committed, p.series_committed);
                partitions.push(Part { partition, app_id: p.app_id.clone(), from, series_from, to });
            }
        }
        if partitions.is_empty() {
            return None;
        }
        let ours = |partition| partitions.iter().any(|p| p.partition == partition);
        let mut groups: BTreeMap<(TenantId, i32), Vec<HotRun>> = BTreeMap::new();
        for (tenant, data) in &state.tenants {
            for (&date, day) in &data.days {
                let runs: Vec<HotRun> = day.hot.iter().filter(|h| ours(h.partition)).cloned().collect();
                if !runs.is_empty() {
                    groups.insert((tenant.clone(), date), runs);
                }
            }
        }
        let moved = state.sources.iter().filter(|(_, s)| ours(s.partition) && s.committed != Some(s.next));
        let sources = moved.map(|(app_id, s)| TxnUpdate { app_id: app_id.clone(), expected: s.committed, version: s.next }).collect();
        Some(Plan { partitions, sources, groups })
    }

    fn unseal(&self) {
        for p in self.state.write().partitions.values_mut() {
            p.sealed = None;
        }
    }

    async fn flush_plan(&self, plan: &Plan, report: &mut FlushReport) -> Result<(), StorageError> {
        let began_ms = self.clock.now_ms();
        let mut writes = Vec::with_capacity(plan.groups.len());
        for ((tenant, date), runs) in &plan.groups {
            writes.push(self.write_group(plan, tenant, *date, runs, began_ms));
        }
        let written: Vec<Written> = stream::iter(writes).buffer_unordered(WRITES_MAX).try_collect().await?;
        if self.clock.now_ms() - began_ms > FILE_AGE_MS_MAX {
            return Err(StorageError::Limit("a flush took longer than an hour; it will be written again".into()));
        }
        self.commit_series(plan, &written).await?;
        let samples = self.commit_samples(plan, &written).await?;
        self.settle_commit(plan, &samples).await;
        self.release(plan);
        report.files += written.len();
        report.rows += written.iter().map(|w| w.file.entry.rows).sum::<u64>();
        report.series_rows += written.iter().flat_map(|w| &w.series).map(|s| s.rows.len() as u64).sum::<u64>();
        report.version = samples.version();
        self.metrics.samples_flushed.inc_by(written.iter().map(|w| w.file.entry.rows).sum());
        self.metrics.copies_dropped.inc_by(written.iter().map(|w| w.dropped).sum());
        self.last_flush_ms.store(began_ms, Ordering::Relaxed);
        self.log_bytes.store(0, Ordering::Relaxed);
        for group in &written {
            self.merge_resident(group.tenant.id(), group.date).await;
        }
        Ok(())
    }

    async fn write_group(&self, plan: &Plan, tenant: &TenantId, date: i32, runs: &[HotRun], now_ms: i64) -> Result<Written, StorageError> {
        let index = self.tenant(tenant);
        let ahead = (now_ms.rem_euclid(DAY_MS) >= DAY_MS - AHEAD_MS && date_of_ms(now_ms) == date).then_some(date + 1);
        let stored = self.state.read().series.clone();
        for day in [Some(date), ahead].into_iter().flatten() {
            self.ensure_series(&index, &stored, day..=day).await?;
        }
        failpoint::pass("flush-before-put")?;
        let identity = FileIdentity::new(tenant.clone(), date, bus_range(plan, runs), now_ms);
        let (job_index, job_runs, registry) = (index.clone(), runs.to_vec(), self.registry.clone());
        let job = move || {
            let inputs: Vec<&Run> = job_runs.iter().map(|h| h.run.as_ref()).collect();
            encode_group(&job_index, &registry, &identity, &inputs, ahead)
        };
        let encoded = tokio::task::spawn_blocking(job).await;
        let written = encoded.map_err(|e| StorageError::Conflict(format!("encoding a flush file ended: {e}")))??;
        self.upload(&self.samples, &written.file).await?;
        for series in &written.series {
            self.upload(&self.series, &series.file).await?;
        }
        failpoint::pass("flush-after-put")?;
        Ok(written)
    }

    async fn upload(&self, table: &DeltaTable, file: &EncodedFile) -> Result<(), StorageError> {
        self.with_patience(|| table.upload(&file.entry, file.bytes.clone())).await
    }

    /// Tries a step again while the store asks for it.
    async fn with_patience<T, F: Future<Output = Result<T, StorageError>>>(&self, mut step: impl FnMut() -> F) -> Result<T, StorageError> {
        let mut pause = PAUSE_MIN;
        for _ in 1..self.settings.attempts_max.max(1) {
            match step().await {
                Err(error) if error.advice() == Advice::Retry => {
                    tracing::warn!(%error, ?pause, "a step of the flush failed; trying again");
                    self.clock.sleep(pause).await;
                    pause = (pause * 2).min(PAUSE_MAX);
                }
                done => return done,
            }
        }
        step().await
    }

    async fn commit_series(&self, plan: &Plan, written: &[Written]) -> Result<(), StorageError> {
        let files: Vec<&SeriesFile> = written.iter().flat_map(|w| &w.series).collect();
        if files.is_empty() {
            return Ok(());
        }
        let mut commit = Commit::new("WRITE");
        commit.adds = files.iter().map(|f| f.file.entry.clone()).collect();
        commit.txns = plan.partitions.iter().map(|p| txn(&p.app_id, p.series_from, p.to)).collect();
        self.note_tried(&commit.txns);
        let series = self.with_patience(|| self.series.commit(&commit)).await?;
        for file in files {
            file.tenant.load(file.date, &file.file.entry.path, &file.rows);
            self.facts.put(&file.file.entry.path, file.facts.clone());
        }
        {
            let mut state = self.state.write();
            for part in &plan.partitions {
                if let Some(p) = state.partitions.get_mut(&part.partition) {
                    p.series_committed = Some(part.to);
                }
            }
        }
        let samples = self.state.read().samples.clone();
        self.adopt(&samples, &series);
        failpoint::pass("series-after-commit")?;
        Ok(())
    }

    async fn commit_samples(&self, plan: &Plan, written: &[Written]) -> Result<Arc<Snapshot>, StorageError> {
        let mut commit = Commit::new("WRITE");
        commit.adds = written.iter().map(|w| w.file.entry.clone()).collect();
        commit.txns = plan.partitions.iter().map(|p| txn(&p.app_id, p.from, p.to)).collect();
        commit.txns.extend(plan.sources.iter().cloned());
        self.note_tried(&commit.txns);
        {
            let mut state = self.state.write();
            state.decoded.extend(written.iter().map(|w| (w.file.entry.path.clone(), w.run.clone())));
        }
        let before = self.samples.snapshot().version();
        let committed = self.with_patience(|| self.samples.commit(&commit)).await;
        if let Ok(samples) = &committed {
            if samples.version() > before + 1
                && let Err(error) = self.series.refresh().await
            {
                tracing::warn!(%error, "labels of what others committed meanwhile come with the next look at the tables");
            }
            self.follow(samples, &self.series.snapshot()).await;
        }
        // After a failure the copies stay a while: the commit may have landed all the same. The next flush clears them.
        let mut state = self.state.write();
        if committed.is_ok() {
            state.decoded.clear();
        } else {
            let ours: BTreeSet<&str> = written.iter().map(|w| w.file.entry.path.as_str()).collect();
            state.decoded.retain(|path, _| ours.contains(path.as_str()));
        }
        committed
    }

    /// Remembers which offsets we tried to write, to recognise them after a lost answer.
    fn note_tried(&self, txns: &[TxnUpdate]) {
        let mut state = self.state.write();
        state.tried.extend(txns.iter().map(|t| (t.app_id.clone(), t.version)));
        let surplus = state.tried.len().saturating_sub(super::state::TRIED_MAX);
        state.tried.drain(..surplus);
    }

    /// The commit landed: these offsets are what we expect from now on.
    async fn settle_commit(&self, plan: &Plan, samples: &Snapshot) {
        let mut state = self.state.write();
        for part in &plan.partitions {
            if let Some(p) = state.partitions.get_mut(&part.partition) {
                p.committed = Some(part.to);
            }
        }
        for update in &plan.sources {
            if let Some(source) = state.sources.get_mut(&update.app_id) {
                source.committed = Some(update.version);
            }
        }
        tracing::debug!(version = samples.version(), "the flush is in the table");
    }

    fn release(&self, plan: &Plan) {
        if let Some(bus) = self.bus() {
            for part in &plan.partitions {
                bus.release(part.partition, part.to);
            }
        }
    }

    fn bus(&self) -> Option<Arc<dyn Bus>> {
        self.bus.read().as_ref().and_then(std::sync::Weak::upgrade)
    }

    /// Merges decoded copies of small files of a day, so that a series is in one stretch of memory again.
    pub(crate) async fn merge_resident(&self, tenant: &TenantId, date: i32) {
        // While it is made, the old copies are still there: that must not be much of the budget.
        let budget = usize::try_from(self.settings.resident_bytes_max / SAMPLE_BYTES / 8).unwrap_or(usize::MAX);
        loop {
            let old: Vec<Arc<Resident>> = {
                let state = self.state.read();
                let Some(day) = state.day(tenant, date) else { return };
                let sizes: Vec<usize> = day.resident.iter().map(|g| g.samples()).collect();
                let tail = tail_to_merge(&sizes, RESIDENT_SAMPLES_MAX.min(budget));
                day.resident[day.resident.len() - tail..].to_vec()
            };
            if old.is_empty() {
                return;
            }
            let (inputs, registry) = (old.clone(), self.registry.clone());
            let job = move || {
                let runs: Vec<&Run> = inputs.iter().flat_map(|g| &g.runs).map(Arc::as_ref).collect();
                merge_in_order(&runs, &by_metric(&registry, union_refs(runs.iter().copied()))).0
            };
            let Ok(run) = tokio::task::spawn_blocking(job).await else { return };
            let mut state = self.state.write();
            if !state.replace_resident(tenant, date, &old, Arc::new(run)) {
                return;
            }
            self.gauge(&state);
        }
    }
}

fn txn(app_id: &str, expected: Option<i64>, version: i64) -> TxnUpdate {
    TxnUpdate { app_id: app_id.to_owned(), expected, version }
}

/// Series of one metric side by side, as selectors want them.
fn by_metric(registry: &SeriesRegistry, refs: Vec<SeriesRef>) -> Vec<SeriesRef> {
    let known: Vec<Arc<Series>> = registry.with(|all| refs.iter().map(|r| all[r.index()].clone()).collect());
    let mut keys: Vec<(&str, SeriesRef)> = known.iter().zip(&refs).map(|(s, &r)| (s.labels.metric(), r)).collect();
    keys.sort_unstable();
    keys.into_iter().map(|k| k.1).collect()
}

/// The part of the bus behind a file, when it comes from one partition.
fn bus_range(plan: &Plan, runs: &[HotRun]) -> Option<BusRange> {
    let partition = runs.first()?.partition;
    if runs.iter().any(|r| r.partition != partition) {
        return None;
    }
    let part = plan.partitions.iter().find(|p| p.partition == partition)?;
    Some(BusRange { partition, from: part.from.unwrap_or_else(|| runs.iter().map(|r| r.from).min().unwrap_or(0)), to: part.to })
}

/// Merges, orders and encodes one (tenant, date). CPU work.
fn encode_group(
    tenant: &Arc<Tenant>,
    registry: &SeriesRegistry,
    identity: &FileIdentity,
    runs: &[&Run],
    ahead: Option<i32>,
) -> Result<Written, StorageError> {
    let refs = union_refs(runs.iter().copied());
    let fresh = tenant.settle(identity.date, &refs);
    let ids = tenant.ids(identity.date, &refs);
    let known: Vec<_> = registry.with(|all| refs.iter().map(|r| all[r.index()].clone()).collect());
    let mut keys: Vec<(&str, i64, SeriesRef)> =
        known.iter().zip(&ids).zip(&refs).map(|((s, &id), &r)| (s.labels.metric(), id, r)).collect();
    keys.sort_unstable();
    let order: Vec<SeriesRef> = keys.iter().map(|k| k.2).collect();
    let (run, dropped) = merge_in_order(runs, &order);
    let slices = keys.iter().filter_map(|&(metric, series_id, series)| {
        let (times, values) = run.series(series)?;
        Some(SeriesSlice { metric, series_id, times, values })
    });
    let file = write_samples(slices, identity)?;
    let first_ms = |series| run.series(series).and_then(|(times, _)| times.first().copied());
    let mut series = Vec::new();
    series.extend(series_file(tenant, registry, identity.date, identity, &fresh, first_ms)?);
    if let Some(next) = ahead {
        let fresh = tenant.settle(next, &refs);
        series.extend(series_file(tenant, registry, next, identity, &fresh, |_| None)?);
    }
    Ok(Written { tenant: tenant.clone(), date: identity.date, run: Arc::new(run), file, dropped, series })
}

/// The file of `series` rows that the date does not have yet; `None` when it has all.
fn series_file(
    tenant: &Arc<Tenant>,
    registry: &SeriesRegistry,
    date: i32,
    samples: &FileIdentity,
    fresh: &[(SeriesRef, i64, u32)],
    first_ms: impl Fn(SeriesRef) -> Option<i64>,
) -> Result<Option<SeriesFile>, StorageError> {
    if fresh.is_empty() {
        return Ok(None);
    }
    let rows: Vec<SeriesRow> =
        fresh.iter().map(|&(series, series_id, probe)| series_row(tenant, registry, series, series_id, probe, first_ms(series))).collect();
    let identity = FileIdentity::new(samples.tenant.clone(), date, samples.bus, samples.committed_ms);
    let file = write_series(&rows, &identity)?;
    let facts = Facts::of(fresh.iter().map(|f| f.0).zip(&rows));
    let rows = fresh.iter().map(|&(series, _, probe)| (series, probe)).collect();
    Ok(Some(SeriesFile { tenant: tenant.clone(), date, file, rows, facts }))
}

/// A row of `series` as it is known now.
pub(crate) fn series_row(
    tenant: &Tenant,
    registry: &SeriesRegistry,
    series: SeriesRef,
    series_id: i64,
    probe: u32,
    first_seen_ms: Option<i64>,
) -> SeriesRow {
    let labels = registry.get(series).labels.clone();
    let metadata = tenant.metadata_of(labels.metric());
    let (kind, unit, help) = metadata.map_or((MetricKind::Unknown, String::new(), String::new()), |m| (m.kind, m.unit, m.help));
    SeriesRow { series_id, probe, labels, kind, unit, help, first_seen_ms, last_seen_ms: None, samples: None }
}
