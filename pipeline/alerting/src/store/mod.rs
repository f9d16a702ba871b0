//! The metadata store, as far as alerting uses it: alerts, their history, the outbox, marks of stream evaluation.
//!
//! One evaluation is one [`Batch`] and one transaction: instances, history, notifications and marks appear together or not at all.
//! [`open`] gives the SQLite or the PostgreSQL implementation; both run the same statements and the same tests.
//!
//! # When it fails
//! Every call returns [`StoreError`]. Evaluation goes on in memory and writes again at the next tick (`engine`); nothing here retries.

mod copy;
mod sql;

use crate::state::{Alert, Id, Transition};
use async_trait::async_trait;
use fletch_schemas::TenantId;
use std::sync::Arc;

pub use copy::{copy_sqlite, sqlite_file};
pub use sql::{PostgresStore, SqliteStore};

/// Why the store did not do what it should.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The database refused or was not there.
    #[error("metadata store: {doing}: {source}")]
    Database {
        /// What was tried.
        doing: &'static str,
        /// What the database said.
        #[source]
        source: sqlx::Error,
    },
    /// The tables could not be brought to this version.
    #[error("metadata store: migrating the tables of `{url}`: {source}")]
    Migrate {
        /// Address without password.
        url: String,
        /// What went wrong.
        #[source]
        source: sqlx::migrate::MigrateError,
    },
    /// The address is neither SQLite's nor PostgreSQL's.
    #[error("metadata store `{url}`: {reason}; use `sqlite:///path/to/file` or `postgres://user@host/database`")]
    Url {
        /// Address without password.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A row that we cannot have written.
    #[error("metadata store: `{column}` of table `{table}` holds `{value}`")]
    Row {
        /// Name of the table.
        table: &'static str,
        /// Name of the column.
        column: &'static str,
        /// What is in it.
        value: String,
    },
}

/// An alert with what is needed to find its rule again.
#[derive(Debug, Clone, PartialEq)]
pub struct StoredAlert {
    /// Whose.
    pub tenant: TenantId,
    /// Identity of the rule.
    pub rule: Id,
    /// Name of the rule, for people.
    pub rule_name: String,
    /// The alert.
    pub alert: Alert,
    /// When a notification that names it was last delivered; written by [`StateStore::record_attempt`] only.
    pub last_sent_ms: Option<i64>,
}

/// One line of the history.
#[derive(Debug, Clone, PartialEq)]
pub struct HistoryRow {
    /// Whose.
    pub tenant: TenantId,
    /// Identity of the rule.
    pub rule: Id,
    /// Name of the rule, for people.
    pub rule_name: String,
    /// What happened.
    pub transition: Transition,
}

/// Where a notification stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotificationStatus {
    /// Must still be delivered.
    Pending,
    /// Delivered.
    Sent,
    /// Given up.
    Failed,
    /// A newer one says all of it.
    Superseded,
}

impl NotificationStatus {
    /// As stored.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Sent => "sent",
            Self::Failed => "failed",
            Self::Superseded => "superseded",
        }
    }

    /// The reverse of [`as_str`](Self::as_str).
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Pending, Self::Sent, Self::Failed, Self::Superseded].into_iter().find(|s| s.as_str() == text)
    }
}

/// One notification to one receiver: entry of the outbox while pending, record afterwards.
#[derive(Debug, Clone, PartialEq)]
pub struct OutboxEntry {
    /// Identity; also what makes writing it twice harmless.
    pub id: Id,
    /// Whose alerts.
    pub tenant: TenantId,
    /// Name of the receiver.
    pub receiver: String,
    /// The group: all alerts of this name.
    pub alertname: String,
    /// The JSON body.
    pub payload: String,
    /// Alerts it says fire.
    pub firing: Vec<Id>,
    /// Alerts it says are resolved.
    pub resolved: Vec<Id>,
    /// Where it stands.
    pub status: NotificationStatus,
    /// Evaluation that made it, in milliseconds.
    pub created_ms: i64,
    /// When it was sent, given up or superseded, in milliseconds.
    pub finished_ms: Option<i64>,
    /// Deliveries tried.
    pub attempts: u32,
    /// Why the last one failed; empty after success.
    pub last_error: String,
}

/// A named position of stream evaluation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mark {
    /// E.g. `cursor/<bus>/<partition>`.
    pub name: String,
    /// Text of the owner's choice.
    pub value: String,
}

/// Everything that one evaluation changes.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Batch {
    /// Alerts to insert or replace.
    pub alerts: Vec<StoredAlert>,
    /// Alerts to forget.
    pub removed: Vec<Id>,
    /// History to append.
    pub history: Vec<HistoryRow>,
    /// Notifications to put into the outbox; each supersedes the pending one of its receiver and group.
    pub outbox: Vec<OutboxEntry>,
    /// Marks to set.
    pub marks: Vec<Mark>,
}

impl Batch {
    /// Whether there is nothing to write.
    pub fn is_empty(&self) -> bool {
        self.alerts.is_empty() && self.removed.is_empty() && self.history.is_empty() && self.outbox.is_empty() && self.marks.is_empty()
    }
}

/// The store. Times are milliseconds since the Unix epoch.
#[async_trait]
pub trait StateStore: Send + Sync {
    /// Writes a batch in one transaction. Writing it twice is the same as once.
    ///
    /// # Errors
    /// [`StoreError`]; then nothing of it is visible.
    async fn save(&self, batch: &Batch) -> Result<(), StoreError>;

    /// All alerts.
    ///
    /// # Errors
    /// [`StoreError`].
    async fn alerts(&self) -> Result<Vec<StoredAlert>, StoreError>;

    /// The outbox as a restart needs it, oldest first: what was last delivered or given up per receiver and group as far as it fired, then
    /// everything pending.
    ///
    /// # Errors
    /// [`StoreError`].
    async fn outbox(&self) -> Result<Vec<OutboxEntry>, StoreError>;

    /// Writes status, `finished_ms`, attempts and error of an entry; when it was sent, also `last_sent` of its alerts.
    ///
    /// # Errors
    /// [`StoreError`].
    async fn record_attempt(&self, entry: &OutboxEntry) -> Result<(), StoreError>;

    /// The history of a tenant in `from_ms..=to_ms`, newest first, at most `limit` rows.
    ///
    /// # Errors
    /// [`StoreError`].
    async fn history(&self, tenant: &TenantId, from_ms: i64, to_ms: i64, limit: u32) -> Result<Vec<HistoryRow>, StoreError>;

    /// The notifications of a tenant, newest first, at most `limit` rows.
    ///
    /// # Errors
    /// [`StoreError`].
    async fn notifications(&self, tenant: &TenantId, limit: u32) -> Result<Vec<OutboxEntry>, StoreError>;

    /// The marks whose name begins with `prefix`, by name.
    ///
    /// # Errors
    /// [`StoreError`].
    async fn marks(&self, prefix: &str) -> Result<Vec<Mark>, StoreError>;

    /// Forgets history and finished notifications from before these times. Answers how many rows went.
    ///
    /// # Errors
    /// [`StoreError`].
    async fn prune(&self, history_before_ms: i64, notifications_before_ms: i64) -> Result<u64, StoreError>;

    /// Ends all connections.
    async fn close(&self);
}

/// Opens the store at `url` (`sqlite:…` or `postgres://…`), creating the file and bringing the tables to this version.
///
/// # Errors
/// [`StoreError::Url`], [`StoreError::Database`], [`StoreError::Migrate`].
pub async fn open(url: &str) -> Result<Arc<dyn StateStore>, StoreError> {
    if url.starts_with("sqlite:") {
        return Ok(Arc::new(SqliteStore::open(url).await?));
    }
    if url.starts_with("postgres://") || url.starts_with("postgresql://") {
        return Ok(Arc::new(PostgresStore::open(url).await?));
    }
    Err(StoreError::Url { url: without_password(url), reason: "the scheme is not known".to_owned() })
}

/// An address as it may be shown.
fn without_password(text: &str) -> String {
    let Ok(mut url) = url::Url::parse(text) else { return text.split('@').next_back().unwrap_or_default().to_owned() };
    if url.password().is_some() && url.set_password(Some("…")).is_err() {
        return url.scheme().to_owned();
    }
    url.to_string()
}

#[cfg(test)]
mod tests;
