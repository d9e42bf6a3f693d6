//! The keys that leave a container without stopping it: how they are written, and how they are found in what is typed.

use crate::error::{Error, Result};

/// Docker's keys.
const DEFAULT: [u8; 2] = [0x10, 0x11];

/// A sequence of keys that detaches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Keys {
    bytes: Vec<u8>,
    /// As it was written; nothing for docker's own keys.
    text: String,
}

impl Default for Keys {
    fn default() -> Self {
        Self { bytes: DEFAULT.to_vec(), text: String::new() }
    }
}

impl Keys {
    /// Returns the keys as they are written, if they are not those every engine knows.
    pub(super) fn text(&self) -> Option<&str> {
        Some(self.text.as_str()).filter(|text| !text.is_empty())
    }
}

impl std::str::FromStr for Keys {
    type Err = Error;

    /// Parses keys separated by commas: a character, `ctrl-` with a letter or one of `@[\]^_`, or `DEL`. Nothing means docker's
    /// own keys.
    fn from_str(text: &str) -> Result<Self> {
        if text.is_empty() {
            return Ok(Self::default());
        }
        Ok(Self { bytes: text.split(',').map(key).collect::<Result<_>>()?, text: text.to_owned() })
    }
}

fn key(text: &str) -> Result<u8> {
    let invalid = || {
        let known = "expected a character, ctrl-a to ctrl-z, ctrl-@, ctrl-[, ctrl-\\, ctrl-], ctrl-^, ctrl-_ or DEL";
        Error::invalid(format!("invalid detach keys: unknown character {text:?} ({known})"))
    };
    match (text.as_bytes(), text.strip_prefix("ctrl-").map(str::as_bytes)) {
        ([byte], _) => Ok(*byte),
        (_, Some([letter @ (b'a'..=b'z')])) => Ok(letter - b'a' + 1),
        (_, Some([sign @ (b'@' | b'['..=b'_')])) => Ok(sign - b'@'),
        (b"DEL", _) => Ok(0x7f),
        _ => Err(invalid()),
    }
}

/// Looks for the keys in a stream of input.
///
/// Bytes that may be the beginning of the sequence are held back until the next byte tells.
#[derive(Debug)]
pub(super) struct Detector {
    keys: Vec<u8>,
    /// How many of the keys have been seen.
    matched: usize,
}

impl Detector {
    pub(super) fn new(keys: Keys) -> Self {
        Self { keys: keys.bytes, matched: 0 }
    }

    /// Takes input; returns what is to be passed on, and whether the sequence is complete. What follows it is dropped.
    pub(super) fn feed(&mut self, input: &[u8]) -> (Vec<u8>, bool) {
        let mut passed = Vec::with_capacity(input.len() + self.matched);
        for byte in input {
            // The longest beginning of the keys that the input now ends with stays held back.
            while self.matched > 0 && self.keys[self.matched] != *byte {
                let shorter = self.shorter();
                passed.extend_from_slice(&self.keys[..self.matched - shorter]);
                self.matched = shorter;
            }
            if self.keys[self.matched] == *byte {
                self.matched += 1;
            } else {
                passed.push(*byte);
            }
            if self.matched == self.keys.len() {
                self.matched = 0;
                return (passed, true);
            }
        }
        (passed, false)
    }

    /// Returns what is held back, at the end of the input.
    pub(super) fn finish(&mut self) -> Vec<u8> {
        self.keys[..std::mem::take(&mut self.matched)].to_vec()
    }

    /// The length of the longest proper beginning of what is matched that is also its end.
    fn shorter(&self) -> usize {
        let held = &self.keys[..self.matched];
        (0..self.matched).rev().find(|length| held.ends_with(&self.keys[..*length])).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn keys(text: &str) -> Keys {
        text.parse().unwrap()
    }

    #[test]
    fn keys_are_written_as_docker_writes_them() {
        assert_eq!(keys("").bytes, [16, 17]);
        assert_eq!(keys("ctrl-p,ctrl-q").bytes, [16, 17]);
        assert_eq!(keys("ctrl-@,ctrl-[,ctrl-\\,ctrl-],ctrl-^,ctrl-_,a,DEL").bytes, [0, 27, 28, 29, 30, 31, 97, 127]);
        assert_eq!((keys("").text(), keys("a,b").text()), (None, Some("a,b")));
        for text in ["ctrl-", "ctrl-1", "ctrl-aa", "ab", "a,,b", "é"] {
            assert!(text.parse::<Keys>().is_err(), "{text}");
        }
    }

    #[test]
    fn the_sequence_detaches_even_when_it_is_typed_slowly() {
        let mut detector = Detector::new(Keys::default());
        assert_eq!(detector.feed(b"ls\n\x10"), (b"ls\n".to_vec(), false));
        assert_eq!(detector.feed(b"\x11rest"), (Vec::new(), true));
    }

    #[test]
    fn keys_that_only_begin_the_sequence_are_passed_on() {
        let mut detector = Detector::new(Keys::default());
        assert_eq!(detector.feed(b"\x10\x10a"), (b"\x10\x10a".to_vec(), false));
        assert_eq!(detector.feed(b"\x10"), (Vec::new(), false));
        assert_eq!(detector.finish(), b"\x10");
        let mut detector = Detector::new(keys("a,a,b"));
        assert_eq!(detector.feed(b"aaab"), (b"a".to_vec(), true), "the sequence may begin within a false start");
    }

    proptest! {
        #[test]
        fn nothing_is_lost_or_invented(input in "[ab]{0,40}", keys_text in "[ab](,[ab]){0,3}", cut in 0_usize..40) {
            let keys: Keys = keys_text.parse().unwrap();
            let needle = keys.bytes.clone();
            let end = input.as_bytes().windows(needle.len()).position(|window| window == needle);
            let mut detector = Detector::new(keys);
            let (first, second) = input.as_bytes().split_at(cut.min(input.len()));
            let (mut passed, mut detached) = detector.feed(first);
            if !detached {
                let (more, found) = detector.feed(second);
                passed.extend(more);
                detached = found;
            }
            if !detached {
                passed.extend(detector.finish());
            }
            prop_assert_eq!(detached, end.is_some());
            prop_assert_eq!(passed, &input.as_bytes()[..end.unwrap_or(input.len())]);
        }
    }
}
