//! System calls that need `unsafe`, one per small function, in owned types. The only unsafe code of the program.
//!
//! Calls that rustix or nix offer safely are made where they are needed, not wrapped here again. The exception is
//! [`plan`], which holds everything that may run between clone and exec, so that it can be read as one text.

#![allow(unsafe_code, reason = "this is the module for it; everywhere else it is denied")]

pub mod bpf;
mod init;
pub mod map;
pub mod mount;
pub mod netlink;
pub mod netlink_nft;
pub mod overlay;
pub mod plan;
#[cfg(test)]
pub(crate) mod probe;
pub mod process;
pub mod seccomp;
pub mod socket;
pub mod terminal;
pub mod xtables;
