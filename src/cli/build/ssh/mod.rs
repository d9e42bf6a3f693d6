//! `--ssh`: the agents that steps and repositories may use: sockets of agents that run, or keys in files.

mod agent;
mod key;
mod wire;

use std::collections::BTreeMap;
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures_util::FutureExt as _;
use tokio::net::UnixStream;

use self::key::Key;
use crate::client::{Agent, AgentIo};
use crate::error::{Error, Result, ResultExt as _};

/// The agent that is meant when none is named.
const DEFAULT: &str = "default";

/// The largest file of a key, in bytes.
const MAX_KEY_BYTES: u64 = 100 << 10;

/// What is on its way to or from an agent here, in bytes.
const PIPE_BYTES: usize = 64 << 10;

/// Reads options `default` and `ID[=SOCKET|KEY[,KEY]]`. `running` is the socket of the user's agent. Blocking.
///
/// # Errors
/// `InvalidArgument` for a malformed option and for what is neither a socket nor a key; `NotFound` for files that are not there.
pub(super) fn agents(options: &[String], running: Option<&Path>) -> Result<BTreeMap<String, Agent>> {
    let mut agents = BTreeMap::new();
    for option in options {
        let (id, paths) = option.split_once('=').map_or((option.as_str(), None), |(id, paths)| (id, Some(paths)));
        let id = if id.is_empty() { DEFAULT } else { id };
        let paths: Vec<PathBuf> = match paths {
            Some(paths) => paths.split(',').filter(|path| !path.is_empty()).map(PathBuf::from).collect(),
            None => running.map(Path::to_owned).into_iter().collect(),
        };
        let agent = agent(&paths).context(|| format!("--ssh {option}"))?;
        if agents.insert(id.to_owned(), agent).is_some() {
            return Err(Error::invalid(format!("--ssh {option}: the agent {id} is given twice")));
        }
    }
    Ok(agents)
}

fn agent(paths: &[PathBuf]) -> Result<Agent> {
    if paths.is_empty() {
        return Err(Error::invalid(
            "invalid empty ssh agent socket: make sure SSH_AUTH_SOCK is set, or name a socket or a key (ID=FILE)",
        ));
    }
    let mut keys = Vec::new();
    for path in paths {
        let metadata = path.metadata().map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => Error::not_found(format!("there is no file {}", path.display())),
            _ => Error::from(error).context(format!("open {}", path.display())),
        })?;
        if metadata.file_type().is_socket() {
            if paths.len() > 1 {
                return Err(Error::invalid(format!("{} is a socket, which stands alone", path.display())));
            }
            return Ok(socket(path));
        }
        if !metadata.is_file() || metadata.len() > MAX_KEY_BYTES {
            return Err(Error::invalid(format!("{} is neither a socket nor a key", path.display())));
        }
        let text = std::fs::read(path).context(|| format!("read {}", path.display()))?;
        keys.push(Key::parse(&text, path).context(|| path.display().to_string())?);
    }
    let keys = Arc::new(keys);
    Ok(Arc::new(move || {
        let (theirs, ours) = tokio::io::duplex(PIPE_BYTES);
        let served = agent::Served::new(theirs, Arc::clone(&keys), ours);
        std::future::ready(Ok(Box::new(served) as Box<dyn AgentIo>)).boxed()
    }))
}

fn socket(path: &Path) -> Agent {
    let path = path.to_owned();
    Arc::new(move || {
        let path = path.clone();
        async move {
            let stream = UnixStream::connect(&path).await;
            let stream = stream.context(|| format!("connect to the SSH agent at {}", path.display()))?;
            Ok(Box::new(stream) as Box<dyn AgentIo>)
        }
        .boxed()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;

    #[test]
    fn an_agent_is_a_socket_or_keys_and_mistakes_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent");
        let path = path.as_path();
        let _listener = std::os::unix::net::UnixListener::bind(path).unwrap();
        let of = |options: &[&str], running: Option<&Path>| {
            let options: Vec<String> = options.iter().map(|&option| option.to_owned()).collect();
            agents(&options, running).map(|agents| agents.into_keys().collect::<Vec<_>>())
        };
        assert_eq!(of(&["default"], Some(path)).unwrap(), ["default"]);
        let named = format!("mine={}", path.display());
        assert_eq!(of(&[&named, "default"], Some(path)).unwrap(), ["default", "mine"]);
        for (options, running, kind) in [
            (&["default"][..], None, Kind::InvalidArgument),
            (&["x=/nonexistent"], None, Kind::NotFound),
            (&["x=/etc/passwd"], None, Kind::InvalidArgument),
            (&["default", "default"], Some(path), Kind::InvalidArgument),
        ] {
            assert_eq!(of(options, running).unwrap_err().kind(), kind, "{options:?}");
        }
        let mixed = format!("x={},/etc/passwd", path.display());
        assert_eq!(of(&[&mixed], None).unwrap_err().kind(), Kind::InvalidArgument);
    }
}
