//! Packets (RFC 9580, section 4): what OpenPGP's data is made of.

use super::super::reader::Reader;
use crate::error::{Error, Result};

pub(super) const SIGNATURE: u8 = 2;
pub(super) const SECRET_KEY: u8 = 5;
pub(super) const PUBLIC_KEY: u8 = 6;
pub(super) const SECRET_SUBKEY: u8 = 7;
pub(super) const MARKER: u8 = 10;
pub(super) const USER_ID: u8 = 13;
pub(super) const PUBLIC_SUBKEY: u8 = 14;
pub(super) const USER_ATTRIBUTE: u8 = 17;
pub(super) const PADDING: u8 = 21;

/// How many packets are read.
const MAX_PACKETS: usize = 10_000;

/// A packet.
#[derive(Clone, Copy, Debug)]
pub(super) struct Packet<'a> {
    pub(super) tag: u8,
    pub(super) body: &'a [u8],
}

/// Reads packets.
///
/// # Errors
/// `InvalidArgument` for packets that are cut off, without an end, or too many.
pub(super) fn packets(data: &[u8]) -> Result<Vec<Packet<'_>>> {
    let mut reader = Reader(data);
    let mut packets = Vec::new();
    while !reader.is_empty() {
        if packets.len() == MAX_PACKETS {
            return Err(Error::invalid(format!("there are more than {MAX_PACKETS} packets")));
        }
        packets.push(packet(&mut reader)?);
    }
    Ok(packets)
}

fn packet<'a>(reader: &mut Reader<'a>) -> Result<Packet<'a>> {
    let head = reader.u8()?;
    let no_end = || Error::invalid("a packet does not say how long it is");
    let (tag, length) = match head {
        0xc0.. => (head & 0x3f, length(reader)?.ok_or_else(no_end)?),
        0x80.. => {
            let length = match head & 3 {
                0 => usize::from(reader.u8()?),
                1 => usize::from(reader.u16()?),
                2 => reader.u32()? as usize,
                _ => return Err(no_end()),
            };
            ((head >> 2) & 0xf, length)
        }
        _ => return Err(Error::invalid("there is no packet where one should be")),
    };
    Ok(Packet { tag, body: reader.take(length)? })
}

/// Reads a length, of packets of the new format and of parts of signatures; `None` for one in pieces.
pub(super) fn length(reader: &mut Reader<'_>) -> Result<Option<usize>> {
    Ok(Some(match reader.u8()? {
        short @ ..192 => usize::from(short),
        first @ 192..224 => ((usize::from(first) - 192) << 8) + usize::from(reader.u8()?) + 192,
        255 => reader.u32()? as usize,
        224.. => return Ok(None),
    }))
}
