//! Why a text is not an expression: one position, one message, printed the way Prometheus' API prints it.

use std::fmt;

use crate::ast::Span;

/// Why a text was refused. Shows as `1:5: parse error: unclosed left parenthesis`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParseError {
    /// The bytes that are at fault.
    pub span: Span,
    /// `line:column` of the start of `span`, both from 1, columns in bytes. Empty for the few errors that Prometheus reports without a
    /// position, which then show nothing but their message.
    pub position: String,
    /// What is wrong, without position and prefix.
    pub message: String,
}

impl ParseError {
    /// An error at `span` of `query`.
    pub fn new(query: &str, span: Span, message: impl Into<String>) -> Self {
        Self { span, position: line_column(query, span.start), message: message.into() }
    }
}

impl fmt::Display for ParseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.position.is_empty() {
            return f.write_str(&self.message);
        }
        write!(f, "{}: parse error: {}", self.position, self.message)
    }
}

impl std::error::Error for ParseError {}

/// `line:column` of a byte offset.
pub(crate) fn line_column(query: &str, offset: u32) -> String {
    if query.is_empty() {
        return "unknown position".to_owned();
    }
    let Some(before) = query.as_bytes().get(..offset as usize) else {
        return "invalid position".to_owned();
    };
    let line = 1 + before.iter().filter(|b| **b == b'\n').count();
    let column = before.iter().rev().take_while(|b| **b != b'\n').count() + 1;
    format!("{line}:{column}")
}
