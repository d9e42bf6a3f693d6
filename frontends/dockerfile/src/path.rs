//! Slash-separated paths, as Go's `path` package sees them. Nothing here looks at a file system.

/// Returns the shortest path that means the same, by the text alone: no empty, `.` or inner `..` components; `.` when nothing
/// is left. `..` at the root vanishes.
pub(crate) fn clean(path: &str) -> String {
    if is_clean(path) {
        return path.to_owned();
    }
    let rooted = path.starts_with('/');
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." if parts.last().is_some_and(|last| *last != "..") => drop(parts.pop()),
            ".." if rooted => {}
            part => parts.push(part),
        }
    }
    let joined = parts.join("/");
    match (rooted, joined.is_empty()) {
        (true, _) => format!("/{joined}"),
        (false, true) => ".".to_owned(),
        (false, false) => joined,
    }
}

/// Says whether a path is absolute and has nothing to clean, as most are.
pub(crate) fn is_clean(path: &str) -> bool {
    let mut parts = path.split('/');
    parts.next() == Some("") && path.len() > 1 && parts.all(|part| !matches!(part, "" | "." | ".."))
}

/// Returns the last component; `.` of an empty path, `/` of the root.
pub(crate) fn base(path: &str) -> String {
    let trimmed = path.trim_end_matches('/');
    match trimmed.rsplit('/').next() {
        _ if path.is_empty() => ".".to_owned(),
        Some("") | None => "/".to_owned(),
        Some(last) => last.to_owned(),
    }
}

/// Returns `path` as an absolute path, cleaned: as it is, or from `directory` on.
pub(crate) fn absolute(directory: &str, path: &str) -> String {
    if path.starts_with('/') {
        clean(path)
    } else if directory == "/" {
        clean(&["/", path].concat())
    } else {
        clean(&["/", directory, "/", path].concat())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_cleaned_by_their_text() {
        for (path, expected) in [
            ("", "."),
            (".", "."),
            ("/", "/"),
            ("//a//b/", "/a/b"),
            ("a/./b/../c", "a/c"),
            ("../a/../../b", "../../b"),
            ("/../a/../..", "/"),
            ("a/..", "."),
        ] {
            assert_eq!(clean(path), expected, "{path}");
        }
        assert_eq!((base("/a/b/"), base("a"), base("/"), base("")), ("b".into(), "a".into(), "/".into(), ".".into()));
        assert_eq!(
            (absolute("/w", "a/.."), absolute("/w", "/x/"), absolute("", "a")),
            ("/w".into(), "/x".into(), "/a".into())
        );
    }
}
