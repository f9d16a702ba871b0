//! The plan cache: query text → plan, bounded, shared by all queries of a process.
//!
//! Two generations: new plans and plans in use live in the young one; when it is full it becomes the old one, and what was in the old one
//! and not asked for since is forgotten. Rules and dashboards ask the same texts all the time and stay; a stream of new texts cannot push
//! the cache over its bound.

use super::error::QueryError;
use super::plan::Plan;
use fletch_common::Limits;
use fletch_promql::{Expr, ParseError, ParseLimits, parse_expr};
use fletch_schemas::{MatchOp, Matcher};
use hashbrown::HashMap;
use parking_lot::Mutex;
use std::sync::Arc;

/// Plans of one generation; a plan is a few hundred bytes more than its text.
const GENERATION_MAX: usize = 512;

/// See the module.
#[derive(Debug)]
pub(crate) struct Plans {
    limits: Limits,
    cache: Mutex<Generations>,
}

#[derive(Debug, Default)]
struct Generations {
    young: HashMap<Box<str>, Arc<Plan>>,
    old: HashMap<Box<str>, Arc<Plan>>,
}

impl Plans {
    /// An empty cache; `limits` bound texts, nesting and patterns.
    pub(crate) fn new(limits: &Limits) -> Self {
        Self { limits: limits.clone(), cache: Mutex::new(Generations::default()) }
    }

    /// The plan of a query text.
    ///
    /// # Errors
    /// The text is not PromQL, or is too long or too deep.
    pub(crate) fn get(&self, text: &str) -> Result<Arc<Plan>, QueryError> {
        if let Some(plan) = self.cache.lock().find(text) {
            return Ok(plan);
        }
        // Parsed outside of the lock: two queries may do it twice, none waits for the other.
        let plan = Arc::new(Plan::new(text, &self.parse(text)?));
        self.cache.lock().insert(text, &plan);
        Ok(plan)
    }

    fn parse(&self, text: &str) -> Result<Expr, QueryError> {
        let limits = ParseLimits { bytes_max: self.limits.promql_bytes_max, depth_max: self.limits.promql_depth_max };
        let expr = parse_expr(text, &limits)?;
        for selector in expr.selectors() {
            for m in &selector.matchers {
                self.check_pattern(m).map_err(|message| ParseError::new(text, selector.span, message))?;
            }
        }
        Ok(expr)
    }

    /// Whether they are patterns at all the parser has checked.
    fn check_pattern(&self, m: &Matcher) -> Result<(), String> {
        if !matches!(m.op, MatchOp::Regex | MatchOp::NotRegex) {
            return Ok(());
        }
        let (bytes, bytes_max) = (m.value.len(), self.limits.regex_bytes_max);
        if bytes > bytes_max {
            return Err(format!("the pattern for label `{}` has {bytes} bytes, `regex_bytes_max` is {bytes_max}", m.name));
        }
        Ok(())
    }
}

impl Generations {
    fn find(&mut self, text: &str) -> Option<Arc<Plan>> {
        if let Some(plan) = self.young.get(text) {
            return Some(plan.clone());
        }
        let plan = self.old.remove(text)?;
        self.insert(text, &plan);
        Some(plan)
    }

    fn insert(&mut self, text: &str, plan: &Arc<Plan>) {
        if self.young.len() >= GENERATION_MAX {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(text.into(), plan.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cache_is_bounded_and_keeps_what_is_asked_for() {
        let plans = Plans::new(&Limits::default());
        let kept = plans.get("up").expect("a query");
        for i in 0..3 * GENERATION_MAX {
            plans.get(&format!("{i}")).expect("a query");
            if i % 100 == 0 {
                assert!(Arc::ptr_eq(&kept, &plans.get("up").expect("a query")), "{i}");
            }
        }
        let cache = plans.cache.lock();
        assert!(cache.young.len() + cache.old.len() <= 2 * GENERATION_MAX);
        assert!(!cache.young.contains_key("0") && !cache.old.contains_key("0"));
    }

    #[test]
    fn what_is_no_query_is_not_kept() {
        let plans = Plans::new(&Limits::default());
        for text in ["sum(", "m{a=~\"[\"}", "1 +"] {
            assert!(plans.get(text).is_err(), "{text}");
        }
        assert!(plans.cache.lock().young.is_empty());
    }
}
