//! A backup becomes a store again.
//!
//! ```text
//!  mark "running" ─▶ data files ─▶ logs of series, samples, tiers ─▶ (bus.json) ─▶ read every table ─▶ mark "done"
//! ```
//!
//! Every object is compared with the manifest's hash on its way. Until the mark says "done" no server can claim the store, and a restore that
//! was interrupted goes on where it was. Tables come back with their versions, so cursors of tiers and other readers' positions stay right.
//!
//! The new store belongs to nobody: the first server claims it for its own bus, whose offsets begin anew. Offsets of the old bus stay in the
//! tables and mean nothing any more; those of foreign topics (`src:…`) go on. With `keep_bus` the old bus goes on as well, and reads back
//! what it has and the snapshot has not.

use super::manifest::{self, failed, log_path, put, read_checked};
use super::{Manifest, Progress, StoredFile, TableManifest};
use crate::StorageError;
use crate::delta::TableReader;
use crate::delta::store::{RestoreMark, RestoreState, claimed_bus, read_mark, write_claim, write_mark};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use object_store::ObjectStore;
use serde::Serialize;
use std::collections::HashMap;
use std::sync::Arc;

use super::backup::COPIES_AT_ONCE;

/// What to bring back.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RestoreOptions {
    /// Which snapshot; `None` = the newest.
    pub snapshot: Option<String>,
    /// Let the bus of the backup go on with the new store.
    pub keep_bus: bool,
}

/// What was brought back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RestoreReport {
    /// The snapshot.
    pub manifest: Manifest,
    /// Data files that were copied.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Data files that an interrupted restore had copied.
    pub present_files: u64,
}

/// Brings a snapshot of `from` back into the empty store `to`.
///
/// # Errors
/// [`StorageError::Conflict`] when there is no such snapshot or the store is not empty, [`StorageError::Corrupt`] naming a damaged object of
/// the backup, [`StorageError::ObjectStore`]. Run it again to go on.
pub async fn restore(
    from: &Arc<dyn ObjectStore>,
    to: &Arc<dyn ObjectStore>,
    options: &RestoreOptions,
    progress: &dyn Progress,
) -> Result<RestoreReport, StorageError> {
    let manifest = choose(from.as_ref(), options.snapshot.as_deref()).await?;
    if options.keep_bus && manifest.bus.is_none() {
        return Err(StorageError::Conflict(format!(
            "snapshot `{}` had no bus, so there is none to keep: leave out --keep-bus",
            manifest.id
        )));
    }
    let (snapshot, bus) = (manifest.id.clone(), manifest.bus.clone());
    let mark = RestoreMark { state: RestoreState::Running, snapshot, bus, keep_bus: options.keep_bus };
    begin(to, &mark).await?;
    let mut report = RestoreReport { manifest, files: 0, bytes: 0, present_files: 0 };
    copy_files(from, to, &mut report, progress).await?;
    // Labels before samples, samples before what was computed from them.
    for table in report.manifest.tables.iter().rev() {
        copy_log(from, to, &report.manifest.id, table).await?;
    }
    for table in &report.manifest.tables {
        check_table(to, table).await?;
    }
    if let Some(bus) = mark.bus.as_deref().filter(|_| mark.keep_bus) {
        write_claim(to.as_ref(), bus).await?;
    }
    write_mark(to.as_ref(), &RestoreMark { state: RestoreState::Done, ..mark }).await?;
    Ok(report)
}

/// The copy of the metadata store that a snapshot holds, checked; `None` when it has none.
///
/// # Errors
/// [`StorageError::Corrupt`], [`StorageError::ObjectStore`].
pub async fn metadata_of(from: &dyn ObjectStore, manifest: &Manifest) -> Result<Option<Bytes>, StorageError> {
    let Some(copy) = &manifest.metadata else { return Ok(None) };
    read_checked(from, &manifest::path(&manifest.id, "metadata.sqlite"), copy.size, &copy.hash).await.map(Some)
}

/// The snapshot that is asked for.
///
/// # Errors
/// [`StorageError::Conflict`] when there is none, naming those that are there.
pub async fn choose(from: &dyn ObjectStore, id: Option<&str>) -> Result<Manifest, StorageError> {
    let mut all = manifest::manifests(from).await?;
    let at = match id {
        None => all.len().checked_sub(1),
        Some(id) => all.iter().position(|m| m.id == id),
    };
    match (at, id) {
        (Some(at), _) => Ok(all.swap_remove(at)),
        (None, None) => Err(StorageError::Conflict("there is no complete snapshot in this place: was the backup finished?".to_owned())),
        (None, Some(id)) => {
            let newest: Vec<&str> = all.iter().rev().take(10).map(|m| m.id.as_str()).collect();
            let there = if newest.is_empty() { "there is none".to_owned() } else { format!("the newest are {}", newest.join(", ")) };
            Err(StorageError::Conflict(format!("there is no complete snapshot `{id}` in this place; {there}")))
        }
    }
}

/// Marks the empty store, or finds the mark of the same restore in it.
async fn begin(to: &Arc<dyn ObjectStore>, mark: &RestoreMark) -> Result<(), StorageError> {
    match read_mark(to.as_ref()).await? {
        Some(there) if there == *mark => return Ok(()),
        Some(there) if there.state == RestoreState::Running => {
            let why = format!(
                "a restore of snapshot `{}` into this store has not finished: run that one again, or empty the store",
                there.snapshot
            );
            return Err(StorageError::Conflict(why));
        }
        _ => {}
    }
    let mut objects = to.list(None);
    let first = objects.try_next().await.map_err(|source| failed("listing", &object_store::path::Path::default(), source))?;
    if let Some(object) = first {
        let why = format!("the store is not empty (`{}` is in it): restore into an empty folder or prefix", object.location);
        return Err(StorageError::Conflict(why));
    }
    if let Some(bus) = claimed_bus(to.as_ref()).await? {
        return Err(StorageError::Conflict(format!("bus `{bus}` has claimed the store: restore into an empty folder or prefix")));
    }
    write_mark(to.as_ref(), mark).await
}

async fn copy_files(
    from: &Arc<dyn ObjectStore>,
    to: &Arc<dyn ObjectStore>,
    report: &mut RestoreReport,
    progress: &dyn Progress,
) -> Result<(), StorageError> {
    let mut missing: Vec<(TableReader, StoredFile)> = Vec::new();
    for table in &report.manifest.tables {
        let reader = TableReader::new(to.clone(), &table.name);
        let there: HashMap<String, u64> = reader.data_objects().await?.into_iter().map(|(path, meta)| (path, meta.size)).collect();
        let absent = table.files.iter().filter(|f| there.get(&f.path) != Some(&f.size));
        missing.extend(absent.map(|f| (reader.clone(), f.clone())));
        report.present_files += table.files.len() as u64;
    }
    report.present_files -= missing.len() as u64;
    progress.begin("files", missing.len() as u64, missing.iter().map(|(_, f)| f.size).sum());
    let mut copies = stream::iter(missing)
        .map(|(reader, file)| async move {
            let path = reader.object_path(&file.path)?;
            let bytes = read_checked(from.as_ref(), &path, file.size, &file.hash).await?;
            put(to.as_ref(), &path, bytes).await?;
            Ok::<_, StorageError>(file.size)
        })
        .buffer_unordered(COPIES_AT_ONCE);
    while let Some(size) = copies.next().await {
        let size = size?;
        progress.advance(size);
        report.files += 1;
        report.bytes += size;
    }
    Ok(())
}

async fn copy_log(from: &Arc<dyn ObjectStore>, to: &Arc<dyn ObjectStore>, id: &str, table: &TableManifest) -> Result<(), StorageError> {
    let reader = TableReader::new(to.clone(), &table.name);
    for object in &table.log {
        let bytes = read_checked(from.as_ref(), &log_path(id, &table.name, &object.name), object.size, &object.hash).await?;
        put(to.as_ref(), &reader.log.path(&object.name), bytes).await?;
    }
    Ok(())
}

/// The restored log leads to the version and rows of the manifest, and every file that it names is there.
async fn check_table(to: &Arc<dyn ObjectStore>, table: &TableManifest) -> Result<(), StorageError> {
    let reader = TableReader::new(to.clone(), &table.name);
    let corrupt = |why: String| StorageError::Corrupt { path: reader.root().to_string(), why };
    let snapshot = reader.snapshot().await?.ok_or_else(|| corrupt("it has no log after the restore".to_owned()))?;
    if (snapshot.version(), snapshot.totals().rows) != (table.version, table.rows) {
        let why = format!("it stands at version {} after the restore, the backup at {}", snapshot.version(), table.version);
        return Err(corrupt(why));
    }
    let there: HashMap<String, u64> = reader.data_objects().await?.into_iter().map(|(path, meta)| (path, meta.size)).collect();
    match snapshot.files().find(|f| there.get(&f.path) != Some(&f.size)) {
        Some(file) => Err(corrupt(format!("`{}` is not there after the restore: the backup is not whole", file.path))),
        None => Ok(()),
    }
}
