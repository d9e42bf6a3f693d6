//! The image exporter: gives a result a configuration and names, and pushes it.
//!
//! Layers and the configuration are in the store already, so an image that stays here costs one blob and a few rows.

use std::collections::BTreeMap;
use std::sync::Arc;

use kiln_graph::{Digest, Reference};

use super::super::job::{Begun, Job, layer_report};
use super::super::options::flag;
use super::super::request::Exporter;
use super::Product;
use crate::error::{Error, Result};
use crate::image::NewImage;
use crate::store::compression::Compression;
use crate::task;

/// Where an image goes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::solver) struct ImageExport {
    names: Vec<Reference>,
    push: bool,
    compression: Option<String>,
    level: Option<i32>,
}

impl ImageExport {
    /// Reads what a request asks for.
    ///
    /// # Errors
    /// `Unsupported`, by name, for other exporters and options; `InvalidArgument` for malformed values.
    pub(super) fn parse(exporter: &Exporter) -> Result<Self> {
        let mut export = Self { push: exporter.kind == "registry", ..Self::default() };
        for (key, value) in &exporter.attrs {
            match key.as_str() {
                "name" => export.names = names(value)?,
                "push" => export.push = flag(key, value)?,
                "compression" => export.compression = Some(value.clone()),
                "compression-level" => {
                    let level =
                        value.parse().map_err(|_| Error::invalid(format!("{key}={value}: expected a number")))?;
                    export.level = Some(level);
                }
                // What is stored is always unpacked, and of OCI types.
                "unpack" | "store" | "oci-mediatypes" | "oci-artifact" => drop(flag(key, value)?),
                _ => return Err(Error::unsupported(format!("the exporter option {key}={value} is not supported yet"))),
            }
        }
        if export.push && export.names.is_empty() {
            return Err(Error::invalid("tag is needed when pushing to registry"));
        }
        export.compression()?;
        Ok(export)
    }

    fn compression(&self) -> Result<Compression> {
        let compression = match (self.compression.as_deref(), self.level) {
            (None | Some("gzip"), None) => Compression::GZIP,
            (None | Some("gzip"), Some(level)) => Compression::Gzip { level: u32::try_from(level).unwrap_or(u32::MAX) },
            (Some("zstd"), None) => Compression::ZSTD,
            (Some("zstd"), Some(level)) => Compression::Zstd { level },
            (Some("uncompressed"), _) => Compression::None,
            (Some(other), _) => {
                return Err(Error::unsupported(format!("the compression {other} is not supported yet")));
            }
        };
        compression.check()?;
        Ok(compression)
    }
}

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

impl Job {
    /// Records and pushes the image, and returns what the client is told.
    ///
    /// # Errors
    /// What the store and the registry say.
    pub(super) async fn export_to_image(
        self: &Arc<Self>,
        export: &ImageExport,
        product: &Arc<Product>,
    ) -> Result<BTreeMap<String, String>> {
        let exporting = Begun::internal(&self.progress, "exporting to image")?;
        let result = self.export_image(export, product, &exporting).await;
        exporting.end(result.as_ref().err());
        result
    }

    async fn export_image(
        self: &Arc<Self>,
        export: &ImageExport,
        product: &Product,
        exporting: &Begun,
    ) -> Result<BTreeMap<String, String>> {
        let [variant] = product.variants.as_slice() else {
            return Err(Error::unsupported("images for several platforms are not supported yet"));
        };
        let (config, snapshot) = (variant.config.clone(), variant.snapshot);
        let image = NewImage { config, snapshot, epoch_ns: product.epoch_ns };
        let layers = exporting.part("exporting layers", 0);
        let (job, names) = (Arc::clone(self), export.names.clone());
        let id = task::blocking(move || job.solver.deps().images.create(&job.lease, image, &names)).await?;
        layers.complete();
        exporting.part(format!("writing image {id}"), 0).complete();
        for name in &export.names {
            exporting.part(format!("naming to {name}"), 0).complete();
        }
        let mut response = BTreeMap::new();
        let mut put = |key: &str, value: String| drop(response.insert(key.to_owned(), value));
        put("containerimage.config.digest", id.to_string());
        put("containerimage.digest", id.to_string());
        if !export.names.is_empty() {
            put("image.name", export.names.iter().map(ToString::to_string).collect::<Vec<_>>().join(","));
        }
        if export.push {
            let manifest = self.push(export, &id, exporting).await?;
            put("containerimage.digest", manifest.to_string());
        }
        Ok(response)
    }

    async fn push(self: &Arc<Self>, export: &ImageExport, id: &Digest, exporting: &Begun) -> Result<Digest> {
        let (job, id) = (Arc::clone(self), *id);
        let image = task::blocking(move || job.solver.deps().images.get(&job.lease, &id)).await?;
        let image = image.ok_or_else(|| Error::internal("an image has gone while it was exported"))?;
        let (images, compression) = (&self.solver.deps().images, export.compression()?);
        let mut manifest = None;
        for name in &export.names {
            let pushing = exporting.part(format!("pushing {name}"), 0);
            let report = layer_report(&self.progress, exporting.digest());
            let pushed = images.push(&self.lease, &image, name, compression, &self.registry, &report).await?;
            pushing.complete();
            manifest = Some(pushed.manifest.digest);
        }
        manifest.ok_or_else(|| Error::invalid("tag is needed when pushing to registry"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(kind: &str, attrs: &[(&str, &str)]) -> Result<ImageExport> {
        let attrs = attrs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        ImageExport::parse(&Exporter { kind: kind.to_owned(), attrs })
    }

    #[test]
    fn several_names_are_read_and_get_the_default_tag() {
        let export = parse("image", &[("name", "a,localhost:5000/b:1"), ("push", "true")]).unwrap();
        let names: Vec<String> = export.names.iter().map(ToString::to_string).collect();
        assert_eq!(names, ["docker.io/library/a:latest", "localhost:5000/b:1"]);
        assert!(export.push);
    }

    #[test]
    fn other_exporters_and_options_are_refused_by_name() {
        for (kind, attrs, word) in [
            ("image", &[("push-by-digest", "true")][..], "push-by-digest"),
            ("image", &[("compression", "estargz")], "estargz"),
            ("image", &[("push", "true")], "tag is needed"),
            ("image", &[("name", "UPPER")], "UPPER"),
        ] {
            let error = parse(kind, attrs).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
    }
}
