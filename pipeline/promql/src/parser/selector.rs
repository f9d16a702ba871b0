//! Selectors and what may stand behind them: `{…}`, `[…]`, `offset`, `@`, `anchored`, `smoothed`.

use fletch_schemas::{METRIC_NAME, MatchOp, Matcher};

use super::{Fail, Node, Parsed, Parser};
use crate::ast::{AtModifier, BinaryOp, Duration, EdgeMode, Expr, MatrixSelector, Span, SubqueryExpr, VectorSelector};
use crate::check::check_regex;
use crate::quote::unquote_text;
use crate::token::{ContextWord, Keyword, Kind, Token, is_metric_name};

const CONTEXT_LABELS: &str = "label matching";
const EXPECTED_DURATION: &str = "number, duration, step(), or range()";

/// What modifiers change: offset, `@` and the end of the expression.
type Modifiable<'e> = (&'e mut Duration, &'e mut Option<AtModifier>, &'e mut Span);

fn modifiable(expr: &mut Expr) -> Option<Modifiable<'_>> {
    match expr {
        Expr::Vector(e) => Some((&mut e.offset, &mut e.at, &mut e.span)),
        Expr::Matrix(e) => Some((&mut e.selector.offset, &mut e.selector.at, &mut e.span)),
        Expr::Subquery(e) => Some((&mut e.offset, &mut e.at, &mut e.span)),
        _ => None,
    }
}

impl Parser<'_> {
    pub(super) fn top_selector(&mut self) -> Parsed<VectorSelector> {
        let first = self.peek()?;
        if first.kind == Kind::LeftBrace {
            return self.selector(first, None);
        }
        if !is_metric_name(first.kind) {
            return Err(Fail::Unexpected(first));
        }
        self.ahead = None;
        self.selector(first, Some(first))
    }

    /// `name{…}`, `name` or `{…}`; the name is taken already.
    pub(super) fn selector(&mut self, first: Token, name: Option<Token>) -> Parsed<VectorSelector> {
        let mut matchers = Vec::new();
        let mut span = first.span;
        if let Some(name) = name {
            matchers.push(Matcher::equal(METRIC_NAME, self.text(name)));
        }
        if self.at(Kind::LeftBrace)? {
            self.ahead = None;
            span.end = self.matchers(&mut matchers)?.end;
        }
        let (offset, at, edges) = (Duration::default(), None, EdgeMode::Plain);
        Ok(VectorSelector { span, matchers, named: name.is_some(), offset, at, edges })
    }

    /// Matchers up to the closing brace, which is returned.
    fn matchers(&mut self, matchers: &mut Vec<Matcher>) -> Parsed<Span> {
        loop {
            let token = self.bump()?;
            match token.kind {
                Kind::RightBrace => return Ok(token.span),
                Kind::Identifier => {
                    let name = self.text(token).to_owned();
                    matchers.push(self.matcher(token, name)?);
                }
                Kind::String => {
                    let name = unquote_text(self.text(token));
                    let behind = self.peek()?;
                    matchers.push(match match_op(behind.kind) {
                        Some(_) => self.matcher(token, name)?,
                        None => Matcher::equal(METRIC_NAME, name),
                    });
                }
                _ => return self.unexpected(token, CONTEXT_LABELS, "identifier or \"}\""),
            }
            let token = self.bump()?;
            match token.kind {
                Kind::Comma => {}
                Kind::RightBrace => return Ok(token.span),
                _ => return self.unexpected(token, CONTEXT_LABELS, "\",\" or \"}\""),
            }
        }
    }

    fn matcher(&mut self, label: Token, name: String) -> Parsed<Matcher> {
        let token = self.bump()?;
        let Some(op) = match_op(token.kind) else {
            return self.unexpected(token, CONTEXT_LABELS, "label matching operator");
        };
        let token = self.bump()?;
        if token.kind != Kind::String {
            return self.unexpected(token, CONTEXT_LABELS, "string");
        }
        let matcher = Matcher::new(name, op, unquote_text(self.text(token)));
        check_regex(&matcher).map_err(|message| self.fail(label.span.to(token.span), message))?;
        Ok(matcher)
    }

    /// `[range]` or `[range:step]` behind an expression.
    pub(super) fn bracket(&mut self, node: Node) -> Parsed<Node> {
        let open = self.bump()?;
        let range = self.duration(0);
        let range = self.in_context(range, "subquery or range selector", EXPECTED_DURATION)?;
        let range = self.positive(range)?;
        let token = self.bump()?;
        match token.kind {
            Kind::RightBracket => self.matrix(node, range, open.span.to(token.span)),
            Kind::Colon => self.subquery(node, range),
            _ => self.unexpected(token, "subquery or range", "\":\" or \"]\""),
        }
    }

    pub(super) fn in_context<T>(&self, parsed: Parsed<T>, context: &str, expected: &str) -> Parsed<T> {
        parsed.map_err(|fail| Fail::Final(self.resolve(fail, context, expected)))
    }

    fn matrix(&self, node: Node, range: Duration, brackets: Span) -> Parsed<Node> {
        let selector = match *node.expr {
            Expr::Vector(selector) => selector,
            _ => return Err(self.fail(brackets, "ranges only allowed for vector selectors")),
        };
        if !selector.offset.is_zero() {
            return Err(self.fail(brackets, "no offset modifiers allowed before range"));
        }
        if selector.at.is_some() {
            return Err(self.fail(brackets, "no @ modifiers allowed before range"));
        }
        let span = selector.span.to(brackets);
        Ok(Node::new(Expr::Matrix(MatrixSelector { span, selector, range }), node.height))
    }

    /// What stands behind the colon.
    fn subquery(&mut self, node: Node, range: Duration) -> Parsed<Node> {
        const CONTEXT: &str = "subquery selector";
        let step = if self.at(Kind::RightBracket)? {
            None
        } else {
            let step = self.duration(0);
            let step = self.in_context(step, CONTEXT, "number, duration, step(), range(), or \"]\"")?;
            Some(self.positive(step)?)
        };
        let close = self.bump()?;
        if close.kind != Kind::RightBracket {
            return self.unexpected(close, CONTEXT, "\"]\"");
        }
        let span = node.expr.span().to(close.span);
        let height = self.height_over(node.height, close.span)?;
        let expr = node.expr;
        let (offset, at) = (Duration::default(), None);
        Ok(Node::new(Expr::Subquery(SubqueryExpr { span, expr, range, step, offset, at }), height))
    }

    /// `offset 5m`, `offset -5m`, `offset (step() + 1m)`.
    pub(super) fn offset_modifier(&mut self, expr: &mut Expr) -> Parsed<()> {
        self.ahead = None;
        let parsed = self.offset_operand();
        let duration = self.in_context(parsed, "offset", EXPECTED_DURATION)?.into_duration();
        let at = expr.span();
        let Some((offset, _, span)) = modifiable(expr) else {
            let message = "offset modifier must be preceded by an instant vector selector or range vector selector or a subquery";
            return Err(self.fail(at, message));
        };
        if !offset.is_zero() {
            return Err(self.fail(at, "offset may not be set multiple times"));
        }
        *offset = duration;
        span.end = self.last_closing;
        Ok(())
    }

    /// `@ 1609746000`, `@ start()`, `@ end()`.
    pub(super) fn at_modifier(&mut self, expr: &mut Expr) -> Parsed<()> {
        self.ahead = None;
        let parsed = self.at_operand(expr.span());
        let modifier = self.in_context(parsed, "@", "timestamp")?;
        let at = expr.span();
        let Some((_, slot, span)) = modifiable(expr) else {
            let message = "@ modifier must be preceded by an instant vector selector or range vector selector or a subquery";
            return Err(self.fail(at, message));
        };
        if slot.is_some() {
            return Err(self.fail(at, "@ <timestamp> may not be set multiple times"));
        }
        *slot = Some(modifier);
        span.end = self.last_closing;
        Ok(())
    }

    fn at_operand(&mut self, expr: Span) -> Parsed<AtModifier> {
        let modifier = match self.peek()?.kind {
            Kind::Context(ContextWord::Start) => AtModifier::Start,
            Kind::Context(ContextWord::End) => AtModifier::End,
            _ => return self.at_timestamp(expr),
        };
        self.ahead = None;
        self.expect(Kind::LeftParen)?;
        self.expect(Kind::RightParen)?;
        Ok(modifier)
    }

    fn at_timestamp(&mut self, expr: Span) -> Parsed<AtModifier> {
        let seconds = self.signed_number()?;
        // 64-bit seconds, although milliseconds are kept: the conversion saturates.
        if seconds.is_finite() && seconds.abs() < i64::MAX as f64 {
            return Ok(AtModifier::Timestamp((seconds * 1000.0).round() as i64));
        }
        let shown = match seconds {
            f64::INFINITY => "+Inf".to_owned(),
            f64::NEG_INFINITY => "-Inf".to_owned(),
            seconds if seconds.is_nan() => "NaN".to_owned(),
            seconds => format!("{seconds:.6}"),
        };
        Err(self.fail(expr, format!("timestamp out of bounds for @ modifier: {shown}")))
    }

    /// `anchored` or `smoothed`.
    pub(super) fn edge_modifier(&mut self, expr: &mut Expr) -> Parsed<()> {
        let token = self.bump()?;
        let mode = match token.kind {
            Kind::Keyword(Keyword::Anchored) => EdgeMode::Anchored,
            _ => EdgeMode::Smoothed,
        };
        let name = if mode == EdgeMode::Anchored { "anchored" } else { "smoothed" };
        let at = expr.span();
        let edges = match expr {
            Expr::Vector(e) => &mut e.edges,
            Expr::Matrix(e) => &mut e.selector.edges,
            Expr::Subquery(_) => return Err(self.fail(at, format!("{name} modifier is not supported for subqueries"))),
            _ => return Err(self.fail(at, format!("{name} modifier not implemented"))),
        };
        if *edges != EdgeMode::Plain && *edges != mode {
            return Err(self.fail(at, "anchored and smoothed modifiers cannot be used together"));
        }
        *edges = mode;
        Ok(())
    }
}

fn match_op(kind: Kind) -> Option<MatchOp> {
    match kind {
        Kind::Equal => Some(MatchOp::Equal),
        Kind::Op(BinaryOp::Ne) => Some(MatchOp::NotEqual),
        Kind::EqualRegex => Some(MatchOp::Regex),
        Kind::NotRegex => Some(MatchOp::NotRegex),
        _ => None,
    }
}
