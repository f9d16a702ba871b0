//! Whose request it is: header `X-Scope-OrgID`, `default` without one.

use super::error::ApiError;
use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use fletch_schemas::TenantId;

/// The tenant of a request.
#[derive(Debug, Clone)]
pub struct Tenant(pub TenantId);

impl<S: Send + Sync> FromRequestParts<S> for Tenant {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, ApiError> {
        let Some(header) = parts.headers.get("x-scope-orgid") else { return Ok(Self(TenantId::default())) };
        let bad = |why: String| ApiError::bad_data(format!("header X-Scope-OrgID: {why}"));
        let name = header.to_str().map_err(|_| bad("not plain ASCII".into()))?;
        TenantId::new(name).map(Self).map_err(|e| bad(e.to_string()))
    }
}
