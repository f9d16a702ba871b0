//! `/api/v1/status/…`.
//!
//! `buildinfo` tells Grafana which Prometheus API level it may expect; our own name and version stand in extra keys. It has no `features` key,
//! because Grafana would take the server for Mimir then.

use super::success_json;
use crate::http::Shared;
use crate::http::error::ApiError;
use axum::response::Response;
use serde_json::json;

/// The Prometheus version whose API we speak.
const COMPATIBLE_WITH: &str = "3.5.0";

pub(super) async fn build_info() -> Result<Response, ApiError> {
    let info = json!({
        "version": COMPATIBLE_WITH, "revision": "", "branch": "", "buildUser": "", "buildDate": "", "goVersion": "",
        "application": "fletch", "applicationVersion": env!("CARGO_PKG_VERSION"),
    });
    success_json(&info, &[])
}

pub(super) async fn runtime_info(app: Shared) -> Result<Response, ApiError> {
    let start = chrono::DateTime::from_timestamp_millis(app.started_ms).unwrap_or_default();
    let info = json!({
        "startTime": start.to_rfc3339_opts(chrono::SecondsFormat::Millis, true),
        "CWD": std::env::current_dir().map(|d| d.display().to_string()).unwrap_or_default(),
        "hostname": std::env::var("HOSTNAME").unwrap_or_default(),
        "serverTime": chrono::DateTime::from_timestamp_millis(app.clock.now_ms()).unwrap_or_default().to_rfc3339_opts(chrono::SecondsFormat::Millis, true),
        "reloadConfigSuccess": true, "lastConfigTime": start.to_rfc3339_opts(chrono::SecondsFormat::Secs, true), "corruptionCount": 0,
        "goroutineCount": 0, "GOMAXPROCS": std::thread::available_parallelism().map_or(1, usize::from), "GOMEMLIMIT": 0, "GOGC": "", "GODEBUG": "",
        "storageRetention": "unlimited",
    });
    success_json(&info, &[])
}

pub(super) async fn flags(app: Shared) -> Result<Response, ApiError> {
    let s = &app.settings;
    let flags = json!({
        "data-dir": s.data_dir.display().to_string(), "http-addr": s.http_addr.to_string(), "flight-addr": s.flight_addr.to_string(),
        "object-store": s.object_store, "kafka-brokers": s.kafka.as_ref().map(|k| k.brokers.clone()).unwrap_or_default(),
        "flush-interval": format!("{}s", s.flush_interval.as_secs()),
    });
    success_json(&flags, &[])
}
