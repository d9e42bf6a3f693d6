//! Attestations: what is said about a result beside it, where it is from (`provenance`) and what is in it (`sbom`).
//!
//! None is made unless it is asked for: an attestation turns the image of one platform into an index, which not everybody who
//! pulls it understands. Exporters store what is made here.

mod definition;
mod provenance;
mod returned;
mod sbom;
mod slsa;

use std::collections::BTreeMap;
use std::sync::Arc;

pub(super) use self::provenance::Facts;
pub use self::provenance::Mode;
pub(super) use self::returned::Budget;
pub use self::returned::{Returned, Shape};
pub(super) use self::sbom::Survey;

use self::provenance::Provenance;
use self::sbom::Sbom;
use super::export::Attestation;
use super::frontend::Target;
use super::job::Job;
use crate::error::{Error, Result};

/// Which attestations a request asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Attest {
    pub(super) provenance: Option<Provenance>,
    pub(super) sbom: Option<Sbom>,
}

/// The prefix of build arguments that ask for attestations.
pub(super) const ARGUMENT: &str = "BUILDKIT_ATTEST_";

impl Attest {
    /// Reads `attest:KIND`, or a build argument that begins with [`ARGUMENT`].
    ///
    /// # Errors
    /// `Unsupported`, by name, for other kinds and fields; `InvalidArgument` for malformed values.
    pub(super) fn set(&mut self, kind: &str, value: &str) -> Result<()> {
        let fields = fields(value)?;
        let disabled = fields.get("disabled").is_some_and(|disabled| disabled == "true");
        match kind {
            "provenance" => self.provenance = (!disabled).then(|| Provenance::parse(&fields)).transpose()?,
            "sbom" => self.sbom = (!disabled).then(|| Sbom::parse(&fields)).transpose()?,
            other => {
                let known = "there are provenance and sbom";
                return Err(Error::unsupported(format!("attestations of type {other:?} are not supported: {known}")));
            }
        }
        Ok(())
    }

    /// Says whether the attributes of a request want to know what the machine does meanwhile. What is wrong with them is told by who
    /// reads them all.
    pub(super) fn captures_usage(attrs: &BTreeMap<String, String>) -> bool {
        let mut attest = Self::default();
        for (key, value) in attrs {
            let argument = || key.strip_prefix("build-arg:")?.strip_prefix(ARGUMENT);
            if let Some(kind) = key.strip_prefix("attest:").or_else(argument) {
                let _ = attest.set(&kind.to_lowercase(), value);
            }
        }
        attest.provenance.is_some_and(|provenance| provenance.capture_usage)
    }
}

/// Splits `key=value,..`; a field in double quotes may hold commas.
fn fields(value: &str) -> Result<BTreeMap<String, String>> {
    let mut fields = BTreeMap::new();
    let (mut field, mut quoted) = (String::new(), false);
    let mut add = |field: &mut String| {
        let field = std::mem::take(field);
        if !field.is_empty() {
            let (key, value) = field.split_once('=').unwrap_or((&field, ""));
            fields.insert(key.trim().to_lowercase(), value.to_owned());
        }
    };
    for c in value.chars() {
        match c {
            '"' => quoted = !quoted,
            ',' if !quoted => add(&mut field),
            _ => field.push(c),
        }
    }
    add(&mut field);
    if quoted {
        return Err(Error::invalid(format!("a quote is not closed in {value:?}")));
    }
    Ok(fields)
}

impl Job {
    /// Makes what a request asks to be said about a result.
    ///
    /// # Errors
    /// When the root file system cannot be read, or a scanner left no document.
    pub(super) async fn attest(
        self: &Arc<Self>,
        attest: &Attest,
        facts: &Facts,
        target: &Target,
        survey: &Survey,
    ) -> Result<Vec<Attestation>> {
        let mut made = Vec::new();
        if attest.sbom.is_some() {
            made.extend(self.bills(facts, survey, target.root).await?);
        }
        if let Some(provenance) = &attest.provenance {
            made.push(self.provenance(provenance, facts, target).await?);
        }
        Ok(made)
    }

    /// Writes provenance for the client's own records, which is stored nowhere.
    ///
    /// # Errors
    /// When a step's layers cannot be looked up.
    pub(super) async fn recorded_provenance(
        self: &Arc<Self>,
        mode: Mode,
        facts: &Facts,
        target: &Target,
    ) -> Result<Attestation> {
        self.provenance(&Provenance::of_mode(mode), facts, target).await
    }
}

/// Writes a time as RFC 3339.
fn rfc3339(ns: i64) -> String {
    jiff::Timestamp::from_nanosecond(i128::from(ns)).map_or_else(|_| String::new(), |time| time.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_read_with_quotes() {
        let read = fields("type=sbom,\"generator=a,b\",x=\"1,2\",disabled=false").unwrap();
        assert_eq!((read["generator"].as_str(), read["x"].as_str(), read.len()), ("a,b", "1,2", 4));
        assert!(fields("a=\"b").is_err());
    }

    #[test]
    fn requests_are_read_and_mistakes_named() {
        let mut attest = Attest::default();
        attest.set("provenance", "mode=min,inline-only=true").unwrap();
        attest.set("sbom", "type=sbom,disabled=false").unwrap();
        assert!(attest.provenance.is_some() && attest.sbom.is_some());
        attest.set("provenance", "disabled=true").unwrap();
        assert!(attest.provenance.is_none());
        for (kind, value, word) in [
            ("vulnerabilities", "", "vulnerabilities"),
            ("provenance", "mode=huge", "huge"),
            ("provenance", "version=v9", "v9"),
            ("provenance", "capture-usage=perhaps", "capture-usage"),
            ("provenance", "reproducible=perhaps", "reproducible"),
            ("provenance", "filename=../x", "filename"),
            ("sbom", "depth=3", "depth"),
            ("sbom", "generator=UPPER", "UPPER"),
        ] {
            let error = attest.set(kind, value).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
    }
}
