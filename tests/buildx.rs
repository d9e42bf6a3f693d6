//! Docker's command and buildx against the daemon: all that people ask of them, with both of buildx's drivers that need no
//! container, `docker` (upgraded connections) and `remote` (gRPC on the socket).

mod support;

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use support::certificates::Certificates;
use support::registry::{self, Access, Connection, PASSWORD, Registry, USER};
use support::ssh::{Agent, put_ssh_add};
use support::terminal::Terminal;
use support::{Daemon, Docker, Outcome, Run, command};

/// The builders: docker's own, of the driver `docker`, and the one that [`Client::start`] makes.
const BUILDERS: [&str; 2] = ["default", "remote"];

/// A daemon, and docker's command for it.
struct Client {
    daemon: Daemon,
    docker: Docker,
}

impl Client {
    /// `None` where it cannot be tried.
    fn start() -> Option<Self> {
        let docker = Docker::with_buildx()?;
        let client = Self { daemon: Daemon::start()?, docker };
        client.run(&["buildx", "create", "--name", "remote", "--driver", "remote", &client.daemon.host]).ok();
        Some(client)
    }

    fn run(&self, args: &[&str]) -> Run {
        self.daemon.docker(&self.docker, args)
    }

    /// Builds the scratch directory; panics unless it succeeds.
    fn build(&self, builder: &str, args: &[&str]) -> Outcome {
        self.prepare(builder, args).output().expect_code(0)
    }

    fn prepare(&self, builder: &str, args: &[&str]) -> Run {
        self.run(&["buildx", "build", "--progress=plain", "--builder", builder]).args(args).arg(".")
    }

    fn bake(&self, builder: &str, args: &[&str]) -> Outcome {
        self.run(&["buildx", "bake", "--progress=plain", "--builder", builder]).args(args).output().expect_code(0)
    }

    fn write(&self, path: &str, content: &str) {
        self.daemon.kiln.write(path, content);
    }

    fn read(&self, path: &str) -> String {
        let path = self.daemon.kiln.scratch().join(path);
        fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }

    /// Removes all that earlier builds left to be found.
    fn forget(&self) {
        self.run(&["builder", "prune", "-a", "-f"]).ok();
    }
}

/// How many steps were found.
fn found(outcome: &Outcome) -> usize {
    outcome.stderr.lines().filter(|line| line.ends_with(" CACHED")).count()
}

fn parse(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// Returns a file of an archive.
fn member(archive: &Path, name: &str) -> Option<String> {
    let mut archive = tar::Archive::new(fs::File::open(archive).expect("open an archive"));
    let entries = archive.entries().expect("read an archive").map(|entry| entry.expect("read an entry"));
    let mut found = entries.filter(|entry| entry.path().is_ok_and(|path| path == Path::new(name)));
    found.next().map(|mut entry| std::io::read_to_string(&mut entry).expect("read a file"))
}

/// Asks a registry for a document as it is.
fn raw(registry: &Registry, name: &str) -> Value {
    let image = format!("docker://{}/{name}", registry.host());
    let credentials = format!("--creds={USER}:{PASSWORD}");
    parse(&command::run("skopeo", ["inspect", "--raw", "--tls-verify=false", &credentials, &image]))
}

#[test]
fn privileged_docker_and_buildx_build_with_both_drivers() {
    let Some(client) = Client::start() else { return };
    client.write("Dockerfile", "FROM busybox\nCOPY a /a\nRUN cp /a /b\n");
    client.write("a", "one");
    client.run(&["build", "--progress=plain", "-t", "app", "."]).ok();
    assert_eq!(client.daemon.cat("app", "/b"), "one");
    client.write("a", "two");
    client.build("remote", &["--output=type=image,name=far"]);
    assert_eq!(client.daemon.cat("far", "/b"), "two");
    client.write("Dockerfile", "FROM busybox\nCOPY missing /a\n");
    for builder in BUILDERS {
        let failed = client.prepare(builder, &[]).fails();
        failed.expect_stderr(&["Dockerfile:2", "/missing"]);
    }
}

#[test]
fn privileged_the_remote_driver_speaks_mutual_tls() {
    let Some(docker) = Docker::with_buildx() else { return };
    let Some(certificates) = Certificates::make() else { return };
    let client = Client { daemon: Daemon::over_tls(&certificates), docker };
    let host = client.daemon.also("tcp://");
    client.write("Dockerfile", "FROM busybox\nCOPY a /a\n");
    client.write("a", "by TLS");
    let path = |name: &str| certificates.path(name);
    let files = format!("cacert={},cert={},key={}", path("ca.pem"), path("client.pem"), path("client.key"));
    client.run(&["buildx", "create", "--name", "trusted", "--driver", "remote", "--driver-opt", &files, &host]).ok();
    client.build("trusted", &["-o", "type=image,name=secured"]);
    assert_eq!(client.daemon.cat("secured", "/a"), "by TLS");
}

#[test]
fn privileged_results_go_where_buildx_is_told() {
    let Some(client) = Client::start() else { return };
    client.write(
        "Dockerfile",
        "FROM busybox AS made\nRUN mkdir /d && echo made >/d/f\nFROM scratch\nCOPY --from=made /d /d\n",
    );
    for builder in BUILDERS {
        let to = |name: &str| format!("{builder}-{name}");
        let path = |name: &str| client.daemon.kiln.scratch().join(to(name));
        client.build(builder, &["-o", &to("files")]);
        assert_eq!(client.read(&to("files/d/f")), "made\n");
        client.build(builder, &["-o", &format!("type=tar,dest={}", to("files.tar"))]);
        assert_eq!(member(&path("files.tar"), "d/f").as_deref(), Some("made\n"));
        client.build(builder, &["-o", &format!("type=oci,dest={}", to("oci.tar"))]);
        assert!(member(&path("oci.tar"), "index.json").is_some_and(|index| index.contains("manifests")));
        client.build(builder, &["-t", "named", "-o", &format!("type=docker,dest={}", to("docker.tar"))]);
        let manifest = member(&path("docker.tar"), "manifest.json").expect("a manifest");
        assert_eq!(parse(&manifest)[0]["RepoTags"], json!(["named:latest"]), "{manifest}");

        // From another driver the image comes as an archive that docker's command loads.
        let name = to("loaded");
        client.build(builder, &["-t", &name, "--load", "--iidfile", "id", "--metadata-file", "told"]);
        let id = client.run(&["image", "inspect", "-f", "{{.Id}}", &name]).ok();
        let told = parse(&client.read("told"));
        assert!(told["containerimage.digest"].is_string(), "{told}");
        // That is the image's id or, as with BuildKit, the digest of the index it is in with what is attested of it.
        let by_id = ["image", "inspect", "-f", "{{.Id}}", &client.read("id")];
        assert_eq!(client.run(&by_id).ok(), id, "{told}");
    }
}

#[test]
fn privileged_images_are_pushed_with_the_clients_credentials() {
    let Some(client) = Client::start() else { return };
    if !registry::is_installed() {
        return;
    }
    let registry = Registry::start_with(Access::Password, Connection::Plain);
    client.write("Dockerfile", "FROM busybox\nRUN echo made >/f\n");
    for builder in BUILDERS {
        let name = |tag: &str| format!("{}/{builder}:{tag}", registry.host());
        client.prepare(builder, &["-t", &name("a"), "--push"]).fails().expect_stderr(&["401"]);
    }
    let login = ["login", "-u", USER, "--password-stdin", registry.host()];
    client.run(&login).stdin(PASSWORD).output().expect_code(0);
    for builder in BUILDERS {
        let name = |tag: &str| format!("{}/{builder}:{tag}", registry.host());
        client.build(builder, &["-t", &name("a"), "-t", &name("b"), "--push", "--metadata-file", "told"]);
        let told = parse(&client.read("told"));
        assert_eq!(told["image.name"], format!("{},{}", name("a"), name("b")));
        for tag in ["a", "b"] {
            let pushed = raw(&registry, &format!("{builder}:{tag}"));
            assert_eq!(
                pushed,
                raw(&registry, &format!("{builder}@{}", told["containerimage.digest"].as_str().unwrap()))
            );
        }
    }
}

#[test]
fn privileged_buildx_uses_and_writes_caches() {
    let Some(client) = Client::start() else { return };
    if !registry::is_installed() {
        return;
    }
    let registry = Registry::start();
    client.write("Dockerfile", "FROM busybox AS made\nCOPY a /a\nRUN cp /a /b\nFROM busybox\nCOPY --from=made /b /\n");
    for builder in BUILDERS {
        client.write("a", builder);
        let image = format!("{}/{builder}:image", registry.host());
        let kept = format!("{}/{builder}:cache", registry.host());
        let ways = [
            (format!("type=local,dest={builder},mode=max"), format!("type=local,src={builder}"), 4),
            (format!("type=registry,ref={kept},mode=max"), format!("type=registry,ref={kept}"), 4),
            // That has the layers of the image, and of what it was made no files.
            ("type=inline".to_owned(), image.clone(), 4),
        ];
        for (to, from, steps) in ways {
            client.forget();
            client.build(builder, &["-t", &image, "--push", "--cache-to", &to]);
            client.forget();
            let again = client.build(builder, &["-o", "type=cacheonly", "--cache-from", &from]);
            assert_eq!(found(&again), steps, "{to}: {}", again.report());
        }
    }
}

#[test]
fn privileged_secrets_and_agents_are_those_of_the_client() {
    let Some(client) = Client::start() else { return };
    let scratch = client.daemon.kiln.scratch();
    put_ssh_add(&client.daemon.kiln, "root");
    command::shell(&scratch, "ssh-keygen -q -t ed25519 -N '' -f in-agent; ssh-keygen -q -t ecdsa -N '' -f in-file");
    let agent = Agent::start(&scratch);
    agent.add(&scratch.join("in-agent"));
    client.write("token", "from a file");
    let dockerfile = "FROM busybox\nCOPY root /\nARG builder\n\
        RUN --mount=type=secret,id=file,required echo \"got $(cat /run/secrets/file)\"\n\
        RUN --mount=type=secret,id=variable,env=IT echo \"got $IT\"\n\
        RUN --mount=type=ssh,required ssh-add -L | sed 's/^/default has /'\n\
        RUN --mount=type=ssh,id=other,required ssh-add -L | sed 's/^/other has /'\n";
    client.write("Dockerfile", dockerfile);
    for builder in BUILDERS {
        let asked = client
            .prepare(builder, &["--no-cache", "--secret", "id=file,src=token", "--secret", "id=variable,env=OF_CLIENT"])
            .args(["--ssh", "default", "--ssh", "other=in-file"])
            .env("OF_CLIENT", "from the environment")
            .env("SSH_AUTH_SOCK", &agent.socket);
        let words = ["got from a file", "got from the environment", "default has ssh-ed25519 ", "other has ecdsa-"];
        asked.output().expect_code(0).expect_stderr(&words);
        client.prepare(builder, &["--no-cache"]).fails().expect_stderr(&["secret file: not found"]);
    }
}

#[test]
fn privileged_buildx_builds_for_several_platforms() {
    let Some(client) = Client::start() else { return };
    if !registry::is_installed() {
        return;
    }
    let registry = Registry::start();
    let dockerfile = "FROM --platform=$BUILDPLATFORM busybox AS made\nARG TARGETARCH\nRUN echo $TARGETARCH >/arch\n\
        FROM scratch\nCOPY --from=made /arch /\n";
    client.write("Dockerfile", dockerfile);
    for builder in BUILDERS {
        let platforms = "--platform=linux/amd64,linux/arm64,linux/arm/v7";
        let name = format!("{}/{builder}", registry.host());
        client.build(builder, &[platforms, "-t", &name, "--push"]);
        let index = raw(&registry, &format!("{builder}:latest"));
        let platforms_of = |entry: &Value| entry["platform"]["architecture"].as_str().unwrap_or_default().to_owned();
        let entries: Vec<String> = index["manifests"].as_array().expect("an index").iter().map(platforms_of).collect();
        // Each image is followed by what buildx wants to be attested of it.
        assert_eq!(entries, ["amd64", "arm64", "arm", "unknown", "unknown", "unknown"], "{index}");
        client.build(builder, &[platforms, "-o", &format!("type=local,dest={builder}")]);
        for (dir, arch) in [("linux_amd64", "amd64"), ("linux_arm64", "arm64"), ("linux_arm_v7", "arm")] {
            assert_eq!(client.read(&format!("{builder}/{dir}/arch")), format!("{arch}\n"));
        }
        client.build(builder, &[platforms, "-o", &format!("type=oci,dest={builder}.tar")]);
        assert!(member(&client.daemon.kiln.scratch().join(format!("{builder}.tar")), "oci-layout").is_some());
    }
}

#[test]
fn privileged_buildx_bakes_several_targets_that_need_each_other() {
    let Some(client) = Client::start() else { return };
    let file = r#"
variable "WORD" { default = "usual" }
group "default" { targets = ["app", "docs"] }
target "base" {
  context = "base"
  args = { WORD = WORD }
}
target "app" {
  inherits = ["_named"]
  contexts = { base = "target:base", extra = "extra" }
  dockerfile-inline = "FROM base\nCOPY --from=extra file /extra\nRUN cat /word /extra >/all\n"
}
target "docs" {
  context = "docs"
  contexts = { base = "target:base" }
  output = ["type=local,dest=out"]
}
target "_named" { tags = ["baked", "baked:second"] }
"#;
    client.write("docker-bake.hcl", file);
    client.write("base/Dockerfile", "FROM busybox\nARG WORD\nRUN echo $WORD >/word\n");
    client.write("docs/Dockerfile", "FROM scratch\nCOPY --from=base /word /word\n");
    client.write("extra/file", "extra\n");
    for builder in BUILDERS {
        let load = if builder == "remote" { ["--set", "app.output=type=docker"].as_slice() } else { &[] };
        client.bake(builder, load);
        assert_eq!(client.daemon.cat("baked:second", "/all"), "usual\nextra");
        assert_eq!(client.read("out/word"), "usual\n");
        let other = [&["--set", "base.args.WORD=other", "--metadata-file", "told"], load].concat();
        client.bake(builder, &other);
        assert_eq!(client.daemon.cat("baked", "/all"), "other\nextra");
        assert_eq!(client.read("out/word"), "other\n");
        let told = parse(&client.read("told"));
        assert!(told["app"]["image.name"].is_string() && told["docs"].is_object(), "{told}");
        client.run(&["rmi", "baked", "baked:second"]).ok();
    }
}

#[test]
fn privileged_buildx_opens_a_failed_step_and_a_result() {
    let Some(client) = Client::start() else { return };
    let home = client.daemon.kiln.home();
    let program = client.docker.program(&home).to_str().expect("a path of text").to_owned();
    let debug = |on: &str, dockerfile: &str, look: &str, seen: &str| {
        client.write("Dockerfile", dockerfile);
        let mut terminal = Terminal::run(&program, [40, 120], |command| {
            command.args([
                "buildx",
                "debug",
                on,
                "--invoke=/bin/sh",
                "build",
                "--progress=plain",
                "--network=none",
                ".",
            ]);
            command
                .current_dir(client.daemon.kiln.scratch())
                .env("HOME", &home)
                .env("DOCKER_HOST", &client.daemon.host);
            command.env("BUILDX_EXPERIMENTAL", "1").env_remove("DOCKER_CONFIG").env_remove("DOCKER_CONTEXT");
        });
        terminal.until_it_says("Interactive container");
        terminal.until_it_says("/ #");
        terminal.keys(format!("{look}\r"));
        terminal.until_it_says(seen);
        terminal.keys("exit\r");
        terminal.until_it_says("(buildx)");
        terminal.keys("exit\r");
    };
    let failing = "FROM busybox\nRUN echo kept > /left && exit 3\n";
    debug("--on=error", failing, "echo it-is-$(cat /left)", "it-is-kept");
    let fine = "FROM busybox\nENV A=image\nRUN echo made > /made\n";
    debug("--on=always", fine, "echo it-is-$(cat /made)-$A", "it-is-made-image");
}
