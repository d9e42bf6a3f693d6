//! Making images of a result: what exporters to the store, to registries and to archives have in common.

use std::sync::Arc;

use kiln_graph::oci::annotation;
use kiln_graph::{Digest, Reference};

use super::annotation::{Annotations, Level};
use super::{Product, Response, Variant};
use crate::error::{Error, Result};
use crate::image::{Assembled, Assembly, Configured, Form, NewImage, Stack, Top};
use crate::solver::attrs::Attrs;
use crate::solver::exchange;
use crate::solver::job::{Begun, Job};
use crate::store::compression::Compression;
use crate::task::{self, Cancel};

/// How images are made.
#[derive(Clone, Debug, Default)]
pub(super) struct Packaging {
    /// Their names; several are equal.
    pub(super) names: Vec<Reference>,
    form: Form,
    /// Whether the client wants documents or layers in a certain form.
    special: bool,
    annotations: Annotations,
    epoch_ns: Option<i64>,
    rewrite_timestamp: bool,
    /// The level at which layers made here are written in eStargz form.
    estargz: Option<u32>,
    without_attestations: bool,
}

impl Packaging {
    /// Takes what is common to all images from the attributes.
    ///
    /// # Errors
    /// `InvalidArgument` for malformed values; `Unsupported`, by name, for what is not there.
    pub(super) fn take(attrs: &mut Attrs<'_>) -> Result<Self> {
        let names = names(attrs.text("name").unwrap_or_default())?;
        let (compression, level) = (attrs.text("compression"), attrs.number("compression-level")?);
        let (force, oci) = (attrs.flag("force-compression")?, attrs.flag("oci-mediatypes")?);
        let artifacts = attrs.flag("oci-artifact")?;
        let annotations = Annotations::take(attrs)?;
        let nondistributable = attrs.flag("prefer-nondist-layers")? == Some(true);
        let estargz =
            if compression == Some("estargz") { Some(estargz_level(level, oci == Some(false))?) } else { None };
        let form = Form {
            compression: self::compression(compression.filter(|_| estargz.is_none()), level)?,
            force_compression: force == Some(true),
            docker_types: oci == Some(false),
            artifacts: artifacts != Some(false),
            estargz: estargz.is_some(),
            nondistributable,
        };
        Ok(Self {
            names,
            special: compression.is_some()
                || level.is_some()
                || form.force_compression
                || form.docker_types
                || nondistributable,
            form,
            annotations,
            epoch_ns: attrs.epoch_ns()?,
            rewrite_timestamp: attrs.flag("rewrite-timestamp")? == Some(true),
            estargz,
            without_attestations: attrs.flag("attestation-inline")? == Some(false),
        })
    }

    /// Says whether an image needs no more than its configuration while it stays here.
    pub(super) fn is_plain(&self, product: &Product) -> bool {
        let is_here = |variant: &Variant| matches!(variant.root, Stack::Here(_));
        !self.special
            && self.annotations.is_empty()
            && !self.makes_index(product)
            && product.variants.iter().all(is_here)
    }

    /// Says whether layers are made again, for which their files have to be here.
    pub(super) fn makes_layers(&self) -> bool {
        self.rewrite_timestamp || self.estargz.is_some() || self.form.force_compression
    }

    fn makes_index(&self, product: &Product) -> bool {
        product.multi_platform || product.variants.iter().any(|variant| !self.attestations(variant).is_empty())
    }

    fn attestations<'a>(&self, variant: &'a Variant) -> &'a [super::Attestation] {
        if self.without_attestations { &[] } else { &variant.attestations }
    }

    /// Leaves attestations out, for archives that cannot hold them.
    pub(super) fn without_attestations(mut self) -> Self {
        self.without_attestations = true;
        self
    }

    fn assembly(&self, image: Configured, variant: &Variant) -> Assembly {
        let platform = Some(&variant.platform);
        let attestations = self.attestations(variant).iter();
        Assembly {
            image,
            annotations: self.annotations.of(Level::Manifest, platform),
            descriptor_annotations: self.annotations.of(Level::ManifestDescriptor, platform),
            predicates: attestations.map(|attestation| attestation.predicate.clone()).collect(),
        }
    }
}

/// Reads names, separated by commas.
fn names(value: &str) -> Result<Vec<Reference>> {
    let names = value.split(',').map(str::trim).filter(|name| !name.is_empty());
    names
        .map(|name| {
            let reference: Reference =
                name.parse().map_err(|error| Error::invalid(format!("invalid tag {name:?}: {error}")))?;
            Ok(reference.with_default_tag())
        })
        .collect()
}

/// Reads the level of eStargz, which is gzip's; BuildKit's is the highest, too.
pub(in crate::solver) fn estargz_level(level: Option<i32>, docker_types: bool) -> Result<u32> {
    if docker_types {
        return Err(Error::invalid("compression=estargz has OCI media types only: leave out oci-mediatypes=false"));
    }
    Ok(level.map_or(9, |level| u32::try_from(level).unwrap_or(u32::MAX)))
}

/// Reads how layers are compressed.
///
/// # Errors
/// `InvalidArgument`, or `Unsupported` for what BuildKit knows and this does not.
pub(in crate::solver) fn compression(name: Option<&str>, level: Option<i32>) -> Result<Compression> {
    let compression = match (name, level) {
        (None | Some("gzip"), None) => Compression::GZIP,
        (None | Some("gzip"), Some(level)) => Compression::Gzip { level: u32::try_from(level).unwrap_or(u32::MAX) },
        (Some("zstd"), None) => Compression::ZSTD,
        (Some("zstd"), Some(level)) => Compression::Zstd { level },
        (Some("uncompressed"), _) => Compression::None,
        (Some(other @ ("estargz" | "nydus")), _) => {
            return Err(Error::unsupported(format!(
                "compression={other} is not supported here: use uncompressed, gzip or zstd"
            )));
        }
        (Some(other), _) => {
            let known = ["uncompressed", "gzip", "zstd"];
            let meant = kiln_graph::diagnostic::closest(other, known);
            let hint = meant.map_or_else(|| known.join(", "), |meant| format!("did you mean {meant}?"));
            return Err(Error::invalid(format!("compression={other}: there is no such compression ({hint})")));
        }
    };
    compression.check()?;
    Ok(compression)
}

impl Job {
    /// Completes the configurations of a result's images, one for each variant.
    pub(super) async fn configure(
        self: &Arc<Self>,
        packaging: &Packaging,
        product: &Arc<Product>,
    ) -> Result<Vec<Configured>> {
        let (job, product) = (Arc::clone(self), Arc::clone(product));
        let epoch_ns = packaging.epoch_ns.or(product.epoch_ns);
        let rewrite = packaging.rewrite_timestamp;
        let (estargz, all) = (packaging.estargz, packaging.form.force_compression);
        let rewritten = epoch_ns.filter(|_| rewrite);
        for scope in &product.cache {
            scope.job.settle_all().await;
        }
        let cancel = Cancel::new();
        let _given_up = cancel.on_drop();
        task::blocking(move || {
            let images = &job.solver.deps().images;
            let inline = |diff_ids: &[Digest]| match product.cache.as_slice() {
                [] => Ok(None),
                scopes => exchange::inline(scopes, diff_ids),
            };
            let configure = |variant: &Variant| {
                let mut root = variant.root.clone();
                if let Some(ns) = rewritten {
                    let (top, latest_s) = (variant.snapshot()?, ns.div_euclid(1_000_000_000));
                    let top = images.clamp_times(&job.lease, top, variant.base_layers, latest_s, &cancel)?;
                    root = Stack::Here(top);
                }
                if let Some(level) = estargz {
                    let kept = if all { 0 } else { variant.base_layers };
                    let Stack::Here(top) = root else { return Err(Error::internal("layers were not fetched")) };
                    root = Stack::Here(images.estargz(&job.lease, top, kept, level, &cancel)?);
                }
                let new = NewImage { config: variant.config.clone(), root, epoch_ns };
                images.configure_with(&job.lease, new, inline)
            };
            product.variants.iter().map(configure).collect()
        })
        .await
    }

    /// Makes manifests, and what belongs to them, of configured images.
    pub(super) async fn assemble(
        self: &Arc<Self>,
        packaging: &Packaging,
        product: &Arc<Product>,
        images: Vec<Configured>,
        exporting: &Begun,
    ) -> Result<Assembled> {
        let index = packaging.makes_index(product);
        packaging.annotations.check(index)?;
        let variants = images.into_iter().zip(&product.variants);
        let assemblies: Vec<_> = variants.map(|(image, variant)| packaging.assembly(image, variant)).collect();
        let top = Top {
            index,
            annotations: packaging.annotations.of(Level::Index, None),
            descriptor_annotations: packaging.annotations.of(Level::IndexDescriptor, None),
            names: packaging.names.clone(),
        };
        let cancel = Cancel::new();
        let _given_up = cancel.on_drop();
        let (job, mut form) = (Arc::clone(self), packaging.form.clone());
        // Those that were to get the form have it by now.
        form.force_compression &= !form.estargz;
        let assembled =
            task::blocking(move || job.solver.deps().images.assemble(&job.lease, assemblies, &top, &form, &cancel))
                .await?;
        let done = |what: String| exporting.part(what, 0).complete();
        for image in &assembled.images {
            done(format!("exporting manifest {}", image.manifest.descriptor.digest));
            done(format!("exporting config {}", image.id));
        }
        for attached in &assembled.attached {
            done(format!("exporting attestation manifest {}", attached.manifest.descriptor.digest));
        }
        if assembled.is_index() {
            done(format!("exporting manifest list {}", assembled.top.descriptor.digest));
        }
        Ok(assembled)
    }
}

/// What the client is told of assembled images.
pub(super) fn respond(assembled: &Assembled, created: Option<&str>, response: &mut Response) -> Result<()> {
    let mut descriptor = assembled.top.descriptor.clone();
    if let Some(created) = created {
        descriptor.annotations.entry(annotation::CREATED.to_owned()).or_insert_with(|| created.to_owned());
    }
    response.put("containerimage.digest", &descriptor.digest);
    if let (false, [image]) = (assembled.is_index(), assembled.images.as_slice()) {
        response.put_config(&image.id, &mut descriptor);
    }
    response.put_descriptor(&descriptor)
}

/// What the client is told of an image that has no manifest yet: its id stands for it.
pub(super) fn respond_plain(id: &Digest, response: &mut Response) {
    response.put("containerimage.config.digest", id);
    response.put("containerimage.digest", id);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::solver::request::Exporter;

    fn take(attrs: &[(&str, &str)]) -> Result<Packaging> {
        let attrs = attrs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let exporter = Exporter { kind: "image".to_owned(), attrs };
        let mut attrs = Attrs::new(&exporter);
        let packaging = Packaging::take(&mut attrs)?;
        attrs.finish()?;
        Ok(packaging)
    }

    #[test]
    fn the_form_of_images_is_read() {
        let plain = take(&[("name", "a,localhost:5000/b:1"), ("oci-mediatypes", "true")]).unwrap();
        let names: Vec<String> = plain.names.iter().map(ToString::to_string).collect();
        assert_eq!(names, ["docker.io/library/a:latest", "localhost:5000/b:1"]);
        assert!(!plain.special);
        let zstd = take(&[("compression", "zstd"), ("compression-level", "9"), ("force-compression", "1")]).unwrap();
        assert_eq!((zstd.form.compression, zstd.form.force_compression), (Compression::Zstd { level: 9 }, true));
        let docker = take(&[("oci-mediatypes", "false"), ("oci-artifact", "false")]).unwrap();
        assert!(docker.special && docker.form.docker_types && !docker.form.artifacts);
        let estargz = take(&[("compression", "estargz")]).unwrap();
        assert!(estargz.special && estargz.form.estargz && estargz.estargz == Some(9));
        let kept = take(&[("prefer-nondist-layers", "true")]).unwrap();
        assert!(kept.special && kept.form.nondistributable);
        assert!(take(&[("compression", "estargz"), ("compression-level", "10")]).is_err());
        assert!(take(&[("compression", "estargz"), ("oci-mediatypes", "false")]).is_err());
        assert_eq!(take(&[("source-date-epoch", "7")]).unwrap().epoch_ns, Some(7_000_000_000));
    }

    #[test]
    fn what_is_not_there_is_refused_by_name() {
        for (key, value, words) in [
            ("compression", "nydus", "nydus is not supported"),
            ("compression", "zst", "did you mean zstd?"),
            ("compression-level", "fast", "compression-level=fast"),
            ("compression-level", "77", "levels 0 to 9"),
            ("prefer-nondist-layers", "perhaps", "expected true or false"),
            ("name", "UPPER", "UPPER"),
            ("compresion", "gzip", "did you mean compression?"),
            ("rewrite-timestamp", "perhaps", "expected true or false"),
        ] {
            let error = take(&[(key, value)]).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
    }
}
