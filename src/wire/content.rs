//! containerd's content service (`containerd.services.content.v1`), as far as BuildKit's sessions use it: messages and names.
//!
//! A client serves directories in the form of OCI layouts with it: caches that are kept there, and images that are built from.
//! Which directory a call is about, it says in its metadata. Fields and numbers: containerd's `content.proto`.

use std::collections::HashMap;

/// What the metadata of a call names the store by.
pub const STORE_ID: &str = "buildkit-attachable-store-id";

/// What the names of stores begin with that hold build caches.
pub const LOCAL: &str = "local:";

/// What the names of stores begin with that hold images to build from.
pub const LAYOUT: &str = "oci:";

/// Looks a blob up.
pub const INFO: &str = "/containerd.services.content.v1.Content/Info";

/// Reads a blob.
pub const READ: &str = "/containerd.services.content.v1.Content/Read";

/// Writes a blob.
pub const WRITE: &str = "/containerd.services.content.v1.Content/Write";

/// Bytes of a blob in one message: far below what clients of gRPC accept.
pub const CHUNK: usize = 1 << 20;

/// What is known of a blob.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Info {
    /// Its digest.
    #[prost(string, tag = "1")]
    pub digest: String,
    /// Its size in bytes.
    #[prost(int64, tag = "2")]
    pub size: i64,
}

/// Asks what is known of a blob.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct InfoRequest {
    /// Its digest.
    #[prost(string, tag = "1")]
    pub digest: String,
}

/// What is known of a blob.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct InfoResponse {
    /// That.
    #[prost(message, optional, tag = "1")]
    pub info: Option<Info>,
}

/// Asks for a part of a blob.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct ReadContentRequest {
    /// Its digest.
    #[prost(string, tag = "1")]
    pub digest: String,
    /// From where on.
    #[prost(int64, tag = "2")]
    pub offset: i64,
    /// How much; 0 means to the end.
    #[prost(int64, tag = "3")]
    pub size: i64,
}

/// A piece of a blob.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct ReadContentResponse {
    /// Where it is.
    #[prost(int64, tag = "1")]
    pub offset: i64,
    /// The bytes.
    #[prost(bytes = "bytes", tag = "2")]
    pub data: bytes::Bytes,
}

/// What is done with a blob that is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, prost::Enumeration)]
#[repr(i32)]
pub enum WriteAction {
    /// It is said how far it is.
    Stat = 0,
    /// Bytes are added.
    Write = 1,
    /// It is complete.
    Commit = 2,
}

/// A step of writing a blob.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct WriteContentRequest {
    /// What is done.
    #[prost(enumeration = "WriteAction", tag = "1")]
    pub action: i32,
    /// Names what is written, until it is complete.
    #[prost(string, tag = "2")]
    pub r#ref: String,
    /// Its size in bytes; 0 when it is not known.
    #[prost(int64, tag = "3")]
    pub total: i64,
    /// Its digest; empty when it is not known.
    #[prost(string, tag = "4")]
    pub expected: String,
    /// Where the bytes belong.
    #[prost(int64, tag = "5")]
    pub offset: i64,
    /// The bytes.
    #[prost(bytes = "bytes", tag = "6")]
    pub data: bytes::Bytes,
    /// What is to be noted about it.
    #[prost(map = "string, string", tag = "7")]
    pub labels: HashMap<String, String>,
}

/// How far a blob is that is written.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct WriteContentResponse {
    /// What was done.
    #[prost(enumeration = "WriteAction", tag = "1")]
    pub action: i32,
    /// How much is there.
    #[prost(int64, tag = "4")]
    pub offset: i64,
    /// Its size in bytes; 0 when it is not known.
    #[prost(int64, tag = "5")]
    pub total: i64,
    /// Its digest, once it is complete.
    #[prost(string, tag = "6")]
    pub digest: String,
}
