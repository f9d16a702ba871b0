//! The rules of names and labels, and the canonical form of a label set.
//!
//! Any UTF-8 is a legal name, as in Prometheus 3, but for the empty string and NUL. A label with an empty value is an absent label
//! and is dropped before anything is checked. Every set needs a `__name__`.
//!
//! # Not here
//! Limits per tenant and metric (series, values per label): they need to know what is stored.

use super::outcome::RejectReason;
use crate::quota::QuotaProblem;
use fletch_common::Limits;
use fletch_schemas::METRIC_NAME;
use std::borrow::Cow;

/// Label names whose values are unbounded: each value would be a series of its own. Compared exactly.
pub const REFUSED_LABELS: [&str; 6] = ["user_id", "session_id", "request_id", "trace_id", "uuid", "guid"];

/// Most bytes of a sender's name or value in a message.
const CLIP_BYTES_MAX: usize = 64;

/// Most bytes of a whole series in a message.
const SERIES_TEXT_BYTES_MAX: usize = 200;

/// Between the parts of canonical bytes, see [`fletch_schemas::Labels`].
const SEP: u8 = 0xFF;

/// What happens to a series with a label of [`REFUSED_LABELS`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LabelPolicy {
    /// It is refused: for the push APIs, where a person reads the answer.
    #[default]
    Refuse,
    /// It is taken and counted: for exporters that cannot be changed.
    Warn,
}

/// Why pairs of names and values are not a series. Quoted text of the sender is clipped.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LabelProblem {
    /// No metric name.
    #[error("the metric name (label `__name__`) is missing")]
    MissingName,
    /// A label name is the empty string.
    #[error("a label has an empty name; its value is `{value}`")]
    EmptyName {
        /// The value beside it.
        value: String,
    },
    /// A name with a NUL character.
    #[error("the name `{name}` contains a NUL character")]
    NulInName {
        /// The name, NUL shown as `\0`.
        name: String,
    },
    /// A name twice.
    #[error("label `{name}` is given twice")]
    Duplicate {
        /// Which.
        name: String,
    },
    /// A label name is not UTF-8.
    #[error("the label name `{name}` is not UTF-8")]
    NameNotUtf8 {
        /// With replacement characters.
        name: String,
    },
    /// A value is not UTF-8.
    #[error("the value of label `{label}` is not UTF-8")]
    ValueNotUtf8 {
        /// Its label.
        label: String,
    },
    /// A label name above the limit.
    #[error("the label name `{name}` is {bytes} bytes, the limit is {max} (`label_name_bytes_max`)")]
    NameTooLong {
        /// Its beginning.
        name: String,
        /// Its length.
        bytes: usize,
        /// The limit.
        max: usize,
    },
    /// A value above the limit.
    #[error("the value of label `{label}` is {bytes} bytes, the limit is {max} (`label_value_bytes_max`); it begins `{value}`")]
    ValueTooLong {
        /// Its label.
        label: String,
        /// Its beginning.
        value: String,
        /// Its length.
        bytes: usize,
        /// The limit.
        max: usize,
    },
    /// More labels than the limit.
    #[error("the series has {count} labels, the limit is {max} (`labels_per_series_max`)")]
    TooManyLabels {
        /// How many, the metric name included.
        count: usize,
        /// The limit.
        max: usize,
    },
    /// A label of [`REFUSED_LABELS`].
    #[error("label `{name}` is refused: each of its values would be a series of its own; leave it out, or keep it in logs or traces")]
    Refused {
        /// Which.
        name: &'static str,
    },
    /// The series is new and a quota is used up.
    #[error(transparent)]
    Quota(#[from] QuotaProblem),
}

impl LabelProblem {
    /// Its class.
    pub fn reason(&self) -> RejectReason {
        match self {
            Self::MissingName => RejectReason::MissingName,
            Self::EmptyName { .. } | Self::NulInName { .. } => RejectReason::BadName,
            Self::Duplicate { .. } => RejectReason::Duplicate,
            Self::NameNotUtf8 { .. } | Self::ValueNotUtf8 { .. } => RejectReason::NotUtf8,
            Self::NameTooLong { .. } => RejectReason::NameTooLong,
            Self::ValueTooLong { .. } => RejectReason::ValueTooLong,
            Self::TooManyLabels { .. } => RejectReason::TooManyLabels,
            Self::Refused { .. } => RejectReason::RefusedLabel,
            Self::Quota(QuotaProblem::Series { .. }) => RejectReason::SeriesLimit,
            Self::Quota(QuotaProblem::Metric { .. }) => RejectReason::MetricSeriesLimit,
            Self::Quota(QuotaProblem::Values { .. }) => RejectReason::LabelValuesLimit,
        }
    }

    /// The label that is to blame, when it is one.
    pub fn label(&self) -> Option<&str> {
        match self {
            Self::MissingName => Some(METRIC_NAME),
            Self::EmptyName { .. } | Self::TooManyLabels { .. } => None,
            Self::NulInName { name } | Self::Duplicate { name } | Self::NameNotUtf8 { name } | Self::NameTooLong { name, .. } => Some(name),
            Self::ValueNotUtf8 { label } | Self::ValueTooLong { label, .. } => Some(label),
            Self::Refused { name } => Some(name),
            Self::Quota(QuotaProblem::Series { .. }) => None,
            Self::Quota(QuotaProblem::Metric { .. }) => Some(METRIC_NAME),
            Self::Quota(QuotaProblem::Values { label, .. }) => Some(label),
        }
    }
}

/// A part of the body, or what an escape in it stood for.
type Bytes<'a> = Cow<'a, [u8]>;

/// The label pairs of one series as they were sent: not yet sorted, checked or known to be UTF-8. Reused from series to series.
///
/// Holds at most one pair more than `labels_per_series_max`, however many are pushed.
#[derive(Debug)]
pub(super) struct Pairs<'a> {
    list: Vec<(Bytes<'a>, Bytes<'a>)>,
    given: usize,
    kept_max: usize,
}

impl<'a> Pairs<'a> {
    pub(super) fn new(limits: &Limits) -> Self {
        Self { list: Vec::new(), given: 0, kept_max: limits.labels_per_series_max.saturating_add(1) }
    }

    pub(super) fn clear(&mut self) {
        self.list.clear();
        self.given = 0;
    }

    /// Adds a pair; an empty value means "no such label".
    pub(super) fn push(&mut self, name: impl Into<Bytes<'a>>, value: impl Into<Bytes<'a>>) {
        let value = value.into();
        if value.is_empty() {
            return;
        }
        self.given += 1;
        if self.list.len() < self.kept_max {
            self.list.push((name.into(), value));
        }
    }

    /// Adds a pair of texts.
    pub(super) fn push_str(&mut self, name: Cow<'a, str>, value: Cow<'a, str>) {
        self.push(bytes_of(name), bytes_of(value));
    }

    /// The value of a label.
    pub(super) fn get(&self, name: &str) -> Option<&[u8]> {
        self.list.iter().find(|(n, _)| **n == *name.as_bytes()).map(|(_, v)| &**v)
    }

    /// Sorts and checks the pairs and writes their canonical bytes to `out`. Returns the refused label that the policy let pass.
    ///
    /// # Errors
    /// The first [`LabelProblem`]; `out` is then to be ignored.
    pub(super) fn canonical(
        &mut self,
        limits: &Limits,
        policy: LabelPolicy,
        out: &mut Vec<u8>,
    ) -> Result<Option<&'static str>, LabelProblem> {
        if self.given > limits.labels_per_series_max {
            return Err(LabelProblem::TooManyLabels { count: self.given, max: limits.labels_per_series_max });
        }
        self.list.sort_by(|a, b| a.0.cmp(&b.0));
        out.clear();
        let mut previous: Option<&[u8]> = None;
        let mut unbounded = None;
        for (name, value) in &self.list {
            check_pair(name, value, limits)?;
            if previous == Some(name) {
                return Err(LabelProblem::Duplicate { name: clip_bytes(name) });
            }
            if let Some(refused) = REFUSED_LABELS.into_iter().find(|r| r.as_bytes() == &**name) {
                unbounded = Some(refused);
            }
            push_part(out, name);
            push_part(out, value);
            previous = Some(name);
        }
        if self.get(METRIC_NAME).is_none() {
            return Err(LabelProblem::MissingName);
        }
        match (unbounded, policy) {
            (Some(name), LabelPolicy::Refuse) => Err(LabelProblem::Refused { name }),
            (unbounded, _) => Ok(unbounded),
        }
    }

    /// The series as a message names it: `name{label="value", …}`, clipped, with replacement characters where it is not UTF-8.
    pub(super) fn describe(&self) -> String {
        let lossy = self.list.iter().map(|(n, v)| (clip_bytes(n), clip_bytes(v)));
        describe(lossy)
    }
}

/// The series as a message names it, clipped.
pub(super) fn describe<N: AsRef<str>, V: AsRef<str>>(pairs: impl Iterator<Item = (N, V)> + Clone) -> String {
    let metric = pairs.clone().find(|(n, _)| n.as_ref() == METRIC_NAME);
    let mut text = metric.map(|(_, v)| clip(v.as_ref(), CLIP_BYTES_MAX)).unwrap_or_default();
    let bare = text.len();
    for (name, value) in pairs.filter(|(n, _)| n.as_ref() != METRIC_NAME) {
        text.push_str(if text.len() == bare { "{" } else { ", " });
        if text.len() > SERIES_TEXT_BYTES_MAX {
            text.push('…');
            break;
        }
        text.push_str(&format!("{}={:?}", clip(name.as_ref(), CLIP_BYTES_MAX), clip(value.as_ref(), CLIP_BYTES_MAX)));
    }
    if text.len() > bare {
        text.push('}');
    } else if bare == 0 {
        text.push_str("{}");
    }
    text
}

/// Text of the sender, cut to about `max` bytes and without control characters.
pub(super) fn clip(text: &str, max: usize) -> String {
    let cut = text.floor_char_boundary(max);
    let mut out = String::with_capacity(cut + 3);
    for c in text[..cut].chars() {
        match c {
            '\0' => out.push_str("\\0"),
            c if c.is_control() => out.push('\u{FFFD}'),
            c => out.push(c),
        }
    }
    if cut < text.len() {
        out.push('…');
    }
    out
}

/// A name for a message, clipped.
pub(crate) fn clip_name(text: &str) -> String {
    clip(text, CLIP_BYTES_MAX)
}

/// Bytes of the sender for a message.
pub(super) fn clip_bytes(bytes: &[u8]) -> String {
    // A few bytes more than are shown, so that `clip` sees that it cuts.
    let start = &bytes[..bytes.len().min(CLIP_BYTES_MAX + 4)];
    clip(&String::from_utf8_lossy(start), CLIP_BYTES_MAX)
}

fn check_pair(name: &[u8], value: &[u8], limits: &Limits) -> Result<(), LabelProblem> {
    if name.is_empty() {
        return Err(LabelProblem::EmptyName { value: clip_bytes(value) });
    }
    if name.len() > limits.label_name_bytes_max {
        return Err(LabelProblem::NameTooLong { name: clip_bytes(name), bytes: name.len(), max: limits.label_name_bytes_max });
    }
    if value.len() > limits.label_value_bytes_max {
        let (label, value_start) = (clip_bytes(name), clip_bytes(value));
        return Err(LabelProblem::ValueTooLong { label, value: value_start, bytes: value.len(), max: limits.label_value_bytes_max });
    }
    if std::str::from_utf8(name).is_err() {
        return Err(LabelProblem::NameNotUtf8 { name: clip_bytes(name) });
    }
    if std::str::from_utf8(value).is_err() {
        return Err(LabelProblem::ValueNotUtf8 { label: clip_bytes(name) });
    }
    if name.contains(&0) {
        return Err(LabelProblem::NulInName { name: clip_bytes(name) });
    }
    if name == METRIC_NAME.as_bytes() && value.contains(&0) {
        return Err(LabelProblem::NulInName { name: clip_bytes(value) });
    }
    Ok(())
}

fn push_part(out: &mut Vec<u8>, part: &[u8]) {
    out.extend_from_slice(part);
    out.push(SEP);
}

fn bytes_of(text: Cow<'_, str>) -> Bytes<'_> {
    match text {
        Cow::Borrowed(text) => Cow::Borrowed(text.as_bytes()),
        Cow::Owned(text) => Cow::Owned(text.into_bytes()),
    }
}

#[cfg(test)]
mod tests;
