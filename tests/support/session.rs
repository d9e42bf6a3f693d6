//! A session of a daemon's client that serves whatever methods a test wants to.

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::routing::post;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tonic::server::{Grpc, UnaryService};
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;

use super::Daemon;

/// Methods by their paths.
#[derive(Default)]
pub struct Methods {
    paths: Vec<&'static str>,
    router: Router,
}

type Answering<Q, A> = Arc<dyn Fn(Q) -> Result<A, Status> + Send + Sync>;

struct Unary<Q, A>(Answering<Q, A>);

impl<Q, A: Send + 'static> UnaryService<Q> for Unary<Q, A> {
    type Response = A;
    type Future = BoxFuture<'static, Result<Response<A>, Status>>;

    fn call(&mut self, request: Request<Q>) -> Self::Future {
        let answer = (self.0)(request.into_inner()).map(Response::new);
        async move { answer }.boxed()
    }
}

impl Methods {
    /// Adds a method that takes a message and answers with one.
    pub fn unary<Q, A>(
        mut self,
        path: &'static str,
        answer: impl Fn(Q) -> Result<A, Status> + Send + Sync + 'static,
    ) -> Self
    where
        Q: prost::Message + Default + 'static,
        A: prost::Message + Default + 'static,
    {
        let answer: Answering<Q, A> = Arc::new(answer);
        self.paths.push(path);
        self.router =
            self.router.route(
                path,
                post(move |request: http::Request<Body>| {
                    let answer = Arc::clone(&answer);
                    async move {
                        Grpc::new(ProstCodec::<A, Q>::default()).unary(Unary(answer), request).await.map(Body::new)
                    }
                }),
            );
        self
    }

    /// Opens the session `id` with these methods; it lasts until the task is aborted.
    pub async fn open(self, daemon: &Daemon, id: &str) -> tokio::task::JoinHandle<()> {
        let path = daemon.host.strip_prefix("unix://").expect("the daemon has a socket");
        let mut io = tokio::net::UnixStream::connect(path).await.expect("reach the daemon");
        let mut head = format!(
            "POST /session HTTP/1.1\r\nHost: kiln\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\
             X-Docker-Expose-Session-Uuid: {id}\r\n"
        );
        for path in &self.paths {
            head += &format!("X-Docker-Expose-Session-Grpc-Method: {path}\r\n");
        }
        io.write_all(format!("{head}\r\n").as_bytes()).await.expect("ask for a session");
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\n") {
            answer.push(io.read_u8().await.expect("read the answer"));
        }
        assert!(answer.starts_with(b"HTTP/1.1 101 "), "{}", String::from_utf8_lossy(&answer));
        let service = TowerToHyperService::new(self.router);
        tokio::spawn(async move {
            let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            drop(builder.serve_connection(TokioIo::new(io), service).await);
        })
    }
}
