//! Reading fields of binary formats that nobody vouches for: numbers are big-endian, and nothing is read beyond the end.

use crate::error::{Error, Result};

/// Reads fields from bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reader<'a>(pub(super) &'a [u8]);

impl<'a> Reader<'a> {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// All that is left.
    pub(super) fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.0)
    }

    pub(super) fn take(&mut self, count: usize) -> Result<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or_else(|| Error::invalid("it ends too early"))?;
        self.0 = rest;
        Ok(taken)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        Ok(self.take(N)?.try_into().expect("as many bytes were taken"))
    }

    pub(super) fn u8(&mut self) -> Result<u8> {
        Ok(self.array::<1>()?[0])
    }

    pub(super) fn u16(&mut self) -> Result<u16> {
        self.array().map(u16::from_be_bytes)
    }

    pub(super) fn u32(&mut self) -> Result<u32> {
        self.array().map(u32::from_be_bytes)
    }

    /// Bytes after their number, as SSH writes them.
    pub(super) fn string(&mut self) -> Result<&'a [u8]> {
        let length = self.u32()?;
        self.take(usize::try_from(length).map_err(|_| Error::invalid("it ends too early"))?)
    }

    /// A large number after the number of its bits, as OpenPGP writes it, without leading zeros.
    pub(super) fn mpi(&mut self) -> Result<&'a [u8]> {
        let bits = usize::from(self.u16()?);
        self.take(bits.div_ceil(8)).map(significant)
    }
}

/// A number without leading zeros.
pub(super) fn significant(number: &[u8]) -> &[u8] {
    let zeros = number.iter().take_while(|byte| **byte == 0).count();
    &number[zeros..]
}

/// A number in as many bytes as a signature has for it; `None` when it is larger.
pub(super) fn padded(number: &[u8], length: usize) -> Option<Vec<u8>> {
    let number = significant(number);
    let zeros = length.checked_sub(number.len())?;
    Some([&vec![0; zeros], number].concat())
}
