//! Which records of the history are meant: BuildKit's filters. A filter has clauses, separated by commas, all of which must hold;
//! of several filters, one must hold.

use regex::Regex;

use crate::api::params::{go_duration, point_in_time};
use crate::error::{Error, Result};
use crate::solver::history::Record;

/// What can be compared.
const FIELDS: &[&str] = &["ref", "status", "repository", "startedAt", "completedAt", "duration"];

/// Filters; none takes every record.
#[derive(Debug, Default)]
pub(super) struct Filters(Vec<Vec<Clause>>);

#[derive(Debug)]
enum Clause {
    /// A field that is text, and whether it is to match or not to.
    Text { field: String, wanted: Wanted, matches: bool },
    /// A field that is a number, and how it is compared.
    Number { field: String, comparison: Comparison, number: i64 },
}

#[derive(Debug)]
enum Wanted {
    Equal(String),
    Like(Regex),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Comparison {
    Less,
    AtMost,
    More,
    AtLeast,
}

/// The operators, those that begin like another before it.
const OPERATORS: &[&str] = &["==", "!=", "~=", "<=", ">=", "=", "<", ">"];

impl Filters {
    /// Reads filters; lengths of time are from `now_ns` back.
    ///
    /// # Errors
    /// `InvalidArgument` naming what is not understood.
    pub(super) fn parse(filters: &[String], now_ns: i64) -> Result<Self> {
        let clauses = |filter: &String| {
            let clauses = filter.split(',').map(str::trim).filter(|clause| !clause.is_empty());
            clauses.map(|clause| Clause::parse(clause, now_ns)).collect::<Result<Vec<_>>>()
        };
        Ok(Self(filters.iter().map(clauses).collect::<Result<_>>()?))
    }

    /// Says whether a record is meant.
    pub(super) fn take(&self, record: &Record) -> bool {
        self.0.is_empty() || self.0.iter().any(|clauses| clauses.iter().all(|clause| clause.holds(record)))
    }
}

impl Clause {
    fn parse(text: &str, now_ns: i64) -> Result<Self> {
        let invalid = |why: &str| Error::invalid(format!("invalid filter {text:?}: {why}"));
        let at =
            text.find(['=', '!', '~', '<', '>']).ok_or_else(|| invalid("expected a field, an operator, a value"))?;
        let (field, rest) = text.split_at(at);
        let operator = OPERATORS.iter().find(|operator| rest.starts_with(**operator));
        let operator = operator.ok_or_else(|| invalid("the operators are == != ~= < <= > >="))?;
        let (field, value) = (field.trim(), rest[operator.len()..].trim().trim_matches('"'));
        if !FIELDS.contains(&field) {
            let meant = kiln_graph::diagnostic::closest(field, FIELDS.iter().copied());
            let hint = meant.map_or_else(|| FIELDS.join(", "), |meant| format!("did you mean {meant}?"));
            return Err(invalid(&format!("there is no field {field:?} ({hint})")));
        }
        if matches!(field, "ref" | "status" | "repository") {
            let wanted = match *operator {
                "==" | "=" | "!=" => Wanted::Equal(value.to_owned()),
                "~=" => Wanted::Like(Regex::new(value).map_err(|error| invalid(&error.to_string()))?),
                _ => return Err(invalid("this field is text, which has no order")),
            };
            return Ok(Self::Text { field: field.to_owned(), wanted, matches: *operator != "!=" });
        }
        let comparison = match *operator {
            "<" => Comparison::Less,
            "<=" => Comparison::AtMost,
            ">" => Comparison::More,
            ">=" => Comparison::AtLeast,
            _ => return Err(invalid("times are compared with < <= > >=")),
        };
        let number = match field {
            "duration" => go_duration(value).ok_or_else(|| invalid("expected a length of time, such as 90s"))?,
            _ => point_in_time(value, now_ns)?,
        };
        Ok(Self::Number { field: field.to_owned(), comparison, number })
    }

    fn holds(&self, record: &Record) -> bool {
        match self {
            Self::Text { field, wanted, matches } => {
                let text = text(field, record);
                let found = match wanted {
                    Wanted::Equal(wanted) => text == *wanted,
                    Wanted::Like(pattern) => pattern.is_match(&text),
                };
                found == *matches
            }
            Self::Number { field, comparison, number: wanted } => {
                let Some(number) = number(field, record) else { return false };
                match comparison {
                    Comparison::Less => number < *wanted,
                    Comparison::AtMost => number <= *wanted,
                    Comparison::More => number > *wanted,
                    Comparison::AtLeast => number >= *wanted,
                }
            }
        }
    }
}

fn text(field: &str, record: &Record) -> String {
    let attrs = &record.build.attrs;
    match field {
        "ref" => record.build.reference.clone(),
        "status" => status(record).to_owned(),
        _ => {
            let context = || attrs.get("context").map(|context| context.split(['#', '?']).next().unwrap_or_default());
            attrs.get("vcs:source").map(String::as_str).or_else(context).unwrap_or_default().to_owned()
        }
    }
}

/// Returns BuildKit's word for how a build is.
fn status(record: &Record) -> &'static str {
    match (record.completed_ns, &record.failed) {
        (None, _) => "running",
        (Some(_), None) => "completed",
        (Some(_), Some(failed)) if failed.code == i32::from(tonic::Code::Cancelled) => "canceled",
        (Some(_), Some(_)) => "error",
    }
}

fn number(field: &str, record: &Record) -> Option<i64> {
    match field {
        "startedAt" => Some(record.created_ns),
        "completedAt" => record.completed_ns,
        _ => record.completed_ns.map(|completed| completed - record.created_ns),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::solver::history::{Failed, History, Limits, NewBuild, Outcome};
    use crate::state::Root;
    use crate::task::{Clock, Tasks};

    async fn record(failed: Option<Failed>) -> Record {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::open(dir.path(), &[crate::solver::history::SCHEMA]).unwrap();
        let history = History::new(root, Clock::system(), Tasks::new(), Limits::default());
        let progress = crate::solver::progress::Progress::new(Clock::system());
        let build = NewBuild {
            reference: "abc".to_owned(),
            name: String::new(),
            frontend: String::new(),
            attrs: [("context".to_owned(), "https://example.com/a.git#main".to_owned())].into(),
            exporters: Vec::new(),
        };
        let recording = history.begin(build, progress.watch(), |_| Vec::new());
        progress.end();
        recording.end(Outcome { failed, ..Outcome::default() }).await.unwrap();
        history.find("abc").unwrap().unwrap()
    }

    fn take(filters: &[&str], record: &Record) -> bool {
        let now = record.created_ns + 3_600_000_000_000;
        let filters: Vec<String> = filters.iter().map(|&filter| filter.to_owned()).collect();
        Filters::parse(&filters, now).unwrap().take(record)
    }

    #[tokio::test]
    async fn records_are_selected_by_their_fields() {
        let done = record(None).await;
        for (filters, taken) in [
            (&[][..], true),
            (&["status==completed"], true),
            (&["status=error"], false),
            (&["status!=error,ref~=^a"], true),
            (&["status==error", "ref==abc"], true),
            (&["repository==https://example.com/a.git"], true),
            (&["startedAt>2h"], true),
            (&["startedAt>30m"], false),
            (&["duration<10m,completedAt>=2h"], true),
            (&["duration>10m"], false),
        ] {
            assert_eq!(take(filters, &done), taken, "{filters:?}");
        }
        let cancelled = record(Some(Failed { code: 1, ..Failed::default() })).await;
        assert!(take(&["status==canceled"], &cancelled) && !take(&["status==error"], &cancelled));
    }

    #[test]
    fn what_is_not_understood_is_named() {
        for (filter, words) in [
            ("statsu==error", "did you mean status?"),
            ("status", "operator"),
            ("status<error", "no order"),
            ("duration==1s", "compared"),
            ("duration>soon", "length of time"),
            ("startedAt>soon", "soon"),
            ("ref~=[", "ref~=["),
        ] {
            let error = Filters::parse(&[filter.to_owned()], 0).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
    }
}
