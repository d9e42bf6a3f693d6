//! COPY and ADD: one step of file actions, on the stage's filesystem or, with `--link`, on a layer of its own.

use kiln_graph::op::{self, FileAction, FileOp, GitSource, HttpSource, Mode, Op, Owner, Source};
use kiln_graph::{Diagnostic, Digest, Span};

use super::draft::{Inputs, Node};
use super::owner;
use super::remote::{self, Remote};
use super::request::Files;
use super::stage::StageLowering;
use crate::check;
use crate::ignore::{Ignore, Pattern};
use crate::instruction::{Add, Copy, Head, Transfer};
use crate::line::Word;
use crate::path;
use crate::scalar;
use crate::shell::Lexer;

/// What one COPY or ADD does, variables expanded.
struct Plan {
    keyword: &'static str,
    sources: Vec<Word>,
    destination: String,
    /// The destination as written, for the history.
    written_destination: String,
    chown: Option<String>,
    chmod: Option<String>,
    owner: Option<Owner>,
    mode: Option<Mode>,
    parents: bool,
    /// `--unpack`, as far as it is given.
    unpack: Option<bool>,
    keep_git_dir: Option<bool>,
    checksum: Option<Word>,
    exclude: Vec<String>,
}

impl StageLowering<'_, '_> {
    pub(super) fn copy(&mut self, head: &Head, copy: &Copy) -> Result<(), Diagnostic> {
        let mut plan = self.plan("COPY", &copy.transfer)?;
        plan.parents = copy.parents;
        let from = match &copy.from {
            Some(from) => self.source(from, true)?,
            None => {
                self.check_ignored(&plan);
                None
            }
        };
        self.transfer(head, &copy.transfer, &plan, copy.from.is_some().then_some(from))
    }

    pub(super) fn add(&mut self, head: &Head, add: &Add) -> Result<(), Diagnostic> {
        let mut plan = self.plan("ADD", &add.transfer)?;
        plan.unpack = add.unpack;
        plan.keep_git_dir = add.keep_git_dir;
        plan.checksum = match &add.checksum {
            Some(word) => Some(Word::new(self.expand(word)?, word.span)),
            None => None,
        };
        self.check_ignored(&plan);
        self.transfer(head, &add.transfer, &plan, None)
    }

    /// Expands everything.
    fn plan(&mut self, keyword: &'static str, transfer: &Transfer) -> Result<Plan, Diagnostic> {
        let chown = self.expand_flag(transfer.chown.as_ref())?;
        let chmod = self.expand_flag(transfer.chmod.as_ref())?;
        let mut sources = Vec::new();
        for source in &transfer.sources {
            sources.push(Word::new(self.expand(source)?, source.span));
        }
        let written_destination = self.expand(&transfer.destination)?;
        if written_destination.is_empty() && sources.iter().all(|s| s.text.is_empty()) && transfer.documents.is_empty()
        {
            return Err(Diagnostic::error(
                transfer.destination.span,
                format!("{keyword} has nothing but empty arguments"),
            )
            .with_hint("its variables are not set"));
        }
        self.check_path(&written_destination, transfer.destination.span)?;
        let mode = match &chmod {
            Some(word) => Some(owner::mode(&word.text).map_err(|why| Diagnostic::error(word.span, why))?),
            None => None,
        };
        let owner = chown.as_ref().map(|word| owner::owner(&word.text));
        self.check_owner(owner.as_ref(), chown.as_ref(), is_linked(transfer, mode.as_ref()))?;
        Ok(Plan {
            keyword,
            destination: destination(&self.working_dir(), &written_destination),
            written_destination,
            sources,
            chown: chown.map(|word| word.text),
            chmod: chmod.map(|word| word.text),
            owner,
            mode,
            parents: false,
            unpack: None,
            keep_git_dir: None,
            checksum: None,
            exclude: transfer.exclude.iter().map(|word| word.text.clone()).collect(),
        })
    }

    /// Expands a flag's value; one that becomes empty counts as not given.
    fn expand_flag(&mut self, word: Option<&Word>) -> Result<Option<Word>, Diagnostic> {
        let Some(word) = word else { return Ok(None) };
        let text = self.expand(word)?;
        Ok((!text.is_empty()).then(|| Word::new(text, word.span)))
    }

    /// Names of users are looked up in the filesystem the layer is made on, which must have some.
    fn check_owner(&self, owner: Option<&Owner>, flag: Option<&Word>, linked: bool) -> Result<(), Diagnostic> {
        let (Some(owner), Some(flag)) = (owner, flag) else { return Ok(()) };
        if !owner.needs_lookup() || (self.state.node.is_some() && !linked) {
            return Ok(());
        }
        let why = if linked { "a linked layer does not depend on its base" } else { "the stage is still empty" };
        let message = format!("--chown={} names a user, but {why}, so there is no /etc/passwd to look in", flag.text);
        Err(Diagnostic::error(flag.span, message).with_hint("use numbers"))
    }

    /// Adds the step. `from` is what `--from` names, which may be an empty filesystem.
    fn transfer(
        &mut self,
        head: &Head,
        transfer: &Transfer,
        plan: &Plan,
        from: Option<Option<Node>>,
    ) -> Result<(), Diagnostic> {
        let linked = is_linked(transfer, plan.mode.as_ref());
        let title = self.title(self.lexer, &head.text, &self.state.variables);
        let mut inputs = Inputs::default();
        let base = if linked { None } else { self.state.node.map(|node| inputs.index(node)) };
        let mut actions = Vec::new();
        // What is fetched has the instruction's name in progress, too.
        let mut nodes = Vec::new();
        for source in &plan.sources {
            let copy = match self.remote(source, plan, head.span)? {
                Some((node, mut copy)) => {
                    nodes.push(node);
                    copy.from = Some(inputs.index(node));
                    copy
                }
                None => {
                    let node = from.unwrap_or_else(|| Some(self.context(head.span)));
                    let mut copy = self.path(source, plan)?;
                    copy.from = node.map(|node| inputs.index(node));
                    copy
                }
            };
            actions.push(FileAction::Copy(Box::new(self.finished(copy, plan))));
        }
        for document in &transfer.documents {
            let content = if document.expand {
                let body = Word::new(document.content(), document.body.span);
                self.expand_with(Lexer::of_heredocs(), &body)?.text
            } else {
                document.content()
            };
            let node = self.document(&document.name, content, 0o644, head.span);
            let source = path::absolute("/", &document.name);
            let copy = op::Copy { from: Some(inputs.index(node)), source, ..plain_copy() };
            actions.push(FileAction::Copy(Box::new(self.finished(copy, plan))));
        }
        let op = Op::File(FileOp { base, actions });
        let node = self.add_step(op, inputs, self.no_cache, head.span);
        let link = self.state.node.filter(|_| linked).map(|base| {
            let mut inputs = Inputs::default();
            inputs.index(base);
            inputs.index(node);
            self.add_step(Op::Merge, inputs, self.no_cache, head.span)
        });
        nodes.push(node);
        self.number(nodes, link, title);
        self.state.node = Some(link.unwrap_or(node));
        self.history(history(plan, transfer), true);
        Ok(())
    }

    /// Fills in what all copies of an instruction have in common.
    fn finished(&self, copy: op::Copy, plan: &Plan) -> op::Copy {
        op::Copy {
            dest: plan.destination.clone(),
            owner: plan.owner.clone(),
            mode: plan.mode.clone(),
            exclude: plan.exclude.clone(),
            mtime_ns: self.mtime_ns(),
            ..copy
        }
    }

    /// Copies a path of the context, or of what `--from` names.
    fn path(&mut self, source: &Word, plan: &Plan) -> Result<op::Copy, Diagnostic> {
        if plan.checksum.is_some() {
            return Err(checksum_error(plan, source, "is for files by HTTP and for repositories"));
        }
        let mut copy = op::Copy {
            source: path::absolute("/", &source.text),
            unpack: plan.unpack.unwrap_or(plan.keyword == "ADD"),
            ..op::Copy::default()
        };
        if plan.parents {
            // What stands before the pivot `/./` is not kept.
            let (pivot, below) = source.text.split_once("/./").unwrap_or(("/", &source.text));
            copy.source = path::absolute("/", pivot);
            let below = path::absolute("/", below)[1..].to_owned();
            if !crate::glob::has_wildcards(pivot) && !crate::glob::has_wildcards(&below) {
                copy.required = vec![below.clone()];
            }
            copy.include = vec![below];
        }
        Ok(copy)
    }

    /// Adds a source that is fetched, if the source is one.
    fn remote(&mut self, source: &Word, plan: &Plan, span: Span) -> Result<Option<(Node, op::Copy)>, Diagnostic> {
        let remote = remote::parse(&source.text, plan.keep_git_dir.is_some())
            .map_err(|why| Diagnostic::error(source.span, format!("{}: {why}", source.text)))?;
        let Some(remote) = remote else { return Ok(None) };
        if plan.keyword == "COPY" {
            let what = if matches!(remote, Remote::Git(..)) { "repository" } else { "URL" };
            let message = format!("COPY cannot fetch the {what} {}", source.text);
            return Err(Diagnostic::error(source.span, message).with_hint("use ADD"));
        }
        if plan.sources.len() > 1 && plan.checksum.is_some() {
            return Err(checksum_error(plan, source, "is for a single source"));
        }
        let (source, copy) = match remote {
            Remote::Git(git, keep) => {
                let git = repository(git, keep, plan, source)?;
                // All of the checkout, without a directory around it.
                (Source::Git(git), op::Copy { contents_only: true, ..plain_copy() })
            }
            Remote::Http { filename } => {
                let checksum = match &plan.checksum {
                    Some(word) => Some(
                        word.text
                            .parse::<Digest>()
                            .map_err(|why| Diagnostic::error(word.span, format!("--checksum={}: {why}", word.text)))?,
                    ),
                    None => None,
                };
                let copy =
                    op::Copy { source: format!("/{filename}"), unpack: plan.unpack.unwrap_or(false), ..plain_copy() };
                let url = source.text.clone();
                (Source::Http(HttpSource { url, checksum, filename, ..HttpSource::default() }), copy)
            }
        };
        let platform = self.lowering.request.build_platform();
        let location = self.location(span);
        let node = self.lowering.draft.add_source(source, platform, String::new(), location);
        Ok(Some((node, copy)))
    }

    /// Reports sources that `.dockerignore` excludes. With exceptions in the file, that cannot be said without looking.
    fn check_ignored(&mut self, plan: &Plan) {
        let Files::Local { ignore, .. } = &self.lowering.request.context else { return };
        if ignore.has_exceptions() {
            return;
        }
        for source in &plan.sources {
            if remote::parse(&source.text, plan.keep_git_dir.is_some()) != Ok(None) {
                continue;
            }
            let path = path::clean(&source.text);
            if excluded_by(ignore, &path).is_some() {
                let command = if plan.keyword == "ADD" { "Add" } else { "Copy" };
                let path = scalar::quote(&path);
                let message = format!("Attempting to {command} file {path} that is excluded by .dockerignore");
                self.warn(check::COPY_IGNORED_FILE, source.span, message);
            }
        }
    }
}

/// The pattern that excludes a source. The root of the context counts as excluded when everything in it is.
fn excluded_by<'i>(ignore: &'i Ignore, source: &str) -> Option<&'i Pattern> {
    match source.trim_start_matches('/') {
        "" | "." => ignore.patterns().iter().find(|p| matches!(p.text().as_str(), "*" | "**" | "**/*")),
        path => ignore.deciding_pattern(path),
    }
}

/// Whether the layer is made on its own. As in BuildKit, `--chmod` prevents that.
fn is_linked(transfer: &Transfer, mode: Option<&Mode>) -> bool {
    transfer.link && mode.is_none()
}

/// A copy of exactly one thing, as it is.
fn plain_copy() -> op::Copy {
    op::Copy {
        follow_symlinks: false,
        contents_only: false,
        wildcard: false,
        allow_empty_wildcard: false,
        ..op::Copy::default()
    }
}

/// Returns the absolute destination; a final slash says that it is a directory.
fn destination(working_dir: &str, written: &str) -> String {
    let is_directory = matches!(written, "" | ".") || written.ends_with('/') || written.ends_with("/.");
    let path = path::absolute(working_dir, written);
    if is_directory && path != "/" { format!("{path}/") } else { path }
}

fn checksum_error(plan: &Plan, source: &Word, what: &str) -> Diagnostic {
    let span = plan.checksum.as_ref().map_or(source.span, |word| word.span);
    Diagnostic::error(span, format!("--checksum {what}"))
}

/// Joins what the flags say about a repository with what its address says.
fn repository(git: GitSource, keep: Option<bool>, plan: &Plan, source: &Word) -> Result<GitSource, Diagnostic> {
    let contradiction =
        |flag: &str| Diagnostic::error(source.span, format!("the address and {flag} contradict each other"));
    let keep_git_dir = match (plan.keep_git_dir, keep) {
        (Some(flag), Some(address)) if flag != address => return Err(contradiction("--keep-git-dir")),
        (flag, address) => flag.or(address).unwrap_or(false),
    };
    let checksum = match &plan.checksum {
        Some(word) if !git.checksum.is_empty() && git.checksum != word.text => {
            return Err(contradiction("--checksum"));
        }
        Some(word) => word.text.clone(),
        None => git.checksum.clone(),
    };
    if checksum.len() > 64 || !checksum.bytes().all(|b| b.is_ascii_hexdigit()) {
        let span = plan.checksum.as_ref().map_or(source.span, |word| word.span);
        return Err(Diagnostic::error(span, format!("the checksum {checksum} is not the id of a commit")));
    }
    Ok(GitSource { keep_git_dir, checksum, ..git })
}

/// `COPY --chown=1 src <<doc dst # buildkit`
fn history(plan: &Plan, transfer: &Transfer) -> String {
    let mut parts = vec![plan.keyword.to_owned()];
    parts.extend(plan.parents.then(|| "--parents".to_owned()));
    parts.extend(plan.chown.iter().map(|chown| format!("--chown={chown}")));
    parts.extend(plan.chmod.iter().map(|chmod| format!("--chmod={chmod}")));
    parts.extend(plan.sources.iter().map(|source| source.text.clone()));
    parts.extend(transfer.documents.iter().map(|document| format!("<<{}", document.name)));
    parts.extend([plan.written_destination.clone(), "# buildkit".to_owned()]);
    parts.join(" ")
}
