//! PromQL alerting rules: their files, their schedule, what the API shows of them.

pub mod check;
pub mod file;
pub(crate) mod group;
pub mod snapshot;

pub use group::{ALERT_NAME, RESULTS_MAX};
