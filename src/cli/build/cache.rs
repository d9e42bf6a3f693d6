//! `--cache-from` and `--cache-to`: caches of other machines, as the engine is told them, and the directories of this machine
//! that are among them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use kiln_graph::oci::{Descriptor, Index, Manifest, annotation, media_type};
use kiln_graph::{Digest, Reference};

use super::options::BuildArgs;
use super::result;
use crate::cli::value;
use crate::client::ContentDir;
use crate::config::{Aws, Environment};
use crate::error::{Error, Result, ResultExt as _};
use crate::types::build::{CACHE_MANIFEST, CacheOptions, CacheOptionsEntry, SolveResponse};

/// What the names of content stores begin with that hold caches.
const STORE: &str = "local:";

/// The name of a cache's manifest in its directory, when nobody chose another.
const TAG: &str = "latest";

/// The caches of a build.
#[derive(Debug, Default)]
pub(super) struct Caches {
    /// What the engine is told; `None` for nothing.
    pub(super) options: Option<CacheOptions>,
    /// The directories it reads and writes, by the names it knows them by.
    pub(super) stores: BTreeMap<String, ContentDir>,
    /// What the user is to know.
    pub(super) warnings: Vec<String>,
    written: Vec<Written>,
}

/// A directory that is written.
#[derive(Debug)]
struct Written {
    /// The number of the export.
    number: usize,
    dir: PathBuf,
    /// The name of the manifest.
    tag: String,
    /// Whether what no manifest needs is removed.
    reset: bool,
}

/// A cache as an option names it.
type Spec = (String, BTreeMap<String, String>);

impl Caches {
    /// Reads the options. Blocking.
    ///
    /// # Errors
    /// `InvalidArgument` naming the option that is malformed.
    pub(super) fn read(args: &BuildArgs) -> Result<Self> {
        let mut caches = Self::default();
        let (mut exports, mut imports) = (Vec::new(), Vec::new());
        for text in &args.cache_to {
            let (kind, attrs) = parse(text).context(|| format!("--cache-to {text}"))?;
            if kind == "local" {
                caches.export_to(exports.len(), &attrs);
            }
            exports.push(entry((kind, attrs)));
        }
        for text in &args.cache_from {
            let context = || format!("--cache-from {text}");
            let (kind, mut attrs) = parse(text).context(context)?;
            if kind != "local" || caches.import_from(&mut attrs).context(context)? {
                imports.push(entry((kind, attrs)));
            }
        }
        if !exports.is_empty() || !imports.is_empty() {
            caches.options = Some(CacheOptions { exports, imports, ..CacheOptions::default() });
        }
        Ok(caches)
    }

    fn export_to(&mut self, number: usize, attrs: &BTreeMap<String, String>) {
        // What is missing is the engine's to refuse.
        let Some(dest) = attrs.get("dest").filter(|dest| !dest.is_empty()) else { return };
        self.stores.insert(format!("{STORE}{dest}"), ContentDir { path: dest.into(), writable: true });
        let tag = attrs.get("tag").filter(|tag| !tag.is_empty()).map_or(TAG, String::as_str);
        // What is no switch is the engine's to refuse, too.
        let reset = attrs.get("reset").is_some_and(|value| matches!(value.as_str(), "true" | "1"));
        self.written.push(Written { number, dir: dest.into(), tag: tag.to_owned(), reset });
    }

    /// Says whether there is a cache; finds the digest of its manifest.
    fn import_from(&mut self, attrs: &mut BTreeMap<String, String>) -> Result<bool> {
        let Some(src) = attrs.get("src").filter(|src| !src.is_empty()).cloned() else { return Ok(true) };
        if attrs.get("digest").is_none_or(String::is_empty) {
            let tag = attrs.get("tag").filter(|tag| !tag.is_empty()).map_or(TAG, String::as_str);
            let index = match read_index(Path::new(&src))? {
                Some(index) => index,
                None => {
                    self.warnings.push(format!("there is no cache in {src} yet: it has no index.json"));
                    return Ok(false);
                }
            };
            let found = index.manifests.iter().find(|entry| is_named(entry, tag));
            let found = found.ok_or_else(|| Error::not_found(format!("{src} has no cache {tag}")))?;
            attrs.insert("digest".to_owned(), found.digest.to_string());
        }
        self.stores
            .entry(format!("{STORE}{src}"))
            .or_insert_with(|| ContentDir { path: src.clone().into(), writable: false });
        Ok(true)
    }

    /// Gives the manifests of written caches their names, and removes what is not needed any more. Blocking.
    ///
    /// # Errors
    /// When an index or a manifest cannot be read, or something cannot be written or removed.
    pub(super) fn name(&self, response: &SolveResponse) -> Result<()> {
        let mut done = Vec::new();
        for written in &self.written {
            let Written { number, dir, tag, .. } = written;
            let own = response.exporter_response.get(&format!("{CACHE_MANIFEST}.{number}"));
            // Other engines tell of one only. One that may fail is told of when it did not.
            let Some(manifest) = own.or_else(|| response.exporter_response.get(CACHE_MANIFEST)) else { continue };
            let manifest: Descriptor =
                serde_json::from_str(manifest).context(|| "read what the engine says of the cache")?;
            name(dir, manifest, tag)?;
            done.push(written);
        }
        // Several may share a directory.
        done.into_iter().filter(|written| written.reset).try_for_each(|written| remove_unneeded(&written.dir))
    }
}

/// Removes the blobs of a directory that no manifest in its index needs.
fn remove_unneeded(dir: &Path) -> Result<()> {
    let context = || format!("remove what {} does not need any more", dir.display());
    let index = read_index(dir)?.ok_or_else(|| Error::not_found("there is no index.json")).context(context)?;
    let (mut needed, mut open) = (BTreeSet::new(), index.manifests);
    while let Some(blob) = open.pop() {
        let kind = blob.media_type.as_str();
        if needed.insert(blob.digest) && (media_type::is_index(kind) || media_type::is_manifest(kind)) {
            let path = dir.join("blobs").join(blob.digest.to_string().replacen(':', "/", 1));
            let bytes = std::fs::read(&path).context(|| format!("read {}", path.display())).context(context)?;
            if media_type::is_index(kind) {
                let index: Index = serde_json::from_slice(&bytes).context(|| format!("read {}", path.display()))?;
                open.extend(index.manifests);
            } else {
                let manifest: Manifest =
                    serde_json::from_slice(&bytes).context(|| format!("read {}", path.display()))?;
                open.extend(manifest.layers.into_iter().chain([manifest.config]));
            }
        }
    }
    for entry in std::fs::read_dir(dir.join("blobs/sha256")).context(context)? {
        let entry = entry.context(context)?;
        // Whatever else lies there is nobody's blob.
        let digest = entry.file_name().to_str().and_then(|hex| format!("sha256:{hex}").parse::<Digest>().ok());
        if digest.is_some_and(|digest| !needed.contains(&digest)) {
            std::fs::remove_file(entry.path()).context(context)?;
        }
    }
    Ok(())
}

fn is_named(entry: &Descriptor, tag: &str) -> bool {
    entry.annotations.get(annotation::REF_NAME).is_some_and(|name| name == tag)
}

/// Reads the index of a directory; `None` when it has none.
fn read_index(dir: &Path) -> Result<Option<Index>> {
    let path = dir.join("index.json");
    match std::fs::read(&path) {
        Ok(bytes) => serde_json::from_slice(&bytes).context(|| format!("read {}", path.display())).map(Some),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).context(|| format!("read {}", path.display())),
    }
}

/// Writes a manifest into the index of a directory, in the place of what had its name.
fn name(dir: &Path, mut manifest: Descriptor, tag: &str) -> Result<()> {
    let empty = || Index {
        schema_version: 2,
        media_type: Some(media_type::OCI_INDEX.to_owned()),
        artifact_type: None,
        manifests: Vec::new(),
        subject: None,
        annotations: BTreeMap::new(),
    };
    let mut index = read_index(dir)?.unwrap_or_else(empty);
    manifest.annotations.insert(annotation::REF_NAME.to_owned(), tag.to_owned());
    index.manifests.retain(|entry| !is_named(entry, tag));
    index.manifests.push(manifest);
    result::write(&dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)?;
    result::write(&dir.join("index.json"), &serde_json::to_string(&index)?)
}

fn entry((kind, attrs): Spec) -> CacheOptionsEntry {
    CacheOptionsEntry { r#type: kind, attrs: attrs.into_iter().collect() }
}

/// Reads `type=KIND,KEY=VALUE,..`, or the name of an image, which stands for a cache at its registry.
fn parse(text: &str) -> Result<Spec> {
    if !text.contains('=') {
        text.parse::<Reference>()?;
        return Ok(("registry".to_owned(), BTreeMap::from([("ref".to_owned(), text.to_owned())])));
    }
    let mut attrs = BTreeMap::new();
    for (key, text) in value::csv(text)? {
        let value = text.ok_or_else(|| Error::invalid(format!("expected type=KIND[,KEY=VALUE,..], not {key}")))?;
        attrs.insert(key.to_lowercase(), value);
    }
    let kind = attrs.remove("type").filter(|kind| !kind.is_empty());
    let kind = kind.ok_or_else(|| Error::invalid("the type is missing: type=registry,.."))?;
    complete(&kind, &mut attrs, |name| std::env::var(name).ok());
    if kind == "s3" {
        complete_s3(&mut attrs, &Aws::of(&Environment::of_process()));
    }
    Ok((kind, attrs))
}

/// Adds what the environment says of a service, as buildx does: the engine has another.
fn complete(kind: &str, attrs: &mut BTreeMap<String, String>, variable: impl Fn(&str) -> Option<String>) {
    let known: &[(&str, &str)] = match kind {
        "gha" => &[("url_v2", "ACTIONS_RESULTS_URL"), ("url", "ACTIONS_CACHE_URL"), ("token", "ACTIONS_RUNTIME_TOKEN")],
        "azblob" => &[
            ("account_url", "BUILDKIT_AZURE_STORAGE_ACCOUNT_URL"),
            ("account_name", "BUILDKIT_AZURE_STORAGE_ACCOUNT_NAME"),
            ("container", "BUILDKIT_AZURE_STORAGE_CONTAINER"),
            ("prefix", "BUILDKIT_AZURE_STORAGE_PREFIX"),
        ],
        _ => &[],
    };
    for (key, name) in known {
        if !attrs.contains_key(*key) {
            let value = variable(name).filter(|value| !value.is_empty());
            attrs.extend(value.map(|value| ((*key).to_owned(), value)));
        }
    }
}

/// Adds what AWS's own tools would find. What they would find in another way is left to the engine, which says so.
fn complete_s3(attrs: &mut BTreeMap<String, String>, aws: &Aws) {
    if let (false, Ok(Some(region))) = (attrs.contains_key("region"), aws.region()) {
        attrs.insert("region".to_owned(), region);
    }
    if let (false, Ok(Some(found))) = (attrs.contains_key("access_key_id"), aws.credentials()) {
        attrs.insert("access_key_id".to_owned(), found.access_key);
        attrs.insert("secret_access_key".to_owned(), found.secret_key.expose().to_owned());
        attrs.extend(found.session_token.map(|token| ("session_token".to_owned(), token.expose().to_owned())));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cache_is_a_name_or_a_list_of_values() {
        let attrs = |list: &[(&str, &str)]| {
            list.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect::<BTreeMap<_, _>>()
        };
        for (text, kind, expected) in [
            ("user/app:cache", "registry", attrs(&[("ref", "user/app:cache")])),
            ("localhost:5000/app", "registry", attrs(&[("ref", "localhost:5000/app")])),
            ("type=inline", "inline", attrs(&[])),
            ("type=registry,ref=a,Mode=max", "registry", attrs(&[("ref", "a"), ("mode", "max")])),
            ("\"dest=a,b\",type=local", "local", attrs(&[("dest", "a,b")])),
        ] {
            assert_eq!(parse(text).unwrap(), (kind.to_owned(), expected), "{text}");
        }
        for (text, words) in [("ref=x", "type is missing"), ("type=registry,x", "not x"), ("UPPER", "UPPER")] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
    }

    #[test]
    fn credentials_of_services_are_found_in_the_environment() {
        let variable = |name: &str| Some(format!("${name}"));
        let completed = |kind: &str, own: &[(&str, &str)]| {
            let mut attrs = own.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
            complete(kind, &mut attrs, variable);
            attrs
        };
        assert_eq!(completed("gha", &[("token", "own")])["token"], "own");
        assert_eq!(completed("gha", &[])["url_v2"], "$ACTIONS_RESULTS_URL");
        assert_eq!(completed("azblob", &[])["container"], "$BUILDKIT_AZURE_STORAGE_CONTAINER");
        let variables = ["AWS_REGION", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"];
        let variables: Vec<(&str, &str)> = variables.iter().map(|name| (*name, *name)).collect();
        let aws = Aws::of(&Environment::of(crate::config::User::Root, &variables));
        let mut s3 = BTreeMap::new();
        complete_s3(&mut s3, &aws);
        assert_eq!((s3["region"].as_str(), s3["session_token"].as_str()), ("AWS_REGION", "AWS_SESSION_TOKEN"));
        let mut own = BTreeMap::from([("access_key_id".to_owned(), "a".to_owned())]);
        complete_s3(&mut own, &aws);
        assert!(!own.contains_key("session_token") && !own.contains_key("secret_access_key"));
        assert!(completed("registry", &[]).is_empty());
    }

    #[test]
    fn a_manifest_takes_the_place_of_what_had_its_name() {
        let dir = tempfile::tempdir().unwrap();
        let manifest = |text: &str| Descriptor::new(media_type::OCI_MANIFEST, Digest::of(text.as_bytes()), 1);
        assert!(read_index(dir.path()).unwrap().is_none());
        for (text, tag) in [("a", "latest"), ("b", "other"), ("c", "latest")] {
            name(dir.path(), manifest(text), tag).unwrap();
        }
        let index = read_index(dir.path()).unwrap().unwrap();
        let digest = |tag: &str| index.manifests.iter().find(|entry| is_named(entry, tag)).map(|entry| entry.digest);
        assert_eq!(index.manifests.len(), 2);
        assert_eq!((digest("latest"), digest("other")), (Some(manifest("c").digest), Some(manifest("b").digest)));
        let mut caches = Caches::default();
        let src = dir.path().display().to_string();
        let mut attrs = BTreeMap::from([("src".to_owned(), src.clone()), ("tag".to_owned(), "other".to_owned())]);
        assert!(caches.import_from(&mut attrs).unwrap());
        assert_eq!(attrs["digest"], manifest("b").digest.to_string());
        assert_eq!(caches.stores[&format!("local:{src}")], ContentDir { path: dir.path().into(), writable: false });
        let mut missing = BTreeMap::from([("src".to_owned(), format!("{src}/nothing"))]);
        assert!(!caches.import_from(&mut missing).unwrap() && caches.warnings.len() == 1);
    }
}
