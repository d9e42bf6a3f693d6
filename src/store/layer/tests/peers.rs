//! What other programs make of our tars, and we of theirs.

use std::io::Write as _;
use std::process::{Command, Stdio};

use super::*;

/// Runs a program on some input and returns what it writes.
pub(super) fn pipe(program: &str, args: &[&str], input: &[u8]) -> Vec<u8> {
    let mut command = Command::new(program);
    if program != "cat" && args.iter().all(|arg| !arg.starts_with("-C")) {
        command.arg("-c");
    }
    let mut child = command
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{program}: {error}"));
    let mut stdin = child.stdin.take().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || stdin.write_all(input).unwrap());
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{program} failed");
        output.stdout
    })
}

/// A tree with everything a tar of either program holds.
fn sample(dir: &Path) {
    let tree = Tree::at(dir);
    tree.dir("d").file("d/a", "a").link("d/b", "d/a").symlink("link", "d/a").symlink("s".repeat(90), &"t".repeat(200));
    tree.fifo("pipe").mode("d/a", 0o4755).xattr("d/a", "user.note", b"n").file("large", vec![9; 400_000]);
    let long = "n".repeat(200);
    tree.dir(&long).file(format!("{long}/{}", "f".repeat(200)), "deep");
    std::fs::write(tree.path(crate::store::tests::views::bytes(b"\xff\xfe")), "raw").unwrap();
    tree.time(crate::store::tests::views::bytes(b"\xff\xfe"), 1_600_000_000).time(".", 1);
    let sparse = std::fs::File::create(tree.path("sparse")).unwrap();
    sparse.set_len(4 << 20).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&sparse, b"data", 2 << 20).unwrap();
    tree.time("sparse", 1_600_000_001);
    if is_root() {
        tree.owner("d/b", 1234, 5_000_000).mode("d/a", 0o4755).time("d/a", 1_600_000_002).time("d", 1_600_000_003);
        tree.node("tty", rustix::fs::FileType::CharacterDevice, (5, 0));
        tree.xattr("large", "security.capability", b"\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
    }
}

fn gnu_tar(args: &[&str], dir: &Path) {
    let status = Command::new("tar").args(args).arg("-C").arg(dir).arg(".").status().expect("tar is installed");
    assert!(status.success());
}

#[test]
fn gnu_tar_unpacks_what_we_pack() {
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (dir.path().join("from"), dir.path().join("to"));
    std::fs::create_dir(&from).unwrap();
    std::fs::create_dir(&to).unwrap();
    sample(&from);
    let tar = dir.path().join("layer.tar");
    std::fs::write(&tar, pack_dir(&from)).unwrap();
    let tar = tar.to_str().unwrap();
    let status = Command::new("tar")
        .args(["--xattrs", "--xattrs-include=*", "--numeric-owner", "-xpf", tar, "-C"])
        .arg(&to)
        .status()
        .expect("tar is installed");
    assert!(status.success());
    assert_eq!(describe(&to)[1..], describe(&from)[1..]);
}

#[test]
fn we_unpack_what_gnu_tar_packs_in_any_of_its_formats() {
    let dir = tempfile::tempdir().unwrap();
    let from = dir.path().join("from");
    std::fs::create_dir(&from).unwrap();
    sample(&from);
    let tar = dir.path().join("x.tar");
    let path = tar.to_str().unwrap();
    let formats: &[&[&str]] = &[
        &["--format=gnu"],
        &["--format=gnu", "--sparse"],
        &["--format=oldgnu", "--sparse"],
        &["--format=posix", "--xattrs", "--xattrs-include=*"],
        &["--format=posix", "--xattrs", "--xattrs-include=*", "--sparse"],
        &["--format=posix", "--sparse", "--sparse-version=0.0"],
        &["--format=posix", "--sparse", "--sparse-version=0.1"],
        &["--format=posix", "--sparse", "--sparse-version=1.0", "-z"],
    ];
    for format in formats {
        gnu_tar(&[*format, &["--numeric-owner", "-cf", path]].concat(), &from);
        let sandbox = Sandbox::new();
        sandbox.unpack(&std::fs::read(&tar).unwrap()).unwrap();
        let strip = |lines: Vec<String>| -> Vec<String> {
            let all = lines.into_iter().skip(1);
            if format.contains(&"--xattrs") {
                return all.collect();
            }
            all.map(|line| line.replace(" user.note=n", "").split(" security.").next().unwrap().to_owned()).collect()
        };
        assert_eq!(strip(sandbox.describe()), strip(describe(&from)), "{format:?}");
        let meta = std::fs::metadata(sandbox.root().join("sparse")).unwrap();
        assert!(std::os::unix::fs::MetadataExt::blocks(&meta) < 1024, "{format:?}: the hole was filled");
    }
}
