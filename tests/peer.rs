//! The same definitions, built by Kiln and by the BuildKit in a real dockerd: what comes out must be the same files.
//!
//! The peer is named by `PEER_DOCKER_HOST`; without one there is nothing to compare with.

mod support;

use std::collections::{BTreeMap, HashMap};
use std::io::Read as _;
use std::path::Path;
use std::sync::Arc;

use kiln::client::{Client, Delivery, Dialer, Offer};
use kiln::types::build::control_client::ControlClient;
use kiln::types::build::{Exporter, SolveRequest, pb};
use pb::file_action::Action;
use support::llb::{Llb, Node, copy, mkdir, mkfile, remove};
use support::{Daemon, Run};

/// What files are, each in a line, and their times.
type Listing = BTreeMap<String, (String, Option<u64>)>;

/// Whether files are the same. What the peer gives the time of the day has other times with Kiln, which does not know that.
fn alike(ours: Option<&(String, Option<u64>)>, theirs: Option<&(String, Option<u64>)>) -> bool {
    match (ours, theirs) {
        (Some((ours, our_time)), Some((theirs, their_time))) => {
            ours == theirs && (their_time.is_none() || our_time == their_time)
        }
        (ours, theirs) => ours == theirs,
    }
}

fn same(ours: &Listing, theirs: &Listing) -> bool {
    ours.keys().eq(theirs.keys()) && ours.keys().all(|path| alike(ours.get(path), theirs.get(path)))
}

/// Has an engine build a definition, and lists what it sends as an archive.
async fn build(host: &str, name: &str, definition: pb::Definition, scratch: &Path) -> Result<Listing, String> {
    let client = Client::new(Dialer::new(host.parse().expect("a host")).expect("a dialer"));
    let archive = scratch.join(format!("{name}.tar"));
    let none = Offer::new(Arc::new(|_| Ok(None)), Arc::new(|_| Ok(None)));
    let dirs = BTreeMap::from([("context".to_owned(), scratch.join("context"))]);
    let outputs = vec![Some(Delivery::File(archive.clone()))];
    let session = format!("session-{name}-{}", std::process::id());
    let _open = client
        .session(&session, Offer { dirs, outputs, shared_key: session.clone(), ..none })
        .await
        .map_err(|error| error.to_string())?;
    let channel = client.grpc().await.map_err(|error| error.to_string())?;
    let exporter = Exporter { r#type: "tar".into(), attrs: HashMap::new() };
    let request = SolveRequest {
        r#ref: session.clone(),
        session,
        definition: Some(definition),
        // Older engines know this form only.
        exporter_deprecated: exporter.r#type.clone(),
        exporters: vec![exporter],
        ..SolveRequest::default()
    };
    ControlClient::new(channel).solve(request).await.map_err(|status| status.message().to_owned())?;
    Ok(list(&archive))
}

fn list(archive: &Path) -> Listing {
    let mut archive = tar::Archive::new(std::fs::File::open(archive).expect("open the archive"));
    let mut listing = Listing::new();
    for entry in archive.entries().expect("read the archive") {
        let mut entry = entry.expect("read an entry");
        let path = entry.path().expect("a path").display().to_string();
        let path = path.trim_start_matches("./").trim_end_matches('/').to_owned();
        let mut xattrs: Vec<String> = Vec::new();
        if let Ok(Some(extensions)) = entry.pax_extensions() {
            let named = extensions.flatten().filter_map(|extension| {
                let name = extension.key().ok()?.strip_prefix("SCHILY.xattr.")?.to_owned();
                Some(format!("{name}={}", String::from_utf8_lossy(extension.value_bytes())))
            });
            xattrs.extend(named);
        }
        xattrs.sort();
        let header = entry.header().clone();
        let link = entry.link_name().ok().flatten().map(|link| link.display().to_string()).unwrap_or_default();
        let mut data = String::new();
        entry.read_to_string(&mut data).expect("the tests' files are text");
        let number = "the numbers of a header can be read";
        let (mode, uid, gid) = (header.mode().expect(number), header.uid().expect(number), header.gid().expect(number));
        let line = format!("{:?} {mode:o} {uid}:{gid} {link:?} {data:?} {xattrs:?}", header.entry_type());
        // Times that are kept or asked for are old ones here.
        let time = header.mtime().ok().filter(|time| (1..1_000_000_000).contains(time));
        if !path.is_empty() {
            listing.insert(path, (line, time));
        }
    }
    listing
}

/// A directory of the client: permissions, links, attributes.
fn context(scratch: &Path) {
    let script = "mkdir -p context/dir/sub context/empty; cd context
        echo one > dir/one; echo two > dir/sub/two; echo x > .hidden; chmod 4755 dir/one; chmod 750 dir/sub; chmod 1777 empty
        ln dir/one dir/same; ln -s one dir/link; ln -s /absolute dir/away; chown 3:4 dir/sub/two
        mkdir -p a/b c; echo 1 > a/b/f; echo $$ > c/f; touch -d @500000 c/f";
    Run::new("sh").args(["-euc", script]).cwd(scratch).ok();
    let told =
        rustix::fs::setxattr(scratch.join("context/dir/sub/two"), "user.told", b"yes", rustix::fs::XattrFlags::empty());
    told.expect("set an attribute");
}

/// What stands beside an action.
fn owner(action: (Node, Action), user: pb::user_opt::User, group: Option<pb::user_opt::User>) -> (Node, Action) {
    let opt = |user| pb::UserOpt { user: Some(user) };
    let owner = Some(pb::ChownOpt { user: Some(opt(user)), group: group.map(opt) });
    let (from, mut action) = action;
    match &mut action {
        Action::Copy(copy) => copy.owner = owner,
        Action::Mkfile(file) => file.owner = owner,
        Action::Mkdir(dir) => dir.owner = owner,
        Action::Symlink(link) => link.owner = owner,
        Action::Rm(_) => {}
    }
    (from, action)
}

type Case = (&'static str, fn(&mut Llb) -> Node);

fn local(llb: &mut Llb) -> Node {
    llb.source("local://context", &[("local.unique", "peer")])
}

/// Copies with what `change` says to a directory that is there.
fn copied(llb: &mut Llb, src: &str, dest: &str, change: impl Fn(&mut pb::FileActionCopy)) -> Node {
    let context = local(llb);
    llb.file(&None, vec![mkdir("/to", 0o755), mkfile("/to/old", 0o600, "old"), copy(&context, src, dest, change)])
}

const CASES: &[Case] = &[
    ("made", |llb| {
        use pb::user_opt::User::ById;
        let actions = vec![
            mkdir("/a/b/c", 0o2751),
            owner(mkdir("/owned/below", 0o700), ById(5), Some(ById(6))),
            owner(mkfile("/owned/file", 0o4644, "text"), ById(7), None),
            owner(mkfile("/a/file", 0o644, "first"), ById(3), None),
            mkfile("/a/file", 0o600, "second"),
        ];
        llb.file(&None, actions)
    }),
    ("named-owners", |llb| {
        use pb::user_opt::User::ByName;
        let passwd = "root:x:0:0::/:/bin/sh\nme:x:41:42::/:/bin/sh\n";
        let base = llb.file(
            &None,
            vec![mkdir("/etc", 0o755), mkfile("/etc/passwd", 0o644, passwd), mkfile("/etc/group", 0o644, "us:x:43:\n")],
        );
        let named = |name: &str| ByName(pb::NamedUserOpt { name: name.into(), input: 0 });
        let actions = vec![
            owner(mkfile("/mine", 0o644, ""), named("me"), None),
            owner(mkfile("/ours", 0o644, ""), named("me"), Some(named("us"))),
            owner(mkfile("/number", 0o644, ""), named("12"), None),
        ];
        llb.file(&base, actions)
    }),
    ("copy-all", |llb| copied(llb, "/", "/to", |copy| copy.dir_copy_contents = true)),
    ("copy-dir-into", |llb| copied(llb, "/dir", "/to", |_| {})),
    ("copy-dir-into-slash", |llb| copied(llb, "/dir", "/to/", |_| {})),
    ("copy-dir-as", |llb| copied(llb, "/dir", "/to/new", |_| {})),
    ("copy-contents", |llb| copied(llb, "/dir", "/to", |copy| copy.dir_copy_contents = true)),
    ("copy-file-as", |llb| copied(llb, "/dir/one", "/to/new", |_| {})),
    ("copy-file-into", |llb| copied(llb, "/dir/one", "/to/", |_| {})),
    ("copy-over", |llb| copied(llb, "/dir/one", "/to/old", |_| {})),
    ("copy-makes-parents", |llb| copied(llb, "/dir/one", "/x/y/z", |copy| copy.create_dest_path = true)),
    ("copy-makes-parents-dir", |llb| copied(llb, "/dir/one", "/x/y/", |copy| copy.create_dest_path = true)),
    ("copy-wildcard", |llb| {
        copied(llb, "/*/sub", "/to/", |copy| (copy.allow_wildcard, copy.create_dest_path) = (true, true))
    }),
    ("copy-mode", |llb| copied(llb, "/dir", "/to/new", |copy| copy.mode = 0o640)),
    ("copy-subdir-as", |llb| copied(llb, "/dir/sub", "/to/new", |_| {})),
    ("copy-subdir-into", |llb| copied(llb, "/dir/sub", "/to/", |_| {})),
    ("copy-subdir-contents", |llb| copied(llb, "/dir/sub", "/to/new", |copy| copy.dir_copy_contents = true)),
    ("copy-subdir-owned", |llb| {
        let context = local(llb);
        let action = copy(&context, "/dir/sub", "/new", |copy| copy.mode = 0o711);
        llb.file(&None, vec![owner(action, pb::user_opt::User::ById(9), None)])
    }),
    ("copy-link", |llb| copied(llb, "/dir/link", "/to/new", |_| {})),
    ("copy-followed", |llb| copied(llb, "/dir/link", "/to/new", |copy| copy.follow_symlink = true)),
    ("copy-included", |llb| {
        copied(llb, "/", "/to", |copy| {
            copy.dir_copy_contents = true;
            copy.include_patterns = vec!["**/f".into(), "dir/sub".into()];
            copy.exclude_patterns = vec!["c".into()];
        })
    }),
    ("copy-excluded", |llb| {
        copied(llb, "/", "/to", |copy| {
            copy.dir_copy_contents = true;
            copy.exclude_patterns = vec!["dir/*".into(), "!dir/sub".into()];
        })
    }),
    ("copy-time", |llb| copied(llb, "/dir", "/to/new", |copy| copy.timestamp = 500_000_000_000_000_000)),
    ("copy-time-kept", |llb| copied(llb, "/c", "/to/new", |_| {})),
    ("copy-owned", |llb| {
        let context = local(llb);
        let action = copy(&context, "/dir", "/new", |_| {});
        llb.file(&None, vec![owner(action, pb::user_opt::User::ById(9), Some(pb::user_opt::User::ById(8)))])
    }),
    ("copy-clashes", |llb| {
        let context = local(llb);
        let base = llb.file(&None, vec![mkdir("/x/one", 0o755)]);
        llb.file(&base, vec![copy(&context, "/dir", "/x", |copy| copy.dir_copy_contents = true)])
    }),
    ("made-through-link", |llb| {
        let context = local(llb);
        let base = llb.file(&None, vec![copy(&context, "/dir", "/dir", |_| {})]);
        llb.file(&base, vec![mkfile("/dir/link", 0o600, "new")])
    }),
    ("copy-through-link", |llb| {
        let context = local(llb);
        let base = llb.file(&None, vec![mkdir("/dir", 0o755), copy(&context, "/dir/link", "/dir/link", |_| {})]);
        let base = llb.file(&base, vec![mkdir("/dir/one", 0o755)]);
        llb.file(&base, vec![copy(&context, "/c/f", "/dir/link/", |_| {})])
    }),
    ("copy-missing", |llb| copied(llb, "/gone", "/to", |_| {})),
    ("removed", |llb| {
        let base = copied(llb, "/", "/to", |copy| copy.dir_copy_contents = true);
        let actions = vec![
            remove("/to/dir/*ne", |rm| rm.allow_wildcard = true),
            remove("/to/gone", |rm| rm.allow_not_found = true),
            remove("/to/a", |_| {}),
        ];
        llb.file(&base, actions)
    }),
    ("removed-missing", |llb| llb.file(&None, vec![remove("/gone", |_| {})])),
    ("merged", |llb| {
        let one = llb.file(&None, vec![mkdir("/d", 0o700), mkfile("/d/one", 0o644, "1"), mkfile("/f", 0o644, "1")]);
        let two = llb.file(&None, vec![mkdir("/d", 0o755), mkfile("/d/two", 0o644, "2"), mkfile("/f", 0o600, "2")]);
        llb.merge(&[&one, &two])
    }),
    ("differs", |llb| {
        let lower = llb.file(&None, vec![mkdir("/d", 0o700), mkfile("/d/one", 0o644, "1"), mkfile("/f", 0o644, "1")]);
        let upper = llb.file(&lower, vec![mkfile("/d/two", 0o644, "2"), remove("/f", |_| {})]);
        let difference = llb.diff(&lower, &upper);
        let other = llb.file(&None, vec![mkfile("/f", 0o644, "other"), mkfile("/g", 0o644, "other")]);
        llb.merge(&[&other, &difference])
    }),
];

#[tokio::test(flavor = "multi_thread")]
async fn privileged_definitions_give_what_the_peer_makes_of_them() {
    let Some(peer) = std::env::var("PEER_DOCKER_HOST").ok().filter(|host| !host.is_empty()) else {
        eprintln!("skipped: PEER_DOCKER_HOST names no dockerd to compare with");
        return;
    };
    let Some(daemon) = Daemon::start() else { return };
    let scratch = daemon.kiln.scratch();
    context(&scratch);
    let mut different = Vec::new();
    for (name, case) in CASES {
        let mut llb = Llb::default();
        let result = case(&mut llb);
        let definition = llb.end(&result);
        let theirs = build(&peer, &format!("peer-{name}"), definition.clone(), &scratch).await;
        let ours = build(&daemon.host, &format!("kiln-{name}"), definition, &scratch).await;
        match (&ours, &theirs) {
            (Ok(ours), Ok(theirs)) if same(ours, theirs) => {}
            (Err(_), Err(_)) => {}
            // dockerd's own storage cannot do this.
            (_, Err(theirs)) if theirs.contains("not supported") || theirs.contains("disabled") => {
                eprintln!("{name}: the peer says {theirs:?}");
            }
            (Ok(ours), Ok(theirs)) => {
                let paths = ours.keys().chain(theirs.keys()).collect::<std::collections::BTreeSet<_>>();
                for path in paths.into_iter().filter(|path| !alike(ours.get(*path), theirs.get(*path))) {
                    different.push(format!(
                        "{name} {path}\n  kiln {:?}\n  peer {:?}",
                        ours.get(path),
                        theirs.get(path)
                    ));
                }
            }
            _ => different.push(format!("{name}\n  kiln {ours:?}\n  peer {theirs:?}")),
        }
    }
    assert!(different.is_empty(), "{}", different.join("\n"));
}

/// Dockerfiles whose graphs the peer's frontend makes without asking a registry.
const DOCKERFILES: &[(&str, &str)] = &[
    ("copy", "FROM scratch\nCOPY --chown=1:2 --chmod=640 dir /to/\nCOPY --link .hidden /linked\nWORKDIR /w/d\n"),
    (
        "run",
        "FROM scratch\nARG A=1\nENV B=$A\nRUN --mount=type=cache,id=c,sharing=locked,target=/c \
         --mount=type=secret,id=s,mode=0400 --mount=type=ssh --mount=type=tmpfs,target=/t,size=1m \
         --mount=type=bind,source=dir,target=/b --network=none [\"true\", \"$B\"]\n",
    ),
    (
        "stages",
        "FROM scratch AS one\nCOPY c /c\nFROM scratch AS two\nCOPY --from=one /c/f /f\nADD http://192.0.2.1/x /x\n\
         FROM scratch\nCOPY --from=two / /\nCOPY <<EOT /text\nwords\nEOT\n",
    ),
];

/// With `KILN_RECORD_LLB`, writes the definitions below that directory.
#[tokio::test(flavor = "multi_thread")]
async fn privileged_definitions_of_the_peers_frontend_are_read() {
    use kiln::types::build::frontend::llb_bridge_client::LlbBridgeClient;
    use kiln::types::build::frontend::{self, Ref, result};
    use prost::Message as _;
    let Some(peer) = std::env::var("PEER_DOCKER_HOST").ok().filter(|host| !host.is_empty()) else {
        eprintln!("skipped: PEER_DOCKER_HOST names no dockerd to compare with");
        return;
    };
    let scratch = tempfile::tempdir().unwrap();
    context(scratch.path());
    for (name, dockerfile) in DOCKERFILES {
        std::fs::write(scratch.path().join("context/Dockerfile"), dockerfile).unwrap();
        let client = Client::new(Dialer::new(peer.parse().expect("a host")).expect("a dialer"));
        let none = Offer::new(Arc::new(|_| Ok(None)), Arc::new(|_| Ok(None)));
        let dirs = ["context", "dockerfile"].map(|name| (name.to_owned(), scratch.path().join("context")));
        let session = format!("frontend-{name}-{}", std::process::id());
        let offer = Offer { dirs: dirs.into(), shared_key: session.clone(), ..none };
        let _open = client.session(&session, offer).await.unwrap();
        let channel = client.grpc().await.unwrap();
        let request = SolveRequest { r#ref: session.clone(), session: session.clone(), ..SolveRequest::default() };
        let mut control = ControlClient::new(channel.clone());
        let build = tokio::spawn(async move { control.solve(request).await });
        let request = frontend::SolveRequest {
            frontend: "dockerfile.v0".into(),
            allow_result_return: true,
            allow_result_array_ref: true,
            ..frontend::SolveRequest::default()
        };
        let mut request = tonic::Request::new(request);
        request.metadata_mut().insert("buildkit-controlapi-buildid", session.parse().unwrap());
        let solved = LlbBridgeClient::new(channel).solve(request).await.unwrap().into_inner().result.unwrap();
        let Some(result::Result::Ref(Ref { def: Some(definition), .. })) = solved.result else { panic!("{solved:?}") };
        build.abort();
        let decoded = kiln_llb::decode(&definition, &kiln_graph::Platform::host());
        assert!(decoded.is_ok(), "{name}: {decoded:?}");
        if let Some(dir) = std::env::var_os("KILN_RECORD_LLB") {
            std::fs::write(Path::new(&dir).join(format!("{name}.pb")), definition.encode_to_vec()).unwrap();
        }
    }
}
