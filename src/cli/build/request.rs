//! From options to the request for the engine.

use std::collections::{BTreeMap, HashMap};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use kiln_graph::{Platform, Reference};

use super::attest;
use super::context::Sources;
use super::named::Named;
use super::options::BuildArgs;
use super::output::{DELETE, Output};
use crate::cli::value;
use crate::error::{Error, Result, ResultExt as _};
use crate::types::build::{DOCKERFILE, KEEP_FAILED, LOCAL_PREFIX, RECORD_PROVENANCE, SolveRequest, VERIFY};

/// The entitlements that exist.
const ENTITLEMENTS: &[&str] = &["network.host", "security.insecure", "device"];

/// What of the environment a request depends on.
#[derive(Debug, Default)]
pub(super) struct Surroundings {
    /// Build arguments from docker's configuration: proxies.
    pub(super) proxies: BTreeMap<String, String>,
    /// `SOURCE_DATE_EPOCH`.
    pub(super) epoch: Option<String>,
    /// `BUILDX_METADATA_PROVENANCE`: how much of it the metadata file holds.
    pub(super) metadata_provenance: Option<String>,
}

/// Makes the request; its reference and session are the caller's to choose.
///
/// # Errors
/// `InvalidArgument` naming the option that is wrong, `Unsupported` naming the one that is not there yet.
pub(super) fn request(
    args: &BuildArgs,
    sources: Sources,
    outputs: &[Output],
    surroundings: Surroundings,
) -> Result<SolveRequest> {
    Ok(SolveRequest {
        frontend: "dockerfile.v0".to_owned(),
        frontend_attrs: attributes(args, sources, surroundings)?,
        exporters: outputs.iter().map(Output::exporter).collect(),
        entitlements: entitlements(args)?,
        ..SolveRequest::default()
    })
}

/// Checks names and completes them with the domain and the tag.
pub(super) fn tags(tags: &[String]) -> Result<Vec<String>> {
    let complete = |tag: &String| {
        let name: Reference = tag.parse().context(|| format!("--tag {tag}"))?;
        if name.digest().is_some() {
            return Err(Error::invalid(format!("--tag {tag}: a name with a digest cannot be given to an image")));
        }
        Ok(name.with_default_tag().to_string())
    };
    tags.iter().map(complete).collect()
}

fn entitlements(args: &BuildArgs) -> Result<Vec<String>> {
    // What this command does with its own files is not the engine's business.
    let asked = args.allow.iter().filter(|allowed| *allowed != DELETE);
    let is_known = |allowed: &str| ENTITLEMENTS.contains(&allowed) || allowed.starts_with("device=");
    let unknown = asked.clone().find(|allowed| !is_known(allowed));
    if let Some(unknown) = unknown {
        return Err(Error::invalid(format!("--allow {unknown}: expected {}", ENTITLEMENTS.join(" or "))));
    }
    let mut allowed: Vec<String> = asked.cloned().collect();
    // Who asks for the host's network on the command line allows it, as buildx has it.
    if args.network == "host" && !allowed.iter().any(|entitlement| entitlement == "network.host") {
        allowed.push("network.host".to_owned());
    }
    Ok(allowed)
}

fn attributes(args: &BuildArgs, sources: Sources, surroundings: Surroundings) -> Result<HashMap<String, String>> {
    let mut attrs = attest::attributes(args)?;
    if args.metadata_file.is_some() {
        let mode = attest::recorded(surroundings.metadata_provenance.as_deref())?;
        attrs.extend(mode.map(|mode| (RECORD_PROVENANCE.to_owned(), mode.to_owned())));
    }
    let mut set = |key: &str, value: String| drop(attrs.insert(key.to_owned(), value));
    let named = Named::parse(&args.build_contexts)?;
    for (name, value) in named.values {
        set(&format!("context:{name}"), value);
    }
    for (name, dir) in sources.locals.into_iter().chain(named.locals) {
        let path = dir.to_str().ok_or_else(|| Error::invalid(format!("{} is not UTF-8", dir.display())))?;
        set(&format!("{LOCAL_PREFIX}{name}"), path.to_owned());
    }
    sources.filename.into_iter().for_each(|filename| set("filename", filename));
    sources.address.into_iter().for_each(|address| set("context", address));
    sources.dockerfile.into_iter().for_each(|text| set(DOCKERFILE, STANDARD.encode(text)));
    args.target.iter().for_each(|target| set("target", target.clone()));
    for (key, value) in build_args(args, surroundings)? {
        set(&format!("build-arg:{key}"), value);
    }
    for (key, value) in pairs("--label", &args.labels)? {
        set(&format!("label:{key}"), value);
    }
    if args.no_cache {
        set("no-cache", String::new());
    } else if !args.no_cache_filter.is_empty() {
        set("no-cache", args.no_cache_filter.join(","));
    }
    if args.verify {
        set(VERIFY, "true".to_owned());
    }
    if args.pull {
        set("image-resolve-mode", "pull".to_owned());
    }
    if let Some(platforms) = platforms(&args.platform)? {
        set("platform", platforms);
    }
    match args.network.as_str() {
        "default" => {}
        "none" | "host" => set("force-network-mode", args.network.clone()),
        other => {
            return Err(Error::invalid(format!("--network {other}: a build knows default, none and host only")));
        }
    }
    if !args.add_hosts.is_empty() {
        set("add-hosts", hosts(&args.add_hosts)?);
    }
    if let Some(size) = &args.shm_size {
        set("shm-size", value::bytes(size).context(|| "--shm-size")?.to_string());
    }
    args.cgroup_parent.iter().for_each(|parent| set("cgroup-parent", parent.clone()));
    for (key, value) in args.resources.attributes()? {
        set(key, value);
    }
    if !args.on_failure.is_empty() {
        set(KEEP_FAILED, "true".to_owned());
    }
    if !args.ulimits.is_empty() {
        args.ulimits.iter().try_for_each(|limit| check_ulimit(limit))?;
        set("ulimit", args.ulimits.join(","));
    }
    Ok(attrs)
}

/// Reads the Dockerfile that attributes carry.
///
/// # Errors
/// `InvalidArgument` when it is no text.
pub(super) fn decode_dockerfile(text: &str) -> Result<String> {
    let bytes = STANDARD.decode(text).map_err(|_| Error::internal("the Dockerfile is not base64"))?;
    String::from_utf8(bytes)
        .map_err(|_| Error::invalid("the Dockerfile on standard input is no text: it is not valid UTF-8"))
}

/// A bare name passes on this command's variable, if it has one. What the user gave wins over the surroundings.
fn build_args(args: &BuildArgs, surroundings: Surroundings) -> Result<BTreeMap<String, String>> {
    let mut all = surroundings.proxies;
    all.extend(surroundings.epoch.map(|epoch| ("SOURCE_DATE_EPOCH".to_owned(), epoch)));
    all.extend(pairs("--build-arg", &value::with_environment(args.build_args.clone()))?);
    if let Some(bare) = args.build_args.iter().find(|arg| arg.is_empty()) {
        return Err(Error::invalid(format!("--build-arg {bare:?}: the name is missing")));
    }
    Ok(all)
}

fn pairs(flag: &str, entries: &[String]) -> Result<BTreeMap<String, String>> {
    if let Some(nameless) = entries.iter().find(|entry| entry.is_empty() || entry.starts_with('=')) {
        return Err(Error::invalid(format!("{flag} {nameless:?}: the name is missing")));
    }
    Ok(value::map(entries).into_iter().collect())
}

fn platforms(platforms: &[String]) -> Result<Option<String>> {
    for platform in platforms.iter().filter(|platform| *platform != "local") {
        platform.parse::<Platform>().context(|| format!("--platform {platform}"))?;
    }
    let named: Vec<&str> = platforms.iter().map(String::as_str).filter(|platform| *platform != "local").collect();
    Ok((!named.is_empty()).then(|| named.join(",")))
}

/// Reads `host:ip` and `host=ip`; an IPv6 address may stand in brackets.
fn hosts(entries: &[String]) -> Result<String> {
    let read = |entry: &String| {
        let invalid = |why: &str| Error::invalid(format!("--add-host {entry}: {why}"));
        let (host, ip) = entry
            .split_once('=')
            .or_else(|| entry.split_once(':'))
            .filter(|(host, _)| !host.is_empty())
            .ok_or_else(|| invalid("expected host:ip"))?;
        if ip == "host-gateway" {
            return Ok(format!("{host}={ip}"));
        }
        let ip = ip.trim_start_matches('[').trim_end_matches(']');
        ip.parse::<std::net::IpAddr>().map_err(|_| invalid(&format!("{ip:?} is not an IP address")))?;
        Ok(format!("{host}={ip}"))
    };
    Ok(entries.iter().map(read).collect::<Result<Vec<_>>>()?.join(","))
}

fn check_ulimit(limit: &str) -> Result<()> {
    let number = |text: &str| text == "-1" || text.parse::<u64>().is_ok();
    let valid = limit.split_once('=').is_some_and(|(name, values)| {
        let (soft, hard) = values.split_once(':').unwrap_or((values, values));
        !name.is_empty() && number(soft) && number(hard)
    });
    if valid { Ok(()) } else { Err(Error::invalid(format!("--ulimit {limit}: expected name=soft[:hard]"))) }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::super::output::outputs;
    use super::*;
    use crate::error::Kind;

    #[derive(Debug, Parser)]
    struct Command {
        #[command(flatten)]
        args: BuildArgs,
    }

    fn make(args: &[&str]) -> Result<SolveRequest> {
        let all = ["build"].iter().chain(args).chain(&["."]);
        let args = Command::try_parse_from(all).map_err(|error| Error::invalid(error.to_string()))?.args;
        let locals = BTreeMap::from([("context".to_owned(), "/src".into())]);
        let sources = Sources { locals, filename: Some("Dockerfile".to_owned()), ..Sources::default() };
        let proxies = BTreeMap::from([("HTTP_PROXY".to_owned(), "http://p".to_owned())]);
        let outputs = outputs(&args)?;
        let surroundings = Surroundings { proxies, epoch: Some("1".to_owned()), ..Surroundings::default() };
        request(&args, sources, &outputs, surroundings)
    }

    fn attr(request: &SolveRequest, key: &str) -> Option<String> {
        request.frontend_attrs.get(key).cloned()
    }

    #[test]
    fn options_become_the_attributes_that_buildkit_knows() {
        let request = make(&[
            "--target=app",
            "--build-arg=A=1",
            "--build-arg",
            "HTTP_PROXY=mine",
            "--label=x=y",
            "--no-cache-filter=a,b",
            "--pull",
            "--platform=linux/amd64",
            "--network=host",
            "--add-host=db:10.0.0.1",
            "--add-host=v6=[::1]",
            "--add-host=host:host-gateway",
            "--cgroup-parent=/ci",
            "--resource=memory=64m",
            "--on-failure=export=x",
            "--shm-size=64m",
            "--ulimit=nofile=1024:2048",
        ])
        .unwrap();
        for (key, value) in [
            ("kiln.local:context", "/src"),
            ("filename", "Dockerfile"),
            ("target", "app"),
            ("build-arg:A", "1"),
            ("build-arg:HTTP_PROXY", "mine"),
            ("build-arg:SOURCE_DATE_EPOCH", "1"),
            ("label:x", "y"),
            ("no-cache", "a,b"),
            ("image-resolve-mode", "pull"),
            ("platform", "linux/amd64"),
            ("force-network-mode", "host"),
            ("add-hosts", "db=10.0.0.1,v6=::1,host=host-gateway"),
            ("cgroup-parent", "/ci"),
            ("memory", "67108864"),
            ("kiln.keep-failed", "true"),
            ("shm-size", "67108864"),
            ("ulimit", "nofile=1024:2048"),
        ] {
            assert_eq!(attr(&request, key).as_deref(), Some(value), "{key}");
        }
        assert_eq!(request.entitlements, ["network.host"]);
        let plain = make(&["--no-cache"]).unwrap();
        assert_eq!((attr(&plain, "no-cache"), attr(&plain, "force-network-mode")), (Some(String::new()), None));
    }

    #[test]
    fn mistakes_and_missing_features_are_named() {
        use Kind::InvalidArgument as Invalid;
        for (args, kind, words) in [
            (
                &["-t", "a@sha256:0000000000000000000000000000000000000000000000000000000000000000"][..],
                Invalid,
                "digest",
            ),
            (&["--network=mine"], Invalid, "--network mine"),
            (&["--platform=nonsense/arch/a/b"], Invalid, "--platform"),
            (&["--add-host=db"], Invalid, "host:ip"),
            (&["--add-host=db:x"], Invalid, "not an IP address"),
            (&["--ulimit=nofile"], Invalid, "--ulimit nofile"),
            (&["--allow=everything"], Invalid, "--allow everything"),
            (&["--build-arg", "=x"], Invalid, "--build-arg"),
        ] {
            let error = make(args).unwrap_err();
            assert_eq!(error.kind(), kind, "{args:?}: {error}");
            assert!(error.to_string().contains(words), "{args:?}: {error}");
        }
        assert!(make(&["--provenance=false", "--sbom=false", "--load"]).is_ok());
    }
}
