//! Manifests and indexes: finding them by name, fetching, verifying and pushing them.
//!
//! A document is returned as the bytes the registry sent, because the digest is over those. What is in it is read only as far
//! as is needed to know its type.

use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_TYPE};
use http::{HeaderValue, Method, StatusCode};
use kiln_graph::oci::{Descriptor, media_type};
use kiln_graph::reference::DEFAULT_TAG;
use kiln_graph::{Algorithm, Digest, Reference};
use serde::Deserialize;
use serde::de::IgnoredAny;
use sha2::Digest as _;

use super::endpoint::Endpoint;
use super::refusal::Refusal;
use super::retry::Fault;
use super::transport::{Answer, Request};
use super::{Access, Client, unexpected};
use crate::error::{Error, Kind, Result};

/// The largest document that is accepted, as in containerd and docker's registry.
const MAX_MANIFEST: usize = 4 << 20;

/// The header in which registries say what they send.
const CONTENT_DIGEST: &str = "docker-content-digest";

/// All types that are understood.
const ACCEPTED: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
     application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json";

/// What a name stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolved {
    /// Type, digest and size of the document.
    pub descriptor: Descriptor,
    /// The manifest or index, verified.
    pub content: Bytes,
    /// The server it came from: the registry's domain, or a mirror.
    pub server: String,
}

impl Client {
    /// Fetches the manifest or index an image name stands for. The digest in the name wins over the tag; without both the
    /// tag is `latest`.
    ///
    /// Mirrors are asked first. At most 4 MiB are read.
    ///
    /// # Errors
    /// `NotFound` when there is no such repository or tag, or the registry does not let this user see it; `Corrupt` when the
    /// content does not have the digest; `Unsupported` for a document that is no image, among them Docker's schema 1;
    /// `Unauthorized` when the credentials are refused; `Unavailable` and `Timeout` when the registry does not answer.
    pub async fn resolve(&self, reference: &Reference) -> Result<Resolved> {
        for mirror in self.mirrors(reference) {
            match self.fetch_from(&mirror, reference).await {
                Ok(resolved) => return Ok(resolved),
                Err(error) => self.skip(&mirror, &error),
            }
        }
        self.fetch_from(&self.registry(reference), reference).await
    }

    /// Returns type, digest and size of what an image name stands for, without its content: a HEAD request, which Docker Hub
    /// does not count as a pull.
    ///
    /// # Errors
    /// Those of [`Client::resolve`].
    pub async fn lookup(&self, reference: &Reference) -> Result<Descriptor> {
        for mirror in self.mirrors(reference) {
            match self.look_at(&mirror, reference).await {
                Ok(descriptor) => return Ok(descriptor),
                Err(error) => self.skip(&mirror, &error),
            }
        }
        self.look_at(&self.registry(reference), reference).await
    }

    /// Says whether a registry has what an image name stands for.
    ///
    /// # Errors
    /// Those of [`Client::resolve`], but for `NotFound`.
    pub async fn has_manifest(&self, reference: &Reference) -> Result<bool> {
        match self.look_at(&self.registry(reference), reference).await {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == Kind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Fetches a manifest or index of a repository by its descriptor, for example one that an index lists.
    ///
    /// # Errors
    /// Those of [`Client::resolve`]; `Corrupt` also when the size is not the descriptor's.
    pub async fn manifest(&self, reference: &Reference, descriptor: &Descriptor) -> Result<Bytes> {
        let resolved = self.resolve(&reference.with_digest(descriptor.digest)).await?;
        if resolved.descriptor.size != descriptor.size {
            let (name, size) = (reference.familiar_repository(), resolved.descriptor.size);
            let (digest, expected) = (descriptor.digest, descriptor.size);
            return Err(Error::corrupt(format!("manifest {name}@{digest} has {size} bytes, not {expected}")));
        }
        Ok(resolved.content)
    }

    /// Pushes a manifest or index under the name's tag, or by digest when the name has one. Everything it refers to must
    /// have been pushed before. Returns its digest.
    ///
    /// # Errors
    /// `Unauthorized` or `Forbidden` when this user may not push; otherwise what the registry says.
    pub async fn push_manifest(&self, reference: &Reference, media_type: &str, content: Bytes) -> Result<Digest> {
        let algorithm = reference.digest().map_or(Algorithm::Sha256, |digest| digest.algorithm());
        let digest = digest_of(algorithm, &content);
        if let Some(named) = reference.digest().filter(|named| *named != digest) {
            return Err(Error::invalid(format!(
                "push {}: the content's digest is {digest}, not {named}",
                reference.familiar()
            )));
        }
        let endpoint = self.registry(reference);
        let access = Access::push("push the manifest of", reference, &endpoint);
        let content_type = HeaderValue::from_str(media_type)
            .map_err(|_| Error::invalid(format!("{media_type:?} is not a media type")))?;
        let request = Request::new(Method::PUT, endpoint.url(&target(reference))?)
            .header(CONTENT_TYPE, content_type)
            .body(content);
        let answer = self.retrying(|| self.call(&endpoint, &access, &request)).await?;
        if !answer.status().is_success() {
            return Err(unexpected(&endpoint, &access, answer).await);
        }
        match stated_digest(&answer) {
            Some(stated) if stated != digest && stated.algorithm() == algorithm => {
                Err(Error::corrupt(format!("{access}: {} stored {stated} instead of {digest}", endpoint.name)))
            }
            _ => Ok(digest),
        }
    }

    async fn fetch_from(&self, endpoint: &Endpoint, reference: &Reference) -> Result<Resolved> {
        let access = Access::pull("fetch the manifest of", reference, endpoint);
        let request = request(Method::GET, endpoint, reference)?;
        self.retrying(|| self.try_fetch(endpoint, &access, &request)).await
    }

    async fn try_fetch(&self, endpoint: &Endpoint, access: &Access<'_>, request: &Request) -> Result<Resolved, Fault> {
        let answer = self.call(endpoint, access, request).await?;
        match answer.status() {
            StatusCode::OK => {}
            StatusCode::NOT_FOUND => return Err(not_found(access.reference, endpoint, answer).await.into()),
            _ => return Err(unexpected(endpoint, access, answer).await.into()),
        }
        let stated_type = answer.header(CONTENT_TYPE).map(str::to_owned);
        let stated_digest = stated_digest(&answer);
        let content = answer.read(MAX_MANIFEST).await.map_err(|fault| fault.context(access))?;
        let wrong = |error: Error| error.context(format!("{access} from {}", endpoint.name));
        let media_type = identify(stated_type.as_deref(), &content).map_err(wrong)?;
        let digest = verify(access.reference, stated_digest, &content).map_err(wrong)?;
        let descriptor = Descriptor::new(media_type, digest, content.len() as u64);
        Ok(Resolved { descriptor, content, server: endpoint.name.clone() })
    }

    async fn look_at(&self, endpoint: &Endpoint, reference: &Reference) -> Result<Descriptor> {
        let access = Access::pull("look up", reference, endpoint);
        let request = request(Method::HEAD, endpoint, reference)?;
        let answer = self.retrying(|| self.call(endpoint, &access, &request)).await?;
        match described(&answer) {
            Some(descriptor) if reference.digest().is_none_or(|digest| digest == descriptor.digest) => Ok(descriptor),
            // A server without HEAD, without the headers, or without the image, which it can only explain in a body.
            _ => Ok(self.fetch_from(endpoint, reference).await?.descriptor),
        }
    }
}

/// The last component of a manifest's address.
fn target(reference: &Reference) -> String {
    match reference.digest() {
        Some(digest) => format!("manifests/{digest}"),
        None => format!("manifests/{}", reference.tag().unwrap_or(DEFAULT_TAG)),
    }
}

fn request(method: Method, endpoint: &Endpoint, reference: &Reference) -> Result<Request> {
    let url = endpoint.url(&target(reference))?;
    Ok(Request::new(method, url).header(ACCEPT, HeaderValue::from_static(ACCEPTED)))
}

fn stated_digest(answer: &Answer) -> Option<Digest> {
    answer.header(CONTENT_DIGEST)?.parse().ok()
}

/// Reads a descriptor out of an answer's head, when it is all there.
fn described(answer: &Answer) -> Option<Descriptor> {
    if answer.status() != StatusCode::OK {
        return None;
    }
    let media_type = known_type(answer.header(CONTENT_TYPE)?)?;
    let size = answer.announced_length().filter(|size| *size > 0)?;
    Some(Descriptor::new(media_type, stated_digest(answer)?, size))
}

async fn not_found(reference: &Reference, endpoint: &Endpoint, answer: Answer) -> Error {
    let refusal = Refusal::read(answer).await;
    let (image, repository) = (reference.familiar(), reference.familiar_repository());
    let why = if refusal.has("NAME_UNKNOWN") {
        format!("{} has no repository `{}`", endpoint.name, endpoint.repository)
    } else {
        match (reference.digest(), reference.tag()) {
            (Some(_), _) => format!("no such digest in repository `{repository}`"),
            (None, tag) => format!("no tag `{}` in repository `{repository}`", tag.unwrap_or(DEFAULT_TAG)),
        }
    };
    Error::not_found(format!("manifest for {image} not found: {why}"))
}

pub(super) fn digest_of(algorithm: Algorithm, content: &[u8]) -> Digest {
    match algorithm {
        Algorithm::Sha256 => Digest::of(content),
        Algorithm::Sha512 => Digest::sha512(sha2::Sha512::digest(content).into()),
    }
}

/// Checks content against the digest that was asked for and the one that was stated; returns its digest.
fn verify(reference: &Reference, stated: Option<Digest>, content: &[u8]) -> Result<Digest> {
    for expected in [reference.digest(), stated].into_iter().flatten() {
        let found = digest_of(expected.algorithm(), content);
        if found != expected {
            return Err(Error::corrupt(format!("the content has the digest {found}, not {expected}")));
        }
    }
    Ok(reference.digest().or(stated).unwrap_or_else(|| Digest::of(content)))
}

/// What tells the kinds of documents apart.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Outline {
    #[serde(default)]
    schema_version: u64,
    #[serde(default)]
    media_type: Option<String>,
    manifests: Option<IgnoredAny>,
    config: Option<IgnoredAny>,
    layers: Option<IgnoredAny>,
    fs_layers: Option<IgnoredAny>,
}

/// Finds out the type of a document from what the server states, what the document says of itself, and its shape.
///
/// They must agree: a document that one reader takes for an index and another for a manifest has two meanings under one
/// digest (CVE-2021-41190).
fn identify(stated: Option<&str>, content: &[u8]) -> Result<&'static str> {
    let stated = stated.map(|text| text.split(';').next().unwrap_or_default().trim());
    let outline: Outline = serde_json::from_slice(content).map_err(|_| not_a_manifest(stated, content))?;
    let says_v1 = stated.is_some_and(|stated| stated.starts_with("application/vnd.docker.distribution.manifest.v1+"));
    if says_v1 || outline.schema_version == 1 || outline.fs_layers.is_some() {
        return Err(Error::unsupported(
            "the image is in Docker's schema 1 format, which was retired in 2017 and cannot be used; ask its publisher to \
             push it again with a current tool",
        ));
    }
    let own = outline.media_type.as_deref();
    let named = match (stated.and_then(known_type), own.and_then(known_type)) {
        (Some(stated), None) if own.is_some() => return Err(differing_types(stated, own.unwrap_or_default())),
        (Some(stated), Some(own)) if stated != own => return Err(differing_types(stated, own)),
        (stated, own) => stated.or(own),
    };
    let is_index = outline.manifests.is_some();
    let is_manifest = outline.config.is_some() && outline.layers.is_some();
    let shape = match (is_index, is_manifest) {
        (true, true) => return Err(Error::corrupt("the document is both a manifest and an index")),
        (true, false) => media_type::OCI_INDEX,
        (false, true) => media_type::OCI_MANIFEST,
        (false, false) => return Err(not_an_image(own.or(stated))),
    };
    match named {
        Some(named) if media_type::is_index(named) != is_index => Err(differing_types(named, shape)),
        Some(named) => Ok(named),
        None if own.is_some() => Err(not_an_image(own)),
        None => Ok(shape),
    }
}

/// Returns the type as one of those that are understood.
fn known_type(text: &str) -> Option<&'static str> {
    let bare = text.split(';').next().unwrap_or_default().trim();
    [media_type::OCI_MANIFEST, media_type::OCI_INDEX, media_type::DOCKER_MANIFEST, media_type::DOCKER_MANIFEST_LIST]
        .into_iter()
        .find(|known| *known == bare)
}

fn differing_types(stated: &str, found: &str) -> Error {
    Error::corrupt(format!("the document is announced as {stated:?} and looks like {found:?}"))
}

fn not_an_image(media_type: Option<&str>) -> Error {
    Error::unsupported(match media_type {
        Some(media_type) => format!("a document of the type {media_type:?} is no image manifest"),
        None => "the document is no image manifest".to_owned(),
    })
}

fn not_a_manifest(stated: Option<&str>, content: &[u8]) -> Error {
    let page = stated == Some("text/html") || content.trim_ascii_start().starts_with(b"<");
    if page {
        Error::unavailable(
            "a web page came instead of a manifest (is the registry's name right, and no login page between?)",
        )
    } else {
        Error::corrupt("the document is not a JSON object")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INDEX: &str = r#"{"schemaVersion":2,"manifests":[]}"#;
    const MANIFEST: &str = r#"{"schemaVersion":2,"config":{},"layers":[]}"#;

    fn named(document: &str, media_type: &str) -> String {
        document.replacen('{', &format!(r#"{{"mediaType":"{media_type}","#), 1)
    }

    #[test]
    fn a_documents_type_is_what_everything_agrees_on() {
        let (list, manifest) = (media_type::DOCKER_MANIFEST_LIST, media_type::DOCKER_MANIFEST);
        for (stated, document, expected) in [
            (Some(list), INDEX.to_owned(), list),
            (Some(media_type::OCI_INDEX), named(INDEX, media_type::OCI_INDEX), media_type::OCI_INDEX),
            (None, named(MANIFEST, manifest), manifest),
            (Some("text/plain; charset=utf-8"), named(MANIFEST, manifest), manifest),
            (Some("application/json"), MANIFEST.to_owned(), media_type::OCI_MANIFEST),
            (None, INDEX.to_owned(), media_type::OCI_INDEX),
            (Some(&*format!("{manifest}; charset=utf-8")), MANIFEST.to_owned(), manifest),
        ] {
            assert_eq!(identify(stated, document.as_bytes()).unwrap(), expected, "{stated:?} {document}");
        }
    }

    #[test]
    fn documents_with_two_meanings_or_none_are_refused() {
        let v1 = "application/vnd.docker.distribution.manifest.v1+prettyjws";
        let both = r#"{"schemaVersion":2,"manifests":[],"config":{},"layers":[]}"#;
        for (stated, document, kind, words) in [
            (Some(v1), MANIFEST.to_owned(), Kind::Unsupported, "schema 1"),
            (None, r#"{"schemaVersion":1,"fsLayers":[]}"#.to_owned(), Kind::Unsupported, "schema 1"),
            (None, both.to_owned(), Kind::Corrupt, "both"),
            (Some(media_type::OCI_INDEX), MANIFEST.to_owned(), Kind::Corrupt, "looks like"),
            (Some(media_type::OCI_INDEX), named(INDEX, media_type::OCI_MANIFEST), Kind::Corrupt, "looks like"),
            (Some(media_type::OCI_MANIFEST), named(MANIFEST, "x/y"), Kind::Corrupt, "looks like"),
            (None, named(MANIFEST, "application/vnd.other+json"), Kind::Unsupported, "vnd.other"),
            (Some("text/html"), "<!doctype html>".to_owned(), Kind::Unavailable, "web page"),
            (None, "{}".to_owned(), Kind::Unsupported, "no image manifest"),
            (None, "[]".to_owned(), Kind::Corrupt, "not a JSON object"),
            (None, String::new(), Kind::Corrupt, "not a JSON object"),
        ] {
            let error = identify(stated, document.as_bytes()).unwrap_err();
            assert_eq!(error.kind(), kind, "{stated:?} {document}: {error}");
            assert!(error.to_string().contains(words), "{error}");
        }
    }

    #[test]
    fn content_must_have_both_the_digest_asked_for_and_the_one_stated() {
        let content = b"content";
        let (right, wrong) = (Digest::of(content), Digest::of(b"other"));
        let tagged: Reference = "a:b".parse().unwrap();
        assert_eq!(verify(&tagged, Some(right), content).unwrap(), right);
        assert_eq!(verify(&tagged, None, content).unwrap(), right);
        let long = digest_of(Algorithm::Sha512, content);
        assert_eq!(verify(&tagged.with_digest(long), Some(right), content).unwrap(), long);
        assert!(verify(&tagged.with_digest(wrong), Some(right), content).is_err());
        assert!(verify(&tagged.with_digest(right), Some(wrong), content).is_err());
    }
}
