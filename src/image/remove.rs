//! Removing images and names, and what the collector must keep for those that stay.

use kiln_graph::Digest;
use kiln_graph::oci::{Index, Manifest};
use rusqlite::Connection;

use super::record::{self, NamedBy, Record};
use super::{Images, parse_config};
use crate::error::{Error, Kind, Result};
use crate::store::Roots;

/// Something that was removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Removal {
    /// A name, as docker prints it.
    Untagged(String),
    /// An image.
    Deleted(Digest),
}

impl Images {
    /// Removes a name, or an image when it is named by its id or loses its last name. Its content goes with the next
    /// collection. Blocking.
    ///
    /// `user` names the container that uses an image, if one does, and says whether it runs.
    ///
    /// # Errors
    /// `NotFound`; `Conflict`, in docker's words, when it is in use or has several names and `force` is not given.
    pub fn remove(
        &self,
        text: &str,
        force: bool,
        user: impl Fn(&Connection, &Digest) -> Result<Option<(String, bool)>>,
    ) -> Result<Vec<Removal>> {
        self.store.root().db().write(|tx| {
            let before = record::members(tx)?;
            let mut removed = remove_one(tx, text, force, &user)?;
            // With the name of an index go the images that are there for no other reason.
            for member in before.difference(&record::members(tx)?) {
                if let Some(member) = record::get(tx, member)?
                    && member.names.is_empty()
                    && user(tx, &member.id)?.is_none()
                {
                    removed.extend(delete(tx, &member)?);
                }
            }
            Ok(removed)
        })
    }

    /// Removes images that `unwanted` picks. Those in use are left. Blocking.
    ///
    /// # Errors
    /// When the database fails.
    pub fn prune(
        &self,
        unwanted: impl Fn(&Record) -> bool,
        user: impl Fn(&Connection, &Digest) -> Result<Option<(String, bool)>>,
    ) -> Result<Vec<Removal>> {
        self.store.root().db().write(|tx| {
            let mut removed = Vec::new();
            let members = record::members(tx)?;
            let all = record::all(tx)?;
            for record in all.iter().filter(|record| !members.contains(&record.id) && unwanted(record)) {
                if user(tx, &record.id)?.is_none() {
                    removed.extend(delete(tx, record)?);
                }
            }
            Ok(removed)
        })
    }

    /// Adds what the recorded images need to the roots of a collection: documents, layers as blobs, and snapshots. Blocking; to
    /// be called in the transaction of the collection.
    ///
    /// # Errors
    /// When the database fails. A damaged image keeps what can still be read of it.
    pub fn add_roots(&self, connection: &Connection, roots: &mut Roots) -> Result<()> {
        for (_, held) in self.holders(connection)? {
            roots.blobs.extend(held.blobs);
            roots.snapshots.extend(held.snapshots);
        }
        Ok(())
    }

    /// Returns each image, by a name of it, with what it needs.
    ///
    /// # Errors
    /// As [`Self::add_roots`].
    pub fn holders(&self, connection: &Connection) -> Result<Vec<(String, Roots)>> {
        let mut holders = Vec::new();
        for record in record::all(connection)? {
            let name = record.names.first().map_or_else(|| record.id.short(), kiln_graph::Reference::familiar);
            holders.push((format!("image {name}"), self.needs_of(connection, &record)?));
        }
        for index in record::indexes(connection)? {
            let mut roots = Roots { blobs: vec![index], ..Roots::default() };
            if let Some(bytes) = self.peek(connection, &index)?
                && let Ok(index) = serde_json::from_slice::<Index>(&bytes)
            {
                for manifest in index.manifests {
                    self.add_manifest(connection, manifest.digest, &mut roots)?;
                }
            }
            holders.push((format!("image index {}", index.short()), roots));
        }
        Ok(holders)
    }

    fn needs_of(&self, connection: &Connection, record: &Record) -> Result<Roots> {
        let mut roots = Roots { blobs: vec![record.id], ..Roots::default() };
        if let Some(bytes) = self.peek(connection, &record.id)?
            && let Ok(config) = parse_config(&bytes)
        {
            if let Some(chain) = config.rootfs.chain_ids().pop()
                && let Some(snapshot) = self.store.snapshot_of_chain(connection, &chain)?
            {
                roots.snapshots.push(snapshot);
            }
            // An image that was built on one that is gone can still be pushed.
            for diff_id in &config.rootfs.diff_ids {
                roots.blobs.extend(self.store.foreign_layer_blobs(connection, diff_id)?);
            }
        }
        let indexes = record.repository_digests.iter().filter_map(kiln_graph::Reference::digest);
        roots.blobs.extend(indexes);
        if let Some(manifest) = record.manifest {
            self.add_manifest(connection, manifest, &mut roots)?;
        }
        Ok(roots)
    }

    /// Adds a manifest and what it lists.
    fn add_manifest(&self, connection: &Connection, manifest: Digest, roots: &mut Roots) -> Result<()> {
        roots.blobs.push(manifest);
        if let Some(bytes) = self.peek(connection, &manifest)?
            && let Ok(manifest) = serde_json::from_slice::<Manifest>(&bytes)
        {
            roots.blobs.push(manifest.config.digest);
            roots.blobs.extend(manifest.layers.iter().map(|layer| layer.digest));
        }
        Ok(())
    }

    /// Reads a document that a collection under way cannot have removed yet.
    fn peek(&self, connection: &Connection, digest: &Digest) -> Result<Option<Vec<u8>>> {
        match self.store.peek_blob(connection, digest, super::MAX_DOCUMENT) {
            Ok(bytes) => Ok(bytes),
            Err(error) if error.kind() == Kind::Corrupt => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// Removes a name or an image.
fn remove_one(
    tx: &Connection,
    text: &str,
    force: bool,
    user: impl Fn(&Connection, &Digest) -> Result<Option<(String, bool)>>,
) -> Result<Vec<Removal>> {
    let (record, named_by) = record::find(tx, text)?;
    let names = record.names.len();
    if let NamedBy::Name(name) = &named_by
        && (names > 1 || (name.digest().is_some() && names > 0))
    {
        record::remove_name(tx, name)?;
        return Ok(vec![Removal::Untagged(name.familiar())]);
    }
    let short = record.id.short();
    if let Some((container, running)) = user(tx, &record.id)? {
        if running {
            return Err(Error::conflict(format!(
                "conflict: unable to delete {short} (cannot be forced) - image is being used by running container {container}"
            )));
        }
        if !force {
            return Err(Error::conflict(format!(
                "conflict: unable to delete {short} (must be forced) - image is being used by stopped container {container}"
            )));
        }
    }
    if named_by == NamedBy::Id && names > 1 && !force {
        return Err(Error::conflict(format!(
            "conflict: unable to delete {short} (must be forced) - image is referenced in multiple repositories"
        )));
    }
    delete(tx, &record)
}

fn delete(tx: &Connection, record: &Record) -> Result<Vec<Removal>> {
    record::delete(tx, &record.id)?;
    let names = record.names.iter().chain(&record.repository_digests);
    let untagged = names.map(|name| Removal::Untagged(name.familiar()));
    Ok(untagged.chain([Removal::Deleted(record.id)]).collect())
}
