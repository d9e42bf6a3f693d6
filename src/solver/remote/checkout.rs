//! Checkouts: the files of a commit as a layer, with modes, owners and times that depend on nothing but the commit.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Component, Path};

use kiln_graph::op::GitSource;
use rustix::fs::{AtFlags, CWD, Timespec, Timestamps};

use super::bundle;
use super::git::{Commit, PROTOCOLS, Repository, keeps_git_dir};
use super::mirror::{kept, named};
use crate::error::{Error, Result, ResultExt as _};
use crate::solver::job::Job;
use crate::store::SnapshotId;
use crate::task::Cancel;

/// What is of no use without the machine that made it, or tells of it.
const LEFT_OVERS: &[&str] = &["FETCH_HEAD", "ORIG_HEAD", "logs"];

impl Job {
    /// Makes a layer of a commit that the mirror has. Blocking.
    ///
    /// # Errors
    /// `NotFound` when the commit has no such directory; what git says otherwise.
    pub(super) fn check_out(
        &self,
        repository: &Repository,
        mirror: &Path,
        git: &GitSource,
        commit: &Commit,
        cancel: &Cancel,
    ) -> Result<SnapshotId> {
        let store = &self.solver.deps().store;
        let checkout = Checkout { repository, mirror, commit, cancel };
        let subdir = subdir(git)?;
        let submodules = !git.skip_submodules && !git.as_bundle && checkout.has(".gitmodules")?;
        let active = store.prepare(&self.lease, None)?;
        if git.as_bundle {
            let scratch = store.prepare(&self.lease, None)?;
            checkout.bundle(scratch.dir(), active.dir(), &bundle::reference(git))?;
        } else if keeps_git_dir(git) || submodules {
            let scratch = if subdir.is_empty() { None } else { Some(store.prepare(&self.lease, None)?) };
            let work = scratch.as_ref().map_or(active.dir(), |scratch| scratch.dir());
            checkout.whole(work, submodules)?;
            if keeps_git_dir(git) {
                checkout.tidy(work)?;
            } else {
                remove_git_dirs(work)?;
            }
            if scratch.is_some() {
                checkout.check_directory(&subdir)?;
                move_into(&work.join(&subdir), active.dir())?;
            }
        } else {
            checkout.check_directory(&subdir)?;
            checkout.files(&subdir, active.dir())?;
        }
        // The time of the checkout would make another image of the same commit each time.
        let time = checkout.time()?;
        normalize(active.dir(), Some(time), cancel).context(|| "prepare the files of a checkout")?;
        active.commit()
    }
}

/// The directory within a repository, without slashes at the ends.
fn subdir(git: &GitSource) -> Result<String> {
    let mut names = Vec::new();
    for component in Path::new(&git.subdir).components() {
        match component {
            Component::Normal(name) => names.push(name.to_string_lossy().into_owned()),
            Component::CurDir | Component::RootDir => {}
            Component::ParentDir | Component::Prefix(_) => {
                return Err(Error::invalid(format!("the directory {} leaves the repository", git.subdir)));
            }
        }
    }
    Ok(names.join("/"))
}

struct Checkout<'a> {
    repository: &'a Repository,
    mirror: &'a Path,
    commit: &'a Commit,
    cancel: &'a Cancel,
}

impl Checkout<'_> {
    fn run(&self, dir: &Path, protocols: &str, args: &[&str]) -> Result<String> {
        self.repository.run(&self.repository.git(dir, protocols, args.iter().copied()), self.cancel)
    }

    /// Whether the mirror has a reference.
    fn names(&self, reference: &str) -> bool {
        let program = self.repository.git(self.mirror, "", ["show-ref", "--verify", "--quiet", reference]);
        self.repository.try_run(&program, self.cancel).is_ok_and(|said| said.status.success())
    }

    /// Whether the commit has a path.
    fn has(&self, path: &str) -> Result<bool> {
        let object = format!("{}:{path}", self.commit.id);
        let program = self.repository.git(self.mirror, "", ["cat-file", "-e", &object]);
        Ok(self.repository.try_run(&program, self.cancel)?.status.success())
    }

    fn check_directory(&self, subdir: &str) -> Result<()> {
        if subdir.is_empty() {
            return Ok(());
        }
        let object = format!("{}:{subdir}", self.commit.id);
        let said =
            self.repository.try_run(&self.repository.git(self.mirror, "", ["cat-file", "-t", &object]), self.cancel)?;
        if said.stdout.trim_ascii() == b"tree" {
            return Ok(());
        }
        let (address, id) = (self.repository.name(), &self.commit.id[..12]);
        Err(Error::not_found(format!("the repository {address} has no directory {subdir:?} at {id}")))
    }

    /// The commit's time in seconds since 1970.
    fn time(&self) -> Result<i64> {
        let text = self.run(self.mirror, "", &["show", "--no-patch", "--format=%ct", &self.commit.id])?;
        text.trim().parse().map_err(|_| Error::internal(format!("git says that a commit was made at {text:?}")))
    }

    /// Writes the files of a directory of the commit, without `.git`.
    fn files(&self, subdir: &str, into: &Path) -> Result<()> {
        let tree = format!("{}:{subdir}", self.commit.id);
        let index = self.mirror.join("kiln-index");
        let with_index = |args: &[&str], dir: &Path| {
            let mut program = self.repository.git(dir, "", args.iter().copied());
            program.env.push(("GIT_DIR".to_owned(), self.mirror.into()));
            program.env.push(("GIT_WORK_TREE".to_owned(), into.into()));
            program.env.push(("GIT_INDEX_FILE".to_owned(), index.clone().into()));
            self.repository.run(&program, self.cancel)
        };
        let _ = std::fs::remove_file(&index);
        with_index(&["read-tree", &tree], into)?;
        with_index(&["checkout-index", "--quiet", "--all", "--force"], into)?;
        let _ = std::fs::remove_file(&index);
        Ok(())
    }

    /// Makes a repository of its own with the files of the commit.
    fn whole(&self, work: &Path, submodules: bool) -> Result<()> {
        let mirror = format!("file://{}", self.mirror.display());
        let kept = kept(self.commit);
        self.run(work, "", &["init", "--quiet", "--template=", "."])?;
        // Relative addresses of submodules start at the remote.
        self.run(work, "", &["remote", "add", "origin", &self.repository.address])?;
        let name = self.commit.reference.as_deref().filter(|name| name.starts_with("refs/"));
        let found_as = name.map(|name| named(self.commit, name)).filter(|found| self.names(found));
        let wanted = format!("+{}:{}", found_as.as_ref().unwrap_or(&kept), name.unwrap_or(&kept));
        self.run(work, "file", &["fetch", "--quiet", "--no-tags", "--update-head-ok", "--depth=1", &mirror, &wanted])?;
        self.run(work, "", &["checkout", "--quiet", "--force", "--detach", &self.commit.id])?;
        if name.is_none() {
            self.run(work, "", &["update-ref", "-d", &kept])?;
        }
        if submodules {
            let update = ["submodule", "--quiet", "update", "--init", "--recursive"];
            let shallow = [&update[..], &["--depth=1"]].concat();
            // Servers need not hand out commits by their ids.
            self.run(work, PROTOCOLS, &shallow).or_else(|_| self.run(work, PROTOCOLS, &update))?;
        }
        Ok(())
    }

    /// Writes a bundle with the commit, under a name, and all that led to it.
    fn bundle(&self, work: &Path, into: &Path, name: &str) -> Result<()> {
        let mirror = format!("file://{}", self.mirror.display());
        let wanted = format!("+{}:{name}", kept(self.commit));
        self.run(work, "", &["init", "--quiet", "--bare", "--template=", "."])?;
        self.run(work, "file", &["fetch", "--quiet", "--no-tags", "--no-write-fetch-head", "--", &mirror, &wanted])?;
        let file = into.join(bundle::FILE).display().to_string();
        // Threads share the work in another way each time.
        self.run(work, "", &["-c", "pack.threads=1", "bundle", "create", "--quiet", &file, name]).map(drop)
    }

    /// Takes from `.git` what differs from one checkout of the commit to the next.
    fn tidy(&self, work: &Path) -> Result<()> {
        for name in LEFT_OVERS {
            remove(&work.join(".git").join(name))?;
        }
        // An index without the numbers and times of the files here.
        remove(&work.join(".git/index"))?;
        self.run(work, "", &["read-tree", "HEAD"]).map(drop)
    }
}

fn remove(path: &Path) -> Result<()> {
    let removed = match path.symlink_metadata() {
        Ok(metadata) if metadata.is_dir() => std::fs::remove_dir_all(path),
        Ok(_) => std::fs::remove_file(path),
        Err(_) => return Ok(()),
    };
    removed.context(|| format!("remove {}", path.display()))
}

/// Removes the repository, and the files by which submodules point into it.
fn remove_git_dirs(dir: &Path) -> Result<()> {
    remove(&dir.join(".git"))?;
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_git_dirs(&entry.path())?;
        }
    }
    Ok(())
}

fn move_into(from: &Path, into: &Path) -> Result<()> {
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        std::fs::rename(entry.path(), into.join(entry.file_name()))?;
    }
    Ok(())
}

/// Gives everything in a directory the modes that git knows, and one time. Nobody else writes there.
fn normalize(dir: &Path, time: Option<i64>, cancel: &Cancel) -> Result<()> {
    cancel.check()?;
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let (path, kind) = (entry.path(), entry.file_type()?);
        if kind.is_dir() {
            normalize(&path, time, cancel)?;
            continue;
        }
        if kind.is_file() {
            let executable = entry.metadata()?.permissions().mode() & 0o100 != 0;
            set_mode(&path, if executable { 0o755 } else { 0o644 })?;
        }
        set_time(&path, time)?;
    }
    set_mode(dir, 0o755)?;
    set_time(dir, time)
}

fn set_mode(path: &Path, mode: u32) -> Result<()> {
    Ok(std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?)
}

fn set_time(path: &Path, time: Option<i64>) -> Result<()> {
    let Some(seconds) = time else { return Ok(()) };
    let time = Timespec { tv_sec: seconds, tv_nsec: 0 };
    let times = Timestamps { last_access: time, last_modification: time };
    Ok(rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW)?)
}
