//! `/api/v1/query`, `/query_range`, `/format_query`.

use super::params::{Params, parse_duration};
use super::{success, success_json};
use crate::app::App;
use crate::http::Shared;
use crate::http::error::ApiError;
use crate::http::tenant::Tenant;
use axum::extract::{FromRequest, Request};
use axum::http::{StatusCode, header};
use axum::response::Response;
use fletch_query::ViewSource;
use fletch_query::engine::{ErrorKind, InstantQuery, QueryError, QueryOptions, QueryResult, QueryStats, RangeQuery, json};
use std::time::{Duration, Instant};

pub(super) async fn instant(app: Shared, tenant: Tenant, params: Params) -> Result<Response, ApiError> {
    let at_ms = params.time("time", app.clock.now_ms())?;
    let options = options(&app, &params)?;
    let source = source(&app, &tenant);
    let query = InstantQuery { text: params.get("query"), at_ms, options };
    let with_stats = !params.get("stats").is_empty();
    let answer = app.engine.instant_with(&source, query, move |result| encode(result, with_stats)).await.map_err(|e| query_error(&e))?;
    Ok(answer.respond(&app, &source))
}

/// POST also takes `{"query", "time"}` or `{"query", "start", "end", "step"}` as JSON.
pub(super) async fn instant_post(app: Shared, tenant: Tenant, request: Request) -> Result<Response, ApiError> {
    let is_json = request.headers().get(header::CONTENT_TYPE).is_some_and(|v| v.as_bytes().starts_with(b"application/json"));
    let in_url = request.uri().query().is_some_and(|q| q.contains("query="));
    if !is_json || in_url {
        let params = Params::from_request(request, &()).await?;
        return instant(app, tenant, params).await;
    }
    let axum::Json(body) = axum::Json::<serde_json::Map<String, serde_json::Value>>::from_request(request, &())
        .await
        .map_err(|e| ApiError::bad_data(format!("the body is not a JSON object with \"query\": {}", e.body_text())))?;
    let text = |value: serde_json::Value| match value {
        serde_json::Value::String(text) => text,
        other => other.to_string(),
    };
    let params = Params::from_pairs(body.into_iter().map(|(name, value)| (name, text(value))).collect());
    if params.get("start").is_empty() { instant(app, tenant, params).await } else { range(app, tenant, params).await }
}

pub(super) async fn range(app: Shared, tenant: Tenant, params: Params) -> Result<Response, ApiError> {
    let (start_ms, end_ms) = (params.required_time("start")?, params.required_time("end")?);
    if end_ms < start_ms {
        return Err(ApiError::parameter("end", "end timestamp must not be before start time"));
    }
    let step_ms = parse_duration(params.get("step")).map_err(|why| ApiError::parameter("step", why))?;
    if step_ms <= 0 {
        return Err(ApiError::parameter("step", "zero or negative query resolution step widths are not accepted. Try a positive integer"));
    }
    let options = options(&app, &params)?;
    let source = source(&app, &tenant);
    let query = RangeQuery { text: params.get("query"), start_ms, end_ms, step_ms, options };
    let with_stats = !params.get("stats").is_empty();
    let answer = app.engine.range_with(&source, query, move |result| encode(result, with_stats)).await.map_err(|e| query_error(&e))?;
    Ok(answer.respond(&app, &source))
}

pub(super) async fn format(app: Shared, params: Params) -> Result<Response, ApiError> {
    let expr = fletch_promql::parse_expr(params.get("query"), &super::parse_limits(&app)).map_err(|e| ApiError::parameter("query", e))?;
    success_json(&expr.to_string(), &[])
}

fn source(app: &App, tenant: &Tenant) -> ViewSource {
    ViewSource::new(app.storage.view(&tenant.0), &app.settings.limits)
}

fn options(app: &App, params: &Params) -> Result<QueryOptions, ApiError> {
    let most = Duration::from_secs(app.settings.limits.query_seconds_max);
    let asked = params.duration("timeout")?.and_then(|ms| u64::try_from(ms).ok()).map(Duration::from_millis);
    let deadline = Instant::now() + asked.map_or(most, |t| t.min(most));
    let limit = params.limit()?;
    Ok(QueryOptions { lookback_ms: params.duration("lookback_delta")?, deadline: Some(deadline), limit, ..QueryOptions::default() })
}

/// An answer as it was encoded on the thread that computed it.
struct Encoded {
    data: Vec<u8>,
    warnings: Vec<String>,
    infos: Vec<String>,
}

fn encode(result: QueryResult, with_stats: bool) -> Encoded {
    let mut data = Vec::with_capacity(1024);
    json::write_data(&mut data, &result);
    if with_stats && data.last() == Some(&b'}') {
        data.pop();
        data.extend_from_slice(b",\"stats\":");
        data.extend_from_slice(stats(&result.stats, &result.tiers).to_string().as_bytes());
        data.push(b'}');
    }
    Encoded { data, warnings: result.warnings, infos: result.infos }
}

fn stats(stats: &QueryStats, tiers: &[&str]) -> serde_json::Value {
    let total = (stats.prepare + stats.select + stats.evaluate).as_secs_f64();
    serde_json::json!({
        "timings": {
            "evalTotalTime": total, "resultSortTime": 0.0, "queryPreparationTime": (stats.prepare + stats.select).as_secs_f64(),
            "innerEvalTime": stats.evaluate.as_secs_f64(), "execQueueTime": 0.0, "execTotalTime": total,
        },
        "samples": {"totalQueryableSamples": stats.samples, "peakSamples": stats.samples},
        "tiers": tiers,
    })
}

impl Encoded {
    fn respond(self, app: &App, source: &ViewSource) -> Response {
        let mut warnings = source.view().warnings();
        warnings.extend(app.warnings());
        warnings.extend(self.warnings);
        success(&self.data, &warnings, &self.infos)
    }
}

fn query_error(error: &QueryError) -> ApiError {
    let kind = error.kind();
    let status = match kind {
        ErrorKind::BadData => StatusCode::BAD_REQUEST,
        ErrorKind::Execution => StatusCode::UNPROCESSABLE_ENTITY,
        ErrorKind::Timeout => StatusCode::SERVICE_UNAVAILABLE,
        ErrorKind::Canceled => StatusCode::from_u16(499).unwrap_or(StatusCode::BAD_REQUEST),
        ErrorKind::Internal => StatusCode::INTERNAL_SERVER_ERROR,
    };
    match error {
        QueryError::Parse(parse) => ApiError::parameter("query", parse),
        other => ApiError::new(status, kind.as_str(), other.to_string()),
    }
}
