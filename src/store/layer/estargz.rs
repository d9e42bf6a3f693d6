//! Layers in eStargz form: gzip members for each file, and a table of contents by which a file is found without reading the rest.
//!
//! The archive within is the one that was given, byte for byte, followed by the table. Whoever unpacks it stops before that, so it
//! makes the same files; but the table counts for the diff ID. Compressed bytes depend on the level and the compressor alone.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::rc::Rc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use kiln_graph::Digest;
use serde::Serialize;
use sha2::{Digest as _, Sha256};

use super::entries::{Entries, Entry, EntryBody, Piece};
use super::header::{BLOCK, Flag, Header};
use crate::error::{Error, Result};
use crate::store::compression::{Compression, Decoder, Encoder};
use crate::store::tree::{Xattrs, display};
use crate::task::Cancel;

/// The file that is the table of contents.
const TABLE: &str = "stargz.index.json";
/// The size of the pieces that files are cut into, in bytes.
const CHUNK: u64 = 4 << 20;
/// From how many bytes on a member that holds no file ends.
const MEMBER: usize = 4 << 20;
/// The length of what stands at the end and says where the table is, in bytes: a gzip member without content.
const FOOTER: usize = 51;
/// The largest table that is read, in bytes.
const MAX_TABLE: u64 = 256 << 20;

/// Writes an archive, which is not compressed, in eStargz form; returns its diff ID. Blocking.
///
/// # Errors
/// Those of both sides; `InvalidArgument` for what is no archive, or one that has such a table already; `Unsupported` for sparse
/// files; `Cancelled`.
pub(in crate::store) fn write_estargz(tar: impl Read, out: impl Write, level: u32, cancel: &Cancel) -> Result<Digest> {
    let taken = Rc::default();
    let mut tap = Tap { input: tar, taken: Rc::clone(&taken) };
    let mut members = Members { out, taken, level, hasher: Sha256::new(), written: 0 };
    let mut table = Table { version: 1, entries: Vec::new() };
    let mut entries = Entries::new(&mut tap);
    while let Some(entry) = entries.next()? {
        cancel.check()?;
        if entry.path.strip_prefix(b"./").unwrap_or(&entry.path) == TABLE.as_bytes() {
            return Err(Error::invalid(format!("a layer with a file {TABLE} cannot have eStargz form")));
        }
        let described = TableEntry::of(&entry);
        match entry.body {
            EntryBody::File(size @ 1..) => chunks(&mut entries, &mut members, size, described, &mut table.entries)?,
            _ => {
                table.entries.push(described);
                if members.pending() >= MEMBER {
                    members.cut()?;
                }
            }
        }
    }
    drop(entries);
    // What follows the last entry belongs to the archive, too.
    io::copy(&mut tap, &mut io::sink())?;
    members.cut()?;
    let at = members.written;
    members.taken.borrow_mut().extend(table.archive()?);
    members.cut()?;
    members.out.write_all(&footer(at))?;
    Ok(Digest::sha256(members.hasher.finalize().into()))
}

/// Returns the digest of the table of a blob in eStargz form; `None` for another blob. Blocking.
///
/// # Errors
/// Those of the input; `Corrupt` when the table is not where it should be.
pub(in crate::store) fn table_digest(mut blob: impl Read + Seek + Send) -> Result<Option<Digest>> {
    let size = blob.seek(SeekFrom::End(0))?;
    let Some(end) = size.checked_sub(FOOTER as u64) else { return Ok(None) };
    let mut found = [0; FOOTER];
    blob.seek(SeekFrom::Start(end))?;
    blob.read_exact(&mut found)?;
    let at = std::str::from_utf8(&found[16..32]).ok().and_then(|text| u64::from_str_radix(text, 16).ok());
    let Some(at) = at.filter(|at| footer(*at) == found && *at < end) else { return Ok(None) };
    blob.seek(SeekFrom::Start(at))?;
    let mut entries = Entries::new(Decoder::new(blob.take(end - at))?);
    match entries.next()? {
        Some(entry) if entry.path == TABLE.as_bytes() => {}
        _ => return Err(Error::corrupt("there is no table of contents where the end of the layer says it is")),
    }
    let (mut hasher, mut buffer, mut read) = (Sha256::new(), vec![0; 64 << 10], 0);
    while let Piece::Bytes(len) = entries.data(&mut buffer)? {
        read += len as u64;
        if read > MAX_TABLE {
            return Err(Error::exhausted(format!("the table of contents has more than {} MiB", MAX_TABLE >> 20)));
        }
        hasher.update(&buffer[..len]);
    }
    Ok(Some(Digest::sha256(hasher.finalize().into())))
}

/// Passes on what is read, and keeps it to be written.
struct Tap<R> {
    input: R,
    taken: Rc<RefCell<Vec<u8>>>,
}

impl<R: Read> Read for Tap<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.input.read(buffer)?;
        self.taken.borrow_mut().extend_from_slice(&buffer[..read]);
        Ok(read)
    }
}

/// Writes gzip members.
struct Members<W> {
    out: W,
    /// What the next one holds.
    taken: Rc<RefCell<Vec<u8>>>,
    level: u32,
    /// Of all that is compressed.
    hasher: Sha256,
    /// The length of the members so far, in bytes.
    written: u64,
}

impl<W: Write> Members<W> {
    fn pending(&self) -> usize {
        self.taken.borrow().len()
    }

    /// Ends the current member.
    fn cut(&mut self) -> Result<()> {
        let content = std::mem::take(&mut *self.taken.borrow_mut());
        if content.is_empty() {
            return Ok(());
        }
        self.hasher.update(&content);
        let mut encoder = Encoder::new(Vec::with_capacity(content.len() / 2), Compression::Gzip { level: self.level })?;
        encoder.write_all(&content)?;
        let member = encoder.finish()?;
        self.out.write_all(&member)?;
        self.written += member.len() as u64;
        Ok(())
    }
}

/// Lets a file pass by in pieces, each of which begins a member.
fn chunks<R: Read, W: Write>(
    entries: &mut Entries<R>,
    members: &mut Members<W>,
    size: u64,
    described: TableEntry,
    table: &mut Vec<TableEntry>,
) -> Result<()> {
    let (first, name) = (table.len(), described.name.clone());
    let (mut whole, mut at, mut buffer) = (Sha256::new(), 0, vec![0; 64 << 10]);
    let mut next = described;
    while at < size {
        members.cut()?;
        let len = CHUNK.min(size - at);
        let (mut chunk, mut left) = (Sha256::new(), len);
        (next.offset, next.chunk_offset) = (members.written, at);
        next.chunk_size = if len == CHUNK { CHUNK } else { 0 };
        while left > 0 {
            let most = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            let Piece::Bytes(read) = entries.data(&mut buffer[..most])? else {
                return Err(Error::unsupported(format!("{name}: a layer with sparse files cannot have eStargz form")));
            };
            chunk.update(&buffer[..read]);
            whole.update(&buffer[..read]);
            left -= read as u64;
        }
        next.chunk_digest = Digest::sha256(chunk.finalize().into()).to_string();
        let more = TableEntry { name: name.clone(), kind: "chunk", ..TableEntry::default() };
        table.push(std::mem::replace(&mut next, more));
        at += len;
    }
    table[first].digest = Digest::sha256(whole.finalize().into()).to_string();
    Ok(())
}

/// The table of contents, with the names that the format gives.
#[derive(Serialize)]
struct Table {
    version: u32,
    entries: Vec<TableEntry>,
}

#[derive(Debug, Default, Serialize)]
struct TableEntry {
    name: String,
    #[serde(rename = "type")]
    kind: &'static str,
    #[serde(skip_serializing_if = "is_zero")]
    size: u64,
    #[serde(skip_serializing_if = "String::is_empty")]
    modtime: String,
    #[serde(rename = "linkName", skip_serializing_if = "String::is_empty")]
    link_name: String,
    #[serde(skip_serializing_if = "is_zero")]
    mode: u64,
    #[serde(skip_serializing_if = "is_zero")]
    uid: u64,
    #[serde(skip_serializing_if = "is_zero")]
    gid: u64,
    #[serde(skip_serializing_if = "is_zero")]
    offset: u64,
    #[serde(rename = "devMajor", skip_serializing_if = "is_zero")]
    dev_major: u64,
    #[serde(rename = "devMinor", skip_serializing_if = "is_zero")]
    dev_minor: u64,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    xattrs: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    digest: String,
    #[serde(rename = "chunkOffset", skip_serializing_if = "is_zero")]
    chunk_offset: u64,
    #[serde(rename = "chunkSize", skip_serializing_if = "is_zero")]
    chunk_size: u64,
    #[serde(rename = "chunkDigest", skip_serializing_if = "String::is_empty")]
    chunk_digest: String,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks so")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl TableEntry {
    fn of(entry: &Entry) -> Self {
        let attributes = &entry.attributes;
        let mut described = Self {
            name: display(&entry.path).to_string(),
            modtime: rfc3339(attributes.mtime.seconds),
            mode: attributes.mode.into(),
            uid: attributes.uid.into(),
            gid: attributes.gid.into(),
            ..Self::default()
        };
        for (name, value) in attributes.xattrs.iter() {
            described.xattrs.insert(String::from_utf8_lossy(name.to_bytes()).into_owned(), STANDARD.encode(value));
        }
        let link = |target: &[u8]| display(target).to_string();
        described.kind = match &entry.body {
            EntryBody::File(size) => {
                described.size = *size;
                "reg"
            }
            EntryBody::HardLink(target) => {
                described.link_name = link(target);
                "hardlink"
            }
            EntryBody::Symlink(target) => {
                described.link_name = link(target);
                "symlink"
            }
            EntryBody::Dir => "dir",
            EntryBody::Char(major, minor) | EntryBody::Block(major, minor) => {
                (described.dev_major, described.dev_minor) = ((*major).into(), (*minor).into());
                if matches!(entry.body, EntryBody::Char(..)) { "char" } else { "block" }
            }
            EntryBody::Fifo => "fifo",
        };
        described
    }
}

impl Table {
    /// Writes the table as an archive of its own.
    fn archive(&self) -> Result<Vec<u8>> {
        let mut json = Vec::new();
        let tabs = serde_json::ser::PrettyFormatter::with_indent(b"\t");
        self.serialize(&mut serde_json::Serializer::with_formatter(&mut json, tabs))?;
        let xattrs = Xattrs::default();
        let (path, link, size) = (TABLE.as_bytes(), &b""[..], json.len() as u64);
        let header = Header {
            flag: Flag::File,
            path,
            link,
            mode: 0,
            uid: 0,
            gid: 0,
            size,
            mtime: 0,
            rdev: (0, 0),
            xattrs: &xattrs,
        };
        let mut archive = Vec::with_capacity(json.len() + 4 * BLOCK);
        header.write(&mut archive)?;
        archive.extend(json);
        archive.resize(archive.len().next_multiple_of(BLOCK) + 2 * BLOCK, 0);
        Ok(archive)
    }
}

/// A gzip member without content, whose extra field says where the table begins.
fn footer(table_at: u64) -> [u8; FOOTER] {
    let mut footer = [0; FOOTER];
    // Method deflate, an extra field, no time, unknown system; its 26 bytes are one subfield `SG` of 22.
    footer[..16].copy_from_slice(&[0x1f, 0x8b, 8, 4, 0, 0, 0, 0, 0, 0xff, 26, 0, b'S', b'G', 22, 0]);
    footer[16..38].copy_from_slice(format!("{table_at:016x}STARGZ").as_bytes());
    // An empty stored block, which is the last; checksum and length are zero.
    footer[38..43].copy_from_slice(&[1, 0, 0, 0xff, 0xff]);
    footer
}

fn rfc3339(seconds: i64) -> String {
    jiff::Timestamp::from_second(seconds).map_or_else(|_| String::new(), |time| time.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An archive with a directory, a small, an empty and a large file, and a link.
    fn archive() -> Vec<u8> {
        let mut archive = tar::Builder::new(Vec::new());
        let mut add = |kind: tar::EntryType, path: &str, data: &[u8]| {
            let mut header = tar::Header::new_ustar();
            header.set_entry_type(kind);
            header.set_mode(0o4755);
            header.set_mtime(1_700_000_000);
            header.set_size(data.len() as u64);
            archive.append_data(&mut header, path, data).unwrap();
        };
        add(tar::EntryType::Directory, "d/", b"");
        add(tar::EntryType::Regular, "d/small", b"hello");
        add(tar::EntryType::Regular, "d/empty", b"");
        let large: Vec<u8> = (0..9_000_000_u32).map(|at| (at % 251) as u8).collect();
        add(tar::EntryType::Regular, "large", &large);
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_size(0);
        archive.append_link(&mut header, "link", "large").unwrap();
        archive.into_inner().unwrap()
    }

    fn write(tar: &[u8]) -> (Vec<u8>, Digest) {
        let mut blob = Vec::new();
        let diff_id = write_estargz(tar, &mut blob, 9, &Cancel::new()).unwrap();
        (blob, diff_id)
    }

    #[test]
    fn the_archive_is_kept_and_its_files_are_found_by_the_table() {
        let tar = archive();
        let (blob, diff_id) = write(&tar);
        let mut all = Vec::new();
        Decoder::new(&*blob).unwrap().read_to_end(&mut all).unwrap();
        assert_eq!(Digest::of(&all), diff_id);
        assert!(all.starts_with(&tar));
        let mut behind = tar::Archive::new(&all[tar.len()..]);
        let table = behind.entries().unwrap().next().unwrap().unwrap();
        assert_eq!(table.path().unwrap().to_str(), Some(TABLE));
        let text = io::read_to_string(table).unwrap();
        assert_eq!(table_digest(io::Cursor::new(&blob)).unwrap(), Some(Digest::of(text.as_bytes())));
        let table: serde_json::Value = serde_json::from_str(&text).unwrap();
        let entries = table["entries"].as_array().unwrap();
        let names: Vec<&str> = entries.iter().map(|entry| entry["name"].as_str().unwrap()).collect();
        assert_eq!(names, ["d/", "d/small", "d/empty", "large", "large", "large", "link"]);
        assert_eq!((&entries[0]["type"], &entries[4]["type"]), (&"dir".into(), &"chunk".into()));
        assert_eq!(entries[1]["modtime"], "2023-11-14T22:13:20Z");
        assert_eq!(entries[1]["mode"], 0o4755);
        assert_eq!((&entries[6]["linkName"], entries[2].get("offset")), (&"large".into(), None));
        for (entry, len) in [(&entries[1], 5), (&entries[3], CHUNK), (&entries[4], CHUNK), (&entries[5], 611_392)] {
            let at = usize::try_from(entry["offset"].as_u64().unwrap()).unwrap();
            let mut chunk = Vec::new();
            flate2::bufread::GzDecoder::new(&blob[at..]).take(len).read_to_end(&mut chunk).unwrap();
            assert_eq!(entry["chunkDigest"], Digest::of(&chunk).to_string());
        }
        assert_eq!(entries[1]["digest"], Digest::of(b"hello").to_string());
    }

    #[test]
    fn the_same_archive_gives_the_same_bytes_and_no_second_table() {
        let tar = archive();
        let (blob, _) = write(&tar);
        // Whatever the sizes of the reads are.
        let mut other = Vec::new();
        let slow = io::BufReader::with_capacity(777, &*tar);
        write_estargz(slow, &mut other, 9, &Cancel::new()).unwrap();
        assert!(blob == other);
        let plain = Encoder::new(Vec::new(), Compression::GZIP).unwrap().finish().unwrap();
        assert_eq!(table_digest(io::Cursor::new(plain)).unwrap(), None);
        let mut named = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_ustar();
        header.set_size(0);
        named.append_data(&mut header, TABLE, &b""[..]).unwrap();
        let refused = write_estargz(&*named.into_inner().unwrap(), io::sink(), 9, &Cancel::new()).unwrap_err();
        assert!(refused.to_string().contains(TABLE), "{refused}");
    }
}
