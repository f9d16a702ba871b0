//! Foreign Kafka topics as collectors: their messages are decoded here and appended to the bus together with their offsets.
//!
//! ```text
//!  topic, P3 ─▶ poll ─▶ decode ─▶ Batch { samples, letters, next } ─┬▶ letters to the dead-letter topic (first)
//!                                                                   └▶ Bus::append(samples, src:<cluster id>/<topic>:3 = next)
//!  assigned  ─▶ Bus::claim_source = where to go on ─▶ inside the topic's range? ─▶ fetch from there
//! ```
//!
//! # Invariants
//! - **F1** Samples and the offset they end at are one append. What the bus says is the position: Kafka's group offset is written for lag
//!   tools and never read.
//! - **F2** After an append that failed, or whose outcome is unknown, the position is asked of the bus again before anything else is
//!   appended for that partition. Nothing is appended twice on a guess.
//! - **F3** A position that the topic does not have is an error that names the gap ([`Gap`]), or, when the user says so
//!   ([`OnGap::Skip`]), a logged and counted loss. It is never a silent reset.
//! - **F4** A message that cannot be decoded never blocks a partition, unless it must go to a dead-letter topic that cannot be reached.
//!   The offset moves past it after the broker has acknowledged its letter.
//! - **F5** With a bus of one process, nothing is read unless every partition of the topics is assigned to this process.
//! - **F6** One thread polls, decodes and appends, so a partition is never given away while an append for it is on its way.
//!
//! # When it fails
//! - No room on the bus, or the dead-letter topic is away: the partition is paused, its batch kept, and tried again by the clock.
//! - The append fails: the batch is dropped, the partition starts again at what the bus says (F2), with a growing pause.
//! - A gap, a share of the partitions with a bus of one process, a fatal error of the client: the source ends with a [`SourceError`];
//!   the rest of the server goes on.
//! - A topic that was deleted and made anew under its old name, and has by now more messages than were read of the old one, cannot be
//!   told from the old one: the identity of a source is the cluster's id and the topic's name.
//!
//! # Not here
//! The formats ([`crate::decode`]); transactions and fencing of the bus on Kafka ([`crate::bus::kafka`]).

mod batch;
mod collector;
mod config;
mod dead_letter;
mod feed;
mod format;
mod metrics;
mod position;
mod runner;
#[cfg(test)]
mod tests;

pub use config::{Decoder, KafkaSource, OnGap};
pub use metrics::SourceMetrics;
pub use position::Gap;
pub use runner::{SourceDeps, SourceRunner};

use crate::BusError;

/// Why a source cannot start or has ended.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SourceError {
    /// A setting makes no sense.
    #[error("kafka source `{group}`: `{key}`: {why}")]
    Config {
        /// Consumer group of the source.
        group: String,
        /// The key below `fletch.sources.kafka`.
        key: String,
        /// What is wrong and what to do.
        why: String,
    },
    /// The Kafka client cannot work any more.
    #[error("kafka source `{group}`: {reason}")]
    Client {
        /// Consumer group of the source.
        group: String,
        /// What the client says.
        reason: String,
    },
    /// Messages that were to be read next are not in the topic.
    #[error("kafka source `{group}`: {gap}")]
    Gap {
        /// Consumer group of the source.
        group: String,
        /// Where and what.
        gap: Gap,
    },
    /// Another process of the group has some of the partitions, and the bus belongs to one process.
    #[error(
        "kafka source `{group}` is assigned {assigned} of the {total} partitions of its topics, {missing} among others is not here: with the \
         embedded log one process must read them all; several processes need `--kafka-brokers` and a shared `--object-store` each"
    )]
    NotAlone {
        /// Consumer group of the source.
        group: String,
        /// Partitions of this process.
        assigned: usize,
        /// Partitions of the topics.
        total: usize,
        /// One that is elsewhere, as `topic[partition]`.
        missing: String,
    },
    /// The bus was closed under the source.
    #[error("kafka source `{group}`: {source}")]
    Bus {
        /// Consumer group of the source.
        group: String,
        /// What the bus says.
        #[source]
        source: BusError,
    },
}
