//! The store on SQLite and PostgreSQL.
//!
//! Both databases understand the same statements (`$1`, `ON CONFLICT`, window functions), so they are written once. `sqlx` types connections
//! per database; its dynamic `Any` loses types. So one macro writes the trait's implementation for each.

use super::{Batch, HistoryRow, Mark, NotificationStatus, OutboxEntry, StateStore, StoreError, StoredAlert, without_password};
use crate::notify::payload::label_map;
use crate::state::{Alert, AlertState, Annotations, Id, Transition, TransitionKind};
use async_trait::async_trait;
use fletch_schemas::{Labels, TenantId};
use sqlx::migrate::Migrator;
use sqlx::postgres::{PgPool, PgPoolOptions, PgRow};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteRow, SqliteSynchronous};
use sqlx::{PgConnection, Row, SqliteConnection, query};
use std::collections::BTreeMap;
use std::str::FromStr;
use std::time::Duration;

/// Connections of one process.
const CONNECTIONS_MAX: u32 = 4;
/// How long a call waits for a connection or for SQLite's writer.
const WAIT_MAX: Duration = Duration::from_secs(10);

static SQLITE_MIGRATIONS: Migrator = sqlx::migrate!("../../schemas/migrations/sqlite");
static POSTGRES_MIGRATIONS: Migrator = sqlx::migrate!("../../schemas/migrations/postgres");

const UPSERT_ALERT: &str = "INSERT INTO alert_instances (alert_id, tenant, rule_id, rule_name, labels, annotations, value_bits, state, \
     active_at, fired_at, kept_since, resolved_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12) \
     ON CONFLICT (alert_id) DO UPDATE SET rule_name = excluded.rule_name, annotations = excluded.annotations, \
     value_bits = excluded.value_bits, state = excluded.state, active_at = excluded.active_at, fired_at = excluded.fired_at, \
     kept_since = excluded.kept_since, resolved_at = excluded.resolved_at";
const DELETE_ALERT: &str = "DELETE FROM alert_instances WHERE alert_id = $1";
const INSERT_HISTORY: &str = "INSERT INTO alert_transitions (transition_id, alert_id, tenant, rule_id, rule_name, kind, at, labels, \
     annotations, value_bits) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) ON CONFLICT (transition_id) DO NOTHING";
const SUPERSEDE: &str = "UPDATE notifications SET status = 'superseded', finished_at = $1 WHERE tenant = $2 AND receiver = $3 \
     AND alertname = $4 AND status = 'pending' AND notification_id <> $5";
const INSERT_NOTIFICATION: &str = "INSERT INTO notifications (notification_id, tenant, receiver, alertname, payload, firing, resolved, \
     status, created_at, attempts, last_error) VALUES ($1, $2, $3, $4, $5, $6, $7, 'pending', $8, 0, '') \
     ON CONFLICT (notification_id) DO NOTHING";
const SET_MARK: &str = "INSERT INTO alerting_marks (name, value) VALUES ($1, $2) ON CONFLICT (name) DO UPDATE SET value = excluded.value";
const RECORD_ATTEMPT: &str =
    "UPDATE notifications SET status = $1, finished_at = $2, attempts = $3, last_error = $4 WHERE notification_id = $5";
/// A failed delivery says nothing about a newer entry that has replaced this one meanwhile.
const RECORD_FAILURE: &str = "UPDATE notifications SET attempts = $1, last_error = $2 WHERE notification_id = $3";
const RECORD_SENT_ALERT: &str = "UPDATE alert_instances SET last_sent = $1 WHERE alert_id = $2";
const SELECT_ALERTS: &str = "SELECT * FROM alert_instances ORDER BY alert_id";
const SELECT_OUTBOX_LAST: &str = "SELECT * FROM (SELECT n.*, ROW_NUMBER() OVER (PARTITION BY tenant, receiver, alertname \
     ORDER BY finished_at DESC, created_at DESC) AS nth FROM notifications n WHERE status IN ('sent', 'failed')) ranked \
     WHERE nth = 1 AND firing <> '[]' ORDER BY created_at";
const SELECT_OUTBOX_PENDING: &str = "SELECT * FROM notifications WHERE status = 'pending' ORDER BY created_at, notification_id";
const SELECT_NOTIFICATIONS: &str = "SELECT * FROM notifications WHERE tenant = $1 ORDER BY created_at DESC, notification_id LIMIT $2";
const SELECT_HISTORY: &str = "SELECT * FROM alert_transitions WHERE tenant = $1 AND at >= $2 AND at <= $3 \
     ORDER BY at DESC, transition_id LIMIT $4";
const SELECT_MARKS: &str = "SELECT name, value FROM alerting_marks WHERE name >= $1 ORDER BY name";
const PRUNE_HISTORY: &str = "DELETE FROM alert_transitions WHERE at < $1";
const PRUNE_NOTIFICATIONS: &str = "DELETE FROM notifications WHERE status <> 'pending' AND created_at < $1";

/// The store in a SQLite file.
#[derive(Debug)]
pub struct SqliteStore {
    pool: SqlitePool,
}

impl SqliteStore {
    /// Opens or creates the file. Commits are synced to disk before they are answered.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn open(url: &str) -> Result<Self, StoreError> {
        let options = SqliteConnectOptions::from_str(url)
            .map_err(|e| StoreError::Url { url: url.to_owned(), reason: e.to_string() })?
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .busy_timeout(WAIT_MAX);
        let pool = SqlitePoolOptions::new().max_connections(CONNECTIONS_MAX).acquire_timeout(WAIT_MAX).connect_with(options).await;
        let pool = pool.map_err(failed("opening the file"))?;
        SQLITE_MIGRATIONS.run(&pool).await.map_err(|source| StoreError::Migrate { url: url.to_owned(), source })?;
        Ok(Self { pool })
    }
}

/// The store in a PostgreSQL database.
#[derive(Debug)]
pub struct PostgresStore {
    pool: PgPool,
}

impl PostgresStore {
    /// Connects and brings the tables to this version.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn open(url: &str) -> Result<Self, StoreError> {
        let pool = PgPoolOptions::new().max_connections(CONNECTIONS_MAX).acquire_timeout(WAIT_MAX).connect(url).await;
        let pool = pool.map_err(failed("connecting"))?;
        let migrated = POSTGRES_MIGRATIONS.run(&pool).await;
        migrated.map_err(|source| StoreError::Migrate { url: without_password(url), source })?;
        Ok(Self { pool })
    }
}

fn failed(doing: &'static str) -> impl Fn(sqlx::Error) -> StoreError {
    move |source| StoreError::Database { doing, source }
}

macro_rules! implement_store {
    ($store:ty, $row:ty, $db:ty) => {
        impl $store {
            async fn write(db: &mut $db, batch: &Batch) -> Result<(), sqlx::Error> {
                Self::write_alerts(db, batch).await?;
                Self::write_history(db, batch).await?;
                Self::write_outbox(db, batch).await?;
                for mark in &batch.marks {
                    query(SET_MARK).bind(&mark.name).bind(&mark.value).execute(&mut *db).await?;
                }
                Ok(())
            }

            async fn write_alerts(db: &mut $db, batch: &Batch) -> Result<(), sqlx::Error> {
                for row in &batch.alerts {
                    let times = Times::of(row.alert.state);
                    query(UPSERT_ALERT)
                        .bind(row.alert.id.to_string())
                        .bind(row.tenant.as_str())
                        .bind(row.rule.to_string())
                        .bind(&row.rule_name)
                        .bind(labels_json(&row.alert.labels))
                        .bind(json(&row.alert.annotations))
                        .bind(row.alert.value.to_bits().cast_signed())
                        .bind(row.alert.state.name())
                        .bind(times.active)
                        .bind(times.fired)
                        .bind(times.kept)
                        .bind(times.resolved)
                        .execute(&mut *db)
                        .await?;
                }
                for id in &batch.removed {
                    query(DELETE_ALERT).bind(id.to_string()).execute(&mut *db).await?;
                }
                Ok(())
            }

            async fn write_history(db: &mut $db, batch: &Batch) -> Result<(), sqlx::Error> {
                for row in &batch.history {
                    query(INSERT_HISTORY)
                        .bind(row.transition.id.to_string())
                        .bind(row.transition.alert_id.to_string())
                        .bind(row.tenant.as_str())
                        .bind(row.rule.to_string())
                        .bind(&row.rule_name)
                        .bind(row.transition.kind.as_str())
                        .bind(row.transition.at_ms)
                        .bind(labels_json(&row.transition.labels))
                        .bind(json(&row.transition.annotations))
                        .bind(row.transition.value.to_bits().cast_signed())
                        .execute(&mut *db)
                        .await?;
                }
                Ok(())
            }

            async fn write_outbox(db: &mut $db, batch: &Batch) -> Result<(), sqlx::Error> {
                for entry in &batch.outbox {
                    query(SUPERSEDE)
                        .bind(entry.created_ms)
                        .bind(entry.tenant.as_str())
                        .bind(&entry.receiver)
                        .bind(&entry.alertname)
                        .bind(entry.id.to_string())
                        .execute(&mut *db)
                        .await?;
                    query(INSERT_NOTIFICATION)
                        .bind(entry.id.to_string())
                        .bind(entry.tenant.as_str())
                        .bind(&entry.receiver)
                        .bind(&entry.alertname)
                        .bind(&entry.payload)
                        .bind(ids_json(&entry.firing))
                        .bind(ids_json(&entry.resolved))
                        .bind(entry.created_ms)
                        .execute(&mut *db)
                        .await?;
                }
                Ok(())
            }
        }

        #[async_trait]
        impl StateStore for $store {
            async fn save(&self, batch: &Batch) -> Result<(), StoreError> {
                if batch.is_empty() {
                    return Ok(());
                }
                let failed = failed("saving an evaluation");
                let mut tx = self.pool.begin().await.map_err(&failed)?;
                Self::write(&mut tx, batch).await.map_err(&failed)?;
                tx.commit().await.map_err(&failed)
            }

            async fn alerts(&self) -> Result<Vec<StoredAlert>, StoreError> {
                let rows = query(SELECT_ALERTS).fetch_all(&self.pool).await.map_err(failed("reading the alerts"))?;
                rows.iter().map(|row| AlertRow::from(row as &dyn Columns).alert()).collect()
            }

            async fn outbox(&self) -> Result<Vec<OutboxEntry>, StoreError> {
                let failed = failed("reading the outbox");
                let mut rows = query(SELECT_OUTBOX_LAST).fetch_all(&self.pool).await.map_err(&failed)?;
                rows.extend(query(SELECT_OUTBOX_PENDING).fetch_all(&self.pool).await.map_err(&failed)?);
                rows.iter().map(|row| outbox_entry(row as &dyn Columns)).collect()
            }

            async fn record_attempt(&self, entry: &OutboxEntry) -> Result<(), StoreError> {
                let failed = failed("recording a delivery");
                let mut tx = self.pool.begin().await.map_err(&failed)?;
                if entry.status == NotificationStatus::Pending {
                    let update = query(RECORD_FAILURE).bind(i64::from(entry.attempts)).bind(&entry.last_error);
                    update.bind(entry.id.to_string()).execute(&mut *tx).await.map_err(&failed)?;
                    return tx.commit().await.map_err(&failed);
                }
                query(RECORD_ATTEMPT)
                    .bind(entry.status.as_str())
                    .bind(entry.finished_ms)
                    .bind(i64::from(entry.attempts))
                    .bind(&entry.last_error)
                    .bind(entry.id.to_string())
                    .execute(&mut *tx)
                    .await
                    .map_err(&failed)?;
                if entry.status == NotificationStatus::Sent {
                    for id in entry.firing.iter().chain(&entry.resolved) {
                        let update = query(RECORD_SENT_ALERT).bind(entry.finished_ms).bind(id.to_string());
                        update.execute(&mut *tx).await.map_err(&failed)?;
                    }
                }
                tx.commit().await.map_err(&failed)
            }

            async fn history(&self, tenant: &TenantId, from_ms: i64, to_ms: i64, limit: u32) -> Result<Vec<HistoryRow>, StoreError> {
                let select = query(SELECT_HISTORY).bind(tenant.as_str()).bind(from_ms).bind(to_ms).bind(i64::from(limit));
                let rows = select.fetch_all(&self.pool).await.map_err(failed("reading the history"))?;
                rows.iter().map(|row| history_row(row as &dyn Columns)).collect()
            }

            async fn notifications(&self, tenant: &TenantId, limit: u32) -> Result<Vec<OutboxEntry>, StoreError> {
                let select = query(SELECT_NOTIFICATIONS).bind(tenant.as_str()).bind(i64::from(limit));
                let rows = select.fetch_all(&self.pool).await.map_err(failed("reading the notifications"))?;
                rows.iter().map(|row| outbox_entry(row as &dyn Columns)).collect()
            }

            async fn marks(&self, prefix: &str) -> Result<Vec<Mark>, StoreError> {
                let rows = query(SELECT_MARKS).bind(prefix).fetch_all(&self.pool).await.map_err(failed("reading the marks"))?;
                let mut marks = Vec::new();
                for row in &rows {
                    let row = row as &dyn Columns;
                    marks.push(Mark { name: row.text("name")?, value: row.text("value")? });
                }
                // Not in SQL: databases order and compare texts by their own collation.
                marks.retain(|mark| mark.name.starts_with(prefix));
                Ok(marks)
            }

            async fn prune(&self, history_before_ms: i64, notifications_before_ms: i64) -> Result<u64, StoreError> {
                let failed = failed("forgetting old rows");
                let history = query(PRUNE_HISTORY).bind(history_before_ms).execute(&self.pool).await.map_err(&failed)?;
                let sent = query(PRUNE_NOTIFICATIONS).bind(notifications_before_ms).execute(&self.pool).await.map_err(&failed)?;
                Ok(history.rows_affected() + sent.rows_affected())
            }

            async fn close(&self) {
                self.pool.close().await;
            }
        }

        impl Columns for $row {
            fn text(&self, column: &'static str) -> Result<String, StoreError> {
                self.try_get(column).map_err(failed(column))
            }
            fn number(&self, column: &'static str) -> Result<i64, StoreError> {
                self.try_get(column).map_err(failed(column))
            }
            fn maybe(&self, column: &'static str) -> Result<Option<i64>, StoreError> {
                self.try_get(column).map_err(failed(column))
            }
        }
    };
}

implement_store!(SqliteStore, SqliteRow, SqliteConnection);
implement_store!(PostgresStore, PgRow, PgConnection);

/// A row of either database.
trait Columns {
    fn text(&self, column: &'static str) -> Result<String, StoreError>;
    fn number(&self, column: &'static str) -> Result<i64, StoreError>;
    fn maybe(&self, column: &'static str) -> Result<Option<i64>, StoreError>;
}

/// The times of a state as columns.
struct Times {
    active: i64,
    fired: Option<i64>,
    kept: Option<i64>,
    resolved: Option<i64>,
}

impl Times {
    fn of(state: AlertState) -> Self {
        match state {
            AlertState::Pending { since_ms } => Self { active: since_ms, fired: None, kept: None, resolved: None },
            AlertState::Firing { since_ms, fired_ms, kept_since_ms } => {
                Self { active: since_ms, fired: Some(fired_ms), kept: kept_since_ms, resolved: None }
            }
            AlertState::Resolved { since_ms, fired_ms, at_ms } => {
                Self { active: since_ms, fired: Some(fired_ms), kept: None, resolved: Some(at_ms) }
            }
        }
    }

    fn state(&self, name: &str) -> Option<AlertState> {
        Some(match name {
            "pending" => AlertState::Pending { since_ms: self.active },
            "firing" => AlertState::Firing { since_ms: self.active, fired_ms: self.fired?, kept_since_ms: self.kept },
            "resolved" => AlertState::Resolved { since_ms: self.active, fired_ms: self.fired?, at_ms: self.resolved? },
            _ => return None,
        })
    }
}

fn json(map: &BTreeMap<String, String>) -> String {
    serde_json::to_string(map).expect("text keys and text values always serialise")
}

fn labels_json(labels: &Labels) -> String {
    json(&label_map(labels))
}

fn ids_json(ids: &[Id]) -> String {
    let texts: Vec<String> = ids.iter().map(Id::to_string).collect();
    serde_json::to_string(&texts).expect("a list of texts always serialises")
}

/// Decodes the columns of one table, naming table and column in errors.
struct Decoder<'a> {
    table: &'static str,
    row: &'a dyn Columns,
}

impl Decoder<'_> {
    fn parse<T>(&self, column: &'static str, parse: impl Fn(&str) -> Option<T>) -> Result<T, StoreError> {
        let value = self.row.text(column)?;
        parse(&value).ok_or(StoreError::Row { table: self.table, column, value })
    }

    fn id(&self, column: &'static str) -> Result<Id, StoreError> {
        self.parse(column, Id::parse)
    }

    fn ids(&self, column: &'static str) -> Result<Vec<Id>, StoreError> {
        self.parse(column, |text| serde_json::from_str::<Vec<String>>(text).ok()?.iter().map(|id| Id::parse(id)).collect())
    }

    fn tenant(&self) -> Result<TenantId, StoreError> {
        self.parse("tenant", |text| TenantId::new(text).ok())
    }

    fn labels(&self) -> Result<Labels, StoreError> {
        self.parse("labels", |text| Labels::from_pairs(serde_json::from_str::<BTreeMap<String, String>>(text).ok()?).ok())
    }

    fn annotations(&self) -> Result<Annotations, StoreError> {
        self.parse("annotations", |text| serde_json::from_str(text).ok())
    }

    fn value(&self) -> Result<f64, StoreError> {
        Ok(f64::from_bits(self.row.number("value_bits")?.cast_unsigned()))
    }
}

struct AlertRow<'a>(Decoder<'a>);

impl<'a> From<&'a dyn Columns> for AlertRow<'a> {
    fn from(row: &'a dyn Columns) -> Self {
        Self(Decoder { table: "alert_instances", row })
    }
}

impl AlertRow<'_> {
    fn alert(&self) -> Result<StoredAlert, StoreError> {
        let Self(d) = self;
        let times = Times {
            active: d.row.number("active_at")?,
            fired: d.row.maybe("fired_at")?,
            kept: d.row.maybe("kept_since")?,
            resolved: d.row.maybe("resolved_at")?,
        };
        let state = d.parse("state", |name| times.state(name))?;
        let alert = Alert { id: d.id("alert_id")?, labels: d.labels()?, annotations: d.annotations()?, value: d.value()?, state };
        Ok(StoredAlert {
            tenant: d.tenant()?,
            rule: d.id("rule_id")?,
            rule_name: d.row.text("rule_name")?,
            alert,
            last_sent_ms: d.row.maybe("last_sent")?,
        })
    }
}

fn history_row(row: &dyn Columns) -> Result<HistoryRow, StoreError> {
    let d = Decoder { table: "alert_transitions", row };
    let transition = Transition {
        id: d.id("transition_id")?,
        alert_id: d.id("alert_id")?,
        kind: d.parse("kind", TransitionKind::parse)?,
        at_ms: row.number("at")?,
        labels: d.labels()?,
        annotations: d.annotations()?,
        value: d.value()?,
    };
    Ok(HistoryRow { tenant: d.tenant()?, rule: d.id("rule_id")?, rule_name: row.text("rule_name")?, transition })
}

fn outbox_entry(row: &dyn Columns) -> Result<OutboxEntry, StoreError> {
    let d = Decoder { table: "notifications", row };
    Ok(OutboxEntry {
        id: d.id("notification_id")?,
        tenant: d.tenant()?,
        receiver: row.text("receiver")?,
        alertname: row.text("alertname")?,
        payload: row.text("payload")?,
        firing: d.ids("firing")?,
        resolved: d.ids("resolved")?,
        status: d.parse("status", NotificationStatus::parse)?,
        created_ms: row.number("created_at")?,
        finished_ms: row.maybe("finished_at")?,
        attempts: u32::try_from(row.number("attempts")?).unwrap_or(u32::MAX),
        last_error: row.text("last_error")?,
    })
}
