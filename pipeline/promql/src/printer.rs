//! Trees as canonical text: what rules and errors show, and what parses to the same tree again.
//!
//! Matchers are printed in the order of their texts, keywords in lower case, durations in their usual units. Parentheses are printed where
//! the tree has them and nowhere else: the tree of a parsed query has all it needs.

use std::fmt::{self, Write};

use fletch_schemas::Matcher;

use crate::ast::{
    AggregateExpr, AtModifier, BinaryExpr, Cardinality, Duration, EdgeMode, Expr, MatrixSelector, NumberLiteral, SubqueryExpr, UnaryOp,
    VectorMatching, VectorSelector,
};
use crate::duration::push_duration;
use crate::duration_expr::{DurationExpr, DurationOp};
use crate::quote::push_quoted;

impl fmt::Display for Expr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = String::new();
        push_expr(&mut out, self);
        f.write_str(&out)
    }
}

impl fmt::Display for VectorSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = String::new();
        push_selector(&mut out, self);
        f.write_str(&out)
    }
}

impl fmt::Display for DurationExpr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = String::new();
        push_duration_expr(&mut out, self);
        f.write_str(&out)
    }
}

impl fmt::Display for Duration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = String::new();
        push_duration_arg(&mut out, self);
        f.write_str(&out)
    }
}

fn push_expr(out: &mut String, expr: &Expr) {
    match expr {
        Expr::Number(e) => push_number(out, e),
        Expr::String(e) => push_quoted(out, &e.value),
        Expr::Vector(e) => push_selector(out, e),
        Expr::Matrix(e) => push_matrix(out, e),
        Expr::Subquery(e) => push_subquery(out, e),
        Expr::Unary(e) => {
            out.push(if e.op == UnaryOp::Minus { '-' } else { '+' });
            push_expr(out, &e.expr);
        }
        Expr::Paren(e) => {
            out.push('(');
            push_expr(out, &e.expr);
            out.push(')');
        }
        Expr::Binary(e) => push_binary(out, e),
        Expr::Aggregate(e) => push_aggregate(out, e),
        Expr::Call(e) => {
            out.push_str(e.func.name);
            out.push('(');
            for (i, arg) in e.args.iter().enumerate() {
                if i > 0 {
                    out.push_str(", ");
                }
                push_expr(out, arg);
            }
            out.push(')');
        }
    }
}

fn push_number(out: &mut String, e: &NumberLiteral) {
    if !e.duration {
        return push_float(out, e.value);
    }
    push_duration(out, literal_ms(e.value));
}

/// Cut to nanoseconds, then to milliseconds, as Prometheus prints it.
fn literal_ms(seconds: f64) -> i64 {
    (seconds * 1e9) as i64 / 1_000_000
}

/// Shortest digits, never an exponent.
fn push_float(out: &mut String, value: f64) {
    match value {
        f64::INFINITY => out.push_str("+Inf"),
        f64::NEG_INFINITY => out.push_str("-Inf"),
        _ => push_display(out, value),
    }
}

fn push_display(out: &mut String, value: impl fmt::Display) {
    write!(out, "{value}").expect("writing to a String cannot fail");
}

/// Shortest digits, with an exponent below 1e-4 and from 1e21 on: Go's `%v`.
fn push_float_short(out: &mut String, value: f64) {
    let magnitude = value.abs();
    if !value.is_finite() || magnitude == 0.0 || (1e-4..1e21).contains(&magnitude) {
        return push_float(out, value);
    }
    let text = format!("{value:e}");
    let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let (sign, exponent) = exponent.strip_prefix('-').map_or(('+', exponent), |exponent| ('-', exponent));
    push_display(out, format_args!("{digits}e{sign}{exponent:0>2}"));
}

fn push_labels(out: &mut String, labels: &[String]) {
    for (i, label) in labels.iter().enumerate() {
        if i > 0 {
            out.push_str(", ");
        }
        push_label(out, label);
    }
}

/// Bare where it is a word, quoted otherwise.
fn push_label(out: &mut String, label: &str) {
    let word = label.bytes().all(crate::quote::is_word) && !label.starts_with(|c: char| c.is_ascii_digit());
    if word && !label.is_empty() { out.push_str(label) } else { push_quoted(out, label) }
}

fn push_matcher(out: &mut String, matcher: &Matcher) {
    push_label(out, &matcher.name);
    out.push_str(matcher.op.as_str());
    push_quoted(out, &matcher.value);
}

/// Name and matchers without modifiers.
fn push_series(out: &mut String, e: &VectorSelector) {
    out.push_str(e.name().unwrap_or_default());
    let matchers = e.matchers.get(usize::from(e.named)..).unwrap_or_default();
    if matchers.is_empty() {
        if !e.named {
            out.push_str("{}");
        }
        return;
    }
    out.push('{');
    if let [matcher] = matchers {
        push_matcher(out, matcher);
    } else {
        let mut texts: Vec<String> = matchers.iter().map(matcher_text).collect();
        texts.sort();
        out.push_str(&texts.join(","));
    }
    out.push('}');
}

fn matcher_text(matcher: &Matcher) -> String {
    let mut text = String::new();
    push_matcher(&mut text, matcher);
    text
}

fn push_selector(out: &mut String, e: &VectorSelector) {
    push_series(out, e);
    push_at(out, e.at);
    push_edges(out, e.edges);
    push_offset(out, &e.offset);
}

fn push_matrix(out: &mut String, e: &MatrixSelector) {
    push_series(out, &e.selector);
    out.push('[');
    push_duration_arg(out, &e.range);
    out.push(']');
    push_edges(out, e.selector.edges);
    push_at(out, e.selector.at);
    push_offset(out, &e.selector.offset);
}

fn push_subquery(out: &mut String, e: &SubqueryExpr) {
    push_expr(out, &e.expr);
    out.push('[');
    push_duration_arg(out, &e.range);
    out.push(':');
    if let Some(step) = &e.step {
        push_duration_arg(out, step);
    }
    out.push(']');
    push_at(out, e.at);
    push_offset(out, &e.offset);
}

fn push_at(out: &mut String, at: Option<AtModifier>) {
    match at {
        None => {}
        Some(AtModifier::Start) => out.push_str(" @ start()"),
        Some(AtModifier::End) => out.push_str(" @ end()"),
        Some(AtModifier::Timestamp(ms)) => push_display(out, format_args!(" @ {:.3}", ms as f64 / 1000.0)),
    }
}

fn push_edges(out: &mut String, edges: EdgeMode) {
    match edges {
        EdgeMode::Plain => {}
        EdgeMode::Anchored => out.push_str(" anchored"),
        EdgeMode::Smoothed => out.push_str(" smoothed"),
    }
}

fn push_offset(out: &mut String, offset: &Duration) {
    if !offset.is_zero() {
        out.push_str(" offset ");
        push_duration_arg(out, offset);
    }
}

fn push_duration_arg(out: &mut String, duration: &Duration) {
    match duration {
        Duration::Fixed(ms) => push_duration(out, *ms),
        Duration::Expr(expr) => push_duration_expr(out, expr),
    }
}

fn push_duration_expr(out: &mut String, expr: &DurationExpr) {
    match expr {
        DurationExpr::Literal { seconds, duration: true, .. } => push_duration(out, literal_ms(*seconds)),
        DurationExpr::Literal { seconds, .. } => push_float(out, *seconds),
        DurationExpr::Step(_) => out.push_str("step()"),
        DurationExpr::Range(_) => out.push_str("range()"),
        DurationExpr::Sign { negative, expr, .. } => {
            if *negative {
                out.push('-');
            }
            push_duration_expr(out, expr);
        }
        DurationExpr::Paren { expr, .. } => {
            out.push('(');
            push_duration_expr(out, expr);
            out.push(')');
        }
        DurationExpr::Binary { op, lhs, rhs, .. } => {
            let call = matches!(op, DurationOp::Min | DurationOp::Max);
            if call {
                out.push_str(op.as_str());
                out.push('(');
            }
            push_duration_expr(out, lhs);
            if call {
                out.push_str(", ");
            } else {
                push_display(out, format_args!(" {} ", op.as_str()));
            }
            push_duration_expr(out, rhs);
            if call {
                out.push(')');
            }
        }
    }
}

fn push_binary(out: &mut String, e: &BinaryExpr) {
    push_expr(out, &e.lhs);
    out.push(' ');
    out.push_str(e.op.as_str());
    if e.return_bool {
        out.push_str(" bool");
    }
    if let Some(matching) = &e.matching {
        push_matching(out, matching);
    }
    out.push(' ');
    push_expr(out, &e.rhs);
}

fn push_matching(out: &mut String, matching: &VectorMatching) {
    let group = match matching.cardinality {
        Cardinality::ManyToOne => Some(" group_left ("),
        Cardinality::OneToMany => Some(" group_right ("),
        Cardinality::OneToOne | Cardinality::ManyToMany => None,
    };
    if !matching.labels.is_empty() || matching.on || group.is_some() {
        out.push_str(if matching.on { " on (" } else { " ignoring (" });
        push_labels(out, &matching.labels);
        out.push(')');
    }
    if let Some(group) = group {
        out.push_str(group);
        push_labels(out, &matching.include);
        out.push(')');
    }
    let mut fill = |keyword: &str, value: Option<f64>| {
        if let Some(value) = value {
            out.push_str(keyword);
            push_float_short(out, value);
            out.push(')');
        }
    };
    if matching.fill_left.is_some() && matching.fill_left == matching.fill_right {
        fill(" fill (", matching.fill_left);
    } else {
        fill(" fill_left (", matching.fill_left);
        fill(" fill_right (", matching.fill_right);
    }
}

fn push_aggregate(out: &mut String, e: &AggregateExpr) {
    out.push_str(e.op.as_str());
    if e.without || !e.grouping.is_empty() {
        out.push_str(if e.without { " without (" } else { " by (" });
        push_labels(out, &e.grouping);
        out.push_str(") ");
    }
    out.push('(');
    if let Some(param) = &e.param {
        push_expr(out, param);
        out.push_str(", ");
    }
    push_expr(out, &e.expr);
    out.push(')');
}
