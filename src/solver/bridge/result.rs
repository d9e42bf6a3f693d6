//! What becomes of what a frontend returns: it is made, exported, and told to caches.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use futures_util::FutureExt as _;
use kiln_graph::Platform;
use kiln_graph::oci::ImageConfig;

use super::{Bridge, Findings, Part, Platforms, Refs, key};
use crate::error::{Error, Result, ResultExt as _};
use crate::image::Stack;
use crate::solver::ProvenanceMode;
use crate::solver::attest::Budget;
use crate::solver::build::without_imports;
use crate::solver::definition::plain_config;
use crate::solver::distant::Files;
use crate::solver::exchange::{CacheExport, Scope};
use crate::solver::export::{Export, Product, Variant};
use crate::solver::failure::Failure;
use crate::solver::request::Built;

impl Bridge {
    /// Makes the results of a frontend and exports them.
    ///
    /// # Errors
    /// As for [`crate::solver::Solver::build`].
    pub async fn export(&self, findings: &Findings) -> Result<Built, Failure> {
        let was_broken = self.is_broken();
        match Box::pin(self.export_once(findings)).await {
            Err(failure) if self.is_broken() && !was_broken => {
                self.warn(without_imports(&failure));
                self.refs().values().for_each(|part| part.batch.draft.job.forget_cached());
                Box::pin(self.export_once(findings)).await
            }
            exported => exported,
        }
    }

    /// Says whether a layer that an imported cache promised could not be had.
    fn is_broken(&self) -> bool {
        self.shop.shared.broken.load(Ordering::Relaxed)
    }

    async fn export_once(&self, findings: &Findings) -> Result<Built, Failure> {
        let names: Vec<&String> = match &findings.refs {
            Refs::None => return Ok(Built::default()),
            Refs::One(name) => vec![name],
            Refs::ByPlatform(names) => names.values().collect(),
        };
        self.exports.iter().try_for_each(|export| export.check(names.len()))?;
        let attested = findings.attestations.values().flatten().map(|returned| &returned.result);
        self.make_all(&names.iter().copied().chain(attested).collect::<Vec<_>>()).await?;
        let scopes = self.scopes(&names)?;
        let mut built = Built::default();
        if self.shop.request.documented {
            for (batch, _) in self.batches(&names)? {
                built.documents.extend(batch.draft.documents().await?);
            }
        }
        if let Some(mode) = self.shop.request.record_provenance {
            built.response = self.record(findings, mode).await?;
        }
        let verifies = self.shop.shared.witness.is_some();
        let refs = names.iter().map(|name| (*name).clone()).collect();
        let found = self.shop.shared.find_exports(&findings.metadata, refs).await?;
        let exports: Vec<Export> = self.exports.iter().cloned().chain(found).collect();
        if !exports.is_empty() || verifies {
            let files = Files::of(&exports, verifies);
            let mut product = self.product(findings, files).await?;
            if self.caches.iter().any(CacheExport::is_inline) {
                product.cache.clone_from(&scopes);
            }
            let job = self.refs().values().next().map(|part| Arc::clone(&part.batch.draft.job));
            let job = job.ok_or_else(|| Error::invalid("the frontend returned nothing that could be exported"))?;
            let product = Arc::new(product);
            if !job.passes(&product, &mut built.response).await? {
                return Ok(built);
            }
            built.response.extend(job.export(&exports, &product).await?);
        }
        built.response.extend(self.shop.shared.export_caches(&self.caches, &scopes).await?);
        self.shop.shared.finalize_exports(&built.response).await?;
        Ok(built)
    }

    /// Writes what buildx's metadata file says about where results are from.
    async fn record(&self, findings: &Findings, mode: ProvenanceMode) -> Result<BTreeMap<String, String>> {
        let named: Vec<(Option<&str>, &String)> = match &findings.refs {
            Refs::None => Vec::new(),
            Refs::One(name) => vec![(None, name)],
            Refs::ByPlatform(names) => names.iter().map(|(id, name)| (Some(id.as_str()), name)).collect(),
        };
        let mut response = BTreeMap::new();
        for (platform, name) in named.into_iter().filter(|(_, name)| !name.is_empty()) {
            let Part { batch, number } = self.part(name)?;
            response.extend([batch.draft.record(mode, number, platform).await?]);
        }
        Ok(response)
    }

    /// Returns what caches are told about results.
    fn scopes(&self, names: &[&String]) -> Result<Vec<Scope>> {
        let batches = self.batches(names)?;
        Ok(batches.iter().map(|(batch, numbers)| batch.draft.scope(numbers)).collect())
    }

    async fn product(&self, findings: &Findings, files: Files) -> Result<Product, Failure> {
        let metadata = &findings.metadata;
        let platforms = match metadata.get(key::PLATFORMS) {
            Some(json) => serde_json::from_slice::<Platforms>(json).context(|| key::PLATFORMS)?.platforms,
            None => Vec::new(),
        };
        let named: Vec<(String, &String)> = match &findings.refs {
            Refs::None => Vec::new(),
            Refs::One(name) => vec![(platforms.first().map(|known| known.id.clone()).unwrap_or_default(), name)],
            Refs::ByPlatform(names) if platforms.is_empty() => {
                names.iter().map(|(id, name)| (id.clone(), name)).collect()
            }
            Refs::ByPlatform(names) => {
                let named = platforms.iter().map(|known| {
                    let name = names.get(&known.id);
                    let name = name.ok_or_else(|| Error::invalid(format!("there is no result for {}", known.id)))?;
                    Ok((known.id.clone(), name))
                });
                named.collect::<Result<_>>()?
            }
        };
        let (mut variants, mut budget, mut attestations) =
            (Vec::new(), Budget::default(), findings.attestations.clone());
        for (id, name) in named {
            let config = metadata.get(&format!("{}/{id}", key::CONFIG)).or_else(|| metadata.get(key::CONFIG));
            let config: Option<ImageConfig> =
                config.map(|json| serde_json::from_slice(json).context(|| key::CONFIG)).transpose()?;
            let known = platforms.iter().find(|known| known.id == id).map(|known| known.platform.clone());
            let platform = known.or_else(|| config.as_ref().map(ImageConfig::platform)).unwrap_or_else(Platform::host);
            let config = config.unwrap_or_else(|| plain_config(&platform));
            let returned = attestations.remove(&id).or_else(|| attestations.remove(&platform.to_string()));
            let mut variant = if name.is_empty() {
                Variant { platform, config, root: Stack::Here(None), base_layers: 0, attestations: Vec::new() }
            } else {
                let Part { batch, number } = self.part(name)?;
                Variant { platform, config, ..batch.draft.variant(number, files).await? }
            };
            if let Some(returned) = returned {
                variant.attestations = self.attested(&returned, variant.attestations, &mut budget).boxed().await?;
            }
            variants.push(variant);
        }
        if let Some((id, _)) = attestations.iter().find(|(_, returned)| !returned.is_empty()) {
            return Err(Error::invalid(format!("there are attestations for {id}, and no result")).into());
        }
        let epoch = metadata.get(key::EPOCH).and_then(|text| std::str::from_utf8(text).ok()?.parse::<i64>().ok());
        let multi_platform = matches!(findings.refs, Refs::ByPlatform(_));
        let epoch_ns = epoch.map(|seconds| seconds.saturating_mul(1_000_000_000));
        Ok(Product { variants, multi_platform, epoch_ns, cache: Vec::new() })
    }
}
