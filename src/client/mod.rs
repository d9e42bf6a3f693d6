//! Typed Engine API calls over one transport.
//!
//! The command line only ever holds byte streams that speak the Engine API: to a daemon's socket, or to an engine child it
//! started itself. This module opens such streams, sends requests over them, and upgrades them for attach, sessions and gRPC.

mod build;
mod content;
mod deliver;
mod dial;
mod forward;
mod http;
mod query;
mod session;
mod share;

pub use build::{Builder, Refused};
pub use content::ContentDir;
pub use deliver::Delivery;
pub use dial::{Dialer, ENGINE_ROLE, Endpoint, TlsFiles};
pub use forward::{Agent, AgentIo, Agents, Uploads};
pub use http::{Client, Hijacked, Lines, newest_api};
pub use query::Query;
pub use session::{Lookup, Offer, Session};
