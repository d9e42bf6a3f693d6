//! Which frontends builds may use, as the daemon's configuration says.

use kiln_graph::Reference;

use crate::error::{Error, Result};

/// The frontend that is built in.
pub(super) const FRONTEND: &str = "dockerfile.v0";

/// The frontend that runs others, by their images.
pub(super) const GATEWAY: &str = "gateway.v0";

/// What limits the use of frontends; nothing by default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Frontends {
    /// Those that are switched off: `dockerfile.v0`, `gateway.v0`.
    pub off: Vec<String>,
    /// The repositories of images that may run as frontends, with their domains; empty for all.
    pub repositories: Vec<String>,
}

impl Frontends {
    /// Refuses a frontend that is switched off.
    ///
    /// # Errors
    /// `Forbidden`, naming the key of the configuration.
    pub(super) fn permit(&self, name: &str) -> Result<()> {
        if self.off.iter().any(|off| off == name) {
            return Err(Error::forbidden(format!(
                "invalid frontend: {name}: it is switched off by the configuration of the build daemon \
                 ([frontend.\"{name}\"] enabled = false)"
            )));
        }
        Ok(())
    }

    /// Refuses an image that may not run as a frontend.
    ///
    /// # Errors
    /// `Forbidden`, in BuildKit's words.
    pub(super) fn permit_image(&self, image: &Reference) -> Result<()> {
        self.permit(GATEWAY)?;
        let repository = image.repository();
        if self.repositories.is_empty() || self.repositories.contains(&repository) {
            return Ok(());
        }
        Err(Error::forbidden(format!(
            "'{image}' is not an allowed gateway source: the configuration of the build daemon allows {} \
             ([frontend.\"{GATEWAY}\"] allowedRepositories)",
            self.repositories.join(", ")
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_allowed_by_repository_and_frontends_by_name() {
        let image = |text: &str| text.parse::<Reference>().unwrap();
        let all = Frontends::default();
        assert!(all.permit(FRONTEND).is_ok() && all.permit_image(&image("a/b:1")).is_ok());
        let some = Frontends { repositories: vec!["docker.io/docker/dockerfile".to_owned()], ..all.clone() };
        assert!(some.permit_image(&image("docker/dockerfile:1.7")).is_ok());
        for other in ["docker/dockerfile-upstream", "example.com/docker/dockerfile:1"] {
            let refused = some.permit_image(&image(other)).unwrap_err().to_string();
            assert!(refused.contains("is not an allowed gateway source"), "{refused}");
        }
        let off = Frontends { off: vec![GATEWAY.to_owned()], ..all };
        assert!(off.permit(FRONTEND).is_ok() && off.permit_image(&image("docker/dockerfile")).is_err());
    }
}
