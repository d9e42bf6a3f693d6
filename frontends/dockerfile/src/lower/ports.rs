//! EXPOSE: `[[address:]host-port:]port[-port][/protocol]`.

use std::net::IpAddr;

/// What an argument of EXPOSE says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Exposed {
    /// The ports as the image configuration names them, for example `80/tcp`.
    pub(super) ports: Vec<String>,
    /// Whether the protocol is not written in lower case.
    pub(super) miscased_protocol: bool,
    /// Whether an address or a port of the host is named, which has no meaning here.
    pub(super) names_host: bool,
}

/// Reads one argument; the error says what is wrong with it.
pub(super) fn parse(text: &str) -> Result<Exposed, String> {
    let (host, container) = text.rsplit_once(':').map_or((None, text), |(host, container)| (Some(host), container));
    let (range, protocol) = container.split_once('/').unwrap_or((container, ""));
    let lower = if protocol.is_empty() { "tcp".to_owned() } else { protocol.to_lowercase() };
    if !matches!(lower.as_str(), "tcp" | "udp" | "sctp") {
        return Err(format!("{text:?}: the protocol is tcp, udp or sctp, not {protocol}"));
    }
    let (first, last) = ports(range).ok_or_else(|| format!("{text:?}: {range:?} is no port or range of ports"))?;
    if let Some(host) = host {
        check_host(host, last - first).map_err(|why| format!("{text:?}: {why}"))?;
    }
    Ok(Exposed {
        ports: (first..=last).map(|port| format!("{port}/{lower}")).collect(),
        miscased_protocol: !protocol.is_empty() && protocol != lower,
        names_host: host.is_some_and(|host| !host.is_empty()),
    })
}

/// Reads `80` or `8000-8010`.
fn ports(text: &str) -> Option<(u16, u16)> {
    let number = |text: &str| text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse::<u16>().ok()).flatten();
    match text.split_once('-') {
        None => number(text).map(|port| (port, port)),
        Some((first, last)) => number(first).zip(number(last)).filter(|(first, last)| first <= last),
    }
}

/// Checks `[address:]ports`, which BuildKit reads and forgets.
fn check_host(host: &str, more_ports: u16) -> Result<(), String> {
    let (address, range) = host.rsplit_once(':').unwrap_or(("", host));
    let bare = address.strip_prefix('[').and_then(|a| a.strip_suffix(']')).unwrap_or(address);
    if !bare.is_empty() && bare.parse::<IpAddr>().is_err() {
        return Err(format!("{address} is no address"));
    }
    match ports(range) {
        _ if range.is_empty() => Ok(()),
        None => Err(format!("{range:?} is no port or range of ports")),
        Some((first, last)) if last - first != more_ports && more_ports != 0 => {
            Err("the ranges have different lengths".to_owned())
        }
        Some(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_have_a_protocol_and_may_be_ranges() {
        let ports = |text: &str| parse(text).unwrap().ports.join(" ");
        assert_eq!(ports("80"), "80/tcp");
        assert_eq!(ports("53/UDP"), "53/udp");
        assert_eq!(ports("8000-8002/sctp"), "8000/sctp 8001/sctp 8002/sctp");
        assert_eq!(ports("80/"), "80/tcp");
        assert_eq!(parse("0-65535").unwrap().ports.len(), 65_536);
        for text in ["8080:80", "127.0.0.1:8080:80", "127.0.0.1::80", "[::1]:8080:80", "8000-8010:80", "::80"] {
            assert_eq!(ports(text), "80/tcp", "{text}");
        }
    }

    #[test]
    fn what_checks_report_is_known() {
        assert!(parse("80/Tcp").unwrap().miscased_protocol && !parse("80").unwrap().miscased_protocol);
        assert!(parse("8080:80").unwrap().names_host && !parse("80/tcp").unwrap().names_host);
    }

    #[test]
    fn nonsense_is_refused() {
        for text in [
            "",
            "x",
            "80/http",
            "90-80",
            "80-",
            "-80",
            "+80",
            "65536",
            "1-2-3",
            "x:80",
            "1.2.3:1:80",
            "1-2:80-90",
            "80:",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
