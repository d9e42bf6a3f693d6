//! Stand-ins for the stores that caches are kept in, which nobody can start on loopback: as much of their protocols as a cache needs.

use std::collections::BTreeMap;
use std::sync::Mutex;

use serde_json::{Value, json};

use super::web::{Answer, Request};

/// Objects by their addresses, and parts of those that are not complete.
#[derive(Default)]
pub struct Objects {
    pub whole: BTreeMap<String, Vec<u8>>,
    pub parts: BTreeMap<String, BTreeMap<usize, Vec<u8>>>,
    /// How often an object was made new.
    pub touched: usize,
}

/// As much of S3 as a cache needs.
pub fn s3(objects: &Mutex<Objects>, request: &Request) -> Answer {
    let mut objects = objects.lock().expect("nobody panics with it");
    let signed = request.header("authorization").is_some_and(|text| {
        text.starts_with("AWS4-HMAC-SHA256 Credential=KEY/") && text.contains("/eu-north-1/s3/aws4_request")
    });
    if !signed || request.header("x-amz-date").is_none() {
        return Answer::new(403, "<Error><Code>AccessDenied</Code></Error>");
    }
    let key = request.path.clone();
    match (request.method.as_str(), request.value("uploadId"), request.value("partNumber")) {
        ("PUT", Some(_), Some(number)) => {
            let number = number.parse().expect("a number");
            objects.parts.entry(key).or_default().insert(number, request.body().to_vec());
            Answer::new(200, "").header("ETag", &format!("\"part{number}\""))
        }
        ("PUT", ..) if request.header("x-amz-copy-source").is_some() => {
            objects.touched += 1;
            Answer::new(200, "<CopyObjectResult/>")
        }
        ("PUT", ..) => {
            objects.whole.insert(key, request.body().to_vec());
            Answer::new(200, "")
        }
        ("POST", None, _) => Answer::new(200, "<R><UploadId>an&amp;id</UploadId></R>"),
        ("POST", Some(id), _) => {
            assert_eq!(id, "an%26id");
            let parts = objects.parts.remove(&key).expect("parts");
            objects.whole.insert(key, parts.into_values().flatten().collect());
            Answer::new(200, "<CompleteMultipartUploadResult/>")
        }
        ("GET" | "HEAD", ..) => match objects.whole.get(&key) {
            Some(object) => Answer::new(200, object.clone()).header("Last-Modified", "Wed, 21 Oct 2015 07:28:00 GMT"),
            None => Answer::new(404, "<Error><Code>NoSuchKey</Code></Error>"),
        },
        _ => Answer::new(405, ""),
    }
}

/// Entries of the cache of GitHub Actions: what is at an address, and the addresses of complete entries, the newest last.
#[derive(Default)]
pub struct Entries {
    blocks: BTreeMap<String, BTreeMap<String, Vec<u8>>>,
    content: BTreeMap<String, Vec<u8>>,
    open: Vec<String>,
    pub complete: Vec<String>,
}

/// As much of version 2 of that cache as is needed; `host` is its own.
pub fn actions(entries: &Mutex<Entries>, host: &str, request: &Request) -> Answer {
    let mut entries = entries.lock().expect("nobody panics with it");
    let address = |key: &str| format!("http://{host}/blob/{}?sig=x%2By", key.replace(['#', ':'], "_"));
    if let Some(path) = request.path.strip_prefix("/blob/") {
        assert_eq!(request.value("sig"), Some("x%2By"), "a signed address is used as it is");
        match (request.method.as_str(), request.value("comp")) {
            ("PUT", Some("block")) => {
                let id = request.value("blockid").expect("an id").to_owned();
                entries.blocks.entry(path.to_owned()).or_default().insert(id, request.body().to_vec());
            }
            ("PUT", Some("blocklist")) => {
                let blocks = entries.blocks.remove(path).unwrap_or_default();
                entries.content.insert(path.to_owned(), blocks.into_values().flatten().collect());
            }
            _ => {
                let content = entries.content.get(path).cloned();
                return content.map_or(Answer::new(404, ""), |content| Answer::new(200, content));
            }
        }
        return Answer::new(201, "");
    }
    if request.header("authorization") != Some("Bearer TOKEN") {
        return Answer::new(401, "{}");
    }
    let body: Value = serde_json::from_slice(request.body()).expect("JSON");
    let key = body["key"].as_str().expect("a key").to_owned();
    let answer = match request.path.rsplit('/').next() {
        Some("CreateCacheEntry") if entries.complete.contains(&key) => return Answer::new(409, "{}"),
        Some("CreateCacheEntry") => {
            entries.open.push(key.clone());
            json!({ "ok": true, "signed_upload_url": address(&key) })
        }
        Some("FinalizeCacheEntryUpload") => {
            let size = entries.content[&key.replace(['#', ':'], "_")].len();
            assert_eq!(body["size_bytes"], json!(size.to_string()));
            entries.complete.push(key);
            json!({ "ok": true, "entry_id": "1" })
        }
        Some("GetCacheEntryDownloadURL") => match entries.complete.iter().rfind(|known| known.starts_with(&key)) {
            Some(known) => json!({ "ok": true, "signed_download_url": address(known), "matched_key": known }),
            None => json!({ "ok": false }),
        },
        other => panic!("{other:?}"),
    };
    Answer::new(200, answer.to_string())
}

/// As much of version 1 of that cache as is needed: complete entries, the newest last, and those that are being sent.
#[derive(Default)]
pub struct OldEntries {
    pub complete: Vec<(String, Vec<u8>)>,
    open: Vec<(String, Vec<u8>)>,
}

pub fn old_actions(entries: &Mutex<OldEntries>, host: &str, request: &Request) -> Answer {
    let mut entries = entries.lock().expect("nobody panics with it");
    if let Some(number) = request.path.strip_prefix("/archive/") {
        return Answer::new(200, entries.complete[number.parse::<usize>().expect("a number")].1.clone());
    }
    assert_eq!(request.header("authorization"), Some("Bearer TOKEN"));
    assert_eq!(request.header("accept"), Some("application/json;api-version=6.0-preview.1"));
    let path = request.path.strip_prefix("/_apis/artifactcache/").expect("an address of the service");
    let body = || serde_json::from_slice::<Value>(request.body()).expect("JSON");
    let open = |path: &str| path.rsplit('/').next().and_then(|number| number.parse::<usize>().ok()).expect("a number");
    match (request.method.as_str(), path) {
        ("GET", "cache") => {
            let key = request.value("keys").expect("a key").replace("%3A", ":").replace("%23", "#");
            match entries.complete.iter().rposition(|(known, _)| known.starts_with(&key)) {
                Some(at) => {
                    let known = json!({ "cacheKey": entries.complete[at].0, "archiveLocation": format!("http://{host}/archive/{at}") });
                    Answer::new(200, known.to_string())
                }
                None => Answer::new(204, ""),
            }
        }
        ("POST", "caches") => {
            let key = body()["key"].as_str().expect("a key").to_owned();
            if entries.complete.iter().any(|(known, _)| *known == key) {
                return Answer::new(409, "{}");
            }
            entries.open.push((key, Vec::new()));
            Answer::new(201, json!({ "cacheId": entries.open.len() - 1 }).to_string())
        }
        ("PATCH", path) => {
            let entry = &mut entries.open[open(path)].1;
            let range = format!("bytes {}-{}/*", entry.len(), entry.len() + request.body().len() - 1);
            assert_eq!(request.header("content-range"), Some(range.as_str()));
            entry.extend_from_slice(request.body());
            Answer::new(204, "")
        }
        ("POST", path) => {
            let entry = entries.open[open(path)].clone();
            assert_eq!(body()["size"], json!(entry.1.len()));
            entries.complete.push(entry);
            Answer::new(204, "")
        }
        other => panic!("{other:?}"),
    }
}

/// As much of Azure's Blob Storage as a cache needs.
pub fn azure(objects: &Mutex<Objects>, request: &Request) -> Answer {
    let mut objects = objects.lock().expect("nobody panics with it");
    let signed = request.header("authorization").is_some_and(|text| text.starts_with("SharedKey account:"));
    if !signed || request.header("x-ms-date").is_none() || request.header("x-ms-version").is_none() {
        return Answer::new(403, "<Error><Code>AuthenticationFailed</Code></Error>");
    }
    let key = request.path.clone();
    match (request.method.as_str(), request.value("comp"), request.value("restype")) {
        ("PUT", None, Some("container")) => {
            objects.touched += 1;
            Answer::new(if objects.touched > 1 { 409 } else { 201 }, "")
        }
        ("PUT", Some("block"), _) => {
            let parts = objects.parts.entry(key).or_default();
            parts.insert(parts.len(), request.body().to_vec());
            Answer::new(201, "")
        }
        ("PUT", Some("blocklist"), _) => {
            let parts = objects.parts.remove(&key).expect("blocks");
            assert_eq!(String::from_utf8_lossy(request.body()).matches("<Latest>").count(), parts.len());
            objects.whole.insert(key, parts.into_values().flatten().collect());
            Answer::new(201, "")
        }
        ("PUT", None, None) => {
            assert_eq!(request.header("x-ms-blob-type"), Some("BlockBlob"));
            objects.whole.insert(key, request.body().to_vec());
            Answer::new(201, "")
        }
        ("GET" | "HEAD", ..) => match objects.whole.get(&key) {
            Some(object) => Answer::new(200, object.clone()),
            None => Answer::new(404, "<Error><Code>BlobNotFound</Code></Error>"),
        },
        _ => Answer::new(405, ""),
    }
}
