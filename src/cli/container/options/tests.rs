//! Options as they are written, and the requests they become.

use clap::Parser as _;

use super::*;
use crate::types::MountType;

const STREAMS: Streams = Streams { input: false, output: true, errors: true };

#[derive(Debug, clap::Parser)]
#[command(disable_help_flag = true)]
struct Run {
    #[command(flatten)]
    options: Options,
}

fn request(line: &str) -> Result<ContainerCreateBody> {
    let words = std::iter::once("run").chain(line.split_whitespace());
    Run::try_parse_from(words).unwrap().options.request(STREAMS, None)
}

#[test]
fn options_end_at_the_image() {
    let body = request("-it --rm busybox sh -c --name=x -e").unwrap();
    assert_eq!(body.image.as_deref(), Some("busybox"));
    assert_eq!(body.cmd.unwrap(), ["sh", "-c", "--name=x", "-e"]);
    assert_eq!((body.tty, body.open_stdin), (Some(true), Some(true)));
}

#[test]
fn limits_and_mounts_are_converted() {
    let line = "-m 64m --cpus 1.5 --ulimit nofile=10:20 -v /a:/b:ro --mount type=bind,src=/c,dst=/d,ro \
                --mount type=tmpfs,target=/t,tmpfs-size=1m,tmpfs-mode=700 --tmpfs /x:size=1m --device /dev/fuse:rw b";
    let host = request(line).unwrap().host_config.unwrap();
    assert_eq!((host.memory, host.nano_cpus), (Some(64 << 20), Some(1_500_000_000)));
    assert_eq!(host.binds.unwrap(), ["/a:/b:ro"]);
    let mounts = host.mounts.unwrap();
    assert_eq!((mounts[0].typ, mounts[0].read_only), (Some(MountType::BIND), Some(true)));
    assert_eq!(mounts[1].tmpfs_options.as_ref().unwrap().mode, Some(0o700));
    let device = &host.devices.unwrap()[0];
    assert_eq!(device.path_in_container.as_deref(), Some("/dev/fuse"));
    assert_eq!(device.cgroup_permissions.as_deref(), Some("rw"));
    let limit = &host.ulimits.unwrap()[0];
    assert_eq!((limit.soft, limit.hard), (Some(10), Some(20)));
}

#[test]
fn malformed_values_name_their_option() {
    for (line, words) in [
        ("-m lots b", "invalid size"),
        ("--cpus x b", "number of CPUs"),
        ("--ulimit nofile b", "nofile=1024"),
        ("--ulimit nofile=9:1 b", "must not exceed"),
        ("--mount target=/x,huh=1 b", "unknown key huh"),
        ("--mount type=bind b", "target is required"),
        ("--add-host x b", "--add-host"),
        ("-p 80:x b", "--publish"),
        ("--expose x b", "--expose"),
        ("--restart sometimes b", "--restart"),
        ("--restart always:3 b", "maximum retry count"),
        ("--rm --restart always b", "--restart and --rm"),
        ("--health-interval often b", "--health-interval"),
        ("--no-healthcheck --health-cmd x b", "--no-healthcheck"),
        ("--mount type=bind,target=/x,tmpfs-size=1 b", "cannot mix"),
        ("--network alias=x b", "name is required"),
        ("--security-opt systempaths=x b", "systempaths"),
    ] {
        let error = request(line).unwrap_err().to_string();
        assert!(error.contains(words), "{line}: {error}");
    }
}
