//! SQL over one tenant's read view: guarded, planned, run under limits, streamed.
//!
//! ```text
//!  text ─▶ guard (size, shape, allow-list) ─▶ catalog of the view ─▶ DataFusion plan ─▶ batches ─▶ wire types ─▶ caller
//!          └───────────────────── on threads with a big stack, under a deadline kept from outside ─────────────┘
//! ```
//!
//! [`SqlEngine`] is the door: [`SqlEngine::execute`] for answers, [`SqlEngine::describe`] for prepared statements, [`SqlEngine::tables`] for
//! metadata. [`catalog`] says which names exist, [`scan`] how their rows are read, [`types`] how answers look on the wire.
//!
//! # Invariants
//! - **Q1** A statement sees one read view of one tenant, however many tables it names.
//! - **Q2** A statement only reads: nothing is written, no file or address outside of the tables is reached.
//! - **Q3** Every error has a kind ([`SqlErrorKind`]); HTTP and Flight each map kinds in one place.
//!
//! # Not here
//! Formats of answers and protocols (`flight-server`), PromQL ([`crate::engine`]), streaming rules (`fletch-alerting`).

pub mod catalog;
mod engine;
mod error;
mod functions;
mod guard;
mod scan;
mod session;
pub mod types;

pub use engine::{Params, SqlDescription, SqlEngine, SqlQuery, SqlSettings, SqlStream, TableInfo};
pub use error::{Position, SqlError, SqlErrorKind};
pub use types::WireTypes;
