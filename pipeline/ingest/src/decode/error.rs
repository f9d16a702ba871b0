//! Why a whole request was refused. What is wrong with one series, line or metric is a [`Reject`](super::Reject) instead.

use super::validate::clip;

/// What the caller should answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DecodeAdvice {
    /// The request is larger than a named limit: 413, smaller requests will pass.
    TooLarge,
    /// The bytes are not what they claim to be: 400, sending them again cannot help.
    Malformed,
}

/// Why nothing of a request was taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// The body, or what it unpacks to, is above a limit.
    #[error("the {what} is {bytes} bytes, the limit is {max} (`{limit}`); send smaller requests")]
    TooLarge {
        /// `body` or `decompressed body`.
        what: &'static str,
        /// Its size, for compressed bodies as their header declares it.
        bytes: u64,
        /// The limit.
        max: usize,
        /// The limit's name in the configuration.
        limit: &'static str,
    },
    /// More samples than one request may have.
    #[error("the request has more than {max} samples (`request_samples_max`); send smaller requests")]
    TooManySamples {
        /// The limit.
        max: usize,
    },
    /// The body does not unpack.
    #[error("the body is not a snappy block: {0}")]
    Snappy(String),
    /// The outer protobuf message is broken; nothing after the offset can be found.
    #[error("the body is not a remote-write request: {problem} at byte {offset} of the decompressed body")]
    Protobuf {
        /// Where the broken field starts.
        offset: usize,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// JSON must be UTF-8.
    #[error("the body is not UTF-8 at byte {offset}")]
    NotUtf8 {
        /// The first byte that is not.
        offset: usize,
    },
    /// The body is not JSON, or not of the documented shape.
    #[error("the body is not usable JSON: {0}")]
    Json(String),
}

impl DecodeError {
    /// What to answer. Lists every variant on purpose: a new one must choose.
    pub fn advice(&self) -> DecodeAdvice {
        match self {
            Self::TooLarge { .. } | Self::TooManySamples { .. } => DecodeAdvice::TooLarge,
            Self::Snappy(_) | Self::Protobuf { .. } | Self::NotUtf8 { .. } | Self::Json(_) => DecodeAdvice::Malformed,
        }
    }

    /// The error of a JSON parser, which may quote the input, clipped.
    pub(super) fn json(error: &serde_json::Error) -> Self {
        Self::Json(clip(&error.to_string(), 300))
    }
}
