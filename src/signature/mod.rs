//! Signatures of commits, tags and files: OpenPGP's (RFC 4880 and its successor RFC 9580) and SSH's (OpenSSH's `PROTOCOL.sshsig`).
//!
//! What is verified, and by which rules, is BuildKit's: hashes from SHA-256 on; RSA from 2048 bits on, ECDSA and EdDSA; no revoked
//! keys; expired ones only where that is permitted. It is read and verified here, with what ring has, and never made. Everything
//! here comes from strangers: the data, the signature, and the keys as far as their holders vouch for one another.

mod armor;
mod openpgp;
mod reader;
mod ssh;

use std::fs::File;

use crate::error::{Error, Result};

/// The longest signature that is read, in bytes of its text.
const MAX_SIGNATURE: usize = 256 << 10;

/// The longest text with keys that is read, in bytes.
const MAX_KEYS: usize = 4 << 20;

/// By what rules a signature is good.
#[derive(Clone, Copy, Debug)]
pub struct Terms<'a> {
    /// The keys that are trusted: armored OpenPGP keys, or SSH keys as lines of `authorized_keys`.
    pub keys: &'a str,
    /// What becomes of keys that were good when they signed and are so no more.
    pub expired: Expired,
    /// What time it is, in seconds since 1970.
    pub now_s: i64,
}

/// What becomes of expired keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expired {
    /// What they signed before they expired is good.
    Accepted,
    /// What they signed is not good any more.
    Refused,
}

/// Verifies the signature of a git object.
///
/// # Errors
/// `Corrupt` when the signature is not that of the data; `Forbidden` when it is of a key that is not trusted (any more);
/// `InvalidArgument` for malformed keys and signatures; `Unsupported` for kinds of either that are not known.
pub fn verify_object(signed: &[u8], signature: &str, terms: &Terms<'_>) -> Result<()> {
    check_sizes(signature, terms)?;
    match label(signature) {
        Some("PGP SIGNATURE") => openpgp::verify(openpgp::Data::Bytes(signed), signature, terms),
        Some("SSH SIGNATURE") => ssh::verify(signed, signature, "git", terms.keys),
        Some("SIGNED MESSAGE") => {
            Err(Error::unsupported("it is signed with an X.509 certificate; OpenPGP and SSH signatures are verified"))
        }
        _ => Err(Error::invalid("what should be its signature is neither OpenPGP's nor SSH's")),
    }
}

/// Verifies the detached OpenPGP signature of a file, which is open for reading and writing and which nobody else uses yet.
///
/// The file is mapped, not read into memory. It is as it was afterwards, unless this fails with an error of the file system.
/// Blocking.
///
/// # Errors
/// As [`verify_object`].
pub fn verify_file(file: &File, signature: &str, terms: &Terms<'_>) -> Result<()> {
    check_sizes(signature, terms)?;
    openpgp::verify(openpgp::Data::File(file), signature, terms)
}

fn check_sizes(signature: &str, terms: &Terms<'_>) -> Result<()> {
    if signature.len() > MAX_SIGNATURE {
        return Err(Error::invalid(format!("its signature is longer than {} KiB", MAX_SIGNATURE >> 10)));
    }
    if terms.keys.len() > MAX_KEYS {
        return Err(Error::invalid(format!("the keys are longer than {} MiB", MAX_KEYS >> 20)));
    }
    Ok(())
}

/// What an armored text begins with.
fn label(text: &str) -> Option<&str> {
    text.trim_start().strip_prefix("-----BEGIN ")?.lines().next()?.trim_end().strip_suffix("-----")
}

/// Writes bytes as people read fingerprints.
fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02X}");
        text
    })
}

#[cfg(test)]
mod tests;
