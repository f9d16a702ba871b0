//! Whether a store holds what its logs say, and whether the tables fit together.
//!
//! ```text
//!  logs      every commit parses and follows the one before; checkpoints equal the commits; no gap        ([`log`])
//!  sizes     every active file is there with its size                                                      one listing per table
//!  files     hash, Parquet to the last page, schema, order, keys twice, statistics                         ([`files`])
//!  labels    (metric, series_id, date) of every sample and tier row has its row in `series`                per (tenant, date)
//! ```
//!
//! Works while a server runs: tables are read in the order of [`super`] (O2), and a file that is gone counts only if the newest log still
//! names it. Memory is bounded by [`FILES_AT_ONCE`] files and the series of one (tenant, date).
//!
//! # When it fails
//! What is wrong with the store is a [`Problem`], never an error. An error is what stops the check itself: a store that does not answer.

mod files;
mod log;

use super::{Progress, tables_in_reading_order};
use crate::StorageError;
use crate::delta::{FileEntry, Snapshot, TableReader, date_text};
use crate::parquet_file::audit::{ExpectedColumn, expected_columns};
use ahash::{HashMap, HashSet};
use fletch_schemas::TenantId;
use object_store::{ObjectMeta, ObjectStore};
use serde::Serialize;
use std::collections::BTreeSet;
use std::sync::Arc;

/// Files that are read and decoded at the same time; each is in memory as a whole.
pub const FILES_AT_ONCE: usize = 2;
/// Problems that are kept with their text; the rest is counted.
pub const PROBLEMS_KEPT_MAX: usize = 1_000;

/// How much to check.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct VerifyOptions {
    /// Logs and sizes only.
    pub fast: bool,
}

/// Something that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// In which table.
    pub table: String,
    /// Object, below the table's folder.
    pub object: String,
    /// What is wrong with it.
    pub what: String,
    /// What to do.
    pub advice: String,
}

/// What was checked of one table.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct TableVerified {
    /// Its name.
    pub name: String,
    /// The version that was checked; `None` when its log cannot be read to its end.
    pub version: Option<i64>,
    /// Commits that were read.
    pub commits: u64,
    /// Checkpoints that were compared with the commits or could only be read.
    pub checkpoints: u64,
    /// Active files.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Rows that were read.
    pub rows: u64,
    /// Files without a hash in the log: another writer's.
    pub without_hash: u64,
    /// Objects that no commit names: being written now, or left by a crash.
    pub unnamed_files: u64,
    /// Their bytes.
    pub unnamed_bytes: u64,
}

/// What came out.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct VerifyReport {
    /// Ascending by name.
    pub tables: Vec<TableVerified>,
    /// The first [`PROBLEMS_KEPT_MAX`].
    pub problems: Vec<Problem>,
    /// All of them.
    pub problems_total: u64,
    /// What is not wrong but should be known.
    pub notes: Vec<String>,
}

impl VerifyReport {
    fn problem(&mut self, table: &str, object: impl Into<String>, what: impl Into<String>, advice: impl Into<String>) {
        self.problems_total += 1;
        if self.problems.len() < PROBLEMS_KEPT_MAX {
            self.problems.push(Problem { table: table.to_owned(), object: object.into(), what: what.into(), advice: advice.into() });
        }
    }
}

/// A table whose log could be read, under check.
struct Subject {
    reader: TableReader,
    snapshot: Arc<Snapshot>,
    expected: Arc<Vec<ExpectedColumn>>,
    facts: TableVerified,
    /// Paths that the listing did not have with the right size: already reported.
    bad: HashSet<String>,
}

/// Checks every table of a store.
///
/// # Errors
/// [`StorageError::ObjectStore`] when the store does not answer.
pub async fn verify(store: &Arc<dyn ObjectStore>, options: VerifyOptions, progress: &dyn Progress) -> Result<VerifyReport, StorageError> {
    let mut report = VerifyReport::default();
    let mut subjects = Vec::new();
    let tables = tables_in_reading_order(store).await?;
    progress.begin("logs", tables.len() as u64, 0);
    for reader in tables {
        let (facts, snapshot) = log::check(&reader, &mut report).await?;
        progress.advance(0);
        match snapshot {
            Some(snapshot) => subjects.push(subject(reader, facts, snapshot)),
            None => report.tables.push(facts),
        }
    }
    for subject in &mut subjects {
        check_sizes(subject, &mut report).await?;
    }
    if !options.fast {
        check_files(&mut subjects, &mut report, progress).await?;
    }
    report.tables.extend(subjects.into_iter().map(|s| s.facts));
    report.tables.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(report)
}

fn subject(reader: TableReader, mut facts: TableVerified, snapshot: Snapshot) -> Subject {
    let totals = snapshot.totals();
    (facts.version, facts.files, facts.bytes) = (Some(snapshot.version()), totals.files, totals.bytes);
    facts.without_hash = snapshot.files().filter(|f| f.hash.is_none()).count() as u64;
    let expected = snapshot.metadata().map(|m| expected_columns(&m.schema_string, &m.partition_columns)).unwrap_or_default();
    Subject { reader, snapshot: Arc::new(snapshot), expected: Arc::new(expected), facts, bad: HashSet::default() }
}

/// Compares one listing with the files of the snapshot.
async fn check_sizes(subject: &mut Subject, report: &mut VerifyReport) -> Result<(), StorageError> {
    let objects: HashMap<String, ObjectMeta> = subject.reader.data_objects().await?.into_iter().collect();
    let mut newest = None;
    for file in subject.snapshot.files() {
        let what = match objects.get(&file.path) {
            Some(meta) if meta.size == file.size => continue,
            Some(meta) => format!("it has {} bytes, the log says {}", meta.size, file.size),
            None => {
                if newest.is_none() {
                    newest = Some(subject.reader.snapshot().await?);
                }
                // Compacted and vacuumed since the log was read: not damage.
                if newest.as_ref().and_then(Option::as_ref).is_some_and(|s| !s.holds(file)) {
                    subject.bad.insert(file.path.clone());
                    continue;
                }
                "the log names it and it is not there".to_owned()
            }
        };
        subject.bad.insert(file.path.clone());
        report.problem(subject.reader.name(), &file.path, what, lost(file));
    }
    let named: HashSet<&str> =
        subject.snapshot.files().map(|f| f.path.as_str()).chain(subject.snapshot.removed().map(|r| r.path.as_str())).collect();
    for (path, meta) in objects.iter().filter(|(path, _)| !named.contains(path.as_str()) && path.ends_with(".parquet")) {
        tracing::debug!(table = subject.reader.name(), path, "no commit names this file");
        subject.facts.unnamed_files += 1;
        subject.facts.unnamed_bytes += meta.size;
    }
    Ok(())
}

/// What to do about a file whose bytes are not there any more.
fn lost(file: &FileEntry) -> String {
    let what = format!("its {} rows of tenant `{}` on {} cannot be read", file.rows, file.tenant, date_text(file.date));
    format!("{what}: put the file back from a backup (`fletch restore` into an empty store, then copy this object)")
}

/// Reads every file, partition by partition, `series` first.
async fn check_files(subjects: &mut [Subject], report: &mut VerifyReport, progress: &dyn Progress) -> Result<(), StorageError> {
    let totals = subjects.iter().fold((0, 0), |(files, bytes), s| (files + s.facts.files, bytes + s.facts.bytes));
    progress.begin("files", totals.0, totals.1);
    let mut partitions: BTreeSet<(TenantId, i32)> = BTreeSet::new();
    for subject in subjects.iter() {
        let all = subject.snapshot.tenants().flat_map(|t| subject.snapshot.dates(t).map(move |d| (t.clone(), d)));
        partitions.extend(all);
    }
    let has_series = subjects.iter().any(|s| s.reader.name() == "series");
    if !has_series && !partitions.is_empty() {
        report.notes.push("labels were not checked: the log of table `series` cannot be read".to_owned());
    }
    let mut last: Option<(TenantId, i32, files::Labelled)> = None;
    for (tenant, date) in partitions {
        let before = last.take().filter(|(t, d, _)| *t == tenant && d.checked_add(1) == Some(date));
        let mut labels = files::Labelled::after(before.map(|(_, _, labels)| labels));
        let (series, others): (Vec<&mut Subject>, Vec<&mut Subject>) = subjects.iter_mut().partition(|s| s.reader.name() == "series");
        for subject in series {
            files::check_partition(subject, &tenant, date, &mut labels, report, progress).await?;
        }
        labels.known = has_series;
        for subject in others {
            files::check_partition(subject, &tenant, date, &mut labels, report, progress).await?;
        }
        last = Some((tenant, date, labels));
    }
    Ok(())
}
