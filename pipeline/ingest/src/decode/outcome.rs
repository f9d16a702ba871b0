//! What a decoder hands back: samples, metadata, and what was refused and why.

use super::error::DecodeError;
use crate::{Append, SampleBatch, SourceOffset};
use fletch_schemas::{MetricMetadata, TenantId};
use serde::Serialize;
use std::fmt;

/// How many [`Reject`]s are kept with their text; the rest is only counted.
pub const REJECTS_KEPT_MAX: usize = 100;

/// How many rejects an error text names.
const REJECTS_NAMED_MAX: usize = 10;

/// Why a sample was refused; also the `reason` label of the counter of refused samples.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum RejectReason {
    /// The syntax of this series, line or metric is broken, or a key has the wrong type.
    Malformed,
    /// The value is missing or not a number.
    BadValue,
    /// The time is not a time.
    BadTime,
    /// Before 1700.
    TooOld,
    /// More than 10 minutes ahead of our clock.
    InFuture,
    /// No `__name__`.
    MissingName,
    /// A label name is empty, or a name contains NUL.
    BadName,
    /// A label name is given twice.
    Duplicate,
    /// A name or value is not UTF-8.
    NotUtf8,
    /// Above `label_name_bytes_max`.
    NameTooLong,
    /// Above `label_value_bytes_max`.
    ValueTooLong,
    /// Above `labels_per_series_max`.
    TooManyLabels,
    /// A label name whose values are unbounded, such as `user_id`.
    RefusedLabel,
    /// Native histograms are not stored yet.
    NativeHistogram,
    /// Type, help or unit of a metric that cannot be kept.
    Metadata,
    /// A new series above the tenant's `series_max`.
    SeriesLimit,
    /// A new series above `series_per_metric_max`.
    MetricSeriesLimit,
    /// A new series with a new value above `values_per_label_max`.
    LabelValuesLimit,
}

impl RejectReason {
    /// Every reason.
    pub const ALL: [Self; 18] = [
        Self::Malformed,
        Self::BadValue,
        Self::BadTime,
        Self::TooOld,
        Self::InFuture,
        Self::MissingName,
        Self::BadName,
        Self::Duplicate,
        Self::NotUtf8,
        Self::NameTooLong,
        Self::ValueTooLong,
        Self::TooManyLabels,
        Self::RefusedLabel,
        Self::NativeHistogram,
        Self::Metadata,
        Self::SeriesLimit,
        Self::MetricSeriesLimit,
        Self::LabelValuesLimit,
    ];

    /// In snake case, for metrics and answers.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::BadValue => "bad_value",
            Self::BadTime => "bad_time",
            Self::TooOld => "too_old",
            Self::InFuture => "in_future",
            Self::MissingName => "missing_name",
            Self::BadName => "bad_name",
            Self::Duplicate => "duplicate_label",
            Self::NotUtf8 => "not_utf8",
            Self::NameTooLong => "name_too_long",
            Self::ValueTooLong => "value_too_long",
            Self::TooManyLabels => "too_many_labels",
            Self::RefusedLabel => "refused_label",
            Self::NativeHistogram => "native_histogram",
            Self::Metadata => "metadata",
            Self::SeriesLimit => "series_limit",
            Self::MetricSeriesLimit => "metric_series_limit",
            Self::LabelValuesLimit => "label_values_limit",
        }
    }
}

/// Where in the request something was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// Index of a time series in a remote-write request, from 0.
    Series(u64),
    /// Index of a metadata entry in a remote-write request, from 0.
    Metadata(u64),
    /// Line of a text body, from 1.
    Line(u64),
    /// Index of a metric in a JSON body, from 0.
    Metric(u64),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Series(n) => write!(f, "series {n}"),
            Self::Metadata(n) => write!(f, "metadata {n}"),
            Self::Line(n) => write!(f, "line {n}"),
            Self::Metric(n) => write!(f, "metric {n}"),
        }
    }
}

/// Something that was refused while the rest of the request stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reject {
    /// Where.
    pub place: Place,
    /// Why, as a class.
    pub reason: RejectReason,
    /// How many samples it cost; 1 for what holds no samples (metadata, an unreadable series).
    pub samples: u64,
    /// The label that is to blame, when it is one.
    pub label: Option<String>,
    /// Why, for people; names the series where it is known. Never long.
    pub message: String,
}

impl fmt::Display for Reject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.message)
    }
}

/// Counts of one or several decoded requests.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    /// Samples in the batch.
    pub accepted: u64,
    /// Metric families about which something was said.
    pub metadata: u64,
    /// Exemplars that came along and were dropped: they are not stored.
    pub exemplars_ignored: u64,
    /// New series that carry a label of [`REFUSED_LABELS`](super::REFUSED_LABELS) and were taken all the same.
    pub unbounded_labels: u64,
    rejected: [u64; RejectReason::ALL.len()],
}

impl Stats {
    /// Samples refused for one reason.
    pub fn rejected_for(&self, reason: RejectReason) -> u64 {
        self.rejected[reason as usize]
    }

    /// Samples refused for any reason.
    pub fn rejected(&self) -> u64 {
        self.rejected.iter().sum()
    }

    /// Every reason that occurred, with its count.
    pub fn rejected_by_reason(&self) -> impl Iterator<Item = (RejectReason, u64)> {
        RejectReason::ALL.into_iter().map(|r| (r, self.rejected_for(r))).filter(|(_, n)| *n > 0)
    }
}

/// What came out of one or several requests. Reuse it: [`clear`](Self::clear) keeps the memory.
#[derive(Debug, Default)]
pub struct Decoded {
    /// Samples in the order of the request.
    pub batch: SampleBatch,
    /// Metadata in the order of the request.
    pub metadata: Vec<(TenantId, MetricMetadata)>,
    /// Counts.
    pub stats: Stats,
    /// The first [`REJECTS_KEPT_MAX`] refusals; [`Stats::rejected`] counts them all.
    pub rejects: Vec<Reject>,
    /// How many refusals there were, those without text included.
    pub rejects_total: u64,
    /// One of the labels that [`Stats::unbounded_labels`] counts, for a warning in the log.
    pub unbounded_label: Option<&'static str>,
}

impl Decoded {
    /// Nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Forgets everything but the memory.
    pub fn clear(&mut self) {
        self.rollback(&Mark::default());
    }

    /// Whether there is nothing to make durable.
    pub fn is_empty(&self) -> bool {
        self.batch.is_empty() && self.metadata.is_empty()
    }

    /// Takes samples and metadata out, as the bus wants them; counts and refusals stay.
    pub fn take_append(&mut self, sources: Vec<SourceOffset>) -> Append {
        Append { batch: std::mem::take(&mut self.batch), metadata: std::mem::take(&mut self.metadata), sources }
    }

    /// The text of an answer to a request of which a part was refused; `None` when nothing was. Names the first 10.
    pub fn reject_text(&self) -> Option<String> {
        let first = self.rejects.first()?;
        let refused = self.stats.rejected();
        let rest = if self.stats.accepted > 0 { format!(", the other {} are stored", self.stats.accepted) } else { String::new() };
        let mut text = format!("{refused} samples refused{rest}: {first}");
        for reject in self.rejects.iter().take(REJECTS_NAMED_MAX).skip(1) {
            text.push_str("; ");
            text.push_str(&reject.to_string());
        }
        let unnamed = self.rejects_total.saturating_sub(REJECTS_NAMED_MAX as u64);
        if unnamed > 0 {
            text.push_str(&format!("; and {unnamed} more"));
        }
        Some(text)
    }

    /// Counts a refusal; builds its text only while texts are kept.
    pub(super) fn reject(&mut self, place: Place, reason: RejectReason, samples: u64, text: impl FnOnce() -> (Option<String>, String)) {
        self.stats.rejected[reason as usize] += samples;
        self.rejects_total += 1;
        if self.rejects.len() < REJECTS_KEPT_MAX {
            let (label, message) = text();
            self.rejects.push(Reject { place, reason, samples, label, message });
        }
    }

    /// Decodes one request: on an error everything of it is taken back (invariant D2).
    pub(super) fn whole_or_nothing<E>(&mut self, decode: impl FnOnce(&mut Self) -> Result<(), E>) -> Result<(), E> {
        let mark = self.mark();
        let result = decode(self);
        if result.is_err() {
            self.rollback(&mark);
        }
        result
    }

    fn mark(&self) -> Mark {
        Mark {
            samples: self.batch.len(),
            metadata: self.metadata.len(),
            stats: self.stats,
            rejects: self.rejects.len(),
            rejects_total: self.rejects_total,
            unbounded_label: self.unbounded_label,
        }
    }

    fn rollback(&mut self, mark: &Mark) {
        self.truncate_samples(mark.samples);
        self.metadata.truncate(mark.metadata);
        self.stats = mark.stats;
        self.rejects.truncate(mark.rejects);
        self.rejects_total = mark.rejects_total;
        self.unbounded_label = mark.unbounded_label;
    }

    pub(super) fn truncate_samples(&mut self, len: usize) {
        self.batch.series.truncate(len);
        self.batch.times.truncate(len);
        self.batch.values.truncate(len);
    }
}

/// A state of a [`Decoded`] to return to; the default is "empty".
#[derive(Debug, Default)]
struct Mark {
    samples: usize,
    metadata: usize,
    stats: Stats,
    rejects: usize,
    rejects_total: u64,
    unbounded_label: Option<&'static str>,
}

/// Body of the answer to a push of text or JSON:
/// `{"status":"success","accepted":2,"rejected":0,"errors":[]}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PushAnswer {
    /// `success` when anything was taken, else `error`.
    pub status: &'static str,
    /// Samples stored.
    pub accepted: u64,
    /// Samples refused.
    pub rejected: u64,
    /// The first [`REJECTS_KEPT_MAX`] refusals.
    pub errors: Vec<PushError>,
}

/// One refusal in a [`PushAnswer`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PushError {
    /// Index of the metric in a JSON body, from 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub index: Option<u64>,
    /// Line of a text body, from 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub line: Option<u64>,
    /// The label that is to blame.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// Class of the refusal, [`RejectReason::as_str`]; absent when the whole request was refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<&'static str>,
    /// Why, for people.
    pub error: String,
}

impl PushAnswer {
    /// The answer for what was decoded (and made durable in the meantime).
    pub fn of(decoded: &Decoded) -> Self {
        let taken = decoded.stats.accepted > 0 || decoded.stats.metadata > 0;
        let mut errors: Vec<PushError> = decoded.rejects.iter().map(PushError::of).collect();
        if !taken && errors.is_empty() {
            errors.push(PushError::whole("the request holds no samples".to_owned()));
        }
        Self {
            status: if taken { "success" } else { "error" },
            accepted: decoded.stats.accepted,
            rejected: decoded.stats.rejected(),
            errors,
        }
    }

    /// The answer when the whole request was refused, here or later (no room on the bus, say).
    pub fn refused(error: &(impl fmt::Display + ?Sized)) -> Self {
        Self { status: "error", accepted: 0, rejected: 0, errors: vec![PushError::whole(error.to_string())] }
    }

    /// Whether to answer 200 rather than 400.
    pub fn is_success(&self) -> bool {
        self.status == "success"
    }
}

impl PushError {
    fn of(reject: &Reject) -> Self {
        let (index, line) = match reject.place {
            Place::Series(n) | Place::Metadata(n) | Place::Metric(n) => (Some(n), None),
            Place::Line(n) => (None, Some(n)),
        };
        Self { index, line, label: reject.label.clone(), reason: Some(reject.reason.as_str()), error: reject.message.clone() }
    }

    fn whole(error: String) -> Self {
        Self { index: None, line: None, label: None, reason: None, error }
    }
}

impl From<&DecodeError> for PushAnswer {
    fn from(error: &DecodeError) -> Self {
        Self::refused(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SeriesRef;

    fn some(rejects: u64) -> Decoded {
        let mut decoded = Decoded::new();
        for n in 0..rejects {
            decoded.reject(Place::Series(n), RejectReason::Duplicate, 2, || (Some("a".into()), format!("bad {n}")));
        }
        decoded
    }

    #[test]
    fn reasons_index_their_counters() {
        for (i, reason) in RejectReason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, i);
        }
    }

    #[test]
    fn texts_are_capped_and_counts_are_not() {
        let decoded = some(250);
        assert_eq!((decoded.rejects.len(), decoded.rejects_total, decoded.stats.rejected()), (REJECTS_KEPT_MAX, 250, 500));
        assert_eq!(decoded.stats.rejected_by_reason().collect::<Vec<_>>(), [(RejectReason::Duplicate, 500)]);
        let text = decoded.reject_text().expect("there are rejects");
        assert!(text.starts_with("500 samples refused: series 0: bad 0; series 1: bad 1;"), "{text}");
        assert!(text.ends_with("series 9: bad 9; and 240 more"), "{text}");
    }

    #[test]
    fn ten_rejects_are_all_named_and_the_rest_is_said_to_be_stored() {
        let mut decoded = some(10);
        decoded.stats.accepted = 7;
        let text = decoded.reject_text().expect("there are rejects");
        assert!(text.starts_with("20 samples refused, the other 7 are stored: ") && text.ends_with("bad 9"), "{text}");
        assert_eq!(Decoded::new().reject_text(), None);
    }

    #[test]
    fn rollback_restores_and_clear_empties() {
        let mut decoded = some(1);
        decoded.batch.push(SeriesRef(1), 2, 3.0);
        let mark = decoded.mark();
        decoded.batch.push(SeriesRef(2), 2, 3.0);
        decoded.metadata.push((TenantId::default(), MetricMetadata::default()));
        decoded.stats.accepted += 1;
        decoded.reject(Place::Series(0), RejectReason::TooOld, 1, || (None, String::new()));
        decoded.rollback(&mark);
        assert_eq!((decoded.batch.len(), decoded.metadata.len(), decoded.rejects_total, decoded.stats.accepted), (1, 0, 1, 0));
        decoded.clear();
        assert!(decoded.is_empty() && decoded.rejects.is_empty() && decoded.stats == Stats::default());
    }

    #[test]
    fn answers_have_the_documented_shape() {
        let mut decoded = Decoded::new();
        decoded.stats.accepted = 2;
        let json = |answer: &PushAnswer| serde_json::to_string(answer).expect("plain data");
        assert_eq!(json(&PushAnswer::of(&decoded)), r#"{"status":"success","accepted":2,"rejected":0,"errors":[]}"#);
        decoded.stats.accepted = 0;
        decoded.reject(Place::Metric(1), RejectReason::RefusedLabel, 1, || (Some("user_id".into()), "why".into()));
        decoded.reject(Place::Line(3), RejectReason::BadValue, 1, || (None, "what".into()));
        let answer = PushAnswer::of(&decoded);
        assert!(!answer.is_success());
        assert_eq!(
            json(&answer),
            r#"{"status":"error","accepted":0,"rejected":2,"errors":[{"index":1,"label":"user_id","reason":"refused_label","error":"why"},{"line":3,"reason":"bad_value","error":"what"}]}"#
        );
        assert!(!PushAnswer::of(&Decoded::new()).is_success());
        decoded.stats.metadata = 1;
        assert!(PushAnswer::of(&decoded).is_success());
    }
}
