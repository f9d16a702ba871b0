//! From bytes on a socket or a topic to micro-batches on the bus.
//!
//! ```text
//!  request ─▶ decode::{remote_write, text, json} ─▶ SampleBatch (dense series numbers, columns)
//!                 │ resolves labels once               │
//!                 ▼                                    ▼
//!           SeriesRegistry                       Bus::append ─▶ durable ─▶ BatchSink::deliver (storage, alerting) ─▶ answer
//! ```
//!
//! # Invariants
//! - **I1** Append → durable → delivered → acknowledged, in this order. Nothing is delivered before it is durable.
//! - **I2** A [`SampleBatch`] never holds label text: series are dense numbers of the one [`SeriesRegistry`] of the process.
//! - **I3** A record on the bus decodes with nothing but its own segment (embedded log) or itself (Kafka).
//!
//! # Not here
//! Queries and tables: the later stages implement [`BatchSink`], the binary joins them.

pub mod batch;
pub mod bus;
pub mod decode;
pub mod quota;
pub mod series;
pub mod source;

pub use batch::{Append, Delivery, SampleBatch, SourceOffset};
pub use bus::{BatchSink, Bus, BusError, Partition};
pub use series::{Series, SeriesRef, SeriesRegistry};
