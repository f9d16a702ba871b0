//! The actions of a Delta log as we write and tolerate them, and the schema in Delta's JSON.
//!
//! ```text
//!  00000000000000000042.json     {"commitInfo":{…,"txnId":…,"contentHash":…}}     always our first line
//!                                {"txn":{…}}  {"add":{…}}  {"remove":{…}}          one action per line
//! ```
//!
//! # Invariants
//! - **D1** Reader 1, writer 2: no deletion vectors, no column mapping, no table features. Anything above is refused by name.
//! - **D2** Unknown actions and unknown fields of other writers are skipped, never an error.
//! - **D3** `contentHash` covers every byte after the first line, so a damaged commit of ours is an error, never a different table.
//!   A commit without it (another writer's) is taken as it is.
//!
//! # Not here
//! What the actions add up to ([`super::snapshot`]), how they reach the store ([`super::table`]).

use crate::StorageError;
use arrow::datatypes::{DataType, Schema, TimeUnit};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use uuid::Uuid;

/// `minReaderVersion` of our tables, and the highest one we read.
pub(super) const READER_VERSION: i32 = 1;
/// `minWriterVersion` of our tables, and the highest one we write.
pub(super) const WRITER_VERSION: i32 = 2;

/// A map of texts whose values may be null, as Delta's `partitionValues` and `tags`.
pub(super) type TextMap = BTreeMap<String, Option<String>>;

/// One line of a commit. Exactly one field is set; none when the action is unknown to us.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Action {
    /// Who committed what, when.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub commit_info: Option<CommitInfo>,
    /// Versions of the protocol that the table needs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub protocol: Option<Protocol>,
    /// Schema, partitioning and properties.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub meta_data: Option<Metadata>,
    /// The last version that an application wrote: our offsets.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub txn: Option<Txn>,
    /// A file joins the table.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub add: Option<Add>,
    /// A file leaves the table.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remove: Option<Remove>,
}

/// Who committed what, when.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct CommitInfo {
    /// Milliseconds since the Unix epoch.
    pub timestamp: i64,
    /// What was done, e.g. `WRITE`.
    pub operation: String,
    /// Details of the operation, for people.
    pub operation_parameters: Value,
    /// Which program.
    pub engine_info: Option<String>,
    /// Our commit id (a UUID); what an ambiguous commit is recognised by.
    pub txn_id: Option<String>,
    /// `xxh3-64:` and 16 hex digits over every byte after this line (D3).
    pub content_hash: Option<String>,
}

/// Versions of the protocol that the table needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Protocol {
    /// To read it.
    pub min_reader_version: i32,
    /// To write it.
    pub min_writer_version: i32,
}

/// Schema, partitioning and properties of a table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Metadata {
    /// Identity of the table, a UUID.
    pub id: String,
    /// Name for people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Text for people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// Of the data files.
    pub format: Format,
    /// The schema as JSON text.
    pub schema_string: String,
    /// Names of the partition columns, outermost first.
    pub partition_columns: Vec<String>,
    /// Milliseconds since the Unix epoch.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub created_time: Option<i64>,
    /// Table properties.
    #[serde(default)]
    pub configuration: TextMap,
}

/// Format of the data files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Format {
    /// Always `parquet`.
    pub provider: String,
    /// Always empty.
    #[serde(default)]
    pub options: TextMap,
}

/// The last version that an application wrote.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Txn {
    /// For us `bus:<log or topic>:<partition>` and the like.
    pub app_id: String,
    /// For us the next offset to read.
    pub version: i64,
    /// Milliseconds since the Unix epoch.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_updated: Option<i64>,
}

/// A file joins the table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Add {
    /// Relative to the table, URL-encoded.
    pub path: String,
    /// Values of the partition columns, as text.
    pub partition_values: TextMap,
    /// Bytes.
    pub size: i64,
    /// Milliseconds since the Unix epoch.
    pub modification_time: i64,
    /// Whether rows are new (false for compaction).
    pub data_change: bool,
    /// Row count and key ranges as JSON text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stats: Option<String>,
    /// Our own facts about the file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tags: Option<TextMap>,
}

/// A file leaves the table; its bytes stay until the vacuum.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Remove {
    /// Relative to the table, URL-encoded.
    pub path: String,
    /// Milliseconds since the Unix epoch; the age of the tombstone counts from here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deletion_timestamp: Option<i64>,
    /// Whether rows are gone (false for compaction).
    #[serde(default = "yes")]
    pub data_change: bool,
    /// Whether the next two fields are set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub extended_file_metadata: Option<bool>,
    /// As in [`Add`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub partition_values: Option<TextMap>,
    /// As in [`Add`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<i64>,
    /// In our checkpoints: the version that removed the file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tags: Option<TextMap>,
}

fn yes() -> bool {
    true
}

/// A commit as it was read back.
#[derive(Debug, Clone, PartialEq)]
pub struct CommitLog {
    /// Its version.
    pub version: i64,
    /// Its actions, in order; unknown ones are left out.
    pub actions: Vec<Action>,
}

impl CommitLog {
    /// Parses the bytes of `_delta_log/<version>.json`.
    ///
    /// # Errors
    /// [`StorageError::Corrupt`] naming `path` and the line when a line is not JSON, or when the content hash does not fit.
    pub fn parse(version: i64, path: &str, bytes: &[u8]) -> Result<Self, StorageError> {
        let corrupt = |why: String| StorageError::Corrupt { path: path.to_owned(), why };
        let mut actions = Vec::new();
        let mut rest = bytes;
        let mut number = 0;
        while !rest.is_empty() {
            number += 1;
            let end = rest.iter().position(|&b| b == b'\n');
            let (line, after) = end.map_or((rest, &[][..]), |at| (&rest[..at], &rest[at + 1..]));
            rest = after;
            if line.trim_ascii().is_empty() {
                continue;
            }
            let action: Action = serde_json::from_slice(line).map_err(|e| corrupt(format!("line {number}: {e}")))?;
            let expected = action.commit_info.as_ref().and_then(|info| info.content_hash.as_deref());
            if number == 1 && expected.is_some_and(|hash| hash != content_hash(rest)) {
                return Err(corrupt("its content does not have the hash that its first line names".into()));
            }
            if action != Action::default() {
                actions.push(action);
            }
        }
        if actions.is_empty() {
            return Err(corrupt("it has no action".into()));
        }
        Ok(Self { version, actions })
    }

    /// The commit's info, when the writer gave one.
    pub fn info(&self) -> Option<&CommitInfo> {
        self.actions.iter().find_map(|a| a.commit_info.as_ref())
    }

    /// The commit id, when it is one of ours.
    pub fn id(&self) -> Option<Uuid> {
        self.info().and_then(|info| info.txn_id.as_deref()).and_then(|id| Uuid::parse_str(id).ok())
    }
}

/// Bytes of a commit: `info` first, with the hash of the rest filled in.
pub(crate) fn commit_bytes(mut info: CommitInfo, actions: &[Action]) -> Vec<u8> {
    let mut body = Vec::new();
    for action in actions {
        write_line(&mut body, action);
    }
    info.content_hash = Some(content_hash(&body));
    let mut bytes = Vec::with_capacity(body.len() + 512);
    write_line(&mut bytes, &Action { commit_info: Some(info), ..Action::default() });
    bytes.append(&mut body);
    bytes
}

fn write_line(out: &mut Vec<u8>, action: &Action) {
    serde_json::to_writer(&mut *out, action).expect("actions are plain texts, numbers and maps with text keys");
    out.push(b'\n');
}

fn content_hash(bytes: &[u8]) -> String {
    format!("xxh3-64:{:016x}", xxhash_rust::xxh3::xxh3_64(bytes))
}

/// An Arrow schema in Delta's JSON, one field per column in the same order; every timestamp is an instant (UTC).
///
/// # Errors
/// [`StorageError::Conflict`] naming a column whose type Delta cannot express without a newer protocol.
pub fn schema_json(schema: &Schema) -> Result<String, StorageError> {
    let fields = schema.fields().iter().map(|f| field_json(f)).collect::<Result<Vec<_>, _>>()?;
    Ok(json!({ "type": "struct", "fields": fields }).to_string())
}

fn field_json(field: &arrow::datatypes::Field) -> Result<Value, StorageError> {
    let kind = type_json(field.data_type()).ok_or_else(|| {
        StorageError::Conflict(format!("column `{}` has a type that delta reader 1 lacks: {}", field.name(), field.data_type()))
    })?;
    Ok(json!({ "name": field.name(), "type": kind, "nullable": field.is_nullable(), "metadata": {} }))
}

fn type_json(kind: &DataType) -> Option<Value> {
    Some(match kind {
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => json!("string"),
        DataType::Binary | DataType::LargeBinary => json!("binary"),
        DataType::Boolean => json!("boolean"),
        DataType::Int8 => json!("byte"),
        DataType::Int16 => json!("short"),
        DataType::Int32 => json!("integer"),
        DataType::Int64 => json!("long"),
        DataType::Float32 => json!("float"),
        DataType::Float64 => json!("double"),
        DataType::Date32 => json!("date"),
        DataType::Timestamp(TimeUnit::Microsecond, Some(zone)) if zone.as_ref() == "UTC" => json!("timestamp"),
        DataType::List(item) => json!({ "type": "array", "elementType": type_json(item.data_type())?, "containsNull": item.is_nullable() }),
        DataType::Struct(fields) => {
            let fields = fields.iter().map(|f| field_json(f).ok()).collect::<Option<Vec<_>>>()?;
            json!({ "type": "struct", "fields": fields })
        }
        DataType::Map(entries, _) => {
            let DataType::Struct(pair) = entries.data_type() else { return None };
            let [key, value] = pair.as_ref() else { return None };
            json!({
                "type": "map",
                "keyType": type_json(key.data_type())?,
                "valueType": type_json(value.data_type())?,
                "valueContainsNull": value.is_nullable(),
            })
        }
        _ => return None,
    })
}

/// URL-encodes a path inside the table, as Delta wants it in `add.path`: `tenant=a%2Eb/…` becomes `tenant=a%252Eb/…`.
pub(crate) fn encode_path(path: &str) -> String {
    let mut out = String::with_capacity(path.len() + 8);
    for byte in path.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~/=+@!$'()*,:;&".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

/// The reverse of [`encode_path`]; `None` when an escape is broken or the result is not UTF-8.
pub(crate) fn decode_path(path: &str) -> Option<String> {
    let mut out = Vec::with_capacity(path.len());
    let mut bytes = path.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            out.push(byte);
            continue;
        }
        let digits = [bytes.next()?, bytes.next()?];
        let text = std::str::from_utf8(&digits).ok().filter(|_| digits.iter().all(u8::is_ascii_hexdigit))?;
        out.push(u8::from_str_radix(text, 16).ok()?);
    }
    String::from_utf8(out).ok()
}
