//! Mounts of RUN: caches and their sharing, secrets, memory, binds.

use std::collections::HashSet;

use super::*;
use crate::solver::session::Registration;

#[test]
fn privileged_a_cache_mount_survives_and_is_no_part_of_the_image() {
    in_world(async |world| {
        let step =
            |n: u32| format!("FROM base\nRUN --mount=type=cache,target=/c echo {n} >> /c/log; cat /c/log > /seen\n");
        world.build(&step(1)).await.built();
        let failed = world.build("FROM base\nRUN --mount=type=cache,target=/c echo 2 >> /c/log; false\n").await;
        assert!(failed.error().contains("exit code: 1"));
        world.build(&step(3)).await.built();
        assert_eq!(world.read("seen").unwrap(), "1\n2\n3\n");
        assert_eq!(world.read("c/log"), None);
        assert_eq!(world.read("c"), None, "the mount point goes, too");
        let records = world.solver.usage().unwrap();
        assert!(records.iter().any(|record| record.kind == crate::solver::CacheKind::CacheMount && record.uses == 3));
    });
}

#[test]
fn privileged_no_cache_gives_a_step_a_new_cache_mount() {
    in_world(async |world| {
        let dockerfile = "FROM base\nRUN --mount=type=cache,target=/c --mount=type=cache,target=/d,mode=0770 \
            echo x >> /c/log; echo x >> /d/log; cat /c/log | wc -l > /c-lines; cat /d/log | wc -l > /d-lines\n";
        let mut request = world.request(dockerfile);
        request.attrs.insert("no-cache".to_owned(), String::new());
        for lines in ["1\n", "2\n"] {
            world.run(request.clone()).await.built();
            let seen = (world.read("c-lines").unwrap(), world.read("d-lines").unwrap());
            assert_eq!(
                (seen.0.as_str(), seen.1.as_str()),
                ("1\n", lines),
                "one with permissions stays, as with BuildKit"
            );
        }
        world.build(&dockerfile.replace("echo x", "echo y")).await.built();
        assert_eq!(world.read("c-lines").unwrap(), "2\n", "the new one is used from then on");
    });
}

#[test]
fn privileged_sharing_decides_who_uses_a_cache_at_the_same_time() {
    in_world(async |world| {
        let parallel = |sharing: &str| {
            // Counts who is in, and remembers the most.
            let script = "mkdir /c/in-$$-NAME; ls /c | grep -c in- > /most; sleep 0.3; ls /c | grep -c in- >> /most; rm -r /c/in-$$-NAME";
            let stage = |name: &str| {
                let script = script.replace("NAME", name);
                format!(
                    "FROM base AS {name}\nRUN --mount=type=cache,target=/c,id={sharing},sharing={sharing} {script}\n"
                )
            };
            format!("{}{}FROM scratch\nCOPY --from=a /most /a\nCOPY --from=b /most /b\n", stage("a"), stage("b"))
        };
        for (sharing, together) in [("shared", true), ("locked", false), ("private", false)] {
            world.build(&parallel(sharing)).await.built();
            let seen = world.read("a").unwrap() + &world.read("b").unwrap();
            assert_eq!(seen.contains('2'), together, "{sharing}: {seen}");
        }
        let records = world.solver.usage().unwrap();
        let mounts = records.iter().filter(|record| record.kind == crate::solver::CacheKind::CacheMount);
        assert_eq!(mounts.filter(|mount| mount.description.contains("private")).count(), 2, "each had one of its own");
    });
}

#[test]
fn privileged_a_new_cache_mount_has_the_owner_and_the_content_asked_for() {
    in_world(async |world| {
        let dockerfile = "FROM base AS seed\nRUN mkdir /d && echo seed > /d/file\nFROM base\n\
        RUN --mount=type=cache,target=/c,from=seed,source=/d cat /c/file > /seeded\n\
        RUN --mount=type=cache,target=/c,uid=1000,gid=1001,mode=0700 stat -c '%u %g %a' /c > /owner\n";
        world.build(dockerfile).await.built();
        assert_eq!(
            (world.read("seeded").unwrap().as_str(), world.read("owner").unwrap().as_str()),
            ("seed\n", "1000 1001 700\n")
        );
    });
}

#[test]
fn privileged_a_secret_is_seen_by_its_step_only() {
    in_world(async |world| {
        let _session = session(world, "s", &[("token", "hunter2-hunter2")]).await;
        let dockerfile = "FROM base\n\
        RUN --mount=type=secret,id=token --mount=type=secret,id=token,env=TOKEN \
        test \"$TOKEN\" = \"$(cat /run/secrets/token)\" && stat -c %a /run/secrets/token > /mode && echo used > /used\n\
        RUN test ! -e /run/secrets/token\n";
        let with = |session: &str| BuildRequest { session: Some(session.to_owned()), ..world.request(dockerfile) };
        let first = world.run(with("s")).await;
        first.built();
        assert_eq!(world.read("mode").unwrap(), "400\n");
        assert_eq!(world.read("run/secrets"), None);
        for path in walk(&world.root()) {
            if path.is_file() && !path.is_symlink() {
                let bytes = std::fs::read(&path).unwrap();
                let found = bytes.windows(15).any(|window| window == b"hunter2-hunter2");
                assert!(!found, "{} holds the secret", path.display());
            }
        }
        // Another value does not change the key.
        let _other = session(world, "t", &[("token", "other")]).await;
        let second = world.run(with("t")).await;
        assert!(second.cached("used") && second.image() == first.image());
    });
}

fn walk(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.extend(walk(&entry.path()));
        }
        found.push(entry.path());
    }
    found
}

/// Opens a session that has secrets.
async fn session(world: &World, id: &str, secrets: &[(&str, &str)]) -> Registration {
    use bollard_buildkit_proto::moby::buildkit::secrets::v1::secrets_server::{Secrets, SecretsServer};
    use bollard_buildkit_proto::moby::buildkit::secrets::v1::{GetSecretRequest, GetSecretResponse};

    struct Known(BTreeMap<String, Vec<u8>>);
    #[tonic::async_trait]
    impl Secrets for Known {
        async fn get_secret(
            &self,
            request: tonic::Request<GetSecretRequest>,
        ) -> Result<tonic::Response<GetSecretResponse>, tonic::Status> {
            let found = self.0.get(&request.into_inner().id).cloned();
            let data = found.ok_or_else(|| tonic::Status::not_found("no such secret"))?;
            Ok(tonic::Response::new(GetSecretResponse { data }))
        }
    }

    let known = Known(secrets.iter().map(|(id, data)| ((*id).to_owned(), data.as_bytes().to_vec())).collect());
    let (ours, theirs) = tokio::io::duplex(1 << 16);
    let serve = tonic::transport::Server::builder()
        .add_service(SecretsServer::new(known))
        .serve_with_incoming(tokio_stream::once(Ok::<_, std::io::Error>(theirs)));
    world.tasks.spawn(async move { drop(serve.await) });
    let mut ours = Some(hyper_util::rt::TokioIo::new(ours));
    let connect = tower::service_fn(move |_: http::Uri| {
        let ours = ours.take().ok_or_else(|| std::io::Error::other("there is one connection only"));
        async move { ours }
    });
    let endpoint = tonic::transport::Endpoint::from_static("http://session");
    let channel = endpoint.connect_with_connector(connect).await.unwrap();
    let methods = HashSet::from(["/moby.buildkit.secrets.v1.Secrets/GetSecret".to_owned()]);
    let announced = crate::solver::session::Announced { id: id.to_owned(), methods, ..Default::default() };
    world.sessions.register(channel, announced)
}

#[test]
fn privileged_bind_mounts_show_stages_and_contexts_and_drop_what_is_written() {
    in_world(async |world| {
        world.put("a/file", "context");
        let dockerfile = "FROM base AS tool\nRUN echo tool > /tool\nFROM base\n\
        RUN --mount=type=bind,from=tool,source=/tool,target=/t cat /t > /one\n\
        RUN --mount=type=bind,source=a,target=/a,rw cat /a/file > /two && echo x > /a/new && cat /a/new >> /two\n\
        RUN --mount=type=bind,source=a,target=/a if echo x > /a/new; then echo writable; fi > /three 2>/dev/null\n\
        RUN --mount=type=tmpfs,target=/m,size=1m echo x > /m/x\n";
        world.build(dockerfile).await.built();
        assert_eq!(world.read("one").unwrap(), "tool\n");
        assert_eq!(world.read("two").unwrap(), "contextx\n");
        assert_eq!(world.read("three").unwrap(), "");
        assert_eq!((world.read("a/new"), world.read("m/x")), (None, None));
        assert!(!world.context().join("a/new").exists());
        // A mount that is not read from is part of the key by its content.
        world.put("a/other", "more");
        let again = world.build(dockerfile).await;
        assert!(again.cached("/one") && !again.cached("/two"));
    });
}

#[test]
fn privileged_a_mounted_context_is_copied_once() {
    in_world(async |world| {
        world.put("src/a", "1");
        world.put("src/b", "2");
        let dockerfile =
            |n: u32| format!("FROM base\nRUN --mount=type=bind,source=src,target=/s cat /s/a /s/b > /out; echo {n}\n");
        world.build(&dockerfile(1)).await.built();
        world.build(&dockerfile(2)).await.built();
        let contexts = || {
            let records = world.solver.usage().unwrap();
            records.into_iter().filter(|record| record.description == "context /src").collect::<Vec<_>>()
        };
        assert_eq!(contexts().len(), 1);
        assert_eq!(contexts()[0].uses, 1);
        world.put("src/a", "3");
        world.build(&dockerfile(1)).await.built();
        assert_eq!((world.read("out").unwrap().as_str(), contexts().len()), ("32", 2));
    });
}
