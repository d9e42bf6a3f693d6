//! `--attest`, `--provenance` and `--sbom`: which attestations a build is asked for.
//!
//! Without these options none are made, whatever `BUILDX_NO_DEFAULT_ATTESTATIONS` says: an attestation makes an index of an
//! image, and not everybody who pulls it understands that.

use std::collections::HashMap;

use super::options::BuildArgs;
use crate::cli::value;
use crate::error::{Error, Result, ResultExt as _};

const TYPES: [&str; 2] = ["provenance", "sbom"];

/// Returns the request's attributes, `attest:TYPE`.
///
/// # Errors
/// `InvalidArgument` naming the option, for other types and for a type that is asked for twice.
pub(super) fn attributes(args: &BuildArgs) -> Result<HashMap<String, String>> {
    let mut attrs = HashMap::new();
    for text in &args.attestations {
        let (kind, fields) = attestation(text).context(|| format!("--attest {text}"))?;
        if attrs.insert(format!("attest:{kind}"), fields).is_some() {
            return Err(Error::invalid(format!("--attest {text}: {kind} is asked for twice")));
        }
    }
    // The short forms win, as with buildx.
    for (kind, value) in [("provenance", &args.provenance), ("sbom", &args.sbom)] {
        let Some(value) = value else { continue };
        let fields = match value.as_str() {
            "true" | "1" => String::new(),
            "false" | "0" => "disabled=true".to_owned(),
            fields => attestation(&format!("type={kind},{fields}")).context(|| format!("--{kind}={value}"))?.1,
        };
        attrs.insert(format!("attest:{kind}"), fields);
    }
    Ok(attrs)
}

/// Splits off the type of an attestation.
fn attestation(text: &str) -> Result<(String, String)> {
    let (mut kind, mut fields) = (None, Vec::new());
    for (key, value) in value::csv(text)? {
        let value = value.ok_or_else(|| Error::invalid(format!("expected KEY=VALUE, not {key}")))?;
        if key == "type" {
            kind = Some(value);
        } else if value.contains([',', '"']) {
            fields.push(format!("\"{key}={value}\""));
        } else {
            fields.push(format!("{key}={value}"));
        }
    }
    let kind = kind.ok_or_else(|| Error::invalid("the type is missing: type=provenance or type=sbom"))?;
    if !TYPES.contains(&kind.as_str()) {
        return Err(Error::invalid(format!("no such type: {kind} (there are provenance and sbom)")));
    }
    Ok((kind, fields.join(",")))
}

/// Returns how much provenance the metadata file holds, by `BUILDX_METADATA_PROVENANCE`; without it, the least.
///
/// # Errors
/// `InvalidArgument` for other values.
pub(super) fn recorded(variable: Option<&str>) -> Result<Option<&'static str>> {
    match variable {
        None | Some("min" | "true" | "1") => Ok(Some("min")),
        Some("max") => Ok(Some("max")),
        Some("disabled" | "false" | "0") => Ok(None),
        Some(other) => {
            Err(Error::invalid(format!("BUILDX_METADATA_PROVENANCE={other}: expected min, max or disabled")))
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Command {
        #[command(flatten)]
        args: BuildArgs,
    }

    fn attrs(args: &[&str]) -> Result<Vec<(String, String)>> {
        let all = ["build"].iter().chain(args).chain(&["."]);
        let args = Command::try_parse_from(all).map_err(|error| Error::invalid(error.to_string()))?.args;
        let mut attrs: Vec<_> = attributes(&args)?.into_iter().collect();
        attrs.sort();
        Ok(attrs)
    }

    #[test]
    fn options_become_attributes_and_short_forms_win() {
        let pair = |key: &str, value: &str| (format!("attest:{key}"), value.to_owned());
        assert_eq!(attrs(&[]).unwrap(), []);
        assert_eq!(attrs(&["--provenance", "--sbom"]).unwrap(), [pair("provenance", ""), pair("sbom", "")]);
        assert_eq!(attrs(&["--provenance=false"]).unwrap(), [pair("provenance", "disabled=true")]);
        assert_eq!(
            attrs(&["--attest", "type=sbom,generator=a/b", "--provenance=mode=max,version=v0.2"]).unwrap(),
            [pair("provenance", "mode=max,version=v0.2"), pair("sbom", "generator=a/b")]
        );
        assert_eq!(
            attrs(&["--attest=type=provenance,mode=min", "--provenance=mode=max"]).unwrap(),
            [pair("provenance", "mode=max")]
        );
    }

    #[test]
    fn mistakes_are_named() {
        for (args, word) in [
            (&["--attest=mode=max"][..], "type is missing"),
            (&["--attest=type=vex"], "vex"),
            (&["--attest=type=sbom", "--attest=type=sbom"], "twice"),
            (&["--provenance=max"], "expected KEY=VALUE"),
        ] {
            assert!(attrs(args).unwrap_err().to_string().contains(word), "{args:?}");
        }
        assert!(recorded(Some("all")).is_err());
        assert_eq!(recorded(None).unwrap(), Some("min"));
    }
}
