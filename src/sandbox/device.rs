//! Devices: nodes in `/dev` and rules of who may use what.
//!
//! How rules are enforced is the cgroup's business: a file on v1, a BPF program on v2.

use std::fmt;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::Path;
use std::str::FromStr;

use crate::error::{Error, Result, ResultExt as _};

/// Character or block device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A character device.
    Character,
    /// A block device.
    Block,
}

/// A device node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// The absolute path of the node in the sandbox.
    pub path: String,
    /// Its kind.
    pub kind: Kind,
    /// Its major number.
    pub major: u32,
    /// Its minor number.
    pub minor: u32,
    /// The node's permission bits.
    pub mode: u32,
    /// The node's owner.
    pub uid: u32,
    /// The node's group.
    pub gid: u32,
    /// What may be done with it.
    pub access: DeviceAccess,
}

/// What may be done with a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DeviceAccess {
    /// Opened for reading.
    pub read: bool,
    /// Opened for writing.
    pub write: bool,
    /// A node of it made.
    pub mknod: bool,
}

impl DeviceAccess {
    /// Everything.
    pub const ALL: Self = Self { read: true, write: true, mknod: true };
    const MKNOD: Self = Self { read: false, write: false, mknod: true };
}

impl FromStr for DeviceAccess {
    type Err = Error;

    /// Reads letters of `rwm`, in any order.
    fn from_str(text: &str) -> Result<Self> {
        if text.is_empty() || !text.chars().all(|c| "rwm".contains(c)) {
            return Err(Error::invalid(format!("device access {text:?}: expected letters of \"rwm\"")));
        }
        Ok(Self { read: text.contains('r'), write: text.contains('w'), mknod: text.contains('m') })
    }
}

impl fmt::Display for DeviceAccess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (granted, letter) in [(self.read, "r"), (self.write, "w"), (self.mknod, "m")] {
            f.write_str(if granted { letter } else { "" })?;
        }
        Ok(())
    }
}

/// Devices that may be used. What no rule allows is denied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Rule {
    /// Which kind.
    pub kind: Kind,
    /// The major number; `None` is any.
    pub major: Option<u32>,
    /// The minor number; `None` is any.
    pub minor: Option<u32>,
    /// What is allowed.
    pub access: DeviceAccess,
}

impl FromStr for Rule {
    type Err = Error;

    /// Reads `--device-cgroup-rule`'s form: `c 1:3 rwm`, with `*` for any number. The kind `a` of all devices is refused:
    /// that is `--privileged`.
    fn from_str(text: &str) -> Result<Self> {
        let wrong = || {
            Error::invalid(format!(
                "device rule {text:?}: expected \"<c|b> <major|*>:<minor|*> <rwm>\", as in \"c 1:3 r\""
            ))
        };
        let parts: Vec<&str> = text.split(' ').collect();
        let [kind, numbers, access] = parts[..] else { return Err(wrong()) };
        let kind = match kind {
            "c" => Kind::Character,
            "b" => Kind::Block,
            _ => return Err(wrong()),
        };
        let (major, minor) = numbers.split_once(':').ok_or_else(wrong)?;
        let number = |text: &str| match text {
            "*" => Ok(None),
            text => text.parse().map(Some).map_err(|_| wrong()),
        };
        Ok(Self { kind, major: number(major)?, minor: number(minor)?, access: access.parse()? })
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = |number: Option<u32>| number.map_or("*".to_owned(), |number| number.to_string());
        let kind = if self.kind == Kind::Character { 'c' } else { 'b' };
        write!(f, "{kind} {}:{} {}", number(self.major), number(self.minor), self.access)
    }
}

impl Device {
    /// Describes a device of the host under a path in the sandbox.
    ///
    /// # Errors
    /// `InvalidArgument` when it is no device or cannot be looked at.
    pub fn from_host(host: &Path, path: &str, access: DeviceAccess) -> Result<Self> {
        let doing = || format!("add device {}", host.display());
        let metadata = std::fs::metadata(host)
            .map_err(|error| Error::from(error).with_kind(crate::error::Kind::InvalidArgument))
            .context(doing)?;
        let kind = match metadata.file_type() {
            kind if kind.is_char_device() => Kind::Character,
            kind if kind.is_block_device() => Kind::Block,
            _ => return Err(Error::invalid("it is not a device node").context(doing())),
        };
        Ok(Self {
            path: path.to_owned(),
            kind,
            major: rustix::fs::major(metadata.rdev()),
            minor: rustix::fs::minor(metadata.rdev()),
            mode: metadata.mode() & 0o7777,
            uid: metadata.uid(),
            gid: metadata.gid(),
            access,
        })
    }

    pub(super) fn rule(&self) -> Rule {
        Rule { kind: self.kind, major: Some(self.major), minor: Some(self.minor), access: self.access }
    }
}

/// The nodes every sandbox has.
pub(super) fn standard_nodes() -> impl Iterator<Item = Device> {
    let nodes = [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];
    nodes.into_iter().map(|(name, major, minor)| Device {
        path: format!("/dev/{name}"),
        kind: Kind::Character,
        major,
        minor,
        mode: 0o666,
        uid: 0,
        gid: 0,
        access: DeviceAccess::ALL,
    })
}

/// The rules every sandbox has: any node may be made, the standard ones and terminals used (runc's list).
pub(super) fn standard_rules() -> Vec<Rule> {
    let any = |kind| Rule { kind, major: None, minor: None, access: DeviceAccess::MKNOD };
    let terminal = |major, minor| Rule { kind: Kind::Character, major: Some(major), minor, access: DeviceAccess::ALL };
    let mut rules = vec![any(Kind::Character), any(Kind::Block)];
    rules.extend(standard_nodes().map(|device| device.rule()));
    rules.extend([terminal(5, Some(1)), terminal(5, Some(2)), terminal(136, None)]);
    rules
}

/// All device nodes below the host's `/dev`, as a privileged container gets them, without terminals.
pub(super) fn host_nodes() -> Vec<Device> {
    let mut devices = Vec::new();
    collect_nodes(Path::new("/dev"), 0, &mut devices);
    devices
}

/// Nodes that vanish or cannot be read are passed over: the directory changes while it is read.
fn collect_nodes(dir: &Path, depth: u32, devices: &mut Vec<Device>) {
    const MAX_DEPTH: u32 = 8;
    const SKIPPED: [&str; 7] = ["pts", "shm", "fd", "mqueue", "console", "ptmx", "tty"];
    let Ok(entries) = std::fs::read_dir(dir) else { return };
    for entry in entries.flatten() {
        let (Ok(kind), Some(name)) = (entry.file_type(), entry.file_name().to_str().map(str::to_owned)) else {
            continue;
        };
        if depth == 0 && SKIPPED.contains(&name.as_str()) {
            continue;
        }
        let path = entry.path();
        if kind.is_dir() && depth < MAX_DEPTH {
            collect_nodes(&path, depth + 1, devices);
        } else if let (true, Some(target)) = (kind.is_char_device() || kind.is_block_device(), path.to_str()) {
            devices.extend(Device::from_host(&path, target, DeviceAccess::ALL));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_rules_are_read_and_written_as_the_kernel_does() {
        for text in ["c 1:3 rwm", "b *:* m", "c 136:* rw"] {
            assert_eq!(text.parse::<Rule>().unwrap().to_string(), text);
        }
        for text in ["a *:* rwm", "c 1:3", "c 1 r", "c 1:x r", "c 1:3 rx", "c 1:3 "] {
            assert!(text.parse::<Rule>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_device_of_the_host_is_described() {
        let null = Device::from_host(Path::new("/dev/null"), "/dev/nothing", DeviceAccess::ALL).unwrap();
        assert_eq!((null.kind, null.major, null.minor, null.mode), (Kind::Character, 1, 3, 0o666));
        let error = Device::from_host(Path::new("/etc/passwd"), "/dev/x", DeviceAccess::ALL).unwrap_err();
        assert_eq!(error.to_string(), "add device /etc/passwd: it is not a device node");
    }
}
