//! Cutting a stream where its content says so, and not at fixed places: what lies before and after a change is cut as before, so
//! that its chunks are the same. The method is FastCDC's (Xia and others, USENIX ATC 2016): a rolling hash of the last bytes,
//! a stricter condition before the usual size than after it.

use std::sync::OnceLock;

/// The smallest, the usual and the largest chunk, in bytes. Each chunk costs a request, and a change costs a chunk.
const MIN: usize = 256 << 10;
const USUAL: usize = 1 << 20;
pub(super) const MAX: usize = 4 << 20;

/// The condition of a cut: none of these bits in the hash. The upper ones depend on the most bytes.
const STRICT: u64 = !0 << (64 - 22);
const LOOSE: u64 = !0 << (64 - 18);

/// A number for each byte. Changing it changes all cuts.
fn gear() -> &'static [u64; 256] {
    static GEAR: OnceLock<[u64; 256]> = OnceLock::new();
    GEAR.get_or_init(|| {
        let number = |byte: usize| {
            let hash = blake3::hash(format!("kiln chunk {byte}").as_bytes());
            u64::from_le_bytes(std::array::from_fn(|at| hash.as_bytes()[at]))
        };
        std::array::from_fn(number)
    })
}

/// Cuts what is written to it.
#[derive(Debug)]
pub(super) struct Cutter<F> {
    buffer: Vec<u8>,
    /// How much of the buffer was looked at.
    seen: usize,
    hash: u64,
    take: F,
}

impl<F: FnMut(Vec<u8>) -> std::io::Result<()>> Cutter<F> {
    /// `take` gets each chunk.
    pub(super) fn new(take: F) -> Self {
        Self { buffer: Vec::with_capacity(MAX), seen: 0, hash: 0, take }
    }

    /// Takes the rest as the last chunk.
    ///
    /// # Errors
    /// Those of `take`.
    pub(super) fn finish(mut self) -> std::io::Result<()> {
        let rest = std::mem::take(&mut self.buffer);
        if rest.is_empty() { Ok(()) } else { (self.take)(rest) }
    }

    /// Returns the place of the next cut in what is there.
    fn cut(&mut self) -> Option<usize> {
        let gear = gear();
        // No cut comes before, so nothing before matters.
        self.seen = self.seen.max(MIN.min(self.buffer.len()));
        while self.seen < self.buffer.len() {
            self.hash = (self.hash << 1).wrapping_add(gear[usize::from(self.buffer[self.seen])]);
            self.seen += 1;
            let mask = if self.seen < USUAL { STRICT } else { LOOSE };
            if self.hash & mask == 0 || self.seen == MAX {
                return Some(self.seen);
            }
        }
        None
    }
}

impl<F: FnMut(Vec<u8>) -> std::io::Result<()>> std::io::Write for Cutter<F> {
    fn write(&mut self, data: &[u8]) -> std::io::Result<usize> {
        let taken = data.len().min(MAX - self.buffer.len());
        self.buffer.extend_from_slice(&data[..taken]);
        while let Some(at) = self.cut() {
            let rest = self.buffer.split_off(at);
            let chunk = std::mem::replace(&mut self.buffer, rest);
            self.buffer.reserve(MAX - self.buffer.len());
            (self.seen, self.hash) = (0, 0);
            (self.take)(chunk)?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::io::Write as _;

    use super::*;

    fn chunks(data: &[u8], piece: usize) -> Vec<Vec<u8>> {
        let mut all = Vec::new();
        let mut cutter = Cutter::new(|chunk| {
            all.push(chunk);
            Ok(())
        });
        data.chunks(piece).for_each(|piece| cutter.write_all(piece).unwrap());
        cutter.finish().unwrap();
        all
    }

    /// Bytes that are the same in every run and look like nothing.
    fn noise(length: usize, seed: u8) -> Vec<u8> {
        let mut bytes = vec![0; length];
        blake3::Hasher::new().update(&[seed]).finalize_xof().fill(&mut bytes);
        bytes
    }

    #[test]
    fn a_change_costs_the_chunks_it_is_in() {
        let before = noise(24 << 20, 1);
        let mut after = before.clone();
        after.splice((9 << 20)..(9 << 20), noise(1000, 2));
        let (old, new) = (chunks(&before, 64 << 10), chunks(&after, 64 << 10));
        assert_eq!(old.concat(), before);
        assert_eq!(new.concat(), after);
        assert!(old.iter().all(|chunk| chunk.len() <= MAX) && old.len() > 8, "{}", old.len());
        assert!(old.iter().rev().skip(1).all(|chunk| chunk.len() > MIN));
        let known: HashSet<&Vec<u8>> = old.iter().collect();
        let changed = new.iter().filter(|chunk| !known.contains(chunk)).count();
        assert!((1..=3).contains(&changed), "{changed} of {}", new.len());
    }

    #[test]
    fn cuts_do_not_depend_on_how_data_comes() {
        let data = noise(5 << 20, 3);
        assert_eq!(chunks(&data, 1 << 20), chunks(&data, 7919));
        assert_eq!(chunks(&vec![0; 9 << 20], 1 << 16).iter().map(Vec::len).collect::<Vec<_>>(), [MAX, MAX, 1 << 20]);
        assert!(chunks(&[], 1).is_empty());
    }
}
