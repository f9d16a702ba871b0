//! What a table holds at one version: its files by (tenant, date), the offsets of every application, and what waits for the vacuum.
//!
//! ```text
//!  Snapshot v41 ──apply(42.json)──▶ Snapshot v42        both stay valid; they share everything that 42.json did not touch
//! ```
//!
//! # Invariants
//! - **X1** A snapshot never changes. Advancing copies the tenant map, the touched tenants' date maps and the touched partitions'
//!   pointer lists: O(new actions + partitions of the touched tenants), not O(files).
//! - **X2** Files of a partition are ordered by path; a path is in it at most once.
//!
//! # Not here
//! Where the actions come from ([`super::table`]).

use super::action::{Action, Add, CommitLog, Metadata, Protocol, READER_VERSION, Remove, Txn, WRITER_VERSION};
use super::file::{FileEntry, RemovedFile, corrupt, parse_date, partition_folder, partition_of};
use crate::StorageError;
use fletch_schemas::TenantId;
use std::collections::{BTreeMap, VecDeque};
use std::ops::{Bound, RangeInclusive};
use std::sync::Arc;
use uuid::Uuid;

/// How many of the newest commit ids a snapshot remembers: enough to recognise a commit of ours that a caller tries again.
const RECENT_COMMITS_MAX: usize = 64;

type Files = Arc<Vec<Arc<FileEntry>>>;
type Dates = Arc<BTreeMap<i32, Files>>;

/// What a table holds at one version.
#[derive(Debug, Clone)]
pub struct Snapshot {
    table: &'static str,
    version: i64,
    protocol: Option<Protocol>,
    metadata: Option<Arc<Metadata>>,
    txns: Arc<BTreeMap<String, Txn>>,
    tenants: Arc<BTreeMap<TenantId, Dates>>,
    removed: Arc<BTreeMap<String, RemovedFile>>,
    recent: Arc<VecDeque<(i64, Uuid)>>,
    totals: Totals,
}

/// Sums over the active files.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Totals {
    /// Number of files.
    pub files: u64,
    /// Number of rows.
    pub rows: u64,
    /// Bytes.
    pub bytes: u64,
}

impl Snapshot {
    /// The state before version 0.
    pub(crate) fn empty(table: &'static str) -> Self {
        Self {
            table,
            version: -1,
            protocol: None,
            metadata: None,
            txns: Arc::default(),
            tenants: Arc::default(),
            removed: Arc::default(),
            recent: Arc::default(),
            totals: Totals::default(),
        }
    }

    /// Version of the table; -1 before its first commit.
    pub fn version(&self) -> i64 {
        self.version
    }

    /// The version that an application wrote last: for `bus:…` the next offset to read.
    pub fn txn(&self, app_id: &str) -> Option<i64> {
        self.txns.get(app_id).map(|t| t.version)
    }

    /// Every application and the version it wrote last, ascending by name.
    pub fn txns(&self) -> impl Iterator<Item = (&str, i64)> {
        self.txns.values().map(|t| (t.app_id.as_str(), t.version))
    }

    /// Tenants with files, ascending.
    pub fn tenants(&self) -> impl Iterator<Item = &TenantId> {
        self.tenants.keys()
    }

    /// Dates (days since 1970-01-01) on which a tenant has files, ascending.
    pub fn dates(&self, tenant: &TenantId) -> impl DoubleEndedIterator<Item = i32> {
        self.tenants.get(tenant).into_iter().flat_map(|dates| dates.keys().copied())
    }

    /// Files of one (tenant, date), ordered by path.
    pub fn partition(&self, tenant: &TenantId, date: i32) -> &[Arc<FileEntry>] {
        self.tenants.get(tenant).and_then(|dates| dates.get(&date)).map_or(&[], |files| files.as_slice())
    }

    /// Files of a tenant within these dates, ascending by date.
    pub fn tenant_files(&self, tenant: &TenantId, dates: RangeInclusive<i32>) -> impl Iterator<Item = &Arc<FileEntry>> {
        let empty = dates.start() > dates.end();
        let found = self.tenants.get(tenant).filter(|_| !empty);
        found.into_iter().flat_map(move |all| all.range(dates.clone()).flat_map(|(_, files)| files.iter()))
    }

    /// Every active file, by tenant and date.
    pub fn files(&self) -> impl Iterator<Item = &Arc<FileEntry>> {
        self.tenants.values().flat_map(|dates| dates.values().flat_map(|files| files.iter()))
    }

    /// The active file of this path.
    pub fn file(&self, tenant: &TenantId, date: i32, path: &str) -> Option<&Arc<FileEntry>> {
        let files = self.partition(tenant, date);
        files.binary_search_by(|f| f.path.as_str().cmp(path)).ok().map(|at| &files[at])
    }

    /// Whether this very file is still active.
    pub fn holds(&self, file: &FileEntry) -> bool {
        self.file(&file.tenant, file.date, &file.path).is_some()
    }

    /// Files that left the table and whose bytes may still be there, ordered by path.
    pub fn removed(&self) -> impl Iterator<Item = &RemovedFile> {
        self.removed.values()
    }

    /// Those of them that were files of one (tenant, date), as far as they have the names that we give.
    pub fn removed_from(&self, tenant: &TenantId, date: i32) -> impl Iterator<Item = &RemovedFile> {
        let folder = partition_folder(tenant, date);
        let from = self.removed.range::<str, _>((Bound::Included(folder.as_str()), Bound::Unbounded));
        let inside: Vec<&RemovedFile> = from.take_while(|(path, _)| path.starts_with(&folder)).map(|(_, file)| file).collect();
        inside.into_iter()
    }

    /// Sums over the active files.
    pub fn totals(&self) -> Totals {
        self.totals
    }

    /// Schema, partitioning and properties; `None` before the first commit.
    pub fn metadata(&self) -> Option<&Arc<Metadata>> {
        self.metadata.as_ref()
    }

    /// The version at which the commit `id` landed, if it is among the newest [`RECENT_COMMITS_MAX`].
    pub(crate) fn landed(&self, id: Uuid) -> Option<i64> {
        self.recent.iter().find(|(_, other)| *other == id).map(|(version, _)| *version)
    }

    pub(crate) fn protocol(&self) -> Option<Protocol> {
        self.protocol
    }

    pub(crate) fn txn_actions(&self) -> impl Iterator<Item = &Txn> {
        self.txns.values()
    }

    /// Takes over the next commit.
    ///
    /// # Errors
    /// [`StorageError::Corrupt`] when it is not the next version or holds what cannot be; [`StorageError::Protocol`].
    pub(crate) fn apply(&mut self, log: &CommitLog) -> Result<(), StorageError> {
        if log.version != self.version + 1 {
            return Err(corrupt(self.log_name(log.version), format!("it cannot follow version {}", self.version)));
        }
        self.apply_actions(log.version, &log.actions)?;
        if let Some(id) = log.id() {
            let recent = Arc::make_mut(&mut self.recent);
            recent.push_back((log.version, id));
            if recent.len() > RECENT_COMMITS_MAX {
                recent.pop_front();
            }
        }
        Ok(())
    }

    /// Takes over actions and stands at `version` afterwards. On an error the state is useless: apply to a copy.
    pub(crate) fn apply_actions(&mut self, version: i64, actions: &[Action]) -> Result<(), StorageError> {
        for action in actions {
            if let Some(protocol) = action.protocol {
                self.set_protocol(protocol)?;
            } else if let Some(metadata) = &action.meta_data {
                self.metadata = Some(Arc::new(metadata.clone()));
            } else if let Some(txn) = &action.txn {
                Arc::make_mut(&mut self.txns).insert(txn.app_id.clone(), txn.clone());
            } else if let Some(add) = &action.add {
                self.add(version, add)?;
            } else if let Some(remove) = &action.remove {
                self.remove(version, remove)?;
            }
        }
        self.version = version;
        Ok(())
    }

    /// Forgets removed files that need not be known any more.
    pub(crate) fn forget_removed(&mut self, forget: impl Fn(&RemovedFile) -> bool) {
        if self.removed.values().any(&forget) {
            Arc::make_mut(&mut self.removed).retain(|_, r| !forget(r));
        }
    }

    fn set_protocol(&mut self, protocol: Protocol) -> Result<(), StorageError> {
        let Protocol { min_reader_version: reader, min_writer_version: writer } = protocol;
        if reader > READER_VERSION || writer > WRITER_VERSION {
            return Err(StorageError::Protocol { table: self.table, reader, writer });
        }
        self.protocol = Some(protocol);
        Ok(())
    }

    fn add(&mut self, version: i64, add: &Add) -> Result<(), StorageError> {
        let entry = Arc::new(FileEntry::from_add(add).map_err(|why| corrupt(self.log_name(version), why))?);
        if self.removed.contains_key(&entry.path) {
            Arc::make_mut(&mut self.removed).remove(&entry.path);
        }
        self.totals.count(&entry);
        let dates = Arc::make_mut(&mut self.tenants).entry(entry.tenant.clone()).or_default();
        let files = Arc::make_mut(Arc::make_mut(dates).entry(entry.date).or_default());
        match files.binary_search_by(|f| f.path.cmp(&entry.path)) {
            Ok(at) => {
                let replaced = std::mem::replace(&mut files[at], entry);
                self.totals.uncount(&replaced);
            }
            Err(at) => files.insert(at, entry),
        }
        Ok(())
    }

    fn remove(&mut self, version: i64, remove: &Remove) -> Result<(), StorageError> {
        let removed = RemovedFile::from_remove(remove, version).map_err(|why| corrupt(self.log_name(version), why))?;
        let place = remove.partition_values.as_ref().and_then(|v| partition_of(v).ok()).or_else(|| self.find_partition(&removed.path));
        if let Some((tenant, date)) = place {
            self.drop_file(&tenant, date, &removed.path);
        }
        Arc::make_mut(&mut self.removed).insert(removed.path.clone(), removed);
        Ok(())
    }

    fn drop_file(&mut self, tenant: &TenantId, date: i32, path: &str) {
        if self.file(tenant, date, path).is_none() {
            return;
        }
        let tenants = Arc::make_mut(&mut self.tenants);
        let Some(dates) = tenants.get_mut(tenant).map(Arc::make_mut) else { return };
        let Some(files) = dates.get_mut(&date).map(Arc::make_mut) else { return };
        if let Ok(at) = files.binary_search_by(|f| f.path.as_str().cmp(path)) {
            self.totals.uncount(&files.remove(at));
        }
        if files.is_empty() {
            dates.remove(&date);
        }
        if dates.is_empty() {
            tenants.remove(tenant);
        }
    }

    /// Where a file is, for a `remove` that does not say it (another writer's, or a checkpoint's).
    fn find_partition(&self, path: &str) -> Option<(TenantId, i32)> {
        let date = path.split('/').find_map(|part| parse_date(part.strip_prefix("date=")?));
        let by_date = date.and_then(|date| self.tenants.keys().find(|t| self.file(t, date, path).is_some()).map(|t| (t.clone(), date)));
        by_date.or_else(|| self.files().find(|f| f.path == path).map(|f| (f.tenant.clone(), f.date)))
    }

    fn log_name(&self, version: i64) -> String {
        format!("{} version {version}", self.table)
    }
}

impl Totals {
    fn count(&mut self, file: &FileEntry) {
        self.files += 1;
        self.rows = self.rows.saturating_add(file.rows);
        self.bytes = self.bytes.saturating_add(file.size);
    }

    fn uncount(&mut self, file: &FileEntry) {
        self.files -= 1;
        self.rows = self.rows.saturating_sub(file.rows);
        self.bytes = self.bytes.saturating_sub(file.size);
    }
}
