//! Looking sources up for frontends at clients and for policies of clients: what they are now, without bringing them here.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use bollard_buildkit_proto::google::protobuf::Timestamp;
use bollard_buildkit_proto::moby::buildkit::v1::frontend::{
    ResolveImageConfigRequest, ResolveImageConfigResponse, ResolveSourceGitResponse, ResolveSourceHttpResponse,
    ResolveSourceImageResponse, ResolveSourceMetaRequest, ResolveSourceMetaResponse,
};
use kiln_graph::graph::Meta;
use kiln_graph::op::{Op, ResolveMode, Source};
use kiln_graph::{Digest, Graph, Platform};
use kiln_llb::pb;

use super::contexts::Locals;
use super::definition::refused;
use super::failure::Failure;
use super::job::{Begun, Job, Shared};
use super::remote::{FileAnswer, GitAnswer, check_image};
use crate::error::{Error, Result};
use crate::image::{Policy, Resolved};
use crate::task::Cancel;

/// Where `ResolveImageConfig` looks for an image: BuildKit's numbers.
const REGISTRY: i32 = 0;
const OCI_LAYOUT: i32 = 1;

/// The client's directories that are seen from here, by name.
pub(super) type Places = std::collections::BTreeMap<String, PathBuf>;

impl Shared {
    /// Finds out what an image's name stands for, or what policies put in its place.
    ///
    /// # Errors
    /// `NotFound`; what the registry says; `Forbidden` for one that policies deny.
    pub(super) async fn look_at_image(
        &self,
        request: ResolveImageConfigRequest,
    ) -> Result<ResolveImageConfigResponse, Failure> {
        let ResolveImageConfigRequest {
            r#ref: name, platform, resolve_mode, log_name, resolver_type, store_id, ..
        } = request;
        if resolver_type == OCI_LAYOUT {
            let attrs = (!store_id.is_empty()).then(|| ("oci.store".to_owned(), store_id)).into_iter().collect();
            let source = pb::SourceOp { identifier: format!("oci-layout://{name}"), attrs };
            let asked = ResolveSourceMetaRequest { source: Some(source), platform, ..Default::default() };
            let answer = self.look_at_permitted(asked).await?;
            let image = answer.image.ok_or_else(|| Error::internal("a layout gave no image"))?;
            return Ok(ResolveImageConfigResponse { digest: image.digest, config: image.config, r#ref: name });
        }
        if resolver_type != REGISTRY {
            return Err(not_yet(&format!("the resolver {resolver_type} of images")).into());
        }
        let policy = policy(&resolve_mode)?;
        let reference = name.parse().map_err(Error::from)?;
        let looking = self.looking(&name, &log_name)?;
        let platform = platform.map(kiln_llb::decode_platform);
        let found = self.find_image(&reference, platform.as_ref(), policy).await;
        looking.end(found.as_ref().err());
        let found = found?;
        Ok(ResolveImageConfigResponse {
            digest: digest(&found).to_string(),
            config: serde_json::to_vec(found.config.as_ref()).map_err(Error::from)?,
            r#ref: found.reference.to_string(),
        })
    }

    /// Finds out what a source is, or what policies put in its place, which the answer names.
    ///
    /// # Errors
    /// As for [`Self::look_at_source`]; `Forbidden` for one that policies deny.
    pub(super) async fn look_at_permitted(
        &self,
        mut request: ResolveSourceMetaRequest,
    ) -> Result<ResolveSourceMetaResponse, Failure> {
        let platform = request.platform.clone().map_or_else(Platform::host, kiln_llb::decode_platform);
        let permitted = self.permit(request.source.unwrap_or_default(), &platform).await?;
        request.source = Some(permitted);
        self.look_at_source(request).await
    }

    /// Finds out what a source is, whatever sort it is of.
    ///
    /// # Errors
    /// `InvalidArgument` and `Unsupported` for what names no source; what the server says.
    pub(super) async fn look_at_source(
        &self,
        request: ResolveSourceMetaRequest,
    ) -> Result<ResolveSourceMetaResponse, Failure> {
        let wanted = request.image.unwrap_or_default();
        if wanted.attestation_chain || !wanted.resolve_attestations.is_empty() {
            return Err(not_yet("looking at an image's attestations").into());
        }
        if request.git.is_some_and(|git| git.return_object) {
            return Err(not_yet("returning the objects of a repository").into());
        }
        if request.http.is_some_and(|http| http.checksum_request.is_some()) {
            return Err(not_yet("checksums of an algorithm of the client's choice").into());
        }
        let policy = policy(&request.resolve_mode)?;
        let source = request.source.unwrap_or_default();
        let platform = request.platform.map(kiln_llb::decode_platform);
        let decoded = kiln_llb::decode_source(source.clone()).map_err(|refusal| refused(&refusal))?;
        let mut response = ResolveSourceMetaResponse { source: Some(source.clone()), ..Default::default() };
        let image = |digest: Digest, found: &Resolved| {
            let config = if wanted.no_config { Vec::new() } else { serde_json::to_vec(found.config.as_ref())? };
            let digest = digest.to_string();
            Ok::<_, Error>(Some(ResolveSourceImageResponse { digest, config, attestation_chain: None }))
        };
        match &decoded {
            Source::Image(named) => {
                let looking = self.looking(&named.reference.to_string(), &request.log_name)?;
                let policy = if named.resolve == ResolveMode::Pull { Policy::Always } else { policy };
                let images = &self.solver.deps().images;
                let found =
                    images.resolve(&self.lease, &named.reference, platform.as_ref(), policy, &self.registry).await;
                let found = found.and_then(|found| check_image(named, found));
                looking.end(found.as_ref().err());
                let found = found?;
                response.image = image(digest(&found), &found)?;
            }
            Source::OciLayout(layout) => {
                let platform = platform.unwrap_or_else(Platform::host);
                let found = self.resolve_layout(layout, &platform, &self.places).await?;
                response.image = image(layout.digest, &found)?;
            }
            Source::Git(_) | Source::Http(_) => {
                let name = source.identifier;
                self.look_at_fetched(&decoded, name, platform.unwrap_or_else(Platform::host), &mut response).await?;
            }
            // Nothing is to be found out about these: that a blob is there is seen when it is fetched, as with BuildKit.
            Source::Local(_) | Source::Blob(_) => {}
        }
        Ok(response)
    }

    /// Finds out what a repository or a file by HTTP is.
    async fn look_at_fetched(
        &self,
        source: &Source,
        name: String,
        platform: Platform,
        response: &mut ResolveSourceMetaResponse,
    ) -> Result<(), Failure> {
        let mut graph = Graph::new();
        let meta = Meta { name, ..Meta::default() };
        let id = graph.add(Op::Source(source.clone()), Vec::new(), platform, meta);
        let cancel = Cancel::new();
        let _given_up = cancel.on_drop();
        let locals = Locals::none(self.solver.memos(), self.progress.now_ns());
        let job = Job::of(self, graph, HashMap::new(), locals, cancel.clone());
        let looked = match source {
            Source::Git(git) => job.look_at_repository(git).await.map_err(Failure::from).map(|answer| {
                let GitAnswer { object, reference, commit } = answer;
                let (checksum, commit_checksum) = (object, commit);
                let answer =
                    ResolveSourceGitResponse { checksum, r#ref: reference, commit_checksum, ..Default::default() };
                response.git = Some(answer);
            }),
            Source::Http(file) => job.look_at_file(id, file).await.map(|answer| {
                let FileAnswer { digest, name, modified_s } = answer;
                let last_modified = modified_s.map(|seconds| Timestamp { seconds, nanos: 0 });
                let (checksum, filename) = (digest.to_string(), name);
                response.http =
                    Some(ResolveSourceHttpResponse { checksum, filename, last_modified, checksum_response: None });
            }),
            _ => Ok(()),
        };
        Arc::clone(&job).finish().await?;
        looked
    }

    fn looking(&self, name: &str, log_name: &str) -> Result<Begun> {
        let title = if log_name.is_empty() { format!("resolve image config for {name}") } else { log_name.to_owned() };
        Begun::internal(&self.progress, &title)
    }
}

/// The digest of the manifest or the index at an image's registry; the image's id for one that is here only.
fn digest(image: &Resolved) -> Digest {
    image.reference.digest().unwrap_or(image.id)
}

fn not_yet(what: &str) -> Error {
    Error::unsupported(format!("{what} is not supported yet"))
}

fn policy(mode: &str) -> Result<Policy> {
    match mode {
        "" | "default" | "local" => Ok(Policy::Missing),
        "pull" => Ok(Policy::Always),
        other => Err(Error::invalid(format!("invalid resolve mode {other:?}: default, pull or local"))),
    }
}
