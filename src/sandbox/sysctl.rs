//! Which kernel parameters a sandbox may set: those that belong to a namespace of its own, as Docker checks it.

use std::ffi::CString;

use super::spec::{Network, Spec};
use crate::error::{Error, Result};

/// Parameters of the IPC namespace, besides all of `fs.mqueue`.
const IPC: [&str; 8] = [
    "kernel.msgmax",
    "kernel.msgmnb",
    "kernel.msgmni",
    "kernel.sem",
    "kernel.shmall",
    "kernel.shmmax",
    "kernel.shmmni",
    "kernel.shm_rmid_forced",
];

/// Returns the path of a parameter's file below the root.
///
/// # Errors
/// `InvalidArgument` when the parameter is not one of a private namespace.
pub(super) fn path(name: &str, spec: &Spec) -> Result<CString> {
    let is_ipc = IPC.contains(&name) || name.starts_with("fs.mqueue.");
    let is_network = name.starts_with("net.");
    if is_ipc && spec.shares_ipc() {
        return Err(Error::invalid(format!(
            "sysctl {name:?} cannot be set: the IPC namespace is not the container's own"
        )));
    }
    if is_network && matches!(spec.namespaces.network, Network::Host) {
        return Err(Error::invalid(format!(
            "sysctl {name:?} cannot be set: the network namespace is not the container's own"
        )));
    }
    if !is_ipc && !is_network {
        return Err(Error::invalid(format!("sysctl {name:?} is not separate for each container; set it on the host")));
    }
    // A dot within a name (of a network interface, say) is written as a slash.
    let path = if name.contains('/') { swap_separators(name) } else { name.replace('.', "/") };
    if path.split('/').any(|part| part.is_empty() || part == "." || part == "..") {
        return Err(Error::invalid(format!("sysctl {name:?}: expected names separated by dots")));
    }
    CString::new(format!("proc/sys/{path}")).map_err(|_| Error::invalid("a sysctl contains a zero byte"))
}

fn swap_separators(name: &str) -> String {
    name.chars()
        .map(|c| {
            if c == '.' {
                '/'
            } else if c == '/' {
                '.'
            } else {
                c
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dots_and_slashes_change_places() {
        assert_eq!(swap_separators("net.ipv4.conf.eth0/100.forwarding"), "net/ipv4/conf/eth0.100/forwarding");
    }
}
