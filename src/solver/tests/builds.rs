//! What a user expects of builds: results, caching, failures.

use super::*;

#[test]
fn privileged_a_build_runs_copies_and_tags() {
    in_world(async |world| {
        world.put("app.txt", "hello");
        let dockerfile =
            "FROM base\nWORKDIR /srv\nCOPY app.txt .\nRUN cat app.txt > out && echo printed\nCMD [\"x\"]\n";
        let first = world.build(dockerfile).await;
        first.built();
        assert_eq!(world.read("srv/out").unwrap(), "hello");
        assert!(first.printed().contains("printed"));
        assert_eq!(first.built().response["image.name"], "docker.io/library/out:latest");
        let second = world.build(dockerfile).await;
        assert_eq!(second.image(), first.image(), "the same build gives the same image");
        for step in ["WORKDIR", "COPY", "RUN"] {
            assert!(!first.cached(step) && second.cached(step), "{step}");
        }
    });
}

#[test]
fn privileged_a_changed_file_runs_what_depends_on_it_and_nothing_else() {
    in_world(async |world| {
        world.put("a", "1");
        world.put("b", "1");
        let dockerfile = "FROM base\nCOPY a /a\nRUN cat /a > /from-a\nCOPY b /b\nRUN cat /a /b > /both\n";
        world.build(dockerfile).await.built();
        world.put("b", "2");
        let again = world.build(dockerfile).await;
        again.built();
        assert!(again.cached("COPY a") && again.cached("from-a") && !again.cached("COPY b") && !again.cached("both"));
        assert_eq!(world.read("both").unwrap(), "12");
        // What was there before is found again.
        world.put("b", "1");
        let back = world.build(dockerfile).await;
        assert!(back.cached("both"));
        assert_eq!(world.read("both").unwrap(), "11");
    });
}

#[test]
fn privileged_a_step_that_yields_the_same_again_keeps_what_follows() {
    in_world(async |world| {
        world.put("version", "1");
        let mounted = "FROM base\nRUN --mount=type=bind,source=version,target=/v cat /v && echo same > /same\n\
                   RUN cat /same > /after && cat /proc/sys/kernel/random/uuid > /stamp\n";
        let first = world.build(mounted).await;
        first.built();
        let stamp = world.read("stamp").unwrap();
        world.put("version", "2");
        let second = world.build(mounted).await;
        second.built();
        assert!(!second.cached("cat /v"), "its input changed");
        assert!(second.cached("/after"), "its input is the same as before");
        assert_eq!(world.read("stamp").unwrap(), stamp);
        assert_eq!(second.image(), first.image());
    });
}

#[test]
fn privileged_a_new_step_after_one_that_yields_the_same_lies_on_the_earlier_layer() {
    in_world(async |world| {
        let with = |version: u32, tail: &str| {
            format!("FROM base\nRUN echo {version} && echo same > /same\n{tail}RUN cat /same /same > /last\n")
        };
        world.build(&with(1, "")).await.built();
        // The new step never ran, so it starts before the step below it is known to have made the same as before.
        let second = world.build(&with(2, "RUN cat /same > /new\n")).await;
        second.built();
        assert_eq!(world.read("last").unwrap(), "same\nsame\n");
        let third = world.build(&with(3, "RUN cat /same > /new\n")).await;
        assert!(third.cached("/new"), "it lies on the layer that all three versions share");
    });
}

#[test]
fn privileged_only_stages_that_the_target_needs_run() {
    in_world(async |world| {
        let dockerfile = "FROM base AS unused\nRUN false\nFROM base AS tool\nRUN echo tool > /tool\n\
                      FROM scratch AS last\nCOPY --from=tool /tool /tool\nFROM base AS after\nRUN false\n";
        let mut request = world.request(dockerfile);
        request.attrs.insert("target".to_owned(), "last".to_owned());
        let outcome = world.run(request).await;
        outcome.built();
        assert!(!outcome.has("unused") && !outcome.has("after"));
        assert_eq!(world.read("tool").unwrap(), "tool\n");
        assert_eq!(world.read("bin/sh"), None);
    });
}

#[test]
fn privileged_equal_steps_of_builds_at_the_same_time_run_once() {
    in_world(async |world| {
        let dockerfile =
            "FROM base\nRUN sleep 0.3; cat /proc/sys/kernel/random/uuid > /stamp; echo said\nRUN cat /stamp > /copy\n";
        let named = |name: &str| {
            let mut request = world.request(dockerfile);
            request.exporters[0].attrs.insert("name".to_owned(), name.to_owned());
            request
        };
        let (one, two, three) =
            tokio::join!(world.run(named("one")), world.run(named("two")), world.run(named("three")));
        assert_eq!((one.image(), two.image()), (two.image(), three.image()));
        assert_eq!(world.read_of("one", "copy"), world.read_of("two", "stamp"));
        for outcome in [one, two, three] {
            assert!(outcome.printed().contains("said"), "every build sees what is printed");
        }
    });
}

#[test]
fn privileged_independent_stages_run_at_the_same_time() {
    in_world(async |world| {
        // Each waits for the other: one after the other they would never end.
        let meet = |own: &str, other: &str| {
            format!(
                "FROM base AS {own}\nRUN --mount=type=cache,target=/c touch /c/{own}; \
             n=0; while ! test -e /c/{other}; do sleep 0.01; n=$((n+1)); test $n -lt 1000 || exit 9; done; touch /{own}\n"
            )
        };
        let tail = "FROM scratch\nCOPY --from=a /a /\nCOPY --from=b /b /\n";
        world.build(&format!("{}{}{tail}", meet("a", "b"), meet("b", "a"))).await.built();
    });
}

#[test]
fn privileged_a_failure_tells_command_and_exit_code_and_keeps_what_was_done() {
    in_world(async |world| {
        let dockerfile = "FROM base\nRUN echo fine > /fine\nRUN cat /fine && exit 3\n";
        let outcome = world.build(dockerfile).await;
        assert_eq!(
            outcome.error(),
            "process \"/bin/sh -c cat /fine && exit 3\" did not complete successfully: exit code: 3"
        );
        let failure = outcome.result.as_ref().unwrap_err();
        assert_eq!(failure.places[0].lines, (3, 3));
        let failed = outcome.vertices().into_iter().find(|vertex| vertex.name.contains("exit 3")).unwrap();
        assert!(failed.error.is_some() && Some(failed.digest) == failure.vertex);
        assert!(world.build(dockerfile).await.cached("echo fine"));
    });
}

#[test]
fn privileged_a_missing_command_and_a_missing_file_are_named() {
    in_world(async |world| {
        let error = world.build("FROM base\nRUN [\"/nowhere\"]\n").await.error();
        assert!(error.contains("/nowhere"), "{error}");
        world.put("readme.md", "");
        world.put(".dockerignore", "*.md\n");
        let outcome = world.build("FROM base\nCOPY readme.md /\n").await;
        assert!(outcome.error().contains("line 1 of .dockerignore excludes it"), "{}", outcome.error());
        assert_eq!(outcome.result.unwrap_err().places[0].lines, (2, 2));
        let outcome = world.build("FROM base\nRUN --mount=type=secret,id=token test ! -e /run/secrets/token\n").await;
        outcome.built();
        let required = "FROM base\nRUN --mount=type=secret,id=token,required=true cat /run/secrets/token\n";
        assert_eq!(world.build(required).await.error(), "secret token: not found");
    });
}

#[test]
fn privileged_dropping_a_build_kills_its_steps() {
    in_world(async |world| {
        let request = world.request(
            "FROM base\nRUN --mount=type=cache,target=/c while true; do echo x >> /c/alive; sleep 0.02; done\n",
        );
        let progress = Progress::new(Clock::system());
        let build = Box::pin(world.solver.build(request, progress.clone()));
        let mut watcher = progress.watch();
        tokio::select! {
            _ = build => panic!("it runs for ever"),
            () = async {
                // Until the step has begun.
                while let Some(events) = watcher.next().await {
                    if events.iter().any(|event| matches!(event, Event::Vertex(v) if v.name.contains("alive") && v.started_ns.is_some())) {
                        break;
                    }
                }
            } => {}
        }
        world.shut_down().await;
        let begin = std::time::Instant::now();
        while begin.elapsed().as_millis() < 100 {
            std::thread::yield_now();
        }
        let leases = world.store().root().db();
        let left: i64 =
            leases.read(|c| Ok(c.query_row("SELECT count(*) FROM trees WHERE state = 0", [], |r| r.get(0))?)).unwrap();
        assert!(left <= 1, "only the cache mount stays, not the unfinished layer");
    });
}

#[test]
fn privileged_what_is_ignored_is_not_there() {
    in_world(async |world| {
        world.put("keep/a", "a");
        world.put("keep/b.log", "b");
        world.put("secret/key", "k");
        world.put(".dockerignore", "**/*.log\nsecret\n");
        world.build("FROM base\nCOPY . /c/\nRUN --mount=type=bind,target=/m ls -R /m > /mounted\n").await.built();
        assert_eq!(world.read("c/keep/a").unwrap(), "a");
        assert_eq!((world.read("c/keep/b.log"), world.read("c/secret/key")), (None, None));
        let mounted = world.read("mounted").unwrap();
        assert!(mounted.contains("keep") && !mounted.contains("b.log") && !mounted.contains("key"), "{mounted}");
        // A change of what is ignored changes nothing.
        world.put("secret/key", "other");
        assert!(world.build("FROM base\nCOPY . /c/\n").await.cached("COPY"));
    });
}

#[test]
fn privileged_linked_files_of_earlier_layers_never_change() {
    in_world(async |world| {
        for n in 0..40 {
            world.put(&format!("src/{n}"), &format!("file {n}"));
        }
        let build = async |name: &str| {
            let mut request =
                world.request("FROM base\nCOPY src /src\nRUN echo changed >> /src/7 && chmod 600 /src/8\n");
            request.exporters[0].attrs.insert("name".to_owned(), name.to_owned());
            world.run(request).await.built();
        };
        build("one").await;
        world.put("src/3", "new");
        build("two").await;
        assert_eq!(world.read_of("one", "src/3").unwrap(), "file 3");
        assert_eq!(world.read_of("two", "src/3").unwrap(), "new");
        for image in ["one", "two"] {
            assert_eq!(world.read_of(image, "src/7").unwrap(), "file 7changed\n");
            assert_eq!(world.read_of(image, "src/9").unwrap(), "file 9");
        }
        use std::os::unix::fs::MetadataExt as _;
        let links = walk(&world.root().join("snapshots"))
            .into_iter()
            .filter(|path| path.ends_with("src/9"))
            .map(|path| std::fs::metadata(path).unwrap().nlink());
        assert!(links.max().unwrap() >= 2, "unchanged files are linked");
    });
}

fn walk(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() {
            found.extend(walk(&entry.path()));
        }
        found.push(entry.path());
    }
    found
}

#[test]
fn privileged_two_engines_build_on_one_root() {
    in_world(async |world| {
        let (other, _, tasks) = open(&world.root());
        let dockerfile = |n: usize| format!("FROM base\nRUN echo shared > /s\nRUN echo {n} > /n\n");
        let request = |n: usize| {
            let mut request = world.request(&dockerfile(n));
            request.exporters[0].attrs.insert("name".to_owned(), format!("out{n}"));
            request
        };
        let builds = (0..6).map(|n| run(if n % 2 == 0 { &world.solver } else { &other }, request(n)));
        for outcome in futures_util::future::join_all(builds).await {
            outcome.built();
        }
        for n in 0..6 {
            assert_eq!(world.read_of(&format!("out{n}"), "n").unwrap(), format!("{n}\n"));
        }
        assert!(tasks.shutdown(std::time::Duration::from_secs(20)).await);
    });
}
