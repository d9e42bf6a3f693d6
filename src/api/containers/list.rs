//! `GET /containers/json`: which containers there are, and what they are doing, in the words of `docker ps`.

use std::collections::HashMap;

use axum::Json;
use axum::extract::State;
use serde_json::{Value, json};

use super::inspect::{image_size, mounts, network_name, networks};
use crate::api::Answer;
use crate::api::params::{Filters, Params};
use crate::container::Containers;
use crate::container::record::{Record, State as Doing};
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::task;

/// Filters that are understood. docker knows more; what Kiln has no notion of (health, published ports) is refused by name.
const FILTERS: &[&str] = &[
    "ancestor", "before", "exited", "id", "is-task", "label", "label!", "name", "network", "since", "status", "volume",
];

/// `GET /containers/json`.
pub(super) async fn list(State(engine): State<Engine>, params: Params) -> Answer<Json<Vec<Value>>> {
    let filters = params.filters(FILTERS)?;
    let limit = params.text("limit").map(str::parse::<i64>).transpose();
    let limit = limit.map_err(|_| Error::invalid("invalid limit"))?.and_then(|limit| usize::try_from(limit).ok());
    let limit = limit.filter(|limit| *limit > 0);
    // A limit, and filters that are about containers that do not run, list those, too.
    let all =
        params.flag("all") || limit.is_some() || ["status", "exited"].iter().any(|key| !filters.all(key).is_empty());
    let size = params.flag("size");
    let listed = task::blocking(move || {
        let records = Selection::new(&engine, &filters)?.apply(engine.containers().list()?, all);
        let now_ns = engine.clock().now_ns();
        let mut names = ImageNames { engine: &engine, known: HashMap::new() };
        records
            .iter()
            .take(limit.unwrap_or(usize::MAX))
            .map(|record| {
                let mut item = summary(engine.containers(), record, now_ns, &names.of(record)?);
                if size {
                    let bytes = engine.containers().layer_size(record)?;
                    item["SizeRw"] = json!(bytes);
                    item["SizeRootFs"] = json!(bytes + image_size(&engine, record)?);
                }
                Ok(item)
            })
            .collect::<Result<Vec<_>>>()
    })
    .await?;
    Ok(Json(listed))
}

/// What a container's image is called: as it was named, as long as that name still means it, else its id.
struct ImageNames<'a> {
    engine: &'a Engine,
    known: HashMap<String, Option<kiln_graph::Digest>>,
}

impl ImageNames<'_> {
    fn of(&mut self, record: &Record) -> Result<String> {
        let config = &record.config;
        let found = match self.known.get(&config.image) {
            Some(found) => *found,
            None => {
                let find = |c: &rusqlite::Connection| crate::image::record::find(c, &config.image);
                let found = self.engine.root().db().read(find).ok().map(|(image, _)| image.id);
                self.known.insert(config.image.clone(), found);
                found
            }
        };
        Ok(if found == Some(config.image_id) { config.image.clone() } else { config.image_id.to_string() })
    }
}

fn summary(containers: &Containers, record: &Record, now_ns: i64, image: &str) -> Value {
    let config = &record.config;
    let paused = containers.is_paused(record);
    json!({
        "Id": record.id.as_str(),
        "Names": [format!("/{}", record.name)],
        "Image": image,
        "ImageID": config.image_id,
        "Command": command(&config.args()),
        "Created": record.created_ns / 1_000_000_000,
        "Ports": [],
        "Labels": config.labels,
        "State": state_word(record, paused),
        "Status": status(record, paused, now_ns),
        "HostConfig": { "NetworkMode": network_name(config.host.network) },
        "NetworkSettings": { "Networks": networks(record) },
        "Mounts": mounts(containers, record),
    })
}

/// The command line with quotes where docker puts them.
fn command(args: &[String]) -> String {
    let quoted = |arg: &String| if arg.contains(' ') { format!("'{arg}'") } else { arg.clone() };
    let first = args.first().cloned();
    first.into_iter().chain(args.iter().skip(1).map(quoted)).collect::<Vec<_>>().join(" ")
}

fn state_word(record: &Record, paused: bool) -> &'static str {
    match &record.state {
        Doing::Created { .. } => "created",
        Doing::Running { .. } if paused => "paused",
        Doing::Running { .. } => "running",
        Doing::Restarting(_) => "restarting",
        Doing::Exited(_) => "exited",
    }
}

/// What a container is doing and for how long, in docker's words.
fn status(record: &Record, paused: bool, now_ns: i64) -> String {
    let since = |ns: i64| words(now_ns.saturating_sub(ns) / 1_000_000_000);
    match &record.state {
        Doing::Created { .. } => "Created".to_owned(),
        Doing::Running { started_ns, .. } => {
            format!("Up {}{}", since(*started_ns), if paused { " (Paused)" } else { "" })
        }
        Doing::Restarting(exited) => format!("Restarting ({}) {} ago", exited.code, since(exited.finished_ns)),
        Doing::Exited(exited) => format!("Exited ({}) {} ago", exited.code, since(exited.finished_ns)),
    }
}

/// A length of time in docker's words (go-units, `HumanDuration`): hours are rounded, everything else is cut.
fn words(seconds: i64) -> String {
    const HOUR: i64 = 3600;
    let (minutes, hours) = (seconds / 60, (seconds + HOUR / 2) / HOUR);
    match (seconds, minutes, hours) {
        (..=0, ..) => "Less than a second".to_owned(),
        (1, ..) => "1 second".to_owned(),
        (..60, ..) => format!("{seconds} seconds"),
        (_, 1, _) => "About a minute".to_owned(),
        (_, ..60, _) => format!("{minutes} minutes"),
        (_, _, ..=1) => "About an hour".to_owned(),
        (_, _, ..48) => format!("{hours} hours"),
        (_, _, ..336) => format!("{} days", hours / 24),
        (_, _, ..1440) => format!("{} weeks", hours / 24 / 7),
        (_, _, ..17520) => format!("{} months", hours / 24 / 30),
        _ => format!("{} years", seconds / 86400 / 365),
    }
}

/// Filters, with what they name looked up.
struct Selection<'a> {
    engine: &'a Engine,
    filters: &'a Filters,
    names: Vec<regex::Regex>,
    before_ns: Option<i64>,
    since_ns: Option<i64>,
    ancestors: Vec<kiln_graph::Digest>,
}

impl<'a> Selection<'a> {
    fn new(engine: &'a Engine, filters: &'a Filters) -> Result<Self> {
        let pattern = |text: &String| {
            regex::Regex::new(text).map_err(|error| Error::invalid(format!("invalid filter 'name={text}': {error}")))
        };
        let created = |key: &str| {
            let reference = filters.all(key).first();
            reference.map(|reference| Ok::<_, Error>(engine.containers().find(reference)?.created_ns)).transpose()
        };
        for status in filters.all("status") {
            let known = ["created", "restarting", "running", "removing", "paused", "exited", "dead"];
            if !known.contains(&status.as_str()) {
                return Err(Error::invalid(format!("invalid filter 'status={status}'")));
            }
        }
        if let Some(code) = filters.all("exited").iter().find(|code| code.parse::<i32>().is_err()) {
            return Err(Error::invalid(format!("invalid filter 'exited={code}'")));
        }
        // An image that is not here has no containers.
        let find = |name: &String| {
            let found = engine.root().db().read(|connection| crate::image::record::find(connection, name));
            found.ok().map(|(image, _)| image.id)
        };
        Ok(Self {
            engine,
            filters,
            names: filters.all("name").iter().map(pattern).collect::<Result<_>>()?,
            before_ns: created("before")?,
            since_ns: created("since")?,
            ancestors: filters.all("ancestor").iter().filter_map(find).collect(),
        })
    }

    fn apply(&self, records: Vec<Record>, all: bool) -> Vec<Record> {
        records.into_iter().filter(|record| (all || record.state.is_live()) && self.matches(record)).collect()
    }

    fn matches(&self, record: &Record) -> bool {
        let config = &record.config;
        let name = format!("/{}", record.name);
        let filters = self.filters;
        let volume = |wanted: &str| {
            config.host.mounts.iter().any(|mount| {
                let source = match &mount.source {
                    crate::container::config::MountSource::Bind { path, .. } => path.to_str(),
                    _ => None,
                };
                mount.target == wanted || source == Some(wanted)
            })
        };
        filters.labels(&config.labels)
            && (self.names.is_empty() || self.names.iter().any(|n| n.is_match(&name) || n.is_match(&record.name)))
            && filters.any("id", |id| record.id.as_str().starts_with(id))
            && filters.any("network", |network| {
                network == network_name(config.host.network)
                    || record.address.as_ref().is_some_and(|address| address.network.starts_with(network))
            })
            && filters.any("volume", volume)
            && filters.any("is-task", |text| text == "false" || text == "0")
            && filters.any("status", |status| {
                status == state_word(record, status == "paused" && self.engine.containers().is_paused(record))
            })
            && filters
                .any("exited", |code| matches!(&record.state, Doing::Exited(exited) if code.parse() == Ok(exited.code)))
            && self.before_ns.is_none_or(|ns| record.created_ns < ns)
            && self.since_ns.is_none_or(|ns| record.created_ns > ns)
            && (filters.all("ancestor").is_empty() || self.ancestors.contains(&config.image_id))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_of_time_read_as_docker_prints_them() {
        for (seconds, text) in [
            (0, "Less than a second"),
            (1, "1 second"),
            (59, "59 seconds"),
            (60, "About a minute"),
            (120, "2 minutes"),
            (3599, "59 minutes"),
            (3600, "About an hour"),
            (7200, "2 hours"),
            (47 * 3600, "47 hours"),
            (48 * 3600, "2 days"),
            (15 * 86400, "2 weeks"),
            (70 * 86400, "2 months"),
            (800 * 86400, "2 years"),
        ] {
            assert_eq!(words(seconds), text);
        }
    }

    #[test]
    fn words_of_a_command_line_are_quoted_as_docker_does() {
        let args: Vec<String> = ["sh", "-c", "echo a b"].map(str::to_owned).to_vec();
        assert_eq!(command(&args), "sh -c 'echo a b'");
    }
}
