//! The mark that a restore leaves in a store, and what it means for the bus that claims the store.
//!
//! ```text
//!  <store>/restored.json   {"state":"running"|"done", "snapshot", "bus", "keep_bus"}
//! ```
//!
//! A restored store stands at older offsets than the bus that wrote it. If that bus went on as if nothing had happened, it would either
//! find a gap or write again from old offsets by accident: so it has to be asked for (`keep_bus`).

use super::{failed, read_json};
use crate::StorageError;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use serde::{Deserialize, Serialize};

/// How far the restore is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum RestoreState {
    /// Objects are missing; nobody may use the store.
    Running,
    /// Everything is there.
    Done,
}

/// What a store was restored from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RestoreMark {
    pub(crate) state: RestoreState,
    pub(crate) snapshot: String,
    /// The bus that had claimed the store of the backup.
    pub(crate) bus: Option<String>,
    /// Whether that bus goes on here.
    pub(crate) keep_bus: bool,
}

fn path() -> Path {
    Path::from("restored.json")
}

/// The mark of a store, if it has one.
pub(crate) async fn read_mark(store: &dyn ObjectStore) -> Result<Option<RestoreMark>, StorageError> {
    read_json(store, &path()).await
}

/// Sets the mark.
pub(crate) async fn write_mark(store: &dyn ObjectStore, mark: &RestoreMark) -> Result<(), StorageError> {
    let bytes = serde_json::to_vec(mark).expect("a mark is plain texts");
    store.put(&path(), bytes.into()).await.map(drop).map_err(|source| failed("writing", &path(), source))
}

/// Whether `bus` may claim this store, as far as a restore is concerned.
pub(super) async fn check_claim(store: &dyn ObjectStore, bus: &str) -> Result<(), StorageError> {
    let Some(mark) = read_mark(store).await? else { return Ok(()) };
    let snapshot = &mark.snapshot;
    if mark.state == RestoreState::Running {
        let why = format!("a restore of snapshot `{snapshot}` into this store has not finished; run the same `fletch restore` again");
        return Err(StorageError::Conflict(why));
    }
    if !mark.keep_bus && mark.bus.as_deref() == Some(bus) {
        return Err(StorageError::Conflict(format!(
            "this store was restored from snapshot `{snapshot}` of bus `{bus}` and stands at older offsets than that bus; to begin with a new \
             bus, move the folder `log` of the data folder away (or give another topic); to read back what this bus has and the snapshot has \
             not, restore again with `--keep-bus`"
        )));
    }
    Ok(())
}
