//! Copies: choosing files in a tree, hashing them, and writing them into a layer.
//!
//! [`select()`] finds what a COPY takes (paths, patterns, ignore rules) and hashes it; the hash becomes part of the step's key.
//! Only when the step must run, `write` copies the selection, without looking for the files again.

mod entry;
mod listing;
mod memo;
mod mode;
mod scan;
mod select;
mod write;

pub use entry::{Entry, Match, Selection};
pub use listing::Listing;
pub use memo::{Memo, Remembered};
pub use mode::apply_mode;
pub(in crate::solver) use scan::open_selected;
pub use select::{Owners, Tree, select};
pub use write::{Ownership, Target, Writer, is_archive};

#[cfg(test)]
mod tests;
