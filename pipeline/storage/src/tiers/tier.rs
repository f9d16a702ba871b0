//! Which tiers there are, and the names under which their table remembers how far it is.

use fletch_schemas::tables::Table;

/// One tier: windows of one width in one table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tier {
    /// `1m`, as in the table's name, in transactions and in config keys.
    pub name: &'static str,
    /// The table that holds its rows.
    pub table: Table,
    /// Width of its windows, in milliseconds; divides a day.
    pub width_ms: i64,
}

impl Tier {
    /// Every tier, narrow windows first.
    pub const ALL: [Self; 3] = [
        Self { name: "1m", table: Table::Samples1m, width_ms: 60_000 },
        Self { name: "5m", table: Table::Samples5m, width_ms: 300_000 },
        Self { name: "1h", table: Table::Samples1h, width_ms: 3_600_000 },
    ];

    /// The tier of this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|tier| tier.name == name)
    }

    /// End of the window that a time falls in.
    pub fn window_end(&self, time_ms: i64) -> i64 {
        time_ms.saturating_sub(1).div_euclid(self.width_ms).saturating_mul(self.width_ms).saturating_add(self.width_ms)
    }

    /// The last end of a window at or before a time.
    pub fn floor(&self, time_ms: i64) -> i64 {
        time_ms.div_euclid(self.width_ms).saturating_mul(self.width_ms)
    }

    /// App id: the version of `samples` that was consumed.
    pub fn cursor(&self) -> String {
        format!("tier:{}", self.name)
    }

    /// App id: windows that end at or before this were written; milliseconds.
    pub fn until(&self) -> String {
        format!("tier:{}:until", self.name)
    }

    /// App id: when the consumed version was committed; milliseconds.
    pub fn seen(&self) -> String {
        format!("tier:{}:seen", self.name)
    }

    /// App id: the version of `samples` whose late rows were consumed.
    pub fn late(&self) -> String {
        format!("tier:{}:late", self.name)
    }

    /// App id: when that version was committed; milliseconds.
    pub fn late_seen(&self) -> String {
        format!("tier:{}:late:seen", self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::Tier;

    #[test]
    fn windows_are_open_on_the_left_and_closed_on_the_right() {
        let tier = Tier::ALL[0];
        for (time, end) in [(0, 0), (1, 60_000), (60_000, 60_000), (60_001, 120_000), (-1, 0), (-60_000, -60_000), (-60_001, -60_000)] {
            assert_eq!(tier.window_end(time), end, "{time}");
        }
        for tier in Tier::ALL {
            assert_eq!((tier.window_end(1), tier.floor(-1), 86_400_000 % tier.width_ms), (tier.width_ms, -tier.width_ms, 0));
            assert_eq!(Tier::named(tier.name), Some(tier));
            assert!(tier.table.name().ends_with(tier.name));
        }
    }
}
