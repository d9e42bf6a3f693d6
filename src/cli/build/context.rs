//! What is built from: the context and the Dockerfile, as `build` finds them.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result, ResultExt as _};

/// The longest Dockerfile that is read from standard input, in bytes.
const MAX_DOCKERFILE: u64 = 16 << 20;

/// Where a build finds its files.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Sources {
    /// Directories by BuildKit's names, `context` and `dockerfile`; absolute.
    pub(super) locals: BTreeMap<&'static str, PathBuf>,
    /// The Dockerfile's name in its directory; `None` for one from standard input.
    pub(super) filename: Option<String>,
    /// The Dockerfile from standard input.
    pub(super) dockerfile: Option<Vec<u8>>,
}

impl Sources {
    /// Finds them. `context` and `file` are what the user wrote; `stdin` is read when either says `-`. Blocking.
    ///
    /// # Errors
    /// `InvalidArgument` for what is no directory and for kinds of contexts that are not supported; `NotFound` when the
    /// context or the Dockerfile is not there.
    pub(super) fn find(context: &Path, file: Option<&Path>, stdin: &mut dyn Read) -> Result<Self> {
        let dash = Path::new("-");
        if context == dash {
            if let Some(file) = file {
                return Err(Error::unsupported(format!(
                    "a context on standard input (-f {}) is not supported yet: give a directory",
                    file.display()
                )));
            }
            return Ok(Self { dockerfile: Some(read_dockerfile(stdin)?), ..Self::default() });
        }
        refuse_remote(context)?;
        let context = directory(context)?;
        if file == Some(dash) {
            let locals = BTreeMap::from([("context", context)]);
            return Ok(Self { locals, filename: None, dockerfile: Some(read_dockerfile(stdin)?) });
        }
        let path = match file {
            Some(file) => std::path::absolute(file)?,
            None => default_dockerfile(&context),
        };
        let (dir, filename) = split(&path)?;
        let locals = BTreeMap::from([("context", context), ("dockerfile", dir)]);
        Ok(Self { locals, filename: Some(filename), dockerfile: None })
    }
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

fn refuse_remote(context: &Path) -> Result<()> {
    let text = context.to_string_lossy();
    let remote = ["http://", "https://", "git://", "git@", "ssh://", "github.com/"];
    if remote.iter().any(|prefix| text.starts_with(prefix)) {
        return Err(Error::unsupported(format!(
            "a context elsewhere ({text}) is not supported yet: clone or download it and give the directory"
        )));
    }
    Ok(())
}

fn directory(context: &Path) -> Result<PathBuf> {
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

fn read_dockerfile(stdin: &mut dyn Read) -> Result<Vec<u8>> {
    let mut content = Vec::new();
    stdin.take(MAX_DOCKERFILE + 1).read_to_end(&mut content).context(|| "read the Dockerfile from standard input")?;
    if is_archive(&content) {
        return Err(Error::unsupported(
            "a context as an archive on standard input is not supported yet: unpack it and give the directory",
        ));
    }
    if content.len() as u64 > MAX_DOCKERFILE {
        return Err(Error::invalid("the Dockerfile on standard input is longer than 16 MiB"));
    }
    Ok(content)
}

/// Says whether something is a tar, perhaps compressed by gzip, bzip2, xz or zstd.
fn is_archive(content: &[u8]) -> bool {
    let compressed: [&[u8]; 4] = [b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd"];
    compressed.iter().any(|magic| content.starts_with(magic)) || content.get(257..262) == Some(b"ustar")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;

    fn find(context: &Path, file: Option<&str>, stdin: &[u8]) -> Result<Sources> {
        Sources::find(context, file.map(Path::new), &mut &*stdin)
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
        assert_eq!(elsewhere.locals, BTreeMap::from([("context", root.clone()), ("dockerfile", root.join("docker"))]));
        let stdin = find(&root, Some("-"), b"FROM y").unwrap();
        assert_eq!((stdin.dockerfile.as_deref(), stdin.filename), (Some(&b"FROM y"[..]), None));
        let alone = find(Path::new("-"), None, b"FROM z").unwrap();
        assert_eq!((alone.dockerfile.as_deref(), alone.locals.len()), (Some(&b"FROM z"[..]), 0));
    }

    #[test]
    fn contexts_that_cannot_be_built_from_are_named() {
        let mut tar = vec![0; 512];
        tar[257..262].copy_from_slice(b"ustar");
        for (context, stdin, kind) in [
            ("-", &tar[..], Kind::Unsupported),
            ("-", b"\x1f\x8b\x08", Kind::Unsupported),
            ("https://example.com/app.git", b"", Kind::Unsupported),
            ("/nonexistent", b"", Kind::NotFound),
            ("/etc/passwd", b"", Kind::InvalidArgument),
        ] {
            assert_eq!(find(Path::new(context), None, stdin).unwrap_err().kind(), kind, "{context}");
        }
    }
}
