//! Signatures of sources, made by GnuPG, OpenSSH and git itself; and what clients learn of sources to verify them themselves.

mod support;

use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};

use kiln::types::build::frontend::{self, ChecksumRequest, ResolveSourceMetaRequest, ResolveSourceMetaResponse};
use kiln::types::build::sourcepolicy::PolicyAction;
use kiln::types::build::{SolveRequest, pb};
use kiln::wire::policy::{CHECK, CheckPolicyRequest, CheckPolicyResponse, DecisionResponse, Verdict};
use support::asking::Asking;
use support::frontend::Frontend;
use support::llb::{Bind, Llb};
use support::registry::{self, Registry};
use support::session::Methods;
use support::web::{Answer, Web};
use support::{Daemon, Run, is_installed};

/// Keys: of `gpg` two by name, of SSH one. GnuPG's agent ends with them.
struct Keys {
    home: tempfile::TempDir,
}

impl Drop for Keys {
    fn drop(&mut self) {
        let _ = Command::new("gpgconf").arg("--homedir").arg(self.home.path()).args(["--kill", "all"]).status();
    }
}

impl Keys {
    fn make() -> Option<Self> {
        if !is_installed("gpg", "gnupg") || !is_installed("ssh-keygen", "openssh-client") || !is_installed("git", "git")
        {
            return None;
        }
        use std::os::unix::fs::PermissionsExt as _;
        let only_mine = std::fs::Permissions::from_mode(0o700);
        let keys =
            Self { home: tempfile::Builder::new().permissions(only_mine).tempdir().expect("make a home for keys") };
        for name in ["trusted", "stranger"] {
            keys.gpg(&["--quick-generate-key", name, "ed25519", "sign", "never"], "");
        }
        let ssh = keys.home.path().join("id");
        Run::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&ssh).ok();
        Some(keys)
    }

    fn gpg(&self, args: &[&str], input: &str) -> String {
        let fixed = ["--batch", "--yes", "--quiet", "--pinentry-mode", "loopback", "--passphrase", ""];
        Run::new("gpg").arg("--homedir").arg(self.home.path()).args(fixed).args(args).stdin(input).ok()
    }

    fn public(&self, name: &str) -> String {
        self.gpg(&["--armor", "--export", name], "")
    }

    fn ssh(&self) -> String {
        std::fs::read_to_string(self.home.path().join("id.pub")).expect("read a public key")
    }

    fn signature(&self, name: &str, data: &str) -> String {
        self.gpg(&["--armor", "--local-user", name, "--detach-sign"], data)
    }

    /// Makes a repository whose commits and tags are signed in several ways; returns what `git cat-file` says of `v1` and its commit.
    fn repository(&self, scratch: &Path) -> (String, String) {
        let script = "mkdir repos; git init -q -b main work; cd work; git config user.email a@b; git config user.name a
            git config gpg.program \"$GNUPGHOME/gpg\"; git config user.signingkey trusted
            printf '#!/bin/sh\\nexec gpg --batch --pinentry-mode loopback --passphrase \"\" \"$@\"\\n' > $GNUPGHOME/gpg
            chmod 755 $GNUPGHOME/gpg
            echo one > file; git add -A; git commit -q -S -m 'signed by gpg'
            git tag -a unsigned-tag -m unsigned; git tag light
            git -c gpg.format=ssh -c user.signingkey=$GNUPGHOME/id tag -s v1 -m 'signed by ssh'
            git checkout -q -b unsigned; echo two > file; git commit -qam unsigned
            git tag -s signed-tag -m 'signed by gpg'
            git checkout -q -b ssh; echo three > file
            git -c gpg.format=ssh -c user.signingkey=$GNUPGHOME/id commit -q -S -am 'signed by ssh'
            git clone -q --bare . ../repos/repo.git";
        Run::new("sh").args(["-euc", script]).cwd(scratch).env("GNUPGHOME", self.home.path()).ok();
        let cat = |kind: &str| {
            let said = Command::new("git").args(["cat-file", kind, "v1"]).current_dir(scratch.join("work")).output();
            String::from_utf8(said.expect("run git").stdout).expect("objects are text here")
        };
        (cat("tag"), cat("commit"))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_commits_and_tags_are_taken_when_those_have_signed_them_who_are_trusted() {
    let Some(daemon) = Daemon::start() else { return };
    let Some(keys) = Keys::make() else { return };
    let mut asking = Asking::open(&daemon, "signed").await;
    let (tag, commit) = keys.repository(&daemon.kiln.scratch());
    let git = Web::git(daemon.kiln.scratch().join("repos"), |_| true);
    let url = git.url("repo.git");
    let (trusted, stranger, ssh) = (keys.public("trusted"), keys.public("stranger"), keys.ssh());
    let mut build = async |reference: &str, attrs: &[(&str, &str)]| {
        let mut llb = Llb::default();
        let checkout =
            llb.source(&format!("git://x/repo.git#{reference}"), &[&[("git.fullurl", url.as_str())], attrs].concat());
        asking.cat(llb.end(&checkout), "/file").await.map_err(|error| error.message().to_owned())
    };
    // What is known without a signature is not known with one.
    assert_eq!(build("unsigned", &[]).await.unwrap(), "two\n");
    let must = ("git.sig.requiresignedtag", "true");
    let never = ("git.sig.ignoresignedtag", "true");
    for (reference, attrs, file) in [
        ("main", &[("git.sig.pubkey", trusted.as_str())][..], "one\n"),
        ("light", &[("git.sig.pubkey", &trusted)], "one\n"),
        ("unsigned-tag", &[("git.sig.pubkey", &trusted)], "one\n"),
        ("v1", &[("git.sig.pubkey", &ssh), must], "one\n"),
        ("v1", &[("git.sig.pubkey", &trusted), never], "one\n"),
        ("signed-tag", &[("git.sig.pubkey", &trusted), must, ("git.sig.rejectexpired", "true")], "two\n"),
        ("ssh", &[("git.sig.pubkey", &ssh)], "three\n"),
    ] {
        assert_eq!(build(reference, attrs).await.as_deref(), Ok(file), "{reference} {attrs:?}");
    }
    for (reference, attrs, words) in [
        ("unsigned", &[("git.sig.pubkey", trusted.as_str())][..], "git object is not signed"),
        ("main", &[("git.sig.pubkey", &stranger)], "which is not among those that were given"),
        ("main", &[("git.sig.pubkey", &ssh)], "it is an SSH key"),
        ("ssh", &[("git.sig.pubkey", &trusted)], "no SSH keys"),
        ("main", &[("git.sig.pubkey", &trusted), must], "signed tag required but no signed tag found"),
        ("light", &[("git.sig.pubkey", &trusted), must], "signed tag required but no signed tag found"),
        ("unsigned-tag", &[("git.sig.pubkey", &trusted), must], "git tag -s"),
        ("signed-tag", &[("git.sig.pubkey", &trusted), never], "git commit -S"),
    ] {
        let refused = build(reference, attrs).await.expect_err(reference);
        assert!(refused.contains(words) && refused.contains(&url), "{reference} {attrs:?}: {refused}");
    }

    // Who wants to verify them gets the objects as they are.
    let mut look = async |reference: &str, attrs: &[(&str, &str)], return_object: bool| {
        let attrs = support::llb::attrs(&[&[("git.fullurl", url.as_str())], attrs].concat());
        let source = Some(pb::SourceOp { identifier: format!("git://x/repo.git#{reference}"), attrs });
        let git = Some(frontend::ResolveSourceGitRequest { return_object });
        let request = asking.client.call(ResolveSourceMetaRequest { source, git, ..Default::default() });
        let looked = asking.client.bridge.resolve_source_meta(request).await;
        looked.map(|answer| answer.into_inner().git.unwrap()).map_err(|error| error.message().to_owned())
    };
    let found = look("v1", &[], true).await.unwrap();
    assert_eq!((text(&found.tag_object), text(&found.commit_object)), (tag.as_str(), commit.as_str()));
    let by_tag_id = look(&found.checksum, &[], true).await.unwrap();
    assert_eq!((by_tag_id.tag_object, &by_tag_id.commit_checksum), (found.tag_object, &found.commit_checksum));
    let plain = look("main", &[], true).await.unwrap();
    assert_eq!((text(&plain.commit_object), plain.tag_object.len()), (commit.as_str(), 0));
    assert!(look("v1", &[], false).await.unwrap().tag_object.is_empty());
    let refused = look("main", &[("git.sig.pubkey", &stranger)], false).await.unwrap_err();
    assert!(refused.contains("not among those"), "{refused}");
    asking.build.abort();
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("it is text")
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_a_file_is_taken_when_it_is_what_was_signed() {
    let Some(daemon) = Daemon::start() else { return };
    let Some(keys) = Keys::make() else { return };
    let mut asking = Asking::open(&daemon, "signed-file").await;
    let content = Arc::new(Mutex::new("what is signed\n".to_owned()));
    let served = Arc::clone(&content);
    let web = Web::start(move |_| Answer::new(200, served.lock().unwrap().as_str()).header("etag", "\"1\""));
    let url = web.url("file");
    let signature = keys.signature("trusted", "what is signed\n");
    let (trusted, stranger) = (keys.public("trusted"), keys.public("stranger"));
    let mut build = async |attrs: &[(&str, &str)]| {
        let mut llb = Llb::default();
        let (base, file) = (llb.busybox(), llb.source(&url, &[&[("http.perm", "0640")], attrs].concat()));
        let told =
            llb.run(&base, "cat /http/file > /out; stat -c '%a %s' /http/file >> /out", &[Bind::of(&file, "/http")]);
        asking.cat(llb.end(&told[0]), "/out").await.map_err(|error| error.message().to_owned())
    };
    let signed = [("http.sig.pubkey", trusted.as_str()), ("http.sig.signature", signature.as_str())];
    let by_stranger = [("http.sig.pubkey", stranger.as_str()), signed[1]];
    assert_eq!(build(&signed).await.as_deref(), Ok("what is signed\n640 15\n"));
    // It is known what it is; nothing is fetched for that, and for another key it is verified anew.
    assert_eq!(web.asked().iter().filter(|asked| asked.starts_with("GET")).count(), 1);
    assert_eq!(build(&signed).await.as_deref(), Ok("what is signed\n640 15\n"));
    assert!(web.asked().iter().all(|asked| asked.starts_with("HEAD")));
    let refused = build(&by_stranger).await.unwrap_err();
    assert!(refused.contains("not among those that were given") && refused.contains(&url), "{refused}");
    // A promised digest does not stand in for a signature.
    let digest = kiln_graph::Digest::of(b"what is signed\n").to_string();
    let refused = build(&[by_stranger[0], by_stranger[1], ("http.checksum", &digest)]).await.unwrap_err();
    assert!(refused.contains("not among those that were given"), "{refused}");
    assert_eq!(
        build(&[signed[0], signed[1], ("http.checksum", &digest)]).await.as_deref(),
        Ok("what is signed\n640 15\n")
    );
    let refused =
        build(&[signed[0], ("http.sig.signature", "nonsense"), ("http.checksum", &digest)]).await.unwrap_err();
    assert!(refused.contains("armored block"), "{refused}");
    let other = keys.signature("trusted", "something else\n");
    let refused = build(&[signed[0], ("http.sig.signature", &other)]).await.unwrap_err();
    assert!(refused.contains("is not of what is here"), "{refused}");

    // What signatures are made of, for who verifies them itself: digests of the file and of what follows it.
    let mut look = async |algo: i32, suffix: &[u8]| {
        let source = Some(pb::SourceOp { identifier: url.clone(), ..Default::default() });
        let checksum_request = Some(ChecksumRequest { algo, suffix: suffix.to_vec() });
        let http = Some(frontend::ResolveSourceHttpRequest { checksum_request });
        let request = asking.client.call(ResolveSourceMetaRequest { source, http, ..Default::default() });
        let answer = asking.client.bridge.resolve_source_meta(request).await;
        answer.map(tonic::Response::into_inner).map_err(|error| error.message().to_owned())
    };
    std::fs::write(daemon.kiln.scratch().join("with-suffix"), "what is signed\nend").unwrap();
    for (algo, program) in ["sha256", "sha384", "sha512"].into_iter().enumerate() {
        let sum = Run::new(format!("{program}sum")).arg(daemon.kiln.scratch().join("with-suffix")).ok();
        let found: ResolveSourceMetaResponse = look(i32::try_from(algo).unwrap(), b"end").await.unwrap();
        let response = found.http.unwrap().checksum_response.unwrap();
        assert_eq!(response.digest, format!("{program}:{}", sum.split_whitespace().next().unwrap()));
        assert_eq!(response.suffix, b"end");
    }
    assert!(look(0, &[0; 5000]).await.unwrap_err().contains("suffix exceeds max size 4096"));
    assert!(look(7, b"").await.unwrap_err().contains("unsupported checksum algorithm 7"));
    asking.build.abort();
}

/// Puts a document under a tag, and returns its digest.
fn put(registry: &Registry, tag: &str, document: &str) -> String {
    let url = format!("http://{}/v2/app/manifests/{tag}", registry.host());
    let kind = "content-type: application/vnd.oci.image.";
    let kind =
        format!("{kind}{}", if document.contains("\"manifests\"") { "index.v1+json" } else { "manifest.v1+json" });
    Run::new("curl").args(["-sSf", "-X", "PUT", "-H", &kind, "--data-binary", "@-", &url]).stdin(document).ok();
    kiln_graph::Digest::of(document.as_bytes()).to_string()
}

/// Uploads a blob, and returns its descriptor.
fn upload(registry: &Registry, content: &str) -> serde_json::Value {
    let digest = kiln_graph::Digest::of(content.as_bytes()).to_string();
    let url = format!("http://{}/v2/app/blobs/uploads/", registry.host());
    let begun = Run::new("curl").args(["-sSf", "-D", "-", "-o", "/dev/null", "-X", "POST", &url]).ok();
    let place = begun.lines().find_map(|line| line.to_lowercase().starts_with("location:").then(|| line[9..].trim()));
    let url = format!("{}&digest={digest}", place.expect("an upload has a place"));
    let octets = "content-type: application/octet-stream";
    Run::new("curl").args(["-sSf", "-X", "PUT", "-H", octets, "--data-binary", "@-", &url]).stdin(content).ok();
    serde_json::json!({"mediaType": BUNDLE, "digest": digest, "size": content.len()})
}

const BUNDLE: &str = "application/vnd.dev.sigstore.bundle.v0.3+json";

#[tokio::test(flavor = "multi_thread")]
async fn privileged_what_is_said_about_an_image_comes_with_what_it_is() {
    let Some(daemon) = Daemon::start().filter(|_| registry::is_installed()) else { return };
    let registry = Registry::start();
    let name = format!("{}/app:1", registry.host());
    daemon.dockerfile("FROM busybox\nRUN true\n");
    daemon.command(&["build", "--provenance=mode=min", "--sbom", "-t", &name, "--push", "."]).ok();
    daemon.command(&["build", "-t", &format!("{name}-plain"), "--push", "."]).ok();
    let mut asking = Asking::open(&daemon, "attested").await;
    let mut look = async |name: &str, attestation_chain: bool, kinds: &[&str]| {
        let source = Some(pb::SourceOp { identifier: format!("docker-image://{name}"), ..Default::default() });
        let resolve_attestations = kinds.iter().map(|kind| (*kind).to_owned()).collect();
        let image = frontend::ResolveSourceImageRequest { no_config: true, attestation_chain, resolve_attestations };
        let request = ResolveSourceMetaRequest { source, image: Some(image), ..Default::default() };
        let looked = asking.client.bridge.resolve_source_meta(asking.client.call(request)).await;
        looked.map(|answer| answer.into_inner().image.unwrap()).map_err(|error| error.message().to_owned())
    };
    let found = look(&name, true, &[]).await.unwrap();
    let chain = found.attestation_chain.unwrap();
    assert!(found.config.is_empty() && found.digest == chain.root, "{}", found.digest);
    assert!(chain.signature_manifests.is_empty() && !chain.image_manifest.is_empty());
    // The index and the manifest of the attestations, each as it is at the registry; not that of the image.
    assert_eq!(chain.blobs.len(), 2);
    for (digest, blob) in &chain.blobs {
        let described = blob.descriptor.as_ref().unwrap();
        assert_eq!((&kiln_graph::Digest::of(&blob.data).to_string(), described.size), (digest, blob.data.len() as i64));
    }
    let manifest: serde_json::Value = serde_json::from_slice(&chain.blobs[&chain.attestation_manifest].data).unwrap();
    let slsa = "https://slsa.dev/provenance/v1";
    let layers = manifest["layers"].as_array().unwrap();
    let layer = layers.iter().find(|layer| layer["annotations"]["in-toto.io/predicate-type"] == slsa).unwrap();

    // Attestations by what they are about.
    let chain = look(&name, false, &[slsa, "https://example.org/none"]).await.unwrap().attestation_chain.unwrap();
    let statement: serde_json::Value =
        serde_json::from_slice(&chain.blobs[layer["digest"].as_str().unwrap()].data).unwrap();
    assert_eq!(statement["predicateType"], slsa);
    assert_eq!(
        format!("sha256:{}", statement["subject"][0]["digest"]["sha256"].as_str().unwrap()),
        chain.image_manifest
    );
    assert_eq!(chain.blobs.len(), 3);

    // A signature that is attached to the attestations, in the form for registries that do not know referrers.
    let bundle = upload(&registry, "{\"a\":\"bundle\"}");
    let empty = upload(&registry, "{}");
    let signature = serde_json::json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json", "artifactType": BUNDLE,
        "config": {"mediaType": "application/vnd.oci.empty.v1+json", "digest": empty["digest"], "size": 2},
        "layers": [bundle],
    })
    .to_string();
    let digest = put(&registry, "signature", &signature);
    let list = serde_json::json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [{
            "mediaType": "application/vnd.oci.image.manifest.v1+json", "artifactType": BUNDLE,
            "digest": digest, "size": signature.len(),
        }],
    })
    .to_string();
    put(&registry, &chain.attestation_manifest.replace(':', "-"), &list);
    let chain = look(&name, true, &[]).await.unwrap().attestation_chain.unwrap();
    assert_eq!(chain.signature_manifests.as_slice(), std::slice::from_ref(&digest));
    assert_eq!(chain.blobs[&digest].data, signature.as_bytes());
    assert_eq!(text(&chain.blobs[bundle["digest"].as_str().unwrap()].data), "{\"a\":\"bundle\"}");

    let refused = look(&format!("{name}-plain"), true, &[]).await.unwrap_err();
    assert!(refused.contains("has no attestations"), "{refused}");
    assert!(look(&format!("{name}-plain"), false, &[]).await.unwrap().attestation_chain.is_none());
    asking.build.abort();
}

/// A policy that wants to see a commit's signature and a file's digest before it decides.
fn judge(request: &CheckPolicyRequest) -> CheckPolicyResponse {
    let told = request.source.clone().unwrap_or_default();
    let source = told.source.clone();
    let answer = |result| CheckPolicyResponse { result: Some(result) };
    let decide = |action: PolicyAction| {
        answer(Verdict::Decision(DecisionResponse { action: action.into(), ..Default::default() }))
    };
    let identifier = source.as_ref().map(|source| source.identifier.as_str()).unwrap_or_default();
    let mut asked = ResolveSourceMetaRequest { source: source.clone(), ..Default::default() };
    match (&told.git, &told.http) {
        (None, None) if identifier.starts_with("git://") => {
            asked.git = Some(frontend::ResolveSourceGitRequest { return_object: true });
            answer(Verdict::Request(Box::new(asked)))
        }
        (None, None) if identifier.starts_with("http://") => {
            let checksum_request = Some(ChecksumRequest { algo: 2, suffix: b"end".to_vec() });
            asked.http = Some(frontend::ResolveSourceHttpRequest { checksum_request });
            answer(Verdict::Request(Box::new(asked)))
        }
        (Some(git), _) if !text(&git.commit_object).contains("\ngpgsig ") => decide(PolicyAction::Deny),
        (_, Some(http))
            if http.checksum_response.as_ref().is_none_or(|answer| !answer.digest.starts_with("sha512:")) =>
        {
            decide(PolicyAction::Deny)
        }
        _ => decide(PolicyAction::Allow),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_a_policy_sees_the_objects_and_digests_it_asks_for() {
    let Some(daemon) = Daemon::start() else { return };
    let Some(keys) = Keys::make() else { return };
    keys.repository(&daemon.kiln.scratch());
    let git = Web::git(daemon.kiln.scratch().join("repos"), |_| true);
    let web = Web::start(|_| Answer::new(200, "file"));
    let serving = Methods::default().unary(CHECK, |request| Ok(judge(&request))).open(&daemon, "judge").await;
    let client = Frontend::open(&daemon, "judged").await;
    let build = async |name: &str, source: &str, attrs: &[(&str, &str)]| {
        let mut llb = Llb::default();
        let node = llb.source(source, attrs);
        let request = SolveRequest {
            r#ref: name.into(),
            definition: Some(llb.end(&node)),
            source_policy_session: "judge".into(),
            ..SolveRequest::default()
        };
        client.control.clone().solve(request).await.map(drop).map_err(|error| error.message().to_owned())
    };
    let url = git.url("repo.git");
    build("signed", "git://x/repo.git#main", &[("git.fullurl", &url)]).await.unwrap();
    let refused = build("unsigned", "git://x/repo.git#unsigned", &[("git.fullurl", &url)]).await.unwrap_err();
    assert!(refused.contains("not allowed by policy: action DENY"), "{refused}");
    build("file", &web.url("file"), &[]).await.unwrap();
    serving.abort();
}
