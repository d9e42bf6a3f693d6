//! What all users of TLS share: the provider, and certificates and keys from PEM files.
//!
//! rustls with ring, set up explicitly: nothing depends on a process-wide provider.

use std::path::Path;
use std::sync::Arc;

use rustls::RootCertStore;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::error::{Error, Result};

/// Returns the implementation of cryptography that is used everywhere.
#[must_use]
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// Reads the certificates of a PEM file, at least one. Blocking.
///
/// # Errors
/// `InvalidArgument` naming the file.
pub fn read_certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let certificates = CertificateDer::pem_file_iter(file).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let certificates = certificates.map_err(|error| bad_file(file, error))?;
    if certificates.is_empty() {
        return Err(Error::invalid(format!("{}: the file holds no certificate in PEM form", file.display())));
    }
    Ok(certificates)
}

/// Reads the authorities of a PEM file. Blocking.
///
/// # Errors
/// `InvalidArgument` naming the file.
pub fn read_authorities(file: &Path) -> Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    for certificate in read_certificates(file)? {
        roots.add(certificate).map_err(|error| bad_file(file, error))?;
    }
    Ok(roots)
}

/// Reads a certificate with the chain above it, and its private key. Blocking.
///
/// # Errors
/// `InvalidArgument` naming the file.
pub fn read_pair(cert: &Path, key: &Path) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)> {
    let private = PrivateKeyDer::from_pem_file(key)
        .map_err(|error| Error::invalid(format!("read a private key from {}", key.display())).with_source(error))?;
    Ok((read_certificates(cert)?, private))
}

/// An error about the certificates of a file.
pub fn bad_file(file: &Path, error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::invalid(format!("read certificates from {}", file.display())).with_source(error)
}
