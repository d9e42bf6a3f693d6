//! `--secret`: where a secret comes from, and its value when the engine asks for it.

use std::collections::BTreeMap;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use crate::cli::value;
use crate::error::{Error, Result, ResultExt as _};

/// The largest secret; BuildKit's limit.
const MAX_BYTES: u64 = 500 << 10;

/// Where a secret comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Source {
    File(PathBuf),
    Variable(String),
}

/// Secrets by id.
#[derive(Clone, Debug, Default)]
pub(super) struct Secrets(BTreeMap<String, Source>);

impl Secrets {
    /// Reads options. `has_variable` says whether a variable is set: a bare `id=NAME` means the variable of that name, else
    /// the file.
    ///
    /// # Errors
    /// `InvalidArgument` for a malformed option, a missing or too large file.
    pub(super) fn parse(options: &[String], has_variable: impl Fn(&str) -> bool) -> Result<Self> {
        let mut secrets = BTreeMap::new();
        for option in options {
            let (id, source) = parse(option, &has_variable).context(|| format!("--secret {option}"))?;
            if let Source::File(path) = &source {
                check(path).context(|| format!("--secret {option}"))?;
            }
            secrets.insert(id, source);
        }
        Ok(Self(secrets))
    }

    /// Returns a secret's value; `None` when there is no secret of that id, or its variable is not set. Blocking.
    ///
    /// # Errors
    /// When its file cannot be read.
    pub(super) fn value(&self, id: &str) -> Result<Option<Vec<u8>>> {
        match self.0.get(id) {
            None => Ok(None),
            Some(Source::Variable(name)) => Ok(std::env::var_os(name).map(OsStringExt::into_vec)),
            Some(Source::File(path)) => {
                std::fs::read(path).map(Some).context(|| format!("read the secret {}", path.display()))
            }
        }
    }
}

fn parse(option: &str, has_variable: impl Fn(&str) -> bool) -> Result<(String, Source)> {
    let (mut id, mut kind, mut file, mut variable) = (None, None, None, None);
    for (key, text) in value::csv(option)? {
        let text = text.ok_or_else(|| Error::invalid(format!("{key:?} has no value")))?;
        match key.as_str() {
            "id" => id = Some(text),
            "type" if matches!(text.as_str(), "file" | "env") => kind = Some(text),
            "type" => return Err(Error::invalid(format!("unknown type {text:?}: expected file or env"))),
            "src" | "source" => file = Some(text),
            "env" => variable = Some(text),
            _ => return Err(Error::invalid(format!("unknown key {key:?}: expected id, src, env or type"))),
        }
    }
    let id = id.filter(|id| !id.is_empty()).ok_or_else(|| Error::invalid("the id is missing: id=NAME,src=FILE"))?;
    let source = match (kind.as_deref(), file, variable) {
        (_, Some(_), Some(_)) => return Err(Error::invalid("both src and env are given")),
        (Some("env"), Some(name), None) | (_, None, Some(name)) => Source::Variable(name),
        (_, Some(path), None) => Source::File(path.into()),
        (Some("file"), None, None) => Source::File(id.clone().into()),
        (Some(_), None, None) => Source::Variable(id.clone()),
        (None, None, None) if has_variable(&id) => Source::Variable(id.clone()),
        (None, None, None) => Source::File(id.clone().into()),
    };
    Ok((id, source))
}

fn check(path: &Path) -> Result<()> {
    let size = std::fs::metadata(path).map_err(|error| {
        let missing = error.kind() == std::io::ErrorKind::NotFound;
        if missing { Error::not_found(format!("there is no file {}", path.display())) } else { error.into() }
    })?;
    if size.is_dir() {
        return Err(Error::invalid(format!("{} is a directory", path.display())));
    }
    if size.len() > MAX_BYTES {
        return Err(Error::invalid(format!("{} is larger than {} KiB", path.display(), MAX_BYTES >> 10)));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_comes_from_a_file_or_a_variable() {
        let file = |path: &str| Source::File(path.into());
        let variable = |name: &str| Source::Variable(name.to_owned());
        for (option, source) in [
            ("id=a,src=/f", file("/f")),
            ("id=a,type=file,source=/f", file("/f")),
            ("id=a,env=V", variable("V")),
            ("type=env,id=a", variable("a")),
            ("id=a,type=env,src=V", variable("V")),
            ("id=a", file("a")),
            ("id=SET", variable("SET")),
        ] {
            assert_eq!(parse(option, |name| name == "SET").unwrap().1, source, "{option}");
        }
    }

    #[test]
    fn mistakes_are_named() {
        for (option, words) in [
            ("src=/f", "id is missing"),
            ("id=a,type=vault", "vault"),
            ("id=a,path=/f", "path"),
            ("id=a,src=x,env=y", "both"),
            ("id", "no value"),
        ] {
            let error = parse(option, |_| false).unwrap_err().to_string();
            assert!(error.contains(words), "{option}: {error}");
        }
        let error = Secrets::parse(&["id=a,src=/nonexistent".to_owned()], |_| false).unwrap_err().to_string();
        assert_eq!(error, "--secret id=a,src=/nonexistent: there is no file /nonexistent");
    }
}
