//! Reading an archive without unpacking it: its entries go by, and whoever reads takes what it wants.

use std::io::{self, Read};

use super::entries::{Entries, EntryBody, Piece};
use crate::error::{Result, ResultExt as _};
use crate::store::compression::Decoder;

/// An entry of an archive that goes by.
pub struct Passing<'a> {
    /// Its path as it stands in the archive.
    pub path: Vec<u8>,
    /// When its content last changed, in seconds since 1970.
    pub mtime_s: i64,
    /// What it is.
    pub what: What<'a>,
}

/// What a passing entry is.
pub enum What<'a> {
    /// A file; what is not read of it is passed over.
    File(&'a mut dyn Read),
    /// A hard link to a path of the archive.
    HardLink(Vec<u8>),
    /// A symbolic link.
    Symlink(Vec<u8>),
    /// Anything else.
    Other,
}

/// Shows the entries of an archive, compressed or not, one after the other. Blocking.
///
/// # Errors
/// Those of `visit`; `InvalidArgument` for what is no archive; `Corrupt` when it is truncated or damaged; `Unsupported` for
/// entries of an unknown sort.
pub fn pass_by(archive: impl Read + Send, mut visit: impl FnMut(Passing<'_>) -> Result<()>) -> Result<()> {
    let mut entries = Entries::new(Decoder::new(archive).context(|| "read the archive")?);
    while let Some(entry) = entries.next()? {
        let mut file = Data { entries: &mut entries, hole: 0 };
        let what = match entry.body {
            EntryBody::File(_) => What::File(&mut file),
            EntryBody::HardLink(target) => What::HardLink(target),
            EntryBody::Symlink(target) => What::Symlink(target),
            EntryBody::Dir | EntryBody::Char(..) | EntryBody::Block(..) | EntryBody::Fifo => What::Other,
        };
        visit(Passing { path: entry.path, mtime_s: entry.attributes.mtime.seconds, what })?;
    }
    Ok(())
}

/// The data of the current entry, with zeros for holes.
struct Data<'a, R> {
    entries: &'a mut Entries<R>,
    hole: u64,
}

impl<R: Read> Read for Data<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        if self.hole == 0 {
            match self.entries.data(buffer)? {
                Piece::Bytes(read) => return Ok(read),
                Piece::End => return Ok(0),
                Piece::Hole(len) => self.hole = len,
            }
        }
        let len = buffer.len().min(usize::try_from(self.hole).unwrap_or(usize::MAX));
        buffer[..len].fill(0);
        self.hole -= len as u64;
        Ok(len)
    }
}
