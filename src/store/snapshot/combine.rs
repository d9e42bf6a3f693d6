//! Putting layers on other snapshots than those they were made on, and making a layer of what one snapshot has over another.

use std::os::fd::OwnedFd;

use rusqlite::Connection;

use super::{LayerForm, NewSnapshot, SnapshotId, forget_opaque, same_layer};
use crate::error::{Result, ResultExt as _};
use crate::store::layer::{self, ContentHash, Form, Place, Source};
use crate::store::lease::Leased;
use crate::store::rootfs::Access;
use crate::store::tree;
use crate::store::{Active, Driver, Lease, Store, optional, parse_digest};
use crate::task::Cancel;

impl Store {
    /// Puts the layer of a snapshot on another parent, without copying files, and leases the result. What the layer takes away
    /// is taken away there, too.
    ///
    /// The layer keeps its digests. Asked again, it returns the same snapshot. Blocking.
    ///
    /// # Errors
    /// `NotFound`; `Exhausted` on a full disk.
    pub fn rebase(&self, lease: &Lease, id: SnapshotId, parent: Option<SnapshotId>) -> Result<SnapshotId> {
        let (new, made_on) = self.root().db().read(|connection| layer_of(connection, id))?;
        let new = NewSnapshot { parent, ..new };
        if let Some(existing) = self.leased(lease, Leased::Snapshot, |c| same_layer(c, parent, &new))? {
            return Ok(existing);
        }
        let cancel = Cancel::new();
        let context = || format!("put the layer of snapshot {id} on another");
        let as_it_is = match new.form {
            _ if self.driver() == Driver::Native => false,
            LayerForm::Whole => {
                forget_opaque(self, new.layer)?;
                true
            }
            LayerForm::Marked => true,
            LayerForm::Changes => {
                let below = self.view(parent)?;
                let stands = layer::stands_as_it_is(self.source(id)?, &below, &cancel).context(context)?;
                if stands {
                    forget_opaque(self, new.layer)?;
                }
                stands
            }
        };
        let new = if new.form == LayerForm::Changes { NewSnapshot { made_on, ..new } } else { new };
        if !as_it_is {
            return self.rebase_by_linking(lease, id, new, &cancel).context(context);
        }
        self.root().db().write(|tx| {
            let id = match same_layer(tx, parent, &new)? {
                Some((_, existing)) => existing,
                None => self.insert_snapshot(tx, &new)?,
            };
            lease.hold(tx, Leased::Snapshot, id.0)?;
            Ok(id)
        })
    }

    fn rebase_by_linking(
        &self,
        lease: &Lease,
        id: SnapshotId,
        new: NewSnapshot,
        cancel: &Cancel,
    ) -> Result<SnapshotId> {
        let active = self.prepare(lease, new.parent)?;
        // The tree that the copying driver packs a layer from is a whole view, or a layer with its marks; both hold its files.
        let donors = vec![active.reuse(id)?];
        let place = Place {
            target: tree::open_root(active.dir())?,
            marks: self.driver().is_overlay().then(|| self.driver().marks()),
            below: Some(self.view(new.parent)?),
            donors,
            cancel,
        };
        layer::apply(self.source(id)?, place)?;
        active.forget_what_was_copied()?;
        active.commit_as(|tree| NewSnapshot { tree, ..new })
    }

    /// Makes a layer of what a snapshot has over another one, as a snapshot on nothing that is not identified yet. Files are
    /// linked. What is only in the lower one is taken away from whatever the layer is put on. `as_of` is the time that stands
    /// for the two, in nanoseconds since 1970. Blocking.
    ///
    /// # Errors
    /// `NotFound`; `Unsupported` for what no layer can hold; `Exhausted` on a full disk; `Cancelled`.
    pub fn difference(
        &self,
        lease: &Lease,
        lower: Option<SnapshotId>,
        upper: Option<SnapshotId>,
        as_of: i64,
        cancel: &Cancel,
    ) -> Result<SnapshotId> {
        let context = || "take the difference of two file systems";
        let active = self.prepare(lease, None)?;
        let source = Source { tree: self.view(upper)?, form: Form::Whole(None), lower: Some(self.view(lower)?) };
        let donors = self.trees_of(&active, upper)?;
        let marks = self.driver().marks();
        let target = tree::open_root(active.dir())?;
        let applied = layer::apply(source, Place { target, marks: Some(marks), below: None, donors, cancel });
        let applied = applied.context(context)?;
        let (parent, made_on, diff_id, content, tar_size) = (None, None, None, None, None);
        let (form, as_of) = (LayerForm::Marked, Some(as_of));
        let made = active.commit_as(|tree| NewSnapshot {
            tree,
            layer: tree,
            form,
            parent,
            made_on,
            diff_id,
            content,
            tar_size,
            as_of,
        })?;
        if !applied.takes_away {
            return Ok(made);
        }
        // Marks hide nothing here, and must not be seen.
        let (new, _) = self.root().db().read(|connection| layer_of(connection, made))?;
        self.rebase_by_linking(lease, made, new, cancel).context(context)
    }

    /// Opens the directories a view is made of, the topmost first, so that their files can be linked into a tree.
    fn trees_of(&self, active: &Active, top: Option<SnapshotId>) -> Result<Vec<OwnedFd>> {
        let Some(top) = top else { return Ok(Vec::new()) };
        let mut trees = self.root().db().read(|connection| super::chain(connection, top))?;
        if !self.driver().is_overlay() {
            trees.truncate(1);
        }
        trees.into_iter().map(|tree| active.borrow(tree)).collect()
    }

    /// Opens a view to be read.
    fn view(&self, top: Option<SnapshotId>) -> Result<OwnedFd> {
        let mount = self.rootfs(top)?.mount(Access::ReadOnly)?;
        tree::open_dir(mount, c".").context(|| "open a snapshot")
    }
}

/// Reads what a snapshot's layer is, and what it was made on.
fn layer_of(connection: &Connection, id: SnapshotId) -> Result<(NewSnapshot, Option<SnapshotId>)> {
    let sql = "SELECT layer, form, diff_id, content, tar_size, as_of, coalesce(made_on, parent)
        FROM snapshots WHERE id = ?1";
    let mut find = connection.prepare_cached(sql)?;
    let row = find.query_row([id], |row| {
        let texts: (Option<String>, Option<[u8; 32]>) = (row.get(2)?, row.get(3)?);
        Ok((row.get(0)?, row.get::<_, i64>(1)?, texts, row.get(4)?, row.get(5)?, row.get(6)?))
    });
    let (layer, form, (diff_id, content), tar_size, as_of, made_on) = optional(row)?.ok_or_else(|| id.missing())?;
    let (form, diff_id) = (LayerForm::read(form)?, diff_id.as_deref().map(parse_digest).transpose()?);
    let content = content.map(ContentHash);
    let (parent, tree) = (None, layer);
    Ok((NewSnapshot { tree, layer, form, parent, made_on: None, diff_id, content, tar_size, as_of }, made_on))
}
