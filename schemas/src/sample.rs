//! One sample: its time, its value, the stale marker, and what is known about its metric.
//!
//! Times are milliseconds since the Unix epoch (UTC) everywhere in memory, microseconds in the tables.

use serde::{Deserialize, Serialize};

/// Bits of the stale marker: "this series ended here". In the tables it is NULL and nothing else is.
pub const STALE_BITS: u64 = 0x7ff0_0000_0000_0002;

/// Earliest accepted time: 1700-01-01T00:00:00Z.
pub const TIME_MIN_MS: i64 = -8_520_336_000_000;

/// How far in the future a sample may lie.
pub const TIME_FUTURE_MAX_MS: i64 = 10 * 60 * 1000;

const DAY_MS: i64 = 86_400_000;

/// Whether a value is the stale marker (by its bits: other NaNs are values).
pub fn is_stale(value: f64) -> bool {
    value.to_bits() == STALE_BITS
}

/// The stale marker.
pub fn stale_marker() -> f64 {
    f64::from_bits(STALE_BITS)
}

/// Days since 1970-01-01 (floor, so negative before it): the `date` partition of a time.
pub fn date_of_ms(time_ms: i64) -> i32 {
    i32::try_from(time_ms.div_euclid(DAY_MS)).expect("every accepted time is within ±2^31 days")
}

/// First millisecond of a `date`.
pub fn day_start_ms(date: i32) -> i64 {
    i64::from(date) * DAY_MS
}

/// What a metric's values mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MetricKind {
    /// Nobody said.
    #[default]
    Unknown,
    /// Only rises, or restarts at zero.
    Counter,
    /// Goes anywhere.
    Gauge,
    /// Buckets of a classic or native histogram.
    Histogram,
    /// Buckets that may fall.
    GaugeHistogram,
    /// Quantiles computed by the sender.
    Summary,
    /// Labels of constant value 1.
    Info,
    /// One series per state.
    StateSet,
}

impl MetricKind {
    /// As Prometheus' API and exposition format spell it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
            Self::GaugeHistogram => "gaugehistogram",
            Self::Summary => "summary",
            Self::Info => "info",
            Self::StateSet => "stateset",
        }
    }

    /// The reverse of [`as_str`](Self::as_str); `untyped` and anything else are `Unknown`.
    pub fn parse(text: &str) -> Self {
        match text.to_ascii_lowercase().as_str() {
            "counter" => Self::Counter,
            "gauge" => Self::Gauge,
            "histogram" => Self::Histogram,
            "gaugehistogram" => Self::GaugeHistogram,
            "summary" => Self::Summary,
            "info" => Self::Info,
            "stateset" => Self::StateSet,
            _ => Self::Unknown,
        }
    }
}

/// Type, unit and help of one metric family.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct MetricMetadata {
    /// Name of the family, e.g. `http_requests_total`.
    pub metric: String,
    /// What its values mean.
    pub kind: MetricKind,
    /// Unit, often empty.
    pub unit: String,
    /// One sentence for people.
    pub help: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_floor_before_1970() {
        assert_eq!(date_of_ms(0), 0);
        assert_eq!(date_of_ms(-1), -1);
        assert_eq!(date_of_ms(DAY_MS - 1), 0);
        assert_eq!(date_of_ms(TIME_MIN_MS), -98_615);
        assert_eq!(day_start_ms(-1), -DAY_MS);
    }

    #[test]
    fn only_the_marker_is_stale() {
        assert!(is_stale(stale_marker()));
        assert!(!is_stale(f64::NAN));
        assert!(!is_stale(f64::from_bits(0x7ff8_0000_0000_0001)));
    }
}
