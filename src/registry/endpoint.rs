//! Where requests about an image go: the registry itself and its mirrors.

use std::net::IpAddr;

use kiln_graph::Reference;
use reqwest::Url;

use crate::config::{HostConfig, Mirror, Registries, Scheme, domain_of};
use crate::error::{Error, Result};

/// The host that serves Docker Hub's images.
const DOCKER_HUB_HOST: &str = "registry-1.docker.io";

/// A server that speaks the distribution protocol, as seen for one repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Endpoint {
    /// The name users know it by; credentials are looked up under it.
    pub(super) name: String,
    /// How to speak to it.
    pub(super) scheme: Scheme,
    /// Host and port to connect to.
    host: String,
    /// The repository there.
    pub(super) repository: String,
    /// For a mirror, the domain of the registry it stands in for.
    mirror_of: Option<String>,
}

impl Endpoint {
    /// Returns the registry an image name points at.
    pub(super) fn registry(registries: &Registries, reference: &Reference) -> Self {
        Self::of_domain(registries, reference.domain(), reference.path())
    }

    /// Returns a registry by its domain in image names.
    pub(super) fn of_domain(registries: &Registries, domain: &str, repository: &str) -> Self {
        let domain = domain_of(domain);
        Self {
            name: domain.to_owned(),
            scheme: scheme_of(domain, &registries.host(domain)),
            host: host_of(domain).to_owned(),
            repository: repository.to_owned(),
            mirror_of: None,
        }
    }

    /// Returns the mirrors to ask before the registry, in order.
    pub(super) fn mirrors(registries: &Registries, reference: &Reference) -> Vec<Self> {
        let mirrors = registries.host(reference.domain()).mirrors;
        mirrors.iter().map(|mirror| Self::mirror(registries, mirror, reference)).collect()
    }

    fn mirror(registries: &Registries, mirror: &Mirror, reference: &Reference) -> Self {
        let repository = match mirror.prefix.as_str() {
            "" => reference.path().to_owned(),
            prefix => format!("{prefix}/{}", reference.path()),
        };
        let domain = domain_of(&mirror.host);
        Self {
            name: domain.to_owned(),
            scheme: mirror.scheme.unwrap_or_else(|| scheme_of(domain, &registries.host(domain))),
            host: host_of(domain).to_owned(),
            repository,
            mirror_of: Some(reference.domain().to_owned()),
        }
    }

    /// Returns the address of the protocol's root, which answers when the credentials are good.
    ///
    /// # Errors
    /// `InvalidArgument` when the host is not one.
    pub(super) fn base(&self) -> Result<Url> {
        let text = format!("{}://{}/v2/", self.scheme.as_str(), self.host);
        Url::parse(&text).map_err(|error| Error::invalid(format!("registry {}", self.name)).with_source(error))
    }

    /// Says whether an address is on this server, and not only somewhere the server points to.
    pub(super) fn is_origin_of(&self, url: &Url) -> bool {
        self.base().is_ok_and(|base| base.origin() == url.origin())
    }

    /// Returns the address of something in the repository, such as `manifests/latest`.
    ///
    /// A mirror is told the registry it stands in for, as containerd does (`?ns=docker.io`): mirrors of several registries
    /// need it.
    ///
    /// # Errors
    /// `InvalidArgument` when the host is not one.
    pub(super) fn url(&self, what: &str) -> Result<Url> {
        let mut url = self.base()?;
        url.set_path(&format!("/v2/{}/{what}", self.repository));
        if let Some(domain) = &self.mirror_of {
            url.query_pairs_mut().append_pair("ns", domain);
        }
        Ok(url)
    }
}

/// Returns the host that serves a domain's images.
fn host_of(domain: &str) -> &str {
    if domain == kiln_graph::reference::DEFAULT_DOMAIN { DOCKER_HUB_HOST } else { domain }
}

/// Decides between TLS and plain HTTP: what is configured, else TLS when anything about TLS is configured, else plain HTTP
/// on the machine's own addresses.
fn scheme_of(host: &str, config: &HostConfig) -> Scheme {
    let about_tls = config.insecure == Some(true) || !config.ca.is_empty() || !config.keypairs.is_empty();
    match config.http {
        Some(true) => Scheme::Http,
        None if !about_tls && is_loopback(host) => Scheme::Http,
        _ => Scheme::Https,
    }
}

fn is_loopback(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    };
    name == "localhost" || name.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(registries: &Registries, image: &str) -> String {
        let reference: Reference = image.parse().unwrap();
        Endpoint::registry(registries, &reference).url("manifests/latest").unwrap().to_string()
    }

    #[test]
    fn images_without_a_domain_come_from_docker_hub() {
        let none = Registries::default();
        assert_eq!(url(&none, "ubuntu"), "https://registry-1.docker.io/v2/library/ubuntu/manifests/latest");
        assert_eq!(url(&none, "index.docker.io/a/b"), "https://registry-1.docker.io/v2/a/b/manifests/latest");
        let reference: Reference = "registry-1.docker.io/library/ubuntu".parse().unwrap();
        let endpoint = Endpoint::registry(&none, &reference);
        assert_eq!((endpoint.name.as_str(), endpoint.host.as_str()), ("docker.io", "registry-1.docker.io"));
        assert_eq!(url(&none, "r.example/a"), "https://r.example/v2/a/manifests/latest");
    }

    #[test]
    fn plain_http_is_for_loopback_and_what_is_configured() {
        let mut registries = Registries::default();
        for host in ["localhost:5000", "127.0.0.1:5000", "127.1.2.3", "[::1]:5000"] {
            assert!(url(&registries, &format!("{host}/a")).starts_with("http://"), "{host}");
        }
        for host in ["r.example", "192.168.0.1:5000", "localhost.example", "[::2]"] {
            assert!(url(&registries, &format!("{host}/a")).starts_with("https://"), "{host}");
        }
        registries.host_mut("r.example:5000").http = Some(true);
        registries.host_mut("localhost:5000").insecure = Some(true);
        registries.host_mut("localhost:5001").http = Some(false);
        assert_eq!(url(&registries, "r.example:5000/a"), "http://r.example:5000/v2/a/manifests/latest");
        assert!(url(&registries, "localhost:5000/a").starts_with("https://"));
        assert!(url(&registries, "localhost:5001/a").starts_with("https://"));
    }

    #[test]
    fn mirrors_come_in_order_with_their_own_scheme_and_prefix() {
        let mut registries = Registries::default();
        registries.host_mut("docker.io").mirrors = ["m.example", "http://localhost:5000", "h.example:81/proxy/hub"]
            .map(|mirror| mirror.parse().unwrap())
            .to_vec();
        registries.host_mut("h.example:81").http = Some(true);
        let reference: Reference = "ubuntu".parse().unwrap();
        let mirrors = Endpoint::mirrors(&registries, &reference);
        let urls: Vec<String> = mirrors.iter().map(|mirror| mirror.url("tags/list").unwrap().to_string()).collect();
        assert_eq!(
            urls,
            [
                "https://m.example/v2/library/ubuntu/tags/list?ns=docker.io",
                "http://localhost:5000/v2/library/ubuntu/tags/list?ns=docker.io",
                "http://h.example:81/v2/proxy/hub/library/ubuntu/tags/list?ns=docker.io",
            ]
        );
    }
}
