//! Who is told, what, and until when it is tried.
//!
//! [`ledger`] decides, [`dispatcher`] delivers what is durable in the store, [`webhook`] speaks HTTP, [`payload`] is what is said.

pub mod dispatcher;
pub mod ledger;
pub mod payload;
pub mod webhook;

#[cfg(test)]
pub(crate) mod sink;

use crate::store::OutboxEntry;
use async_trait::async_trait;
use std::time::Duration;

/// Why a delivery failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct NotifyError {
    /// What happened, without secrets.
    pub reason: String,
    /// Whether the same call may succeed later.
    pub retry: bool,
    /// How long the receiver asked us to wait.
    pub after: Option<Duration>,
}

impl NotifyError {
    /// A failure that may pass.
    pub fn passing(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), retry: true, after: None }
    }

    /// A failure that will not pass by itself.
    pub fn lasting(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), retry: false, after: None }
    }
}

/// One receiver.
#[async_trait]
pub trait Notifier: Send + Sync {
    /// Its name: part of the payload and of what is stored, so it must not change between starts.
    fn name(&self) -> &str;

    /// Delivers an entry. At-least-once: the same entry may come again.
    ///
    /// # Errors
    /// [`NotifyError`], which says whether to try again.
    async fn notify(&self, entry: &OutboxEntry) -> Result<(), NotifyError>;
}
