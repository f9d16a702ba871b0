//! Regular expressions of matchers and functions: Go's syntax (RE2) checked with Go's messages and rewritten for the `regex` crate.
//!
//! The two dialects differ in ways users meet: `foo{bar}` has a literal brace in Go, `\d` and `\w` are ASCII there, `[[a]` and `[a&&b]`
//! have no nested meaning, `\<` is a literal, `\Q…\E` exists. The rewritten pattern says the same in the syntax of the `regex` crate.
//!
//! # Invariants
//! - **R1** One pass, no recursion; the result is at most about ten times as long as the pattern.
//! - **R2** `matches_empty` is exact for a pattern that is anchored at both ends.
//!
//! # Not here
//! Compiling, matching, limits on size. The names of Unicode classes are those `regex-syntax` knows, a few more than Go's.

/// A pattern for the `regex` crate. Anchor it as `^(?s:…)$`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Translated {
    /// The pattern, not anchored.
    pub pattern: String,
    /// Whether the anchored pattern matches the empty string (which is the value of an absent label).
    pub matches_empty: bool,
}

/// Why a pattern is no regular expression; shows Go's message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("error parsing regexp: {reason}: `{part}`")]
pub struct RegexError {
    /// What is wrong.
    pub reason: &'static str,
    /// The part of the pattern that is at fault, or all of it.
    pub part: String,
}

const INVALID_ESCAPE: &str = "invalid escape sequence";
const INVALID_RANGE: &str = "invalid character class range";
const INVALID_CAPTURE: &str = "invalid named capture";
const INVALID_PERL: &str = "invalid or unsupported Perl syntax";
const INVALID_REPEAT: &str = "invalid repeat count";
const MISSING_ARGUMENT: &str = "missing argument to repetition operator";

/// Most repetitions a counted repetition may ask for, nested ones multiplied.
const REPEAT_MAX: u32 = 1000;
/// Deepest nesting of groups; the `regex` crate stops at 250.
const NESTING_MAX: usize = 200;

fn error(reason: &'static str, part: &str) -> RegexError {
    RegexError { reason, part: part.to_owned() }
}

/// Checks a pattern in Go's syntax and rewrites it.
///
/// # Errors
/// [`RegexError`] with the message Go's `regexp` package gives.
pub fn translate(pattern: &str) -> Result<Translated, RegexError> {
    let out = String::with_capacity(pattern.len() + 8);
    let mut translator = Translator { whole: pattern, rest: pattern, out, groups: vec![Group::default()], last_repeat: None };
    while !translator.rest.is_empty() {
        let repeat = translator.step()?;
        translator.last_repeat = repeat;
    }
    match translator.groups.as_slice() {
        [group] => Ok(Translated { matches_empty: group.clone().close().nullable, pattern: translator.out }),
        _ => Err(error("missing closing )", pattern)),
    }
}

/// What repetition operators need to know of the part before them.
#[derive(Debug, Clone, Copy)]
struct Atom {
    nullable: bool,
    /// Nested repetitions, multiplied.
    repeats: u32,
}

/// A group that is still open, or the whole pattern.
#[derive(Debug, Clone)]
struct Group {
    /// Whether a finished alternative matches the empty string.
    alternative_nullable: bool,
    /// Whether everything before `last` in this alternative does.
    before_nullable: bool,
    last: Option<Atom>,
    repeats: u32,
}

impl Default for Group {
    fn default() -> Self {
        Self { alternative_nullable: false, before_nullable: true, last: None, repeats: 1 }
    }
}

impl Group {
    fn branch_nullable(&self) -> bool {
        self.before_nullable && self.last.is_none_or(|atom| atom.nullable)
    }

    fn push(&mut self, atom: Atom) {
        self.before_nullable = self.branch_nullable();
        self.repeats = self.repeats.max(atom.repeats);
        self.last = Some(atom);
    }

    fn alternative(&mut self) {
        self.alternative_nullable |= self.branch_nullable();
        (self.before_nullable, self.last) = (true, None);
    }

    fn close(self) -> Atom {
        Atom { nullable: self.alternative_nullable || self.branch_nullable(), repeats: self.repeats }
    }
}

struct Translator<'a> {
    whole: &'a str,
    rest: &'a str,
    out: String,
    groups: Vec<Group>,
    /// The pattern from the repetition operator on that was read last, if nothing stands in between.
    last_repeat: Option<&'a str>,
}

/// The part of `from` that `to`, its tail, does not have.
fn consumed<'a>(from: &'a str, to: &str) -> &'a str {
    from.get(..from.len().saturating_sub(to.len())).unwrap_or(from)
}

impl<'a> Translator<'a> {
    fn group(&mut self) -> &mut Group {
        self.groups.last_mut().expect("the whole pattern is a group that is never closed")
    }

    fn next_char(&mut self) -> Option<char> {
        let mut chars = self.rest.chars();
        let c = chars.next()?;
        self.rest = chars.as_str();
        Some(c)
    }

    fn skip(&mut self, bytes: usize) {
        self.rest = self.rest.get(bytes..).unwrap_or_default();
    }

    fn atom(&mut self, nullable: bool) {
        self.group().push(Atom { nullable, repeats: 1 });
    }

    fn literal(&mut self, c: char) {
        if matches!(c, '\\' | '.' | '+' | '*' | '?' | '(' | ')' | '|' | '[' | ']' | '{' | '}' | '^' | '$') {
            self.out.push('\\');
        }
        self.out.push(c);
        self.atom(false);
    }

    fn assertion(&mut self, bytes: usize, text: &str, holds_on_empty: bool) {
        self.skip(bytes);
        self.out.push_str(text);
        self.atom(holds_on_empty);
    }

    /// Reads one element; returns where it began if it was a repetition operator.
    fn step(&mut self) -> Result<Option<&'a str>, RegexError> {
        let before = self.rest;
        match self.rest.as_bytes().first() {
            Some(b'(') => self.open()?,
            Some(b'|') => {
                self.skip(1);
                self.out.push('|');
                self.group().alternative();
            }
            Some(b')') => self.close()?,
            Some(b'^') => self.assertion(1, "^", true),
            Some(b'$') => self.assertion(1, "$", true),
            Some(b'.') => self.assertion(1, ".", false),
            Some(b'[') => self.class()?,
            Some(op @ (b'*' | b'+' | b'?')) => {
                self.skip(1);
                let (min, max) = match op {
                    b'*' => (0, None),
                    b'+' => (1, None),
                    _ => (0, Some(1)),
                };
                self.repeat(before, min, max)?;
                return Ok(Some(before));
            }
            Some(b'{') => return self.counted_repeat(),
            Some(b'\\') => self.escape()?,
            _ => {
                if let Some(c) = self.next_char() {
                    self.literal(c);
                }
            }
        }
        Ok(None)
    }

    fn open(&mut self) -> Result<(), RegexError> {
        if self.rest.starts_with("(?") {
            return self.perl_group();
        }
        self.skip(1);
        self.push_group("(")
    }

    fn push_group(&mut self, text: &str) -> Result<(), RegexError> {
        if self.groups.len() > NESTING_MAX {
            return Err(error("expression nests too deeply", self.whole));
        }
        self.out.push_str(text);
        self.groups.push(Group::default());
        Ok(())
    }

    fn close(&mut self) -> Result<(), RegexError> {
        self.skip(1);
        if self.groups.len() == 1 {
            return Err(error("unexpected )", self.whole));
        }
        self.out.push(')');
        if let Some(group) = self.groups.pop() {
            self.group().push(group.close());
        }
        Ok(())
    }

    /// `(?P<name>`, `(?<name>`, `(?flags)`, `(?flags:`.
    fn perl_group(&mut self) -> Result<(), RegexError> {
        let before = self.rest;
        let long = before.len() > 4 && before.starts_with("(?P<");
        if long || (before.len() > 3 && before.starts_with("(?<")) {
            let name_at = if long { 4 } else { 3 };
            let Some(end) = before.find('>') else { return Err(error(INVALID_CAPTURE, before)) };
            let name = before.get(name_at..end).unwrap_or_default();
            if name.is_empty() || !name.bytes().all(is_word) {
                return Err(error(INVALID_CAPTURE, before.get(..=end).unwrap_or(before)));
            }
            self.skip(end + 1);
            // Go allows a name to begin with a digit. The `regex` crate does not and refuses to compile such a pattern.
            return self.push_group(&format!("(?P<{name}>"));
        }
        self.skip(2);
        self.flags(before)
    }

    fn flags(&mut self, before: &'a str) -> Result<(), RegexError> {
        let (mut on, mut off): (Vec<char>, Vec<char>) = (Vec::new(), Vec::new());
        let (mut negative, mut seen) = (false, false);
        while let Some(c) = self.next_char() {
            match c {
                'i' | 'm' | 's' | 'U' => {
                    seen = true;
                    let (to, from) = if negative { (&mut off, &mut on) } else { (&mut on, &mut off) };
                    from.retain(|f| *f != c);
                    if !to.contains(&c) {
                        to.push(c);
                    }
                }
                '-' if !negative => (negative, seen) = (true, false),
                ':' | ')' if !negative || seen => return self.push_flags(&on, &off, c == ':'),
                _ => break,
            }
        }
        Err(error(INVALID_PERL, consumed(before, self.rest)))
    }

    fn push_flags(&mut self, on: &[char], off: &[char], group: bool) -> Result<(), RegexError> {
        let mut text = String::from("(?");
        text.extend(on);
        if !off.is_empty() {
            text.push('-');
            text.extend(off);
        }
        if group {
            text.push(':');
            return self.push_group(&text);
        }
        if text.len() > 2 {
            text.push(')');
            self.out.push_str(&text);
        }
        Ok(())
    }

    /// `{2}`, `{2,}`, `{2,5}`; anything else is a literal brace.
    fn counted_repeat(&mut self) -> Result<Option<&'a str>, RegexError> {
        let before = self.rest;
        let Some((min, max, behind)) = parse_repeat(before) else {
            self.skip(1);
            self.literal('{');
            return Ok(None);
        };
        self.rest = behind;
        if min > REPEAT_MAX || max.is_some_and(|max| max > REPEAT_MAX || min > max) {
            return Err(error(INVALID_REPEAT, consumed(before, behind)));
        }
        self.repeat(before, min, max)?;
        Ok(Some(before))
    }

    /// Applies the repetition operator that began at `before` and is read up to its optional `?`.
    fn repeat(&mut self, before: &'a str, min: u32, max: Option<u32>) -> Result<(), RegexError> {
        if self.rest.starts_with('?') {
            self.skip(1);
        }
        let rest = self.rest;
        if let Some(last) = self.last_repeat {
            return Err(error("invalid nested repetition operator", consumed(last, rest)));
        }
        let operator = consumed(before, rest);
        let group = self.group();
        let Some(atom) = group.last.as_mut() else { return Err(error(MISSING_ARGUMENT, operator)) };
        atom.nullable |= min == 0;
        if operator.starts_with('{') {
            atom.repeats = match max.unwrap_or(min) {
                0 => 1,
                count => atom.repeats.saturating_mul(count),
            };
            if atom.repeats > REPEAT_MAX && (min >= 2 || max.is_some_and(|max| max >= 2)) {
                return Err(error(INVALID_REPEAT, operator));
            }
        }
        group.repeats = group.repeats.max(atom.repeats);
        self.out.push_str(operator);
        Ok(())
    }

    fn escape(&mut self) -> Result<(), RegexError> {
        match self.rest.as_bytes().get(1) {
            Some(b'A') => self.assertion(2, "\\A", true),
            Some(b'z') => self.assertion(2, "\\z", true),
            Some(b'b') => self.assertion(2, "(?-u:\\b)", false),
            Some(b'B') => self.assertion(2, "(?-u:\\B)", true),
            Some(b'C') => return Err(error(INVALID_ESCAPE, "\\C")),
            Some(b'Q') => {
                let quoted = self.rest.get(2..).unwrap_or_default();
                let (literal, rest) = quoted.split_once("\\E").unwrap_or((quoted, ""));
                self.rest = rest;
                literal.chars().for_each(|c| self.literal(c));
            }
            _ if self.class_escape(false)? => self.atom(false),
            _ => {
                let c = self.char_escape()?;
                self.literal(c);
            }
        }
        Ok(())
    }

    /// `\d`, `\pL` and the like; `false` and nothing taken if it is none.
    fn class_escape(&mut self, in_class: bool) -> Result<bool, RegexError> {
        let bytes = self.rest.as_bytes();
        let (ranges, negated) = match bytes {
            [b'\\', b'p' | b'P', ..] => return self.unicode_class().map(|()| true),
            [b'\\', kind @ (b'd' | b'D'), ..] => ("0-9", *kind == b'D'),
            [b'\\', kind @ (b's' | b'S'), ..] => ("\\t\\n\\x0c\\r ", *kind == b'S'),
            [b'\\', kind @ (b'w' | b'W'), ..] => ("0-9A-Za-z_", *kind == b'W'),
            _ => return Ok(false),
        };
        self.skip(2);
        let text = match (in_class, negated) {
            (true, false) => ranges.to_owned(),
            (_, true) => format!("[^{ranges}]"),
            (false, false) => format!("[{ranges}]"),
        };
        self.out.push_str(&text);
        Ok(true)
    }

    /// `\pL`, `\p{Greek}`, `\P{Greek}`, `\p{^Greek}`.
    fn unicode_class(&mut self) -> Result<(), RegexError> {
        let before = self.rest;
        let mut negated = before.starts_with("\\P");
        self.skip(2);
        let name = match self.next_char() {
            None => return Err(error(INVALID_RANGE, before)),
            Some('{') => {
                let Some(end) = self.rest.find('}') else { return Err(error(INVALID_RANGE, before)) };
                let name = self.rest.get(..end).unwrap_or_default();
                self.skip(end + 1);
                name
            }
            Some(_) => consumed(before, self.rest).get(2..).unwrap_or_default(),
        };
        let plain = name.strip_prefix('^').unwrap_or(name);
        negated ^= plain.len() != name.len();
        let known = plain.bytes().all(is_word) && regex_syntax::parse(&format!("\\p{{{plain}}}")).is_ok();
        if !known {
            return Err(error(INVALID_RANGE, consumed(before, self.rest)));
        }
        self.out.push_str(if negated { "\\P{" } else { "\\p{" });
        self.out.push_str(plain);
        self.out.push('}');
        Ok(())
    }

    /// An escape that stands for one character.
    fn char_escape(&mut self) -> Result<char, RegexError> {
        let before = self.rest;
        self.skip(1);
        let Some(c) = self.next_char() else { return Err(error("trailing backslash at end of expression", "")) };
        let found = match c {
            'a' => Some('\x07'),
            'f' => Some('\x0c'),
            'n' => Some('\n'),
            'r' => Some('\r'),
            't' => Some('\t'),
            'v' => Some('\x0b'),
            'x' => self.hex_escape(),
            '0' => Some(self.octal_escape(0)),
            '1'..='7' if self.rest.starts_with(|c| matches!(c, '0'..='7')) => Some(self.octal_escape(u32::from(c) - u32::from('0'))),
            c if c.is_ascii() && !c.is_ascii_alphanumeric() => Some(c),
            _ => None,
        };
        found.ok_or_else(|| error(INVALID_ESCAPE, consumed(before, self.rest)))
    }

    fn octal_escape(&mut self, first: u32) -> char {
        let mut code = first;
        for _ in 0..2 {
            let Some(digit) = self.rest.chars().next().and_then(|c| c.to_digit(8)) else { break };
            self.skip(1);
            code = code * 8 + digit;
        }
        char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER)
    }

    /// `\x7f` or `\x{10ffff}`, behind the `x`.
    fn hex_escape(&mut self) -> Option<char> {
        let first = self.next_char()?;
        if first != '{' {
            let second = self.next_char()?;
            return char::from_u32(first.to_digit(16)? * 16 + second.to_digit(16)?);
        }
        let (mut code, mut digits) = (0u32, 0);
        loop {
            let c = self.next_char()?;
            if c == '}' {
                return char::from_u32(code).filter(|_| digits > 0);
            }
            code = code * 16 + c.to_digit(16)?;
            digits += 1;
            if code > u32::from(char::MAX) {
                return None;
            }
        }
    }

    /// `[…]`, whose bracket is not taken yet.
    fn class(&mut self) -> Result<(), RegexError> {
        let whole = self.rest;
        self.skip(1);
        self.out.push('[');
        if self.rest.starts_with('^') {
            self.skip(1);
            self.out.push('^');
        }
        let mut first = true;
        while first || !self.rest.starts_with(']') {
            first = false;
            self.class_item(whole)?;
        }
        self.skip(1);
        self.out.push(']');
        self.atom(false);
        Ok(())
    }

    fn class_item(&mut self, whole: &'a str) -> Result<(), RegexError> {
        if self.named_class()? || self.class_escape(true)? {
            return Ok(());
        }
        let before = self.rest;
        let low = self.class_char(whole)?;
        push_class_char(&mut self.out, low);
        // `-` is a literal as the last one.
        if self.rest.len() < 2 || !self.rest.starts_with('-') || self.rest.starts_with("-]") {
            return Ok(());
        }
        self.skip(1);
        let high = self.class_char(whole)?;
        if high < low {
            return Err(error(INVALID_RANGE, consumed(before, self.rest)));
        }
        self.out.push('-');
        push_class_char(&mut self.out, high);
        Ok(())
    }

    fn class_char(&mut self, whole: &str) -> Result<char, RegexError> {
        if self.rest.starts_with('\\') {
            return self.char_escape();
        }
        self.next_char().ok_or_else(|| error("missing closing ]", whole))
    }

    /// `[:alpha:]` inside of a class; both dialects know the same names.
    fn named_class(&mut self) -> Result<bool, RegexError> {
        const NAMES: [&str; 14] =
            ["alnum", "alpha", "ascii", "blank", "cntrl", "digit", "graph", "lower", "print", "punct", "space", "upper", "word", "xdigit"];
        let Some(end) = self.rest.strip_prefix("[:").and_then(|rest| rest.find(":]")) else { return Ok(false) };
        let (text, rest) = self.rest.split_at(end + 4);
        let name = text.get(2..end + 2).unwrap_or_default();
        if !NAMES.contains(&name.strip_prefix('^').unwrap_or(name)) {
            return Err(error(INVALID_RANGE, text));
        }
        self.rest = rest;
        self.out.push_str(text);
        Ok(true)
    }
}

fn push_class_char(out: &mut String, c: char) {
    if matches!(c, '\\' | '[' | ']' | '^' | '-' | '&' | '~') {
        out.push('\\');
    }
    out.push(c);
}

/// Smallest and largest count and the text behind; a number too long for a count is above every limit.
fn parse_repeat(text: &str) -> Option<(u32, Option<u32>, &str)> {
    let (min, rest) = parse_count(text.strip_prefix('{')?)?;
    if let Some(rest) = rest.strip_prefix('}') {
        return Some((min, Some(min), rest));
    }
    let rest = rest.strip_prefix(',')?;
    if let Some(rest) = rest.strip_prefix('}') {
        return Some((min, None, rest));
    }
    let (max, rest) = parse_count(rest)?;
    Some((min, Some(max), rest.strip_prefix('}')?))
}

fn parse_count(text: &str) -> Option<(u32, &str)> {
    let (digits, rest) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    if digits.is_empty() || (digits.len() > 1 && digits.starts_with('0')) {
        return None;
    }
    Some((digits.parse().unwrap_or(u32::MAX), rest))
}

/// ASCII letters, digits and `_`.
fn is_word(b: u8) -> bool {
    b.is_ascii_alphanumeric() || b == b'_'
}

#[cfg(test)]
mod tests;
