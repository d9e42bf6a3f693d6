//! What end-to-end tests stand on: the built binary with a root directory of its own, base images, a registry.
//!
//! A test makes a [`Kiln`], runs commands through it and drops it; dropping ends what still runs and removes what is mounted.
//! Nothing here waits without a deadline, and a failed command shows what it said.

#![allow(dead_code, unused_imports, unreachable_pub, reason = "each test binary uses a part of it")]

pub mod asking;
pub mod base;
pub mod certificates;
pub mod command;
pub mod daemon;
pub mod docker;
pub mod frontend;
pub mod llb;
pub mod meddler;
#[path = "registry.rs"]
pub mod registry;
mod remains;
pub mod session;
pub mod ssh;
pub mod stores;
pub mod terminal;
pub mod web;

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

pub use command::{Outcome, Run, Running};
pub use daemon::Daemon;
pub use docker::Docker;

/// The built binary.
pub const KILN: &str = env!("CARGO_BIN_EXE_kiln");

/// For whatever must come to an end on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// The binary with a root directory, a home and a scratch directory of its own.
#[derive(Debug)]
pub struct Kiln {
    dir: tempfile::TempDir,
}

impl Kiln {
    /// Makes an empty root directory.
    pub fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("kiln-test-").tempdir().expect("make a directory for a test");
        for name in ["home", "scratch"] {
            std::fs::create_dir(dir.path().join(name)).expect("make a directory for a test");
        }
        Self { dir }
    }

    /// Makes a root directory that holds `busybox:latest`.
    pub fn with_busybox() -> Self {
        let kiln = Self::new();
        kiln.load(&base::busybox());
        kiln
    }

    /// Makes a root directory that holds `busybox:latest`, and a context `app` of files in the scratch directory; `None` when not
    /// root.
    pub fn project(files: &[(&str, &str)]) -> Option<Self> {
        if !is_root() {
            return None;
        }
        let kiln = Self::with_busybox();
        for (path, content) in files {
            kiln.write(Path::new("app").join(path), content);
        }
        Some(kiln)
    }

    /// Returns the root directory; Kiln makes it with the first command.
    pub fn root(&self) -> PathBuf {
        self.dir.path().join("root")
    }

    /// Returns the home directory, where `.docker/config.json` would be.
    pub fn home(&self) -> PathBuf {
        self.dir.path().join("home")
    }

    /// Returns a directory for whatever files a test needs.
    pub fn scratch(&self) -> PathBuf {
        self.dir.path().join("scratch")
    }

    /// Writes a file below [`Self::scratch`] with the directories it needs, and returns its path.
    pub fn write(&self, path: impl AsRef<Path>, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.scratch().join(path);
        std::fs::create_dir_all(path.parent().expect("a file has a directory")).expect("make a directory");
        std::fs::write(&path, content).expect("write a file");
        path
    }

    /// Prepares a command; [`Run::ok`], [`Run::fails`], [`Run::output`] and [`Run::spawn`] carry it out.
    pub fn command<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Run {
        let run = Run::new(KILN).arg("--root").arg(self.root()).args(args).cwd(self.scratch());
        ["DOCKER_HOST", "DOCKER_CONTEXT", "DOCKER_CONFIG", "KILN_HOST", "KILN_ROOT", "BUILDKIT_PROGRESS", "NO_COLOR"]
            .into_iter()
            .fold(run, Run::without_env)
            .env("HOME", self.home())
    }

    /// Runs a command that must succeed and returns its standard output without the last line feed.
    pub fn ok<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> String {
        self.command(args).ok()
    }

    /// Runs a command that must fail.
    pub fn fails<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Outcome {
        self.command(args).fails()
    }

    /// Loads the images of an archive.
    pub fn load(&self, archive: &Path) {
        self.command(["load", "-q", "-i"]).arg(archive).ok();
    }
}

impl Drop for Kiln {
    fn drop(&mut self) {
        remains::remove(self.dir.path());
    }
}

/// Returns whether the test may go on; without root it says that it does not.
pub fn is_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("skipped: needs root");
    }
    root
}

/// Returns whether a program is installed; if not, says which package has it.
pub fn is_installed(program: &str, package: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).any(|dir| dir.join(program).is_file());
    if !found {
        eprintln!("skipped: {program} is not installed (apt-get install {package})");
    }
    found
}

/// Asks again until there is an answer; panics when `patience` ends first.
pub fn eventually<T>(what: &str, patience: Duration, mut ask: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(start.elapsed() < patience, "{what}: not within {patience:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
