//! Views `m."<metric>"`: the samples of one metric with its labels as columns.
//!
//! ```text
//!  time | value | code | host | label_value          one column per label name, in name order; NULL = the series has no such label
//!                             └─ label `value` collides with a column and is renamed
//! ```
//!
//! A view reads series, not rows: conditions on labels choose series through the label index, then each series' samples are laid out in
//! batches with its labels repeated. Labels are looked up once per series, never per sample.
//!
//! # Invariants
//! - The columns are those of the series that the metric had when the view was opened; they are fixed for the statement.
//! - A condition is answered `Exact` only if selecting by it leaves precisely the rows for which it is true. The others are checked above.
//! - One stretch of days is selected at a time, so that a long range of a big metric need not fit in memory at once; its samples are
//!   accounted for in the memory pool.
//! - Samples are merged and deduplicated by the read view, so a limit may stop the scan early.
//!
//! # When it fails
//! More samples or series than the limits allow in one stretch end the query with an error that names the limit.

mod batches;
#[cfg(test)]
mod tests;

use super::keys::{equal_texts, is_column, text, time_bound};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use async_trait::async_trait;
use batches::MetricExec;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::Result;
use datafusion::logical_expr::{BinaryExpr, Expr, Operator, TableProviderFilterPushDown, TableType};
use datafusion::physical_plan::ExecutionPlan;
use fletch_schemas::tables::{Table, time_type};
use fletch_schemas::{METRIC_NAME, MatchOp, Matcher, day_start_ms};
use fletch_storage::{ReadView, SelectLimits, StorageError};
use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;

/// Columns of every view, before the labels.
const FIXED_COLUMNS: [&str; 2] = ["time", "value"];

/// See the module.
#[derive(Debug)]
pub(crate) struct MetricTable {
    view: ReadView,
    metric: String,
    schema: SchemaRef,
    /// Label names of the columns after the fixed ones.
    labels: Arc<[String]>,
    limits: SelectLimits,
}

/// What the conditions of a statement leave of a metric.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Selection {
    matchers: Vec<Matcher>,
    min_ms: i64,
    max_ms: i64,
}

impl MetricTable {
    /// The view of `metric`, or `None` when there is no such metric.
    ///
    /// # Errors
    /// The label index cannot be read.
    pub(crate) async fn open(view: &ReadView, metric: &str, limits: SelectLimits) -> Result<Option<Self>, StorageError> {
        let sets = [vec![Matcher::equal(METRIC_NAME, metric)]];
        let mut names = view.label_names(&sets, i64::MIN / 1_000, i64::MAX / 1_000).await?;
        if names.is_empty() {
            return Ok(None);
        }
        names.retain(|name| name != METRIC_NAME);
        names.sort();
        Ok(Some(Self { view: view.clone(), metric: metric.to_owned(), schema: schema_of(&names), labels: names.into(), limits }))
    }

    /// The label behind a column, if it is one.
    fn label_of(&self, column: &str) -> Option<&str> {
        let at = self.schema.index_of(column).ok()?;
        self.labels.get(at.checked_sub(FIXED_COLUMNS.len())?).map(String::as_str)
    }

    /// What a condition means for the selection, and whether that is all it means.
    fn understand(&self, filter: &Expr) -> Option<(Condition, bool)> {
        if let Some((min, max)) = time_bound(filter) {
            return Some((Condition::Time(min, max), true));
        }
        self.labels.iter().enumerate().find_map(|(at, label)| {
            let column = self.schema.field(FIXED_COLUMNS.len() + at).name();
            let (op, value, exact) = label_condition(filter, column)?;
            Some((Condition::Label(Matcher::new(label.clone(), op, value)), exact))
        })
    }

    fn selection(&self, filters: &[Expr]) -> Selection {
        let matchers = vec![Matcher::equal(METRIC_NAME, self.metric.clone())];
        let mut selection = Selection { matchers, min_ms: i64::MIN / 1_000, max_ms: i64::MAX / 1_000 };
        for (condition, _) in filters.iter().filter_map(|f| self.understand(f)) {
            match condition {
                Condition::Time(min, max) => {
                    selection.min_ms = selection.min_ms.max(min);
                    selection.max_ms = selection.max_ms.min(max);
                }
                Condition::Label(matcher) => selection.matchers.push(matcher),
            }
        }
        selection
    }

    /// Splits the times of a selection where days with files begin. Samples that are in no file fall into one of the stretches, too.
    fn stretches(&self, selection: &Selection) -> Vec<(i64, i64)> {
        let (min, max) = (selection.min_ms, selection.max_ms);
        if min > max {
            return Vec::new();
        }
        let files = self.view.files(Table::Samples);
        let days: BTreeSet<i64> = files
            .iter()
            .filter(|f| f.keys.may_hold_metric(&self.metric) && f.keys.may_hold_times(min, max))
            .map(|f| day_start_ms(f.date))
            .filter(|start| min < *start && *start <= max)
            .collect();
        let starts = std::iter::once(min).chain(days.iter().copied());
        let ends = days.iter().map(|start| start - 1).chain(std::iter::once(max));
        starts.zip(ends).collect()
    }
}

enum Condition {
    Time(i64, i64),
    Label(Matcher),
}

/// `time`, `value`, then the labels; a label that collides gets `label_` in front, as often as it takes.
fn schema_of(labels: &[String]) -> SchemaRef {
    let mut taken: HashSet<String> = FIXED_COLUMNS.iter().map(|c| (*c).to_owned()).collect();
    let plain: HashSet<&str> = labels.iter().map(String::as_str).collect();
    let mut fields = vec![Field::new("time", time_type(), false), Field::new("value", DataType::Float64, true)];
    for label in labels {
        let mut name = label.clone();
        while taken.contains(&name) || (name != *label && plain.contains(name.as_str())) {
            name.insert_str(0, "label_");
        }
        taken.insert(name.clone());
        fields.push(Field::new(name, DataType::Utf8, true));
    }
    Arc::new(Schema::new(fields))
}

/// A matcher that every row satisfies for which `filter`, a condition on `column`, is true; and whether the reverse holds, too.
fn label_condition(filter: &Expr, column: &str) -> Option<(MatchOp, String, bool)> {
    if let Some(values) = equal_texts(filter, column) {
        // An absent label is NULL in SQL, equal to nothing, but the empty text to a matcher.
        let exact = !values.contains("");
        let mut values = values.into_iter();
        return match (values.next(), values.next()) {
            (Some(only), None) => Some((MatchOp::Equal, only, exact)),
            (Some(a), Some(b)) => {
                let all: Vec<String> = [a, b].into_iter().chain(values).map(|v| regex::escape(&v)).collect();
                Some((MatchOp::Regex, all.join("|"), exact))
            }
            _ => None,
        };
    }
    match filter {
        Expr::IsNull(inner) if is_column(inner, column) => Some((MatchOp::Equal, String::new(), true)),
        Expr::IsNotNull(inner) if is_column(inner, column) => Some((MatchOp::NotEqual, String::new(), true)),
        Expr::BinaryExpr(BinaryExpr { left, op: Operator::NotEq, right }) if is_column(left, column) => {
            Some((MatchOp::NotEqual, text(right)?.to_owned(), false))
        }
        Expr::Like(like) if !like.negated && !like.case_insensitive && like.escape_char.is_none() && is_column(&like.expr, column) => {
            Some((MatchOp::Regex, regex_of_like(text(&like.pattern)?), false))
        }
        _ => None,
    }
}

/// A regular expression that matches at least what the LIKE pattern does.
fn regex_of_like(pattern: &str) -> String {
    let mut out = String::new();
    for c in pattern.chars() {
        match c {
            '%' => out.push_str(".*"),
            '_' | '\\' => out.push_str(".?"),
            other => out.push_str(&regex::escape(other.encode_utf8(&mut [0; 4]))),
        }
    }
    out
}

#[async_trait]
impl TableProvider for MetricTable {
    fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }

    fn table_type(&self) -> TableType {
        TableType::View
    }

    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> Result<Vec<TableProviderFilterPushDown>> {
        let answer = |filter: &&Expr| match self.understand(filter) {
            Some((_, true)) => TableProviderFilterPushDown::Exact,
            Some((_, false)) => TableProviderFilterPushDown::Inexact,
            None => TableProviderFilterPushDown::Unsupported,
        };
        Ok(filters.iter().map(answer).collect())
    }

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let all: Vec<usize> = (0..self.schema.fields().len()).collect();
        let columns = projection.unwrap_or(&all).clone();
        let selection = self.selection(filters);
        let scan = batches::Scan {
            view: self.view.clone(),
            stretches: self.stretches(&selection),
            matchers: selection.matchers,
            limits: self.limits,
            labels: columns.iter().map(|&c| self.label_of(self.schema.field(c).name()).map(str::to_owned)).collect(),
            columns: columns.clone(),
            limit,
        };
        let schema = Arc::new(self.schema.project(&columns)?);
        Ok(Arc::new(MetricExec::new(schema, scan, state.config().target_partitions())))
    }
}
