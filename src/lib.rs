//! Kiln: a container image builder and engine in one binary.
//!
//! The modules form layers; `src/tidy.rs` holds the table of who may import whom, and `docs/architecture.md` the map.
//! The library exists for the binary, the tests and the benches; it is not an API for others.

pub mod error;
pub mod sandbox;
pub mod state;
pub mod sys;
pub mod task;

#[cfg(test)]
mod tidy;
