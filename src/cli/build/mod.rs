//! `build`: sends the build to the engine, offers it secrets and credentials meanwhile, and shows how it goes.

mod attest;
mod cache;
mod call;
mod context;
mod failure;
mod named;
mod offer;
mod on_failure;
mod options;
mod output;
mod policy;
mod progress;
mod replay;
mod request;
mod resources;
mod result;
mod screen;
mod secret;
mod ssh;
mod unsupported;
mod verify;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use clap::Subcommand;
use futures_util::StreamExt as _;

use self::cache::Caches;
use self::call::Asked;
pub(super) use self::call::alone;
use self::context::Sources;
use self::on_failure::OnFailure;
pub(super) use self::options::BuildArgs;
pub(super) use self::progress::Mode as ProgressMode;
use self::progress::{Detail as WarningDetail, Display, Mode, Outcome};
pub(super) use self::replay::{Timing, excerpts, replay, timings};
use self::request::Surroundings;
use self::screen::{Received, Screen, Signals};
use self::secret::Secrets;
pub(super) use self::unsupported::explain;
use super::args::Context;
use super::print;
use crate::client::{Agents, Delivery, Endpoint, Offer, Refused, Uploads};
use crate::config::docker::DockerConfig;
use crate::error::{Error, Result};
use crate::types::build::{SolveRequest, SolveResponse, UPLOAD_HOST};

/// Frames are drawn so often.
const FRAME: Duration = Duration::from_millis(80);

/// How long the last reports of a build are waited for after its end.
const PATIENCE: Duration = Duration::from_secs(5);

/// The command without a noun.
#[derive(Debug, Subcommand)]
pub(super) enum Flat {
    /// Build an image from a Dockerfile
    Build(Box<BuildArgs>),
}

impl Flat {
    pub(super) async fn run(self, context: &Context) -> Result<ExitCode> {
        match self {
            Self::Build(args) => Box::pin(build(context, &args)).await,
        }
    }
}

/// How a build ended for this command.
enum End {
    Built(SolveResponse),
    Failed(Refused),
    /// By a signal of this number.
    Interrupted(u8),
}

async fn build(context: &Context, args: &BuildArgs) -> Result<ExitCode> {
    let asked = Asked::parse(args)?;
    let mut screen = Screen::new();
    let mode = if args.quiet { Mode::Quiet } else { args.progress };
    if mode == Mode::Tty && !screen.is_terminal() {
        return Err(Error::invalid("--progress=tty: standard error is not a terminal"));
    }
    args.on_failure.iter().try_for_each(OnFailure::check)?;
    let secrets = Secrets::parse(&args.secrets, |name| std::env::var_os(name).is_some())?;
    let docker = DockerConfig::load(&context.environment)?;
    let agent = std::env::var_os("SSH_AUTH_SOCK").filter(|path| !path.is_empty());
    let agents = ssh::agents(&args.ssh, agent.as_deref().map(Path::new))?;
    let upload = format!("http://{UPLOAD_HOST}/{}", identifier()?);
    let mut sources = Sources::find(&args.context, args.file.as_deref(), std::io::stdin(), &upload)?;
    let uploads = sources.upload.take().map(|content| (upload, content.0));
    let surroundings = Surroundings {
        proxies: docker.proxy_args(&context.client.endpoint().to_string()),
        epoch: std::env::var("SOURCE_DATE_EPOCH").ok().filter(|epoch| !epoch.is_empty()),
        metadata_provenance: std::env::var("BUILDX_METADATA_PROVENANCE").ok().filter(|mode| !mode.is_empty()),
    };
    let outputs = output::outputs(args)?;
    let caches = Caches::read(args)?;
    let mut request = request::request(args, sources, &outputs, surroundings)?;
    request.cache.clone_from(&caches.options);
    let policy = std::env::var_os(policy::VARIABLE).filter(|path| !path.is_empty());
    request.source_policy = policy.map(|path| policy::read(Path::new(&path))).transpose()?;
    let reference = identifier()?;
    request.r#ref.clone_from(&reference);
    request.session = identifier()?;
    request.frontend_attrs.extend(asked.map(|asked| ("requestid".to_owned(), asked.call.request_id().to_owned())));
    let mut display = Display::new(mode, screen.is_terminal(), screen.colors(), screen.now());
    let deliveries: Vec<_> = outputs.into_iter().map(|output| output.delivery).collect();
    let stdout_taken = deliveries.contains(&Some(Delivery::Stdout));
    let dirs = match context.client.endpoint() {
        // It is this program with these credentials: it reads them in place.
        Endpoint::Child(_) => BTreeMap::new(),
        _ => offer::take_directories(&mut request),
    };
    let (mut dirs, mut content) = (dirs, caches.stores.clone());
    content.extend(offer::take_layouts(&mut dirs));
    caches.warnings.iter().for_each(|warning| screen.report(&format!("WARNING: {warning}\n")));
    let offer = Offer {
        agents: Agents(agents),
        uploads: Uploads::new(uploads),
        shared_key: offer::shared_key(&dirs),
        dirs,
        content,
        ..offer::offer(secrets, docker, deliveries)
    };
    let session = context.client.session(&request.session, offer).await?;
    let detail = if args.debug { WarningDetail::Full } else { WarningDetail::Short };
    match follow(context, request, &mut display, &mut screen, detail).await? {
        End::Built(response) => {
            caches.name(&response)?;
            if let Some(asked) = asked {
                return asked.answered(args, &response);
            }
            if let Some(comparison) = verify::comparison(&response)? {
                screen.report(&verify::report(&comparison));
                if comparison.total > 0 {
                    return Ok(ExitCode::FAILURE);
                }
            }
            // buildx writes warnings when it is asked to.
            let asked = std::env::var("BUILDX_METADATA_WARNINGS").is_ok_and(|wanted| wanted == "1" || wanted == "true");
            let warnings = display.trace().warnings().iter().filter(|_| asked).map(|warning| warning.json.clone());
            let metadata =
                args.metadata_file.is_some().then(|| result::metadata(&response, &reference, warnings.collect()));
            finish(args, &response, metadata.as_deref(), stdout_taken)
        }
        End::Failed(refused) => {
            screen.report(&failure::report(&refused, display.trace()));
            on_failure::deal(&context.client, &args.on_failure, &refused, &mut screen).await?;
            // The engine keeps a failed step as long as the session is open.
            drop(session);
            Ok(ExitCode::from(refused.error.kind().codes().2.max(1)))
        }
        End::Interrupted(signal) => Ok(ExitCode::from(128 + signal)),
    }
}

/// Sends the build and shows how it goes until it has ended. Leaving early cancels the build.
async fn follow(
    context: &Context,
    request: SolveRequest,
    display: &mut Display,
    screen: &mut Screen,
    detail: WarningDetail,
) -> Result<End> {
    let mut signals = Signals::new()?;
    let builder = context.client.builder().await?;
    let mut reports = builder.status(&request.r#ref).boxed();
    let mut solve = Box::pin(builder.solve(request));
    let mut frames = tokio::time::interval_at(tokio::time::Instant::now() + FRAME, FRAME);
    let (mut end, mut more) = (None, true);
    while end.is_none() || more {
        tokio::select! {
            report = reports.next(), if more => match report {
                Some(Ok(report)) => screen.show(&display.update(&report)),
                // What went wrong is what the build itself answers.
                Some(Err(_)) | None => more = false,
            },
            built = &mut solve, if end.is_none() => end = Some(built.map_or_else(End::Failed, End::Built)),
            _ = frames.tick(), if display.is_animated() => screen.show(&display.frame(screen.now(), screen.size())),
            signal = signals.next() => match signal {
                Received::Resized => screen.show(&display.frame(screen.now(), screen.size())),
                Received::Interrupted(signal) => {
                    end = Some(End::Interrupted(signal));
                    break;
                }
            },
            () = tokio::time::sleep(PATIENCE), if end.is_some() => more = false,
        }
    }
    let end = end.expect("the loop goes on until there is an end");
    let outcome = match end {
        End::Built(_) => Outcome::Finished,
        End::Failed(_) => Outcome::Failed,
        End::Interrupted(_) => Outcome::Interrupted,
    };
    screen.show(&display.finish(screen.now(), screen.size(), outcome, detail));
    Ok(end)
}

fn finish(args: &BuildArgs, response: &SolveResponse, metadata: Option<&str>, stdout_taken: bool) -> Result<ExitCode> {
    let id = result::image_id(response);
    if let Some(path) = &args.iidfile {
        let id = id.ok_or_else(|| Error::invalid("--iidfile: no image was made"))?;
        result::write(path, id)?;
    }
    if let (Some(path), Some(metadata)) = (&args.metadata_file, metadata) {
        result::write(path, metadata)?;
    }
    match id {
        Some(id) if args.quiet && !stdout_taken => print(&format!("{id}\n")),
        _ => Ok(ExitCode::SUCCESS),
    }
}

/// Returns 25 random letters and digits, as BuildKit's clients name builds and sessions.
fn identifier() -> Result<String> {
    const LETTERS: &[u8; 36] = b"abcdefghijklmnopqrstuvwxyz0123456789";
    let mut random = [0; 25];
    getrandom::fill(&mut random).map_err(|error| Error::internal(format!("get random numbers: {error}")))?;
    Ok(random.iter().map(|byte| char::from(LETTERS[usize::from(*byte) % LETTERS.len()])).collect())
}
