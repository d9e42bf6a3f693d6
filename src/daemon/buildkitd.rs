//! The flags of BuildKit's daemon, for when Kiln is started under its name.
//!
//! Those without a meaning here are accepted and told of; one that promises what is not kept is refused.

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::{Arg, ArgAction, ArgMatches, Args as _, Command, FromArgMatches};

use crate::config::{BuildkitdFlags, TlsFiles};
use crate::error::{Error, Result};

/// Flags that take a value and mean nothing here, and why.
const VALUES: &[(&str, &str)] = &[
    ("log-format", MESSAGES),
    ("log-level", MESSAGES),
    ("debugaddr", "there is no address for debuggers"),
    ("otel-socket-path", "there are no traces"),
    ("oci-worker-snapshotter", OWN),
    ("oci-worker-proxy-snapshotter-path", OWN),
    ("oci-worker-platform", PLATFORMS),
    ("oci-worker-net", OWN),
    ("oci-cni-config-path", OWN),
    ("oci-cni-binary-dir", OWN),
    ("oci-cni-pool-size", OWN),
    ("oci-cni-worker-bridge-name", OWN),
    ("oci-cni-worker-bridge-subnet", OWN),
    ("oci-worker-binary", OWN),
    ("oci-worker-apparmor-profile", OWN),
    ("containerd-worker-addr", CONTAINERD),
    ("containerd-worker-labels", CONTAINERD),
    ("containerd-worker-namespace", CONTAINERD),
    ("containerd-worker-net", CONTAINERD),
    ("containerd-worker-platform", CONTAINERD),
    ("containerd-worker-snapshotter", CONTAINERD),
    ("containerd-worker-apparmor-profile", CONTAINERD),
    ("containerd-worker-gc-keepstorage", CONTAINERD),
    ("containerd-cni-config-path", CONTAINERD),
    ("containerd-cni-binary-dir", CONTAINERD),
    ("containerd-cni-pool-size", CONTAINERD),
    ("containerd-max-parallelism", CONTAINERD),
];

/// Switches that mean nothing here, and why.
const SWITCHES: &[(&str, &str)] = &[
    ("debug", MESSAGES),
    ("trace", MESSAGES),
    ("save-cache-debug", "the parts of cache keys are always kept"),
    ("rootless", OWN),
    ("oci-worker", "there is one worker"),
    ("oci-worker-rootless", OWN),
    ("oci-worker-selinux", OWN),
    ("oci-worker-no-process-sandbox", OWN),
    ("containerd-worker", CONTAINERD),
    ("containerd-worker-selinux", CONTAINERD),
    ("containerd-worker-gc", CONTAINERD),
];

const MESSAGES: &str = "what the daemon has to say goes to standard error";
const OWN: &str = "snapshots, sandboxes and networks are Kiln's own";
const PLATFORMS: &str = "the platforms are this host's and those of its emulators";
const CONTAINERD: &str = "there is no containerd here";

/// Serves BuildKit's API until it is told to stop; accepts the flags of buildkitd
#[derive(Debug, clap::Args)]
struct Known {
    /// BuildKit's configuration file (default: /etc/buildkit/buildkitd.toml, if it is there)
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Directory that holds everything Kiln keeps
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
    /// Where to listen: unix:///path, tcp://host:port or fd:// (default: unix:///run/buildkit/buildkitd.sock)
    #[arg(long = "addr", value_name = "ADDRESS")]
    addresses: Vec<String>,
    /// Group that may use the unix socket
    #[arg(long, value_name = "GROUP")]
    group: Option<String>,
    /// Certificate to show to clients
    #[arg(long, value_name = "FILE")]
    tlscert: Option<PathBuf>,
    /// Private key of the certificate
    #[arg(long, value_name = "FILE")]
    tlskey: Option<PathBuf>,
    /// Certificates of the authority that has to vouch for clients
    #[arg(long, value_name = "FILE")]
    tlscacert: Option<PathBuf>,
    /// What clients may allow the steps of their builds: network.host, security.insecure, device
    #[arg(long = "allow-insecure-entitlement", value_name = "ENTITLEMENT", value_delimiter = ',')]
    entitlements: Vec<String>,
    /// Labels of the worker
    #[arg(long = "oci-worker-labels", value_name = "KEY=VALUE", value_delimiter = ',')]
    labels: Vec<String>,
    /// How many steps run at a time
    #[arg(long = "oci-max-parallelism", value_name = "N")]
    max_parallelism: Option<usize>,
    /// Whether records of the build cache go by themselves
    #[arg(long = "oci-worker-gc", value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    gc: Option<bool>,
    /// Limits of the build cache in MB: reserved, free, used at most
    #[arg(long = "oci-worker-gc-keepstorage", value_name = "MB[,MB[,MB]]")]
    keep_storage: Option<String>,
    /// No devices for steps
    #[arg(long)]
    cdi_disabled: bool,
    /// Where devices of steps are described
    #[arg(long = "cdi-spec-dir", value_name = "DIR", value_delimiter = ',')]
    device_dirs: Vec<PathBuf>,
    /// Refused: steps would reach the network without the proxy
    #[arg(long, hide = true)]
    proxy_network: bool,
}

/// Serves BuildKit's API under the name of its daemon.
#[derive(Debug)]
pub struct BuildkitdArguments {
    known: Known,
    /// Flags that were given and mean nothing, with the reason.
    ignored: Vec<String>,
}

impl FromArgMatches for BuildkitdArguments {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let given = |name: &str| matches.value_source(name) == Some(clap::parser::ValueSource::CommandLine);
        let ignored = VALUES.iter().chain(SWITCHES).filter(|(name, _)| given(name));
        let ignored = ignored.map(|(name, why)| format!("--{name} is ignored: {why}")).collect();
        Ok(Self { known: Known::from_arg_matches(matches)?, ignored })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl clap::CommandFactory for BuildkitdArguments {
    fn command() -> Command {
        let value = |(name, _): &(&'static str, &str)| Arg::new(*name).long(*name).hide(true).action(ArgAction::Append);
        let switch = |(name, _): &(&'static str, &str)| {
            Arg::new(*name).long(*name).hide(true).num_args(0..=1).require_equals(true).default_missing_value("true")
        };
        let command = Known::augment_args(Command::new("buildkitd").version(env!("CARGO_PKG_VERSION")));
        command.args(VALUES.iter().map(value)).args(SWITCHES.iter().map(switch))
    }

    fn command_for_update() -> Command {
        <Self as clap::CommandFactory>::command()
    }
}

impl clap::Parser for BuildkitdArguments {}

impl BuildkitdArguments {
    /// Returns what the flags say, and which of them mean nothing here.
    ///
    /// # Errors
    /// `Unsupported` for a flag that promises what is not kept; `InvalidArgument` for malformed labels.
    pub(super) fn flags(self) -> Result<(BuildkitdFlags, Vec<String>)> {
        let Known {
            config,
            root,
            addresses,
            group,
            tlscert,
            tlskey,
            tlscacert,
            entitlements,
            labels,
            max_parallelism,
            gc,
            keep_storage,
            cdi_disabled,
            device_dirs,
            proxy_network,
        } = self.known;
        if proxy_network {
            let what = "--proxy-network is not supported: steps would reach the network without the proxy";
            return Err(Error::unsupported(what));
        }
        let label = |label: &String| {
            let pair = label.split_once('=').map(|(key, value)| (key.to_owned(), value.to_owned()));
            pair.ok_or_else(|| Error::invalid(format!("--oci-worker-labels {label}: expected KEY=VALUE")))
        };
        let labels = labels.iter().map(label).collect::<Result<BTreeMap<_, _>>>()?;
        let device_dirs = match (cdi_disabled, device_dirs.is_empty()) {
            (true, _) => Some(Vec::new()),
            (false, false) => Some(device_dirs),
            (false, true) => None,
        };
        let tls = TlsFiles { ca: tlscacert, cert: tlscert, key: tlskey };
        let max_parallelism = max_parallelism.filter(|number| *number > 0);
        let flags = BuildkitdFlags {
            config,
            root,
            addresses,
            group,
            tls,
            entitlements,
            labels,
            max_parallelism,
            gc,
            keep_storage,
            device_dirs,
        };
        Ok((flags, self.ignored))
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    fn flags(line: &str) -> Result<(BuildkitdFlags, Vec<String>)> {
        let line = std::iter::once("buildkitd").chain(line.split_whitespace());
        BuildkitdArguments::try_parse_from(line).unwrap_or_else(|error| panic!("{error}")).flags()
    }

    #[test]
    fn flags_of_buildkitd_are_taken_or_told_of() {
        let (taken, ignored) = flags(
            "--addr tcp://0.0.0.0:1 --addr unix:///x --group 7 --oci-worker=true --containerd-worker=false --debug \
             --oci-worker-snapshotter overlayfs --allow-insecure-entitlement network.host --oci-worker-labels a=b,c=d \
             --oci-max-parallelism 3 --oci-worker-gc=false --oci-worker-gc-keepstorage 10 --cdi-spec-dir /a",
        )
        .unwrap();
        assert_eq!((taken.addresses.len(), taken.group.as_deref()), (2, Some("7")));
        assert_eq!((taken.entitlements.len(), taken.labels.len(), taken.max_parallelism), (1, 2, Some(3)));
        assert_eq!((taken.gc, taken.device_dirs), (Some(false), Some(vec!["/a".into()])));
        let names: Vec<&str> = ignored.iter().filter_map(|text| text.split(' ').next()).collect();
        assert_eq!(names, ["--oci-worker-snapshotter", "--debug", "--oci-worker", "--containerd-worker"]);
    }

    #[test]
    fn what_would_not_be_kept_is_refused() {
        assert!(flags("--proxy-network").is_err() && flags("--oci-worker-labels a").is_err());
        assert!(BuildkitdArguments::try_parse_from(["buildkitd", "--no-such-flag"]).is_err());
        assert_eq!(flags("--cdi-disabled --cdi-spec-dir /a").unwrap().0.device_dirs, Some(Vec::new()));
    }

    #[test]
    fn the_flags_are_well_formed() {
        <BuildkitdArguments as clap::CommandFactory>::command().debug_assert();
    }
}
