//! What proves to registries who is asking, in the form that requests to the engine carry.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE;
use kiln_graph::Reference;

use super::args::Context;
use crate::config::AuthConfig;
use crate::config::docker::{DockerConfig, server_key};

/// The header that carries them.
pub(super) const HEADER: &str = "X-Registry-Auth";

/// Returns the value of [`HEADER`] for an image's registry. May run a credential helper.
///
/// Trouble with stored credentials is a warning: most images can be read by everybody.
pub(super) fn header(context: &Context, name: &Reference) -> String {
    let domain = name.domain();
    let found = DockerConfig::load(&context.environment).and_then(|config| config.credentials(domain));
    let credentials = found.unwrap_or_else(|error| {
        anstream::eprintln!("WARNING: the credentials for {domain} could not be read: {error}");
        None
    });
    let auth = credentials.map(|credentials| AuthConfig::for_request(server_key(domain), &credentials));
    let json = serde_json::to_vec(&auth.unwrap_or_default()).expect("texts have a JSON form");
    URL_SAFE.encode(json)
}
