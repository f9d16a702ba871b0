//! What alerting asks of the other stages: PromQL at a time, and stored samples for streaming windows.

use super::rules_tenant;
use crate::config::Settings;
use anyhow::Context;
use async_trait::async_trait;
use fletch_alerting::rules::file::Defaults;
use fletch_alerting::stream::{FrozenSamples, SampleHistory};
use fletch_alerting::{Alerting, InstantQuery, store};
use fletch_common::{Limits, SharedClock};
use fletch_ingest::SeriesRegistry;
use fletch_query::ViewSource;
use fletch_query::engine::{Engine, InstantQuery as PromqlQuery, QueryOptions, Value};
use fletch_schemas::{Labels, METRIC_NAME, Matcher, SeriesSet, TenantId};
use fletch_storage::view::SelectLimits;
use fletch_storage::{ReadView, Storage};
use prometheus_client::registry::Registry;
use std::sync::Arc;

/// Opens the metadata store and starts the rules.
pub(super) async fn start_alerting(
    settings: &Settings,
    storage: &Arc<Storage>,
    engine: &Arc<Engine>,
    registry: &Arc<SeriesRegistry>,
    clock: &SharedClock,
    metrics: &mut Registry,
) -> anyhow::Result<Arc<Alerting>> {
    let state = store::open(&settings.metadata_store).await.context("config key `fletch.metadata_store`")?;
    let relative = |patterns: &[String]| patterns.iter().map(|p| settings.config_dir.join(p).display().to_string()).collect::<Vec<_>>();
    let alerting_settings = fletch_alerting::Settings {
        tenant: rules_tenant(settings)?,
        rule_files: relative(&settings.rule_files),
        stream_rule_files: relative(&settings.stream_rule_files),
        defaults: Defaults {
            interval_ms: i64::try_from(settings.evaluation_interval.as_millis()).unwrap_or(60_000),
            ..Defaults::default()
        },
        external_url: settings.external_url.clone(),
        external_labels: Labels::from_pairs(settings.external_labels.iter().map(|(n, v)| (n, v)))
            .context("config key `global.external_labels`")?,
        webhooks: settings.webhooks.clone(),
        ..fletch_alerting::Settings::default()
    };
    let answers = Arc::new(Answers { storage: storage.clone(), engine: engine.clone(), limits: settings.limits.clone() });
    let streams = fletch_alerting::Streams { registry: registry.clone(), history: answers.clone() };
    let metrics = fletch_alerting::Metrics::new(metrics);
    Ok(Alerting::start(alerting_settings, answers, streams, state, clock.clone(), metrics).await?)
}

#[derive(Debug)]
struct Answers {
    storage: Arc<Storage>,
    engine: Arc<Engine>,
    limits: Limits,
}

#[async_trait]
impl InstantQuery for Answers {
    async fn instant(&self, tenant: &TenantId, promql: &str, at_ms: i64) -> Result<Vec<(Labels, f64)>, String> {
        let source = ViewSource::new(self.storage.view(tenant), &self.limits);
        let query = PromqlQuery { text: promql, at_ms, options: QueryOptions::default() };
        let result = self.engine.instant(&source, query).await.map_err(|e| e.to_string())?;
        match result.value {
            Value::Scalar { value, .. } => Ok(vec![(Labels::empty(), value)]),
            Value::Vector(matrix) => Ok((0..matrix.rows())
                .filter(|row| matrix.mask(*row).has(0))
                .map(|row| (matrix.labels(row).clone(), matrix.values(row)[0]))
                .collect()),
            Value::Text { .. } => Err("the expression is a string: a rule needs numbers".into()),
            Value::Matrix(_) | Value::Samples(_) => {
                Err("the expression is a range vector: a rule needs an instant vector or a scalar".into())
            }
        }
    }
}

impl SampleHistory for Answers {
    fn freeze(&self, tenant: &TenantId) -> Arc<dyn FrozenSamples> {
        Arc::new(Frozen { view: self.storage.view(tenant), limits: (&self.limits).into() })
    }
}

#[derive(Debug)]
struct Frozen {
    view: ReadView,
    limits: SelectLimits,
}

#[async_trait]
impl FrozenSamples for Frozen {
    async fn since(&self, metric: &str, from_ms: i64) -> Result<SeriesSet, String> {
        let matchers = [Matcher::equal(METRIC_NAME, metric)];
        self.view.select(&matchers, from_ms, i64::MAX / 4, &self.limits).await.map_err(|e| e.to_string())
    }
}
