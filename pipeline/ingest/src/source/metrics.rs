//! What the sources count. Counted when the bus has it, so a message that is read twice counts once.

use fletch_common::metrics::{Counter, EncodeLabelSet, Family, Gauge, Registry};

/// Counters of all sources of a process.
#[derive(Debug, Clone, Default)]
pub struct SourceMetrics {
    /// Messages read.
    pub records: Family<TopicLabels, Counter>,
    /// Samples stored.
    pub samples: Family<TopicLabels, Counter>,
    /// Samples refused, by reason.
    pub rejected: Family<ReasonLabels, Counter>,
    /// Messages of which nothing could be used, by the class of the fault.
    pub poison: Family<ReasonLabels, Counter>,
    /// Messages written to a dead-letter topic.
    pub dead_letters: Family<TopicLabels, Counter>,
    /// Messages of which something was refused and that went nowhere, because there is no dead-letter topic.
    pub dropped: Family<TopicLabels, Counter>,
    /// Appends that failed or whose outcome is unknown.
    pub append_failures: Family<TopicLabels, Counter>,
    /// Times a partition had to wait: for room on the bus, or for the dead-letter topic.
    pub pauses: Family<ReasonLabels, Counter>,
    /// Gaps that were accepted because of `on_gap: skip`.
    pub gaps: Family<TopicLabels, Counter>,
    /// Messages between what is stored and the end of the partition.
    pub lag: Family<PartitionLabels, Gauge>,
    /// 1 while the source of a group reads, 0 after it ended.
    pub up: Family<GroupLabels, Gauge>,
}

/// A topic.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct TopicLabels {
    /// Its name.
    pub topic: String,
}

/// A topic and a reason.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ReasonLabels {
    /// Its name.
    pub topic: String,
    /// Why.
    pub reason: &'static str,
}

/// A partition of a topic.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct PartitionLabels {
    /// Name of the topic.
    pub topic: String,
    /// Number of the partition.
    pub partition: i32,
}

/// A consumer group.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct GroupLabels {
    /// Its name.
    pub group: String,
}

impl SourceMetrics {
    /// Registers them as `fletch_source_*`.
    pub fn register(registry: &mut Registry) -> Self {
        let m = Self::default();
        registry.register("fletch_source_records", "Messages of foreign topics read and stored", m.records.clone());
        registry.register("fletch_source_samples", "Samples of foreign topics stored", m.samples.clone());
        registry.register("fletch_source_rejected_samples", "Samples of foreign topics refused", m.rejected.clone());
        registry.register("fletch_source_poison_records", "Messages of foreign topics of which nothing could be used", m.poison.clone());
        registry.register("fletch_source_dead_letters", "Messages written to a dead-letter topic", m.dead_letters.clone());
        registry.register(
            "fletch_source_dropped_records",
            "Messages with refused samples and no dead-letter topic to go to",
            m.dropped.clone(),
        );
        registry.register("fletch_source_append_failures", "Appends that failed or whose outcome is unknown", m.append_failures.clone());
        registry.register("fletch_source_pauses", "Times a partition had to wait", m.pauses.clone());
        registry.register("fletch_source_gaps", "Gaps in foreign topics that were accepted", m.gaps.clone());
        registry.register("fletch_source_lag_messages", "Messages between what is stored and the end of the partition", m.lag.clone());
        registry.register("fletch_source_up", "Whether the source of a consumer group reads", m.up.clone());
        m
    }
}

pub(super) fn of(topic: &str) -> TopicLabels {
    TopicLabels { topic: topic.to_owned() }
}

pub(super) fn of_reason(topic: &str, reason: &'static str) -> ReasonLabels {
    ReasonLabels { topic: topic.to_owned(), reason }
}
