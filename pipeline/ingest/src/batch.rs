//! What travels between the stages: columns of samples over dense series numbers.

use crate::SeriesRef;
use crate::bus::Partition;
use fletch_schemas::{MetricMetadata, TenantId};
use std::sync::Arc;

/// Samples in arrival order; the three columns have one length. A stale marker is its NaN bits.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct SampleBatch {
    /// Series of each sample (it knows its tenant).
    pub series: Vec<SeriesRef>,
    /// Milliseconds since the Unix epoch.
    pub times: Vec<i64>,
    /// Values.
    pub values: Vec<f64>,
}

impl SampleBatch {
    /// Number of samples.
    pub fn len(&self) -> usize {
        self.series.len()
    }

    /// Whether there are no samples.
    pub fn is_empty(&self) -> bool {
        self.series.is_empty()
    }

    /// Adds one sample.
    pub fn push(&mut self, series: SeriesRef, time_ms: i64, value: f64) {
        self.series.push(series);
        self.times.push(time_ms);
        self.values.push(value);
    }

    /// Moves the samples of `other` behind these.
    pub fn append(&mut self, other: &mut Self) {
        self.series.append(&mut other.series);
        self.times.append(&mut other.times);
        self.values.append(&mut other.values);
    }
}

/// How far a foreign topic was read: carried in the same record as the samples that came from it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SourceOffset {
    /// `src:<cluster id + topic id>:<partition>`.
    pub source: String,
    /// The next offset to read.
    pub next: i64,
}

/// One unit that is made durable and answered as a whole.
#[derive(Debug, Default)]
pub struct Append {
    /// Its samples.
    pub batch: SampleBatch,
    /// What the sender said about metric families, by tenant.
    pub metadata: Vec<(TenantId, MetricMetadata)>,
    /// Offsets of a foreign topic, when it came from one.
    pub sources: Vec<SourceOffset>,
}

/// What a sink receives: part of a partition of the bus, durable, in order, without gaps.
#[derive(Debug)]
pub struct Delivery {
    /// Partition of the bus.
    pub partition: Partition,
    /// Offset of the first record in it.
    pub from: i64,
    /// The next offset to read.
    pub to: i64,
    /// Append time of the last record in it, milliseconds; the clock of streaming rules.
    pub append_time_ms: i64,
    /// Samples in the order of the log. Empty for a heartbeat.
    pub batch: Arc<SampleBatch>,
    /// Metadata in the order of the log.
    pub metadata: Vec<(TenantId, MetricMetadata)>,
    /// Offsets of foreign topics that this delivery covers.
    pub sources: Vec<SourceOffset>,
}
