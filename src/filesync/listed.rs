//! A kept copy of a part of a tree, with a list of all of it: what BuildKit's `fsutil` calls a transfer of metadata only.
//!
//! The list is the file `.fsutil-metadata` in the copy: each entry as it is on the wire, after its length in four bytes, lowest byte
//! first. An entry of that name is not taken from the sender.

use std::io::{BufReader, BufWriter, Read as _, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use kiln_dockerfile::Ignore;
use prost::Message as _;

use super::entry::{Entry, is_below};
use super::kept::Kept;
use super::receive::Sink;
use crate::error::{Error, Result, ResultExt as _};

/// The name of the list.
const LIST: &str = ".fsutil-metadata";

/// A copy that is being brought up to date.
#[derive(Debug)]
pub struct Listed {
    kept: Kept,
    /// What is copied.
    exceptions: Ignore,
    /// The directories that the last entry is in and that are not in the copy yet, with their numbers.
    pending: Vec<(u32, Entry)>,
    list: BufWriter<std::fs::File>,
    /// Where the list is written, and where it goes.
    written: PathBuf,
    place: PathBuf,
}

impl Listed {
    /// Prepares a copy in `dir`, where `kept` is open. `exceptions` are patterns, as in `.dockerignore`, of what is copied with its
    /// data; directories on the way are, too. Blocking.
    ///
    /// # Errors
    /// `InvalidArgument` for a malformed pattern; when the directory cannot be written.
    pub fn open(dir: &Path, kept: Kept, exceptions: &[String]) -> Result<Self> {
        let exceptions = Ignore::from_patterns(exceptions.iter().map(String::as_str));
        let exceptions = exceptions.map_err(|error| Error::invalid(error.to_string()))?;
        let (written, place) = (dir.join("list"), Kept::tree(dir).join(LIST));
        let file = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o644).open(&written);
        let list = BufWriter::new(file.context(|| format!("write {}", written.display()))?);
        Ok(Self { kept, exceptions, pending: Vec::new(), list, written, place })
    }
}

impl Listed {
    /// Returns how many bytes of data were received.
    #[must_use]
    pub fn received_bytes(&self) -> u64 {
        self.kept.received_bytes()
    }
}

impl Sink for Listed {
    fn entry(&mut self, number: u32, entry: Entry) -> Result<bool> {
        if entry.path == LIST {
            return Ok(false);
        }
        let stat = entry.to_stat().encode_to_vec();
        let length = u32::try_from(stat.len()).map_err(|_| Error::invalid("an entry of the list is too long"))?;
        self.list.write_all(&length.to_le_bytes())?;
        self.list.write_all(&stat)?;
        while self.pending.pop_if(|(_, dir)| !is_below(&entry.path, &dir.path)).is_some() {}
        if !self.exceptions.excludes(&entry.path) {
            if entry.is_dir() {
                self.pending.push((number, entry));
            }
            return Ok(false);
        }
        for (number, dir) in std::mem::take(&mut self.pending) {
            self.kept.entry(number, dir)?;
        }
        self.kept.entry(number, entry)
    }

    fn data(&mut self, number: u32, data: &[u8]) -> Result<()> {
        self.kept.data(number, data)
    }

    fn complete(&mut self, number: u32) -> Result<()> {
        self.kept.complete(number)
    }

    fn finish(&mut self) -> Result<()> {
        self.kept.finish()?;
        self.list.flush()?;
        let context = || format!("write {}", self.place.display());
        if is_same(&self.written, &self.place) {
            return Ok(());
        }
        let file = self.list.get_ref();
        file.set_permissions(std::fs::Permissions::from_mode(0o644)).context(context)?;
        // The same list is the same file, whenever it was written.
        file.set_modified(SystemTime::UNIX_EPOCH).context(context)?;
        std::fs::rename(&self.written, &self.place).context(context)
    }
}

impl Drop for Listed {
    fn drop(&mut self) {
        // One that is in its place is there no longer.
        let _ = std::fs::remove_file(&self.written);
    }
}

/// Whether two files have the same content; one that cannot be read has none.
fn is_same(one: &Path, other: &Path) -> bool {
    let open = |path: &Path| Some((std::fs::symlink_metadata(path).ok()?, std::fs::File::open(path).ok()?));
    let (Some((one, first)), Some((other, second))) = (open(one), open(other)) else { return false };
    if !other.is_file() || one.len() != other.len() {
        return false;
    }
    let (first, second) = (BufReader::new(first), BufReader::new(second));
    first.bytes().zip(second.bytes()).all(|pair| matches!(pair, (Ok(one), Ok(other)) if one == other))
}
