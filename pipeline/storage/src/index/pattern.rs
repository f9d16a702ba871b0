//! Matchers made ready, with compiled patterns that are kept between queries.

use crate::StorageError;
use fletch_schemas::pattern::{Condition, Test};
use fletch_schemas::{MatchOp, Matcher};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;

/// Compiled patterns that are kept.
const CACHE_PATTERNS_MAX: usize = 1_024;

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
        match matcher.op {
            MatchOp::Equal | MatchOp::NotEqual => Ok(Condition::exact(matcher)),
            MatchOp::Regex | MatchOp::NotRegex => Ok(Condition::tested(matcher, self.pattern(&matcher.value, pattern_bytes_max)?)),
        }
    }

    fn pattern(&self, pattern: &str, bytes_max: usize) -> Result<Arc<Test>, StorageError> {
        if pattern.len() > bytes_max {
            let text = format!("regular expression of {} bytes is longer than regex_bytes_max = {bytes_max}", pattern.len());
            return Err(StorageError::Limit(text));
        }
        if let Some(known) = self.tests.lock().get(pattern) {
            return Ok(known.clone());
        }
        let test = Arc::new(Test::compile(pattern).map_err(|e| StorageError::Regex { pattern: pattern.to_owned(), why: e.to_string() })?);
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

    #[test]
    fn bad_and_long_patterns_are_refused() {
        let cache = PatternCache::default();
        let matcher = |pattern: &str| Matcher::new("a", MatchOp::Regex, pattern);
        assert!(matches!(cache.conditions(&[matcher("a(")], 100), Err(StorageError::Regex { .. })));
        assert!(matches!(cache.conditions(&[matcher(&"a".repeat(101))], 100), Err(StorageError::Limit(_))));
    }
}
