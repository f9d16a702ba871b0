//! The syntax tree of a PromQL expression. Every node knows which bytes of the query it came from.
//!
//! ```text
//!  sum by (job) (rate(http_requests_total{code="500"}[5m] offset 1h)) > 10
//!  Binary(>) ── Aggregate(sum) ── Call(rate) ── Matrix ── VectorSelector   and   Number(10)
//! ```
//!
//! # Invariants
//! - **T1** A tree the parser returned is type checked: argument counts and types fit, a [`BinaryExpr`] has a [`VectorMatching`] exactly when
//!   both sides are instant vectors, set operators are many-to-many.
//! - **T2** No tree is higher than [`crate::DEPTH_MAX`] nodes, so functions that recurse over it (drop, clone, print, evaluate) need a bounded stack.
//! - **T3** When [`VectorSelector::named`] is set, the first matcher is `__name__="…"`.
//!
//! # Not here
//! What the nodes mean (the evaluator), how they are written ([`crate::printer`]).

use std::fmt;

use fletch_schemas::Matcher;

pub use crate::duration_expr::{Duration, DurationContext, DurationError, DurationExpr, DurationOp};
use crate::functions::Function;

/// Half-open range `start..end` of byte offsets into the query text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Span {
    /// Offset of the first byte.
    pub start: u32,
    /// Offset after the last byte.
    pub end: u32,
}

impl Span {
    /// The range `start..end`.
    pub fn new(start: u32, end: u32) -> Self {
        Self { start, end }
    }

    /// From the start of `self` to the end of `last`.
    pub fn to(self, last: Span) -> Self {
        Self { start: self.start, end: last.end }
    }

    /// `line:column` of the start, both from 1, columns in bytes: what annotations and errors end or begin with.
    pub fn line_column(self, query: &str) -> String {
        crate::error::line_column(query, self.start)
    }
}

/// What an expression evaluates to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ValueType {
    /// One number per step.
    Scalar,
    /// A text; only as an argument or as a whole query.
    String,
    /// One sample per series and step.
    Vector,
    /// A window of samples per series and step.
    Matrix,
}

impl ValueType {
    /// The name the HTTP API uses in `resultType`: `scalar`, `string`, `vector`, `matrix`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Scalar => "scalar",
            Self::String => "string",
            Self::Vector => "vector",
            Self::Matrix => "matrix",
        }
    }
}

/// The name the documentation and error messages use: `instant vector`, `range vector`, `scalar`, `string`.
impl fmt::Display for ValueType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Scalar => "scalar",
            Self::String => "string",
            Self::Vector => "instant vector",
            Self::Matrix => "range vector",
        })
    }
}

/// Any expression.
#[derive(Debug, Clone, PartialEq)]
pub enum Expr {
    /// `1.5`, `0x1f`, `Inf`, `5m` (as seconds).
    Number(NumberLiteral),
    /// `"text"`.
    String(StringLiteral),
    /// `metric{label="value"}` with its modifiers.
    Vector(VectorSelector),
    /// `metric[5m]`.
    Matrix(MatrixSelector),
    /// `expr[1h:5m]`.
    Subquery(SubqueryExpr),
    /// `-expr`, `+expr`.
    Unary(UnaryExpr),
    /// `(expr)`.
    Paren(ParenExpr),
    /// `lhs op rhs`.
    Binary(BinaryExpr),
    /// `sum by (label) (expr)`.
    Aggregate(AggregateExpr),
    /// `function(args)`.
    Call(Call),
}

/// A number, or a duration used as a number of seconds.
#[derive(Debug, Clone, PartialEq)]
pub struct NumberLiteral {
    /// Where it stands.
    pub span: Span,
    /// Its value; seconds if it was written as a duration.
    pub value: f64,
    /// Whether it was written as a duration (`5m`); only the printer cares.
    pub duration: bool,
}

/// A string after unescaping. Escapes that do not give UTF-8 have become U+FFFD.
#[derive(Debug, Clone, PartialEq)]
pub struct StringLiteral {
    /// Where it stands, quotes included.
    pub span: Span,
    /// The unescaped text.
    pub value: String,
    /// Whether the escapes gave bytes that are not UTF-8, which are U+FFFD in `value`.
    pub lossy: bool,
}

/// What `@` pins the evaluation time to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum AtModifier {
    /// `@ 1609746000`: milliseconds since the Unix epoch.
    Timestamp(i64),
    /// `@ start()`: start of the range query, or the instant.
    Start,
    /// `@ end()`: end of the range query, or the instant.
    End,
}

/// How a selector treats the edges of its window.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum EdgeMode {
    /// Only samples inside the window count.
    #[default]
    Plain,
    /// `anchored`: the last sample at or before each edge stands on the edge.
    Anchored,
    /// `smoothed`: the value on each edge is interpolated between its neighbours.
    Smoothed,
}

/// A selector of series; an instant vector on its own.
#[derive(Debug, Clone, PartialEq)]
pub struct VectorSelector {
    /// Where it stands, `offset` and `@` included when it is not inside a matrix selector; a trailing edge modifier is not.
    pub span: Span,
    /// All conditions. If `named`, the first one is the metric name.
    pub matchers: Vec<Matcher>,
    /// Whether a metric name was written before the braces; `{"metric"}` is a matcher like any other.
    pub named: bool,
    /// `offset`; zero if there is none. Positive looks back. For a matrix selector this is its offset.
    pub offset: Duration,
    /// `@`, if there is one.
    pub at: Option<AtModifier>,
    /// `anchored` or `smoothed`.
    pub edges: EdgeMode,
}

impl VectorSelector {
    /// The metric name, if it was written as one (not as a `__name__` matcher).
    pub fn name(&self) -> Option<&str> {
        if self.named { self.matchers.first().map(|m| m.value.as_str()) } else { None }
    }
}

/// A selector with a range.
#[derive(Debug, Clone, PartialEq)]
pub struct MatrixSelector {
    /// Where it stands, modifiers after the bracket included.
    pub span: Span,
    /// The series, with the offset, `@` and edge modifier that apply to the whole; its span ends before the bracket.
    pub selector: VectorSelector,
    /// Width of the window, which is open on the left and closed on the right.
    pub range: Duration,
}

/// An instant expression evaluated at many steps.
#[derive(Debug, Clone, PartialEq)]
pub struct SubqueryExpr {
    /// Where it stands, modifiers included.
    pub span: Span,
    /// What is evaluated at each inner step.
    pub expr: Box<Expr>,
    /// Width of the window.
    pub range: Duration,
    /// Distance of inner steps; `None` for the default of the server.
    pub step: Option<Duration>,
    /// `offset`; zero if there is none.
    pub offset: Duration,
    /// `@`, if there is one.
    pub at: Option<AtModifier>,
}

/// Sign in front of an expression.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum UnaryOp {
    /// `+`
    Plus,
    /// `-`
    Minus,
}

/// A signed expression.
#[derive(Debug, Clone, PartialEq)]
pub struct UnaryExpr {
    /// Where it stands.
    pub span: Span,
    /// The sign.
    pub op: UnaryOp,
    /// What it applies to: a scalar or an instant vector.
    pub expr: Box<Expr>,
}

/// An expression in parentheses.
#[derive(Debug, Clone, PartialEq)]
pub struct ParenExpr {
    /// Where it stands, parentheses included.
    pub span: Span,
    /// What is inside.
    pub expr: Box<Expr>,
}

/// A binary operator.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum BinaryOp {
    /// `+`
    Add,
    /// `-`
    Sub,
    /// `*`
    Mul,
    /// `/`
    Div,
    /// `%`
    Mod,
    /// `^`
    Pow,
    /// `atan2`
    Atan2,
    /// `==`
    Eq,
    /// `!=`
    Ne,
    /// `>`
    Gt,
    /// `<`
    Lt,
    /// `>=`
    Ge,
    /// `<=`
    Le,
    /// `and`
    And,
    /// `or`
    Or,
    /// `unless`
    Unless,
    /// `</`: drops the observations of histograms above the right side.
    TrimUpper,
    /// `>/`: drops the observations of histograms below the right side.
    TrimLower,
}

impl BinaryOp {
    /// The operator as it is written.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Add => "+",
            Self::Sub => "-",
            Self::Mul => "*",
            Self::Div => "/",
            Self::Mod => "%",
            Self::Pow => "^",
            Self::Atan2 => "atan2",
            Self::Eq => "==",
            Self::Ne => "!=",
            Self::Gt => ">",
            Self::Lt => "<",
            Self::Ge => ">=",
            Self::Le => "<=",
            Self::And => "and",
            Self::Or => "or",
            Self::Unless => "unless",
            Self::TrimUpper => "</",
            Self::TrimLower => ">/",
        }
    }

    /// `==`, `!=`, `<`, `<=`, `>`, `>=`: the operators that filter and that `bool` may follow.
    pub fn is_comparison(self) -> bool {
        matches!(self, Self::Eq | Self::Ne | Self::Gt | Self::Lt | Self::Ge | Self::Le)
    }

    /// `and`, `or`, `unless`.
    pub fn is_set(self) -> bool {
        matches!(self, Self::And | Self::Or | Self::Unless)
    }

    /// `</` and `>/`.
    pub fn is_trim(self) -> bool {
        matches!(self, Self::TrimUpper | Self::TrimLower)
    }
}

/// How many series of one side match one series of the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Cardinality {
    /// The default.
    OneToOne,
    /// `group_left`.
    ManyToOne,
    /// `group_right`.
    OneToMany,
    /// Set operators.
    ManyToMany,
}

impl fmt::Display for Cardinality {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OneToOne => "one-to-one",
            Self::ManyToOne => "many-to-one",
            Self::OneToMany => "one-to-many",
            Self::ManyToMany => "many-to-many",
        })
    }
}

/// How series of two vectors find each other.
#[derive(Debug, Clone, PartialEq)]
pub struct VectorMatching {
    /// One-to-one, or who may have many.
    pub cardinality: Cardinality,
    /// `true`: only `labels` count (`on`); `false`: all labels but those (`ignoring`, or nothing written).
    pub on: bool,
    /// The labels of `on` or `ignoring`, as written.
    pub labels: Vec<String>,
    /// The labels of `group_left(…)`, `group_right(…)`, as written.
    pub include: Vec<String>,
    /// `fill_left(…)`: value for a left series that is missing.
    pub fill_left: Option<f64>,
    /// `fill_right(…)`: value for a right series that is missing. `fill(…)` sets both.
    pub fill_right: Option<f64>,
}

/// Two operands and an operator.
#[derive(Debug, Clone, PartialEq)]
pub struct BinaryExpr {
    /// From the start of the left to the end of the right operand.
    pub span: Span,
    /// Where the operator stands.
    pub op_span: Span,
    /// The operator.
    pub op: BinaryOp,
    /// Left operand.
    pub lhs: Box<Expr>,
    /// Right operand.
    pub rhs: Box<Expr>,
    /// `bool`: a comparison gives 0 or 1 instead of filtering.
    pub return_bool: bool,
    /// Present exactly when both operands are instant vectors.
    pub matching: Option<Box<VectorMatching>>,
}

/// An aggregation operator.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum AggregateOp {
    /// `avg`
    Avg,
    /// `bottomk`
    Bottomk,
    /// `count`
    Count,
    /// `count_values`
    CountValues,
    /// `group`
    Group,
    /// `limitk`
    Limitk,
    /// `limit_ratio`
    LimitRatio,
    /// `max`
    Max,
    /// `min`
    Min,
    /// `quantile`
    Quantile,
    /// `stddev`
    Stddev,
    /// `stdvar`
    Stdvar,
    /// `sum`
    Sum,
    /// `topk`
    Topk,
}

impl AggregateOp {
    /// Every operator, for completion and documentation.
    pub const ALL: [Self; 14] = [
        Self::Avg,
        Self::Bottomk,
        Self::Count,
        Self::CountValues,
        Self::Group,
        Self::Limitk,
        Self::LimitRatio,
        Self::Max,
        Self::Min,
        Self::Quantile,
        Self::Stddev,
        Self::Stdvar,
        Self::Sum,
        Self::Topk,
    ];

    /// The operator as it is written.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Avg => "avg",
            Self::Bottomk => "bottomk",
            Self::Count => "count",
            Self::CountValues => "count_values",
            Self::Group => "group",
            Self::Limitk => "limitk",
            Self::LimitRatio => "limit_ratio",
            Self::Max => "max",
            Self::Min => "min",
            Self::Quantile => "quantile",
            Self::Stddev => "stddev",
            Self::Stdvar => "stdvar",
            Self::Sum => "sum",
            Self::Topk => "topk",
        }
    }

    /// Type of the parameter before the vector, if the operator takes one.
    pub fn param_type(self) -> Option<ValueType> {
        match self {
            Self::Bottomk | Self::Topk | Self::Limitk | Self::LimitRatio | Self::Quantile => Some(ValueType::Scalar),
            Self::CountValues => Some(ValueType::String),
            _ => None,
        }
    }
}

/// An aggregation over an instant vector.
#[derive(Debug, Clone, PartialEq)]
pub struct AggregateExpr {
    /// Where it stands, a trailing `by (…)` included.
    pub span: Span,
    /// The operator.
    pub op: AggregateOp,
    /// The vector.
    pub expr: Box<Expr>,
    /// Present exactly when [`AggregateOp::param_type`] is.
    pub param: Option<Box<Expr>>,
    /// The labels of `by` or `without`, as written (order and repeats kept).
    pub grouping: Vec<String>,
    /// `without` instead of `by` (or nothing).
    pub without: bool,
}

/// A function call.
#[derive(Debug, Clone, PartialEq)]
pub struct Call {
    /// Where it stands, name and parentheses included.
    pub span: Span,
    /// The function; dispatch on [`Function::id`].
    pub func: &'static Function,
    /// The arguments as written; optional ones may be missing at the end.
    pub args: Vec<Expr>,
}

impl Expr {
    /// Where the expression stands in the query.
    pub fn span(&self) -> Span {
        match self {
            Self::Number(e) => e.span,
            Self::String(e) => e.span,
            Self::Vector(e) => e.span,
            Self::Matrix(e) => e.span,
            Self::Subquery(e) => e.span,
            Self::Unary(e) => e.span,
            Self::Paren(e) => e.span,
            Self::Binary(e) => e.span,
            Self::Aggregate(e) => e.span,
            Self::Call(e) => e.span,
        }
    }

    /// What the expression evaluates to.
    pub fn value_type(&self) -> ValueType {
        match self {
            Self::Number(_) => ValueType::Scalar,
            Self::String(_) => ValueType::String,
            Self::Vector(_) | Self::Aggregate(_) => ValueType::Vector,
            Self::Matrix(_) | Self::Subquery(_) => ValueType::Matrix,
            Self::Unary(e) => e.expr.value_type(),
            Self::Paren(e) => e.expr.value_type(),
            Self::Binary(e) => match (e.lhs.value_type(), e.rhs.value_type()) {
                (ValueType::Scalar, ValueType::Scalar) => ValueType::Scalar,
                _ => ValueType::Vector,
            },
            Self::Call(e) => e.func.return_type,
        }
    }

    /// The expression without the parentheses around it.
    pub fn unparen(&self) -> &Expr {
        let mut expr = self;
        while let Self::Paren(paren) = expr {
            expr = &paren.expr;
        }
        expr
    }

    /// Calls `visit` for each direct child, left to right; the parameter of an aggregation comes before its vector.
    /// The selector inside a [`MatrixSelector`] is not an `Expr` and not visited.
    pub fn for_each_child<'a>(&'a self, mut visit: impl FnMut(&'a Expr)) {
        match self {
            Self::Number(_) | Self::String(_) | Self::Vector(_) | Self::Matrix(_) => {}
            Self::Subquery(e) => visit(&e.expr),
            Self::Unary(e) => visit(&e.expr),
            Self::Paren(e) => visit(&e.expr),
            Self::Binary(e) => {
                visit(&e.lhs);
                visit(&e.rhs);
            }
            Self::Aggregate(e) => {
                if let Some(param) = &e.param {
                    visit(param);
                }
                visit(&e.expr);
            }
            Self::Call(e) => e.args.iter().for_each(visit),
        }
    }

    /// Calls `visit` for this expression and everything below it, parents first, left to right.
    pub fn walk<'a>(&'a self, visit: &mut impl FnMut(&'a Expr)) {
        visit(self);
        self.for_each_child(|child| child.walk(visit));
    }

    /// The selector of this node, if it is an instant or range selector.
    pub fn selector(&self) -> Option<&VectorSelector> {
        match self {
            Self::Vector(e) => Some(e),
            Self::Matrix(e) => Some(&e.selector),
            _ => None,
        }
    }

    /// All selectors in the tree, left to right.
    pub fn selectors(&self) -> Vec<&VectorSelector> {
        let mut found = Vec::new();
        self.walk(&mut |expr| found.extend(expr.selector()));
        found
    }
}

/// What an expression evaluates to; the same as [`Expr::value_type`].
pub fn value_type(expr: &Expr) -> ValueType {
    expr.value_type()
}
