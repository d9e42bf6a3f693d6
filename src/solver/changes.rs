//! Settings of an image written as Dockerfile instructions, as `import --change` takes them.

use std::collections::HashMap;

use kiln_dockerfile::{Outcome, Refused, Request, lower};
use kiln_graph::SourceFile;
use kiln_graph::oci::ContainerConfig;

use crate::error::{Error, Result};

/// Instructions that set something and do nothing.
const ALLOWED: &[&str] = &[
    "CMD",
    "ENTRYPOINT",
    "ENV",
    "EXPOSE",
    "HEALTHCHECK",
    "LABEL",
    "ONBUILD",
    "STOPSIGNAL",
    "USER",
    "VOLUME",
    "WORKDIR",
];

/// Returns the container defaults that instructions describe, each a line.
///
/// # Errors
/// `InvalidArgument` for an instruction that does something, and for one that makes no sense.
pub fn container_config(changes: &[&str]) -> Result<ContainerConfig> {
    for change in changes {
        let word = change.split_whitespace().next().unwrap_or_default().to_uppercase();
        if !ALLOWED.contains(&word.as_str()) {
            return Err(Error::invalid(format!("{word} is not a valid change command")));
        }
        if change.contains('\n') {
            return Err(Error::invalid(format!("a change is one line: {change:?}")));
        }
    }
    let file = SourceFile::new("changes", &format!("FROM scratch\n{}\n", changes.join("\n")));
    let invalid = |refused: Refused| {
        let first = refused.errors.first().map_or_else(String::new, |diagnostic| diagnostic.message.clone());
        Error::invalid(format!("invalid change: {first}"))
    };
    match lower(&Request::new(&file), &HashMap::new()).map_err(invalid)? {
        Outcome::Done(lowered) => Ok(lowered.config.config),
        Outcome::Need(_) => Err(Error::invalid("a change cannot refer to an image")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_taken_and_work_is_refused() {
        let changes = ["CMD [\"/bin/sh\", \"-l\"]", "env A=1 B=\"two words\"", "LABEL x=y", "EXPOSE 80"];
        let config = container_config(&changes).unwrap();
        assert_eq!(config.cmd, ["/bin/sh", "-l"]);
        assert!(config.env.contains(&"B=two words".to_owned()));
        assert!(config.exposed_ports.contains_key("80/tcp") && config.labels["x"] == "y");
        let refused = container_config(&["RUN make"]).unwrap_err();
        assert_eq!(refused.to_string(), "RUN is not a valid change command");
        assert!(container_config(&["ENV"]).unwrap_err().to_string().starts_with("invalid change: "));
    }
}
