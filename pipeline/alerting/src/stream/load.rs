//! From streaming rule files to rules that run: compiled statements, parsed templates, identities.

use super::compile::{Compiled, compile};
use super::file::{StreamRuleSpec, parse};
use crate::rules::file::{FILE_BYTES_MAX, Group, Rule, expand};
use crate::state::{Id, Policy};
use crate::template::Template;
use fletch_schemas::TenantId;
use std::path::Path;

/// One file, loaded.
pub(crate) struct StreamFile {
    /// As the API shows it: a group without a tick.
    pub(crate) group: Group,
    pub(crate) rules: Vec<LoadedRule>,
}

/// One rule, loaded.
pub(crate) struct LoadedRule {
    pub(crate) rule: Rule,
    pub(crate) compiled: Compiled,
    pub(crate) lateness_ms: i64,
}

/// Loads every file that the patterns name.
///
/// # Errors
/// All that is wrong, a line each, naming file and rule.
pub(crate) async fn load(patterns: &[String], tenant: &TenantId) -> Result<Vec<StreamFile>, String> {
    let paths = expand(patterns).map_err(|errors| errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))?;
    let (mut files, mut wrong) = (Vec::new(), Vec::new());
    for path in paths {
        match load_file(&path, tenant).await {
            Ok(file) => files.push(file),
            Err(errors) => wrong.extend(errors),
        }
    }
    if wrong.is_empty() { Ok(files) } else { Err(wrong.join("\n")) }
}

/// Checks one file as loading does; the number of its rules.
///
/// # Errors
/// As loading.
pub fn check(path: &Path) -> Result<usize, String> {
    let loaded = futures::executor::block_on(load_file(path, &TenantId::default()));
    loaded.map(|file| file.rules.len()).map_err(|errors| errors.join("\n"))
}

async fn load_file(path: &Path, tenant: &TenantId) -> Result<StreamFile, Vec<String>> {
    let name = path.display().to_string();
    let size = std::fs::metadata(path).map_err(|e| vec![format!("{name}: {e}")])?.len();
    if size > FILE_BYTES_MAX {
        return Err(vec![format!("{name}: {size} bytes, at most {FILE_BYTES_MAX} are allowed")]);
    }
    let text = std::fs::read_to_string(path).map_err(|e| vec![format!("{name}: {e}")])?;
    let specs = parse(&name, &text).map_err(|e| vec![e])?;
    let (mut rules, mut wrong) = (Vec::new(), Vec::new());
    for spec in specs {
        match load_rule(&name, spec, tenant).await {
            Ok(rule) => rules.push(rule),
            Err(error) => wrong.push(error),
        }
    }
    if !wrong.is_empty() {
        return Err(wrong);
    }
    let group = Group { file: name, name: "streaming".into(), interval_ms: 0, query_offset_ms: 0, limit: 0, rules: Vec::new() };
    Ok(StreamFile { group, rules })
}

async fn load_rule(file: &str, spec: StreamRuleSpec, tenant: &TenantId) -> Result<LoadedRule, String> {
    let named = |error: &dyn std::fmt::Display| format!("{file}: rule `{}`: {error}", spec.name);
    let compiled = compile(&spec.sql).await.map_err(|e| named(&e))?;
    let templates = |texts: &std::collections::BTreeMap<String, String>| {
        texts
            .iter()
            .map(|(name, text)| Ok((name.clone(), Template::parse(name, text).map_err(|e| named(&e))?)))
            .collect::<Result<Vec<_>, String>>()
    };
    let rule = Rule {
        id: Id::of(&[b"stream", tenant.as_str().as_bytes(), file.as_bytes(), spec.name.as_bytes()]),
        name: spec.name.clone(),
        expr: spec.sql.clone(),
        policy: Policy { hold_ms: spec.hold_ms, keep_firing_ms: spec.keep_firing_ms, limit: 0 },
        labels: templates(&spec.labels)?,
        annotations: templates(&spec.annotations)?,
    };
    Ok(LoadedRule { rule, compiled, lateness_ms: spec.lateness_ms })
}
