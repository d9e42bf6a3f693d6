//! Licence names as they stand in packages, brought to SPDX licence expressions where that is certain.
//!
//! Only what is made of known identifiers becomes an expression. Everything else stays text: a document must not claim an
//! identifier that does not exist.

/// Identifiers of the SPDX licence list that packages commonly carry.
const KNOWN: &[&str] = &[
    "0BSD",
    "AFL-2.1",
    "AFL-3.0",
    "AGPL-3.0-only",
    "AGPL-3.0-or-later",
    "Apache-1.1",
    "Apache-2.0",
    "Artistic-1.0",
    "Artistic-1.0-Perl",
    "Artistic-2.0",
    "BlueOak-1.0.0",
    "BSD-1-Clause",
    "BSD-2-Clause",
    "BSD-2-Clause-Patent",
    "BSD-3-Clause",
    "BSD-3-Clause-Clear",
    "BSD-4-Clause",
    "BSD-4-Clause-UC",
    "BSL-1.0",
    "Bitstream-Vera",
    "bzip2-1.0.6",
    "CC-BY-3.0",
    "CC-BY-4.0",
    "CC-BY-SA-3.0",
    "CC-BY-SA-4.0",
    "CC0-1.0",
    "CDDL-1.0",
    "CDDL-1.1",
    "CDLA-Permissive-2.0",
    "CPL-1.0",
    "curl",
    "ECL-2.0",
    "EPL-1.0",
    "EPL-2.0",
    "EUPL-1.1",
    "EUPL-1.2",
    "FSFAP",
    "FSFUL",
    "FSFULLR",
    "FTL",
    "GFDL-1.1-or-later",
    "GFDL-1.2-only",
    "GFDL-1.2-or-later",
    "GFDL-1.3-only",
    "GFDL-1.3-or-later",
    "GPL-1.0-only",
    "GPL-1.0-or-later",
    "GPL-2.0-only",
    "GPL-2.0-or-later",
    "GPL-3.0-only",
    "GPL-3.0-or-later",
    "HPND",
    "HPND-sell-variant",
    "ICU",
    "IJG",
    "ISC",
    "LGPL-2.0-only",
    "LGPL-2.0-or-later",
    "LGPL-2.1-only",
    "LGPL-2.1-or-later",
    "LGPL-3.0-only",
    "LGPL-3.0-or-later",
    "Libpng",
    "libtiff",
    "LPPL-1.3c",
    "MirOS",
    "MIT",
    "MIT-0",
    "MIT-CMU",
    "MPL-1.1",
    "MPL-2.0",
    "MS-PL",
    "NCSA",
    "NTP",
    "OFL-1.1",
    "OLDAP-2.8",
    "OpenSSL",
    "PHP-3.0",
    "PHP-3.01",
    "PostgreSQL",
    "PSF-2.0",
    "Python-2.0",
    "Ruby",
    "SISSL",
    "Sleepycat",
    "SMLNJ",
    "TCL",
    "UFL-1.0",
    "Unicode-3.0",
    "Unicode-DFS-2016",
    "Unlicense",
    "UPL-1.0",
    "Vim",
    "W3C",
    "WTFPL",
    "X11",
    "Xnet",
    "XFree86-1.1",
    "Zlib",
    "zlib-acknowledgement",
    "ZPL-2.1",
];

/// Exceptions of the SPDX list.
const EXCEPTIONS: &[&str] = &[
    "Autoconf-exception-2.0",
    "Autoconf-exception-3.0",
    "Bison-exception-2.2",
    "Classpath-exception-2.0",
    "Font-exception-2.0",
    "GCC-exception-2.0",
    "GCC-exception-3.1",
    "Libtool-exception",
    "LLVM-exception",
    "OpenJDK-assembly-exception-1.0",
    "openvpn-openssl-exception",
    "u-boot-exception-2.0",
];

/// Other spellings: Debian's short names, deprecated identifiers, and what metadata of language packages says.
const SPELLINGS: &[(&str, &str)] = &[
    ("expat", "MIT"),
    ("mit license", "MIT"),
    ("the mit license", "MIT"),
    ("mit/x11", "MIT"),
    ("apache 2.0", "Apache-2.0"),
    ("apache 2", "Apache-2.0"),
    ("apache-2", "Apache-2.0"),
    ("apache license 2.0", "Apache-2.0"),
    ("apache license, version 2.0", "Apache-2.0"),
    ("apache software license", "Apache-2.0"),
    ("the apache software license, version 2.0", "Apache-2.0"),
    ("the apache license, version 2.0", "Apache-2.0"),
    ("asl 2.0", "Apache-2.0"),
    ("bsd-3-clauses", "BSD-3-Clause"),
    ("bsd 3-clause license", "BSD-3-Clause"),
    ("3-clause bsd license", "BSD-3-Clause"),
    ("bsd-2-clauses", "BSD-2-Clause"),
    ("isc license", "ISC"),
    ("psf", "PSF-2.0"),
    ("psfl", "PSF-2.0"),
    ("mozilla public license 2.0 (mpl 2.0)", "MPL-2.0"),
    ("mplv2.0", "MPL-2.0"),
    ("the unlicense", "Unlicense"),
    ("cc0", "CC0-1.0"),
    ("artistic", "Artistic-1.0-Perl"),
    ("perl", "Artistic-1.0-Perl OR GPL-1.0-or-later"),
];

/// Returns an SPDX licence expression for what metadata says, when every part of it is known.
pub(super) fn expression(text: &str) -> Option<String> {
    let text = text.trim();
    if text.is_empty() || text.len() > 1000 {
        return None;
    }
    if let Some(known) = identifier(text) {
        return Some(known);
    }
    let spaced = text.replace('(', " ( ").replace(')', " ) ").replace(',', " AND ");
    // `A/B` was a way to write alternatives; a few names have a slash themselves.
    let alternatives = |word: &str| match identifier(word) {
        None if word.contains('/') => format!("( {} )", word.replace('/', " OR ")),
        _ => word.to_owned(),
    };
    let spaced = spaced.split_whitespace().map(alternatives).collect::<Vec<_>>().join(" ");
    let mut parts = Vec::new();
    // Whether an identifier comes next, and how many parentheses are open.
    let (mut operand, mut open) = (true, 0_usize);
    let mut words = spaced.split_whitespace();
    while let Some(word) = words.next() {
        match word {
            "(" if operand => {
                open += 1;
                parts.push("(".to_owned());
            }
            ")" if !operand && open > 0 => {
                open -= 1;
                parts.push(")".to_owned());
            }
            _ if operand => {
                let known = identifier(word)?;
                parts.push(if known.contains(' ') { format!("({known})") } else { known });
                operand = false;
            }
            _ if matches!(word.to_ascii_lowercase().as_str(), "and" | "or") => {
                // Debian writes a list as `A, B and C`.
                if parts.last().is_some_and(|last| last == "AND") {
                    continue;
                }
                parts.push(word.to_ascii_uppercase());
                operand = true;
            }
            _ if word.eq_ignore_ascii_case("with") => {
                parts.push("WITH".to_owned());
                parts.push(listed(EXCEPTIONS, words.next()?)?.to_owned());
            }
            _ => return None,
        }
    }
    if operand || open > 0 {
        return None;
    }
    Some(parts.join(" ").replace("( ", "(").replace(" )", ")"))
}

fn listed<'a>(list: &[&'a str], word: &str) -> Option<&'a str> {
    list.iter().find(|known| known.eq_ignore_ascii_case(word)).copied()
}

/// Returns the identifier that a single name stands for.
fn identifier(name: &str) -> Option<String> {
    if let Some(known) = listed(KNOWN, name) {
        return Some(known.to_owned());
    }
    let lower = name.to_ascii_lowercase();
    if let Some((_, known)) = SPELLINGS.iter().find(|(spelling, _)| *spelling == lower) {
        return Some((*known).to_owned());
    }
    gnu(&lower)
}

/// `gpl-2`, `gplv2+`, `lgpl-2.1+`, `gpl-3.0`, `gfdl-1.3`: the GNU licences in other spellings.
fn gnu(lower: &str) -> Option<String> {
    let family = ["agpl", "lgpl", "gfdl", "gpl"].into_iter().find(|family| lower.starts_with(family))?;
    let rest = lower[family.len()..].trim_start_matches(['-', 'v', ' ']);
    let (version, later) = match rest.strip_suffix('+') {
        Some(version) => (version, true),
        None => (rest, false),
    };
    let version = if version.contains('.') { version.to_owned() } else { format!("{version}.0") };
    let ending = if later { "or-later" } else { "only" };
    let name = format!("{}-{version}-{ending}", family.to_ascii_uppercase());
    listed(KNOWN, &name).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spellings_of_packages_become_expressions() {
        for (text, expected) in [
            ("MIT", "MIT"),
            ("mit", "MIT"),
            ("MIT OR Apache-2.0", "MIT OR Apache-2.0"),
            ("MIT/Apache-2.0", "(MIT OR Apache-2.0)"),
            ("MIT/X11 AND ISC/Zlib", "MIT AND (ISC OR Zlib)"),
            ("(MIT OR Apache-2.0) AND Unicode-3.0", "(MIT OR Apache-2.0) AND Unicode-3.0"),
            ("GPL-2+", "GPL-2.0-or-later"),
            ("GPLv2+ and LGPLv2", "GPL-2.0-or-later AND LGPL-2.0-only"),
            ("LGPL-2.1", "LGPL-2.1-only"),
            ("Apache-2.0 WITH LLVM-exception", "Apache-2.0 WITH LLVM-exception"),
            ("Apache License, Version 2.0", "Apache-2.0"),
            ("BSD-3-clause, Expat and ISC", "BSD-3-Clause AND MIT AND ISC"),
        ] {
            assert_eq!(expression(text).as_deref(), Some(expected), "{text}");
        }
    }

    #[test]
    fn what_is_not_certain_stays_text() {
        for text in ["", "BSD", "see COPYING", "MIT OR", "(MIT", "MIT)", "GPL-2 with exceptions", "UNKNOWN", "MIT MIT"]
        {
            assert_eq!(expression(text), None, "{text}");
        }
    }
}
