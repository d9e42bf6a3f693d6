//! OpenSSH's agent, and `ssh-add` for images.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use super::command::{Run, shell};
use super::{Kiln, PATIENCE, eventually};

/// An agent of the machine's own; dropping it ends it.
#[derive(Debug)]
pub struct Agent {
    process: Child,
    pub socket: PathBuf,
}

impl Agent {
    /// Starts one without keys, with its socket in `dir`.
    pub fn start(dir: &Path) -> Self {
        let socket = dir.join("agent.sock");
        let process = Command::new("ssh-agent").arg("-D").arg("-a").arg(&socket).stdout(Stdio::null()).spawn();
        let agent = Self { process: process.expect("openssh-client is installed"), socket };
        eventually("the agent's socket", PATIENCE, || agent.socket.exists().then_some(()));
        agent
    }

    /// Gives it a private key.
    pub fn add(&self, key: &Path) {
        Run::new("ssh-add").arg("-q").arg(key).env("SSH_AUTH_SOCK", &self.socket).output().expect_code(0);
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Copies `ssh-add` and the libraries it needs to `dir`, a directory below the scratch directory.
pub fn put_ssh_add(kiln: &Kiln, dir: &str) {
    let script = format!(
        "mkdir -p {dir}/usr/bin; cp /usr/bin/ssh-add {dir}/usr/bin/
         for lib in $(ldd /usr/bin/ssh-add | grep -o '/[^ ]*'); do mkdir -p {dir}$(dirname $lib); cp -L $lib {dir}$lib; done"
    );
    shell(&kiln.scratch(), &script);
}
