//! Types as they leave the server: what every client of Arrow can read, whatever the plan computed with.
//!
//! ```text
//!  Utf8View, LargeUtf8 ─▶ Utf8      BinaryView, LargeBinary ─▶ Binary      Dictionary(_, T) ─▶ T
//!  Timestamp(any, zone) ─▶ Timestamp(unit asked for, UTC)                  lists, structs, maps: the same inside
//! ```
//!
//! # Invariants
//! - [`wire_schema`] and [`to_wire`] agree: a batch of the plan always comes out with the rewritten schema of the plan.
//! - Only representations change, never values. A time that does not fit the unit is an error, not NULL.

use super::error::SqlError;
use arrow::compute::{CastOptions, cast_with_options};
use arrow::datatypes::{DataType, Field, FieldRef, Schema, SchemaRef, TimeUnit};
use arrow::record_batch::{RecordBatch, RecordBatchOptions};
use std::sync::Arc;

/// How an answer's columns are to be represented.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct WireTypes {
    /// Unit of all timestamps; `None` leaves each as the plan has it.
    pub timestamp: Option<TimeUnit>,
}

/// The schema that batches of `schema` have after [`to_wire`].
pub fn wire_schema(schema: &Schema, wire: WireTypes) -> SchemaRef {
    let fields: Vec<Field> = schema.fields().iter().map(|f| wire_field(f, wire)).collect();
    // Metadata of fields and schema is DataFusion's own business.
    Arc::new(Schema::new(fields))
}

fn wire_field(field: &Field, wire: WireTypes) -> Field {
    Field::new(field.name(), wire_type(field.data_type(), wire), field.is_nullable())
}

fn wire_type(kind: &DataType, wire: WireTypes) -> DataType {
    let inner = |field: &FieldRef| Arc::new(wire_field(field, wire));
    match kind {
        DataType::Utf8View | DataType::LargeUtf8 => DataType::Utf8,
        DataType::BinaryView | DataType::LargeBinary => DataType::Binary,
        DataType::Dictionary(_, value) => wire_type(value, wire),
        DataType::Timestamp(unit, zone) => DataType::Timestamp(wire.timestamp.unwrap_or(*unit), zone.as_ref().map(|_| Arc::from("UTC"))),
        DataType::List(field) | DataType::LargeList(field) | DataType::ListView(field) | DataType::LargeListView(field) => {
            DataType::List(inner(field))
        }
        DataType::FixedSizeList(field, size) => DataType::FixedSizeList(inner(field), *size),
        DataType::Struct(fields) => DataType::Struct(fields.iter().map(inner).collect()),
        DataType::Map(entries, sorted) => DataType::Map(inner(entries), *sorted),
        other => other.clone(),
    }
}

/// The same rows with the types of `schema`, which is [`wire_schema`] of the batch's own.
///
/// # Errors
/// A time that does not fit the unit.
pub fn to_wire(batch: &RecordBatch, schema: &SchemaRef) -> Result<RecordBatch, SqlError> {
    let strict = CastOptions { safe: false, ..CastOptions::default() };
    let mut columns = Vec::with_capacity(batch.num_columns());
    for (column, field) in batch.columns().iter().zip(schema.fields()) {
        if column.data_type() == field.data_type() {
            columns.push(column.clone());
            continue;
        }
        let cast = cast_with_options(column, field.data_type(), &strict).map_err(|e| {
            SqlError::new(super::SqlErrorKind::Execution, format!("column `{}` does not fit {}: {e}", field.name(), field.data_type()))
        })?;
        columns.push(cast);
    }
    let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    RecordBatch::try_new_with_options(schema.clone(), columns, &options)
        .map_err(|e| SqlError::new(super::SqlErrorKind::Internal, format!("an answer does not have the types it was planned with: {e}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::{ArrayRef, AsArray, DictionaryArray, Int64Array, ListArray, StringViewArray, TimestampMicrosecondArray};
    use arrow::datatypes::{Int32Type, TimestampNanosecondType};

    fn batch(column: ArrayRef) -> RecordBatch {
        RecordBatch::try_from_iter([("c", column)]).expect("one column")
    }

    #[test]
    fn views_and_dictionaries_become_plain_text() {
        let view: ArrayRef = Arc::new(StringViewArray::from(vec![Some("a"), None]));
        let dictionary: ArrayRef = Arc::new(vec![Some("a"), None].into_iter().collect::<DictionaryArray<Int32Type>>());
        for column in [view, dictionary] {
            let batch = batch(column);
            let schema = wire_schema(&batch.schema(), WireTypes::default());
            let out = to_wire(&batch, &schema).expect("text stays text");
            assert_eq!(out.column(0).data_type(), &DataType::Utf8);
            assert_eq!(out.column(0).as_string::<i32>().value(0), "a");
        }
        let lists: ArrayRef = Arc::new(ListArray::from_iter_primitive::<arrow::datatypes::Int64Type, _, _>([Some([Some(1)])]));
        let out = wire_schema(&batch(lists).schema(), WireTypes::default());
        assert!(matches!(out.field(0).data_type(), DataType::List(_)));
    }

    #[test]
    fn times_take_the_unit_and_never_become_null() {
        let wire = WireTypes { timestamp: Some(TimeUnit::Nanosecond) };
        let good = batch(Arc::new(TimestampMicrosecondArray::from(vec![5]).with_timezone("+00:00")));
        let schema = wire_schema(&good.schema(), wire);
        let out = to_wire(&good, &schema).expect("fits");
        assert_eq!(out.column(0).as_primitive::<TimestampNanosecondType>().value(0), 5_000);
        assert_eq!(out.column(0).data_type(), &DataType::Timestamp(TimeUnit::Nanosecond, Some("UTC".into())));
        let far = batch(Arc::new(TimestampMicrosecondArray::from(vec![i64::MAX]).with_timezone("UTC")));
        assert!(to_wire(&far, &wire_schema(&far.schema(), wire)).is_err_and(|e| e.message.contains("`c`")));
    }

    #[test]
    fn rows_without_columns_keep_their_number() {
        let rows = batch(Arc::new(Int64Array::from(vec![1, 2]))).project(&[]).expect("no columns");
        assert_eq!(to_wire(&rows, &wire_schema(&rows.schema(), WireTypes::default())).map(|b| b.num_rows()), Ok(2));
    }
}
