//! Which windows of which series have to be computed.

use super::Tier;
use crate::parquet_file::SamplesRows;
use fletch_schemas::{TenantId, date_of_ms};
use std::collections::BTreeMap;
use std::sync::Arc;

/// (metric, series id) → ends of windows, ascending, each once.
pub(super) type Windows = BTreeMap<(Arc<str>, i64), Vec<i64>>;

#[derive(Debug)]
pub(super) struct Touched {
    tier: Tier,
    partitions: BTreeMap<(TenantId, i32), Windows>,
}

impl Touched {
    pub(super) fn new(tier: Tier) -> Self {
        Self { tier, partitions: BTreeMap::new() }
    }

    /// Adds the windows of some rows whose ends lie in `(after, until]`.
    pub(super) fn add(&mut self, tenant: &TenantId, rows: &SamplesRows, after: i64, until: i64) {
        for series in &rows.series {
            let mut last = i64::MIN;
            for &time in &rows.times[series.rows.clone()] {
                let end = self.tier.window_end(time);
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
