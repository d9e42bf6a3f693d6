//! Starting a container: the engine executes its shim and waits for what that reports.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};

use serde::{Deserialize, Serialize};

use super::Containers;
use super::record::{Record, State};
use crate::error::{Error, Kind, Result, ResultExt as _};
use crate::sandbox;

/// The first argument that makes this binary a shim; no command has such a name. The root and the container's id follow.
pub const SHIM_ROLE: &str = "-shim";

/// What a shim tells the engine that started it, on its standard output: one line.
#[derive(Debug, Serialize, Deserialize)]
struct Report {
    /// The HTTP status of the error's kind, and its text.
    error: Option<(u16, String)>,
}

/// Tells the engine how the start went. An engine that has gone is told nothing.
pub(super) fn report(result: &Result<()>) {
    let error = result.as_ref().err().map(|error| (error.kind().codes().0, error.to_string()));
    let mut stdout = std::io::stdout();
    if let Ok(mut line) = serde_json::to_vec(&Report { error }) {
        line.push(b'\n');
        let _ = stdout.write_all(&line).and_then(|()| stdout.flush());
    }
}

impl Containers {
    /// Starts a container and returns when its process executes its command. Blocking. The shim is the caller's to reap.
    ///
    /// # Errors
    /// `NotModified` when it runs already; `Conflict` when it is paused; otherwise why it cannot be started.
    pub(super) fn launch(&self, record: &Record) -> Result<Child> {
        let files = self.files(&record.id);
        let _turn = files.turn()?;
        let record = self.find(record.id.as_str())?;
        if record.state.is_live() {
            return Err(if self.is_paused(&record) {
                Error::conflict("cannot start a paused container, try unpause instead")
            } else {
                Error::not_modified(format!("container {} is already running", record.name))
            });
        }
        let mut shim = self.start_shim(&record)?;
        let stdout = shim.stdout.take().expect("it was piped");
        let mut line = String::new();
        let read = BufReader::new(stdout).read_line(&mut line).context(|| "hear from the container's shim")?;
        if read == 0 {
            return Err(self.shim_died(&record, &mut shim));
        }
        let report: Report = serde_json::from_str(&line)?;
        match report.error {
            None => Ok(shim),
            Some((status, text)) => {
                // It has nothing left to do but to end.
                let _ = shim.wait();
                let kind = if status == 500 { Kind::Internal } else { Kind::from_http(status) };
                Err(Error::new(kind, text))
            }
        }
    }

    fn start_shim(&self, record: &Record) -> Result<Child> {
        let program = match self.0.program.get() {
            Some(program) => program,
            None => {
                let program: OwnedFd = sandbox::own_program()?;
                self.0.program.get_or_init(|| program)
            }
        };
        Command::new(format!("/proc/self/fd/{}", program.as_raw_fd()))
            .arg0("kiln")
            .arg(SHIM_ROLE)
            .arg(self.root().path())
            .arg(record.id.as_str())
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .context(|| "start the container's shim")
    }

    /// A shim that ends without a word was killed, or could not even open the root.
    fn shim_died(&self, record: &Record, shim: &mut Child) -> Error {
        let status = shim.wait().map_or_else(|error| error.to_string(), |status| status.to_string());
        let text = format!("the container's shim died before the container ran ({status})");
        let failure = State::Created { failure: Some((125, text.clone())) };
        let recorded = self.db().write(|tx| super::record::set_state(tx, &record.id, &failure));
        Error::internal(text).and_cleanup(recorded)
    }
}
