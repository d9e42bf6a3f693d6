//! Further processes of a container, which the shim starts and looks after.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rustix::process::Pid;
use tokio::net::UnixStream;

use super::hub::{self, Framing, Hub};
use crate::container::exec::{self, Exec};
use crate::container::link::{self, Acknowledgement};
use crate::container::log::Output;
use crate::container::record::{self, State};
use crate::container::{Containers, spec};
use crate::error::{Error, Result};
use crate::sandbox::{self, Execution, Stdio, WindowSize};
use crate::task::{self, Tasks};

/// How long output is read after a process has ended: children of it may hold its streams open for as long as they live.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// The terminals of further processes, by the id of the process.
#[derive(Debug, Default)]
pub(super) struct Terminals(Mutex<HashMap<String, OwnedFd>>);

impl Terminals {
    pub(super) fn resize(&self, id: &str, rows: u16, columns: u16) -> Result<()> {
        let terminals = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let terminal = terminals.get(id).ok_or_else(|| Error::conflict("the process has no terminal, or has ended"))?;
        let size = rustix::termios::Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        Ok(rustix::termios::tcsetwinsize(terminal, size)?)
    }

    fn insert(&self, id: &str, terminal: OwnedFd) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(id.to_owned(), terminal);
    }

    fn remove(&self, id: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
    }
}

/// Runs a process to its end. The engine hears first whether it could be started; then the connection is its streams.
pub(super) async fn run(
    containers: &Containers,
    terminals: &Terminals,
    mut engine: UnixStream,
    id: &str,
    detach: bool,
    size: WindowSize,
) -> Result<()> {
    let (copy, owned) = (containers.clone(), id.to_owned());
    let begun = task::blocking(move || begin(&copy, &owned, detach, size)).await;
    let (exec, mut process) = match begun {
        Ok(begun) => begun,
        Err(error) => {
            let code = i32::from(sandbox::exit_code(&error));
            finish(containers, id, if code == 125 { 126 } else { code }).await?;
            return link::send(&mut engine, &Acknowledgement::of(Err(error))).await;
        }
    };
    let framing = if exec.config.tty { Framing::Raw } else { Framing::Frames };
    let (hub, input) = Hub::new(framing, !exec.config.tty, None, containers.0.clock);
    let streams = process.take_streams();
    let (stdin, outputs) = match process.terminal() {
        Some(terminal) => {
            terminals.insert(id, terminal.try_clone()?);
            (Some(terminal.try_clone()?), vec![(Some(terminal.try_clone()?), Output::Stdout)])
        }
        None => (streams.stdin, vec![(streams.stdout, Output::Stdout), (streams.stderr, Output::Stderr)]),
    };
    // An engine that has gone changes nothing: the process runs.
    let heard = link::send(&mut engine, &Acknowledgement::of(Ok(()))).await;
    if heard.is_ok() && !detach {
        let [stdin, stdout, stderr] = exec.config.attach;
        hub.attach(engine, stdin, stdout, stderr);
    }
    let pumps = Tasks::new();
    for (from, output) in outputs {
        if let Some(from) = from {
            let (hub, from) = (hub.clone(), hub::receiver(from)?);
            pumps.spawn(async move { hub.pump(from, output).await });
        }
    }
    if let Some(stdin) = stdin {
        Tasks::new().spawn(hub::feed(input, hub::sender(stdin)?));
    }
    let status = process.wait().await?;
    if !pumps.shutdown(LAST_WORDS).await {
        hub.disconnect();
    }
    terminals.remove(id);
    // Before the stream ends: that is when clients ask for the exit code.
    finish(containers, id, status.code()).await?;
    hub.close(super::GRACE).await;
    Ok(())
}

async fn finish(containers: &Containers, id: &str, code: i32) -> Result<()> {
    let (containers, id) = (containers.clone(), id.to_owned());
    task::blocking(move || containers.db().write(|tx| exec::set_exit_code(tx, &id, code))).await
}

fn begin(containers: &Containers, id: &str, detach: bool, size: WindowSize) -> Result<(Exec, Execution)> {
    let (exec, record) = containers.db().read(|connection| {
        let exec = exec::find(connection, id)?;
        let record = record::find(connection, exec.container.as_str())?;
        Ok((exec, record))
    })?;
    let State::Running { pid, .. } = record.state else {
        return Err(Error::conflict(format!("container {} is not running", record.id)));
    };
    let pid = Pid::from_raw(pid).ok_or_else(|| Error::corrupt("a container's record has no process"))?;
    let stdio = match (exec.config.tty, detach) {
        (true, _) => Stdio::Terminal(size),
        (false, true) => Stdio::Null,
        (false, false) => Stdio::Pipes { stdin: exec.config.attach[0] },
    };
    let process = exec::process(&record.config, &exec.config)?;
    let cgroup = spec::cgroup(&record).ok();
    let execution = sandbox::exec(pid, cgroup.as_ref(), &process, stdio)?;
    let number = execution.pid().as_raw_nonzero().get();
    containers.db().write(|tx| exec::set_pid(tx, id, number))?;
    Ok((exec, execution))
}
