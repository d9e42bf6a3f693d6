//! The `kiln` binary: chooses the role it plays before any thread exists.

fn main() {}
