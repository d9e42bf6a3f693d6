//! Capabilities: their names, Docker's default set, and `--cap-add` and `--cap-drop`.
//!
//! Only sets and names; applying a set to a process is a step of the plan.

use std::fmt;

use crate::error::{Error, Result};

/// A set of capabilities, as the kernel's bit mask.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Capabilities(u64);

/// The names without `CAP_`, in the order of their numbers: `linux/capability.h`.
const NAMES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// What a container may do unless told otherwise (moby's default).
const DEFAULT: [&str; 14] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FSETID",
    "FOWNER",
    "MKNOD",
    "NET_RAW",
    "SETGID",
    "SETUID",
    "SETFCAP",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "KILL",
    "AUDIT_WRITE",
];

impl Capabilities {
    /// Administration of the system.
    pub const SYS_ADMIN: Self = Self(1 << 21);
    /// Making device nodes.
    pub const MKNOD: Self = Self(1 << 27);
    /// No capability.
    pub const NONE: Self = Self(0);

    /// Returns Docker's default set of 14.
    #[must_use]
    pub fn docker_default() -> Self {
        DEFAULT.iter().filter_map(|name| position(name)).fold(Self::NONE, |set, number| set.with(Self(1 << number)))
    }

    /// Returns all capabilities that this program and the running kernel know.
    #[must_use]
    pub fn all() -> Self {
        let last = std::fs::read_to_string("/proc/sys/kernel/cap_last_cap").ok();
        let last = last.and_then(|text| text.trim().parse::<u32>().ok()).unwrap_or(NAMES.len() as u32 - 1);
        Self(u64::MAX >> (63 - last.min(NAMES.len() as u32 - 1)))
    }

    /// Returns the set of one capability, by its name with or without `CAP_`, in any case.
    ///
    /// # Errors
    /// `InvalidArgument`, with the nearest name as a hint.
    pub fn named(name: &str) -> Result<Self> {
        let upper = name.to_ascii_uppercase();
        let bare = upper.strip_prefix("CAP_").unwrap_or(&upper);
        match position(bare) {
            Some(number) => Ok(Self(1 << number)),
            None => Err(Error::invalid(format!("unknown capability {name:?}{}", hint(bare)))),
        }
    }

    /// Returns this set with `add` added and `drop` dropped, as `--cap-add` and `--cap-drop` do: `ALL` stands for everything,
    /// and a name in `drop` wins over `ALL` in `add`, a name in `add` over `ALL` in `drop`.
    ///
    /// # Errors
    /// `InvalidArgument` for an unknown name.
    pub fn adjust(self, add: &[String], drop: &[String]) -> Result<Self> {
        let is_all = |name: &String| name.eq_ignore_ascii_case("ALL");
        let union = |names: &[String]| {
            let mut named = names.iter().filter(|name| !is_all(name)).map(|name| Self::named(name));
            named.try_fold(Self::NONE, |set, one| Ok::<_, Error>(set.with(one?)))
        };
        let (added, dropped) = (union(add)?, union(drop)?);
        Ok(match (add.iter().any(is_all), drop.iter().any(is_all)) {
            (true, _) => Self::all().without(dropped),
            (false, true) => added,
            (false, false) => self.without(dropped).with(added),
        })
    }

    /// Makes a set of the kernel's bit mask.
    #[must_use]
    pub fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// Returns the kernel's bit mask.
    #[must_use]
    pub fn bits(self) -> u64 {
        self.0
    }

    /// Says whether all of `other` is in this set.
    #[must_use]
    pub fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Returns the union.
    #[must_use]
    pub fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Returns this set without what is in `other`.
    #[must_use]
    pub fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }
}

impl fmt::Display for Capabilities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = NAMES.iter().enumerate().filter(|(number, _)| self.0 >> number & 1 == 1);
        for (at, (_, name)) in names.enumerate() {
            write!(f, "{}CAP_{name}", if at == 0 { "" } else { " " })?;
        }
        Ok(())
    }
}

fn position(bare: &str) -> Option<usize> {
    NAMES.iter().position(|name| *name == bare)
}

/// Names one that shares the most letters from the start or the end, if that is more than half.
fn hint(bare: &str) -> String {
    let common = |name: &&str| {
        let front = name.bytes().zip(bare.bytes()).take_while(|(a, b)| a == b).count();
        let back = name.bytes().rev().zip(bare.bytes().rev()).take_while(|(a, b)| a == b).count();
        front.max(back)
    };
    match NAMES.iter().max_by_key(|name| common(name)) {
        Some(name) if common(name) * 2 > bare.len() => format!(" (did you mean CAP_{name}?)"),
        _ => " (see capabilities(7) for the names)".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(list: &[&str]) -> Vec<String> {
        list.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn the_default_set_is_dockers() {
        assert_eq!(Capabilities::docker_default().bits(), 0xa804_25fb);
    }

    #[test]
    fn add_and_drop_combine_as_docker_combines_them() {
        let default = Capabilities::docker_default();
        let net_admin = Capabilities::named("net_admin").unwrap();
        let adjust = |add: &[&str], drop: &[&str]| default.adjust(&names(add), &names(drop)).unwrap();
        assert_eq!(adjust(&["NET_ADMIN"], &["ALL"]), net_admin);
        assert_eq!(adjust(&["all"], &["CAP_NET_ADMIN"]), Capabilities::all().without(net_admin));
        assert!(!adjust(&[], &["mknod"]).contains(Capabilities::named("CAP_MKNOD").unwrap()));
        assert!(adjust(&["sys_admin"], &[]).contains(Capabilities::named("SYS_ADMIN").unwrap()));
    }

    #[test]
    fn an_unknown_capability_is_refused_with_a_hint() {
        let error = Capabilities::named("CAP_NET_ADMINS").unwrap_err().to_string();
        assert_eq!(error, "unknown capability \"CAP_NET_ADMINS\" (did you mean CAP_NET_ADMIN?)");
        let error = Capabilities::default().adjust(&names(&["FROBNICATE"]), &[]).unwrap_err().to_string();
        assert!(error.contains("capabilities(7)"), "{error}");
    }
}
