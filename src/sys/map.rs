//! `mmap(2)` of files: their content as bytes, without reading it into memory.

use std::ffi::c_void;
use std::ops::Deref;
use std::os::fd::AsFd;
use std::ptr;

use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

/// The beginning of a file, as bytes that cannot be written.
#[derive(Debug)]
pub struct Mapping {
    start: *mut c_void,
    length: usize,
}

impl Mapping {
    /// Maps the first `length` bytes of a file, of which there is at least one.
    ///
    /// As long as the mapping lives, nobody may write to that part of the file or cut it off: its bytes would change under
    /// who reads them, or end the program.
    ///
    /// # Errors
    /// As `mmap(2)`: `EINVAL` for no bytes, `ENODEV` for what is no file.
    pub fn of(file: impl AsFd, length: usize) -> Result<Self, Errno> {
        // SAFETY: a new mapping at an address of the kernel's choice touches no other; it is only read, and private.
        let start = unsafe { mmap(ptr::null_mut(), length, ProtFlags::READ, MapFlags::PRIVATE, file, 0) }?;
        Ok(Self { start, length })
    }
}

impl Deref for Mapping {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the mapping has this start and length until it is dropped, can be read, and its bytes stay what they are: those
        // who make one see to that.
        unsafe { std::slice::from_raw_parts(self.start.cast(), self.length) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range is the mapping that `of` made, and no reference into it outlives it. It cannot fail for a mapping that
        // exists.
        let _ = unsafe { munmap(self.start, self.length) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_where_it_is_mapped() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, "hello").unwrap();
        let file = std::fs::File::open(&path).unwrap();
        assert_eq!(&*Mapping::of(&file, 4).unwrap(), b"hell");
        assert_eq!(Mapping::of(&file, 0).unwrap_err(), Errno::INVAL);
    }
}
