//! Listings: what a copy wrote, path by path, kept beside its record.
//!
//! The next run of the same copy links files that have not changed from the earlier layer, and a cache miss is explained by
//! the paths that differ.

use super::entry::Selection;

/// The hashes of everything a copy took, sorted by the path it was found under.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listing {
    entries: Vec<(Vec<u8>, [u8; 32])>,
}

impl Listing {
    /// Lists selections.
    #[must_use]
    pub fn of<'a>(selections: impl IntoIterator<Item = &'a Selection>) -> Self {
        let matches = selections.into_iter().flat_map(|selection| &selection.matches);
        let entries =
            matches.flat_map(|found| found.entries().map(|entry| (found.path_below(&entry.path), entry.hash)));
        let mut entries: Vec<_> = entries.collect();
        entries.sort();
        entries.dedup_by(|a, b| a.0 == b.0);
        Self { entries }
    }

    /// Returns the hash of what was found under a path.
    #[must_use]
    pub fn get(&self, path: &[u8]) -> Option<[u8; 32]> {
        let at = self.entries.binary_search_by(|(known, _)| known.as_slice().cmp(path)).ok()?;
        Some(self.entries[at].1)
    }

    /// Writes the listing down; neighbours share the beginnings of their paths.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut plain = Vec::new();
        let mut previous: &[u8] = &[];
        for (path, hash) in &self.entries {
            // Neighbours share most of their path.
            let shared = path.iter().zip(previous).take_while(|(a, b)| a == b).count().min(usize::from(u16::MAX));
            let rest = &path[shared..];
            for length in [shared, rest.len()] {
                plain.extend_from_slice(&u16::try_from(length).unwrap_or(u16::MAX).to_le_bytes());
            }
            plain.extend_from_slice(&rest[..rest.len().min(usize::from(u16::MAX))]);
            plain.extend_from_slice(hash);
            previous = path;
        }
        plain
    }

    /// Reads what [`Listing::encode`] wrote; `None` when it is malformed.
    #[must_use]
    pub fn decode(mut plain: &[u8]) -> Option<Self> {
        let mut entries: Vec<(Vec<u8>, [u8; 32])> = Vec::new();
        while !plain.is_empty() {
            let (lengths, rest) = plain.split_at_checked(4)?;
            let length = |at: usize| usize::from(u16::from_le_bytes([lengths[at], lengths[at + 1]]));
            let (own, rest) = rest.split_at_checked(length(2))?;
            let (hash, rest) = rest.split_at_checked(32)?;
            let shared = entries.last().map_or(Some(&[][..]), |(path, _)| path.get(..length(0)))?;
            let path = [shared, own].concat();
            entries.push((path, hash.try_into().ok()?));
            plain = rest;
        }
        Some(Self { entries })
    }

    /// Says which paths differ from an earlier listing: at most three by name, then how many more.
    #[must_use]
    pub fn explain(&self, earlier: &Self) -> String {
        let changed = self.entries.iter().filter_map(|(path, hash)| match earlier.get(path) {
            None => Some((path, "is new")),
            Some(other) if other != *hash => Some((path, "changed")),
            Some(_) => None,
        });
        let gone =
            earlier.entries.iter().filter(|(path, _)| self.get(path).is_none()).map(|(path, _)| (path, "is gone"));
        let all: Vec<_> = changed.chain(gone).collect();
        let named = all.iter().take(3).map(|(path, what)| format!("{} {what}", crate::store::tree::display(path)));
        let mut words: Vec<String> = named.collect();
        if all.len() > 3 {
            words.push(format!("and {} more", all.len() - 3));
        }
        words.join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listing(entries: &[(&str, u8)]) -> Listing {
        Listing { entries: entries.iter().map(|(path, n)| (path.as_bytes().to_vec(), [*n; 32])).collect() }
    }

    #[test]
    fn a_listing_survives_writing_and_reading() {
        let list = listing(&[("src", 1), ("src/a.rs", 2), ("src/b.rs", 3), ("x", 4)]);
        assert_eq!(Listing::decode(&list.encode()), Some(list.clone()));
        assert_eq!(Listing::decode(&[]), Some(Listing::default()));
        let mut torn = list.encode();
        torn.pop();
        assert_eq!(Listing::decode(&torn), None);
        assert_eq!(Listing::decode(&[9, 0, 0, 0]), None, "nothing can be shared with nothing");
    }

    #[test]
    fn differences_are_named() {
        let before = listing(&[("a", 1), ("b", 2), ("old", 3)]);
        assert_eq!(listing(&[("a", 1), ("b", 9), ("old", 3)]).explain(&before), "b changed");
        assert_eq!(listing(&[("a", 1), ("b", 2), ("c", 3)]).explain(&before), "c is new, old is gone");
        let many = listing(&[("1", 1), ("2", 1), ("3", 1), ("4", 1)]);
        assert_eq!(many.explain(&before), "1 is new, 2 is new, 3 is new, and 4 more");
    }
}
