//! What there is to tell about the host.

use std::path::Path;

/// Facts about the host, read when they are asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// The distribution's name with its version, such as `Debian GNU/Linux 13 (trixie)`.
    pub operating_system: String,
    /// The distribution's version.
    pub os_version: String,
    /// Processors that this process may use.
    pub cpus: usize,
    /// Memory in bytes.
    pub memory_bytes: u64,
    /// The version of control groups whose controllers are used, 1 or 2.
    pub cgroup_version: u8,
    /// Whether IPv4 packets are forwarded.
    pub forwards_ipv4: bool,
    /// The kind of file system below the root directory, as `/proc/mounts` has it.
    pub backing_fs: String,
}

impl Host {
    /// Reads the facts; what cannot be read is empty or 0. `root` is the root directory. Blocking, small files only.
    #[must_use]
    pub fn read(root: &Path) -> Self {
        let release = ["/etc/os-release", "/usr/lib/os-release"].iter().find_map(|path| read(path)).unwrap_or_default();
        let memory_kib = read("/proc/meminfo").and_then(|text| number_after(&text, "MemTotal:")).unwrap_or(0);
        Self {
            operating_system: value(&release, "PRETTY_NAME").unwrap_or_else(|| "Linux".to_owned()),
            os_version: value(&release, "VERSION_ID").unwrap_or_default(),
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            memory_bytes: memory_kib * 1024,
            cgroup_version: crate::sandbox::cgroup_version(),
            forwards_ipv4: read("/proc/sys/net/ipv4/ip_forward").is_some_and(|text| text.trim() == "1"),
            backing_fs: read("/proc/self/mounts").and_then(|mounts| mount_type(&mounts, root)).unwrap_or_default(),
        }
    }
}

fn read(path: &str) -> Option<String> {
    std::fs::read_to_string(path).ok()
}

/// A variable of `os-release(5)`, without its quotes.
fn value(release: &str, name: &str) -> Option<String> {
    let line = release.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='))?;
    Some(line.trim_matches(['"', '\'']).to_owned())
}

fn number_after(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name))?.split_whitespace().next()?.parse().ok()
}

/// The type of the file system that is mounted the deepest above a path.
fn mount_type(mounts: &str, path: &Path) -> Option<String> {
    let mounts = mounts.lines().filter_map(|line| {
        let mut fields = line.split(' ').skip(1);
        Some((fields.next()?, fields.next()?))
    });
    let above = mounts.filter(|(at, _)| path.starts_with(at));
    above.max_by_key(|(at, _)| at.len()).map(|(_, kind)| kind.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn facts_are_found_in_the_files_that_have_them() {
        let release = "NAME=\"Debian GNU/Linux\"\nPRETTY_NAME=\"Debian GNU/Linux 13 (trixie)\"\nVERSION_ID=\"13\"\n";
        assert_eq!(value(release, "PRETTY_NAME").as_deref(), Some("Debian GNU/Linux 13 (trixie)"));
        assert_eq!(value(release, "VERSION"), None);
        assert_eq!(number_after("MemTotal:       8039496 kB\n", "MemTotal:"), Some(8_039_496));
        let mounts = "/dev/a / ext4 rw 0 0\ntmpfs /var/lib tmpfs rw 0 0\nproc /proc proc rw 0 0\n";
        assert_eq!(mount_type(mounts, Path::new("/var/lib/kiln")).as_deref(), Some("tmpfs"));
        assert_eq!(mount_type(mounts, Path::new("/var/library")).as_deref(), Some("ext4"));
    }
}
