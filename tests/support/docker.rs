//! Docker's command, buildx and compose: those that `scripts/test` fetched, else those of the machine.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Docker's command.
#[derive(Clone, Debug)]
pub struct Docker {
    program: PathBuf,
    /// Where its plugins are, if not where it looks for them by itself.
    plugins: Option<PathBuf>,
}

impl Docker {
    /// Finds one that has buildx; `None`, with a word about it, when there is none.
    pub fn with_buildx() -> Option<Self> {
        let docker = Self::fetched().or_else(|| {
            let docker = Self { program: "docker".into(), plugins: None };
            let mut version = Command::new(&docker.program);
            version.args(["buildx", "version"]).stdout(Stdio::null()).stderr(Stdio::null());
            version.status().is_ok_and(|status| status.success()).then_some(docker)
        });
        if docker.is_none() {
            eprintln!("skipped: there is no docker with buildx (scripts/test fetches one)");
        }
        docker
    }

    fn fetched() -> Option<Self> {
        let target = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let dir = target.ancestors().map(|dir| dir.join("tools/docker")).find(|dir| dir.join("docker").is_file())?;
        Some(Self { program: dir.join("docker"), plugins: Some(dir.join("cli-plugins")) })
    }

    /// Returns the program for a user with this home directory, who finds the plugins there.
    pub fn program(&self, home: &Path) -> &Path {
        if let Some(plugins) = &self.plugins {
            let link = home.join(".docker/cli-plugins");
            if !link.exists() {
                std::fs::create_dir_all(home.join(".docker")).expect("make docker's directory");
                std::os::unix::fs::symlink(plugins, link).expect("link docker's plugins");
            }
        }
        &self.program
    }
}
