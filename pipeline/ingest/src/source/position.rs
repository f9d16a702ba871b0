//! Where a partition is continued, and whether all partitions are here. Pure.

use std::collections::BTreeSet;
use std::fmt;

/// A partition of a foreign topic.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct TopicPartition {
    pub(super) topic: String,
    pub(super) number: i32,
}

impl TopicPartition {
    pub(super) fn new(topic: &str, number: i32) -> Self {
        Self { topic: topic.to_owned(), number }
    }

    /// The name under which the bus keeps the offset: `src:<cluster id>/<topic>:<partition>`.
    pub(super) fn source(&self, cluster: &str) -> String {
        format!("src:{cluster}/{}:{}", self.topic, self.number)
    }
}

impl fmt::Display for TopicPartition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}[{}]", self.topic, self.number)
    }
}

/// What a partition of a topic holds: offsets `low..high`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) low: i64,
    pub(super) high: i64,
}

/// Where to begin to fetch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Start {
    Earliest,
    At(i64),
}

/// The next offset to read is not in the topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gap {
    /// Topic.
    pub topic: String,
    /// Its partition.
    pub partition: i32,
    /// The next offset to read, as the bus has it.
    pub stored: i64,
    /// The oldest offset there is.
    pub low: i64,
    /// The next offset to be written.
    pub high: i64,
}

impl fmt::Display for Gap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { topic, partition, stored, low, high } = self;
        write!(f, "`{topic}[{partition}]` was read up to offset {stored}, but it holds {low}..{high}: ")?;
        if stored < low {
            write!(f, "offsets {stored}..{low} were deleted before they were read (retention)")?;
        } else {
            write!(f, "it is not the topic that was read before (deleted and made anew?)")?;
        }
        write!(f, "; set `on_gap: skip` for this source to go on with offset {low}")
    }
}

/// Where to go on, given what the bus has and what the topic holds.
pub(super) fn start(of: &TopicPartition, stored: Option<i64>, range: Range) -> Result<Start, Gap> {
    match stored {
        None => Ok(Start::Earliest),
        Some(next) if (range.low..=range.high).contains(&next) => Ok(Start::At(next)),
        Some(stored) => Err(Gap { topic: of.topic.clone(), partition: of.number, stored, low: range.low, high: range.high }),
    }
}

/// The first partition of the topics that is not assigned to this process.
pub(super) fn missing<'a>(all: &'a BTreeSet<TopicPartition>, assigned: &BTreeSet<TopicPartition>) -> Option<&'a TopicPartition> {
    all.iter().find(|partition| !assigned.contains(partition))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_partition_goes_on_where_the_bus_says_and_nowhere_else() {
        let partition = TopicPartition::new("t", 3);
        let range = Range { low: 10, high: 20 };
        let cases = [
            (None, Ok(Start::Earliest)),
            (Some(10), Ok(Start::At(10))),
            (Some(15), Ok(Start::At(15))),
            // Read to the end.
            (Some(20), Ok(Start::At(20))),
            (Some(9), Err("offsets 9..10 were deleted before they were read")),
            (Some(0), Err("offsets 0..10 were deleted")),
            (Some(21), Err("was read up to offset 21, but it holds 10..20: it is not the topic that was read before")),
        ];
        for (stored, expected) in cases {
            match (start(&partition, stored, range), expected) {
                (Ok(found), Ok(expected)) => assert_eq!(found, expected, "{stored:?}"),
                (Err(gap), Err(part)) => assert!(gap.to_string().contains(part) && gap.to_string().contains("t[3]"), "{gap}"),
                (found, expected) => panic!("{stored:?}: {found:?}, expected {expected:?}"),
            }
        }
        assert_eq!(start(&partition, Some(0), Range { low: 0, high: 0 }), Ok(Start::At(0)));
    }

    #[test]
    fn a_source_is_named_by_cluster_topic_and_partition() {
        assert_eq!(TopicPartition::new("a.b", 7).source("XyZ"), "src:XyZ/a.b:7");
    }

    #[test]
    fn a_missing_partition_is_found() {
        let set = |list: &[(&str, i32)]| list.iter().map(|(t, n)| TopicPartition::new(t, *n)).collect::<BTreeSet<_>>();
        let all = set(&[("a", 0), ("a", 1), ("b", 0)]);
        assert_eq!(missing(&all, &set(&[("a", 0), ("a", 1), ("b", 0), ("c", 0)])), None);
        assert_eq!(missing(&all, &set(&[("a", 0), ("b", 0)])).map(ToString::to_string), Some("a[1]".to_owned()));
        assert_eq!(missing(&BTreeSet::new(), &BTreeSet::new()), None);
    }
}
