//! Definitions: graphs that clients write themselves, in LLB.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use kiln_graph::Platform;
use kiln_graph::oci::ImageConfig;
use kiln_llb::{Decoded, Kind, Refusal, pb};

use super::attest::Facts;
use super::contexts::Locals;
use super::exchange::Imports;
use super::failure::Failure;
use super::frontend::{Surroundings, Target};
use super::job::{Job, Shared};
use super::options::Options;
use super::workshop::{Draft, Workshop};
use crate::error::{Error, Result};
use crate::sandbox::DEFAULT_PATH;
use crate::task;

/// The name no directory of a client has, for graphs without a main context.
const NO_CONTEXT: &str = "\0";

/// Makes an error of a refused definition.
pub(super) fn refused(refusal: &Refusal) -> Error {
    let text = refusal.to_string();
    match refusal.kind {
        Kind::Malformed => Error::invalid(text),
        Kind::Unsupported => Error::unsupported(text),
        Kind::TooLarge => Error::exhausted(text),
    }
}

/// What an image is configured with when nobody says, as with BuildKit.
pub(super) fn plain_config(platform: &Platform) -> ImageConfig {
    let mut config = ImageConfig {
        architecture: platform.architecture.clone(),
        os: platform.os.clone(),
        variant: platform.variant.clone(),
        ..ImageConfig::default()
    };
    config.config.env = vec![format!("PATH={DEFAULT_PATH}")];
    config.config.working_dir = "/".to_owned();
    config
}

impl Workshop {
    /// Makes a draft of a definition. Of the attributes, those count that are about any result.
    ///
    /// # Errors
    /// With the operation and the field: what is malformed, or is not there.
    pub(super) async fn definition(
        &self,
        definition: &Arc<pb::Definition>,
        attrs: &BTreeMap<String, String>,
    ) -> Result<Draft, Failure> {
        let host = Platform::host();
        let (received, platform) = (Arc::clone(definition), host.clone());
        let decode = move || kiln_llb::decode(&received, &platform).map_err(|refusal| refused(&refusal));
        let Decoded { mut graph, root } = task::blocking(decode).await?;
        let of_results = attrs.iter().filter(|(key, _)| key.starts_with("attest:"));
        let options = Options::parse(&of_results.map(|(key, value)| (key.clone(), value.clone())).collect())?;
        if self.shared.witness.is_some() || attrs.contains_key("no-cache") {
            graph.ids().collect::<Vec<_>>().into_iter().for_each(|id| graph.meta_mut(id).no_cache = true);
        }
        let imports = if self.shared.witness.is_some() { Imports::default() } else { self.imports(attrs).await? };
        let shared = Shared { imports, ..self.shared.clone() };
        let target =
            Target { platform: host.clone(), root, config: plain_config(&host), scan: Vec::new(), base_layers: 0 };
        let targets = vec![target];
        let (surveys, scanner) = Surroundings::of(&shared)
            .surveys(options.attest.sbom.as_ref(), options.resolve, &mut graph, &targets)
            .await?;
        shared.comply(&mut graph).await?;
        let images: HashMap<_, _> = scanner.map(|image| (image.id, image)).into_iter().collect();
        let started_ns = shared.progress.now_ns();
        let facts = Facts {
            // A definition that a frontend made is there because somebody asked for that frontend.
            frontend: self.request.frontend.clone(),
            attrs: self.request.attrs.clone(),
            filename: String::new(),
            local_file: false,
            started_ns,
            epoch_ns: None,
        };
        let paths = self.request.locals.clone();
        let none = Locals::none(shared.solver.memos(), started_ns);
        let locals = Locals { paths, context: NO_CONTEXT.to_owned(), ..none };
        Ok(Draft {
            job: Job::of(&shared, graph, images, locals, self.cancel.clone()),
            targets: targets.into_iter().zip(surveys).collect(),
            attest: options.attest,
            facts,
            multi_platform: false,
            definition: Some(Arc::clone(definition)),
        })
    }
}
