//! Patterns of matchers made ready: literals where a regular expression is nothing else, a prefix where it has one, the compiled automaton
//! otherwise.
//!
//! Patterns are written in Go's RE2 syntax, fully anchored, the dot matches newlines. [`go_syntax`] rewrites them for the `regex` crate.
//!
//! # Invariants
//! - Memory of a pattern is bounded: [`AUTOMATON_BYTES_MAX`], [`LAZY_BYTES_MAX`], [`NEST_DEPTH_MAX`]. A pattern beyond is refused.
//!
//! # Not here
//! The longest pattern that is allowed, keeping compiled patterns: the callers' limits and caches.

pub mod go_syntax;

use crate::{MatchOp, Matcher};
use regex_syntax::hir::literal::{ExtractKind, Extractor};
use std::sync::Arc;

/// Largest compiled automaton, in bytes.
const AUTOMATON_BYTES_MAX: usize = 2 << 20;
/// Memory of the lazily built part of one automaton, in bytes.
const LAZY_BYTES_MAX: usize = 4 << 20;
/// Deepest nesting of a pattern.
const NEST_DEPTH_MAX: u32 = 100;

/// Why a text is no pattern.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct PatternError(String);

/// What a value is compared with.
#[derive(Debug)]
pub enum Test {
    /// One of these, ascending, each once. `""` may be among them.
    Literals(Vec<String>),
    /// Any value but the empty one.
    NonEmpty,
    /// Every value.
    Everything,
    /// A regular expression. A value that matches begins with one of `prefixes` (none given: with anything).
    Regex {
        /// Anchored at both ends.
        regex: regex::Regex,
        /// Ascending, none empty.
        prefixes: Vec<String>,
    },
}

impl Test {
    /// Whether a value passes.
    pub fn matches(&self, value: &str) -> bool {
        match self {
            Self::Literals(all) => all.binary_search_by(|l| l.as_str().cmp(value)).is_ok(),
            Self::NonEmpty => !value.is_empty(),
            Self::Everything => true,
            Self::Regex { regex, .. } => regex.is_match(value),
        }
    }

    /// Makes a pattern ready.
    ///
    /// # Errors
    /// It is no regular expression in Go's syntax, or too large.
    pub fn compile(pattern: &str) -> Result<Self, PatternError> {
        match pattern {
            ".*" => return Ok(Self::Everything),
            ".+" => return Ok(Self::NonEmpty),
            _ => {}
        }
        if let Some(literals) = alternatives(pattern) {
            return Ok(Self::Literals(literals));
        }
        let translated = translate(pattern)?;
        let mut parser = regex_syntax::ParserBuilder::new().dot_matches_new_line(true).nest_limit(NEST_DEPTH_MAX).build();
        let hir = parser.parse(&translated).map_err(|e| PatternError(e.to_string()))?;
        let (literals, exact) = leading_literals(&hir);
        if exact {
            return Ok(Self::Literals(literals));
        }
        Ok(Self::Regex { regex: automaton(&translated)?, prefixes: literals })
    }
}

/// A matcher that is ready to be evaluated.
#[derive(Debug, Clone)]
pub struct Condition {
    /// Name of the label.
    pub name: String,
    /// What its value is compared with.
    pub test: Arc<Test>,
    /// Whether the answer is turned round.
    pub negated: bool,
}

impl Condition {
    /// Makes a matcher ready.
    ///
    /// # Errors
    /// As [`Test::compile`].
    pub fn new(matcher: &Matcher) -> Result<Self, PatternError> {
        match matcher.op {
            MatchOp::Equal | MatchOp::NotEqual => Ok(Self::exact(matcher)),
            MatchOp::Regex | MatchOp::NotRegex => Ok(Self::tested(matcher, Arc::new(Test::compile(&matcher.value)?))),
        }
    }

    /// A matcher whose value is no pattern.
    pub fn exact(matcher: &Matcher) -> Self {
        Self::tested(matcher, Arc::new(Test::Literals(vec![matcher.value.clone()])))
    }

    /// A matcher with its value made ready.
    pub fn tested(matcher: &Matcher, test: Arc<Test>) -> Self {
        Self { name: matcher.name.clone(), test, negated: matches!(matcher.op, MatchOp::NotEqual | MatchOp::NotRegex) }
    }

    /// Whether a value passes (`""` for a series without the label).
    pub fn matches(&self, value: &str) -> bool {
        self.test.matches(value) != self.negated
    }
}

/// A pattern with its groups, for what replaces with them. It matches whole texts only.
///
/// # Errors
/// As [`Test::compile`].
pub fn compile(pattern: &str) -> Result<regex::Regex, PatternError> {
    automaton(&translate(pattern)?)
}

fn translate(pattern: &str) -> Result<String, PatternError> {
    go_syntax::translate(pattern).map(|t| t.pattern).map_err(|e| PatternError(e.to_string()))
}

fn automaton(translated: &str) -> Result<regex::Regex, PatternError> {
    let mut builder = regex::RegexBuilder::new(&format!("^(?s:{translated})$"));
    builder.size_limit(AUTOMATON_BYTES_MAX).dfa_size_limit(LAZY_BYTES_MAX).nest_limit(NEST_DEPTH_MAX + 4);
    builder.build().map_err(|e| PatternError(e.to_string()))
}

/// `a|b|c` without anything else in it: what dashboards send for every variable.
fn alternatives(pattern: &str) -> Option<Vec<String>> {
    if pattern.contains(['\\', '.', '+', '*', '?', '(', ')', '[', ']', '{', '}', '^', '$']) {
        return None;
    }
    let mut all: Vec<String> = pattern.split('|').map(str::to_owned).collect();
    all.sort_unstable();
    all.dedup();
    Some(all)
}

/// Literals that a match begins with, and whether they are all that matches. None: nothing is known.
fn leading_literals(hir: &regex_syntax::hir::Hir) -> (Vec<String>, bool) {
    // The extractor reads an assertion as "matches here", so it proves nothing about patterns that have one.
    if !hir.properties().look_set().is_empty() {
        return (Vec::new(), false);
    }
    let sequence = Extractor::new().kind(ExtractKind::Prefix).extract(hir);
    let Some(found) = sequence.literals() else { return (Vec::new(), false) };
    let mut texts = Vec::with_capacity(found.len());
    for literal in found {
        match std::str::from_utf8(literal.as_bytes()) {
            Ok(text) => texts.push(text.to_owned()),
            Err(_) => return (Vec::new(), false),
        }
    }
    texts.sort_unstable();
    texts.dedup();
    if sequence.is_exact() {
        return (texts, true);
    }
    if texts.iter().any(String::is_empty) {
        texts.clear();
    }
    (texts, false)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn test(pattern: &str) -> Test {
        Test::compile(pattern).expect(pattern)
    }

    #[test]
    fn patterns_are_anchored_and_the_dot_matches_newlines() {
        for (pattern, value, expected) in [
            ("a.c", "abc", true),
            ("a.c", "a\nc", true),
            ("a.c", "xabc", false),
            ("a|b", "ab", false),
            ("", "", true),
            ("", "x", false),
            (".*", "x\ny", true),
            (".+", "", false),
            ("(?i)get|post", "POST", true),
            ("^a$", "a", true),
            (r"\d+", "12", true),
            (r"\d+", "١٢", false),
            (r"\w", "é", false),
            (r"[\w-]+", "a-b", true),
            (r"a{2}", "aa", true),
            ("a{b", "a{b", true),
            ("{a}", "{a}", true),
            ("[[]x", "[x", true),
            ("[]a]", "]", true),
            ("[^]a]", "b", true),
            ("[[:digit:]]+", "42", true),
            ("[a&&b]", "&", true),
            (r"\Qa.b\E.*", "a.bc", true),
            (r"\Qa.b\E.*", "axbc", false),
            (r"a\.b", "a.b", true),
        ] {
            assert_eq!(test(pattern).matches(value), expected, "{pattern} on {value:?}");
        }
    }

    #[test]
    fn literal_alternations_need_no_automaton_and_prefixes_are_found() {
        let literals = |pattern: &str| match test(pattern) {
            Test::Literals(all) => all,
            other => panic!("{pattern}: {other:?}"),
        };
        assert_eq!(literals("b|a|a"), ["a", "b"]);
        assert_eq!(literals("host_(1|2[01])"), ["host_1", "host_20", "host_21"]);
        assert_eq!(literals("a|"), ["", "a"]);
        let prefixes = |pattern: &str| match test(pattern) {
            Test::Regex { prefixes, .. } => prefixes,
            other => panic!("{pattern}: {other:?}"),
        };
        assert_eq!(prefixes("node_.*"), ["node_"]);
        assert_eq!(prefixes("(a1|b2).+"), ["a1", "b2"]);
        assert!(prefixes(".*_total").is_empty());
        assert!(prefixes("x*y").len() != 1, "a pattern that may begin in two ways has no single prefix");
    }

    #[test]
    fn bad_and_huge_patterns_are_refused() {
        for pattern in ["a(", "a)(b", "\\", "((a{1,1000}){1,1000}){1,1000}", &"(".repeat(5_000)] {
            assert!(Test::compile(pattern).is_err(), "{pattern}");
            assert!(compile(pattern).is_err(), "{pattern}");
        }
    }
}
