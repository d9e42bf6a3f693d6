//! The parser: a file becomes stages and instructions, or a list of all that is wrong with it.
//!
//! Everything that needs no build arguments and no images is checked here, in all stages. What the instructions mean
//! together is [`crate::lower()`]'s business.

mod flags;
mod instructions;

use kiln_graph::diagnostic::closest;
use kiln_graph::{Diagnostic, SourceFile, Span};

use crate::check::{self, Refused, Rule, Subject};
use crate::directive;
use crate::heredoc::{self, Heredoc};
use crate::include;
use crate::instruction::{Dockerfile, GlobalArguments, Head, Instruction, Kind, Stage};
use crate::line::{Line, Lines, Text, Word};
use crate::split::{self, Json, RawFlag};

/// The number of errors after which the parser gives up: most likely the file is no Dockerfile.
const MAX_ERRORS: usize = 20;

const BYTE_ORDER_MARK: &str = "\u{feff}";

const KEYWORDS: &[&str] = &[
    "ADD",
    "ARG",
    "CMD",
    "COPY",
    "ENTRYPOINT",
    "ENV",
    "EXPOSE",
    "FROM",
    "HEALTHCHECK",
    "LABEL",
    "MAINTAINER",
    "ONBUILD",
    "RUN",
    "SHELL",
    "STOPSIGNAL",
    "USER",
    "VOLUME",
    "WORKDIR",
];

/// Parses a Dockerfile.
///
/// # Errors
/// All errors of the file, up to twenty, in the order of their places.
pub fn parse(file: &SourceFile) -> Result<Dockerfile, Refused> {
    let text = file.text();
    let start = if text.starts_with(BYTE_ORDER_MARK) { BYTE_ORDER_MARK.len() } else { 0 };
    let (directives, start) = directive::read(text, start)?;
    let mut parser = Parser { assembled: file.is_assembled(), ..Parser::new(text, start, directives.escape) };
    parser.run();
    let Parser { global_arguments, stages, mut errors, mut warnings, .. } = parser;
    if errors.is_empty() && stages.is_empty() {
        let (message, hint) = if global_arguments.is_empty() {
            ("the file holds no instructions", "begin with FROM")
        } else {
            ("the file has no stage to build", "add a FROM after the global ARG instructions")
        };
        errors.push(Diagnostic { span: None, ..Diagnostic::error(Span::new(0, 0), message).with_hint(hint) });
    }
    if !errors.is_empty() {
        return Err(Refused { errors, warnings });
    }
    instructions::check_casing(&stages, &mut warnings);
    instructions::check_stage_names(&stages, &mut warnings);
    Ok(Dockerfile { file: file.clone(), directives, global_arguments, stages, warnings })
}

/// Parses the text of an ONBUILD trigger: one instruction, in the default syntax.
///
/// # Errors
/// The first error; also when there is not exactly one instruction, or it is a FROM.
pub(crate) fn parse_trigger(file: &SourceFile) -> Result<Instruction, Diagnostic> {
    let text = file.text();
    let mut parser = Parser::new(text, 0, '\\');
    let single = || Diagnostic::error(Span::new(0, text.len()), "an ONBUILD trigger is exactly one instruction");
    let (head, parsed) = parser.next().ok_or_else(single)?.map_err(|mut errors| errors.remove(0))?;
    match (parsed, parser.next()) {
        (Parsed::Kind(kind), None) => Ok(Instruction { head, kind }),
        _ => Err(single()),
    }
}

struct Parser<'s> {
    lines: Lines<'s>,
    escape: char,
    global_arguments: Vec<GlobalArguments>,
    stages: Vec<Stage>,
    errors: Vec<Diagnostic>,
    warnings: Vec<Diagnostic>,
    /// Whether an instruction before the first FROM was reported already, or need not be.
    before_from: bool,
    /// Whether the text was assembled, so that INCLUDE was carried out.
    assembled: bool,
}

/// An instruction's parts before it is known what they mean.
struct Parts<'l> {
    head: &'l Head,
    /// The keyword in upper case.
    keyword: &'static str,
    flags: Vec<RawFlag<'l>>,
    arguments: Text<'l>,
    heredocs: Vec<Heredoc>,
    comments: &'l [Word],
    escape: char,
}

/// What an instruction turned out to be.
enum Parsed {
    Stage(Box<Stage>),
    Kind(Kind),
    /// An INCLUDE that was carried out.
    Included,
}

/// Makes findings of checks about one instruction.
struct Findings<'p> {
    subject: Subject,
    warnings: &'p mut Vec<Diagnostic>,
}

impl Findings<'_> {
    fn add(&mut self, rule: &'static Rule, span: Span, message: String) {
        self.warnings.extend(self.subject.finding(rule, span, message));
    }
}

impl<'s> Parser<'s> {
    fn new(text: &'s str, start: usize, escape: char) -> Self {
        Self {
            lines: Lines::new(text, start, escape),
            escape,
            global_arguments: Vec::new(),
            stages: Vec::new(),
            errors: Vec::new(),
            warnings: Vec::new(),
            before_from: false,
            assembled: false,
        }
    }

    fn run(&mut self) {
        while self.errors.len() < MAX_ERRORS {
            let placed = match self.next() {
                None => break,
                Some(Ok((head, parsed))) => self.place(head, parsed).map_err(|error| vec![error]),
                Some(Err(errors)) => {
                    // Perhaps it was the first FROM; what follows is not to blame.
                    self.before_from = true;
                    Err(errors)
                }
            };
            self.errors.extend(placed.err().unwrap_or_default());
        }
        self.errors.truncate(MAX_ERRORS);
    }

    /// Puts an instruction where it belongs.
    fn place(&mut self, head: Head, parsed: Parsed) -> Result<(), Diagnostic> {
        match (parsed, self.stages.last_mut()) {
            (Parsed::Stage(stage), _) => self.stages.push(*stage),
            (Parsed::Included, _) => {}
            (Parsed::Kind(kind), Some(stage)) => stage.instructions.push(Instruction { head, kind }),
            (Parsed::Kind(Kind::Arg(arguments)), None) => {
                self.global_arguments.push(GlobalArguments { head, arguments });
            }
            (Parsed::Kind(_), None) if std::mem::replace(&mut self.before_from, true) => {}
            (Parsed::Kind(_), None) => {
                let message = format!("{} stands before the first FROM", head.keyword.text);
                return Err(
                    Diagnostic::error(head.keyword.span, message).with_hint("only ARG may; begin the stage with FROM")
                );
            }
        }
        Ok(())
    }

    /// Reads the next instruction.
    fn next(&mut self) -> Option<Result<(Head, Parsed), Vec<Diagnostic>>> {
        let mut line = self.lines.logical()?;
        let heredocs = if line.text.contains("<<") && takes_heredocs(line.whole(), self.escape) {
            heredoc::read_bodies(&mut line, &mut self.lines).map_err(|error| vec![error])
        } else {
            Ok(Vec::new())
        };
        Some(heredocs.and_then(|heredocs| self.instruction(&line, heredocs)))
    }

    fn instruction(&mut self, line: &Line<'_>, heredocs: Vec<Heredoc>) -> Result<(Head, Parsed), Vec<Diagnostic>> {
        let whole = line.whole();
        let (keyword, rest) = split::first_word(whole);
        let head = Head {
            keyword: keyword.word(),
            span: line.span,
            text: whole.as_str().to_owned(),
            skipped_checks: check::skipped_by(&line.comments),
        };
        let mut findings = Findings { subject: head.subject(), warnings: &mut self.warnings };
        if let Some(gap) = line.gaps.first() {
            // BuildKit names the last of the continued lines, not the empty one.
            let last = Subject { span: line.last, ..head.subject() };
            let message = "Empty continuation line".to_owned();
            findings.warnings.extend(last.finding(check::NO_EMPTY_CONTINUATION, *gap, message));
        }
        if head.keyword.text.eq_ignore_ascii_case(include::KEYWORD) && self.assembled {
            let message = format!("{} is understood by Kiln only", include::KEYWORD);
            findings.add(check::KILN_EXTENSION, head.keyword.span, message);
            return Ok((head, Parsed::Included));
        }
        let keyword = known_keyword(&head.keyword).map_err(|error| vec![error])?;
        let (flags, arguments) = split::leading_flags(rest, self.escape);
        let comments = &line.comments;
        let escape = self.escape;
        let parts = Parts { head: &head, keyword, flags, arguments, heredocs, comments, escape };
        let parsed = instructions::parse(parts, &mut findings)?;
        Ok((head, parsed))
    }
}

/// Returns the keyword in upper case.
fn known_keyword(word: &Word) -> Result<&'static str, Diagnostic> {
    if let Some(keyword) = KEYWORDS.iter().find(|keyword| keyword.eq_ignore_ascii_case(&word.text)) {
        return Ok(keyword);
    }
    let error = Diagnostic::error(word.span, format!("unknown instruction {:?}", word.text));
    if word.text.eq_ignore_ascii_case(include::KEYWORD) {
        return Err(error.with_hint("it is an extension of Kiln: for it, the first line must be # syntax=kiln"));
    }
    Err(match closest(&word.text, KEYWORDS.iter().copied()) {
        Some(near) => error.with_hint(format!("did you mean {near}?")),
        None => error.with_hint("an instruction that goes on in the next line ends in the escape character"),
    })
}

/// Says whether here-documents may follow: of RUN, COPY and ADD, also under ONBUILD, and never in JSON form.
pub(crate) fn takes_heredocs(text: Text<'_>, escape: char) -> bool {
    let (keyword, rest) = split::first_word(text);
    let (_, arguments) = split::leading_flags(rest, escape);
    match keyword.as_str().to_ascii_uppercase().as_str() {
        "RUN" | "COPY" | "ADD" => matches!(split::json(arguments), Ok(Json::No)),
        "ONBUILD" => takes_heredocs(arguments, escape),
        _ => false,
    }
}

#[cfg(test)]
mod tests;
