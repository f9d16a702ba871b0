//! `label_replace`, `label_join`, and the orders of `sort*`. All of them look at labels once per row.

use super::binary::SAME_LABELSET;
use super::error::QueryError;
use super::labels::{compare, with};
use super::matrix::Matrix;
use fletch_schemas::{Labels, METRIC_NAME};
use hashbrown::{HashMap, HashSet};
use regex::Regex;
use std::cmp::Ordering;

/// `label_replace(input, dst, replacement, src, pattern)`; `pattern` matches whole texts; `None` when it is none.
///
/// # Errors
/// A pattern or label name that is none; two results that meet.
pub(crate) fn replace(
    mut input: Matrix,
    dst: &str,
    replacement: &str,
    src: &str,
    pattern: (&str, Option<&Regex>),
) -> Result<Matrix, QueryError> {
    let Some(regex) = pattern.1 else {
        return Err(QueryError::Execution(format!("invalid regular expression in label_replace(): {}", pattern.0)));
    };
    check_name(dst, "destination", "label_replace")?;
    let mut value = String::new();
    for row in 0..input.rows() {
        let source = input.labels(row).get(src).unwrap_or("");
        let Some(captures) = regex.captures(source) else { continue };
        value.clear();
        captures.expand(replacement, &mut value);
        relabel(&mut input, row, dst, &value);
    }
    merge_same(input)
}

/// `label_join(input, dst, separator, sources…)`.
///
/// # Errors
/// A label name that is none; two results that meet.
pub(crate) fn join(mut input: Matrix, dst: &str, separator: &str, sources: &[&str]) -> Result<Matrix, QueryError> {
    sources.iter().try_for_each(|src| check_name(src, "source", "label_join"))?;
    check_name(dst, "destination", "label_join")?;
    for row in 0..input.rows() {
        let labels = input.labels(row);
        let parts: Vec<&str> = sources.iter().map(|s| labels.get(s).unwrap_or("")).collect();
        let value = parts.join(separator);
        relabel(&mut input, row, dst, &value);
    }
    merge_same(input)
}

fn check_name(name: &str, what: &str, function: &str) -> Result<(), QueryError> {
    // A name that is not UTF-8 has become U+FFFD when the text was read.
    if name.is_empty() || name.contains(char::REPLACEMENT_CHARACTER) {
        return Err(QueryError::Execution(format!("invalid {what} label name in {function}(): {name}")));
    }
    Ok(())
}

fn relabel(input: &mut Matrix, row: usize, dst: &str, value: &str) {
    let labels = with(input.labels(row), dst, value);
    input.all_labels_mut()[row] = labels;
    if dst == METRIC_NAME {
        // Whoever sets the name wants to keep it.
        input.set_drop_name(row, false);
    }
}

/// Makes rows with equal labels one row.
///
/// # Errors
/// Two of them have a cell at the same step.
pub(crate) fn merge_same(input: Matrix) -> Result<Matrix, QueryError> {
    if all_unique(input.all_labels()) {
        return Ok(input);
    }
    let mut rows: HashMap<Labels, usize> = HashMap::with_capacity(input.rows());
    let mut out = Matrix::with_capacity(input.grid, input.rows());
    for row in input.iter() {
        match rows.get(row.labels) {
            Some(&into) => {
                if !out.merge_row(into, row.values, row.mask) {
                    return Err(QueryError::execution(SAME_LABELSET));
                }
            }
            None => {
                rows.insert(row.labels.clone(), out.rows());
                out.push(row.labels.clone(), row.drop_name, row.values, row.mask);
            }
        }
    }
    Ok(out)
}

fn all_unique(labels: &[Labels]) -> bool {
    if labels.len() < 2 {
        return true;
    }
    let mut seen = HashSet::with_capacity(labels.len());
    labels.iter().all(|l| seen.insert(l))
}

/// `sort`, `sort_desc`: by the value of a single step, NaN last.
pub(crate) fn by_value(input: &Matrix, descending: bool) -> Matrix {
    let mut order: Vec<usize> = (0..input.rows()).collect();
    order.sort_by(|a, b| {
        let (a, b) = (input.values(*a)[0], input.values(*b)[0]);
        match (a.is_nan(), b.is_nan()) {
            (false, false) if descending => b.partial_cmp(&a).unwrap_or(Ordering::Equal),
            (false, false) => a.partial_cmp(&b).unwrap_or(Ordering::Equal),
            (a, b) => a.cmp(&b),
        }
    });
    input.reordered(&order)
}

/// `sort_by_label`, `sort_by_label_desc`: by the values of `names` in natural order, then by all labels.
pub(crate) fn by_labels(input: &Matrix, names: &[&str], descending: bool) -> Matrix {
    let mut order: Vec<usize> = (0..input.rows()).collect();
    order.sort_by(|a, b| {
        let (a, b) = (input.labels(*a), input.labels(*b));
        let by_name = names.iter().map(|n| natural(a.get(n).unwrap_or(""), b.get(n).unwrap_or("")));
        let order = by_name.fold(Ordering::Equal, Ordering::then).then_with(|| compare(a, b));
        if descending { order.reverse() } else { order }
    });
    input.reordered(&order)
}

/// Order in which runs of digits compare as numbers.
fn natural(a: &str, b: &str) -> Ordering {
    let (mut a, mut b) = (chunks(a), chunks(b));
    loop {
        let (x, y) = match (a.next(), b.next()) {
            (Some(x), Some(y)) => (x, y),
            (x, y) => return x.is_some().cmp(&y.is_some()),
        };
        let order = match (x.parse::<i64>(), y.parse::<i64>()) {
            (Ok(x), Ok(y)) => x.cmp(&y),
            _ => x.cmp(y),
        };
        if order != Ordering::Equal {
            return order;
        }
    }
}

/// Runs of digits and of anything else.
fn chunks(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        let first = rest.chars().next()?;
        let digit = first.is_ascii_digit();
        let end = rest.find(|c: char| c.is_ascii_digit() != digit).unwrap_or(rest.len());
        let (chunk, after) = rest.split_at(end);
        rest = after;
        Some(chunk)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn natural_order_counts() {
        let mut names = ["cpu10", "cpu9", "cpu", "cpu1a", "cpu1"];
        names.sort_by(|a, b| natural(a, b));
        assert_eq!(names, ["cpu", "cpu1", "cpu1a", "cpu9", "cpu10"]);
    }
}
