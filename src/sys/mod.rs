//! System calls that need `unsafe`, one per small function, in owned types. The only unsafe code of the program.
//!
//! Calls that rustix or nix offer safely are made where they are needed, not wrapped here again.

pub mod socket;
pub mod netlink;
pub mod netlink_nft;
pub mod xtables;
pub mod overlay;
