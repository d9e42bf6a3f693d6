//! Kiln: a container image builder and engine in one binary.
//!
//! The modules form layers; `src/tidy.rs` holds the table of who may import whom, and `docs/architecture.md` the map.
//! The library exists for the binary, the tests and the benches; it is not an API for others.

pub mod api;
pub mod cli;
pub mod client;
pub mod config;
pub mod container;
pub mod daemon;
pub mod engine;
pub mod error;
pub mod filesync;
pub mod image;
pub mod network;
pub mod registry;
pub mod sandbox;
pub mod sbom;
pub mod signature;
pub mod solver;
pub mod state;
pub mod store;
pub mod sys;
pub mod task;
pub mod tls;
pub mod types;
pub mod wire;

#[cfg(test)]
mod tidy;
