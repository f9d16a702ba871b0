//! Go templates in labels and annotations of rules, with Prometheus' data and functions.
//!
//! ```text
//!  text ─▶ parse (defs + text) ─▶ rewrite::rewrite ─▶ Program        once, when the rule is loaded
//!  Program + labels, value ─▶ run ─▶ text                            per alert
//!                              └─ needs `query "…"`: stop, ask, run again with the answer
//! ```
//!
//! The engine is `gotmpl`; [`rewrite`] closes its gaps towards Go (methods, printing of floats, missing keys) on the syntax tree.
//!
//! # Bounds
//! [`TEMPLATE_BYTES_MAX`], [`OUTPUT_BYTES_MAX`], [`RANGE_ITERATIONS_MAX`], [`STEPS_MAX`], [`QUERIES_MAX`]; the engine bounds nesting itself.
//!
//! # When it fails
//! [`Template::expand`] never fails: what went wrong is the text, `<error expanding template: …>`, so the alert goes out anyway.
//!
//! # Not here
//! HTML escaping: notifications are text or JSON.

mod balance;
mod funcs;
mod humanize;
mod rewrite;
mod text;

use crate::InstantQuery;
use fletch_schemas::{Labels, TenantId};
pub(crate) use funcs::table_link;
use funcs::{Answers, Bound};
use gotmpl::Value;
use gotmpl::parse::{DefineNode, ListNode, Parser};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Arc;

/// Longest template text, in bytes.
pub const TEMPLATE_BYTES_MAX: usize = 64 << 10;
/// Longest expanded text, in bytes; also bounds every text that a function builds on the way.
pub const OUTPUT_BYTES_MAX: usize = 256 << 10;
/// Most iterations of all `range` loops of one expansion.
pub const RANGE_ITERATIONS_MAX: u64 = 100_000;
/// Most loop bodies and template calls of one expansion: nested `template` calls would otherwise grow exponentially.
pub const STEPS_MAX: u64 = 200_000;
/// Most different queries of one expansion.
pub const QUERIES_MAX: usize = 32;

const DELIMITERS: (&str, &str) = ("{{", "}}");
const DEFS: &str = "{{$labels := .Labels}}{{$externalLabels := .ExternalLabels}}{{$externalURL := .ExternalURL}}{{$value := .Value}}";

/// Why a template cannot be parsed or expanded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// The text is not a template.
    #[error("template: {name}:{reason}")]
    Parse {
        /// Name given by the caller.
        name: String,
        /// `line: what`.
        reason: String,
    },
    /// Running it failed.
    #[error("error executing template {name}: {reason}")]
    Execute {
        /// Name given by the caller.
        name: String,
        /// What went wrong.
        reason: String,
    },
    /// The text is longer than [`TEMPLATE_BYTES_MAX`].
    #[error("template: {name}: it is {bytes} bytes long, at most {TEMPLATE_BYTES_MAX} are allowed")]
    TooLong {
        /// Name given by the caller.
        name: String,
        /// Its length.
        bytes: usize,
    },
}

/// What all expansions of one evaluation share.
pub struct Context {
    /// Whose data `query` reads.
    pub tenant: TenantId,
    /// Time of the evaluation, in milliseconds.
    pub at_ms: i64,
    /// Where users reach this server, e.g. `http://fletch:9090`.
    pub external_url: Arc<str>,
    /// Labels this server adds to everything it sends out.
    pub external_labels: Labels,
    /// Answers `query`.
    pub queries: Arc<dyn InstantQuery>,
    answers: Answers,
}

impl Context {
    /// A context whose answers are not known yet.
    pub fn new(tenant: TenantId, at_ms: i64, external_url: Arc<str>, external_labels: Labels, queries: Arc<dyn InstantQuery>) -> Self {
        Self { tenant, at_ms, external_url, external_labels, queries, answers: Answers::default() }
    }
}

/// A checked template.
#[derive(Clone)]
pub struct Template {
    name: String,
    text: String,
    program: Option<Arc<Program>>,
}

impl std::fmt::Debug for Template {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Template({:?})", self.text)
    }
}

/// The rewritten tree, and the engine ready to run it when nothing in it depends on the evaluation.
struct Program {
    main: ListNode,
    defines: Vec<DefineNode>,
    ready: Option<gotmpl::Template>,
}

impl Template {
    /// Parses a text. `name` appears in errors; Prometheus uses `__alert_<rule>`.
    ///
    /// # Errors
    /// [`TemplateError::Parse`] also for functions and variables that do not exist, as in Go.
    pub fn parse(name: &str, text: &str) -> Result<Self, TemplateError> {
        if text.len() > TEMPLATE_BYTES_MAX {
            return Err(TemplateError::TooLong { name: name.to_owned(), bytes: text.len() });
        }
        let program = if text.contains(DELIMITERS.0) { Some(Arc::new(Program::parse(name, text)?)) } else { None };
        Ok(Self { name: name.to_owned(), text: text.to_owned(), program })
    }

    /// The text as written.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The expanded text, or `<error expanding template: …>`.
    pub async fn expand(&self, labels: &Labels, value: f64, context: &Context) -> String {
        match self.try_expand(labels, value, context).await {
            Ok(text) => text,
            Err(error) => {
                tracing::warn!(template = %self.name, %error, "a template failed; its text says so");
                format!("<error expanding template: {error}>")
            }
        }
    }

    async fn try_expand(&self, labels: &Labels, value: f64, context: &Context) -> Result<String, TemplateError> {
        let Some(program) = &self.program else { return Ok(self.text.clone()) };
        let data = root(labels, value, context);
        for _ in 0..=QUERIES_MAX {
            match program.run(&self.name, &data, context) {
                Ok(text) => return Ok(text),
                Err(Stop::Failed(error)) => return Err(error),
                Err(Stop::Query(query)) => {
                    let answer = context.queries.instant(&context.tenant, &query, context.at_ms).await;
                    context.answers.put(query, answer);
                }
            }
        }
        Err(TemplateError::Execute { name: self.name.clone(), reason: format!("more than {QUERIES_MAX} different queries") })
    }
}

/// Why a run did not end with a text.
enum Stop {
    Failed(TemplateError),
    /// The answer to this query is needed first.
    Query(String),
}

impl Program {
    fn parse(name: &str, text: &str) -> Result<Self, TemplateError> {
        let failed = |reason: String| TemplateError::Parse { name: name.to_owned(), reason };
        balance::check(text).map_err(failed)?;
        let source = format!("{DEFS}{text}");
        let parsed = Parser::with_name(Some(name), &source, DELIMITERS.0, DELIMITERS.1).and_then(Parser::parse);
        let (main, defines) = parsed.map_err(|e| failed(parse_reason(name, &e)))?;
        let rewritten = rewrite::rewrite(name, main, defines).map_err(failed)?;
        let mut program = Self { main: rewritten.main, defines: rewritten.defines, ready: None };
        if !rewritten.bound {
            program.ready = Some(program.engine(name, gotmpl::FuncMap::new()));
        }
        Ok(program)
    }

    fn engine(&self, name: &str, bound: gotmpl::FuncMap) -> gotmpl::Template {
        let mut engine = gotmpl::Template::new("").max_range_iters(RANGE_ITERATIONS_MAX).funcs(funcs::pure().clone()).funcs(bound);
        for define in &self.defines {
            engine = engine.add_parse_tree(&define.name, define.body.clone());
        }
        engine.add_parse_tree(name, self.main.clone())
    }

    fn run(&self, name: &str, data: &Value, context: &Context) -> Result<String, Stop> {
        let mut out = Capped::default();
        let (result, missing) = match &self.ready {
            Some(engine) => (engine.execute_template_fmt(&mut out, name, data), None),
            None => {
                let bound = Arc::new(Bound::new(context));
                let engine = self.engine(name, funcs::bound(&bound));
                (engine.execute_template_fmt(&mut out, name, data), bound.missing_query())
            }
        };
        match (result, missing) {
            (_, Some(query)) => Err(Stop::Query(query)),
            (Ok(()), None) => Ok(out.text),
            (Err(error), None) => {
                let reason = if out.full { format!("the output is longer than {OUTPUT_BYTES_MAX} bytes") } else { error.to_string() };
                Err(Stop::Failed(TemplateError::Execute { name: name.to_owned(), reason }))
            }
        }
    }
}

/// The engine's text without the prefix that [`TemplateError::Parse`] writes itself.
fn parse_reason(name: &str, error: &gotmpl::TemplateError) -> String {
    let text = error.to_string();
    text.strip_prefix(&format!("template: {name}:")).map_or_else(|| text.clone(), str::to_owned)
}

/// A text that refuses to grow beyond [`OUTPUT_BYTES_MAX`].
#[derive(Default)]
struct Capped {
    text: String,
    full: bool,
}

impl Write for Capped {
    fn write_str(&mut self, part: &str) -> std::fmt::Result {
        if self.text.len() + part.len() > OUTPUT_BYTES_MAX {
            self.full = true;
            return Err(std::fmt::Error);
        }
        self.text.push_str(part);
        Ok(())
    }
}

fn root(labels: &Labels, value: f64, context: &Context) -> Value {
    let url: Arc<str> = Arc::clone(&context.external_url);
    text::structure(
        "struct",
        [
            ("Labels", label_map(labels)),
            ("ExternalLabels", label_map(&context.external_labels)),
            ("ExternalURL", Value::String(url)),
            ("Value", Value::Float(value)),
        ],
    )
}

fn label_map(labels: &Labels) -> Value {
    let map: BTreeMap<Arc<str>, Value> = labels.iter().map(|(n, v)| (Arc::from(n), Value::from(v))).collect();
    Value::from(map)
}

#[cfg(test)]
mod tests;
