//! `fletch check rules`: the checks of loading, with `promtool`'s output.

use super::file::{Defaults, Group, read};
use fletch_schemas::TenantId;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::PathBuf;

/// What the check of some files found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CheckReport {
    /// For people; one block per file.
    pub output: String,
    /// Rules in the files that are right.
    pub rules: usize,
    /// Files that cannot be loaded.
    pub failed_files: usize,
}

/// Checks rule files.
pub fn check(paths: &[PathBuf]) -> CheckReport {
    let mut report = CheckReport::default();
    for path in paths {
        let out = &mut report.output;
        let _ = writeln!(out, "Checking {}", path.display());
        match read(path, &TenantId::default(), Defaults::default()) {
            Ok(groups) => {
                let rules = groups.iter().map(|g| g.rules.len()).sum::<usize>();
                let _ = writeln!(out, "  SUCCESS: {rules} rules found");
                out.push_str(&duplicates(&groups));
                report.rules += rules;
            }
            Err(errors) => {
                let _ = writeln!(out, "  FAILED:");
                for error in errors {
                    let _ = writeln!(out, "{error}");
                }
                report.failed_files += 1;
            }
        }
        report.output.push('\n');
    }
    report
}

/// A warning about rules with the same name and labels: they load, but cannot be told apart by their alerts' labels.
fn duplicates(groups: &[Group]) -> String {
    let mut seen: BTreeMap<(String, Vec<(String, String)>), usize> = BTreeMap::new();
    for rule in groups.iter().flat_map(|g| &g.rules) {
        let labels = rule.labels.iter().map(|(name, value)| (name.clone(), value.text().to_owned())).collect();
        *seen.entry((rule.name.clone(), labels)).or_insert(0) += 1;
    }
    let twice: Vec<_> = seen.into_iter().filter(|(_, count)| *count > 1).collect();
    if twice.is_empty() {
        return String::new();
    }
    let mut out = format!("{} duplicate rule(s) found.\n", twice.len());
    for ((name, labels), _) in twice {
        let _ = writeln!(out, "Metric: {name}\nLabel(s):");
        for (label, value) in labels {
            let _ = writeln!(out, "\t{label}: {value}");
        }
    }
    out.push_str("Might cause inconsistency while recording expressions\n");
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_report_reads_like_promtools() {
        let dir = tempfile::tempdir().expect("temp dir");
        let (good, bad, twice) = (dir.path().join("good.yml"), dir.path().join("bad.yml"), dir.path().join("twice.yml"));
        let rule = "groups:\n- name: g\n  rules:\n  - alert: A\n    expr: up\n    labels: {a: b}\n";
        std::fs::write(&good, rule).expect("write");
        std::fs::write(&bad, "groups:\n- name: g\n  rules:\n  - alert: A\n").expect("write");
        std::fs::write(&twice, format!("{rule}  - alert: A\n    expr: up\n    labels: {{a: b}}\n")).expect("write");
        let report = check(&[good.clone(), bad.clone(), twice.clone()]);
        let expected = format!(
            "Checking {good}\n  SUCCESS: 1 rules found\n\nChecking {bad}\n  FAILED:\n{bad}: 4:5: group \"g\", rule 1, \"A\": field 'expr' must be set in rule\n\n\
             Checking {twice}\n  SUCCESS: 2 rules found\n1 duplicate rule(s) found.\nMetric: A\nLabel(s):\n\ta: b\nMight cause inconsistency while recording expressions\n\n",
            good = good.display(),
            bad = bad.display(),
            twice = twice.display()
        );
        assert_eq!(report, CheckReport { output: expected, rules: 3, failed_files: 1 });
    }
}
