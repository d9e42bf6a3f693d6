//! End-to-end tests of builds on a busybox base: the language, the flags, the cache, and what goes wrong.

mod support;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;
use support::{Kiln, Outcome, Running, is_root};

/// Longer than a build of a few small steps takes on a busy machine.
const SOON: Duration = Duration::from_secs(60);

/// Builds `app` and returns what was said; panics unless it succeeds.
fn build(kiln: &Kiln, args: &[&str]) -> Outcome {
    kiln.command(["build", "--progress=plain"]).args(args).arg("app").output().expect_code(0)
}

fn build_fails(kiln: &Kiln, args: &[&str]) -> Outcome {
    kiln.command(["build", "--progress=plain"]).args(args).arg("app").fails()
}

/// Runs a shell command in an image and returns what it prints.
fn sh(kiln: &Kiln, image: &str, script: &str) -> String {
    kiln.ok(["run", "--rm", "--network=none", image, "sh", "-c", script])
}

fn inspect(kiln: &Kiln, image: &str) -> Value {
    let text = kiln.ok(["image", "inspect", image]);
    serde_json::from_str::<Value>(&text).expect("inspect prints JSON")[0].take()
}

/// The steps that were taken from the cache, as `--progress=plain` tells; bases do not count.
fn cached(outcome: &Outcome) -> Vec<String> {
    let mut names = BTreeMap::new();
    let mut cached = Vec::new();
    for line in outcome.stderr.lines().filter(|line| line.starts_with('#')) {
        let Some((number, rest)) = line.split_once(' ') else { continue };
        if let Some((_, name)) = rest.split_once("] ").filter(|_| rest.starts_with('[')) {
            names.insert(number, name);
        } else if rest == "CACHED" {
            cached.extend(names.get(number).filter(|name| !name.starts_with("FROM")).map(|&name| name.to_owned()));
        }
    }
    cached.sort();
    cached
}

/// The states of steps in `--progress=rawjson`: name to (started, completed, cached).
fn vertices(outcome: &Outcome) -> BTreeMap<String, Value> {
    let text = if outcome.stderr.trim_start().starts_with('{') { &outcome.stderr } else { &outcome.stdout };
    let mut states = BTreeMap::new();
    for line in text.lines().filter(|line| line.starts_with('{')) {
        let status: Value = serde_json::from_str(line).expect("a line of rawjson is JSON");
        for vertex in status["vertexes"].as_array().into_iter().flatten() {
            if vertex["started"].is_string() {
                states.insert(vertex["name"].as_str().unwrap_or_default().to_owned(), vertex.clone());
            }
        }
    }
    states
}

#[test]
fn the_command_answers_with_its_version() {
    Kiln::new().command(["version"]).output().expect_code(0).expect_stdout(&[env!("CARGO_PKG_VERSION")]);
}

#[test]
fn privileged_the_first_example_builds_and_runs() {
    if !is_root() {
        return;
    }
    let kiln = Kiln::with_busybox();
    let example = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/hello");
    kiln.ok(["build", "-t", "hello", "--build-arg", "NAME=tester", example]);
    let said = kiln.ok(["run", "--rm", "hello"]);
    assert!(said.starts_with("Hello, tester!\n"), "{said}");
    assert!(!said.contains("secret"), "a file that .dockerignore excludes was copied: {said}");
}

#[test]
fn privileged_pruning_the_build_cache_gives_its_space_back() {
    let dockerfile = "FROM busybox\nRUN head -c 5000000 /dev/urandom > /big\n";
    let Some(kiln) = Kiln::project(&[("Dockerfile", dockerfile)]) else { return };
    build(&kiln, &["-o", "type=cacheonly"]);
    let used = || {
        let said = support::command::run("du", ["-s", "-B1", &kiln.root().display().to_string()]);
        said.split('\t').next().and_then(|bytes| bytes.parse::<u64>().ok()).expect("du prints a number first")
    };
    let before = used();
    kiln.ok(["builder", "prune", "-a", "-f"]);
    let freed = before.saturating_sub(used());
    assert!(freed > 4_500_000, "{freed} bytes were freed of {before}");
}

#[test]
fn privileged_a_build_without_changes_is_cached_and_gives_the_same_image() {
    let dockerfile = "FROM busybox\nWORKDIR /srv\nCOPY data .\nRUN wc -c < data > size\nCMD [\"cat\", \"size\"]\n";
    let Some(kiln) = Kiln::project(&[("Dockerfile", dockerfile), ("data", "12345")]) else { return };
    build(&kiln, &["-t", "app"]);
    let first = inspect(&kiln, "app")["Id"].clone();
    let again = build(&kiln, &["-t", "app"]);
    assert_eq!(cached(&again), ["COPY data .", "RUN wc -c < data > size", "WORKDIR /srv"], "{}", again.report());
    assert_eq!(inspect(&kiln, "app")["Id"], first);
    assert_eq!(kiln.ok(["run", "--rm", "app"]), "5");

    kiln.write("app/data", "123456");
    let changed = build(&kiln, &["-t", "app"]);
    assert_eq!(cached(&changed), ["WORKDIR /srv"], "{}", changed.report());
    assert_eq!(kiln.ok(["run", "--rm", "app"]), "6");

    let forced = build(&kiln, &["-t", "app", "--no-cache"]);
    // As with BuildKit, what only makes a directory is not made again.
    assert_eq!(cached(&forced), ["WORKDIR /srv"], "{}", forced.report());
}

#[test]
fn privileged_a_touched_file_does_not_run_steps_again() {
    let Some(kiln) = Kiln::project(&[("Dockerfile", "FROM busybox\nCOPY data /\nRUN cat /data\n"), ("data", "x")])
    else {
        return;
    };
    build(&kiln, &[]);
    kiln.write("app/data", "x");
    let again = build(&kiln, &[]);
    assert_eq!(cached(&again), ["COPY data /", "RUN cat /data"], "{}", again.report());
}

#[test]
fn privileged_a_step_that_yields_what_it_yielded_before_spares_the_steps_after_it() {
    let dockerfile = "FROM busybox AS made\nCOPY data /\nRUN head -c 1 /data > /first\n\
                      FROM busybox\nCOPY --from=made /first /\nRUN sleep 0 && cat /first\n";
    let Some(kiln) = Kiln::project(&[("Dockerfile", dockerfile), ("data", "abc")]) else { return };
    build(&kiln, &[]);
    kiln.write("app/data", "axx");
    let again = kiln.command(["build", "--progress=rawjson", "app"]).output().expect_code(0);
    let last = vertices(&again).into_iter().find(|(name, _)| name.contains("sleep 0")).expect("the last step").1;
    assert_eq!(last["cached"], true, "{}", again.report());
}

#[test]
fn privileged_stages_run_at_the_same_time() {
    // Each waits for the other.
    let step = |own: &str, other: &str| {
        let mount = "--mount=type=cache,target=/meet";
        format!(
            "FROM busybox AS {own}\nRUN {mount} touch /meet/{own} && until [ -e /meet/{other} ]; do sleep 0.02; done\n"
        )
    };
    let last = "FROM busybox\nCOPY --from=a /etc/passwd /a\nCOPY --from=b /etc/passwd /b\n";
    let Some(kiln) = Kiln::project(&[("Dockerfile", &(step("a", "b") + &step("b", "a") + last))]) else { return };
    build(&kiln, &[]);
}

#[test]
fn privileged_only_what_the_target_needs_is_carried_out() {
    let dockerfile = "FROM busybox AS broken\nRUN false\nFROM busybox AS good\nRUN echo fine > /fine\nFROM broken\n";
    let Some(kiln) = Kiln::project(&[("Dockerfile", dockerfile)]) else { return };
    build(&kiln, &["--target", "good", "-t", "good"]);
    assert_eq!(sh(&kiln, "good", "cat /fine"), "fine");
    build_fails(&kiln, &["--target", "goood"]).expect_stderr(&["goood"]);
}

#[test]
fn privileged_instructions_become_the_configuration() {
    let dockerfile = r#"FROM busybox
ARG COLOUR=red
ENV SHADE=$COLOUR DEEP="very deep"
LABEL org.example.shade="$SHADE"
MAINTAINER somebody
EXPOSE 80 53/udp
VOLUME ["/data"]
USER nobody:nogroup
WORKDIR /srv
WORKDIR below
STOPSIGNAL SIGINT
HEALTHCHECK --interval=5s --retries=2 CMD true
SHELL ["/bin/sh", "-eu", "-c"]
ONBUILD RUN true
ENTRYPOINT ["echo"]
CMD echo cmd
"#;
    let Some(kiln) = Kiln::project(&[("Dockerfile", dockerfile)]) else { return };
    build(&kiln, &["-t", "one", "-t", "two:tag", "--build-arg", "COLOUR=blue", "--label", "added=yes"]);
    let image = inspect(&kiln, "two:tag");
    assert_eq!(image["Id"], inspect(&kiln, "one")["Id"]);
    assert_eq!(image["Author"], "somebody");
    let config = &image["Config"];
    let env = config["Env"].as_array().expect("Env");
    assert!(env.contains(&"SHADE=blue".into()) && env.contains(&"DEEP=very deep".into()), "{env:?}");
    assert_eq!(config["Labels"]["org.example.shade"], "blue");
    assert_eq!(config["Labels"]["added"], "yes");
    assert!(config["ExposedPorts"]["80/tcp"].is_object() && config["ExposedPorts"]["53/udp"].is_object(), "{config}");
    assert!(config["Volumes"]["/data"].is_object(), "{config}");
    assert_eq!(config["User"], "nobody:nogroup");
    assert_eq!(config["WorkingDir"], "/srv/below");
    assert_eq!(config["StopSignal"], "SIGINT");
    assert_eq!(config["Healthcheck"]["Retries"], 2);
    assert_eq!(config["Shell"][1], "-eu");
    assert_eq!(config["OnBuild"][0], "RUN true");
    assert_eq!(config["Entrypoint"][0], "echo");
    assert_eq!(config["Cmd"][3], "echo cmd");
    let history = kiln.ok(["history", "--no-trunc", "two:tag"]);
    assert!(history.contains("ENTRYPOINT [\"echo\"]") && history.contains("WORKDIR /srv"), "{history}");
}

#[test]
fn privileged_copies_take_owners_modes_and_what_dockerignore_leaves() {
    let dockerfile = "FROM busybox\nCOPY --chown=12:34 --chmod=0640 src/a.txt /a\nCOPY src/ /src/\nCOPY src/*.txt /flat/\n\
                      ADD pack.tar /unpacked/\n";
    let Some(kiln) = Kiln::project(&[
        ("Dockerfile", dockerfile),
        (".dockerignore", "**/*.log\nsrc/deep\n!src/deep/kept\n"),
        ("src/a.txt", "a"),
        ("src/b.txt", "b"),
        ("src/noise.log", "n"),
        ("src/deep/gone", "g"),
        ("src/deep/kept", "k"),
    ]) else {
        return;
    };
    support::command::shell(&kiln.scratch(), "mkdir in && echo packed > in/file && tar -C in -cf app/pack.tar file");
    build(&kiln, &["-t", "app"]);
    assert_eq!(sh(&kiln, "app", "stat -c '%u:%g %a' /a"), "12:34 640");
    assert_eq!(sh(&kiln, "app", "cd /src && find . -type f | sort"), "./a.txt\n./b.txt\n./deep/kept");
    assert_eq!(sh(&kiln, "app", "ls /flat"), "a.txt\nb.txt");
    assert_eq!(sh(&kiln, "app", "cat /unpacked/file"), "packed");

    kiln.write("app/Dockerfile", "FROM busybox\nCOPY src/noise.log /\n");
    build_fails(&kiln, &[]).expect_stderr(&["noise.log", ".dockerignore", "COPY src/noise.log"]);
    kiln.write("app/Dockerfile", "FROM busybox\nCOPY missing /\n");
    build_fails(&kiln, &[]).expect_stderr(&["missing", "not found"]);
}

#[test]
fn privileged_heredocs_are_scripts_and_files() {
    let dockerfile = "FROM busybox\nARG WHO=you\nRUN <<EOF\nset -e\necho first > /script\necho second >> /script\nEOF\n\
                      COPY <<plain <<-\"raw\" /files/\nhello $WHO\nplain\n\thello $WHO\nraw\n";
    let Some(kiln) = Kiln::project(&[("Dockerfile", dockerfile)]) else { return };
    build(&kiln, &["-t", "app"]);
    assert_eq!(sh(&kiln, "app", "cat /script /files/plain /files/raw"), "first\nsecond\nhello you\nhello $WHO");
}

#[test]
fn privileged_secrets_are_there_while_a_step_runs_and_nowhere_after() {
    let dockerfile = "FROM busybox\n\
                      RUN --mount=type=secret,id=token test \"$(cat /run/secrets/token)\" = \"ses\"ame-in-file\n\
                      RUN --mount=type=secret,id=word,env=WORD test \"$WORD\" = \"ses\"ame-in-env\n\
                      RUN --mount=type=secret,id=none test ! -e /run/secrets/none\n";
    let Some(kiln) = Kiln::project(&[("Dockerfile", dockerfile)]) else { return };
    let token = kiln.write("token", "sesame-in-file");
    let secrets = [format!("--secret=id=token,src={}", token.display()), "--secret=id=word,env=SPOKEN".to_owned()];
    let run = kiln.command(["build", "--progress=plain", "-t", "app"]).args(secrets).arg("app");
    let outcome = run.env("SPOKEN", "sesame-in-env").output().expect_code(0);
    assert!(!(outcome.stdout + &outcome.stderr).contains("sesame"), "a secret was shown");
    std::fs::remove_file(token).expect("remove the secret itself");
    let found = support::Run::new("grep").args(["-rl", "sesame-in"]).arg(kiln.root()).output();
    assert_eq!(found.stdout, "", "a secret was kept");

    kiln.write("app/Dockerfile", "FROM busybox\nRUN --mount=type=secret,id=must,required=true true\n");
    build_fails(&kiln, &[]).expect_stderr(&["must"]);
}

#[test]
fn privileged_a_cache_mount_lasts_also_when_its_step_fails() {
    let mount = "--mount=type=cache,target=/cache";
    let Some(kiln) =
        Kiln::project(&[("Dockerfile", &format!("FROM busybox\nRUN {mount} echo kept > /cache/file && false\n"))])
    else {
        return;
    };
    build_fails(&kiln, &[]);
    kiln.write("app/Dockerfile", format!("FROM busybox\nRUN {mount} cp /cache/file /copy\n"));
    build(&kiln, &["-t", "app"]);
    assert_eq!(
        sh(&kiln, "app", "cat /copy; ls /cache 2>/dev/null || true"),
        "kept",
        "the cache is not a part of the image"
    );
}

#[test]
fn privileged_bind_and_tmpfs_mounts_leave_nothing() {
    let dockerfile = "FROM busybox AS made\nRUN echo made > /file\nFROM busybox\n\
                      RUN --mount=type=bind,target=/context --mount=type=bind,from=made,source=/file,target=/made \
                      --mount=type=tmpfs,target=/scratch \
                      cat /context/data /made > /both && echo gone > /scratch/file && ! touch /context/x\n";
    let Some(kiln) = Kiln::project(&[("Dockerfile", dockerfile), ("data", "data\n")]) else { return };
    build(&kiln, &["-t", "app"]);
    assert_eq!(
        sh(&kiln, "app", "cat /both; ls /scratch /context 2>/dev/null | grep -E 'file|data' || true"),
        "data\nmade"
    );
    assert!(!kiln.scratch().join("app/x").exists());
}

#[test]
fn privileged_the_network_of_steps_can_be_chosen() {
    let links = "ls /sys/class/net | tr '\\n' ' '";
    let Some(kiln) =
        Kiln::project(&[("Dockerfile", &format!("FROM busybox\nRUN echo \"have $({links})\"; cat /etc/hosts\n"))])
    else {
        return;
    };
    let none = build(&kiln, &["--network=none", "--add-host=somewhere:10.1.2.3"]);
    assert!(none.stderr.contains("have lo ") && !none.stderr.contains("eth0"), "{}", none.report());
    assert!(
        none.stderr.lines().any(|line| line.contains("10.1.2.3") && line.contains("somewhere")),
        "{}",
        none.report()
    );
    build(&kiln, &["--no-cache"]).expect_stderr(&["have eth0 lo "]);
}

#[test]
fn privileged_the_dockerfile_may_come_from_elsewhere() {
    let Some(kiln) = Kiln::project(&[("data", "d"), ("other.dockerfile", "FROM busybox\nCOPY data /other\n")]) else {
        return;
    };
    kiln.ok(["build", "-q", "-f", "app/other.dockerfile", "-t", "other", "app"]);
    assert_eq!(sh(&kiln, "other", "cat /other"), "d");
    let run = kiln.command(["build", "-q", "-f", "-", "-t", "stdin", "app"]);
    run.stdin("FROM busybox\nCOPY data /stdin\n").ok();
    assert_eq!(sh(&kiln, "stdin", "cat /stdin"), "d");
    kiln.command(["build", "-q", "-t", "alone", "-"]).stdin("FROM busybox\nRUN echo alone > /alone\n").ok();
    assert_eq!(sh(&kiln, "alone", "cat /alone"), "alone");
    kiln.fails(["build", "app"]).expect_stderr(&["Dockerfile"]);
}

#[test]
fn privileged_the_result_is_reported_in_files_and_quietly() {
    let Some(kiln) = Kiln::project(&[("Dockerfile", "FROM busybox\nRUN echo loud\n")]) else { return };
    let args = ["build", "-q", "--iidfile", "id", "--metadata-file", "meta.json", "-t", "app", "app"];
    let quiet = kiln.command(args).output().expect_code(0);
    let id = inspect(&kiln, "app")["Id"].as_str().expect("an id").to_owned();
    assert_eq!(quiet.stdout, format!("{id}\n"));
    assert_eq!(quiet.stderr, "");
    assert_eq!(std::fs::read_to_string(kiln.scratch().join("id")).expect("the id file"), id);
    let metadata = std::fs::read(kiln.scratch().join("meta.json")).expect("the metadata file");
    let metadata: Value = serde_json::from_slice(&metadata).expect("metadata is JSON");
    assert_eq!(metadata["containerimage.config.digest"], id.as_str());
    assert!(metadata["image.name"].as_str().expect("a name").contains("app"), "{metadata}");
}

#[test]
fn privileged_plain_progress_loses_nothing() {
    let dockerfile = "FROM busybox\nRUN seq 1 3000; echo to-stderr >&2\n";
    let Some(kiln) = Kiln::project(&[("Dockerfile", dockerfile)]) else { return };
    let outcome = build(&kiln, &[]);
    let words = outcome.stderr.lines().filter_map(|line| line.rsplit(' ').next()?.parse::<u32>().ok());
    let numbers = words.fold(0, |next, number| if number == next + 1 { number } else { next });
    assert_eq!(numbers, 3000, "every line, in order");
    outcome.expect_stderr(&["to-stderr", "RUN seq 1 3000"]);
}

#[test]
fn privileged_a_failed_step_shows_where_and_what_and_why() {
    let dockerfile = "FROM busybox\nRUN echo fine\nRUN echo some output && \\\n    exit 42\nRUN echo never\n";
    let Some(kiln) = Kiln::project(&[("Dockerfile", dockerfile)]) else { return };
    let words = ["42", "RUN echo some output", "exit 42", "some output", "Dockerfile:3"];
    for progress in ["plain", "quiet"] {
        let run = kiln.command(["build", "-t", "app"]).arg(format!("--progress={progress}")).arg("app");
        run.output().expect_code(1).expect_stderr(&words);
    }
    // A terminal of its own; what is written there comes back on standard output.
    let line = format!("{} --root {} build -t app app", support::KILN, kiln.root().display());
    let terminal = support::Run::new("script").args(["-qefc", &line, "/dev/null"]).cwd(kiln.scratch());
    terminal.env("TERM", "xterm").output().expect_code(1).expect_stdout(&words);
    kiln.fails(["image", "inspect", "app"]).expect_stderr(&["app"]);
}

#[test]
fn privileged_mistakes_in_dockerfiles_get_a_line_a_caret_and_a_hint() {
    let cases: &[(&str, &[&str])] = &[
        ("FROM busybox\nRUNN echo\n", &["Dockerfile:2", "RUNN", "^", "RUN"]),
        ("FROM busybox\nCOPY --frm=x a b\n", &["Dockerfile:2", "--frm", "^", "--from"]),
        ("FROM busybox\nRUN <<EOF\nnever ends\n", &["Dockerfile:2", "EOF"]),
        ("RUN echo\n", &["Dockerfile:1", "FROM"]),
        ("", &["no instructions", "FROM"]),
        ("FROM busybox AS build\nFROM busybox\nCOPY --from=biuld /a /\n", &["biuld"]),
        ("FROM busybox\nEXPOSE nonsense\n", &["Dockerfile:2", "nonsense"]),
    ];
    let Some(kiln) = Kiln::project(&[]) else { return };
    for (dockerfile, words) in cases {
        kiln.write("app/Dockerfile", dockerfile);
        build_fails(&kiln, &["--network=none", "-t", "app"]).expect_stderr(words);
        kiln.fails(["image", "inspect", "app"]);
    }
}

#[test]
fn privileged_what_does_not_exist_is_named() {
    let Some(kiln) = Kiln::project(&[("Dockerfile", "FROM 127.0.0.1:1/team/nothing:here\n")]) else { return };
    build_fails(&kiln, &[]).expect_stderr(&["127.0.0.1:1/team/nothing:here"]);
    kiln.fails(["build", "nowhere"]).expect_stderr(&["nowhere"]);
    kiln.fails(["build", "-f", "nofile", "app"]).expect_stderr(&["nofile"]);
    kiln.write("app/Dockerfile", "FROM busybox\n");
    build_fails(&kiln, &["--secret=id=a,src=nosecret"]).expect_stderr(&["nosecret"]);
    build_fails(&kiln, &["--progress=loud"]).expect_stderr(&["loud"]);
}

#[test]
fn privileged_an_interrupt_stops_a_build_at_once_and_leaves_nothing_running() {
    let Some(kiln) = Kiln::project(&[("Dockerfile", "FROM busybox\nRUN echo started && sleep 4321\n")]) else { return };
    for signal in [Signal::INT, Signal::TERM] {
        let mut running = kiln.command(["build", "--progress=plain", "--no-cache", "-t", "app", "app"]).spawn();
        running.until_it_says("started\n");
        let asked = Instant::now();
        running.signal(signal);
        let outcome = running.wait();
        assert_ne!(outcome.code, 0, "{}", outcome.report());
        assert!(asked.elapsed() < Duration::from_secs(5), "took {:?}: {}", asked.elapsed(), outcome.report());
        support::eventually("the end of the step", SOON, || (!sleeps("4321")).then_some(()));
    }
    kiln.write("app/Dockerfile", "FROM busybox\nRUN echo fine\n");
    build(&kiln, &["-t", "app"]);
}

#[test]
fn privileged_a_killed_build_loses_nothing_and_leaves_nothing_running() {
    let dockerfile = "FROM busybox\nRUN echo one > /one\nRUN echo started && sleep 5432\n";
    let Some(kiln) = Kiln::project(&[("Dockerfile", dockerfile)]) else { return };
    let mut running: Running = kiln.command(["build", "--progress=plain", "-t", "app", "app"]).spawn();
    running.until_it_says("started\n");
    running.kill();
    support::eventually("the end of the step", SOON, || (!sleeps("5432")).then_some(()));
    kiln.write("app/Dockerfile", "FROM busybox\nRUN echo one > /one\nRUN cat /one\n");
    let next = build(&kiln, &["-t", "app"]);
    assert_eq!(cached(&next), ["RUN echo one > /one"], "the finished step is kept: {}", next.report());
    assert_eq!(sh(&kiln, "app", "cat /one"), "one");
}

#[test]
fn privileged_ten_builds_at_once_share_one_root() {
    let dockerfile = "FROM busybox\nRUN echo shared; sleep 1; date +%N > /shared\nARG N\nRUN echo $N > /number\n";
    let Some(kiln) = Kiln::project(&[("Dockerfile", dockerfile)]) else { return };
    let args = |n: usize| ["build".to_owned(), "-q".to_owned(), format!("--build-arg=N={n}"), format!("-tapp:{n}")];
    let builds: Vec<Running> = (0..10).map(|n| kiln.command(args(n)).arg("app").spawn()).collect();
    for build in builds {
        build.wait().expect_code(0);
    }
    for n in 0..10 {
        assert_eq!(sh(&kiln, &format!("app:{n}"), "cat /number"), n.to_string());
    }
    kiln.ok(["system", "df"]);
}

#[test]
fn privileged_the_build_cache_is_shown_and_brought_within_its_limits() {
    let Some(kiln) =
        Kiln::project(&[("Dockerfile", "FROM busybox\nRUN --mount=type=cache,target=/c echo hi > /c/x\n")])
    else {
        return;
    };
    build(&kiln, &[]);
    let shown = kiln.ok(["builder", "du"]);
    assert_eq!(shown.lines().filter(|line| line.contains("ago")).count(), 2, "a step and a cache mount: {shown}");
    let details = kiln.ok(["builder", "du", "--verbose", "--filter", "type=exec.cachemount"]);
    assert!(details.contains("Type:            exec.cachemount"), "{details}");
    assert_eq!(details.matches("Description:").count(), 1, "{details}");
    // As if the last look at the cache was long ago.
    let config = kiln.write("config.toml", "[[gc.policy]]\nall = true\n");
    support::command::run("touch", ["-d", "1 day ago", &kiln.root().join("gc.stamp").display().to_string()]);
    support::eventually("an empty cache", SOON, || {
        let shown = kiln.command(["--config"]).arg(&config).args(["builder", "du"]).ok();
        shown.contains("Total:        0B").then_some(())
    });
}

/// Whether any process of the machine sleeps for so many seconds.
fn sleeps(seconds: &str) -> bool {
    let line = format!("sleep\0{seconds}\0");
    let processes = std::fs::read_dir("/proc").expect("list processes").flatten();
    processes
        .into_iter()
        .any(|process| std::fs::read(process.path().join("cmdline")).is_ok_and(|cmdline| cmdline == line.as_bytes()))
}
