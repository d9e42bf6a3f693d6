//! A small world for each test: a host and an outside, each a network namespace of its own, so that tests run in
//! parallel, touch nothing of the machine and leave nothing.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use super::super::*;
use crate::sys::netlink::{Address, Veth};
use crate::task;

/// The host's address towards the outside, and the outside's.
pub(super) const HOST: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
pub(super) const OUTSIDE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 2);

/// Longer than anything takes that works at the first attempt, shorter than the second after which TCP and ARP try
/// again: for calls in which no packet may be lost, and for those that must fail.
pub(super) const AT_ONCE: Duration = Duration::from_millis(900);

/// For calls that must succeed, also on a machine that is busy with other things.
pub(super) const SOON: Duration = Duration::from_secs(10);

pub(super) struct World {
    pub outside: OwnedFd,
    root: tempfile::TempDir,
}

/// Runs a test on a thread of the world's host. Skips when not root.
pub(super) fn on_host(test: impl FnOnce(&World) + Send + 'static) {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: needs root, to make network namespaces");
        return;
    }
    let host = namespace::create().unwrap();
    namespace::within(host.as_fd(), move || {
        let world = World { outside: namespace::create().unwrap(), root: tempfile::tempdir().unwrap() };
        world.connect_outside(&mut Netlink::new());
        test(&world);
        Ok(())
    })
    .unwrap();
}

impl World {
    /// The host's way out is a bridge with the outside as its only port.
    fn connect_outside(&self, kernel: &mut Netlink) {
        kernel.add_bridge("uplink", MacAddress::random().unwrap().bytes(), 1450).unwrap();
        let uplink = kernel.link("uplink").unwrap().unwrap().index;
        let address = |link, address| Address { link, address, prefix_len: 24 };
        kernel.add_address(&address(uplink, HOST)).unwrap();
        kernel.set_up(uplink).unwrap();
        kernel
            .add_veth(&Veth {
                name: "port",
                mac: MacAddress::random().unwrap().bytes(),
                master: uplink,
                mtu: 1450,
                peer_name: "eth0",
                peer_mac: MacAddress::random().unwrap().bytes(),
                peer_netns: self.outside.as_fd(),
            })
            .unwrap();
        kernel.add_default_route(OUTSIDE, uplink).unwrap();
        self.outside(move || {
            let mut kernel = Netlink::new();
            let eth0 = kernel.link("eth0").unwrap().unwrap().index;
            kernel.add_address(&address(eth0, OUTSIDE)).unwrap();
            kernel.set_up(eth0).unwrap();
        });
        until("the uplink passes packets", || {
            kernel.link("port").unwrap().unwrap().forwarding && kernel.link("uplink").unwrap().unwrap().running
        });
    }

    /// Runs an operation in the outside.
    pub(super) fn outside<T: Send + 'static>(&self, operation: impl FnOnce() -> T + Send + 'static) -> T {
        namespace::within(self.outside.as_fd(), || Ok(operation())).unwrap()
    }

    /// Opens the world's root as one more engine does.
    pub(super) fn network(&self) -> Network {
        self.network_with(Config::default())
    }

    pub(super) fn network_with(&self, config: Config) -> Network {
        open(self.root.path(), config)
    }
}

pub(super) fn open(path: &Path, config: Config) -> Network {
    Network::open(Root::open(path, &[SCHEMA]).unwrap(), Clock::system(), config).unwrap()
}

/// A network namespace with a connection, as a container has it.
pub(super) struct Container {
    pub netns: OwnedFd,
    pub endpoint: Endpoint,
}

pub(super) fn attach<'a>(netns: BorrowedFd<'a>, owner: &'a str) -> Attach<'a> {
    Attach { network: "bridge", netns, interface: "eth0", owner, name: owner, mac: None, address: None }
}

impl Container {
    pub(super) fn start(network: &Network) -> Self {
        Self::try_start(network, None).unwrap()
    }

    pub(super) fn try_start(network: &Network, address: Option<Ipv4Addr>) -> Result<Self> {
        let netns = namespace::create()?;
        let endpoint = network.connect(&Attach { address, ..attach(netns.as_fd(), "test") })?;
        Ok(Self { netns, endpoint })
    }

    pub(super) fn run<T: Send + 'static>(&self, operation: impl FnOnce() -> T + Send + 'static) -> T {
        namespace::within(self.netns.as_fd(), || Ok(operation())).unwrap()
    }

    pub(super) fn ip(&self) -> IpAddr {
        self.endpoint.address.into()
    }

    /// Says whether the container reaches a server, and as whom the server sees it.
    pub(super) fn calls(&self, server: &Server) -> Option<IpAddr> {
        self.calls_within(SOON, server)
    }

    pub(super) fn calls_within(&self, patience: Duration, server: &Server) -> Option<IpAddr> {
        let address = server.address;
        self.run(move || call(address, patience))
    }
}

/// A TCP server that tells each caller the address it sees.
pub(super) struct Server {
    pub address: SocketAddr,
}

impl Server {
    /// Starts one in the calling thread's network namespace. It ends with the test's process.
    pub(super) fn start(ip: IpAddr) -> Self {
        let listener = TcpListener::bind((ip, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        task::thread("test-server", move || {
            while let Ok((mut stream, peer)) = listener.accept() {
                stream.write_all(peer.ip().to_string().as_bytes()).unwrap();
            }
        })
        .unwrap();
        Self { address }
    }
}

/// Calls a [`Server`] from the calling thread's network namespace.
pub(super) fn call(address: SocketAddr, patience: Duration) -> Option<IpAddr> {
    let mut stream = TcpStream::connect_timeout(&address, patience).ok()?;
    stream.set_read_timeout(Some(patience)).unwrap();
    let mut seen = String::new();
    stream.read_to_string(&mut seen).ok()?;
    seen.parse().ok()
}

/// Waits for something to become true; the test fails when it does not within ten seconds.
pub(super) fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !condition() {
        assert!(begin.elapsed() < Duration::from_secs(10), "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
