//! Which control group hierarchies the host has, and which controllers live where.
//!
//! Three layouts occur: v2 only, v1 only, and hybrid (controllers on v1 beside a v2 tree without any). They differ only in
//! what each hierarchy holds, so there is one description for all. Nothing is mounted or changed here.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// A resource that groups account for or limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Controller {
    Cpu,
    CpuAccount,
    CpuSet,
    Memory,
    Pids,
    Devices,
    Freezer,
    Io,
}

/// The version of a hierarchy's interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Version {
    V1,
    V2,
}

/// A mounted hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Hierarchy {
    pub(super) version: Version,
    pub(super) mount: PathBuf,
    pub(super) controllers: Vec<Controller>,
}

impl Controller {
    fn on_v1(name: &str) -> Option<Self> {
        Some(match name {
            "cpu" => Self::Cpu,
            "cpuacct" => Self::CpuAccount,
            "cpuset" => Self::CpuSet,
            "memory" => Self::Memory,
            "pids" => Self::Pids,
            "devices" => Self::Devices,
            "freezer" => Self::Freezer,
            "blkio" => Self::Io,
            _ => return None,
        })
    }

    fn on_v2(name: &str) -> Option<Self> {
        Some(match name {
            "cpu" => Self::Cpu,
            "cpuset" => Self::CpuSet,
            "memory" => Self::Memory,
            "pids" => Self::Pids,
            "io" => Self::Io,
            _ => return None,
        })
    }

    /// The name in `cgroup.subtree_control`; `None` for what v2 has without a controller.
    pub(super) fn v2_name(self) -> Option<&'static str> {
        match self {
            Self::Cpu => Some("cpu"),
            Self::CpuSet => Some("cpuset"),
            Self::Memory => Some("memory"),
            Self::Pids => Some("pids"),
            Self::Io => Some("io"),
            Self::CpuAccount | Self::Devices | Self::Freezer => None,
        }
    }
}

/// Returns the hierarchies mounted in this mount namespace, v1 first. They are looked for once they are there.
///
/// Named v1 hierarchies (systemd's) and controllers that Kiln has no use for are left out. A hierarchy that is mounted twice is
/// listed once.
pub(super) fn detect() -> &'static [Hierarchy] {
    static FOUND: OnceLock<Vec<Hierarchy>> = OnceLock::new();
    if let Some(found) = FOUND.get() {
        return found;
    }
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let found = parse(&mounts, |mount| std::fs::read_to_string(mount.join("cgroup.controllers")).unwrap_or_default());
    if found.is_empty() { &[] } else { FOUND.get_or_init(|| found) }
}

fn parse(mountinfo: &str, v2_controllers: impl Fn(&Path) -> String) -> Vec<Hierarchy> {
    let mut found: Vec<Hierarchy> = Vec::new();
    for line in mountinfo.lines() {
        let Some((mount, kind, options)) = fields(line) else { continue };
        let (version, controllers) = match kind {
            "cgroup" => (Version::V1, options.split(',').filter_map(Controller::on_v1).collect::<Vec<_>>()),
            "cgroup2" => {
                let names = v2_controllers(Path::new(&mount));
                (Version::V2, names.split_whitespace().filter_map(Controller::on_v2).collect())
            }
            _ => continue,
        };
        let is_useless = version == Version::V1 && controllers.is_empty();
        let is_known = found.iter().any(|other| other.version == version && other.controllers == controllers);
        if !is_useless && !is_known {
            found.push(Hierarchy { version, mount: PathBuf::from(mount), controllers });
        }
    }
    found.sort_by_key(|hierarchy| hierarchy.version == Version::V2);
    found
}

/// The mount point, the type and the super block options of a line of `mountinfo(5)`.
fn fields(line: &str) -> Option<(String, &str, &str)> {
    let (place, rest) = line.split_once(" - ")?;
    let mount = place.split(' ').nth(4)?;
    let mut rest = rest.split(' ');
    let kind = rest.next()?;
    let options = rest.nth(1)?;
    Some((unescape(mount), kind, options))
}

/// Space, tab, newline and backslash are written as three octal digits.
fn unescape(text: &str) -> String {
    ["\\040", "\\011", "\\012"]
        .iter()
        .zip([" ", "\t", "\n"])
        .fold(text.to_owned(), |text, (from, to)| text.replace(from, to))
        .replace("\\134", "\\")
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
        24 30 0:22 / /proc rw - proc proc rw\n\
        31 30 0:26 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
        32 31 0:27 / /sys/fs/cgroup/cpu,cpuacct rw shared:7 - cgroup cgroup rw,cpu,cpuacct\n\
        33 31 0:28 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd\n\
        34 31 0:29 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw,nsdelegate\n\
        35 31 0:30 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
        36 31 0:30 / /mnt/a\\040b rw - cgroup cgroup rw,memory\n";

    #[test]
    fn a_hybrid_layout_has_its_controllers_on_v1_beside_an_empty_v2_tree() {
        let found = parse(HYBRID, |_| String::new());
        let hierarchy = |version, mount: &str, controllers: &[Controller]| Hierarchy {
            version,
            mount: PathBuf::from(mount),
            controllers: controllers.to_vec(),
        };
        assert_eq!(
            found,
            [
                hierarchy(Version::V1, "/sys/fs/cgroup/cpu,cpuacct", &[Controller::Cpu, Controller::CpuAccount]),
                hierarchy(Version::V1, "/sys/fs/cgroup/memory", &[Controller::Memory]),
                hierarchy(Version::V2, "/sys/fs/cgroup/unified", &[]),
            ]
        );
    }

    #[test]
    fn a_v2_layout_takes_its_controllers_from_the_root_group() {
        let found = parse("30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n", |mount| {
            assert_eq!(mount, Path::new("/sys/fs/cgroup"));
            "cpuset cpu io memory hugetlb pids rdma\n".to_owned()
        });
        use Controller::{Cpu, CpuSet, Io, Memory, Pids};
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].controllers, [CpuSet, Cpu, Io, Memory, Pids]);
        assert_eq!(parse("", |_| String::new()), []);
    }

    #[test]
    fn mount_points_are_unescaped() {
        assert_eq!(unescape("/mnt/a\\040b\\134c"), "/mnt/a b\\c");
    }
}
