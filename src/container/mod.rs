//! Containers: their records, lifecycle, input and output, logs, and the shim that keeps each of them.

pub mod log;
