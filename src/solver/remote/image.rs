//! Images that a graph names without saying what they are: definitions of clients do.

use std::sync::Arc;

use kiln_graph::op::{ImageSource, OciLayoutSource, ResolveMode};
use kiln_graph::{Platform, VertexId};

use crate::error::{Error, Result};
use crate::image::{Policy, Resolved};
use crate::solver::contexts::{self, Layouts};
use crate::solver::job::{Begun, Job};
use crate::solver::lock;

impl Job {
    /// Finds out what an image is; no layer is fetched.
    pub(super) async fn pin_image(self: &Arc<Self>, id: VertexId, image: &ImageSource) -> Result<()> {
        let platform: &Platform = &self.graph.vertex(id).platform;
        if self.pins.image(image, platform).is_some() {
            return Ok(());
        }
        let policy = match image.resolve {
            ResolveMode::PreferLocal => Policy::Missing,
            ResolveMode::Pull => Policy::Always,
        };
        let begun = Begun::new(self.progress.clone(), self.state(id));
        let images = &self.solver.deps().images;
        let resolved = images.resolve(&self.lease, &image.reference, Some(platform), policy, &self.registry).await;
        let resolved = resolved.and_then(|resolved| check(image, resolved));
        // What failed is reported with the failure.
        if resolved.is_ok() {
            begun.end(None);
        }
        let pinned = Arc::new(resolved?);
        lock(&self.pins.images).insert((image.clone(), platform.clone()), pinned);
        Ok(())
    }
}

impl Job {
    /// Finds out what an image of a layout is that only the client sees, unless the frontend did.
    pub(super) async fn pin_layout(self: &Arc<Self>, id: VertexId, layout: &OciLayoutSource) -> Result<()> {
        let platform: &Platform = &self.graph.vertex(id).platform;
        let places = &self.locals.paths;
        let (path, name) = contexts::layout(places, &layout.name)?;
        let known = self.pins.layout(layout, platform).is_some()
            || self.resolved(&name.with_digest(layout.digest), platform).is_ok();
        if path.is_some() || known {
            return Ok(());
        }
        let images = self.solver.deps().images.clone();
        let layouts = Layouts { images, session: &self.session, lease: &self.lease, places };
        let resolved = Arc::new(layouts.resolve(layout, platform).await?);
        lock(&self.pins.layouts).insert((layout.clone(), platform.clone()), resolved);
        Ok(())
    }
}

/// Holds the image to what was promised of it, and leaves out the layers that are not wanted.
///
/// # Errors
/// `Corrupt` when it is another one than was promised.
pub(in crate::solver) fn check(image: &ImageSource, resolved: Resolved) -> Result<Resolved> {
    if let Some(expected) = image.checksum {
        let found = resolved.reference.digest().unwrap_or_else(|| resolved.digest());
        if ![found, resolved.digest()].contains(&expected) {
            let name = image.reference.familiar();
            return Err(Error::corrupt(format!(
                "image digest {found} for {name} does not match expected checksum {expected}"
            )));
        }
    }
    Ok(match image.layer_limit {
        Some(layers) => resolved.limited(layers as usize),
        None => resolved,
    })
}
