//! Signature packets of version 4 (RFC 9580, section 5.2): what a key says of data or of keys.

use std::fmt;

use sha1::Sha1;
use sha2::{Digest as _, Sha256, Sha384, Sha512};

use super::super::reader::Reader;
use super::packet::length;
use crate::error::{Error, Result};

/// Of data as it is.
pub(super) const BINARY: u8 = 0x00;
/// Of text, whose lines end as the network's do.
pub(super) const TEXT: u8 = 0x01;
/// Of a name and a primary key, four degrees of certainty.
pub(super) const CERTIFICATIONS: std::ops::RangeInclusive<u8> = 0x10..=0x13;
/// Of a primary key and one that is bound to it, by the primary key.
pub(super) const SUBKEY_BINDING: u8 = 0x18;
/// The same by the other one.
pub(super) const PRIMARY_BINDING: u8 = 0x19;
/// Of a primary key alone.
pub(super) const DIRECT: u8 = 0x1f;
pub(super) const KEY_REVOCATION: u8 = 0x20;
pub(super) const SUBKEY_REVOCATION: u8 = 0x28;
pub(super) const CERTIFICATION_REVOCATION: u8 = 0x30;

/// The bit of a key's flags that lets it sign data.
const MAY_SIGN: u8 = 0x02;

/// How deep signatures hold signatures: a binding holds the one of the other key.
const MAX_DEPTH: usize = 1;

/// What a signature hashes with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hash {
    Sha1,
    Sha256,
    Sha384,
    Sha512,
    Other(u8),
}

impl Hash {
    fn read(number: u8) -> Self {
        match number {
            2 => Self::Sha1,
            8 => Self::Sha256,
            9 => Self::Sha384,
            10 => Self::Sha512,
            other => Self::Other(other),
        }
    }

    /// The digest of a message; `None` when the hash is not known.
    pub(super) fn of(self, message: &[u8]) -> Option<Vec<u8>> {
        match self {
            Self::Sha1 => Some(Sha1::digest(message).to_vec()),
            Self::Sha256 => Some(Sha256::digest(message).to_vec()),
            Self::Sha384 => Some(Sha384::digest(message).to_vec()),
            Self::Sha512 => Some(Sha512::digest(message).to_vec()),
            Self::Other(_) => None,
        }
    }
}

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sha1 => f.write_str("SHA-1"),
            Self::Sha256 => f.write_str("SHA-256"),
            Self::Sha384 => f.write_str("SHA-384"),
            Self::Sha512 => f.write_str("SHA-512"),
            Self::Other(1) => f.write_str("MD5"),
            Self::Other(3) => f.write_str("RIPEMD-160"),
            Self::Other(11) => f.write_str("SHA-224"),
            Self::Other(other) => write!(f, "hash {other}"),
        }
    }
}

/// A signature.
#[derive(Debug)]
pub(super) struct Seal {
    pub(super) kind: u8,
    pub(super) algorithm: u8,
    pub(super) hash: Hash,
    /// What is hashed after the data.
    pub(super) trailer: Vec<u8>,
    /// The numbers the key made.
    pub(super) values: Vec<u8>,
    /// When it was made, in seconds since 1970.
    pub(super) created: u32,
    /// How long it is good, in seconds; 0 is for ever.
    pub(super) lifetime: u32,
    /// Whose it is said to be.
    pub(super) issuer: Option<[u8; 8]>,
    /// How long the key is good that it is about, in seconds after that was made; 0 is for ever.
    pub(super) key_lifetime: u32,
    key_flags: Option<u8>,
    /// Whether the name it is about is the main one.
    pub(super) is_primary_name: bool,
    /// Why something was revoked: a number and words.
    pub(super) reason: Option<(u8, String)>,
    pub(super) embedded: Option<Box<Seal>>,
    /// What it wants understood that is not known here.
    pub(super) critical: Option<String>,
}

impl Seal {
    /// Reads the body of a packet.
    ///
    /// # Errors
    /// `InvalidArgument` for a malformed one; `Unsupported` for another version than 4.
    pub(super) fn read(body: &[u8]) -> Result<Self> {
        Self::read_at(body, 0)
    }

    fn read_at(body: &[u8], depth: usize) -> Result<Self> {
        let mut reader = Reader(body);
        let version = reader.u8()?;
        if version != 4 {
            return Err(Error::unsupported(format!("it is of version {version}, and version 4 is known here")));
        }
        let (kind, algorithm, hash) = (reader.u8()?, reader.u8()?, Hash::read(reader.u8()?));
        let hashed_length = usize::from(reader.u16()?);
        let hashed = reader.take(hashed_length)?;
        let others_length = usize::from(reader.u16()?);
        let others = reader.take(others_length)?;
        // The beginning of the digest, by which it could be refused sooner.
        reader.u16()?;
        let fields = &body[..6 + hashed_length];
        let count = u32::try_from(fields.len()).expect("two bytes say how long it is");
        let mut seal = Self {
            kind,
            algorithm,
            hash,
            trailer: [fields, &[4, 0xff], &count.to_be_bytes()[..]].concat(),
            values: reader.rest().to_vec(),
            created: 0,
            lifetime: 0,
            issuer: None,
            key_lifetime: 0,
            key_flags: None,
            is_primary_name: false,
            reason: None,
            embedded: None,
            critical: None,
        };
        let mut is_dated = false;
        each(hashed, |number, is_critical, data| {
            is_dated |= number == 2;
            seal.take_hashed(number, is_critical, data, depth)
        })?;
        // Of what is not signed itself, only what is checked otherwise counts.
        each(others, |number, _, data| seal.take_hint(number, data, depth))?;
        if !is_dated {
            return Err(Error::invalid("it does not say when it was made"));
        }
        Ok(seal)
    }

    fn take_hashed(&mut self, number: u8, is_critical: bool, data: &[u8], depth: usize) -> Result<()> {
        let mut reader = Reader(data);
        match number {
            2 => self.created = reader.u32()?,
            3 => self.lifetime = reader.u32()?,
            9 => self.key_lifetime = reader.u32()?,
            20 if is_critical => self.critical = Some(notation(data).unwrap_or_default()),
            25 => self.is_primary_name = reader.u8()? != 0,
            27 => self.key_flags = Some(data.first().copied().unwrap_or(0)),
            29 => self.reason = Some((reader.u8()?, String::from_utf8_lossy(reader.rest()).into_owned())),
            16 | 32 | 33 => self.take_hint(number, data, depth)?,
            // Whether it may be passed on or revoked; what its holder prefers; whose it is; policies for people.
            4 | 5 | 7 | 11 | 12 | 20..=24 | 26 | 28 | 30 | 31 | 34 | 35 => {}
            other if is_critical => self.critical = Some(format!("field {other}")),
            _ => {}
        }
        Ok(())
    }

    fn take_hint(&mut self, number: u8, data: &[u8], depth: usize) -> Result<()> {
        let mut reader = Reader(data);
        match number {
            16 if self.issuer.is_none() => self.issuer = Some(reader.array()?),
            32 if depth < MAX_DEPTH && self.embedded.is_none() => {
                // One that cannot be read is as good as none.
                self.embedded = Self::read_at(data, depth + 1).ok().map(Box::new);
            }
            33 if self.issuer.is_none() && reader.u8()? == 4 => {
                let fingerprint: [u8; 20] = reader.array()?;
                self.issuer = Some(fingerprint[12..].try_into().expect("a fingerprint has 20 bytes"));
            }
            _ => {}
        }
        Ok(())
    }

    /// Whether the key it is about may sign data.
    pub(super) fn lets_sign(&self) -> bool {
        self.key_flags.is_some_and(|flags| flags & MAY_SIGN != 0)
    }

    /// Whether it is good no longer at a time.
    pub(super) fn is_over(&self, at: i64) -> bool {
        self.lifetime != 0 && at > i64::from(self.created) + i64::from(self.lifetime)
    }
}

/// The name of a notation.
fn notation(data: &[u8]) -> Option<String> {
    let mut reader = Reader(data.get(4..)?);
    let length = reader.u16().ok()?;
    reader.u16().ok()?;
    Some(format!("notation {:?}", String::from_utf8_lossy(reader.take(usize::from(length)).ok()?)))
}

/// Goes through the fields of a signature.
fn each(area: &[u8], mut take: impl FnMut(u8, bool, &[u8]) -> Result<()>) -> Result<()> {
    let mut reader = Reader(area);
    while !reader.is_empty() {
        let first = reader.0[0];
        // One of two bytes is as long as 254 begins; pieces do not exist here.
        let length = match first {
            224..=254 => {
                let first = usize::from(reader.u8()?);
                ((first - 192) << 8) + usize::from(reader.u8()?) + 192
            }
            _ => length(&mut reader)?.expect("other lengths are of one piece"),
        };
        let mut field = Reader(reader.take(length)?);
        let kind = field.u8()?;
        take(kind & 0x7f, kind & 0x80 != 0, field.rest())?;
    }
    Ok(())
}
