//! Definitions as clients write them, and as they must not be.

use kiln_graph::op::{FileAction, MountKind, NetworkMode, Op, Source};
use kiln_graph::{Digest, Edge, Platform};
use kiln_llb::{Kind, MAX_OPS, Refusal, decode, decode_bytes, encode, pb};
use prost::Message as _;

fn host() -> Platform {
    Platform::new("linux", "amd64", "")
}

/// Operations in order; the last of them gives the result.
#[derive(Default)]
struct Graph(pb::Definition);

impl Graph {
    fn add(&mut self, op: &pb::Op) -> pb::Input {
        let bytes = op.encode_to_vec();
        let digest = Digest::of(&bytes).to_string();
        self.0.def.push(bytes);
        pb::Input { digest, index: 0 }
    }

    fn source(&mut self, identifier: &str) -> pb::Input {
        let source = pb::SourceOp { identifier: identifier.into(), ..pb::SourceOp::default() };
        self.add(&pb::Op { op: Some(pb::op::Op::Source(source)), ..pb::Op::default() })
    }

    fn exec(&mut self, inputs: Vec<pb::Input>, exec: pb::ExecOp) -> pb::Input {
        self.add(&pb::Op { inputs, op: Some(pb::op::Op::Exec(exec)), ..pb::Op::default() })
    }

    fn file(&mut self, inputs: Vec<pb::Input>, actions: Vec<pb::FileAction>) -> pb::Input {
        self.add(&pb::Op { inputs, op: Some(pb::op::Op::File(pb::FileOp { actions })), ..pb::Op::default() })
    }

    fn end(mut self, result: pb::Input) -> pb::Definition {
        self.add(&pb::Op { inputs: vec![result], ..pb::Op::default() });
        self.0
    }
}

fn run(mounts: Vec<pb::Mount>) -> pb::ExecOp {
    let meta = pb::Meta { args: vec!["true".into()], ..pb::Meta::default() };
    pb::ExecOp { meta: Some(meta), mounts, ..pb::ExecOp::default() }
}

fn root(input: i64, output: i64) -> pb::Mount {
    pb::Mount { input, output, dest: "/".into(), ..pb::Mount::default() }
}

fn bind(input: i64, output: i64, dest: &str) -> pb::Mount {
    pb::Mount { dest: dest.into(), ..root(input, output) }
}

fn mkfile(input: i64, output: i64) -> pb::FileAction {
    let file =
        pb::FileActionMkFile { path: "/f".into(), timestamp: -1, mode: 0o644, ..pb::FileActionMkFile::default() };
    pb::FileAction { input, secondary_input: -1, output, action: Some(pb::file_action::Action::Mkfile(file)) }
}

fn refused(definition: &pb::Definition) -> Refusal {
    decode(definition, &host()).map(|decoded| format!("{decoded:?}")).expect_err("a bad definition")
}

#[test]
fn vertices_keep_the_digests_of_the_received_bytes() {
    let mut graph = Graph::default();
    let image = graph.source("docker-image://busybox");
    let step = graph.exec(vec![image.clone()], run(vec![root(0, 0)]));
    let mut definition = graph.end(step.clone());
    let about = pb::OpMetadata {
        ignore_cache: true,
        description: [("llb.customname".to_owned(), "named".to_owned())].into(),
        progress_group: Some(pb::ProgressGroup { id: "g".into(), name: "group".into(), weak: true }),
        export_cache: Some(pb::ExportCache { value: false }),
        caps: [("exec.meta.base".to_owned(), true)].into(),
    };
    definition.metadata.insert(step.digest.clone(), about);
    let source = "line 1\nline 2\nline 3";
    let info = pb::SourceInfo { filename: "build.hlb".into(), data: source.into(), ..pb::SourceInfo::default() };
    let position = |line| Some(pb::Position { line, character: 0 });
    let location = pb::Location { source_index: 0, ranges: vec![pb::Range { start: position(2), end: position(2) }] };
    let locations = [(step.digest.clone(), pb::Locations { locations: vec![location] })].into();
    definition.source = Some(pb::Source { locations, infos: vec![info] });

    let decoded = decode(&definition, &host()).unwrap();
    let [first, second] = decoded.graph.vertices() else { panic!("{decoded:?}") };
    assert_eq!((first.digest().to_string(), second.digest().to_string()), (image.digest, step.digest));
    assert_eq!(first.meta.name, "docker-image://busybox");
    assert!(second.meta.name == "named" && second.meta.no_cache && second.meta.export_cache == Some(false));
    assert_eq!(second.meta.group.as_ref().unwrap().name, "group");
    let place = second.meta.location.unwrap();
    assert_eq!(decoded.graph.sources()[0].slice(place.span), "line 2");
    let Op::Exec(exec) = &second.op else { panic!("{second:?}") };
    assert!(exec.env.iter().any(|entry| entry.starts_with("PATH=/usr/local/sbin:")), "{:?}", exec.env);
    assert_eq!((exec.cwd.as_str(), exec.network, exec.root.input), ("/", NetworkMode::Sandbox, Some(0)));
}

#[test]
fn nothing_stands_for_an_empty_file_system() {
    assert!(decode(&pb::Definition::default(), &host()).unwrap().root.is_none());
    let mut graph = Graph::default();
    let nothing = pb::MergeOp { inputs: vec![pb::MergeInput { input: -1 }] };
    let nothing = graph.add(&pb::Op { op: Some(pb::op::Op::Merge(nothing)), ..pb::Op::default() });
    assert!(decode(&graph.end(nothing), &host()).unwrap().root.is_none());
}

#[test]
fn outputs_are_those_that_are_written_and_what_passes_through() {
    let mut graph = Graph::default();
    let (a, b) = (graph.source("docker-image://a"), graph.source("docker-image://b"));
    let fixed = pb::Mount { readonly: true, ..bind(1, 1, "/fixed") };
    let exec = run(vec![root(0, 0), fixed, bind(-1, 2, "/new")]);
    let step = graph.exec(vec![a, b.clone()], exec);
    let through = graph.exec(vec![pb::Input { index: 1, ..step.clone() }], run(vec![root(0, 0)]));
    let both = graph.exec(vec![through, pb::Input { index: 2, ..step }], run(vec![root(0, 0), bind(1, -1, "/x")]));
    let decoded = decode(&graph.end(both), &host()).unwrap();
    let vertices = decoded.graph.vertices();
    let through = vertices.iter().find(|vertex| {
        vertex.inputs.len() == 1 && decoded.graph.vertex(vertex.inputs[0].vertex).digest().to_string() == b.digest
    });
    assert!(through.is_some(), "what is mounted read-only is the output: {vertices:?}");
    let last = vertices.last().unwrap();
    assert_eq!(last.inputs[1].output, 1, "outputs of the process are numbered among themselves");
    let owner = decoded.graph.vertex(last.inputs[1].vertex);
    assert_eq!(owner.op.outputs(), 2);
}

#[test]
fn a_directory_of_the_client_is_copied_where_a_file_system_is_needed() {
    let mut graph = Graph::default();
    let local = graph.source("local://context");
    let exec = run(vec![root(-1, 0), pb::Mount { readonly: true, ..bind(0, -1, "/src") }]);
    let step = graph.exec(vec![local.clone()], exec);
    let decoded = decode(&graph.end(step), &host()).unwrap();
    assert_eq!(decoded.graph.vertices().len(), 2, "it can be mounted as it is");
    let mut graph = Graph::default();
    let local = graph.source("local://context");
    let step = graph.exec(vec![local.clone()], run(vec![root(0, 0)]));
    let decoded = decode(&graph.end(step), &host()).unwrap();
    let copies = |vertex: &&kiln_graph::Vertex| matches!(vertex.op, Op::File(_));
    assert_eq!(decoded.graph.vertices().iter().filter(copies).count(), 1);
    let mut graph = Graph::default();
    let local = graph.source("local://context");
    let decoded = decode(&graph.end(local), &host()).unwrap();
    assert!(matches!(decoded.graph.vertex(decoded.root.unwrap().vertex).op, Op::File(_)), "as a result, too");
}

#[test]
fn actions_that_follow_one_another_are_one_vertex() {
    let mut graph = Graph::default();
    let image = graph.source("docker-image://a");
    let step = graph.file(vec![image], vec![mkfile(0, -1), mkfile(1, -1), mkfile(2, 0)]);
    let decoded = decode(&graph.end(step), &host()).unwrap();
    let Op::File(file) = &decoded.graph.vertices()[1].op else { panic!("{decoded:?}") };
    assert_eq!((file.base, file.actions.len(), decoded.graph.vertices().len()), (Some(0), 3, 2));
    assert!(matches!(&file.actions[0], FileAction::Mkfile { mode: 0o644, mtime_ns: None, .. }));
}

#[test]
fn what_makes_no_sense_is_refused_with_the_operation_and_the_field() {
    type Make = fn(&mut Graph) -> pb::Input;
    let cases: &[(&str, &str, Make)] = &[
        ("exec.mounts[0].input", "no input 3", |graph| graph.exec(Vec::new(), run(vec![root(3, 0)]))),
        ("exec.mounts", "root file system", |graph| graph.exec(Vec::new(), run(vec![bind(-1, 0, "/x")]))),
        ("exec.mounts[1].dest", "already", |graph| graph.exec(Vec::new(), run(vec![root(-1, 0), root(-1, -1)]))),
        ("exec.mounts[1].output", "the next output", |graph| {
            graph.exec(Vec::new(), run(vec![root(-1, 0), bind(-1, 0, "/x")]))
        }),
        ("exec.mounts[0].output", "the next output", |graph| graph.exec(Vec::new(), run(vec![root(-1, 5)]))),
        ("exec.mounts[0].mountType", "bind", |graph| {
            graph.exec(Vec::new(), run(vec![pb::Mount { mount_type: 3, ..root(-1, 0) }]))
        }),
        ("exec.mounts[1].mountType", "99", |graph| {
            graph.exec(Vec::new(), run(vec![root(-1, 0), pb::Mount { mount_type: 99, ..bind(-1, -1, "/x") }]))
        }),
        ("exec.mounts[1].secretOpt", "missing", |graph| {
            graph.exec(Vec::new(), run(vec![root(-1, 0), pb::Mount { mount_type: 1, ..bind(-1, -1, "/x") }]))
        }),
        ("exec.meta", "missing", |graph| graph.exec(Vec::new(), pb::ExecOp::default())),
        ("exec.meta.args", "no command", |graph| {
            graph.exec(Vec::new(), pb::ExecOp { meta: Some(pb::Meta::default()), ..pb::ExecOp::default() })
        }),
        ("exec.network", "7", |graph| graph.exec(Vec::new(), pb::ExecOp { network: 7, ..run(vec![root(-1, 0)]) })),
        ("file.actions", "none", |graph| graph.file(Vec::new(), Vec::new())),
        ("file.actions", "output", |graph| graph.file(Vec::new(), vec![mkfile(-1, -1)])),
        ("file.actions[0].input", "before this one", |graph| graph.file(Vec::new(), vec![mkfile(0, 0)])),
        ("file.actions[1].output", "each once", |graph| graph.file(Vec::new(), vec![mkfile(-1, 0), mkfile(-1, 0)])),
        ("file.actions[0].output", "-7", |graph| graph.file(Vec::new(), vec![mkfile(-1, -7)])),
        ("file.actions[0].action", "nothing", |graph| {
            graph.file(Vec::new(), vec![pb::FileAction { action: None, ..mkfile(-1, 0) }])
        }),
        ("diff.lower", "missing", |graph| {
            let op = Some(pb::op::Op::Diff(pb::DiffOp::default()));
            graph.add(&pb::Op { op, ..pb::Op::default() })
        }),
        ("build.builder", "LLB", |graph| {
            let op = Some(pb::op::Op::Build(pb::BuildOp::default()));
            graph.add(&pb::Op { op, ..pb::Op::default() })
        }),
        ("inputs", "no inputs", |graph| {
            let image = graph.source("docker-image://a");
            let source = pb::SourceOp { identifier: "docker-image://b".into(), ..pb::SourceOp::default() };
            graph.add(&pb::Op { inputs: vec![image], op: Some(pb::op::Op::Source(source)), ..pb::Op::default() })
        }),
        ("inputs[0].index", "no number 4", |graph| {
            let image = graph.source("docker-image://a");
            graph.exec(vec![pb::Input { index: 4, ..image }], run(vec![root(0, 0)]))
        }),
        ("inputs[0].index", "-1", |graph| {
            let image = graph.source("docker-image://a");
            graph.exec(vec![pb::Input { index: -1, ..image }], run(vec![root(0, 0)]))
        }),
        ("inputs[0].digest", "has no operation", |graph| {
            let missing = pb::Input { digest: Digest::of(b"missing").to_string(), index: 0 };
            graph.exec(vec![missing], run(vec![root(0, 0)]))
        }),
        ("inputs[0].digest", "algorithm:hex", |graph| {
            graph.exec(vec![pb::Input { digest: "nonsense".into(), index: 0 }], run(vec![root(0, 0)]))
        }),
        ("op", "does nothing", |graph| {
            graph.add(&pb::Op { platform: Some(pb::Platform::default()), ..pb::Op::default() })
        }),
    ];
    for (field, word, make) in cases {
        let mut graph = Graph::default();
        let bad = make(&mut graph);
        let refusal = refused(&graph.end(bad.clone()));
        assert_eq!(refusal.field, *field, "{refusal}");
        assert_eq!(refusal.vertex.map(|digest| digest.to_string()), Some(bad.digest), "{refusal}");
        assert!(refusal.reason.contains(word), "{refusal}");
    }
}

#[test]
fn the_last_operation_must_point_to_the_result() {
    let mut graph = Graph::default();
    let image = graph.source("docker-image://a");
    assert!(refused(&graph.0).reason.contains("point to the result"));
    graph.add(&pb::Op { inputs: vec![image.clone(), image.clone()], ..pb::Op::default() });
    assert!(refused(&graph.0).reason.contains("2 inputs"));
    let mut graph = Graph::default();
    graph.add(&pb::Op::default());
    assert!(refused(&graph.0).reason.contains("0 inputs"));
    let mut graph = Graph::default();
    graph.add(&pb::Op { inputs: vec![image], ..pb::Op::default() });
    assert!(refused(&graph.0).reason.contains("has no operation"));
}

#[test]
fn what_is_not_known_is_refused_by_name() {
    // An operation of a newer protocol.
    let newer = pb::Definition { def: vec![vec![0x4a, 0]], ..pb::Definition::default() };
    let refusal = refused(&newer);
    assert_eq!((refusal.kind, refusal.field.as_str()), (Kind::Unsupported, "(9)"));
    let mut graph = Graph::default();
    let image = graph.source("docker-image://a");
    let mut definition = graph.end(image.clone());
    let caps = [("exec.meta.bas".to_owned(), true)].into();
    definition.metadata.insert(image.digest, pb::OpMetadata { caps, ..pb::OpMetadata::default() });
    let refusal = refused(&definition);
    assert!(refusal.to_string().contains("did you mean exec.meta.base"), "{refusal}");
}

#[test]
fn what_is_too_large_is_refused_before_it_is_read() {
    let definition = pb::Definition { def: vec![vec![0xff]; 100_000], ..pb::Definition::default() };
    let refusal = refused(&definition);
    assert_eq!((refusal.kind, refusal.field.as_str()), (Kind::TooLarge, "def"));
    assert!(decode_bytes(b"\xff\xff", &host()).unwrap_err().reason.contains("no LLB definition"));
}

#[test]
fn a_definition_may_be_as_deep_as_it_is_long() {
    let mut graph = Graph::default();
    let mut step = graph.source("docker-image://a");
    for _ in 0..MAX_OPS - 2 {
        step = graph.exec(vec![step], run(vec![root(0, 0)]));
    }
    let definition = graph.end(step);
    // On a small stack: nothing recurses.
    let decoded =
        std::thread::Builder::new().stack_size(256 << 10).spawn(move || decode(&definition, &host())).unwrap();
    assert_eq!(decoded.join().unwrap().unwrap().graph.vertices().len(), MAX_OPS - 1);
}

#[test]
fn a_graph_that_is_written_down_is_read_as_it_was() {
    let mut graph = Graph::default();
    let image = graph.source("docker-image://docker.io/library/a:latest");
    let local = graph.source("local://context");
    let copy =
        pb::FileActionCopy { src: "/a".into(), dest: "/b/".into(), mode: -1, timestamp: -1, ..Default::default() };
    let copy = pb::FileAction { secondary_input: 1, action: Some(pb::file_action::Action::Copy(copy)), ..mkfile(0, 0) };
    let file = graph.file(vec![image.clone(), local], vec![copy]);
    let exec = pb::ExecOp { network: 2, ..run(vec![bind(1, 0, "/data"), root(0, 1), bind(-1, -1, "/free")]) };
    let step = graph.exec(vec![file, image.clone()], exec);
    let diff =
        pb::DiffOp { lower: Some(pb::LowerDiffInput { input: 0 }), upper: Some(pb::UpperDiffInput { input: 1 }) };
    let inputs = vec![image, pb::Input { index: 1, ..step }];
    let diff = graph.add(&pb::Op { inputs, op: Some(pb::op::Op::Diff(diff)), ..pb::Op::default() });
    let first = decode(&graph.end(diff), &host()).unwrap();
    let written = encode(&first.graph, first.root, "the-session");
    let again = decode(&written, &host()).unwrap();
    let ops = |decoded: &kiln_llb::Decoded| -> Vec<(Op, Vec<Edge>, String)> {
        let vertices = decoded.graph.vertices().iter();
        vertices.map(|vertex| (vertex.op.clone(), vertex.inputs.clone(), vertex.meta.name.clone())).collect()
    };
    let (before, after) = (ops(&first), ops(&again));
    assert_eq!(before.len(), after.len());
    for ((one, inputs, name), (other, other_inputs, other_name)) in before.iter().zip(&after) {
        match (one, other) {
            (Op::Source(Source::Local(one)), Op::Source(Source::Local(other))) => {
                assert_eq!((one.name.as_str(), other.session.as_str()), (other.name.as_str(), "the-session"));
            }
            (Op::Exec(one), Op::Exec(other)) => {
                let outputs = |exec: &kiln_graph::op::Exec| {
                    let binds = exec.mounts.iter().filter_map(|mount| match mount.kind {
                        MountKind::Bind { output, .. } => Some((mount.target.clone(), output)),
                        _ => None,
                    });
                    (exec.root.output, binds.collect::<Vec<_>>())
                };
                assert_eq!((outputs(one), one.network), (outputs(other), other.network));
            }
            _ => assert_eq!(one, other),
        }
        assert_eq!((inputs.len(), name), (other_inputs.len(), other_name));
    }
}

/// The operation that published messages lack: field 8, with an id and which input each output is.
fn passthrough(graph: &mut Graph, inputs: Vec<pb::Input>, id: &str, outputs: &[u8]) -> pb::Input {
    let mut bytes = pb::Op { inputs, ..pb::Op::default() }.encode_to_vec();
    let length = |bytes: &[u8]| u8::try_from(bytes.len()).expect("it is short");
    let mut inner = vec![0x0a, length(id.as_bytes())];
    inner.extend_from_slice(id.as_bytes());
    inner.extend([0x12, length(outputs)]);
    inner.extend_from_slice(outputs);
    bytes.extend([0x42, length(&inner)]);
    bytes.extend(inner);
    let digest = Digest::of(&bytes).to_string();
    graph.0.def.push(bytes);
    pb::Input { digest, index: 0 }
}

#[test]
fn what_is_passed_through_is_what_was_given() {
    let mut graph = Graph::default();
    let one = graph.source("docker-image://one");
    let two = graph.source("docker-image://two");
    let through = passthrough(&mut graph, vec![one, two], "both", &[1, 0, 1]);
    let decoded = decode(&graph.end(pb::Input { index: 2, ..through.clone() }), &host()).unwrap();
    let vertex = decoded.graph.vertex(decoded.root.unwrap().vertex);
    assert!(matches!(&vertex.op, Op::Source(Source::Image(image)) if image.reference.to_string().contains("two")));
    for (id, outputs, index, field) in [
        ("", &[0][..], 0, "passthrough.id"),
        ("x", &[1], 0, "passthrough.outputs[0]"),
        ("x", &[0], 1, "inputs[0].index"),
    ] {
        let mut graph = Graph::default();
        let one = graph.source("docker-image://one");
        let through = passthrough(&mut graph, vec![one], id, outputs);
        let refusal = decode(&graph.end(pb::Input { index, ..through }), &host()).unwrap_err();
        assert_eq!((refusal.kind, refusal.field.as_str()), (Kind::Malformed, field));
    }
}

#[test]
fn names_of_owners_are_looked_up_in_the_base_of_all_actions() {
    let named = |action: pb::FileAction, input: i64| {
        let user = pb::user_opt::User::ByName(pb::NamedUserOpt { name: "me".into(), input });
        let owner = Some(pb::ChownOpt { user: Some(pb::UserOpt { user: Some(user) }), group: None });
        let Some(pb::file_action::Action::Mkfile(file)) = action.action else { panic!("it makes a file") };
        let file = pb::FileActionMkFile { owner, ..file };
        pb::FileAction { action: Some(pb::file_action::Action::Mkfile(file)), ..action }
    };
    for (input, accepted) in [(0, true), (1, true), (-1, false)] {
        let mut graph = Graph::default();
        let base = graph.source("docker-image://base");
        // The second action works on the result of the first one, and clients name the base of both.
        let made = graph.file(vec![base], vec![mkfile(0, -1), named(mkfile(1, 0), input)]);
        assert_eq!(decode(&graph.end(made), &host()).is_ok(), accepted, "{input}");
    }
}
