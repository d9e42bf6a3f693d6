//! What frontends can do beside asking for results: look at files, and run processes in containers; and frontends that are
//! images, which do all that over their standard streams.

pub mod container;
mod files;
mod image;

pub(super) use container::Containers;
pub(super) use files::View;
pub(super) use image::run;
pub use image::{Line, Serve};
