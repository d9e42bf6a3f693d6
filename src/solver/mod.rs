//! The solver: scheduler, cache, content hash, operations, exporters, sessions and frontends of builds.

pub mod progress;
pub mod scheduler;
