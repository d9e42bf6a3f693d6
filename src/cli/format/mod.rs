//! What commands print: lists, objects, sizes and times, with docker's `--format`.
//!
//! Pure: JSON in, text out. Which fields a command has, and where the text goes, is the command's business.

pub mod duration;
pub mod size;
pub mod table;
pub mod template;

use std::collections::BTreeMap;

use serde_json::{Map, Value as Json};

pub use template::Template;

use crate::error::Result;
use template::{Cells, Escapes, Labels, Scope};

/// What `--format` asks for.
#[derive(Clone, Debug)]
pub enum Format {
    /// A table, with the command's own columns or those of a template.
    Table(Option<Template>),
    /// JSON.
    Json,
    /// A template.
    Template(Template),
}

impl Format {
    /// Parses the value of `--format`: nothing or `table`, `table TEMPLATE`, `json`, or a template in which `\t` and `\n` stand
    /// for a tab and a line break.
    ///
    /// # Errors
    /// `InvalidArgument` with the column of the mistake.
    pub fn parse(text: Option<&str>) -> Result<Self> {
        let text = text.unwrap_or("table").trim_matches(' ');
        let template = |text| Template::parse_with(text, Escapes::Replaced);
        match (text, text.strip_prefix("table")) {
            ("json", _) => Ok(Self::Json),
            (_, Some("")) => Ok(Self::Table(None)),
            (_, Some(rest)) => Ok(Self::Table(Some(template(rest.trim_matches(' '))?))),
            _ => Ok(Self::Template(template(text)?)),
        }
    }
}

/// The fields a list has, and the columns it shows unless told otherwise.
#[derive(Clone, Copy, Debug)]
pub struct Listing {
    /// Names of fields and the heads of their columns, for example `("ID", "CONTAINER ID")`.
    pub fields: &'static [(&'static str, &'static str)],
    /// Names of the fields shown, in order; each is one of `fields`.
    pub columns: &'static [&'static str],
}

/// One object of a list.
#[derive(Clone, Debug, Default)]
pub struct Row {
    fields: Json,
    labels: BTreeMap<String, String>,
}

impl Row {
    /// Makes a row of the fields of its [`Listing`]; every one must be there.
    #[must_use]
    pub fn new<V: Into<Json>>(fields: impl IntoIterator<Item = (&'static str, V)>) -> Self {
        let fields = fields.into_iter().map(|(name, value)| (name.to_owned(), value.into()));
        Self { fields: Json::Object(fields.collect()), labels: BTreeMap::new() }
    }

    /// Adds what `{{.Label "key"}}` reads.
    #[must_use]
    pub fn with_labels(mut self, labels: impl IntoIterator<Item = (String, String)>) -> Self {
        self.labels = labels.into_iter().collect();
        self
    }

    fn render(&self, template: &Template) -> Result<String> {
        template.render_in(&Scope { root: &self.fields, labels: Labels::Of(&self.labels), cells: Cells::Values })
    }
}

impl Listing {
    /// Renders rows: every one ends with a line break. As JSON, one object a line, with sorted fields as docker prints them.
    ///
    /// # Errors
    /// `InvalidArgument` with the column of an unknown field or a wrong argument.
    pub fn render(&self, rows: &[Row], format: &Format) -> Result<String> {
        let mut out = String::new();
        match format {
            Format::Json => rows.iter().for_each(|row| out.push_str(&format!("{}\n", sorted(&row.fields)))),
            Format::Template(template) => {
                for row in rows {
                    out.push_str(&row.render(template)?);
                    out.push('\n');
                }
            }
            Format::Table(Some(template)) => {
                out.push_str(&template.render_in(&Scope {
                    root: &self.heads(),
                    labels: Labels::Keys,
                    cells: Cells::Heads,
                })?);
                for row in rows {
                    out.push('\n');
                    out.push_str(&row.render(template)?);
                }
                out.push('\n');
                out = table::align(&out);
            }
            Format::Table(None) => {
                let columns: Vec<String> = self.columns.iter().map(|name| format!("{{{{.{name}}}}}")).collect();
                let template = Template::parse_with(&columns.join("\t"), Escapes::Kept)?;
                return self.render(rows, &Format::Table(Some(template)));
            }
        }
        Ok(out)
    }

    fn heads(&self) -> Json {
        let heads: Map<String, Json> =
            self.fields.iter().map(|(name, head)| ((*name).to_owned(), Json::from(*head))).collect();
        Json::Object(heads)
    }
}

/// The same object with its fields in the order of their names.
fn sorted(json: &Json) -> Json {
    let mut json = json.clone();
    json.sort_all_objects();
    json
}

/// Renders what `inspect` found: an indented array without a format, a compact one for `json`, else each through the template,
/// one a line.
///
/// # Errors
/// `InvalidArgument` with the column of a mistake in the template or of a field an object does not have.
pub fn inspect(objects: &[Json], format: Option<&str>) -> Result<String> {
    match format {
        None => indented(objects),
        Some("json") => Ok(format!("{}\n", serde_json::to_string(objects)?)),
        Some(text) => {
            let template = Template::parse(text)?;
            let lines: Result<Vec<String>> = objects.iter().map(|object| Ok(template.render(object)? + "\n")).collect();
            Ok(lines?.concat())
        }
    }
}

/// Renders one object, as `info` and `version` do with a format: compact for `json`, else through the template.
///
/// # Errors
/// As [`inspect`].
pub fn object(object: &Json, format: &str) -> Result<String> {
    inspect(std::slice::from_ref(object), Some(if format == "json" { "{{json .}}" } else { format }))
}

/// Docker indents with four blanks.
fn indented(objects: &[Json]) -> Result<String> {
    let mut out = Vec::new();
    let formatter = serde_json::ser::PrettyFormatter::with_indent(b"    ");
    serde::Serialize::serialize(objects, &mut serde_json::Serializer::with_formatter(&mut out, formatter))?;
    out.push(b'\n');
    Ok(String::from_utf8_lossy(&out).into_owned())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const LISTING: Listing = Listing {
        fields: &[("ID", "CONTAINER ID"), ("Names", "NAMES"), ("Labels", "LABELS"), ("Size", "SIZE")],
        columns: &["ID", "Names"],
    };

    fn rows() -> Vec<Row> {
        let row = |id, names| {
            let fields = [("ID", id), ("Names", names), ("Labels", "tier=front"), ("Size", "1.2MB")];
            Row::new(fields).with_labels([("tier".to_owned(), "front".to_owned())])
        };
        vec![row("0123456789ab", "web"), row("ba9876543210", "a-longer-name")]
    }

    fn list(format: &str) -> Result<String, String> {
        Format::parse(Some(format))
            .and_then(|format| LISTING.render(&rows(), &format))
            .map_err(|error| error.to_string())
    }

    #[test]
    fn a_list_is_a_table_unless_a_format_says_otherwise() {
        let table = "CONTAINER ID   NAMES\n0123456789ab   web\nba9876543210   a-longer-name\n";
        assert_eq!(LISTING.render(&rows(), &Format::parse(None).unwrap()).unwrap(), table);
        assert_eq!(list("table").as_deref(), Ok(table));
        assert_eq!(LISTING.render(&[], &Format::parse(None).unwrap()).unwrap(), "CONTAINER ID   NAMES\n");
        assert_eq!(list("{{.ID}}\\t{{.Names}}").as_deref(), Ok("0123456789ab\tweb\nba9876543210\ta-longer-name\n"));
        assert_eq!(
            list("json").unwrap().lines().next(),
            Some(r#"{"ID":"0123456789ab","Labels":"tier=front","Names":"web","Size":"1.2MB"}"#)
        );
    }

    #[test]
    fn a_table_template_gets_the_heads_of_its_fields() {
        assert_eq!(
            list(r#"table {{.Names}}\t{{.Label "tier"}}\t{{upper .Size}}\t{{truncate .ID 4}}"#).as_deref(),
            Ok("NAMES           tier      SIZE      CONTAINER ID\n\
                web             front     1.2MB     0123\n\
                a-longer-name   front     1.2MB     ba98\n")
        );
        assert_eq!(list(r#"{{.Label "tier"}}{{.Label "nope"}}"#).as_deref(), Ok("front\nfront\n"));
    }

    #[test]
    fn an_unknown_field_of_a_list_is_an_error_even_in_a_condition() {
        let message = "format template, column 6: there is no field `Name`; did you mean `Names`?";
        assert_eq!(list("{{if .Name}}{{end}}"), Err(message.to_owned()));
        assert!(list("table {{.Nope}}").is_err(), "the heads are checked even without rows");
    }

    #[test]
    fn inspect_prints_an_array_or_one_line_each() {
        let objects = [json!({"Id": "a", "n": [1]}), json!({"Id": "b", "n": []})];
        let indented = "[\n    {\n        \"Id\": \"a\",\n        \"n\": [\n            1\n        ]\n    },\n    {\n        \"Id\": \"b\",\n        \"n\": []\n    }\n]\n";
        assert_eq!(inspect(&objects, None).unwrap(), indented);
        assert_eq!(inspect(&objects, Some("json")).unwrap(), "[{\"Id\":\"a\",\"n\":[1]},{\"Id\":\"b\",\"n\":[]}]\n");
        assert_eq!(inspect(&objects, Some("{{.Id}}")).unwrap(), "a\nb\n");
        assert_eq!(object(&objects[0], "json").unwrap(), "{\"Id\":\"a\",\"n\":[1]}\n");
    }
}
