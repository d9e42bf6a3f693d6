//! `buildkitd.toml`: BuildKit's configuration, for when Kiln is started under its daemon's name.
//!
//! What has no meaning here is told, by line, and passed over.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use kiln_graph::Reference;

use super::builder::{self, entitlement};
use super::document::{Document, Table, Value};
use super::gc::duration;
use super::{Builder, Config, Daemon, Dns, Environment, File, Flags, Gc, GcLimits, GcPolicy, History, Space, TlsFiles};
use crate::error::{Error, Result, ResultExt as _};

/// BuildKit's usual file.
const FILE: &str = "/etc/buildkit/buildkitd.toml";

/// Where BuildKit listens unless it is told otherwise.
const ADDRESS: &str = "unix:///run/buildkit/buildkitd.sock";

/// The kinds of records that there are here, of those that BuildKit's policies may name.
const KINDS: &[&str] = &["regular", "exec.cachemount", "source.git.checkout", "source.local"];

/// What buildkitd's flags say; each wins over the file.
#[derive(Clone, Debug, Default)]
pub struct BuildkitdFlags {
    /// `--config`.
    pub config: Option<PathBuf>,
    /// `--root`.
    pub root: Option<PathBuf>,
    /// `--addr`.
    pub addresses: Vec<String>,
    /// `--group`.
    pub group: Option<String>,
    /// `--tlscacert`, `--tlscert` and `--tlskey`.
    pub tls: TlsFiles,
    /// `--allow-insecure-entitlement`.
    pub entitlements: Vec<String>,
    /// `--oci-worker-labels`.
    pub labels: BTreeMap<String, String>,
    /// `--oci-max-parallelism`.
    pub max_parallelism: Option<usize>,
    /// `--oci-worker-gc`.
    pub gc: Option<bool>,
    /// `--oci-worker-gc-keepstorage`: what is reserved, what is to be free, and at most used, in MB.
    pub keep_storage: Option<String>,
    /// `--cdi-spec-dir`; none after `--cdi-disabled`.
    pub device_dirs: Option<Vec<PathBuf>>,
}

impl Config {
    /// Reads BuildKit's configuration, and returns what of it is passed over. Blocking, but only small local files.
    ///
    /// The file is `/etc/buildkit/buildkitd.toml`, which may be missing, or the one that is named, which must exist. Where nothing
    /// names another root directory, it is Kiln's own.
    ///
    /// # Errors
    /// `InvalidArgument` with file, line and key for malformed values.
    pub fn of_buildkitd(flags: &BuildkitdFlags, environment: &Environment) -> Result<(Self, Vec<String>)> {
        let (path, named) = match &flags.config {
            Some(path) => (path.clone(), true),
            None => (PathBuf::from(FILE), false),
        };
        let text = match std::fs::read_to_string(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && !named => String::new(),
            read => read.context(|| format!("read the configuration file {}", path.display()))?,
        };
        let (mut file, warnings) = parse(&path, &text)?;
        flags.lay_over(&mut file)?;
        let root = Flags { root: flags.root.clone(), ..Flags::default() };
        Ok((Self::merge(&root, environment, file)?, warnings))
    }
}

impl BuildkitdFlags {
    fn lay_over(&self, file: &mut File) -> Result<()> {
        super::registries::replace(&mut file.daemon.hosts, self.addresses.clone());
        if file.daemon.hosts.is_empty() {
            file.daemon.hosts.push(ADDRESS.to_owned());
        }
        file.daemon.group = self.group.clone().or(file.daemon.group.take());
        file.daemon.tls = self.tls.clone().or(std::mem::take(&mut file.daemon.tls));
        let builder = &mut file.builder;
        let allowed = builder.entitlements.get_or_insert_default();
        for text in &self.entitlements {
            allowed
                .push(entitlement(text).map_err(|why| Error::invalid(format!("--allow-insecure-entitlement: {why}")))?);
        }
        builder.labels.extend(self.labels.clone());
        builder.max_parallelism = self.max_parallelism.or(builder.max_parallelism);
        builder.device_dirs = self.device_dirs.clone().or(builder.device_dirs.take());
        file.gc.enabled = self.gc.or(file.gc.enabled);
        if let Some(text) = &self.keep_storage {
            let wrong = || Error::invalid(format!("--oci-worker-gc-keepstorage {text}: expected MB[,MB[,MB]]"));
            let amounts = text.split(',').map(|part| part.trim().parse::<u64>().map_err(|_| wrong()));
            let amounts = amounts.collect::<Result<Vec<_>>>()?;
            let space = |at: usize| amounts.get(at).map(|mb| Space::Bytes(mb.saturating_mul(1_000_000)));
            file.gc.limits = GcLimits { reserved: space(0), min_free: space(1), max_used: space(2) };
        }
        Ok(())
    }
}

fn parse(path: &Path, text: &str) -> Result<(File, Vec<String>)> {
    let document = Document::lenient(path, text);
    let file = read(document.parse()?)?;
    Ok((file, document.into_warnings()))
}

fn read(mut top: Table<'_>) -> Result<File> {
    let mut file = File { root: top.take("root").map(|v| v.path()).transpose()?, ..File::default() };
    let allowed = top.take("insecure-entitlements").map(|v| v.list_of(entitlement)).transpose()?;
    for key in ["debug", "trace", "log"] {
        top.ignore(key, "what Kiln's daemon has to say goes to standard error");
    }
    top.ignore("provenanceEnvDir", "provenance tells nothing of the environment");
    if let Some(proxy) = top.take("proxyNetwork").filter(|v| v.bool().unwrap_or(true)) {
        proxy.warn(
            "proxyNetwork is ignored: steps reach the network without a proxy, so that policies do not decide about what they \
             fetch, and provenance does not list it",
        );
    }
    if let Some(grpc) = top.take("grpc") {
        file.daemon = listeners(grpc.table()?)?;
    }
    file.dns = top.take("dns").map(|v| dns(v.table()?)).transpose()?.unwrap_or_default();
    top.ignore("otel", "there are no traces");
    top.ignore("ghacache", "caches of GitHub are not signed");
    file.history = top.take("history").map(|v| history(v.table()?)).transpose()?.unwrap_or_default();
    file.registries = top.take("registry").map(|v| super::Hosts::read(v.table()?)).transpose()?.unwrap_or_default();
    let frontends = top.take("frontend").map(|v| frontends(v.table()?)).transpose()?;
    let (frontends_off, frontend_repositories) = frontends.unwrap_or_default();
    if let Some(system) = top.take("system") {
        let mut system = system.table()?;
        let concurrency = system.take("maxRegistryConcurrency").map(|v| v.integer(1..=64)).transpose()?;
        file.transfer = super::TransferFile::of_concurrency(concurrency);
        system.ignore("platformsCacheMaxAge", "emulators are looked for with each build");
        system.finish()?;
    }
    let mut builder = Builder { entitlements: allowed, frontends_off, frontend_repositories, ..Builder::default() };
    if let Some(cdi) = top.take("cdi") {
        builder.device_dirs = devices(cdi.table()?)?;
    }
    if let Some(workers) = top.take("worker") {
        file.gc = worker(workers.table()?, &mut builder)?;
    }
    file.builder = builder;
    top.finish()?;
    Ok(file)
}

fn listeners(mut table: Table<'_>) -> Result<Daemon> {
    let text = |text: &str| Ok::<_, String>(text.to_owned());
    let daemon = Daemon {
        hosts: table.take("address").map(|v| v.list_of(text)).transpose()?.unwrap_or_default(),
        group: table.take("gid").map(|v| v.integer(0..=u64::from(u32::MAX))).transpose()?.map(|gid| gid.to_string()),
        tls: table.take("tls").map(|v| TlsFiles::read(v.table()?)).transpose()?.unwrap_or_default(),
    };
    table.ignore("uid", "the socket is the user's that runs the daemon");
    table.ignore("debugAddress", "there is no address for debuggers");
    table.ignore("securityDescriptor", "it is for Windows");
    table.finish()?;
    Ok(daemon)
}

fn dns(mut table: Table<'_>) -> Result<Dns> {
    let address = |text: &str| text.parse().map_err(|_| format!("{text:?} is not an IP address"));
    let word = |text: &str| Ok::<_, String>(text.to_owned());
    let dns = Dns {
        nameservers: table.take("nameservers").map(|v| v.list_of(address)).transpose()?.unwrap_or_default(),
        search: table.take("searchDomains").map(|v| v.list_of(word)).transpose()?.unwrap_or_default(),
        options: table.take("options").map(|v| v.list_of(word)).transpose()?.unwrap_or_default(),
    };
    table.finish()?;
    Ok(dns)
}

fn history(mut table: Table<'_>) -> Result<History> {
    let history = History {
        max_age: table.take("maxAge").map(|v| time(&v)).transpose()?,
        max_entries: table.take("maxEntries").map(|v| v.integer(0..=1_000_000)).transpose()?,
    };
    table.finish()?;
    Ok(history)
}

/// Reads which frontends are switched off, and the repositories whose images may run as frontends.
fn frontends(mut table: Table<'_>) -> Result<(Vec<String>, Vec<String>)> {
    let repository = |text: &str| match text.parse::<Reference>() {
        Ok(name) => Ok(name.repository()),
        Err(error) => Err(error.to_string()),
    };
    let (mut off, mut repositories) = (Vec::new(), Vec::new());
    for name in ["dockerfile.v0", "gateway.v0"] {
        let Some(frontend) = table.take(name) else { continue };
        let mut frontend = frontend.table()?;
        if frontend.take("enabled").map(|v| v.enabled()).transpose()? == Some(false) {
            off.push(name.to_owned());
        }
        match name {
            "gateway.v0" => {
                let allowed = frontend.take("allowedRepositories").map(|v| v.list_of(repository)).transpose()?;
                repositories = allowed.unwrap_or_default();
            }
            _ => frontend.ignore("allowedRepositories", "what is built in is no image"),
        }
        frontend.finish()?;
    }
    table.finish()?;
    Ok((off, repositories))
}

fn devices(mut table: Table<'_>) -> Result<Option<Vec<PathBuf>>> {
    let disabled = table.take("disabled").map(|v| v.bool()).transpose()?;
    let dirs = |value: Value<'_>| value.list()?.iter().map(Value::path).collect::<Result<Vec<_>>>();
    let dirs = table.take("specDirs").map(dirs).transpose()?;
    table.finish()?;
    Ok(if disabled == Some(true) { Some(Vec::new()) } else { dirs })
}

/// There is one worker here: it takes the settings of the OCI worker, or of containerd's where only that is used.
fn worker(mut table: Table<'_>, builder: &mut Builder) -> Result<Gc> {
    let mut sections = Vec::new();
    for name in ["oci", "containerd"] {
        let Some(section) = table.take(name) else { continue };
        let mut section = section.table()?;
        let enabled = section.take("enabled").map(|v| v.enabled()).transpose()?;
        sections.push((name, enabled, section));
    }
    table.finish()?;
    let oci_off = sections.iter().any(|(name, enabled, _)| *name == "oci" && *enabled == Some(false));
    let chosen = if oci_off { "containerd" } else { "oci" };
    let mut gc = Gc::default();
    for (name, enabled, mut section) in sections {
        if name != chosen {
            // Said once, and not of every key.
            if enabled != Some(false) && name == "containerd" {
                section.warn(
                    "the section is ignored: there is no containerd here, and the OCI worker's settings are taken",
                );
            }
            continue;
        }
        gc = settings(section, builder)?;
    }
    Ok(gc)
}

fn settings(mut table: Table<'_>, builder: &mut Builder) -> Result<Gc> {
    let parallelism = table.take("max-parallelism").map(|v| v.integer(0..=10_000)).transpose()?;
    // 0 is no limit of BuildKit's; Kiln's own holds then.
    builder.max_parallelism = parallelism.and_then(|number| usize::try_from(number).ok()).filter(|number| *number > 0);
    if let Some(labels) = table.take("labels") {
        builder.labels = builder::labels(labels)?;
    }
    let gc = Gc {
        enabled: table.take("gc").map(|v| v.bool()).transpose()?,
        limits: limits(&mut table, "gckeepstorage")?,
        policies: match table.take("gcpolicy") {
            None => Vec::new(),
            Some(list) => {
                let policies = list.list()?.into_iter().map(|v| policy(v.table()?)).collect::<Result<Vec<_>>>()?;
                policies.into_iter().flatten().collect()
            }
        },
        hard_cap: None,
    };
    const OWN: &str = "snapshots, sandboxes and networks are Kiln's own";
    for key in
        ["snapshotter", "proxySnapshotterPath", "binary", "address", "namespace", "defaultCgroupParent", "runtime"]
    {
        table.ignore(key, OWN);
    }
    for key in ["networkMode", "cniConfigPath", "cniBinaryPath", "cniPoolSize", "bridgeName", "bridgeSubnet"] {
        table.ignore(key, OWN);
    }
    for key in ["rootless", "noProcessSandbox", "apparmor-profile", "selinux", "stargzSnapshotter"] {
        table.ignore(key, OWN);
    }
    table.ignore("platforms", "the platforms are this host's and those of its emulators");
    table.finish()?;
    Ok(gc)
}

/// The limits, of which what is reserved had another name.
fn limits(table: &mut Table<'_>, old: &'static str) -> Result<GcLimits> {
    let old = table.take(old).map(|v| space(&v)).transpose()?;
    Ok(GcLimits {
        reserved: table.take("reservedSpace").map(|v| space(&v)).transpose()?.or(old),
        max_used: table.take("maxUsedSpace").map(|v| space(&v)).transpose()?,
        min_free: table.take("minFreeSpace").map(|v| space(&v)).transpose()?,
    })
}

/// Reads a policy; `None` for one about nothing that there is here.
fn policy(mut table: Table<'_>) -> Result<Option<GcPolicy>> {
    let mut kinds = Vec::new();
    let (mut named, mut all_known) = (false, true);
    if let Some(filters) = table.take("filters") {
        for filter in filters.list()? {
            named = true;
            let text = filter.text()?;
            let kind = text.strip_prefix("type").map(|rest| rest.trim_start_matches('='));
            match kind.filter(|kind| KINDS.contains(kind)) {
                Some(kind) => kinds.push(kind.to_owned()),
                None => {
                    all_known = false;
                    filter.warn(&format!("{text} is ignored: the kinds of records are {}", KINDS.join(", ")));
                }
            }
        }
    }
    let policy = GcPolicy {
        all: table.take("all").map(|v| v.bool()).transpose()?.unwrap_or(false),
        keep: table.take("keepDuration").map(|v| time(&v)).transpose()?,
        limits: limits(&mut table, "keepBytes")?,
        kinds,
    };
    table.finish()?;
    Ok(Some(policy).filter(|policy| !named || all_known || !policy.kinds.is_empty()))
}

/// Reads an amount of space as BuildKit does: bytes, a part of the disk, or a size whose units are powers of 1024.
fn space(value: &Value<'_>) -> Result<Space> {
    let Ok(text) = value.text() else { return value.integer(0..=u64::MAX).map(Space::Bytes) };
    if let Some(percent) = text.strip_suffix('%') {
        let percent = percent.trim().parse().ok().filter(|percent| *percent <= 100);
        return percent.map(Space::Percent).ok_or_else(|| value.error("expected a percentage from 0% to 100%"));
    }
    ram_in_bytes(text).map(Space::Bytes).ok_or_else(|| value.error("expected bytes, a size such as 10GB, or 10%"))
}

fn ram_in_bytes(text: &str) -> Option<u64> {
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.').len();
    let (number, unit) = text.split_at(digits);
    let unit = unit.trim().to_ascii_lowercase();
    let power = match unit.trim_end_matches("ib").trim_end_matches('b') {
        "" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        "p" => 50,
        _ => return None,
    };
    if let Ok(number) = number.parse::<u64>() {
        return number.checked_mul(1 << power);
    }
    let bytes = number.parse::<f64>().ok()? * f64::from(2_u32).powi(power);
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it is positive, and saturates")]
    Some(bytes as u64)
}

/// Reads a length of time: Go's text, or seconds.
fn time(value: &Value<'_>) -> Result<Duration> {
    match value.text() {
        Ok(_) => value.parse(duration),
        Err(_) => value.integer(0..=u64::from(u32::MAX)).map(Duration::from_secs),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::User;

    fn parsed(text: &str) -> Result<(File, Vec<String>)> {
        parse(Path::new("buildkitd.toml"), text)
    }

    const WHOLE: &str = r#"
debug = true
root = "/srv/buildkit"
insecure-entitlements = ["network.host", "device"]
[log]
format = "text"
[dns]
nameservers = ["192.0.2.1"]
searchDomains = ["example.com"]
[grpc]
address = ["tcp://0.0.0.0:1234"]
uid = 0
gid = 7
[grpc.tls]
cert = "/etc/c.pem"
key = "/etc/k.pem"
ca = "/etc/ca.pem"
[history]
maxAge = 172800
maxEntries = 5
[cdi]
specDirs = ["/opt/cdi"]
[worker.oci]
enabled = true
platforms = ["linux/amd64"]
gc = true
reservedSpace = "30%"
maxUsedSpace = "60GB"
minFreeSpace = 1000
max-parallelism = 4
snapshotter = "auto"
[worker.oci.labels]
"foo" = "bar"
[[worker.oci.gcpolicy]]
keepBytes = "512MB"
keepDuration = "48h"
filters = ["type==source.local", "type==frontend"]
[[worker.oci.gcpolicy]]
all = true
reservedSpace = 1024000000
[[worker.oci.gcpolicy]]
filters = ["type==internal"]
[registry."docker.io"]
mirrors = ["mirror.example.com:5000"]
http = true
[frontend."gateway.v0"]
enabled = true
[system]
maxRegistryConcurrency = 3
[unknown]
a = 1
"#;

    #[test]
    fn everything_that_has_a_meaning_is_taken() {
        let (file, warnings) = parsed(WHOLE).unwrap();
        assert_eq!(file.root.as_deref(), Some(Path::new("/srv/buildkit")));
        assert_eq!(
            (file.daemon.hosts, file.daemon.group),
            (vec!["tcp://0.0.0.0:1234".to_owned()], Some("7".to_owned()))
        );
        assert_eq!(file.daemon.tls.ca.as_deref(), Some(Path::new("/etc/ca.pem")));
        assert_eq!((file.dns.nameservers.len(), file.dns.search.len()), (1, 1));
        assert_eq!(file.history, History { max_age: Some(Duration::from_hours(48)), max_entries: Some(5) });
        let builder = file.builder;
        assert_eq!(builder.max_parallelism, Some(4));
        assert_eq!(builder.entitlements.unwrap(), ["network.host", "device"]);
        assert_eq!((builder.labels["foo"].as_str(), builder.device_dirs.unwrap().len()), ("bar", 1));
        let gc = file.gc;
        let limits = GcLimits {
            reserved: Some(Space::Percent(30)),
            max_used: Some(Space::Bytes(60 << 30)),
            min_free: Some(Space::Bytes(1000)),
        };
        assert_eq!((gc.enabled, gc.limits, gc.policies.len()), (Some(true), limits, 2));
        assert_eq!(gc.policies[0].kinds, ["source.local"]);
        assert_eq!(gc.policies[0].limits.reserved, Some(Space::Bytes(512 << 20)));
        assert!(gc.policies[1].all && gc.policies[1].kinds.is_empty());
        for (line, key) in [
            (2, "debug"),
            (5, "log"),
            (12, "grpc.uid"),
            (25, "worker.oci.platforms"),
            (31, "worker.oci.snapshotter"),
            (37, "type==frontend"),
            (42, "type==internal"),
            (50, "unknown"),
        ] {
            let place = format!("buildkitd.toml:{line}: ");
            let found = warnings.iter().find(|warning| warning.starts_with(&place));
            assert!(found.is_some_and(|warning| warning.contains(key)), "{place}{key} in {warnings:#?}");
        }
        assert_eq!(warnings.len(), 8, "{warnings:#?}");
    }

    #[test]
    fn frontends_are_limited_and_what_has_no_meaning_is_told() {
        let text = "proxyNetwork = true\n[frontend.'gateway.v0']\nallowedRepositories = ['docker/dockerfile', 'example.com/a']\n\
                    [frontend.'dockerfile.v0']\nenabled = false";
        let (file, warnings) = parsed(text).unwrap();
        assert_eq!(file.builder.frontends_off, ["dockerfile.v0"]);
        assert_eq!(file.builder.frontend_repositories, ["docker.io/docker/dockerfile", "example.com/a"]);
        assert_eq!(warnings.len(), 1, "{warnings:?}");
        assert!(warnings[0].starts_with("buildkitd.toml:1: ") && warnings[0].contains("proxyNetwork is ignored"));
        for text in [
            "[frontend.'gateway.v0']\nallowedRepositories = ['UPPER']",
            "[frontend.'dockerfile.v0']\nenabled = 'perhaps'",
            "insecure-entitlements = ['network.hots']",
            "[worker.oci]\nreservedSpace = 'much'",
            "[history]\nmaxAge = 'long'",
        ] {
            assert!(parsed(text).is_err(), "{text}");
        }
    }

    #[test]
    fn flags_win_and_nothing_is_allowed_unless_it_is_said() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("buildkitd.toml");
        std::fs::write(&path, WHOLE).unwrap();
        let flags = BuildkitdFlags {
            config: Some(path),
            addresses: vec!["unix:///x".to_owned()],
            entitlements: vec!["security.insecure".to_owned()],
            keep_storage: Some("100,200".to_owned()),
            device_dirs: Some(Vec::new()),
            ..BuildkitdFlags::default()
        };
        let environment = Environment::of(User::Root, &[]);
        let (config, _) = Config::of_buildkitd(&flags, &environment).unwrap();
        assert_eq!(config.daemon.hosts, ["unix:///x"]);
        assert_eq!(config.builder.entitlements.unwrap(), ["network.host", "device", "security.insecure"]);
        assert_eq!(config.builder.device_dirs, Some(Vec::new()));
        assert_eq!(config.gc.limits.min_free, Some(Space::Bytes(200_000_000)));
        let nothing = BuildkitdFlags { config: Some(dir.path().join("empty.toml")), ..BuildkitdFlags::default() };
        std::fs::write(dir.path().join("empty.toml"), "").unwrap();
        let (config, _) = Config::of_buildkitd(&nothing, &environment).unwrap();
        assert_eq!(config.daemon.hosts, [ADDRESS]);
        assert_eq!(config.builder.entitlements, Some(Vec::new()));
    }

    #[test]
    fn containerds_settings_are_taken_where_only_that_is_used() {
        let text = "[worker.oci]\nenabled = false\n[worker.containerd]\nenabled = true\nmax-parallelism = 3";
        assert_eq!(parsed(text).unwrap().0.builder.max_parallelism, Some(3));
        let (file, warnings) = parsed("[worker.containerd]\nenabled = true\nmax-parallelism = 3").unwrap();
        assert_eq!((file.builder.max_parallelism, warnings.len()), (None, 1));
    }

    #[test]
    fn sizes_are_powers_of_1024() {
        for (text, bytes) in [("10", 10), ("1kB", 1024), ("1.5g", 3 << 29), ("2TiB", 2 << 40)] {
            assert_eq!(ram_in_bytes(text), Some(bytes), "{text}");
        }
        assert_eq!(ram_in_bytes("1x"), None);
    }
}
