//! The service `moby.buildkit.v1.frontend.LLBBridge`: builds whose frontend is at the client.
//!
//! Each call names its build in the metadata. It may come before the build has begun, and waits for it.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use axum::Router;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use kiln_graph::Digest;
use tonic::{Request, Response, Status};

use super::super::serve::Executor;
use super::running::Builds;
use super::{attestation, capabilities, container, control, convert, exec};
use crate::engine::{Engine, WeakEngine};
use crate::error::{Error, Result as Outcomes};
use crate::solver::bridge::{Bridge, Findings, Outcome, Refs};
use crate::solver::gateway::Line;
use crate::solver::policy::Policy;
use crate::solver::progress::Warning;
use crate::task::{self, Tasks};
use crate::types::build::MAX_MESSAGE_BYTES;
use crate::types::build::frontend::llb_bridge_server::{LlbBridge, LlbBridgeServer};
use crate::types::build::frontend::{
    Attestations, CacheOptionsEntry, EvaluateRequest, EvaluateResponse, ExecMessage, FileRange, InputsRequest,
    InputsResponse, NewContainerRequest, NewContainerResponse, PingRequest, PongResponse, ReadDirRequest,
    ReadDirResponse, ReadFileRequest, ReadFileResponse, Ref, RefMap, ReleaseContainerRequest, ReleaseContainerResponse,
    ResolveImageConfigRequest, ResolveImageConfigResponse, ResolveSourceMetaRequest, ResolveSourceMetaResponse,
    Result as FrontendResult, ReturnRequest, ReturnResponse, SolveRequest, SolveResponse, StatFileRequest,
    StatFileResponse, WarnRequest, WarnResponse, result,
};
use crate::types::build::{google, pb, sourcepolicy};

/// The attribute of a frontend that names caches, as JSON.
const CACHE_IMPORTS: &str = "cache-imports";

/// Names the build of a call.
const BUILD: &str = "buildkit-controlapi-buildid";

/// The service.
#[derive(Clone, Debug)]
pub(super) struct Gateway {
    whose: Whose,
    /// Not held, for the engine holds this.
    engine: WeakEngine,
    tasks: Tasks,
}

/// Whose calls are served.
#[derive(Clone, Debug)]
enum Whose {
    /// Those of frontends at clients, which name their builds.
    Clients(Builds),
    /// Those of one frontend.
    Frontend(Arc<Bridge>),
}

impl Gateway {
    /// Makes the service for frontends at clients.
    pub(super) fn new(engine: &Engine, builds: Builds) -> Self {
        Self { whose: Whose::Clients(builds), engine: engine.downgrade(), tasks: engine.tasks().clone() }
    }

    /// Serves one frontend that runs here, until it hangs up.
    pub(super) async fn serve(self, bridge: Arc<Bridge>, line: Line) {
        let tasks = self.tasks.clone();
        let own = Self { whose: Whose::Frontend(bridge), ..self };
        let service = LlbBridgeServer::new(own).max_decoding_message_size(MAX_MESSAGE_BYTES);
        let router: Router<()> = Router::new()
            .route_service("/moby.buildkit.v1.frontend.LLBBridge/{method}", service)
            .fallback(super::unknown);
        let builder = hyper::server::conn::http2::Builder::new(Executor::new(tasks));
        // How the line ends is the frontend's business.
        let _ = builder.serve_connection(TokioIo::new(line), TowerToHyperService::new(router)).await;
    }

    /// Finds the build of a call.
    async fn bridge<T>(&self, request: &Request<T>) -> Result<Arc<Bridge>, Status> {
        let builds = match &self.whose {
            Whose::Clients(builds) => builds,
            Whose::Frontend(bridge) => return Ok(Arc::clone(bridge)),
        };
        let reference = request.metadata().get(BUILD).and_then(|value| value.to_str().ok());
        let reference =
            reference.ok_or_else(|| Status::invalid_argument(format!("the call names no build ({BUILD})")))?;
        builds.bridge(reference).await.map_err(|error| convert::refusal(&error))
    }
}

fn refuse<T>(outcome: Outcomes<T>) -> Result<T, Status> {
    outcome.map_err(|error| convert::refusal(&error))
}

/// Reads the policies of one call.
fn policies(policies: Vec<sourcepolicy::Policy>) -> Outcomes<Vec<Policy>> {
    policies.into_iter().map(Policy::read).collect()
}

/// Refuses what a call may ask for and nobody does yet.
fn check(request: &SolveRequest) -> Outcomes<()> {
    if request.exporter_attr.is_empty() {
        return Ok(());
    }
    Err(Error::unsupported("exporter attributes of frontends is not supported yet"))
}

/// Adds the caches a frontend names to those among its attributes.
fn add_imports(attrs: &mut BTreeMap<String, String>, imports: Vec<CacheOptionsEntry>) -> Outcomes<()> {
    if imports.is_empty() {
        return Ok(());
    }
    let known = attrs.get(CACHE_IMPORTS).filter(|text| !text.is_empty());
    let known: Option<Vec<serde_json::Value>> = known
        .map(|text| serde_json::from_str(text))
        .transpose()
        .map_err(|error| Error::invalid(format!("{CACHE_IMPORTS}: {error}")))?;
    let mut all = known.unwrap_or_default();
    all.extend(imports.into_iter().map(|entry| serde_json::json!({ "Type": entry.r#type, "Attrs": entry.attrs })));
    attrs.insert(CACHE_IMPORTS.to_owned(), serde_json::to_string(&all)?);
    Ok(())
}

/// Writes results; each has its definition, so that it can be an input of other builds.
fn to_wire(findings: Findings, bridge: &Bridge) -> Outcomes<FrontendResult> {
    let reference = |id: String| Ok::<_, Error>(Ref { def: bridge.definition(&id)?, id });
    let result = match findings.refs {
        Refs::None => None,
        Refs::One(id) => Some(result::Result::Ref(reference(id)?)),
        Refs::ByPlatform(refs) => {
            let refs = refs.into_iter().map(|(platform, id)| Ok((platform, reference(id)?)));
            Some(result::Result::Refs(RefMap { refs: refs.collect::<Outcomes<_>>()? }))
        }
    };
    let mut attestations = HashMap::new();
    for (platform, returned) in findings.attestations {
        let attestation = returned.into_iter().map(|one| {
            let holder = reference(one.result.clone())?;
            Ok(attestation::to_wire(one, holder))
        });
        attestations.insert(platform, Attestations { attestation: attestation.collect::<Outcomes<_>>()? });
    }
    Ok(FrontendResult { metadata: findings.metadata.into_iter().collect(), result, attestations })
}

fn from_wire(result: FrontendResult) -> Outcomes<Findings> {
    let attestations = result.attestations.into_iter().map(|(platform, Attestations { attestation })| {
        let returned = attestation.into_iter().map(attestation::from_wire);
        Ok((platform, returned.collect::<Outcomes<_>>()?))
    });
    let attestations = attestations.collect::<Outcomes<_>>()?;
    let refs = match result.result {
        None => Refs::None,
        Some(result::Result::RefDeprecated(id)) => Refs::One(id),
        Some(result::Result::RefsDeprecated(map)) => Refs::ByPlatform(map.refs.into_iter().collect()),
        Some(result::Result::Ref(Ref { id, .. })) => Refs::One(id),
        Some(result::Result::Refs(RefMap { refs })) => {
            Refs::ByPlatform(refs.into_iter().map(|(platform, reference)| (platform, reference.id)).collect())
        }
    };
    Ok(Findings { refs, metadata: result.metadata.into_iter().collect(), attestations })
}

/// The failure that a frontend reports, as it is passed on to whoever waits for the build.
fn reported(status: &google::rpc::Status) -> Status {
    let (code, message) = (tonic::Code::from(status.code), status.message.clone());
    Status::with_details(code, message, prost::Message::encode_to_vec(status).into())
}

fn warning(request: WarnRequest) -> Outcomes<Warning> {
    let line = |position: Option<pb::Position>| {
        position.and_then(|position| u32::try_from(position.line).ok()).filter(|line| *line > 0)
    };
    let lines = request.ranges.into_iter().filter_map(|range| {
        let first = line(range.start)?;
        Some((first, line(range.end).unwrap_or(first)))
    });
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ok(Warning {
        vertex: if request.digest.is_empty() { Digest::of(b"frontend") } else { request.digest.parse()? },
        short: text(&request.short),
        detail: request.detail.iter().map(|line| text(line)).collect(),
        url: request.url,
        file: request.info.map(|info| (info.filename, text(&info.data))),
        lines: lines.collect(),
    })
}

/// Reads which part of a file is wanted: where it begins, and how long it is at most.
fn range(range: Option<FileRange>) -> Result<(u64, Option<u64>), Status> {
    let Some(FileRange { offset, length }) = range else { return Ok((0, None)) };
    let number = |number: i64| u64::try_from(number).map_err(|_| Status::invalid_argument("a negative range"));
    Ok((number(offset)?, Some(number(length)?)))
}

/// Reads which mount of a container is meant.
fn position(index: i32) -> Result<usize, Status> {
    usize::try_from(index).map_err(|_| Status::invalid_argument("a negative MountIndex"))
}

#[tonic::async_trait]
impl LlbBridge for Gateway {
    type ExecProcessStream = exec::Answers;

    async fn ping(&self, request: Request<PingRequest>) -> Result<Response<PongResponse>, Status> {
        self.bridge(&request).await?;
        let engine = self.engine.upgrade().ok_or_else(|| Status::unavailable("the engine has stopped"))?;
        let worker = task::blocking(move || Ok(control::worker(&engine))).await;
        let workers = vec![worker.map_err(|error| convert::refusal(&error))?];
        let (frontend_api_caps, llb_caps) = (capabilities::of_frontends(), capabilities::of_llb());
        Ok(Response::new(PongResponse { frontend_api_caps, llb_caps, workers }))
    }

    async fn resolve_image_config(
        &self,
        request: Request<ResolveImageConfigRequest>,
    ) -> Result<Response<ResolveImageConfigResponse>, Status> {
        let bridge = self.bridge(&request).await?;
        let mut request = request.into_inner();
        let policies = refuse(policies(std::mem::take(&mut request.source_policies)))?;
        let answer = Box::pin(bridge.resolve_image(request, policies)).await;
        answer.map(Response::new).map_err(|failure| convert::failure_of_part(&failure))
    }

    async fn resolve_source_meta(
        &self,
        request: Request<ResolveSourceMetaRequest>,
    ) -> Result<Response<ResolveSourceMetaResponse>, Status> {
        let bridge = self.bridge(&request).await?;
        let mut request = request.into_inner();
        let policies = refuse(policies(std::mem::take(&mut request.source_policies)))?;
        let answer = Box::pin(bridge.resolve_source(request, policies)).await;
        answer.map(Response::new).map_err(|failure| convert::failure_of_part(&failure))
    }

    async fn solve(&self, request: Request<SolveRequest>) -> Result<Response<SolveResponse>, Status> {
        let bridge = self.bridge(&request).await?;
        let request = request.into_inner();
        refuse(check(&request))?;
        let policies = refuse(policies(request.source_policies))?;
        let mut attrs: BTreeMap<String, String> = request.frontend_opt.into_iter().collect();
        refuse(add_imports(&mut attrs, request.cache_imports))?;
        let definition = request.definition.filter(|definition| !definition.def.is_empty());
        let findings = match (definition, request.frontend.as_str()) {
            (None, "") => Findings::default(),
            (Some(_), frontend) if !frontend.is_empty() => {
                return Err(Status::invalid_argument("cannot solve with both Definition and Frontend specified"));
            }
            (Some(definition), _) => {
                let solved = Box::pin(bridge.solve_definition(&Arc::new(definition), policies)).await;
                solved.map_err(|failure| convert::failure_of_part(&failure))?
            }
            (None, frontend) => {
                let inputs = request.frontend_inputs.into_iter();
                let inputs = inputs.map(|(name, input)| (name, Arc::new(input))).collect();
                let solved = Box::pin(bridge.solve(frontend, &attrs, inputs, policies)).await;
                solved.map_err(|failure| convert::failure_of_part(&failure))?
            }
        };
        if request.evaluate {
            let names: Vec<String> = match &findings.refs {
                Refs::None => Vec::new(),
                Refs::One(name) => vec![name.clone()],
                Refs::ByPlatform(names) => names.values().cloned().collect(),
            };
            for name in names {
                Box::pin(bridge.evaluate(&name)).await.map_err(|failure| convert::failure_of_part(&failure))?;
            }
        }
        Ok(Response::new(SolveResponse { r#ref: String::new(), result: Some(refuse(to_wire(findings, &bridge))?) }))
    }

    async fn evaluate(&self, request: Request<EvaluateRequest>) -> Result<Response<EvaluateResponse>, Status> {
        let bridge = self.bridge(&request).await?;
        let evaluated = Box::pin(bridge.evaluate(&request.into_inner().r#ref)).await;
        evaluated.map_err(|failure| convert::failure_of_part(&failure))?;
        Ok(Response::new(EvaluateResponse {}))
    }

    async fn read_file(&self, request: Request<ReadFileRequest>) -> Result<Response<ReadFileResponse>, Status> {
        let bridge = self.bridge(&request).await?;
        let request = request.into_inner();
        let (offset, length) = range(request.range)?;
        let read = Box::pin(bridge.read_file(&request.r#ref, &request.file_path, offset, length)).await;
        let data = read.map_err(|failure| convert::failure_of_part(&failure))?;
        Ok(Response::new(ReadFileResponse { data }))
    }

    async fn read_dir(&self, request: Request<ReadDirRequest>) -> Result<Response<ReadDirResponse>, Status> {
        let bridge = self.bridge(&request).await?;
        let request = request.into_inner();
        let read = Box::pin(bridge.read_dir(&request.r#ref, &request.dir_path, &request.include_pattern)).await;
        let entries = read.map_err(|failure| convert::failure_of_part(&failure))?;
        Ok(Response::new(ReadDirResponse { entries: entries.iter().map(crate::solver::bridge::stat).collect() }))
    }

    async fn stat_file(&self, request: Request<StatFileRequest>) -> Result<Response<StatFileResponse>, Status> {
        let bridge = self.bridge(&request).await?;
        let request = request.into_inner();
        let read = Box::pin(bridge.stat_file(&request.r#ref, &request.path)).await;
        let entry = read.map_err(|failure| convert::failure_of_part(&failure))?;
        Ok(Response::new(StatFileResponse { stat: Some(crate::solver::bridge::stat(&entry)) }))
    }

    async fn r#return(&self, request: Request<ReturnRequest>) -> Result<Response<ReturnResponse>, Status> {
        let bridge = self.bridge(&request).await?;
        let request = request.into_inner();
        let outcome = match request.error {
            Some(status) if status.code != 0 => Outcome::Failed(reported(&status)),
            _ => Outcome::Result(refuse(from_wire(request.result.unwrap_or_default()))?),
        };
        refuse(bridge.answer(outcome))?;
        Ok(Response::new(ReturnResponse {}))
    }

    async fn inputs(&self, request: Request<InputsRequest>) -> Result<Response<InputsResponse>, Status> {
        let bridge = self.bridge(&request).await?;
        let definitions = bridge.inputs().iter().map(|(name, input)| (name.clone(), input.as_ref().clone())).collect();
        Ok(Response::new(InputsResponse { definitions }))
    }

    async fn warn(&self, request: Request<WarnRequest>) -> Result<Response<WarnResponse>, Status> {
        let bridge = self.bridge(&request).await?;
        bridge.warn(refuse(warning(request.into_inner()))?);
        Ok(Response::new(WarnResponse {}))
    }

    async fn new_container(
        &self,
        request: Request<NewContainerRequest>,
    ) -> Result<Response<NewContainerResponse>, Status> {
        let bridge = self.bridge(&request).await?;
        let request = request.into_inner();
        let id = request.container_id.clone();
        let asked = refuse(container::request(request))?;
        let made = Box::pin(bridge.new_container(&id, asked)).await;
        made.map_err(|failure| convert::failure_of_part(&failure))?;
        Ok(Response::new(NewContainerResponse {}))
    }

    async fn release_container(
        &self,
        request: Request<ReleaseContainerRequest>,
    ) -> Result<Response<ReleaseContainerResponse>, Status> {
        let bridge = self.bridge(&request).await?;
        refuse(bridge.release_container(&request.into_inner().container_id).await)?;
        Ok(Response::new(ReleaseContainerResponse {}))
    }

    async fn exec_process(
        &self,
        request: Request<tonic::Streaming<ExecMessage>>,
    ) -> Result<Response<Self::ExecProcessStream>, Status> {
        let bridge = Arc::downgrade(&self.bridge(&request).await?);
        Ok(Response::new(exec::serve(bridge, request.into_inner(), &self.tasks)))
    }

    async fn read_file_container(
        &self,
        request: Request<ReadFileRequest>,
    ) -> Result<Response<ReadFileResponse>, Status> {
        let bridge = self.bridge(&request).await?;
        let request = request.into_inner();
        let (offset, length) = range(request.range)?;
        let mount = position(request.mount_index)?;
        let container = refuse(bridge.container(&request.r#ref))?;
        let data = refuse(container.read_file(mount, request.file_path, offset, length).await)?;
        Ok(Response::new(ReadFileResponse { data }))
    }

    async fn read_dir_container(&self, request: Request<ReadDirRequest>) -> Result<Response<ReadDirResponse>, Status> {
        let bridge = self.bridge(&request).await?;
        let request = request.into_inner();
        let mount = position(request.mount_index)?;
        let container = refuse(bridge.container(&request.r#ref))?;
        let entries = refuse(container.read_dir(mount, request.dir_path, request.include_pattern).await)?;
        Ok(Response::new(ReadDirResponse { entries: entries.iter().map(crate::solver::bridge::stat).collect() }))
    }

    async fn stat_file_container(
        &self,
        request: Request<StatFileRequest>,
    ) -> Result<Response<StatFileResponse>, Status> {
        let bridge = self.bridge(&request).await?;
        let request = request.into_inner();
        let mount = position(request.mount_index)?;
        let container = refuse(bridge.container(&request.r#ref))?;
        let entry = refuse(container.stat_file(mount, request.path).await)?;
        Ok(Response::new(StatFileResponse { stat: Some(crate::solver::bridge::stat(&entry)) }))
    }
}
