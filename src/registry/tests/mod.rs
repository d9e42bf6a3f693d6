//! Tests of the client against real registries and against one that misbehaves.

#[path = "../../../tests/support/registry.rs"]
mod docker_registry;
mod downloads;
pub(crate) mod fake;
mod logins;
mod manifests;
mod mirrors;
mod real;
mod uploads;

use std::io::Cursor;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use kiln_graph::Digest;
use kiln_graph::oci::{Descriptor, media_type};

use super::*;

/// Patience for tests: the machine is busy, but nothing is far away.
fn patience() -> Patience {
    Patience {
        connect: Duration::from_secs(10),
        answer: Duration::from_secs(10),
        stall: Duration::from_secs(10),
        first_pause: Duration::from_millis(5),
        longest_pause: Duration::from_millis(1500),
    }
}

fn client(registries: Registries) -> Client {
    Client::with_patience(registries, patience())
}

/// A client without any configuration.
pub(crate) fn plain() -> Client {
    client(Registries::default())
}

/// The same connections for a user with a password.
fn as_user(client: &Client, server: &str, user: &str, password: &str) -> Client {
    client.session(Provider::one(server, Credentials::password(user, password)), Notes::none())
}

/// A client that remembers its remarks.
fn with_notes(client: &Client) -> (Client, Arc<Mutex<Vec<String>>>) {
    let remarks = Arc::new(Mutex::new(Vec::new()));
    let kept = Arc::clone(&remarks);
    let notes = Notes::to(move |remark| kept.lock().unwrap().push(remark.to_owned()));
    (client.session(Provider::anonymous(), notes), remarks)
}

/// Bytes that do not repeat, made from a number.
fn noise(len: usize, seed: u64) -> Bytes {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        bytes.extend_from_slice(&next());
    }
    bytes.truncate(len);
    bytes.into()
}

fn layer(blob: &Bytes) -> Descriptor {
    Descriptor::new(media_type::OCI_LAYER, Digest::of(blob), blob.len() as u64)
}

/// The source of an upload.
fn source(blob: &Bytes) -> impl Fn(u64) -> Result<Cursor<Bytes>> + Send + Sync + use<> {
    let blob = blob.clone();
    move |offset| Ok(Cursor::new(blob.slice(usize::try_from(offset).unwrap()..)))
}

/// A blob in memory.
#[derive(Debug)]
struct Memory {
    bytes: Vec<u8>,
    digest: Digest,
    restarts: usize,
}

impl Memory {
    fn new(descriptor: &Descriptor) -> Self {
        Self::holding(&[], descriptor)
    }

    fn holding(bytes: &[u8], descriptor: &Descriptor) -> Self {
        Self { bytes: bytes.to_vec(), digest: descriptor.digest, restarts: 0 }
    }
}

impl BlobSink for Memory {
    fn offset(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.bytes.extend_from_slice(bytes);
        Ok(())
    }

    fn restart(&mut self) -> Result<()> {
        self.bytes.clear();
        self.restarts += 1;
        Ok(())
    }

    fn verify(&mut self) -> Result<()> {
        let found = Digest::of(&self.bytes);
        let wrong = || Err(Error::corrupt(format!("the content has the digest {found}, not {}", self.digest)));
        if found == self.digest { Ok(()) } else { wrong() }
    }
}

const MANIFEST: &str = r#"{"schemaVersion":2,"config":{},"layers":[]}"#;
