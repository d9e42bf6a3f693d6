//! Trees of any shape come through a tar as they were.

use proptest::prelude::*;

use super::*;
use crate::store::tests::views::bytes;

/// Something in a generated tree.
#[derive(Clone, Debug)]
enum Node {
    File {
        content: Vec<u8>,
        mode: u32,
        xattr: Option<Vec<u8>>,
    },
    Dir {
        mode: u32,
    },
    Symlink(Vec<u8>),
    Fifo,
    /// A link to one of the files made before.
    Link(usize),
}

fn name() -> impl Strategy<Value = Vec<u8>> {
    let any_byte = prop::collection::vec(any::<u8>().prop_filter("a byte of names", |b| !matches!(b, 0 | b'/')), 1..12);
    let long = (100..255_usize).prop_map(|len| vec![b'n'; len]);
    let plain = "[a-c]{1,2}".prop_map(String::into_bytes);
    prop_oneof![3 => plain, 2 => any_byte, 1 => long]
        .prop_filter("a name", |name| !matches!(name.as_slice(), b"." | b"..") && !name.starts_with(b".wh."))
}

fn node() -> impl Strategy<Value = Node> {
    let content = prop_oneof![
        prop::collection::vec(any::<u8>(), 0..600),
        (0..300_000_usize, any::<u8>()).prop_map(|(len, byte)| vec![byte; len]),
    ];
    let target = prop::collection::vec(1..=255_u8, 1..300);
    let xattr = prop::option::of(prop::collection::vec(any::<u8>(), 0..100));
    prop_oneof![
        4 => (content, 0..0o10000_u32, xattr).prop_map(|(content, mode, xattr)| Node::File { content, mode: mode | 0o400, xattr }),
        3 => (0..0o10000_u32).prop_map(|mode| Node::Dir { mode: mode | 0o700 }),
        1 => target.prop_map(Node::Symlink),
        1 => Just(Node::Fifo),
        1 => any::<usize>().prop_map(Node::Link),
    ]
}

/// A list of steps: in which of the directories so far, under which name, what, and its time.
fn trees() -> impl Strategy<Value = Vec<(usize, Vec<u8>, Node, i64)>> {
    prop::collection::vec((any::<usize>(), name(), node(), -10_i64..20_000_000_000), 0..30)
}

fn make(root: &Path, steps: &[(usize, Vec<u8>, Node, i64)]) {
    use std::os::unix::fs::PermissionsExt as _;
    let (mut dirs, mut files) = (vec![PathBuf::new()], Vec::<PathBuf>::new());
    let mut times = Vec::new();
    for (dir, name, node, time) in steps {
        let path = dirs[dir % dirs.len()].join(bytes(name));
        let full = root.join(&path);
        if full.symlink_metadata().is_ok() || full.as_os_str().len() > 3000 {
            continue;
        }
        let set_mode = |mode: &u32| std::fs::set_permissions(&full, std::fs::Permissions::from_mode(*mode)).unwrap();
        match node {
            Node::File { content, mode, xattr } => {
                std::fs::write(&full, content).unwrap();
                if let Some(value) = xattr {
                    rustix::fs::setxattr(&full, "user.x", value, rustix::fs::XattrFlags::empty()).unwrap();
                }
                set_mode(mode);
                files.push(path.clone());
            }
            Node::Dir { mode } => {
                std::fs::create_dir(&full).unwrap();
                set_mode(mode);
                dirs.push(path.clone());
            }
            Node::Symlink(target) => std::os::unix::fs::symlink(bytes(target), &full).unwrap(),
            Node::Fifo => {
                Tree::at(root).fifo(&path);
            }
            Node::Link(of) if !files.is_empty() => {
                std::fs::hard_link(root.join(&files[of % files.len()]), &full).unwrap();
            }
            Node::Link(_) => continue,
        }
        times.push((path, *time));
    }
    let tree = Tree::at(root);
    for (path, time) in times.iter().rev() {
        tree.time(path, *time);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn a_tree_comes_back_as_it_was_and_is_packed_the_same_again(steps in trees()) {
        let dir = tempfile::tempdir().unwrap();
        make(dir.path(), &steps);
        let tar = pack_dir(dir.path());
        let sandbox = Sandbox::new();
        let unpacked = sandbox.unpack(&tar).unwrap();
        prop_assert_eq!(unpacked.diff_id, Digest::of(&tar));
        prop_assert_eq!(&sandbox.describe()[1..], &describe(dir.path())[1..]);
        // The root has no entry unless it is unusual, and gets the usual metadata then.
        prop_assert!(pack_dir(&sandbox.root()) == tar || describe(dir.path())[0] != sandbox.describe()[0]);
    }

    #[test]
    fn no_bytes_make_the_reader_panic_or_leave_its_root(
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..20),
        fix_sums in any::<bool>(),
    ) {
        let tar = Tar::new().dir("d/").pax(&[("path", b"d/file"), ("mtime", b"1.5")]).file("f", vec![1; 700]);
        let tar = tar.symlink("l", "../x").link("h", "d/file").mark("d/.wh.gone").file("l/y", "y").mark("e/.wh..wh..opq");
        let mut tar = tar.finish();
        for (at, byte) in damage {
            let at = at.index(tar.len());
            tar[at] = byte;
        }
        if fix_sums {
            // So that the damage gets further than to the first check.
            for block in tar.chunks_exact_mut(512).filter(|block| block[257..262] == *b"ustar") {
                block[148..156].fill(b' ');
                let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
                block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
            }
        }
        // Whatever comes of it; the sandbox looks after the outside.
        let _ = Sandbox::new().unpack(&tar);
        let _ = Sandbox::new().extract(&tar);
    }
}
