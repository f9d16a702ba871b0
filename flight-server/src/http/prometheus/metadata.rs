//! `/api/v1/series`, `/labels`, `/label/<name>/values`, `/metadata`: what there is to ask for.

use super::params::{Params, TIME_MAX, TIME_MIN};
use super::{match_sets, success_json};
use crate::http::Shared;
use crate::http::error::ApiError;
use crate::http::tenant::Tenant;
use axum::extract::Path;
use axum::response::Response;
use fletch_schemas::{Labels, MetricMetadata};
use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};
use std::collections::BTreeMap;

/// Prometheus' warning when `limit` cut something off.
const TRUNCATED: &str = "results truncated due to limit";

/// `start` and `end`, open when absent.
fn range(params: &Params) -> Result<(i64, i64), ApiError> {
    let (start, end) = (params.time("start", TIME_MIN)?, params.time("end", TIME_MAX)?);
    if end < start {
        return Err(ApiError::parameter("end", "end timestamp must not be before start timestamp"));
    }
    Ok((start, end))
}

fn truncate<T>(items: &mut Vec<T>, limit: usize, mut warnings: Vec<String>) -> Vec<String> {
    if limit > 0 && items.len() > limit {
        items.truncate(limit);
        warnings.push(TRUNCATED.to_owned());
    }
    warnings
}

pub(super) async fn series(app: Shared, tenant: Tenant, params: Params) -> Result<Response, ApiError> {
    let sets = match_sets(&app, &params)?;
    if sets.is_empty() {
        return Err(ApiError::bad_data("no match[] parameter provided"));
    }
    let ((start, end), limit) = (range(&params)?, params.limit()?);
    let view = app.storage.view(&tenant.0);
    let mut found = view.series(&sets, start, end).await?;
    let warnings = truncate(&mut found, limit, view.warnings());
    let found: Vec<LabelMap<'_>> = found.iter().map(LabelMap).collect();
    success_json(&found, &warnings)
}

pub(super) async fn labels(app: Shared, tenant: Tenant, params: Params) -> Result<Response, ApiError> {
    let ((start, end), limit) = (range(&params)?, params.limit()?);
    let view = app.storage.view(&tenant.0);
    let mut names = view.label_names(&match_sets(&app, &params)?, start, end).await?;
    let warnings = truncate(&mut names, limit, view.warnings());
    success_json(&names, &warnings)
}

pub(super) async fn label_values(app: Shared, tenant: Tenant, Path(name): Path<String>, params: Params) -> Result<Response, ApiError> {
    let name = unescape_name(&name);
    if name.is_empty() {
        return Err(ApiError::bad_data("invalid label name: \"\""));
    }
    let ((start, end), limit) = (range(&params)?, params.limit()?);
    let view = app.storage.view(&tenant.0);
    let mut values = view.label_values(&name, &match_sets(&app, &params)?, start, end).await?;
    let warnings = truncate(&mut values, limit, view.warnings());
    success_json(&values, &warnings)
}

/// `U__` names are the escaped form of UTF-8 ones: `_2e_` is U+002E, `__` is `_`. Anything that does not follow the scheme is taken as it is.
fn unescape_name(name: &str) -> String {
    let Some(escaped) = name.strip_prefix("U__") else { return name.to_owned() };
    unescape(escaped).unwrap_or_else(|| name.to_owned())
}

fn unescape(escaped: &str) -> Option<String> {
    let mut out = String::with_capacity(escaped.len());
    let mut rest = escaped;
    while let Some(at) = rest.find('_') {
        out.push_str(&rest[..at]);
        let (code, after) = rest[at + 1..].split_once('_')?;
        out.push(if code.is_empty() { '_' } else { char::from_u32(u32::from_str_radix(code, 16).ok()?)? });
        rest = after;
    }
    out.push_str(rest);
    Some(out)
}

pub(super) async fn metadata(app: Shared, tenant: Tenant, params: Params) -> Result<Response, ApiError> {
    let (limit, per_metric) = (params.limit()?, params.get("limit_per_metric").parse::<usize>().unwrap_or(0));
    let (metric, mut found) = (params.get("metric"), BTreeMap::<String, Vec<Entry>>::new());
    for entry in app.storage.view(&tenant.0).metadata() {
        if !metric.is_empty() && entry.metric != metric {
            continue;
        }
        if limit > 0 && found.len() >= limit && !found.contains_key(&entry.metric) {
            continue;
        }
        let entries = found.entry(entry.metric.clone()).or_default();
        if per_metric == 0 || entries.len() < per_metric {
            entries.push(entry.into());
        }
    }
    success_json(&found, &[])
}

#[derive(Debug, Serialize)]
struct Entry {
    r#type: &'static str,
    help: String,
    unit: String,
}

impl From<MetricMetadata> for Entry {
    fn from(m: MetricMetadata) -> Self {
        Self { r#type: m.kind.as_str(), help: m.help, unit: m.unit }
    }
}

/// A label set as a JSON object.
struct LabelMap<'a>(&'a Labels);

impl Serialize for LabelMap<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        for (name, value) in self.0.iter() {
            map.serialize_entry(name, value)?;
        }
        map.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escaped_names_are_unescaped_and_odd_ones_left_alone() {
        assert_eq!(unescape_name("job"), "job");
        assert_eq!(unescape_name("U__http_2e_status_2e_code"), "http.status.code");
        assert_eq!(unescape_name("U__a__b"), "a_b");
        assert_eq!(unescape_name("U__a_zz_b"), "U__a_zz_b");
        assert_eq!(unescape_name("U__a_2e"), "U__a_2e");
    }
}
