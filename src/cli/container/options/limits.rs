//! What a container may use: memory, processors, processes.

use clap::Args;

use crate::cli::value;
use crate::error::{Error, Result};
use crate::types::{HostConfig, ResourcesUlimits};

#[derive(Debug, Args)]
pub(super) struct LimitOptions {
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
    /// Never kill the container for its use of memory
    #[arg(long)]
    oom_kill_disable: bool,
    /// How eagerly its memory is swapped out, 0 to 100
    #[arg(long, value_name = "NUMBER", allow_hyphen_values = true)]
    memory_swappiness: Option<i64>,
    /// Weight of its disk input and output, 10 to 1000
    #[arg(long, value_name = "NUMBER")]
    blkio_weight: Option<u16>,
    /// Parent of the control group
    #[arg(long, value_name = "PATH")]
    cgroup_parent: Option<String>,
}

impl LimitOptions {
    pub(super) fn apply(&self, host: &mut HostConfig) -> Result<()> {
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
        host.oom_kill_disable = self.oom_kill_disable.then_some(true);
        host.memory_swappiness = self.memory_swappiness;
        host.blkio_weight = self.blkio_weight;
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
