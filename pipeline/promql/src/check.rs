//! Type checking: what a tree must be so that it can be evaluated. Fills in the vector matching of binary operators on the way.
//!
//! Children are checked before their parents and left before right, so the first error is the one Prometheus reports first.

use fletch_schemas::pattern::go_syntax;
use fletch_schemas::{METRIC_NAME, MatchOp, Matcher};

use crate::ast::{AggregateExpr, BinaryExpr, Call, Cardinality, Expr, Span, ValueType, VectorMatching, VectorSelector};
use crate::error::ParseError;
use crate::functions::{FunctionId, Variadic};
use crate::quote::{quote, quote_bytes, unquote};

type Checked<T> = Result<T, Box<ParseError>>;

/// Whether a value of `""`, that is, no label at all, passes the matcher. An invalid pattern passes nothing.
fn matches_empty(matcher: &Matcher) -> bool {
    let regex_matches_empty = || match matcher.value.as_str() {
        "" | ".*" => true,
        ".+" => false,
        pattern => go_syntax::translate(pattern).is_ok_and(|translated| translated.matches_empty),
    };
    match matcher.op {
        MatchOp::Equal => matcher.value.is_empty(),
        MatchOp::NotEqual => !matcher.value.is_empty(),
        MatchOp::Regex => regex_matches_empty(),
        MatchOp::NotRegex => !regex_matches_empty(),
    }
}

/// Whether some matcher rejects series without its label: `match[]` parameters must have one.
pub fn has_non_empty_matcher(matchers: &[Matcher]) -> bool {
    matchers.iter().any(|matcher| !matches_empty(matcher))
}

/// The message of an invalid pattern.
pub(crate) fn check_regex(matcher: &Matcher) -> Result<(), String> {
    match matcher.op {
        MatchOp::Equal | MatchOp::NotEqual => Ok(()),
        _ if is_simple_regex(&matcher.value) => Ok(()),
        MatchOp::Regex | MatchOp::NotRegex => go_syntax::translate(&matcher.value).map(drop).map_err(|error| error.to_string()),
    }
}

/// Most patterns are words, alternatives of words and `.`, `.*`, `.+`: these are valid without a closer look.
fn is_simple_regex(pattern: &str) -> bool {
    let mut before = 0;
    pattern.bytes().all(|b| {
        let plain = match b {
            b'*' | b'+' => before == b'.',
            b'\\' | b'[' | b'(' | b')' | b'{' | b'?' | b'^' | b'$' => false,
            _ => true,
        };
        before = b;
        plain
    })
}

/// Checks a tree.
pub(crate) fn check(expr: &mut Expr, query: &str) -> Checked<()> {
    Checker { query }.expr(expr).map(drop)
}

struct Checker<'a> {
    query: &'a str,
}

impl Checker<'_> {
    fn fail<T>(&self, span: Span, message: impl Into<String>) -> Checked<T> {
        Err(Box::new(ParseError::new(self.query, span, message)))
    }

    fn expr(&self, expr: &mut Expr) -> Checked<ValueType> {
        match expr {
            Expr::Number(_) => Ok(ValueType::Scalar),
            Expr::String(_) => Ok(ValueType::String),
            Expr::Vector(e) => self.selector(e, false).map(|()| ValueType::Vector),
            Expr::Matrix(e) => self.selector(&e.selector, false).map(|()| ValueType::Matrix),
            Expr::Paren(e) => self.expr(&mut e.expr),
            Expr::Subquery(e) => match self.expr(&mut e.expr)? {
                ValueType::Vector => Ok(ValueType::Matrix),
                other => self.fail(e.span, format!("subquery is only allowed on instant vector, got {} instead", other.as_str())),
            },
            Expr::Unary(e) => match self.expr(&mut e.expr)? {
                t @ (ValueType::Scalar | ValueType::Vector) => Ok(t),
                other => {
                    let got = quote(&other.to_string());
                    let message = format!("unary expression only allowed on expressions of type scalar or instant vector, got {got}");
                    self.fail(e.span, message)
                }
            },
            Expr::Binary(e) => self.binary(e),
            Expr::Aggregate(e) => self.aggregate(e).map(|()| ValueType::Vector),
            Expr::Call(e) => self.call(e).map(|()| e.func.return_type),
        }
    }

    fn expect(&self, expr: &mut Expr, want: ValueType, context: &str) -> Checked<()> {
        let got = self.expr(expr)?;
        if got == want {
            return Ok(());
        }
        self.fail(expr.span(), format!("expected type {want} in {context}, got {got}"))
    }

    fn aggregate(&self, e: &mut AggregateExpr) -> Checked<()> {
        self.expect(&mut e.expr, ValueType::Vector, "aggregation expression")?;
        let (Some(param), Some(want)) = (&mut e.param, e.op.param_type()) else { return Ok(()) };
        self.expect(param, want, "aggregation parameter")?;
        self.label_argument(Some(&**param), "invalid label name")
    }

    /// A new label must be UTF-8. That is known here already, and the evaluator no longer sees the bytes; the message has no position,
    /// because Prometheus notices it only when it evaluates.
    fn label_argument(&self, arg: Option<&Expr>, message: &str) -> Checked<()> {
        let Some(Expr::String(text)) = arg.map(Expr::unparen) else { return Ok(()) };
        if !text.lossy {
            return Ok(());
        }
        let literal = self.query.get(text.span.start as usize..text.span.end as usize).unwrap_or_default();
        let message = format!("{message} {}", quote_bytes(&unquote(literal)));
        Err(Box::new(ParseError { span: text.span, position: String::new(), message }))
    }

    fn selector(&self, e: &VectorSelector, may_be_empty: bool) -> Checked<()> {
        if let Some(name) = e.name() {
            return match e.matchers.iter().skip(1).find(|matcher| matcher.name == METRIC_NAME) {
                Some(second) => {
                    let (first, second) = (quote(name), quote(&second.value));
                    self.fail(e.span, format!("metric name must not be set twice: {first} or {second}"))
                }
                None => Ok(()),
            };
        }
        if may_be_empty || has_non_empty_matcher(&e.matchers) {
            return Ok(());
        }
        self.fail(e.span, "vector selector must contain at least one non-empty matcher")
    }

    fn binary(&self, e: &mut BinaryExpr) -> Checked<ValueType> {
        let lhs = self.expr(&mut e.lhs)?;
        let rhs = self.expr(&mut e.rhs)?;
        self.binary_operator(e, lhs, rhs)?;
        for (operand, t) in [(&e.lhs, lhs), (&e.rhs, rhs)] {
            if !matches!(t, ValueType::Scalar | ValueType::Vector) {
                return self.fail(operand.span(), "binary expression must contain only scalar and instant vector types");
            }
        }
        if (lhs, rhs) == (ValueType::Vector, ValueType::Vector) {
            self.vector_matching(e)?;
            return Ok(ValueType::Vector);
        }
        if let Some(matching) = e.matching.take() {
            if !matching.labels.is_empty() {
                return self.fail(e.span, "vector matching only allowed between instant vectors");
            }
            if matching.fill_left.is_some() || matching.fill_right.is_some() {
                return self.fail(e.span, "filling in missing series only allowed between instant vectors");
            }
        }
        if e.op.is_set() {
            return self.fail(e.span, format!("set operator {} not allowed in binary scalar expression", quote(e.op.as_str())));
        }
        Ok(if lhs == rhs { ValueType::Scalar } else { ValueType::Vector })
    }

    /// The rules whose errors point to the operator.
    fn binary_operator(&self, e: &BinaryExpr, lhs: ValueType, rhs: ValueType) -> Checked<()> {
        let scalars = (lhs, rhs) == (ValueType::Scalar, ValueType::Scalar);
        if e.return_bool && !e.op.is_comparison() {
            return self.fail(self.operator_span(e), "bool modifier can only be used on comparison operators");
        }
        if e.op.is_comparison() && !e.return_bool && scalars {
            return self.fail(self.operator_span(e), "comparisons between scalars must use BOOL modifier");
        }
        if let Some(matching) = &e.matching
            && matching.on
            && let Some(label) = matching.labels.iter().find(|label| matching.include.contains(label))
        {
            let message = format!("label {} must not occur in ON and GROUP clause at once", quote(label));
            return self.fail(self.operator_span(e), message);
        }
        Ok(())
    }

    /// From the first character behind the left operand that is no space, as Prometheus reports it: a comment or a modifier that
    /// does not count to the operand comes before the operator.
    fn operator_span(&self, e: &BinaryExpr) -> Span {
        let end = e.lhs.span().end;
        let behind = self.query.as_bytes().get(end as usize..).unwrap_or_default();
        let spaces = behind.iter().take_while(|b| matches!(b, b' ' | b'\t' | b'\n' | b'\r')).count();
        Span::new(end + spaces as u32, e.op_span.end)
    }

    fn vector_matching(&self, e: &mut BinaryExpr) -> Checked<()> {
        let matching = e.matching.get_or_insert_with(|| {
            Box::new(VectorMatching {
                cardinality: Cardinality::OneToOne,
                on: false,
                labels: Vec::new(),
                include: Vec::new(),
                fill_left: None,
                fill_right: None,
            })
        });
        if !e.op.is_set() {
            return Ok(());
        }
        if matching.cardinality != Cardinality::OneToOne {
            return self.fail(e.span, format!("no grouping allowed for {} operation", quote(e.op.as_str())));
        }
        matching.cardinality = Cardinality::ManyToMany;
        if matching.fill_left.is_some() || matching.fill_right.is_some() {
            return self.fail(e.span, "filling in missing series not allowed for set operators");
        }
        Ok(())
    }

    fn call(&self, e: &mut Call) -> Checked<()> {
        self.argument_count(e)?;
        let func = e.func;
        let info = func.id == FunctionId::Info;
        if info && let Some(labels) = e.args.get(1) {
            self.info_labels(labels, e.span)?;
        }
        for (i, arg) in e.args.iter_mut().enumerate() {
            let Some(want) = func.args.get(i).or(func.args.last()) else { break };
            let got = match &mut *arg {
                Expr::Vector(selector) if info && i == 1 => self.selector(selector, true).map(|()| ValueType::Vector)?,
                arg => self.expr(arg)?,
            };
            if got != *want {
                let message = format!("expected type {want} in call to function {}, got {got}", quote(func.name));
                return self.fail(arg.span(), message);
            }
        }
        match func.id {
            FunctionId::LabelReplace | FunctionId::LabelJoin => {
                let message = format!("invalid destination label name in {}():", func.name);
                self.label_argument(e.args.get(1), &message)
            }
            _ => Ok(()),
        }
    }

    fn argument_count(&self, e: &Call) -> Checked<()> {
        let (func, given) = (e.func, e.args.len());
        let name = quote(func.name);
        if func.variadic == Variadic::No {
            if given == func.args.len() {
                return Ok(());
            }
            return self.fail(e.span, format!("expected {} argument(s) in call to {name}, got {given}", func.args.len()));
        }
        if given < func.args_min() {
            return self.fail(e.span, format!("expected at least {} argument(s) in call to {name}, got {given}", func.args_min()));
        }
        match func.args_max() {
            Some(most) if given > most => self.fail(e.span, format!("expected at most {most} argument(s) in call to {name}, got {given}")),
            _ => Ok(()),
        }
    }

    /// The second argument of `info` is a bare set of matchers.
    fn info_labels(&self, labels: &Expr, call: Span) -> Checked<()> {
        let got = labels.value_type();
        if got != ValueType::Vector {
            return self.fail(call, format!("expected type instant vector in call to function \"info\", got {got}"));
        }
        match labels {
            Expr::Vector(selector) if selector.named => {
                self.fail(selector.span, "expected label selectors only, got vector selector instead")
            }
            Expr::Vector(_) => Ok(()),
            other => self.fail(other.span(), "expected label selectors only"),
        }
    }
}
