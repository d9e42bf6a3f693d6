//! A package's header as rpm stores it: an index of tags and a block of data, in network byte order.

use super::super::os::Os;
use super::super::{Package, Purl, text};
use super::{be32, damaged, slice};
use crate::error::Result;

/// A header with more tags is refused.
const MAX_TAGS: usize = 1 << 16;

mod tag {
    pub(super) const NAME: u32 = 1000;
    pub(super) const VERSION: u32 = 1001;
    pub(super) const RELEASE: u32 = 1002;
    pub(super) const EPOCH: u32 = 1003;
    pub(super) const VENDOR: u32 = 1011;
    pub(super) const LICENSE: u32 = 1014;
    pub(super) const ARCH: u32 = 1022;
    pub(super) const SOURCE: u32 = 1044;
}

/// Reads a header; `None` for the keys that rpm keeps among the packages.
///
/// # Errors
/// `InvalidArgument` when it is damaged.
pub(super) fn package(blob: &[u8], os: Option<&Os>) -> Result<Option<Package>> {
    let (tags, data_len) = (be32(blob, 0, "a header")? as usize, be32(blob, 4, "a header")? as usize);
    if tags > MAX_TAGS {
        return Err(damaged("a header has too many tags"));
    }
    let index = slice(blob, 8, tags * 16, "the index of a header")?;
    let data = slice(blob, 8 + tags * 16, data_len, "the data of a header")?;
    let find = |wanted: u32| -> Result<Option<&[u8]>> {
        for entry in index.chunks_exact(16) {
            if be32(entry, 0, "a tag")? == wanted {
                return Ok(data.get(be32(entry, 8, "a tag")? as usize..));
            }
        }
        Ok(None)
    };
    let string = |wanted: u32| -> Result<Option<String>> {
        let bytes = find(wanted)?.map(|bytes| bytes.split(|byte| *byte == 0).next().unwrap_or_default());
        Ok(bytes.map(|bytes| text(&bytes[..bytes.len().min(4096)]).into_owned()))
    };
    let name = string(tag::NAME)?.ok_or_else(|| damaged("a header without a name"))?;
    if name == "gpg-pubkey" {
        return Ok(None);
    }
    let (version, release) = (string(tag::VERSION)?.unwrap_or_default(), string(tag::RELEASE)?.unwrap_or_default());
    let epoch = find(tag::EPOCH)?.map(|bytes| be32(bytes, 0, "an epoch")).transpose()?;
    let full = if release.is_empty() { version } else { format!("{version}-{release}") };
    let purl = Purl::new("rpm", os.map_or("", |os| os.id.as_str()), &name, &full)
        .with("arch", string(tag::ARCH)?.unwrap_or_default())
        .with("distro", os.map(Os::distro).unwrap_or_default())
        .with("epoch", epoch.filter(|epoch| *epoch > 0).map(|epoch| epoch.to_string()).unwrap_or_default())
        .with("upstream", string(tag::SOURCE)?.unwrap_or_default());
    let mut package = Package::new(purl).with_licence(string(tag::LICENSE)?);
    package.supplier = string(tag::VENDOR)?.filter(|vendor| !vendor.is_empty());
    Ok(Some(package))
}

/// Writes a header, for tests of the formats that hold one.
#[cfg(test)]
pub(super) fn sample(name: &str) -> Vec<u8> {
    let strings = [
        (tag::NAME, name),
        (tag::VERSION, "7.61"),
        (tag::RELEASE, "3.el8"),
        (tag::LICENSE, "MIT"),
        (tag::ARCH, "x86_64"),
    ];
    let (mut index, mut data) = (Vec::new(), Vec::new());
    let mut entry = |tag: u32, kind: u32, at: usize| {
        for number in [tag, kind, u32::try_from(at).unwrap(), 1] {
            index.extend(number.to_be_bytes());
        }
    };
    for (tag, value) in strings {
        entry(tag, 6, data.len());
        data.extend(value.as_bytes());
        data.push(0);
    }
    data.resize(data.len().next_multiple_of(4), 0);
    entry(tag::EPOCH, 4, data.len());
    data.extend(2_u32.to_be_bytes());
    let mut blob = Vec::new();
    blob.extend(u32::try_from(strings.len() + 1).unwrap().to_be_bytes());
    blob.extend(u32::try_from(data.len()).unwrap().to_be_bytes());
    blob.extend(index);
    blob.extend(data);
    blob
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_says_name_version_and_licence() {
        let os = Os { id: "centos".to_owned(), version: "8".to_owned(), name: String::new() };
        let curl = package(&sample("curl"), Some(&os)).unwrap().unwrap();
        assert_eq!(curl.purl.to_string(), "pkg:rpm/centos/curl@7.61-3.el8?arch=x86_64&distro=centos-8&epoch=2");
        assert_eq!(curl.licence.as_deref(), Some("MIT"));
        assert_eq!(package(&sample("gpg-pubkey"), None).unwrap(), None);
    }

    #[test]
    fn a_damaged_header_is_an_error() {
        let whole = sample("curl");
        for len in 0..whole.len() {
            assert!(package(&whole[..len], None).is_err(), "{len}");
        }
        let mut huge = whole;
        huge[..4].copy_from_slice(&u32::MAX.to_be_bytes());
        assert!(package(&huge, None).is_err());
    }
}
