//! The image exporter: an image in the store, and at registries.
//!
//! An image for one platform that stays here needs no manifest, so its layers are not compressed: it costs one blob and a few
//! rows. Everything else is assembled first.

use std::sync::Arc;

use kiln_graph::{Digest, Reference};

use super::package::{self, Packaging};
use super::{Product, Response};
use crate::error::{Error, Result};
use crate::image::{Assembled, Configured};
use crate::registry::Client;
use crate::solver::attrs::Attrs;
use crate::solver::job::{Begun, Job, layer_report};
use crate::solver::request::Exporter;
use crate::store::compression::Compression;
use crate::task;

/// What stays here of an image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Kept {
    /// All of it.
    #[default]
    Whole,
    /// Its record and those layers that are here anyway: a registry has the others.
    Known,
    /// Nothing.
    Nothing,
}

/// Where an image goes.
#[derive(Clone, Debug, Default)]
pub(in crate::solver) struct ImageExport {
    packaging: Packaging,
    push: bool,
    /// Whether it is pushed under no tag.
    by_digest: bool,
    /// What stays here of it.
    store: Kept,
    /// Whether it is known here by its digests in the repositories of its names, too.
    canonical: bool,
    /// Whether registries are taken as they are: with any certificate, or without TLS.
    insecure: bool,
}

impl ImageExport {
    /// Reads what a request asks for.
    ///
    /// # Errors
    /// `Unsupported`, by name, for other options; `InvalidArgument` for malformed values.
    pub(super) fn parse(exporter: &Exporter) -> Result<Self> {
        let mut attrs = Attrs::new(exporter);
        let packaging = Packaging::take(&mut attrs)?;
        let push = attrs.flag("push")?.unwrap_or(exporter.kind == "registry");
        let unpack = attrs.flag("unpack")? == Some(true);
        let (store, incomplete) = (attrs.flag("store")?, attrs.flag("store-allow-incomplete")?);
        let store = match (store, incomplete) {
            (Some(false), _) => Kept::Nothing,
            (_, Some(true)) if !unpack => Kept::Known,
            // Whoever says nothing wants it at the registry.
            (None, None) if push && !unpack => Kept::Known,
            _ => Kept::Whole,
        };
        let by_digest = attrs.flag("push-by-digest")? == Some(true);
        // An image without a name is kept without one.
        attrs.text("dangling-name-prefix");
        attrs.flag("danging-name-empty-only")?;
        let export = Self {
            packaging,
            push,
            by_digest,
            store,
            canonical: attrs.flag("name-canonical")? == Some(true),
            insecure: attrs.flag("registry.insecure")? == Some(true),
        };
        attrs.finish()?;
        if push && export.packaging.names.is_empty() {
            return Err(Error::invalid("tag is needed when pushing to registry"));
        }
        if by_digest && !push {
            return Err(Error::invalid("push-by-digest=true pushes nothing without push=true"));
        }
        if export.insecure && !push {
            return Err(Error::invalid("registry.insecure=true says how to push: add push=true"));
        }
        if incomplete == Some(true) && !push {
            return Err(Error::invalid("store-allow-incomplete=true leaves layers where they are: add push=true"));
        }
        if export.store == Kept::Nothing && !push {
            return Err(Error::invalid("store=false without push=true leaves nothing of the image"));
        }
        Ok(export)
    }

    /// The names the image gets here.
    fn local_names(&self) -> &[Reference] {
        if self.by_digest { &[] } else { &self.packaging.names }
    }

    /// Says whether all layers have to be here.
    pub(super) fn needs_files(&self) -> bool {
        !self.push || self.store == Kept::Whole || self.packaging.makes_layers()
    }

    fn is_plain(&self, product: &Product) -> bool {
        self.store != Kept::Nothing && !self.by_digest && !self.canonical && self.packaging.is_plain(product)
    }
}

impl Job {
    /// Records and pushes the image, and says what the client is told.
    ///
    /// # Errors
    /// What the store and the registry say.
    pub(super) async fn export_to_image(
        self: &Arc<Self>,
        export: &ImageExport,
        product: &Arc<Product>,
        response: &mut Response,
    ) -> Result<()> {
        let exporting = Begun::internal(&self.progress, "exporting to image")?;
        let result = self.export_image(export, product, &exporting, response).await;
        exporting.end(result.as_ref().err());
        result
    }

    async fn export_image(
        self: &Arc<Self>,
        export: &ImageExport,
        product: &Arc<Product>,
        exporting: &Begun,
        response: &mut Response,
    ) -> Result<()> {
        let layers = exporting.part("exporting layers", 0);
        let mut images = self.configure(&export.packaging, product).await?;
        response.put_names(&export.packaging.names, export.by_digest);
        if let ([image], true) = (images.as_slice(), export.is_plain(product))
            && !self.has_manifest(export, image.id).await?
        {
            layers.complete();
            let image = images.remove(0);
            return self.export_plain(export, image, exporting, response).await;
        }
        let created = images.first().and_then(|image| image.config.created.clone());
        let assembled = self.assemble(&export.packaging, product, images, exporting).await?;
        layers.complete();
        if export.store != Kept::Nothing {
            self.keep(export, &assembled, exporting).await?;
        }
        if export.push {
            self.push_assembled(export, &assembled, exporting).await?;
        }
        package::respond(&assembled, created.as_deref(), response)
    }

    /// Says whether an image that is to be pushed has a manifest here, which may be of another form than the one that is wanted now.
    async fn has_manifest(self: &Arc<Self>, export: &ImageExport, id: Digest) -> Result<bool> {
        if !export.push {
            return Ok(false);
        }
        let job = Arc::clone(self);
        let known = task::blocking(move || job.solver.deps().images.get(&job.lease, &id)).await?;
        Ok(known.is_some_and(|known| known.record.manifest.is_some()))
    }

    /// Records an image that needs no manifest here; pushing makes one.
    async fn export_plain(
        self: &Arc<Self>,
        export: &ImageExport,
        image: Configured,
        exporting: &Begun,
        response: &mut Response,
    ) -> Result<()> {
        let (job, id, names) = (Arc::clone(self), image.id, export.packaging.names.clone());
        task::blocking(move || job.solver.deps().images.record_plain(&image, &names)).await?;
        exporting.part(format!("writing image {id}"), 0).complete();
        self.report_names(export.local_names(), exporting);
        package::respond_plain(&id, response);
        if !export.push {
            return Ok(());
        }
        let job = Arc::clone(self);
        let image = task::blocking(move || job.solver.deps().images.get(&job.lease, &id)).await?;
        let image = image.ok_or_else(|| Error::internal("an image has gone while it was exported"))?;
        let images = &self.solver.deps().images;
        for name in &export.packaging.names {
            let pushing = exporting.part(format!("pushing {name}"), 0);
            let report = layer_report(&self.progress, exporting.digest());
            let registry = self.registry_of(export, name).await;
            let pushed = images.push(&self.lease, &image, name, Compression::GZIP, &registry, &report).await?;
            pushing.complete();
            let mut descriptor = pushed.manifest;
            response.put("containerimage.digest", &descriptor.digest);
            response.put_config(&id, &mut descriptor);
            response.put_descriptor(&descriptor)?;
        }
        Ok(())
    }

    async fn keep(self: &Arc<Self>, export: &ImageExport, assembled: &Assembled, exporting: &Begun) -> Result<()> {
        let (job, kept, names) = (Arc::clone(self), assembled.clone(), export.local_names().to_vec());
        let repositories: Vec<String> = match export.canonical {
            true => export.packaging.names.iter().map(Reference::repository).collect(),
            false => Vec::new(),
        };
        task::blocking(move || {
            let images = &job.solver.deps().images;
            images.keep(&kept, &names)?;
            repositories.iter().try_for_each(|repository| images.note_digests(&kept, repository))
        })
        .await?;
        self.report_names(export.local_names(), exporting);
        Ok(())
    }

    fn report_names(&self, names: &[Reference], exporting: &Begun) {
        for name in names {
            exporting.part(format!("naming to {name}"), 0).complete();
        }
    }

    async fn push_assembled(&self, export: &ImageExport, assembled: &Assembled, exporting: &Begun) -> Result<()> {
        let images = &self.solver.deps().images;
        for name in &export.packaging.names {
            let name = if export.by_digest { name.without_tag() } else { name.clone() };
            let pushing = exporting.part(format!("pushing manifest for {name}@{}", assembled.top.descriptor.digest), 0);
            let report = layer_report(&self.progress, exporting.digest());
            let registry = self.registry_of(export, &name).await;
            images.push_assembled(&self.lease, assembled, &name, &registry, &report).await?;
            pushing.complete();
        }
        Ok(())
    }

    async fn registry_of(&self, export: &ImageExport, name: &Reference) -> Client {
        if export.insecure { self.registry.insecure(name).await } else { self.registry.clone() }
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
    fn where_an_image_goes_is_read() {
        assert!(parse("registry", &[("name", "a")]).unwrap().push);
        let pushed = parse("image", &[("name", "a"), ("push", "true"), ("push-by-digest", "true"), ("store", "false")]);
        let pushed = pushed.unwrap();
        assert!(pushed.by_digest && pushed.store == Kept::Nothing && pushed.local_names().is_empty());
        let local = [("unpack", "true"), ("dangling-name-prefix", "moby-dangling"), ("name-canonical", "true")];
        assert!(parse("image", &local).unwrap().canonical);
        for (attrs, needed) in [
            (&[][..], false),
            (&[("store", "true")], true),
            (&[("store", "true"), ("store-allow-incomplete", "true")], false),
            (&[("store-allow-incomplete", "false")], true),
            (&[("store", "false")], false),
            (&[("unpack", "true")], true),
            (&[("force-compression", "true")], true),
            (&[("push", "false")], true),
        ] {
            let all: Vec<_> = [("name", "a"), ("push", "true")].iter().chain(attrs).copied().collect();
            assert_eq!(parse("image", &all).unwrap().needs_files(), needed, "{attrs:?}");
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused_by_name() {
        for (attrs, words) in [
            (&[("push", "true")][..], "tag is needed"),
            (&[("push-by-digest", "true")], "push-by-digest"),
            (&[("store", "false")], "store=false"),
            (&[("store-allow-incomplete", "true")], "store-allow-incomplete"),
            (&[("registry.insecure", "true"), ("store", "true")], "registry.insecure"),
            (&[("dest", "x")], "has no option dest"),
            (&[("psuh", "true")], "did you mean push?"),
        ] {
            let error = parse("image", attrs).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
    }
}
