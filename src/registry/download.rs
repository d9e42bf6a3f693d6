//! Blobs from a registry into a sink: in order, resumed by `Range` after every kind of break, bounded, verified.
//!
//! The network is read by one task and the sink is fed by a thread of the blocking pool, so hashing and writing overlap with
//! receiving. `Descriptor::urls` are not followed: a manifest must not make this machine fetch addresses of its choice.

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_RANGE, RANGE};
use http::{HeaderValue, Method, StatusCode};
use kiln_graph::oci::Descriptor;
use kiln_graph::{Digest, Reference};
use tokio::sync::mpsc;

use super::endpoint::Endpoint;
use super::retry::Fault;
use super::transport::{Answer, Request};
use super::{Access, Client, Progress, unexpected};
use crate::error::{Error, Kind, Result};
use crate::task;

/// Bytes collected before they go to the sink. Less costs more switches between threads, more leaves the caches.
const BATCH: usize = 128 * 1024;

/// Batches between the network and the sink: enough that neither waits for the other's scheduling.
const BATCHES: usize = 4;

/// Where a blob goes. Every method may block; all are called on the blocking pool.
pub trait BlobSink: Send + 'static {
    /// Returns how many bytes, from the start of the blob, are there already.
    fn offset(&self) -> u64;

    /// Appends bytes.
    ///
    /// # Errors
    /// When they cannot be kept; the download ends with that error.
    fn write(&mut self, bytes: &[u8]) -> Result<()>;

    /// Drops all bytes: the offset is 0 again.
    ///
    /// # Errors
    /// As for `write`.
    fn restart(&mut self) -> Result<()>;

    /// Checks that the bytes are the whole blob. Called when all have been written.
    ///
    /// # Errors
    /// `Corrupt` when they are not: the download then starts anew, where there is hope that it helps.
    fn verify(&mut self) -> Result<()>;
}

/// Why a download from one server failed.
enum Failure {
    /// Another server may do better.
    Server(Error),
    /// The sink does not take the bytes.
    Sink(Error),
}

impl Failure {
    fn into_error(self) -> Error {
        match self {
            Self::Server(error) | Self::Sink(error) => error,
        }
    }
}

impl Client {
    /// Downloads a blob into a sink, from where the sink has it to its end, and has the sink verify it. Returns the sink.
    ///
    /// Mirrors are asked first. A connection that breaks is resumed where it broke; a blob that turns out wrong is fetched
    /// again if part of it came from elsewhere (an earlier command, another server). As many downloads as configured run at
    /// the same time for one registry, others wait here. Dropping the future ends the download; the sink is dropped with
    /// what it has.
    ///
    /// # Errors
    /// `NotFound` when there is no such blob; `Corrupt` when the registry sends other content or another length than the
    /// descriptor says; what the sink reports; otherwise as [`Client::resolve`].
    pub async fn blob<S: BlobSink>(
        &self,
        reference: &Reference,
        descriptor: &Descriptor,
        sink: S,
        progress: &Progress,
    ) -> Result<S> {
        let _turn = self.shared.downloads.turn(reference.domain()).await;
        let mut sink = sink;
        for mirror in self.mirrors(reference) {
            let (back, result) = self.download(&mirror, reference, descriptor, sink, progress).await?;
            match result {
                Ok(()) => return Ok(back),
                Err(Failure::Sink(error)) => return Err(error),
                Err(Failure::Server(error)) => self.skip(&mirror, &error),
            }
            sink = back;
        }
        let registry = self.registry(reference);
        let (sink, result) = self.download(&registry, reference, descriptor, sink, progress).await?;
        result.map(|()| sink).map_err(Failure::into_error)
    }

    /// Says whether a registry has a blob.
    ///
    /// # Errors
    /// As [`Client::resolve`], but for `NotFound`.
    pub async fn has_blob(&self, reference: &Reference, descriptor: &Descriptor) -> Result<bool> {
        let endpoint = self.registry(reference);
        let access = Access::pull("look for a blob of", reference, &endpoint);
        self.check_blob(&endpoint, &access, descriptor).await
    }

    /// Returns the size of a blob of which the digest is known only. Mirrors are asked first.
    ///
    /// # Errors
    /// `NotFound` when there is no such blob; `Unavailable` when the registry does not say how large it is; otherwise as
    /// [`Client::resolve`].
    pub async fn blob_size(&self, reference: &Reference, digest: &Digest) -> Result<u64> {
        for mirror in self.mirrors(reference) {
            match self.size_at(&mirror, reference, digest).await {
                Ok(size) => return Ok(size),
                Err(error) => self.skip(&mirror, &error),
            }
        }
        self.size_at(&self.registry(reference), reference, digest).await
    }

    async fn size_at(&self, endpoint: &Endpoint, reference: &Reference, digest: &Digest) -> Result<u64> {
        let access = Access::pull("look for a blob of", reference, endpoint);
        let request = Request::new(Method::HEAD, endpoint.url(&format!("blobs/{digest}"))?);
        let answer = self.retrying(|| self.call(endpoint, &access, &request)).await?;
        match answer.status() {
            StatusCode::OK => {
                let size = answer.header(CONTENT_LENGTH).and_then(|text| text.parse().ok());
                let silent = || Error::unavailable(format!("{access}: {} does not say its size", endpoint.name));
                size.ok_or_else(silent)
            }
            StatusCode::NOT_FOUND => {
                let name = reference.familiar_repository();
                Err(Error::not_found(format!("{} has no blob {digest} in {name}", endpoint.name)))
            }
            _ => Err(unexpected(endpoint, &access, answer).await),
        }
    }

    pub(super) async fn check_blob(
        &self,
        endpoint: &Endpoint,
        access: &Access<'_>,
        descriptor: &Descriptor,
    ) -> Result<bool> {
        let request = Request::new(Method::HEAD, endpoint.url(&format!("blobs/{}", descriptor.digest))?);
        let answer = self.retrying(|| self.call(endpoint, access, &request)).await?;
        match answer.status() {
            StatusCode::OK => Ok(true),
            StatusCode::NOT_FOUND => Ok(false),
            _ => Err(unexpected(endpoint, access, answer).await),
        }
    }

    /// Downloads from one server. The sink comes back whatever happens, unless the program is stopping.
    async fn download<S: BlobSink>(
        &self,
        endpoint: &Endpoint,
        reference: &Reference,
        descriptor: &Descriptor,
        mut sink: S,
        progress: &Progress,
    ) -> Result<(S, Result<(), Failure>)> {
        let doing = format!("download blob {} of", descriptor.digest);
        let access = Access::pull(&doing, reference, endpoint);
        let mut second = false;
        loop {
            let had = sink.offset();
            let mut fetch =
                Fetch { client: self, endpoint, access: &access, descriptor, progress, offset: had, had, requests: 0 };
            let result;
            (sink, result) = fetch.run(sink).await?;
            let wrong = match result {
                Err(Failure::Server(error)) if error.kind() == Kind::Corrupt => error,
                result => return Ok((sink, result)),
            };
            let restarted;
            (sink, restarted) = on_blocking_pool(sink, BlobSink::restart).await?;
            if let Err(error) = restarted {
                return Ok((sink, Err(Failure::Sink(error))));
            }
            // Pieces may not fit together where one whole would be right.
            if second || fetch.is_of_one_piece() {
                return Ok((sink, Err(Failure::Server(wrong))));
            }
            second = true;
            self.session.notes.say(&format!("{wrong}; downloading it again from the start"));
        }
    }
}

/// Runs a method of the sink where it may block.
async fn on_blocking_pool<S: BlobSink, T: Send + 'static>(
    mut sink: S,
    method: impl FnOnce(&mut S) -> T + Send + 'static,
) -> Result<(S, T)> {
    task::blocking(move || {
        let value = method(&mut sink);
        Ok((sink, value))
    })
    .await
}

/// One download from one server.
struct Fetch<'a> {
    client: &'a Client,
    endpoint: &'a Endpoint,
    access: &'a Access<'a>,
    descriptor: &'a Descriptor,
    progress: &'a Progress,
    /// How much was given to the sink, from the start of the blob.
    offset: u64,
    /// How much was there before.
    had: u64,
    requests: u32,
}

impl Fetch<'_> {
    fn is_of_one_piece(&self) -> bool {
        self.had == 0 && self.requests < 2
    }

    async fn run<S: BlobSink>(&mut self, sink: S) -> Result<(S, Result<(), Failure>)> {
        let (sender, receiver) = mpsc::channel(BATCHES);
        let writing = on_blocking_pool(sink, move |sink| write_all(sink, receiver));
        let (written, received) = tokio::join!(writing, self.receive(sender));
        let (sink, written) = written?;
        if let Err(error) = written {
            return Ok((sink, Err(Failure::Sink(error.context(self.access)))));
        }
        if let Err(error) = received {
            return Ok((sink, Err(Failure::Server(error))));
        }
        let (sink, verified) = on_blocking_pool(sink, BlobSink::verify).await?;
        let verified = verified.map_err(|error| match error.kind() {
            Kind::Corrupt => Failure::Server(self.corrupt(&error)),
            _ => Failure::Sink(error.context(self.access)),
        });
        Ok((sink, verified))
    }

    /// Receives all that is missing, in as many requests as it takes.
    async fn receive(&mut self, sender: mpsc::Sender<Vec<Bytes>>) -> Result<()> {
        let mut attempts = self.client.attempts();
        if self.offset > self.descriptor.size {
            return Err(
                self.corrupt(&format!("it has {} bytes, and {} are here already", self.descriptor.size, self.offset))
            );
        }
        self.progress.set(self.offset);
        while self.offset < self.descriptor.size {
            let before = self.offset;
            let result = self.receive_piece(&sender).await;
            if self.offset > before {
                attempts.progress();
            }
            if let Err(fault) = result {
                attempts.pause(fault, &self.client.session.notes).await?;
            }
        }
        Ok(())
    }

    /// Sends one request and passes on what it yields.
    async fn receive_piece(&mut self, sender: &mpsc::Sender<Vec<Bytes>>) -> Result<(), Fault> {
        self.requests += 1;
        let mut request = Request::new(Method::GET, self.endpoint.url(&format!("blobs/{}", self.descriptor.digest))?);
        if self.offset > 0 {
            let range = HeaderValue::from_str(&format!("bytes={}-", self.offset));
            request = request.header(RANGE, range.expect("digits have a header form"));
        }
        let answer = self.client.call(self.endpoint, self.access, &request).await?;
        let start = match answer.status() {
            // A server that does not know ranges sends everything; what is there already is passed over.
            StatusCode::OK => 0,
            StatusCode::PARTIAL_CONTENT => self.range_start(&answer)?,
            _ => return Err(self.refused(answer).await.into()),
        };
        let size = self.descriptor.size;
        let total = answer.announced_length().map(|length| start.saturating_add(length));
        if let Some(total) = total.filter(|total| *total != size) {
            return Err(self.corrupt(&format!("its size is {size} bytes, the server has {total}")).into());
        }
        let mut batch = Batch::default();
        let result = self.pass_on(answer, self.offset - start, sender, &mut batch).await;
        // What came before a break is worth keeping.
        batch.flush(sender).await?;
        result
    }

    async fn pass_on(
        &mut self,
        mut answer: Answer,
        mut surplus: u64,
        sender: &mpsc::Sender<Vec<Bytes>>,
        batch: &mut Batch,
    ) -> Result<(), Fault> {
        let size = self.descriptor.size;
        while let Some(mut chunk) = answer.chunk().await.map_err(|fault| fault.context(self.access))? {
            let skipped = usize::try_from(surplus).unwrap_or(usize::MAX).min(chunk.len());
            surplus -= skipped as u64;
            let chunk = chunk.split_off(skipped);
            if self.offset + chunk.len() as u64 > size {
                return Err(self.corrupt(&format!("its size is {size} bytes, the server sends more")).into());
            }
            self.offset += chunk.len() as u64;
            self.progress.set(self.offset);
            batch.push(chunk, sender).await?;
        }
        if self.offset == size {
            return Ok(());
        }
        let text = format!("{}: {} stopped after {} of {size} bytes", self.access, self.endpoint.name, self.offset);
        Err(Fault::passing(Error::unavailable(text)))
    }

    /// Returns where the partial content of an answer starts.
    fn range_start(&self, answer: &Answer) -> Result<u64> {
        let range = answer.header(CONTENT_RANGE).and_then(|range| range.strip_prefix("bytes "));
        let start = range.and_then(|range| range.split('-').next()).and_then(|start| start.trim().parse().ok());
        start.filter(|start| *start <= self.offset).ok_or_else(|| {
            self.corrupt(&format!("the server sends another part than the one from byte {} on", self.offset))
        })
    }

    fn corrupt(&self, why: &dyn std::fmt::Display) -> Error {
        Error::corrupt(format!("{} from {}: {why}", self.access, self.endpoint.name))
    }

    async fn refused(&self, answer: Answer) -> Error {
        match answer.status() {
            StatusCode::NOT_FOUND => Error::not_found(format!(
                "{}: {} does not have it, so the image is incomplete there (its publisher should push it again)",
                self.access, self.endpoint.name
            )),
            StatusCode::RANGE_NOT_SATISFIABLE => {
                self.corrupt(&format!("the server has no more than {} bytes", self.offset))
            }
            _ => unexpected(self.endpoint, self.access, answer).await,
        }
    }
}

/// Pieces on their way to the sink.
#[derive(Default)]
struct Batch {
    pieces: Vec<Bytes>,
    bytes: usize,
}

impl Batch {
    async fn push(&mut self, piece: Bytes, sender: &mpsc::Sender<Vec<Bytes>>) -> Result<()> {
        self.bytes += piece.len();
        self.pieces.push(piece);
        if self.bytes >= BATCH { self.flush(sender).await } else { Ok(()) }
    }

    async fn flush(&mut self, sender: &mpsc::Sender<Vec<Bytes>>) -> Result<()> {
        if self.pieces.is_empty() {
            return Ok(());
        }
        self.bytes = 0;
        let pieces = std::mem::take(&mut self.pieces);
        // Whoever waits for the writer gets the writer's own error instead of this one.
        sender.send(pieces).await.map_err(|_| Error::internal("the sink takes no more"))
    }
}

fn write_all(sink: &mut impl BlobSink, mut receiver: mpsc::Receiver<Vec<Bytes>>) -> Result<()> {
    while let Some(batch) = receiver.blocking_recv() {
        batch.iter().try_for_each(|piece| sink.write(piece))?;
    }
    Ok(())
}
