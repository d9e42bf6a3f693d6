use super::*;

fn variables() -> Variables {
    [
        ("HOME", "/root"),
        ("empty", ""),
        ("file", "archive.tar.gz"),
        ("path", "usr/local/bin"),
        ("spaced", "a b"),
        ("stars", "a*b*c"),
        ("é", "accent"),
        ("lines", "a\nb"),
    ]
    .into_iter()
    .collect()
}

fn expand(text: &str) -> String {
    Lexer::new('\\').expand(text, &variables()).map_or_else(|error| format!("error: {error}"), |e| e.text)
}

#[track_caller]
fn check(cases: &[(&str, &str)]) {
    for (text, expected) in cases {
        assert_eq!(expand(text), *expected, "{text}");
    }
}

#[test]
fn plain_forms() {
    check(&[
        ("", ""),
        ("hello", "hello"),
        ("$HOME/x", "/root/x"),
        ("${HOME}x", "/rootx"),
        ("$HOMEx", ""),
        ("$unset-", "-"),
        ("$é.", "accent."),
        ("$", "$"),
        ("a$", "a$"),
        ("$ $%", "$ $%"),
        ("[$1x$12$@$#$?$!$$$-$*]", "[x]"),
        ("${1}", ""),
    ]);
}

#[test]
fn quotes_and_escapes() {
    check(&[
        ("'$HOME'", "$HOME"),
        ("\"$HOME\"", "/root"),
        ("\\$HOME", "$HOME"),
        ("\"\\$HOME \\\" \\\\ \\n\"", "$HOME \" \\ \\n"),
        ("a\\ b\\'c", "a b'c"),
        ("'a\\'b", "a\\b"),
        ("x'y'\"z\"", "xyz"),
        ("end\\", "end"),
        ("\"it's\"", "it's"),
        ("'unclosed", "error: a single quote is not closed"),
        ("\"unclosed", "error: a double quote is not closed"),
        ("\"unclosed\\", "error: a double quote is not closed"),
    ]);
}

#[test]
fn defaults_alternatives_and_requirements() {
    check(&[
        ("${unset:-d} ${empty:-d} ${HOME:-d}", "d d /root"),
        ("${unset-d} ${empty-d} ${HOME-d}", "d  /root"),
        ("${unset:+a}.${empty:+a}.${HOME:+a}", "..a"),
        ("${unset+a}.${empty+a}.${HOME+a}", ".a.a"),
        ("${unset:-${empty:-$HOME}}", "/root"),
        ("${unset:-\"q q\"'x'}", "q qx"),
        ("${unset:-a\\}b}", "a}b"),
        ("${HOME:?no} ${empty?no}", "/root "),
        ("${unset:?is needed}", "error: unset: is needed"),
        ("${empty:?}", "error: empty must be set and not empty"),
        ("${unset?}", "error: unset must be set"),
    ]);
}

#[test]
fn prefixes_suffixes_and_replacements() {
    check(&[
        ("${file%.*} ${file%%.*}", "archive.tar archive"),
        ("${file#*.} ${file##*.}", "tar.gz gz"),
        ("${path#usr/} ${path##*/} ${path%/*}", "local/bin bin usr/local"),
        ("${file#x} ${file%x} ${unset%x}", "archive.tar.gz archive.tar.gz "),
        ("${file%.??}", "archive.tar"),
        ("${stars#*\\*} ${stars%\\**}", "b*c a*b"),
        ("${file/ar/AR} ${file//ar/AR}", "ARchive.tar.gz ARchive.tAR.gz"),
        ("${file/a*r/X} ${file//./}", "X.gz archivetargz"),
        ("${path//\\//-}", "usr-local-bin"),
        ("${file/nothing/x}${unset/a/b}", "archive.tar.gz"),
        ("${file/${unset}archive/$HOME}", "/root.tar.gz"),
        ("${HOME//}/x}", "/root"),
        ("${lines#*b}", "a\nb"),
        ("${file%[a]}", "archive.tar.gz"),
        ("${file%\\a}", "error: the pattern \"\\\\a\" escapes a, which is not special (special are * ? \\ / and })"),
    ]);
    assert_eq!(expand("${stars//\\*/$1}"), "abc", "the replacement is text, not a template");
}

#[test]
fn an_empty_pattern_matches_between_characters() {
    let variables: Variables = [("v", "ab")].into_iter().collect();
    let expand = |text| Lexer::new('\\').expand(text, &variables).unwrap().text;
    assert_eq!(
        (expand("${v///-}"), expand("${v//*/-}"), expand("${v//a*/-}")),
        ("-a-b-".into(), "-".into(), "-".into())
    );
}

#[test]
fn malformed_expansions_are_refused() {
    check(&[
        ("${", "error: a ${ has no matching }"),
        ("${HOME", "error: a ${ has no matching }"),
        ("${HOME:", "error: a ${ has no matching }"),
        ("${HOME:-x", "error: a ${ has no matching }"),
        ("${HOME/a", "error: a ${v/pattern/replacement} has no second /"),
        ("${HOME/a/b", "error: a ${ has no matching }"),
        ("${}", "error: a ${ is not followed by a name"),
        ("${:-x}", "error: a ${ is not followed by a name"),
        ("${{x}}", "error: a ${ is not followed by a name"),
        ("${HOME:=x}", "error: the modifier := in ${HOME:=...} is not supported"),
        ("${HOME^^}", "error: the modifier ^ in ${HOME^...} is not supported"),
    ]);
}

#[test]
fn another_escape_character_leaves_the_backslash_alone() {
    let expand = |text| Lexer::new('`').expand(text, &variables()).unwrap().text;
    assert_eq!((expand(r"c:\$HOME"), expand("`$HOME \"`\"\"")), (r"c:\/root".to_owned(), "$HOME \"".to_owned()));
}

#[test]
fn words_split_at_white_space_outside_quotes_and_inside_variables() {
    let words = |text| Lexer::new('\\').split(text, &variables()).unwrap().words;
    assert_eq!(words("x $spaced '$spaced c' \"$spaced\" d\\ e $unset ''"), ["x", "a", "b", "$spaced c", "a b", "d e"]);
    assert_eq!(words("  "), [""; 0]);
}

#[test]
fn used_and_missing_variables_are_told_apart() {
    let expansion = Lexer::new('\\').expand("$HOME ${HOME:+x} ${empty-} $a ${b:-x} ${c#x}", &variables()).unwrap();
    assert_eq!(
        (expansion.used, expansion.missing),
        (vec!["HOME".into(), "empty".into()], vec!["a".into(), "c".into()])
    );
}

#[test]
fn the_body_of_a_heredoc_keeps_its_quotes_and_loses_its_backslashes() {
    let expand = |text| Lexer::of_heredocs().expand(text, &variables()).unwrap().text;
    assert_eq!(expand("it's \"$HOME\" \\$HOME a\\nb\n"), "it's \"/root\" $HOME anb\n");
}

#[test]
fn a_shown_text_keeps_quotes_and_unset_variables() {
    let shown = Lexer { quotes: Quotes::Keep, unset: Unset::Keep, ..Lexer::new('\\') };
    let expand = |text| shown.expand(text, &variables()).unwrap().text;
    assert_eq!(
        expand("RUN '$HOME' \"$HOME\" $x ${x} ${x:-1} ${x//a/b}"),
        "RUN '$HOME' \"/root\" $x ${x} ${x:-1} ${x//a/b}"
    );
}

#[test]
fn neither_doubling_nor_nesting_exhausts_memory() {
    let mut variables: Variables = [("a", "x".repeat(1 << 20))].into_iter().collect();
    let four = Lexer::new('\\').expand("$a$a$a$a", &variables).unwrap().text;
    variables.set("a", four);
    let grow = |text: &str| Lexer::new('\\').expand(text, &variables).unwrap_err().to_string();
    assert_eq!(grow("$a$a"), "the result is longer than 4 MiB");
    assert_eq!(grow("\"$a$a\""), "the result is longer than 4 MiB");
    assert_eq!(grow("${a//x/xx}"), "the result is longer than 4 MiB");
    let nested = format!("{}{}", "${u:-".repeat(100), "}".repeat(100));
    assert_eq!(grow(&nested), "${...} is nested more than 32 deep");
}
