//! From a file and flags to checked settings. Nothing else in the workspace reads a config file or an environment variable.
//!
//! ```text
//!  prometheus.yml (+ `fletch:`) ─▶ file::RawConfig ─┐
//!  flags ──────────────────────────────────────────┴─▶ Settings (checked, defaults filled in)
//! ```
//!
//! The top level of the file is that of prometheus.yml, so an unmodified one works. Its sections that Fletch does not act on yet are named in a
//! warning at the start; unknown keys are errors.

mod file;
mod tiers;

pub use file::{ConfigError, KafkaBus, RawConfig, TenantSection, parse_duration};
pub use tiers::TierSettings;

use fletch_alerting::notify::webhook::WebhookSettings;
use fletch_common::Limits;
use fletch_ingest::source::KafkaSource;
use fletch_schemas::TenantId;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What a run of `fletch serve` needs to know.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Folder of this process: log, metadata, and by default the store.
    pub data_dir: PathBuf,
    /// Where HTTP listens.
    pub http_addr: SocketAddr,
    /// Where Flight SQL listens.
    pub flight_addr: SocketAddr,
    /// URL of the object store, e.g. `file:///var/lib/fletch/store`.
    pub object_store: String,
    /// The bus, when it is Kafka.
    pub kafka: Option<KafkaBus>,
    /// Foreign topics to read.
    pub kafka_sources: Vec<KafkaSource>,
    /// URL of the metadata store: `sqlite://…` or `postgres://…`.
    pub metadata_store: String,
    /// Longest time that samples stay only in the log and in memory.
    pub flush_interval: Duration,
    /// Bytes that the embedded log may take on disk.
    pub log_bytes_max: u64,
    /// Bytes of decoded samples kept in memory; `None` = a quarter of the machine's memory.
    pub memory_bytes: Option<u64>,
    /// Prometheus rule files (globs are expanded later, relative to the config file).
    pub rule_files: Vec<String>,
    /// Streaming SQL rule files.
    pub stream_rule_files: Vec<String>,
    /// Default evaluation interval of rule groups.
    pub evaluation_interval: Duration,
    /// Labels put on alerts that leave this process.
    pub external_labels: Vec<(String, String)>,
    /// How users reach this server; links in notifications begin with it.
    pub external_url: String,
    /// Where alerts are sent.
    pub webhooks: Vec<WebhookSettings>,
    /// Tenant that rules read and write.
    pub rules_tenant: String,
    /// Which tiers are written, and how long rows are kept.
    pub tiers: TierSettings,
    /// Every bound.
    pub limits: Limits,
    /// What differs for some tenants.
    pub tenants: BTreeMap<TenantId, TenantSection>,
    /// Folder that relative paths of the config file start from.
    pub config_dir: PathBuf,
    /// What the file has and Fletch does not act on yet.
    pub warnings: Vec<String>,
}

/// What the command line says; `None` means "as in the file, or the default".
#[derive(Debug, Clone, Default)]
pub struct Flags {
    /// `--config`
    pub config: Option<PathBuf>,
    /// `--data-dir`
    pub data_dir: Option<PathBuf>,
    /// `--http-addr`
    pub http_addr: Option<SocketAddr>,
    /// `--flight-addr`
    pub flight_addr: Option<SocketAddr>,
    /// `--object-store`
    pub object_store: Option<String>,
    /// `--kafka-brokers`
    pub kafka_brokers: Option<String>,
    /// `--flush-interval`
    pub flush_interval: Option<Duration>,
}

impl Settings {
    /// Reads the file that the flags name (if any), lets flags win over it, fills in defaults and checks the result.
    ///
    /// # Errors
    /// [`ConfigError`], naming the file and the key or line.
    pub fn load(flags: &Flags) -> Result<Self, ConfigError> {
        let raw = match &flags.config {
            Some(path) => RawConfig::read(path)?,
            None => RawConfig::default(),
        };
        let config_dir = flags.config.as_deref().and_then(Path::parent).unwrap_or(Path::new("")).to_owned();
        Self::from_raw(raw, flags, config_dir)
    }

    fn from_raw(raw: RawConfig, flags: &Flags, config_dir: PathBuf) -> Result<Self, ConfigError> {
        let warnings = raw.not_acted_on();
        let fletch = raw.fletch;
        let data_dir = flags.data_dir.clone().or(fletch.data_dir).unwrap_or_else(|| "fletch-data".into());
        let data_dir = std::path::absolute(&data_dir)
            .map_err(|source| ConfigError::Value { key: "fletch.data_dir".into(), why: source.to_string() })?;
        let default_store = || format!("file://{}", data_dir.join("store").display());
        let default_metadata = || format!("sqlite://{}", data_dir.join("metadata.sqlite").display());
        let mut kafka = fletch.kafka;
        if let Some(brokers) = &flags.kafka_brokers {
            kafka.get_or_insert_default().brokers.clone_from(brokers);
        }
        if kafka.is_some() && flags.object_store.is_none() && fletch.object_store.is_none() {
            tracing::warn!(
                "the bus is kafka and the object store is a local folder: other processes on this bus need `--object-store` with one shared store"
            );
        }
        KafkaSource::check_all(&fletch.sources.kafka)
            .map_err(|error| ConfigError::Value { key: "fletch.sources.kafka".into(), why: error.to_string() })?;
        let http_addr = flags.http_addr.or(fletch.http_addr).unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 9090)));
        let external_url = fletch.external_url.unwrap_or_else(|| format!("http://{http_addr}"));
        Ok(Self {
            http_addr,
            flight_addr: flags.flight_addr.or(fletch.flight_addr).unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 31337))),
            object_store: flags.object_store.clone().or(fletch.object_store).unwrap_or_else(default_store),
            kafka,
            kafka_sources: fletch.sources.kafka,
            metadata_store: fletch.metadata_store.unwrap_or_else(default_metadata),
            flush_interval: flags.flush_interval.or(fletch.flush_interval).unwrap_or(Duration::from_secs(300)),
            log_bytes_max: fletch.log_bytes_max.unwrap_or(1 << 30),
            memory_bytes: fletch.memory_bytes,
            rule_files: raw.rule_files,
            stream_rule_files: fletch.stream_rule_files,
            evaluation_interval: raw.global.evaluation_interval.unwrap_or(Duration::from_secs(60)),
            external_labels: raw.global.external_labels.into_iter().collect(),
            external_url,
            webhooks: fletch.alerting.webhooks,
            rules_tenant: fletch.rules_tenant.unwrap_or_else(|| "default".into()),
            tiers: TierSettings::of(fletch.tiers)?,
            tenants: tenants_of(fletch.tenants)?,
            limits: fletch.limits,
            config_dir,
            warnings,
            data_dir,
        })
    }
}

fn tenants_of(sections: BTreeMap<String, TenantSection>) -> Result<BTreeMap<TenantId, TenantSection>, ConfigError> {
    let named = sections.into_iter().map(|(name, section)| {
        let refused = |why: String| ConfigError::Value { key: format!("fletch.tenants.{name}"), why };
        TenantId::new(&name).map(|tenant| (tenant, section)).map_err(|e| refused(e.to_string()))
    });
    named.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tenants_change_what_they_name_and_keep_the_rest() {
        let text = "fletch:\n  limits: {series_max: 100, samples_per_second_max: 5}\n  tenants:\n    big: {limits: {series_max: 0}}\n    b.c: {}\n";
        let quotas = load(text).expect("valid").quotas();
        let of = |name: &str| quotas.of(&TenantId::new(name).expect("valid")).clone();
        assert_eq!((of("other").series_max, of("other").samples_per_second_max), (100, 5));
        assert_eq!((of("big").series_max, of("big").samples_per_second_max), (0, 5));
        assert_eq!(of("b.c"), of("other"));
        assert!(quotas.limits_series() && !load("").expect("valid").quotas().limits_series());
        for (text, culprit) in
            [("fletch:\n  tenants:\n    'a/b': {}\n", "a/b"), ("fletch:\n  tenants:\n    a: {limits: {nope: 1}}\n", "nope")]
        {
            let error = load(text).expect_err("refused").to_string();
            assert!(error.contains(culprit), "{error}");
        }
    }

    fn load(text: &str) -> Result<Settings, ConfigError> {
        Settings::from_raw(RawConfig::parse("test.yml", text)?, &Flags::default(), PathBuf::new())
    }

    #[test]
    fn an_unmodified_prometheus_yml_works_and_says_what_is_not_acted_on() {
        let text = "global:\n  scrape_interval: 15s\n  evaluation_interval: 30s\nalerting:\n  alertmanagers:\n  - static_configs:\n    - targets: []\n\
                    rule_files:\n- first.yml\nscrape_configs:\n- job_name: prometheus\n  static_configs:\n  - targets: ['localhost:9090']\n";
        let settings = load(text).expect("valid");
        assert_eq!(settings.evaluation_interval, Duration::from_secs(30));
        assert_eq!(settings.rule_files, ["first.yml"]);
        assert_eq!(settings.warnings.len(), 2, "{:?}", settings.warnings);
    }

    #[test]
    fn unknown_keys_are_refused_by_name() {
        for (text, culprit) in
            [("globl: {}\n", "globl"), ("fletch:\n  data_dri: x\n", "data_dri"), ("fletch:\n  limits:\n    nope: 1\n", "nope")]
        {
            let error = load(text).expect_err("unknown key").to_string();
            assert!(error.contains(culprit) && error.contains("test.yml"), "{error}");
        }
    }

    #[test]
    fn defaults_are_those_of_the_help_text() {
        let settings = load("").expect("an empty file is valid");
        assert_eq!(settings.http_addr.to_string(), "127.0.0.1:9090");
        assert_eq!(settings.flight_addr.to_string(), "127.0.0.1:31337");
        assert!(settings.object_store.ends_with("fletch-data/store"), "{}", settings.object_store);
    }

    #[test]
    fn tiers_and_retentions_are_chosen_table_by_table() {
        use fletch_schemas::tables::Table;
        const DAY_MS: i64 = 86_400_000;
        let usual = load("").expect("valid").tiers;
        assert_eq!(usual.tiers.len(), 3);
        assert_eq!(usual.policy.defaults.values().map(|ms| ms / DAY_MS).collect::<Vec<_>>(), [7, 30, 90, 365]);
        assert!(load("fletch:\n  tiers: false\n").expect("valid").tiers.policy.is_off(), "as before: nothing expires");
        let text = "fletch:\n  tiers:\n    raw: 0\n    5m: false\n    1h: 15d\n    overrides:\n    - metric: node_.*\n      raw: 1d\n    - tenant: a\n      1m: 2d\n";
        let some = load(text).expect("valid").tiers;
        assert_eq!(some.tiers.iter().map(|t| t.name).collect::<Vec<_>>(), ["1m", "1h"]);
        assert_eq!(some.policy.defaults.get(&Table::Samples), Some(&0));
        assert_eq!(some.policy.defaults.get(&Table::Samples1h), Some(&(15 * DAY_MS)));
        assert_eq!(some.policy.overrides.len(), 2);
        assert!(!some.policy.is_off());
    }

    #[test]
    fn wrong_tiers_are_refused_by_key() {
        for (text, culprit) in [
            ("    2m: 1d\n", "fletch.tiers.2m"),
            ("    raw: 7\n", "fletch.tiers.raw"),
            ("    raw: false\n", "fletch.tiers.raw"),
            ("    raw: seven days\n", "fletch.tiers.raw"),
            ("    overrides:\n    - metric: '('\n      raw: 1d\n", "fletch.tiers.overrides[0].metric"),
            ("    overrides:\n    - metric: x\n", "fletch.tiers.overrides[0]"),
            ("    1h: false\n    overrides:\n    - 1h: 1d\n", "fletch.tiers.overrides[0].1h"),
        ] {
            let error = load(&format!("fletch:\n  tiers:\n{text}")).expect_err("wrong").to_string();
            assert!(error.contains(culprit), "{error}");
        }
    }
}
