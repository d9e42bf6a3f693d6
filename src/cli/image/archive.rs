//! `save`, `load` and `import`: images as files.

use std::io::{IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use axum::body::Body;
use clap::Args;
use http::Method;
use http_body_util::BodyExt as _;
use kiln_graph::Reference;

use crate::cli::args::Context;
use crate::cli::transfer::{Show, follow};
use crate::cli::{print, upload};
use crate::client::Query;
use crate::error::{Error, Result, ResultExt as _};

/// Arguments of `save`.
#[derive(Debug, Args)]
pub(in crate::cli) struct SaveArgs {
    /// File to write instead of standard output
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// The images; a repository without a tag means all its tags
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
}

pub(super) async fn save(context: &Context, args: &SaveArgs) -> Result<ExitCode> {
    if args.output.is_none() && std::io::stdout().is_terminal() {
        return Err(Error::invalid("cowardly refusing to save to a terminal. Use the -o flag or redirect"));
    }
    // Before the first byte, so that a folder that is not there costs nothing.
    let mut out = args.output.as_deref().map(Replacement::create).transpose()?;
    let query = args.images.iter().fold(Query::new(), |query, image| query.with("names", image));
    let request = context.client.request(Method::GET, &query.path(&["images", "get"]));
    let request = request.body(Body::empty()).expect("the request is well formed");
    let mut body = context.client.send(request).await?.into_body();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| Error::unavailable("the archive broke off").with_source(error))?;
        let bytes = frame.data_ref().map_or(&[][..], AsRef::as_ref);
        match &mut out {
            Some(out) => out.file.write_all(bytes).context(|| format!("write {}", out.path.display()))?,
            None => std::io::stdout().write_all(bytes).context(|| "write standard output")?,
        }
    }
    match out {
        Some(out) => out.keep()?,
        None => std::io::stdout().flush().context(|| "write standard output")?,
    }
    Ok(ExitCode::SUCCESS)
}

/// A file that takes the place of another when it is complete, and is removed when it is not.
struct Replacement {
    path: PathBuf,
    temporary: Option<PathBuf>,
    file: std::fs::File,
}

impl Replacement {
    fn create(path: &Path) -> Result<Self> {
        let context = || format!("write {}", path.display());
        // Devices and pipes are written as they are.
        if std::fs::metadata(path).is_ok_and(|metadata| !metadata.is_file()) {
            let file = std::fs::OpenOptions::new().write(true).open(path).context(context)?;
            return Ok(Self { path: path.to_owned(), temporary: None, file });
        }
        let name = path.file_name().ok_or_else(|| Error::invalid(format!("{} is no file", path.display())))?;
        let temporary = path.with_file_name(format!(".{}.{}", name.to_string_lossy(), std::process::id()));
        let file = std::fs::File::create_new(&temporary).context(context)?;
        Ok(Self { path: path.to_owned(), temporary: Some(temporary), file })
    }

    fn keep(mut self) -> Result<()> {
        if let Some(temporary) = self.temporary.take() {
            let moved = std::fs::rename(&temporary, &self.path);
            moved.context(|| format!("write {}", self.path.display()))?;
        }
        Ok(())
    }
}

impl Drop for Replacement {
    fn drop(&mut self) {
        if let Some(temporary) = &self.temporary {
            // Nothing else can be done about it; the name says what it is.
            let _ = std::fs::remove_file(temporary);
        }
    }
}

/// Arguments of `load`.
#[derive(Debug, Args)]
pub(in crate::cli) struct LoadArgs {
    /// File to read instead of standard input
    #[arg(short, long, value_name = "FILE")]
    input: Option<PathBuf>,
    /// Print nothing
    #[arg(short, long)]
    quiet: bool,
}

pub(super) async fn load(context: &Context, args: &LoadArgs) -> Result<ExitCode> {
    let body = match &args.input {
        Some(path) => upload::file(path)?,
        None if std::io::stdin().is_terminal() => {
            return Err(Error::invalid("requested load from stdin, but stdin is a terminal: give a file with -i"));
        }
        None => upload::stdin()?,
    };
    let query = Query::new().with("quiet", if args.quiet { "1" } else { "0" });
    let request = context
        .client
        .request(Method::POST, &query.path(&["images", "load"]))
        .header(http::header::CONTENT_TYPE, "application/x-tar")
        .body(body)
        .expect("the request is well formed");
    follow(&context.client, request, if args.quiet { Show::Nothing } else { Show::Progress }).await?;
    Ok(ExitCode::SUCCESS)
}

/// Arguments of `import`.
#[derive(Debug, Args)]
pub(in crate::cli) struct ImportArgs {
    /// A setting of the image as a Dockerfile has it, such as `CMD ["/bin/sh"]`
    #[arg(short, long = "change", value_name = "INSTRUCTION")]
    changes: Vec<String>,
    /// A remark for the image's history
    #[arg(short, long)]
    message: Option<String>,
    /// Platform of the image, os/arch[/variant]
    #[arg(long)]
    platform: Option<String>,
    /// The archive of a root file system, or - for standard input
    file: String,
    /// The image's name: REPOSITORY[:TAG]
    name: Option<String>,
}

pub(super) async fn import(context: &Context, args: &ImportArgs) -> Result<ExitCode> {
    if args.file.contains("://") {
        return Err(Error::unsupported(format!(
            "importing from a URL is not supported: download {} and import the file",
            args.file
        )));
    }
    let name = args.name.as_deref().map(str::parse::<Reference>).transpose()?;
    let body = if args.file == "-" { upload::stdin()? } else { upload::file(Path::new(&args.file))? };
    let mut query = Query::new()
        .with("fromSrc", "-")
        .with_some("repo", name.as_ref().map(Reference::repository))
        .with_some("tag", name.as_ref().and_then(Reference::tag))
        .with_some("message", args.message.as_ref())
        .with_some("platform", args.platform.as_ref());
    for change in &args.changes {
        query = query.with("changes", change);
    }
    let request = context
        .client
        .request(Method::POST, &query.path(&["images", "create"]))
        .header(http::header::CONTENT_TYPE, "application/x-tar")
        .body(body)
        .expect("the request is well formed");
    let outcome = follow(&context.client, request, Show::Nothing).await?;
    print(&format!("{}\n", outcome.last_status.unwrap_or_default()))
}
