//! One data file of a table, as the file index holds it, and its form in the log.
//!
//! # Invariants
//! - **F1** Ranges are truthful: no row of the file lies outside of them. Delta cuts times to milliseconds, so the index adds 1 ms to every
//!   maximum it reads.
//! - **F2** A path is relative to the table, as the object's key below the root. Only the log has it URL-encoded.

use super::action::{Add, Remove, TextMap, decode_path, encode_path};
use crate::StorageError;
use chrono::{DateTime, Datelike, NaiveDate, SecondsFormat};
use fletch_schemas::TenantId;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use uuid::Uuid;

/// Days from 0001-01-01 to 1970-01-01 in chrono's count.
const EPOCH_FROM_CE: i32 = 719_163;

const TAG_PARTITION: &str = "fletch.partition";
const TAG_FROM: &str = "fletch.from";
const TAG_TO: &str = "fletch.to";
const TAG_COMMITTED: &str = "fletch.committed";
const TAG_HASH: &str = "fletch.hash";
const TAG_COMPACTED: &str = "fletch.compacted";
const TAG_REMOVED_BY: &str = "fletch.removedBy";

/// xxh3-128 over all bytes of a file; as text `xxh3-128:` and 32 hex digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FileHash(pub u128);

impl FileHash {
    /// The hash of these bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Self(xxhash_rust::xxh3::xxh3_128(bytes))
    }

    /// The reverse of [`fmt::Display`]; `None` for another kind of hash.
    pub fn parse(text: &str) -> Option<Self> {
        let digits = text.strip_prefix("xxh3-128:").filter(|d| d.len() == 32)?;
        u128::from_str_radix(digits, 16).ok().map(Self)
    }
}

impl fmt::Display for FileHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "xxh3-128:{:032x}", self.0)
    }
}

/// Which part of the bus a flush file holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BusRange {
    /// Partition of the bus.
    pub partition: u32,
    /// First offset.
    pub from: i64,
    /// The next offset to read.
    pub to: i64,
}

/// Where a file belongs and where it comes from; what the writer of a file must know before its first row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileIdentity {
    /// Whose rows.
    pub tenant: TenantId,
    /// Of which day (days since 1970-01-01).
    pub date: i32,
    /// Which part of the bus; `None` when it was merged from several.
    pub bus: Option<BusRange>,
    /// When its youngest row was first committed, milliseconds: now for a flush, the maximum of the inputs for a compaction.
    pub committed_ms: i64,
    /// When it is written, milliseconds.
    pub written_ms: i64,
    /// Makes the file's name unique.
    pub uuid: Uuid,
}

impl FileIdentity {
    /// An identity with a name of its own, of rows that are committed for the first time now.
    pub fn new(tenant: TenantId, date: i32, bus: Option<BusRange>, committed_ms: i64) -> Self {
        Self { tenant, date, bus, committed_ms, written_ms: committed_ms, uuid: Uuid::new_v4() }
    }

    /// The same, written at another time than its rows were first committed (compaction, rewriting).
    #[must_use]
    pub fn written_at(self, written_ms: i64) -> Self {
        Self { written_ms, ..self }
    }

    /// `tenant=…/date=…/<uuid>.parquet`.
    pub fn path(&self) -> String {
        format!("{}{}.parquet", partition_folder(&self.tenant, self.date), self.uuid)
    }
}

/// Ranges of the key columns, both ends inclusive; `None` where the writer gave no statistics or the table has no such column.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KeyRanges {
    /// Smallest and largest metric name, by bytes.
    pub metrics: Option<(Arc<str>, Arc<str>)>,
    /// Smallest and largest series id.
    pub series_ids: Option<(i64, i64)>,
    /// Earliest and latest time, milliseconds. The latest is rounded up (F1).
    pub times_ms: Option<(i64, i64)>,
}

impl KeyRanges {
    /// Whether rows of this metric can be inside.
    pub fn may_hold_metric(&self, metric: &str) -> bool {
        self.metrics.as_ref().is_none_or(|(min, max)| (min.as_ref()..=max.as_ref()).contains(&metric))
    }

    /// Whether rows of `from..=to` (milliseconds) can be inside.
    pub fn may_hold_times(&self, from_ms: i64, to_ms: i64) -> bool {
        self.times_ms.is_none_or(|(min, max)| min <= to_ms && from_ms <= max)
    }
}

/// One active file of a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileEntry {
    /// Relative to the table's root (F2).
    pub path: String,
    /// Bytes.
    pub size: u64,
    /// Whose rows.
    pub tenant: TenantId,
    /// Of which day (days since 1970-01-01).
    pub date: i32,
    /// Number of rows; 0 when the writer (not us) gave no statistics.
    pub rows: u64,
    /// Ranges of the key columns.
    pub keys: KeyRanges,
    /// Which part of the bus; `None` when it was merged from several.
    pub bus: Option<BusRange>,
    /// When its youngest row was first committed, milliseconds.
    pub committed_ms: i64,
    /// Hash over the whole file; `None` for another writer's file.
    pub hash: Option<FileHash>,
    /// Whether its commit brought new rows. Not kept by checkpoints: false after one.
    pub data_change: bool,
    /// Series ids of its first and last row, when a compaction wrote it: with the metrics these are the exact ends of its keys. Its rows were
    /// in the files that the same commit removed.
    pub compacted: Option<(i64, i64)>,
    /// When it was written, milliseconds.
    pub modification_time_ms: i64,
}

/// A file that left the table and whose bytes wait for the vacuum.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemovedFile {
    /// Relative to the table's root (F2).
    pub path: String,
    /// When it was removed, milliseconds.
    pub removed_ms: i64,
    /// The version that removed it.
    pub removed_by: i64,
    /// Whether its rows left the table with it. Known of commits that were followed; true for what a checkpoint names.
    pub data_change: bool,
    /// Bytes, when known.
    pub size: Option<u64>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Stats {
    num_records: u64,
    min_values: KeyValues,
    max_values: KeyValues,
    null_count: BTreeMap<String, Value>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct KeyValues {
    #[serde(skip_serializing_if = "Option::is_none")]
    metric: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    series_id: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    time: Option<String>,
}

impl FileEntry {
    /// The entry of a file of ours.
    pub(crate) fn of_written(identity: &FileIdentity, bytes: &[u8], rows: u64, keys: KeyRanges) -> Self {
        Self {
            path: identity.path(),
            size: bytes.len() as u64,
            tenant: identity.tenant.clone(),
            date: identity.date,
            rows,
            keys,
            bus: identity.bus,
            committed_ms: identity.committed_ms,
            hash: Some(FileHash::of(bytes)),
            data_change: true,
            compacted: None,
            modification_time_ms: identity.written_ms,
        }
    }

    /// Reads an `add` action.
    ///
    /// # Errors
    /// The reason (without the log's name) when the partition values, path or size are not ours to understand.
    pub(crate) fn from_add(add: &Add) -> Result<Self, String> {
        let path = decode_path(&add.path).ok_or_else(|| format!("`{}` is not a URL-encoded path", add.path))?;
        let (tenant, date) = partition_of(&add.partition_values).map_err(|why| format!("`{path}`: {why}"))?;
        // Statistics of another writer that we cannot read are as good as none.
        let stats: Option<Stats> = add.stats.as_deref().and_then(|text| serde_json::from_str(text).ok());
        let tags = add.tags.as_ref();
        let committed = tag(tags, TAG_COMMITTED).and_then(|t| t.parse().ok());
        Ok(Self {
            size: u64::try_from(add.size).map_err(|_| format!("`{path}`: size {}", add.size))?,
            path,
            tenant,
            date,
            rows: stats.as_ref().map_or(0, |s| s.num_records),
            keys: stats.as_ref().map(key_ranges).unwrap_or_default(),
            bus: bus_range(tags),
            committed_ms: committed.unwrap_or(add.modification_time),
            hash: tag(tags, TAG_HASH).and_then(FileHash::parse),
            data_change: add.data_change,
            compacted: tag(tags, TAG_COMPACTED).and_then(key_ends),
            modification_time_ms: add.modification_time,
        })
    }

    /// The `add` action of this file.
    pub(crate) fn to_add(&self) -> Add {
        Add {
            path: encode_path(&self.path),
            partition_values: self.partition_values(),
            size: i64::try_from(self.size).unwrap_or(i64::MAX),
            modification_time: self.modification_time_ms,
            data_change: self.data_change,
            stats: (self.rows > 0).then(|| stats_json(self.rows, &self.keys)),
            tags: Some(self.tags()),
        }
    }

    /// The `remove` action of this file.
    pub(crate) fn to_remove(&self, removed_ms: i64, data_change: bool) -> Remove {
        Remove {
            path: encode_path(&self.path),
            deletion_timestamp: Some(removed_ms),
            data_change,
            extended_file_metadata: Some(true),
            partition_values: Some(self.partition_values()),
            size: i64::try_from(self.size).ok(),
            tags: None,
        }
    }

    fn partition_values(&self) -> TextMap {
        TextMap::from([("tenant".into(), Some(self.tenant.as_str().to_owned())), ("date".into(), Some(date_text(self.date)))])
    }

    fn tags(&self) -> TextMap {
        let mut tags = TextMap::from([(TAG_COMMITTED.into(), Some(self.committed_ms.to_string()))]);
        if let Some(hash) = self.hash {
            tags.insert(TAG_HASH.into(), Some(hash.to_string()));
        }
        if let Some((first, last)) = self.compacted {
            tags.insert(TAG_COMPACTED.into(), Some(format!("{first},{last}")));
        }
        if let Some(bus) = self.bus {
            tags.insert(TAG_PARTITION.into(), Some(bus.partition.to_string()));
            tags.insert(TAG_FROM.into(), Some(bus.from.to_string()));
            tags.insert(TAG_TO.into(), Some(bus.to.to_string()));
        }
        tags
    }
}

impl RemovedFile {
    /// Reads a `remove` action of version `version` (or of a checkpoint of that version).
    pub(crate) fn from_remove(remove: &Remove, version: i64) -> Result<Self, String> {
        let path = decode_path(&remove.path).ok_or_else(|| format!("`{}` is not a URL-encoded path", remove.path))?;
        let removed_by = tag(remove.tags.as_ref(), TAG_REMOVED_BY).and_then(|t| t.parse().ok());
        Ok(Self {
            path,
            removed_ms: remove.deletion_timestamp.unwrap_or(0),
            removed_by: removed_by.unwrap_or(version),
            data_change: remove.data_change || removed_by.is_some(),
            size: remove.size.and_then(|s| u64::try_from(s).ok()),
        })
    }

    /// The `remove` action of a checkpoint.
    pub(crate) fn to_remove(&self) -> Remove {
        Remove {
            path: encode_path(&self.path),
            deletion_timestamp: Some(self.removed_ms),
            data_change: false,
            extended_file_metadata: Some(false),
            partition_values: None,
            size: self.size.and_then(|s| i64::try_from(s).ok()),
            tags: Some(TextMap::from([(TAG_REMOVED_BY.into(), Some(self.removed_by.to_string()))])),
        }
    }
}

/// Tenant and date in the partition values of an action.
pub(crate) fn partition_of(values: &TextMap) -> Result<(TenantId, i32), String> {
    let value = |name: &str| values.get(name).and_then(Option::as_deref).ok_or_else(|| format!("partition value `{name}` is missing"));
    let tenant = TenantId::new(value("tenant")?).map_err(|e| e.to_string())?;
    let date = value("date")?;
    Ok((tenant, parse_date(date).ok_or_else(|| format!("`{date}` is not a date"))?))
}

/// `tenant=…/date=…/`.
pub(crate) fn partition_folder(tenant: &TenantId, date: i32) -> String {
    format!("tenant={}/date={}/", tenant.path_segment(), date_text(date))
}

/// `1970-01-01` and the like.
pub(crate) fn date_text(date: i32) -> String {
    let day = date.checked_add(EPOCH_FROM_CE).and_then(NaiveDate::from_num_days_from_ce_opt);
    day.map_or_else(|| format!("day{date}"), |d| d.format("%Y-%m-%d").to_string())
}

/// The reverse of [`date_text`].
pub(crate) fn parse_date(text: &str) -> Option<i32> {
    NaiveDate::parse_from_str(text, "%Y-%m-%d").ok().map(|d| d.num_days_from_ce() - EPOCH_FROM_CE)
}

fn tag<'a>(tags: Option<&'a TextMap>, name: &str) -> Option<&'a str> {
    tags?.get(name)?.as_deref()
}

/// `<first id>,<last id>`.
fn key_ends(text: &str) -> Option<(i64, i64)> {
    let (first, last) = text.split_once(',')?;
    Some((first.parse().ok()?, last.parse().ok()?))
}

fn bus_range(tags: Option<&TextMap>) -> Option<BusRange> {
    Some(BusRange {
        partition: tag(tags, TAG_PARTITION)?.parse().ok()?,
        from: tag(tags, TAG_FROM)?.parse().ok()?,
        to: tag(tags, TAG_TO)?.parse().ok()?,
    })
}

fn key_ranges(stats: &Stats) -> KeyRanges {
    let (min, max) = (&stats.min_values, &stats.max_values);
    let time = |text: &Option<String>| text.as_deref().and_then(parse_time_ms);
    KeyRanges {
        metrics: min.metric.as_deref().zip(max.metric.as_deref()).map(|(a, b)| (Arc::from(a), Arc::from(b))),
        series_ids: min.series_id.zip(max.series_id),
        times_ms: time(&min.time).zip(time(&max.time)).map(|(a, b)| (a, b.saturating_add(1))),
    }
}

fn parse_time_ms(text: &str) -> Option<i64> {
    DateTime::parse_from_rfc3339(text).ok().map(|t| t.timestamp_millis())
}

fn stats_json(rows: u64, keys: &KeyRanges) -> String {
    let mut stats = Stats { num_records: rows, ..Stats::default() };
    if let Some((min, max)) = &keys.metrics {
        stats.min_values.metric = Some(min.as_ref().to_owned());
        stats.max_values.metric = Some(max.as_ref().to_owned());
        stats.null_count.insert("metric".into(), json!(0));
    }
    if let Some((min, max)) = keys.series_ids {
        (stats.min_values.series_id, stats.max_values.series_id) = (Some(min), Some(max));
        stats.null_count.insert("series_id".into(), json!(0));
    }
    if let Some((min, max)) = keys.times_ms.and_then(|(a, b)| time_text(a).zip(time_text(b.saturating_sub(1)))) {
        (stats.min_values.time, stats.max_values.time) = (Some(min), Some(max));
        stats.null_count.insert("time".into(), json!(0));
    }
    serde_json::to_string(&stats).expect("statistics are plain numbers and texts")
}

fn time_text(ms: i64) -> Option<String> {
    DateTime::from_timestamp_millis(ms).map(|t| t.to_rfc3339_opts(SecondsFormat::Millis, true))
}

/// The reason as an error about the object `path`.
pub(crate) fn corrupt(path: impl Into<String>, why: impl Into<String>) -> StorageError {
    StorageError::Corrupt { path: path.into(), why: why.into() }
}
