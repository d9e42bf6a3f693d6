//! Source policies: what a build may be made of, by rules and by a client's own judgement.

mod support;

use std::sync::{Arc, Mutex};

use kiln::types::build::sourcepolicy::{MatchType, Policy, PolicyAction, Rule, Selector, Update};
use kiln::types::build::{SolveRequest, frontend, pb};
use kiln::wire::policy::{CHECK, CheckPolicyRequest, CheckPolicyResponse, DecisionResponse, DenyMessage, Verdict};
use support::frontend::Frontend;
use support::llb::Llb;
use support::session::Methods;
use support::web::{Answer, Web};
use support::{Daemon, Kiln, Run};

const BUSYBOX: &str = "docker-image://docker.io/library/busybox:latest";

/// Builds `app` with a policy.
fn build(kiln: &Kiln, dockerfile: &str, policy: &str) -> Run {
    kiln.write("app/Dockerfile", dockerfile);
    let policy = kiln.write("policy.json", policy);
    let run = kiln.command(["build", "--progress=plain", "--network=none", "-t", "t", "app"]);
    run.env("EXPERIMENTAL_BUILDKIT_SOURCE_POLICY", policy)
}

#[test]
fn privileged_rules_decide_about_the_sources_of_a_dockerfile() {
    let Some(kiln) = Kiln::project(&[]) else { return };
    let web = Web::start(|request| match request.path.as_str() {
        "/good" => Answer::new(200, "good"),
        _ => Answer::new(200, "bad"),
    });
    let dockerfile = format!("FROM nowhere:1\nADD {} /file\nRUN cat /file > /seen\n", web.url("bad"));
    let policy = format!(
        r#"{{"rules": [
            {{"action": "CONVERT", "selector": {{"identifier": "docker-image://docker.io/library/nowhere:*"}},
              "updates": {{"identifier": "{BUSYBOX}"}}}},
            {{"action": "CONVERT", "selector": {{"identifier": "(http://.*)/bad", "match_type": "REGEX"}},
              "updates": {{"identifier": "${{1}}/good", "attrs": {{"http.perm": "0640"}}}}}}
        ]}}"#
    );
    build(&kiln, &dockerfile, &policy).ok();
    let seen = kiln.ok(["run", "--rm", "--network=none", "t", "sh", "-c", "cat /seen && stat -c ' %a' /file"]);
    assert_eq!(seen, "good 640");
    assert_eq!(web.asked(), ["GET /good"]);

    // What is denied is said with its place, if the Dockerfile has one for it.
    let deny = |identifier: &str| {
        format!(r#"{{"rules": [{{"action": "DENY", "selector": {{"identifier": "{identifier}"}}}}]}}"#)
    };
    let url = web.url("file");
    let dockerfile = format!("FROM busybox\nADD {url} /file\nCOPY . /all\n");
    for (denied, source, place) in [
        (BUSYBOX, BUSYBOX, "Dockerfile:1"),
        ("http://*", url.as_str(), "Dockerfile:2"),
        ("local://context", "local://context", "denied by policy"),
    ] {
        let said = build(&kiln, &dockerfile, &deny(denied)).fails();
        let words = format!("error evaluating the source policy: source \"{source}\" denied by policy");
        said.expect_stderr(&[&words, place]);
    }
    let only_busybox = r#"{"rules": [{"action": "DENY", "selector": {"identifier": "docker-image://*"}},
        {"action": "ALLOW", "selector": {"identifier": "docker-image://docker.io/library/busybox*"}}]}"#;
    build(&kiln, "FROM busybox\nRUN true\n", only_busybox).ok();
    build(&kiln, "FROM busybox\n", r#"{"rules": [{"action": "NO"}]}"#)
        .fails()
        .expect_stderr(&["rule 1", "ALLOW, DENY or CONVERT"]);
}

fn convert(from: &str, to: &str) -> Policy {
    let selector = Selector { identifier: from.into(), match_type: MatchType::Exact.into(), constraints: Vec::new() };
    let updates = Some(Update { identifier: to.into(), ..Update::default() });
    Policy { version: 1, rules: vec![Rule { action: PolicyAction::Convert.into(), selector: Some(selector), updates }] }
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_rules_decide_about_definitions_and_questions() {
    let Some(daemon) = Daemon::start() else { return };
    let gone = "docker-image://docker.io/library/gone:1";
    let mut llb = Llb::default();
    let base = llb.source(gone, &[]);
    let ran = llb.sh(&base, "echo ran > /ran");
    let definition = llb.end(&ran);
    let client = Frontend::open(&daemon, "whole").await;
    let attrs = std::collections::HashMap::from([("name".to_owned(), "built".to_owned())]);
    let request = |policy: Option<Policy>, name: &str| SolveRequest {
        r#ref: name.into(),
        session: client.session.clone(),
        definition: Some(definition.clone()),
        exporters: vec![kiln::types::build::Exporter { r#type: "image".into(), attrs: attrs.clone() }],
        source_policy: policy,
        ..SolveRequest::default()
    };
    client.control.clone().solve(request(Some(convert(gone, BUSYBOX)), "converted")).await.unwrap();
    assert_eq!(daemon.cat("built", "/ran"), "ran");
    let bad = Policy { rules: vec![Rule::default()], version: 1 };
    let refused = client.control.clone().solve(request(Some(bad), "bad")).await.unwrap_err();
    assert!(refused.message().contains("rule 1 of the source policy: there is no selector"), "{refused}");

    // A frontend at the client has policies of its own for each call.
    let mut asking = Frontend::open(&daemon, "asks").await;
    let build = asking.begin("asked");
    let solve = frontend::SolveRequest {
        definition: Some(definition.clone()),
        source_policies: vec![convert(gone, BUSYBOX)],
        evaluate: true,
        ..frontend::SolveRequest::default()
    };
    let call = asking.call(solve);
    asking.bridge.solve(call).await.unwrap();
    let source = pb::SourceOp { identifier: gone.into(), ..pb::SourceOp::default() };
    let look = frontend::ResolveSourceMetaRequest {
        source: Some(source),
        source_policies: vec![convert(gone, BUSYBOX)],
        ..frontend::ResolveSourceMetaRequest::default()
    };
    let call = asking.call(look);
    let answer = asking.bridge.resolve_source_meta(call).await.unwrap().into_inner();
    assert_eq!(answer.source.unwrap().identifier, BUSYBOX);
    assert!(!answer.image.unwrap().config.is_empty());
    let look = frontend::ResolveImageConfigRequest {
        r#ref: "docker.io/library/gone:1".into(),
        source_policies: vec![convert(gone, BUSYBOX)],
        ..frontend::ResolveImageConfigRequest::default()
    };
    let call = asking.call(look);
    let answer = asking.bridge.resolve_image_config(call).await.unwrap().into_inner();
    assert_eq!(answer.r#ref, "docker.io/library/busybox:latest");
    build.abort();
}

fn decision(action: PolicyAction, update: Option<pb::SourceOp>) -> CheckPolicyResponse {
    let deny_messages = match action {
        PolicyAction::Deny => vec![DenyMessage { message: "it is Tuesday".to_owned() }],
        _ => Vec::new(),
    };
    let decision = DecisionResponse { action: action.into(), deny_messages, update };
    CheckPolicyResponse { result: Some(Verdict::Decision(decision)) }
}

/// Converts `gone:1`, wants to see configurations of images before it allows them, and denies the rest.
fn judge(request: CheckPolicyRequest) -> CheckPolicyResponse {
    let told = request.source.unwrap_or_default();
    let source = told.source.clone().unwrap_or_default();
    if source.identifier.ends_with("gone:1") {
        let update = pb::SourceOp { identifier: BUSYBOX.into(), ..source };
        return decision(PolicyAction::Convert, Some(update));
    }
    if !source.identifier.starts_with("docker-image://") {
        return decision(PolicyAction::Deny, None);
    }
    match told.image {
        Some(image) if !image.config.is_empty() => decision(PolicyAction::Allow, None),
        _ => {
            let asked = frontend::ResolveSourceMetaRequest {
                source: Some(source),
                platform: request.platform,
                ..frontend::ResolveSourceMetaRequest::default()
            };
            CheckPolicyResponse { result: Some(Verdict::Request(Box::new(asked))) }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_a_client_is_asked_about_each_source() {
    let Some(daemon) = Daemon::start() else { return };
    let asked: Arc<Mutex<Vec<String>>> = Arc::default();
    let seen = Arc::clone(&asked);
    let judging = Methods::default().unary(CHECK, move |request: CheckPolicyRequest| {
        let source = request.source.as_ref().and_then(|told| told.source.as_ref());
        seen.lock().unwrap().extend(source.map(|source| source.identifier.clone()));
        Ok(judge(request))
    });
    let serving = judging.open(&daemon, "judge").await;
    let client = Frontend::open(&daemon, "judged").await;
    let request = |name: &str, source: &str| {
        let mut llb = Llb::default();
        let base = llb.source(source, &[]);
        let ran = llb.sh(&base, "true");
        SolveRequest {
            r#ref: name.into(),
            definition: Some(llb.end(&ran)),
            source_policy_session: "judge".into(),
            ..SolveRequest::default()
        }
    };
    client.control.clone().solve(request("one", "docker-image://docker.io/library/gone:1")).await.unwrap();
    let gone = "docker-image://docker.io/library/gone:1";
    assert_eq!(*asked.lock().unwrap(), [gone, BUSYBOX, BUSYBOX]);
    let refused = client.control.clone().solve(request("two", "http://127.0.0.1:1/x")).await.unwrap_err();
    let words = "source \"http://127.0.0.1:1/x\" not allowed by policy: action DENY: it is Tuesday";
    assert!(refused.message().contains(words), "{refused}");
    serving.abort();
}
