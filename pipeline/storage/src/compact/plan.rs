//! Which files are merged: decided from the log alone, the same in every process.
//!
//! ```text
//!  a day that is open     many files of one size class ─▶ one of the next class                      (each row is written log(files) times)
//!  a day that is closed   everything that overlaps, is small or was never compacted ─▶ sorted, disjoint files; the rest stays
//!  now                    as closed, on every day, whatever the cost
//! ```
//!
//! # Invariants
//! - A plan is a function of the snapshot, the settings and the time.
//! - Inputs of different jobs are disjoint, and no file outside of a job of a closed day meets the keys of its outputs.
//! - After the jobs of [`When::Now`] were committed there is nothing left to do, unless a day is over the bounds of one merge.

use super::Settings;
use crate::delta::{FileEntry, Snapshot};
use fletch_schemas::{TenantId, date_of_ms};
use std::sync::Arc;

/// A file below the target divided by this is small.
const SMALL_PARTS: u64 = 4;

/// How eager a run is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// What is worth its work at the moment.
    Background,
    /// Everything, because somebody asked for it.
    Now,
}

/// One merge.
#[derive(Debug, Clone)]
pub struct Job {
    /// Whose files.
    pub tenant: TenantId,
    /// Of which day (days since 1970-01-01).
    pub date: i32,
    /// All of them leave the table.
    pub inputs: Vec<Arc<FileEntry>>,
}

/// Every merge that is worth its work, newest days last.
pub fn plan(snapshot: &Snapshot, settings: &Settings, when: When, now_ms: i64) -> Vec<Job> {
    let mut jobs = Vec::new();
    for tenant in snapshot.tenants() {
        for date in snapshot.dates(tenant) {
            let files = snapshot.partition(tenant, date);
            let found = if when == When::Now || is_closed(date, files, settings, now_ms) {
                closed_day(files, settings, when)
            } else {
                open_day(files, settings).into_iter().collect()
            };
            jobs.extend(found.into_iter().map(|inputs| Job { tenant: tenant.clone(), date, inputs }));
        }
    }
    jobs
}

fn is_closed(date: i32, files: &[Arc<FileEntry>], settings: &Settings, now_ms: i64) -> bool {
    let quiet_ms = i64::try_from(settings.quiet.as_millis()).unwrap_or(i64::MAX);
    let newest = files.iter().map(|f| f.committed_ms).max().unwrap_or(i64::MIN);
    date < date_of_ms(now_ms) && newest <= now_ms.saturating_sub(quiet_ms)
}

/// The smallest size class with enough files in it and below, if there is one.
fn open_day(files: &[Arc<FileEntry>], settings: &Settings) -> Option<Vec<Arc<FileEntry>>> {
    let fan_in = settings.fan_in.max(2);
    let mut small: Vec<&Arc<FileEntry>> = files.iter().filter(|f| f.size < settings.target_bytes).collect();
    small.sort_by_key(|f| (f.size, f.committed_ms));
    let class = |f: &FileEntry| f.size.max(1).ilog(fan_in as u64);
    let mut end = 0;
    while end < small.len() {
        let of = class(small[end]);
        end += small[end..].iter().take_while(|f| class(f) == of).count();
        if end >= fan_in {
            let inputs = small[..end].iter().map(|f| Arc::clone(f)).collect();
            return bounded(inputs, settings);
        }
    }
    None
}

/// Clusters of files whose keys meet, or that are neighbours and small.
fn closed_day(files: &[Arc<FileEntry>], settings: &Settings, when: When) -> Vec<Vec<Arc<FileEntry>>> {
    let mut sorted: Vec<&Arc<FileEntry>> = files.iter().collect();
    sorted.sort_by(|a, b| start_of(a).cmp(&start_of(b)).then_with(|| a.path.cmp(&b.path)));
    let mut taken: Vec<bool> = overlapping(&sorted);
    for (taken, file) in taken.iter_mut().zip(&sorted) {
        *taken |= file.compacted.is_none();
    }
    let small = |f: &FileEntry| f.size < settings.target_bytes / SMALL_PARTS;
    let joins: Vec<bool> = sorted.iter().zip(&taken).map(|(f, taken)| *taken || small(f)).collect();
    let mut jobs = Vec::new();
    let mut at = 0;
    while at < sorted.len() {
        let len = joins[at..].iter().take_while(|j| **j).count();
        if len > 0 {
            let cluster: Vec<Arc<FileEntry>> = sorted[at..at + len].iter().map(|f| Arc::clone(f)).collect();
            jobs.extend(worth(cluster, settings, when));
        }
        at += len.max(1);
    }
    jobs
}

/// Which files meet the keys of another; `sorted` by the start of their keys.
fn overlapping(sorted: &[&Arc<FileEntry>]) -> Vec<bool> {
    let mut meets = vec![false; sorted.len()];
    // The file that reaches furthest so far.
    let mut furthest: Option<usize> = None;
    for at in 0..sorted.len() {
        if let Some(before) = furthest
            && start_of(sorted[at]) <= end_of(sorted[before])
        {
            (meets[before], meets[at]) = (true, true);
        }
        if furthest.is_none_or(|before| end_of(sorted[at]) >= end_of(sorted[before])) {
            furthest = Some(at);
        }
    }
    meets
}

/// An end of the keys of a file: (0 below everything, 1 known, 2 above everything; metric; series id).
type End<'a> = (u8, &'a str, i64);

/// Where the keys of a file begin.
fn start_of(file: &FileEntry) -> End<'_> {
    let Some((low, _)) = &file.keys.metrics else { return (0, "", i64::MIN) };
    (1, low.as_ref(), ends_of(file).map_or(i64::MIN, |ends| ends.0))
}

/// Where they end.
fn end_of(file: &FileEntry) -> End<'_> {
    let Some((_, high)) = &file.keys.metrics else { return (2, "", i64::MAX) };
    (1, high.as_ref(), ends_of(file).map_or(i64::MAX, |ends| ends.1))
}

/// Ids of its first and last row: a compaction notes them; the range of all ids says it only of a file with a single metric.
fn ends_of(file: &FileEntry) -> Option<(i64, i64)> {
    let single = file.keys.metrics.as_ref().is_some_and(|(low, high)| low == high);
    file.compacted.or(file.keys.series_ids.filter(|_| single))
}

/// What of a cluster is merged now.
fn worth(cluster: Vec<Arc<FileEntry>>, settings: &Settings, when: When) -> Option<Vec<Arc<FileEntry>>> {
    if cluster.len() == 1 {
        let file = &cluster[0];
        let enough = when == When::Now || file.size >= settings.rewrite_bytes_min;
        return if file.compacted.is_none() && enough { bounded(cluster, settings) } else { None };
    }
    if when == When::Now {
        return bounded(cluster, settings);
    }
    let (base, late) = base_and_late(cluster, settings);
    let bytes = |files: &[Arc<FileEntry>]| files.iter().map(|f| f.size).sum::<u64>();
    if bytes(&late).saturating_mul(settings.rewrite_ratio) >= bytes(&base) {
        return bounded([base, late].concat(), settings);
    }
    // A few late rows do not pay for writing a whole day again; many small files become one.
    if late.len() >= settings.fan_in { bounded(late, settings) } else { None }
}

/// The well-sized files of a cluster (sorted by the start of their keys) that meet only others, and those others.
fn base_and_late(cluster: Vec<Arc<FileEntry>>, settings: &Settings) -> (Vec<Arc<FileEntry>>, Vec<Arc<FileEntry>>) {
    let (large, mut late): (Vec<_>, Vec<_>) = cluster.into_iter().partition(|f| !unfinished(f, settings));
    let meets = overlapping(&large.iter().collect::<Vec<_>>());
    let mut base = Vec::new();
    for (file, meets) in large.into_iter().zip(meets) {
        if meets { late.push(file) } else { base.push(file) }
    }
    (base, late)
}

/// Whether a file is small or was written by a flush.
fn unfinished(file: &FileEntry, settings: &Settings) -> bool {
    file.compacted.is_none() || file.size < settings.target_bytes / SMALL_PARTS
}

/// All of the files, if one merge can take them. Else the smallest of those that are not well-sized yet: a day over the bounds ends as large
/// files that may overlap, instead of being written again for ever. `None` when that changes nothing.
fn bounded(mut inputs: Vec<Arc<FileEntry>>, settings: &Settings) -> Option<Vec<Arc<FileEntry>>> {
    let whole = inputs.len();
    inputs.sort_by(|a, b| a.size.cmp(&b.size).then_with(|| a.path.cmp(&b.path)));
    if fitting(&inputs, settings) < whole {
        inputs.retain(|f| unfinished(f, settings));
        let count = fitting(&inputs, settings);
        inputs.truncate(count);
        return (count > 1).then_some(inputs);
    }
    Some(inputs)
}

/// How many of the files one merge can take.
fn fitting(inputs: &[Arc<FileEntry>], settings: &Settings) -> usize {
    let series = inputs.first().is_some_and(|f| f.keys.times_ms.is_none());
    let (mut bytes, mut rows) = (0_u64, 0_u64);
    let fits = |f: &&Arc<FileEntry>| {
        bytes = bytes.saturating_add(f.size);
        rows = rows.saturating_add(f.rows);
        bytes <= settings.job_bytes_max && (!series || rows <= settings.series_rows_max)
    };
    inputs.iter().take(settings.job_files_max).take_while(fits).count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::delta::testing::entry;

    const MIB: u64 = 1 << 20;
    const NOW: i64 = 100 * 86_400_000 + 43_200_000;

    fn file(path: &str, range: (&str, &str), mib: u64, compacted: bool) -> Arc<FileEntry> {
        let mut file = entry("a", 99, 100);
        file.path = path.to_owned();
        file.keys.metrics = Some((range.0.into(), range.1.into()));
        file.compacted = compacted.then_some((3, 3));
        (file.size, file.committed_ms) = (mib * MIB, NOW - 7_200_000);
        Arc::new(file)
    }

    fn paths(jobs: &[Vec<Arc<FileEntry>>]) -> Vec<Vec<&str>> {
        let mut all: Vec<Vec<&str>> = jobs.iter().map(|job| job.iter().map(|f| f.path.as_str()).collect()).collect();
        all.iter_mut().for_each(|job| job.sort_unstable());
        all
    }

    #[test]
    fn a_closed_day_ends_as_disjoint_files_and_good_ones_stay() {
        let settings = Settings::default();
        let closed = |files: &[Arc<FileEntry>], when| {
            let jobs = closed_day(files, &settings, when);
            paths(&jobs).into_iter().map(|j| j.join(" ")).collect::<Vec<_>>().join(" | ")
        };
        let mut cut = file("b2", ("f", "p"), 130, true).as_ref().clone();
        cut.compacted = Some((4, 9));
        let base = [file("b1", ("a", "f"), 130, true), Arc::new(cut), file("b3", ("q", "z"), 130, true)];
        assert_eq!(closed(&base, When::Now), "", "cut inside of a metric, between ids 3 and 4");
        let with = |more: &[Arc<FileEntry>]| [&base[..], more].concat();
        let (wide, left, right) = (file("w", ("a", "z"), 1, false), file("l", ("a", "b"), 30, false), file("r", ("x", "z"), 40, false));
        assert_eq!(closed(&with(std::slice::from_ref(&wide)), When::Now), "b1 b2 b3 w");
        assert_eq!(closed(&with(std::slice::from_ref(&wide)), When::Background), "", "1 MiB does not pay for writing 390 again");
        let many: Vec<_> = (0..8).map(|i| file(&format!("w{i}"), ("a", "z"), 1, false)).collect();
        assert_eq!(closed(&with(&many), When::Background), "w0 w1 w2 w3 w4 w5 w6 w7");
        assert_eq!(closed(&with(&[left, right]), When::Background), "b1 l | b3 r", "what lies between stays");
        let (small, other) = (file("s", ("g", "h"), 1, true), file("t", ("i", "i"), 1, true));
        let ends = [base[0].clone(), small, other, base[2].clone()];
        assert_eq!(closed(&ends, When::Background), "s t", "small neighbours");
        let halves = [file("h1", ("a", "z"), 130, true), file("h2", ("a", "z"), 130, true), file("h3", ("a", "z"), 1, false)];
        assert_eq!(closed(&halves, When::Background), "h1 h2 h3", "large files of the open day overlap until the day is closed");
        assert_eq!(closed(&[file("x", ("a", "b"), 5, false)], When::Background), "x", "the better encodings");
        assert_eq!(closed(&[file("x", ("a", "b"), 0, false)], When::Background), "");
        assert_eq!(closed(&[file("x", ("a", "b"), 0, false)], When::Now), "x");
        assert_eq!(closed(&[file("x", ("a", "b"), 0, true)], When::Now), "");
    }

    #[test]
    fn files_of_one_metric_are_told_apart_by_their_series() {
        let of = |path: &str, ids: (i64, i64)| {
            let mut f = file(path, ("m", "m"), 130, true).as_ref().clone();
            (f.keys.series_ids, f.compacted) = (Some(ids), Some(ids));
            Arc::new(f)
        };
        let settings = Settings::default();
        assert!(closed_day(&[of("a", (-9, -1)), of("b", (0, 5)), of("c", (6, 9))], &settings, When::Now).is_empty());
        let jobs = closed_day(&[of("a", (-9, -1)), of("b", (0, 7)), of("c", (6, 9))], &settings, When::Now);
        assert_eq!(paths(&jobs), [["b", "c"]]);
    }

    #[test]
    fn an_open_day_is_merged_in_size_classes() {
        let settings = Settings { fan_in: 4, ..Settings::default() };
        let of = |n: usize, mib| (0..n).map(|i| file(&format!("{mib}-{i}"), ("a", "z"), mib, false)).collect::<Vec<_>>();
        assert!(open_day(&of(3, 1), &settings).is_none());
        assert_eq!(open_day(&of(4, 1), &settings).map(|j| j.len()), Some(4));
        let mixed = [of(3, 1), of(3, 16), of(1, 200)].concat();
        assert_eq!(open_day(&mixed, &settings).map(|j| j.len()), Some(6), "the next class counts the smaller ones in");
        assert!(open_day(&of(9, 128), &settings).is_none(), "what has the target size stays");
    }

    #[test]
    fn a_merge_has_bounds_and_the_smallest_files_go_first() {
        let settings = Settings { job_bytes_max: 10 * MIB, ..Settings::default() };
        let files = [file("a", ("a", "z"), 6, false), file("b", ("a", "z"), 3, false), file("c", ("a", "z"), 4, false)];
        assert_eq!(paths(&closed_day(&files, &settings, When::Now)), [["b", "c"]]);
        let done: Vec<_> = (0..4).map(|i| file(&format!("d{i}"), ("a", "z"), 130, true)).collect();
        assert!(closed_day(&done, &settings, When::Now).is_empty(), "never the same large files again and again");
        let big = [file("a", ("a", "z"), 60, false), file("b", ("a", "z"), 30, false)];
        assert!(closed_day(&big, &settings, When::Now).is_empty(), "one file alone would change nothing");
    }

    #[test]
    fn a_day_closes_an_hour_after_its_last_file() {
        let files = [file("a", ("a", "z"), 1, false)];
        let settings = Settings::default();
        assert!(is_closed(99, &files, &settings, NOW));
        assert!(!is_closed(100, &files, &settings, NOW), "today");
        assert!(!is_closed(99, &files, &settings, NOW - 3_600_001));
    }
}
