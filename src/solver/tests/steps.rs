//! What a step finds: user, directory, network files, limits, and what COPY and ADD make.

use super::*;
use crate::store::Roots;

#[test]
fn privileged_a_step_finds_its_user_directory_and_files() {
    in_world(async |world| {
        let dockerfile = "FROM base\nWORKDIR /srv/app\nRUN chmod 777 /srv/app\nUSER app\nENV GREETING=hi\nARG WHO=you\n\
        RUN id -u > id && echo \"$GREETING $WHO $HOME $(hostname)\" > env && cat /etc/hosts > hosts && stat -c %a /dev/shm > shm\n";
        let mut request = world.request(dockerfile);
        request.attrs.insert("add-hosts".to_owned(), "build.example=10.1.2.3".to_owned());
        request.attrs.insert("build-arg:WHO".to_owned(), "me".to_owned());
        world.run(request).await.built();
        assert_eq!(world.read("srv/app/id").unwrap(), "1000\n");
        assert_eq!(world.read("srv/app/env").unwrap(), "hi me /home/app buildkitsandbox\n");
        let hosts = world.read("srv/app/hosts").unwrap();
        assert!(hosts.contains("127.0.0.1\tlocalhost buildkitsandbox\n") && hosts.contains("10.1.2.3\tbuild.example"));
        assert_eq!(world.read("etc/hosts"), None, "mount points that were made go again");
    });
}

#[test]
fn privileged_networks_are_as_asked_for() {
    in_world(async |world| {
        let dockerfile = "FROM base\nRUN --network=none ls /sys/class/net > /none\nRUN ls /sys/class/net > /default\n";
        world.build(dockerfile).await.built();
        assert_eq!(world.read("none").unwrap(), "lo\n");
        assert!(world.read("default").unwrap().contains("eth0"));
        let host = "FROM base\nRUN --network=host ls /sys/class/net > /host\n";
        let refused = world.build(host).await.error();
        assert_eq!(refused, "network.host is not allowed; build with --allow network.host");
        let entitlements = vec!["network.host".to_owned()];
        world.run(BuildRequest { entitlements, ..world.request(host) }).await.built();
    });
}

#[test]
fn privileged_copies_take_owner_mode_and_unpack() {
    in_world(async |world| {
        world.put("file", "x");
        let mut tar = tar::Builder::new(std::fs::File::create(world.context().join("a.tar")).unwrap());
        tar.append_path_with_name(world.context().join("file"), "in/side").unwrap();
        tar.finish().unwrap();
        let dockerfile = "FROM base\nCOPY --chown=app:app --chmod=640 file /owned/\nADD a.tar /ext/\nCOPY a.tar /\n\
        COPY --link file /linked/here\nCOPY <<EOT /doc\nline $HOME\nEOT\n\
        RUN stat -c '%u %g %a' /owned/file > /stat; stat -c '%u %g %a' /owned >> /stat\n";
        world.build(dockerfile).await.built();
        assert_eq!(world.read("stat").unwrap(), "1000 1001 640\n1000 1001 640\n");
        assert_eq!(world.read("ext/in/side").unwrap(), "x");
        assert!(world.read("ext/a.tar").is_none());
        assert_eq!(world.read("linked/here").unwrap(), "x");
        assert_eq!(world.read("doc").unwrap(), "line \n");
        let again = world.build(dockerfile).await;
        assert!(again.cached("COPY --link") && again.cached("stat"));
    });
}

#[test]
fn privileged_a_linked_copy_is_found_on_another_base() {
    in_world(async |world| {
        world.put("file", "x");
        let on = |n: u32| format!("FROM base\nRUN echo {n} > /base\nCOPY --link file /deep/file\n");
        world.build(&on(1)).await.built();
        let other = world.build(&on(2)).await;
        other.built();
        assert!(other.cached("COPY --link"), "its layer does not depend on the base");
        assert_eq!((world.read("base").unwrap().as_str(), world.read("deep/file").unwrap().as_str()), ("2\n", "x"));
    });
}

#[test]
fn privileged_no_cache_runs_everything_and_keeps_the_new_results() {
    in_world(async |world| {
        let dockerfile = "FROM base AS one\nRUN cat /proc/sys/kernel/random/uuid > /one\n\
        FROM one AS two\nRUN cat /proc/sys/kernel/random/uuid > /two\n";
        world.build(dockerfile).await.built();
        let (one, two) = (world.read("one"), world.read("two"));
        let mut request = world.request(dockerfile);
        request.attrs.insert("no-cache".to_owned(), "two".to_owned());
        world.run(request.clone()).await.built();
        assert!(world.read("one") == one && world.read("two") != two);
        request.attrs.insert("no-cache".to_owned(), String::new());
        world.run(request).await.built();
        let fresh = (world.read("one"), world.read("two"));
        assert_ne!(fresh.0, one);
        assert!(world.build(dockerfile).await.cached("/two"));
        assert_eq!((world.read("one"), world.read("two")), fresh);
    });
}

#[test]
fn privileged_what_was_pruned_is_built_again() {
    in_world(async |world| {
        let dockerfile = "FROM base\nRUN echo a > /a\nRUN --mount=type=cache,target=/c echo b > /c/b && echo b > /b\n";
        world.build(dockerfile).await.built();
        let collect = || {
            let images = &world.solver.deps().images;
            let solver = &world.solver;
            world.store().collect(std::time::Duration::ZERO, |connection| {
                let mut roots = Roots::default();
                images.add_roots(connection, &mut roots)?;
                solver.add_roots(connection, &mut roots)?;
                Ok(roots)
            })
        };
        let kept = world.solver.prune(&crate::solver::PruneFilter::default()).unwrap();
        assert_eq!(kept.len(), 1, "an image needs the layers, so only the cache mount goes: {kept:?}");
        assert!(world.build(dockerfile).await.cached("echo a"));
        let all = crate::solver::PruneFilter { all: true, ..crate::solver::PruneFilter::default() };
        assert_eq!(world.solver.prune(&all).unwrap().len(), 2);
        assert!(world.solver.usage().unwrap().is_empty());
        collect().unwrap();
        let again = world.build(dockerfile).await;
        again.built();
        assert!(!again.cached("echo a"));
    });
}

#[test]
fn privileged_warnings_and_mistakes_have_their_place() {
    in_world(async |world| {
        let outcome = world.build("FROM base as x\nRUN true\n").await;
        outcome.built();
        let warned =
            outcome.events.iter().any(|event| matches!(event, Event::Warning(w) if w.short.contains("FromAsCasing")));
        assert!(warned);
        let outcome = world.build("FROM base\nCOPYY a b\n").await;
        let failure = outcome.result.unwrap_err();
        assert_eq!(failure.places[0].lines, (2, 2));
        assert!(failure.error.to_string().contains("COPY"), "{}", failure.error);
        let mut request = world.request("FROM base\n");
        request.frontend = "gateway.v0".to_owned();
        assert!(world.run(request).await.error().contains("needs an image"));
    });
}
