//! Git repositories: what a reference means, and a commit's files as a layer.
//!
//! The `git` program of the host does the work, in an environment without its user's settings, hooks and prompts, and speaks
//! the protocols listed here only. Credentials reach it by its environment and never its arguments, where others could read them.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures_util::FutureExt as _;
use kiln_graph::VertexId;
use kiln_graph::diagnostic::closest;
use kiln_graph::op::{GitAccess, GitSource, Source};

use super::mirror::History;
use super::program::{Program, Said};
use super::{AgentSocket, Material, Pin, SocketOwner, bundle};
use crate::error::{Error, Kind, Result, ResultExt as _};
use crate::registry::FileRequest;
use crate::solver::job::Job;
use crate::solver::key::Parts;
use crate::solver::reporter::Reporter;
use crate::solver::session::Session;
use crate::solver::settle::Made;
use crate::solver::value::{FileSystem, Layer};
use crate::task::{self, Cancel};

/// The largest file git may write, in bytes: a pack.
const MAX_FILE: u64 = 32 << 30;

/// How long a command of git may take; a transfer that stands still ends much earlier.
const PATIENCE: Duration = Duration::from_mins(60);

/// The name of the client's agent that repositories are fetched with.
const AGENT: &str = "default";

/// Settings of every command.
const SETTINGS: &[(&str, &str)] = &[
    ("core.hooksPath", "/dev/null"),
    ("core.fsmonitor", "false"),
    ("core.logAllRefUpdates", "false"),
    ("gc.auto", "0"),
    ("maintenance.auto", "false"),
    ("protocol.version", "2"),
    ("http.lowSpeedLimit", "1000"),
    ("http.lowSpeedTime", "60"),
    ("advice.detachedHead", "false"),
    ("init.defaultBranch", "main"),
];

/// A commit, and the reference it was found by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Commit {
    /// Its id in full.
    pub(super) id: String,
    /// The reference in full, for example `refs/heads/main`; `None` when the commit itself was asked for.
    pub(super) reference: Option<String>,
}

/// What identifies a checkout.
pub(super) fn identity(git: &GitSource, commit: &Commit) -> Parts {
    let mut parts = Parts::default();
    parts.add("operation", "git");
    parts.add("commit", commit.id.as_str());
    parts.add("directory", git.subdir.trim_matches('/'));
    parts.add("submodules", if git.skip_submodules { "left out" } else { "" });
    parts.add("times", if git.commit_mtime { "commit" } else { "checkout" });
    if git.as_bundle {
        parts.add("bundle", bundle::reference(git));
    }
    if keeps_git_dir(git) {
        parts.add("repository", shown(&git.remote));
        parts.add("reference", commit.reference.clone().unwrap_or_default());
    }
    parts
}

/// Returns what versions of BuildKit call a checkout: newer ones name the reference where a repository may hold it, and say that
/// submodules are left out, which older ones cannot do.
pub(super) fn peer_keys(git: &GitSource, commit: &Commit) -> Vec<String> {
    if git.commit_mtime || git.as_bundle {
        return Vec::new();
    }
    let subdir = git.subdir.trim_matches('/');
    let subdir = if subdir.is_empty() { String::new() } else { format!(":{subdir}") };
    let (id, git_dir) = (&commit.id, if git.keep_git_dir { ".git" } else { "" });
    let reference = commit.reference.as_ref().filter(|_| git.keep_git_dir);
    let reference = reference.map(|reference| format!("#{reference}")).unwrap_or_default();
    let older = (!git.skip_submodules).then(|| format!("{id}{git_dir}{subdir}"));
    let skipped = if git.skip_submodules { "(skip-submodules)" } else { "" };
    let newer = format!("{id}{git_dir}{reference}{subdir}{skipped}");
    let is_same = older.as_ref() == Some(&newer);
    older.into_iter().chain((!is_same).then_some(newer)).collect()
}

pub(super) fn material(git: &GitSource, commit: &Commit) -> Material {
    let reference = commit.reference.as_ref().map(|name| format!("#{name}")).unwrap_or_default();
    let algorithm = if commit.id.len() == 40 { "sha1" } else { "sha256" };
    Material { uri: format!("{}{reference}", shown(&git.remote)), digest: format!("{algorithm}:{}", commit.id) }
}

/// Whether `.git` stays: as in BuildKit, only where all of the checkout does.
pub(super) fn keeps_git_dir(git: &GitSource) -> bool {
    git.keep_git_dir && git.subdir.trim_matches('/').is_empty()
}

/// A repository's address without credentials.
pub(super) fn shown(remote: &str) -> String {
    match FileRequest::new(remote) {
        Ok(request) => request.shown(),
        Err(_) => remote.to_owned(),
    }
}

/// A repository, and how git reaches it.
#[derive(Debug, Default)]
pub(super) struct Repository {
    /// The address for git.
    pub(super) address: String,
    /// What messages call it, when that is not the address.
    alias: Option<String>,
    settings: Vec<(String, String)>,
    env: Vec<(String, OsString)>,
    /// Lives as long as the commands.
    _agent: Option<AgentSocket>,
}

/// How a repository is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Protocol {
    Http,
    Ssh,
    Git,
}

impl Protocol {
    fn of(remote: &str) -> Result<Self> {
        match remote.split_once("://") {
            Some((scheme, _)) => match scheme.to_ascii_lowercase().as_str() {
                "http" | "https" => Ok(Self::Http),
                "ssh" => Ok(Self::Ssh),
                "git" => Ok(Self::Git),
                _ => Err(Error::invalid(format!("{remote}: repositories are reached by https, ssh and git only"))),
            },
            None if remote.split_once('@').is_some_and(|(_, rest)| rest.contains(':')) && !remote.starts_with('-') => {
                Ok(Self::Ssh)
            }
            None => Err(Error::invalid(format!("{remote} is no address of a repository"))),
        }
    }
}

impl Repository {
    /// A repository that git reaches without anything from the client.
    pub(super) fn plain(address: String) -> Self {
        Self { address, ..Self::default() }
    }

    /// A bundle, which is a file of the engine's own; `name` is what messages call it.
    pub(super) fn bundle(file: &Path, name: String) -> Self {
        Self { address: file.display().to_string(), alias: Some(name), ..Self::default() }
    }

    /// Returns what messages call it.
    pub(super) fn name(&self) -> &str {
        self.alias.as_deref().unwrap_or(&self.address)
    }

    /// Returns the protocols by which its own commits are fetched.
    pub(super) fn protocols(&self) -> &'static str {
        if self.alias.is_some() { "file" } else { PROTOCOLS }
    }

    /// Prepares a command of git in a directory. `protocols` are those it may speak, separated by colons.
    pub(super) fn git<'a>(&self, dir: &Path, protocols: &str, args: impl IntoIterator<Item = &'a str>) -> Program {
        let own = self.settings.iter().map(|(key, value)| (key.as_str(), value.as_str()));
        let settings: Vec<(&str, &str)> = SETTINGS.iter().copied().chain(own).collect();
        let mut env: Vec<(String, OsString)> = [
            ("HOME", "/nonexistent"),
            ("LC_ALL", "C"),
            ("GIT_CONFIG_NOSYSTEM", "1"),
            ("GIT_CONFIG_GLOBAL", "/dev/null"),
            ("GIT_TERMINAL_PROMPT", "0"),
            ("GIT_ALLOW_PROTOCOL", protocols),
            ("GIT_OPTIONAL_LOCKS", "0"),
        ]
        .map(|(key, value)| (key.to_owned(), value.into()))
        .to_vec();
        env.extend(self.env.iter().cloned());
        env.push(("GIT_CONFIG_COUNT".to_owned(), settings.len().to_string().into()));
        for (number, (key, value)) in settings.iter().enumerate() {
            env.push((format!("GIT_CONFIG_KEY_{number}"), (*key).into()));
            env.push((format!("GIT_CONFIG_VALUE_{number}"), (*value).into()));
        }
        let args = args.into_iter().map(OsString::from).collect();
        Program { name: "git", args, env, dir: dir.to_owned(), max_file: MAX_FILE, patience: PATIENCE }
    }

    /// Runs a command that must succeed and returns what it prints. Blocking.
    ///
    /// # Errors
    /// With what git says.
    pub(super) fn run(&self, program: &Program, cancel: &Cancel) -> Result<String> {
        self.run_bytes(program, cancel).map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
    }

    /// As [`Self::run`], where what is printed need not be text.
    pub(super) fn run_bytes(&self, program: &Program, cancel: &Cancel) -> Result<Vec<u8>> {
        let said = self.try_run(program, cancel)?;
        if said.status.success() {
            return Ok(said.stdout);
        }
        Err(refusal(&said).context(format!("fetch {}", self.name())))
    }

    /// Runs a command that may fail. Blocking.
    pub(super) fn try_run(&self, program: &Program, cancel: &Cancel) -> Result<Said> {
        program.run(cancel, &|_| {}).map_err(|error| match error.kind() {
            Kind::NotFound => error.with_kind(Kind::Unsupported).context(format!(
                "fetch {}: repositories need git on the engine's machine (apt-get install git)",
                self.name()
            )),
            _ => error.context(format!("fetch {}", self.name())),
        })
    }

    /// Asks the repository what a reference means. Blocking.
    ///
    /// # Errors
    /// `NotFound` when it has no such reference; what git says otherwise.
    pub(super) fn resolve(&self, reference: &str, cancel: &Cancel) -> Result<(Commit, String)> {
        let root = Path::new("/");
        if reference.is_empty() {
            let program = self.git(root, self.protocols(), ["ls-remote", "--symref", "--", &self.address, "HEAD"]);
            return Listing::parse(&self.run(&program, cancel)?).head().ok_or_else(|| {
                Error::not_found(format!("the repository {} is empty: it has no default branch", self.name()))
            });
        }
        let names = candidates(reference);
        let peeled = names.iter().map(|name| format!("{name}^{{}}"));
        let patterns: Vec<String> = names.iter().cloned().chain(peeled).collect();
        let args = ["ls-remote", "--", self.address.as_str()].into_iter().chain(patterns.iter().map(String::as_str));
        let listing = Listing::parse(&self.run(&self.git(root, self.protocols(), args), cancel)?);
        match names.iter().find_map(|name| listing.commit(name)) {
            Some(found) => Ok(found),
            None => Err(self.no_reference(reference, cancel)),
        }
    }

    fn no_reference(&self, reference: &str, cancel: &Cancel) -> Error {
        let args = ["ls-remote", "--heads", "--tags", "--", &self.address];
        let program = self.git(Path::new("/"), self.protocols(), args);
        let listing = self.run(&program, cancel).map(|text| Listing::parse(&text)).unwrap_or_default();
        let short = |name| ["refs/heads/", "refs/tags/"].iter().find_map(|prefix| str::strip_prefix(name, prefix));
        let names = listing.0.iter().filter_map(|(_, name)| short(name));
        let hint = closest(reference, names).map(|near| format!(" (did you mean {near}?)")).unwrap_or_default();
        Error::not_found(format!("the repository {} does not contain the reference {reference:?}{hint}", self.name()))
    }
}

/// The protocols by which repositories are reached. `file` is not among them: it would read the engine's own files.
pub(super) const PROTOCOLS: &str = "http:https:ssh:git";

/// What `git ls-remote` lists: object ids and names.
#[derive(Debug, Default)]
struct Listing(Vec<(String, String)>);

impl Listing {
    fn parse(text: &str) -> Self {
        let pair = |line: &str| line.split_once('\t').map(|(id, name)| (id.to_owned(), name.to_owned()));
        Self(text.lines().filter_map(pair).collect())
    }

    fn id(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(id, known)| known == name && is_commit_id(id)).map(|(id, _)| id.as_str())
    }

    /// The commit of a reference, and the object it names: an annotated tag is an object of its own.
    fn commit(&self, name: &str) -> Option<(Commit, String)> {
        let object = self.id(name)?;
        let id = self.id(&format!("{name}^{{}}")).unwrap_or(object).to_owned();
        Some((Commit { id, reference: Some(name.to_owned()) }, object.to_owned()))
    }

    fn head(&self) -> Option<(Commit, String)> {
        let id = self.id("HEAD")?.to_owned();
        let branch = self.0.iter().find(|(_, name)| name == "HEAD").and_then(|(id, _)| id.strip_prefix("ref: "));
        Some((Commit { id: id.clone(), reference: branch.map(str::to_owned) }, id))
    }
}

/// The full names a reference may have, in the order in which git's own commands look.
fn candidates(reference: &str) -> Vec<String> {
    let mut names = vec![format!("refs/heads/{reference}"), format!("refs/tags/{reference}")];
    match reference.strip_prefix("refs/") {
        Some(_) => names.insert(0, reference.to_owned()),
        None => names.push(format!("refs/{reference}")),
    }
    names
}

pub(super) fn is_commit_id(text: &str) -> bool {
    matches!(text.len(), 40 | 64) && text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
}

/// What git says went wrong: its last lines, without hints that concern people at a terminal.
fn refusal(said: &Said) -> Error {
    let lines: Vec<&str> = said.stderr.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let telling: Vec<&str> = lines.iter().copied().filter(|line| is_telling(line)).collect();
    let last = |lines: &[&str]| lines[lines.len().saturating_sub(3)..].join("; ");
    let shown = match lines.iter().position(|line| line.contains("Could not read from remote repository")) {
        // What ssh said before git gave up.
        Some(at @ 1..) => last(&lines[..at]),
        _ if telling.is_empty() => last(&lines),
        _ => telling.join("; "),
    };
    let kind = match said.stderr.as_str() {
        text if text.contains("could not read Username") || text.contains("Authentication failed") => {
            Kind::Unauthorized
        }
        text if text.contains("Permission denied") => Kind::Forbidden,
        text if text.contains("not found") || text.contains("error: 404") => Kind::NotFound,
        _ => Kind::Unavailable,
    };
    let hint = match kind {
        Kind::Unauthorized => " (give a token with --secret id=GIT_AUTH_TOKEN)",
        Kind::Forbidden => " (forward an agent that has a key for it with --ssh default)",
        _ => "",
    };
    Error::new(kind, format!("git: {shown} ({}){hint}", said.ending()))
}

fn is_telling(line: &str) -> bool {
    ["fatal:", "error:", "remote:", "ssh:"].iter().any(|prefix| line.starts_with(prefix)) || line.contains("denied")
}

impl Job {
    /// Finds out which commit a source means.
    ///
    /// # Errors
    /// As the server says; what is wrong with the signature, when the source wants one.
    pub(super) async fn pin_commit(self: &Arc<Self>, git: &GitSource) -> Result<Commit> {
        let (commit, object) = self.find_commit(git).await?;
        if git.verification.is_some() {
            // Each time: keys expire, whatever is known of the commit.
            let objects = self.objects(git, &commit, &object).await?;
            self.verify_objects(git, &objects)?;
        }
        Ok(commit)
    }

    /// Finds out which commit a source means, and the object that its reference names.
    pub(super) async fn find_commit(self: &Arc<Self>, git: &GitSource) -> Result<(Commit, String)> {
        let wanted = git.checksum.to_ascii_lowercase();
        if let Some(bundle) = &git.bundle {
            Protocol::of(&git.remote)?;
            return self.find_in_bundle(git, bundle).boxed().await;
        }
        if git.fetch_by_commit && is_commit_id(&wanted) {
            let named = Some(git.reference.clone()).filter(|name| name.starts_with("refs/"));
            return Ok((Commit { id: wanted.clone(), reference: named }, wanted));
        }
        let written = git.reference.to_ascii_lowercase();
        let (commit, object) = if is_commit_id(&written) {
            Protocol::of(&git.remote)?;
            (Commit { id: written.clone(), reference: None }, written)
        } else {
            let (cancel, repository) = (Cancel::new(), self.repository(git).await?);
            let _stop = cancel.on_drop();
            let (asked, reference) = (cancel.clone(), git.reference.clone());
            task::blocking(move || repository.resolve(&reference, &asked)).await?
        };
        if !commit.id.starts_with(&wanted) && !object.starts_with(&wanted) {
            let (address, id) = (shown(&git.remote), &commit.id);
            return Err(Error::corrupt(format!("fetch {address}: expected checksum to match {wanted}, got {id}")));
        }
        Ok((commit, object))
    }

    /// Prepares the way to a repository, with what the client has for it.
    pub(super) async fn repository(&self, git: &GitSource) -> Result<Repository> {
        let session = self.session.get().await?;
        match Protocol::of(&git.remote)? {
            Protocol::Http => self.by_http(git, session.as_ref()).await,
            Protocol::Ssh => self.by_ssh(git, session.as_ref()).await,
            Protocol::Git => Ok(Repository::plain(git.remote.clone())),
        }
    }

    async fn by_http(&self, git: &GitSource, session: Option<&Session>) -> Result<Repository> {
        let mut request = FileRequest::new(&git.remote)?;
        if let Some(session) = session
            && let Some(header) = authorization(session, &git.access, &request.host()).await?
        {
            request.authorize(&header)?;
        }
        let address = request.shown();
        let mut settings = Vec::new();
        if let Some(value) = request.authorization().and_then(|value| value.to_str().ok()) {
            // For this server only, whatever submodules and redirects name.
            let origin = address.split('/').take(3).collect::<Vec<_>>().join("/");
            settings.push((format!("http.{origin}/.extraHeader"), format!("Authorization: {value}")));
        }
        settings.extend(self.registry.proxy_of(&request).map(|proxy| ("http.proxy".to_owned(), proxy)));
        Ok(Repository { settings, ..Repository::plain(address) })
    }

    async fn by_ssh(&self, git: &GitSource, session: Option<&Session>) -> Result<Repository> {
        let GitSource { remote, access, .. } = git;
        let root = self.solver.deps().store.root();
        let context = || format!("fetch {remote}");
        let session = session.ok_or_else(|| Error::not_found("it needs an SSH agent (build with --ssh default)"));
        let session = session.context(context)?;
        let (sockets, known) = task::blocking({
            let (root, keys) = (root.clone(), access.known_hosts.clone());
            move || Ok((root.subdir("ssh")?, known_hosts(&root.subdir("git")?, &keys)?))
        })
        .await?;
        let uid = rustix::process::geteuid().as_raw();
        let owner = SocketOwner { uid, gid: rustix::process::getegid().as_raw(), mode: 0o600 };
        let agent = AgentSocket::open(session, or(&access.agent, AGENT), &sockets, owner).await.context(context)?;
        let checking = if access.known_hosts.is_empty() { "accept-new" } else { "yes" };
        // No keys of the engine's own user: the client's agent alone. A host's key is remembered when it is seen first, and another one is refused from then on.
        let ssh = format!(
            "ssh -F none -o IdentityFile=none -o BatchMode=yes -o StrictHostKeyChecking={checking} -o UserKnownHostsFile='{}' \
             -o ConnectTimeout=20 -o ServerAliveInterval=15",
            known.display().to_string().replace('\'', "'\\''")
        );
        let env = vec![
            ("SSH_AUTH_SOCK".to_owned(), agent.path().into_os_string()),
            ("GIT_SSH_COMMAND".to_owned(), ssh.into()),
        ];
        Ok(Repository { env, _agent: Some(agent), ..Repository::plain(remote.clone()) })
    }

    /// Fetches a commit and makes a layer of its files.
    pub(super) async fn run_git(
        self: &Arc<Self>,
        id: VertexId,
        git: &GitSource,
        reporter: &Reporter,
        cancel: &Cancel,
    ) -> Result<Layer> {
        let Some(Pin::Commit(commit)) = self.pins.get(&Source::Git(git.clone())) else {
            return Err(Error::internal("a repository is fetched before its commit is known"));
        };
        let repository = match self.repository(git).await {
            // Of this one are submodules only, if there are any.
            Err(_) if git.bundle.is_some() => Repository::plain(git.remote.clone()),
            repository => repository?,
        };
        let bundle = match &git.bundle {
            Some(bundle) => Some(self.bundle(bundle, Some(reporter)).boxed().await?),
            None => None,
        };
        // A bundle holds all that led to its commit, of which other checkouts need nothing.
        let (history, suffix) = if git.as_bundle { (History::All, " with its history") } else { (History::None, "") };
        let mirror = self.kept_by_source(&format!("git repository {}{suffix}", repository.address)).await?;
        let name = commit.reference.clone().unwrap_or_default();
        reporter.log(2, &format!("{}\t{name}\n", commit.id).into());
        let (job, source, at, stop) = (Arc::clone(self), git.clone(), commit.clone(), cancel.clone());
        let snapshot = task::blocking(move || {
            let origin = bundle.as_ref().map_or(&repository, |(bundle, _)| bundle);
            origin.bring(mirror.path(), &at, history, &stop)?;
            job.check_out(&repository, mirror.path(), &source, &at, &stop)
        })
        .await?;
        let vertex = self.graph.vertex(id);
        let work = self.fetching(vertex, Some(identity(git, &commit)));
        let name = vertex.meta.name.clone();
        Ok(self.settle(work, Made { snapshot, base: FileSystem::Empty, listing: None, name, has_digests: false }))
    }
}

fn or<'a>(text: &'a str, default: &'a str) -> &'a str {
    if text.is_empty() { default } else { text }
}

/// Returns the file with the keys of hosts: those that were given, which are all that count then, or those that were seen.
fn known_hosts(dir: &Path, keys: &str) -> Result<PathBuf> {
    if keys.is_empty() {
        return Ok(dir.join("known_hosts"));
    }
    let path = dir.join(format!("known_hosts-{}", &blake3::hash(keys.as_bytes()).to_hex()[..16]));
    let text = if keys.ends_with('\n') { keys.to_owned() } else { format!("{keys}\n") };
    std::fs::write(&path, text).context(|| "write the keys of hosts")?;
    Ok(path)
}

/// What the client has for a host: a header, or a token, for this host or for all.
async fn authorization(session: &Session, access: &GitAccess, host: &str) -> Result<Option<String>> {
    let (header, token) = (or(&access.header_secret, "GIT_AUTH_HEADER"), or(&access.token_secret, "GIT_AUTH_TOKEN"));
    let name_alone = host.split_once(':').map(|(name, _)| name);
    let suffixes = std::iter::once(host).chain(name_alone).map(|host| format!(".{host}"));
    for suffix in suffixes.chain(std::iter::once(String::new())) {
        if let Some(header) = session.secret_text(&format!("{header}{suffix}")).await? {
            return Ok(Some(header.trim().to_owned()));
        }
        if let Some(token) = session.secret_text(&format!("{token}{suffix}")).await? {
            return Ok(Some(format!("basic {}", STANDARD.encode(format!("x-access-token:{}", token.trim())))));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
    const B: &str = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";

    #[test]
    fn a_reference_is_a_branch_before_a_tag_and_an_annotated_tag_its_commit() {
        let listing = Listing::parse(&format!("{A}\trefs/tags/v1\n{B}\trefs/tags/v1^{{}}\n"));
        let (commit, object) = candidates("v1").iter().find_map(|name| listing.commit(name)).unwrap();
        assert_eq!((commit.id.as_str(), object.as_str()), (B, A));
        assert_eq!(commit.reference.as_deref(), Some("refs/tags/v1"));
        let both = Listing::parse(&format!("{A}\trefs/tags/x\n{B}\trefs/heads/x\n"));
        assert_eq!(candidates("x").iter().find_map(|name| both.commit(name)).unwrap().0.id, B);
        assert_eq!(candidates("refs/pull/1/head")[0], "refs/pull/1/head");
    }

    #[test]
    fn the_default_branch_is_what_head_points_to() {
        let (commit, _) = Listing::parse(&format!("ref: refs/heads/trunk\tHEAD\n{A}\tHEAD\n")).head().unwrap();
        assert_eq!((commit.id.as_str(), commit.reference.as_deref()), (A, Some("refs/heads/trunk")));
        assert!(Listing::parse("").head().is_none());
    }

    #[test]
    fn only_protocols_that_reach_other_machines_are_spoken() {
        for (remote, protocol) in [
            ("https://a/b.git", Protocol::Http),
            ("ssh://git@a/b", Protocol::Ssh),
            ("git@a:b/c", Protocol::Ssh),
            ("git://a/b", Protocol::Git),
        ] {
            assert_eq!(Protocol::of(remote).unwrap(), protocol);
        }
        for remote in ["file:///etc", "/etc", "ext::sh -c x", "-uploadpack=x@y:z", "ftp://a/b"] {
            assert!(Protocol::of(remote).is_err(), "{remote}");
        }
    }
}
