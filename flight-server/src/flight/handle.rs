//! Handles of statements: everything that is needed to run one later, in any process, in bytes.
//!
//! # Invariants
//! - A handle is data from outside when it comes back: every part is checked again, and the statement passes the same guards as any other.
//! - It names no tenant.
//!
//! ```text
//!  version │ sql │ parameters: one row as an Arrow stream │ announced schema │ unit of timestamps │ nonce (cancellation)
//! ```

use super::internal;
use arrow::array::{Array, ArrayRef, RecordBatch, new_null_array};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use arrow::record_batch::RecordBatchOptions;
use arrow_flight::{IpcMessage, SchemaAsIpc};
use arrow_ipc::reader::StreamReader;
use arrow_ipc::writer::StreamWriter;
use bytes::Bytes;
use datafusion::common::ScalarValue;
use fletch_query::sql::Params;
use prost::Message;
use std::sync::Arc;
use tonic::Status;

const VERSION: u32 = 1;

/// A statement with its parameters and the schema it was announced with.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Handle {
    #[prost(uint32, tag = "1")]
    version: u32,
    /// The statement.
    #[prost(string, tag = "2")]
    pub(super) sql: String,
    /// One row of parameters as an Arrow stream; empty when there are none.
    #[prost(bytes = "bytes", tag = "3")]
    params: Bytes,
    /// The announced schema, as a message of Arrow's IPC.
    #[prost(bytes = "bytes", tag = "4")]
    schema: Bytes,
    /// Unit of timestamps: 0 s, 3 ms, 6 µs, 9 ns.
    #[prost(uint32, tag = "5")]
    unit: u32,
    /// What makes a ticket unique, for cancellation.
    #[prost(string, tag = "6")]
    pub(super) nonce: String,
}

impl Handle {
    /// A handle of a planned statement.
    ///
    /// # Errors
    /// A parameter or the schema cannot be written.
    pub(super) fn new(sql: &str, params: &Params, schema: &Schema, unit: TimeUnit) -> Result<Self, Status> {
        let unit = match unit {
            TimeUnit::Second => 0,
            TimeUnit::Millisecond => 3,
            TimeUnit::Microsecond => 6,
            TimeUnit::Nanosecond => 9,
        };
        let params = params_bytes(params)?;
        Ok(Self { version: VERSION, sql: sql.to_owned(), params, schema: schema_bytes(schema)?, unit, nonce: String::new() })
    }

    /// Reads bytes that came from a client.
    ///
    /// # Errors
    /// They are no handle of this version.
    pub(super) fn decode_from(bytes: &[u8]) -> Result<Self, Status> {
        let handle = Self::decode(bytes).map_err(|e| Status::invalid_argument(format!("not a handle of this server: {e}")))?;
        if handle.version == VERSION {
            Ok(handle)
        } else {
            Err(Status::invalid_argument("not a handle of this version of the server; prepare again"))
        }
    }

    /// The same statement as a ticket of its own.
    pub(super) fn with_new_nonce(self) -> Self {
        Self { nonce: uuid::Uuid::new_v4().to_string(), ..self }
    }

    /// The announced schema.
    pub(super) fn schema(&self) -> Result<SchemaRef, Status> {
        let schema = Schema::try_from(IpcMessage(self.schema.clone()));
        schema.map(Arc::new).map_err(|e| Status::invalid_argument(format!("the schema of a handle is damaged: {e}")))
    }

    /// The unit of timestamps it was announced with.
    pub(super) fn unit(&self) -> Result<TimeUnit, Status> {
        match self.unit {
            0 => Ok(TimeUnit::Second),
            3 => Ok(TimeUnit::Millisecond),
            6 => Ok(TimeUnit::Microsecond),
            9 => Ok(TimeUnit::Nanosecond),
            _ => Err(Status::invalid_argument("the unit of a handle is damaged")),
        }
    }

    /// Its parameters.
    pub(super) fn params(&self) -> Result<Params, Status> {
        if self.params.is_empty() {
            return Ok(Params::None);
        }
        let damaged = |e: arrow::error::ArrowError| Status::invalid_argument(format!("the parameters of a handle are damaged: {e}"));
        let mut reader = StreamReader::try_new(self.params.as_ref(), None).map_err(damaged)?;
        match reader.next() {
            Some(batch) => params_of(&batch.map_err(damaged)?),
            None => Ok(Params::None),
        }
    }
}

/// The parameters in the one row of a batch, by position.
///
/// # Errors
/// The batch has more than one row, or a type that SQL has no constants of.
pub(super) fn params_of(row: &RecordBatch) -> Result<Params, Status> {
    match row.num_rows() {
        0 => return Ok(Params::None),
        1 => {}
        rows => return Err(Status::invalid_argument(format!("a query takes one row of parameters, not {rows}"))),
    }
    let values = row.columns().iter().map(|column| ScalarValue::try_from_array(column, 0));
    let values: Vec<ScalarValue> = values.collect::<Result<_, _>>().map_err(|e| Status::invalid_argument(format!("a parameter: {e}")))?;
    Ok(if values.is_empty() { Params::None } else { Params::Positional(values) })
}

fn params_bytes(params: &Params) -> Result<Bytes, Status> {
    let Params::Positional(values) = params else { return Ok(Bytes::new()) };
    let columns = values.iter().map(ScalarValue::to_array).collect::<Result<Vec<ArrayRef>, _>>();
    let columns = columns.map_err(|e| Status::invalid_argument(format!("a parameter: {e}")))?;
    let fields: Vec<Field> =
        columns.iter().enumerate().map(|(i, c)| Field::new((i + 1).to_string(), c.data_type().clone(), true)).collect();
    let schema = Arc::new(Schema::new(fields));
    let batch = RecordBatch::try_new(schema.clone(), columns).map_err(internal)?;
    let mut writer = StreamWriter::try_new(Vec::new(), &schema).map_err(internal)?;
    writer.write(&batch).map_err(internal)?;
    Ok(writer.into_inner().map_err(internal)?.into())
}

/// A schema as a message of Arrow's IPC.
pub(super) fn schema_bytes(schema: &Schema) -> Result<Bytes, Status> {
    let IpcMessage(bytes) = SchemaAsIpc::new(schema, &Default::default()).try_into().map_err(internal)?;
    Ok(bytes)
}

/// The schema that a client binds parameters to. Where the statement does not tell the type, text is asked for.
pub(super) fn parameter_schema(parameters: &[(String, Option<DataType>)]) -> Schema {
    let field = |(name, kind): &(String, Option<DataType>)| match kind {
        None | Some(DataType::Null) => Field::new(name, DataType::Utf8, true),
        Some(kind) => Field::new(name, kind.clone(), true),
    };
    Schema::new(parameters.iter().map(field).collect::<Vec<_>>())
}

/// Lays the rows of one schema out as another that was announced before: by name, the n-th of a name to the n-th.
#[derive(Debug)]
pub(super) struct Projection {
    to: SchemaRef,
    /// Column of the rows for each announced one; `None` is NULL.
    columns: Vec<Option<usize>>,
}

impl Projection {
    /// # Errors
    /// A column has another type now, or is gone and must not be NULL.
    pub(super) fn new(from: &Schema, to: &SchemaRef) -> Result<Self, Status> {
        let changed = |name: &str, how: &str| {
            Status::failed_precondition(format!("column `{name}` {how} since the statement was prepared; prepare it again"))
        };
        let mut columns = Vec::with_capacity(to.fields().len());
        for (at, field) in to.fields().iter().enumerate() {
            let before = to.fields()[..at].iter().filter(|f| f.name() == field.name()).count();
            let found = from.fields().iter().enumerate().filter(|(_, f)| f.name() == field.name()).nth(before);
            match found {
                Some((_, f)) if f.data_type() != field.data_type() => return Err(changed(field.name(), "changed its type")),
                None if !field.is_nullable() => return Err(changed(field.name(), "is gone")),
                found => columns.push(found.map(|(i, _)| i)),
            }
        }
        Ok(Self { to: to.clone(), columns })
    }

    /// # Errors
    /// A column that was announced without NULLs has one.
    pub(super) fn apply(&self, batch: &RecordBatch) -> Result<RecordBatch, Status> {
        let rows = batch.num_rows();
        let columns = self.columns.iter().zip(self.to.fields()).map(|(column, field)| match column {
            Some(at) => batch.column(*at).clone(),
            None => new_null_array(field.data_type(), rows),
        });
        let options = RecordBatchOptions::new().with_row_count(Some(rows));
        RecordBatch::try_new_with_options(self.to.clone(), columns.collect(), &options).map_err(internal)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::{AsArray, Int64Array, StringArray};

    fn schema(fields: &[(&str, DataType)]) -> SchemaRef {
        Arc::new(Schema::new(fields.iter().map(|(n, t)| Field::new(*n, t.clone(), true)).collect::<Vec<_>>()))
    }

    #[test]
    fn a_handle_carries_everything() {
        let params = Params::Positional(vec![ScalarValue::from("x"), ScalarValue::Int64(Some(7)), ScalarValue::Null]);
        let announced = schema(&[("a", DataType::Utf8)]);
        let handle = Handle::new("SELECT $1", &params, &announced, TimeUnit::Microsecond).expect("plain parameters");
        let back = Handle::decode_from(&handle.clone().with_new_nonce().encode_to_vec()).expect("our own bytes");
        assert_eq!((back.sql.as_str(), back.params().ok(), back.schema().ok()), ("SELECT $1", Some(params), Some(announced)));
        assert_eq!(back.unit().ok(), Some(TimeUnit::Microsecond));
        assert_ne!(back.nonce, handle.nonce);
    }

    #[test]
    fn garbage_is_refused() {
        for bytes in [&b""[..], b"SELECT 1", &[0xff; 40]] {
            assert!(Handle::decode_from(bytes).is_err(), "{bytes:?}");
        }
        let handle = Handle::new("SELECT 1", &Params::None, &Schema::empty(), TimeUnit::Second).expect("valid");
        assert!(Handle { schema: Bytes::from_static(b"junk"), ..handle.clone() }.schema().is_err());
        assert!(Handle { params: Bytes::from_static(b"junk"), ..handle.clone() }.params().is_err());
        assert!(Handle { unit: 5, ..handle }.unit().is_err());
    }

    #[test]
    fn rows_are_laid_out_as_announced() {
        let now = schema(&[("new", DataType::Utf8), ("b", DataType::Int64), ("a", DataType::Utf8)]);
        let announced = schema(&[("a", DataType::Utf8), ("b", DataType::Int64), ("gone", DataType::Int64)]);
        let (text, number) = (Arc::new(StringArray::from(vec!["x"])) as ArrayRef, Arc::new(Int64Array::from(vec![1])) as ArrayRef);
        let batch = RecordBatch::try_new(now.clone(), vec![text.clone(), number, text]).expect("one row");
        let out = Projection::new(&now, &announced).and_then(|p| p.apply(&batch)).expect("a projection");
        assert_eq!(out.schema(), announced);
        assert_eq!((out.column(0).as_string::<i32>().value(0), out.column(2).null_count()), ("x", 1));
        let other = schema(&[("a", DataType::Int64)]);
        assert!(Projection::new(&now, &other).is_err_and(|s| s.message().contains("`a`")));
    }

    #[test]
    fn parameters_are_one_row() {
        let rows = RecordBatch::try_from_iter([("1", Arc::new(Int64Array::from(vec![1, 2])) as ArrayRef)]).expect("two rows");
        assert!(params_of(&rows).is_err_and(|s| s.message().contains("one row")));
        assert_eq!(params_of(&rows.slice(0, 0)).ok(), Some(Params::None));
        assert_eq!(parameter_schema(&[("$1".into(), None)]).field(0).data_type(), &DataType::Utf8);
    }
}
