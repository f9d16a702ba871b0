//! Strings as Go writes them: quoting for messages and canonical text, unquoting of literals.
//!
//! The rules are those of Go's `strconv.Quote` and `%q`, because error texts and the canonical form of queries are compared with
//! Prometheus' own. Single-quoted literals follow the rules of double-quoted ones; back-quoted literals are raw.

use std::borrow::Cow;
use std::fmt::Write;

/// Appends `text` in double quotes, escaped like `strconv.Quote`.
pub(crate) fn push_quoted(out: &mut String, text: &str) {
    out.push('"');
    for c in text.chars() {
        push_escaped(out, c, '"');
    }
    out.push('"');
}

/// `text` in double quotes, escaped like `strconv.Quote`.
pub fn quote(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    push_quoted(&mut out, text);
    out
}

/// Bytes that may not be UTF-8, quoted; what is not UTF-8 becomes `\xNN`.
pub(crate) fn quote_bytes(bytes: &[u8]) -> String {
    let mut out = String::from("\"");
    for chunk in bytes.utf8_chunks() {
        chunk.valid().chars().for_each(|c| push_escaped(&mut out, c, '"'));
        for byte in chunk.invalid() {
            push_hex(&mut out, "\\x", 2, u32::from(*byte));
        }
    }
    out.push('"');
    out
}

/// One character in single quotes, as `%q` prints a rune; the end of the input prints as U+FFFD.
pub(crate) fn quote_char(c: Option<char>) -> String {
    let mut out = String::from("'");
    push_escaped(&mut out, c.unwrap_or(char::REPLACEMENT_CHARACTER), '\'');
    out.push('\'');
    out
}

/// `U+0071 'q'`, as `%#U` prints a rune; the quoted part is left out for what cannot be printed.
pub(crate) fn code_point(c: char) -> String {
    let code = u32::from(c);
    if is_print(c) { format!("U+{code:04X} '{c}'") } else { format!("U+{code:04X}") }
}

fn push_escaped(out: &mut String, c: char, quote: char) {
    match c {
        '\x07' => out.push_str("\\a"),
        '\x08' => out.push_str("\\b"),
        '\x0c' => out.push_str("\\f"),
        '\n' => out.push_str("\\n"),
        '\r' => out.push_str("\\r"),
        '\t' => out.push_str("\\t"),
        '\x0b' => out.push_str("\\v"),
        '\\' => out.push_str("\\\\"),
        _ if c == quote => {
            out.push('\\');
            out.push(c);
        }
        _ if is_print(c) => out.push(c),
        _ if c < ' ' || c == '\x7f' => push_hex(out, "\\x", 2, u32::from(c)),
        _ if u32::from(c) < 0x10000 => push_hex(out, "\\u", 4, u32::from(c)),
        _ => push_hex(out, "\\U", 8, u32::from(c)),
    }
}

fn push_hex(out: &mut String, prefix: &str, width: usize, value: u32) {
    write!(out, "{prefix}{value:0width$x}").expect("writing to a String cannot fail");
}

/// Letters, marks, numbers, punctuation, symbols and the ASCII space: what both Go and Rust print unescaped.
fn is_print(c: char) -> bool {
    if c.is_ascii() {
        return !c.is_ascii_control();
    }
    // `str` escapes combining marks only at its start, `char` always; Go never does. Hence the leading letter.
    let mut buffer = [b'a'; 5];
    let len = 1 + c.encode_utf8(&mut buffer[1..]).len();
    std::str::from_utf8(&buffer[..len]).is_ok_and(|text| text.escape_debug().nth(1) == Some(c))
}

/// ASCII letters, digits and `_`.
pub(crate) fn is_word(b: u8) -> bool {
    b.is_ascii_alphanumeric() || b == b'_'
}

/// The bytes a literal with its quotes stands for. The lexer has checked quotes and escapes.
pub(crate) fn unquote(literal: &str) -> Cow<'_, [u8]> {
    let inner = literal.get(1..literal.len().saturating_sub(1)).unwrap_or_default();
    if literal.starts_with('`') || !inner.contains('\\') {
        return Cow::Borrowed(inner.as_bytes());
    }
    Cow::Owned(unescape(inner))
}

/// The text a literal with its quotes stands for; what is not UTF-8 becomes U+FFFD.
pub(crate) fn unquote_text(literal: &str) -> String {
    match unquote(literal) {
        Cow::Borrowed(bytes) => String::from_utf8_lossy(bytes).into_owned(),
        Cow::Owned(bytes) => match String::from_utf8(bytes) {
            Ok(text) => text,
            Err(error) => String::from_utf8_lossy(error.as_bytes()).into_owned(),
        },
    }
}

fn unescape(inner: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(inner.len());
    let mut rest = inner;
    while let Some(at) = rest.find('\\') {
        out.extend_from_slice(&rest.as_bytes()[..at]);
        rest = push_unescaped(&mut out, &rest[at + 1..]);
    }
    out.extend_from_slice(rest.as_bytes());
    out
}

/// Decodes one escape, whose backslash is already gone, and returns the text behind it.
fn push_unescaped<'a>(out: &mut Vec<u8>, escape: &'a str) -> &'a str {
    let mut chars = escape.chars();
    let Some(kind) = chars.next() else { return "" };
    let digits = |from: usize, count: usize, radix: u32| {
        let text = escape.get(from..from + count).unwrap_or_default();
        (u32::from_str_radix(text, radix).unwrap_or_default(), escape.get(from + count..).unwrap_or_default())
    };
    let (code, rest) = match kind {
        'a' => (0x07, chars.as_str()),
        'b' => (0x08, chars.as_str()),
        'f' => (0x0c, chars.as_str()),
        'n' => (0x0a, chars.as_str()),
        'r' => (0x0d, chars.as_str()),
        't' => (0x09, chars.as_str()),
        'v' => (0x0b, chars.as_str()),
        'x' => digits(1, 2, 16),
        '0'..='7' => digits(0, 3, 8),
        'u' | 'U' => {
            let (code, rest) = digits(1, if kind == 'u' { 4 } else { 8 }, 16);
            let c = char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER);
            out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
            return rest;
        }
        other => (u32::from(other), chars.as_str()),
    };
    // Hexadecimal and octal escapes are single bytes, even above 0x7f.
    out.push(code as u8);
    rest
}
