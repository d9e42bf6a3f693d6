//! Whatever bytes arrive are refused, or a graph that can be written down and read again.

#![no_main]

use kiln_graph::Platform;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let host = Platform::new("linux", "amd64", "");
    let Ok(decoded) = kiln_llb::decode_bytes(bytes, &host) else { return };
    let vertices = decoded.graph.vertices();
    for (at, vertex) in vertices.iter().enumerate() {
        assert!(vertex.inputs.iter().all(|edge| edge.vertex.index() < at));
        assert!(vertex.inputs.iter().all(|edge| edge.output < vertices[edge.vertex.index()].op.outputs()));
    }
    let written = kiln_llb::encode(&decoded.graph, decoded.root, "");
    kiln_llb::decode(&written, &host).expect("a graph that was read is written as one that can be read");
});
