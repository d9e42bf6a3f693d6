//! The error type of the program, and the one table that turns its kind into HTTP, gRPC and exit codes.
//!
//! The kind decides, the text explains. Nothing matches on text; callers add context with [`ResultExt::context`].

use std::error::Error as StdError;
use std::fmt;

/// The result of everything that can fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What sort of failure it is: decides status and exit codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// The caller's input is wrong.
    InvalidArgument,
    /// The named thing does not exist.
    NotFound,
    /// The thing exists already, or its state forbids the request.
    Conflict,
    /// Credentials are missing or wrong.
    Unauthorized,
    /// The caller may not do this.
    Forbidden,
    /// There was nothing to do.
    NotModified,
    /// This program, kernel or host cannot do this.
    Unsupported,
    /// Something outside (a registry, a daemon) does not answer.
    Unavailable,
    /// Something outside took too long.
    Timeout,
    /// The caller gave up.
    Cancelled,
    /// The disk or another resource is full.
    Exhausted,
    /// Content does not have the digest or the size it should have.
    Corrupt,
    /// A bug, or the operating system refused something unexpectedly.
    Internal,
}

impl Kind {
    /// Returns `(HTTP status, gRPC code, exit code)`.
    ///
    /// HTTP follows moby's `errdefs`, gRPC the canonical codes. Exit codes of `run` are decided by the command itself.
    #[must_use]
    pub const fn codes(self) -> (u16, i32, u8) {
        match self {
            Self::InvalidArgument => (400, 3, 1),
            Self::NotFound => (404, 5, 1),
            Self::Conflict => (409, 9, 1),
            Self::Unauthorized => (401, 16, 1),
            Self::Forbidden => (403, 7, 1),
            Self::NotModified => (304, 9, 0),
            Self::Unsupported => (501, 12, 1),
            Self::Unavailable => (503, 14, 1),
            Self::Timeout => (504, 4, 1),
            Self::Cancelled => (499, 1, 130),
            Self::Exhausted => (507, 8, 1),
            Self::Corrupt => (500, 15, 1),
            Self::Internal => (500, 13, 1),
        }
    }

    /// Returns the kind that best fits an HTTP status received from a server.
    #[must_use]
    pub const fn from_http(status: u16) -> Self {
        match status {
            304 => Self::NotModified,
            401 => Self::Unauthorized,
            403 => Self::Forbidden,
            404 => Self::NotFound,
            409 => Self::Conflict,
            408 | 504 => Self::Timeout,
            499 => Self::Cancelled,
            501 => Self::Unsupported,
            502 | 503 => Self::Unavailable,
            507 => Self::Exhausted,
            400..=498 => Self::InvalidArgument,
            _ => Self::Internal,
        }
    }

    /// Returns the kind that best fits a gRPC code received from a server.
    #[must_use]
    pub const fn from_grpc(code: i32) -> Self {
        match code {
            1 => Self::Cancelled,
            3 | 11 => Self::InvalidArgument,
            4 => Self::Timeout,
            5 => Self::NotFound,
            6 | 9 | 10 => Self::Conflict,
            7 => Self::Forbidden,
            8 => Self::Exhausted,
            12 => Self::Unsupported,
            14 => Self::Unavailable,
            15 => Self::Corrupt,
            16 => Self::Unauthorized,
            _ => Self::Internal,
        }
    }
}

/// A failure: what sort, what happened, and what caused it.
#[derive(Debug)]
pub struct Error(Box<Inner>);

#[derive(Debug)]
struct Inner {
    kind: Kind,
    message: String,
    source: Option<Box<dyn StdError + Send + Sync>>,
    cleanup: Vec<String>,
}

macro_rules! constructors {
    ($($(#[$doc:meta])* $name:ident => $kind:ident;)*) => {
        impl Error {
            $($(#[$doc])* #[must_use] pub fn $name(message: impl Into<String>) -> Self { Self::new(Kind::$kind, message) })*
        }
    };
}

constructors! {
    /// Makes an error about the caller's input.
    invalid => InvalidArgument;
    /// Makes an error about a thing that does not exist.
    not_found => NotFound;
    /// Makes an error about a thing that exists or is in the wrong state.
    conflict => Conflict;
    /// Makes an error about credentials.
    unauthorized => Unauthorized;
    /// Makes an error about permissions.
    forbidden => Forbidden;
    /// Makes an error that says there was nothing to do.
    not_modified => NotModified;
    /// Makes an error about something this program, kernel or host cannot do.
    unsupported => Unsupported;
    /// Makes an error about something outside that does not answer.
    unavailable => Unavailable;
    /// Makes an error about something outside that took too long.
    timeout => Timeout;
    /// Makes an error that says the caller gave up.
    cancelled => Cancelled;
    /// Makes an error about a full disk or another used-up resource.
    exhausted => Exhausted;
    /// Makes an error about content that is not what it should be.
    corrupt => Corrupt;
    /// Makes an error about a bug or an unexpected refusal of the operating system.
    internal => Internal;
}

impl Error {
    /// Makes an error of a kind.
    #[must_use]
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self(Box::new(Inner { kind, message: message.into(), source: None, cleanup: Vec::new() }))
    }

    /// Attaches the cause. The cause's text is printed after the message.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.0.source = Some(source.into());
        self
    }

    /// Returns the kind.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.0.kind
    }

    /// Returns the same error with another kind, where a caller knows better what a failure means.
    #[must_use]
    pub fn with_kind(mut self, kind: Kind) -> Self {
        self.0.kind = kind;
        self
    }

    /// Returns the cause as a concrete type, if it is of that type.
    #[must_use]
    pub fn cause<T: StdError + 'static>(&self) -> Option<&T> {
        self.0.source.as_deref().and_then(|source| source.downcast_ref())
    }

    /// Puts what was being done in front of the message.
    #[must_use]
    pub fn context(mut self, context: impl fmt::Display) -> Self {
        self.0.message = format!("{context}: {}", self.0.message);
        self
    }

    /// Attaches a failure of cleaning up after this error.
    #[must_use]
    pub fn and_cleanup<E: fmt::Display>(mut self, cleanup: Result<(), E>) -> Self {
        if let Err(error) = cleanup {
            self.0.cleanup.push(error.to_string());
        }
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)?;
        if let Some(source) = &self.0.source {
            write!(f, ": {source}")?;
        }
        for cleanup in &self.0.cleanup {
            write!(f, " (and while cleaning up: {cleanup})")?;
        }
        Ok(())
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source.as_deref().map(|source| source as _)
    }
}

/// Adds context to results.
pub trait ResultExt<T> {
    /// Puts what was being done, and to what, in front of an error's message.
    ///
    /// # Errors
    /// The same error with more words.
    fn context<C: fmt::Display>(self, context: impl FnOnce() -> C) -> Result<T>;
}

impl<T, E: Into<Error>> ResultExt<T> for Result<T, E> {
    fn context<C: fmt::Display>(self, context: impl FnOnce() -> C) -> Result<T> {
        self.map_err(|error| error.into().context(context()))
    }
}

impl From<std::io::Error> for Error {
    /// A full disk is [`Kind::Exhausted`]; everything else is [`Kind::Internal`] until a caller knows better.
    fn from(error: std::io::Error) -> Self {
        let text = match error.get_ref() {
            // Errors of this program that travelled through an `io::Read` or `io::Write` keep their kind.
            Some(inner) if inner.is::<Self>() => {
                return *error
                    .into_inner()
                    .and_then(|inner| inner.downcast().ok())
                    .expect("the type was checked a line above");
            }
            _ => describe_io(&error),
        };
        Self::new(kind_of_io(&error), text)
    }
}

fn kind_of_io(error: &std::io::Error) -> Kind {
    match error.kind() {
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => Kind::Exhausted,
        _ => Kind::Internal,
    }
}

/// The operating system's words without Rust's `(os error N)`.
fn describe_io(error: &std::io::Error) -> String {
    let text = error.to_string();
    let plain = text.split(" (os error").next().unwrap_or(&text);
    match plain.chars().next() {
        Some(first) if error.raw_os_error().is_some() => first.to_lowercase().chain(plain.chars().skip(1)).collect(),
        _ => plain.to_owned(),
    }
}

impl From<Error> for std::io::Error {
    /// Lets an error travel through `io::Read` and `io::Write`; converting back restores it.
    fn from(error: Error) -> Self {
        Self::other(error)
    }
}

impl From<rustix::io::Errno> for Error {
    fn from(errno: rustix::io::Errno) -> Self {
        std::io::Error::from(errno).into()
    }
}

impl From<rusqlite::Error> for Error {
    fn from(error: rusqlite::Error) -> Self {
        let kind = match error.sqlite_error_code() {
            Some(rusqlite::ErrorCode::DiskFull) => Kind::Exhausted,
            Some(rusqlite::ErrorCode::DatabaseBusy) => Kind::Timeout,
            Some(rusqlite::ErrorCode::DatabaseCorrupt | rusqlite::ErrorCode::NotADatabase) => Kind::Corrupt,
            _ => Kind::Internal,
        };
        Self::new(kind, format!("database: {error}"))
    }
}

impl From<serde_json::Error> for Error {
    fn from(error: serde_json::Error) -> Self {
        Self::invalid(format!("malformed JSON: {error}"))
    }
}

macro_rules! from_invalid {
    ($($type:ty),*) => {
        $(impl From<$type> for Error {
            fn from(error: $type) -> Self {
                Self::invalid(error.to_string())
            }
        })*
    };
}

from_invalid!(
    kiln_graph::digest::InvalidDigest,
    kiln_graph::reference::InvalidReference,
    kiln_graph::platform::InvalidPlatform
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn context_stands_before_the_message_and_the_cause_after() {
        let result: Result<(), std::io::Error> = Err(std::io::Error::from_raw_os_error(2));
        let error = result.context(|| "open blob").unwrap_err().context("pull image");
        assert_eq!(error.to_string(), "pull image: open blob: no such file or directory");
        let error = Error::internal("a").with_source(Error::invalid("b")).and_cleanup(Err("c"));
        assert_eq!(error.to_string(), "a: b (and while cleaning up: c)");
    }

    #[test]
    fn an_error_keeps_its_kind_through_an_io_error() {
        let error = Error::from(std::io::Error::from(Error::corrupt("digest")));
        assert_eq!(error.kind(), Kind::Corrupt);
        assert_eq!(Error::from(std::io::Error::from_raw_os_error(28)).kind(), Kind::Exhausted);
    }

    #[test]
    fn codes_received_from_a_server_mean_what_they_mean_when_sent() {
        use Kind::{Conflict, Exhausted, Forbidden, Internal, InvalidArgument, NotFound, Unauthorized, Unsupported};
        for kind in [InvalidArgument, NotFound, Conflict, Unauthorized, Forbidden, Unsupported, Exhausted, Internal] {
            let (http, grpc, _) = kind.codes();
            assert_eq!((Kind::from_http(http), Kind::from_grpc(grpc)), (kind, kind));
        }
    }
}
