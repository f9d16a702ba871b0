//! The one place where errors become HTTP answers in Prometheus' envelope.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use fletch_ingest::BusError;
use fletch_ingest::quota::RateExceeded;
use fletch_storage::{Advice, StorageError};
use serde_json::json;

/// An error answer: a status code, Prometheus' `errorType`, and a text for people.
#[derive(Debug)]
pub struct ApiError {
    status: StatusCode,
    kind: &'static str,
    message: String,
    retry_after_s: Option<u64>,
}

impl ApiError {
    /// An error of any kind.
    pub fn new(status: StatusCode, kind: &'static str, message: impl Into<String>) -> Self {
        Self { status, kind, message: message.into(), retry_after_s: None }
    }

    /// 400: the request is wrong.
    pub fn bad_data(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "bad_data", message)
    }

    /// 400 in Prometheus' words for one parameter.
    pub fn parameter(name: &str, why: impl std::fmt::Display) -> Self {
        Self::bad_data(format!("invalid parameter {name:?}: {why}"))
    }

    /// 404.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found", message)
    }

    /// 500.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", message)
    }

    /// 503: not now.
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self { retry_after_s: Some(1), ..Self::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", message) }
    }

    /// The text.
    pub fn message(&self) -> &str {
        &self.message
    }

    fn retry_after(mut self, seconds: u64) -> Self {
        self.retry_after_s = Some(seconds.max(1));
        self
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let body = json!({"status": "error", "errorType": self.kind, "error": self.message});
        let mut response = (self.status, axum::Json(body)).into_response();
        if let Some(seconds) = self.retry_after_s {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

impl From<BusError> for ApiError {
    fn from(error: BusError) -> Self {
        let message = error.to_string();
        match error {
            BusError::Full { retry_after, .. } => {
                Self::new(StatusCode::TOO_MANY_REQUESTS, "too_many_requests", message).retry_after(retry_after.as_secs())
            }
            BusError::Closed | BusError::Kafka(_) => Self::unavailable(message),
            _ => Self::internal(message),
        }
    }
}

impl From<RateExceeded> for ApiError {
    fn from(error: RateExceeded) -> Self {
        Self::new(StatusCode::TOO_MANY_REQUESTS, "too_many_requests", error.to_string()).retry_after(error.retry_after.as_secs())
    }
}

impl From<StorageError> for ApiError {
    fn from(error: StorageError) -> Self {
        let message = error.to_string();
        match error.advice() {
            Advice::Retry | Advice::Fenced => Self::unavailable(message),
            Advice::Reject => Self::new(StatusCode::UNPROCESSABLE_ENTITY, "execution", message),
            Advice::Corrupt => Self::internal(message),
        }
    }
}
