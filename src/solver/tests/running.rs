//! How RUN steps run: tries, time, limits, exits, devices, platforms, and failed steps that are kept.

use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};

use super::*;
use crate::error::Kind;
use crate::solver::failed::Inspection;
use crate::task;

#[test]
fn privileged_a_retried_step_starts_from_clean_files() {
    in_world(async |world| {
        let script = "echo x >> /c/tries; test ! -e /dirty || exit 9; test ! -e /ctx/dirty || exit 9; \
            touch /dirty /ctx/dirty; test $(wc -l < /c/tries) = 3 || exit 1; rm /dirty";
        let mounts = "--mount=type=cache,target=/c --mount=type=bind,target=/ctx,rw";
        let dockerfile = format!("FROM base\nRUN --retry=3 {mounts} {script}\n");
        let outcome = world.build(&dockerfile).await;
        outcome.built();
        let printed = outcome.printed();
        assert!(printed.contains("exit code: 1; try 2 of 4 ") && printed.contains("; try 3 of 4 "), "{printed}");
        assert!(!printed.contains("try 4") && !printed.contains("exit code: 9"), "{printed}");
        assert!(world.build(&dockerfile.replace("retry=3", "retry=5")).await.cached("RUN"), "the flag is in no key");
        let failed = world.build("FROM base\nRUN --retry=1 exit 7\n").await;
        assert!(failed.error().ends_with("exit code: 7 (try 2 of 2)"), "{}", failed.error());
    });
}

#[test]
fn privileged_a_step_that_takes_too_long_is_killed_and_says_so() {
    in_world(async |world| {
        let outcome = world.build("FROM base\nRUN --timeout=200ms sleep 600 & sleep 600\n").await;
        let error = &outcome.result.as_ref().unwrap_err().error;
        assert_eq!(error.kind(), Kind::Timeout);
        assert!(error.to_string().ends_with("killed because it took longer than 200ms (RUN --timeout)"), "{error}");
    });
}

#[test]
fn privileged_a_step_that_runs_out_of_memory_says_so_with_the_peak() {
    in_world(async |world| {
        let run = "dd if=/dev/zero of=/dev/null bs=64M count=1";
        let own = world.build(&format!("FROM base\nRUN --memory=16m {run}\n")).await;
        let error = own.error();
        assert!(error.contains("exit code: 137: out of memory: the kernel killed 1 process at a peak of 1"), "{error}");
        assert!(error.ends_with("(the limit is 16.0 MiB)"), "{error}");
        assert_eq!(own.result.unwrap_err().error.kind(), Kind::Exhausted);
        let limited = |limit: &str, dockerfile: &str| {
            let mut request = world.request(dockerfile);
            request.attrs.insert("memory".to_owned(), limit.to_owned());
            request
        };
        let dockerfile = format!("FROM base\nRUN {run}\n");
        let asked = world.run(limited("25165824", &dockerfile)).await;
        assert!(asked.error().ends_with("(the limit is 24.0 MiB)"), "{}", asked.error());
        // The step's own limit comes first, and neither is in the key.
        world.run(limited("25165824", &format!("FROM base\nRUN --memory=1g {run}\n"))).await.built();
        assert!(world.run(limited("25165824", &dockerfile)).await.cached("RUN dd"));
    });
}

#[test]
fn privileged_exits_that_say_little_are_explained() {
    in_world(async |world| {
        for (run, words) in [
            ("no-such-command", "exit code: 127: a command was not found"),
            ("touch /x && /x", "exit code: 126: a command was found but cannot be executed"),
            ("kill -SEGV $$", "exit code: 139: ended by signal 11 (SIGSEGV"),
            ("kill -9 $$ & wait $!", "exit code: 137: killed by signal 9 (SIGKILL) that someone sent"),
        ] {
            // The first process of a sandbox ignores signals it sends itself.
            let run = if run.contains("$$") { format!("sh -c '{run}'; exit $?") } else { run.to_owned() };
            let error = world.build(&format!("FROM base\nRUN {run}\n")).await.error();
            assert!(error.contains(words), "{run}: {error}");
        }
    });
}

#[test]
fn privileged_a_working_directory_that_run_makes_is_the_users() {
    in_world(async |world| {
        let dockerfile = "FROM base\nWORKDIR /srv/deep/app\nRUN cd / && rm -r /srv/deep\nUSER app\n\
            RUN stat -c '%u %g %a' /srv /srv/deep /srv/deep/app > /tmp/owners\n";
        world.build(dockerfile).await.built();
        assert_eq!(world.read("tmp/owners").unwrap(), "0 0 755\n1000 1001 755\n1000 1001 755\n");
    });
}

#[test]
fn privileged_output_and_errors_come_in_the_order_of_writing() {
    in_world(async |world| {
        let run = "i=0; while [ $i -lt 300 ]; do echo o$i; echo e$i >&2; i=$((i+1)); done; echo last > /dev/stderr";
        let outcome = world.build(&format!("FROM base\nRUN {run}\n")).await;
        let expected: String = (0..300).map(|i| format!("o{i}\ne{i}\n")).collect();
        assert_eq!(outcome.printed(), expected + "last\n");
    });
}

#[test]
fn privileged_limits_of_processes_and_shared_memory_hold() {
    in_world(async |world| {
        let run = "ulimit -n; ulimit -Hn; dd if=/dev/zero of=/dev/shm/x bs=1M count=3 2> /dev/null; wc -c < /dev/shm/x";
        let mut request = world.request(&format!("FROM base\nRUN ({run}) > /seen\n"));
        request.attrs.insert("ulimit".to_owned(), "nofile=100:200,core=0".to_owned());
        request.attrs.insert("shm-size".to_owned(), "2097152".to_owned());
        world.run(request).await.built();
        assert_eq!(world.read("seen").unwrap(), "100\n200\n2097152\n");
    });
}

#[test]
fn privileged_insecure_steps_may_mount_and_others_may_not() {
    in_world(async |world| {
        let dockerfile = "FROM base\nRUN --security=insecure mount -t tmpfs none /tmp && touch /done\n";
        let refused = world.build(dockerfile).await.error();
        assert_eq!(refused, "security.insecure is not allowed; build with --allow security.insecure");
        let entitlements = vec!["security.insecure".to_owned()];
        world.run(BuildRequest { entitlements, ..world.request(dockerfile) }).await.built();
        assert!(world.build("FROM base\nRUN mount -t tmpfs none /tmp\n").await.result.is_err());
    });
}

#[test]
fn privileged_a_device_is_given_when_it_is_described_and_allowed() {
    in_world(async |world| {
        let spec = r#"{"cdiVersion":"0.6.0","kind":"example.com/gpu","devices":[{"name":"one","containerEdits":{
            "env":["GPU=one"],"deviceNodes":[{"path":"/dev/gpu0","hostPath":"/dev/zero"}],
            "mounts":[{"hostPath":"/proc/sys/kernel","containerPath":"/gpu","options":["ro"]}]}}]}"#;
        let dir = world.dir.path().join("cdi");
        std::fs::create_dir(&dir).unwrap();
        std::fs::write(dir.join("gpu.json"), spec).unwrap();
        let run = "dd if=/dev/gpu0 of=/read bs=1 count=2 2> /dev/null && test -e /gpu/ostype && echo $GPU > /gpu-name";
        let dockerfile =
            format!("FROM base\nRUN --device=example.com/gpu=one,required {run}\nRUN test ! -e /dev/gpu0\n");
        let refused = world.build(&dockerfile).await.error();
        assert!(refused.ends_with("build with --allow device=example.com/gpu=one"), "{refused}");
        let entitlements = vec!["device=example.com/gpu=one".to_owned()];
        world.run(BuildRequest { entitlements, ..world.request(&dockerfile) }).await.built();
        assert_eq!((world.read("gpu-name").unwrap().as_str(), world.read("read").unwrap().as_str()), ("one\n", "\0\0"));
        let missing = world.build("FROM base\nRUN --device=example.com/gpu=two,required true\n").await.error();
        assert!(missing.contains("example.com/gpu=two") && missing.contains("did you mean"), "{missing}");
        world.build("FROM base\nRUN --device=example.com/none true\n").await.built();
    });
}

/// A device with hooks, and what they write down on the host.
struct Hooked<'a> {
    world: &'a World,
    script: PathBuf,
}

impl<'a> Hooked<'a> {
    /// `body` is what a hook does after it has read its state (`state`), and found the root file system (`root`). It is called with
    /// the name of its point.
    fn new(world: &'a World, body: &str) -> Self {
        let script = world.dir.path().join("hook");
        let text = format!(
            "#!/bin/sh\nset -e\nstate=$(cat)\nbundle=$(echo \"$state\" | sed 's/.*\"bundle\":\"\\([^\"]*\\)\".*/\\1/')\n\
            root=$(sed 's/.*\"path\":\"\\([^\"]*\\)\".*/\\1/' $bundle/config.json)\necho \"$1 $state\" >> {0}/log\n\
            log={0}\n{body}\n",
            world.dir.path().display()
        );
        std::fs::write(&script, text).unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(&script, mode).unwrap();
        Self { world, script }
    }

    /// Hooks at these points that run the script.
    fn at(&self, points: &[&str]) -> Vec<serde_json::Value> {
        let hook = |point: &&str| {
            let env = ["PATH=/usr/bin:/bin", "WHO=kiln"];
            serde_json::json!({"hookName": point, "path": self.script, "args": ["hook", point], "env": env})
        };
        points.iter().map(hook).collect()
    }

    async fn build(&self, hooks: Vec<serde_json::Value>, run: &str) -> Outcome {
        let mount = serde_json::json!({"hostPath": "/proc/sys/kernel", "containerPath": "/gpu", "options": ["ro"]});
        let edits = serde_json::json!({"hooks": hooks, "mounts": [mount]});
        let devices = serde_json::json!([{"name": "one", "containerEdits": edits}]);
        let spec = serde_json::json!({"cdiVersion": "0.6.0", "kind": "example.com/gpu", "devices": devices});
        let dir = self.world.dir.path().join("cdi");
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join("gpu.json"), spec.to_string()).unwrap();
        let dockerfile = format!("FROM base\nRUN --device=example.com/gpu=one,required {run}\n");
        let entitlements = vec!["device".to_owned()];
        self.world.run(BuildRequest { entitlements, ..self.world.request(&dockerfile) }).await
    }

    /// What hooks have written down since this was last asked: the point and the state.
    fn calls(&self) -> Vec<(String, serde_json::Value)> {
        let log = self.world.dir.path().join("log");
        let text = std::fs::read_to_string(&log).unwrap_or_default();
        let _ = std::fs::remove_file(log);
        let call = |line: &str| {
            let (point, state) = line.split_once(' ').unwrap();
            (point.to_owned(), serde_json::from_str(state).unwrap())
        };
        text.lines().map(call).collect()
    }

    fn called(&self) -> Vec<String> {
        self.calls().into_iter().map(|(point, _)| point).collect()
    }

    /// Bundles are there only while they are needed.
    #[track_caller]
    fn nothing_is_left(&self) {
        assert_eq!(std::fs::read_dir(self.world.root().join("bundles")).unwrap().count(), 0);
    }
}

#[test]
fn privileged_hooks_of_a_device_run_where_and_when_the_specification_says() {
    in_world(async |world| {
        let hooked = Hooked::new(
            world,
            "test $1 = poststop || { test -e $root/gpu/ostype && echo $WHO > $root/etc/$1; }\n\
            case $1 in\n\
            createRuntime) readlink /proc/$$/ns/net > $root/etc/net; tr '\\0' ';' < /proc/$$/environ > $log/environ;;\n\
            createContainer) readlink /proc/self/ns/net > $root/etc/own-net; test $PWD/etc/passwd -ef $root/etc/passwd;;\n\
            esac",
        );
        let mut hooks =
            hooked.at(&["poststop", "poststart", "createContainer", "createRuntime", "prestart", "createRuntime"]);
        // The name it is called by makes a shell of it.
        let script = "cat > /tmp/state; id -u > /tmp/user; echo $A-$WHO > /tmp/env; pwd > /tmp/dir";
        hooks.push(
            serde_json::json!({"hookName": "startContainer", "path": "/bin/busybox", "args": ["sh", "-c", script],
            "env": ["A=1", "PATH=/bin"]}),
        );
        let run = "cat /etc/prestart /etc/createRuntime /etc/createContainer /tmp/user /tmp/env /tmp/dir && \
            while test ! -e /etc/poststart; do sleep 0.05; done && ls -l /proc/self/ns/net > /tmp/net && \
            grep -qF $(cat /etc/own-net) /tmp/net && ! grep -qF $(cat /etc/net) /tmp/net";
        let outcome = hooked.build(hooks, run).await;
        outcome.built();
        assert_eq!(outcome.printed(), "kiln\nkiln\nkiln\n0\n1-\n/\n");
        assert_eq!(std::fs::read_to_string(world.dir.path().join("environ")).unwrap(), "PATH=/usr/bin:/bin;WHO=kiln;");
        let mut calls = hooked.calls();
        let state = world.read("tmp/state").unwrap();
        calls.insert(4, ("startContainer".to_owned(), serde_json::from_str(&state).unwrap()));
        let in_order = [
            "prestart",
            "createRuntime",
            "createRuntime",
            "createContainer",
            "startContainer",
            "poststart",
            "poststop",
        ];
        assert_eq!(calls.iter().map(|(point, _)| point.as_str()).collect::<Vec<_>>(), in_order);
        let statuses = ["creating", "creating", "creating", "creating", "created", "running", "stopped"];
        for ((point, state), status) in calls.iter().zip(statuses) {
            assert_eq!((&state["status"], &state["ociVersion"]), (&status.into(), &"1.2.0".into()), "{point}");
            assert_eq!((&state["id"], &state["bundle"]), (&calls[0].1["id"], &calls[0].1["bundle"]), "{point}");
            let pid = state["pid"].as_i64();
            match point.as_str() {
                "poststop" => assert_eq!(pid, None),
                "createContainer" | "startContainer" => assert_eq!(pid, Some(1), "as the container counts"),
                _ => assert!(pid > Some(1) && pid == calls[0].1["pid"].as_i64(), "{point}: {pid:?}"),
            }
        }
        hooked.nothing_is_left();
    });
}

#[test]
fn privileged_a_hook_that_fails_fails_the_step_and_says_why() {
    in_world(async |world| {
        let hooked = Hooked::new(world, "test $1 = poststop || { echo no driver >&2; exit 3; }");
        for point in ["prestart", "createRuntime", "createContainer", "poststart"] {
            let error = hooked.build(hooked.at(&[point, point, "poststop"]), "sleep 600").await.error();
            let path = hooked.script.display();
            let expected =
                format!("the hook {point} {path} of device example.com/gpu=one failed with exit code 3: no driver");
            assert!(error.contains(&expected), "{error}");
            assert_eq!(hooked.called(), [point, "poststop"], "the first one ends it, and it is cleaned up");
        }
        let inside =
            serde_json::json!({"hookName": "startContainer", "path": "/bin/sh", "args": ["sh", "-c", "kill -9 $$"]});
        let error = hooked.build(vec![inside], "true").await.error();
        assert!(
            error.ends_with("/bin/sh of device example.com/gpu=one was ended by signal 9: it printed nothing"),
            "{error}"
        );
        let missing = serde_json::json!({"hookName": "createContainer", "path": "/no/such/program"});
        let error = hooked.build(vec![missing], "true").await.error();
        assert!(error.contains("/no/such/program of device example.com/gpu=one could not be started"), "{error}");
        hooked.nothing_is_left();
    });
}

#[test]
fn privileged_a_hook_that_fails_after_the_step_is_a_warning() {
    in_world(async |world| {
        let hooked = Hooked::new(world, "echo still busy; exit 1");
        let outcome = hooked.build(hooked.at(&["poststop", "poststop"]), "echo done").await;
        outcome.built();
        assert_eq!(hooked.called(), ["poststop", "poststop"], "the next one runs all the same");
        assert!(outcome.printed().contains("failed with exit code 1: still busy"), "{}", outcome.printed());
    });
}

#[test]
fn privileged_a_hook_that_takes_too_long_is_killed() {
    in_world(async |world| {
        let hooked = Hooked::new(world, "echo waiting; exec sleep 600");
        let mut hooks = hooked.at(&["createContainer"]);
        hooks[0]["timeout"] = 1.into();
        let outcome = hooked.build(hooks, "true").await;
        let error = &outcome.result.as_ref().unwrap_err().error;
        assert_eq!(error.kind(), Kind::Timeout);
        let text = error.to_string();
        assert!(text.ends_with("was killed because it took longer than its timeout of 1s: waiting"), "{text}");
        hooked.nothing_is_left();
    });
}

#[test]
fn privileged_a_hook_that_hangs_does_not_hold_up_a_build_that_is_cancelled() {
    in_world(async |world| {
        let hooked = Hooked::new(world, "test $1 = poststop || exec sleep 600");
        let log = world.dir.path().join("log");
        let called = async {
            while !log.exists() {
                tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            }
        };
        tokio::select! {
            outcome = hooked.build(hooked.at(&["createContainer", "poststop"]), "true") => panic!("{}", outcome.error()),
            called = tokio::time::timeout(std::time::Duration::from_secs(20), called) => called.unwrap(),
        }
        world.shut_down().await;
        assert_eq!(hooked.called(), ["createContainer", "poststop"]);
        hooked.nothing_is_left();
    });
}

/// The beginning of a program for a machine of `elf(5)` with 64 bits, and the byte order 1 (little) or 2 (big).
fn program(order: u8, machine: [u8; 2]) -> Vec<u8> {
    let mut program = vec![0; 64];
    program[..7].copy_from_slice(&[0x7f, b'E', b'L', b'F', 2, order, 1]);
    program[if order == 1 { 16 } else { 17 }] = 2;
    program[18..20].copy_from_slice(&machine);
    program
}

#[test]
fn privileged_a_step_for_another_platform_says_what_is_missing() {
    in_world(async |world| {
        std::fs::write(world.context().join("program"), program(1, [21, 0])).unwrap();
        let dockerfile = "FROM scratch\nCOPY --chmod=755 program /program\nRUN [\"/program\"]\n";
        let build = |dockerfile: &str| {
            let mut request = world.request(dockerfile);
            request.attrs.insert("platform".to_owned(), "linux/ppc64le".to_owned());
            world.run(request)
        };
        let outcome = build(dockerfile).await;
        let error = outcome.error();
        for words in ["exec format error", "linux/ppc64le", "apt-get install qemu-user-static"] {
            assert!(error.contains(words), "{error}");
        }
        assert!(outcome.printed().contains("the step is for linux/ppc64le"), "{}", outcome.printed());
        // What an image says of its platform may be wrong; the step runs all the same.
        std::fs::copy(BUSYBOX, world.context().join("program")).unwrap();
        build(&dockerfile.replace("/program", "/true")).await.built();
    });
}

/// An emulator for s390x that prints what it is to run, registered as long as this lives.
struct Emulator(Child);

impl Emulator {
    fn register(dir: &Path) -> Option<Self> {
        if !std::fs::read_to_string("/proc/filesystems").unwrap().contains("binfmt_misc") {
            eprintln!("skipped: this kernel has no binfmt_misc");
            return None;
        }
        let echo = dir.join("echo");
        std::fs::copy(BUSYBOX, &echo).unwrap();
        let digits = |bytes: &[u8]| bytes.iter().map(|byte| format!("\\x{byte:02x}")).collect::<String>();
        let magic = digits(&program(2, [0, 22])[..20]);
        let name = format!("kiln-test-{}", std::process::id());
        let line = format!(":{name}:M::{magic}::{}:F", echo.display());
        // A mount namespace of its own, with which the mount goes; the handler goes at the end of the input.
        let script = format!(
            "mount -t binfmt_misc none /mnt && echo '{line}' > /mnt/register && echo ready && cat; echo -1 > /mnt/{name}"
        );
        let mut child = Command::new("unshare")
            .args(["--mount", "sh", "-c", &script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut ready = [0; 6];
        std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut ready).expect("the handler is registered");
        Some(Self(child))
    }
}

impl Drop for Emulator {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

#[test]
fn privileged_a_step_for_another_platform_runs_through_the_hosts_emulator() {
    in_world(async |world| {
        let Some(_emulator) = Emulator::register(world.dir.path()) else { return };
        let platforms = world.solver.platforms();
        assert!(platforms.iter().any(|platform| platform.architecture == "s390x"), "{platforms:?}");
        std::fs::write(world.context().join("program"), program(2, [0, 22])).unwrap();
        let dockerfile = "FROM --platform=linux/s390x scratch\nCOPY --chmod=755 program /program\nRUN [\"/program\", \"of\", \"s390x\"]\n";
        let outcome = world.build(dockerfile).await;
        outcome.built();
        assert_eq!(outcome.printed(), "/program of s390x\n");
    });
}

/// Builds what fails and is kept; returns its id.
async fn keep(world: &World, dockerfile: &str) -> String {
    let request = BuildRequest { keep_failed: true, ..world.request(dockerfile) };
    world.run(request).await.result.unwrap_err().kept().expect("the step is kept").to_owned()
}

async fn inspect(world: &World, id: &str, script: &str) -> (String, i32) {
    let args = ["/bin/sh", "-c", script].map(str::to_owned).to_vec();
    let inspection = Inspection { args, env: vec!["MORE=yes".to_owned()], terminal: None };
    let mut inspector = world.solver.failed_step(id).unwrap().open(inspection).await.unwrap();
    let streams = inspector.take_streams();
    drop(streams.stdin);
    let read = |stream: Option<OwnedFd>| std::io::read_to_string(std::fs::File::from(stream.unwrap())).unwrap();
    let printed = task::blocking(move || Ok(read(streams.stdout) + &read(streams.stderr))).await.unwrap();
    (printed, inspector.end().await.unwrap().code())
}

#[test]
fn privileged_a_failed_step_is_kept_as_it_stood() {
    in_world(async |world| {
        world.put("file", "of the context");
        let dockerfile = "FROM base\nWORKDIR /work\nENV A=1\n\
            RUN --mount=type=cache,target=/c --mount=type=bind,target=/ctx,rw chmod 777 . && rm /etc/group && \
            echo kept > /tmp/made && echo cached > /c/file && echo written > /ctx/new && exit 3\n";
        let id = keep(world, dockerfile).await;
        let script = "pwd; echo $A$MORE; cat /tmp/made /c/file /ctx/file /ctx/new; test -e /etc/group || echo gone; ls /dev/kiln; exit 4";
        let (printed, code) = inspect(world, &id, script).await;
        assert_eq!(
            (printed.as_str(), code),
            ("/work\n1yes\nkept\ncached\nof the contextwritten\ngone\n/dev/kiln\n", 4)
        );
        // What one changes the next one sees, and the changes are a layer.
        inspect(world, &id, "rm /tmp/made; echo more > /work/more").await;
        let step = world.solver.failed_step(&id).unwrap();
        let layer = task::blocking(move || {
            let mut layer = Vec::new();
            step.write_changes(&mut layer, &Cancel::new()).map(|()| layer)
        });
        let layer = layer.await.unwrap();
        let mut archive = tar::Archive::new(layer.as_slice());
        let names = archive.entries().unwrap().map(|entry| entry.unwrap().path().unwrap().display().to_string());
        let names: Vec<String> = names.filter(|name| !name.ends_with('/')).collect();
        assert_eq!(names, ["etc/.wh.group", "work/more"]);
        world.solver.release_failed(&id).await.unwrap();
        assert_eq!(world.solver.failed_step(&id).unwrap_err().kind(), Kind::NotFound);
        let plain = world.build(dockerfile).await;
        assert_eq!(plain.result.unwrap_err().kept(), None, "nobody asked for it");
    });
}

#[test]
fn privileged_a_failed_step_goes_with_the_engine() {
    in_world(async |world| {
        let id = keep(world, "FROM base\nRUN exit 1\n").await;
        assert!(world.solver.failed_step(&id).is_ok());
        world.shut_down().await;
        assert!(world.solver.failed_step(&id).is_err());
    });
}
