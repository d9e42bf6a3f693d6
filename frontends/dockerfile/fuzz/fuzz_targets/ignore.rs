//! Whatever stands in a list of patterns, a walk through a tree decides as a look at each path does.

#![no_main]

use kiln_dockerfile::Ignore;
use kiln_graph::SourceFile;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let (path, patterns) = text.split_once('\n').unwrap_or(("a/b", text));
    let Ok(ignore) = Ignore::parse(&SourceFile::new(".dockerignore", patterns)) else { return };
    let mut directory = ignore.root();
    let mut reached = String::new();
    for name in path.split('/').filter(|name| !matches!(*name, "" | "." | "..")).take(8) {
        reached = if reached.is_empty() { name.to_owned() } else { format!("{reached}/{name}") };
        assert_eq!(ignore.excludes_in(&directory, &reached), ignore.excludes(&reached));
        let (excluded, below) = ignore.enter(&directory, &reached);
        if excluded && !ignore.may_include_below(&reached) {
            let child = format!("{reached}/child");
            assert!(ignore.excludes(&child), "nothing below {reached} comes back");
        }
        directory = below;
    }
});
