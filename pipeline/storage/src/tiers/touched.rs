//! Which windows of which series have to be computed.

use super::WINDOW_MS;
use crate::parquet_file::SamplesRows;
use fletch_schemas::{TenantId, date_of_ms};
use std::collections::BTreeMap;
use std::sync::Arc;

/// (metric, series id) → ends of windows, ascending, each once.
pub(super) type Windows = BTreeMap<(Arc<str>, i64), Vec<i64>>;

#[derive(Debug, Default)]
pub(super) struct Touched {
    partitions: BTreeMap<(TenantId, i32), Windows>,
}

/// End of the window that a time falls in.
pub(super) fn window_end(time_ms: i64) -> i64 {
    (time_ms - 1).div_euclid(WINDOW_MS) * WINDOW_MS + WINDOW_MS
}

impl Touched {
    /// Adds the windows of some rows whose ends lie in `(after, until]`.
    pub(super) fn add(&mut self, tenant: &TenantId, rows: &SamplesRows, after: i64, until: i64) {
        for series in &rows.series {
            let mut last = i64::MIN;
            for &time in &rows.times[series.rows.clone()] {
                let end = window_end(time);
                if end == last || end <= after || end > until {
                    continue;
                }
                last = end;
                let windows = self.partitions.entry((tenant.clone(), date_of_ms(end))).or_default();
                windows.entry((series.metric.clone(), series.series_id)).or_default().push(end);
            }
        }
    }

    /// Windows per partition of the tier, sorted.
    pub(super) fn by_partition(self) -> impl Iterator<Item = (TenantId, i32, Windows)> {
        self.partitions.into_iter().map(|((tenant, date), mut windows)| {
            for ends in windows.values_mut() {
                ends.sort_unstable();
                ends.dedup();
            }
            (tenant, date, windows)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::window_end;

    #[test]
    fn windows_are_open_on_the_left_and_closed_on_the_right() {
        for (time, end) in [(0, 0), (1, 60_000), (60_000, 60_000), (60_001, 120_000), (-1, 0), (-60_000, -60_000), (-60_001, -60_000)] {
            assert_eq!(window_end(time), end, "{time}");
        }
    }
}
