//! Shell words: quotes, escapes and the expansion of `$variables`, as the language defines them.
//!
//! This is not a shell: there are no commands, no arithmetic and no file names. Splitting an instruction into words is
//! `split`'s business; here one word (or a whole text) becomes its value.

mod pattern;
mod variables;

use std::fmt;

use pattern::{Anchor, Length, Pattern};
pub use variables::{Environment, Variables};

/// The longest text an expansion may give, in bytes: a file of a few lines could otherwise ask for terabytes.
const MAX_BYTES: usize = 4 << 20;

/// How deep `${a:-${b:-...}}` may be nested.
const MAX_DEPTH: usize = 32;

/// What quotes do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quotes {
    /// They group and are removed.
    Resolve,
    /// They group and stay, for texts that are shown.
    Keep,
    /// They are characters like any other, for the bodies of here-documents.
    Ignore,
}

/// What becomes of a variable that is not set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unset {
    /// It is empty.
    Empty,
    /// It stays as it is written, for texts that are shown.
    Keep,
}

/// How a text is read.
#[derive(Clone, Copy, Debug)]
pub struct Lexer {
    /// The escape character.
    pub escape: char,
    /// What quotes do.
    pub quotes: Quotes,
    /// What becomes of a variable that is not set.
    pub unset: Unset,
}

/// What a text expanded to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Expansion {
    /// The text.
    pub text: String,
    /// Its words, when they were asked for.
    pub words: Vec<String>,
    /// The variables that were used and set, in order, without repetition.
    pub used: Vec<String>,
    /// The variables that were used and not set, except where `-`, `+` or `?` provides for that.
    pub missing: Vec<String>,
}

/// Why a text could not be expanded; the message says it in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExpansionError {
    message: String,
}

impl fmt::Display for ExpansionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for ExpansionError {}

fn fail<T>(message: impl Into<String>) -> Result<T, ExpansionError> {
    Err(ExpansionError { message: message.into() })
}

impl Lexer {
    /// Reads the words of instructions: quotes are resolved, unset variables are empty.
    #[must_use]
    pub fn new(escape: char) -> Self {
        Self { escape, quotes: Quotes::Resolve, unset: Unset::Empty }
    }

    /// Reads the bodies of here-documents: a backslash escapes whatever the file's escape character is.
    #[must_use]
    pub fn of_heredocs() -> Self {
        Self { escape: '\\', quotes: Quotes::Ignore, unset: Unset::Empty }
    }

    /// Expands a text.
    ///
    /// # Errors
    /// Quotes or braces that are not closed, a modifier that does not exist, a variable that `${v:?message}` requires, a result
    /// of more than 4 MiB.
    pub fn expand(&self, text: &str, variables: &Variables) -> Result<Expansion, ExpansionError> {
        if self.is_plain(text) {
            return Ok(Expansion { text: text.to_owned(), ..Expansion::default() });
        }
        self.run(text, variables, None)
    }

    /// Expands a text and splits it at white space outside quotes, also where the white space came from a variable. Empty words
    /// are left out.
    ///
    /// # Errors
    /// As [`Self::expand`].
    pub fn split(&self, text: &str, variables: &Variables) -> Result<Expansion, ExpansionError> {
        self.run(text, variables, Some(Words::default()))
    }

    fn run(&self, text: &str, variables: &Variables, words: Option<Words>) -> Result<Expansion, ExpansionError> {
        let mut run = Run { lexer: self, rest: text, variables, used: Vec::new(), missing: Vec::new(), depth: 0 };
        let output = Output { text: String::with_capacity(text.len()), words };
        let Output { text, words } = run.until(None, Escapes::Resolve, output)?;
        let words = words.map(Words::finish).unwrap_or_default();
        Ok(Expansion { text, words, used: run.used, missing: run.missing })
    }

    /// Says whether a text has nothing special, as most have.
    fn is_plain(&self, text: &str) -> bool {
        !text.bytes().any(|byte| matches!(byte, b'$' | b'\'' | b'"') || char::from(byte) == self.escape)
    }
}

/// Whether escapes are resolved, or kept because a pattern is made of the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Escapes {
    Resolve,
    Keep,
}

/// The text of an expansion, and the same split into words if they are wanted.
#[derive(Default)]
struct Output {
    text: String,
    words: Option<Words>,
}

#[derive(Default)]
struct Words {
    done: Vec<String>,
    word: String,
}

impl Words {
    fn end(&mut self) {
        if !self.word.is_empty() {
            self.done.push(std::mem::take(&mut self.word));
        }
    }

    fn finish(mut self) -> Vec<String> {
        self.end();
        self.done
    }
}

impl Output {
    /// Adds text whose white space separates words.
    fn push(&mut self, text: &str) {
        self.text.push_str(text);
        let Some(words) = &mut self.words else { return };
        let mut rest = text;
        while let Some(end) = rest.find(char::is_whitespace) {
            words.word.push_str(&rest[..end]);
            words.end();
            rest = rest[end..].trim_start();
        }
        words.word.push_str(rest);
    }

    /// Adds text whose white space does not.
    fn push_quoted(&mut self, text: &str) {
        self.text.push_str(text);
        if let Some(words) = &mut self.words {
            words.word.push_str(text);
        }
    }
}

/// The characters after `$` that name a parameter of a shell. They are accepted and usually not set.
fn is_special_parameter(c: char) -> bool {
    matches!(c, '@' | '*' | '#' | '?' | '-' | '$' | '!')
}

/// One pass over a text.
struct Run<'a> {
    lexer: &'a Lexer,
    rest: &'a str,
    variables: &'a Variables,
    used: Vec<String>,
    missing: Vec<String>,
    depth: usize,
}

impl<'a> Run<'a> {
    fn peek(&self) -> Option<char> {
        self.rest.chars().next()
    }

    fn next(&mut self) -> Option<char> {
        let c = self.peek()?;
        self.rest = &self.rest[c.len_utf8()..];
        Some(c)
    }

    fn skip(&mut self, c: char) -> bool {
        let found = self.peek() == Some(c);
        if found {
            self.next();
        }
        found
    }

    /// Expands up to `stop`, which is consumed, or to the end; adds that to `output`.
    fn until(&mut self, stop: Option<char>, escapes: Escapes, mut output: Output) -> Result<Output, ExpansionError> {
        while let Some(c) = self.peek() {
            if Some(c) == stop {
                self.next();
                return Ok(output);
            }
            match c {
                '$' => {
                    let value = self.dollar()?;
                    output.push(&value);
                }
                '\'' if self.lexer.quotes != Quotes::Ignore => output.push_quoted(&self.single_quotes()?),
                '"' if self.lexer.quotes != Quotes::Ignore => output.push_quoted(&self.double_quotes(escapes)?),
                c if c == self.lexer.escape => {
                    self.next();
                    if escapes == Escapes::Keep {
                        output.push_quoted(c.encode_utf8(&mut [0; 4]));
                    }
                    if let Some(c) = self.next() {
                        output.push_quoted(c.encode_utf8(&mut [0; 4]));
                    }
                }
                _ => output.push(self.plain(stop)),
            }
            if output.text.len() > MAX_BYTES {
                return fail(format!("the result is longer than {} MiB", MAX_BYTES >> 20));
            }
        }
        match stop {
            None => Ok(output),
            Some('/') => fail("a ${v/pattern/replacement} has no second /"),
            Some(_) => fail("a ${ has no matching }"),
        }
    }

    /// Takes what stands for itself, at least one character.
    fn plain(&mut self, stop: Option<char>) -> &'a str {
        let special = |c: char| matches!(c, '$' | '\'' | '"') || c == self.lexer.escape || Some(c) == stop;
        let text = self.rest;
        let first = text.chars().next().map_or(0, char::len_utf8);
        let end = text[first..].find(special).map_or(text.len(), |end| first + end);
        self.rest = &text[end..];
        &text[..end]
    }

    fn single_quotes(&mut self) -> Result<String, ExpansionError> {
        self.next();
        let Some(end) = self.rest.find('\'') else { return fail("a single quote is not closed") };
        let quoted = &self.rest[..end];
        self.rest = &self.rest[end + 1..];
        Ok(if self.lexer.quotes == Quotes::Keep { format!("'{quoted}'") } else { quoted.to_owned() })
    }

    fn double_quotes(&mut self, escapes: Escapes) -> Result<String, ExpansionError> {
        self.next();
        let mut quoted = String::new();
        let keep = self.lexer.quotes == Quotes::Keep;
        quoted.extend(keep.then_some('"'));
        loop {
            match self.peek() {
                None => return fail("a double quote is not closed"),
                Some('"') => break,
                Some('$') => quoted.push_str(&self.dollar()?),
                Some(c) if c == self.lexer.escape => {
                    self.next();
                    match self.peek() {
                        None => {}
                        Some(next) if matches!(next, '"' | '$') || next == self.lexer.escape => {
                            quoted.extend((escapes == Escapes::Keep).then_some(c));
                            quoted.push(next);
                            self.next();
                        }
                        Some(_) => quoted.push(c),
                    }
                }
                Some(c) => {
                    quoted.push(c);
                    self.next();
                }
            }
            if quoted.len() > MAX_BYTES {
                return fail(format!("the result is longer than {} MiB", MAX_BYTES >> 20));
            }
        }
        self.next();
        quoted.extend(keep.then_some('"'));
        Ok(quoted)
    }

    /// Reads a name: letters, digits and underscores, a number, or one special character; empty when there is none.
    fn name(&mut self) -> &'a str {
        let text = self.rest;
        let length = match text.chars().next() {
            Some(c) if c.is_numeric() => text.find(|c: char| !c.is_numeric()).unwrap_or(text.len()),
            Some(c) if is_special_parameter(c) => c.len_utf8(),
            _ => text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len()),
        };
        self.rest = &text[length..];
        &text[..length]
    }

    fn look_up(&mut self, name: &str) -> Option<&'a str> {
        let value = self.variables.get(name);
        let list = if value.is_some() { &mut self.used } else { &mut self.missing };
        if !list.iter().any(|known| known == name) {
            list.push(name.to_owned());
        }
        value
    }

    fn dollar(&mut self) -> Result<String, ExpansionError> {
        self.next();
        if self.peek() != Some('{') {
            let name = self.name();
            if name.is_empty() {
                return Ok("$".to_owned());
            }
            return Ok(match self.look_up(name) {
                None if self.lexer.unset == Unset::Keep => format!("${name}"),
                value => value.unwrap_or_default().to_owned(),
            });
        }
        self.next();
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return fail(format!("${{...}} is nested more than {MAX_DEPTH} deep"));
        }
        let value = self.braces();
        self.depth -= 1;
        value
    }

    /// Expands what stands between `${` and `}`.
    fn braces(&mut self) -> Result<String, ExpansionError> {
        if self.rest.is_empty() {
            return fail("a ${ has no matching }");
        }
        if matches!(self.peek(), Some('{' | '}' | ':')) {
            return fail("a ${ is not followed by a name");
        }
        let name = self.name();
        match self.next() {
            None => fail("a ${ has no matching }"),
            Some('}') => Ok(match self.look_up(name) {
                None if self.lexer.unset == Unset::Keep => format!("${{{name}}}"),
                value => value.unwrap_or_default().to_owned(),
            }),
            Some('/') => self.replacement(name),
            Some(':') => {
                let modifier = self.next();
                self.modified(name, modifier, true)
            }
            modifier => self.modified(name, modifier, false),
        }
    }

    /// Expands `${name-word}` and its kin; with `colon`, an empty variable counts as not set.
    fn modified(&mut self, name: &str, modifier: Option<char>, colon: bool) -> Result<String, ExpansionError> {
        let sign = format!("{}{}", if colon { ":" } else { "" }, modifier.map_or_else(String::new, String::from));
        let escapes = match modifier {
            Some('#' | '%') => Escapes::Keep,
            Some('-' | '+' | '?') => Escapes::Resolve,
            None => return fail("a ${ has no matching }"),
            Some(_) => return fail(format!("the modifier {sign} in ${{{name}{sign}...}} is not supported")),
        };
        let word = self.until(Some('}'), escapes, Output::default())?.text;
        let provided_for = escapes == Escapes::Resolve;
        let value = if provided_for { self.variables.get(name) } else { self.look_up(name) };
        if provided_for && value.is_some() {
            self.look_up(name);
        }
        if value.is_none() && self.lexer.unset == Unset::Keep {
            return Ok(format!("${{{name}{sign}{word}}}"));
        }
        let given = value.filter(|value| !(colon && value.is_empty()));
        match modifier {
            Some('-') => Ok(given.map_or(word, str::to_owned)),
            Some('+') => Ok(given.map_or_else(String::new, |_| word)),
            Some('?') => match given {
                Some(value) => Ok(value.to_owned()),
                None if !word.is_empty() => fail(format!("{name}: {word}")),
                None => fail(format!("{name} must be set{}", if colon { " and not empty" } else { "" })),
            },
            end => trim(value.unwrap_or_default(), &word, end == Some('%')),
        }
    }

    /// Expands `${name/pattern/replacement}` and, with a second slash, all occurrences.
    fn replacement(&mut self, name: &str) -> Result<String, ExpansionError> {
        let all = self.skip('/');
        let pattern = self.until(Some('/'), Escapes::Keep, Output::default())?.text;
        let replacement = self.until(Some('}'), Escapes::Keep, Output::default())?.text;
        let Some(value) = self.look_up(name) else {
            let slashes = if all { "//" } else { "/" };
            return Ok(match self.lexer.unset {
                Unset::Keep => format!("${{{name}{slashes}{pattern}/{replacement}}}"),
                Unset::Empty => String::new(),
            });
        };
        let replaced = parse(&pattern)?.replace(value, &replacement, all, MAX_BYTES);
        replaced.map_or_else(|| fail(format!("the result is longer than {} MiB", MAX_BYTES >> 20)), Ok)
    }
}

fn parse(pattern: &str) -> Result<Pattern, ExpansionError> {
    Pattern::parse(pattern).map_err(|why| ExpansionError { message: format!("the pattern {pattern:?} {why}") })
}

/// Removes what a pattern matches at one end; a doubled sign (the word's first character) asks for the longest match.
fn trim(value: &str, word: &str, at_end: bool) -> Result<String, ExpansionError> {
    let sign = if at_end { '%' } else { '#' };
    let (length, word) = match word.strip_prefix(sign) {
        Some(word) => (Length::Longest, word),
        None => (Length::Shortest, word),
    };
    let anchor = if at_end { Anchor::End } else { Anchor::Start };
    let matched = parse(word)?.find_at(value, anchor, length).unwrap_or(0);
    Ok(if at_end { value[..value.len() - matched].to_owned() } else { value[matched..].to_owned() })
}

#[cfg(test)]
mod tests;
