//! A disk that is full, and a kernel that cannot mount.

use std::io::Write as _;
use std::time::Duration;

use kiln_graph::Digest;
use nix::sched::CloneFlags;
use rustix::mount::{MountFlags, MountPropagationFlags};

use super::tars::Tar;
use super::views::Tree;
use super::*;

/// Runs `body` on a file system of so many bytes, in a mount namespace that only this thread and those it starts see.
fn on_a_small_disk(megabytes: usize, body: impl FnOnce(&Path) + Send) {
    if !may_mount() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    std::thread::scope(|scope| {
        let apart = || {
            nix::sched::unshare(CloneFlags::CLONE_FS | CloneFlags::CLONE_NEWNS).unwrap();
            let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
            rustix::mount::mount_change("/", private).unwrap();
            let size = std::ffi::CString::new(format!("size={megabytes}m")).unwrap();
            rustix::mount::mount("tmpfs", dir.path(), "tmpfs", MountFlags::empty(), size.as_c_str()).unwrap();
            body(dir.path());
        };
        scope.spawn(apart).join().unwrap();
    });
}

/// Takes all that is left of the disk but for some bytes.
fn fill(disk: &Path, leave: usize) {
    let stat = rustix::fs::statvfs(disk).unwrap();
    let free = usize::try_from(stat.f_bavail * stat.f_frsize).unwrap();
    std::fs::write(disk.join("filler"), vec![1; free.saturating_sub(leave)]).unwrap();
}

fn assert_full<T: std::fmt::Debug>(result: Result<T>, words: &str) {
    let error = result.unwrap_err();
    assert_eq!(error.kind(), Kind::Exhausted, "{error}");
    assert!(error.to_string().contains(words), "{error} does not say {words:?}");
    assert!(
        error.to_string().to_lowercase().contains("no space left") || error.to_string().contains("full"),
        "{error}"
    );
}

fn check(driver: Driver) {
    on_a_small_disk(24, |disk| {
        let root = disk.join("root");
        let store = open(&root, Some(driver)).unwrap();
        let lease = store.lease("test").unwrap();
        let base = store.prepare(&lease, None).unwrap();
        Tree::at(base.dir()).file("data", noise(3 << 20, 1)).file("more", noise(100_000, 2));
        let base = base.commit().unwrap();
        let digests = store.layer_digests(base, &Cancel::new()).unwrap();
        store.identify(&lease, base, &digests).unwrap();
        let layer = Tar::new().dir("d/").file("d/large", noise(2 << 20, 3)).finish();
        let blob = noise(1 << 20, 4);
        fill(disk, 300_000);

        assert_full(store.write_blob(&lease, &blob), "write blob");
        let IngestState::Ready(mut ingest) = store.ingest(&lease, &Digest::of(&blob), None).unwrap() else { panic!() };
        assert_full(ingest.write_all(&blob).map_err(Error::from), &Digest::of(&blob).to_string());
        ingest.discard().unwrap();
        let unpacker = store.unpacker(&lease, &[Digest::of(&layer)]).unwrap();
        assert_full(unpacker.layer(0, layer.as_slice(), &Cancel::new()), "d/large");
        assert_eq!(unpacker.missing(), [0]);
        drop(unpacker);
        assert_full(store.layer_blob(&lease, base, compression::Compression::ZSTD, &Cancel::new()), "write");
        if driver == Driver::Native {
            assert_full(store.prepare(&lease, Some(base)), "copy snapshot");
        }
        let active = store.prepare(&lease, None).unwrap();
        std::fs::remove_file(disk.join("filler")).unwrap();
        std::fs::write(active.dir().join("x"), vec![1; 2 << 20]).unwrap();
        fill(disk, 1 << 20);
        assert_full(active.fork(&lease, &Cancel::new()), "copy active");
        drop(active);
        assert_holds(&root, 0, 1);

        // Nothing at all is left: even records cannot be written, and nothing is half made.
        std::fs::remove_file(disk.join("filler")).unwrap();
        fill(disk, 0);
        let outcomes = (0..2000).map(|n: u32| store.write_blob(&lease, &n.to_le_bytes()));
        let error = outcomes.filter_map(Result::err).next().expect("the database needs space too");
        assert_eq!(error.kind(), Kind::Exhausted, "{error}");

        // Once there is space again, everything works, and what was there still is.
        std::fs::remove_file(disk.join("filler")).unwrap();
        store.write_blob(&lease, &blob).unwrap();
        let unpacker = store.unpacker(&lease, &[Digest::of(&layer)]).unwrap();
        unpacker.layer(0, layer.as_slice(), &Cancel::new()).unwrap();
        unpacker.finish(&Cancel::new()).unwrap();
        assert_eq!(store.layer_digests(base, &Cancel::new()).unwrap().diff_id, digests.diff_id);
        drop(lease);
        store.collect(Duration::ZERO, |_| Ok(Roots::default())).unwrap();
        assert_holds(&root, 0, 0);
    });
}

#[test]
fn a_kernel_that_mounts_no_overlay_gets_copies_and_says_why() {
    let dir = tempfile::tempdir().unwrap();
    // Without the right to mount, as in a container or on a kernel without the module.
    std::thread::scope(|scope| {
        let apart = || {
            let mut sets = rustix::thread::capabilities(None).unwrap();
            sets.effective = rustix::thread::CapabilitySet::empty();
            rustix::thread::set_capabilities(None, sets).unwrap();
            open(dir.path(), None).unwrap()
        };
        let store = scope.spawn(apart).join().unwrap();
        assert_eq!(store.driver(), Driver::Native);
        let why = store.driver_note().unwrap().unwrap();
        assert!(why.contains("overlay") && why.to_lowercase().contains("not permitted"), "{why}");
    });
    // Decided once: later it stays so, and is still explained.
    let later = open(dir.path(), None).unwrap();
    assert_eq!(later.driver(), Driver::Native);
    assert!(later.driver_note().unwrap().is_some());
    let asked_for = World::native();
    assert_eq!(asked_for.store.driver_note().unwrap(), None);
}

#[test]
fn privileged_a_full_disk_fails_clearly_and_leaves_nothing_half_made_with_overlay() {
    check(Driver::Overlay);
}

#[test]
fn privileged_a_full_disk_fails_clearly_and_leaves_nothing_half_made_with_copies() {
    check(Driver::Native);
}

#[test]
fn privileged_a_root_cannot_be_made_on_a_full_disk() {
    on_a_small_disk(1, |disk| {
        fill(disk, 0);
        let error = open(&disk.join("root"), Some(Driver::Native)).unwrap_err();
        assert_eq!(error.kind(), Kind::Exhausted, "{error}");
        std::fs::remove_file(disk.join("filler")).unwrap();
        open(&disk.join("root"), Some(Driver::Native)).unwrap();
    });
}
