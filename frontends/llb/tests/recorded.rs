//! Definitions that other programs wrote, and the graphs that they stand for: `testdata/llb/NAME.pb` beside `NAME.graph`.
//!
//! `KILN_BLESS=1` writes the graphs anew. BuildKit's frontend for Dockerfiles made the definitions; `tests/peer.rs` records them.

use std::fmt::Write as _;
use std::path::Path;

use kiln_graph::{Graph, Platform};
use kiln_llb::{decode, decode_bytes, encode};

/// Writes a graph down, a line for each part of each operation.
fn text(graph: &Graph, root: usize) -> String {
    let mut text = String::new();
    for (at, vertex) in graph.vertices().iter().enumerate() {
        let inputs: Vec<String> =
            vertex.inputs.iter().map(|edge| format!("{}.{}", edge.vertex.index(), edge.output)).collect();
        let mark = if at == root { " (result)" } else { "" };
        writeln!(text, "{at} {:?} for {} on [{}]{mark}", vertex.meta.name, vertex.platform, inputs.join(", "))
            .expect("a text takes all");
        vertex.op.each_part(&mut |name, value| writeln!(text, "    {name}: {value:?}").expect("a text takes all"));
    }
    text
}

#[test]
fn recorded_definitions_are_the_graphs_beside_them() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/llb");
    let mut seen = 0;
    for entry in std::fs::read_dir(&dir).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "pb") {
            continue;
        }
        seen += 1;
        let host = Platform::new("linux", "amd64", "");
        let decoded = decode_bytes(&std::fs::read(&path).unwrap(), &host).unwrap();
        let root = decoded.root.expect("the definitions have results");
        let found = text(&decoded.graph, root.vertex.index());
        let expected = path.with_extension("graph");
        if std::env::var_os("KILN_BLESS").is_some() {
            std::fs::write(&expected, &found).unwrap();
        }
        assert_eq!(found, std::fs::read_to_string(&expected).unwrap(), "{}", path.display());
        // What is written of it is read as the same.
        let again = decode(&encode(&decoded.graph, decoded.root, ""), &host).unwrap();
        assert_eq!(text(&again.graph, again.root.unwrap().vertex.index()), found, "{}", path.display());
    }
    assert!(seen > 0, "there are no definitions in {}", dir.display());
}
