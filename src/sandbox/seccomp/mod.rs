//! Seccomp profiles in Docker's JSON form, and the filters that are compiled from them.
//!
//! A profile says which system calls get which answer, in rules that can depend on the capabilities of the container, the
//! processor and the kernel. Compiling resolves the conditions, so filters are kept per profile and capability set.
//! Notification of a supervisor (`SCMP_ACT_NOTIFY`) is refused: nobody would answer.

mod compile;
mod default;
mod syscalls;

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use serde::Deserialize;

use super::capability::Capabilities;
use crate::error::{Error, Result, ResultExt as _};
use crate::sys::seccomp::{Filter, FilterFlags};

/// A processor architecture whose system calls are known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Arch {
    /// 64-bit x86.
    X86_64,
    /// 32-bit x86.
    X86,
    /// 64-bit ARM.
    Aarch64,
    /// 32-bit ARM.
    Arm,
}

impl Arch {
    /// The architecture of this program.
    fn native() -> Self {
        if cfg!(target_arch = "x86_64") { Self::X86_64 } else { Self::Aarch64 }
    }

    /// Programs of which architectures this machine runs: its own and the 32-bit one.
    fn native_family() -> Vec<Self> {
        match Self::native() {
            Self::X86_64 | Self::X86 => vec![Self::X86_64, Self::X86],
            Self::Aarch64 | Self::Arm => vec![Self::Aarch64, Self::Arm],
        }
    }

    /// The name that libseccomp uses. x32 is not listed: its calls are always refused.
    fn from_libseccomp(name: &str) -> Option<Self> {
        match name {
            "SCMP_ARCH_X86_64" => Some(Self::X86_64),
            "SCMP_ARCH_X86" => Some(Self::X86),
            "SCMP_ARCH_AARCH64" => Some(Self::Aarch64),
            "SCMP_ARCH_ARM" => Some(Self::Arm),
            _ => None,
        }
    }

    /// The name that Go uses, which conditions of profiles speak of.
    fn go_name(self) -> &'static str {
        match self {
            Self::X86_64 => "amd64",
            Self::X86 => "x86",
            Self::Aarch64 => "arm64",
            Self::Arm => "arm",
        }
    }
}

/// The answer to a system call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Action {
    Allow,
    Log,
    Errno(u16),
    Trace(u16),
    Trap,
    KillThread,
    KillProcess,
}

/// How an argument is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Op {
    NotEqual,
    Less,
    LessOrEqual,
    Equal,
    GreaterOrEqual,
    Greater,
    /// `argument & value == datum`.
    MaskedEqual,
}

/// A comparison of one argument.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Condition {
    index: u8,
    op: Op,
    value: u64,
    datum: u64,
}

impl Condition {
    fn new(index: u8, op: Op, value: u64) -> Self {
        Self { index, op, value, datum: 0 }
    }
}

/// When a rule counts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Selector {
    capabilities: Vec<String>,
    arches: Vec<String>,
    min_kernel: Option<(u32, u32)>,
}

impl Selector {
    /// As `includes`: everything that is named must be there.
    fn all(&self, host: &Host) -> bool {
        (self.arches.is_empty() || self.names_arch(host))
            && self.capabilities.iter().all(|name| host.has(name))
            && self.min_kernel.is_none_or(|wanted| host.kernel >= wanted)
    }

    /// As `excludes`: anything that is named suffices.
    fn any(&self, host: &Host) -> bool {
        self.names_arch(host)
            || self.capabilities.iter().any(|name| host.has(name))
            || self.min_kernel.is_some_and(|wanted| host.kernel >= wanted)
    }

    fn names_arch(&self, host: &Host) -> bool {
        self.arches.iter().any(|name| name == host.arch.go_name())
    }
}

/// What conditions of rules are asked of.
struct Host {
    arch: Arch,
    kernel: (u32, u32),
    capabilities: Capabilities,
}

impl Host {
    /// A capability that this program does not know is one the container does not have.
    fn has(&self, name: &str) -> bool {
        Capabilities::named(name).is_ok_and(|one| self.capabilities.contains(one))
    }
}

/// An answer to some system calls.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Rule {
    names: Vec<String>,
    action: Action,
    /// All must hold.
    conditions: Vec<Condition>,
    includes: Selector,
    excludes: Selector,
}

/// A profile: what each system call is answered.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Profile {
    default: Action,
    flags: FilterFlags,
    arches: Vec<Arch>,
    rules: Vec<Rule>,
}

impl Profile {
    /// Returns Docker's default profile.
    #[must_use]
    pub fn builtin() -> Arc<Self> {
        static BUILTIN: OnceLock<Arc<Profile>> = OnceLock::new();
        Arc::clone(BUILTIN.get_or_init(|| Arc::new(default::profile())))
    }

    /// Reads a profile in Docker's form: the runtime specification's, with `archMap`, `includes` and `excludes`.
    ///
    /// Names of system calls that this machine does not have are ignored, as Docker does.
    ///
    /// # Errors
    /// `InvalidArgument` with what is wrong: malformed JSON, an unknown action or comparison, both kinds of architecture
    /// lists, an argument beyond the sixth; `Unsupported` for notification.
    pub fn from_json(text: &str) -> Result<Self> {
        let document: Document = serde_json::from_str(text).context(|| "read the seccomp profile")?;
        document.into_profile().context(|| "read the seccomp profile")
    }

    /// Returns the filter for a container with these capabilities, from the cache if it was compiled before.
    ///
    /// # Errors
    /// `InvalidArgument` when the program would be longer than the kernel takes.
    pub(super) fn filter(self: &Arc<Self>, capabilities: Capabilities) -> Result<Arc<Filter>> {
        let mut cache = CACHE.lock().unwrap_or_else(PoisonError::into_inner);
        let is_same = |entry: &&Cached| {
            entry.capabilities == capabilities && (Arc::ptr_eq(&entry.profile, self) || entry.profile == *self)
        };
        if let Some(found) = cache.iter().find(is_same) {
            return Ok(Arc::clone(&found.filter));
        }
        let host = Host { arch: Arch::native(), kernel: kernel_version(), capabilities };
        let filter = Arc::new(compile::compile(self, &host)?);
        if cache.len() == CACHE_SIZE {
            cache.remove(0);
        }
        cache.push(Cached { profile: Arc::clone(self), capabilities, filter: Arc::clone(&filter) });
        Ok(filter)
    }
}

/// Few combinations occur in one process; the oldest leaves first.
const CACHE_SIZE: usize = 32;

static CACHE: Mutex<Vec<Cached>> = Mutex::new(Vec::new());

struct Cached {
    profile: Arc<Profile>,
    capabilities: Capabilities,
    filter: Arc<Filter>,
}

/// The running kernel's version; `(0, 0)` if it does not say.
fn kernel_version() -> (u32, u32) {
    parse_version(&rustix::system::uname().release().to_string_lossy()).unwrap_or((0, 0))
}

fn parse_version(text: &str) -> Option<(u32, u32)> {
    let mut parts = text.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((parts.next()?.ok()?, parts.next()?.ok()?))
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    default_action: String,
    default_errno_ret: Option<u16>,
    #[serde(default)]
    architectures: Option<Vec<String>>,
    #[serde(default)]
    arch_map: Option<Vec<ArchMapDocument>>,
    #[serde(default)]
    flags: Option<Vec<String>>,
    #[serde(default)]
    listener_path: String,
    #[serde(default)]
    syscalls: Option<Vec<RuleDocument>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ArchMapDocument {
    architecture: String,
    sub_architectures: Option<Vec<String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RuleDocument {
    #[serde(default)]
    name: String,
    #[serde(default)]
    names: Option<Vec<String>>,
    action: String,
    errno_ret: Option<u16>,
    #[serde(default)]
    args: Option<Vec<ConditionDocument>>,
    #[serde(default)]
    includes: Option<SelectorDocument>,
    #[serde(default)]
    excludes: Option<SelectorDocument>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ConditionDocument {
    index: u8,
    value: u64,
    #[serde(default)]
    value_two: u64,
    op: String,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct SelectorDocument {
    #[serde(default)]
    caps: Option<Vec<String>>,
    #[serde(default)]
    arches: Option<Vec<String>>,
    #[serde(default)]
    min_kernel: String,
}

impl Document {
    fn into_profile(self) -> Result<Profile> {
        if !self.listener_path.is_empty() {
            return Err(Error::unsupported("listenerPath: notification of a supervisor is not supported"));
        }
        let arches = arches(self.architectures.unwrap_or_default(), self.arch_map.unwrap_or_default())?;
        let mut rules = Vec::new();
        for rule in self.syscalls.unwrap_or_default() {
            rule.into_rules(&mut rules)?;
        }
        Ok(Profile {
            default: action(&self.default_action, self.default_errno_ret)?,
            flags: flags(&self.flags.unwrap_or_default())?,
            arches,
            rules,
        })
    }
}

/// The architectures a filter covers, the native one always among them.
fn arches(listed: Vec<String>, map: Vec<ArchMapDocument>) -> Result<Vec<Arch>> {
    if !listed.is_empty() && !map.is_empty() {
        return Err(Error::invalid("`architectures` and `archMap` exclude each other"));
    }
    let native = Arch::native();
    let of_map = map.into_iter().find(|entry| Arch::from_libseccomp(&entry.architecture) == Some(native));
    let names = match of_map {
        Some(entry) => entry.sub_architectures.unwrap_or_default(),
        None => listed,
    };
    let mut arches = vec![native];
    for arch in names.iter().filter_map(|name| Arch::from_libseccomp(name)) {
        if !arches.contains(&arch) && Arch::native_family().contains(&arch) {
            arches.push(arch);
        }
    }
    Ok(arches)
}

impl RuleDocument {
    fn into_rules(self, rules: &mut Vec<Rule>) -> Result<()> {
        let mut names = self.names.unwrap_or_default();
        match (self.name.is_empty(), names.is_empty()) {
            (false, false) => return Err(Error::invalid("`name` and `names` exclude each other")),
            (false, true) => names.push(self.name),
            _ => {}
        }
        let conditions = self
            .args
            .unwrap_or_default()
            .into_iter()
            .map(ConditionDocument::into_condition)
            .collect::<Result<Vec<_>>>()?;
        let rule = Rule {
            names,
            action: action(&self.action, self.errno_ret)?,
            conditions: Vec::new(),
            includes: self.includes.unwrap_or_default().into_selector()?,
            excludes: self.excludes.unwrap_or_default().into_selector()?,
        };
        // runc's rule: conditions on different arguments must all hold; once an argument is named twice, any may.
        let repeated = conditions.iter().enumerate().any(|(at, c)| conditions[..at].iter().any(|d| d.index == c.index));
        if repeated {
            rules.extend(conditions.into_iter().map(|one| Rule { conditions: vec![one], ..rule.clone() }));
        } else {
            rules.push(Rule { conditions, ..rule });
        }
        Ok(())
    }
}

impl ConditionDocument {
    fn into_condition(self) -> Result<Condition> {
        if self.index > 5 {
            return Err(Error::invalid(format!(
                "argument {} of a system call: there are six, counted from 0",
                self.index
            )));
        }
        let op = match self.op.as_str() {
            "SCMP_CMP_NE" => Op::NotEqual,
            "SCMP_CMP_LT" => Op::Less,
            "SCMP_CMP_LE" => Op::LessOrEqual,
            "SCMP_CMP_EQ" => Op::Equal,
            "SCMP_CMP_GE" => Op::GreaterOrEqual,
            "SCMP_CMP_GT" => Op::Greater,
            "SCMP_CMP_MASKED_EQ" => Op::MaskedEqual,
            other => return Err(Error::invalid(format!("unknown comparison {other:?}"))),
        };
        Ok(Condition { index: self.index, op, value: self.value, datum: self.value_two })
    }
}

impl SelectorDocument {
    fn into_selector(self) -> Result<Selector> {
        let min_kernel = match self.min_kernel.as_str() {
            "" => None,
            text => Some(
                parse_version(text)
                    .ok_or_else(|| Error::invalid(format!("minKernel {text:?}: expected <major>.<minor>")))?,
            ),
        };
        Ok(Selector {
            capabilities: self.caps.unwrap_or_default(),
            arches: self.arches.unwrap_or_default(),
            min_kernel,
        })
    }
}

fn action(name: &str, errno: Option<u16>) -> Result<Action> {
    const EPERM: u16 = 1;
    Ok(match name {
        "SCMP_ACT_ALLOW" => Action::Allow,
        "SCMP_ACT_LOG" => Action::Log,
        "SCMP_ACT_ERRNO" => Action::Errno(errno.unwrap_or(EPERM)),
        "SCMP_ACT_TRACE" => Action::Trace(errno.unwrap_or(EPERM)),
        "SCMP_ACT_TRAP" => Action::Trap,
        "SCMP_ACT_KILL" | "SCMP_ACT_KILL_THREAD" => Action::KillThread,
        "SCMP_ACT_KILL_PROCESS" => Action::KillProcess,
        "SCMP_ACT_NOTIFY" => return Err(Error::unsupported("SCMP_ACT_NOTIFY is not supported")),
        other => return Err(Error::invalid(format!("unknown action {other:?}"))),
    })
}

fn flags(names: &[String]) -> Result<FilterFlags> {
    let mut flags = FilterFlags::default();
    for name in names {
        match name.as_str() {
            "SECCOMP_FILTER_FLAG_LOG" => flags.log = true,
            "SECCOMP_FILTER_FLAG_SPEC_ALLOW" => flags.allow_speculation = true,
            // The filter is installed when there is one thread only.
            "SECCOMP_FILTER_FLAG_TSYNC" => {}
            other => return Err(Error::unsupported(format!("seccomp flag {other:?} is not supported"))),
        }
    }
    Ok(flags)
}

#[cfg(test)]
mod tests;
