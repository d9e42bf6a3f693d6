//! Tests of copies into layers of a real store, mounted and looked at.

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kiln_dockerfile::Ignore;
use kiln_graph::SourceFile;
use kiln_graph::op::{Copy, Mode};

use super::*;
use crate::error::{Error, Kind};
use crate::state::Root;
use crate::store::tree::{Time, open_root};
use crate::store::{Access, Driver, Lease, SnapshotId, Store};
use crate::task::{Cancel, Clock};

/// A store, a source directory, and the layers made of it.
struct Bench {
    dir: tempfile::TempDir,
    store: Store,
    lease: Lease,
}

impl Bench {
    fn new(driver: Driver) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::open(&dir.path().join("root"), &[crate::store::SCHEMA]).unwrap();
        let store = Store::open(root, Clock::system(), Some(driver)).unwrap();
        let lease = store.lease("test").unwrap();
        fs::create_dir(dir.path().join("src")).unwrap();
        Self { dir, store, lease }
    }

    fn source(&self, path: &str) -> PathBuf {
        self.dir.path().join("src").join(path)
    }

    fn file(&self, path: &str, content: &str) {
        fs::create_dir_all(self.source(path).parent().unwrap()).unwrap();
        fs::write(self.source(path), content).unwrap();
    }

    fn tree(&self, ignore: &str) -> Tree {
        let ignore = Ignore::parse(&SourceFile::new(".dockerignore", ignore)).unwrap();
        Tree {
            root: Arc::new(open_root(&self.source("")).unwrap()),
            name: "the build context".to_owned(),
            ignore: Some(Arc::new(ignore)),
            owners: Owners::Root,
            memo: None,
        }
    }

    fn layer(&self, base: Option<SnapshotId>, copies: &[Copy]) -> Result<SnapshotId, Error> {
        self.layer_from(base, copies, &self.tree(""), None)
    }

    fn layer_from(
        &self,
        base: Option<SnapshotId>,
        copies: &[Copy],
        tree: &Tree,
        donor: Option<(SnapshotId, Listing)>,
    ) -> Result<SnapshotId, Error> {
        let active = self.store.prepare(&self.lease, base)?;
        let below = self.store.rootfs(base)?.mount(Access::ReadOnly)?;
        let cancel = Cancel::new();
        let target = Target { active: &active, below, donor };
        let writer = Writer::new(target, Time { seconds: 1, nanos: 0 }, &cancel)?;
        for copy in copies {
            writer.copy(tree, &select(tree, copy, &cancel)?, copy, None)?;
        }
        drop(writer);
        active.commit()
    }

    fn mount(&self, snapshot: SnapshotId) -> Mounted {
        Mounted(self.store.rootfs(Some(snapshot)).unwrap().mount(Access::ReadOnly).unwrap())
    }
}

struct Mounted(OwnedFd);

impl Mounted {
    fn path(&self, path: &str) -> PathBuf {
        use std::os::fd::AsRawFd as _;
        Path::new(&format!("/proc/self/fd/{}", self.0.as_raw_fd())).join(path.trim_start_matches('/'))
    }

    fn read(&self, path: &str) -> Option<String> {
        fs::read_to_string(self.path(path)).ok()
    }

    fn stat(&self, path: &str) -> fs::Metadata {
        fs::symlink_metadata(self.path(path)).unwrap()
    }
}

fn copy(source: &str, dest: &str) -> Copy {
    Copy { source: source.to_owned(), dest: dest.to_owned(), ..Copy::default() }
}

fn privileged() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("SKIPPED: mounting needs root");
    }
    root
}

fn on_both_drivers(test: impl Fn(&Bench)) {
    if privileged() {
        for driver in [Driver::Overlay, Driver::Native] {
            test(&Bench::new(driver));
        }
    }
}

#[test]
fn privileged_destinations_follow_buildkits_rules() {
    on_both_drivers(|bench| {
        bench.file("a.txt", "a");
        bench.file("dir/one", "1");
        bench.file("dir/sub/two", "2");
        let base = bench.layer(None, &[copy("/a.txt", "/opt/there/x"), copy("/a.txt", "/plain")]).unwrap();
        let made = bench
            .layer(
                Some(base),
                &[
                    copy("/a.txt", "/new"),
                    copy("/a.txt", "/into/"),
                    copy("/a.txt", "/opt/there"),
                    copy("/dir", "/contents"),
                    copy("/dir", "/opt/there"),
                    copy("/", "/all/"),
                ],
            )
            .unwrap();
        let root = bench.mount(made);
        for (path, content) in [
            ("/new", "a"),
            ("/into/a.txt", "a"),
            ("/opt/there/a.txt", "a"),
            ("/opt/there/x", "a"),
            ("/contents/one", "1"),
            ("/contents/sub/two", "2"),
            ("/opt/there/sub/two", "2"),
            ("/all/dir/sub/two", "2"),
            ("/plain", "a"),
        ] {
            assert_eq!(root.read(path).as_deref(), Some(content), "{path}");
        }
        assert_eq!(root.stat("/into").mode() & 0o7777, 0o755);
    });
}

#[test]
fn privileged_a_directory_never_replaces_a_file_nor_a_file_a_directory() {
    on_both_drivers(|bench| {
        bench.file("d/x/y", "deep");
        bench.file("f", "file");
        let base = bench.layer(None, &[copy("/f", "/t/x"), copy("/d", "/u")]).unwrap();
        let error = bench.layer(Some(base), &[copy("/d", "/t")]).unwrap_err();
        assert_eq!(error.kind(), Kind::InvalidArgument, "{error}");
        bench.file("e/x", "a file named as the directory in /u");
        let error = bench.layer(Some(base), &[copy("/e", "/u")]).unwrap_err();
        assert!(error.to_string().contains("in the way"), "{error}");
        let error = bench.layer(Some(base), &[copy("/d", "/t/x")]).unwrap_err();
        assert_eq!(error.kind(), Kind::InvalidArgument, "{error}");
    });
}

#[test]
fn privileged_patterns_links_and_dots_stay_within_the_context() {
    on_both_drivers(|bench| {
        bench.file("src/a.rs", "a");
        bench.file("src/b.rs", "b");
        bench.file("src/c.txt", "c");
        symlink("src", bench.source("link")).unwrap();
        symlink("src/c.txt", bench.source("file-link")).unwrap();
        symlink("/src/a.rs", bench.source("absolute")).unwrap();
        symlink("nowhere", bench.source("src/dangling")).unwrap();
        let copies = [
            copy("/src/*.rs", "/one/"),
            copy("/link/c.txt", "/two/"),
            copy("/file-link", "/three"),
            copy("/absolute", "/four"),
            copy("/../../src", "/five"),
            copy("/s?c/[ab].rs", "/six/"),
            copy("/no*such", "/seven/"),
        ];
        let root = bench.mount(bench.layer(None, &copies).unwrap());
        for (path, content) in [
            ("/one/a.rs", "a"),
            ("/one/b.rs", "b"),
            ("/two/c.txt", "c"),
            ("/three", "c"),
            ("/four", "a"),
            ("/six/b.rs", "b"),
        ] {
            assert_eq!(root.read(path).as_deref(), Some(content), "{path}");
        }
        assert!(!root.stat("/three").is_symlink(), "a link that was named is followed");
        assert!(root.stat("/five/dangling").is_symlink(), "a link in a directory is copied as one");
        assert_eq!(root.read("/one/c.txt"), None);
    });
}

#[test]
fn privileged_links_are_followed_up_to_the_first_wildcard_and_at_the_end() {
    on_both_drivers(|bench| {
        bench.file("d/x", "x");
        bench.file("e/x", "other");
        symlink("nothing", bench.source("dangling")).unwrap();
        symlink("d", bench.source("link")).unwrap();
        let made = bench.layer(None, &[Copy { follow_symlinks: false, ..copy("/d*", "/links/") }]).unwrap();
        assert!(bench.mount(made).stat("/links/dangling").is_symlink());
        let error = bench.layer(None, &[copy("/d*", "/followed/")]).unwrap_err();
        assert_eq!(error.kind(), Kind::NotFound);
        let text = error.to_string();
        assert!(text.contains("\"/dangling\": not found in the build context (a symbolic link to nothing)"), "{text}");
        let copies = [copy("/link/*", "/before/"), copy("/*/x", "/behind/"), copy("/l*", "/end/")];
        let root = bench.mount(bench.layer(None, &copies).unwrap());
        assert_eq!(root.read("/before/x").as_deref(), Some("x"));
        assert_eq!(root.read("/behind/x").as_deref(), Some("other"), "link is none of the directories");
        assert_eq!(root.read("/end/x").as_deref(), Some("x"));
    });
}

#[test]
fn privileged_what_stands_before_a_wildcard_has_to_be_there() {
    on_both_drivers(|bench| {
        bench.file("d/x", "x");
        bench.file("secret/x", "x");
        bench.file("[br].txt", "x");
        let tree = bench.tree("secret\n");
        let error = |source: &str| bench.layer_from(None, &[copy(source, "/x/")], &tree, None).unwrap_err().to_string();
        assert!(error("/b/*").contains("\"/b\": not found in the build context"), "{}", error("/b/*"));
        assert!(error("/secret/*").contains("line 1 of .dockerignore excludes it"), "{}", error("/secret/*"));
        assert!(error("/\\[br].txt").contains("not found"), "a backslash is one, where there are no wildcards");
        bench.layer_from(None, &[copy("/d/*.none", "/x/"), copy("/d/x/*", "/x/")], &tree, None).unwrap();
        let root = bench.mount(bench.layer_from(None, &[copy("/\\[b*.txt", "/x/")], &tree, None).unwrap());
        assert_eq!(root.read("/x/[br].txt").as_deref(), Some("x"));
    });
}

#[test]
fn privileged_what_is_not_there_is_named_with_its_reason() {
    on_both_drivers(|bench| {
        bench.file("Readme.md", "x");
        bench.file("secret/key", "x");
        let tree = bench.tree("secret\n");
        let fail = |source: &str| bench.layer_from(None, &[copy(source, "/x")], &tree, None).unwrap_err();
        let error = fail("/readme.md");
        assert_eq!(error.kind(), Kind::NotFound);
        assert!(error.to_string().contains("\"/readme.md\": not found in the build context (did you mean Readme.md?)"));
        let error = fail("/secret/key").to_string();
        assert!(error.contains("line 1 of .dockerignore excludes it: secret"), "{error}");
        assert!(fail("/nothing").to_string().ends_with("not found in the build context"));
    });
}

#[test]
fn privileged_exceptions_show_nothing_but_what_they_name() {
    on_both_drivers(|bench| {
        for path in ["secret.txt", "shown.md", "hidden/x", "half/x", "half/x.md"] {
            bench.file(path, path);
        }
        symlink("half", bench.source("link")).unwrap();
        let tree = bench.tree("secret.txt\nhidden\nhalf\nlink\n!**/*.md\n");
        for source in ["/secret.txt", "/hidden", "/link", "/link/x.md", "/link/*"] {
            let error = bench.layer_from(None, &[copy(source, "/x")], &tree, None).unwrap_err().to_string();
            assert!(error.contains(".dockerignore excludes it"), "{error}");
        }
        let copies = [copy("/[shl]*", "/all/"), copy("/half", "/half/"), copy("/*/x", "/none/")];
        let root = bench.mount(bench.layer_from(None, &copies, &tree, None).unwrap());
        assert_eq!(root.read("/all/shown.md").as_deref(), Some("shown.md"));
        assert_eq!((root.read("/all/secret.txt"), root.read("/all/x"), root.read("/half/x")), (None, None, None));
        assert_eq!(root.read("/half/x.md").as_deref(), Some("half/x.md"));
        assert!(!root.path("/none/x").exists());
    });
}

#[test]
fn privileged_ignored_and_excluded_files_are_left_out() {
    on_both_drivers(|bench| {
        for path in ["a/keep", "a/drop.log", "a/logs/important.log", "a/logs/other.log", "b/x", "b/y"] {
            bench.file(path, path);
        }
        let tree = bench.tree("**/*.log\n!a/logs/important.log\n");
        let exclude = Copy { exclude: vec!["y".to_owned()], ..copy("/b", "/b") };
        let root = bench.mount(bench.layer_from(None, &[copy("/", "/"), exclude], &tree, None).unwrap());
        assert_eq!(root.read("/a/logs/important.log").as_deref(), Some("a/logs/important.log"));
        assert_eq!((root.read("/a/drop.log"), root.read("/a/logs/other.log")), (None, None));
        let only = Copy { exclude: vec!["y".to_owned()], ..copy("/b", "/only") };
        let root = bench.mount(bench.layer(None, &[only]).unwrap());
        assert_eq!((root.read("/only/x").as_deref(), root.read("/only/y")), (Some("b/x"), None));
    });
}

#[test]
fn privileged_parents_are_kept_when_asked_for() {
    on_both_drivers(|bench| {
        bench.file("x/a/one.txt", "1");
        bench.file("x/b/two.txt", "2");
        bench.file("x/b/two.bin", "2");
        let parents = Copy { include: vec!["**/*.txt".to_owned()], ..copy("/x", "/p/") };
        let root = bench.mount(bench.layer(None, &[parents]).unwrap());
        assert_eq!(
            (root.read("/p/a/one.txt").as_deref(), root.read("/p/b/two.txt").as_deref()),
            (Some("1"), Some("2"))
        );
        assert_eq!(root.read("/p/b/two.bin"), None);
        let missing =
            Copy { include: vec!["a/none".to_owned()], required: vec!["a/none".to_owned()], ..copy("/x", "/p/") };
        assert_eq!(bench.layer(None, &[missing]).unwrap_err().kind(), Kind::NotFound);
    });
}

#[test]
fn privileged_metadata_is_kept_or_changed_as_told() {
    on_both_drivers(|bench| {
        bench.file("bin/run", "#!");
        fs::set_permissions(bench.source("bin/run"), fs::Permissions::from_mode(0o711)).unwrap();
        std::os::unix::fs::chown(bench.source("bin/run"), Some(1234), Some(99)).unwrap();
        fs::hard_link(bench.source("bin/run"), bench.source("bin/alias")).unwrap();
        let changed = Copy { mode: Some(Mode::Symbolic("u=rwX,go=rX".to_owned())), ..copy("/bin", "/changed") };
        let root = bench.mount(bench.layer(None, &[copy("/bin", "/bin"), changed]).unwrap());
        let run = root.stat("/bin/run");
        assert_eq!((run.mode() & 0o7777, run.uid(), run.gid()), (0o711, 0, 0), "ids of the client mean nothing");
        assert_eq!(run.mtime(), fs::metadata(bench.source("bin/run")).unwrap().mtime());
        assert_eq!(run.ino(), root.stat("/bin/alias").ino(), "two names stay one file");
        assert_eq!(root.stat("/changed/run").mode() & 0o7777, 0o755);
    });
}

#[test]
fn privileged_archives_are_unpacked_for_add() {
    on_both_drivers(|bench| {
        bench.file("in/file", "inside");
        let tar = |flag: &str, name: &str| {
            let archive = bench.source(name);
            let status = std::process::Command::new("tar")
                .args(["-C", bench.source("in").to_str().unwrap(), flag, archive.to_str().unwrap(), "."])
                .status();
            assert!(status.unwrap().success());
        };
        tar("-cf", "plain.tar");
        tar("-czf", "packed.tgz");
        tar("-cJf", "packed.txz");
        let add = |source: &str, dest: &str| Copy { unpack: true, ..copy(source, dest) };
        let copies = [
            add("/plain.tar", "/plain"),
            add("/packed.tgz", "/gz/"),
            add("/packed.txz", "/xz/"),
            add("/in/file", "/notar"),
            copy("/plain.tar", "/kept.tar"),
        ];
        let root = bench.mount(bench.layer(None, &copies).unwrap());
        for path in ["/plain/file", "/gz/file", "/xz/file", "/notar"] {
            assert_eq!(root.read(path).as_deref(), Some("inside"), "{path}");
        }
        assert!(root.stat("/kept.tar").is_file());
    });
}

#[test]
fn privileged_a_hash_tells_content_and_modes_but_no_times() {
    if !privileged() {
        return;
    }
    let bench = Bench::new(Driver::Overlay);
    bench.file("d/a", "one");
    bench.file("d/b", "two");
    let hash = || select(&bench.tree(""), &copy("/d", "/"), &Cancel::new()).unwrap().hash();
    let first = hash();
    bench.file("d/a", "one");
    assert_eq!(hash(), first, "written again with the same content");
    bench.file("d/a", "0ne");
    assert_ne!(hash(), first);
    bench.file("d/a", "one");
    fs::set_permissions(bench.source("d/b"), fs::Permissions::from_mode(0o600)).unwrap();
    assert_ne!(hash(), first);
}

#[test]
fn privileged_unchanged_files_are_linked_from_the_earlier_layer() {
    on_both_drivers(|bench| {
        for n in 0..300 {
            bench.file(&format!("d/{}/{n}", n % 7), &format!("content {n}"));
        }
        let copies = [copy("/d", "/app")];
        let tree = bench.tree("");
        let first = bench.layer(None, &copies).unwrap();
        let listing = Listing::of(&[select(&tree, &copies[0], &Cancel::new()).unwrap()]);
        bench.file("d/3/3", "changed");
        fs::remove_file(bench.source("d/4/4")).unwrap();
        let donor = Some((first, listing));
        let second = bench.layer_from(None, &copies, &bench.tree(""), donor).unwrap();
        let (before, after) = (bench.mount(first), bench.mount(second));
        assert_eq!(after.read("/app/3/3").as_deref(), Some("changed"));
        assert_eq!(before.read("/app/3/3").as_deref(), Some("content 3"), "the earlier layer is as it was");
        assert_eq!(after.read("/app/4/4"), None);
        let shared = (0..300).filter(|n| {
            let path = format!("/app/{}/{n}", n % 7);
            after.path(&path).exists() && before.stat(&path).ino() == after.stat(&path).ino()
        });
        assert_eq!(shared.count(), 298);
    });
}

#[test]
fn privileged_equal_copies_give_equal_layers() {
    on_both_drivers(|bench| {
        bench.file("d/x/y", "1");
        bench.file("z", "2");
        let digest = || {
            let base = bench.layer(None, &[copy("/z", "/etc/z")]).unwrap();
            let made = bench.layer(Some(base), &[copy("/d", "/etc"), copy("/z", "/srv/")]).unwrap();
            bench.store.layer_digests(made, &Cancel::new()).unwrap().diff_id
        };
        assert_eq!(digest(), digest());
    });
}
