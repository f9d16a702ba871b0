//! Warnings and infos that a query gathers while it runs: Prometheus' texts, each once, with the position of their cause.
//!
//! Two annotations with the same text are one, whatever their positions; the later position is shown. The list is bounded by what a query
//! can name: one text per metric name and cause.

use super::kernels::quantile::Forced;
use super::number::{general, general_2};
use fletch_promql::Span;
use hashbrown::HashMap;

/// Warning or info.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Warning,
    Info,
}

/// What several monotonicity infos add up to.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Details {
    forced: Forced,
    first_ms: i64,
    last_ms: i64,
    samples: u64,
}

#[derive(Debug, Clone)]
struct Annotation {
    kind: Kind,
    text: String,
    at: Span,
    details: Option<Details>,
}

/// The annotations of one query.
#[derive(Debug, Default, Clone)]
pub(crate) struct Annotations {
    list: Vec<Annotation>,
    by_text: HashMap<String, usize>,
}

impl Annotations {
    fn add(&mut self, kind: Kind, text: String, at: Span) -> &mut Annotation {
        let i = match self.by_text.get(&text) {
            Some(i) => *i,
            None => {
                self.by_text.insert(text.clone(), self.list.len());
                self.list.push(Annotation { kind, text, at, details: None });
                self.list.len() - 1
            }
        };
        self.list[i].at = at;
        &mut self.list[i]
    }

    fn warn(&mut self, text: String, at: Span) {
        self.add(Kind::Warning, format!("PromQL warning: {text}"), at);
    }

    fn info(&mut self, text: String, at: Span) {
        self.add(Kind::Info, format!("PromQL info: {text}"), at);
    }

    /// A quantile outside of 0..=1.
    pub(crate) fn invalid_quantile(&mut self, q: f64, at: Span) {
        self.warn(format!("quantile value should be between 0 and 1, got {}", general(q)), at);
    }

    /// A ratio outside of -1..=1.
    pub(crate) fn invalid_ratio(&mut self, ratio: f64, to: f64, at: Span) {
        self.warn(format!("ratio value should be between -1 and 1, got {}, capping to {}", general(ratio), general(to)), at);
    }

    /// A bucket whose `le` is not a number.
    pub(crate) fn bad_bucket_label(&mut self, metric: &str, le: &str, at: Span) {
        let text = format!("bucket label \"le\" is missing or has a malformed value of {}", quoted(le));
        self.warn(for_metric(text, metric), at);
    }

    /// `sort` in a range query.
    pub(crate) fn sort_in_range_query(&mut self, at: Span) {
        self.warn("sort is ineffective for range queries since results are always ordered by labels".to_owned(), at);
    }

    /// `rate` of something that is not named like a counter.
    pub(crate) fn possible_non_counter(&mut self, metric: &str, at: Span) {
        let text = "metric might not be a counter, name does not end in _total/_sum/_count/_bucket:";
        self.info(format!("{text} {}", quoted(metric)), at);
    }

    /// An operator that floats do not have.
    pub(crate) fn incompatible_types(&mut self, operator: &str, at: Span) {
        let text = format!("incompatible sample types encountered for binary operator {}: float {operator} float", quoted(operator));
        self.info(text, at);
    }

    /// A histogram whose buckets had to be lifted at `time_ms`.
    pub(crate) fn forced_monotonicity(&mut self, metric: &str, forced: Forced, time_ms: i64, at: Span) {
        const TEXT: &str = "PromQL info: input to histogram_quantile needed to be fixed for monotonicity \
            (see https://prometheus.io/docs/prometheus/latest/querying/functions/#histogram_quantile)";
        let annotation = self.add(Kind::Info, for_metric(TEXT.to_owned(), metric), at);
        let new = Details { forced, first_ms: time_ms, last_ms: time_ms, samples: 1 };
        annotation.details = Some(annotation.details.map_or(new, |old| old.merge(new)));
    }

    /// Warnings and infos with their positions in `query`.
    pub(crate) fn into_texts(self, query: &str) -> (Vec<String>, Vec<String>) {
        let (mut warnings, mut infos) = (Vec::new(), Vec::new());
        for annotation in self.list {
            let to = if annotation.kind == Kind::Warning { &mut warnings } else { &mut infos };
            let details = annotation.details.map(Details::text).unwrap_or_default();
            to.push(format!("{}{details} ({})", annotation.text, annotation.at.line_column(query)));
        }
        (warnings, infos)
    }
}

impl Details {
    fn merge(self, other: Self) -> Self {
        Self {
            forced: Forced {
                upper_min: self.forced.upper_min.min(other.forced.upper_min),
                upper_max: self.forced.upper_max.max(other.forced.upper_max),
                diff_max: self.forced.diff_max.max(other.forced.diff_max),
            },
            first_ms: self.first_ms.min(other.first_ms),
            last_ms: self.last_ms.max(other.last_ms),
            samples: self.samples + other.samples,
        }
    }

    fn text(self) -> String {
        format!(
            ", from buckets {} to {}, with a max diff of {}, over {} samples from {} to {}",
            general(self.forced.upper_min),
            general(self.forced.upper_max),
            general_2(self.forced.diff_max),
            self.samples,
            rfc3339(self.first_ms),
            rfc3339(self.last_ms),
        )
    }
}

fn rfc3339(time_ms: i64) -> String {
    let time = chrono::DateTime::from_timestamp(time_ms.div_euclid(1000), 0).unwrap_or_default();
    time.format("%Y-%m-%dT%H:%M:%SZ").to_string()
}

fn for_metric(text: String, metric: &str) -> String {
    if metric.is_empty() { text } else { format!("{text} for metric name {}", quoted(metric)) }
}

/// A text in double quotes with the escapes of Go's `%q`.
pub(crate) fn quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c.is_control() && (c as u32) < 0x80 => out.push_str(&format!("\\x{:02x}", c as u32)),
            c if c.is_control() => out.push_str(&format!("\\u{:04x}", c as u32)),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_texts_are_one_annotation_with_the_last_position() {
        let mut all = Annotations::default();
        all.possible_non_counter("x", Span::new(5, 6));
        all.possible_non_counter("x", Span::new(9, 10));
        all.invalid_quantile(1.5, Span::new(0, 1));
        let (warnings, infos) = all.into_texts("rate(x)\n+x");
        assert_eq!(warnings, ["PromQL warning: quantile value should be between 0 and 1, got 1.5 (1:1)"]);
        assert_eq!(infos, ["PromQL info: metric might not be a counter, name does not end in _total/_sum/_count/_bucket: \"x\" (2:2)"]);
    }

    #[test]
    fn monotonicity_adds_up() {
        let mut all = Annotations::default();
        let forced = |b, d| Forced { upper_min: b, upper_max: b, diff_max: d };
        all.forced_monotonicity("h", forced(1.0, 2.0), 0, Span::new(0, 1));
        all.forced_monotonicity("h", forced(f64::INFINITY, 10.0), 60_000, Span::new(0, 1));
        let (_, infos) = all.into_texts("x");
        assert!(
            infos[0].ends_with(
                "for metric name \"h\", from buckets 1 to +Inf, with a max diff of 10, over 2 samples \
                 from 1970-01-01T00:00:00Z to 1970-01-01T00:01:00Z (1:1)"
            ),
            "{}",
            infos[0]
        );
    }
}
