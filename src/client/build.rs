//! Calls of the build service, `moby.buildkit.v1.Control`.

use futures_util::{Stream, TryStreamExt as _, stream};
use tonic::Status;
use tonic::transport::Channel;
use tonic_prost::ProstCodec;

use super::http::Client;
use crate::error::{Error, Kind, Result};
use crate::types::build::control_client::ControlClient;
use crate::types::build::{
    BuildHistoryRecord, BuildHistoryRequest, Detail, DiskUsageRequest, MAX_MESSAGE_BYTES, PruneRequest, SolveRequest,
    SolveResponse, StatusRequest, StatusResponse, UpdateBuildHistoryRequest, UsageRecord, decode_details,
};
use crate::wire::content::{READ, ReadContentRequest, ReadContentResponse};

/// A client of an engine's build service. Cloning gives another handle to the same connection.
#[derive(Clone, Debug)]
pub struct Builder {
    control: ControlClient<Channel>,
    channel: Channel,
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
        let channel = self.grpc().await?;
        let control = ControlClient::new(channel.clone());
        Ok(Builder { control: control.max_decoding_message_size(MAX_MESSAGE_BYTES), channel })
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

    /// Lists what the history has of builds, and returns at once.
    ///
    /// # Errors
    /// What the engine answered.
    pub async fn history(&self, request: BuildHistoryRequest) -> Result<Vec<BuildHistoryRecord>> {
        let request = BuildHistoryRequest { early_exit: true, ..request };
        let stream = self.control.clone().listen_build_history(request).await;
        let mut stream = stream.map_err(|status| from_status(&status))?.into_inner();
        let mut records = Vec::new();
        while let Some(event) = stream.message().await.map_err(|status| from_status(&status))? {
            records.extend(event.record);
        }
        Ok(records)
    }

    /// Changes or removes a record of the history.
    ///
    /// # Errors
    /// What the engine answered.
    pub async fn update_history(&self, request: UpdateBuildHistoryRequest) -> Result<()> {
        let answer = self.control.clone().update_build_history(request).await;
        answer.map(drop).map_err(|status| from_status(&status))
    }

    /// Reads content of the history, or of the store.
    ///
    /// # Errors
    /// What the engine answered; `InvalidArgument` for more than `max_bytes`.
    pub async fn content(&self, digest: &str, max_bytes: usize) -> Result<Vec<u8>> {
        let mut grpc = tonic::client::Grpc::new(self.channel.clone()).max_decoding_message_size(MAX_MESSAGE_BYTES);
        grpc.ready()
            .await
            .map_err(|error| Error::unavailable("reach the engine's build service").with_source(error))?;
        let codec: ProstCodec<ReadContentRequest, ReadContentResponse> = ProstCodec::default();
        let request = ReadContentRequest { digest: digest.to_owned(), ..ReadContentRequest::default() };
        let path = http::uri::PathAndQuery::from_static(READ);
        let stream = grpc.server_streaming(tonic::Request::new(request), path, codec).await;
        let mut stream = stream.map_err(|status| from_status(&status))?.into_inner();
        let mut bytes = Vec::new();
        while let Some(piece) = stream.message().await.map_err(|status| from_status(&status))? {
            bytes.extend(piece.data);
            if bytes.len() > max_bytes {
                return Err(Error::invalid(format!("{digest} is larger than {} MiB", max_bytes >> 20)));
            }
        }
        Ok(bytes)
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
