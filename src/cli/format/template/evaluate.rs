//! Walks a parsed template and writes what it yields.
//!
//! Everything that costs time or memory is charged to one budget, so hostile templates end with an error.

use std::rc::Rc;

use serde_json::Value as Json;

use super::functions::Call;
use super::parse::{Base, Branch, Command, Field, Node, Operand, Pipeline};
use super::value::{self, Absent, Item, noun};
use super::{Flaw, Labels, Scope, suggestion};

/// Steps and bytes one rendering may spend: 16 million. A large `inspect` needs a few hundred thousand.
const BUDGET: usize = 1 << 24;

/// Fields of the Engine API whose keys are the user's: one that is missing there is no mistake, and prints as Go's `<no value>`.
const MAPS: &[&str] = &[
    "Labels",
    "Options",
    "Annotations",
    "Networks",
    "Ports",
    "Volumes",
    "ExposedPorts",
    "Sysctls",
    "Tmpfs",
    "DriverOpts",
];

pub(super) fn render(nodes: &[Node], scope: &Scope<'_>) -> Result<String, Flaw> {
    let root = Item::Data(scope.root);
    let variables = vec![("$", root.clone())];
    let mut renderer = Renderer { scope, variables, out: String::new(), left: BUDGET };
    renderer.nodes(nodes, &root)?;
    Ok(renderer.out)
}

/// How a list of nodes ended.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Flow {
    On,
    Break,
    Continue,
}

struct Renderer<'a> {
    scope: &'a Scope<'a>,
    /// Names and values in scope, the innermost last.
    variables: Vec<(&'a str, Item<'a>)>,
    out: String,
    left: usize,
}

impl<'a> Renderer<'a> {
    fn charge(&mut self, cost: usize, at: usize) -> Result<(), Flaw> {
        let left = self.left.checked_sub(cost);
        self.left = left.ok_or_else(|| Flaw::new(at, "the template does too much work here"))?;
        Ok(())
    }

    fn nodes(&mut self, nodes: &'a [Node], dot: &Item<'a>) -> Result<Flow, Flaw> {
        for node in nodes {
            let flow = match node {
                Node::Text(text) => {
                    self.charge(text.len(), 0)?;
                    self.out.push_str(text);
                    Flow::On
                }
                Node::Action(pipeline) => {
                    self.action(pipeline, dot)?;
                    Flow::On
                }
                Node::If(branch) => self.choose(branch, dot, Dot::Stays)?,
                Node::With(branch) => self.choose(branch, dot, Dot::Moves)?,
                Node::Range(branch) => self.range(branch, dot)?,
                Node::Break => Flow::Break,
                Node::Continue => Flow::Continue,
            };
            if flow != Flow::On {
                return Ok(flow);
            }
        }
        Ok(Flow::On)
    }

    fn action(&mut self, pipeline: &'a Pipeline, dot: &Item<'a>) -> Result<(), Flaw> {
        let item = self.pipeline(pipeline, dot)?;
        if pipeline.target.is_some() {
            return Ok(());
        }
        let item = present(item)?;
        let start = self.out.len();
        match item.json() {
            Json::Null => self.out.push_str("<no value>"),
            json => value::print(json, &mut self.out),
        }
        self.charge(self.out.len() - start, pipeline.at)
    }

    fn choose(&mut self, branch: &'a Branch, dot: &Item<'a>, moves: Dot) -> Result<Flow, Flaw> {
        let depth = self.variables.len();
        let item = self.pipeline(&branch.pipeline, dot)?;
        let flow = match (item.is_true(), moves) {
            (true, Dot::Stays) => self.nodes(&branch.then, dot),
            (true, Dot::Moves) => self.nodes(&branch.then, &item),
            (false, _) => self.nodes(&branch.otherwise, dot),
        };
        self.variables.truncate(depth);
        flow
    }

    fn range(&mut self, branch: &'a Branch, dot: &Item<'a>) -> Result<Flow, Flaw> {
        let depth = self.variables.len();
        let item = self.commands(&branch.pipeline, dot)?;
        let names = branch.pipeline.target.as_ref().map_or(0, |target| target.names.len());
        let at = branch.pipeline.at;
        let negative = item.json().as_i64().is_some_and(i64::is_negative);
        if negative || !item.is_true() && !matches!(item.json(), Json::Bool(_) | Json::String(_)) {
            let flow = self.nodes(&branch.otherwise, dot);
            self.variables.truncate(depth);
            return flow;
        }
        let mut flow = Flow::On;
        for turn in turns(&item, names).map_err(|message| Flaw::new(at, message))? {
            let (key, element) = turn;
            self.charge(1, at)?;
            self.bind_turn(&branch.pipeline, key, element.clone())?;
            flow = self.nodes(&branch.then, &element)?;
            self.variables.truncate(depth);
            if flow == Flow::Break {
                break;
            }
        }
        self.variables.truncate(depth);
        Ok(if flow == Flow::Continue || flow == Flow::Break { Flow::On } else { flow })
    }

    fn bind_turn(&mut self, pipeline: &'a Pipeline, key: Item<'a>, element: Item<'a>) -> Result<(), Flaw> {
        match pipeline.target.as_ref().map(|target| target.names.as_slice()) {
            Some([name]) => self.bind(pipeline, name, element),
            Some([first, second]) => {
                self.bind(pipeline, first, key)?;
                self.bind(pipeline, second, element)
            }
            _ => Ok(()),
        }
    }

    fn bind(&mut self, pipeline: &'a Pipeline, name: &'a str, item: Item<'a>) -> Result<(), Flaw> {
        if pipeline.target.as_ref().is_some_and(|target| target.declares) {
            self.variables.push((name, item));
            return self.charge(1, pipeline.at);
        }
        let variable = self.variables.iter_mut().rev().find(|(known, _)| *known == name);
        let missing = || Flaw::new(pipeline.at, format!("there is no variable `{name}` here"));
        variable.ok_or_else(missing)?.1 = item;
        Ok(())
    }

    /// Evaluates a pipeline and gives its value to its variable, if it names one.
    fn pipeline(&mut self, pipeline: &'a Pipeline, dot: &Item<'a>) -> Result<Item<'a>, Flaw> {
        let item = self.commands(pipeline, dot)?;
        if let Some([name, ..]) = pipeline.target.as_ref().map(|target| target.names.as_slice()) {
            self.bind(pipeline, name, item.clone())?;
        }
        Ok(item)
    }

    fn commands(&mut self, pipeline: &'a Pipeline, dot: &Item<'a>) -> Result<Item<'a>, Flaw> {
        let mut piped = None;
        for command in &pipeline.commands {
            piped = Some(self.command(command, piped, dot)?);
        }
        Ok(piped.expect("the parser makes no pipeline without a command"))
    }

    fn command(&mut self, command: &'a Command, piped: Option<Item<'a>>, dot: &Item<'a>) -> Result<Item<'a>, Flaw> {
        let at = command.head.at;
        self.charge(1, at)?;
        let called = !command.arguments.is_empty() || piped.is_some();
        let Base::Function(function) = &command.head.base else {
            if !called {
                return self.operand(&command.head, dot);
            }
            return self.label(command, piped, dot);
        };
        let count = command.arguments.len() + usize::from(piped.is_some());
        function.accepts(count).map_err(|message| Flaw::new(at, message))?;
        let mut arguments = Vec::with_capacity(count);
        for argument in &command.arguments {
            let item = self.operand(argument, dot)?;
            let decided = function.stops_at(&item);
            arguments.push(if function.takes_absent() { item } else { present(item)? });
            if decided {
                return Ok(arguments.pop().expect("just pushed"));
            }
        }
        arguments.extend(piped.map(|item| if function.takes_absent() { Ok(item) } else { present(item) }).transpose()?);
        let call = Call { arguments, cells: self.scope.cells, budget: self.left };
        let (item, cost) =
            function.call(&call).map_err(|message| Flaw::new(at, format!("{}: {message}", function.name)))?;
        self.charge(cost, at)?;
        Ok(item)
    }

    /// Calls `.Label "key"`, the one method rows have.
    fn label(&mut self, command: &'a Command, piped: Option<Item<'a>>, dot: &Item<'a>) -> Result<Item<'a>, Flaw> {
        let head = &command.head;
        let is_row = self.is_root(&self.base(&head.base, dot)?);
        let label = match (head.fields.as_slice(), self.scope.labels) {
            (_, Labels::None) => None,
            ([Field { name, .. }], labels) if is_row && name == "Label" => Some(labels),
            _ => None,
        };
        let Some(labels) = label else {
            return Err(Flaw::new(head.at, "a field takes no arguments"));
        };
        let mut arguments = Vec::new();
        for argument in &command.arguments {
            arguments.push(self.operand(argument, dot)?);
        }
        arguments.extend(piped);
        let [item] = arguments.as_slice() else {
            return Err(Flaw::new(head.at, "`.Label` takes the name of one label"));
        };
        let Json::String(key) = item.json() else {
            return Err(Flaw::new(head.at, "`.Label` takes the name of a label, a string"));
        };
        Ok(Item::made(match labels {
            Labels::Of(labels) => labels.get(key).cloned().unwrap_or_default(),
            _ => key.clone(),
        }))
    }

    fn is_root(&self, item: &Item<'_>) -> bool {
        matches!(item, Item::Data(json) if std::ptr::eq(*json, self.scope.root))
    }

    /// The value before the fields, where that needs no evaluation.
    fn base(&self, base: &Base, dot: &Item<'a>) -> Result<Item<'a>, Flaw> {
        match base {
            Base::Dot => Ok(dot.clone()),
            Base::Variable(name) => {
                let variable = self.variables.iter().rev().find(|(known, _)| known == name);
                variable
                    .map(|(_, item)| item.clone())
                    .ok_or_else(|| Flaw::new(0, format!("there is no variable `{name}`")))
            }
            _ => Ok(Item::made(Json::Null)),
        }
    }

    fn operand(&mut self, operand: &'a Operand, dot: &Item<'a>) -> Result<Item<'a>, Flaw> {
        let mut item = match &operand.base {
            base @ (Base::Dot | Base::Variable(_)) => self.base(base, dot)?,
            Base::Constant(json) => Item::Data(json),
            Base::Nil => Item::made(Json::Null),
            Base::Pipeline(pipeline) => self.pipeline(pipeline, dot)?,
            Base::Function(function) => {
                // A function without arguments, used as an argument; none of ours can be called like that.
                let message = function.accepts(0).err().unwrap_or_default();
                return Err(Flaw::new(operand.at, message));
            }
        };
        let mut reached_by = "";
        for field in &operand.fields {
            self.charge(1, field.at)?;
            item = self.field(item, field, reached_by)?;
            reached_by = &field.name;
        }
        Ok(item)
    }

    /// Takes a field of a value that was itself reached by the name `reached_by`.
    fn field(&self, item: Item<'a>, field: &Field, reached_by: &str) -> Result<Item<'a>, Flaw> {
        let is_row = self.is_root(&item) && !matches!(self.scope.labels, Labels::None);
        let absent = |message: String| Ok(Item::Absent(Rc::new(Absent { at: field.at, message })));
        let name = &field.name;
        match &item {
            Item::Absent(_) => Ok(item),
            Item::Data(Json::Object(fields)) => match find(fields, name) {
                Some(json) => Ok(Item::Data(json)),
                None if MAPS.contains(&reached_by) => Ok(Item::made(Json::Null)),
                None => {
                    let near = suggestion(name, fields.keys().map(String::as_str));
                    let message = format!("there is no field `{name}`{near}");
                    if is_row { Err(Flaw::new(field.at, message)) } else { absent(message) }
                }
            },
            Item::Made(json) if json.is_object() => {
                let found = json.as_object().and_then(|fields| find(fields, name));
                found.map_or_else(|| absent(format!("there is no field `{name}`")), |json| Ok(Item::made(json.clone())))
            }
            _ if item.json().is_null() => absent(format!("there is no field `{name}` in nothing (null)")),
            _ => Err(Flaw::new(field.at, format!("there is no field `{name}` in {}", noun(item.json())))),
        }
    }
}

/// Whether `.` becomes the value that was tested.
#[derive(Clone, Copy)]
enum Dot {
    Stays,
    Moves,
}

/// Finds a field by its name, else by its only spelling in another case.
fn find<'a>(fields: &'a serde_json::Map<String, Json>, name: &str) -> Option<&'a Json> {
    fields.get(name).or_else(|| {
        let mut similar = fields.iter().filter(|(key, _)| key.eq_ignore_ascii_case(name));
        let (_, json) = similar.next()?;
        similar.next().is_none().then_some(json)
    })
}

/// Turns an absent field into the error it stands for.
fn present(item: Item<'_>) -> Result<Item<'_>, Flaw> {
    match item {
        Item::Absent(absent) => Err(Flaw::new(absent.at, absent.message.clone())),
        item => Ok(item),
    }
}

type Turns<'a> = Box<dyn Iterator<Item = (Item<'a>, Item<'a>)> + 'a>;

/// Returns what a `range` with that many variables walks over.
fn turns<'a>(item: &Item<'a>, names: usize) -> Result<Turns<'a>, String> {
    let numbered = |index: usize| Item::made(index);
    Ok(match item {
        Item::Data(Json::Array(items)) => {
            Box::new(items.iter().enumerate().map(move |(index, json)| (numbered(index), Item::Data(json))))
        }
        Item::Data(Json::Object(fields)) => {
            let entries = value::sorted(fields).into_iter();
            Box::new(entries.map(|(key, json)| (Item::made(key.as_str()), Item::Data(json))))
        }
        Item::Made(made) if made.is_array() => {
            let made = made.clone();
            let length = made.as_array().map_or(0, Vec::len);
            Box::new((0..length).map(move |index| (numbered(index), Item::made(made[index].clone()))))
        }
        _ => match item.json().as_i64() {
            Some(_) if names > 1 => return Err("a number can be ranged over with one variable only".to_owned()),
            Some(count) => Box::new((0..count).map(|index| (Item::made(index), Item::made(index)))),
            None => return Err(format!("cannot range over {}", noun(item.json()))),
        },
    })
}
