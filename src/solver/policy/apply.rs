//! What policies make of the sources of a build, wherever it names them: in graphs, and when something is looked up by its name.

use std::collections::HashMap;

use futures_util::FutureExt as _;
use kiln_graph::op::{BlobLocator, GitSource, ImageBlob, ImageSource, LocalSource, Op, ResolveMode, Source};
use kiln_graph::{Graph, Platform, Reference};
use kiln_llb::pb::SourceOp;

use crate::error::{Error, Result, ResultExt as _};
use crate::image::{Policy as Resolution, Resolved};
use crate::solver::definition::refused;
use crate::solver::failure::Failure;
use crate::solver::job::Shared;
use crate::solver::remote::check_image;

/// What a refusal of a source begins with, as with BuildKit.
const EVALUATING: &str = "error evaluating the source policy";

impl Shared {
    /// Returns what policies make of a source.
    ///
    /// # Errors
    /// `Forbidden` for one that is denied; when the client that is asked does not answer.
    pub(in crate::solver) async fn permit(&self, source: SourceOp, platform: &Platform) -> Result<SourceOp> {
        if self.policies.is_empty() {
            return Ok(source);
        }
        let permitted = self.permit_alone(source, platform).await?;
        // The bundle of a repository is a source of its own. What cannot be read is refused by whoever needs it.
        let Ok(Source::Git(GitSource { bundle: Some(bundle), .. })) = kiln_llb::decode_source(permitted.clone()) else {
            return Ok(permitted);
        };
        self.permit_bundle(permitted, *bundle, platform).boxed().await.context(|| "the bundle of a repository")
    }

    async fn permit_alone(&self, source: SourceOp, platform: &Platform) -> Result<SourceOp> {
        let permitted = match self.policies.evaluate(source) {
            Ok(source) => self.verify(source, platform).await,
            Err(denied) => Err(denied),
        };
        permitted.context(|| EVALUATING)
    }

    /// Returns what policies make of the bundle of a repository.
    async fn permit_bundle(&self, git: SourceOp, bundle: BlobLocator, platform: &Platform) -> Result<SourceOp> {
        let file = ImageBlob { blob: bundle, filename: String::new(), mode: None, uid: 0, gid: 0 };
        let asked = kiln_llb::encode_source(&Source::Blob(file));
        let permitted = self.permit_alone(asked.clone(), platform).await?;
        if permitted == asked {
            return Ok(git);
        }
        let mut attrs = git.attrs;
        attrs.insert("git.bundle".to_owned(), permitted.identifier);
        attrs.remove("oci.store");
        attrs.extend(permitted.attrs.into_iter().filter(|(name, _)| name == "oci.store"));
        Ok(SourceOp { attrs, ..git })
    }

    /// Returns what policies make of a source; `None` when they leave it as it is.
    async fn permit_source(&self, source: &Source, platform: &Platform) -> Result<Option<Source>> {
        let asked = kiln_llb::encode_source(source);
        let permitted = self.permit(asked.clone(), platform).await?;
        if permitted == asked {
            return Ok(None);
        }
        let converted = kiln_llb::decode_source(permitted.clone()).map_err(|refusal| refused(&refusal));
        converted.map(Some).context(|| {
            format!("{:?}, which a policy put in the place of {:?}", permitted.identifier, asked.identifier)
        })
    }

    /// Puts into the place of the sources of a graph what policies make of them.
    ///
    /// # Errors
    /// The failure of the first source that is denied.
    pub(in crate::solver) async fn comply(&self, graph: &mut Graph) -> Result<(), Failure> {
        if self.policies.is_empty() {
            return Ok(());
        }
        let mut converted = HashMap::new();
        for id in graph.ids() {
            let vertex = graph.vertex(id);
            let Op::Source(source) = &vertex.op else { continue };
            let permitted = self.permit_source(source, &vertex.platform).await;
            let permitted = permitted.map_err(|error| Failure::of_step(error, graph, vertex))?;
            if let Some(source) = permitted {
                converted.insert(id, source);
            }
        }
        for (id, source) in &converted {
            let Op::Source(before) = &graph.vertex(*id).op else { continue };
            // What nobody named otherwise is shown as what it is.
            if graph.vertex(*id).meta.name == kiln_llb::encode_source(before).identifier {
                graph.meta_mut(*id).name = kiln_llb::encode_source(source).identifier;
            }
        }
        graph.replace(converted.into_iter().map(|(id, source)| (id, Op::Source(source))));
        Ok(())
    }

    /// Finds an image by its name, or what policies put in its place; for the host's platform or what is here when none is given.
    ///
    /// # Errors
    /// `NotFound`; `Forbidden` for one that is denied; what the registry says.
    pub(in crate::solver) async fn find_image(
        &self,
        name: &Reference,
        platform: Option<&Platform>,
        policy: Resolution,
    ) -> Result<Resolved> {
        let asked = ImageSource {
            reference: name.clone().with_default_tag(),
            image_id: None,
            resolve: if policy == Resolution::Always { ResolveMode::Pull } else { ResolveMode::PreferLocal },
            checksum: None,
            layer_limit: None,
        };
        let images = &self.solver.deps().images;
        let host = Platform::host();
        match self.permit_source(&Source::Image(asked), platform.unwrap_or(&host)).await? {
            None => images.resolve(&self.lease, name, platform, policy, &self.registry).await,
            Some(Source::Image(image)) => {
                let policy = match image.resolve {
                    ResolveMode::Pull => Resolution::Always,
                    ResolveMode::PreferLocal => policy,
                };
                let found = images.resolve(&self.lease, &image.reference, platform, policy, &self.registry).await;
                check_image(&image, found?)
            }
            Some(_) => Err(Error::unsupported(format!(
                "a policy puts something else than an image in the place of docker-image://{name}, which is looked up as one"
            ))),
        }
    }

    /// Returns the name of the client's directory to read where one is named that no graph holds.
    ///
    /// # Errors
    /// As for [`Self::permit`].
    pub(in crate::solver) async fn permit_directory(&self, name: &str) -> Result<String> {
        if self.policies.is_empty() {
            return Ok(name.to_owned());
        }
        let asked = Source::Local(LocalSource { name: name.to_owned(), ..LocalSource::default() });
        match self.permit_source(&asked, &Platform::host()).await? {
            None => Ok(name.to_owned()),
            Some(Source::Local(local)) => Ok(local.name),
            Some(_) => Err(Error::unsupported(format!(
                "a policy puts something else than a directory in the place of local://{name}, which is read as one"
            ))),
        }
    }
}
