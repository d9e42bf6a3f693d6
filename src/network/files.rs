//! The files that tell a container who it is and whom to ask: `/etc/hosts`, `/etc/resolv.conf`, `/etc/hostname`.
//!
//! Contents are Docker's, except for the comments. Texts only: who writes them where, and who stops rewriting them once
//! a user has edited them, is the sandbox's and the container's business.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::error::{Error, Result, ResultExt as _};

/// Asked when the host names no server a container could reach. Docker's choice, too.
const FALLBACK: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::new(8, 8, 8, 8)), IpAddr::V4(Ipv4Addr::new(8, 8, 4, 4))];

/// The addresses systemd-resolved listens on (`man systemd-resolved`).
const STUBS: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::new(127, 0, 0, 53)), IpAddr::V4(Ipv4Addr::new(127, 0, 0, 54))];

/// A line of `/etc/hosts` asked for with `--add-host`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExtraHost {
    /// The name.
    pub name: String,
    /// What it stands for.
    pub address: HostAddress,
}

/// What a name in `--add-host` stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostAddress {
    /// This address.
    Ip(IpAddr),
    /// The address the host has for containers: `host-gateway`.
    Gateway,
}

impl FromStr for ExtraHost {
    type Err = Error;

    /// Reads `name:address` or `name=address`; IPv6 addresses may stand in brackets. Errors have Docker's words.
    fn from_str(text: &str) -> Result<Self> {
        let bad = || Error::invalid(format!("bad format for add-host: {text:?}"));
        let (name, address) = text.split_once('=').or_else(|| text.split_once(':')).ok_or_else(bad)?;
        check_hostname(name).map_err(|_| bad())?;
        let address = match address {
            "host-gateway" => HostAddress::Gateway,
            _ => address
                .strip_prefix('[')
                .and_then(|address| address.strip_suffix(']'))
                .unwrap_or(address)
                .parse()
                .map(HostAddress::Ip)
                .map_err(|_| Error::invalid(format!("invalid IP address in add-host: {address:?}")))?,
        };
        Ok(Self { name: name.to_owned(), address })
    }
}

/// Checks that a host name can stand in `/etc/hosts` and be the kernel's host name.
///
/// # Errors
/// `InvalidArgument` when it is empty, has more than 64 bytes or holds spaces, control characters or `#`.
pub fn check_hostname(name: &str) -> Result<()> {
    /// `__NEW_UTS_LEN` of the kernel.
    const LONGEST: usize = 64;
    let wrong = |c: char| c.is_whitespace() || c.is_control() || c == '#';
    if name.is_empty() || name.len() > LONGEST || name.contains(wrong) {
        return Err(Error::invalid(format!("invalid hostname {name:?}: 1 to {LONGEST} characters without spaces")));
    }
    Ok(())
}

/// Returns the content of `/etc/hostname`.
#[must_use]
pub fn hostname(name: &str) -> String {
    format!("{name}\n")
}

/// What `/etc/hosts` is made of.
#[derive(Clone, Debug, Default)]
pub struct Hosts<'a> {
    /// Whether loopback has an IPv6 address ([`super::namespace::has_ipv6`]).
    pub ipv6: bool,
    /// More names for 127.0.0.1. BuildKit gives build steps their host name this way; containers have none.
    pub loopback_names: &'a [&'a str],
    /// The lines asked for.
    pub extra: &'a [ExtraHost],
    /// What [`HostAddress::Gateway`] stands for.
    pub gateway: Option<IpAddr>,
    /// The container's own addresses, each with the host name, which may be qualified by a domain.
    pub own: &'a [(IpAddr, &'a str)],
}

/// Returns the content of `/etc/hosts`: loopback, then the lines asked for, then the container itself.
///
/// A container on the host's network gets the host's own file instead, unless lines are asked for.
///
/// # Errors
/// `InvalidArgument` for a name that cannot stand there, and for `host-gateway` without a gateway.
pub fn hosts(hosts: &Hosts<'_>) -> Result<String> {
    let mut text = String::from("127.0.0.1\tlocalhost");
    for name in hosts.loopback_names {
        check_hostname(name)?;
        text.extend([" ", name]);
    }
    text.push('\n');
    if hosts.ipv6 {
        text.push_str(
            "::1\tlocalhost ip6-localhost ip6-loopback\nfe00::\tip6-localnet\nff00::\tip6-mcastprefix\n\
             ff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n",
        );
    }
    let mut line =
        |address: IpAddr, names: &str| writeln!(text, "{address}\t{names}").expect("strings take all writes");
    for ExtraHost { name, address } in hosts.extra {
        check_hostname(name)?;
        let address = match address {
            HostAddress::Ip(address) => *address,
            HostAddress::Gateway => hosts.gateway.ok_or_else(|| {
                Error::invalid(format!("unable to derive the IP value for host-gateway (asked for as {name})"))
            })?,
        };
        line(address, name);
    }
    for (address, name) in hosts.own {
        check_hostname(name)?;
        match name.split_once('.') {
            Some((host, _)) => line(*address, &format!("{name} {host}")),
            None => line(*address, name),
        }
    }
    Ok(text)
}

/// Where the host's resolver configuration is.
#[derive(Clone, Debug)]
pub struct DnsPaths {
    /// What programs on the host read.
    pub resolv_conf: PathBuf,
    /// What systemd-resolved asks itself, when the host's programs ask systemd-resolved.
    pub upstream: PathBuf,
}

impl Default for DnsPaths {
    fn default() -> Self {
        Self { resolv_conf: "/etc/resolv.conf".into(), upstream: "/run/systemd/resolve/resolv.conf".into() }
    }
}

/// The host's resolver configuration.
#[derive(Clone, Debug)]
pub struct HostDns {
    /// What programs on the host use.
    own: ResolvConf,
    /// What is behind it: the same, or what systemd-resolved asks.
    behind: ResolvConf,
}

/// A parsed `resolv.conf` (`man 5 resolv.conf`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct ResolvConf {
    path: PathBuf,
    nameservers: Vec<IpAddr>,
    search: Vec<String>,
    options: Vec<String>,
    /// Lines with other keywords.
    other: Vec<String>,
}

impl HostDns {
    /// Reads the host's configuration. Blocking.
    ///
    /// # Errors
    /// When a file cannot be read; a missing one is an empty one.
    pub fn read(paths: &DnsPaths) -> Result<Self> {
        let own = ResolvConf::read(&paths.resolv_conf)?;
        let asks_stub = own.nameservers.iter().any(|address| STUBS.contains(address));
        let behind = if asks_stub && own.nameservers.iter().all(IpAddr::is_loopback) {
            ResolvConf::read(&paths.upstream)?
        } else {
            own.clone()
        };
        Ok(Self { own, behind })
    }

    /// Returns the name servers that can be reached from outside the host.
    #[must_use]
    pub fn nameservers(&self) -> Vec<IpAddr> {
        self.behind.nameservers.iter().copied().filter(|address| !address.is_loopback()).collect()
    }
}

impl ResolvConf {
    fn read(path: &Path) -> Result<Self> {
        match std::fs::read_to_string(path) {
            Ok(text) => Ok(Self::parse(path, &text)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Self::parse(path, "")),
            Err(error) => Err(error).context(|| format!("read {}", path.display())),
        }
    }

    fn parse(path: &Path, text: &str) -> Self {
        let mut parsed = Self { path: path.to_owned(), ..Self::default() };
        for line in text.lines() {
            let mut words = line.split_whitespace();
            let Some(keyword) = words.next() else { continue };
            let words = words.map(str::to_owned);
            match keyword {
                _ if keyword.starts_with(['#', ';']) => {}
                "nameserver" => parsed.nameservers.extend(words.take(1).filter_map(|word| nameserver(&word))),
                // The last one counts.
                "search" | "domain" => parsed.search = words.collect(),
                "options" => parsed.options.extend(words),
                _ => parsed.other.push(line.to_owned()),
            }
        }
        parsed
    }
}

/// Reads a name server's address, without the zone a link-local one has (`fe80::1%eth0`).
fn nameserver(word: &str) -> Option<IpAddr> {
    word.split('%').next().unwrap_or(word).parse().ok()
}

/// What a container's `resolv.conf` shall say instead of the host's: `--dns`, `--dns-search`, `--dns-option`. An empty
/// list leaves the host's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dns {
    nameservers: Vec<IpAddr>,
    search: Vec<String>,
    options: Vec<String>,
}

impl Dns {
    /// Checks and takes the settings. The search domain `.` stands for none at all.
    ///
    /// # Errors
    /// `InvalidArgument` when a search domain or option is empty or holds spaces.
    pub fn new(nameservers: Vec<IpAddr>, search: Vec<String>, options: Vec<String>) -> Result<Self> {
        let wrong = |word: &&String| word.is_empty() || word.contains(|c: char| c.is_whitespace() || c.is_control());
        if let Some(domain) = search.iter().find(wrong) {
            return Err(Error::invalid(format!("invalid DNS search domain {domain:?}")));
        }
        if let Some(option) = options.iter().find(wrong) {
            return Err(Error::invalid(format!("invalid DNS option {option:?}")));
        }
        Ok(Self { nameservers, search, options })
    }
}

/// From where a container's resolver asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// From the host's network: what the host asks can be asked.
    Host,
    /// From a network of its own with IPv4: the host's loopback is out of reach, and so are IPv6 servers.
    Bridge,
}

/// Returns the content of `/etc/resolv.conf`, and a warning when the host named no server a container can ask.
#[must_use]
pub fn resolv_conf(host: &HostDns, wanted: &Dns, reach: Reach) -> (String, Option<String>) {
    let host = if reach == Reach::Host { &host.own } else { &host.behind };
    let mut nameservers = match &wanted.nameservers[..] {
        [] => host.nameservers.clone(),
        wanted => wanted.to_vec(),
    };
    if wanted.nameservers.is_empty() && reach == Reach::Bridge {
        nameservers.retain(|address| address.is_ipv4() && !address.is_loopback());
    }
    let fall_back = nameservers.is_empty() && reach == Reach::Bridge;
    if fall_back {
        nameservers.extend(FALLBACK);
    }
    let search = if wanted.search.is_empty() { &host.search } else { &wanted.search };
    let options = if wanted.options.is_empty() { &host.options } else { &wanted.options };

    let mut text = String::from("# Generated by Kiln.\n\n");
    let mut line = |parts: &[&str]| {
        text.extend(parts.iter().copied());
        text.push('\n');
    };
    for address in &nameservers {
        line(&["nameserver ", &address.to_string()]);
    }
    let search: Vec<&str> = search.iter().map(String::as_str).filter(|domain| *domain != ".").collect();
    if !search.is_empty() {
        line(&["search ", &search.join(" ")]);
    }
    if !options.is_empty() {
        line(&["options ", &options.join(" ")]);
    }
    for other in &host.other {
        line(&[other]);
    }
    line(&["\n# Based on host file: '", &host.path.to_string_lossy(), "'"]);
    if fall_back {
        line(&["# Used default nameservers."]);
    }
    let overrides = [
        (!wanted.nameservers.is_empty()).then_some("nameservers"),
        (!wanted.search.is_empty()).then_some("search"),
        (!wanted.options.is_empty()).then_some("options"),
    ];
    let overrides: Vec<&str> = overrides.into_iter().flatten().collect();
    line(&["# Overrides: [", &overrides.join(" "), "]"]);
    let warning = fall_back.then(|| {
        format!(
            "{} names no server that containers can reach, so they ask {} and {}; name one with --dns",
            host.path.display(),
            FALLBACK[0],
            FALLBACK[1]
        )
    });
    (text, warning)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(own: &str, upstream: Option<&str>) -> HostDns {
        let dir = tempfile::tempdir().unwrap();
        let paths = DnsPaths { resolv_conf: dir.path().join("resolv.conf"), upstream: dir.path().join("upstream") };
        std::fs::write(&paths.resolv_conf, own).unwrap();
        if let Some(text) = upstream {
            std::fs::write(&paths.upstream, text).unwrap();
        }
        let mut host = HostDns::read(&paths).unwrap();
        let name = |path: &Path| PathBuf::from(path.file_name().unwrap());
        host.own.path = name(&host.own.path);
        host.behind.path = name(&host.behind.path);
        host
    }

    fn dns(nameservers: &[&str], search: &[&str], options: &[&str]) -> Dns {
        let owned = |list: &[&str]| list.iter().map(|&text| text.to_owned()).collect();
        Dns::new(nameservers.iter().map(|text| text.parse().unwrap()).collect(), owned(search), owned(options)).unwrap()
    }

    /// The generated file without its first and last comments, one `|` for each line's end.
    fn lines(host: &HostDns, wanted: &Dns, reach: Reach) -> String {
        let text = resolv_conf(host, wanted, reach).0;
        let text = text.strip_prefix("# Generated by Kiln.\n\n").unwrap();
        text.split("\n# Based").next().unwrap().trim_end().replace('\n', "|")
    }

    #[test]
    fn the_hosts_resolver_configuration_is_kept_where_containers_can_use_it() {
        let none = Dns::default();
        let cases: &[(&str, Option<&str>, Reach, &str)] = &[
            ("nameserver 10.0.0.2\n", None, Reach::Bridge, "nameserver 10.0.0.2"),
            (
                "nameserver 10.0.0.2\nnameserver fd00::1\nnameserver 127.0.0.1",
                None,
                Reach::Bridge,
                "nameserver 10.0.0.2",
            ),
            ("nameserver 127.0.0.1\nnameserver ::1", None, Reach::Host, "nameserver 127.0.0.1|nameserver ::1"),
            ("nameserver fe80::1%eth0", None, Reach::Bridge, "nameserver 8.8.8.8|nameserver 8.8.4.4"),
            ("nameserver nonsense", None, Reach::Bridge, "nameserver 8.8.8.8|nameserver 8.8.4.4"),
            ("nameserver 127.0.0.53", Some("nameserver 10.9.9.9"), Reach::Bridge, "nameserver 10.9.9.9"),
            ("nameserver 127.0.0.53", Some("nameserver 10.9.9.9"), Reach::Host, "nameserver 127.0.0.53"),
            ("nameserver 127.0.0.53", None, Reach::Bridge, "nameserver 8.8.8.8|nameserver 8.8.4.4"),
            (
                "nameserver 127.0.0.1",
                Some("nameserver 10.9.9.9"),
                Reach::Bridge,
                "nameserver 8.8.8.8|nameserver 8.8.4.4",
            ),
            (
                "# note\n; note\ndomain old.example\nsearch a.example b.example\noptions ndots:2\noptions edns0 trust-ad\n\
                 nameserver 1.1.1.1 x\nsortlist 10.0.0.0\n\n",
                None,
                Reach::Bridge,
                "nameserver 1.1.1.1|search a.example b.example|options ndots:2 edns0 trust-ad|sortlist 10.0.0.0",
            ),
        ];
        for (own, upstream, reach, expected) in cases {
            assert_eq!(lines(&host(own, *upstream), &none, *reach), *expected, "{own:?} {reach:?}");
        }
    }

    #[test]
    fn dns_settings_replace_the_hosts_each_on_its_own() {
        let host = host("nameserver 10.0.0.2\nsearch corp.example\noptions ndots:2", None);
        for (wanted, expected) in [
            (
                dns(&["127.0.0.1", "::1"], &[], &[]),
                "nameserver 127.0.0.1|nameserver ::1|search corp.example|options ndots:2",
            ),
            (dns(&[], &["."], &[]), "nameserver 10.0.0.2|options ndots:2"),
            (
                dns(&[], &["a.example"], &["ndots:5", "use-vc"]),
                "nameserver 10.0.0.2|search a.example|options ndots:5 use-vc",
            ),
        ] {
            assert_eq!(lines(&host, &wanted, Reach::Bridge), expected);
        }
    }

    #[test]
    fn the_file_says_where_it_comes_from() {
        let host = host("nameserver 127.0.0.1", None);
        let (text, warning) = resolv_conf(&host, &dns(&[], &["a.example"], &["ndots:1"]), Reach::Bridge);
        assert_eq!(
            text,
            "# Generated by Kiln.\n\nnameserver 8.8.8.8\nnameserver 8.8.4.4\nsearch a.example\noptions ndots:1\n\n\
             # Based on host file: 'resolv.conf'\n# Used default nameservers.\n# Overrides: [search options]\n"
        );
        assert!(warning.unwrap().contains("resolv.conf names no server"));
        let (text, warning) = resolv_conf(&host, &dns(&["9.9.9.9"], &[], &[]), Reach::Bridge);
        assert!(text.ends_with("# Based on host file: 'resolv.conf'\n# Overrides: [nameservers]\n"), "{text}");
        assert_eq!(warning, None);
    }

    #[test]
    fn dns_settings_cannot_smuggle_lines_into_the_file() {
        for word in ["a\nnameserver 6.6.6.6", "", "a b"] {
            assert!(Dns::new(vec![], vec![word.to_owned()], vec![]).is_err());
            assert!(Dns::new(vec![], vec![], vec![word.to_owned()]).is_err());
        }
    }

    #[test]
    fn hosts_lists_loopback_then_extra_hosts_then_the_container() {
        let extra: Vec<ExtraHost> =
            ["db:10.0.0.9", "me=host-gateway", "six:[fd00::9]"].map(|e| e.parse().unwrap()).into();
        let own = [("172.17.0.2".parse().unwrap(), "0123456789ab"), ("10.1.0.2".parse().unwrap(), "web.corp.example")];
        let gateway = Some("172.17.0.1".parse().unwrap());
        let text = hosts(&Hosts { ipv6: true, loopback_names: &[], extra: &extra, gateway, own: &own }).unwrap();
        let expected = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::\tip6-localnet\n\
             ff00::\tip6-mcastprefix\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n10.0.0.9\tdb\n172.17.0.1\tme\n\
             fd00::9\tsix\n172.17.0.2\t0123456789ab\n10.1.0.2\tweb.corp.example web\n";
        assert_eq!(text, expected);
        let step = Hosts { loopback_names: &["buildkitsandbox"], ..Hosts::default() };
        assert_eq!(hosts(&step).unwrap(), "127.0.0.1\tlocalhost buildkitsandbox\n");
        assert_eq!(hostname("web"), "web\n");
    }

    #[test]
    fn host_gateway_needs_a_gateway() {
        let extra = ["me:host-gateway".parse().unwrap()];
        let error = hosts(&Hosts { extra: &extra, ..Hosts::default() }).unwrap_err();
        assert!(error.to_string().starts_with("unable to derive the IP value for host-gateway"), "{error}");
    }

    #[test]
    fn extra_hosts_are_read_in_dockers_forms() {
        let read = |text: &str| text.parse::<ExtraHost>().map(|host| (host.name, host.address));
        let ip = |text: &str| HostAddress::Ip(text.parse().unwrap());
        assert_eq!(read("a:1.2.3.4").unwrap(), ("a".into(), ip("1.2.3.4")));
        assert_eq!(read("a=::1").unwrap(), ("a".into(), ip("::1")));
        assert_eq!(read("a:::1").unwrap(), ("a".into(), ip("::1")));
        assert_eq!(read("a=[fd00::1]").unwrap(), ("a".into(), ip("fd00::1")));
        assert_eq!(read("a:host-gateway").unwrap(), ("a".into(), HostAddress::Gateway));
        for (text, error) in [
            ("a", "bad format for add-host: \"a\""),
            (":1.2.3.4", "bad format for add-host: \":1.2.3.4\""),
            ("a b:1.2.3.4", "bad format for add-host: \"a b:1.2.3.4\""),
            ("a:1.2.3", "invalid IP address in add-host: \"1.2.3\""),
            ("a:", "invalid IP address in add-host: \"\""),
        ] {
            assert_eq!(read(text).unwrap_err().to_string(), error);
        }
    }

    #[test]
    fn hostnames_cannot_smuggle_lines_into_hosts() {
        for name in ["", "a\n1.1.1.1 b", "a b", "a#", &"x".repeat(65)] {
            assert!(check_hostname(name).is_err(), "{name:?}");
            let own = [("10.0.0.1".parse().unwrap(), name)];
            assert!(hosts(&Hosts { own: &own, ..Hosts::default() }).is_err(), "{name:?}");
        }
        check_hostname(&"x".repeat(64)).unwrap();
    }
}
