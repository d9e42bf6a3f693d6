//! What every driver does: one suite that all of them run, and whose findings must be the same for all.

use std::path::Path;

use rustix::fs::FileType;
use rustix::io::Errno;

use super::tars::Tar;
use super::views::{Tree, bytes};
use super::*;
use crate::store::tree::{Attributes, Time, Xattrs};

/// Runs steps on each driver and compares what they found.
pub(super) fn on_every_driver(steps: impl Fn(&World) -> Vec<String>) {
    if !may_mount() {
        return;
    }
    let findings = |driver| steps(&World::new(driver));
    let overlay = findings(Driver::Overlay);
    assert!(!overlay.is_empty(), "a test that finds nothing");
    for driver in [Driver::OverlayUser, Driver::Native] {
        let found = findings(driver);
        let differ: Vec<_> = overlay.iter().zip(&found).filter(|(a, b)| a != b).collect();
        assert!(found == overlay, "{driver} differs from overlay: {differ:#?}\n{overlay:#?}\n{found:#?}");
    }
}

/// Makes a snapshot by changing the mounted root file system.
pub(super) fn step(world: &World, base: Option<SnapshotId>, change: impl Fn(&Tree)) -> SnapshotId {
    let active = world.store.prepare(&world.lease, base).unwrap();
    let depth = if base.is_some() { 1000 } else { 0 };
    change(&Tree::mounted(active.rootfs().unwrap().mount(Access::Volatile).unwrap()).later(depth));
    active.commit().unwrap()
}

pub(super) fn mounted(world: &World, snapshot: SnapshotId) -> Tree {
    Tree::mounted(world.store.rootfs(Some(snapshot)).unwrap().mount(Access::ReadOnly).unwrap())
}

/// What a snapshot looks like, what it changes and what its layer is.
pub(super) fn told(world: &World, snapshot: SnapshotId) -> Vec<String> {
    let mut lines = mounted(world, snapshot).describe();
    lines.extend(changed(&world.store.changes(snapshot).unwrap()));
    let digests = world.store.layer_digests(snapshot, &Cancel::new()).unwrap();
    lines.push(format!("{} {} {}", digests.diff_id, digests.content, digests.tar_size));
    lines
}

fn changed(changes: &[PathChange]) -> Vec<String> {
    changes.iter().map(|change| format!("{:?} {}", change.kind, change.path.display())).collect()
}

/// A tree with one of everything.
fn everything(tree: &Tree) {
    tree.dir("etc").file("etc/motd", "hello\n").mode("etc/motd", 0o600).owner("etc/motd", 7, 8);
    tree.file("empty", "").file("large", vec![7; 300_000]).dir("bare").mode("bare", 0o1777);
    tree.symlink("etc/link", "motd").symlink("dangling", "/no/such").owner("dangling", 5, 5);
    tree.file("tool", "#!").mode("tool", 0o4755).link("etc/tool2", "tool").link("tool3", "tool");
    tree.fifo("pipe").node("null", FileType::CharacterDevice, (1, 3)).node("disk", FileType::BlockDevice, (8, 1));
    tree.xattr("etc/motd", "user.note", b"a=b").xattr("bare", "user.empty", b"");
    tree.xattr("tool", "security.capability", b"\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
    tree.file("n".repeat(255), "long");
    std::fs::write(tree.path(bytes(b"not-utf8-\xff\xfe")), "x").unwrap();
    tree.time("etc", 1_650_000_000).time(bytes(b"not-utf8-\xff\xfe"), -5);
}

#[test]
fn privileged_what_was_written_is_there_in_the_snapshot_and_on_top_of_it() {
    on_every_driver(|world| {
        let mut written = Vec::new();
        let active = world.store.prepare(&world.lease, None).unwrap();
        {
            let tree = Tree::mounted(active.rootfs().unwrap().mount(Access::Volatile).unwrap());
            everything(&tree);
            written.extend(tree.describe());
        }
        let base = active.commit().unwrap();
        assert_eq!(mounted(world, base).describe(), written);
        let above = world.store.prepare(&world.lease, Some(base)).unwrap();
        assert_eq!(above.base(), Some(base));
        let shown = Tree::mounted(above.rootfs().unwrap().mount(Access::ReadOnly).unwrap()).describe();
        // Hard links between layers are one file for a driver that copies and overlay alike.
        assert_eq!(shown, written);
        assert_eq!(above.changes().unwrap(), []);
        let empty = above.commit().unwrap();
        assert_eq!(world.store.changes(empty).unwrap(), []);
        told(world, base).into_iter().chain(told(world, empty)).collect()
    });
}

#[test]
fn privileged_every_sort_of_change_is_found() {
    on_every_driver(|world| {
        let base = step(world, None, |tree| {
            everything(tree);
            tree.dir("keep").file("keep/a", "a").file("keep/b", "b").dir("gone").file("gone/x", "x").dir("gone/sub");
            tree.dir("to-file").file("to-file/x", "").file("to-dir", "").dir("again").file("again/old", "");
            tree.dir("moved").file("moved/deep", "deep").file("same", "same").file("meta", "m").file("attr", "");
            tree.file("grown", "short")
                .file("touched", "t")
                .symlink("relinked", "a")
                .dir("dirmeta")
                .file("dirmeta/f", "");
        });
        let top = step(world, Some(base), |tree| {
            tree.file("keep/a", "changed")
                .file("keep/c", "new")
                .remove("gone")
                .remove("to-file")
                .file("to-file", "now");
            tree.remove("to-dir")
                .dir("to-dir")
                .file("to-dir/y", "y")
                .remove("again")
                .dir("again")
                .file("again/new", "");
            tree.dir("moved2").file("moved2/deep", "deep").remove("moved");
            tree.mode("meta", 0o640).xattr("attr", "user.x", b"1").file("grown", "short and long").time("touched", 99);
            tree.remove("relinked").symlink("relinked", "b").mode("dirmeta", 0o700).owner("dirmeta", 1, 2);
            tree.link("keep/linked", "keep/b").remove("etc/tool2").remove("pipe");
        });
        let mut lines = told(world, top);
        let deleted: Vec<_> = lines.iter().filter(|line| line.starts_with("Deleted")).cloned().collect();
        assert_eq!(
            deleted,
            ["Deleted /again/old", "Deleted /etc/tool2", "Deleted /gone", "Deleted /moved", "Deleted /pipe",]
        );
        for expected in [
            "Modified /keep",
            "Modified /keep/a",
            "Added /keep/c",
            "Added /keep/linked",
            "Modified /keep/b",
            "Modified /to-file",
            "Modified /to-dir",
            "Added /to-dir/y",
            "Added /again/new",
            "Modified /meta",
            "Modified /attr",
            "Modified /grown",
            "Modified /touched",
            "Modified /relinked",
            "Modified /dirmeta",
            "Added /moved2/deep",
        ] {
            assert!(lines.iter().any(|line| line == expected), "{expected} is not in {lines:#?}");
        }
        for unchanged in ["/same", "/empty", "/large", "/dirmeta/f", "/bare"] {
            assert!(!lines.iter().any(|line| line.ends_with(&format!("d {unchanged}"))), "{unchanged} did not change");
        }
        lines.extend(mounted(world, base).describe());
        lines
    });
}

#[test]
fn privileged_detours_are_no_changes() {
    on_every_driver(|world| {
        let base = step(world, None, |tree| {
            tree.dir("d").file("d/a", "a").mode("d/a", 0o640).dir("d/sub").file("d/sub/b", "b").dir("e");
            for path in ["d/a", "d/sub/b", "d/sub", "d", "e"] {
                tree.time(path, 5);
            }
        });
        let top = step(world, Some(base), |tree| {
            // Removed and made again, moved away and back, changed and changed back.
            tree.remove("d").dir("d").file("d/a", "x").file("d/a", "a").mode("d/a", 0o640).dir("d/sub");
            tree.file("d/sub/other", "b").rename("d/sub/other", "d/sub/b").file("e/new", "").remove("e/new");
            for path in ["d/a", "d/sub/b", "d/sub", "d", "e"] {
                tree.time(path, 5);
            }
        });
        assert_eq!(world.store.changes(top).unwrap(), []);
        told(world, top)
    });
}

#[test]
fn privileged_a_chain_of_layers_shows_the_topmost_of_everything() {
    on_every_driver(|world| {
        let one = step(world, None, |tree| {
            tree.dir("d").file("d/one", "1").file("d/all", "1").file("below", "1").dir("x").file("x/1", "");
        });
        let two = step(world, Some(one), |tree| {
            tree.file("d/two", "2").file("d/all", "2").remove("below").remove("x");
        });
        let three = step(world, Some(two), |tree| {
            tree.file("d/all", "3").remove("d/one").dir("x").file("x/3", "").file("below", "3");
        });
        let view = mounted(world, three);
        assert_eq!(view.read("d/all").as_deref(), Some("3"));
        assert_eq!((view.read("d/one"), view.read("x/1")), (None, None));
        [one, two, three].into_iter().flat_map(|snapshot| told(world, snapshot)).collect()
    });
}

#[test]
fn privileged_committed_snapshots_cannot_be_written() {
    on_every_driver(|world| {
        let base = step(world, None, |tree| {
            tree.file("f", "x");
        });
        let rootfs = world.store.rootfs(Some(base)).unwrap();
        assert_eq!(rootfs.mount(Access::Volatile).unwrap_err().kind(), Kind::Conflict);
        let mount = rootfs.mount(Access::ReadOnly).unwrap();
        let made = rustix::fs::mkdirat(&mount, "new", rustix::fs::Mode::RWXU);
        assert_eq!(made, Err(Errno::ROFS));
        vec!["read-only".to_owned()]
    });
}

#[test]
fn privileged_the_root_takes_the_metadata_of_the_one_below_and_its_change_is_a_change() {
    on_every_driver(|world| {
        let base = step(world, None, |tree| {
            tree.file("f", "").mode(".", 0o711).owner(".", 3, 4).xattr(".", "user.root", b"r");
        });
        let above = step(world, Some(base), |tree| {
            tree.file("g", "");
        });
        let changed_root = step(world, Some(above), |tree| {
            tree.mode(".", 0o755);
        });
        [base, above, changed_root].into_iter().flat_map(|snapshot| told(world, snapshot)).collect()
    });
}

#[test]
fn privileged_an_active_that_is_kept_is_found_again_mounted_again_and_removed() {
    on_every_driver(|world| {
        let base = step(world, None, |tree| {
            tree.file("below", "b");
        });
        let active = world.store.prepare(&world.lease, Some(base)).unwrap();
        Tree::mounted(active.rootfs().unwrap().mount(Access::Volatile).unwrap()).file("mine", "1").remove("below");
        let id = active.keep();
        let other = world.other();
        let lease = other.lease("another command").unwrap();
        let found = other.active(&lease, id).unwrap().unwrap();
        // Mounted again after a volatile mount, for a container that is started again.
        Tree::mounted(found.rootfs().unwrap().mount(Access::Durable).unwrap()).later(9).file("mine", "2");
        let mut lines = changed(&found.changes().unwrap());
        lines.extend(Tree::mounted(found.rootfs().unwrap().mount(Access::ReadOnly).unwrap()).describe());
        found.remove().unwrap();
        assert!(world.store.active(&world.lease, id).unwrap().is_none());
        lines
    });
}

#[test]
fn privileged_a_dropped_active_leaves_nothing() {
    on_every_driver(|world| {
        let active = world.store.prepare(&world.lease, None).unwrap();
        let (id, dir) = (active.id(), active.dir().to_owned());
        drop(active);
        assert!(!dir.exists());
        assert!(world.store.active(&world.lease, id).unwrap().is_none());
        vec!["gone".to_owned()]
    });
}

#[test]
fn privileged_a_fork_is_the_same_and_goes_its_own_way() {
    on_every_driver(|world| {
        let base = step(world, None, |tree| {
            everything(tree);
            tree.dir("d").file("d/x", "x").dir("opaque").file("opaque/hidden", "");
        });
        let active = world.store.prepare(&world.lease, Some(base)).unwrap();
        let mount = || Tree::mounted(active.rootfs().unwrap().mount(Access::Volatile).unwrap()).later(2000);
        mount()
            .file("d/new", "n")
            .remove("d/x")
            .remove("opaque")
            .dir("opaque")
            .file("opaque/seen", "")
            .remove("etc/motd");
        let fork = active.fork(&world.lease, &Cancel::new()).unwrap();
        mount().later(3000).file("only-here", "");
        let forked = fork.commit().unwrap();
        let view = mounted(world, forked);
        assert_eq!((view.read("only-here"), view.read("opaque/hidden")), (None, None));
        let mut lines = told(world, forked);
        lines.extend(changed(&active.changes().unwrap()));
        lines
    });
}

#[test]
fn privileged_a_layer_made_on_nothing_lies_on_any_parent() {
    on_every_driver(|world| {
        let one = step(world, None, |tree| {
            tree.dir("app").file("app/old", "o").dir("app/data").file("app/data/below", "").file("etc", "1");
        });
        let two = step(world, None, |tree| {
            tree.dir("usr").file("usr/lib", "");
        });
        let layer = step(world, None, |tree| {
            tree.dir("app").file("app/new", "n").dir("app/data").file("app/data/above", "").mode("app", 0o700);
        });
        let digests = world.store.layer_digests(layer, &Cancel::new()).unwrap();
        world.store.identify(&world.lease, layer, &digests).unwrap();
        let on_one = world.store.rebase(&world.lease, layer, Some(one)).unwrap();
        let on_two = world.store.rebase(&world.lease, layer, Some(two)).unwrap();
        assert_eq!(world.store.rebase(&world.lease, layer, Some(one)).unwrap(), on_one);
        assert_ne!(on_one, on_two);
        let view = mounted(world, on_one);
        assert!(
            view.read("app/old").is_some() && view.read("app/new").is_some() && view.read("app/data/below").is_some()
        );
        let diff_id = |id| world.store.snapshot(&world.lease, id).unwrap().unwrap().diff_id;
        assert_eq!(diff_id(on_one), Some(digests.diff_id));
        assert_eq!(diff_id(on_two), Some(digests.diff_id));
        [on_one, on_two].into_iter().flat_map(|snapshot| told(world, snapshot)).collect()
    });
}

#[test]
fn privileged_unchanged_files_of_an_earlier_layer_are_linked() {
    on_every_driver(|world| {
        let donor = step(world, None, |tree| {
            tree.dir("app").file("app/kept", vec![1; 100_000]).file("app/changed", "1");
        });
        let active = world.store.prepare(&world.lease, None).unwrap();
        let from = active.reuse(donor).unwrap();
        let missing =
            Attributes { mode: 0o755, uid: 0, gid: 0, mtime: Time { seconds: 5, nanos: 0 }, xattrs: Xattrs::default() };
        let to = active.dir_at(Path::new("app"), &missing).unwrap();
        let app = tree::open_dir(&from, c"app").unwrap();
        rustix::fs::linkat(&app, c"kept", &to, c"kept", rustix::fs::AtFlags::empty()).unwrap();
        let inode = tree::Metadata::at(&to, c"kept").unwrap().inode;
        assert_eq!(inode, tree::Metadata::at(&app, c"kept").unwrap().inode);
        drop(to);
        Tree::at(active.dir()).later(50).file("app/changed", "2");
        let made = active.commit().unwrap();
        told(world, made)
    });
}

#[test]
fn privileged_a_directory_is_written_without_a_mount_in_between() {
    on_every_driver(|world| {
        let base = step(world, None, |tree| {
            tree.dir("usr").dir("usr/lib").file("usr/lib/old", "").mode("usr/lib", 0o750).symlink("lib", "usr/lib");
            tree.symlink("abs", "/usr").symlink("out", "../../../..").file("plain", "");
        });
        let missing =
            Attributes { mode: 0o711, uid: 9, gid: 9, mtime: Time { seconds: 5, nanos: 0 }, xattrs: Xattrs::default() };
        let active = world.store.prepare(&world.lease, Some(base)).unwrap();
        for (path, name) in [("/lib", "a"), ("abs/lib/new/er", "b"), ("/out/usr/lib", "c"), ("opt/x", "d"), (".", "e")]
        {
            let dir = active.dir_at(Path::new(path), &missing).unwrap();
            let file = tree::create_file(&dir, &std::ffi::CString::new(name).unwrap()).unwrap();
            let mtime = Time { seconds: 6, nanos: 0 };
            Attributes { mode: 0o644, uid: 0, gid: 0, mtime, xattrs: Xattrs::default() }.apply(&file).unwrap();
        }
        let refused = active.dir_at(Path::new("plain/x"), &missing).unwrap_err();
        assert_eq!(refused.kind(), Kind::InvalidArgument, "{refused}");
        assert_eq!(active.dir_at(Path::new("a/../b"), &missing).unwrap_err().kind(), Kind::InvalidArgument);
        for dir in ["usr/lib/new/er", "usr/lib/new", "usr/lib", "usr", "opt/x", "opt"] {
            let time = if dir.starts_with("opt") || dir.contains("new") { 5 } else { 7 };
            Tree::at(active.dir()).time(dir, time);
        }
        let made = active.commit().unwrap();
        let view = mounted(world, made);
        assert!(
            ["usr/lib/a", "usr/lib/new/er/b", "usr/lib/c", "usr/lib/old", "opt/x/d", "e"]
                .iter()
                .all(|path| view.read(path).is_some())
        );
        told(world, made)
    });
}

/// Unpacks a chain of layers, the lowest first, each handed over in its own turn.
fn unpack(world: &World, layers: &[Vec<u8>]) -> Result<Option<SnapshotId>> {
    let diff_ids: Vec<_> = layers.iter().map(|tar| kiln_graph::Digest::of(tar)).collect();
    let unpacker = world.store.unpacker(&world.lease, &diff_ids)?;
    for index in unpacker.missing() {
        unpacker.layer(index, layers[index].as_slice(), &Cancel::new())?;
    }
    unpacker.finish(&Cancel::new())
}

#[test]
fn privileged_layers_of_images_are_unpacked_with_their_whiteouts() {
    on_every_driver(|world| {
        let base = Tar::new().dir("d/").file("d/a", "a").file("d/b", "b").dir("e/").file("e/x", "x").dir("e/sub/");
        let base = base.file("gone", "").file("to-dir", "").dir("to-file/").file("to-file/x", "").dir("root-only/");
        let marks =
            Tar::new().dir("d/").mark("d/.wh.a").file("d/c", "c").mark(".wh.gone").dir("e/").mark("e/.wh..wh..opq");
        let marks = marks.file("e/y", "y").dir("to-dir/").file("to-dir/z", "").file("to-file", "f").mark(".wh.absent");
        let late = Tar::new()
            .file("d/a", "new a")
            .mark("d/.wh.b")
            .mark(".wh..wh.plnk")
            .mark(".wh.e")
            .dir("e/")
            .file("e/w", "");
        let top = unpack(world, &[base.finish(), marks.finish(), late.finish()]).unwrap().unwrap();
        let view = mounted(world, top);
        assert_eq!(view.read("d/a").as_deref(), Some("new a"));
        assert!(["d/b", "e/x", "e/y", "gone", "to-file/x"].iter().all(|path| view.read(path).is_none()));
        assert!(["d/c", "e/w", "to-dir/z", "to-file"].iter().all(|path| view.read(path).is_some()));
        view.describe()
    });
}

#[test]
fn privileged_an_opaque_root_hides_everything_below() {
    on_every_driver(|world| {
        let base = Tar::new().dir("d/").file("d/a", "a").file("b", "b").finish();
        let top = Tar::new().mark(".wh..wh..opq").dir("d/").file("d/n", "n").finish();
        let above = Tar::new().file("x", "x").finish();
        let top = unpack(world, &[base, top, above]).unwrap().unwrap();
        let view = mounted(world, top);
        assert!(view.read("d/a").is_none() && view.read("b").is_none() && view.read("d/n").is_some());
        view.describe()
    });
}

#[test]
fn privileged_directories_without_an_entry_keep_what_is_below() {
    on_every_driver(|world| {
        let base = step(world, None, |tree| {
            tree.dir("a").dir("a/b").mode("a/b", 0o700).owner("a/b", 4, 5).xattr("a", "user.k", b"v").file("a/b/x", "");
            tree.time("a/b", 77).time("a", 78);
        });
        let digests = world.store.layer_digests(base, &Cancel::new()).unwrap();
        world.store.identify(&world.lease, base, &digests).unwrap();
        let mut tar = Vec::new();
        world.store.write_layer(base, &mut tar, &Cancel::new()).unwrap();
        let top = Tar::new().file("a/b/y", "y").file("new/deep/z", "").finish();
        let top = unpack(world, &[tar, top]).unwrap().unwrap();
        mounted(world, top).describe()
    });
}

#[test]
fn privileged_a_path_through_a_symbolic_link_of_a_layer_below_leads_where_it_points() {
    on_every_driver(|world| {
        let base =
            Tar::new().dir("usr/").dir("usr/lib/").file("usr/lib/old", "o").symlink("lib", "usr/lib").file("f", "");
        let base = base.dir("usr/lib/sub/").symlink("abs", "/usr").symlink("to-file", "f").symlink("nowhere", "none");
        let top = Tar::new().file("lib/new", "n").file("lib/sub/x", "x").mark("lib/.wh.old").file("abs/lib/y", "y");
        let top = top.file("to-file/z", "z").file("nowhere/z", "z").file("usr/lib/sub/w", "w");
        let top = unpack(world, &[base.finish(), top.finish()]).unwrap().unwrap();
        let view = mounted(world, top);
        for path in ["usr/lib/new", "lib/new", "usr/lib/sub/x", "usr/lib/y", "usr/lib/sub/w", "to-file/z", "nowhere/z"]
        {
            assert!(view.read(path).is_some(), "{path} is not in {:#?}", view.describe());
        }
        assert!(view.read("lib/old").is_none());
        assert!(view.path("lib").symlink_metadata().unwrap().is_symlink());
        view.describe()
    });
}

#[test]
fn privileged_hard_links_lead_across_layers() {
    on_every_driver(|world| {
        let base =
            Tar::new().dir("d/").file("d/file", "data").symlink("d/soft", "file").file("hidden", "h").file("z", "zz");
        let top = Tar::new().dir("l/").link("l/file", "d/file").link("l/soft", "d/soft").link("l/again", "l/file");
        let top = top.mark(".wh.hidden").link("l/back", "/hidden").link("a", "y").link("y", "z");
        let top = unpack(world, &[base.finish(), top.finish()]).unwrap().unwrap();
        let view = mounted(world, top);
        assert_eq!(view.read("l/file").as_deref(), Some("data"));
        assert_eq!((view.read("a").as_deref(), view.read("y").as_deref()), (Some("zz"), Some("zz")));
        assert_eq!(view.read("l/back").as_deref(), Some("h"));
        assert!(view.read("hidden").is_none());
        view.describe()
    });
}

#[test]
fn privileged_a_layer_that_many_images_have_is_unpacked_once() {
    on_every_driver(|world| {
        let layer = Tar::new().dir("app/").file("app/x", "x").finish();
        let bases = [Tar::new().file("one", "1").finish(), Tar::new().file("two", "2").finish()];
        let first = unpack(world, &[bases[0].clone(), layer.clone()]).unwrap().unwrap();
        let diff_ids = [&bases[1], &layer].map(|tar| kiln_graph::Digest::of(tar));
        let unpacker = world.store.unpacker(&world.lease, &diff_ids).unwrap();
        if world.store.driver() != Driver::Native {
            assert_eq!(unpacker.missing(), [0], "the upper layer is here already");
        }
        for index in unpacker.missing() {
            unpacker.layer(index, [&bases[1], &layer][index].as_slice(), &Cancel::new()).unwrap();
        }
        let second = unpacker.finish(&Cancel::new()).unwrap().unwrap();
        let again = world.store.unpacker(&world.lease, &diff_ids).unwrap();
        assert!(again.missing().is_empty());
        assert_eq!(again.finish(&Cancel::new()).unwrap(), Some(second));
        [first, second].into_iter().flat_map(|snapshot| mounted(world, snapshot).describe()).collect()
    });
}

#[test]
fn privileged_an_unpacked_layer_is_packed_again_as_it_was() {
    on_every_driver(|world| {
        let base = step(world, None, |tree| {
            everything(tree);
            tree.dir("d").file("d/x", "").file("d/y", "").dir("o").file("o/p", "");
        });
        let top = step(world, Some(base), |tree| {
            tree.remove("d/x")
                .file("d/z", "")
                .remove("o")
                .dir("o")
                .file("o/q", "")
                .remove("etc/tool2")
                .file("large", "small");
        });
        let tars: Vec<_> = [base, top]
            .map(|snapshot| {
                let mut tar = Vec::new();
                world.store.write_layer(snapshot, &mut tar, &Cancel::new()).unwrap();
                tar
            })
            .into();
        let fresh = World::new(world.store.driver());
        let unpacked = unpack(&fresh, &tars).unwrap().unwrap();
        assert_eq!(mounted(&fresh, unpacked).describe(), mounted(world, top).describe());
        let mut again = Vec::new();
        fresh.store.write_layer(unpacked, &mut again, &Cancel::new()).unwrap();
        assert!(again == tars[1], "the layer is another when packed again");
        let below = fresh.store.snapshot(&fresh.lease, unpacked).unwrap().unwrap().parent.unwrap();
        let mut again = Vec::new();
        fresh.store.write_layer(below, &mut again, &Cancel::new()).unwrap();
        assert!(again == tars[0], "the lowest layer is another when packed again");
        tars.iter().map(|tar| kiln_graph::Digest::of(tar).to_string()).collect()
    });
}

#[test]
fn privileged_a_step_that_yields_what_was_there_already_keeps_the_earlier_snapshot() {
    on_every_driver(|world| {
        let identified = |seconds| {
            let made = step(world, None, |tree| {
                tree.file("out", "same").time("out", seconds);
            });
            let digests = world.store.layer_digests(made, &Cancel::new()).unwrap();
            (made, world.store.identify(&world.lease, made, &digests).unwrap())
        };
        let (first, kept) = identified(100);
        assert_eq!(kept.id, first);
        let (_, kept_again) = identified(200);
        assert_eq!(kept_again.id, first, "only the time differs");
        let above = step(world, Some(first), |tree| {
            tree.file("more", "");
        });
        let digests = world.store.layer_digests(above, &Cancel::new()).unwrap();
        let above = world.store.identify(&world.lease, above, &digests).unwrap();
        let expected = kiln_graph::Digest::of(format!("{} {}", kept.diff_id.unwrap(), digests.diff_id).as_bytes());
        assert_eq!(above.chain_id, Some(expected));
        assert_eq!(world.store.by_chain(&world.lease, &expected).unwrap().unwrap().id, above.id);
        vec![format!("{kept:?} {above:?}").replace(|c: char| c.is_ascii_digit(), "")]
    });
}

#[test]
fn privileged_a_name_no_layer_can_hold_is_refused() {
    on_every_driver(|world| {
        let made = step(world, None, |tree| {
            tree.dir("d").file("d/.wh.x", "");
        });
        let error = world.store.layer_digests(made, &Cancel::new()).unwrap_err();
        assert_eq!(error.kind(), Kind::Unsupported);
        assert!(error.to_string().contains("d/.wh.x: no layer can hold this name"), "{error}");
        vec!["refused".to_owned()]
    });
}
