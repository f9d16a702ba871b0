//! Routes for operators.

use super::Shared;
use super::error::ApiError;
use crate::app::App;
use axum::Router;
use axum::response::Response;
use axum::routing::post;
use std::sync::Arc;

/// Routes of this file.
pub fn routes() -> Router<Arc<App>> {
    Router::new().route("/api/v1/admin/flush", post(flush))
}

/// Commits everything that was acknowledged; answers when it is in the tables.
async fn flush(app: Shared) -> Result<Response, ApiError> {
    let report = app.storage.flush().await?;
    super::prometheus::success_json(&serde_json::json!({"files": report.files, "samples": report.rows, "version": report.version}), &[])
}
