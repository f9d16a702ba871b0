//! Prometheus rule files: from YAML to checked groups.
//!
//! ```text
//!  rule_files patterns ─▶ paths ─▶ YAML ─▶ raw structs (as written) ─▶ Group, Rule (checked: PromQL, templates, names)
//! ```
//!
//! Everything wrong in a file is reported, not only the first; an error names file, line, group, rule. Unknown fields are errors.
//!
//! # Not here
//! Recording rules are refused by name. Streaming rules have files of their own.

use crate::state::{Id, Policy};
use crate::template::Template;
use fletch_promql::{ParseLimits, parse_duration, parse_expr};
use fletch_schemas::{METRIC_NAME, TenantId};
use serde::Deserialize;
use serde_saphyr::Spanned;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};

/// Largest rule file, in bytes.
pub const FILE_BYTES_MAX: u64 = 16 << 20;

/// Something wrong in a rule file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct RuleError {
    /// The file.
    pub file: String,
    /// Line and column, from 1, where known.
    pub position: Option<(u64, u64)>,
    /// The group, where it is about one.
    pub group: Option<String>,
    /// Number in the group (from 1) and name of the rule, where it is about one.
    pub rule: Option<(usize, String)>,
    /// What is wrong.
    pub reason: String,
}

impl fmt::Display for RuleError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.file)?;
        if let Some((line, column)) = self.position {
            write!(f, "{line}:{column}: ")?;
        }
        if let Some(group) = &self.group {
            write!(f, "group {group:?}, ")?;
        }
        if let Some((number, name)) = &self.rule {
            write!(f, "rule {number}, {name:?}: ")?;
        }
        f.write_str(&self.reason)
    }
}

/// An alerting rule.
#[derive(Debug, Clone)]
pub struct Rule {
    /// Identity over restarts: hash of tenant, file, group, name, labels and the number of equal ones before it.
    pub id: Id,
    /// Name; becomes the `alertname` label.
    pub name: String,
    /// The expression in canonical form.
    pub expr: String,
    /// `for` and `keep_firing_for`; its limit is the group's.
    pub policy: Policy,
    /// Labels of the group and the rule, ascending by name, as templates.
    pub labels: Vec<(String, Template)>,
    /// Annotations, ascending by name, as templates.
    pub annotations: Vec<(String, Template)>,
}

/// A group of rules.
#[derive(Debug, Clone)]
pub struct Group {
    /// The file it is in.
    pub file: String,
    /// Its name, unique in the file.
    pub name: String,
    /// How often it is evaluated, in milliseconds.
    pub interval_ms: i64,
    /// How far in the past it is evaluated, in milliseconds.
    pub query_offset_ms: i64,
    /// Most alerts of each rule; 0 = no limit.
    pub limit: usize,
    /// Its rules, in order of evaluation.
    pub rules: Vec<Rule>,
}

/// What a file does not say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Defaults {
    /// Prometheus' `global.evaluation_interval`, in milliseconds.
    pub interval_ms: i64,
    /// Prometheus' `global.rule_query_offset`, in milliseconds.
    pub query_offset_ms: i64,
}

impl Default for Defaults {
    fn default() -> Self {
        Self { interval_ms: 60_000, query_offset_ms: 0 }
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawFile {
    #[serde(default)]
    groups: Option<Vec<Spanned<RawGroup>>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawGroup {
    #[serde(default)]
    name: String,
    interval: Option<String>,
    query_offset: Option<String>,
    limit: Option<i64>,
    labels: Option<BTreeMap<String, String>>,
    rules: Option<Vec<Spanned<RawRule>>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRule {
    record: Option<String>,
    alert: Option<String>,
    #[serde(default)]
    expr: Option<Spanned<String>>,
    #[serde(rename = "for")]
    hold: Option<String>,
    keep_firing_for: Option<String>,
    labels: Option<BTreeMap<String, String>>,
    annotations: Option<BTreeMap<String, String>>,
}

/// The files that `rule_files` patterns name, in order, each once. A pattern may match nothing; a plain path must exist.
///
/// # Errors
/// Every pattern that is malformed or names no file.
pub fn expand(patterns: &[String]) -> Result<Vec<PathBuf>, Vec<RuleError>> {
    let mut paths = BTreeSet::new();
    let mut errors = Vec::new();
    for pattern in patterns {
        let plain = !pattern.contains(['*', '?', '[']);
        if plain && !Path::new(pattern).is_file() {
            errors.push(file_error(pattern, format!("{pattern:?} does not point to an existing file")));
            continue;
        }
        if plain {
            paths.insert(PathBuf::from(pattern));
            continue;
        }
        match glob::glob(pattern) {
            Ok(matches) => paths.extend(matches.filter_map(Result::ok).filter(|p| p.is_file())),
            Err(error) => errors.push(file_error(pattern, format!("not a valid pattern: {error}"))),
        }
    }
    if errors.is_empty() { Ok(paths.into_iter().collect()) } else { Err(errors) }
}

/// Reads and checks one file.
///
/// # Errors
/// Everything wrong in it.
pub fn read(path: &Path, tenant: &TenantId, defaults: Defaults) -> Result<Vec<Group>, Vec<RuleError>> {
    let name = path.display().to_string();
    let size = std::fs::metadata(path).map_err(|e| vec![file_error(&name, e.to_string())])?.len();
    if size > FILE_BYTES_MAX {
        return Err(vec![file_error(&name, format!("the file is {size} bytes long, at most {FILE_BYTES_MAX} are allowed"))]);
    }
    let text = std::fs::read_to_string(path).map_err(|e| vec![file_error(&name, e.to_string())])?;
    parse(&name, &text, tenant, defaults)
}

/// Checks the text of one file.
///
/// # Errors
/// Everything wrong in it.
pub fn parse(file: &str, text: &str, tenant: &TenantId, defaults: Defaults) -> Result<Vec<Group>, Vec<RuleError>> {
    if text.lines().all(|line| line.trim().is_empty() || line.trim_start().starts_with('#') || line.trim() == "---") {
        return Ok(Vec::new());
    }
    let raw: RawFile = serde_saphyr::from_str(text).map_err(|error| vec![yaml_error(file, &error)])?;
    let mut checker = Checker { file, tenant, defaults, errors: Vec::new() };
    let groups = raw.groups.unwrap_or_default().into_iter();
    let mut names = BTreeSet::new();
    let mut checked = Vec::new();
    for group in groups {
        let at = position(&group);
        let name = group.value.name.clone();
        if name.is_empty() {
            checker.error(at, None, None, "groupname must not be empty".to_owned());
        } else if !names.insert(name.clone()) {
            checker.error(at, None, None, format!("groupname: {name:?} is repeated in the same file"));
        }
        checked.push(checker.group(at, group.value));
    }
    if checker.errors.is_empty() { Ok(checked) } else { Err(checker.errors) }
}

fn file_error(file: &str, reason: String) -> RuleError {
    RuleError { file: file.to_owned(), position: None, group: None, rule: None, reason }
}

fn yaml_error(file: &str, error: &serde_saphyr::Error) -> RuleError {
    let position = error.location().map(|at| (at.line(), at.column()));
    // The first line says it; what follows is a drawing of the place.
    let text = error.to_string();
    let line = text.lines().next().unwrap_or_default().trim_start_matches("error: ");
    let prefix = position.map(|(line, column)| format!("line {line} column {column}: ")).unwrap_or_default();
    let reason = line.strip_prefix(prefix.as_str()).unwrap_or(line);
    RuleError { file: file.to_owned(), position, group: None, rule: None, reason: format!("yaml: {reason}") }
}

type Position = (u64, u64);

fn position<T>(spanned: &Spanned<T>) -> Position {
    (spanned.referenced.line(), spanned.referenced.column())
}

struct Checker<'a> {
    file: &'a str,
    tenant: &'a TenantId,
    defaults: Defaults,
    errors: Vec<RuleError>,
}

/// What names a rule in errors.
#[derive(Clone, Copy)]
struct At<'a> {
    position: Position,
    group: &'a str,
    number: usize,
    name: &'a str,
}

impl Checker<'_> {
    fn error(&mut self, at: Position, group: Option<&str>, rule: Option<(usize, String)>, reason: String) {
        self.errors.push(RuleError { file: self.file.to_owned(), position: Some(at), group: group.map(str::to_owned), rule, reason });
    }

    fn rule_error(&mut self, at: At<'_>, reason: impl Into<String>) {
        self.error(at.position, Some(at.group), Some((at.number, at.name.to_owned())), reason.into());
    }

    fn group(&mut self, at: Position, raw: RawGroup) -> Group {
        let name = raw.name;
        let interval_ms = self.group_duration(at, &name, "interval", raw.interval).filter(|ms| *ms > 0);
        let query_offset_ms = self.group_duration(at, &name, "query_offset", raw.query_offset);
        let limit = usize::try_from(raw.limit.unwrap_or(0)).unwrap_or_else(|_| {
            self.error(at, Some(&name), None, "limit must not be negative".to_owned());
            0
        });
        let group_labels = raw.labels.unwrap_or_default();
        if let Some(label) = group_labels.keys().find(|name| !is_label_name(name)) {
            self.error(at, Some(&name), None, format!("invalid label name: {label}"));
        }
        let mut seen: BTreeMap<Id, u32> = BTreeMap::new();
        let mut rules = Vec::new();
        for (i, rule) in raw.rules.unwrap_or_default().into_iter().enumerate() {
            let written = rule.value.alert.clone().or_else(|| rule.value.record.clone()).unwrap_or_default();
            let at = At { position: position(&rule), group: &name, number: i + 1, name: &written };
            let Some(mut rule) = self.rule(at, rule.value, &group_labels) else { continue };
            rule.policy.limit = limit;
            rule.id = self.identity(&name, &rule, &mut seen);
            rules.push(rule);
        }
        Group {
            file: self.file.to_owned(),
            name,
            interval_ms: interval_ms.unwrap_or(self.defaults.interval_ms),
            query_offset_ms: query_offset_ms.unwrap_or(self.defaults.query_offset_ms),
            limit,
            rules,
        }
    }

    fn group_duration(&mut self, at: Position, group: &str, field: &str, text: Option<String>) -> Option<i64> {
        let text = text?;
        parse_duration(&text).map_err(|error| self.error(at, Some(group), None, format!("field '{field}': {error}"))).ok()
    }

    /// The rule, or nothing after its errors were noted.
    fn rule(&mut self, at: At<'_>, raw: RawRule, group_labels: &BTreeMap<String, String>) -> Option<Rule> {
        let errors_before = self.errors.len();
        match (&raw.record, &raw.alert) {
            (Some(_), Some(_)) => self.rule_error(at, "only one of 'record' and 'alert' must be set"),
            (None, None) => self.rule_error(at, "one of 'record' or 'alert' must be set"),
            (Some(_), None) => self.rule_error(at, "recording rules are not built yet"),
            (None, Some(name)) if name.is_empty() => self.rule_error(at, "one of 'record' or 'alert' must be set"),
            (None, Some(_)) => {}
        }
        let expr = self.expression(at, raw.expr);
        let hold_ms = self.rule_duration(at, "for", raw.hold);
        let keep_firing_ms = self.rule_duration(at, "keep_firing_for", raw.keep_firing_for);
        let mut labels = group_labels.clone();
        labels.extend(raw.labels.unwrap_or_default());
        let labels = self.templates(at, "label", labels);
        let annotations = self.templates(at, "annotation", raw.annotations.unwrap_or_default());
        if self.errors.len() > errors_before {
            return None;
        }
        let policy = Policy { hold_ms, keep_firing_ms, limit: 0 };
        Some(Rule { id: Id(0), name: raw.alert?, expr: expr?, policy, labels, annotations })
    }

    fn expression(&mut self, at: At<'_>, expr: Option<Spanned<String>>) -> Option<String> {
        let Some(expr) = expr.filter(|e| !e.value.is_empty()) else {
            self.rule_error(at, "field 'expr' must be set in rule");
            return None;
        };
        match parse_expr(&expr.value, &ParseLimits::default()) {
            Ok(parsed) => Some(parsed.to_string()),
            Err(error) => {
                self.rule_error(At { position: position(&expr), ..at }, format!("could not parse expression: {error}"));
                None
            }
        }
    }

    fn rule_duration(&mut self, at: At<'_>, field: &str, text: Option<String>) -> i64 {
        let Some(text) = text else { return 0 };
        parse_duration(&text).unwrap_or_else(|error| {
            self.rule_error(at, format!("field '{field}': {error}"));
            0
        })
    }

    fn templates(&mut self, at: At<'_>, kind: &str, texts: BTreeMap<String, String>) -> Vec<(String, Template)> {
        let mut templates = Vec::with_capacity(texts.len());
        for (name, text) in texts {
            let valid = if kind == "label" { is_label_name(&name) } else { !name.is_empty() };
            if !valid {
                self.rule_error(at, format!("invalid {kind} name: {name}"));
                continue;
            }
            match Template::parse(&format!("__alert_{}", at.name), &text) {
                Ok(template) => templates.push((name, template)),
                Err(error) => self.rule_error(at, format!("{kind} {name:?}: {error}")),
            }
        }
        templates
    }

    fn identity(&self, group: &str, rule: &Rule, seen: &mut BTreeMap<Id, u32>) -> Id {
        let mut parts: Vec<&[u8]> = vec![self.tenant.as_str().as_bytes(), self.file.as_bytes(), group.as_bytes(), rule.name.as_bytes()];
        for (name, template) in &rule.labels {
            parts.push(name.as_bytes());
            parts.push(template.text().as_bytes());
        }
        let base = Id::of(&parts);
        let nth = seen.entry(base).or_insert(0);
        *nth += 1;
        let number = nth.to_be_bytes();
        Id::of(&[&base.0.to_be_bytes(), &number])
    }
}

/// Any text but the empty one and the metric name is a label name, as in Prometheus 3.
fn is_label_name(name: &str) -> bool {
    !name.is_empty() && name != METRIC_NAME
}

#[cfg(test)]
mod tests;
