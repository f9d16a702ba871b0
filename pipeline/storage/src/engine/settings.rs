//! The numbers a user tunes, each a named bound.

use std::time::Duration;

/// Settings of storage. Sizes are bytes of decoded samples in memory (16 B each).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// A flush begins at this much unflushed data.
    pub flush_bytes: u64,
    /// A flush begins this long after the last one.
    pub flush_interval: Duration,
    /// More unflushed data than this refuses new appends (`admission`).
    pub unflushed_bytes_max: u64,
    /// Budget of the log; a flush begins when about half of it was appended since the last one. `None`: not bounded by us.
    pub log_bytes_max: Option<u64>,
    /// Budget of decoded copies of files, least recently used go first.
    pub resident_bytes_max: u64,
    /// How often the tables are looked at for commits of others.
    pub refresh_interval: Duration,
    /// How often a failing step of a flush is tried before the flush reports the error (data stays, the next flush takes it).
    pub attempts_max: u32,
    /// Longest pattern of a regular expression, in bytes.
    pub regex_bytes_max: usize,
}

impl Settings {
    /// Defaults for a machine with so much memory: a quarter of it for decoded copies of files.
    pub fn for_memory(ram_bytes: u64) -> Self {
        let quarter = ram_bytes / 4;
        Self {
            flush_bytes: (256 << 20).min(quarter / 4),
            unflushed_bytes_max: (1 << 30).min(quarter / 2),
            resident_bytes_max: quarter,
            ..Self::default()
        }
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            flush_bytes: 256 << 20,
            flush_interval: Duration::from_secs(300),
            unflushed_bytes_max: 1 << 30,
            log_bytes_max: None,
            resident_bytes_max: 2 << 30,
            refresh_interval: Duration::from_secs(1),
            attempts_max: 5,
            regex_bytes_max: 4 << 10,
        }
    }
}
