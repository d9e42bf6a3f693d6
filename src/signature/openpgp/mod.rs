//! OpenPGP's detached signatures, of version 4, as GnuPG and others make them.
//!
//! Which key may have signed, and when it may, is decided as BuildKit does; in one thing as GnuPG does: what the holder of a key said
//! of it last counts for earlier signatures, too, so that a key whose life was prolonged keeps what it signed.

mod certificate;
mod key;
mod packet;
mod seal;

use std::fs::File;
use std::io::{Seek as _, SeekFrom, Write as _};

use certificate::{Certificate, Signer};
use key::Unverified;
pub(super) use key::der;
use seal::{Hash, Seal};

use super::{Expired, Terms, armor, hex};
use crate::error::{Error, Result, ResultExt as _};
use crate::sys::map::Mapping;

/// How many signatures of one thing are looked at.
const MAX_SEALS: usize = 16;

/// How far in the future a signature may have been made, in seconds: clocks differ.
const CLOCKS_DIFFER_S: i64 = 5 * 60;

/// The largest file whose lines are counted on to end as text's do, in bytes: it is held in memory.
const MAX_TEXT: usize = 64 << 20;

/// What is signed.
#[derive(Clone, Copy, Debug)]
pub(super) enum Data<'a> {
    Bytes(&'a [u8]),
    File(&'a File),
}

/// Verifies a detached signature.
pub(super) fn verify(data: Data<'_>, signature: &str, terms: &Terms<'_>) -> Result<()> {
    let seals = read(signature).context(|| "read its OpenPGP signature")?;
    for seal in &seals {
        check_algorithms(seal)?;
    }
    let keys = certificate::read(terms.keys).context(|| "read the public key")?;
    for seal in &seals {
        let signers: Vec<Signer<'_>> = keys.iter().filter_map(|key| key.signer(seal)).collect();
        if !signers.is_empty() {
            return verify_by(data, seal, &signers, terms);
        }
    }
    Err(unknown(&seals, &keys))
}

/// Reads the signatures of a block.
fn read(text: &str) -> Result<Vec<Seal>> {
    let blocks = armor::blocks(text)?;
    let block = blocks.first().ok_or_else(|| Error::invalid("there is no armored block"))?;
    let mut seals = Vec::new();
    for packet in packet::packets(&block.data)? {
        match packet.tag {
            packet::SIGNATURE if seals.len() < MAX_SEALS => seals.push(Seal::read(packet.body)?),
            packet::SIGNATURE => return Err(Error::invalid(format!("there are more than {MAX_SEALS}"))),
            packet::MARKER | packet::PADDING => {}
            other => return Err(Error::invalid(format!("a packet of the kind {other} is among them"))),
        }
    }
    if seals.is_empty() { Err(Error::invalid("there is none in it")) } else { Ok(seals) }
}

/// What BuildKit accepts.
fn check_algorithms(seal: &Seal) -> Result<()> {
    if !matches!(seal.hash, Hash::Sha256 | Hash::Sha384 | Hash::Sha512) {
        return Err(Error::forbidden(format!(
            "its signature is of a hash that is too weak or not known: {}",
            seal.hash
        )));
    }
    if !matches!(seal.algorithm, key::RSA | key::RSA_SIGN_ONLY | key::ECDSA | key::EDDSA) {
        let text = format!("its signature is of the algorithm {}; RSA, ECDSA and EdDSA are accepted", seal.algorithm);
        return Err(Error::unsupported(text));
    }
    Ok(())
}

/// Says that none of the keys is the signer's.
fn unknown(seals: &[Seal], keys: &[Certificate]) -> Error {
    let Some(by) = seals.iter().find_map(|seal| seal.issuer) else {
        return Error::invalid("its signature does not say whose it is");
    };
    let by = hex(&by);
    let with_id = |key: &&Certificate| seals.iter().any(|seal| seal.issuer.is_some_and(|id| key.has_key(id)));
    if let Some(key) = keys.iter().find(with_id) {
        let whole = hex(&key.primary.fingerprint);
        let text = format!("it is signed with the key {by} of {whole}");
        return match key.primary.objection() {
            Some(Unverified::Unsupported(why)) => Error::unsupported(format!("{text}: {why}")),
            Some(Unverified::Weak(why)) => Error::forbidden(format!("{text}: {why}")),
            _ => Error::forbidden(format!("{text}, which may not sign: its holder does not say so in what was given")),
        };
    }
    let known = keys.iter().map(|key| hex(&key.primary.fingerprint)).collect::<Vec<_>>().join(", ");
    Error::forbidden(format!(
        "it is signed with the key {by}, which is not among those that were given ({known}); give its public key if you trust it"
    ))
}

/// Verifies a signature that says that it was made by one of some keys.
fn verify_by(data: Data<'_>, seal: &Seal, signers: &[Signer<'_>], terms: &Terms<'_>) -> Result<()> {
    let canonical = match seal.kind {
        seal::BINARY => false,
        seal::TEXT => true,
        other => {
            return Err(Error::invalid(format!("its signature is of the kind {other:#04x}, which is none of data")));
        }
    };
    let verified = with_message(data, &seal.trailer, canonical, |message| {
        let mut refused = Unverified::Wrong;
        for signer in signers {
            match signer.key.verify(seal, message) {
                Ok(()) => return Ok(signer),
                Err(why) => refused = why,
            }
        }
        Err(refused)
    })?;
    let by = hex(&signers[0].key.fingerprint);
    let signer = verified.map_err(|refused| match refused {
        Unverified::Wrong => {
            Error::corrupt(format!("its OpenPGP signature, said to be of the key {by}, is not of what is here"))
        }
        Unverified::Weak(why) => Error::forbidden(format!("it is signed with the key {by}: {why}")),
        Unverified::Unsupported(why) => Error::unsupported(format!("it is signed with the key {by}: {why}")),
    })?;
    let created = i64::from(seal.created);
    let at = if terms.expired == Expired::Accepted { created } else { terms.now_s };
    signer.check(seal, at, terms)?;
    if created > terms.now_s.saturating_add(CLOCKS_DIFFER_S) {
        return Err(Error::forbidden(format!("its signature was made in the future: {}", shown_time(created))));
    }
    Ok(())
}

/// A time for people.
fn shown_time(seconds: i64) -> String {
    jiff::Timestamp::from_second(seconds).map_or_else(|_| seconds.to_string(), |time| time.to_string())
}

/// Shows `check` the data with what a signature adds to it, in one piece.
fn with_message<T>(data: Data<'_>, trailer: &[u8], canonical: bool, check: impl FnOnce(&[u8]) -> T) -> Result<T> {
    match data {
        Data::Bytes(bytes) if canonical => Ok(check(&[&with_text_endings(bytes), trailer].concat())),
        Data::Bytes(bytes) => Ok(check(&[bytes, trailer].concat())),
        Data::File(file) => {
            let size = file.metadata()?.len();
            let too_large = || Error::unsupported("the file is too large to be verified here");
            let length = usize::try_from(size).map_err(|_| too_large())?;
            if canonical {
                if length > MAX_TEXT {
                    let text = format!("it is signed as text, which is verified up to {} MiB", MAX_TEXT >> 20);
                    return Err(Error::unsupported(text));
                }
                let bytes = if length == 0 { Vec::new() } else { Mapping::of(file, length)?.to_vec() };
                return Ok(check(&[&with_text_endings(&bytes), trailer].concat()));
            }
            // ring wants the whole message, and a file can be larger than memory: what follows the data is written behind it for
            // as long as that takes.
            let with_trailer = append(file, trailer).and_then(|()| Ok(Mapping::of(file, length + trailer.len())?));
            let checked = with_trailer.map(|mapping| check(&mapping));
            file.set_len(size)?;
            checked
        }
    }
}

fn append(mut file: &File, bytes: &[u8]) -> Result<()> {
    file.seek(SeekFrom::End(0))?;
    Ok(file.write_all(bytes)?)
}

/// Ends lines with carriage return and line feed, as signatures of text are made.
fn with_text_endings(bytes: &[u8]) -> Vec<u8> {
    let mut text = Vec::with_capacity(bytes.len() + bytes.len() / 32);
    let mut last = 0;
    for byte in bytes {
        if *byte == b'\n' && last != b'\r' {
            text.push(b'\r');
        }
        text.push(*byte);
        last = *byte;
    }
    text
}
