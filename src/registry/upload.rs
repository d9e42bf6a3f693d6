//! Blobs to a registry: not at all when it has them, by mounting when another of its repositories has them, else by upload.
//!
//! An upload is one POST and one PUT. After a break the registry is asked how much it has, and the PUT sends the rest
//! (distribution spec, "Pushing a blob in chunks"); a registry that has forgotten gets all of it again.

use std::io::Read;
use std::sync::{Arc, Mutex};

use bytes::{Bytes, BytesMut};
use http::header::{CONTENT_RANGE, CONTENT_TYPE, LOCATION, RANGE};
use http::{HeaderValue, Method, StatusCode};
use kiln_graph::Reference;
use kiln_graph::oci::Descriptor;
use reqwest::{Body, Url};

use super::endpoint::Endpoint;
use super::refusal::Refusal;
use super::retry::Fault;
use super::scope::Scopes;
use super::transport::{Answer, Request, follow};
use super::{Access, Client, Progress, unexpected, with_login};
use crate::error::{Error, Kind, Result};
use crate::task;

/// Bytes read at a time. Less costs more switches between threads, more leaves the caches.
const CHUNK: usize = 128 * 1024;

/// How a blob came to be at the registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pushed {
    /// The repository had it.
    Exists,
    /// It was mounted from this repository.
    Mounted(Reference),
    /// It was uploaded.
    Uploaded,
}

impl Client {
    /// Sees to it that a blob is in a repository.
    ///
    /// `source` opens the blob at an offset; it is called for each attempt, on the blocking pool. `mount_from` names
    /// repositories that may have the blob; those at other registries are passed over. As many uploads as configured run at
    /// the same time for one registry, others wait here. Mirrors are never written to.
    ///
    /// # Errors
    /// `Unauthorized` or `Forbidden` when this user may not push; `Corrupt` when the source is not what the descriptor says;
    /// what the source reports; otherwise as [`Client::resolve`].
    pub async fn push_blob<R: Read + Send + 'static>(
        &self,
        reference: &Reference,
        descriptor: &Descriptor,
        source: impl Fn(u64) -> Result<R> + Send + Sync + 'static,
        mount_from: &[Reference],
        progress: &Progress,
    ) -> Result<Pushed> {
        let _turn = self.shared.uploads.turn(reference.domain()).await;
        let endpoint = self.registry(reference);
        let doing = format!("push blob {} to", descriptor.digest);
        let access = Access::push(&doing, reference, &endpoint);
        let done = |how| {
            progress.set(descriptor.size);
            Ok(how)
        };
        let mount_from = mount_from.iter().filter(|from| can_mount(from, reference));
        let place = match self.find_or_mount(&endpoint, &access, descriptor, mount_from).await? {
            Found::There(how) => return done(how),
            Found::Missing(place) => place,
        };
        let source = Arc::new(source);
        let mut upload = Upload { client: self, endpoint: &endpoint, access: &access, descriptor, progress, place };
        upload.run(&source).await?;
        done(Pushed::Uploaded)
    }

    /// Sees to it that a blob is in a repository, without sending it; `None` when it would have to be sent. The parameters are those
    /// of [`Client::push_blob`].
    ///
    /// # Errors
    /// As for [`Client::push_blob`].
    pub async fn adopt_blob(
        &self,
        reference: &Reference,
        descriptor: &Descriptor,
        mount_from: &[Reference],
    ) -> Result<Option<Pushed>> {
        let endpoint = self.registry(reference);
        let doing = format!("look for blob {} in", descriptor.digest);
        let access = Access::push(&doing, reference, &endpoint);
        let mount_from = mount_from.iter().filter(|from| can_mount(from, reference));
        match self.find_or_mount(&endpoint, &access, descriptor, mount_from).await? {
            Found::There(how) => Ok(Some(how)),
            Found::Missing(place) => {
                self.abandon(&endpoint, &access, place).await;
                Ok(None)
            }
        }
    }

    async fn find_or_mount(
        &self,
        endpoint: &Endpoint,
        access: &Access<'_>,
        descriptor: &Descriptor,
        mount_from: impl Iterator<Item = &Reference>,
    ) -> Result<Found> {
        if self.check_blob(endpoint, access, descriptor).await? {
            return Ok(Found::There(Pushed::Exists));
        }
        let mut place = Place::Nowhere;
        for from in mount_from {
            match self.mount(endpoint, access, descriptor, from).await? {
                Mount::Done => {
                    self.abandon(endpoint, access, place).await;
                    return Ok(Found::There(Pushed::Mounted(from.clone())));
                }
                Mount::UploadInstead(url) => {
                    let earlier = std::mem::replace(&mut place, Place::Fresh(url));
                    self.abandon(endpoint, access, earlier).await;
                }
                Mount::Refused => {}
            }
        }
        Ok(Found::Missing(place))
    }

    /// Asks for a blob of another repository. That it is not to be had that way is no error.
    async fn mount(
        &self,
        endpoint: &Endpoint,
        access: &Access<'_>,
        descriptor: &Descriptor,
        from: &Reference,
    ) -> Result<Mount> {
        let mut url = endpoint.url("blobs/uploads/")?;
        url.query_pairs_mut().append_pair("mount", &descriptor.digest.to_string()).append_pair("from", from.path());
        let request = Request::new(Method::POST, url).body(Bytes::new());
        let scopes = access.scopes.clone().and(&Scopes::pull(from.path()));
        let access = Access { scopes, ..*access };
        let answer = match self.retrying(|| self.call(endpoint, &access, &request)).await {
            Ok(answer) => answer,
            // A token service may refuse all when it refuses a part.
            Err(error) if matches!(error.kind(), Kind::NotFound | Kind::Unauthorized | Kind::Forbidden) => {
                return Ok(Mount::Refused);
            }
            Err(error) => return Err(error),
        };
        match answer.status() {
            StatusCode::CREATED => Ok(Mount::Done),
            StatusCode::ACCEPTED => location(&answer).map(Mount::UploadInstead),
            _ => Ok(Mount::Refused),
        }
    }

    /// Tells the registry that an upload will not go on. That it may not care is its own business.
    async fn abandon(&self, endpoint: &Endpoint, access: &Access<'_>, place: Place) {
        if let Place::Fresh(url) = place {
            let _ = self.call(endpoint, access, &Request::new(Method::DELETE, url)).await;
        }
    }
}

fn can_mount(from: &Reference, to: &Reference) -> bool {
    from.domain() == to.domain() && from.path() != to.path()
}

/// What came of looking for a blob at a registry.
enum Found {
    There(Pushed),
    /// It has to be sent; a mount that did not come about may have begun that.
    Missing(Place),
}

enum Mount {
    Done,
    UploadInstead(Url),
    Refused,
}

/// Where an upload stands at the registry.
enum Place {
    Nowhere,
    /// Begun, and nothing sent.
    Fresh(Url),
    /// Broken off with an unknown part sent.
    Broken(Url),
}

struct Upload<'a> {
    client: &'a Client,
    endpoint: &'a Endpoint,
    access: &'a Access<'a>,
    descriptor: &'a Descriptor,
    progress: &'a Progress,
    place: Place,
}

impl Upload<'_> {
    async fn run<R: Read + Send + 'static>(&mut self, source: &Arc<impl Open<R>>) -> Result<()> {
        let mut attempts = self.client.attempts();
        let mut furthest = 0;
        loop {
            let result = match self.find_place().await {
                Ok(None) => return Ok(()),
                Ok(Some((url, offset))) => {
                    if offset > furthest {
                        attempts.progress();
                        furthest = offset;
                    }
                    self.send(url, offset, source).await
                }
                Err(fault) => Err(fault),
            };
            match result {
                Ok(()) => return Ok(()),
                Err(fault) => attempts.pause(fault, &self.client.session.notes).await?,
            }
        }
    }

    /// Returns where to send from which offset on, or `None` when the registry turns out to have the blob.
    async fn find_place(&mut self) -> Result<Option<(Url, u64)>, Fault> {
        let (url, offset) = match std::mem::replace(&mut self.place, Place::Nowhere) {
            Place::Fresh(url) => (url, 0),
            Place::Nowhere => (self.begin().await?, 0),
            Place::Broken(url) => match self.ask(&url).await {
                Ok(Some(found)) => found,
                // Forgotten, or finished: the answer to the last PUT may be all that was lost.
                Ok(None) => match self.client.check_blob(self.endpoint, self.access, self.descriptor).await? {
                    true => return Ok(None),
                    false => (self.begin().await?, 0),
                },
                Err(fault) => {
                    self.place = Place::Broken(url);
                    return Err(fault);
                }
            },
        };
        self.place = Place::Broken(url.clone());
        Ok(Some((url, offset)))
    }

    async fn begin(&self) -> Result<Url, Fault> {
        let request = Request::new(Method::POST, self.endpoint.url("blobs/uploads/")?).body(Bytes::new());
        let answer = self.client.call(self.endpoint, self.access, &request).await?;
        match answer.status() {
            StatusCode::ACCEPTED => Ok(location(&answer).map_err(|error| error.context(self.access))?),
            _ => Err(unexpected(self.endpoint, self.access, answer).await.into()),
        }
    }

    /// Asks how much of a broken upload is there; `None` when the registry does not know it any more.
    async fn ask(&self, url: &Url) -> Result<Option<(Url, u64)>, Fault> {
        let request = Request::new(Method::GET, url.clone());
        let answer = self.client.call(self.endpoint, self.access, &request).await?;
        if !answer.status().is_success() {
            return Ok(None);
        }
        // The last byte's position; a registry that has nothing says `0-0`.
        let range = answer.header(RANGE).and_then(|range| range.rsplit('-').next()?.trim().parse::<u64>().ok());
        let offset = range.filter(|last| *last > 0).map_or(0, |last| last.saturating_add(1));
        if offset > self.descriptor.size {
            return Ok(None);
        }
        let url = location(&answer).unwrap_or_else(|_| url.clone());
        Ok(Some((url, offset)))
    }

    /// Sends everything from an offset on and finishes the upload.
    async fn send<R: Read + Send + 'static>(
        &mut self,
        mut url: Url,
        offset: u64,
        source: &Arc<impl Open<R>>,
    ) -> Result<(), Fault> {
        let Descriptor { digest, size, .. } = self.descriptor;
        url.query_pairs_mut().append_pair("digest", &digest.to_string());
        let mut request =
            Request::new(Method::PUT, url).header(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
        if offset > 0 && offset < *size {
            let range = HeaderValue::from_str(&format!("{offset}-{}", size - 1));
            request = request.header(CONTENT_RANGE, range.expect("digits have a header form"));
        }
        let login = self.client.authorize(self.endpoint, self.access).await?;
        let request = with_login(request, self.endpoint, login.as_ref());
        self.progress.set(offset);
        let feed = Feed::new(offset, *size, self.progress);
        let body = body(Arc::clone(source), feed.clone());
        let taken = || feed.taken.bytes();
        let answer = self.client.shared.transport.upload(&request, body, size - offset, taken).await;
        if let Some(error) = feed.trouble().take() {
            return Err(error.context(self.access).into());
        }
        let answer = answer.map_err(|fault| fault.context(self.access))?;
        if self.client.challenged(self.endpoint, self.access, &answer, login.as_ref()).await?.is_some() {
            let text = format!("{}: the login expired during the upload", self.access);
            return Err(Fault::passing(Error::unauthorized(text)));
        }
        let answer = self.client.judge(self.endpoint, self.access, answer).await?;
        self.finish(answer, offset).await
    }

    async fn finish(&mut self, answer: Answer, offset: u64) -> Result<(), Fault> {
        let resumed = offset > 0;
        match answer.status() {
            status if status.is_success() => Ok(()),
            StatusCode::PAYLOAD_TOO_LARGE => {
                let (server, size) = (&self.endpoint.name, self.descriptor.size);
                let text =
                    format!("{}: {server}, or a proxy before it, does not take {size} bytes at once", self.access);
                Err(Error::unsupported(text).into())
            }
            // A resumed upload may have gone wrong in ways that one from the start does not.
            StatusCode::NOT_FOUND | StatusCode::BAD_REQUEST | StatusCode::RANGE_NOT_SATISFIABLE if resumed => {
                self.place = Place::Nowhere;
                let refusal = Refusal::read(answer).await;
                Err(Fault::passing(Error::unavailable(format!("{}: the upload cannot go on: {refusal}", self.access))))
            }
            StatusCode::BAD_REQUEST => {
                let refusal = Refusal::read(answer).await;
                let wrong = refusal.has("DIGEST_INVALID") || refusal.has("SIZE_INVALID");
                let kind = if wrong { Kind::Corrupt } else { Kind::InvalidArgument };
                Err(Error::new(kind, format!("{}: {refusal}", self.access)).into())
            }
            _ => Err(unexpected(self.endpoint, self.access, answer).await.into()),
        }
    }
}

fn location(answer: &Answer) -> Result<Url> {
    let missing = || Error::unavailable("the registry does not say where to upload to");
    follow(answer.url(), answer.header(LOCATION).ok_or_else(missing)?)
}

/// Opens a blob at an offset.
trait Open<R>: Fn(u64) -> Result<R> + Send + Sync + 'static {}

impl<R, F: Fn(u64) -> Result<R> + Send + Sync + 'static> Open<R> for F {}

/// What an upload and the body it sends have in common.
#[derive(Clone)]
struct Feed {
    offset: u64,
    size: u64,
    /// What the user sees. A body that is still read when its request has failed may write to it too.
    progress: Progress,
    /// Bytes of this one body that were taken.
    taken: Progress,
    /// What went wrong with the source.
    trouble: Arc<Mutex<Option<Error>>>,
}

impl Feed {
    fn new(offset: u64, size: u64, progress: &Progress) -> Self {
        Self { offset, size, progress: progress.clone(), taken: Progress::new(), trouble: Arc::default() }
    }

    fn trouble(&self) -> std::sync::MutexGuard<'_, Option<Error>> {
        self.trouble.lock().expect("no panic happens while the lock is held")
    }
}

/// Makes a body that reads the blob while it is sent, a chunk at a time on the blocking pool, so that nothing waits or reads
/// on when the request ends early.
fn body<R: Read + Send + 'static>(source: Arc<impl Open<R>>, feed: Feed) -> Body {
    let start = (None, feed.offset);
    let stream = futures_util::stream::try_unfold(start, move |(reader, at)| {
        let (source, feed) = (Arc::clone(&source), feed.clone());
        async move {
            if at == feed.size {
                return Ok(None);
            }
            let read = task::blocking(move || {
                let mut reader = match reader {
                    Some(reader) => reader,
                    None => source(at)?,
                };
                let chunk = read_chunk(&mut reader, at, feed.size)?;
                Ok((chunk, reader))
            });
            match read.await {
                Ok((chunk, reader)) => {
                    let at = at + chunk.len() as u64;
                    feed.taken.set(at - feed.offset);
                    feed.progress.set(at);
                    Ok(Some((chunk, (Some(reader), at))))
                }
                Err(error) => {
                    *feed.trouble() = Some(error);
                    Err(std::io::Error::other("the source of the upload failed"))
                }
            }
        }
    });
    Body::wrap_stream(stream)
}

fn read_chunk(reader: &mut impl Read, at: u64, size: u64) -> Result<Bytes> {
    let wanted = usize::try_from(size - at).unwrap_or(usize::MAX).min(CHUNK);
    let mut chunk = BytesMut::zeroed(wanted);
    let mut filled = 0;
    while filled < wanted {
        match reader.read(&mut chunk[filled..]) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
    if filled == 0 {
        return Err(Error::corrupt(format!("the content to push ends after {at} of {size} bytes")));
    }
    chunk.truncate(filled);
    Ok(chunk.freeze())
}
