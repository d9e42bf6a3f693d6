//! The layers of snapshots: their digests, their tars and their compressed blobs.

use std::io::{Read, Write};

use kiln_graph::Digest;
use rusqlite::Connection;
use sha2::{Digest as _, Sha256};

use super::{Active, LayerForm, SnapshotId, find};
use crate::error::{Error, Result, ResultExt as _};
use crate::store::compression::{Compression, Decoder, Encoder, Format};
use crate::store::layer::{self, Form, LayerDigests, PathChange, Source, Style};
use crate::store::rootfs::Access;
use crate::store::tree::{self, Metadata};
use crate::store::{Blob, BlobWriter, Lease, Store, optional, parse_digest};
use crate::task::Cancel;

/// A layer that is compressed and stored.
#[derive(Clone, Debug)]
pub struct CompressedLayer {
    /// The compressed layer.
    pub blob: Blob,
    /// The digest of its tar.
    pub diff_id: Digest,
}

/// A compressed form of a layer that somebody has seen, whether or not it is in the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerBlob {
    /// The digest of the compressed layer.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
    /// What its media type ends in: nothing, `+gzip` or `+zstd`.
    pub media_suffix: String,
}

impl Store {
    /// Computes the digests of a snapshot's layer. Blocking: uses two threads and reads all of the layer.
    ///
    /// # Errors
    /// `NotFound`; `Cancelled`; `Unsupported` when the snapshot holds something no layer can hold.
    pub fn layer_digests(&self, id: SnapshotId, cancel: &Cancel) -> Result<LayerDigests> {
        layer::digest(self.source(id)?, cancel).context(|| format!("digest the layer of snapshot {id}"))
    }

    /// Writes the tar of a snapshot's layer, uncompressed. Blocking.
    ///
    /// # Errors
    /// As [`Self::layer_digests`], and those of `out`.
    pub fn write_layer(&self, id: SnapshotId, out: &mut dyn Write, cancel: &Cancel) -> Result<LayerDigests> {
        self.write_layer_as(id, &Style::default(), out, cancel)
    }

    /// Writes the tar of a snapshot's layer in a certain style, uncompressed. Blocking.
    ///
    /// # Errors
    /// As [`Self::layer_digests`], and those of `out`.
    pub fn write_layer_as(
        &self,
        id: SnapshotId,
        style: &Style,
        out: &mut dyn Write,
        cancel: &Cancel,
    ) -> Result<LayerDigests> {
        layer::write(self.source(id)?, style, out, cancel).context(|| format!("write the layer of snapshot {id}"))
    }

    /// Returns a snapshot's layer as a compressed blob, leased: one that is there, or else made now on all cores. Blocking.
    ///
    /// A layer that came compressed is given as it came, even at another level, so that registries need not store it twice; one
    /// that cannot be made again byte for byte, even if it is compressed in another way than asked for.
    ///
    /// # Errors
    /// As [`Self::layer_digests`]; `Conflict` for a layer that was pulled, cannot be made again, and whose blob is gone.
    pub fn layer_blob(
        &self,
        lease: &Lease,
        id: SnapshotId,
        compression: Compression,
        cancel: &Cancel,
    ) -> Result<CompressedLayer> {
        let snapshot = self.root().db().read(|connection| find(connection, "id = ?1", id))?;
        let (_, snapshot) = snapshot.ok_or_else(|| id.missing())?;
        if let Some(diff_id) = snapshot.diff_id
            && let Some(blob) = self.known_blob(lease, &diff_id, Some(compression))?
        {
            return Ok(CompressedLayer { blob, diff_id });
        }
        let mut encoder = Encoder::new(self.blob_writer(lease)?, compression)?;
        // A plain layer that came from elsewhere is kept because packing would give other bytes.
        if let Some(diff_id) = snapshot.diff_id
            && let Some(plain) = self.blob(lease, &diff_id)?
        {
            copy_blob(&plain, &mut encoder, cancel)?;
            return self.compressed(diff_id, encoder, compression);
        }
        let digests = self.write_layer(id, &mut encoder, cancel)?;
        if let Some(expected) = snapshot.diff_id.filter(|expected| *expected != digests.diff_id) {
            if let Some(blob) = self.known_blob(lease, &expected, None)? {
                return Ok(CompressedLayer { blob, diff_id: expected });
            }
            return Err(Error::conflict(format!(
                "the layer {expected} came from elsewhere and its blob is no longer here, so it must be pulled again; packed \
                 anew it would be {}",
                digests.diff_id
            )));
        }
        self.compressed(digests.diff_id, encoder, compression)
    }

    /// Returns a snapshot's layer compressed in just the way asked for, leased, even if it came in another. Blocking.
    ///
    /// # Errors
    /// As [`Self::layer_blob`].
    pub fn compressed_layer(
        &self,
        lease: &Lease,
        id: SnapshotId,
        compression: Compression,
        cancel: &Cancel,
    ) -> Result<CompressedLayer> {
        let snapshot = self.root().db().read(|connection| find(connection, "id = ?1", id))?;
        let (_, snapshot) = snapshot.ok_or_else(|| id.missing())?;
        if let Some(diff_id) = snapshot.diff_id {
            if let Some(blob) = self.labelled_blob(lease, &diff_id, compression)? {
                return Ok(CompressedLayer { blob, diff_id });
            }
            if let Some((foreign, _)) = self.foreign_layer_blob(lease, &diff_id)? {
                let mut encoder = Encoder::new(self.blob_writer(lease)?, compression)?;
                copy(Decoder::new(foreign.open()?)?, &mut encoder, cancel)
                    .context(|| format!("read blob {}", foreign.digest()))?;
                return self.compressed(diff_id, encoder, compression);
            }
        }
        self.layer_blob(lease, id, compression, cancel)
    }

    /// Makes a layer of eStargz form out of a snapshot's: the same files, in gzip members with a table of contents, and so another diff
    /// ID. It is leased, and known from now on as layers are that came from elsewhere. Blocking.
    ///
    /// # Errors
    /// As [`Self::layer_blob`]; `InvalidArgument` and `Unsupported` for layers that cannot have the form.
    pub fn estargz_layer(&self, lease: &Lease, id: SnapshotId, level: u32, cancel: &Cancel) -> Result<CompressedLayer> {
        let context = || format!("write the layer of snapshot {id} in eStargz form");
        let tar = self.layer_blob(lease, id, Compression::None, cancel)?.blob;
        let mut writer = self.blob_writer(lease)?;
        let tar = Decoder::new(tar.open()?).context(context)?;
        let diff_id = layer::write_estargz(tar, &mut writer, level, cancel).context(context)?;
        let blob = writer.finish()?;
        let media_suffix = Compression::GZIP.media_suffix().to_owned();
        self.remember_layer_blob(&diff_id, &LayerBlob { digest: *blob.digest(), size: blob.size(), media_suffix })?;
        Ok(CompressedLayer { blob, diff_id })
    }

    /// Returns the digest of the table of contents of a layer in eStargz form; `None` for another one. Blocking.
    ///
    /// # Errors
    /// When the blob cannot be read, or is damaged.
    pub fn estargz_table(&self, blob: &Blob) -> Result<Option<Digest>> {
        layer::table_digest(blob.open()?).context(|| format!("read blob {}", blob.digest()))
    }

    /// Finds a compressed blob of a layer that came from elsewhere, leased, with what its media type ends in. Blocking.
    ///
    /// # Errors
    /// When the database fails.
    pub fn foreign_layer_blob(&self, lease: &Lease, diff_id: &Digest) -> Result<Option<(Blob, String)>> {
        let sql = "SELECT digest, media_suffix FROM layer_blobs
            WHERE diff_id = ?1 AND label IS NULL AND media_suffix <> '' ORDER BY digest";
        let found: Vec<(String, String)> = self.root().db().read(|connection| {
            let mut select = connection.prepare_cached(sql)?;
            let rows = select.query_map([diff_id.to_string()], |row| Ok((row.get(0)?, row.get(1)?)))?;
            Ok(rows.collect::<rusqlite::Result<_>>()?)
        })?;
        for (digest, suffix) in found {
            if let Some(blob) = self.blob(lease, &parse_digest(&digest)?)? {
                return Ok(Some((blob, suffix)));
            }
        }
        Ok(None)
    }

    /// Finds the blob of a layer that was compressed here in just this way.
    fn labelled_blob(&self, lease: &Lease, diff_id: &Digest, compression: Compression) -> Result<Option<Blob>> {
        let sql = "SELECT digest FROM layer_blobs WHERE diff_id = ?1 AND label = ?2";
        let found: Option<String> = self.root().db().read(|connection| {
            let mut select = connection.prepare_cached(sql)?;
            optional(select.query_row((diff_id.to_string(), compression.label()), |row| row.get(0)))
        })?;
        match found {
            Some(digest) => self.blob(lease, &parse_digest(&digest)?),
            None => Ok(None),
        }
    }

    /// Stores what was compressed and records it as a form of a layer.
    fn compressed(
        &self,
        diff_id: Digest,
        encoder: Encoder<BlobWriter>,
        compression: Compression,
    ) -> Result<CompressedLayer> {
        let blob = encoder.finish().context(|| format!("compress layer {diff_id}"))?.finish()?;
        let media_suffix = compression.media_suffix().to_owned();
        let form = LayerBlob { digest: *blob.digest(), size: blob.size(), media_suffix };
        self.record_layer_blob(&diff_id, &form, Some(&compression.label()))?;
        Ok(CompressedLayer { blob, diff_id })
    }

    /// Notes that a blob, of whatever origin, is a compressed form of a layer. Blocking.
    ///
    /// # Errors
    /// When the database fails.
    pub fn remember_layer_blob(&self, diff_id: &Digest, form: &LayerBlob) -> Result<()> {
        self.record_layer_blob(diff_id, form, None)
    }

    /// Returns the known compressed forms of a layer, those in the store first. They are not leased. Blocking.
    ///
    /// # Errors
    /// When the database fails.
    pub fn layer_blobs(&self, diff_id: &Digest) -> Result<Vec<LayerBlob>> {
        let sql = "SELECT l.digest, l.size, l.media_suffix FROM layer_blobs l
            LEFT JOIN blobs b ON b.digest = l.digest AND NOT b.removing
            WHERE l.diff_id = ?1 ORDER BY b.id IS NULL, l.digest";
        self.root().db().read(|connection| {
            let mut select = connection.prepare_cached(sql)?;
            let rows = select
                .query_map([diff_id.to_string()], |row| Ok((row.get::<_, String>(0)?, row.get(1)?, row.get(2)?)))?;
            rows.map(|row| {
                let (digest, size, media_suffix) = row?;
                Ok(LayerBlob { digest: parse_digest(&digest)?, size, media_suffix })
            })
            .collect()
        })
    }

    /// Lists what a snapshot changes over its parent, sorted by path. Blocking.
    ///
    /// # Errors
    /// As [`Self::layer_digests`].
    pub fn changes(&self, id: SnapshotId) -> Result<Vec<PathChange>> {
        layer::list_changes(self.source(id)?).context(|| format!("list the changes of snapshot {id}"))
    }

    /// Finds a form of a layer that is here: the one asked for, or else one compressed with the same algorithm; or, if none is
    /// asked for, any.
    fn known_blob(&self, lease: &Lease, diff_id: &Digest, wanted: Option<Compression>) -> Result<Option<Blob>> {
        let sql = "SELECT l.digest FROM layer_blobs l JOIN blobs b ON b.digest = l.digest AND NOT b.removing
            WHERE l.diff_id = ?1 AND (?2 IS NULL OR l.media_suffix = ?2) ORDER BY l.label IS NOT ?3, l.digest";
        let (suffix, label) = (wanted.map(Compression::media_suffix), wanted.map(Compression::label));
        let mut found: Vec<String> = self.root().db().read(|connection| {
            let mut select = connection.prepare_cached(sql)?;
            let rows = select.query_map((diff_id.to_string(), suffix, label), |row| row.get(0))?;
            Ok(rows.collect::<rusqlite::Result<_>>()?)
        })?;
        if wanted.is_none_or(|wanted| wanted == Compression::None) {
            found.push(diff_id.to_string());
        }
        for digest in found {
            if let Some(blob) = self.blob(lease, &parse_digest(&digest)?)? {
                return Ok(Some(blob));
            }
        }
        Ok(None)
    }

    /// Makes sure that a compressed blob is a form of a layer, and notes it. Blocking; unless that is known already, reads all of
    /// the blob.
    ///
    /// # Errors
    /// `Corrupt` when it is not; `InvalidArgument` when it is compressed in a way that layers must not be.
    pub fn verify_layer_blob(&self, diff_id: &Digest, blob: &Blob, cancel: &Cancel) -> Result<()> {
        let known = self.layer_blobs(diff_id)?;
        if *blob.digest() == *diff_id || known.iter().any(|known| known.digest == *blob.digest()) {
            return Ok(());
        }
        let context = || format!("verify layer {diff_id}");
        let mut decoder = Decoder::new(blob.open()?).context(context)?;
        let media_suffix = match decoder.format() {
            Format::Plain => "",
            Format::Gzip => "+gzip",
            Format::Zstd => "+zstd",
            Format::Xz | Format::Bzip2 => {
                return Err(Error::invalid("it is compressed in a way that layers must not be")).context(context);
            }
        };
        let (mut hash, mut piece) = (Sha256::new(), Vec::with_capacity(1 << 20));
        loop {
            cancel.check()?;
            piece.clear();
            decoder.by_ref().take(1 << 20).read_to_end(&mut piece).context(context)?;
            if piece.is_empty() {
                break;
            }
            hash.update(&piece);
        }
        let found = Digest::sha256(hash.finalize().into());
        if found != *diff_id {
            return Err(Error::corrupt(format!("the content of {} has the digest {found}", blob.digest())))
                .context(context);
        }
        let (digest, size) = (*blob.digest(), blob.size());
        self.remember_layer_blob(diff_id, &LayerBlob { digest, size, media_suffix: media_suffix.to_owned() })
    }

    /// Returns the forms of a layer that came from elsewhere: what they hold can perhaps not be made again. To be called in the
    /// transaction of a collection.
    ///
    /// # Errors
    /// When the database fails.
    pub fn foreign_layer_blobs(&self, connection: &Connection, diff_id: &Digest) -> Result<Vec<Digest>> {
        let sql = "SELECT digest FROM layer_blobs WHERE diff_id = ?1 AND label IS NULL";
        let mut select = connection.prepare_cached(sql)?;
        let rows = select.query_map([diff_id.to_string()], |row| row.get::<_, String>(0))?;
        rows.map(|digest| parse_digest(&digest?)).collect()
    }

    fn record_layer_blob(&self, diff_id: &Digest, form: &LayerBlob, label: Option<&str>) -> Result<()> {
        let sql = "INSERT INTO layer_blobs (diff_id, digest, size, media_suffix, label) VALUES (?1, ?2, ?3, ?4, ?5)
            ON CONFLICT (diff_id, digest) DO UPDATE SET label = coalesce(?5, label)";
        let LayerBlob { digest, size, media_suffix } = form;
        self.root().db().write(|tx| {
            tx.prepare_cached(sql)?.execute((diff_id.to_string(), digest.to_string(), size, media_suffix, label))?;
            Ok(())
        })
    }

    /// What the layer of a snapshot is packed from.
    pub(super) fn source(&self, id: SnapshotId) -> Result<Source> {
        let sql = "SELECT layer, form, coalesce(made_on, parent) FROM snapshots WHERE id = ?1";
        let (layer, form, parent) = self.root().db().read(|connection: &Connection| {
            let mut find = connection.prepare_cached(sql)?;
            let row = find.query_row([id], |row| Ok((row.get::<_, i64>(0)?, row.get(1)?, row.get(2)?)));
            let (layer, form, parent) = optional(row)?.ok_or_else(|| id.missing())?;
            Ok((layer, LayerForm::read(form)?, parent))
        })?;
        let parent = if form == LayerForm::Changes { parent } else { None };
        let mut source = self.source_of(layer, parent)?;
        if form == LayerForm::Marked {
            source.form = Form::Alone(self.driver().marks());
        }
        Ok(source)
    }

    /// A tree and the view below it.
    fn source_of(&self, tree: i64, below: Option<SnapshotId>) -> Result<Source> {
        let lower = match below {
            None => None,
            Some(below) if self.driver().is_overlay() => {
                let mount = self.rootfs(Some(below))?.mount(Access::ReadOnly)?;
                Some(tree::open_dir(mount, c".").context(|| format!("open snapshot {below}"))?)
            }
            Some(below) => Some(tree::open_root(&self.top_dir(below)?)?),
        };
        let form = if self.driver().is_overlay() {
            Form::Upper(self.driver().marks())
        } else {
            let mark = rustix::fs::lstat(self.copied_mark(tree)).is_ok();
            let mark = if mark { Some(tree::open_root(&self.tree_dir(tree))?) } else { None };
            let copied =
                mark.map(|dir| Metadata::at(dir, c"copied")).transpose().context(|| "read the mark of a copy")?;
            Form::Whole(copied.map(|mark| mark.ctime))
        };
        Ok(Source { tree: tree::open_root(&self.tree_fs(tree))?, form, lower })
    }
}

impl Active {
    /// Lists what it changes over the snapshot it lies on, sorted by path. Blocking. It may be in use meanwhile.
    ///
    /// # Errors
    /// `Unsupported` when it holds something no layer can hold.
    pub fn changes(&self) -> Result<Vec<PathChange>> {
        let source = self.store().source_of(self.id().0, self.base())?;
        layer::list_changes(source).context(|| format!("list the changes of active {}", self.id()))
    }
}

fn copy_blob(blob: &Blob, out: &mut impl Write, cancel: &Cancel) -> Result<()> {
    copy(blob.open()?, out, cancel).context(|| format!("read blob {}", blob.digest()))
}

fn copy(mut from: impl Read, out: &mut impl Write, cancel: &Cancel) -> Result<()> {
    let mut piece = vec![0; 1 << 20];
    loop {
        cancel.check()?;
        match from.read(&mut piece)? {
            0 => return Ok(()),
            read => out.write_all(&piece[..read])?,
        }
    }
}
