//! Keys as their holders publish them: a primary key, names, further keys, and what the primary key says of all of them.

use super::super::{Expired, Terms, armor, hex};
use super::key::Key;
use super::packet::{self, packets};
use super::seal::{self, Seal};
use super::shown_time;
use crate::error::{Error, Result};

/// How many certificates are read.
const MAX_CERTIFICATES: usize = 1000;

/// A primary key with what belongs to it. Nothing is verified when it is read.
#[derive(Debug)]
pub(super) struct Certificate {
    pub(super) primary: Key,
    /// Of the primary key alone.
    seals: Vec<Seal>,
    names: Vec<Name>,
    subkeys: Vec<Subkey>,
}

#[derive(Debug)]
struct Name {
    /// As it is hashed.
    hashed: Vec<u8>,
    seals: Vec<Seal>,
}

#[derive(Debug)]
struct Subkey {
    /// `None` for one of a version that is not known.
    key: Option<Key>,
    seals: Vec<Seal>,
}

/// A key that is said to have signed, and may sign.
#[derive(Debug)]
pub(super) struct Signer<'a> {
    pub(super) key: &'a Key,
    certificate: &'a Certificate,
    /// What the primary key says of itself.
    own: &'a Seal,
    /// What it says of the key, when that is another one.
    binding: Option<(&'a Subkey, &'a Seal)>,
}

/// Reads armored public keys.
///
/// # Errors
/// `InvalidArgument` when there are none, and for malformed ones; `Unsupported` when all are of versions that are not known.
pub(super) fn read(text: &str) -> Result<Vec<Certificate>> {
    let blocks = armor::blocks(text)?;
    let mut certificates = Vec::new();
    let mut others = false;
    for block in &blocks {
        match block.label.as_str() {
            "PGP PUBLIC KEY BLOCK" => {}
            "PGP PRIVATE KEY BLOCK" => {
                return Err(Error::invalid("it is a private key; export the public one (gpg --armor --export)"));
            }
            other => return Err(Error::invalid(format!("{other:?} is no public key"))),
        }
        others |= read_block(&block.data, &mut certificates)?;
        if certificates.len() > MAX_CERTIFICATES {
            return Err(Error::invalid(format!("there are more than {MAX_CERTIFICATES} keys")));
        }
    }
    match certificates.is_empty() {
        false => Ok(certificates),
        true if others => Err(Error::unsupported("its version is not known here; version 4 is")),
        true if text.trim_start().starts_with("ssh-") || text.trim_start().starts_with("ecdsa-") => {
            Err(Error::invalid("it is an SSH key, and the signature is OpenPGP's; give an armored OpenPGP key"))
        }
        true => Err(Error::invalid("there is no armored OpenPGP key in it (gpg --armor --export writes one)")),
    }
}

/// Reads the keys of a block, and says whether it has some of another version than 4.
fn read_block(data: &[u8], into: &mut Vec<Certificate>) -> Result<bool> {
    let mut others = false;
    // Packets that belong to nothing known are left out.
    let mut is_known = false;
    for packet in packets(data)? {
        let current = into.last_mut().filter(|_| is_known);
        match (packet.tag, current) {
            (packet::PUBLIC_KEY, _) => match Key::read(packet.body)? {
                Some(primary) => {
                    is_known = true;
                    into.push(Certificate { primary, seals: Vec::new(), names: Vec::new(), subkeys: Vec::new() });
                }
                None => (is_known, others) = (false, true),
            },
            (packet::SECRET_KEY | packet::SECRET_SUBKEY, _) => {
                return Err(Error::invalid("there is a private key in it"));
            }
            (packet::USER_ID, Some(current)) => current.names.push(Name::new(0xb4, packet.body)?),
            (packet::USER_ATTRIBUTE, Some(current)) => current.names.push(Name::new(0xd1, packet.body)?),
            (packet::PUBLIC_SUBKEY, Some(current)) => {
                current.subkeys.push(Subkey { key: Key::read(packet.body)?, seals: Vec::new() });
            }
            (packet::SIGNATURE, Some(current)) => {
                // One of a kind that is not known says nothing to us.
                if let Ok(seal) = Seal::read(packet.body) {
                    current.seals_of_last().push(seal);
                }
            }
            _ => {}
        }
    }
    Ok(others)
}

impl Name {
    fn new(tag: u8, body: &[u8]) -> Result<Self> {
        let length = u32::try_from(body.len()).map_err(|_| Error::invalid("a name is too long"))?;
        Ok(Self { hashed: [&[tag], &length.to_be_bytes()[..], body].concat(), seals: Vec::new() })
    }
}

impl Certificate {
    /// Where a signature belongs that follows what was read last.
    fn seals_of_last(&mut self) -> &mut Vec<Seal> {
        match (self.subkeys.last_mut(), self.names.last_mut()) {
            (Some(subkey), _) => &mut subkey.seals,
            (None, Some(name)) => &mut name.seals,
            (None, None) => &mut self.seals,
        }
    }

    /// Whether one of its keys has an id.
    pub(super) fn has_key(&self, id: [u8; 8]) -> bool {
        let others = self.subkeys.iter().filter_map(|subkey| subkey.key.as_ref());
        std::iter::once(&self.primary).chain(others).any(|key| key.id() == id)
    }

    /// Whether the primary key said something of itself with more bytes.
    fn said(&self, seal: &Seal, about: &[u8]) -> bool {
        self.primary.verify(seal, &[&self.primary.body, about, &seal.trailer].concat()).is_ok()
    }

    /// What it says of itself now: the newest of the name that counts most, or else without a name.
    fn own(&self) -> Option<&Seal> {
        let named = self.names.iter().filter_map(|name| {
            let said = |wanted: &dyn Fn(u8) -> bool| {
                let seals = name.seals.iter().filter(|seal| wanted(seal.kind) && self.said(seal, &name.hashed));
                seals.max_by_key(|seal| seal.created)
            };
            let own = said(&|kind| seal::CERTIFICATIONS.contains(&kind))?;
            let revoked = said(&|kind| kind == seal::CERTIFICATION_REVOCATION);
            Some(own).filter(|own| revoked.is_none_or(|revoked| revoked.created < own.created))
        });
        let direct = || {
            let seals = self.seals.iter().filter(|seal| seal.kind == seal::DIRECT && self.said(seal, &[]));
            seals.max_by_key(|seal| seal.created)
        };
        named.max_by_key(|own| (own.is_primary_name, own.created)).or_else(direct)
    }

    /// Why the primary key is revoked, if it is.
    fn revocation(&self) -> Option<&Seal> {
        self.seals.iter().find(|seal| seal.kind == seal::KEY_REVOCATION && self.said(seal, &[]))
    }

    /// What it says of a further key: the newest, with the consent of that key if that is to sign.
    fn binding<'a>(&self, subkey: &'a Subkey, key: &Key) -> Option<&'a Seal> {
        let seals = subkey.seals.iter().filter(|seal| seal.kind == seal::SUBKEY_BINDING && self.said(seal, &key.body));
        let newest = seals.max_by_key(|seal| seal.created)?;
        let consents = newest.embedded.as_ref().is_some_and(|consent| {
            let message = [&self.primary.body, &key.body, &consent.trailer].map(Vec::as_slice).concat();
            consent.kind == seal::PRIMARY_BINDING && key.verify(consent, &message).is_ok()
        });
        Some(newest).filter(|_| consents)
    }

    /// Returns the key that a signature says it is of, if it is one of these and may sign.
    pub(super) fn signer(&self, seal: &Seal) -> Option<Signer<'_>> {
        let id = seal.issuer?;
        if !self.has_key(id) {
            return None;
        }
        let own = self.own()?;
        if self.primary.id() == id {
            let signer = Signer { key: &self.primary, certificate: self, own, binding: None };
            return Some(signer).filter(|_| own.lets_sign());
        }
        self.subkeys.iter().find_map(|subkey| {
            let key = subkey.key.as_ref().filter(|key| key.id() == id)?;
            let binding = self.binding(subkey, key).filter(|binding| binding.lets_sign())?;
            Some(Signer { key, certificate: self, own, binding: Some((subkey, binding)) })
        })
    }
}

impl Signer<'_> {
    /// Checks that the key could sign at a time, and that nobody has taken that back.
    pub(super) fn check(&self, seal: &Seal, at: i64, terms: &Terms<'_>) -> Result<()> {
        let shown = hex(&self.key.fingerprint);
        let refused = |why: String| Error::forbidden(format!("it is signed with the key {shown}, which {why}"));
        let said = [Some(seal), Some(self.own), self.binding.map(|(_, binding)| binding)];
        let consent = self.binding.and_then(|(_, binding)| binding.embedded.as_deref());
        let said: Vec<&Seal> = said.into_iter().flatten().chain(consent).collect();
        if let Some(what) = said.iter().find_map(|seal| seal.critical.as_ref()) {
            return Err(Error::unsupported(format!("its signature depends on what is not known here: {what}")));
        }
        if let Some(revocation) = self.certificate.revocation() {
            return Err(refused(format!("was revoked{}", reason(revocation))));
        }
        if let Some(revocation) = self.subkey_revocation(at) {
            return Err(refused(format!("was revoked{}", reason(revocation))));
        }
        let primary = &self.certificate.primary;
        let lives = [Some((primary, self.own)), self.binding.map(|(_, binding)| (self.key, binding))];
        for (key, own) in lives.into_iter().flatten() {
            let created = i64::from(key.created);
            if at < created {
                return Err(refused(format!("was made later ({})", shown_time(created))));
            }
            let end = created + i64::from(own.key_lifetime);
            if own.key_lifetime != 0 && at > end {
                let hint = match terms.expired {
                    Expired::Refused => "; its holder has to prolong it, or to sign with another one",
                    Expired::Accepted => " before it signed",
                };
                return Err(refused(format!("expired at {}{hint}", shown_time(end))));
            }
        }
        if said.iter().any(|seal| seal.is_over(at)) {
            return Err(refused("made a signature that has expired".to_owned()));
        }
        Ok(())
    }

    /// A revocation of the key, when that is not the primary one: one that was compromised never was good.
    fn subkey_revocation(&self, at: i64) -> Option<&Seal> {
        const COMPROMISED: u8 = 2;
        let (subkey, _) = self.binding?;
        subkey.seals.iter().find(|seal| {
            let counts = matches!(seal.reason, Some((COMPROMISED, _))) || i64::from(seal.created) <= at;
            seal.kind == seal::SUBKEY_REVOCATION && counts && self.certificate.said(seal, &self.key.body)
        })
    }
}

/// The words of a revocation.
fn reason(revocation: &Seal) -> String {
    let words = revocation.reason.as_ref().map(|(_, words)| words.trim()).filter(|words| !words.is_empty());
    words.map(|words| format!(" ({words:?})")).unwrap_or_default()
}
