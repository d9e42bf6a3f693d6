//! BuildKit's cache configuration (`application/vnd.buildkit.cacheconfig.v0`): the records of a cache, and the layers that are
//! their results. Read and written as BuildKit 0.12 to 0.32 do; what they mean for Kiln is told in [`super`].
//!
//! What is read may come from anybody: positions are checked and cycles are refused before anything is made of it.

use kiln_graph::Digest;
use serde::{Deserialize, Serialize};

use super::mounts::MountEntry;
use crate::error::{Error, Result, ResultExt as _};

/// The media type of the configuration.
pub(super) const MEDIA_TYPE: &str = "application/vnd.buildkit.cacheconfig.v0";

/// The largest configuration that is read, in bytes.
pub(super) const MAX_BYTES: u64 = 32 << 20;

/// The longest chain of layers: more than kernels can stack.
const MAX_DEPTH: usize = 1024;

/// A configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct CacheConfig {
    #[serde(default, deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub(super) layers: Vec<CacheLayer>,
    #[serde(default, deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub(super) records: Vec<CacheRecord>,
    /// Cache mounts; a field of our own.
    #[serde(default, rename = "kiln.mounts", skip_serializing_if = "Vec::is_empty")]
    pub(super) mounts: Vec<MountEntry>,
}

/// A layer on another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct CacheLayer {
    /// Its compressed form.
    pub(super) blob: Digest,
    /// The position of the one below; -1 for none.
    #[serde(default, skip_serializing_if = "is_default")]
    pub(super) parent: i64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) annotations: Option<LayerAnnotations>,
}

/// What is known of a layer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct LayerAnnotations {
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(super) media_type: String,
    #[serde(default, rename = "diffID", skip_serializing_if = "Option::is_none")]
    pub(super) diff_id: Option<Digest>,
    #[serde(default, skip_serializing_if = "is_default")]
    pub(super) size: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) created_at: Option<String>,
}

/// A key, what it follows from, and its results.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct CacheRecord {
    #[serde(default, rename = "layers", deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub(super) results: Vec<CacheResult>,
    #[serde(default, rename = "chains", deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub(super) chains: Vec<ChainedResult>,
    #[serde(default)]
    pub(super) digest: String,
    /// For each input, what it may be.
    #[serde(default, deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub(super) inputs: Vec<Vec<CacheInput>>,
}

/// A result: a layer with those below it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct CacheResult {
    pub(super) layer: i64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) created_at: Option<String>,
}

/// A result: layers, the lowest first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ChainedResult {
    #[serde(default, deserialize_with = "nullable")]
    pub(super) layers: Vec<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) created_at: Option<String>,
}

/// What an input may be: some paths of a record's result, or all of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct CacheInput {
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(super) selector: String,
    pub(super) link: i64,
}

fn nullable<'de, D: serde::Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Vec<T>, D::Error> {
    Ok(Option::<Vec<T>>::deserialize(deserializer)?.unwrap_or_default())
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

impl CacheConfig {
    /// Reads a configuration.
    ///
    /// # Errors
    /// `InvalidArgument` when it is malformed, leads to what is not there, or in a circle.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self> {
        let config: Self = serde_json::from_slice(bytes).context(|| "read the cache's configuration")?;
        config.check()?;
        Ok(config)
    }

    /// Makes sure that all positions are there, and that nothing leads in a circle.
    ///
    /// # Errors
    /// `InvalidArgument` naming the first that does not.
    pub(super) fn check(&self) -> Result<()> {
        self.check_layers()?;
        let layer = |number: i64| position(number, self.layers.len(), "layer");
        for record in &self.records {
            record.results.iter().try_for_each(|result| layer(result.layer).map(drop))?;
            record.chains.iter().flat_map(|chain| &chain.layers).try_for_each(|at| layer(*at).map(drop))?;
        }
        self.check_links()
    }

    /// Each layer is looked at once, however many lie on it.
    fn check_layers(&self) -> Result<()> {
        let mut depths = vec![0_usize; self.layers.len()];
        for top in 0..self.layers.len() {
            let (mut path, mut at, mut below) = (Vec::new(), top, 0);
            while depths[at] == 0 {
                path.push(at);
                if path.len() > MAX_DEPTH {
                    return Err(too_deep());
                }
                match self.layers[at].parent {
                    -1 => break,
                    parent => at = position(parent, self.layers.len(), "layer")?,
                }
                below = depths[at];
            }
            if below + path.len() > MAX_DEPTH {
                return Err(too_deep());
            }
            for (number, layer) in path.iter().rev().enumerate() {
                depths[*layer] = below + number + 1;
            }
        }
        Ok(())
    }

    /// Returns the positions of a layer and those below it, the lowest first.
    pub(super) fn chain_of(&self, top: usize) -> Result<Vec<usize>> {
        let mut chain = vec![top];
        let mut at = top;
        while self.layers[at].parent != -1 {
            at = position(self.layers[at].parent, self.layers.len(), "layer")?;
            if chain.len() == MAX_DEPTH {
                return Err(too_deep());
            }
            chain.push(at);
        }
        chain.reverse();
        Ok(chain)
    }

    /// Takes away, again and again, the records that follow from none that is left; a circle stays.
    fn check_links(&self) -> Result<()> {
        let mut users: Vec<Vec<usize>> = vec![Vec::new(); self.records.len()];
        let mut missing = vec![0_usize; self.records.len()];
        for (at, record) in self.records.iter().enumerate() {
            for input in record.inputs.iter().flatten() {
                users[position(input.link, self.records.len(), "record")?].push(at);
                missing[at] += 1;
            }
        }
        let mut free: Vec<usize> = (0..missing.len()).filter(|at| missing[*at] == 0).collect();
        let mut left = self.records.len();
        while let Some(at) = free.pop() {
            left -= 1;
            for user in &users[at] {
                missing[*user] -= 1;
                if missing[*user] == 0 {
                    free.push(*user);
                }
            }
        }
        if left > 0 { Err(Error::invalid("the cache's records lead in a circle")) } else { Ok(()) }
    }
}

fn too_deep() -> Error {
    Error::invalid("the cache's layers lie on one another in a circle, or too deep")
}

fn position(number: i64, count: usize, what: &str) -> Result<usize> {
    let at = usize::try_from(number).ok().filter(|at| *at < count);
    at.ok_or_else(|| Error::invalid(format!("the cache names {what} {number}, and has {count}")))
}

/// Writes a time, in nanoseconds since 1970.
pub(super) fn time(ns: i64) -> Option<String> {
    Some(jiff::Timestamp::from_nanosecond(ns.into()).ok()?.to_string())
}

/// Reads a time, in nanoseconds since 1970; Go writes the year 1 for none.
pub(super) fn ns_of(time: Option<&str>) -> Option<i64> {
    let time: jiff::Timestamp = time?.parse().ok()?;
    i64::try_from(time.as_nanosecond()).ok().filter(|ns| *ns >= 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As BuildKit 0.12 writes it.
    const OF_BUILDKIT: &str = r#"{"layers":[{"blob":"sha256:4ea663ab8f56c0c8b9ca7d8a3a1b7d0b3d1c4e6c4e1bb3b6d7e1f2f1d2c3b4a5","parent":-1,
        "annotations":{"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip","diffID":"sha256:5ea663ab8f56c0c8b9ca7d8a3a1b7d0b3d1c4e6c4e1bb3b6d7e1f2f1d2c3b4a5",
        "size":123,"createdAt":"2024-01-02T03:04:05.000000006Z"}},
        {"blob":"sha256:6ea663ab8f56c0c8b9ca7d8a3a1b7d0b3d1c4e6c4e1bb3b6d7e1f2f1d2c3b4a5","annotations":{"createdAt":"0001-01-01T00:00:00Z"}}],
        "records":[{"digest":"sha256:a"},{"layers":[{"layer":1,"createdAt":"2024-01-02T03:04:05Z"}],"digest":"sha256:b",
        "inputs":[[{"selector":"sha256:s","link":0}]]},{"digest":"random:x","inputs":null}]}"#;

    #[test]
    fn what_buildkit_writes_is_read_and_written() {
        let config = CacheConfig::parse(OF_BUILDKIT.as_bytes()).unwrap();
        assert_eq!(config.chain_of(1).unwrap(), [0, 1], "a parent that is left out is the first layer");
        assert_eq!(config.records[1].results[0].layer, 1);
        let known = |at: usize| ns_of(config.layers[at].annotations.as_ref().unwrap().created_at.as_deref());
        assert_eq!((known(0), known(1)), (Some(1_704_164_645_000_000_006), None));
        assert_eq!(time(1_704_164_645_000_000_006).as_deref(), Some("2024-01-02T03:04:05.000000006Z"));
        let written = serde_json::to_vec(&config).unwrap();
        assert_eq!(CacheConfig::parse(&written).unwrap(), config);
    }

    /// What BuildKit 0.12.5 (dockerd 26.1.5) wrote of `FROM scratch AS a; COPY a /a; FROM scratch; COPY --from=a /a /b`.
    #[test]
    fn a_cache_that_buildkit_wrote_is_read() {
        let written = r#"{"layers":[{"blob":"sha256:0968a590ea302701d7c0f9280db1da3e0ff98251eb34d7dd1f1ed173af2bcb9e","parent":-1},{"blob":"sha256:9d2729726588ec848b35137f52c7d2bbebd3f0c989cd62edce5aab01a8955ed1","parent":-1}],"records":[{"layers":[{"layer":1,"createdAt":"2026-11-26T15:01:25.163489577Z"}],"digest":"sha256:26da9ad77b346ebfc238bc618ec8a219818ef86e18984907fab158a75df1954a","inputs":[[{"link":1}]]},{"digest":"sha256:c1966ecfe2047db5c3cc319ead42fe8ce32ea73b19cd0f68c2c9c90c724fa886"},{"layers":[{"layer":0,"createdAt":"2026-11-26T15:01:25.187344486Z"}],"digest":"sha256:f5d811932e801f85871423c264026d726bcb1f5990a0a4b026b6036b10fdba5f","inputs":[[{"selector":"sha256:6a50dc8584134c7de537c0052ff6d236bf874355e050c90523e0c5ff2a543a28","link":0},{"link":1}]]}]}"#;
        let config = CacheConfig::parse(written.as_bytes()).unwrap();
        assert_eq!((config.layers.len(), config.records.len(), config.records[2].inputs[0].len()), (2, 3, 2));
        assert_eq!(serde_json::to_string(&config).unwrap(), written, "and written as it was");
    }

    #[test]
    fn what_leads_nowhere_or_in_a_circle_is_refused() {
        let layer = format!(r#"{{"blob":"{}","parent":PARENT}}"#, Digest::of(b"x"));
        let layers = |parents: &[i64]| {
            let all: Vec<String> = parents.iter().map(|at| layer.replace("PARENT", &at.to_string())).collect();
            format!(r#"{{"layers":[{}]}}"#, all.join(","))
        };
        for (config, words) in [
            (layers(&[1]), "names layer 1, and has 1"),
            (layers(&[-2]), "names layer -2"),
            (layers(&[1, 0]), "in a circle"),
            (layers(&[0]), "in a circle"),
            (r#"{"records":[{"digest":"a","layers":[{"layer":0}]}]}"#.to_owned(), "names layer 0, and has 0"),
            (r#"{"records":[{"digest":"a","chains":[{"layers":[7]}]}]}"#.to_owned(), "names layer 7"),
            (r#"{"records":[{"digest":"a","inputs":[[{"link":1}]]}]}"#.to_owned(), "names record 1, and has 1"),
            (r#"{"records":[{"digest":"a","inputs":[[{"link":0}]]}]}"#.to_owned(), "in a circle"),
            (
                r#"{"records":[{"inputs":[[{"link":1}]]},{"inputs":[[{"link":2}]]},{"inputs":[[],[{"link":0}]]}]}"#
                    .to_owned(),
                "in a circle",
            ),
            (r#"{"layers":[{"blob":"nonsense","parent":-1}]}"#.to_owned(), "read the cache's configuration"),
            ("7".to_owned(), "read the cache's configuration"),
        ] {
            let error = CacheConfig::parse(config.as_bytes()).unwrap_err();
            assert!(error.to_string().contains(words), "{config}: {error}");
        }
        assert!(CacheConfig::parse(layers(&[-1, 0, 1]).as_bytes()).is_ok());
    }
}
