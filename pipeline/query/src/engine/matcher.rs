//! Label matchers ready to be asked, for the few places where the evaluator itself has to.

use super::error::QueryError;
use super::relabel::compile;
use fletch_schemas::{MatchOp, Matcher};
use regex::Regex;

/// A matcher with its pattern compiled.
#[derive(Debug)]
pub(crate) struct CompiledMatcher<'a> {
    matcher: &'a Matcher,
    regex: Option<Regex>,
}

impl<'a> CompiledMatcher<'a> {
    /// Compiles the pattern, if there is one.
    ///
    /// # Errors
    /// [`QueryError::BadData`] for something that is no pattern.
    pub(crate) fn new(matcher: &'a Matcher) -> Result<Self, QueryError> {
        let regex = match matcher.op {
            MatchOp::Equal | MatchOp::NotEqual => None,
            MatchOp::Regex | MatchOp::NotRegex => {
                let compiled = compile(&matcher.value);
                Some(compiled.ok_or_else(|| QueryError::BadData(format!("invalid regular expression in {matcher}")))?)
            }
        };
        Ok(Self { matcher, regex })
    }

    /// Whether a value of the label satisfies the matcher; `""` for a label that is not there.
    pub(crate) fn matches(&self, value: &str) -> bool {
        let hit = match &self.regex {
            Some(regex) => regex.is_match(value),
            None => value == self.matcher.value,
        };
        hit == matches!(self.matcher.op, MatchOp::Equal | MatchOp::Regex)
    }
}
