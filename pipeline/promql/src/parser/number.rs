//! Number and duration tokens to values, by the rules of Go's `strconv`.

use crate::duration::parse_duration_ns;
use crate::quote::quote;

/// Value of a number token: decimal, `0x…`, octal with a leading zero, `_` between digits, `Inf`, `NaN`.
pub(super) fn parse_number(text: &str) -> Result<f64, String> {
    if let Some(value) = parse_integer(text) {
        return Ok(value);
    }
    let reason = match parse_float(text) {
        Some(value) if value.is_finite() || !text.starts_with(|c: char| c.is_ascii_digit() || c == '.') => return Ok(value),
        Some(_) => "value out of range",
        None => "invalid syntax",
    };
    Err(format!("error parsing number: strconv.ParseFloat: parsing {}: {reason}", quote(text)))
}

/// 64-bit integers; a leading zero means octal, as in Go.
fn parse_integer(text: &str) -> Option<f64> {
    let plain;
    let digits = if text.contains('_') {
        if !underscores_fit(text) {
            return None;
        }
        plain = text.replace('_', "");
        plain.as_str()
    } else {
        text
    };
    let value = match digits.as_bytes() {
        [b'0', b'x' | b'X', _, ..] => i64::from_str_radix(&digits[2..], 16),
        [b'0', _, ..] => i64::from_str_radix(&digits[1..], 8),
        _ => digits.parse(),
    };
    value.ok().map(|value| value as f64)
}

fn parse_float(text: &str) -> Option<f64> {
    if !text.contains('_') {
        return text.parse().ok();
    }
    if underscores_fit(text) { text.replace('_', "").parse().ok() } else { None }
}

/// Whether every `_` stands between digits, or between `0x` and a digit.
fn underscores_fit(text: &str) -> bool {
    let bytes = text.as_bytes();
    let hex = matches!(bytes, [b'0', b'x' | b'X', ..]);
    let is_digit = |b: &u8| b.is_ascii_digit() || (hex && (b.is_ascii_hexdigit() || matches!(b, b'x' | b'X')));
    bytes.iter().enumerate().filter(|(_, b)| **b == b'_').all(|(i, _)| {
        let before = i.checked_sub(1).and_then(|i| bytes.get(i)).is_some_and(is_digit);
        before && bytes.get(i + 1).is_some_and(is_digit)
    })
}

/// Seconds of a duration token.
pub(super) fn parse_duration_seconds(text: &str) -> Result<f64, String> {
    const SECOND: u64 = 1_000_000_000;
    let ns = parse_duration_ns(text).map_err(|error| error.to_string())?;
    Ok((ns / SECOND) as f64 + (ns % SECOND) as f64 / 1e9)
}
