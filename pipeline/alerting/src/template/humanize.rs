//! Numbers and times for people, as Prometheus' template functions write them.

use super::text::{Result, as_duration, failed};
use crate::go;
use chrono::{DateTime, Datelike, Timelike, Utc};
use gotmpl::Value;

const UP: [&str; 8] = ["k", "M", "G", "T", "P", "E", "Z", "Y"];
const UP_1024: [&str; 8] = ["ki", "Mi", "Gi", "Ti", "Pi", "Ei", "Zi", "Yi"];
const DOWN: [&str; 8] = ["m", "u", "n", "p", "f", "a", "z", "y"];

/// A number, a numeric text or a duration (in seconds) as a float.
#[allow(clippy::cast_precision_loss, reason = "the conversion that templates ask for")]
pub(super) fn to_float(value: &Value) -> Result<f64> {
    if let Some(nanos) = as_duration(value) {
        return Ok(nanos as f64 / 1e9);
    }
    match value {
        Value::String(text) => match text.parse() {
            Ok(number) => Ok(number),
            Err(_) => failed(format!("strconv.ParseFloat: parsing {:?}: invalid syntax", text.as_ref())),
        },
        Value::Float(_) | Value::Int(_) | Value::Uint(_) => Ok(value.as_float().unwrap_or(f64::NAN)),
        other => failed(format!("can't convert {} to float", other.type_name())),
    }
}

/// `1.235M`.
pub(super) fn humanize(mut v: f64) -> String {
    if v == 0.0 || !v.is_finite() {
        return go::float_digits(v, 4);
    }
    let mut prefix = "";
    if v.abs() >= 1.0 {
        for p in UP {
            if v.abs() < 1000.0 {
                break;
            }
            prefix = p;
            v /= 1000.0;
        }
    } else {
        (v, prefix) = scale_down(v);
    }
    format!("{}{prefix}", go::float_digits(v, 4))
}

fn scale_down(mut v: f64) -> (f64, &'static str) {
    let mut prefix = "";
    for p in DOWN {
        if v.abs() >= 1.0 {
            break;
        }
        prefix = p;
        v *= 1000.0;
    }
    (v, prefix)
}

/// `1.177Mi`.
pub(super) fn humanize1024(mut v: f64) -> String {
    if v.abs() <= 1.0 || !v.is_finite() {
        return go::float_digits(v, 4);
    }
    let mut prefix = "";
    for p in UP_1024 {
        if v.abs() < 1024.0 {
            break;
        }
        prefix = p;
        v /= 1024.0;
    }
    format!("{}{prefix}", go::float_digits(v, 4))
}

/// `1d 2h 3m 4s`, `1.5s`, `250ms`.
#[allow(clippy::cast_possible_truncation, reason = "saturates; beyond 2^63 seconds the text is meaningless anyway")]
pub(super) fn humanize_duration(v: f64) -> String {
    if !v.is_finite() {
        return go::float_digits(v, 4);
    }
    if v == 0.0 {
        return format!("{}s", go::float_digits(v, 4));
    }
    if v.abs() < 1.0 {
        let (v, prefix) = scale_down(v);
        return format!("{}{prefix}s", go::float_digits(v, 4));
    }
    let sign = if v < 0.0 { "-" } else { "" };
    let v = v.abs();
    let total = v as i64;
    let (seconds, minutes, hours, days) = (total % 60, total / 60 % 60, total / 3_600 % 24, total / 86_400);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{sign}{}s", go::float_digits(v, 4)),
        (0, 0, _) => format!("{sign}{minutes}m {seconds}s"),
        (0, _, _) => format!("{sign}{hours}h {minutes}m {seconds}s"),
        _ => format!("{sign}{days}d {hours}h {minutes}m {seconds}s"),
    }
}

/// `12.35%` of a ratio.
pub(super) fn humanize_percentage(v: f64) -> String {
    format!("{}%", go::float_digits(v * 100.0, 4))
}

/// Milliseconds of a time in seconds; `None` for NaN and infinities.
///
/// # Errors
/// When it does not fit into 64 bits of nanoseconds, as in Go.
#[allow(clippy::cast_possible_truncation, clippy::cast_precision_loss, reason = "the range is checked first")]
pub(super) fn to_time_ms(seconds: f64) -> Result<Option<i64>> {
    if !seconds.is_finite() {
        return Ok(None);
    }
    let nanos = seconds * 1e9;
    if nanos > i64::MAX as f64 || nanos < i64::MIN as f64 {
        return failed(format!("{} cannot be represented as a nanoseconds timestamp since it overflows int64", go::float(seconds)));
    }
    Ok(Some((nanos as i64).div_euclid(1_000_000)))
}

/// One part of a time in UTC; Go's `Month` and `Weekday` print as names.
pub(super) fn time_part(ms: i64, part: &str) -> Value {
    let Some(time) = DateTime::<Utc>::from_timestamp_millis(ms) else { return Value::Nil };
    let number = match part {
        "Year" => i64::from(time.year()),
        "Day" => i64::from(time.day()),
        "Hour" => i64::from(time.hour()),
        "Minute" => i64::from(time.minute()),
        "Second" => i64::from(time.second()),
        "Month" => return Value::from(time.format("%B").to_string()),
        _ => return Value::from(time.format("%A").to_string()),
    };
    Value::Int(number)
}

/// Elements of a Go time layout and what `chrono` calls them; longer ones come before those they begin with.
const LAYOUT: [(&str, &str); 32] = [
    ("2006", "%Y"),
    ("January", "%B"),
    ("Jan", "%b"),
    ("Monday", "%A"),
    ("Mon", "%a"),
    ("MST", "UTC"),
    ("Z07:00", "Z"),
    ("Z0700", "Z"),
    ("Z07", "Z"),
    ("-07:00", "+00:00"),
    ("-0700", "+0000"),
    ("-07", "+00"),
    (".000000000", "%.9f"),
    (".000000", "%.6f"),
    (".000", "%.3f"),
    (",000", ",%3f"),
    ("002", "%j"),
    ("01", "%m"),
    ("02", "%d"),
    ("_2", "%e"),
    ("03", "%I"),
    ("04", "%M"),
    ("05", "%S"),
    ("06", "%y"),
    ("15", "%H"),
    ("PM", "%p"),
    ("pm", "%P"),
    ("1", "%-m"),
    ("2", "%-d"),
    ("3", "%-I"),
    ("4", "%-M"),
    ("5", "%-S"),
];

/// `time.Format` in UTC.
pub(super) fn format_time(ms: i64, layout: &str) -> String {
    let Some(time) = DateTime::<Utc>::from_timestamp_millis(ms) else { return String::new() };
    let mut format = String::new();
    let mut rest = layout;
    while let Some(first) = rest.chars().next() {
        if let Some((element, directive)) = LAYOUT.iter().find(|(element, _)| rest.starts_with(element)) {
            format.push_str(directive);
            rest = &rest[element.len()..];
            continue;
        }
        if first == '%' {
            format.push('%');
        }
        format.push(first);
        rest = &rest[first.len_utf8()..];
    }
    time.format(&format).to_string()
}
