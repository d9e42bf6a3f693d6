//! Which operating system a root file system is: `os-release(5)`.

/// An operating system.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Os {
    /// `debian`, `alpine`, `fedora`, ...
    pub id: String,
    /// `12`, `3.20.1`; empty for rolling ones.
    pub version: String,
    /// The name for people.
    pub name: String,
}

impl Os {
    /// Reads `os-release`; `None` when it does not say which system it is.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut os = Self::default();
        for line in text.lines() {
            let Some((key, value)) = line.trim().split_once('=') else { continue };
            let value = value.trim().trim_matches(['"', '\'']);
            match key.trim() {
                "ID" => os.id = value.to_lowercase(),
                "VERSION_ID" => value.clone_into(&mut os.version),
                "PRETTY_NAME" => value.clone_into(&mut os.name),
                _ => {}
            }
        }
        (!os.id.is_empty()).then_some(os)
    }

    /// Returns the value of the qualifier `distro` of package URLs.
    pub(super) fn distro(&self) -> String {
        if self.version.is_empty() { self.id.clone() } else { format!("{}-{}", self.id, self.version) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_system_says_what_it_is() {
        let os = Os::parse("PRETTY_NAME=\"Debian GNU/Linux 12\"\nID=debian\nVERSION_ID=\"12\"\n").unwrap();
        assert_eq!((os.distro(), os.name), ("debian-12".to_owned(), "Debian GNU/Linux 12".to_owned()));
        assert_eq!(Os::parse("ID=arch\nVERSION=\n").unwrap().distro(), "arch");
        assert_eq!(Os::parse("NAME=x"), None);
    }
}
