//! Images: names, manifests, platform choice, pull and push, unpacking by chain ID, archives.

pub mod record;
