//! Rules, their alerts, and who is told.
//!
//! ```text
//!  rule files ─▶ rules::group ─▶ InstantQuery ─▶ template ─▶ state ─▶ record ─┬▶ store    alerts, history, outbox: one transaction
//!                (ticks)         (PromQL)        (Go)        (pure)           └▶ notify   webhooks, until they answer 2xx
//! ```
//!
//! Start with [`Alerting`], then [`state`] (what an alert is), [`record`] (what one evaluation leaves behind), [`notify`].
//!
//! # Invariants
//! - **R1** All times of alerts are times of evaluation, never of the wall clock: the same verdicts give the same history.
//! - **R2** A notification is durable before it is sent (`notify::dispatcher`, N1), and said once per change, repeated at its interval.
//! - **R3** A restart loses no clock: `for`, `keep_firing_for` and what receivers know go on.
//! - **R4** Nothing that goes wrong here silences an alert: a failing template is its text, a failing store does not hold up a notification.
//!
//! # Not here
//! Evaluating PromQL (`fletch-query`, behind [`InstantQuery`]), HTTP and configuration files (`flight-server`), recording rules, routing, silences.

pub mod engine;
mod go;
pub mod metrics;
pub mod notify;
pub mod record;
pub mod rules;
pub mod state;
pub mod store;
pub mod stream;
pub mod template;

pub use engine::{Alerting, AlertingError, Settings, Streams};
pub use metrics::Metrics;

use async_trait::async_trait;
use fletch_schemas::{Labels, TenantId};

/// Answers PromQL at one time; the query engine behind the rules.
#[async_trait]
pub trait InstantQuery: Send + Sync {
    /// Evaluates `promql` for `tenant` at `at_ms` (milliseconds since the Unix epoch). A scalar is one element without labels.
    ///
    /// # Errors
    /// A sentence for the rule's `lastError`.
    async fn instant(&self, tenant: &TenantId, promql: &str, at_ms: i64) -> Result<Vec<(Labels, f64)>, String>;
}
