//! What a finished build leaves besides the image: its id on standard output or in a file, and the metadata file.

use std::collections::BTreeMap;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use crate::error::{Result, ResultExt as _};
use crate::types::build::SolveResponse;

/// Returns the image's id; `None` when no image was made.
pub(super) fn image_id(response: &SolveResponse) -> Option<&str> {
    let keys = ["containerimage.config.digest", "containerimage.digest"];
    keys.iter().find_map(|key| response.exporter_response.get(*key)).map(String::as_str)
}

/// Writes a file whole or not at all. Blocking.
///
/// # Errors
/// When it cannot be written.
pub(super) fn write(path: &Path, content: &str) -> Result<()> {
    let doing = || format!("write {}", path.display());
    // What is no regular file (`/dev/stdout`) is written into.
    if path.metadata().is_ok_and(|metadata| !metadata.is_file()) {
        return std::fs::write(path, content).context(doing);
    }
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}", std::process::id()));
    let temporary = path.with_file_name(name);
    std::fs::write(&temporary, content).context(doing)?;
    std::fs::rename(&temporary, path).context(doing)
}

/// Returns the metadata file's content, with buildx's keys. Without `warnings` there is no key for them.
pub(super) fn metadata(response: &SolveResponse, reference: &str, warnings: Vec<Value>) -> String {
    let mut metadata: BTreeMap<&str, Value> =
        response.exporter_response.iter().map(|(key, text)| (key.as_str(), decoded(text))).collect();
    metadata.insert("buildx.build.ref", Value::from(format!("default/default/{reference}")));
    if !warnings.is_empty() {
        metadata.insert("buildx.build.warnings", Value::Array(warnings));
    }
    serde_json::to_string_pretty(&metadata).expect("texts have a JSON form")
}

/// Objects travel as base64 of their JSON.
fn decoded(text: &str) -> Value {
    let object = STANDARD.decode(text).ok().and_then(|json| serde_json::from_slice::<Value>(&json).ok());
    object.filter(Value::is_object).unwrap_or_else(|| Value::from(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metadata_has_the_keys_and_the_form_of_buildx() {
        let descriptor = STANDARD.encode(r#"{"size":1}"#);
        let response = SolveResponse {
            exporter_response: [
                ("image.name", "a,b"),
                ("containerimage.config.digest", "sha256:c"),
                ("containerimage.descriptor", &descriptor),
            ]
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .into(),
        };
        assert_eq!(image_id(&response), Some("sha256:c"));
        assert_eq!(
            metadata(&response, "r", Vec::new()),
            "{\n  \"buildx.build.ref\": \"default/default/r\",\n  \"containerimage.config.digest\": \"sha256:c\",\n  \
             \"containerimage.descriptor\": {\n    \"size\": 1\n  },\n  \"image.name\": \"a,b\"\n}"
        );
    }

    #[test]
    fn a_file_is_replaced_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("iid");
        write(&path, "a longer text").unwrap();
        write(&path, "short").unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "short");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
