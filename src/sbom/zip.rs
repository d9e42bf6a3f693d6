//! Reading zip archives: only the entries by name, stored or deflated, as Java archives have them.

use std::io::{Read, Seek, SeekFrom};

use crate::error::{Error, Result, ResultExt as _};

/// The end record is looked for in so many bytes at the end: itself and the longest comment.
const MAX_END: u64 = 22 + 65535;
/// Limits of the directory.
const MAX_ENTRIES: usize = 65535;
const MAX_DIRECTORY: u64 = 64 << 20;

/// An archive.
#[derive(Debug)]
pub(super) struct Archive<F> {
    file: F,
    entries: Vec<Entry>,
}

/// A file of an archive.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    /// Its path.
    pub(super) name: String,
    method: u16,
    compressed: u64,
    size: u64,
    at: u64,
}

fn damaged(what: &str) -> Error {
    Error::invalid(format!("the archive is damaged: {what}"))
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

impl<F: Read + Seek> Archive<F> {
    /// Reads the directory of an archive.
    ///
    /// # Errors
    /// `InvalidArgument` when there is none.
    pub(super) fn open(mut file: F) -> Result<Self> {
        let size = file.seek(SeekFrom::End(0)).context(|| "find the end")?;
        let tail = read_at(&mut file, size.saturating_sub(MAX_END), MAX_END.min(size))?;
        let end = tail.windows(4).rposition(|window| window == b"PK\x05\x06").filter(|at| at + 22 <= tail.len());
        let end = &tail[end.ok_or_else(|| damaged("it has no directory"))?..];
        let (len, at) = (u64::from(u32_at(end, 12)), u64::from(u32_at(end, 16)));
        if len > MAX_DIRECTORY {
            return Err(damaged("its directory is too large"));
        }
        let directory = read_at(&mut file, at, len)?;
        let mut entries = Vec::new();
        let mut rest = directory.as_slice();
        while rest.len() >= 46 && rest.starts_with(b"PK\x01\x02") && entries.len() < MAX_ENTRIES {
            let (name, extra, comment) = (u16_at(rest, 28), u16_at(rest, 30), u16_at(rest, 32));
            let end = 46 + usize::from(name);
            let bytes = rest.get(46..end).ok_or_else(|| damaged("an entry"))?;
            entries.push(Entry {
                name: String::from_utf8_lossy(bytes).into_owned(),
                method: u16_at(rest, 10),
                compressed: u64::from(u32_at(rest, 20)),
                size: u64::from(u32_at(rest, 24)),
                at: u64::from(u32_at(rest, 42)),
            });
            rest = rest.get(end + usize::from(extra) + usize::from(comment)..).unwrap_or_default();
        }
        Ok(Self { file, entries })
    }

    /// Returns the entries in the directory's order.
    pub(super) fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Reads an entry.
    ///
    /// # Errors
    /// `InvalidArgument` when it is damaged, larger than `limit` bytes or compressed in another way.
    pub(super) fn read(&mut self, index: usize, limit: u64) -> Result<Vec<u8>> {
        let Entry { name, method, compressed, size, at } = self.entries[index].clone();
        if size > limit || compressed > limit {
            return Err(Error::invalid(format!("{name} is larger than {limit} bytes")));
        }
        let header = read_at(&mut self.file, at, 30)?;
        if !header.starts_with(b"PK\x03\x04") {
            return Err(damaged("an entry has no header"));
        }
        let at = at + 30 + u64::from(u16_at(&header, 26)) + u64::from(u16_at(&header, 28));
        let stored = read_at(&mut self.file, at, compressed)?;
        match method {
            0 => Ok(stored),
            8 => {
                let mut data = Vec::new();
                let read = flate2::read::DeflateDecoder::new(stored.as_slice()).take(limit + 1).read_to_end(&mut data);
                if read.is_err() || data.len() as u64 > limit {
                    return Err(damaged("an entry cannot be unpacked"));
                }
                Ok(data)
            }
            other => Err(Error::unsupported(format!("{name} is compressed with method {other}"))),
        }
    }
}

/// Reads exactly `len` bytes, which the caller has bounded.
fn read_at(file: &mut (impl Read + Seek), at: u64, len: u64) -> Result<Vec<u8>> {
    file.seek(SeekFrom::Start(at)).context(|| "find a part of the archive")?;
    let mut bytes = Vec::new();
    file.by_ref().take(len).read_to_end(&mut bytes).context(|| "read the archive")?;
    if bytes.len() as u64 == len { Ok(bytes) } else { Err(damaged("it ends early")) }
}

#[cfg(test)]
pub(super) mod tests {
    use std::io::{Cursor, Write as _};

    use super::*;

    /// Makes an archive; every second entry is deflated.
    pub(in crate::sbom) fn zip(files: &[(&str, &[u8])]) -> Vec<u8> {
        let (mut body, mut directory) = (Vec::new(), Vec::new());
        for (index, (name, data)) in files.iter().enumerate() {
            let deflated = index % 2 == 1;
            let stored = if deflated {
                let mut encoder = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::fast());
                encoder.write_all(data).unwrap();
                encoder.finish().unwrap()
            } else {
                data.to_vec()
            };
            let mut fields = vec![20, 0, 0, 0, if deflated { 8 } else { 0 }, 0, 0, 0, 0, 0, 0, 0, 0, 0];
            for number in [stored.len(), data.len()] {
                fields.extend(u32::try_from(number).unwrap().to_le_bytes());
            }
            fields.extend(u16::try_from(name.len()).unwrap().to_le_bytes());
            fields.extend([0, 0]);
            let at = u32::try_from(body.len()).unwrap();
            body.extend(b"PK\x03\x04");
            body.extend(&fields);
            body.extend(name.as_bytes());
            body.extend(&stored);
            directory.extend(b"PK\x01\x02\x14\x00");
            directory.extend(&fields);
            directory.extend([0; 10]);
            directory.extend(at.to_le_bytes());
            directory.extend(name.as_bytes());
        }
        let (len, at) = (u32::try_from(directory.len()).unwrap(), u32::try_from(body.len()).unwrap());
        body.extend(directory);
        body.extend(b"PK\x05\x06\0\0\0\0");
        let count = u16::try_from(files.len()).unwrap().to_le_bytes();
        body.extend(count);
        body.extend(count);
        body.extend(len.to_le_bytes());
        body.extend(at.to_le_bytes());
        body.extend([0, 0]);
        body
    }

    #[test]
    fn entries_are_read_and_limits_kept() {
        let large = vec![7; 5000];
        let bytes = zip(&[("a", b"one"), ("b/c", &large)]);
        let mut archive = Archive::open(Cursor::new(bytes.clone())).unwrap();
        assert_eq!(archive.entries()[1].name, "b/c");
        assert_eq!(archive.read(0, 10).unwrap(), b"one");
        assert_eq!(archive.read(1, 5000).unwrap(), large);
        assert!(archive.read(1, 4999).is_err());
        for len in 0..bytes.len() {
            let cut = Archive::open(Cursor::new(bytes[..len].to_vec()));
            let whole = cut.and_then(|mut cut| {
                (0..cut.entries().len()).map(|index| cut.read(index, 9999)).collect::<Result<Vec<_>>>()
            });
            assert!(whole.is_err(), "{len}");
        }
    }
}
