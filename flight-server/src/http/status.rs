//! Readiness, liveness and our own metrics.

use super::Shared;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use prometheus_client::encoding::text::encode;

/// 200 while the process lives.
pub async fn healthy() -> &'static str {
    "Fletch is healthy.\n"
}

/// 200 once everything acknowledged before the start is visible again; 503 with the reason before that.
pub async fn ready(app: Shared) -> Response {
    match app.not_ready() {
        None => (StatusCode::OK, "Fletch is ready.\n").into_response(),
        Some(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("Fletch is not ready: {why}\n")).into_response(),
    }
}

/// Our own metrics in OpenMetrics text.
pub async fn metrics(app: Shared) -> Response {
    app.refresh_metrics();
    let mut text = String::new();
    if let Err(error) = encode(&mut text, &app.metrics) {
        return (StatusCode::INTERNAL_SERVER_ERROR, format!("cannot encode metrics: {error}\n")).into_response();
    }
    ([(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")], text).into_response()
}
