//! What a request says of caches, read once: each attribute is asked for by name, and what is not known is refused.

use std::collections::BTreeMap;

use kiln_graph::{Digest, Reference};
use serde::Deserialize;

use super::azblob::AzureOptions;
use super::gha::GhaOptions;
use super::s3::S3Options;
use crate::error::{Error, Result};
use crate::image::Form;
use crate::solver::attrs::Attrs;
use crate::solver::export::{compression, estargz_level};
use crate::solver::request::CacheSpec;

/// The kinds of caches that can be written.
const EXPORTS: &[&str] = &["azblob", "gha", "inline", "local", "registry", "s3"];

/// Those that can be read.
const IMPORTS: &[&str] = &["azblob", "gha", "local", "registry", "s3"];

/// The attributes of a frontend that name caches.
pub(in crate::solver) const IMPORT_ATTRIBUTES: [&str; 2] = ["cache-imports", "cache-from"];

/// A cache in a frontend's attributes, as BuildKit's clients write it.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Entry {
    r#type: String,
    #[serde(default)]
    attrs: Option<BTreeMap<String, String>>,
}

/// Takes the caches that a frontend's attributes name out of them: what they say may be secret.
///
/// # Errors
/// `InvalidArgument` when they are malformed.
pub fn take_imports(attrs: &mut BTreeMap<String, String>) -> Result<Vec<CacheSpec>> {
    let specs = of_attributes(attrs)?;
    IMPORT_ATTRIBUTES.iter().for_each(|key| drop(attrs.remove(*key)));
    Ok(specs)
}

/// Reads the caches that a frontend's attributes name.
///
/// # Errors
/// `InvalidArgument` when they are malformed.
pub(in crate::solver) fn of_attributes(attrs: &BTreeMap<String, String>) -> Result<Vec<CacheSpec>> {
    let [imports, from] = IMPORT_ATTRIBUTES.map(|key| attrs.get(key).map_or("", String::as_str));
    let mut specs = Vec::new();
    if !matches!(imports, "" | "false") {
        let entries: Option<Vec<Entry>> =
            serde_json::from_str(imports).map_err(|error| Error::invalid(format!("cache-imports: {error}")))?;
        let entries = entries.unwrap_or_default().into_iter();
        specs.extend(entries.map(|entry| CacheSpec { kind: entry.r#type, attrs: entry.attrs.unwrap_or_default() }));
    }
    let names = from.split(',').map(str::trim).filter(|name| !matches!(*name, "" | "false" | "[]" | "null"));
    specs.extend(names.map(|name| CacheSpec {
        kind: "registry".to_owned(),
        attrs: BTreeMap::from([("ref".to_owned(), name.to_owned())]),
    }));
    Ok(specs)
}

/// Where a cache is written to, and how.
#[derive(Clone, Debug)]
pub(in crate::solver) struct CacheExport {
    pub(super) to: Destination,
    pub(super) mode: Mode,
    /// Whether the build is good even when this fails.
    pub(super) ignore_error: bool,
    pub(super) form: Form,
    /// The level at which layers are written in eStargz form.
    pub(super) estargz: Option<u32>,
    /// Whether the manifest is that of an image, and not an index.
    pub(super) image_manifest: bool,
    /// Whether the build's cache mounts are written, too.
    pub(super) mounts: bool,
}

/// Which results have their layers in a cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Mode {
    /// Those that are in the result of the build.
    #[default]
    Min,
    /// All.
    Max,
}

/// Where a cache is written to.
#[derive(Clone, Debug)]
pub(super) enum Destination {
    /// Into the image's configuration.
    Inline,
    /// Beside images. Whether the registry is taken as it is: with any certificate, or without TLS.
    Registry(Reference, bool),
    /// A directory of the client, by its name there.
    Local(String),
    /// An object store.
    S3(Box<S3Options>),
    /// The cache of GitHub Actions.
    Gha(GhaOptions),
    /// A container of Azure's Blob Storage.
    Azure(Box<AzureOptions>),
}

/// Where a cache is read from, and what of it.
#[derive(Clone, Debug)]
pub(in crate::solver) struct CacheImport {
    pub(super) from: Origin,
    /// Whether cache mounts are restored that are not here.
    pub(super) mounts: bool,
}

/// Where a cache is read from.
#[derive(Clone, Debug)]
pub(super) enum Origin {
    /// A repository: a cache, or an image that holds one. Whether the registry is taken as it is.
    Registry(Reference, bool),
    /// A directory of the client.
    Local {
        /// Its name there.
        src: String,
        /// The manifest of the cache.
        digest: Digest,
    },
    /// An object store.
    S3(Box<S3Options>),
    /// The cache of GitHub Actions.
    Gha(GhaOptions),
    /// A container of Azure's Blob Storage.
    Azure(Box<AzureOptions>),
}

impl Destination {
    /// What progress calls it.
    pub(super) const fn shown(&self) -> &'static str {
        match self {
            Self::Inline => "the image",
            Self::Registry(..) => "registry",
            Self::Local(_) => "client directory",
            Self::S3(_) => "Amazon S3",
            Self::Gha(_) => "GitHub Actions Cache",
            Self::Azure(_) => "Azure Blob Storage",
        }
    }
}

impl CacheExport {
    /// Reads what a request asks for.
    ///
    /// # Errors
    /// `InvalidArgument` for a kind that does not exist and for malformed values; `Unsupported`, by name, for what is not there.
    pub(in crate::solver) fn parse(spec: &CacheSpec) -> Result<Self> {
        let mut attrs = Attrs::of_cache(spec);
        let mode = match attrs.text("mode") {
            None | Some("min") => Mode::Min,
            Some("max") => Mode::Max,
            Some(other) => return Err(Error::invalid(format!("mode={other}: expected min or max"))),
        };
        let ignore_error = attrs.flag("ignore-error")? == Some(true);
        let (to, has_manifest) = match spec.kind.as_str() {
            "inline" if mode == Mode::Max => {
                return Err(Error::invalid(
                    "mode=max: the cache inline can hold the layers of the image only; use type=registry for all others",
                ));
            }
            "inline" => (Destination::Inline, false),
            "registry" => {
                let (name, insecure) = repository(&mut attrs)?;
                (Destination::Registry(name, insecure), true)
            }
            "local" => {
                let dest = attrs.text("dest").ok_or_else(|| Error::invalid("the cache local needs dest=DIRECTORY"))?;
                // The client gives the manifest its name, and removes what no manifest needs.
                attrs.text("tag");
                attrs.flag("reset")?;
                (Destination::Local(dest.to_owned()), true)
            }
            "s3" => (Destination::S3(Box::new(S3Options::take(&mut attrs)?)), false),
            "gha" => (Destination::Gha(GhaOptions::take(&mut attrs)?), false),
            "azblob" => (Destination::Azure(Box::new(AzureOptions::take(&mut attrs)?)), false),
            other => return Err(unknown(other, EXPORTS)),
        };
        let mut export =
            Self { to, mode, ignore_error, form: Form::default(), estargz: None, image_manifest: true, mounts: false };
        if has_manifest {
            export.form.docker_types = attrs.flag("oci-mediatypes")? == Some(false);
        }
        if !matches!(export.to, Destination::Inline) {
            export.mounts = attrs.flag("mounts")? == Some(true);
            let (kind, level) = (attrs.text("compression"), attrs.number("compression-level")?);
            if kind == Some("estargz") {
                export.estargz = Some(estargz_level(level, export.form.docker_types)?);
                export.form.estargz = true;
            } else {
                export.form.compression = compression(kind, level)?;
            }
            export.form.force_compression = attrs.flag("force-compression")? == Some(true);
        }
        if has_manifest {
            let asked = attrs.flag("image-manifest")?;
            if asked == Some(true) && export.form.docker_types {
                return Err(Error::invalid(
                    "image-manifest=true has OCI media types only: leave out oci-mediatypes=false",
                ));
            }
            export.image_manifest = asked.unwrap_or(!export.form.docker_types);
        }
        attrs.finish()?;
        Ok(export)
    }

    /// Whether the cache goes into the image itself.
    pub(in crate::solver) fn is_inline(&self) -> bool {
        matches!(self.to, Destination::Inline)
    }
}

impl CacheImport {
    /// Reads what a request asks for.
    ///
    /// # Errors
    /// As [`CacheExport::parse`].
    pub(in crate::solver) fn parse(spec: &CacheSpec) -> Result<Self> {
        let mut attrs = Attrs::of_cache(spec);
        let mounts = attrs.flag("mounts")? != Some(false);
        let from = match spec.kind.as_str() {
            "registry" => {
                let (name, insecure) = repository(&mut attrs)?;
                Origin::Registry(name, insecure)
            }
            "local" => {
                let src = attrs.text("src").ok_or_else(|| Error::invalid("the cache local needs src=DIRECTORY"))?;
                // The client has looked up what manifest has this name.
                attrs.text("tag");
                let digest = attrs.text("digest").ok_or_else(|| {
                    Error::invalid(
                        "the cache local needs digest=DIGEST, unless its index.json has a tag latest, or tag=NAME",
                    )
                })?;
                let digest = digest.parse().map_err(|error| Error::invalid(format!("digest={digest}: {error}")))?;
                Origin::Local { src: src.to_owned(), digest }
            }
            "s3" => Origin::S3(Box::new(S3Options::take(&mut attrs)?)),
            "gha" => Origin::Gha(GhaOptions::take(&mut attrs)?),
            "azblob" => Origin::Azure(Box::new(AzureOptions::take(&mut attrs)?)),
            "inline" => {
                return Err(Error::invalid(
                    "a cache that is in an image is read with type=registry,ref=IMAGE, or the image's name alone",
                ));
            }
            other => return Err(unknown(other, IMPORTS)),
        };
        attrs.finish()?;
        Ok(Self { from, mounts })
    }

    /// What progress calls it.
    pub(super) fn shown(&self) -> String {
        match &self.from {
            Origin::Registry(reference, _) => reference.to_string(),
            Origin::Local { digest, .. } => format!("local:{}", digest.hex()),
            Origin::S3(options) => options.shown(),
            Origin::Gha(options) => options.shown(),
            Origin::Azure(options) => options.shown(),
        }
    }
}

fn repository(attrs: &mut Attrs<'_>) -> Result<(Reference, bool)> {
    let text = attrs.text("ref").ok_or_else(|| Error::invalid("the cache registry needs ref=NAME"))?;
    let insecure = attrs.flag("registry.insecure")? == Some(true);
    let name: Reference = text.parse().map_err(|error| Error::invalid(format!("ref={text}: {error}")))?;
    Ok((name.with_default_tag(), insecure))
}

fn unknown(kind: &str, known: &[&str]) -> Error {
    let meant = kiln_graph::diagnostic::closest(kind, known.iter().copied());
    let hint = meant.map_or_else(|| known.join(", "), |meant| format!("did you mean {meant}?"));
    Error::invalid(format!("there is no cache {kind:?} ({hint})"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(kind: &str, attrs: &[(&str, &str)]) -> CacheSpec {
        let attrs = attrs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        CacheSpec { kind: kind.to_owned(), attrs }
    }

    #[test]
    fn the_form_of_a_cache_is_read() {
        let export = |attrs: &[(&str, &str)]| {
            let all: Vec<_> = [("ref", "a")].iter().chain(attrs).copied().collect();
            CacheExport::parse(&spec("registry", &all)).unwrap()
        };
        let plain = export(&[]);
        assert_eq!((plain.mode, plain.image_manifest, plain.ignore_error), (Mode::Min, true, false));
        let old = export(&[("mode", "max"), ("oci-mediatypes", "false"), ("ignore-error", "true")]);
        assert_eq!(
            (old.mode, old.image_manifest, old.form.docker_types, old.ignore_error),
            (Mode::Max, false, true, true)
        );
        assert!(!export(&[("image-manifest", "false")]).image_manifest);
        assert_eq!(export(&[("compression", "estargz"), ("compression-level", "3")]).estargz, Some(3));
        let zstd = export(&[("compression", "zstd"), ("compression-level", "3"), ("force-compression", "true")]);
        assert!(zstd.form.force_compression);
    }

    #[test]
    fn what_is_not_there_is_refused_by_name() {
        for (kind, attrs, words) in [
            ("regitry", &[][..], "did you mean registry?"),
            ("azblob", &[], "account_url"),
            ("registry", &[], "needs ref=NAME"),
            ("registry", &[("ref", "a"), ("mod", "max")], "did you mean mode?"),
            ("registry", &[("ref", "a"), ("mode", "all")], "expected min or max"),
            ("registry", &[("ref", "a"), ("registry.insecure", "perhaps")], "registry.insecure"),
            ("s3", &[("bucket", "b"), ("region", "r"), ("access_key_id", "a")], "secret_access_key beside"),
            ("s3", &[("bucket", "b"), ("retry_mode", "adaptive")], "retry_mode=adaptive"),
            ("s3", &[("bucket", "b"), ("retry_mode", "legacy")], "expected standard"),
            (
                "s3",
                &[("bucket", "b"), ("region", "r"), ("access_key_id", "a"), ("secret_access_key", "s"), ("naem", "x")],
                "did you mean name?",
            ),
            ("gha", &[("token", "t")], "ACTIONS_RESULTS_URL"),
            ("gha", &[("url_v2", "http://x")], "ACTIONS_RUNTIME_TOKEN"),
            ("gha", &[("token", "t"), ("url", "http://x"), ("version", "3")], "version=3"),
            ("gha", &[("token", "t"), ("url", "http://x"), ("timeout", "soon")], "timeout=soon"),
            ("registry", &[("ref", "a"), ("oci-mediatypes", "false"), ("image-manifest", "true")], "oci-mediatypes"),
            ("registry", &[("ref", "a"), ("oci-mediatypes", "false"), ("compression", "estargz")], "oci-mediatypes"),
            ("registry", &[("ref", "UPPER")], "ref=UPPER"),
            ("inline", &[("mode", "max")], "use type=registry"),
            ("inline", &[("compression", "zstd")], "no option compression"),
        ] {
            let error = CacheExport::parse(&spec(kind, attrs)).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
        let error = CacheImport::parse(&spec("inline", &[])).unwrap_err().to_string();
        assert!(error.contains("type=registry,ref=IMAGE"), "{error}");
    }

    #[test]
    fn caches_among_the_attributes_of_a_frontend_are_read() {
        let attrs = BTreeMap::from([
            (
                "cache-imports".to_owned(),
                r#"[{"Type":"registry","Attrs":{"ref":"a"}},{"Type":"gha","Attrs":null}]"#.to_owned(),
            ),
            ("cache-from".to_owned(), "b, c".to_owned()),
        ]);
        let kinds: Vec<_> = of_attributes(&attrs)
            .unwrap()
            .into_iter()
            .map(|spec| (spec.kind, spec.attrs.get("ref").cloned()))
            .collect();
        let registry = |name: &str| ("registry".to_owned(), Some(name.to_owned()));
        assert_eq!(kinds, [registry("a"), ("gha".to_owned(), None), registry("b"), registry("c")]);
        for nothing in ["", "null", "[]", "false"] {
            let attrs = BTreeMap::from([("cache-imports".to_owned(), nothing.to_owned())]);
            assert!(of_attributes(&attrs).unwrap().is_empty(), "{nothing}");
        }
        assert!(of_attributes(&BTreeMap::from([("cache-imports".to_owned(), "{".to_owned())])).is_err());
    }
}
