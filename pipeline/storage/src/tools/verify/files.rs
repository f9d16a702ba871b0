//! The files of one (tenant, date): their bytes, their rows, and whether every series has its labels.

use super::{FILES_AT_ONCE, Progress, Subject, VerifyReport, lost};
use crate::StorageError;
use crate::delta::{FileEntry, date_text};
use crate::parquet_file::audit::{Audit, ExpectedColumn, audit};
use crate::parquet_file::{FileSource, SeriesRow, decode_series};
use ahash::{HashMap, HashSet};
use fletch_schemas::{TenantId, date_of_ms};
use futures::{StreamExt, stream};
use std::sync::Arc;

/// Series of one (tenant, date) with a row in `series`.
#[derive(Debug, Default)]
pub(super) struct Labelled {
    /// Whether all files of `series` could be read: otherwise a missing row proves nothing.
    pub(super) known: bool,
    damaged: bool,
    series: HashMap<Arc<str>, HashSet<i64>>,
    /// The same of the day before. A row of a tier that stands at midnight holds samples of that day, and its series may be only there.
    before: Option<Box<Labelled>>,
}

impl Labelled {
    /// For the next day, where `before` is the day before it if there is anything of that.
    pub(super) fn after(before: Option<Labelled>) -> Self {
        Self { before: before.map(|day| Box::new(Labelled { before: None, ..day })), ..Self::default() }
    }

    fn has(&self, metric: &str, series_id: i64) -> bool {
        self.series.get(metric).is_some_and(|ids| ids.contains(&series_id))
    }

    /// Whether a row of a tier has labels, as far as that is known.
    fn may_have_in_tier(&self, metric: &str, series_id: i64) -> bool {
        self.has(metric, series_id) || self.before.as_ref().is_some_and(|day| day.damaged || day.has(metric, series_id))
    }
}

/// Why a file could not be checked, or what it holds.
enum Outcome {
    Read(Box<Audit>, Vec<String>),
    Unreadable(String),
}

/// Checks the files of one partition of one table.
pub(super) async fn check_partition(
    subject: &mut Subject,
    tenant: &TenantId,
    date: i32,
    labels: &mut Labelled,
    report: &mut VerifyReport,
    progress: &dyn Progress,
) -> Result<(), StorageError> {
    let is_series = subject.reader.name() == "series";
    let snapshot = subject.snapshot.clone();
    let files: Vec<Arc<FileEntry>> = snapshot.partition(tenant, date).to_vec();
    labels.damaged |= is_series && files.iter().any(|f| subject.bad.contains(&f.path));
    let (reader, expected) = (subject.reader.clone(), subject.expected.clone());
    let todo = files.into_iter().filter(|f| !subject.bad.contains(&f.path)).collect::<Vec<_>>();
    let mut outcomes = stream::iter(todo)
        .map(|file| {
            let (reader, expected) = (reader.clone(), expected.clone());
            async move {
                let path = reader.object_path(&file.path)?;
                let outcome = read(FileSource::object(reader.store().clone(), path, &file), expected, is_series).await?;
                Ok::<_, StorageError>((file, outcome))
            }
        })
        .buffered(FILES_AT_ONCE);
    while let Some(done) = outcomes.next().await {
        let (file, outcome) = done?;
        progress.advance(file.size);
        match outcome {
            Outcome::Unreadable(why) => {
                labels.damaged |= is_series;
                report.problem(reader.name(), &file.path, why, lost(&file));
            }
            Outcome::Read(found, wrong) => {
                subject.facts.rows += found.rows;
                judge(reader.name(), &file, &found, wrong, report);
                if is_series {
                    take_series(*found, labels);
                } else if labels.known && !labels.damaged {
                    check_labels(reader.name(), &file, &found, labels, report);
                }
            }
        }
    }
    Ok(())
}

async fn read(source: FileSource, expected: Arc<Vec<ExpectedColumn>>, is_series: bool) -> Result<Outcome, StorageError> {
    let bytes = match source.bytes().await {
        Ok(bytes) => bytes,
        Err(error @ StorageError::Corrupt { .. }) => return Ok(Outcome::Unreadable(error.to_string())),
        Err(StorageError::ObjectStore { source: object_store::Error::NotFound { .. }, .. }) => {
            return Ok(Outcome::Unreadable("the log names it and it is not there".to_owned()));
        }
        Err(error) => return Err(error),
    };
    let decoding = tokio::task::spawn_blocking(move || {
        let found = audit(&source, bytes.clone(), &expected)?;
        let wrong = if is_series { wrong_ids(&decode_series(&source, bytes)?, &found) } else { Vec::new() };
        Ok::<_, StorageError>((found, wrong))
    });
    match decoding.await {
        Ok(Ok((found, wrong))) => Ok(Outcome::Read(Box::new(found), wrong)),
        Ok(Err(error)) => Ok(Outcome::Unreadable(error.to_string())),
        Err(panic) => Ok(Outcome::Unreadable(format!("it cannot be decoded: {panic}"))),
    }
}

/// Rows of `series` whose id or metric is not that of their labels. A file with the right keys in another order is caught by the audit.
fn wrong_ids(rows: &[SeriesRow], found: &Audit) -> Vec<String> {
    let mut wrong = rows.iter().filter(|row| row.labels.series_id(row.probe) != row.series_id);
    let first = wrong.next().map(|row| format!("series {} has labels {} with another hash", row.series_id, row.labels));
    let mut texts: Vec<String> = first.map(|text| format!("{text} ({} such rows)", 1 + wrong.count())).into_iter().collect();
    let metric = rows.iter().zip(&found.keys).find(|(row, (metric, id))| *id == row.series_id && row.labels.metric() != metric.as_ref());
    texts.extend(metric.map(|(row, (metric, _))| format!("column `metric` is `{metric}` where the labels are {}", row.labels)));
    texts
}

/// What the log says about a file against what is in it.
fn judge(table: &str, file: &FileEntry, found: &Audit, wrong: Vec<String>, report: &mut VerifyReport) {
    let advice = "no version of fletch writes such a file: restore it from a backup, and tell us if only fletch has written here";
    for what in found.problems.iter().cloned().chain(wrong) {
        report.problem(table, &file.path, what, advice);
    }
    let mut lies = Vec::new();
    if file.rows > 0 && file.rows != found.rows {
        lies.push(format!("the log says {} rows, it has {}", file.rows, found.rows));
    }
    if outside(found.metrics.as_ref(), file.keys.metrics.as_ref()) {
        lies.push("it has metrics outside of the range in the log".to_owned());
    }
    if outside(found.series_ids.as_ref(), file.keys.series_ids.as_ref()) {
        lies.push("it has series ids outside of the range in the log".to_owned());
    }
    if outside(found.times_ms.as_ref(), file.keys.times_ms.as_ref()) {
        lies.push("it has times outside of the range in the log".to_owned());
    }
    for what in lies {
        report.problem(table, &file.path, what, "queries that trust the log miss rows of it: restore the table from a backup");
    }
    let dates = found.times_ms.map(|(min, max)| (date_of_ms(min), date_of_ms(max)));
    if dates.is_some_and(|(min, max)| min != file.date || max != file.date) {
        let what = format!("it has times of another date than its partition, {}", date_text(file.date));
        report.problem(table, &file.path, what, advice);
    }
}

fn outside<T: Ord>(found: Option<&(T, T)>, said: Option<&(T, T)>) -> bool {
    found.zip(said).is_some_and(|((min, max), (low, high))| min < low || max > high)
}

fn take_series(found: Audit, labels: &mut Labelled) {
    for (metric, series_id) in found.keys {
        labels.series.entry(metric).or_default().insert(series_id);
    }
}

fn check_labels(table: &str, file: &FileEntry, found: &Audit, labels: &Labelled, report: &mut VerifyReport) {
    let has = |metric: &str, id| if table == "samples" { labels.has(metric, id) } else { labels.may_have_in_tier(metric, id) };
    let mut missing = found.keys.iter().filter(|(metric, id)| !has(metric, *id));
    let Some((metric, series_id)) = missing.next() else { return };
    let others = missing.count();
    let more = if others > 0 { format!(" (and {others} more series)") } else { String::new() };
    let what = format!("`{metric}` (series {series_id}) has no row in `series` for {}{more}: its labels are lost", date_text(file.date));
    let advice = "queries skip these samples; restore the table `series`, or at least its files of this date, from a backup";
    report.problem(table, &file.path, what, advice);
}
