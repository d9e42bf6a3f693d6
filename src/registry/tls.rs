//! TLS towards registries: whom to trust and which certificate to show.
//!
//! The system's authorities are read once, when the first connection needs them; a host that has none gets Mozilla's list,
//! compiled in.

use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};

use crate::config::HostConfig;
use crate::error::{Error, Result};
use crate::tls::{bad_file, provider, read_certificates, read_pair};

/// Reads the authorities the system trusts, or those `SSL_CERT_FILE` and `SSL_CERT_DIR` name, as programs with OpenSSL do.
/// Blocking, 2 to 45 ms.
pub(super) fn system_roots() -> RootCertStore {
    let mut roots = RootCertStore::empty();
    // A certificate that cannot be read is one authority less, which shows as an untrusted server.
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if roots.is_empty() {
        roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    }
    roots
}

/// Makes the configuration for connections that use no TLS: it trusts nobody.
pub(super) fn without_trust() -> ClientConfig {
    let verifier = builder().with_root_certificates(RootCertStore::empty());
    verifier.with_no_client_auth()
}

/// Makes the configuration for a host. Blocking: reads the certificate files it names.
///
/// # Errors
/// `InvalidArgument` naming the file that cannot be read or holds no certificate or key.
pub(super) fn client_config(host: &HostConfig, roots: &Arc<RootCertStore>) -> Result<ClientConfig> {
    let trust = if host.insecure == Some(true) { Trust::Anything } else { Trust::read(host, roots)? };
    let verifier = Verifier { trust, provider: provider() };
    let builder = builder().dangerous().with_custom_certificate_verifier(Arc::new(verifier));
    let mut config = match host.keypairs.as_slice() {
        [] => builder.with_no_client_auth(),
        [pair] => {
            let (chain, key) = read_pair(&pair.cert, &pair.key)?;
            builder.with_client_auth_cert(chain, key).map_err(|error| {
                Error::invalid(format!("client certificate {} and key {}", pair.cert.display(), pair.key.display()))
                    .with_source(error)
            })?
        }
        [first, second, ..] => {
            return Err(Error::unsupported(format!(
                "several client certificates for one registry ({} and {}); keep one",
                first.cert.display(),
                second.cert.display()
            )));
        }
    };
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

fn builder() -> rustls::ConfigBuilder<ClientConfig, rustls::WantsVerifier> {
    ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .expect("ring supports the default TLS versions")
}

/// Which servers are trusted.
#[derive(Debug)]
enum Trust {
    /// All, as `insecure = true` asks; only the handshake's own signatures are checked.
    Anything,
    /// Those an authority vouches for, and those that show exactly a certificate the user listed.
    ///
    /// Self-signed certificates as registries' manuals make them (`openssl req -x509`) are marked as an authority's, which a
    /// strict verification refuses to see at a server. Listing such a file is as clear a statement of trust as can be made;
    /// its dates are not checked then, its name is.
    Listed { certificates: Vec<CertificateDer<'static>>, authorities: Arc<WebPkiServerVerifier> },
}

impl Trust {
    fn read(host: &HostConfig, system: &Arc<RootCertStore>) -> Result<Self> {
        let mut roots = Arc::clone(system);
        let mut certificates = Vec::new();
        for file in &host.ca {
            for certificate in read_certificates(file)? {
                Arc::make_mut(&mut roots).add(certificate.clone()).map_err(|error| bad_file(file, error))?;
                certificates.push(certificate);
            }
        }
        let authorities = WebPkiServerVerifier::builder_with_provider(roots, provider())
            .build()
            .map_err(|error| Error::internal("prepare the verification of certificates").with_source(error))?;
        Ok(Self::Listed { certificates, authorities })
    }
}

#[derive(Debug)]
struct Verifier {
    trust: Trust,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        match &self.trust {
            Trust::Anything => Ok(ServerCertVerified::assertion()),
            Trust::Listed { certificates, .. } if certificates.iter().any(|listed| listed == end_entity) => {
                let certificate = ParsedCertificate::try_from(end_entity)?;
                rustls::client::verify_server_name(&certificate, server_name)?;
                Ok(ServerCertVerified::assertion())
            }
            Trust::Listed { authorities, .. } => {
                authorities.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
            }
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
