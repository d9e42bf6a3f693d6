//! TLS towards clients: the daemon's certificate, and who may speak to it.

use std::sync::Arc;

use rustls::ServerConfig;
use rustls::server::WebPkiClientVerifier;

use super::arguments::Tls;
use crate::error::{Error, Result};
use crate::tls::{provider, read_authorities, read_pair};

/// Prepares the handshakes with clients. Blocking: reads the files.
///
/// # Errors
/// `InvalidArgument` naming the file that cannot be read, or the certificate that does not fit its key.
pub(super) fn config(tls: &Tls) -> Result<Arc<ServerConfig>> {
    let builder = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .expect("ring supports the default TLS versions");
    let builder = match &tls.ca {
        None => builder.with_no_client_auth(),
        Some(ca) => {
            let roots = Arc::new(read_authorities(ca)?);
            let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider()).build();
            let bad = |error| Error::invalid(format!("client authority {}", ca.display())).with_source(error);
            builder.with_client_cert_verifier(verifier.map_err(bad)?)
        }
    };
    let (chain, key) = read_pair(&tls.cert, &tls.key)?;
    let mut config = builder.with_single_cert(chain, key).map_err(|error| {
        Error::invalid(format!("certificate {} and key {}", tls.cert.display(), tls.key.display())).with_source(error)
    })?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}
