//! Build graphs in LLB, written down operation by operation.

use std::collections::BTreeMap;

use kiln::types::build::pb;
use kiln_graph::Digest;
use prost::Message as _;

/// An output of an operation; `None` is an empty file system.
pub type Node = Option<pb::Input>;

/// A graph while it is written.
#[derive(Clone, Debug, Default)]
pub struct Llb {
    pub definition: pb::Definition,
}

/// A mount of a process, besides its root file system.
#[derive(Clone, Debug)]
pub struct Bind {
    pub dest: &'static str,
    pub from: Node,
    pub selector: &'static str,
    pub readonly: bool,
    pub output: bool,
}

impl Bind {
    /// A mount that shows all of something and cannot be written.
    pub fn of(from: &Node, dest: &'static str) -> Self {
        Self { dest, from: from.clone(), selector: "", readonly: true, output: false }
    }

    /// A mount that can be written, and whose changes are an output.
    pub fn kept(from: &Node, dest: &'static str) -> Self {
        Self { readonly: false, output: true, ..Self::of(from, dest) }
    }
}

impl Llb {
    /// Adds an operation; returns its first output.
    pub fn add(&mut self, op: &pb::Op) -> Node {
        let bytes = op.encode_to_vec();
        let digest = Digest::of(&bytes).to_string();
        self.definition.def.push(bytes);
        Some(pb::Input { digest, index: 0 })
    }

    /// Adds a source.
    pub fn source(&mut self, identifier: &str, attrs: &[(&str, &str)]) -> Node {
        let attrs = attrs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let source = pb::SourceOp { identifier: identifier.to_owned(), attrs };
        let platform =
            Some(pb::Platform { os: "linux".into(), architecture: arch().into(), ..pb::Platform::default() });
        self.add(&pb::Op { op: Some(pb::op::Op::Source(source)), platform, ..pb::Op::default() })
    }

    /// Adds busybox, which tests have in their stores.
    pub fn busybox(&mut self) -> Node {
        self.source("docker-image://docker.io/library/busybox:latest", &[])
    }

    /// Adds a shell command on a root file system.
    pub fn sh(&mut self, root: &Node, script: &str) -> Node {
        self.run(root, script, &[]).remove(0)
    }

    /// Adds a shell command with mounts; returns the root file system and those mounts that are outputs.
    pub fn run(&mut self, root: &Node, script: &str, binds: &[Bind]) -> Vec<Node> {
        self.exec(root, script, binds, |_| {})
    }

    /// Adds a shell command with mounts; `change` has the last word about it.
    pub fn exec(
        &mut self,
        root: &Node,
        script: &str,
        binds: &[Bind],
        change: impl FnOnce(&mut pb::ExecOp),
    ) -> Vec<Node> {
        let mut inputs = Vec::new();
        let root = pb::Mount { input: index(&mut inputs, root), dest: "/".into(), output: 0, ..pb::Mount::default() };
        let mut mounts = vec![root];
        let mut outputs = 1;
        for bind in binds {
            let output = if bind.output { outputs } else { -1 };
            outputs += i64::from(bind.output);
            mounts.push(pb::Mount {
                input: index(&mut inputs, &bind.from),
                selector: bind.selector.into(),
                dest: bind.dest.into(),
                output,
                readonly: bind.readonly,
                ..pb::Mount::default()
            });
        }
        let args = ["sh", "-euc", script].map(str::to_owned).to_vec();
        let meta = pb::Meta { args, cwd: "/".into(), ..pb::Meta::default() };
        let mut exec = pb::ExecOp { meta: Some(meta), mounts, ..pb::ExecOp::default() };
        change(&mut exec);
        let first = self.add(&pb::Op { inputs, op: Some(pb::op::Op::Exec(exec)), ..pb::Op::default() });
        (0..outputs).map(|output| first.clone().map(|first| pb::Input { index: output, ..first })).collect()
    }

    /// Adds file actions that follow one another on a base; each copies from what stands beside it.
    pub fn file(&mut self, base: &Node, actions: Vec<(Node, pb::file_action::Action)>) -> Node {
        let mut inputs = Vec::new();
        let first = index(&mut inputs, base);
        let from: Vec<i64> = actions.iter().map(|(from, _)| index(&mut inputs, from)).collect();
        let (given, last) = (inputs.len(), actions.len() - 1);
        let number = |at: usize| i64::try_from(at).expect("a small number");
        let actions = actions.into_iter().zip(from).enumerate();
        let actions = actions.map(|(at, ((_, action), from))| pb::FileAction {
            input: if at == 0 { first } else { number(given + at - 1) },
            secondary_input: from,
            output: if at == last { 0 } else { -1 },
            action: Some(action),
        });
        let file = pb::FileOp { actions: actions.collect() };
        self.add(&pb::Op { inputs, op: Some(pb::op::Op::File(file)), ..pb::Op::default() })
    }

    /// Stacks file systems, the last on top.
    pub fn merge(&mut self, nodes: &[&Node]) -> Node {
        let mut inputs = Vec::new();
        let stacked = nodes.iter().map(|node| pb::MergeInput { input: index(&mut inputs, node) }).collect();
        let op = Some(pb::op::Op::Merge(pb::MergeOp { inputs: stacked }));
        self.add(&pb::Op { inputs, op, ..pb::Op::default() })
    }

    /// Takes what one file system has over another.
    pub fn diff(&mut self, lower: &Node, upper: &Node) -> Node {
        let mut inputs = Vec::new();
        let lower = Some(pb::LowerDiffInput { input: index(&mut inputs, lower) });
        let upper = Some(pb::UpperDiffInput { input: index(&mut inputs, upper) });
        self.add(&pb::Op { inputs, op: Some(pb::op::Op::Diff(pb::DiffOp { lower, upper })), ..pb::Op::default() })
    }

    /// Changes what is said about an operation.
    pub fn about(&mut self, node: &Node) -> &mut pb::OpMetadata {
        let digest = node.as_ref().map(|node| node.digest.clone()).unwrap_or_default();
        self.definition.metadata.entry(digest).or_default()
    }

    /// Ends the graph with its result.
    pub fn end(mut self, result: &Node) -> pb::Definition {
        if let Some(result) = result {
            self.add(&pb::Op { inputs: vec![result.clone()], ..pb::Op::default() });
        }
        self.definition
    }
}

/// Makes a file.
pub fn mkfile(path: &str, mode: i32, data: &str) -> (Node, pb::file_action::Action) {
    let file = pb::FileActionMkFile { path: path.into(), mode, data: data.into(), owner: None, timestamp: -1 };
    (None, pb::file_action::Action::Mkfile(file))
}

/// Makes a directory and those above it.
pub fn mkdir(path: &str, mode: i32) -> (Node, pb::file_action::Action) {
    let dir = pb::FileActionMkDir { path: path.into(), mode, make_parents: true, owner: None, timestamp: -1 };
    (None, pb::file_action::Action::Mkdir(dir))
}

/// Copies as a client does that says nothing special; `change` has the last word.
pub fn copy(
    from: &Node,
    src: &str,
    dest: &str,
    change: impl FnOnce(&mut pb::FileActionCopy),
) -> (Node, pb::file_action::Action) {
    let mut copy = pb::FileActionCopy {
        src: src.into(),
        dest: dest.into(),
        mode: -1,
        timestamp: -1,
        ..pb::FileActionCopy::default()
    };
    change(&mut copy);
    (from.clone(), pb::file_action::Action::Copy(copy))
}

/// Makes a symbolic link.
pub fn symlink(path: &str, target: &str) -> (Node, pb::file_action::Action) {
    let link = pb::FileActionSymlink { oldpath: target.into(), newpath: path.into(), owner: None, timestamp: -1 };
    (None, pb::file_action::Action::Symlink(link))
}

/// Removes a path; `change` has the last word.
pub fn remove(path: &str, change: impl FnOnce(&mut pb::FileActionRm)) -> (Node, pb::file_action::Action) {
    let mut rm = pb::FileActionRm { path: path.into(), ..pb::FileActionRm::default() };
    change(&mut rm);
    (None, pb::file_action::Action::Rm(rm))
}

fn index(inputs: &mut Vec<pb::Input>, node: &Node) -> i64 {
    let Some(node) = node else { return -1 };
    let at = inputs.iter().position(|known| known == node).unwrap_or_else(|| {
        inputs.push(node.clone());
        inputs.len() - 1
    });
    i64::try_from(at).expect("a small number")
}

fn arch() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// Names and values, as messages have them.
pub fn attrs(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}
