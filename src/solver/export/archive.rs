//! The exporters `oci` and `docker`: an image as an archive, streamed to the client.

use std::sync::Arc;

use super::package::{self, Packaging};
use super::{Product, Response};
use crate::error::{Error, Result};
use crate::image::{Images, Layout};
use crate::solver::attrs::Attrs;
use crate::solver::job::{Begun, Job};
use crate::solver::request::Exporter;
use crate::task::Cancel;

/// An image that is sent to the client.
#[derive(Clone, Debug)]
pub(in crate::solver) struct ArchiveExport {
    packaging: Packaging,
    layout: Layout,
}

impl ArchiveExport {
    /// Reads what a request asks for.
    ///
    /// # Errors
    /// `Unsupported`, by name, for other options; `InvalidArgument` for malformed values.
    pub(super) fn parse(exporter: &Exporter, layout: Layout) -> Result<Self> {
        let mut attrs = Attrs::new(exporter);
        let packaging = Packaging::take(&mut attrs)?;
        if attrs.flag("tar")? == Some(false) {
            return Err(Error::unsupported(
                "the exporter option tar=false is not supported: the client has to unpack the archive",
            ));
        }
        // Where the client puts it is its own business.
        attrs.text("dest");
        attrs.finish()?;
        // Docker archives list one image each, and nothing about it.
        let packaging = if layout == Layout::Docker { packaging.without_attestations() } else { packaging };
        Ok(Self { packaging, layout })
    }
}

impl ArchiveExport {
    /// Makes sure that so many platforms can be exported.
    ///
    /// # Errors
    /// `Unsupported` when they cannot.
    pub(super) fn check(&self, platforms: usize) -> Result<()> {
        if self.layout == Layout::Docker && platforms > 1 {
            return Err(Error::unsupported(
                "the docker exporter cannot write an image for several platforms: use type=oci, or type=image",
            ));
        }
        Ok(())
    }
}

impl Job {
    /// Sends the archive to the client, and says what the client is told.
    ///
    /// # Errors
    /// What the store and the client say.
    pub(super) async fn export_to_archive(
        self: &Arc<Self>,
        number: usize,
        export: &ArchiveExport,
        product: &Arc<Product>,
        response: &mut Response,
    ) -> Result<()> {
        let name = if export.layout == Layout::Oci { "oci" } else { "docker" };
        let exporting = Begun::internal(&self.progress, &format!("exporting to {name} image format"))?;
        let result = self.send_archive(number, export, product, &exporting, response).await;
        exporting.end(result.as_ref().err());
        result
    }

    async fn send_archive(
        self: &Arc<Self>,
        number: usize,
        export: &ArchiveExport,
        product: &Arc<Product>,
        exporting: &Begun,
        response: &mut Response,
    ) -> Result<()> {
        let layers = exporting.part("exporting layers", 0);
        let images = self.configure(&export.packaging, product).await?;
        let created = images.first().and_then(|image| image.config.created.clone());
        let assembled = self.assemble(&export.packaging, product, images, exporting).await?;
        layers.complete();
        let sending = exporting.part("sending tarball", 0);
        let (archive, names, layout) = (assembled.clone(), export.packaging.names.clone(), export.layout);
        let client = self.client_for_files().await?;
        client
            .send_bytes(number, move |out| Images::write_archive(&archive, &names, layout, out, &Cancel::new()))
            .await?;
        sending.complete();
        response.put_names(&export.packaging.names, false);
        package::respond(&assembled, created.as_deref(), response)
    }
}
