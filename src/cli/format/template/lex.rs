//! Cuts a template into text and the words of its actions.
//!
//! Follows Go's `text/template/parse`: trim markers, comments, blanks that separate operands. It knows no grammar.

use super::{Escapes, Flaw, number, suggestion};

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Kind {
    Text(String),
    /// `{{`
    Open,
    /// `}}`
    Close,
    Space,
    Dot,
    /// `.Name`
    Field(String),
    /// `$name`, with the dollar sign
    Variable(String),
    Word(String),
    Str(String),
    Int(i64),
    Float(f64),
    Pipe,
    LeftParen,
    RightParen,
    Comma,
    /// `:=`
    Declare,
    /// `=`
    Assign,
    End,
}

#[derive(Clone, Debug)]
pub(super) struct Token {
    pub(super) kind: Kind,
    /// The byte it starts at.
    pub(super) at: usize,
}

/// Cuts a whole template; the last token is [`Kind::End`].
pub(super) fn lex(source: &str, escapes: Escapes) -> Result<Vec<Token>, Flaw> {
    let mut lexer = Lexer { source, at: 0, tokens: Vec::new() };
    let mut trim_start = false;
    while lexer.at < source.len() {
        let start = lexer.at;
        let end = source[start..].find("{{").map_or(source.len(), |found| start + found);
        let open = source.get(end + 2..).unwrap_or_default();
        let trim_end = open.strip_prefix('-').is_some_and(|rest| rest.starts_with(is_space));
        lexer.text(&source[start..end], trim_start, trim_end, escapes);
        if end == source.len() {
            break;
        }
        lexer.at = end + 2 + if trim_end { 2 } else { 0 };
        trim_start = if source[lexer.at..].starts_with("/*") { lexer.comment(end)? } else { lexer.action(end)? };
    }
    lexer.push(Kind::End, source.len());
    Ok(lexer.tokens)
}

fn is_space(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\r' | '\n')
}

fn is_word(c: char) -> bool {
    c == '_' || c.is_alphanumeric()
}

struct Lexer<'a> {
    source: &'a str,
    at: usize,
    tokens: Vec<Token>,
}

impl Lexer<'_> {
    fn rest(&self) -> &str {
        &self.source[self.at..]
    }

    fn push(&mut self, kind: Kind, at: usize) {
        self.tokens.push(Token { kind, at });
    }

    fn text(&mut self, mut text: &str, trim_start: bool, trim_end: bool, escapes: Escapes) {
        if trim_start {
            text = text.trim_start_matches(is_space);
        }
        if trim_end {
            text = text.trim_end_matches(is_space);
        }
        if text.is_empty() {
            return;
        }
        let text = match escapes {
            Escapes::Kept => text.to_owned(),
            Escapes::Replaced => text.replace("\\t", "\t").replace("\\n", "\n"),
        };
        self.push(Kind::Text(text), self.at);
    }

    /// Skips a comment; says whether the text after it is trimmed.
    fn comment(&mut self, open: usize) -> Result<bool, Flaw> {
        let Some(length) = self.rest().find("*/") else {
            return Err(Flaw::new(open, "this comment has no `*/`"));
        };
        self.at += length + 2;
        let trimmed = self.rest().strip_prefix(is_space).is_some_and(|rest| rest.starts_with("-}}"));
        self.at += if trimmed { 2 } else { 0 };
        if !self.rest().starts_with("}}") {
            return Err(Flaw::new(self.at, "a comment must end with `*/}}`"));
        }
        self.at += 2;
        Ok(trimmed)
    }

    /// Cuts one action up to its `}}`; says whether the text after it is trimmed.
    fn action(&mut self, open: usize) -> Result<bool, Flaw> {
        self.push(Kind::Open, open);
        loop {
            let at = self.at;
            let Some(c) = self.rest().chars().next() else {
                return Err(Flaw::new(open, "this action has no `}}`"));
            };
            if self.rest().starts_with("}}") {
                self.at += 2;
                self.push(Kind::Close, at);
                return Ok(false);
            }
            if is_space(c) {
                self.at += self.rest().len() - self.rest().trim_start_matches(is_space).len();
                if self.rest().starts_with("-}}") {
                    self.at += 3;
                    self.push(Kind::Close, at);
                    return Ok(true);
                }
                self.push(Kind::Space, at);
                continue;
            }
            let kind = self.word(c)?;
            self.push(kind, at);
        }
    }

    /// Cuts one word that starts with `c`.
    fn word(&mut self, c: char) -> Result<Kind, Flaw> {
        let at = self.at;
        let mut one = |kind, length| {
            self.at += length;
            Ok(kind)
        };
        let next = self.source[at + c.len_utf8()..].chars().next().unwrap_or('\0');
        match c {
            '|' => one(Kind::Pipe, 1),
            '(' => one(Kind::LeftParen, 1),
            ')' => one(Kind::RightParen, 1),
            ',' => one(Kind::Comma, 1),
            '=' => one(Kind::Assign, 1),
            ':' if next == '=' => one(Kind::Declare, 2),
            '"' => self.quoted(),
            '`' => self.raw(),
            '\'' => self.character(),
            '.' if next.is_ascii_digit() => self.number(),
            '.' => {
                self.at += 1;
                let name = self.name();
                Ok(if name.is_empty() { Kind::Dot } else { Kind::Field(name) })
            }
            '$' => {
                self.at += 1;
                Ok(Kind::Variable(format!("${}", self.name())))
            }
            '+' | '-' if next.is_ascii_digit() || next == '.' => self.number(),
            _ if c.is_ascii_digit() => self.number(),
            _ if is_word(c) => Ok(Kind::Word(self.name())),
            _ => Err(Flaw::new(at, format!("unexpected {c:?}"))),
        }
    }

    fn name(&mut self) -> String {
        let rest = self.rest();
        let length = rest.find(|c| !is_word(c)).unwrap_or(rest.len());
        let name = rest[..length].to_owned();
        self.at += length;
        name
    }

    fn number(&mut self) -> Result<Kind, Flaw> {
        let at = self.at;
        let rest = self.rest();
        let hexadecimal = rest.trim_start_matches(['+', '-']).to_lowercase().starts_with("0x");
        let mut previous = '\0';
        let length = rest
            .find(|c: char| {
                let exponent = if hexadecimal { matches!(previous, 'p' | 'P') } else { matches!(previous, 'e' | 'E') };
                let sign = matches!(c, '+' | '-') && (previous == '\0' || exponent);
                previous = c;
                !(is_word(c) || c == '.' || sign)
            })
            .unwrap_or(rest.len());
        let text = &rest[..length];
        let kind = number::parse(text).ok_or_else(|| Flaw::new(at, format!("`{text}` is not a number")))?;
        self.at += length;
        Ok(kind)
    }

    fn raw(&mut self) -> Result<Kind, Flaw> {
        let body = &self.rest()[1..];
        let length = body.find('`').ok_or_else(|| Flaw::new(self.at, "this string has no closing backquote"))?;
        let text = body[..length].to_owned();
        self.at += length + 2;
        Ok(Kind::Str(text))
    }

    fn quoted(&mut self) -> Result<Kind, Flaw> {
        let start = self.at;
        self.at += 1;
        let mut bytes = Vec::new();
        loop {
            match self.rest().chars().next() {
                None | Some('\n') => return Err(Flaw::new(start, "this string has no closing quote")),
                Some('"') => break,
                Some('\\') => self.escape('"', &mut bytes)?,
                Some(c) => {
                    bytes.extend(c.encode_utf8(&mut [0; 4]).bytes());
                    self.at += c.len_utf8();
                }
            }
        }
        self.at += 1;
        Ok(Kind::Str(String::from_utf8_lossy(&bytes).into_owned()))
    }

    fn character(&mut self) -> Result<Kind, Flaw> {
        let start = self.at;
        let flaw = || Flaw::new(start, "single quotes hold one character; strings stand in double quotes");
        self.at += 1;
        let mut bytes = Vec::new();
        match self.rest().chars().next() {
            Some('\\') => self.escape('\'', &mut bytes)?,
            Some(c) if !matches!(c, '\n' | '\'') => {
                bytes.extend(c.encode_utf8(&mut [0; 4]).bytes());
                self.at += c.len_utf8();
            }
            _ => return Err(flaw()),
        }
        if !self.rest().starts_with('\'') {
            return Err(flaw());
        }
        self.at += 1;
        let first = String::from_utf8_lossy(&bytes).chars().next().ok_or_else(flaw)?;
        Ok(Kind::Int(i64::from(u32::from(first))))
    }

    /// Reads an escape of a Go string; `quote` is the one quote that may be escaped.
    fn escape(&mut self, quote: char, out: &mut Vec<u8>) -> Result<(), Flaw> {
        let start = self.at;
        let rest = &self.source[start + 1..];
        let flaw = || Flaw::new(start, "there is no such escape in a string");
        let c = rest.chars().next().ok_or_else(flaw)?;
        let digits = |from: usize, count: usize, radix| {
            let digits = rest.get(from..from + count).filter(|digits| digits.chars().all(|c| c.is_digit(radix)));
            digits.and_then(|digits| u32::from_str_radix(digits, radix).ok()).ok_or_else(flaw)
        };
        let single = match c {
            'a' => Some(7),
            'b' => Some(8),
            'f' => Some(12),
            'n' => Some(b'\n'),
            'r' => Some(b'\r'),
            't' => Some(b'\t'),
            'v' => Some(11),
            '\\' => Some(b'\\'),
            _ if c == quote => u8::try_from(c).ok(),
            _ => None,
        };
        if let Some(byte) = single {
            out.push(byte);
            self.at += 2;
            return Ok(());
        }
        match c {
            'x' => {
                out.push(u8::try_from(digits(1, 2, 16)?).map_err(|_| flaw())?);
                self.at += 4;
            }
            '0'..='7' => {
                out.push(u8::try_from(digits(0, 3, 8)?).map_err(|_| flaw())?);
                self.at += 4;
            }
            'u' | 'U' => {
                let count = if c == 'u' { 4 } else { 8 };
                let c = char::from_u32(digits(1, count, 16)?).ok_or_else(flaw)?;
                out.extend(c.encode_utf8(&mut [0; 4]).bytes());
                self.at += 2 + count;
            }
            _ => return Err(flaw()),
        }
        Ok(())
    }
}

/// The words that open or shape an action, for suggestions.
pub(super) const KEYWORDS: &[&str] = &["if", "else", "end", "range", "with", "break", "continue"];

/// Explains a word that is neither a keyword nor a function.
pub(super) fn unknown_word(word: &str, functions: &[&str]) -> String {
    if matches!(word, "define" | "template" | "block") {
        return format!("`{word}` is not supported: a format is one template");
    }
    if matches!(word, "call" | "html" | "js" | "urlquery") {
        return format!("the function `{word}` is not supported");
    }
    let near = suggestion(word, functions.iter().chain(KEYWORDS).copied());
    if near.is_empty() {
        format!("there is no function `{word}`; functions are {}", functions.join(", "))
    } else {
        format!("there is no function `{word}`{near}")
    }
}
