//! The column form of a PromQL instant vector over time: one row of values per series, one cell per evaluation step.
//!
//! ```text
//!            step 0   1   2   3        labels   drop_name
//!  row 0   [  1.0  1.5  2.0  2.5 ]     {…}      false      present 1111
//!  row 1   [  7.0   –   7.5   –  ]     {…}      true       present 0101   (bit 0 = step 0)
//! ```
//!
//! # Invariants
//! - **M1** `values.len() == rows * steps`; a cell whose presence bit is clear holds an arbitrary value that nobody reads.
//! - **M2** Every row of a finished matrix has at least one present cell.
//! - **M3** Presence words past the last step are zero.
//! - **M4** No presence words at all means that every cell is present: the common case costs nothing.
//!
//! # Not here
//! Anything that knows a function or an operator.

use fletch_schemas::Labels;

/// Evaluation times `start_ms + i * step_ms` for `i < len`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grid {
    /// First time, in milliseconds since the Unix epoch.
    pub start_ms: i64,
    /// Distance between two times, in milliseconds; 1 for a single time.
    pub step_ms: i64,
    /// Number of times.
    pub len: usize,
}

impl Grid {
    /// One time only.
    pub fn instant(at_ms: i64) -> Self {
        Self { start_ms: at_ms, step_ms: 1, len: 1 }
    }

    /// From `start_ms` to `end_ms`, both included when the step hits them. Empty when `end_ms < start_ms`; `None` when the step is
    /// not positive or the number of steps does not fit a `u32` (no limit lets such a query through).
    pub fn range(start_ms: i64, end_ms: i64, step_ms: i64) -> Option<Self> {
        if step_ms <= 0 {
            return None;
        }
        if end_ms < start_ms {
            return Some(Self { start_ms, step_ms, len: 0 });
        }
        let steps = (i128::from(end_ms) - i128::from(start_ms)) / i128::from(step_ms) + 1;
        let len = u32::try_from(steps).ok()? as usize;
        Some(Self { start_ms, step_ms, len })
    }

    /// The `i`-th time.
    pub fn time(&self, i: usize) -> i64 {
        self.start_ms.saturating_add(self.step_ms.saturating_mul(i as i64))
    }

    /// The last time; the first one when the grid is empty.
    pub fn end_ms(&self) -> i64 {
        self.time(self.len.saturating_sub(1))
    }

    /// The first time of this grid as a grid of its own.
    pub fn first(&self) -> Self {
        Self { len: self.len.min(1), ..*self }
    }
}

/// Words that hold one presence bit for each of `steps` cells.
pub fn words_for(steps: usize) -> usize {
    steps.div_ceil(64)
}

/// Presence of the cells of one row.
#[derive(Debug, Clone, Copy)]
pub enum RowMask<'a> {
    /// Every cell is present.
    Full,
    /// One bit per cell, bit 0 of word 0 is step 0.
    Words(&'a [u64]),
}

impl RowMask<'_> {
    /// Whether the cell of `step` is present.
    #[inline]
    pub fn has(&self, step: usize) -> bool {
        match self {
            Self::Full => true,
            Self::Words(words) => words[step / 64] >> (step % 64) & 1 == 1,
        }
    }

    /// The first present step.
    pub fn first(&self, steps: usize) -> Option<usize> {
        match self {
            Self::Full => (steps > 0).then_some(0),
            Self::Words(words) => words.iter().enumerate().find(|(_, w)| **w != 0).map(|(i, w)| i * 64 + w.trailing_zeros() as usize),
        }
    }

    /// Calls `f` with every present step, ascending.
    #[inline]
    pub fn for_each(&self, steps: usize, mut f: impl FnMut(usize)) {
        match self {
            Self::Full => (0..steps).for_each(f),
            Self::Words(words) => {
                for (i, &word) in words.iter().enumerate() {
                    let mut rest = word;
                    while rest != 0 {
                        f(i * 64 + rest.trailing_zeros() as usize);
                        rest &= rest - 1;
                    }
                }
            }
        }
    }

    /// Number of present cells.
    pub fn count(&self, steps: usize) -> usize {
        match self {
            Self::Full => steps,
            Self::Words(words) => words.iter().map(|w| w.count_ones() as usize).sum(),
        }
    }
}

/// A presence mask under construction, for one row at a time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mask {
    words: Vec<u64>,
    steps: usize,
}

impl Mask {
    /// A mask of `steps` absent cells.
    pub fn none(steps: usize) -> Self {
        Self { words: vec![0; words_for(steps)], steps }
    }

    /// A mask of `steps` present cells.
    pub fn all(steps: usize) -> Self {
        let mut mask = Self::none(steps);
        mask.set_all();
        mask
    }

    /// Makes every cell absent.
    pub fn clear(&mut self) {
        self.words.fill(0);
    }

    /// Makes every cell present.
    pub fn set_all(&mut self) {
        fill_ones(&mut self.words, self.steps);
    }

    /// Makes one cell present.
    #[inline]
    pub fn set(&mut self, step: usize) {
        self.words[step / 64] |= 1 << (step % 64);
    }

    /// Makes one cell absent.
    #[inline]
    pub fn unset(&mut self, step: usize) {
        self.words[step / 64] &= !(1 << (step % 64));
    }

    /// Whether one cell is present.
    #[inline]
    pub fn has(&self, step: usize) -> bool {
        self.words[step / 64] >> (step % 64) & 1 == 1
    }

    /// Copies the presence of a row.
    pub fn copy_from(&mut self, row: RowMask<'_>) {
        match row {
            RowMask::Full => self.set_all(),
            RowMask::Words(words) => self.words.copy_from_slice(words),
        }
    }

    /// Keeps what is present in both.
    pub fn and(&mut self, row: RowMask<'_>) {
        if let RowMask::Words(words) = row {
            self.words.iter_mut().zip(words).for_each(|(a, b)| *a &= b);
        }
    }

    /// Keeps what is absent in the other.
    pub fn and_not(&mut self, row: RowMask<'_>) {
        match row {
            RowMask::Full => self.clear(),
            RowMask::Words(words) => self.words.iter_mut().zip(words).for_each(|(a, b)| *a &= !b),
        }
    }

    /// Adds what is present in the other.
    pub fn or(&mut self, row: RowMask<'_>) {
        match row {
            RowMask::Full => self.set_all(),
            RowMask::Words(words) => self.words.iter_mut().zip(words).for_each(|(a, b)| *a |= b),
        }
    }

    /// The mask as a row's presence.
    pub fn row(&self) -> RowMask<'_> {
        if self.is_full() { RowMask::Full } else { RowMask::Words(&self.words) }
    }

    /// The words.
    pub fn words(&self) -> &[u64] {
        &self.words
    }

    /// Whether no cell is present.
    pub fn is_empty(&self) -> bool {
        self.words.iter().all(|w| *w == 0)
    }

    /// Whether every cell is present.
    pub fn is_full(&self) -> bool {
        let whole = self.steps / 64;
        let tail = self.steps % 64;
        self.words[..whole].iter().all(|w| *w == u64::MAX) && (tail == 0 || self.words[whole] == (1 << tail) - 1)
    }
}

fn fill_ones(words: &mut [u64], steps: usize) {
    words.fill(u64::MAX);
    if let (Some(last), true) = (words.last_mut(), !steps.is_multiple_of(64)) {
        *last = (1 << (steps % 64)) - 1;
    }
}

/// Rows of values on one [`Grid`]. See the module's drawing and invariants.
#[derive(Debug, Clone)]
pub struct Matrix {
    /// The evaluation times of the columns.
    pub grid: Grid,
    labels: Vec<Labels>,
    drop_name: Vec<bool>,
    values: Vec<f64>,
    present: Option<Vec<u64>>,
}

/// One row of a [`Matrix`].
#[derive(Debug, Clone, Copy)]
pub struct Row<'a> {
    /// Label set; still with the metric name when `drop_name` says that it goes at the end.
    pub labels: &'a Labels,
    /// Whether name, type and unit labels are removed when the query ends.
    pub drop_name: bool,
    /// One value per step.
    pub values: &'a [f64],
    /// Which of them exist.
    pub mask: RowMask<'a>,
}

impl Matrix {
    /// No rows.
    pub fn empty(grid: Grid) -> Self {
        Self { grid, labels: Vec::new(), drop_name: Vec::new(), values: Vec::new(), present: None }
    }

    /// No rows yet, room for `rows`.
    pub fn with_capacity(grid: Grid, rows: usize) -> Self {
        Self {
            grid,
            labels: Vec::with_capacity(rows),
            drop_name: Vec::with_capacity(rows),
            values: Vec::with_capacity(rows * grid.len),
            present: None,
        }
    }

    /// Takes finished columns: `labels` and `drop_name` have one entry per row, `values` `rows * grid.len`, `present`
    /// `rows * words_for(grid.len)`. Rows without a present cell are removed.
    pub fn from_parts(grid: Grid, labels: Vec<Labels>, drop_name: Vec<bool>, values: Vec<f64>, present: Vec<u64>) -> Self {
        debug_assert_eq!(labels.len() * grid.len, values.len(), "M1");
        debug_assert_eq!(labels.len() * words_for(grid.len), present.len(), "M1");
        let mut matrix = Self { grid, labels, drop_name, values, present: Some(present) };
        matrix.normalize();
        matrix
    }

    /// Removes rows without cells and forgets presence words when everything is present.
    fn normalize(&mut self) {
        let words = words_for(self.grid.len);
        let Some(present) = &self.present else { return };
        let full = Mask::all(self.grid.len);
        if present.chunks_exact(words.max(1)).all(|row| row == full.words()) {
            self.present = None;
            return;
        }
        if present.chunks_exact(words.max(1)).any(|row| row.iter().all(|w| *w == 0)) {
            let keep: Vec<bool> = present.chunks_exact(words.max(1)).map(|row| row.iter().any(|w| *w != 0)).collect();
            self.retain_rows(&keep);
            self.normalize();
        }
    }

    /// Keeps the rows whose entry is true.
    pub fn retain_rows(&mut self, keep: &[bool]) {
        let steps = self.grid.len;
        let words = words_for(steps);
        let mut to = 0;
        for (from, _) in keep.iter().enumerate().filter(|(_, keep)| **keep) {
            if from != to {
                self.labels.swap(from, to);
                self.drop_name[to] = self.drop_name[from];
                self.values.copy_within(from * steps..(from + 1) * steps, to * steps);
                if let Some(present) = &mut self.present {
                    present.copy_within(from * words..(from + 1) * words, to * words);
                }
            }
            to += 1;
        }
        self.labels.truncate(to);
        self.drop_name.truncate(to);
        self.values.truncate(to * steps);
        if let Some(present) = &mut self.present {
            present.truncate(to * words);
        }
    }

    /// Keeps the first `rows` rows; says whether there were more.
    pub fn truncate(&mut self, rows: usize) -> bool {
        let more = self.rows() > rows;
        if more {
            let keep: Vec<bool> = (0..self.rows()).map(|row| row < rows).collect();
            self.retain_rows(&keep);
        }
        more
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.labels.len()
    }

    /// Number of cells per row.
    pub fn steps(&self) -> usize {
        self.grid.len
    }

    /// Whether there are no rows.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// Whether every cell of every row is present.
    pub fn is_dense(&self) -> bool {
        self.present.is_none()
    }

    /// Label set of a row.
    pub fn labels(&self, row: usize) -> &Labels {
        &self.labels[row]
    }

    /// Label sets of all rows.
    pub fn all_labels(&self) -> &[Labels] {
        &self.labels
    }

    /// Label sets of all rows, to change in place.
    pub fn all_labels_mut(&mut self) -> &mut [Labels] {
        &mut self.labels
    }

    /// Whether the row loses its name when the query ends.
    pub fn drop_name(&self, row: usize) -> bool {
        self.drop_name[row]
    }

    /// Says whether the row loses its name when the query ends.
    pub fn set_drop_name(&mut self, row: usize, drop: bool) {
        self.drop_name[row] = drop;
    }

    /// Says that every row loses its name when the query ends.
    pub fn drop_all_names(&mut self) {
        self.drop_name.fill(true);
    }

    /// Values of a row.
    #[inline]
    pub fn values(&self, row: usize) -> &[f64] {
        &self.values[row * self.grid.len..][..self.grid.len]
    }

    /// All values, row after row.
    pub fn all_values(&self) -> &[f64] {
        &self.values
    }

    /// All values, row after row, to change in place.
    pub fn all_values_mut(&mut self) -> &mut [f64] {
        &mut self.values
    }

    /// All values, row after row, by value.
    pub fn into_values(self) -> Vec<f64> {
        self.values
    }

    /// Presence of a row's cells.
    #[inline]
    pub fn mask(&self, row: usize) -> RowMask<'_> {
        let Some(present) = &self.present else { return RowMask::Full };
        let words = words_for(self.grid.len);
        let row = &present[row * words..][..words];
        let tail = self.grid.len % 64;
        let whole = self.grid.len / 64;
        let full = row[..whole].iter().all(|w| *w == u64::MAX) && (tail == 0 || row[whole] == (1 << tail) - 1);
        if full { RowMask::Full } else { RowMask::Words(row) }
    }

    /// A row with everything it has.
    pub fn row(&self, row: usize) -> Row<'_> {
        Row { labels: &self.labels[row], drop_name: self.drop_name[row], values: self.values(row), mask: self.mask(row) }
    }

    /// All rows.
    pub fn iter(&self) -> impl Iterator<Item = Row<'_>> {
        (0..self.rows()).map(|i| self.row(i))
    }

    /// Adds a row unless none of its cells is present.
    pub fn push(&mut self, labels: Labels, drop_name: bool, values: &[f64], mask: RowMask<'_>) {
        debug_assert_eq!(values.len(), self.grid.len, "M1");
        if let RowMask::Words(words) = mask
            && words.iter().all(|w| *w == 0)
        {
            return;
        }
        self.push_mask(mask);
        self.labels.push(labels);
        self.drop_name.push(drop_name);
        self.values.extend_from_slice(values);
    }

    fn push_mask(&mut self, mask: RowMask<'_>) {
        let steps = self.grid.len;
        match (mask, &mut self.present) {
            (RowMask::Full, None) => {}
            (RowMask::Full, Some(present)) => present.extend_from_slice(Mask::all(steps).words()),
            (RowMask::Words(words), Some(present)) => present.extend_from_slice(words),
            (RowMask::Words(words), None) => {
                let full = Mask::all(steps);
                let mut present = Vec::with_capacity((self.labels.len() + 1) * full.words().len());
                for _ in 0..self.labels.len() {
                    present.extend_from_slice(full.words());
                }
                present.extend_from_slice(words);
                self.present = Some(present);
            }
        }
    }

    /// Replaces the presence of all rows: `rows * words_for(steps)` words. Rows left without a cell are removed.
    pub fn set_presence(&mut self, present: Vec<u64>) {
        debug_assert_eq!(present.len(), self.rows() * words_for(self.grid.len), "M1");
        self.present = Some(present);
        self.normalize();
    }

    /// Adds the cells of another row to row `into`. False (and nothing changed) when both have a cell at the same step.
    pub fn merge_row(&mut self, into: usize, values: &[f64], mask: RowMask<'_>) -> bool {
        let steps = self.grid.len;
        let mut merged = Mask::none(steps);
        merged.copy_from(self.mask(into));
        let mut clash = false;
        mask.for_each(steps, |s| clash |= merged.has(s));
        if clash {
            return false;
        }
        merged.or(mask);
        let target = &mut self.values[into * steps..][..steps];
        mask.for_each(steps, |s| target[s] = values[s]);
        if let Some(present) = &mut self.present {
            let words = words_for(steps);
            present[into * words..][..words].copy_from_slice(merged.words());
        }
        true
    }

    /// The same rows in another order: row `i` of the result is row `order[i]` of this matrix.
    pub fn reordered(&self, order: &[usize]) -> Self {
        let mut out = Self::with_capacity(self.grid, order.len());
        for &i in order {
            let row = self.row(i);
            out.push(row.labels.clone(), row.drop_name, row.values, row.mask);
        }
        out
    }

    /// A matrix of one step repeated on a longer grid.
    pub fn broadcast(self, grid: Grid) -> Self {
        if grid.len == self.grid.len {
            return Self { grid, ..self };
        }
        let values = self.values.iter().flat_map(|v| std::iter::repeat_n(*v, grid.len)).collect();
        // With one step every row is present (M2), so the repeated rows are as well.
        Self { grid, values, present: None, ..self }
    }

    /// Number of present cells.
    pub fn cells(&self) -> usize {
        (0..self.rows()).map(|i| self.mask(i).count(self.grid.len)).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(name: &str) -> Labels {
        Labels::from_pairs([("__name__", name)]).expect("valid")
    }

    #[test]
    fn grids_count_both_ends_and_refuse_absurd_lengths() {
        assert_eq!(Grid::range(0, 10, 5).map(|g| g.len), Some(3));
        assert_eq!(Grid::range(0, 9, 5).map(|g| g.len), Some(2));
        assert_eq!(Grid::range(10, 0, 5).map(|g| g.len), Some(0));
        assert_eq!(Grid::range(0, 10, 0), None);
        assert_eq!(Grid::range(i64::MIN, i64::MAX, 1), None);
    }

    #[test]
    fn masks_know_their_tail() {
        for steps in [1, 63, 64, 65, 128, 130] {
            let mut mask = Mask::all(steps);
            assert!(mask.is_full() && mask.row().count(steps) == steps, "{steps}");
            mask.unset(steps - 1);
            assert!(!mask.is_full() && mask.row().count(steps) == steps - 1, "{steps}");
        }
    }

    #[test]
    fn empty_rows_vanish_and_full_ones_need_no_words() {
        let grid = Grid::range(0, 2, 1).expect("valid");
        let rows = vec![labels("a"), labels("b"), labels("c")];
        let m = Matrix::from_parts(grid, rows, vec![false; 3], vec![1.0; 9], vec![7, 0, 7]);
        assert_eq!((m.rows(), m.is_dense(), m.labels(1).metric()), (2, true, "c"));
    }

    #[test]
    fn rows_merge_only_where_they_do_not_meet() {
        let grid = Grid::range(0, 2, 1).expect("valid");
        let mut m = Matrix::empty(grid);
        m.push(labels("a"), false, &[1.0, 0.0, 0.0], RowMask::Words(&[1]));
        assert!(m.merge_row(0, &[0.0, 2.0, 3.0], RowMask::Words(&[6])));
        assert_eq!(m.values(0), [1.0, 2.0, 3.0]);
        assert!(!m.merge_row(0, &[0.0, 2.0, 3.0], RowMask::Words(&[2])));
    }
}
