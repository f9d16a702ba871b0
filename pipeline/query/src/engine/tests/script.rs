//! Reader of the test-script language that Prometheus users write their rule and query tests in.
//!
//! ```text
//!  load 30s
//!    http_requests_total{code="200"} 0+10x20 _ stale
//!  eval range from 0 to 5m step 1m rate(http_requests_total[2m])
//!    expect no_warn
//!    {code="200"} _ 0.3333 …
//! ```

use fletch_schemas::{Labels, stale_marker};
use regex::Regex;

/// One command of a script.
#[derive(Debug)]
pub(crate) enum Command {
    Clear,
    Load(Vec<LoadedSeries>),
    Eval(Box<Case>),
}

/// A series with its samples.
#[derive(Debug)]
pub(crate) struct LoadedSeries {
    pub(crate) labels: Labels,
    pub(crate) samples: Vec<(i64, f64)>,
}

/// One evaluation and what it has to give.
#[derive(Debug, Default)]
pub(crate) struct Case {
    pub(crate) line: usize,
    pub(crate) query: String,
    pub(crate) start_ms: i64,
    pub(crate) end_ms: i64,
    /// 0 for an instant query.
    pub(crate) step_ms: i64,
    pub(crate) ordered: bool,
    pub(crate) fail: Option<Message>,
    pub(crate) warn: Vec<Message>,
    pub(crate) info: Vec<Message>,
    pub(crate) no_warn: bool,
    pub(crate) no_info: bool,
    pub(crate) scalar: Option<f64>,
    pub(crate) text: Option<String>,
    /// The result of an instant query is a range vector with samples at these times.
    pub(crate) range_vector: Option<(i64, i64, i64)>,
    pub(crate) series: Vec<(Labels, Vec<Option<f64>>)>,
    /// A value of the expectation is a native histogram.
    pub(crate) histograms: bool,
}

/// A message that has to come.
#[derive(Debug)]
pub(crate) enum Message {
    Any,
    Text(String),
    Pattern(Regex),
}

impl Message {
    pub(crate) fn matches(&self, text: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Text(want) => text == want || text.rsplit_once(" (").is_some_and(|(bare, _)| bare == want),
            Self::Pattern(regex) => regex.is_match(text),
        }
    }
}

type Parsed<T> = Result<T, String>;

/// Reads a whole script.
pub(crate) fn parse(text: &str) -> Parsed<Vec<Command>> {
    let lines: Vec<&str> = text.lines().map(|l| l.trim()).map(|l| if l.starts_with('#') { "" } else { l }).collect();
    let mut commands = Vec::new();
    let mut at = 0;
    while at < lines.len() {
        let line = lines[at];
        let body = lines[at + 1..].iter().take_while(|l| !l.is_empty()).count();
        let rest = &lines[at + 1..at + 1 + body];
        let numbered = |e: String| format!("line {}: {e}", at + 1);
        match line.split_whitespace().next() {
            None => at += 1,
            Some("clear") => {
                commands.push(Command::Clear);
                at += 1;
            }
            Some(word) if word.starts_with("load") => {
                let step = line.split_whitespace().nth(1).ok_or_else(|| numbered("no step".to_owned()))?;
                let step = duration(step).map_err(numbered)?;
                commands.push(Command::Load(load(rest, step).map_err(numbered)?));
                at += 1 + body;
            }
            Some(word) if word.starts_with("eval") => {
                let mut case = head(line).map_err(numbered)?;
                case.line = at + 1;
                rest.iter().try_for_each(|l| expectation(l, &mut case)).map_err(numbered)?;
                commands.push(Command::Eval(Box::new(case)));
                at += 1 + body;
            }
            Some(_) => return Err(numbered(format!("unknown command `{line}`"))),
        }
    }
    Ok(commands)
}

fn load(lines: &[&str], step_ms: i64) -> Parsed<Vec<LoadedSeries>> {
    let mut out = Vec::new();
    for line in lines.iter().filter(|l| !l.split_whitespace().next().is_some_and(|w| w.ends_with("@st"))) {
        let (labels, values, _) = series(line)?;
        let samples = values.iter().enumerate().filter_map(|(i, v)| v.map(|v| (i as i64 * step_ms, v)));
        out.push(LoadedSeries { labels, samples: samples.collect() });
    }
    Ok(out)
}

fn head(line: &str) -> Parsed<Case> {
    let (command, rest) = line.split_once(char::is_whitespace).ok_or("no query")?;
    let mut case = Case::default();
    match command {
        "eval" => {}
        "eval_fail" => case.fail = Some(Message::Any),
        "eval_warn" => case.warn.push(Message::Any),
        "eval_info" => case.info.push(Message::Any),
        "eval_ordered" => case.ordered = true,
        other => return Err(format!("unknown command `{other}`")),
    }
    let rest = rest.trim();
    if let Some(rest) = rest.strip_prefix("instant") {
        let rest = rest.trim().strip_prefix("at").map_or(rest.trim(), str::trim);
        let (at, query) = rest.split_once(char::is_whitespace).ok_or("no query")?;
        case.start_ms = duration(at)?;
        case.end_ms = case.start_ms;
        case.query = query.trim().to_owned();
        return Ok(case);
    }
    let rest = rest.strip_prefix("range").ok_or("neither instant nor range")?;
    let words: Vec<&str> = rest.split_whitespace().take(6).collect();
    let ["from", from, "to", to, "step", step] = words.as_slice() else { return Err("from … to … step … expected".to_owned()) };
    (case.start_ms, case.end_ms, case.step_ms) = (duration(from)?, duration(to)?, duration(step)?);
    let after = step.as_ptr() as usize - line.as_ptr() as usize + step.len();
    case.query = line[after..].trim().to_owned();
    Ok(case)
}

fn expectation(line: &str, case: &mut Case) -> Parsed<()> {
    if let Some(text) = line.strip_prefix("expected_fail_message") {
        case.fail = Some(Message::Text(text.trim().to_owned()));
        return Ok(());
    }
    if let Some(pattern) = line.strip_prefix("expected_fail_regexp") {
        case.fail = Some(message(&format!("regex:{pattern}"))?);
        return Ok(());
    }
    if let Some(what) = line.strip_prefix("expect ") {
        return expect(what.trim(), case);
    }
    if let Ok(value) = number(line) {
        case.scalar = Some(value);
        return Ok(());
    }
    let (labels, values, histograms) = series(line)?;
    case.histograms |= histograms;
    case.series.push((labels, values));
    Ok(())
}

fn expect(what: &str, case: &mut Case) -> Parsed<()> {
    if let Some(rest) = what.strip_prefix("range vector") {
        let words: Vec<&str> = rest.split_whitespace().collect();
        let ["from", from, "to", to, "step", step] = words.as_slice() else { return Err("range vector from … expected".to_owned()) };
        case.range_vector = Some((duration(from)?, duration(to)?, duration(step)?));
        return Ok(());
    }
    if let Some(rest) = what.strip_prefix("string ") {
        let mut rest = rest.trim();
        case.text = Some(quoted(&mut rest)?);
        return Ok(());
    }
    let (kind, rest) = what.split_once(char::is_whitespace).unwrap_or((what, ""));
    match kind {
        "ordered" => case.ordered = true,
        "fail" => case.fail = Some(message(rest)?),
        "warn" => case.warn.push(message(rest)?),
        "info" => case.info.push(message(rest)?),
        "no_warn" => case.no_warn = true,
        "no_info" => case.no_info = true,
        other => return Err(format!("unknown expectation `{other}`")),
    }
    Ok(())
}

fn message(text: &str) -> Parsed<Message> {
    let text = text.trim();
    if let Some(message) = text.strip_prefix("msg:") {
        return Ok(Message::Text(message.trim().to_owned()));
    }
    match text.strip_prefix("regex:") {
        Some(pattern) => Regex::new(pattern.trim()).map(Message::Pattern).map_err(|e| e.to_string()),
        None => Ok(Message::Any),
    }
}

/// `5m`, `1h30m`, `-10s`, or a number of seconds; in milliseconds.
pub(crate) fn duration(text: &str) -> Parsed<i64> {
    if let Ok(seconds) = text.parse::<f64>() {
        return Ok((seconds * 1000.0).round() as i64);
    }
    let (negative, mut rest) = text.strip_prefix('-').map_or((false, text), |t| (true, t));
    let mut total = 0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or(format!("`{text}` is no duration"))?;
        let count: i64 = rest[..digits].parse().map_err(|_| format!("`{text}` is no duration"))?;
        let unit = &rest[digits..];
        let len = unit.find(|c: char| c.is_ascii_digit()).unwrap_or(unit.len());
        total += count
            * match &unit[..len] {
                "ms" => 1,
                "s" => 1_000,
                "m" => 60_000,
                "h" => 3_600_000,
                "d" => 86_400_000,
                "w" => 7 * 86_400_000,
                "y" => 365 * 86_400_000,
                _ => return Err(format!("`{text}` is no duration")),
            };
        rest = &unit[len..];
    }
    Ok(if negative { -total } else { total })
}

fn number(text: &str) -> Parsed<f64> {
    let text = text.trim();
    if let Some(hex) = text.strip_prefix("0x") {
        return i64::from_str_radix(hex, 16).map(|v| v as f64).map_err(|e| e.to_string());
    }
    text.parse().map_err(|_| format!("`{text}` is no number"))
}

/// `metric{a="b"} 1 2+3x4 _x2 stale`. Native histograms are told by the flag and become gaps.
pub(crate) fn series(line: &str) -> Parsed<(Labels, Vec<Option<f64>>, bool)> {
    let mut rest = line;
    let labels = metric(&mut rest)?;
    let mut values = Vec::new();
    let mut histograms = false;
    loop {
        rest = rest.trim_start();
        if rest.is_empty() {
            return Ok((labels, values, histograms));
        }
        if rest.starts_with("{{") {
            histograms = true;
            skip_histogram(&mut rest, &mut values)?;
            continue;
        }
        let end = rest.find(char::is_whitespace).unwrap_or(rest.len());
        item(&rest[..end], &mut values)?;
        rest = &rest[end..];
    }
}

fn skip_histogram(rest: &mut &str, values: &mut Vec<Option<f64>>) -> Parsed<()> {
    loop {
        let end = rest.find("}}").ok_or("unclosed histogram")?;
        *rest = &rest[end + 2..];
        match rest.strip_prefix(['+', '-']) {
            Some(more) if more.starts_with("{{") => *rest = more,
            _ => break,
        }
    }
    let end = rest.find(char::is_whitespace).unwrap_or(rest.len());
    let times = rest[..end].strip_prefix('x').map_or(Ok(0), |n| n.parse::<usize>().map_err(|e| e.to_string()))?;
    values.extend(std::iter::repeat_n(None, times + 1));
    *rest = &rest[end..];
    Ok(())
}

fn item(word: &str, values: &mut Vec<Option<f64>>) -> Parsed<()> {
    if let Some(rest) = word.strip_prefix('_') {
        let times = rest.strip_prefix('x').map_or(Ok(1), |n| n.parse::<usize>().map_err(|e| e.to_string()))?;
        values.extend(std::iter::repeat_n(None, times));
        return Ok(());
    }
    let (body, times) = match word.rsplit_once('x') {
        Some((body, n)) if !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()) => {
            (body, n.parse::<usize>().map_err(|e| e.to_string())? + 1)
        }
        _ => (word, 1),
    };
    let value = |text: &str| if text == "stale" { Ok(stale_marker()) } else { number(text) };
    // The sign of an increment is the last one that is neither the first character nor part of an exponent.
    let bytes = body.as_bytes();
    let sign = (1..bytes.len()).rev().find(|i| matches!(bytes[*i], b'+' | b'-') && !matches!(bytes[*i - 1], b'e' | b'E'));
    let (mut current, step) = match sign {
        Some(at) if times > 1 || body[at..].len() > 1 && number(body).is_err() => {
            // `1--2x3` adds -(-2).
            let (base, increment) = body.split_at(at);
            match base.strip_suffix(['-', '+']) {
                Some(shorter) if !shorter.is_empty() => {
                    let flip = if base.ends_with('-') { -1.0 } else { 1.0 };
                    (value(shorter)?, flip * number(increment)?)
                }
                _ => (value(base)?, number(increment)?),
            }
        }
        _ => (value(body)?, 0.0),
    };
    for _ in 0..times {
        values.push(Some(current));
        if step != 0.0 {
            current += step;
        }
    }
    Ok(())
}

fn metric(rest: &mut &str) -> Parsed<Labels> {
    let name_end = rest.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == ':')).unwrap_or(rest.len());
    let (name, after) = rest.split_at(name_end);
    let mut pairs: Vec<(String, String)> = Vec::new();
    if !name.is_empty() {
        pairs.push(("__name__".to_owned(), name.to_owned()));
    }
    *rest = after.trim_start();
    if rest.starts_with('{') && !rest.starts_with("{{") {
        *rest = rest[1..].trim_start();
        while !rest.starts_with('}') {
            pairs.push(label(rest)?);
            *rest = rest.trim_start().trim_start_matches(',').trim_start();
            if rest.is_empty() {
                return Err("unclosed label set".to_owned());
            }
        }
        *rest = &rest[1..];
    }
    Labels::from_pairs(pairs).map_err(|e| e.to_string())
}

fn label(rest: &mut &str) -> Parsed<(String, String)> {
    let is_quoted = rest.starts_with(['"', '\'', '`']);
    let name = if is_quoted {
        quoted(rest)?
    } else {
        let end = rest.find(|c: char| !(c.is_alphanumeric() || c == '_')).ok_or("unclosed label set")?;
        let (name, after) = rest.split_at(end);
        *rest = after;
        name.to_owned()
    };
    *rest = rest.trim_start();
    match rest.strip_prefix('=') {
        Some(after) => {
            *rest = after.trim_start();
            Ok((name, quoted(rest)?))
        }
        None if is_quoted => Ok(("__name__".to_owned(), name)),
        None => Err(format!("`=` expected at `{rest}`")),
    }
}

fn quoted(rest: &mut &str) -> Parsed<String> {
    let quote = rest.chars().next().filter(|c| matches!(c, '"' | '\'' | '`')).ok_or_else(|| format!("text expected at `{rest}`"))?;
    let mut out = String::new();
    let mut chars = rest[1..].char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            c if c == quote => {
                *rest = &rest[at + 2..];
                return Ok(out);
            }
            '\\' if quote != '`' => match chars.next().map(|(_, c)| c) {
                Some('n') => out.push('\n'),
                Some('t') => out.push('\t'),
                Some('r') => out.push('\r'),
                Some('x') => {
                    let code: String = (0..2).filter_map(|_| chars.next().map(|(_, c)| c)).collect();
                    let code = u8::from_str_radix(&code, 16).map_err(|e| e.to_string())?;
                    out.push(if code < 0x80 { char::from(code) } else { char::REPLACEMENT_CHARACTER });
                }
                Some(other) => out.push(other),
                None => break,
            },
            c => out.push(c),
        }
    }
    Err("unclosed text".to_owned())
}
