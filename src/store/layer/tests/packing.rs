//! What a tree becomes when it is packed.

use std::io;
use std::os::unix::fs::FileExt as _;

use super::*;

/// A tree with all that tests of packing need, on any file system and without rights.
fn sample(dir: &Path) {
    let tree = Tree::at(dir);
    tree.dir("d").file("d/a", "a").link("d/b", "d/a").symlink("link", "d/a").fifo("pipe").file("z", "z");
    for n in 0..300 {
        tree.file(format!("d/{n:03}"), vec![b'x'; n * 37]);
    }
    tree.file("big", (0..2_000_000).map(|n: u32| (n % 251) as u8).collect::<Vec<_>>()).mode("d/a", 0o4750);
}

#[test]
fn the_same_tree_gives_the_same_bytes_with_any_number_of_threads() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir_in("/dev/shm").unwrap());
    sample(one.path());
    sample(two.path());
    let packed = pack_dir(one.path());
    for threads in [1, 2, 7] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        assert!(pool.install(|| pack_dir(one.path())) == packed, "{threads} threads");
    }
    assert!(pack_dir(two.path()) == packed, "another file system gives other bytes");
}

#[test]
fn holes_do_not_matter() {
    let dir = tempfile::tempdir().unwrap();
    let (sparse, full) = (dir.path().join("sparse"), dir.path().join("full"));
    for dir in [&sparse, &full] {
        std::fs::create_dir(dir).unwrap();
    }
    let mut content = vec![0; 3 << 20];
    content[1 << 20..(1 << 20) + 5].copy_from_slice(b"hello");
    Tree::at(&full).file("f", &content);
    let file = std::fs::File::create(sparse.join("f")).unwrap();
    file.set_len(3 << 20).unwrap();
    file.write_all_at(b"hello", 1 << 20).unwrap();
    drop(file);
    Tree::at(&sparse).time("f", 1_700_000_001);
    assert!(pack_dir(&sparse) == pack_dir(&full));
}

/// Takes so many bytes and then fails.
struct Bounded {
    bytes: Vec<u8>,
    limit: usize,
}

impl Write for Bounded {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        if self.bytes.len() >= self.limit {
            return Err(Error::exhausted("enough").into());
        }
        self.bytes.extend_from_slice(data);
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_file_beyond_8_gib_has_its_size_in_a_pax_record() {
    let dir = tempfile::tempdir().unwrap();
    let file = std::fs::File::create(dir.path().join("huge")).unwrap();
    file.set_len((8 << 30) + 5).unwrap();
    file.write_all_at(b"begin", 0).unwrap();
    drop(file);
    let mut out = Bounded { bytes: Vec::new(), limit: 3 << 20 };
    let error = write(whole(dir.path()), &Style::default(), &mut out, &Cancel::new()).unwrap_err();
    assert_eq!(error.kind(), Kind::Exhausted, "the writer's own error is passed on: {error}");
    let tar = out.bytes;
    assert_eq!(&tar[512..536], b"19 size=8589934597\n\0\0\0\0\0");
    assert_eq!(&tar[1024..1028], b"huge");
    assert_eq!(&tar[1536..1541], b"begin");
    // Read back: the size is known, and the data is not all there.
    let error = Sandbox::new().unpack(&tar).unwrap_err();
    assert_eq!(error.kind(), Kind::Corrupt);
    let mut entries = entries::Entries::new(tar.as_slice());
    assert_eq!(entries.next().unwrap().unwrap().body, entries::EntryBody::File((8 << 30) + 5));
}

#[test]
fn a_file_that_shrinks_while_it_is_packed_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("f");
    std::fs::write(&path, vec![1; 8 << 20]).unwrap();
    struct Shrinks(PathBuf);
    impl Write for Shrinks {
        fn write(&mut self, data: &[u8]) -> io::Result<usize> {
            std::fs::File::options().write(true).open(&self.0)?.set_len(10)?;
            Ok(data.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let error = write(whole(dir.path()), &Style::default(), &mut Shrinks(path), &Cancel::new()).unwrap_err();
    assert_eq!(error.kind(), Kind::Conflict, "{error}");
    assert!(error.to_string().contains("pack f: the file changed while it was read"), "{error}");
}

#[test]
fn a_cancelled_pack_stops() {
    let dir = tempfile::tempdir().unwrap();
    sample(dir.path());
    let cancel = Cancel::new();
    cancel.cancel();
    assert_eq!(digest(whole(dir.path()), &cancel).unwrap_err().kind(), Kind::Cancelled);
}

#[test]
fn the_content_hash_knows_everything_but_times() {
    let hash = |change: &dyn Fn(&Tree)| {
        let dir = tempfile::tempdir().unwrap();
        let tree = Tree::at(dir.path());
        tree.dir("d").file("d/f", "content").symlink("l", "x").file("g", "");
        change(&tree);
        digest(whole(dir.path()), &Cancel::new()).unwrap()
    };
    let usual = hash(&|_| {});
    let later = hash(&|tree| {
        tree.time("d", 3).time("d/f", 4).time("l", 5);
    });
    assert_eq!(usual.content, later.content);
    assert_ne!(usual.diff_id, later.diff_id);
    let changes: [&dyn Fn(&Tree); 6] = [
        &|tree| {
            tree.file("d/f", "c0ntent");
        },
        &|tree| {
            tree.mode("d/f", 0o600);
        },
        &|tree| {
            tree.mode("d", 0o700);
        },
        &|tree| {
            tree.xattr("d/f", "user.x", b"");
        },
        &|tree| {
            tree.remove("l").symlink("l", "y");
        },
        &|tree| {
            tree.remove("g").link("g", "d/f");
        },
    ];
    for (number, change) in changes.iter().enumerate() {
        assert_ne!(hash(*change).content, usual.content, "change {number}");
    }
}

#[test]
fn sockets_are_left_out() {
    let dir = tempfile::tempdir().unwrap();
    let _listener = std::os::unix::net::UnixListener::bind(dir.path().join("socket")).unwrap();
    assert_eq!(pack_dir(dir.path()), vec![0; 1024]);
}
