//! Ranges, offsets and steps: a fixed length of time, or an expression that needs the query's step and range.
//!
//! ```text
//!  [5m]                 Duration::Fixed(300_000)
//!  [step() + 1m]        Duration::Expr(Add(Step, Literal 60 s))   resolved when the query's step is known
//! ```

use crate::ast::Span;

/// A range, an offset or a step.
#[derive(Debug, Clone, PartialEq)]
pub enum Duration {
    /// Milliseconds, known when the query is parsed.
    Fixed(i64),
    /// Written as an expression; call [`Duration::resolve_range_ms`] or [`Duration::resolve_offset_ms`].
    Expr(Box<DurationExpr>),
}

/// No offset.
impl Default for Duration {
    fn default() -> Self {
        Self::Fixed(0)
    }
}

/// What `step()` and `range()` stand for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DurationContext {
    /// Step of the range query; 0 for an instant query.
    pub step_ms: i64,
    /// End minus start of the range query; 0 for an instant query.
    pub range_ms: i64,
}

/// An operator inside a duration expression.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DurationOp {
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
    /// `min_of(a, b)`
    Min,
    /// `max_of(a, b)`
    Max,
}

impl DurationOp {
    /// The operator or function name as it is written.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Add => "+",
            Self::Sub => "-",
            Self::Mul => "*",
            Self::Div => "/",
            Self::Mod => "%",
            Self::Pow => "^",
            Self::Min => "min_of",
            Self::Max => "max_of",
        }
    }
}

/// An expression whose value is a number of seconds.
#[derive(Debug, Clone, PartialEq)]
pub enum DurationExpr {
    /// `5m`, `300`.
    Literal {
        /// Where it stands.
        span: Span,
        /// Seconds.
        seconds: f64,
        /// Whether it was written as a duration (`5m`); only the printer cares.
        duration: bool,
    },
    /// `step()`.
    Step(Span),
    /// `range()`.
    Range(Span),
    /// `-expr` or `+expr`.
    Sign {
        /// Where it stands.
        span: Span,
        /// `true` for `-`.
        negative: bool,
        /// What it applies to.
        expr: Box<DurationExpr>,
    },
    /// `(expr)`.
    Paren {
        /// Where it stands, parentheses included.
        span: Span,
        /// What is inside.
        expr: Box<DurationExpr>,
    },
    /// `lhs op rhs`, `min_of(lhs, rhs)`, `max_of(lhs, rhs)`.
    Binary {
        /// Where it stands.
        span: Span,
        /// The operator.
        op: DurationOp,
        /// Left operand.
        lhs: Box<DurationExpr>,
        /// Right operand.
        rhs: Box<DurationExpr>,
    },
}

/// Why a duration expression has no usable value. The two numbers are the byte offsets of its start and end, which is how
/// Prometheus writes them.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DurationError {
    /// A range or a step is zero or negative.
    #[error("{start}:{end}: duration must be greater than 0", start = .0.start, end = .0.end)]
    NotPositive(Span),
    /// No number, or infinitely many seconds.
    #[error("{start}:{end}: duration is NaN or infinite", start = .0.start, end = .0.end)]
    NotFinite(Span),
    /// More than fits into 64-bit nanoseconds.
    #[error("{start}:{end}: duration is out of range", start = .0.start, end = .0.end)]
    OutOfRange(Span),
    /// `/ 0`.
    #[error("{start}:{end}: division by zero", start = .0.start, end = .0.end)]
    DivisionByZero(Span),
    /// `% 0`.
    #[error("{start}:{end}: modulo by zero", start = .0.start, end = .0.end)]
    ModuloByZero(Span),
}

/// 64-bit nanoseconds end here (about 292 years); Prometheus keeps durations in those.
const SECONDS_MAX: f64 = (1u64 << 63) as f64 / 1e9;

impl Duration {
    /// The milliseconds, if they do not depend on the query's step and range and were not written as an expression.
    pub fn fixed_ms(&self) -> Option<i64> {
        match self {
            Self::Fixed(ms) => Some(*ms),
            Self::Expr(_) => None,
        }
    }

    /// Whether it is written as nothing or as a plain zero.
    pub fn is_zero(&self) -> bool {
        matches!(self, Self::Fixed(0))
    }

    /// Milliseconds of a range or a step, which must be greater than 0.
    ///
    /// # Errors
    /// Any [`DurationError`].
    pub fn resolve_range_ms(&self, ctx: DurationContext) -> Result<i64, DurationError> {
        match self {
            Self::Fixed(ms) => Ok(*ms),
            Self::Expr(expr) => {
                let seconds = finite_seconds(expr, ctx)?;
                if seconds <= 0.0 {
                    return Err(DurationError::NotPositive(expr.span()));
                }
                to_ms(seconds, expr.span())
            }
        }
    }

    /// Milliseconds of an offset, which may be negative.
    ///
    /// # Errors
    /// Any [`DurationError`] but [`DurationError::NotPositive`].
    pub fn resolve_offset_ms(&self, ctx: DurationContext) -> Result<i64, DurationError> {
        match self {
            Self::Fixed(ms) => Ok(*ms),
            Self::Expr(expr) => to_ms(finite_seconds(expr, ctx)?, expr.span()),
        }
    }
}

fn finite_seconds(expr: &DurationExpr, ctx: DurationContext) -> Result<f64, DurationError> {
    let seconds = expr.seconds(ctx)?;
    if seconds.is_finite() { Ok(seconds) } else { Err(DurationError::NotFinite(expr.span())) }
}

/// Truncates to milliseconds, as Prometheus does.
fn to_ms(seconds: f64, span: Span) -> Result<i64, DurationError> {
    if seconds.abs() > SECONDS_MAX {
        return Err(DurationError::OutOfRange(span));
    }
    Ok((seconds * 1000.0) as i64)
}

impl DurationExpr {
    /// Where the expression stands in the query.
    pub fn span(&self) -> Span {
        match self {
            Self::Step(span) | Self::Range(span) => *span,
            Self::Literal { span, .. } | Self::Sign { span, .. } | Self::Paren { span, .. } | Self::Binary { span, .. } => *span,
        }
    }

    /// The value in seconds.
    ///
    /// # Errors
    /// [`DurationError::DivisionByZero`], [`DurationError::ModuloByZero`].
    pub fn seconds(&self, ctx: DurationContext) -> Result<f64, DurationError> {
        Ok(match self {
            Self::Literal { seconds, .. } => *seconds,
            Self::Step(_) => ctx.step_ms as f64 / 1000.0,
            Self::Range(_) => ctx.range_ms as f64 / 1000.0,
            Self::Sign { negative: true, expr, .. } => -expr.seconds(ctx)?,
            Self::Sign { expr, .. } | Self::Paren { expr, .. } => expr.seconds(ctx)?,
            Self::Binary { op, lhs, rhs, span } => apply(*op, lhs.seconds(ctx)?, rhs.seconds(ctx)?, *span)?,
        })
    }
}

fn apply(op: DurationOp, lhs: f64, rhs: f64, span: Span) -> Result<f64, DurationError> {
    Ok(match op {
        DurationOp::Add => lhs + rhs,
        DurationOp::Sub => lhs - rhs,
        DurationOp::Mul => lhs * rhs,
        DurationOp::Div if rhs == 0.0 => return Err(DurationError::DivisionByZero(span)),
        DurationOp::Div => lhs / rhs,
        DurationOp::Mod if rhs == 0.0 => return Err(DurationError::ModuloByZero(span)),
        DurationOp::Mod => lhs % rhs,
        DurationOp::Pow => lhs.powf(rhs),
        // Unlike the comparison functions of floats, these give NaN if either side is.
        DurationOp::Min | DurationOp::Max if lhs.is_nan() || rhs.is_nan() => f64::NAN,
        DurationOp::Min => lhs.min(rhs),
        DurationOp::Max => lhs.max(rhs),
    })
}
