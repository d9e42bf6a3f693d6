//! A daemon with a socket and a root directory of its own.

use std::time::Duration;

use super::certificates::Certificates;
use super::{Docker, KILN, Kiln, PATIENCE, Run, Running, eventually, is_root};

/// A daemon on a socket of its own, with `busybox:latest` in its store. Dropping it kills it.
#[derive(Debug)]
pub struct Daemon {
    pub process: Running,
    pub host: String,
    pub kiln: Kiln,
}

impl Daemon {
    /// Starts one; `None` without root.
    pub fn start() -> Option<Self> {
        Self::start_with(&[])
    }

    /// Starts one with further options.
    pub fn start_with(options: &[&str]) -> Option<Self> {
        is_root().then(|| Self::of(Kiln::with_busybox(), options))
    }

    /// Starts one on a root directory.
    pub fn of(kiln: Kiln, options: &[&str]) -> Self {
        let host = format!("unix://{}", kiln.home().join("kiln.sock").display());
        let run = Run::new(KILN).arg("daemon").arg("--root").arg(kiln.root()).args(["-H", &host]).args(options);
        let mut process = run.env("HOME", kiln.home()).within(Duration::from_secs(600)).spawn();
        process.until_it_says("listening on");
        Self { process, host, kiln }
    }

    /// Starts one that listens for clients with a certificate, too.
    pub fn over_tls(certificates: &Certificates) -> Self {
        let options = certificates.listening();
        let options: Vec<&str> = options.iter().map(String::as_str).collect();
        Self::of(Kiln::with_busybox(), &options)
    }

    /// Returns an address that it listens on besides its socket, by its beginning.
    pub fn also(&self, scheme: &str) -> String {
        eventually("the line with the address", PATIENCE, || {
            let said = self.process.said();
            let (complete, _) = said.rsplit_once('\n')?;
            let mut addresses =
                complete.lines().filter_map(|line| Some(line.split_once("listening on ")?.1.to_owned()));
            addresses.find(|address| address.starts_with(scheme))
        })
    }

    /// Prepares a command that speaks to the daemon.
    pub fn command(&self, args: &[&str]) -> Run {
        let run = Run::new(KILN).args(["-H", &self.host]).args(args).cwd(self.kiln.scratch());
        run.env("HOME", self.kiln.home()).without_env("DOCKER_CONFIG").without_env("BUILDKIT_PROGRESS")
    }

    /// Prepares a command of docker that speaks to the daemon.
    pub fn docker(&self, docker: &Docker, args: &[&str]) -> Run {
        let home = self.kiln.home();
        let run = Run::new(docker.program(&home)).args(args).cwd(self.kiln.scratch()).env("DOCKER_HOST", &self.host);
        ["DOCKER_CONFIG", "DOCKER_CONTEXT", "BUILDX_BUILDER", "BUILDX_CONFIG", "SOURCE_DATE_EPOCH"]
            .into_iter()
            .fold(run, Run::without_env)
            .env("HOME", home)
    }

    /// Writes the Dockerfile of the scratch directory.
    pub fn dockerfile(&self, text: &str) {
        self.kiln.write("Dockerfile", text);
    }

    /// What the image holds in a file, read by a container.
    pub fn cat(&self, image: &str, path: &str) -> String {
        self.command(&["run", "--rm", image, "cat", path]).ok()
    }
}
