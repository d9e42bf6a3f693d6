//! Docker's framing of output and errors on one stream: a header of eight bytes, `[stream, 0, 0, 0, length as u32 BE]`, then so
//! many bytes.
//!
//! Bytes are passed on as they come; a frame's length is never allocated, however long it claims to be.

use bytes::{Buf as _, Bytes};

use crate::error::{Error, Result};

const HEADER: usize = 8;

/// The longest error message of an engine that is shown.
const MAX_MESSAGE: usize = 64 << 10;

/// Where output belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Target {
    Output,
    Errors,
}

/// Takes frames apart. The state between two pieces of input is a header in part, or how much of a frame is still to come.
#[derive(Debug, Default)]
pub(super) struct Frames {
    header: [u8; HEADER],
    filled: usize,
    left: u32,
    /// What the engine itself reports, on its way to becoming an error.
    message: Vec<u8>,
}

impl Frames {
    /// Takes the next piece of a frame's content off `input`; `None` when more input is needed.
    ///
    /// # Errors
    /// The engine's message if it sent one in the stream; `InvalidArgument` when the input is not framed.
    pub(super) fn next(&mut self, input: &mut Bytes) -> Result<Option<(Target, Bytes)>> {
        while !input.is_empty() {
            if self.left == 0 && !self.read_header(input) {
                return Ok(None);
            }
            let stream = self.header[0];
            let length = input.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
            self.left -= u32::try_from(length).expect("it is at most what is left, which is a u32");
            let content = input.split_to(length);
            match stream {
                // Docker's clients show an echo of the input as output.
                0 | 1 if length > 0 => return Ok(Some((Target::Output, content))),
                2 if length > 0 => return Ok(Some((Target::Errors, content))),
                0..=2 => {}
                3 => {
                    self.message.extend_from_slice(&content[..length.min(MAX_MESSAGE - self.message.len())]);
                    if self.left == 0 {
                        return Err(self.reported());
                    }
                }
                other => return Err(Error::invalid(format!("the engine sent an unknown kind of output ({other})"))),
            }
        }
        Ok(None)
    }

    /// Says whether a header is complete, which then is in `self.header`.
    fn read_header(&mut self, input: &mut Bytes) -> bool {
        let length = input.len().min(HEADER - self.filled);
        input.copy_to_slice(&mut self.header[self.filled..self.filled + length]);
        self.filled += length;
        if self.filled < HEADER {
            return false;
        }
        self.filled = 0;
        let [_, _, _, _, length @ ..] = self.header;
        self.left = u32::from_be_bytes(length);
        true
    }

    fn reported(&mut self) -> Error {
        let message = String::from_utf8_lossy(&std::mem::take(&mut self.message)).trim().to_owned();
        Error::internal(if message.is_empty() { "the engine reports an error".to_owned() } else { message })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame(stream: u8, content: &[u8]) -> Vec<u8> {
        let length = u32::try_from(content.len()).unwrap().to_be_bytes();
        [&[stream, 0, 0, 0], &length[..], content].concat()
    }

    fn take(pieces: &[&[u8]]) -> Result<(Vec<u8>, Vec<u8>)> {
        let mut frames = Frames::default();
        let (mut output, mut errors) = (Vec::new(), Vec::new());
        for piece in pieces {
            let mut input = Bytes::copy_from_slice(piece);
            while let Some((target, content)) = frames.next(&mut input)? {
                match target {
                    Target::Output => output.extend_from_slice(&content),
                    Target::Errors => errors.extend_from_slice(&content),
                }
            }
        }
        Ok((output, errors))
    }

    #[test]
    fn an_error_of_the_engine_ends_the_stream() {
        let stream = [frame(1, b"a"), frame(3, b"disk full\n"), frame(1, b"b")].concat();
        assert_eq!(take(&[&stream]).unwrap_err().to_string(), "disk full");
        assert_eq!(take(&[&frame(3, b"")]).unwrap_err().to_string(), "the engine reports an error");
        let long = take(&[&frame(3, &[b'x'; 100_000])]).unwrap_err().to_string();
        assert_eq!(long.len(), MAX_MESSAGE);
    }

    #[test]
    fn what_is_not_framed_is_refused() {
        assert!(take(&[b"hello world, this is not framed"]).is_err());
    }

    #[test]
    fn a_frame_that_claims_four_gigabytes_passes_what_there_is() {
        let stream = [&[2, 0, 0, 0, 0xff, 0xff, 0xff, 0xff], &b"abc"[..]].concat();
        assert_eq!(take(&[&stream]).unwrap(), (Vec::new(), b"abc".to_vec()));
    }

    proptest! {
        #[test]
        fn the_cuts_of_the_input_do_not_matter(
            parts in prop::collection::vec((0_u8..3, prop::collection::vec(any::<u8>(), 0..20)), 0..8),
            cuts in prop::collection::vec(0_usize..200, 0..6),
        ) {
            let stream: Vec<u8> = parts.iter().flat_map(|(kind, content)| frame(*kind, content)).collect();
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(stream.len())).collect();
            cuts.extend([0, stream.len()]);
            cuts.sort_unstable();
            let pieces: Vec<&[u8]> = cuts.windows(2).map(|pair| &stream[pair[0]..pair[1]]).collect();
            let of = |errors: bool| -> Vec<u8> {
                parts.iter().filter(|(kind, _)| (*kind == 2) == errors).flat_map(|(_, content)| content.clone()).collect()
            };
            prop_assert_eq!(take(&pieces).unwrap(), (of(false), of(true)));
        }

        #[test]
        fn hostile_input_never_panics(input in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = take(&[&input]);
        }
    }
}
