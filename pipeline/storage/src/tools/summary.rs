//! How large the tables are and what is in them.
//!
//! Reads the logs, and for one table's encodings the footers of its newest files; never a row.

use super::tables_in_reading_order;
use crate::StorageError;
use crate::delta::{FileEntry, Snapshot, TableReader, date_text};
use crate::parquet_file::FileSource;
use object_store::ObjectStore;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Newest files of a table whose footers are read for its encodings.
const ENCODING_FILES_MAX: usize = 16;

/// All tables of a store.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StoreSummary {
    /// The bus that has claimed the store; `None` when none has.
    pub bus: Option<String>,
    /// Ascending by name.
    pub tables: Vec<TableSummary>,
    /// Everything that a sample costs at rest without tiers: files and logs of `samples` and `series` by rows of `samples`.
    pub bytes_per_sample: Option<f64>,
    /// Folders below `tables/` without a log.
    pub not_tables: Vec<String>,
}

/// One table.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TableSummary {
    /// Its name.
    pub name: String,
    /// Its newest version.
    pub version: i64,
    /// Active files.
    pub files: u64,
    /// Rows in them.
    pub rows: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Bytes of the log folder.
    pub log_bytes: u64,
    /// Bytes by rows; `None` without rows.
    pub bytes_per_row: Option<f64>,
    /// Bytes by rows of `samples`: what this tier costs per sample; `None` without samples.
    pub bytes_per_sample: Option<f64>,
    /// Files that the log has removed and the vacuum has not forgotten.
    pub removed_files: u64,
    /// First and last date with files, `YYYY-MM-DD`.
    pub dates: Option<(String, String)>,
    /// Tenants with files.
    pub tenants: Vec<TenantSummary>,
    /// Offsets and cursors: application and the version it wrote last.
    pub offsets: BTreeMap<String, i64>,
}

/// What one tenant has in a table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TenantSummary {
    /// Its name.
    pub name: String,
    /// Active files.
    pub files: u64,
    /// Rows in them.
    pub rows: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// One table in detail.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TableDetails {
    /// As in the list.
    pub summary: TableSummary,
    /// Columns: name, Delta type, nullable.
    pub columns: Vec<(String, String, bool)>,
    /// Names of the partition columns.
    pub partition_columns: Vec<String>,
    /// Table properties.
    pub properties: BTreeMap<String, Option<String>>,
    /// Per (tenant, date), ascending.
    pub partitions: Vec<PartitionSummary>,
    /// Per column of the newest files, in the order of the file.
    pub encodings: Vec<ColumnEncoding>,
    /// How many files [`encodings`](Self::encodings) come from.
    pub encodings_of_files: usize,
}

/// One (tenant, date) of a table.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PartitionSummary {
    /// Whose.
    pub tenant: String,
    /// `YYYY-MM-DD`.
    pub date: String,
    /// Active files.
    pub files: u64,
    /// Rows in them.
    pub rows: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Bytes by rows; `None` without rows.
    pub bytes_per_row: Option<f64>,
}

/// How a column is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ColumnEncoding {
    /// Its path in the Parquet schema.
    pub column: String,
    /// Encodings that occur, by name.
    pub encodings: Vec<String>,
    /// Codecs that occur, by name.
    pub compression: Vec<String>,
    /// Bytes on the store.
    pub compressed_bytes: u64,
    /// Bytes before compression.
    pub uncompressed_bytes: u64,
}

/// Looks at every table of a store.
///
/// # Errors
/// [`StorageError::ObjectStore`]; [`StorageError::Corrupt`] and [`StorageError::Protocol`] naming the table that cannot be read.
pub async fn summarize(store: &Arc<dyn ObjectStore>) -> Result<StoreSummary, StorageError> {
    let (mut tables, mut not_tables) = (Vec::new(), Vec::new());
    for reader in tables_in_reading_order(store).await? {
        match reader.snapshot().await? {
            Some(snapshot) => tables.push(summary_of(&reader, &snapshot).await?),
            None => not_tables.push(reader.name().to_owned()),
        }
    }
    tables.sort_by(|a, b| a.name.cmp(&b.name));
    let samples = tables.iter().find(|t| t.name == "samples").map_or(0, |t| t.rows);
    for table in &mut tables {
        table.bytes_per_sample = ratio(table.bytes, samples);
    }
    let raw = tables.iter().filter(|t| t.name == "samples" || t.name == "series").map(|t| t.bytes + t.log_bytes).sum();
    let bus = crate::delta::store::claimed_bus(store.as_ref()).await?;
    Ok(StoreSummary { bus, tables, bytes_per_sample: ratio(raw, samples), not_tables })
}

/// Looks at one table closely; `None` when there is none of this name.
///
/// # Errors
/// As [`summarize`], and what a footer that cannot be read gives.
pub async fn describe(store: &Arc<dyn ObjectStore>, name: &str) -> Result<Option<TableDetails>, StorageError> {
    let Some(reader) = TableReader::all(store).await?.into_iter().find(|t| t.name() == name) else { return Ok(None) };
    let Some(snapshot) = reader.snapshot().await? else { return Ok(None) };
    let metadata = snapshot.metadata().cloned();
    let (encodings, encodings_of_files) = encodings_of(&reader, &snapshot).await?;
    Ok(Some(TableDetails {
        summary: summary_of(&reader, &snapshot).await?,
        columns: metadata.as_ref().map(|m| columns_of(&m.schema_string)).unwrap_or_default(),
        partition_columns: metadata.as_ref().map(|m| m.partition_columns.clone()).unwrap_or_default(),
        properties: metadata.map(|m| m.configuration.clone()).unwrap_or_default(),
        partitions: partitions_of(&snapshot),
        encodings,
        encodings_of_files,
    }))
}

async fn summary_of(reader: &TableReader, snapshot: &Snapshot) -> Result<TableSummary, StorageError> {
    let totals = snapshot.totals();
    let dates: BTreeSet<i32> = snapshot.tenants().flat_map(|t| snapshot.dates(t)).collect();
    let tenants = snapshot.tenants().map(|tenant| {
        let files = snapshot.tenant_files(tenant, i32::MIN..=i32::MAX);
        let (files, rows, bytes) = sum(files);
        TenantSummary { name: tenant.to_string(), files, rows, bytes }
    });
    Ok(TableSummary {
        name: reader.name().to_owned(),
        version: snapshot.version(),
        files: totals.files,
        rows: totals.rows,
        bytes: totals.bytes,
        log_bytes: reader.listing().await?.objects.iter().map(|(_, meta)| meta.size).sum(),
        bytes_per_row: ratio(totals.bytes, totals.rows),
        bytes_per_sample: None,
        removed_files: snapshot.removed().count() as u64,
        dates: dates.first().zip(dates.last()).map(|(a, b)| (date_text(*a), date_text(*b))),
        tenants: tenants.collect(),
        offsets: snapshot.txns().map(|(app, version)| (app.to_owned(), version)).collect(),
    })
}

fn partitions_of(snapshot: &Snapshot) -> Vec<PartitionSummary> {
    let mut out = Vec::new();
    for tenant in snapshot.tenants() {
        for date in snapshot.dates(tenant) {
            let (files, rows, bytes) = sum(snapshot.partition(tenant, date).iter());
            let bytes_per_row = ratio(bytes, rows);
            out.push(PartitionSummary { tenant: tenant.to_string(), date: date_text(date), files, rows, bytes, bytes_per_row });
        }
    }
    out
}

fn sum<'a>(files: impl Iterator<Item = &'a Arc<FileEntry>>) -> (u64, u64, u64) {
    files.fold((0, 0, 0), |(n, rows, bytes), f| (n + 1, f.rows.saturating_add(rows), f.size.saturating_add(bytes)))
}

fn ratio(bytes: u64, rows: u64) -> Option<f64> {
    (rows > 0).then(|| bytes as f64 / rows as f64)
}

/// Name, type and nullability of the columns in Delta's JSON; types that are not plain come as their JSON.
fn columns_of(schema: &str) -> Vec<(String, String, bool)> {
    let parsed: serde_json::Value = serde_json::from_str(schema).unwrap_or_default();
    let fields = parsed["fields"].as_array().cloned().unwrap_or_default();
    let plain = |kind: &serde_json::Value| match kind.as_str() {
        Some(text) => text.to_owned(),
        None if kind["type"] == "map" => {
            format!("map({}, {})", kind["keyType"].as_str().unwrap_or("?"), kind["valueType"].as_str().unwrap_or("?"))
        }
        None => kind.to_string(),
    };
    fields
        .iter()
        .map(|f| (f["name"].as_str().unwrap_or_default().to_owned(), plain(&f["type"]), f["nullable"].as_bool().unwrap_or(true)))
        .collect()
}

async fn encodings_of(reader: &TableReader, snapshot: &Snapshot) -> Result<(Vec<ColumnEncoding>, usize), StorageError> {
    let mut files: Vec<&Arc<FileEntry>> = snapshot.files().collect();
    files.sort_by(|a, b| b.modification_time_ms.cmp(&a.modification_time_ms).then_with(|| a.path.cmp(&b.path)));
    files.truncate(ENCODING_FILES_MAX);
    let mut columns: Vec<ColumnEncoding> = Vec::new();
    for file in &files {
        let source = FileSource::object(reader.store().clone(), reader.object_path(&file.path)?, file);
        let open = source.open().await?;
        for chunk in open.metadata().row_groups().iter().flat_map(|group| group.columns()) {
            let name = chunk.column_path().string();
            let at = columns.iter().position(|c| c.column == name).unwrap_or_else(|| {
                columns.push(ColumnEncoding {
                    column: name,
                    encodings: Vec::new(),
                    compression: Vec::new(),
                    compressed_bytes: 0,
                    uncompressed_bytes: 0,
                });
                columns.len() - 1
            });
            let column = &mut columns[at];
            chunk.encodings().for_each(|encoding| note(&mut column.encodings, format!("{encoding:?}")));
            note(&mut column.compression, codec_name(chunk.compression()));
            column.compressed_bytes += u64::try_from(chunk.compressed_size()).unwrap_or(0);
            column.uncompressed_bytes += u64::try_from(chunk.uncompressed_size()).unwrap_or(0);
        }
    }
    Ok((columns, files.len()))
}

fn note(known: &mut Vec<String>, name: String) {
    if !known.contains(&name) {
        known.push(name);
        known.sort();
    }
}

/// The codec without its level: a footer does not hold that, and the library fills in its own default.
fn codec_name(codec: parquet::basic::Compression) -> String {
    let text = format!("{codec:?}");
    text.split('(').next().unwrap_or_default().to_owned()
}
