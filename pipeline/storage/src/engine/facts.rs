//! What rows of `series` say about a day beside labels and ids: when a series was seen, how many samples it had.
//!
//! Labels are in the index for good; these are needed by SQL only, so they are kept for the files used last and read again otherwise.

use crate::parquet_file::SeriesRow;
use fletch_ingest::SeriesRef;
use parking_lot::Mutex;
use std::sync::Arc;

/// Rows that are kept over all files, 56 bytes each.
const FACTS_MAX: usize = 1 << 20;

/// What one row says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Fact {
    pub(crate) series: SeriesRef,
    pub(crate) first_seen_ms: Option<i64>,
    pub(crate) last_seen_ms: Option<i64>,
    pub(crate) samples: Option<i64>,
}

/// The rows of one file, ascending by series.
#[derive(Debug, Clone, Default)]
pub(crate) struct Facts(Arc<Vec<Fact>>);

impl Facts {
    pub(crate) fn of<'a>(rows: impl Iterator<Item = (SeriesRef, &'a SeriesRow)>) -> Self {
        let fact = |(series, row): (SeriesRef, &SeriesRow)| {
            let SeriesRow { first_seen_ms, last_seen_ms, samples, .. } = *row;
            Fact { series, first_seen_ms, last_seen_ms, samples }
        };
        let mut all: Vec<Fact> = rows.map(fact).collect();
        all.sort_by_key(|f| f.series);
        Self(Arc::new(all))
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Fact> {
        self.0.iter()
    }

    pub(crate) fn get(&self, series: SeriesRef) -> Option<&Fact> {
        self.0.binary_search_by_key(&series, |f| f.series).ok().map(|at| &self.0[at])
    }
}

/// Facts of the files used last.
#[derive(Debug, Default)]
pub(crate) struct FactsCache {
    /// Oldest use first.
    files: Mutex<Vec<(String, Facts)>>,
}

impl FactsCache {
    pub(crate) fn get(&self, path: &str) -> Option<Facts> {
        let mut files = self.files.lock();
        let at = files.iter().position(|(p, _)| p == path)?;
        let used = files.remove(at);
        let facts = used.1.clone();
        files.push(used);
        Some(facts)
    }

    pub(crate) fn put(&self, path: &str, facts: Facts) {
        let mut files = self.files.lock();
        files.retain(|(p, _)| p != path);
        files.push((path.to_owned(), facts));
        let mut total: usize = files.iter().map(|(_, f)| f.0.len()).sum();
        // The newest stays whatever its size: somebody is using it.
        while total > FACTS_MAX && files.len() > 1 {
            total -= files.remove(0).1.0.len();
        }
    }
}
