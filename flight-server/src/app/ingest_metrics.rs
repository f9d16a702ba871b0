//! Counters of the write APIs.

use fletch_common::metrics::{Counter, EncodeLabelSet, Family, Gauge, Registry};
use fletch_ingest::decode::Decoded;

/// Which protocol brought samples.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct Protocol {
    protocol: &'static str,
}

/// Why samples were refused.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct Reason {
    protocol: &'static str,
    reason: &'static str,
}

/// `fletch_ingest_*`.
#[derive(Debug, Default)]
pub struct IngestMetrics {
    samples: Family<Protocol, Counter>,
    requests: Family<Protocol, Counter>,
    refused: Family<Reason, Counter>,
    unbounded_labels: Counter,
    /// Series that the process knows.
    pub series: Gauge,
}

impl IngestMetrics {
    /// Registers them.
    pub fn register(registry: &mut Registry) -> Self {
        let m = Self::default();
        registry.register("fletch_ingest_samples", "Samples decoded and offered to the bus", m.samples.clone());
        registry.register("fletch_ingest_requests", "Requests decoded", m.requests.clone());
        registry.register("fletch_ingest_refused_samples", "Samples refused, by reason", m.refused.clone());
        registry.register(
            "fletch_ingest_unbounded_labels",
            "New series with a label such as user_id that were taken all the same",
            m.unbounded_labels.clone(),
        );
        registry.register("fletch_ingest_known_series", "Series that this process knows", m.series.clone());
        m
    }

    /// Counts a request that was refused as a whole because its tenant sends too fast.
    pub fn count_early(&self, protocol: &'static str, decoded: &Decoded) {
        self.requests.get_or_create(&Protocol { protocol }).inc();
        self.refused.get_or_create(&Reason { protocol, reason: "rate_limit" }).inc_by(decoded.batch.len() as u64);
    }

    /// Counts one decoded request.
    pub fn count(&self, protocol: &'static str, decoded: &Decoded) {
        self.requests.get_or_create(&Protocol { protocol }).inc();
        self.samples.get_or_create(&Protocol { protocol }).inc_by(decoded.stats.accepted);
        for (reason, samples) in decoded.stats.rejected_by_reason() {
            self.refused.get_or_create(&Reason { protocol, reason: reason.as_str() }).inc_by(samples);
        }
        if let Some(label) = decoded.unbounded_label {
            self.unbounded_labels.inc_by(decoded.stats.unbounded_labels);
            tracing::warn!(
                label,
                series = decoded.stats.unbounded_labels,
                "new series carry a label that usually has one value per user or request: drop it at the sender"
            );
        }
    }
}
