//! The exporters `local` and `tar`: what is in a result, as files of the client.

use std::fs::File;
use std::io::Read as _;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use bytes::Bytes;
use kiln_graph::{Digest, Platform};
use serde_json::{Value, json};
use sha2::Digest as _;

use super::{Product, Variant};
use crate::error::{Error, Result, ResultExt as _};
use crate::filesync::{self, Filter, Source};
use crate::image::statement;
use crate::solver::attrs::Attrs;
use crate::solver::job::{Begun, Job};
use crate::solver::request::Exporter;
use crate::store::layer::{Style, Times, archive_files, archive_tree, end_archive};
use crate::store::tree::{Kind, Metadata, Step, Walk};
use crate::store::{Access, tree};
use crate::task::{self, Cancel};

/// How files are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// One by one.
    Tree,
    /// As one archive.
    Tar,
}

/// Files that are sent to the client.
#[derive(Clone, Debug)]
pub(in crate::solver) struct FilesExport {
    way: Way,
    /// Whether each platform has a directory of its own; `None` when there are several.
    platform_split: Option<bool>,
    attestation_prefix: String,
    epoch_ns: Option<i64>,
}

/// The files of one platform, ready to be sent.
struct Branch {
    /// The directory they are put into; empty for none.
    prefix: String,
    root: Option<OwnedFd>,
    /// Further files: names and contents.
    extra: Vec<(String, Bytes)>,
}

impl FilesExport {
    /// Reads what a request asks for.
    ///
    /// # Errors
    /// `InvalidArgument` for malformed values and unknown options.
    pub(super) fn parse(exporter: &Exporter) -> Result<Self> {
        let mut attrs = Attrs::new(exporter);
        let export = Self {
            way: if exporter.kind == "tar" { Way::Tar } else { Way::Tree },
            platform_split: attrs.flag("platform-split")?,
            attestation_prefix: attrs.text("attestation-prefix").unwrap_or_default().to_owned(),
            epoch_ns: attrs.epoch_ns()?,
        };
        // Where the client puts them, and what it does with what is there, is its own business.
        attrs.text("dest");
        if export.way == Way::Tree {
            match attrs.text("mode") {
                None | Some("copy" | "delete") => {}
                Some(other) => return Err(Error::invalid(format!("mode={other}: expected copy or delete"))),
            }
        }
        attrs.finish()?;
        if export.attestation_prefix.contains(['/', '\0']) {
            return Err(Error::invalid("attestation-prefix is the beginning of a name and holds no slash"));
        }
        Ok(export)
    }

    /// Makes sure that so many platforms can be exported.
    ///
    /// # Errors
    /// `Unsupported` when they cannot.
    pub(super) fn check(&self, platforms: usize) -> Result<()> {
        if self.platform_split == Some(false) && platforms > 1 {
            return Err(Error::unsupported(
                "platform-split=false: files for several platforms cannot go into one directory",
            ));
        }
        Ok(())
    }
}

/// Returns the directory of a platform: `linux_arm_v7`.
fn directory(platform: &Platform) -> String {
    platform.to_string().replace('/', "_")
}

impl Job {
    /// Sends the files of a result to the client.
    ///
    /// # Errors
    /// What the client says.
    pub(super) async fn export_files(
        self: &Arc<Self>,
        number: usize,
        export: &FilesExport,
        product: &Arc<Product>,
    ) -> Result<()> {
        let name = match export.way {
            Way::Tree => "exporting to client directory",
            Way::Tar => "exporting to client tarball",
        };
        let exporting = Begun::internal(&self.progress, name)?;
        let result = self.send_files(number, export, product, &exporting).await;
        exporting.end(result.as_ref().err());
        result
    }

    async fn send_files(
        self: &Arc<Self>,
        number: usize,
        export: &FilesExport,
        product: &Arc<Product>,
        exporting: &Begun,
    ) -> Result<()> {
        let split = export.platform_split.unwrap_or(product.multi_platform);
        let client = self.client_for_files().await?;
        let epoch_ns = export.epoch_ns.or(product.epoch_ns);
        let branches = self.branches(export, product, split).await?;
        match export.way {
            Way::Tar => {
                let sending = exporting.part("sending tarball", 0);
                let epoch_s = epoch_ns.map(|ns| ns.div_euclid(1_000_000_000));
                client.send_bytes(number, move |out| write_tar(branches, epoch_s, out)).await?;
                sending.complete();
            }
            Way::Tree => {
                let sending = exporting.part("copying files", 0);
                client.send_tree(number, source(branches, epoch_ns), product.multi_platform).await?;
                sending.complete();
            }
        }
        Ok(())
    }

    /// Mounts what is to be sent.
    async fn branches(
        self: &Arc<Self>,
        export: &FilesExport,
        product: &Arc<Product>,
        split: bool,
    ) -> Result<Vec<Branch>> {
        let (store, product) = (self.solver.deps().store.clone(), Arc::clone(product));
        let attestation_prefix = export.attestation_prefix.clone();
        task::blocking(move || {
            let branch = |variant: &Variant| {
                let root = match variant.snapshot()? {
                    Some(snapshot) => {
                        let mounted = store.rootfs(Some(snapshot))?.mount(Access::ReadOnly)?;
                        Some(tree::open_dir(&mounted, c".")?)
                    }
                    None => None,
                };
                let prefix = if split { directory(&variant.platform) } else { String::new() };
                let extra = attestation_files(variant, &attestation_prefix, root.as_ref())?;
                Ok(Branch { prefix, root, extra })
            };
            product.variants.iter().map(branch).collect()
        })
        .await
    }
}

/// What is sent file by file.
fn source(mut branches: Vec<Branch>, mtime_ns: Option<i64>) -> Source {
    branches.sort_by(|a, b| a.prefix.cmp(&b.prefix));
    let branch = |Branch { prefix, root, extra }| filesync::Branch {
        name: prefix,
        root,
        filter: Filter::default(),
        extra: extra.into_iter().collect(),
    };
    Source { branches: branches.into_iter().map(branch).collect(), as_root: false, mtime_ns }
}

/// The attestations of a result as files. They are about all of the result's files.
fn attestation_files(variant: &Variant, prefix: &str, root: Option<&OwnedFd>) -> Result<Vec<(String, Bytes)>> {
    let written: Vec<_> = variant.attestations.iter().filter(|attestation| !attestation.inline_only).collect();
    let itself = match root {
        Some(root) if !written.is_empty() => subjects(root)?,
        _ => Vec::new(),
    };
    let mut files = Vec::new();
    for attestation in written {
        let name = format!("{prefix}{}", attestation.file_name);
        if files.iter().any(|(known, _)| *known == name) {
            return Err(Error::invalid(format!("two attestations would be written into the file {name}")));
        }
        files.push((name, Bytes::from(statement(&attestation.predicate, &itself)?)));
    }
    Ok(files)
}

/// The files of a tree with their digests. Blocking.
fn subjects(root: &OwnedFd) -> Result<Vec<Value>> {
    let mut walk = Walk::new(tree::open_dir(root, c".")?)?;
    let mut subjects = Vec::new();
    while let Some(step) = walk.step()? {
        let Step::Pass(found) = step else { continue };
        let shown = String::from_utf8_lossy(&found.path).into_owned();
        if Metadata::at(&found.parent, &found.name).context(|| format!("read {shown}"))?.kind != Kind::File {
            continue;
        }
        let file = tree::open_file(&found.parent, &found.name).context(|| format!("read {shown}"))?;
        let digest = digest_of(File::from(file)).context(|| format!("read {shown}"))?;
        subjects.push(json!({ "name": shown, "digest": { "sha256": digest.hex() } }));
    }
    Ok(subjects)
}

fn digest_of(mut file: File) -> std::io::Result<Digest> {
    let (mut hash, mut piece) = (sha2::Sha256::new(), vec![0; 256 << 10]);
    loop {
        match file.read(&mut piece)? {
            0 => return Ok(Digest::sha256(hash.finalize().into())),
            read => hash.update(&piece[..read]),
        }
    }
}

fn write_tar(branches: Vec<Branch>, epoch_s: Option<i64>, out: &mut dyn std::io::Write) -> Result<()> {
    let times = epoch_s.map_or(Times::Kept, Times::Set);
    for Branch { prefix, root, extra } in branches {
        let style = Style { times, rootless: prefix.is_empty(), prefix, continued: true };
        if let Some(root) = root {
            archive_tree(root, &style, out, &Cancel::new())?;
        }
        archive_files(&extra, &style, out)?;
    }
    end_archive(out)
}
