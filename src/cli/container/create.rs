//! `create`, and the part of `run` that makes the container.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use kiln_graph::Reference;

use super::options::{Options, Pull, Streams};
use super::{exit, terminal};
use crate::cli::args::Context;
use crate::cli::image::pull;
use crate::cli::print;
use crate::cli::transfer::Show;
use crate::client::Query;
use crate::error::{Error, Kind, Result, ResultExt as _};
use crate::types::{ContainerCreateBody, ContainerCreateResponse};

/// Arguments of `create`.
#[derive(Debug, Args)]
#[command(disable_help_flag = true)]
pub(in crate::cli) struct CreateArgs {
    /// Print help
    #[arg(long, action = clap::ArgAction::Help)]
    help: Option<bool>,
    #[command(flatten)]
    pub(super) options: Options,
}

pub(super) async fn create(context: &Context, args: &CreateArgs) -> Result<ExitCode> {
    let plan = match args.options.streams().and_then(|streams| Plan::new(&args.options, streams)) {
        Ok(plan) => plan,
        Err(error) => return Ok(exit::report(&error, 125)),
    };
    let id = plan.create(context).await?;
    print(&format!("{id}\n"))
}

/// A container that can be created as soon as its image is there.
#[derive(Debug)]
pub(super) struct Plan<'a> {
    options: &'a Options,
    body: ContainerCreateBody,
    id_file: Option<IdFile>,
}

impl<'a> Plan<'a> {
    /// Converts the options, without asking the engine.
    ///
    /// # Errors
    /// As [`Options::request`]; `Conflict` when the file for the id exists.
    pub(super) fn new(options: &'a Options, streams: Streams) -> Result<Self> {
        let console = terminal::size().filter(|_| options.tty).map(|size| [size.rows, size.columns]);
        let body = options.request(streams, console)?;
        let id_file = options.cidfile.as_deref().map(IdFile::create).transpose()?;
        Ok(Self { options, body, id_file })
    }

    /// Creates the container, pulling its image if need be; returns its id.
    ///
    /// # Errors
    /// What the engine answers.
    pub(super) async fn create(self, context: &Context) -> Result<String> {
        let Self { options, body, id_file } = self;
        if options.pull == Pull::Always {
            pull_image(context, options).await?;
        }
        let query =
            Query::new().with_some("name", options.name.as_ref()).with_some("platform", options.platform.as_ref());
        let path = query.path(&["containers", "create"]);
        let post = || context.client.post::<ContainerCreateBody, ContainerCreateResponse>(&path, &body);
        let created = match post().await {
            Err(error) if options.pull == Pull::Missing && image_is_missing(context, options, &error).await => {
                let name = options
                    .image()
                    .parse::<Reference>()
                    .map_or_else(|_| options.image().to_owned(), |name| name.with_default_tag().familiar());
                eprintln!("Unable to find image '{name}' locally");
                pull_image(context, options).await?;
                post().await?
            }
            result => result?,
        };
        for warning in &created.warnings {
            anstream::eprintln!("WARNING: {warning}");
        }
        if let Some(file) = id_file {
            file.write(&created.id)?;
        }
        Ok(created.id)
    }
}

async fn pull_image(context: &Context, options: &Options) -> Result<()> {
    let name: Reference = options.image().parse()?;
    let show = if options.quiet { Show::Nothing } else { Show::Aside };
    pull::request(context, &name.with_default_tag(), options.platform.as_deref(), show).await
}

/// What is of interest of an image.
#[derive(serde::Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Inspected {
    /// Whether its layers have to be pulled; a field of Kiln's own.
    #[serde(default)]
    layers_missing: bool,
}

/// Says whether it is the image that was not found, and not a network or a volume.
async fn image_is_missing(context: &Context, options: &Options, error: &Error) -> bool {
    if error.kind() != Kind::NotFound {
        return false;
    }
    let path = Query::new().path(&["images", options.image(), "json"]);
    let image: Result<Inspected> = context.client.get(&path).await;
    // An image of another platform than the one asked for is there and yet not found.
    match image {
        Err(error) if error.kind() == Kind::NotFound => true,
        Ok(image) if image.layers_missing => true,
        _ => options.platform.is_some(),
    }
}

/// The file of `--cidfile`, which must not exist. Removed again unless an id is written.
#[derive(Debug)]
struct IdFile {
    path: PathBuf,
    file: File,
    written: bool,
}

impl IdFile {
    fn create(path: &Path) -> Result<Self> {
        match File::create_new(path) {
            Ok(file) => Ok(Self { path: path.to_owned(), file, written: false }),
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                let path = path.display();
                Err(Error::conflict(format!(
                    "container ID file found, make sure the other container isn't running or delete {path}"
                )))
            }
            Err(error) => Err(Error::from(error).context(format!("create the container ID file {}", path.display()))),
        }
    }

    fn write(mut self, id: &str) -> Result<()> {
        self.file.write_all(id.as_bytes()).context(|| format!("write the container ID to {}", self.path.display()))?;
        self.written = true;
        Ok(())
    }
}

impl Drop for IdFile {
    fn drop(&mut self) {
        if !self.written {
            // It is empty: of no use, and in the way of the next attempt.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_of_the_id_is_new_and_goes_when_nothing_was_created() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("id");
        drop(IdFile::create(&path).unwrap());
        assert!(!path.exists());
        IdFile::create(&path).unwrap().write("abc").unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "abc");
        assert!(IdFile::create(&path).unwrap_err().to_string().contains("container ID file found"));
        assert!(path.exists());
    }
}
