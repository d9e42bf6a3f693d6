//! Ports as `--publish` and `--expose` write them.

use std::ops::RangeInclusive;

use crate::cli::value;
use crate::error::{Error, Result};
use crate::types::PortBinding;

/// One published port of a container.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Published {
    /// `80/tcp`.
    pub(super) port: String,
    pub(super) binding: PortBinding,
}

/// Reads `[[ip:]host:]container[/protocol]`, where ports may be ranges of equal length, a host's range may stand for a single
/// port of the container, and an empty host means any; or `target=..,published=..,protocol=..`.
///
/// # Errors
/// `InvalidArgument`.
pub(super) fn published(text: &str) -> Result<Vec<Published>> {
    let invalid = |why: &str| {
        let expected = "expected [[ip:]host:]container[/protocol], such as 8080:80";
        Error::invalid(format!("invalid argument {text:?} for --publish: {why} ({expected})"))
    };
    let parts = if text.contains('=') { long(text)? } else { short(text).ok_or_else(|| invalid("not a port"))? };
    let Parts { address, host, container, protocol } = parts;
    if !["tcp", "udp", "sctp"].contains(&protocol.as_str()) {
        return Err(invalid(&format!("invalid proto: {protocol}")));
    }
    let address = address.trim_start_matches('[').trim_end_matches(']').to_owned();
    if !address.is_empty() && address.parse::<std::net::IpAddr>().is_err() {
        return Err(invalid(&format!("{address} is not an IP address")));
    }
    let inside = range(&container).ok_or_else(|| invalid(&format!("invalid containerPort: {container}")))?;
    let outside = match host.as_str() {
        "" => None,
        host => Some(range(host).ok_or_else(|| invalid(&format!("invalid hostPort: {host}")))?),
    };
    let binding = |port: String| PortBinding { host_ip: Some(address.clone()), host_port: Some(port) };
    let named = |port: u16| format!("{port}/{protocol}");
    match outside {
        None => Ok(inside.map(|port| Published { port: named(port), binding: binding(String::new()) }).collect()),
        Some(outside) if outside.len() == inside.len() => Ok(inside
            .zip(outside)
            .map(|(port, host)| Published { port: named(port), binding: binding(host.to_string()) })
            .collect()),
        Some(_) if inside.len() == 1 => {
            Ok(vec![Published { port: named(*inside.start()), binding: binding(host.clone()) }])
        }
        Some(_) => Err(invalid("the ranges of ports have different lengths")),
    }
}

/// Reads `80`, `80/udp` or `8000-8010/tcp`; returns `80/tcp` and so on.
///
/// # Errors
/// `InvalidArgument`.
pub(super) fn exposed(text: &str) -> Result<Vec<String>> {
    let (ports, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let invalid = || Error::invalid(format!("invalid range format for --expose: {text:?}"));
    let protocol = protocol.to_lowercase();
    let ports = range(ports).filter(|_| ["tcp", "udp", "sctp"].contains(&protocol.as_str())).ok_or_else(invalid)?;
    Ok(ports.map(|port| format!("{port}/{protocol}")).collect())
}

struct Parts {
    address: String,
    host: String,
    container: String,
    protocol: String,
}

fn short(text: &str) -> Option<Parts> {
    let (rest, protocol) = text.rsplit_once('/').unwrap_or((text, "tcp"));
    let (rest, container) = rest.rsplit_once(':').unwrap_or(("", rest));
    // What is left is `host`, `ip:host` or nothing; an IPv6 address stands in brackets.
    let (address, host) = match rest.rsplit_once(':') {
        Some((address, host)) if !address.contains(':') || address.starts_with('[') => (address, host),
        Some(_) => return None,
        None => ("", rest),
    };
    Some(Parts {
        address: address.to_owned(),
        host: host.to_owned(),
        container: container.to_owned(),
        protocol: protocol.to_lowercase(),
    })
}

fn long(text: &str) -> Result<Parts> {
    let invalid = |why: String| Error::invalid(format!("invalid argument {text:?} for --publish: {why}"));
    let mut parts =
        Parts { address: String::new(), host: String::new(), container: String::new(), protocol: "tcp".to_owned() };
    for (key, given) in value::csv(text)? {
        let given = given.ok_or_else(|| invalid(format!("{key} needs a value")))?;
        match key.as_str() {
            "target" => parts.container = given,
            "published" => parts.host = given,
            "protocol" => parts.protocol = given.to_lowercase(),
            // Swarm's word; a container has nothing but its host.
            "mode" if given == "host" || given == "ingress" => {}
            other => return Err(invalid(format!("unknown key or value: {other}={given}"))),
        }
    }
    Ok(parts)
}

fn range(text: &str) -> Option<RangeInclusive<u16>> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last): (u16, u16) = (first.parse().ok()?, last.parse().ok()?);
    (first <= last).then_some(first..=last)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(text: &str) -> Result<Vec<String>, String> {
        let show = |published: Published| {
            let PortBinding { host_ip, host_port } = published.binding;
            format!("{} {} {}", published.port, host_ip.unwrap(), host_port.unwrap())
        };
        Ok(published(text).map_err(|error| error.to_string())?.into_iter().map(show).collect())
    }

    #[test]
    fn ports_are_written_as_docker_writes_them() {
        for (text, expected) in [
            ("80", &["80/tcp  "][..]),
            ("8080:80", &["80/tcp  8080"]),
            ("127.0.0.1:8080:80/udp", &["80/udp 127.0.0.1 8080"]),
            ("127.0.0.1::80", &["80/tcp 127.0.0.1 "]),
            ("[::1]:8080:80", &["80/tcp ::1 8080"]),
            ("8000-8001:80-81", &["80/tcp  8000", "81/tcp  8001"]),
            ("8000-8010:80", &["80/tcp  8000-8010"]),
            ("target=80,published=8080,protocol=udp", &["80/udp  8080"]),
        ] {
            assert_eq!(list(text).unwrap(), expected, "{text}");
        }
        for text in ["", "x", "80:x", "1:2:80", "::1:80:80", "80-81:1-3", "80/ftp", "70000", "81-80", "target=80,x=1"] {
            assert!(list(text).is_err(), "{text}");
        }
    }

    #[test]
    fn exposed_ports_may_be_ranges() {
        assert_eq!(exposed("80").unwrap(), ["80/tcp"]);
        assert_eq!(exposed("53-54/UDP").unwrap(), ["53/udp", "54/udp"]);
        assert!(exposed("80/x").is_err() && exposed("a").is_err());
    }
}
