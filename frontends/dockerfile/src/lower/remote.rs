//! What is fetched: git repositories and files by HTTP, as sources of ADD and as contexts.

use kiln_graph::op::GitSource;

use crate::path;

/// What an address stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Remote {
    /// A repository. The second part says whether `.git` stays, as far as the address says so.
    Git(GitSource, Option<bool>),
    /// A file.
    Http {
        /// The name it gets when the destination gives none.
        filename: String,
    },
}

impl Remote {
    /// Reads the address of a context; `None` when it is none of something that is fetched. Unlike a source of ADD, one that
    /// begins with `github.com/` is a repository.
    ///
    /// # Errors
    /// A repository's address with options that are unknown, repeated or contradict each other.
    pub fn of_context(address: &str) -> Result<Option<Self>, String> {
        if address.starts_with("github.com/") {
            return parse(&format!("https://{address}"), true);
        }
        parse(address, false)
    }
}

/// Tells remote sources from paths. `known_git` says that an HTTP address is a repository, whatever it looks like.
///
/// Without it, `https://` addresses are repositories when their path ends in `.git`; `git://`, `ssh://` and `user@host:path`
/// always are.
///
/// # Errors
/// A repository's address with options that are unknown, repeated or contradict each other.
pub(super) fn parse(source: &str, known_git: bool) -> Result<Option<Remote>, String> {
    if let Some((scheme, rest)) = source.split_once("://") {
        let (location, fragment) = rest.split_once('#').unwrap_or((rest, ""));
        let (location, query) = location.split_once('?').unwrap_or((location, ""));
        let path_start = location.find('/').unwrap_or(location.len());
        let (host, path) = location.split_at(path_start);
        let git = |host: &str| git(format!("{scheme}://{host}{path}"), fragment, query).map(Some);
        return match scheme.to_ascii_lowercase().as_str() {
            "http" | "https" if known_git || path.ends_with(".git") => git(host),
            "git" | "ssh" => git(host),
            "http" | "https" => {
                let name = path::base(&decode(path));
                let filename = if matches!(name.as_str(), "." | "/") { "__unnamed__".to_owned() } else { name };
                Ok(Some(Remote::Http { filename }))
            }
            _ => Ok(None),
        };
    }
    if is_scp_style(source) {
        let (location, fragment) = source.split_once('#').unwrap_or((source, ""));
        let (location, query) = location.split_once('?').unwrap_or((location, ""));
        return git(location.to_owned(), fragment, query).map(Some);
    }
    Ok(None)
}

/// `user@host:path`
fn is_scp_style(source: &str) -> bool {
    let word = |text: &str, more: &[char]| {
        !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || more.contains(&c))
    };
    let Some((user, rest)) = source.split_once('@') else { return false };
    let Some((host, _)) = rest.split_once(':') else { return false };
    word(user, &['-', '_']) && word(host, &['-', '.'])
}

/// Reads the fragment `#ref:subdir` and the query of a repository's address.
fn git(remote: String, fragment: &str, query: &str) -> Result<Remote, String> {
    let (reference, subdir) = fragment.split_once(':').unwrap_or((fragment, ""));
    // The time of a checkout says nothing about the commit, and two builds of it would differ.
    let commit_mtime = true;
    let mut git = GitSource {
        remote,
        reference: decode(reference),
        subdir: decode(subdir),
        commit_mtime,
        ..GitSource::default()
    };
    let mut keep_git_dir = None;
    let mut named = None;
    let mut seen: Vec<String> = Vec::new();
    for option in query.split('&').filter(|option| !option.is_empty()) {
        let (key, value) = option.split_once('=').map_or((option, ""), |(key, value)| (key, value));
        let (key, value) = (decode(key), decode(&value.replace('+', " ")));
        let key = if key == "commit" { "checksum".to_owned() } else { key };
        if seen.contains(&key) {
            return Err(format!("the option {key} is given twice"));
        }
        let switch = || match value.as_str() {
            "" => Ok(true),
            text => crate::scalar::boolean(text).ok_or_else(|| format!("{key}={text} is not true or false")),
        };
        let is_switch = matches!(key.as_str(), "keep-git-dir" | "submodules" | "fetch-by-commit");
        if value.is_empty() && !is_switch {
            return Err(format!("the option {key} has no value"));
        }
        match key.as_str() {
            "ref" => set(&mut git.reference, value, "ref")?,
            "tag" | "branch" => {
                let prefix = if key == "tag" { "refs/tags/" } else { "refs/heads/" };
                let full = if value.starts_with(prefix) { value } else { format!("{prefix}{value}") };
                if let Some(other) = named.replace(full) {
                    return Err(format!("tag and branch contradict each other ({other})"));
                }
            }
            "subdir" => set(&mut git.subdir, value, "subdir")?,
            "checksum" => git.checksum = value,
            "keep-git-dir" => keep_git_dir = Some(switch()?),
            "submodules" => git.skip_submodules = !switch()?,
            "fetch-by-commit" => git.fetch_by_commit = switch()?,
            "mtime" => {
                git.commit_mtime = match value.as_str() {
                    "commit" => true,
                    "checkout" => false,
                    other => return Err(format!("mtime={other} is neither checkout nor commit")),
                }
            }
            other => return Err(format!("repositories have no option {other:?}")),
        }
        seen.push(key);
    }
    if let Some(name) = named {
        set(&mut git.reference, name, "ref")?;
    }
    if git.reference.is_empty() {
        git.reference.clone_from(&git.checksum);
    }
    Ok(Remote::Git(git, keep_git_dir))
}

/// Sets a value that may be given in two places, which must agree.
fn set(place: &mut String, value: String, name: &str) -> Result<(), String> {
    if !place.is_empty() && *place != value {
        return Err(format!("{name} is given as {place:?} and as {value:?}"));
    }
    *place = value;
    Ok(())
}

/// Resolves `%xx`. What is not such an escape, or no UTF-8 then, stays as it is.
fn decode(text: &str) -> String {
    let digit = |byte: u8| char::from(byte).to_digit(16);
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        let pair = match (first, tail) {
            (b'%', [high, low, ..]) => digit(*high).zip(digit(*low)),
            _ => None,
        };
        bytes.push(pair.and_then(|(high, low)| u8::try_from(high * 16 + low).ok()).unwrap_or(*first));
        rest = if pair.is_some() { &tail[2..] } else { tail };
    }
    String::from_utf8(bytes).unwrap_or_else(|_| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn git_of(source: &str) -> GitSource {
        match parse(source, false).unwrap() {
            Some(Remote::Git(git, _)) => git,
            other => panic!("{source}: {other:?}"),
        }
    }

    #[test]
    fn repositories_files_and_paths_are_told_apart() {
        for source in [
            "https://a.b/c.git",
            "http://a.b/c.git#v1",
            "git://a.b/c",
            "ssh://git@a.b/c",
            "git@a.b:c/d.git",
            "git@a.b:c#v1:d",
        ] {
            assert!(matches!(parse(source, false), Ok(Some(Remote::Git(..)))), "{source}");
        }
        for source in ["a", "./a", "a/b.git", "github.com/a/b", "ftp://a/b", "a@b", "@a:b", "a b@c:d"] {
            assert_eq!(parse(source, false), Ok(None), "{source}");
        }
        for (source, name) in [
            ("https://a.b/c/d%20e.tar?x=1#y", "d e.tar"),
            ("http://a.b", "__unnamed__"),
            ("https://a.b/", "__unnamed__"),
            ("HTTPS://a.b/c.gitx", "c.gitx"),
        ] {
            assert_eq!(parse(source, false), Ok(Some(Remote::Http { filename: name.to_owned() })), "{source}");
        }
        assert!(matches!(parse("https://a.b/c", true), Ok(Some(Remote::Git(..)))));
    }

    #[test]
    fn addresses_of_repositories_carry_options() {
        let git = git_of("https://a.b/c.git#main:sub/dir");
        assert_eq!(
            (git.remote.as_str(), git.reference.as_str(), git.subdir.as_str()),
            ("https://a.b/c.git", "main", "sub/dir")
        );
        let git = git_of("git@a.b:c.git?tag=v1&subdir=x&submodules=false&mtime=commit&checksum=abc");
        assert_eq!(
            (git.remote.as_str(), git.reference.as_str(), git.subdir.as_str()),
            ("git@a.b:c.git", "refs/tags/v1", "x")
        );
        assert!(git.skip_submodules && git.commit_mtime && git.checksum == "abc");
        assert!(!git_of("https://a.b/c.git?mtime=checkout").commit_mtime);
        assert_eq!(git_of("https://a.b/c.git?commit=abc&fetch-by-commit").reference, "abc");
        let Ok(Some(Remote::Git(_, keep))) = parse("https://a.b/c.git?keep-git-dir", false) else { panic!("git") };
        assert_eq!(keep, Some(true));
    }

    #[test]
    fn contradictions_and_unknown_options_are_refused() {
        for (query, message) in [
            ("?x=1", "repositories have no option \"x\""),
            ("?ref=a&ref=b", "the option ref is given twice"),
            ("?ref=a#b", "ref is given as \"b\" and as \"a\""),
            ("?ref=", "the option ref has no value"),
            ("?tag=a&branch=b", "tag and branch contradict each other (refs/tags/a)"),
            ("?submodules=x", "submodules=x is not true or false"),
            ("?mtime=x", "mtime=x is neither checkout nor commit"),
            ("?commit=a&checksum=b", "the option checksum is given twice"),
        ] {
            assert_eq!(parse(&format!("https://a.b/c.git{query}"), false), Err(message.to_owned()));
        }
    }
}
