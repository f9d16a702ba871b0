//! Series with their samples: the read path of PromQL, rules and exports.

use super::{ReadView, SelectLimits, dates_of};
use crate::StorageError;
use crate::delta::FileEntry;
use crate::engine::load::Wanted;
use crate::run::merge::Piece;
use crate::run::write::ColumnsWriter;
use crate::run::{Run, RunSlice, rows_between};
use fletch_ingest::SeriesRef;
use fletch_schemas::{Matcher, SampleColumns, SeriesSet, Slice};
use std::ops::Range;
use std::sync::Arc;

/// Stands for the columns of merged series until the answer is complete.
const MERGED: u32 = u32::MAX;

impl ReadView {
    /// Series that match all matchers, with their samples in `[min_ms, max_ms]` (both ends included); series without one are left out. Any
    /// order of series.
    ///
    /// # Errors
    /// [`StorageError::Limit`], [`StorageError::Regex`], or a file that cannot be read.
    pub async fn select(&self, matchers: &[Matcher], min_ms: i64, max_ms: i64, limits: &SelectLimits) -> Result<SeriesSet, StorageError> {
        let conditions = self.core.patterns.conditions(matchers, self.core.settings.regex_bytes_max)?;
        if min_ms > max_ms {
            return Ok(SeriesSet::default());
        }
        self.core.ensure_series(&self.tenant, &self.series, dates_of(min_ms, max_ms)).await?;
        let refs: Vec<SeriesRef> = self.tenant.read().select(&conditions).into_iter().map(SeriesRef).collect();
        let mut sources = self.sources(min_ms, max_ms);
        if !sources.cold.is_empty() && !refs.is_empty() {
            let wanted = Wanted { tenant: &self.tenant, refs: &refs, min_ms, max_ms };
            let loaded = self.core.load_for(&sources.cold, &wanted).await?;
            sources.runs.extend(loaded.into_iter().filter(|run| run.overlaps(min_ms, max_ms)));
        }
        Assembly::new(&sources.runs, min_ms, max_ms, *limits).answer(&self.core.registry, &refs)
    }

    /// Everything of the view that may hold samples in a range.
    pub(super) fn sources(&self, min_ms: i64, max_ms: i64) -> Sources {
        let mut sources = Sources::default();
        let tick = self.core.tick();
        for day in self.data.days.range(dates_of(min_ms, max_ms)).map(|(_, day)| day) {
            sources.runs.extend(day.hot.iter().filter(|h| h.run.overlaps(min_ms, max_ms)).map(|h| h.run.clone()));
            for group in &day.resident {
                let before = sources.runs.len();
                sources.runs.extend(group.runs.iter().filter(|run| run.overlaps(min_ms, max_ms)).cloned());
                if sources.runs.len() > before {
                    group.touch(tick);
                }
            }
            sources.cold.extend(day.cold.iter().filter(|f| f.keys.may_hold_times(min_ms, max_ms)).cloned());
        }
        sources
    }
}

/// What a selection reads.
#[derive(Debug, Default)]
pub(super) struct Sources {
    pub(super) runs: Vec<Arc<Run>>,
    pub(super) cold: Vec<Arc<FileEntry>>,
}

/// Puts an answer together.
struct Assembly<'a> {
    runs: &'a [Arc<Run>],
    min_ms: i64,
    max_ms: i64,
    limits: SelectLimits,
    /// Place of each run's columns in the answer.
    places: Vec<Option<u32>>,
    /// Rows in range of the time stretch seen last in each run: neighbours often share it.
    seen: Vec<Option<(u32, u32, Range<usize>)>>,
    out: SeriesSet,
    merged: ColumnsWriter,
    samples: usize,
}

impl<'a> Assembly<'a> {
    fn new(runs: &'a [Arc<Run>], min_ms: i64, max_ms: i64, limits: SelectLimits) -> Self {
        let (places, seen) = (vec![None; runs.len()], vec![None; runs.len()]);
        let (out, merged) = (SeriesSet::default(), ColumnsWriter::default());
        Self { runs, min_ms, max_ms, limits, places, seen, out, merged, samples: 0 }
    }

    fn answer(mut self, registry: &fletch_ingest::SeriesRegistry, refs: &[SeriesRef]) -> Result<SeriesSet, StorageError> {
        let mut found = Vec::with_capacity(refs.len());
        let mut hits: Vec<(usize, RunSlice, Range<usize>)> = Vec::with_capacity(self.runs.len());
        for &series in refs {
            hits.clear();
            for at in 0..self.runs.len() {
                if let Some(slice) = self.runs[at].find(series) {
                    let rows = self.rows(at, slice);
                    if !rows.is_empty() {
                        hits.push((at, slice, rows));
                    }
                }
            }
            if let Some(slice) = self.slice(&hits) {
                self.count(found.len() + 1, slice.len as usize)?;
                found.push(series);
                self.out.slices.push(slice);
            }
        }
        self.out.labels = registry.with(|all| found.iter().map(|r| all[r.index()].labels.clone()).collect());
        Ok(self.finish())
    }

    /// The rows of a slice that lie in the range.
    fn rows(&mut self, at: usize, slice: RunSlice) -> Range<usize> {
        if let Some((start, len, rows)) = &self.seen[at]
            && (*start, *len) == (slice.time_start, slice.len)
        {
            return rows.clone();
        }
        let rows = rows_between(self.runs[at].times(slice), self.min_ms, self.max_ms);
        self.seen[at] = Some((slice.time_start, slice.len, rows.clone()));
        rows
    }

    fn slice(&mut self, hits: &[(usize, RunSlice, Range<usize>)]) -> Option<Slice> {
        match hits {
            [] => None,
            [(at, slice, rows)] => {
                let columns = self.place(*at);
                let fits = |n: usize| u32::try_from(n).ok();
                let (skipped, len) = (fits(rows.start)?, fits(rows.len())?);
                Some(Slice { columns, time_start: slice.time_start + skipped, value_start: slice.value_start + skipped, len })
            }
            many => {
                let mut pieces: Vec<Piece<'_>> = many
                    .iter()
                    .map(|(at, slice, rows)| {
                        let run = &self.runs[*at];
                        Piece { times: &run.times(*slice)[rows.clone()], values: &run.values(*slice)[rows.clone()] }
                    })
                    .collect();
                let (slice, _) = self.merged.push(&mut pieces)?;
                Some(Slice { columns: MERGED, time_start: slice.time_start, value_start: slice.value_start, len: slice.len })
            }
        }
    }

    fn place(&mut self, at: usize) -> u32 {
        if let Some(place) = self.places[at] {
            return place;
        }
        let place = u32::try_from(self.out.columns.len()).expect("a view has fewer than 2^32 runs");
        self.out.columns.push(self.runs[at].columns().clone());
        self.places[at] = Some(place);
        place
    }

    fn count(&mut self, series: usize, samples: usize) -> Result<(), StorageError> {
        self.samples += samples;
        let SelectLimits { series_max, samples_max } = self.limits;
        if series > series_max {
            return Err(StorageError::Limit(format!("the selector matches more than query_series_max = {series_max} series; narrow it")));
        }
        if self.samples > samples_max {
            let text = format!("the selector loads more than query_samples_max = {samples_max} samples; narrow it or its time range");
            return Err(StorageError::Limit(text));
        }
        Ok(())
    }

    fn finish(mut self) -> SeriesSet {
        if !self.merged.is_empty() {
            let place = u32::try_from(self.out.columns.len()).expect("a view has fewer than 2^32 runs");
            let columns: Arc<SampleColumns> = self.merged.finish();
            self.out.columns.push(columns);
            for slice in self.out.slices.iter_mut().filter(|s| s.columns == MERGED) {
                slice.columns = place;
            }
        }
        self.out
    }
}
