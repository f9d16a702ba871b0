//! A syntax tree made ready to run: built once per query text, shared by every run of it.
//!
//! ```text
//!  sum by (job) (rate(x[5m] @ end()))      Invariant ── Aggregate(sum) ── Call(rate) ── Range(selector 0)
//! ```
//!
//! Parentheses are gone, selectors are numbered, grouping labels are sorted, and whatever gives the same answer at every step (because
//! `@` pins it) is wrapped in [`Node::Invariant`], which is evaluated once and repeated. Nothing here depends on the query's times.

use fletch_promql::ast::{
    AggregateExpr, AggregateOp, AtModifier, BinaryExpr, BinaryOp, Cardinality, Duration, EdgeMode, Expr, UnaryOp, VectorSelector,
};
use fletch_promql::functions::{Function, FunctionId};
use fletch_promql::{Span, ValueType};
use fletch_schemas::{METRIC_NAME, Matcher};
use regex::Regex;
use std::sync::OnceLock;

/// A whole query.
#[derive(Debug)]
pub(crate) struct Plan {
    /// The text it was made from; positions in annotations refer to it.
    pub(crate) text: String,
    /// What to evaluate.
    pub(crate) root: Node,
    /// What the query returns.
    pub(crate) returns: ValueType,
    /// Every selector of the query, by number.
    pub(crate) selectors: Vec<Selector>,
    /// Whether an operator of the query may give two rows the same labels at a single step.
    pub(crate) may_repeat_labels: bool,
}

/// What a selector asks the storage for.
#[derive(Debug, Clone)]
pub(crate) struct Selector {
    /// All conditions.
    pub(crate) matchers: Vec<Matcher>,
    /// Where the times come from.
    pub(crate) time: TimeShift,
    /// `anchored` or `smoothed`.
    pub(crate) edges: EdgeMode,
}

/// `offset` and `@`.
#[derive(Debug, Clone, Default)]
pub(crate) struct TimeShift {
    /// Positive looks back; several add up.
    pub(crate) offsets: Vec<Duration>,
    /// Fixes the time, before the offsets apply.
    pub(crate) at: Option<AtModifier>,
}

impl TimeShift {
    fn new(offset: &Duration, at: Option<AtModifier>) -> Self {
        let offsets = if offset.is_zero() { Vec::new() } else { vec![offset.clone()] };
        Self { offsets, at }
    }

    /// The shift of something inside of what this shifts.
    fn inside(&self, inner: Self) -> Self {
        if inner.at.is_some() {
            return inner;
        }
        Self { offsets: self.offsets.iter().cloned().chain(inner.offsets).collect(), at: self.at }
    }
}

/// One operation.
#[derive(Debug)]
pub(crate) enum Node {
    /// A number at every step.
    Number(f64),
    /// A text.
    Text(String),
    /// Evaluated at the first step only, then repeated.
    Invariant(Box<Node>),
    /// An instant selector, by number.
    Select(usize),
    /// A range vector.
    Range(Box<RangeNode>),
    /// `-x`.
    Negate(Box<Node>),
    /// Both sides scalar.
    Scalars(BinaryOp, Box<Node>, Box<Node>),
    /// A vector and a scalar.
    VectorScalar(Box<VectorScalar>),
    /// Two vectors.
    Vectors(Box<Vectors>),
    /// An aggregation.
    Aggregate(Box<Aggregate>),
    /// A function.
    Call(Box<Call>),
}

/// A range vector: where its samples come from, and how wide its windows are.
#[derive(Debug)]
pub(crate) struct RangeNode {
    /// Samples of series, or steps of an expression.
    pub(crate) source: RangeSource,
    /// Width of the windows.
    pub(crate) width: Duration,
    /// Shift of the windows.
    pub(crate) time: TimeShift,
}

/// Where a range vector comes from.
#[derive(Debug)]
pub(crate) enum RangeSource {
    /// A selector, by number.
    Selector(usize),
    /// A subquery: the expression and the distance of its steps.
    Subquery(Node, Option<Duration>),
}

/// `vector op scalar` or `scalar op vector`.
#[derive(Debug)]
pub(crate) struct VectorScalar {
    /// The operator.
    pub(crate) op: BinaryOp,
    /// The vector.
    pub(crate) vector: Node,
    /// The scalar.
    pub(crate) scalar: Node,
    /// Whether the scalar stands on the left.
    pub(crate) scalar_left: bool,
    /// 0 or 1 instead of filtering.
    pub(crate) return_bool: bool,
    /// Where the operation stands.
    pub(crate) span: Span,
}

/// `vector op vector`.
#[derive(Debug)]
pub(crate) struct Vectors {
    /// The operator.
    pub(crate) op: BinaryOp,
    /// Left operand.
    pub(crate) lhs: Node,
    /// Right operand.
    pub(crate) rhs: Node,
    /// How series find each other.
    pub(crate) matching: Matching,
    /// 0 or 1 instead of filtering.
    pub(crate) return_bool: bool,
    /// Where the operation stands.
    pub(crate) span: Span,
}

/// How series of two vectors find each other.
#[derive(Debug, Clone)]
pub(crate) struct Matching {
    /// Which side may have many.
    pub(crate) cardinality: Cardinality,
    /// Only `labels` count, or all but `labels`.
    pub(crate) on: bool,
    /// Labels of `on` or `ignoring`, sorted.
    pub(crate) labels: Vec<String>,
    /// Labels copied from the "one" side.
    pub(crate) include: Vec<String>,
    /// Value of a missing left series.
    pub(crate) fill_left: Option<f64>,
    /// Value of a missing right series.
    pub(crate) fill_right: Option<f64>,
}

/// An aggregation.
#[derive(Debug)]
pub(crate) struct Aggregate {
    /// The operator.
    pub(crate) op: AggregateOp,
    /// The vector.
    pub(crate) input: Node,
    /// `k`, `q`, or the label of `count_values`.
    pub(crate) param: Option<Node>,
    /// Where the parameter stands; the whole aggregation's place if there is none.
    pub(crate) param_span: Span,
    /// Labels of `by` or `without`, sorted, each once.
    pub(crate) grouping: Vec<String>,
    /// `without`.
    pub(crate) without: bool,
}

/// A function call.
#[derive(Debug)]
pub(crate) struct Call {
    /// The function.
    pub(crate) func: &'static Function,
    /// Its arguments.
    pub(crate) args: Vec<Node>,
    /// Where the arguments stand.
    pub(crate) spans: Vec<Span>,
    /// Where the call stands.
    pub(crate) span: Span,
    /// The compiled pattern of `label_replace`; `None` inside when it is not a pattern.
    pub(crate) pattern: OnceLock<Option<Regex>>,
    /// Labels that `absent` and `absent_over_time` give their answer, from the argument's matchers.
    pub(crate) absent_labels: Vec<(String, String)>,
}

impl Plan {
    /// Prepares a checked tree.
    pub(crate) fn new(text: &str, expr: &Expr) -> Self {
        let mut selectors = Vec::new();
        let built = Builder { selectors: &mut selectors }.build(expr);
        let mut may_repeat_labels = false;
        expr.walk(&mut |e| may_repeat_labels |= matches!(e, Expr::Binary(b) if b.matching.is_some()));
        Self { text: text.to_owned(), root: built.finish(), returns: expr.value_type(), selectors, may_repeat_labels }
    }
}

/// A node, and whether it may be wrapped.
struct Built {
    node: Node,
    /// The same at every step.
    invariant: bool,
    /// Worth wrapping when it is invariant: literals and range vectors are not.
    wrap: bool,
}

impl Built {
    fn finish(self) -> Node {
        if self.invariant && self.wrap { Node::Invariant(Box::new(self.node)) } else { self.node }
    }
}

struct Builder<'a> {
    selectors: &'a mut Vec<Selector>,
}

impl Builder<'_> {
    fn build(&mut self, expr: &Expr) -> Built {
        match expr {
            Expr::Number(e) => Built { node: Node::Number(e.value), invariant: true, wrap: false },
            Expr::String(e) => Built { node: Node::Text(e.value.clone()), invariant: true, wrap: false },
            Expr::Vector(e) => {
                let pinned = e.at.is_some();
                Built { node: Node::Select(self.selector(e)), invariant: pinned, wrap: pinned }
            }
            Expr::Matrix(e) => {
                let source = RangeSource::Selector(self.selector(&e.selector));
                let time = TimeShift::new(&e.selector.offset, e.selector.at);
                Self::range(source, e.range.clone(), time)
            }
            Expr::Subquery(e) => {
                let inner = Built { wrap: true, ..self.build(&e.expr) }.finish();
                let time = TimeShift::new(&e.offset, e.at);
                Self::range(RangeSource::Subquery(inner, e.step.clone()), e.range.clone(), time)
            }
            Expr::Unary(e) => {
                let inner = self.build(&e.expr);
                match (e.op, inner) {
                    (UnaryOp::Plus, inner) => inner,
                    (UnaryOp::Minus, Built { node: Node::Number(v), .. }) => Built { node: Node::Number(-v), invariant: true, wrap: false },
                    (UnaryOp::Minus, inner) => Built { node: Node::Negate(Box::new(inner.node)), ..inner },
                }
            }
            Expr::Paren(e) => self.build(&e.expr),
            Expr::Binary(e) => self.binary(e),
            Expr::Aggregate(e) => self.aggregate(e),
            Expr::Call(e) => self.call(e),
        }
    }

    fn selector(&mut self, e: &VectorSelector) -> usize {
        self.selectors.push(Selector { matchers: e.matchers.clone(), time: TimeShift::new(&e.offset, e.at), edges: e.edges });
        self.selectors.len() - 1
    }

    fn range(source: RangeSource, width: Duration, time: TimeShift) -> Built {
        let invariant = time.at.is_some();
        Built { node: Node::Range(Box::new(RangeNode { source, width, time })), invariant, wrap: false }
    }

    fn binary(&mut self, e: &BinaryExpr) -> Built {
        let (lhs, rhs) = (self.build(&e.lhs), self.build(&e.rhs));
        let invariant = lhs.invariant && rhs.invariant;
        // An invariant operation is wrapped as a whole, so its sides need no wrapping of their own.
        let (lhs, rhs) = if invariant { (lhs.node, rhs.node) } else { (lhs.finish(), rhs.finish()) };
        let (op, return_bool, span) = (e.op, e.return_bool, e.span);
        let node = match (e.lhs.value_type(), e.rhs.value_type(), &e.matching) {
            (ValueType::Scalar, ValueType::Scalar, _) => Node::Scalars(op, Box::new(lhs), Box::new(rhs)),
            (ValueType::Scalar, _, _) => {
                Node::VectorScalar(Box::new(VectorScalar { op, vector: rhs, scalar: lhs, scalar_left: true, return_bool, span }))
            }
            (_, ValueType::Scalar, _) => {
                Node::VectorScalar(Box::new(VectorScalar { op, vector: lhs, scalar: rhs, scalar_left: false, return_bool, span }))
            }
            (_, _, matching) => {
                let matching = matching.as_deref().map_or_else(Matching::default_for_vectors, Matching::new);
                Node::Vectors(Box::new(Vectors { op, lhs, rhs, matching, return_bool, span }))
            }
        };
        Built { node, invariant, wrap: true }
    }

    fn aggregate(&mut self, e: &AggregateExpr) -> Built {
        let param = e.param.as_deref().map(|p| self.build(p));
        let input = self.build(&e.expr);
        let invariant = input.invariant && param.as_ref().is_none_or(|p| p.invariant);
        let wrapped = |b: Built| if invariant { b.node } else { b.finish() };
        let mut grouping = e.grouping.clone();
        grouping.sort();
        grouping.dedup();
        let node = Node::Aggregate(Box::new(Aggregate {
            op: e.op,
            input: wrapped(input),
            param: param.map(wrapped),
            param_span: e.param.as_deref().map_or(e.span, |p| p.unparen().span()),
            grouping,
            without: e.without,
        }));
        Built { node, invariant, wrap: true }
    }

    fn call(&mut self, e: &fletch_promql::ast::Call) -> Built {
        let mut args: Vec<Built> = e.args.iter().map(|a| self.build(a)).collect();
        if e.func.id == FunctionId::Info {
            args.truncate(1);
            args.push(self.info_selector(e));
        }
        let invariant = !depends_on_time(e.func.id) && args.iter().all(|a| a.invariant);
        let args = args.into_iter().map(|a| if invariant { a.node } else { a.finish() }).collect();
        let absent_labels = match e.func.id {
            FunctionId::Absent | FunctionId::AbsentOverTime => e.args.first().map_or_else(Vec::new, absent_labels),
            _ => Vec::new(),
        };
        let spans = e.args.iter().map(|a| a.unparen().span()).collect();
        let pattern = OnceLock::new();
        Built {
            node: Node::Call(Box::new(Call { func: e.func, args, spans, span: e.span, absent_labels, pattern })),
            invariant,
            wrap: true,
        }
    }

    /// The info series that `info` looks for, at the time that the first selector of its first argument looks at.
    fn info_selector(&mut self, e: &fletch_promql::ast::Call) -> Built {
        let mut matchers = e.args.get(1).and_then(|a| a.unparen().selector()).map_or_else(Vec::new, |s| s.matchers.clone());
        if !matchers.iter().any(|m| m.name == METRIC_NAME) {
            matchers.insert(0, Matcher::equal(METRIC_NAME, TARGET_INFO));
        }
        let time = e.args.first().and_then(|a| first_shift(a, &TimeShift::default())).unwrap_or_default();
        let invariant = time.at.is_some();
        self.selectors.push(Selector { matchers, time, edges: EdgeMode::Plain });
        Built { node: Node::Select(self.selectors.len() - 1), invariant, wrap: false }
    }
}

impl Matching {
    fn new(from: &fletch_promql::ast::VectorMatching) -> Self {
        let mut labels = from.labels.clone();
        labels.sort();
        labels.dedup();
        Self {
            cardinality: from.cardinality,
            on: from.on,
            labels,
            include: from.include.clone(),
            fill_left: from.fill_left,
            fill_right: from.fill_right,
        }
    }

    fn default_for_vectors() -> Self {
        Self { cardinality: Cardinality::OneToOne, on: false, labels: Vec::new(), include: Vec::new(), fill_left: None, fill_right: None }
    }
}

/// The info metric that `info` uses unless told otherwise.
const TARGET_INFO: &str = "target_info";

/// When the first selector below `expr` is looked at, from the subqueries around it and its own modifiers.
fn first_shift(expr: &Expr, outer: &TimeShift) -> Option<TimeShift> {
    match expr {
        Expr::Vector(e) => Some(outer.inside(TimeShift::new(&e.offset, e.at))),
        Expr::Matrix(e) => Some(outer.inside(TimeShift::new(&e.selector.offset, e.selector.at))),
        Expr::Subquery(e) => first_shift(&e.expr, &outer.inside(TimeShift::new(&e.offset, e.at))),
        _ => {
            let mut found = None;
            expr.for_each_child(|child| {
                if found.is_none() {
                    found = first_shift(child, outer);
                }
            });
            found
        }
    }
}

/// Whether a function's answer depends on the evaluation time although its arguments do not.
fn depends_on_time(id: FunctionId) -> bool {
    use FunctionId as F;
    matches!(
        id,
        F::DaysInMonth
            | F::DayOfMonth
            | F::DayOfWeek
            | F::DayOfYear
            | F::Hour
            | F::Minute
            | F::Month
            | F::Year
            | F::PredictLinear
            | F::Time
            | F::Timestamp
            | F::StartTimestamp
    )
}

/// The labels that the matchers of a selector fix with `=`, each of them once; empty for anything but a selector.
fn absent_labels(expr: &Expr) -> Vec<(String, String)> {
    let Some(selector) = expr.unparen().selector() else { return Vec::new() };
    let mut labels: Vec<(String, String)> = Vec::new();
    let mut seen: Vec<&str> = Vec::new();
    for m in selector.matchers.iter().filter(|m| m.name != METRIC_NAME) {
        if m.op == fletch_schemas::MatchOp::Equal && !seen.contains(&m.name.as_str()) {
            labels.push((m.name.clone(), m.value.clone()));
            seen.push(&m.name);
        } else {
            labels.retain(|(name, _)| *name != m.name);
        }
    }
    labels
}
