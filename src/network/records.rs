//! The records of networks and endpoints in the database.
//!
//! Several engines work on one root, so what is here is all there is. Functions take a connection: whether it is one of
//! a transaction is the caller's business.

use std::fmt;
use std::net::Ipv4Addr;
use std::ops::RangeInclusive;
use std::str::FromStr;

use rusqlite::{Connection, OptionalExtension as _, Row};

use super::address::{Ipv4Subnet, MacAddress};
use super::{DEFAULT, ipam};
use crate::error::{Error, Result};
use crate::state::Schema;

/// The tables of this module.
///
/// An address is taken once in one network namespace of the host (`host`: boot id and namespace), so that engines that
/// work on one root from different namespaces do not mistake each other's endpoints for dead ones.
pub const SCHEMA: Schema = Schema {
    module: "network",
    scripts: &["
        CREATE TABLE network (
            id TEXT PRIMARY KEY,
            name TEXT NOT NULL UNIQUE,
            driver TEXT NOT NULL,
            created_ns INTEGER NOT NULL,
            subnet TEXT,
            last_given INTEGER
        ) STRICT;
        CREATE TABLE endpoint (
            id TEXT PRIMARY KEY,
            network TEXT NOT NULL REFERENCES network (id) ON DELETE CASCADE,
            host TEXT NOT NULL,
            address INTEGER NOT NULL,
            mac TEXT NOT NULL,
            interface TEXT NOT NULL,
            owner TEXT NOT NULL,
            name TEXT NOT NULL,
            UNIQUE (network, host, address)
        ) STRICT;
    "],
};

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident;)*) => {
        $(
            $(#[$doc])*
            #[derive(Clone, Debug, PartialEq, Eq, Hash)]
            pub struct $name(String);

            impl $name {
                pub(super) fn random() -> Result<Self> {
                    random_id().map(Self)
                }

                /// Returns the 64 hexadecimal digits.
                #[must_use]
                pub fn as_str(&self) -> &str {
                    &self.0
                }
            }

            impl fmt::Display for $name {
                fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                    f.write_str(&self.0)
                }
            }

            impl FromStr for $name {
                type Err = Error;

                fn from_str(text: &str) -> Result<Self> {
                    let digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
                    if text.len() != 64 || !text.bytes().all(digit) {
                        return Err(Error::invalid(format!("invalid id {text:?}: expected 64 hexadecimal digits")));
                    }
                    Ok(Self(text.to_owned()))
                }
            }
        )*
    };
}

ids! {
    /// Names a network for ever.
    NetworkId;
    /// Names one attachment of a network namespace to a network.
    EndpointId;
}

impl EndpointId {
    /// The name of the end of the virtual Ethernet pair that stays on the host: 15 characters, the most there may be.
    pub(super) fn host_interface(&self) -> String {
        format!("kv{}", &self.0[..13])
    }
}

fn random_id() -> Result<String> {
    use std::fmt::Write as _;
    let mut bytes = [0_u8; 32];
    getrandom::fill(&mut bytes).map_err(|error| Error::internal(format!("make an id: {error}")))?;
    Ok(bytes.iter().fold(String::with_capacity(64), |mut id, byte| {
        write!(id, "{byte:02x}").expect("writing to a string does not fail");
        id
    }))
}

/// What makes a network work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Driver {
    /// A Linux bridge with address translation to the outside.
    Bridge,
    /// The host's own network.
    Host,
    /// Loopback only.
    Null,
}

impl Driver {
    /// Returns Docker's word for it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Bridge => "bridge",
            Self::Host => "host",
            Self::Null => "null",
        }
    }

    fn parse(text: &str) -> Result<Self> {
        [Self::Bridge, Self::Host, Self::Null]
            .into_iter()
            .find(|driver| driver.as_str() == text)
            .ok_or_else(|| Error::corrupt(format!("the database holds a network with the unknown driver {text:?}")))
    }
}

/// The record of a network.
#[derive(Clone, Debug)]
pub(super) struct NetworkRecord {
    pub id: NetworkId,
    pub name: String,
    pub driver: Driver,
    pub created_ns: i64,
    /// `None` until a bridge has been made for it.
    pub subnet: Option<Ipv4Subnet>,
}

/// The record of an endpoint.
#[derive(Clone, Debug)]
pub(super) struct EndpointRecord {
    pub id: EndpointId,
    pub host: String,
    pub address: Ipv4Addr,
    pub mac: MacAddress,
    pub interface: String,
    pub owner: String,
    pub name: String,
}

const NETWORK: &str = "SELECT id, name, driver, created_ns, subnet FROM network";
const ENDPOINT: &str = "SELECT id, host, address, mac, interface, owner, name FROM endpoint";

fn network(row: &Row<'_>) -> Result<NetworkRecord> {
    Ok(NetworkRecord {
        id: row.get::<_, String>(0)?.parse()?,
        name: row.get(1)?,
        driver: Driver::parse(row.get_ref(2)?.as_str().map_err(rusqlite::Error::from)?)?,
        created_ns: row.get(3)?,
        subnet: row.get::<_, Option<String>>(4)?.map(|subnet| subnet.parse()).transpose()?,
    })
}

fn endpoint(row: &Row<'_>) -> Result<EndpointRecord> {
    Ok(EndpointRecord {
        id: row.get::<_, String>(0)?.parse()?,
        host: row.get(1)?,
        address: Ipv4Addr::from_bits(row.get(2)?),
        mac: row.get::<_, String>(3)?.parse()?,
        interface: row.get(4)?,
        owner: row.get(5)?,
        name: row.get(6)?,
    })
}

/// Makes the networks every root has; those that exist stay as they are.
pub(super) fn add_predefined(connection: &Connection, created_ns: i64) -> Result<()> {
    let mut insert = connection.prepare_cached(
        "INSERT INTO network (id, name, driver, created_ns) VALUES (?1, ?2, ?3, ?4) ON CONFLICT (name) DO NOTHING",
    )?;
    for (name, driver) in [(DEFAULT, Driver::Bridge), ("host", Driver::Host), ("none", Driver::Null)] {
        insert.execute((NetworkId::random()?.as_str(), name, driver.as_str(), created_ns))?;
    }
    Ok(())
}

/// Returns all networks, by name.
pub(super) fn networks(connection: &Connection) -> Result<Vec<NetworkRecord>> {
    let mut statement = connection.prepare_cached(&format!("{NETWORK} ORDER BY name"))?;
    statement.query_and_then([], network)?.collect()
}

/// Finds a network as Docker does: by its whole id, else by name, else by the start of its id.
pub(super) fn find_network(connection: &Connection, term: &str) -> Result<NetworkRecord> {
    let mut exact =
        connection.prepare_cached(&format!("{NETWORK} WHERE id = ?1 OR name = ?1 ORDER BY id = ?1 DESC"))?;
    if let Some(found) = exact.query_and_then([term], network)?.next() {
        return found;
    }
    let mut all = networks(connection)?;
    all.retain(|network| !term.is_empty() && network.id.as_str().starts_with(term));
    match all.len() {
        0 => Err(Error::not_found(format!("network {term} not found"))),
        1 => Ok(all.remove(0)),
        n => Err(Error::invalid(format!("network {term} is ambiguous ({n} matches found on ID prefix)"))),
    }
}

/// Writes down which subnet a network has.
pub(super) fn set_subnet(connection: &Connection, id: &NetworkId, subnet: Option<Ipv4Subnet>) -> Result<()> {
    connection
        .prepare_cached("UPDATE network SET subnet = ?2 WHERE id = ?1")?
        .execute((id.as_str(), subnet.map(|subnet| subnet.to_string())))?;
    Ok(())
}

/// Returns the endpoints of a network, by address.
pub(super) fn endpoints(connection: &Connection, network: &NetworkId) -> Result<Vec<EndpointRecord>> {
    let mut statement = connection.prepare_cached(&format!("{ENDPOINT} WHERE network = ?1 ORDER BY address"))?;
    statement.query_and_then([network.as_str()], endpoint)?.collect()
}

/// Returns a free address of a network. The connection is a write transaction's.
///
/// # Errors
/// `Exhausted` when none is free.
pub(super) fn free_address(
    connection: &Connection,
    network: &NetworkId,
    subnet: Ipv4Subnet,
    host: &str,
) -> Result<Ipv4Addr> {
    let last_given: Option<u32> = connection
        .prepare_cached("SELECT last_given FROM network WHERE id = ?1")?
        .query_row([network.as_str()], |row| row.get(0))?;
    for range in ipam::search_order(subnet, last_given.map(Ipv4Addr::from_bits)) {
        if let Some(address) = first_gap(connection, network, host, range)? {
            connection
                .prepare_cached("UPDATE network SET last_given = ?2 WHERE id = ?1")?
                .execute((network.as_str(), address.to_bits()))?;
            return Ok(address);
        }
    }
    Err(Error::exhausted(format!("no free address is left in subnet {subnet}; remove containers that use it")))
}

fn first_gap(
    connection: &Connection,
    network: &NetworkId,
    host: &str,
    range: RangeInclusive<u32>,
) -> Result<Option<Ipv4Addr>> {
    let mut statement = connection.prepare_cached(
        "SELECT address FROM endpoint WHERE network = ?1 AND host = ?2 AND address BETWEEN ?3 AND ?4 ORDER BY address",
    )?;
    let taken = statement
        .query_and_then((network.as_str(), host, range.start(), range.end()), |row| Ok(row.get::<_, u32>(0)?))?;
    ipam::first_gap(range, taken)
}

/// Says whether an endpoint has the address.
pub(super) fn is_taken(connection: &Connection, network: &NetworkId, host: &str, address: Ipv4Addr) -> Result<bool> {
    let mut statement =
        connection.prepare_cached("SELECT 1 FROM endpoint WHERE network = ?1 AND host = ?2 AND address = ?3")?;
    Ok(statement.query_row((network.as_str(), host, address.to_bits()), |_| Ok(())).optional()?.is_some())
}

/// Adds an endpoint.
pub(super) fn add_endpoint(connection: &Connection, network: &NetworkId, new: &EndpointRecord) -> Result<()> {
    let EndpointRecord { id, host, address, mac, interface, owner, name } = new;
    connection
        .prepare_cached(
            "INSERT INTO endpoint (id, network, host, address, mac, interface, owner, name)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
        )?
        .execute((id.as_str(), network.as_str(), host, address.to_bits(), mac.to_string(), interface, owner, name))?;
    Ok(())
}

/// Deletes an endpoint; says whether there was one.
pub(super) fn delete_endpoint(connection: &Connection, id: &EndpointId) -> Result<bool> {
    Ok(connection.prepare_cached("DELETE FROM endpoint WHERE id = ?1")?.execute([id.as_str()])? != 0)
}
