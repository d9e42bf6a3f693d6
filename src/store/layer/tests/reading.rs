//! The formats of tar that programs have written over the years.

use std::os::unix::fs::{FileExt as _, MetadataExt as _};

use super::*;
use crate::store::tests::views::bytes;

#[test]
fn long_names_and_links_come_in_two_dialects() {
    let name = "n".repeat(120) + "/" + &"f".repeat(130);
    let target = "t".repeat(250);
    let gnu = |flag: u8, text: &str| TarItem { flag, ..TarItem::new(flag, "././@LongLink") }.with(text);
    let tar = Tar::new()
        .item(&gnu(b'L', &name).item())
        .file("cut", "gnu")
        .item(&gnu(b'K', &target).item())
        .symlink("l", "cut");
    let tar = tar.pax(&[("path", b"pax-\xff-name"), ("linkpath", target.as_bytes())]).symlink("cut", "cut");
    let sandbox = Sandbox::new();
    sandbox.unpack(&tar.finish()).unwrap();
    assert_eq!(sandbox.read(&name).as_deref(), Some("gnu"));
    for link in [b"l".as_slice(), b"pax-\xff-name"] {
        assert_eq!(std::fs::read_link(sandbox.root().join(bytes(link))).unwrap().to_str(), Some(target.as_str()));
    }
}

/// An item with a text and its NUL as data.
struct WithText<'a>(TarItem<'a>, Vec<u8>);

impl<'a> TarItem<'a> {
    fn with(self, text: &str) -> WithText<'a> {
        WithText(self, [text.as_bytes(), b"\0"].concat())
    }
}

impl WithText<'_> {
    fn item(&self) -> TarItem<'_> {
        TarItem { data: &self.1, ..self.0.clone() }
    }
}

#[test]
fn a_pax_header_is_for_one_entry_and_a_global_one_for_none() {
    let tar =
        Tar::new().pax(&[("path", b"renamed"), ("mtime", b"12.5"), ("uid", b"3000000")]).file("a", "a").file("b", "b");
    let global = TarItem { data: b"20 path=everything\n", ..TarItem::new(b'g', "pax_global_header") };
    let tar = tar.item(&global).file("c", "c");
    if !is_root() {
        return;
    }
    let sandbox = Sandbox::new();
    sandbox.unpack(&tar.finish()).unwrap();
    assert_eq!(
        sandbox.describe()[1..],
        [
            "./b file 1 3e23e8160039 644 0:0 @1",
            "./c file 1 2e7d2c03a950 644 0:0 @1",
            "./renamed file 1 ca978112ca1b 644 3000000:0 @12"
        ]
    );
    assert_eq!(std::fs::metadata(sandbox.root().join("renamed")).unwrap().mtime_nsec(), 500_000_000);
}

#[test]
fn the_size_in_a_pax_header_wins() {
    let tar =
        Tar::new().pax(&[("size", b"5")]).item(&TarItem { data: b"right", size: Some(3), ..TarItem::new(b'0', "f") });
    let sandbox = Sandbox::new();
    sandbox.unpack(&tar.file("g", "next").finish()).unwrap();
    assert_eq!((sandbox.read("f").as_deref(), sandbox.read("g").as_deref()), (Some("right"), Some("next")));
}

#[test]
fn what_is_no_file_has_no_data_whatever_its_size_says() {
    let wrong = |flag, path: &'static str| TarItem { size: Some(700), link: b"x", ..TarItem::new(flag, path) };
    let tar = Tar::new().item(&wrong(b'5', "d/")).item(&wrong(b'2', "s")).item(&wrong(b'6', "p")).file("x", "x");
    let tar = tar.item(&wrong(b'1', "h")).item(&wrong(0, "old-dir/")).file("last", "l");
    let sandbox = Sandbox::new();
    sandbox.unpack(&tar.finish()).unwrap();
    assert!(["d", "s", "p", "h", "old-dir", "last"].iter().all(|path| sandbox.has(path)));
    assert!(sandbox.root().join("old-dir").is_dir());
}

#[test]
fn a_file_whose_name_ends_in_a_slash_is_a_file_but_for_the_oldest_tars() {
    let sandbox = Sandbox::new();
    sandbox.unpack(&Tar::new().file("f/", vec![b'x'; 600]).file("g", "g").finish()).unwrap();
    assert_eq!(sandbox.read("f").map(|content| content.len()), Some(600));
    assert!(sandbox.has("g"));
}

#[test]
fn large_numbers_come_in_base_256() {
    if !is_root() {
        return;
    }
    let mut header = tar::Header::new_gnu();
    header.set_path("f").unwrap();
    header.set_mode(0o644);
    header.set_size(0);
    header.set_uid(4_000_000_000);
    header.set_gid(7);
    header.as_old_mut().mtime = [0xff; 12];
    let sandbox = Sandbox::new();
    sandbox.unpack(&Tar::new().header(header).finish()).unwrap();
    assert_eq!(sandbox.describe()[1], "./f file 0 e3b0c44298fc 644 4000000000:7 @-1");
}

/// A sparse file of 9 GiB with three stretches of data.
fn check_sparse(tar: &[u8], name: &str) {
    let sandbox = Sandbox::new();
    sandbox.unpack(tar).unwrap();
    let file = std::fs::File::open(sandbox.root().join(name)).unwrap();
    let meta = file.metadata().unwrap();
    assert_eq!(meta.len(), 9 << 30);
    assert!(meta.blocks() * 512 < 1 << 20, "{} blocks", meta.blocks());
    let at = |offset| {
        let mut found = [0; 6];
        file.read_exact_at(&mut found, offset).unwrap();
        String::from_utf8_lossy(&found).into_owned()
    };
    assert_eq!((at(0), at(5 << 30), at((9 << 30) - 6)), ("start\0".into(), "middle".into(), "\0\0\0end".into()));
    assert_eq!(sandbox.read("after").as_deref(), Some("a"));
}

const STRETCHES: [(u64, &[u8]); 4] = [(0, b"start"), (5 << 30, b"middle"), ((9 << 30) - 3, b"end"), (9 << 30, b"")];

#[test]
fn old_gnu_sparse_files_keep_their_holes() {
    let mut header = tar::Header::new_gnu();
    header.set_path("sparse").unwrap();
    header.set_entry_type(tar::EntryType::GNUSparse);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(1);
    header.set_size(14);
    let gnu = header.as_gnu_mut().unwrap();
    let octal = |field: &mut [u8; 12], value: u64| field[..12].copy_from_slice(format!("{value:011o}\0").as_bytes());
    // Two stretches in the header, two in the block after it.
    for (slot, (offset, data)) in gnu.sparse.iter_mut().zip(&STRETCHES[..2]) {
        octal(&mut slot.offset, *offset);
        octal(&mut slot.numbytes, data.len() as u64);
    }
    // 9 GiB needs base 256.
    gnu.realsize = [0x80, 0, 0, 0, 0, 0, 0, 2, 0x40, 0, 0, 0];
    gnu.isextended = [1];
    let mut extended = [0; 512];
    let base256 = |value: u64| [[0x80, 0, 0, 0].as_slice(), &value.to_be_bytes()].concat();
    for (slot, (offset, data)) in extended.chunks_exact_mut(24).zip(&STRETCHES[2..]) {
        slot[..12].copy_from_slice(&base256(*offset));
        slot[12..].copy_from_slice(&base256(data.len() as u64));
    }
    let tar = Tar::new().header(header).data(&extended).data(b"startmiddleend").file("after", "a").finish();
    check_sparse(&tar, "sparse");
}

#[test]
fn pax_sparse_files_of_every_version_keep_their_holes() {
    let size = (9_u64 << 30).to_string();
    let map: Vec<String> = STRETCHES.iter().map(|(offset, data)| format!("{offset},{}", data.len())).collect();
    let map = map.join(",");
    let data = b"startmiddleend".as_slice();
    let (offsets, lengths): (Vec<_>, Vec<_>) =
        STRETCHES.iter().map(|(offset, data)| (offset.to_string(), data.len().to_string())).unzip();
    let mut records: Vec<(&str, &[u8])> = vec![("GNU.sparse.size", size.as_bytes()), ("GNU.sparse.numblocks", b"4")];
    for (offset, length) in offsets.iter().zip(&lengths) {
        records.push(("GNU.sparse.offset", offset.as_bytes()));
        records.push(("GNU.sparse.numbytes", length.as_bytes()));
    }
    let zero_zero = Tar::new().pax(&records).file("sparse", data).file("after", "a").finish();
    check_sparse(&zero_zero, "sparse");
    let records: &[(&str, &[u8])] = &[
        ("GNU.sparse.size", size.as_bytes()),
        ("GNU.sparse.numblocks", b"4"),
        ("GNU.sparse.name", b"real/name"),
        ("GNU.sparse.map", map.as_bytes()),
    ];
    let zero_one = Tar::new().pax(records).file("GNUSparseFile.0/x", data).file("after", "a").finish();
    check_sparse(&zero_one, "real/name");
    let records: &[(&str, &[u8])] = &[
        ("GNU.sparse.major", b"1"),
        ("GNU.sparse.minor", b"0"),
        ("GNU.sparse.name", b"real/name"),
        ("GNU.sparse.realsize", size.as_bytes()),
    ];
    let mut content = format!("4\n{}\n", map.replace(',', "\n")).into_bytes();
    content.resize(512, 0);
    content.extend_from_slice(data);
    let one_zero = Tar::new().pax(records).file("GNUSparseFile.0/x", &content).file("after", "a").finish();
    check_sparse(&one_zero, "real/name");
}

#[test]
fn a_sparse_map_that_makes_no_sense_is_refused() {
    let sparse = |map: &str, size: &str| {
        let records: &[(&str, &[u8])] =
            &[("GNU.sparse.size", size.as_bytes()), ("GNU.sparse.map", map.as_bytes()), ("GNU.sparse.name", b"f")];
        Sandbox::new().unpack(&Tar::new().pax(records).file("x", "12345678").finish()).unwrap_err()
    };
    for (map, size) in [
        ("4,4,0,4", "100"),
        ("0,4,2,4", "100"),
        ("0,200", "100"),
        ("0,4,18446744073709551615,4", "100"),
        ("0,9", "100"),
        ("0", "100"),
        ("a,b", "100"),
        ("0,8", "x"),
    ] {
        let error = sparse(map, size);
        assert_eq!(error.kind(), Kind::InvalidArgument, "{map}: {error}");
    }
    let unknown: &[(&str, &[u8])] = &[("GNU.sparse.major", b"2"), ("GNU.sparse.minor", b"0")];
    let error = Sandbox::new().unpack(&Tar::new().pax(unknown).file("x", "").finish()).unwrap_err();
    assert_eq!(error.kind(), Kind::Unsupported, "{error}");
}

#[test]
fn a_layer_is_read_whatever_it_is_compressed_with() {
    let tar = Tar::new().file("f", vec![7; 100_000]).finish();
    let diff_id = Digest::of(&tar);
    for program in ["gzip", "zstd", "xz", "bzip2", "cat"] {
        let compressed = peers::pipe(program, &[], &tar);
        let unpacked = Sandbox::new().unpack(&compressed).unwrap();
        assert_eq!((unpacked.diff_id, unpacked.tar_size), (diff_id, tar.len() as u64), "{program}");
    }
    // Members that follow each other are one stream, as pigz and bgzip write them.
    let (one, two) = tar.split_at(3000);
    let members = [peers::pipe("gzip", &[], one), peers::pipe("gzip", &["-1"], two)].concat();
    assert_eq!(Sandbox::new().unpack(&members).unwrap().diff_id, diff_id);
    let error = Sandbox::new().unpack(&members[..members.len() - 20]).unwrap_err();
    assert_eq!(error.kind(), Kind::Corrupt, "{error}");
}

#[test]
fn what_follows_the_end_of_an_archive_belongs_to_its_digest() {
    let mut tar = Tar::new().file("f", "x").finish();
    tar.extend_from_slice(&[0; 8192]);
    tar.extend_from_slice(b"anything");
    let unpacked = Sandbox::new().unpack(&tar).unwrap();
    assert_eq!((unpacked.diff_id, unpacked.tar_size), (Digest::of(&tar), tar.len() as u64));
}
