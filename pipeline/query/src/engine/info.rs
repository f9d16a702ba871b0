//! `info`: adds the labels of info series (`target_info` and the like) to the series with the same `instance` and `job`.
//!
//! Which info series counts may change from step to step (a new version of a target, say), so one base row can become several result
//! rows, each present at other steps.

use super::control::Control;
use super::error::QueryError;
use super::labels::{Keep, metric_text, with};
use super::matrix::{Mask, Matrix};
use super::relabel::merge_same;
use fletch_schemas::pattern::Condition;
use fletch_schemas::{Labels, METRIC_NAME, Matcher};
use hashbrown::{HashMap, HashSet};
use std::collections::BTreeMap;

/// Labels by which base and info series find each other.
const IDENTIFYING: [&str; 2] = ["instance", "job"];

/// Adds labels of `info` to `base`. Values of `info` are the times of its samples, in seconds; `matchers` selected it.
///
/// # Errors
/// Info series that contradict each other; [`Control::check`].
pub(crate) fn enrich(base: &Matrix, info: &Matrix, matchers: &[Matcher], control: &Control) -> Result<Matrix, QueryError> {
    let (names, data): (Vec<&Matcher>, Vec<&Matcher>) = matchers.iter().partition(|m| m.name == METRIC_NAME);
    let names = names.into_iter().map(condition).collect::<Result<Vec<_>, _>>()?;
    // Info series themselves pass as they are.
    let passes: Vec<bool> = base.all_labels().iter().map(|l| names.iter().all(|m| m.matches(l.metric()))).collect();
    let wanted = wanted_identities(base, &passes);
    let mut enricher = Enricher {
        base,
        info,
        candidates: candidates(info, &wanted),
        copied: data.iter().map(|m| m.name.as_str()).collect(),
        keep_unmatched: data.iter().try_fold(true, |all, m| Ok::<_, QueryError>(all && condition(m)?.matches("")))?,
        out: Matrix::with_capacity(base.grid, base.rows()),
    };
    for (row, passes) in passes.into_iter().enumerate() {
        control.check_series(row)?;
        if passes {
            let row = base.row(row);
            enricher.out.push(row.labels.clone(), row.drop_name, row.values, row.mask);
        } else {
            enricher.add(row)?;
        }
    }
    merge_same(enricher.out)
}

fn condition(matcher: &Matcher) -> Result<Condition, QueryError> {
    Condition::new(matcher).map_err(|e| QueryError::BadData(format!("invalid regular expression in {matcher}: {e}")))
}

/// Values of each identifying label among the rows to enrich; an empty set asks for nothing.
fn wanted_identities<'a>(base: &'a Matrix, passes: &[bool]) -> [HashSet<&'a str>; 2] {
    let mut wanted = [HashSet::new(), HashSet::new()];
    for (row, _) in passes.iter().enumerate().filter(|(_, passes)| !**passes) {
        for (values, name) in wanted.iter_mut().zip(IDENTIFYING) {
            values.extend(base.labels(row).get(name));
        }
    }
    wanted
}

/// Info rows by identity, then by metric name.
type Candidates = HashMap<Vec<u8>, BTreeMap<String, Vec<usize>>>;

fn candidates(info: &Matrix, wanted: &[HashSet<&str>; 2]) -> Candidates {
    let mut found = Candidates::new();
    if wanted.iter().all(HashSet::is_empty) {
        return found;
    }
    for row in 0..info.rows() {
        let labels = info.labels(row);
        let asked =
            wanted.iter().zip(IDENTIFYING).all(|(values, name)| values.is_empty() || labels.get(name).is_some_and(|v| values.contains(v)));
        if asked {
            let by_name = found.entry(identity(labels)).or_default();
            by_name.entry(labels.metric().to_owned()).or_default().push(row);
        }
    }
    found
}

fn identity(labels: &Labels) -> Vec<u8> {
    let names = IDENTIFYING.map(str::to_owned);
    let mut key = Vec::new();
    Keep::Only(&names).write_key(labels, &mut key);
    key
}

struct Enricher<'a> {
    base: &'a Matrix,
    info: &'a Matrix,
    candidates: Candidates,
    /// Labels to copy; all of them when empty.
    copied: HashSet<&'a str>,
    /// Whether a base row without any info series stays as it is.
    keep_unmatched: bool,
    out: Matrix,
}

impl Enricher<'_> {
    fn add(&mut self, row: usize) -> Result<(), QueryError> {
        let base = self.base.row(row);
        let steps = self.base.steps();
        let empty = BTreeMap::new();
        let candidates = self.candidates.get(&identity(base.labels)).unwrap_or(&empty);
        let mut parts: Vec<(Vec<usize>, Mask)> = Vec::new();
        let mut failed = None;
        base.mask.for_each(steps, |step| {
            let mut chosen = Vec::with_capacity(candidates.len());
            for rows in candidates.values() {
                match self.newest(rows, step) {
                    Ok(found) => chosen.extend(found),
                    Err(error) => failed = failed.take().or(Some(error)),
                }
            }
            match parts.iter_mut().rev().find(|(rows, _)| *rows == chosen) {
                Some((_, mask)) => mask.set(step),
                None => {
                    let mut mask = Mask::none(steps);
                    mask.set(step);
                    parts.push((chosen, mask));
                }
            }
        });
        failed.map_or(Ok(()), Err)?;
        for (chosen, mask) in parts {
            if chosen.is_empty() && !self.keep_unmatched {
                continue;
            }
            let labels = self.labels(base.labels, &chosen)?;
            self.out.push(labels, base.drop_name, base.values, mask.row());
        }
        Ok(())
    }

    /// Of the info rows of one metric the one with the newest sample.
    fn newest(&self, rows: &[usize], step: usize) -> Result<Option<usize>, QueryError> {
        let mut best: Option<usize> = None;
        for &row in rows.iter().filter(|r| self.info.mask(**r).has(step)) {
            let time = self.info.values(row)[step];
            match best.map(|b| (b, self.info.values(b)[step])) {
                Some((_, known)) if known > time => {}
                Some((other, known)) if known == time => {
                    let (ms, name) = ((time * 1000.0).round() as i64, |r| metric_text(self.info.labels(r)));
                    return Err(QueryError::Execution(format!(
                        "found duplicate series for info metric: existing {} @ {ms}, new {} @ {ms}",
                        name(other),
                        name(row)
                    )));
                }
                _ => best = Some(row),
            }
        }
        Ok(best)
    }

    /// The base labels and what the info rows add to them.
    fn labels(&self, base: &Labels, chosen: &[usize]) -> Result<Labels, QueryError> {
        let mut added: BTreeMap<&str, &str> = BTreeMap::new();
        for &row in chosen {
            for (name, value) in self.info.labels(row).iter() {
                if name == METRIC_NAME || !(self.copied.is_empty() || self.copied.contains(name)) {
                    continue;
                }
                if added.get(name).is_some_and(|known| *known != value) {
                    return Err(QueryError::Execution(format!("conflicting label: {name}")));
                }
                if base.get(name).is_none() {
                    added.insert(name, value);
                }
            }
        }
        Ok(added.into_iter().fold(base.clone(), |labels, (name, value)| with(&labels, name, value)))
    }
}
