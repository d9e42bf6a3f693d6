//! What is attached to a manifest: signatures and other artifacts that name it as their subject (OCI distribution 1.1).

use http::{Method, StatusCode};
use kiln_graph::oci::{Descriptor, Index};
use kiln_graph::{Algorithm, Digest, Reference};

use super::transport::Request;
use super::{Access, Client, unexpected};
use crate::error::{Error, Kind, Result};

/// The longest list that is read, in bytes.
const MAX_LIST: usize = 4 << 20;

impl Client {
    /// Returns what a registry says is attached to a manifest of a reference's repository.
    ///
    /// Registries that do not know the question are asked for the tag in which others keep the answer. Of a list of several
    /// pages the first is read.
    ///
    /// # Errors
    /// As [`Client::resolve`], but that nothing is attached is none.
    pub async fn referrers(&self, reference: &Reference, subject: &Digest) -> Result<Vec<Descriptor>> {
        let endpoint = self.registry(reference);
        let access = Access::pull("look up what is attached to", reference, &endpoint);
        let request = Request::new(Method::GET, endpoint.url(&format!("referrers/{subject}"))?);
        let answer = self.retrying(|| self.call(&endpoint, &access, &request)).await?;
        match answer.status() {
            StatusCode::OK => {
                let body = answer.read(MAX_LIST).await.map_err(|fault| fault.context(&access).into_error())?;
                let list: Index = serde_json::from_slice(&body)
                    .map_err(|_| Error::unavailable(format!("{access}: {} sent no index", endpoint.name)))?;
                Ok(list.manifests)
            }
            StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED | StatusCode::BAD_REQUEST => {
                self.referrers_by_tag(reference, subject).await
            }
            _ => Err(unexpected(&endpoint, &access, answer).await),
        }
    }

    async fn referrers_by_tag(&self, reference: &Reference, subject: &Digest) -> Result<Vec<Descriptor>> {
        let algorithm = match subject.algorithm() {
            Algorithm::Sha256 => "sha256",
            Algorithm::Sha512 => "sha512",
        };
        // Tags are not as long as the longer digests are.
        let hex = subject.to_string();
        let hex = hex.split_once(':').map_or(hex.as_str(), |(_, hex)| hex);
        let tag = format!("{algorithm}-{}", &hex[..hex.len().min(64)]);
        let tagged = reference.without_digest().with_tag(&tag)?;
        match self.resolve(&tagged).await {
            Ok(found) => {
                Ok(serde_json::from_slice::<Index>(&found.content).map(|list| list.manifests).unwrap_or_default())
            }
            Err(error) if matches!(error.kind(), Kind::NotFound | Kind::Unsupported) => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }
}
