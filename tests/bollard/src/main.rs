//! A client made with the crate `bollard`: `bollard-client HOW TO HOST DOCKERFILE [ARG=VALUE]...` builds a Dockerfile with the engine
//! at a socket. The secret `token` is the file of that name in the current directory.
//!
//! HOW is `moby` (BuildKit over upgraded connections, TO is the image's name), `oci` (BuildKit on the socket itself, TO is an
//! archive), `registry` (the same, TO is the name to push) or `post` (`POST /build` in version 2, TO is the image's name; the names of
//! the steps are printed).

use std::error::Error;
use std::path::Path;

use bollard::grpc::build::{ImageBuildFrontendOptions, ImageBuildLoadInput, SecretSource};
use bollard::grpc::driver::buildkitd::BuildkitDaemon;
use bollard::grpc::driver::moby::Moby;
use bollard::grpc::driver::{Build as _, Export as _, Image as _, ImageExporterEnum};
use bollard::grpc::export::ImageExporterOutput;
use bollard::grpc::registry::ImageRegistryOutput;
use bollard::models::BuildInfoAux;
use bollard::query_parameters::{BuildImageOptionsBuilder, BuilderVersion};
use bollard::{API_DEFAULT_VERSION, Docker};
use futures_util::TryStreamExt as _;
use tonic::transport::Endpoint;

/// How long the engine may take, in seconds.
const PATIENCE_S: u64 = 120;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [how, to, host, dockerfile, build_args @ ..] = &args[..] else {
        return Err("usage: bollard-client HOW TO HOST DOCKERFILE [ARG=VALUE]...".into());
    };
    let context = context(&std::fs::read(dockerfile)?)?;
    let token = SecretSource::File("token".into());
    let mut options = ImageBuildFrontendOptions::builder();
    if Path::new("token").exists() {
        options = options.set_secret("token", &token);
    }
    for (name, value) in build_args.iter().filter_map(|arg| arg.split_once('=')) {
        options = options.buildarg(name, value);
    }
    let (options, upload) = (options.build(), ImageBuildLoadInput::Upload(context.clone().into()));
    let docker = || Docker::connect_with_unix(host.trim_start_matches("unix://"), PATIENCE_S, API_DEFAULT_VERSION);
    let buildkit = || Endpoint::try_from(host.clone()).map(BuildkitDaemon::new);
    match how.as_str() {
        "moby" => Moby::new(&docker()?).docker_build(to, options, upload, None, None).await?,
        "oci" => {
            let request = ImageExporterOutput::builder("docker.io/library/exported:latest").dest(Path::new(to));
            buildkit()?.export(ImageExporterEnum::OCI(request), options, upload, None, None).await?;
        }
        "registry" => {
            let output = ImageRegistryOutput::builder(to).push(true).consume();
            buildkit()?.registry(output, options, upload, None, None).await?;
        }
        "post" => post(&docker()?, to, context).await?,
        other => return Err(format!("unknown way {other}").into()),
    }
    Ok(())
}

/// Returns a context that is a Dockerfile.
fn context(dockerfile: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut header = tar::Header::new_gnu();
    header.set_mode(0o644);
    header.set_size(dockerfile.len() as u64);
    let mut archive = tar::Builder::new(Vec::new());
    archive.append_data(&mut header, "Dockerfile", dockerfile)?;
    archive.into_inner()
}

async fn post(docker: &Docker, name: &str, context: Vec<u8>) -> Result<(), Box<dyn Error>> {
    let options = BuildImageOptionsBuilder::default()
        .dockerfile("Dockerfile")
        .t(name)
        .version(BuilderVersion::BuilderBuildKit)
        .session(name);
    let body = http_body_util::Either::Left(http_body_util::Full::new(context.into()));
    let mut told = docker.build_image(options.build(), None, Some(body));
    while let Some(info) = told.try_next().await? {
        if let Some(BuildInfoAux::BuildKit(status)) = info.aux {
            status.vertexes.iter().for_each(|vertex| println!("{}", vertex.name));
        }
    }
    Ok(())
}
