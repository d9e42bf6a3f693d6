//! The encoding of SSH (RFC 4251, section 5): numbers, strings and large numbers, of input that nobody vouches for.

use crate::error::{Error, Result};

/// Reads fields from bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reader<'a>(pub(super) &'a [u8]);

impl<'a> Reader<'a> {
    pub(super) fn take(&mut self, count: usize) -> Result<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or_else(|| Error::invalid("it ends too early"))?;
        self.0 = rest;
        Ok(taken)
    }

    pub(super) fn byte(&mut self) -> Result<u8> {
        Ok(self.take(1)?[0])
    }

    pub(super) fn number(&mut self) -> Result<u32> {
        Ok(u32::from_be_bytes(self.take(4)?.try_into().expect("four bytes were taken")))
    }

    pub(super) fn string(&mut self) -> Result<&'a [u8]> {
        let length = self.number()?;
        self.take(usize::try_from(length).map_err(|_| Error::invalid("it ends too early"))?)
    }

    /// A large number that is not negative, without leading zeros.
    pub(super) fn large(&mut self) -> Result<&'a [u8]> {
        let bytes = self.string()?;
        let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
        Ok(&bytes[zeros..])
    }
}

/// Writes a string.
pub(super) fn put(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(&u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_be_bytes());
    out.extend_from_slice(bytes);
}

/// Writes a large number that is not negative.
pub(super) fn put_large(out: &mut Vec<u8>, bytes: &[u8]) {
    let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
    let bytes = &bytes[zeros..];
    if bytes.first().is_some_and(|byte| byte & 0x80 != 0) {
        put(out, &[&[0], bytes].concat());
    } else {
        put(out, bytes);
    }
}

/// Returns `value` modulo `by`, both large and not negative; `by` is not 0.
pub(super) fn remainder(value: &[u8], by: &[u8]) -> Vec<u8> {
    // One digit more than `by` has, so that doubling never overflows.
    let by = [&[0], by].concat();
    let mut rest = vec![0_u8; by.len()];
    for bit in value.iter().flat_map(|byte| (0..8).rev().map(move |at| (byte >> at) & 1)) {
        let mut carry = bit;
        for digit in rest.iter_mut().rev() {
            let next = *digit >> 7;
            *digit = (*digit << 1) | carry;
            carry = next;
        }
        if rest >= by {
            rest = minus(&rest, &by);
        }
    }
    let zeros = rest.iter().take_while(|byte| **byte == 0).count();
    rest.split_off(zeros)
}

/// Returns the difference of two numbers of as many digits, of which the first is not smaller.
pub(super) fn minus(from: &[u8], what: &[u8]) -> Vec<u8> {
    let mut difference = vec![0; from.len()];
    let mut borrowed = false;
    for at in (0..from.len()).rev() {
        let (digit, first) = from[at].overflowing_sub(what[at]);
        let (digit, second) = digit.overflowing_sub(u8::from(borrowed));
        difference[at] = digit;
        borrowed = first || second;
    }
    difference
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn remainders_of_large_numbers() {
        for (value, by) in [(1_000_003_u64, 997_u64), (u64::MAX, 255), (5, 7), (0, 3), (1 << 63, (1 << 31) + 1)] {
            let found = remainder(&value.to_be_bytes(), &by.to_be_bytes());
            let found = found.iter().fold(0, |sum, byte| (sum << 8) | u64::from(*byte));
            assert_eq!(found, value % by, "{value} mod {by}");
        }
    }

    #[test]
    fn strings_end_where_the_input_does() {
        assert!(Reader(&[0, 0, 0, 2, 1]).string().is_err());
        assert!(Reader(&[0xff, 0xff, 0xff, 0xff]).string().is_err());
        let mut out = Vec::new();
        put_large(&mut out, &[0, 0, 0x80]);
        assert_eq!(out, [0, 0, 0, 2, 0, 0x80]);
        assert_eq!(Reader(&out).large().unwrap(), [0x80]);
    }
}
