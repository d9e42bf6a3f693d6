//! Base images made of what the machine's distribution has, as archives to `load`; made once and kept in the target folder.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use serde_json::json;
use sha2::{Digest as _, Sha256};
use tar::{Builder, EntryType, Header};

use super::command;

/// Returns a docker archive of `busybox:latest`: the distribution's static busybox with its applets as links.
pub fn busybox() -> PathBuf {
    cached("busybox-1.tar", |to| {
        let program = ["/bin/busybox", "/usr/bin/busybox"].into_iter().find(|path| Path::new(path).exists());
        let program = program.expect("busybox is missing (apt-get install busybox-static)");
        let image = json!({
            "architecture": arch(), "os": "linux", "created": "2024-01-01T00:00:00Z",
            "config": {"Cmd": ["sh"], "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]},
            "history": [{"created": "2024-01-01T00:00:00Z", "created_by": "busybox"}],
        });
        write_archive(to, "busybox:latest", image, &busybox_layer(program));
    })
}

/// Returns a docker archive of `debian:latest`, as `debootstrap` makes it out of the machine's own package sources.
///
/// `None`, with a word about it, when debootstrap is not installed.
pub fn debian() -> Option<PathBuf> {
    if !super::is_installed("debootstrap", "debootstrap") {
        return None;
    }
    Some(cached("debian-1.tar", |to| {
        let dir = tempfile::tempdir().expect("make a directory for debootstrap");
        command::Run::new("sh")
            .args(["-euc", DEBOOTSTRAP])
            .cwd(dir.path())
            .within(std::time::Duration::from_secs(900))
            .ok();
        let layer = std::fs::read(dir.path().join("layer.tar")).expect("read the layer");
        let image = json!({
            "architecture": arch(), "os": "linux", "created": "2024-01-01T00:00:00Z",
            "config": {"Cmd": ["bash"], "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]},
            "history": [{"created": "2024-01-01T00:00:00Z", "created_by": "debootstrap"}],
        });
        write_archive(to, "debian:latest", image, &layer);
    }))
}

/// Makes `layer.tar`: a minimal Debian or Ubuntu like this machine, with this machine's package sources, keys and
/// certificates. Sources that name keys outside the distribution's own are left out.
const DEBOOTSTRAP: &str = r#"
. /etc/os-release
mirror=$(apt-get indextargets --format '$(SITE) $(RELEASE)' "Created-By: Packages" |
    awk -v suite="$VERSION_CODENAME" '$2 == suite { print $1; exit }')
[ -n "$mirror" ] || { echo "no package source has $VERSION_CODENAME (apt-get update)" >&2; exit 1; }
debootstrap --variant=minbase --include=ca-certificates "$VERSION_CODENAME" root "$mirror" >log 2>&1 || { tail log >&2; exit 1; }
rm -rf root/var/cache/apt/archives/*.deb root/var/lib/apt/lists/* root/dev root/proc root/sys
mkdir root/dev root/proc root/sys
tar --numeric-owner --xattrs --sort=name -C root -cf layer.tar .
"#;

/// Returns a file of the target folder, made by `make` if it is not there. Several processes may ask at once.
fn cached(name: &str, make: impl FnOnce(&Path)) -> PathBuf {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("bases");
    std::fs::create_dir_all(&dir).expect("make a directory for bases");
    let path = dir.join(name);
    let lock = File::create(dir.join(format!("{name}.lock"))).expect("make a lock file");
    lock.lock().expect("take a lock");
    if !path.exists() {
        let part = dir.join(format!("{name}.part"));
        make(&part);
        std::fs::rename(&part, &path).expect("name a base");
    }
    path
}

fn busybox_layer(program: &str) -> Vec<u8> {
    let mut layer = Builder::new(Vec::new());
    for (dir, mode) in [("bin", 0o755), ("dev", 0o755), ("etc", 0o755), ("home", 0o755), ("proc", 0o755)] {
        directory(&mut layer, dir, mode);
    }
    for (dir, mode) in [("root", 0o700), ("sys", 0o755), ("tmp", 0o1777), ("usr", 0o755), ("var", 0o755)] {
        directory(&mut layer, dir, mode);
    }
    for dir in ["sbin", "usr/bin", "usr/sbin"] {
        directory(&mut layer, dir, 0o755);
    }
    let content = std::fs::read(program).expect("read busybox");
    append(&mut layer, EntryType::Regular, "bin/busybox", 0o755, &content);
    append(
        &mut layer,
        EntryType::Regular,
        "etc/passwd",
        0o644,
        b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/home:/bin/false\n",
    );
    append(&mut layer, EntryType::Regular, "etc/group", 0o644, b"root:x:0:\nnogroup:x:65534:\n");
    for applet in command::run(program, ["--list-full"]).lines().filter(|applet| *applet != "bin/busybox") {
        let mut header = header(EntryType::Symlink, 0o777, 0);
        layer.append_link(&mut header, applet, "/bin/busybox").expect("write to memory");
    }
    layer.into_inner().expect("write to memory")
}

fn directory(layer: &mut Builder<Vec<u8>>, path: &str, mode: u32) {
    append(layer, EntryType::Directory, &format!("{path}/"), mode, b"");
}

fn append(layer: &mut Builder<Vec<u8>>, kind: EntryType, path: &str, mode: u32, content: &[u8]) {
    let mut header = header(kind, mode, content.len() as u64);
    layer.append_data(&mut header, path, content).expect("write to memory");
}

fn header(kind: EntryType, mode: u32, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header.set_mtime(1_704_067_200);
    header
}

/// Writes an image of one layer as a docker archive.
pub fn write_archive(to: &Path, name: &str, mut config: serde_json::Value, layer: &[u8]) {
    config["rootfs"] = json!({"type": "layers", "diff_ids": [format!("sha256:{}", hex(layer))]});
    let config = serde_json::to_vec(&config).expect("a document");
    let config_name = format!("{}.json", hex(&config));
    let manifest = json!([{"Config": config_name, "RepoTags": [name], "Layers": ["layer.tar"]}]);
    let mut archive = Builder::new(Vec::with_capacity(layer.len() + (64 << 10)));
    append(&mut archive, EntryType::Regular, "layer.tar", 0o644, layer);
    append(&mut archive, EntryType::Regular, &config_name, 0o644, &config);
    append(
        &mut archive,
        EntryType::Regular,
        "manifest.json",
        0o644,
        &serde_json::to_vec(&manifest).expect("a document"),
    );
    let archive = archive.into_inner().expect("write to memory");
    File::create(to).and_then(|mut file| file.write_all(&archive)).expect("write an archive");
}

fn hex(content: &[u8]) -> String {
    Sha256::digest(content).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Returns the machine's architecture as images call it.
pub fn arch() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}
