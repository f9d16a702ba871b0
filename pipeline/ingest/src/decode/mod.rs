//! Decoders: from the bytes of one request (or one message of a topic) to columns of samples over dense series numbers.
//!
//! ```text
//!  body ─▶ remote_write (snappy + protobuf) ─┐
//!  body ─▶ text (exposition lines)           ├─▶ validate ─▶ SeriesRegistry ─▶ Decoded { batch, metadata, stats, rejects }
//!  body ─▶ json (C2, and two Kafka formats) ─┘
//! ```
//!
//! # Invariants
//! - **D1** One bad series, line or metric never sinks the others: it becomes a [`Reject`] and the rest stands.
//! - **D2** A [`DecodeError`] refuses the whole request, and then the [`Decoded`] is exactly what it was before the call.
//! - **D3** No input panics, and none makes a decoder allocate more than a fixed multiple of [`Limits::request_decompressed_bytes_max`].
//! - **D4** Text of the sender in a message is clipped: messages stay short whatever was sent.
//!
//! # Not here
//! HTTP (status codes, content types), making samples durable ([`crate::bus`]), what the quotas are ([`crate::quota`]).

use crate::SeriesRegistry;
use fletch_common::Limits;
use fletch_schemas::TenantId;

mod error;
pub mod json;
mod metadata;
mod number;
mod outcome;
mod proto;
pub mod remote_write;
mod sink;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod text;
pub mod validate;

pub use error::{DecodeAdvice, DecodeError};
pub use json::{decode_json, decode_prometheus_json};
pub use metadata::METADATA_PER_REQUEST_MAX;
pub use outcome::{Decoded, Place, PushAnswer, PushError, REJECTS_KEPT_MAX, Reject, RejectReason, Stats};
pub use remote_write::{RawSeriesCache, RemoteWriteCache, RemoteWriteDecoder};
pub use text::decode_text;
pub(crate) use validate::clip_name as clip;
pub use validate::{LabelPolicy, LabelProblem, REFUSED_LABELS};

/// What [`decode_text`] and [`decode_json`] need to know besides the bytes.
#[derive(Debug, Clone, Copy)]
pub struct DecodeContext<'a> {
    /// Whose samples they are.
    pub tenant: &'a TenantId,
    /// Now, in milliseconds since the Unix epoch: the time of samples without one, and the base of the check for the future.
    pub now_ms: i64,
    /// Sizes and counts.
    pub limits: &'a Limits,
    /// Where label sets become numbers.
    pub registry: &'a SeriesRegistry,
    /// What happens to label names such as `user_id`.
    pub label_policy: LabelPolicy,
}

/// What the body of a push is written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BodyFormat {
    /// For [`decode_json`].
    Json,
    /// For [`decode_text`].
    Text,
}

/// Tells JSON from exposition text by the first characters, whatever the content type says (`curl -d` claims a form).
///
/// `{` or `[` begins JSON. The one exposition line that begins so too, `{"quoted.name", label="v"} 1`, is told apart by what follows
/// its first string: a colon only in JSON.
pub fn sniff(body: &[u8]) -> BodyFormat {
    let body = body.trim_ascii_start();
    match body.first() {
        Some(b'[') => BodyFormat::Json,
        Some(b'{') => sniff_brace(body[1..].trim_ascii_start()),
        _ => BodyFormat::Text,
    }
}

fn sniff_brace(inside: &[u8]) -> BodyFormat {
    let Some((b'"', string)) = inside.split_first() else {
        // `{label="v"} 1` has a letter here, which no JSON has.
        let is_label = inside.first().is_some_and(|b| b.is_ascii_alphabetic() || *b == b'_');
        return if is_label { BodyFormat::Text } else { BodyFormat::Json };
    };
    let mut escaped = false;
    let end = string.iter().position(|&b| {
        let ends = b == b'"' && !escaped;
        escaped = b == b'\\' && !escaped;
        ends
    });
    let after = end.and_then(|end| string[end + 1..].trim_ascii_start().first());
    if after.is_some_and(|b| b",}=".contains(b)) { BodyFormat::Text } else { BodyFormat::Json }
}

#[cfg(test)]
mod tests {
    use super::{BodyFormat, sniff};

    #[test]
    fn json_and_text_are_told_apart() {
        for json in [r#"{"metrics":[]}"#, "  \n[", "{ \n \"name\" : 1}", "{}", "{", r#"{"a\"b":1}"#, r#"{"unfinished"#] {
            assert_eq!(sniff(json.as_bytes()), BodyFormat::Json, "{json}");
        }
        for text in [
            "",
            "up 1",
            "# HELP x",
            r#"{"a.b"} 1"#,
            r#"{"a.b", l="v"} 1"#,
            r#"{ "l"="v","a.b"} 1"#,
            r#"{__name__="up"} 1"#,
            r#"{"a\"b"} 1"#,
        ] {
            assert_eq!(sniff(text.as_bytes()), BodyFormat::Text, "{text}");
        }
    }
}
