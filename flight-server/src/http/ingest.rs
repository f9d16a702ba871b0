//! Routes that write: remote write, text push, JSON push.
//!
//! ```text
//!  body ─▶ decode (columns) ─▶ Bus::append (durable, delivered) ─▶ answer
//! ```
//!
//! A batch is never all or nothing because of one bad sample: what is good is stored, what is bad is named in the answer.

use super::Shared;
use super::error::ApiError;
use super::server::Connection;
use super::tenant::Tenant;
use crate::app::App;
use axum::body::Bytes;
use axum::extract::{Extension, Request};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Json, Router};
use fletch_ingest::decode::{self, BodyFormat, DecodeAdvice, DecodeContext, DecodeError, Decoded, LabelPolicy, PushAnswer};
use std::sync::Arc;

/// How much of a body that is too large is read before the answer; a client that sends more is cut off.
const DRAINED_BYTES_MAX: usize = 256 << 20;

/// Routes of this file.
pub fn routes() -> Router<Arc<App>> {
    Router::new().route("/api/v1/write", post(remote_write)).route("/api/v1/metrics", post(push)).route("/api/v1/metrics/write", post(push))
}

/// Remote write 1: snappy-compressed protobuf, 204 when all of it is durable.
pub async fn remote_write(
    app: Shared,
    tenant: Tenant,
    Extension(connection): Extension<Connection>,
    request: Request,
) -> Result<Response, ApiError> {
    check_remote_write_headers(request.headers())?;
    let body = read_body(&app, request).await?;
    let mut decoded = Decoded::new();
    let outcome = app.remote_write.decode(&body, &tenant.0, app.clock.now_ms(), &mut connection.remote_write.lock(), &mut decoded);
    outcome.map_err(decode_error)?;
    append(&app, &tenant, "remote_write", &mut decoded).await?;
    match decoded.reject_text() {
        None => Ok(StatusCode::NO_CONTENT.into_response()),
        Some(text) => Err(ApiError::bad_data(text)),
    }
}

fn check_remote_write_headers(headers: &HeaderMap) -> Result<(), ApiError> {
    let unsupported = |why: String| Err(ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "bad_data", why));
    let text = |name| headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or("");
    let content_type = text(header::CONTENT_TYPE).to_ascii_lowercase();
    if content_type.contains("proto=") && !content_type.contains("proto=prometheus.writerequest") {
        return unsupported(format!(
            "content type `{content_type}` is not supported yet: send remote write 1.0 (`application/x-protobuf`)"
        ));
    }
    let encoding = text(header::CONTENT_ENCODING);
    if !encoding.is_empty() && !encoding.eq_ignore_ascii_case("snappy") {
        return unsupported(format!("content encoding `{encoding}` is not supported: remote write 1.0 is snappy (block format)"));
    }
    Ok(())
}

/// C1 and C2: text lines or JSON, told apart by the first byte.
async fn push(app: Shared, tenant: Tenant, request: Request) -> Response {
    match push_body(&app, &tenant, request).await {
        Ok(decoded) => {
            let answer = PushAnswer::of(&decoded);
            let status = if answer.is_success() { StatusCode::OK } else { StatusCode::BAD_REQUEST };
            (status, Json(answer)).into_response()
        }
        Err(error) => {
            let answer = PushAnswer::refused(error.message());
            let mut response = error.into_response();
            *response.body_mut() = Json(answer).into_response().into_body();
            response.headers_mut().remove(header::CONTENT_LENGTH);
            response
        }
    }
}

async fn push_body(app: &App, tenant: &Tenant, request: Request) -> Result<Decoded, ApiError> {
    let body = read_body(app, request).await?;
    let context = DecodeContext {
        tenant: &tenant.0,
        now_ms: app.clock.now_ms(),
        limits: &app.settings.limits,
        registry: &app.registry,
        label_policy: LabelPolicy::Refuse,
    };
    let mut decoded = Decoded::new();
    let (protocol, outcome) = match decode::sniff(&body) {
        BodyFormat::Json => ("json", decode::decode_json(&context, &body, &mut decoded)),
        BodyFormat::Text => ("text", decode::decode_text(&context, &body, &mut decoded)),
    };
    outcome.map_err(decode_error)?;
    append(app, tenant, protocol, &mut decoded).await?;
    Ok(decoded)
}

fn decode_error(error: DecodeError) -> ApiError {
    match error.advice() {
        DecodeAdvice::TooLarge => ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "bad_data", error.to_string()),
        DecodeAdvice::Malformed => ApiError::bad_data(error.to_string()),
    }
}

async fn append(app: &App, tenant: &Tenant, protocol: &'static str, decoded: &mut Decoded) -> Result<(), ApiError> {
    if let Err(early) = app.sample_quotas.take(&tenant.0, decoded.batch.len()) {
        app.ingest_metrics.count_early(protocol, decoded);
        return Err(early.into());
    }
    app.ingest_metrics.count(&tenant.0, protocol, decoded);
    if decoded.is_empty() {
        return Ok(());
    }
    app.bus.append(decoded.take_append(Vec::new())).await?;
    Ok(())
}

async fn read_body(app: &App, request: Request) -> Result<Bytes, ApiError> {
    let limit = app.settings.limits.request_bytes_max;
    let (parts, body) = request.into_parts();
    let gzip = parts.headers.get(header::CONTENT_ENCODING).is_some_and(|v| v.as_bytes().eq_ignore_ascii_case(b"gzip"));
    let too_large = || {
        let why = format!("the request body is larger than request_bytes_max = {limit} bytes: send smaller batches");
        ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "bad_data", why)
    };
    let declared = parts.headers.get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse::<usize>().ok());
    if declared.is_some_and(|n| n > limit) {
        drain(body).await;
        return Err(too_large());
    }
    let read = axum::body::to_bytes(body, limit).await;
    let bytes =
        read.map_err(|e| if is_length_error(&e) { too_large() } else { ApiError::bad_data(format!("cannot read the body: {e}")) })?;
    if gzip { gunzip(&bytes, app.settings.limits.request_decompressed_bytes_max) } else { Ok(bytes) }
}

/// Reads and forgets: a client that is still sending would otherwise meet a closed connection instead of the answer.
async fn drain(body: axum::body::Body) {
    let mut frames = body.into_data_stream();
    let mut left = DRAINED_BYTES_MAX;
    while let Some(Ok(frame)) = futures::StreamExt::next(&mut frames).await {
        left = left.saturating_sub(frame.len());
        if left == 0 {
            return;
        }
    }
}

fn is_length_error(error: &axum::Error) -> bool {
    std::error::Error::source(error).is_some_and(|source| source.is::<http_body_util::LengthLimitError>())
}

/// Some push clients compress; at most `limit` bytes come out.
fn gunzip(bytes: &[u8], limit: usize) -> Result<Bytes, ApiError> {
    use std::io::Read;
    let mut out = Vec::new();
    let bound = u64::try_from(limit).unwrap_or(u64::MAX).saturating_add(1);
    let read = flate2::read::MultiGzDecoder::new(bytes).take(bound).read_to_end(&mut out);
    read.map_err(|e| ApiError::bad_data(format!("the body is not valid gzip: {e}")))?;
    if out.len() > limit {
        let why = format!("the body is larger than request_decompressed_bytes_max = {limit} bytes after decompression");
        return Err(ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "bad_data", why));
    }
    Ok(Bytes::from(out))
}
