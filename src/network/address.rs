//! Address arithmetic: IPv4 subnets and hardware addresses. No I/O.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use sha2::{Digest as _, Sha256};

use crate::error::{Error, Result};

/// An IPv4 network in CIDR notation; its host bits are zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ipv4Subnet {
    base: Ipv4Addr,
    prefix_len: u8,
}

impl Ipv4Subnet {
    /// Makes the subnet that contains `address`. `prefix_len` above 32 counts as 32.
    #[must_use]
    pub fn containing(address: Ipv4Addr, prefix_len: u8) -> Self {
        let prefix_len = prefix_len.min(32);
        Self { base: Ipv4Addr::from_bits(address.to_bits() & mask(prefix_len)), prefix_len }
    }

    /// Returns the lowest address, which names the network.
    #[must_use]
    pub fn base(&self) -> Ipv4Addr {
        self.base
    }

    /// Returns how many leading bits are the network's, 0 to 32.
    #[must_use]
    pub fn prefix_len(&self) -> u8 {
        self.prefix_len
    }

    /// Returns the highest address, which is the broadcast address.
    #[must_use]
    pub fn last(&self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.base.to_bits() | !mask(self.prefix_len))
    }

    /// Returns the address Kiln's bridge takes: the first one after the network's own.
    #[must_use]
    pub fn gateway(&self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.base.to_bits().saturating_add(1))
    }

    /// Says whether the address belongs to the subnet.
    #[must_use]
    pub fn contains(&self, address: Ipv4Addr) -> bool {
        address.to_bits() & mask(self.prefix_len) == self.base.to_bits()
    }

    /// Says whether any address belongs to both.
    #[must_use]
    pub fn overlaps(&self, other: &Self) -> bool {
        self.contains(other.base) || other.contains(self.base)
    }
}

fn mask(prefix_len: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(prefix_len)).unwrap_or(0)
}

impl fmt::Display for Ipv4Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.base, self.prefix_len)
    }
}

impl FromStr for Ipv4Subnet {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let parsed = text.split_once('/').and_then(|(base, len)| {
            let prefix_len = len.parse().ok().filter(|len| *len <= 32)?;
            Some(Self { base: base.parse().ok()?, prefix_len })
        });
        let subnet =
            parsed.ok_or_else(|| Error::invalid(format!("invalid subnet {text:?}: expected a.b.c.d/prefix")))?;
        let canonical = Self::containing(subnet.base, subnet.prefix_len);
        if canonical != subnet {
            return Err(Error::invalid(format!("invalid subnet {text:?}: it has host bits set, use {canonical}")));
        }
        Ok(subnet)
    }
}

/// The hardware address of an Ethernet interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MacAddress([u8; 6]);

impl MacAddress {
    /// Makes a random address: unicast, locally administered.
    ///
    /// # Errors
    /// When the system has no random numbers to give.
    pub fn random() -> Result<Self> {
        let mut bytes = [0; 6];
        getrandom::fill(&mut bytes).map_err(|error| Error::internal(format!("make a hardware address: {error}")))?;
        Ok(Self::local(bytes))
    }

    /// Makes the address that belongs to a name: always the same, unicast, locally administered.
    #[must_use]
    pub fn derived(name: &str) -> Self {
        let hash: [u8; 32] = Sha256::digest(name).into();
        Self::local(*hash.first_chunk().expect("a SHA-256 hash has 32 bytes"))
    }

    fn local(mut bytes: [u8; 6]) -> Self {
        bytes[0] = bytes[0] & !1 | 2;
        Self(bytes)
    }

    /// Returns the six bytes, first byte first.
    #[must_use]
    pub fn bytes(&self) -> [u8; 6] {
        self.0
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl FromStr for MacAddress {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let invalid = |why| Error::invalid(format!("invalid MAC address {text:?}: {why}"));
        let pair = |part: &str| match part.as_bytes() {
            [a, b] if a.is_ascii_hexdigit() && b.is_ascii_hexdigit() => u8::from_str_radix(part, 16).ok(),
            _ => None,
        };
        let bytes: [u8; 6] = text
            .split([':', '-'])
            .map(pair)
            .collect::<Option<Vec<u8>>>()
            .and_then(|bytes| bytes.try_into().ok())
            .ok_or_else(|| invalid("expected six pairs of hexadecimal digits"))?;
        if bytes[0] & 1 == 1 {
            return Err(invalid("it is a group address; the first byte must be even"));
        }
        if bytes == [0; 6] {
            return Err(invalid("an interface cannot have it"));
        }
        Ok(Self(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subnets_are_read_and_written_in_cidr_notation() {
        for text in ["172.17.0.0/16", "10.0.0.0/8", "0.0.0.0/0", "192.168.1.1/32"] {
            assert_eq!(text.parse::<Ipv4Subnet>().unwrap().to_string(), text);
        }
        for text in ["172.17.0.0", "172.17.0.0/33", "172.17.0/16", "/16", "172.17.0.0/", "::/0"] {
            assert!(text.parse::<Ipv4Subnet>().is_err(), "{text}");
        }
        let error = "172.17.0.1/16".parse::<Ipv4Subnet>().unwrap_err();
        assert!(error.to_string().contains("use 172.17.0.0/16"), "{error}");
    }

    #[test]
    fn a_subnet_knows_its_edges() {
        let subnet: Ipv4Subnet = "192.168.16.0/20".parse().unwrap();
        assert_eq!(subnet.gateway(), Ipv4Addr::new(192, 168, 16, 1));
        assert_eq!(subnet.last(), Ipv4Addr::new(192, 168, 31, 255));
        assert!(subnet.contains(Ipv4Addr::new(192, 168, 31, 255)));
        assert!(!subnet.contains(Ipv4Addr::new(192, 168, 32, 0)));
    }

    #[test]
    fn subnets_overlap_when_one_contains_the_other() {
        let subnet = |text: &str| text.parse::<Ipv4Subnet>().unwrap();
        for (a, b, overlap) in [
            ("172.17.0.0/16", "172.16.0.0/12", true),
            ("172.17.0.0/16", "172.17.255.0/24", true),
            ("172.17.0.0/16", "172.18.0.0/16", false),
            ("0.0.0.0/0", "10.0.0.0/8", true),
        ] {
            assert_eq!(subnet(a).overlaps(&subnet(b)), overlap, "{a} {b}");
            assert_eq!(subnet(b).overlaps(&subnet(a)), overlap, "{b} {a}");
        }
    }

    #[test]
    fn generated_hardware_addresses_are_local_and_unicast() {
        assert_eq!(MacAddress::derived("a").bytes()[0] & 3, 2);
        assert_eq!(MacAddress::derived("a"), MacAddress::derived("a"));
        assert_ne!(MacAddress::derived("a"), MacAddress::derived("b"));
        for _ in 0..64 {
            let mac = MacAddress::random().unwrap();
            assert_eq!(mac.bytes()[0] & 3, 2);
            assert_eq!(mac.to_string().parse::<MacAddress>().unwrap(), mac);
        }
    }

    #[test]
    fn hardware_addresses_no_interface_can_have_are_refused() {
        for text in ["", "02:42", "02:42:ac:11:00:zz", "01:00:5e:00:00:01", "00:00:00:00:00:00", "+2:42:ac:11:0:2"] {
            assert!(text.parse::<MacAddress>().is_err(), "{text}");
        }
        assert!("02-42-AC-11-00-02".parse::<MacAddress>().is_ok());
    }
}
