//! Self-metrics of storage.

use fletch_common::metrics::{Counter, Gauge, Histogram, Registry, duration_buckets};

/// What storage counts. Clones share their values.
#[derive(Debug, Clone)]
pub struct Metrics {
    /// Samples taken in.
    pub samples_inserted: Counter,
    /// Samples that were there already, or lost against the other value of their (series, time).
    pub copies_dropped: Counter,
    /// Samples that cannot be stored (a time outside of every calendar); only damage in a log makes them.
    pub samples_refused: Counter,
    /// Runs that no file holds.
    pub runs: Gauge,
    /// Bytes of samples that no file holds.
    pub unflushed_bytes: Gauge,
    /// Bytes of decoded copies of files.
    pub resident_bytes: Gauge,
    /// Series known to the label indexes.
    pub series: Gauge,
    /// Flushes that committed something.
    pub flushes: Counter,
    /// Flushes that failed; their data stays in memory.
    pub flush_failures: Counter,
    /// How long a flush took.
    pub flush_seconds: Histogram,
    /// Files of `samples` that were read from the store into memory.
    pub files_read: Counter,
    /// Partitions that another process had taken.
    pub fenced: Counter,
    /// Samples that flushes have committed.
    pub samples_flushed: Counter,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            samples_inserted: Counter::default(),
            copies_dropped: Counter::default(),
            samples_refused: Counter::default(),
            runs: Gauge::default(),
            unflushed_bytes: Gauge::default(),
            resident_bytes: Gauge::default(),
            series: Gauge::default(),
            flushes: Counter::default(),
            flush_failures: Counter::default(),
            flush_seconds: Histogram::new(duration_buckets()),
            files_read: Counter::default(),
            fenced: Counter::default(),
            samples_flushed: Counter::default(),
        }
    }
}

impl Metrics {
    /// Adds them to the registry of the process.
    pub fn register(&self, registry: &mut Registry) {
        let m = self.clone();
        registry.register("fletch_storage_samples_inserted", "Samples taken in", m.samples_inserted);
        registry.register(
            "fletch_storage_copies_dropped",
            "Samples that were stored already or lost against the other value of their time",
            m.copies_dropped,
        );
        registry.register("fletch_storage_samples_refused", "Samples with an impossible time", m.samples_refused);
        registry.register("fletch_storage_runs", "Runs in memory that no file holds", m.runs);
        registry.register("fletch_storage_unflushed_bytes", "Bytes of samples that no file holds", m.unflushed_bytes);
        registry.register("fletch_storage_resident_bytes", "Bytes of decoded copies of files", m.resident_bytes);
        registry.register("fletch_storage_series", "Series in the label indexes", m.series);
        registry.register("fletch_storage_flushes", "Flushes that committed", m.flushes);
        registry.register("fletch_storage_flush_failures", "Flushes that failed; their data stays in memory", m.flush_failures);
        registry.register("fletch_storage_flush_seconds", "Duration of flushes", m.flush_seconds);
        registry.register("fletch_storage_files_read", "Files read from the store into memory", m.files_read);
        registry.register("fletch_storage_fenced", "Partitions that another process had taken", m.fenced);
        registry.register("fletch_storage_samples_flushed", "Samples committed to the tables", m.samples_flushed);
    }
}
