//! `/api/v1/sql`: a statement in the body or in `q`, an answer in the format that `format` or `Accept` picks.
//!
//! ```text
//!  GET  ?q=…&format=csv          POST, body = the statement          POST application/json {"q": …, "params": [ … ], "format": …, "timeout": "5s"}
//!  json  jsonl  csv  arrow  parquet  text                            errors: {"status":"error","errorType":…,"error":…,"line":…,"column":…}
//! ```
//!
//! # Invariants
//! - The first rows are computed before the status line is sent: a statement that fails early has a proper status code.
//! - Answers are streamed, one batch at a time ([`formats`]); `text` alone is made in one piece and is bounded.
//! - [`status_of`] is the one place where kinds of SQL errors become status codes.
//!
//! # When it fails
//! After the first byte the connection is cut, so that a client cannot take a part for the whole; `jsonl` says why in a last line.

mod formats;

use crate::app::App;
use crate::http::error::ApiError;
use crate::http::prometheus::parse_duration;
use crate::http::tenant::Tenant;
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{FromRequest, Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use datafusion::common::ScalarValue;
use fletch_query::sql::{Params, SqlError, SqlErrorKind, SqlQuery, WireTypes};
use formats::{Encoder, Format};
use futures::{StreamExt, stream};
use serde_json::{Map, Value, json};
use std::sync::Arc;
use std::time::Duration;

/// Routes of this API.
pub fn routes() -> Router<Arc<App>> {
    Router::new().route("/api/v1/sql", get(answer).post(answer))
}

async fn answer(State(app): State<Arc<App>>, Tenant(tenant): Tenant, call: Call) -> Result<Response, SqlFailure> {
    let query = SqlQuery {
        params: call.params,
        timeout: call.timeout,
        wire: WireTypes::default(),
        ..SqlQuery::new(app.storage.view(&tenant), call.sql)
    };
    let mut answer = app.sql.execute(query).await?;
    let first = answer.batches.next().await.transpose()?;
    let encoder = Encoder::new(call.format, answer.schema.clone())?;
    let batches = stream::iter(first.map(Ok)).chain(answer.batches);
    let body = Body::from_stream(formats::encode(encoder, batches));
    let content_type = HeaderValue::from_static(call.format.content_type());
    Ok(([(header::CONTENT_TYPE, content_type)], body).into_response())
}

/// An error in the envelope of the API, with the place in the statement.
#[derive(Debug)]
pub struct SqlFailure(Failure);

#[derive(Debug)]
enum Failure {
    Sql(SqlError),
    Request(ApiError),
}

impl From<SqlError> for SqlFailure {
    fn from(error: SqlError) -> Self {
        Self(Failure::Sql(error))
    }
}

impl From<ApiError> for SqlFailure {
    fn from(error: ApiError) -> Self {
        Self(Failure::Request(error))
    }
}

fn status_of(kind: SqlErrorKind) -> (StatusCode, &'static str) {
    match kind {
        SqlErrorKind::BadData => (StatusCode::BAD_REQUEST, "bad_data"),
        SqlErrorKind::NotFound => (StatusCode::NOT_FOUND, "not_found"),
        SqlErrorKind::Execution => (StatusCode::UNPROCESSABLE_ENTITY, "execution"),
        SqlErrorKind::Limit => (StatusCode::UNPROCESSABLE_ENTITY, "limit"),
        SqlErrorKind::Timeout => (StatusCode::GATEWAY_TIMEOUT, "timeout"),
        SqlErrorKind::Unavailable => (StatusCode::SERVICE_UNAVAILABLE, "unavailable"),
        SqlErrorKind::Internal => (StatusCode::INTERNAL_SERVER_ERROR, "internal"),
    }
}

/// The body of an error.
fn envelope(error: &SqlError) -> Value {
    let mut body = json!({"status": "error", "errorType": status_of(error.kind).1, "error": error.message});
    if let (Some(place), Some(body)) = (error.position, body.as_object_mut()) {
        body.insert("line".to_owned(), place.line.into());
        body.insert("column".to_owned(), place.column.into());
    }
    body
}

impl IntoResponse for SqlFailure {
    fn into_response(self) -> Response {
        match self.0 {
            Failure::Request(error) => error.into_response(),
            Failure::Sql(error) => (status_of(error.kind).0, axum::Json(envelope(&error))).into_response(),
        }
    }
}

/// What a request asks for.
#[derive(Debug, Clone, PartialEq)]
struct Call {
    sql: String,
    params: Params,
    format: Format,
    timeout: Option<Duration>,
}

impl<S: Send + Sync> FromRequest<S> for Call {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        let (method, headers) = (request.method().clone(), request.headers().clone());
        let url = pairs(request.uri().query().unwrap_or("").as_bytes());
        let body = match method {
            Method::POST => Bytes::from_request(request, state).await.map_err(|e| ApiError::bad_data(e.body_text()))?,
            _ => Bytes::new(),
        };
        Self::read(&headers, url, &body)
    }
}

impl Call {
    /// Puts URL, headers and body together; the URL wins.
    fn read(headers: &HeaderMap, url: Map<String, Value>, body: &[u8]) -> Result<Self, ApiError> {
        let text = |name| headers.get(name).and_then(|v: &HeaderValue| v.to_str().ok()).unwrap_or("").to_ascii_lowercase();
        let content_type = text(header::CONTENT_TYPE);
        let mut fields = if content_type.starts_with("application/json") {
            json_fields(body)?
        } else if content_type.starts_with("application/x-www-form-urlencoded") {
            form_fields(body)?
        } else {
            statement_fields(body)?
        };
        fields.extend(url);
        let sql = ["q", "query", "sql"].iter().find_map(|name| fields.get(*name)).and_then(Value::as_str).unwrap_or("").to_owned();
        if sql.trim().is_empty() {
            return Err(ApiError::bad_data("there is no statement: send it as the body or as parameter q"));
        }
        let format = match fields.get("format").and_then(Value::as_str) {
            Some(name) => Format::named(name).ok_or_else(|| ApiError::parameter("format", Format::NAMES))?,
            None => Format::accepted(&text(header::ACCEPT)),
        };
        Ok(Self { sql, params: params_of(fields.get("params"))?, format, timeout: timeout_of(fields.get("timeout"))? })
    }
}

fn pairs(bytes: &[u8]) -> Map<String, Value> {
    url::form_urlencoded::parse(bytes).map(|(name, value)| (name.into_owned(), Value::from(value.into_owned()))).collect()
}

fn json_fields(body: &[u8]) -> Result<Map<String, Value>, ApiError> {
    if body.is_empty() {
        return Ok(Map::new());
    }
    serde_json::from_slice(body).map_err(|e| ApiError::bad_data(format!("the body is not a JSON object: {e}")))
}

/// A form, or a statement: `curl -d` sends any body with the content type of a form.
fn form_fields(body: &[u8]) -> Result<Map<String, Value>, ApiError> {
    let fields = pairs(body);
    let is_form = ["q", "query", "sql"].iter().any(|name| fields.contains_key(*name));
    if is_form || body.is_empty() { Ok(fields) } else { statement_fields(body) }
}

fn statement_fields(body: &[u8]) -> Result<Map<String, Value>, ApiError> {
    let text = std::str::from_utf8(body).map_err(|_| ApiError::bad_data("the statement is not UTF-8"))?;
    let mut fields = Map::new();
    if !text.trim().is_empty() {
        fields.insert("q".to_owned(), Value::from(text));
    }
    Ok(fields)
}

/// `["a", 1]` for `$1`, `$2`; `{"host": "a"}` for `$host`. In a URL or a form the same as text.
fn params_of(value: Option<&Value>) -> Result<Params, ApiError> {
    let parsed;
    let value = match value {
        None | Some(Value::Null) => return Ok(Params::None),
        Some(Value::String(text)) => {
            parsed = serde_json::from_str(text).map_err(|e| ApiError::parameter("params", format!("not JSON: {e}")))?;
            &parsed
        }
        Some(value) => value,
    };
    let scalar =
        |v: &Value| scalar_of(v).ok_or_else(|| ApiError::parameter("params", format!("{v} is not a text, number, boolean or null")));
    match value {
        Value::Array(values) => Ok(Params::Positional(values.iter().map(scalar).collect::<Result<_, _>>()?)),
        Value::Object(values) => {
            let named = values.iter().map(|(name, v)| Ok((name.clone(), scalar(v)?)));
            Ok(Params::Named(named.collect::<Result<_, ApiError>>()?))
        }
        _ => Err(ApiError::parameter("params", "an array or an object is expected")),
    }
}

fn scalar_of(value: &Value) -> Option<ScalarValue> {
    match value {
        Value::Null => Some(ScalarValue::Null),
        Value::Bool(b) => Some(ScalarValue::from(*b)),
        Value::String(text) => Some(ScalarValue::from(text.as_str())),
        Value::Number(n) => n.as_i64().map(ScalarValue::from).or_else(|| n.as_f64().map(ScalarValue::from)),
        Value::Array(_) | Value::Object(_) => None,
    }
}

/// `5s`, `500ms`, or a number of seconds.
fn timeout_of(value: Option<&Value>) -> Result<Option<Duration>, ApiError> {
    let text = match value {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
    };
    let ms = parse_duration(&text).map_err(|why| ApiError::parameter("timeout", why))?;
    u64::try_from(ms).map(|ms| Some(Duration::from_millis(ms))).map_err(|_| ApiError::parameter("timeout", "it must not be negative"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(content_type: &str, accept: &str, url: &str, body: &str) -> Result<Call, ApiError> {
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, content_type.parse().expect("ASCII"));
        headers.insert(header::ACCEPT, accept.parse().expect("ASCII"));
        Call::read(&headers, pairs(url.as_bytes()), body.as_bytes())
    }

    #[test]
    fn a_statement_comes_in_any_usual_way() {
        for (content_type, url, body) in [
            ("text/plain", "", "SELECT 1"),
            ("application/x-www-form-urlencoded", "", "SELECT 1"),
            ("application/x-www-form-urlencoded", "", "q=SELECT+1"),
            ("application/json", "", r#"{"q": "SELECT 1"}"#),
            ("", "q=SELECT%201", ""),
            ("application/json", "query=SELECT 1", ""),
            ("text/plain", "q=SELECT 1", "SELECT 2"),
        ] {
            assert_eq!(
                call(content_type, "*/*", url, body).map(|c| c.sql).ok().as_deref(),
                Some("SELECT 1"),
                "{content_type} {url} {body}"
            );
        }
        assert!(call("text/plain", "", "", "  ").is_err_and(|e| e.message().contains("no statement")));
        assert!(call("application/json", "", "", "[1]").is_err_and(|e| e.message().contains("JSON object")));
    }

    #[test]
    fn format_params_and_timeout_are_read() {
        let got = call("application/json", "text/csv", "", r#"{"q": "x", "params": ["a", 1, 1.5, null], "timeout": "1m"}"#).expect("valid");
        let values = vec![ScalarValue::from("a"), ScalarValue::from(1_i64), ScalarValue::from(1.5), ScalarValue::Null];
        assert_eq!((got.format, got.params, got.timeout), (Format::Csv, Params::Positional(values), Some(Duration::from_secs(60))));
        let url = r#"q=x&format=parquet&timeout=0.5&params={"a":true}"#;
        let got = call("", "text/csv", url, "").expect("valid");
        let named = [("a".to_owned(), ScalarValue::from(true))].into_iter().collect();
        assert_eq!((got.format, got.params, got.timeout), (Format::Parquet, Params::Named(named), Some(Duration::from_millis(500))));
        for bad in ["q=x&format=xml", "q=x&params=[", "q=x&params=3", "q=x&params=[[1]]", "q=x&timeout=-1", "q=x&timeout=soon"] {
            assert!(call("", "", bad, "").is_err(), "{bad}");
        }
    }

    #[test]
    fn errors_name_the_place() {
        let body = envelope(&SqlError::bad_data("syntax error").at(2, 7));
        assert_eq!(body, json!({"status": "error", "errorType": "bad_data", "error": "syntax error", "line": 2, "column": 7}));
        assert_eq!(envelope(&SqlError::limit("x")).get("line"), None);
    }
}
