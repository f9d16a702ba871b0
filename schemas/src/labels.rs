//! The label set of a series in its canonical form, and the series hash.
//!
//! ```text
//!  canonical bytes:  name 0xFF value 0xFF  name 0xFF value 0xFF …     names ascending by bytes
//! ```
//!
//! # Invariants
//! - **L1** Names are unique, sorted by bytes; no value is empty (an empty label is an absent label). 0xFF cannot occur in UTF-8, so
//!   two different sets never have the same bytes.
//! - **L2** `series_id` is xxh3-64 of these bytes with seed = probe (0 unless two sets collide), as `i64`. It never changes:
//!   `FORMAT.md`, pinned by `golden_hashes`.
//!
//! The tenant is not part of the bytes or the hash.

use std::borrow::Borrow;
use std::fmt;
use std::sync::Arc;

/// Label that holds the metric name.
pub const METRIC_NAME: &str = "__name__";

const SEP: u8 = 0xFF;

/// Why pairs of names and values are not a label set.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LabelError {
    /// One name occurs twice.
    #[error("label `{0}` is given twice")]
    Duplicate(String),
    /// A name is the empty string.
    #[error("a label has an empty name")]
    EmptyName,
    /// Bytes that are not in canonical form were offered as such.
    #[error("the bytes are not a canonical label set")]
    NotCanonical,
}

/// An immutable, canonical label set; cheap to clone. Equality, order and hash are those of the canonical bytes.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Labels(Arc<[u8]>);

impl Borrow<[u8]> for Labels {
    fn borrow(&self) -> &[u8] {
        &self.0
    }
}

impl Default for Labels {
    fn default() -> Self {
        Self::empty()
    }
}

impl Labels {
    /// The empty set.
    pub fn empty() -> Self {
        Self(Arc::from(&[][..]))
    }

    /// Sorts the pairs and drops those with an empty value.
    ///
    /// # Errors
    /// [`LabelError::Duplicate`], [`LabelError::EmptyName`].
    pub fn from_pairs<N: AsRef<str>, V: AsRef<str>>(pairs: impl IntoIterator<Item = (N, V)>) -> Result<Self, LabelError> {
        let mut builder = LabelsBuilder::default();
        for (name, value) in pairs {
            builder.push(name.as_ref(), value.as_ref());
        }
        builder.build()
    }

    /// Takes canonical bytes back, after checking every rule of them.
    ///
    /// # Errors
    /// [`LabelError::NotCanonical`].
    pub fn from_canonical(bytes: &[u8]) -> Result<Self, LabelError> {
        let mut previous: Option<&[u8]> = None;
        let mut rest = bytes;
        while !rest.is_empty() {
            let (name, after) = split(rest).ok_or(LabelError::NotCanonical)?;
            let (value, after) = split(after).ok_or(LabelError::NotCanonical)?;
            let ordered = previous.is_none_or(|p| p < name);
            if !ordered || name.is_empty() || value.is_empty() || std::str::from_utf8(name).is_err() || std::str::from_utf8(value).is_err()
            {
                return Err(LabelError::NotCanonical);
            }
            previous = Some(name);
            rest = after;
        }
        Ok(Self(Arc::from(bytes)))
    }

    /// The canonical bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// `series_id` for a probe number (0 unless a collision was resolved).
    pub fn series_id(&self, probe: u32) -> i64 {
        Self::series_id_of(&self.0, probe)
    }

    /// `series_id` of canonical bytes that are not yet a [`Labels`].
    pub fn series_id_of(canonical: &[u8], probe: u32) -> i64 {
        xxhash_rust::xxh3::xxh3_64_with_seed(canonical, u64::from(probe)).cast_signed()
    }

    /// All pairs, ascending by name.
    pub fn iter(&self) -> LabelIter<'_> {
        LabelIter(&self.0)
    }

    /// The value of a label; `None` when the series does not have it.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.iter().find(|(n, _)| *n == name).map(|(_, v)| v)
    }

    /// The metric name, or `""`.
    pub fn metric(&self) -> &str {
        self.get(METRIC_NAME).unwrap_or("")
    }

    /// Number of pairs.
    pub fn len(&self) -> usize {
        self.iter().count()
    }

    /// Whether there are no labels.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The set without every name for which `drop` says true.
    pub fn without(&self, mut drop: impl FnMut(&str) -> bool) -> Self {
        let mut bytes = Vec::with_capacity(self.0.len());
        for (name, value) in self.iter() {
            if !drop(name) {
                push_pair(&mut bytes, name, value);
            }
        }
        Self(Arc::from(bytes))
    }

    /// A builder that starts from these pairs.
    pub fn to_builder(&self) -> LabelsBuilder {
        LabelsBuilder { pairs: self.iter().map(|(n, v)| (n.to_owned(), v.to_owned())).collect() }
    }
}

impl fmt::Debug for Labels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// As Prometheus prints a label set: `{a="b", c="d"}`, the name inside.
impl fmt::Display for Labels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("{")?;
        for (i, (name, value)) in self.iter().enumerate() {
            let comma = if i == 0 { "" } else { ", " };
            write!(f, "{comma}{name}={value:?}")?;
        }
        f.write_str("}")
    }
}

/// Pairs of a [`Labels`], ascending by name.
#[derive(Debug, Clone)]
pub struct LabelIter<'a>(&'a [u8]);

impl<'a> Iterator for LabelIter<'a> {
    type Item = (&'a str, &'a str);

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let (name, after) = split(self.0)?;
        let (value, after) = split(after)?;
        self.0 = after;
        Some((text(name), text(value)))
    }
}

fn split(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let at = bytes.iter().position(|&b| b == SEP)?;
    Some((&bytes[..at], &bytes[at + 1..]))
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("a label set is built from strings or was checked")
}

fn push_pair(bytes: &mut Vec<u8>, name: &str, value: &str) {
    bytes.extend_from_slice(name.as_bytes());
    bytes.push(SEP);
    bytes.extend_from_slice(value.as_bytes());
    bytes.push(SEP);
}

/// Collects pairs in any order, then sorts and checks them once.
#[derive(Debug, Clone, Default)]
pub struct LabelsBuilder {
    pairs: Vec<(String, String)>,
}

impl LabelsBuilder {
    /// Adds a pair; an empty value means "no such label" and is dropped by [`build`](Self::build).
    pub fn push(&mut self, name: &str, value: &str) -> &mut Self {
        self.pairs.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Replaces the value of `name`, adds it, or removes it when `value` is empty.
    pub fn set(&mut self, name: &str, value: &str) -> &mut Self {
        self.pairs.retain(|(n, _)| n != name);
        self.push(name, value)
    }

    /// Removes `name` if it is there.
    pub fn remove(&mut self, name: &str) -> &mut Self {
        self.pairs.retain(|(n, _)| n != name);
        self
    }

    /// The canonical set.
    ///
    /// # Errors
    /// [`LabelError::Duplicate`], [`LabelError::EmptyName`].
    pub fn build(&mut self) -> Result<Labels, LabelError> {
        self.pairs.retain(|(_, v)| !v.is_empty());
        self.pairs.sort();
        let mut bytes = Vec::new();
        let mut previous: Option<&str> = None;
        for (name, value) in &self.pairs {
            if name.is_empty() {
                return Err(LabelError::EmptyName);
            }
            if previous == Some(name) {
                return Err(LabelError::Duplicate(name.clone()));
            }
            push_pair(&mut bytes, name, value);
            previous = Some(name);
        }
        Ok(Labels(Arc::from(bytes)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_are_sorted_and_empty_values_dropped() {
        let a = Labels::from_pairs([("b", "2"), ("a", "1"), ("c", "")]).expect("valid");
        let b = Labels::from_pairs([("a", "1"), ("b", "2")]).expect("valid");
        assert_eq!(a, b);
        assert_eq!(a.to_string(), r#"{a="1", b="2"}"#);
    }

    #[test]
    fn duplicates_are_refused_by_name() {
        assert_eq!(Labels::from_pairs([("a", "1"), ("a", "2")]), Err(LabelError::Duplicate("a".into())));
    }

    #[test]
    fn canonical_bytes_round_trip_and_garbage_does_not() {
        let labels = Labels::from_pairs([("__name__", "up"), ("job", "x")]).expect("valid");
        assert_eq!(Labels::from_canonical(labels.as_bytes()), Ok(labels));
        for bad in [&b"a"[..], b"a\xffb", b"b\xff1\xffa\xff1\xff", b"a\xff1\xffa\xff2\xff", b"a\xff\xff", b"\xff1\xff", b"a\xfe\xff1\xff"] {
            assert_eq!(Labels::from_canonical(bad), Err(LabelError::NotCanonical), "{bad:?}");
        }
    }

    /// Pinned for ever: tables written by older versions join on these numbers.
    #[test]
    fn golden_hashes() {
        let up = Labels::from_pairs([("__name__", "up"), ("instance", "localhost:9090"), ("job", "prometheus")]).expect("valid");
        assert_eq!(Labels::empty().series_id(0), 3_244_421_341_483_603_138);
        // Both checked against another implementation of xxh3 (Python's `xxhash`).
        assert_eq!(up.series_id(0), 7_759_911_870_152_560_841);
        assert_eq!(up.series_id(1), -8_075_996_806_511_427_673);
    }
}
