//! The label index of one tenant: which series have which label, which were active on which day, and their ids there.
//!
//! ```text
//!  matchers ──compile──▶ Condition ──postings──▶ ascending SeriesRefs
//!  name ──▶ value (sorted) ──▶ Postings: sorted list, and a bitmap once it is long
//!  date ──▶ Day: known series, stored series, probes of the few whose hash collides
//! ```
//!
//! # Invariants
//! - **N1** A series is in the postings of every label that it has, in `any` of each of its names, and in `all`; or in none of them.
//! - **N2** Series are only added. Readers hold the lock for one evaluation and get a consistent state.
//! - **N3** On one date no two series of one metric have the same id (contract: collisions are probed).
//!
//! # Parts
//! [`labels`] postings and evaluation, [`pattern`] regular expressions, [`days`] what is per date, [`cardinality`] what is
//! large.
//!
//! # Not here
//! Samples (`run`), reading the `series` table (`engine`).

pub mod cardinality;
pub mod days;
pub mod labels;
pub mod pattern;

#[cfg(test)]
mod tests;

pub use cardinality::Cardinality;
pub use days::{Day, Tenant};
pub use labels::LabelIndex;
pub use pattern::PatternCache;
