//! Scalars over time, and the arithmetic of single numbers.

use super::matrix::Grid;
use fletch_promql::ast::BinaryOp;

/// One number per step.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Column {
    /// The same at every step.
    Const(f64),
    /// One entry per step.
    Steps(Vec<f64>),
}

impl Column {
    /// The number at a step.
    #[inline]
    pub(crate) fn get(&self, step: usize) -> f64 {
        match self {
            Self::Const(value) => *value,
            Self::Steps(values) => values[step],
        }
    }

    /// The evaluation times in seconds.
    pub(crate) fn times(grid: Grid) -> Self {
        Self::Steps((0..grid.len).map(|i| grid.time(i) as f64 / 1000.0).collect())
    }

    /// Applies `f` to every number.
    pub(crate) fn map(self, f: impl Fn(f64) -> f64) -> Self {
        match self {
            Self::Const(value) => Self::Const(f(value)),
            Self::Steps(values) => Self::Steps(values.into_iter().map(f).collect()),
        }
    }

    /// Applies `f` to the numbers of both, step by step.
    pub(crate) fn zip(self, other: Self, f: impl Fn(f64, f64) -> f64) -> Self {
        match (self, other) {
            (Self::Const(a), Self::Const(b)) => Self::Const(f(a, b)),
            (Self::Const(a), Self::Steps(b)) => Self::Steps(b.into_iter().map(|b| f(a, b)).collect()),
            (Self::Steps(a), Self::Const(b)) => Self::Steps(a.into_iter().map(|a| f(a, b)).collect()),
            (Self::Steps(a), Self::Steps(b)) => Self::Steps(a.into_iter().zip(b).map(|(a, b)| f(a, b)).collect()),
        }
    }

    /// The numbers of `steps` steps.
    pub(crate) fn iter(&self, steps: usize) -> impl Iterator<Item = f64> + '_ {
        (0..steps).map(|i| self.get(i))
    }

    /// The first of `steps` numbers, on every step of a longer grid.
    pub(crate) fn broadcast(self) -> Self {
        match self {
            Self::Steps(values) => values.first().map_or(Self::Steps(Vec::new()), |v| Self::Const(*v)),
            constant => constant,
        }
    }
}

/// `a op b` for the arithmetic operators; NaN for others.
#[inline]
pub(crate) fn arithmetic(op: BinaryOp, a: f64, b: f64) -> f64 {
    match op {
        BinaryOp::Add => a + b,
        BinaryOp::Sub => a - b,
        BinaryOp::Mul => a * b,
        BinaryOp::Div => a / b,
        BinaryOp::Mod => a % b,
        BinaryOp::Pow => pow(a, b),
        BinaryOp::Atan2 => a.atan2(b),
        _ => f64::NAN,
    }
}

/// `a ^ b`. C and Go agree on every special case that Rust passes on to the C library.
#[inline]
pub(crate) fn pow(a: f64, b: f64) -> f64 {
    a.powf(b)
}

/// `a op b` for the comparison operators; false for others.
#[inline]
pub(crate) fn compare(op: BinaryOp, a: f64, b: f64) -> bool {
    match op {
        BinaryOp::Eq => a == b,
        BinaryOp::Ne => a != b,
        BinaryOp::Gt => a > b,
        BinaryOp::Lt => a < b,
        BinaryOp::Ge => a >= b,
        BinaryOp::Le => a <= b,
        _ => false,
    }
}

/// `a op b` of two scalars: comparisons give 0 or 1.
pub(crate) fn scalars(op: BinaryOp, a: f64, b: f64) -> f64 {
    if op.is_comparison() { f64::from(u8::from(compare(op, a, b))) } else { arithmetic(op, a, b) }
}
