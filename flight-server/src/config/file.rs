//! The config file as it is written.

use fletch_alerting::notify::webhook::WebhookSettings;
use fletch_common::Limits;
use fletch_common::limits::TenantOverrides;
use serde::{Deserialize, Deserializer};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Why a config file is refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// It cannot be read.
    #[error("cannot read config `{}`: {source}", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// It is not YAML, or not what a config is.
    #[error("config `{file}`: {why}")]
    Parse {
        /// Which file.
        file: String,
        /// Line, column and what is wrong.
        why: String,
    },
    /// A value makes no sense.
    #[error("config key `{key}`: {why}")]
    Value {
        /// Which key.
        key: String,
        /// What is wrong with it.
        why: String,
    },
}

type Ignored = serde_json::Value;

/// The whole file: prometheus.yml plus `fletch:`.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RawConfig {
    /// Prometheus' `global:`.
    pub global: Global,
    /// Rule files, globs allowed.
    pub rule_files: Vec<String>,
    /// Ours.
    pub fletch: Fletch,
    scrape_configs: Option<Ignored>,
    scrape_config_files: Option<Ignored>,
    alerting: Option<Ignored>,
    remote_write: Option<Ignored>,
    remote_read: Option<Ignored>,
    storage: Option<Ignored>,
    tracing: Option<Ignored>,
    otlp: Option<Ignored>,
    runtime: Option<Ignored>,
}

/// Prometheus' `global:`; what only scraping uses is accepted and not kept.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Global {
    /// How often rule groups without an interval are evaluated.
    #[serde(deserialize_with = "duration")]
    pub evaluation_interval: Option<Duration>,
    /// Labels put on alerts.
    pub external_labels: BTreeMap<String, String>,
}

/// The `fletch:` section.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Fletch {
    pub(super) data_dir: Option<PathBuf>,
    pub(super) http_addr: Option<SocketAddr>,
    pub(super) flight_addr: Option<SocketAddr>,
    pub(super) object_store: Option<String>,
    pub(super) metadata_store: Option<String>,
    pub(super) external_url: Option<String>,
    pub(super) kafka: Option<KafkaBus>,
    pub(super) sources: Sources,
    pub(super) alerting: Alerting,
    pub(super) stream_rule_files: Vec<String>,
    pub(super) rules_tenant: Option<String>,
    pub(super) tiers: Option<super::tiers::RawTiers>,
    #[serde(deserialize_with = "duration")]
    pub(super) flush_interval: Option<Duration>,
    pub(super) log_bytes_max: Option<u64>,
    pub(super) memory_bytes: Option<u64>,
    pub(super) limits: Limits,
    pub(super) tenants: BTreeMap<String, TenantSection>,
}

/// `fletch.tenants.<name>`: what differs for one tenant.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TenantSection {
    /// Its quotas; what is not given is as in `fletch.limits`.
    pub limits: TenantOverrides,
}

/// `fletch.kafka`: the bus.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct KafkaBus {
    /// `host:port,…`
    pub brokers: String,
    /// Topic of the bus.
    pub topic: String,
    /// Partitions of that topic when it is created.
    pub partitions: u32,
    /// Consumer group of the processes that share the store.
    pub group: String,
    /// Any librdkafka property.
    pub properties: BTreeMap<String, String>,
}

impl Default for KafkaBus {
    fn default() -> Self {
        Self { brokers: String::new(), topic: "fletch-bus".into(), partitions: 8, group: "fletch".into(), properties: BTreeMap::new() }
    }
}

/// `fletch.sources`.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Sources {
    pub(super) kafka: Vec<fletch_ingest::source::KafkaSource>,
}

/// `fletch.alerting`.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Alerting {
    pub(super) webhooks: Vec<WebhookSettings>,
}

impl RawConfig {
    /// Reads and parses a file.
    ///
    /// # Errors
    /// [`ConfigError::Read`], [`ConfigError::Parse`].
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        Self::parse(&path.display().to_string(), &text)
    }

    /// Parses the text of a file called `name`.
    ///
    /// # Errors
    /// [`ConfigError::Parse`].
    pub fn parse(name: &str, text: &str) -> Result<Self, ConfigError> {
        if text.lines().all(|line| line.trim().is_empty() || line.trim_start().starts_with('#')) {
            return Ok(Self::default());
        }
        serde_saphyr::from_str(text).map_err(|error| ConfigError::Parse { file: name.to_owned(), why: error.to_string() })
    }

    /// One warning per section that is there and has no effect yet.
    pub(super) fn not_acted_on(&self) -> Vec<String> {
        let sections = [
            ("scrape_configs", &self.scrape_configs),
            ("scrape_config_files", &self.scrape_config_files),
            ("alerting", &self.alerting),
            ("remote_write", &self.remote_write),
            ("remote_read", &self.remote_read),
            ("storage", &self.storage),
            ("tracing", &self.tracing),
            ("otlp", &self.otlp),
            ("runtime", &self.runtime),
        ];
        let there = sections.iter().filter(|(_, value)| value.is_some());
        there.map(|(name, _)| format!("config section `{name}` has no effect yet: this version neither scrapes nor forwards")).collect()
    }
}

fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    let text = Option::<String>::deserialize(deserializer)?;
    text.map(|t| parse_duration(&t).map_err(serde::de::Error::custom)).transpose()
}

/// A duration as Prometheus writes it: `15s`, `1h30m`, `500ms`.
///
/// # Errors
/// A text that says what is wrong.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let ms = fletch_promql::parse_duration(text).map_err(|error| format!("`{text}` is not a duration like `15s` or `1h30m`: {error}"))?;
    u64::try_from(ms).map(Duration::from_millis).map_err(|_| format!("duration `{text}` is negative"))
}
