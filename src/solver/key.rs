//! Cache keys: what identifies a step's result, in parts that can be compared when a key is not found.
//!
//! A key is made of the operation's own values, the platform, and for each input the identity of its *content*: the chain ID
//! of a root file system, the content hash of selected paths. Every part is length-framed and typed, so that no two lists of
//! parts give the same bytes. Times, secrets, proxies and resource limits are no parts.

use kiln_graph::op::Part;
use kiln_graph::{Digest, Platform, Vertex};

/// Identifies a step's result.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key([u8; 32]);

impl Key {
    /// Returns the bytes, as records store them.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Takes bytes from a record.
    #[must_use]
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&blake3::Hash::from_bytes(self.0).to_hex()[..12])
    }
}

/// The identity of one input of a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum InputIdentity {
    /// A whole file system; `None` is an empty one.
    Chain(Option<Digest>),
    /// Some paths of a file system or of a local directory.
    Content(ContentIdentity),
}

/// The content of some paths.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContentIdentity {
    /// What the paths hash to.
    pub hash: [u8; 32],
    /// Hashes of single entries, by path, for explanations; not part of the key (the hash covers them).
    pub entries: Vec<(String, [u8; 8])>,
}

impl Key {
    /// Returns the key of an output of an operation with all its inputs: that of [`Parts::of_operation`], with [`OUTPUT`] unless it
    /// is the first, and [`Parts::add_input`] for each input. The parts are not kept: nobody looks at them when a result is found.
    #[must_use]
    pub fn of(vertex: &Vertex, output: u32, inputs: &[InputIdentity]) -> Self {
        let mut framed = Framed::default();
        vertex.op.each_part(&mut |name, value| framed.add(name, value));
        framed.add(PLATFORM, &platform(&vertex.platform));
        if output > 0 {
            framed.add(OUTPUT, &output.to_string());
        }
        for (number, identity) in inputs.iter().enumerate() {
            let (name, value) = identity.part(number);
            framed.add(&name, &value);
        }
        framed.key()
    }
}

impl InputIdentity {
    /// Returns the part of a key that the input with a number is.
    fn part(&self, number: usize) -> (String, String) {
        match self {
            Self::Chain(chain) => {
                let value = chain.map_or_else(|| "empty".to_owned(), |digest| digest.to_string());
                (format!("file system {number}"), value)
            }
            Self::Content(content) => {
                (format!("content {number}"), blake3::Hash::from_bytes(content.hash).to_hex().to_string())
            }
        }
    }
}

/// Parts as they are hashed.
#[derive(Default)]
struct Framed(blake3::Hasher);

impl Framed {
    fn add(&mut self, name: &str, value: &str) {
        for text in [name, value] {
            self.0.update(&(text.len() as u64).to_le_bytes());
            self.0.update(text.as_bytes());
        }
    }

    fn key(&self) -> Key {
        Key(*self.0.finalize().as_bytes())
    }
}

/// The part that says what an operation is for.
const PLATFORM: &str = "platform";

/// The part that says which output of an operation is meant, unless it is the first.
pub const OUTPUT: &str = "output";

/// A key under construction: its parts in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Parts(Vec<Part>);

impl Parts {
    /// Returns the parts of an operation on a platform, without inputs.
    #[must_use]
    pub fn of_operation(vertex: &Vertex) -> Self {
        let mut parts = Self(vertex.op.parts());
        parts.add(PLATFORM, platform(&vertex.platform));
        parts
    }

    /// Adds the identity of the next input.
    pub fn add_input(&mut self, number: usize, identity: &InputIdentity) {
        let (name, value) = identity.part(number);
        self.add(name, value);
    }

    /// Adds a named value.
    pub fn add(&mut self, name: impl Into<String>, value: impl Into<String>) {
        self.0.push(Part { name: name.into(), value: value.into() });
    }

    /// Hashes the parts.
    #[must_use]
    pub fn key(&self) -> Key {
        let mut framed = Framed::default();
        self.0.iter().for_each(|part| framed.add(&part.name, &part.value));
        framed.key()
    }

    /// Whether the operation sets times of files.
    #[must_use]
    pub fn sets_times(&self) -> bool {
        self.0.iter().any(|part| part.name == "time" || part.name.starts_with("time of "))
    }

    /// Returns what is stored beside the key: the parts with long values shortened to their hashes, and the entries of
    /// content inputs.
    #[must_use]
    pub fn stored(&self, inputs: &[InputIdentity]) -> Vec<Part> {
        let shorten = |Part { name, value }: &Part| Part { name: name.clone(), value: shorten(value) };
        let entries = inputs.iter().enumerate().flat_map(|(number, input)| {
            match input {
                InputIdentity::Content(content) => content.entries.as_slice(),
                InputIdentity::Chain(_) => &[],
            }
            .iter()
            .map(move |(path, hash)| Part {
                name: format!("{ENTRY} {number} {path}"),
                value: format!("{:016x}", u64::from_be_bytes(*hash)),
            })
        });
        self.0.iter().map(shorten).chain(entries).collect()
    }
}

const ENTRY: &str = "entry";

/// Values longer than this are stored as their hash. Build arguments can hold what should not lie around twice.
const LONGEST: usize = 64;

fn shorten(value: &str) -> String {
    if value.len() <= LONGEST {
        return value.to_owned();
    }
    format!("blake3:{}", blake3::hash(value.as_bytes()).to_hex())
}

fn platform(platform: &Platform) -> String {
    format!("{platform} {} {}", platform.os_version, platform.os_features.join(","))
}

/// Says in words for people how a step differs from its nearest earlier run; both lists are as [`Parts::stored`] makes them.
/// At most three differences are named.
#[must_use]
pub fn explain(earlier: &[Part], now: &[Part]) -> String {
    let has_entries = |number: &str| now.iter().any(|part| part.name.starts_with(&format!("{ENTRY} {number} ")));
    let mut words = Vec::new();
    let mut note = |text: String| {
        if !words.contains(&text) {
            words.push(text);
        }
    };
    for part in now {
        let same_name: Vec<&Part> = earlier.iter().filter(|other| other.name == part.name).collect();
        if same_name.iter().any(|other| other.value == part.value) {
            continue;
        }
        let name = describe(&part.name);
        match part.name.split_once(' ') {
            // The entries say it better.
            Some(("content", number)) if has_entries(number) => {}
            Some(("file", _)) if part.name.starts_with("file system") => {
                note("the file system below it changed".to_owned());
            }
            _ if same_name.is_empty() => note(format!("{name} is new")),
            _ => note(format!("{name} changed")),
        }
    }
    for part in earlier {
        if !now.iter().any(|other| other.name == part.name) {
            note(format!("{} is gone", describe(&part.name)));
        }
    }
    let more = words.len().saturating_sub(3);
    words.truncate(3);
    let list = words.join(", ");
    if more > 0 { format!("{list} and {more} more") } else { list }
}

fn describe(name: &str) -> String {
    match name.strip_prefix(ENTRY).and_then(|rest| rest.trim_start().split_once(' ')) {
        Some((_, path)) => path.to_owned(),
        None => name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(list: &[(&str, &str)]) -> Parts {
        let mut parts = Parts::default();
        for (name, value) in list {
            parts.add(*name, *value);
        }
        parts
    }

    fn content(entries: &[(&str, u8)]) -> InputIdentity {
        let mut hash = [0; 32];
        hash[0] = entries.iter().fold(0_u8, |sum, (_, n)| sum.wrapping_mul(31).wrapping_add(*n));
        InputIdentity::Content(ContentIdentity {
            hash,
            entries: entries.iter().map(|(path, n)| ((*path).to_owned(), [*n; 8])).collect(),
        })
    }

    fn stored(list: &[(&str, &str)], inputs: &[InputIdentity]) -> Vec<Part> {
        let mut parts = parts(list);
        for (number, input) in inputs.iter().enumerate() {
            parts.add_input(number, input);
        }
        parts.stored(inputs)
    }

    #[test]
    fn parts_cannot_run_into_each_other() {
        assert_ne!(parts(&[("a", "bc")]).key(), parts(&[("ab", "c")]).key());
        assert_ne!(parts(&[("a", ""), ("b", "")]).key(), parts(&[("a", "b"), ("", "")]).key());
        assert_eq!(parts(&[("a", "b")]).key(), parts(&[("a", "b")]).key());
    }

    #[test]
    fn a_miss_is_explained_by_what_changed() {
        let before =
            stored(&[("build argument GIT_SHA", "1"), ("command", "make")], &[content(&[("app.py", 1), ("b", 2)])]);
        let after =
            stored(&[("build argument GIT_SHA", "2"), ("command", "make")], &[content(&[("app.py", 3), ("c", 2)])]);
        assert_eq!(explain(&before, &after), "build argument GIT_SHA changed, app.py changed, c is new and 1 more");
        let chain = |n: u8| InputIdentity::Chain(Some(Digest::of(&[n])));
        assert_eq!(explain(&stored(&[], &[chain(1)]), &stored(&[], &[chain(2)])), "the file system below it changed");
        assert_eq!(explain(&stored(&[], &[content(&[])]), &stored(&[], &[content(&[("x", 1)])])), "x is new");
    }

    #[test]
    fn long_values_are_stored_as_hashes_only() {
        let secret = "s".repeat(100);
        let stored = stored(&[("build argument TOKEN", &secret)], &[]);
        assert!(stored[0].value.starts_with("blake3:"));
    }
}
