//! What the engine holds in memory, and the only ways to change it.
//!
//! ```text
//!  State ── tenants ──▶ TenantData ── days ──▶ DayData { hot: runs no file has, resident: decoded copies of files, cold: files }
//!        └─ samples, series: the adopted snapshots          partitions: offsets that were delivered, sealed, committed
//! ```
//!
//! # Invariants
//! - **E1** Every file of a day in `samples` is in exactly one resident group or in `cold`.
//! - **E2** Every hot run has `from` at or above `samples`' offset of its partition: adopting a version drops the others under the same lock.
//! - **E3** `TenantData` is shared with views: it is changed by copy.
//! - **E4** The runs of a resident group hold what its files hold, no more and no less: a compaction renames the files behind them
//!   ([`rewritten`]) only if all of its inputs were resident.
//!
//! # Not here
//! I/O, merging, locks: callers hold the lock of `State` and do slow work outside of it.

use crate::delta::{FileEntry, Snapshot};
use crate::run::{HotRun, Run};
use fletch_ingest::Partition;
use fletch_schemas::TenantId;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Runs of equal size class that are merged into one.
const FAN_IN: usize = 5;
/// Runs up to this many samples are one size class; each further class is [`FAN_IN`] times larger.
const SMALL_RUN_SAMPLES: usize = 4_096;

/// Offsets that are remembered as tried.
pub(crate) const TRIED_MAX: usize = 256;

/// The decoded copy of some files of one (tenant, date): together the runs hold what the files hold; a sample may be in several of them.
#[derive(Debug)]
pub(crate) struct Resident {
    pub(crate) entries: Vec<Arc<FileEntry>>,
    pub(crate) runs: Vec<Arc<Run>>,
    /// When it was used last, in ticks of the engine's use counter.
    used: AtomicU64,
}

impl Resident {
    pub(crate) fn new(entries: Vec<Arc<FileEntry>>, run: Arc<Run>, tick: u64) -> Arc<Self> {
        Self::of_runs(entries, vec![run], tick)
    }

    fn of_runs(entries: Vec<Arc<FileEntry>>, runs: Vec<Arc<Run>>, tick: u64) -> Arc<Self> {
        Arc::new(Self { entries, runs, used: AtomicU64::new(tick) })
    }

    pub(crate) fn samples(&self) -> usize {
        self.runs.iter().map(|run| run.samples()).sum()
    }

    fn bytes(&self) -> u64 {
        self.runs.iter().map(|run| run.bytes()).sum()
    }

    pub(crate) fn touch(&self, tick: u64) {
        self.used.fetch_max(tick, Ordering::Relaxed);
    }

    fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    pub(crate) fn covers(&self, path: &str) -> bool {
        self.entries.iter().any(|e| e.path == path)
    }
}

/// One (tenant, date).
#[derive(Debug, Clone, Default)]
pub(crate) struct DayData {
    /// In the order in which they were delivered, per partition.
    pub(crate) hot: Vec<HotRun>,
    pub(crate) resident: Vec<Arc<Resident>>,
    pub(crate) cold: Vec<Arc<FileEntry>>,
}

impl DayData {
    fn is_empty(&self) -> bool {
        self.hot.is_empty() && self.resident.is_empty() && self.cold.is_empty()
    }

    /// Whether copies of all of these files are in memory.
    pub(crate) fn holds(&self, files: &[Arc<FileEntry>]) -> bool {
        files.iter().all(|f| self.resident.iter().any(|group| group.covers(&f.path)))
    }

    /// All runs in memory.
    pub(crate) fn runs(&self) -> impl Iterator<Item = &Arc<Run>> {
        self.hot.iter().map(|h| &h.run).chain(self.resident.iter().flat_map(|r| &r.runs))
    }
}

/// All days of one tenant.
#[derive(Debug, Clone, Default)]
pub(crate) struct TenantData {
    pub(crate) days: BTreeMap<i32, Arc<DayData>>,
}

/// One partition of the bus that this process owns.
#[derive(Debug, Clone)]
pub(crate) struct PartitionState {
    pub(crate) app_id: String,
    /// `samples`' offset as we last read or wrote it: the fence.
    pub(crate) committed: Option<i64>,
    /// The same for `series`.
    pub(crate) series_committed: Option<i64>,
    /// The next offset after what was delivered.
    pub(crate) delivered: Option<i64>,
    /// A flush is writing what lies below: no run grows over this offset.
    pub(crate) sealed: Option<i64>,
    /// Another process has moved the offset: nothing is taken until the next assignment.
    pub(crate) fenced: bool,
}

impl PartitionState {
    pub(crate) fn moved(&self) -> bool {
        !self.fenced && self.delivered.is_some() && self.delivered != self.committed
    }
}

/// How far a foreign topic was read.
#[derive(Debug, Clone)]
pub(crate) struct SourceState {
    pub(crate) partition: Partition,
    pub(crate) committed: Option<i64>,
    pub(crate) next: i64,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) samples: Arc<Snapshot>,
    pub(crate) series: Arc<Snapshot>,
    pub(crate) tenants: HashMap<TenantId, Arc<TenantData>>,
    pub(crate) partitions: BTreeMap<Partition, PartitionState>,
    pub(crate) sources: BTreeMap<String, SourceState>,
    /// Decoded copies of files whose commit is under way, by path: whoever adopts the commit first finds them.
    pub(crate) decoded: HashMap<String, Arc<Run>>,
    /// Offsets that flushes tried to write, newest last: an offset found here was written by us, though the answer was lost.
    pub(crate) tried: Vec<(String, i64)>,
    pub(crate) hot_samples: u64,
    pub(crate) hot_runs: u64,
    pub(crate) resident_bytes: u64,
}

/// A (tenant, date) whose list of files changed between two snapshots.
pub(crate) type Touched = (TenantId, i32);

impl State {
    pub(crate) fn new(samples: Arc<Snapshot>, series: Arc<Snapshot>) -> Self {
        Self {
            samples,
            series,
            tenants: HashMap::new(),
            partitions: BTreeMap::new(),
            sources: BTreeMap::new(),
            decoded: HashMap::new(),
            tried: Vec::new(),
            hot_samples: 0,
            hot_runs: 0,
            resident_bytes: 0,
        }
    }

    pub(crate) fn tenant(&self, tenant: &TenantId) -> Option<&Arc<TenantData>> {
        self.tenants.get(tenant)
    }

    pub(crate) fn day(&self, tenant: &TenantId, date: i32) -> Option<&Arc<DayData>> {
        self.tenants.get(tenant)?.days.get(&date)
    }

    /// Changes one day by copy; days that end empty go.
    fn change_day<T>(&mut self, tenant: &TenantId, date: i32, change: impl FnOnce(&mut DayData) -> T) -> T {
        let data = Arc::make_mut(self.tenants.entry(tenant.clone()).or_default());
        let day = Arc::make_mut(data.days.entry(date).or_default());
        let out = change(day);
        if day.is_empty() {
            data.days.remove(&date);
        }
        out
    }

    pub(crate) fn push_hot(&mut self, tenant: &TenantId, date: i32, run: HotRun) {
        self.hot_samples += run.run.samples() as u64;
        self.hot_runs += 1;
        self.change_day(tenant, date, |day| day.hot.push(run));
    }

    /// Replaces runs by their merger, if all of them are still there and no flush has put a seal between them.
    pub(crate) fn replace_hot(&mut self, tenant: &TenantId, date: i32, old: &[HotRun], new: HotRun) -> bool {
        let here = |day: &DayData, run: &HotRun| day.hot.iter().any(|h| Arc::ptr_eq(&h.run, &run.run));
        let Some(day) = self.day(tenant, date) else { return false };
        let sealed = self.partitions.get(&new.partition).and_then(|p| p.sealed).unwrap_or(i64::MIN);
        if !old.iter().all(|run| here(day, run)) || (new.from < sealed && sealed < new.to) {
            return false;
        }
        let before: u64 = old.iter().map(|h| h.run.samples() as u64).sum();
        self.hot_samples = (self.hot_samples + new.run.samples() as u64).saturating_sub(before);
        self.hot_runs = (self.hot_runs + 1).saturating_sub(old.len() as u64);
        self.change_day(tenant, date, |day| {
            let at = day.hot.iter().position(|h| Arc::ptr_eq(&h.run, &old[0].run)).unwrap_or(day.hot.len());
            day.hot.insert(at, new);
            day.hot.retain(|h| !old.iter().any(|o| Arc::ptr_eq(&o.run, &h.run)));
        });
        true
    }

    /// Drops hot runs; returns the touched days.
    fn drop_hot(&mut self, gone: impl Fn(&HotRun) -> bool) -> Vec<Touched> {
        let mut touched = Vec::new();
        for (tenant, data) in &self.tenants {
            let hit = data.days.iter().filter(|(_, day)| day.hot.iter().any(&gone));
            touched.extend(hit.map(|(&date, _)| (tenant.clone(), date)));
        }
        let (mut samples, mut runs) = (0, 0);
        for (tenant, date) in &touched {
            self.change_day(tenant, *date, |day| {
                day.hot.retain(|h| {
                    let drop = gone(h);
                    if drop {
                        samples += h.run.samples() as u64;
                        runs += 1;
                    }
                    !drop
                });
            });
        }
        self.hot_samples = self.hot_samples.saturating_sub(samples);
        self.hot_runs = self.hot_runs.saturating_sub(runs);
        touched
    }

    /// Drops everything unflushed of a partition; returns the touched days.
    pub(crate) fn drop_partition(&mut self, partition: Partition) -> Vec<Touched> {
        self.sources.retain(|_, s| s.partition != partition);
        self.drop_hot(|h| h.partition == partition)
    }

    /// An earlier commit of ours turned out to have landed: expect what the adopted snapshots say.
    pub(crate) fn recognise(&mut self, partition: Partition, series_table: bool) {
        let Some(p) = self.partitions.get_mut(&partition) else { return };
        if series_table {
            p.series_committed = self.series.txn(&p.app_id);
            return;
        }
        p.committed = self.samples.txn(&p.app_id);
        for (name, source) in self.sources.iter_mut().filter(|(_, s)| s.partition == partition) {
            source.committed = self.samples.txn(name);
        }
    }

    /// Takes over newer snapshots (older ones are ignored). `changed` are the days whose files differ between the snapshots.
    pub(crate) fn adopt(&mut self, samples: &Arc<Snapshot>, series: &Arc<Snapshot>, changed: &[Touched], tick: u64) {
        if series.version() > self.series.version() {
            self.series = series.clone();
        }
        if samples.version() <= self.samples.version() {
            return;
        }
        let old = std::mem::replace(&mut self.samples, samples.clone());
        let offsets: HashMap<Partition, i64> =
            self.partitions.iter().filter_map(|(&p, state)| samples.txn(&state.app_id).map(|offset| (p, offset))).collect();
        self.drop_hot(|h| offsets.get(&h.partition).is_some_and(|&offset| h.from < offset));
        for (tenant, date) in changed {
            if let Some((gone, came)) = rewritten(&old, samples, tenant, *date) {
                self.rename(tenant, *date, &gone, &came);
            }
            self.refile(tenant, *date, samples.partition(tenant, *date), tick);
        }
    }

    /// The same rows are in other files now: copies that hold all of them stay, under the new names. If a part of the rows is not in memory
    /// nothing changes.
    fn rename(&mut self, tenant: &TenantId, date: i32, gone: &[Arc<FileEntry>], came: &[Arc<FileEntry>]) {
        let Some(day) = self.day(tenant, date) else { return };
        if !day.holds(gone) {
            return;
        }
        let left = |e: &Arc<FileEntry>| !gone.iter().any(|g| g.path == e.path);
        self.change_day(tenant, date, |day| {
            let (hit, mut kept): (Vec<_>, Vec<_>) = day.resident.drain(..).partition(|group| !group.entries.iter().all(left));
            let entries = hit.iter().flat_map(|g| g.entries.iter().filter(|e| left(e))).chain(came).cloned().collect();
            let runs = hit.iter().flat_map(|g| g.runs.iter().cloned()).collect();
            let used = hit.iter().map(|g| g.used()).max().unwrap_or(0);
            kept.push(Resident::of_runs(entries, runs, used));
            day.resident = kept;
        });
    }

    /// Restores E1 for a day whose files changed.
    fn refile(&mut self, tenant: &TenantId, date: i32, files: &[Arc<FileEntry>], tick: u64) {
        let decoded = &mut self.decoded;
        let paths: HashSet<&str> = files.iter().map(|f| f.path.as_str()).collect();
        let (mut gone, mut came) = (0, 0);
        let data = Arc::make_mut(self.tenants.entry(tenant.clone()).or_default());
        let day = Arc::make_mut(data.days.entry(date).or_default());
        day.resident.retain(|group| {
            let keep = group.entries.iter().all(|e| paths.contains(e.path.as_str()));
            gone += if keep { 0 } else { group.bytes() };
            keep
        });
        day.cold.clear();
        for file in files {
            if day.resident.iter().any(|group| group.covers(&file.path)) {
                continue;
            }
            match decoded.remove(&file.path) {
                Some(run) => {
                    came += run.bytes();
                    day.resident.push(Resident::new(vec![file.clone()], run, tick));
                }
                None => day.cold.push(file.clone()),
            }
        }
        if day.is_empty() {
            data.days.remove(&date);
        }
        self.resident_bytes = (self.resident_bytes + came).saturating_sub(gone);
    }

    /// A cold file was read: its run stays if the file is still cold.
    pub(crate) fn warm(&mut self, entry: &Arc<FileEntry>, run: &Arc<Run>, tick: u64) {
        let cold = self.day(&entry.tenant, entry.date).is_some_and(|day| day.cold.iter().any(|c| c.path == entry.path));
        if !cold {
            return;
        }
        self.resident_bytes += run.bytes();
        self.change_day(&entry.tenant, entry.date, |day| {
            day.cold.retain(|c| c.path != entry.path);
            day.resident.push(Resident::new(vec![entry.clone()], run.clone(), tick));
        });
    }

    /// Replaces resident groups by their merger, if all of them are still there.
    pub(crate) fn replace_resident(&mut self, tenant: &TenantId, date: i32, old: &[Arc<Resident>], run: Arc<Run>) -> bool {
        let here = |day: &DayData, group| day.resident.iter().any(|g| Arc::ptr_eq(g, group));
        if !self.day(tenant, date).is_some_and(|day| old.iter().all(|group| here(day, group))) {
            return false;
        }
        let before: u64 = old.iter().map(|g| g.bytes()).sum();
        self.resident_bytes = (self.resident_bytes + run.bytes()).saturating_sub(before);
        let entries = old.iter().flat_map(|g| g.entries.iter().cloned()).collect();
        let used = old.iter().map(|g| g.used()).max().unwrap_or(0);
        self.change_day(tenant, date, |day| {
            day.resident.retain(|g| !old.iter().any(|o| Arc::ptr_eq(o, g)));
            day.resident.push(Resident::new(entries, run, used));
        });
        true
    }

    /// Turns the least recently used resident groups into cold files until at most `bytes_max` are left. Returns them, to be dropped when the
    /// lock is free.
    #[must_use]
    pub(crate) fn evict(&mut self, bytes_max: u64) -> Vec<Arc<Resident>> {
        let mut gone = Vec::new();
        if self.resident_bytes <= bytes_max {
            return gone;
        }
        let mut all: Vec<(u64, TenantId, i32, Arc<Resident>)> = Vec::new();
        for (tenant, data) in &self.tenants {
            for (&date, day) in &data.days {
                all.extend(day.resident.iter().map(|g| (g.used(), tenant.clone(), date, g.clone())));
            }
        }
        all.sort_by_key(|(used, ..)| *used);
        for (_, tenant, date, group) in all {
            if self.resident_bytes <= bytes_max {
                break;
            }
            self.resident_bytes = self.resident_bytes.saturating_sub(group.bytes());
            self.change_day(&tenant, date, |day| {
                day.resident.retain(|g| !Arc::ptr_eq(g, &group));
                day.cold.extend(group.entries.iter().cloned());
            });
            gone.push(group);
        }
        gone
    }
}

/// The days whose files differ between two snapshots of a table.
pub(crate) fn changed_days(old: &Snapshot, new: &Snapshot) -> Vec<Touched> {
    let same = |a: &[Arc<FileEntry>], b: &[Arc<FileEntry>]| {
        std::ptr::eq(a, b) || (a.len() == b.len() && a.iter().zip(b).all(|(x, y)| Arc::ptr_eq(x, y)))
    };
    let mut changed = Vec::new();
    for tenant in new.tenants() {
        let differs = |date: &i32| !same(old.partition(tenant, *date), new.partition(tenant, *date));
        changed.extend(new.dates(tenant).filter(differs).map(|date| (tenant.clone(), date)));
    }
    for tenant in old.tenants() {
        let gone = |date: &i32| new.partition(tenant, *date).is_empty();
        changed.extend(old.dates(tenant).filter(gone).map(|date| (tenant.clone(), date)));
    }
    changed
}

type Files = Vec<Arc<FileEntry>>;

/// The files that left a day between two snapshots and those that compactions put in their place, if that is all that happened to the files
/// of the older one: the latter hold exactly the rows of the former then. `None` when rows were deleted, or when a file in between came and
/// went, whose rows nobody here has.
pub(crate) fn rewritten(old: &Snapshot, new: &Snapshot, tenant: &TenantId, date: i32) -> Option<(Files, Files)> {
    let missing =
        |from: &Snapshot, other: &Snapshot| -> Files { from.partition(tenant, date).iter().filter(|f| !other.holds(f)).cloned().collect() };
    let gone = missing(old, new);
    let mut came = missing(new, old);
    came.retain(|f| f.compacted.is_some());
    if gone.is_empty() || came.is_empty() {
        return None;
    }
    let since: Vec<_> = new.removed_from(tenant, date).filter(|r| r.removed_by > old.version()).collect();
    let explained = since.len() == gone.len() && since.iter().all(|r| !r.data_change && old.file(tenant, date, &r.path).is_some());
    explained.then_some((gone, came))
}

fn size_class(samples: usize) -> u32 {
    (samples / SMALL_RUN_SAMPLES).max(1).ilog(FAN_IN) + u32::from(samples >= SMALL_RUN_SAMPLES)
}

/// How many of the newest runs should be merged into one now (0: none), given sizes from the oldest to the newest: at least [`FAN_IN`] of
/// one size class or below, at most `samples_max` together. So each sample is copied about once per class, and few runs are left.
pub(crate) fn tail_to_merge(sizes: &[usize], samples_max: usize) -> usize {
    let Some(&newest) = sizes.last() else { return 0 };
    let class = size_class(newest);
    let tail = sizes.iter().rev().take_while(|&&s| size_class(s) <= class);
    let (mut runs, mut samples) = (0, 0);
    for size in tail {
        samples += size;
        if samples > samples_max {
            break;
        }
        runs += 1;
    }
    if runs >= FAN_IN { runs } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_runs_stay_and_each_sample_is_copied_a_few_times() {
        for (batch, batches) in [(2_000, 8_000), (30_000, 600), (1, 20_000), (900_000, 18)] {
            let (mut sizes, mut copied, mut most) = (Vec::new(), 0_usize, 0);
            for _ in 0..batches {
                sizes.push(batch);
                loop {
                    let tail = tail_to_merge(&sizes, 8 << 20);
                    if tail == 0 {
                        break;
                    }
                    let merged = sizes.split_off(sizes.len() - tail).iter().sum();
                    copied += merged;
                    sizes.push(merged);
                }
                most = most.max(sizes.len());
            }
            assert!(most <= 28, "{most} runs for batches of {batch}");
            let small_runs = SMALL_RUN_SAMPLES / (FAN_IN - 1);
            let bound = 8 + small_runs / batch;
            assert!(copied / (batch * batches) <= bound, "{copied} copies for batches of {batch}");
        }
    }
}
