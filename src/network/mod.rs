//! Networks: what containers and build steps are connected to.
//!
//! One bridge network with address translation, `bridge`, plus the host's network and none at all. Everything is done
//! by netlink; nothing is executed. Several engines work on one root at once: records are rows of the database, kernel
//! objects are made when they are missing, by whoever needs them first.
//!
//! **Who lives.** A connected endpoint is a virtual Ethernet pair with one end in the container's network namespace.
//! The kernel removes it when the last process and the last file descriptor of that namespace are gone, however they
//! went. So the host's end *is* the proof that an address is in use: no process id, no lock file, nothing a crash can
//! leave behind. While an endpoint is being made, its maker holds a shared lock on the root's network; a sweep takes
//! the lock alone, so a record without its interface is dead.
//!
//! **What is asked of the host.** The first use of a bridge network switches IPv4 forwarding on
//! (`net.ipv4.ip_forward`), if it is off, and leaves it on. Reverse path filtering may be on: packets of a subnet come
//! and go by its bridge. Tables of others are not touched; [`Network::obstacles`] says when one of them is in the way.
//!
//! Left out for now, with room kept: networks of users, published ports, DNS for container names, IPv6.

mod address;
mod bridge;
pub mod files;
mod firewall;
mod ipam;
pub mod namespace;
mod pool;
mod records;
mod upkeep;

#[cfg(test)]
mod tests;

use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::path::PathBuf;
use std::sync::Arc;

use rusqlite::Connection;
use sha2::{Digest as _, Sha256};

pub use address::{Ipv4Subnet, MacAddress};
pub use ipam::{AddressPool, default_pools};
pub use pool::{Pool, PooledNetns};
pub use records::{Driver, EndpointId, NetworkId, SCHEMA};

use crate::error::{Error, Kind, Result, ResultExt as _};
use crate::state::{Db, LockMode, Root};
use crate::sys::netlink::Netlink;
use crate::sys::xtables;
use crate::task::Clock;
use bridge::Wire;
use records::{EndpointRecord, NetworkRecord};

/// The name of the network that is used when none is named.
pub const DEFAULT: &str = "bridge";

/// How networks are set up on this host.
#[derive(Clone, Debug)]
pub struct Config {
    /// What the kernel objects are called.
    pub naming: Naming,
    /// Where subnets come from.
    pub pools: Vec<AddressPool>,
    /// Where the host's name servers are found.
    pub dns: files::DnsPaths,
}

/// What a root's kernel objects are called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Naming {
    /// Bridge `kiln0` and table `kiln`: for the root that is used when none is named.
    Default,
    /// Bridge and table `kiln-` and eight digits made of the root's path, and a search for a subnet that starts
    /// elsewhere: for any other root, so that engines of several roots do not meet.
    ByPath,
}

impl Default for Config {
    fn default() -> Self {
        Self { naming: Naming::Default, pools: default_pools(), dns: files::DnsPaths::default() }
    }
}

/// The networks of one root, in the network namespace of the thread that opened it: all calls must come from there.
/// Cloning is cheap.
#[derive(Clone, Debug)]
pub struct Network(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    root: Root,
    /// Held shared by whoever makes an endpoint, alone by whoever changes what endpoints stand on.
    lock: PathBuf,
    config: Config,
    bridge: String,
    table: String,
    /// Where in the pools the search for a subnet starts.
    start: u32,
    /// The network namespace that bridge and addresses belong to.
    host: String,
}

/// What is to be connected to what.
#[derive(Clone, Copy, Debug)]
pub struct Attach<'a> {
    /// The network's name or id.
    pub network: &'a str,
    /// The network namespace. Its loopback is expected to be up, as [`namespace::create`] leaves it.
    pub netns: BorrowedFd<'a>,
    /// What the interface is called in there, "eth0" as a rule.
    pub interface: &'a str,
    /// Who uses the endpoint: a container's id, or a word for what else it is.
    pub owner: &'a str,
    /// The owner's name, for people.
    pub name: &'a str,
    /// The hardware address; a random one when `None`.
    pub mac: Option<MacAddress>,
    /// The address; a free one when `None`.
    pub address: Option<Ipv4Addr>,
}

/// A network namespace's connection to a network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Names the endpoint.
    pub id: EndpointId,
    /// The network.
    pub network: NetworkId,
    /// The network's name.
    pub network_name: String,
    /// Who uses it, as given in [`Attach`].
    pub owner: String,
    /// The owner's name, as given in [`Attach`].
    pub name: String,
    /// The interface in the namespace.
    pub interface: String,
    /// The interface's hardware address.
    pub mac: MacAddress,
    /// The interface's address.
    pub address: Ipv4Addr,
    /// The length of the subnet's prefix in bits.
    pub prefix_len: u8,
    /// Where packets for other networks go.
    pub gateway: Ipv4Addr,
}

/// A network as `network inspect` shows it.
#[derive(Clone, Debug)]
pub struct NetworkInfo {
    /// Names the network for ever.
    pub id: NetworkId,
    /// The name.
    pub name: String,
    /// What makes it work.
    pub driver: Driver,
    /// When it was made, in nanoseconds since 1970.
    pub created_ns: i64,
    /// The bridge and its addresses; `None` for other drivers.
    pub bridge: Option<BridgeInfo>,
    /// What is connected, by address.
    pub endpoints: Vec<Endpoint>,
}

/// The kernel side of a bridge network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BridgeInfo {
    /// The interface's name.
    pub interface: String,
    /// The subnet.
    pub subnet: Ipv4Subnet,
    /// The bridge's own address, which is the containers' gateway.
    pub gateway: Ipv4Addr,
}

impl Network {
    /// Opens the networks of a root. Reads records only: no kernel object is made before something is connected.
    ///
    /// # Errors
    /// When the database fails.
    pub fn open(root: Root, clock: Clock, config: Config) -> Result<Self> {
        let lock = root.subdir("network")?.join("lock");
        let netns = rustix::fs::fstat(namespace::current()?.as_fd())?.st_ino;
        let host = format!("{} {netns}", root.boot_id());
        let (bridge, table, start) = match config.naming {
            Naming::Default => ("kiln0".to_owned(), "kiln".to_owned(), 0),
            Naming::ByPath => {
                let hash: [u8; 32] = Sha256::digest(root.path().as_os_str().as_encoded_bytes()).into();
                let number = u32::from_be_bytes(*hash.first_chunk().expect("a SHA-256 hash has 32 bytes"));
                let name = format!("kiln-{number:08x}");
                (name.clone(), name, number)
            }
        };
        if root.db().read(records::networks)?.is_empty() {
            root.db().write(|tx| records::add_predefined(tx, clock.now_ns()))?;
        }
        Ok(Self(Arc::new(Inner { root, lock, config, bridge, table, start, host })))
    }

    /// Connects a network namespace to a bridge network, making bridge, address translation and forwarding when they
    /// are missing.
    ///
    /// The endpoint lasts as long as the namespace; [`Self::release`] frees its address at once. Blocking, about 1 ms.
    ///
    /// # Errors
    /// `NotFound` for an unknown network; `InvalidArgument` for one that cannot be connected to, or an address it does
    /// not have; `Conflict` when the address or the interface's name is taken; `Exhausted` when no address or subnet is
    /// left; `Forbidden` without CAP_NET_ADMIN and CAP_SYS_ADMIN; `Unsupported` when the kernel lacks bridges or
    /// nftables. On error nothing is left of the endpoint.
    pub fn connect(&self, attach: &Attach<'_>) -> Result<Endpoint> {
        let network = self.db().read(|connection| records::find_network(connection, attach.network))?;
        if network.driver != Driver::Bridge {
            let name = &network.name;
            return Err(Error::invalid(format!("network {name} has no addresses, so nothing can be connected to it")));
        }
        let connected = match self.try_connect(&network, attach) {
            Err(error) if error.kind() == Kind::Exhausted => {
                self.sweep_alone(&self.lock(LockMode::Exclusive)?)?;
                self.try_connect(&network, attach)
            }
            result => result,
        };
        connected.context(|| format!("connect to network {}", network.name)).map_err(|error| match error.kind() {
            Kind::Forbidden => error
                .context("bridge networks need root, or CAP_NET_ADMIN and CAP_SYS_ADMIN; --network=host needs neither"),
            _ => error,
        })
    }

    fn try_connect(&self, network: &NetworkRecord, attach: &Attach<'_>) -> Result<Endpoint> {
        let mut kernel = Netlink::new();
        let (_connecting, bridge) = self.ready(&mut kernel, network)?;
        let record = self.db().write(|tx| self.reserve(tx, network, bridge.subnet, attach))?;
        let wire = Wire {
            host_interface: &record.id.host_interface(),
            interface: &record.interface,
            mac: record.mac,
            address: record.address,
            netns: attach.netns,
        };
        match bridge::connect(&mut kernel, bridge, &wire) {
            Ok(()) => Ok(endpoint(network, bridge.subnet, record)),
            Err(error) => Err(error.and_cleanup(self.release(&record.id))),
        }
    }

    /// Writes down an endpoint with an address of its own.
    fn reserve(
        &self,
        tx: &Connection,
        network: &NetworkRecord,
        subnet: Ipv4Subnet,
        attach: &Attach<'_>,
    ) -> Result<EndpointRecord> {
        let address = match attach.address {
            None => records::free_address(tx, &network.id, subnet, &self.0.host)?,
            Some(wanted) => {
                ipam::check_wanted(subnet, wanted)?;
                if records::is_taken(tx, &network.id, &self.0.host, wanted)? {
                    return Err(Error::conflict(format!("address {wanted} is already in use")));
                }
                wanted
            }
        };
        let record = EndpointRecord {
            id: EndpointId::random()?,
            host: self.0.host.clone(),
            address,
            mac: attach.mac.map_or_else(MacAddress::random, Ok)?,
            interface: attach.interface.to_owned(),
            owner: attach.owner.to_owned(),
            name: attach.name.to_owned(),
        };
        records::add_endpoint(tx, &network.id, &record)?;
        Ok(record)
    }

    /// Frees an endpoint's address. The interface goes with its network namespace, so nothing waits for the kernel.
    ///
    /// Close the namespace, or let its processes end, before or soon after: addresses are given out in turn, so this
    /// one is given out again last. An endpoint that is gone is no error. Blocking, 0.1 ms.
    ///
    /// # Errors
    /// When the database fails.
    pub fn release(&self, id: &EndpointId) -> Result<()> {
        self.db().write(|tx| records::delete_endpoint(tx, id)).map(drop).context(|| format!("release endpoint {id}"))
    }

    /// Returns all networks, by name, with what is connected to them. Blocking.
    ///
    /// # Errors
    /// When the database or the kernel fails.
    pub fn list(&self) -> Result<Vec<NetworkInfo>> {
        self.settle()?;
        self.db().read(|connection| {
            records::networks(connection)?.into_iter().map(|network| self.info(connection, network)).collect()
        })
    }

    /// Returns one network, found by id, name or the start of its id. Blocking.
    ///
    /// # Errors
    /// `NotFound`; `InvalidArgument` when the term is the start of several ids.
    pub fn inspect(&self, term: &str) -> Result<NetworkInfo> {
        // A name that there is not needs no subnet to be found.
        self.db().read(|connection| records::find_network(connection, term))?;
        self.settle()?;
        self.db().read(|connection| self.info(connection, records::find_network(connection, term)?))
    }

    fn info(&self, connection: &Connection, network: NetworkRecord) -> Result<NetworkInfo> {
        let mut endpoints = Vec::new();
        if let Some(subnet) = network.subnet {
            let mine = records::endpoints(connection, &network.id)?.into_iter().filter(|e| e.host == self.0.host);
            endpoints.extend(mine.map(|record| endpoint(&network, subnet, record)));
        }
        let bridge = network.subnet.map(|subnet| BridgeInfo {
            interface: self.0.bridge.clone(),
            subnet,
            gateway: subnet.gateway(),
        });
        let NetworkRecord { id, name, driver, created_ns, .. } = network;
        Ok(NetworkInfo { id, name, driver, created_ns, bridge, endpoints })
    }

    /// Returns the gateway of the default bridge network, for `host-gateway`, making the bridge when it is missing.
    /// Blocking.
    ///
    /// # Errors
    /// As [`Self::connect`].
    pub fn host_gateway(&self) -> Result<IpAddr> {
        Ok(self.prepare()?.subnet.gateway().into())
    }

    /// Returns what the host's resolver is configured to do. Blocking.
    ///
    /// # Errors
    /// When a file cannot be read; a missing one is an empty one.
    pub fn host_dns(&self) -> Result<files::HostDns> {
        files::HostDns::read(&self.0.config.dns)
    }

    /// Says in words, with the remedy, what on this host will keep containers from reaching the outside. Blocking.
    ///
    /// Looks for policies that drop forwarded packets, of nftables and of both kinds of iptables, without a rule that
    /// mentions the bridge.
    ///
    /// # Errors
    /// `Forbidden` without CAP_NET_ADMIN.
    pub fn obstacles(&self) -> Result<Vec<String>> {
        let mut tables = Netlink::new().tables_that_drop_forwarded(&self.0.bridge)?;
        if xtables::drops_forwarded(&self.0.bridge)? {
            tables.push("ip filter".to_owned());
        }
        Ok(tables.iter().map(|table| firewall::obstacle(table, &self.0.bridge)).collect())
    }

    fn db(&self) -> &Db {
        self.0.root.db()
    }
}

fn endpoint(network: &NetworkRecord, subnet: Ipv4Subnet, record: EndpointRecord) -> Endpoint {
    let EndpointRecord { id, address, mac, interface, owner, name, .. } = record;
    Endpoint {
        id,
        network: network.id.clone(),
        network_name: network.name.clone(),
        owner,
        name,
        interface,
        mac,
        address,
        prefix_len: subnet.prefix_len(),
        gateway: subnet.gateway(),
    }
}
