//! What is installed in a root file system, and the SPDX document that says so.
//!
//! [`scan`] walks a root file system and reads the databases of package managers, lock files and the metadata of installed
//! language packages; [`spdx`] writes an SPDX 2.3 document about what was found. The order of everything depends on names
//! only, so the same files give the same document. Nothing is executed and no network is asked.
//!
//! The files are untrusted: each is opened beneath the root, sizes, counts and depths are bounded, and a file that makes no
//! sense is named among the notes instead of failing the scan.

mod apk;
mod dpkg;
mod elf;
mod language;
mod licence;
mod os;
mod purl;
mod rpm;
mod scan;
pub mod spdx;
mod zip;

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

pub use os::Os;
pub use purl::Purl;
pub use scan::scan;

use crate::error::{Error, Result};

/// So many packages are listed at most.
const MAX_PACKAGES: usize = 200_000;

/// What a scan found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inventory {
    /// The operating system, if the file system says which.
    pub os: Option<Os>,
    /// The packages, sorted by their package URLs.
    pub packages: Vec<Package>,
    /// The files that told of them, by path.
    pub evidence: BTreeMap<String, Evidence>,
    /// What could not be read, and why; sorted.
    pub notes: Vec<String>,
}

/// A package that is installed, or that a lock file names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Package {
    /// Names it, with its version.
    pub purl: Purl,
    /// The licence in the words of its metadata.
    pub licence: Option<String>,
    /// Who distributes it, in the words of its metadata.
    pub supplier: Option<String>,
    /// Digests of the package's archive: the algorithm in SPDX's spelling, and hexadecimal digits.
    pub checksums: Vec<(&'static str, String)>,
    /// The files that tell of it, as absolute paths; sorted.
    pub found_in: Vec<String>,
}

impl Package {
    fn new(purl: Purl) -> Self {
        Self { purl, licence: None, supplier: None, checksums: Vec::new(), found_in: Vec::new() }
    }

    fn with_licence(mut self, licence: Option<String>) -> Self {
        self.licence = licence.map(|licence| licence.trim().to_owned()).filter(|licence| !licence.is_empty());
        self
    }

    /// Takes over what another finding of the same package knows.
    fn absorb(&mut self, other: Self) {
        self.licence = self.licence.take().or(other.licence);
        self.supplier = self.supplier.take().or(other.supplier);
        for checksum in other.checksums {
            if !self.checksums.contains(&checksum) {
                self.checksums.push(checksum);
            }
        }
        for path in other.found_in {
            if !self.found_in.contains(&path) {
                self.found_in.push(path);
            }
        }
        self.found_in.sort();
        self.checksums.sort();
    }
}

/// A file that tells of packages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Evidence {
    /// SHA-1 of its content, which SPDX demands, in hexadecimal digits.
    pub sha1: String,
    /// SHA-256 of its content.
    pub sha256: String,
}

/// Packages while they are gathered: findings of the same package are put together.
#[derive(Debug, Default)]
struct Gathered {
    packages: BTreeMap<Purl, Package>,
}

impl Gathered {
    /// Adds what a file told of.
    ///
    /// # Errors
    /// `InvalidArgument` when there are too many packages to list.
    fn add(&mut self, path: &str, packages: Vec<Package>) -> Result<()> {
        for mut package in packages {
            if package.purl.name.is_empty() {
                continue;
            }
            package.found_in = vec![path.to_owned()];
            let full = self.packages.len() >= MAX_PACKAGES;
            match self.packages.entry(package.purl.clone()) {
                Entry::Occupied(mut known) => known.get_mut().absorb(package),
                Entry::Vacant(_) if full => {
                    return Err(Error::invalid(format!("more than {MAX_PACKAGES} packages")));
                }
                Entry::Vacant(place) => drop(place.insert(package)),
            }
        }
        Ok(())
    }
}

/// Reads a text leniently; what is no UTF-8 is replaced.
fn text(bytes: &[u8]) -> std::borrow::Cow<'_, str> {
    String::from_utf8_lossy(bytes)
}
