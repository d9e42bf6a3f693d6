//! rpm's database in Berkeley DB's hash format, which older distributions use. Only as much of the format as rpm needs:
//! values, on hash pages or on chains of overflow pages.

use super::{MAX_HEADERS, damaged, slice};
use crate::error::Result;

/// The mark of a hash database, at offset 12 of the first page.
const MAGIC: u32 = 0x0006_1561;
const PAGE_HEADER: usize = 26;
/// Types of pages.
const HASH_UNSORTED: u8 = 2;
const OVERFLOW: u8 = 7;
const HASH: u8 = 13;
/// Types of items on hash pages.
const KEY_DATA: u8 = 1;
const OFF_PAGE: u8 = 3;

/// Says whether the bytes are a hash database, in either byte order.
pub(super) fn is_hash(bytes: &[u8]) -> bool {
    Order::of(bytes).is_some()
}

#[derive(Clone, Copy)]
enum Order {
    Little,
    Big,
}

impl Order {
    fn of(bytes: &[u8]) -> Option<Self> {
        let mark: [u8; 4] = bytes.get(12..16)?.try_into().ok()?;
        if u32::from_le_bytes(mark) == MAGIC {
            Some(Self::Little)
        } else if u32::from_be_bytes(mark) == MAGIC {
            Some(Self::Big)
        } else {
            None
        }
    }

    fn u16(self, bytes: &[u8], at: usize) -> Result<usize> {
        let two = slice(bytes, at, 2, "a page")?.try_into().expect("it is two bytes");
        Ok(usize::from(match self {
            Self::Little => u16::from_le_bytes(two),
            Self::Big => u16::from_be_bytes(two),
        }))
    }

    fn u32(self, bytes: &[u8], at: usize) -> Result<usize> {
        let four = slice(bytes, at, 4, "a page")?.try_into().expect("it is four bytes");
        Ok(match self {
            Self::Little => u32::from_le_bytes(four),
            Self::Big => u32::from_be_bytes(four),
        } as usize)
    }
}

struct Database<'a> {
    bytes: &'a [u8],
    order: Order,
    page_size: usize,
}

/// Returns the header blobs of a database.
///
/// # Errors
/// `InvalidArgument` when it is damaged.
pub(super) fn headers(bytes: &[u8]) -> Result<Vec<Vec<u8>>> {
    let order = Order::of(bytes).ok_or_else(|| damaged("it has no mark of a hash database"))?;
    let page_size = order.u32(bytes, 20)?;
    if !(512..=65536).contains(&page_size) || !page_size.is_power_of_two() {
        return Err(damaged("the size of its pages"));
    }
    let database = Database { bytes, order, page_size };
    let mut found = Vec::new();
    for number in 1..bytes.len() / page_size {
        let page = database.page(number)?;
        if !matches!(page[25], HASH | HASH_UNSORTED) {
            continue;
        }
        found.extend(database.values(page)?);
        if found.len() > MAX_HEADERS {
            return Err(damaged("it holds too many packages"));
        }
    }
    // The first value is rpm's count of packages, four bytes long. Pages are in no order that means anything.
    found.retain(|blob| blob.len() > 16);
    found.sort();
    Ok(found)
}

impl<'a> Database<'a> {
    fn page(&self, number: usize) -> Result<&'a [u8]> {
        let at = number.checked_mul(self.page_size).ok_or_else(|| damaged("a page number"))?;
        slice(self.bytes, at, self.page_size, "a page")
    }

    /// Reads the values of a hash page: every second item; the others are keys.
    fn values(&self, page: &[u8]) -> Result<Vec<Vec<u8>>> {
        let entries = self.order.u16(page, 20)?;
        let offset = |index: usize| self.order.u16(page, PAGE_HEADER + 2 * index);
        let mut values = Vec::new();
        for index in (1..entries).step_by(2) {
            let (at, end) = (offset(index)?, offset(index - 1)?);
            let item = page.get(at..).ok_or_else(|| damaged("an item"))?;
            match item.first() {
                // An item ends where the one before it begins: pages fill from their end.
                Some(&KEY_DATA) => values.push(page.get(at + 1..end).ok_or_else(|| damaged("an item"))?.to_vec()),
                Some(&OFF_PAGE) => values.push(self.chain(self.order.u32(item, 4)?, self.order.u32(item, 8)?)?),
                _ => {}
            }
        }
        Ok(values)
    }

    /// Reads a value of `len` bytes from a chain of overflow pages.
    fn chain(&self, first: usize, len: usize) -> Result<Vec<u8>> {
        if len > self.bytes.len() {
            return Err(damaged("a value that is longer than the file"));
        }
        let (mut value, mut number) = (Vec::with_capacity(len), first);
        // A chain that is longer than its value needs would be a loop.
        for _ in 0..=len / (self.page_size - PAGE_HEADER) {
            if number == 0 || value.len() >= len {
                break;
            }
            let page = self.page(number)?;
            if page[25] != OVERFLOW {
                return Err(damaged("a chain that leads to another kind of page"));
            }
            let rest = (len - value.len()).min(self.page_size - PAGE_HEADER);
            value.extend_from_slice(&page[PAGE_HEADER..PAGE_HEADER + rest]);
            number = self.order.u32(page, 16)?;
        }
        if value.len() < len {
            return Err(damaged("a value that ends early"));
        }
        Ok(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: usize = 512;

    fn put(file: &mut [u8], at: usize, bytes: &[u8]) {
        file[at..at + bytes.len()].copy_from_slice(bytes);
    }

    /// A database with one value on its hash page and one on a chain of pages.
    fn sample(small: &[u8], large: &[u8]) -> Vec<u8> {
        let mut file = vec![0; SIZE * 2];
        put(&mut file, 12, &MAGIC.to_le_bytes());
        put(&mut file, 20, &u32::try_from(SIZE).unwrap().to_le_bytes());
        let page = SIZE;
        file[page + 25] = HASH;
        put(&mut file, page + 20, &4_u16.to_le_bytes());
        let mut end = SIZE;
        let mut items: Vec<u16> = Vec::new();
        let mut item = |bytes: &[u8], file: &mut Vec<u8>| {
            end -= bytes.len();
            put(file, page + end, bytes);
            items.push(u16::try_from(end).unwrap());
        };
        item(&[KEY_DATA, 1, 0, 0, 0], &mut file);
        item(&[&[KEY_DATA], small].concat(), &mut file);
        item(&[KEY_DATA, 2, 0, 0, 0], &mut file);
        let len = u32::try_from(large.len()).unwrap().to_le_bytes();
        item(&[&[OFF_PAGE, 0, 0, 0, 2, 0, 0, 0], &len[..]].concat(), &mut file);
        for (index, at) in items.iter().enumerate() {
            put(&mut file, page + PAGE_HEADER + 2 * index, &at.to_le_bytes());
        }
        let chunks: Vec<&[u8]> = large.chunks(SIZE - PAGE_HEADER).collect();
        for (index, chunk) in chunks.iter().enumerate() {
            let mut page = vec![0; SIZE];
            page[25] = OVERFLOW;
            let next = if index + 1 < chunks.len() { u32::try_from(index + 3).unwrap() } else { 0 };
            put(&mut page, 16, &next.to_le_bytes());
            put(&mut page, PAGE_HEADER, chunk);
            file.extend(page);
        }
        file
    }

    #[test]
    fn values_are_read_from_their_page_and_from_chains() {
        let (small, large) = (vec![1; 100], vec![2; 1500]);
        let file = sample(&small, &large);
        assert!(is_hash(&file));
        assert_eq!(headers(&file).unwrap(), [small, large]);
    }

    #[test]
    fn a_chain_that_loops_or_ends_is_an_error() {
        let mut file = sample(&[1; 100], &[2; 1500]);
        let looping = SIZE * 2 + 16;
        put(&mut file, looping, &1_u32.to_le_bytes());
        assert!(headers(&file).unwrap_err().to_string().contains("another kind of page"));
        put(&mut file, looping, &0_u32.to_le_bytes());
        assert!(headers(&file).unwrap_err().to_string().contains("ends early"));
        assert!(headers(&file[..30]).is_ok_and(|found| found.is_empty()) || headers(&file[..30]).is_err());
    }
}
