//! A consistent copy of all tables, beside a running server, file by file.
//!
//! ```text
//!  1  tiers, samples, series (O2): version, and the log up to it  ─▶ snapshots/<id>/<table>/_delta_log
//!  2  data files that the target does not have yet                ─▶ tables/<table>/…          hash checked on the way
//!  3  one listing per table: everything is there with its size
//!  4  manifest                                                    ─▶ snapshots/<id>/manifest.json
//! ```
//!
//! Data files never change and their names are never used again, so the next backup into the same target copies only what is new, and one
//! that was interrupted has lost nothing but its log objects. Logs are copied as they are, with their versions: cursors of tiers name
//! versions of `samples`, and stay right. Files that `samples` has replaced but a tier has not consumed go along.
//!
//! What is acknowledged and not yet flushed is in the bus only, and so not in the backup.
//!
//! # When it fails
//! No manifest is written, and the next backup goes on. A source file that is damaged stops the backup with its name: a copy of it would
//! hide the damage.

use super::manifest::{self, FORMAT, failed, log_path, put, read_checked};
use super::{LogObject, Manifest, MetadataCopy, Progress, StoredFile, TableManifest, tables_in_reading_order};
use crate::StorageError;
use crate::delta::{FileEntry, FileHash, Snapshot, TableReader};
use crate::parquet_file::FileSource;
use crate::tiers::Tier;
use bytes::Bytes;
use chrono::DateTime;
use fletch_common::SharedClock;
use futures::{StreamExt, stream};
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use serde::Serialize;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// Files that are copied at the same time; each is in memory as a whole.
pub const COPIES_AT_ONCE: usize = 2;
/// How often a log is read while a server cleans it up.
const CAPTURE_ATTEMPTS_MAX: u32 = 3;

/// What a backup does beside copying.
#[derive(Debug, Clone, Default)]
pub struct BackupOptions {
    /// Reads everything back from the target and compares hashes, files of earlier backups included, before the manifest is written.
    pub check: bool,
    /// A copy of the metadata store (SQLite).
    pub metadata: Option<Bytes>,
}

/// What a backup did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct BackupReport {
    /// What the target now has.
    pub manifest: Manifest,
    /// Files that were copied.
    pub copied_files: u64,
    /// Their bytes.
    pub copied_bytes: u64,
    /// Files that the target had.
    pub present_files: u64,
    /// Their bytes.
    pub present_bytes: u64,
    /// When the newest commit of `samples` was made, milliseconds: what was acknowledged later may be in the bus only.
    pub samples_until_ms: Option<i64>,
}

/// A table at the version that is copied.
struct Captured {
    reader: TableReader,
    snapshot: Snapshot,
    log: Vec<LogObject>,
    /// Files that left the table and that a tier still needs.
    extra: Vec<Arc<FileEntry>>,
}

/// Copies all tables of `source` to `target`.
///
/// # Errors
/// [`StorageError::Corrupt`] naming a damaged file, [`StorageError::ObjectStore`] naming what could not be read or written,
/// [`StorageError::Conflict`] when the source has no tables.
pub async fn backup(
    source: &Arc<dyn ObjectStore>,
    target: &Arc<dyn ObjectStore>,
    options: &BackupOptions,
    clock: &SharedClock,
    progress: &dyn Progress,
) -> Result<BackupReport, StorageError> {
    let created_ms = clock.now_ms();
    let id = DateTime::from_timestamp_millis(created_ms).unwrap_or_default().format("%Y%m%dT%H%M%S%.3fZ").to_string();
    if manifest::read(target.as_ref(), &id).await?.is_some() {
        return Err(StorageError::Conflict(format!("the target has a snapshot `{id}` already; try again")));
    }
    let mut captured = capture_all(source, target, &id, progress).await?;
    let samples_until_ms = keep_for_tiers(&mut captured).await?;
    let mut report = BackupReport {
        manifest: Manifest {
            format: FORMAT,
            id: id.clone(),
            created_ms,
            writer: concat!("fletch/", env!("CARGO_PKG_VERSION")).to_owned(),
            bus: crate::delta::store::claimed_bus(source.as_ref()).await?,
            tables: Vec::new(),
            metadata: None,
        },
        copied_files: 0,
        copied_bytes: 0,
        present_files: 0,
        present_bytes: 0,
        samples_until_ms,
    };
    copy_files(captured, target, &mut report, progress).await?;
    if let Some(bytes) = &options.metadata {
        put(target.as_ref(), &manifest::path(&id, "metadata.sqlite"), bytes.clone()).await?;
        let hash = FileHash::of(bytes).to_string();
        report.manifest.metadata = Some(MetadataCopy { kind: "sqlite".to_owned(), size: bytes.len() as u64, hash });
    }
    check_target(target, &report.manifest, options.check, progress).await?;
    manifest::create(target.as_ref(), &report.manifest).await?;
    Ok(report)
}

async fn capture_all(
    source: &Arc<dyn ObjectStore>,
    target: &Arc<dyn ObjectStore>,
    id: &str,
    progress: &dyn Progress,
) -> Result<Vec<Captured>, StorageError> {
    let tables = tables_in_reading_order(source).await?;
    progress.begin("logs", tables.len() as u64, 0);
    let mut captured = Vec::new();
    for reader in tables {
        captured.extend(capture(reader, target, id).await?);
        progress.advance(0);
    }
    if captured.is_empty() {
        return Err(StorageError::Conflict("there are no tables to back up in this store".to_owned()));
    }
    Ok(captured)
}

/// The newest version of a table, with its log copied; `None` for a folder without a log.
async fn capture(reader: TableReader, target: &Arc<dyn ObjectStore>, id: &str) -> Result<Option<Captured>, StorageError> {
    let mut attempt = 1;
    loop {
        let Some(snapshot) = reader.snapshot().await? else { return Ok(None) };
        match copy_log(&reader, snapshot.version(), target, id).await {
            Ok(log) => return Ok(Some(Captured { reader, snapshot, log, extra: Vec::new() })),
            Err(StorageError::ObjectStore { source: object_store::Error::NotFound { .. }, path, .. }) if attempt < CAPTURE_ATTEMPTS_MAX => {
                tracing::debug!(table = reader.name(), %path, "the log was cleaned up meanwhile: once more");
                attempt += 1;
            }
            Err(error) => return Err(error),
        }
    }
}

/// Copies what a log has up to `version`: checkpoints, commits, and the hint where it names one of these checkpoints.
async fn copy_log(reader: &TableReader, version: i64, target: &Arc<dyn ObjectStore>, id: &str) -> Result<Vec<LogObject>, StorageError> {
    let listing = reader.listing().await?;
    let mut names: Vec<String> = listing.checkpoints.range(..=version).flat_map(|(_, parts)| parts.iter().cloned()).collect();
    names.extend(listing.commits.range(..=version).map(|v| format!("{v:020}.json")));
    if reader.log.last_checkpoint().await?.is_some_and(|hint| hint.version <= version && listing.checkpoints.contains_key(&hint.version)) {
        names.push("_last_checkpoint".to_owned());
    }
    let mut copied = Vec::with_capacity(names.len());
    for name in names {
        let path = reader.log.path(&name);
        let found = reader.store().get(&path).await.map_err(|source| failed("reading", &path, source))?;
        let bytes = found.bytes().await.map_err(|source| failed("reading", &path, source))?;
        copied.push(LogObject { name: name.clone(), size: bytes.len() as u64, hash: FileHash::of(&bytes).to_string() });
        put(target.as_ref(), &log_path(id, reader.name(), &name), bytes).await?;
    }
    Ok(copied)
}

/// Adds to `samples` what commits brought that a tier has not consumed, where another commit has removed it since. Answers when the newest
/// commit was made.
async fn keep_for_tiers(captured: &mut [Captured]) -> Result<Option<i64>, StorageError> {
    let cursors = captured.iter().flat_map(|c| c.snapshot.txns()).filter(|(app, _)| is_cursor(app));
    let consumed = cursors.map(|(_, version)| version).min();
    let Some(samples) = captured.iter_mut().find(|c| c.reader.name() == "samples") else { return Ok(None) };
    let newest = samples.reader.commit(samples.snapshot.version()).await?;
    let until = newest.as_ref().and_then(|commit| commit.info()).map(|info| info.timestamp);
    let Some(consumed) = consumed else { return Ok(until) };
    let listing = samples.reader.listing().await?;
    let first = listing.commits.first().copied().unwrap_or(0);
    for version in (consumed + 1).max(first)..=samples.snapshot.version() {
        let Some(commit) = samples.reader.commit(version).await? else { continue };
        for add in commit.actions.iter().filter_map(|a| a.add.as_ref()).filter(|add| add.data_change) {
            let entry = FileEntry::from_add(add)
                .map_err(|why| StorageError::Corrupt { path: samples.reader.log.commit_path(version).to_string(), why })?;
            if !samples.snapshot.holds(&entry) {
                samples.extra.push(Arc::new(entry));
            }
        }
    }
    Ok(until)
}

/// Whether a transaction names a version of `samples` that a tier has consumed, not a time.
fn is_cursor(app_id: &str) -> bool {
    Tier::ALL.iter().any(|tier| app_id == tier.cursor() || app_id == tier.late())
}

/// A file to copy, and whether it may be gone.
type Wanted = (Arc<FileEntry>, bool);

async fn copy_files(
    captured: Vec<Captured>,
    target: &Arc<dyn ObjectStore>,
    report: &mut BackupReport,
    progress: &dyn Progress,
) -> Result<(), StorageError> {
    let mut jobs = Vec::new();
    for table in captured {
        let there: HashMap<String, u64> = TableReader::new(target.clone(), table.reader.name())
            .data_objects()
            .await?
            .into_iter()
            .map(|(path, meta)| (path, meta.size))
            .collect();
        let all: Vec<Wanted> =
            table.snapshot.files().map(|f| (f.clone(), false)).chain(table.extra.iter().map(|f| (f.clone(), true))).collect();
        // Without a hash in the log there is nothing to trust a copy by: it is made again.
        let (present, missing): (Vec<Wanted>, Vec<Wanted>) =
            all.into_iter().partition(|(f, _)| f.hash.is_some() && there.get(&f.path) == Some(&f.size));
        report.present_files += present.len() as u64;
        report.present_bytes += present.iter().map(|(f, _)| f.size).sum::<u64>();
        jobs.push((table, present, missing));
    }
    let missing = || jobs.iter().flat_map(|(_, _, missing)| missing);
    progress.begin("files", missing().count() as u64, missing().map(|(f, _)| f.size).sum());
    for (table, present, missing) in jobs {
        let mut files: BTreeMap<String, StoredFile> = BTreeMap::new();
        let kept = present.iter().filter_map(|(f, _)| Some(StoredFile { path: f.path.clone(), size: f.size, hash: f.hash?.to_string() }));
        files.extend(kept.map(|f| (f.path.clone(), f)));
        let reader = &table.reader;
        let mut copies = stream::iter(missing).map(|wanted| copy_file(reader, target, wanted)).buffer_unordered(COPIES_AT_ONCE);
        while let Some(copied) = copies.next().await {
            let Some(file) = copied? else { continue };
            progress.advance(file.size);
            report.copied_files += 1;
            report.copied_bytes += file.size;
            files.insert(file.path.clone(), file);
        }
        drop(copies);
        report.manifest.tables.push(TableManifest {
            name: reader.name().to_owned(),
            version: table.snapshot.version(),
            rows: table.snapshot.totals().rows,
            files: files.into_values().collect(),
            log: table.log,
        });
    }
    Ok(())
}

/// Copies one file after checking it; `None` when it may be gone and is.
async fn copy_file(reader: &TableReader, target: &Arc<dyn ObjectStore>, wanted: Wanted) -> Result<Option<StoredFile>, StorageError> {
    let (file, may_be_gone) = wanted;
    let path = reader.object_path(&file.path)?;
    let bytes = match FileSource::object(reader.store().clone(), path.clone(), &file).bytes().await {
        Ok(bytes) => bytes,
        Err(StorageError::ObjectStore { source: object_store::Error::NotFound { .. }, .. }) if may_be_gone => return Ok(None),
        Err(error) => return Err(error),
    };
    let stored = StoredFile { path: file.path.clone(), size: file.size, hash: FileHash::of(&bytes).to_string() };
    put(target.as_ref(), &path, bytes).await?;
    Ok(Some(stored))
}

/// Everything that a manifest names is on the target.
async fn check_target(
    target: &Arc<dyn ObjectStore>,
    manifest: &Manifest,
    with_hashes: bool,
    progress: &dyn Progress,
) -> Result<(), StorageError> {
    for table in &manifest.tables {
        let reader = TableReader::new(target.clone(), &table.name);
        let there: HashMap<String, u64> = reader.data_objects().await?.into_iter().map(|(path, meta)| (path, meta.size)).collect();
        if let Some(file) = table.files.iter().find(|f| there.get(&f.path) != Some(&f.size)) {
            let why = format!("it was copied to the target and is not there with its {} bytes", file.size);
            return Err(StorageError::Corrupt { path: file.path.clone(), why });
        }
    }
    if !with_hashes {
        return Ok(());
    }
    let files = || manifest.tables.iter().flat_map(|t| t.files.iter().map(move |f| (t, f)));
    progress.begin("reading back", files().count() as u64, files().map(|(_, f)| f.size).sum());
    for (table, file) in files() {
        let path = Path::parse(format!("tables/{}/{}", table.name, file.path))
            .map_err(|e| StorageError::Corrupt { path: file.path.clone(), why: e.to_string() })?;
        read_checked(target.as_ref(), &path, file.size, &file.hash).await?;
        progress.advance(file.size);
    }
    Ok(())
}
