//! Answers as bytes, batch by batch.
//!
//! | name | type | NULL | NaN, ±Inf | time |
//! |---|---|---|---|---|
//! | `json` array of objects, `jsonl` an object per line | `application/json`, `application/jsonl` | `null` | `"NaN"`, `"+Inf"`, `"-Inf"` | RFC 3339 |
//! | `csv` with a header | `text/csv` | empty | `NaN`, `inf`, `-inf` | RFC 3339 |
//! | `arrow` IPC stream | `application/vnd.apache.arrow.stream` | as Arrow has them | | µs, UTC |
//! | `parquet` | `application/vnd.apache.parquet` | | | µs, UTC |
//! | `text` table | `text/plain` | empty | | RFC 3339 |
//!
//! JSON has no NaN, and NULL means something else (a stale marker), hence the texts. Nested columns are JSON text in `csv` and `text`.

use super::envelope;
use arrow::array::{Array, ArrayRef, AsArray, Float64Array, RecordBatch, StringArray};
use arrow::csv::WriterBuilder as CsvBuilder;
use arrow::datatypes::{DataType, Field, FieldRef, Float64Type, Schema, SchemaRef};
use arrow::error::ArrowError;
use arrow::ipc::writer::StreamWriter;
use arrow::json::writer::{
    Encoder as JsonEncoder, EncoderFactory, EncoderOptions, JsonArray, LineDelimited, NullableEncoder, make_encoder,
};
use arrow::json::{WriterBuilder as JsonBuilder, writer::JsonFormat};
use arrow::util::display::FormatOptions;
use arrow::util::pretty::pretty_format_batches_with_options;
use bytes::Bytes;
use fletch_query::sql::{SqlError, SqlErrorKind};
use futures::stream::try_unfold;
use futures::{Stream, StreamExt};
use parquet::arrow::ArrowWriter;
use parquet::basic::Compression;
use parquet::file::properties::WriterProperties;
use std::sync::Arc;

/// Rows of a `text` table: it is laid out in memory.
const TEXT_ROWS_MAX: usize = 100_000;
/// A row group of a Parquet answer is written out when this much is encoded.
const ROW_GROUP_BYTES: usize = 16 << 20;

/// How an answer is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    Json,
    JsonLines,
    Csv,
    Arrow,
    Parquet,
    Text,
}

impl Format {
    /// For the error of a name that is none.
    pub(super) const NAMES: &'static str = "one of json, jsonl, csv, arrow, parquet, text is expected";

    /// A format by name.
    pub(super) fn named(name: &str) -> Option<Self> {
        match name.to_ascii_lowercase().as_str() {
            "json" => Some(Self::Json),
            "jsonl" | "ndjson" => Some(Self::JsonLines),
            "csv" => Some(Self::Csv),
            "arrow" => Some(Self::Arrow),
            "parquet" => Some(Self::Parquet),
            "text" | "pretty" => Some(Self::Text),
            _ => None,
        }
    }

    /// The first type of an `Accept` header (in lower case) that we write; JSON when there is none.
    pub(super) fn accepted(accept: &str) -> Self {
        let types = accept.split(',').map(|part| part.split(';').next().unwrap_or("").trim());
        let format = |kind: &str| match kind {
            "application/json" => Some(Self::Json),
            "application/jsonl" | "application/x-ndjson" | "application/ndjson" => Some(Self::JsonLines),
            "text/csv" => Some(Self::Csv),
            "application/vnd.apache.arrow.stream" => Some(Self::Arrow),
            "application/vnd.apache.parquet" => Some(Self::Parquet),
            "text/plain" => Some(Self::Text),
            _ => None,
        };
        types.filter_map(format).next().unwrap_or(Self::Json)
    }

    /// The type of an answer.
    pub(super) fn content_type(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::JsonLines => "application/jsonl",
            Self::Csv => "text/csv; charset=utf-8; header=present",
            Self::Arrow => "application/vnd.apache.arrow.stream",
            Self::Parquet => "application/vnd.apache.parquet",
            Self::Text => "text/plain; charset=utf-8",
        }
    }
}

/// Writes batches of one schema in one format.
pub(super) struct Encoder {
    schema: SchemaRef,
    state: State,
}

enum State {
    /// Whether a row was written.
    Json(bool),
    JsonLines,
    /// Whether the header was written.
    Csv(bool),
    Arrow(Box<StreamWriter<Vec<u8>>>),
    Parquet(Box<ArrowWriter<Vec<u8>>>),
    Text(Vec<RecordBatch>),
}

impl Encoder {
    /// # Errors
    /// The schema has a type that the format does not know.
    pub(super) fn new(format: Format, schema: SchemaRef) -> Result<Self, SqlError> {
        let state = match format {
            Format::Json => State::Json(false),
            Format::JsonLines => State::JsonLines,
            Format::Csv => State::Csv(false),
            Format::Arrow => State::Arrow(Box::new(StreamWriter::try_new(Vec::new(), &schema).map_err(failed)?)),
            Format::Parquet => {
                let properties = WriterProperties::builder().set_compression(Compression::SNAPPY).build();
                let writer = ArrowWriter::try_new(Vec::new(), schema.clone(), Some(properties));
                State::Parquet(Box::new(writer.map_err(|e| failed(e.into()))?))
            }
            Format::Text => State::Text(Vec::new()),
        };
        Ok(Self { schema, state })
    }

    /// Bytes of one more batch; may be none.
    fn push(&mut self, batch: &RecordBatch) -> Result<Bytes, SqlError> {
        match &mut self.state {
            State::Json(begun) => {
                let array = json::<JsonArray>(batch).map_err(failed)?;
                // `[{…},{…}]` without its brackets: the brackets of the answer stand around all batches.
                let mut out = vec![if *begun { b',' } else { b'[' }];
                out.extend_from_slice(array.get(1..array.len().saturating_sub(1)).unwrap_or_default());
                *begun = true;
                Ok(out.into())
            }
            State::JsonLines => json::<LineDelimited>(batch).map(Bytes::from).map_err(failed),
            State::Csv(begun) => {
                let header = !std::mem::replace(begun, true);
                csv(batch, header).map(Bytes::from).map_err(failed)
            }
            State::Arrow(writer) => {
                writer.write(batch).map_err(failed)?;
                Ok(std::mem::take(writer.get_mut()).into())
            }
            State::Parquet(writer) => {
                writer.write(batch).map_err(|e| failed(e.into()))?;
                if writer.in_progress_size() >= ROW_GROUP_BYTES {
                    writer.flush().map_err(|e| failed(e.into()))?;
                }
                Ok(std::mem::take(writer.inner_mut()).into())
            }
            State::Text(batches) => {
                batches.push(plain_columns(batch).map_err(failed)?);
                let rows: usize = batches.iter().map(RecordBatch::num_rows).sum();
                if rows > TEXT_ROWS_MAX {
                    return Err(SqlError::limit(format!("a text table has at most {TEXT_ROWS_MAX} rows; use format=csv")));
                }
                Ok(Bytes::new())
            }
        }
    }

    /// The end of the answer.
    fn finish(self) -> Result<Bytes, SqlError> {
        match self.state {
            State::Json(begun) => Ok(Bytes::from_static(if begun { b"]\n" } else { b"[]\n" })),
            State::JsonLines => Ok(Bytes::new()),
            State::Csv(true) => Ok(Bytes::new()),
            State::Csv(false) => csv(&RecordBatch::new_empty(self.schema), true).map(Bytes::from).map_err(failed),
            State::Arrow(mut writer) => {
                writer.finish().map_err(failed)?;
                Ok(std::mem::take(writer.get_mut()).into())
            }
            State::Parquet(writer) => writer.into_inner().map(Bytes::from).map_err(|e| failed(e.into())),
            State::Text(batches) => text(&self.schema, batches).map(Bytes::from).map_err(failed),
        }
    }
}

fn failed(error: ArrowError) -> SqlError {
    SqlError::new(SqlErrorKind::Execution, format!("the answer cannot be written in this format: {error}"))
}

/// The bytes of an answer. After an error the stream ends, and the connection with it.
pub(super) fn encode(
    encoder: Encoder,
    batches: impl Stream<Item = Result<RecordBatch, SqlError>> + Send + Unpin + 'static,
) -> impl Stream<Item = Result<Bytes, SqlError>> + Send + 'static {
    let says_why = matches!(encoder.state, State::JsonLines);
    let bytes = try_unfold((Some(encoder), batches), |(encoder, mut batches)| async move {
        let Some(mut encoder) = encoder else { return Ok::<_, SqlError>(None) };
        match batches.next().await.transpose()? {
            Some(batch) => Ok(Some((encoder.push(&batch)?, (Some(encoder), batches)))),
            None => Ok(Some((encoder.finish()?, (None, batches)))),
        }
    });
    let nonempty = bytes.filter(|b| std::future::ready(!b.as_ref().is_ok_and(Bytes::is_empty)));
    nonempty.flat_map(move |result| {
        let last_line = match &result {
            Err(error) if says_why => Some(Ok(Bytes::from(format!("{}\n", envelope(error))))),
            _ => None,
        };
        futures::stream::iter(last_line.into_iter().chain([result]))
    })
}

fn json<F: JsonFormat>(batch: &RecordBatch) -> Result<Vec<u8>, ArrowError> {
    let builder = JsonBuilder::new().with_explicit_nulls(true).with_encoder_factory(Arc::new(FloatTexts));
    let mut writer = builder.build::<_, F>(Vec::new());
    writer.write(batch)?;
    writer.finish()?;
    Ok(writer.into_inner())
}

fn csv(batch: &RecordBatch, header: bool) -> Result<Vec<u8>, ArrowError> {
    let mut out = Vec::new();
    let mut writer = CsvBuilder::new().with_header(header).build(&mut out);
    writer.write(&plain_columns(batch)?)?;
    drop(writer);
    Ok(out)
}

fn text(schema: &SchemaRef, mut batches: Vec<RecordBatch>) -> Result<Vec<u8>, ArrowError> {
    if batches.is_empty() {
        batches.push(plain_columns(&RecordBatch::new_empty(schema.clone()))?);
    }
    let table = pretty_format_batches_with_options(&batches, &FormatOptions::default())?;
    Ok(format!("{table}\n").into_bytes())
}

/// The same rows with nested columns as JSON text.
fn plain_columns(batch: &RecordBatch) -> Result<RecordBatch, ArrowError> {
    if !batch.schema().fields().iter().any(|f| f.data_type().is_nested()) {
        return Ok(batch.clone());
    }
    let schema = batch.schema();
    let mut fields: Vec<FieldRef> = Vec::with_capacity(schema.fields().len());
    let mut columns: Vec<ArrayRef> = Vec::with_capacity(schema.fields().len());
    for (field, column) in schema.fields().iter().zip(batch.columns()) {
        if field.data_type().is_nested() {
            fields.push(Arc::new(Field::new(field.name(), DataType::Utf8, true)));
            columns.push(Arc::new(json_texts(field, column)?));
        } else {
            fields.push(field.clone());
            columns.push(column.clone());
        }
    }
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns)
}

fn json_texts(field: &FieldRef, column: &ArrayRef) -> Result<StringArray, ArrowError> {
    let options = EncoderOptions::default().with_explicit_nulls(true).with_encoder_factory(Arc::new(FloatTexts));
    let mut encoder = make_encoder(field, column, &options)?;
    let texts = (0..column.len()).map(|row| {
        if column.is_null(row) {
            return Ok(None);
        }
        let mut text = Vec::new();
        encoder.encode(row, &mut text);
        String::from_utf8(text).map(Some).map_err(|e| ArrowError::JsonError(e.to_string()))
    });
    texts.collect()
}

/// Floats as JSON, those that JSON has no numbers for as texts.
#[derive(Debug)]
struct FloatTexts;

impl EncoderFactory for FloatTexts {
    fn make_default_encoder<'a>(
        &self,
        _field: &'a FieldRef,
        array: &'a dyn Array,
        _options: &'a EncoderOptions,
    ) -> Result<Option<NullableEncoder<'a>>, ArrowError> {
        let Some(floats) = array.as_primitive_opt::<Float64Type>() else { return Ok(None) };
        // Finite columns, nearly all there are, go the usual way.
        if floats.values().iter().all(|v| v.is_finite()) {
            return Ok(None);
        }
        Ok(Some(NullableEncoder::new(Box::new(FloatTextEncoder(floats)), floats.nulls().cloned())))
    }
}

struct FloatTextEncoder<'a>(&'a Float64Array);

impl JsonEncoder for FloatTextEncoder<'_> {
    fn encode(&mut self, row: usize, out: &mut Vec<u8>) {
        let value = self.0.value(row);
        let text = match value {
            v if v.is_nan() => "\"NaN\"".to_owned(),
            f64::INFINITY => "\"+Inf\"".to_owned(),
            f64::NEG_INFINITY => "\"-Inf\"".to_owned(),
            finite => serde_json::Value::from(finite).to_string(),
        };
        out.extend_from_slice(text.as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::{ListArray, TimestampMicrosecondArray};
    use arrow::datatypes::Int64Type;
    use arrow::ipc::reader::StreamReader;
    use futures::TryStreamExt;
    use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

    fn batch() -> RecordBatch {
        RecordBatch::try_from_iter([
            ("time", Arc::new(TimestampMicrosecondArray::from(vec![0, 1_500_000]).with_timezone("UTC")) as ArrayRef),
            ("value", Arc::new(Float64Array::from(vec![Some(f64::NAN), None])) as ArrayRef),
            ("host", Arc::new(StringArray::from(vec![Some("a,\"b"), None])) as ArrayRef),
        ])
        .expect("equal lengths")
    }

    async fn written(format: Format, batches: Vec<Result<RecordBatch, SqlError>>) -> (Vec<u8>, Option<SqlError>) {
        let mut bytes = Vec::new();
        let encoder = Encoder::new(format, batch().schema()).expect("plain types");
        let mut stream = Box::pin(encode(encoder, futures::stream::iter(batches)));
        loop {
            match stream.try_next().await {
                Ok(Some(more)) => bytes.extend_from_slice(&more),
                Ok(None) => return (bytes, None),
                Err(error) => return (bytes, Some(error)),
            }
        }
    }

    async fn text_of(format: Format, batches: usize) -> String {
        let (bytes, error) = written(format, vec![Ok(batch()); batches]).await;
        assert_eq!(error, None);
        String::from_utf8(bytes).expect("a text format")
    }

    #[tokio::test]
    async fn json_is_one_array_whatever_the_batches() {
        let row =
            r#"{"time":"1970-01-01T00:00:00Z","value":"NaN","host":"a,\"b"},{"time":"1970-01-01T00:00:01.500Z","value":null,"host":null}"#;
        assert_eq!(text_of(Format::Json, 0).await, "[]\n");
        assert_eq!(text_of(Format::Json, 1).await, format!("[{row}]\n"));
        assert_eq!(text_of(Format::Json, 2).await, format!("[{row},{row}]\n"));
        assert_eq!(text_of(Format::JsonLines, 1).await, row.replace("},{", "}\n{") + "\n");
    }

    #[tokio::test]
    async fn csv_has_one_header() {
        let rows = "1970-01-01T00:00:00Z,NaN,\"a,\"\"b\"\n1970-01-01T00:00:01.500Z,,\n";
        assert_eq!(text_of(Format::Csv, 2).await, format!("time,value,host\n{rows}{rows}"));
        assert_eq!(text_of(Format::Csv, 0).await, "time,value,host\n");
        assert!(text_of(Format::Text, 1).await.contains("| time "));
    }

    #[tokio::test]
    async fn arrow_and_parquet_read_back() {
        for batches in [0, 3] {
            let (bytes, _) = written(Format::Arrow, vec![Ok(batch()); batches]).await;
            let read: Vec<RecordBatch> =
                StreamReader::try_new(bytes.as_slice(), None).expect("a stream").map(|b| b.expect("a batch")).collect();
            assert_eq!(read.iter().map(RecordBatch::num_rows).sum::<usize>(), 2 * batches);
            let (bytes, _) = written(Format::Parquet, vec![Ok(batch()); batches]).await;
            let reader = ParquetRecordBatchReaderBuilder::try_new(Bytes::from(bytes)).expect("a file").build().expect("a reader");
            assert_eq!(reader.map(|b| b.expect("a batch").num_rows()).sum::<usize>(), 2 * batches);
        }
    }

    #[tokio::test]
    async fn an_error_ends_the_answer_and_jsonl_says_why() {
        let error = SqlError::limit("too much");
        let (bytes, got) = written(Format::JsonLines, vec![Ok(batch()), Err(error.clone()), Ok(batch())]).await;
        assert_eq!(got, Some(error.clone()));
        assert!(String::from_utf8_lossy(&bytes).ends_with("\"status\":\"error\"}\n"), "{}", String::from_utf8_lossy(&bytes));
        assert_eq!(written(Format::Csv, vec![Ok(batch()), Err(error.clone())]).await.1, Some(error));
    }

    #[test]
    fn nested_columns_are_json_text_where_there_is_no_nesting() {
        let lists: ArrayRef = Arc::new(ListArray::from_iter_primitive::<Int64Type, _, _>([Some([Some(1), None]), None]));
        let plain = plain_columns(&RecordBatch::try_from_iter([("l", lists)]).expect("one column")).expect("texts");
        let texts: Vec<Option<&str>> = plain.column(0).as_string::<i32>().iter().collect();
        assert_eq!(texts, [Some("[1,null]"), None]);
    }

    #[test]
    fn accept_picks_the_first_type_we_write() {
        assert_eq!(Format::accepted("text/html, text/csv;q=0.9, application/json"), Format::Csv);
        assert_eq!(Format::accepted("*/*"), Format::Json);
        assert_eq!(Format::accepted("application/vnd.apache.arrow.stream"), Format::Arrow);
        assert_eq!(Format::named("PARQUET"), Some(Format::Parquet));
        assert_eq!(Format::named("xml"), None);
    }
}
