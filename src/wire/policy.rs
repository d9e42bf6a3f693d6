//! BuildKit's `moby.buildkit.v1.sourcepolicy.policysession.PolicyVerifier`, which a client serves on its session: it is asked about
//! each source of a build, may ask back what a source is, and decides. Fields and numbers: BuildKit's `policysession.proto`.

use std::collections::HashMap;

use bollard_buildkit_proto::moby::buildkit::v1::frontend::{ResolveSourceMetaRequest, ResolveSourceMetaResponse};
use bollard_buildkit_proto::pb::{Platform, SourceOp};

/// Asks about a source.
pub const CHECK: &str = "/moby.buildkit.v1.sourcepolicy.policysession.PolicyVerifier/CheckPolicy";

/// A source, and what is known of it.
#[derive(Clone, PartialEq, prost::Message)]
pub struct CheckPolicyRequest {
    /// What it is for.
    #[prost(message, optional, tag = "1")]
    pub platform: Option<Platform>,
    /// The source; what it is, as far as the verifier asked.
    #[prost(message, optional, tag = "2")]
    pub source: Option<ResolveSourceMetaResponse>,
    /// What the engine is able to beyond the first version of the protocol.
    #[prost(map = "string, bool", tag = "3")]
    pub caps: HashMap<String, bool>,
}

/// What the verifier says.
#[derive(Clone, PartialEq, prost::Message)]
pub struct CheckPolicyResponse {
    /// That.
    #[prost(oneof = "Verdict", tags = "1, 2")]
    pub result: Option<Verdict>,
}

/// What a verifier says.
#[derive(Clone, PartialEq, prost::Oneof)]
pub enum Verdict {
    /// A decision.
    #[prost(message, tag = "1")]
    Decision(DecisionResponse),
    /// It wants to know more first.
    #[prost(message, tag = "2")]
    Request(Box<ResolveSourceMetaRequest>),
}

/// What becomes of a source.
#[derive(Clone, PartialEq, prost::Message)]
pub struct DecisionResponse {
    /// BuildKit's `PolicyAction`: 0 allows, 1 denies, 2 converts.
    #[prost(int32, tag = "1")]
    pub action: i32,
    /// Why it is denied.
    #[prost(message, repeated, tag = "2")]
    pub deny_messages: Vec<DenyMessage>,
    /// What it is converted to.
    #[prost(message, optional, tag = "3")]
    pub update: Option<SourceOp>,
}

/// A reason.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct DenyMessage {
    /// It.
    #[prost(string, tag = "1")]
    pub message: String,
}
