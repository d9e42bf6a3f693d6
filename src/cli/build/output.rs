//! `--output`, `--push`, `--load` and `--annotation`: what becomes of a result, as exporters of the engine and places of this
//! command.

use std::collections::BTreeMap;
use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};

use super::options::BuildArgs;
use super::request::tags;
use crate::cli::value;
use crate::client::Delivery;
use crate::error::{Error, Result, ResultExt as _};
use crate::types::build::Exporter;

/// Lets `mode=delete` remove files of this machine.
pub(super) const DELETE: &str = "buildx.local.delete";

const KINDS: &[&str] = &["cacheonly", "docker", "image", "local", "oci", "registry", "tar"];

const LEVELS: &[&str] = &["manifest", "index", "manifest-descriptor", "index-descriptor"];

/// An exporter, and where this command puts what the engine sends for it.
#[derive(Debug, Default)]
pub(super) struct Output {
    kind: String,
    attrs: BTreeMap<String, String>,
    pub(super) delivery: Option<Delivery>,
}

impl Output {
    fn image() -> Self {
        Self { kind: "image".to_owned(), ..Self::default() }
    }

    /// Whether it has a name and annotations.
    fn is_image(&self) -> bool {
        matches!(self.kind.as_str(), "image" | "oci" | "docker")
    }

    fn is_pushed(&self) -> bool {
        self.attrs.get("push").is_some_and(|push| push != "false" && push != "0")
    }

    fn set(&mut self, key: &str, value: &str) {
        self.attrs.insert(key.to_owned(), value.to_owned());
    }

    /// What the engine is told.
    pub(super) fn exporter(&self) -> Exporter {
        let attrs = self.attrs.iter().map(|(key, value)| (key.clone(), value.clone())).collect();
        Exporter { r#type: self.kind.clone(), attrs }
    }
}

/// Reads the options. Outputs are in the order of the request.
///
/// # Errors
/// `InvalidArgument` naming the option that is wrong.
pub(super) fn outputs(args: &BuildArgs) -> Result<Vec<Output>> {
    let names = tags(&args.tags)?;
    let stdout = std::io::stdout().is_terminal();
    let mut outputs = Vec::new();
    for text in &args.outputs {
        outputs.extend(parse(text, stdout).context(|| format!("--output {text}"))?);
    }
    let has_image = |outputs: &[Output]| outputs.iter().any(|output| output.kind == "image");
    if args.outputs.is_empty() || ((args.push || args.load) && !has_image(&outputs)) {
        outputs.push(Output::image());
    }
    if args.push {
        outputs.iter_mut().filter(|output| output.kind == "image").for_each(|output| output.set("push", "true"));
    }
    check(args, &outputs)?;
    for output in outputs.iter_mut().filter(|output| output.is_image()) {
        let own = output.attrs.remove("name").filter(|name| !name.is_empty());
        let own = own.map(|own| tags(&own.split(',').map(str::to_owned).collect::<Vec<_>>())).transpose()?;
        let all: Vec<String> = own.into_iter().flatten().chain(names.iter().cloned()).collect();
        if !all.is_empty() {
            output.set("name", &all.join(","));
        }
        if output.is_pushed() && all.is_empty() {
            return Err(Error::invalid("an image without a name cannot be pushed: give it one with --tag"));
        }
    }
    annotate(&args.annotations, &mut outputs)?;
    Ok(outputs)
}

/// Makes sure that outputs do not get in each other's way.
fn check(args: &BuildArgs, outputs: &[Output]) -> Result<()> {
    let on_stdout = outputs.iter().filter(|output| output.delivery == Some(Delivery::Stdout)).count();
    if on_stdout > 1 {
        return Err(Error::invalid("--output: only one output can go to standard output"));
    }
    let deletes = |output: &Output| matches!(&output.delivery, Some(Delivery::Directory { delete: true, .. }));
    if outputs.iter().any(deletes) && !args.allow.iter().any(|allowed| allowed == DELETE) {
        return Err(Error::invalid(format!(
            "--output mode=delete removes what the result does not hold from the directory: allow it with --allow {DELETE}"
        )));
    }
    Ok(())
}

/// Reads one output; `None` for one that keeps nothing. `terminal` says whether standard output is one.
fn parse(text: &str, terminal: bool) -> Result<Option<Output>> {
    let mut output = Output::default();
    if !text.contains('=') && !text.contains(',') {
        let kind = if text == "-" { "tar" } else { "local" };
        kind.clone_into(&mut output.kind);
        output.set("dest", text);
    } else {
        for (key, text) in value::csv(text)? {
            let value = text.ok_or_else(|| Error::invalid(format!("expected type=KIND[,dest=PATH,..], not {key}")))?;
            output.set(&key.to_lowercase(), &value);
        }
        output.kind =
            output.attrs.remove("type").ok_or_else(|| Error::invalid("the type is missing: type=local,.."))?;
    }
    match output.kind.as_str() {
        "cacheonly" => Ok(None),
        "registry" => {
            output.set("push", "true");
            "image".clone_into(&mut output.kind);
            Ok(Some(output))
        }
        "image" => Ok(Some(output)),
        // The store of the engine is where docker's images are loaded to.
        "docker" if output.attrs.get("dest").is_none_or(String::is_empty) => {
            output.attrs.remove("dest");
            "image".clone_into(&mut output.kind);
            Ok(Some(output))
        }
        "local" => directory(output).map(Some),
        "docker" | "oci" | "tar" => archive(output, terminal).map(Some),
        other => {
            let meant = kiln_graph::diagnostic::closest(other, KINDS.iter().copied());
            let hint = meant.map_or_else(|| KINDS.join(", "), |meant| format!("did you mean {meant}?"));
            Err(Error::invalid(format!("there is no type={other} ({hint})")))
        }
    }
}

fn directory(mut output: Output) -> Result<Output> {
    let path = output.attrs.remove("dest").filter(|dest| !dest.is_empty());
    let path = PathBuf::from(path.ok_or_else(|| Error::invalid("the directory is missing: type=local,dest=DIR"))?);
    if path.metadata().is_ok_and(|found| !found.is_dir()) {
        return Err(Error::invalid(format!("{} is no directory", path.display())));
    }
    let delete = match output.attrs.get("mode").map(String::as_str) {
        None | Some("copy") => false,
        Some("delete") => true,
        Some(other) => return Err(Error::invalid(format!("mode={other}: expected copy or delete"))),
    };
    output.delivery = Some(Delivery::Directory { path, delete });
    Ok(output)
}

fn archive(mut output: Output, terminal: bool) -> Result<Output> {
    let kind = output.kind.clone();
    let dest = output.attrs.remove("dest").filter(|dest| !dest.is_empty() && dest != "-");
    // A directory instead of an archive is made of the archive, here.
    let unpacked = output.attrs.remove("tar").is_some_and(|tar| tar == "false" || tar == "0");
    output.delivery = Some(match dest.map(PathBuf::from) {
        None if unpacked => return Err(Error::invalid(format!("type={kind},tar=false needs a directory: dest=DIR"))),
        None if terminal => {
            return Err(Error::invalid(format!(
                "type={kind} would print an archive to the terminal: give dest=FILE, or redirect standard output"
            )));
        }
        None => Delivery::Stdout,
        Some(path) if unpacked && kind == "tar" => {
            return Err(Error::invalid(format!("type=tar,tar=false is type=local,dest={}", path.display())));
        }
        Some(path) if unpacked => Delivery::Layout(path),
        Some(path) if is_directory(&path) => {
            return Err(Error::invalid(format!("{} is a directory, not a file", path.display())));
        }
        Some(path) => Delivery::File(path),
    });
    Ok(output)
}

fn is_directory(path: &Path) -> bool {
    path.metadata().is_ok_and(|found| found.is_dir()) || path.as_os_str().as_encoded_bytes().ends_with(b"/")
}

/// Gives annotations, `[level,level[platform]:]key=value`, to all images.
fn annotate(annotations: &[String], outputs: &mut [Output]) -> Result<()> {
    if !annotations.is_empty() && !outputs.iter().any(Output::is_image) {
        return Err(Error::invalid("--annotation: there is no image to be annotated"));
    }
    for text in annotations {
        for (key, value) in annotation(text).context(|| format!("--annotation {text}"))? {
            outputs.iter_mut().filter(|output| output.is_image()).for_each(|output| output.set(&key, &value));
        }
    }
    Ok(())
}

/// Returns the attributes of an annotation, one for each level.
fn annotation(text: &str) -> Result<Vec<(String, String)>> {
    let (place, value) = text.split_once('=').ok_or_else(|| Error::invalid("expected key=value"))?;
    // A key may hold colons, so what is before one is a list of levels only if it looks like one.
    let levels = place.split_once(':').filter(|(levels, _)| levels.split(',').all(is_level));
    let (levels, key) = levels.unwrap_or(("manifest", place));
    if key.is_empty() {
        return Err(Error::invalid("the key is missing"));
    }
    Ok(levels.split(',').map(|level| (format!("annotation-{level}.{key}"), value.to_owned())).collect())
}

/// Says whether it is a level, perhaps with a platform.
fn is_level(text: &str) -> bool {
    let name = text.split('[').next().unwrap_or(text);
    LEVELS.contains(&name) && (name == text || text.ends_with(']'))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Command {
        #[command(flatten)]
        args: BuildArgs,
    }

    fn make(args: &[&str]) -> Result<Vec<Output>> {
        let all = ["build"].iter().chain(args).chain(&["."]);
        outputs(&Command::try_parse_from(all).map_err(|error| Error::invalid(error.to_string()))?.args)
    }

    fn shown(outputs: &[Output]) -> Vec<String> {
        let attrs = |output: &Output| {
            output.attrs.iter().map(|(key, value)| format!(" {key}={value}")).collect::<Vec<_>>().concat()
        };
        outputs.iter().map(|output| format!("{}{}", output.kind, attrs(output))).collect()
    }

    #[test]
    fn outputs_are_written_as_buildx_reads_them() {
        let file = |path: &str| Some(Delivery::File(path.into()));
        let dir = |path: &str, delete| Some(Delivery::Directory { path: path.into(), delete });
        for (text, kind, delivery) in [
            ("out", "local", dir("out", false)),
            ("type=local,dest=out", "local", dir("out", false)),
            ("-", "tar", Some(Delivery::Stdout)),
            ("type=tar,dest=x.tar", "tar", file("x.tar")),
            ("type=tar", "tar", Some(Delivery::Stdout)),
            ("type=oci,dest=x.tar", "oci", file("x.tar")),
            ("type=oci,dest=layout,tar=false", "oci", Some(Delivery::Layout("layout".into()))),
            ("type=docker,dest=x.tar", "docker", file("x.tar")),
            ("type=docker", "image", None),
            ("type=image,\"name=a,b\"", "image", None),
        ] {
            let output = parse(text, false).unwrap().unwrap();
            assert_eq!((output.kind.as_str(), &output.delivery), (kind, &delivery), "{text}");
        }
        assert!(parse("type=cacheonly", false).unwrap().is_none());
    }

    #[test]
    fn an_image_gets_its_names_and_is_pushed_when_asked() {
        let named = make(&["-t", "app", "-t", "example.com/team/app:2", "--push"]).unwrap();
        assert_eq!(shown(&named), ["image name=docker.io/library/app:latest,example.com/team/app:2 push=true"]);
        assert_eq!(shown(&make(&[]).unwrap()), ["image"]);
        assert_eq!(
            shown(&make(&["-o", "type=registry,name=a", "-o", "out", "-t", "b"]).unwrap()),
            ["image name=docker.io/library/a:latest,docker.io/library/b:latest push=true", "local"]
        );
        assert_eq!(
            shown(&make(&["-o", "out", "--load", "-t", "b"]).unwrap()),
            ["local", "image name=docker.io/library/b:latest"]
        );
        assert!(make(&["-o", "type=cacheonly", "-t", "app"]).unwrap().is_empty());
        assert_eq!(make(&["-o", "type=local,dest=x,mode=delete", "--allow", DELETE]).unwrap().len(), 1);
    }

    #[test]
    fn annotations_name_their_levels() {
        let annotated = make(&[
            "--annotation=a=1",
            "--annotation=index,manifest-descriptor[linux/amd64]:b=2",
            "--annotation=urn:x:c=3",
        ]);
        assert_eq!(
            shown(&annotated.unwrap()),
            ["image annotation-index.b=2 annotation-manifest-descriptor[linux/amd64].b=2 annotation-manifest.a=1 \
             annotation-manifest.urn:x:c=3"]
        );
    }

    #[test]
    fn mistakes_are_named() {
        for (args, words) in [
            (&["-o", "type=locale,dest=x"][..], "did you mean local?"),
            (&["-o", "dest=x"], "the type is missing"),
            (&["-o", "type=local"], "dest=DIR"),
            (&["-o", "type=local,dest=x,mode=move"], "mode=move"),
            (&["-o", "type=local,dest=x,mode=delete"], "--allow buildx.local.delete"),
            (&["-o", "type=local,dest=/etc/passwd"], "no directory"),
            (&["-o", "type=oci,dest=/tmp"], "is a directory"),
            (&["-o", "type=tar,dest=x,tar=false"], "type=local"),
            (&["-o", "type=oci,dest=,tar=false"], "needs a directory"),
            (&["-o", "-", "-o", "type=oci"], "only one output"),
            (&["-o", "out", "--annotation=a=b"], "no image"),
            (&["--annotation=a"], "key=value"),
            (&["--push"], "--tag"),
            (&["-t", "UPPER"], "--tag UPPER"),
        ] {
            let error = make(args).unwrap_err().to_string();
            assert!(error.contains(words), "{args:?}: {error}");
        }
        let error = parse("type=oci", true).unwrap_err().to_string();
        assert!(error.contains("terminal") && error.contains("dest=FILE"), "{error}");
    }
}
