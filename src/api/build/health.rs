//! The service `grpc.health.v1.Health`: whoever gets an answer knows that the engine serves.

use std::collections::HashMap;

use futures_util::StreamExt as _;
use futures_util::stream::{self, BoxStream};
use tonic::{Request, Response, Status};

use crate::types::build::health::health_check_response::ServingStatus;
use crate::types::build::health::health_server::Health;
use crate::types::build::health::{HealthCheckRequest, HealthCheckResponse, HealthListRequest, HealthListResponse};

/// The services that can be asked about besides the engine as a whole.
const SERVICES: &[&str] = &["", "moby.buildkit.v1.Control", "moby.buildkit.v1.frontend.LLBBridge"];

/// Answers as long as the engine does.
#[derive(Clone, Copy, Debug)]
pub(super) struct Alive;

fn serving() -> HealthCheckResponse {
    HealthCheckResponse { status: ServingStatus::Serving.into() }
}

#[tonic::async_trait]
impl Health for Alive {
    type WatchStream = BoxStream<'static, Result<HealthCheckResponse, Status>>;

    async fn check(&self, request: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>, Status> {
        let service = request.into_inner().service;
        if !SERVICES.contains(&service.as_str()) {
            return Err(Status::not_found(format!("unknown service {service}")));
        }
        Ok(Response::new(serving()))
    }

    async fn list(&self, _: Request<HealthListRequest>) -> Result<Response<HealthListResponse>, Status> {
        let statuses: HashMap<String, HealthCheckResponse> =
            SERVICES.iter().map(|service| ((*service).to_owned(), serving())).collect();
        Ok(Response::new(HealthListResponse { statuses }))
    }

    async fn watch(&self, request: Request<HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let known = SERVICES.contains(&request.into_inner().service.as_str());
        let status =
            if known { serving() } else { HealthCheckResponse { status: ServingStatus::ServiceUnknown.into() } };
        // It changes with the end of the connection only.
        Ok(Response::new(stream::once(async move { Ok(status) }).chain(stream::pending()).boxed()))
    }
}
