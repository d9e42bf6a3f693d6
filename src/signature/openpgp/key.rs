//! Public keys of version 4, and what they verify.

use ring::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P256_SHA384_ASN1, ECDSA_P384_SHA256_ASN1, ECDSA_P384_SHA384_ASN1, ED25519,
    RSA_PKCS1_2048_8192_SHA1_FOR_LEGACY_USE_ONLY, RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_2048_8192_SHA384,
    RSA_PKCS1_2048_8192_SHA512, RsaParameters, RsaPublicKeyComponents, UnparsedPublicKey, VerificationAlgorithm,
};
use sha1::{Digest as _, Sha1};

use super::super::reader::{Reader, padded, significant};
use super::seal::{Hash, Seal};
use crate::error::{Error, Result};

pub(super) const RSA: u8 = 1;
pub(super) const RSA_SIGN_ONLY: u8 = 3;
pub(super) const ECDSA: u8 = 19;
pub(super) const EDDSA: u8 = 22;

const P256: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
const P384: &[u8] = &[0x2b, 0x81, 0x04, 0x00, 0x22];
const ED25519_OID: &[u8] = &[0x2b, 0x06, 0x01, 0x04, 0x01, 0xda, 0x47, 0x0f, 0x01];

/// The least RSA key, in bits.
const MIN_RSA_BITS: usize = 2048;

/// A public key, primary or not.
#[derive(Debug)]
pub(super) struct Key {
    /// As it is hashed.
    pub(super) body: Vec<u8>,
    pub(super) fingerprint: [u8; 20],
    /// When it was made, in seconds since 1970.
    pub(super) created: u32,
    material: Material,
}

#[derive(Debug)]
enum Material {
    Rsa {
        n: Vec<u8>,
        e: Vec<u8>,
    },
    Ecdsa {
        curve: Vec<u8>,
        point: Vec<u8>,
    },
    Ed25519([u8; 32]),
    /// One that makes no signatures that are accepted; it may still have parts that do.
    Other(u8),
}

/// Why a signature is not verified.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Unverified {
    /// It is not that of the data.
    Wrong,
    /// The key is too weak to tell.
    Weak(String),
    /// What it is made with is not known here.
    Unsupported(String),
}

impl Key {
    /// Reads the body of a packet; `None` for a key of a version that is not known.
    pub(super) fn read(body: &[u8]) -> Result<Option<Self>> {
        let mut reader = Reader(body);
        if reader.u8()? != 4 {
            return Ok(None);
        }
        let created = reader.u32()?;
        let material = match reader.u8()? {
            RSA | RSA_SIGN_ONLY => Material::Rsa { n: reader.mpi()?.to_vec(), e: reader.mpi()?.to_vec() },
            ECDSA => Material::Ecdsa { curve: oid(&mut reader)?.to_vec(), point: reader.mpi()?.to_vec() },
            EDDSA => match (oid(&mut reader)?, reader.mpi()?) {
                (ED25519_OID, [0x40, point @ ..]) => match point.try_into() {
                    Ok(point) => Material::Ed25519(point),
                    Err(_) => return Err(Error::invalid("an Ed25519 key is not 32 bytes long")),
                },
                _ => Material::Other(EDDSA),
            },
            other => Material::Other(other),
        };
        let length = u16::try_from(body.len()).map_err(|_| Error::invalid("a key is longer than 64 KiB"))?;
        let hashed = [&[0x99], &length.to_be_bytes()[..], body].concat();
        Ok(Some(Self { fingerprint: Sha1::digest(&hashed).into(), body: hashed, created, material }))
    }

    /// The end of its fingerprint.
    pub(super) fn id(&self) -> [u8; 8] {
        self.fingerprint[12..].try_into().expect("a fingerprint has 20 bytes")
    }

    /// Says why nothing it signs is verified, if that is so.
    pub(super) fn objection(&self) -> Option<Unverified> {
        match &self.material {
            Material::Rsa { n, .. } => weak_rsa(n),
            Material::Ecdsa { curve, .. } => ecdsa_algorithm(curve, Hash::Sha256).err(),
            Material::Ed25519(_) => None,
            Material::Other(algorithm) => Some(unknown_algorithm(*algorithm)),
        }
    }

    /// Verifies that it signed a message, to which the signature's own fields belong.
    pub(super) fn verify(&self, seal: &Seal, message: &[u8]) -> Result<(), Unverified> {
        let mut values = Reader(&seal.values);
        let mut value = || values.mpi().map_err(|_| Unverified::Wrong);
        let is_valid = match (&self.material, seal.algorithm) {
            (Material::Rsa { n, e }, RSA | RSA_SIGN_ONLY) => {
                let params = rsa_params(n, seal.hash)?;
                let signature = padded(value()?, n.len()).ok_or(Unverified::Wrong)?;
                RsaPublicKeyComponents { n, e }.verify(params, message, &signature).is_ok()
            }
            (Material::Ecdsa { curve, point }, ECDSA) => {
                let algorithm = ecdsa_algorithm(curve, seal.hash)?;
                let signature = der(value()?, value()?);
                UnparsedPublicKey::new(algorithm, point).verify(message, &signature).is_ok()
            }
            (Material::Ed25519(point), EDDSA) => {
                let (r, s) = (padded(value()?, 32), padded(value()?, 32));
                let signature = [r.ok_or(Unverified::Wrong)?, s.ok_or(Unverified::Wrong)?].concat();
                let digest = seal.hash.of(message).ok_or_else(|| unsupported_hash(seal.hash))?;
                UnparsedPublicKey::new(&ED25519, point).verify(&digest, &signature).is_ok()
            }
            (Material::Other(algorithm), _) => return Err(unknown_algorithm(*algorithm)),
            _ => false,
        };
        if is_valid { Ok(()) } else { Err(Unverified::Wrong) }
    }
}

fn oid<'a>(reader: &mut Reader<'a>) -> Result<&'a [u8]> {
    let length = reader.u8()?;
    reader.take(usize::from(length))
}

fn unsupported_hash(hash: Hash) -> Unverified {
    Unverified::Unsupported(format!("with this sort of key, signatures of {hash} are not verified"))
}

fn unknown_algorithm(algorithm: u8) -> Unverified {
    Unverified::Unsupported(format!("keys of the algorithm {algorithm}, or of its curve, are not known here"))
}

fn weak_rsa(n: &[u8]) -> Option<Unverified> {
    let bits = n.len() * 8 - n.first().map_or(0, |first| first.leading_zeros() as usize);
    let why = || Unverified::Weak(format!("the RSA key has {bits} bits, and {MIN_RSA_BITS} is the least"));
    (bits < MIN_RSA_BITS).then(why)
}

fn rsa_params(n: &[u8], hash: Hash) -> Result<&'static RsaParameters, Unverified> {
    if let Some(objection) = weak_rsa(n) {
        return Err(objection);
    }
    match hash {
        // For what the holder of a key says of it, which old keys have; not for data.
        Hash::Sha1 => Ok(&RSA_PKCS1_2048_8192_SHA1_FOR_LEGACY_USE_ONLY),
        Hash::Sha256 => Ok(&RSA_PKCS1_2048_8192_SHA256),
        Hash::Sha384 => Ok(&RSA_PKCS1_2048_8192_SHA384),
        Hash::Sha512 => Ok(&RSA_PKCS1_2048_8192_SHA512),
        Hash::Other(_) => Err(unsupported_hash(hash)),
    }
}

fn ecdsa_algorithm(curve: &[u8], hash: Hash) -> Result<&'static dyn VerificationAlgorithm, Unverified> {
    match (curve, hash) {
        (P256, Hash::Sha256) => Ok(&ECDSA_P256_SHA256_ASN1),
        (P256, Hash::Sha384) => Ok(&ECDSA_P256_SHA384_ASN1),
        (P384, Hash::Sha256) => Ok(&ECDSA_P384_SHA256_ASN1),
        (P384, Hash::Sha384) => Ok(&ECDSA_P384_SHA384_ASN1),
        (P256 | P384, _) => Err(unsupported_hash(hash)),
        _ => Err(Unverified::Unsupported("of the curves for ECDSA, P-256 and P-384 are known here".to_owned())),
    }
}

/// Two numbers as ASN.1 writes a signature of ECDSA.
pub(in crate::signature) fn der(r: &[u8], s: &[u8]) -> Vec<u8> {
    let integer = |number: &[u8]| {
        let number = significant(number);
        let sign = if number.first().is_none_or(|first| first & 0x80 != 0) { &[0][..] } else { &[] };
        tagged(0x02, &[sign, number].concat())
    };
    tagged(0x30, &[integer(r), integer(s)].concat())
}

fn tagged(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = content.len();
    let head = match u8::try_from(length) {
        Ok(short @ ..128) => vec![tag, short],
        Ok(longer) => vec![tag, 0x81, longer],
        // No number of a curve is so long: what reads it refuses it.
        Err(_) => vec![tag, 0x82, (length >> 8) as u8, length as u8],
    };
    [head.as_slice(), content].concat()
}
