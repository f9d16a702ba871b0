//! Operators between a vector and a scalar, and between two vectors.
//!
//! Rows of the two sides are paired once, by the bytes of their matching labels; a pair is then one pass over two columns. What
//! Prometheus checks at every step (two candidates on the "one" side, two results with the same labels) becomes a question whether two
//! presence masks meet.
//!
//! ```text
//!  many side            one side           signature {job="a"}: rows 0, 2 × row 1
//!  {job=a, i=1}  ─┐
//!  {job=b, i=1}   ├──▶  {job=a}            result row = values(0) op values(1) where both are present
//!  {job=a, i=2}  ─┘
//! ```

use super::control::Control;
use super::error::QueryError;
use super::labels::{Keep, from_key, is_metadata, metric_text, set_text, with};
use super::matrix::{Mask, Matrix, RowMask};
use super::plan::Matching;
use super::scalar::{Column, arithmetic, compare};
use fletch_promql::ast::{BinaryOp, Cardinality};
use fletch_schemas::Labels;
use hashbrown::HashMap;

/// `vector op scalar` (`scalar_left`: `scalar op vector`). Comparisons filter, or give 0 and 1 with `return_bool`. Trim operators keep
/// nothing, because floats have no observations to trim.
pub(crate) fn vector_scalar(op: BinaryOp, mut vector: Matrix, scalar: &Column, scalar_left: bool, return_bool: bool) -> Matrix {
    if op.is_trim() {
        return Matrix::empty(vector.grid);
    }
    if op.is_comparison() && !return_bool {
        return filter(op, vector, scalar, scalar_left);
    }
    let steps = vector.steps();
    let value = |a: f64, b: f64| {
        if op.is_comparison() { f64::from(u8::from(compare(op, a, b))) } else { arithmetic(op, a, b) }
    };
    for row in vector.all_values_mut().chunks_exact_mut(steps.max(1)) {
        match (scalar, scalar_left) {
            (Column::Const(s), true) => row.iter_mut().for_each(|v| *v = value(*s, *v)),
            (Column::Const(s), false) => row.iter_mut().for_each(|v| *v = value(*v, *s)),
            (Column::Steps(s), true) => row.iter_mut().zip(s).for_each(|(v, s)| *v = value(*s, *v)),
            (Column::Steps(s), false) => row.iter_mut().zip(s).for_each(|(v, s)| *v = value(*v, *s)),
        }
    }
    vector.drop_all_names();
    vector
}

fn filter(op: BinaryOp, mut vector: Matrix, scalar: &Column, scalar_left: bool) -> Matrix {
    let steps = vector.steps();
    let mut mask = Mask::none(steps);
    let mut present = Vec::new();
    for row in 0..vector.rows() {
        mask.copy_from(vector.mask(row));
        for (step, value) in vector.values(row).iter().enumerate() {
            let s = scalar.get(step);
            let (a, b) = if scalar_left { (s, *value) } else { (*value, s) };
            if !compare(op, a, b) {
                mask.unset(step);
            }
        }
        present.extend_from_slice(mask.words());
    }
    vector.set_presence(present);
    vector
}

/// Rows of both sides with equal matching labels.
#[derive(Debug, Default)]
struct Signature {
    left: Vec<usize>,
    right: Vec<usize>,
}

fn signatures(lhs: &Matrix, rhs: &Matrix, matching: &Matching) -> Vec<Signature> {
    let keep = if matching.on { Keep::Only(&matching.labels) } else { Keep::Without(&matching.labels) };
    let mut known: HashMap<Vec<u8>, usize> = HashMap::with_capacity(lhs.rows().max(rhs.rows()));
    let mut found: Vec<Signature> = Vec::new();
    let mut key = Vec::new();
    for (matrix, is_left) in [(lhs, true), (rhs, false)] {
        for row in 0..matrix.rows() {
            keep.write_key(matrix.labels(row), &mut key);
            let at = match known.get(key.as_slice()) {
                Some(at) => *at,
                None => {
                    known.insert(key.clone(), found.len());
                    found.push(Signature::default());
                    found.len() - 1
                }
            };
            let side = &mut found[at];
            if is_left { side.left.push(row) } else { side.right.push(row) }
        }
    }
    found
}

/// Presence of any of the rows.
fn union(matrix: &Matrix, rows: &[usize]) -> Mask {
    let mut mask = Mask::none(matrix.steps());
    rows.iter().for_each(|row| mask.or(matrix.mask(*row)));
    mask
}

/// `and`, `or`, `unless`.
///
/// # Errors
/// Two results with the same labels at one step; limits.
pub(crate) fn set_operation(
    op: BinaryOp,
    lhs: &Matrix,
    rhs: &Matrix,
    matching: &Matching,
    control: &Control,
) -> Result<Matrix, QueryError> {
    let signatures = signatures(lhs, rhs, matching);
    let rows = lhs.rows() + if op == BinaryOp::Or { rhs.rows() } else { 0 };
    let mut out = Output::new(lhs.grid, rows, control)?;
    let mut own = Mask::none(lhs.steps());
    let mut other = vec![None; lhs.rows()];
    for signature in &signatures {
        let mask = union(rhs, &signature.right);
        signature.left.iter().for_each(|row| other[*row] = Some(mask.clone()));
    }
    for (row, other) in other.iter().enumerate() {
        own.copy_from(lhs.mask(row));
        match (op, other) {
            (BinaryOp::And, Some(other)) => own.and(other.row()),
            (BinaryOp::Unless, Some(other)) => own.and_not(other.row()),
            _ => {}
        }
        out.add(lhs.labels(row).clone(), lhs.drop_name(row), lhs.values(row), own.row())?;
    }
    if op == BinaryOp::Or {
        let mut left = vec![0; rhs.rows()];
        signatures.iter().enumerate().for_each(|(i, s)| s.right.iter().for_each(|row| left[*row] = i));
        for (row, signature) in left.iter().enumerate() {
            own.copy_from(rhs.mask(row));
            own.and_not(union(lhs, &signatures[*signature].left).row());
            out.add(rhs.labels(row).clone(), rhs.drop_name(row), rhs.values(row), own.row())?;
        }
    }
    Ok(out.matrix)
}

/// Result rows; rows with equal labels that never meet become one.
struct Output {
    matrix: Matrix,
    rows: HashMap<Labels, usize>,
}

impl Output {
    fn new(grid: super::matrix::Grid, rows: usize, control: &Control) -> Result<Self, QueryError> {
        control.check_cells(rows, grid.len)?;
        Ok(Self { matrix: Matrix::with_capacity(grid, rows), rows: HashMap::with_capacity(rows) })
    }

    fn add(&mut self, labels: Labels, drop_name: bool, values: &[f64], mask: RowMask<'_>) -> Result<(), QueryError> {
        if mask.first(values.len()).is_none() {
            return Ok(());
        }
        // At a single step duplicates are found at the end of the query, when names are dropped: until then an aggregation may still
        // make them one.
        if self.matrix.steps() == 1 {
            self.matrix.push(labels, drop_name, values, mask);
            return Ok(());
        }
        if let Some(&into) = self.rows.get(&labels) {
            let earlier = mask.first(values.len()) < self.matrix.mask(into).first(values.len());
            if !self.matrix.merge_row(into, values, mask) {
                return Err(QueryError::execution(SAME_LABELSET));
            }
            if earlier {
                self.matrix.set_drop_name(into, drop_name);
            }
            return Ok(());
        }
        self.rows.insert(labels.clone(), self.matrix.rows());
        self.matrix.push(labels, drop_name, values, mask);
        Ok(())
    }
}

/// Two results of one step have the same labels.
pub(crate) const SAME_LABELSET: &str = "vector cannot contain metrics with the same labelset";

/// What [`vectors`] returns.
#[derive(Debug)]
pub(crate) struct Joined {
    /// The results.
    pub(crate) matrix: Matrix,
    /// Whether a trim operator met two floats, which it leaves out.
    pub(crate) refused_pairs: bool,
}

/// Arithmetic, comparison and trim operators between two vectors.
///
/// # Errors
/// Matching that is not unique, in Prometheus' words; limits.
pub(crate) fn vectors(
    op: BinaryOp,
    lhs: &Matrix,
    rhs: &Matrix,
    matching: &Matching,
    return_bool: bool,
    control: &Control,
) -> Result<Joined, QueryError> {
    let swapped = matching.cardinality == Cardinality::OneToMany;
    let (many, one) = if swapped { (rhs, lhs) } else { (lhs, rhs) };
    // With `group_right` Prometheus swaps the sides but not their fill values: `fill_left` always stands in for the "many" side.
    let (fill_many, fill_one) = (matching.fill_left, matching.fill_right);
    let mut join = Join {
        op,
        matching,
        return_bool,
        swapped,
        many,
        one,
        fill_many,
        fill_one,
        any_many: union(many, &(0..many.rows()).collect::<Vec<_>>()),
        out: Output::new(lhs.grid, many.rows() + if fill_many.is_some() { one.rows() } else { 0 }, control)?,
        values: vec![0.0; lhs.steps()],
        refused_pairs: false,
    };
    for (i, signature) in signatures(lhs, rhs, matching).iter().enumerate() {
        control.check_series(i)?;
        let (many_rows, one_rows) = if swapped { (&signature.right, &signature.left) } else { (&signature.left, &signature.right) };
        join.signature(many_rows, one_rows)?;
    }
    Ok(Joined { matrix: join.out.matrix, refused_pairs: join.refused_pairs })
}

struct Join<'a> {
    op: BinaryOp,
    matching: &'a Matching,
    return_bool: bool,
    /// The "one" side stands on the left.
    swapped: bool,
    many: &'a Matrix,
    one: &'a Matrix,
    fill_many: Option<f64>,
    fill_one: Option<f64>,
    /// Steps at which the "many" side has any row.
    any_many: Mask,
    out: Output,
    values: Vec<f64>,
    refused_pairs: bool,
}

/// One operand of a pair: a row, or a value that stands in for a missing row.
#[derive(Clone, Copy)]
enum Operand<'a> {
    Row(&'a [f64]),
    Fill(f64),
}

impl Operand<'_> {
    #[inline]
    fn get(&self, step: usize) -> f64 {
        match self {
            Self::Row(values) => values[step],
            Self::Fill(value) => *value,
        }
    }
}

impl Join<'_> {
    fn signature(&mut self, many_rows: &[usize], one_rows: &[usize]) -> Result<(), QueryError> {
        if many_rows.is_empty() && (one_rows.is_empty() || self.fill_many.is_none()) {
            return self.check_one(one_rows);
        }
        self.check_one(one_rows)?;
        self.check_many(many_rows, one_rows)?;
        let mut produced = HashMap::new();
        let (many, one) = (self.many, self.one);
        for &m in many_rows {
            let mut missing = Mask::none(many.steps());
            missing.copy_from(many.mask(m));
            for &o in one_rows {
                let mut mask = Mask::none(many.steps());
                mask.copy_from(many.mask(m));
                mask.and(one.mask(o));
                missing.and_not(one.mask(o));
                let labels = self.result_labels(many.labels(m), one.labels(o));
                self.pair(labels, many.drop_name(m), Operand::Row(many.values(m)), Operand::Row(one.values(o)), mask, &mut produced)?;
            }
            if let Some(fill) = self.fill_one {
                let labels = self.result_labels(many.labels(m), &self.match_labels(many.labels(m)));
                self.pair(labels, many.drop_name(m), Operand::Row(many.values(m)), Operand::Fill(fill), missing, &mut produced)?;
            }
        }
        let Some(fill) = self.fill_many else { return Ok(()) };
        let present = union(many, many_rows);
        for &o in one_rows {
            let mut missing = Mask::none(many.steps());
            missing.copy_from(one.mask(o));
            missing.and_not(present.row());
            let labels = self.result_labels(&self.match_labels(one.labels(o)), one.labels(o));
            self.pair(labels, one.drop_name(o), Operand::Fill(fill), Operand::Row(one.values(o)), missing, &mut produced)?;
        }
        Ok(())
    }

    /// No step may have two rows on the "one" side, where the other side has anything to match.
    fn check_one(&self, rows: &[usize]) -> Result<(), QueryError> {
        if rows.len() < 2 {
            return Ok(());
        }
        let filled = self.fill_many.is_some() || self.fill_one.is_some();
        let mut seen = Mask::none(self.one.steps());
        for (i, &row) in rows.iter().enumerate() {
            let mut both = seen.clone();
            both.and(self.one.mask(row));
            if !filled {
                both.and(self.any_many.row());
            }
            if let Some(step) = both.row().first(self.one.steps()) {
                let earlier = rows[..i].iter().find(|r| self.one.mask(**r).has(step));
                return Err(self.duplicate(*earlier.unwrap_or(&row), row));
            }
            seen.or(self.one.mask(row));
        }
        Ok(())
    }

    fn duplicate(&self, a: usize, b: usize) -> QueryError {
        let side = if self.swapped { "left" } else { "right" };
        let (a, b) = (self.one.labels(a), self.one.labels(b));
        QueryError::Execution(format!(
            "found duplicate series for the match group {} on the {side} hand-side of the operation: [{}, {}];\
             many-to-many matching not allowed: matching labels must be unique on one side",
            set_text(&self.match_labels(b)),
            metric_text(b),
            metric_text(a),
        ))
    }

    /// One-to-one matching may find only one row on the "many" side too.
    fn check_many(&self, many_rows: &[usize], one_rows: &[usize]) -> Result<(), QueryError> {
        if self.matching.cardinality != Cardinality::OneToOne || many_rows.len() < 2 {
            return Ok(());
        }
        let matched = if self.fill_one.is_some() { Mask::all(self.one.steps()) } else { union(self.one, one_rows) };
        let mut seen = Mask::none(self.many.steps());
        for &row in many_rows {
            let mut mask = Mask::none(self.many.steps());
            mask.copy_from(self.many.mask(row));
            mask.and(matched.row());
            let mut meet = seen.clone();
            meet.and(mask.row());
            if !meet.is_empty() {
                return Err(QueryError::execution(
                    "multiple matches for labels: many-to-one matching must be explicit (group_left/group_right)",
                ));
            }
            seen.or(mask.row());
        }
        Ok(())
    }

    /// Computes one pair where `mask` says that both are there.
    fn pair(
        &mut self,
        labels: Labels,
        drop_name: bool,
        many: Operand<'_>,
        one: Operand<'_>,
        mut mask: Mask,
        produced: &mut HashMap<Labels, Mask>,
    ) -> Result<(), QueryError> {
        if mask.is_empty() {
            return Ok(());
        }
        if self.op.is_trim() {
            self.refused_pairs = true;
            return Ok(());
        }
        self.check_unique(&labels, &mask, produced)?;
        let (left, right) = if self.swapped { (one, many) } else { (many, one) };
        self.compute(left, right, &mut mask);
        let values = std::mem::take(&mut self.values);
        let drop = self.return_bool || drop_name;
        let added = self.out.add(labels, drop, &values, mask.row());
        self.values = values;
        added
    }

    /// With `group_left` and `group_right` two rows may end up with the same labels.
    fn check_unique(&self, labels: &Labels, mask: &Mask, produced: &mut HashMap<Labels, Mask>) -> Result<(), QueryError> {
        if self.matching.cardinality == Cardinality::OneToOne {
            return Ok(());
        }
        match produced.get_mut(labels) {
            Some(theirs) => {
                let mut meet = theirs.clone();
                meet.and(mask.row());
                if !meet.is_empty() {
                    return Err(QueryError::execution("multiple matches for labels: grouping labels must ensure unique matches"));
                }
                theirs.or(mask.row());
            }
            None => {
                produced.insert(labels.clone(), mask.clone());
            }
        }
        Ok(())
    }

    fn compute(&mut self, left: Operand<'_>, right: Operand<'_>, mask: &mut Mask) {
        let op = self.op;
        if !op.is_comparison() {
            match (left, right) {
                (Operand::Row(a), Operand::Row(b)) => {
                    self.values.iter_mut().zip(a.iter().zip(b)).for_each(|(v, (a, b))| *v = arithmetic(op, *a, *b));
                }
                _ => self.values.iter_mut().enumerate().for_each(|(s, v)| *v = arithmetic(op, left.get(s), right.get(s))),
            }
            return;
        }
        for (s, v) in self.values.iter_mut().enumerate() {
            let (a, b) = (left.get(s), right.get(s));
            let holds = compare(op, a, b);
            *v = if self.return_bool { f64::from(u8::from(holds)) } else { a };
            if !holds && !self.return_bool {
                mask.unset(s);
            }
        }
    }

    /// The labels by which a row finds its partner.
    fn match_labels(&self, labels: &Labels) -> Labels {
        let keep = if self.matching.on { Keep::Only(&self.matching.labels) } else { Keep::Without(&self.matching.labels) };
        let mut key = Vec::new();
        keep.write_key(labels, &mut key);
        from_key(&key)
    }

    /// The labels of a result: those of the "many" side, or the matching ones, and the included ones of the "one" side.
    fn result_labels(&self, many: &Labels, one: &Labels) -> Labels {
        let m = self.matching;
        let arithmetic = !self.op.is_comparison() && !self.op.is_trim();
        let one_to_one = m.cardinality == Cardinality::OneToOne;
        let mut labels = many.without(|name| {
            let listed = m.labels.iter().any(|l| l == name);
            (arithmetic && is_metadata(name)) || (one_to_one && listed != m.on)
        });
        for name in &m.include {
            labels = with(&labels, name, one.get(name).unwrap_or(""));
        }
        labels
    }
}
