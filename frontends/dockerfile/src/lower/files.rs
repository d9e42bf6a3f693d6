//! Where files come from: directories of the client, repositories, fetched files and archives, as steps.

use kiln_graph::graph::{Location, Meta};
use kiln_graph::op::{Copy, FileAction, FileOp, LocalSource, Op, Source};
use kiln_graph::{Graph, Platform, SourceFile, VertexId};

use super::draft::{Draft, Inputs, Node};
use super::request::Files;
use crate::path;

impl Files {
    /// Makes a graph of nothing but these files, for whoever must look at them before there is a Dockerfile. Its vertices are
    /// those of [`crate::lower()`], for the same files and the platform of the machine that builds.
    #[must_use]
    pub fn graph(&self, platform: &Platform) -> (Graph, VertexId) {
        let mut draft = Draft::new(SourceFile::new("", ""), 1);
        let node = draft.add_files(None, self, &platform.clone().normalized(), None);
        let (graph, edges) = draft.finish(&[node]);
        let root = edges[node].vertex;
        (graph, root)
    }
}

impl Draft {
    /// Adds files; progress calls them as BuildKit does. `context` is the name of a named context.
    pub(super) fn add_files(
        &mut self,
        context: Option<&str>,
        files: &Files,
        platform: &Platform,
        place: Option<Location>,
    ) -> Node {
        let title = |main: &str, named: &str| match context {
            None => format!("[internal] {main}"),
            Some(context) => format!("[context {context}] {named}"),
        };
        let mut add = |source, name| {
            let meta = Meta { name, location: place, ..Meta::default() };
            self.add(Op::Source(source), Inputs::default(), platform.clone(), meta)
        };
        match files {
            Files::Local { name, ignore } => {
                let exclude = ignore.patterns().iter().map(crate::ignore::Pattern::text).collect();
                let local = LocalSource { name: name.clone(), exclude, ..LocalSource::default() };
                add(Source::Local(local), title("load build context", "load from client"))
            }
            Files::Git(git) => {
                let loading = format!("load git source {}", shown(&git.remote));
                add(Source::Git(git.clone()), title(&loading, &loading))
            }
            Files::File(http) => add(Source::Http(http.clone()), title("load remote build context", &shown(&http.url))),
            Files::Archive(http) => {
                let archive = add(Source::Http(http.clone()), title("load remote build context", &shown(&http.url)));
                let source = format!("/{}", http.filename);
                let name = title(&format!("copy {source} /"), &format!("unpack {}", http.filename));
                self.copied(archive, Copy { source, unpack: true, ..Copy::default() }, platform, (name, place))
            }
            Files::Given(given) => self.absorb(given, platform),
            Files::Below(all, dir) => {
                let all = self.add_files(context, all, platform, place);
                let copying = format!("copy {dir} /");
                let copy = Copy { source: path::absolute("/", dir), ..Copy::default() };
                self.copied(all, copy, platform, (title(&copying, &copying), place))
            }
        }
    }

    /// Adds a step that copies from fetched files to an empty filesystem.
    fn copied(
        &mut self,
        from: Node,
        copy: Copy,
        platform: &Platform,
        (name, location): (String, Option<Location>),
    ) -> Node {
        let mut inputs = Inputs::default();
        let copy = Copy { from: Some(inputs.index(from)), wildcard: false, allow_empty_wildcard: false, ..copy };
        let op = Op::File(FileOp { base: None, actions: vec![FileAction::Copy(Box::new(copy))] });
        self.add(op, inputs, platform.clone(), Meta { name, location, ..Meta::default() })
    }
}

/// An address without the user and the password in it.
fn shown(address: &str) -> String {
    let Some((scheme, rest)) = address.split_once("://") else { return address.to_owned() };
    let host = rest.split('/').next().unwrap_or_default();
    match host.rsplit_once('@') {
        Some((user, _)) if user.contains(':') => format!("{scheme}://{}", &rest[user.len() + 1..]),
        _ => address.to_owned(),
    }
}
