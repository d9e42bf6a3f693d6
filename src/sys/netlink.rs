//! Links, IPv4 addresses and IPv4 routes of one network namespace, by rtnetlink.
//!
//! Each method is one request to the kernel. What networks are made of these is decided in `network`; packet filters
//! are in [`super::netlink_nft`]. It deliberately knows bridges and virtual Ethernet pairs only.

use std::ffi::CString;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsRawFd as _, BorrowedFd};

use netlink_bindings::rt_addr::{self, Ifaddrmsg};
use netlink_bindings::rt_link::{self, Ifinfomsg, IterableLinkAttrs, LinkinfoMemberDataMsg, PushLinkAttrs};
use netlink_bindings::rt_route::{self, Rtmsg};
use netlink_bindings::traits::{NetlinkRequest, Pusher as _};
use netlink_bindings::utils::{finalize_nested_header, push_header, push_nested_header};
use netlink_socket2::{NetlinkSocket, ReplyError};

use crate::error::{Error, Kind, Result};

/// `IFF_UP`, the administrative state of a link.
const UP: u32 = libc::IFF_UP as u32;
/// `RTEXT_FILTER_SKIP_STATS`: leave the counters out of a link's description.
const SKIP_STATS: u32 = 1 << 3;
/// `IPV4_DEVCONF_ARP_NOTIFY` (linux/ip.h): announce addresses when the link comes up or changes its hardware address.
const ARP_NOTIFY: u16 = 22;
/// `BR_STATE_FORWARDING` (linux/if_bridge.h).
const FORWARDING: u8 = 3;
/// `IF_OPER_UP` (linux/if.h).
const OPER_UP: u8 = 6;
/// `IFLA_INFO_DATA` and, inside it, `VETH_INFO_PEER` (linux/if_link.h, linux/veth.h): the generated encoder lacks veth.
const INFO_DATA: u16 = 2;
const VETH_INFO_PEER: u16 = 1;

/// A handle on a network namespace: that of the thread which makes the first request. Later requests may come from any
/// thread.
pub struct Netlink {
    pub(super) socket: NetlinkSocket,
}

/// One network interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// The number the namespace knows it by.
    pub index: u32,
    /// The name.
    pub name: String,
    /// What drives it ("bridge", "veth"); empty for hardware and loopback.
    pub kind: String,
    /// A note somebody attached to it; empty as a rule.
    pub alias: String,
    /// Bytes of payload a frame may carry.
    pub mtu: u32,
    /// Whether it is administratively up.
    pub up: bool,
    /// Whether the kernel sends packets by it (`IF_OPER_UP`): up, connected, and past the moment the kernel needs to
    /// notice.
    pub running: bool,
    /// The bridge it is a port of.
    pub master: Option<u32>,
    /// Whether it is a bridge port that passes frames on.
    pub forwarding: bool,
}

/// A virtual Ethernet pair to be made: one end on a bridge here, the other in another namespace.
#[derive(Clone, Copy, Debug)]
pub struct Veth<'a> {
    /// The name of the end that stays.
    pub name: &'a str,
    /// The hardware address of that end. One the kernel chose would be changed by systemd's udev.
    pub mac: [u8; 6],
    /// The bridge that end becomes a port of, by index.
    pub master: u32,
    /// Bytes of payload a frame may carry.
    pub mtu: u32,
    /// The name of the other end.
    pub peer_name: &'a str,
    /// The hardware address of the other end.
    pub peer_mac: [u8; 6],
    /// The network namespace the other end is born in.
    pub peer_netns: BorrowedFd<'a>,
}

/// An IPv4 address of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    /// The interface's index.
    pub link: u32,
    /// The address.
    pub address: Ipv4Addr,
    /// The length of its network's prefix in bits.
    pub prefix_len: u8,
}

/// An IPv4 route of any table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// The lowest address of the destination; 0.0.0.0 with a prefix of 0 for a default route.
    pub destination: Ipv4Addr,
    /// The length of the destination's prefix in bits.
    pub prefix_len: u8,
    /// The interface packets leave by, where there is exactly one.
    pub link: Option<u32>,
    /// Whether the destination is on the interface's own network or on this host, not behind a router.
    pub direct: bool,
    /// The metric; lower wins.
    pub metric: u32,
}

impl Default for Netlink {
    fn default() -> Self {
        Self::new()
    }
}

impl std::fmt::Debug for Netlink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Netlink")
    }
}

impl Netlink {
    /// Makes a handle. Nothing is opened until the first request.
    #[must_use]
    pub fn new() -> Self {
        Self { socket: NetlinkSocket::new() }
    }

    /// Returns the interface of a name, if there is one.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn link(&mut self, name: &str) -> Result<Option<Link>> {
        let mut request = rt_link::Request::new().op_getlink_do(&Ifinfomsg::new());
        request.encode().push_ifname(&c_name(name)?).push_ext_mask(SKIP_STATS);
        self.one_link(&request)
    }

    /// Returns the interface of an index, if there is one.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn link_at(&mut self, index: u32) -> Result<Option<Link>> {
        let mut request = rt_link::Request::new().op_getlink_do(&of_index(index));
        request.encode().push_ext_mask(SKIP_STATS);
        self.one_link(&request)
    }

    fn one_link(&mut self, request: &rt_link::OpGetlinkDo<'_>) -> Result<Option<Link>> {
        let mut reply = self.socket.request(request)?;
        Ok(present(reply.recv_one())?.map(|(header, attributes)| describe(&header, &attributes)))
    }

    /// Returns all virtual Ethernet interfaces.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn veths(&mut self) -> Result<Vec<Link>> {
        let mut request = rt_link::Request::new().op_getlink_dump(&Ifinfomsg::new());
        request.encode().push_ext_mask(SKIP_STATS).nested_linkinfo().push_kind(c"veth").end_nested();
        let mut links = self.dump(&request, |(header, attributes)| Some(describe(&header, &attributes)))?;
        // Kernels that do not know the filter return everything.
        links.retain(|link| link.kind == "veth");
        Ok(links)
    }

    /// Makes a bridge that is down.
    ///
    /// # Errors
    /// `Conflict` when an interface has the name; `Forbidden` without CAP_NET_ADMIN.
    pub fn add_bridge(&mut self, name: &str, mac: [u8; 6], mtu: u32) -> Result<()> {
        let mut request = rt_link::Request::new().set_create().set_excl().op_newlink_do(&Ifinfomsg::new());
        request
            .encode()
            .push_ifname(&c_name(name)?)
            .push_address(&mac)
            .push_mtu(mtu)
            .nested_linkinfo()
            .push_kind(c"bridge")
            .end_nested();
        self.acknowledged(&request)
    }

    /// Makes a virtual Ethernet pair. The end that stays is up, the other is down until its namespace brings it up.
    ///
    /// The pair lives as long as both namespaces. Each end has one queue: more would cost a directory of sysfs each on
    /// machines with many cores, and veth uses them for XDP only.
    ///
    /// # Errors
    /// `Conflict` when either name is taken; `Forbidden` without CAP_NET_ADMIN here and there.
    pub fn add_veth(&mut self, veth: &Veth<'_>) -> Result<()> {
        let peer_name = c_name(veth.peer_name)?;
        let netns = u32::try_from(veth.peer_netns.as_raw_fd())
            .expect("a borrowed file descriptor is open, so it is not negative");
        let mut request = rt_link::Request::new().set_create().set_excl().op_newlink_do(&up_link(0));
        let mut info = request
            .encode()
            .push_ifname(&c_name(veth.name)?)
            .push_address(&veth.mac)
            .push_mtu(veth.mtu)
            .push_master(veth.master)
            .push_num_tx_queues(1)
            .push_num_rx_queues(1)
            .nested_linkinfo()
            .push_kind(c"veth");
        let buffer = info.as_vec_mut();
        let data = push_nested_header(buffer, INFO_DATA);
        let peer = push_nested_header(buffer, VETH_INFO_PEER);
        buffer.extend(Ifinfomsg::new().as_slice());
        PushLinkAttrs::new(&mut *buffer)
            .push_ifname(&peer_name)
            .push_mtu(veth.mtu)
            .push_address(&veth.peer_mac)
            .push_num_tx_queues(1)
            .push_num_rx_queues(1)
            .push_net_ns_fd(netns)
            .end_nested();
        finalize_nested_header(buffer, peer);
        finalize_nested_header(buffer, data);
        info.end_nested();
        self.acknowledged(&request)
    }

    /// Brings an interface up. From then on it announces its IPv4 addresses when [`Self::announce`] asks for it.
    ///
    /// # Errors
    /// `NotFound` when there is no such interface; `Forbidden` without CAP_NET_ADMIN.
    pub fn set_up(&mut self, index: u32) -> Result<()> {
        let mut notify = Vec::new();
        push_header(&mut notify, ARP_NOTIFY, 4);
        notify.extend(1_u32.to_ne_bytes());
        let mut request = rt_link::Request::new().op_setlink_do(&up_link(index));
        request.encode().nested_af_spec().nested_inet().push_conf(&notify).end_nested().end_nested();
        self.acknowledged(&request)
    }

    /// Sends a gratuitous ARP for the interface's addresses, so that neighbours forget who had them before.
    ///
    /// The kernel does that when the hardware address of an interface is set, even to what it was; so no packet socket
    /// is needed, whose closing would wait for an RCU grace period (10 ms and more).
    ///
    /// # Errors
    /// `NotFound` when there is no such interface; `Forbidden` without CAP_NET_ADMIN.
    pub fn announce(&mut self, index: u32, mac: [u8; 6]) -> Result<()> {
        let mut request = rt_link::Request::new().op_setlink_do(&of_index(index));
        request.encode().push_address(&mac);
        self.acknowledged(&request)
    }

    /// Attaches a note to an interface, of at most 255 bytes.
    ///
    /// # Errors
    /// `NotFound` when there is no such interface; `Forbidden` without CAP_NET_ADMIN.
    pub fn set_alias(&mut self, index: u32, alias: &str) -> Result<()> {
        let mut request = rt_link::Request::new().op_setlink_do(&of_index(index));
        request.encode().push_ifalias_bytes(alias.as_bytes());
        self.acknowledged(&request)
    }

    /// Makes an interface a port of a bridge.
    ///
    /// # Errors
    /// `NotFound` when there is no such interface; `Forbidden` without CAP_NET_ADMIN.
    pub fn set_master(&mut self, index: u32, bridge: u32) -> Result<()> {
        let mut request = rt_link::Request::new().op_setlink_do(&of_index(index));
        request.encode().push_master(bridge);
        self.acknowledged(&request)
    }

    /// Deletes an interface, and with a virtual Ethernet interface its peer; says whether there was one.
    ///
    /// Takes 20 ms and more, because the kernel waits until nobody uses the interface; an interface whose namespace
    /// dies goes without anybody waiting.
    ///
    /// # Errors
    /// `Forbidden` without CAP_NET_ADMIN.
    pub fn delete_link(&mut self, name: &str) -> Result<bool> {
        let mut request = rt_link::Request::new().op_dellink_do(&Ifinfomsg::new());
        request.encode().push_ifname(&c_name(name)?);
        Ok(present(self.acknowledged(&request))?.is_some())
    }

    /// Returns the IPv4 addresses of all interfaces.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn addresses(&mut self) -> Result<Vec<Address>> {
        let request = rt_addr::Request::new().op_getaddr_dump(&Ifaddrmsg { ifa_family: INET, ..Default::default() });
        self.dump(&request, |(header, attributes)| {
            let address = attributes.get_local().or_else(|_| attributes.get_address()).ok()?;
            Some(Address { link: header.ifa_index, address: v4(address)?, prefix_len: header.ifa_prefixlen })
        })
    }

    /// Gives an interface an address, which also makes the route to the address's network.
    ///
    /// # Errors
    /// `Conflict` when it has the address; `Forbidden` without CAP_NET_ADMIN.
    pub fn add_address(&mut self, wanted: &Address) -> Result<()> {
        let header = Ifaddrmsg {
            ifa_family: INET,
            ifa_prefixlen: wanted.prefix_len,
            ifa_index: wanted.link,
            ..Default::default()
        };
        let broadcast = wanted.address.to_bits() | u32::MAX.checked_shr(wanted.prefix_len.into()).unwrap_or(0);
        let mut request = rt_addr::Request::new().set_create().set_excl().op_newaddr_do(&header);
        request.encode().push_local(wanted.address.into()).push_broadcast(Ipv4Addr::from_bits(broadcast));
        self.acknowledged(&request)
    }

    /// Returns the IPv4 routes of all tables.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn routes(&mut self) -> Result<Vec<Route>> {
        let request = rt_route::Request::new().op_getroute_dump(&Rtmsg { rtm_family: INET, ..Default::default() });
        self.dump(&request, |(header, attributes)| {
            Some(Route {
                destination: attributes.get_dst().ok().and_then(v4).unwrap_or(Ipv4Addr::UNSPECIFIED),
                prefix_len: header.rtm_dst_len,
                link: attributes.get_oif().ok(),
                direct: header.rtm_scope >= libc::RT_SCOPE_LINK,
                metric: attributes.get_priority().unwrap_or(0),
            })
        })
    }

    /// Makes the route to everything else.
    ///
    /// # Errors
    /// `Conflict` when there is one; `Forbidden` without CAP_NET_ADMIN.
    pub fn add_default_route(&mut self, gateway: Ipv4Addr, link: u32) -> Result<()> {
        let header = Rtmsg {
            rtm_family: INET,
            rtm_table: libc::RT_TABLE_MAIN,
            rtm_protocol: libc::RTPROT_BOOT,
            rtm_scope: libc::RT_SCOPE_UNIVERSE,
            rtm_type: libc::RTN_UNICAST,
            ..Default::default()
        };
        let mut request = rt_route::Request::new().set_create().set_excl().op_newroute_do(&header);
        request.encode().push_gateway(gateway.into()).push_oif(link);
        self.acknowledged(&request)
    }

    fn acknowledged(&mut self, request: &impl NetlinkRequest) -> Result<()> {
        Ok(self.socket.request(request)?.recv_ack()?)
    }

    /// Sends a request that lists things and collects what `keep` makes of each.
    pub(super) fn dump<R: NetlinkRequest, T>(
        &mut self,
        request: &R,
        mut keep: impl FnMut(R::ReplyType<'_>) -> Option<T>,
    ) -> Result<Vec<T>> {
        let mut reply = self.socket.request(request)?;
        let mut things = Vec::new();
        while let Some(thing) = reply.recv() {
            things.extend(keep(thing?));
        }
        Ok(things)
    }
}

const INET: u8 = libc::AF_INET as u8;

fn v4(address: IpAddr) -> Option<Ipv4Addr> {
    match address {
        IpAddr::V4(address) => Some(address),
        IpAddr::V6(_) => None,
    }
}

fn of_index(index: u32) -> Ifinfomsg {
    Ifinfomsg { ifi_index: index.cast_signed(), ..Default::default() }
}

fn up_link(index: u32) -> Ifinfomsg {
    Ifinfomsg { ifi_flags: UP, ifi_change: UP, ..of_index(index) }
}

/// Checks what the kernel checks (`dev_valid_name`), so that a wrong name gets a clear error.
pub(super) fn c_name(name: &str) -> Result<CString> {
    let valid = (1..=15).contains(&name.len())
        && !matches!(name, "." | "..")
        && !name.bytes().any(|byte| matches!(byte, b'/' | b':' | 0) || byte.is_ascii_whitespace());
    let name_or_error = if valid { CString::new(name).ok() } else { None };
    name_or_error.ok_or_else(|| {
        Error::invalid(format!("invalid interface name {name:?}: up to 15 characters without spaces, `/` and `:`"))
    })
}

fn describe(header: &Ifinfomsg, attributes: &IterableLinkAttrs<'_>) -> Link {
    let info = attributes.get_linkinfo().ok();
    let text = |text: &std::ffi::CStr| text.to_string_lossy().into_owned();
    let forwarding = match info.as_ref().and_then(|info| info.get_slave_data().ok()) {
        Some(LinkinfoMemberDataMsg::Bridge(port)) => port.get_state().is_ok_and(|state| state == FORWARDING),
        _ => false,
    };
    Link {
        index: header.ifi_index.cast_unsigned(),
        name: attributes.get_ifname().map(text).unwrap_or_default(),
        alias: attributes.get_ifalias().map(text).unwrap_or_default(),
        kind: info.and_then(|info| info.get_kind().ok().map(text)).unwrap_or_default(),
        mtu: attributes.get_mtu().unwrap_or(0),
        up: header.ifi_flags & UP != 0,
        running: attributes.get_operstate().is_ok_and(|state| state == OPER_UP),
        master: attributes.get_master().ok(),
        forwarding,
    }
}

/// Turns "no such thing" into `None`.
pub(super) fn present<T>(result: Result<T, impl Into<Error>>) -> Result<Option<T>> {
    match result.map_err(Into::into) {
        Ok(thing) => Ok(Some(thing)),
        Err(error) if error.kind() == Kind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

impl From<ReplyError> for Error {
    /// The kernel's error number decides the kind; its own explanation, where it gives one, is the text.
    fn from(error: ReplyError) -> Self {
        let explanation = error
            .ext_ack()
            .and_then(|details| Some(format!(" ({})", details.get_msg().ok()?.to_string_lossy())))
            .unwrap_or_default();
        let error = std::io::Error::from(error);
        let kind = match error.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => Kind::Forbidden,
            Some(libc::EEXIST) => Kind::Conflict,
            Some(libc::ENODEV | libc::ENOENT | libc::ENXIO) => Kind::NotFound,
            Some(libc::EOPNOTSUPP | libc::EPROTONOSUPPORT | libc::EAFNOSUPPORT) => Kind::Unsupported,
            Some(libc::ENOBUFS | libc::ENOMEM) => Kind::Exhausted,
            _ => Kind::Internal,
        };
        Self::new(kind, format!("{}{explanation}", Self::from(error)))
    }
}
