//! How Go prints numbers and times: what templates, annotations and the API of Prometheus show.
//!
//! | form | example | used by |
//! |---|---|---|
//! | shortest `%v` | `1e+08`, `1.234567891e+06`, `0.5` | `{{ $value }}` |
//! | `%.4g` | `1.235` | the `humanize` family |
//! | `e`, shortest | `1e+00` | `value` of `/api/v1/alerts` |
//!
//! # Not here
//! `printf` (the template engine has it).

use chrono::{DateTime, SecondsFormat, Utc};

/// Below this decimal exponent `%g` uses the exponent form.
const G_EXP_MIN: i32 = -4;
/// From this decimal exponent on the shortest `%g` uses the exponent form.
const G_EXP_MAX_SHORTEST: i32 = 6;

/// The value as `fmt.Print` prints a `float64`: shortest digits, exponent form below 1e-4 and from 1e+06 … as `%g` decides.
pub(crate) fn float(value: f64) -> String {
    if let Some(text) = special(value) {
        return text.to_owned();
    }
    general(&format!("{value:e}"), G_EXP_MAX_SHORTEST)
}

/// `%.<digits>g`.
pub(crate) fn float_digits(value: f64, digits: usize) -> String {
    if let Some(text) = special(value) {
        return text.to_owned();
    }
    let digits = digits.max(1);
    general(&format!("{value:.precision$e}", precision = digits - 1), i32::try_from(digits).unwrap_or(i32::MAX))
}

/// Shortest digits, always in exponent form: `1e+00`.
pub(crate) fn float_exponent(value: f64) -> String {
    if let Some(text) = special(value) {
        return text.to_owned();
    }
    let (mantissa, exponent) = split_exponent(&format!("{value:e}"));
    with_exponent(&mantissa, exponent)
}

fn special(value: f64) -> Option<&'static str> {
    if value.is_nan() {
        return Some("NaN");
    }
    if value.is_infinite() {
        return Some(if value > 0.0 { "+Inf" } else { "-Inf" });
    }
    None
}

/// Splits Rust's `{:e}` form into its mantissa (without trailing zeros) and exponent.
fn split_exponent(text: &str) -> (String, i32) {
    let (mantissa, exponent) = text.split_once('e').unwrap_or((text, "0"));
    let mantissa = if mantissa.contains('.') { mantissa.trim_end_matches('0').trim_end_matches('.') } else { mantissa };
    (mantissa.to_owned(), exponent.parse().unwrap_or(0))
}

fn with_exponent(mantissa: &str, exponent: i32) -> String {
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{mantissa}e{sign}{:02}", exponent.unsigned_abs())
}

fn general(scientific: &str, exponent_max: i32) -> String {
    let (mantissa, exponent) = split_exponent(scientific);
    if !(G_EXP_MIN..exponent_max).contains(&exponent) {
        return with_exponent(&mantissa, exponent);
    }
    let (sign, mantissa) = mantissa.strip_prefix('-').map_or(("", mantissa.as_str()), |rest| ("-", rest));
    let digits: String = mantissa.chars().filter(char::is_ascii_digit).collect();
    if exponent < 0 {
        let zeros = usize::try_from(-exponent - 1).unwrap_or(0);
        return format!("{sign}0.{}{digits}", "0".repeat(zeros));
    }
    let whole = usize::try_from(exponent).unwrap_or(0) + 1;
    if digits.len() <= whole {
        return format!("{sign}{digits}{}", "0".repeat(whole - digits.len()));
    }
    format!("{sign}{}.{}", &digits[..whole], &digits[whole..])
}

/// RFC 3339 in UTC with as many fraction digits as needed, as Go's `time.Time` marshals to JSON. Times outside year 0–9999
/// (which no accepted sample has) print as the zero time.
pub(crate) fn rfc3339(time_ms: i64) -> String {
    match DateTime::<Utc>::from_timestamp_millis(time_ms) {
        Some(time) => trim_fraction(&time.to_rfc3339_opts(SecondsFormat::Millis, true)),
        None => ZERO_TIME.to_owned(),
    }
}

/// Go's zero time: "not set".
pub(crate) const ZERO_TIME: &str = "0001-01-01T00:00:00Z";

fn trim_fraction(text: &str) -> String {
    let Some((head, fraction)) = text.trim_end_matches('Z').split_once('.') else { return text.to_owned() };
    let fraction = fraction.trim_end_matches('0');
    if fraction.is_empty() { format!("{head}Z") } else { format!("{head}.{fraction}Z") }
}

/// `time.Time.String()` of a UTC time: `1970-01-01 00:00:00 +0000 UTC`.
pub(crate) fn time_string(time_ms: i64) -> String {
    let rfc = rfc3339(time_ms);
    let (date, time) = rfc.trim_end_matches('Z').split_once('T').unwrap_or((&rfc, "00:00:00"));
    format!("{date} {time} +0000 UTC")
}

/// `time.Duration.String()`: `1h0m0.5s`, `250ms`, `0s`.
pub(crate) fn duration_string(nanos: i64) -> String {
    let sign = if nanos < 0 { "-" } else { "" };
    let n = nanos.unsigned_abs();
    if n == 0 {
        return "0s".to_owned();
    }
    for (unit, size) in [("ns", 1_u64), ("µs", 1_000), ("ms", 1_000_000)] {
        if n < size * 1_000 {
            return format!("{sign}{}{unit}", decimal(n, size));
        }
    }
    let (hours, rest) = (n / 3_600_000_000_000, n % 3_600_000_000_000);
    let (minutes, rest) = (rest / 60_000_000_000, rest % 60_000_000_000);
    let seconds = decimal(rest, 1_000_000_000);
    match (hours, minutes) {
        (0, 0) => format!("{sign}{seconds}s"),
        (0, _) => format!("{sign}{minutes}m{seconds}s"),
        _ => format!("{sign}{hours}h{minutes}m{seconds}s"),
    }
}

fn decimal(amount: u64, unit: u64) -> String {
    let (whole, rest) = (amount / unit, amount % unit);
    if rest == 0 {
        return whole.to_string();
    }
    let width = unit.to_string().len() - 1;
    format!("{whole}.{}", format!("{rest:0width$}").trim_end_matches('0'))
}

/// `url.QueryEscape`.
pub(crate) fn query_escape(text: &str) -> String {
    url::form_urlencoded::byte_serialize(text.as_bytes()).collect::<String>().replace('*', "%2A").replace("%7E", "~")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_print_as_go_prints_them() {
        let cases = [
            (0.0, "0"),
            (-0.0, "-0"),
            (1.0, "1"),
            (-1.5, "-1.5"),
            (100_000.0, "100000"),
            (1e6, "1e+06"),
            (1e8, "1e+08"),
            (1_234_567.891, "1.234567891e+06"),
            (0.000_123, "0.000123"),
            (0.000_012_3, "1.23e-05"),
            (1e100, "1e+100"),
            (f64::NAN, "NaN"),
            (f64::INFINITY, "+Inf"),
            (f64::NEG_INFINITY, "-Inf"),
        ];
        for (value, text) in cases {
            assert_eq!(float(value), text);
        }
    }

    #[test]
    fn four_digits_and_exponent_forms() {
        for (value, text) in [(1234.5, "1234"), (1.0, "1"), (999.96, "1000"), (9999.6, "1e+04"), (1e8, "1e+08"), (0.012_345_6, "0.01235")] {
            assert_eq!(float_digits(value, 4), text);
        }
        for (value, text) in [(1.0, "1e+00"), (0.0, "0e+00"), (-12.34, "-1.234e+01"), (1e-7, "1e-07"), (f64::NAN, "NaN")] {
            assert_eq!(float_exponent(value), text);
        }
    }

    #[test]
    fn times_and_durations_print_as_go_prints_them() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00Z");
        assert_eq!(rfc3339(1_120), "1970-01-01T00:00:01.12Z");
        assert_eq!(time_string(1_500), "1970-01-01 00:00:01.5 +0000 UTC");
        for (nanos, text) in [
            (0, "0s"),
            (1, "1ns"),
            (1_500, "1.5µs"),
            (250_000_000, "250ms"),
            (1_500_000_000, "1.5s"),
            (60_000_000_000, "1m0s"),
            (-3_661_000_000_000, "-1h1m1s"),
        ] {
            assert_eq!(duration_string(nanos), text);
        }
    }

    #[test]
    fn query_escape_is_gos() {
        assert_eq!(query_escape(r#"up{a="b c"} > 1*~"#), "up%7Ba%3D%22b+c%22%7D+%3E+1%2A~");
    }
}
