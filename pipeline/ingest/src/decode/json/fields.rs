//! The keys of one metric as slices of the body, not yet interpreted.

use super::super::sink::Bad;
use super::super::validate::clip;
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::fmt;

/// The keys that mean something.
const KEYS: [&str; 8] = ["name", "value", "timestamp", "tags", "labels", "type", "unit", "help"];

/// The values of [`KEYS`] in one metric; `null` counts as missing.
#[derive(Debug)]
pub(super) struct Fields<'b>([Option<&'b RawValue>; KEYS.len()]);

impl<'b> Fields<'b> {
    /// Reads the text of one JSON value.
    pub(super) fn parse(text: &'b str) -> Result<Self, Bad> {
        let mut fields = Self([None; KEYS.len()]);
        let mut seen = [false; KEYS.len()];
        entries(text, "a metric", |key, raw| {
            let Some(at) = KEYS.iter().position(|k| *k == key) else { return Ok(()) };
            if std::mem::replace(&mut seen[at], true) {
                return Err(Bad::malformed(format!("key `{key}` is given twice")));
            }
            fields.0[at] = Some(raw).filter(|raw| raw.get() != "null");
            Ok(())
        })?;
        Ok(fields)
    }

    /// The value of a key of [`KEYS`].
    pub(super) fn get(&self, key: &str) -> Option<&'b RawValue> {
        KEYS.iter().position(|k| *k == key).and_then(|at| self.0[at])
    }
}

/// Calls `each` with every key and value of the object `text`, in order; `what` names it in messages.
pub(super) fn entries<'b>(text: &'b str, what: &str, each: impl FnMut(Cow<'b, str>, &'b RawValue) -> Result<(), Bad>) -> Result<(), Bad> {
    if !text.starts_with('{') {
        return Err(Bad::malformed(format!("{what} must be an object, not {}", kind(text))));
    }
    let mut bad = None;
    let mut json = serde_json::Deserializer::from_str(text);
    let result = json.deserialize_map(Entries { each, bad: &mut bad });
    match (bad, result) {
        (Some(bad), _) => Err(bad),
        (None, Err(error)) => Err(Bad::malformed(format!("{what} cannot be read: {}", clip(&error.to_string(), 200)))),
        (None, Ok(())) => Ok(()),
    }
}

/// A string value, else what it is instead.
pub(super) fn string(raw: &RawValue) -> Result<Cow<'_, str>, &'static str> {
    if !raw.get().starts_with('"') {
        return Err(kind(raw.get()));
    }
    serde_json::from_str::<Key<'_>>(raw.get()).map(|key| key.0).map_err(|_| "a string with a broken escape")
}

fn kind(text: &str) -> &'static str {
    match text.as_bytes().first() {
        Some(b'"') => "a string",
        Some(b'{') => "an object",
        Some(b'[') => "an array",
        Some(b't' | b'f') => "a boolean",
        Some(b'n') => "null",
        _ => "a number",
    }
}

struct Entries<'e, F> {
    each: F,
    bad: &'e mut Option<Bad>,
}

impl<'b, F: FnMut(Cow<'b, str>, &'b RawValue) -> Result<(), Bad>> Visitor<'b> for Entries<'_, F> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'b>>(mut self, mut map: A) -> Result<(), A::Error> {
        while let Some((Key(key), raw)) = map.next_entry::<Key<'b>, &'b RawValue>()? {
            if let Err(bad) = (self.each)(key, raw) {
                *self.bad = Some(bad);
                return Err(serde::de::Error::custom("refused"));
            }
        }
        Ok(())
    }
}

/// A text that is borrowed from the body where it has no escapes.
#[derive(Debug)]
pub(super) struct Key<'b>(pub(super) Cow<'b, str>);

impl<'b> Deserialize<'b> for Key<'b> {
    fn deserialize<D: Deserializer<'b>>(json: D) -> Result<Self, D::Error> {
        json.deserialize_str(KeyVisitor).map(Key)
    }
}

struct KeyVisitor;

impl<'b> Visitor<'b> for KeyVisitor {
    type Value = Cow<'b, str>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string")
    }

    fn visit_borrowed_str<E>(self, text: &'b str) -> Result<Self::Value, E> {
        Ok(Cow::Borrowed(text))
    }

    fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
        Ok(Cow::Owned(text.to_owned()))
    }
}
