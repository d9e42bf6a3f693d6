//! Attestations that a frontend returns: files of its results, each a predicate, or a directory of statements.
//!
//! The rules are BuildKit's: a frontend says nothing about where a result is from, and statements of a directory keep what they are
//! about.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::super::bridge::Bridge;
use super::super::export::Attestation;
use super::super::failure::Failure;
use super::super::gateway::View;
use crate::error::{Error, Result, ResultExt as _};
use crate::image::{Predicate, Subject};
use crate::sbom::spdx;
use crate::task;

/// A document may be so large; BuildKit's limit.
pub(super) const MAX_DOCUMENT: u64 = 80 << 20;
/// A frontend or a scanner may leave so many documents about a result.
pub(super) const MAX_DOCUMENTS: usize = 100;
/// So large may all documents be that a frontend returns.
const MAX_TOTAL: usize = 256 << 20;
/// What the types of predicates begin with that only the builder itself may make.
pub(super) const PROVENANCE: &str = "https://slsa.dev/provenance/";

/// The attestation is stored with images only.
const INLINE_ONLY: &str = "inline-only";
/// The name of the bill of material that is about the result and not about what it was made of.
const SBOM_CORE: &str = "sbom-core";

/// An attestation that a frontend returns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Returned {
    /// How it is written down.
    pub shape: Shape,
    /// The name of the result that holds it.
    pub result: String,
    /// Where it is in there. Its last component names the file that it becomes.
    pub path: String,
    /// What is said, as a URI. Of a directory, empty is anything.
    pub predicate_type: String,
    /// What it is about; empty is the result that it is returned for. Statements of a directory say that themselves.
    pub subjects: Vec<Subject>,
    /// What else is said of it.
    pub metadata: BTreeMap<String, Vec<u8>>,
}

/// How an attestation is written down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// A file that holds the predicate.
    Predicate,
    /// A directory of in-toto statements.
    Bundle,
}

/// How much of attestations may still be read.
#[derive(Debug)]
pub(in crate::solver) struct Budget(usize);

impl Default for Budget {
    fn default() -> Self {
        Self(MAX_TOTAL)
    }
}

impl Budget {
    fn take(&mut self, bytes: Vec<u8>) -> Result<Vec<u8>> {
        let left = self.0.checked_sub(bytes.len());
        self.0 = left.ok_or_else(|| {
            Error::exhausted(format!("the attestations of a frontend are larger than {} MiB", MAX_TOTAL >> 20))
        })?;
        Ok(bytes)
    }
}

/// A statement in a bundle.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Statement {
    predicate_type: String,
    #[serde(default)]
    predicate: Option<Box<RawValue>>,
    #[serde(default)]
    subject: Vec<Named>,
}

#[derive(Deserialize)]
struct Named {
    #[serde(default)]
    name: String,
    #[serde(default)]
    digest: BTreeMap<String, String>,
}

impl Returned {
    /// Reads it from its result. Blocking.
    ///
    /// # Errors
    /// `NotFound`; `InvalidArgument` for what is no such document or may not be said; `Exhausted` for too much.
    pub(in crate::solver) fn read(&self, view: &View, budget: &mut Budget) -> Result<Vec<Attestation>> {
        let read = match self.shape {
            Shape::Predicate => self.predicate(view, budget).map(|made| vec![made]),
            Shape::Bundle => self.bundle(view, budget),
        };
        read.context(|| format!("the attestation {:?} of the frontend", self.path))
    }

    /// Whether a document is the bill of material of the result itself, which stands before all others.
    fn is_core(&self, path: &str) -> bool {
        let stem = path.split('.').next().unwrap_or_default();
        self.metadata.get(SBOM_CORE).is_some_and(|name| name == stem.as_bytes())
    }

    fn predicate(&self, view: &View, budget: &mut Budget) -> Result<Attestation> {
        if self.predicate_type.starts_with(PROVENANCE) {
            return Err(Error::invalid("frontend may not set provenance attestations"));
        }
        let content = budget.take(view.whole(&self.path, MAX_DOCUMENT)?)?;
        // As BuildKit writes one of which nothing is known.
        let content = if content.is_empty() { Bytes::from_static(b"null") } else { content.into() };
        let predicate = Predicate { kind: self.predicate_type.clone(), content, subjects: self.subjects.clone() };
        self.made(predicate, &self.path)
    }

    fn bundle(&self, view: &View, budget: &mut Budget) -> Result<Vec<Attestation>> {
        let mut entries = view.list(&self.path, "")?;
        if entries.len() > MAX_DOCUMENTS {
            return Err(Error::invalid(format!("it holds more than {MAX_DOCUMENTS} statements")));
        }
        entries.sort_by(|a, b| a.path.cmp(&b.path));
        let dir = self.path.trim_end_matches('/');
        let entry = |name: &str| {
            let path = format!("{dir}/{name}");
            let content = budget.take(view.whole(&path, MAX_DOCUMENT)?)?;
            self.entry(&path, &content).context(|| name.to_owned())
        };
        entries.iter().map(|found| found.path.as_str()).map(entry).collect()
    }

    fn entry(&self, path: &str, content: &[u8]) -> Result<Attestation> {
        let statement: Statement = serde_json::from_slice(content)
            .map_err(|error| Error::invalid(format!("cannot decode in-toto statement: {error}")))?;
        let (kind, wanted) = (statement.predicate_type, &self.predicate_type);
        if kind.starts_with(PROVENANCE) {
            return Err(Error::invalid("frontend may not bundle provenance attestations"));
        }
        if !wanted.is_empty() && kind != *wanted {
            return Err(Error::invalid(format!("bundle entry {kind} does not match required predicate type {wanted}")));
        }
        let content = statement.predicate.map_or_else(|| "null".to_owned(), |predicate| predicate.get().to_owned());
        let subjects = statement.subject.into_iter();
        let subjects = subjects.map(|Named { name, digest: digests }| Subject::Other { name, digests }).collect();
        self.made(Predicate { kind, content: content.into(), subjects }, path)
    }

    fn made(&self, predicate: Predicate, path: &str) -> Result<Attestation> {
        let name = path.rsplit('/').next().unwrap_or_default();
        if matches!(name, "" | "." | "..") {
            return Err(Error::invalid("attestation does not have set path"));
        }
        let inline_only = self.metadata.get(INLINE_ONLY).is_some_and(|value| value == b"true");
        Ok(Attestation { predicate, file_name: name.to_owned(), inline_only, is_core: self.is_core(path) })
    }
}

impl Bridge {
    /// Reads what a frontend returned about a result, and adds what was made here. As with BuildKit, a bill of material of the
    /// frontend stands in for that of the builder.
    ///
    /// # Errors
    /// Those of [`Returned::read`]; failures of making the results that hold attestations.
    pub(in crate::solver) async fn attested(
        &self,
        returned: &[Returned],
        made: Vec<Attestation>,
        budget: &mut Budget,
    ) -> Result<Vec<Attestation>, Failure> {
        let mut all = Vec::new();
        for one in returned {
            let view = Box::pin(self.open(&one.result)).await?;
            let (one, mut left) = (one.clone(), std::mem::take(budget));
            let (read, left) = task::blocking(move || Ok((one.read(&view, &mut left)?, left))).await?;
            *budget = left;
            all.extend(read);
        }
        let is_bill = |attestation: &Attestation| attestation.predicate.kind == spdx::PREDICATE_TYPE;
        let has_bill = all.iter().any(is_bill);
        all.extend(made.into_iter().filter(|made| !has_bill || !is_bill(made)));
        all.sort_by_key(|attestation| !attestation.is_core);
        Ok(all)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::store::tree;

    fn returned(shape: Shape, path: &str, predicate_type: &str) -> Returned {
        let metadata = [(SBOM_CORE, "/out/b"), (INLINE_ONLY, "true")];
        let metadata = metadata.map(|(key, value)| (key.to_owned(), value.as_bytes().to_vec())).into();
        let (path, predicate_type) = (path.to_owned(), predicate_type.to_owned());
        Returned { shape, result: String::new(), path, predicate_type, subjects: Vec::new(), metadata }
    }

    #[test]
    fn files_and_directories_of_a_result_are_attestations() {
        let root = tempfile::tempdir().unwrap();
        let view = View::of(tree::open_root(root.path()).unwrap());
        let out = root.path().join("out");
        fs::create_dir(&out).unwrap();
        let read = |one: &Returned| one.read(&view, &mut Budget::default());
        fs::write(
            out.join("a.json"),
            r#"{"predicateType":"x","predicate":{"n": 1},"subject":[{"name":"s","digest":{"sha256":"00"}}]}"#,
        )
        .unwrap();
        fs::write(out.join("b.json"), r#"{"predicateType":"x"}"#).unwrap();
        let bundle = returned(Shape::Bundle, "/out", "");
        let made = read(&bundle).unwrap();
        let names: Vec<_> = made.iter().map(|made| (made.file_name.as_str(), made.is_core, made.inline_only)).collect();
        assert_eq!(names, [("a.json", false, true), ("b.json", true, true)]);
        assert_eq!(
            (made[0].predicate.content.as_ref(), made[1].predicate.content.as_ref()),
            (&br#"{"n": 1}"#[..], &b"null"[..])
        );
        let digests = [("sha256".to_owned(), "00".to_owned())].into();
        assert_eq!(made[0].predicate.subjects, [Subject::Other { name: "s".into(), digests }]);
        assert!(made[1].predicate.subjects.is_empty());
        assert!(
            read(&returned(Shape::Bundle, "/out", "y")).unwrap_err().to_string().contains("required predicate type y")
        );
        assert_eq!(read(&returned(Shape::Predicate, "out/b.json", "x")).unwrap()[0].file_name, "b.json");
        assert!(bundle.read(&view, &mut Budget(10)).unwrap_err().to_string().contains("larger than"));

        let provenance = format!("{PROVENANCE}v1");
        for (one, word) in [
            (returned(Shape::Predicate, "/out/a.json", &provenance), "may not set provenance"),
            (returned(Shape::Predicate, "/out/none", "x"), "out/none"),
            (returned(Shape::Predicate, "/out", "x"), "no file"),
            (returned(Shape::Bundle, "/none", "x"), "none"),
        ] {
            let error = read(&one).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
        for (content, word) in [
            (format!(r#"{{"predicateType":"{provenance}","predicate":{{}}}}"#), "may not bundle provenance"),
            ("{}{}".to_owned(), "cannot decode in-toto statement"),
        ] {
            fs::write(out.join("c.json"), content).unwrap();
            let error = read(&bundle).unwrap_err().to_string();
            assert!(error.contains(word) && error.contains("c.json"), "{error}");
        }
        // Links stay within the result.
        fs::remove_file(out.join("c.json")).unwrap();
        std::os::unix::fs::symlink("/etc/hostname", out.join("c.json")).unwrap();
        assert!(read(&bundle).is_err());
    }
}
