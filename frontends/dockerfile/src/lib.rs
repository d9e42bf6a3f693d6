//! The Dockerfile frontend: parser, variable expansion, checks and lowering to the step graph.

mod directive;
mod heredoc;
mod line;
pub mod shell;
mod split;
