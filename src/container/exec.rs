//! Further processes in containers that run (`docker exec`): their records, and the engine's side of starting them.
//!
//! The shim starts them: they live as long as the container, not as the engine.

use rusqlite::{Connection, OptionalExtension as _};
use serde::{Deserialize, Serialize};
use tokio::net::UnixStream;

use super::Containers;
use super::config::Config;
use super::link::{self, Request};
use super::record::ContainerId;
use crate::error::{Error, Kind, Result};
use crate::sandbox::{Capabilities, MissingDir, Process, Seccomp};
use crate::task;

/// The table of further processes. They go with their container.
pub(super) const TABLE: &str = "CREATE TABLE execs (
    id TEXT PRIMARY KEY,
    container TEXT NOT NULL REFERENCES containers ON DELETE CASCADE,
    config TEXT NOT NULL,
    started INTEGER NOT NULL DEFAULT 0,
    pid INTEGER,
    exit_code INTEGER
);
CREATE INDEX execs_by_container ON execs (container);";

/// What is to be run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecConfig {
    /// The command line.
    pub args: Vec<String>,
    /// Environment beside the container's.
    pub env: Vec<String>,
    /// The working directory; empty is the container's.
    pub working_dir: String,
    /// `user[:group]`; empty is the container's.
    pub user: String,
    /// Whether it may do everything.
    pub privileged: bool,
    /// Whether it has a terminal.
    pub tty: bool,
    /// Which streams are connected: input, output, errors.
    pub attach: [bool; 3],
}

/// A further process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exec {
    /// Its id: 64 hexadecimal digits.
    pub id: String,
    /// Its container.
    pub container: ContainerId,
    /// What is run.
    pub config: ExecConfig,
    /// Whether it was started.
    pub started: bool,
    /// Its number on the host, once it was started.
    pub pid: Option<i32>,
    /// Its exit code, once it has ended.
    pub exit_code: Option<i32>,
}

/// The answer to a start.
#[derive(Debug)]
pub enum ExecStarted {
    /// It runs; its streams are connected as its settings say.
    Streams(UnixStream),
    /// It could not be started: why, in the words that go to the client's stream.
    Failed(String),
}

impl Containers {
    /// Prepares a further process in a container that runs, and returns its id. Blocking.
    ///
    /// # Errors
    /// `Conflict` when the container does not run or is paused; `InvalidArgument` without a command.
    pub fn create_exec(&self, reference: &str, config: &ExecConfig) -> Result<String> {
        let record = self.running(reference)?;
        if self.is_paused(&record) {
            let id = &record.id;
            return Err(Error::conflict(format!("Container {id} is paused, unpause the container before exec")));
        }
        if config.args.is_empty() {
            return Err(Error::invalid("No exec command specified"));
        }
        let id = ContainerId::from_random(super::create::random()?).to_string();
        self.db().write(|tx| {
            let sql = "INSERT INTO execs (id, container, config) VALUES (?1, ?2, ?3)";
            tx.prepare_cached(sql)?.execute((&id, record.id.as_str(), serde_json::to_string(config)?))?;
            Ok(())
        })?;
        Ok(id)
    }

    /// Finds a further process. Blocking.
    ///
    /// # Errors
    /// `NotFound`, in docker's words.
    pub fn find_exec(&self, id: &str) -> Result<Exec> {
        let mut exec = self.db().read(|connection| find(connection, id))?;
        if exec.started && exec.exit_code.is_none() && !self.find(exec.container.as_str())?.state.is_live() {
            // The container took it with it before its end was written down.
            exec.exit_code = Some(super::LOST);
        }
        Ok(exec)
    }

    /// Starts a further process. `size` is that of its terminal: rows, columns.
    ///
    /// # Errors
    /// `Conflict` when it was started before, or the container does not run.
    pub async fn start_exec(&self, id: &str, detach: bool, size: [u16; 2]) -> Result<ExecStarted> {
        let (containers, owned) = (self.clone(), id.to_owned());
        let record = task::blocking(move || {
            let exec = containers.find_exec(&owned)?;
            let record = containers.running(exec.container.as_str())?;
            containers.db().write(|tx| begin(tx, &owned))?;
            Ok(record)
        })
        .await?;
        let request = Request::Exec { id: id.to_owned(), detach, rows: size[0], columns: size[1] };
        let not_running = || Error::conflict(format!("container {} is not running", record.id));
        let Some(mut shim) = self.place(&record)?.call(&request).await? else { return Err(not_running()) };
        match link::acknowledged(&mut shim).await {
            Ok(()) => Ok(ExecStarted::Streams(shim)),
            Err(error) if error.kind() == Kind::Unavailable => Err(not_running()),
            Err(error) => Ok(ExecStarted::Failed(error.to_string())),
        }
    }

    /// Sets the size of a further process's terminal.
    ///
    /// # Errors
    /// `Conflict` when it does not run; `InvalidArgument` when it has no terminal.
    pub async fn resize_exec(&self, id: &str, rows: u16, columns: u16) -> Result<()> {
        let (containers, owned) = (self.clone(), id.to_owned());
        let record =
            task::blocking(move || containers.running(containers.find_exec(&owned)?.container.as_str())).await?;
        let request = Request::ResizeExec { id: id.to_owned(), rows, columns };
        match self.place(&record)?.call(&request).await? {
            Some(mut shim) => link::acknowledged(&mut shim).await,
            None => Err(Error::conflict(format!("container {} is not running", record.id))),
        }
    }
}

/// Finds a further process by its id.
pub(super) fn find(connection: &Connection, id: &str) -> Result<Exec> {
    let sql = "SELECT id, container, config, started, pid, exit_code FROM execs WHERE id = ?1";
    let mut statement = connection.prepare_cached(sql)?;
    let row = statement.query_row([id], |row| {
        Ok((row.get(0)?, row.get::<_, String>(1)?, row.get::<_, String>(2)?, row.get(3)?, row.get(4)?, row.get(5)?))
    });
    let Some((id, container, config, started, pid, exit_code)) = row.optional()? else {
        return Err(Error::not_found(format!("No such exec instance: {id}")));
    };
    let (container, config) = (ContainerId::parse(&container)?, serde_json::from_str(&config)?);
    Ok(Exec { id, container, config, started, pid, exit_code })
}

/// Notes that a process is being started, which happens once.
fn begin(tx: &Connection, id: &str) -> Result<()> {
    let changed = tx.prepare_cached("UPDATE execs SET started = 1 WHERE id = ?1 AND NOT started")?.execute([id])?;
    if changed == 0 { Err(Error::conflict(format!("exec instance {id} has already run"))) } else { Ok(()) }
}

pub(super) fn set_pid(tx: &Connection, id: &str, pid: i32) -> Result<()> {
    tx.prepare_cached("UPDATE execs SET pid = ?2 WHERE id = ?1")?.execute((id, pid))?;
    Ok(())
}

pub(super) fn set_exit_code(tx: &Connection, id: &str, code: i32) -> Result<()> {
    tx.prepare_cached("UPDATE execs SET exit_code = ?2 WHERE id = ?1")?.execute((id, code))?;
    Ok(())
}

/// What the sandbox runs: the container's process with another command.
pub(super) fn process(container: &Config, exec: &ExecConfig) -> Result<Process> {
    let mut config = container.clone();
    config.entrypoint.clear();
    config.cmd.clone_from(&exec.args);
    config.env = super::config::merge_env(&config.env, &exec.env);
    config.io.tty = exec.tty;
    if !exec.user.is_empty() {
        config.user.clone_from(&exec.user);
    }
    if !exec.working_dir.is_empty() {
        config.working_dir.clone_from(&exec.working_dir);
    }
    let mut process = super::spec::process(&config)?;
    process.missing_cwd = MissingDir::Refused;
    if exec.privileged || container.host.security.privileged {
        process.capabilities = Capabilities::all();
        process.seccomp = Seccomp::Unconfined;
    }
    Ok(process)
}
