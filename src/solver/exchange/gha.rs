//! Caches in the cache of GitHub Actions: version 2 of its protocol, JSON by HTTP, with objects behind signed addresses; and version
//! 1, which servers that stand in for GitHub's speak, with objects that are sent to the service itself.
//!
//! Entries have BuildKit's names and are never changed: a layer is `buildkit-blob-1-DIGEST`; a configuration is
//! `index-SCOPE-1-HASH#NUMBER`, and the newest is found by what its name begins with. The hash is that of the branch that the token
//! may write to.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use bytes::Bytes;
use futures_util::Stream;
use http::header::{self, HeaderName, HeaderValue};
use http::{Method, StatusCode};
use kiln_graph::Digest;
use kiln_graph::oci::Descriptor;
use serde::Deserialize;
use serde_json::{Value, json};

use super::config;
use super::objects::part;
use super::s3::{escape, go_duration};
use crate::error::{Error, Kind, Result, ResultExt as _};
use crate::registry::{Client, ObjectAnswer, ObjectRequest, Secret};
use crate::solver::attrs::Attrs;

/// Where the service is below its address.
const SERVICE: &str = "twirp/github.actions.results.api.v1.CacheService/";

/// The version of entries: that of the library that BuildKit uses, as it hashes it.
const ENTRIES: &str = "|go-actionscache-1.0";

/// The size of a block in bytes.
const BLOCK: usize = 8 << 20;

/// The largest answer that is read besides objects, in bytes.
const MAX_ANSWER: usize = 1 << 20;

/// How often another number is tried for a configuration, when somebody else writes one at the same time.
const ATTEMPTS: u64 = 10;

/// Where the service of version 1 is below its address, and what it calls its protocol.
const SERVICE_V1: &str = "_apis/artifactcache/";
const ACCEPT_V1: &str = "application/json;api-version=6.0-preview.1";

/// The host of version 2 of GitHub's own service, which old clients name as they named that of version 1.
const RECEIVER: &str = "results-receiver.actions.githubusercontent.com";

/// How long the transfer of a layer may take, unless it is said; as with BuildKit.
const TIMEOUT: Duration = Duration::from_mins(10);

/// The versions of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Protocol {
    V1,
    V2,
}

/// What a request says of the service.
#[derive(Clone, Debug)]
pub(in crate::solver) struct GhaOptions {
    url: String,
    protocol: Protocol,
    token: Secret,
    scope: String,
    timeout: Duration,
}

/// The service, with who talks to it.
#[derive(Clone, Debug)]
pub(super) struct Gha {
    client: Client,
    options: GhaOptions,
}

impl GhaOptions {
    /// Takes BuildKit's attributes.
    ///
    /// # Errors
    /// `InvalidArgument` for what is missing or malformed.
    pub(super) fn take(attrs: &mut Attrs<'_>) -> Result<Self> {
        let (new, old) = (attrs.text("url_v2"), attrs.text("url"));
        let protocol = match attrs.text("version") {
            Some("1") => Protocol::V1,
            Some("2") => Protocol::V2,
            Some(other) => return Err(Error::invalid(format!("version={other}: expected 1 or 2"))),
            None if new.is_some() || old.is_none_or(|old| old.contains(RECEIVER)) => Protocol::V2,
            None => Protocol::V1,
        };
        let url = match protocol {
            Protocol::V1 => old.ok_or("the cache gha needs url, which is $ACTIONS_CACHE_URL"),
            Protocol::V2 => new.or(old).ok_or("the cache gha needs url_v2, which is $ACTIONS_RESULTS_URL"),
        };
        let url = url.map_err(Error::invalid)?;
        let token = attrs.text("token");
        let token =
            token.ok_or_else(|| Error::invalid("the cache gha needs token, which is $ACTIONS_RUNTIME_TOKEN"))?;
        // With these BuildKit asks another service which entries exist; here each is asked for.
        attrs.text("ghtoken");
        attrs.text("repository");
        let timeout = match attrs.text("timeout") {
            None => TIMEOUT,
            Some(text) => go_duration(text).context(|| format!("timeout={text}"))?,
        };
        Ok(Self {
            url: format!("{}/", url.trim_end_matches('/')),
            protocol,
            timeout,
            token: Secret::new(token),
            scope: attrs.text("scope").unwrap_or("buildkit").to_owned(),
        })
    }

    /// What progress calls it.
    pub(super) fn shown(&self) -> String {
        format!("gha:{}", self.scope)
    }

    /// What the names of configurations begin with.
    fn index(&self) -> String {
        let hash = Digest::of(writable(self.token.expose()).as_bytes()).hex();
        format!("index-{}-1-{}", self.scope, &hash[..8])
    }
}

/// Returns the branch that a token may write to; empty when it does not say.
fn writable(token: &str) -> String {
    #[derive(Deserialize)]
    struct Claims {
        #[serde(default)]
        ac: String,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Scope {
        scope: String,
        permission: u64,
    }
    let claims = token.split('.').nth(1).and_then(|part| URL_SAFE_NO_PAD.decode(part.trim_end_matches('=')).ok());
    let claims: Option<Claims> = claims.and_then(|json| serde_json::from_slice(&json).ok());
    let scopes: Vec<Scope> = claims.and_then(|claims| serde_json::from_str(&claims.ac).ok()).unwrap_or_default();
    scopes.into_iter().rfind(|scope| scope.permission & 2 != 0).map(|scope| scope.scope).unwrap_or_default()
}

/// The version of entries.
fn version() -> String {
    Digest::of(ENTRIES.as_bytes()).hex()
}

fn blob_key(digest: &Digest) -> String {
    format!("buildkit-blob-1-{digest}")
}

impl Gha {
    pub(super) fn new(client: Client, options: GhaOptions) -> Self {
        Self { client, options }
    }

    /// How long the transfer of a layer may take.
    pub(super) fn timeout(&self) -> Duration {
        self.options.timeout
    }

    /// Asks the service itself.
    async fn ask(
        &self,
        method: Method,
        url: &str,
        headers: Vec<(HeaderName, HeaderValue)>,
        body: Bytes,
    ) -> Result<ObjectAnswer> {
        let invalid = |error: String| Error::invalid(format!("the address {url} of the cache gha: {error}"));
        let url: reqwest::Url = url.parse().map_err(|error| invalid(format!("{error}")))?;
        let bearer = HeaderValue::from_str(&format!("Bearer {}", self.options.token.expose()));
        let mut bearer = bearer.map_err(|_| Error::invalid("the token of the cache gha cannot stand in a header"))?;
        bearer.set_sensitive(true);
        let mut all = vec![(header::AUTHORIZATION, bearer)];
        if self.options.protocol == Protocol::V1 {
            all.push((header::ACCEPT, HeaderValue::from_static(ACCEPT_V1)));
        }
        all.extend(headers);
        self.client.object(&ObjectRequest { method, url, headers: all, body, attempts: None }).await
    }

    /// Calls a method of the service; `None` when it says that there is nothing, or that there is something already.
    async fn call(&self, path: &str, mut message: Value) -> Result<Option<Value>> {
        message["version"] = json!(version());
        let kind = vec![(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))];
        let body = serde_json::to_vec(&message)?.into();
        let answer = self.ask(Method::POST, &format!("{}{path}", self.options.url), kind, body).await?;
        match answer.status() {
            StatusCode::NOT_FOUND | StatusCode::CONFLICT => Ok(None),
            status if status.is_success() => {
                let answer = answer.read(MAX_ANSWER).await?;
                let answer: Value = if answer.is_empty() { json!({}) } else { serde_json::from_slice(&answer)? };
                let is_ok = self.options.protocol == Protocol::V1
                    || answer.get("ok").and_then(Value::as_bool).unwrap_or_default();
                Ok(is_ok.then_some(answer))
            }
            _ => Err(answer.refused().await),
        }
    }

    /// Finds the newest entry whose key begins so: its key and its address.
    async fn find(&self, key: &str) -> Result<Option<(String, String)>> {
        let text = |found: &Value, name: &str| found.get(name).and_then(Value::as_str).map(str::to_owned);
        if self.options.protocol == Protocol::V2 {
            let asked = json!({ "key": key, "restore_keys": [key] });
            let found = self.call(&format!("{SERVICE}GetCacheEntryDownloadURL"), asked).await?;
            return Ok(
                found.and_then(|found| Some((text(&found, "matched_key")?, text(&found, "signed_download_url")?)))
            );
        }
        let (base, keys) = (&self.options.url, escape(key, false));
        let url = format!("{base}{SERVICE_V1}cache?keys={keys}&version={}", version());
        let answer = self.ask(Method::GET, &url, Vec::new(), Bytes::new()).await?;
        match answer.status() {
            StatusCode::NO_CONTENT | StatusCode::NOT_FOUND => Ok(None),
            status if status.is_success() => {
                let found: Value = serde_json::from_slice(&answer.read(MAX_ANSWER).await?)?;
                Ok(text(&found, "cacheKey").zip(text(&found, "archiveLocation")))
            }
            _ => Err(answer.refused().await),
        }
    }

    async fn find_blob(&self, digest: &Digest) -> Result<Option<String>> {
        let key = blob_key(digest);
        Ok(self.find(&key).await?.filter(|(matched, _)| *matched == key).map(|(_, url)| url))
    }

    pub(super) async fn has(&self, digest: &Digest) -> Result<bool> {
        Ok(self.find_blob(digest).await?.is_some())
    }

    async fn fetch(&self, url: &str, offset: u64) -> Result<ObjectAnswer> {
        let mut headers = Vec::new();
        if offset > 0 {
            let range = HeaderValue::from_str(&format!("bytes={offset}-"));
            headers.extend(range.ok().map(|range| (header::RANGE, range)));
        }
        let url = url.parse().map_err(|_| Error::invalid("the service gave an address that is none"))?;
        let answer = self
            .client
            .object(&ObjectRequest { method: Method::GET, url, headers, body: Bytes::new(), attempts: None })
            .await?;
        if answer.status().is_success() { Ok(answer) } else { Err(answer.refused().await) }
    }

    pub(super) async fn blob(&self, digest: &Digest, offset: u64) -> Result<ObjectAnswer> {
        let url = self.find_blob(digest).await?;
        let url = url.ok_or_else(|| Error::not_found(format!("the cache has no entry {}", blob_key(digest))))?;
        self.fetch(&url, offset).await
    }

    pub(super) async fn config(&self) -> Result<Bytes> {
        let index = self.options.index();
        let found = self.find(&format!("{index}#")).await?;
        let (_, url) = found.ok_or_else(|| Error::not_found(format!("there is no cache {index} yet")))?;
        self.fetch(&url, 0).await?.read(usize::try_from(config::MAX_BYTES).unwrap_or(usize::MAX)).await
    }

    pub(super) async fn set_config(&self, config: &Bytes) -> Result<()> {
        let index = self.options.index();
        let last = self.find(&format!("{index}#")).await?;
        let last = last.and_then(|(key, _)| key.rsplit('#').next()?.parse::<u64>().ok()).unwrap_or(0);
        for number in last + 1..=last + ATTEMPTS {
            let key = format!("{index}#{number}");
            let content = futures_util::stream::iter([Ok(config.clone())]);
            if self.create(&key, config.len() as u64, content).await? {
                return Ok(());
            }
        }
        Err(Error::conflict(format!("others write the cache {index} all the time")))
    }

    pub(super) async fn put(
        &self,
        descriptor: &Descriptor,
        content: impl Stream<Item = Result<Bytes>> + Send + Unpin,
    ) -> Result<()> {
        // One that is there is the same.
        self.create(&blob_key(&descriptor.digest), descriptor.size, content).await.map(drop)
    }

    /// Makes an entry; says whether it was not there.
    async fn create(
        &self,
        key: &str,
        size: u64,
        content: impl Stream<Item = Result<Bytes>> + Send + Unpin,
    ) -> Result<bool> {
        if self.options.protocol == Protocol::V1 {
            return self.create_v1(key, size, content).await;
        }
        let Some(created) = self.call(&format!("{SERVICE}CreateCacheEntry"), json!({ "key": key })).await? else {
            return Ok(false);
        };
        let url = created.get("signed_upload_url").and_then(Value::as_str);
        let url = url.ok_or_else(|| Error::invalid("the service gave no address to upload to"))?;
        self.upload(url, content).await?;
        let size = size.to_string();
        let done =
            self.call(&format!("{SERVICE}FinalizeCacheEntryUpload"), json!({ "key": key, "size_bytes": size })).await?;
        done.map(|_| true)
            .ok_or_else(|| Error::new(Kind::Unavailable, format!("the service did not take the entry {key}")))
    }

    /// Makes an entry by version 1 of the protocol, which takes its content in pieces.
    async fn create_v1(
        &self,
        key: &str,
        size: u64,
        mut content: impl Stream<Item = Result<Bytes>> + Send + Unpin,
    ) -> Result<bool> {
        let created = self.call(&format!("{SERVICE_V1}caches"), json!({ "key": key, "cacheSize": size })).await?;
        let Some(created) = created else { return Ok(false) };
        let id = created.get("cacheId").and_then(Value::as_u64);
        let id = id.ok_or_else(|| Error::invalid("the service made an entry without a number"))?;
        let path = format!("{SERVICE_V1}caches/{id}");
        let url = format!("{}{path}", self.options.url);
        let mut offset = 0;
        while let Some(piece) = part(&mut content, BLOCK).await? {
            let end = offset + piece.len() as u64;
            let range = HeaderValue::from_str(&format!("bytes {offset}-{}/*", end - 1));
            let range = range.map_err(|_| Error::internal("a range that is no header"))?;
            let headers = vec![
                (header::CONTENT_RANGE, range),
                (header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream")),
            ];
            let answer = self.ask(Method::PATCH, &url, headers, piece).await?;
            if !answer.status().is_success() {
                return Err(answer.refused().await);
            }
            offset = end;
        }
        let done = self.call(&path, json!({ "size": offset })).await?;
        done.map(|_| true)
            .ok_or_else(|| Error::new(Kind::Unavailable, format!("the service did not take the entry {key}")))
    }

    /// Sends an object in blocks, as Azure's stores take them.
    async fn upload(&self, url: &str, mut content: impl Stream<Item = Result<Bytes>> + Send + Unpin) -> Result<()> {
        let mut list = String::new();
        let mut number = 0;
        while let Some(block) = part(&mut content, BLOCK).await? {
            let id = STANDARD.encode(format!("{number:08}"));
            self.put_part(url, &[("comp", "block"), ("blockid", &id)], block).await?;
            list.push_str(&format!("<Latest>{id}</Latest>"));
            number += 1;
        }
        let body = format!("<?xml version=\"1.0\" encoding=\"utf-8\"?><BlockList>{list}</BlockList>");
        self.put_part(url, &[("comp", "blocklist")], body.into()).await
    }

    async fn put_part(&self, url: &str, query: &[(&str, &str)], body: Bytes) -> Result<()> {
        let mut url: reqwest::Url =
            url.parse().map_err(|_| Error::invalid("the service gave an address that is none"))?;
        url.query_pairs_mut().extend_pairs(query);
        let headers = vec![(HeaderName::from_static("x-ms-blob-type"), HeaderValue::from_static("BlockBlob"))];
        let answer =
            self.client.object(&ObjectRequest { method: Method::PUT, url, headers, body, attempts: None }).await?;
        if answer.status().is_success() { Ok(()) } else { Err(answer.refused().await) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_branch_of_a_token_is_read() {
        let claims = r#"{"ac":"[{\"Scope\":\"refs/heads/main\",\"Permission\":1},{\"Scope\":\"refs/heads/dev\",\"Permission\":3}]"}"#;
        let token = format!("h.{}.s", URL_SAFE_NO_PAD.encode(claims));
        assert_eq!(writable(&token), "refs/heads/dev");
        assert_eq!(writable("nonsense"), "");
    }
}
