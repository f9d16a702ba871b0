//! Numbers and times as people and exporters write them.
//!
//! Values follow Prometheus' text parser: what Go's `ParseFloat` takes, without hexadecimal floats and underscores. A number too large
//! for a float is an error, never an infinity. `NaN` gives Prometheus' ordinary NaN, which is not the stale marker.
//!
//! Times are parsed in decimal, not through a float: `1700000000.123` is …123 ms, not …122.

/// Bits of an ordinary NaN, as Go and Prometheus write it.
const NORMAL_NAN_BITS: u64 = 0x7ff8_0000_0000_0001;

/// A number below this is a time in seconds, from it on in milliseconds (which is then 1973 or later).
const SECONDS_BELOW: u64 = 100_000_000_000;

/// A sample value.
///
/// # Errors
/// What is wrong, without the text.
pub(super) fn parse_value(text: &str) -> Result<f64, &'static str> {
    const NOT_A_NUMBER: &str = "is not a number; use decimal digits, `NaN`, `+Inf` or `-Inf`";
    if text.eq_ignore_ascii_case("nan") {
        return Ok(f64::from_bits(NORMAL_NAN_BITS));
    }
    let value: f64 = text.parse().map_err(|_| NOT_A_NUMBER)?;
    if value.is_nan() {
        // Rust reads `-nan`, Go does not.
        return Err(NOT_A_NUMBER);
    }
    let spelled_out = text.bytes().any(|b| b.eq_ignore_ascii_case(&b'i'));
    if value.is_infinite() && !spelled_out {
        return Err("is too large for a 64-bit float");
    }
    Ok(value)
}

/// A time in milliseconds since the Unix epoch: from seconds (|t| < 1e11), milliseconds, or RFC 3339. Finer parts are floored.
///
/// # Errors
/// What is wrong, without the text.
pub(super) fn parse_time(text: &str) -> Result<i64, &'static str> {
    const NOT_A_TIME: &str = "is not a time; use seconds or milliseconds since 1970, or RFC 3339";
    let number = text.bytes().all(|b| b.is_ascii_digit() || b"+-.eE".contains(&b));
    if !number {
        let time = chrono::DateTime::parse_from_rfc3339(text).map_err(|_| NOT_A_TIME)?;
        return Ok(time.timestamp_millis());
    }
    if text.bytes().any(|b| b.eq_ignore_ascii_case(&b'e')) {
        let time = parse_value(text).map_err(|_| NOT_A_TIME)?;
        return time_of_float(time);
    }
    let (negative, digits) = match text.as_bytes().first() {
        Some(b'-') => (true, &text[1..]),
        Some(b'+') => (false, &text[1..]),
        _ => (false, text),
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let only_digits = whole.bytes().chain(fraction.bytes()).all(|b| b.is_ascii_digit());
    if whole.len() + fraction.len() == 0 || !only_digits {
        return Err(NOT_A_TIME);
    }
    time_of_decimal(negative, whole, fraction).ok_or("is outside of any calendar")
}

fn time_of_decimal(negative: bool, whole: &str, fraction: &str) -> Option<i64> {
    let whole: u64 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
    let millis_digits = if whole < SECONDS_BELOW { 3 } else { 0 };
    let mut ms = i64::try_from(whole).ok()?;
    for i in 0..millis_digits {
        let digit = fraction.as_bytes().get(i).map_or(0, |b| i64::from(b - b'0'));
        ms = ms.checked_mul(10)?.checked_add(digit)?;
    }
    if !negative {
        return Some(ms);
    }
    // Floor, not truncate: the rest below a millisecond moves a negative time down.
    let finer = fraction.bytes().skip(millis_digits).any(|b| b != b'0');
    (-ms).checked_sub(i64::from(finer))
}

/// For the rare time in exponent form. It is rounded to microseconds before flooring, so that the error of the float does not move it.
fn time_of_float(time: f64) -> Result<i64, &'static str> {
    const FLOAT_MS_MAX: f64 = 9.0e18;
    let seconds = time.abs() < SECONDS_BELOW as f64;
    let ms = if seconds { ((time * 1e6).round() / 1e3).floor() } else { time.floor() };
    if ms.abs() > FLOAT_MS_MAX || ms.is_nan() {
        return Err("is outside of any calendar");
    }
    // Fits: checked just above.
    Ok(ms as i64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_read_as_prometheus_reads_them() {
        for (text, value) in [
            ("1", 1.0),
            ("-0.5", -0.5),
            ("+1.5e3", 1500.0),
            (".5", 0.5),
            ("5.", 5.0),
            ("+Inf", f64::INFINITY),
            ("-inf", f64::NEG_INFINITY),
            ("Infinity", f64::INFINITY),
            ("0.1", 0.1),
            ("9007199254740993", 9_007_199_254_740_992.0),
            ("1e-400", 0.0),
            ("1.7976931348623157e308", f64::MAX),
        ] {
            assert_eq!(parse_value(text), Ok(value), "{text}");
        }
        assert_eq!(parse_value("NaN").map(f64::to_bits), Ok(NORMAL_NAN_BITS));
        assert_eq!(parse_value("nAn").map(f64::to_bits), Ok(NORMAL_NAN_BITS));
        assert!(parse_value("-0").is_ok_and(|v| v == 0.0 && v.is_sign_negative()));
        for bad in ["", " 1", "1 ", "+", ".", "e5", "1e", "-nan", "+NaN", "0x1p-2", "0x10", "1_000", "1e400", "-1e999", "ten", "1,5", "١"]
        {
            assert!(parse_value(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn times_are_seconds_milliseconds_or_rfc_3339() {
        for (text, ms) in [
            ("0", 0),
            ("1700000000", 1_700_000_000_000),
            ("1700000000123", 1_700_000_000_123),
            ("1700000000.123", 1_700_000_000_123),
            ("1700000000.1239", 1_700_000_000_123),
            ("1700000000123.9", 1_700_000_000_123),
            ("99999999999", 99_999_999_999_000),
            ("99999999999.9999", 99_999_999_999_999),
            ("100000000000", 100_000_000_000),
            ("-99999999999", -99_999_999_999_000),
            ("-100000000000", -100_000_000_000),
            ("-1", -1_000),
            ("-0.0001", -1),
            ("-1.5", -1_500),
            ("-1.5000", -1_500),
            (".5", 500),
            ("+1", 1_000),
            ("1.7e9", 1_700_000_000_000),
            ("1.700000000123E+9", 1_700_000_000_123),
            ("1.7e12", 1_700_000_000_000),
            ("1970-01-01T00:00:01Z", 1_000),
            ("1969-12-31T23:59:59.9999Z", -1),
            ("2023-11-14T22:13:20.123456+00:00", 1_700_000_000_123),
            ("2023-11-15T00:13:20+02:00", 1_700_000_000_000),
        ] {
            assert_eq!(parse_time(text), Ok(ms), "{text}");
        }
        for bad in
            ["", ".", "-", "+.", "1.2.3", "1-2", "e9", "1e400", "1e30", "99999999999999999999", "now", "2023-11-14", "NaN", "inf", "0x10"]
        {
            assert!(parse_time(bad).is_err(), "{bad}");
        }
    }
}
