//! What is built from: the context and the Dockerfile, as `build` finds them.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result, ResultExt as _};

/// The longest Dockerfile that is read from standard input, in bytes.
const MAX_DOCKERFILE: u64 = 16 << 20;

/// As much of standard input as tells an archive from a Dockerfile: a header of tar.
const SNIFFED: u64 = 512;

/// Where a build finds its files.
#[derive(Debug, Default)]
pub(super) struct Sources {
    /// Directories by BuildKit's names, `context`, `dockerfile` and those of named contexts; absolute.
    pub(super) locals: BTreeMap<String, PathBuf>,
    /// The address of a context that is no directory here.
    pub(super) address: Option<String>,
    /// The Dockerfile's name in its directory, or its address; `None` for one from standard input, and for the usual name in
    /// a context elsewhere.
    pub(super) filename: Option<String>,
    /// The Dockerfile from standard input.
    pub(super) dockerfile: Option<Vec<u8>>,
    /// What the engine fetches under [`Sources::address`].
    pub(super) upload: Option<Upload>,
}

/// A context that comes in by standard input.
pub(super) struct Upload(pub(super) Box<dyn Read + Send>);

impl std::fmt::Debug for Upload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Upload")
    }
}

impl Sources {
    /// Finds them. `context` and `file` are what the user wrote; `stdin` is read when either says `-`, and an archive there is
    /// uploaded under `upload`, an address. Blocking.
    ///
    /// # Errors
    /// `InvalidArgument` for what is no directory and no address; `NotFound` when the context or the Dockerfile is not there.
    pub(super) fn find(
        context: &Path,
        file: Option<&Path>,
        stdin: impl Read + Send + 'static,
        upload: &str,
    ) -> Result<Self> {
        let dash = Path::new("-");
        if context == dash {
            return Self::of_stdin(file, stdin, upload);
        }
        let dockerfile = if file == Some(dash) { Some(read_dockerfile(stdin)?) } else { None };
        let written = file.filter(|file| *file != dash);
        if !context.is_dir()
            && let Some(address) = context.to_str().filter(|text| is_address(text))
        {
            let filename = written.map(text).transpose()?;
            return Ok(Self { address: Some(address.to_owned()), filename, dockerfile, ..Self::default() });
        }
        let context = directory(context)?;
        let mut locals = BTreeMap::from([("context".to_owned(), context.clone())]);
        if dockerfile.is_some() {
            return Ok(Self { locals, dockerfile, ..Self::default() });
        }
        if let Some(address) = written.and_then(Path::to_str).filter(|file| is_http(file)) {
            return Ok(Self { locals, filename: Some(address.to_owned()), ..Self::default() });
        }
        let path = match written {
            Some(file) => std::path::absolute(file)?,
            None => default_dockerfile(&context),
        };
        let (dir, filename) = split(&path)?;
        locals.insert("dockerfile".to_owned(), dir);
        Ok(Self { locals, filename: Some(filename), ..Self::default() })
    }

    /// A Dockerfile alone, or an archive of a context.
    fn of_stdin(file: Option<&Path>, mut stdin: impl Read + Send + 'static, upload: &str) -> Result<Self> {
        let mut start = Vec::new();
        stdin.by_ref().take(SNIFFED).read_to_end(&mut start).context(|| "read the context from standard input")?;
        let is_archive = is_archive(&start);
        let all = std::io::Cursor::new(start).chain(stdin);
        match file {
            Some(file) if file == Path::new("-") => Err(Error::invalid(
                "-f - and the context - both mean standard input: leave out -f when the Dockerfile is in the archive",
            )),
            Some(_) if !is_archive => Err(Error::invalid(
                "the Dockerfile is on standard input (-) and named by -f: leave out one, or give an archive on standard input",
            )),
            None if !is_archive => Ok(Self { dockerfile: Some(read_dockerfile(all)?), ..Self::default() }),
            file => Ok(Self {
                address: Some(upload.to_owned()),
                filename: file.map(text).transpose()?,
                upload: Some(Upload(Box::new(all))),
                ..Self::default()
            }),
        }
    }
}

fn text(path: &Path) -> Result<String> {
    let text = path.to_str().ok_or_else(|| Error::invalid(format!("{} is not UTF-8", path.display())))?;
    Ok(text.to_owned())
}

/// Whether a context is something the engine fetches.
pub(super) fn is_address(text: &str) -> bool {
    let prefixes = ["git://", "ssh://", "git@", "github.com/"];
    is_http(text) || prefixes.iter().any(|prefix| text.starts_with(prefix)) || is_scp(text)
}

fn is_http(text: &str) -> bool {
    text.starts_with("http://") || text.starts_with("https://")
}

/// `user@host:path`
fn is_scp(text: &str) -> bool {
    let plain = |text: &str| !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
    text.split_once('@')
        .is_some_and(|(user, rest)| plain(user) && rest.split_once(':').is_some_and(|(host, _)| plain(host)))
}

/// Docker's clients also take `dockerfile`, when there is no `Dockerfile`.
fn default_dockerfile(context: &Path) -> PathBuf {
    let (usual, lower) = (context.join("Dockerfile"), context.join("dockerfile"));
    if usual.symlink_metadata().is_err() && lower.symlink_metadata().is_ok() { lower } else { usual }
}

fn split(path: &Path) -> Result<(PathBuf, String)> {
    let missing = |why: &str| Error::not_found(format!("cannot read the Dockerfile {}: {why}", path.display()));
    match path.metadata() {
        Ok(metadata) if metadata.is_dir() => return Err(missing("it is a directory")),
        Ok(_) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(missing("no such file (-f names another)"));
        }
        Err(error) => return Err(Error::from(error).context(format!("read the Dockerfile {}", path.display()))),
    }
    let filename = path.file_name().and_then(|name| name.to_str());
    let filename = filename.ok_or_else(|| Error::invalid(format!("{} is not UTF-8", path.display())))?;
    Ok((path.parent().unwrap_or(Path::new("/")).to_owned(), filename.to_owned()))
}

/// Checks a directory to build from, and returns it without symbolic links.
pub(super) fn directory(context: &Path) -> Result<PathBuf> {
    let metadata = context.metadata().map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => {
            Error::not_found(format!("there is no directory {} to build from", context.display()))
        }
        _ => Error::from(error).context(format!("open the context {}", context.display())),
    })?;
    if !metadata.is_dir() {
        return Err(Error::invalid(format!("the context {} is not a directory", context.display())));
    }
    let absolute = context.canonicalize().context(|| format!("open the context {}", context.display()))?;
    match absolute.to_str() {
        Some(_) => Ok(absolute),
        None => Err(Error::invalid(format!("the context {} is not UTF-8", absolute.display()))),
    }
}

fn read_dockerfile(stdin: impl Read) -> Result<Vec<u8>> {
    let mut content = Vec::new();
    stdin.take(MAX_DOCKERFILE + 1).read_to_end(&mut content).context(|| "read the Dockerfile from standard input")?;
    if content.len() as u64 > MAX_DOCKERFILE {
        return Err(Error::invalid("the Dockerfile on standard input is longer than 16 MiB"));
    }
    if is_archive(&content) {
        return Err(Error::invalid(
            "an archive is on standard input where a Dockerfile should be: give - as the context",
        ));
    }
    Ok(content)
}

/// Says whether something begins as a tar does, perhaps compressed by gzip, bzip2, xz or zstd.
fn is_archive(content: &[u8]) -> bool {
    let compressed: [&[u8]; 4] = [b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd"];
    compressed.iter().any(|magic| content.starts_with(magic)) || content.get(..512).is_some_and(is_header)
}

/// Says whether a block is a header of tar: old ones have nothing but a sum to tell them by.
fn is_header(block: &[u8]) -> bool {
    let stored = std::str::from_utf8(&block[148..156]).ok().map(|text| text.trim_matches(['\0', ' ']));
    let stored = stored.and_then(|digits| u32::from_str_radix(digits, 8).ok());
    let sum = |at: usize, byte: u8| if (148..156).contains(&at) { 32 } else { u32::from(byte) };
    stored == Some(block.iter().enumerate().map(|(at, byte)| sum(at, *byte)).sum())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;

    fn find(context: &Path, file: Option<&str>, stdin: &[u8]) -> Result<Sources> {
        Sources::find(context, file.map(Path::new), std::io::Cursor::new(stdin.to_vec()), "http://up/1")
    }

    #[test]
    fn a_dockerfile_lies_in_the_context_elsewhere_or_on_standard_input() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        std::fs::create_dir(root.join("docker")).unwrap();
        std::fs::write(root.join("docker/app.dockerfile"), "FROM x").unwrap();
        assert_eq!(find(&root, None, b"").unwrap_err().kind(), Kind::NotFound);

        std::fs::write(root.join("dockerfile"), "FROM x").unwrap();
        assert_eq!(find(&root, None, b"").unwrap().filename.as_deref(), Some("dockerfile"));
        std::fs::write(root.join("Dockerfile"), "FROM x").unwrap();
        assert_eq!(find(&root, None, b"").unwrap().filename.as_deref(), Some("Dockerfile"));

        let elsewhere = find(&root, root.join("docker/app.dockerfile").to_str(), b"").unwrap();
        assert_eq!((&elsewhere.locals["context"], &elsewhere.locals["dockerfile"]), (&root, &root.join("docker")));
        let stdin = find(&root, Some("-"), b"FROM y").unwrap();
        assert_eq!((stdin.dockerfile.as_deref(), stdin.filename), (Some(&b"FROM y"[..]), None));
        let alone = find(Path::new("-"), None, b"FROM z").unwrap();
        assert_eq!((alone.dockerfile.as_deref(), alone.locals.len()), (Some(&b"FROM z"[..]), 0));
    }

    #[test]
    fn contexts_elsewhere_are_the_engines_to_fetch() {
        for address in ["https://example.com/app.git#main", "git@a.b:c", "ssh://a/b", "github.com/a/b", "me@a.b:c"] {
            let sources = find(Path::new(address), Some("sub/Dockerfile"), b"").unwrap();
            assert_eq!(sources.address.as_deref(), Some(address));
            assert_eq!(sources.filename.as_deref(), Some("sub/Dockerfile"));
        }
        let dir = tempfile::tempdir().unwrap();
        let by_address = find(dir.path(), Some("https://example.com/Dockerfile"), b"").unwrap();
        assert_eq!(by_address.filename.as_deref(), Some("https://example.com/Dockerfile"));
    }

    #[test]
    fn an_archive_on_standard_input_is_uploaded_as_it_is() {
        let mut tar = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_old();
        header.set_size(1);
        tar.append_data(&mut header, "x", &b"y"[..]).unwrap();
        let tar = tar.into_inner().unwrap();
        for stdin in [&tar[..], b"\x1f\x8b\x08"] {
            let sources = find(Path::new("-"), Some("sub/Dockerfile"), stdin).unwrap();
            assert_eq!(sources.address.as_deref(), Some("http://up/1"));
            assert_eq!(sources.filename.as_deref(), Some("sub/Dockerfile"));
            let mut all = Vec::new();
            sources.upload.unwrap().0.read_to_end(&mut all).unwrap();
            assert_eq!(all, stdin);
        }
    }

    #[test]
    fn contexts_that_cannot_be_built_from_are_named() {
        for (context, file, stdin, kind) in [
            ("-", Some("Dockerfile"), &b"FROM x"[..], Kind::InvalidArgument),
            ("-", Some("-"), b"FROM x", Kind::InvalidArgument),
            ("/", Some("-"), b"\x1f\x8b\x08", Kind::InvalidArgument),
            ("/nonexistent", None, b"", Kind::NotFound),
            ("/etc/passwd", None, b"", Kind::InvalidArgument),
        ] {
            assert_eq!(find(Path::new(context), file, stdin).unwrap_err().kind(), kind, "{context}");
        }
        let long = vec![b'#'; (16 << 20) + 1];
        assert_eq!(find(Path::new("-"), None, &long).unwrap_err().kind(), Kind::InvalidArgument);
    }
}
