//! Aggregation operators: rows are put into groups once, then added up with the steps as lanes.
//!
//! ```text
//!  rows      {job=a,…} {job=b,…} {job=a,…}        group of each row   0 1 0
//!  sum[0]  += row 0, row 2   cell by cell, in row order, with a compensation per cell
//! ```

mod choose;
mod count_values;
mod fold;

pub(crate) use choose::{choose_rows, is_choice};
pub(crate) use count_values::count_values;
pub(crate) use fold::fold;

use super::labels::{Keep, from_key};
use super::matrix::Matrix;
use fletch_schemas::Labels;
use hashbrown::HashMap;

/// Which group each row belongs to.
#[derive(Debug)]
pub(crate) struct Grouping {
    /// Group of each row.
    pub(crate) ids: Vec<u32>,
    /// Label set of each group.
    pub(crate) labels: Vec<Labels>,
}

impl Grouping {
    /// Groups the rows of a matrix by the kept labels, groups in order of first appearance.
    pub(crate) fn of(matrix: &Matrix, keep: Keep<'_>) -> Self {
        if let Keep::Only([]) = keep {
            let labels = if matrix.is_empty() { Vec::new() } else { vec![Labels::empty()] };
            return Self { ids: vec![0; matrix.rows()], labels };
        }
        let mut key = Vec::new();
        let mut known: HashMap<Vec<u8>, u32> = HashMap::new();
        let mut labels = Vec::new();
        let ids = (0..matrix.rows()).map(|row| {
            keep.write_key(matrix.labels(row), &mut key);
            if let Some(id) = known.get(key.as_slice()) {
                return *id;
            }
            let id = labels.len() as u32;
            labels.push(from_key(&key));
            known.insert(key.clone(), id);
            id
        });
        let ids = ids.collect();
        Self { ids, labels }
    }

    /// Number of groups.
    pub(crate) fn len(&self) -> usize {
        self.labels.len()
    }

    /// Rows of each group, ascending.
    pub(crate) fn members(&self) -> Vec<Vec<usize>> {
        let mut members = vec![Vec::new(); self.len()];
        self.ids.iter().enumerate().for_each(|(row, id)| members[*id as usize].push(row));
        members
    }

    /// Whether each group has a row that loses its name at the end.
    pub(crate) fn drop_names(&self, matrix: &Matrix) -> Vec<bool> {
        let mut drop = vec![false; self.len()];
        self.ids.iter().enumerate().for_each(|(row, id)| drop[*id as usize] |= matrix.drop_name(row));
        drop
    }
}
