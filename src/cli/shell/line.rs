//! A command line of the small shell: words with quotes and variables, and what joins commands. Text in, values out.

use std::iter::Peekable;
use std::str::Chars;

use crate::error::{Error, Result};

/// A command of a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Step {
    /// When it runs.
    pub(super) join: Join,
    pub(super) words: Vec<Word>,
    /// Where its input comes from and its output goes.
    pub(super) targets: Vec<(Target, Word)>,
}

/// When a command runs, after the one before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Join {
    Always,
    And,
    Or,
}

/// What is redirected to or from a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Target {
    Input,
    Output,
    Append,
}

/// A word whose variables are not filled in yet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Word(Vec<Part>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Text(String),
    Variable(String),
}

impl Word {
    /// Fills in variables. A value is not split into words.
    pub(super) fn expand(&self, value: impl Fn(&str) -> String) -> String {
        self.0
            .iter()
            .map(|part| match part {
                Part::Text(text) => text.clone(),
                Part::Variable(name) => value(name),
            })
            .collect()
    }

    fn push(&mut self, c: char) {
        match self.0.last_mut() {
            Some(Part::Text(text)) => text.push(c),
            _ => self.0.push(Part::Text(c.to_string())),
        }
    }
}

/// Takes a line apart.
///
/// # Errors
/// `InvalidArgument` for a quote that is not closed, and for what this shell does not have.
pub(super) fn parse(line: &str) -> Result<Vec<Step>> {
    let mut chars = line.chars().peekable();
    let mut steps = vec![Step { join: Join::Always, words: Vec::new(), targets: Vec::new() }];
    let mut pending = None;
    while let Some(&c) = chars.peek() {
        let step = steps.last_mut().expect("there is always one");
        match c {
            ' ' | '\t' => drop(chars.next()),
            '#' => break,
            ';' | '&' | '|' => {
                chars.next();
                let join = join(c, &mut chars)?;
                if pending.is_some() || (step.words.is_empty() && join != Join::Always) {
                    return Err(Error::invalid(format!("syntax error near {c}")));
                }
                steps.push(Step { join, words: Vec::new(), targets: Vec::new() });
            }
            '<' | '>' => {
                chars.next();
                let append = c == '>' && chars.next_if_eq(&'>').is_some();
                pending = Some(match (c, append) {
                    ('<', _) => Target::Input,
                    (_, true) => Target::Append,
                    (_, false) => Target::Output,
                });
            }
            _ => {
                let word = word(&mut chars)?;
                match pending.take() {
                    Some(target) => step.targets.push((target, word)),
                    None => step.words.push(word),
                }
            }
        }
    }
    match pending {
        Some(_) => Err(Error::invalid("syntax error: a file name is missing")),
        None => Ok(steps),
    }
}

fn join(c: char, chars: &mut Peekable<Chars<'_>>) -> Result<Join> {
    let doubled = chars.next_if_eq(&c).is_some();
    match (c, doubled) {
        (';', false) => Ok(Join::Always),
        ('&', true) => Ok(Join::And),
        ('|', true) => Ok(Join::Or),
        ('|', false) => Err(Error::invalid("this shell has no pipes: write to a file with >, and read it")),
        ('&', false) => Err(Error::invalid("this shell has no background jobs")),
        _ => Err(Error::invalid("syntax error near ;;")),
    }
}

fn word(chars: &mut Peekable<Chars<'_>>) -> Result<Word> {
    let mut word = Word::default();
    let mut quote = None;
    let unclosed = || Error::invalid("syntax error: a quote is not closed");
    loop {
        let Some(&c) = chars.peek() else {
            return if quote.is_some() { Err(unclosed()) } else { Ok(word) };
        };
        if quote.is_none() && " \t;&|<>".contains(c) {
            return Ok(word);
        }
        chars.next();
        match (c, quote) {
            ('\'' | '"', None) => {
                quote = Some(c);
                // An empty word is one, too.
                word.0.push(Part::Text(String::new()));
            }
            (c, Some(open)) if c == open => quote = None,
            ('\\', None) => word.push(chars.next().unwrap_or('\\')),
            ('\\', Some('"')) => match chars.next_if(|next| "\\\"$".contains(*next)) {
                Some(next) => word.push(next),
                None => word.push('\\'),
            },
            ('$', None | Some('"')) => match variable(chars) {
                Some(name) => word.0.push(Part::Variable(name)),
                None => word.push('$'),
            },
            (c, _) => word.push(c),
        }
    }
}

/// The name after a dollar sign; `None` when there is none.
fn variable(chars: &mut Peekable<Chars<'_>>) -> Option<String> {
    if let Some(special) = chars.next_if_eq(&'?') {
        return Some(special.to_string());
    }
    let braces = chars.next_if_eq(&'{').is_some();
    let mut name = String::new();
    while let Some(c) = chars.next_if(|c| c.is_ascii_alphanumeric() || *c == '_') {
        name.push(c);
    }
    if braces {
        chars.next_if_eq(&'}')?;
    }
    Some(name).filter(|name| !name.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<Vec<String>> {
        let value = |name: &str| format!("<{name}>");
        parse(line).unwrap().iter().map(|step| step.words.iter().map(|word| word.expand(value)).collect()).collect()
    }

    #[test]
    fn quotes_and_variables_are_those_of_shells() {
        assert_eq!(words(r#"a 'b $c' "d $e" f\ g ${h}i '' $?"#), [["a", "b $c", "d <e>", "f g", "<h>i", "", "<?>"]]);
        assert_eq!(words("a # b"), [["a"]]);
    }

    #[test]
    fn commands_are_joined_and_redirected() {
        let steps = parse("a && b > x || c < 'y z' >> w; d").unwrap();
        let joins: Vec<Join> = steps.iter().map(|step| step.join).collect();
        assert_eq!(joins, [Join::Always, Join::And, Join::Or, Join::Always]);
        assert_eq!(steps[2].targets.len(), 2);
        for (line, words) in
            [("a | b", "pipes"), ("a &", "jobs"), ("a >", "file name"), ("&& a", "syntax"), ("'", "quote")]
        {
            assert!(parse(line).unwrap_err().to_string().contains(words), "{line}");
        }
    }
}
