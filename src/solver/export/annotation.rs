//! Annotations: `annotation[-level][[platform]].key`, where the level is what they are put on.

use std::collections::BTreeMap;

use kiln_graph::Platform;

use crate::error::{Error, Result};
use crate::solver::attrs::Attrs;

/// What an annotation is put on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Level {
    /// The manifest of an image.
    Manifest,
    /// The index.
    Index,
    /// What points at a manifest.
    ManifestDescriptor,
    /// What points at the index.
    IndexDescriptor,
}

impl Level {
    fn parse(text: &str) -> Option<Self> {
        match text {
            "" | "manifest" => Some(Self::Manifest),
            "index" => Some(Self::Index),
            "manifest-descriptor" => Some(Self::ManifestDescriptor),
            "index-descriptor" => Some(Self::IndexDescriptor),
            _ => None,
        }
    }

    const fn is_of_index(self) -> bool {
        matches!(self, Self::Index | Self::IndexDescriptor)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Annotation {
    level: Level,
    platform: Option<Platform>,
    key: String,
    value: String,
}

/// The annotations of an export.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Annotations(Vec<Annotation>);

impl Annotations {
    /// Takes them from the attributes.
    ///
    /// # Errors
    /// `InvalidArgument` for an unknown level, a malformed platform or a missing key.
    pub(super) fn take(attrs: &mut Attrs<'_>) -> Result<Self> {
        attrs.family("annotation").into_iter().map(|(key, value)| parse(key, value)).collect::<Result<_>>().map(Self)
    }

    /// Says whether there are none.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Makes sure that there is an index to be annotated, if one is to be.
    ///
    /// # Errors
    /// `InvalidArgument` when there is none.
    pub(super) fn check(&self, has_index: bool) -> Result<()> {
        match self.0.iter().find(|annotation| annotation.level.is_of_index()) {
            Some(Annotation { key, .. }) if !has_index => Err(Error::invalid(format!(
                "the annotation {key} is for an index, and an image for one platform has none: annotate the manifest, or build \
                 for several platforms"
            ))),
            _ => Ok(()),
        }
    }

    /// Returns those of one level, for a platform or for all.
    pub(super) fn of(&self, level: Level, platform: Option<&Platform>) -> BTreeMap<String, String> {
        let fits = |wanted: Option<&Platform>| wanted.is_none() || wanted == platform;
        let mut found = BTreeMap::new();
        // Those for the platform win over those for all.
        for special in [false, true] {
            for annotation in &self.0 {
                let wanted = annotation.platform.as_ref();
                if annotation.level == level && wanted.is_some() == special && fits(wanted) {
                    found.insert(annotation.key.clone(), annotation.value.clone());
                }
            }
        }
        found
    }
}

fn parse(attr: &str, value: &str) -> Result<Annotation> {
    let invalid = |why: &str| Error::invalid(format!("the exporter option {attr}: {why}"));
    let rest = attr.strip_prefix("annotation").unwrap_or(attr);
    let (place, key) = match (rest.find('['), rest.find(']'), rest.find('.')) {
        // The platform may hold dots, and so may the key.
        (Some(open), Some(close), dot) if dot.is_none_or(|dot| open < dot) && open < close => {
            let key = rest[close + 1..].strip_prefix('.');
            (&rest[..=close], key)
        }
        (_, _, Some(dot)) => (&rest[..dot], Some(&rest[dot + 1..])),
        _ => (rest, None),
    };
    let key = key.filter(|key| !key.is_empty()).ok_or_else(|| invalid("the key is missing: annotation.KEY"))?;
    let (level, platform) = match place.split_once('[') {
        Some((level, platform)) => (level, Some(platform.trim_end_matches(']'))),
        None => (place, None),
    };
    let level = match level.strip_prefix('-') {
        Some(level) => Some(level),
        None => level.is_empty().then_some(""),
    };
    let level = level
        .and_then(Level::parse)
        .ok_or_else(|| invalid("the level is one of manifest, index, manifest-descriptor and index-descriptor"))?;
    let platform: Option<Platform> =
        platform.map(|text| text.parse().map_err(|error| invalid(&format!("{error}")))).transpose()?;
    if level.is_of_index() && platform.is_some() {
        return Err(invalid("an index is for all platforms, not for one"));
    }
    Ok(Annotation { level, platform, key: key.to_owned(), value: value.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::solver::request::Exporter;

    fn take(attrs: &[(&str, &str)]) -> Result<Annotations> {
        let attrs = attrs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        Annotations::take(&mut Attrs::new(&Exporter { kind: "image".to_owned(), attrs }))
    }

    #[test]
    fn annotations_go_to_their_level_and_platform() {
        let annotations = take(&[
            ("annotation.org.example.a", "all"),
            ("annotation[linux/arm64].org.example.a", "arm"),
            ("annotation-manifest[linux/amd64].b", "amd"),
            ("annotation-manifest-descriptor.c", "entry"),
            ("annotation-index.d", "index"),
            ("annotation-index-descriptor.e", "top"),
        ])
        .unwrap();
        let of = |level, platform: Option<&str>| {
            let platform: Option<Platform> = platform.map(|text| text.parse().unwrap());
            annotations
                .of(level, platform.as_ref())
                .into_iter()
                .map(|(key, value)| format!("{key}={value}"))
                .collect::<Vec<_>>()
        };
        assert_eq!(of(Level::Manifest, Some("linux/arm64")), ["org.example.a=arm"]);
        assert_eq!(of(Level::Manifest, Some("linux/amd64")), ["b=amd", "org.example.a=all"]);
        assert_eq!(of(Level::ManifestDescriptor, Some("linux/arm64")), ["c=entry"]);
        assert_eq!(
            (of(Level::Index, None), of(Level::IndexDescriptor, None)),
            (vec!["d=index".into()], vec!["e=top".into()])
        );
        assert!(annotations.check(false).unwrap_err().to_string().contains("is for an index"));
        assert!(annotations.check(true).is_ok());
    }

    #[test]
    fn mistakes_are_named() {
        for (key, word) in [
            ("annotation", "key is missing"),
            ("annotation.", "key is missing"),
            ("annotation-layer.a", "level"),
            ("annotations.a", "level"),
            ("annotation[nonsense/a/b/c].a", "platform"),
            ("annotation-index[linux/amd64].a", "all platforms"),
        ] {
            let error = take(&[(key, "x")]).unwrap_err().to_string();
            assert!(error.contains(word), "{key}: {error}");
        }
    }
}
