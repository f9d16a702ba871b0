//! Durations as text: `1h30m` to milliseconds and back.
//!
//! Units are `y w d h m s ms`, from the longest to the shortest, each at most once. A year has 365 days, a day 24 hours.

use std::fmt::Write;

use crate::quote::quote;

/// Why a text is not a duration; shows Prometheus' message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DurationTextError {
    /// The text is empty.
    #[error("empty duration string")]
    Empty,
    /// Not numbers with units from the longest to the shortest.
    #[error("not a valid duration string: {}", quote(.0))]
    Syntax(String),
    /// A unit that does not exist.
    #[error("unknown unit {} in duration {}", quote(.unit), quote(.text))]
    Unit {
        /// What stands where a unit should.
        unit: String,
        /// The whole text.
        text: String,
    },
    /// More than 64-bit nanoseconds hold, about 292 years.
    #[error("duration out of range")]
    OutOfRange,
}

const MS: u64 = 1_000_000;
const UNITS: [(&str, u64); 7] = [
    ("y", 365 * 24 * 3_600_000 * MS),
    ("w", 7 * 24 * 3_600_000 * MS),
    ("d", 24 * 3_600_000 * MS),
    ("h", 3_600_000 * MS),
    ("m", 60_000 * MS),
    ("s", 1000 * MS),
    ("ms", MS),
];

/// Milliseconds of a text like `1h30m`, `90s` or `0`.
///
/// # Errors
/// Any [`DurationTextError`].
pub fn parse_duration(text: &str) -> Result<i64, DurationTextError> {
    Ok((parse_duration_ns(text)? / MS) as i64)
}

/// Nanoseconds of such a text; at most `i64::MAX`.
pub(crate) fn parse_duration_ns(text: &str) -> Result<u64, DurationTextError> {
    match text {
        "0" => return Ok(0),
        "" => return Err(DurationTextError::Empty),
        _ => {}
    }
    let syntax = || DurationTextError::Syntax(text.to_owned());
    let (mut rest, mut total, mut next_unit) = (text, 0u64, 0);
    while !rest.is_empty() {
        let (digits, behind) = rest.split_at(rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len()));
        let (unit, behind) = behind.split_at(behind.find(|c: char| c.is_ascii_digit()).unwrap_or(behind.len()));
        let value: u64 = digits.parse().map_err(|_| syntax())?;
        if unit.is_empty() {
            return Err(syntax());
        }
        let Some(at) = UNITS.iter().position(|(name, _)| *name == unit) else {
            return Err(DurationTextError::Unit { unit: unit.to_owned(), text: text.to_owned() });
        };
        if at < next_unit {
            return Err(syntax());
        }
        next_unit = at + 1;
        total = value
            .checked_mul(UNITS[at].1)
            .and_then(|ns| total.checked_add(ns))
            .filter(|ns| i64::try_from(*ns).is_ok())
            .ok_or(DurationTextError::OutOfRange)?;
        rest = behind;
    }
    Ok(total)
}

/// The shortest usual text for milliseconds: `1h30m`, `0s`, `-5m`. Years and weeks are used only where nothing remains.
pub fn format_duration(ms: i64) -> String {
    let mut out = String::new();
    push_duration(&mut out, ms);
    out
}

/// Appends what [`format_duration`] returns.
pub(crate) fn push_duration(out: &mut String, ms: i64) {
    if ms == 0 {
        return out.push_str("0s");
    }
    if ms < 0 {
        out.push('-');
    }
    let mut rest = ms.unsigned_abs();
    for (unit, ns) in UNITS {
        let unit_ms = ns / MS;
        let whole_only = matches!(unit, "y" | "w");
        if rest < unit_ms || (whole_only && !rest.is_multiple_of(unit_ms)) {
            continue;
        }
        write!(out, "{}{unit}", rest / unit_ms).expect("writing to a String cannot fail");
        rest %= unit_ms;
    }
}
