//! Parser directives: `# syntax=`, `# escape=` and `# check=` at the very top of a file.
//!
//! What a check directive says is read by [`crate::check`]; which frontend a syntax directive asks for is judged by
//! [`crate::frontend`].

use kiln_graph::{Diagnostic, Span};

use crate::line::{Lines, Word, without_break};

/// What the directives of a file say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Directives {
    /// The value of `# syntax=`: a frontend image and perhaps arguments for it.
    pub syntax: Option<Word>,
    /// The character of `# escape=`: a backslash or a backtick.
    pub escape: char,
    /// The value of `# check=`.
    pub check: Option<Word>,
}

impl Default for Directives {
    fn default() -> Self {
        Self { syntax: None, escape: '\\', check: None }
    }
}

/// One `name=value` comment.
struct Directive<'s> {
    name: &'s str,
    value: Word,
    /// Whether blanks precede the comment sign.
    indented: bool,
}

/// Reads the directives from byte `start` on and returns them with the place where they end.
///
/// The first line that is none ends them. A first line `#!...` is skipped.
///
/// # Errors
/// A directive given twice, an escape character that is not allowed.
pub(crate) fn read(text: &str, start: usize) -> Result<(Directives, usize), Diagnostic> {
    let mut directives = Directives::default();
    let mut escape_seen = false;
    let mut lines = Lines::new(text, start, '\\');
    let mut end = start;
    while let Some((at, raw)) = lines.physical() {
        if at == start && raw.starts_with("#!") {
            continue;
        }
        let Some(Directive { name, value, indented }) = directive(without_break(raw), at, "#") else { break };
        end = at + raw.len();
        let twice = match name.to_ascii_lowercase().as_str() {
            "escape" => std::mem::replace(&mut escape_seen, true),
            "syntax" => directives.syntax.is_some(),
            "check" => directives.check.is_some(),
            _ => {
                end = at;
                break;
            }
        };
        if twice {
            let message = format!("the parser directive {name} is given twice");
            return Err(Diagnostic::error(value.span, message).with_hint("each may stand once, at the top of the file"));
        }
        match name.to_ascii_lowercase().as_str() {
            "escape" => directives.escape = escape(&value)?,
            // BuildKit accepts an indented escape directive, but looks for the two others at the start of a line only.
            _ if indented => {}
            "syntax" => directives.syntax = Some(value),
            _ => directives.check = Some(value),
        }
    }
    Ok((directives, end))
}

fn escape(value: &Word) -> Result<char, Diagnostic> {
    match value.text.as_str() {
        "\\" => Ok('\\'),
        "`" => Ok('`'),
        other => {
            let message = format!("{other:?} cannot be the escape character");
            Err(Diagnostic::error(value.span, message).with_hint("use a backslash or a backtick"))
        }
    }
}

fn directive<'s>(line: &'s str, at: usize, sign: &str) -> Option<Directive<'s>> {
    let content = line.trim_start();
    let assignment = content.strip_prefix(sign)?.trim_start();
    let (name, value) = assignment.split_once('=')?;
    let (name, value) = (name.trim_end(), value.trim());
    let valid = name.starts_with(|c: char| c.is_ascii_alphabetic()) && name.chars().all(|c| c.is_ascii_alphanumeric());
    if !valid || value.is_empty() {
        return None;
    }
    let start = at + line.trim_end().len() - value.len();
    let value = Word::new(value, Span::new(start, start + value.len()));
    Some(Directive { name, value, indented: content.len() < line.len() })
}

/// Returns the syntax directive of a file that is no Dockerfile: a `// syntax=` comment, or a JSON object with that key.
pub(crate) fn foreign_syntax(text: &str, start: usize) -> Option<Word> {
    let mut lines = Lines::new(text, start, '\\');
    while let Some((at, raw)) = lines.physical() {
        if at == start && raw.starts_with("#!") {
            continue;
        }
        match directive(without_break(raw), at, "//") {
            Some(found) if found.name.eq_ignore_ascii_case("syntax") => return Some(found.value),
            Some(_) => {}
            None => break,
        }
    }
    let object: serde_json::Map<String, serde_json::Value> = serde_json::from_str(&text[start..]).ok()?;
    let syntax = object.get("syntax")?.as_str()?;
    Some(Word::new(syntax, Span::new(start, start)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directives_end_at_the_first_line_that_is_none() {
        let text =
            "#!/bin/x\n#syntax=a/b:1 --x\n# Escape = `\n# check=skip=all;error=true \n# plain\n# escape=\\\nFROM a";
        let (directives, end) = read(text, 0).unwrap();
        assert_eq!(directives.escape, '`');
        assert_eq!(directives.syntax.unwrap().text, "a/b:1 --x");
        let check = directives.check.unwrap();
        assert_eq!((&*check.text, &text[check.span.range()]), ("skip=all;error=true", "skip=all;error=true"));
        assert!(text[end..].starts_with("# plain"));
    }

    #[test]
    fn a_directive_after_a_comment_or_an_instruction_is_a_comment() {
        for text in ["# hi\n# escape=`\n", "FROM a\n# escape=`\n", "\n# escape=`\n", "# foo=bar\n# escape=`\n"] {
            assert_eq!(read(text, 0).unwrap(), (Directives::default(), 0), "{text:?}");
        }
    }

    #[test]
    fn a_wrong_or_repeated_directive_is_refused() {
        for (text, message) in [
            ("# escape=x\n", "\"x\" cannot be the escape character"),
            ("# escape=\\\n# ESCAPE=`\n", "the parser directive ESCAPE is given twice"),
            ("# syntax=a\n# syntax=b\n", "the parser directive syntax is given twice"),
        ] {
            assert_eq!(read(text, 0).unwrap_err().message, message);
        }
    }

    #[test]
    fn other_formats_name_their_frontend_too() {
        let syntax = |text: &str| foreign_syntax(text, 0).map(|word| word.text);
        assert_eq!(syntax("#!x\n// syntax=a/b\nthing"), Some("a/b".to_owned()));
        assert_eq!(syntax("{\"syntax\": \"a/b\", \"x\": 1}"), Some("a/b".to_owned()));
        assert_eq!(syntax("FROM a"), None);
    }
}
