//! Why a definition is refused: which operation, which field, and the reason.

use std::fmt;

use kiln_graph::Digest;

/// What is wrong with a definition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Of which sort it is.
    pub kind: Kind,
    /// The operation, by the digest of its bytes.
    pub vertex: Option<Digest>,
    /// The field, for example `exec.mounts[2].input`; may be empty.
    pub field: String,
    /// What is wrong with it.
    pub reason: String,
}

/// Of which sort a refusal is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It makes no sense.
    Malformed,
    /// It may make sense and is not there.
    Unsupported,
    /// It is larger than is accepted.
    TooLarge,
}

impl Refusal {
    pub(crate) fn malformed(field: impl Into<String>, reason: impl Into<String>) -> Self {
        Self { kind: Kind::Malformed, vertex: None, field: field.into(), reason: reason.into() }
    }

    pub(crate) fn unsupported(field: impl Into<String>, reason: impl Into<String>) -> Self {
        Self { kind: Kind::Unsupported, ..Self::malformed(field, reason) }
    }

    pub(crate) fn too_large(field: impl Into<String>, reason: impl Into<String>) -> Self {
        Self { kind: Kind::TooLarge, ..Self::malformed(field, reason) }
    }

    /// Names the operation, unless that is known.
    pub(crate) fn at(mut self, vertex: Digest) -> Self {
        self.vertex.get_or_insert(vertex);
        self
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LLB")?;
        if let Some(vertex) = &self.vertex {
            write!(f, " operation {vertex}")?;
        }
        if !self.field.is_empty() {
            write!(f, ", {}", self.field)?;
        }
        write!(f, ": {}", self.reason)
    }
}

impl std::error::Error for Refusal {}
