//! Attestations that frontends return, between the wire and the solver.

use std::collections::BTreeMap;

use crate::error::{Error, Result};
use crate::image::Subject;
use crate::solver::bridge::{Returned, Shape};
use crate::types::build::frontend::{Attestation, AttestationKind, InTotoSubject, InTotoSubjectKind, Ref};

/// How many things one attestation may be about.
const MAX_SUBJECTS: usize = 10_000;

/// Reads an attestation.
///
/// # Errors
/// `InvalidArgument` for one of a kind that does not exist or without content, and for malformed digests.
pub(super) fn from_wire(attestation: Attestation) -> Result<Returned> {
    let Attestation { kind, metadata, r#ref, path, in_toto_predicate_type, in_toto_subjects } = attestation;
    let shape = match AttestationKind::try_from(kind) {
        Ok(AttestationKind::InToto) if path.is_empty() => {
            return Err(Error::invalid("attestation does not have set path"));
        }
        Ok(AttestationKind::InToto) => Shape::Predicate,
        Ok(AttestationKind::Bundle) => Shape::Bundle,
        Err(_) => return Err(Error::invalid(format!("the attestation {path:?} is of the unknown kind {kind}"))),
    };
    let result = r#ref.map(|holder| holder.id).filter(|id| !id.is_empty());
    let result = result.ok_or_else(|| {
        Error::invalid(format!("the attestation {path:?} does not have available content: it names no result"))
    })?;
    if in_toto_subjects.len() > MAX_SUBJECTS {
        return Err(Error::exhausted(format!("the attestation {path:?} is about more than {MAX_SUBJECTS} things")));
    }
    let subjects = in_toto_subjects.into_iter().map(subject).collect::<Result<_>>()?;
    let metadata = metadata.into_iter().collect();
    Ok(Returned { shape, result, path, predicate_type: in_toto_predicate_type, subjects, metadata })
}

fn subject(subject: InTotoSubject) -> Result<Subject> {
    let InTotoSubject { kind, digest, name } = subject;
    match InTotoSubjectKind::try_from(kind) {
        Ok(InTotoSubjectKind::Self_) => Ok(Subject::Itself { name }),
        Ok(InTotoSubjectKind::Raw) => {
            let pair = |text: String| match text.split_once(':') {
                Some((algorithm, hex))
                    if !algorithm.is_empty() && hex.bytes().all(|digit| digit.is_ascii_hexdigit()) =>
                {
                    Ok((algorithm.to_owned(), hex.to_owned()))
                }
                _ => Err(Error::invalid(format!("the subject {name:?} of an attestation has the digest {text:?}"))),
            };
            let digests = digest.into_iter().map(pair).collect::<Result<_>>()?;
            Ok(Subject::Other { name, digests })
        }
        Err(_) => Err(Error::invalid(format!("the subject {name:?} of an attestation is of the unknown kind {kind}"))),
    }
}

/// Writes an attestation; `holder` is the result that holds it.
pub(super) fn to_wire(returned: Returned, holder: Ref) -> Attestation {
    let Returned { shape, result: _, path, predicate_type, subjects, metadata } = returned;
    let kind = match shape {
        Shape::Predicate => AttestationKind::InToto,
        Shape::Bundle => AttestationKind::Bundle,
    };
    let list =
        |digests: BTreeMap<String, String>| digests.into_iter().map(|(algorithm, hex)| format!("{algorithm}:{hex}"));
    let subject = |subject| match subject {
        Subject::Itself { name } => InTotoSubject { kind: InTotoSubjectKind::Self_.into(), digest: Vec::new(), name },
        Subject::Other { name, digests } => {
            InTotoSubject { kind: InTotoSubjectKind::Raw.into(), digest: list(digests).collect(), name }
        }
    };
    Attestation {
        kind: kind.into(),
        metadata: metadata.into_iter().collect(),
        r#ref: Some(holder),
        path,
        in_toto_predicate_type: predicate_type,
        in_toto_subjects: subjects.into_iter().map(subject).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attestations_are_read_and_written_and_mistakes_named() {
        let holder = Ref { id: "r".into(), def: None };
        let raw = InTotoSubject { kind: 1, digest: vec!["sha256:00".into()], name: "s".into() };
        let itself = InTotoSubject { kind: 0, digest: Vec::new(), name: "n".into() };
        let whole = Attestation {
            kind: 0,
            metadata: [("reason".to_owned(), b"x".to_vec())].into(),
            r#ref: Some(holder.clone()),
            path: "/a".into(),
            in_toto_predicate_type: "t".into(),
            in_toto_subjects: vec![raw, itself],
        };
        assert_eq!(to_wire(from_wire(whole.clone()).unwrap(), holder), whole);
        let subject = |kind, digest: &str| vec![InTotoSubject { kind, digest: vec![digest.into()], name: "s".into() }];
        for (wrong, word) in [
            (Attestation { kind: 7, ..whole.clone() }, "unknown kind 7"),
            (Attestation { path: String::new(), ..whole.clone() }, "set path"),
            (Attestation { r#ref: None, ..whole.clone() }, "available content"),
            (Attestation { in_toto_subjects: subject(9, "sha256:00"), ..whole.clone() }, "unknown kind 9"),
            (Attestation { in_toto_subjects: subject(1, "00"), ..whole.clone() }, "digest"),
        ] {
            let error = from_wire(wrong).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
    }
}
