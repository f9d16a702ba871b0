//! Open windows of one rule: partial aggregates per (window end, group), and which samples they hold.

use super::aggregate::State;
use fletch_ingest::SeriesRef;
use std::collections::{BTreeMap, HashMap, HashSet};

/// Most open windows of a rule; the oldest close early beyond it, so that a sender with a wild clock cannot fill the memory.
pub(super) const WINDOWS_OPEN_MAX: usize = 100_000;

/// Number of a group inside a rule.
pub(super) type GroupRef = u32;

#[derive(Debug, Default)]
pub(super) struct Pane {
    pub(super) groups: HashMap<GroupRef, State, ahash::RandomState>,
    counted: HashSet<(SeriesRef, i64), ahash::RandomState>,
}

#[derive(Debug, Default)]
pub(super) struct Panes {
    open: BTreeMap<i64, Pane>,
}

impl Panes {
    /// Counts a sample into the window that ends at `end_ms`; false when it is counted there already.
    pub(super) fn add(&mut self, end_ms: i64, group: GroupRef, series: SeriesRef, time_ms: i64, value: f64) -> bool {
        let pane = self.open.entry(end_ms).or_default();
        if !pane.counted.insert((series, time_ms)) {
            return false;
        }
        pane.groups.entry(group).or_default().add(time_ms, value);
        true
    }

    /// Takes the first window if it ends at or before `watermark_ms`.
    pub(super) fn close_next(&mut self, watermark_ms: i64) -> Option<(i64, Pane)> {
        let first = self.open.first_entry()?;
        (*first.key() <= watermark_ms).then(|| first.remove_entry())
    }

    /// End of the first open window.
    pub(super) fn first_end(&self) -> Option<i64> {
        self.open.first_key_value().map(|(end, _)| *end)
    }

    /// Whether there is no room for one more window.
    pub(super) fn is_full(&self) -> bool {
        self.open.len() >= WINDOWS_OPEN_MAX
    }
}
