//! Reading the entries of a tar that anybody may have written.
//!
//! Every size is bounded before memory is taken for it. The headers are decoded by the `tar` crate; its iterator is not used,
//! because it reads extended headers of any size into memory, cuts binary PAX values at newlines and knows no PAX sparse files.
//! What the formats leave open is decided as Go's `archive/tar` decides it: docker and BuildKit read layers with that.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::io::{self, Read};

use tar::{EntryType, Header};

use super::header::{BLOCK, XATTR};
use crate::error::{Error, Kind as ErrorKind, Result};
use crate::store::tree::{Attributes, Time, Xattrs, display};

/// The longest path or link, in bytes: what the kernel takes at once.
const MAX_PATH: u64 = 4096;
/// The largest set of PAX records of one entry, in bytes: a few attributes of the kernel's 64 KiB each.
const MAX_PAX: u64 = 1 << 20;
/// The largest extended attribute, in bytes: the kernel's limit.
const MAX_XATTR: usize = 64 << 10;
/// The most stretches of data in a sparse file.
const MAX_STRETCHES: usize = 1 << 20;

/// One entry.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    /// As it stands in the archive, NUL-free and not empty.
    pub path: Vec<u8>,
    pub body: EntryBody,
    pub attributes: Attributes,
}

/// What an entry makes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum EntryBody {
    /// A file of this size; its data follows, see [`Entries::data`].
    File(u64),
    HardLink(Vec<u8>),
    Symlink(Vec<u8>),
    Dir,
    Char(u32, u32),
    Block(u32, u32),
    Fifo,
}

/// A piece of a file.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Piece {
    /// So many bytes are in the buffer.
    Bytes(usize),
    /// So many zeros follow.
    Hole(u64),
    End,
}

/// Reads entries one after the other.
#[derive(Debug)]
pub(super) struct Entries<R> {
    input: R,
    /// How much of the current entry's data is still in the input, and the padding after it.
    left: u64,
    padding: u64,
    content: Content,
    ended: bool,
}

/// How the data in the input makes up the current file.
#[derive(Debug)]
enum Content {
    Plain,
    /// Stretches of data (offset, length) in order, the position reached, and the size of the file.
    Sparse {
        stretches: std::vec::IntoIter<(u64, u64)>,
        current: (u64, u64),
        at: u64,
        size: u64,
    },
}

/// PAX records by their keys.
type Records = BTreeMap<Vec<u8>, Vec<u8>>;

/// What the headers before an entry's own say about it.
#[derive(Default)]
struct Extensions {
    pax: Records,
    gnu_path: Option<Vec<u8>>,
    gnu_link: Option<Vec<u8>>,
}

impl<R: Read> Entries<R> {
    pub(super) fn new(input: R) -> Self {
        Self { input, left: 0, padding: 0, content: Content::Plain, ended: false }
    }

    /// Goes on to the next entry, skipping what is left of the current one; `None` at the end of the archive.
    ///
    /// # Errors
    /// `InvalidArgument` for what is no tar; `Unsupported` for sorts of entries no layer has; `Corrupt` for a truncated one.
    pub(super) fn next(&mut self) -> Result<Option<Entry>> {
        let mut extensions = Extensions::default();
        loop {
            self.skip()?;
            if self.ended {
                return Ok(None);
            }
            let Some(header) = self.header()? else {
                self.ended = true;
                return Ok(None);
            };
            let size = number(&header.as_old().size).and_then(|size| u64::try_from(size).ok());
            let size = size.ok_or_else(|| malformed(&header, "the size is no number"))?;
            match header.entry_type() {
                EntryType::XHeader => extensions.pax = parse_pax(&self.whole(size, MAX_PAX)?)?,
                // Global records say nothing about the files of a layer; docker and containerd pass over them too.
                EntryType::XGlobalHeader => drop(self.whole(size, MAX_PAX)?),
                EntryType::GNULongName => extensions.gnu_path = Some(until_nul(self.whole(size, MAX_PATH + 1)?)),
                EntryType::GNULongLink => extensions.gnu_link = Some(until_nul(self.whole(size, MAX_PATH + 1)?)),
                // A volume label names the archive, not a file.
                other if other.as_byte() == b'V' => self.expect(size),
                _ => return self.entry(&header, size, extensions).map(Some),
            }
        }
    }

    /// Reads on in the current entry's file.
    pub(super) fn data(&mut self, buffer: &mut [u8]) -> Result<Piece> {
        let limit = match &mut self.content {
            Content::Plain if self.left == 0 => return Ok(Piece::End),
            Content::Plain => self.left,
            Content::Sparse { stretches, current, at, size } => {
                while current.1 == 0 {
                    let Some(next) = stretches.next() else {
                        let hole = *size - *at;
                        *at = *size;
                        return Ok(if hole == 0 { Piece::End } else { Piece::Hole(hole) });
                    };
                    *current = next;
                }
                if *at < current.0 {
                    let hole = current.0 - *at;
                    *at = current.0;
                    return Ok(Piece::Hole(hole));
                }
                current.1
            }
        };
        let len = buffer.len().min(usize::try_from(limit).unwrap_or(usize::MAX));
        let read = self.read(&mut buffer[..len])?;
        if read == 0 {
            return Err(truncated());
        }
        if let Content::Sparse { current, at, .. } = &mut self.content {
            *at += read as u64;
            *current = (current.0 + read as u64, current.1 - read as u64);
        }
        Ok(Piece::Bytes(read))
    }

    fn entry(&mut self, header: &Header, size: u64, extensions: Extensions) -> Result<Entry> {
        let Extensions { pax, gnu_path, gnu_link } = extensions;
        let text = |key: &str| pax.get(key.as_bytes()).cloned();
        let size = match text("size") {
            Some(size) => decimal(&size)
                .filter(|size| i64::try_from(*size).is_ok())
                .ok_or_else(|| malformed(header, "the PAX size is no number that a file can have"))?,
            None => size,
        };
        let path = gnu_path.or_else(|| text("path")).unwrap_or_else(|| header.path_bytes().into_owned());
        let link = gnu_link.or_else(|| text("linkpath"));
        let link = link.unwrap_or_else(|| header.link_name_bytes().unwrap_or_default().into_owned());
        let attributes = attributes(header, &pax)?;
        let device = || {
            let major = header.device_major().ok().flatten();
            let minor = header.device_minor().ok().flatten();
            major.zip(minor).ok_or_else(|| malformed(header, "the device has no numbers"))
        };
        // Only files have data, whatever the size says.
        let body = match header.entry_type() {
            // The oldest tars had no other sign of a directory.
            EntryType::Regular if header.as_old().linkflag == [0] && path.ends_with(b"/") => EntryBody::Dir,
            EntryType::Regular | EntryType::Continuous => EntryBody::File(size),
            EntryType::GNUSparse => EntryBody::File(size),
            EntryType::Link => EntryBody::HardLink(link),
            EntryType::Symlink => EntryBody::Symlink(link),
            EntryType::Char => device().map(|(major, minor)| EntryBody::Char(major, minor))?,
            EntryType::Block => device().map(|(major, minor)| EntryBody::Block(major, minor))?,
            EntryType::Directory => EntryBody::Dir,
            EntryType::Fifo => EntryBody::Fifo,
            other => {
                let sort = char::from(other.as_byte()).escape_default().to_string();
                let path = display(&path);
                return Err(Error::unsupported(format!(
                    "{path}: entries of type '{sort}' are not supported in a layer"
                )));
            }
        };
        let mut entry = Entry { path, body, attributes };
        if matches!(entry.body, EntryBody::File(_)) {
            self.expect(size);
            self.content = Content::Plain;
            if header.entry_type() == EntryType::GNUSparse {
                entry.body = EntryBody::File(self.old_sparse(header)?);
            } else if pax.keys().any(|key| key.starts_with(b"GNU.sparse.")) {
                entry.body = EntryBody::File(self.pax_sparse(&pax, &mut entry.path)?);
            }
        }
        check_names(&entry)?;
        Ok(entry)
    }

    /// Reads the map of an old GNU sparse file, from the header and the blocks after it; returns the file's size.
    fn old_sparse(&mut self, header: &Header) -> Result<u64> {
        let gnu = header.as_gnu().ok_or_else(|| malformed(header, "a sparse file without a GNU header"))?;
        let size = gnu.real_size().map_err(|_| malformed(header, "the real size is no number"))?;
        let mut stretches = Vec::new();
        let mut take = |sparse: &[tar::GnuSparseHeader]| -> Result<()> {
            for stretch in sparse.iter().filter(|stretch| !stretch.is_empty()) {
                let pair = stretch.offset().and_then(|offset| Ok((offset, stretch.length()?)));
                stretches.push(pair.map_err(|_| malformed(header, "the sparse map is no list of numbers"))?);
            }
            Ok(())
        };
        take(&gnu.sparse)?;
        let mut extended = gnu.is_extended();
        let mut blocks = 0;
        while extended {
            let mut block = tar::GnuExtSparseHeader::new();
            // These blocks stand between the header and the data, and its size does not count them.
            self.exactly(block.as_mut_bytes())?;
            take(block.sparse())?;
            extended = block.is_extended();
            blocks += 1;
            if blocks * 21 > MAX_STRETCHES {
                return Err(malformed(header, "the sparse map is too long"));
            }
        }
        self.set_sparse(stretches, size, header.path_bytes().as_ref())?;
        Ok(size)
    }

    /// Reads the map of a PAX sparse file, which stands in the records or, in version 1.0, before the data; returns the file's
    /// size and puts its real name into `path`.
    fn pax_sparse(&mut self, pax: &Records, path: &mut Vec<u8>) -> Result<u64> {
        let value = |key: &str| pax.get(format!("GNU.sparse.{key}").as_bytes()).map(Vec::as_slice);
        let in_data = match (value("major"), value("minor")) {
            (Some(b"1"), Some(b"0")) => true,
            (None | Some(b"0"), None | Some(b"0" | b"1")) => false,
            _ => {
                let path = display(path);
                return Err(Error::unsupported(format!("{path}: a sparse file of an unknown version of the format")));
            }
        };
        if let Some(name) = value("name") {
            path.clear();
            path.extend_from_slice(name);
        }
        let shown = display(path).to_string();
        let bad = |why: &str| Error::invalid(format!("malformed archive: {shown}: {why}"));
        let size = value(if in_data { "realsize" } else { "size" }).and_then(decimal);
        let size = size.ok_or_else(|| bad("the real size is no number"))?;
        let stretches = if in_data { self.map_in_data()? } else { value("map").and_then(parse_map) };
        let stretches = stretches.ok_or_else(|| bad("the sparse map is no list of numbers"))?;
        self.set_sparse(stretches, size, path)?;
        Ok(size)
    }

    /// Reads a sparse map of version 1.0: a line for each number, the first their count. `None` when it is none.
    fn map_in_data(&mut self) -> Result<Option<Vec<(u64, u64)>>> {
        let data = self.left;
        let count = self.map_number()?.and_then(|count| usize::try_from(count).ok());
        let Some(count) = count.filter(|count| *count <= MAX_STRETCHES) else { return Ok(None) };
        let mut stretches = Vec::with_capacity(count.min(1024));
        for _ in 0..count {
            let Some(stretch) = self.map_number()?.zip(self.map_number()?) else { return Ok(None) };
            stretches.push(stretch);
        }
        // The map fills whole blocks.
        let mut rest = [0; BLOCK];
        let padding = (data - self.left).wrapping_neg() % BLOCK as u64;
        if padding > self.left {
            return Ok(None);
        }
        self.exactly(&mut rest[..usize::try_from(padding).expect("below a block")])?;
        self.left -= padding;
        Ok(Some(stretches))
    }

    /// Reads a line of a sparse map; `None` when it is no number.
    fn map_number(&mut self) -> Result<Option<u64>> {
        let mut digits = Vec::new();
        while self.left > 0 && digits.len() <= 20 {
            let mut byte = [0];
            if self.read(&mut byte)? == 0 {
                return Err(truncated());
            }
            if byte == *b"\n" {
                return Ok(decimal(&digits));
            }
            digits.extend(byte);
        }
        Ok(None)
    }

    /// Checks that the stretches are in order, within the file, and together as long as the data.
    fn set_sparse(&mut self, stretches: Vec<(u64, u64)>, size: u64, path: &[u8]) -> Result<()> {
        let bad = |why: &str| Error::invalid(format!("malformed archive: {}: the sparse map {why}", display(path)));
        let (mut end, mut data) = (0, 0_u64);
        for (offset, length) in &stretches {
            let next = offset.checked_add(*length).filter(|next| *offset >= end && *next <= size);
            end = next.ok_or_else(|| bad("is not in order"))?;
            data += length;
        }
        if data > self.left {
            return Err(bad("is longer than the data"));
        }
        self.content = Content::Sparse { stretches: stretches.into_iter(), current: (0, 0), at: 0, size };
        Ok(())
    }

    /// Reads the next header and checks its sum; `None` at the end of the archive.
    fn header(&mut self) -> Result<Option<Header>> {
        let mut header = Header::new_old();
        let mut zeros = 0;
        loop {
            let read = self.fill(header.as_mut_bytes())?;
            if read == 0 {
                return Ok(None);
            }
            if read < BLOCK {
                return Err(truncated());
            }
            if header.as_bytes().iter().any(|byte| *byte != 0) {
                break;
            }
            zeros += 1;
            if zeros == 2 {
                return Ok(None);
            }
        }
        let old = header.as_old();
        let sums = checksums(header.as_bytes());
        let said = number(&old.cksum);
        if zeros == 1 || !sums.iter().any(|sum| said == Some(*sum)) {
            return Err(Error::invalid("malformed archive: not a tar, or damaged: the sum of a header is wrong"));
        }
        Ok(Some(header))
    }

    /// Reads all data of an entry that describes another one.
    fn whole(&mut self, size: u64, limit: u64) -> Result<Vec<u8>> {
        if size > limit {
            return Err(Error::invalid(format!(
                "malformed archive: an extended header of {size} bytes, more than the {limit} that are accepted"
            )));
        }
        self.expect(size);
        let mut data = vec![0; usize::try_from(size).expect("the limit fits")];
        self.exactly(&mut data)?;
        self.left = 0;
        Ok(data)
    }

    fn expect(&mut self, size: u64) {
        self.left = size;
        self.padding = size.wrapping_neg() % BLOCK as u64;
    }

    /// Passes over what is left of the current entry.
    fn skip(&mut self) -> Result<()> {
        let mut left = self.left + self.padding;
        (self.left, self.padding) = (0, 0);
        let mut buffer = [0; 16 << 10];
        while left > 0 {
            let len = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            let read = self.input(&mut buffer[..len])?;
            if read == 0 {
                return Err(truncated());
            }
            left -= read as u64;
        }
        Ok(())
    }

    fn read(&mut self, buffer: &mut [u8]) -> Result<usize> {
        let len = buffer.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let read = self.input(&mut buffer[..len])?;
        self.left -= read as u64;
        Ok(read)
    }

    fn exactly(&mut self, buffer: &mut [u8]) -> Result<()> {
        if self.fill(buffer)? == buffer.len() { Ok(()) } else { Err(truncated()) }
    }

    /// Reads until the buffer is full or the input ends.
    fn fill(&mut self, buffer: &mut [u8]) -> Result<usize> {
        let mut filled = 0;
        while filled < buffer.len() {
            match self.input(&mut buffer[filled..])? {
                0 => break,
                read => filled += read,
            }
        }
        Ok(filled)
    }

    fn input(&mut self, buffer: &mut [u8]) -> Result<usize> {
        loop {
            match self.input.read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => return Ok(result?),
            }
        }
    }
}

fn attributes(header: &Header, pax: &Records) -> Result<Attributes> {
    let old = header.as_old();
    let bad = |what: &str| malformed(header, &format!("the {what} is no number this system has"));
    let id = |key: &str, field: &[u8]| {
        let value = match pax.get(key.as_bytes()) {
            Some(value) => decimal(value),
            None => number(field).and_then(|value| value.try_into().ok()),
        };
        value.and_then(|value| u32::try_from(value).ok()).filter(|id| *id != u32::MAX).ok_or_else(|| bad(key))
    };
    let mode = number(&old.mode).ok_or_else(|| bad("mode"))?;
    let mtime = match pax.get(b"mtime".as_slice()) {
        Some(value) => time(value),
        None => number(&old.mtime).map(|seconds| Time { seconds, nanos: 0 }),
    };
    let xattrs = pax.iter().filter_map(|(key, value)| Some((key.strip_prefix(XATTR.as_bytes())?, value)));
    let xattrs = xattrs.map(|(name, value)| {
        let name = CString::new(name).ok().filter(|name| !name.is_empty() && name.count_bytes() <= 255);
        let name = name.ok_or_else(|| malformed(header, "an extended attribute has no valid name"))?;
        if value.len() > MAX_XATTR {
            return Err(malformed(header, "an extended attribute is longer than 64 KiB"));
        }
        Ok((name, value.clone()))
    });
    Ok(Attributes {
        mode: u32::try_from(mode & 0o7777).expect("masked"),
        uid: id("uid", &old.uid)?,
        gid: id("gid", &old.gid)?,
        mtime: mtime.ok_or_else(|| bad("mtime"))?,
        xattrs: Xattrs::new(xattrs.collect::<Result<Vec<_>>>()?),
    })
}

fn check_names(entry: &Entry) -> Result<()> {
    let bad = |why: &str| {
        let shown = &entry.path[..entry.path.len().min(100)];
        Err(Error::invalid(format!("malformed archive: entry {:?}: {why}", String::from_utf8_lossy(shown))))
    };
    let link = match &entry.body {
        EntryBody::HardLink(link) | EntryBody::Symlink(link) => Some(link),
        _ => None,
    };
    if entry.path.is_empty() || link.is_some_and(Vec::is_empty) {
        return bad("a name is empty");
    }
    for name in std::iter::once(&entry.path).chain(link) {
        if name.len() as u64 > MAX_PATH {
            return bad("a name is longer than 4096 bytes");
        }
        if name.contains(&0) {
            return bad("a name holds a NUL");
        }
    }
    Ok(())
}

/// Parses PAX records, `length key=value` each. An empty value says nothing.
fn parse_pax(mut data: &[u8]) -> Result<Records> {
    let bad = || Error::invalid("malformed archive: a PAX header is not a list of records");
    let mut records = BTreeMap::new();
    while !data.is_empty() {
        let space = data.iter().take(8).position(|byte| *byte == b' ').ok_or_else(bad)?;
        let len = decimal(&data[..space]).and_then(|len| usize::try_from(len).ok()).ok_or_else(bad)?;
        if len <= space + 1 || len > data.len() || data[len - 1] != b'\n' {
            return Err(bad());
        }
        let record = &data[space + 1..len - 1];
        let equals = record.iter().position(|byte| *byte == b'=').filter(|at| *at > 0).ok_or_else(bad)?;
        let (key, value) = (&record[..equals], &record[equals + 1..]);
        if matches!(key, b"GNU.sparse.offset" | b"GNU.sparse.numbytes") {
            // The first version of sparse files repeats these two in turn, the next one makes one list of them.
            let map: &mut Vec<u8> = records.entry(b"GNU.sparse.map".to_vec()).or_default();
            if !map.is_empty() {
                map.push(b',');
            }
            map.extend_from_slice(value);
        } else if value.is_empty() && !key.starts_with(XATTR.as_bytes()) {
            records.remove(key);
        } else {
            records.insert(key.to_vec(), value.to_vec());
        }
        data = &data[len..];
    }
    Ok(records)
}

/// Parses the sparse map of a PAX record: offsets and lengths in turn.
fn parse_map(text: &[u8]) -> Option<Vec<(u64, u64)>> {
    if text.is_empty() {
        return Some(Vec::new());
    }
    let numbers: Vec<u64> = text.split(|byte| *byte == b',').map(decimal).collect::<Option<_>>()?;
    let (pairs, rest) = numbers.as_chunks::<2>();
    rest.is_empty().then(|| pairs.iter().map(|[offset, length]| (*offset, *length)).collect())
}

/// Decodes a number field: octal digits between spaces and NULs, or base 256 in two's complement.
fn number(field: &[u8]) -> Option<i64> {
    if field[0] & 0x80 != 0 {
        let negative = field[0] & 0x40 != 0;
        let first = i128::from(field[0] & 0x7f) - if negative { 0x80 } else { 0 };
        let value = field[1..].iter().fold(first, |value, byte| value << 8 | i128::from(*byte));
        return i64::try_from(value).ok();
    }
    let digits = field.split(|byte| *byte == 0).next().unwrap_or_default().trim_ascii();
    let octal = |value: i64, digit: &u8| (b'0'..=b'7').contains(digit).then(|| value << 3 | i64::from(digit - b'0'));
    if digits.len() > 20 { None } else { digits.iter().try_fold(0, octal) }
}

fn decimal(text: &[u8]) -> Option<u64> {
    let all_digits = !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    all_digits.then(|| std::str::from_utf8(text).ok()?.parse().ok())?
}

/// Decodes a time of a PAX record: seconds, perhaps negative, with a fraction cut to nanoseconds.
fn time(text: &[u8]) -> Option<Time> {
    let (negative, text) = text.strip_prefix(b"-").map_or((false, text), |rest| (true, rest));
    let mut parts = text.splitn(2, |byte| *byte == b'.');
    let seconds = i64::try_from(decimal(parts.next()?)?).ok()?;
    let fraction = parts.next().unwrap_or(b"");
    let digits = &fraction[..fraction.len().min(9)];
    let nanos =
        if digits.is_empty() { 0 } else { decimal(digits)? * 10_u64.pow(9 - u32::try_from(digits.len()).ok()?) };
    let nanos = u32::try_from(nanos).ok()?;
    Some(match (negative, nanos) {
        (false, _) => Time { seconds, nanos },
        (true, 0) => Time { seconds: -seconds, nanos },
        (true, _) => Time { seconds: -seconds - 1, nanos: 1_000_000_000 - nanos },
    })
}

/// The sum of a header's bytes, its own field taken as spaces; old programs took bytes for signed.
fn checksums(block: &[u8; BLOCK]) -> [i64; 2] {
    let counted = |at: usize, byte: u8| if super::header::CHECKSUM.contains(&at) { b' ' } else { byte };
    let bytes = || block.iter().enumerate().map(|(at, byte)| counted(at, *byte));
    [bytes().map(i64::from).sum(), bytes().map(|byte| i64::from(byte.cast_signed())).sum()]
}

fn until_nul(mut text: Vec<u8>) -> Vec<u8> {
    text.truncate(text.iter().position(|byte| *byte == 0).unwrap_or(text.len()));
    text
}

fn malformed(header: &Header, why: &str) -> Error {
    Error::invalid(format!("malformed archive: entry {:?}: {why}", String::from_utf8_lossy(&header.path_bytes())))
}

fn truncated() -> Error {
    Error::new(ErrorKind::Corrupt, "the archive is truncated")
}
