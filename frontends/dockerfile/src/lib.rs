//! The Dockerfile frontend: parser, variable expansion, checks and lowering to the step graph.

pub mod call;
pub mod check;
mod directive;
mod frontend;
pub mod glob;
mod heredoc;
pub mod ignore;
mod include;
pub mod instruction;
mod line;
mod lower;
mod mount;
mod parse;
mod path;
mod print;
mod scalar;
pub mod shell;
mod split;

pub use check::Refused;
pub use directive::Directives;
pub use frontend::{Foreign, foreign, is_built_in};
pub use heredoc::Heredoc;
pub use ignore::Ignore;
pub use include::{IncludeError, include};
pub use instruction::Dockerfile;
pub use line::Word;
pub use lower::{
    Definition, Files, Given, ImageKey, ImageName, Lowered, Mounted, NamedContext, Need, NoCache, Outcome, Outline,
    OutlineArgument, Remote, Request, ResolvedImage, asks_for_context_time, epoch_name, epoch_source, lower,
};
pub use mount::{Mount, MountFlag, Permissions};
pub use parse::parse;
pub use print::print;
