//! How the engine lives with files that are replaced: views follow a compaction without a gap, and files that an open view names are not
//! deleted.
//!
//! ```text
//!  compaction commits ─▶ follow: inputs all in memory? ─▶ their copies stay, under the names of the outputs
//!                                some of them?         ─▶ outputs are read first, as far as the budget goes ─▶ the version is adopted
//! ```
//!
//! # Invariants
//! - **U1** What was in memory before a compaction is in memory after it, within the budget.
//! - **U2** A file is deleted only when no view of this process names it and the version that removed it was adopted here.
//!
//! # When it fails
//! An output that cannot be read now stays on the store: queries read it, and name it if they cannot.

use super::Storage;
use super::core::Core;
use super::state::{Touched, changed_days, rewritten};
use crate::StorageError;
use crate::compact::{self, Compactor, When};
use crate::delta::{DeltaTable, FileEntry, Snapshot, Vacuum, VacuumReport};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

/// Files that left the tables while somebody may still read them.
#[derive(Debug, Default)]
pub(crate) struct Retired(Mutex<HashMap<String, Weak<FileEntry>>>);

impl Retired {
    /// Notes the files that left between two adopted snapshots.
    pub(crate) fn note(&self, old: &Snapshot, new: &Snapshot, changed: &[Touched]) {
        let mut files = self.0.lock();
        files.retain(|_, file| file.strong_count() > 0);
        for (tenant, date) in changed {
            let gone = old.partition(tenant, *date).iter().filter(|f| !new.holds(f));
            files.extend(gone.map(|f| (f.path.clone(), Arc::downgrade(f))));
        }
    }

    /// Whether a view (or a scan that was made of one) still names this file.
    pub(crate) fn in_use(&self, path: &str) -> bool {
        self.0.lock().get(path).is_some_and(|file| file.strong_count() > 0)
    }
}

impl Core {
    /// Adopts newer snapshots after what compactions replaced was made ready (U1).
    pub(crate) async fn follow(&self, samples: &Arc<Snapshot>, series: &Arc<Snapshot>) {
        let ready = self.read_replacements(samples).await;
        self.adopt(samples, series);
        if !ready.is_empty() {
            // What nobody took: another task has adopted an even newer version meanwhile.
            self.state.write().decoded.retain(|path, _| !ready.contains(path));
        }
    }

    /// Decodes files that take the place of copies in memory; returns their paths.
    async fn read_replacements(&self, samples: &Snapshot) -> Vec<String> {
        let mut ready = Vec::new();
        for entry in self.replacements(samples) {
            match self.decode_file(&entry).await {
                Ok(run) => {
                    self.state.write().decoded.insert(entry.path.clone(), run);
                    ready.push(entry.path.clone());
                }
                Err(error) => tracing::warn!(%error, "stays on the store for now"),
            }
        }
        ready
    }

    /// The files to read before this version is adopted: of each day whose copies in memory lose a file to a compaction and cannot simply be
    /// renamed. Together they fit into half of the budget.
    fn replacements(&self, samples: &Snapshot) -> Vec<Arc<FileEntry>> {
        let old = self.state.read().samples.clone();
        if samples.version() <= old.version() {
            return Vec::new();
        }
        let mut room = self.settings.resident_bytes_max / 2;
        let mut wanted = Vec::new();
        for (tenant, date) in changed_days(&old, samples) {
            let Some(day) = self.state.read().day(&tenant, date).cloned() else { continue };
            if rewritten(&old, samples, &tenant, date).is_some_and(|(gone, _)| day.holds(&gone)) {
                continue;
            }
            let broken = day.resident.iter().filter(|g| g.entries.iter().any(|e| !samples.holds(e)));
            let left_over: Vec<&str> = broken.flat_map(|g| g.entries.iter().map(|e| e.path.as_str())).collect();
            if left_over.is_empty() {
                continue;
            }
            let new = |f: &FileEntry| f.compacted.is_some() && !old.holds(f);
            for file in samples.partition(&tenant, date).iter().filter(|f| new(f) || left_over.contains(&f.path.as_str())) {
                let bytes = Self::decoded_bytes(file);
                if bytes <= room {
                    room -= bytes;
                    wanted.push(file.clone());
                }
            }
        }
        wanted
    }

    async fn vacuum(&self, at_once: bool, samples_consumed: Option<i64>) -> Result<VacuumReport, StorageError> {
        // Views that are made from here on name the files of this version (U2).
        let adopted = self.refresh().await?.version();
        let series_adopted = self.state.read().series.version();
        let samples_max = samples_consumed.map_or(adopted, |consumed| consumed.min(adopted));
        let mut report = VacuumReport::default();
        for (table, removed_by_max) in [(&self.samples, samples_max), (&self.series, series_adopted)] {
            let older_than = if at_once { Duration::ZERO } else { table.vacuum_by_options().older_than };
            let done = self.vacuum_table(table, &Vacuum { older_than, removed_by_max: Some(removed_by_max) }).await?;
            report.files += done.files;
            report.bytes += done.bytes;
            report.kept += done.kept;
        }
        Ok(report)
    }

    async fn vacuum_table(&self, table: &DeltaTable, vacuum: &Vacuum) -> Result<VacuumReport, StorageError> {
        table.vacuum(vacuum, |path| self.retired.in_use(path)).await
    }
}

impl Storage {
    /// Compacts `samples` and `series` where the plan finds work; views show the outputs when it returns.
    ///
    /// # Errors
    /// See [`Compactor::run`]; each table is tried.
    pub async fn compact(&self, compactor: &Compactor, when: When) -> Result<compact::Report, StorageError> {
        let samples = compactor.run(&self.core.samples, when).await;
        let series = compactor.run(&self.core.series, when).await;
        self.core.refresh().await?;
        let mut report = samples?;
        report.add(&series?);
        Ok(report)
    }

    /// Deletes the bytes of files that compactions and others removed from `samples` and `series`: those removed longer ago than the table keeps
    /// them, or all (`at_once`) that no view of this process names; the latter only when no other process reads the store.
    /// `samples_consumed`: the version of `samples` that the slowest of its followers has read; files removed later stay.
    ///
    /// # Errors
    /// [`StorageError::ObjectStore`]; what is left goes with the next run.
    pub async fn vacuum(&self, at_once: bool, samples_consumed: Option<i64>) -> Result<VacuumReport, StorageError> {
        self.core.vacuum(at_once, samples_consumed).await
    }
}
