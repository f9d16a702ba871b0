//! Every bound that protects the process, by name. One place, so that `--help`, the config reference and errors agree.

use serde::{Deserialize, Serialize};

/// Limits of one deployment; in the config file under `fletch.limits`, same names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Longest label name, in bytes.
    pub label_name_bytes_max: usize,
    /// Longest label value (metric names included), in bytes.
    pub label_value_bytes_max: usize,
    /// Most labels of one series, the metric name included.
    pub labels_per_series_max: usize,
    /// Largest request body as it comes over the wire, in bytes.
    pub request_bytes_max: usize,
    /// Largest request body after decompression, in bytes.
    pub request_decompressed_bytes_max: usize,
    /// Most samples of one request.
    pub request_samples_max: usize,
    /// Longest PromQL query, in bytes.
    pub promql_bytes_max: usize,
    /// Deepest nesting of a PromQL expression.
    pub promql_depth_max: usize,
    /// Longest SQL statement, in bytes.
    pub sql_bytes_max: usize,
    /// Most chained operators of one SQL expression (planning is quadratic in them).
    pub sql_chain_max: usize,
    /// Longest regular expression, in bytes.
    pub regex_bytes_max: usize,
    /// Most samples that one query may load.
    pub query_samples_max: usize,
    /// Most series that one selector may return.
    pub query_series_max: usize,
    /// Points per series of a range query (Prometheus' limit).
    pub query_points_max: usize,
    /// Most rows of one SQL answer over HTTP.
    pub sql_rows_max: usize,
    /// Longest run of a query, in seconds.
    pub query_seconds_max: u64,
    /// Queries that run at the same time; more wait in line until their deadline.
    pub queries_concurrent_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            label_name_bytes_max: 1_024,
            label_value_bytes_max: 4_096,
            labels_per_series_max: 60,
            request_bytes_max: 32 << 20,
            request_decompressed_bytes_max: 32 << 20,
            request_samples_max: 1_000_000,
            promql_bytes_max: 16 << 10,
            promql_depth_max: 200,
            sql_bytes_max: 64 << 10,
            sql_chain_max: 200,
            regex_bytes_max: 4 << 10,
            query_samples_max: 100_000_000,
            query_series_max: 1_000_000,
            query_points_max: 11_000,
            sql_rows_max: 10_000_000,
            query_seconds_max: 60,
            queries_concurrent_max: 32,
        }
    }
}
