//! What a container may do: capabilities, namespaces, profiles.

use clap::Args;

use crate::cli::value;
use crate::error::{Error, Result, ResultExt as _};
use crate::types::{HostConfig, HostConfigCgroupnsModeEnum};

#[derive(Debug, Args)]
pub(super) struct SecurityOptions {
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
    /// User namespace: host
    #[arg(long, value_name = "MODE")]
    userns: Option<String>,
    /// Allow a kind of device, such as "c 1:3 mr"
    #[arg(long, value_name = "RULE")]
    device_cgroup_rule: Vec<String>,
}

impl SecurityOptions {
    pub(super) fn apply(&self, host: &mut HostConfig) -> Result<()> {
        let (options, unconfined_paths) = security_options(&self.security_opt)?;
        let paths = unconfined_paths.then(Vec::new);
        host.cgroupns_mode = match self.cgroupns.as_deref() {
            None => None,
            Some("host") => Some(HostConfigCgroupnsModeEnum::HOST),
            Some("private") => Some(HostConfigCgroupnsModeEnum::PRIVATE),
            Some(other) => {
                return Err(Error::invalid(format!("invalid --cgroupns {other:?}: expected host or private")));
            }
        };
        host.cap_add = Some(capabilities(&self.cap_add));
        host.cap_drop = Some(capabilities(&self.cap_drop));
        host.privileged = Some(self.privileged);
        host.security_opt = Some(options);
        host.masked_paths.clone_from(&paths);
        host.readonly_paths = paths;
        host.pid_mode.clone_from(&self.pid);
        host.ipc_mode.clone_from(&self.ipc);
        host.uts_mode.clone_from(&self.uts);
        host.userns_mode.clone_from(&self.userns);
        host.sysctls = Some(value::map(&self.sysctl));
        host.device_cgroup_rules = (!self.device_cgroup_rule.is_empty()).then(|| self.device_cgroup_rule.clone());
        Ok(())
    }
}

/// Writes names as the kernel does: `net_admin` becomes `CAP_NET_ADMIN`.
fn capabilities(names: &[String]) -> Vec<String> {
    let full = |name: &String| {
        let name = name.trim().to_uppercase();
        if name == "ALL" || name.starts_with("CAP_") { name } else { format!("CAP_{name}") }
    };
    names.iter().map(full).collect()
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
