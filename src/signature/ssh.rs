//! SSH's signatures (`PROTOCOL.sshsig`), with keys of RSA, ECDSA and Ed25519, those of security keys (`PROTOCOL.u2f`) among them.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use ring::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P384_SHA384_ASN1, ED25519, RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_2048_8192_SHA512,
    RsaParameters, RsaPublicKeyComponents, UnparsedPublicKey, VerificationAlgorithm,
};
use sha2::{Digest as _, Sha256, Sha512};

use super::armor;
use super::openpgp::der;
use super::reader::{Reader, significant};
use crate::error::{Error, Result, ResultExt as _};

const MAGIC: &[u8] = b"SSHSIG";

/// How many lines with keys are read.
const MAX_KEYS: usize = 1000;

/// Verifies a signature made for a purpose by one of some keys, which are lines of `authorized_keys`.
pub(super) fn verify(signed: &[u8], signature: &str, namespace: &str, keys: &str) -> Result<()> {
    let blocks = armor::blocks(signature).context(|| "read its SSH signature")?;
    let [block] = blocks.as_slice() else { return Err(Error::invalid("it has more than one SSH signature")) };
    let signature = Signature::read(&block.data).context(|| "read its SSH signature")?;
    if signature.namespace != namespace.as_bytes() {
        let found = String::from_utf8_lossy(signature.namespace);
        return Err(Error::forbidden(format!("its SSH signature was made for {found:?}, not for {namespace:?}")));
    }
    let trusted = trusted(keys)?;
    let shown = fingerprint(signature.key);
    if !trusted.iter().any(|key| key == signature.key) {
        let known = trusted.iter().map(|key| fingerprint(key)).collect::<Vec<_>>().join(", ");
        return Err(Error::forbidden(format!(
            "it is signed with the SSH key {shown}, which is not the one that was given ({known}); give that one's public key \
             if you trust it"
        )));
    }
    let message = signature.message(signed)?;
    match check(&signature, &message)? {
        true => Ok(()),
        false => {
            Err(Error::corrupt(format!("its SSH signature, said to be of the key {shown}, is not of what is here")))
        }
    }
}

/// A signature as it is written.
#[derive(Debug)]
struct Signature<'a> {
    key: &'a [u8],
    namespace: &'a [u8],
    reserved: &'a [u8],
    hash: &'a [u8],
    /// What the key made: its format, and its bytes with what security keys add.
    format: &'a [u8],
    value: &'a [u8],
    security_key: &'a [u8],
}

impl<'a> Signature<'a> {
    fn read(data: &'a [u8]) -> Result<Self> {
        let mut reader = Reader(data);
        if reader.take(MAGIC.len())? != MAGIC {
            return Err(Error::invalid("it does not begin as one"));
        }
        let version = reader.u32()?;
        if version != 1 {
            return Err(Error::unsupported(format!("it is of version {version}, which is not known")));
        }
        let (key, namespace, reserved) = (reader.string()?, reader.string()?, reader.string()?);
        let (hash, blob) = (reader.string()?, reader.string()?);
        let mut blob = Reader(blob);
        let (format, value, security_key) = (blob.string()?, blob.string()?, blob.rest());
        if !reader.is_empty() {
            return Err(Error::invalid("something follows it"));
        }
        Ok(Self { key, namespace, reserved, hash, format, value, security_key })
    }

    /// What the key signed.
    fn message(&self, signed: &[u8]) -> Result<Vec<u8>> {
        let digest = match self.hash {
            b"sha256" => Sha256::digest(signed).to_vec(),
            b"sha512" => Sha512::digest(signed).to_vec(),
            other => {
                let name = String::from_utf8_lossy(other);
                return Err(Error::unsupported(format!(
                    "its SSH signature is of a hash that is not accepted: {name:?}"
                )));
            }
        };
        let mut message = MAGIC.to_vec();
        for field in [self.namespace, self.reserved, self.hash, &digest] {
            message.extend(u32::try_from(field.len()).unwrap_or(u32::MAX).to_be_bytes());
            message.extend(field);
        }
        Ok(message)
    }
}

/// The keys of some lines, as they are written on the wire.
fn trusted(keys: &str) -> Result<Vec<Vec<u8>>> {
    if super::label(keys).is_some() {
        return Err(Error::forbidden(
            "it has an SSH signature, and the keys that were given are no SSH keys; give the signer's as a line of \
             authorized_keys",
        ));
    }
    let lines = keys.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    let keys: Vec<_> =
        lines.take(MAX_KEYS + 1).enumerate().map(|(at, line)| key(line, at + 1)).collect::<Result<_>>()?;
    match keys.len() {
        0 => Err(Error::invalid("no key was given")),
        1..=MAX_KEYS => Ok(keys),
        _ => Err(Error::invalid(format!("more than {MAX_KEYS} keys were given"))),
    }
}

/// A line of `authorized_keys`: a kind, the key, a comment. Options in front of them would restrict the key, which nothing here does.
fn key(line: &str, number: usize) -> Result<Vec<u8>> {
    let refused = |why: &str| Error::invalid(format!("the key {number}: {why}"));
    let mut words = line.split_ascii_whitespace();
    let (kind, encoded) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let data = STANDARD.decode(encoded).or_else(|_| STANDARD_NO_PAD.decode(encoded));
    let data = data.map_err(|_| refused("expected a kind, a key in base64 and a comment, as in authorized_keys"))?;
    match Reader(&data).string() {
        Ok(written) if written == kind.as_bytes() => Ok(data),
        _ => Err(refused(&format!("it is not of the kind {kind:?}"))),
    }
}

/// How OpenSSH shows a key.
fn fingerprint(key: &[u8]) -> String {
    format!("SHA256:{}", STANDARD_NO_PAD.encode(Sha256::digest(key)))
}

/// Says whether the signature's key made it.
fn check(signature: &Signature<'_>, message: &[u8]) -> Result<bool> {
    let mut key = Reader(signature.key);
    let kind = key.string()?;
    let unknown = |what: &[u8]| {
        Error::unsupported(format!("SSH signatures of the kind {:?} are not verified", String::from_utf8_lossy(what)))
    };
    if kind == b"ssh-rsa" {
        let params: &RsaParameters = match signature.format {
            b"rsa-sha2-256" => &RSA_PKCS1_2048_8192_SHA256,
            b"rsa-sha2-512" => &RSA_PKCS1_2048_8192_SHA512,
            other => return Err(unknown(other)),
        };
        let (e, n) = (significant(key.string()?), significant(key.string()?));
        if n.len() * 8 < 2048 {
            return Err(Error::forbidden(format!("the RSA key has {} bits, and 2048 is the least", n.len() * 8)));
        }
        return Ok(RsaPublicKeyComponents { n, e }.verify(params, message, signature.value).is_ok());
    }
    if kind != signature.format {
        return Err(Error::invalid("its SSH signature is of another kind than its key"));
    }
    let message = match kind {
        [b's', b'k', b'-', ..] => &security_key_message(signature, message, application(signature.key, kind)?)?,
        _ if !signature.security_key.is_empty() => return Err(Error::invalid("something follows its SSH signature")),
        _ => message,
    };
    let (algorithm, point, value): (&'static dyn VerificationAlgorithm, _, _) = match kind {
        b"ssh-ed25519" | b"sk-ssh-ed25519@openssh.com" => (&ED25519, key.string()?, signature.value.to_vec()),
        b"ecdsa-sha2-nistp256" | b"sk-ecdsa-sha2-nistp256@openssh.com" => {
            (&ECDSA_P256_SHA256_ASN1, curve_point(&mut key)?, ecdsa_value(signature.value)?)
        }
        b"ecdsa-sha2-nistp384" => (&ECDSA_P384_SHA384_ASN1, curve_point(&mut key)?, ecdsa_value(signature.value)?),
        other => return Err(unknown(other)),
    };
    Ok(UnparsedPublicKey::new(algorithm, point).verify(message, &value).is_ok())
}

/// The point of a key, after the name of its curve, which its kind says, too.
fn curve_point<'a>(key: &mut Reader<'a>) -> Result<&'a [u8]> {
    key.string()?;
    key.string()
}

fn ecdsa_value(value: &[u8]) -> Result<Vec<u8>> {
    let mut reader = Reader(value);
    Ok(der(significant(reader.string()?), significant(reader.string()?)))
}

/// For what a security key signs: the last field of its public key.
fn application<'a>(key: &'a [u8], kind: &[u8]) -> Result<&'a [u8]> {
    let mut reader = Reader(key);
    reader.string()?;
    if kind.starts_with(b"sk-ecdsa") {
        reader.string()?;
    }
    reader.string()?;
    reader.string()
}

/// What a security key signs: for whom, how, how often it did so, and what.
fn security_key_message(signature: &Signature<'_>, message: &[u8], application: &[u8]) -> Result<Vec<u8>> {
    let mut reader = Reader(signature.security_key);
    let (flags, counter) = (reader.u8()?, reader.array::<4>()?);
    if !reader.is_empty() {
        return Err(Error::invalid("something follows its SSH signature"));
    }
    Ok([&Sha256::digest(application)[..], &[flags], &counter, &Sha256::digest(message)[..]].concat())
}
