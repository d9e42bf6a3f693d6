//! Calls of the build service, `moby.buildkit.v1.Control`.

use futures_util::{Stream, TryStreamExt as _, stream};
use tonic::Status;
use tonic::transport::Channel;

use super::http::Client;
use crate::error::{Error, Kind, Result};
use crate::types::build::control_client::ControlClient;
use crate::types::build::{
    Detail, DiskUsageRequest, MAX_MESSAGE_BYTES, PruneRequest, SolveRequest, SolveResponse, StatusRequest,
    StatusResponse, UsageRecord, decode_details,
};

/// A client of an engine's build service. Cloning gives another handle to the same connection.
#[derive(Clone, Debug)]
pub struct Builder {
    control: ControlClient<Channel>,
}

/// Why a build failed, and where.
#[derive(Debug)]
pub struct Refused {
    /// What went wrong.
    pub error: Error,
    /// The step and the places in the sources.
    pub details: Vec<Detail>,
}

impl Client {
    /// Opens a connection to the engine's build service.
    ///
    /// # Errors
    /// `Unavailable` when the engine does not answer; `Unsupported` when it has no build service.
    pub async fn builder(&self) -> Result<Builder> {
        let control = ControlClient::new(self.grpc().await?);
        Ok(Builder { control: control.max_decoding_message_size(MAX_MESSAGE_BYTES) })
    }
}

impl Builder {
    /// Builds; dropping the future cancels the build.
    ///
    /// # Errors
    /// Why the engine refused or the build failed.
    pub async fn solve(&self, request: SolveRequest) -> Result<SolveResponse, Refused> {
        let answer = self.control.clone().solve(request).await;
        answer
            .map(tonic::Response::into_inner)
            .map_err(|status| Refused { error: from_status(&status), details: decode_details(status.details()) })
    }

    /// Follows the reports of a build, which may be still to come, until it ends.
    pub fn status(&self, reference: &str) -> impl Stream<Item = Result<StatusResponse>> + Send + use<> {
        let request = StatusRequest { r#ref: reference.to_owned() };
        let mut control = self.control.clone();
        // BuildKit answers at all only when it has something to report.
        let opened = stream::once(async move { control.status(request).await.map(tonic::Response::into_inner) });
        opened.try_flatten().map_err(|status| from_status(&status))
    }

    /// Lists the build cache.
    ///
    /// # Errors
    /// What the engine answered.
    pub async fn disk_usage(&self, request: DiskUsageRequest) -> Result<Vec<UsageRecord>> {
        let answer = self.control.clone().disk_usage(request).await.map_err(|status| from_status(&status))?;
        Ok(answer.into_inner().record)
    }

    /// Removes records of the build cache; calls `each` with every one.
    ///
    /// # Errors
    /// What the engine answered.
    pub async fn prune(&self, request: PruneRequest, mut each: impl FnMut(UsageRecord)) -> Result<()> {
        let stream = self.control.clone().prune(request).await.map_err(|status| from_status(&status))?;
        let mut stream = stream.into_inner();
        while let Some(record) = stream.message().await.map_err(|status| from_status(&status))? {
            each(record);
        }
        Ok(())
    }
}

/// Turns what the engine answered, or what became of the connection, into an error.
fn from_status(status: &Status) -> Error {
    let broken = std::error::Error::source(status).is_some();
    if broken && matches!(status.code(), tonic::Code::Unknown | tonic::Code::Unavailable | tonic::Code::Cancelled) {
        return Error::unavailable("the connection to the engine broke");
    }
    Error::new(Kind::from_grpc(status.code().into()), status.message())
}
