//! What the lexer hands to the parser, and how error messages name it.

use crate::ast::{AggregateOp, BinaryOp, Span};
use crate::quote::quote;

/// Words that are neither operators nor aggregations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Keyword {
    Anchored,
    Bool,
    By,
    Fill,
    FillLeft,
    FillRight,
    GroupLeft,
    GroupRight,
    Ignoring,
    Offset,
    On,
    Smoothed,
    Without,
}

/// Words that are functions, and in some places more than that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ContextWord {
    Start,
    End,
    Step,
    Range,
    MaxOf,
    MinOf,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Eof,
    Comma,
    Colon,
    LeftParen,
    RightParen,
    LeftBrace,
    RightBrace,
    LeftBracket,
    RightBracket,
    /// `=`
    Equal,
    /// `=~`
    EqualRegex,
    /// `!~`
    NotRegex,
    /// `@`
    At,
    Number,
    Duration,
    String,
    /// A word without a colon.
    Identifier,
    /// A word with a colon.
    MetricIdentifier,
    Op(BinaryOp),
    Aggregate(AggregateOp),
    Keyword(Keyword),
    Context(ContextWord),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Token {
    pub(crate) kind: Kind,
    pub(crate) span: Span,
}

impl Token {
    pub(crate) fn text(self, query: &str) -> &str {
        query.get(self.span.start as usize..self.span.end as usize).unwrap_or_default()
    }

    /// The name of the token in `unexpected …`.
    pub(crate) fn describe(self, query: &str) -> String {
        let text = self.text(query);
        match self.kind {
            Kind::Eof => "end of input".to_owned(),
            Kind::Identifier => format!("identifier {}", quote(text)),
            Kind::MetricIdentifier => format!("metric identifier {}", quote(text)),
            Kind::Number => format!("number {}", shortened(text)),
            Kind::Duration => format!("duration {}", shortened(text)),
            Kind::String => format!("string {}", shortened(text)),
            Kind::Keyword(_) => format!("<{text}>"),
            Kind::Op(_) | Kind::At | Kind::EqualRegex | Kind::NotRegex => format!("<op:{text}>"),
            Kind::Aggregate(_) => format!("<aggr:{text}>"),
            _ => quote(text),
        }
    }
}

/// Quoted, but only the first ten characters of more than ten bytes.
fn shortened(text: &str) -> String {
    if text.len() <= 10 {
        return quote(text);
    }
    let head: String = text.chars().take(10).collect();
    format!("{}...", quote(&head))
}

/// Longest word in [`word`].
const WORD_BYTES_MAX: usize = 12;

/// What a word means, whatever its case; `None` if it is only a name.
pub(crate) fn word(text: &[u8]) -> Option<Kind> {
    let mut buffer = [0u8; WORD_BYTES_MAX];
    let lower = buffer.get_mut(..text.len())?;
    lower.copy_from_slice(text);
    lower.make_ascii_lowercase();
    Some(match &*lower {
        b"inf" | b"nan" => Kind::Number,
        b"and" => Kind::Op(BinaryOp::And),
        b"or" => Kind::Op(BinaryOp::Or),
        b"unless" => Kind::Op(BinaryOp::Unless),
        b"atan2" => Kind::Op(BinaryOp::Atan2),
        b"start" => Kind::Context(ContextWord::Start),
        b"end" => Kind::Context(ContextWord::End),
        b"anchored" => Kind::Keyword(Keyword::Anchored),
        b"bool" => Kind::Keyword(Keyword::Bool),
        b"by" => Kind::Keyword(Keyword::By),
        b"fill" => Kind::Keyword(Keyword::Fill),
        b"fill_left" => Kind::Keyword(Keyword::FillLeft),
        b"fill_right" => Kind::Keyword(Keyword::FillRight),
        b"group_left" => Kind::Keyword(Keyword::GroupLeft),
        b"group_right" => Kind::Keyword(Keyword::GroupRight),
        b"ignoring" => Kind::Keyword(Keyword::Ignoring),
        b"offset" => Kind::Keyword(Keyword::Offset),
        b"on" => Kind::Keyword(Keyword::On),
        b"smoothed" => Kind::Keyword(Keyword::Smoothed),
        b"without" => Kind::Keyword(Keyword::Without),
        other => return duration_word(other).or_else(|| aggregation(other)),
    })
}

/// Functions that may stand in a range, an offset or a step; `text` is in lower case.
pub(crate) fn duration_word(text: &[u8]) -> Option<Kind> {
    Some(Kind::Context(match text {
        b"step" => ContextWord::Step,
        b"range" => ContextWord::Range,
        b"max_of" => ContextWord::MaxOf,
        b"min_of" => ContextWord::MinOf,
        _ => return None,
    }))
}

fn aggregation(text: &[u8]) -> Option<Kind> {
    Some(Kind::Aggregate(match text {
        b"avg" => AggregateOp::Avg,
        b"bottomk" => AggregateOp::Bottomk,
        b"count" => AggregateOp::Count,
        b"count_values" => AggregateOp::CountValues,
        b"group" => AggregateOp::Group,
        b"limitk" => AggregateOp::Limitk,
        b"limit_ratio" => AggregateOp::LimitRatio,
        b"max" => AggregateOp::Max,
        b"min" => AggregateOp::Min,
        b"quantile" => AggregateOp::Quantile,
        b"stddev" => AggregateOp::Stddev,
        b"stdvar" => AggregateOp::Stdvar,
        b"sum" => AggregateOp::Sum,
        b"topk" => AggregateOp::Topk,
        _ => return None,
    }))
}

/// Words that name a metric where an expression may begin.
pub(crate) fn is_metric_name(kind: Kind) -> bool {
    match kind {
        Kind::Identifier | Kind::MetricIdentifier | Kind::Aggregate(_) | Kind::Context(_) => true,
        Kind::Op(op) => op.is_set(),
        Kind::Keyword(keyword) => {
            !matches!(keyword, Keyword::Bool | Keyword::On | Keyword::Ignoring | Keyword::GroupLeft | Keyword::GroupRight)
        }
        _ => false,
    }
}

/// Words that name a label in `by (…)`, `on (…)` and the like.
pub(crate) fn is_label_name(kind: Kind) -> bool {
    match kind {
        Kind::Identifier | Kind::MetricIdentifier | Kind::Aggregate(_) | Kind::Context(_) => true,
        Kind::Op(op) => op.is_set() || op == BinaryOp::Atan2,
        Kind::Keyword(keyword) => keyword != Keyword::Without,
        _ => false,
    }
}

pub(crate) fn starts_expression(kind: Kind) -> bool {
    match kind {
        Kind::Number | Kind::Duration | Kind::String | Kind::LeftParen | Kind::LeftBrace => true,
        Kind::Op(BinaryOp::Add | BinaryOp::Sub) => true,
        kind => is_metric_name(kind),
    }
}
