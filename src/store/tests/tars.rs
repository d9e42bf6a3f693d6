//! Tars in tests, also those that no decent program writes.

use tar::{EntryType, Header};

/// A tar that is put together entry by entry. Every entry belongs to root, is 0644 or 0755 and has the time 1.
#[derive(Clone, Debug, Default)]
pub(in crate::store) struct Tar {
    bytes: Vec<u8>,
}

/// What an entry is: its path, and what differs from the usual.
#[derive(Clone, Debug)]
pub(in crate::store) struct Item<'a> {
    pub flag: u8,
    pub path: &'a [u8],
    pub link: &'a [u8],
    pub data: &'a [u8],
    /// What the header says of the size, if that is not the length of the data.
    pub size: Option<u64>,
    pub mode: u32,
    pub device: (u32, u32),
}

impl<'a> Item<'a> {
    pub(in crate::store) fn new(flag: u8, path: &'a str) -> Self {
        let mode = if flag == b'5' { 0o755 } else { 0o644 };
        Self { flag, path: path.as_bytes(), link: b"", data: b"", size: None, mode, device: (0, 0) }
    }
}

impl Tar {
    pub(in crate::store) fn new() -> Self {
        Self::default()
    }

    pub(in crate::store) fn file(self, path: &str, data: impl AsRef<[u8]>) -> Self {
        self.item(&Item { data: data.as_ref(), ..Item::new(b'0', path) })
    }

    pub(in crate::store) fn dir(self, path: &str) -> Self {
        self.item(&Item::new(b'5', path))
    }

    pub(in crate::store) fn symlink(self, path: &str, target: &str) -> Self {
        self.item(&Item { link: target.as_bytes(), mode: 0o777, ..Item::new(b'2', path) })
    }

    pub(in crate::store) fn link(self, path: &str, target: &str) -> Self {
        self.item(&Item { link: target.as_bytes(), ..Item::new(b'1', path) })
    }

    /// An empty file, as whiteouts are.
    pub(in crate::store) fn mark(self, path: &str) -> Self {
        self.item(&Item { mode: 0, ..Item::new(b'0', path) })
    }

    /// The PAX header of the entry that follows.
    pub(in crate::store) fn pax(self, records: &[(&str, &[u8])]) -> Self {
        let mut data = Vec::new();
        for (key, value) in records {
            let rest = key.len() + value.len() + 3;
            let len = (rest + 1..).find(|len| rest + len.to_string().len() == *len).unwrap();
            data.extend_from_slice(format!("{len} {key}=").as_bytes());
            data.extend_from_slice(value);
            data.push(b'\n');
        }
        self.item(&Item { data: &data, ..Item::new(b'x', "PaxHeaders.0/x") })
    }

    pub(in crate::store) fn item(self, item: &Item<'_>) -> Self {
        let mut header = Header::new_gnu();
        {
            let gnu = header.as_gnu_mut().unwrap();
            gnu.name[..item.path.len()].copy_from_slice(item.path);
            gnu.linkname[..item.link.len()].copy_from_slice(item.link);
        }
        header.set_entry_type(EntryType::new(item.flag));
        header.as_mut_bytes()[156] = item.flag;
        header.set_mode(item.mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1);
        header.set_size(item.size.unwrap_or(item.data.len() as u64));
        if matches!(item.flag, b'3' | b'4') {
            header.set_device_major(item.device.0).unwrap();
            header.set_device_minor(item.device.1).unwrap();
        }
        self.header(header).data(item.data)
    }

    /// A header as it is, with its sum made right.
    pub(in crate::store) fn header(mut self, mut header: Header) -> Self {
        header.set_cksum();
        self.bytes.extend_from_slice(header.as_bytes());
        self
    }

    /// Data, filled up to whole blocks.
    pub(in crate::store) fn data(mut self, data: &[u8]) -> Self {
        self.bytes.extend_from_slice(data);
        self.bytes.resize(self.bytes.len().next_multiple_of(512), 0);
        self
    }

    /// What was put together so far, without an end.
    pub(in crate::store) fn open(self) -> Vec<u8> {
        self.bytes
    }

    pub(in crate::store) fn finish(mut self) -> Vec<u8> {
        self.bytes.extend_from_slice(&[0; 1024]);
        self.bytes
    }
}
