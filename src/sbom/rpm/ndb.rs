//! rpm's own database format, which SUSE uses: a table of slots in the first pages, and blobs in blocks of 16 bytes.

use super::{MAX_HEADERS, damaged, le32, slice};
use crate::error::Result;

const PAGE: usize = 4096;
const SLOT: usize = 16;
const BLOCK: usize = 16;
const BLOB_HEAD: usize = 16;

/// Returns the header blobs of a database.
///
/// # Errors
/// `InvalidArgument` when it is damaged.
pub(super) fn headers(bytes: &[u8]) -> Result<Vec<Vec<u8>>> {
    let pages = le32(bytes, 12, "the file header")? as usize;
    let table = pages.checked_mul(PAGE).ok_or_else(|| damaged("the table of slots"))?;
    // The file's header takes the place of the first two slots.
    let slots = slice(bytes, 0, table, "the table of slots")?.get(2 * SLOT..).unwrap_or_default();
    let mut found: Vec<(u32, Vec<u8>)> = Vec::new();
    for slot in slots.chunks_exact(SLOT) {
        if !slot.starts_with(b"Slot") {
            return Err(damaged("a slot without its mark"));
        }
        let (package, block) = (le32(slot, 4, "a slot")?, le32(slot, 8, "a slot")? as usize);
        if package == 0 {
            continue;
        }
        if found.len() >= MAX_HEADERS {
            return Err(damaged("it holds too many packages"));
        }
        let at = block.checked_mul(BLOCK).ok_or_else(|| damaged("a slot"))?;
        let head = slice(bytes, at, BLOB_HEAD, "a blob")?;
        if !head.starts_with(b"BlbS") || le32(head, 4, "a blob")? != package {
            return Err(damaged("a slot that leads to no blob of its package"));
        }
        let len = le32(head, 12, "a blob")? as usize;
        found.push((package, slice(bytes, at + BLOB_HEAD, len, "a blob")?.to_vec()));
    }
    found.sort();
    Ok(found.into_iter().map(|(_, blob)| blob).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blobs_are_found_by_their_slots() {
        let blob = super::super::header::sample("zypper");
        let mut file = vec![0; PAGE];
        file[..4].copy_from_slice(b"RpmP");
        file[12..16].copy_from_slice(&1_u32.to_le_bytes());
        for at in (2 * SLOT..PAGE).step_by(SLOT) {
            file[at..at + 4].copy_from_slice(b"Slot");
        }
        let slot = 2 * SLOT;
        file[slot + 4..slot + 8].copy_from_slice(&7_u32.to_le_bytes());
        file[slot + 8..slot + 12].copy_from_slice(&u32::try_from(PAGE / BLOCK).unwrap().to_le_bytes());
        file.extend(b"BlbS");
        for number in [7, 1, u32::try_from(blob.len()).unwrap()] {
            file.extend(number.to_le_bytes());
        }
        file.extend(&blob);
        assert_eq!(headers(&file).unwrap(), [blob]);
        for len in [3, 100, PAGE, file.len() - 1] {
            assert!(headers(&file[..len]).is_err(), "{len}");
        }
    }
}
