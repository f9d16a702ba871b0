//! Counters of the write APIs.

use fletch_common::metrics::{Counter, EncodeLabelSet, Family, Gauge, Registry};
use fletch_ingest::decode::Decoded;
use fletch_schemas::TenantId;
use parking_lot::Mutex;
use std::collections::HashSet;

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

/// Tenants with a counter of their own; what later ones bring is counted under [`OTHER_TENANTS`]: names in requests must not fill memory.
const TENANTS_NAMED_MAX: usize = 100;
/// Not the name of any tenant: those do not begin with two underscores.
const OTHER_TENANTS: &str = "__other__";

/// Whose samples.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfTenant {
    tenant: String,
}

/// `fletch_ingest_*`.
#[derive(Debug, Default)]
pub struct IngestMetrics {
    samples: Family<Protocol, Counter>,
    requests: Family<Protocol, Counter>,
    refused: Family<Reason, Counter>,
    unbounded_labels: Counter,
    tenants: Family<OfTenant, Counter>,
    tenants_named: Mutex<HashSet<TenantId>>,
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
        registry.register("fletch_ingest_tenant_samples", "Samples offered to the bus by tenant, the first 100 by name", m.tenants.clone());
        registry.register("fletch_ingest_known_series", "Series that this process knows", m.series.clone());
        m
    }

    /// Counts a request that was refused as a whole because its tenant sends too fast.
    pub fn count_early(&self, protocol: &'static str, decoded: &Decoded) {
        self.requests.get_or_create(&Protocol { protocol }).inc();
        self.refused.get_or_create(&Reason { protocol, reason: "rate_limit" }).inc_by(decoded.batch.len() as u64);
    }

    /// Counts one decoded request.
    pub fn count(&self, tenant: &TenantId, protocol: &'static str, decoded: &Decoded) {
        if decoded.stats.accepted > 0 {
            self.tenants.get_or_create(&OfTenant { tenant: self.name_of(tenant) }).inc_by(decoded.stats.accepted);
        }
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

    fn name_of(&self, tenant: &TenantId) -> String {
        let mut named = self.tenants_named.lock();
        if !named.contains(tenant) {
            if named.len() >= TENANTS_NAMED_MAX {
                return OTHER_TENANTS.to_owned();
            }
            named.insert(tenant.clone());
        }
        tenant.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_counted_by_tenant_and_names_are_bounded() {
        let metrics = IngestMetrics::default();
        let mut decoded = Decoded::new();
        decoded.stats.accepted = 2;
        for n in 0..TENANTS_NAMED_MAX + 50 {
            metrics.count(&TenantId::new(&format!("t{n}")).expect("valid"), "text", &decoded);
        }
        metrics.count(&TenantId::new("t0").expect("valid"), "text", &decoded);
        let of = |name: &str| metrics.tenants.get_or_create(&OfTenant { tenant: name.to_owned() }).get();
        assert_eq!((of("t0"), of("t99"), of(OTHER_TENANTS)), (4, 2, 100));
        decoded.stats.accepted = 0;
        metrics.count(&TenantId::new("refused").expect("valid"), "text", &decoded);
        assert_eq!(of(OTHER_TENANTS), 100);
    }
}
