//! The service `moby.buildkit.v1.Control`.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{Stream, StreamExt as _, TryStreamExt as _, stream};
use kiln_graph::Platform;
use tonic::{Request, Response, Status, Streaming};

use super::running::{Builds, Running, Watching};
use super::trace::{Parent, Traces, Tracing};
use super::{convert, history, session};
use crate::api::serve::Peer;
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::solver::bridge::Outcome;
use crate::solver::gc::Limits;
use crate::solver::{BuildRequest, Built, CacheKind, CacheRecord, PruneFilter, Solver};
use crate::task;
use crate::types::build::control_server;
use crate::types::build::types::{BuildkitVersion, CdiDevice, WorkerRecord};
use crate::types::build::{
    BuildHistoryEvent, BuildHistoryRequest, BytesMessage, DiskUsageRequest, DiskUsageResponse, InfoRequest,
    InfoResponse, ListWorkersRequest, ListWorkersResponse, PruneRequest, SolveRequest, SolveResponse, StatusRequest,
    StatusResponse, UpdateBuildHistoryRequest, UpdateBuildHistoryResponse, UsageRecord, pb,
};

/// The service. It holds the builds of its engine.
#[derive(Debug)]
pub(super) struct Control {
    engine: Engine,
    builds: Builds,
    traces: Traces,
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

impl Control {
    /// Makes the service of an engine.
    pub(super) fn new(engine: Engine, builds: Builds, traces: Traces) -> Self {
        Self { engine, builds, traces }
    }

    async fn build(&self, request: SolveRequest, peer: Peer, parent: Option<Parent>) -> Result<SolveResponse, Status> {
        let reference = request.r#ref.clone();
        let request = convert::build_request(request, peer).map_err(|error| convert::refusal(&error))?;
        let running = self.builds.begin(&reference).map_err(|error| convert::refusal(&error))?;
        let recording = history::record(&self.engine, &request, &reference, running.progress());
        let parent = parent.filter(|_| recording.is_some());
        let tracing = parent.map(|parent| self.traces.begin(&reference, parent, running.progress()));
        // Dropping this future, when the client goes, cancels the build and ends its report.
        let built = Box::pin(self.make(request, &running)).await;
        drop(running);
        history::end(recording, built.as_ref()).await;
        tracing.into_iter().for_each(Tracing::end);
        built.map(|built| SolveResponse { exporter_response: built.response.into_iter().collect() })
    }

    async fn make(&self, request: BuildRequest, running: &Running) -> Result<Built, Status> {
        if request.frontend.is_empty() && request.definition.is_none() {
            return self.follow(request, running).await;
        }
        running.without_bridge();
        let built = Box::pin(self.engine.solver().build(request, running.progress().clone())).await;
        built.map_err(|failure| convert::failure(&failure))
    }
}

impl Control {
    /// Runs a build whose frontend is at the client, until that has returned and its result is exported.
    async fn follow(&self, request: BuildRequest, running: &Running) -> Result<Built, Status> {
        let opened = self.engine.solver().bridge(request, running.progress().clone()).await;
        let (bridge, outcome) = opened.map_err(|error| convert::refusal(&error))?;
        let bridge = Arc::new(bridge);
        running.with_bridge(&bridge);
        let exported = match outcome.await {
            Ok(Outcome::Result(findings)) => {
                Box::pin(bridge.export(&findings)).await.map_err(|failure| convert::failure_of_part(&failure))
            }
            Ok(Outcome::Failed(status)) => Err(status),
            Err(_) => Err(Status::aborted("the frontend has gone")),
        };
        let finished = bridge.finish().await.map_err(|error| convert::refusal(&error));
        let built = exported?;
        finished?;
        Ok(built)
    }
}

/// Writes the reports of a build until it ends.
fn statuses(watching: Watching) -> Answers<StatusResponse> {
    let batches = stream::try_unfold(watching, |mut watching| async {
        match watching.next().await {
            Ok(Some(events)) => Ok(Some((stream::iter(convert::responses(events)).map(Ok), watching))),
            Ok(None) => Ok(None),
            Err(error) => Err(convert::refusal(&error)),
        }
    });
    Box::pin(batches.try_flatten())
}

#[tonic::async_trait]
impl control_server::Control for Control {
    type PruneStream = Answers<UsageRecord>;
    type StatusStream = Answers<StatusResponse>;
    type SessionStream = Answers<BytesMessage>;
    type ListenBuildHistoryStream = Answers<BuildHistoryEvent>;

    async fn solve(&self, request: Request<SolveRequest>) -> Result<Response<SolveResponse>, Status> {
        let peer = request.extensions().get::<Peer>().copied().unwrap_or(Peer::Client);
        let parent = Parent::of(request.metadata());
        self.build(request.into_inner(), peer, parent).await.map(Response::new)
    }

    async fn status(&self, request: Request<StatusRequest>) -> Result<Response<Self::StatusStream>, Status> {
        let reference = request.into_inner().r#ref;
        if !self.builds.knows(&reference) {
            let replayed = history::replay(self.engine.history(), &reference).await;
            if let Some(replayed) = replayed.map_err(|error| convert::refusal(&error))? {
                return Ok(Response::new(replayed));
            }
        }
        Ok(Response::new(statuses(self.builds.watch(&reference))))
    }

    async fn list_workers(&self, _: Request<ListWorkersRequest>) -> Result<Response<ListWorkersResponse>, Status> {
        let engine = self.engine.clone();
        let worker = task::blocking(move || Ok(worker(&engine)));
        let worker = worker.await.map_err(|error| convert::refusal(&error))?;
        Ok(Response::new(ListWorkersResponse { record: vec![worker] }))
    }

    async fn info(&self, _: Request<InfoRequest>) -> Result<Response<InfoResponse>, Status> {
        Ok(Response::new(InfoResponse { buildkit_version: Some(version()) }))
    }

    async fn disk_usage(&self, request: Request<DiskUsageRequest>) -> Result<Response<DiskUsageResponse>, Status> {
        let request = request.into_inner();
        let select = Selection::parse(&request.filter, request.age_limit).map_err(|error| convert::refusal(&error))?;
        let solver = self.engine.solver().clone();
        let records = task::blocking(move || solver.usage()).await.map_err(|error| convert::refusal(&error))?;
        let now_ns = self.engine.clock().now_ns();
        let records = records.into_iter().filter(|record| select.takes(record, now_ns));
        Ok(Response::new(DiskUsageResponse { record: records.map(convert::usage).collect() }))
    }

    async fn prune(&self, request: Request<PruneRequest>) -> Result<Response<Self::PruneStream>, Status> {
        let request = request.into_inner();
        let engine = self.engine.clone();
        let pruned = task::blocking(move || {
            let pruned = prune(engine.solver(), &request)?;
            if !pruned.is_empty() {
                engine.collect()?;
            }
            Ok(pruned)
        })
        .await;
        let pruned = pruned.map_err(|error| convert::refusal(&error))?;
        Ok(Response::new(Box::pin(stream::iter(pruned).map(|record| Ok(convert::usage(record))))))
    }

    async fn session(
        &self,
        request: Request<Streaming<BytesMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let sent = session::over_messages(&self.engine, request).map_err(|error| convert::refusal(&error))?;
        Ok(Response::new(Box::pin(sent)))
    }

    async fn listen_build_history(
        &self,
        request: Request<BuildHistoryRequest>,
    ) -> Result<Response<Self::ListenBuildHistoryStream>, Status> {
        let (history, now_ns) = (self.engine.history().clone(), self.engine.clock().now_ns());
        let events = history::listen(history, request.into_inner(), now_ns);
        Ok(Response::new(events.map_err(|error| convert::refusal(&error))?))
    }

    async fn update_build_history(
        &self,
        request: Request<UpdateBuildHistoryRequest>,
    ) -> Result<Response<UpdateBuildHistoryResponse>, Status> {
        let updated = history::update(self.engine.history().clone(), &self.traces, request.into_inner()).await;
        updated.map_err(|error| convert::refusal(&error))?;
        Ok(Response::new(UpdateBuildHistoryResponse {}))
    }
}

fn version() -> BuildkitVersion {
    BuildkitVersion {
        package: "kiln".to_owned(),
        version: concat!("v", env!("CARGO_PKG_VERSION")).to_owned(),
        revision: String::new(),
    }
}

/// Describes the one worker there is. Blocking.
pub(super) fn worker(engine: &Engine) -> WorkerRecord {
    let solver = engine.solver();
    let hostname = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let label = |name: &str, value: &str| (format!("org.mobyproject.buildkit.worker.{name}"), value.to_owned());
    let platform = |platform: Platform| pb::Platform {
        architecture: platform.architecture,
        os: platform.os,
        variant: platform.variant,
        ..pb::Platform::default()
    };
    // Builds name the specification that cannot be read.
    let devices = solver.devices().unwrap_or_default();
    let device = |(name, auto_allow)| CdiDevice { name, auto_allow, ..CdiDevice::default() };
    let mut labels: HashMap<String, String> = engine.config().builder.labels.clone().into_iter().collect();
    labels.extend([
        label("executor", "kiln"),
        label("hostname", &hostname),
        label("network", "bridge"),
        label("oci.process-mode", "sandbox"),
        // Tells buildx's docker driver that images of several platforms, archives and caches can be made here.
        label("snapshotter", engine.store().driver().as_str()),
        label("selinux.enabled", "false"),
    ]);
    // What `--add-host NAME:host-gateway` of that driver stands for.
    let bridge = engine.network().inspect("bridge").ok().and_then(|network| network.bridge);
    labels.extend(bridge.map(|bridge| label("moby.host-gateway-ip", &bridge.gateway.to_string())));
    WorkerRecord {
        id: "kiln".to_owned(),
        labels,
        platforms: solver.platforms().into_iter().map(platform).collect(),
        gc_policy: engine.policies().iter().map(convert::policy).collect(),
        buildkit_version: Some(version()),
        cdi_devices: devices.into_iter().map(device).collect(),
    }
}

/// Which records of the build cache are meant.
#[derive(Debug, Default, PartialEq, Eq)]
struct Selection {
    ids: Vec<String>,
    kinds: Vec<CacheKind>,
    unused_for: Option<Duration>,
}

impl Selection {
    /// Reads filters as `id=..` and `type=..`, with one or two equal signs or `~=`; an age is in nanoseconds.
    fn parse(filters: &[String], age_ns: i64) -> Result<Self> {
        let mut selection = Self::default();
        // buildx sends an empty filter when its user gave none.
        for filter in filters.iter().flat_map(|filter| filter.split(',')).filter(|filter| !filter.is_empty()) {
            let Some((key, value)) = filter.split_once('=') else {
                return Err(Error::invalid(format!("invalid filter {filter:?}: expected key=value")));
            };
            let (key, value) = (key.trim_end_matches('~'), value.trim_start_matches('='));
            match (key, value) {
                ("id", id) => selection.ids.push(id.to_owned()),
                ("type", kind) => selection.kinds.push(CacheKind::parse(kind)?),
                _ => return Err(Error::unsupported(format!("the build cache cannot be filtered by {key:?}"))),
            }
        }
        let age = u64::try_from(age_ns).ok().filter(|age| *age > 0);
        selection.unused_for = age.map(Duration::from_nanos);
        Ok(selection)
    }

    fn takes(&self, record: &CacheRecord, now_ns: i64) -> bool {
        let unused = now_ns.saturating_sub(record.used_ns);
        let old = self.unused_for.is_none_or(|age| u128::try_from(unused).is_ok_and(|unused| unused >= age.as_nanos()));
        let id = self.ids.is_empty() || self.ids.iter().any(|id| record.id.starts_with(id));
        old && id && (self.kinds.is_empty() || self.kinds.contains(&record.kind))
    }
}

/// Forgets what a request selects: without `all`, only what no image needs.
fn prune(solver: &Solver, request: &PruneRequest) -> Result<Vec<CacheRecord>> {
    let selection = Selection::parse(&request.filter, request.keep_duration)?;
    let bytes = |value: i64| u64::try_from(value).unwrap_or(0);
    let filter = PruneFilter {
        all: request.all,
        ids: selection.ids,
        kinds: selection.kinds,
        unused_for: selection.unused_for,
        limits: Limits {
            reserved: bytes(request.reserved_space),
            max_used: bytes(request.max_used_space),
            min_free: bytes(request.min_free_space),
        },
    };
    solver.prune(&filter)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(id: &str, kind: CacheKind, used_ns: i64) -> CacheRecord {
        CacheRecord {
            id: id.to_owned(),
            kind,
            description: String::new(),
            size_bytes: 1,
            created_ns: 0,
            used_ns,
            uses: 1,
            in_use: false,
            shared: false,
        }
    }

    fn select(filters: &[&str], age_ns: i64) -> Result<Selection> {
        Selection::parse(&filters.iter().map(|&filter| filter.to_owned()).collect::<Vec<_>>(), age_ns)
    }

    #[test]
    fn filters_select_by_id_type_and_age() {
        let mount = record("abc", CacheKind::CacheMount, 50);
        assert!(select(&["type==exec.cachemount"], 0).unwrap().takes(&mount, 100));
        assert!(!select(&["type=regular"], 0).unwrap().takes(&mount, 100));
        assert!(select(&["id~=ab"], 50).unwrap().takes(&mount, 100));
        assert!(select(&[""], 0).unwrap().takes(&mount, 100));
        assert!(!select(&["id=b"], 0).unwrap().takes(&mount, 100));
        assert!(!select(&[], 51).unwrap().takes(&mount, 100));
    }

    #[test]
    fn unknown_filters_are_refused_by_name() {
        for (filter, word) in [("parents=x", "parents"), ("type=source.git", "source.git"), ("mutable", "mutable")] {
            assert!(select(&[filter], 0).unwrap_err().to_string().contains(word));
        }
    }
}
