//! From the store into memory: rows of `series`, whole files as runs, parts of files that are too large for that.
//!
//! # Invariants
//! - **W1** The series of a date are loaded before any of its files is decoded: a stored sample has its labels.
//! - **W2** A file is read by one task at a time; others wait for it.
//! - **W3** A file becomes resident only within the budget, and only while it belongs to the newest adopted snapshot.
//!
//! # When it fails
//! The error names the file; nothing of it becomes visible, other files are served.

use super::core::Core;
use super::facts::Facts;
use crate::StorageError;
use crate::delta::{FileEntry, Snapshot};
use crate::index::Tenant;
use crate::parquet_file::{FileSource, OpenFile, SamplesRows, Selection, read_selected, read_series};
use crate::run::Run;
use crate::run::merge::Piece;
use crate::run::write::RunWriter;
use fletch_ingest::SeriesRef;
use fletch_schemas::tables::Table;
use fletch_schemas::{MetricKind, MetricMetadata, TenantId};
use futures::{StreamExt, TryStreamExt, stream};
use std::ops::RangeInclusive;
use std::sync::Arc;

/// Files that one query or the warm start reads at the same time.
const READS_MAX: usize = 4;
/// Opened files (footer and key index) that are kept for partial reads.
const OPEN_FILES_MAX: usize = 64;
/// Newest dates per tenant that are in memory before the process is ready.
const WARM_DATES: usize = 2;
/// The retry index holds series of files committed this long before the newest one.
const RETRY_WINDOW_MS: i64 = 3_600_000;

impl Core {
    /// Makes the series of these dates known to the index, as `series` (a snapshot) has them.
    pub(crate) async fn ensure_series(&self, tenant: &Tenant, series: &Snapshot, dates: RangeInclusive<i32>) -> Result<(), StorageError> {
        if tenant.holds_series(series, dates.clone()) {
            return Ok(());
        }
        let _turn = self.series_turn.lock().await;
        let dates: Vec<i32> = series.dates(tenant.id()).filter(|d| dates.contains(d)).collect();
        for date in dates {
            let files = series.partition(tenant.id(), date);
            let missing = tenant.missing(date, files.iter().map(|f| f.path.as_str()));
            for path in missing {
                if let Some(entry) = files.iter().find(|f| f.path == path) {
                    self.load_series_file(tenant, entry).await?;
                }
            }
            tenant.confirm_series(date, series.version());
        }
        Ok(())
    }

    async fn load_series_file(&self, tenant: &Tenant, entry: &FileEntry) -> Result<(), StorageError> {
        let rows = read_series(&self.source(Table::Series, entry)?).await?;
        let refs: Vec<SeriesRef> = rows.iter().map(|row| self.registry.resolve(tenant.id(), &row.labels)).collect();
        self.facts.put(&entry.path, Facts::of(refs.iter().copied().zip(&rows)));
        let probes: Vec<(SeriesRef, u32)> = refs.into_iter().zip(rows.iter().map(|row| row.probe)).collect();
        tenant.load(entry.date, &entry.path, &probes);
        for row in rows {
            if row.kind != MetricKind::Unknown || !row.help.is_empty() || !row.unit.is_empty() {
                let metric = row.labels.metric().to_owned();
                tenant.put_stored_metadata(MetricMetadata { metric, kind: row.kind, unit: row.unit, help: row.help });
            }
        }
        Ok(())
    }

    /// What a file of `series` says beside labels. The series of its date are loaded.
    pub(crate) async fn facts_of(&self, tenant: &Tenant, entry: &FileEntry) -> Result<Facts, StorageError> {
        if let Some(known) = self.facts.get(&entry.path) {
            return Ok(known);
        }
        let rows = read_series(&self.source(Table::Series, entry)?).await?;
        let facts = Facts::of(rows.iter().map(|row| (self.registry.resolve(tenant.id(), &row.labels), row)));
        self.facts.put(&entry.path, facts.clone());
        Ok(facts)
    }

    pub(crate) fn source(&self, table: Table, entry: &FileEntry) -> Result<FileSource, StorageError> {
        let table = if table == Table::Series { &self.series } else { &self.samples };
        Ok(FileSource::object(self.store.clone(), table.object_path(&entry.path)?, entry))
    }

    /// A whole file as a run; it stays in memory if the budget allows.
    pub(crate) async fn load_file(&self, entry: &Arc<FileEntry>) -> Result<Arc<Run>, StorageError> {
        if let Some(run) = self.resident(entry) {
            return Ok(run);
        }
        let cell = self.loading.lock().entry(entry.path.clone()).or_default().clone();
        let loaded = cell.get_or_try_init(|| self.read_file(entry)).await.cloned();
        self.loading.lock().remove(&entry.path);
        loaded
    }

    /// The run of a file, if it is resident by itself.
    fn resident(&self, entry: &FileEntry) -> Option<Arc<Run>> {
        let state = self.state.read();
        let day = state.day(&entry.tenant, entry.date)?;
        let group = day.resident.iter().find(|g| g.entries.len() == 1 && g.runs.len() == 1 && g.covers(&entry.path))?;
        group.touch(self.tick());
        group.runs.first().cloned()
    }

    async fn read_file(&self, entry: &Arc<FileEntry>) -> Result<Arc<Run>, StorageError> {
        let run = self.decode_file(entry).await?;
        let mut state = self.state.write();
        if run.bytes() <= self.settings.resident_bytes_max {
            state.warm(entry, &run, self.tick());
        }
        let gone = self.trim(&mut state);
        drop(state);
        drop(gone);
        Ok(run)
    }

    /// A whole file as a run that is nobody's yet.
    pub(crate) async fn decode_file(&self, entry: &Arc<FileEntry>) -> Result<Arc<Run>, StorageError> {
        let source = self.source(Table::Samples, entry)?;
        let bytes = source.bytes().await?;
        let decoding = {
            let source = source.clone();
            tokio::task::spawn_blocking(move || SamplesRows::decode(&source, bytes))
        };
        let rows = decoding.await.map_err(|e| ended(&entry.path, &e))??;
        let refs = self.refs_of(entry, &rows).await?;
        let building = tokio::task::spawn_blocking(move || build(&rows, &refs));
        let run = Arc::new(building.await.map_err(|e| ended(&entry.path, &e))?);
        self.metrics.files_read.inc();
        Ok(run)
    }

    /// The series of a file's rows (W1).
    async fn refs_of(&self, entry: &FileEntry, rows: &SamplesRows) -> Result<Vec<SeriesRef>, StorageError> {
        let tenant = self.tenant(&entry.tenant);
        let keys = || rows.series.iter().map(|s| (s.metric.as_ref(), s.series_id));
        let dates = entry.date..=entry.date;
        let series = self.state.read().series.clone();
        self.ensure_series(&tenant, &series, dates.clone()).await?;
        let mut found = tenant.resolve(entry.date, keys());
        if found.contains(&None) {
            let series = self.series.refresh().await?;
            self.ensure_series(&tenant, &series, dates).await?;
            found = tenant.resolve(entry.date, keys());
        }
        let missing = found.iter().position(Option::is_none);
        if let Some(row) = missing.and_then(|i| rows.series.get(i)) {
            let why = format!("series {} of metric `{}` has no row in table `series`", row.series_id, row.metric);
            return Err(StorageError::Corrupt { path: entry.path.clone(), why });
        }
        Ok(found.into_iter().flatten().collect())
    }

    /// Runs for a query from files that are not in memory: whole files where they fit, else only the rows of the wanted series.
    pub(crate) async fn load_for(&self, files: &[Arc<FileEntry>], wanted: &Wanted<'_>) -> Result<Vec<Arc<Run>>, StorageError> {
        let total: u64 = files.iter().map(|f| Self::decoded_bytes(f)).sum();
        // A query that needs more than half of the budget would push out what everybody else uses.
        let whole = total <= self.settings.resident_bytes_max / 2;
        // Owned entries: a closure over references makes futures that callers cannot prove to be `Send`.
        let mut reads = Vec::with_capacity(files.len());
        for entry in files {
            reads.push(self.load_one(entry, whole, wanted));
        }
        let runs: Vec<Option<Arc<Run>>> = stream::iter(reads).buffered(READS_MAX).try_collect().await?;
        Ok(runs.into_iter().flatten().collect())
    }

    async fn load_one(&self, entry: &Arc<FileEntry>, whole: bool, wanted: &Wanted<'_>) -> Result<Option<Arc<Run>>, StorageError> {
        if whole { self.load_file(entry).await.map(Some) } else { self.load_part(entry, wanted).await }
    }

    async fn load_part(&self, entry: &Arc<FileEntry>, wanted: &Wanted<'_>) -> Result<Option<Arc<Run>>, StorageError> {
        let ids = wanted.tenant.ids(entry.date, wanted.refs);
        let series: Vec<_> = self.registry.with(|all| wanted.refs.iter().map(|r| all[r.index()].clone()).collect());
        let keys: Vec<(&str, i64)> = series.iter().map(|s| s.labels.metric()).zip(ids).collect();
        let file = self.open_file(entry).await?;
        let selection = Selection { keys: &keys, from_ms: wanted.min_ms, to_ms: wanted.max_ms };
        let rows = read_selected(&file, &selection).await?;
        if rows.series.is_empty() {
            return Ok(None);
        }
        let refs = self.refs_of(entry, &rows).await?;
        Ok(Some(Arc::new(build(&rows, &refs))))
    }

    async fn open_file(&self, entry: &FileEntry) -> Result<Arc<OpenFile>, StorageError> {
        let known = self.open_files.lock().iter().find(|(path, _)| *path == entry.path).map(|(_, file)| file.clone());
        if let Some(file) = known {
            return Ok(file);
        }
        let file = Arc::new(self.source(Table::Samples, entry)?.open().await?);
        let mut files = self.open_files.lock();
        if files.len() >= OPEN_FILES_MAX {
            files.remove(0);
        }
        files.push((entry.path.clone(), file.clone()));
        Ok(file)
    }

    /// Loads the newest files of every tenant, newest dates first, as far as the budget goes. `dates_max`: how many dates of each tenant.
    /// What cannot be read now is left for the queries that need it: they name the file.
    pub(crate) async fn warm_up(&self, dates_max: usize) {
        let samples = self.state.read().samples.clone();
        let mut newest: Vec<(i32, TenantId)> = Vec::new();
        for tenant in samples.tenants() {
            newest.extend(samples.dates(tenant).rev().take(dates_max).map(|date| (date, tenant.clone())));
        }
        newest.sort_by(|a, b| b.cmp(a));
        for (date, tenant) in newest {
            match self.warm_day(&tenant, date).await {
                Ok(true) => {}
                Ok(false) => return,
                Err(error) => tracing::warn!(%tenant, date, %error, "stays on the store for now"),
            }
        }
    }

    /// Loads the files of a day; false when the budget is used up.
    async fn warm_day(&self, tenant: &TenantId, date: i32) -> Result<bool, StorageError> {
        let (series, mut cold) = {
            let state = self.state.read();
            (state.series.clone(), state.day(tenant, date).map(|day| day.cold.clone()).unwrap_or_default())
        };
        self.ensure_series(&self.tenant(tenant), &series, date..=date).await?;
        cold.sort_by_key(|f| std::cmp::Reverse(f.committed_ms));
        for file in cold {
            if self.state.read().resident_bytes + Self::decoded_bytes(&file) > self.settings.resident_bytes_max {
                return Ok(false);
            }
            if let Err(error) = self.load_file(&file).await {
                tracing::warn!(%error, "stays on the store for now");
            }
        }
        self.merge_resident(tenant, date).await;
        Ok(true)
    }

    /// What must be in memory before the first query.
    pub(crate) async fn warm_newest(&self) {
        self.warm_up(WARM_DATES).await;
    }

    /// Fills the retry index from the newest files: those committed within the last hour before the newest one. What cannot be read or does
    /// not fit is not checked: readers merge copies.
    pub(crate) async fn load_retry_index(&self) {
        let samples = self.state.read().samples.clone();
        let Some(newest) = samples.files().map(|f| f.committed_ms).max() else { return };
        let mut bytes = 0_u64;
        for file in samples.files().filter(|f| f.committed_ms >= newest.saturating_sub(RETRY_WINDOW_MS)) {
            bytes = bytes.saturating_add(Self::decoded_bytes(file));
            let runs = match self.resident_group(file) {
                Some(runs) => Ok(runs),
                None if bytes > self.settings.resident_bytes_max => continue,
                None => self.load_file(file).await.map(|run| vec![run]),
            };
            match runs {
                Ok(runs) => runs.iter().for_each(|run| self.note_times(run)),
                Err(error) => tracing::warn!(%error, "copies of its samples cannot be recognised at insertion"),
            }
        }
    }

    fn resident_group(&self, file: &FileEntry) -> Option<Vec<Arc<Run>>> {
        let state = self.state.read();
        let day = state.day(&file.tenant, file.date)?;
        day.resident.iter().find(|g| g.covers(&file.path)).map(|g| g.runs.clone())
    }

    fn note_times(&self, run: &Run) {
        let mut inserter = self.inserter.lock();
        for (series, times, _) in run.iter() {
            if let Some(&last) = times.last() {
                inserter.note_last(series, last);
            }
        }
    }
}

/// What a query wants of files.
#[derive(Debug)]
pub(crate) struct Wanted<'a> {
    pub(crate) tenant: &'a Tenant,
    pub(crate) refs: &'a [SeriesRef],
    pub(crate) min_ms: i64,
    pub(crate) max_ms: i64,
}

/// A run of decoded rows; series with equal times share them.
fn build(rows: &SamplesRows, refs: &[SeriesRef]) -> Run {
    let mut order: Vec<usize> = (0..refs.len().min(rows.series.len())).collect();
    let mut sorted = refs.to_vec();
    sorted.sort_unstable();
    if sorted.windows(2).any(|w| w[0] == w[1]) {
        // One series in several stretches: a selection makes them, and a label set that got two ids on one day.
        order.sort_by_key(|&i| refs[i]);
    }
    let mut writer = RunWriter::with_capacity(refs.len(), rows.times.len());
    for stretch in order.chunk_by(|&a, &b| refs[a] == refs[b]) {
        let piece = |&i: &usize| {
            let range = rows.series[i].rows.clone();
            Piece { times: &rows.times[range.clone()], values: &rows.values[range] }
        };
        let mut pieces: Vec<Piece<'_>> = stretch.iter().map(piece).collect();
        writer.push(refs[stretch[0]], &mut pieces);
    }
    writer.finish().0
}

fn ended(path: &str, error: &tokio::task::JoinError) -> StorageError {
    StorageError::Corrupt { path: path.to_owned(), why: format!("decoding it ended: {error}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parquet_file::SeriesRows;

    #[test]
    fn a_series_under_two_ids_of_a_file_is_one_series() {
        let row = |series_id, rows| SeriesRows { metric: "m".into(), series_id, rows };
        let series = vec![row(1, 0..2), row(2, 2..3), row(3, 3..5)];
        let rows = SamplesRows { series, times: vec![1, 2, 1, 2, 3], values: vec![1.0, 5.0, 9.0, 4.0, 3.0] };
        let run = build(&rows, &[SeriesRef(7), SeriesRef(3), SeriesRef(7)]);
        assert_eq!(run.series(SeriesRef(7)), Some((&[1, 2, 3][..], &[1.0, 5.0, 3.0][..])));
        assert_eq!(run.series(SeriesRef(3)), Some((&[1][..], &[9.0][..])));
    }
}
