//! Looking sources up for frontends at clients and for policies of clients: what they are now, without bringing them here.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use bollard_buildkit_proto::google::protobuf::Timestamp;
use bollard_buildkit_proto::moby::buildkit::v1::frontend::checksum_request::ChecksumAlgo;
use bollard_buildkit_proto::moby::buildkit::v1::frontend::{
    AttestationChain, Blob, ChecksumResponse, Descriptor, ResolveImageConfigRequest, ResolveImageConfigResponse,
    ResolveSourceGitRequest, ResolveSourceGitResponse, ResolveSourceHttpRequest, ResolveSourceHttpResponse,
    ResolveSourceImageRequest, ResolveSourceImageResponse, ResolveSourceMetaRequest, ResolveSourceMetaResponse,
};
use kiln_graph::graph::Meta;
use kiln_graph::op::{HttpSource, ImageSource, Op, ResolveMode, Source};
use kiln_graph::{Digest, Graph, Platform, VertexId};
use kiln_llb::pb;

use super::contexts::Locals;
use super::definition::refused;
use super::failure::Failure;
use super::job::{Begun, Job, Shared};
use super::remote::{FileAnswer, GitAnswer, Hash, check_image};
use crate::error::{Error, Result};
use crate::image::{Chain, Policy, Resolved};
use crate::task::Cancel;

/// Where `ResolveImageConfig` looks for an image: BuildKit's numbers.
const REGISTRY: i32 = 0;
const OCI_LAYOUT: i32 = 1;

/// The longest text that a client has hashed after a file, in bytes, as with BuildKit.
const MAX_SUFFIX: usize = 4 << 10;

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
        let chained = wanted.attestation_chain || !wanted.resolve_attestations.is_empty();
        let details = Details::of(request.git, request.http)?;
        let policy = policy(&request.resolve_mode)?;
        let source = request.source.unwrap_or_default();
        let platform = request.platform.map(kiln_llb::decode_platform);
        let decoded = kiln_llb::decode_source(source.clone()).map_err(|refusal| refused(&refusal))?;
        let mut response = ResolveSourceMetaResponse { source: Some(source.clone()), ..Default::default() };
        match &decoded {
            Source::Image(named) => {
                let looking = self.looking(&named.reference.to_string(), &request.log_name)?;
                let policy = if named.resolve == ResolveMode::Pull { Policy::Always } else { policy };
                let answer = self.look_at_named(named, platform.as_ref(), policy, &wanted).await;
                looking.end(answer.as_ref().err());
                response.image = Some(answer?);
            }
            Source::OciLayout(_) if chained => {
                return Err(Error::unsupported("attestations are looked up at registries, not in OCI layouts").into());
            }
            Source::OciLayout(layout) => {
                let platform = platform.unwrap_or_else(Platform::host);
                let found = self.resolve_layout(layout, &platform, &self.places).await?;
                response.image = Some(image_answer(layout.digest, &found, wanted.no_config)?);
            }
            Source::Git(_) | Source::Http(_) => {
                let name = source.identifier;
                let platform = platform.unwrap_or_else(Platform::host);
                self.look_at_fetched(&decoded, name, platform, details, &mut response).await?;
            }
            // Nothing is to be found out about these: that a blob is there is seen when it is fetched, as with BuildKit.
            Source::Local(_) | Source::Blob(_) => {}
        }
        Ok(response)
    }

    /// Finds out what an image is, and what its registry says about it, if that is asked for.
    async fn look_at_named(
        &self,
        named: &ImageSource,
        platform: Option<&Platform>,
        policy: Policy,
        wanted: &ResolveSourceImageRequest,
    ) -> Result<ResolveSourceImageResponse> {
        let images = &self.solver.deps().images;
        let mut named = named.clone();
        let mut attestation_chain = None;
        if wanted.attestation_chain || !wanted.resolve_attestations.is_empty() {
            let (host, kinds) = (Platform::host(), &wanted.resolve_attestations);
            let platform = platform.unwrap_or(&host);
            let chain = images.attested(&named.reference, platform, kinds, &self.registry).await?;
            // What is said is said about this one, whatever the name stands for later, or here.
            named.reference = chain.root.map_or(named.reference.clone(), |root| named.reference.with_digest(root));
            attestation_chain = Some(encoded(chain));
        }
        let found = images.resolve(&self.lease, &named.reference, platform, policy, &self.registry).await?;
        let found = check_image(&named, found)?;
        Ok(ResolveSourceImageResponse { attestation_chain, ..image_answer(digest(&found), &found, wanted.no_config)? })
    }

    /// Finds out what a repository or a file by HTTP is.
    async fn look_at_fetched(
        &self,
        source: &Source,
        name: String,
        platform: Platform,
        details: Details,
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
            Source::Git(git) => {
                let looked = job.look_at_repository(git, details.with_objects).await;
                looked.map_err(Failure::from).map(|answer| {
                    let GitAnswer { object, reference, commit, commit_object, tag_object } = answer;
                    response.git = Some(ResolveSourceGitResponse {
                        checksum: object,
                        r#ref: reference,
                        commit_checksum: commit,
                        commit_object,
                        tag_object,
                    });
                })
            }
            Source::Http(file) => {
                look_at_file(&job, id, file, details.checksum).await.map(|answer| response.http = Some(answer))
            }
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

fn image_answer(digest: Digest, found: &Resolved, no_config: bool) -> Result<ResolveSourceImageResponse> {
    let config = if no_config { Vec::new() } else { serde_json::to_vec(found.config.as_ref())? };
    Ok(ResolveSourceImageResponse { digest: digest.to_string(), config, attestation_chain: None })
}

/// Writes what is said about an image as clients read it.
fn encoded(chain: Chain) -> AttestationChain {
    let text = |digest: Option<Digest>| digest.map(|digest| digest.to_string()).unwrap_or_default();
    let blobs = chain.blobs.into_iter().map(|(described, data)| {
        let digest = described.digest.to_string();
        let descriptor = Descriptor {
            media_type: described.media_type,
            digest: digest.clone(),
            size: i64::try_from(described.size).unwrap_or(i64::MAX),
            annotations: described.annotations.into_iter().collect(),
        };
        (digest, Blob { descriptor: Some(descriptor), data: data.to_vec() })
    });
    AttestationChain {
        root: text(chain.root),
        image_manifest: text(chain.image),
        attestation_manifest: text(chain.attestation),
        signature_manifests: chain.signature.iter().map(ToString::to_string).collect(),
        blobs: blobs.collect(),
    }
}

/// What is asked about a source beyond what it is.
#[derive(Debug, Default)]
struct Details {
    with_objects: bool,
    checksum: Option<(Hash, Vec<u8>)>,
}

impl Details {
    fn of(git: Option<ResolveSourceGitRequest>, http: Option<ResolveSourceHttpRequest>) -> Result<Self> {
        let checksum = http.and_then(|http| http.checksum_request).map(|asked| {
            if asked.suffix.len() > MAX_SUFFIX {
                return Err(Error::invalid(format!("http checksum request suffix exceeds max size {MAX_SUFFIX}")));
            }
            let hash = match ChecksumAlgo::try_from(asked.algo) {
                Ok(ChecksumAlgo::Sha256) => Hash::Sha256,
                Ok(ChecksumAlgo::Sha384) => Hash::Sha384,
                Ok(ChecksumAlgo::Sha512) => Hash::Sha512,
                Err(_) => return Err(Error::unsupported(format!("unsupported checksum algorithm {}", asked.algo))),
            };
            Ok((hash, asked.suffix))
        });
        Ok(Self { with_objects: git.is_some_and(|git| git.return_object), checksum: checksum.transpose()? })
    }
}

/// Finds out what a file by HTTP is, and what it hashes to.
async fn look_at_file(
    job: &Arc<Job>,
    id: VertexId,
    file: &HttpSource,
    asked: Option<(Hash, Vec<u8>)>,
) -> Result<ResolveSourceHttpResponse, Failure> {
    let FileAnswer { digest, name, modified_s } = job.look_at_file(id, file).await?;
    let checksum_response = match asked {
        Some((hash, suffix)) => {
            let digest = job.hash_file(id, &name, hash, suffix.clone()).await?;
            Some(ChecksumResponse { digest, suffix })
        }
        None => None,
    };
    let last_modified = modified_s.map(|seconds| Timestamp { seconds, nanos: 0 });
    Ok(ResolveSourceHttpResponse { checksum: digest.to_string(), filename: name, last_modified, checksum_response })
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
