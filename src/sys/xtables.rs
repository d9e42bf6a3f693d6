//! A look at the packet filter of the legacy `iptables`, which nftables' interface does not show. It reads; it never
//! writes.
//!
//! Structures are those of linux/netfilter_ipv4/ip_tables.h.

#![expect(unsafe_code, reason = "rustix and nix offer no getsockopt with options of one's own")]

use std::os::fd::{AsFd, AsRawFd as _};

use rustix::net::{AddressFamily, SocketType};

use crate::error::{Error, Kind, Result, ResultExt as _};

/// `IPT_SO_GET_INFO` and `IPT_SO_GET_ENTRIES`.
const GET_INFO: i32 = 64;
const GET_ENTRIES: i32 = 65;
/// The size of `struct ipt_getinfo`, and of `struct ipt_get_entries` before its entries.
const INFO_LEN: usize = 84;
const ENTRIES_AT: usize = 40;
/// Where `ipt_getinfo` holds the offset of the entry that is chain FORWARD's policy, and the size of all entries.
const FORWARD_UNDERFLOW: usize = 32 + 4 + 5 * 4 + 2 * 4;
const SIZE: usize = 80;
/// Where an `ipt_entry` holds the offset of its target, and a standard target its verdict.
const TARGET_OFFSET: usize = 88;
const VERDICT: usize = 32;
/// `-NF_DROP - 1`.
const DROP: i32 = -1;

/// Says whether the legacy table `filter` of the calling thread's network namespace drops forwarded IPv4 packets unless
/// a rule lets them pass, and holds no rule that mentions `interface`.
///
/// # Errors
/// `Forbidden` without CAP_NET_ADMIN.
pub fn drops_forwarded(interface: &str) -> Result<bool> {
    // Asking for a table makes the kernel load it, so ask only for one that is in use.
    let tables = std::fs::read_to_string("/proc/thread-self/net/ip_tables_names").unwrap_or_default();
    if !tables.lines().any(|table| table == "filter") {
        return Ok(false);
    }
    let socket = rustix::net::socket(AddressFamily::INET, SocketType::DGRAM, None)?;
    let mut info = [0; INFO_LEN];
    info[..6].copy_from_slice(b"filter");
    get(&socket, GET_INFO, &mut info)?;
    let word = |buffer: &[u8], at: usize| Some(u32::from_ne_bytes(*buffer.get(at..)?.first_chunk()?));
    let (Some(size), Some(policy)) = (word(&info, SIZE), word(&info, FORWARD_UNDERFLOW)) else {
        return Ok(false);
    };
    let mut entries = vec![0; ENTRIES_AT + size as usize];
    entries[..6].copy_from_slice(b"filter");
    entries[32..36].copy_from_slice(&size.to_ne_bytes());
    get(&socket, GET_ENTRIES, &mut entries)?;
    let entries = &entries[ENTRIES_AT..];
    let verdict = || {
        let entry = entries.get(policy as usize..)?;
        let target = usize::from(u16::from_ne_bytes(*entry.get(TARGET_OFFSET..)?.first_chunk()?));
        word(entry, target + VERDICT).map(u32::cast_signed)
    };
    let mentioned = entries.windows(interface.len()).any(|window| window == interface.as_bytes());
    Ok(verdict() == Some(DROP) && !mentioned)
}

/// Calls `getsockopt` of the level IP with a buffer that holds the request and receives the answer.
fn get(socket: impl AsFd, option: i32, buffer: &mut [u8]) -> Result<()> {
    let mut len = libc::socklen_t::try_from(buffer.len())
        .map_err(|_| Error::new(Kind::Exhausted, "the host's iptables rules do not fit into memory"))?;
    // SAFETY: the kernel reads and writes at most `len` bytes at the pointer, and `buffer`, borrowed for the whole
    // call, has as many; any bytes are valid in it.
    let result = unsafe {
        libc::getsockopt(socket.as_fd().as_raw_fd(), libc::IPPROTO_IP, option, buffer.as_mut_ptr().cast(), &raw mut len)
    };
    if result == 0 {
        return Ok(());
    }
    let error = std::io::Error::last_os_error();
    let kind = if error.raw_os_error() == Some(libc::EPERM) { Kind::Forbidden } else { Kind::Internal };
    Err(error).context(|| "read the host's iptables rules").map_err(|error| error.with_kind(kind))
}
