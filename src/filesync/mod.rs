//! File trees over the wire, as BuildKit's clients and daemons exchange them (the protocol of its `fsutil`).
//!
//! The sender lists its tree in order, one packet for each entry and an empty one at the end; the receiver asks for the data of
//! those files it does not have, by their numbers in the list; data comes in pieces, several files at a time, with an empty
//! piece at the end of each. When the receiver has everything it says so, and the sender confirms.
//!
//! [`send`] and [`receive`] are the two ends. Which service carries the packets, and what a tree means, is the callers'
//! business.

mod entry;
mod filter;
mod folder;
mod kept;
mod listed;
mod memory;
mod receive;
mod send;

pub use bollard_buildkit_proto::fsutil::types::Packet;
pub use entry::{Entry, EntryKind};
pub use filter::Filter;
pub use folder::Folder;
pub use kept::{Kept, Learnt};
pub use listed::Listed;
pub use memory::Files;
pub use receive::{Sink, answers, receive};
pub use send::{Branch, Source, outgoing, send};

use bollard_buildkit_proto::fsutil::types::packet::PacketType;
use futures_util::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;

use crate::error::Result;

/// Packets on their way between the connection and the files, in each direction. One holds 32 KiB of data as a rule, and never
/// more than a message of gRPC does (4 MiB).
const UNDER_WAY: usize = 16;

/// Brings what a sink keeps up to date with a tree that is here.
///
/// # Errors
/// Those of [`send()`] and [`receive()`].
pub async fn copy<S: Sink>(source: Source, sink: S) -> Result<S> {
    let ((say, said), (answer, answered)) = (outgoing(), answers());
    let sending = send(source, ReceiverStream::new(answered).map(Ok), say);
    let receiving = receive(ReceiverStream::new(said).map(Ok), answer, sink);
    let (sent, received) = tokio::join!(sending, receiving);
    let received = received?;
    sent.map(|()| received)
}

fn packet(kind: PacketType, id: u32, data: Vec<u8>) -> Packet {
    Packet { r#type: kind.into(), stat: None, id, data }
}

#[cfg(test)]
mod tests;
