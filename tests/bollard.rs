//! The crate `bollard` against the daemon: builds with its BuildKit client over upgraded connections and on the socket itself,
//! and by `POST /build`. The client is `tests/bollard`, which `scripts/test` builds.

mod support;

use std::path::{Path, PathBuf};

use support::registry::{self, Registry};
use support::{Daemon, Run, command};

const DOCKERFILE: &str = "FROM busybox AS made\nARG word\n\
    RUN --mount=type=secret,id=token,required cat /run/secrets/token >/token\nRUN echo $word >/word\n\
    FROM busybox\nCOPY --from=made /token /word /\n";

/// Finds the client; `None`, with a word about it, when it was not built.
fn client() -> Option<PathBuf> {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let found = target.ancestors().map(|dir| dir.join("tools/bollard/bollard-client")).find(|client| client.is_file());
    if found.is_none() {
        eprintln!("skipped: tests/bollard was not built (scripts/test does)");
    }
    found
}

/// A daemon and what runs the client for it.
type Started<F> = Option<(Daemon, F)>;

/// Starts a daemon.
fn start() -> Started<impl Fn(&str, &str, &[&str]) -> Run> {
    let client = client()?;
    let daemon = Daemon::start()?;
    daemon.dockerfile(DOCKERFILE);
    daemon.kiln.write("token", "secret");
    let (host, scratch) = (daemon.host.clone(), daemon.kiln.scratch());
    let run = move |how: &str, to: &str, args: &[&str]| {
        Run::new(&client).args([how, to, &host, "Dockerfile"]).args(args).cwd(&scratch)
    };
    Some((daemon, run))
}

#[test]
fn privileged_bollard_builds_over_upgraded_connections() {
    let Some((daemon, bollard)) = start() else { return };
    bollard("moby", "upgraded", &["word=one"]).ok();
    assert_eq!(daemon.cat("upgraded", "/token"), "secret");
    assert_eq!(daemon.cat("upgraded", "/word"), "one");
    std::fs::remove_file(daemon.kiln.scratch().join("token")).unwrap();
    bollard("moby", "none", &["word=other"]).fails().expect_stderr(&["secret token: not found"]);
}

#[test]
fn privileged_bollard_exports_and_pushes_by_the_socket() {
    let Some((daemon, bollard)) = start() else { return };
    bollard("oci", "image.tar", &["word=two"]).ok();
    daemon.command(&["load", "-q", "-i", "image.tar"]).ok();
    assert_eq!(daemon.cat("exported", "/word"), "two");
    if registry::is_installed() {
        let registry = Registry::start();
        let name = format!("{}/pushed", registry.host());
        bollard("registry", &name, &["word=three"]).ok();
        let image = format!("docker://{name}");
        let config = command::run("skopeo", ["inspect", "--config", "--tls-verify=false", &image]);
        assert!(config.contains("COPY /token /word /"), "{config}");
    }
}

#[test]
fn privileged_bollard_follows_a_build_of_version_2() {
    let Some((daemon, bollard)) = start() else { return };
    daemon.dockerfile("FROM busybox\nRUN echo posted >/f\n");
    let steps = bollard("post", "posted", &[]).ok();
    assert!(steps.contains("RUN echo posted"), "{steps}");
    assert_eq!(daemon.cat("posted", "/f"), "posted");
}
