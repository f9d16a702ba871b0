//! The PromQL language: what a query says, not what it means.
//!
//! ```text
//!  text ──lexer──▶ tokens ──parser──▶ Expr (positions) ──check──▶ typed Expr ──printer──▶ canonical text
//! ```
//!
//! ```
//! use fletch_promql::{ParseLimits, ValueType, parse_expr};
//!
//! let limits = ParseLimits::default();
//! let expr = parse_expr("sum by(job)(rate(up{job!=\"x\"}[300]))", &limits)?;
//! assert_eq!(expr.to_string(), "sum by (job) (rate(up{job!=\"x\"}[5m]))");
//! assert_eq!(expr.value_type(), ValueType::Vector);
//!
//! let error = parse_expr("rate(up)", &limits).unwrap_err();
//! assert_eq!(error.to_string(), "1:6: parse error: expected type range vector in call to function \"rate\", got instant vector");
//! # Ok::<(), fletch_promql::ParseError>(())
//! ```
//!
//! Start with [`parse_expr`] and [`ast::Expr`], then [`functions`]. [`parse_selector`] reads `match[]` parameters, [`parse_duration`] and
//! [`format_duration`] know durations as text.
//!
//! Grammar, error texts, positions and canonical texts are those of Prometheus 3.16 with every experimental feature on, except unquoted
//! names beyond ASCII. `tests/language.rs` holds the cases.
//!
//! # Not here
//! Evaluation (`fletch-query`), series descriptions of test scripts.

pub mod ast;
mod check;
mod duration;
mod duration_expr;
mod error;
pub mod functions;
mod lexer;
mod parser;
mod printer;
mod quote;
mod token;

pub use ast::{Expr, Span, ValueType, value_type};
pub use duration::{DurationTextError, format_duration, parse_duration};
pub use error::ParseError;
pub use parser::{ParseLimits, has_non_empty_matcher, parse_expr, parse_selector};
pub use quote::quote;

/// Highest tree the parser ever builds, whatever [`ParseLimits`] say: parsing it takes half of a 2 MiB stack in a debug build (about 6 KiB
/// a level in the worst case), a small part of that in a release build.
pub const DEPTH_MAX: usize = 250;
