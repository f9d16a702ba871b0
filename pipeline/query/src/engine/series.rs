//! From selected samples to rows of a matrix: instant selectors, and the bookkeeping that range functions share.
//!
//! Series that share a stretch of times (one scrape target, mostly) form a *group*: everything that depends on times alone is computed
//! once per group. A series with stale markers leaves its group, because its samples are filtered first.

use super::control::Control;
use super::error::QueryError;
use super::kernels::rate::interpolate_at;
use super::matrix::{Grid, Mask, Matrix, words_for};
use super::windows::{Spans, upper_bounds};
use fletch_schemas::{SeriesSet, is_stale};
use hashbrown::HashMap;

/// Series numbers of a set, group after group.
#[derive(Debug, Default)]
pub(crate) struct Groups {
    /// Numbers of all series, those of one group adjacent.
    pub(crate) order: Vec<u32>,
    /// Where each group ends in `order`.
    pub(crate) ends: Vec<u32>,
}

impl Groups {
    /// Groups the series that share their times.
    pub(crate) fn of(set: &SeriesSet) -> Self {
        let n = set.len() as u32;
        if n == 0 {
            return Self::default();
        }
        let key = |i: usize| {
            let s = set.slices[i];
            (s.columns, s.time_start, s.len)
        };
        if (1..set.len()).all(|i| key(i) == key(0)) {
            return Self { order: (0..n).collect(), ends: vec![n] };
        }
        let mut ids = Vec::with_capacity(set.len());
        let mut sizes: Vec<u32> = Vec::new();
        let mut known: HashMap<(u32, u32, u32), u32> = HashMap::new();
        let mut last = None;
        for i in 0..set.len() {
            let id = match last {
                Some((k, id)) if k == key(i) => id,
                _ => *known.entry(key(i)).or_insert_with(|| {
                    sizes.push(0);
                    sizes.len() as u32 - 1
                }),
            };
            last = Some((key(i), id));
            sizes[id as usize] += 1;
            ids.push(id);
        }
        Self::from_ids(&ids, sizes)
    }

    /// Counting sort: `ids[i]` is the group of series `i`, `sizes` the number of series of each group.
    fn from_ids(ids: &[u32], sizes: Vec<u32>) -> Self {
        let mut at = Vec::with_capacity(sizes.len());
        let mut ends = sizes;
        let mut total = 0;
        for end in &mut ends {
            at.push(total);
            total += *end;
            *end = total;
        }
        let mut order = vec![0; ids.len()];
        for (i, id) in ids.iter().enumerate() {
            order[at[*id as usize] as usize] = i as u32;
            at[*id as usize] += 1;
        }
        Self { order, ends }
    }

    /// The groups.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &[u32]> {
        self.ends.iter().scan(0, |start, end| {
            let group = &self.order[*start as usize..*end as usize];
            *start = *end;
            Some(group)
        })
    }
}

/// Whether any of the values is a stale marker.
pub(crate) fn has_stale(values: &[f64]) -> bool {
    values.iter().fold(false, |any, v| any | is_stale(*v))
}

/// The samples that are not stale markers.
pub(crate) fn without_stale(times: &[i64], values: &[f64]) -> (Vec<i64>, Vec<f64>) {
    times.iter().zip(values).filter(|(_, v)| !is_stale(**v)).map(|(t, v)| (*t, *v)).unzip()
}

/// Rows of a matrix under construction, filled in any order.
#[derive(Debug)]
pub(crate) struct RowsMut {
    grid: Grid,
    words: usize,
    /// `rows * grid.len` values.
    pub(crate) values: Vec<f64>,
    /// `rows * words` presence words.
    pub(crate) present: Vec<u64>,
}

impl RowsMut {
    /// `rows` rows without cells.
    ///
    /// # Errors
    /// [`QueryError::TooManySamples`].
    pub(crate) fn new(grid: Grid, rows: usize, control: &Control) -> Result<Self, QueryError> {
        control.check_cells(rows, grid.len)?;
        let words = words_for(grid.len);
        Ok(Self { grid, words, values: vec![0.0; rows * grid.len], present: vec![0; rows * words] })
    }

    /// Values of a row.
    #[inline]
    pub(crate) fn row(&mut self, row: usize) -> &mut [f64] {
        &mut self.values[row * self.grid.len..][..self.grid.len]
    }

    /// Sets the presence of a row.
    #[inline]
    pub(crate) fn set_mask(&mut self, row: usize, mask: &Mask) {
        self.present[row * self.words..][..self.words].copy_from_slice(mask.words());
    }

    /// The finished matrix; rows that got no cell are gone.
    pub(crate) fn finish(self, set: &SeriesSet, drop_name: Vec<bool>) -> Matrix {
        Matrix::from_parts(self.grid, set.labels.clone(), drop_name, self.values, self.present)
    }
}

/// What an instant selector returns for each sample it finds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pick {
    /// Its value.
    Value,
    /// Its time in seconds (`timestamp()`).
    Time,
}

/// For each step the newest sample that is at most `spans.width_ms` old (exclusive), unless it is a stale marker.
///
/// # Errors
/// Limits and [`Control::check`].
pub(crate) fn instant(set: &SeriesSet, spans: Spans, grid: Grid, pick: Pick, control: &Control) -> Result<Matrix, QueryError> {
    let mut rows = RowsMut::new(grid, set.len(), control)?;
    let mut found = Vec::new();
    let mut mask = Mask::none(grid.len);
    let mut own_mask = mask.clone();
    for group in Groups::of(set).iter() {
        let times = set.times(group[0] as usize);
        newest(times, spans, &mut found, &mut mask);
        for &i in group {
            control.check_series(i as usize)?;
            let values = set.values(i as usize);
            let stale = gather(&found, values, rows.row(i as usize));
            if stale {
                own_mask.clone_from(&mask);
                unset_stale(&mut own_mask, rows.row(i as usize));
            }
            if pick == Pick::Time {
                let out = rows.row(i as usize);
                out.iter_mut().zip(&found).for_each(|(out, at)| *out = times.get(*at as usize).map_or(0.0, |t| *t as f64 / 1000.0));
            }
            rows.set_mask(i as usize, if stale { &own_mask } else { &mask });
        }
    }
    Ok(rows.finish(set, vec![false; set.len()]))
}

/// Row of the newest sample of each step and whether it is young enough. Steps without one point at row 0.
fn newest(times: &[i64], spans: Spans, found: &mut Vec<u32>, mask: &mut Mask) {
    upper_bounds(times, spans.first_ms, spans.step_ms, spans.len, found);
    mask.clear();
    for (i, at) in found.iter_mut().enumerate() {
        let after = *at as usize;
        *at = at.saturating_sub(1);
        if after > 0 && times[after - 1] > spans.end(i).saturating_sub(spans.width_ms) {
            mask.set(i);
        }
    }
}

/// Copies the found values; says whether a stale marker is among them.
#[inline]
fn gather(found: &[u32], values: &[f64], out: &mut [f64]) -> bool {
    if values.is_empty() {
        return false;
    }
    let mut stale = false;
    for (out, at) in out.iter_mut().zip(found) {
        let value = values[*at as usize];
        stale |= is_stale(value);
        *out = value;
    }
    stale
}

fn unset_stale(mask: &mut Mask, row: &[f64]) {
    for (i, value) in row.iter().enumerate() {
        if is_stale(*value) {
            mask.unset(i);
        }
    }
}

/// An instant selector with `smoothed`: the value at each step interpolated between the samples around it, which may be
/// `spans.width_ms` away; after the last sample its value is carried.
///
/// # Errors
/// Limits and [`Control::check`].
pub(crate) fn smoothed(set: &SeriesSet, spans: Spans, grid: Grid, control: &Control) -> Result<Matrix, QueryError> {
    let mut rows = RowsMut::new(grid, set.len(), control)?;
    let mut mask = Mask::none(grid.len);
    for i in 0..set.len() {
        control.check_series(i)?;
        let (times, values) = without_stale(set.times(i), set.values(i));
        mask.clear();
        let out = rows.row(i);
        for (step, out) in out.iter_mut().enumerate() {
            if let Some(value) = smoothed_at(&times, &values, spans.end(step), spans.width_ms) {
                *out = value;
                mask.set(step);
            }
        }
        rows.set_mask(i, &mask);
    }
    Ok(rows.finish(set, vec![false; set.len()]))
}

fn smoothed_at(times: &[i64], values: &[f64], at_ms: i64, reach_ms: i64) -> Option<f64> {
    let from = super::windows::seek(times, at_ms.saturating_sub(reach_ms));
    let to = super::windows::seek(times, at_ms.saturating_add(reach_ms));
    let (times, values) = (&times[from..to], &values[from..to]);
    let next = times.partition_point(|t| *t < at_ms);
    match (next.checked_sub(1), times.get(next)) {
        (_, Some(t)) if *t == at_ms => Some(values[next]),
        (Some(before), Some(_)) => Some(interpolate_at(times, values, before, at_ms)),
        (Some(before), None) => Some(values[before]),
        (None, _) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fletch_common::Limits;
    use fletch_schemas::{Labels, stale_marker};
    use tokio_util::sync::CancellationToken;

    fn labels(name: &str) -> Labels {
        Labels::from_pairs([("__name__", name)]).expect("valid")
    }

    fn spans(first_ms: i64, step_ms: i64, len: usize) -> Spans {
        Spans { first_ms, step_ms, width_ms: 15, len }
    }

    #[test]
    fn groups_keep_the_order_of_series() {
        let mut set = SeriesSet::default();
        for i in 0..4 {
            set.push(labels(&i.to_string()), vec![0, 1], vec![0.0; 2]);
        }
        set.slices[2] = set.slices[0];
        let groups = Groups::of(&set);
        assert_eq!(groups.iter().map(<[u32]>::to_vec).collect::<Vec<_>>(), [vec![0, 2], vec![1], vec![3]]);
    }

    #[test]
    fn an_instant_looks_back_and_stops_at_stale_markers() {
        let mut set = SeriesSet::default();
        set.push(labels("a"), vec![0, 10, 20], vec![1.0, 2.0, stale_marker()]);
        set.push(labels("b"), vec![0, 10, 20], vec![1.0, 2.0, 3.0]);
        set.push(labels("c"), vec![500], vec![1.0]);
        let grid = Grid::range(0, 40, 5).expect("valid");
        let control = Control::new(&Limits::default(), None, CancellationToken::new());
        let m = instant(&set, spans(0, 5, 9), grid, Pick::Value, &control).expect("small");
        let row = |r: usize| (0..9).map(|s| if m.mask(r).has(s) { m.values(r)[s] as i64 } else { -1 }).collect::<Vec<_>>();
        assert_eq!(m.rows(), 2);
        assert_eq!(row(0), [1, 1, 2, 2, -1, -1, -1, -1, -1]);
        assert_eq!(row(1), [1, 1, 2, 2, 3, 3, 3, -1, -1]);
    }
}
