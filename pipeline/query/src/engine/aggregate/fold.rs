//! The aggregations that give one row per group: sum, avg, min, max, count, group, stddev, stdvar, quantile.

use super::super::control::Control;
use super::super::error::QueryError;
use super::super::kernels::quantile::quantile;
use super::super::kernels::sum::{mean_slow, neumaier, two_sum};
use super::super::matrix::{Matrix, words_for};
use super::super::scalar::Column;
use super::Grouping;
use fletch_promql::ast::AggregateOp;

/// Columns of all groups, `groups * steps` cells each.
struct Cells {
    steps: usize,
    /// Sum, extreme, or mean.
    main: Vec<f64>,
    /// Compensation of the sum, or sum of squared differences.
    aux: Vec<f64>,
    /// Number of values.
    count: Vec<u32>,
}

/// Aggregates `input`; `q` is the parameter of `quantile` and ignored otherwise.
///
/// # Errors
/// Limits and [`Control::check`].
pub(crate) fn fold(op: AggregateOp, q: &Column, input: &Matrix, grouping: &Grouping, control: &Control) -> Result<Matrix, QueryError> {
    let steps = input.steps();
    control.check_cells(grouping.len(), steps)?;
    let mut cells = Cells::new(op, grouping.len(), steps);
    for row in 0..input.rows() {
        control.check_series(row)?;
        cells.add(op, grouping.ids[row] as usize, input, row);
    }
    cells.finish(op, q, input, grouping);
    let words = words_for(steps);
    let mut present = vec![0u64; grouping.len() * words];
    for (cell, count) in cells.count.iter().enumerate() {
        if *count > 0 {
            let (group, step) = (cell / steps, cell % steps);
            present[group * words + step / 64] |= 1 << (step % 64);
        }
    }
    Ok(Matrix::from_parts(input.grid, grouping.labels.clone(), grouping.drop_names(input), cells.main, present))
}

impl Cells {
    fn new(op: AggregateOp, groups: usize, steps: usize) -> Self {
        let n = groups * steps;
        let start = if matches!(op, AggregateOp::Min | AggregateOp::Max) { f64::NAN } else { 0.0 };
        let wants_aux = matches!(op, AggregateOp::Sum | AggregateOp::Avg | AggregateOp::Stddev | AggregateOp::Stdvar);
        Self { steps, main: vec![start; n], aux: vec![0.0; if wants_aux { n } else { 0 }], count: vec![0; n] }
    }

    /// Adds one row to its group.
    fn add(&mut self, op: AggregateOp, group: usize, input: &Matrix, row: usize) {
        let range = group * self.steps..(group + 1) * self.steps;
        let values = input.values(row);
        let mask = input.mask(row);
        let count = &mut self.count[range.clone()];
        let main = &mut self.main[range.clone()];
        match op {
            AggregateOp::Sum | AggregateOp::Avg => {
                let aux = &mut self.aux[range];
                let (main, aux) = (&mut main[..values.len()], &mut aux[..values.len()]);
                mask.for_each(values.len(), |s| {
                    let (sum, error) = two_sum(main[s], values[s]);
                    main[s] = sum;
                    aux[s] += error;
                });
            }
            AggregateOp::Max => mask.for_each(values.len(), |s| {
                main[s] = if values[s] > main[s] || main[s].is_nan() { values[s] } else { main[s] };
            }),
            AggregateOp::Min => mask.for_each(values.len(), |s| {
                main[s] = if values[s] < main[s] || main[s].is_nan() { values[s] } else { main[s] };
            }),
            AggregateOp::Stddev | AggregateOp::Stdvar => {
                let aux = &mut self.aux[range];
                mask.for_each(values.len(), |s| {
                    let delta = values[s] - main[s];
                    main[s] += delta / f64::from(count[s] + 1);
                    aux[s] += delta * (values[s] - main[s]);
                });
            }
            _ => {}
        }
        mask.for_each(values.len(), |s| count[s] += 1);
    }

    /// Turns sums and counts into answers.
    fn finish(&mut self, op: AggregateOp, q: &Column, input: &Matrix, grouping: &Grouping) {
        match op {
            AggregateOp::Sum | AggregateOp::Avg => self.finish_sum(op == AggregateOp::Avg, input, grouping),
            AggregateOp::Count => self.main.iter_mut().zip(&self.count).for_each(|(m, c)| *m = f64::from(*c)),
            AggregateOp::Group => self.main.fill(1.0),
            AggregateOp::Stdvar | AggregateOp::Stddev => {
                let root = op == AggregateOp::Stddev;
                for (cell, main) in self.main.iter_mut().enumerate() {
                    let variance = self.aux[cell] / f64::from(self.count[cell].max(1));
                    *main = if root { variance.sqrt() } else { variance };
                }
            }
            AggregateOp::Quantile => self.finish_quantile(q, input, grouping),
            _ => {}
        }
    }

    /// Adds the compensation; cells whose sum is not finite are added up again by the loop that is right for them.
    fn finish_sum(&mut self, avg: bool, input: &Matrix, grouping: &Grouping) {
        let mut members = None;
        for cell in 0..self.main.len() {
            let (sum, comp, count) = (self.main[cell], self.aux[cell], f64::from(self.count[cell]));
            self.main[cell] = if (sum + comp).is_finite() {
                if avg { sum / count + comp / count } else { sum + comp }
            } else {
                let rows = &members.get_or_insert_with(|| grouping.members())[cell / self.steps];
                sum_again(avg, input, rows, cell % self.steps)
            };
        }
    }

    fn finish_quantile(&mut self, q: &Column, input: &Matrix, grouping: &Grouping) {
        let mut scratch = Vec::new();
        for (group, rows) in grouping.members().iter().enumerate() {
            for s in 0..self.steps {
                scratch.clear();
                scratch.extend(rows.iter().filter(|r| input.mask(**r).has(s)).map(|r| input.values(*r)[s]));
                self.main[group * self.steps + s] = quantile(q.get(s), &mut scratch);
            }
        }
    }
}

fn sum_again(avg: bool, input: &Matrix, rows: &[usize], step: usize) -> f64 {
    let mut values = rows.iter().filter(|r| input.mask(**r).has(step)).map(|r| input.values(*r)[step]);
    if avg {
        return mean_slow(values);
    }
    let Some(first) = values.next() else { return 0.0 };
    let (sum, comp) = values.fold((first, 0.0), |(s, c), v| neumaier(v, s, c));
    sum + comp
}

#[cfg(test)]
mod tests {
    use super::super::super::labels::Keep;
    use super::super::super::matrix::{Grid, Mask};
    use super::*;
    use fletch_common::Limits;
    use fletch_schemas::Labels;
    use proptest::prelude::*;
    use tokio_util::sync::CancellationToken;

    /// One aggregation of the values of one cell, written the obvious way.
    fn naive(op: AggregateOp, values: &[f64]) -> f64 {
        let n = values.len() as f64;
        let mean = values.iter().sum::<f64>() / n;
        let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n;
        match op {
            AggregateOp::Sum => values.iter().sum(),
            AggregateOp::Avg => mean,
            AggregateOp::Min => values.iter().copied().fold(f64::INFINITY, f64::min),
            AggregateOp::Max => values.iter().copied().fold(f64::NEG_INFINITY, f64::max),
            AggregateOp::Count => n,
            AggregateOp::Stdvar => variance,
            AggregateOp::Stddev => variance.sqrt(),
            AggregateOp::Quantile => {
                let mut sorted = values.to_vec();
                sorted.sort_by(f64::total_cmp);
                let rank = 0.5 * (n - 1.0);
                (sorted[rank.floor() as usize] + sorted[rank.ceil() as usize]) / 2.0
            }
            _ => 1.0,
        }
    }

    proptest! {
        #[test]
        fn folds_equal_a_loop_per_cell(
            cells in prop::collection::vec((-1e3f64..1e3, any::<bool>()), 70 * 6), groups in prop::collection::vec(0u8..3, 6),
        ) {
            let grid = Grid::range(0, 69, 1).expect("valid");
            let mut input = Matrix::empty(grid);
            for (row, group) in groups.iter().enumerate() {
                let labels = Labels::from_pairs([("g", group.to_string()), ("row", row.to_string())]).expect("valid");
                let part = &cells[row * 70..][..70];
                let mut mask = Mask::none(70);
                part.iter().enumerate().filter(|(_, c)| c.1).for_each(|(s, _)| mask.set(s));
                let values: Vec<f64> = part.iter().map(|c| c.0).collect();
                input.push(labels, false, &values, mask.row());
            }
            let by = ["g".to_owned()];
            let grouping = Grouping::of(&input, Keep::Only(&by));
            let control = Control::new(&Limits::default(), None, CancellationToken::new());
            use AggregateOp as A;
            for op in [A::Sum, A::Avg, A::Min, A::Max, A::Count, A::Group, A::Stddev, A::Stdvar, A::Quantile] {
                let got = fold(op, &Column::Const(0.5), &input, &grouping, &control).expect("small");
                for row in got.iter() {
                    for s in 0..70 {
                        let inside: Vec<f64> = input.iter()
                            .filter(|r| r.labels.get("g") == row.labels.get("g") && r.mask.has(s)).map(|r| r.values[s]).collect();
                        prop_assert_eq!(row.mask.has(s), !inside.is_empty());
                        if !inside.is_empty() {
                            let want = naive(op, &inside);
                            prop_assert!((row.values[s] - want).abs() < 1e-6, "{:?} {} {}", op, row.values[s], want);
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn infinities_and_overflow() {
        let mut input = Matrix::empty(Grid::instant(0));
        for (i, value) in [f64::MAX, f64::MAX, 1.0].into_iter().enumerate() {
            let labels = Labels::from_pairs([("i", i.to_string())]).expect("valid");
            input.push(labels, false, &[value], crate::engine::matrix::RowMask::Full);
        }
        let control = Control::new(&Limits::default(), None, CancellationToken::new());
        let run = |op| {
            let grouping = Grouping::of(&input, Keep::Only(&[]));
            fold(op, &Column::Const(0.0), &input, &grouping, &control).expect("small").values(0)[0]
        };
        assert_eq!(run(AggregateOp::Sum), f64::INFINITY);
        assert!((run(AggregateOp::Avg) / (f64::MAX / 3.0 * 2.0) - 1.0).abs() < 1e-12);
    }
}
