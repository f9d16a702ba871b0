//! Functions of templates: Prometheus' set, the built-in ones whose printing differs from Go's, and the three that [`super::rewrite`] uses.
//!
//! *Pure* functions depend on their arguments alone and are shared by all templates. *Bound* ones belong to one expansion: they know the time,
//! the answers to queries and how much work was done.

use super::humanize::{humanize, humanize_duration, humanize_percentage, humanize1024, to_float, to_time_ms};
use super::text::{self, Result, action_text, display, failed, sprint};
use super::{Context, OUTPUT_BYTES_MAX, STEPS_MAX};
use crate::go;
use fletch_schemas::Labels;
use gotmpl::{FuncMap, Value};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};

pub(super) const GET: &str = "__get";
pub(super) const CALL: &str = "__call";
pub(super) const PRINT: &str = "__print";
pub(super) const STEP: &str = "__step";

/// Largest compiled regular expression of `match` and `reReplaceAll`, in bytes.
const REGEX_BYTES_MAX: usize = 1 << 20;

/// Most operands of `printf`, the format included.
const PRINTF_ARGS_MAX: usize = 32;

const BOUND: [&str; 5] = ["query", "externalURL", "pathPrefix", "now", STEP];
/// Functions of the engine that are used as they are.
const ENGINE: [&str; 12] = ["and", "or", "not", "eq", "ne", "lt", "le", "gt", "ge", "len", "slice", "call"];

/// Whether a function depends on its arguments alone.
pub(super) fn is_pure(name: &str) -> bool {
    ENGINE.contains(&name) || pure().contains_key(name)
}

/// Whether a function belongs to one expansion.
pub(super) fn is_bound(name: &str) -> bool {
    BOUND.contains(&name)
}

/// What `query` answered, by its text; shared by all expansions of one evaluation.
#[derive(Default)]
pub(super) struct Answers(Mutex<BTreeMap<String, std::result::Result<Value, String>>>);

impl Answers {
    pub(super) fn put(&self, query: String, answer: std::result::Result<Vec<(Labels, f64)>, String>) {
        let answer = answer.map(|rows| Value::from(rows.iter().map(|(labels, value)| sample(labels, *value)).collect::<Vec<_>>()));
        self.0.lock().insert(query, answer);
    }
}

fn sample(labels: &Labels, value: f64) -> Value {
    text::structure("*template.sample", [("Labels", super::label_map(labels)), ("Value", Value::Float(value))])
}

/// State of one expansion.
pub(super) struct Bound {
    answers: BTreeMap<String, std::result::Result<Value, String>>,
    missing: Mutex<Option<String>>,
    steps: AtomicU64,
    external_url: Arc<str>,
    at_ms: i64,
}

impl Bound {
    pub(super) fn new(context: &Context) -> Self {
        Self {
            answers: context.answers.0.lock().clone(),
            missing: Mutex::new(None),
            steps: AtomicU64::new(0),
            external_url: Arc::clone(&context.external_url),
            at_ms: context.at_ms,
        }
    }

    /// The query that stopped the expansion.
    pub(super) fn missing_query(&self) -> Option<String> {
        self.missing.lock().take()
    }

    fn query(&self, query: &str) -> Result<Value> {
        match self.answers.get(query) {
            Some(Ok(rows)) => Ok(rows.clone()),
            Some(Err(reason)) => failed(format!("error calling query: {reason}")),
            None => {
                *self.missing.lock() = Some(query.to_owned());
                failed("the answer to a query is not known yet")
            }
        }
    }

    fn step(&self) -> Result<Value> {
        if self.steps.fetch_add(1, Ordering::Relaxed) >= STEPS_MAX {
            return failed(format!("more than {STEPS_MAX} steps"));
        }
        Ok(Value::Nil)
    }
}

/// Functions of one expansion.
pub(super) fn bound(state: &Arc<Bound>) -> FuncMap {
    let mut map = FuncMap::new();
    let of = Arc::clone(state);
    add(&mut map, "query", 1, move |a| of.query(string(&a[0])?));
    let of = Arc::clone(state);
    add(&mut map, "externalURL", 0, move |_| Ok(Value::String(Arc::clone(&of.external_url))));
    let of = Arc::clone(state);
    add(&mut map, "pathPrefix", 0, move |_| {
        Ok(Value::from(url::Url::parse(&of.external_url).map(|u| u.path().trim_end_matches('/').to_owned()).unwrap_or_default()))
    });
    let of = Arc::clone(state);
    #[allow(clippy::cast_precision_loss, reason = "milliseconds of any date we accept are exact in a float")]
    add(&mut map, "now", 0, move |_| Ok(Value::Float(of.at_ms as f64 / 1_000.0)));
    let of = Arc::clone(state);
    add(&mut map, STEP, 0, move |_| of.step());
    map
}

/// Functions that need nothing but their arguments.
pub(super) fn pure() -> &'static FuncMap {
    static PURE: LazyLock<FuncMap> = LazyLock::new(|| {
        let mut map = FuncMap::new();
        rewriting(&mut map);
        printing(&mut map);
        numbers(&mut map);
        texts(&mut map);
        samples(&mut map);
        map
    });
    &PURE
}

fn rewriting(map: &mut FuncMap) {
    add(map, GET, 2, |a| text::get(&a[0], string(&a[1])?));
    add_any(map, CALL, 2, |a| text::call(&a[0], string(&a[1])?, &a[2..]));
    add(map, PRINT, 1, |a| Ok(Value::from(action_text(&a[0]))));
}

/// Built-in functions that would print floats as Rust does, or give nil for a missing label.
fn printing(map: &mut FuncMap) {
    add_any(map, "print", 0, |a| Ok(Value::from(sprint(a))));
    add_any(map, "println", 0, |a| Ok(Value::from(a.iter().map(display).collect::<Vec<_>>().join(" ") + "\n")));
    add_any(map, "html", 1, |a| Ok(Value::from(gotmpl::html_escape(&sprint(a)))));
    add_any(map, "js", 1, |a| Ok(Value::from(gotmpl::js_escape(&sprint(a)))));
    add_any(map, "urlquery", 1, |a| Ok(Value::from(go::query_escape(&sprint(a)))));
    add_any(map, "index", 1, text::index);
    add_any(map, "printf", 1, |a| engine_printf(&printf_args(a)));
}

/// The engine's own `printf`, which it offers to templates only: a template per number of operands calls it.
fn engine_printf(args: &[Value]) -> Result<Value> {
    static BY_OPERANDS: LazyLock<Vec<Option<gotmpl::Template>>> = LazyLock::new(|| {
        let template = |n: usize| {
            let operands: String = (0..n).map(|i| format!(" .A{i}")).collect();
            gotmpl::Template::new("printf").parse(&format!("{{{{printf{operands}}}}}")).ok()
        };
        (0..=PRINTF_ARGS_MAX).map(template).collect()
    });
    let Some(Some(template)) = BY_OPERANDS.get(args.len()) else {
        return failed(format!("printf has {} operands, at most {PRINTF_ARGS_MAX} are allowed", args.len()));
    };
    let data: BTreeMap<Arc<str>, Value> = args.iter().enumerate().map(|(i, v)| (Arc::from(format!("A{i}")), v.clone())).collect();
    Ok(Value::from(template.execute_to_string(&Value::from(data))?))
}

/// Replaces what `%v` and `%s` would print differently from Go by its text.
fn printf_args(args: &[Value]) -> Vec<Value> {
    let mut out = args.to_vec();
    let format = args.first().and_then(Value::as_str).unwrap_or_default().to_owned();
    let mut at = 1;
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            continue;
        }
        let verb = chars.find(|c| !matches!(c, '0'..='9' | '+' | '-' | '#' | ' ' | '.'));
        if verb == Some('%') {
            continue;
        }
        if let (Some('v'), Some(arg)) = (verb, out.get_mut(at))
            && !matches!(arg, Value::Int(_) | Value::Uint(_) | Value::Bool(_))
        {
            *arg = Value::from(display(arg));
        }
        at += 1;
    }
    out
}

fn numbers(map: &mut FuncMap) {
    type FloatText = fn(f64) -> String;
    let float_text: [(&str, FloatText); 4] = [
        ("humanize", humanize),
        ("humanize1024", humanize1024),
        ("humanizeDuration", humanize_duration),
        ("humanizePercentage", humanize_percentage),
    ];
    for (name, function) in float_text {
        add(map, name, 1, move |a| Ok(Value::from(function(to_float(&a[0])?))));
    }
    add(map, "humanizeTimestamp", 1, |a| {
        let seconds = to_float(&a[0])?;
        Ok(Value::from(to_time_ms(seconds)?.map_or_else(|| go::float_digits(seconds, 4), go::time_string)))
    });
    add(map, "toTime", 1, |a| {
        let seconds = to_float(&a[0])?;
        match to_time_ms(seconds)? {
            Some(ms) => Ok(text::time(ms)),
            None => failed(format!("{} is not a time", go::float(seconds))),
        }
    });
    add(map, "toDuration", 1, |a| {
        let seconds = to_float(&a[0])?;
        match to_time_ms(seconds)? {
            #[allow(clippy::cast_possible_truncation, reason = "to_time_ms checked the range")]
            Some(_) => Ok(text::duration((seconds * 1e9) as i64)),
            None => failed(format!("{} is not a duration", go::float(seconds))),
        }
    });
    #[allow(clippy::cast_precision_loss, reason = "Go returns float64 seconds too")]
    add(map, "parseDuration", 1, |a| {
        let text = string(&a[0])?;
        let (sign, amount) = text.strip_prefix('-').map_or((1.0, text), |rest| (-1.0, rest));
        match fletch_promql::parse_duration(amount) {
            Ok(ms) => Ok(Value::Float(sign * ms as f64 / 1_000.0)),
            Err(error) => failed(error.to_string()),
        }
    });
}

fn texts(map: &mut FuncMap) {
    add(map, "title", 1, |a| Ok(Value::from(title(string(&a[0])?))));
    add(map, "toUpper", 1, |a| Ok(Value::from(string(&a[0])?.to_uppercase())));
    add(map, "toLower", 1, |a| Ok(Value::from(string(&a[0])?.to_lowercase())));
    add(map, "safeHtml", 1, |a| Ok(Value::from(string(&a[0])?)));
    add(map, "urlQueryEscape", 1, |a| Ok(Value::from(go::query_escape(string(&a[0])?))));
    add(map, "graphLink", 1, |a| Ok(Value::from(graph_link(string(&a[0])?))));
    add(map, "tableLink", 1, |a| Ok(Value::from(table_link(string(&a[0])?))));
    add(map, "stripPort", 1, |a| Ok(Value::from(strip_port(string(&a[0])?))));
    add(map, "stripDomain", 1, |a| Ok(Value::from(strip_domain(string(&a[0])?))));
    add(map, "match", 2, |a| Ok(Value::Bool(regex(string(&a[0])?)?.is_match(string(&a[1])?))));
    add(map, "reReplaceAll", 3, |a| {
        let (pattern, replacement, subject) = (regex(string(&a[0])?)?, string(&a[1])?, string(&a[2])?);
        // Each byte may be replaced by the whole subject once per group reference: bounded before it is built.
        if (subject.len() + 1).saturating_mul(replacement.len() + 1) > OUTPUT_BYTES_MAX * 64 {
            return failed("reReplaceAll: the result could be too large");
        }
        Ok(Value::from(pattern.replace_all(subject, replacement).into_owned()))
    });
    add_any(map, "args", 0, |a| {
        let named = a.iter().enumerate().map(|(i, v)| (Arc::from(format!("arg{i}")), v.clone()));
        Ok(Value::from(named.collect::<BTreeMap<Arc<str>, Value>>()))
    });
}

fn samples(map: &mut FuncMap) {
    add(map, "first", 1, |a| match &a[0] {
        Value::List(items) => items.first().cloned().map_or_else(|| failed("first() called on vector with no elements"), Ok),
        other => failed(format!("first() called on {}", other.type_name())),
    });
    add(map, "label", 2, |a| text::get(&text::get(&a[1], "Labels")?, string(&a[0])?));
    add(map, "value", 1, |a| text::get(&a[0], "Value"));
    add(map, "strvalue", 1, |a| text::get(&text::get(&a[0], "Labels")?, "__value__"));
    add(map, "sortByLabel", 2, |a| {
        let Value::List(items) = &a[1] else { return failed("sortByLabel() called on something that is not a query result") };
        let name = string(&a[0])?;
        let mut keyed = Vec::with_capacity(items.len());
        for item in items.iter() {
            keyed.push((display(&text::get(&text::get(item, "Labels")?, name)?), item.clone()));
        }
        keyed.sort_by(|x, y| x.0.cmp(&y.0));
        Ok(Value::from(keyed.into_iter().map(|(_, item)| item).collect::<Vec<_>>()))
    });
}

/// Registers a function of exactly `arity` arguments.
fn add(map: &mut FuncMap, name: &'static str, arity: usize, function: impl Fn(&[Value]) -> Result<Value> + Send + Sync + 'static) {
    let checked = move |args: &[Value]| {
        if args.len() != arity {
            return failed(format!("wrong number of args for {name}: want {arity} got {}", args.len()));
        }
        bounded(name, function(args)?)
    };
    map.insert(name.to_owned(), Arc::new(checked));
}

/// Registers a function of at least `least` arguments.
fn add_any(map: &mut FuncMap, name: &'static str, least: usize, function: impl Fn(&[Value]) -> Result<Value> + Send + Sync + 'static) {
    let checked = move |args: &[Value]| {
        if args.len() < least {
            return failed(format!("wrong number of args for {name}: want at least {least} got {}", args.len()));
        }
        bounded(name, function(args)?)
    };
    map.insert(name.to_owned(), Arc::new(checked));
}

fn bounded(name: &str, value: Value) -> Result<Value> {
    match &value {
        Value::String(text) if text.len() > OUTPUT_BYTES_MAX => {
            failed(format!("{name}: the result is longer than {OUTPUT_BYTES_MAX} bytes"))
        }
        _ => Ok(value),
    }
}

fn string(value: &Value) -> Result<&str> {
    match value.as_str() {
        Some(text) => Ok(text),
        None => failed(format!("wrong type for value; expected string; got {}", value.type_name())),
    }
}

fn regex(pattern: &str) -> Result<regex::Regex> {
    match regex::RegexBuilder::new(pattern).size_limit(REGEX_BYTES_MAX).build() {
        Ok(regex) => Ok(regex),
        Err(error) => failed(format!("error parsing regexp: {error}")),
    }
}

/// The path of the graph page for an expression.
fn graph_link(expr: &str) -> String {
    format!("/graph?g0.expr={}&g0.tab=0", go::query_escape(expr))
}

/// The path of the table page for an expression; also what `generatorURL` points to.
pub(crate) fn table_link(expr: &str) -> String {
    format!("/graph?g0.expr={}&g0.tab=1", go::query_escape(expr))
}

/// The first cased letter of each word in upper case, the rest as it is. Digits, `_` and a single mark inside a word (`'`, `.`, `:`) do not end it.
fn title(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let (mut in_word, mut after_mark) = (false, false);
    for c in text.chars() {
        let mark = matches!(c, '\'' | '.' | ':' | '·' | '’');
        in_word &= !(after_mark && mark);
        if (c.is_lowercase() || c.is_uppercase()) && !in_word {
            out.extend(c.to_uppercase());
            in_word = true;
        } else {
            out.push(c);
            in_word &= mark || c.is_alphanumeric() || c == '_';
        }
        after_mark = mark;
    }
    out
}

/// `net.SplitHostPort`; `None` where Go returns an error.
fn split_host_port(text: &str) -> Option<(&str, &str)> {
    let (host, port) = text.rsplit_once(':')?;
    if let Some(inner) = host.strip_prefix('[') {
        let inner = inner.strip_suffix(']')?;
        return (!inner.contains(['[', ']'])).then_some((inner, port));
    }
    (!host.contains([':', '[', ']'])).then_some((host, port))
}

fn strip_port(host_port: &str) -> String {
    split_host_port(host_port).map_or(host_port, |(host, _)| host).to_owned()
}

fn strip_domain(host_port: &str) -> String {
    let (host, port) = split_host_port(host_port).unwrap_or((host_port, ""));
    if host.parse::<std::net::IpAddr>().is_ok() {
        return host_port.to_owned();
    }
    let short = host.split('.').next().unwrap_or_default();
    if port.is_empty() {
        return short.to_owned();
    }
    if short.contains(':') { format!("[{short}]:{port}") } else { format!("{short}:{port}") }
}
