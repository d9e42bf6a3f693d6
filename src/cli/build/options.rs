//! The options of `build`.

use std::path::PathBuf;

use clap::Args;

use super::on_failure::OnFailure;
use super::progress::Mode;
use super::resources::ResourceArgs;

/// Arguments of `build`.
#[derive(Debug, Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of the command")]
pub(in crate::cli) struct BuildArgs {
    /// Name of the image, as name or name:tag; may be repeated
    #[arg(short, long = "tag", value_name = "NAME[:TAG]")]
    pub(super) tags: Vec<String>,
    /// Dockerfile, by default Dockerfile in the context; - is standard input, and it may have an address
    #[arg(short, long, value_name = "FILE")]
    pub(super) file: Option<PathBuf>,
    /// Stage to build, by default the last
    #[arg(long, value_name = "STAGE")]
    pub(super) target: Option<String>,
    /// Set a build argument, or pass on a variable of this command with a bare name
    #[arg(long = "build-arg", value_name = "KEY[=VALUE]")]
    pub(super) build_args: Vec<String>,
    /// Set a label of the image
    #[arg(long = "label", value_name = "KEY[=VALUE]")]
    pub(super) labels: Vec<String>,
    /// Run all steps again
    #[arg(long)]
    pub(super) no_cache: bool,
    /// Run the steps of these stages again
    #[arg(long, value_name = "STAGE", value_delimiter = ',')]
    pub(super) no_cache_filter: Vec<String>,
    /// Look for results in a cache of other builds: an image's name, or type=KIND,.. (registry, local, s3, gha); may be repeated
    #[arg(long = "cache-from", value_name = "KEY=VALUE,..")]
    pub(super) cache_from: Vec<String>,
    /// Write the build cache for other machines: type=KIND[,mode=max],.. (inline, registry, local, s3, gha); may be repeated
    #[arg(long = "cache-to", value_name = "KEY=VALUE,..")]
    pub(super) cache_to: Vec<String>,
    /// Build twice without the cache and show, file by file, what differs
    #[arg(long)]
    pub(super) verify: bool,
    /// Ask registries for newer base images
    #[arg(long)]
    pub(super) pull: bool,
    /// Platforms of the image, os/arch[/variant],..
    #[arg(long, env = "DOCKER_DEFAULT_PLATFORM", value_name = "PLATFORM", value_delimiter = ',')]
    pub(super) platform: Vec<String>,
    /// Offer a secret to steps: id=NAME[,src=FILE|,env=VARIABLE]
    #[arg(long = "secret", value_name = "KEY=VALUE,..")]
    pub(super) secrets: Vec<String>,
    /// Forward an SSH agent to steps: default, or ID[=SOCKET|KEY[,KEY]]
    #[arg(long = "ssh", value_name = "ID[=SOCKET|KEY,..]")]
    pub(super) ssh: Vec<String>,
    /// Use something instead of the stage or image of a name: docker-image://, a directory, or an address
    #[arg(long = "build-context", value_name = "NAME=VALUE")]
    pub(super) build_contexts: Vec<String>,
    /// Network of RUN steps: default, none or host
    #[arg(long, value_name = "MODE", default_value = "default", hide_default_value = true)]
    pub(super) network: String,
    /// Add a line to /etc/hosts of RUN steps
    #[arg(long = "add-host", value_name = "HOST:IP")]
    pub(super) add_hosts: Vec<String>,
    /// Size of /dev/shm of RUN steps, such as 64m
    #[arg(long, value_name = "SIZE")]
    pub(super) shm_size: Option<String>,
    /// Limit of RUN steps' processes: name=soft[:hard]
    #[arg(long = "ulimit", value_name = "LIMIT")]
    pub(super) ulimits: Vec<String>,
    /// Control group above those of RUN steps
    #[arg(long, value_name = "PATH")]
    pub(super) cgroup_parent: Option<String>,
    #[command(flatten)]
    pub(super) resources: ResourceArgs,
    /// When a RUN step fails: open a shell in its sandbox, or save its changed files to a directory; may be repeated
    #[arg(long, value_name = "shell|export=DIR")]
    pub(super) on_failure: Vec<OnFailure>,
    /// Allow steps more than usual: network.host, security.insecure, device[=NAME]
    #[arg(long, value_name = "ENTITLEMENT", value_delimiter = ',')]
    pub(super) allow: Vec<String>,
    /// What becomes of the result: a directory, - for a tar on standard output, or type=KIND,.. (image, registry, docker, oci,
    /// local, tar, cacheonly); may be repeated
    #[arg(short, long = "output", value_name = "KEY=VALUE,..")]
    pub(super) outputs: Vec<String>,
    /// Annotate the image: [manifest,index,manifest-descriptor,index-descriptor[PLATFORM]:]KEY=VALUE
    #[arg(long = "annotation", value_name = "KEY=VALUE")]
    pub(super) annotations: Vec<String>,
    /// Push the image when it is built
    #[arg(long)]
    pub(super) push: bool,
    /// Keep the image, which is done without saying
    #[arg(long)]
    pub(super) load: bool,
    /// Write the image's id to a file
    #[arg(long, value_name = "FILE")]
    pub(super) iidfile: Option<PathBuf>,
    /// Write what is known of the result to a file, as JSON
    #[arg(long, value_name = "FILE")]
    pub(super) metadata_file: Option<PathBuf>,
    /// Print the image's id only
    #[arg(short, long)]
    pub(super) quiet: bool,
    /// Answer a question about the Dockerfile instead of building: check, outline or targets[,format=json]
    #[arg(long, value_name = "CALL")]
    pub(super) call: Option<String>,
    /// Check the Dockerfile instead of building, as --call=check
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    pub(super) check: Option<bool>,
    /// Show all that is known of warnings
    #[arg(short = 'D', long)]
    pub(super) debug: bool,
    /// How progress is shown
    #[arg(long, value_enum, env = "BUILDKIT_PROGRESS", default_value_t, value_name = "MODE")]
    pub(super) progress: Mode,
    /// Store provenance beside the image: true, mode=min or mode=max[,version=v1|v0.2][,builder-id=..]
    #[arg(long, value_name = "KEY=VALUE,..", num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    pub(super) provenance: Option<String>,
    /// Store a list of the image's packages beside it: true or generator=IMAGE
    #[arg(long, value_name = "KEY=VALUE,..", num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    pub(super) sbom: Option<String>,
    /// Store an attestation beside the image: type=provenance|sbom[,KEY=VALUE,..]; may be repeated
    #[arg(long = "attest", value_name = "KEY=VALUE,..")]
    pub(super) attestations: Vec<String>,
    /// Directory that steps copy from, the address of a repository or an archive, or - for an archive or a Dockerfile on
    /// standard input
    pub(super) context: PathBuf,
}
