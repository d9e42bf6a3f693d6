//! `--on-failure`: what becomes of the step that failed, while its sandbox is there as it stood.

use std::fs::File;
use std::io::{self, Read, Write as _};
use std::path::{Component, Path, PathBuf};
use std::str::FromStr;

use axum::body::Body;
use bytes::Bytes;
use futures_util::StreamExt as _;
use http::Method;
use tokio::sync::mpsc;

use super::screen::Screen;
use crate::cli::container::failed_step;
use crate::client::{Client, Refused};
use crate::error::{Error, Result, ResultExt as _};
use crate::task;
use crate::types::build::Detail;

/// The file that lists what the step removed.
const REMOVED: &str = ".removed";

/// What stands in front of the names of removed files in a layer's archive, and for all a directory held before.
const WHITEOUT: &str = ".wh.";
const OPAQUE: &str = ".wh..wh..opq";

/// What is done with a step that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum OnFailure {
    /// A shell is opened in its sandbox.
    Shell,
    /// What it changed is saved to a directory.
    Export(PathBuf),
}

impl FromStr for OnFailure {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text.split_once('=') {
            None if text == "shell" => Ok(Self::Shell),
            Some(("export", dir)) if !dir.is_empty() => Ok(Self::Export(PathBuf::from(dir))),
            _ => Err(Error::invalid(format!("{text:?}: expected shell or export=DIR"))),
        }
    }
}

impl OnFailure {
    /// Finds out before the build whether it can be done after it.
    ///
    /// # Errors
    /// `InvalidArgument` without a terminal for a shell, `Conflict` for a directory that is not empty.
    pub(super) fn check(&self) -> Result<()> {
        match self {
            Self::Shell => failed_step::require_terminal("--on-failure=shell"),
            Self::Export(dir) => match std::fs::read_dir(dir).map(|mut entries| entries.next().is_some()) {
                Ok(true) => Err(Error::conflict(format!(
                    "--on-failure=export={}: the directory is not empty: empty it, or name another",
                    dir.display()
                ))),
                Ok(false) => Ok(()),
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
                Err(error) => Err(error).context(|| format!("--on-failure=export={}", dir.display())),
            },
        }
    }
}

/// Does what was asked for with the step that failed, if it was a step.
///
/// # Errors
/// When the files cannot be written, or the engine does not answer.
pub(super) async fn deal(client: &Client, wanted: &[OnFailure], refused: &Refused, screen: &mut Screen) -> Result<()> {
    if wanted.is_empty() {
        return Ok(());
    }
    let kept = refused.details.iter().find_map(|detail| match detail {
        Detail::Solve(solve) => solve.mount_ids.first(),
        _ => None,
    });
    let Some(id) = kept else {
        screen.show("--on-failure: no RUN step has failed, so there is no sandbox to look into\n");
        return Ok(());
    };
    // Saving comes first: a shell changes what there is to be saved.
    for dir in wanted.iter().filter_map(|wanted| if let OnFailure::Export(dir) = wanted { Some(dir) } else { None }) {
        let said = export(client, id, dir).await.context(|| format!("--on-failure=export={}", dir.display()))?;
        screen.show(&said);
    }
    if wanted.contains(&OnFailure::Shell) {
        screen.show(
            "A shell in the step's sandbox as it stood; Kiln's own tools are /dev/kiln -shell. Nothing you change is kept; exit \
             to leave.\n",
        );
        // How the shell ends is the user's business; the build has failed.
        failed_step::shell(client, id).await.context(|| "--on-failure=shell")?;
    }
    failed_step::release(client, id).await
}

async fn export(client: &Client, id: &str, dir: &Path) -> Result<String> {
    let request = client.request(Method::GET, &failed_step::changes(id)).body(Body::empty());
    let answer = client.send(request.map_err(|error| Error::internal(error.to_string()))?).await?;
    let (sender, receiver) = mpsc::channel(4);
    let to = dir.to_owned();
    let unpacking = task::Owned::spawn(task::blocking(move || unpack(Chunks { receiver, rest: Bytes::new() }, &to)));
    let mut body = Body::new(answer.into_body()).into_data_stream();
    while let Some(chunk) = body.next().await {
        let chunk = chunk.map_err(|error| io::Error::other(format!("the engine broke off: {error}")));
        // Why it stopped reading is what it answers.
        if sender.send(chunk).await.is_err() {
            break;
        }
    }
    drop(sender);
    let Unpacked { files, removed, foreign } = unpacking.join().await??;
    let mut said = format!("{files} changed files and directories are in {}", dir.display());
    if removed > 0 {
        said.push_str(&format!("; {removed} removed paths are listed in {}", dir.join(REMOVED).display()));
    }
    if foreign {
        said.push_str("; owners are not kept, which only root could");
    }
    Ok(said + "\n")
}

/// An answer's body for blocking code.
struct Chunks {
    receiver: mpsc::Receiver<io::Result<Bytes>>,
    rest: Bytes,
}

impl Read for Chunks {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.rest.is_empty() {
            match self.receiver.blocking_recv() {
                Some(chunk) => self.rest = chunk?,
                None => return Ok(0),
            }
        }
        let count = buffer.len().min(self.rest.len());
        buffer[..count].copy_from_slice(&self.rest.split_to(count));
        Ok(count)
    }
}

/// What was saved.
#[derive(Debug, Default, PartialEq, Eq)]
struct Unpacked {
    files: usize,
    removed: usize,
    /// Whether owners were lost.
    foreign: bool,
}

/// Unpacks a layer with modes, times and, for root, owners; lists what was removed.
fn unpack(layer: impl Read, to: &Path) -> Result<Unpacked> {
    std::fs::create_dir_all(to)?;
    let root = rustix::process::geteuid().is_root();
    let mut archive = tar::Archive::new(layer);
    archive.set_preserve_permissions(true);
    archive.set_preserve_ownerships(root);
    archive.set_overwrite(false);
    let mut done = Unpacked { foreign: !root, ..Unpacked::default() };
    let mut list = None;
    let mut directories = Vec::new();
    for entry in archive.entries()? {
        let mut entry = entry?;
        let path = entry.path()?.into_owned();
        if let Some(gone) = removed(&path) {
            let list = match &mut list {
                Some(list) => list,
                None => list.insert(File::create_new(to.join(REMOVED))?),
            };
            writeln!(list, "{}", gone.display())?;
            done.removed += 1;
        } else if path.components().any(|part| matches!(part, Component::Normal(_))) {
            done.files += 1;
            if entry.header().entry_type().is_dir() {
                // Their modes may forbid what is still to be written.
                directories.push(entry);
            } else if !entry.unpack_in(to)? {
                return Err(Error::corrupt(format!("{} leads out of the directory", path.display())));
            }
        }
    }
    directories.sort_by_key(|entry| std::cmp::Reverse(entry.path_bytes().len()));
    for mut directory in directories {
        directory.unpack_in(to)?;
    }
    Ok(done)
}

/// The path that an entry of a layer says was removed.
fn removed(path: &Path) -> Option<PathBuf> {
    let name = path.file_name()?.to_str()?;
    let parent = Path::new("/").join(path.parent()?);
    match name {
        OPAQUE => Some(parent.join("*")),
        name => Some(parent.join(name.strip_prefix(WHITEOUT)?)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_to_do_is_read_or_refused() {
        assert_eq!("shell".parse::<OnFailure>().unwrap(), OnFailure::Shell);
        assert_eq!("export=out/x".parse::<OnFailure>().unwrap(), OnFailure::Export("out/x".into()));
        for wrong in ["", "shel", "export", "export=", "shell=x"] {
            assert!(wrong.parse::<OnFailure>().unwrap_err().to_string().contains("export=DIR"), "{wrong}");
        }
    }

    #[test]
    fn a_layer_is_saved_with_a_list_of_what_is_gone() {
        let mut tar = tar::Builder::new(Vec::new());
        let mut put = |path: &str, mode, text: &str, kind| {
            let mut header = tar::Header::new_gnu();
            header.set_mode(mode);
            header.set_mtime(0);
            header.set_uid(u64::from(rustix::process::geteuid().as_raw()));
            header.set_gid(u64::from(rustix::process::getegid().as_raw()));
            header.set_size(text.len() as u64);
            header.set_entry_type(kind);
            tar.append_data(&mut header, path, text.as_bytes()).unwrap();
        };
        put("etc/", 0o500, "", tar::EntryType::Directory);
        put("etc/new", 0o640, "x", tar::EntryType::Regular);
        put("etc/.wh.old", 0, "", tar::EntryType::Regular);
        put("var/.wh..wh..opq", 0, "", tar::EntryType::Regular);
        let dir = tempfile::tempdir().unwrap();
        let to = dir.path().join("out");
        let done = unpack(tar.into_inner().unwrap().as_slice(), &to).unwrap();
        assert_eq!((done.files, done.removed), (2, 2));
        assert_eq!(std::fs::read_to_string(to.join("etc/new")).unwrap(), "x");
        assert_eq!(std::fs::read_to_string(to.join(".removed")).unwrap(), "/etc/old\n/var/*\n");
        let mode = std::os::unix::fs::MetadataExt::mode(&std::fs::metadata(to.join("etc")).unwrap());
        assert_eq!(mode & 0o777, 0o500);
        assert!(OnFailure::Export(to).check().unwrap_err().to_string().contains("not empty"));
    }
}
