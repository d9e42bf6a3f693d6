//! What identifies an operation: its [`Part`]s, named values in a fixed order.
//!
//! Digests and cache keys are made of parts, and a cache miss is explained by comparing them. Values that must not cause a miss
//! (proxies, addresses of extra hosts, resource limits) are no parts.

use std::fmt::{self, Display, Write as _};

use crate::digest::Digest;
use crate::op::{
    Copy, Exec, FileAction, FileOp, GitAccess, GitSource, HttpSource, ImageBlob, Mount, MountKind, NetworkMode, Op,
    Root, SecretFile, SecurityMode, Sharing, Source,
};

/// One named value that belongs to an operation's identity.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Part {
    /// What the value is, in words for people, for example `build argument GIT_SHA`.
    pub name: String,
    /// The value.
    pub value: String,
}

/// Hands parts on, one by one; what is not text yet is written into one buffer, so that identifying an operation allocates
/// little.
struct Parts<'a> {
    take: &'a mut dyn FnMut(&str, &str),
    buffer: String,
}

impl Parts<'_> {
    fn add(&mut self, name: impl Display, value: impl Display) {
        self.buffer.clear();
        write!(self.buffer, "{name}").expect("a String takes everything");
        let end = self.buffer.len();
        write!(self.buffer, "{value}").expect("a String takes everything");
        (self.take)(&self.buffer[..end], &self.buffer[end..]);
    }

    /// Adds what is not formatted: the name is the pieces one after the other, the value the words with blanks between them.
    fn words(&mut self, name: &[&str], words: &[Word<'_>]) {
        self.buffer.clear();
        self.buffer.extend(name.iter().copied());
        let end = self.buffer.len();
        for (number, word) in words.iter().enumerate() {
            if number > 0 {
                self.buffer.push(' ');
            }
            word.write(&mut self.buffer);
        }
        (self.take)(&self.buffer[..end], &self.buffer[end..]);
    }

    /// Adds what is text already.
    fn text(&mut self, name: &str, value: &str) {
        (self.take)(name, value);
    }

    /// Adds what is text already, of the thing of that name.
    fn text_of(&mut self, kind: &str, name: &str, value: &str) {
        self.words(&[kind, " ", name], &[Word::Text(value)]);
    }

    fn add_if(&mut self, condition: bool, name: &str, value: impl Display) {
        if condition {
            self.add(name, value);
        }
    }

    fn add_time(&mut self, path: &str, mtime_ns: Option<i64>) {
        if let Some(ns) = mtime_ns {
            self.add(format_args!("time of {path}"), ns);
        }
    }

    fn list(&mut self, name: &str, values: &[String]) {
        for value in values {
            self.text(name, value);
        }
    }
}

/// A piece of a value. Formatting is a tenth of what it costs to identify an operation, so the usual ones do without.
enum Word<'a> {
    Text(&'a str),
    /// An input or an output; none is -1.
    Index(Option<u32>),
}

impl Word<'_> {
    fn write(&self, buffer: &mut String) {
        match self {
            Self::Text(text) => buffer.push_str(text),
            Self::Index(None) => buffer.push_str("-1"),
            Self::Index(Some(digit @ 0..=9)) => buffer.extend(char::from_digit(*digit, 10)),
            Self::Index(Some(index)) => write!(buffer, "{index}").expect("a String takes everything"),
        }
    }
}

fn access(readonly: bool) -> &'static str {
    if readonly { "ro" } else { "rw" }
}

impl Op {
    /// Returns the values that identify the operation, in a fixed order. Inputs are not among them.
    #[must_use]
    pub fn parts(&self) -> Vec<Part> {
        let mut parts = Vec::new();
        self.each_part(&mut |name, value| parts.push(Part { name: name.to_owned(), value: value.to_owned() }));
        parts
    }

    /// Hands the names and values of [`Self::parts`] on, one by one.
    pub fn each_part(&self, take: &mut dyn FnMut(&str, &str)) {
        let mut parts = Parts { take, buffer: String::with_capacity(128) };
        let parts = &mut parts;
        match self {
            Self::Source(source) => source.collect(parts),
            Self::Exec(exec) => exec.collect(parts),
            Self::File(file) => file.collect(parts),
            Self::Merge => parts.text("operation", "merge"),
            Self::Diff { lower, upper } => {
                parts.text("operation", "diff");
                parts.words(&["lower"], &[Word::Index(*lower)]);
                parts.words(&["upper"], &[Word::Index(*upper)]);
            }
            Self::Build { filename } => {
                parts.text("operation", "build");
                parts.text("definition", filename);
            }
        }
    }
}

impl Source {
    fn collect(&self, parts: &mut Parts<'_>) {
        match self {
            Self::Image(image) => {
                parts.text("operation", "image");
                parts.add("reference", image.reference.to_string());
                parts.add("image", format_args!("{:?}", image.image_id));
                parts.add("resolve", format_args!("{:?}", image.resolve));
                parts.add_if(image.checksum.is_some(), "checksum", format_args!("{:?}", image.checksum));
                parts.add_if(image.layer_limit.is_some(), "layers", format_args!("{:?}", image.layer_limit));
            }
            Self::Local(local) => {
                parts.text("operation", "local");
                parts.text("name", &local.name);
                parts.list("ignore pattern", &local.exclude);
                parts.list("include pattern", &local.include);
                parts.list("path", &local.follow);
                parts.add_if(!local.session.is_empty(), "session", local.session.as_str());
                parts.add_if(!local.key_hint.is_empty(), "key", local.key_hint.as_str());
                parts.add_if(local.listed_but.is_some(), "content", "listed");
                parts.list("transferred path", local.listed_but.as_deref().unwrap_or_default());
            }
            Self::Git(git) => {
                parts.text("operation", "git");
                parts.add("options", format_args!("{:?}", GitSource { access: GitAccess::default(), ..git.clone() }));
            }
            Self::Http(http) => {
                parts.text("operation", "http");
                let plain = HttpSource { header_secret: String::new(), headers: Vec::new(), ..http.clone() };
                parts.add("options", format_args!("{plain:?}"));
            }
            Self::OciLayout(layout) => {
                parts.text("operation", "oci-layout");
                parts.text("name", &layout.name);
                parts.add("digest", layout.digest.to_string());
                if let Some(limit) = layout.layer_limit {
                    parts.add("layers", limit.to_string());
                }
            }
            Self::Blob(file) => {
                let ImageBlob { blob, filename, mode, uid, gid } = file;
                parts.text("operation", "blob");
                parts.text("address", &blob.address());
                parts.text("layout", blob.place.layout().unwrap_or_default());
                parts.text("name", filename);
                parts.add("mode", format_args!("{mode:?} {uid}:{gid}"));
            }
        }
    }
}

impl Exec {
    fn collect(&self, parts: &mut Parts<'_>) {
        parts.text("operation", "exec");
        parts.list("command", &self.args);
        for entry in self.env.iter() {
            let (name, value) = entry.split_once('=').unwrap_or((entry, ""));
            let kind = if self.build_args.iter().any(|arg| arg == name) { "build argument" } else { "variable" };
            parts.text_of(kind, name, value);
        }
        parts.text("working directory", &self.cwd);
        parts.add_if(!self.user.is_empty(), "user", self.user.as_str());
        parts.add_if(!self.hostname.is_empty(), "host name", self.hostname.as_str());
        let Root { input, readonly, output } = &self.root;
        parts.words(&["root"], &[Word::Index(*input), Word::Text(access(*readonly)), Word::Index(*output)]);
        parts.add_if(self.network != NetworkMode::Sandbox, "network", format_args!("{:?}", self.network));
        parts.add_if(self.security != SecurityMode::Sandbox, "security", format_args!("{:?}", self.security));
        for mount in &self.mounts {
            mount.collect(parts);
        }
        for secret in &self.secret_env {
            parts.add(
                format_args!("secret variable {}", secret.name),
                format_args!("{} {}", secret.id, secret.optional),
            );
        }
        for (host, _) in &self.extra_hosts {
            parts.text("extra host", host);
        }
        for limit in &self.ulimits {
            parts.add(format_args!("ulimit {}", limit.name), format_args!("{}:{}", limit.soft, limit.hard));
        }
        for device in &self.devices {
            parts.add("device", format_args!("{} {}", device.name, device.optional));
        }
        parts.add_if(self.shm_size_bytes.is_some(), "size of /dev/shm", format_args!("{:?}", self.shm_size_bytes));
        for code in &self.valid_exit_codes {
            parts.add("valid exit code", code.to_string());
        }
    }
}

impl Mount {
    /// Texts stand last in a part, or have one of their own, so that none can be taken for what follows.
    fn collect(&self, parts: &mut Parts<'_>) {
        let Self { target, readonly, kind } = self;
        let access = access(*readonly);
        let name = format_args!("mount {target}");
        match kind {
            MountKind::Bind { input, selector, output } => {
                let (input, output) = (Word::Index(*input), Word::Index(*output));
                let words = [Word::Text("bind"), input, output, Word::Text(access), Word::Text(selector)];
                parts.words(&["mount ", target], &words);
            }
            MountKind::Cache { id, sharing, input, selector } => {
                let sharing = match sharing {
                    Sharing::Shared => "Shared",
                    Sharing::Private => "Private",
                    Sharing::Locked => "Locked",
                };
                let (input, sharing) = (Word::Index(*input), Word::Text(sharing));
                let words = [Word::Text("cache"), input, sharing, Word::Text(access), Word::Text(id)];
                parts.words(&["mount ", target], &words);
                if !selector.is_empty() {
                    parts.text("path of a cache", selector);
                }
            }
            MountKind::Tmpfs { size_bytes } => parts.add(name, format_args!("tmpfs {size_bytes:?} {access}")),
            MountKind::Secret(file) => parts.add(name, format_args!("secret {access} {file}")),
            MountKind::Ssh(file) => parts.add(name, format_args!("ssh {access} {file}")),
        }
    }
}

impl Display for SecretFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { id, uid, gid, mode, optional } = self;
        write!(f, "{uid}:{gid} {mode:o} {optional} {id}")
    }
}

impl FileOp {
    fn collect(&self, parts: &mut Parts<'_>) {
        parts.text("operation", "file");
        parts.words(&["base"], &[Word::Index(self.base)]);
        for action in &self.actions {
            action.collect(parts);
        }
    }
}

impl FileAction {
    fn collect(&self, parts: &mut Parts<'_>) {
        match self {
            Self::Copy(copy) => copy.collect(parts),
            Self::Mkfile { path, data, mode, owner, mtime_ns } => {
                parts.text("file", path);
                parts.add(format_args!("content of {path}"), Digest::of(data).to_string());
                parts.add(format_args!("mode of {path}"), format_args!("{mode:o}"));
                parts.add(format_args!("owner of {path}"), format_args!("{owner:?}"));
                parts.add_time(path, *mtime_ns);
            }
            Self::Mkdir { path, mode, parents, owner, mtime_ns } => {
                parts.text("directory", path);
                parts.add(format_args!("mode of {path}"), format_args!("{mode:o}"));
                parts.add(format_args!("owner of {path}"), format_args!("{owner:?} {parents}"));
                parts.add_time(path, *mtime_ns);
            }
            Self::Symlink { path, target, owner, mtime_ns } => {
                parts.text("symbolic link", path);
                parts.add(format_args!("target of {path}"), target.as_str());
                parts.add(format_args!("owner of {path}"), format_args!("{owner:?}"));
                parts.add_time(path, *mtime_ns);
            }
            Self::Remove { path, allow_missing, wildcard } => {
                parts.text("removed path", path);
                parts.add(format_args!("removal of {path}"), format_args!("{allow_missing} {wildcard}"));
            }
        }
    }
}

impl Copy {
    fn collect(&self, parts: &mut Parts<'_>) {
        parts.words(&["copy from"], &[Word::Index(self.from)]);
        parts.text("source", &self.source);
        parts.text("destination", &self.dest);
        parts.add_if(self.owner.is_some(), "--chown", format_args!("{:?}", self.owner));
        parts.add_if(self.mode.is_some(), "--chmod", format_args!("{:?}", self.mode));
        let flags = [
            self.follow_symlinks,
            self.contents_only,
            self.unpack,
            self.create_dest_path,
            self.wildcard,
            self.allow_empty_wildcard,
            self.replace_existing,
        ];
        let flags = flags.map(|flag| if flag { "1" } else { "0" });
        parts.text("copy options", &flags.concat());
        parts.list("--include", &self.include);
        parts.list("--exclude", &self.exclude);
        parts.list("required path", &self.required);
        parts.add_if(self.mtime_ns.is_some(), "time", format_args!("{:?}", self.mtime_ns));
    }
}
