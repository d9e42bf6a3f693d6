//! Making an image of a root file system's archive.

use std::io::Read;

use kiln_graph::oci::{History, ImageConfig};
use kiln_graph::{Digest, Platform, Reference};

use crate::error::{Result, ResultExt as _};
use crate::image::{Images, NewImage, Stack};
use crate::store::compression::Decoder;
use crate::store::layer::{ExtractOptions, extract};
use crate::store::{Lease, tree};
use crate::task::Cancel;

/// What is imported.
#[derive(Clone, Debug)]
pub struct Imported {
    /// The defaults of containers, and the platform if it is not the host's.
    pub config: ImageConfig,
    /// A remark for the image's history.
    pub message: String,
    /// The name it gets.
    pub name: Option<Reference>,
}

impl Images {
    /// Makes an image with one layer of an archive, compressed in whatever way, and returns its id. Blocking.
    ///
    /// # Errors
    /// `InvalidArgument` for what is no archive or leads out of its root; `Exhausted` on a full disk; `Cancelled`.
    pub fn import(&self, lease: &Lease, input: impl Read + Send, what: Imported, cancel: &Cancel) -> Result<Digest> {
        let active = self.store.prepare(lease, None)?;
        let input = Decoder::new(input).context(|| "read the archive")?;
        extract(input, tree::open_root(active.dir())?, ExtractOptions::new(cancel).within(&self.store))
            .context(|| "import the archive")?;
        let snapshot = active.commit()?;
        let digests = self.store.layer_digests(snapshot, cancel)?;
        let snapshot = self.store.identify(lease, snapshot, &digests)?.id;
        let mut config = what.config;
        if config.os.is_empty() || config.architecture.is_empty() {
            let host = Platform::host();
            (config.os, config.architecture, config.variant) = (host.os, host.architecture, host.variant);
        }
        config.history = vec![History { comment: what.message, ..History::default() }];
        let names: Vec<Reference> = what.name.into_iter().collect();
        self.create(lease, NewImage { config, root: Stack::Here(Some(snapshot)), epoch_ns: None }, &names)
    }
}
