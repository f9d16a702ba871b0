//! Ranges, steps and offsets, which may be expressions over `step()` and `range()`.
//!
//! A range or step takes a whole expression. An offset takes one number, call or signed parenthesis, so that `foo offset 2 ^ 2` is
//! `(foo offset 2) ^ 2`; only behind a bare parenthesis do operators go on: `foo offset (2) ^ 2` is `foo offset ((2) ^ 2)`.

use super::{Fail, Parsed, Parser};
use crate::ast::{BinaryOp, Duration, DurationExpr, DurationOp, Span};
use crate::token::{ContextWord, Kind, Token};

/// A duration expression and the height of its tree.
pub(super) struct DurationNode {
    expr: DurationExpr,
    height: usize,
}

impl DurationNode {
    pub(super) fn into_duration(self) -> Duration {
        match self.expr {
            DurationExpr::Literal { seconds, .. } => Duration::Fixed(literal_ms(seconds)),
            expr => Duration::Expr(Box::new(expr)),
        }
    }
}

/// Rounded to nanoseconds, then cut to milliseconds, as Prometheus does.
fn literal_ms(seconds: f64) -> i64 {
    ((seconds * 1e9).round() / 1e6) as i64
}

/// More seconds than 64-bit nanoseconds hold.
const SECONDS_MAX: f64 = (1u64 << 63) as f64 / 1e9;

/// `^` binds tighter than a sign.
const LEVEL_POW: u8 = 3;

fn operator(kind: Kind) -> Option<(DurationOp, u8)> {
    let Kind::Op(op) = kind else { return None };
    Some(match op {
        BinaryOp::Add => (DurationOp::Add, 1),
        BinaryOp::Sub => (DurationOp::Sub, 1),
        BinaryOp::Mul => (DurationOp::Mul, 2),
        BinaryOp::Div => (DurationOp::Div, 2),
        BinaryOp::Mod => (DurationOp::Mod, 2),
        BinaryOp::Pow => (DurationOp::Pow, LEVEL_POW),
        _ => return None,
    })
}

impl Parser<'_> {
    pub(super) fn duration(&mut self, level_min: u8) -> Parsed<DurationNode> {
        let first = self.peek()?;
        self.enter(first)?;
        let lhs = self.duration_primary(first)?;
        let node = self.duration_operators(lhs, level_min)?;
        self.leave();
        Ok(node)
    }

    fn duration_operators(&mut self, mut lhs: DurationNode, level_min: u8) -> Parsed<DurationNode> {
        loop {
            let token = self.peek()?;
            let Some((op, level)) = operator(token.kind).filter(|(_, level)| *level >= level_min) else { return Ok(lhs) };
            self.ahead = None;
            let rhs = self.duration(if op == DurationOp::Pow { level } else { level + 1 })?;
            lhs = self.duration_binary(op, token.span, lhs, rhs)?;
        }
    }

    fn duration_binary(&self, op: DurationOp, op_span: Span, lhs: DurationNode, rhs: DurationNode) -> Parsed<DurationNode> {
        if let DurationExpr::Literal { seconds: 0.0, .. } = rhs.expr {
            match op {
                DurationOp::Div => return Err(self.fail(op_span, "division by zero")),
                DurationOp::Mod => return Err(self.fail(op_span, "modulo by zero")),
                _ => {}
            }
        }
        let height = self.height_over(lhs.height.max(rhs.height), op_span)?;
        let span = lhs.expr.span().to(rhs.expr.span());
        let (lhs, rhs) = (Box::new(lhs.expr), Box::new(rhs.expr));
        Ok(DurationNode { expr: DurationExpr::Binary { span, op, lhs, rhs }, height })
    }

    fn duration_primary(&mut self, first: Token) -> Parsed<DurationNode> {
        match first.kind {
            Kind::Number | Kind::Duration => self.duration_literal(first, first.span),
            Kind::Context(word) => self.duration_call(first, word),
            Kind::Op(BinaryOp::Add | BinaryOp::Sub) => {
                self.ahead = None;
                let operand = self.duration(LEVEL_POW)?;
                self.signed(first, operand, false)
            }
            Kind::LeftParen => {
                self.ahead = None;
                let inner = self.duration(0)?;
                let close = self.expect(Kind::RightParen)?;
                self.wrapped(inner, first.span.to(close.span))
            }
            _ => Err(Fail::Unexpected(first)),
        }
    }

    /// A literal, and what an error about its size points to.
    fn duration_literal(&mut self, token: Token, at: Span) -> Parsed<DurationNode> {
        let number = self.number(token)?;
        if number.value.is_nan() || number.value.abs() > SECONDS_MAX {
            return Err(self.fail(at, "duration out of range"));
        }
        let expr = DurationExpr::Literal { span: number.span, seconds: number.value, duration: number.duration };
        Ok(DurationNode { expr, height: 1 })
    }

    /// `step()`, `range()`, `min_of(a, b)`, `max_of(a, b)`.
    fn duration_call(&mut self, name: Token, word: ContextWord) -> Parsed<DurationNode> {
        let op = match word {
            ContextWord::Start | ContextWord::End => return Err(Fail::Unexpected(name)),
            ContextWord::Step | ContextWord::Range => None,
            ContextWord::MinOf => Some(DurationOp::Min),
            ContextWord::MaxOf => Some(DurationOp::Max),
        };
        self.ahead = None;
        self.expect(Kind::LeftParen)?;
        let Some(op) = op else {
            let span = name.span.to(self.expect(Kind::RightParen)?.span);
            let expr = if word == ContextWord::Step { DurationExpr::Step(span) } else { DurationExpr::Range(span) };
            return Ok(DurationNode { expr, height: 1 });
        };
        let lhs = self.duration(0)?;
        self.expect(Kind::Comma)?;
        let rhs = self.duration(0)?;
        let span = name.span.to(self.expect(Kind::RightParen)?.span);
        let height = self.height_over(lhs.height.max(rhs.height), span)?;
        let (lhs, rhs) = (Box::new(lhs.expr), Box::new(rhs.expr));
        Ok(DurationNode { expr: DurationExpr::Binary { span, op, lhs, rhs }, height })
    }

    /// An operand with a sign: literals take it in, a plus before anything else is dropped unless it is to be kept.
    fn signed(&self, sign: Token, operand: DurationNode, keep_plus: bool) -> Parsed<DurationNode> {
        let negative = sign.kind == Kind::Op(BinaryOp::Sub);
        match operand.expr {
            DurationExpr::Literal { span, seconds, duration } => {
                let (span, seconds) = (sign.span.to(span), if negative { -seconds } else { seconds });
                Ok(DurationNode { expr: DurationExpr::Literal { span, seconds, duration }, height: operand.height })
            }
            expr if negative || keep_plus => {
                let height = self.height_over(operand.height, sign.span)?;
                let span = sign.span.to(expr.span());
                Ok(DurationNode { expr: DurationExpr::Sign { span, negative, expr: Box::new(expr) }, height })
            }
            expr => Ok(DurationNode { expr, height: operand.height }),
        }
    }

    /// Parentheses; several pairs become one. Messages point to what is inside, unless that is a literal.
    fn wrapped(&self, inner: DurationNode, parens: Span) -> Parsed<DurationNode> {
        let span = match inner.expr {
            DurationExpr::Paren { .. } => return Ok(inner),
            DurationExpr::Literal { .. } => parens,
            ref expr => expr.span(),
        };
        let height = self.height_over(inner.height, parens)?;
        Ok(DurationNode { expr: DurationExpr::Paren { span, expr: Box::new(inner.expr) }, height })
    }

    /// A range or a step, which must be greater than zero where it is known already.
    pub(super) fn positive(&self, node: DurationNode) -> Parsed<Duration> {
        match node.expr {
            DurationExpr::Literal { span, seconds, .. } if seconds <= 0.0 => Err(self.fail(span, "duration must be greater than 0")),
            _ => Ok(node.into_duration()),
        }
    }

    pub(super) fn offset_operand(&mut self) -> Parsed<DurationNode> {
        let first = self.peek()?;
        match first.kind {
            Kind::LeftParen => {
                let lhs = self.duration_primary(first)?;
                self.duration_operators(lhs, 0)
            }
            Kind::Op(BinaryOp::Add | BinaryOp::Sub) => self.signed_offset(first),
            _ => self.duration_primary(first),
        }
    }

    fn signed_offset(&mut self, sign: Token) -> Parsed<DurationNode> {
        self.ahead = None;
        let first = self.peek()?;
        match first.kind {
            // Two signs are no longer the short form: operators go on.
            Kind::Op(BinaryOp::Add | BinaryOp::Sub) => {
                let operand = self.duration(LEVEL_POW)?;
                let lhs = self.signed(sign, operand, false)?;
                self.duration_operators(lhs, 0)
            }
            Kind::LeftParen => {
                let operand = self.duration_primary(first)?;
                self.signed(sign, operand, false)
            }
            Kind::Number | Kind::Duration => {
                let operand = self.duration_literal(first, sign.span)?;
                self.signed(sign, operand, true)
            }
            _ => {
                let operand = self.duration_primary(first)?;
                self.signed(sign, operand, true)
            }
        }
    }
}
