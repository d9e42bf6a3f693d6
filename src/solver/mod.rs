//! The solver: scheduler, cache, content hash, operations, exporters, sessions and frontends of builds.

pub mod cache;
pub mod copy;
pub mod key;
pub mod progress;
pub mod scheduler;
pub mod session;
