//! What frontends can do beside asking for results: look at files, and run processes in containers.

pub mod container;
mod files;

pub(super) use container::Containers;
pub(super) use files::View;
