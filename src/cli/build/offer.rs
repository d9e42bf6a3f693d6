//! What the engine may ask this command for while it builds: secrets, credentials for registries, and to take files.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use super::secret::Secrets;
use crate::client::{ContentDir, Delivery, Offer};
use crate::config::docker::DockerConfig;
use crate::config::domain_of;
use crate::error::Error;
use crate::types::build::{LOCAL_PREFIX, SolveRequest};

/// What the names of OCI layouts begin with among directories.
const LAYOUT: &str = "oci-layout:";

/// Takes the directories out of a request for an engine that does not read them in place: they are offered to it instead.
pub(super) fn take_directories(request: &mut SolveRequest) -> BTreeMap<String, PathBuf> {
    let attrs = &mut request.frontend_attrs;
    let taken = attrs.extract_if(|key, _| key.starts_with(LOCAL_PREFIX));
    taken.map(|(key, path)| (key[LOCAL_PREFIX.len()..].to_owned(), PathBuf::from(path))).collect()
}

/// Takes the OCI layouts out of the directories: the engine reads single blobs of them.
pub(super) fn take_layouts(dirs: &mut BTreeMap<String, PathBuf>) -> BTreeMap<String, ContentDir> {
    let taken = dirs.extract_if(.., |key, _| key.starts_with(LAYOUT));
    let store = |(key, path): (String, PathBuf)| {
        (format!("oci:{}", &key[LAYOUT.len()..]), ContentDir { path, writable: false })
    };
    taken.map(store).collect()
}

/// Names the directory that is built from among those of all clients, without saying where it is.
pub(super) fn shared_key(dirs: &BTreeMap<String, PathBuf>) -> String {
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    dirs.get("context")
        .map(|dir| blake3::hash(format!("{host}:{}", dir.display()).as_bytes()).to_hex().to_string())
        .unwrap_or_default()
}

/// Offers these secrets, places for the files of each exporter, and what docker's configuration knows of registries.
pub(super) fn offer(secrets: Secrets, docker: DockerConfig, outputs: Vec<Option<Delivery>>) -> Offer {
    let credentials = move |host: &str| {
        let Some(found) = docker.credentials(domain_of(host))? else { return Ok(None) };
        match found.pair() {
            Some((username, secret)) => Ok(Some((username.to_owned(), secret.to_owned()))),
            None => Err(Error::unsupported(format!("builds cannot use the registry token for {host}: log in instead"))),
        }
    };
    let secrets = Arc::new(move |id: &str| secrets.value(id));
    Offer { outputs, ..Offer::new(secrets, Arc::new(credentials)) }
}
