//! One rule at work on one partition of the bus: subscriptions, open windows, watermark.

use super::aggregate::column;
use super::compile::{Compiled, Group, Input};
use super::panes::{GroupRef, Pane, Panes};
use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, Float64Array, StringArray, TimestampMicrosecondArray};
use arrow::datatypes::DataType;
use arrow::record_batch::RecordBatch;
use datafusion::common::DataFusionError;
use datafusion::physical_expr::PhysicalExpr;
use fletch_ingest::SeriesRef;
use fletch_schemas::{Labels, LabelsBuilder, is_stale};
use fletch_udfs::tumble::window_end;
use std::collections::HashMap;
use std::sync::Arc;

/// Most windows without samples that one step of time judges one by one (alerts resolve in them); beyond it time jumps.
const EMPTY_WINDOWS_MAX: i64 = 10_000;

/// What a series is to a rule, decided once per series.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subscription {
    /// Its labels do not pass WHERE, or it is another metric.
    No,
    /// Its samples go into this group.
    Group(u32),
}

/// A window that closed, with the groups for which the condition holds.
#[derive(Debug, Clone, PartialEq)]
pub struct ClosedWindow {
    /// End of the window, milliseconds: the event time of the verdicts.
    pub end_ms: i64,
    /// Labels from the SELECT list and the value, for each group that passes HAVING.
    pub holds: Vec<(Labels, f64)>,
}

/// A sample of a subscribed series: the series, its labels, its group, time in milliseconds, value.
pub(super) type Row<'a> = (SeriesRef, &'a Labels, u32, i64, f64);

/// One rule's windows over one partition.
#[derive(Debug)]
pub struct RuleWindows {
    compiled: Arc<Compiled>,
    lateness_ms: i64,
    watermark_ms: i64,
    judged_ms: i64,
    panes: Panes,
    group_keys: Vec<Vec<Option<String>>>,
    group_refs: HashMap<Vec<Option<String>>, GroupRef>,
    /// Samples that came after their window had closed.
    pub late_dropped: u64,
    /// Samples that were counted already.
    pub counted_before: u64,
    /// Samples refused because too many windows were open.
    pub overflowed: u64,
}

impl RuleWindows {
    /// A rule that judges windows which end after `watermark_ms` (milliseconds, event time).
    pub fn new(compiled: Arc<Compiled>, lateness_ms: i64, watermark_ms: i64) -> Self {
        let judged_ms = watermark_ms.div_euclid(compiled.size_ms) * compiled.size_ms;
        Self {
            compiled,
            lateness_ms,
            watermark_ms,
            judged_ms,
            panes: Panes::default(),
            group_keys: Vec::new(),
            group_refs: HashMap::new(),
            late_dropped: 0,
            counted_before: 0,
            overflowed: 0,
        }
    }

    /// What it reads.
    pub fn compiled(&self) -> &Compiled {
        &self.compiled
    }

    /// Every window that ends at or before this was judged.
    pub fn watermark_ms(&self) -> i64 {
        self.watermark_ms
    }

    /// Decides about a series; labels and group expressions are looked at here and never again.
    ///
    /// # Errors
    /// WHERE cannot be evaluated on these labels.
    pub fn subscribe(&mut self, labels: &Labels) -> Result<Subscription, DataFusionError> {
        if labels.metric() != self.compiled.metric {
            return Ok(Subscription::No);
        }
        if let Some(filter) = &self.compiled.series_filter {
            let row = self.rows(&[(labels, 0, 0.0)])?;
            if !mask(filter, &row)?.is_some_and(|m| m.is_valid(0) && m.value(0)) {
                return Ok(Subscription::No);
            }
        }
        let key: Vec<Option<String>> = self
            .compiled
            .groups
            .iter()
            .map(|group| match group {
                Group::WindowEnd => None,
                Group::Label(name) => labels.get(name).map(str::to_owned),
            })
            .collect();
        let next = GroupRef::try_from(self.group_keys.len()).unwrap_or(GroupRef::MAX);
        let group = *self.group_refs.entry(key.clone()).or_insert(next);
        if group == next {
            self.group_keys.push(key);
        }
        Ok(Subscription::Group(group))
    }

    /// Counts samples of subscribed series.
    ///
    /// # Errors
    /// WHERE cannot be evaluated on them; then none is counted.
    pub fn add(&mut self, samples: &[Row<'_>]) -> Result<(), DataFusionError> {
        let keep = match &self.compiled.row_filter {
            None => None,
            Some(filter) => {
                let rows: Vec<_> = samples.iter().map(|&(_, labels, _, time, value)| (labels, time, value)).collect();
                mask(filter, &self.rows(&rows)?)?
            }
        };
        for (i, &(series, _, group, time_ms, value)) in samples.iter().enumerate() {
            if keep.as_ref().is_some_and(|m| !(m.is_valid(i) && m.value(i))) {
                continue;
            }
            self.add_one(series, group, time_ms, value);
        }
        Ok(())
    }

    fn add_one(&mut self, series: SeriesRef, group: GroupRef, time_ms: i64, value: f64) {
        let Some(end_ms) = window_end(time_ms, self.compiled.size_ms) else { return };
        if end_ms <= self.watermark_ms {
            self.late_dropped += 1;
        } else if self.panes.is_full() {
            self.overflowed += 1;
        } else if !self.panes.add(end_ms, group, series, time_ms, value) {
            self.counted_before += 1;
        }
    }

    /// Moves time to `append_time_ms − lateness`; then [`next_closed`](Self::next_closed) gives the windows that closed by it.
    pub fn advance(&mut self, append_time_ms: i64) {
        self.watermark_ms = self.watermark_ms.max(append_time_ms.saturating_sub(self.lateness_ms));
    }

    /// The next window that has closed and is not judged yet, in order of time. `alerts_active`: windows without samples matter too, because
    /// alerts resolve in them.
    ///
    /// # Errors
    /// HAVING or SELECT cannot be evaluated on a window; the error names it and it counts as judged.
    pub fn next_closed(&mut self, alerts_active: bool) -> Option<Result<ClosedWindow, DataFusionError>> {
        let size = self.compiled.size_ms;
        let last = self.watermark_ms.div_euclid(size) * size;
        let with_samples = self.panes.first_end().filter(|end| *end <= self.watermark_ms);
        let empty = (alerts_active && self.judged_ms < last).then(|| (self.judged_ms + size).max(last - EMPTY_WINDOWS_MAX * size));
        let Some(end_ms) = with_samples.into_iter().chain(empty).min() else {
            self.judged_ms = self.judged_ms.max(last);
            return None;
        };
        let pane = self.panes.close_next(end_ms).map(|(_, pane)| pane).unwrap_or_default();
        self.judged_ms = end_ms;
        Some(self.close(end_ms, &pane).map_err(|error| error.context(format!("window that ends at {end_ms} ms"))))
    }

    fn close(&self, end_ms: i64, pane: &Pane) -> Result<ClosedWindow, DataFusionError> {
        let mut groups: Vec<_> = pane.groups.iter().collect();
        // By key, so that the order of verdicts does not depend on the order of arrival.
        groups.sort_by(|a, b| self.group_keys[*a.0 as usize].cmp(&self.group_keys[*b.0 as usize]));
        if groups.is_empty() {
            return Ok(ClosedWindow { end_ms, holds: Vec::new() });
        }
        let mut columns: Vec<ArrayRef> = Vec::with_capacity(self.compiled.window.fields().len());
        for (i, group) in self.compiled.groups.iter().enumerate() {
            columns.push(match group {
                Group::WindowEnd => times(groups.iter().map(|_| end_ms)),
                Group::Label(_) => {
                    Arc::new(StringArray::from_iter(groups.iter().map(|(g, _)| self.group_keys[**g as usize][i].as_deref())))
                }
            });
        }
        let states: Vec<_> = groups.iter().map(|(_, state)| **state).collect();
        columns.extend(self.compiled.aggregates.iter().map(|a| column(*a, &states)));
        let batch = RecordBatch::try_new(self.compiled.window.clone(), columns)?;
        let keep = match &self.compiled.having {
            None => None,
            Some(having) => mask(having, &batch)?,
        };
        let values = self.compiled.value.evaluate(&batch)?.into_array(batch.num_rows())?;
        let values = arrow::compute::cast(&values, &DataType::Float64)?;
        let values: &Float64Array = values.as_primitive();
        let holds = (0..batch.num_rows()).filter(|&i| keep.as_ref().is_none_or(|m| m.is_valid(i) && m.value(i)));
        let labels = |row: usize| {
            let mut builder = LabelsBuilder::default();
            for (name, at) in &self.compiled.labels {
                builder.set(name, self.group_keys[*groups[row].0 as usize][*at].as_deref().unwrap_or(""));
            }
            builder.build().map_err(|e| DataFusionError::Execution(e.to_string()))
        };
        let holds = holds.map(|row| Ok((labels(row)?, if values.is_valid(row) { values.value(row) } else { f64::NAN })));
        Ok(ClosedWindow { end_ms, holds: holds.collect::<Result<_, DataFusionError>>()? })
    }

    /// Input rows as the filters see them.
    fn rows(&self, rows: &[(&Labels, i64, f64)]) -> Result<RecordBatch, DataFusionError> {
        let column = |input: &Input| -> ArrayRef {
            match input {
                Input::Time => times(rows.iter().map(|r| r.1)),
                Input::Value => Arc::new(Float64Array::from_iter(rows.iter().map(|r| (!is_stale(r.2)).then_some(r.2)))),
                Input::Label(name) => Arc::new(StringArray::from_iter(rows.iter().map(|r| r.0.get(name)))),
            }
        };
        Ok(RecordBatch::try_new(self.compiled.rows.clone(), self.compiled.inputs.iter().map(column).collect())?)
    }
}

fn times(ms: impl Iterator<Item = i64>) -> ArrayRef {
    Arc::new(TimestampMicrosecondArray::from_iter_values(ms.map(|t| t.saturating_mul(1_000))).with_timezone("UTC"))
}

fn mask(filter: &Arc<dyn PhysicalExpr>, batch: &RecordBatch) -> Result<Option<BooleanArray>, DataFusionError> {
    let array = filter.evaluate(batch)?.into_array(batch.num_rows())?;
    Ok(array.as_boolean_opt().cloned())
}

#[cfg(test)]
mod tests;
