//! Which subnet a network gets and which address an endpoint gets: decisions only, over values others have read.
//!
//! The pools are Docker's. No I/O, no database.

use std::net::Ipv4Addr;
use std::ops::RangeInclusive;

use super::address::Ipv4Subnet;
use crate::error::{Error, Result};

/// A range that subnets of one size are cut from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddressPool {
    base: Ipv4Subnet,
    size: u8,
}

impl AddressPool {
    /// Makes a pool of subnets with a prefix of `size` bits.
    ///
    /// # Errors
    /// `InvalidArgument` when `size` is shorter than the pool's own prefix, or leaves no room for a gateway and a
    /// container (longer than 30 bits).
    pub fn new(base: Ipv4Subnet, size: u8) -> Result<Self> {
        if size < base.prefix_len() || size > 30 {
            let range = base.prefix_len();
            return Err(Error::invalid(format!(
                "invalid size {size} of address pool {base}: it must lie between {range} and 30"
            )));
        }
        Ok(Self { base, size })
    }

    fn len(&self) -> u32 {
        1 << (self.size - self.base.prefix_len())
    }

    fn subnet(&self, index: u32) -> Ipv4Subnet {
        let offset = u64::from(index) << (32 - u32::from(self.size));
        let base = u64::from(self.base.base().to_bits()) + offset;
        let base = u32::try_from(base).expect("the index is below the number of subnets in the pool");
        Ipv4Subnet::containing(Ipv4Addr::from_bits(base), self.size)
    }
}

/// Returns Docker's pools: 172.17.0.0/16 to 172.31.0.0/16, then 192.168.0.0/16 in subnets of /20; 31 subnets in all.
#[must_use]
pub fn default_pools() -> Vec<AddressPool> {
    let whole = |second| Ipv4Subnet::containing(Ipv4Addr::new(172, second, 0, 0), 16);
    let mut pools: Vec<_> = (17..=31).map(|second| AddressPool { base: whole(second), size: 16 }).collect();
    let base = Ipv4Subnet::containing(Ipv4Addr::new(192, 168, 0, 0), 16);
    pools.push(AddressPool { base, size: 20 });
    pools
}

/// What the host already uses.
#[derive(Clone, Debug, Default)]
pub(super) struct InUse {
    /// Ranges that break when a network takes them: interfaces' own networks and addresses, and nameservers.
    pub near: Vec<Ipv4Subnet>,
    /// Ranges reached through a router. Often generous summaries of which little is used (a VPN's 172.16.0.0/12), so
    /// they are avoided when possible, but do not count as taken.
    pub far: Vec<Ipv4Subnet>,
}

/// Chooses a subnet, trying the pools' subnets in order from number `start` on and wrapping around.
///
/// # Errors
/// `Exhausted`, in Docker's words, when the host uses all of them.
pub(super) fn choose_subnet(pools: &[AddressPool], start: u32, in_use: &InUse) -> Result<Ipv4Subnet> {
    let total: u32 = pools.iter().fold(0, |sum, pool| sum.saturating_add(pool.len()));
    let nth = |mut index: u32| {
        pools.iter().find_map(|pool| {
            if index < pool.len() {
                return Some(pool.subnet(index));
            }
            index -= pool.len();
            None
        })
    };
    let start = start.checked_rem(total).unwrap_or(0);
    let candidates = || (start..total).chain(0..start).filter_map(nth);
    let free_of = |subnet: &Ipv4Subnet, ranges: &[Ipv4Subnet]| !ranges.iter().any(|range| range.overlaps(subnet));
    candidates()
        .find(|subnet| free_of(subnet, &in_use.near) && free_of(subnet, &in_use.far))
        .or_else(|| candidates().find(|subnet| free_of(subnet, &in_use.near)))
        .ok_or_else(|| {
            Error::exhausted(
                "all predefined address pools have been fully subnetted: every range overlaps an address or a route of \
                 this host; configure an address pool the host does not use",
            )
        })
}

/// Returns the ranges to look for a free address in, in order: after the last one given out, then from the start.
///
/// Going round makes an address rest before it is used again, so that neighbours have forgotten its previous owner.
pub(super) fn search_order(subnet: Ipv4Subnet, last_given: Option<Ipv4Addr>) -> [RangeInclusive<u32>; 2] {
    let first = subnet.gateway().to_bits().saturating_add(1);
    let end = subnet.last().to_bits().saturating_sub(1);
    let next = match last_given {
        Some(last) if subnet.contains(last) => last.to_bits().saturating_add(1).max(first),
        _ => first,
    };
    [next..=end, first..=end]
}

/// Returns the lowest address of `range` that `taken`, which is sorted and starts within the range, does not hold.
pub(super) fn first_gap(
    range: RangeInclusive<u32>,
    taken: impl IntoIterator<Item = Result<u32>>,
) -> Result<Option<Ipv4Addr>> {
    let mut candidate = *range.start();
    for address in taken {
        if address? != candidate || !range.contains(&candidate) {
            break;
        }
        candidate = candidate.saturating_add(1);
    }
    Ok(range.contains(&candidate).then(|| Ipv4Addr::from_bits(candidate)))
}

/// Checks an address that was asked for.
///
/// # Errors
/// `InvalidArgument` when it lies outside the subnet or is one no container can have.
pub(super) fn check_wanted(subnet: Ipv4Subnet, wanted: Ipv4Addr) -> Result<()> {
    if !subnet.contains(wanted) {
        return Err(Error::invalid(format!("address {wanted} is not in the network's subnet {subnet}")));
    }
    if [subnet.base(), subnet.gateway(), subnet.last()].contains(&wanted) {
        return Err(Error::invalid(format!("address {wanted} is reserved in subnet {subnet}")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;

    fn subnet(text: &str) -> Ipv4Subnet {
        text.parse().unwrap()
    }

    fn in_use(near: &[&str], far: &[&str]) -> InUse {
        let parse = |list: &[&str]| list.iter().map(|text| subnet(text)).collect();
        InUse { near: parse(near), far: parse(far) }
    }

    fn chosen(start: u32, near: &[&str], far: &[&str]) -> String {
        choose_subnet(&default_pools(), start, &in_use(near, far)).unwrap().to_string()
    }

    #[test]
    fn subnets_are_tried_in_dockers_order() {
        assert_eq!(chosen(0, &[], &[]), "172.17.0.0/16");
        assert_eq!(chosen(0, &["172.17.0.0/16", "172.18.4.0/24"], &[]), "172.19.0.0/16");
        assert_eq!(chosen(0, &["172.16.0.0/12"], &[]), "192.168.0.0/20");
        assert_eq!(chosen(0, &["172.16.0.0/12", "192.168.1.0/24"], &[]), "192.168.16.0/20");
        assert_eq!(chosen(30, &[], &[]), "192.168.240.0/20");
        assert_eq!(chosen(31, &[], &[]), "172.17.0.0/16");
        assert_eq!(chosen(30, &["192.168.0.0/16"], &[]), "172.17.0.0/16");
    }

    #[test]
    fn routed_ranges_are_avoided_but_not_at_any_price() {
        assert_eq!(chosen(0, &[], &["172.16.0.0/12"]), "192.168.0.0/20");
        assert_eq!(chosen(0, &["172.17.0.0/16"], &["172.16.0.0/12", "192.168.0.0/16"]), "172.18.0.0/16");
    }

    #[test]
    fn a_host_that_uses_every_pool_is_told_so() {
        let error = choose_subnet(&default_pools(), 3, &in_use(&["172.16.0.0/12", "192.168.0.0/16"], &[])).unwrap_err();
        assert_eq!(error.kind(), Kind::Exhausted);
        assert!(error.to_string().starts_with("all predefined address pools have been fully subnetted"), "{error}");
        assert_eq!(choose_subnet(&[], 3, &InUse::default()).unwrap_err().kind(), Kind::Exhausted);
    }

    #[test]
    fn a_pool_must_hold_its_subnets() {
        assert!(AddressPool::new(subnet("10.0.0.0/8"), 24).is_ok());
        assert!(AddressPool::new(subnet("10.0.0.0/24"), 16).is_err());
        assert!(AddressPool::new(subnet("10.0.0.0/24"), 31).is_err());
        let all = AddressPool::new(subnet("0.0.0.0/0"), 30).unwrap();
        assert_eq!(all.subnet(all.len() - 1).to_string(), "255.255.255.252/30");
    }

    fn first_free(net: &str, last: Option<&str>, taken: &[&str]) -> Option<String> {
        let taken: std::collections::BTreeSet<u32> =
            taken.iter().map(|text| text.parse::<Ipv4Addr>().unwrap().to_bits()).collect();
        search_order(subnet(net), last.map(|text| text.parse().unwrap())).into_iter().find_map(|range| {
            if range.is_empty() {
                return None;
            }
            first_gap(range.clone(), taken.range(range).map(|n| Ok(*n))).unwrap().map(|ip| ip.to_string())
        })
    }

    #[test]
    fn addresses_go_round_and_skip_taken_and_reserved_ones() {
        let net = "172.17.0.0/29";
        assert_eq!(first_free(net, None, &[]).unwrap(), "172.17.0.2");
        assert_eq!(first_free(net, Some("172.17.0.2"), &[]).unwrap(), "172.17.0.3");
        assert_eq!(first_free(net, Some("172.17.0.2"), &["172.17.0.3", "172.17.0.4"]).unwrap(), "172.17.0.5");
        assert_eq!(first_free(net, Some("172.17.0.6"), &["172.17.0.2"]).unwrap(), "172.17.0.3");
        assert_eq!(first_free(net, Some("10.0.0.1"), &[]).unwrap(), "172.17.0.2");
        let all: Vec<String> = (2..=6).map(|n| format!("172.17.0.{n}")).collect();
        let all: Vec<&str> = all.iter().map(String::as_str).collect();
        assert_eq!(first_free(net, Some("172.17.0.4"), &all), None);
        assert_eq!(first_free(net, Some("172.17.0.4"), &all[1..]).unwrap(), "172.17.0.2");
    }

    #[test]
    fn reserved_and_foreign_addresses_cannot_be_asked_for() {
        let net = subnet("172.17.0.0/16");
        for address in ["172.17.0.0", "172.17.0.1", "172.17.255.255", "172.18.0.2"] {
            assert_eq!(check_wanted(net, address.parse().unwrap()).unwrap_err().kind(), Kind::InvalidArgument);
        }
        assert!(check_wanted(net, "172.17.0.2".parse().unwrap()).is_ok());
    }
}
