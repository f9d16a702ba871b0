//! What operators do to label sets: keep some labels, drop some, compare two sets. Once per series, never per sample.
//!
//! Keys for grouping and matching are canonical label bytes, so two series belong together exactly when their keys are equal bytes;
//! there are no hash collisions to think about.

use fletch_schemas::{Labels, METRIC_NAME};
use std::cmp::Ordering;

/// Ends each name and value in canonical bytes; greater than every byte of UTF-8.
const SEP: u8 = 0xFF;

/// Labels that describe a metric rather than a series, and go away with its name.
pub(crate) fn is_metadata(name: &str) -> bool {
    matches!(name, METRIC_NAME | "__type__" | "__unit__")
}

/// Which labels of a set make a key.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Keep<'a> {
    /// Only these (sorted) labels.
    Only(&'a [String]),
    /// All but these (sorted) labels and the metric name.
    Without(&'a [String]),
}

impl Keep<'_> {
    fn keeps(&self, name: &str) -> bool {
        match self {
            Self::Only(names) => has(names, name),
            Self::Without(names) => name != METRIC_NAME && !has(names, name),
        }
    }

    /// Writes the canonical bytes of the kept labels.
    pub(crate) fn write_key(&self, labels: &Labels, key: &mut Vec<u8>) {
        key.clear();
        if let Self::Only([]) = self {
            return;
        }
        for (name, value) in labels.iter() {
            if self.keeps(name) {
                push(key, name, value);
            }
        }
    }
}

fn has(names: &[String], name: &str) -> bool {
    // Grouping lists are short: a scan beats a search.
    names.iter().any(|n| n == name)
}

fn push(bytes: &mut Vec<u8>, name: &str, value: &str) {
    bytes.extend_from_slice(name.as_bytes());
    bytes.push(SEP);
    bytes.extend_from_slice(value.as_bytes());
    bytes.push(SEP);
}

/// The label set whose canonical bytes these are: bytes written by [`Keep::write_key`].
pub(crate) fn from_key(key: &[u8]) -> Labels {
    Labels::from_canonical(key).expect("a subset of a canonical label set in its order is canonical")
}

/// The set without name, type and unit.
pub(crate) fn without_metadata(labels: &Labels) -> Labels {
    labels.without(is_metadata)
}

/// The set with `name` set to `value`, or removed when `value` is empty.
pub(crate) fn with(labels: &Labels, name: &str, value: &str) -> Labels {
    let mut key = Vec::with_capacity(labels.as_bytes().len() + name.len() + value.len() + 2);
    let mut placed = value.is_empty();
    for (n, v) in labels.iter() {
        if !placed && n >= name {
            push(&mut key, name, value);
            placed = true;
        }
        if n != name {
            push(&mut key, n, v);
        }
    }
    if !placed {
        push(&mut key, name, value);
    }
    from_key(&key)
}

/// Order of two label sets as Prometheus sorts them: name by name, value by value; a set that ends first is smaller.
pub fn compare(a: &Labels, b: &Labels) -> Ordering {
    let (a, b) = (a.as_bytes(), b.as_bytes());
    let Some(at) = a.iter().zip(b).position(|(x, y)| x != y) else { return a.len().cmp(&b.len()) };
    // The separator ends a name or value, so it sorts before every byte that continues one.
    a[at].wrapping_add(1).cmp(&b[at].wrapping_add(1))
}

/// A set as Prometheus prints a metric: `name{a="b"}`.
pub(crate) fn metric_text(labels: &Labels) -> String {
    let name = labels.metric();
    let rest: Vec<String> = labels
        .iter()
        .filter(|(n, _)| *n != METRIC_NAME || !plain_metric_name(name))
        .map(|(n, v)| format!("{}={}", label_name(n), super::annotations::quoted(v)))
        .collect();
    let shown = if plain_metric_name(name) { name } else { "" };
    if rest.is_empty() && !shown.is_empty() { shown.to_owned() } else { format!("{shown}{{{}}}", rest.join(", ")) }
}

/// A set as Prometheus prints labels: `{__name__="x", a="b"}`.
pub(crate) fn set_text(labels: &Labels) -> String {
    let pairs: Vec<String> = labels.iter().map(|(n, v)| format!("{}={}", label_name(n), super::annotations::quoted(v))).collect();
    format!("{{{}}}", pairs.join(", "))
}

fn plain_metric_name(name: &str) -> bool {
    let mut chars = name.chars();
    chars.next().is_some_and(|c| c.is_ascii_alphabetic() || c == '_' || c == ':')
        && chars.all(|c| c.is_ascii_alphanumeric() || c == '_' || c == ':')
}

fn label_name(name: &str) -> String {
    let plain = plain_metric_name(name) && !name.contains(':');
    if plain { name.to_owned() } else { super::annotations::quoted(name) }
}

/// Where a canonical label set would be put by Prometheus' `limit_ratio`: its hash as a share of all hashes, in [0, 1].
///
/// The hash is xxh64 over length-prefixed names and values, as Prometheus' label sets are stored, so both choose the same series.
pub(crate) fn ratio_offset(labels: &Labels) -> f64 {
    let mut bytes = Vec::with_capacity(labels.as_bytes().len());
    for (name, value) in labels.iter() {
        for text in [name, value] {
            push_size(&mut bytes, text.len());
            bytes.extend_from_slice(text.as_bytes());
        }
    }
    xxhash_rust::xxh64::xxh64(&bytes, 0) as f64 / u64::MAX as f64
}

/// A length: one byte below 255, else 255 and three bytes, low first.
fn push_size(bytes: &mut Vec<u8>, len: usize) {
    if len < 255 {
        bytes.push(len as u8);
    } else {
        bytes.extend_from_slice(&[255, len as u8, (len >> 8) as u8, (len >> 16) as u8]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(pairs: &[(&str, &str)]) -> Labels {
        Labels::from_pairs(pairs.iter().copied()).expect("valid")
    }

    #[test]
    fn keys_keep_or_drop() {
        let labels = set(&[("__name__", "m"), ("a", "1"), ("b", "2")]);
        let key = |keep: Keep<'_>| {
            let mut key = Vec::new();
            keep.write_key(&labels, &mut key);
            from_key(&key)
        };
        let b = ["b".to_owned()];
        assert_eq!(key(Keep::Only(&b)), set(&[("b", "2")]));
        assert_eq!(key(Keep::Without(&b)), set(&[("a", "1")]));
        assert_eq!(key(Keep::Only(&[])), Labels::empty());
    }

    #[test]
    fn labels_are_set_in_place() {
        let labels = set(&[("b", "2"), ("d", "4")]);
        for (name, value, want) in [
            ("a", "1", vec![("a", "1"), ("b", "2"), ("d", "4")]),
            ("c", "3", vec![("b", "2"), ("c", "3"), ("d", "4")]),
            ("e", "5", vec![("b", "2"), ("d", "4"), ("e", "5")]),
            ("b", "x", vec![("b", "x"), ("d", "4")]),
            ("b", "", vec![("d", "4")]),
        ] {
            assert_eq!(with(&labels, name, value), set(&want), "{name}");
        }
    }

    #[test]
    fn order_is_that_of_pairs() {
        let ordered =
            [set(&[]), set(&[("a", "1")]), set(&[("a", "1"), ("b", "1")]), set(&[("a", "11")]), set(&[("a", "2")]), set(&[("aa", "0")])];
        for pair in ordered.windows(2) {
            assert_eq!(compare(&pair[0], &pair[1]), Ordering::Less, "{:?}", pair);
            assert_eq!(compare(&pair[1], &pair[0]), Ordering::Greater, "{:?}", pair);
        }
    }

    #[test]
    fn texts_look_like_prometheus() {
        let labels = set(&[("__name__", "m"), ("a", "x\"y")]);
        assert_eq!(metric_text(&labels), r#"m{a="x\"y"}"#);
        assert_eq!(set_text(&labels), r#"{__name__="m", a="x\"y"}"#);
        assert_eq!(metric_text(&set(&[])), "{}");
        assert_eq!(metric_text(&set(&[("__name__", "m")])), "m");
    }
}
