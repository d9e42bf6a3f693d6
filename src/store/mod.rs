//! wip

pub mod compression;
pub mod tree;
