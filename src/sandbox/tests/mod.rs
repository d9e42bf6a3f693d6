//! Tests of real sandboxes: root, a small root file system of busybox, and the kernel. Nothing is mocked.
//!
//! They also run in a virtual machine with cgroup v2 (`tests/vm/run`), which has busybox and this test program only.

mod exec;
mod files;
mod isolation;
mod limits;
mod process;
mod syscalls;

use std::fs;
use std::io::Read as _;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::fs::CWD;
use rustix::mount::OpenTreeFlags;

use super::*;

/// Says whether this process may make sandboxes; if not, says so aloud.
fn is_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("skipped: making sandboxes needs root");
    }
    root
}

const BUSYBOX: &str = "/bin/busybox";

const APPLETS: &[&str] = &[
    "awk", "cat", "chmod", "cp", "cut", "dd", "echo", "env", "false", "find", "grep", "head", "hostname", "id", "kill",
    "ln", "ls", "mkdir", "mknod", "mount", "mv", "ps", "pwd", "readlink", "rm", "rmdir", "sed", "sh", "sleep", "sort",
    "stat", "stty", "tail", "tee", "test", "touch", "tr", "true", "tty", "umount", "uname", "unshare", "wc", "xargs",
    "yes",
];

/// A directory with a root file system, and whatever else a test puts beside it.
struct Fixture {
    dir: tempfile::TempDir,
}

impl Fixture {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        for name in ["bin", "etc", "tmp", "root"] {
            fs::create_dir_all(root.join(name)).unwrap();
        }
        // The directory above is for its owner only, which stops other users on their way to the root.
        for path in [dir.path(), &root] {
            fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
        }
        fs::set_permissions(root.join("tmp"), fs::Permissions::from_mode(0o1777)).unwrap();
        fs::copy(BUSYBOX, root.join("bin/busybox")).expect("busybox-static is installed");
        for applet in APPLETS {
            symlink("busybox", root.join("bin").join(applet)).unwrap();
        }
        fs::write(root.join("etc/passwd"), "root:x:0:0::/root:/bin/sh\napp:x:1000:1000::/home/app:/bin/sh\n").unwrap();
        fs::write(root.join("etc/group"), "root:x:0:\napp:x:1000:\naudio:x:29:app\n").unwrap();
        Self { dir }
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    fn root(&self) -> PathBuf {
        self.dir.path().join("root")
    }

    fn spec(&self, args: &[&str]) -> Spec {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let id = format!("test-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        Spec::docker(id, detached(&self.root()), process(args))
    }

    fn shell(&self, script: &str) -> Spec {
        self.spec(&["/bin/sh", "-c", script])
    }

    /// Runs a script and returns what it printed.
    fn run(&self, script: &str) -> Output {
        run(self.shell(script))
    }
}

fn process(args: &[&str]) -> Process {
    Process::docker(args.iter().map(ToString::to_string).collect())
}

/// A detached mount of a directory.
fn detached(path: &Path) -> OwnedFd {
    rustix::mount::open_tree(CWD, path, OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC).unwrap()
}

fn open_path(path: &Path) -> OwnedFd {
    rustix::fs::open(path, rustix::fs::OFlags::PATH | rustix::fs::OFlags::CLOEXEC, rustix::fs::Mode::empty()).unwrap()
}

/// What a process printed and how it ended.
#[derive(Debug)]
struct Output {
    text: String,
    errors: String,
    exit: Exit,
}

impl Output {
    /// The lines it printed, after it has ended well.
    #[track_caller]
    fn lines(&self) -> Vec<&str> {
        assert_eq!(self.exit.code(), 0, "{self:?}");
        self.text.lines().collect()
    }
}

fn run(spec: Spec) -> Output {
    collect(spawn(spec, Stdio::Pipes { stdin: false }).unwrap())
}

fn collect(mut sandbox: Sandbox) -> Output {
    let streams = sandbox.take_streams();
    let (text, errors) = (read(streams.stdout), read(streams.stderr));
    Output { text, errors, exit: sandbox.wait_blocking().unwrap() }
}

fn read(fd: Option<OwnedFd>) -> String {
    let mut bytes = Vec::new();
    fs::File::from(fd.unwrap()).read_to_end(&mut bytes).unwrap();
    String::from_utf8(bytes).unwrap()
}

fn file(target: &str, content: &str, mode: u32) -> Mount {
    let source = Source::File { content: content.as_bytes().to_vec(), mode, uid: 0, gid: 0 };
    Mount { target: target.to_owned(), source, access: Access::ReadWrite }
}

/// Waits for a state, and says what it was instead when that takes too long.
#[track_caller]
fn wait_until<T: std::fmt::Display>(mut reached: impl FnMut() -> bool, state: impl Fn() -> T) {
    let begin = std::time::Instant::now();
    while !reached() {
        assert!(begin.elapsed().as_secs() < 20, "{}", state());
        std::thread::yield_now();
    }
}
