//! The mounts of a RUN: binds of other stages and of contexts, cache directories, memory, secrets.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use kiln_graph::VertexId;
use kiln_graph::op::{Exec, Mount, MountKind, SecretFile};
use rustix::fs::{Mode, OFlags, ResolveFlags};

use super::cache_mount::{CacheMount, Wanted};
use crate::error::{Error, Kind, Result, ResultExt as _};
use crate::sandbox::{self, Access, Propagation, Source, Tmpfs};
use crate::solver::cache;
use crate::solver::copy::{Listing, Target, Writer};
use crate::solver::identify::{Work, selected};
use crate::solver::job::{Job, Taken};
use crate::solver::key::Key;
use crate::solver::remote::{AgentSocket, SocketOwner};
use crate::solver::settle::Made;
use crate::solver::value::{FileSystem, Value};
use crate::store::tree::{self, Time};
use crate::store::{self, Active, Lease, SnapshotId, Store};
use crate::task;

/// The mounts of a step, prepared: they can be mounted several times, one time after the other.
#[derive(Debug, Default)]
pub(super) struct Mounts(Vec<Prepared>);

#[derive(Debug)]
struct Prepared {
    target: String,
    access: Access,
    what: What,
}

/// What is mounted, and what must live as long as it is used.
#[derive(Debug)]
enum What {
    /// A path of a snapshot; with a tree on top that takes what is written, which nobody sees afterwards unless it is an output.
    Tree {
        base: Option<SnapshotId>,
        scratch: Option<Active>,
        subpath: String,
        output: Option<u32>,
    },
    Cache(CacheMount),
    Agent(AgentSocket),
    Memory(Tmpfs),
    Secret {
        secret: SecretFile,
        content: Vec<u8>,
    },
}

impl Mounts {
    /// Mounts everything, detached. Blocking. What was mounted before must not be mounted any more.
    pub(super) fn mount(&self, store: &Store) -> Result<Vec<sandbox::Mount>> {
        let mount = |prepared: &Prepared| {
            let source = prepared.what.mount(store).context(|| format!("mount {}", prepared.target))?;
            Ok(sandbox::Mount { target: prepared.target.clone(), source, access: prepared.access })
        };
        self.0.iter().map(mount).collect()
    }

    /// Puts empty trees in the place of those that take what is written to bind mounts. Cache mounts stay as they are.
    /// Blocking. Nothing must be mounted.
    pub(super) fn renew(&mut self, store: &Store, lease: &Lease) -> Result<()> {
        for prepared in &mut self.0 {
            if let What::Tree { base, scratch: Some(scratch), .. } = &mut prepared.what {
                *scratch = store.prepare(lease, *base)?;
            }
        }
        Ok(())
    }
}

impl Mounts {
    /// Gives everything back but the trees that are outputs, with their numbers.
    pub(super) fn into_outputs(self) -> Vec<(u32, Active)> {
        let output = |prepared: Prepared| match prepared.what {
            What::Tree { scratch: Some(tree), output: Some(output), .. } => Some((output, tree)),
            _ => None,
        };
        self.0.into_iter().filter_map(output).collect()
    }
}

impl Mounts {
    /// Gives everything back but the trees that take what is written, with their mount points.
    pub(super) fn into_trees(self) -> Vec<(String, Active)> {
        let tree = |prepared: Prepared| match prepared.what {
            What::Tree { scratch: Some(tree), .. } => Some((prepared.target, tree)),
            _ => None,
        };
        self.0.into_iter().filter_map(tree).collect()
    }
}

impl What {
    fn mount(&self, store: &Store) -> Result<Source> {
        Ok(match self {
            Self::Tree { base, scratch, subpath, .. } => {
                let mount = match scratch {
                    Some(scratch) => scratch.rootfs()?.mount(store::Access::Volatile)?,
                    None => store.rootfs(*base)?.mount(store::Access::ReadOnly)?,
                };
                Source::Detached { mount, subpath: subpath.clone() }
            }
            Self::Cache(cache) => {
                let source = cache.dir.try_clone().context(|| "open a cache mount")?;
                Source::Bind { source, recursive: false, propagation: Propagation::Private }
            }
            Self::Agent(socket) => {
                Source::Bind { source: socket.to_mount()?, recursive: false, propagation: Propagation::Private }
            }
            Self::Memory(tmpfs) => Source::Tmpfs(*tmpfs),
            Self::Secret { secret, content } => {
                Source::File { content: content.clone(), mode: secret.mode, uid: secret.uid, gid: secret.gid }
            }
        })
    }
}

impl Job {
    /// Prepares the mounts of a step.
    ///
    /// # Errors
    /// `NotFound` for a secret, an SSH agent or a path that is not there.
    pub(super) async fn mounts(self: &Arc<Self>, id: VertexId, exec: &Exec) -> Result<Mounts> {
        // In one order, so that two steps that lock the same directories do not wait for each other.
        let mut order: Vec<usize> = (0..exec.mounts.len()).collect();
        order.sort_by_key(|at| match &exec.mounts[*at].kind {
            MountKind::Cache { id, .. } => Some(id),
            _ => None,
        });
        let mut mounts: Vec<Option<Prepared>> = Vec::new();
        mounts.resize_with(exec.mounts.len(), || None);
        // The uses of a step are its root, then those mounts that have an input.
        let mut number = 0;
        let mut uses = Vec::with_capacity(exec.mounts.len());
        for mount in &exec.mounts {
            let has_input =
                matches!(mount.kind, MountKind::Bind { input: Some(_), .. } | MountKind::Cache { input: Some(_), .. });
            number += usize::from(has_input);
            uses.push(number);
        }
        for at in order {
            let mount = &exec.mounts[at];
            let access = if mount.readonly { Access::ReadOnly } else { Access::ReadWrite };
            let what = self.one_mount(id, mount, uses[at]).await?;
            mounts[at] = what.map(|what| Prepared { target: mount.target.clone(), access, what });
        }
        Ok(Mounts(mounts.into_iter().flatten().collect()))
    }

    /// `None` for what is optional and not there.
    async fn one_mount(self: &Arc<Self>, id: VertexId, mount: &Mount, number: usize) -> Result<Option<What>> {
        Ok(Some(match &mount.kind {
            MountKind::Bind { input, selector, output } => {
                let base = self.mounted(id, (*input, selector), number).await?;
                let (job, writable) = (Arc::clone(self), !mount.readonly || output.is_some());
                let prepare = move || job.solver.deps().store.prepare(&job.lease, base);
                let scratch = if writable { Some(task::blocking(prepare).await?) } else { None };
                let subpath = selector.trim_start_matches('/').to_owned();
                What::Tree { base, scratch, subpath, output: *output }
            }
            // No name that a build chooses is that of something else that is kept.
            MountKind::Cache { id: name, .. } if name.contains('\0') => {
                return Err(Error::invalid(format!("the id of the cache mount at {} holds a NUL", mount.target)));
            }
            MountKind::Cache { id: name, sharing, input, selector } => {
                // As with BuildKit, a step without cache has a new directory, unless that has content or permissions.
                if input.is_none() && self.graph.vertex(id).meta.no_cache {
                    self.forget_cache_mounts(name).await?;
                }
                let wanted = match input {
                    None => {
                        let restore = !self.graph.vertex(id).meta.no_cache;
                        Wanted { name: name.clone(), sharing: *sharing, seed: None, restore }
                    }
                    Some(input) => {
                        let (seed, known_by) = self.seed(id, (*input, selector), number).await?;
                        let name = format!("{name} from {known_by}{selector}");
                        Wanted { name, sharing: *sharing, seed: Some(Arc::new(seed)), restore: false }
                    }
                };
                What::Cache(self.cache_mount(wanted).await?)
            }
            MountKind::Tmpfs { size_bytes } => {
                What::Memory(Tmpfs { size_bytes: *size_bytes, noexec: false, nodev: false, ..Tmpfs::default() })
            }
            MountKind::Secret(secret) => match self.secret(&secret.id, secret.optional).await? {
                Some(content) => What::Secret { secret: secret.clone(), content },
                None => return Ok(None),
            },
            MountKind::Ssh(agent) => match self.agent(agent).await? {
                Some(socket) => What::Agent(socket),
                None => return Ok(None),
            },
        }))
    }

    /// Opens a socket to an agent of the client; `None` when it forwards none of that name and the step runs without.
    async fn agent(&self, agent: &SecretFile) -> Result<Option<AgentSocket>> {
        let Some(session) = self.session.get().await? else {
            let id = &agent.id;
            let missing =
                || Error::not_found(format!("no SSH key {id:?} forwarded from the client: there is no session"));
            return if agent.optional { Ok(None) } else { Err(missing()) };
        };
        let root = self.solver.deps().store.root().clone();
        let dir = task::blocking(move || root.subdir("ssh")).await?;
        let owner = SocketOwner { uid: agent.uid, gid: agent.gid, mode: agent.mode };
        match AgentSocket::open(&session, &agent.id, &dir, owner).await {
            Err(error) if agent.optional && error.kind() == Kind::NotFound => Ok(None),
            opened => opened.map(Some),
        }
    }

    /// Asks the client for a secret; `None` when it has none of that name and the step runs without.
    ///
    /// # Errors
    /// `NotFound` in BuildKit's words.
    pub(super) async fn secret(&self, id: &str, optional: bool) -> Result<Option<Vec<u8>>> {
        let found = match self.session.get().await? {
            Some(session) => session.secret(id).await?,
            None => None,
        };
        match found {
            None if !optional => Err(Error::not_found(format!("secret {id}: not found"))),
            found => Ok(found),
        }
    }

    /// Returns the snapshot that a mount shows a path of.
    async fn mounted(
        self: &Arc<Self>,
        id: VertexId,
        (input, selector): (Option<u32>, &str),
        number: usize,
    ) -> Result<Option<SnapshotId>> {
        let vertex = self.graph.vertex(id);
        let Some(index) = input else { return Ok(None) };
        match self.input(vertex, index)? {
            Value::FileSystem(file_system) => self.materialize(&file_system).await,
            Value::Several(_) => Err(Error::internal("an output has several file systems")),
            Value::Local(_) => {
                let copy = Box::new(selected(selector));
                let taken = self.take(id, (id.index(), number), Some(index), copy).await?;
                self.context(taken, selector).await.map(Some)
            }
        }
    }

    /// Returns a snapshot of what a mount shows of a client's directory, without what its rules hide.
    ///
    /// Not mounted in place, because it must not change while the step runs, nor show what `.dockerignore` excludes. The
    /// snapshot is recorded like a step's result, and unchanged files are linked from the one before.
    async fn context(self: &Arc<Self>, taken: Arc<Taken>, selector: &str) -> Result<SnapshotId> {
        let work = Work::of_context(selector, taken.hash);
        // One that another step has just made is recorded soon.
        if let Some(layer) = self.solver.settling(&work.run) {
            layer.settled().await?;
        }
        let (job, path, op, run) = (Arc::clone(self), selector.to_owned(), work.op, work.run);
        let (snapshot, listing) = task::blocking(move || {
            let store = &job.solver.deps().store;
            if let Some(step) = store.root().db().read(|c| cache::find(c, &run))?
                && store.snapshot(&job.lease, step.snapshot)?.is_some()
            {
                job.hit(step.id);
                return Ok((step.snapshot, None));
            }
            let listing = Listing::of([&taken.selection]).encode();
            Ok((job.copy_context(&taken, &path, &op)?, Some(listing)))
        })
        .await?;
        if listing.is_some() {
            let name = format!("context /{}", selector.trim_start_matches('/'));
            let made = Made { snapshot, base: FileSystem::Empty, listing, name, has_digests: false };
            self.settle(work, made);
        }
        Ok(snapshot)
    }

    /// Blocking.
    fn copy_context(&self, taken: &Taken, selector: &str, op: &Key) -> Result<SnapshotId> {
        let store = &self.solver.deps().store;
        let active = store.prepare(&self.lease, None)?;
        let below = store.rootfs(None)?.mount(store::Access::ReadOnly)?;
        let donor = store.root().db().read(|c| cache::find_listing(c, op))?;
        let target = Target { active: &active, below, donor };
        let writer = Writer::new(target, Time::default(), &self.cancel)?;
        writer.copy(&taken.tree, &taken.selection, &selected(selector), None)?;
        drop(writer);
        active.commit()
    }

    /// Opens the directory that a cache mount is filled from, and says what it is known by.
    async fn seed(
        self: &Arc<Self>,
        id: VertexId,
        (input, selector): (u32, &str),
        number: usize,
    ) -> Result<(OwnedFd, String)> {
        let vertex = self.graph.vertex(id);
        let known_by = match self.input(vertex, input)? {
            Value::FileSystem(file_system @ (FileSystem::Empty | FileSystem::Image { .. } | FileSystem::Cached(_))) => {
                file_system.provisional()
            }
            Value::FileSystem(FileSystem::Layer(layer)) => layer.settled().await?.chain.to_string(),
            Value::Local(dir) => dir.name.clone(),
            Value::Several(_) => return Err(Error::internal("an output has several file systems")),
        };
        let base = self.mounted(id, (Some(input), selector), number).await?;
        let (store, path) = (self.solver.deps().store.clone(), selector.trim_start_matches('/').to_owned());
        let dir = task::blocking(move || {
            let mount = store.rootfs(base)?.mount(store::Access::ReadOnly)?;
            let path = if path.is_empty() { "." } else { &path };
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
            tree::openat2(&mount, path, flags, Mode::empty(), resolve)
                .context(|| format!("open the content /{path} of a cache mount"))
        })
        .await?;
        Ok((dir, known_by))
    }
}
