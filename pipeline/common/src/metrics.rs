//! Our own metrics: one registry per process, one struct per stage that registers into it.
//!
//! Names begin with `fletch_`; counters end in `_total` through the exposition encoder. Every stage has a `Metrics` struct with public fields of
//! the types below and a `register(&mut Registry)`-style constructor; there is no global state.

pub use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
pub use prometheus_client::metrics::counter::Counter;
pub use prometheus_client::metrics::family::Family;
pub use prometheus_client::metrics::gauge::Gauge;
pub use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
pub use prometheus_client::registry::Registry;

/// Buckets from 100 µs to about 100 s, for durations in seconds.
pub fn duration_buckets() -> impl Iterator<Item = f64> {
    exponential_buckets(0.0001, 4.0, 10)
}
