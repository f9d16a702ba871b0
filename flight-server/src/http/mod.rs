//! The HTTP port: one router, one folder or file per API.
//!
//! ```text
//!  /api/v1/write, /api/v1/metrics[/write]   ingest      /api/v1/query…, labels…, rules, status   prometheus
//!  /api/v1/sql                              sql         /api/v1/admin/…                          admin
//!  /-/ready /-/healthy /metrics             status
//! ```
//!
//! Everything is also served below `/prometheus`, as Mimir-style clients expect. Errors are turned into status codes in [`error`] and nowhere else.

pub mod admin;
pub mod error;
pub mod ingest;
pub mod prometheus;
pub mod server;
pub mod sql;
pub mod status;
pub mod tenant;

use crate::app::App;
use axum::Router;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use std::sync::Arc;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::compression::CompressionLayer;
use tower_http::cors::CorsLayer;

/// What every handler gets.
pub type Shared = axum::extract::State<Arc<App>>;

/// All routes of the HTTP port.
pub fn router(app: Arc<App>) -> Router {
    let api = Router::new().merge(prometheus::routes()).merge(sql::routes()).layer(CompressionLayer::new());
    let all = Router::new()
        .merge(api)
        .merge(ingest::routes())
        .merge(admin::routes())
        .layer(axum::extract::DefaultBodyLimit::max(app.settings.limits.request_bytes_max));
    Router::new()
        .merge(all.clone())
        .nest("/prometheus", all)
        .route("/api/v1/push", post(ingest::remote_write))
        .route("/-/ready", get(status::ready))
        .route("/-/healthy", get(status::healthy))
        .route("/metrics", get(status::metrics))
        .fallback(not_found)
        .layer(CorsLayer::permissive())
        .layer(CatchPanicLayer::new())
        .with_state(app)
}

async fn not_found() -> Response {
    (axum::http::StatusCode::NOT_FOUND, "404 page not found\n").into_response()
}
