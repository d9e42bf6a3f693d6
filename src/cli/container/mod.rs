//! Commands on containers.

mod options;
