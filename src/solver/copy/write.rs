//! Writing selections into a layer.
//!
//! Files go straight into the layer's directory, past any mount. Where an earlier layer of the same copy holds an unchanged
//! file, it is linked instead of copied.

use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kiln_graph::op::Copy;
use rayon::iter::{IntoParallelRefIterator as _, ParallelIterator as _};
use rustix::fs::{AtFlags, OFlags, ResolveFlags, Timespec, Timestamps, UTIME_OMIT};
use rustix::io::Errno;

use super::apply_mode;
use super::entry::{Entry, Match, Selection};
use super::listing::Listing;
use super::scan::{c_name, open_selected, same_file};
use super::select::{Tree, open_beneath};
use crate::error::{Error, Kind as ErrorKind, Result, ResultExt as _};
use crate::store::compression::Decoder;
use crate::store::layer::{ExtractOptions, extract};
use crate::store::tree::{self, Attributes, Inode, Kind, Metadata, Time, Xattrs};
use crate::store::{Access, Active, SnapshotId};
use crate::task::Cancel;

/// The user and the group that own what is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ownership {
    /// The user.
    pub uid: u32,
    /// The group.
    pub gid: u32,
}

/// The layer that is written, and what stands below it.
#[derive(Debug)]
pub struct Target<'a> {
    /// The layer.
    pub active: &'a Active,
    /// The root file system below it, mounted.
    pub below: OwnedFd,
    /// An earlier layer of the same step, with what it was made of.
    pub donor: Option<(SnapshotId, Listing)>,
}

/// Writes copies into a layer.
#[derive(Debug)]
pub struct Writer<'a> {
    target: Target<'a>,
    donor: Option<Arc<OwnedFd>>,
    now: Time,
    cancel: &'a Cancel,
}

/// How many files are gathered, so that several threads have something to do.
const BATCH: usize = 256;

/// A directory of the layer, and what stands there below it and in the donor.
#[derive(Clone, Debug)]
struct Place {
    layer: Arc<OwnedFd>,
    below: Option<Arc<OwnedFd>>,
    donor: Option<Arc<OwnedFd>>,
}

impl Place {
    fn filled_from(&self, source: Arc<OwnedFd>) -> Frame {
        Frame { source, place: self.clone() }
    }
}

/// A directory that is being filled, and where from.
#[derive(Clone, Debug)]
struct Frame {
    source: Arc<OwnedFd>,
    place: Place,
}

/// Single files that go into one directory.
struct Files<'e> {
    path: PathBuf,
    place: Place,
    times: Time,
    /// The directory the last file came from, by its path.
    source: Option<(Vec<u8>, Arc<OwnedFd>)>,
    fill: Fill<'e, 'e>,
}

/// A file to be written.
struct Job<'e> {
    frame: Frame,
    /// Its name in the source and in the layer.
    names: (CString, CString),
    entry: &'e Entry,
    /// The path it was found under, to recognise it in the donor.
    found: Vec<u8>,
}

impl Job<'_> {
    /// Its path below the topmost directory.
    fn path_in_layer(&self) -> Result<CString> {
        if self.entry.path.is_empty() { Ok(self.names.1.clone()) } else { c_name(&self.entry.path) }
    }
}

impl<'a> Writer<'a> {
    /// Prepares to write into a layer. `now` is the time given to directories that are made on the way.
    ///
    /// # Errors
    /// When the donor cannot be opened.
    pub fn new(target: Target<'a>, now: Time, cancel: &'a Cancel) -> Result<Self> {
        let donor = match &target.donor {
            // A donor that has gone meanwhile is none.
            Some((snapshot, _)) => match target.active.reuse(*snapshot) {
                Ok(dir) => Some(Arc::new(dir)),
                Err(error) if error.kind() == ErrorKind::NotFound => None,
                Err(error) => return Err(error),
            },
            None => None,
        };
        Ok(Self { target, donor, now, cancel })
    }

    /// Writes what a copy selected. Blocking; uses all cores.
    ///
    /// # Errors
    /// `InvalidArgument` when the destination is of the wrong kind; `Conflict` when a file changed since it was selected;
    /// `Exhausted` on a full disk; `Cancelled`.
    pub fn copy(&self, tree: &Tree, selection: &Selection, copy: &Copy, owner: Option<Ownership>) -> Result<()> {
        let plan = Plan { tree, copy, owner, mtime: copy.mtime_ns.map(time_of_ns) };
        if !copy.create_dest_path {
            self.check_parent(&copy.dest)?;
        }
        let mut files = None;
        let mut as_directory = copy.dest.ends_with('/');
        for found in &selection.matches {
            self.cancel.check()?;
            let context = || format!("copy /{} to {}", tree::display(&found.path), copy.dest);
            if plan.copy.unpack
                && found.top.metadata.kind == Kind::File
                && self.unpack(&plan, found).context(context)?
            {
                continue;
            }
            let standing = if as_directory { None } else { self.kind_in_layer(&copy.dest).context(context)? };
            as_directory |= standing == Some(Kind::Dir);
            let path = plan.path_of(found, as_directory);
            if found.top.metadata.kind == Kind::Dir {
                self.finish_files(files.take())?;
                if standing.is_some_and(|kind| kind != Kind::Dir) && !copy.replace_existing {
                    return Err(Error::invalid("it exists and is not a directory")).context(context);
                }
                self.copy_directory(&plan, found, &path).context(context)?;
            } else {
                let parent = path.parent().unwrap_or(Path::new("/"));
                let mut into = match files.take() {
                    Some(files @ Files { .. }) if files.path == parent => files,
                    other => {
                        self.finish_files(other)?;
                        self.files_into(&plan, parent).context(context)?
                    }
                };
                self.add_file(&plan, &mut into, found, &path).context(context)?;
                files = Some(into);
            }
        }
        self.finish_files(files)
    }

    /// Refuses a destination in a directory that does not exist.
    fn check_parent(&self, dest: &str) -> Result<()> {
        let parent = dest.trim_end_matches('/').rsplit_once('/').map_or("", |(parent, _)| parent);
        match self.kind_in_layer(parent)? {
            Some(_) => Ok(()),
            None => Err(Error::not_found(format!("copy to {dest}: {parent} does not exist"))),
        }
    }

    /// Prepares to write files into a directory.
    fn files_into<'e>(&'e self, plan: &'e Plan<'e>, path: &Path) -> Result<Files<'e>> {
        let place = self.place(plan, path)?;
        let times = Metadata::of(&place.layer)?.mtime;
        let fill = Fill::new(self, plan, Arc::clone(&place.layer));
        Ok(Files { path: path.to_owned(), place, times, source: None, fill })
    }

    fn add_file<'e>(&self, plan: &Plan<'_>, into: &mut Files<'e>, found: &'e Match, path: &Path) -> Result<()> {
        let at = found.path.iter().rposition(|byte| *byte == b'/');
        let (parent, name) =
            at.map_or((&[][..], found.path.as_slice()), |at| (&found.path[..at], &found.path[at + 1..]));
        let source = match into.source.take() {
            Some((known, source)) if known == parent => (known, source),
            _ => {
                (parent.to_vec(), Arc::new(open_beneath(&plan.tree.root, parent, OFlags::RDONLY | OFlags::DIRECTORY)?))
            }
        };
        let frame = into.place.filled_from(Arc::clone(&source.1));
        into.source = Some(source);
        let names = (c_name(name)?, c_name(path.file_name().unwrap_or_default().as_bytes())?);
        // Two files for one name must be written one after the other.
        if into.fill.jobs.len() >= BATCH || into.fill.jobs.iter().any(|job| job.names.1 == names.1) {
            into.fill.flush()?;
        }
        into.fill.jobs.push(Job { frame, names, entry: &found.top, found: found.path.clone() });
        Ok(())
    }

    #[expect(clippy::unused_self, reason = "the counterpart of `files_into`")]
    fn finish_files(&self, files: Option<Files<'_>>) -> Result<()> {
        let Some(mut files) = files else { return Ok(()) };
        files.fill.flush()?;
        restore_mtime(&files.place.layer, files.times)
    }

    fn copy_directory(&self, plan: &Plan<'_>, found: &Match, path: &Path) -> Result<()> {
        // A directory that is copied itself, and not its content, is as it was, unless one is there already.
        let itself = !plan.copy.contents_only && !found.path.is_empty();
        let is_new = itself && self.kind_in_layer(&path.to_string_lossy())?.is_none();
        let attributes = if is_new { Some(plan.attributes(&found.top)?) } else { None };
        let place = self.place(plan, path)?;
        let source = open_beneath(&plan.tree.root, &found.path, OFlags::RDONLY | OFlags::DIRECTORY)?;
        let times = Metadata::of(&place.layer)?.mtime;
        let mut fill = Fill::new(self, plan, Arc::clone(&place.layer));
        let top = place.filled_from(Arc::new(source));
        let mut open: Vec<Open<'_>> = vec![Open { path: &[], frame: top, attributes }];
        for entry in &found.below {
            self.cancel.check()?;
            let at = entry.path.iter().rposition(|byte| *byte == b'/');
            let (parent, name) =
                at.map_or((&[][..], entry.path.as_slice()), |at| (&entry.path[..at], &entry.path[at + 1..]));
            while open.last().is_some_and(|open| open.path != parent) {
                fill.left.extend(open.pop());
            }
            let frame = &open.last().ok_or_else(|| Error::internal("a selection is out of order"))?.frame;
            let name = c_name(name)?;
            if entry.metadata.kind == Kind::Dir {
                let inner = fill.enter(frame, &name, entry)?;
                open.push(inner);
            } else {
                let found = found.path_below(&entry.path);
                fill.jobs.push(Job { frame: frame.clone(), names: (name.clone(), name), entry, found });
            }
            if fill.jobs.len() + fill.left.len() >= BATCH {
                fill.flush()?;
            }
        }
        fill.left.extend(open.into_iter().rev());
        fill.flush()?;
        if is_new { Ok(()) } else { restore_mtime(&place.layer, times) }
    }

    /// Opens a directory of the layer, made if it is missing, with what stands there below and in the donor.
    fn place(&self, plan: &Plan<'_>, path: &Path) -> Result<Place> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let below = match open_beneath(&self.target.below, path.as_os_str().as_bytes(), flags) {
            Ok(dir) => Some(Arc::new(dir)),
            Err(Errno::NOENT | Errno::NOTDIR) => None,
            Err(errno) => return Err(errno.into()),
        };
        let layer = Arc::new(self.target.active.dir_at(path, &self.missing(plan)?)?);
        let donor = self.donor_dir(&layer)?;
        Ok(Place { layer, below, donor })
    }

    /// Finds the directory of the donor that corresponds to one of the layer.
    fn donor_dir(&self, layer: &OwnedFd) -> Result<Option<Arc<OwnedFd>>> {
        let Some(donor) = &self.donor else { return Ok(None) };
        let real = rustix::fs::readlink(format!("/proc/self/fd/{}", layer.as_raw_fd()), Vec::new())?;
        let real = PathBuf::from(std::ffi::OsStr::from_bytes(real.as_bytes()));
        let root = std::fs::canonicalize(self.target.active.dir())?;
        let Ok(path) = real.strip_prefix(&root) else { return Ok(None) };
        let path = Path::new(".").join(path);
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(tree::openat2(donor, &path, flags, rustix::fs::Mode::empty(), resolve).ok().map(Arc::new))
    }

    /// What directories that are made on the way get.
    fn missing(&self, plan: &Plan<'_>) -> Result<Attributes> {
        let mode = plan.copy.mode.as_ref().map_or(Ok(0o755), |mode| apply_mode(mode, 0o755, true))?;
        let (uid, gid) = plan.owner.map_or((0, 0), |owner| (owner.uid, owner.gid));
        Ok(Attributes { mode, uid, gid, mtime: plan.mtime.unwrap_or(self.now), xattrs: Xattrs::default() })
    }

    /// What stands at a path, with what this layer has so far.
    fn kind_in_layer(&self, path: &str) -> Result<Option<Kind>> {
        let root = self.target.active.rootfs()?.mount(Access::ReadOnly)?;
        kind_at(&root, path.as_bytes())
    }

    /// Writes a file, a link or a node, or links a file from the donor.
    fn write(&self, plan: &Plan<'_>, job: &Job<'_>) -> Result<()> {
        let Job { frame, names: (source_name, name), entry, .. } = job;
        let context = || tree::display(&job.found).to_string();
        if let Some(below) = &frame.place.below
            && !plan.copy.replace_existing
            && matches!(Metadata::at(below, name), Ok(Metadata { kind: Kind::Dir, .. }))
        {
            return Err(Error::invalid("a directory of that name stands in the way")).context(context);
        }
        let wanted = plan.attributes(entry).context(context)?;
        if self.link_from_donor(job, &wanted)? {
            return Ok(());
        }
        let layer = &frame.place.layer;
        match entry.metadata.kind {
            Kind::File => {
                let source = tree::open_file(&frame.source, source_name).context(context)?;
                let file = tree::replacing(layer, name, || tree::create_file(layer, name)).context(context)?;
                let room = Some(self.target.active.store());
                tree::copy_data(&source, &file, &entry.metadata, self.cancel, room).context(context)?;
                if !same_file(&source, &entry.metadata)? {
                    let why = "it changed while it was copied; build again once nothing writes to it";
                    return Err(Error::conflict(why)).context(context);
                }
                wanted.apply(&file).context(context)?;
                return Ok(());
            }
            Kind::Symlink => {
                let target = c_name(&entry.link)?;
                tree::replacing(layer, name, || rustix::fs::symlinkat(&target, layer, name)).context(context)?;
            }
            kind => {
                tree::replacing(layer, name, || tree::make_node(layer, name, kind, entry.metadata.rdev))
                    .context(context)?;
            }
        }
        wanted.apply_at(layer, name, entry.metadata.kind).context(context)?;
        Ok(())
    }

    /// Links a file that the donor has exactly so.
    fn link_from_donor(&self, job: &Job<'_>, wanted: &Attributes) -> Result<bool> {
        let (Some(donor), Some((_, listing))) = (&job.frame.place.donor, &self.target.donor) else { return Ok(false) };
        let (name, entry) = (&job.names.1, job.entry);
        if entry.metadata.kind != Kind::File || listing.get(&job.found) != Some(entry.hash) {
            return Ok(false);
        }
        let Ok(there) = Metadata::at(donor, name) else { return Ok(false) };
        let same = there.kind == Kind::File
            && (there.size, there.mtime) == (entry.metadata.size, wanted.mtime)
            && (there.mode, there.uid, there.gid) == (wanted.mode, wanted.uid, wanted.gid);
        if !same {
            return Ok(false);
        }
        let layer = &job.frame.place.layer;
        match tree::replacing(layer, name, || rustix::fs::linkat(donor, name, layer, name, AtFlags::empty())) {
            Ok(()) => Ok(true),
            // One file has no more than 65,000 names on ext4.
            Err(Errno::MLINK) => Ok(false),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Unpacks a file if it is an archive.
    fn unpack(&self, plan: &Plan<'_>, found: &Match) -> Result<bool> {
        let open = || open_selected(&plan.tree.root, &found.path).map(std::fs::File::from);
        if !is_archive(open()?) {
            return Ok(false);
        }
        let path = PathBuf::from(&plan.copy.dest);
        let dir = self.target.active.dir_at(&path, &self.missing(plan)?)?;
        let times = Metadata::of(&dir)?.mtime;
        let input = Decoder::new(open()?)?;
        let owner = plan.owner.map(|owner| (owner.uid, owner.gid));
        let options = ExtractOptions::new(self.cancel).within(self.target.active.store());
        extract(input, dir.try_clone()?, ExtractOptions { owner, ..options })?;
        restore_mtime(&dir, times)?;
        Ok(true)
    }
}

/// What is the same for everything a copy writes.
struct Plan<'a> {
    tree: &'a Tree,
    copy: &'a Copy,
    owner: Option<Ownership>,
    mtime: Option<Time>,
}

impl Plan<'_> {
    /// Where a match goes. `as_directory` says that the destination is, or is to be, a directory.
    fn path_of(&self, found: &Match, as_directory: bool) -> PathBuf {
        let mut path = PathBuf::from(&self.copy.dest);
        let contents = found.top.metadata.kind == Kind::Dir && self.copy.contents_only;
        if as_directory && !contents {
            path.push(std::ffi::OsStr::from_bytes(found.name.to_bytes()));
        }
        path
    }

    fn attributes(&self, entry: &Entry) -> Result<Attributes> {
        let mut attributes = Attributes::of(&entry.metadata, entry.xattrs.clone());
        if let Some(owner) = self.owner {
            (attributes.uid, attributes.gid) = (owner.uid, owner.gid);
        }
        if let Some(mode) = &self.copy.mode {
            attributes.mode = apply_mode(mode, attributes.mode, entry.metadata.kind == Kind::Dir)?;
        }
        attributes.mtime = self.mtime.unwrap_or(attributes.mtime);
        Ok(attributes)
    }
}

/// A directory that has been entered and not left.
struct Open<'e> {
    /// Its path below the match.
    path: &'e [u8],
    frame: Frame,
    /// What it gets once nothing is made in it any more; a topmost directory that is not new is left as it is.
    attributes: Option<Attributes>,
}

/// A directory tree that is being written.
struct Fill<'w, 'e> {
    writer: &'w Writer<'w>,
    plan: &'w Plan<'w>,
    /// The topmost directory.
    top: Arc<OwnedFd>,
    jobs: Vec<Job<'e>>,
    /// Directories that were left, inner ones first, whose files may still be among the jobs.
    left: Vec<Open<'e>>,
    /// Where the first name of a file with several was written, below the topmost directory.
    links: HashMap<Inode, CString>,
}

impl<'w, 'e> Fill<'w, 'e> {
    fn new(writer: &'w Writer<'w>, plan: &'w Plan<'w>, top: Arc<OwnedFd>) -> Self {
        Self { writer, plan, top, jobs: Vec::new(), left: Vec::new(), links: HashMap::new() }
    }

    /// Makes a directory and enters it.
    fn enter(&mut self, frame: &Frame, name: &CStr, entry: &'e Entry) -> Result<Open<'e>> {
        let context = || tree::display(&entry.path).to_string();
        let below = match frame.place.below.as_ref().map(|below| tree::open_dir(below, name)) {
            None | Some(Err(Errno::NOENT)) => None,
            Some(Ok(dir)) => Some(Arc::new(dir)),
            Some(Err(Errno::NOTDIR | Errno::LOOP)) if self.plan.copy.replace_existing => None,
            Some(Err(Errno::NOTDIR | Errno::LOOP)) => {
                return Err(Error::invalid("something that is no directory stands in the way")).context(context);
            }
            Some(Err(errno)) => return Err(errno).context(context),
        };
        let layer = Arc::new(tree::make_dir(&frame.place.layer, name).context(context)?);
        let source = Arc::new(tree::open_dir(&frame.source, name).context(context)?);
        let donor = frame.place.donor.as_ref().and_then(|donor| tree::open_dir(donor, name).ok()).map(Arc::new);
        let attributes = Some(self.plan.attributes(entry)?);
        Ok(Open { path: &entry.path, frame: Frame { source, place: Place { layer, below, donor } }, attributes })
    }

    /// Writes the gathered files, those with one name on all cores and the others in order, and finishes the directories
    /// that were left.
    fn flush(&mut self) -> Result<()> {
        let jobs = std::mem::take(&mut self.jobs);
        let several = |job: &Job<'_>| job.entry.metadata.links > 1 && job.entry.metadata.kind == Kind::File;
        let (linked, single): (Vec<_>, Vec<_>) = jobs.into_iter().partition(several);
        let results: Vec<Result<()>> = single.par_iter().map(|job| self.writer.write(self.plan, job)).collect();
        results.into_iter().collect::<Result<()>>()?;
        for job in linked {
            let (layer, name) = (&job.frame.place.layer, &job.names.1);
            if let Some(first) = self.links.get(&job.entry.metadata.inode) {
                let link = || rustix::fs::linkat(&self.top, first, layer, name, AtFlags::empty());
                tree::replacing(layer, name, link).context(|| tree::display(&job.found).to_string())?;
                continue;
            }
            self.writer.write(self.plan, &job)?;
            self.links.insert(job.entry.metadata.inode, job.path_in_layer()?);
        }
        for Open { frame, attributes, .. } in self.left.drain(..) {
            if let Some(attributes) = attributes {
                attributes.apply(&frame.place.layer).context(|| "set the metadata of a directory")?;
            }
        }
        Ok(())
    }
}

/// Sets the time of a directory back to what it was before something was made in it, so that equal copies give equal layers.
fn restore_mtime(dir: &OwnedFd, mtime: Time) -> Result<()> {
    let omit = Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT };
    let time = Timespec { tv_sec: mtime.seconds, tv_nsec: mtime.nanos.into() };
    rustix::fs::futimens(dir, &Timestamps { last_access: omit, last_modification: time })?;
    Ok(())
}

fn time_of_ns(ns: i64) -> Time {
    let nanos = u32::try_from(ns.rem_euclid(1_000_000_000)).expect("the remainder is below 10^9");
    Time { seconds: ns.div_euclid(1_000_000_000), nanos }
}

fn kind_at(root: &OwnedFd, path: &[u8]) -> Result<Option<Kind>> {
    match open_beneath(root, path, OFlags::PATH) {
        Ok(found) => Ok(Some(Metadata::of(&found)?.kind)),
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

/// Says whether a file is a tar archive, compressed or not: whether its first block is a header. Blocking.
#[must_use]
pub fn is_archive(file: std::fs::File) -> bool {
    use std::io::Read as _;
    let mut block = [0; 512];
    let Ok(mut input) = Decoder::new(file) else { return false };
    if input.read_exact(&mut block).is_err() {
        return false;
    }
    let stored = std::str::from_utf8(&block[148..156]).ok().map(|text| text.trim_matches(['\0', ' ']));
    let stored = stored.and_then(|digits| u32::from_str_radix(digits, 8).ok());
    let counted = |at: usize, byte: u8| if (148..156).contains(&at) { 32 } else { u32::from(byte) };
    let sum: u32 = block.iter().enumerate().map(|(at, byte)| counted(at, *byte)).sum();
    stored == Some(sum)
}
