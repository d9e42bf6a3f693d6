//! Both ends against each other and against what a hostile sender might say.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;
use std::sync::{Arc, Mutex};

use bollard_buildkit_proto::fsutil::types::Stat;
use bollard_buildkit_proto::fsutil::types::packet::PacketType;
use tokio_stream::wrappers::ReceiverStream;

use super::receive::answers;
use super::send::outgoing;
use super::*;
use crate::error::Result;
use crate::store::tree;

const BOOT: &str = "boot";

/// Sends one directory to a sink.
async fn transfer<S: Sink>(from: &Path, filter: Filter, sink: S) -> Result<S> {
    copy(Source::directory(tree::open_root(from).unwrap(), filter, true), sink).await
}

fn kept(dir: &Path) -> Kept {
    Kept::open(dir, BOOT, |_| {}, |_| Ok(())).unwrap()
}

/// Receives packets as a client might make them up.
async fn received(dir: &Path, packets: Vec<Packet>) -> Result<Kept> {
    let (answer, _answered) = answers();
    receive(tokio_stream::iter(packets.into_iter().map(Ok)), answer, kept(dir)).await
}

fn stat(path: &str, mode: u32) -> Packet {
    let stat = Stat { path: path.into(), mode, ..Stat::default() };
    Packet { r#type: PacketType::PacketStat.into(), stat: Some(stat), ..Packet::default() }
}

const DIR: u32 = 1 << 31 | 0o755;

fn names(dir: &Path) -> Vec<String> {
    let mut names = Vec::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(next) = dirs.pop() {
        for entry in std::fs::read_dir(next).unwrap().map(Result::unwrap) {
            names.push(entry.path().strip_prefix(dir).unwrap().to_str().unwrap().to_owned());
            if entry.file_type().unwrap().is_dir() {
                dirs.push(entry.path());
            }
        }
    }
    names.sort();
    names
}

#[tokio::test]
async fn privileged_a_kept_copy_follows_its_source_and_transfers_what_changed_only() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let path = |name: &str| from.path().join(name);
    std::fs::create_dir_all(path("a/b")).unwrap();
    std::fs::write(path("a/b/big"), vec![7; 300_000]).unwrap();
    std::fs::write(path("a/empty"), "").unwrap();
    // Sorts between `a` and what is in it, unless a slash comes first.
    std::fs::write(path("a-b"), "x").unwrap();
    std::fs::hard_link(path("a/b/big"), path("a/linked")).unwrap();
    symlink("b/big", path("a/soft")).unwrap();
    std::fs::set_permissions(path("a-b"), std::fs::Permissions::from_mode(0o4751)).unwrap();
    let copy = Kept::tree(to.path());
    let first = transfer(from.path(), Filter::default(), kept(to.path())).await.unwrap();
    assert_eq!(first.received_bytes(), 300_001);
    drop(first);
    assert_eq!(names(&copy), names(from.path()));
    let meta = |name: &str| std::fs::symlink_metadata(copy.join(name)).unwrap();
    assert_eq!(meta("a-b").mode() & 0o7777, 0o4751);
    assert_eq!((meta("a/linked").ino(), meta("a/linked").nlink()), (meta("a/b/big").ino(), 2));
    assert_eq!(std::fs::read_link(copy.join("a/soft")).unwrap().to_str(), Some("b/big"));
    for name in ["a", "a/b", "a/b/big", "a/soft", "a-b"] {
        let theirs = std::fs::symlink_metadata(path(name)).unwrap();
        assert_eq!((meta(name).mtime(), meta(name).mtime_nsec()), (theirs.mtime(), theirs.mtime_nsec()), "{name}");
    }

    let again = transfer(from.path(), Filter::default(), kept(to.path())).await.unwrap();
    assert_eq!(again.received_bytes(), 0);
    drop(again);

    std::fs::remove_dir_all(path("a/b")).unwrap();
    std::fs::write(path("a/b"), "a file now").unwrap();
    std::fs::remove_file(path("a-b")).unwrap();
    std::fs::create_dir(path("a-b")).unwrap();
    std::fs::write(path("a-b/new"), "new").unwrap();
    let changed = transfer(from.path(), Filter::default(), kept(to.path())).await.unwrap();
    // Its other name is the file now.
    assert_eq!(changed.received_bytes(), 10 + 3 + 300_000);
    drop(changed);
    assert_eq!(names(&copy), names(from.path()));
    assert_eq!(std::fs::read(copy.join("a/b")).unwrap(), b"a file now");
    assert_eq!(std::fs::read(copy.join("a/linked")).unwrap(), vec![7; 300_000]);
    assert_eq!(meta("a").mtime(), std::fs::metadata(path("a")).unwrap().mtime());
}

#[tokio::test]
async fn privileged_a_transfer_that_broke_off_goes_on_where_it_was() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    for n in 10..50 {
        std::fs::write(from.path().join(n.to_string()), vec![1; 1000]).unwrap();
    }
    let source = Source::directory(tree::open_root(from.path()).unwrap(), Filter::default(), true);
    let ((say, said), (answer, answered)) = (outgoing(), answers());
    let sending = send(source, ReceiverStream::new(answered).map(Ok), say);
    let mut pieces = 0;
    let broken = ReceiverStream::new(said).map(move |packet| {
        pieces += usize::from(packet.r#type() == PacketType::PacketData);
        if pieces > 20 { Err(tonic::Status::unavailable("gone")) } else { Ok(packet) }
    });
    let receiving = receive(broken, answer, kept(to.path()));
    let (_, received) = tokio::join!(sending, receiving);
    let error = received.unwrap_err();
    assert!(error.to_string().contains("gone"), "{error}");
    let rest = transfer(from.path(), Filter::default(), kept(to.path())).await.unwrap();
    assert!((1000..40_000).contains(&rest.received_bytes()), "{}", rest.received_bytes());
    drop(rest);
    assert_eq!(names(&Kept::tree(to.path())), names(from.path()));
}

/// The entries of a list of all.
fn listed(copy: &Path) -> Vec<Stat> {
    use prost::Message as _;
    let list = std::fs::read(copy.join(".fsutil-metadata")).unwrap();
    let (mut rest, mut stats) = (list.as_slice(), Vec::new());
    while let Some((length, after)) = rest.split_first_chunk() {
        let (stat, after) = after.split_at(u32::from_le_bytes(*length) as usize);
        stats.push(Stat::decode(stat).unwrap());
        rest = after;
    }
    stats
}

#[tokio::test]
async fn privileged_a_copy_may_hold_some_files_and_a_list_of_all() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let path = |name: &str| from.path().join(name);
    std::fs::create_dir_all(path("dir/sub")).unwrap();
    std::fs::create_dir_all(path("dir/sub2")).unwrap();
    for name in ["data", "dir/file1", "dir/file2", "dir/sub/bar1", "dir/sub/bar2", "dir/sub2/bar3", "foo"] {
        std::fs::write(path(name), name).unwrap();
    }
    // Nobody can put another list there.
    symlink("/etc/passwd", path(".fsutil-metadata")).unwrap();
    let exceptions = ["dir/**/*1", "foo"].map(str::to_owned);
    let copy = Kept::tree(to.path());
    let sink = || Listed::open(to.path(), kept(to.path()), &exceptions).unwrap();
    drop(transfer(from.path(), Filter::default(), sink()).await.unwrap());
    let taken = [".fsutil-metadata", "dir", "dir/file1", "dir/sub", "dir/sub/bar1", "foo"];
    assert_eq!(names(&copy), taken);
    let paths = |copy: &Path| listed(copy).into_iter().map(|stat| stat.path).collect::<Vec<_>>();
    let all = ["data", "dir", "dir/file1", "dir/file2", "dir/sub", "dir/sub/bar1", "dir/sub/bar2", "dir/sub2"];
    assert_eq!(paths(&copy), [&all[..], &["dir/sub2/bar3", "foo"]].concat());
    let file = listed(&copy).remove(3);
    assert_eq!((file.size, file.mode & 0o777), (9, path("dir/file2").metadata().unwrap().mode() & 0o777));
    let first = std::fs::metadata(copy.join(".fsutil-metadata")).unwrap().ino();

    // What stays the same is not written again.
    let again = transfer(from.path(), Filter::default(), sink()).await.unwrap();
    assert_eq!(again.received_bytes(), 0);
    drop(again);
    assert_eq!(std::fs::metadata(copy.join(".fsutil-metadata")).unwrap().ino(), first);

    std::fs::remove_dir_all(path("dir/sub")).unwrap();
    std::fs::write(path("dir/file1"), "updated").unwrap();
    std::fs::write(path("dir/bar1"), "new").unwrap();
    drop(transfer(from.path(), Filter::default(), sink()).await.unwrap());
    assert_eq!(names(&copy), [".fsutil-metadata", "dir", "dir/bar1", "dir/file1", "foo"]);
    assert_eq!(std::fs::read(copy.join("dir/file1")).unwrap(), b"updated");
    assert_eq!(paths(&copy), ["data", "dir", "dir/bar1", "dir/file1", "dir/file2", "dir/sub2", "dir/sub2/bar3", "foo"]);
    assert_eq!(names(to.path()).iter().filter(|name| !name.starts_with("tree")).collect::<Vec<_>>(), ["index"]);
    assert!(Listed::open(to.path(), kept(to.path()), &["[".to_owned()]).is_err());
}

#[tokio::test]
async fn what_is_ignored_or_not_asked_for_is_not_sent() {
    let from = tempfile::tempdir().unwrap();
    for name in ["a/x", "a/y", "b/z", "node_modules/m"] {
        let path = from.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, name).unwrap();
    }
    symlink("a/x", from.path().join("link")).unwrap();
    let filter =
        Filter { follow: vec!["link".into(), "b".into()], exclude: vec!["node_modules".into()], ..Filter::default() };
    let files = transfer(from.path(), filter, Files::new(1000)).await.unwrap();
    assert_eq!(files.read("link").unwrap(), Some(&b"a/x"[..]));
    assert_eq!(files.read("/b/../b/z").unwrap(), Some(&b"b/z"[..]));
    assert_eq!((files.read("a/y").unwrap(), files.read("node_modules/m").unwrap()), (None, None));
    assert!(files.read("b").is_err());
    let error = transfer(from.path(), Filter::default(), Files::new(5)).await.unwrap_err();
    assert!(error.to_string().contains("larger than"), "{error}");
}

#[tokio::test]
async fn hostile_lists_are_refused_and_nothing_leaves_the_copy() {
    let end = || packet(PacketType::PacketStat, 0, Vec::new());
    let link = |path: &str, to: &str| {
        let mut packet = stat(path, 1 << 27 | 0o777);
        packet.stat.as_mut().unwrap().linkname = to.into();
        packet
    };
    let hard = |path: &str, to: &str| {
        let mut packet = stat(path, 0o644);
        packet.stat.as_mut().unwrap().linkname = to.into();
        packet
    };
    let data = |id, data: &[u8]| packet(PacketType::PacketData, id, data.to_vec());
    let long = "x/".repeat(3000);
    let cases: Vec<(&str, Vec<Packet>)> = vec![
        ("below the root", vec![stat("../x", 0o644)]),
        ("below the root", vec![stat("a/../../x", 0o644)]),
        ("below the root", vec![stat("..", DIR)]),
        ("absolute", vec![stat("/etc/passwd", 0o644)]),
        ("empty name", vec![stat("a//b", 0o644)]),
        ("NUL", vec![stat("a\0b", 0o644)]),
        ("longer than exists", vec![stat(&long, 0o644)]),
        ("longer name", vec![stat(&"n".repeat(256), 0o644)]),
        ("out of order", vec![stat("b", 0o644), stat("a", 0o644)]),
        ("out of order", vec![stat("a", 0o644), stat("a", 0o644)]),
        ("no directory", vec![stat("a/b", 0o644)]),
        ("no directory", vec![link("a", "/etc"), stat("a/b", 0o644)]),
        ("no directory", vec![stat("a", 0o644), stat("a/b", 0o644)]),
        ("link h to nothing", vec![hard("h", "nothing"), end()]),
        ("another name of a directory", vec![stat("d", DIR), hard("h", "d"), end()]),
        ("below the root", vec![hard("h", "../../../etc/passwd"), end()]),
        ("nobody asked for", vec![stat("a", DIR), data(0, b"x")]),
        ("nobody asked for", vec![data(7, b"x")]),
        ("nobody asked for", vec![data(7, b"")]),
        ("after the end", vec![end(), stat("a", 0o644)]),
        ("before everything", vec![stat("a", 0o644), packet(PacketType::PacketFin, 0, Vec::new())]),
        ("sort that does not exist", vec![stat("a", 1 << 19)]),
        ("asks for data", vec![packet(PacketType::PacketReq, 0, Vec::new())]),
        ("because", vec![packet(PacketType::PacketErr, 0, b"because".to_vec())]),
        ("ended early", vec![stat("a", 0o644)]),
    ];
    for (word, packets) in cases {
        let outer = tempfile::tempdir().unwrap();
        let dir = outer.path().join("copy");
        std::fs::create_dir(&dir).unwrap();
        let error = received(&dir, packets).await.unwrap_err();
        assert!(error.to_string().contains(word), "{word}: {error}");
        assert_eq!(std::fs::read_dir(outer.path()).unwrap().count(), 1, "{word}");
    }
}

#[tokio::test]
async fn a_file_that_grows_while_it_is_sent_is_cut_at_its_listed_size() {
    let to = tempfile::tempdir().unwrap();
    let mut listed = stat("a", 0o600);
    listed.stat.as_mut().unwrap().size = 3;
    let packets = vec![
        listed,
        packet(PacketType::PacketStat, 0, Vec::new()),
        packet(PacketType::PacketData, 0, b"ab".to_vec()),
        packet(PacketType::PacketData, 0, b"cdef".to_vec()),
        packet(PacketType::PacketData, 0, Vec::new()),
    ];
    // Only root may give files away.
    if !rustix::process::geteuid().is_root() {
        return;
    }
    drop(received(to.path(), packets).await.unwrap());
    assert_eq!(std::fs::read(Kept::tree(to.path()).join("a")).unwrap(), b"abc");
}

#[tokio::test(start_paused = true)]
async fn a_sender_that_falls_silent_is_not_waited_for_for_ever() {
    let to = tempfile::tempdir().unwrap();
    let (answer, mut answered) = answers();
    let silent = tokio_stream::iter([Ok(stat("a", 0o644))]).chain(tokio_stream::pending());
    // Time does not pass by itself while a thread works.
    let passing = async {
        for _ in 0..3 {
            tokio::time::advance(std::time::Duration::from_secs(120)).await;
        }
    };
    let (received, ()) = tokio::join!(receive(silent, answer, kept(to.path())), passing);
    let error = received.unwrap_err();
    assert_eq!(error.kind(), crate::error::Kind::Timeout);
    let mut last = None;
    while let Some(said) = answered.recv().await {
        last = Some(said.r#type());
    }
    assert_eq!(last, Some(PacketType::PacketErr), "the sender is told");
}

#[tokio::test]
async fn privileged_what_was_written_is_known_by_its_hash() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    std::fs::write(from.path().join("f"), "data").unwrap();
    let learnt: Arc<Mutex<Vec<Learnt>>> = Arc::default();
    let learn = Arc::clone(&learnt);
    let sink = Kept::open(to.path(), BOOT, move |file| learn.lock().unwrap().push(file), |_| Ok(())).unwrap();
    drop(transfer(from.path(), Filter::default(), sink).await.unwrap());
    let learnt = learnt.lock().unwrap();
    assert_eq!(learnt[0].1, *blake3::hash(b"data").as_bytes());
    let dir = tree::open_root(&Kept::tree(to.path())).unwrap();
    assert_eq!(learnt[0].0, tree::Metadata::at(&dir, c"f").unwrap());
}
