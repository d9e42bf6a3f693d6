//! The seccomp filter in force: a program in the sandbox makes calls and prints what it was answered.

use super::*;
use crate::sys::probe::errno;

const EPERM: i32 = 1;
const ENOSYS: i32 = 38;
const EINVAL: i32 = 22;
const PROBES: &str = "probe: ";

/// Runs in the sandbox.
#[test]
#[ignore = "makes the system calls for other tests, inside a sandbox"]
fn probe() {
    let calls = [
        ("getpid", libc::SYS_getpid, [0, 0, 0]),
        ("mount", libc::SYS_mount, [0, 0, 0]),
        ("unshare", libc::SYS_unshare, [0, 0, 0]),
        ("clone3", libc::SYS_clone3, [0, 0, 0]),
        // CLONE_NEWUSER, and nothing but an invalid signal.
        ("clone-user", libc::SYS_clone, [0x1000_0000, 0, 0]),
        ("clone-sighand", libc::SYS_clone, [0x800, 0, 0]),
        ("personality", libc::SYS_personality, [0xffff_ffff, 0, 0]),
        ("personality-bsd", libc::SYS_personality, [0x6, 0, 0]),
        ("socket-unix", libc::SYS_socket, [1, 1, 0]),
        ("socket-alg", libc::SYS_socket, [38, 5, 0]),
        ("socket-vsock", libc::SYS_socket, [40, 1, 0]),
        ("keyctl", libc::SYS_keyctl, [0, 0, 0]),
        ("bpf", libc::SYS_bpf, [0xffff, 0, 0]),
        ("ptrace", libc::SYS_ptrace, [0xffff, 1, 0]),
        ("reboot", libc::SYS_reboot, [0, 0, 0]),
        ("chroot", libc::SYS_chroot, [0, 0, 0]),
        ("io_uring_setup", libc::SYS_io_uring_setup, [0, 0, 0]),
        ("future", 4000, [0, 0, 0]),
        ("x32", 0x4000_0000, [0, 0, 0]),
    ];
    for (name, number, arguments) in calls {
        println!("{PROBES}{name} {}", errno(number, arguments));
    }
}

fn probe_with(change: impl FnOnce(&mut Spec)) -> std::collections::HashMap<String, i32> {
    let fixture = Fixture::new();
    let program = std::env::current_exe().unwrap();
    let test = "sandbox::tests::syscalls::probe";
    let mut spec = fixture.spec(&["/probe", "--exact", test, "--ignored", "--nocapture", "--test-threads", "1"]);
    let source = Source::Bind { source: open_path(&program), recursive: false, propagation: Propagation::Private };
    spec.mounts.push(Mount { target: "/probe".to_owned(), source, access: Access::ReadOnly });
    change(&mut spec);
    let output = run(spec);
    assert_eq!(output.exit.code(), 0, "{output:?}");
    let line = |line: &str| {
        let (name, errno) = line.split(PROBES).nth(1)?.split_once(' ')?;
        Some((name.to_owned(), errno.parse().unwrap()))
    };
    output.text.lines().filter_map(line).collect()
}

#[test]
fn privileged_the_default_profile_answers_as_dockers_does() {
    if !is_root() {
        return;
    }
    for no_new_privileges in [false, true] {
        let answers = probe_with(|spec| spec.process.no_new_privileges = no_new_privileges);
        for name in [
            "mount",
            "unshare",
            "clone-user",
            "personality-bsd",
            "socket-alg",
            "socket-vsock",
            "keyctl",
            "bpf",
            "reboot",
            "io_uring_setup",
        ] {
            assert_eq!(answers[name], EPERM, "{name}");
        }
        for name in ["getpid", "personality", "socket-unix"] {
            assert_eq!(answers[name], 0, "{name}");
        }
        for name in ["clone3", "future", "x32"] {
            assert_eq!(answers[name], ENOSYS, "{name}");
        }
        assert_eq!(answers["clone-sighand"], EINVAL, "the kernel answers");
        assert_ne!(answers["ptrace"], EPERM, "allowed since Linux 4.8");
        assert_eq!(answers["chroot"], 14, "CAP_SYS_CHROOT is among the defaults, so the kernel looks at the path");
    }
}

#[test]
fn privileged_a_capability_opens_the_calls_that_need_it() {
    if !is_root() {
        return;
    }
    let answers = probe_with(|spec| {
        spec.process.capabilities =
            Capabilities::docker_default().adjust(&["SYS_ADMIN".to_owned()], &["SYS_CHROOT".to_owned()]).unwrap();
    });
    assert_eq!([answers["unshare"], answers["clone3"], answers["chroot"]], [0, EINVAL, EPERM]);
    assert_ne!(answers["mount"], EPERM);
}

#[test]
fn privileged_an_unconfined_process_asks_the_kernel() {
    if !is_root() {
        return;
    }
    let answers = probe_with(|spec| spec.process.seccomp = Seccomp::Unconfined);
    assert_eq!([answers["unshare"], answers["clone3"], answers["personality-bsd"]], [0, EINVAL, 0]);
    assert_eq!(answers["future"], ENOSYS);
}

#[test]
fn privileged_a_profile_of_the_users_is_in_force() {
    if !is_root() {
        return;
    }
    let text = r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[
        {"names":["no_such_call","reboot"],"action":"SCMP_ACT_ERRNO","errnoRet":77},
        {"names":["socket"],"action":"SCMP_ACT_ERRNO","args":[{"index":0,"value":38,"op":"SCMP_CMP_EQ"}]},
        {"names":["personality"],"action":"SCMP_ACT_ERRNO","errnoRet":5,"excludes":{"caps":["CAP_SYS_ADMIN"]}},
        {"names":["unshare"],"action":"SCMP_ACT_ERRNO","includes":{"minKernel":"99.0"}}]}"#;
    let profile = Arc::new(Profile::from_json(text).unwrap());
    let answers = probe_with(|spec| spec.process.seccomp = Seccomp::Profile(profile));
    assert_eq!([answers["reboot"], answers["socket-alg"], answers["socket-unix"]], [77, 1, 0]);
    assert_eq!([answers["personality"], answers["unshare"]], [5, 0]);
}
