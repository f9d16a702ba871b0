//! The seams that every stage shares: clock, limits, failpoints, self-metrics.
//!
//! # Not here
//! Anything that knows a sample. Configuration files (`flight-server`).

pub mod clock;
pub mod failpoint;
pub mod limits;
pub mod metrics;

pub use clock::{Clock, ManualClock, SharedClock, SystemClock};
pub use limits::Limits;
