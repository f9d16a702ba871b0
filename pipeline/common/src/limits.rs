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
    /// Most active series of a tenant; new ones above are refused, known ones go on. 0 = no limit, here and in the four below.
    pub series_max: u64,
    /// Most active series of one metric of a tenant.
    pub series_per_metric_max: u64,
    /// Most values of one label among the active series of a tenant.
    pub values_per_label_max: u64,
    /// Most samples a second of one tenant on the push APIs; above: 429 with Retry-After.
    pub samples_per_second_max: u64,
    /// How many samples may come at once; 0 = ten seconds of the rate.
    pub samples_burst_max: u64,
    /// Active series of all tenants together above which there is an alarm. 0 = never, here and in the two below.
    pub alarm_series: u64,
    /// Active series of one metric of a tenant above which there is an alarm.
    pub alarm_series_per_metric: u64,
    /// Values of one label of a tenant above which there is an alarm.
    pub alarm_values_per_label: u64,
}

/// The limits that can differ from tenant to tenant; 0 = no limit. Their meaning is that of the fields of [`Limits`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TenantLimits {
    /// Most active series.
    pub series_max: u64,
    /// Most active series of one metric.
    pub series_per_metric_max: u64,
    /// Most values of one label.
    pub values_per_label_max: u64,
    /// Most samples a second.
    pub samples_per_second_max: u64,
    /// Most samples at once; 0 = ten seconds of the rate.
    pub samples_burst_max: u64,
}

impl TenantLimits {
    /// Whether new series have to be checked at all.
    pub fn limits_series(&self) -> bool {
        self.series_max > 0 || self.series_per_metric_max > 0 || self.values_per_label_max > 0
    }
}

/// What a tenant's section in the config file (`fletch.tenants.<name>.limits`) changes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TenantOverrides {
    /// As in [`TenantLimits`], like all below.
    pub series_max: Option<u64>,
    /// See there.
    pub series_per_metric_max: Option<u64>,
    /// See there.
    pub values_per_label_max: Option<u64>,
    /// See there.
    pub samples_per_second_max: Option<u64>,
    /// See there.
    pub samples_burst_max: Option<u64>,
}

impl Limits {
    /// What holds for tenants that the config file does not name.
    pub fn of_tenants(&self) -> TenantLimits {
        TenantLimits {
            series_max: self.series_max,
            series_per_metric_max: self.series_per_metric_max,
            values_per_label_max: self.values_per_label_max,
            samples_per_second_max: self.samples_per_second_max,
            samples_burst_max: self.samples_burst_max,
        }
    }
}

impl TenantOverrides {
    /// What holds for the tenant.
    pub fn over(&self, default: &TenantLimits) -> TenantLimits {
        TenantLimits {
            series_max: self.series_max.unwrap_or(default.series_max),
            series_per_metric_max: self.series_per_metric_max.unwrap_or(default.series_per_metric_max),
            values_per_label_max: self.values_per_label_max.unwrap_or(default.values_per_label_max),
            samples_per_second_max: self.samples_per_second_max.unwrap_or(default.samples_per_second_max),
            samples_burst_max: self.samples_burst_max.unwrap_or(default.samples_burst_max),
        }
    }
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
            series_max: 0,
            series_per_metric_max: 0,
            values_per_label_max: 0,
            samples_per_second_max: 0,
            samples_burst_max: 0,
            alarm_series: 10_000_000,
            alarm_series_per_metric: 10_000,
            alarm_values_per_label: 1_000,
        }
    }
}
