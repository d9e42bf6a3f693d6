//! The Dockerfile language end to end: what calls answer, and rules that show only when a step runs.
//!
//! What lowering makes of each rule is pinned by `testdata/dockerfile`; `docs/compat-dockerfile.md` lists all rules.

mod support;

use std::path::Path;

use serde_json::Value;
use support::{Kiln, Outcome, is_root};

/// A context directory, `app` in the scratch directory.
fn write(kiln: &Kiln, files: &[(&str, &str)]) {
    for (path, content) in files {
        kiln.write(Path::new("app").join(path), content);
    }
}

/// A root with busybox and a context; `None` when not root.
fn project(files: &[(&str, &str)]) -> Option<Kiln> {
    if !is_root() {
        return None;
    }
    let kiln = Kiln::with_busybox();
    write(&kiln, files);
    Some(kiln)
}

fn build(kiln: &Kiln, args: &[&str]) -> Outcome {
    kiln.command(["build", "--progress=plain"]).args(args).arg("app").output().expect_code(0)
}

fn sh(kiln: &Kiln, image: &str, script: &str) -> String {
    kiln.ok(["run", "--rm", "--network=none", image, "sh", "-c", script])
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).expect("it is JSON")
}

#[test]
fn checks_need_no_engine_and_tell_by_their_exit_code() {
    let kiln = Kiln::new();
    write(
        &kiln,
        &[("Dockerfile", "FROM alpine AS Base\nCOPY secret $NOWHERE /\nCMD echo hi\n"), (".dockerignore", "secret\n")],
    );
    write(&kiln, &[("clean", "FROM golang\nWORKDIR $GOPATH/src\nCMD [\"x\"]\n"), ("broken", "FROM a\nCOPPY a b\n")]);
    let found = kiln.command(["build", "--check", "app"]).output().expect_code(1);
    assert!(
        found.stdout.starts_with("Check complete, 4 warnings have been found!\n\nWARNING: StageNameCasing - https://")
    );
    let found = found.expect_stdout(&[
        "Attempting to Copy file \"secret\" that is excluded by .dockerignore\nDockerfile:2:6\n--------------------\n",
        "   2 | >>> COPY secret $NOWHERE /\n",
        "Usage of undefined variable '$NOWHERE'\nDockerfile:2:13\n",
        "WARNING: JSONArgsRecommended - https://docs.docker.com/go/dockerfile/rule/json-args-recommended/\n",
    ]);
    assert_eq!(found.stderr, "");

    let clean = kiln.command(["build", "--call=check", "-f", "app/clean", "app"]).output().expect_code(0);
    assert_eq!(clean.stdout, "Check complete, no warnings found.\n");
    let ignored = kiln.command(["build", "--call=check,format=json,ignorestatus=true", "app"]).output().expect_code(0);
    let results = json(&ignored.stdout);
    assert_eq!(results["warnings"][3]["ruleName"], "JSONArgsRecommended");
    assert_eq!(results["warnings"][3]["location"]["ranges"][0]["start"]["line"], 3);

    kiln.command(["build", "--check", "-f", "app/broken", "app"])
        .output()
        .expect_code(1)
        .expect_stderr(&["unknown instruction \"COPPY\" (did you mean COPY?)", "broken:2:1\n"]);
    let stdin =
        kiln.command(["build", "--check", "-f", "-", "app"]).stdin("FROM scratch as x\n").output().expect_code(1);
    stdin.expect_stdout(&["FromAsCasing", "Dockerfile:1:14"]);
    assert!(!kiln.root().exists(), "an engine was started");
}

#[test]
fn calls_list_targets_arguments_and_themselves() {
    let kiln = Kiln::new();
    let dockerfile = "# VERSION of the product\nARG VERSION=1\nFROM busybox:$VERSION AS base\n# app is what you want\nFROM base \
                      AS app\nARG MODE=fast\nRUN --mount=type=secret,id=token,required --mount=type=ssh true\n";
    write(&kiln, &[("Dockerfile", dockerfile)]);
    let call =
        |call: &str| kiln.command(["build", "--call", call, "--build-arg", "MODE=slow", "app"]).output().expect_code(0);
    assert_eq!(
        call("outline").stdout,
        "TARGET:      app\nDESCRIPTION: is what you want\n\nBUILD ARG   VALUE   DESCRIPTION\nVERSION     1       of the \
         product\nMODE        slow    \n\nSECRET   REQUIRED\ntoken    true\n\nSSH       REQUIRED\ndefault   \n\n"
    );
    assert_eq!(call("targets").stdout, "TARGET        DESCRIPTION\nbase          \napp (default) is what you want\n");
    assert_eq!(json(&call("targets,format=json").stdout)["targets"][1]["base"], "base");
    call("subrequests.describe").expect_stdout(&["NAME                 VERSION DESCRIPTION\n", "\nlint "]);
    kiln.command(["build", "--call=outlin", "app"]).fails().expect_stderr(&["did you mean frontend.outline?"]);
}

#[test]
fn included_files_are_checked_where_they_stand() {
    let kiln = Kiln::new();
    write(
        &kiln,
        &[
            (
                "Dockerfile",
                "# syntax=kiln\n# check=skip=KilnExtension\nFROM scratch\nINCLUDE parts/config\nCMD [\"x\"]\n",
            ),
            ("parts/config", "ENV A=1\nENV B 2\n"),
            ("loop", "# syntax=kiln\nFROM scratch\nINCLUDE loop\n"),
        ],
    );
    let found = kiln.command(["build", "--check", "app"]).output().expect_code(1);
    found.expect_stdout(&["Check complete, 1 warning has been found!", "parts/config:2:5\n", "   2 | >>> ENV B 2\n"]);
    let looping = kiln.command(["build", "--check", "-f", "app/loop", "app"]).output().expect_code(1);
    looping.expect_stderr(&["the file includes itself: loop -> loop", "loop:3:9\n"]);
}

#[test]
fn privileged_included_files_are_built_and_named_by_failures() {
    let Some(kiln) = project(&[
        ("Dockerfile", "# syntax=kiln\nFROM busybox\nINCLUDE steps\nRUN cat /one\n"),
        ("steps", "RUN echo included > /one"),
        ("broken", "# syntax=kiln\nFROM busybox\nINCLUDE failing\n"),
        ("failing", "ENV X=1\nRUN exit 7\n"),
    ]) else {
        return;
    };
    build(&kiln, &[]).expect_stderr(&["included\n", "KilnExtension: INCLUDE is understood by Kiln only (line 3)"]);
    let failed = kiln.command(["build", "--progress=plain", "-f", "app/broken", "app"]).fails();
    failed.expect_stderr(&["failing:2\n", "   2 | >>> RUN exit 7\n", "exit code: 7"]);
}

#[test]
fn privileged_findings_of_checks_are_printed_at_the_end_and_can_stop_a_build() {
    let Some(kiln) = project(&[
        ("Dockerfile", "FROM busybox as base\nENV A b\nRUN true\n"),
        ("strict", "# check=error=true\nFROM busybox as base\n"),
    ]) else {
        return;
    };
    let built = build(&kiln, &[]);
    let summary = "\n 2 warnings found (use --debug to expand):\n - FromAsCasing: 'as' and 'FROM' keywords' casing do not match \
                   (line 1)\n - LegacyKeyValueFormat: \"ENV key=value\" should be used instead of legacy \"ENV key value\" \
                   format (line 2)\n";
    assert!(built.stderr.ends_with(summary), "{}", built.report());
    build(&kiln, &["--debug"]).expect_stderr(&[
        " 2 warnings found:\n",
        "\nMore info: https://docs.docker.com/go/dockerfile/rule/from-as-casing/\nDockerfile:1\n",
        "   2 | >>> ENV A b\n",
    ]);
    let strict = kiln.command(["build", "--progress=plain", "-f", "app/strict", "app"]).fails();
    strict.expect_stderr(&["lint violation found for rules: FromAsCasing", "1 warning found", "strict:2:14\n"]);
}

#[test]
fn privileged_copies_own_what_they_make_as_buildkit_does() {
    let dockerfile = "FROM busybox AS base\nRUN echo 'app:x:700:701::/:' >> /etc/passwd; echo 'web:x:55:' >> /etc/group\n\
                      RUN mkdir /made && echo x > /made/file && chown -R 9:8 /made && chmod 2750 /made\n\
                      FROM base\n\
                      COPY --from=base /made /kept/\n\
                      COPY --chown=app one /by/name/\n\
                      COPY --chown=app:web --chmod=u=rw,go=r one /by/group\n\
                      COPY --chown=12 one /by/number/\n\
                      COPY --chown=:web one /by/web\n\
                      COPY --chown=nobody-knows one /unknown\n\
                      COPY --chown=5:6 --chmod=700 one /deep/er/still/\n\
                      COPY one two /last\n\
                      COPY --link two /linked/\n\
                      COPY <<one <<\"two\" /documents/\n$PATH\none\n$PATH\ntwo\n\
                      COPY --parents sub/./dir/*.txt /parents/\n\
                      COPY --exclude=*.md sub /excluded/\n";
    let files = [
        ("Dockerfile", dockerfile),
        ("one", "1"),
        ("two", "2"),
        ("sub/dir/a.txt", "a"),
        ("sub/b.md", "b"),
        ("sub/c", "c"),
    ];
    let Some(kiln) = project(&files) else { return };
    build(&kiln, &["-t", "app"]);
    let stat = |paths: &str| sh(&kiln, "app", &format!("stat -c '%n %u:%g %a' {paths}"));
    assert_eq!(stat("/kept /kept/file"), "/kept 0:0 755\n/kept/file 9:8 644");
    assert_eq!(stat("/by/name /by/name/one"), "/by/name 700:701 755\n/by/name/one 700:701 644");
    assert_eq!(
        stat("/by/group /by/number/one /by/web"),
        "/by/group 700:55 644\n/by/number/one 12:12 644\n/by/web 0:55 644"
    );
    assert_eq!(stat("/unknown"), "/unknown 0:0 644", "a name that nobody has is root, whatever the documentation says");
    assert_eq!(
        stat("/deep /deep/er/still /deep/er/still/one"),
        "/deep 5:6 700\n/deep/er/still 5:6 700\n/deep/er/still/one 5:6 700"
    );
    assert_eq!(sh(&kiln, "app", "cat /last /linked/two"), "22", "the second file takes the place of the first");
    assert_eq!(sh(&kiln, "app", "cat /documents/one; cat /documents/two").lines().last(), Some("$PATH"));
    assert!(!sh(&kiln, "app", "cat /documents/one").contains('$'));
    assert_eq!(
        sh(&kiln, "app", "find /parents /excluded -type f | sort"),
        "/excluded/c\n/excluded/dir/a.txt\n/parents/dir/a.txt"
    );
}

#[test]
fn privileged_steps_see_their_arguments_directory_and_shell() {
    let dockerfile = "FROM busybox AS base\nONBUILD RUN echo triggered > /trigger\n\
                      FROM base\nARG UNSET\nARG SET=default\nARG OVER=arg\nENV OVER=env\n\
                      RUN echo \"$SET ${UNSET-unset} $OVER $HTTP_PROXY\" > /arguments\n\
                      USER 1000:1001\nWORKDIR /home/me\nWORKDIR below/\nRUN pwd > where; id -u > who\n\
                      USER 0\nRUN <<EOF\n#!/bin/sh -e\necho \"$0\" > /script\nEOF\n\
                      RUN <<-EOF\n\t\techo tabs > /tabs\n\tEOF\n\
                      RUN cat <<A > /a; cat <<B > /b\n$SET\nA\nb\nB\n\
                      SHELL [\"/bin/sh\", \"-e\", \"-c\"]\nRUN echo $0-$- > /shell\n\
                      VOLUME /data\nRUN mkdir -p /data && echo kept > /data/file\n";
    let Some(kiln) = project(&[("Dockerfile", dockerfile)]) else { return };
    build(&kiln, &["-t", "app", "--build-arg", "SET=given", "--build-arg", "HTTP_PROXY=http://proxy"]);
    assert_eq!(sh(&kiln, "app", "cat /trigger /arguments"), "triggered\ngiven unset env http://proxy");
    assert_eq!(
        sh(&kiln, "app", "stat -c '%n %u:%g' /home/me /home/me/below; cat where who"),
        "/home/me 1000:1001\n/home/me/below 1000:1001\n/home/me/below\n1000"
    );
    assert_eq!(sh(&kiln, "app", "cat /script /tabs /a /b"), "/dev/pipes/EOF\ntabs\ngiven\nb");
    assert!(sh(&kiln, "app", "cat /shell").contains('e'));
    assert_eq!(sh(&kiln, "app", "cat /data/file"), "kept");
    let history = kiln.ok(["history", "--no-trunc", "--format", "{{.CreatedBy}}", "app"]);
    let arguments = "RUN |3 UNSET= SET=given OVER=env /bin/sh -c";
    assert!(
        history
            .contains(&format!("{arguments} echo \"$SET ${{UNSET-unset}} $OVER $HTTP_PROXY\" > /arguments # buildkit")),
        "{history}"
    );
    assert!(!history.contains("proxy=") && history.contains("VOLUME [/data]"), "{history}");
    assert!(history.contains("WORKDIR /home/me/below") && history.contains("SHELL [/bin/sh -e -c]"), "{history}");
}
