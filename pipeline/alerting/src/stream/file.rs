//! Streaming rule files: a YAML list of `name, sql, for, keep_firing_for, lateness, labels, annotations`.

use fletch_promql::parse_duration;
use serde::{Deserialize, Deserializer};
use std::collections::BTreeMap;

/// How far the watermark stays behind the append times when a rule does not say, in milliseconds.
pub const LATENESS_DEFAULT_MS: i64 = 10_000;

/// One rule as it is written.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StreamRuleSpec {
    /// `alertname` of its alerts.
    pub name: String,
    /// `SELECT … FROM m."metric" … GROUP BY …, tumble(time, INTERVAL '…') HAVING …`.
    pub sql: String,
    /// How long the condition must hold, in milliseconds.
    #[serde(default, rename = "for", deserialize_with = "duration")]
    pub hold_ms: i64,
    /// How long an alert stays after the condition went, in milliseconds.
    #[serde(default, rename = "keep_firing_for", deserialize_with = "duration")]
    pub keep_firing_ms: i64,
    /// How late a sample may arrive and still count, in milliseconds.
    #[serde(default = "lateness_default", rename = "lateness", deserialize_with = "duration")]
    pub lateness_ms: i64,
    /// Labels put on its alerts.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Annotations, Go templates as in Prometheus rules.
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
}

fn lateness_default() -> i64 {
    LATENESS_DEFAULT_MS
}

fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<i64, D::Error> {
    let text = String::deserialize(deserializer)?;
    parse_duration(&text).map_err(|e| serde::de::Error::custom(format!("`{text}` is not a duration like `30s` or `5m`: {e}")))
}

/// Reads the text of a file called `name`.
///
/// # Errors
/// A sentence that names the file and what is wrong where.
pub fn parse(name: &str, text: &str) -> Result<Vec<StreamRuleSpec>, String> {
    let rules: Vec<StreamRuleSpec> = serde_saphyr::from_str(text).map_err(|e| format!("{name}: {e}"))?;
    let mut seen = std::collections::HashSet::new();
    for rule in &rules {
        if rule.name.is_empty() {
            return Err(format!("{name}: a rule has an empty name"));
        }
        if !seen.insert(&rule.name) {
            return Err(format!("{name}: rule `{}` is there twice; give each a name of its own", rule.name));
        }
    }
    Ok(rules)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_is_read_with_its_defaults() {
        let rules =
            parse("r.yml", "- name: A\n  sql: SELECT 1\n- name: B\n  sql: SELECT 2\n  for: 1m30s\n  lateness: 2s\n  labels: {a: b}\n")
                .expect("valid");
        assert_eq!((rules[0].hold_ms, rules[0].lateness_ms), (0, LATENESS_DEFAULT_MS));
        assert_eq!((rules[1].hold_ms, rules[1].lateness_ms, rules[1].labels["a"].as_str()), (90_000, 2_000, "b"));
    }

    #[test]
    fn mistakes_are_named() {
        for (text, word) in [
            ("- name: A\n  sql: x\n  fro: 1m\n", "fro"),
            ("- name: A\n  sql: x\n- name: A\n  sql: y\n", "`A`"),
            ("- name: A\n  sql: x\n  for: soon\n", "soon"),
            ("- name: A\n", "sql"),
        ] {
            let error = parse("r.yml", text).expect_err(text);
            assert!(error.starts_with("r.yml") && error.contains(word), "{error}");
        }
    }
}
