//! A consistent copy of the SQLite store, beside a running server.
//!
//! `VACUUM INTO` writes one transaction's view of the whole database to a new file, the write-ahead log included. The copy is a plain database
//! file: putting it where the server expects its own is all that a restore does.

use super::{StoreError, without_password};
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions, Connection};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

/// How long the copy waits for a writer.
const WAIT_MAX: Duration = Duration::from_secs(30);

/// The file of a SQLite address; `None` for another database or one in memory.
///
/// # Errors
/// [`StoreError::Url`].
pub fn sqlite_file(url: &str) -> Result<Option<PathBuf>, StoreError> {
    if !url.starts_with("sqlite:") {
        return Ok(None);
    }
    let options = SqliteConnectOptions::from_str(url).map_err(|e| StoreError::Url { url: without_password(url), reason: e.to_string() })?;
    let file = options.get_filename().to_owned();
    Ok((!file.as_os_str().is_empty() && !url.contains(":memory:") && !url.contains("mode=memory")).then_some(file))
}

/// Copies the database file `from` to the new file `to`.
///
/// # Errors
/// [`StoreError::Database`]: it is not there, not SQLite, or `to` exists.
pub async fn copy_sqlite(from: &Path, to: &Path) -> Result<(), StoreError> {
    let failed = |doing| move |source| StoreError::Database { doing, source };
    let options = SqliteConnectOptions::new().filename(from).create_if_missing(false).busy_timeout(WAIT_MAX);
    let mut connection = options.connect().await.map_err(failed("opening the file to copy"))?;
    let target = to.to_string_lossy().into_owned();
    let copied = sqlx::query("VACUUM INTO $1").bind(target).execute(&mut connection).await;
    let closed = connection.close().await;
    copied.map_err(failed("copying the database"))?;
    closed.map_err(failed("closing the file that was copied"))
}
