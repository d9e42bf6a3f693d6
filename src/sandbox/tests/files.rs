//! The file system of a sandbox: root, binds, memory, files given as content, mount points.

use std::os::unix::fs::MetadataExt as _;

use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};

use super::*;

/// A mount on the host that goes with the test.
struct HostMount(PathBuf);

impl HostMount {
    fn tmpfs(path: PathBuf) -> Self {
        fs::create_dir_all(&path).unwrap();
        rustix::mount::mount("tmpfs", &path, "tmpfs", MountFlags::empty(), None).unwrap();
        Self(path)
    }
}

impl Drop for HostMount {
    fn drop(&mut self) {
        rustix::mount::unmount(&self.0, UnmountFlags::DETACH).unwrap();
    }
}

fn bind(target: &str, source: &Path, recursive: bool, access: Access) -> Mount {
    let source = Source::Bind { source: open_path(source), recursive, propagation: Propagation::Private };
    Mount { target: target.to_owned(), source, access }
}

#[test]
fn privileged_a_read_only_root_refuses_writing_but_its_tmpfs_does_not() {
    if !is_root() {
        return;
    }
    let fixture = Fixture::new();
    let mut spec =
        fixture.shell("touch /x 2>/dev/null || echo refused; touch /tmp/x /dev/shm/x && echo written; ls /made");
    spec.readonly_rootfs = true;
    spec.mounts.push(Mount {
        target: "/tmp".to_owned(),
        source: Source::Tmpfs(Tmpfs::default()),
        access: Access::ReadWrite,
    });
    spec.mounts.push(Mount {
        target: "/made/for/it".to_owned(),
        source: Source::Tmpfs(Tmpfs::default()),
        access: Access::ReadWrite,
    });
    assert_eq!(run(spec).lines(), ["refused", "written", "for"]);
}

#[test]
fn privileged_mounts_are_named_as_mount_and_df_show_them_elsewhere() {
    if !is_root() {
        return;
    }
    let fixture = Fixture::new();
    let script = "cut -d' ' -f1,2 /proc/mounts | grep -E ' /(dev|dev/pts|dev/shm|proc|sys)$' | sort";
    let expected = ["devpts /dev/pts", "proc /proc", "sysfs /sys", "tmpfs /dev", "tmpfs /dev/shm"];
    assert_eq!(run(fixture.shell(script)).lines(), expected);
}

#[test]
fn privileged_a_tmpfs_has_the_size_mode_and_flags_it_is_given() {
    if !is_root() {
        return;
    }
    let fixture = Fixture::new();
    let script = "stat -c %a /small; head -c 100000 /dev/zero > /small/x || echo full; grep ' /small ' /proc/mounts | cut -d' ' -f4 | tr , '\\n' | grep -E '^(rw|nosuid|noexec|nodev)'; \
                  grep ' /dev/shm ' /proc/mounts | grep -o size=1024k";
    let mut spec = fixture.shell(script);
    let options = Tmpfs { size_bytes: Some(65536), mode: 0o750, ..Tmpfs::default() };
    spec.mounts.push(Mount { target: "/small".to_owned(), source: Source::Tmpfs(options), access: Access::ReadWrite });
    spec.shm_size_bytes = 1 << 20;
    assert_eq!(run(spec).lines(), ["750", "full", "rw", "nosuid", "nodev", "noexec", "size=1024k"]);
}

#[test]
fn privileged_a_read_only_bind_is_read_only_down_to_its_submounts() {
    if !is_root() {
        return;
    }
    let fixture = Fixture::new();
    let data = fixture.path().join("data");
    fs::create_dir_all(&data).unwrap();
    let _below = HostMount::tmpfs(data.join("below"));
    fs::write(data.join("below/file"), "content").unwrap();
    let script = "cat /data/below/file && echo; touch /data/x || echo refused; touch /data/below/x || echo refused";
    let mut spec = fixture.shell(script);
    spec.mounts.push(bind("/data", &data, true, Access::ReadOnly));
    assert_eq!(run(spec).lines(), ["content", "refused", "refused"]);

    let mut spec = fixture.shell(script);
    spec.mounts.push(bind("/data", &data, true, Access::ReadOnlyTop));
    assert_eq!(run(spec).lines(), ["content", "refused"]);

    let mut spec = fixture.shell("ls /data/below");
    spec.mounts.push(bind("/data", &data, false, Access::ReadWrite));
    assert_eq!(run(spec).lines(), [""; 0]);
    assert!(data.join("below/x").exists() && !data.join("x").exists());
}

#[test]
fn privileged_later_mounts_of_the_host_appear_below_a_slave_bind_only() {
    if !is_root() {
        return;
    }
    let fixture = Fixture::new();
    let shared = HostMount::tmpfs(fixture.path().join("shared"));
    rustix::mount::mount_change(&shared.0, MountPropagationFlags::SHARED).unwrap();
    let mut spec = fixture.shell("echo ready; until test -e /slave/late/file; do sleep 0.01; done; ls /private/late");
    for (target, propagation) in [("/slave", Propagation::Slave), ("/private", Propagation::Private)] {
        let source = Source::Bind { source: open_path(&shared.0), recursive: true, propagation };
        spec.mounts.push(Mount { target: target.to_owned(), source, access: Access::ReadWrite });
    }
    let mut sandbox = spawn(spec, Stdio::Pipes { stdin: false }).unwrap();
    let late = HostMount::tmpfs(shared.0.join("late"));
    fs::write(late.0.join("file"), "").unwrap();
    let streams = sandbox.take_streams();
    assert_eq!(read(streams.stdout), "ready\n");
    assert_eq!(sandbox.wait_blocking().unwrap().code(), 0);
}

#[test]
fn privileged_a_file_given_as_content_is_there_with_its_mode_and_owner() {
    if !is_root() {
        return;
    }
    let fixture = Fixture::new();
    let mut spec = fixture.shell("cat /run/secrets/token && echo; stat -c '%a %u:%g' /run/secrets/token; echo x > /run/secrets/token || echo refused; cat /etc/hosts");
    let source = Source::File { content: b"s3cret".to_vec(), mode: 0o400, uid: 1000, gid: 29 };
    spec.mounts.push(Mount { target: "/run/secrets/token".to_owned(), source, access: Access::ReadOnly });
    spec.mounts.push(file("/etc/hosts", "127.0.0.1 localhost\n", 0o644));
    let output = run(spec);
    assert_eq!(output.lines(), ["s3cret", "400 1000:29", "refused", "127.0.0.1 localhost"]);
    assert_eq!(fs::read(fixture.root().join("run/secrets/token")).unwrap(), b"", "only an empty mount point stays");
}

#[test]
fn privileged_mount_points_that_were_made_can_be_removed_again() {
    if !is_root() {
        return;
    }
    let fixture = Fixture::new();
    let before = fs::metadata(fixture.root()).unwrap();
    let mut spec = fixture.shell("touch /used/by-the-process 2>/dev/null; true");
    spec.mounts.push(file("/etc/resolv.conf", "x", 0o644));
    spec.mounts.push(file("/run/a/b", "x", 0o644));
    let mut sandbox = spawn(spec, Stdio::Null).unwrap();
    let stubs = sandbox.take_stubs();
    sandbox.wait_blocking().unwrap();
    // proc, dev, sys, etc/resolv.conf, run, run/a, run/a/b
    assert_eq!(stubs.len(), 7, "{stubs:?}");
    stubs.remove(open_path(&fixture.root()).as_fd()).unwrap();
    let mut names: Vec<_> = fs::read_dir(fixture.root()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["bin", "etc", "root", "tmp"]);
    assert!(!fixture.root().join("etc/resolv.conf").exists());
    let after = fs::metadata(fixture.root()).unwrap();
    assert_eq!((before.mtime(), before.mtime_nsec()), (after.mtime(), after.mtime_nsec()));
}

#[test]
fn privileged_a_mount_point_behind_links_of_the_image_stays_in_the_container() {
    if !is_root() {
        return;
    }
    let fixture = Fixture::new();
    let outside = fixture.path().join("outside");
    fs::create_dir(&outside).unwrap();
    symlink(&outside, fixture.root().join("data")).unwrap();
    symlink("../../../../../../../../etc", fixture.root().join("up")).unwrap();
    symlink("/proc/1/root", fixture.root().join("magic")).unwrap();
    fs::remove_dir_all(fixture.root().join("etc")).unwrap();
    symlink("/elsewhere", fixture.root().join("etc")).unwrap();
    let mut spec = fixture.shell("cat /data/file /up/file /elsewhere/file");
    spec.process.user = User::Ids(UserIds { uid: 0, gid: 0, groups: vec![0], home: "/".to_owned() });
    spec.mounts.push(file("/data/file", "one\n", 0o644));
    spec.mounts.push(file("/up/file", "two\n", 0o644));
    assert_eq!(run(spec).lines(), ["one", "two", "two"]);
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);

    let mut spec = fixture.shell("true");
    spec.process.user = User::Ids(UserIds { uid: 0, gid: 0, groups: vec![0], home: "/".to_owned() });
    spec.mounts.push(file("/magic/file", "x", 0o644));
    let error = spawn(spec, Stdio::Null).unwrap_err();
    assert!(error.to_string().contains("/magic/file"), "{error}");
}

#[test]
fn privileged_a_mount_below_another_mount_is_made_in_that_one() {
    if !is_root() {
        return;
    }
    let fixture = Fixture::new();
    let data = fixture.path().join("data");
    fs::create_dir_all(&data).unwrap();
    symlink("data", fixture.root().join("link")).unwrap();
    let mut spec = fixture.shell("cat /data/deep/file; grep -c ' /data' /proc/mounts");
    // Given in the wrong order, as maps of mounts are.
    spec.mounts.push(file("/link/deep/file", "found\n", 0o644));
    spec.mounts.push(bind("/data", &data, true, Access::ReadWrite));
    assert_eq!(run(spec).lines(), ["found", "2"]);
    assert!(data.join("deep/file").is_file());
}

#[test]
fn privileged_a_part_of_a_detached_mount_is_mounted_and_links_stay_within() {
    if !is_root() {
        return;
    }
    let fixture = Fixture::new();
    let layer = fixture.path().join("layer");
    fs::create_dir_all(layer.join("a/b")).unwrap();
    fs::write(layer.join("a/b/file"), "part\n").unwrap();
    symlink("/a", layer.join("link")).unwrap();
    symlink("../../../../../../etc", layer.join("up")).unwrap();
    let part = |subpath: &str, access| Mount {
        target: "/part".to_owned(),
        source: Source::Detached { mount: detached(&layer), subpath: subpath.to_owned() },
        access,
    };
    let mut spec = fixture.shell("cat /part/file; touch /part/x || echo refused");
    spec.mounts.push(part("link/b", Access::ReadOnly));
    assert_eq!(run(spec).lines(), ["part", "refused"]);
    fs::remove_dir(fixture.root().join("part")).unwrap();
    let mut spec = fixture.shell("cat /part");
    spec.mounts.push(part("/a/b/file", Access::ReadWrite));
    assert_eq!(run(spec).lines(), ["part"]);
    fs::remove_file(fixture.root().join("part")).unwrap();
    let mut spec = fixture.shell("ls /part");
    spec.mounts.push(part("", Access::ReadWrite));
    assert_eq!(run(spec).lines(), ["a", "link", "up"]);
    let mut spec = fixture.shell("true");
    spec.mounts.push(part("up/passwd", Access::ReadWrite));
    let error = spawn(spec, Stdio::Null).unwrap_err();
    assert_eq!(exit_code(&error), 127, "{error}");
}

#[test]
fn privileged_a_directory_bound_over_a_file_is_refused_in_dockers_words() {
    if !is_root() {
        return;
    }
    let fixture = Fixture::new();
    let mut spec = fixture.shell("true");
    spec.mounts.push(bind("/etc/passwd", fixture.path(), true, Access::ReadWrite));
    let error = spawn(spec, Stdio::Null).unwrap_err();
    assert!(error.to_string().contains("Are you trying to mount a directory onto a file (or vice-versa)?"), "{error}");
    assert_eq!(exit_code(&error), 127);
}

#[test]
fn privileged_a_mount_of_the_callers_replaces_a_usual_one() {
    if !is_root() {
        return;
    }
    let fixture = Fixture::new();
    let data = fixture.path().join("data");
    fs::create_dir_all(&data).unwrap();
    fs::write(data.join("mine"), "").unwrap();
    let mut spec = fixture.shell("ls /dev/shm; test -e /dev/null && echo null");
    spec.mounts.push(bind("/dev/shm/", &data, true, Access::ReadWrite));
    assert_eq!(run(spec).lines(), ["mine", "null"]);
    let mut spec = fixture.shell("ls /dev");
    spec.mounts.push(bind("/dev", &data, true, Access::ReadWrite));
    assert_eq!(run(spec).lines(), ["mine"]);
}
