//! Layers as blobs: compressed forms, and what is known of them.
