//! Caches in Azure's Blob Storage: requests signed with the account's key (Shared Key), large blobs in blocks.
//!
//! Blobs have BuildKit's names: `PREFIX/manifests/NAME` is a configuration, `PREFIX/blobs/DIGEST` a layer. Identities of Azure, which
//! BuildKit asks when there is no key, are not asked here.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures_util::{FutureExt as _, Stream};
use http::header::{self, HeaderName, HeaderValue};
use http::{Method, StatusCode};
use kiln_graph::Digest;
use kiln_graph::oci::Descriptor;
use ring::hmac;
use tokio::sync::OnceCell;

use super::objects::{first_config, part};
use super::s3::escape;
use crate::error::{Error, Result, ResultExt as _};
use crate::registry::{Client, ObjectAnswer, ObjectRequest, Secret};
use crate::solver::attrs::Attrs;
use crate::task::Clock;

/// The version of the service's protocol.
const VERSION: &str = "2020-10-02";

/// The size of a block in bytes, unless there would be more than [`MAX_BLOCKS`].
const BLOCK: u64 = 8 << 20;

/// How many blocks a blob may have.
const MAX_BLOCKS: u64 = 50_000;

/// What a request says of a container of blobs.
#[derive(Clone, Debug)]
pub(in crate::solver) struct AzureOptions {
    url: reqwest::Url,
    account: String,
    key: Secret,
    container: String,
    manifests: String,
    blobs: String,
    names: Vec<String>,
}

/// A container, with who talks to it.
#[derive(Clone, Debug)]
pub(super) struct Azure {
    client: Client,
    clock: Clock,
    options: Arc<AzureOptions>,
    /// Set once the container is there.
    made: Arc<OnceCell<()>>,
}

impl AzureOptions {
    /// Takes BuildKit's attributes.
    ///
    /// # Errors
    /// `InvalidArgument` for what is missing or malformed.
    pub(super) fn take(attrs: &mut Attrs<'_>) -> Result<Self> {
        let url = attrs
            .text("account_url")
            .ok_or_else(|| Error::invalid("the cache azblob needs account_url=https://NAME.blob.core.windows.net"))?;
        let invalid = |why: &str| Error::invalid(format!("account_url={url}: {why}"));
        let mut address: reqwest::Url =
            url.trim_end_matches('/').parse().map_err(|error| invalid(&format!("{error}")))?;
        let host = address.host_str().filter(|_| matches!(address.scheme(), "http" | "https"));
        let host = host.ok_or_else(|| invalid("expected an address of HTTP"))?;
        let of_host = host.split('.').next().unwrap_or_default().to_owned();
        address.set_query(None);
        let key = attrs.text("secret_access_key").ok_or_else(|| {
            Error::invalid("the cache azblob needs secret_access_key: identities of Azure are not asked for one")
        })?;
        STANDARD.decode(key).map_err(|_| Error::invalid("secret_access_key: a key of an account is base64"))?;
        let prefix = attrs.text("prefix").unwrap_or_default().to_owned();
        let below = |name: &str| {
            let parts = [prefix.as_str(), name].into_iter().flat_map(|part| part.split('/'));
            parts.filter(|part| !part.is_empty()).map(|part| format!("{part}/")).collect::<String>()
        };
        let names = attrs.text("name").unwrap_or("buildkit").split(';').map(str::trim).filter(|name| !name.is_empty());
        Ok(Self {
            url: address,
            account: attrs.text("account_name").map_or(of_host, str::to_owned),
            key: Secret::new(key),
            container: attrs.text("container").unwrap_or("buildkit-cache").to_owned(),
            manifests: below(attrs.text("manifests_prefix").unwrap_or("manifests")),
            blobs: below(attrs.text("blobs_prefix").unwrap_or("blobs")),
            names: names.map(str::to_owned).collect(),
        })
    }

    /// What progress calls it.
    pub(super) fn shown(&self) -> String {
        format!("azblob:{}", self.names.join(";"))
    }

    /// Returns the address of a key, or that of the container.
    fn address(&self, key: Option<&str>) -> reqwest::Url {
        let mut url = self.url.clone();
        let base = url.path().trim_end_matches('/').to_owned();
        let key = key.map(|key| format!("/{}", escape(key, true))).unwrap_or_default();
        url.set_path(&format!("{base}/{}{key}", escape(&self.container, false)));
        url
    }

    fn blob_key(&self, digest: &Digest) -> String {
        format!("{}{digest}", self.blobs)
    }
}

/// Signs a request as the service's manual has it ("Authorize with Shared Key"). `now_s` is in seconds since 1970.
fn sign(options: &AzureOptions, request: &mut ObjectRequest, now_s: i64) -> Result<()> {
    let time = jiff::Timestamp::from_second(now_s).map_err(|_| Error::internal("the clock is out of range"))?;
    let date = time.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string();
    let value = |text: &str| {
        let mut value = HeaderValue::from_str(text)
            .map_err(|_| Error::invalid("the account of the cache azblob cannot stand in a header"))?;
        value.set_sensitive(true);
        Ok::<_, Error>(value)
    };
    request.headers.push((HeaderName::from_static("x-ms-date"), value(&date)?));
    request.headers.push((HeaderName::from_static("x-ms-version"), HeaderValue::from_static(VERSION)));
    let header = |name: HeaderName| {
        let found = request.headers.iter().find(|(known, _)| *known == name);
        found.and_then(|(_, value)| value.to_str().ok()).unwrap_or_default()
    };
    let length = if request.body.is_empty() { String::new() } else { request.body.len().to_string() };
    let mut own: Vec<String> = request
        .headers
        .iter()
        .filter(|(name, _)| name.as_str().starts_with("x-ms-"))
        .map(|(name, value)| format!("{name}:{}\n", value.to_str().unwrap_or_default().trim()))
        .collect();
    own.sort();
    let mut query: Vec<String> =
        request.url.query_pairs().map(|(key, value)| format!("\n{}:{value}", key.to_ascii_lowercase())).collect();
    query.sort();
    // Between the length and the range are a digest, a type, a date and four conditions, none of which is sent.
    let text = format!(
        "{}\n\n\n{length}\n\n{}\n\n\n\n\n\n{}\n{}/{}{}{}",
        request.method,
        header(header::CONTENT_TYPE),
        header(header::RANGE),
        own.concat(),
        options.account,
        request.url.path(),
        query.concat()
    );
    let key = STANDARD.decode(options.key.expose()).map_err(|_| Error::internal("a key that was checked"))?;
    let signature = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &key), text.as_bytes());
    let authorization = format!("SharedKey {}:{}", options.account, STANDARD.encode(signature));
    request.headers.push((header::AUTHORIZATION, value(&authorization)?));
    Ok(())
}

impl Azure {
    pub(super) fn new(client: Client, clock: Clock, options: AzureOptions) -> Self {
        Self { client, clock, options: Arc::new(options), made: Arc::default() }
    }

    async fn send(
        &self,
        method: Method,
        key: Option<&str>,
        query: &[(&str, &str)],
        headers: Vec<(HeaderName, HeaderValue)>,
        body: Bytes,
    ) -> Result<ObjectAnswer> {
        let mut url = self.options.address(key);
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        let mut request = ObjectRequest { method, url, headers, body, attempts: None };
        sign(&self.options, &mut request, self.clock.now_ns() / 1_000_000_000)?;
        self.client.object(&request).await
    }

    /// Makes the container, if it is not there.
    async fn make(&self) -> Result<()> {
        let make = || async {
            let query = [("restype", "container")];
            let answer = self.send(Method::PUT, None, &query, Vec::new(), Bytes::new()).await?;
            match answer.status() {
                StatusCode::CONFLICT => Ok(()),
                status if status.is_success() => Ok(()),
                _ => Err(answer.refused().await),
            }
        };
        self.made
            .get_or_try_init(make)
            .await
            .copied()
            .context(|| format!("make the container {}", self.options.container))
    }

    pub(super) async fn has(&self, digest: &Digest) -> Result<bool> {
        let key = self.options.blob_key(digest);
        let answer = self.send(Method::HEAD, Some(&key), &[], Vec::new(), Bytes::new()).await?;
        match answer.status() {
            StatusCode::NOT_FOUND => Ok(false),
            status if status.is_success() => Ok(true),
            _ => Err(answer.refused().await),
        }
    }

    pub(super) async fn blob(&self, digest: &Digest, offset: u64) -> Result<ObjectAnswer> {
        let mut headers = Vec::new();
        if offset > 0 {
            let range = HeaderValue::from_str(&format!("bytes={offset}-"));
            headers.extend(range.ok().map(|range| (header::RANGE, range)));
        }
        let key = self.options.blob_key(digest);
        let answer = self.send(Method::GET, Some(&key), &[], headers, Bytes::new()).await?;
        if answer.status().is_success() { Ok(answer) } else { Err(answer.refused().await) }
    }

    pub(super) async fn config(&self) -> Result<Bytes> {
        let place = format!("container {}", self.options.container);
        let get = |name| {
            let key = format!("{}{name}", self.options.manifests);
            async move { self.send(Method::GET, Some(&key), &[], Vec::new(), Bytes::new()).await }.boxed()
        };
        first_config(&self.options.names, &place, get).await
    }

    pub(super) async fn set_config(&self, config: &Bytes) -> Result<()> {
        self.make().await?;
        for name in &self.options.names {
            self.put_whole(&format!("{}{name}", self.options.manifests), config.clone()).await?;
        }
        Ok(())
    }

    async fn put_whole(&self, key: &str, body: Bytes) -> Result<()> {
        let kind = (HeaderName::from_static("x-ms-blob-type"), HeaderValue::from_static("BlockBlob"));
        self.put_part(key, &[], vec![kind], body).await
    }

    async fn put_part(
        &self,
        key: &str,
        query: &[(&str, &str)],
        headers: Vec<(HeaderName, HeaderValue)>,
        body: Bytes,
    ) -> Result<()> {
        let answer = self.send(Method::PUT, Some(key), query, headers, body).await?;
        if answer.status().is_success() { Ok(()) } else { Err(answer.refused().await) }
    }

    pub(super) async fn put(
        &self,
        descriptor: &Descriptor,
        mut content: impl Stream<Item = Result<Bytes>> + Send + Unpin,
    ) -> Result<()> {
        self.make().await?;
        let key = self.options.blob_key(&descriptor.digest);
        let size = usize::try_from(BLOCK.max(descriptor.size / MAX_BLOCKS + 1)).unwrap_or(usize::MAX);
        let first = part(&mut content, size).await?.unwrap_or_default();
        if first.len() as u64 >= descriptor.size {
            return self.put_whole(&key, first).await;
        }
        let (mut next, mut list, mut number) = (Some(first), String::new(), 0);
        while let Some(block) = next {
            let id = STANDARD.encode(format!("{number:08}"));
            self.put_part(&key, &[("comp", "block"), ("blockid", &id)], Vec::new(), block).await?;
            list.push_str(&format!("<Latest>{id}</Latest>"));
            number += 1;
            next = part(&mut content, size).await?;
        }
        let list = format!("<?xml version=\"1.0\" encoding=\"utf-8\"?><BlockList>{list}</BlockList>");
        self.put_part(&key, &[("comp", "blocklist")], Vec::new(), list.into()).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::solver::request::CacheSpec;

    /// The account and the key that Azure's emulator is known by.
    const ACCOUNT: &str = "devstoreaccount1";
    const KEY: &str = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==";

    fn options(more: &[(&str, &str)]) -> Result<AzureOptions> {
        let base = [("account_url", "https://devstoreaccount1.blob.core.windows.net/"), ("secret_access_key", KEY)];
        let attrs = base.iter().chain(more).map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        AzureOptions::take(&mut Attrs::of_cache(&CacheSpec { kind: "azblob".to_owned(), attrs }))
    }

    #[test]
    fn names_are_buildkits() {
        let plain = options(&[]).unwrap();
        assert_eq!((plain.account.as_str(), plain.container.as_str()), (ACCOUNT, "buildkit-cache"));
        let digest = Digest::of(b"x");
        assert_eq!(plain.blob_key(&digest), format!("blobs/{digest}"));
        let own =
            options(&[("prefix", "a/b/"), ("blobs_prefix", "l"), ("container", "c"), ("name", "one; two")]).unwrap();
        assert_eq!((own.blob_key(&digest), own.manifests.as_str()), (format!("a/b/l/{digest}"), "a/b/manifests/"));
        assert_eq!(own.names, ["one", "two"]);
        let local =
            options(&[("account_url", "http://127.0.0.1:1/devstoreaccount1"), ("account_name", ACCOUNT)]).unwrap();
        assert_eq!(local.address(Some("a b")).as_str(), "http://127.0.0.1:1/devstoreaccount1/buildkit-cache/a%20b");
        assert!(!format!("{plain:?}").contains("Eby8"), "secrets are not shown");
        for (more, words) in [
            (("account_url", "ftp://x"), "account_url"),
            (("secret_access_key", "no base64!"), "base64"),
            (("secret_access_key", ""), "identities of Azure"),
        ] {
            let error = options(&[more]).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
    }

    /// Computed with openssl from the text that the service's manual describes.
    #[test]
    fn requests_are_signed_with_the_accounts_key() {
        let options = options(&[]).unwrap();
        let mut url = options.address(Some("blobs/x"));
        url.set_query(Some("comp=block&blockid=MDA%3D"));
        let mut request =
            ObjectRequest { method: Method::PUT, url, headers: Vec::new(), body: "hello".into(), attempts: None };
        sign(&options, &mut request, 1_445_412_480).unwrap();
        let header = |name: &str| {
            let found = request.headers.iter().find(|(known, _)| known.as_str() == name);
            found.unwrap().1.to_str().unwrap().to_owned()
        };
        assert_eq!(header("x-ms-date"), "Wed, 21 Oct 2015 07:28:00 GMT");
        assert_eq!(header("authorization"), "SharedKey devstoreaccount1:gqyciFpTbwKyhkRFGHZ2eeyDWn+HzlI8Dv94kH5PXO4=");
    }
}
