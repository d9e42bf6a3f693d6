//! Removing, renaming and pausing containers.

use super::lifecycle::outcome_of;
use super::record::{self, ContainerId, Record, State};
use super::{Containers, name, spec};
use crate::error::{Error, Kind, Result};
use crate::store::{Lease, tree};

impl Containers {
    /// Removes a container that does not run, with its writable layer, logs and volumes. Blocking.
    ///
    /// # Errors
    /// `Conflict`, in docker's words, when it runs.
    pub(super) fn remove_stopped(&self, record: &Record) -> Result<()> {
        let _turn = self.files(&record.id).turn()?;
        let record = self.find(record.id.as_str())?;
        if record.state.is_live() {
            let what = match record.state {
                State::Restarting(_) => "is restarting",
                _ if self.is_paused(&record) => "is paused",
                _ => "is running",
            };
            return Err(Error::conflict(format!(
                "cannot remove container \"/{}\": container {what}: stop the container before removing or force remove",
                record.name
            )));
        }
        self.discard(&self.store().lease("remove container")?, &record)
    }

    /// Removes everything of a container. Its process has ended, and nobody starts it meanwhile. Blocking.
    ///
    /// The record goes after the layer, so that an interrupted removal can be repeated. Who waited for the container is told
    /// once it cannot be found any more: whoever comes later finds nothing to wait for.
    pub(super) fn discard(&self, lease: &Lease, record: &Record) -> Result<()> {
        if let Some(layer) = self.store().active(lease, record.layer)? {
            layer.remove()?;
        }
        self.db().write(|tx| record::delete(tx, &record.id))?;
        if let Ok(place) = self.place(record) {
            place.dismiss_pending(&outcome_of(record));
        }
        tree::remove_tree(self.files(&record.id).dir())
    }

    /// Removes the containers that do not run and are `unwanted`; returns them, and the bytes their layers had. Blocking.
    ///
    /// # Errors
    /// When one cannot be removed; earlier ones are.
    pub fn prune(&self, unwanted: impl Fn(&Record) -> bool) -> Result<(Vec<ContainerId>, u64)> {
        self.sweep()?;
        let (mut removed, mut bytes) = (Vec::new(), 0);
        for record in self.list()?.iter().filter(|record| !record.state.is_live() && unwanted(record)) {
            let size = self.layer_size(record)?;
            match self.remove_stopped(record) {
                // Somebody else removed or started it.
                Err(error) if matches!(error.kind(), Kind::NotFound | Kind::Conflict) => {}
                Err(error) => return Err(error),
                Ok(()) => {
                    removed.push(record.id.clone());
                    bytes += size;
                }
            }
        }
        Ok((removed, bytes))
    }

    /// Removes directories that belong to no container: what is left when an engine is killed while it creates one. Young ones
    /// may belong to one that is just being created.
    fn sweep(&self) -> Result<()> {
        const YOUNG: std::time::Duration = std::time::Duration::from_hours(1);
        for entry in std::fs::read_dir(&self.0.dir)? {
            let entry = entry?;
            let Some(id) = entry.file_name().to_str().and_then(|name| ContainerId::parse(name).ok()) else { continue };
            let age = entry.metadata()?.modified().map(|time| self.0.clock.now().duration_since(time))?;
            let known = self.db().read(|connection| record::find(connection, id.as_str()));
            if age.is_ok_and(|age| age > YOUNG) && known.is_err_and(|error| error.kind() == Kind::NotFound) {
                tree::remove_tree(&entry.path())?;
            }
        }
        Ok(())
    }

    /// Returns what a container's writable layer takes on the disk, in bytes. Blocking; reads the metadata of all its files.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn layer_size(&self, record: &Record) -> Result<u64> {
        let lease = self.store().lease("measure container")?;
        let Some(layer) = self.store().active(&lease, record.layer)? else { return Ok(0) };
        let mut walk = tree::Walk::new(tree::open_root(layer.dir())?)?;
        let mut bytes = 0;
        while let Some(step) = walk.step()? {
            match step {
                tree::Step::Enter(_, dir) => bytes += tree::Metadata::of(&dir)?.allocated,
                // Files of a container that runs come and go.
                tree::Step::Pass(found) => {
                    bytes += tree::Metadata::at(&found.parent, &found.name).map_or(0, |metadata| metadata.allocated);
                }
                tree::Step::Leave => {}
            }
        }
        Ok(bytes)
    }

    /// Gives a container another name. Blocking.
    ///
    /// # Errors
    /// `InvalidArgument` for a bad name; `Conflict` when it is taken, or is the container's already.
    pub fn rename(&self, reference: &str, wanted: &str) -> Result<()> {
        if wanted.is_empty() {
            return Err(Error::invalid("Neither old nor new names may be empty"));
        }
        let wanted = name::check(wanted)?;
        self.db().write(|tx| {
            let record = record::find(tx, reference)?;
            if record.name == wanted {
                return Err(Error::conflict("Renaming a container with the same name as its current name"));
            }
            record::rename(tx, &record.id, wanted).map_err(|error| error.context("Error when allocating new name"))
        })
    }

    /// Stops all processes of a container until it is unpaused. Blocking.
    ///
    /// # Errors
    /// `Conflict` when it does not run or is paused; `Unsupported` when the host has no freezer.
    pub fn pause(&self, reference: &str) -> Result<()> {
        let record = self.running(reference)?;
        if self.is_paused(&record) {
            return Err(Error::conflict(format!("Container {} is already paused", record.id)));
        }
        spec::cgroup(&record)?.freeze()
    }

    /// Lets the processes of a paused container go on. Blocking.
    ///
    /// # Errors
    /// `Conflict` when it is not paused.
    pub fn unpause(&self, reference: &str) -> Result<()> {
        let record = self.running(reference)?;
        if !self.is_paused(&record) {
            return Err(Error::conflict(format!("Container {} is not paused", record.id)));
        }
        spec::cgroup(&record)?.thaw()
    }

    /// Says whether a container is paused. Blocking.
    #[must_use]
    pub fn is_paused(&self, record: &Record) -> bool {
        matches!(record.state, State::Running { .. }) && spec::cgroup(record).is_ok_and(|cgroup| cgroup.is_frozen())
    }

    /// Returns the processes of a container, as the host numbers them. Blocking.
    ///
    /// # Errors
    /// `Conflict` when it does not run.
    pub fn processes(&self, reference: &str) -> Result<Vec<i32>> {
        let record = self.running(reference)?;
        Ok(spec::cgroup(&record)?.pids().into_iter().map(|pid| pid.as_raw_nonzero().get()).collect())
    }

    /// Finds a container that runs.
    ///
    /// # Errors
    /// `NotFound`; `Conflict` when it does not run.
    pub(super) fn running(&self, reference: &str) -> Result<Record> {
        let record = self.find(reference)?;
        match record.state {
            State::Running { .. } => Ok(record),
            State::Restarting(_) => Err(Error::conflict(format!(
                "Container {} is restarting, wait until the container is running",
                record.id
            ))),
            _ => Err(Error::new(Kind::Conflict, format!("container {} is not running", record.id))),
        }
    }
}
