//! A table as the process holds it: its newest known snapshot, and the ways to move it forward.
//!
//! Readers take the snapshot without waiting for anybody. Whoever learns of a new version (the tailer, a committer) applies it under
//! one lock; commits of this process wait for each other, so that they never race among themselves.

use super::action::{
    Action, CommitInfo, CommitLog, Format, Metadata, Protocol, READER_VERSION, TextMap, WRITER_VERSION, commit_bytes, schema_json,
};
use super::file::{FileEntry, corrupt};
use super::log::Log;
use super::snapshot::Snapshot;
use crate::StorageError;
use arc_swap::ArcSwap;
use arrow::datatypes::Schema;
use bytes::Bytes;
use fletch_common::SharedClock;
use fletch_schemas::tables::{PARTITION_COLUMNS, Table};
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use parking_lot::Mutex;
use serde_json::Value;
use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;
use tokio::sync::Mutex as AsyncMutex;
use uuid::Uuid;

/// Commits between two checkpoints.
pub const CHECKPOINT_EVERY_COMMITS: i64 = 100;

/// A snapshot that nobody has compared with the store for so long may stand below what the log clean-up has deleted, where "no next
/// version" proves nothing: the table is opened afresh. Far below the shortest log retention.
const SNAPSHOT_TRUSTED_MS: i64 = 60 * 60 * 1000;

/// How often creating a table is tried against a store that gives no clear answer.
const CREATE_ATTEMPTS_MAX: u32 = 5;

/// How long things that left a table are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableOptions {
    /// Commits and checkpoints below the newest checkpoint. At least [`TableOptions::LOG_RETENTION_MIN`].
    pub log_retention: Duration,
    /// Removed files.
    pub removed_retention: Duration,
}

impl TableOptions {
    /// A process may rely on its snapshot for an hour; the log must reach back much further.
    pub const LOG_RETENTION_MIN: Duration = Duration::from_secs(4 * 60 * 60);
}

impl Default for TableOptions {
    fn default() -> Self {
        Self { log_retention: Duration::from_secs(24 * 60 * 60), removed_retention: Duration::from_secs(6 * 60 * 60) }
    }
}

/// One Delta table.
#[derive(Debug)]
pub struct DeltaTable {
    pub(super) log: Log,
    pub(super) clock: SharedClock,
    pub(super) options: TableOptions,
    table: Table,
    current: ArcSwap<Snapshot>,
    /// When `current` was last known to be the newest version, by `clock`.
    confirmed_ms: AtomicI64,
    /// Commits of this process queue here.
    pub(super) commit_turn: AsyncMutex<()>,
    /// Whoever replaces `current` holds this.
    advance: AsyncMutex<()>,
    /// Removed files whose bytes we have deleted already.
    pub(super) vacuumed: Mutex<HashSet<String>>,
}

impl DeltaTable {
    /// Opens the table below `root` (`tables/<name>`), or creates it.
    ///
    /// # Errors
    /// [`StorageError::Conflict`] when the stored table has other columns or partitioning, [`StorageError::Protocol`],
    /// [`StorageError::Corrupt`], [`StorageError::ObjectStore`].
    pub async fn open_or_create(store: Arc<dyn ObjectStore>, root: Path, table: Table, clock: SharedClock) -> Result<Self, StorageError> {
        Self::open_or_create_with(store, root, table, clock, TableOptions::default()).await
    }

    /// As [`open_or_create`](Self::open_or_create), with retention times of your own. They become properties of a new table.
    ///
    /// # Errors
    /// As [`open_or_create`](Self::open_or_create).
    pub async fn open_or_create_with(
        store: Arc<dyn ObjectStore>,
        root: Path,
        table: Table,
        clock: SharedClock,
        options: TableOptions,
    ) -> Result<Self, StorageError> {
        if options.log_retention < TableOptions::LOG_RETENTION_MIN {
            return Err(StorageError::Conflict(format!(
                "log retention {:?} is below {:?}",
                options.log_retention,
                TableOptions::LOG_RETENTION_MIN
            )));
        }
        let log = Log { store, root, table: table.name() };
        let mut snapshot = log.bootstrap().await?;
        for attempt in 1..=CREATE_ATTEMPTS_MAX {
            if snapshot.is_some() {
                break;
            }
            let created = log.create_commit(0, first_commit(table, &options, clock.now_ms())?).await;
            snapshot = log.bootstrap().await?;
            match created {
                Err(source) if snapshot.is_none() && attempt == CREATE_ATTEMPTS_MAX => {
                    return Err(StorageError::ObjectStore { doing: "creating", path: log.commit_path(0), source });
                }
                _ => {}
            }
        }
        let snapshot = snapshot.ok_or_else(|| corrupt(log.commit_path(0).as_ref(), "it was created and is gone"))?;
        check_schema(table, &snapshot)?;
        let confirmed_ms = AtomicI64::new(clock.now_ms());
        let current = ArcSwap::from_pointee(snapshot);
        let (commit_turn, advance, vacuumed) = Default::default();
        Ok(Self { log, clock, options, table, current, confirmed_ms, commit_turn, advance, vacuumed })
    }

    /// Which table.
    pub fn table(&self) -> Table {
        self.table
    }

    /// Its name.
    pub fn name(&self) -> &'static str {
        self.table.name()
    }

    /// The store that it lives on.
    pub fn store(&self) -> &Arc<dyn ObjectStore> {
        &self.log.store
    }

    /// The newest state that this process knows. Never waits.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.current.load_full()
    }

    /// Takes over everything that was committed since, and returns the newest state.
    ///
    /// # Errors
    /// [`StorageError::ObjectStore`], [`StorageError::Corrupt`], [`StorageError::Protocol`]; what was taken over before stays.
    pub async fn refresh(&self) -> Result<Arc<Snapshot>, StorageError> {
        let _one = self.advance.lock().await;
        self.advance_to_newest().await
    }

    /// The current snapshot, after a refresh if nobody has compared it with the store for long.
    pub(super) async fn snapshot_of_today(&self) -> Result<Arc<Snapshot>, StorageError> {
        if self.is_stale() { self.refresh().await } else { Ok(self.snapshot()) }
    }

    /// One commit of the log, for jobs that follow a table version by version; `None` when there is none (yet, or any more).
    ///
    /// # Errors
    /// [`StorageError::ObjectStore`], [`StorageError::Corrupt`].
    pub async fn read_commit(&self, version: i64) -> Result<Option<CommitLog>, StorageError> {
        self.log.read_commit(version).await
    }

    /// The files that one commit added.
    ///
    /// # Errors
    /// [`StorageError::Corrupt`] naming the file whose `add` cannot be understood.
    pub fn added(&self, commit: &CommitLog) -> Result<Vec<FileEntry>, StorageError> {
        let adds = commit.actions.iter().filter_map(|a| a.add.as_ref());
        adds.map(|add| FileEntry::from_add(add).map_err(|why| corrupt(self.log.commit_path(commit.version).as_ref(), why))).collect()
    }

    /// Where a path of this table is on the store.
    ///
    /// # Errors
    /// [`StorageError::Corrupt`] when the path leaves the table (`..`, an absolute address): another writer's, never followed.
    pub fn object_path(&self, path: &str) -> Result<Path, StorageError> {
        Path::parse(format!("{}/{path}", self.log.root)).map_err(|e| corrupt(path, e.to_string()))
    }

    /// Uploads the bytes of a file that a later commit will name. Safe to repeat.
    ///
    /// # Errors
    /// [`StorageError::ObjectStore`].
    pub async fn upload(&self, entry: &FileEntry, bytes: Bytes) -> Result<(), StorageError> {
        let path = self.object_path(&entry.path)?;
        let put = self.log.store.put(&path, bytes.into()).await;
        put.map(drop).map_err(|source| StorageError::ObjectStore { doing: "writing", path, source })
    }

    /// Takes over a commit that is known to be in the log.
    pub(super) async fn install(&self, log: &CommitLog) -> Result<Arc<Snapshot>, StorageError> {
        let _one = self.advance.lock().await;
        let current = self.snapshot();
        if current.version() >= log.version {
            return Ok(current);
        }
        if current.version() + 1 != log.version {
            return self.advance_to_newest().await;
        }
        self.confirmed_ms.store(self.clock.now_ms(), Ordering::Relaxed);
        self.step(&current, log)
    }

    /// Replaces the current snapshot by a changed copy; the caller tells how. Versions do not move.
    pub(super) async fn amend(&self, change: impl FnOnce(&mut Snapshot)) {
        let _one = self.advance.lock().await;
        let mut next = self.snapshot().as_ref().clone();
        change(&mut next);
        self.current.store(Arc::new(next));
    }

    async fn advance_to_newest(&self) -> Result<Arc<Snapshot>, StorageError> {
        if self.is_stale() {
            self.reopen().await?;
        }
        let mut current = self.snapshot();
        while let Some(log) = self.log.read_commit(current.version() + 1).await? {
            current = self.step(&current, &log)?;
        }
        self.confirmed_ms.store(self.clock.now_ms(), Ordering::Relaxed);
        Ok(current)
    }

    fn step(&self, current: &Snapshot, log: &CommitLog) -> Result<Arc<Snapshot>, StorageError> {
        let mut next = current.clone();
        next.apply(log)?;
        let next = Arc::new(next);
        self.current.store(next.clone());
        Ok(next)
    }

    async fn reopen(&self) -> Result<(), StorageError> {
        let found = self.log.bootstrap().await?;
        let found = found.ok_or_else(|| corrupt(self.log.root.as_ref(), "the table is gone"))?;
        let current = self.snapshot();
        if found.version() < current.version() {
            let why = format!("it stands at version {}, we have seen version {}", found.version(), current.version());
            return Err(corrupt(self.log.root.as_ref(), why));
        }
        if found.version() > current.version() {
            self.current.store(Arc::new(found));
        }
        Ok(())
    }

    fn is_stale(&self) -> bool {
        self.clock.now_ms().saturating_sub(self.confirmed_ms.load(Ordering::Relaxed)) > SNAPSHOT_TRUSTED_MS
    }
}

/// Version 0 of a new table.
fn first_commit(table: Table, options: &TableOptions, now_ms: i64) -> Result<Bytes, StorageError> {
    let info = CommitInfo {
        timestamp: now_ms,
        operation: "CREATE TABLE".to_owned(),
        operation_parameters: serde_json::json!({}),
        engine_info: Some(concat!("fletch/", env!("CARGO_PKG_VERSION")).to_owned()),
        txn_id: Some(Uuid::new_v4().to_string()),
        content_hash: None,
    };
    let property = |name: &str, value: String| (name.to_owned(), Some(value));
    let metadata = Metadata {
        id: Uuid::new_v4().to_string(),
        name: Some(table.name().to_owned()),
        description: None,
        format: Format { provider: "parquet".to_owned(), options: TextMap::new() },
        schema_string: schema_json(&table.table_schema())?,
        partition_columns: PARTITION_COLUMNS.map(str::to_owned).to_vec(),
        created_time: Some(now_ms),
        configuration: TextMap::from([
            property("delta.dataSkippingStatsColumns", table.stats_columns().join(",")),
            property("delta.logRetentionDuration", format!("interval {} seconds", options.log_retention.as_secs())),
            property("delta.deletedFileRetentionDuration", format!("interval {} seconds", options.removed_retention.as_secs())),
            property("delta.checkpointInterval", CHECKPOINT_EVERY_COMMITS.to_string()),
        ]),
    };
    let protocol = Protocol { min_reader_version: READER_VERSION, min_writer_version: WRITER_VERSION };
    let actions = [Action { protocol: Some(protocol), ..Action::default() }, Action { meta_data: Some(metadata), ..Action::default() }];
    Ok(commit_bytes(info, &actions).into())
}

/// The stored table must have our partitioning and every column of ours with its type; columns that others added are left alone.
fn check_schema(table: Table, snapshot: &Snapshot) -> Result<(), StorageError> {
    let metadata = snapshot.metadata().ok_or_else(|| corrupt(table.name(), "it has no metadata"))?;
    if metadata.partition_columns != PARTITION_COLUMNS {
        let found = metadata.partition_columns.join(", ");
        return Err(StorageError::Conflict(format!(
            "table `{}` is partitioned by ({found}), not by ({})",
            table.name(),
            PARTITION_COLUMNS.join(", ")
        )));
    }
    let stored: Value = serde_json::from_str(&metadata.schema_string).map_err(|e| corrupt(table.name(), format!("its schema: {e}")))?;
    let ours = own_fields(&table.table_schema())?;
    let stored = stored["fields"].as_array().map(Vec::as_slice).unwrap_or_default();
    for field in &ours {
        let name = &field["name"];
        match stored.iter().find(|other| &other["name"] == name) {
            Some(other) if other["type"] == field["type"] => {}
            Some(other) => {
                let text = format!("table `{}`: column {name} is {}, expected {}", table.name(), other["type"], field["type"]);
                return Err(StorageError::Conflict(text));
            }
            None => return Err(StorageError::Conflict(format!("table `{}` has no column {name}", table.name()))),
        }
    }
    Ok(())
}

fn own_fields(schema: &Schema) -> Result<Vec<Value>, StorageError> {
    let text = schema_json(schema)?;
    let parsed: Value = serde_json::from_str(&text).expect("we have just written this JSON");
    Ok(parsed["fields"].as_array().cloned().unwrap_or_default())
}
