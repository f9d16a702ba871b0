//! Rows for SQL: what no file holds yet, and the table `series` with live values.

use super::ReadView;
use crate::StorageError;
use crate::delta::FileEntry;
use crate::engine::facts::Fact;
use crate::engine::flush::series_row;
use crate::engine::state::DayData;
use crate::index::PatternCache;
use crate::parquet_file::{SeriesRow, series_batch};
use crate::run::Run;
use crate::run::merge::{Piece, merge_pieces, union_refs};
use arrow::array::{
    ArrayRef, Date32Array, Float64Builder, Int64Builder, RecordBatch, StringArray, StringBuilder, TimestampMicrosecondArray, new_null_array,
};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use fletch_ingest::SeriesRef;
use fletch_schemas::tables::{Table, time_type};
use fletch_schemas::{METRIC_NAME, Matcher, is_stale};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Columns of [`ReadView::unflushed_batches`]: those of a `samples` file, then `date`.
pub fn unflushed_schema() -> SchemaRef {
    let mut fields: Vec<Field> = Table::Samples.file_schema().fields().iter().map(|f| f.as_ref().clone()).collect();
    fields.push(Field::new("date", DataType::Date32, false));
    Arc::new(Schema::new(fields))
}

type FactMap = BTreeMap<SeriesRef, Fact>;

fn arrow(source: arrow::error::ArrowError) -> StorageError {
    StorageError::Arrow { doing: "building rows", source }
}

impl ReadView {
    /// Samples that are in no file of this view: columns of a `samples` file and `date`. One batch per date, ascending; each is sorted by
    /// (metric, series_id, time) and has one row per key.
    ///
    /// # Errors
    /// [`StorageError::Arrow`] when a column grows over what Arrow can address.
    pub fn unflushed_batches(&self, metric: Option<&str>, min_ms: i64, max_ms: i64) -> Result<Vec<RecordBatch>, StorageError> {
        let mut batches = Vec::new();
        if min_ms > max_ms {
            return Ok(batches);
        }
        let of_metric = metric.map(|m| self.metric_refs(m)).transpose()?;
        for (&date, day) in self.data.days.range(super::dates_of(min_ms, max_ms)) {
            let runs: Vec<&Run> = day.hot.iter().map(|h| h.run.as_ref()).filter(|run| run.overlaps(min_ms, max_ms)).collect();
            if runs.is_empty() {
                continue;
            }
            let refs = of_metric.clone().unwrap_or_else(|| union_refs(runs.iter().copied()));
            let batch = self.day_batch(date, &runs, &refs, min_ms, max_ms)?;
            if batch.num_rows() > 0 {
                batches.push(batch);
            }
        }
        Ok(batches)
    }

    fn metric_refs(&self, metric: &str) -> Result<Vec<SeriesRef>, StorageError> {
        let conditions = PatternCache::default().conditions(&[Matcher::equal(METRIC_NAME, metric)], 0)?;
        Ok(self.tenant.read().select(&conditions).into_iter().map(SeriesRef).collect())
    }

    fn day_batch(&self, date: i32, runs: &[&Run], refs: &[SeriesRef], min_ms: i64, max_ms: i64) -> Result<RecordBatch, StorageError> {
        let ids = self.tenant.ids(date, refs);
        let series: Vec<_> = self.core.registry.with(|all| refs.iter().map(|r| all[r.index()].clone()).collect());
        let mut keys: Vec<(&str, i64, SeriesRef)> =
            series.iter().zip(&ids).zip(refs).map(|((s, &id), &r)| (s.labels.metric(), id, r)).collect();
        keys.sort_unstable();
        let (mut metrics, mut series_ids) = (StringBuilder::new(), Int64Builder::new());
        let (mut times, mut values) = (Vec::new(), Vec::new());
        let mut pieces: Vec<Piece<'_>> = Vec::with_capacity(runs.len());
        for (metric, id, series) in keys {
            pieces.clear();
            let found =
                runs.iter().filter_map(|run| run.series(series)).map(|(times, values)| Piece { times, values }.between(min_ms, max_ms));
            pieces.extend(found.filter(|p| !p.times.is_empty()));
            let before = times.len();
            merge_pieces(&mut pieces, &mut times, &mut values);
            for _ in before..times.len() {
                metrics.append_value(metric);
                series_ids.append_value(id);
            }
        }
        for time in &mut times {
            *time *= 1_000;
        }
        let rows = times.len();
        let columns: Vec<ArrayRef> = vec![
            Arc::new(metrics.finish()),
            Arc::new(series_ids.finish()),
            Arc::new(TimestampMicrosecondArray::from(times).with_timezone("UTC")),
            nullable(&values),
            new_null_array(&time_type(), rows),
            Arc::new(Date32Array::from(vec![date; rows])),
        ];
        RecordBatch::try_new(unflushed_schema(), columns).map_err(arrow)
    }

    /// Rows of `series` (table schema) for dates `min_date..=max_date`: stored rows with live values laid over them, each series once per date.
    /// One batch per date, ascending, sorted by (metric, series_id). `last_seen` and `samples` of a date are known when all of its samples are
    /// in memory, or once maintenance has closed it; else they are NULL.
    ///
    /// # Errors
    /// A file cannot be read.
    pub async fn series_batches(&self, metric: Option<&str>, min_date: i32, max_date: i32) -> Result<Vec<RecordBatch>, StorageError> {
        let mut batches = Vec::new();
        if min_date > max_date {
            return Ok(batches);
        }
        self.core.ensure_series(&self.tenant, &self.series, min_date..=max_date).await?;
        let mut dates: BTreeMap<i32, Option<&Arc<DayData>>> =
            self.data.days.range(min_date..=max_date).map(|(&d, day)| (d, Some(day))).collect();
        for date in self.series.dates(self.tenant.id()).filter(|d| (min_date..=max_date).contains(d)) {
            dates.entry(date).or_insert(None);
        }
        let wanted = metric.map(|m| self.metric_refs(m)).transpose()?;
        for (date, day) in dates {
            let stored = self.stored_facts(metric, wanted.as_deref(), self.series.partition(self.tenant.id(), date)).await?;
            let rows = self.rows_of_day(date, overlay(stored, wanted.as_deref(), day.map(Arc::as_ref)));
            if !rows.is_empty() {
                batches.push(self.series_batch_of(date, &rows)?);
            }
        }
        Ok(batches)
    }

    async fn stored_facts(
        &self,
        metric: Option<&str>,
        wanted: Option<&[SeriesRef]>,
        files: &[Arc<FileEntry>],
    ) -> Result<FactMap, StorageError> {
        let mut rows = FactMap::new();
        for file in files.iter().filter(|f| metric.is_none_or(|m| f.keys.may_hold_metric(m))) {
            let facts = self.core.facts_of(&self.tenant, file).await?;
            match wanted {
                Some(refs) => rows.extend(refs.iter().filter_map(|&r| facts.get(r)).map(|f| (f.series, *f))),
                None => rows.extend(facts.iter().map(|f| (f.series, *f))),
            }
        }
        Ok(rows)
    }

    fn rows_of_day(&self, date: i32, facts: FactMap) -> Vec<SeriesRow> {
        let refs: Vec<SeriesRef> = facts.keys().copied().collect();
        let probes = self.tenant.read().day(date).map(|d| d.probes.clone()).unwrap_or_default();
        let keys = facts.values().zip(self.tenant.ids(date, &refs));
        keys.map(|(fact, id)| {
            let probe = probes.get(&fact.series).copied().unwrap_or(0);
            let row = series_row(&self.tenant, &self.core.registry, fact.series, id, probe, fact.first_seen_ms);
            SeriesRow { last_seen_ms: fact.last_seen_ms, samples: fact.samples, ..row }
        })
        .collect()
    }

    fn series_batch_of(&self, date: i32, rows: &[SeriesRow]) -> Result<RecordBatch, StorageError> {
        let mut sorted: Vec<&SeriesRow> = rows.iter().collect();
        sorted.sort_by_key(|row| (row.labels.metric(), row.series_id));
        let batch = series_batch(&sorted).map_err(arrow)?;
        let tenant = StringArray::from_iter_values(std::iter::repeat_n(self.tenant.id().as_str(), sorted.len()));
        let mut columns: Vec<ArrayRef> = vec![Arc::new(tenant), Arc::new(Date32Array::from(vec![date; sorted.len()]))];
        columns.extend(batch.columns().iter().cloned());
        RecordBatch::try_new(Table::Series.table_schema(), columns).map_err(arrow)
    }
}

/// Adds series that have no row yet, and what runs in memory know.
fn overlay(mut facts: FactMap, wanted: Option<&[SeriesRef]>, day: Option<&DayData>) -> FactMap {
    let Some(day) = day else { return facts };
    let runs: Vec<&Run> = day.runs().map(Arc::as_ref).collect();
    let live = wanted.map_or_else(|| union_refs(runs.iter().copied()), <[SeriesRef]>::to_vec);
    for series in live {
        let mut slices: Vec<&[i64]> = runs.iter().filter_map(|run| run.series(series)).map(|(times, _)| times).collect();
        let Some((first, last, samples)) = extent(&mut slices) else { continue };
        let fact = facts.entry(series).or_insert(Fact { series, first_seen_ms: None, last_seen_ms: None, samples: None });
        fact.first_seen_ms = Some(fact.first_seen_ms.map_or(first, |known| known.min(first)));
        // With a file that is not in memory the day's end is not known here.
        if day.cold.is_empty() {
            (fact.last_seen_ms, fact.samples) = (Some(last), Some(samples));
        }
    }
    facts
}

/// First and last time of slices that ascend, and how many different times they have: copies of a sample in two runs count once.
fn extent(slices: &mut [&[i64]]) -> Option<(i64, i64, i64)> {
    slices.sort_unstable_by_key(|times| times.first().copied());
    let first = slices.iter().find_map(|times| times.first())?;
    let last = slices.iter().filter_map(|times| times.last()).max()?;
    let apart = slices.windows(2).all(|pair| pair[0].last() < pair[1].first());
    let samples = if apart {
        slices.iter().map(|times| times.len()).sum()
    } else {
        let mut all = slices.concat();
        all.sort_unstable();
        all.dedup();
        all.len()
    };
    Some((*first, *last, i64::try_from(samples).unwrap_or(i64::MAX)))
}

/// Values with the stale marker as NULL.
fn nullable(values: &[f64]) -> ArrayRef {
    let mut out = Float64Builder::with_capacity(values.len());
    for &value in values {
        if is_stale(value) {
            out.append_null();
        } else {
            out.append_value(value);
        }
    }
    Arc::new(out.finish())
}

#[cfg(test)]
mod tests {
    use super::extent;

    #[test]
    fn copies_of_a_sample_count_once() {
        assert_eq!(extent(&mut []), None);
        assert_eq!(extent(&mut [&[5, 6], &[1, 2, 3]]), Some((1, 6, 5)));
        assert_eq!(extent(&mut [&[1, 5, 9], &[5, 7], &[9]]), Some((1, 9, 4)));
    }
}
