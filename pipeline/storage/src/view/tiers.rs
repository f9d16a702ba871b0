//! Series from tiers: windows where raw samples are gone or where windows are all that is asked for, raw samples elsewhere.
//!
//! ```text
//!  stretch of 1h │ stretch of 1m        │ raw
//!  ──────────────┼───────────────┬──────┼────────────▶ time
//!                                └ raw that the tier may not have consumed yet: per window the side that has more samples counts
//! ```
//!
//! # Invariants
//! - **Y1** No sample counts twice: of a window either its row or its raw samples are in an answer.
//! - **Y2** Up to [`ReadView::settled_until`] a tier has consumed every sample of this view.

use super::{ReadView, SelectLimits, dates_of};
use crate::StorageError;
use crate::delta::FileEntry;
use crate::parquet_file::{FileSource, OpenFile, Selection, TierRows, read_tier_rows};
use crate::retention::Removed;
use crate::tiers::{Tier, TierSnapshot};
use fletch_ingest::SeriesRef;
use fletch_schemas::{Labels, Matcher, SeriesSet, day_start_ms, is_stale};
use std::collections::HashMap;
use std::sync::Arc;

/// A file whose rows were committed so shortly before what a tier consumed may have been overtaken by it: no writer commits a file that is
/// older than an hour.
const OVERTAKEN_MS: i64 = 3_600_000;

/// Opened tier files that are read again by later queries.
const OPEN_FILES_MAX: usize = 256;

/// What a row stands for in an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TierValue {
    /// How many samples; a raw sample counts 1.
    Count,
    /// Their sum.
    Sum,
    /// The smallest.
    Min,
    /// The largest.
    Max,
    /// The first.
    First,
    /// The last.
    Last,
    /// Samples that make the same curve: first and last where they are known (with the resets between them), else the last at the window's end.
    Samples,
    /// As [`Samples`](Self::Samples), for rows that know their first sample.
    Counter,
}

impl TierValue {
    fn columns(self) -> &'static [&'static str] {
        match self {
            Self::Count => &["count"],
            Self::Sum => &["count", "sum"],
            Self::Min => &["count", "min"],
            Self::Max => &["count", "max"],
            Self::First => &["count", "first"],
            Self::Last => &["count", "last"],
            Self::Samples | Self::Counter => &["count", "last", "first", "first_time", "last_time", "increase"],
        }
    }
}

/// Windows of one tier: those that end in `(after_ms, until_ms]`. Both are ends of windows, except at the query's own edges.
#[derive(Debug, Clone)]
pub struct Stretch {
    /// Which tier.
    pub tier: TierSnapshot,
    /// Exclusive.
    pub after_ms: i64,
    /// Inclusive.
    pub until_ms: i64,
}

/// A selection from tiers and raw.
#[derive(Debug)]
pub struct WindowsAsk<'a> {
    /// Which series.
    pub matchers: &'a [Matcher],
    /// Not overlapping.
    pub stretches: &'a [Stretch],
    /// First millisecond of raw; it may lie inside of the stretches.
    pub raw_from_ms: i64,
    /// Last millisecond of raw.
    pub max_ms: i64,
    /// What rows stand for.
    pub value: TierValue,
}

impl ReadView {
    /// The tiers, narrow windows first, in their newest versions. None when there are none.
    ///
    /// # Errors
    /// The log of a tier cannot be read.
    pub async fn tiers(&self) -> Result<Vec<TierSnapshot>, StorageError> {
        match self.core.tiers.get() {
            Some(tiers) => tiers.refreshed().await,
            None => Ok(Vec::new()),
        }
    }

    /// Raw samples up to here may be gone, for this metric or for any.
    pub fn raw_gone_until(&self, metric: Option<&str>) -> Option<i64> {
        Removed::of(&self.samples, self.tenant()).horizon_ms(metric)
    }

    /// Rows of a tier up to here may be gone.
    pub fn tier_gone_until(&self, tier: &TierSnapshot, metric: Option<&str>) -> Option<i64> {
        Removed::of(&tier.files, self.tenant()).horizon_ms(metric)
    }

    /// Up to here the tier holds every sample of this view; the end of a window (Y2). `i64::MIN` when it holds nothing for sure.
    pub fn settled_until(&self, of: &TierSnapshot, metric: Option<&str>) -> i64 {
        let Tier { width_ms, .. } = of.tier;
        let txn = |app: String| of.files.txn(&app);
        let (Some(written), Some(seen), Some(late)) = (txn(of.tier.until()), txn(of.tier.seen()), txn(of.tier.late_seen())) else {
            return i64::MIN;
        };
        let consumed_ms = seen.min(late).saturating_sub(OVERTAKEN_MS);
        let files = self.samples.tenant_files(self.tenant(), i32::MIN..=i32::MAX);
        let open = files.filter(|f| f.committed_ms > consumed_ms && metric.is_none_or(|m| f.keys.may_hold_metric(m)));
        let in_files = open.map(|f| f.keys.times_ms.map_or(day_start_ms(f.date), |(min, _)| min));
        let hot = self
            .data
            .days
            .iter()
            .filter(|(_, day)| !day.hot.is_empty())
            .map(|(date, day)| day.hot.iter().map(|h| h.run.min_ms()).min().unwrap_or(day_start_ms(*date)));
        let first_open = in_files.chain(hot).min().unwrap_or(i64::MAX);
        written.min(of.tier.floor(first_open.saturating_sub(1))).max(i64::MIN + width_ms)
    }

    /// Series with the values of their windows, and raw samples where no row counts. Ascending times; series without any are left out. `None`
    /// when a row lacks the value: its metric is of a kind that does not keep it.
    ///
    /// # Errors
    /// As [`select`](Self::select).
    pub async fn select_windows(&self, ask: &WindowsAsk<'_>, limits: &SelectLimits) -> Result<Option<SeriesSet>, StorageError> {
        let raw = if ask.raw_from_ms <= ask.max_ms {
            self.select(ask.matchers, ask.raw_from_ms, ask.max_ms, limits).await?
        } else {
            SeriesSet::default()
        };
        let Some(windows) = self.windows(ask, limits, raw.samples()).await? else { return Ok(None) };
        let mut of_raw: HashMap<&Labels, usize> = raw.labels.iter().enumerate().map(|(i, labels)| (labels, i)).collect();
        let mut out = SeriesSet::default();
        let mut push = |labels: &Labels, rows: &[Row], raw_at: Option<usize>| {
            let samples = raw_at.map_or((&[][..], &[][..]), |i| (raw.times(i), raw.values(i)));
            let (times, values) = joined(rows, samples, ask.value);
            if !times.is_empty() {
                out.push(labels.clone(), times, values);
            }
        };
        for (labels, rows) in &windows {
            push(labels, rows, of_raw.remove(labels));
        }
        let mut rest: Vec<usize> = of_raw.into_values().collect();
        rest.sort_unstable();
        for i in rest {
            push(&raw.labels[i], &[], Some(i));
        }
        Ok(Some(out))
    }

    /// Rows of every series that has some, ascending.
    async fn windows(
        &self,
        ask: &WindowsAsk<'_>,
        limits: &SelectLimits,
        raw_samples: usize,
    ) -> Result<Option<Vec<(Labels, Vec<Row>)>>, StorageError> {
        let conditions = self.core.patterns.conditions(ask.matchers, self.core.settings.regex_bytes_max)?;
        let (from, to) = (ask.stretches.iter().map(|s| s.after_ms).min(), ask.stretches.iter().map(|s| s.until_ms).max());
        let (Some(from), Some(to)) = (from, to) else { return Ok(Some(Vec::new())) };
        self.core.ensure_series(&self.tenant, &self.series, dates_of(from, to)).await?;
        let refs: Vec<SeriesRef> = self.tenant.read().select(&conditions).into_iter().map(SeriesRef).collect();
        let labels: Vec<Labels> = self.core.registry.with(|all| refs.iter().map(|r| all[r.index()].labels.clone()).collect());
        let mut found: Vec<Vec<Row>> = vec![Vec::new(); refs.len()];
        let mut samples = raw_samples;
        for stretch in ask.stretches.iter().filter(|s| s.after_ms < s.until_ms && !refs.is_empty()) {
            let touched = dates_of(stretch.after_ms, stretch.until_ms);
            for date in stretch.tier.files.dates(self.tenant()).filter(|date| touched.contains(date)) {
                let ids = self.tenant.ids(date, &refs);
                let files = stretch.tier.files.partition(self.tenant(), date).iter();
                for file in files.filter(|f| f.keys.may_hold_times(stretch.after_ms, stretch.until_ms)) {
                    let rows = self.tier_file(stretch, file, &labels, &ids, ask.value).await?;
                    samples += rows.ends.len();
                    if samples > limits.samples_max {
                        return Err(too_many(limits));
                    }
                    if !place(&rows, stretch, &labels, &ids, ask.value, &mut found) {
                        return Ok(None);
                    }
                }
            }
        }
        let with_rows = labels.into_iter().zip(found).filter(|(_, rows)| !rows.is_empty());
        Ok(Some(
            with_rows
                .map(|(labels, mut rows)| {
                    rows.sort_by_key(|r| r.end_ms);
                    (labels, rows)
                })
                .collect(),
        ))
    }

    async fn tier_file(
        &self,
        stretch: &Stretch,
        file: &FileEntry,
        labels: &[Labels],
        ids: &[i64],
        value: TierValue,
    ) -> Result<TierRows, StorageError> {
        let keys: Vec<(&str, i64)> =
            labels.iter().map(Labels::metric).zip(ids.iter().copied()).filter(|(metric, _)| file.keys.may_hold_metric(metric)).collect();
        if keys.is_empty() {
            return Ok(TierRows::default());
        }
        let open = self.open_tier_file(&stretch.tier, file).await?;
        let selection = Selection { keys: &keys, from_ms: stretch.after_ms.saturating_add(1), to_ms: stretch.until_ms };
        read_tier_rows(&open, &selection, value.columns()).await
    }

    async fn open_tier_file(&self, tier: &TierSnapshot, file: &FileEntry) -> Result<Arc<OpenFile>, StorageError> {
        if let Some(known) = self.core.tier_files.lock().iter().find(|(path, _)| *path == file.path).map(|(_, file)| file.clone()) {
            return Ok(known);
        }
        let path = tier.table.object_path(&file.path)?;
        let opened = Arc::new(FileSource::object(tier.table.store().clone(), path, file).open().await?);
        let mut files = self.core.tier_files.lock();
        if files.len() >= OPEN_FILES_MAX {
            files.pop_front();
        }
        files.push_back((file.path.clone(), opened.clone()));
        Ok(opened)
    }
}

fn too_many(limits: &SelectLimits) -> StorageError {
    let most = limits.samples_max;
    StorageError::Limit(format!("the selector loads more than query_samples_max = {most} samples; narrow it or its time range"))
}

/// One row of a tier, as far as an answer needs it.
#[derive(Debug, Clone, Copy)]
struct Row {
    end_ms: i64,
    width_ms: i64,
    count: f64,
    value: f64,
    edges: Option<Edges>,
}

/// First, its time, the time of the last, increase.
#[derive(Debug, Clone, Copy)]
struct Edges {
    first: f64,
    first_ms: i64,
    last_ms: i64,
    increase: f64,
}

/// Gives rows to their series; false when one lacks its value.
fn place(rows: &TierRows, stretch: &Stretch, labels: &[Labels], ids: &[i64], value: TierValue, found: &mut [Vec<Row>]) -> bool {
    if rows.series.is_empty() {
        return true;
    }
    let of: HashMap<(&str, i64), usize> = labels.iter().map(Labels::metric).zip(ids.iter().copied()).zip(0..).collect();
    let column = |at: usize, row: usize| rows.columns.get(at).map_or(f64::NAN, |c| c[row]);
    for series in &rows.series {
        let Some(&at) = of.get(&(series.metric.as_ref(), series.series_id)) else { continue };
        for row in series.rows.clone().filter(|row| (stretch.after_ms + 1..=stretch.until_ms).contains(&rows.ends[*row])) {
            let count = column(0, row);
            let taken = if value == TierValue::Count { count } else { column(1, row) };
            if is_stale(taken) {
                return false;
            }
            let known = matches!(value, TierValue::Samples | TierValue::Counter) && !is_stale(column(2, row));
            if value == TierValue::Counter && !known {
                return false;
            }
            let edges = known.then(|| Edges {
                first: column(2, row),
                first_ms: column(3, row) as i64,
                last_ms: column(4, row) as i64,
                increase: column(5, row),
            });
            found[at].push(Row { end_ms: rows.ends[row], width_ms: stretch.tier.tier.width_ms, count, value: taken, edges });
        }
    }
    true
}

/// Rows and raw samples of one series, ascending: of each window the side with more samples (Y1).
fn joined(rows: &[Row], (times, values): (&[i64], &[f64]), value: TierValue) -> (Vec<i64>, Vec<f64>) {
    let (mut out_times, mut out_values) = (Vec::with_capacity(rows.len() + times.len()), Vec::with_capacity(rows.len() + times.len()));
    let raw = |from: usize, to: usize, out_times: &mut Vec<i64>, out_values: &mut Vec<f64>| {
        for at in from..to {
            match value {
                TierValue::Count if is_stale(values[at]) => continue,
                TierValue::Count => out_values.push(1.0),
                _ => out_values.push(values[at]),
            }
            out_times.push(times[at]);
        }
    };
    let mut next = 0;
    for row in rows {
        let from = times.partition_point(|t| *t <= row.end_ms - row.width_ms).max(next);
        let to = times.partition_point(|t| *t <= row.end_ms).max(from);
        raw(next, from, &mut out_times, &mut out_values);
        let here = values[from..to].iter().filter(|v| !is_stale(**v)).count();
        if here as f64 >= row.count {
            raw(from, to, &mut out_times, &mut out_values);
        } else {
            row.push(&mut out_times, &mut out_values);
        }
        next = to;
    }
    raw(next, times.len(), &mut out_times, &mut out_values);
    (out_times, out_values)
}

impl Row {
    fn push(&self, times: &mut Vec<i64>, values: &mut Vec<f64>) {
        let mut push = |time, value| {
            times.push(time);
            values.push(value);
        };
        let Some(edges) = self.edges else { return push(self.end_ms, self.value) };
        let Edges { first, first_ms, last_ms, increase } = edges;
        push(first_ms, first);
        // What a counter had risen to before it fell, all falls together: the increase is (peak - first) + last.
        let peak = increase + first - self.value;
        let fell = peak > 1e-9 * first.abs().max(self.value.abs()).max(increase.abs());
        let room = last_ms - first_ms;
        if fell && room >= 3 {
            push(first_ms + room / 3, peak.max(first));
            if peak <= self.value {
                push(first_ms + 2 * (room / 3).max(1), 0.0);
            }
        }
        if last_ms > first_ms {
            push(last_ms, self.value);
        }
    }
}

#[cfg(test)]
mod tests;
