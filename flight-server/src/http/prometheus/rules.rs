//! `/api/v1/rules` and `/api/v1/alerts`.

use super::params::Params;
use super::success_json;
use crate::http::Shared;
use crate::http::error::ApiError;
use crate::http::tenant::Tenant;
use axum::response::Response;
use fletch_alerting::rules::snapshot::{AlertsSnapshot, RulesFilter, RulesSnapshot};
use fletch_schemas::TenantId;

pub(super) async fn rules(app: Shared, tenant: Tenant, params: Params) -> Result<Response, ApiError> {
    let kind = params.get("type");
    if !matches!(kind, "" | "alert" | "record") {
        return Err(ApiError::parameter("type", format!("not supported value {kind:?}")));
    }
    let all = |name: &str| params.all(name).map(str::to_owned).collect::<Vec<_>>();
    let filter = RulesFilter {
        rule_names: all("rule_name[]"),
        groups: all("rule_group[]"),
        files: all("file[]"),
        exclude_alerts: matches!(params.get("exclude_alerts"), "true" | "1"),
    };
    // Recording rules are refused when a file is loaded, so there are none to list.
    let none = kind == "record" || !owns_rules(&app, &tenant.0);
    let snapshot = if none { RulesSnapshot { groups: Vec::new() } } else { app.alerting.rules(&filter) };
    success_json(&snapshot, &[])
}

pub(super) async fn alerts(app: Shared, tenant: Tenant) -> Result<Response, ApiError> {
    let snapshot = if owns_rules(&app, &tenant.0) { app.alerting.alerts() } else { AlertsSnapshot { alerts: Vec::new() } };
    success_json(&snapshot, &[])
}

/// Rule files work for one tenant; others see no rules and no alerts of it.
fn owns_rules(app: &Shared, tenant: &TenantId) -> bool {
    app.settings.rules_tenant == tenant.as_str()
}
