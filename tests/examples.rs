//! The example projects: all are read, checked and lowered; those that need nothing but busybox are built and run.

mod support;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use kiln_dockerfile::{Outcome, Request, ResolvedImage, lower};
use kiln_graph::oci::ImageConfig;
use kiln_graph::{Digest, SourceFile};
use support::{Kiln, is_root};

fn examples() -> Vec<PathBuf> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples");
    let entries =
        std::fs::read_dir(dir).expect("list the examples").map(|entry| entry.expect("list the examples").path());
    let mut examples: Vec<PathBuf> = entries.filter(|path| path.is_dir()).collect();
    examples.sort();
    examples
}

fn name(example: &Path) -> &str {
    example.file_name().and_then(|name| name.to_str()).expect("examples have plain names")
}

/// Lowers a Dockerfile, whatever its base may be, and returns how many steps it has.
fn steps(example: &Path) -> usize {
    let text = std::fs::read_to_string(example.join("Dockerfile")).expect("read a Dockerfile");
    let file = SourceFile::new("Dockerfile", &text);
    let mut known = HashMap::new();
    loop {
        match lower(&Request::new(&file), &known) {
            Err(refused) => panic!("{}: {refused:?}", name(example)),
            Ok(Outcome::Need(needs)) => {
                for need in needs {
                    let config = ImageConfig {
                        os: "linux".to_owned(),
                        architecture: need.key.platform.architecture.clone(),
                        history: vec![kiln_graph::oci::History::default()],
                        ..ImageConfig::default()
                    };
                    let reference = "base".parse().expect("it is a name");
                    let image = ResolvedImage { config, id: Digest::of(b"base"), reference };
                    known.insert(need.key, image);
                }
            }
            Ok(Outcome::Done(lowered)) => {
                assert!(lowered.warnings.is_empty(), "{}: {:?}", name(example), lowered.warnings);
                return lowered.graph.vertices().len();
            }
        }
    }
}

#[test]
fn every_example_is_lowered_without_a_finding() {
    let examples = examples();
    let names: Vec<&str> = examples.iter().map(|example| name(example)).collect();
    let kinds = ["c", "cpp", "go", "java", "node", "php", "python", "ruby", "rust", "static-site"];
    assert!(kinds.iter().all(|kind| names.contains(kind)), "{names:?}");
    for example in &examples {
        assert!(steps(example) > 2, "{}", name(example));
    }
}

#[test]
fn the_script_and_the_readme_know_every_example() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples");
    let read = |name: &str| std::fs::read_to_string(dir.join(name)).expect("read a file of the examples");
    let (script, readme) = (read("build"), read("README.md"));
    for example in examples() {
        let name = name(&example);
        assert!(script.contains(&format!("        {name}) ")), "examples/build does not run {name}");
        assert!(readme.contains(&format!("[{name}]({name})")), "examples/README.md does not list {name}");
    }
}

#[test]
fn privileged_the_static_site_is_built_and_says_what_its_texts_say() {
    if !is_root() {
        return;
    }
    let kiln = Kiln::with_busybox();
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/static-site");
    kiln.command(["build", "-t", "site"]).arg(&example).ok();
    let page = kiln.ok(["run", "--rm", "--network=none", "site", "cat", "/srv/index.html"]);
    assert!(page.contains("<title>Kilns</title>") && page.contains("<p>A kiln is an oven"), "{page}");
    let served = "busybox httpd -p 8080 -h /srv && wget -q -O - http://localhost:8080/glaze.html";
    assert!(kiln.ok(["run", "--rm", "--network=none", "site", "sh", "-c", served]).contains("glass that melts"));
}
