//! The one place where errors become gRPC codes.

use fletch_query::sql::{SqlError, SqlErrorKind};
use tonic::{Code, Status};

/// Longest message: a status travels in a header.
const MESSAGE_BYTES_MAX: usize = 2_000;

/// The status of an error: one line, with the place in the statement.
pub(super) fn status_of(error: SqlError) -> Status {
    let code = match error.kind {
        SqlErrorKind::BadData | SqlErrorKind::Execution => Code::InvalidArgument,
        SqlErrorKind::NotFound => Code::NotFound,
        SqlErrorKind::Limit => Code::ResourceExhausted,
        SqlErrorKind::Timeout => Code::DeadlineExceeded,
        SqlErrorKind::Unavailable => Code::Unavailable,
        SqlErrorKind::Internal => Code::Internal,
    };
    let place = error.position.map(|p| format!(" ({p})")).unwrap_or_default();
    let mut message = error.message;
    if message.len() > MESSAGE_BYTES_MAX {
        let end = (0..=MESSAGE_BYTES_MAX).rev().find(|&at| message.is_char_boundary(at)).unwrap_or(0);
        message.truncate(end);
        message.push('…');
    }
    Status::new(code, message + &place)
}

/// Transactions do not exist here.
pub(super) fn no_transactions() -> Status {
    Status::unimplemented("transactions are not supported; every statement reads one consistent view")
}

/// Nothing is written through Flight SQL.
pub(super) fn read_only(what: &str) -> Status {
    Status::unimplemented(format!(
        "{what} is not supported: Flight SQL is read-only here; samples are written with remote write, JSON, text or Kafka"
    ))
}
