//! The step graph: the contract between frontends and the solver.
//!
//! A frontend (Dockerfile, LLB) turns its input into a [`Graph`] of typed operations; the solver plans, caches and runs it.
//! This crate also holds the vocabulary both sides share: digests, image references, platforms, OCI documents, image
//! configuration and diagnostics with source spans. It is pure: no I/O, no clock, no threads, no unsafe code.

pub mod diagnostic;
pub mod digest;
pub mod graph;
pub mod oci;
pub mod op;
mod part;
pub mod platform;
pub mod reference;
pub mod source;

pub use diagnostic::{Diagnostic, Severity};
pub use digest::{Algorithm, Digest};
pub use graph::{Edge, Graph, Vertex, VertexId};
pub use platform::Platform;
pub use reference::Reference;
pub use source::{SourceFile, Span};
