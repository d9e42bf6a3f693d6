//! SLSA's predicates about provenance, versions 1 and 0.2, with the fields that BuildKit writes.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::super::remote::Material;
use super::provenance::{Ids, Statement};

/// The predicate type of version 1.
pub(super) const V1: &str = "https://slsa.dev/provenance/v1";
/// The predicate type of version 0.2.
pub(super) const V02: &str = "https://slsa.dev/provenance/v0.2";

/// How the fields of version 1 are to be read.
const BUILD_TYPE_V1: &str = "https://github.com/moby/buildkit/blob/master/docs/attestations/slsa-definitions.md";
/// How the fields of version 0.2 are to be read; also the prefix of BuildKit's own fields.
const BUILD_TYPE_V02: &str = "https://mobyproject.org/buildkit@v1";

/// An object that leaves out what is empty.
#[derive(Default)]
struct Object(Map<String, Value>);

impl Object {
    fn set(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.0.insert(key.to_owned(), value.into());
        self
    }

    fn set_some(self, key: &str, value: Option<impl Into<Value>>) -> Self {
        match value {
            Some(value) => self.set(key, value),
            None => self,
        }
    }

    fn text(self, key: &str, text: &str) -> Self {
        self.set_some(key, (!text.is_empty()).then_some(text))
    }

    fn list(self, key: &str, list: Vec<Value>) -> Self {
        self.set_some(key, (!list.is_empty()).then_some(list))
    }

    fn done(self) -> Value {
        Value::Object(self.0)
    }
}

/// `sha256:abc` as a set of digests.
fn digests(digest: &str) -> Option<Value> {
    let (algorithm, hex) = digest.split_once(':')?;
    Some(json!({ algorithm: hex }))
}

fn materials(materials: &[Material]) -> Vec<Value> {
    let one = |material: &Material| {
        Object::default().text("uri", &material.uri).set_some("digest", digests(&material.digest)).done()
    };
    materials.iter().map(one).collect()
}

fn ids(ids: &Ids) -> Vec<Value> {
    let one = |(id, optional): (&String, &bool)| {
        Object::default().text("id", id).set_some("optional", optional.then_some(true)).done()
    };
    ids.iter().map(one).collect()
}

fn texts(texts: &BTreeMap<String, String>) -> Option<Value> {
    (!texts.is_empty()).then(|| json!(texts))
}

fn parameters(statement: &Statement) -> Value {
    Object::default()
        .text("frontend", &statement.frontend)
        .set_some("args", texts(&statement.args))
        .list("secrets", ids(&statement.secrets))
        .list("ssh", ids(&statement.ssh))
        .list("locals", statement.locals.iter().map(|name| json!({ "name": name })).collect())
        .done()
}

/// What BuildKit adds to the metadata of both versions.
fn metadata(statement: &Statement) -> Value {
    Object::default()
        .set_some("vcs", texts(&statement.vcs))
        .set_some("source", statement.source.clone())
        .set_some("layers", statement.layers.clone())
        .list("sysUsage", statement.machine.clone())
        .done()
}

fn config_source(statement: &Statement, path: &str) -> Value {
    Object::default()
        .text("uri", &statement.config_uri)
        .set_some("digest", digests(&statement.config_digest))
        .text(path, &statement.config_path)
        .done()
}

/// Writes version 1.
pub(super) fn v1(statement: &Statement) -> Value {
    let internal = Object::default()
        .set_some("buildConfig", statement.build_config.clone())
        .set("builderPlatform", statement.platform.as_str());
    let definition = Object::default()
        .set("buildType", BUILD_TYPE_V1)
        .set(
            "externalParameters",
            json!({"configSource": config_source(statement, "path"), "request": parameters(statement)}),
        )
        .set("internalParameters", internal.done())
        .list("resolvedDependencies", materials(&statement.materials));
    let metadata = Object::default()
        .text("invocationID", &statement.invocation)
        .text("startedOn", &statement.started)
        .text("finishedOn", &statement.finished)
        .set("buildkit_metadata", metadata(statement))
        .set_some("buildkit_hermetic", statement.hermetic.then_some(true))
        .set(
            "buildkit_completeness",
            json!({"request": statement.complete_request, "resolvedDependencies": statement.complete_materials}),
        )
        .set_some("buildkit_reproducible", statement.reproducible.then_some(true));
    json!({
        "buildDefinition": definition.done(),
        "runDetails": {"builder": {"id": statement.builder_id}, "metadata": metadata.done()},
    })
}

/// Writes version 0.2.
pub(super) fn v02(statement: &Statement) -> Value {
    let own = |name: &str| format!("{BUILD_TYPE_V02}#{name}");
    let metadata = Object::default()
        .text("buildInvocationID", &statement.invocation)
        .text("buildStartedOn", &statement.started)
        .text("buildFinishedOn", &statement.finished)
        .set(
            "completeness",
            json!({
                "parameters": statement.complete_request,
                "environment": true,
                "materials": statement.complete_materials,
            }),
        )
        .set("reproducible", statement.reproducible)
        .set(&own("metadata"), metadata(statement))
        .set_some(&own("hermetic"), statement.hermetic.then_some(true));
    Object::default()
        .set("builder", json!({"id": statement.builder_id}))
        .set("buildType", BUILD_TYPE_V02)
        .list("materials", materials(&statement.materials))
        .set(
            "invocation",
            json!({
                "configSource": config_source(statement, "entryPoint"),
                "parameters": parameters(statement),
                "environment": {"platform": statement.platform},
            }),
        )
        .set_some("buildConfig", statement.build_config.clone())
        .set("metadata", metadata.done())
        .done()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Statement {
        Statement {
            config_uri: "https://example.com/a.git".to_owned(),
            config_digest: "sha1:abc".to_owned(),
            config_path: "Dockerfile".to_owned(),
            frontend: "dockerfile.v0".to_owned(),
            args: [("target".to_owned(), "x".to_owned())].into(),
            secrets: [("key".to_owned(), true)].into(),
            locals: ["context".to_owned()].into(),
            platform: "linux/amd64".to_owned(),
            materials: vec![Material { uri: "pkg:docker/a@1".to_owned(), digest: "sha256:def".to_owned() }],
            invocation: "id".to_owned(),
            started: "2026-11-26T00:00:00Z".to_owned(),
            finished: "2026-11-26T00:00:01Z".to_owned(),
            reproducible: true,
            ..Statement::default()
        }
    }

    #[test]
    fn version_1_has_the_fields_of_buildkit() {
        let expected = json!({
            "buildDefinition": {
                "buildType": BUILD_TYPE_V1,
                "externalParameters": {
                    "configSource": {"uri": "https://example.com/a.git", "digest": {"sha1": "abc"}, "path": "Dockerfile"},
                    "request": {
                        "frontend": "dockerfile.v0",
                        "args": {"target": "x"},
                        "secrets": [{"id": "key", "optional": true}],
                        "locals": [{"name": "context"}],
                    },
                },
                "internalParameters": {"builderPlatform": "linux/amd64"},
                "resolvedDependencies": [{"uri": "pkg:docker/a@1", "digest": {"sha256": "def"}}],
            },
            "runDetails": {
                "builder": {"id": ""},
                "metadata": {
                    "invocationID": "id",
                    "startedOn": "2026-11-26T00:00:00Z",
                    "finishedOn": "2026-11-26T00:00:01Z",
                    "buildkit_metadata": {},
                    "buildkit_completeness": {"request": false, "resolvedDependencies": false},
                    "buildkit_reproducible": true,
                },
            },
        });
        assert_eq!(v1(&sample()), expected);
    }

    #[test]
    fn version_0_2_has_the_fields_of_buildkit() {
        let expected = json!({
            "builder": {"id": ""},
            "buildType": BUILD_TYPE_V02,
            "materials": [{"uri": "pkg:docker/a@1", "digest": {"sha256": "def"}}],
            "invocation": {
                "configSource": {"uri": "https://example.com/a.git", "digest": {"sha1": "abc"}, "entryPoint": "Dockerfile"},
                "parameters": {
                    "frontend": "dockerfile.v0",
                    "args": {"target": "x"},
                    "secrets": [{"id": "key", "optional": true}],
                    "locals": [{"name": "context"}],
                },
                "environment": {"platform": "linux/amd64"},
            },
            "metadata": {
                "buildInvocationID": "id",
                "buildStartedOn": "2026-11-26T00:00:00Z",
                "buildFinishedOn": "2026-11-26T00:00:01Z",
                "completeness": {"parameters": false, "environment": true, "materials": false},
                "reproducible": true,
                "https://mobyproject.org/buildkit@v1#metadata": {},
            },
        });
        assert_eq!(v02(&sample()), expected);
    }
}
