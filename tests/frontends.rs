//! Frontends that are images. The one that is tried here is this very program: it runs in a container of the build as
//! [`plays_the_frontend`], and does what its build argument `PLAY` tells it.

mod support;

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::time::Duration;

use kiln::types::build::frontend::llb_bridge_client::LlbBridgeClient;
use kiln::types::build::frontend::{
    self, Attestation, AttestationKind, Attestations, EvaluateRequest, InTotoSubject, InputsRequest, PingRequest,
    ReadFileRequest, Ref, Result as FrontendResult, ReturnRequest, result,
};
use kiln::types::build::{Exporter, SolveRequest, google, pb};
use support::frontend::{Frontend, reference};
use support::llb::{Bind, Llb, mkdir, mkfile};
use support::registry::Registry;
use support::{Daemon, PATIENCE, Run, base, eventually, registry};
use tokio::net::unix::pipe;
use tonic::transport::Channel;

/// What the frontend says before all else.
const GREETING: &str = "the cook has come";

/// The frontend itself. Its line to the engine is on the descriptors 3 and 4, because what tests print goes to standard output.
#[test]
fn plays_the_frontend() {
    if std::env::var("BUILDKIT_SESSION_ID").is_err() {
        // It is a test run, and no build.
        return;
    }
    eprintln!("{GREETING}");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(play(&options()));
}

/// The attributes of the build.
fn options() -> BTreeMap<String, String> {
    let given = std::env::vars().filter(|(name, _)| name.starts_with("BUILDKIT_FRONTEND_OPT_"));
    given
        .filter_map(|(_, value)| value.split_once('=').map(|(key, value)| (key.to_owned(), value.to_owned())))
        .collect()
}

async fn line() -> LlbBridgeClient<Channel> {
    let ends = || {
        let reader = pipe::OpenOptions::new().open_receiver("/proc/self/fd/4")?;
        let writer = pipe::OpenOptions::new().open_sender("/proc/self/fd/3")?;
        std::io::Result::Ok(hyper_util::rt::TokioIo::new(tokio::io::join(reader, writer)))
    };
    let mut ends = Some(ends().expect("open the line to the engine"));
    let connector = tower::service_fn(move |_: http::Uri| {
        let ends = ends.take();
        async move { ends.ok_or_else(|| std::io::Error::other("there is one line only")) }
    });
    let endpoint = tonic::transport::Endpoint::from_static("http://engine");
    LlbBridgeClient::new(endpoint.connect_with_connector(connector).await.expect("reach the engine"))
}

async fn play(options: &BTreeMap<String, String>) {
    let option = |name: &str| options.get(&format!("build-arg:{name}")).cloned().unwrap_or_default();
    let mut bridge = line().await;
    let pong = bridge.ping(PingRequest {}).await.expect("the engine does its part").into_inner();
    assert!(
        pong.workers.len() == 1
            && std::env::var("BUILDKIT_WORKERS").expect("the engine does its part").contains("linux")
    );
    assert_eq!(std::env::var("BUILDKIT_EXPORTEDPRODUCT").expect("the engine does its part"), "");
    match option("PLAY").as_str() {
        "exit" => {
            eprintln!("there is nothing to cook");
            std::process::exit(3);
        }
        "hang" => tokio::time::sleep(Duration::from_secs(3600)).await,
        "fail" => {
            let error = google::rpc::Status { code: 9, message: "there is no salt".into(), details: Vec::new() };
            bridge
                .r#return(ReturnRequest { result: None, error: Some(error) })
                .await
                .expect("the engine does its part");
        }
        "steal" => {
            let other = option("STOLEN");
            bridge.evaluate(EvaluateRequest { r#ref: other.clone() }).await.expect_err("it is another's");
            let read = ReadFileRequest { r#ref: other.clone(), file_path: "/x".into(), ..Default::default() };
            bridge.read_file(read).await.expect_err("it is another's");
            give(&mut bridge, &other, HashMap::new()).await;
        }
        "network" => {
            let interfaces = std::fs::read_to_string("/proc/net/dev").expect("the engine does its part");
            let error = google::rpc::Status { code: 9, message: interfaces, details: Vec::new() };
            bridge
                .r#return(ReturnRequest { result: None, error: Some(error) })
                .await
                .expect("the engine does its part");
        }
        "again" => {
            let solved = solve(&mut bridge, "gateway.v0", options.clone()).await;
            bridge
                .r#return(ReturnRequest { result: Some(solved), error: None })
                .await
                .expect("the engine does its part");
        }
        "inputs" => {
            let inputs =
                bridge.inputs(InputsRequest {}).await.expect("the engine does its part").into_inner().definitions;
            let id = build(&mut bridge, inputs["dish"].clone()).await;
            give(&mut bridge, &id, HashMap::new()).await;
        }
        "llb" => {
            let mut llb = Llb::default();
            let base = llb.busybox();
            let seasoned = llb.file(&base, vec![mkfile("/salt", 0o644, &option("SALT"))]);
            let cooked = llb.sh(&seasoned, "cp /salt /soup");
            let id = build(&mut bridge, llb.end(&cooked)).await;
            let config = br#"{"architecture":"amd64","os":"linux","config":{"Env":["PATH=/bin","BY=cook"]}}"#.to_vec();
            give(&mut bridge, &id, HashMap::from([("containerimage.config".to_owned(), config)])).await;
        }
        "tell" => {
            let mut solved = solve(&mut bridge, "dockerfile.v0", options.clone()).await;
            let attestation = attestations(&mut bridge, &option("ABOUT")).await;
            solved.attestations.insert(format!("linux/{}", base::arch()), Attestations { attestation });
            bridge
                .r#return(ReturnRequest { result: Some(solved), error: None })
                .await
                .expect("the engine does its part");
        }
        "list" => {
            let mut llb = Llb::default();
            let attrs = [("local.metadatatransfer", "true"), ("local.metadatatransferexclude", "[\"a\"]")];
            let context = llb.source("local://context", &attrs);
            let base = llb.busybox();
            let script = "ls -A /in > /listed; grep -q Dockerfile /in/.fsutil-metadata && echo all >> /listed";
            let listed = llb.run(&base, script, &[Bind::of(&context, "/in")]).remove(0);
            let id = build(&mut bridge, llb.end(&listed)).await;
            give(&mut bridge, &id, HashMap::new()).await;
        }
        // The usual: the Dockerfile frontend with other options.
        _ => {
            let mut options = options.clone();
            options.insert("build-arg:BY".to_owned(), "cook".to_owned());
            let solved = solve(&mut bridge, "dockerfile.v0", options).await;
            bridge
                .r#return(ReturnRequest { result: Some(solved), error: None })
                .await
                .expect("the engine does its part");
        }
    }
}

async fn solve(
    bridge: &mut LlbBridgeClient<Channel>,
    frontend: &str,
    options: BTreeMap<String, String>,
) -> FrontendResult {
    let frontend_opt = options.into_iter().collect();
    let request = frontend::SolveRequest { frontend: frontend.into(), frontend_opt, ..Default::default() };
    match bridge.solve(request).await {
        Ok(solved) => solved.into_inner().result.unwrap_or_default(),
        Err(status) => {
            let error = google::rpc::Status { code: 2, message: status.message().into(), details: Vec::new() };
            bridge
                .r#return(ReturnRequest { result: None, error: Some(error) })
                .await
                .expect("the engine does its part");
            std::process::exit(1);
        }
    }
}

async fn build(bridge: &mut LlbBridgeClient<Channel>, definition: pb::Definition) -> String {
    let request = frontend::SolveRequest { definition: Some(definition), ..Default::default() };
    reference(
        &bridge
            .solve(request)
            .await
            .expect("the engine does its part")
            .into_inner()
            .result
            .expect("the engine does its part"),
    )
}

async fn give(bridge: &mut LlbBridgeClient<Channel>, id: &str, metadata: HashMap<String, Vec<u8>>) {
    let reference = result::Result::Ref(Ref { id: id.to_owned(), def: None });
    let result = FrontendResult { result: Some(reference), metadata, ..Default::default() };
    bridge.r#return(ReturnRequest { result: Some(result), error: None }).await.expect("the engine does its part");
}

/// What is said about a result: a predicate in a file, and statements in a directory.
async fn attestations(bridge: &mut LlbBridgeClient<Channel>, about: &str) -> Vec<Attestation> {
    let statement = |kind: &str, subject: &str| {
        format!(r#"{{"_type":"x","predicateType":"{kind}","predicate":{{"of":"a bundle"}},"subject":[{subject}]}}"#)
    };
    let other = format!(r#"{{"name":"pot","digest":{{"sha256":"{}"}}}}"#, "0".repeat(64));
    let mut llb = Llb::default();
    let told = llb.file(
        &None,
        vec![
            mkfile("/taste.json", 0o644, r#"{"salt": true}"#),
            mkdir("/more", 0o755),
            mkfile("/more/pot.json", 0o644, &statement("https://example.com/pot", &other)),
            mkfile("/more/sbom.spdx.json", 0o644, &statement("https://spdx.dev/Document", "")),
        ],
    );
    let told = Some(Ref { id: build(bridge, llb.end(&told)).await, def: None });
    let taste = Attestation {
        kind: AttestationKind::InToto.into(),
        metadata: HashMap::from([("inline-only".to_owned(), b"false".to_vec())]),
        r#ref: told.clone(),
        path: "/taste.json".into(),
        in_toto_predicate_type: about.into(),
        in_toto_subjects: vec![InTotoSubject { name: "dish".into(), ..Default::default() }],
    };
    let core = HashMap::from([("sbom-core".to_owned(), b"/more/sbom".to_vec())]);
    let more = Attestation {
        kind: AttestationKind::Bundle.into(),
        metadata: core,
        r#ref: told,
        path: "/more".into(),
        ..Default::default()
    };
    vec![taste, more]
}

/// Builds the frontend's image under a name, with a label.
fn make_image(daemon: &Daemon, name: &str, label: &str) {
    let dir: PathBuf = daemon.kiln.scratch().join("frontend");
    std::fs::create_dir_all(&dir).expect("the engine does its part");
    let program = std::env::current_exe().expect("the engine does its part");
    Run::new("strip").arg("-o").arg(dir.join("cook")).arg(&program).ok();
    let label = if label.is_empty() { String::new() } else { format!("LABEL {label}\n") };
    let dockerfile = format!(
        "FROM busybox\nCOPY cook /cook\n{label}WORKDIR /tmp\nENTRYPOINT [\"sh\", \"-c\", \"exec 3>&1 4<&0 >&2; exec /cook \
         --exact plays_the_frontend --nocapture\"]\n"
    );
    std::fs::write(dir.join("Dockerfile"), dockerfile).expect("the engine does its part");
    daemon.command(&["build", "-q", "-t", name, "frontend"]).ok();
}

/// What of the machine's processes are frontends that hang: this test's own, by their build argument.
fn hangs(mark: &str) -> bool {
    let is_one = |pid: &Path| {
        std::fs::read(pid.join("environ")).is_ok_and(|environ| String::from_utf8_lossy(&environ).contains(mark))
    };
    let Ok(processes) = std::fs::read_dir("/proc") else { return false };
    processes.flatten().any(|entry| entry.file_name().to_string_lossy().parse::<u32>().is_ok() && is_one(&entry.path()))
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_a_frontend_of_a_registry_builds_for_all_clients() {
    if !registry::is_installed() {
        return;
    }
    let Some(daemon) = Daemon::start() else { return };
    let registry = Registry::start();
    let image = format!("{}/cook:1", registry.host());
    make_image(&daemon, &image, "");
    daemon.command(&["push", "-q", &image]).ok();
    daemon.command(&["rmi", &image]).ok();

    // The command: the file names the frontend.
    daemon.dockerfile(&format!("# syntax={image}\nFROM busybox\nARG BY=nobody\nCOPY a /a\nRUN echo $BY > /by\n"));
    daemon.kiln.write("a", "potatoes");
    let built = daemon.command(&["build", "--progress=plain", "-t", "one", "."]).output().expect_code(0);
    assert!(built.stderr.contains(GREETING) && built.stderr.contains("cook:1"), "{}", built.report());
    assert_eq!((daemon.cat("one", "/by"), daemon.cat("one", "/a")), ("cook".into(), "potatoes".into()));
    let again = daemon.command(&["build", "--progress=plain", "."]).output();
    assert!(again.stderr.contains("CACHED"), "{}", again.report());
    // Questions go to it, too.
    let outline = daemon.command(&["build", "--call=outline", "."]).output();
    assert!(outline.stdout.contains("BY"), "{}", outline.report());
    // So does an engine without a daemon.
    let alone = daemon.kiln.command(["build", "--progress=plain", "-t", "alone", "."]).output();
    assert!(alone.stderr.contains(GREETING), "{}", alone.report());

    // The build argument is stronger than the file, and the Dockerfile frontend is built in.
    daemon.command(&["build", "-q", "--build-arg", "BUILDKIT_SYNTAX=docker/dockerfile:1", "-t", "own", "."]).ok();
    assert_eq!(daemon.cat("own", "/by"), "nobody");
    let wanted = ["--build-arg", "BUILDKIT_SYNTAX=docker/dockerfile:1", "--build-arg", "KILN_SYNTAX=image"];
    let missing = daemon.command(&[&["build"][..], &wanted, &["."]].concat()).fails();
    assert!(missing.stderr.contains("docker/dockerfile"), "{}", missing.report());

    // A frontend at the client that asks for it, as buildx does for BUILDKIT_SYNTAX.
    daemon.dockerfile("FROM busybox\nARG BY=nobody\nRUN echo $BY > /by\n");
    let mut client = Frontend::open(&daemon, "asks").await;
    let built = client.begin("two");
    let options = HashMap::from([("source".to_owned(), image.clone()), ("cmdline".to_owned(), image.clone())]);
    let request =
        frontend::SolveRequest { frontend: "gateway.v0".into(), frontend_opt: options.clone(), ..Default::default() };
    let request = client.call(request);
    let solved = client.bridge.solve(request).await.unwrap().into_inner().result.unwrap();
    client.answer(solved).await;
    built.await.unwrap().unwrap();
    assert_eq!(daemon.cat("two", "/by"), "cook");

    // A client that has the daemon do all of it, with LLB of the frontend's own.
    let mut client = Frontend::open(&daemon, "leaves").await;
    let attrs = HashMap::from([("name".to_owned(), "three".to_owned())]);
    let more = [("build-arg:PLAY", "llb"), ("build-arg:SALT", "a pinch")].map(|(k, v)| (k.to_owned(), v.to_owned()));
    let request = SolveRequest {
        r#ref: client.reference.clone(),
        session: client.session.clone(),
        frontend: "gateway.v0".into(),
        frontend_attrs: options.into_iter().chain(more).collect(),
        exporters: vec![Exporter { r#type: "image".into(), attrs }],
        ..SolveRequest::default()
    };
    client.control.solve(request).await.unwrap();
    assert_eq!(daemon.cat("three", "/soup"), "a pinch");
    assert_eq!(daemon.command(&["run", "--rm", "three", "sh", "-c", "echo $BY"]).ok(), "cook");
}

#[test]
fn privileged_builds_of_a_frontend_are_compared_recorded_and_named_by_contexts() {
    let Some(daemon) = Daemon::start() else { return };
    make_image(&daemon, "cook", "");
    daemon.dockerfile("# syntax=cook\nFROM busybox\nARG BY=nobody\nRUN echo $BY > /by\n");
    let verified = daemon.command(&["build", "--verify", "--metadata-file=told", "-t", "same", "."]);
    verified.output().expect_code(0).expect_stderr(&["reproducible: "]);
    assert_eq!(daemon.cat("same", "/by"), "cook");
    let told = std::fs::read_to_string(daemon.kiln.scratch().join("told")).unwrap();
    let told: serde_json::Value = serde_json::from_str(&told).unwrap();
    let provenance = &told["buildx.build.provenance"];
    assert!(provenance.to_string().contains("pkg:docker/busybox"), "{told}");
    // So is what a frontend makes in LLB.
    let llb = ["--verify", "--build-arg=PLAY=llb", "--build-arg=SALT=some", "-t", "soup", "."];
    daemon.command(&[&["build"][..], &llb].concat()).output().expect_code(0).expect_stderr(&["reproducible: "]);
    daemon.dockerfile("# syntax=cook\nFROM busybox\nRUN cat /proc/sys/kernel/random/uuid > /id\n");
    let differs = daemon.command(&["build", "--verify", "-t", "other", "."]).output().expect_code(1);
    differs.expect_stderr(&["not reproducible: ", "/id", "content"]);
    daemon.command(&["image", "inspect", "other"]).fails();

    // A named context stands for the frontend's image, if it is an image.
    daemon.dockerfile("# syntax=example.com/chef:2\nFROM busybox\nARG BY=nobody\nRUN echo $BY > /by\n");
    let named = |context: &str| {
        let context = format!("example.com/chef:2={context}");
        daemon.command(&["build", "-q", "-t", "named", "--build-context", &context, "."])
    };
    named("docker-image://cook").ok();
    assert_eq!(daemon.cat("named", "/by"), "cook");
    named(".").fails().expect_stderr(&["example.com/chef:2"]);
}

#[test]
fn privileged_what_a_frontend_says_about_its_result_is_stored_beside_it() {
    let Some(daemon) = Daemon::start() else { return };
    make_image(&daemon, "cook", "");
    daemon.dockerfile("# syntax=cook\nFROM scratch\nCOPY dish /\n");
    daemon.kiln.write("dish", "soup");
    let build = |about: &str, options: &[&str]| {
        let about = format!("ABOUT={about}");
        daemon.command(&[&["build", "--build-arg=PLAY=tell", "--build-arg", &about], options, &["."]].concat())
    };
    let read = |path: &str| -> serde_json::Value {
        let text = std::fs::read(daemon.kiln.scratch().join(path)).unwrap();
        serde_json::from_slice(&text).unwrap()
    };
    let taste = "https://example.com/taste";

    // As files they are about the files.
    build(taste, &["-o", "type=local,dest=out,attestation-prefix=about-"]).ok();
    let told = read("out/about-taste.json");
    assert_eq!(
        (told["predicateType"].as_str(), &told["predicate"]),
        (Some(taste), &serde_json::json!({ "salt": true }))
    );
    let digest = kiln_graph::Digest::of(b"soup").hex();
    let itself = ["dish", "dish"].map(|name| serde_json::json!({ "name": name, "digest": { "sha256": digest } }));
    assert_eq!(told["subject"], serde_json::json!(itself));
    let pot = read("out/about-pot.json");
    assert_eq!((pot["subject"][0]["name"].as_str(), pot["predicate"]["of"].as_str()), (Some("pot"), Some("a bundle")));
    assert_eq!(read("out/about-sbom.spdx.json")["subject"].as_array().unwrap().len(), 1);
    build(taste, &["-o", "type=tar,dest=out.tar"]).ok();
    let listed = Run::new("tar").args(["-tf", "out.tar"]).cwd(daemon.kiln.scratch()).ok();
    assert!(["dish", "taste.json", "pot.json", "sbom.spdx.json"].iter().all(|name| listed.contains(name)), "{listed}");

    // Beside an image they are about its manifest; the frontend's bill of material stands first, and in for that of the engine.
    build(taste, &["-o", "type=oci,dest=layout,tar=false", "--sbom", "--provenance=mode=min"]).ok();
    let blob = |descriptor: &serde_json::Value| {
        read(&format!("layout/blobs/{}", descriptor["digest"].as_str().unwrap().replace(':', "/")))
    };
    let index = blob(&read("layout/index.json")["manifests"][0]);
    let [image, attached] = index["manifests"].as_array().unwrap().as_slice() else { panic!("{index}") };
    assert_eq!(attached["annotations"]["vnd.docker.reference.digest"], image["digest"]);
    let layers = blob(attached)["layers"].as_array().unwrap().clone();
    let statements: Vec<serde_json::Value> = layers.iter().map(blob).collect();
    let kinds: Vec<&str> = statements.iter().map(|told| told["predicateType"].as_str().unwrap()).collect();
    let provenance = "https://slsa.dev/provenance/v1";
    assert_eq!(kinds, ["https://spdx.dev/Document", taste, "https://example.com/pot", provenance]);
    assert_eq!(statements[0]["predicate"]["of"], "a bundle");
    let manifest = image["digest"].as_str().unwrap().trim_start_matches("sha256:");
    assert_eq!(statements[1]["subject"][1], serde_json::json!({ "name": "dish", "digest": { "sha256": manifest } }));
    assert_eq!(statements[2]["subject"].as_array().unwrap().len(), 1);

    // What a frontend makes in LLB of its own is attested like what it has made.
    let options = ["-o", "type=local,dest=cooked", "--build-arg=PLAY=llb", "--sbom", "--provenance=mode=max"];
    build(taste, &options).ok();
    let made = read("cooked/provenance.json");
    let steps = &made["predicate"]["buildDefinition"]["internalParameters"]["buildConfig"]["llbDefinition"];
    assert!(steps.to_string().contains("cp /salt /soup"), "{made}");
    assert_eq!(read("cooked/sbom.spdx.json")["predicateType"], "https://spdx.dev/Document");

    // Where a result is from, the engine says alone.
    let refused = build(provenance, &["-o", "type=local,dest=none"]).fails();
    assert!(refused.stderr.contains("frontend may not set provenance attestations"), "{}", refused.report());

    // Without a daemon, a directory that is listed is read in place and yet not seen as a whole.
    daemon.kiln.write("a", "a");
    daemon.kiln.command(["build", "-q", "--build-arg=PLAY=list", "-o", "type=local,dest=in", "."]).ok();
    let listed = std::fs::read_to_string(daemon.kiln.scratch().join("in/listed")).unwrap();
    assert_eq!(listed, ".fsutil-metadata\na\nall\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_a_frontend_that_misbehaves_fails_its_own_build() {
    let Some(daemon) = Daemon::start() else { return };
    make_image(
        &daemon,
        "cook",
        "moby.buildkit.frontend.network.none=true moby.buildkit.frontend.caps=a.cap,b.cap+forward",
    );
    daemon.dockerfile("# syntax=cook\nFROM busybox\nRUN true\n");
    let play = |play: &str| daemon.command(&["build", "--progress=plain", "--build-arg", &format!("PLAY={play}"), "."]);

    let left = play("exit").fails();
    for words in ["without returning a result", "exit code: 3", "there is nothing to cook", "Dockerfile:1"] {
        assert!(left.stderr.contains(words), "{words}: {}", left.report());
    }
    let failed = play("fail").fails();
    assert!(failed.stderr.contains("there is no salt"), "{}", failed.report());
    let alone = play("network").fails();
    assert!(alone.stderr.contains("lo:") && !alone.stderr.contains("eth0"), "{}", alone.report());
    let endless = play("again").fails();
    assert!(endless.stderr.contains("levels deep"), "{}", endless.report());

    // Results of another build are none of its business.
    daemon.dockerfile("FROM busybox\nRUN echo secret > /x\n");
    let mut client = Frontend::open(&daemon, "other").await;
    let build = client.begin("other");
    let stolen = reference(&client.solve().await.unwrap());
    daemon.dockerfile("# syntax=cook\nFROM busybox\nRUN true\n");
    let stolen = format!("STOLEN={stolen}");
    let thief = daemon.command(&["build", "--build-arg", "PLAY=steal", "--build-arg", &stolen, "."]).fails();
    assert!(thief.stderr.contains("none of its results"), "{}", thief.report());

    // It must say that it can what is asked for, inputs among that.
    let solve = |capabilities: &str, inputs| {
        let options = [("source", "cook"), ("frontend.caps", capabilities), ("build-arg:PLAY", "inputs")];
        let frontend_opt = options.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
        let frontend = "gateway.v0".to_owned();
        frontend::SolveRequest { frontend, frontend_opt, frontend_inputs: inputs, ..Default::default() }
    };
    let mut llb = Llb::default();
    let dish = llb.file(&None, vec![mkfile("/dish", 0o644, "soup")]);
    let inputs = HashMap::from([("dish".to_owned(), llb.end(&dish))]);
    let (lacks, cannot) = (solve("b.cap+forward,c.cap", HashMap::new()), solve("a.cap", inputs.clone()));
    for (request, word) in [(lacks, "c.cap"), (cannot, "frontend.inputs")] {
        let request = client.call(request);
        let refused = client.bridge.solve(request).await.unwrap_err();
        assert!(refused.message().contains(word), "{refused}");
    }
    make_image(&daemon, "cook", "moby.buildkit.frontend.caps=moby.buildkit.frontend.inputs");
    let request = client.call(solve("", inputs));
    let solved = client.bridge.solve(request).await.unwrap().into_inner().result.unwrap();
    let read = ReadFileRequest { r#ref: reference(&solved), file_path: "/dish".into(), ..Default::default() };
    let read = client.call(read);
    assert_eq!(client.bridge.read_file(read).await.unwrap().into_inner().data, b"soup");
    build.abort();

    // One that hangs ends with its client.
    let mark = format!("MARK=hangs-{}", std::process::id());
    let hanging = daemon.command(&["build", "--build-arg", "PLAY=hang", "--build-arg", &mark, "."]).spawn();
    eventually("the frontend runs", PATIENCE, || hangs(&mark).then_some(()));
    hanging.kill();
    eventually("the frontend has ended", PATIENCE, || (!hangs(&mark)).then_some(()));
    daemon.dockerfile("FROM busybox\nRUN true\n");
    daemon.command(&["build", "-q", "."]).ok();
}
