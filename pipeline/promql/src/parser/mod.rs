//! Tokens to a tree: a Pratt parser with one token of look-ahead.
//!
//! ```text
//!  expression(min) = prefix { operator of level ≥ min, modifiers, expression(level + 1, or level for ^) }
//!  prefix          = sign expression(level of ^)  |  primary { "[" … | offset … | @ … | anchored | smoothed }
//! ```
//!
//! # Invariants
//! - **P1** Neither the recursion nor the tree is deeper than [`ParseLimits::depth_max`]: a longer chain of operators is refused as soon as
//!   its tree would be higher.
//! - **P2** The look-ahead token is read only when it is needed. The first error in reading order is the one that is reported, and an
//!   unreadable character may stand right behind a wrong modifier.
//!
//! # When it fails
//! The first error ends the parse. A token that does not fit travels upwards as [`Fail::Unexpected`] until a construct that wants to
//! be named in the message takes it (`… in aggregation`, `… in grouping opts, expected label`).

mod duration;
mod number;
mod selector;

use std::borrow::Cow;

use fletch_schemas::Matcher;

use crate::DEPTH_MAX;
use crate::ast::{
    AggregateExpr, AggregateOp, BinaryExpr, BinaryOp, Call, Cardinality, Expr, NumberLiteral, ParenExpr, Span, StringLiteral, UnaryExpr,
    UnaryOp, VectorMatching,
};
use crate::check;
use crate::error::ParseError;
use crate::functions::function;
use crate::lexer::Lexer;
use crate::quote::{quote, quote_bytes, unquote};
use crate::token::{Keyword, Kind, Token, is_label_name, is_metric_name, starts_expression};

/// How large a query may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ParseLimits {
    /// Longest query text in bytes.
    pub bytes_max: usize,
    /// Highest tree, counted in nodes from the root to a leaf; never more than [`DEPTH_MAX`].
    pub depth_max: usize,
}

impl Default for ParseLimits {
    fn default() -> Self {
        Self { bytes_max: 16 << 10, depth_max: 200 }
    }
}

/// Parses and type checks an expression.
///
/// # Errors
/// The first syntax error, or, in a text without any, the first type error; a text beyond `limits`.
pub fn parse_expr(query: &str, limits: &ParseLimits) -> Result<Expr, ParseError> {
    let mut parser = Parser::new(query, limits)?;
    let mut expr = parser.whole(Parser::top_expression).map_err(|error| *error)?;
    check::check(&mut expr, query).map_err(|error| *error)?;
    Ok(expr)
}

/// Parses the selector of a `match[]` parameter: `metric{label="value"}` without modifiers.
///
/// A selector that matches everything is fine here; see [`has_non_empty_matcher`].
///
/// # Errors
/// The first syntax error; a text beyond `limits`.
pub fn parse_selector(text: &str, limits: &ParseLimits) -> Result<Vec<Matcher>, ParseError> {
    let mut parser = Parser::new(text, limits)?;
    let selector = parser.whole(Parser::top_selector).map_err(|error| *error)?;
    Ok(selector.matchers)
}

pub use crate::check::has_non_empty_matcher;

/// Why a part of the grammar did not fit.
enum Fail {
    /// A complete error.
    Final(Box<ParseError>),
    /// A token nobody expected; the construct around it may want to be named in the message.
    Unexpected(Token),
}

impl From<Box<ParseError>> for Fail {
    fn from(error: Box<ParseError>) -> Self {
        Self::Final(error)
    }
}

type Parsed<T> = Result<T, Fail>;

/// An expression and the height of its tree. Boxed, because most parents want it so and because it keeps the frames of the recursion small.
struct Node {
    expr: Box<Expr>,
    height: usize,
}

impl Node {
    fn new(expr: Expr, height: usize) -> Self {
        Self { expr: Box::new(expr), height }
    }
}

struct Parser<'a> {
    query: &'a str,
    lexer: Lexer<'a>,
    ahead: Option<Token>,
    /// End of the last closing bracket or number that was read, look-ahead included: where modifiers end.
    last_closing: u32,
    depth: usize,
    depth_max: usize,
}

/// Binding strength of operators, from the weakest. Signs bind like `*`, so only `^` goes before them.
fn level(op: BinaryOp) -> u8 {
    match op {
        BinaryOp::Or => 1,
        BinaryOp::And | BinaryOp::Unless => 2,
        BinaryOp::Eq | BinaryOp::Ne | BinaryOp::Gt | BinaryOp::Lt | BinaryOp::Ge | BinaryOp::Le => 3,
        BinaryOp::TrimUpper | BinaryOp::TrimLower => 3,
        BinaryOp::Add | BinaryOp::Sub => 4,
        BinaryOp::Mul | BinaryOp::Div | BinaryOp::Mod | BinaryOp::Atan2 => 5,
        BinaryOp::Pow => LEVEL_POW,
    }
}

const LEVEL_POW: u8 = 6;

/// What stands between a binary operator and its right operand.
#[derive(Default)]
struct BinaryModifiers {
    return_bool: bool,
    matching: Option<Box<VectorMatching>>,
}

fn no_matching() -> VectorMatching {
    VectorMatching {
        cardinality: Cardinality::OneToOne,
        on: false,
        labels: Vec::new(),
        include: Vec::new(),
        fill_left: None,
        fill_right: None,
    }
}

impl<'a> Parser<'a> {
    fn new(query: &'a str, limits: &ParseLimits) -> Result<Self, ParseError> {
        let bytes_max = limits.bytes_max.min(u32::MAX as usize);
        if query.len() > bytes_max {
            let message = format!("query is {} bytes long, at most {bytes_max} are allowed", query.len());
            return Err(ParseError::new(query, Span::default(), message));
        }
        let depth_max = limits.depth_max.min(DEPTH_MAX);
        Ok(Self { query, lexer: Lexer::new(query), ahead: None, last_closing: 0, depth: 0, depth_max })
    }

    /// Applies a rule and wants the input to end behind it.
    fn whole<T>(&mut self, rule: impl FnOnce(&mut Self) -> Parsed<T>) -> Result<T, Box<ParseError>> {
        let parsed = rule(self).and_then(|value| {
            self.expect(Kind::Eof)?;
            Ok(value)
        });
        parsed.map_err(|fail| self.resolve(fail, "", ""))
    }

    fn top_expression(&mut self) -> Parsed<Expr> {
        if self.peek()?.kind == Kind::Eof {
            return Err(self.fail(Span::default(), "no expression found in input"));
        }
        Ok(*self.expression(0)?.expr)
    }

    fn peek(&mut self) -> Result<Token, Box<ParseError>> {
        if let Some(token) = self.ahead {
            return Ok(token);
        }
        let token = self.lexer.next_token()?;
        if matches!(token.kind, Kind::RightBrace | Kind::RightParen | Kind::RightBracket | Kind::Duration | Kind::Number) {
            self.last_closing = token.span.end;
        }
        self.ahead = Some(token);
        Ok(token)
    }

    fn bump(&mut self) -> Result<Token, Box<ParseError>> {
        let token = self.peek()?;
        self.ahead = None;
        Ok(token)
    }

    fn at(&mut self, kind: Kind) -> Result<bool, Box<ParseError>> {
        Ok(self.peek()?.kind == kind)
    }

    fn expect(&mut self, kind: Kind) -> Parsed<Token> {
        let token = self.peek()?;
        if token.kind != kind {
            return Err(Fail::Unexpected(token));
        }
        self.ahead = None;
        Ok(token)
    }

    fn text(&self, token: Token) -> &'a str {
        token.text(self.query)
    }

    fn fail(&self, span: Span, message: impl Into<String>) -> Fail {
        Fail::Final(Box::new(ParseError::new(self.query, span, message)))
    }

    /// Names the construct in which a token was unexpected, unless a closer one did already.
    fn resolve(&self, fail: Fail, context: &str, expected: &str) -> Box<ParseError> {
        let token = match fail {
            Fail::Final(error) => return error,
            Fail::Unexpected(token) => token,
        };
        let mut message = format!("unexpected {}", token.describe(self.query));
        if !context.is_empty() {
            message.push_str(" in ");
            message.push_str(context);
        }
        if !expected.is_empty() {
            message.push_str(", expected ");
            message.push_str(expected);
        }
        Box::new(ParseError::new(self.query, token.span, message))
    }

    fn unexpected<T>(&self, token: Token, context: &str, expected: &str) -> Parsed<T> {
        Err(Fail::Final(self.resolve(Fail::Unexpected(token), context, expected)))
    }

    /// One more level of recursion; [`Parser::leave`] takes it back.
    fn enter(&mut self, at: Token) -> Parsed<()> {
        self.depth += 1;
        if self.depth > self.depth_max { Err(self.too_deep(at.span)) } else { Ok(()) }
    }

    fn leave(&mut self) {
        self.depth -= 1;
    }

    fn too_deep(&self, span: Span) -> Fail {
        let message = format!("expression is nested or chained more than {} levels deep; split it", self.depth_max);
        self.fail(span, message)
    }

    /// The height of a node over children of these heights.
    fn height_over(&self, children: usize, span: Span) -> Parsed<usize> {
        if children >= self.depth_max { Err(self.too_deep(span)) } else { Ok(children + 1) }
    }

    fn expression(&mut self, level_min: u8) -> Parsed<Node> {
        let first = self.peek()?;
        self.enter(first)?;
        let mut lhs = self.prefix()?;
        while let token = self.peek()?
            && let Kind::Op(op) = token.kind
            && level(op) >= level_min
        {
            self.ahead = None;
            lhs = self.binary(lhs, op, token.span)?;
        }
        self.leave();
        Ok(lhs)
    }

    fn binary(&mut self, lhs: Node, op: BinaryOp, op_span: Span) -> Parsed<Node> {
        let BinaryModifiers { return_bool, matching } = self.binary_modifiers()?;
        let rhs = self.expression(if op == BinaryOp::Pow { LEVEL_POW } else { level(op) + 1 })?;
        let height = self.height_over(lhs.height.max(rhs.height), op_span)?;
        let span = lhs.expr.span().to(rhs.expr.span());
        let (lhs, rhs) = (lhs.expr, rhs.expr);
        Ok(Node::new(Expr::Binary(BinaryExpr { span, op_span, op, lhs, rhs, return_bool, matching }), height))
    }

    fn binary_modifiers(&mut self) -> Parsed<BinaryModifiers> {
        let mut modifiers = BinaryModifiers::default();
        if self.at(Kind::Keyword(Keyword::Bool))? {
            self.ahead = None;
            modifiers.return_bool = true;
        }
        let Kind::Keyword(keyword) = self.peek()?.kind else { return Ok(modifiers) };
        if matches!(keyword, Keyword::On | Keyword::Ignoring) {
            self.ahead = None;
            let matching = modifiers.matching.insert(Box::new(no_matching()));
            matching.on = keyword == Keyword::On;
            matching.labels = self.grouping()?;
            self.group_modifier(matching)?;
        }
        self.fill_modifiers(&mut modifiers)?;
        Ok(modifiers)
    }

    fn group_modifier(&mut self, matching: &mut VectorMatching) -> Parsed<()> {
        matching.cardinality = match self.peek()?.kind {
            Kind::Keyword(Keyword::GroupLeft) => Cardinality::ManyToOne,
            Kind::Keyword(Keyword::GroupRight) => Cardinality::OneToMany,
            _ => return Ok(()),
        };
        self.ahead = None;
        if !starts_expression(self.peek()?.kind) || self.at(Kind::LeftParen)? {
            matching.include = self.grouping()?;
        }
        Ok(())
    }

    fn fill_modifiers(&mut self, modifiers: &mut BinaryModifiers) -> Parsed<()> {
        let Kind::Keyword(first @ (Keyword::Fill | Keyword::FillLeft | Keyword::FillRight)) = self.peek()?.kind else {
            return Ok(());
        };
        self.ahead = None;
        let value = Some(self.fill_value()?);
        let matching = modifiers.matching.get_or_insert_with(|| Box::new(no_matching()));
        if first != Keyword::FillRight {
            matching.fill_left = value;
        }
        if first != Keyword::FillLeft {
            matching.fill_right = value;
        }
        match (first, self.peek()?.kind) {
            (Keyword::FillLeft, Kind::Keyword(Keyword::FillRight)) => {
                self.ahead = None;
                matching.fill_right = Some(self.fill_value()?);
            }
            (Keyword::FillRight, Kind::Keyword(Keyword::FillLeft)) => {
                self.ahead = None;
                matching.fill_left = Some(self.fill_value()?);
            }
            _ => {}
        }
        Ok(())
    }

    fn fill_value(&mut self) -> Parsed<f64> {
        self.expect(Kind::LeftParen)?;
        let value = self.signed_number()?;
        self.expect(Kind::RightParen)?;
        Ok(value)
    }

    /// An optional sign and a number or duration.
    fn signed_number(&mut self) -> Parsed<f64> {
        let sign = match self.peek()?.kind {
            Kind::Op(BinaryOp::Sub) => Some(-1.0),
            Kind::Op(BinaryOp::Add) => Some(1.0),
            _ => None,
        };
        if sign.is_some() {
            self.ahead = None;
        }
        let token = self.peek()?;
        Ok(self.number(token)?.value * sign.unwrap_or(1.0))
    }

    /// A number or duration token.
    fn number(&mut self, token: Token) -> Parsed<NumberLiteral> {
        let text = self.text(token);
        let value = match token.kind {
            Kind::Number => number::parse_number(text),
            Kind::Duration => number::parse_duration_seconds(text),
            _ => return Err(Fail::Unexpected(token)),
        };
        self.ahead = None;
        let value = value.map_err(|message| self.fail(token.span, message))?;
        Ok(NumberLiteral { span: token.span, value, duration: token.kind == Kind::Duration })
    }

    fn prefix(&mut self) -> Parsed<Node> {
        let token = self.peek()?;
        let op = match token.kind {
            Kind::Op(BinaryOp::Sub) => UnaryOp::Minus,
            Kind::Op(BinaryOp::Add) => UnaryOp::Plus,
            _ => return self.postfixed(token),
        };
        self.ahead = None;
        let mut operand = self.expression(LEVEL_POW)?;
        // A signed number is a number.
        if let Expr::Number(number) = operand.expr.as_mut() {
            number.span.start = token.span.start;
            if op == UnaryOp::Minus {
                number.value = -number.value;
            }
            return Ok(operand);
        }
        let height = self.height_over(operand.height, token.span)?;
        let span = token.span.to(operand.expr.span());
        Ok(Node::new(Expr::Unary(UnaryExpr { span, op, expr: operand.expr }), height))
    }

    /// A primary expression and everything that binds tighter than any operator.
    fn postfixed(&mut self, first: Token) -> Parsed<Node> {
        let mut node = self.primary(first)?;
        loop {
            match self.peek()?.kind {
                Kind::LeftBracket => node = self.bracket(node)?,
                Kind::At => self.at_modifier(&mut node.expr)?,
                Kind::Keyword(Keyword::Offset) => self.offset_modifier(&mut node.expr)?,
                Kind::Keyword(Keyword::Anchored | Keyword::Smoothed) => self.edge_modifier(&mut node.expr)?,
                _ => return Ok(node),
            }
        }
    }

    fn primary(&mut self, first: Token) -> Parsed<Node> {
        match first.kind {
            Kind::Number | Kind::Duration => Ok(Node::new(Expr::Number(self.number(first)?), 1)),
            Kind::String => Ok(self.string(first)),
            Kind::LeftParen => self.paren(first),
            Kind::LeftBrace => self.leaf(first, None),
            Kind::Aggregate(op) => {
                self.ahead = None;
                match self.peek()?.kind {
                    Kind::LeftParen | Kind::Keyword(Keyword::By | Keyword::Without) => self.aggregate(first, op),
                    _ => self.leaf(first, Some(first)),
                }
            }
            Kind::Identifier | Kind::Context(_) => {
                self.ahead = None;
                if self.at(Kind::LeftParen)? { self.call(first) } else { self.leaf(first, Some(first)) }
            }
            kind if is_metric_name(kind) => {
                self.ahead = None;
                self.leaf(first, Some(first))
            }
            _ => Err(Fail::Unexpected(first)),
        }
    }

    fn leaf(&mut self, first: Token, name: Option<Token>) -> Parsed<Node> {
        Ok(Node::new(Expr::Vector(self.selector(first, name)?), 1))
    }

    fn string(&mut self, token: Token) -> Node {
        self.ahead = None;
        let bytes = unquote(self.text(token));
        let (value, lossy) = match String::from_utf8_lossy(&bytes) {
            Cow::Borrowed(text) => (text.to_owned(), false),
            Cow::Owned(text) => (text, true),
        };
        Node::new(Expr::String(StringLiteral { span: token.span, value, lossy }), 1)
    }

    fn paren(&mut self, open: Token) -> Parsed<Node> {
        self.ahead = None;
        let inner = self.expression(0)?;
        let close = self.expect(Kind::RightParen)?;
        let height = self.height_over(inner.height, open.span)?;
        let span = open.span.to(close.span);
        Ok(Node::new(Expr::Paren(ParenExpr { span, expr: inner.expr }), height))
    }

    fn call(&mut self, name: Token) -> Parsed<Node> {
        let Arguments { args, height, close } = self.arguments()?;
        let text = self.text(name);
        let Some(func) = function(text) else {
            return Err(self.fail(name.span, format!("unknown function with name {}", quote(text))));
        };
        let height = self.height_over(height, name.span)?;
        Ok(Node::new(Expr::Call(Call { span: name.span.to(close), func, args }), height))
    }

    fn arguments(&mut self) -> Parsed<Arguments> {
        self.expect(Kind::LeftParen)?;
        let (mut args, mut height) = (Vec::new(), 0);
        if self.at(Kind::RightParen)? {
            let close = self.bump()?.span;
            return Ok(Arguments { args, height, close });
        }
        loop {
            let arg = self.expression(0)?;
            height = height.max(arg.height);
            args.push(*arg.expr);
            let token = self.peek()?;
            match token.kind {
                Kind::Comma => {
                    self.ahead = None;
                    if !starts_expression(self.peek()?.kind) {
                        return Err(self.fail(token.span, "trailing commas not allowed in function call args"));
                    }
                }
                Kind::RightParen => {
                    self.ahead = None;
                    return Ok(Arguments { args, height, close: token.span });
                }
                _ => return Err(Fail::Unexpected(token)),
            }
        }
    }

    fn aggregate(&mut self, name: Token, op: AggregateOp) -> Parsed<Node> {
        let (arguments, (grouping, without), end) =
            self.aggregate_parts().map_err(|fail| Fail::Final(self.resolve(fail, "aggregation", "")))?;
        let span = name.span.to(end);
        let Arguments { args, height, .. } = arguments;
        let height = self.height_over(height, name.span)?;
        let wanted = 1 + usize::from(op.param_type().is_some());
        let given = args.len();
        let mut args = args.into_iter();
        let (param, expr) = match (given, wanted) {
            (0, _) => return Err(self.fail(span, "no arguments for aggregate expression provided")),
            (2, 2) => (args.next().map(Box::new), args.next()),
            (1, 1) => (None, args.next()),
            _ => (None, None),
        };
        let Some(expr) = expr.map(Box::new) else {
            let message = format!("wrong number of arguments for aggregate expression provided, expected {wanted}, got {given}");
            return Err(self.fail(span, message));
        };
        Ok(Node::new(Expr::Aggregate(AggregateExpr { span, op, expr, param, grouping, without }), height))
    }

    /// Arguments and grouping in either order, and the end of the later one.
    fn aggregate_parts(&mut self) -> Parsed<(Arguments, (Vec<String>, bool), Span)> {
        if let Some(grouping) = self.aggregate_grouping()? {
            let arguments = self.arguments()?;
            let end = arguments.close;
            return Ok((arguments, grouping, end));
        }
        let arguments = self.arguments()?;
        Ok(match self.aggregate_grouping()? {
            Some(grouping) => (arguments, grouping, Span::new(self.last_closing, self.last_closing)),
            None => {
                let end = arguments.close;
                (arguments, (Vec::new(), false), end)
            }
        })
    }

    fn aggregate_grouping(&mut self) -> Parsed<Option<(Vec<String>, bool)>> {
        let without = match self.peek()?.kind {
            Kind::Keyword(Keyword::By) => false,
            Kind::Keyword(Keyword::Without) => true,
            _ => return Ok(None),
        };
        self.ahead = None;
        Ok(Some((self.grouping()?, without)))
    }

    /// `(label, "label", …)`.
    fn grouping(&mut self) -> Parsed<Vec<String>> {
        const CONTEXT: &str = "grouping opts";
        let open = self.peek()?;
        if open.kind != Kind::LeftParen {
            return self.unexpected(open, CONTEXT, "\"(\"");
        }
        self.ahead = None;
        let mut labels = Vec::new();
        loop {
            let token = self.bump()?;
            match token.kind {
                Kind::RightParen => return Ok(labels),
                Kind::String => labels.push(self.quoted_label(token)?),
                kind if is_label_name(kind) => labels.push(self.text(token).to_owned()),
                _ => return self.unexpected(token, CONTEXT, "label"),
            }
            let token = self.bump()?;
            match token.kind {
                Kind::Comma => {}
                Kind::RightParen => return Ok(labels),
                _ => return self.unexpected(token, CONTEXT, "\",\" or \")\""),
            }
        }
    }

    fn quoted_label(&self, token: Token) -> Parsed<String> {
        let bytes = unquote(self.text(token));
        match std::str::from_utf8(&bytes) {
            Ok(name) if !name.is_empty() => Ok(name.to_owned()),
            _ => Err(self.fail(token.span, format!("invalid label name for grouping: {}", quote_bytes(&bytes)))),
        }
    }
}

/// What stands between the parentheses of a call.
struct Arguments {
    args: Vec<Expr>,
    /// Height of the highest argument.
    height: usize,
    /// The closing parenthesis.
    close: Span,
}
