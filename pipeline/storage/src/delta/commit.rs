//! One commit: what it changes, what must still hold for it to land, and how it lands exactly once.
//!
//! ```text
//!  check against v ─▶ PUT v+1 if nobody has it ─▶ success                     ─▶ landed
//!        ▲                                      └▶ anything else ─▶ read v+1 back: mine      ─▶ landed
//!        │                                                                        theirs    ─┐
//!        └──────────────── back off, take over what others committed ◀────────────  nobody's ─┘
//! ```
//!
//! The bytes are built once and name a commit id, so that a try that lands late (a timed-out request) and a later try of the same bytes
//! can never both land: the late one either wins its version, which the next read-back sees, or loses it.
//!
//! # When it fails
//! [`StorageError::Fenced`], [`StorageError::Superseded`] and [`StorageError::Conflict`]: nothing landed. [`StorageError::ObjectStore`]
//! and a failpoint: unknown. Give **the same** [`Commit`] to `commit` again: it finds out and finishes. [`StorageError::CommitRace`]:
//! nothing landed.

use super::action::{Action, CommitInfo, CommitLog, Txn, commit_bytes};
use super::file::FileEntry;
use super::snapshot::Snapshot;
use super::table::DeltaTable;
use crate::StorageError;
use bytes::Bytes;
use fletch_common::failpoint;
use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;
use uuid::Uuid;

/// How often one call tries to win a version.
const COMMIT_ATTEMPTS_MAX: u32 = 20;
/// How often an unclear answer is read back before the outcome stays unknown.
const READ_BACK_ATTEMPTS_MAX: u32 = 6;
/// First pause between two tries; it doubles up to [`BACK_OFF_MAX_MS`], and half of it is random.
const BACK_OFF_MIN_MS: u64 = 20;
/// Longest pause between two tries.
const BACK_OFF_MAX_MS: u64 = 2_000;

/// The version that an application writes with a commit, and the one it believes to be there: the fence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TxnUpdate {
    /// `bus:…`, `src:…`, `tier:…`.
    pub app_id: String,
    /// What the table must say now; `None` when it must not know the application yet.
    pub expected: Option<i64>,
    /// What it says afterwards: for offsets the next one to read.
    pub version: i64,
}

/// A version that must stand in the table for a commit to land, and that the commit leaves as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TxnRequire {
    /// Which application.
    pub app_id: String,
    /// What the table must say.
    pub expected: Option<i64>,
}

/// What to change. Files are uploaded before, and never older than 1 h: the caller writes an older one again, because the sweep of files
/// that no commit names may take it.
#[derive(Debug, Clone)]
pub struct Commit {
    /// Recognises this commit after a lost answer.
    pub id: Uuid,
    /// For people: `WRITE`, `OPTIMIZE`, `DELETE` …
    pub operation: &'static str,
    /// Files that join.
    pub adds: Vec<FileEntry>,
    /// Files that leave. Each must still be there.
    pub removes: Vec<Arc<FileEntry>>,
    /// Offsets, with their fences.
    pub txns: Vec<TxnUpdate>,
    /// Fences of others that must hold, e.g. that no delete came in between.
    pub requires: Vec<TxnRequire>,
    /// Whether rows appear or disappear: false for compaction.
    pub data_change: bool,
}

impl Commit {
    /// An empty commit with an id of its own.
    pub fn new(operation: &'static str) -> Self {
        Self {
            id: Uuid::new_v4(),
            operation,
            adds: Vec::new(),
            removes: Vec::new(),
            txns: Vec::new(),
            requires: Vec::new(),
            data_change: true,
        }
    }

    pub(super) fn bytes(&self, table: &'static str, now_ms: i64) -> Result<Bytes, StorageError> {
        self.check_itself(table)?;
        let info = CommitInfo {
            timestamp: now_ms,
            operation: self.operation.to_owned(),
            operation_parameters: serde_json::json!({}),
            engine_info: Some(concat!("fletch/", env!("CARGO_PKG_VERSION")).to_owned()),
            txn_id: Some(self.id.to_string()),
            content_hash: None,
        };
        let mut actions = Vec::with_capacity(self.adds.len() + self.removes.len() + self.txns.len());
        actions.extend(self.txns.iter().map(|t| {
            let txn = Txn { app_id: t.app_id.clone(), version: t.version, last_updated: Some(now_ms) };
            Action { txn: Some(txn), ..Action::default() }
        }));
        actions.extend(self.removes.iter().map(|file| {
            let remove = file.to_remove(now_ms, self.data_change);
            Action { remove: Some(remove), ..Action::default() }
        }));
        actions.extend(self.adds.iter().map(|file| {
            let mut add = file.to_add();
            add.data_change = self.data_change;
            Action { add: Some(add), ..Action::default() }
        }));
        Ok(commit_bytes(info, &actions).into())
    }

    /// The protocol forbids two actions on one path or one application.
    fn check_itself(&self, table: &'static str) -> Result<(), StorageError> {
        let mut paths = HashSet::new();
        let all = self.adds.iter().map(|f| &f.path).chain(self.removes.iter().map(|f| &f.path));
        if let Some(twice) = all.into_iter().find(|path| !paths.insert(path.as_str())) {
            return Err(StorageError::Conflict(format!("a commit to `{table}` names file `{twice}` twice")));
        }
        let mut apps = HashSet::new();
        if let Some(twice) = self.txns.iter().find(|t| !apps.insert(t.app_id.as_str())) {
            return Err(StorageError::Conflict(format!("a commit to `{table}` names application `{}` twice", twice.app_id)));
        }
        Ok(())
    }

    /// Whether this commit may follow `snapshot`, when it was planned on `planned` or later.
    fn check(&self, table: &'static str, planned: &Snapshot, snapshot: &Snapshot) -> Result<(), StorageError> {
        let updates = self.txns.iter().map(|t| (&t.app_id, t.expected));
        for (app_id, expected) in updates.chain(self.requires.iter().map(|r| (&r.app_id, r.expected))) {
            let stored = snapshot.txn(app_id);
            if stored != expected {
                return Err(StorageError::Fenced { table, app_id: app_id.clone(), stored, expected });
            }
        }
        if let Some(gone) = self.removes.iter().find(|file| !snapshot.holds(file)) {
            return Err(StorageError::Superseded { table, path: gone.path.clone() });
        }
        if planned.metadata() != snapshot.metadata() || planned.protocol() != snapshot.protocol() {
            return Err(StorageError::Conflict(format!("the schema or properties of `{table}` changed under this commit; plan it again")));
        }
        Ok(())
    }
}

/// How one try ended.
enum Try {
    Landed(Arc<Snapshot>),
    /// Nothing landed; the reason, should it have been the last try.
    Again(StorageError),
}

impl DeltaTable {
    /// Lands the commit exactly once, and returns a snapshot that holds it.
    ///
    /// # Errors
    /// As the module says; which of them leave the outcome open is said there too.
    pub async fn commit(&self, commit: &Commit) -> Result<Arc<Snapshot>, StorageError> {
        let _turn = self.commit_turn.lock().await;
        let bytes = commit.bytes(self.name(), self.clock.now_ms())?;
        let planned = self.snapshot_of_today().await?;
        let mut last = None;
        for attempt in 0..COMMIT_ATTEMPTS_MAX {
            if attempt > 0 {
                self.back_off(commit.id, attempt).await;
                self.refresh().await?;
            }
            match self.try_commit(commit, &bytes, &planned).await? {
                Try::Landed(snapshot) => return Ok(snapshot),
                Try::Again(reason) => last = Some(reason),
            }
        }
        Err(last.unwrap_or(StorageError::CommitRace { table: self.name(), attempts: COMMIT_ATTEMPTS_MAX }))
    }

    async fn try_commit(&self, commit: &Commit, bytes: &Bytes, planned: &Snapshot) -> Result<Try, StorageError> {
        let mut base = self.snapshot();
        // An earlier call may have landed this very commit, and the tailer may have seen that before us.
        if base.landed(commit.id).is_some() {
            return Ok(Try::Landed(base));
        }
        if commit.check(self.name(), planned, &base).is_err() {
            base = self.refresh().await?;
            if base.landed(commit.id).is_some() {
                return Ok(Try::Landed(base));
            }
            commit.check(self.name(), planned, &base)?;
        }
        let version = base.version() + 1;
        failpoint::pass("commit-before-put")?;
        match self.log.create_commit(version, bytes.clone()).await {
            Ok(_) => {
                failpoint::pass("commit-after-put")?;
                let log = CommitLog::parse(version, self.log.commit_path(version).as_ref(), bytes)?;
                Ok(Try::Landed(self.install(&log).await?))
            }
            Err(error) => self.read_back(commit.id, version, error).await,
        }
    }

    /// Whose is `version`, now that our own try was not answered with plain success?
    async fn read_back(&self, id: Uuid, version: i64, answer: object_store::Error) -> Result<Try, StorageError> {
        let path = self.log.commit_path(version);
        let refused = matches!(
            answer,
            object_store::Error::PermissionDenied { .. }
                | object_store::Error::Unauthenticated { .. }
                | object_store::Error::NotImplemented { .. }
                | object_store::Error::NotSupported { .. }
        );
        let unclear = StorageError::ObjectStore { doing: "committing", path, source: answer };
        for attempt in 0..READ_BACK_ATTEMPTS_MAX {
            if attempt > 0 {
                self.back_off(id, attempt).await;
            }
            match self.log.read_commit(version).await {
                Ok(Some(log)) if log.id() == Some(id) => return Ok(Try::Landed(self.install(&log).await?)),
                Ok(Some(_)) => return Ok(Try::Again(StorageError::CommitRace { table: self.name(), attempts: COMMIT_ATTEMPTS_MAX })),
                Ok(None) if refused => return Err(unclear),
                Ok(None) => return Ok(Try::Again(unclear)),
                Err(error @ StorageError::Corrupt { .. }) => return Err(error),
                Err(error) => tracing::debug!(table = self.name(), version, attempt, %error, "cannot read a commit back yet"),
            }
        }
        Err(unclear)
    }

    async fn back_off(&self, id: Uuid, attempt: u32) {
        self.clock.sleep(pause(id, attempt)).await;
    }
}

/// A pause that doubles with each attempt; the commit id makes half of it random, so that rivals do not meet again and again.
fn pause(id: Uuid, attempt: u32) -> Duration {
    let full = BACK_OFF_MIN_MS.saturating_mul(1 << attempt.min(16)).min(BACK_OFF_MAX_MS);
    let random = xxhash_rust::xxh3::xxh3_64_with_seed(id.as_bytes(), u64::from(attempt)) % (full / 2).max(1);
    Duration::from_millis(full / 2 + random)
}
