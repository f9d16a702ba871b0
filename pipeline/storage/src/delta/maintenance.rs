//! What the maintenance role does to a table: checkpoints, log clean-up, vacuum. Never inside of a commit.
//!
//! Each step is safe to repeat and safe beside another maintainer: checkpoints of one version are equal, deletions are of things that
//! the log itself has given up.
//!
//! # Not here
//! When to run (a lease and a timer: `engine`), retention and compaction (commits like any other).

use super::checkpoint;
use super::file::RemovedFile;
use super::log::Log;
use super::table::{CHECKPOINT_EVERY_COMMITS, DeltaTable};
use crate::StorageError;
use futures::{StreamExt, stream};
use object_store::ObjectStoreExt;
use object_store::path::Path;
use std::time::Duration;

/// Tombstones stay in checkpoints this long after their files' bytes may go, so that other processes' vacuums do not miss them.
const TOMBSTONES_KEPT_LONGER: Duration = Duration::from_secs(24 * 60 * 60);

/// A tombstone whose bytes nobody could delete for so long (a follower that never came back) leaves all the same: the log must stay small.
const TOMBSTONES_KEPT_MAX: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// Files that are deleted at the same time.
const DELETES_MAX: usize = 16;

/// What a vacuum may delete.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vacuum {
    /// Only files that were removed at least so long ago; zero when no other process shares the store and no view is open.
    pub older_than: Duration,
    /// Only files that this version or an earlier one removed: what the slowest follower of the table has consumed.
    pub removed_by_max: Option<i64>,
}

/// What a vacuum did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct VacuumReport {
    /// Files whose bytes are gone now.
    pub files: u64,
    /// Their bytes, as far as known.
    pub bytes: u64,
    /// Files that are still too young, in use or not consumed.
    pub kept: u64,
}

impl DeltaTable {
    /// The vacuum that this table's options ask for.
    pub fn vacuum_by_options(&self) -> Vacuum {
        Vacuum { older_than: self.options.removed_retention, removed_by_max: None }
    }

    /// Writes a checkpoint if [`CHECKPOINT_EVERY_COMMITS`] commits came since the last one. Returns its version.
    ///
    /// # Errors
    /// [`StorageError::ObjectStore`] and what reading the log may give; the table stays readable by its commits.
    pub async fn checkpoint_if_due(&self) -> Result<Option<i64>, StorageError> {
        let last = self.log.last_checkpoint().await?.map_or(-1, |hint| hint.version);
        let due = self.refresh().await?.version() - last >= CHECKPOINT_EVERY_COMMITS;
        if due { self.checkpoint().await.map(Some) } else { Ok(None) }
    }

    /// Writes a checkpoint of the newest version and returns that version.
    ///
    /// # Errors
    /// As [`checkpoint_if_due`](Self::checkpoint_if_due).
    pub async fn checkpoint(&self) -> Result<i64, StorageError> {
        self.refresh().await?;
        let age = |file: &RemovedFile| self.clock.now_ms().saturating_sub(file.removed_ms);
        let kept = millis(self.options.removed_retention + TOMBSTONES_KEPT_LONGER);
        let vacuumed = self.vacuumed.lock().clone();
        let forget = |file: &RemovedFile| age(file) > kept && (vacuumed.contains(&file.path) || age(file) > millis(TOMBSTONES_KEPT_MAX));
        self.amend(|snapshot| snapshot.forget_removed(forget)).await;
        let snapshot = self.snapshot();
        self.forget_vacuumed(&snapshot);
        let path = self.log.path(&format!("{:020}.checkpoint.parquet", snapshot.version()));
        let (bytes, hint) = checkpoint::write(&path, &snapshot)?;
        put(&self.log, &path, bytes).await?;
        let newest = self.log.last_checkpoint().await?;
        if newest.is_none_or(|other| other.version <= hint.version) {
            let text = serde_json::to_vec(&hint).expect("a checkpoint hint is plain numbers and texts");
            put(&self.log, &self.log.path("_last_checkpoint"), text).await?;
        }
        Ok(snapshot.version())
    }

    /// Deletes commits and checkpoints below the newest checkpoint that are older than the log retention, oldest first, and stops at the
    /// first one that has to stay: the rest of the log has no gap. `keep_from` protects what a follower has not read yet. Returns how many.
    ///
    /// # Errors
    /// [`StorageError::ObjectStore`].
    pub async fn cleanup_log(&self, keep_from: Option<i64>) -> Result<u64, StorageError> {
        let Some(hint) = self.log.last_checkpoint().await? else { return Ok(0) };
        let below = keep_from.map_or(hint.version, |keep| keep.min(hint.version));
        let before = self.clock.now_ms().saturating_sub(millis(self.options.log_retention));
        let listing = self.log.list(None).await?;
        if !listing.checkpoints.contains_key(&hint.version) {
            tracing::warn!(table = self.name(), version = hint.version, "the last checkpoint is not there: the log stays as it is");
            return Ok(0);
        }
        let old = listing.objects.iter().take_while(|(version, meta)| *version < below && meta.last_modified.timestamp_millis() < before);
        let mut deleted = 0;
        for (_, meta) in old {
            delete(&self.log, &meta.location).await?;
            deleted += 1;
        }
        Ok(deleted)
    }

    /// Deletes the bytes of files that the log marks removed, that are old enough, and that `in_use` (by path) does not name.
    ///
    /// # Errors
    /// [`StorageError::ObjectStore`]; what was deleted before stays deleted, and the next run goes on.
    pub async fn vacuum(&self, vacuum: &Vacuum, in_use: impl Fn(&str) -> bool) -> Result<VacuumReport, StorageError> {
        let snapshot = self.refresh().await?;
        let before = self.clock.now_ms().saturating_sub(millis(vacuum.older_than));
        let mut report = VacuumReport::default();
        let mut doomed = Vec::new();
        for file in snapshot.removed().filter(|f| !self.vacuumed.lock().contains(&f.path)) {
            let consumed = vacuum.removed_by_max.is_none_or(|max| file.removed_by <= max);
            if consumed && file.removed_ms <= before && !in_use(&file.path) {
                doomed.push((file.clone(), self.object_path(&file.path)?));
            } else {
                report.kept += 1;
            }
        }
        let mut deletions = stream::iter(doomed)
            .map(|(file, path)| async move {
                delete(&self.log, &path).await?;
                Ok::<_, StorageError>(file)
            })
            .buffer_unordered(DELETES_MAX);
        while let Some(file) = deletions.next().await {
            let file = file?;
            report.files += 1;
            report.bytes += file.size.unwrap_or(0);
            self.vacuumed.lock().insert(file.path);
        }
        Ok(report)
    }

    /// Keeps the set of deleted files as small as the set of tombstones.
    fn forget_vacuumed(&self, snapshot: &super::Snapshot) {
        let known: std::collections::HashSet<&str> = snapshot.removed().map(|f| f.path.as_str()).collect();
        self.vacuumed.lock().retain(|path| known.contains(path.as_str()));
    }
}

async fn put(log: &Log, path: &Path, bytes: Vec<u8>) -> Result<(), StorageError> {
    let put = log.store.put(path, bytes.into()).await;
    put.map(drop).map_err(|source| StorageError::ObjectStore { doing: "writing", path: path.clone(), source })
}

/// Deletes an object; that it is gone already is success.
async fn delete(log: &Log, path: &Path) -> Result<(), StorageError> {
    match log.store.delete(path).await {
        Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
        Err(source) => Err(StorageError::ObjectStore { doing: "deleting", path: path.clone(), source }),
    }
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}
