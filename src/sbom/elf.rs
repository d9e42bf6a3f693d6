//! Sections of ELF files, found by name, for what compilers leave in binaries.

use std::fs::File;
use std::os::unix::fs::FileExt as _;

/// Limits of a file's tables and of a section.
const MAX_SECTIONS: u64 = 4096;
const MAX_NAMES: u64 = 1 << 20;
const MAX_SECTION: u64 = 64 << 20;

const SECTION_HEADER: u64 = 64;

/// A 64-bit ELF file in the byte order of x86-64 and ARM64.
pub(super) struct Elf<'a> {
    file: &'a File,
    table: Vec<u8>,
    names: Vec<u8>,
}

fn read(file: &File, at: u64, len: u64) -> Option<Vec<u8>> {
    let mut bytes = vec![0; usize::try_from(len).ok()?];
    file.read_exact_at(&mut bytes, at).ok()?;
    Some(bytes)
}

fn number(bytes: &[u8], at: usize, width: usize) -> Option<u64> {
    let mut buffer = [0; 8];
    buffer[..width].copy_from_slice(bytes.get(at..at + width)?);
    Some(u64::from_le_bytes(buffer))
}

impl<'a> Elf<'a> {
    /// Reads the table of sections; `None` when the file is something else, or has none.
    pub(super) fn open(file: &'a File) -> Option<Self> {
        let header = read(file, 0, 64)?;
        if !header.starts_with(b"\x7fELF\x02\x01") {
            return None;
        }
        let (at, width) = (number(&header, 40, 8)?, number(&header, 58, 2)?);
        let (count, names) = (number(&header, 60, 2)?, number(&header, 62, 2)?);
        if width != SECTION_HEADER || count > MAX_SECTIONS || names >= count {
            return None;
        }
        let table = read(file, at, count * SECTION_HEADER)?;
        let mut elf = Self { file, table, names: Vec::new() };
        let (at, len) = elf.extent(usize::try_from(names).ok()?)?;
        elf.names = read(file, at, Some(len).filter(|len| *len <= MAX_NAMES)?)?;
        Some(elf)
    }

    fn extent(&self, index: usize) -> Option<(u64, u64)> {
        let header = self.table.chunks_exact(64).nth(index)?;
        Some((number(header, 24, 8)?, number(header, 32, 8)?))
    }

    /// Returns the content of a section.
    pub(super) fn section(&self, name: &[u8]) -> Option<Vec<u8>> {
        let named = |header: &[u8]| {
            let at = usize::try_from(number(header, 0, 4)?).ok()?;
            let rest = self.names.get(at..)?.strip_prefix(name)?;
            (rest.first() == Some(&0)).then_some(())
        };
        let index = self.table.chunks_exact(64).position(|header| named(header).is_some())?;
        let (at, len) = self.extent(index)?;
        if len > MAX_SECTION || at.checked_add(len)? > self.file.metadata().ok()?.len() {
            return None;
        }
        read(self.file, at, len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sections_are_found_by_name() {
        let file = File::open(std::env::current_exe().unwrap()).unwrap();
        let elf = Elf::open(&file).unwrap();
        assert!(elf.section(b".text").is_some_and(|text| !text.is_empty()));
        assert!(elf.section(b".tex").is_none());
        let other = File::open(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml")).unwrap();
        assert!(Elf::open(&other).is_none());
    }
}
