//! Provenance: what a result was built of, by whom and how, gathered from the request and the graph.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use bytes::Bytes;
use kiln_graph::op::{Exec, MountKind, NetworkMode, Op, Source};
use kiln_graph::{Digest, Platform, Reference, VertexId};
use serde_json::{Value as Json, json};

use super::super::export::Attestation;
use super::super::frontend::Target;
use super::super::job::Job;
use super::super::lock;
use super::super::machine::Machine;
use super::super::ops::Reading;
use super::super::remote::Material;
use super::super::value::{FileSystem, Value};
use super::{definition, rfc3339, slsa};
use crate::error::{Error, Result};
use crate::sbom::Purl;
use crate::store::Snapshot;
use crate::task;

/// How much provenance tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// What the result was made of, and how it was asked for, without build arguments.
    Min,
    /// Everything: build arguments, the names of secrets, the steps and the source.
    Max,
}

/// Which version of SLSA's predicate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::solver) enum Version {
    V02,
    V1,
}

/// How provenance is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::solver) struct Provenance {
    pub(super) mode: Mode,
    pub(super) version: Version,
    pub(super) builder_id: String,
    pub(super) file_name: String,
    pub(super) reproducible: bool,
    pub(super) inline_only: bool,
    /// Whether it tells what the machine did meanwhile and, in mode max, what each step used of it.
    pub(super) capture_usage: bool,
}

impl Provenance {
    /// Reads the fields of a request. Without a mode it is `max`, as in BuildKit.
    pub(super) fn parse(fields: &BTreeMap<String, String>) -> Result<Self> {
        let mut provenance = Self::of_mode(Mode::Max);
        for (key, value) in fields {
            match (key.as_str(), value.as_str()) {
                ("type" | "disabled", _) => {}
                ("mode", "min") => provenance.mode = Mode::Min,
                ("mode", "max" | "full") => provenance.mode = Mode::Max,
                ("version", "v1") => provenance.version = Version::V1,
                ("version", "v0.2") => provenance.version = Version::V02,
                ("builder-id", id) => id.clone_into(&mut provenance.builder_id),
                ("filename", name) if !name.is_empty() && !name.contains(['/', '\0']) && !name.starts_with('.') => {
                    name.clone_into(&mut provenance.file_name);
                }
                ("reproducible", value) => provenance.reproducible = flag(key, value)?,
                ("inline-only", value) => provenance.inline_only = flag(key, value)?,
                ("capture-usage", value) => provenance.capture_usage = flag(key, value)?,
                ("mode", other) => return Err(Error::invalid(format!("mode={other}: expected min or max"))),
                ("version", other) => return Err(Error::invalid(format!("version={other}: expected v1 or v0.2"))),
                ("filename", other) => return Err(Error::invalid(format!("filename={other}: expected a plain name"))),
                (other, value) => {
                    return Err(Error::unsupported(format!("{other}={value} of provenance is not supported")));
                }
            }
        }
        Ok(provenance)
    }

    /// Provenance of a mode and otherwise as usual.
    pub(super) fn of_mode(mode: Mode) -> Self {
        Self {
            mode,
            version: Version::V1,
            builder_id: String::new(),
            file_name: "provenance.json".to_owned(),
            reproducible: false,
            inline_only: false,
            capture_usage: false,
        }
    }
}

fn flag(key: &str, value: &str) -> Result<bool> {
    match value {
        "true" | "1" => Ok(true),
        "false" | "0" => Ok(false),
        _ => Err(Error::invalid(format!("{key}={value}: expected true or false"))),
    }
}

/// What a request says that provenance repeats.
#[derive(Clone, Debug)]
pub(in crate::solver) struct Facts {
    /// The frontend.
    pub(in crate::solver) frontend: String,
    /// The request's attributes.
    pub(in crate::solver) attrs: BTreeMap<String, String>,
    /// The Dockerfile's path.
    pub(in crate::solver) filename: String,
    /// Whether the Dockerfile was a file of the client.
    pub(in crate::solver) local_file: bool,
    /// When the build began, in nanoseconds since 1970.
    pub(in crate::solver) started_ns: i64,
    /// The time in nanoseconds since 1970 that nothing in the result may be later than.
    pub(in crate::solver) epoch_ns: Option<i64>,
}

/// A secret or an SSH agent, by its id.
pub(super) type Ids = BTreeMap<String, Optional>;
/// Whether a step runs without it.
pub(super) type Optional = bool;

/// Everything provenance says, before it is written in the form of a version.
#[derive(Debug, Default)]
pub(super) struct Statement {
    pub(super) config_uri: String,
    pub(super) config_digest: String,
    pub(super) config_path: String,
    pub(super) frontend: String,
    pub(super) args: BTreeMap<String, String>,
    pub(super) secrets: Ids,
    pub(super) ssh: Ids,
    pub(super) locals: BTreeSet<String>,
    pub(super) platform: String,
    pub(super) materials: Vec<Material>,
    pub(super) builder_id: String,
    pub(super) invocation: String,
    pub(super) started: String,
    pub(super) finished: String,
    pub(super) vcs: BTreeMap<String, String>,
    pub(super) complete_request: bool,
    pub(super) complete_materials: bool,
    pub(super) hermetic: bool,
    pub(super) reproducible: bool,
    /// The steps, in mode max.
    pub(super) build_config: Option<Json>,
    /// The source and where in it steps stand, in mode max.
    pub(super) source: Option<Json>,
    /// The layers of steps, in mode max.
    pub(super) layers: Option<Json>,
    /// What the machine as a whole did meanwhile.
    pub(super) machine: Vec<Json>,
}

/// Attributes that say something about the machine only, and are not repeated.
const HOST_ATTRIBUTES: &[&str] = &[
    "cgroup-parent",
    "image-resolve-mode",
    "platform",
    "cache-imports",
    "contextkey",
    "dockerfilekey",
    "frontend.caps",
];

impl Job {
    /// Makes a provenance attestation of a target whose steps are done.
    ///
    /// # Errors
    /// When a step's layers cannot be looked up.
    pub(super) async fn provenance(
        self: &Arc<Self>,
        provenance: &Provenance,
        facts: &Facts,
        target: &Target,
    ) -> Result<Attestation> {
        let order = self.graph.reachable(target.root.iter().map(|edge| edge.vertex));
        let mut statement = self.statement(provenance, facts, &order);
        if provenance.mode == Mode::Max {
            let names = definition::names(&order);
            let loaded = facts.local_file.then_some(facts.filename.as_str());
            let readings = if provenance.capture_usage { lock(&self.readings).clone() } else { HashMap::new() };
            statement.build_config =
                Some(definition::build_config(&self.graph, &order, target.root, &names, &readings));
            statement.source = definition::source(&self.graph, &order, &names, loaded);
            statement.layers = self.layers(&order, &names).await?;
        }
        if let Some(watch) = self.watch.as_ref().filter(|_| provenance.capture_usage) {
            statement.machine = watch.readings(self.progress.now_ns()).into_iter().map(machine).collect();
        }
        let (predicate_type, predicate) = match provenance.version {
            Version::V1 => (slsa::V1, slsa::v1(&statement)),
            Version::V02 => (slsa::V02, slsa::v02(&statement)),
        };
        let content = Bytes::from(serde_json::to_vec_pretty(&predicate)?);
        let about = Attestation::about_result(predicate_type.to_owned(), content, provenance.file_name.clone());
        Ok(Attestation { inline_only: provenance.inline_only, ..about })
    }

    fn statement(&self, provenance: &Provenance, facts: &Facts, order: &[VertexId]) -> Statement {
        let mut statement = asked(facts);
        let mut network = false;
        for id in order {
            match &self.graph.vertex(*id).op {
                Op::Source(Source::Local(local)) => drop(statement.locals.insert(local.name.clone())),
                Op::Source(source) => {
                    let platform = &self.graph.vertex(*id).platform;
                    statement.materials.extend(self.materials(source, platform));
                }
                Op::Exec(exec) => {
                    network |= exec.network != NetworkMode::None;
                    secrets(exec, &mut statement);
                }
                Op::File(_) | Op::Merge | Op::Diff { .. } | Op::Build { .. } => {}
            }
        }
        if facts.local_file {
            statement.locals.insert("dockerfile".to_owned());
            // It is asked for what it ignores, at least.
            if statement.config_uri.is_empty() {
                statement.locals.insert("context".to_owned());
            }
        }
        statement.materials.sort();
        statement.materials.dedup();
        let config = statement.materials.iter().find(|material| material.uri == statement.config_uri);
        statement.config_digest = config.map(|material| material.digest.clone()).unwrap_or_default();
        statement.platform = Platform::host().normalized().to_string();
        statement.builder_id.clone_from(&provenance.builder_id);
        statement.reproducible = provenance.reproducible;
        statement.invocation = invocation(&facts.attrs, facts.started_ns);
        statement.finished = rfc3339(self.progress.now_ns());
        statement.complete_request = true;
        statement.complete_materials = statement.locals.is_empty();
        statement.hermetic = statement.complete_materials && !network;
        if provenance.mode == Mode::Min {
            statement.complete_request = !hide_arguments(&mut statement.args);
            statement.secrets.clear();
            statement.ssh.clear();
        }
        statement
    }

    /// Says what a source is, if it is not the client's own, and what else it is from.
    fn materials(&self, source: &Source, platform: &Platform) -> Vec<Material> {
        match source {
            Source::Image(image) => {
                let resolved = match image.image_id {
                    Some(id) => self.images.get(&id).cloned(),
                    None => self.pins.image(image, platform),
                };
                let digest = image.reference.digest().or_else(|| resolved.map(|image| image.digest()));
                let digest = digest.as_ref().map(Digest::to_string).unwrap_or_default();
                vec![Material { uri: image_purl(&image.reference, platform), digest }]
            }
            Source::OciLayout(layout) => {
                let purl =
                    Purl::of_path("oci", &layout.name, "").with("platform", platform.clone().normalized().to_string());
                vec![Material { uri: purl.to_string(), digest: layout.digest.to_string() }]
            }
            Source::Git(_) | Source::Http(_) | Source::Blob(_) => self.fetched_materials(source),
            Source::Local(_) => Vec::new(),
        }
    }

    /// Lists the layers of every step, as far as they are known: `stepN:0` and the layers that lie upon each other.
    async fn layers(self: &Arc<Self>, order: &[VertexId], names: &definition::Names) -> Result<Option<Json>> {
        let mut tops = Vec::new();
        for id in order {
            // Of several outputs, the first one is that of the root file system.
            if let Some(Value::FileSystem(FileSystem::Layer(layer))) = self.value(*id).and_then(|value| value.output(0))
            {
                tops.push((*id, layer.settled().await?.id));
            }
        }
        let job = Arc::clone(self);
        let chains = task::blocking(move || {
            let images = &job.solver.deps().images;
            tops.into_iter().map(|(id, top)| Ok((id, images.chain(&job.lease, Some(top))?))).collect::<Result<Vec<_>>>()
        })
        .await?;
        let mut layers = serde_json::Map::new();
        for (id, chain) in chains {
            let descriptors: Vec<Json> = chain.iter().filter_map(descriptor).collect();
            if descriptors.len() == chain.len() {
                layers.insert(format!("{}:0", names[&id]), json!([descriptors]));
            }
        }
        Ok((!layers.is_empty()).then(|| Json::Object(layers)))
    }
}

/// How the machine was then.
fn machine(reading: Reading<Machine>) -> Json {
    let mut sample = serde_json::Map::from_iter([("timestamp".to_owned(), rfc3339(reading.at_ns).into())]);
    sample.extend(reading.stats.0);
    Json::Object(sample)
}

/// A layer as the tar archive it is. Who makes an image has it point at what the image holds (`image::Assembly`).
fn descriptor(snapshot: &Snapshot) -> Option<Json> {
    let digest = snapshot.diff_id?.to_string();
    let mut descriptor = json!({"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": digest});
    if let Some(size) = snapshot.tar_size {
        descriptor["size"] = size.into();
    }
    Some(descriptor)
}

/// What the request itself says.
fn asked(facts: &Facts) -> Statement {
    let mut statement = Statement {
        config_path: facts.filename.clone(),
        frontend: facts.frontend.clone(),
        started: rfc3339(facts.started_ns),
        ..Statement::default()
    };
    let context = facts.attrs.get("contextkey").filter(|key| !key.is_empty()).map_or("context", String::as_str);
    for (key, value) in &facts.attrs {
        if HOST_ATTRIBUTES.contains(&key.as_str()) || key == "filename" || key.starts_with("attest:") {
            continue;
        }
        if let Some(name) = key.strip_prefix("vcs:") {
            if !value.is_empty() {
                statement.vcs.insert(name.to_owned(), without_credentials(value));
            }
        } else if key == context {
            statement.config_uri = without_credentials(value);
        } else if !["local-sessionid:", "sharedkey:"].iter().any(|prefix| key.starts_with(prefix)) {
            statement.args.insert(key.clone(), without_credentials(value));
        }
    }
    statement
}

/// Names a build: the same for all platforms of a request, another for every request.
fn invocation(attrs: &BTreeMap<String, String>, started_ns: i64) -> String {
    let digest = Digest::of(format!("{started_ns} {attrs:?}").as_bytes());
    digest.hex()[..25].to_owned()
}

/// Takes build arguments and labels away; says whether there were any.
fn hide_arguments(args: &mut BTreeMap<String, String>) -> bool {
    let before = args.len();
    args.retain(|key, _| !key.starts_with("build-arg:") && !key.starts_with("label:"));
    args.len() < before
}

fn secrets(exec: &Exec, statement: &mut Statement) {
    let add = |ids: &mut Ids, id: &str, optional: bool| {
        // Who needs it at all needs it.
        *ids.entry(id.to_owned()).or_insert(true) &= optional;
    };
    for mount in &exec.mounts {
        match &mount.kind {
            MountKind::Secret(secret) => add(&mut statement.secrets, &secret.id, secret.optional),
            MountKind::Ssh(agent) => add(&mut statement.ssh, &agent.id, agent.optional),
            MountKind::Bind { .. } | MountKind::Cache { .. } | MountKind::Tmpfs { .. } => {}
        }
    }
    for secret in &exec.secret_env {
        add(&mut statement.secrets, &secret.id, secret.optional);
    }
}

/// `https://user:password@host/x` loses user and password; other text stays as it is.
pub(super) fn without_credentials(text: &str) -> String {
    let Some((scheme, rest)) = text.split_once("://") else { return text.to_owned() };
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let plain = scheme.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte));
    match rest[..end].rfind('@') {
        // A user without a password (`git@host`) is part of the address.
        Some(at) if plain && (rest[..at].contains(':') || scheme.starts_with("http")) => {
            format!("{scheme}://{}", &rest[at + 1..])
        }
        _ => text.to_owned(),
    }
}

/// `pkg:docker/NAME@TAG?digest=..&platform=..`
fn image_purl(reference: &Reference, platform: &Platform) -> String {
    let tag = reference.tag().or_else(|| reference.digest().is_none().then_some("latest")).unwrap_or_default();
    let digest = reference.digest().as_ref().map(Digest::to_string).unwrap_or_default();
    Purl::of_path("docker", &reference.familiar_repository(), tag)
        .with("digest", digest)
        .with("platform", platform.clone().normalized().to_string())
        .to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_do_not_stay_in_addresses() {
        for (text, expected) in [
            ("https://user:token@example.com/a.git#main", "https://example.com/a.git#main"),
            ("https://token@example.com/a.git", "https://example.com/a.git"),
            ("http://p:q@proxy:3128", "http://proxy:3128"),
            ("ssh://git@example.com/a.git", "ssh://git@example.com/a.git"),
            ("git@example.com:a.git", "git@example.com:a.git"),
            ("text with user:x@y", "text with user:x@y"),
            ("https://example.com/a@b", "https://example.com/a@b"),
        ] {
            assert_eq!(without_credentials(text), expected);
        }
    }

    #[test]
    fn the_request_is_repeated_without_what_is_the_machines_own() {
        let attrs = [
            ("attest:provenance", "mode=max"),
            ("build-arg:A", "1"),
            ("build-arg:HTTP_PROXY", "http://me:hunter2@proxy"),
            ("cgroup-parent", "x"),
            ("context", "https://me:hunter2@example.com/a.git"),
            ("filename", "Dockerfile"),
            ("label:l", "2"),
            ("local-sessionid:context", "s"),
            ("target", "t"),
            ("vcs:revision", "abc"),
        ];
        let facts = Facts {
            frontend: "dockerfile.v0".to_owned(),
            attrs: attrs.map(|(key, value)| (key.to_owned(), value.to_owned())).into(),
            filename: "Dockerfile".to_owned(),
            local_file: false,
            started_ns: 0,
            epoch_ns: None,
        };
        let mut statement = asked(&facts);
        assert!(!format!("{statement:?}").contains("hunter2"));
        assert_eq!(statement.config_uri, "https://example.com/a.git");
        assert_eq!(statement.vcs["revision"], "abc");
        let keys: Vec<&str> = statement.args.keys().map(String::as_str).collect();
        assert_eq!(keys, ["build-arg:A", "build-arg:HTTP_PROXY", "label:l", "target"]);
        assert!(hide_arguments(&mut statement.args));
        assert_eq!(statement.args.len(), 1);
    }

    #[test]
    fn images_are_named_by_package_urls() {
        let platform = Platform::new("linux", "amd64", "");
        for (name, purl) in [
            ("alpine", "pkg:docker/alpine@latest?platform=linux%2Famd64"),
            ("docker.io/team/app:2", "pkg:docker/team/app@2?platform=linux%2Famd64"),
            ("example.com:5000/a/b:1", "pkg:docker/example.com:5000/a/b@1?platform=linux%2Famd64"),
        ] {
            assert_eq!(image_purl(&name.parse().unwrap(), &platform), purl);
        }
    }
}
