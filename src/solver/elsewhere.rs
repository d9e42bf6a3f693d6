//! Contexts that are elsewhere: fetched before there is a graph, because their Dockerfile says what is built.

use std::collections::{BTreeMap, HashMap};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use kiln_dockerfile::{Files, Given, epoch_name, epoch_source};
use kiln_graph::op::{GitSource, HttpSource};
use kiln_graph::{Platform, SourceFile, VertexId};
use rustix::fs::{Mode, OFlags, ResolveFlags};

use super::contexts::Locals;
use super::copy::{Owners, Tree, is_archive, select};
use super::failure::Failure;
use super::frontend::Surroundings;
use super::identify::selected;
use super::job::Job;
use super::options::{ContextSource, Options};
use super::value::{FileSystem, Value};
use crate::error::{Error, Result, ResultExt as _};
use crate::store::layer::{What, pass_by};
use crate::store::tree;
use crate::task::{self, Cancel};

/// What BuildKit calls a context that is one file.
const FILE: &str = "context";

/// A main context that is no directory of the client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Elsewhere {
    /// A repository.
    Git(GitSource),
    /// An archive by HTTP, or a Dockerfile.
    File(HttpSource),
}

impl Elsewhere {
    /// A file by HTTP, or what the client uploads under an address.
    pub(super) fn file(url: &str) -> Self {
        let (url, filename) = (url.to_owned(), FILE.to_owned());
        Self::File(HttpSource { url, filename, ..HttpSource::default() })
    }
}

/// A context that was fetched.
pub(super) struct Fetched {
    /// What steps copy from.
    pub(super) files: Files,
    /// Where its Dockerfile is.
    pub(super) root: Arc<OwnedFd>,
    /// What its Dockerfile is called, when the context is nothing but that.
    pub(super) only: Option<&'static str>,
    /// Where the file is as it was fetched, unless the context is a repository.
    file: Option<Arc<OwnedFd>>,
}

impl Fetched {
    /// Returns the time of the context in seconds since 1970: that of the commit, what the server says of the file, or else that of
    /// the newest file in an archive; `None` when nothing of that is known.
    ///
    /// # Errors
    /// When the files cannot be read.
    pub(super) async fn time_s(&self) -> Result<Option<i64>> {
        let (file, root) = (self.file.clone(), Arc::clone(&self.root));
        task::blocking(move || {
            if let Some(dir) = file {
                let stat = rustix::fs::fstat(open_file(&dir)?).context(|| "look at what was fetched")?;
                // A file of which the server says nothing is left at the beginning of time.
                return match stat.st_mtime {
                    0 if is_archive(open_file(&dir)?) => newest_of(open_file(&dir)?),
                    seconds => Ok(Some(seconds).filter(|seconds| *seconds > 0)),
                };
            }
            let name = "the build context".to_owned();
            let tree = Tree { root, name, ignore: None, owners: Owners::Keep, memo: None };
            let newest_ns = select(&tree, &selected("/"), &Cancel::new())?.newest_ns();
            Ok(Some(newest_ns / 1_000_000_000).filter(|seconds| *seconds > 0))
        })
        .await
    }
}

impl Surroundings<'_> {
    /// Fetches the main context; `None` when it is a directory of the client.
    ///
    /// # Errors
    /// As the failure of the step that fetches it.
    pub(super) async fn fetch_context(
        &self,
        options: &Options,
        given: &BTreeMap<String, Arc<Given>>,
    ) -> Result<Option<Fetched>, Failure> {
        let fetched = match &options.elsewhere {
            None => {
                let Some(context) = given.get(&options.context) else { return Ok(None) };
                let root = self.open_given(given.get(&options.dockerfile).unwrap_or(context)).await?;
                return Ok(Some(Fetched { files: Files::Given(Arc::clone(context)), root, only: None, file: None }));
            }
            Some(elsewhere) => self.fetch(elsewhere).await?,
        };
        Ok(Some(match options.context_subdir.trim_matches('/') {
            "" => fetched,
            dir => Fetched { files: Files::Below(Box::new(fetched.files), dir.to_owned()), ..fetched },
        }))
    }

    async fn fetch(&self, elsewhere: &Elsewhere) -> Result<Fetched, Failure> {
        Ok(match elsewhere {
            Elsewhere::Git(git) => {
                let files = Files::Git(git.clone());
                Fetched { root: self.open(&files).await?, files, only: None, file: None }
            }
            Elsewhere::File(http) => {
                let files = Files::File(http.clone());
                let fetched = self.open(&files).await?;
                let (root, file) = (Arc::clone(&fetched), Some(Arc::clone(&fetched)));
                if task::blocking(move || Ok(is_archive(open_file(&fetched)?))).await? {
                    let files = Files::Archive(http.clone());
                    Fetched { root: self.open(&files).await?, files, only: None, file }
                } else {
                    Fetched { files, root, only: Some(FILE), file }
                }
            }
        })
    }

    /// Finds out the time that a file takes from something it names, a named context or a stage (`SOURCE_DATE_EPOCH=NAME`): the name,
    /// and the time in seconds since 1970, if there is one. `None` when it names nothing that is known.
    ///
    /// # Errors
    /// A stage that has no time; as the failure of the step that fetches what it adds.
    pub(super) async fn named_time(
        &self,
        file: &SourceFile,
        options: &Options,
    ) -> Result<Option<(String, Option<i64>)>, Failure> {
        let Some(name) = epoch_name(file, &options.build_args) else { return Ok(None) };
        let elsewhere = match options.contexts.get(&name) {
            Some(ContextSource::Git(git)) => Some(Elsewhere::Git(git.clone())),
            Some(ContextSource::Http(http)) => {
                Some(Elsewhere::File(HttpSource { filename: FILE.into(), ..http.clone() }))
            }
            // Others have no time, as with BuildKit.
            Some(_) => None,
            None => match epoch_source(file, &options.build_args, &name)
                .map_err(|wrong| Failure::of_source(file, vec![wrong]))?
            {
                Some(Files::Git(git)) => Some(Elsewhere::Git(git)),
                Some(Files::File(http)) => Some(Elsewhere::File(HttpSource { filename: FILE.into(), ..http })),
                _ => return Ok(None),
            },
        };
        let time_s = match elsewhere {
            Some(elsewhere) => Box::pin(self.fetch(&elsewhere)).await?.time_s().await?,
            None => None,
        };
        Ok(Some((name, time_s)))
    }

    /// Fetches a file by HTTP; returns the directory that holds it under [`FILE`]'s name.
    pub(super) async fn fetch_file(&self, url: &str) -> Result<(Arc<OwnedFd>, String), Failure> {
        match Elsewhere::file(url) {
            Elsewhere::File(http) => Ok((self.open(&Files::File(http)).await?, FILE.to_owned())),
            Elsewhere::Git(_) => Err(Error::internal("a file was taken for a repository").into()),
        }
    }

    /// Makes what the frontend is given, and opens it.
    pub(super) async fn open_given(&self, given: &Arc<Given>) -> Result<Arc<OwnedFd>, Failure> {
        self.open(&Files::Given(Arc::clone(given))).await
    }

    /// Brings files here and opens them.
    async fn open(&self, files: &Files) -> Result<Arc<OwnedFd>, Failure> {
        let (mut graph, root) = files.graph(&Platform::host());
        self.shared.comply(&mut graph).await?;
        let cancel = Cancel::new();
        let _given_up = cancel.on_drop();
        let locals = Locals::none(self.shared.solver.memos(), self.progress.now_ns());
        let job = Job::of(self.shared, graph, HashMap::new(), locals, cancel.clone());
        let opened = job.bring_files(root).await;
        let finished = job.finish().await;
        let opened = opened?;
        finished?;
        Ok(opened)
    }
}

impl Job {
    async fn bring_files(self: &Arc<Self>, root: VertexId) -> Result<Arc<OwnedFd>, Failure> {
        self.carry_out(vec![root]).await?;
        let Some(Value::FileSystem(file_system)) = self.value(root) else {
            return Err(Error::internal("a context has no result").into());
        };
        // Recorded when the graph of the Dockerfile asks for it.
        if let FileSystem::Layer(layer) = &file_system {
            layer.settled().await?;
        }
        self.pins.was_reported(self.graph.vertices().iter().map(kiln_graph::Vertex::digest));
        Ok(self.tree(&file_system, "the build context".to_owned()).await?.root)
    }
}

/// Returns the time of the newest file in an archive, in seconds since 1970. What is unpacked may be another archive's, in which the
/// same files have other times.
fn newest_of(archive: std::fs::File) -> Result<Option<i64>> {
    let mut newest = None;
    pass_by(archive, |passing| {
        if matches!(passing.what, What::File(_)) {
            newest = newest.max(Some(passing.mtime_s));
        }
        Ok(())
    })?;
    Ok(newest.filter(|seconds| *seconds > 0))
}

fn open_file(dir: &OwnedFd) -> Result<std::fs::File> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let file = tree::openat2(dir, FILE, flags, Mode::empty(), ResolveFlags::BENEATH);
    Ok(file.context(|| "open what was fetched")?.into())
}
