//! `count_values`: how many rows of each group have each value.

use super::super::control::Control;
use super::super::error::QueryError;
use super::super::labels::{Keep, with};
use super::super::matrix::{Matrix, words_for};
use super::super::number::plain;
use super::Grouping;
use fletch_schemas::Labels;
use hashbrown::HashMap;

/// Counts equal values. `label` gets the value's text; with `without` that names `label`, the values of a group fall together.
///
/// # Errors
/// An unusable label name, limits, [`Control::check`].
pub(crate) fn count_values(
    input: &Matrix,
    label: &str,
    grouping: &[String],
    without: bool,
    control: &Control,
) -> Result<Matrix, QueryError> {
    if label.is_empty() {
        return Err(QueryError::Execution(format!("invalid label name {}", super::super::annotations::quoted(label))));
    }
    // The value replaces a label of that name, so the name takes no part in the grouping.
    let mut names: Vec<String> = grouping.iter().filter(|n| without || *n != label).cloned().collect();
    let hidden = without && names.iter().any(|n| n == label);
    if without && !hidden {
        names.push(label.to_owned());
    }
    let keep = if without { Keep::Without(&names) } else { Keep::Only(&names) };
    let groups = Grouping::of(input, keep);
    let mut counter = Counter { steps: input.steps(), words: words_for(input.steps()), ..Counter::default() };
    for row in 0..input.rows() {
        control.check_series(row)?;
        let group = groups.ids[row];
        let values = input.values(row);
        let mut full = false;
        input.mask(row).for_each(values.len(), |s| {
            let at = counter.row(group, values[s], hidden, control.samples_max, || {
                let base = &groups.labels[group as usize];
                if hidden { base.clone() } else { with(base, label, &plain(values[s])) }
            });
            match at {
                Some(at) => counter.add(at, s),
                None => full = true,
            }
        });
        if full {
            return Err(QueryError::TooManySamples { limit: control.samples_max });
        }
    }
    let drop = vec![false; counter.labels.len()];
    Ok(Matrix::from_parts(input.grid, counter.labels, drop, counter.values, counter.present))
}

#[derive(Default)]
struct Counter {
    steps: usize,
    words: usize,
    rows: HashMap<(u32, u64), usize>,
    labels: Vec<Labels>,
    values: Vec<f64>,
    present: Vec<u64>,
}

impl Counter {
    /// The row of a group and value, made when it is new; `None` when that would be too many cells.
    fn row(&mut self, group: u32, value: f64, hidden: bool, cells_max: usize, labels: impl FnOnce() -> Labels) -> Option<usize> {
        let bits = if value.is_nan() { f64::NAN.to_bits() } else { value.to_bits() };
        let key = (group, if hidden { 0 } else { bits });
        if let Some(at) = self.rows.get(&key) {
            return Some(*at);
        }
        let at = self.labels.len();
        if (at + 1) * self.steps > cells_max {
            return None;
        }
        self.rows.insert(key, at);
        self.labels.push(labels());
        self.values.resize(self.values.len() + self.steps, 0.0);
        self.present.resize(self.present.len() + self.words, 0);
        Some(at)
    }

    fn add(&mut self, row: usize, step: usize) {
        self.values[row * self.steps + step] += 1.0;
        self.present[row * self.words + step / 64] |= 1 << (step % 64);
    }
}
