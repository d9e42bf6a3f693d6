//! Armor: binary data between lines that say what it is, as OpenPGP and SSH write it.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::error::{Error, Result};

/// How many blocks are read.
const MAX_BLOCKS: usize = 1000;

/// What stands between two such lines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Block {
    /// What it is, for example `PGP SIGNATURE`.
    pub(super) label: String,
    pub(super) data: Vec<u8>,
}

/// Reads all blocks of a text; what stands outside of them is left out.
///
/// The checksum of OpenPGP's blocks is not looked at, as RFC 9580 (6.1) wants it: it protects from nobody.
///
/// # Errors
/// `InvalidArgument` for a block that does not end or is no base64.
pub(super) fn blocks(text: &str) -> Result<Vec<Block>> {
    let mut blocks = Vec::new();
    let mut lines = text.lines().map(str::trim_end);
    while let Some(line) = lines.next() {
        let Some(label) = line.strip_prefix("-----BEGIN ").and_then(|rest| rest.strip_suffix("-----")) else {
            continue;
        };
        if blocks.len() == MAX_BLOCKS {
            return Err(Error::invalid(format!("there are more than {MAX_BLOCKS} armored blocks")));
        }
        let end = format!("-----END {label}-----");
        // OpenPGP's have headers, which end with an empty line.
        let mut in_headers = label.starts_with("PGP ");
        let mut encoded = String::new();
        loop {
            match lines.next() {
                None => return Err(Error::invalid(format!("the block {label:?} has no end"))),
                Some(line) if line == end => break,
                Some("") => in_headers = false,
                Some(_) if in_headers => {}
                Some(line) if line.len() == 5 && line.starts_with('=') => {}
                Some(line) => encoded.push_str(line.trim()),
            }
        }
        let data = STANDARD
            .decode(&encoded)
            .map_err(|error| Error::invalid(format!("the block {label:?} is not what it should be: {error}")))?;
        blocks.push(Block { label: label.to_owned(), data });
    }
    Ok(blocks)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_read_with_and_without_headers() {
        let text = "before\n-----BEGIN PGP SIGNATURE-----\nVersion: x\n\naGVs\nbG8=\n=abcd\n-----END PGP SIGNATURE-----\n\
                    -----BEGIN SSH SIGNATURE-----\r\naGVs\r\nbG8=\r\n-----END SSH SIGNATURE-----";
        let read = blocks(text).unwrap();
        assert_eq!(
            read.iter().map(|block| block.label.as_str()).collect::<Vec<_>>(),
            ["PGP SIGNATURE", "SSH SIGNATURE"]
        );
        assert!(read.iter().all(|block| block.data == b"hello"));
        assert_eq!(blocks("no block").unwrap(), []);
        for broken in ["-----BEGIN X-----\naGVs", "-----BEGIN X-----\n???\n-----END X-----"] {
            assert!(blocks(broken).is_err(), "{broken}");
        }
    }
}
