//! A frontend at a daemon's client, which speaks as buildx does.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::Arc;

use kiln::client::{Client, Dialer, Offer, Session};
use kiln::types::build::control_client::ControlClient;
use kiln::types::build::frontend::llb_bridge_client::LlbBridgeClient;
use kiln::types::build::frontend::{self, Ref, ReturnRequest, result};
use kiln::types::build::{Exporter, SolveRequest, SolveResponse};
use tonic::transport::Channel;

use super::Daemon;

/// A client with a session that offers the daemon's scratch directory as buildx does, and a build that waits for its frontend.
pub struct Frontend {
    pub bridge: LlbBridgeClient<Channel>,
    pub control: ControlClient<Channel>,
    pub reference: String,
    pub session: String,
    _open: Session,
}

impl Frontend {
    /// Opens the session and reaches the services.
    pub async fn open(daemon: &Daemon, name: &str) -> Self {
        Self::open_with(daemon, name, Offer::new(Arc::new(|_| Ok(None)), Arc::new(|_| Ok(None)))).await
    }

    /// Opens the session with what it offers besides.
    pub async fn open_with(daemon: &Daemon, name: &str, none: Offer) -> Self {
        let client = Client::new(Dialer::new(daemon.host.parse().expect("a host")).expect("a dialer"));
        let scratch: PathBuf = daemon.kiln.scratch();
        let names = ["context", "dockerfile"];
        let dirs: BTreeMap<_, _> = names.iter().map(|name| ((*name).to_owned(), scratch.clone())).collect();
        let session = format!("session-{name}");
        let open =
            client.session(&session, Offer { dirs, shared_key: "key".into(), ..none }).await.expect("open a session");
        let channel = client.grpc().await.expect("reach the build service");
        let (bridge, control) = (LlbBridgeClient::new(channel.clone()), ControlClient::new(channel));
        Self { bridge, control, reference: name.to_owned(), session, _open: open }
    }

    /// Names the build of a call.
    pub fn call<T>(&self, message: T) -> tonic::Request<T> {
        let mut request = tonic::Request::new(message);
        request
            .metadata_mut()
            .insert("buildkit-controlapi-buildid", self.reference.parse().expect("a name of letters"));
        request
    }

    /// Begins the build.
    pub fn begin(&self, image: &str) -> tokio::task::JoinHandle<Result<SolveResponse, tonic::Status>> {
        let attrs = HashMap::from([("name".to_owned(), image.to_owned())]);
        let request = SolveRequest {
            r#ref: self.reference.clone(),
            session: self.session.clone(),
            exporters: vec![Exporter { r#type: "image".into(), attrs }],
            ..SolveRequest::default()
        };
        let mut control = self.control.clone();
        tokio::spawn(async move { control.solve(request).await.map(tonic::Response::into_inner) })
    }

    /// Has the Dockerfile lowered.
    pub async fn solve(&mut self) -> Result<frontend::Result, tonic::Status> {
        let request = frontend::SolveRequest { frontend: "dockerfile.v0".into(), ..frontend::SolveRequest::default() };
        let request = self.call(request);
        Ok(self.bridge.solve(request).await?.into_inner().result.unwrap_or_default())
    }

    /// Returns a result.
    pub async fn answer(&mut self, result: frontend::Result) {
        let request = self.call(ReturnRequest { result: Some(result), error: None });
        self.bridge.r#return(request).await.expect("return a result");
    }
}

/// Returns the one result.
pub fn reference(result: &frontend::Result) -> String {
    match &result.result {
        Some(result::Result::Ref(Ref { id, .. })) => id.clone(),
        other => panic!("expected one result, got {other:?}"),
    }
}
