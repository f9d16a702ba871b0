//! Where the decoders of text and JSON put one sample at a time: labels checked, series resolved, time checked, counted.

use super::DecodeContext;
use super::error::DecodeError;
use super::outcome::{Decoded, Place, RejectReason};
use super::validate::{LabelProblem, Pairs, clip, describe};
use crate::series::Admission;
use fletch_schemas::{TIME_FUTURE_MAX_MS, TIME_MIN_MS};

/// The accepted times of a request.
#[derive(Debug, Clone, Copy)]
pub(super) struct TimeRange {
    now_ms: i64,
    max_ms: i64,
}

impl TimeRange {
    pub(super) fn at(now_ms: i64) -> Self {
        Self { now_ms, max_ms: now_ms.saturating_add(TIME_FUTURE_MAX_MS) }
    }

    /// Why a time is refused, if it is.
    pub(super) fn problem(self, time_ms: i64) -> Option<RejectReason> {
        if time_ms < TIME_MIN_MS {
            Some(RejectReason::TooOld)
        } else if time_ms > self.max_ms {
            Some(RejectReason::InFuture)
        } else {
            None
        }
    }

    /// The problem in words.
    pub(super) fn explain(self, reason: RejectReason, time_ms: i64) -> String {
        match reason {
            RejectReason::TooOld => format!("time {time_ms} ms is before the year 1700"),
            _ => format!("time {time_ms} ms is more than {} min ahead of the server's {} ms", TIME_FUTURE_MAX_MS / 60_000, self.now_ms),
        }
    }
}

/// One request's samples on their way into a [`Decoded`].
#[derive(Debug)]
pub(super) struct Sink<'c> {
    pub(super) context: &'c DecodeContext<'c>,
    times: TimeRange,
    canonical: Vec<u8>,
    seen: usize,
}

impl<'c> Sink<'c> {
    pub(super) fn new(context: &'c DecodeContext<'c>) -> Self {
        Self { context, times: TimeRange::at(context.now_ms), canonical: Vec::new(), seen: 0 }
    }

    /// Counts one more line or metric that is meant to be a sample.
    ///
    /// # Errors
    /// [`DecodeError::TooManySamples`].
    pub(super) fn count(&mut self) -> Result<(), DecodeError> {
        self.seen += 1;
        let max = self.context.limits.request_samples_max;
        if self.seen > max { Err(DecodeError::TooManySamples { max }) } else { Ok(()) }
    }

    /// Takes or refuses one sample; `time_ms` defaults to now. Returns whether it was taken.
    pub(super) fn store(&mut self, out: &mut Decoded, place: Place, pairs: &mut Pairs<'_>, time_ms: Option<i64>, value: f64) -> bool {
        let time_ms = time_ms.unwrap_or(self.context.now_ms);
        let unbounded = match pairs.canonical(self.context.limits, self.context.label_policy, &mut self.canonical) {
            Ok(unbounded) => unbounded,
            Err(problem) => {
                reject_labels(out, place, &problem, 1, || pairs.describe());
                return false;
            }
        };
        if let Some(reason) = self.times.problem(time_ms) {
            out.reject(place, reason, 1, || (None, format!("{}: {}", pairs.describe(), self.times.explain(reason, time_ms))));
            return false;
        }
        let (series, new) = match self.context.registry.admit_canonical(self.context.tenant, &self.canonical) {
            Ok(admitted) => admitted,
            Err(Admission::Quota(problem)) => {
                reject_labels(out, place, &problem.into(), 1, || pairs.describe());
                return false;
            }
            Err(Admission::Labels(error)) => unreachable!("`Pairs::canonical` writes canonical bytes: {error}"),
        };
        if new && unbounded.is_some() {
            out.stats.unbounded_labels += 1;
            out.unbounded_label = unbounded;
        }
        out.batch.push(series, time_ms, value);
        out.stats.accepted += 1;
        true
    }
}

/// Refuses a series for its labels.
pub(super) fn reject_labels(out: &mut Decoded, place: Place, problem: &LabelProblem, samples: u64, series: impl FnOnce() -> String) {
    out.reject(place, problem.reason(), samples, || (problem.label().map(str::to_owned), format!("{}: {problem}", series())));
}

/// What is wrong with one line or metric.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Bad {
    pub(super) reason: RejectReason,
    pub(super) label: Option<String>,
    pub(super) message: String,
}

impl Bad {
    pub(super) fn new(reason: RejectReason, message: impl Into<String>) -> Self {
        Self { reason, label: None, message: message.into() }
    }

    pub(super) fn malformed(message: impl Into<String>) -> Self {
        Self::new(RejectReason::Malformed, message)
    }

    /// A value or time, with its text.
    pub(super) fn number(reason: RejectReason, what: &str, text: &str, problem: &str) -> Self {
        Self::new(reason, format!("the {what} `{}` {problem}", clip(text, 64)))
    }

    pub(super) fn reject(self, out: &mut Decoded, place: Place) {
        out.reject(place, self.reason, 1, || (self.label, self.message));
    }
}

/// The name of a known series in a message.
pub(super) fn describe_series(registry: &crate::SeriesRegistry, series: crate::SeriesRef) -> String {
    describe(registry.get(series).labels.iter())
}
