//! The kernel objects of a bridge network: the bridge, its address, IP forwarding, and the wires to containers.
//!
//! Functions act on the network namespace of the calling thread and keep no state. What should be there is decided by
//! the caller.

use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::BorrowedFd;
use std::time::Duration;

use super::address::{Ipv4Subnet, MacAddress};
use super::ipam::InUse;
use super::{NetworkId, namespace};
use crate::error::{Error, Kind, Result, ResultExt as _};
use crate::sys::netlink::{Address, Link, Netlink, Veth};

/// Docker's MTU for bridges; less when the way out carries less.
const MTU: u32 = 1500;

/// The sysctl that makes the host forward IPv4 packets, below `/proc/sys`.
const FORWARDING: &str = "net/ipv4/ip_forward";

/// A bridge that is up and has the address of its subnet's gateway.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bridge {
    pub index: u32,
    pub mtu: u32,
    pub subnet: Ipv4Subnet,
}

/// What a network's bridge is called, and what is noted on it.
#[derive(Clone, Copy)]
pub(super) struct Identity<'a> {
    pub name: &'a str,
    pub network: &'a NetworkId,
}

impl Identity<'_> {
    /// The alias that says whose bridge it is, so that two roots that chose one name notice.
    fn alias(self) -> String {
        format!("kiln network {}", self.network)
    }

    /// An address that stays the same for the network's life: containers that lived when the bridge was deleted
    /// remember it.
    fn mac(self) -> MacAddress {
        MacAddress::derived(self.network.as_str())
    }
}

impl Bridge {
    /// Returns the bridge if it is there and complete.
    pub(super) fn find(kernel: &mut Netlink, identity: Identity<'_>, subnet: Ipv4Subnet) -> Result<Option<Self>> {
        let Some(link) = bridge_link(kernel, identity.name)? else { return Ok(None) };
        let complete =
            link.up && link.alias == identity.alias() && kernel.addresses()?.contains(&gateway_of(&link, subnet));
        Ok(complete.then_some(Self { index: link.index, mtu: link.mtu, subnet }))
    }

    /// Makes the bridge, or what it lacks.
    pub(super) fn make(kernel: &mut Netlink, identity: Identity<'_>, subnet: Ipv4Subnet) -> Result<Self> {
        let name = identity.name;
        if bridge_link(kernel, name)?.is_none() {
            let mtu = outgoing_mtu(kernel)?.map_or(MTU, |mtu| mtu.min(MTU));
            let made = kernel.add_bridge(name, identity.mac().bytes(), mtu);
            unless_exists(made).context(|| format!("make bridge {name}"))?;
        }
        let link = bridge_link(kernel, name)?
            .ok_or_else(|| Error::internal(format!("bridge {name} vanished while it was being set up")))?;
        if link.alias != identity.alias() {
            if kernel.veths()?.iter().any(|port| port.master == Some(link.index)) {
                return Err(Error::conflict(format!(
                    "bridge {name} belongs to another root directory, whose containers are connected to it; stop them, or \
                     use another --root"
                )));
            }
            kernel.set_alias(link.index, &identity.alias()).context(|| format!("mark bridge {name}"))?;
        }
        namespace::disable_ipv6(name)?;
        unless_exists(kernel.add_address(&gateway_of(&link, subnet))).context(|| format!("give {name} an address"))?;
        kernel.set_up(link.index).context(|| format!("bring {name} up"))?;
        Ok(Self { index: link.index, mtu: link.mtu, subnet })
    }
}

fn gateway_of(link: &Link, subnet: Ipv4Subnet) -> Address {
    Address { link: link.index, address: subnet.gateway(), prefix_len: subnet.prefix_len() }
}

/// Returns the interface `name`, which must be a bridge.
fn bridge_link(kernel: &mut Netlink, name: &str) -> Result<Option<Link>> {
    match kernel.link(name)? {
        Some(link) if link.kind != "bridge" => Err(Error::conflict(format!(
            "there is an interface {name} that is not a bridge; rename or delete it, Kiln needs the name"
        ))),
        link => Ok(link),
    }
}

/// Returns the subnet whose gateway the bridge already is: one left by a root that was deleted without its network.
pub(super) fn adoptable(kernel: &mut Netlink, name: &str) -> Result<Option<Ipv4Subnet>> {
    let Some(link) = bridge_link(kernel, name)? else {
        return Ok(None);
    };
    let subnet = |address: Address| Ipv4Subnet::containing(address.address, address.prefix_len);
    let own = kernel.addresses()?.into_iter().filter(|address| address.link == link.index);
    Ok(own.filter(|address| subnet(*address).gateway() == address.address).map(subnet).next())
}

/// Returns what the host uses by interfaces other than `bridge`, and for name servers.
pub(super) fn in_use(kernel: &mut Netlink, bridge: &str, nameservers: &[IpAddr]) -> Result<InUse> {
    /// Shorter prefixes are default routes, also the halves and quarters some VPNs split one into.
    const SHORTEST: u8 = 4;
    let own = kernel.link(bridge)?.map(|link| link.index);
    let mut in_use = InUse::default();
    for route in kernel.routes()? {
        if route.prefix_len >= SHORTEST && (own.is_none() || route.link != own) {
            let range = Ipv4Subnet::containing(route.destination, route.prefix_len);
            if route.direct { in_use.near.push(range) } else { in_use.far.push(range) }
        }
    }
    for address in kernel.addresses()? {
        // A network without its route (`noprefixroute`) counts like one with it.
        if own != Some(address.link) {
            in_use.near.push(Ipv4Subnet::containing(address.address, address.prefix_len));
        }
    }
    let v4 = |address: &IpAddr| match address {
        IpAddr::V4(address) => Some(Ipv4Subnet::containing(*address, 32)),
        IpAddr::V6(_) => None,
    };
    in_use.near.extend(nameservers.iter().filter_map(v4));
    Ok(in_use)
}

/// Returns the MTU of the interface the default route leaves by.
fn outgoing_mtu(kernel: &mut Netlink) -> Result<Option<u32>> {
    let routes = kernel.routes()?;
    let default = routes.iter().filter(|route| route.prefix_len == 0 && route.link.is_some());
    match default.min_by_key(|route| route.metric).and_then(|route| route.link) {
        Some(index) => Ok(kernel.link_at(index)?.map(|link| link.mtu)),
        None => Ok(None),
    }
}

/// Says whether the host forwards IPv4 packets.
pub(super) fn is_forwarding() -> Result<bool> {
    let path = format!("/proc/sys/{FORWARDING}");
    Ok(std::fs::read_to_string(&path).context(|| format!("read {path}"))?.trim() != "0")
}

/// Makes the host forward IPv4 packets, also those that come from the bridge: an administrator who decides for each
/// interface may have decided otherwise for new ones.
pub(super) fn start_forwarding(bridge: &str) -> Result<()> {
    namespace::write_sysctl(FORWARDING, "1")
        .and_then(|()| namespace::write_sysctl(&format!("net/ipv4/conf/{bridge}/forwarding"), "1"))
        .context(|| "a bridge network needs IP forwarding (sysctl -w net.ipv4.ip_forward=1)")
}

/// A wire from a bridge into a container.
pub(super) struct Wire<'a> {
    /// The name of the end on the bridge.
    pub host_interface: &'a str,
    /// The name of the end in the container.
    pub interface: &'a str,
    pub mac: MacAddress,
    pub address: Ipv4Addr,
    pub netns: BorrowedFd<'a>,
}

/// Connects a network namespace to a bridge: interface, address, default route. On error nothing is left.
///
/// When it returns, packets pass and neighbours know the address's new owner.
pub(super) fn connect(kernel: &mut Netlink, bridge: Bridge, wire: &Wire<'_>) -> Result<()> {
    kernel
        .add_veth(&Veth {
            name: wire.host_interface,
            mac: MacAddress::derived(wire.host_interface).bytes(),
            master: bridge.index,
            mtu: bridge.mtu,
            peer_name: wire.interface,
            peer_mac: wire.mac.bytes(),
            peer_netns: wire.netns,
        })
        .context(|| format!("make interface {}", wire.interface))?;
    let connected = configure(bridge, wire).and_then(|(mut inside, index)| {
        await_passage(kernel, bridge, wire.host_interface)?;
        inside.announce(index, wire.mac.bytes())
    });
    connected.map_err(|error| {
        error
            .context(format!("set up interface {}", wire.interface))
            .and_cleanup(kernel.delete_link(wire.host_interface).map(drop))
    })
}

/// Sets up the container's end and returns a handle on its namespace.
fn configure(bridge: Bridge, wire: &Wire<'_>) -> Result<(Netlink, u32)> {
    let interface = wire.interface.to_owned();
    let address = wire.address;
    namespace::within(wire.netns, move || {
        // Before it is up, so that it never has an IPv6 address.
        namespace::disable_ipv6(&interface)?;
        let mut kernel = Netlink::new();
        let link = kernel.link(&interface)?.ok_or_else(|| Error::internal("the interface vanished"))?.index;
        kernel.add_address(&Address { link, address, prefix_len: bridge.subnet.prefix_len() })?;
        kernel.set_up(link)?;
        kernel.add_default_route(bridge.subnet.gateway(), link)?;
        Ok((kernel, link))
    })
}

/// Waits until packets pass from a port to the bridge and back.
///
/// A kernel thread enables the port some microseconds after both ends of its pair are up, and when it is the bridge's
/// first, the bridge some more after that. What is sent before is lost, and a lost packet costs the container's first
/// connection a second.
fn await_passage(kernel: &mut Netlink, bridge: Bridge, port: &str) -> Result<()> {
    /// Two thirds of a second in all.
    const ATTEMPTS: u32 = 16;
    for attempt in 0..ATTEMPTS {
        let port_passes = kernel.link(port)?.is_some_and(|link| link.forwarding);
        if port_passes && kernel.link_at(bridge.index)?.is_some_and(|link| link.running) {
            break;
        }
        std::thread::sleep(Duration::from_micros(10 << attempt));
    }
    Ok(())
}

fn unless_exists(result: Result<()>) -> Result<()> {
    match result {
        Err(error) if error.kind() == Kind::Conflict => Ok(()),
        other => other,
    }
}
