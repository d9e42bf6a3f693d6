//! Caches in object stores that speak S3: requests signed as AWS has it (signature version 4), large objects in parts.
//!
//! Objects have BuildKit's names: `PREFIX manifests/NAME` is a configuration, `PREFIX blobs/DIGEST` a layer.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{FutureExt as _, Stream};
use http::header::{self, HeaderName, HeaderValue};
use http::{Method, StatusCode};
use kiln_graph::Digest;
use kiln_graph::oci::Descriptor;
use ring::hmac;
use tokio::sync::OnceCell;

use super::objects::{first_config, part};
use crate::error::{Error, Kind, Result, ResultExt as _};
use crate::registry::{AwsCredentials, Client, ObjectAnswer, ObjectRequest, Secret};
use crate::solver::attrs::Attrs;
use crate::task::{self, Clock};

/// The size of a part in bytes, unless there would be more than [`MAX_PARTS`].
const PART: u64 = 8 << 20;

/// How many parts an object may have.
const MAX_PARTS: u64 = 10_000;

/// The largest answer that is read besides objects, in bytes.
const MAX_ANSWER: usize = 1 << 20;

/// What a request attribute says of a store.
#[derive(Clone, Debug)]
pub(in crate::solver) struct S3Options {
    bucket: String,
    region: Option<String>,
    endpoint: Option<String>,
    path_style: bool,
    credentials: Option<AwsCredentials>,
    attempts: Option<u32>,
    prefix: String,
    manifests: String,
    blobs: String,
    names: Vec<String>,
    refresh: Duration,
    uploads: usize,
}

/// A store, with who talks to it.
#[derive(Clone, Debug)]
pub(super) struct S3 {
    client: Client,
    clock: Clock,
    options: Arc<S3Options>,
    caller: Arc<OnceCell<Caller>>,
    pub(super) uploads: usize,
}

/// Who asks a store, and in which region it is.
#[derive(Debug)]
struct Caller {
    region: String,
    credentials: AwsCredentials,
}

impl S3Options {
    /// Takes BuildKit's attributes.
    ///
    /// # Errors
    /// `InvalidArgument` for what is missing or malformed.
    pub(super) fn take(attrs: &mut Attrs<'_>) -> Result<Self> {
        let need = |value: Option<&str>, key: &str| {
            value.map(str::to_owned).ok_or_else(|| Error::invalid(format!("the cache s3 needs {key}")))
        };
        let bucket = need(attrs.text("bucket"), "bucket=NAME")?;
        let session_token = attrs.text("session_token").map(Secret::new);
        let credentials = match (attrs.text("access_key_id"), attrs.text("secret_access_key")) {
            (None, None) => None,
            (access_key, secret_key) => Some(AwsCredentials {
                access_key: need(access_key, "access_key_id beside secret_access_key")?,
                secret_key: Secret::new(need(secret_key, "secret_access_key beside access_key_id")?),
                session_token,
            }),
        };
        match attrs.text("retry_mode") {
            None | Some("standard") => {}
            Some("adaptive") => {
                return Err(Error::unsupported(
                    "the cache option retry_mode=adaptive is not supported: requests are tried again after pauses that grow and \
                     that the service may ask for (retry_mode=standard)",
                ));
            }
            Some(other) => return Err(Error::invalid(format!("retry_mode={other}: expected standard"))),
        }
        // Signatures are of no such header, which is what this is about.
        attrs.flag("disable_accept_encoding")?;
        // As with AWS, 0 is as many as usual.
        let attempts = attrs.number("retry_max_attempts")?.filter(|attempts| *attempts > 0);
        let refresh = match attrs.text("touch_refresh") {
            None => Duration::from_hours(24),
            Some(text) => go_duration(text).context(|| format!("touch_refresh={text}"))?,
        };
        let uploads = attrs.number("upload_parallelism")?.unwrap_or(4);
        if uploads == 0 {
            return Err(Error::invalid("upload_parallelism=0: at least 1"));
        }
        let names = attrs.text("name").unwrap_or("buildkit").split(';').map(str::trim).filter(|name| !name.is_empty());
        Ok(Self {
            bucket,
            region: attrs.text("region").map(str::to_owned),
            credentials,
            attempts,
            names: names.map(str::to_owned).collect(),
            endpoint: attrs.text("endpoint_url").map(|url| url.trim_end_matches('/').to_owned()),
            path_style: attrs.flag("use_path_style")? == Some(true),
            prefix: attrs.text("prefix").unwrap_or_default().to_owned(),
            manifests: attrs.text("manifests_prefix").unwrap_or("manifests/").to_owned(),
            blobs: attrs.text("blobs_prefix").unwrap_or("blobs/").to_owned(),
            refresh,
            uploads,
        })
    }

    /// What progress calls it.
    pub(super) fn shown(&self) -> String {
        format!("s3:{}", self.names.join(";"))
    }

    /// Returns the address of a key, in the form that is signed, and of the host.
    fn address(&self, region: &str, key: &str) -> Result<reqwest::Url> {
        let endpoint = self.endpoint.clone().unwrap_or_else(|| format!("https://s3.{region}.amazonaws.com"));
        let mut url: reqwest::Url =
            endpoint.parse().map_err(|error| Error::invalid(format!("endpoint_url={endpoint}: {error}")))?;
        let host = url.host_str().unwrap_or_default().to_owned();
        let is_address = host.trim_matches(['[', ']']).parse::<std::net::IpAddr>().is_ok();
        let is_name = host != "localhost" && !is_address;
        let key = escape(key, true);
        let base = url.path().trim_end_matches('/').to_owned();
        if self.path_style || !is_name {
            url.set_path(&format!("{base}/{}/{key}", escape(&self.bucket, false)));
        } else {
            let bucket = format!("{}.{host}", self.bucket);
            url.set_host(Some(&bucket)).map_err(|error| Error::invalid(format!("bucket={}: {error}", self.bucket)))?;
            url.set_path(&format!("{base}/{key}"));
        }
        Ok(url)
    }

    fn blob_key(&self, digest: &Digest) -> String {
        format!("{}{}{digest}", self.prefix, self.blobs)
    }

    fn config_key(&self, name: &str) -> String {
        format!("{}{}{name}", self.prefix, self.manifests)
    }
}

/// Reads a length of time as Go writes it: `24h`, `1h30m`.
pub(super) fn go_duration(text: &str) -> Result<Duration> {
    let invalid = || Error::invalid("expected numbers with units, such as 24h");
    let (mut rest, mut total) = (text, 0.0);
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(invalid)?;
        let (number, after) = rest.split_at(digits);
        let letters = after.find(|c: char| c.is_ascii_digit()).unwrap_or(after.len());
        let (unit, after) = after.split_at(letters);
        let seconds = match unit {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            _ => return Err(invalid()),
        };
        total += number.parse::<f64>().map_err(|_| invalid())? * seconds;
        rest = after;
    }
    Duration::try_from_secs_f64(total).map_err(|_| invalid())
}

/// Escapes as signatures have it; `path` leaves slashes.
pub(super) fn escape(text: &str, path: bool) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => escaped.push(char::from(byte)),
            b'/' if path => escaped.push('/'),
            other => escaped.push_str(&format!("%{other:02X}")),
        }
    }
    escaped
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn mac(key: &[u8], data: &str) -> Vec<u8> {
    hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), data.as_bytes()).as_ref().to_vec()
}

/// Signs a request: AWS Signature Version 4, in headers. `now` is in seconds since 1970.
fn sign(caller: &Caller, request: &mut ObjectRequest, now_s: i64) -> Result<()> {
    let Caller { region, credentials } = caller;
    let time = jiff::Timestamp::from_second(now_s).map_err(|_| Error::internal("the clock is out of range"))?;
    let (stamp, day) = (time.strftime("%Y%m%dT%H%M%SZ").to_string(), time.strftime("%Y%m%d").to_string());
    let payload = Digest::of(&request.body).hex();
    let host = match (request.url.host_str().unwrap_or_default(), request.url.port()) {
        (host, Some(port)) => format!("{host}:{port}"),
        (host, None) => host.to_owned(),
    };
    let mut headers = vec![("host".to_owned(), host)];
    headers.extend(
        request
            .headers
            .iter()
            .filter(|(name, _)| name.as_str().starts_with("x-amz-"))
            .map(|(name, value)| (name.as_str().to_owned(), value.to_str().unwrap_or_default().to_owned())),
    );
    headers.push(("x-amz-content-sha256".to_owned(), payload.clone()));
    headers.push(("x-amz-date".to_owned(), stamp.clone()));
    headers.extend(
        credentials.session_token.iter().map(|token| ("x-amz-security-token".to_owned(), token.expose().to_owned())),
    );
    headers.sort();
    let names = headers.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(";");
    let mut query: Vec<(String, String)> =
        request.url.query_pairs().map(|(key, value)| (escape(&key, false), escape(&value, false))).collect();
    query.sort();
    let query = query.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join("&");
    let listed: String = headers.iter().map(|(name, value)| format!("{name}:{}\n", value.trim())).collect();
    let canonical = format!("{}\n{}\n{query}\n{listed}\n{names}\n{payload}", request.method, request.url.path());
    let scope = format!("{day}/{region}/s3/aws4_request");
    let digest = Digest::of(canonical.as_bytes()).hex();
    let text = format!("AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{digest}");
    let key = mac(format!("AWS4{}", credentials.secret_key.expose()).as_bytes(), &day);
    let key = mac(&mac(&mac(&key, region), "s3"), "aws4_request");
    let signature = hex(&mac(&key, &text));
    let authorization = format!(
        "AWS4-HMAC-SHA256 Credential={}/{scope}, SignedHeaders={names}, Signature={signature}",
        credentials.access_key
    );
    let value = |text: &str| {
        let mut value = HeaderValue::from_str(text)
            .map_err(|_| Error::invalid("credentials of S3 that cannot stand in a header"))?;
        value.set_sensitive(true);
        Ok::<_, Error>(value)
    };
    for (name, text) in headers.iter().filter(|(name, _)| name != "host") {
        let name: HeaderName = name.parse().map_err(|_| Error::internal("a header without a name"))?;
        request.headers.retain(|(known, _)| *known != name);
        request.headers.push((name, value(text)?));
    }
    request.headers.push((header::AUTHORIZATION, value(&authorization)?));
    Ok(())
}

impl S3 {
    pub(super) fn new(client: Client, clock: Clock, options: S3Options) -> Self {
        let uploads = options.uploads;
        Self { client, clock, options: Arc::new(options), caller: Arc::default(), uploads }
    }

    /// Returns who asks: as the attributes say, or else where AWS's own tools look.
    async fn caller(&self) -> Result<&Caller> {
        let find = || {
            let (client, options) = (self.client.clone(), Arc::clone(&self.options));
            task::blocking(move || {
                let aws = client.aws();
                let region = match &options.region {
                    Some(region) => Some(region.clone()),
                    None => aws.region()?,
                };
                let region = region.ok_or_else(|| Error::invalid("the cache s3 needs region=NAME, or AWS_REGION"))?;
                let credentials = match &options.credentials {
                    Some(credentials) => Some(credentials.clone()),
                    None => aws.credentials()?,
                };
                let credentials = credentials.ok_or_else(|| {
                    Error::unauthorized(
                        "the cache s3 needs access_key_id and secret_access_key: there are none in the environment (\
                         AWS_ACCESS_KEY_ID), and no profile in AWS's shared files; metadata of instances is not asked",
                    )
                })?;
                Ok(Caller { region, credentials })
            })
        };
        self.caller.get_or_try_init(find).await
    }

    async fn send(
        &self,
        method: Method,
        key: &str,
        query: &[(&str, &str)],
        headers: Vec<(HeaderName, HeaderValue)>,
        body: Bytes,
    ) -> Result<ObjectAnswer> {
        let caller = self.caller().await?;
        let mut url = self.options.address(&caller.region, key)?;
        if !query.is_empty() {
            let pairs = query.iter().map(|(key, value)| format!("{}={}", escape(key, false), escape(value, false)));
            url.set_query(Some(&pairs.collect::<Vec<_>>().join("&")));
        }
        let mut request = ObjectRequest { method, url, headers, body, attempts: self.options.attempts };
        sign(caller, &mut request, self.clock.now_ns() / 1_000_000_000)?;
        self.client.object(&request).await
    }

    pub(super) async fn has(&self, digest: &Digest) -> Result<bool> {
        let key = self.options.blob_key(digest);
        let answer = self.send(Method::HEAD, &key, &[], Vec::new(), Bytes::new()).await?;
        match answer.status() {
            StatusCode::NOT_FOUND => return Ok(false),
            status if !status.is_success() => return Err(answer.refused().await),
            _ => {}
        }
        let modified = answer.header(header::LAST_MODIFIED).and_then(http_date_s);
        let age_s = modified.map(|modified| self.clock.now_ns() / 1_000_000_000 - modified);
        let refresh_s = i64::try_from(self.options.refresh.as_secs()).unwrap_or(i64::MAX);
        if age_s.is_some_and(|age| age > refresh_s) {
            self.touch(&key).await?;
        }
        Ok(true)
    }

    /// Makes an object new, so that rules about old ones do not remove it: it is copied to itself.
    async fn touch(&self, key: &str) -> Result<()> {
        let source = format!("{}/{}", escape(&self.options.bucket, false), escape(key, true));
        let header = |name: &'static str, value: &str| {
            let value = HeaderValue::from_str(value).map_err(|_| Error::internal("a key that is no header"))?;
            Ok::<_, Error>((HeaderName::from_static(name), value))
        };
        let headers = vec![header("x-amz-copy-source", &source)?, header("x-amz-metadata-directive", "REPLACE")?];
        let answer = self.send(Method::PUT, key, &[], headers, Bytes::new()).await?;
        if answer.status().is_success() { Ok(()) } else { Err(answer.refused().await) }
    }

    pub(super) async fn blob(&self, digest: &Digest, offset: u64) -> Result<ObjectAnswer> {
        let mut headers = Vec::new();
        if offset > 0 {
            let range = HeaderValue::from_str(&format!("bytes={offset}-"));
            headers.extend(range.ok().map(|range| (header::RANGE, range)));
        }
        let answer = self.send(Method::GET, &self.options.blob_key(digest), &[], headers, Bytes::new()).await?;
        if answer.status().is_success() { Ok(answer) } else { Err(answer.refused().await) }
    }

    pub(super) async fn config(&self) -> Result<Bytes> {
        let place = format!("bucket {}", self.options.bucket);
        let get = |name: &str| {
            let key = self.options.config_key(name);
            async move { self.send(Method::GET, &key, &[], Vec::new(), Bytes::new()).await }.boxed()
        };
        first_config(&self.options.names, &place, get).await
    }

    pub(super) async fn set_config(&self, config: &Bytes) -> Result<()> {
        for name in &self.options.names {
            self.put_object(&self.options.config_key(name), config.clone()).await?;
        }
        Ok(())
    }

    async fn put_object(&self, key: &str, body: Bytes) -> Result<()> {
        let answer = self.send(Method::PUT, key, &[], Vec::new(), body).await?;
        if answer.status().is_success() { Ok(()) } else { Err(answer.refused().await) }
    }

    pub(super) async fn put(
        &self,
        descriptor: &Descriptor,
        mut content: impl Stream<Item = Result<Bytes>> + Send + Unpin,
    ) -> Result<()> {
        let key = self.options.blob_key(&descriptor.digest);
        let size = usize::try_from(PART.max(descriptor.size / MAX_PARTS + 1)).unwrap_or(usize::MAX);
        let first = part(&mut content, size).await?.unwrap_or_default();
        if first.len() as u64 >= descriptor.size {
            return self.put_object(&key, first).await;
        }
        let begun = self.send(Method::POST, &key, &[("uploads", "")], Vec::new(), Bytes::new()).await?;
        if !begun.status().is_success() {
            return Err(begun.refused().await);
        }
        let begun = begun.read(MAX_ANSWER).await?;
        let id = element(&String::from_utf8_lossy(&begun), "UploadId");
        let id = id.ok_or_else(|| Error::invalid("the store began an upload without an id"))?;
        let sent = self.put_parts(&key, &id, first, &mut content, size).await;
        if sent.is_err() {
            // What is there of it would cost its owner money; the store may refuse all the same.
            let _ = self.send(Method::DELETE, &key, &[("uploadId", &id)], Vec::new(), Bytes::new()).await;
        }
        sent
    }

    async fn put_parts(
        &self,
        key: &str,
        id: &str,
        first: Bytes,
        content: &mut (impl Stream<Item = Result<Bytes>> + Send + Unpin),
        size: usize,
    ) -> Result<()> {
        let (mut next, mut number, mut list) = (Some(first), 0, String::new());
        while let Some(body) = next {
            number += 1;
            let numbered = number.to_string();
            let query = [("partNumber", numbered.as_str()), ("uploadId", id)];
            let answer = self.send(Method::PUT, key, &query, Vec::new(), body).await?;
            if !answer.status().is_success() {
                return Err(answer.refused().await);
            }
            let tag = answer.header(header::ETAG).unwrap_or_default().replace('&', "&amp;").replace('<', "&lt;");
            let _ = write!(list, "<Part><PartNumber>{number}</PartNumber><ETag>{tag}</ETag></Part>");
            next = part(content, size).await?;
        }
        let body = format!("<CompleteMultipartUpload>{list}</CompleteMultipartUpload>");
        let answer = self.send(Method::POST, key, &[("uploadId", id)], Vec::new(), body.into()).await?;
        if !answer.status().is_success() {
            return Err(answer.refused().await);
        }
        // A store may say so only after it has said that all is well.
        let said = answer.read(MAX_ANSWER).await?;
        match element(&String::from_utf8_lossy(&said), "Code") {
            Some(code) => Err(Error::new(Kind::Unavailable, format!("the store could not complete an upload: {code}"))),
            None => Ok(()),
        }
    }
}

/// Returns the text of the first element of a name.
fn element(xml: &str, name: &str) -> Option<String> {
    let (_, rest) = xml.split_once(&format!("<{name}>"))?;
    let (text, _) = rest.split_once(&format!("</{name}>"))?;
    Some(text.replace("&quot;", "\"").replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))
}

/// Reads a date of HTTP, in seconds since 1970.
fn http_date_s(text: &str) -> Option<i64> {
    jiff::fmt::rfc2822::parse(text).ok().map(|time| time.timestamp().as_second())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::solver::request::CacheSpec;

    fn options(more: &[(&str, &str)]) -> S3Options {
        let base = [
            ("bucket", "examplebucket"),
            ("region", "us-east-1"),
            ("access_key_id", "AKIAIOSFODNN7EXAMPLE"),
            ("secret_access_key", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"),
        ];
        let attrs = base.iter().chain(more).map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let spec = CacheSpec { kind: "s3".to_owned(), attrs };
        S3Options::take(&mut Attrs::of_cache(&spec)).unwrap()
    }

    /// The example "GET Object" of AWS's description of the signature.
    #[test]
    fn requests_are_signed_as_aws_shows_it() {
        let mut url: reqwest::Url = "https://examplebucket.s3.amazonaws.com/test.txt".parse().unwrap();
        url.set_query(None);
        let mut request =
            ObjectRequest { method: Method::GET, url, headers: Vec::new(), body: Bytes::new(), attempts: None };
        let credentials = options(&[]).credentials.unwrap();
        sign(&Caller { region: "us-east-1".to_owned(), credentials }, &mut request, 1_369_353_600).unwrap();
        let authorization = request.headers.iter().find(|(name, _)| *name == header::AUTHORIZATION).unwrap();
        let text = authorization.1.to_str().unwrap();
        assert!(
            text.starts_with(
                "AWS4-HMAC-SHA256 Credential=AKIAIOSFODNN7EXAMPLE/20130524/us-east-1/s3/aws4_request, \
                 SignedHeaders=host;x-amz-content-sha256;x-amz-date, Signature="
            ),
            "{text}"
        );
        assert_eq!(text.rsplit('=').next().unwrap().len(), 64);
    }

    #[test]
    fn buckets_are_hosts_or_paths() {
        let address = |more: &[(&str, &str)]| options(more).address("us-east-1", "a/sha256:b c").unwrap().to_string();
        assert_eq!(address(&[]), "https://examplebucket.s3.us-east-1.amazonaws.com/a/sha256%3Ab%20c");
        let local = ("endpoint_url", "http://127.0.0.1:9000");
        assert_eq!(address(&[local]), "http://127.0.0.1:9000/examplebucket/a/sha256%3Ab%20c");
        let own = ("endpoint_url", "https://store.example/x/");
        assert_eq!(address(&[own]), "https://examplebucket.store.example/x/a/sha256%3Ab%20c");
        assert_eq!(
            address(&[own, ("use_path_style", "true")]),
            "https://store.example/x/examplebucket/a/sha256%3Ab%20c"
        );
    }

    #[test]
    fn times_and_answers_are_read() {
        assert_eq!(go_duration("1h30m").unwrap(), Duration::from_mins(90));
        assert!(go_duration("soon").is_err());
        assert_eq!(http_date_s("Wed, 21 Oct 2015 07:28:00 GMT"), Some(1_445_412_480));
        assert_eq!(element("<A><UploadId>x&amp;y</UploadId></A>", "UploadId").as_deref(), Some("x&y"));
        assert!(!format!("{:?}", options(&[])).contains("wJalr"), "secrets are not shown");
        let more = [("retry_max_attempts", "7"), ("retry_mode", "standard"), ("disable_accept_encoding", "true")];
        assert_eq!(options(&more).attempts, Some(7));
        assert_eq!(options(&[("retry_max_attempts", "0")]).attempts, None);
    }
}
