//! Which platforms' programs run here: this host's, and those that the kernel hands to an emulator (`binfmt_misc`).
//!
//! Handlers are read, never registered. Only one with the flag `F` works in a sandbox: its interpreter was opened when it was
//! registered, so that it need not exist in the sandbox's files (Linux' `Documentation/admin-guide/binfmt-misc.rst`).

use std::fs::File;
use std::io::Read as _;
use std::os::fd::{AsFd as _, OwnedFd};

use kiln_graph::Platform;
use rustix::fs::{Dir, Mode, OFlags};
use rustix::mount::MountAttrFlags;

use super::view::file_system;

/// A description of a handler longer than this is none.
const MAX_BYTES: u64 = 64 << 10;

/// Where handlers are when this process may not mount what shows them.
const USUAL_PLACE: &str = "/proc/sys/fs/binfmt_misc";

/// Architectures in Go's spelling with their variants, and how their programs begin: class (1 for 32 bits, 2 for 64), byte order
/// (1 for little endian) and machine of `elf(5)`.
const ARCHITECTURES: [(&str, &[&str], u8, u8, u16); 12] = [
    ("386", &[""], 1, 1, 3),
    ("amd64", &[""], 2, 1, 62),
    ("arm", &["v7", "v6", "v5"], 1, 1, 40),
    ("arm64", &[""], 2, 1, 183),
    ("loong64", &[""], 2, 1, 258),
    ("mips", &[""], 1, 2, 8),
    ("mips64", &[""], 2, 2, 8),
    ("mips64le", &[""], 2, 1, 8),
    ("ppc64", &[""], 2, 2, 21),
    ("ppc64le", &[""], 2, 1, 21),
    ("riscv64", &[""], 2, 1, 243),
    ("s390x", &[""], 2, 2, 22),
];

/// Returns the platforms whose programs run in sandboxes here, this host's own first. Blocking; cheap.
#[must_use]
pub fn platforms() -> Vec<Platform> {
    let host = Platform::host();
    // The kernel shows this setting when it runs 32-bit programs.
    let runs_386 = host.architecture == "amd64" && std::path::Path::new("/proc/sys/abi/vsyscall32").exists();
    let handlers: Vec<Handler> = handlers().into_iter().filter(|handler| handler.fixed).collect();
    let mut platforms = vec![host];
    for (architecture, variants, class, order, machine) in ARCHITECTURES {
        let header = header(class, order, machine);
        if (architecture == "386" && runs_386) || handlers.iter().any(|handler| handler.takes(&header)) {
            platforms.extend(variants.iter().map(|variant| Platform::new("linux", architecture, variant)));
        }
    }
    platforms.dedup();
    platforms
}

/// Says what keeps programs of a platform from running here, with the next step; `None` when nothing is known to. Blocking.
#[must_use]
pub fn obstacle(platform: &Platform) -> Option<String> {
    let (host, wanted) = (Platform::host(), platform.clone().normalized());
    let runs = |known: &Platform| known.os == wanted.os && known.architecture == wanted.architecture;
    if runs(&host) || platforms().iter().any(runs) {
        return None;
    }
    let known = ARCHITECTURES.iter().find(|(architecture, ..)| *architecture == wanted.architecture);
    let here = format!("this host runs {host}");
    let Some((architecture, _, class, order, machine)) = known.filter(|_| wanted.os == "linux") else {
        return Some(format!("the step is for {wanted}, and {here}"));
    };
    let header = header(*class, *order, *machine);
    Some(match handlers().iter().find(|handler| handler.takes(&header)) {
        Some(handler) => format!(
            "the step is for {wanted}, and {here}: the emulator {} is registered without the flag F, so that it is not found in a \
             container; register it again with F (as Debian's qemu-user-static does)",
            handler.interpreter
        ),
        None => format!(
            "the step is for {wanted}, and {here} and has no emulator for {architecture}: install one, such as Debian's package \
             qemu-user-static (apt-get install qemu-user-static)"
        ),
    })
}

/// The first bytes of a program.
fn header(class: u8, order: u8, machine: u16) -> [u8; 20] {
    const EXECUTABLE: u16 = 2;
    let mut header = [0; 20];
    header[..7].copy_from_slice(&[0x7f, b'E', b'L', b'F', class, order, 1]);
    let number = |number: u16| if order == 1 { number.to_le_bytes() } else { number.to_be_bytes() };
    header[16..18].copy_from_slice(&number(EXECUTABLE));
    header[18..].copy_from_slice(&number(machine));
    header
}

/// An interpreter that the kernel starts for programs that begin in some way.
#[derive(Debug, PartialEq, Eq)]
struct Handler {
    interpreter: String,
    /// Whether it works in any root file system.
    fixed: bool,
    offset: usize,
    magic: Vec<u8>,
    mask: Vec<u8>,
}

impl Handler {
    /// Reads the kernel's description; `None` for one that is disabled or goes by the file's name.
    fn parse(text: &str) -> Option<Self> {
        let mut lines = text.lines();
        if lines.next()? != "enabled" {
            return None;
        }
        let mut handler =
            Self { interpreter: String::new(), fixed: false, offset: 0, magic: Vec::new(), mask: Vec::new() };
        for line in lines {
            match line.split_once(' ')? {
                ("interpreter", path) => path.clone_into(&mut handler.interpreter),
                ("flags:", flags) => handler.fixed = flags.contains('F'),
                ("offset", offset) => handler.offset = offset.parse().ok()?,
                ("magic", digits) => handler.magic = bytes(digits)?,
                ("mask", digits) => handler.mask = bytes(digits)?,
                _ => {}
            }
        }
        Some(handler).filter(|handler| !handler.magic.is_empty())
    }

    fn takes(&self, header: &[u8]) -> bool {
        let Some(begin) = header.get(self.offset..).and_then(|rest| rest.get(..self.magic.len())) else { return false };
        let mask = self.mask.iter().copied().chain(std::iter::repeat(0xff));
        begin.iter().zip(&self.magic).zip(mask).all(|((byte, magic), mask)| byte & mask == magic & mask)
    }
}

fn bytes(digits: &str) -> Option<Vec<u8>> {
    (0..digits.len()).step_by(2).map(|at| u8::from_str_radix(digits.get(at..at + 2)?, 16).ok()).collect()
}

/// All handlers that are enabled. A kernel without any has none, and one that does not show them neither.
fn handlers() -> Vec<Handler> {
    let Some(dir) = open() else { return Vec::new() };
    let read = |name: &std::ffi::CStr| {
        let file = rustix::fs::openat(&dir, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
        let mut text = String::new();
        File::from(file).take(MAX_BYTES).read_to_string(&mut text).ok()?;
        Some(text)
    };
    if read(c"status").is_none_or(|status| status.trim() != "enabled") {
        return Vec::new();
    }
    let Ok(entries) = Dir::read_from(&dir) else { return Vec::new() };
    let names = entries.flatten().map(|entry| entry.file_name().to_owned());
    let handlers = names.filter(|name| !matches!(name.to_bytes(), b"." | b".." | b"register" | b"status"));
    handlers.filter_map(|name| Handler::parse(&read(&name)?)).collect()
}

/// The directory of handlers. Often nothing is mounted in the usual place, so a mount of our own comes first.
fn open() -> Option<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    match file_system(c"binfmt_misc", &[], MountAttrFlags::MOUNT_ATTR_NOEXEC) {
        Ok(mount) => rustix::fs::openat(mount.as_fd(), c".", flags, Mode::empty()).ok(),
        Err(_) => rustix::fs::open(USUAL_PLACE, flags, Mode::empty()).ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ARM64: &str = "enabled\ninterpreter /usr/bin/qemu-aarch64-static\nflags: OCF\noffset 0\n\
        magic 7f454c460201010000000000000000000200b700\nmask ffffffffffffff00fffffffffffffffffeffffff\n";

    #[test]
    fn a_handler_takes_programs_of_its_architecture_only() {
        let handler = Handler::parse(ARM64).unwrap();
        assert!(handler.fixed && handler.interpreter.ends_with("aarch64-static"));
        let takes = |name: &str| {
            let (_, _, class, order, machine) = ARCHITECTURES.iter().find(|(known, ..)| *known == name).unwrap();
            handler.takes(&header(*class, *order, *machine))
        };
        assert!(takes("arm64") && !takes("amd64") && !takes("arm") && !takes("s390x"));
        assert!(!handler.takes(b"#!/bin/sh"));
    }

    #[test]
    fn what_is_disabled_or_goes_by_names_is_no_handler() {
        assert_eq!(Handler::parse(&ARM64.replace("enabled", "disabled")), None);
        assert_eq!(Handler::parse("enabled\ninterpreter /bin/x\nflags: F\nextension .jar\n"), None);
        assert_eq!(Handler::parse("enabled\ninterpreter /bin/x\nmagic 7\n"), None);
    }

    #[test]
    fn this_hosts_own_programs_run_here() {
        assert_eq!(platforms()[0], Platform::host());
        assert_eq!(obstacle(&Platform::host()), None);
        let windows = obstacle(&Platform::new("windows", "amd64", "")).unwrap();
        assert!(windows.contains("windows/amd64") && !windows.contains("qemu"), "{windows}");
    }
}
