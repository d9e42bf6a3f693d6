//! What the engine may ask this command for while it builds: secrets, credentials for registries, and to take files.

use std::sync::Arc;

use super::secret::Secrets;
use crate::client::{Delivery, Offer};
use crate::config::docker::DockerConfig;
use crate::config::domain_of;
use crate::error::Error;

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
