//! `/api/v1/status/tsdb`: what makes the label index of a tenant large, in Prometheus' shape.
//!
//! `chunkCount` is the number of runs in memory: we have no chunks. Times are milliseconds; without samples they are Prometheus' own
//! "nothing yet", the ends of the number range.

use super::params::Params;
use super::success_json;
use crate::http::Shared;
use crate::http::error::ApiError;
use crate::http::tenant::Tenant;
use axum::response::Response;
use fletch_storage::view::HeadStats;
use serde::Serialize;
use serde_json::{Value, json};

/// Entries per list without `limit`.
const LIMIT_DEFAULT: usize = 10;
/// Most entries per list.
const LIMIT_MAX: usize = 10_000;

#[derive(Debug, PartialEq, Eq, Serialize)]
struct Stat {
    name: String,
    value: u64,
}

pub(super) async fn tsdb(app: Shared, tenant: Tenant, params: Params) -> Result<Response, ApiError> {
    let limit = limit(params.get("limit"))?;
    let view = app.storage.view(&tenant.0);
    // Counting is CPU work: a million label pairs take a moment.
    let counted = tokio::task::spawn_blocking(move || (view.head_stats(limit), view.warnings()));
    let (stats, warnings) = counted.await.map_err(|e| ApiError::internal(format!("cannot count series: {e}")))?;
    success_json(&shape(&stats), &warnings)
}

fn limit(text: &str) -> Result<usize, ApiError> {
    if text.is_empty() {
        return Ok(LIMIT_DEFAULT);
    }
    match text.parse() {
        Ok(limit) if limit > 0 && limit <= LIMIT_MAX => Ok(limit),
        Ok(limit) if limit > 0 => Err(ApiError::bad_data(format!("limit must not exceed {LIMIT_MAX}"))),
        _ => Err(ApiError::bad_data("limit must be a positive number")),
    }
}

fn shape(stats: &HeadStats) -> Value {
    let c = &stats.cardinality;
    let (min, max) = stats.times_ms.unwrap_or((i64::MAX, i64::MIN));
    let plain = |list: &[(String, u64)]| list.iter().map(|(name, value)| Stat { name: name.clone(), value: *value }).collect::<Vec<_>>();
    let pairs: Vec<Stat> = c.series_by_pair.iter().map(|((name, value), n)| Stat { name: format!("{name}={value}"), value: *n }).collect();
    json!({
        "headStats": {
            "numSeries": c.series, "numLabelPairs": c.label_pairs, "chunkCount": stats.runs, "minTime": min, "maxTime": max,
        },
        "seriesCountByMetricName": plain(&c.series_by_metric),
        "labelValueCountByLabelName": plain(&c.values_by_label),
        "memoryInBytesByLabelName": plain(&c.bytes_by_label),
        "seriesCountByLabelValuePair": pairs,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use fletch_storage::index::Cardinality;
    use std::sync::Arc;

    #[test]
    fn the_shape_is_that_of_prometheus() {
        let cardinality = Cardinality {
            series: 3,
            label_names: 2,
            label_pairs: 4,
            series_by_metric: vec![("up".into(), 3)],
            values_by_label: vec![("host".into(), 3)],
            bytes_by_label: vec![("host".into(), 9)],
            series_by_pair: vec![(("__name__".into(), "up".into()), 3)],
        };
        let stats = HeadStats { cardinality: Arc::new(cardinality), runs: 2, times_ms: Some((1, 5)) };
        let expected = json!({
            "headStats": {"numSeries": 3, "numLabelPairs": 4, "chunkCount": 2, "minTime": 1, "maxTime": 5},
            "seriesCountByMetricName": [{"name": "up", "value": 3}],
            "labelValueCountByLabelName": [{"name": "host", "value": 3}],
            "memoryInBytesByLabelName": [{"name": "host", "value": 9}],
            "seriesCountByLabelValuePair": [{"name": "__name__=up", "value": 3}],
        });
        assert_eq!(shape(&stats), expected);
        let empty = HeadStats { cardinality: Arc::default(), runs: 0, times_ms: None };
        assert_eq!(shape(&empty)["headStats"]["minTime"], json!(i64::MAX));
    }

    #[test]
    fn limits_are_positive_and_bounded() {
        assert_eq!([limit("").ok(), limit("3").ok(), limit("10000").ok()], [Some(10), Some(3), Some(10_000)]);
        for text in ["0", "-1", "x", "10001"] {
            assert!(limit(text).is_err(), "{text}");
        }
    }
}
