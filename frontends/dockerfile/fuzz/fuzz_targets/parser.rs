//! Whatever is read as a Dockerfile is read or refused, its checks are answered, and what is printed of it reads the same.

#![no_main]

use std::collections::HashMap;

use kiln_dockerfile::call::{Call, answer_alone};
use kiln_dockerfile::{Request, include, parse, print};
use kiln_graph::SourceFile;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let file = SourceFile::new("Dockerfile", text);
    let parts: HashMap<&str, &str> = HashMap::from([("a", "RUN a\n"), ("b", "INCLUDE b\n"), ("c", "INCLUDE a")]);
    let file = match include(&file, &mut |path| Ok(parts.get(path).map(|part| (*part).to_owned()))) {
        Ok(file) => file,
        Err(_) => return,
    };
    for call in [Call::Lint, Call::Outline] {
        let _ = answer_alone(call, &Request::new(&file));
    }
    let Ok(dockerfile) = parse(&file) else { return };
    if file.is_assembled() {
        return;
    }
    let escape = dockerfile.directives.escape;
    let heads = dockerfile.stages.iter().flat_map(|stage| {
        std::iter::once(&stage.head).chain(stage.instructions.iter().map(|instruction| &instruction.head))
    });
    // See `print`: such a text stands at the end of its line only.
    let mut heads = heads.chain(dockerfile.global_arguments.iter().map(|global| &global.head));
    if heads.any(|head| head.text.ends_with(escape) && !head.text.ends_with(&format!("{escape}{escape}"))) {
        return;
    }
    let printed = print(&dockerfile);
    let again = parse(&SourceFile::new("Dockerfile", &printed)).expect("what is printed can be read");
    assert_eq!(print(&again), printed);
});
