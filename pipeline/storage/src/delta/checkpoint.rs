//! Classic checkpoints: the state of a table at one version as one Parquet file of actions.
//!
//! Written for every reader of the Delta protocol, read from every writer of it. Ours carry the version that removed a file in the
//! tags of its `remove`, and their own hash in the tags of `_last_checkpoint`.

use super::action::{Action, Txn};
use super::file::{FileHash, corrupt};
use super::snapshot::Snapshot;
use crate::StorageError;
use crate::parquet_file::contained;
use arrow::array::RecordBatch;
use arrow::datatypes::{DataType, Field, Fields, Schema, SchemaRef};
use arrow::json::{LineDelimitedWriter, ReaderBuilder};
use bytes::Bytes;
use object_store::path::Path;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::arrow::{ArrowWriter, ProjectionMask};
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Rows that are turned into Arrow at once.
const BATCH_ROWS: usize = 4_096;

const TAG_HASH: &str = "fletch.hash";

/// The content of `_last_checkpoint`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct LastCheckpoint {
    pub(crate) version: i64,
    /// Number of actions.
    pub(crate) size: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) parts: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) size_in_bytes: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) num_of_add_files: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) tags: Option<BTreeMap<String, String>>,
}

impl LastCheckpoint {
    /// Hash of the checkpoint's bytes, when we wrote it.
    pub(crate) fn hash(&self) -> Option<FileHash> {
        self.tags.as_ref()?.get(TAG_HASH).and_then(|text| FileHash::parse(text))
    }
}

/// A checkpoint of a snapshot: the file's bytes, and the hint that names it.
pub(crate) fn write(path: &Path, snapshot: &Snapshot) -> Result<(Vec<u8>, LastCheckpoint), StorageError> {
    let actions = actions_of(path, snapshot)?;
    let bytes = encode(path, &actions)?;
    let hint = LastCheckpoint {
        version: snapshot.version(),
        size: i64::try_from(actions.len()).unwrap_or(i64::MAX),
        parts: None,
        size_in_bytes: i64::try_from(bytes.len()).ok(),
        num_of_add_files: i64::try_from(snapshot.totals().files).ok(),
        tags: Some(BTreeMap::from([(TAG_HASH.to_owned(), FileHash::of(&bytes).to_string())])),
    };
    Ok((bytes, hint))
}

/// The actions that add up to this state.
fn actions_of(path: &Path, snapshot: &Snapshot) -> Result<Vec<Action>, StorageError> {
    let missing = || corrupt(path.as_ref(), "the state to write has no metadata or no protocol");
    let metadata = snapshot.metadata().ok_or_else(missing)?;
    let mut actions = vec![
        Action { protocol: Some(snapshot.protocol().ok_or_else(missing)?), ..Action::default() },
        Action { meta_data: Some(metadata.as_ref().clone()), ..Action::default() },
    ];
    actions.extend(snapshot.txn_actions().map(|txn: &Txn| Action { txn: Some(txn.clone()), ..Action::default() }));
    actions.extend(snapshot.files().map(|file| {
        let mut add = file.to_add();
        add.data_change = false;
        Action { add: Some(add), ..Action::default() }
    }));
    actions.extend(snapshot.removed().map(|file| Action { remove: Some(file.to_remove()), ..Action::default() }));
    Ok(actions)
}

fn encode(path: &Path, actions: &[Action]) -> Result<Vec<u8>, StorageError> {
    let arrow = |source| StorageError::Arrow { doing: "building a checkpoint", source };
    let parquet = |source| StorageError::Parquet { doing: "writing", path: path.to_string(), source };
    let schema = schema();
    let zstd = Compression::ZSTD(ZstdLevel::try_new(1).map_err(parquet)?);
    let properties = WriterProperties::builder().set_compression(zstd).set_statistics_enabled(EnabledStatistics::None).build();
    let mut writer = ArrowWriter::try_new(Vec::new(), schema.clone(), Some(properties)).map_err(parquet)?;
    let mut decoder = ReaderBuilder::new(schema).with_batch_size(BATCH_ROWS).build_decoder().map_err(arrow)?;
    for rows in actions.chunks(BATCH_ROWS) {
        decoder.serialize(rows).map_err(arrow)?;
        if let Some(batch) = decoder.flush().map_err(arrow)? {
            writer.write(&batch).map_err(parquet)?;
        }
    }
    writer.into_inner().map_err(parquet)
}

/// The actions of one checkpoint file.
pub(crate) fn read_actions(path: &str, bytes: Bytes) -> Result<Vec<Action>, StorageError> {
    contained(path, || {
        let parquet = |source| StorageError::Parquet { doing: "reading", path: path.to_owned(), source };
        let builder = ParquetRecordBatchReaderBuilder::try_new(bytes).map_err(parquet)?;
        // Only the columns we know: others may have types that do not turn into JSON.
        let known = ["protocol", "metaData", "txn", "add", "remove"];
        let roots = builder.parquet_schema().root_schema().get_fields().iter().enumerate();
        let wanted: Vec<usize> = roots.filter(|(_, f)| known.contains(&f.name())).map(|(i, _)| i).collect();
        let mask = ProjectionMask::roots(builder.parquet_schema(), wanted);
        let mut actions = Vec::new();
        for batch in builder.with_projection(mask).build().map_err(parquet)? {
            let batch = batch.map_err(|source| StorageError::Arrow { doing: "reading a checkpoint", source })?;
            actions.append(&mut actions_of_batch(path, &batch)?);
        }
        Ok(actions)
    })
}

fn actions_of_batch(path: &str, batch: &RecordBatch) -> Result<Vec<Action>, StorageError> {
    let arrow = |source| StorageError::Arrow { doing: "reading a checkpoint", source };
    let mut writer = LineDelimitedWriter::new(Vec::new());
    writer.write(batch).and_then(|()| writer.finish()).map_err(arrow)?;
    let text = writer.into_inner();
    let lines = text.split(|&b| b == b'\n').filter(|line| !line.is_empty());
    lines.map(|line| serde_json::from_slice(line).map_err(|e| corrupt(path, format!("a row is not an action: {e}")))).collect()
}

/// Refuses a checkpoint of several files when one is missing: `<version>.checkpoint.<part>.<parts>.parquet`.
pub(crate) fn check_parts(first: &Path, names: &[String]) -> Result<(), StorageError> {
    let numbers = |name: &str| {
        let mut parts = name.split('.').skip(2);
        let part: usize = parts.next()?.parse().ok()?;
        Some((part, parts.next()?.parse::<usize>().ok()?))
    };
    let complete = match names {
        [one] => numbers(one).is_none_or(|(_, parts)| parts == 1),
        many => many.iter().enumerate().all(|(i, name)| numbers(name) == Some((i + 1, many.len()))),
    };
    if complete { Ok(()) } else { Err(corrupt(first.as_ref(), "a part of this checkpoint is missing")) }
}

fn schema() -> SchemaRef {
    let text = |name: &str| Field::new(name, DataType::Utf8, true);
    let long = |name: &str| Field::new(name, DataType::Int64, true);
    let int = |name: &str| Field::new(name, DataType::Int32, true);
    let flag = |name: &str| Field::new(name, DataType::Boolean, true);
    let group = |name: &str, fields: Vec<Field>| Field::new(name, DataType::Struct(Fields::from(fields)), true);
    let names = Field::new("partitionColumns", DataType::List(Arc::new(Field::new("element", DataType::Utf8, true))), true);
    let format = group("format", vec![text("provider"), text_map("options")]);
    Arc::new(Schema::new(vec![
        group("protocol", vec![int("minReaderVersion"), int("minWriterVersion")]),
        group(
            "metaData",
            vec![
                text("id"),
                text("name"),
                text("description"),
                format,
                text("schemaString"),
                names,
                long("createdTime"),
                text_map("configuration"),
            ],
        ),
        group("txn", vec![text("appId"), long("version"), long("lastUpdated")]),
        group(
            "add",
            vec![
                text("path"),
                text_map("partitionValues"),
                long("size"),
                long("modificationTime"),
                flag("dataChange"),
                text("stats"),
                text_map("tags"),
            ],
        ),
        group(
            "remove",
            vec![
                text("path"),
                long("deletionTimestamp"),
                flag("dataChange"),
                flag("extendedFileMetadata"),
                text_map("partitionValues"),
                long("size"),
                text_map("tags"),
            ],
        ),
    ]))
}

fn text_map(name: &str) -> Field {
    let pair = Fields::from(vec![Field::new("key", DataType::Utf8, false), Field::new("value", DataType::Utf8, true)]);
    let entries = Field::new("key_value", DataType::Struct(pair), false);
    Field::new(name, DataType::Map(Arc::new(entries), false), true)
}
