//! Operations: what a vertex does, in types that mirror BuildKit's LLB without its wire form.
//!
//! What identifies an operation are its [`Part`]s.

use std::sync::Arc;

use crate::digest::Digest;
pub use crate::part::Part;
use crate::reference::Reference;

/// The index of a vertex input within [`crate::Vertex::inputs`].
pub type InputIndex = u32;

/// What a vertex does.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[expect(
    clippy::large_enum_variant,
    reason = "a graph has thousands of operations at most, and sources are matched everywhere"
)]
pub enum Op {
    /// Brings something in from outside.
    Source(Source),
    /// Runs a process.
    Exec(Box<Exec>),
    /// Copies and makes files.
    File(FileOp),
    /// Stacks all inputs, the last on top.
    Merge,
    /// Keeps what input 1 changes over input 0; an absent side is empty.
    Diff {
        /// The lower side.
        lower: Option<InputIndex>,
        /// The upper side.
        upper: Option<InputIndex>,
    },
    /// Does what a definition says that input 0 holds: the operation's result is that of the definition.
    Build {
        /// The file with the definition, LLB's `pb.Definition`.
        filename: String,
    },
}

/// Something that comes from outside the graph.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Source {
    /// An image's root filesystem, for the vertex's platform.
    Image(ImageSource),
    /// A directory of the client.
    Local(LocalSource),
    /// A git checkout.
    Git(GitSource),
    /// A file fetched by HTTP.
    Http(HttpSource),
    /// An image in an OCI layout of the client.
    OciLayout(OciLayoutSource),
    /// One blob of an image, as a file.
    Blob(ImageBlob),
}

/// Whether a registry is asked for an image that exists locally.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum ResolveMode {
    /// The local image when there is one, else the registry.
    #[default]
    PreferLocal,
    /// Always the registry (`--pull`).
    Pull,
}

/// An image's root filesystem.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ImageSource {
    /// The name.
    pub reference: Reference,
    /// The image id (configuration digest) the frontend saw when it resolved the name, so that graph and build agree.
    pub image_id: Option<Digest>,
    /// How the name is resolved.
    pub resolve: ResolveMode,
    /// The manifest or index that the name must stand for.
    pub checksum: Option<Digest>,
    /// How many of its layers are used, from the lowest on; `None` is all.
    pub layer_limit: Option<u32>,
}

/// A directory the client offers under a name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct LocalSource {
    /// The name, for example `context`.
    pub name: String,
    /// `.dockerignore` patterns; what they match is not there.
    pub exclude: Vec<String>,
    /// Patterns of what may be needed at all; empty means everything.
    pub include: Vec<String>,
    /// Paths (with wildcards) that operations read, symlinks followed: limits what is transferred. Empty means everything.
    pub follow: Vec<String>,
    /// The session that offers it; empty is that of the build.
    pub session: String,
    /// Distinguishes directories of one name, whose kept copies have little in common.
    pub key_hint: String,
    /// Patterns of what is transferred, when the rest is only listed: in the file `.fsutil-metadata`, which BuildKit's `fsutil`
    /// names and writes so. `None` transfers everything.
    pub listed_but: Option<Vec<String>>,
}

/// A git checkout.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct GitSource {
    /// The remote.
    pub remote: String,
    /// Branch, tag, commit or full ref; empty means the default branch.
    pub reference: String,
    /// A directory within the checkout.
    pub subdir: String,
    /// Whether `.git` stays.
    pub keep_git_dir: bool,
    /// The commit that `reference` must resolve to (a prefix is enough).
    pub checksum: String,
    /// Whether submodules are left out.
    pub skip_submodules: bool,
    /// Whether files get the commit's time instead of the checkout's.
    pub commit_mtime: bool,
    /// Whether the commit is fetched by its id.
    pub fetch_by_commit: bool,
    /// What its signature must be verified by; `None` asks for none.
    pub verification: Option<Box<GitVerification>>,
    /// How its server is reached; not part of the identity.
    pub access: GitAccess,
    /// The bundle that the commit is taken from, instead of the remote; not part of the identity.
    pub bundle: Option<Box<BlobLocator>>,
    /// Whether the result is a bundle with the commit and its history, as the file `bundle`, instead of its files.
    pub as_bundle: bool,
}

/// Whose signature a commit or a tag of it must have.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct GitVerification {
    /// Armored OpenPGP keys, or SSH keys as lines of `authorized_keys`.
    pub keys: String,
    /// Whether what a key signed that has expired since is refused.
    pub reject_expired: bool,
    /// Whether the tag itself must be signed.
    pub require_signed_tag: bool,
    /// Whether the commit must be signed, whatever the tag is.
    pub ignore_signed_tag: bool,
}

/// How the server of a repository is reached.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct GitAccess {
    /// The secret with an `Authorization` header; empty is `GIT_AUTH_HEADER`.
    pub header_secret: String,
    /// The secret with a token; empty is `GIT_AUTH_TOKEN`.
    pub token_secret: String,
    /// The client's SSH agent; empty is `default`.
    pub agent: String,
    /// The keys of hosts, as lines of `known_hosts`; empty accepts the key that is seen first.
    pub known_hosts: String,
}

/// A file fetched by HTTP.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct HttpSource {
    /// The address.
    pub url: String,
    /// What its content must hash to.
    pub checksum: Option<Digest>,
    /// The name of the file; empty means from the address.
    pub filename: String,
    /// The file's permission bits.
    pub mode: Option<u32>,
    /// The file's owner.
    pub uid: u32,
    /// The file's group.
    pub gid: u32,
    /// The secret with an `Authorization` header; empty is the one named by the host. Not part of the identity.
    pub header_secret: String,
    /// Further headers of the request, names in lower case; not part of the identity.
    pub headers: Vec<(String, String)>,
    /// What its content must be signed with; `None` asks for nothing.
    pub verification: Option<Box<FileVerification>>,
}

/// The signature of a file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct FileVerification {
    /// Armored OpenPGP keys.
    pub keys: String,
    /// An armored detached signature by one of them.
    pub signature: String,
}

/// An image in an OCI layout that the client offers.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct OciLayoutSource {
    /// The name of the layout.
    pub name: String,
    /// The manifest or index.
    pub digest: Digest,
    /// How many of its layers are used, from the lowest on; `None` is all.
    pub layer_limit: Option<u32>,
}

/// One blob of an image, as the only file of a file system.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ImageBlob {
    /// Which one.
    pub blob: BlobLocator,
    /// The name of the file; empty means the digits of the digest.
    pub filename: String,
    /// The file's permission bits.
    pub mode: Option<u32>,
    /// The file's owner.
    pub uid: u32,
    /// The file's group.
    pub gid: u32,
}

/// Which blob is meant, and who has it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct BlobLocator {
    /// Who has it; not part of its identity.
    pub place: BlobPlace,
    /// What it is.
    pub digest: Digest,
}

/// Who has a blob.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum BlobPlace {
    /// A repository of a registry.
    Registry(Reference),
    /// An OCI layout that the client offers.
    Layout {
        /// What an image of it is called.
        name: String,
        /// What the client calls the layout; empty is the same.
        store: String,
    },
}

impl BlobLocator {
    /// Returns the address, as LLB writes it: `docker-image+blob://` or `oci-layout+blob://`, a name and the digest.
    #[must_use]
    pub fn address(&self) -> String {
        match &self.place {
            BlobPlace::Registry(name) => format!("docker-image+blob://{}", name.with_digest(self.digest)),
            BlobPlace::Layout { name, .. } => format!("oci-layout+blob://{name}@{}", self.digest),
        }
    }
}

impl BlobPlace {
    /// Returns what the client calls the layout; `None` for a registry.
    #[must_use]
    pub fn layout(&self) -> Option<&str> {
        match self {
            Self::Registry(_) => None,
            Self::Layout { name, store } => Some(if store.is_empty() { name } else { store }),
        }
    }
}

/// Which network a process sees.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum NetworkMode {
    /// A network of its own with access to the outside.
    #[default]
    Sandbox,
    /// The host's network.
    Host,
    /// Loopback only.
    None,
}

/// How much a process may do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum SecurityMode {
    /// The default profile.
    #[default]
    Sandbox,
    /// Everything; needs an entitlement.
    Insecure,
}

/// A process and the file systems it sees. Its outputs are numbered from 0: one that the root file system gives, if any, and
/// those of bind mounts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Exec {
    /// The argument vector.
    pub args: Vec<String>,
    /// Environment as `KEY=value`, in order; often that of other processes, too.
    pub env: Arc<[String]>,
    /// The names of those variables that are build arguments (for messages only).
    pub build_args: Arc<[String]>,
    /// The working directory; made when missing.
    pub cwd: String,
    /// `user[:group]`, looked up in the root file system; empty means root.
    pub user: String,
    /// The host name; empty means the default.
    pub hostname: String,
    /// The root file system.
    pub root: Root,
    /// Further mounts, in order.
    pub mounts: Vec<Mount>,
    /// The network.
    pub network: NetworkMode,
    /// The privileges.
    pub security: SecurityMode,
    /// Secrets passed as environment variables.
    pub secret_env: Vec<SecretEnv>,
    /// Proxy settings added to the environment; not part of the identity.
    pub proxy: Proxy,
    /// Additional lines of `/etc/hosts`: name and address (or `host-gateway`). Only the names are part of the identity.
    pub extra_hosts: Vec<(String, String)>,
    /// Resource limits of processes.
    pub ulimits: Vec<Ulimit>,
    /// The size of `/dev/shm` in bytes.
    pub shm_size_bytes: Option<u64>,
    /// The parent control group; not part of the identity.
    pub cgroup_parent: String,
    /// CDI devices.
    pub devices: Vec<Device>,
    /// Exit codes that count as success; empty means 0.
    pub valid_exit_codes: Vec<i32>,
    /// How often the process is started again, from a clean file system, after it failed; not part of the identity.
    pub retries: u32,
    /// How long one run of the process may take, in nanoseconds; then it is killed and has failed. Not part of the identity.
    pub timeout_ns: Option<u64>,
    /// What the process and its descendants may use together; not part of the identity.
    pub limits: Limits,
}

/// Limits of an exec's control group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Limits {
    /// Memory in bytes; `None` is no limit.
    pub memory_bytes: Option<u64>,
    /// Processor time in billionths of a processor, as docker's `NanoCpus`: 1 500 000 000 is one and a half; `None` is no
    /// limit.
    pub nano_cpus: Option<u64>,
}

/// The root file system of an exec.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Root {
    /// Which input; `None` is an empty directory.
    pub input: Option<InputIndex>,
    /// Whether writing is refused.
    pub readonly: bool,
    /// Which output receives the changed file system; `None` drops the changes.
    pub output: Option<u32>,
}

impl Default for Root {
    fn default() -> Self {
        Self { input: None, readonly: false, output: Some(0) }
    }
}

/// A mount other than the root.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Mount {
    /// The absolute mount point.
    pub target: String,
    /// Whether writing is refused.
    pub readonly: bool,
    /// What is mounted.
    pub kind: MountKind,
}

/// What a mount shows.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum MountKind {
    /// A path of an input.
    Bind {
        /// Which input; `None` is an empty directory.
        input: Option<InputIndex>,
        /// The path within it; empty means all of it.
        selector: String,
        /// Which output receives the changes; `None` drops them.
        output: Option<u32>,
    },
    /// A directory that survives between builds.
    Cache {
        /// The directory's name.
        id: String,
        /// Who may use it at the same time.
        sharing: Sharing,
        /// Its initial content.
        input: Option<InputIndex>,
        /// A path within it.
        selector: String,
    },
    /// Memory.
    Tmpfs {
        /// The largest size in bytes; `None` is the kernel's default.
        size_bytes: Option<u64>,
    },
    /// A secret as a file.
    Secret(SecretFile),
    /// The client's SSH agent as a socket.
    Ssh(SecretFile),
}

/// Who may use a cache directory at the same time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Sharing {
    /// Everybody.
    #[default]
    Shared,
    /// One step each; a second gets another directory.
    Private,
    /// One step; others wait.
    Locked,
}

/// A secret (or an agent) shown as a file.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SecretFile {
    /// Its name in the session.
    pub id: String,
    /// The file's owner.
    pub uid: u32,
    /// The file's group.
    pub gid: u32,
    /// The file's permission bits.
    pub mode: u32,
    /// Whether the step runs without it.
    pub optional: bool,
}

/// A secret passed as an environment variable.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SecretEnv {
    /// Its name in the session.
    pub id: String,
    /// The variable.
    pub name: String,
    /// Whether the step runs without it.
    pub optional: bool,
}

/// Proxy settings: variable names and values, for example `HTTP_PROXY`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Proxy {
    /// The variables, in order.
    pub env: Vec<(String, String)>,
}

/// A limit as `ulimit` sets it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Ulimit {
    /// The limit's name, for example `nofile`.
    pub name: String,
    /// The soft limit; -1 is unlimited.
    pub soft: i64,
    /// The hard limit; -1 is unlimited.
    pub hard: i64,
}

/// A CDI device.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Device {
    /// `vendor/class=device`, `vendor/class` or a class annotation.
    pub name: String,
    /// Whether the step runs without it.
    pub optional: bool,
}

/// A sequence of changes to a file system, giving one layer.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct FileOp {
    /// The file system that is changed; `None` is empty.
    pub base: Option<InputIndex>,
    /// The changes, in order.
    pub actions: Vec<FileAction>,
}

/// One change to a file system.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum FileAction {
    /// Copies from an input.
    Copy(Box<Copy>),
    /// Makes a file.
    Mkfile {
        /// The absolute path.
        path: String,
        /// The content.
        data: Vec<u8>,
        /// The permission bits.
        mode: u32,
        /// The owner; `None` is root.
        owner: Option<Owner>,
        /// The modification time in nanoseconds since 1970; `None` is the time of the step.
        mtime_ns: Option<i64>,
    },
    /// Makes a directory.
    Mkdir {
        /// The absolute path.
        path: String,
        /// The permission bits.
        mode: u32,
        /// Whether missing parents are made (and an existing directory is accepted).
        parents: bool,
        /// The owner of what is made; `None` is root.
        owner: Option<Owner>,
        /// The modification time of what is made, in nanoseconds since 1970; `None` is the time of the step.
        mtime_ns: Option<i64>,
    },
    /// Makes a symbolic link.
    Symlink {
        /// The absolute path of the link.
        path: String,
        /// Where it points.
        target: String,
        /// The owner; `None` is root.
        owner: Option<Owner>,
        /// The modification time in nanoseconds since 1970; `None` is the time of the step.
        mtime_ns: Option<i64>,
    },
    /// Removes a path.
    Remove {
        /// The absolute path.
        path: String,
        /// Whether a missing path is accepted.
        allow_missing: bool,
        /// Whether the path is a pattern.
        wildcard: bool,
    },
}

/// A copy from an input into the changed file system.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Copy {
    /// The input copied from; `None` is an empty file system.
    pub from: Option<InputIndex>,
    /// The path within it; `..` and a leading `/` are relative to its root.
    pub source: String,
    /// The absolute destination; a trailing `/` means "into this directory".
    pub dest: String,
    /// The owner given to everything copied; `None` keeps the source's.
    pub owner: Option<Owner>,
    /// The permissions given to everything copied; `None` keeps the source's.
    pub mode: Option<Mode>,
    /// Whether `source` may be a symbolic link to what is meant.
    pub follow_symlinks: bool,
    /// Whether a directory's content is copied rather than the directory.
    pub contents_only: bool,
    /// Whether archives are unpacked.
    pub unpack: bool,
    /// Whether missing parents of the destination are made.
    pub create_dest_path: bool,
    /// Whether `source` is a pattern.
    pub wildcard: bool,
    /// Whether a pattern that matches nothing is accepted.
    pub allow_empty_wildcard: bool,
    /// Whether an existing destination of another kind is replaced.
    pub replace_existing: bool,
    /// Patterns, relative to `source`, of what is copied; empty means everything.
    pub include: Vec<String>,
    /// Patterns, relative to `source`, of what is left out.
    pub exclude: Vec<String>,
    /// Paths, relative to `source`, that must exist.
    pub required: Vec<String>,
    /// The modification time in nanoseconds since 1970 given to everything copied; `None` keeps the source's.
    pub mtime_ns: Option<i64>,
}

impl Default for Copy {
    fn default() -> Self {
        Self {
            from: None,
            source: "/".to_owned(),
            dest: "/".to_owned(),
            owner: None,
            mode: None,
            follow_symlinks: true,
            contents_only: true,
            unpack: false,
            create_dest_path: true,
            wildcard: true,
            allow_empty_wildcard: true,
            replace_existing: false,
            include: Vec::new(),
            exclude: Vec::new(),
            required: Vec::new(),
            mtime_ns: None,
        }
    }
}

/// Who owns a file.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Owner {
    /// The user.
    pub user: OwnerId,
    /// The group; `None` takes the primary group of a named user, the same number for a numeric one.
    pub group: Option<OwnerId>,
}

/// A user or a group.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum OwnerId {
    /// A number.
    Id(u32),
    /// A name, looked up in the changed file system.
    Name(String),
}

impl Owner {
    /// Says whether the root file system's user database is needed.
    #[must_use]
    pub fn needs_lookup(&self) -> bool {
        let named = |id: &OwnerId| matches!(id, OwnerId::Name(name) if name != "root");
        named(&self.user) || self.group.as_ref().is_some_and(named)
    }
}

/// Permissions given to copied files.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Mode {
    /// The bits, up to `0o7777`.
    Octal(u32),
    /// As `chmod` reads it, for example `u=rwX,go=rX`.
    Symbolic(String),
}

impl Op {
    /// Returns how many outputs it has.
    #[must_use]
    pub fn outputs(&self) -> u32 {
        let Self::Exec(exec) = self else { return 1 };
        let binds = exec.mounts.iter().filter(|mount| matches!(mount.kind, MountKind::Bind { output: Some(_), .. }));
        u32::try_from(binds.count()).unwrap_or(u32::MAX).saturating_add(u32::from(exec.root.output.is_some()))
    }
}
