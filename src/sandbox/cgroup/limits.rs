//! Limits of a group, and how v1 and v2 spell them.
//!
//! Validation that needs no kernel (smallest values, contradictions between options) is the API's business.

use super::{Cgroup, Controller, Group, Version};
use crate::error::{Error, Result};

/// What a group may use. `None` is no limit, or no change when an existing group is updated.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Memory in bytes.
    pub memory_bytes: Option<u64>,
    /// Memory and swap; `None` beside a memory limit allows as much swap as memory.
    pub memory_swap: Option<Swap>,
    /// Memory in bytes that is left to the group when others need memory.
    pub memory_reservation_bytes: Option<u64>,
    /// Processor time in microseconds per period.
    pub cpu_quota_us: Option<u64>,
    /// The period in microseconds; `None` beside a quota is 100 000.
    pub cpu_period_us: Option<u64>,
    /// The share of processor time when processors are busy: 2 to 262 144, others have 1024.
    pub cpu_shares: Option<u64>,
    /// The processors, as a list such as `0-2,5`.
    pub cpuset_cpus: Option<String>,
    /// The memory nodes, as a list.
    pub cpuset_mems: Option<String>,
    /// Processes and threads; `u64::MAX` takes a limit away.
    pub pids: Option<u64>,
}

/// A limit of memory and swap together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Swap {
    /// As much swap as there is.
    Unlimited,
    /// Memory and swap in bytes.
    Total(u64),
}

const DEFAULT_PERIOD_US: u64 = 100_000;

impl Limits {
    /// Sets quota and period for a number of processors in billionths, as `--cpus` gives it.
    #[must_use]
    pub fn with_nano_cpus(mut self, nano_cpus: u64) -> Self {
        let quota = u128::from(nano_cpus) * u128::from(DEFAULT_PERIOD_US) / 1_000_000_000;
        self.cpu_quota_us = Some(u64::try_from(quota).unwrap_or(u64::MAX));
        self.cpu_period_us = Some(DEFAULT_PERIOD_US);
        self
    }

    /// Memory and swap together; twice the memory when only that is limited (Docker's rule).
    fn swap_total(&self) -> Option<Swap> {
        self.memory_swap.or_else(|| Some(Swap::Total(self.memory_bytes?.saturating_mul(2))))
    }
}

/// Writes limits, and returns what had to be discarded.
pub(super) fn apply(cgroup: &Cgroup, limits: &Limits) -> Result<Vec<String>> {
    let mut warnings = Vec::new();
    let mut each = |wanted: bool,
                    what: &str,
                    controller: Controller,
                    set: fn(&Group, &Limits) -> Result<Option<&'static str>>| {
        if !wanted {
            return Ok(());
        }
        match cgroup.group(controller) {
            Some(group) if group.version == Version::V1 || group.is_enabled(controller) => {
                warnings.extend(set(group, limits)?.map(str::to_owned));
            }
            _ => warnings.push(format!("{what} discarded: this host gives no such controller to the control group")),
        }
        Ok::<_, Error>(())
    };
    let memory =
        limits.memory_bytes.is_some() || limits.memory_swap.is_some() || limits.memory_reservation_bytes.is_some();
    let cpu = limits.cpu_quota_us.is_some() || limits.cpu_period_us.is_some() || limits.cpu_shares.is_some();
    each(memory, "memory limit", Controller::Memory, set_memory)?;
    each(cpu, "processor limit", Controller::Cpu, set_cpu)?;
    each(limits.cpuset_cpus.is_some() || limits.cpuset_mems.is_some(), "cpuset", Controller::CpuSet, set_cpuset)?;
    each(limits.pids.is_some(), "limit of processes", Controller::Pids, set_pids)?;
    Ok(warnings)
}

impl Group {
    /// Whether a v2 group really has a controller: ancestors may not have been able to pass it on.
    fn is_enabled(&self, controller: Controller) -> bool {
        let names = self.read("cgroup.controllers").unwrap_or_default();
        controller.v2_name().is_some_and(|name| names.split_whitespace().any(|entry| entry == name))
    }
}

const NO_SWAP_ACCOUNT: &str =
    "swap limit discarded: this kernel does not account for swap; memory is limited without it";

fn set_memory(group: &Group, limits: &Limits) -> Result<Option<&'static str>> {
    match group.version {
        Version::V1 => set_memory_v1(group, limits),
        Version::V2 => set_memory_v2(group, limits),
    }
}

fn set_memory_v1(group: &Group, limits: &Limits) -> Result<Option<&'static str>> {
    const TOTAL: &str = "memory.memsw.limit_in_bytes";
    let total = limits.swap_total().map(|swap| match swap {
        Swap::Unlimited => "-1".to_owned(),
        Swap::Total(bytes) => bytes.to_string(),
    });
    let total = total.filter(|_| group.has(TOTAL));
    let set_limit =
        || limits.memory_bytes.map_or(Ok(()), |bytes| group.write("memory.limit_in_bytes", &bytes.to_string()));
    let set_total = || total.as_ref().map_or(Ok(()), |total| group.write(TOTAL, total));
    // The total may never be below the limit, so the order depends on whether they rise or fall.
    if set_limit().is_ok() {
        set_total()?;
    } else {
        set_total()?;
        set_limit()?;
    }
    if let Some(bytes) = limits.memory_reservation_bytes {
        group.write("memory.soft_limit_in_bytes", &bytes.to_string())?;
    }
    Ok((limits.memory_swap.is_some() && !group.has(TOTAL)).then_some(NO_SWAP_ACCOUNT))
}

fn set_memory_v2(group: &Group, limits: &Limits) -> Result<Option<&'static str>> {
    const SWAP: &str = "memory.swap.max";
    if let Some(bytes) = limits.memory_bytes {
        group.write("memory.max", &bytes.to_string())?;
    }
    if let Some(swap) = limits.swap_total().filter(|_| group.has(SWAP)) {
        let value = match swap {
            Swap::Unlimited => "max".to_owned(),
            // v2 counts swap alone.
            Swap::Total(total) => total.saturating_sub(limits.memory_bytes.unwrap_or(0)).to_string(),
        };
        group.write(SWAP, &value)?;
    }
    if let Some(bytes) = limits.memory_reservation_bytes {
        group.write("memory.low", &bytes.to_string())?;
    }
    Ok((limits.memory_swap.is_some() && !group.has(SWAP)).then_some(NO_SWAP_ACCOUNT))
}

fn set_cpu(group: &Group, limits: &Limits) -> Result<Option<&'static str>> {
    let quota_file = if group.version == Version::V1 { "cpu.cfs_quota_us" } else { "cpu.max" };
    let wants_quota = limits.cpu_quota_us.is_some() || limits.cpu_period_us.is_some();
    if let Some(shares) = limits.cpu_shares {
        match group.version {
            Version::V1 => group.write("cpu.shares", &shares.to_string())?,
            Version::V2 => group.write("cpu.weight", &weight(shares).to_string())?,
        }
    }
    if wants_quota && !group.has(quota_file) {
        return Ok(Some("processor quota discarded: this kernel does not limit bandwidth"));
    }
    if group.version == Version::V2 {
        if wants_quota {
            let quota = limits.cpu_quota_us.map_or("max".to_owned(), |quota| quota.to_string());
            group.write(quota_file, &format!("{quota} {}", limits.cpu_period_us.unwrap_or(DEFAULT_PERIOD_US)))?;
        }
        return Ok(None);
    }
    if let Some(period) = limits.cpu_period_us {
        group.write("cpu.cfs_period_us", &period.to_string())?;
    }
    if let Some(quota) = limits.cpu_quota_us {
        group.write(quota_file, &quota.to_string())?;
    }
    Ok(None)
}

/// Turns v1's shares into v2's weight so that the defaults (1024 and 100) and the ends (2 and 1, 262 144 and 10 000) meet, as
/// runc does since 1.3.2.
#[expect(clippy::cast_precision_loss, reason = "shares are below 2^18")]
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped to the range of weights")]
fn weight(shares: u64) -> u64 {
    let log = (shares.clamp(2, 262_144) as f64).log2();
    let exponent = (log * log + 125.0 * log) / 612.0 - 7.0 / 34.0;
    10_f64.powf(exponent).ceil().clamp(1.0, 10_000.0) as u64
}

fn set_cpuset(group: &Group, limits: &Limits) -> Result<Option<&'static str>> {
    if let Some(cpus) = &limits.cpuset_cpus {
        group.write("cpuset.cpus", cpus)?;
    }
    if let Some(nodes) = &limits.cpuset_mems {
        group.write("cpuset.mems", nodes)?;
    }
    Ok(None)
}

fn set_pids(group: &Group, limits: &Limits) -> Result<Option<&'static str>> {
    let value = limits.pids.filter(|pids| *pids != u64::MAX).map_or("max".to_owned(), |pids| pids.to_string());
    group.write("pids.max", &value)?;
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_become_weights_that_keep_the_defaults_and_the_ends() {
        assert_eq!([2, 1024, 262_144].map(weight), [1, 100, 10_000]);
        assert_eq!([0, u64::MAX].map(weight), [1, 10_000]);
        assert!(weight(512) < weight(1024) && weight(1024) < weight(2048));
    }

    #[test]
    fn a_memory_limit_alone_allows_as_much_swap() {
        let limits = Limits { memory_bytes: Some(100), ..Limits::default() };
        assert_eq!(limits.swap_total(), Some(Swap::Total(200)));
        assert_eq!(Limits::default().swap_total(), None);
    }

    #[test]
    fn one_and_a_half_processors_are_150_ms_of_100() {
        let limits = Limits::default().with_nano_cpus(1_500_000_000);
        assert_eq!((limits.cpu_quota_us, limits.cpu_period_us), (Some(150_000), Some(100_000)));
    }
}
