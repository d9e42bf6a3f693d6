//! What `POST /build` is asked: its query and its header, as the build request they stand for.

use std::collections::BTreeMap;

use axum::http::HeaderMap;
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE};
use kiln_graph::Reference;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::api::params::Params;
use crate::error::{Error, Result};
use crate::registry::{AuthConfig, Credentials, domain_of};
use crate::solver::{BuildRequest, CacheSpec, Exporter};

/// The header with credentials by registry.
const REGISTRIES: &str = "X-Registry-Config";

/// In which form the client wants to hear of the build.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Version {
    /// Text, as before BuildKit.
    Classic,
    /// BuildKit's reports.
    BuildKit,
}

/// Where the context comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum From {
    /// The body of the request.
    Body,
    /// The body of another request.
    Upload,
    /// The client's session, or an address.
    Elsewhere,
}

/// A build that is asked for.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) version: Version,
    pub(super) from: From,
    /// What the client calls the build.
    pub(super) build_id: Option<String>,
    /// Whether nothing but the image's id is wanted.
    pub(super) quiet: bool,
    pub(super) tags: Vec<Reference>,
    pub(super) request: BuildRequest,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Limit {
    name: String,
    soft: i64,
    hard: i64,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Output {
    #[serde(rename = "Type")]
    kind: String,
    #[serde(default)]
    attrs: Option<BTreeMap<String, String>>,
}

/// Reads a request.
///
/// # Errors
/// `InvalidArgument` for malformed values; `Unsupported`, by name, for what no build here can be asked.
pub(super) fn parse(params: &Params, headers: &HeaderMap) -> Result<Asked> {
    let version = match params.text("version") {
        None | Some("1") => Version::Classic,
        Some("2") => Version::BuildKit,
        Some(other) => return Err(Error::invalid(format!("invalid version {other:?}: 1 or 2"))),
    };
    refuse(params)?;
    let tags = tags(params)?;
    let (from, context) = match params.text("remote") {
        None => (From::Body, None),
        Some("client-session") => (From::Elsewhere, None),
        Some("upload-request") => (From::Upload, None),
        Some(address) => (From::Elsewhere, Some(address.to_owned())),
    };
    let session = params.text("session").map(str::to_owned);
    if params.text("remote") == Some("client-session") && session.is_none() {
        return Err(Error::invalid("remote=client-session needs a session"));
    }
    let mut attrs = attributes(params)?;
    attrs.extend(context.map(|context| ("context".to_owned(), context)));
    let (network, entitlements) = match params.text("networkmode") {
        None | Some("default" | "bridge") => (None, Vec::new()),
        Some("host") => (Some("host"), vec!["network.host".to_owned()]),
        Some(other) => (Some(other), Vec::new()),
    };
    attrs.extend(network.map(|mode| ("force-network-mode".to_owned(), mode.to_owned())));
    let sources: Vec<String> = json(params, "cachefrom")?.unwrap_or_default();
    let cache_imports = sources
        .into_iter()
        .map(|name| CacheSpec { kind: "registry".to_owned(), attrs: BTreeMap::from([("ref".to_owned(), name)]) });
    Ok(Asked {
        version,
        from,
        build_id: params.text("buildid").map(str::to_owned),
        quiet: params.flag("q"),
        request: BuildRequest {
            frontend: "dockerfile.v0".to_owned(),
            attrs,
            session,
            credentials: credentials(headers)?,
            exporters: exporters(params, &tags)?,
            entitlements,
            documented: true,
            cache_imports: cache_imports.collect(),
            ..BuildRequest::default()
        },
        tags,
    })
}

/// Refuses what would change the result and is not there. What is not mentioned here or below either is always so (`rm`,
/// `forcerm`: no containers stay behind) or says nothing.
fn refuse(params: &Params) -> Result<()> {
    if params.flag("squash") {
        let what = "squash is not supported: use a stage of its own and COPY --from, which makes one layer";
        return Err(Error::invalid(what));
    }
    let given =
        |name: &'static str| params.text(name).filter(|value| !matches!(*value, "default" | "[]" | "null" | "{}"));
    if let Some(value) = given("isolation") {
        return Err(Error::invalid(format!("isolation={value} is not supported: it is for Windows")));
    }
    if given("securityopt").is_some() {
        return Err(Error::invalid("securityopt is not supported by builds: RUN --security=insecure is, by its steps"));
    }
    Ok(())
}

fn tags(params: &Params) -> Result<Vec<Reference>> {
    let mut tags: Vec<Reference> = Vec::new();
    for text in params.all("t").filter(|text| !text.is_empty()) {
        let tag: Reference = text.parse().map_err(|error| Error::invalid(format!("invalid tag {text:?}: {error}")))?;
        if tag.digest().is_some() {
            return Err(Error::invalid(format!(
                "invalid tag {text:?}: a name with a digest cannot be given to an image"
            )));
        }
        let tag = tag.with_default_tag();
        if !tags.contains(&tag) {
            tags.push(tag);
        }
    }
    Ok(tags)
}

/// The attributes of the frontend.
fn attributes(params: &Params) -> Result<BTreeMap<String, String>> {
    /// Parameters and the attributes that mean the same.
    const SAME: &[(&str, &str)] = &[
        ("cgroupparent", "cgroup-parent"),
        ("cpuperiod", "cpuperiod"),
        ("cpuquota", "cpuquota"),
        ("cpusetcpus", "cpusetcpus"),
        ("cpusetmems", "cpusetmems"),
        ("cpushares", "cpushares"),
        ("dockerfile", "filename"),
        ("memory", "memory"),
        ("memswap", "memswap"),
        ("platform", "platform"),
        ("target", "target"),
    ];
    let mut attrs = BTreeMap::new();
    for (name, attribute) in SAME {
        attrs.extend(params.text(name).map(|value| ((*attribute).to_owned(), value.to_owned())));
    }
    attrs.extend(
        params.text("shmsize").filter(|size| *size != "0").map(|size| ("shm-size".to_owned(), size.to_owned())),
    );
    let arguments: BTreeMap<String, Option<String>> = json(params, "buildargs")?.unwrap_or_default();
    // Without a value it is the client's environment that has none.
    let arguments = arguments.into_iter().filter_map(|(name, value)| Some((format!("build-arg:{name}"), value?)));
    attrs.extend(arguments);
    let labels: BTreeMap<String, String> = json(params, "labels")?.unwrap_or_default();
    attrs.extend(labels.into_iter().map(|(name, value)| (format!("label:{name}"), value)));
    if params.flag("nocache") {
        attrs.insert("no-cache".to_owned(), String::new());
    }
    if params.flag("pull") {
        attrs.insert("image-resolve-mode".to_owned(), "pull".to_owned());
    }
    let limits: Vec<Limit> = json(params, "ulimits")?.unwrap_or_default();
    let limits: Vec<String> =
        limits.iter().map(|limit| format!("{}={}:{}", limit.name, limit.soft, limit.hard)).collect();
    let hosts: Vec<String> =
        params.all("extrahosts").filter(|host| !host.is_empty()).map(host).collect::<Result<_>>()?;
    for (name, list) in [("ulimit", limits), ("add-hosts", hosts)] {
        if !list.is_empty() {
            attrs.insert(name.to_owned(), list.join(","));
        }
    }
    Ok(attrs)
}

/// `name:address`, or `name=address`.
fn host(text: &str) -> Result<String> {
    let parts = text.split_once('=').or_else(|| text.split_once(':'));
    let (name, address) = parts.ok_or_else(|| Error::invalid(format!("bad format for add-host: {text:?}")))?;
    Ok(format!("{name}={}", address.trim_start_matches('[').trim_end_matches(']')))
}

/// An image in the store, unless something else is asked for.
fn exporters(params: &Params, tags: &[Reference]) -> Result<Vec<Exporter>> {
    let outputs: Vec<Output> = json(params, "outputs")?.unwrap_or_default();
    let mut exporters: Vec<Exporter> = outputs
        .into_iter()
        .map(|output| Exporter { kind: output.kind, attrs: output.attrs.unwrap_or_default() })
        .collect();
    if exporters.is_empty() {
        exporters.push(Exporter { kind: "moby".to_owned(), attrs: BTreeMap::new() });
    }
    let names = tags.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    for exporter in &mut exporters {
        if matches!(exporter.kind.as_str(), "image" | "moby") && !names.is_empty() {
            exporter.attrs.insert("name".to_owned(), names.clone());
        }
    }
    exporters.retain(|exporter| exporter.kind != "cacheonly");
    Ok(exporters)
}

/// Reads a parameter that is JSON.
fn json<T: DeserializeOwned>(params: &Params, name: &str) -> Result<Option<T>> {
    let Some(text) = params.text(name) else { return Ok(None) };
    serde_json::from_str(text).map_err(|error| Error::invalid(format!("error reading {name}: {error}")))
}

/// Reads the credentials of all registries. A header that is not understood is none, as with moby.
fn credentials(headers: &HeaderMap) -> Result<BTreeMap<String, Credentials>> {
    let decode = |header: &[u8]| {
        let bytes = URL_SAFE.decode(header).or_else(|_| STANDARD.decode(header)).ok()?;
        serde_json::from_slice::<BTreeMap<String, AuthConfig>>(&bytes).ok()
    };
    let all = headers.get(REGISTRIES).and_then(|value| decode(value.as_bytes())).unwrap_or_default();
    let mut credentials = BTreeMap::new();
    for (server, auth) in all {
        if let Some(found) = auth.credentials()? {
            credentials.insert(domain_of(&server).to_owned(), found);
        }
    }
    Ok(credentials)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(query: &[(&str, &str)]) -> Result<Asked> {
        super::parse(&Params::of(query), &HeaderMap::new())
    }

    fn attributes(query: &[(&str, &str)]) -> BTreeMap<String, String> {
        parse(query).unwrap().request.attrs
    }

    #[test]
    fn parameters_are_the_attributes_of_a_build() {
        let attrs = attributes(&[
            ("dockerfile", "a/Dockerfile"),
            ("buildargs", r#"{"A":"1","FROM_ENV":null}"#),
            ("labels", r#"{"x":"y"}"#),
            ("nocache", "1"),
            ("pull", "true"),
            ("memory", "1048576"),
            ("shmsize", "0"),
            ("extrahosts", "db:10.0.0.1"),
            ("extrahosts", "six:[::1]"),
            ("ulimits", r#"[{"Name":"nofile","Hard":20,"Soft":10}]"#),
            ("networkmode", "bridge"),
            ("rm", "0"),
        ]);
        let expected = [
            ("add-hosts", "db=10.0.0.1,six=::1"),
            ("build-arg:A", "1"),
            ("filename", "a/Dockerfile"),
            ("image-resolve-mode", "pull"),
            ("label:x", "y"),
            ("memory", "1048576"),
            ("no-cache", ""),
            ("ulimit", "nofile=10:20"),
        ];
        assert_eq!(attrs, expected.map(|(key, value)| (key.to_owned(), value.to_owned())).into());
    }

    #[test]
    fn a_context_comes_from_one_place() {
        assert_eq!(parse(&[]).unwrap().from, From::Body);
        assert_eq!(parse(&[("remote", "upload-request"), ("buildid", "x")]).unwrap().from, From::Upload);
        let git = parse(&[("remote", "https://example.com/a.git#main")]).unwrap();
        assert_eq!(
            (git.from, git.request.attrs["context"].as_str()),
            (From::Elsewhere, "https://example.com/a.git#main")
        );
        let session = parse(&[("remote", "client-session"), ("session", "s"), ("version", "2")]).unwrap();
        assert_eq!((session.version, session.request.session.as_deref()), (Version::BuildKit, Some("s")));
        assert!(parse(&[("remote", "client-session")]).is_err());
    }

    #[test]
    fn names_and_outputs_become_exporters() {
        let asked = parse(&[("t", "app"), ("t", "app:1"), ("t", "app:latest")]).unwrap();
        let exporter = &asked.request.exporters[0];
        assert_eq!(exporter.kind, "moby");
        assert_eq!(exporter.attrs["name"], "docker.io/library/app:latest,docker.io/library/app:1");
        let outputs = r#"[{"Type":"local","Attrs":{"dest":"x"}},{"Type":"cacheonly"}]"#;
        let asked = parse(&[("outputs", outputs)]).unwrap();
        assert_eq!(asked.request.exporters.iter().map(|one| one.kind.as_str()).collect::<Vec<_>>(), ["local"]);
    }

    #[test]
    fn what_cannot_be_done_is_refused_by_name() {
        for (name, value) in [
            ("squash", "1"),
            ("isolation", "hyperv"),
            ("securityopt", r#"["a"]"#),
            ("t", "UPPER"),
            ("t", &*format!("a@{}", kiln_graph::Digest::of(b"x"))),
            ("buildargs", "{"),
            ("version", "3"),
            ("extrahosts", "x"),
        ] {
            let refused = parse(&[(name, value)]).unwrap_err();
            assert_eq!(refused.kind(), crate::error::Kind::InvalidArgument, "{name}={value}");
        }
        assert!(parse(&[("isolation", "default"), ("securityopt", "[]")]).is_ok());
    }

    #[test]
    fn credentials_are_found_by_the_names_in_image_names() {
        let config = r#"{"https://index.docker.io/v1/":{"username":"u","password":"p"},"r.example:5000":{}}"#;
        let mut headers = HeaderMap::new();
        headers.insert(REGISTRIES, URL_SAFE.encode(config).parse().unwrap());
        let found = credentials(&headers).unwrap();
        assert_eq!(found.keys().collect::<Vec<_>>(), ["docker.io"]);
        headers.insert(REGISTRIES, "e30=".parse().unwrap());
        assert!(credentials(&headers).unwrap().is_empty());
        headers.insert(REGISTRIES, "!".parse().unwrap());
        assert!(credentials(&headers).unwrap().is_empty());
    }
}
