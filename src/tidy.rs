//! Tests of the tree itself: who imports whom, where unsafe code, spawning and the clock may stand, how long files get.
//!
//! This is what crate boundaries would enforce; `docs/architecture.md` shows the same table.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Each module and what it may import besides itself. Frontend crates are listed by their crate names; everybody may import
/// `kiln_graph`.
const LAYERS: &[(&str, &[&str])] = &[
    ("error", &[]),
    ("types", &[]),
    ("wire", &[]),
    ("sys", &["error"]),
    ("task", &["error"]),
    ("tls", &["error"]),
    ("config", &["error"]),
    ("state", &["error", "sys", "task"]),
    ("events", &["error", "state"]),
    ("store", &["error", "sys", "task", "state"]),
    ("filesync", &["error", "task", "store", "kiln_dockerfile"]),
    ("registry", &["error", "task", "tls", "config", "store"]),
    ("image", &["error", "task", "state", "store", "registry"]),
    ("sandbox", &["error", "sys", "task"]),
    ("network", &["error", "sys", "task", "state"]),
    ("volume", &["error", "state", "store"]),
    ("sbom", &["error", "task", "store"]),
    ("signature", &["error", "sys"]),
    (
        "solver",
        &[
            "error",
            "task",
            "state",
            "events",
            "store",
            "filesync",
            "registry",
            "image",
            "sandbox",
            "network",
            "sbom",
            "signature",
            "wire",
            "kiln_dockerfile",
            "kiln_llb",
        ],
    ),
    ("container", &["error", "sys", "task", "state", "events", "store", "image", "sandbox", "network", "volume"]),
    (
        "engine",
        &[
            "error",
            "sys",
            "task",
            "config",
            "state",
            "events",
            "store",
            "registry",
            "image",
            "sandbox",
            "network",
            "volume",
            "solver",
            "container",
        ],
    ),
    (
        "api",
        &[
            "error",
            "types",
            "wire",
            "task",
            "events",
            "engine",
            "store",
            "registry",
            "image",
            "network",
            "volume",
            "solver",
            "container",
            "kiln_llb",
        ],
    ),
    ("daemon", &["error", "sys", "task", "tls", "config", "engine", "api"]),
    ("client", &["error", "types", "wire", "task", "tls", "sys", "filesync"]),
    ("cli", &["error", "types", "task", "config", "sys", "client", "kiln_compose", "kiln_dockerfile"]),
];

const MAX_LINES: usize = 800;

struct Source {
    path: PathBuf,
    module: String,
    /// The text before the tests.
    code: String,
    text: String,
}

impl Source {
    /// Lines of code, without comments that stand alone, each with its number.
    fn lines(&self) -> impl Iterator<Item = (usize, &str)> {
        self.code.lines().enumerate().filter(|(_, line)| !line.trim_start().starts_with("//")).map(|(n, l)| (n + 1, l))
    }
}

fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    collect(&root, &mut files);
    files
        .into_iter()
        .map(|path| {
            let text = std::fs::read_to_string(&path).unwrap();
            let relative = path.strip_prefix(&root).unwrap();
            let first = relative.components().next().unwrap().as_os_str().to_str().unwrap();
            let module = first.trim_end_matches(".rs").to_owned();
            let code = text.split("#[cfg(test)]").next().unwrap().to_owned();
            Source { path: relative.to_owned(), module, code, text }
        })
        .collect()
}

fn collect(dir: &Path, files: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}

/// The modules and frontend crates a line names.
fn imports(line: &str) -> Vec<String> {
    let word = |text: &str| text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    let inner = line.match_indices("crate::").flat_map(|(at, _)| {
        let rest = &line[at + "crate::".len()..];
        match rest.strip_prefix('{') {
            Some(group) => group.split('}').next().unwrap_or("").split(',').map(|part| word(part.trim())).collect(),
            None => vec![word(rest)],
        }
    });
    let crates = line.match_indices("kiln_").map(|(at, _)| word(&line[at..]));
    inner.chain(crates).filter(|name| !name.is_empty()).collect()
}

fn report(problems: &[String]) {
    assert!(problems.is_empty(), "\n{}\n", problems.join("\n"));
}

#[test]
fn modules_import_only_what_the_table_lists() {
    let allowed: BTreeMap<&str, &[&str]> = LAYERS.iter().copied().collect();
    let mut problems = Vec::new();
    for source in sources() {
        if matches!(source.module.as_str(), "lib" | "main" | "tidy") {
            continue;
        }
        let Some(may) = allowed.get(source.module.as_str()) else {
            problems.push(format!("{}: `{}` is not in the table of layers", source.path.display(), source.module));
            continue;
        };
        for (number, line) in source.lines() {
            for name in imports(line) {
                let known = allowed.contains_key(name.as_str()) || name.starts_with("kiln_");
                if known && name != source.module && name != "kiln_graph" && !may.contains(&name.as_str()) {
                    let place = format!("{}:{number}", source.path.display());
                    problems.push(format!("{place}: `{}` may not import `{name}`", source.module));
                }
            }
        }
    }
    report(&problems);
}

#[test]
fn the_map_shows_the_same_table() {
    let map = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/architecture.md");
    let map = std::fs::read_to_string(map).unwrap();
    let rows = map.lines().filter(|line| line.starts_with("| `")).map(|line| {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let imports = cells[3].split(", ").filter(|name| *name != "-").collect::<Vec<_>>();
        (cells[1].trim_matches('`'), imports)
    });
    let table: Vec<_> = LAYERS.iter().map(|(module, imports)| (*module, imports.to_vec())).collect();
    assert_eq!(rows.collect::<Vec<_>>(), table);
}

#[test]
fn unsafe_code_spawning_and_the_clock_stay_where_they_belong() {
    let rules: &[(&[&str], &[&str])] = &[
        (&["unsafe {", "unsafe fn", "unsafe impl", "unsafe extern"], &["sys"]),
        (&["tokio::spawn", "spawn_blocking(", "thread::spawn", "rayon::spawn", "thread::Builder"], &["task"]),
        (&["SystemTime::now", "Timestamp::now", "Zoned::now"], &["task", "cli"]),
        (&["env::var", "env::args", "env::current_dir"], &["config", "cli", "main"]),
    ];
    let mut problems = Vec::new();
    for source in sources().iter().filter(|source| source.module != "tidy") {
        for (number, line) in source.lines() {
            for (words, modules) in rules {
                if modules.contains(&source.module.as_str()) {
                    continue;
                }
                if let Some(word) = words.iter().find(|word| line.contains(**word)) {
                    problems.push(format!("{}:{number}: `{word}` belongs in {modules:?}", source.path.display()));
                }
            }
        }
    }
    report(&problems);
}

#[test]
fn files_say_what_they_are_for_and_stay_short() {
    let mut problems = Vec::new();
    for source in sources() {
        let lines = source.code.lines().count();
        if !source.text.starts_with("//!") {
            problems.push(format!("{}: does not say what it is for (//!)", source.path.display()));
        }
        if lines > MAX_LINES && !source.text.contains("tidy: a table") {
            problems.push(format!("{}: {lines} lines; split it by noun", source.path.display()));
        }
        let name = source.path.to_string_lossy().into_owned();
        if ["util", "helper", "common", "manager", "misc"].iter().any(|word| name.contains(word)) {
            problems.push(format!("{name}: name it after what it holds"));
        }
    }
    report(&problems);
}
