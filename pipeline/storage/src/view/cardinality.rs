//! What is large in the label index of a tenant, for status pages and SQL.

use super::ReadView;
use crate::engine::Storage;
use crate::index::Cardinality;
use arrow::array::{ArrayRef, Int64Builder, RecordBatch, StringBuilder};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use fletch_schemas::{METRIC_NAME, TenantId};
use std::sync::Arc;

/// What is in memory of one tenant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeadStats {
    /// The largest of each kind.
    pub cardinality: Arc<Cardinality>,
    /// Runs in memory.
    pub runs: u64,
    /// Earliest and latest sample in runs and files, milliseconds; `None` without samples.
    pub times_ms: Option<(i64, i64)>,
}

impl ReadView {
    /// What the index and the runs of this tenant hold. Series of days that nobody asked for since the start are not in the index.
    pub fn head_stats(&self, limit: usize) -> HeadStats {
        let days = || self.data.days.values();
        let of_runs = days().flat_map(|day| day.runs()).map(|run| (run.min_ms(), run.max_ms()));
        // The index of files rounds every maximum up by a millisecond.
        let of_files = days().flat_map(|day| &day.cold).filter_map(|f| f.keys.times_ms).map(|(min, max)| (min, max.saturating_sub(1)));
        let times_ms = of_runs.chain(of_files).reduce(|(a, b), (min, max)| (a.min(min), b.max(max)));
        let runs = days().map(|day| day.runs().count() as u64).sum();
        HeadStats { cardinality: self.tenant.cardinality(limit), runs, times_ms }
    }

    /// Every metric, label and label pair of the index as rows of [`cardinality_schema`].
    pub fn cardinality_batch(&self) -> RecordBatch {
        let mut rows = Rows::default();
        let mut names: Vec<(String, i64, i64)> = Vec::new();
        self.tenant.each_pair(None, |name, value, series| {
            let series = i64::try_from(series).unwrap_or(i64::MAX);
            if name == METRIC_NAME {
                rows.push("metric", value, None, series, None);
            }
            rows.push("pair", name, Some(value), series, None);
            match names.last_mut().filter(|(last, ..)| last == name) {
                // A series has a label once: its values share no series.
                Some((_, all, values)) => (*all, *values) = (*all + series, *values + 1),
                None => names.push((name.to_owned(), series, 1)),
            }
        });
        for (name, series, values) in names {
            rows.push("label", &name, None, series, Some(values));
        }
        rows.finish()
    }
}

impl Storage {
    /// The largest of each kind among the series of a tenant that are active at `now_ms`; `None` for a tenant without data.
    pub fn active_cardinality(&self, tenant: &TenantId, now_ms: i64, limit: usize) -> Option<Cardinality> {
        Some(self.core.find_tenant(tenant)?.active_cardinality(now_ms, limit))
    }

    /// Calls back for every label pair that active series of a tenant have: name, value, number of series. Returns the number of series.
    pub fn each_active_pair(&self, tenant: &TenantId, now_ms: i64, each: impl FnMut(&str, &str, u64)) -> u64 {
        let Some(index) = self.core.find_tenant(tenant) else { return 0 };
        let active = index.active(now_ms);
        index.each_pair(Some(&active), each);
        active.len()
    }
}

/// Columns of the rows of [`ReadView::cardinality_batch`]: `kind` is `metric`, `label` or `pair`; `name` the metric or label; `value` that of a
/// pair; `series` how many have it; `values` how many values a label has.
pub fn cardinality_schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("kind", DataType::Utf8, false),
        Field::new("name", DataType::Utf8, false),
        Field::new("value", DataType::Utf8, true),
        Field::new("series", DataType::Int64, false),
        Field::new("values", DataType::Int64, true),
    ]))
}

#[derive(Default)]
struct Rows {
    kind: StringBuilder,
    name: StringBuilder,
    value: StringBuilder,
    series: Int64Builder,
    values: Int64Builder,
}

impl Rows {
    fn push(&mut self, kind: &str, name: &str, value: Option<&str>, series: i64, values: Option<i64>) {
        self.kind.append_value(kind);
        self.name.append_value(name);
        self.value.append_option(value);
        self.series.append_value(series);
        self.values.append_option(values);
    }

    fn finish(mut self) -> RecordBatch {
        let columns: Vec<ArrayRef> = vec![
            Arc::new(self.kind.finish()),
            Arc::new(self.name.finish()),
            Arc::new(self.value.finish()),
            Arc::new(self.series.finish()),
            Arc::new(self.values.finish()),
        ];
        RecordBatch::try_new(cardinality_schema(), columns).expect("columns of one length with the types of the schema")
    }
}
