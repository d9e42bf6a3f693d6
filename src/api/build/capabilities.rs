//! What frontends at clients may rely on: the capabilities of BuildKit's protocol, exactly those that are there.

use crate::types::build::apicaps::ApiCap;

/// What the gateway can do.
const FRONTENDS: &[&str] = &[
    "frontend.caps",
    "frontend.inputs",
    "gateway.evaluate",
    "gateway.exec",
    "gateway.exec.extrahosts",
    "gateway.exec.filesystem",
    "gateway.exec.secretenv",
    "gateway.exec.signals",
    "gateway.solve.evaluate",
    "gateway.solve.metadata",
    "gateway.warnings",
    "proto.refarray",
    "readdir",
    "readfile",
    "reference.attestations",
    "reference.output",
    "resolveimage",
    "resolveimage.resolvemode",
    "return",
    "returnmap",
    "solve.base",
    "solve.inlinereturn",
    "source.metaresolver",
    "source.metaresolver.http.checksumrequest",
    "source.metaresolver.image.attestations",
    "statfile",
];

/// What exporters can do. Clients learn of it together with what definitions can.
const EXPORTERS: &[&str] = &["exporter.image.attestations", "exporter.multiple"];

fn capabilities<'a>(ids: impl IntoIterator<Item = &'a &'a str>) -> Vec<ApiCap> {
    ids.into_iter().map(|id| ApiCap { id: (*id).to_owned(), enabled: true, ..ApiCap::default() }).collect()
}

/// Returns what the gateway can do.
pub(super) fn of_frontends() -> Vec<ApiCap> {
    capabilities(FRONTENDS)
}

/// Returns what definitions and exporters can do.
pub(super) fn of_llb() -> Vec<ApiCap> {
    capabilities(kiln_llb::CAPABILITIES.iter().chain(EXPORTERS))
}
