//! End-to-end tests of what a build reads that is no plain directory: files by HTTP, repositories, contexts elsewhere and on
//! standard input, named contexts, secrets for them, and SSH agents.

mod support;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use support::command::shell;
use support::ssh::{Agent, Server, put_ssh_add};
use support::web::{Answer, Web};
use support::{Kiln, Outcome, Run};

/// A day in 2001, as HTTP has it.
const MODIFIED: &str = "Sun, 09 Sep 2001 01:46:40 GMT";

/// A root with busybox and an empty directory `app`; `None` when not root.
fn project() -> Option<Kiln> {
    let kiln = Kiln::project(&[])?;
    std::fs::create_dir(kiln.scratch().join("app")).expect("make a directory");
    Some(kiln)
}

fn build(kiln: &Kiln, dockerfile: &str, args: &[&str]) -> Run {
    kiln.write("app/Dockerfile", dockerfile);
    kiln.command(["build", "--progress=plain", "-t", "t"]).args(args).arg("app")
}

fn builds(kiln: &Kiln, dockerfile: &str, args: &[&str]) -> Outcome {
    build(kiln, dockerfile, args).output().expect_code(0)
}

/// Runs a shell command in the image that was built last.
fn sh(kiln: &Kiln, script: &str) -> String {
    kiln.ok(["run", "--rm", "--network=none", "t", "sh", "-c", script])
}

/// Serves `/file` with an entity tag; the content tells how often it was changed.
fn changing(version: &Arc<AtomicUsize>) -> Web {
    let version = Arc::clone(version);
    Web::start(move |request| {
        let tag = format!("\"v{}\"", version.load(Ordering::SeqCst));
        if request.header("if-none-match") == Some(&tag) {
            return Answer::new(304, "").header("ETag", &tag);
        }
        let body = format!("version {tag}");
        Answer::new(200, body).header("ETag", &tag).header("Last-Modified", MODIFIED)
    })
}

#[test]
fn privileged_a_file_by_http_is_fetched_again_only_when_it_changed() {
    let Some(kiln) = project() else { return };
    let version = Arc::new(AtomicUsize::new(1));
    let web = changing(&version);
    let dockerfile = format!("FROM busybox\nADD {} /in/\nRUN cat /in/file > /seen\n", web.url("file"));
    builds(&kiln, &dockerfile, &[]);
    assert_eq!(web.asked(), ["GET /file"]);
    let seen = sh(&kiln, "cat /seen; echo; stat -c '%a %u %g %Y' /in/file");
    assert_eq!(seen, "version \"v1\"\n600 0 0 1000000000");

    let again = builds(&kiln, &dockerfile, &[]);
    assert_eq!(web.asked(), ["HEAD /file"]);
    assert_eq!(again.stderr.matches("CACHED").count(), 4, "{}", again.report());

    version.store(2, Ordering::SeqCst);
    builds(&kiln, &dockerfile, &[]);
    assert_eq!(web.asked(), ["HEAD /file", "GET /file"]);
    assert_eq!(sh(&kiln, "cat /seen"), "version \"v2\"");
}

#[test]
fn privileged_a_file_with_a_checksum_is_verified_and_not_asked_for_again() {
    let Some(kiln) = project() else { return };
    let web = Web::start(|_| Answer::new(200, "hello"));
    let sum = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824";
    let add = |sum: &str| format!("FROM scratch\nADD --checksum=sha256:{sum} {} /\n", web.url("f"));
    builds(&kiln, &add(sum), &[]);
    web.asked();
    builds(&kiln, &add(sum), &[]);
    assert_eq!(web.asked(), [""; 0]);
    let wrong = sum.replace("2cf", "2ce");
    build(&kiln, &add(&wrong), &[]).fails().expect_stderr(&[&web.url("f"), "digest mismatch", sum, &wrong]);
}

#[test]
fn privileged_archives_by_http_are_unpacked_when_that_is_asked_for() {
    let Some(kiln) = project() else { return };
    shell(&kiln.scratch(), "mkdir d; echo x > d/f; tar czf a.tgz d");
    let archive = std::fs::read(kiln.scratch().join("a.tgz")).unwrap();
    let web = Web::start(move |_| Answer::new(200, archive.clone()));
    let url = web.url("a.tgz");
    builds(&kiln, &format!("FROM busybox\nADD --unpack {url} /u/\nADD {url} /p/\nADD {url} /as\n"), &[]);
    assert_eq!(sh(&kiln, "cat /u/d/f; ls /p; test -f /as && echo file"), "x\na.tgz\nfile");
}

#[test]
fn privileged_what_a_server_refuses_is_named_with_its_address_and_status() {
    let Some(kiln) = project() else { return };
    let web = Web::start(|request| match request.path.as_str() {
        "/missing" => Answer::new(404, "no"),
        "/loop" => Answer::new(302, "").header("Location", "/loop"),
        "/out" => Answer::new(302, "").header("Location", "file:///etc/passwd"),
        "/short" => Answer::new(200, vec![b'x'; 1000]).truncated(10),
        "/secret" if request.header("authorization") == Some("Bearer sesame") => Answer::new(200, "in"),
        _ => Answer::new(401, "no"),
    });
    for (path, words) in [
        ("missing", "invalid response status 404"),
        ("loop", "redirected more than"),
        ("out", "an address of the scheme `file`"),
        ("short", "broke"),
        ("secret", "HTTP_AUTH_TOKEN_"),
    ] {
        let url = web.url(path);
        let failed = build(&kiln, &format!("FROM scratch\nADD {url} /\n"), &[]).fails();
        failed.expect_stderr(&[&format!("fetch {url}: "), words, "Dockerfile:2"]);
    }
    let secret = format!("id=HTTP_AUTH_TOKEN_{},env=TOKEN", web.host());
    let dockerfile = format!("FROM busybox\nADD {} /\n", web.url("secret"));
    build(&kiln, &dockerfile, &["--secret", &secret]).env("TOKEN", "sesame").ok();
    assert_eq!(sh(&kiln, "cat /secret"), "in");
}

/// Makes a bare repository `repo.git` in `repos` with a history, and returns where it is and what its commits are: the first,
/// the one `v1` and the annotated `v2` name, and that of `main`.
fn repository(kiln: &Kiln) -> (PathBuf, [String; 3]) {
    let script = "
        export GIT_CONFIG_GLOBAL=/dev/null GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@b GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@b
        export GIT_AUTHOR_DATE='1000000000 +0000' GIT_COMMITTER_DATE='1000000000 +0000'
        mkdir repos; git init -q -b main work; cd work
        echo first > file; git add -A; git commit -qm first; git rev-parse HEAD
        mkdir -p sub/dir; echo deep > sub/dir/deep; echo run > tool; chmod 755 tool; ln -s tool link
        git add -A; git commit -qm second; git tag v1; git tag -a v2 -m two; git rev-parse HEAD
        echo third > file; git commit -qam third; git branch other; git rev-parse HEAD
        git clone -q --bare . ../repos/repo.git";
    let said = shell(&kiln.scratch(), script);
    let ids: Vec<String> = said.lines().map(str::to_owned).collect();
    (kiln.scratch().join("repos"), ids.try_into().expect("three commits are printed"))
}

#[test]
fn privileged_a_repository_is_added_by_branch_tag_commit_and_directory() {
    let Some(kiln) = project() else { return };
    let (repos, [first, second, third]) = repository(&kiln);
    let web = Web::git(repos, |_| true);
    let url = web.url("repo.git");
    let dockerfile = format!(
        "FROM busybox\nADD {url} /main/\nADD {url}#v1 /v1/\nADD {url}?tag=v2 /v2/\nADD {url}#{first} /first/\n\
         ADD {url}?branch=main&subdir=sub/dir /sub/\nADD --checksum={second} {url}#v2 /sum/\n\
         ADD --keep-git-dir {url}#main /kept/\n"
    );
    builds(&kiln, &dockerfile, &[]);
    let seen = sh(
        &kiln,
        "cat /main/file /v1/file /v2/file /first/file /sub/deep; ls -a /first; stat -c '%a %u %Y' /v1/tool /v1/sub; \
         readlink /v1/link; cat /kept/.git/HEAD; ls /kept/.git/hooks 2>&1 | wc -l",
    );
    let expected =
        format!("third\nfirst\nfirst\nfirst\ndeep\n.\n..\nfile\n755 0 1000000000\n755 0 1000000000\ntool\n{third}\n1");
    assert_eq!(seen, expected);
    let again = builds(&kiln, &dockerfile, &[]);
    assert!(!again.stderr.contains("refs/heads/main"), "nothing is fetched again: {}", again.report());

    // The repository that was fetched from is a part of the build cache.
    let pruned = kiln.ok(["builder", "prune", "-f", "--filter", "type=source.git.checkout"]);
    assert!(pruned.contains("mount"), "{pruned}");
}

#[test]
fn privileged_repositories_give_the_same_image_on_every_root() {
    let Some(kiln) = project() else { return };
    let (repos, _) = repository(&kiln);
    let web = Web::git(repos, |_| true);
    let dockerfile = format!("FROM scratch\nADD --keep-git-dir {} /\n", web.url("repo.git#v1"));
    let image = |kiln: &Kiln| {
        builds(kiln, &dockerfile, &["--iidfile", "id"]);
        std::fs::read_to_string(kiln.scratch().join("id")).unwrap()
    };
    let other = project().expect("the first was made, too");
    let layers = |kiln: &Kiln| kiln.ok(["image", "inspect", "-f", "{{json .RootFS}}", "t"]);
    assert!(!image(&kiln).is_empty() && !image(&other).is_empty());
    assert_eq!(layers(&kiln), layers(&other));
}

#[test]
fn privileged_what_a_repository_does_not_have_is_named() {
    let Some(kiln) = project() else { return };
    let (repos, [first, second, _]) = repository(&kiln);
    let web = Web::git(repos, |request| {
        // `x-access-token:sesame`, as forges take tokens.
        !request.path.starts_with("/private")
            || request.header("authorization") == Some("basic eC1hY2Nlc3MtdG9rZW46c2VzYW1l")
    });
    let url = web.url("repo.git");
    let missing = "0123456789012345678901234567890123456789";
    for (source, words) in [
        (format!("{url}#mian"), "did you mean main?"),
        (format!("{url}#{missing}"), missing),
        (format!("{url}#main:nowhere"), "no directory \"nowhere\""),
        (format!("--checksum={first} {url}#v1"), second.as_str()),
        (web.url("none.git"), "not found"),
        (web.url("private/repo.git"), "GIT_AUTH_TOKEN"),
    ] {
        let failed = build(&kiln, &format!("FROM scratch\nADD {source} /\n"), &[]).fails();
        failed.expect_stderr(&[&web.host(), words, "Dockerfile:2"]);
    }
    std::os::unix::fs::symlink(".", kiln.scratch().join("repos/private")).unwrap();
    let dockerfile = format!("FROM scratch\nADD {} /\n", web.url("private/repo.git"));
    let secret = ["--secret", "id=GIT_AUTH_TOKEN,env=TOKEN"];
    build(&kiln, &dockerfile, &secret).env("TOKEN", "sesame").ok();
}

#[test]
fn privileged_submodules_are_fetched_unless_they_are_left_out() {
    let Some(kiln) = project() else { return };
    let (repos, _) = repository(&kiln);
    let script = "
        export GIT_CONFIG_GLOBAL=/dev/null GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@b GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@b
        git init -q -b main outer; cd outer; echo outer > own
        git -c protocol.file.allow=always submodule --quiet add ../repos/repo.git inner
        git config -f .gitmodules submodule.inner.url ../repo.git
        git add -A; git commit -qm outer; git clone -q --bare . ../repos/outer.git";
    shell(&kiln.scratch(), script);
    let web = Web::git(repos, |_| true);
    let url = web.url("outer.git");
    let dockerfile = format!("FROM busybox\nADD {url} /with/\nADD {url}?submodules=false /without/\n");
    builds(&kiln, &dockerfile, &[]);
    let seen = sh(&kiln, "cat /with/own /with/inner/file; ls -A /with/inner /without/inner");
    assert_eq!(seen, "outer\nthird\n/with/inner:\nfile\nlink\nsub\ntool\n\n/without/inner:");
}

#[test]
fn privileged_a_context_is_a_repository_an_archive_or_a_dockerfile_elsewhere() {
    let Some(kiln) = project() else { return };
    let (repos, _) = repository(&kiln);
    let script = "
        export GIT_CONFIG_GLOBAL=/dev/null GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@b GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@b
        git init -q -b main c; cd c; mkdir sub
        printf 'FROM busybox\\nCOPY . /c\\n' | tee Dockerfile > sub/other.dockerfile
        echo hidden > hidden; echo hidden > .dockerignore; echo s > sub/s
        git add -A; git commit -qm c; git clone -q --bare . ../repos/c.git; tar -cf ../c.tar --exclude=.git .";
    shell(&kiln.scratch(), script);
    let git = Web::git(repos, |_| true);
    let archive = std::fs::read(kiln.scratch().join("c.tar")).unwrap();
    let web = Web::start(move |request| match request.path.as_str() {
        "/c.tar" => Answer::new(200, archive.clone()),
        "/Dockerfile" => Answer::new(200, "FROM busybox\nCOPY . /c\n"),
        _ => Answer::new(404, ""),
    });
    kiln.write("app/here", "");
    let url = git.url("c.git");
    // As with BuildKit, `.dockerignore` hides nothing of a context elsewhere.
    let all = ".dockerignore\nDockerfile\nhidden\nsub";
    for (args, listed) in [
        (vec![url.clone()], all),
        (vec!["-f".to_owned(), "sub/other.dockerfile".to_owned(), url.clone()], all),
        (vec!["-f".to_owned(), "other.dockerfile".to_owned(), format!("{url}#main:sub")], "other.dockerfile\ns"),
        (vec![web.url("c.tar")], all),
        (vec![web.url("Dockerfile")], "context"),
        (vec!["-f".to_owned(), web.url("Dockerfile"), "app".to_owned()], "here"),
    ] {
        kiln.command(["build", "-t", "t"]).args(&args).output().expect_code(0);
        assert_eq!(sh(&kiln, "ls -A /c"), listed, "{args:?}");
    }
    kiln.command(["build", "--build-arg", "BUILDKIT_CONTEXT_KEEP_GIT_DIR=1", "-t", "t", &url]).output().expect_code(0);
    assert!(sh(&kiln, "ls -A /c").contains(".git\n"));
    kiln.fails(["build", &format!("{url}#nowhere")]).expect_stderr(&[&url, "nowhere"]);
    kiln.fails(["build", &web.url("gone")]).expect_stderr(&[&web.url("gone"), "404"]);
    kiln.fails(["build", "-f", "missing", &url]).expect_stderr(&["missing", "no such file"]);
}

#[test]
fn privileged_the_time_of_a_context_elsewhere_can_be_that_of_the_image() {
    let Some(kiln) = project() else { return };
    let script = "
        export GIT_CONFIG_GLOBAL=/dev/null GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@b GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@b
        export GIT_COMMITTER_DATE='1000000000 +0000'
        mkdir repos c; git init -q -b main c; cd c
        printf 'FROM busybox\nARG SOURCE_DATE_EPOCH\nRUN echo epoch=$SOURCE_DATE_EPOCH > /time\n' > Dockerfile
        git add -A; git commit -qm c; git clone -q --bare . ../repos/c.git
        touch -d @1100000000 Dockerfile; tar -cf ../c.tar Dockerfile; tar -cf ../dated.tar --exclude=.git .";
    shell(&kiln.scratch(), script);
    let git = Web::git(kiln.scratch().join("repos"), |_| true);
    let archive = |name| std::fs::read(kiln.scratch().join(name)).unwrap();
    let (plain, dated) = (archive("c.tar"), archive("dated.tar"));
    let web = Web::start(move |request| match request.path.as_str() {
        "/dated.tar" => Answer::new(200, dated.clone()).header("Last-Modified", MODIFIED),
        _ => Answer::new(200, plain.clone()),
    });
    for (context, seconds) in [
        (git.url("c.git"), "1000000000"),
        (web.url("dated.tar"), "1000000000"),
        (web.url("c.tar"), "1100000000"),
        // The files of a directory say when it was cloned, and no more.
        (kiln.scratch().join("c").display().to_string(), ""),
    ] {
        kiln.ok(["build", "-q", "--build-arg", "SOURCE_DATE_EPOCH=context", "-t", "t", &context]);
        assert_eq!(sh(&kiln, "cat /time"), format!("epoch={seconds}"), "{context}");
    }
    kiln.ok(["build", "-q", "--build-arg", "SOURCE_DATE_EPOCH=context", "-t", "t", &git.url("c.git")]);
    assert_eq!(kiln.ok(["image", "inspect", "-f", "{{.Created}}", "t"]), "2001-09-09T01:46:40Z");

    // So can that of a stage that adds something, or of a named context.
    let stages = |add: &str| {
        format!(
            "ARG SOURCE_DATE_EPOCH=src\nFROM scratch AS src\nARG at={add}\nADD $at /\n\
             FROM busybox\nARG SOURCE_DATE_EPOCH\nRUN echo epoch=$SOURCE_DATE_EPOCH > /time\n"
        )
    };
    for (add, seconds) in [(git.url("c.git"), "1000000000"), (web.url("c.tar"), "1100000000")] {
        let built = builds(&kiln, &stages(&add), &[]);
        assert_eq!(sh(&kiln, "cat /time"), format!("epoch={seconds}"), "{}", built.report());
    }
    for (context, seconds) in [(web.url("dated.tar"), "1000000000"), ("c".to_owned(), "")] {
        builds(&kiln, &stages("a"), &["--build-arg=SOURCE_DATE_EPOCH=dep", &format!("--build-context=dep={context}")]);
        assert_eq!(sh(&kiln, "cat /time"), format!("epoch={seconds}"), "{context}");
    }
    let refused = build(&kiln, &stages("a"), &[]).fails();
    refused.expect_stderr(&["SOURCE_DATE_EPOCH=src: the stage adds something that has no time", "Dockerfile:4"]);
}

#[test]
fn privileged_an_archive_on_standard_input_is_a_context() {
    let Some(kiln) = project() else { return };
    let script =
        "mkdir c; cd c; printf 'FROM busybox\\nCOPY f /f\\n' > Dockerfile; echo hello > f; mkdir d; cp Dockerfile d/x
        tar -cf ../c.tar .; cd ..; for with in gzip bzip2 xz zstd; do $with -qc c.tar > c.$with; done";
    shell(&kiln.scratch(), script);
    let read = |name: &str| std::fs::read(kiln.scratch().join(name)).unwrap();
    for name in ["c.tar", "c.gzip", "c.bzip2", "c.xz", "c.zstd"] {
        kiln.command(["build", "-t", "t", "-f", "d/x", "-"]).stdin(read(name)).output().expect_code(0);
        assert_eq!(sh(&kiln, "cat /f"), "hello", "{name}");
    }
    // The engine builds twice, and standard input is there once.
    kiln.command(["build", "--verify", "-f", "d/x", "-"]).stdin(read("c.tar")).output().expect_code(0);
    let mut garbage = read("c.gzip");
    garbage.truncate(60);
    kiln.command(["build", "-"]).stdin(garbage).fails();
    kiln.command(["build", "-"]).stdin(&b"\x1f\x8b nonsense"[..]).fails();
    kiln.command(["build", "-f", "Dockerfile", "-"]).stdin(&b"FROM busybox"[..]).fails().expect_stderr(&["-f"]);
}

#[test]
fn privileged_an_archive_cannot_write_outside_its_context() {
    let Some(kiln) = project() else { return };
    let mut tar = tar::Builder::new(Vec::new());
    let mut put = |path: &str, data: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_size(data.len() as u64);
        header.set_mode(0o644);
        // The library would refuse such a name.
        header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
        header.set_cksum();
        tar.append(&header, data).unwrap();
    };
    put("Dockerfile", b"FROM busybox\nCOPY . /c\n");
    put("../../../../../../../../tmp/kiln-escaped", b"x");
    let archive = tar.into_inner().unwrap();
    // Whether it is refused or kept inside is the unpacker's choice.
    let _ = kiln.command(["build", "-t", "t", "-"]).stdin(archive).output();
    assert!(!Path::new("/tmp/kiln-escaped").exists());
}

#[test]
fn privileged_named_contexts_stand_for_images_and_stages() {
    let Some(kiln) = project() else { return };
    let (repos, _) = repository(&kiln);
    let git = Web::git(repos, |_| true);
    let web = Web::start(|_| Answer::new(200, "by http").header("Content-Disposition", "attachment; filename=named"));
    kiln.write("dir/file", "of a directory");
    kiln.write("dir/hidden", "");
    kiln.write("dir/.dockerignore", "hidden");
    let dockerfile = "FROM base AS base\nFROM stage\nCOPY --from=dir / /dir/\nCOPY --from=git / /git/\nCOPY --from=http / /http/\n\
        RUN --mount=from=dir,target=/m cat /m/file > /mounted\n";
    let contexts = [
        "base=docker-image://nowhere.invalid/none".to_owned(),
        "stage=docker-image://busybox".to_owned(),
        "dir=dir".to_owned(),
        format!("git={}#v1", git.url("repo.git")),
        format!("http={}", web.url("x")),
    ];
    let args: Vec<&str> = contexts.iter().flat_map(|context| ["--build-context", context.as_str()]).collect();
    builds(&kiln, dockerfile, &args);
    let seen = sh(&kiln, "ls -A /dir; cat /git/file; ls -d /git/.git; cat /http/named; echo; cat /mounted");
    assert_eq!(seen, ".dockerignore\nfile\nfirst\n/git/.git\nby http\nof a directory");
    build(&kiln, dockerfile, &["--build-context", "dir=target:x"]).fails().expect_stderr(&["target:x", "bake"]);
}

#[test]
fn privileged_an_image_of_an_oci_layout_stands_for_a_base() {
    let Some(kiln) = project() else { return };
    builds(&kiln, "FROM busybox\nENV FROM_LAYOUT=yes\nRUN echo layout > /which\n", &["-t", "example.com/base:2"]);
    let layout = kiln.scratch().join("layout");
    std::fs::create_dir(&layout).unwrap();
    kiln.ok(["save", "-o", "layout.tar", "example.com/base:2"]);
    shell(&layout, "tar xf ../layout.tar");
    kiln.ok(["rmi", "-f", "example.com/base:2", "t"]);
    kiln.ok(["builder", "prune", "-a", "-f"]);

    let dockerfile = "FROM base\nRUN echo $FROM_LAYOUT >> /which\n";
    let tag = shell(&layout, "grep -o 'ref.name\":\"[^\"]*' index.json | cut -d'\"' -f3");
    let named = format!("base=oci-layout://layout:{tag}");
    for context in ["base=oci-layout://layout", &named] {
        builds(&kiln, dockerfile, &["--build-context", context]);
        assert_eq!(sh(&kiln, "cat /which"), "layout\nyes", "{context}");
    }
    build(&kiln, dockerfile, &["--build-context", "base=oci-layout://layout:nope"]).fails().expect_stderr(&["nope"]);
    let missing = format!("base=oci-layout://layout@sha256:{}", "0".repeat(64));
    build(&kiln, dockerfile, &["--build-context", &missing]).fails().expect_stderr(&["it has no blob", "Dockerfile:1"]);
    shell(&layout, "for blob in blobs/sha256/*; do echo x >> $blob; done");
    build(&kiln, dockerfile, &["--no-cache", "--build-context", "base=oci-layout://layout"])
        .fails()
        .expect_stderr(&["has the digest"]);
}

#[test]
fn privileged_a_step_uses_the_clients_agent_or_its_keys() {
    let Some(kiln) = project() else { return };
    put_ssh_add(&kiln, "app/root");
    let script = "ssh-keygen -q -t ed25519 -N '' -C in-agent -f k1; ssh-keygen -q -t ecdsa -N '' -C in-file -f k2
        ssh-keygen -q -t ed25519 -N secret -f locked";
    shell(&kiln.scratch(), script);
    let agent = Agent::start(&kiln.scratch());
    agent.add(&kiln.scratch().join("k1"));
    let dockerfile = "FROM busybox\nCOPY root /\n\
        RUN --mount=type=ssh,required ssh-add -L && ssh-add -T /pub && stat -c '%a %u' $SSH_AUTH_SOCK\n";
    let with_key = |key: &str| {
        let public = std::fs::read_to_string(kiln.scratch().join(format!("{key}.pub"))).unwrap();
        kiln.write("app/root/pub", public);
    };
    with_key("k1");
    let forwarded = build(&kiln, dockerfile, &["--ssh", "default"]).env("SSH_AUTH_SOCK", &agent.socket).output();
    forwarded.expect_code(0).expect_stderr(&["in-agent", "600 0"]);
    with_key("k2");
    builds(&kiln, dockerfile, &["--ssh", "default=k2"]).expect_stderr(&["in-file"]);
    build(&kiln, dockerfile, &["--no-cache"])
        .fails()
        .expect_stderr(&["no SSH key \"default\" forwarded from the client", "--ssh default"]);
    let missing = "FROM busybox\nRUN --mount=type=ssh test -z \"$(ls /run/buildkit 2>&1 | grep agent)\"\n";
    builds(&kiln, missing, &[]);
    build(&kiln, missing, &["--ssh", "default=locked"]).fails().expect_stderr(&["encrypted", "ssh-add locked"]);
    build(&kiln, missing, &["--ssh", "default"]).without_env("SSH_AUTH_SOCK").fails().expect_stderr(&["SSH_AUTH_SOCK"]);
}

#[test]
fn privileged_a_repository_is_fetched_by_ssh_with_the_clients_agent() {
    let Some(kiln) = project() else { return };
    if !Server::is_installed() {
        return;
    }
    let (repos, [_, _, third]) = repository(&kiln);
    let scratch = kiln.scratch();
    shell(&scratch, "for key in right wrong; do ssh-keygen -q -t ed25519 -N '' -f $key; done");
    let server = Server::start(&scratch, &scratch.join("right.pub"));
    let url = server.url(&repos.join("repo.git"));
    let agent = Agent::start(&scratch);
    let dockerfile = format!("FROM busybox\nADD {url}#v1 /v1/\nADD --keep-git-dir {url} /main/\n");
    build(&kiln, &dockerfile, &[]).fails().expect_stderr(&["no SSH key \"default\" forwarded", "--ssh default"]);
    let with_agent =
        |args: &[&str]| build(&kiln, &dockerfile, args).args(["--ssh", "default"]).env("SSH_AUTH_SOCK", &agent.socket);
    agent.add(&scratch.join("wrong"));
    with_agent(&[]).fails().expect_stderr(&["Permission denied", "forward an agent that has a key for it"]);
    agent.add(&scratch.join("right"));
    with_agent(&[]).ok();
    assert_eq!(sh(&kiln, "cat /v1/file /main/file /main/.git/HEAD"), format!("first\nthird\n{third}"));

    let named = build(&kiln, "FROM busybox\nCOPY --from=repo deep /\n", &["--ssh", "default"]);
    named.args(["--build-context", &format!("repo={url}#main:sub/dir")]).env("SSH_AUTH_SOCK", &agent.socket).ok();
    assert_eq!(sh(&kiln, "cat /deep"), "deep");

    // A server that shows another key than before is not the one it was.
    server.change_host_key();
    with_agent(&["--no-cache"]).fails().expect_stderr(&["ost key verification failed"]);
}

#[test]
fn privileged_secrets_are_files_or_variables_with_the_mode_that_is_asked_for() {
    let Some(kiln) = project() else { return };
    kiln.write("s", "from a file");
    let dockerfile = "FROM busybox\n\
        RUN --mount=type=secret,id=a,target=/x,mode=0440,uid=5,gid=6 stat -c '%a %u %g' /x && cat /x && echo\n\
        RUN --mount=type=secret,id=b,env=B echo \"got $B\"; test ! -e /run/secrets/b\n\
        RUN --mount=type=secret,id=c test ! -e /run/secrets/c\n";
    let built = build(&kiln, dockerfile, &["--secret", "id=a,src=s", "--secret", "id=b"]).env("b", "variable").output();
    built.expect_code(0).expect_stderr(&["440 5 6", "from a file", "got variable"]);
    let required = "FROM busybox\nRUN --mount=type=secret,id=c,required true\n";
    build(&kiln, required, &[]).fails().expect_stderr(&["secret c: not found"]);
    kiln.write("large", vec![b'x'; 600 << 10]);
    build(&kiln, required, &["--secret", "id=c,src=large"]).fails().expect_stderr(&["larger than 500 KiB"]);
}
