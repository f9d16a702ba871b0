//! How values print, how fields are read and methods called: what `gotmpl` leaves to Go's reflection.
//!
//! Go's structs, times and durations are maps here with the reserved key [`TYPE`], which no label can have.

use crate::go;
use gotmpl::{TemplateError, Value};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Reserved key that names the Go type of a map. Label names never contain a control character in templates: they are written by us.
const TYPE: &str = "\u{1}type";
const TIME: &str = "time.Time";
const DURATION: &str = "time.Duration";
const AMOUNT: &str = "\u{1}amount";

pub(super) type Result<T> = std::result::Result<T, TemplateError>;

pub(super) fn failed<T>(reason: impl Into<String>) -> Result<T> {
    Err(TemplateError::Exec(reason.into()))
}

/// A Go struct: unlike a map, reading a field it does not have is an error.
pub(super) fn structure<const N: usize>(name: &str, fields: [(&str, Value); N]) -> Value {
    let mut map: BTreeMap<Arc<str>, Value> = fields.into_iter().map(|(k, v)| (Arc::from(k), v)).collect();
    map.insert(Arc::from(TYPE), Value::from(name));
    Value::from(map)
}

/// A `time.Time` in UTC.
pub(super) fn time(ms: i64) -> Value {
    structure(TIME, [(AMOUNT, Value::Int(ms))])
}

/// A `time.Duration`.
pub(super) fn duration(nanos: i64) -> Value {
    structure(DURATION, [(AMOUNT, Value::Int(nanos))])
}

fn type_of(value: &Value) -> Option<&str> {
    value.field(TYPE).and_then(Value::as_str)
}

fn amount(value: &Value) -> i64 {
    value.field(AMOUNT).and_then(Value::as_int).unwrap_or(0)
}

/// The text of a value in `{{ … }}`.
pub(super) fn action_text(value: &Value) -> String {
    if matches!(value, Value::Nil) { "<no value>".to_owned() } else { display(value) }
}

/// The text of a value as `fmt.Sprint` gives it.
pub(super) fn display(value: &Value) -> String {
    match value {
        Value::Float(v) => go::float(*v),
        Value::List(items) => format!("[{}]", items.iter().map(display).collect::<Vec<_>>().join(" ")),
        Value::Map(map) => match type_of(value) {
            Some(TIME) => go::time_string(amount(value)),
            Some(DURATION) => go::duration_string(amount(value)),
            Some(_) => {
                let fields: Vec<String> = map.iter().filter(|(k, _)| k.as_ref() != TYPE).map(|(_, v)| display(v)).collect();
                format!("{{{}}}", fields.join(" "))
            }
            None => format!("map[{}]", map.iter().map(|(k, v)| format!("{k}:{}", display(v))).collect::<Vec<_>>().join(" ")),
        },
        other => other.to_string(),
    }
}

/// `fmt.Sprint`: a space between two operands when neither is a string.
pub(super) fn sprint(args: &[Value]) -> String {
    let mut out = String::new();
    for (i, arg) in args.iter().enumerate() {
        let texts = matches!(arg, Value::String(_)) || i > 0 && matches!(args[i - 1], Value::String(_));
        if i > 0 && !texts {
            out.push(' ');
        }
        out.push_str(&display(arg));
    }
    out
}

/// Reads the field chain `path` (`A.B`), starting at `value`.
pub(super) fn get(value: &Value, path: &str) -> Result<Value> {
    let mut at = value.clone();
    for name in path.split('.') {
        at = member(&at, name, &[])?;
    }
    Ok(at)
}

/// Reads all of `path` but its end, which it calls as a method.
pub(super) fn call(value: &Value, path: &str, args: &[Value]) -> Result<Value> {
    match path.rsplit_once('.') {
        Some((fields, method)) => member(&get(value, fields)?, method, args),
        None => member(value, path, args),
    }
}

fn member(value: &Value, name: &str, args: &[Value]) -> Result<Value> {
    match (value, type_of(value)) {
        (_, Some(TIME)) => time_method(amount(value), name, args),
        (_, Some(DURATION)) => duration_method(amount(value), name, args),
        (Value::Map(_), _) if !args.is_empty() => failed(format!("{name} is not a method but has arguments")),
        (Value::Map(map), Some(kind)) => match map.get(name) {
            Some(field) => Ok(field.clone()),
            None => failed(format!("can't evaluate field {name} in type {kind}")),
        },
        // `missingkey=zero`: the zero value of a label map is the empty text.
        (Value::Map(map), None) => Ok(map.get(name).cloned().unwrap_or_else(|| Value::from(""))),
        (Value::Nil, _) => failed(format!("nil pointer evaluating interface {{}}.{name}")),
        (Value::Float(_), _) => failed(format!("can't evaluate field {name} in type float64")),
        (other, _) => failed(format!("can't evaluate field {name} in type {}", other.type_name())),
    }
}

fn time_method(ms: i64, name: &str, args: &[Value]) -> Result<Value> {
    match (name, args) {
        ("Unix", []) => Ok(Value::Int(ms.div_euclid(1_000))),
        ("UnixMilli", []) => Ok(Value::Int(ms)),
        ("UTC", []) => Ok(time(ms)),
        ("String", []) => Ok(Value::from(go::time_string(ms))),
        ("Format", [Value::String(layout)]) => Ok(Value::from(super::humanize::format_time(ms, layout))),
        ("Add", [by]) if type_of(by) == Some(DURATION) => Ok(time(ms.saturating_add(amount(by) / 1_000_000))),
        ("Sub", [other]) if type_of(other) == Some(TIME) => Ok(duration(ms.saturating_sub(amount(other)).saturating_mul(1_000_000))),
        ("Year" | "Month" | "Day" | "Hour" | "Minute" | "Second" | "Weekday", []) => Ok(super::humanize::time_part(ms, name)),
        _ => failed(format!("can't evaluate field {name} in type {TIME} with {} arguments", args.len())),
    }
}

#[allow(clippy::cast_precision_loss, reason = "Go's Duration methods return float64 too")]
fn duration_method(nanos: i64, name: &str, args: &[Value]) -> Result<Value> {
    let seconds = nanos as f64 / 1e9;
    match (name, args) {
        ("Seconds", []) => Ok(Value::Float(seconds)),
        ("Minutes", []) => Ok(Value::Float(seconds / 60.0)),
        ("Hours", []) => Ok(Value::Float(seconds / 3_600.0)),
        ("Milliseconds", []) => Ok(Value::Int(nanos / 1_000_000)),
        ("String", []) => Ok(Value::from(go::duration_string(nanos))),
        _ => failed(format!("can't evaluate field {name} in type {DURATION} with {} arguments", args.len())),
    }
}

/// `index` with Go's zero value for a missing key of a map.
pub(super) fn index(args: &[Value]) -> Result<Value> {
    let Some((first, keys)) = args.split_first() else { return failed("wrong number of args for index: want at least 1 got 0") };
    let mut at = first.clone();
    for key in keys {
        at = match (&at, key) {
            (Value::Map(map), Value::String(key)) => map.get(key).cloned().unwrap_or_else(|| Value::from("")),
            _ => at.index(key)?,
        };
    }
    Ok(at)
}

/// Nanoseconds when the value is a duration.
pub(super) fn as_duration(value: &Value) -> Option<i64> {
    (type_of(value) == Some(DURATION)).then(|| amount(value))
}
