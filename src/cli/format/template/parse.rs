//! Builds the tree of a template from its tokens.
//!
//! Undefined variables, unknown functions and misplaced keywords are found here, so a template that parses fails only on data.

use serde_json::Value as Json;

use super::Flaw;
use super::functions::{self, Function};
use super::lex::{self, Kind, Token};

/// How deep actions and parentheses may nest; the recursion of parser and evaluator is bounded by it.
const MAX_DEPTH: usize = 100;

#[derive(Clone, Debug)]
pub(super) enum Node {
    Text(String),
    /// Prints the value, unless it was given to a variable.
    Action(Pipeline),
    If(Branch),
    With(Branch),
    Range(Branch),
    Break,
    Continue,
}

#[derive(Clone, Debug)]
pub(super) struct Branch {
    pub(super) pipeline: Pipeline,
    pub(super) then: Vec<Node>,
    pub(super) otherwise: Vec<Node>,
}

#[derive(Clone, Debug)]
pub(super) struct Pipeline {
    pub(super) target: Option<Target>,
    /// At least one.
    pub(super) commands: Vec<Command>,
    pub(super) at: usize,
}

/// The variables a pipeline is given to: one, or two in `range`.
#[derive(Clone, Debug)]
pub(super) struct Target {
    pub(super) names: Vec<String>,
    /// `:=` and not `=`.
    pub(super) declares: bool,
}

/// A word and what is passed to it.
#[derive(Clone, Debug)]
pub(super) struct Command {
    pub(super) head: Operand,
    pub(super) arguments: Vec<Operand>,
}

/// A value and the fields taken from it.
#[derive(Clone, Debug)]
pub(super) struct Operand {
    pub(super) base: Base,
    pub(super) fields: Vec<Field>,
    pub(super) at: usize,
}

#[derive(Clone, Debug)]
pub(super) struct Field {
    pub(super) name: String,
    pub(super) at: usize,
}

#[derive(Clone, Debug)]
pub(super) enum Base {
    Dot,
    Variable(String),
    Constant(Json),
    Nil,
    Function(&'static Function),
    Pipeline(Box<Pipeline>),
}

pub(super) fn parse(tokens: &[Token]) -> Result<Vec<Node>, Flaw> {
    let mut parser = Parser { tokens, next: 0, variables: vec!["$".to_owned()], depth: 0, loops: 0 };
    let (nodes, stop) = parser.nodes()?;
    match stop {
        Stop::End => Ok(nodes),
        Stop::Else(at) => Err(Flaw::new(at, "`else` has no `if`, `with` or `range` before it")),
        Stop::Close(at) => Err(Flaw::new(at, "`end` has nothing to end")),
    }
}

/// What ended a list of nodes; the parser stands after the word.
enum Stop {
    End,
    Else(usize),
    Close(usize),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Control {
    If,
    With,
    Range,
}

impl Control {
    fn of(word: &str) -> Option<Self> {
        match word {
            "if" => Some(Self::If),
            "with" => Some(Self::With),
            "range" => Some(Self::Range),
            _ => None,
        }
    }

    fn word(self) -> &'static str {
        match self {
            Self::If => "if",
            Self::With => "with",
            Self::Range => "range",
        }
    }
}

struct Parser<'a> {
    tokens: &'a [Token],
    next: usize,
    /// Names in scope, the innermost last.
    variables: Vec<String>,
    depth: usize,
    loops: usize,
}

impl<'a> Parser<'a> {
    fn peek(&self) -> &'a Token {
        // The lexer ends with `End`, which is never stepped over.
        &self.tokens[self.next.min(self.tokens.len() - 1)]
    }

    fn take(&mut self) -> &'a Token {
        let token = self.peek();
        self.next += 1;
        token
    }

    fn skip_space(&mut self) {
        while self.peek().kind == Kind::Space {
            self.next += 1;
        }
    }

    fn close(&mut self) -> Result<(), Flaw> {
        self.skip_space();
        let token = self.take();
        if token.kind == Kind::Close { Ok(()) } else { Err(unexpected(token, "expected `}}`")) }
    }

    fn deeper<T>(&mut self, at: usize, parse: impl FnOnce(&mut Self) -> Result<T, Flaw>) -> Result<T, Flaw> {
        if self.depth == MAX_DEPTH {
            return Err(Flaw::new(at, format!("more than {MAX_DEPTH} levels are nested here")));
        }
        self.depth += 1;
        let result = parse(self);
        self.depth -= 1;
        result
    }

    /// Parses until the template ends or an `else` or `end` belongs to the caller.
    fn nodes(&mut self) -> Result<(Vec<Node>, Stop), Flaw> {
        let mut nodes = Vec::new();
        loop {
            let token = self.take();
            let at = token.at;
            match &token.kind {
                Kind::Text(text) => nodes.push(Node::Text(text.clone())),
                Kind::Open => {
                    self.skip_space();
                    let word = match &self.peek().kind {
                        Kind::Word(word) => word.as_str(),
                        _ => "",
                    };
                    if matches!(word, "else" | "end") {
                        self.next += 1;
                        return Ok((nodes, if word == "end" { Stop::Close(at) } else { Stop::Else(at) }));
                    }
                    nodes.push(self.action(word)?);
                }
                _ => return Ok((nodes, Stop::End)),
            }
        }
    }

    /// Parses an action whose first word is `word`, after its `{{`.
    fn action(&mut self, word: &str) -> Result<Node, Flaw> {
        let at = self.peek().at;
        if let Some(control) = Control::of(word) {
            self.next += 1;
            return self.deeper(at, |parser| parser.control(control, at));
        }
        if matches!(word, "break" | "continue") {
            self.next += 1;
            if self.loops == 0 {
                return Err(Flaw::new(at, format!("`{word}` stands outside of `range`")));
            }
            self.close()?;
            return Ok(if word == "break" { Node::Break } else { Node::Continue });
        }
        let pipeline = self.pipeline(1)?;
        self.close()?;
        Ok(Node::Action(pipeline))
    }

    /// Parses `if`, `with` or `range` up to and with its `end`.
    fn control(&mut self, control: Control, at: usize) -> Result<Node, Flaw> {
        let scope = self.variables.len();
        let pipeline = self.pipeline(if control == Control::Range { 2 } else { 1 })?;
        self.close()?;
        let body = self.variables.len();
        let outer_loops = self.loops;
        self.loops += usize::from(control == Control::Range);
        let (then, stop) = self.nodes()?;
        self.loops = outer_loops;
        self.variables.truncate(body);
        let otherwise = match stop {
            Stop::Close(_) => {
                self.close()?;
                Vec::new()
            }
            Stop::Else(_) => self.otherwise(control, at)?,
            Stop::End => return Err(unclosed(control, at)),
        };
        self.variables.truncate(scope);
        let branch = Branch { pipeline, then, otherwise };
        Ok(match control {
            Control::If => Node::If(branch),
            Control::With => Node::With(branch),
            Control::Range => Node::Range(branch),
        })
    }

    /// Parses what follows `{{else`, up to and with the `end` of the whole.
    fn otherwise(&mut self, control: Control, at: usize) -> Result<Vec<Node>, Flaw> {
        self.skip_space();
        if let Kind::Word(word) = &self.peek().kind {
            let again = Control::of(word).filter(|again| *again == control && control != Control::Range);
            let Some(again) = again else {
                return Err(unexpected(self.peek(), &format!("expected `}}}}` or `else {}`", control.word())));
            };
            let at = self.take().at;
            return Ok(vec![self.deeper(at, |parser| parser.control(again, at))?]);
        }
        self.close()?;
        let (nodes, stop) = self.nodes()?;
        match stop {
            Stop::Close(_) => self.close()?,
            Stop::Else(at) => return Err(Flaw::new(at, "a second `else`")),
            Stop::End => return Err(unclosed(control, at)),
        }
        Ok(nodes)
    }

    /// Parses a pipeline that may be given to up to `targets` variables; stops before what closes it.
    fn pipeline(&mut self, targets: usize) -> Result<Pipeline, Flaw> {
        self.skip_space();
        let at = self.peek().at;
        let target = self.target(targets)?;
        let mut commands = Vec::new();
        loop {
            let at = self.peek().at;
            let command = self.command()?;
            if !commands.is_empty() && !callable(&command.head) {
                return Err(Flaw::new(at, "only a function can follow `|`"));
            }
            commands.push(command);
            self.skip_space();
            if self.peek().kind != Kind::Pipe {
                break;
            }
            self.next += 1;
        }
        // Visible only now: `$x := $x` reads the outer one.
        if let Some(target) = target.as_ref().filter(|target| target.declares) {
            self.variables.extend(target.names.iter().cloned());
        }
        Ok(Pipeline { target, commands, at })
    }

    /// Parses `$a :=`, `$a =` or `$a, $b :=` if that is what stands here.
    fn target(&mut self, targets: usize) -> Result<Option<Target>, Flaw> {
        let start = self.next;
        let mut names = Vec::new();
        while let Kind::Variable(name) = &self.peek().kind {
            names.push((name.clone(), self.take().at));
            self.skip_space();
            let token = self.peek();
            match token.kind {
                Kind::Comma if names.len() < targets => {
                    self.next += 1;
                    self.skip_space();
                }
                Kind::Comma => return Err(Flaw::new(token.at, "too many variables")),
                Kind::Declare | Kind::Assign => {
                    self.next += 1;
                    let declares = token.kind == Kind::Declare;
                    for (name, at) in &names {
                        if declares && name == "$" {
                            return Err(Flaw::new(*at, "`$` is the whole value and cannot be declared"));
                        }
                        if !declares {
                            self.defined(name, *at)?;
                        }
                    }
                    let names = names.into_iter().map(|(name, _)| name).collect();
                    return Ok(Some(Target { names, declares }));
                }
                _ => break,
            }
        }
        self.next = start;
        Ok(None)
    }

    fn defined(&self, name: &str, at: usize) -> Result<(), Flaw> {
        if self.variables.iter().any(|known| known == name) {
            return Ok(());
        }
        let near = super::suggestion(name, self.variables.iter().map(String::as_str).filter(|known| *known != "$"));
        Err(Flaw::new(at, format!("there is no variable `{name}`{near}")))
    }

    fn command(&mut self) -> Result<Command, Flaw> {
        self.skip_space();
        let head = self.operand()?;
        let mut arguments = Vec::new();
        while self.peek().kind == Kind::Space {
            self.skip_space();
            if matches!(self.peek().kind, Kind::Pipe | Kind::RightParen | Kind::Close) {
                break;
            }
            arguments.push(self.operand()?);
        }
        let token = self.peek();
        if !matches!(token.kind, Kind::Pipe | Kind::RightParen | Kind::Close) {
            return Err(unexpected(token, "operands are separated by blanks"));
        }
        if !arguments.is_empty() && !callable(&head) {
            return Err(Flaw::new(head.at, "this is given arguments but is no function"));
        }
        if arguments.is_empty() && matches!(head.base, Base::Nil) {
            return Err(Flaw::new(head.at, "`nil` alone is not a command"));
        }
        Ok(Command { head, arguments })
    }

    fn operand(&mut self) -> Result<Operand, Flaw> {
        let token = self.take();
        let at = token.at;
        let mut fields = Vec::new();
        let base = match &token.kind {
            Kind::Dot => Base::Dot,
            Kind::Field(name) => {
                fields.push(Field { name: name.clone(), at });
                Base::Dot
            }
            Kind::Variable(name) => {
                self.defined(name, at)?;
                Base::Variable(name.clone())
            }
            Kind::Str(text) => Base::Constant(Json::from(text.as_str())),
            Kind::Int(value) => Base::Constant(Json::from(*value)),
            Kind::Float(value) => Base::Constant(Json::from(*value)),
            Kind::LeftParen => {
                let inner = self.deeper(at, |parser| parser.pipeline(1))?;
                self.skip_space();
                let token = self.take();
                if token.kind != Kind::RightParen {
                    return Err(unexpected(token, "expected `)`"));
                }
                Base::Pipeline(Box::new(inner))
            }
            Kind::Word(word) => named(word, at)?,
            _ => return Err(unexpected(token, "expected a value")),
        };
        while let Kind::Field(name) = &self.peek().kind {
            let at = self.take().at;
            if matches!(base, Base::Constant(_) | Base::Nil | Base::Function(_)) {
                return Err(Flaw::new(at, format!("`.{name}` follows something that has no fields")));
            }
            fields.push(Field { name: name.clone(), at });
        }
        Ok(Operand { base, fields, at })
    }
}

/// A word that is no keyword in this place.
fn named(word: &str, at: usize) -> Result<Base, Flaw> {
    match word {
        "true" => Ok(Base::Constant(Json::from(true))),
        "false" => Ok(Base::Constant(Json::from(false))),
        "nil" => Ok(Base::Nil),
        _ if lex::KEYWORDS.contains(&word) => Err(Flaw::new(at, format!("`{word}` can only start an action"))),
        _ => match functions::find(word) {
            Some(function) => Ok(Base::Function(function)),
            None => Err(Flaw::new(at, lex::unknown_word(word, &functions::names()))),
        },
    }
}

/// Functions can be called, and so can `.Label` of a row (whether it is one shows when it is evaluated).
fn callable(head: &Operand) -> bool {
    matches!(head.base, Base::Function(_)) || !head.fields.is_empty()
}

fn unclosed(control: Control, at: usize) -> Flaw {
    Flaw::new(at, format!("this `{}` has no `{{{{end}}}}`", control.word()))
}

fn unexpected(token: &Token, wanted: &str) -> Flaw {
    let found = match &token.kind {
        Kind::End | Kind::Text(_) | Kind::Open => "the end of the action".to_owned(),
        Kind::Close => "`}}`".to_owned(),
        Kind::Space => "a blank".to_owned(),
        Kind::Dot => "`.`".to_owned(),
        Kind::Field(name) => format!("`.{name}`"),
        Kind::Variable(name) | Kind::Word(name) => format!("`{name}`"),
        Kind::Str(_) => "a string".to_owned(),
        Kind::Int(_) | Kind::Float(_) => "a number".to_owned(),
        Kind::Pipe => "`|`".to_owned(),
        Kind::LeftParen => "`(`".to_owned(),
        Kind::RightParen => "`)`".to_owned(),
        Kind::Comma => "`,`".to_owned(),
        Kind::Declare => "`:=`".to_owned(),
        Kind::Assign => "`=`".to_owned(),
    };
    Flaw::new(token.at, format!("unexpected {found}; {wanted}"))
}
