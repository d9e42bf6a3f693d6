//! Keeping the records and the kernel in step: what is missing is made, what is dead is swept, what is no longer wanted
//! deleted.

use std::collections::HashSet;

use super::bridge::{self, Bridge, Identity};
use super::records::{self, NetworkRecord};
use super::{DEFAULT, Driver, Ipv4Subnet, Network, NetworkId, firewall, ipam};
use crate::error::{Error, Result};
use crate::state::{FileLock, LockMode};
use crate::sys::netlink::Netlink;
use crate::sys::netlink_nft::Table;

impl Network {
    /// Makes the default bridge network complete: bridge, forwarding, packet filter; and puts ports back on a bridge
    /// that was deleted and made again.
    pub(super) fn prepare(&self) -> Result<Bridge> {
        let network = self.db().read(|connection| records::find_network(connection, DEFAULT))?;
        Ok(self.ready(&mut Netlink::new(), &network)?.1)
    }

    /// Brings the records up to date before they are shown: without dead endpoints, and with a subnet for the bridge
    /// network.
    pub(super) fn settle(&self) -> Result<()> {
        self.sweep()?;
        let bridge = self.db().read(|connection| records::find_network(connection, DEFAULT))?;
        if bridge.subnet.is_none() {
            let _alone = self.lock(LockMode::Exclusive)?;
            self.settle_subnet(&mut Netlink::new(), &bridge.id, 0)?;
        }
        Ok(())
    }

    /// Deletes the records of endpoints that died without being released; returns how many. Does nothing while somebody
    /// connects.
    ///
    /// Needed by nobody: it happens when addresses run out, and before networks are listed. Blocking.
    ///
    /// # Errors
    /// When the database or the kernel fails.
    pub fn sweep(&self) -> Result<usize> {
        match FileLock::try_acquire(&self.0.lock, LockMode::Exclusive)? {
            Some(alone) => self.sweep_alone(&alone),
            None => Ok(0),
        }
    }

    /// Sweeps while the lock is held alone.
    pub(super) fn sweep_alone(&self, _alone: &FileLock) -> Result<usize> {
        let all = self.db().read(|connection| {
            let mut all = Vec::new();
            for network in records::networks(connection)? {
                all.extend(records::endpoints(connection, &network.id)?);
            }
            Ok(all)
        })?;
        if all.is_empty() {
            return Ok(0);
        }
        let mut kernel = Netlink::new();
        let interfaces: HashSet<String> = kernel.veths()?.into_iter().map(|link| link.name).collect();
        let mut dead = Vec::new();
        for endpoint in all {
            let interface = endpoint.id.host_interface();
            let earlier_boot = !endpoint.host.starts_with(self.0.root.boot_id());
            let unseen = endpoint.host == self.0.host && !interfaces.contains(&interface);
            // A list that was made while interfaces came and went may lack one, so absence is asked for by name.
            if earlier_boot || unseen && kernel.link(&interface)?.is_none() {
                dead.push(endpoint.id);
            }
        }
        if !dead.is_empty() {
            self.db().write(|tx| dead.iter().try_for_each(|id| records::delete_endpoint(tx, id).map(drop)))?;
        }
        Ok(dead.len())
    }

    /// Deletes bridge, packet filter table, interfaces and records of this root's networks. Containers still connected
    /// lose their connection. IP forwarding stays as it is. Blocking, 20 ms and more.
    ///
    /// # Errors
    /// `Forbidden` without CAP_NET_ADMIN.
    pub fn destroy(&self) -> Result<()> {
        let _alone = self.lock(LockMode::Exclusive)?;
        let mut kernel = Netlink::new();
        let networks = self.db().read(records::networks)?;
        for network in networks.iter().filter(|network| network.driver == Driver::Bridge) {
            for endpoint in self.db().read(|connection| records::endpoints(connection, &network.id))? {
                kernel.delete_link(&endpoint.id.host_interface())?;
                self.release(&endpoint.id)?;
            }
            kernel.delete_link(&self.0.bridge)?;
            self.db().write(|tx| records::set_subnet(tx, &network.id, None))?;
        }
        kernel.delete_table(&self.0.table)?;
        Ok(())
    }

    /// Waits for the network's lock: shared to make an endpoint, exclusive to change what endpoints stand on.
    pub(super) fn lock(&self, mode: LockMode) -> Result<FileLock> {
        FileLock::acquire(&self.0.lock, mode)
    }

    /// Makes what is missing of a bridge network, and returns it with a lock: while that is held, no engine changes it
    /// or takes a record without its interface for dead.
    pub(super) fn ready(&self, kernel: &mut Netlink, network: &NetworkRecord) -> Result<(FileLock, Bridge)> {
        /// Each failure means that somebody deleted the bridge since we made it.
        const ATTEMPTS: usize = 5;
        for _ in 0..ATTEMPTS {
            let connecting = self.lock(LockMode::Shared)?;
            if let Some(bridge) = self.find(kernel, &network.id)? {
                return Ok((connecting, bridge));
            }
            drop(connecting);
            self.make(kernel, &network.id, &self.lock(LockMode::Exclusive)?)?;
        }
        Err(Error::unavailable(format!("something on this host keeps deleting bridge {} or its rules", self.0.bridge)))
    }

    /// Returns the bridge if everything is there. This is what every connection pays: 0.1 ms.
    fn find(&self, kernel: &mut Netlink, network: &NetworkId) -> Result<Option<Bridge>> {
        let Some(subnet) = self.subnet(network)? else { return Ok(None) };
        let Some(bridge) = Bridge::find(kernel, self.identity(network), subnet)? else { return Ok(None) };
        let complete = bridge::is_forwarding()? && kernel.table_is(&self.table(subnet))?;
        Ok(complete.then_some(bridge))
    }

    fn make(&self, kernel: &mut Netlink, network: &NetworkId, alone: &FileLock) -> Result<()> {
        let existing = match self.subnet(network)? {
            Some(subnet) => Bridge::find(kernel, self.identity(network), subnet)?,
            None => None,
        };
        let bridge = match existing {
            Some(bridge) => bridge,
            None => self.make_bridge(kernel, network, alone)?,
        };
        bridge::start_forwarding(&self.0.bridge)?;
        let table = self.table(bridge.subnet);
        if !kernel.table_is(&table)? {
            kernel.replace_table(&table)?;
        }
        Ok(())
    }

    fn make_bridge(&self, kernel: &mut Netlink, network: &NetworkId, alone: &FileLock) -> Result<Bridge> {
        /// Each failure means that another root's engine took the subnet between our choice and our claim.
        const ATTEMPTS: u32 = 8;
        self.sweep_alone(alone)?;
        for attempt in 0..ATTEMPTS {
            let subnet = self.settle_subnet(kernel, network, attempt)?;
            let bridge = Bridge::make(kernel, self.identity(network), subnet)?;
            // Of two claimants the one that claims last sees the other, so never do both keep the same subnet.
            if !self.host_uses(kernel, subnet)? {
                self.reconnect(kernel, network, bridge)?;
                return Ok(bridge);
            }
            kernel.delete_link(&self.0.bridge)?;
        }
        Err(Error::unavailable(format!("other interfaces keep taking the subnet chosen for bridge {}", self.0.bridge)))
    }

    /// Returns the network's subnet, choosing one when it has none that the host leaves to it. The search starts at
    /// number `skip` after the usual start.
    fn settle_subnet(&self, kernel: &mut Netlink, network: &NetworkId, skip: u32) -> Result<Ipv4Subnet> {
        let left_over = match self.subnet(network)? {
            Some(subnet) if !self.host_uses(kernel, subnet)? => return Ok(subnet),
            Some(subnet) => {
                self.check_unused(network, subnet)?;
                None
            }
            None => bridge::adoptable(kernel, &self.0.bridge)?,
        };
        let chosen = match left_over {
            Some(subnet) => subnet,
            None => {
                let in_use = bridge::in_use(kernel, &self.0.bridge, &self.host_dns()?.nameservers())?;
                ipam::choose_subnet(&self.0.config.pools, self.0.start.wrapping_add(skip), &in_use)?
            }
        };
        self.db().write(|tx| records::set_subnet(tx, network, Some(chosen)))?;
        Ok(chosen)
    }

    /// Checks that nothing is connected to a network whose subnet cannot be kept.
    fn check_unused(&self, network: &NetworkId, subnet: Ipv4Subnet) -> Result<()> {
        let endpoints = self.db().read(|connection| records::endpoints(connection, network))?;
        if endpoints.iter().all(|endpoint| endpoint.host != self.0.host) {
            return Ok(());
        }
        Err(Error::conflict(format!(
            "bridge {} must be made again, but the host uses its subnet {subnet} now; stop the containers connected to it",
            self.0.bridge
        )))
    }

    fn subnet(&self, network: &NetworkId) -> Result<Option<Ipv4Subnet>> {
        Ok(self.db().read(|connection| records::find_network(connection, network.as_str()))?.subnet)
    }

    /// Says whether something but our bridge has addresses of the subnet.
    fn host_uses(&self, kernel: &mut Netlink, subnet: Ipv4Subnet) -> Result<bool> {
        Ok(bridge::in_use(kernel, &self.0.bridge, &[])?.near.iter().any(|range| range.overlaps(&subnet)))
    }

    /// Puts interfaces of living endpoints on the bridge that are not on it.
    fn reconnect(&self, kernel: &mut Netlink, network: &NetworkId, bridge: Bridge) -> Result<()> {
        let endpoints = self.db().read(|connection| records::endpoints(connection, network))?;
        if endpoints.is_empty() {
            return Ok(());
        }
        let ours: HashSet<String> = endpoints.iter().map(|endpoint| endpoint.id.host_interface()).collect();
        for link in kernel.veths()? {
            if ours.contains(&link.name) && link.master != Some(bridge.index) {
                kernel.set_master(link.index, bridge.index)?;
            }
        }
        Ok(())
    }

    fn identity<'a>(&'a self, network: &'a NetworkId) -> Identity<'a> {
        Identity { name: &self.0.bridge, network }
    }

    fn table(&self, subnet: Ipv4Subnet) -> Table {
        firewall::table(&self.0.table, &self.0.bridge, subnet)
    }
}
