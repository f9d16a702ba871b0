//! Why a statement has no answer: a kind that HTTP and Flight map in one place each, one line of text, and the place in the statement if known.

use datafusion::common::SchemaError;
use datafusion::error::DataFusionError;
use datafusion::sql::sqlparser::parser::ParserError;
use fletch_storage::{Advice, StorageError};
use std::fmt;
use std::time::Duration;

/// What went wrong, as far as the caller has to tell cases apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SqlErrorKind {
    /// The statement is wrong or not allowed; sending it again cannot help.
    BadData,
    /// A table, schema or catalog that the statement names does not exist.
    NotFound,
    /// The statement is right, evaluating it on this data failed (overflow, a cast, …).
    Execution,
    /// A named limit: bytes, rows, memory, samples.
    Limit,
    /// The deadline passed, or the caller went away.
    Timeout,
    /// The object store cannot be reached; the same statement may succeed later.
    Unavailable,
    /// A fault of ours.
    Internal,
}

/// Line and column of a statement, both from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// Line, from 1.
    pub line: u64,
    /// Column in characters, from 1.
    pub column: u64,
}

/// Why a statement has no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct SqlError {
    /// What the caller decides on.
    pub kind: SqlErrorKind,
    /// One line for people.
    pub message: String,
    /// Where in the statement, if known.
    pub position: Option<Position>,
}

impl SqlError {
    /// An error of this kind, without a position.
    pub fn new(kind: SqlErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: one_line(&message.into()), position: None }
    }

    /// The statement is wrong.
    pub fn bad_data(message: impl Into<String>) -> Self {
        Self::new(SqlErrorKind::BadData, message)
    }

    /// A limit was hit.
    pub fn limit(message: impl Into<String>) -> Self {
        Self::new(SqlErrorKind::Limit, message)
    }

    /// The deadline passed.
    pub fn timeout(deadline: Duration) -> Self {
        Self::new(SqlErrorKind::Timeout, format!("the query did not end within {} s", deadline.as_secs_f64()))
    }

    /// The same error at this place of the statement.
    #[must_use]
    pub fn at(mut self, line: u64, column: u64) -> Self {
        self.position = Some(Position { line, column });
        self
    }
}

impl From<StorageError> for SqlError {
    fn from(error: StorageError) -> Self {
        let kind = match error.advice() {
            Advice::Retry | Advice::Fenced => SqlErrorKind::Unavailable,
            Advice::Corrupt => SqlErrorKind::Internal,
            Advice::Reject if matches!(error, StorageError::Limit(_)) => SqlErrorKind::Limit,
            Advice::Reject => SqlErrorKind::BadData,
        };
        Self::new(kind, error.to_string())
    }
}

impl From<DataFusionError> for SqlError {
    fn from(error: DataFusionError) -> Self {
        let span = error.diagnostic().and_then(|d| d.span);
        let mut converted = convert(&error);
        if converted.position.is_none()
            && let Some(span) = span
        {
            converted = converted.at(span.start.line, span.start.column);
        }
        converted
    }
}

impl From<SqlError> for DataFusionError {
    fn from(error: SqlError) -> Self {
        Self::External(Box::new(error))
    }
}

/// Wraps a storage error so that it comes out of DataFusion as what it was.
pub(crate) fn storage(error: StorageError) -> DataFusionError {
    SqlError::from(error).into()
}

/// An [`arrow::error::ArrowError`] may carry one of ours, too: streams of record batches are full of them.
fn convert(error: &DataFusionError) -> SqlError {
    use SqlErrorKind::{BadData, Execution, Internal, NotFound, Unavailable};
    match error {
        DataFusionError::Context(_, inner) | DataFusionError::Diagnostic(_, inner) => convert(inner),
        DataFusionError::Shared(inner) => convert(inner),
        DataFusionError::Collection(all) => all.first().map_or_else(|| SqlError::new(Internal, error.to_string()), convert),
        DataFusionError::SQL(inner, _) => parser_error(inner),
        DataFusionError::Plan(text) if text.contains("not found") && !text.contains("function") => SqlError::new(NotFound, text),
        DataFusionError::Plan(text) | DataFusionError::Configuration(text) => SqlError::new(BadData, text),
        DataFusionError::NotImplemented(text) => SqlError::new(BadData, format!("not supported: {text}")),
        DataFusionError::SchemaError(inner, _) => SqlError::new(BadData, schema_error(inner)),
        DataFusionError::ResourcesExhausted(text) => SqlError::limit(format!("the query needs more memory than it may have: {text}")),
        DataFusionError::ObjectStore(inner) => SqlError::new(Unavailable, format!("object store: {inner}")),
        DataFusionError::IoError(inner) => SqlError::new(Unavailable, inner.to_string()),
        DataFusionError::Execution(text) => SqlError::new(Execution, text),
        DataFusionError::ArrowError(inner, _) => arrow_error(inner),
        DataFusionError::External(inner) => external(inner.as_ref()),
        DataFusionError::ParquetError(inner) => SqlError::new(Internal, format!("reading a table file: {inner}")),
        other => SqlError::new(Internal, other.to_string()),
    }
}

fn external(error: &(dyn std::error::Error + Send + Sync + 'static)) -> SqlError {
    if let Some(ours) = error.downcast_ref::<SqlError>() {
        return ours.clone();
    }
    if let Some(inner) = error.downcast_ref::<DataFusionError>() {
        return convert(inner);
    }
    SqlError::new(SqlErrorKind::Internal, error.to_string())
}

fn arrow_error(error: &arrow::error::ArrowError) -> SqlError {
    match error {
        arrow::error::ArrowError::ExternalError(inner) => external(inner.as_ref()),
        other => SqlError::new(SqlErrorKind::Execution, other.to_string()),
    }
}

fn schema_error(error: &SchemaError) -> String {
    match error {
        SchemaError::FieldNotFound { field, valid_fields } => {
            let mut names: Vec<&str> = valid_fields.iter().map(|f| f.name.as_str()).take(20).collect();
            names.dedup();
            format!("there is no column `{}`; there are: {}", field.flat_name(), names.join(", "))
        }
        other => other.to_string(),
    }
}

fn parser_error(error: &ParserError) -> SqlError {
    let text = match error {
        ParserError::TokenizerError(text) | ParserError::ParserError(text) => text.as_str(),
        ParserError::RecursionLimitExceeded => "the statement is nested too deeply",
    };
    let bad = |text: &str| SqlError::bad_data(format!("syntax error: {text}"));
    let Some((before, place)) = text.rsplit_once(" at Line: ") else { return bad(text) };
    let numbers: Vec<u64> = place.split(", Column: ").map_while(|n| n.trim().parse().ok()).collect();
    match numbers.as_slice() {
        [line, column] => bad(before).at(*line, *column),
        _ => bad(text),
    }
}

/// A message is one line: headers, logs and gRPC statuses carry it.
fn one_line(text: &str) -> String {
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|l| !l.is_empty()).collect();
    lines.join(" ")
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}, column {}", self.line, self.column)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_place_of_a_syntax_error_is_kept_as_numbers() {
        let error = DataFusionError::SQL(Box::new(ParserError::ParserError("Expected: x, found: y at Line: 2, Column: 7".into())), None);
        let error = SqlError::from(error);
        assert_eq!(error, SqlError::bad_data("syntax error: Expected: x, found: y").at(2, 7));
    }

    #[test]
    fn our_own_errors_come_back_out_of_datafusion() {
        let ours = SqlError::limit("too much");
        let wrapped = DataFusionError::Context("scan".into(), Box::new(ours.clone().into()));
        assert_eq!(SqlError::from(wrapped), ours);
        let arrow = arrow::error::ArrowError::ExternalError(Box::new(DataFusionError::from(ours.clone())));
        assert_eq!(SqlError::from(DataFusionError::ArrowError(Box::new(arrow), None)), ours);
    }

    #[test]
    fn messages_are_one_line() {
        assert_eq!(SqlError::bad_data("a\n  b\n").message, "a b");
    }
}
