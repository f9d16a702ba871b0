//! What a backup holds, as its target knows it.
//!
//! ```text
//!  <target>/tables/<table>/tenant=…/date=…/<uuid>.parquet      data files, shared by all snapshots: their names are never used again
//!  <target>/snapshots/<id>/<table>/_delta_log/…                the log of one table at one version, object by object
//!  <target>/snapshots/<id>/metadata.sqlite                     alert states, when they are in SQLite
//!  <target>/snapshots/<id>/manifest.json                       created last: a snapshot without it does not exist
//! ```
//!
//! # Invariants
//! - **M1** A manifest is created when every object that it names is there, and never changes.
//! - **M2** It names size and hash of every object, and carries the hash of itself.

use crate::StorageError;
use crate::delta::FileHash;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, PutMode, PutOptions};
use serde::{Deserialize, Serialize};

/// The layout that this version writes, and the newest that it reads.
pub(super) const FORMAT: u32 = 1;

/// Most snapshots of one target that are looked at.
const SNAPSHOTS_MAX: usize = 100_000;

/// One backup: all tables at one version each.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Layout of the target.
    pub format: u32,
    /// Name of the snapshot: when it was taken, UTC. Later ones are larger.
    pub id: String,
    /// When it was taken, milliseconds.
    pub created_ms: i64,
    /// Which program wrote it.
    pub writer: String,
    /// The bus that had claimed the store.
    pub bus: Option<String>,
    /// In the order in which they were read: tiers, `samples`, `series`.
    pub tables: Vec<TableManifest>,
    /// The copy of the metadata store, when there is one.
    pub metadata: Option<MetadataCopy>,
}

/// One table of a [`Manifest`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableManifest {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: i64,
    /// Rows at that version.
    pub rows: u64,
    /// Data files, by path.
    pub files: Vec<StoredFile>,
    /// Objects of its log: checkpoints, commits, then `_last_checkpoint`.
    pub log: Vec<LogObject>,
}

/// A data file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredFile {
    /// Relative to the table.
    pub path: String,
    /// Bytes.
    pub size: u64,
    /// `xxh3-128:…` over all of them.
    pub hash: String,
}

/// An object of a log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogObject {
    /// Its name in `_delta_log`.
    pub name: String,
    /// Bytes.
    pub size: u64,
    /// `xxh3-128:…` over all of them.
    pub hash: String,
}

/// The copy of the metadata store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MetadataCopy {
    /// `sqlite`.
    pub kind: String,
    /// Bytes.
    pub size: u64,
    /// `xxh3-128:…` over all of them.
    pub hash: String,
}

#[derive(Debug, Serialize, Deserialize)]
struct Sealed {
    /// Over the manifest's JSON as we write it.
    hash: String,
    manifest: Manifest,
}

/// Complete snapshots of a backup target, oldest first.
///
/// # Errors
/// [`StorageError::ObjectStore`]; [`StorageError::Corrupt`] naming a manifest that is damaged or of a newer version.
pub async fn manifests(target: &dyn ObjectStore) -> Result<Vec<Manifest>, StorageError> {
    let folder = Path::from("snapshots");
    let listed = target.list_with_delimiter(Some(&folder)).await.map_err(|source| failed("listing", &folder, source))?;
    let mut ids: Vec<&str> = listed.common_prefixes.iter().filter_map(Path::filename).collect();
    ids.sort_unstable();
    if ids.len() > SNAPSHOTS_MAX {
        return Err(StorageError::Limit(format!("the target has more than {SNAPSHOTS_MAX} snapshots")));
    }
    let mut found = Vec::new();
    for id in ids {
        found.extend(read(target, id).await?);
    }
    Ok(found)
}

/// The manifest of a snapshot; `None` when it was never finished.
pub(super) async fn read(target: &dyn ObjectStore, id: &str) -> Result<Option<Manifest>, StorageError> {
    let path = path(id, "manifest.json");
    let bytes = match target.get(&path).await {
        Ok(found) => found.bytes().await.map_err(|source| failed("reading", &path, source))?,
        Err(object_store::Error::NotFound { .. }) => return Ok(None),
        Err(source) => return Err(failed("reading", &path, source)),
    };
    let corrupt = |why: String| StorageError::Corrupt { path: path.to_string(), why };
    let sealed: Sealed = serde_json::from_slice(&bytes).map_err(|e| corrupt(e.to_string()))?;
    if sealed.manifest.format > FORMAT {
        return Err(corrupt(format!("it has format {}, this version reads up to {FORMAT}: use a newer fletch", sealed.manifest.format)));
    }
    if sealed.hash != hash_of(&sealed.manifest) {
        return Err(corrupt("it does not have the hash that it names: use another snapshot (`--snapshot`)".to_owned()));
    }
    Ok(Some(sealed.manifest))
}

/// Makes a snapshot exist (M1).
pub(super) async fn create(target: &dyn ObjectStore, manifest: &Manifest) -> Result<(), StorageError> {
    let path = path(&manifest.id, "manifest.json");
    let sealed = Sealed { hash: hash_of(manifest), manifest: manifest.clone() };
    let bytes = serde_json::to_vec(&sealed).expect("a manifest is plain texts and numbers");
    let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
    let created = target.put_opts(&path, bytes.into(), options).await;
    match created {
        Ok(_) => Ok(()),
        // A lost answer: ours all the same, when it says the same.
        Err(error) => match read(target, &manifest.id).await {
            Ok(Some(stored)) if stored == *manifest => Ok(()),
            _ => Err(failed("creating", &path, error)),
        },
    }
}

/// An object of a snapshot.
pub(super) fn path(id: &str, name: &str) -> Path {
    Path::from(format!("snapshots/{id}/{name}"))
}

/// Where a snapshot keeps an object of a table's log.
pub(super) fn log_path(id: &str, table: &str, name: &str) -> Path {
    path(id, &format!("{table}/_delta_log/{name}"))
}

fn hash_of(manifest: &Manifest) -> String {
    FileHash::of(&serde_json::to_vec(manifest).expect("a manifest is plain texts and numbers")).to_string()
}

pub(super) fn failed(doing: &'static str, path: &Path, source: object_store::Error) -> StorageError {
    StorageError::ObjectStore { doing, path: path.clone(), source }
}

/// Reads an object whose size and hash are known.
pub(super) async fn read_checked(store: &dyn ObjectStore, path: &Path, size: u64, hash: &str) -> Result<bytes::Bytes, StorageError> {
    let found = store.get(path).await.map_err(|source| failed("reading", path, source))?;
    let bytes = found.bytes().await.map_err(|source| failed("reading", path, source))?;
    let found = (bytes.len() as u64, FileHash::of(&bytes).to_string());
    if found != (size, hash.to_owned()) {
        let why = format!("it has {} bytes with hash {}, the manifest says {size} with {hash}", found.0, found.1);
        return Err(StorageError::Corrupt { path: path.to_string(), why });
    }
    Ok(bytes)
}

/// Writes an object, whatever stands there.
pub(super) async fn put(store: &dyn ObjectStore, path: &Path, bytes: bytes::Bytes) -> Result<(), StorageError> {
    store.put(path, bytes.into()).await.map(drop).map_err(|source| failed("writing", path, source))
}
