//! Prometheus' HTTP API, versions 2 and 3: queries, metadata, rules and alerts, status.

mod metadata;
mod params;
mod query;
mod rules;
mod status;
mod tsdb;

use crate::app::App;
use crate::http::error::ApiError;
use axum::Router;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use fletch_promql::ParseLimits;
use fletch_schemas::Matcher;
use std::sync::Arc;

pub use params::{Params, parse_duration, parse_time};

/// Most warnings, and most infos, in one answer.
const ANNOTATIONS_MAX: usize = 10;

/// Routes of this API, without the ones that write.
pub fn routes() -> Router<Arc<App>> {
    Router::new()
        .route("/api/v1/query", get(query::instant).post(query::instant_post))
        .route("/api/v1/query_range", get(query::range).post(query::range))
        .route("/api/v1/format_query", get(query::format).post(query::format))
        .route("/api/v1/series", get(metadata::series).post(metadata::series))
        .route("/api/v1/labels", get(metadata::labels).post(metadata::labels))
        .route("/api/v1/label/{name}/values", get(metadata::label_values))
        .route("/api/v1/metadata", get(metadata::metadata))
        .route("/api/v1/rules", get(rules::rules))
        .route("/api/v1/alerts", get(rules::alerts))
        .route("/api/v1/status/buildinfo", get(status::build_info))
        .route("/api/v1/status/runtimeinfo", get(status::runtime_info))
        .route("/api/v1/status/flags", get(status::flags))
        .route("/api/v1/status/tsdb", get(tsdb::tsdb))
}

/// `{"status":"success","data":…}` around data that is JSON already.
pub(crate) fn success(data: &[u8], warnings: &[String], infos: &[String]) -> Response {
    let mut body = Vec::with_capacity(data.len() + 64);
    body.extend_from_slice(br#"{"status":"success","data":"#);
    body.extend_from_slice(data);
    push_annotations(&mut body, "warnings", warnings);
    push_annotations(&mut body, "infos", infos);
    body.push(b'}');
    ([(axum::http::header::CONTENT_TYPE, "application/json")], body).into_response()
}

/// The same for data that serde writes.
pub(crate) fn success_json(data: &impl serde::Serialize, warnings: &[String]) -> Result<Response, ApiError> {
    let data = serde_json::to_vec(data).map_err(|e| ApiError::internal(format!("cannot write the answer: {e}")))?;
    Ok(success(&data, warnings, &[]))
}

fn push_annotations(body: &mut Vec<u8>, key: &str, texts: &[String]) {
    if texts.is_empty() {
        return;
    }
    let mut shown: Vec<String> = texts.iter().take(ANNOTATIONS_MAX).cloned().collect();
    if texts.len() > ANNOTATIONS_MAX {
        let kind = if key == "infos" { "info" } else { "warning" };
        shown.push(format!("{} more {kind} annotations omitted", texts.len() - ANNOTATIONS_MAX));
    }
    body.extend_from_slice(format!(",\"{key}\":").as_bytes());
    serde_json::to_writer(body, &shown).expect("writing strings into memory cannot fail");
}

/// Every `match[]`, parsed; each must have one matcher that does not match the empty string.
fn match_sets(app: &App, params: &Params) -> Result<Vec<Vec<Matcher>>, ApiError> {
    let limits = parse_limits(app);
    let parse = |text| {
        let matchers = fletch_promql::parse_selector(text, &limits).map_err(|e| ApiError::parameter("match[]", e))?;
        if !fletch_promql::has_non_empty_matcher(&matchers) {
            return Err(ApiError::bad_data("match[] must contain at least one non-empty matcher"));
        }
        Ok(matchers)
    };
    params.all("match[]").map(parse).collect()
}

fn parse_limits(app: &App) -> ParseLimits {
    let limits = &app.settings.limits;
    ParseLimits { bytes_max: limits.promql_bytes_max, depth_max: limits.promql_depth_max }
}
