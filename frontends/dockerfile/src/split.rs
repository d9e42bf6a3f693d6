//! Taking an instruction's line apart: keyword, flags, words, quoted words, JSON arrays, comma-separated fields.
//!
//! Quotes are only recognised here, not resolved, where the expansion of variables resolves them later ([`crate::shell`]).

use std::borrow::Cow;
use std::ops::Range;

use kiln_graph::Diagnostic;

use crate::line::{Piece, Text, Word};

/// What separates words: Go's `[\t\v\f\r ]`.
fn is_blank(c: char) -> bool {
    matches!(c, '\t' | '\u{b}' | '\u{c}' | '\r' | ' ')
}

/// Splits at the first run of blanks; the second part is empty when there is none.
pub(crate) fn first_word(text: Text<'_>) -> (Text<'_>, Text<'_>) {
    let all = text.as_str();
    let end = all.find(is_blank).unwrap_or(all.len());
    (text.slice(0..end), text.slice(end..all.len()).trim())
}

/// Splits at runs of blanks.
pub(crate) fn words(text: Text<'_>) -> Vec<Text<'_>> {
    let mut words = Vec::new();
    let mut rest = text.trim();
    while !rest.is_empty() {
        let (word, tail) = first_word(rest);
        words.push(word);
        rest = tail;
    }
    words
}

/// Splits at white space outside quotes. Quotes and escapes stay in the words.
pub(crate) fn quoted_words(text: Text<'_>, escape: char) -> Vec<Text<'_>> {
    ranges_of_quoted_words(text.as_str(), escape).into_iter().map(|range| text.slice(range)).collect()
}

/// Finds the words between white space outside quotes. Nothing is escaped in single quotes; an open quote runs to the end.
fn ranges_of_quoted_words(text: &str, escape: char) -> Vec<Range<usize>> {
    let mut words = Vec::new();
    let mut start = None;
    let mut quote = None;
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        if quote.is_none() && c.is_whitespace() {
            words.extend(start.take().map(|start| start..at));
            continue;
        }
        start.get_or_insert(at);
        if c == escape && quote != Some('\'') {
            chars.next();
        } else if quote == Some(c) {
            quote = None;
        } else if quote.is_none() && matches!(c, '\'' | '"') {
            quote = Some(c);
        }
    }
    words.extend(start.map(|start| start..text.len()));
    words
}

/// A `--name` or `--name=value` before an instruction's arguments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RawFlag<'l> {
    /// The name without dashes.
    pub(crate) name: Piece<'l>,
    /// What follows `=`, quotes and escapes resolved.
    pub(crate) value: Option<Piece<'l>>,
}

/// Takes the flags off the front of an instruction's arguments. A bare `--` ends them.
pub(crate) fn leading_flags(text: Text<'_>, escape: char) -> (Vec<RawFlag<'_>>, Text<'_>) {
    let mut flags = Vec::new();
    let mut rest = text.trim();
    while rest.as_str().starts_with("--") {
        let (length, resolved) = flag_word(rest.as_str(), escape);
        let written = rest.slice(0..length);
        rest = rest.slice(length..rest.as_str().len()).trim();
        if resolved == "--" {
            break;
        }
        let Cow::Owned(resolved) = resolved else {
            flags.push(plain_flag(written));
            continue;
        };
        let word = Word::new(resolved, written.span());
        let name_end = word.text.find('=').unwrap_or(word.text.len());
        let part = |range: Range<usize>| {
            let Word { text, span } = word.part(range);
            Piece { text: Cow::Owned(text), span }
        };
        let value = (name_end < word.text.len()).then(|| part(name_end + 1..word.text.len()));
        flags.push(RawFlag { name: part(2.min(name_end)..name_end), value });
    }
    (flags, rest)
}

/// A flag that stands in the file as it is.
fn plain_flag(written: Text<'_>) -> RawFlag<'_> {
    let text = written.as_str();
    let name_end = text.find('=').unwrap_or(text.len());
    let value = (name_end < text.len()).then(|| written.slice(name_end + 1..text.len()).piece());
    RawFlag { name: written.slice(2.min(name_end)..name_end).piece(), value }
}

/// Reads one flag: its length in the text, and what it is with quotes and escapes resolved.
fn flag_word(text: &str, escape: char) -> (usize, Cow<'_, str>) {
    // Most flags have no quotes and no escapes.
    let plain = |byte: &u8| byte.is_ascii_graphic() && !matches!(byte, b'\'' | b'"') && char::from(*byte) != escape;
    let length = text.bytes().take_while(plain).count();
    if text.as_bytes().get(length).is_none_or(u8::is_ascii_whitespace) {
        return (length, Cow::Borrowed(&text[..length]));
    }
    let mut resolved = String::new();
    let mut quote = None;
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        if quote.is_none() && c.is_whitespace() {
            return (at, Cow::Owned(resolved));
        }
        if c == escape {
            resolved.extend(chars.next().map(|(_, c)| c));
        } else if quote == Some(c) {
            quote = None;
        } else if quote.is_none() && matches!(c, '\'' | '"') {
            quote = Some(c);
        } else {
            resolved.push(c);
        }
    }
    (text.len(), Cow::Owned(resolved))
}

/// What an argument that may be a JSON array turned out to be.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Json {
    /// An array of strings.
    Strings(Vec<Word>),
    /// No JSON array at all: the caller reads it in its other form.
    No,
}

/// Reads a JSON array of strings.
///
/// # Errors
/// An array that holds anything but strings.
pub(crate) fn json(text: Text<'_>) -> Result<Json, Diagnostic> {
    let all = text.as_str();
    if !all.starts_with('[') {
        return Ok(Json::No);
    }
    if let Some(items) = json_strings(all) {
        let word = |(range, value): (Range<usize>, String)| Word::new(value, text.slice(range).span());
        return Ok(Json::Strings(items.into_iter().map(word).collect()));
    }
    match serde_json::from_str::<Vec<serde_json::Value>>(all) {
        Ok(_) => {
            let message = "the JSON array holds something that is not a string";
            Err(Diagnostic::error(text.span(), message).with_hint("put every argument in double quotes"))
        }
        Err(_) => Ok(Json::No),
    }
}

/// Reads `["a", "b"]`; `None` when it is anything else. Each string comes with its place, quotes included.
fn json_strings(text: &str) -> Option<Vec<(Range<usize>, String)>> {
    let skip = |at: usize| at + text[at..].len() - text[at..].trim_start_matches([' ', '\t', '\r', '\n']).len();
    let mut items = Vec::new();
    let mut at = skip(1);
    if text[at..].starts_with(']') {
        return (skip(at + 1) == text.len()).then_some(items);
    }
    loop {
        let end = at + json_string_length(&text[at..])?;
        items.push((at..end, serde_json::from_str(&text[at..end]).ok()?));
        at = skip(end);
        match text.as_bytes().get(at)? {
            b',' => at = skip(at + 1),
            b']' => return (skip(at + 1) == text.len()).then_some(items),
            _ => return None,
        }
    }
}

/// Returns the length of the JSON string that `text` starts with.
fn json_string_length(text: &str) -> Option<usize> {
    let body = text.strip_prefix('"')?;
    let mut escaped = false;
    for (at, c) in body.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return Some(at + 2),
            _ => {}
        }
    }
    None
}

/// Splits comma-separated fields as Go's `encoding/csv` does: a field may stand in double quotes, `""` is one of them.
///
/// The last item is an error when there is a quote in the middle of a plain field, or one that is not closed.
pub(crate) fn fields(word: &Word) -> impl Iterator<Item = Result<Piece<'_>, Diagnostic>> {
    let mut next = Some(0);
    std::iter::from_fn(move || {
        let start = next.take()?;
        Some(field(word, start).map(|(piece, end)| {
            next = (end < word.text.len()).then_some(end + 1);
            piece
        }))
    })
}

/// Reads the field that starts there; returns where it ends, too.
fn field(word: &Word, start: usize) -> Result<(Piece<'_>, usize), Diagnostic> {
    let text = word.text.as_str();
    let wrong = |what: &str| {
        Diagnostic::error(word.span, format!("{text:?} has {what}"))
            .with_hint("fields are separated by commas; a field that holds a comma stands in \\\"...\\\" as a whole")
    };
    let rest = &text[start..];
    let Some(quoted) = rest.strip_prefix('"') else {
        let length = rest.find([',', '"']).unwrap_or(rest.len());
        if rest[length..].starts_with('"') {
            return Err(wrong("a quote in the middle of a field"));
        }
        return Ok((word.piece(start..start + length), start + length));
    };
    let length = closing_quote(quoted).ok_or_else(|| wrong("a quote that is not closed"))?;
    let end = start + length + 2;
    if !matches!(text.as_bytes().get(end), None | Some(b',')) {
        return Err(wrong("text after a closing quote"));
    }
    let text = Cow::Owned(quoted[..length].replace("\"\"", "\""));
    Ok((Piece { text, span: word.piece(start..end).span }, end))
}

/// Finds the quote that closes a field, skipping doubled ones.
fn closing_quote(text: &str) -> Option<usize> {
    let bytes = text.as_bytes();
    let mut at = 0;
    loop {
        at += text.get(at..)?.find('"')?;
        if bytes.get(at + 1) != Some(&b'"') {
            return Some(at);
        }
        at += 2;
    }
}

#[cfg(test)]
mod tests {
    use kiln_graph::Span;

    use super::*;
    use crate::line::{Line, Lines};

    fn line(text: &str) -> Line<'_> {
        Lines::new(text, 0, '\\').logical().unwrap()
    }

    #[test]
    fn quoted_words_keep_their_quotes_and_escapes() {
        let line = line(r#"a=1 b="x y" c=x\ y d='q \' "e\"" f= "#);
        let words: Vec<&str> = quoted_words(line.whole(), '\\').into_iter().map(Text::as_str).collect();
        assert_eq!(words, ["a=1", "b=\"x y\"", "c=x\\ y", "d='q \\'", "\"e\\\"\"", "f="]);
    }

    #[test]
    fn flags_come_before_the_arguments_with_quotes_resolved() {
        let text = r#"--a --b="x y"z --c=\"q\" -- --d e"#;
        let line = line(text);
        let (flags, rest) = leading_flags(line.whole(), '\\');
        let flags: Vec<_> = flags.iter().map(|f| (&*f.name.text, f.value.as_ref().map(|v| &*v.text))).collect();
        assert_eq!(flags, [("a", None), ("b", Some("x yz")), ("c", Some("\"q\""))]);
        assert_eq!(rest.as_str(), "--d e");
    }

    #[test]
    fn the_parts_of_a_plain_flag_have_their_own_places() {
        let text = "--from=base x";
        let line = line(text);
        let (flags, _) = leading_flags(line.whole(), '\\');
        assert_eq!(&text[flags[0].name.span.range()], "from");
        assert_eq!(&text[flags[0].value.as_ref().unwrap().span.range()], "base");
    }

    #[test]
    fn a_json_array_of_strings_is_told_from_text_and_from_other_arrays() {
        let read = |text: &str| json(line(text).whole());
        let strings = |text: &str| match read(text).unwrap() {
            Json::Strings(words) => words.into_iter().map(|w| w.text).collect::<Vec<_>>(),
            Json::No => vec!["no".to_owned()],
        };
        assert_eq!(strings(r#"["a", "b\"c", "\u00e9", "t\tx" , "" ]"#), ["a", "b\"c", "é", "t\tx", ""]);
        assert_eq!(strings("[]"), [""; 0]);
        for text in ["['a']", "[ \"a\", ]", "[\"a\"] x", "[ -f x ] && y", "[\"a\"", "x", "[\"\\q\"]"] {
            assert_eq!(strings(text), ["no"], "{text}");
        }
        assert!(read("[\"a\", 1]").is_err() && read("[[\"a\"]]").is_err());
    }

    #[test]
    fn comma_separated_fields_may_be_quoted() {
        let split = |text: &str| {
            let word = Word::new(text, Span::new(0, text.len()));
            fields(&word).map(|field| field.map(|f| f.text.into_owned())).collect::<Result<Vec<_>, _>>()
        };
        assert_eq!(split("a=1,\"b=x,\"\"y\"\"\",c").unwrap(), ["a=1", "b=x,\"y\"", "c"]);
        assert_eq!(split("").unwrap(), [""]);
        assert!(split("a\"b").is_err() && split("\"a").is_err() && split("\"a\"b").is_err());
    }
}
