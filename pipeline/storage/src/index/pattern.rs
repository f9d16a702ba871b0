//! Matchers made ready: literals where a regular expression is nothing else, a prefix where it has one, the compiled automaton otherwise.
//!
//! Patterns are written in Go's RE2 syntax, fully anchored, the dot matches newlines. [`translate`] rewrites the few places where the
//! syntax of the `regex` crate differs.

use crate::StorageError;
use fletch_schemas::{MatchOp, Matcher};
use parking_lot::Mutex;
use regex_syntax::hir::literal::{ExtractKind, Extractor};
use std::collections::HashMap;
use std::fmt::Write;
use std::sync::Arc;

/// Largest compiled automaton, in bytes. Longer patterns are refused by name.
const AUTOMATON_BYTES_MAX: usize = 2 << 20;
/// Memory of the lazily built part of one automaton, in bytes.
const LAZY_BYTES_MAX: usize = 4 << 20;
/// Deepest nesting of a pattern.
const NEST_DEPTH_MAX: u32 = 100;
/// Compiled patterns that are kept.
const CACHE_PATTERNS_MAX: usize = 1_024;

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

    fn compile(pattern: &str) -> Result<Self, StorageError> {
        let failed = |why: String| StorageError::Regex { pattern: pattern.to_owned(), why };
        let translated = translate(pattern);
        let mut parser = regex_syntax::ParserBuilder::new().dot_matches_new_line(true).nest_limit(NEST_DEPTH_MAX).build();
        let hir = parser.parse(&translated).map_err(|e| failed(e.to_string()))?;
        match pattern {
            ".*" => return Ok(Self::Everything),
            ".+" => return Ok(Self::NonEmpty),
            _ => {}
        }
        let (literals, exact) = leading_literals(&hir);
        if exact {
            return Ok(Self::Literals(literals));
        }
        let regex = regex::RegexBuilder::new(&format!("^(?s:{translated})$"))
            .size_limit(AUTOMATON_BYTES_MAX)
            .dfa_size_limit(LAZY_BYTES_MAX)
            .nest_limit(NEST_DEPTH_MAX + 4)
            .build()
            .map_err(|e| failed(e.to_string()))?;
        Ok(Self::Regex { regex, prefixes: literals })
    }
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

/// Rewrites Go's syntax: ASCII classes, `\Q…\E`, a `[` inside of a class, a `{` that begins no repetition.
fn translate(pattern: &str) -> String {
    let mut out = String::with_capacity(pattern.len() + 16);
    let mut rest = pattern;
    let mut in_class = false;
    while let Some(c) = rest.chars().next() {
        let after = &rest[c.len_utf8()..];
        rest = match c {
            '\\' => translate_escape(after, &mut out),
            '[' if !in_class => {
                in_class = true;
                open_class(after, &mut out)
            }
            '[' if after.starts_with(':') => copy_posix_class(after, &mut out),
            ']' if in_class => {
                in_class = false;
                out.push(']');
                after
            }
            '[' | '&' | '~' if in_class => {
                out.push('\\');
                out.push(c);
                after
            }
            '{' if !in_class && !begins_repetition(after) => {
                out.push_str("\\{");
                after
            }
            _ => {
                out.push(c);
                after
            }
        };
    }
    out
}

/// After `[`: an optional `^`, and a `]` that stands first is a literal.
fn open_class<'a>(after: &'a str, out: &mut String) -> &'a str {
    out.push('[');
    let after = after.strip_prefix('^').inspect(|_| out.push('^')).unwrap_or(after);
    after.strip_prefix(']').inspect(|_| out.push_str("\\]")).unwrap_or(after)
}

fn copy_posix_class<'a>(after: &'a str, out: &mut String) -> &'a str {
    match after.find(":]") {
        Some(end) => {
            let _ = write!(out, "[{}", &after[..end + 2]);
            &after[end + 2..]
        }
        None => {
            out.push_str("\\[");
            after
        }
    }
}

fn translate_escape<'a>(after: &'a str, out: &mut String) -> &'a str {
    let Some(c) = after.chars().next() else {
        out.push('\\');
        return after;
    };
    let rest = &after[c.len_utf8()..];
    let class = match c {
        'd' => "[0-9]",
        'D' => "[^0-9]",
        'w' => "[0-9A-Za-z_]",
        'W' => "[^0-9A-Za-z_]",
        's' => "[\\t\\n\\x0C\\r\\x20]",
        'S' => "[^\\t\\n\\x0C\\r\\x20]",
        'b' => "(?-u:\\b)",
        'Q' => {
            let (quoted, rest) = rest.split_once("\\E").unwrap_or((rest, ""));
            out.push_str(&regex_syntax::escape(quoted));
            return rest;
        }
        _ => {
            out.push('\\');
            out.push(c);
            return rest;
        }
    };
    out.push_str(class);
    rest
}

fn begins_repetition(after: &str) -> bool {
    let Some((inside, _)) = after.split_once('}') else { return false };
    let (min, max) = inside.split_once(',').unwrap_or((inside, ""));
    let digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
    !min.is_empty() && digits(min) && digits(max)
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
    /// Whether a value passes (`""` for a series without the label).
    pub fn matches(&self, value: &str) -> bool {
        self.test.matches(value) != self.negated
    }
}

/// Compiled patterns, kept between queries.
#[derive(Debug, Default)]
pub struct PatternCache {
    tests: Mutex<HashMap<String, Arc<Test>>>,
}

impl PatternCache {
    /// Makes matchers ready.
    ///
    /// # Errors
    /// [`StorageError::Limit`] for a pattern longer than `pattern_bytes_max`, [`StorageError::Regex`] for one that is not valid.
    pub fn conditions(&self, matchers: &[Matcher], pattern_bytes_max: usize) -> Result<Vec<Condition>, StorageError> {
        matchers.iter().map(|m| self.condition(m, pattern_bytes_max)).collect()
    }

    fn condition(&self, matcher: &Matcher, pattern_bytes_max: usize) -> Result<Condition, StorageError> {
        let negated = matches!(matcher.op, MatchOp::NotEqual | MatchOp::NotRegex);
        let test = match matcher.op {
            MatchOp::Equal | MatchOp::NotEqual => Arc::new(Test::Literals(vec![matcher.value.clone()])),
            MatchOp::Regex | MatchOp::NotRegex => self.pattern(&matcher.value, pattern_bytes_max)?,
        };
        Ok(Condition { name: matcher.name.clone(), test, negated })
    }

    fn pattern(&self, pattern: &str, bytes_max: usize) -> Result<Arc<Test>, StorageError> {
        if pattern.len() > bytes_max {
            let text = format!("regular expression of {} bytes is longer than regex_bytes_max = {bytes_max}", pattern.len());
            return Err(StorageError::Limit(text));
        }
        if let Some(known) = self.tests.lock().get(pattern) {
            return Ok(known.clone());
        }
        let test = Arc::new(Test::compile(pattern)?);
        let mut tests = self.tests.lock();
        if tests.len() >= CACHE_PATTERNS_MAX {
            tests.clear();
        }
        tests.insert(pattern.to_owned(), test.clone());
        Ok(test)
    }
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
        let cache = PatternCache::default();
        let matcher = |pattern: &str| Matcher::new("a", MatchOp::Regex, pattern);
        assert!(matches!(cache.conditions(&[matcher("a(")], 100), Err(StorageError::Regex { .. })));
        assert!(matches!(cache.conditions(&[matcher("a)(b")], 100), Err(StorageError::Regex { .. })));
        assert!(matches!(cache.conditions(&[matcher("\\")], 100), Err(StorageError::Regex { .. })));
        assert!(matches!(cache.conditions(&[matcher(&"a".repeat(101))], 100), Err(StorageError::Limit(_))));
        assert!(matches!(cache.conditions(&[matcher("((a{1,1000}){1,1000}){1,1000}")], 100), Err(StorageError::Regex { .. })));
        assert!(matches!(cache.conditions(&[matcher(&"(".repeat(5_000))], 10_000), Err(StorageError::Regex { .. })));
    }
}
