//! The log folder of one table on the store: reading commits, finding where to start.
//!
//! A start lists `_delta_log` once, from the version that `_last_checkpoint` names on, so that a stale hint can never hide a gap: every
//! version between the checkpoint and the newest listed commit must be there.
//!
//! # When it fails
//! A damaged checkpoint is skipped for an older one or for the commits from 0 on, with a warning; when neither is complete the error
//! names what is missing. A damaged commit is an error that names its file: nothing after it can be known.

use super::action::CommitLog;
use super::checkpoint::{self, LastCheckpoint};
use super::file::corrupt;
use super::snapshot::Snapshot;
use crate::StorageError;
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use object_store::path::Path;
use object_store::{ObjectMeta, ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutResult};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Commits that are fetched at the same time while a table is opened.
const REPLAY_GETS_MAX: usize = 16;

/// The log folder of one table.
#[derive(Debug, Clone)]
pub(crate) struct Log {
    pub(crate) store: Arc<dyn ObjectStore>,
    pub(crate) root: Path,
    pub(crate) table: &'static str,
}

/// What a listing of the folder found.
#[derive(Debug, Default)]
pub(crate) struct Listing {
    pub(crate) commits: BTreeSet<i64>,
    /// Names of the parts of each checkpoint. Whether it is complete shows when it is read.
    pub(crate) checkpoints: BTreeMap<i64, Vec<String>>,
    pub(crate) objects: Vec<(i64, ObjectMeta)>,
}

impl Log {
    /// `_delta_log/<name>`.
    pub(crate) fn path(&self, name: &str) -> Path {
        self.root.clone().join("_delta_log").join(name)
    }

    /// `_delta_log/<version>.json`.
    pub(crate) fn commit_path(&self, version: i64) -> Path {
        self.path(&format!("{version:020}.json"))
    }

    /// The bytes of an object; `None` when there is none.
    pub(crate) async fn get(&self, path: &Path) -> Result<Option<Bytes>, StorageError> {
        let failed = |source| StorageError::ObjectStore { doing: "reading", path: path.clone(), source };
        match self.store.get(path).await {
            Ok(found) => found.bytes().await.map(Some).map_err(failed),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(source) => Err(failed(source)),
        }
    }

    /// The commit of a version; `None` when there is none.
    pub(crate) async fn read_commit(&self, version: i64) -> Result<Option<CommitLog>, StorageError> {
        let path = self.commit_path(version);
        let bytes = self.get(&path).await?;
        bytes.map(|bytes| CommitLog::parse(version, path.as_ref(), &bytes)).transpose()
    }

    /// Creates the commit of a version, if nobody has.
    pub(crate) async fn create_commit(&self, version: i64, bytes: Bytes) -> Result<PutResult, object_store::Error> {
        let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
        self.store.put_opts(&self.commit_path(version), bytes.into(), options).await
    }

    /// What `_last_checkpoint` says; `None` when there is none, or when it is damaged: it is a hint only.
    pub(crate) async fn last_checkpoint(&self) -> Result<Option<LastCheckpoint>, StorageError> {
        let path = self.path("_last_checkpoint");
        let Some(bytes) = self.get(&path).await? else { return Ok(None) };
        let hint = serde_json::from_slice(&bytes);
        if let Err(error) = &hint {
            tracing::warn!(table = self.table, %path, %error, "ignoring a damaged checkpoint hint");
        }
        Ok(hint.ok())
    }

    /// Lists the folder, from a version on.
    pub(crate) async fn list(&self, from: Option<i64>) -> Result<Listing, StorageError> {
        let folder = self.root.clone().join("_delta_log");
        let found = match from {
            Some(version) => self.store.list_with_offset(Some(&folder), &self.path(&format!("{version:020}"))),
            None => self.store.list(Some(&folder)),
        };
        let failed = |source| StorageError::ObjectStore { doing: "listing", path: folder.clone(), source };
        let objects: Vec<ObjectMeta> = found.try_collect().await.map_err(failed)?;
        let mut listing = Listing::default();
        for object in objects {
            let name = object.location.filename().unwrap_or_default().to_owned();
            let Some((version, kind)) = log_name(&name) else { continue };
            match kind {
                LogObject::Commit => drop(listing.commits.insert(version)),
                LogObject::Checkpoint => listing.checkpoints.entry(version).or_default().push(name),
            }
            listing.objects.push((version, object));
        }
        listing.checkpoints.values_mut().for_each(|parts| parts.sort());
        listing.objects.sort_by(|(a, x), (b, y)| a.cmp(b).then_with(|| x.location.cmp(&y.location)));
        Ok(listing)
    }

    /// The newest state of the table; `None` when there is no table.
    pub(crate) async fn bootstrap(&self) -> Result<Option<Snapshot>, StorageError> {
        let hint = self.last_checkpoint().await?;
        if let Some(hint) = &hint {
            let listing = self.list(Some(hint.version)).await?;
            if let Some(base) = self.newest_checkpoint(&listing, Some(hint)).await? {
                return self.replay(base, &listing).await.map(Some);
            }
            tracing::warn!(table = self.table, version = hint.version, "the last checkpoint cannot be used, looking for an older one");
        }
        let listing = self.list(None).await?;
        if listing.commits.is_empty() && listing.checkpoints.is_empty() {
            return Ok(None);
        }
        let base = match self.newest_checkpoint(&listing, hint.as_ref()).await? {
            Some(base) => base,
            None => Snapshot::empty(self.table),
        };
        self.replay(base, &listing).await.map(Some)
    }

    async fn newest_checkpoint(&self, listing: &Listing, hint: Option<&LastCheckpoint>) -> Result<Option<Snapshot>, StorageError> {
        for (&version, names) in listing.checkpoints.iter().rev() {
            let hash = hint.filter(|h| h.version == version).and_then(LastCheckpoint::hash);
            match self.read_checkpoint(version, names, hash).await {
                Ok(snapshot) => return Ok(Some(snapshot)),
                Err(error @ (StorageError::Corrupt { .. } | StorageError::Parquet { .. } | StorageError::Arrow { .. })) => {
                    tracing::warn!(table = self.table, version, %error, "skipping a damaged checkpoint");
                }
                Err(other) => return Err(other),
            }
        }
        Ok(None)
    }

    pub(crate) async fn read_checkpoint(
        &self,
        version: i64,
        names: &[String],
        hash: Option<super::FileHash>,
    ) -> Result<Snapshot, StorageError> {
        checkpoint::check_parts(&self.path(&names[0]), names)?;
        let mut snapshot = Snapshot::empty(self.table);
        for name in names {
            let path = self.path(name);
            let bytes = self.get(&path).await?.ok_or_else(|| corrupt(path.as_ref(), "it was listed and is gone"))?;
            if hash.is_some_and(|expected| names.len() == 1 && super::FileHash::of(&bytes) != expected) {
                return Err(corrupt(path.as_ref(), "its bytes do not have the hash that `_last_checkpoint` names"));
            }
            let actions = checkpoint::read_actions(path.as_ref(), bytes)?;
            snapshot.apply_actions(version, &actions)?;
        }
        match snapshot.metadata() {
            Some(_) => Ok(snapshot),
            None => Err(corrupt(self.path(&names[0]).as_ref(), "it has no metadata")),
        }
    }

    /// Applies every listed commit above the base, without a gap, and then whatever came after the listing.
    async fn replay(&self, mut state: Snapshot, listing: &Listing) -> Result<Snapshot, StorageError> {
        let newest = listing.commits.last().copied().unwrap_or(-1).max(state.version());
        let wanted = state.version() + 1..=newest;
        let mut commits = stream::iter(wanted).map(|version| async move {
            let found = self.read_commit(version).await?;
            found.ok_or_else(|| corrupt(self.commit_path(version).as_ref(), "the log needs it and it is gone"))
        });
        let mut commits = commits.by_ref().buffered(REPLAY_GETS_MAX);
        while let Some(commit) = commits.try_next().await? {
            state.apply(&commit)?;
        }
        while let Some(commit) = self.read_commit(state.version() + 1).await? {
            state.apply(&commit)?;
        }
        if state.metadata().is_none() || state.protocol().is_none() {
            return Err(corrupt(self.commit_path(0).as_ref(), "the log has no metadata or no protocol"));
        }
        Ok(state)
    }
}

enum LogObject {
    Commit,
    Checkpoint,
}

/// Version and kind of an object of the log folder.
fn log_name(name: &str) -> Option<(i64, LogObject)> {
    let (digits, rest) = name.split_at_checked(20)?;
    let version = digits.bytes().all(|b| b.is_ascii_digit()).then(|| digits.parse().ok())??;
    match rest {
        ".json" => Some((version, LogObject::Commit)),
        _ if rest.starts_with(".checkpoint.") && rest.ends_with(".parquet") => Some((version, LogObject::Checkpoint)),
        _ => None,
    }
}
