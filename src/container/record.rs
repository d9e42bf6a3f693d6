//! Container records: one row each, every change of state a transaction.
//!
//! A record that says `running` is believed only while the container's shim lives, which its lock file tells: a shim that was
//! killed left no note.

use kiln_graph::Digest;
use rusqlite::{Connection, OptionalExtension as _, Row};
use serde::{Deserialize, Serialize};

use super::config::Config;
use crate::error::{Error, Result};
use crate::state::Schema;
use crate::store::{ActiveId, Roots};

/// The tables of containers and their further processes.
pub const SCHEMA: Schema = Schema {
    module: "container",
    scripts: &[
        "CREATE TABLE containers (
        id TEXT PRIMARY KEY,
        name TEXT NOT NULL UNIQUE,
        created_ns INTEGER NOT NULL,
        config TEXT NOT NULL,
        image_id TEXT NOT NULL,
        layer INTEGER NOT NULL,
        state TEXT NOT NULL,
        pid INTEGER,
        started_ns INTEGER,
        finished_ns INTEGER,
        exit_code INTEGER NOT NULL DEFAULT 0,
        oom_killed INTEGER NOT NULL DEFAULT 0,
        memory_peak_bytes INTEGER,
        error TEXT NOT NULL DEFAULT '',
        restarts INTEGER NOT NULL DEFAULT 0,
        address TEXT
    );
    CREATE INDEX containers_by_image ON containers (image_id);",
        super::exec::TABLE,
    ],
};

/// A container's id: 64 hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContainerId(String);

impl ContainerId {
    /// Makes an id out of 32 random bytes.
    #[must_use]
    pub fn from_random(bytes: [u8; 32]) -> Self {
        Self(Digest::sha256(bytes).hex())
    }

    /// Takes an id that this program made earlier.
    ///
    /// # Errors
    /// `InvalidArgument` when it is not 64 hexadecimal digits.
    pub fn parse(text: &str) -> Result<Self> {
        let valid = text.len() == 64 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        if valid { Ok(Self(text.to_owned())) } else { Err(Error::invalid(format!("invalid container id {text:?}"))) }
    }

    /// Returns all 64 digits.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the first 12 digits.
    #[must_use]
    pub fn short(&self) -> &str {
        &self.0[..12]
    }
}

impl std::fmt::Display for ContainerId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a container is doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// Nothing yet. An attempt to start it may have failed.
    Created {
        /// The exit code and the reason of the last attempt.
        failure: Option<(i32, String)>,
    },
    /// It runs.
    Running {
        /// Its first process, as the host sees it.
        pid: i32,
        /// When it was started, in nanoseconds since 1970.
        started_ns: i64,
    },
    /// It has ended, and its shim is about to start it again.
    Restarting(Exited),
    /// It has ended.
    Exited(Exited),
}

impl State {
    /// Says whether a shim should be there: it runs, or will run again.
    #[must_use]
    pub fn is_live(&self) -> bool {
        matches!(self, Self::Running { .. } | Self::Restarting(_))
    }

    /// Returns the exit code of the last run or attempt, 0 when there was none.
    #[must_use]
    pub fn exit_code(&self) -> i32 {
        match self {
            Self::Created { failure } => failure.as_ref().map_or(0, |(code, _)| *code),
            Self::Running { .. } => 0,
            Self::Restarting(exited) | Self::Exited(exited) => exited.code,
        }
    }
}

/// How a container ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exited {
    /// The exit code; 128 + n for signal n.
    pub code: i32,
    /// When it was started, in nanoseconds since 1970.
    pub started_ns: i64,
    /// When it ended, in nanoseconds since 1970.
    pub finished_ns: i64,
    /// Whether the kernel killed a process of it because memory ran out.
    pub oom_killed: bool,
    /// The most memory it used, in bytes.
    pub memory_peak_bytes: Option<u64>,
    /// What went wrong besides.
    pub error: String,
}

/// A container's record.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// Its id.
    pub id: ContainerId,
    /// Its name, without a slash.
    pub name: String,
    /// When it was created, in nanoseconds since 1970.
    pub created_ns: i64,
    /// Its settings.
    pub config: Config,
    /// Its writable layer.
    pub layer: ActiveId,
    /// What it is doing.
    pub state: State,
    /// How often its restart policy has started it again since a user did.
    pub restarts: u32,
    /// Its address on the default bridge; `None` when it has none now.
    pub address: Option<Address>,
}

/// A container's connection to a network, for those who ask.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Address {
    /// The endpoint's id.
    pub endpoint: String,
    /// The network's id.
    pub network: String,
    /// The address.
    pub ip: std::net::Ipv4Addr,
    /// The length of the subnet's prefix in bits.
    pub prefix_len: u8,
    /// Where packets for other networks go.
    pub gateway: std::net::Ipv4Addr,
    /// The hardware address.
    pub mac: String,
}

const COLUMNS: &str = "id, name, created_ns, config, layer, state, pid, started_ns, finished_ns, exit_code, oom_killed, \
                       memory_peak_bytes, error, restarts, address";

fn from_row(row: &Row<'_>) -> Result<Record> {
    let (exit_code, error): (i32, String) = (row.get(9)?, row.get(12)?);
    let state: String = row.get(5)?;
    let state = match state.as_str() {
        "created" if exit_code == 0 => State::Created { failure: None },
        "created" => State::Created { failure: Some((exit_code, error)) },
        "running" => State::Running { pid: row.get(6)?, started_ns: row.get(7)? },
        "exited" | "restarting" => {
            let exited = Exited {
                code: exit_code,
                started_ns: row.get(7)?,
                finished_ns: row.get(8)?,
                oom_killed: row.get(10)?,
                memory_peak_bytes: row.get(11)?,
                error,
            };
            if state == "exited" { State::Exited(exited) } else { State::Restarting(exited) }
        }
        other => return Err(Error::corrupt(format!("a container's record has the unknown state {other:?}"))),
    };
    Ok(Record {
        id: ContainerId::parse(&row.get::<_, String>(0)?)?,
        name: row.get(1)?,
        created_ns: row.get(2)?,
        config: serde_json::from_str(&row.get::<_, String>(3)?)?,
        layer: row.get(4)?,
        state,
        restarts: row.get(13)?,
        address: row.get::<_, Option<String>>(14)?.map(|text| serde_json::from_str(&text)).transpose()?,
    })
}

/// Inserts a new record, in the state `Created`.
///
/// # Errors
/// `Conflict`, in docker's words, when the name is taken.
pub fn insert(tx: &Connection, record: &Record) -> Result<()> {
    check_free(tx, &record.name)?;
    let sql = "INSERT INTO containers (id, name, created_ns, config, image_id, layer, state)
               VALUES (?1, ?2, ?3, ?4, ?5, ?6, 'created')";
    tx.prepare_cached(sql)?.execute((
        record.id.as_str(),
        &record.name,
        record.created_ns,
        serde_json::to_string(&record.config)?,
        record.config.image_id.to_string(),
        record.layer,
    ))?;
    Ok(())
}

fn check_free(connection: &Connection, name: &str) -> Result<()> {
    let mut statement = connection.prepare_cached("SELECT id FROM containers WHERE name = ?1")?;
    match statement.query_row([name], |row| row.get::<_, String>(0)).optional()? {
        None => Ok(()),
        Some(holder) => Err(Error::conflict(format!(
            "Conflict. The container name \"/{name}\" is already in use by container \"{holder}\". You have to remove (or \
             rename) that container to be able to reuse that name."
        ))),
    }
}

/// Finds a container by full id, name, or unambiguous beginning of the id, in this order.
///
/// # Errors
/// `NotFound` in docker's words; `InvalidArgument` when several ids begin so.
pub fn find(connection: &Connection, reference: &str) -> Result<Record> {
    let bare = reference.strip_prefix('/').unwrap_or(reference);
    let sql = format!("SELECT {COLUMNS} FROM containers WHERE id = ?1 OR name = ?1");
    if let Some(record) = connection.prepare_cached(&sql)?.query_map([bare], |row| Ok(from_row(row)))?.next() {
        return record?;
    }
    let missing = || Error::not_found(format!("No such container: {reference}"));
    if bare.is_empty() || !bare.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
        return Err(missing());
    }
    let sql = format!("SELECT {COLUMNS} FROM containers WHERE id >= ?1 AND id < ?1 || 'g' LIMIT 2");
    let mut statement = connection.prepare_cached(&sql)?;
    let mut found = statement.query_map([bare], |row| Ok(from_row(row)))?;
    match (found.next(), found.next()) {
        (None, _) => Err(missing()),
        (Some(record), None) => record?,
        (Some(_), Some(_)) => Err(Error::invalid(format!("multiple containers match the id prefix {reference:?}"))),
    }
}

/// Returns all records, newest first.
///
/// # Errors
/// When the database fails.
pub fn all(connection: &Connection) -> Result<Vec<Record>> {
    let sql = format!("SELECT {COLUMNS} FROM containers ORDER BY created_ns DESC, id");
    let mut statement = connection.prepare_cached(&sql)?;
    let rows = statement.query_map([], |row| Ok(from_row(row)))?;
    rows.map(|record| record?).collect()
}

/// Adds the writable layers of all containers, and what is known of their images, to the roots of a collection.
///
/// # Errors
/// When the database fails.
pub fn add_roots(connection: &Connection, roots: &mut Roots) -> Result<()> {
    let mut statement = connection.prepare_cached("SELECT layer, image_id FROM containers")?;
    for row in statement.query_map([], |row| Ok((row.get(0)?, row.get::<_, String>(1)?)))? {
        let (layer, image) = row?;
        roots.actives.push(layer);
        roots.blobs.extend(image.parse::<Digest>());
    }
    Ok(())
}

/// Returns each container, by its name, with what it needs.
///
/// # Errors
/// When the database fails.
pub fn holders(connection: &Connection) -> Result<Vec<(String, Roots)>> {
    let mut statement = connection.prepare_cached("SELECT name, layer, image_id FROM containers")?;
    let mut holders = Vec::new();
    for row in statement.query_map([], |row| Ok((row.get::<_, String>(0)?, row.get(1)?, row.get::<_, String>(2)?)))? {
        let (name, layer, image) = row?;
        let blobs = image.parse::<Digest>().into_iter().collect();
        holders.push((format!("container {name}"), Roots { actives: vec![layer], blobs, ..Roots::default() }));
    }
    Ok(holders)
}

/// Stores what a container is doing now.
///
/// # Errors
/// `NotFound` when the record has gone meanwhile.
pub fn set_state(tx: &Connection, id: &ContainerId, state: &State) -> Result<()> {
    let mut exit = Exited {
        code: 0,
        started_ns: 0,
        finished_ns: 0,
        oom_killed: false,
        memory_peak_bytes: None,
        error: String::new(),
    };
    let (name, pid, started) = match state {
        State::Created { failure } => {
            if let Some((code, error)) = failure {
                exit.code = *code;
                exit.error.clone_from(error);
            }
            ("created", None, None)
        }
        State::Running { pid, started_ns } => ("running", Some(*pid), Some(*started_ns)),
        State::Restarting(exited) | State::Exited(exited) => {
            exit = exited.clone();
            (if matches!(state, State::Exited(_)) { "exited" } else { "restarting" }, None, Some(exited.started_ns))
        }
    };
    let finished = matches!(state, State::Exited(_) | State::Restarting(_)).then_some(exit.finished_ns);
    let sql = "UPDATE containers SET state = ?2, pid = ?3, started_ns = ?4, finished_ns = ?5, exit_code = ?6,
               oom_killed = ?7, memory_peak_bytes = ?8, error = ?9 WHERE id = ?1";
    let changed = tx.prepare_cached(sql)?.execute((
        id.as_str(),
        name,
        pid,
        started,
        finished,
        exit.code,
        exit.oom_killed,
        exit.memory_peak_bytes,
        &exit.error,
    ))?;
    if changed == 0 { Err(Error::not_found(format!("No such container: {id}"))) } else { Ok(()) }
}

/// Stores a container's address, or that it has none.
///
/// # Errors
/// When the database fails.
pub fn set_address(tx: &Connection, id: &ContainerId, address: Option<&Address>) -> Result<()> {
    let address = address.map(serde_json::to_string).transpose()?;
    tx.prepare_cached("UPDATE containers SET address = ?2 WHERE id = ?1")?.execute((id.as_str(), address))?;
    Ok(())
}

/// Stores how often the restart policy has started a container again.
///
/// # Errors
/// When the database fails.
pub fn set_restarts(tx: &Connection, id: &ContainerId, restarts: u32) -> Result<()> {
    tx.prepare_cached("UPDATE containers SET restarts = ?2 WHERE id = ?1")?.execute((id.as_str(), restarts))?;
    Ok(())
}

/// Gives a container another name.
///
/// # Errors
/// `Conflict`, in docker's words, when the name is taken.
pub fn rename(tx: &Connection, id: &ContainerId, name: &str) -> Result<()> {
    check_free(tx, name)?;
    tx.prepare_cached("UPDATE containers SET name = ?2 WHERE id = ?1")?.execute((id.as_str(), name))?;
    Ok(())
}

/// Returns a container that uses an image, a running one if there is one, as its short id and whether it runs.
///
/// # Errors
/// When the database fails.
pub fn user_of_image(connection: &Connection, image: &Digest) -> Result<Option<(String, bool)>> {
    let sql = "SELECT substr(id, 1, 12), state IN ('running', 'restarting') FROM containers WHERE image_id = ?1
               ORDER BY 2 DESC, created_ns LIMIT 1";
    let mut statement = connection.prepare_cached(sql)?;
    Ok(statement.query_row([image.to_string()], |row| Ok((row.get(0)?, row.get(1)?))).optional()?)
}

/// Deletes a record.
///
/// # Errors
/// When the database fails.
pub fn delete(tx: &Connection, id: &ContainerId) -> Result<()> {
    tx.prepare_cached("DELETE FROM containers WHERE id = ?1")?.execute([id.as_str()])?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::container::config::tests::config;
    use crate::error::Kind;
    use crate::state::Root;

    fn root() -> (tempfile::TempDir, Root) {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::open(dir.path(), &[SCHEMA]).unwrap();
        (dir, root)
    }

    fn layer() -> ActiveId {
        <ActiveId as rusqlite::types::FromSql>::column_result(rusqlite::types::ValueRef::Integer(1)).unwrap()
    }

    fn record(number: u8, name: &str) -> Record {
        Record {
            id: ContainerId::from_random([number; 32]),
            name: name.to_owned(),
            created_ns: i64::from(number),
            config: config(),
            layer: layer(),
            state: State::Created { failure: None },
            restarts: 0,
            address: None,
        }
    }

    #[test]
    fn a_container_is_found_by_name_id_and_prefix() {
        let (_dir, root) = root();
        let (one, two) = (record(0xab, "web"), record(0xac, "db"));
        root.db().write(|tx| insert(tx, &one).and_then(|()| insert(tx, &two))).unwrap();
        let find = |text: &str| root.db().read(|c| find(c, text)).map(|record| record.name);
        assert_eq!(find("web").unwrap(), "web");
        assert_eq!(find("/web").unwrap(), "web");
        assert_eq!(find(one.id.as_str()).unwrap(), "web");
        assert_eq!(find("aba").unwrap(), "web");
        assert_eq!(find("a").unwrap_err().kind(), Kind::InvalidArgument);
        assert_eq!(find("").unwrap_err().kind(), Kind::NotFound);
        assert_eq!(find("nope").unwrap_err().to_string(), "No such container: nope");
    }

    #[test]
    fn a_name_is_given_once() {
        let (_dir, root) = root();
        root.db().write(|tx| insert(tx, &record(1, "web"))).unwrap();
        let error = root.db().write(|tx| insert(tx, &record(2, "web"))).unwrap_err();
        assert_eq!(error.kind(), Kind::Conflict);
        assert!(error.to_string().contains("is already in use by container \"0101"), "{error}");
    }

    #[test]
    fn every_state_survives_the_database() {
        let (_dir, root) = root();
        let one = record(1, "web");
        root.db().write(|tx| insert(tx, &one)).unwrap();
        let exited = Exited {
            code: 137,
            started_ns: 1,
            finished_ns: 2,
            oom_killed: true,
            memory_peak_bytes: Some(3),
            error: "x".to_owned(),
        };
        for state in [
            State::Created { failure: Some((127, "no such file".to_owned())) },
            State::Running { pid: 42, started_ns: 7 },
            State::Restarting(exited.clone()),
            State::Exited(exited),
            State::Created { failure: None },
        ] {
            root.db().write(|tx| set_state(tx, &one.id, &state)).unwrap();
            assert_eq!(root.db().read(|c| find(c, "web")).unwrap().state, state);
        }
        root.db().write(|tx| delete(tx, &one.id)).unwrap();
        let gone = root.db().write(|tx| set_state(tx, &one.id, &State::Created { failure: None }));
        assert_eq!(gone.unwrap_err().kind(), Kind::NotFound);
    }
}
