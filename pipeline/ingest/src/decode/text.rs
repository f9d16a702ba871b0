//! Prometheus' text exposition format 0.0.4, one line at a time, for the text push and for whoever reads `/metrics`.
//!
//! ```text
//!  # TYPE http_requests_total counter                       metadata: TYPE, HELP, UNIT; any other comment is skipped
//!  http_requests_total{code="200"} 1027 1700000000000       name{labels} value [time]
//!  {"name with.dots", "label.too"="v"} 3                     quoted UTF-8 names
//! ```
//!
//! - Escapes in quotes are `\\`, `\"` and `\n`; any other backslash stands for itself, as in Prometheus. HELP knows `\\` and `\n`.
//! - Lines end in LF or CR LF; blanks between tokens are spaces and tabs.
//! - The time is milliseconds, or seconds when |t| < 1e11, or RFC 3339; without one it is the time of arrival.
//! - An OpenMetrics exemplar behind a sample (`# {…} v`) is dropped and counted; `# EOF` is a comment.
//!
//! A line that cannot be read is refused with its number; the others stand. A label value never spans lines.
//!
//! # Not here
//! Relabeling, staleness, OpenMetrics' stricter rules, the protobuf exposition.

use super::DecodeContext;
use super::error::DecodeError;
use super::metadata::{Families, set_text};
use super::number::{parse_time, parse_value};
use super::outcome::{Decoded, Place, RejectReason};
use super::sink::{Bad, Sink};
use super::validate::{Pairs, clip};
use fletch_schemas::{METRIC_NAME, MetricKind};
use std::borrow::Cow;

/// Appends the samples and metadata of an exposition to `out`.
///
/// # Errors
/// When the whole body is refused; `out` is then as before. Lines that are refused are in [`Decoded::rejects`].
pub fn decode_text(context: &DecodeContext<'_>, body: &[u8], out: &mut Decoded) -> Result<(), DecodeError> {
    let max = context.limits.request_decompressed_bytes_max;
    if body.len() > max {
        return Err(DecodeError::TooLarge { what: "body", bytes: body.len() as u64, max, limit: "request_decompressed_bytes_max" });
    }
    out.whole_or_nothing(|out| Exposition { sink: Sink::new(context), families: Families::new(out) }.lines(body, out))
}

struct Exposition<'c> {
    sink: Sink<'c>,
    families: Families,
}

impl Exposition<'_> {
    fn lines(&mut self, body: &[u8], out: &mut Decoded) -> Result<(), DecodeError> {
        let mut pairs = Pairs::new(self.sink.context.limits);
        for (line, number) in body.split(|b| *b == b'\n').zip(1..) {
            let line = trim_blanks(line.strip_suffix(b"\r").unwrap_or(line));
            let place = Place::Line(number);
            if line.is_empty() {
                continue;
            }
            let Ok(line) = std::str::from_utf8(line) else {
                Bad::new(RejectReason::NotUtf8, "the line is not UTF-8").reject(out, place);
                continue;
            };
            if let Some(comment) = line.strip_prefix('#') {
                self.comment(comment, out, place);
                continue;
            }
            self.sink.count()?;
            pairs.clear();
            match sample(line, &mut pairs) {
                Ok(sample) => {
                    out.stats.exemplars_ignored += u64::from(sample.has_exemplar);
                    self.sink.store(out, place, &mut pairs, sample.time_ms, sample.value);
                }
                Err(bad) => bad.reject(out, place),
            }
        }
        Ok(())
    }

    /// What stands behind `#`.
    fn comment(&mut self, comment: &str, out: &mut Decoded, place: Place) {
        // Without a blank, `#TYPE` is an ordinary comment.
        if !comment.starts_with(is_blank) {
            return;
        }
        if let Err(bad) = self.said(comment, out, place) {
            bad.reject(out, place);
        }
    }

    fn said(&mut self, comment: &str, out: &mut Decoded, place: Place) -> Result<(), Bad> {
        let mut cursor = Cursor { rest: comment };
        let keyword = cursor.token();
        if !matches!(keyword, "TYPE" | "HELP" | "UNIT") {
            return Ok(());
        }
        cursor.blanks();
        let bad = |what: &str| Bad::new(RejectReason::Metadata, format!("# {keyword}: {what}"));
        let name = match cursor.peek() {
            Some(b'"') => cursor.quoted().map_err(|b| bad(&b.message))?,
            _ => Cow::Borrowed(cursor.token()),
        };
        if name.is_empty() {
            return Err(bad("a metric name must follow"));
        }
        cursor.blanks();
        let text = cursor.rest;
        let kind = MetricKind::parse(text);
        if keyword == "TYPE" && kind == MetricKind::Unknown && !matches!(text, "unknown" | "untyped") {
            return Err(bad(&format!(
                "`{}` is no type; known are counter, gauge, histogram, gaugehistogram, summary, info, stateset, unknown and untyped",
                clip(text, 64)
            )));
        }
        let context = self.sink.context;
        // A refused family has been counted already.
        let Some(family) = self.families.entry(out, context.tenant, context.limits, place, &name) else { return Ok(()) };
        match keyword {
            "TYPE" => family.kind = kind,
            "UNIT" => set_text(&mut family.unit, text, context.limits),
            _ => set_text(&mut family.help, &unescape(text, ""), context.limits),
        }
        Ok(())
    }
}

/// One sample line, labels aside.
#[derive(Debug, PartialEq)]
struct Sample {
    value: f64,
    time_ms: Option<i64>,
    has_exemplar: bool,
}

/// Reads a line without blanks at its ends; its labels go to `pairs`.
fn sample<'a>(line: &'a str, pairs: &mut Pairs<'a>) -> Result<Sample, Bad> {
    let mut cursor = Cursor { rest: line };
    let name = cursor.identifier(true);
    if !name.is_empty() {
        pairs.push_str(METRIC_NAME.into(), name.into());
    }
    let behind_name = cursor.rest;
    cursor.blanks();
    match cursor.peek() {
        Some(b'{') => labels(&mut cursor, pairs)?,
        _ if name.is_empty() || behind_name.len() == cursor.rest.len() => return Err(no_name(name, &cursor)),
        _ => {}
    }
    cursor.blanks();
    let text = cursor.token();
    if text.is_empty() {
        return Err(Bad::new(RejectReason::BadValue, "the value is missing"));
    }
    let value = parse_value(text).map_err(|p| Bad::number(RejectReason::BadValue, "value", text, p))?;
    cursor.blanks();
    let time_ms = if matches!(cursor.peek(), None | Some(b'#')) { None } else { Some(time(cursor.token())?) };
    cursor.blanks();
    let has_exemplar = cursor.rest.starts_with('#');
    if !has_exemplar && !cursor.rest.is_empty() {
        return Err(Bad::malformed(format!("unexpected `{}` behind the time", clip(cursor.rest, 32))));
    }
    Ok(Sample { value, time_ms, has_exemplar })
}

fn time(text: &str) -> Result<i64, Bad> {
    parse_time(text).map_err(|p| Bad::number(RejectReason::BadTime, "time", text, p))
}

fn no_name(name: &str, cursor: &Cursor<'_>) -> Bad {
    match cursor.rest.chars().next() {
        None => Bad::new(RejectReason::BadValue, "the value is missing"),
        Some(c) if name.is_empty() => Bad::malformed(format!(
            "a metric name cannot begin with `{}`; quote unusual names: {{\"the.name\"}} 1",
            clip(&c.to_string(), 8)
        )),
        Some(c) => Bad::malformed(format!(
            "unexpected `{}` behind the metric name `{}`; quote unusual names: {{\"the.name\"}} 1",
            clip(&c.to_string(), 8),
            clip(name, 64)
        )),
    }
}

/// What stands in braces: labels, and at most one quoted metric name.
fn labels<'a>(cursor: &mut Cursor<'a>, pairs: &mut Pairs<'a>) -> Result<(), Bad> {
    cursor.step("{");
    loop {
        cursor.blanks();
        if cursor.step("}") {
            return Ok(());
        }
        label(cursor, pairs)?;
        cursor.blanks();
        if !cursor.step(",") && cursor.peek() != Some(b'}') {
            return Err(Bad::malformed(match cursor.rest.chars().next() {
                None => "the labels are not closed by `}`".to_owned(),
                Some(c) => format!("expected `,` or `}}` between labels, found `{}`", clip(&c.to_string(), 8)),
            }));
        }
    }
}

fn label<'a>(cursor: &mut Cursor<'a>, pairs: &mut Pairs<'a>) -> Result<(), Bad> {
    let quoted = cursor.peek() == Some(b'"');
    let name = if quoted { cursor.quoted()? } else { Cow::Borrowed(cursor.identifier(false)) };
    cursor.blanks();
    if name.is_empty() && !quoted {
        return Err(Bad::malformed(match cursor.rest.chars().next() {
            None => "the labels are not closed by `}`".to_owned(),
            Some(c) => format!("a label name cannot begin with `{}`; quote unusual names", clip(&c.to_string(), 8)),
        }));
    }
    if cursor.step("=") {
        cursor.blanks();
        let value = cursor.quoted().map_err(|bad| Bad { label: Some(clip(&name, 64)), ..bad })?;
        pairs.push_str(name, value);
        return Ok(());
    }
    if !quoted {
        let message = format!("label `{}` has no value; expected `=\"…\"`", clip(&name, 64));
        return Err(Bad { reason: RejectReason::Malformed, label: Some(clip(&name, 64)), message });
    }
    pairs.push_str(METRIC_NAME.into(), name);
    Ok(())
}

/// A place in a line.
struct Cursor<'a> {
    rest: &'a str,
}

impl<'a> Cursor<'a> {
    fn peek(&self) -> Option<u8> {
        self.rest.as_bytes().first().copied()
    }

    fn blanks(&mut self) {
        self.rest = self.rest.trim_start_matches(is_blank);
    }

    /// Steps over `text` if it is next.
    fn step(&mut self, text: &str) -> bool {
        let behind = self.rest.strip_prefix(text);
        self.rest = behind.unwrap_or(self.rest);
        behind.is_some()
    }

    /// Everything up to the next blank, after leading blanks.
    fn token(&mut self) -> &'a str {
        self.blanks();
        let end = self.rest.find(is_blank).unwrap_or(self.rest.len());
        self.take(end)
    }

    /// A name that needs no quotes; empty when there is none. Metric names may have colons.
    fn identifier(&mut self, colons: bool) -> &'a str {
        let legal = |(i, b): (usize, u8)| b == b'_' || b.is_ascii_alphabetic() || (colons && b == b':') || (i > 0 && b.is_ascii_digit());
        let end = self.rest.bytes().enumerate().position(|at| !legal(at)).unwrap_or(self.rest.len());
        self.take(end)
    }

    /// A text in double quotes, escapes resolved.
    fn quoted(&mut self) -> Result<Cow<'a, str>, Bad> {
        if !self.step("\"") {
            return Err(Bad::malformed("expected a text in double quotes"));
        }
        let mut escaped = false;
        let end = self.rest.bytes().position(|b| {
            let ends = b == b'"' && !escaped;
            escaped = b == b'\\' && !escaped;
            ends
        });
        let end = end.ok_or_else(|| Bad::malformed("a text in quotes is not closed"))?;
        let text = self.take(end);
        self.step("\"");
        Ok(unescape(text, "\""))
    }

    fn take(&mut self, len: usize) -> &'a str {
        let (taken, rest) = self.rest.split_at(len);
        self.rest = rest;
        taken
    }
}

/// Resolves `\\`, `\n` and, where they are special, `also`; any other backslash stands for itself.
fn unescape<'a>(text: &'a str, also: &str) -> Cow<'a, str> {
    if !text.contains('\\') {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        if c != '\\' {
            out.push(c);
            continue;
        }
        match chars.next() {
            Some('\\') => out.push('\\'),
            Some('n') => out.push('\n'),
            Some(other) if also.contains(other) => out.push(other),
            Some(other) => out.extend(['\\', other]),
            None => out.push('\\'),
        }
    }
    Cow::Owned(out)
}

fn is_blank(c: char) -> bool {
    c == ' ' || c == '\t'
}

fn trim_blanks(line: &[u8]) -> &[u8] {
    let blank = |b: &u8| *b == b' ' || *b == b'\t';
    let start = line.iter().position(|b| !blank(b)).unwrap_or(line.len());
    let end = line.iter().rposition(|b| !blank(b)).map_or(start, |at| at + 1);
    &line[start..end]
}

#[cfg(test)]
mod tests;
