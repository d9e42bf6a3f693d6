//! The receiver: keeps the rules of the protocol, and hands entries and data to a [`Sink`].

use std::collections::{HashSet, VecDeque};
use std::pin::pin;
use std::time::Duration;

use bollard_buildkit_proto::fsutil::types::packet::PacketType;
use futures_util::{Stream, StreamExt as _};
use tokio::sync::mpsc;

use super::entry::{Entry, Order};
use super::{Packet, UNDER_WAY, packet};
use crate::error::{Error, Kind, Result};
use crate::task;

/// How many files' data is asked for at a time. Senders queue at least as many before they stop to read requests.
const ASKED: usize = 64;

/// How many entries a list may have.
const MAX_ENTRIES: u32 = 4_000_000;

/// How long a sender may be silent.
const PATIENCE: Duration = Duration::from_secs(120);

/// What becomes of what is received. The calls come in the order of the wire, on one thread that may block.
pub trait Sink: Send + 'static {
    /// Takes the next entry, the `number`th of the list; says whether its data is wanted (of regular files only). Entries are
    /// in order, and each comes after the directory it is in.
    ///
    /// # Errors
    /// They end the transfer.
    fn entry(&mut self, number: u32, entry: Entry) -> Result<bool>;

    /// Takes the next piece of the data of a file that was wanted.
    ///
    /// # Errors
    /// They end the transfer.
    fn data(&mut self, number: u32, data: &[u8]) -> Result<()>;

    /// The data of a file is complete.
    ///
    /// # Errors
    /// They end the transfer.
    fn complete(&mut self, number: u32) -> Result<()>;

    /// Everything was received.
    ///
    /// # Errors
    /// They end the transfer.
    fn finish(&mut self) -> Result<()>;
}

/// Makes the channel for what the receiver says; it is large enough that the receiver never waits for it.
#[must_use]
pub fn answers() -> (mpsc::Sender<Packet>, mpsc::Receiver<Packet>) {
    mpsc::channel(2 * ASKED)
}

/// Receives a tree. Dropping the future ends the transfer; the sink is dropped as soon as its current call returns.
///
/// `outgoing` comes from [`answers`].
///
/// # Errors
/// `InvalidArgument` for a list that is malformed or leads out of the tree; `Timeout` when the sender is silent for minutes;
/// what the sender says went wrong; those of the sink. The sender is told.
pub async fn receive<S: Sink>(
    incoming: impl Stream<Item = Result<Packet, tonic::Status>> + Send,
    outgoing: mpsc::Sender<Packet>,
    sink: S,
) -> Result<S> {
    let (packets, received) = mpsc::channel(UNDER_WAY);
    let exchange = Exchange {
        sink,
        outgoing: outgoing.clone(),
        order: Order::default(),
        listed: 0,
        wanted: VecDeque::new(),
        asked: HashSet::new(),
        stage: Stage::Listing,
    };
    let working = task::Owned::spawn(task::blocking(move || exchange.run(received)));
    let pumped = pump(incoming, packets).await;
    let worked = working.join().await?;
    let result = match (pumped, worked) {
        // A sink that was not given everything says so, but the reason is what broke the connection.
        (Err(broken), Err(error)) if error.kind() == Kind::Unavailable => Err(broken),
        (_, worked) => worked,
    };
    if let Err(error) = &result {
        // The sender may have gone.
        let _ = outgoing.try_send(packet(PacketType::PacketErr, 0, error.to_string().into_bytes()));
    }
    result
}

/// Hands packets over until the stream or the interest in it ends.
async fn pump(
    incoming: impl Stream<Item = Result<Packet, tonic::Status>> + Send,
    packets: mpsc::Sender<Packet>,
) -> Result<()> {
    let mut incoming = pin!(incoming);
    loop {
        let next = tokio::select! {
            next = tokio::time::timeout(PATIENCE, incoming.next()) => next,
            () = packets.closed() => return Ok(()),
        };
        let next = next.map_err(|_| {
            Error::timeout(format!(
                "the other side sends files no longer: nothing came for {} seconds",
                PATIENCE.as_secs()
            ))
        })?;
        match next {
            Some(Ok(packet)) => {
                if packets.send(packet).await.is_err() {
                    return Ok(());
                }
            }
            // It was not the other side that said so.
            Some(Err(status)) if std::error::Error::source(&status).is_some() => {
                return Err(Error::unavailable("the connection broke while files were received"));
            }
            Some(Err(status)) => {
                return Err(
                    Error::new(Kind::from_grpc(status.code().into()), status.message()).context("receive files")
                );
            }
            None => return Ok(()),
        }
    }
}

/// Where the exchange is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Entries still come.
    Listing,
    /// Only data is missing.
    Listed,
    /// Everything was received, and the sender is told.
    Finished,
}

struct Exchange<S> {
    sink: S,
    outgoing: mpsc::Sender<Packet>,
    order: Order,
    /// How many entries were listed.
    listed: u32,
    /// Files whose data is to be asked for.
    wanted: VecDeque<u32>,
    /// Files whose data was asked for.
    asked: HashSet<u32>,
    stage: Stage,
}

impl<S: Sink> Exchange<S> {
    /// Blocking.
    fn run(mut self, mut packets: mpsc::Receiver<Packet>) -> Result<S> {
        while let Some(packet) = packets.blocking_recv() {
            if self.take(packet)? {
                return Ok(self.sink);
            }
        }
        match self.stage {
            // Some senders close instead of confirming.
            Stage::Finished => Ok(self.sink),
            Stage::Listing | Stage::Listed => Err(Error::unavailable("the transfer of files ended early")),
        }
    }

    /// Takes a packet; says whether it was the last.
    fn take(&mut self, packet: Packet) -> Result<bool> {
        match packet.r#type() {
            PacketType::PacketStat => match packet.stat.filter(|stat| !stat.path.is_empty()) {
                Some(_) if self.stage != Stage::Listing => {
                    return Err(malformed("entries come after the end of the list"));
                }
                Some(stat) => self.entry(Entry::of_stat(stat)?)?,
                None => self.stage = Stage::Listed,
            },
            PacketType::PacketData if packet.data.is_empty() => {
                if !self.asked.remove(&packet.id) {
                    return Err(malformed("data ends that nobody asked for"));
                }
                self.sink.complete(packet.id)?;
            }
            PacketType::PacketData => {
                if !self.asked.contains(&packet.id) {
                    return Err(malformed("data comes that nobody asked for"));
                }
                self.sink.data(packet.id, &packet.data)?;
            }
            PacketType::PacketErr => {
                return Err(Error::invalid(format!("the sender of files: {}", String::from_utf8_lossy(&packet.data))));
            }
            PacketType::PacketFin if self.stage == Stage::Finished => return Ok(true),
            PacketType::PacketFin => return Err(malformed("it ends before everything was sent")),
            PacketType::PacketReq => return Err(malformed("the sender asks for data")),
        }
        self.ask()?;
        Ok(false)
    }

    fn entry(&mut self, entry: Entry) -> Result<()> {
        self.order.check(&entry)?;
        if self.listed == MAX_ENTRIES {
            return Err(Error::exhausted(format!("a tree of more than {MAX_ENTRIES} files is not taken")));
        }
        let number = self.listed;
        self.listed += 1;
        if self.sink.entry(number, entry)? {
            self.wanted.push_back(number);
        }
        Ok(())
    }

    /// Asks for as much as may be under way, and finishes when nothing is left.
    fn ask(&mut self) -> Result<()> {
        while self.asked.len() < ASKED
            && let Some(number) = self.wanted.pop_front()
        {
            self.asked.insert(number);
            self.say(packet(PacketType::PacketReq, number, Vec::new()))?;
        }
        if self.stage == Stage::Listed && self.asked.is_empty() {
            self.sink.finish()?;
            self.stage = Stage::Finished;
            self.say(packet(PacketType::PacketFin, 0, Vec::new()))?;
        }
        Ok(())
    }

    fn say(&self, packet: Packet) -> Result<()> {
        self.outgoing.blocking_send(packet).map_err(|_| Error::unavailable("the transfer of files ended early"))
    }
}

fn malformed(what: &str) -> Error {
    Error::invalid(format!("the transfer of files is malformed: {what}"))
}
