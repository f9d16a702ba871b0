//! The bus: one trait, two implementations. [`embedded`] is a local log, `kafka` a topic.
//!
//! The owner of a partition gets its records as [`Delivery`]s through every [`BatchSink`], in order. In one process with the embedded
//! log the sinks get the very batch that was appended; the log is read back in recovery only.
//!
//! # When it fails
//! [`BusError::Full`] is the only refusal of a good request, and it happens before anything is written. After the append an error
//! means "unknown": the sender retries, storage drops the copy.

use crate::{Append, Delivery, SourceOffset};
use std::time::Duration;

pub mod data_dir;
pub mod embedded;
pub mod kafka;
pub mod record;
#[cfg(test)]
mod testing;

pub use data_dir::DataDirLock;

/// Number of a partition of the bus.
pub type Partition = u32;

/// Why an append was not acknowledged.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BusError {
    /// There is no room: nothing was written. Answer 429 with Retry-After.
    #[error("no room: {what} is at its limit of {limit} bytes; retry in {} s", retry_after.as_secs())]
    Full {
        /// What is full: `the log`, `the disk` or `unflushed data`.
        what: &'static str,
        /// The named limit, in bytes.
        limit: u64,
        /// When it is worth to try again.
        retry_after: Duration,
    },
    /// One request is larger than what can be made durable as a whole: nothing was written, sending it again does not help.
    #[error("the request needs {bytes} bytes of the log, one segment holds {limit}: send it in parts")]
    TooLarge {
        /// Bytes of its records.
        bytes: u64,
        /// The most that fits.
        limit: u64,
    },
    /// A setting is out of range; names it.
    #[error("{0}")]
    Settings(String),
    /// The bus is closing or was closed.
    #[error("the server is stopping; send again")]
    Closed,
    /// A file or the broker failed while we were `doing` something.
    #[error("{doing}: {source}")]
    Io {
        /// What we were doing, with the path.
        doing: String,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// The broker refused or could not be reached.
    #[error("kafka: {0}")]
    Kafka(String),
    /// A record or a stored offset is not what it must be; names the record and the gap.
    #[error("{0}")]
    Corrupt(String),
}

/// Makes appends durable and hands them to the sinks.
#[async_trait::async_trait]
pub trait Bus: Send + Sync + std::fmt::Debug {
    /// Returns after the samples are durable (and, on the embedded log, delivered to every sink).
    async fn append(&self, append: Append) -> Result<(), BusError>;

    /// Storage has committed everything below `next` of `partition`: the log may be cut there.
    fn release(&self, partition: Partition, next: i64);

    /// Storage found that another process has committed for `partition`, and has dropped what it held of it. A bus that shares its partitions
    /// begins again as at an assignment while the partition is its own; one that belongs to a single process has failed.
    fn overtaken(&self, partition: Partition);

    /// Offsets of foreign topics as of the newest append (embedded) or as last read (Kafka).
    fn source_offsets(&self) -> Vec<SourceOffset>;

    /// Takes over a partition of a foreign topic: no other process can append for it any more. Returns the next offset to read of it, `None`
    /// when it was never read. Taking over comes before reading the offset, or a slow predecessor could still append below it; so it
    /// cannot be [`source_offsets`](Self::source_offsets) alone. The embedded log belongs to one process anyway.
    async fn claim_source(&self, source: &str) -> Result<Option<i64>, BusError> {
        Ok(self.source_offsets().into_iter().find(|s| s.source == source).map(|s| s.next))
    }

    /// Gives a claimed partition of a foreign topic back.
    fn unclaim_source(&self, _source: &str) {}

    /// Whether one process alone may append: then it must read all partitions of a foreign topic.
    fn single_process(&self) -> bool {
        true
    }

    /// Stops accepting, finishes what was accepted, and returns when all of it was delivered.
    async fn close(&self);
}

/// Asked before anything of an append is written; storage's budget for unflushed data is one.
pub trait Admission: Send + Sync + std::fmt::Debug {
    /// # Errors
    /// [`BusError::Full`] when the append must wait.
    fn admit(&self) -> Result<(), BusError>;
}

/// The door of a later stage. Called from the one thread of a partition, in offset order; must be quick.
pub trait BatchSink: Send + Sync + std::fmt::Debug {
    /// Takes durable records. A heartbeat that is not on the disk yet comes with `from == to`: time moves, the offset does not.
    fn deliver(&self, delivery: &Delivery);

    /// Whether a replay gives this sink every group as it was delivered live, with its own append time. Without it (storage) a replay
    /// merges groups into large batches, which hides when each of them came; streaming rules need that to judge as they did live.
    fn wants_groups(&self) -> bool {
        false
    }

    /// The partition was assigned to this process: returns the offset to start at, after loading what it needs to continue.
    /// `None` when this sink has no opinion (alerting) or nothing was ever stored.
    fn assigned(&self, partition: Partition) -> Result<Option<i64>, BusError>;

    /// The partition was taken away: drop (or flush) everything of it that is not committed.
    fn revoked(&self, partition: Partition);
}
