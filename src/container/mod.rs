//! Containers: their records, lifecycle, input and output, logs, and the shim that keeps each of them.

pub mod config;
pub mod link;
pub mod log;
pub mod name;
pub mod record;
