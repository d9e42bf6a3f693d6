//! The headers of a tar that is written: ustar, with PAX records for what ustar cannot say.
//!
//! Byte for byte what Go's `archive/tar` writes when asked for PAX, because BuildKit and docker write layers with it: numeric
//! owners only, times in whole seconds, no prefix field, no GNU extension. So one tree gets one digest from all of us.

use crate::error::{Error, Result};
use crate::store::tree::{Xattrs, display};

/// The unit of the format, in bytes.
pub(super) const BLOCK: usize = 512;
/// Where a header keeps the time and the checksum, which depends on it.
pub(super) const MTIME: std::ops::Range<usize> = 136..148;
pub(super) const CHECKSUM: std::ops::Range<usize> = 148..156;

/// The key of a PAX record that carries an extended attribute, before the attribute's name.
pub(super) const XATTR: &str = "SCHILY.xattr.";

/// What an entry is: the type flags of ustar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Flag {
    File = b'0',
    HardLink = b'1',
    Symlink = b'2',
    Char = b'3',
    Block = b'4',
    Dir = b'5',
    Fifo = b'6',
    Pax = b'x',
}

/// An entry to be written.
#[derive(Debug)]
pub(super) struct Header<'a> {
    pub flag: Flag,
    /// Without a slash at its end, also for a directory.
    pub path: &'a [u8],
    /// The target of a link; empty for anything else.
    pub link: &'a [u8],
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub size: u64,
    /// Seconds since 1970.
    pub mtime: i64,
    pub rdev: (u32, u32),
    pub xattrs: &'a Xattrs,
}

impl Header<'_> {
    /// Appends the blocks that announce the entry; the last of them is its header proper.
    ///
    /// # Errors
    /// `Unsupported` for an attribute whose name no PAX record can carry.
    pub(super) fn write(&self, out: &mut Vec<u8>) -> Result<()> {
        let mut path = self.path.to_vec();
        if self.flag == Flag::Dir {
            path.push(b'/');
        }
        let records = self.records(&path)?;
        if !records.is_empty() {
            let mut block = Block::new(Flag::Pax);
            block.text(0..100, &pax_name(&path));
            for field in [100..108, 108..116, 116..124, 136..148] {
                block.octal(field, 0);
            }
            block.octal(124..136, records.len() as u64);
            out.extend_from_slice(&block.finish());
            let padded = records.len().next_multiple_of(BLOCK) - records.len();
            out.extend_from_slice(&records);
            out.resize(out.len() + padded, 0);
        }
        let mut block = Block::new(self.flag);
        block.text(0..100, &path);
        block.octal(100..108, self.mode.into());
        block.octal(108..116, self.uid.into());
        block.octal(116..124, self.gid.into());
        block.octal(124..136, self.size);
        block.octal(MTIME, u64::try_from(self.mtime).unwrap_or(0));
        block.text(157..257, self.link);
        block.octal(329..337, self.rdev.0.into());
        block.octal(337..345, self.rdev.1.into());
        out.extend_from_slice(&block.finish());
        Ok(())
    }

    /// The PAX records, sorted by key; empty when ustar says it all.
    fn records(&self, path: &[u8]) -> Result<Vec<u8>> {
        let mut records = Vec::new();
        for (name, value) in self.xattrs.iter() {
            let name = name.to_bytes();
            if name.contains(&b'=') {
                return Err(Error::unsupported(format!(
                    "{}: the extended attribute {} cannot be stored in a layer, because its name holds an equals sign",
                    display(self.path),
                    display(name)
                )));
            }
            record(&mut records, &[XATTR.as_bytes(), name].concat(), value);
        }
        let number = |records: &mut Vec<u8>, key: &str, value: i64, digits: u32| {
            if u64::try_from(value).map_or(true, |value| value >= 8_u64.pow(digits)) {
                record(records, key.as_bytes(), value.to_string().as_bytes());
            }
        };
        let text = |records: &mut Vec<u8>, key: &str, value: &[u8]| {
            if value.len() > 100 || !value.is_ascii() {
                record(records, key.as_bytes(), value);
            }
        };
        number(&mut records, "gid", self.gid.into(), 7);
        text(&mut records, "linkpath", self.link);
        number(&mut records, "mtime", self.mtime, 11);
        text(&mut records, "path", path);
        number(&mut records, "size", i64::try_from(self.size).unwrap_or(i64::MAX), 11);
        number(&mut records, "uid", self.uid.into(), 7);
        Ok(records)
    }
}

/// Appends `length key=value`, where the length counts itself.
fn record(out: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut len = rest + 1;
    while rest + len.to_string().len() != len {
        len = rest + len.to_string().len();
    }
    out.extend_from_slice(format!("{len} ").as_bytes());
    out.extend_from_slice(key);
    out.push(b'=');
    out.extend_from_slice(value);
    out.push(b'\n');
}

/// The name of a PAX header: `dir/PaxHeaders.0/file`.
fn pax_name(path: &[u8]) -> Vec<u8> {
    let file = path.iter().rposition(|byte| *byte == b'/').map_or(0, |slash| slash + 1);
    let name = [&path[..file], b"PaxHeaders.0/", &path[file..]].concat();
    name.strip_suffix(b"/").map(<[u8]>::to_vec).unwrap_or(name)
}

struct Block([u8; BLOCK]);

impl Block {
    fn new(flag: Flag) -> Self {
        let mut bytes = [0; BLOCK];
        bytes[156] = flag as u8;
        bytes[257..265].copy_from_slice(b"ustar\x0000");
        Self(bytes)
    }

    /// Writes what fits of the ASCII in a text. What was cut ends in no slash: some readers would take a file for a
    /// directory.
    fn text(&mut self, field: std::ops::Range<usize>, text: &[u8]) {
        let field = &mut self.0[field];
        let mut ascii = text.iter().filter(|byte| byte.is_ascii());
        for (place, byte) in field.iter_mut().zip(&mut ascii) {
            *place = *byte;
        }
        if ascii.next().is_some() {
            let end = field.iter().rposition(|byte| *byte != b'/').map_or(0, |last| last + 1);
            field[end..].fill(0);
        }
    }

    /// Writes digits and a NUL; zero when they do not fit, because a PAX record tells then.
    fn octal(&mut self, field: std::ops::Range<usize>, value: u64) {
        let digits = field.len() - 1;
        let mut rest = if value >> (3 * digits) == 0 { value } else { 0 };
        for digit in self.0[field][..digits].iter_mut().rev() {
            *digit = b'0' + (rest & 7) as u8;
            rest >>= 3;
        }
    }

    fn finish(mut self) -> [u8; BLOCK] {
        self.0[CHECKSUM].fill(b' ');
        let sum: u32 = self.0.iter().copied().map(u32::from).sum();
        self.0[CHECKSUM].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(path: &[u8]) -> Header<'_> {
        static NONE: std::sync::LazyLock<Xattrs> = std::sync::LazyLock::new(Xattrs::default);
        let (mode, uid, gid, size, mtime, rdev) = (0o644, 0, 0, 0, 0, (0, 0));
        Header { flag: Flag::File, path, link: b"", mode, uid, gid, size, mtime, rdev, xattrs: &NONE }
    }

    fn bytes(header: &Header<'_>) -> Vec<u8> {
        let mut out = Vec::new();
        header.write(&mut out).unwrap();
        out
    }

    #[test]
    fn a_plain_entry_is_one_ustar_block() {
        let block = bytes(&Header { size: 13, mtime: 1_700_000_000, uid: 1000, ..header(b"etc/motd") });
        let mut expected = [0; 512];
        let mut put = |at: usize, text: &[u8]| expected[at..at + text.len()].copy_from_slice(text);
        put(0, b"etc/motd");
        put(100, b"0000644\x000001750\x000000000\x0000000000015\x0014524770400\x00010721\x00 0");
        put(257, b"ustar\x0000");
        put(329, b"0000000\x000000000\x00");
        assert_eq!(String::from_utf8_lossy(&block), String::from_utf8_lossy(&expected));
    }

    #[test]
    fn what_ustar_cannot_say_is_said_in_sorted_pax_records() {
        let long = "d/".repeat(60) + "naïve";
        let xattrs = Xattrs::new([(c"user.b".to_owned(), vec![0, b'\n']), (c"user.a".to_owned(), b"=".to_vec())]);
        let big = Header { size: 8 << 30, uid: 3_000_000, mtime: -5, xattrs: &xattrs, ..header(long.as_bytes()) };
        let out = bytes(&big);
        assert_eq!(out.len(), 3 * 512);
        let name = "d/".repeat(50);
        assert_eq!(&out[..100], format!("{}\0", &name[..99]).as_bytes(), "cut, without the slash at its end");
        let records = String::from_utf8_lossy(&out[512..1024]);
        let expected = format!(
            "25 SCHILY.xattr.user.a==\n26 SCHILY.xattr.user.b=\0\n\n12 mtime=-5\n{} path={long}\n19 size=8589934592\n15 uid=3000000\n",
            long.len() + 10
        );
        assert_eq!(records.trim_end_matches('\0'), expected);
        assert_eq!(&out[1024 + 108..1024 + 148], b"0000000\x000000000\x0000000000000\x0000000000000\x00");
    }

    #[test]
    fn a_record_counts_its_own_length_across_powers_of_ten() {
        for len in 80..120 {
            let mut out = Vec::new();
            record(&mut out, b"path", &vec![b'x'; len]);
            let said: usize = std::str::from_utf8(&out).unwrap().split(' ').next().unwrap().parse().unwrap();
            assert_eq!(said, out.len());
        }
    }

    #[test]
    fn an_attribute_whose_name_has_an_equals_sign_is_refused() {
        let xattrs = Xattrs::new([(c"user.a=b".to_owned(), Vec::new())]);
        let error = Header { xattrs: &xattrs, ..header(b"f") }.write(&mut Vec::new()).unwrap_err();
        assert_eq!(error.kind(), crate::error::Kind::Unsupported);
    }
}
