//! What BuildKit 0.13 (docker 26.1.5) wrote of a Dockerfile, beside what is computed here of the same.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;
use std::sync::Arc;

use kiln_dockerfile::{Ignore, Outcome, Request, ResolvedImage, lower};
use kiln_graph::op::{Op, Source};
use kiln_graph::{Digest, Graph, Platform, SourceFile};
use kiln_llb::{Selected, step_keys};

use super::{content, content_record, record_name, source_record};
use crate::solver::copy::{Owners, Tree};
use crate::solver::exchange::config::{CacheConfig, CacheRecord};
use crate::store::tree::open_root;
use crate::task::Cancel;

const DOCKERFILE: &str = include_str!("../../../../testdata/cache/Dockerfile");

/// Its records; those of the layers were left out.
const RECORDS: &str = include_str!("../../../../testdata/cache/buildkit-0.13.json");

/// The one layer of the base image.
const BASE: &str = "sha256:659c28ff80ac91c45d7380a957dad211c1f4ea5843cb25b8bc8910b779c6bac0";

fn context() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let (root, private) = (dir.path(), "src/a");
    for (path, mode) in [("src/sub", 0o755), ("src/a.d", 0o755), ("empty", 0o2755), ("ign", 0o755), ("src", 0o755)] {
        fs::create_dir_all(root.join(path)).unwrap();
        fs::set_permissions(root.join(path), fs::Permissions::from_mode(mode)).unwrap();
    }
    for (path, text) in [
        ("app.py", "hi\n"),
        (private, "a\n"),
        ("src/sub/b", "b\n"),
        ("src/a.d/x", "d\n"),
        ("src/y.txt", "y\n"),
        ("src/z.txt", "z\n"),
        (".dockerignore", "ign\n"),
        ("ign/x", "x\n"),
    ] {
        fs::write(root.join(path), text).unwrap();
        let mode = if path == private { 0o600 } else { 0o644 };
        fs::set_permissions(root.join(path), fs::Permissions::from_mode(mode)).unwrap();
    }
    symlink("a", root.join("src/link")).unwrap();
    dir
}

fn tree(root: &Path, ignore: &str) -> Tree {
    let ignore = Ignore::parse(&SourceFile::new(".dockerignore", ignore)).unwrap();
    Tree {
        root: Arc::new(open_root(root).unwrap()),
        name: "the build context".to_owned(),
        ignore: Some(Arc::new(ignore)),
        owners: Owners::Root,
        memo: None,
    }
}

fn lowered() -> Graph {
    let file = SourceFile::new("Dockerfile", DOCKERFILE);
    let amd64 = Platform::new("linux", "amd64", "");
    let mut request = Request::new(&file);
    (request.target_platform, request.build_platforms) = (Some(amd64.clone()), vec![amd64]);
    let mut images = HashMap::new();
    loop {
        match lower(&request, &images).unwrap() {
            Outcome::Done(done) => return done.graph,
            Outcome::Need(needs) => images.extend(needs.into_iter().map(|need| {
                let mut image = ResolvedImage::assumed(&need.key);
                image.config.config.env =
                    vec!["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned()];
                (need.key, image)
            })),
        }
    }
}

#[test]
fn what_buildkit_calls_steps_and_content_is_known() {
    let dir = context();
    let (tree, graph) = (tree(dir.path(), "ign\n"), lowered());
    let mut names = BTreeSet::from([source_record(BASE)]);
    for vertex in graph.vertices() {
        for key in step_keys(vertex) {
            names.insert(record_name(&key.digest, 0));
            for input in key.inputs {
                let source = graph.vertex(vertex.inputs[input.input as usize].vertex);
                if let (Op::Source(Source::Local(_)), Some(selected)) = (&source.op, input.content) {
                    let digest = content::digest(&tree, &selected, &Cancel::new()).unwrap().unwrap();
                    names.insert(content_record(&digest));
                }
            }
        }
    }
    let written = CacheConfig::parse(RECORDS.as_bytes()).unwrap();
    let (unknown, known): (Vec<&CacheRecord>, Vec<&CacheRecord>) =
        written.records.iter().partition(|record| !names.contains(&record.digest));
    // What follows from something is a step; what is left are the base image's manifest, and content of stages and images.
    assert!(unknown.iter().all(|record| record.inputs.is_empty()), "{unknown:?}");
    assert_eq!((known.len(), unknown.len()), (30, 8), "{unknown:?}");
}

#[test]
fn content_is_known_by_what_is_there_and_not_by_when_or_where() {
    let dir = context();
    let all = tree(dir.path(), "");
    let hash = |tree: &Tree, path: &str| {
        let selected = Selected { path: path.to_owned(), follow_links: true, ..Selected::default() };
        content::digest(tree, &[selected], &Cancel::new()).unwrap()
    };
    assert_eq!(hash(&all, "/src/link"), hash(&all, "/src/a"), "links are followed");
    assert_eq!(hash(&all, "/nothing"), None);
    assert_ne!(hash(&all, "/"), hash(&tree(dir.path(), "ign"), "/"), "what is ignored is not there");
    let before = hash(&all, "/src");
    fs::write(dir.path().join("src/y.txt"), "y\n").unwrap();
    assert_eq!(hash(&all, "/src"), before, "times do not count");
    fs::set_permissions(dir.path().join("src/y.txt"), fs::Permissions::from_mode(0o755)).unwrap();
    assert_ne!(hash(&all, "/src"), before, "modes do");
}

#[test]
fn names_are_digests_of_digests_and_numbers() {
    let digest = Digest::of(b"operation");
    assert_eq!(record_name(&digest, 1), Digest::of(format!("{digest}@1").as_bytes()).to_string());
    assert_ne!(content_record(&digest), record_name(&digest, 0));
}
