//! JSON push, and the JSON messages of Kafka topics.
//!
//! ```text
//!  {"metrics":[{"name":"cpu","type":"gauge","value":0.5,"timestamp":1700000000,"tags":{"host":"a"}}, …]}
//!  [{…}, …]      {…}                                                            the bare array and the single metric
//!  {"timestamp":"2023-11-14T22:13:20Z","value":"0.5","name":"cpu","labels":{"__name__":"cpu","host":"a"}}   prometheus-kafka-adapter
//! ```
//!
//! | key | value |
//! |---|---|
//! | `name` | metric name; may instead stand as `__name__` among the labels |
//! | `value` | number, or a string: a number, `"NaN"`, `"+Inf"`, `"-Inf"` |
//! | `timestamp` | seconds (\|t\| < 1e11) or milliseconds, as a number or a string, or RFC 3339; missing = time of arrival |
//! | `tags` or `labels` | object of strings |
//! | `type`, `unit`, `help` | strings, kept as metadata; an unknown type is the type `unknown` |
//!
//! `null` is a missing key. Other keys are skipped: producers add their own. A metric that cannot be used is refused with its index; the
//! others stand. Numbers are read from their text, so values are exact to the last bit.
//!
//! # Invariants
//! - The body is walked once as a stream; memory is that of one metric, never a tree of the body.

use super::DecodeContext;
use super::error::DecodeError;
use super::metadata::{Families, set_text};
use super::number::{parse_time, parse_value};
use super::outcome::{Decoded, Place, RejectReason};
use super::sink::{Bad, Sink};
use super::validate::{Pairs, clip};
use fletch_schemas::{METRIC_NAME, MetricKind};
use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::fmt;

mod fields;

use fields::{Fields, Key, entries, string};

/// Appends the metrics of a JSON body to `out`.
///
/// # Errors
/// When the whole body is refused; `out` is then as before. Metrics that are refused are in [`Decoded::rejects`].
pub fn decode_json(context: &DecodeContext<'_>, body: &[u8], out: &mut Decoded) -> Result<(), DecodeError> {
    let text = checked_text(context, body)?;
    out.whole_or_nothing(|out| {
        let mut metrics = Metrics::new(context, out);
        match metrics.body(text)? {
            Shape::Many => Ok(()),
            Shape::One => metrics.metric(text.trim_ascii()),
        }
    })
}

/// Appends the one metric of a message of prometheus-kafka-adapter to `out`.
///
/// # Errors
/// As [`decode_json`].
pub fn decode_prometheus_json(context: &DecodeContext<'_>, body: &[u8], out: &mut Decoded) -> Result<(), DecodeError> {
    let text = checked_text(context, body)?;
    let metric: &RawValue = serde_json::from_str(text).map_err(|e| DecodeError::json(&e))?;
    out.whole_or_nothing(|out| Metrics::new(context, out).metric(metric.get()))
}

fn checked_text<'b>(context: &DecodeContext<'_>, body: &'b [u8]) -> Result<&'b str, DecodeError> {
    let max = context.limits.request_decompressed_bytes_max;
    if body.len() > max {
        return Err(DecodeError::TooLarge { what: "body", bytes: body.len() as u64, max, limit: "request_decompressed_bytes_max" });
    }
    std::str::from_utf8(body).map_err(|e| DecodeError::NotUtf8 { offset: e.valid_up_to() })
}

/// What the body turned out to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shape {
    /// A list; its metrics have been taken.
    Many,
    /// An object that is itself the metric.
    One,
}

/// The metrics of one body on their way.
struct Metrics<'c, 'o, 'b> {
    sink: Sink<'c>,
    families: Families,
    out: &'o mut Decoded,
    pairs: Pairs<'b>,
    index: u64,
    /// Why the stream was left, when it was not for its syntax.
    stopped: Option<DecodeError>,
}

impl<'c, 'o, 'b> Metrics<'c, 'o, 'b> {
    fn new(context: &'c DecodeContext<'c>, out: &'o mut Decoded) -> Self {
        let (sink, families, pairs) = (Sink::new(context), Families::new(out), Pairs::new(context.limits));
        Self { sink, families, out, pairs, index: 0, stopped: None }
    }

    fn body(&mut self, text: &'b str) -> Result<Shape, DecodeError> {
        let mut json = serde_json::Deserializer::from_str(text);
        let shape = Body(self).deserialize(&mut json).and_then(|shape| json.end().map(|()| shape));
        shape.map_err(|error| self.stopped.take().unwrap_or_else(|| DecodeError::json(&error)))
    }

    /// One metric, whose syntax is known to be right.
    fn metric(&mut self, text: &'b str) -> Result<(), DecodeError> {
        let place = Place::Metric(self.index);
        self.index += 1;
        self.sink.count()?;
        if let Err(bad) = self.take(text, place) {
            bad.reject(self.out, place);
        }
        Ok(())
    }

    fn take(&mut self, text: &'b str, place: Place) -> Result<(), Bad> {
        let fields = Fields::parse(text)?;
        self.pairs.clear();
        self.name_and_labels(&fields)?;
        let value = fields.value()?;
        let time_ms = fields.time_ms()?;
        let (kind, unit, help) = (fields.text("type")?, fields.text("unit")?, fields.text("help")?);
        let stored = self.sink.store(self.out, place, &mut self.pairs, time_ms, value);
        if !stored || (kind.is_none() && unit.is_none() && help.is_none()) {
            return Ok(());
        }
        let context = self.sink.context;
        // A stored series has a name, and it is UTF-8.
        let Some(Ok(metric)) = self.pairs.get(METRIC_NAME).map(std::str::from_utf8) else { return Ok(()) };
        if let Some(family) = self.families.entry(self.out, context.tenant, context.limits, place, metric) {
            family.kind = kind.map_or(family.kind, |kind| MetricKind::parse(&kind));
            unit.iter().for_each(|unit| set_text(&mut family.unit, unit, context.limits));
            help.iter().for_each(|help| set_text(&mut family.help, help, context.limits));
        }
        Ok(())
    }

    fn name_and_labels(&mut self, fields: &Fields<'b>) -> Result<(), Bad> {
        let name = fields.text("name")?;
        let mut named = name.is_some();
        if let Some(name) = name.clone() {
            self.pairs.push_str(METRIC_NAME.into(), name);
        }
        let Some((key, labels)) = fields.labels()? else { return Ok(()) };
        let pairs = &mut self.pairs;
        entries(labels.get(), key, |label, raw| {
            let value = string(raw).map_err(|found| Bad {
                label: Some(clip(&label, 64)),
                ..Bad::malformed(format!("the value of label `{}` must be a string, not {found}", clip(&label, 64)))
            })?;
            // prometheus-kafka-adapter gives the name twice; that is no contradiction.
            let repeated = named && label == METRIC_NAME && name.as_ref() == Some(&value);
            if repeated {
                named = false;
            } else {
                pairs.push_str(label, value);
            }
            Ok(())
        })
    }
}

/// Reads the outer array or object.
struct Body<'m, 'c, 'o, 'b>(&'m mut Metrics<'c, 'o, 'b>);

impl<'b> DeserializeSeed<'b> for Body<'_, '_, '_, 'b> {
    type Value = Shape;

    fn deserialize<D: Deserializer<'b>>(self, json: D) -> Result<Shape, D::Error> {
        json.deserialize_any(self)
    }
}

impl<'b> Visitor<'b> for Body<'_, '_, '_, 'b> {
    type Value = Shape;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("{\"metrics\": […]}, an array of metrics or one metric")
    }

    fn visit_seq<A: SeqAccess<'b>>(self, list: A) -> Result<Shape, A::Error> {
        List(self.0).visit_seq(list)
    }

    fn visit_map<A: MapAccess<'b>>(self, mut map: A) -> Result<Shape, A::Error> {
        let mut shape = Shape::One;
        while let Some(Key(key)) = map.next_key()? {
            if key != "metrics" {
                map.next_value::<IgnoredAny>()?;
            } else if shape == Shape::Many {
                return Err(A::Error::custom("key `metrics` is given twice"));
            } else {
                shape = map.next_value_seed(List(&mut *self.0))?;
            }
        }
        Ok(shape)
    }
}

/// Reads the array of metrics, each as its text.
struct List<'m, 'c, 'o, 'b>(&'m mut Metrics<'c, 'o, 'b>);

impl<'b> DeserializeSeed<'b> for List<'_, '_, '_, 'b> {
    type Value = Shape;

    fn deserialize<D: Deserializer<'b>>(self, json: D) -> Result<Shape, D::Error> {
        json.deserialize_seq(self)
    }
}

impl<'b> Visitor<'b> for List<'_, '_, '_, 'b> {
    type Value = Shape;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array of metrics")
    }

    fn visit_seq<A: SeqAccess<'b>>(self, mut list: A) -> Result<Shape, A::Error> {
        while let Some(metric) = list.next_element::<&'b RawValue>()? {
            if let Err(error) = self.0.metric(metric.get()) {
                self.0.stopped = Some(error);
                return Err(A::Error::custom("stopped"));
            }
        }
        Ok(Shape::Many)
    }
}

/// A number or time that may be written as a string.
fn number_text<'b>(raw: &'b RawValue) -> Result<Cow<'b, str>, &'static str> {
    match raw.get().as_bytes().first() {
        Some(b'-' | b'0'..=b'9') => Ok(Cow::Borrowed(raw.get())),
        _ => string(raw),
    }
}

impl<'b> Fields<'b> {
    fn value(&self) -> Result<f64, Bad> {
        let bad = |message: String| Bad::new(RejectReason::BadValue, message);
        let raw = self.get("value").ok_or_else(|| bad("key `value` is missing".to_owned()))?;
        let text = number_text(raw).map_err(|found| bad(format!("`value` must be a number or a string, not {found}")))?;
        parse_value(&text).map_err(|problem| Bad::number(RejectReason::BadValue, "value", &text, problem))
    }

    fn time_ms(&self) -> Result<Option<i64>, Bad> {
        let Some(raw) = self.get("timestamp") else { return Ok(None) };
        let wrong = |found: &str| Bad::new(RejectReason::BadTime, format!("`timestamp` must be a number or a string, not {found}"));
        let text = number_text(raw).map_err(wrong)?;
        parse_time(&text).map(Some).map_err(|problem| Bad::number(RejectReason::BadTime, "timestamp", &text, problem))
    }

    fn text(&self, key: &'static str) -> Result<Option<Cow<'b, str>>, Bad> {
        let wrong = |found: &str| Bad::malformed(format!("`{key}` must be a string, not {found}"));
        self.get(key).map(|raw| string(raw).map_err(wrong)).transpose()
    }

    /// `tags` or `labels`, with the key it has in quotes.
    fn labels(&self) -> Result<Option<(&'static str, &'b RawValue)>, Bad> {
        match (self.get("tags"), self.get("labels")) {
            (Some(_), Some(_)) => Err(Bad::malformed("give either `tags` or `labels`, not both")),
            (Some(tags), None) => Ok(Some(("`tags`", tags))),
            (None, Some(labels)) => Ok(Some(("`labels`", labels))),
            (None, None) => Ok(None),
        }
    }
}

#[cfg(test)]
mod tests;
