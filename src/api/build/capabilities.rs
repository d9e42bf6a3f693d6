//! What frontends at clients may rely on: the capabilities of BuildKit's protocol, exactly those that are there.

use crate::types::build::apicaps::ApiCap;

/// What the gateway can do.
const FRONTENDS: &[&str] = &[
    "frontend.caps",
    "gateway.evaluate",
    "gateway.solve.evaluate",
    "gateway.solve.metadata",
    "gateway.warnings",
    "proto.refarray",
    "readdir",
    "readfile",
    "reference.output",
    "resolveimage",
    "resolveimage.resolvemode",
    "return",
    "returnmap",
    "solve.base",
    "solve.inlinereturn",
    "source.metaresolver",
    "statfile",
];

/// What steps can do. A client that builds from a Dockerfile asks for some of these, though it sends no LLB.
const LLB: &[&str] = &[
    "constraints",
    "exporter.multiple",
    "meta.description",
    "meta.ignorecache",
    "meta.progressgroup",
    "platform",
    "source.image",
    "source.image.resolvemode",
    "source.local",
    "source.local.excludepatterns",
    "source.local.followpaths",
    "source.local.includepatterns",
    "source.local.sessionid",
    "source.local.sharedkeyhint",
    "source.local.unique",
];

fn capabilities(ids: &[&str]) -> Vec<ApiCap> {
    ids.iter().map(|id| ApiCap { id: (*id).to_owned(), enabled: true, ..ApiCap::default() }).collect()
}

/// Returns what the gateway can do.
pub(super) fn of_frontends() -> Vec<ApiCap> {
    capabilities(FRONTENDS)
}

/// Returns what steps can do.
pub(super) fn of_llb() -> Vec<ApiCap> {
    capabilities(LLB)
}
