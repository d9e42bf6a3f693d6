//! Proxies: which one leads to which host, from `HTTP_PROXY`, `HTTPS_PROXY`, `ALL_PROXY` and `NO_PROXY`.
//!
//! The rules are those of Go's `httpproxy`, which docker and BuildKit follow: loopback is always direct, `NO_PROXY` lists
//! hosts (with their subdomains), `.domain` (subdomains alone), addresses, networks and `*`, each with an optional port.

use std::fmt;
use std::net::IpAddr;

use super::environment::Environment;
use super::registries::Scheme;
use crate::error::{Error, Result};

const SCHEMES: &[&str] = &["http", "https", "socks5", "socks5h"];

/// Proxies by scheme, and the hosts that need none.
#[derive(Clone, Default)]
pub struct Proxies {
    http: Option<String>,
    https: Option<String>,
    direct: Vec<Direct>,
}

/// One entry of `NO_PROXY`.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Direct {
    Everything,
    Network(IpAddr, u8),
    Address(IpAddr, Option<u16>),
    /// A domain without its leading dot.
    Domain {
        name: String,
        only_subdomains: bool,
        port: Option<u16>,
    },
}

impl Proxies {
    /// Reads the variables; upper-case names win over lower-case ones.
    ///
    /// # Errors
    /// `InvalidArgument` naming the variable when a proxy's address is not one.
    pub fn from_environment(environment: &Environment) -> Result<Self> {
        let proxy = |names: &[&str]| environment.text(names)?.map(|text| parse_proxy(names[0], text)).transpose();
        let all = proxy(&["ALL_PROXY", "all_proxy"])?;
        let no_proxy = environment.text(&["NO_PROXY", "no_proxy"])?.unwrap_or_default();
        Ok(Self {
            http: proxy(&["HTTP_PROXY", "http_proxy"])?.or_else(|| all.clone()),
            https: proxy(&["HTTPS_PROXY", "https_proxy"])?.or(all),
            direct: no_proxy.split(',').filter_map(|entry| Direct::parse(entry.trim())).collect(),
        })
    }

    /// Returns the URL of the proxy that leads to a host, or `None` for a direct connection.
    ///
    /// `host` is a name or an address, an IPv6 address with or without brackets.
    #[must_use]
    pub fn lookup(&self, scheme: Scheme, host: &str, port: u16) -> Option<&str> {
        let proxy = match scheme {
            Scheme::Http => self.http.as_deref(),
            Scheme::Https => self.https.as_deref(),
        }?;
        let host = host.trim_start_matches('[').trim_end_matches([']', '.']).to_ascii_lowercase();
        let address = host.parse::<IpAddr>().ok();
        let loopback = host == "localhost" || address.is_some_and(|address| address.is_loopback());
        let direct = loopback || self.direct.iter().any(|entry| entry.matches(&host, address, port));
        (!direct).then_some(proxy)
    }
}

impl fmt::Debug for Proxies {
    /// Leaves the addresses out: they may hold passwords.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Proxies")
            .field("http", &self.http.is_some())
            .field("https", &self.https.is_some())
            .field("direct", &self.direct)
            .finish()
    }
}

/// Checks a proxy's address; without a scheme it is an HTTP proxy.
fn parse_proxy(variable: &str, text: &str) -> Result<String> {
    // The value is not repeated: it may hold a password.
    let invalid = |why: &str| Error::invalid(format!("environment variable {variable}: {why}"));
    let (scheme, rest) = text.split_once("://").unwrap_or(("http", text));
    if !SCHEMES.contains(&scheme) {
        return Err(invalid(&format!("unknown scheme `{scheme}` (expected {})", SCHEMES.join(", "))));
    }
    let url = format!("{scheme}://{rest}");
    match url.parse::<http::Uri>() {
        Ok(uri) if uri.host().is_some_and(|host| !host.is_empty()) => Ok(url),
        _ => Err(invalid("the value is not the address of a proxy, such as http://proxy.example.com:3128")),
    }
}

impl Direct {
    fn parse(entry: &str) -> Option<Self> {
        if entry.is_empty() {
            return None;
        }
        if entry == "*" {
            return Some(Self::Everything);
        }
        let entry = entry.to_ascii_lowercase();
        if let Some((address, bits)) = entry.split_once('/') {
            let (address, bits): (IpAddr, u8) = (address.parse().ok()?, bits.parse().ok()?);
            let most = if address.is_ipv4() { 32 } else { 128 };
            return (bits <= most).then_some(Self::Network(address, bits));
        }
        let bare = entry.trim_start_matches('[').trim_end_matches(']');
        if let Ok(address) = bare.parse() {
            return Some(Self::Address(address, None));
        }
        let (host, port) = match entry.rsplit_once(':') {
            Some((host, port)) => (host, Some(port.parse().ok()?)),
            None => (entry.as_str(), None),
        };
        if let Ok(address) = host.trim_start_matches('[').trim_end_matches(']').parse() {
            return Some(Self::Address(address, port));
        }
        let host = host.strip_prefix('*').unwrap_or(host);
        let name = host.strip_prefix('.').unwrap_or(host);
        let only_subdomains = name.len() != host.len();
        (!name.is_empty()).then(|| Self::Domain { name: name.to_owned(), only_subdomains, port })
    }

    fn matches(&self, host: &str, address: Option<IpAddr>, port: u16) -> bool {
        match self {
            Self::Everything => true,
            Self::Network(network, bits) => address.is_some_and(|address| in_network(address, *network, *bits)),
            Self::Address(direct, only) => address == Some(*direct) && only.is_none_or(|only| only == port),
            Self::Domain { name, only_subdomains, port: only } => {
                let subdomain = host.strip_suffix(name.as_str()).is_some_and(|rest| rest.ends_with('.'));
                (subdomain || (!only_subdomains && host == name)) && only.is_none_or(|only| only == port)
            }
        }
    }
}

fn in_network(address: IpAddr, network: IpAddr, bits: u8) -> bool {
    match (address, network) {
        (IpAddr::V4(address), IpAddr::V4(network)) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(bits)).unwrap_or(0);
            address.to_bits() & mask == network.to_bits() & mask
        }
        (IpAddr::V6(address), IpAddr::V6(network)) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(bits)).unwrap_or(0);
            address.to_bits() & mask == network.to_bits() & mask
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::super::environment::User;
    use super::*;

    fn proxies(variables: &[(&str, &str)]) -> Proxies {
        Proxies::from_environment(&Environment::of(User::Root, variables)).unwrap()
    }

    #[test]
    fn each_scheme_has_its_proxy_and_all_proxy_stands_in() {
        let both = proxies(&[("HTTP_PROXY", "a:1"), ("https_proxy", "socks5://b:2"), ("ALL_PROXY", "c:3")]);
        assert_eq!(both.lookup(Scheme::Http, "example.com", 80), Some("http://a:1"));
        assert_eq!(both.lookup(Scheme::Https, "example.com", 443), Some("socks5://b:2"));
        let all = proxies(&[("all_proxy", "http://c:3"), ("HTTP_PROXY", "")]);
        assert_eq!(all.lookup(Scheme::Http, "example.com", 80), Some("http://c:3"));
        assert_eq!(proxies(&[]).lookup(Scheme::Http, "example.com", 80), None);
    }

    #[test]
    fn no_proxy_names_what_is_reached_directly() {
        let list = "example.com, .sub.net,*.wild.org,10.0.0.0/8,192.168.1.1:5000,[fd00::1],ported.com:8080,fe80::/10";
        let proxies = proxies(&[("HTTPS_PROXY", "http://p:1"), ("NO_PROXY", list)]);
        let direct = |host: &str, port| proxies.lookup(Scheme::Https, host, port).is_none();
        for host in ["example.com", "EXAMPLE.com.", "a.example.com", "a.sub.net", "x.wild.org", "10.9.8.7", "[fd00::1]"]
        {
            assert!(direct(host, 443), "{host}");
        }
        for host in ["notexample.com", "sub.net", "wild.org", "11.0.0.1", "192.168.1.1", "[fd00::2]", "ported.com"] {
            assert!(!direct(host, 443), "{host}");
        }
        assert!(direct("192.168.1.1", 5000) && direct("a.ported.com", 8080) && direct("fe80::1", 1));
    }

    #[test]
    fn loopback_is_always_direct() {
        let proxies = proxies(&[("ALL_PROXY", "http://p:1")]);
        for host in ["localhost", "127.0.0.1", "127.9.9.9", "::1", "[::1]"] {
            assert_eq!(proxies.lookup(Scheme::Http, host, 5000), None, "{host}");
        }
    }

    #[test]
    fn a_malformed_proxy_is_refused_without_showing_its_password() {
        let environment = Environment::of(User::Root, &[("HTTP_PROXY", "gopher://user:secret@p")]);
        let error = Proxies::from_environment(&environment).unwrap_err().to_string();
        assert!(error.contains("HTTP_PROXY") && !error.contains("secret"), "{error}");
        assert!(!format!("{:?}", proxies(&[("HTTP_PROXY", "http://user:secret@p:1")])).contains("secret"));
    }
}
