//! Messages and names of protocols that BuildKit and its clients speak, which the crate with their protocols lacks. Written down
//! from the published definitions; fields that nobody here reads are left out.

pub mod content;
pub mod exporter;
pub mod policy;
pub mod trace;
