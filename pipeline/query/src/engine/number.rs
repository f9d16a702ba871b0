//! Numbers as Go prints them: the text form of every sample value, and of numbers inside labels and messages.
//!
//! Digits come from the shortest decimal that reads back as the same number (`zmij`); only the layout is ours. Integers below 2^53 and
//! numbers with up to three decimals take a shortcut, which prints the very same digits: a decimal of at most 15 significant digits that
//! reads back as the number is the shortest one.

/// Longest run of digits a shortest decimal has.
const DIGITS_MAX: usize = 17;

/// `0.d1d2d3… * 10^point`.
struct Decimal {
    negative: bool,
    digits: [u8; DIGITS_MAX],
    len: usize,
    point: i32,
}

impl Decimal {
    /// Digits of a finite number; zero has the digit `0`.
    fn of(value: f64) -> Self {
        let mut buffer = zmij::Buffer::new();
        let text = buffer.format_finite(value.abs());
        let mut decimal = Self { negative: value.is_sign_negative(), digits: [b'0'; DIGITS_MAX], len: 0, point: 0 };
        let (mantissa, exponent) = text.split_once(['e', 'E']).unwrap_or((text, "0"));
        decimal.point = exponent.parse::<i32>().expect("the formatter writes a small integer after `e`");
        let mut after_point = false;
        for byte in mantissa.bytes() {
            match byte {
                b'.' => after_point = true,
                b'0' if decimal.len == 0 => decimal.point -= i32::from(after_point),
                digit => {
                    decimal.push(digit);
                    decimal.point += i32::from(!after_point);
                }
            }
        }
        while decimal.len > 0 && decimal.digits[decimal.len - 1] == b'0' {
            decimal.len -= 1;
        }
        if decimal.len == 0 {
            (decimal.len, decimal.point) = (1, 1);
        }
        decimal
    }

    /// Zeros past the capacity are trailing zeros of a whole number, which `point` alone describes.
    fn push(&mut self, digit: u8) {
        if self.len < DIGITS_MAX {
            self.digits[self.len] = digit;
            self.len += 1;
        }
    }

    fn digits(&self) -> &[u8] {
        &self.digits[..self.len]
    }

    fn write_sign(&self, out: &mut Vec<u8>) {
        if self.negative {
            out.push(b'-');
        }
    }

    /// `123.45`
    fn write_plain(&self, out: &mut Vec<u8>) {
        self.write_sign(out);
        let digits = self.digits();
        if self.point <= 0 {
            out.extend_from_slice(b"0.");
            out.extend(std::iter::repeat_n(b'0', self.point.unsigned_abs() as usize));
            out.extend_from_slice(digits);
            if digits == b"0" {
                out.truncate(out.len() - 2);
            }
            return;
        }
        let point = self.point as usize;
        if point >= digits.len() {
            out.extend_from_slice(digits);
            out.extend(std::iter::repeat_n(b'0', point - digits.len()));
        } else {
            out.extend_from_slice(&digits[..point]);
            out.push(b'.');
            out.extend_from_slice(&digits[point..]);
        }
    }

    /// `1.2345e+02`
    fn write_exponent(&self, out: &mut Vec<u8>) {
        self.write_sign(out);
        let digits = self.digits();
        out.push(digits[0]);
        if digits.len() > 1 {
            out.push(b'.');
            out.extend_from_slice(&digits[1..]);
        }
        let exponent = if digits == b"0" { 0 } else { self.point - 1 };
        out.push(b'e');
        out.push(if exponent < 0 { b'-' } else { b'+' });
        if exponent.abs() < 10 {
            out.push(b'0');
        }
        out.extend_from_slice(itoa::Buffer::new().format(exponent.abs()).as_bytes());
    }
}

/// Writes NaN and infinities; false for a finite number.
fn write_special(out: &mut Vec<u8>, value: f64) -> bool {
    let text: &[u8] = match value {
        v if v.is_nan() => b"NaN",
        f64::INFINITY => b"+Inf",
        f64::NEG_INFINITY => b"-Inf",
        _ => return false,
    };
    out.extend_from_slice(text);
    true
}

/// Largest magnitude of the shortcuts: times 1000 it is still an exact integer of at most 15 digits.
const SHORTCUT_MAX: f64 = 1e12;

/// Writes numbers with at most three decimals; false (and nothing written) for others.
#[inline]
fn write_short(out: &mut Vec<u8>, value: f64) -> bool {
    if value.abs() >= SHORTCUT_MAX || (value == 0.0 && value.is_sign_negative()) {
        return false;
    }
    let whole = value as i64;
    if whole as f64 == value {
        out.extend_from_slice(itoa::Buffer::new().format(whole).as_bytes());
        return true;
    }
    let thousandths = (value * 1000.0).round_ties_even();
    if thousandths / 1000.0 != value {
        return false;
    }
    let thousandths = thousandths as i64;
    if value < 0.0 {
        out.push(b'-');
    }
    let magnitude = thousandths.unsigned_abs();
    out.extend_from_slice(itoa::Buffer::new().format(magnitude / 1000).as_bytes());
    let fraction = magnitude % 1000;
    let digits = [b'.', b'0' + (fraction / 100) as u8, b'0' + (fraction / 10 % 10) as u8, b'0' + (fraction % 10) as u8];
    let kept = if digits[3] != b'0' {
        4
    } else if digits[2] != b'0' {
        3
    } else {
        2
    };
    out.extend_from_slice(&digits[..kept]);
    true
}

/// Writes a value without an exponent, however long: Go's `'f', -1`.
pub fn write_plain(out: &mut Vec<u8>, value: f64) {
    if !write_short(out, value) && !write_special(out, value) {
        Decimal::of(value).write_plain(out);
    }
}

/// Writes a value as Prometheus' HTTP API does: with an exponent below 1e-6 and from 1e21 on.
#[inline]
pub fn write_api(out: &mut Vec<u8>, value: f64) {
    if write_short(out, value) || write_special(out, value) {
        return;
    }
    let decimal = Decimal::of(value);
    if value != 0.0 && (value.abs() < 1e-6 || value.abs() >= 1e21) {
        decimal.write_exponent(out);
    } else {
        decimal.write_plain(out);
    }
}

fn text(write: impl FnOnce(&mut Vec<u8>)) -> String {
    let mut out = Vec::with_capacity(24);
    write(&mut out);
    String::from_utf8(out).expect("digits are ASCII")
}

/// A value without an exponent; see [`write_plain`].
pub fn plain(value: f64) -> String {
    text(|out| write_plain(out, value))
}

/// Shortest digits, with an exponent below 1e-4 and from 1e6 on: Go's `%g`.
pub fn general(value: f64) -> String {
    general_of(value, 6, Decimal::of)
}

/// Two significant digits: Go's `%.2g`.
pub fn general_2(value: f64) -> String {
    general_of(value, 2, |v| Decimal::of(format!("{v:.1e}").parse().expect("the formatter writes a number")))
}

fn general_of(value: f64, places: i32, digits: impl Fn(f64) -> Decimal) -> String {
    text(|out| {
        if write_special(out, value) {
            return;
        }
        let decimal = digits(value);
        let exponent = if decimal.digits() == b"0" { 0 } else { decimal.point - 1 };
        if exponent < -4 || exponent >= places { decimal.write_exponent(out) } else { decimal.write_plain(out) }
    })
}

/// As OpenMetrics writes numbers in labels: [`general`], and `.0` where neither point nor exponent shows that it is a float.
pub fn open_metrics(value: f64) -> String {
    let mut out = general(value);
    if value.is_finite() && !out.contains(['.', 'e']) {
        out.push_str(".0");
    }
    out
}

/// Reads a number as Go's `ParseFloat` does for everything that occurs in labels; `None` for anything else.
pub fn parse(text: &str) -> Option<f64> {
    // Rust takes the same decimal forms; Go's hexadecimal floats and underscores do not occur in bucket bounds.
    text.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn api(value: f64) -> String {
        text(|out| write_api(out, value))
    }

    #[test]
    fn values_look_like_gos() {
        let cases = [
            (0.0, "0", "0"),
            (-0.0, "-0", "-0"),
            (1.0, "1", "1"),
            (-1.5, "-1.5", "-1.5"),
            (0.001, "0.001", "0.001"),
            (-0.25, "-0.25", "-0.25"),
            (1234567.0, "1234567", "1.234567e+06"),
            (0.1 + 0.2, "0.30000000000000004", "0.30000000000000004"),
            (1e20, "100000000000000000000", "1e+20"),
            (1e21, "1e+21", "1e+21"),
            (1e-6, "0.000001", "1e-06"),
            (1e-7, "1e-07", "1e-07"),
            (1.5e-9, "1.5e-09", "1.5e-09"),
            (1.7976931348623157e308, "1.7976931348623157e+308", "1.7976931348623157e+308"),
            (5e-324, "5e-324", "5e-324"),
            (123456789012345680.0, "123456789012345680", "1.2345678901234568e+17"),
            (f64::NAN, "NaN", "NaN"),
            (f64::INFINITY, "+Inf", "+Inf"),
            (f64::NEG_INFINITY, "-Inf", "-Inf"),
        ];
        for (value, want_api, want_general) in cases {
            assert_eq!(api(value), want_api);
            assert_eq!(general(value), want_general);
        }
        assert_eq!(plain(1e-7), "0.0000001");
        assert_eq!(plain(1e22), "10000000000000000000000");
        assert_eq!((open_metrics(0.9), open_metrics(1.0), open_metrics(1e7)), ("0.9".into(), "1.0".into(), "1e+07".into()));
        let two = [(10.0, "10"), (123.0, "1.2e+02"), (0.0123, "0.012"), (1.0, "1"), (0.00001234, "1.2e-05")];
        two.into_iter().for_each(|(v, want)| assert_eq!(general_2(v), want));
    }

    proptest! {
        #[test]
        fn every_form_reads_back(bits in any::<u64>(), thousandths in -10_000_000i64..10_000_000) {
            for value in [f64::from_bits(bits), thousandths as f64 / 1000.0] {
                for form in [api(value), plain(value), general(value)] {
                    let back: f64 = form.parse().expect("a number");
                    prop_assert!(back.to_bits() == value.to_bits() || (back.is_nan() && value.is_nan()), "{} {}", form, value);
                }
            }
        }

        #[test]
        fn the_shortcut_prints_the_shortest_digits(thousandths in -999_999_999_999_999i64..999_999_999_999_999) {
            let value = thousandths as f64 / 1000.0;
            prop_assert_eq!(api(value), text(|out| Decimal::of(value).write_plain(out)));
        }
    }
}
