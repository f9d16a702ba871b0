//! From a delivery to runs: sort, drop copies, index what is new, show everything at once, merge small runs.
//!
//! # Invariants
//! - **A1** A sample that is newer than all of its series passes without a look-up. Any other is looked up in the runs of its day that are in
//!   memory; what is there already goes, unless it beats what is there. A look-up never waits for the store.
//! - **A2** A delivery becomes visible as a whole.
//!
//! # When it fails
//! Nothing here fails. A stale entry of the retry index costs a look-up, a missing one leaves a copy that readers merge.

use super::core::Core;
use super::state::{DayData, PartitionState, SourceState, tail_to_merge};
use crate::index::Tenant;
use crate::run::build::{Arrived, Draft, Scratch};
use crate::run::merge::merge;
use crate::run::{HotRun, Run, beats};
use fletch_ingest::{Delivery, Partition, SampleBatch, SeriesRef};
use fletch_schemas::{TenantId, date_of_ms, day_start_ms};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Most samples of a run that is made by merging on the thread of the bus: tens of milliseconds.
const MERGE_SAMPLES_MAX: usize = 8 << 20;
/// What a record of the log costs beside its samples, about.
const LOG_RECORD_BYTES: u64 = 256;
/// Bytes of a sample in the log.
const LOG_SAMPLE_BYTES: u64 = 24;
/// Times beyond these cannot be given a date.
const TIMES_MS: std::ops::RangeInclusive<i64> = -100_000_000_000_000..=100_000_000_000_000;

/// What one delivery needs and the next one uses again.
#[derive(Debug, Default)]
pub(crate) struct Inserter {
    scratch: Scratch,
    /// Index into `tenants` by series number.
    owners: Vec<u32>,
    tenants: Vec<Arc<Tenant>>,
    /// Last time by series number, `i64::MIN` for none: the retry index.
    last: Vec<i64>,
}

/// Samples of one (tenant, date) in a batch: which rows (all when `None`).
type Group = (u32, i32, Option<Vec<u32>>);

impl Inserter {
    /// Notes that a series has samples up to `time_ms`.
    pub(crate) fn note_last(&mut self, series: SeriesRef, time_ms: i64) {
        let at = series.index();
        if at >= self.last.len() {
            self.last.resize(at + 1, i64::MIN);
        }
        self.last[at] = self.last[at].max(time_ms);
    }

    /// Learns the tenants of series that appeared since.
    fn learn(&mut self, core: &Core) {
        let fresh: Vec<TenantId> =
            core.registry.with(|all| all[self.owners.len().min(all.len())..].iter().map(|s| s.tenant.clone()).collect());
        for tenant in fresh {
            let known = self.tenants.iter().rposition(|t| *t.id() == tenant);
            let at = known.unwrap_or_else(|| {
                self.tenants.push(core.tenant(&tenant));
                self.tenants.len() - 1
            });
            self.owners.push(u32::try_from(at).expect("fewer tenants than series"));
        }
        self.last.resize(self.owners.len().max(self.last.len()), i64::MIN);
    }

    /// Splits a batch by tenant and date. Nearly always it is one group.
    fn groups(&self, batch: &SampleBatch, refused: &mut u64) -> Vec<Group> {
        let (Some(first), Some(&time)) = (batch.series.first(), batch.times.first()) else { return Vec::new() };
        let owner = |series: SeriesRef| self.owners.get(series.index()).copied();
        if let Some(tenant) = owner(*first).filter(|_| TIMES_MS.contains(&time)) {
            let date = date_of_ms(time);
            let day = day_start_ms(date)..day_start_ms(date + 1);
            if batch.times.iter().all(|t| day.contains(t)) && batch.series.iter().all(|&s| owner(s) == Some(tenant)) {
                return vec![(tenant, date, None)];
            }
        }
        let mut groups: BTreeMap<(u32, i32), Vec<u32>> = BTreeMap::new();
        for (row, (&series, time)) in (0_u32..).zip(batch.series.iter().zip(&batch.times)) {
            match owner(series).filter(|_| TIMES_MS.contains(time)) {
                Some(tenant) => groups.entry((tenant, date_of_ms(*time))).or_default().push(row),
                None => *refused += 1,
            }
        }
        groups.into_iter().map(|((tenant, date), rows)| (tenant, date, Some(rows))).collect()
    }

    /// Drops copies (A1) and moves the retry index on.
    fn drop_copies(&mut self, draft: &mut Draft, day: Option<&DayData>) -> u64 {
        let mut dropped = 0;
        for i in 0..draft.refs.len() {
            let series = draft.refs[i];
            let times = draft.times(i);
            let (Some(&first), Some(&newest)) = (times.first(), times.last()) else { continue };
            let last = &mut self.last[series.index()];
            if first <= *last
                && let Some(day) = day
            {
                dropped += day.runs().map(|run| drop_stored(draft, i, run, first, newest)).sum::<u64>();
            }
            *last = (*last).max(newest);
        }
        dropped
    }
}

/// Drops samples of series `i` that `run` has, unless they beat what it has.
fn drop_stored(draft: &mut Draft, i: usize, run: &Run, first: i64, newest: i64) -> u64 {
    if !run.overlaps(first, newest) {
        return 0;
    }
    let Some((times, values)) = run.series(draft.refs[i]) else { return 0 };
    let rows = crate::run::rows_between(times, first, newest);
    if rows.is_empty() {
        return 0;
    }
    let (times, values) = (&times[rows.clone()], &values[rows]);
    draft.retain(i, |time, value| times.binary_search(&time).map_or(true, |at| beats(value, values[at])))
}

impl Core {
    /// Takes a delivery. See the module.
    pub(crate) fn deliver(&self, delivery: &Delivery) {
        let mut inserter = self.inserter.lock();
        if !self.wanted(delivery) {
            return;
        }
        for (tenant, metadata) in &delivery.metadata {
            self.tenant(tenant).put_metadata(metadata);
        }
        let runs = self.runs_of(&mut inserter, delivery);
        self.log_bytes.fetch_add(LOG_RECORD_BYTES + LOG_SAMPLE_BYTES * delivery.batch.len() as u64, Ordering::Relaxed);
        self.publish(delivery, &runs);
        for (tenant, date, _) in &runs {
            self.merge_hot(tenant, *date, delivery.partition);
        }
        let full = self.unflushed_bytes() >= self.settings.flush_bytes;
        let log_full = self.settings.log_bytes_max.is_some_and(|max| self.log_bytes.load(Ordering::Relaxed) >= max / 2);
        if full || log_full {
            self.flush_wanted.notify_one();
        }
    }

    /// Whether the partition is ours and the delivery new.
    fn wanted(&self, delivery: &Delivery) -> bool {
        let batch = &delivery.batch;
        if batch.times.len() != batch.len() || batch.values.len() != batch.len() {
            tracing::error!(partition = delivery.partition, from = delivery.from, "a batch with columns of different lengths is not taken");
            return false;
        }
        let state = self.state.read();
        match state.partitions.get(&delivery.partition) {
            None => {
                tracing::error!(partition = delivery.partition, "a delivery of a partition that was not assigned is left to its owner");
                false
            }
            // A heartbeat that is not durable yet has `from == to`: nothing to take.
            Some(partition) => !partition.fenced && delivery.to > partition.delivered.unwrap_or(delivery.from),
        }
    }

    fn runs_of(&self, inserter: &mut Inserter, delivery: &Delivery) -> Vec<(TenantId, i32, HotRun)> {
        let batch = &delivery.batch;
        inserter.learn(self);
        let (mut refused, mut dropped) = (0, 0);
        let mut runs = Vec::new();
        for (tenant, date, rows) in inserter.groups(batch, &mut refused) {
            let tenant = inserter.tenants[tenant as usize].clone();
            let arrived = Arrived { series: &batch.series, times: &batch.times, values: &batch.values };
            let mut draft = inserter.scratch.sort(arrived, rows.as_deref());
            let day = self.state.read().day(tenant.id(), date).cloned();
            dropped += draft.dropped + inserter.drop_copies(&mut draft, day.as_deref());
            let Some(run) = draft.close() else { continue };
            tenant.note(date, run.refs());
            let run = HotRun { partition: delivery.partition, from: delivery.from, to: delivery.to, run: Arc::new(run) };
            runs.push((tenant.id().clone(), date, run));
        }
        self.metrics.samples_refused.inc_by(refused);
        self.metrics.copies_dropped.inc_by(dropped);
        self.metrics.samples_inserted.inc_by((batch.len() as u64).saturating_sub(refused + dropped));
        runs
    }

    /// A2.
    fn publish(&self, delivery: &Delivery, runs: &[(TenantId, i32, HotRun)]) {
        let mut state = self.state.write();
        for (tenant, date, run) in runs {
            state.push_hot(tenant, *date, run.clone());
        }
        if let Some(partition) = state.partitions.get_mut(&delivery.partition) {
            partition.delivered = Some(delivery.to);
        }
        let partition = delivery.partition;
        for offset in &delivery.sources {
            let stored = state.samples.txn(&offset.source);
            let source =
                state.sources.entry(offset.source.clone()).or_insert(SourceState { partition, committed: stored, next: offset.next });
            (source.partition, source.next) = (partition, source.next.max(offset.next));
        }
        self.gauge(&state);
    }

    /// Merges small runs of a (tenant, date, partition) as long as there are too many.
    fn merge_hot(&self, tenant: &TenantId, date: i32, partition: Partition) {
        loop {
            let old = {
                let state = self.state.read();
                let sealed = state.partitions.get(&partition).and_then(|p| p.sealed).unwrap_or(i64::MIN);
                let Some(day) = state.day(tenant, date) else { return };
                let open: Vec<HotRun> = day.hot.iter().filter(|h| h.partition == partition && h.from >= sealed).cloned().collect();
                let sizes: Vec<usize> = open.iter().map(|h| h.run.samples()).collect();
                let tail = tail_to_merge(&sizes, MERGE_SAMPLES_MAX);
                open[open.len() - tail..].to_vec()
            };
            let (Some(first), Some(last)) = (old.first(), old.last()) else { return };
            let inputs: Vec<&Run> = old.iter().map(|h| h.run.as_ref()).collect();
            let (run, dropped) = merge(&inputs);
            let merged = HotRun { partition, from: first.from, to: last.to, run: Arc::new(run) };
            let mut state = self.state.write();
            if !state.replace_hot(tenant, date, &old, merged) {
                return;
            }
            self.metrics.copies_dropped.inc_by(dropped);
            self.gauge(&state);
        }
    }

    /// The partition is ours from here on and stands at these offsets.
    pub(crate) fn take_partition(&self, partition: Partition, app_id: String) -> Option<i64> {
        let _deliveries = self.inserter.lock();
        let mut state = self.state.write();
        let touched = state.drop_partition(partition);
        let offset = state.samples.txn(&app_id);
        let series_committed = state.series.txn(&app_id);
        let fresh = PartitionState { app_id, committed: offset, series_committed, delivered: offset, sealed: None, fenced: false };
        state.partitions.insert(partition, fresh);
        self.gauge(&state);
        drop(state);
        self.forget(&touched);
        offset
    }

    /// Drops everything of a partition that no table holds; with `fenced`, takes nothing more until the next assignment.
    pub(crate) fn drop_partition(&self, partition: Partition, fenced: bool) {
        // No delivery may be half way through: it would put its run behind our back.
        let _deliveries = self.inserter.lock();
        let mut state = self.state.write();
        let touched = state.drop_partition(partition);
        if fenced {
            if let Some(p) = state.partitions.get_mut(&partition) {
                p.fenced = true;
            }
        } else {
            state.partitions.remove(&partition);
        }
        self.gauge(&state);
        drop(state);
        self.forget(&touched);
    }

    /// Series of these days that have neither a stored row nor samples any more are forgotten.
    fn forget(&self, touched: &[(TenantId, i32)]) {
        for (tenant, date) in touched {
            let day = self.state.read().day(tenant, *date).cloned();
            let live = day.iter().flat_map(|d| d.runs()).flat_map(|run| run.refs().iter().map(|r| r.0)).collect();
            self.tenant(tenant).retain_live(*date, &live);
        }
    }
}
