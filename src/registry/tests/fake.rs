//! A registry in this process that misbehaves as told.
//!
//! It keeps blobs, manifests and uploads in memory and follows the distribution specification, ranges and resumed uploads
//! included. Before it answers, the test's [`Trick`] may take the request over.

use std::collections::HashMap;
use std::convert::Infallible;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::StreamExt as _;
use http::{HeaderMap, Method, StatusCode};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::TokioIo;
use kiln_graph::{Digest, Reference};

use crate::task::Tasks;

type Body = http_body_util::combinators::BoxBody<Bytes, io::Error>;
type Reply = http::Response<Body>;

/// What a request looked like.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) method: Method,
    /// With the query.
    pub(crate) path: String,
    pub(crate) headers: HeaderMap,
    /// Of a POST; other bodies are read when the request is answered.
    pub(crate) body: Bytes,
}

impl Seen {
    /// Returns a parameter of the query.
    pub(crate) fn query(&self, key: &str) -> Option<String> {
        query(&self.path, key)
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// Says whether it is a GET of a path that contains `part`.
    pub(crate) fn gets(&self, part: &str) -> bool {
        self.method == Method::GET && self.path.contains(part)
    }
}

/// What to do with a request instead of answering it properly.
pub(crate) enum Trick {
    /// Nothing: answer properly.
    None,
    /// Answer this: status, headers, body.
    Answer(u16, Vec<(&'static str, String)>, Bytes),
    /// Answer properly, but break the connection after so many bytes of the body.
    Break(usize),
    /// Answer properly, but change the head.
    Head(fn(&mut HeaderMap)),
    /// Answer properly, but stop sending after so many bytes of the body, without closing.
    StallAfter(usize),
    /// Never answer.
    Silence,
    /// Take so many bytes of an upload, then break the connection.
    BreakUpload(usize),
    /// Take the upload and never answer, or rather break the connection instead.
    LoseAnswer,
    /// Take so many bytes of an upload and no more.
    StallUpload(usize),
    /// Send the body without an end.
    Endless,
}

impl Trick {
    pub(crate) fn status(status: u16) -> Self {
        Self::Answer(status, Vec::new(), Bytes::new())
    }

    pub(crate) fn error(status: u16, code: &str) -> Self {
        let body =
            format!(r#"{{"errors":[{{"code":"{code}","message":"{}"}}]}}"#, code.to_lowercase().replace('_', " "));
        Self::Answer(status, vec![("content-type", "application/json".to_owned())], body.into())
    }
}

type Play = dyn Fn(&Seen) -> Trick + Send + Sync;

#[derive(Default)]
pub(crate) struct Content {
    pub(crate) blobs: HashMap<String, Bytes>,
    pub(crate) manifests: HashMap<String, (String, Bytes)>,
    pub(crate) uploads: HashMap<String, BytesMut>,
    next_upload: usize,
    pub(crate) seen: Vec<Seen>,
    /// Bytes of bodies that went out.
    pub(crate) sent: usize,
    /// Connections that were accepted.
    pub(crate) connections: usize,
}

/// A running server; dropping it ends it.
pub(crate) struct Fake {
    host: String,
    content: Arc<Mutex<Content>>,
    tasks: Tasks,
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.tasks.stopping().cancel();
    }
}

impl Fake {
    /// Starts a registry that behaves.
    pub(crate) async fn start() -> Self {
        Self::with(|_| Trick::None).await
    }

    /// Starts a registry that asks `play` about each request.
    pub(crate) async fn with(play: impl Fn(&Seen) -> Trick + Send + Sync + 'static) -> Self {
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let (content, tasks) = (Arc::new(Mutex::new(Content::default())), Tasks::new());
        let (shared, play): (_, Arc<Play>) = (Arc::clone(&content), Arc::new(play));
        let (connections, stopping) = (tasks.clone(), tasks.stopping());
        tasks.spawn(async move {
            while let Some(Ok((stream, _))) = stopping.run_until_cancelled(listener.accept()).await {
                let (content, play) = (Arc::clone(&shared), Arc::clone(&play));
                content.lock().unwrap().connections += 1;
                let service = hyper::service::service_fn(move |request| {
                    let (content, play) = (Arc::clone(&content), Arc::clone(&play));
                    async move { serve(&content, &*play, request).await }
                });
                let stopping = connections.stopping();
                connections.spawn(async move {
                    let connection =
                        hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
                    // Broken connections are what these tests are about.
                    let _ = stopping.run_until_cancelled(connection).await;
                });
            }
        });
        Self { host, content, tasks }
    }

    pub(crate) fn host(&self) -> &str {
        &self.host
    }

    /// Returns a reference to `name` in this registry.
    pub(crate) fn image(&self, name: &str) -> Reference {
        format!("{}/{name}", self.host).parse().unwrap()
    }

    pub(crate) fn content(&self) -> MutexGuard<'_, Content> {
        self.content.lock().unwrap()
    }

    pub(crate) fn add_blob(&self, blob: &Bytes) -> Digest {
        let digest = Digest::of(blob);
        self.content().blobs.insert(digest.to_string(), blob.clone());
        digest
    }

    pub(crate) fn add_manifest(&self, tag: &str, media_type: &str, manifest: &str) -> Digest {
        let digest = Digest::of(manifest.as_bytes());
        let document = (media_type.to_owned(), Bytes::copy_from_slice(manifest.as_bytes()));
        let mut content = self.content();
        content.manifests.insert(digest.to_string(), document.clone());
        content.manifests.insert(tag.to_owned(), document);
        digest
    }

    /// Counts the requests seen that `is_meant` picks.
    pub(crate) fn count(&self, is_meant: impl Fn(&Seen) -> bool) -> usize {
        self.content().seen.iter().filter(|seen| is_meant(seen)).count()
    }
}

fn full(body: Bytes) -> Body {
    http_body_util::Full::new(body).map_err(|never: Infallible| match never {}).boxed()
}

fn reply(status: StatusCode, headers: &[(&'static str, String)], body: Bytes) -> Reply {
    let mut reply = http::Response::new(full(body));
    *reply.status_mut() = status;
    for (name, value) in headers {
        reply.headers_mut().append(*name, value.parse().unwrap());
    }
    reply
}

async fn serve(content: &Mutex<Content>, play: &Play, request: http::Request<Incoming>) -> Result<Reply, io::Error> {
    let (head, mut body) = request.into_parts();
    let path = head.uri.path_and_query().unwrap().as_str().to_owned();
    let posted =
        if head.method == Method::POST { (&mut body).collect().await.unwrap().to_bytes() } else { Bytes::new() };
    let seen = Seen { method: head.method, path, headers: head.headers, body: posted };
    content.lock().unwrap().seen.push(seen.clone());
    let broken = || io::Error::other("as told");
    let trick = play(&seen);
    match trick {
        Trick::Answer(status, headers, body) => Ok(reply(StatusCode::from_u16(status).unwrap(), &headers, body)),
        Trick::Silence => std::future::pending().await,
        Trick::BreakUpload(most) => {
            take_upload(content, &seen, &mut body, most).await;
            Err(broken())
        }
        Trick::StallUpload(most) => {
            take_upload(content, &seen, &mut body, most).await;
            std::future::pending().await
        }
        _ => {
            take_upload(content, &seen, &mut body, usize::MAX).await;
            let proper = answer(&mut content.lock().unwrap(), &seen);
            match trick {
                Trick::LoseAnswer => Err(broken()),
                Trick::Break(after) => Ok(cut(proper, after, || Some(Err(io::Error::other("as told")))).await),
                Trick::StallAfter(after) => Ok(cut(proper, after, || None).await),
                Trick::Endless => Ok(endless(proper)),
                Trick::Head(change) => {
                    let mut proper = proper;
                    change(proper.headers_mut());
                    Ok(proper)
                }
                _ => {
                    let length = hyper::body::Body::size_hint(proper.body()).exact().unwrap_or(0);
                    content.lock().unwrap().sent += usize::try_from(length).unwrap();
                    Ok(proper)
                }
            }
        }
    }
}

/// Sends only the first bytes of a body; then comes what `end` says, or nothing for ever.
async fn cut(proper: Reply, after: usize, end: fn() -> Option<Result<Frame<Bytes>, io::Error>>) -> Reply {
    let (mut head, body) = proper.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    head.headers.insert("content-length", body.len().into());
    let first = futures_util::stream::iter([Ok(Frame::data(body.slice(..after.min(body.len()))))]);
    // Without the pause the part could be lost together with the connection.
    let then = futures_util::stream::once(async move {
        tokio::time::sleep(Duration::from_millis(20)).await;
        match end() {
            Some(end) => end,
            None => std::future::pending().await,
        }
    });
    http::Response::from_parts(head, BodyExt::boxed(StreamBody::new(first.chain(then))))
}

fn endless(proper: Reply) -> Reply {
    let (mut head, _) = proper.into_parts();
    head.headers.remove("content-length");
    let piece = Bytes::from_static(&[b' '; 64 * 1024]);
    let stream = futures_util::stream::repeat_with(move || Ok(Frame::data(piece.clone())));
    http::Response::from_parts(head, BodyExt::boxed(StreamBody::new(stream)))
}

/// Appends the body of an upload's request, up to so many bytes, to what is there.
async fn take_upload(content: &Mutex<Content>, seen: &Seen, body: &mut Incoming, most: usize) {
    let Some(id) = upload_id(&seen.path).filter(|_| matches!(seen.method, Method::PUT | Method::PATCH)) else {
        if seen.method == Method::PUT {
            let document = body.collect().await.unwrap().to_bytes();
            let name = seen.path.rsplit('/').next().unwrap().to_owned();
            let media_type = seen.header("content-type").unwrap_or_default().to_owned();
            let digest = Digest::of(&document).to_string();
            let mut content = content.lock().unwrap();
            content.manifests.insert(digest, (media_type.clone(), document.clone()));
            content.manifests.insert(name, (media_type, document));
        }
        return;
    };
    let mut taken = 0;
    while taken < most {
        let Some(Ok(frame)) = body.frame().await else { return };
        let Ok(data) = frame.into_data() else { continue };
        let data = data.slice(..data.len().min(most - taken));
        taken += data.len();
        if let Some(upload) = content.lock().unwrap().uploads.get_mut(&id) {
            upload.extend_from_slice(&data);
        }
    }
}

fn upload_id(path: &str) -> Option<String> {
    let id = path.split_once("/blobs/uploads/")?.1.split('?').next()?;
    Some(id.to_owned()).filter(|id| !id.is_empty())
}

fn query(path: &str, key: &str) -> Option<String> {
    let url = reqwest::Url::parse(&format!("http://x{path}")).unwrap();
    url.query_pairs().find(|(name, _)| name == key).map(|(_, value)| value.into_owned())
}

/// Answers as the specification wants it.
fn answer(content: &mut Content, seen: &Seen) -> Reply {
    let path = seen.path.split('?').next().unwrap();
    let not_found = |code: &str| {
        let body =
            format!(r#"{{"errors":[{{"code":"{code}","message":"{}"}}]}}"#, code.to_lowercase().replace('_', " "));
        reply(StatusCode::NOT_FOUND, &[], body.into())
    };
    if path == "/v2/" {
        return reply(StatusCode::OK, &[], Bytes::from_static(b"{}"));
    }
    if path.contains("/blobs/uploads/") {
        return answer_upload(content, seen);
    }
    if let Some((_, digest)) = path.split_once("/blobs/") {
        let Some(blob) = content.blobs.get(digest).cloned() else { return not_found("BLOB_UNKNOWN") };
        return answer_blob(&blob, digest, seen);
    }
    if let Some((_, name)) = path.split_once("/manifests/") {
        let Some((media_type, document)) = content.manifests.get(name).cloned() else {
            return not_found("MANIFEST_UNKNOWN");
        };
        let digest = Digest::of(&document).to_string();
        let headers = [("content-type", media_type), ("docker-content-digest", digest)];
        return match seen.method {
            Method::PUT => reply(StatusCode::CREATED, &headers[1..], Bytes::new()),
            _ => reply(StatusCode::OK, &headers, document),
        };
    }
    not_found("NAME_UNKNOWN")
}

fn answer_blob(blob: &Bytes, digest: &str, seen: &Seen) -> Reply {
    let headers =
        [("docker-content-digest", digest.to_owned()), ("content-type", "application/octet-stream".to_owned())];
    let range = seen.header("range").and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-'));
    match range.map(|start| start.parse::<usize>().unwrap()) {
        Some(start) if start < blob.len() => {
            let range = format!("bytes {start}-{}/{}", blob.len() - 1, blob.len());
            let headers = [&headers[..], &[("content-range", range)]].concat();
            reply(StatusCode::PARTIAL_CONTENT, &headers, blob.slice(start..))
        }
        Some(_) => reply(StatusCode::RANGE_NOT_SATISFIABLE, &[], Bytes::new()),
        None => reply(StatusCode::OK, &headers, blob.clone()),
    }
}

fn answer_upload(content: &mut Content, seen: &Seen) -> Reply {
    let Some(id) = upload_id(&seen.path) else {
        if seen.query("mount").is_some_and(|digest| content.blobs.contains_key(&digest)) {
            return reply(StatusCode::CREATED, &[], Bytes::new());
        }
        content.next_upload += 1;
        let id = format!("upload-{}", content.next_upload);
        content.uploads.insert(id.clone(), BytesMut::new());
        let base = seen.path.split('?').next().unwrap();
        return reply(StatusCode::ACCEPTED, &[("location", format!("{base}{id}?state=x"))], Bytes::new());
    };
    let unknown = || reply(StatusCode::NOT_FOUND, &[], Bytes::from_static(b"{}"));
    let Some(upload) = content.uploads.get(&id) else { return unknown() };
    match seen.method {
        Method::GET => {
            let range = format!("0-{}", upload.len().saturating_sub(1));
            let location = seen.path.clone();
            reply(StatusCode::NO_CONTENT, &[("range", range), ("location", location)], Bytes::new())
        }
        Method::PUT => {
            let upload = content.uploads.remove(&id).unwrap().freeze();
            let digest = seen.query("digest").unwrap();
            if Digest::of(&upload).to_string() != digest {
                let body = Bytes::from_static(br#"{"errors":[{"code":"DIGEST_INVALID","message":"digest invalid"}]}"#);
                return reply(StatusCode::BAD_REQUEST, &[], body);
            }
            content.blobs.insert(digest, upload);
            reply(StatusCode::CREATED, &[], Bytes::new())
        }
        Method::DELETE => {
            content.uploads.remove(&id);
            reply(StatusCode::NO_CONTENT, &[], Bytes::new())
        }
        _ => unknown(),
    }
}
