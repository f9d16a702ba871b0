//! `fletch.tiers`: which tiers are written, and how long rows of each table are kept.
//!
//! ```yaml
//! fletch:
//!   tiers:              # or `true` (the defaults below), or `false` (no tiers, nothing expires)
//!     raw: 7d           # 0: for ever
//!     1m: 30d
//!     5m: 90d
//!     1h: 365d          # false: this tier is not written
//!     overrides:        # the first one that names tenant, metric and table counts
//!     - tenant: team-a  # left out: every tenant
//!       metric: node_.* # a regular expression for whole names; left out: every metric
//!       raw: 30d
//! ```

use super::file::{ConfigError, parse_duration};
use fletch_schemas::TenantId;
use fletch_schemas::tables::Table;
use fletch_storage::retention::{Keep, MetricPattern, Override, Policy};
use fletch_storage::tiers::Tier;
use serde::Deserialize;
use std::collections::BTreeMap;

/// Most overrides: each row's metric is compared with all of its tenant's.
const OVERRIDES_MAX: usize = 1_000;

/// As it is written.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub(super) enum RawTiers {
    /// All or none.
    All(bool),
    /// Table by table.
    Each(RawTables),
}

/// As it is written, table by table. Unknown keys are refused by [`TierSettings::of`], which can name them.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct RawTables {
    overrides: Vec<BTreeMap<String, Value>>,
    #[serde(flatten)]
    tables: BTreeMap<String, Value>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
enum Value {
    Switch(bool),
    Number(u64),
    Text(String),
}

/// Which tiers are written, and how long rows are kept.
#[derive(Debug, Clone)]
pub struct TierSettings {
    /// Narrow windows first.
    pub tiers: Vec<Tier>,
    /// Retentions of raw and of `tiers`.
    pub policy: Policy,
}

impl TierSettings {
    /// Checks what is written.
    ///
    /// # Errors
    /// [`ConfigError::Value`], naming the key.
    pub(super) fn of(raw: Option<RawTiers>) -> Result<Self, ConfigError> {
        let mut settings = Self { tiers: Tier::ALL.to_vec(), policy: Policy::usual() };
        let each = match raw {
            None | Some(RawTiers::All(true)) => return Ok(settings),
            Some(RawTiers::All(false)) => return Ok(Self { tiers: Vec::new(), policy: Policy::default() }),
            Some(RawTiers::Each(each)) => each,
        };
        for (name, value) in &each.tables {
            let key = format!("fletch.tiers.{name}");
            let table = table_of(name).ok_or_else(|| wrong(&key, "unknown; there are `raw`, `1m`, `5m`, `1h` and `overrides`"))?;
            match value {
                Value::Switch(false) if table != Table::Samples => {
                    settings.tiers.retain(|tier| tier.table != table);
                    settings.policy.defaults.remove(&table);
                }
                Value::Switch(true) => {}
                value => drop(settings.policy.defaults.insert(table, keep_ms(&key, value)?)),
            }
        }
        if each.overrides.len() > OVERRIDES_MAX {
            return Err(wrong("fletch.tiers.overrides", &format!("{} of them, at most {OVERRIDES_MAX}", each.overrides.len())));
        }
        for (n, other) in each.overrides.iter().enumerate() {
            let written = override_of(&format!("fletch.tiers.overrides[{n}]"), other, &settings.tiers)?;
            settings.policy.overrides.push(written);
        }
        Ok(settings)
    }
}

fn override_of(key: &str, raw: &BTreeMap<String, Value>, tiers: &[Tier]) -> Result<Override, ConfigError> {
    let mut found = Override { keep: Keep::new(), ..Override::default() };
    for (name, value) in raw {
        let key = format!("{key}.{name}");
        match (name.as_str(), value) {
            ("tenant", Value::Text(text)) => found.tenant = Some(TenantId::new(text).map_err(|e| wrong(&key, &e.to_string()))?),
            ("metric", Value::Text(text)) => found.metric = Some(MetricPattern::new(text).map_err(|e| wrong(&key, &e.to_string()))?),
            (name, value) => {
                let table = table_of(name).ok_or_else(|| wrong(&key, "unknown; there are `tenant`, `metric`, `raw`, `1m`, `5m`, `1h`"))?;
                if table != Table::Samples && !tiers.iter().any(|tier| tier.table == table) {
                    return Err(wrong(&key, "this tier is not written"));
                }
                found.keep.insert(table, keep_ms(&key, value)?);
            }
        }
    }
    if found.keep.is_empty() { Err(wrong(key, "it names no retention (`raw`, `1m`, `5m`, `1h`)")) } else { Ok(found) }
}

fn table_of(name: &str) -> Option<Table> {
    if name == "raw" { Some(Table::Samples) } else { Tier::named(name).map(|tier| tier.table) }
}

/// A retention in milliseconds: a duration, or 0 for ever.
fn keep_ms(key: &str, value: &Value) -> Result<i64, ConfigError> {
    match value {
        Value::Number(0) => Ok(0),
        Value::Text(text) if text == "0" => Ok(0),
        Value::Text(text) => {
            let keep = parse_duration(text).map_err(|why| wrong(key, &why))?;
            i64::try_from(keep.as_millis()).map_err(|_| wrong(key, "longer than time is counted"))
        }
        Value::Number(n) => Err(wrong(key, &format!("`{n}` has no unit; write a duration like `30d`, or 0 for ever"))),
        Value::Switch(_) => Err(wrong(key, "write a duration like `30d`, or 0 for ever")),
    }
}

fn wrong(key: &str, why: &str) -> ConfigError {
    ConfigError::Value { key: key.to_owned(), why: why.to_owned() }
}
