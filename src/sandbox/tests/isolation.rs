//! What a sandbox sees of the host: namespaces, files, devices.

use super::*;

#[test]
fn privileged_a_command_runs_in_namespaces_of_its_own() {
    if !is_root() {
        return;
    }
    let fixture = Fixture::new();
    let mut spec =
        fixture.shell("for n in pid net mnt uts ipc cgroup; do readlink /proc/self/ns/$n; done; echo $$; hostname");
    spec.hostname = "box".to_owned();
    let output = run(spec);
    let lines = output.lines();
    for (line, name) in lines.iter().zip(["pid", "net", "mnt", "uts", "ipc", "cgroup"]) {
        let own = fs::read_link(format!("/proc/self/ns/{name}")).unwrap();
        assert_ne!(own, Path::new(line), "{name}");
    }
    assert_eq!(lines[6..], ["1", "box"]);
}
