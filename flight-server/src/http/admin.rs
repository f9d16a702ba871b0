//! Routes for operators.

use super::Shared;
use super::error::ApiError;
use crate::app::App;
use axum::Router;
use axum::extract::RawQuery;
use axum::http::StatusCode;
use axum::response::Response;
use axum::routing::post;
use serde_json::json;
use std::sync::Arc;

/// Routes of this file.
pub fn routes() -> Router<Arc<App>> {
    Router::new().route("/api/v1/admin/flush", post(flush)).route("/api/v1/admin/compact", post(compact))
}

/// Commits everything that was acknowledged; answers when it is in the tables.
async fn flush(app: Shared) -> Result<Response, ApiError> {
    let report = app.storage.flush().await?;
    super::prometheus::success_json(&serde_json::json!({"files": report.files, "samples": report.rows, "version": report.version}), &[])
}

/// Compacts every day of `samples` and `series`; answers when it is done. `?vacuum=true` also deletes the replaced files at once, which is refused
/// when other processes share the store.
async fn compact(app: Shared, RawQuery(query): RawQuery) -> Result<Response, ApiError> {
    let vacuum = wants_vacuum(query.as_deref().unwrap_or_default())?;
    if vacuum && app.settings.kafka.is_some() {
        let text = "vacuum=true deletes replaced files at once, which other processes on this store may be reading: with kafka as the bus they go by \
                    themselves when their retention ends; call it without vacuum=true";
        return Err(ApiError::new(StatusCode::CONFLICT, "conflict", text));
    }
    let done = app.maintenance.compact_now().await?;
    if done.failed > 0 {
        return Err(ApiError::internal(format!(
            "{} of {} merges failed; the log of the server names them",
            done.failed,
            done.jobs + done.failed
        )));
    }
    if done.busy > 0 {
        return Err(ApiError::unavailable(format!("another process is compacting {} of the days; ask again in a few minutes", done.busy)));
    }
    let mut answer = json!({
        "merges": done.jobs, "conflicts": done.conflicts, "files_removed": done.removed, "files_added": done.added,
        "rows": done.rows_out, "copies_dropped": done.rows_in.saturating_sub(done.rows_out),
        "bytes_before": done.bytes_in, "bytes_after": done.bytes_out,
    });
    if vacuum {
        let gone = app.maintenance.vacuum_now().await?;
        answer["vacuum"] = json!({"files": gone.files, "bytes": gone.bytes, "kept": gone.kept});
    }
    super::prometheus::success_json(&answer, &[])
}

/// The one parameter of a compaction; any other is refused, so that a slip of the pen deletes nothing and is not ignored either.
fn wants_vacuum(query: &str) -> Result<bool, ApiError> {
    let mut vacuum = false;
    for part in query.split('&').filter(|part| !part.is_empty()) {
        vacuum = match part {
            "vacuum=true" => true,
            "vacuum=false" => false,
            _ => return Err(ApiError::bad_data(format!("`{part}` is not a parameter of a compaction: only vacuum=true or vacuum=false"))),
        };
    }
    Ok(vacuum)
}

#[cfg(test)]
mod tests {
    use super::wants_vacuum;

    #[test]
    fn vacuum_is_asked_for_by_its_name_only() {
        for (query, wanted) in
            [("", Some(false)), ("vacuum=true", Some(true)), ("vacuum=false", Some(false)), ("vacuum=1", None), ("x=1", None)]
        {
            assert_eq!(wants_vacuum(query).ok(), wanted, "{query}");
        }
    }
}
