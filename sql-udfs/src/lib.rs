//! SQL functions over Arrow arrays, one per file: pure, without I/O, clock or state.
//!
//! ```text
//!  SELECT host, tumble(time, INTERVAL '1m') AS time, avg(value) FROM m."cpu_usage" GROUP BY 1, 2
//!               └─ tumble::ends(times, size) ─▶ the END of each row's window, in the type of `time`
//! ```
//!
//! [`all`] is what a session registers; [`tumble`] holds the kernel that streaming rules call directly. A window is `(end − size, end]` and is
//! named by its end, on the stream as on stored data.
//!
//! # Not here
//! Functions that DataFusion has already (`date_bin`, `approx_percentile_cont`, …), table functions (`fletch-query`), PromQL functions.

pub mod tumble;

use datafusion::logical_expr::ScalarUDF;
use std::sync::Arc;

/// Every scalar function of this crate, ready to be registered.
pub fn all() -> Vec<Arc<ScalarUDF>> {
    vec![Arc::new(ScalarUDF::from(tumble::Tumble::default())), Arc::new(ScalarUDF::from(tumble::Hop::default()))]
}
