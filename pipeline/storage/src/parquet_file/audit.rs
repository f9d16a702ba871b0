//! Reads a whole file of any table and says what is in it, and what is wrong with it: schema, order, keys twice, ranges.
//!
//! Every page of every column is decoded, so that damage which no hash covers shows too. Problems of one kind are counted and the first is
//! named: a file that is upside down is one problem, not a million.
//!
//! # Not here
//! The bytes' hash ([`FileSource::check`]), what the log says about the file (`crate::tools::verify`).

use super::columns::{KeyColumns, append_times, batches_of};
use super::contained;
use super::source::FileSource;
use crate::StorageError;
use crate::delta::schema_json;
use arrow::datatypes::{Field, Schema};
use bytes::Bytes;
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions};
use serde_json::Value;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

/// A column that a file should have, as the table's schema in the log names it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ExpectedColumn {
    pub(crate) name: String,
    /// Delta's type.
    pub(crate) kind: Value,
    pub(crate) nullable: bool,
}

/// What a file holds.
#[derive(Debug, Default)]
pub(crate) struct Audit {
    pub(crate) rows: u64,
    /// (metric, series_id), in the order of the file.
    pub(crate) keys: Vec<(Arc<str>, i64)>,
    /// Smallest and largest, where the table has the column.
    pub(crate) metrics: Option<(Arc<str>, Arc<str>)>,
    pub(crate) series_ids: Option<(i64, i64)>,
    pub(crate) times_ms: Option<(i64, i64)>,
    /// What is wrong, for people.
    pub(crate) problems: Vec<String>,
}

/// Columns of a table's files from its schema in the log.
pub(crate) fn expected_columns(schema: &str, partition_columns: &[String]) -> Vec<ExpectedColumn> {
    let parsed: Value = serde_json::from_str(schema).unwrap_or_default();
    let fields = parsed["fields"].as_array().map(Vec::as_slice).unwrap_or_default();
    let of = |field: &Value| ExpectedColumn {
        name: field["name"].as_str().unwrap_or_default().to_owned(),
        kind: field["type"].clone(),
        nullable: field["nullable"].as_bool().unwrap_or(true),
    };
    fields.iter().map(of).filter(|c| !partition_columns.contains(&c.name)).collect()
}

/// Reads all of a file whose bytes are in memory. Call it on a blocking thread.
///
/// # Errors
/// [`StorageError::Parquet`], [`StorageError::Corrupt`] when it cannot be read to its end.
pub(crate) fn audit(source: &FileSource, bytes: Bytes, expected: &[ExpectedColumn]) -> Result<Audit, StorageError> {
    contained(source.name(), || {
        let metadata = ArrowReaderMetadata::load(&bytes, ArrowReaderOptions::new()).map_err(|e| source.parquet("opening", e))?;
        let mut walk = Walk { has_times: expected.iter().any(|c| c.name == "time"), ..Walk::default() };
        check_schema(metadata.schema(), expected, &mut walk.audit.problems);
        let has = |name: &str| metadata.schema().field_with_name(name).is_ok();
        let keyed = has("metric") && has("series_id") && (has("time") || !walk.has_times);
        let columns: Vec<&str> = metadata.schema().fields().iter().map(|f| f.name().as_str()).collect();
        let mut times = Vec::new();
        for batch in batches_of(source, bytes, &columns)? {
            let batch = batch.map_err(|e| source.parquet("reading", e.into()))?;
            if keyed {
                times.clear();
                if walk.has_times {
                    append_times(source.name(), &batch, &mut times)?;
                }
                let keys = KeyColumns::of(source.name(), &batch)?;
                keys.each_series(|metric, series_id, rows| {
                    walk.stretch(metric, series_id, rows, &times);
                    Ok(())
                })?;
            }
            walk.audit.rows += batch.num_rows() as u64;
        }
        Ok(walk.finish())
    })
}

fn check_schema(found: &Schema, expected: &[ExpectedColumn], problems: &mut Vec<String>) {
    for column in expected {
        match found.field_with_name(&column.name) {
            Err(_) if column.nullable => {}
            Err(_) => problems.push(format!("it has no column `{}`", column.name)),
            Ok(field) => match delta_type(field) {
                Some(kind) if same_type(&kind, &column.kind) => {}
                Some(kind) => problems.push(format!("column `{}` is {kind}, the table says {}", column.name, column.kind)),
                None => problems.push(format!("column `{}` is {}, the table says {}", column.name, field.data_type(), column.kind)),
            },
        }
    }
    for field in found.fields() {
        if !expected.iter().any(|c| c.name == *field.name()) {
            problems.push(format!("it has a column `{}` that the table does not have", field.name()));
        }
    }
}

fn delta_type(field: &Field) -> Option<Value> {
    let text = schema_json(&Schema::new(vec![field.clone()])).ok()?;
    let parsed: Value = serde_json::from_str(&text).ok()?;
    Some(parsed["fields"][0]["type"].clone())
}

/// Whether two Delta types are one. Whether items of maps and lists may be null is the writer's habit, and readers do not mind.
fn same_type(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Object(a), Value::Object(b)) => {
            let nested = ["type", "keyType", "valueType", "elementType"];
            nested.iter().all(|key| match (a.get(*key), b.get(*key)) {
                (None, None) => true,
                (Some(a), Some(b)) => same_type(a, b),
                _ => false,
            })
        }
        _ => a == b,
    }
}

#[derive(Debug, Default)]
struct Walk {
    audit: Audit,
    has_times: bool,
    last: Option<(Arc<str>, i64, i64)>,
    /// By kind of problem: how often, and the first one in words.
    found: BTreeMap<&'static str, (u64, String)>,
}

impl Walk {
    /// Rows `rows` of a batch have one key; `times` are those of the batch, or none.
    fn stretch(&mut self, metric: &str, series_id: i64, rows: Range<usize>, times: &[i64]) {
        let same = self.last.as_ref().is_some_and(|(m, id, _)| m.as_ref() == metric && *id == series_id);
        if self.last.as_ref().is_some_and(|(m, id, _)| (m.as_ref(), *id) > (metric, series_id)) {
            self.note("unsorted", || format!("rows are not sorted: `{metric}` (series {series_id}) comes after a larger key"));
        }
        let name: Arc<str> = match &self.last {
            Some((last, ..)) if last.as_ref() == metric => last.clone(),
            _ => Arc::from(metric),
        };
        if !same {
            self.audit.keys.push((name.clone(), series_id));
            widen(&mut self.audit.metrics, &name);
            widen(&mut self.audit.series_ids, &series_id);
        }
        let mut last = if same { self.last.as_ref().map(|(.., time)| *time) } else { None };
        if !self.has_times && (same || rows.len() > 1) {
            self.note("twice", || format!("`{metric}` (series {series_id}) is in it twice"));
        }
        for &time in times.get(rows).unwrap_or_default() {
            match last {
                Some(before) if before == time => {
                    self.note("twice", || format!("`{metric}` (series {series_id}) has time {time} ms twice"));
                }
                Some(before) if before > time => {
                    self.note("unsorted", || format!("times of `{metric}` (series {series_id}) do not ascend at {time} ms"));
                }
                _ => {}
            }
            widen(&mut self.audit.times_ms, &time);
            last = Some(time);
        }
        self.last = Some((name, series_id, last.unwrap_or(i64::MIN)));
    }

    fn note(&mut self, kind: &'static str, text: impl FnOnce() -> String) {
        self.found.entry(kind).or_insert_with(|| (0, text())).0 += 1;
    }

    fn finish(mut self) -> Audit {
        for (count, first) in self.found.into_values() {
            self.audit.problems.push(if count > 1 { format!("{first} (and {} more)", count - 1) } else { first });
        }
        self.audit
    }
}

fn widen<T: Ord + Clone>(range: &mut Option<(T, T)>, value: &T) {
    match range {
        None => *range = Some((value.clone(), value.clone())),
        Some((min, max)) => {
            if value < min {
                *min = value.clone();
            }
            if value > max {
                *max = value.clone();
            }
        }
    }
}
