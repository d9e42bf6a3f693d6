//! Bills of material: made by Kiln itself, or by a scanner image that speaks BuildKit's protocol.
//!
//! A scanner is a step like any other: the file systems to be scanned are mounted into its image, and what it leaves in
//! `/run/out` are in-toto statements.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read as _;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use bytes::Bytes;
use kiln_graph::graph::Meta;
use kiln_graph::op::{Copy, Exec, FileAction, FileOp, ImageSource, Mount, MountKind, Op, ResolveMode, Root, Source};
use kiln_graph::{Edge, Graph, Platform, Reference};
use rustix::fs::{Mode, OFlags, ResolveFlags};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::super::export::Attestation;
use super::super::frontend::{Surroundings, Target};
use super::super::job::{Begun, Job};
use super::super::value::{FileSystem, Value};
use super::provenance::Facts;
use super::returned::{MAX_DOCUMENT, MAX_DOCUMENTS, PROVENANCE};
use crate::error::{Error, Kind, Result, ResultExt as _};
use crate::image::{Policy, Resolved};
use crate::sbom::{scan, spdx};
use crate::store::{Access, SnapshotId, tree};
use crate::task;

/// What the scan of the result itself is called.
const CORE: &str = "sbom";
/// Where a scanner finds what to scan, and where it leaves what it found.
const SOURCES: &str = "/run/src";
const RESULTS: &str = "/run/out";

/// How a bill of material is asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::solver) struct Sbom {
    /// The scanner's image; Kiln itself scans when there is none.
    generator: Option<Reference>,
    /// Settings that a scanner gets as variables `BUILDKIT_SCAN_NAME`.
    parameters: BTreeMap<String, String>,
}

/// What is to be scanned of a target, and how.
#[derive(Clone, Debug)]
pub(in crate::solver) enum Survey {
    /// Nothing.
    None,
    /// Kiln scans these file systems besides the result, each with a name.
    Own(Vec<(String, Edge)>),
    /// This step scans.
    Scanner(Edge),
}

impl Survey {
    /// The steps that must be done for it.
    pub(in crate::solver) fn roots(&self) -> impl Iterator<Item = Edge> {
        let (own, scanner) = match self {
            Self::None => (&[][..], None),
            Self::Own(extras) => (extras.as_slice(), None),
            Self::Scanner(edge) => (&[][..], Some(*edge)),
        };
        own.iter().map(|(_, edge)| *edge).chain(scanner)
    }
}

impl Sbom {
    /// Reads the fields of a request.
    pub(super) fn parse(fields: &BTreeMap<String, String>) -> Result<Self> {
        let mut sbom = Self::default();
        for (key, value) in fields {
            match key.as_str() {
                "type" | "disabled" => {}
                "generator" if value.is_empty() => {}
                "generator" => {
                    let name: Reference =
                        value.parse().map_err(|error| Error::invalid(format!("generator={value}: {error}")))?;
                    sbom.generator = Some(name.with_default_tag());
                }
                _ => drop(sbom.parameters.insert(key.to_uppercase(), value.clone())),
            }
        }
        if let (None, Some(key)) = (&sbom.generator, sbom.parameters.keys().next()) {
            let key = key.to_lowercase();
            return Err(Error::unsupported(format!("{key} of an SBOM means something to a generator only")));
        }
        Ok(sbom)
    }
}

impl Surroundings<'_> {
    /// Adds the steps that scanning needs to the graph: one survey for each target.
    ///
    /// # Errors
    /// When the scanner's image cannot be found or has no command.
    pub(in crate::solver) async fn surveys(
        &self,
        sbom: Option<&Sbom>,
        resolve: ResolveMode,
        graph: &mut Graph,
        targets: &[Target],
    ) -> Result<(Vec<Survey>, Option<Arc<Resolved>>)> {
        let Some(sbom) = sbom else { return Ok((vec![Survey::None; targets.len()], None)) };
        let extras: Vec<_> = targets.iter().map(|target| extras(graph, target)).collect();
        let Some(generator) = &sbom.generator else {
            return Ok((extras.into_iter().map(Survey::Own).collect(), None));
        };
        let image = Arc::new(self.scanner(generator, resolve).await?);
        let mut surveys = Vec::new();
        for (target, extras) in targets.iter().zip(extras) {
            surveys.push(Survey::Scanner(scanner_step(graph, sbom, &image, target, &extras)?));
        }
        Ok((surveys, Some(image)))
    }

    async fn scanner(&self, generator: &Reference, resolve: ResolveMode) -> Result<Resolved> {
        let looking = Begun::internal(self.progress, &format!("[internal] load metadata for {generator}"))?;
        let policy = match resolve {
            ResolveMode::PreferLocal => Policy::Missing,
            ResolveMode::Pull => Policy::Always,
        };
        let host = Platform::host();
        let found = self.shared.find_image(generator, Some(&host), policy).await;
        looking.end(found.as_ref().err());
        found.context(|| "find the generator of the SBOM")
    }
}

/// What a Dockerfile asks to be scanned besides the result, each with the name its document gets.
fn extras(graph: &mut Graph, target: &Target) -> Vec<(String, Edge)> {
    let mut extras = Vec::new();
    for (name, edge) in &target.scan {
        let vertex = graph.vertex(edge.vertex);
        let mut edge = *edge;
        if matches!(vertex.op, Op::Source(Source::Local(_))) {
            // A directory of the client becomes a file system first, without what its rules hide.
            let copy = Copy { from: Some(0), ..Copy::default() };
            let op = Op::File(FileOp { base: None, actions: vec![FileAction::Copy(Box::new(copy))] });
            let meta = Meta { name: "[internal] build context for SBOM".to_owned(), ..Meta::default() };
            let platform = vertex.platform.clone();
            edge = graph.add(op, vec![edge], platform, meta).into();
        }
        extras.push((name.clone(), edge));
    }
    extras
}

/// Adds the step that runs a scanner; its result has the documents below [`RESULTS`].
fn scanner_step(
    graph: &mut Graph,
    sbom: &Sbom,
    image: &Resolved,
    target: &Target,
    extras: &[(String, Edge)],
) -> Result<Edge> {
    let host = Platform::host();
    let name = image.reference.to_string();
    let source = Source::Image(ImageSource {
        reference: image.reference.clone(),
        image_id: Some(image.id),
        resolve: ResolveMode::PreferLocal,
        checksum: None,
        layer_limit: None,
    });
    let meta = |name: String| Meta { name, ..Meta::default() };
    let base =
        graph.add(Op::Source(source), Vec::new(), host.clone(), meta(format!("[internal] SBOM generator {name}")));
    let directory =
        FileAction::Mkdir { path: RESULTS.to_owned(), mode: 0o755, parents: true, owner: None, mtime_ns: None };
    let directory = Op::File(FileOp { base: Some(0), actions: vec![directory] });
    let base =
        graph.add(directory, vec![base.into()], host.clone(), meta("[internal] SBOM output directory".to_owned()));
    let config = &image.config.config;
    let args: Vec<String> = config.entrypoint.iter().chain(&config.cmd).cloned().collect();
    if args.is_empty() {
        return Err(Error::invalid(format!("the generator {name} has no command")));
    }
    let mut env = config.env.clone();
    let mut set = |key: &str, value: &str| env.push(format!("BUILDKIT_SCAN_{key}={value}"));
    set("DESTINATION", &format!("{RESULTS}/"));
    set("SOURCE", &format!("{SOURCES}/core/{CORE}"));
    if !extras.is_empty() {
        set("SOURCE_EXTRAS", &format!("{SOURCES}/extras"));
    }
    sbom.parameters.iter().for_each(|(key, value)| set(key, value));
    let mut inputs: Vec<Edge> = vec![base.into()];
    let mut input = |edge: Edge| {
        inputs.push(edge);
        u32::try_from(inputs.len() - 1).expect("a step has few inputs")
    };
    let mut shown = |path: String, edge: Option<Edge>| Mount {
        target: path,
        readonly: true,
        kind: MountKind::Bind { input: edge.map(&mut input), selector: String::new(), output: None },
    };
    let mut mounts = vec![shown(format!("{SOURCES}/core/{CORE}"), target.root)];
    for (name, edge) in extras {
        mounts.push(shown(format!("{SOURCES}/extras/{CORE}-{name}"), Some(*edge)));
    }
    mounts.push(Mount { target: "/tmp".to_owned(), readonly: false, kind: MountKind::Tmpfs { size_bytes: None } });
    let exec = Exec {
        args,
        env: env.into(),
        cwd: if config.working_dir.is_empty() { "/".to_owned() } else { config.working_dir.clone() },
        root: Root { input: Some(0), ..Root::default() },
        mounts,
        ..Exec::default()
    };
    let title = format!("[{}] generating sbom using {name}", target.platform);
    Ok(graph.add(Op::Exec(Box::new(exec)), inputs, host, meta(title)).into())
}

impl Job {
    /// Makes the bills of material of a target whose steps, and those of its survey, are done.
    ///
    /// # Errors
    /// When a file system cannot be read, and when a scanner left nothing.
    pub(super) async fn bills(
        self: &Arc<Self>,
        facts: &Facts,
        survey: &Survey,
        root: Option<Edge>,
    ) -> Result<Vec<Attestation>> {
        match survey {
            Survey::None => Ok(Vec::new()),
            Survey::Own(extras) => {
                let mut made = vec![self.bill(facts, CORE, self.result(root).await?).await?];
                for (name, edge) in extras {
                    let snapshot = self.snapshot_of(*edge).await?;
                    made.push(self.bill(facts, &format!("{CORE}-{name}"), snapshot).await?);
                }
                Ok(made)
            }
            Survey::Scanner(edge) => {
                let store = self.solver.deps().store.clone();
                let snapshot = self.snapshot_of(*edge).await?;
                task::blocking(move || documents(&store.rootfs(snapshot)?.mount(Access::ReadOnly)?)).await
            }
        }
    }

    async fn snapshot_of(&self, edge: Edge) -> Result<Option<SnapshotId>> {
        match self.value_of(edge) {
            Some(Value::FileSystem(FileSystem::Layer(layer))) => Ok(Some(layer.settled().await?.id)),
            Some(Value::FileSystem(file_system)) => self.materialize(&file_system).await,
            Some(Value::Local(_) | Value::Several(_)) | None => {
                Err(Error::internal("what is to be scanned is no file system"))
            }
        }
    }

    /// Scans a file system.
    async fn bill(self: &Arc<Self>, facts: &Facts, name: &str, snapshot: Option<SnapshotId>) -> Result<Attestation> {
        let scanning = Begun::internal(&self.progress, &format!("[internal] scanning packages for {name}"))?;
        let (job, name, epoch_ns) = (Arc::clone(self), name.to_owned(), facts.epoch_ns);
        let made = task::blocking(move || {
            let store = &job.solver.deps().store;
            let root = store.rootfs(snapshot)?.mount(Access::ReadOnly)?;
            let inventory = scan(&root, &job.cancel)?;
            // The time of what is scanned, not that of the scan: the same files give the same document everywhere.
            let top = snapshot.map(|id| store.snapshot(&job.lease, id)).transpose()?.flatten();
            let time = epoch_ns.or(top.map(|top| top.as_of.unwrap_or(top.created_at))).unwrap_or(0);
            let seconds = jiff::Timestamp::from_second(time.div_euclid(1_000_000_000));
            let created = seconds.map_err(|error| Error::invalid(format!("the time of the SBOM: {error}")))?;
            let document = spdx::document(&name, &created.to_string(), &inventory);
            let (kind, content) = (spdx::PREDICATE_TYPE.to_owned(), Bytes::from(serde_json::to_vec(&document)?));
            let bill = Attestation::about_result(kind, content, format!("{name}.spdx.json"));
            Ok(Attestation { is_core: name == CORE, ..bill })
        })
        .await;
        scanning.end(made.as_ref().err());
        made
    }
}

/// What a scanner leaves: a statement, of which the exporter makes one about the right subject.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Left {
    predicate_type: String,
    predicate: Box<RawValue>,
}

/// Reads the documents of a scanner, that of the result first. Blocking.
fn documents(root: &OwnedFd) -> Result<Vec<Attestation>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let dir = beneath(root, RESULTS.trim_start_matches('/'), flags).context(|| format!("open {RESULTS}"))?;
    let names = tree::list(&dir).context(|| format!("list {RESULTS}"))?;
    if names.len() > MAX_DOCUMENTS {
        return Err(Error::invalid(format!("the generator left more than {MAX_DOCUMENTS} documents")));
    }
    let mut made = Vec::new();
    for name in names {
        let name = name.name.to_str().map_err(|_| Error::invalid("a document's name is not UTF-8"))?.to_owned();
        made.push(document(&dir, &name).context(|| format!("read {RESULTS}/{name} of the generator"))?);
    }
    if made.is_empty() {
        return Err(Error::new(Kind::NotFound, format!("the generator left no document in {RESULTS}")));
    }
    made.sort_by_key(|made| !made.is_core);
    Ok(made)
}

fn document(dir: &OwnedFd, name: &str) -> Result<Attestation> {
    let file = File::from(beneath(dir, name, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC)?);
    if !file.metadata()?.is_file() {
        return Err(Error::invalid("it is no file"));
    }
    let mut bytes = Vec::new();
    file.take(MAX_DOCUMENT + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_DOCUMENT {
        return Err(Error::invalid(format!("it is larger than {} MiB", MAX_DOCUMENT >> 20)));
    }
    let left: Left = serde_json::from_slice(&bytes)
        .map_err(|error| Error::invalid(format!("it is no in-toto statement: {error}")))?;
    if left.predicate_type.starts_with(PROVENANCE) {
        return Err(Error::invalid("a generator of SBOMs may not say anything about provenance"));
    }
    let content = Bytes::from(left.predicate.get().to_owned());
    let bill = Attestation::about_result(left.predicate_type, content, name.to_owned());
    Ok(Attestation { is_core: name.starts_with(&format!("{CORE}.")), ..bill })
}

fn beneath(dir: &OwnedFd, path: &str, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    tree::openat2(dir, path, flags, Mode::empty(), ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn what_a_scanner_leaves_is_read_and_checked() {
        let root = tempfile::tempdir().unwrap();
        let out = root.path().join("run/out");
        fs::create_dir_all(&out).unwrap();
        let read = || documents(&tree::open_root(root.path()).unwrap());
        assert!(read().unwrap_err().to_string().contains("left no document"));
        fs::write(out.join("a.spdx.json"), r#"{"predicateType":"https://spdx.dev/Document","predicate":{"x": 1}}"#)
            .unwrap();
        fs::write(out.join("sbom.spdx.json"), r#"{"predicateType":"https://spdx.dev/Document","predicate":{}}"#)
            .unwrap();
        let made = read().unwrap();
        assert_eq!((made[0].file_name.as_str(), made[1].file_name.as_str()), ("sbom.spdx.json", "a.spdx.json"));
        assert_eq!(made[1].predicate.content, r#"{"x": 1}"#);
        for (text, word) in [
            ("{}", "no in-toto statement"),
            (r#"{"predicateType":"https://slsa.dev/provenance/v1","predicate":{}}"#, "provenance"),
        ] {
            fs::write(out.join("a.spdx.json"), text).unwrap();
            assert!(read().unwrap_err().to_string().contains(word));
        }
        fs::remove_file(out.join("a.spdx.json")).unwrap();
        std::os::unix::fs::symlink("/dev/null", out.join("a.spdx.json")).unwrap();
        assert!(read().is_err());
    }
}
