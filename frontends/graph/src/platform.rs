//! Platforms (`os/arch[/variant]`): parsing, normalising and choosing among an index's manifests.
//!
//! The rules are those of containerd's `platforms` package, which docker and BuildKit use.

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Where an image runs. Fields are normalised by [`Platform::normalized`]; empty means "not given".
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Platform {
    /// The CPU architecture in Go's spelling, for example `amd64`.
    #[serde(default)]
    pub architecture: String,
    /// The operating system in Go's spelling, for example `linux`.
    #[serde(default)]
    pub os: String,
    /// The operating system's version; used by Windows images.
    #[serde(default, rename = "os.version", skip_serializing_if = "String::is_empty")]
    pub os_version: String,
    /// Required features of the operating system; used by Windows images.
    #[serde(default, rename = "os.features", skip_serializing_if = "Vec::is_empty")]
    pub os_features: Vec<String>,
    /// The CPU variant, for example `v7` of `arm`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub variant: String,
}

impl Platform {
    /// Makes a normalised platform.
    #[must_use]
    pub fn new(os: &str, architecture: &str, variant: &str) -> Self {
        Self {
            os: os.to_owned(),
            architecture: architecture.to_owned(),
            variant: variant.to_owned(),
            os_version: String::new(),
            os_features: Vec::new(),
        }
        .normalized()
    }

    /// Returns the platform this program was compiled for.
    #[must_use]
    pub fn host() -> Self {
        Self::new(std::env::consts::OS, std::env::consts::ARCH, "")
    }

    /// Returns the same platform in canonical spelling: `x86_64` becomes `amd64`, `aarch64` becomes `arm64`, `arm` without
    /// a variant becomes `arm/v7`, and the default variants `amd64/v1` and `arm64/v8` are dropped.
    #[must_use]
    pub fn normalized(mut self) -> Self {
        self.os = match self.os.to_lowercase().as_str() {
            "macos" => "darwin".to_owned(),
            other => other.to_owned(),
        };
        let variant = self.variant.to_lowercase();
        let (architecture, variant) = match (self.architecture.to_lowercase().as_str(), variant.as_str()) {
            ("i386" | "i486" | "i586" | "i686" | "x86", _) => ("386".to_owned(), String::new()),
            ("x86_64" | "x86-64" | "amd64", "" | "v1") => ("amd64".to_owned(), String::new()),
            ("x86_64" | "x86-64" | "amd64", v) => ("amd64".to_owned(), v.to_owned()),
            ("aarch64" | "arm64", "" | "8" | "v8") => ("arm64".to_owned(), String::new()),
            ("aarch64" | "arm64", v) => ("arm64".to_owned(), v.to_owned()),
            ("armhf", _) | ("arm", "" | "7" | "v7") => ("arm".to_owned(), "v7".to_owned()),
            ("armel", _) | ("arm", "6" | "v6") => ("arm".to_owned(), "v6".to_owned()),
            ("arm", "5") => ("arm".to_owned(), "v5".to_owned()),
            ("arm", "8") => ("arm".to_owned(), "v8".to_owned()),
            ("powerpc64le", v) => ("ppc64le".to_owned(), v.to_owned()),
            (other, v) => (other.to_owned(), v.to_owned()),
        };
        self.architecture = architecture;
        self.variant = variant;
        self
    }

    /// Ranks how well an image for `candidate` runs here: lower is better, `None` means not at all.
    ///
    /// An exact match ranks 0. A newer CPU runs older variants (`arm/v7` runs `arm/v6` and `v5`, `amd64/v3` runs `v2` and
    /// `v1`), each step ranking one worse; `arm64` runs 32-bit `arm` images last.
    #[must_use]
    pub fn rank(&self, candidate: &Self) -> Option<u32> {
        let (host, candidate) = (self.clone().normalized(), candidate.clone().normalized());
        if host.os != candidate.os || (!host.os_version.is_empty() && host.os_version != candidate.os_version) {
            return None;
        }
        let (have, want) = (host.level(), candidate.level());
        match (host.architecture == candidate.architecture, have.cmp(&want)) {
            (true, Ordering::Equal) => (have != 0 || host.variant == candidate.variant).then_some(0),
            (true, Ordering::Greater) if want != 0 => Some(have - want),
            (false, _) if host.architecture == "arm64" && candidate.architecture == "arm" && want <= 8 => {
                Some(100 + 8 - want)
            }
            _ => None,
        }
    }

    /// The variant as a number that grows with the CPU; 0 when the variant is not of that kind.
    fn level(&self) -> u32 {
        let number = |default: u32| match self.variant.strip_prefix('v') {
            Some(digits) => digits.parse().unwrap_or(0),
            None if self.variant.is_empty() => default,
            None => 0,
        };
        match self.architecture.as_str() {
            "amd64" => number(1),
            "arm" => number(7),
            "arm64" => number(8),
            _ => 0,
        }
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        if !self.variant.is_empty() {
            write!(f, "/{}", self.variant)?;
        }
        Ok(())
    }
}

/// The text was not a platform; the message says what is wrong with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvalidPlatform(String);

impl fmt::Display for InvalidPlatform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for InvalidPlatform {}

const KNOWN_OS: &[&str] = &[
    "aix",
    "android",
    "darwin",
    "dragonfly",
    "freebsd",
    "illumos",
    "ios",
    "js",
    "linux",
    "netbsd",
    "openbsd",
    "plan9",
    "solaris",
    "wasip1",
    "windows",
];

impl FromStr for Platform {
    type Err = InvalidPlatform;

    /// Parses `os/arch[/variant]`, or one component alone: a known operating system (for the host's architecture) or an
    /// architecture (for Linux). `local` is the host.
    fn from_str(text: &str) -> Result<Self, InvalidPlatform> {
        let host = Self::host();
        if text == "local" {
            return Ok(host);
        }
        let invalid = |why: &str| InvalidPlatform(format!("invalid platform {text:?}: {why}"));
        let parts: Vec<&str> = text.split('/').collect();
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
        if parts.iter().any(|part| part.is_empty() || !part.chars().all(allowed)) {
            return Err(invalid("expected os/arch or os/arch/variant, such as linux/amd64 or linux/arm/v7"));
        }
        match parts.as_slice() {
            [os] if KNOWN_OS.contains(&os.to_lowercase().as_str()) => {
                Ok(Self::new(os, &host.architecture, &host.variant))
            }
            [arch] => {
                let platform = Self::new("linux", arch, "");
                let known = ["386", "amd64", "arm", "arm64", "loong64", "mips64le", "ppc64le", "riscv64", "s390x"];
                if known.contains(&platform.architecture.as_str()) {
                    Ok(platform)
                } else {
                    Err(invalid("unknown operating system or architecture"))
                }
            }
            [os, arch] => Ok(Self::new(os, arch, "")),
            [os, arch, variant] => Ok(Self::new(os, arch, variant)),
            _ => Err(invalid("expected at most os/arch/variant")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Platform {
        text.parse().unwrap()
    }

    #[test]
    fn spellings_of_one_platform_are_equal() {
        for (text, canonical) in [
            ("linux/x86_64", "linux/amd64"),
            ("linux/amd64/v1", "linux/amd64"),
            ("linux/aarch64", "linux/arm64"),
            ("linux/arm64/v8", "linux/arm64"),
            ("linux/arm", "linux/arm/v7"),
            ("linux/armel", "linux/arm/v6"),
            ("arm64", "linux/arm64"),
            ("LINUX/AMD64", "linux/amd64"),
        ] {
            assert_eq!(parse(text).to_string(), canonical);
        }
    }

    #[test]
    fn a_host_prefers_its_own_variant_and_accepts_older_ones() {
        let host = parse("linux/arm/v7");
        assert_eq!(host.rank(&parse("linux/arm/v7")), Some(0));
        assert_eq!(host.rank(&parse("linux/arm/v6")), Some(1));
        assert_eq!(host.rank(&parse("linux/arm64")), None);
        assert_eq!(parse("linux/amd64").rank(&parse("linux/amd64/v3")), None);
        assert_eq!(parse("linux/amd64/v3").rank(&parse("linux/amd64")), Some(2));
        assert_eq!(parse("linux/arm64").rank(&parse("linux/arm/v7")), Some(101));
        assert_eq!(parse("linux/riscv64").rank(&parse("linux/riscv64")), Some(0));
        assert_eq!(parse("linux/amd64").rank(&parse("windows/amd64")), None);
    }

    #[test]
    fn nonsense_is_refused() {
        for text in ["", "linux/", "a/b/c/d", "lin ux/amd64", "sparc99"] {
            assert!(text.parse::<Platform>().is_err(), "{text}");
        }
    }
}
