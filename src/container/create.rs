//! Creating containers: name, settings merged with the image's, writable layer, directory, volumes.

use std::os::fd::AsFd as _;
use std::path::Path;

use kiln_graph::Platform;
use rustix::fs::{Mode, OFlags, ResolveFlags};

use super::config::{Config, MountSource, Network};
use super::files::Files;
use super::record::{self, ContainerId, Record, State};
use super::{Containers, name};
use crate::error::{Error, Kind, Result, ResultExt as _};
use crate::image::Image;
use crate::store::tree::{self, Attributes, CopyTree, Metadata, Xattrs};
use crate::store::{Access, Active, Lease};
use crate::task::Cancel;

/// A container that was created.
#[derive(Clone, Debug)]
pub struct Created {
    /// Its id.
    pub id: ContainerId,
    /// What was asked for and cannot be had.
    pub warnings: Vec<String>,
}

impl Containers {
    /// Starts a lease for creating a container. Blocking.
    ///
    /// # Errors
    /// When the database fails.
    pub fn lease(&self) -> Result<Lease> {
        self.store().lease("create container")
    }

    /// Finds the image of a container to be created. No registry is asked. Blocking.
    ///
    /// # Errors
    /// `NotFound`, in docker's words, when it is not here or not for the platform: clients pull it then.
    pub fn image(&self, lease: &Lease, text: &str, platform: Option<&Platform>) -> Result<Image> {
        let image = self.images().find(lease, text)?;
        match platform {
            Some(platform) if platform.rank(&image.config.platform()).is_none() => Err(Error::not_found(format!(
                "image with reference {text} was found but does not provide the specified platform ({platform})"
            ))),
            _ => Ok(image),
        }
    }

    /// Creates a container; without a name it gets one. `config` is what was asked for; the image's defaults are merged in
    /// here. Blocking: about a millisecond, and the time to copy what the image has in its volumes.
    ///
    /// # Errors
    /// `Conflict`, in docker's words, when the name is taken; `InvalidArgument` for a bad name, a container without a command
    /// and settings that cannot be; `NotFound` when the image's layers are not here.
    pub fn create(&self, lease: &Lease, image: &Image, wanted: Option<&str>, mut config: Config) -> Result<Created> {
        let wanted = wanted.map(name::check).transpose()?;
        config.merge_image(&image.config);
        if config.args().is_empty() {
            return Err(Error::invalid("no command specified"));
        }
        check_binds(&config)?;
        super::spec::check(&config)?;
        let id = ContainerId::from_random(random()?);
        let warnings = super::spec::refused_limits(&config, &id)?;
        if config.hostname.is_empty() {
            config.hostname = match config.host.network {
                Network::Host => rustix::system::uname().nodename().to_string_lossy().into_owned(),
                Network::Bridge | Network::None => id.short().to_owned(),
            };
        }
        let base = self.images().snapshot(lease, image)?;
        let files = self.files(&id);
        files.make()?;
        let made = self.store().prepare(lease, base).and_then(|layer| {
            fill_volumes(&config, &layer, &files)?;
            mark_as_container(&layer)?;
            self.record(id.clone(), wanted, config, layer)
        });
        match made {
            Ok(()) => Ok(Created { id, warnings }),
            Err(error) => Err(error.and_cleanup(tree::remove_tree(files.dir()))),
        }
    }

    fn record(&self, id: ContainerId, wanted: Option<&str>, config: Config, layer: Active) -> Result<()> {
        const ATTEMPTS: u32 = 10;
        let entropy = u64::from_ne_bytes(*random()?.first_chunk().expect("there are more bytes"));
        let mut record = Record {
            id,
            name: String::new(),
            created_ns: self.now_ns(),
            config,
            layer: layer.id(),
            state: State::Created { failure: None },
            restarts: 0,
            address: None,
        };
        for attempt in 0.. {
            record.name = wanted.map_or_else(|| name::random(entropy, attempt), str::to_owned);
            match self.db().write(|tx| record::insert(tx, &record)) {
                Err(error) if error.kind() == Kind::Conflict && wanted.is_none() && attempt < ATTEMPTS => {}
                Err(error) => return Err(error),
                Ok(()) => break,
            }
        }
        // The record names it from now on.
        let _ = layer.keep();
        Ok(())
    }
}

pub(super) fn random() -> Result<[u8; 32]> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).map_err(|error| Error::internal(format!("no random numbers: {error}")))?;
    Ok(bytes)
}

/// What `--mount` binds must exist; what `-v` binds is made when the container starts.
fn check_binds(config: &Config) -> Result<()> {
    for mount in &config.host.mounts {
        if let MountSource::Bind { path, create: false, .. } = &mount.source
            && !path.exists()
        {
            return Err(Error::invalid(format!(
                "invalid mount config for type \"bind\": bind source path does not exist: {}",
                path.display()
            )));
        }
    }
    Ok(())
}

/// Leaves the file by which programs know that they are in a container, as Docker does.
fn mark_as_container(layer: &Active) -> Result<()> {
    let path = layer.dir().join(".dockerenv");
    let flags = OFlags::CREATE | OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    match rustix::fs::open(&path, flags, Mode::from_raw_mode(0o755)) {
        // With the copying driver, the image may have put something else there.
        Ok(_) | Err(rustix::io::Errno::LOOP | rustix::io::Errno::ISDIR) => Ok(()),
        Err(errno) => Err(errno).context(|| format!("create {}", path.display())),
    }
}

/// Makes the container's volumes and copies into each what the image has at its path.
fn fill_volumes(config: &Config, layer: &Active, files: &Files) -> Result<()> {
    let volumes = config.host.mounts.iter().enumerate().filter(|(_, mount)| mount.source == MountSource::Volume);
    let mut root = None;
    for (index, mount) in volumes {
        let path = files.volume(index);
        std::fs::create_dir_all(&path).context(|| format!("create volume {}", path.display()))?;
        let root = match &root {
            Some(root) => root,
            None => root.insert(layer.rootfs()?.mount(Access::ReadOnly)?),
        };
        fill_volume(root.as_fd(), &mount.target, &path).context(|| format!("fill volume {}", mount.target))?;
    }
    Ok(())
}

fn fill_volume(root: std::os::fd::BorrowedFd<'_>, target: &str, volume: &Path) -> Result<()> {
    let inside = target.trim_start_matches('/');
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let from =
        match tree::openat2(root, inside, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty(), resolve)
        {
            Ok(from) => from,
            Err(rustix::io::Errno::NOENT) => {
                return Ok(rustix::fs::chmod(volume, Mode::from_raw_mode(0o755))?);
            }
            Err(rustix::io::Errno::NOTDIR) => {
                return Err(Error::invalid(format!("cannot mount volume over existing file, file exists {target}")));
            }
            Err(errno) => return Err(errno.into()),
        };
    let attributes = Attributes::of(&Metadata::of(&from)?, Xattrs::of(&from, |_| true)?);
    let options = CopyTree { xattrs: |_| true, cancel: &Cancel::new(), room: None };
    tree::copy_tree(from, tree::open_root(volume)?, options)?;
    attributes.apply(tree::open_root(volume)?)?;
    Ok(())
}
