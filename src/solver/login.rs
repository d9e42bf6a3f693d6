//! Tokens that clients fetch for the engine, so that they need not hand out credentials.
//!
//! A client that does so has an *authority*: a key that stands for its credentials, and is made of them, of the registry and of a
//! salt of this engine. A token is given to other builds only when their client proves, by signing what it is given, that it has
//! the same authority. That is BuildKit's protocol.

use std::collections::HashMap;
use std::sync::{Mutex, OnceLock};
use std::time::Duration;

use ring::signature::{ED25519, UnparsedPublicKey};
use tokio::time::Instant;

use super::lock;
use super::session::Session;
use crate::error::{Error, Result};
use crate::registry::{Granted, TokenQuestion};

/// Bytes of a signature, which stands before what was signed.
const SIGNATURE: usize = 64;

/// A token that has so little time left is fetched anew.
const LEFT: Duration = Duration::from_secs(10);

/// How long a token lives when nobody says.
const LIFETIME: Duration = Duration::from_mins(1);

/// The most tokens that are remembered.
const MAX_TOKENS: usize = 1000;

/// The tokens of an engine.
#[derive(Debug, Default)]
pub(super) struct Tokens {
    salt: OnceLock<[u8; 32]>,
    known: Mutex<HashMap<Wanted, Known>>,
}

/// What a token is for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Wanted {
    host: String,
    realm: String,
    service: String,
    scopes: Vec<String>,
}

#[derive(Clone)]
struct Known {
    authority: [u8; 32],
    token: String,
    ends: Instant,
}

impl std::fmt::Debug for Known {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Known")
    }
}

fn random() -> Result<[u8; 32]> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).map_err(|error| Error::internal(format!("get random numbers: {error}")))?;
    Ok(bytes)
}

impl Tokens {
    /// Returns a token for a host's service, if a client fetches tokens for it.
    ///
    /// # Errors
    /// What the client, or the service that it asked, answered.
    pub(super) async fn get(&self, session: &Session, host: &str, question: TokenQuestion) -> Result<Option<Granted>> {
        if !session.offers_tokens() {
            return Ok(None);
        }
        let salt = match self.salt.get() {
            Some(salt) => *salt,
            None => {
                let new = random()?;
                *self.salt.get_or_init(|| new)
            }
        };
        let TokenQuestion { realm, service, scopes, refused, .. } = question;
        let wanted = Wanted { host: host.to_owned(), realm, service, scopes };
        let known = lock(&self.known).get(&wanted).cloned().filter(|known| known.ends > Instant::now() + LEFT);
        if let Some(known) = known.filter(|_| !refused) {
            let payload = random()?;
            let signed = session.sign(host, &payload, &salt).await?;
            if signed.is_some_and(|signed| is_signed_by(&known.authority, &signed, &payload)) {
                let expires_in_s = known.ends.duration_since(Instant::now()).as_secs();
                return Ok(Some(Granted { token: known.token, expires_in_s }));
            }
        }
        let Some(authority) = session.authority(host, &salt).await? else { return Ok(None) };
        let Wanted { realm, service, scopes, .. } = wanted.clone();
        let granted = session.fetch_token(host, realm, service, scopes).await?;
        let lifetime = match granted.expires_in_s {
            0 => LIFETIME,
            seconds => Duration::from_secs(seconds.min(24 * 3600)),
        };
        let ends = Instant::now() + lifetime;
        let mut known = lock(&self.known);
        if known.len() >= MAX_TOKENS {
            known.clear();
        }
        known.insert(wanted, Known { authority, token: granted.token.clone(), ends });
        Ok(Some(granted))
    }
}

/// Says whether somebody with this key signed a text: the signature stands before the text.
fn is_signed_by(key: &[u8; 32], signed: &[u8], text: &[u8]) -> bool {
    let Some((signature, signed)) = signed.split_at_checked(SIGNATURE) else { return false };
    signed == text && UnparsedPublicKey::new(&ED25519, key).verify(text, signature).is_ok()
}

#[cfg(test)]
mod tests {
    use ring::signature::{Ed25519KeyPair, KeyPair as _};

    use super::*;

    #[test]
    fn only_the_key_that_signed_is_believed() {
        let key = |seed: u8| Ed25519KeyPair::from_seed_unchecked(&[seed; 32]).unwrap();
        let public = |key: &Ed25519KeyPair| <[u8; 32]>::try_from(key.public_key().as_ref()).unwrap();
        let (one, other) = (key(1), key(2));
        let signed = [one.sign(b"text").as_ref(), b"text"].concat();
        assert!(is_signed_by(&public(&one), &signed, b"text"));
        assert!(!is_signed_by(&public(&other), &signed, b"text"));
        assert!(!is_signed_by(&public(&one), &signed, b"other"));
        assert!(!is_signed_by(&public(&one), &signed[..60], b"text"));
    }
}
