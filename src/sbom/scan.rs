//! Walking a root file system and reading what tells of packages.

use std::ffi::CStr;
use std::fs::File;
use std::io::{BufReader, Read as _};
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use sha1::Digest as _;

use super::elf::Elf;
use super::language::{self, hex};
use super::os::Os;
use super::{Evidence, Gathered, Inventory, Package, apk, dpkg, rpm, text};
use crate::error::{Error, Result, ResultExt as _};
use crate::store::tree::{self, Found, Metadata, Step, Walk};
use crate::task::Cancel;

/// A file that is read as a whole may be so large.
const MAX_FILE: u64 = 64 << 20;
/// A database of rpm may be so large.
const MAX_DATABASE: u64 = 512 << 20;
/// An archive or a binary may be so large.
const MAX_BINARY: u64 = 2 << 30;
/// A copyright file may be so large.
const MAX_COPYRIGHT: u64 = 1 << 20;
/// So many notes are kept.
const MAX_NOTES: usize = 100;

/// Finds the packages in a root file system, given its directory. Blocking; takes as long as reading every directory.
///
/// # Errors
/// When a directory cannot be read, and when there are more packages than can be listed. Files that make no sense are among
/// the notes.
pub fn scan(root: &OwnedFd, cancel: &Cancel) -> Result<Inventory> {
    let mut scan = Scan { root, cancel, gathered: Gathered::default(), inventory: Inventory::default() };
    scan.inventory.os = scan.os();
    scan.system()?;
    scan.walk()?;
    let Scan { gathered, mut inventory, .. } = scan;
    inventory.packages = gathered.packages.into_values().collect();
    inventory.notes.sort();
    Ok(inventory)
}

struct Scan<'a> {
    root: &'a OwnedFd,
    cancel: &'a Cancel,
    gathered: Gathered,
    inventory: Inventory,
}

impl Scan<'_> {
    fn note(&mut self, path: &str, why: &Error) {
        if self.inventory.notes.len() < MAX_NOTES {
            self.inventory.notes.push(format!("/{path} was not read: {why}"));
        }
    }

    /// Reads a file beneath the root, where links lead within it; `None` when there is none.
    fn read(&self, path: &str, limit: u64) -> Result<Option<Vec<u8>>> {
        match open_beneath(self.root, path)? {
            Some(file) => read_whole(&file, limit).map(Some),
            None => Ok(None),
        }
    }

    fn os(&mut self) -> Option<Os> {
        ["etc/os-release", "usr/lib/os-release"].into_iter().find_map(|path| match self.read(path, MAX_COPYRIGHT) {
            Ok(bytes) => Os::parse(&text(&bytes?)),
            Err(error) => {
                self.note(path, &error);
                None
            }
        })
    }

    /// Takes what a file tells of, or notes why it tells nothing.
    fn take(&mut self, path: &str, bytes: &[u8], packages: Result<Vec<Package>>) -> Result<()> {
        match packages {
            Ok(packages) if packages.is_empty() => Ok(()),
            Ok(packages) => {
                let path = format!("/{path}");
                let sha1 = hex(&sha1::Sha1::digest(bytes));
                let sha256 = hex(&sha2::Sha256::digest(bytes));
                self.gathered.add(&path, packages)?;
                self.inventory.evidence.insert(path, Evidence { sha1, sha256 });
                Ok(())
            }
            Err(error) => {
                self.note(path, &error);
                Ok(())
            }
        }
    }

    /// Reads the databases of the system's package managers.
    fn system(&mut self) -> Result<()> {
        let os = self.inventory.os.clone();
        self.database("var/lib/dpkg/status", |scan, bytes| Ok(scan.debian(&text(bytes))))?;
        for path in self.status_files() {
            self.database(&path, |scan, bytes| Ok(scan.debian(&text(bytes))))?;
        }
        for path in ["lib/apk/db/installed", "usr/lib/apk/db/installed"] {
            self.database(path, |_, bytes| Ok(apk::installed(&text(bytes), os.as_ref())))?;
        }
        for path in rpm::PLACES {
            match self.read(path, MAX_DATABASE) {
                Ok(None) => {}
                Ok(Some(bytes)) => {
                    let packages = rpm::database(bytes.clone(), os.as_ref());
                    self.take(path, &bytes, packages)?;
                    break;
                }
                Err(error) => self.note(path, &error),
            }
        }
        Ok(())
    }

    fn database(&mut self, path: &str, read: impl FnOnce(&Self, &[u8]) -> Result<Vec<Package>>) -> Result<()> {
        match self.read(path, MAX_FILE) {
            Ok(None) => Ok(()),
            Ok(Some(bytes)) => {
                let packages = read(self, &bytes);
                self.take(path, &bytes, packages)
            }
            Err(error) => {
                self.note(path, &error);
                Ok(())
            }
        }
    }

    /// Lists `status.d`, where images without dpkg keep a file for each package.
    fn status_files(&mut self) -> Vec<String> {
        const DIR: &str = "var/lib/dpkg/status.d";
        let names = open_dir_beneath(self.root, DIR).and_then(|dir| match dir {
            Some(dir) => tree::list(&dir).context(|| "list the directory"),
            None => Ok(Vec::new()),
        });
        match names {
            Ok(names) => {
                let names = names.iter().filter_map(|name| name.name.to_str().ok());
                names.filter(|name| !name.ends_with(".md5sums")).map(|name| format!("{DIR}/{name}")).collect()
            }
            Err(error) => {
                self.note(DIR, &error);
                Vec::new()
            }
        }
    }

    fn debian(&self, status: &str) -> Vec<Package> {
        let mut packages = dpkg::status(status, self.inventory.os.as_ref());
        for package in &mut packages {
            let path = format!("usr/share/doc/{}/copyright", package.purl.name);
            // Most packages share the file of another by a link; a missing one says nothing.
            let copyright = self.read(&path, MAX_COPYRIGHT).ok().flatten();
            package.licence = copyright.and_then(|bytes| dpkg::licence(&text(&bytes)));
        }
        packages
    }

    fn walk(&mut self) -> Result<()> {
        let root = tree::open_dir(self.root, c".").context(|| "open the root file system")?;
        let mut walk = Walk::new(root)?;
        while let Some(step) = walk.step()? {
            match step {
                Step::Enter(..) => self.cancel.check()?,
                Step::Pass(found) => self.file(&found)?,
                Step::Leave => {}
            }
        }
        Ok(())
    }

    fn file(&mut self, found: &Found) -> Result<()> {
        let Ok(path) = std::str::from_utf8(&found.path) else { return Ok(()) };
        if let Some(reader) = language::reader(path) {
            let Some(file) = self.open(found) else { return Ok(()) };
            return match read_whole(&file, MAX_FILE) {
                Ok(bytes) => self.take(path, &bytes, reader(path, &bytes)),
                Err(error) => {
                    self.note(path, &error);
                    Ok(())
                }
            };
        }
        let binary = !language::is_archive(path);
        let executable =
            || Metadata::at(&found.parent, &found.name).is_ok_and(|file| file.mode & 0o111 != 0 && file.size > 64);
        if binary && (path.contains(".so") || path.ends_with(".sh") || !executable()) {
            return Ok(());
        }
        let Some(file) = self.open(found) else { return Ok(()) };
        let packages = if binary { compiled(&file) } else { language::archive(path, BufReader::new(&file)) };
        match packages {
            Ok(packages) if packages.is_empty() => Ok(()),
            Ok(packages) => self.take_binary(path, &file, packages),
            Err(error) => {
                self.note(path, &error);
                Ok(())
            }
        }
    }

    fn take_binary(&mut self, path: &str, file: &File, packages: Vec<Package>) -> Result<()> {
        let evidence = hash(file, self.cancel).context(|| format!("read /{path}"))?;
        let path = format!("/{path}");
        self.gathered.add(&path, packages)?;
        self.inventory.evidence.insert(path, evidence);
        Ok(())
    }

    /// Opens a regular file that the walk came to.
    fn open(&mut self, found: &Found) -> Option<File> {
        match open_regular(&found.parent, &found.name) {
            Ok(file) => file,
            Err(error) => {
                self.note(&String::from_utf8_lossy(&found.path), &error);
                None
            }
        }
    }
}

/// Reads what compilers leave in a binary.
fn compiled(file: &File) -> Result<Vec<Package>> {
    let Some(elf) = Elf::open(file) else { return Ok(Vec::new()) };
    if let Some(section) = elf.section(b".go.buildinfo") {
        return language::build_info(&section);
    }
    match elf.section(b".dep-v0") {
        Some(section) => language::auditable(&section),
        None => Ok(Vec::new()),
    }
}

/// Hashes a file in pieces: a binary may be large.
fn hash(mut file: &File, cancel: &Cancel) -> Result<Evidence> {
    use std::io::Seek as _;
    let (mut sha1, mut sha256) = (sha1::Sha1::new(), sha2::Sha256::new());
    file.rewind().context(|| "rewind")?;
    let mut buffer = vec![0; 1 << 20];
    let mut total = 0;
    loop {
        cancel.check()?;
        let read = file.read(&mut buffer).context(|| "read")?;
        total += read as u64;
        if read == 0 || total > MAX_BINARY {
            break;
        }
        sha1.update(&buffer[..read]);
        sha256.update(&buffer[..read]);
    }
    Ok(Evidence { sha1: hex(&sha1.finalize()), sha256: hex(&sha256.finalize()) })
}

/// Opens a regular file; `None` for anything else.
fn open_regular(dir: impl AsFd, name: &CStr) -> Result<Option<File>> {
    match tree::open_file(dir, name) {
        Ok(file) => regular(file.into()),
        // A link, a socket, or what is gone.
        Err(Errno::LOOP | Errno::NXIO | Errno::NOENT) => Ok(None),
        Err(errno) => Err(errno).context(|| "open"),
    }
}

fn regular(file: File) -> Result<Option<File>> {
    let metadata = file.metadata().context(|| "stat")?;
    if metadata.len() > MAX_BINARY {
        return Err(Error::invalid(format!("it is larger than {} MiB", MAX_BINARY >> 20)));
    }
    Ok(metadata.is_file().then_some(file))
}

fn open_beneath(root: &OwnedFd, path: &str) -> Result<Option<File>> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    match tree::openat2(root, path, flags, Mode::empty(), ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS) {
        Ok(file) => regular(file.into()),
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::NXIO) => Ok(None),
        Err(errno) => Err(errno).context(|| "open"),
    }
}

fn open_dir_beneath(root: &OwnedFd, path: &str) -> Result<Option<OwnedFd>> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::DIRECTORY;
    match tree::openat2(root, path, flags, Mode::empty(), ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS) {
        Ok(dir) => Ok(Some(dir)),
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
        Err(errno) => Err(errno).context(|| "open"),
    }
}

fn read_whole(file: &File, limit: u64) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes).context(|| "read")?;
    if bytes.len() as u64 > limit {
        return Err(Error::invalid(format!("it is larger than {} MiB", limit >> 20)));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use proptest::prelude::*;

    use super::*;

    fn put(root: &Path, path: &str, content: &[u8]) {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    fn look(root: &Path) -> Inventory {
        scan(&tree::open_root(root).unwrap(), &Cancel::new()).unwrap()
    }

    #[test]
    fn packages_of_all_sorts_are_found_with_their_files() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        put(root, "usr/lib/os-release", b"ID=debian\nVERSION_ID=12\n");
        fs::create_dir(root.join("etc")).unwrap();
        std::os::unix::fs::symlink("/usr/lib/os-release", root.join("etc/os-release")).unwrap();
        put(root, "var/lib/dpkg/status", b"Package: a\nStatus: install ok installed\nVersion: 1\n");
        put(root, "var/lib/dpkg/status.d/b", b"Package: b\nVersion: 2\n");
        put(root, "var/lib/dpkg/status.d/b.md5sums", b"x");
        put(root, "usr/share/doc/a/copyright", b"Format: https://x/copyright-format/1.0/\n\nLicense: Expat\n");
        put(root, "app/Cargo.lock", b"[[package]]\nname = \"c\"\nversion = \"3\"\n");
        put(root, "app/sub/Cargo.lock", b"[[package]]\nname = \"c\"\nversion = \"3\"\n");
        let found = look(root);
        let purls: Vec<String> = found.packages.iter().map(|package| package.purl.to_string()).collect();
        assert_eq!(
            purls,
            ["pkg:cargo/c@3", "pkg:deb/debian/a@1?distro=debian-12", "pkg:deb/debian/b@2?distro=debian-12"]
        );
        assert_eq!(found.packages[0].found_in, ["/app/Cargo.lock", "/app/sub/Cargo.lock"]);
        assert_eq!(found.packages[1].licence.as_deref(), Some("Expat"));
        assert_eq!(found.evidence.len(), 4);
        assert!(found.notes.is_empty(), "{:?}", found.notes);
    }

    #[test]
    fn nothing_outside_the_root_is_read_and_nonsense_is_noted() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        put(dir.path(), "outside", b"Package: secret\nVersion: 1\n");
        put(&root, "app/Cargo.lock", b"nonsense = [");
        put(&root, "app/package-lock.json", &[0xff; 100]);
        put(&root, "app/lib.jar", b"PK");
        fs::create_dir_all(root.join("var/lib/dpkg")).unwrap();
        std::os::unix::fs::symlink("../../../../outside", root.join("var/lib/dpkg/status")).unwrap();
        std::os::unix::fs::symlink(dir.path().join("outside"), root.join("app/requirements.txt")).unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, root.join("app/go.mod"), rustix::fs::FileType::Fifo, Mode::RWXU, 0)
            .unwrap();
        let found = look(&root);
        assert_eq!(found.packages, []);
        let noted: Vec<&str> = found.notes.iter().map(|note| note.split(' ').next().unwrap()).collect();
        assert_eq!(noted, ["/app/Cargo.lock", "/app/lib.jar", "/app/package-lock.json"]);
    }

    /// Bytes that look a little like what the readers know, so that they come further than the first check.
    fn hostile() -> impl Strategy<Value = Vec<u8>> {
        let pieces: Vec<&'static [u8]> = vec![
            b"Package: a\nVersion: 1\n\n",
            b"P:\nV:\n\n",
            b"[[package]]\nname = \"",
            b"{\"packages\": {\"node_modules/",
            b"\"@a@:\n  version",
            b"packages:\n  /@",
            b"  '\xc3\xa9@1(",
            b"require (\n",
            b"GEM\n  specs:\n    a (",
            b"s.name = \"",
            b"sha512-AAAA",
            b"PK\x05\x06\0\0\0\0\x01\0\x01\0",
            b"PK\x01\x02",
            b"RpmP\0\0\0\0\0\0\0\0\x01\0\0\0",
            b"SQLite format 3\0",
            b"\x61\x15\x06\0",
            b"\xff Go buildinf:\x08\x02",
            b"\xff\xff\xff\xff",
            b"==",
            b"\n",
            b"\"",
        ];
        let piece = prop_oneof![
            proptest::sample::select(pieces).prop_map(<[u8]>::to_vec),
            proptest::collection::vec(any::<u8>(), 0..40),
            "[ -~\n\u{e9}]{0,20}".prop_map(String::into_bytes),
        ];
        proptest::collection::vec(piece, 0..12).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #[test]
        fn whatever_a_file_holds_its_reader_comes_to_an_end(bytes in hostile()) {
            let names = [
                "Cargo.lock", "package-lock.json", "yarn.lock", "pnpm-lock.yaml", "node_modules/a/package.json", "uv.lock",
                "Pipfile.lock", "a.dist-info/METADATA", "requirements.txt", "go.mod", "Gemfile.lock",
                "specifications/a.gemspec", "composer.lock", "META-INF/maven/a/b/pom.properties",
            ];
            for name in names {
                let reader = language::reader(name).unwrap();
                for package in reader(name, &bytes).into_iter().flatten() {
                    let _ = package.purl.to_string();
                }
            }
            let _ = language::archive("a-1.jar", std::io::Cursor::new(&bytes));
            let _ = language::build_info(&bytes);
            let _ = language::auditable(&bytes);
            let _ = rpm::database(bytes.clone(), None);
            let _ = dpkg::status(&text(&bytes), None);
            let _ = dpkg::licence(&text(&bytes));
            let _ = apk::installed(&text(&bytes), None);
            let _ = crate::sbom::licence::expression(&text(&bytes));
        }
    }
}
