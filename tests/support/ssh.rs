//! OpenSSH's agent, `ssh-add` for images, and an SSH server.

use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

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

/// An SSH server (Debian's `dropbear`) on loopback, which lets one key in as this user. Dropping it ends it and what it started.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    dir: PathBuf,
    stop: Arc<AtomicBool>,
    serving: Option<JoinHandle<()>>,
}

/// Serves one connection, which is standard input and output. The user's home is another one, for there is where the server looks for
/// keys.
const SERVE: &str = r#"
    home=$(getent passwd "$(id -un)" | cut -d : -f 6)
    mount --bind "$1/home" "$home"
    exec dropbear -i -m -s -j -k -r "$1/host-key"
"#;

impl Server {
    /// Returns whether the program is installed; if not, says which package has it.
    pub fn is_installed() -> bool {
        super::is_installed("dropbear", "dropbear-bin") || Path::new("/usr/sbin/dropbear").is_file()
    }

    /// Starts one with its files in `dir`, which lets in who has the private key to `public`, a file. Needs root.
    pub fn start(dir: &Path, public: &Path) -> Self {
        let dir = dir.join("ssh-server");
        let keys = dir.join("home/.ssh");
        std::fs::create_dir_all(&keys).expect("make a home");
        std::fs::copy(public, keys.join("authorized_keys")).expect("copy a key");
        shell(&dir, "chmod 700 home home/.ssh; chmod 600 home/.ssh/authorized_keys");
        let listener = TcpListener::bind("127.0.0.1:0").expect("listen on loopback");
        let address = listener.local_addr().expect("it is bound");
        let stop = Arc::new(AtomicBool::new(false));
        let serving = std::thread::spawn({
            let (dir, stop) = (dir.clone(), Arc::clone(&stop));
            move || serve(&listener, &dir, &stop)
        });
        let server = Self { address, dir, stop, serving: Some(serving) };
        server.change_host_key();
        server
    }

    /// Has it show another key from now on.
    pub fn change_host_key(&self) {
        shell(&self.dir, "rm -f host-key; /usr/bin/dropbearkey -t ed25519 -f host-key");
    }

    /// Returns the address of a path on this machine.
    pub fn url(&self, path: &Path) -> String {
        let user = super::command::run("id", ["-un"]);
        format!("ssh://{user}@{}{}", self.address, path.display())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let _ = std::net::TcpStream::connect(self.address);
        if let Some(serving) = self.serving.take() {
            let _ = serving.join();
        }
    }
}

fn serve(listener: &TcpListener, dir: &Path, stop: &AtomicBool) {
    let mut started: Vec<Child> = Vec::new();
    while let Ok((stream, _)) = listener.accept() {
        if stop.load(Ordering::SeqCst) {
            break;
        }
        let (input, output) = (OwnedFd::from(stream.try_clone().expect("clone a socket")), OwnedFd::from(stream));
        let child = Command::new("unshare")
            .args(["--mount", "--propagation", "private", "sh", "-euc", SERVE, "serve"])
            .arg(dir)
            .stdin(input)
            .stdout(output)
            .stderr(Stdio::null())
            .spawn();
        started.push(child.expect("start unshare"));
    }
    for mut child in started {
        let _ = child.kill();
        let _ = child.wait();
    }
}
