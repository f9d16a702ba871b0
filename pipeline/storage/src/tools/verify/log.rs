//! The log of one table: every commit, every checkpoint, no gap.

use super::{TableVerified, VerifyReport};
use crate::StorageError;
use crate::delta::{FileEntry, Snapshot, TableReader};
use futures::{StreamExt, stream};
use std::collections::BTreeMap;

/// Commits that are fetched at the same time.
const COMMITS_AT_ONCE: usize = 16;

const RESTORE: &str = "restore the table from a backup, or put this object back from one";

/// Reads the whole log. The state at its end, if there is one.
pub(super) async fn check(reader: &TableReader, report: &mut VerifyReport) -> Result<(TableVerified, Option<Snapshot>), StorageError> {
    let mut facts = TableVerified { name: reader.name().to_owned(), ..TableVerified::default() };
    let listing = reader.listing().await?;
    if listing.commits.is_empty() && listing.checkpoints.is_empty() {
        report.problem(reader.name(), "_delta_log", "there is no log, so the folder is not a table", RESTORE);
        return Ok((facts, None));
    }
    let mut walk = Walk { reader, state: None, gap: false };
    let checkpoints = read_checkpoints(reader, &listing.checkpoints, report).await?;
    facts.checkpoints = checkpoints.len() as u64;
    let first = listing.commits.first().copied().unwrap_or(i64::MAX);
    let begin = checkpoints.keys().next().map_or(first, |c| first.min(c.saturating_add(1)));
    let newest = listing.commits.last().copied().unwrap_or(-1).max(checkpoints.keys().next_back().copied().unwrap_or(-1));
    if begin == 0 {
        walk.state = Some(Snapshot::empty(reader.name()));
    }
    if let Some(base) = checkpoints.get(&(begin - 1)) {
        walk.state = Some(base.clone());
    }
    let mut commits =
        stream::iter(begin..=newest).map(|version| async move { (version, reader.commit(version).await) }).buffered(COMMITS_AT_ONCE);
    while let Some((version, commit)) = commits.next().await {
        facts.commits += u64::from(matches!(commit, Ok(Some(_))));
        if matches!(commit, Ok(None)) && listing.commits.contains(&version) && cleaned_up(reader, version).await? {
            walk.state = None;
        } else {
            walk.step(version, commit, report)?;
        }
        if let Some(base) = checkpoints.get(&version) {
            walk.compare(version, base, report);
        }
    }
    drop(commits);
    if !listing.commits.contains(&0) && !checkpoints.keys().any(|c| c.saturating_add(1) >= first) {
        let what = format!("the log begins at version {first}, and no readable checkpoint reaches that far: versions were deleted");
        report.problem(reader.name(), "_delta_log", what, RESTORE);
        (walk.state, walk.gap) = (None, true);
    }
    let state = walk.state.filter(|s| s.metadata().is_some() && s.protocol().is_some());
    if state.is_none() && !walk.gap {
        report.problem(reader.name(), "_delta_log", "the log cannot be read to its end, so its files were not checked", RESTORE);
    }
    Ok((facts, state))
}

/// Whether a version that was listed a moment ago has been cut off with everything below it: the clean-up of a running server.
async fn cleaned_up(reader: &TableReader, version: i64) -> Result<bool, StorageError> {
    Ok(reader.listing().await?.commits.first().is_some_and(|first| *first > version))
}

struct Walk<'a> {
    reader: &'a TableReader,
    /// The state at the last version, while nothing is missing.
    state: Option<Snapshot>,
    /// The reason for a missing state was reported.
    gap: bool,
}

impl Walk<'_> {
    fn step(
        &mut self,
        version: i64,
        commit: Result<Option<crate::delta::CommitLog>, StorageError>,
        report: &mut VerifyReport,
    ) -> Result<(), StorageError> {
        let name = format!("_delta_log/{version:020}.json");
        let wrong = match commit {
            Ok(Some(log)) => match self.state.take() {
                None => return Ok(()),
                Some(mut state) => match state.apply(&log) {
                    Ok(()) => {
                        self.state = Some(state);
                        return Ok(());
                    }
                    Err(error) => error.to_string(),
                },
            },
            Ok(None) => "this version is missing: the log has a gap".to_owned(),
            Err(error @ (StorageError::Corrupt { .. } | StorageError::Protocol { .. })) => error.to_string(),
            Err(error) => return Err(error),
        };
        (self.state, self.gap) = (None, true);
        report.problem(self.reader.name(), name, wrong, RESTORE);
        Ok(())
    }

    /// A checkpoint must say what the commits below it add up to. Where those are gone it is where the table begins.
    fn compare(&mut self, version: i64, base: &Snapshot, report: &mut VerifyReport) {
        if let Some(difference) = self.state.as_ref().and_then(|state| difference(state, base)) {
            let advice = "readers that start here see something else than those that read the commits: delete the checkpoint and \
                          `_last_checkpoint`, and the commits count (only while version 0 or an older checkpoint is there)";
            report.problem(self.reader.name(), format!("_delta_log/{version:020}.checkpoint"), difference, advice);
            return;
        }
        if self.state.is_none() {
            self.state = Some(base.clone());
        }
    }
}

fn difference(commits: &Snapshot, checkpoint: &Snapshot) -> Option<String> {
    let plain = |file: &FileEntry| FileEntry { data_change: false, ..file.clone() };
    let files = |s: &Snapshot| s.files().map(|f| (f.path.clone(), plain(f))).collect::<BTreeMap<_, _>>();
    let (ours, theirs) = (files(commits), files(checkpoint));
    if let Some((path, _)) = ours.iter().find(|(path, file)| theirs.get(*path) != Some(file)) {
        return Some(format!("it does not hold file `{path}` as the commits have it"));
    }
    if let Some(path) = theirs.keys().find(|path| !ours.contains_key(*path)) {
        return Some(format!("it holds file `{path}`, which the commits have not (or have removed)"));
    }
    if commits.txns().ne(checkpoint.txns()) {
        return Some("its offsets are not those of the commits".to_owned());
    }
    let same = commits.metadata() == checkpoint.metadata() && commits.protocol() == checkpoint.protocol();
    (!same).then(|| "its schema, properties or protocol are not those of the commits".to_owned())
}

async fn read_checkpoints(
    reader: &TableReader,
    listed: &BTreeMap<i64, Vec<String>>,
    report: &mut VerifyReport,
) -> Result<BTreeMap<i64, Snapshot>, StorageError> {
    let log = &reader.log;
    let hint = log.last_checkpoint().await?;
    if hint.is_none() && log.get(&log.path("_last_checkpoint")).await?.is_some() {
        let advice = "delete it: it is a hint only, and the next checkpoint writes it again";
        report.problem(reader.name(), "_delta_log/_last_checkpoint", "it is not what such a file holds", advice);
    }
    if let Some(hint) = hint.as_ref().filter(|h| !listed.contains_key(&h.version)) {
        let what = format!("it names checkpoint {}, which is not there", hint.version);
        report.problem(reader.name(), "_delta_log/_last_checkpoint", what, "delete it: the next checkpoint writes it again");
    }
    let mut read = BTreeMap::new();
    for (&version, names) in listed {
        let hash = hint.as_ref().filter(|h| h.version == version).and_then(|h| h.hash());
        match log.read_checkpoint(version, names, hash).await {
            Ok(snapshot) => drop(read.insert(version, snapshot)),
            Err(error @ (StorageError::Corrupt { .. } | StorageError::Parquet { .. } | StorageError::Arrow { .. })) => {
                let advice = "delete it if version 0 or an older checkpoint is there (the commits hold the same); else restore the table";
                report.problem(reader.name(), format!("_delta_log/{}", names[0]), error.to_string(), advice);
            }
            Err(error) => return Err(error),
        }
    }
    Ok(read)
}
