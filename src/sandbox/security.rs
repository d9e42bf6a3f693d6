//! `--security-opt`: what each option asks for, in the forms that Docker's clients send.
//!
//! Profiles come as their JSON text: the client has read the file.

use std::sync::Arc;

use super::seccomp::Profile;
use super::spec::{Seccomp, Spec};
use crate::error::{Error, Result};

/// What `--security-opt` changes.
#[derive(Clone, Debug, Default)]
pub struct SecurityOptions {
    /// The system calls; `None` leaves the default profile.
    pub seccomp: Option<Seccomp>,
    /// Whether executing a file can never give privileges.
    pub no_new_privileges: Option<bool>,
    /// Whether nothing is hidden or read-only.
    pub systempaths_unconfined: bool,
    /// The `AppArmor` profile; `None` leaves the host's default, `unconfined` is a profile, too.
    pub apparmor: Option<String>,
}

impl SecurityOptions {
    /// Reads a list of options.
    ///
    /// # Errors
    /// `InvalidArgument` for an unknown option or a malformed profile; `Unsupported` for `SELinux` labels on a host that enforces
    /// them (elsewhere they are ignored, as Docker does).
    pub fn parse(options: &[String]) -> Result<Self> {
        let mut parsed = Self::default();
        for option in options {
            // Old clients separate by a colon.
            let (name, value) = option.split_once('=').or_else(|| option.split_once(':')).unwrap_or((option, ""));
            match (name, value) {
                ("no-new-privileges", "" | "true") => parsed.no_new_privileges = Some(true),
                ("no-new-privileges", "false") => parsed.no_new_privileges = Some(false),
                ("systempaths", "unconfined") => parsed.systempaths_unconfined = true,
                ("seccomp", "unconfined") => parsed.seccomp = Some(Seccomp::Unconfined),
                ("seccomp", "builtin") => parsed.seccomp = Some(Seccomp::Profile(Profile::builtin())),
                ("seccomp", text) if !text.is_empty() => {
                    parsed.seccomp = Some(Seccomp::Profile(Arc::new(Profile::from_json(text)?)));
                }
                ("apparmor", profile) if !profile.is_empty() => parsed.apparmor = Some(profile.to_owned()),
                ("label", _) if selinux_enforces() => {
                    return Err(Error::unsupported(format!(
                        "security option {option:?}: SELinux labels are not supported"
                    )));
                }
                ("label", _) => {}
                _ => return Err(Error::invalid(format!("invalid --security-opt: {option:?}"))),
            }
        }
        Ok(parsed)
    }

    /// Applies the options to a spec.
    pub fn apply(self, spec: &mut Spec) {
        if let Some(seccomp) = self.seccomp {
            spec.process.seccomp = seccomp;
        }
        if let Some(no_new_privileges) = self.no_new_privileges {
            spec.process.no_new_privileges = no_new_privileges;
        }
        if self.systempaths_unconfined {
            spec.masked_paths.clear();
            spec.readonly_paths.clear();
        }
        if self.apparmor.is_some() {
            spec.process.apparmor = self.apparmor;
        }
    }
}

fn selinux_enforces() -> bool {
    std::fs::read_to_string("/sys/fs/selinux/enforce").is_ok_and(|text| text.trim() == "1")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(options: &[&str]) -> Result<SecurityOptions> {
        SecurityOptions::parse(&options.iter().map(ToString::to_string).collect::<Vec<_>>())
    }

    #[test]
    fn options_are_read_in_both_spellings() {
        let parsed =
            parse(&["no-new-privileges", "seccomp:unconfined", "systempaths=unconfined", "label=disable"]).unwrap();
        assert_eq!(parsed.no_new_privileges, Some(true));
        assert!(matches!(parsed.seccomp, Some(Seccomp::Unconfined)));
        assert!(parsed.systempaths_unconfined);
        let profile = parse(&[r#"seccomp={"defaultAction":"SCMP_ACT_ALLOW"}"#]).unwrap();
        assert!(matches!(profile.seccomp, Some(Seccomp::Profile(_))));
        assert_eq!(parse(&["apparmor=docker-default"]).unwrap().apparmor.as_deref(), Some("docker-default"));
    }

    #[test]
    fn an_unknown_security_option_is_refused() {
        for option in ["frobnicate", "systempaths=x", "seccomp=", "seccomp=/no/json", "no-new-privileges=maybe"] {
            assert!(parse(&[option]).is_err(), "{option}");
        }
    }
}
