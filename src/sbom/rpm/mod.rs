//! RPM packages: the header blobs in rpm's database, whichever of its three formats that has.

mod bdb;
mod header;
mod ndb;
mod sqlite;

use super::Package;
use super::os::Os;
use crate::error::{Error, Result};

/// Where rpm keeps its database, the newer places first.
pub(super) const PLACES: &[&str] = &[
    "usr/lib/sysimage/rpm/rpmdb.sqlite",
    "usr/lib/sysimage/rpm/Packages.db",
    "usr/lib/sysimage/rpm/Packages",
    "var/lib/rpm/rpmdb.sqlite",
    "var/lib/rpm/Packages.db",
    "var/lib/rpm/Packages",
];

/// So many packages a database may hold.
const MAX_HEADERS: usize = 100_000;

/// Reads a database, telling its format by its first bytes.
///
/// # Errors
/// `InvalidArgument` when it is damaged or of no known format.
pub(super) fn database(bytes: Vec<u8>, os: Option<&Os>) -> Result<Vec<Package>> {
    let blobs = if bytes.starts_with(b"SQLite format 3\0") {
        sqlite::headers(bytes)?
    } else if bytes.starts_with(b"RpmP") {
        ndb::headers(&bytes)?
    } else if bdb::is_hash(&bytes) {
        bdb::headers(&bytes)?
    } else {
        return Err(Error::invalid("it is no rpm database (SQLite, ndb or Berkeley DB)"));
    };
    blobs.iter().filter_map(|blob| header::package(blob, os).transpose()).collect()
}

fn damaged(what: &str) -> Error {
    Error::invalid(format!("the database is damaged: {what}"))
}

/// Returns a slice of untrusted bytes.
fn slice<'a>(bytes: &'a [u8], at: usize, len: usize, what: &str) -> Result<&'a [u8]> {
    at.checked_add(len).and_then(|end| bytes.get(at..end)).ok_or_else(|| damaged(what))
}

fn le32(bytes: &[u8], at: usize, what: &str) -> Result<u32> {
    let four = slice(bytes, at, 4, what)?;
    Ok(u32::from_le_bytes(four.try_into().expect("it is four bytes")))
}

fn be32(bytes: &[u8], at: usize, what: &str) -> Result<u32> {
    let four = slice(bytes, at, 4, what)?;
    Ok(u32::from_be_bytes(four.try_into().expect("it is four bytes")))
}
