//! What a sandbox sees of the host: namespaces, kernel file systems, devices, descriptors.

use super::*;

fn own_namespace(name: &str) -> String {
    fs::read_link(format!("/proc/self/ns/{name}")).unwrap().to_string_lossy().into_owned()
}

const PRINT_NAMESPACES: &str = "for n in pid net mnt uts ipc cgroup user; do readlink /proc/self/ns/$n; done";
const NAMES: [&str; 7] = ["pid", "net", "mnt", "uts", "ipc", "cgroup", "user"];

#[test]
fn privileged_a_command_runs_in_namespaces_of_its_own() {
    if !is_root() {
        return;
    }
    let fixture = Fixture::new();
    let mut spec = fixture.shell(&format!("{PRINT_NAMESPACES}; echo $$; hostname; cat /proc/sys/kernel/domainname"));
    spec.hostname = "box".to_owned();
    spec.domainname = "example".to_owned();
    let output = run(spec);
    let lines = output.lines();
    for (line, name) in lines.iter().zip(&NAMES[..6]) {
        assert_ne!(own_namespace(name), *line, "{name}");
    }
    assert_eq!(lines[6], own_namespace("user"));
    assert_eq!(lines[7..], ["1", "box", "example"]);
}

#[test]
fn privileged_namespaces_of_the_host_are_shared_when_asked() {
    if !is_root() {
        return;
    }
    let fixture = Fixture::new();
    let mut spec = fixture.shell(PRINT_NAMESPACES);
    spec.namespaces = Namespaces {
        network: Network::Host,
        ipc: Namespace::Host,
        pid: Namespace::Host,
        uts: Namespace::Host,
        cgroup: CgroupView::Host,
        user: None,
    };
    let output = run(spec);
    for (line, name) in output.lines().iter().zip(NAMES) {
        assert_eq!(own_namespace(name) == **line, name != "mnt", "{name}");
    }
}

#[test]
fn privileged_namespaces_of_others_are_joined_when_asked() {
    if !is_root() {
        return;
    }
    let fixture = Fixture::new();
    let other = spawn(fixture.spec(&["sleep", "1000"]), Stdio::Null).unwrap();
    let link = |name: &str| PathBuf::from(format!("/proc/{}/ns/{name}", other.pid().as_raw_nonzero()));
    let open = |name: &str| OwnedFd::from(fs::File::open(link(name)).unwrap());
    let mut spec = fixture.shell(&format!("{PRINT_NAMESPACES}; ps | grep -c '[s]leep 1000'"));
    spec.namespaces.network = Network::Join(open("net"));
    spec.namespaces.ipc = Namespace::Join(open("ipc"));
    spec.namespaces.uts = Namespace::Join(open("uts"));
    spec.namespaces.pid = Namespace::Join(open("pid"));
    let output = run(spec);
    let lines = output.lines();
    for (line, name) in lines.iter().zip(NAMES) {
        let theirs = fs::read_link(link(name)).unwrap();
        assert_eq!(theirs == Path::new(line), !["mnt", "cgroup"].contains(&name), "{name}");
    }
    assert_eq!(lines[7], "1", "the processes of the joined namespace are seen");
    // The thread that started it is back in its own namespaces.
    assert_ne!(run(fixture.shell("readlink /proc/self/ns/net")).lines()[0], lines[1]);
}

#[test]
fn privileged_loopback_is_up_and_the_only_interface() {
    if !is_root() {
        return;
    }
    let fixture = Fixture::new();
    let output = fixture.run("ls /sys/class/net; cat /sys/class/net/lo/flags");
    assert_eq!(output.lines(), ["lo", "0x9"]);
}

#[test]
fn privileged_what_tells_about_the_host_is_hidden_or_read_only() {
    if !is_root() {
        return;
    }
    let fixture = Fixture::new();
    let script = "wc -c < /proc/interrupts; wc -c < /proc/timer_list; ls /sys/firmware | wc -l; \
                  echo 1 > /proc/sys/kernel/domainname || echo refused; \
                  echo b > /proc/sysrq-trigger || echo refused; touch /proc/irq/x || echo refused; \
                  mkdir /sys/fs/x || echo refused; mkdir /sys/fs/cgroup/x || echo refused";
    let refused = ["refused"; 5];
    assert_eq!(fixture.run(script).lines(), [&["0", "0", "0"][..], &refused].concat());

    let mut spec = fixture.shell("echo changed > /proc/sys/kernel/domainname && cat /proc/sys/kernel/domainname");
    SecurityOptions::parse(&["systempaths=unconfined".to_owned()]).unwrap().apply(&mut spec);
    assert_eq!(run(spec).lines(), ["changed"]);
}

#[test]
fn privileged_a_hidden_path_in_the_image_is_hidden_too() {
    if !is_root() {
        return;
    }
    let fixture = Fixture::new();
    fs::write(fixture.root().join("secret"), "secret").unwrap();
    fs::create_dir(fixture.root().join("secrets")).unwrap();
    fs::write(fixture.root().join("secrets/one"), "secret").unwrap();
    let mut spec = fixture.shell("cat /secret; ls /secrets; touch /secrets/x || echo refused");
    spec.masked_paths.extend(["/secret", "/secrets", "/nothing/here"].map(str::to_owned));
    assert_eq!(run(spec).lines(), ["refused"]);
}

#[test]
fn privileged_dev_has_the_standard_nodes_and_links() {
    if !is_root() {
        return;
    }
    let fixture = Fixture::new();
    let output = fixture
        .run("ls /dev; stat -c '%n %a %t:%T' /dev/null /dev/full /dev/tty; for l in ptmx fd stdout; do readlink /dev/$l; done");
    let names =
        ["core", "fd", "full", "mqueue", "null", "ptmx", "pts", "random", "shm", "stderr", "stdin", "stdout", "tty"];
    let expected = [
        &names[..],
        &["urandom", "zero", "/dev/null 666 1:3", "/dev/full 666 1:7", "/dev/tty 666 5:0"],
        &["pts/ptmx", "/proc/self/fd", "/proc/self/fd/1"],
    ];
    assert_eq!(output.lines(), expected.concat());
    let output = fixture.run("echo x > /dev/null; head -c 4 /dev/zero | wc -c; head -c 4 /dev/urandom | wc -c; echo > /dev/full || echo full");
    assert_eq!(output.lines(), ["4", "4", "full"]);
}

#[test]
fn privileged_a_device_that_is_not_given_cannot_be_opened() {
    if !is_root() {
        return;
    }
    let fixture = Fixture::new();
    // 1:11 is /dev/kmsg, which every kernel has.
    let script = "mknod /tmp/kmsg c 1 11 && (exec 3< /tmp/kmsg) 2>&1 | grep -o 'Operation not permitted'";
    assert_eq!(fixture.run(script).lines(), ["Operation not permitted"]);

    let mut spec = fixture.shell("stat -c '%a %t:%T' /dev/log/host && (exec 3< /dev/log/host) && echo read; (exec 3> /dev/log/host) || echo refused");
    let access = "r".parse().unwrap();
    let device = Device::from_host(Path::new("/dev/kmsg"), "/dev/log/host", access).unwrap();
    let mode = format!("{:o} 1:b", device.mode);
    spec.devices = Devices::Listed { nodes: vec![device], rules: Vec::new() };
    // Reading the kernel's log needs a capability where the host restricts it.
    spec.process.capabilities = spec.process.capabilities.with(Capabilities::named("SYSLOG").unwrap());
    assert_eq!(run(spec).lines(), [mode.as_str(), "read", "refused"]);
}

#[test]
fn privileged_a_device_can_be_given_in_any_place() {
    if !is_root() {
        return;
    }
    let fixture = Fixture::new();
    let device = |path: &str| Device::from_host(Path::new("/dev/null"), path, DeviceAccess::ALL).unwrap();
    let mut spec = fixture.shell("stat -c %t:%T /nothing /dev/zero; echo x > /nothing && echo written");
    spec.devices = Devices::Listed { nodes: vec![device("/nothing"), device("/dev/zero")], rules: Vec::new() };
    assert_eq!(run(spec).lines(), ["1:3", "1:3", "written"]);
}

#[test]
fn privileged_a_privileged_container_has_the_hosts_devices_and_a_writable_sys() {
    if !is_root() {
        return;
    }
    let fixture = Fixture::new();
    let mut spec = fixture.shell("test -c /dev/kmsg && (exec 3< /dev/kmsg) && echo open; grep -c ' /sys sysfs rw' /proc/mounts; wc -c < /proc/sys/kernel/domainname; echo x > /proc/sys/kernel/domainname && echo written");
    spec.make_privileged();
    let output = run(spec);
    assert_eq!([output.lines()[0], output.lines()[1], output.lines()[3]], ["open", "1", "written"]);
}

#[test]
fn privileged_no_descriptor_of_the_engine_leaks() {
    if !is_root() {
        return;
    }
    // Without close-on-exec, as a careless library would have it.
    let _leak = rustix::fs::open("/", rustix::fs::OFlags::PATH, rustix::fs::Mode::empty()).unwrap();
    let fixture = Fixture::new();
    // The fourth is the directory that ls reads.
    assert_eq!(fixture.run("ls /proc/self/fd").lines(), ["0", "1", "2", "3"]);
}

#[test]
fn privileged_the_engines_program_cannot_be_executed_or_written() {
    if !is_root() {
        return;
    }
    let fixture = Fixture::new();
    let error = spawn(fixture.spec(&["/proc/self/exe"]), Stdio::Null).unwrap_err();
    assert_eq!(error.to_string(), "unable to start container process: exec: \"/proc/self/exe\": permission denied");
    assert_eq!(exit_code(&error), 126);
    // An interpreter line gets past that check. While an engine runs, its file is busy.
    fs::write(fixture.root().join("bin/trick"), "#!/proc/self/exe --list\n").unwrap();
    fs::set_permissions(fixture.root().join("bin/trick"), fs::Permissions::from_mode(0o755)).unwrap();
    symlink("/proc/self/exe", fixture.root().join("bin/link")).unwrap();
    assert!(spawn(fixture.spec(&["/bin/link"]), Stdio::Null).is_err());
    let host = open_path(Path::new("/proc/self/exe"));
    let error = rustix::fs::open(
        format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&host)),
        rustix::fs::OFlags::WRONLY,
        rustix::fs::Mode::empty(),
    );
    assert_eq!(error.unwrap_err(), rustix::io::Errno::TXTBSY);
}

/// Runs in the program that [`privileged_a_supervisor_cannot_be_overwritten_through_its_own_mount`] executes.
#[test]
#[ignore = "looks at its own program for another test"]
fn own_program_is_read_only() {
    let flags = rustix::fs::statvfs("/proc/self/exe").unwrap().f_flag;
    assert!(flags.contains(rustix::fs::StatVfsMountFlags::RDONLY));
}

#[test]
fn privileged_a_supervisor_cannot_be_overwritten_through_its_own_mount() {
    if !is_root() {
        return;
    }
    let program = own_program().unwrap();
    let test = "sandbox::tests::isolation::own_program_is_read_only";
    let status = std::process::Command::new(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&program)))
        .args(["--exact", test, "--ignored"])
        .status();
    assert!(status.unwrap().success());
}

#[test]
fn privileged_kernel_parameters_of_private_namespaces_can_be_set() {
    if !is_root() {
        return;
    }
    let fixture = Fixture::new();
    let mut spec = fixture.shell(
        "cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/net/ipv4/ping_group_range /proc/sys/kernel/msgmax",
    );
    spec.add_network_sysctls();
    spec.sysctls.push(("kernel.msgmax".to_owned(), "4096".to_owned()));
    let output = run(spec);
    assert_eq!(output.lines(), ["0", "0\t2147483647", "4096"]);

    for (name, host_network) in
        [("kernel.panic", false), ("net.ipv4.ip_forward", true), ("net.../../../etc/passwd", false)]
    {
        let mut spec = fixture.shell("true");
        spec.sysctls.push((name.to_owned(), "1".to_owned()));
        if host_network {
            spec.namespaces.network = Network::Host;
        }
        let error = spawn(spec, Stdio::Null).unwrap_err();
        assert_eq!(error.kind(), crate::error::Kind::InvalidArgument, "{error}");
        assert!(error.to_string().contains(name), "{error}");
    }
}

#[test]
fn privileged_root_of_a_user_namespace_is_nobody_special_on_the_host() {
    if !is_root() {
        return;
    }
    use std::os::unix::fs::{MetadataExt as _, chown};
    let fixture = Fixture::new();
    chown(fixture.root(), Some(100_000), Some(100_000)).unwrap();
    let script = "id -u; cat /proc/self/uid_map | tr -s ' '; touch /made; echo x > /dev/null && echo null; \
                  stat -c %u /dev/null /dev/pts /etc/hosts; cat /proc/self/cgroup | wc -l > /dev/null; \
                  grep CapEff /proc/self/status; mount -t tmpfs none /tmp 2>&1 | grep -c denied";
    let mut spec = fixture.shell(script);
    spec.namespaces.user = Some(IdMap::shifted(100_000, 65_536));
    spec.mounts.push(file("/etc/hosts", "x", 0o644));
    spec.process.oom_score_adj = Some(100);
    let output = run(spec);
    let lines = output.lines();
    assert_eq!(lines[..3], ["0", " 0 100000 65536", "null"], "{output:?}");
    assert_eq!(lines[3..6], ["0", "0", "0"]);
    assert_eq!(lines[6], "CapEff:\t00000000a80425fb");
    assert_eq!(fs::metadata(fixture.root().join("made")).unwrap().uid(), 100_000);

    let mut spec = fixture.shell("id -u; id -g; echo visible > /dev/stderr");
    spec.namespaces.user = Some(IdMap::shifted(100_000, 65_536));
    spec.namespaces.network = Network::Host;
    spec.process.user = User::Named { name: "app".to_owned(), groups: Vec::new() };
    let output = run(spec);
    assert_eq!((output.lines(), output.errors.as_str()), (vec!["1000", "1000"], "visible\n"));
}

#[test]
fn privileged_an_unmapped_user_is_refused() {
    if !is_root() {
        return;
    }
    let fixture = Fixture::new();
    let mut spec = fixture.shell("true");
    spec.namespaces.user = Some(IdMap::shifted(100_000, 1000));
    spec.process.user = User::Named { name: "app".to_owned(), groups: Vec::new() };
    let error = spawn(spec, Stdio::Null).unwrap_err();
    assert!(error.to_string().contains("user 1000 is not mapped"), "{error}");
}
