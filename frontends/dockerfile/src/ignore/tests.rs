use super::*;

fn ignore(text: &str) -> Ignore {
    Ignore::parse(&SourceFile::new(".dockerignore", text)).unwrap()
}

#[track_caller]
fn check(text: &str, excluded: &[&str], included: &[&str]) {
    let ignore = ignore(text);
    for (paths, expected) in [(excluded, true), (included, false)] {
        for path in paths {
            assert_eq!(ignore.excludes(path), expected, "{path} with {text:?}");
        }
    }
}

#[test]
fn a_pattern_matches_from_the_root_and_takes_what_is_below() {
    check("node_modules\n", &["node_modules", "node_modules/a/b"], &["sub/node_modules", "node_modules2"]);
    check("/a/./b/\n", &["a/b", "a/b/c"], &["a", "b"]);
    check("*.md", &["x.md"], &["a/x.md", "x.mdx"]);
    check("*/x", &["a/x", "a/x/y"], &["x", "a/b/x"]);
    check("a?c", &["abc"], &["a/c", "ac"]);
    check("[ab]", &["a"], &["c", "[ab]"]);
    check("a\\*", &["a*"], &["ab"]);
    check("a/../b", &["b"], &["a"]);
    check("..\n../x\n.\n/", &[], &["x", "a"]);
}

#[test]
fn double_stars_cross_directories() {
    check("**/x", &["x", "a/x", "a/b/x", "a/x/y"], &["ax", "a/xb"]);
    check("**x", &["x", "ax", "a/bx"], &["xa"]);
    check("a/**", &["a/b", "a/b/c"], &["a", "ab"]);
    check("a**", &["a", "ab/c"], &["b"]);
    check("a/**/b", &["a/b", "a/x/b", "a/x/y/b"], &["a", "ab", "a/xb"]);
    check("a**b", &["ab", "ax/b", "ax/y/b"], &["axb"]);
    check("**/*.go", &["x.go", "a/x.go"], &["x.gox"]);
    check("*/**/x", &["a/x", "a/b/x"], &["x"]);
    check("**", &["a", "a/b"], &[]);
    check("**/a/**", &["a/b", "x/a/b"], &["a", "ab/c"]);
}

#[test]
fn the_last_matching_pattern_decides() {
    check("*\n!a\n!b/c\n", &["x", "b", "b/d"], &["a", "a/x", "b/c", "b/c/d"]);
    check("!a\na\n", &["a"], &[]);
    check("a\n!a/b\na/b/c\n", &["a/x", "a/b/c", "a/b/c/d"], &["a/b", "a/b/d"]);
    check("a\n!a/x/f\na/x\n", &["a/x/f", "a/x"], &["b"]);
}

#[test]
fn a_file_has_comments_blanks_and_a_byte_order_mark() {
    let text = "\u{feff}# comment\r\n\r\n  a  \r\n # b\n! c \n";
    let patterns: Vec<_> = ignore(text).patterns().iter().map(|p| (p.text(), p.line())).collect();
    assert_eq!(patterns, [("a".to_owned(), 3), ("# b".to_owned(), 4), ("!c".to_owned(), 5)]);
}

#[test]
fn malformed_patterns_are_refused_at_their_place() {
    for (text, place, message) in [
        ("a\n  !  \n", "!", "an exception without a pattern"),
        ("*\n!/*.txt/..\n", "!/*.txt/..", "an exception of the root, which is never left out"),
        ("[a\n", "[a", "the pattern \"[a\" has a [ that is not closed or is empty"),
    ] {
        let file = SourceFile::new(".dockerignore", text);
        let error = Ignore::parse(&file).unwrap_err();
        assert_eq!((file.slice(error.span.unwrap()), error.message.as_str()), (place, message));
    }
    assert!(Ignore::from_patterns(["a", "\\"]).is_err());
}

#[test]
fn the_pattern_that_excludes_a_path_is_known() {
    let ignore = ignore("# x\n*.md\n!README.md\n");
    assert_eq!(ignore.deciding_pattern("a.md").map(Pattern::line), Some(2));
    assert_eq!(ignore.deciding_pattern("README.md").map(|p| (p.line(), p.is_exception())), Some((3, true)));
    assert!(ignore.deciding_pattern("x").is_none());
}

#[test]
fn a_walk_skips_directories_without_exceptions_below() {
    let ignore = ignore("*\n!a/b/*.txt\n!**/keep\n");
    assert!(ignore.may_include_below("z"), "**/keep may be anywhere");
    let ignore = self::ignore("*\n!a/b/*.txt\n!c/**\n!d/e\n");
    for (directory, expected) in [
        ("a", true),
        ("a/b", true),
        ("a/b/c", false),
        ("x", false),
        ("c", true),
        ("c/x", true),
        ("d", true),
        ("d/e", false),
    ] {
        assert_eq!(ignore.may_include_below(directory), expected, "{directory}");
    }
}

/// moby's algorithm in the plainest form: every pattern becomes a regular expression, except for its three shortcuts.
mod reference {
    use regex::Regex;

    pub(super) fn excludes(patterns: &[&str], path: &str) -> bool {
        let mut excluded = false;
        for pattern in patterns {
            let (exception, pattern) = match pattern.strip_prefix('!') {
                Some(pattern) => (true, pattern),
                None => (false, *pattern),
            };
            let pattern = clean(pattern);
            let mut candidates = vec![path.to_owned()];
            let parts: Vec<&str> = path.split('/').collect();
            candidates.extend((1..parts.len()).map(|n| parts[..n].join("/")));
            if candidates.iter().any(|candidate| matches(&pattern, candidate)) {
                excluded = !exception;
            }
        }
        excluded
    }

    /// Good enough for the patterns below.
    fn clean(pattern: &str) -> String {
        let mut parts: Vec<&str> = Vec::new();
        for part in pattern.split('/') {
            match part {
                "" | "." => {}
                ".." => drop(parts.pop()),
                part => parts.push(part),
            }
        }
        parts.join("/")
    }

    fn matches(pattern: &str, path: &str) -> bool {
        let plain = |text: &str| !text.contains(['*', '?', '[', ']', '\\']);
        if plain(pattern) {
            return path == pattern;
        }
        if let Some(prefix) = pattern.strip_suffix("**").filter(|prefix| plain(prefix) && !prefix.is_empty()) {
            return path.starts_with(prefix);
        }
        if let Some(suffix) = pattern.strip_prefix("**").filter(|suffix| plain(suffix)) {
            return path.ends_with(suffix) || suffix.strip_prefix('/') == Some(path);
        }
        Regex::new(&expression(pattern)).unwrap().is_match(path)
    }

    fn expression(pattern: &str) -> String {
        let mut expression = String::from("^");
        let mut rest = pattern;
        while let Some(c) = rest.chars().next() {
            let deep = rest.strip_prefix("**").map(|tail| tail.strip_prefix('/').unwrap_or(tail));
            rest = match deep {
                Some("") => {
                    expression.push_str(".*");
                    ""
                }
                Some(tail) => {
                    expression.push_str("(.*/)?");
                    tail
                }
                None => {
                    match c {
                        '*' => expression.push_str("[^/]*"),
                        '?' => expression.push_str("[^/]"),
                        '.' | '+' | '(' | ')' | '|' | '{' | '}' | '$' => expression.extend(['\\', c]),
                        c => expression.push(c),
                    }
                    &rest[c.len_utf8()..]
                }
            };
        }
        expression + "$"
    }
}

const PATTERNS: &[&str] = &[
    "a",
    "a/b",
    "/a",
    "a/",
    "./a",
    "a/../b",
    "a/.",
    "*",
    "*/*",
    "**",
    "**/a",
    "**/a/**",
    "a/**",
    "a/**/b",
    "a**",
    "a**/b",
    "a**b",
    "**a",
    "**/*.md",
    "*.md",
    "a/*.md",
    "*/b",
    "?",
    "a?",
    "??/b",
    "[ab]",
    "[^a]",
    "[a-c]*",
    "{a,b}",
    "a.b",
    "a+b",
    "(a)",
    "*a*",
    "**b**",
    "foo**bar",
    "node_modules",
    "**/node_modules",
    "a/b/c",
    "*/**/c",
    "**/b/c",
];

const PATHS: &[&str] = &[
    "a",
    "b",
    "ab",
    "a/b",
    "a/b/c",
    "a/c",
    "b/a",
    "b/c/a",
    "x.md",
    "a/x.md",
    "a/b/x.md",
    "ax/b",
    "foobar",
    "foo/bar",
    "fooxbar",
    "foo/x/bar",
    "{a,b}",
    "a.b",
    "axb",
    "a+b",
    "(a)",
    "node_modules",
    "node_modules/x",
    "sub/node_modules",
    "abc/c",
    "b/b/c",
    "c/d/e",
    "x/y/z/a",
    ".md",
    "..a",
    "ba/b",
    "a b",
];

#[test]
fn thousands_of_pairs_match_as_the_plain_algorithm_says() {
    let mut pairs = 0;
    for (n, pattern) in PATTERNS.iter().enumerate() {
        // The pattern alone, as an exception to everything, and followed by an exception to it.
        let other = format!("!{}", PATTERNS[(n * 7 + 3) % PATTERNS.len()]);
        let exception = format!("!{pattern}");
        for patterns in [vec![*pattern], vec!["*", &exception], vec![pattern, &other]] {
            let text = patterns.join("\n");
            let ignore = ignore(&text);
            for path in PATHS {
                assert_eq!(ignore.excludes(path), reference::excludes(&patterns, path), "{patterns:?} {path}");
                walk(&ignore, path);
                pairs += 1;
            }
        }
    }
    assert!(pairs > 2_440, "{pairs}");
}

/// A walk down to a path gives what a look at the whole path gives, and never prunes what is included.
fn walk(ignore: &Ignore, path: &str) {
    let mut directory = ignore.root();
    for (at, _) in path.match_indices('/') {
        let (excluded, entered) = ignore.enter(&directory, &path[..at]);
        assert_eq!(excluded, ignore.excludes(&path[..at]), "{path}");
        if excluded && !ignore.may_include_below(&path[..at]) {
            assert!(ignore.excludes(path), "{path} was pruned at {}", &path[..at]);
        }
        directory = entered;
    }
    assert_eq!(ignore.excludes_in(&directory, path), ignore.excludes(path), "{path}");
}
