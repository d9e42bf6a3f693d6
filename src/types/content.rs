//! containerd's content service (`containerd.services.content.v1.Content`), as far as BuildKit's clients use it: the messages of
//! reading.

use super::build::google::protobuf::Timestamp;

/// The path of its methods.
pub const SERVICE: &str = "/containerd.services.content.v1.Content";

/// What there is to know of a blob.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Info {
    /// Its digest.
    #[prost(string, tag = "1")]
    pub digest: String,
    /// Its size in bytes.
    #[prost(int64, tag = "2")]
    pub size: i64,
    /// When it was made.
    #[prost(message, optional, tag = "3")]
    pub created_at: Option<Timestamp>,
    /// When it changed.
    #[prost(message, optional, tag = "4")]
    pub updated_at: Option<Timestamp>,
}

/// Asks for [`Info`].
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct InfoRequest {
    /// The blob.
    #[prost(string, tag = "1")]
    pub digest: String,
}

/// The answer.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct InfoResponse {
    /// What is known.
    #[prost(message, optional, tag = "1")]
    pub info: Option<Info>,
}

/// Asks for the bytes of a blob.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct ReadContentRequest {
    /// The blob.
    #[prost(string, tag = "1")]
    pub digest: String,
    /// Where to begin.
    #[prost(int64, tag = "2")]
    pub offset: i64,
    /// How many bytes; 0 is all of them.
    #[prost(int64, tag = "3")]
    pub size: i64,
}

/// Some of the bytes.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct ReadContentResponse {
    /// Where they begin.
    #[prost(int64, tag = "1")]
    pub offset: i64,
    /// They.
    #[prost(bytes = "vec", tag = "2")]
    pub data: Vec<u8>,
}
