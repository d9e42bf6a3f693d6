//! What a container mounts: binds, volumes, memory and devices.

use std::path::PathBuf;

use clap::Args;

use crate::cli::value;
use crate::error::{Error, Result, ResultExt as _};
use crate::types::{
    DeviceMapping, HostConfig, Mount, MountBindOptions, MountBindOptionsPropagationEnum, MountImageOptions,
    MountTmpfsOptions, MountType, MountVolumeOptions, MountVolumeOptionsDriverConfig,
};

#[derive(Debug, Args)]
pub(super) struct StorageOptions {
    /// Bind a file or directory of the host, or a volume: source:target[:ro]
    #[arg(short, long, value_name = "SOURCE:TARGET[:OPTIONS]")]
    volume: Vec<String>,
    /// Mount something: type=bind|tmpfs|volume,source=..,target=..[,readonly]
    #[arg(long, value_name = "KEY=VALUE,..")]
    mount: Vec<String>,
    /// Mount memory: target[:size=..,mode=..]
    #[arg(long, value_name = "TARGET[:OPTIONS]")]
    tmpfs: Vec<String>,
    /// Make the root file system read-only
    #[arg(long)]
    read_only: bool,
    /// Size of /dev/shm
    #[arg(long, value_name = "BYTES")]
    shm_size: Option<String>,
    /// Show a device of the host inside
    #[arg(long, value_name = "PATH[:PATH[:rwm]]")]
    device: Vec<String>,
    /// Mount what another container mounts
    #[arg(long, value_name = "CONTAINER[:ro]")]
    volumes_from: Vec<String>,
    /// Driver of volumes that are made
    #[arg(long, value_name = "NAME")]
    volume_driver: Option<String>,
    /// Option of the storage of the root file system
    #[arg(long, value_name = "KEY=VALUE")]
    storage_opt: Vec<String>,
}

impl StorageOptions {
    pub(super) fn apply(&self, host: &mut HostConfig) -> Result<()> {
        let binds = self.volume.iter().filter(|volume| volume.contains(':'));
        host.binds = Some(binds.map(|volume| absolute_bind(volume)).collect::<Result<_>>()?);
        host.volumes_from = (!self.volumes_from.is_empty()).then(|| self.volumes_from.clone());
        host.volume_driver.clone_from(&self.volume_driver);
        host.storage_opt = (!self.storage_opt.is_empty()).then(|| value::map(&self.storage_opt));
        host.mounts = Some(self.mount.iter().map(|mount| parse_mount(mount)).collect::<Result<_>>()?);
        let tmpfs = self.tmpfs.iter().map(|entry| match entry.split_once(':') {
            Some((target, options)) => (target.to_owned(), options.to_owned()),
            None => (entry.clone(), String::new()),
        });
        host.tmpfs = Some(tmpfs.collect());
        host.readonly_rootfs = Some(self.read_only);
        host.shm_size = self.shm_size.as_deref().map(value::bytes).transpose()?;
        let devices = self.device.iter().map(|device| {
            let mut parts = device.splitn(3, ':').map(str::to_owned);
            let path_on_host = parts.next();
            let (second, third) = (parts.next(), parts.next());
            // `/dev/x:rwm` leaves the path inside out.
            let (inside, permissions) = match second {
                Some(word) if !word.starts_with('/') => (None, Some(word)),
                other => (other, third),
            };
            DeviceMapping {
                path_in_container: inside.or_else(|| path_on_host.clone()),
                path_on_host,
                cgroup_permissions: Some(permissions.unwrap_or_else(|| "rwm".to_owned())),
            }
        });
        host.devices = Some(devices.collect());
        Ok(())
    }

    /// `-v` with nothing but a target.
    pub(super) fn anonymous_volumes(&self) -> Vec<String> {
        self.volume.iter().filter(|volume| !volume.contains(':')).cloned().collect()
    }
}

/// Makes a relative source (`./data`, `.`) absolute; names without a slash are left for the engine.
fn absolute_bind(volume: &str) -> Result<String> {
    let Some((source, rest)) = volume.split_once(':') else { return Ok(volume.to_owned()) };
    let path = source.strip_prefix('~').and_then(|rest| Some(format!("{}{rest}", std::env::var("HOME").ok()?)));
    let source = path.as_deref().unwrap_or(source);
    if source.starts_with('.') {
        let path = std::path::absolute(source).context(|| format!("find {source}"))?;
        let path = path.components().collect::<PathBuf>();
        return Ok(format!("{}:{rest}", path.display()));
    }
    Ok(format!("{source}:{rest}"))
}

fn parse_mount(text: &str) -> Result<Mount> {
    let invalid = |why: &str| Error::invalid(format!("invalid argument {text:?} for --mount: {why}"));
    let mut mount = Mount::default();
    let (mut bind, mut tmpfs) = (MountBindOptions::default(), MountTmpfsOptions::default());
    let (mut volume, mut driver) = (MountVolumeOptions::default(), MountVolumeOptionsDriverConfig::default());
    let mut image = MountImageOptions::default();
    for (key, value) in value::csv(text)? {
        let given = || value.clone().ok_or_else(|| invalid(&format!("{key} needs a value")));
        let flag = || match value.as_deref() {
            None | Some("true" | "1") => Ok(true),
            Some("false" | "0") => Ok(false),
            Some(other) => Err(invalid(&format!("{key} is true or false, not {other}"))),
        };
        match key.to_lowercase().as_str() {
            "type" => mount.typ = Some(mount_type(&given()?).ok_or_else(|| invalid("unknown type"))?),
            "source" | "src" => mount.source = Some(absolute_source(&given()?)?),
            "target" | "dst" | "destination" => mount.target = Some(given()?),
            "readonly" | "ro" => mount.read_only = Some(flag()?),
            "consistency" => mount.consistency = Some(given()?),
            "bind-propagation" => {
                let propagation = given()?;
                let known: MountBindOptionsPropagationEnum =
                    propagation.parse().map_err(|_| invalid(&format!("unknown propagation {propagation}")))?;
                bind.propagation = Some(known);
            }
            "bind-create-src" => bind.create_mountpoint = Some(flag()?),
            "bind-nonrecursive" => bind.non_recursive = Some(flag()?),
            "bind-recursive" => recursion(&given()?, &mut bind).ok_or_else(|| invalid("unknown bind-recursive"))?,
            "tmpfs-size" => tmpfs.size_bytes = Some(value::bytes(&given()?)?),
            "tmpfs-mode" => {
                let mode = i64::from_str_radix(&given()?, 8).map_err(|_| invalid("tmpfs-mode is an octal number"))?;
                tmpfs.mode = Some(mode);
            }
            "volume-nocopy" => volume.no_copy = Some(flag()?),
            "volume-subpath" => volume.subpath = Some(given()?),
            "volume-label" => volume.labels.get_or_insert_default().extend(value::map(&[given()?])),
            "volume-driver" => driver.name = Some(given()?),
            "volume-opt" => driver.options.get_or_insert_default().extend(value::map(&[given()?])),
            "image-subpath" => image.subpath = Some(given()?),
            other => return Err(invalid(&format!("unknown key {other}"))),
        }
    }
    if mount.target.is_none() {
        return Err(invalid("target is required"));
    }
    // Docker's default type.
    let kind = *mount.typ.get_or_insert(MountType::VOLUME);
    if driver != MountVolumeOptionsDriverConfig::default() {
        volume.driver_config = Some(driver);
    }
    let foreign = [
        (MountType::BIND, bind != MountBindOptions::default()),
        (MountType::TMPFS, tmpfs != MountTmpfsOptions::default()),
        (MountType::VOLUME, volume != MountVolumeOptions::default()),
        (MountType::IMAGE, image != MountImageOptions::default()),
    ];
    if let Some((other, _)) = foreign.into_iter().find(|(other, set)| *set && *other != kind) {
        return Err(invalid(&format!("cannot mix '{other}-*' options with mount type '{kind}'")));
    }
    mount.bind_options = foreign[0].1.then_some(bind);
    mount.tmpfs_options = foreign[1].1.then_some(tmpfs);
    mount.volume_options = foreign[2].1.then_some(volume);
    mount.image_options = foreign[3].1.then_some(image);
    Ok(mount)
}

fn mount_type(name: &str) -> Option<MountType> {
    Some(match name {
        "bind" => MountType::BIND,
        "tmpfs" => MountType::TMPFS,
        "volume" => MountType::VOLUME,
        "image" => MountType::IMAGE,
        _ => return None,
    })
}

fn recursion(word: &str, bind: &mut MountBindOptions) -> Option<()> {
    match word {
        "enabled" => {}
        "disabled" => bind.non_recursive = Some(true),
        "writable" => bind.read_only_non_recursive = Some(true),
        "readonly" => bind.read_only_force_recursive = Some(true),
        _ => return None,
    }
    Some(())
}

fn absolute_source(source: &str) -> Result<String> {
    if !source.starts_with('.') {
        return Ok(source.to_owned());
    }
    let path = std::path::absolute(source).context(|| format!("find {source}"))?;
    Ok(path.components().collect::<PathBuf>().display().to_string())
}
