//! Private keys in OpenSSH's format (its PROTOCOL.key), and signatures by them.
//!
//! Encrypted keys are for agents that can ask for a passphrase; this reads none.

use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::rand::SystemRandom;
use ring::rsa::{KeyPairComponents, PublicKeyComponents};
use ring::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, RSA_PKCS1_SHA256,
    RSA_PKCS1_SHA512, RsaKeyPair,
};

use super::wire::{Reader, minus, put, put_large, remainder};
use crate::error::{Error, Result};

const BEGIN: &str = "-----BEGIN OPENSSH PRIVATE KEY-----";
const END: &str = "-----END OPENSSH PRIVATE KEY-----";
const MAGIC: &[u8] = b"openssh-key-v1\0";

/// Flags of a request for a signature that choose the hash for RSA (RFC 8332).
const SHA256: u32 = 2;
const SHA512: u32 = 4;

/// A private key.
#[derive(Debug)]
pub(super) struct Key {
    /// The public part, as agents list it.
    pub(super) public: Vec<u8>,
    pub(super) comment: Vec<u8>,
    pair: Pair,
}

#[derive(Debug)]
enum Pair {
    Ed25519(Ed25519KeyPair),
    Rsa(Box<RsaKeyPair>),
    /// With the name of the algorithm.
    Ecdsa(&'static str, EcdsaKeyPair),
}

impl Key {
    /// Reads a key. `path` is where it is from, for messages.
    ///
    /// # Errors
    /// `InvalidArgument` for what is no key, `Unsupported` for one that is encrypted or of another sort, with what to do.
    pub(super) fn parse(text: &[u8], path: &Path) -> Result<Self> {
        let data = unarmored(text, path)?;
        let body = data.strip_prefix(MAGIC).ok_or_else(|| Error::invalid("it is no private key of OpenSSH"))?;
        let mut outer = Reader(body);
        let cipher = outer.string()?;
        let (_kdf, _options, count) = (outer.string()?, outer.string()?, outer.number()?);
        if cipher != b"none" {
            return Err(Error::unsupported(format!(
                "the key is encrypted: add it to an agent (ssh-add {}) and give that (--ssh default)",
                path.display()
            )));
        }
        if count != 1 {
            return Err(Error::unsupported(format!("it holds {count} keys")));
        }
        let public = outer.string()?.to_vec();
        let mut inner = Reader(outer.string()?);
        if inner.number()? != inner.number()? {
            return Err(Error::invalid("the key is damaged"));
        }
        let pair = Pair::read(&mut inner)?;
        let comment = inner.string()?.to_vec();
        Ok(Self { public, comment, pair })
    }

    /// Signs; `None` when the key cannot in the way the flags ask for.
    pub(super) fn sign(&self, data: &[u8], flags: u32) -> Option<Vec<u8>> {
        let random = SystemRandom::new();
        let (algorithm, signature) = match &self.pair {
            Pair::Ed25519(pair) => ("ssh-ed25519", pair.sign(data).as_ref().to_vec()),
            Pair::Ecdsa(name, pair) => {
                let fixed = pair.sign(&random, data).ok()?;
                let (r, s) = fixed.as_ref().split_at(fixed.as_ref().len() / 2);
                let mut signature = Vec::new();
                put_large(&mut signature, r);
                put_large(&mut signature, s);
                (*name, signature)
            }
            Pair::Rsa(pair) => {
                // Without a flag, SHA-1 is asked for, which servers no longer accept.
                let (name, encoding) = match flags {
                    _ if flags & SHA512 != 0 => ("rsa-sha2-512", &RSA_PKCS1_SHA512),
                    _ if flags & SHA256 != 0 => ("rsa-sha2-256", &RSA_PKCS1_SHA256),
                    _ => return None,
                };
                let mut signature = vec![0; pair.public().modulus_len()];
                pair.sign(encoding, &random, data, &mut signature).ok()?;
                (name, signature)
            }
        };
        let mut out = Vec::new();
        put(&mut out, algorithm.as_bytes());
        put(&mut out, &signature);
        Some(out)
    }
}

impl Pair {
    fn read(fields: &mut Reader<'_>) -> Result<Self> {
        let rejected = |why: ring::error::KeyRejected| Error::invalid(format!("the key cannot be used: {why}"));
        match fields.string()? {
            b"ssh-ed25519" => {
                let (public, private) = (fields.string()?, fields.string()?);
                let seed = private.get(..32).ok_or_else(|| Error::invalid("the key is damaged"))?;
                Ed25519KeyPair::from_seed_and_public_key(seed, public).map(Self::Ed25519).map_err(rejected)
            }
            b"ssh-rsa" => {
                let (n, e, d) = (fields.large()?, fields.large()?, fields.large()?);
                let (q_inverse, p, q) = (fields.large()?, fields.large()?, fields.large()?);
                if p.is_empty() || q.is_empty() {
                    return Err(Error::invalid("the key is damaged"));
                }
                let (d_p, d_q) = (remainder(d, &less_one(p)), remainder(d, &less_one(q)));
                let components = KeyPairComponents {
                    public_key: PublicKeyComponents { n, e },
                    d,
                    p,
                    q,
                    dP: &d_p[..],
                    dQ: &d_q[..],
                    qInv: q_inverse,
                };
                RsaKeyPair::from_components(&components).map(|pair| Self::Rsa(Box::new(pair))).map_err(rejected)
            }
            name @ (b"ecdsa-sha2-nistp256" | b"ecdsa-sha2-nistp384") => {
                let (name, algorithm, size) = if name.ends_with(b"256") {
                    ("ecdsa-sha2-nistp256", &ECDSA_P256_SHA256_FIXED_SIGNING, 32)
                } else {
                    ("ecdsa-sha2-nistp384", &ECDSA_P384_SHA384_FIXED_SIGNING, 48)
                };
                let (_curve, point, secret) = (fields.string()?, fields.string()?, fields.large()?);
                let zeros =
                    usize::checked_sub(size, secret.len()).ok_or_else(|| Error::invalid("the key is damaged"))?;
                let secret = [&vec![0; zeros][..], secret].concat();
                EcdsaKeyPair::from_private_key_and_public_key(algorithm, &secret, point, &SystemRandom::new())
                    .map(|pair| Self::Ecdsa(name, pair))
                    .map_err(rejected)
            }
            other => Err(Error::unsupported(format!(
                "keys of the sort {} need an agent: add it there (ssh-add) and give that (--ssh default)",
                String::from_utf8_lossy(other)
            ))),
        }
    }
}

/// An odd number less one.
fn less_one(number: &[u8]) -> Vec<u8> {
    let mut one = vec![0; number.len()];
    one[number.len() - 1] = 1;
    minus(number, &one)
}

/// Takes the armour off.
fn unarmored(text: &[u8], path: &Path) -> Result<Vec<u8>> {
    let text = std::str::from_utf8(text).map_err(|_| Error::invalid("it is no private key"))?;
    let Some((_, rest)) = text.split_once(BEGIN) else {
        return Err(if text.contains("PRIVATE KEY-----") {
            Error::unsupported(format!(
                "the key is in an older format: `ssh-keygen -p -f {}` writes it anew",
                path.display()
            ))
        } else {
            Error::invalid("it is no private key")
        });
    };
    let (body, _) = rest.split_once(END).ok_or_else(|| Error::invalid("the key ends too early"))?;
    let body: String = body.chars().filter(|c| !c.is_ascii_whitespace()).collect();
    STANDARD.decode(body).map_err(|_| Error::invalid("the key is damaged"))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::error::Kind;

    /// A key of the machine's own `ssh-keygen`.
    fn generated(dir: &Path, options: &[&str], passphrase: &str) -> Vec<u8> {
        let path = dir.join(format!("{}{passphrase}", options.join("")));
        let made = Command::new("ssh-keygen").args(["-q", "-N", passphrase, "-f"]).arg(&path).args(options).status();
        assert!(made.expect("openssh-client is installed").success());
        std::fs::read(path).unwrap()
    }

    #[test]
    fn keys_of_every_usual_sort_are_read_and_sign() {
        let dir = tempfile::tempdir().unwrap();
        let path = Path::new("key");
        for (options, flags, algorithm) in [
            (&["-t", "ed25519"][..], 0, "ssh-ed25519"),
            (&["-t", "ecdsa", "-b", "256"], 0, "ecdsa-sha2-nistp256"),
            (&["-t", "ecdsa", "-b", "384"], 0, "ecdsa-sha2-nistp384"),
            (&["-t", "rsa", "-b", "2048"], SHA256, "rsa-sha2-256"),
        ] {
            let key = Key::parse(&generated(dir.path(), options, ""), path).unwrap();
            let signature = key.sign(b"data", flags).unwrap();
            assert_eq!(Reader(&signature).string().unwrap(), algorithm.as_bytes());
        }
    }

    #[test]
    fn keys_that_cannot_be_used_say_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let path = Path::new("/keys/id");
        let encrypted = generated(dir.path(), &["-t", "ed25519"], "secret");
        let old = generated(dir.path(), &["-t", "rsa", "-b", "2048", "-m", "PEM"], "");
        for (text, kind, words) in [
            (&encrypted[..], Kind::Unsupported, "ssh-add /keys/id"),
            (&old, Kind::Unsupported, "ssh-keygen -p -f /keys/id"),
            (b"hello", Kind::InvalidArgument, "no private key"),
            (&encrypted[..100], Kind::InvalidArgument, "too early"),
        ] {
            let error = Key::parse(text, path).unwrap_err();
            assert_eq!(error.kind(), kind);
            assert!(error.to_string().contains(words), "{error}");
        }
    }
}
