//! Tars that mean harm: each is refused with an error that says why, or does no harm, and nothing outside is touched.

use super::*;

/// Unpacks as a layer and as an archive; both must refuse, with a kind and words.
fn refused(tar: &[u8], kind: Kind, words: &str) {
    let check = |error: Error| {
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.to_string().contains(words), "{error} does not say {words:?}");
    };
    check(Sandbox::new().unpack(tar).unwrap_err());
    check(Sandbox::new().extract(tar).unwrap_err());
}

#[test]
fn a_path_that_leads_out_of_the_root_is_refused() {
    for path in ["../canary", "a/../../canary", "..", "/../canary", "a/b/../../../outside/canary", "./../x"] {
        refused(&Tar::new().file(path, "dead").finish(), Kind::InvalidArgument, "leads out of the root");
        refused(&Tar::new().dir(&format!("{path}/")).finish(), Kind::InvalidArgument, "leads out of the root");
    }
}

#[test]
fn an_absolute_path_is_one_below_the_root() {
    let sandbox = Sandbox::new();
    sandbox.unpack(&Tar::new().file("/etc/x", "in").file("//y", "in").file("/a/../z", "in").finish()).unwrap();
    assert!(sandbox.has("etc/x") && sandbox.has("y") && sandbox.has("z"));
}

#[test]
fn what_is_written_through_a_symbolic_link_stays_inside() {
    let sandbox = Sandbox::new();
    let outside = sandbox.outside();
    let up = "../".repeat(20);
    let tar = Tar::new().symlink("abs", &outside).file("abs/canary", "in").symlink("rel", "../outside/dir");
    let tar = tar.file("rel/canary", "in").symlink("up", &up).file("up/canary", "in").symlink("self", ".");
    let tar = tar.file("self/self/deep", "in").symlink("chain", "rel").dir("chain/made/");
    sandbox.unpack(&tar.finish()).unwrap();
    assert_eq!(sandbox.read("canary").as_deref(), Some("in"));
    assert_eq!(sandbox.read("outside/dir/canary").as_deref(), Some("in"));
    assert!(sandbox.has("deep") && sandbox.has("outside/dir/made"));
    assert_eq!(sandbox.read(&format!("{}/canary", &outside[1..])).as_deref(), Some("in"));
}

#[test]
fn a_file_in_place_of_a_symbolic_link_replaces_the_link() {
    let sandbox = Sandbox::new();
    let canary = format!("{}/canary", sandbox.outside());
    let tar = Tar::new().symlink("a", &canary).file("a", "new").symlink("b", &canary).dir("b/").symlink("c", &canary);
    let tar = tar.symlink("c", "elsewhere").symlink("d", &canary).link("d", "a");
    sandbox.unpack(&tar.finish()).unwrap();
    assert_eq!(sandbox.read("a").as_deref(), Some("new"));
    assert!(sandbox.root().join("b").symlink_metadata().unwrap().is_dir());
    assert_eq!(sandbox.read("d").as_deref(), Some("new"));
}

#[test]
fn a_hard_link_never_names_a_file_outside() {
    refused(&Tar::new().link("x", "../canary").finish(), Kind::InvalidArgument, "leads out of the root");
    refused(&Tar::new().file("d", "").link("x", "/").finish(), Kind::InvalidArgument, "hard link to the root");
    refused(&Tar::new().dir("d/").link("x", "d").finish(), Kind::InvalidArgument, "hard link to a directory");
    let sandbox = Sandbox::new();
    // Through a link that leads out, and to a link that leads out: then they are one link, and nobody follows it.
    let canary = format!("{}/canary", sandbox.outside());
    let tar = Tar::new().symlink("out", &sandbox.outside()).symlink("l", &canary).link("x", "l").file("x", "in");
    sandbox.unpack(&tar.finish()).unwrap();
    assert_eq!(sandbox.read("x").as_deref(), Some("in"));
    let missing = Tar::new().symlink("out", &sandbox.outside()).link("x", "out/canary").finish();
    assert_eq!(Sandbox::new().extract(&missing).unwrap_err().kind(), Kind::InvalidArgument);
    // A layer's link may name a file of a layer below, and is settled there.
    assert_eq!(Sandbox::new().unpack(&missing).unwrap().extracted.links.len(), 1);
}

#[test]
fn whiteouts_name_files_beside_them_only() {
    for name in [".wh...", ".wh..", "d/.wh..", ".wh."] {
        let error = Sandbox::new().unpack(&Tar::new().mark(name).finish()).unwrap_err();
        assert_eq!(error.kind(), Kind::InvalidArgument, "{name}: {error}");
    }
    let sandbox = Sandbox::new();
    let through = Tar::new().symlink("out", &sandbox.outside()).mark("out/.wh.canary").mark("out/.wh..wh..opq");
    sandbox.unpack(&through.finish()).unwrap();
}

#[test]
fn of_entries_with_one_name_the_last_counts() {
    let sandbox = Sandbox::new();
    let tar = Tar::new().file("f", "first, and longer").file("f", "second").file("to-dir", "").dir("to-dir/");
    let tar = tar.file("to-dir/x", "x").dir("to-file/").file("to-file/deep/x", "").file("to-file", "now");
    let tar = tar.file("to-link", "").symlink("to-link", "f").file("a", "a").link("b", "a").file("b", "alone");
    let tar = tar.dir("d/").item(&TarItem { mode: 0o700, ..TarItem::new(b'5', "d/") }).link("f2", "f").link("f2", "f2");
    sandbox.unpack(&tar.finish()).unwrap();
    assert_eq!(sandbox.read("f").as_deref(), Some("second"));
    assert_eq!(sandbox.read("to-file").as_deref(), Some("now"));
    assert_eq!((sandbox.read("a").as_deref(), sandbox.read("b").as_deref()), (Some("a"), Some("alone")));
    assert!(sandbox.has("to-dir/x") && sandbox.has("to-link") && sandbox.has("f2"));
    let mode = std::os::unix::fs::MetadataExt::mode(&std::fs::metadata(sandbox.root().join("d")).unwrap());
    assert_eq!(mode & 0o7777, 0o700);
}

#[test]
fn a_file_cannot_be_a_directory_on_the_way() {
    let tar = Tar::new().file("f", "").file("f/x", "").finish();
    refused(&tar, Kind::InvalidArgument, "not a directory");
    refused(&Tar::new().file("f", "").link("x", "f/y").finish(), Kind::InvalidArgument, "not a directory");
    let cycle = Tar::new().symlink("a", "b").symlink("b", "a").file("a/x", "").finish();
    assert!(Sandbox::new().unpack(&cycle).unwrap_err().to_string().contains("symbolic links"));
}

#[test]
fn sizes_that_no_archive_has_are_refused_before_memory_is_taken() {
    let big = |flag: u8, size: u64| Tar::new().item(&TarItem { size: Some(size), ..TarItem::new(flag, "x") }).finish();
    for flag in [b'x', b'g', b'L', b'K'] {
        refused(&big(flag, 1 << 33), Kind::InvalidArgument, "extended header");
    }
    refused(&big(b'0', 1 << 40), Kind::Corrupt, "truncated");
    let max = u64::MAX.to_string();
    for (path, size) in [("f", "9223372036854775808"), ("f", max.as_str()), (".wh.x", max.as_str())] {
        let tar = Tar::new().pax(&[("size", size.as_bytes())]).file(path, "").finish();
        refused(&tar, Kind::InvalidArgument, "size");
    }
    let tar = Tar::new().pax(&[("size", b"-1")]).file("f", "").finish();
    refused(&tar, Kind::InvalidArgument, "size");
    let mut header = tar::Header::new_gnu();
    header.set_path("f").unwrap();
    header.as_old_mut().size = [0xff; 12];
    refused(&Tar::new().header(header).finish(), Kind::InvalidArgument, "size");
}

#[test]
fn names_that_no_file_can_have_are_refused() {
    let long = "x".repeat(256);
    let error =
        Sandbox::new().unpack(&Tar::new().pax(&[("path", long.as_bytes())]).file("f", "").finish()).unwrap_err();
    assert!(error.to_string().contains("name too long"), "{error}");
    let path = "d/".repeat(3000) + "f";
    refused(&Tar::new().pax(&[("path", path.as_bytes())]).file("f", "").finish(), Kind::InvalidArgument, "4096 bytes");
    refused(&Tar::new().pax(&[("path", b"a\0b")]).file("f", "").finish(), Kind::InvalidArgument, "NUL");
    refused(&Tar::new().file("", "").finish(), Kind::InvalidArgument, "empty");
    refused(&Tar::new().symlink("l", "").finish(), Kind::InvalidArgument, "empty");
    refused(&Tar::new().pax(&[("SCHILY.xattr.", b"v")]).file("f", "").finish(), Kind::InvalidArgument, "attribute");
}

#[test]
fn directories_nest_only_so_deep() {
    let deep = |levels: usize| {
        let path = "d/".repeat(levels) + "f";
        Tar::new().pax(&[("path", path.as_bytes())]).file("f", "").finish()
    };
    let sandbox = Sandbox::new();
    sandbox.unpack(&deep(crate::store::tree::MAX_DEPTH)).unwrap();
    refused(&deep(crate::store::tree::MAX_DEPTH + 1), Kind::Unsupported, "nest more than 256");
}

#[test]
fn an_archive_of_too_many_entries_is_refused() {
    let cancel = Cancel::new();
    let options = ExtractOptions { max_entries: 3, ..ExtractOptions::new(&cancel) };
    let sandbox = Sandbox::new();
    let tar = |count: usize| (0..count).fold(Tar::new(), |tar, n| tar.file(&n.to_string(), "")).finish();
    let into = || open_root(&sandbox.root()).unwrap();
    assert_eq!(extract(tar(3).as_slice(), into(), options).unwrap().entries, 3);
    let error = extract(tar(4).as_slice(), into(), options).unwrap_err();
    assert_eq!(error.kind(), Kind::Unsupported);
    assert!(error.to_string().contains("more than 3 entries"), "{error}");
}

#[test]
fn what_has_to_be_remembered_is_bounded() {
    let value = vec![b'v'; 60_000];
    let xattrs: Vec<String> = (0..16).map(|n| format!("SCHILY.xattr.user.{n}")).collect();
    let records: Vec<(&str, &[u8])> = xattrs.iter().map(|key| (key.as_str(), value.as_slice())).collect();
    let mut tar = Vec::new();
    for n in 0..300 {
        tar.extend(Tar::new().pax(&records).dir(&format!("{n}/")).open());
    }
    let error = Sandbox::new().unpack(&tar).unwrap_err();
    assert_eq!(error.kind(), Kind::Unsupported, "{error}");
    assert!(error.to_string().contains("more than"), "{error}");
}

#[test]
fn a_truncated_archive_is_corrupt_wherever_it_ends() {
    let tar = Tar::new().dir("d/").pax(&[("path", b"d/file")]).file("f", vec![1; 2000]).file("g", "x").finish();
    // The blocks where an archive may end without its final zeros, as some programs leave them out.
    let whole = [0, 512, 512 + 1024 + 512 + 2048, 512 + 1024 + 512 + 2048 + 1024];
    for len in (1..tar.len() - 1024).step_by(97).filter(|len| !whole.contains(len)) {
        let error = Sandbox::new().unpack(&tar[..len]).unwrap_err();
        assert_eq!(error.kind(), Kind::Corrupt, "cut at {len}: {error}");
        assert!(error.to_string().contains("truncated"), "{error}");
    }
    for len in whole {
        Sandbox::new().unpack(&tar[..len]).unwrap();
    }
}

#[test]
fn what_is_no_archive_is_refused() {
    let text = b"This is no archive, but a text that goes on for more than a block of a tar. ".repeat(20);
    refused(&text, Kind::InvalidArgument, "not a tar");
    let mut damaged = Tar::new().file("f", "x").finish();
    damaged[3] ^= 1;
    refused(&damaged, Kind::InvalidArgument, "sum of a header");
    let zero_then_more = [vec![0; 512], Tar::new().file("f", "x").finish()].concat();
    refused(&zero_then_more, Kind::InvalidArgument, "not a tar");
    for flag in *b"DMNX~" {
        let tar = Tar::new().item(&TarItem::new(flag, "x")).finish();
        refused(&tar, Kind::Unsupported, "not supported in a layer");
    }
}

#[test]
fn overlays_own_marks_and_labels_of_the_host_are_not_taken_from_an_archive() {
    let records: &[(&str, &[u8])] = &[
        ("SCHILY.xattr.trusted.overlay.opaque", b"y"),
        ("SCHILY.xattr.trusted.overlay.redirect", b"/etc"),
        ("SCHILY.xattr.user.overlay.opaque", b"y"),
        ("SCHILY.xattr.security.selinux", b"label"),
        ("SCHILY.xattr.system.posix_acl_access", b"acl"),
        ("SCHILY.xattr.user.mine", b"kept"),
    ];
    let sandbox = Sandbox::new();
    sandbox.unpack(&Tar::new().pax(records).dir("d/").pax(records).file("f", "").finish()).unwrap();
    let all = |_: &std::ffi::CStr| true;
    for name in ["d", "f"] {
        let dir = open_root(&sandbox.root()).unwrap();
        let name = std::ffi::CString::new(name).unwrap();
        let xattrs = Xattrs::at(&dir, &name, all).unwrap();
        let kept: Vec<_> = xattrs.iter().map(|(name, _)| name.to_str().unwrap()).collect();
        assert_eq!(kept, ["user.mine"]);
    }
}

#[test]
fn a_cancelled_unpack_stops() {
    let cancel = Cancel::new();
    cancel.cancel();
    let sandbox = Sandbox::new();
    let tar = Tar::new().file("f", "x").finish();
    let error = unpack(tar.as_slice(), open_root(&sandbox.root()).unwrap(), Marks::Files, ExtractOptions::new(&cancel))
        .unwrap_err();
    assert_eq!(error.kind(), Kind::Cancelled);
}
