//! Table functions: `promql(query, start, end, step)` and `series(selector [, start, end])`.
//!
//! ```text
//!  promql   time | value | metric | labels      one row per series and step that has a value; labels as JSON text
//!  series   metric | series_id | labels         one row per series that matches
//! ```
//!
//! Both have fixed columns, so that a statement can be planned before anything is evaluated. Their arguments are constants: texts, numbers,
//! timestamps, intervals, and expressions of these such as `now() - INTERVAL '1 hour'`.
//!
//! # Invariants
//! - They see the read view of their statement, like every table in it.
//! - Nothing is evaluated while a statement is planned, explained or prepared.
//!
//! # When it fails
//! A wrong argument is an error of the statement that names the function and the argument. Limits and deadline of PromQL hold.

mod arguments;
mod rows;

use super::error::{SqlError, SqlErrorKind, storage};
use super::scan::KeyRange;
use crate::ViewSource;
use crate::engine::{Engine, ErrorKind, Matrix, QueryError, QueryOptions, RangeQuery, Value};
use arguments::Arguments;
use arrow::array::{ArrayRef, AsArray, Float64Array, Int64Array, RecordBatch, StringArray, StringBuilder, TimestampMicrosecondArray};
use arrow::datatypes::{DataType, Field, Int64Type, Schema, SchemaRef};
use async_trait::async_trait;
use datafusion::catalog::{TableFunctionArgs, TableFunctionImpl, TableProvider};
use datafusion::common::{Result, internal_datafusion_err, plan_err};
use fletch_common::Limits;
use fletch_promql::{ParseLimits, has_non_empty_matcher, parse_selector};
use fletch_schemas::tables::time_type;
use fletch_schemas::{Labels, METRIC_NAME, MatchOp, Matcher};
use fletch_storage::ReadView;
use rows::{Compute, ComputedTable};
use std::collections::HashSet;
use std::sync::Arc;
use std::time::Instant;

/// Rows of one batch of an answer.
const BATCH_ROWS: usize = 8_192;

/// Calls of both functions in one statement.
#[derive(Debug, Clone)]
pub(super) struct Functions {
    /// What the statement sees.
    pub(super) view: ReadView,
    /// Evaluates PromQL.
    pub(super) engine: Arc<Engine>,
    /// Limits of selectors.
    pub(super) limits: Limits,
    /// When the statement has to be done.
    pub(super) deadline: Instant,
}

/// `promql(query, start, end, step)`.
#[derive(Debug)]
pub(super) struct PromqlFunction(pub(super) Functions);

/// `series(selector [, start, end])`.
#[derive(Debug)]
pub(super) struct SeriesFunction(pub(super) Functions);

impl TableFunctionImpl for PromqlFunction {
    fn call_with_args(&self, args: TableFunctionArgs<'_, '_>) -> Result<Arc<dyn TableProvider>> {
        let arguments = Arguments::new("promql", args);
        let [query, start, end, step] = arguments.exprs() else {
            return plan_err!("promql() takes four arguments, promql(query, start, end, step), not {}", arguments.exprs().len());
        };
        let call = PromqlCall {
            functions: self.0.clone(),
            query: arguments.text("query", query)?,
            start_ms: arguments.time_ms("start", start)?,
            end_ms: arguments.time_ms("end", end)?,
            step_ms: arguments.duration_ms("step", step)?,
        };
        Ok(Arc::new(ComputedTable::new(promql_schema(), Arc::new(call))))
    }
}

impl TableFunctionImpl for SeriesFunction {
    fn call_with_args(&self, args: TableFunctionArgs<'_, '_>) -> Result<Arc<dyn TableProvider>> {
        let arguments = Arguments::new("series", args);
        let (selector, range) = match arguments.exprs() {
            [selector] => (selector, (i64::MIN / 1_000, i64::MAX / 1_000)),
            [selector, start, end] => (selector, (arguments.time_ms("start", start)?, arguments.time_ms("end", end)?)),
            other => return plan_err!("series() takes a selector, and optionally start and end, not {} arguments", other.len()),
        };
        let text = arguments.text("selector", selector)?;
        let limits = ParseLimits { bytes_max: self.0.limits.promql_bytes_max, depth_max: self.0.limits.promql_depth_max };
        let matchers = parse_selector(&text, &limits).map_err(|e| SqlError::bad_data(format!("series(): {e}")))?;
        if !has_non_empty_matcher(&matchers) {
            return plan_err!("series(): the selector must contain at least one non-empty matcher");
        }
        let call = SeriesCall { view: self.0.view.clone(), matchers, range };
        Ok(Arc::new(ComputedTable::new(series_schema(), Arc::new(call))))
    }
}

fn promql_schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("time", time_type(), false),
        Field::new("value", DataType::Float64, false),
        Field::new("metric", DataType::Utf8, true),
        Field::new("labels", DataType::Utf8, false),
    ]))
}

fn series_schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("metric", DataType::Utf8, false),
        Field::new("series_id", DataType::Int64, false),
        Field::new("labels", DataType::Utf8, false),
    ]))
}

/// One call of `promql`.
#[derive(Debug)]
struct PromqlCall {
    functions: Functions,
    query: String,
    start_ms: i64,
    end_ms: i64,
    step_ms: i64,
}

#[async_trait]
impl Compute for PromqlCall {
    fn name(&self) -> String {
        format!("promql {:?} from {} to {} by {} ms", self.query, self.start_ms, self.end_ms, self.step_ms)
    }

    async fn batches(&self) -> Result<Vec<RecordBatch>> {
        let source = ViewSource::new(self.functions.view.clone(), &self.functions.limits);
        let options = QueryOptions { deadline: Some(self.functions.deadline), ..QueryOptions::default() };
        let query = RangeQuery { text: &self.query, start_ms: self.start_ms, end_ms: self.end_ms, step_ms: self.step_ms, options };
        let result = self.functions.engine.range(&source, query).await.map_err(promql_error)?;
        match result.value {
            Value::Matrix(matrix) => matrix_batches(&matrix),
            _ => Err(internal_datafusion_err!("a range query did not return a matrix")),
        }
    }
}

fn promql_error(error: QueryError) -> SqlError {
    let kind = match error.kind() {
        ErrorKind::BadData => SqlErrorKind::BadData,
        ErrorKind::Execution => SqlErrorKind::Execution,
        ErrorKind::Timeout | ErrorKind::Canceled => SqlErrorKind::Timeout,
        ErrorKind::Internal => SqlErrorKind::Internal,
    };
    SqlError::new(kind, format!("promql(): {error}"))
}

/// The cells of a matrix as rows, series after series, each in order of time.
fn matrix_batches(matrix: &Matrix) -> Result<Vec<RecordBatch>> {
    let (mut batches, mut rows) = (Vec::new(), MatrixRows::default());
    for row in matrix.iter() {
        let labels = json(row.labels);
        let metric = Some(row.labels.metric()).filter(|m| !m.is_empty());
        let mut cells = Vec::with_capacity(row.values.len());
        row.mask.for_each(row.values.len(), |step| cells.push((matrix.grid.time(step), row.values[step])));
        for (time_ms, value) in cells {
            rows.push(time_ms, value, metric, &labels);
            if rows.times.len() >= BATCH_ROWS {
                batches.push(std::mem::take(&mut rows).batch()?);
            }
        }
    }
    if !rows.times.is_empty() {
        batches.push(rows.batch()?);
    }
    Ok(batches)
}

#[derive(Debug, Default)]
struct MatrixRows {
    times: Vec<i64>,
    values: Vec<f64>,
    metrics: StringBuilder,
    labels: StringBuilder,
}

impl MatrixRows {
    fn push(&mut self, time_ms: i64, value: f64, metric: Option<&str>, labels: &str) {
        self.times.push(time_ms * 1_000);
        self.values.push(value);
        self.metrics.append_option(metric);
        self.labels.append_value(labels);
    }

    fn batch(mut self) -> Result<RecordBatch> {
        let columns: Vec<ArrayRef> = vec![
            Arc::new(TimestampMicrosecondArray::from(self.times).with_timezone("UTC")),
            Arc::new(Float64Array::from(self.values)),
            Arc::new(self.metrics.finish()),
            Arc::new(self.labels.finish()),
        ];
        Ok(RecordBatch::try_new(promql_schema(), columns)?)
    }
}

/// Labels without the name as a JSON object, in name order.
fn json(labels: &Labels) -> String {
    let mut out = String::from("{");
    for (name, value) in labels.iter().filter(|(name, _)| *name != METRIC_NAME) {
        let comma = if out.len() > 1 { "," } else { "" };
        let quote = |text: &str| serde_json::Value::from(text).to_string();
        out.push_str(&format!("{comma}{}:{}", quote(name), quote(value)));
    }
    out.push('}');
    out
}

/// One call of `series`.
#[derive(Debug)]
struct SeriesCall {
    view: ReadView,
    matchers: Vec<Matcher>,
    range: (i64, i64),
}

#[async_trait]
impl Compute for SeriesCall {
    fn name(&self) -> String {
        let matchers: Vec<String> = self.matchers.iter().map(Matcher::to_string).collect();
        format!("series {{{}}}", matchers.join(", "))
    }

    async fn batches(&self) -> Result<Vec<RecordBatch>> {
        let (min_ms, max_ms) = self.range;
        let found = self.view.series(std::slice::from_ref(&self.matchers), min_ms, max_ms).await.map_err(storage)?;
        let found: HashSet<Labels> = found.into_iter().collect();
        let metric = self.matchers.iter().find(|m| m.name == METRIC_NAME && m.op == MatchOp::Equal).map(|m| m.value.as_str());
        // The stored id of a series is in the table only: it differs from the hash of the labels where two hashes collide.
        let (first, last) = KeyRange { metrics: None, min_ms, max_ms }.dates();
        let stored = self.view.series_batches(metric, first, last).await.map_err(storage)?;
        let mut rows: Vec<(String, i64, String)> = Vec::new();
        let mut seen = HashSet::new();
        for batch in &stored {
            for (id, labels) in series_of(batch)? {
                if found.contains(&labels) && seen.insert((id, labels.clone())) {
                    rows.push((labels.metric().to_owned(), id, json(&labels)));
                }
            }
        }
        rows.sort();
        let columns: Vec<ArrayRef> = vec![
            Arc::new(StringArray::from_iter_values(rows.iter().map(|r| r.0.as_str()))),
            Arc::new(Int64Array::from_iter_values(rows.iter().map(|r| r.1))),
            Arc::new(StringArray::from_iter_values(rows.iter().map(|r| r.2.as_str()))),
        ];
        Ok(vec![RecordBatch::try_new(series_schema(), columns)?])
    }
}

/// Ids and labels of the rows of table `series`.
fn series_of(batch: &RecordBatch) -> Result<Vec<(i64, Labels)>> {
    let column = |name: &str| batch.column_by_name(name).ok_or_else(|| internal_datafusion_err!("table `series` lacks column `{name}`"));
    let ids = column("series_id")?.as_primitive::<Int64Type>();
    let maps = column("labels")?.as_map();
    let (names, values) = (maps.keys().as_string::<i32>(), maps.values().as_string::<i32>());
    let mut out = Vec::with_capacity(batch.num_rows());
    for row in 0..batch.num_rows() {
        let (start, end) = (maps.value_offsets()[row] as usize, maps.value_offsets()[row + 1] as usize);
        let pairs = (start..end).map(|i| (names.value(i), values.value(i)));
        let labels = Labels::from_pairs(pairs).map_err(|e| internal_datafusion_err!("table `series`: {e}"))?;
        out.push((ids.value(row), labels));
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_json_without_the_name() {
        let labels = Labels::from_pairs([(METRIC_NAME, "up"), ("b", "x\"y\n"), ("a", "é")]).expect("valid");
        assert_eq!(json(&labels), r#"{"a":"é","b":"x\"y\n"}"#);
        assert_eq!(json(&Labels::empty()), "{}");
    }
}
