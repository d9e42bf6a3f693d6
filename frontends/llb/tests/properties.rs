//! Whatever bytes arrive, they are a graph or refused.

use kiln_graph::{Digest, Platform};
use kiln_llb::{decode, decode_bytes, pb};
use proptest::collection::vec;
use proptest::prelude::*;
use prost::Message as _;

fn host() -> Platform {
    Platform::new("linux", "amd64", "")
}

/// Decodes, and checks what every graph promises.
fn check(definition: &pb::Definition) {
    let Ok(decoded) = decode(definition, &host()) else { return };
    let vertices = decoded.graph.vertices();
    for (at, vertex) in vertices.iter().enumerate() {
        assert!(vertex.inputs.iter().all(|edge| edge.vertex.index() < at));
        for edge in &vertex.inputs {
            assert!(edge.output < vertices[edge.vertex.index()].op.outputs());
        }
    }
    if let Some(root) = decoded.root {
        assert!(root.output < decoded.graph.vertex(root.vertex).op.outputs());
    }
    // What was read can be written down and read again.
    let written = kiln_llb::encode(&decoded.graph, decoded.root, "");
    decode(&written, &host()).expect("a graph that was read is written as one that can be read");
}

fn index() -> impl Strategy<Value = i64> {
    prop_oneof![Just(-1), 0..4_i64, any::<i64>()]
}

fn mount() -> impl Strategy<Value = pb::Mount> {
    let dest = prop_oneof![Just("/".to_owned()), "[a-z/.]{0,6}"];
    (index(), index(), dest, any::<bool>(), 0..6_i32, "[a-z/]{0,4}").prop_map(
        |(input, output, dest, readonly, mount_type, selector)| pb::Mount {
            input,
            output,
            dest,
            readonly,
            mount_type,
            selector,
            cache_opt: Some(pb::CacheOpt::default()),
            secret_opt: Some(pb::SecretOpt::default()),
            ssh_opt: Some(pb::SshOpt::default()),
            ..pb::Mount::default()
        },
    )
}

fn action() -> impl Strategy<Value = pb::FileAction> {
    (index(), index(), index(), 0..3, "[a-z/.*]{0,6}").prop_map(|(input, secondary_input, output, kind, path)| {
        let action = match kind {
            0 => pb::file_action::Action::Mkfile(pb::FileActionMkFile { path, ..pb::FileActionMkFile::default() }),
            1 => pb::file_action::Action::Rm(pb::FileActionRm { path, ..pb::FileActionRm::default() }),
            _ => pb::file_action::Action::Copy(pb::FileActionCopy {
                src: path.clone(),
                dest: path,
                mode: -1,
                ..pb::FileActionCopy::default()
            }),
        };
        pb::FileAction { input, secondary_input, output, action: Some(action) }
    })
}

fn operation() -> impl Strategy<Value = pb::op::Op> {
    let source = "(docker-image|local|git|https|oci-layout)://[a-z@:#/]{0,8}";
    let exec = (vec(mount(), 0..4), 0..4_i32).prop_map(|(mounts, network)| {
        let meta = pb::Meta { args: vec!["x".into()], ..pb::Meta::default() };
        pb::op::Op::Exec(pb::ExecOp { meta: Some(meta), mounts, network, ..pb::ExecOp::default() })
    });
    prop_oneof![
        source.prop_map(|identifier| pb::op::Op::Source(pb::SourceOp { identifier, ..pb::SourceOp::default() })),
        exec,
        vec(action(), 0..5).prop_map(|actions| pb::op::Op::File(pb::FileOp { actions })),
        vec(index(), 0..4).prop_map(|inputs| {
            let inputs = inputs.into_iter().map(|input| pb::MergeInput { input }).collect();
            pb::op::Op::Merge(pb::MergeOp { inputs })
        }),
        (index(), index()).prop_map(|(lower, upper)| pb::op::Op::Diff(pb::DiffOp {
            lower: Some(pb::LowerDiffInput { input: lower }),
            upper: Some(pb::UpperDiffInput { input: upper }),
        })),
    ]
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in vec(any::<u8>(), 0..300)) {
        let _ = decode_bytes(&bytes, &host());
        check(&pb::Definition { def: vec![bytes], ..pb::Definition::default() });
    }

    #[test]
    fn damaged_definitions_never_panic(ops in vec((operation(), vec(0..8_usize, 0..3), 0..3_i64), 1..6), at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let mut definition = graph(ops);
        check(&definition);
        let op = at.index(definition.def.len());
        if !definition.def[op].is_empty() {
            let place = at.index(definition.def[op].len());
            definition.def[op][place] = byte;
        }
        check(&definition);
        let mut bytes = definition.encode_to_vec();
        bytes.truncate(at.index(bytes.len() + 1));
        let _ = decode_bytes(&bytes, &host());
    }
}

/// Puts operations together, each on earlier ones.
fn graph(ops: Vec<(pb::op::Op, Vec<usize>, i64)>) -> pb::Definition {
    let mut definition = pb::Definition::default();
    let mut digests: Vec<String> = Vec::new();
    let mut add = |op: &pb::Op, digests: &mut Vec<String>| {
        let bytes = op.encode_to_vec();
        digests.push(Digest::of(&bytes).to_string());
        definition.def.push(bytes);
    };
    for (op, inputs, output) in ops {
        let inputs = inputs.into_iter().filter_map(|at| digests.get(at).cloned());
        let inputs = inputs.map(|digest| pb::Input { digest, index: output % 2 }).collect();
        add(&pb::Op { inputs, op: Some(op), ..pb::Op::default() }, &mut digests);
    }
    let result = pb::Input { digest: digests.last().cloned().unwrap_or_default(), index: 0 };
    add(&pb::Op { inputs: vec![result], ..pb::Op::default() }, &mut digests);
    definition
}
