//! How a build fails: the error, and the place in the source that it is about.

use std::fmt;

use kiln_graph::graph::Location;
use kiln_graph::{Diagnostic, Digest, Graph, SourceFile};

use super::unmade::{Left, Unmade};
use super::value::Remains;
use crate::error::{Error, Kind};

/// A failed build.
#[derive(Debug)]
pub struct Failure {
    /// What went wrong.
    pub error: Error,
    /// The step that failed.
    pub vertex: Option<Digest>,
    /// The places in the sources it is about.
    pub places: Vec<Place>,
    /// What is left of the step, for whoever can look into it.
    pub(super) remains: Option<Box<Remains>>,
    /// The step in the words of definitions, for frontends.
    pub unmade: Option<Box<Unmade>>,
}

/// A place in a source file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The file.
    pub file: SourceFile,
    /// First and last line, from 1.
    pub lines: (u32, u32),
    /// The column in the first line where the place begins and that in the last line where it ends, from 1 and in characters;
    /// `None` when whole lines are meant.
    pub columns: Option<(u32, u32)>,
    /// What is wrong there and what to do about it, when that is not the error itself.
    pub finding: Option<Diagnostic>,
}

impl Failure {
    /// Returns the failure as a frontend that is no part of Kiln reported it, with whatever else it said.
    #[must_use]
    pub fn reported(&self) -> Option<&tonic::Status> {
        self.error.cause::<Reported>().map(|reported| &reported.0)
    }

    /// Returns the id under which the step is kept as it stood, when that was asked for; see [`super::Solver::failed_step`].
    #[must_use]
    pub fn kept(&self) -> Option<&str> {
        match self.remains.as_deref() {
            Some(Remains::Step(id)) => Some(id),
            _ => None,
        }
    }

    /// Returns what the process of the step left.
    pub(super) fn left(&self) -> Option<&Left> {
        match self.remains.as_deref() {
            Some(Remains::Files(left)) => Some(left),
            _ => None,
        }
    }

    /// Adds the id under which the step is kept.
    #[must_use]
    pub fn keeping(self, id: String) -> Self {
        Self { remains: Some(Box::new(Remains::Step(id))), ..self }
    }

    /// Makes a failure of a step.
    #[must_use]
    pub fn of_step(error: Error, graph: &Graph, vertex: &kiln_graph::Vertex) -> Self {
        let places = vertex.meta.location.and_then(|location| place(graph, location)).into_iter().collect();
        Self { vertex: Some(vertex.digest()), places, ..error.into() }
    }

    /// Makes a failure of a source file that cannot be built from.
    #[must_use]
    pub fn of_source(file: &SourceFile, diagnostics: Vec<Diagnostic>) -> Self {
        let summary = match diagnostics.as_slice() {
            [one] => one.to_string(),
            [first, rest @ ..] => format!("{first} (and {} more)", rest.len()),
            [] => "the source cannot be built".to_owned(),
        };
        let places = diagnostics.into_iter().filter_map(|diagnostic| {
            let (file, span) = file.origin(diagnostic.span?);
            let (start, end) = (file.position(span.start), file.position(span.end));
            let last = if start.line == end.line { end.column.max(start.column) } else { end.column };
            let columns = Some((start.column, last));
            let lines = file.lines(span);
            Some(Place { file: file.clone(), lines, columns, finding: Some(diagnostic) })
        });
        Self { places: places.collect(), ..Error::invalid(summary).into() }
    }
}

impl From<tonic::Status> for Failure {
    /// The failure that a frontend reports.
    fn from(status: tonic::Status) -> Self {
        let error = Error::new(Kind::from_grpc(status.code().into()), "the frontend reports");
        error.with_source(Reported(status)).into()
    }
}

/// The cause of a failure that a frontend reported which is no part of Kiln.
#[derive(Debug)]
struct Reported(tonic::Status);

impl fmt::Display for Reported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.message())
    }
}

impl std::error::Error for Reported {}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self { error, vertex: None, places: Vec::new(), remains: None, unmade: None }
    }
}

fn place(graph: &Graph, location: Location) -> Option<Place> {
    let file = graph.sources().get(location.file as usize)?.clone();
    Some(Place { lines: file.lines(location.span), file, columns: None, finding: None })
}
