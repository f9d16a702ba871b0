//! Bytes per sample of `samples` files under several efforts: what the choice of [`Effort::COMPACT`] rests on.
//!
//! ```text
//! cargo run -p fletch-storage --example encodings -- fletch-data/store/tables/samples/tenant=default/date=2026-01-31/*.parquet
//! ```
//!
//! All files are taken together, as a compaction of their day would.

#![allow(clippy::print_stdout, reason = "an example that prints a table")]

use fletch_schemas::TenantId;
use fletch_storage::StorageError;
use fletch_storage::delta::FileIdentity;
use fletch_storage::parquet_file::{Effort, FileSource, SamplesRows, SeriesSlice, read_samples, write_samples_with};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

/// Samples by (metric, series id).
type Series = BTreeMap<(String, i64), (Vec<i64>, Vec<f64>)>;

fn take(all: &mut Series, rows: &SamplesRows) {
    for series in &rows.series {
        let (times, values) = all.entry((series.metric.to_string(), series.series_id)).or_default();
        times.extend_from_slice(&rows.times[series.rows.clone()]);
        values.extend_from_slice(&rows.values[series.rows.clone()]);
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut all = Series::new();
    for argument in std::env::args().skip(1) {
        let path = Path::new(&argument).canonicalize()?;
        let source = FileSource::local(&path, std::fs::metadata(&path)?.len(), None)?;
        take(&mut all, &read_samples(&source).await?);
    }
    for (times, values) in all.values_mut() {
        let mut rows: Vec<(i64, f64)> = times.drain(..).zip(values.drain(..)).collect();
        rows.sort_by_key(|(time, _)| *time);
        rows.dedup_by_key(|(time, _)| *time);
        (*times, *values) = rows.into_iter().unzip();
    }
    let samples: usize = all.values().map(|(times, _)| times.len()).sum();
    println!("{} series, {samples} samples", all.len());
    for per_page in [false, true] {
        for zstd_level in [1, 3, 6, 9, 12] {
            print(&all, samples, Effort { zstd_level, per_page })?;
        }
    }
    Ok(())
}

fn print(all: &Series, samples: usize, effort: Effort) -> Result<(), StorageError> {
    let Some(first) = all.values().find_map(|(times, _)| times.first()) else { return Ok(()) };
    let identity = FileIdentity::new(TenantId::default(), fletch_schemas::date_of_ms(*first), None, 0);
    let started = Instant::now();
    let slices = all.iter().map(|((metric, id), (times, values))| SeriesSlice { metric, series_id: *id, times, values });
    let file = write_samples_with(slices, &identity, effort)?;
    let (bytes, seconds) = (file.bytes.len() as f64 / samples as f64, started.elapsed().as_secs_f64());
    println!("{effort:?}: {bytes:.3} bytes per sample, {:.2} s per million", seconds / samples as f64 * 1e6);
    Ok(())
}
