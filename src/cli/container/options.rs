//! The options of `run` and `create`, and the request they become.

use std::path::PathBuf;

use clap::Args;

use crate::cli::value;
use crate::error::{Error, Result, ResultExt as _};
use crate::types::{
    ContainerCreateBody, DeviceMapping, HostConfig, HostConfigCgroupnsModeEnum, HostConfigLogConfig, Mount,
    MountBindOptions, MountBindOptionsPropagationEnum, MountTmpfsOptions, MountType, ResourcesUlimits,
};

/// When the image is pulled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(in crate::cli) enum Pull {
    /// Before every use
    Always,
    /// When it is missing
    #[default]
    Missing,
    /// Never
    Never,
}

/// Options of `run` and `create`.
#[derive(Debug, Args)]
pub(in crate::cli) struct Options {
    /// Give the container a name
    #[arg(long)]
    pub(in crate::cli) name: Option<String>,
    /// Pull the image before running
    #[arg(long, value_enum, default_value_t, value_name = "always|missing|never")]
    pub(in crate::cli) pull: Pull,
    /// Platform of the image, os/arch[/variant]
    #[arg(long, env = "DOCKER_DEFAULT_PLATFORM")]
    pub(in crate::cli) platform: Option<String>,
    /// Write the container's id to a file
    #[arg(long, value_name = "FILE")]
    pub(in crate::cli) cidfile: Option<PathBuf>,
    /// Remove the container when it exits
    #[arg(long)]
    pub(in crate::cli) rm: bool,
    /// Keep standard input open
    #[arg(short, long)]
    pub(in crate::cli) interactive: bool,
    /// Give the container a terminal
    #[arg(short, long)]
    pub(in crate::cli) tty: bool,
    #[command(flatten)]
    process: ProcessOptions,
    #[command(flatten)]
    storage: StorageOptions,
    #[command(flatten)]
    network: NetworkOptions,
    #[command(flatten)]
    security: SecurityOptions,
    #[command(flatten)]
    limits: LimitOptions,
    /// The image
    pub(in crate::cli) image: String,
    /// The command and its arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "COMMAND")]
    command: Vec<String>,
}

#[derive(Debug, Args)]
struct ProcessOptions {
    /// Set a variable, or pass on this command's with a bare name
    #[arg(short, long, value_name = "KEY[=VALUE]")]
    env: Vec<String>,
    /// Read variables from a file
    #[arg(long, value_name = "FILE")]
    env_file: Vec<PathBuf>,
    /// Working directory
    #[arg(short, long, value_name = "DIR")]
    workdir: Option<String>,
    /// User, as name or number, with :group if wanted
    #[arg(short, long)]
    user: Option<String>,
    /// Further groups
    #[arg(long, value_name = "GROUP")]
    group_add: Vec<String>,
    /// Replace the image's entrypoint; empty for none
    #[arg(long, value_name = "COMMAND")]
    entrypoint: Option<String>,
    /// Run a small init as process 1
    #[arg(long)]
    init: bool,
    /// Signal that asks the container to stop
    #[arg(long, value_name = "SIGNAL")]
    stop_signal: Option<String>,
    /// Seconds between that signal and the kill, -1 for ever
    #[arg(long, value_name = "SECONDS", allow_hyphen_values = true)]
    stop_timeout: Option<i64>,
    /// Set a label
    #[arg(short, long, value_name = "KEY[=VALUE]")]
    label: Vec<String>,
    /// Read labels from a file
    #[arg(long, value_name = "FILE")]
    label_file: Vec<PathBuf>,
    /// Log driver: json-file or none
    #[arg(long, value_name = "DRIVER")]
    log_driver: Option<String>,
    /// Log option: max-size or max-file
    #[arg(long, value_name = "KEY=VALUE")]
    log_opt: Vec<String>,
}

#[derive(Debug, Args)]
struct StorageOptions {
    /// Bind a file or directory of the host: source:target[:ro]
    #[arg(short, long, value_name = "SOURCE:TARGET[:OPTIONS]")]
    volume: Vec<String>,
    /// Mount something: type=bind,source=..,target=..[,readonly] or type=tmpfs,target=..
    #[arg(long, value_name = "KEY=VALUE,..")]
    mount: Vec<String>,
    /// Mount memory: target[:size=..,mode=..]
    #[arg(long, value_name = "TARGET[:OPTIONS]")]
    tmpfs: Vec<String>,
    /// Make the root file system read-only
    #[arg(long)]
    read_only: bool,
    /// Size of /dev/shm
    #[arg(long, value_name = "BYTES")]
    shm_size: Option<String>,
    /// Show a device of the host inside
    #[arg(long, value_name = "PATH[:PATH[:rwm]]")]
    device: Vec<String>,
}

#[derive(Debug, Args)]
struct NetworkOptions {
    /// Network: bridge, host or none
    #[arg(long, visible_alias = "net", value_name = "NETWORK")]
    network: Option<String>,
    /// Host name
    #[arg(short = 'h', long)]
    hostname: Option<String>,
    /// NIS domain name
    #[arg(long)]
    domainname: Option<String>,
    /// Add a line to /etc/hosts: name:address
    #[arg(long, value_name = "NAME:ADDRESS")]
    add_host: Vec<String>,
    /// Name server
    #[arg(long, value_name = "ADDRESS")]
    dns: Vec<String>,
    /// Search domain
    #[arg(long, value_name = "DOMAIN")]
    dns_search: Vec<String>,
    /// Resolver option
    #[arg(long, value_name = "OPTION")]
    dns_option: Vec<String>,
    /// Publish a port
    #[arg(short, long, value_name = "[[IP:]HOST:]CONTAINER")]
    publish: Vec<String>,
}

#[derive(Debug, Args)]
struct SecurityOptions {
    /// Add a capability
    #[arg(long, value_name = "CAPABILITY")]
    cap_add: Vec<String>,
    /// Take a capability away
    #[arg(long, value_name = "CAPABILITY")]
    cap_drop: Vec<String>,
    /// Allow everything
    #[arg(long)]
    privileged: bool,
    /// Security option: seccomp=FILE|unconfined, no-new-privileges, apparmor=PROFILE, systempaths=unconfined
    #[arg(long, value_name = "OPTION")]
    security_opt: Vec<String>,
    /// Process namespace: host
    #[arg(long, value_name = "MODE")]
    pid: Option<String>,
    /// IPC namespace: host or private
    #[arg(long, value_name = "MODE")]
    ipc: Option<String>,
    /// Host name namespace: host
    #[arg(long, value_name = "MODE")]
    uts: Option<String>,
    /// Control group namespace: host or private
    #[arg(long, value_name = "MODE")]
    cgroupns: Option<String>,
    /// Set a kernel parameter of the container's namespaces
    #[arg(long, value_name = "KEY=VALUE")]
    sysctl: Vec<String>,
    /// Restart policy
    #[arg(long, value_name = "POLICY")]
    restart: Option<String>,
}

#[derive(Debug, Args)]
struct LimitOptions {
    /// Most memory
    #[arg(short, long, value_name = "BYTES")]
    memory: Option<String>,
    /// Most memory and swap together, -1 for unlimited swap
    #[arg(long, value_name = "BYTES", allow_hyphen_values = true)]
    memory_swap: Option<String>,
    /// Memory that stays when memory runs short
    #[arg(long, value_name = "BYTES")]
    memory_reservation: Option<String>,
    /// Most processors, such as 1.5
    #[arg(long, value_name = "NUMBER")]
    cpus: Option<String>,
    /// Processor time relative to other containers
    #[arg(short, long, value_name = "SHARES")]
    cpu_shares: Option<i64>,
    /// Processor time within a period, in microseconds
    #[arg(long, value_name = "MICROSECONDS")]
    cpu_quota: Option<i64>,
    /// Length of a period, in microseconds
    #[arg(long, value_name = "MICROSECONDS")]
    cpu_period: Option<i64>,
    /// Processors it may use, such as 0-2,4
    #[arg(long, value_name = "LIST")]
    cpuset_cpus: Option<String>,
    /// Memory nodes it may use
    #[arg(long, value_name = "LIST")]
    cpuset_mems: Option<String>,
    /// Most processes and threads, -1 for unlimited
    #[arg(long, value_name = "NUMBER", allow_hyphen_values = true)]
    pids_limit: Option<i64>,
    /// Limit of each process: name=soft[:hard]
    #[arg(long, value_name = "NAME=SOFT[:HARD]")]
    ulimit: Vec<String>,
    /// How eagerly the kernel kills it when memory runs out, -1000 to 1000
    #[arg(long, value_name = "NUMBER", allow_hyphen_values = true)]
    oom_score_adj: Option<i64>,
    /// Parent of the control group
    #[arg(long, value_name = "PATH")]
    cgroup_parent: Option<String>,
}

impl Options {
    /// Makes the request. `attach` says which of input, output and errors the command connects to.
    ///
    /// # Errors
    /// `InvalidArgument` for malformed values; `Unsupported` for what Kiln cannot do.
    pub(in crate::cli) fn request(&self, attach: [bool; 3], console: Option<[u16; 2]>) -> Result<ContainerCreateBody> {
        let process = &self.process;
        let mut env = value::files(&process.env_file)?;
        env.extend(process.env.iter().cloned());
        let mut labels = value::files(&process.label_file)?;
        labels.extend(process.label.iter().cloned());
        let text = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
        Ok(ContainerCreateBody {
            image: Some(self.image.clone()),
            cmd: (!self.command.is_empty()).then(|| self.command.clone()),
            entrypoint: process.entrypoint.clone().map(|word| vec![word]),
            env: Some(value::with_environment(env)),
            labels: Some(value::map(&labels)),
            user: text(&process.user),
            working_dir: text(&process.workdir),
            hostname: text(&self.network.hostname),
            domainname: text(&self.network.domainname),
            stop_signal: text(&process.stop_signal),
            stop_timeout: process.stop_timeout,
            tty: Some(self.tty),
            open_stdin: Some(self.interactive),
            stdin_once: Some(self.interactive && attach[0]),
            attach_stdin: Some(attach[0]),
            attach_stdout: Some(attach[1]),
            attach_stderr: Some(attach[2]),
            host_config: Some(self.host_config(console)?),
            ..ContainerCreateBody::default()
        })
    }

    fn host_config(&self, console: Option<[u16; 2]>) -> Result<HostConfig> {
        let (network, security) = (&self.network, &self.security);
        refuse("--publish", !network.publish.is_empty())?;
        refuse("--restart", security.restart.as_deref().is_some_and(|policy| policy != "no"))?;
        let (options, unconfined_paths) = security_options(&security.security_opt)?;
        let paths = unconfined_paths.then(Vec::new);
        let cgroupns_mode = match security.cgroupns.as_deref() {
            None => None,
            Some("host") => Some(HostConfigCgroupnsModeEnum::HOST),
            Some("private") => Some(HostConfigCgroupnsModeEnum::PRIVATE),
            Some(other) => {
                return Err(Error::invalid(format!("invalid --cgroupns {other:?}: expected host or private")));
            }
        };
        let mut host = HostConfig {
            auto_remove: Some(self.rm),
            network_mode: Some(network.network.clone().unwrap_or_else(|| "default".to_owned())),
            extra_hosts: Some(extra_hosts(&network.add_host)?),
            dns: Some(network.dns.clone()),
            dns_search: Some(network.dns_search.clone()),
            dns_options: Some(network.dns_option.clone()),
            cap_add: Some(security.cap_add.clone()),
            cap_drop: Some(security.cap_drop.clone()),
            privileged: Some(security.privileged),
            security_opt: Some(options),
            masked_paths: paths.clone(),
            readonly_paths: paths,
            pid_mode: security.pid.clone(),
            ipc_mode: security.ipc.clone(),
            uts_mode: security.uts.clone(),
            cgroupns_mode,
            sysctls: Some(value::map(&security.sysctl)),
            group_add: Some(self.process.group_add.clone()),
            init: self.process.init.then_some(true),
            log_config: Some(HostConfigLogConfig {
                typ: self.process.log_driver.clone(),
                config: Some(value::map(&self.process.log_opt)),
            }),
            console_size: console.map(|size| size.map(usize::from).to_vec()),
            ..HostConfig::default()
        };
        self.storage.apply(&mut host)?;
        self.limits.apply(&mut host)?;
        Ok(host)
    }
}

fn refuse(option: &str, given: bool) -> Result<()> {
    if given { Err(Error::unsupported(format!("{option}: not supported by this version of Kiln"))) } else { Ok(()) }
}

/// Reads files that options name, and takes out `systempaths`, which is sent otherwise.
fn security_options(options: &[String]) -> Result<(Vec<String>, bool)> {
    let (mut sent, mut unconfined_paths) = (Vec::new(), false);
    for option in options {
        match option.split_once(['=', ':']) {
            Some(("systempaths", "unconfined")) => unconfined_paths = true,
            Some(("systempaths", other)) => {
                return Err(Error::invalid(format!("invalid --security-opt systempaths={other}: expected unconfined")));
            }
            Some(("seccomp", path)) if !matches!(path, "unconfined" | "builtin") => {
                let profile = std::fs::read_to_string(path).context(|| format!("read the seccomp profile {path}"))?;
                sent.push(format!("seccomp={profile}"));
            }
            _ => sent.push(option.clone()),
        }
    }
    Ok((sent, unconfined_paths))
}

fn extra_hosts(entries: &[String]) -> Result<Vec<String>> {
    let convert = |entry: &String| match entry.split_once(['=', ':']) {
        Some((name, address)) if !name.is_empty() && !address.is_empty() => {
            let address = address.trim_start_matches('[').trim_end_matches(']');
            Ok(format!("{name}:{address}"))
        }
        _ => Err(Error::invalid(format!("invalid --add-host {entry:?}: expected name:address"))),
    };
    entries.iter().map(convert).collect()
}

impl StorageOptions {
    fn apply(&self, host: &mut HostConfig) -> Result<()> {
        host.binds = Some(self.volume.iter().map(|volume| absolute_bind(volume)).collect::<Result<_>>()?);
        host.mounts = Some(self.mount.iter().map(|mount| parse_mount(mount)).collect::<Result<_>>()?);
        let tmpfs = self.tmpfs.iter().map(|entry| match entry.split_once(':') {
            Some((target, options)) => (target.to_owned(), options.to_owned()),
            None => (entry.clone(), String::new()),
        });
        host.tmpfs = Some(tmpfs.collect());
        host.readonly_rootfs = Some(self.read_only);
        host.shm_size = self.shm_size.as_deref().map(value::bytes).transpose()?;
        let devices = self.device.iter().map(|device| {
            let mut parts = device.splitn(3, ':').map(str::to_owned);
            let path_on_host = parts.next();
            let (second, third) = (parts.next(), parts.next());
            // `/dev/x:rwm` leaves the path inside out.
            let (inside, permissions) = match second {
                Some(word) if !word.starts_with('/') => (None, Some(word)),
                other => (other, third),
            };
            DeviceMapping {
                path_in_container: inside.or_else(|| path_on_host.clone()),
                path_on_host,
                cgroup_permissions: permissions,
            }
        });
        host.devices = Some(devices.collect());
        Ok(())
    }
}

/// Makes a relative source (`./data`, `.`) absolute; names without a slash are left for the engine.
fn absolute_bind(volume: &str) -> Result<String> {
    let Some((source, rest)) = volume.split_once(':') else { return Ok(volume.to_owned()) };
    let path = source.strip_prefix('~').and_then(|rest| Some(format!("{}{rest}", std::env::var("HOME").ok()?)));
    let source = path.as_deref().unwrap_or(source);
    if source.starts_with('.') {
        let path = std::path::absolute(source).context(|| format!("find {source}"))?;
        let path = path.components().collect::<PathBuf>();
        return Ok(format!("{}:{rest}", path.display()));
    }
    Ok(format!("{source}:{rest}"))
}

fn parse_mount(text: &str) -> Result<Mount> {
    let invalid = |why: &str| Error::invalid(format!("invalid argument {text:?} for --mount: {why}"));
    let mut mount = Mount::default();
    let mut bind = MountBindOptions::default();
    let mut tmpfs = MountTmpfsOptions::default();
    for (key, value) in value::csv(text)? {
        let given = || value.clone().ok_or_else(|| invalid(&format!("{key} needs a value")));
        let flag = || match value.as_deref() {
            None | Some("true" | "1") => Ok(true),
            Some("false" | "0") => Ok(false),
            Some(other) => Err(invalid(&format!("{key} is true or false, not {other}"))),
        };
        match key.to_lowercase().as_str() {
            "type" => {
                mount.typ = Some(match given()?.as_str() {
                    "bind" => MountType::BIND,
                    "tmpfs" => MountType::TMPFS,
                    "volume" => MountType::VOLUME,
                    "image" => MountType::IMAGE,
                    other => return Err(invalid(&format!("unknown type {other}"))),
                });
            }
            "source" | "src" => mount.source = Some(absolute_source(&given()?)?),
            "target" | "dst" | "destination" => mount.target = Some(given()?),
            "readonly" | "ro" => mount.read_only = Some(flag()?),
            "bind-propagation" => {
                let propagation = given()?;
                let known: MountBindOptionsPropagationEnum =
                    propagation.parse().map_err(|_| invalid(&format!("unknown propagation {propagation}")))?;
                bind.propagation = Some(known);
            }
            "bind-create-src" => bind.create_mountpoint = Some(flag()?),
            "tmpfs-size" => tmpfs.size_bytes = Some(value::bytes(&given()?)?),
            "tmpfs-mode" => {
                let mode = i64::from_str_radix(&given()?, 8).map_err(|_| invalid("tmpfs-mode is an octal number"))?;
                tmpfs.mode = Some(mode);
            }
            other => return Err(invalid(&format!("unknown key {other}"))),
        }
    }
    if mount.target.is_none() {
        return Err(invalid("target is required"));
    }
    // Docker's default type; the engine refuses volumes by name.
    let kind = *mount.typ.get_or_insert(MountType::VOLUME);
    mount.bind_options = (kind == MountType::BIND && bind != MountBindOptions::default()).then_some(bind);
    mount.tmpfs_options = (kind == MountType::TMPFS && tmpfs != MountTmpfsOptions::default()).then_some(tmpfs);
    Ok(mount)
}

fn absolute_source(source: &str) -> Result<String> {
    if !source.starts_with('.') {
        return Ok(source.to_owned());
    }
    let path = std::path::absolute(source).context(|| format!("find {source}"))?;
    Ok(path.components().collect::<PathBuf>().display().to_string())
}

impl LimitOptions {
    fn apply(&self, host: &mut HostConfig) -> Result<()> {
        let size = |text: &Option<String>| text.as_deref().map(value::bytes).transpose();
        host.memory = size(&self.memory)?;
        host.memory_swap = match self.memory_swap.as_deref() {
            Some("-1") => Some(-1),
            _ => size(&self.memory_swap)?,
        };
        host.memory_reservation = size(&self.memory_reservation)?;
        host.nano_cpus = self.cpus.as_deref().map(value::nano_cpus).transpose()?;
        host.cpu_shares = self.cpu_shares;
        host.cpu_quota = self.cpu_quota;
        host.cpu_period = self.cpu_period;
        host.cpuset_cpus.clone_from(&self.cpuset_cpus);
        host.cpuset_mems.clone_from(&self.cpuset_mems);
        host.pids_limit = self.pids_limit;
        host.oom_score_adj = self.oom_score_adj;
        host.cgroup_parent.clone_from(&self.cgroup_parent);
        host.ulimits = Some(self.ulimit.iter().map(|limit| ulimit(limit)).collect::<Result<_>>()?);
        Ok(())
    }
}

/// Reads `nofile=1024:2048`.
pub(in crate::cli) fn ulimit(text: &str) -> Result<ResourcesUlimits> {
    let invalid =
        || Error::invalid(format!("invalid ulimit {text:?}: expected name=soft[:hard], such as nofile=1024:2048"));
    let (name, limits) = text.split_once('=').ok_or_else(invalid)?;
    let (soft, hard) = limits.split_once(':').unwrap_or((limits, limits));
    let number = |text: &str| if text == "unlimited" { Ok(-1) } else { text.parse().map_err(|_| invalid()) };
    let (soft, hard): (i64, i64) = (number(soft)?, number(hard)?);
    if hard >= 0 && (soft > hard || soft < 0) {
        return Err(Error::invalid(format!("ulimit {text:?}: the soft limit must not exceed the hard limit")));
    }
    Ok(ResourcesUlimits { name: Some(name.to_owned()), soft: Some(soft), hard: Some(hard) })
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[derive(Debug, clap::Parser)]
    #[command(disable_help_flag = true)]
    struct Run {
        #[command(flatten)]
        options: Options,
    }

    fn request(line: &str) -> Result<ContainerCreateBody> {
        let words = std::iter::once("run").chain(line.split_whitespace());
        Run::try_parse_from(words).unwrap().options.request([false, true, true], None)
    }

    #[test]
    fn options_end_at_the_image() {
        let body = request("-it --rm busybox sh -c --name=x -e").unwrap();
        assert_eq!(body.image.as_deref(), Some("busybox"));
        assert_eq!(body.cmd.unwrap(), ["sh", "-c", "--name=x", "-e"]);
        assert_eq!((body.tty, body.open_stdin), (Some(true), Some(true)));
    }

    #[test]
    fn limits_and_mounts_are_converted() {
        let line = "-m 64m --cpus 1.5 --ulimit nofile=10:20 -v /a:/b:ro --mount type=bind,src=/c,dst=/d,ro \
                    --mount type=tmpfs,target=/t,tmpfs-size=1m,tmpfs-mode=700 --tmpfs /x:size=1m --device /dev/fuse:rw b";
        let host = request(line).unwrap().host_config.unwrap();
        assert_eq!((host.memory, host.nano_cpus), (Some(64 << 20), Some(1_500_000_000)));
        assert_eq!(host.binds.unwrap(), ["/a:/b:ro"]);
        let mounts = host.mounts.unwrap();
        assert_eq!((mounts[0].typ, mounts[0].read_only), (Some(MountType::BIND), Some(true)));
        assert_eq!(mounts[1].tmpfs_options.as_ref().unwrap().mode, Some(0o700));
        let device = &host.devices.unwrap()[0];
        assert_eq!(device.path_in_container.as_deref(), Some("/dev/fuse"));
        assert_eq!(device.cgroup_permissions.as_deref(), Some("rw"));
        let limit = &host.ulimits.unwrap()[0];
        assert_eq!((limit.soft, limit.hard), (Some(10), Some(20)));
    }

    #[test]
    fn malformed_values_name_their_option() {
        for (line, words) in [
            ("-m lots b", "invalid size"),
            ("--cpus x b", "number of CPUs"),
            ("--ulimit nofile b", "nofile=1024"),
            ("--ulimit nofile=9:1 b", "must not exceed"),
            ("--mount target=/x,huh=1 b", "unknown key huh"),
            ("--mount type=bind b", "target is required"),
            ("--add-host x b", "--add-host"),
            ("-p 80:80 b", "--publish"),
            ("--security-opt systempaths=x b", "systempaths"),
        ] {
            let error = request(line).unwrap_err().to_string();
            assert!(error.contains(words), "{line}: {error}");
        }
    }
}
