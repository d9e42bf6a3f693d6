//! Frontends that are images: each runs in a container of its own and speaks to the gateway over its standard input and output.
//!
//! What it says on standard error is shown with the build. It is trusted no more than a build step: it sees its own results only,
//! and ends with the build.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf as _, BytesMut};
use futures_util::future::BoxFuture;
use kiln_graph::oci::ImageConfig;
use kiln_graph::op::{Exec, NetworkMode, Root};
use kiln_graph::{Digest, Platform};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, Join};
use tokio::net::unix::pipe;
use tokio::sync::oneshot;

use super::Containers;
use super::container::{Container, ContainerRequest, Ended, ProcessRequest, Running, nothing};
use crate::error::{Error, Result, ResultExt as _};
use crate::image::{Policy, Resolved};
use crate::solver::bridge::{Bridge, Outcome};
use crate::solver::failure::Failure;
use crate::solver::job::{Begun, Shared, layer_report};
use crate::solver::progress::{Event, Progress};
use crate::solver::value::{FileSystem, Layer, Settled, Value};
use crate::solver::workshop::{Summons, frontend_image};
use crate::task::Owned;

/// What an image without an entry point runs.
const RUN: &str = "/run";

/// Prefix of the variables that hold the attributes.
const OPTION: &str = "BUILDKIT_FRONTEND_OPT_";

/// Labels of images of frontends: what it can, and whether it needs no network.
const CAPABILITIES: &str = "moby.buildkit.frontend.caps";
const NO_NETWORK: &str = "moby.buildkit.frontend.network.none";

/// What a frontend must be able to that is given inputs.
const INPUTS: &str = "moby.buildkit.frontend.inputs";

/// How long a frontend that has returned may take to end.
const PATIENCE: Duration = Duration::from_secs(10);

/// How much of what a frontend says is told when it fails, in bytes.
const TAIL: usize = 4 << 10;

/// The number of standard error.
const STDERR: u8 = 2;

/// How much is read of it at a time, in bytes.
const PIECE: usize = 16 << 10;

/// The exit code of a process that was killed.
const KILLED: u8 = 137;

/// The engine's ends of a frontend's standard streams.
pub type Line = Join<pipe::Receiver, pipe::Sender>;

/// Serves the gateway of a build to who is at the other end, until that one closes its end.
pub struct Serve(Box<dyn Fn(Arc<Bridge>, Line) -> BoxFuture<'static, ()> + Send + Sync>);

impl Serve {
    /// Serves with a function.
    pub fn of<F: Future<Output = ()> + Send + 'static>(
        serve: impl Fn(Arc<Bridge>, Line) -> F + Send + Sync + 'static,
    ) -> Self {
        Self(Box::new(move |bridge, line| Box::pin(serve(bridge, line))))
    }
}

impl fmt::Debug for Serve {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Serve(..)")
    }
}

/// Runs a frontend until it has returned and ended; `bridge` is its side of the build, which gets `outcome`.
///
/// # Errors
/// `NotFound` for an image that does not exist; `Unsupported` when it lacks a capability; what the frontend does without returning.
pub(in crate::solver) async fn run(
    shared: &Shared,
    summons: &Summons,
    bridge: &Arc<Bridge>,
    outcome: oneshot::Receiver<Outcome>,
) -> Result<Outcome, Failure> {
    let image = find(shared, summons).await?;
    let config = &image.config.config;
    check(summons, bridge, config.labels.get(CAPABILITIES).map_or("", String::as_str))?;
    let root = fetch(shared, &image).await?;
    let network = match config.labels.get(NO_NETWORK).map(String::as_str) {
        Some("1" | "t" | "T" | "true" | "TRUE" | "True") => NetworkMode::None,
        _ => NetworkMode::Sandbox,
    };
    let exec = Exec { root: Root { input: Some(0), ..Root::default() }, network, ..Exec::default() };
    let request = ContainerRequest { exec, mounts: vec![None], ..ContainerRequest::default() };
    let begun = Begun::internal(&shared.progress, &format!("[internal] frontend {}", summons.image))?;
    // Dropping it, when the build is given up, ends the frontend.
    let own = Containers::new();
    let container = Container::new(shared, &format!("the frontend {}", summons.image), request, vec![root]).await?;
    let container = own.keep(container, &shared.solver.deps().tasks).await?;
    let ran = async {
        let running = container.start(process(shared, summons, &image.config)?).await?;
        converse(running, shared, begun.digest(), bridge, outcome).await
    };
    let ran = ran.await;
    let released = own.release_all().await;
    let ran = ran.map_err(|error| error.context(format!("the frontend {}", summons.image)));
    begun.end(ran.as_ref().err());
    let outcome = ran?;
    released?;
    Ok(outcome)
}

/// Finds the image: what a named context stands in for it, or the image of its name.
async fn find(shared: &Shared, summons: &Summons) -> Result<Resolved> {
    let Summons { image, attrs, .. } = summons;
    let frontends = &shared.solver.deps().settings.frontends;
    let mut name = frontend_image(image)?;
    frontends.permit_image(&name)?;
    if let Some(context) = attrs.get(&format!("context:{image}")) {
        let other = context.strip_prefix("docker-image://").ok_or_else(|| {
            Error::unsupported(format!("a context other than an image in the place of the frontend {image}: {context}"))
        })?;
        name = other.parse().map_err(|error| Error::invalid(format!("context:{image}={context}: {error}")))?;
        frontends.permit_image(&name)?;
    }
    let policy = match attrs.get("image-resolve-mode").map(String::as_str) {
        Some("pull") => Policy::Always,
        _ => Policy::Missing,
    };
    let looking = Begun::internal(&shared.progress, &format!("resolve image config for docker-image://{name}"))?;
    let found = shared.find_image(&name, Some(&Platform::host()), policy).await;
    looking.end(found.as_ref().err());
    found.context(|| format!("find the frontend {image}"))
}

/// Brings the image here.
async fn fetch(shared: &Shared, image: &Resolved) -> Result<Value> {
    let images = &shared.solver.deps().images;
    let begun = Begun::internal(&shared.progress, &format!("docker-image://{}", image.reference))?;
    let report = layer_report(&shared.progress, begun.digest());
    let fetched = images.fetch(&shared.lease, image, &shared.registry, &report).await;
    begun.end(fetched.as_ref().err());
    let (snapshot, chain) = (fetched?, image.config.rootfs.chain_ids().pop());
    let Some((id, chain)) = snapshot.zip(chain) else { return Ok(nothing()) };
    let layer = Layer::known(Settled { id, chain }, shared.lease.clone());
    Ok(Value::FileSystem(FileSystem::Layer(layer)))
}

/// Refuses an image that cannot what is asked for.
fn check(summons: &Summons, bridge: &Bridge, label: &str) -> Result<()> {
    let names = |list: &str| -> BTreeSet<String> {
        let names = list.split(',').map(|name| name.split('+').next().unwrap_or_default().trim().to_owned());
        names.filter(|name| !name.is_empty()).collect()
    };
    let (known, mut wanted) =
        (names(label), summons.attrs.get("frontend.caps").map_or_else(BTreeSet::new, |list| names(list)));
    if !bridge.inputs().is_empty() {
        wanted.insert(INPUTS.to_owned());
    }
    match wanted.difference(&known).next() {
        Some(name) => Err(Error::unsupported(format!(
            "unsupported frontend capability {name}: the image {} does not say that it has it",
            summons.image
        ))),
        None => Ok(()),
    }
}

fn process(shared: &Shared, summons: &Summons, config: &ImageConfig) -> Result<ProcessRequest> {
    let config = &config.config;
    let args = if config.entrypoint.is_empty() { vec![RUN.to_owned()] } else { config.entrypoint.clone() };
    let platform = |platform: Platform| {
        let Platform { architecture, os, variant, .. } = platform;
        json!({"architecture": architecture, "os": os, "variant": variant})
    };
    let platforms: Vec<_> = shared.solver.platforms().into_iter().map(platform).collect();
    let workers = json!([{"ID": "kiln", "Labels": HashMap::<String, String>::new(), "Platforms": platforms}]);
    let mut env = config.env.clone();
    env.extend(
        summons.attrs.iter().enumerate().map(|(number, (key, value))| format!("{OPTION}{number}={key}={value}")),
    );
    env.push(format!("BUILDKIT_SESSION_ID={}", shared.session.id.as_deref().unwrap_or_default()));
    env.push(format!("BUILDKIT_WORKERS={workers}"));
    env.push("BUILDKIT_EXPORTEDPRODUCT=".to_owned());
    if let Some(zero) = env.iter().find(|entry| entry.contains('\0')) {
        let name = zero.split('=').nth(1).unwrap_or_default();
        return Err(Error::invalid(format!("the attribute {name:?} holds a NUL and cannot be given to a frontend")));
    }
    let cwd = if config.working_dir.is_empty() { "/".to_owned() } else { config.working_dir.clone() };
    Ok(ProcessRequest { args, env, cwd, ..ProcessRequest::default() })
}

/// Serves a frontend until it has returned and ended.
async fn converse(
    mut running: Running,
    shared: &Shared,
    vertex: Digest,
    bridge: &Arc<Bridge>,
    mut outcome: oneshot::Receiver<Outcome>,
) -> Result<Outcome> {
    let streams = running.take_streams();
    let (Some(stdin), Some(stdout), Some(stderr)) = (streams.stdin, streams.stdout, streams.stderr) else {
        return Err(Error::internal("the frontend has no streams"));
    };
    let line = tokio::io::join(
        pipe::Receiver::from_owned_fd(nonblocking(stdout)?)?,
        pipe::Sender::from_owned_fd(nonblocking(stdin)?)?,
    );
    let serve =
        shared.solver.gateway().ok_or_else(|| Error::unsupported("frontends that are images: nobody serves them"))?;
    let said = Owned::spawn(pass_on(nonblocking(stderr)?, shared.progress.clone(), vertex));
    // It goes on to the end of this function, for the answer to the frontend's last call has to reach it.
    let serving = Owned::spawn((serve.0)(Arc::clone(bridge), line)).join();
    tokio::pin!(serving);
    let mut returned = None;
    let lives = async {
        tokio::select! {
            ended = running.ended() => return ended,
            Ok(answer) = &mut outcome => returned = Some(answer),
            _ = &mut serving => {}
        }
        // Whoever has returned, or has hung up, has nothing more to do.
        match tokio::time::timeout(PATIENCE, running.ended()).await {
            Ok(ended) => ended,
            Err(_) => running.kill(),
        }
    };
    lives.await?;
    let ended = running.end().await?;
    let returned = returned.or_else(|| outcome.try_recv().ok());
    judge(returned, &ended, &said.join().await??)
}

/// Decides what a frontend that has ended came to.
fn judge(returned: Option<Outcome>, ended: &Ended, tail: &[u8]) -> Result<Outcome> {
    let said = String::from_utf8_lossy(tail);
    let said = Some(said.trim()).filter(|said| !said.is_empty());
    let said = said.map(|said| format!("; it said last:\n{said}")).unwrap_or_default();
    match returned {
        Some(failed @ Outcome::Failed(_)) => Ok(failed),
        // One that was killed, because it did not end by itself, has said what it had to say.
        Some(result) if matches!(ended.code, 0 | KILLED) => Ok(result),
        Some(_) => {
            Err(Error::invalid(format!("it failed after it returned a result (exit code: {}){said}", ended.code)))
        }
        None => Err(Error::invalid(format!("it ended without returning a result (exit code: {}){said}", ended.code))),
    }
}

fn nonblocking(fd: OwnedFd) -> Result<OwnedFd> {
    rustix::io::ioctl_fionbio(&fd, true)?;
    Ok(fd)
}

/// Reports what a frontend says, to its end, and returns the end of it.
async fn pass_on(stderr: OwnedFd, progress: Progress, vertex: Digest) -> Result<BytesMut> {
    let mut stderr = pipe::Receiver::from_owned_fd(stderr)?;
    let mut tail = BytesMut::new();
    let mut buffer = BytesMut::new();
    loop {
        buffer.reserve(PIECE);
        if stderr.read_buf(&mut buffer).await? == 0 {
            return Ok(tail);
        }
        let data = buffer.split().freeze();
        tail.extend_from_slice(&data);
        if tail.len() > TAIL {
            tail.advance(tail.len() - TAIL);
        }
        progress.report(Event::Log { vertex, stream: STDERR, data, time_ns: progress.now_ns() });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::solver::bridge::Findings;

    #[test]
    fn a_frontend_that_returns_nothing_has_failed_and_its_last_words_are_told() {
        let ended = |code| Ended { code, reason: None };
        let result = || Some(Outcome::Result(Findings::default()));
        let error = judge(None, &ended(0), b"oh no\n").unwrap_err().to_string();
        assert_eq!(error, "it ended without returning a result (exit code: 0); it said last:\noh no");
        assert!(judge(result(), &ended(1), b"").unwrap_err().to_string().contains("exit code: 1"));
        assert!(judge(result(), &ended(0), b"").is_ok());
        let failed = Some(Outcome::Failed(tonic::Status::unknown("given up")));
        assert!(matches!(judge(failed, &ended(1), b""), Ok(Outcome::Failed(_))));
    }
}
