//! One run of a container: from its records to a process, and from its end to a record.

use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tokio::net::unix::pipe;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::Desk;
use super::hub::{self, Framing, Hub, Input};
use crate::container::config::Network as Mode;
use crate::container::log::{LogWriter, Output};
use crate::container::record::{self, Address, Exited, Record, State};
use crate::container::{Containers, spec};
use crate::error::{Error, Result, ResultExt as _};
use crate::network::{self, Attach, Endpoint, Network, namespace};
use crate::sandbox::{self, Sandbox};
use crate::store::{Access, Lease};
use crate::task::{self, Tasks};

/// How long output is read after the container's last process has ended. What holds a stream open longer is no process of
/// the container's.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// A run about to begin: clients can be attached.
pub(super) struct Prepared {
    hub: Hub,
    input: mpsc::Receiver<Input>,
}

/// A run that has begun.
pub(super) struct Running {
    containers: Containers,
    sandbox: Arc<Sandbox>,
    hub: Hub,
    started_ns: i64,
    endpoint: Option<Endpoint>,
    pumps: Tasks,
}

/// A run that has ended.
pub(super) struct Ended {
    pub(super) exited: Exited,
    /// Ends when clients have got all output.
    pub(super) closing: JoinHandle<()>,
    endpoint: Option<Endpoint>,
}

/// Opens the log and makes the place where clients and container meet.
pub(super) fn prepare(containers: &Containers, record: &Record) -> Result<Prepared> {
    let io = &record.config.io;
    let log = io.log.map(|bounds| LogWriter::open(&containers.files(&record.id).log(), bounds)).transpose()?;
    let framing = if io.tty { Framing::Raw } else { Framing::Frames };
    // Whoever leaves a terminal may come back to it.
    let stdin_once = io.stdin_once && !io.tty;
    let (hub, input) = Hub::new(framing, stdin_once, log, containers.0.clock);
    Ok(Prepared { hub, input })
}

impl Prepared {
    pub(super) fn hub(&self) -> &Hub {
        &self.hub
    }

    /// Starts the process and writes that down. A start by a user counts restarts from 0 again.
    pub(super) async fn start(
        self,
        containers: &Containers,
        lease: &Lease,
        record: &Record,
        is_first: bool,
    ) -> Result<Running> {
        let (copy, lease, owned) = (containers.clone(), lease.clone(), record.clone());
        let begun = task::blocking(move || begin(&copy, &lease, &owned, is_first)).await;
        let Begun { mut sandbox, endpoint, started_ns } = match begun {
            Ok(begun) => begun,
            Err(error) => {
                self.hub.close(Duration::ZERO).await;
                return Err(error);
            }
        };
        let pumps = Tasks::new();
        let streams = sandbox.take_streams();
        let (stdin, outputs) = match sandbox.terminal() {
            Some(terminal) => {
                let output = hub::receiver(terminal.try_clone()?)?;
                (Some(terminal.try_clone()?), vec![(output, Output::Stdout)])
            }
            None => {
                let outputs = [(streams.stdout, Output::Stdout), (streams.stderr, Output::Stderr)];
                let outputs = outputs.into_iter().filter_map(|(fd, output)| Some((fd?, output)));
                let outputs = outputs.map(|(fd, output)| Ok((hub::receiver(fd)?, output))).collect::<Result<_>>()?;
                (streams.stdin, outputs)
            }
        };
        for (from, output) in outputs {
            let hub = self.hub.clone();
            pumps.spawn(async move { hub.pump(from, output).await });
        }
        let stdin: Option<pipe::Sender> = stdin.map(hub::sender).transpose()?;
        let _fed: Option<JoinHandle<()>> = stdin.map(|to| Tasks::new().spawn(hub::feed(self.input, to)));
        let (containers, sandbox) = (containers.clone(), Arc::new(sandbox));
        Ok(Running { containers, sandbox, hub: self.hub, started_ns, endpoint, pumps })
    }
}

impl Running {
    /// Returns what engines use of a run.
    pub(super) fn handle(&self) -> (Arc<Sandbox>, Hub) {
        (Arc::clone(&self.sandbox), self.hub.clone())
    }

    /// Waits until the container has ended and its output has been read.
    pub(super) async fn finish(self, desk: &Desk) -> Result<Ended> {
        let exit = self.sandbox.wait().await?;
        let finished_ns = self.containers.now_ns();
        // A client that does not read holds its pump up; it is let go then.
        if !self.pumps.shutdown(LAST_WORDS).await {
            self.hub.disconnect();
            self.pumps.shutdown(LAST_WORDS).await;
        }
        *desk.current.lock().unwrap_or_else(PoisonError::into_inner) = None;
        let hub = self.hub.clone();
        let closing = Tasks::new().spawn(async move { hub.close(super::GRACE).await });
        let exited = Exited {
            code: exit.code(),
            started_ns: self.started_ns,
            finished_ns,
            oom_killed: exit.is_oom_killed(),
            memory_peak_bytes: exit.usage.as_ref().and_then(|usage| usage.memory_peak_bytes),
            error: exit.left_over.unwrap_or_default(),
        };
        Ok(Ended { exited, closing, endpoint: self.endpoint })
    }
}

impl Ended {
    /// Frees the container's address. An address that cannot be released is found unused by the next who looks for one.
    pub(super) async fn release(&self, containers: &Containers) {
        if let Some(endpoint) = &self.endpoint {
            let (network, id) = (containers.0.network.clone(), endpoint.id.clone());
            let _ = task::blocking(move || network.release(&id)).await;
        }
    }
}

struct Begun {
    sandbox: Sandbox,
    endpoint: Option<Endpoint>,
    started_ns: i64,
}

/// Makes root file system, network and process, and records what was made.
fn begin(containers: &Containers, lease: &Lease, record: &Record, is_first: bool) -> Result<Begun> {
    let network = &containers.0.network;
    let (connected, rootfs) = task::beside("network", || connect(network, record), || mount(containers, lease, record))
        .context(|| "start a thread")?;
    let (netns, endpoint) = connected?;
    let made = rootfs
        .and_then(|rootfs| {
            spec::sandbox(record, &containers.files(&record.id), rootfs, netns, network, endpoint.as_ref())
        })
        .and_then(|spec| sandbox::spawn(spec, spec::stdio(&record.config)));
    let sandbox = match (made, &endpoint) {
        (Ok(sandbox), _) => sandbox,
        (Err(error), None) => return Err(error),
        (Err(error), Some(endpoint)) => return Err(error.and_cleanup(network.release(&endpoint.id))),
    };
    let started_ns = containers.now_ns();
    let state = State::Running { pid: sandbox.pid().as_raw_nonzero().get(), started_ns };
    let address = endpoint.as_ref().map(address);
    containers.db().write(|tx| {
        if is_first {
            record::set_restarts(tx, &record.id, 0)?;
        }
        record::set_address(tx, &record.id, address.as_ref())?;
        record::set_state(tx, &record.id, &state)
    })?;
    Ok(Begun { sandbox, endpoint, started_ns })
}

fn mount(containers: &Containers, lease: &Lease, record: &Record) -> Result<OwnedFd> {
    let layer = containers.store().active(lease, record.layer)?;
    let layer = layer.ok_or_else(|| Error::corrupt(format!("the layer of container {} is missing", record.name)))?;
    // What a container that is removed at its end has written need not reach the disk.
    let access = if record.config.host.auto_remove { Access::Volatile } else { Access::Durable };
    layer.rootfs()?.mount(access)
}

fn connect(network: &Network, record: &Record) -> Result<(Option<OwnedFd>, Option<Endpoint>)> {
    if record.config.host.network == Mode::Host {
        return Ok((None, None));
    }
    let netns = namespace::create()?;
    if record.config.host.network == Mode::None {
        return Ok((Some(netns), None));
    }
    let endpoint = network.connect(&Attach {
        network: network::DEFAULT,
        netns: netns.as_fd(),
        interface: "eth0",
        owner: record.id.as_str(),
        name: &record.name,
        mac: None,
        address: None,
    })?;
    Ok((Some(netns), Some(endpoint)))
}

fn address(endpoint: &Endpoint) -> Address {
    Address {
        endpoint: endpoint.id.to_string(),
        network: endpoint.network.to_string(),
        ip: endpoint.address,
        prefix_len: endpoint.prefix_len,
        gateway: endpoint.gateway,
        mac: endpoint.mac.to_string(),
    }
}
