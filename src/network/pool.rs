//! Network namespaces that are connected before they are needed, for build steps.
//!
//! A namespace is used by one step after another: making one takes 1.5 ms and the kernel 20 ms of work to remove it.
//! Only a namespace a step left as it found it goes back: no sockets, not even closed connections that still wait
//! (TIME_WAIT), because a port they hold would be missing to the next step.

use std::fs::File;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt as _;
use std::sync::{Arc, Mutex, MutexGuard};

use super::{Attach, DEFAULT, Endpoint, Network, namespace};
use crate::error::{Result, ResultExt as _};

/// Connected network namespaces in waiting. Cloning gives another handle to the same pool; dropping the last releases
/// them.
#[derive(Clone, Debug)]
pub struct Pool(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    network: Network,
    size: usize,
    idle: Mutex<Vec<Ready>>,
}

#[derive(Debug)]
struct Ready {
    netns: OwnedFd,
    endpoint: Endpoint,
    /// The namespace's `/proc/net/sockstat` and `sockstat6`: an open file keeps showing the namespace it was opened in.
    sockets: Vec<File>,
}

/// A network namespace on loan. Unless [`Self::recycle`]d it is given up when dropped, which writes to the database:
/// drop it on the blocking pool.
#[derive(Debug)]
pub struct PooledNetns {
    ready: Option<Ready>,
    pool: Pool,
}

impl Pool {
    /// Makes a pool that keeps at most `size` namespaces, connected to the network [`DEFAULT`].
    #[must_use]
    pub fn new(network: Network, size: usize) -> Self {
        Self(Arc::new(Inner { network, size, idle: Mutex::default() }))
    }

    /// Hands out a namespace with loopback up and `eth0` connected. Blocking: 0.1 ms when one is waiting, else 1.5 ms.
    ///
    /// # Errors
    /// As [`Network::connect`].
    pub fn get(&self) -> Result<PooledNetns> {
        let waiting = self.idle().pop();
        let on_loan = |ready| PooledNetns { ready: Some(ready), pool: self.clone() };
        match waiting {
            Some(ready) => {
                let netns = on_loan(ready);
                self.0.network.prepare()?;
                Ok(netns)
            }
            None => self.make().map(on_loan),
        }
    }

    /// Makes namespaces until `count` (at most the pool's size) are waiting. Blocking: run it in the background as soon
    /// as it is known that steps will come.
    ///
    /// # Errors
    /// As [`Network::connect`].
    pub fn fill(&self, count: usize) -> Result<()> {
        while self.idle().len() < count.min(self.0.size) {
            let ready = self.make()?;
            self.idle().push(ready);
        }
        Ok(())
    }

    fn make(&self) -> Result<Ready> {
        const OWNER: &str = "build";
        let netns = namespace::create()?;
        let sockets = namespace::within(netns.as_fd(), || {
            let files: &[_] = if namespace::has_ipv6() { &["sockstat", "sockstat6"] } else { &["sockstat"] };
            let paths = files.iter().map(|name| format!("/proc/thread-self/net/{name}"));
            paths.map(|path| File::open(&path).context(|| format!("open {path}"))).collect()
        })?;
        let endpoint = self.0.network.connect(&Attach {
            network: DEFAULT,
            netns: netns.as_fd(),
            interface: "eth0",
            owner: OWNER,
            name: OWNER,
            mac: None,
            address: None,
        })?;
        Ok(Ready { netns, endpoint, sockets })
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Ready>> {
        self.0.idle.lock().expect("no panic happens while the lock is held")
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let idle = self.idle.get_mut().expect("no panic happens while the lock is held");
        for ready in idle.drain(..) {
            give_up(&self.network, ready);
        }
    }
}

/// Closes the namespace and frees its address.
fn give_up(network: &Network, ready: Ready) {
    let Ready { endpoint, netns, sockets } = ready;
    drop((netns, sockets));
    // What cannot be released now is swept later: the record's interface is gone.
    let _ = network.release(&endpoint.id);
}

impl PooledNetns {
    /// Returns the namespace.
    #[must_use]
    pub fn netns(&self) -> BorrowedFd<'_> {
        self.ready().netns.as_fd()
    }

    /// Returns its connection.
    #[must_use]
    pub fn endpoint(&self) -> &Endpoint {
        &self.ready().endpoint
    }

    /// Puts the namespace back for another step, if no socket is left in it and the pool is not full; else gives it up.
    ///
    /// Only for a step whose processes have all ended and had neither CAP_NET_ADMIN nor CAP_SYS_ADMIN: those could have
    /// changed what is not looked at here.
    pub fn recycle(mut self) {
        if self.ready().is_unused() {
            let mut idle = self.pool.idle();
            if idle.len() < self.pool.0.size {
                idle.extend(self.ready.take());
            }
        }
    }

    fn ready(&self) -> &Ready {
        self.ready.as_ref().expect("it is taken only when the value goes")
    }
}

impl Drop for PooledNetns {
    fn drop(&mut self) {
        if let Some(ready) = self.ready.take() {
            give_up(&self.pool.0.network, ready);
        }
    }
}

impl Ready {
    fn is_unused(&self) -> bool {
        self.sockets.iter().all(|file| {
            let mut buffer = [0; 1024];
            let text = file.read_at(&mut buffer, 0).ok().and_then(|len| std::str::from_utf8(&buffer[..len]).ok());
            text.is_some_and(no_sockets)
        })
    }
}

/// Reads `/proc/net/sockstat`, lines like `TCP: inuse 0 orphan 0 tw 0 alloc 3 mem 0`: the numbers of sockets in use and
/// of connections in TIME_WAIT are the namespace's, the others the whole machine's.
///
/// The line `sockets: used 1` is the namespace's, too, but says nothing: it counts netlink sockets until some
/// milliseconds after they were closed, and resolving a name opens one.
fn no_sockets(sockstat: &str) -> bool {
    let words: Vec<&str> = sockstat.split_whitespace().collect();
    let mut counts = words.windows(2).filter(|pair| matches!(pair[0], "inuse" | "tw")).map(|pair| pair[1]).peekable();
    counts.peek().is_some() && counts.all(|count| count == "0")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_and_connections_that_still_wait_are_seen() {
        let text = |udp, tw| {
            let tcp = format!("TCP: inuse 0 orphan 7 tw {tw} alloc 9 mem 1");
            format!("sockets: used 3\n{tcp}\nUDP: inuse {udp} mem 0\nRAW: inuse 0\nFRAG: inuse 0 memory 0\n")
        };
        assert!(no_sockets(&text(0, 0)));
        assert!(!no_sockets(&text(1, 0)));
        assert!(!no_sockets(&text(0, 10)));
        assert!(!no_sockets(""));
    }
}
