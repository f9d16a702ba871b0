//! Functions over plain columns: the inner loops of the evaluator.
//!
//! Everything here takes slices of times and values of **one** series (or of a few series with the very same times), the windows of all
//! steps ([`super::windows::Windows`]), and fills one row of a matrix. No labels, no allocation per sample or per step.
//!
//! # Invariants
//! - Times ascend strictly; no value is the stale marker (the caller has taken those samples out).
//! - Results equal those of Prometheus' own loops bit for bit where that loop is deterministic; `proptest` checks each kernel against a
//!   rescan written the obvious way.

pub mod over_time;
pub mod quantile;
pub mod rate;
pub mod regression;
pub mod sum;
