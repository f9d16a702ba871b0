//! Text to tokens, one at a time. What a character means depends on whether it stands in braces, in brackets or outside.
//!
//! # Invariants
//! - Every token is a range of the text on character boundaries; only [`Kind::Eof`] is empty.
//! - Word characters are ASCII letters, digits and `_`; anything else needs quotes.
//!
//! # When it fails
//! The first bad character ends the query: the parser never asks for a token behind an error.

use crate::ast::{BinaryOp, Span};
use crate::error::ParseError;
use crate::quote::{code_point, is_word, quote, quote_char};
use crate::token::{Keyword, Kind, Token, duration_word, word};

pub(crate) struct Lexer<'a> {
    query: &'a str,
    bytes: &'a [u8],
    pos: usize,
    /// Start of the token that is being read: where errors point to.
    start: usize,
    parens: u32,
    in_braces: bool,
    in_brackets: bool,
    /// Between `[` and the first number only durations, their operators and their functions may stand.
    in_duration: bool,
    colon_seen: bool,
    duration_seen: bool,
}

type Lexed = Result<Kind, Box<ParseError>>;

impl<'a> Lexer<'a> {
    pub(crate) fn new(query: &'a str) -> Self {
        Self {
            query,
            bytes: query.as_bytes(),
            pos: 0,
            start: 0,
            parens: 0,
            in_braces: false,
            in_brackets: false,
            in_duration: false,
            colon_seen: false,
            duration_seen: false,
        }
    }

    /// The next token; [`Kind::Eof`] again and again at the end.
    pub(crate) fn next_token(&mut self) -> Result<Token, Box<ParseError>> {
        self.skip_blank();
        self.start = self.pos;
        let kind = if self.in_braces {
            self.inside_braces()?
        } else if self.in_duration {
            self.inside_duration()?
        } else {
            self.statement()?
        };
        Ok(Token { kind, span: Span::new(self.start as u32, self.pos as u32) })
    }

    /// Spaces and, where they are allowed, comments.
    fn skip_blank(&mut self) {
        while let Some(b) = self.peek() {
            match b {
                b' ' | b'\t' | b'\n' | b'\r' => self.pos += 1,
                b'#' if !self.in_duration => {
                    let rest = self.bytes.get(self.pos..).unwrap_or_default();
                    self.pos += rest.iter().position(|b| matches!(b, b'\n' | b'\r')).unwrap_or(rest.len());
                }
                _ => break,
            }
        }
    }

    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.pos).copied()
    }

    /// Takes the next byte if it is one of these ASCII bytes.
    fn accept(&mut self, set: &[u8]) -> bool {
        let hit = self.peek().is_some_and(|b| set.contains(&b));
        self.pos += usize::from(hit);
        hit
    }

    /// The character at the current position.
    fn peek_char(&self) -> Option<char> {
        self.query.get(self.pos..).and_then(|rest| rest.chars().next())
    }

    fn error(&self, message: impl Into<String>) -> Box<ParseError> {
        let span = Span::new(self.start as u32, self.bytes.len() as u32);
        Box::new(ParseError::new(self.query, span, message))
    }

    /// An error behind the character that is already taken.
    fn error_behind(&mut self, message: String) -> Box<ParseError> {
        self.start = self.pos;
        self.error(message)
    }

    fn one(&mut self, kind: Kind) -> Lexed {
        self.pos += 1;
        Ok(kind)
    }

    fn op(&mut self, op: BinaryOp) -> Lexed {
        self.one(Kind::Op(op))
    }

    fn statement(&mut self) -> Lexed {
        let Some(b) = self.peek() else { return self.end_of_input() };
        match b {
            b',' => self.one(Kind::Comma),
            b'*' => self.op(BinaryOp::Mul),
            b'/' => self.op(BinaryOp::Div),
            b'%' => self.op(BinaryOp::Mod),
            b'+' => self.op(BinaryOp::Add),
            b'-' => self.op(BinaryOp::Sub),
            b'^' => self.op(BinaryOp::Pow),
            b'@' => self.one(Kind::At),
            b'=' | b'!' | b'<' | b'>' => self.comparison(b),
            b'0'..=b'9' => self.number_or_duration(),
            b'.' if self.bytes.get(self.pos + 1).is_some_and(u8::is_ascii_digit) => self.number_or_duration(),
            b'"' | b'\'' => self.string(b),
            b'`' => self.raw_string(),
            b'a'..=b'z' | b'A'..=b'Z' | b'_' | b':' if self.in_brackets => self.word_in_brackets(b),
            b'a'..=b'z' | b'A'..=b'Z' | b'_' | b':' => Ok(self.word()),
            b'(' => self.left_paren(),
            b')' => self.right_paren(),
            b'{' => {
                self.in_braces = true;
                self.one(Kind::LeftBrace)
            }
            b'[' => self.left_bracket(),
            b']' => self.right_bracket(),
            _ => Err(self.error(format!("unexpected character: {}", quote_char(self.peek_char())))),
        }
    }

    fn end_of_input(&self) -> Lexed {
        if self.parens != 0 {
            return Err(self.error("unclosed left parenthesis"));
        }
        if self.in_brackets {
            return Err(self.error("unclosed left bracket"));
        }
        Ok(Kind::Eof)
    }

    fn comparison(&mut self, first: u8) -> Lexed {
        self.pos += 1;
        Ok(match (first, self.peek()) {
            (b'=', Some(b'=')) => self.op(BinaryOp::Eq)?,
            (b'=', Some(b'~')) => return Err(self.error("unexpected character after '=': '~'")),
            (b'=', _) => Kind::Equal,
            (b'!', Some(b'=')) => self.op(BinaryOp::Ne)?,
            (b'!', _) => return Err(self.error(format!("unexpected character after '!': {}", quote_char(self.peek_char())))),
            (b'<', Some(b'=')) => self.op(BinaryOp::Le)?,
            (b'<', Some(b'/')) => self.op(BinaryOp::TrimUpper)?,
            (b'<', _) => Kind::Op(BinaryOp::Lt),
            (_, Some(b'=')) => self.op(BinaryOp::Ge)?,
            (_, Some(b'/')) => self.op(BinaryOp::TrimLower)?,
            _ => Kind::Op(BinaryOp::Gt),
        })
    }

    fn left_paren(&mut self) -> Lexed {
        self.parens += 1;
        self.one(Kind::LeftParen)
    }

    fn right_paren(&mut self) -> Lexed {
        self.pos += 1;
        match self.parens.checked_sub(1) {
            Some(parens) => self.parens = parens,
            None => return Err(self.error_behind("unexpected right parenthesis ')'".to_owned())),
        }
        Ok(Kind::RightParen)
    }

    fn left_bracket(&mut self) -> Lexed {
        if self.in_brackets {
            return Err(self.error("unexpected left bracket '['"));
        }
        (self.in_brackets, self.in_duration) = (true, true);
        (self.colon_seen, self.duration_seen) = (false, false);
        self.one(Kind::LeftBracket)
    }

    fn right_bracket(&mut self) -> Lexed {
        if !self.in_brackets {
            return Err(self.error("unexpected right bracket ']'"));
        }
        (self.in_brackets, self.in_duration) = (false, false);
        self.one(Kind::RightBracket)
    }

    /// Inside braces every word is a label name.
    fn inside_braces(&mut self) -> Lexed {
        let Some(b) = self.peek() else { return Err(self.error("unexpected end of input inside braces")) };
        match b {
            b'a'..=b'z' | b'A'..=b'Z' | b'_' => {
                self.skip_alphanumeric();
                Ok(Kind::Identifier)
            }
            b',' => self.one(Kind::Comma),
            b'"' | b'\'' => self.string(b),
            b'`' => self.raw_string(),
            b'=' => {
                self.pos += 1;
                Ok(if self.accept(b"~") { Kind::EqualRegex } else { Kind::Equal })
            }
            b'!' => {
                self.pos += 1;
                match self.peek() {
                    Some(b'~') => self.one(Kind::NotRegex),
                    Some(b'=') => self.op(BinaryOp::Ne),
                    _ => Err(self.error(format!("unexpected character after '!' inside braces: {}", quote_char(self.peek_char())))),
                }
            }
            b'{' => Err(self.error("unexpected left brace '{'")),
            b'}' => {
                self.in_braces = false;
                self.one(Kind::RightBrace)
            }
            _ => Err(self.error(format!("unexpected character inside braces: {}", quote_char(self.peek_char())))),
        }
    }

    /// Between `[` or `:` and the first number behind it.
    fn inside_duration(&mut self) -> Lexed {
        let Some(b) = self.peek() else { return Err(self.error("unexpected end of input in duration expression")) };
        match b {
            b']' => self.right_bracket(),
            b':' => {
                self.pos += 1;
                if !self.duration_seen {
                    return Err(self.error_behind("unexpected colon before duration in duration expression".to_owned()));
                }
                if self.colon_seen {
                    return Err(self.error_behind("unexpected repeated colon in duration expression".to_owned()));
                }
                self.colon_seen = true;
                Ok(Kind::Colon)
            }
            b'(' => self.left_paren(),
            b')' => self.right_paren(),
            b'+' => self.op(BinaryOp::Add),
            b'-' => self.op(BinaryOp::Sub),
            b'*' => self.op(BinaryOp::Mul),
            b'/' => self.op(BinaryOp::Div),
            b'%' => self.op(BinaryOp::Mod),
            b'^' => self.op(BinaryOp::Pow),
            b',' => self.one(Kind::Comma),
            b'0'..=b'9' => self.first_number(),
            b'.' if self.bytes.get(self.pos + 1).is_some_and(u8::is_ascii_digit) => self.first_number(),
            _ => {
                if starts_duration_word(b)
                    && let Some(kind) = self.duration_function()
                {
                    self.duration_seen = true;
                    return Ok(kind);
                }
                self.pos = self.start;
                Err(self.error(format!("unexpected character in duration expression: {}", quote_char(self.peek_char()))))
            }
        }
    }

    fn first_number(&mut self) -> Lexed {
        self.duration_seen = true;
        let kind = self.number_or_duration()?;
        self.in_duration = false;
        Ok(kind)
    }

    /// Inside brackets, behind the first number.
    fn word_in_brackets(&mut self, first: u8) -> Lexed {
        if first == b':' {
            if self.colon_seen {
                return Err(self.error("unexpected colon ':'"));
            }
            self.colon_seen = true;
            return self.one(Kind::Colon);
        }
        if starts_duration_word(first)
            && let Some(kind) = self.duration_function()
        {
            return Ok(kind);
        }
        Err(self.error(format!("unexpected character: {}, expected ':'", quote_char(Some(char::from(first))))))
    }

    /// `step`, `range`, `min_of`, `max_of`; the position is behind the word even if it is none of them.
    fn duration_function(&mut self) -> Option<Kind> {
        while self.peek().is_some_and(|b| b.is_ascii_alphabetic() || b == b'_') {
            self.pos += 1;
        }
        duration_word(&self.bytes.get(self.start..self.pos)?.to_ascii_lowercase())
    }

    fn skip_alphanumeric(&mut self) {
        while self.peek().is_some_and(is_word) {
            self.pos += 1;
        }
    }

    fn word(&mut self) -> Kind {
        let mut colon = false;
        while let Some(b) = self.peek().filter(|b| is_word(*b) || *b == b':') {
            colon |= b == b':';
            self.pos += 1;
        }
        if colon {
            return Kind::MetricIdentifier;
        }
        match self.bytes.get(self.start..self.pos).and_then(word) {
            // Metrics may have these names: they are modifiers only before a parenthesis.
            Some(Kind::Keyword(Keyword::Fill | Keyword::FillLeft | Keyword::FillRight)) if !self.paren_follows() => Kind::Identifier,
            Some(kind) => kind,
            None => Kind::Identifier,
        }
    }

    fn paren_follows(&self) -> bool {
        let rest = self.bytes.get(self.pos..).unwrap_or_default();
        rest.iter().find(|b| !matches!(b, b' ' | b'\t' | b'\n' | b'\r')) == Some(&b'(')
    }

    fn number_or_duration(&mut self) -> Lexed {
        if self.scan_number() {
            return Ok(Kind::Number);
        }
        if self.scan_duration_units() {
            return Ok(Kind::Duration);
        }
        let text = self.query.get(self.start..self.pos).unwrap_or_default();
        Err(self.error(format!("bad number or duration syntax: {}", quote(text))))
    }

    /// Takes what looks like a number. `false` if it is none; then the position is behind the part that could have been one.
    fn scan_number(&mut self) -> bool {
        let hex = self.accept(b"0") && self.accept(b"xX");
        if hex {
            self.accept(b"_");
        }
        let digits: &[u8] = if hex { b"0123456789abcdefABCDEF" } else { b"0123456789" };
        self.accept(b".");
        self.accept(digits);
        let (mut dot_seen, mut exponent_seen) = (false, false);
        while let Some(b) = self.peek() {
            match b {
                b'.' if dot_seen => {
                    self.pos += 1;
                    return false;
                }
                b'e' | b'E' if exponent_seen => {
                    self.pos += 1;
                    return false;
                }
                b'.' => {
                    dot_seen = true;
                    self.pos += 1;
                    // There are no hexadecimal fractions.
                    if self.accept(b"_.") || hex {
                        return false;
                    }
                }
                b'e' | b'E' | b'_' => {
                    self.pos += 1;
                    if b != b'_' {
                        exponent_seen = true;
                        self.accept(b"+-");
                    }
                    if self.accept(b"._eE") || self.peek().is_none() {
                        return false;
                    }
                }
                _ if digits.contains(&b) => while self.accept(digits) {},
                _ => break,
            }
        }
        !self.peek().is_some_and(is_word)
    }

    /// Takes the rest of a duration whose first digits are taken. Whether units are known and in order is checked later.
    fn scan_duration_units(&mut self) -> bool {
        if !self.accept(b"smhdwy") {
            return false;
        }
        self.accept(b"s");
        while self.accept(b"0123456789") {
            while self.accept(b"0123456789") {}
            if !self.accept(b"smhdw") {
                return false;
            }
            self.accept(b"s");
        }
        let ends = !self.peek().is_some_and(is_word);
        // The message shows the character that does not fit.
        self.pos += usize::from(!ends);
        ends
    }

    fn string(&mut self, quote: u8) -> Lexed {
        self.pos += 1;
        loop {
            let c = self.peek_char();
            self.pos += c.map_or(0, char::len_utf8);
            match c {
                None | Some('\n') => return Err(self.error("unterminated quoted string")),
                Some(char::REPLACEMENT_CHARACTER) => return Err(self.error("invalid UTF-8 rune")),
                Some('\\') => self.escape(quote)?,
                Some(c) if c == char::from(quote) => return Ok(Kind::String),
                Some(_) => {}
            }
        }
    }

    fn raw_string(&mut self) -> Lexed {
        self.pos += 1;
        loop {
            let c = self.peek_char();
            self.pos += c.map_or(0, char::len_utf8);
            match c {
                None => return Err(self.error("unterminated raw string")),
                Some(char::REPLACEMENT_CHARACTER) => return Err(self.error("invalid UTF-8 rune")),
                Some('`') => return Ok(Kind::String),
                Some(_) => {}
            }
        }
    }

    /// Checks an escape whose backslash is taken.
    fn escape(&mut self, quote: u8) -> Result<(), Box<ParseError>> {
        let Some(c) = self.peek_char() else { return Err(self.error("escape sequence not terminated")) };
        let (count, radix, code_max) = match c {
            'a' | 'b' | 'f' | 'n' | 'r' | 't' | 'v' | '\\' => {
                self.pos += 1;
                return Ok(());
            }
            _ if c == char::from(quote) => {
                self.pos += 1;
                return Ok(());
            }
            '0'..='7' => (3, 8, 255),
            'x' => (2, 16, 255),
            'u' => (4, 16, u32::from(char::MAX)),
            'U' => (8, 16, u32::from(char::MAX)),
            _ => return Err(self.error(format!("unknown escape sequence {}", code_point(c)))),
        };
        self.pos += usize::from(radix == 16);
        let mut code = 0u32;
        for _ in 0..count {
            let Some(c) = self.peek_char() else { return Err(self.error("escape sequence not terminated")) };
            let Some(digit) = c.to_digit(radix) else {
                return Err(self.error(format!("illegal character {} in escape sequence", code_point(c))));
            };
            code = code.wrapping_mul(radix).wrapping_add(digit);
            self.pos += 1;
        }
        if code > code_max || (0xD800..0xE000).contains(&code) {
            return Err(self.error("escape sequence is an invalid Unicode code point"));
        }
        Ok(())
    }
}

fn starts_duration_word(b: u8) -> bool {
    matches!(b.to_ascii_lowercase(), b's' | b'r' | b'm')
}
