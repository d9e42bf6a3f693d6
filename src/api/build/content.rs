//! The service `containerd.services.content.v1.Content`: what the history of builds and the store hold, for reading.

use std::io::{Read as _, Seek as _, SeekFrom};

use axum::Router;
use axum::body::Body;
use axum::http::{Request as HttpRequest, Response as HttpResponse};
use axum::routing::post;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::{self, BoxStream};
use futures_util::{FutureExt as _, StreamExt as _};
use kiln_graph::Digest;
use tonic::server::{Grpc, ServerStreamingService, UnaryService};
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;

use super::convert;
use crate::engine::Engine;
use crate::error::{Error, Result as Outcome};
use crate::solver::history::Stored;
use crate::store::Lease;
use crate::task;
use crate::wire::content::{INFO, Info, InfoRequest, InfoResponse, READ, ReadContentRequest, ReadContentResponse};

/// How much is sent in a message, in bytes.
const PIECE: u64 = 1 << 20;

/// The routes of the service. What would write is answered as methods are that nobody serves.
pub(super) fn routes(engine: &Engine) -> Router<Engine> {
    let (info, read) = (Service(engine.clone()), Service(engine.clone()));
    Router::new()
        .route(
            INFO,
            post(move |request: HttpRequest<Body>| {
                let service = info.clone();
                async move { unary(service, request).await }
            }),
        )
        .route(
            READ,
            post(move |request: HttpRequest<Body>| {
                let service = read.clone();
                async move { streaming(service, request).await }
            }),
        )
}

async fn unary(service: Service, request: HttpRequest<Body>) -> HttpResponse<Body> {
    let codec: ProstCodec<InfoResponse, InfoRequest> = ProstCodec::default();
    Grpc::new(codec).unary(service, request).await.map(Body::new)
}

async fn streaming(service: Service, request: HttpRequest<Body>) -> HttpResponse<Body> {
    let codec: ProstCodec<ReadContentResponse, ReadContentRequest> = ProstCodec::default();
    Grpc::new(codec).server_streaming(service, request).await.map(Body::new)
}

#[derive(Clone, Debug)]
struct Service(Engine);

/// Content that is open. A blob of the store is kept by a lease meanwhile.
struct Open {
    stored: Stored,
    size: u64,
    _lease: Option<Lease>,
}

impl Service {
    /// Blocking.
    fn open(&self, digest: &str) -> Outcome<Open> {
        let digest: Digest = digest.parse()?;
        let engine = &self.0;
        if let Some(stored) = engine.history().content(&digest)? {
            let size = match &stored {
                Stored::Bytes(bytes) => bytes.len() as u64,
                Stored::File(file) => file.metadata()?.len(),
            };
            return Ok(Open { stored, size, _lease: None });
        }
        let lease = engine.store().lease("read content")?;
        let blob = engine.store().blob(&lease, &digest)?;
        let blob = blob.ok_or_else(|| Error::not_found(format!("content {digest}: not found")))?;
        Ok(Open { size: blob.size(), stored: Stored::File(blob.open()?), _lease: Some(lease) })
    }
}

impl UnaryService<InfoRequest> for Service {
    type Response = InfoResponse;
    type Future = BoxFuture<'static, Result<Response<InfoResponse>, Status>>;

    fn call(&mut self, request: Request<InfoRequest>) -> Self::Future {
        let service = self.clone();
        async move {
            let digest = request.into_inner().digest;
            let opened = task::blocking(move || {
                // The lease ends here, which writes to the database.
                let open = service.open(&digest)?;
                Ok(Info { digest, size: convert::signed(open.size) })
            });
            let info = opened.await.map_err(|error| convert::refusal(&error))?;
            Ok(Response::new(InfoResponse { info: Some(info) }))
        }
        .boxed()
    }
}

/// Content on its way.
struct Sending {
    open: Open,
    offset: u64,
    left: u64,
}

impl Sending {
    /// Reads the next piece; `None` at the end. Blocking.
    fn piece(mut self) -> Outcome<Option<(ReadContentResponse, Self)>> {
        let length = self.left.min(PIECE);
        if length == 0 {
            return Ok(None);
        }
        let length = usize::try_from(length).map_err(|_| Error::internal("a piece is too large"))?;
        let data = match &mut self.open.stored {
            Stored::Bytes(bytes) => {
                let at = usize::try_from(self.offset).unwrap_or(usize::MAX).min(bytes.len());
                Bytes::copy_from_slice(&bytes[at..bytes.len().min(at + length)])
            }
            Stored::File(file) => {
                let mut data = vec![0; length];
                file.seek(SeekFrom::Start(self.offset))?;
                file.read_exact(&mut data)?;
                data.into()
            }
        };
        let response = ReadContentResponse { offset: convert::signed(self.offset), data };
        self.offset += response.data.len() as u64;
        self.left -= response.data.len() as u64;
        Ok(Some((response, self)))
    }
}

impl ServerStreamingService<ReadContentRequest> for Service {
    type Response = ReadContentResponse;
    type ResponseStream = BoxStream<'static, Result<ReadContentResponse, Status>>;
    type Future = BoxFuture<'static, Result<Response<Self::ResponseStream>, Status>>;

    fn call(&mut self, request: Request<ReadContentRequest>) -> Self::Future {
        let service = self.clone();
        async move {
            let ReadContentRequest { digest, offset, size } = request.into_inner();
            let opened = task::blocking(move || {
                let open = service.open(&digest)?;
                let whole =
                    |number: i64| u64::try_from(number).map_err(|_| Error::invalid("a negative offset or size"));
                let (offset, size) = (whole(offset)?, whole(size)?);
                let rest = open.size.checked_sub(offset);
                let rest = rest.ok_or_else(|| Error::invalid(format!("the content ends at {}", open.size)))?;
                let left = if size == 0 { rest } else { size.min(rest) };
                Ok(Sending { open, offset, left })
            });
            let sending = opened.await.map_err(|error| convert::refusal(&error))?;
            let pieces = stream::try_unfold(sending, async |sending: Sending| {
                task::blocking(move || sending.piece()).await.map_err(|error| convert::refusal(&error))
            });
            Ok(Response::new(pieces.boxed()))
        }
        .boxed()
    }
}
