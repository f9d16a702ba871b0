//! Tables as somebody sees them who only reads: whatever is below `tables/`, without creating, claiming or locking anything.
//!
//! A server may commit, check-point and clean the log up meanwhile. A clean-up between the listing of a log and the reading of its commits
//! looks like a gap, so opening is tried again a few times before it counts as damage.
//!
//! # Not here
//! What a table means (`crate::tools`), writing.

use super::action::CommitLog;
use super::log::{Listing, Log};
use super::snapshot::Snapshot;
use crate::StorageError;
use futures::TryStreamExt;
use object_store::path::Path;
use object_store::{ObjectMeta, ObjectStore};
use parking_lot::Mutex;
use std::collections::BTreeSet;
use std::sync::Arc;

/// How often opening is tried against a log that is being cleaned up.
const OPEN_ATTEMPTS_MAX: u32 = 3;

/// Most tables of one store.
const TABLES_MAX: usize = 256;

/// A table to read.
#[derive(Debug, Clone)]
pub struct TableReader {
    pub(crate) log: Log,
}

impl TableReader {
    /// Every folder below `tables/` of a store, ascending by name.
    ///
    /// # Errors
    /// [`StorageError::ObjectStore`]; [`StorageError::Limit`] above [`TABLES_MAX`].
    pub async fn all(store: &Arc<dyn ObjectStore>) -> Result<Vec<Self>, StorageError> {
        let folder = Path::from("tables");
        let failed = |source| StorageError::ObjectStore { doing: "listing", path: folder.clone(), source };
        let listed = store.list_with_delimiter(Some(&folder)).await.map_err(failed)?;
        if listed.common_prefixes.len() > TABLES_MAX {
            return Err(StorageError::Limit(format!("`tables/` has more than {TABLES_MAX} folders: this is not a store of ours")));
        }
        let mut names: Vec<String> = listed.common_prefixes.iter().filter_map(|p| p.filename().map(str::to_owned)).collect();
        names.sort();
        Ok(names.iter().map(|name| Self::new(store.clone(), name)).collect())
    }

    /// The table of this name, whether it is there or not.
    pub fn new(store: Arc<dyn ObjectStore>, name: &str) -> Self {
        Self { log: Log { store, root: Path::from_iter(["tables", name]), table: known_name(name) } }
    }

    /// Its name.
    pub fn name(&self) -> &'static str {
        self.log.table
    }

    /// Its folder.
    pub fn root(&self) -> &Path {
        &self.log.root
    }

    /// The store that it lives on.
    pub fn store(&self) -> &Arc<dyn ObjectStore> {
        &self.log.store
    }

    /// Its newest state; `None` when there is no log.
    ///
    /// # Errors
    /// [`StorageError::ObjectStore`], [`StorageError::Corrupt`], [`StorageError::Protocol`].
    pub async fn snapshot(&self) -> Result<Option<Snapshot>, StorageError> {
        let mut attempt = 1;
        loop {
            match self.log.bootstrap().await {
                Err(StorageError::Corrupt { path, why }) if attempt < OPEN_ATTEMPTS_MAX => {
                    tracing::debug!(table = self.name(), path, why, attempt, "the log may have been cleaned up meanwhile: once more");
                    attempt += 1;
                }
                outcome => return outcome,
            }
        }
    }

    /// The commit of a version; `None` when there is none.
    ///
    /// # Errors
    /// [`StorageError::ObjectStore`], [`StorageError::Corrupt`].
    pub async fn commit(&self, version: i64) -> Result<Option<CommitLog>, StorageError> {
        self.log.read_commit(version).await
    }

    /// Objects of the log folder.
    pub(crate) async fn listing(&self) -> Result<Listing, StorageError> {
        self.log.list(None).await
    }

    /// Every object of the table that is not part of its log, by path relative to the table.
    ///
    /// # Errors
    /// [`StorageError::ObjectStore`].
    pub async fn data_objects(&self) -> Result<Vec<(String, ObjectMeta)>, StorageError> {
        let root = self.root().clone();
        let failed = |source| StorageError::ObjectStore { doing: "listing", path: root.clone(), source };
        let all: Vec<ObjectMeta> = self.log.store.list(Some(&root)).try_collect().await.map_err(failed)?;
        let prefix = format!("{root}/");
        let relative = |meta: ObjectMeta| Some((meta.location.as_ref().strip_prefix(&prefix)?.to_owned(), meta));
        Ok(all.into_iter().filter_map(relative).filter(|(path, _)| !path.starts_with("_delta_log/")).collect())
    }

    /// Where a path of this table is on the store.
    ///
    /// # Errors
    /// [`StorageError::Corrupt`] when the path leaves the table.
    pub fn object_path(&self, path: &str) -> Result<Path, StorageError> {
        Path::parse(format!("{}/{path}", self.log.root)).map_err(|e| super::file::corrupt(path, e.to_string()))
    }
}

/// A table's name that lives as long as the process, as errors want it. Each name is kept once, and a store has few.
fn known_name(name: &str) -> &'static str {
    static NAMES: Mutex<BTreeSet<&'static str>> = Mutex::new(BTreeSet::new());
    let mut names = NAMES.lock();
    if let Some(known) = names.get(name) {
        return known;
    }
    // A bound for whoever opens tables by names that users type.
    if names.len() >= 4 * TABLES_MAX {
        return "table";
    }
    let kept: &'static str = Box::leak(name.to_owned().into_boxed_str());
    names.insert(kept);
    kept
}
