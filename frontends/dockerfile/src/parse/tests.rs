use super::*;
use crate::instruction::{Command, Healthcheck, RunNetwork};

fn file(text: &str) -> SourceFile {
    SourceFile::new("Dockerfile", text)
}

fn parse_ok(text: &str) -> Dockerfile {
    parse(&file(text)).unwrap()
}

/// The kinds of the instructions after `FROM a`.
fn kinds(text: &str) -> Vec<Kind> {
    let dockerfile = parse_ok(&format!("FROM a\n{text}"));
    dockerfile.stages.into_iter().flat_map(|stage| stage.instructions).map(|instruction| instruction.kind).collect()
}

fn kind(text: &str) -> Kind {
    kinds(text).remove(0)
}

/// All errors of an instruction after `FROM a`, each with the text it points at.
fn errors(text: &str) -> Vec<String> {
    let file = file(&format!("FROM a\n{text}"));
    let errors = parse(&file).unwrap_err().errors;
    errors.iter().map(|error| format!("{}: {error}", file.slice(error.span.unwrap()))).collect()
}

fn warnings(text: &str) -> Vec<String> {
    let dockerfile = parse_ok(text);
    let show = |w: &Diagnostic| format!("{} at {:?}", w.rule.unwrap(), dockerfile.file.slice(w.span.unwrap()));
    dockerfile.warnings.iter().map(show).collect()
}

fn texts(words: &[Word]) -> Vec<&str> {
    words.iter().map(|word| word.text.as_str()).collect()
}

#[test]
fn stages_have_a_base_perhaps_a_name_and_a_platform() {
    let dockerfile = parse_ok("ARG V=1 W\nFROM --platform=$P a:$V@sha256:x As Build-1.x\nFROM build-1.x");
    assert_eq!(dockerfile.global_arguments[0].arguments.len(), 2);
    let [build, last] = dockerfile.stages.as_slice() else { panic!("two stages") };
    assert_eq!((build.base.text.as_str(), &*build.name.as_ref().unwrap().text), ("a:$V@sha256:x", "build-1.x"));
    assert_eq!((&*build.platform.as_ref().unwrap().text, last.name.is_none()), ("$P", true));
}

#[test]
fn commands_are_arrays_or_lines_for_the_shell() {
    let shell = |text: &str| match kind(text) {
        Kind::Cmd(Command::Shell(word)) | Kind::Entrypoint(Command::Shell(word)) => word.text,
        other => panic!("{other:?}"),
    };
    assert_eq!(shell("CMD a \"b\"  c "), "a \"b\"  c");
    assert_eq!(shell("ENTRYPOINT ['bad','json']"), "['bad','json']");
    assert_eq!(shell("CMD"), "");
    assert!(matches!(kind("CMD []"), Kind::Cmd(Command::Exec(args)) if args.is_empty()));
    let Kind::Run(run) = kind("RUN [\"sh\", \\\n # c\n \"-c\", \\\n \"x\"]") else { panic!("RUN") };
    assert_eq!(run.command, Command::Exec(vec!["sh".into(), "-c".into(), "x".into()]));
    assert_eq!(
        errors("CMD [\"a\", 1]"),
        ["[\"a\", 1]: the JSON array holds something that is not a string (put every argument in double quotes)"]
    );
    assert_eq!(errors("RUN []"), ["RUN []: RUN [] has nothing to run"]);
}

#[test]
fn run_has_mounts_network_security_and_devices() {
    let text = "RUN --mount=type=cache,target=/x --mount=type=secret,id=y --network=none --security=insecure \
                --device=v/c=d,required -- --not-a-flag";
    let Kind::Run(run) = kind(text) else { panic!("RUN") };
    assert_eq!((run.mounts.len(), run.network, run.insecure), (2, RunNetwork::None, true));
    assert_eq!((run.devices[0].name.as_str(), run.devices[0].required), ("v/c=d", true));
    assert!(matches!(run.command, Command::Shell(word) if word.text == "--not-a-flag"));
    assert_eq!(
        errors("RUN --network=hots --security=x --mount=tpye=y --device=required x"),
        [
            "tpye: mounts have no option \"tpye\" (did you mean type?)",
            "required: --device names no device (write --device=vendor/class=name)",
            "hots: --network=hots is unknown (did you mean host?)",
            "x: --security=x is unknown (known are sandbox, insecure)",
        ]
    );
}

#[test]
fn copy_and_add_have_sources_and_a_destination() {
    let text = "COPY --from=b --link --parents --exclude=*.md --exclude=!R.md --chmod=u=rwX --chown=1:2 s1 s2 /d/";
    let Kind::Copy(copy) = kind(text) else { panic!("COPY") };
    assert_eq!((texts(&copy.transfer.sources), &*copy.transfer.destination.text), (vec!["s1", "s2"], "/d/"));
    assert_eq!(texts(&copy.transfer.exclude), ["*.md", "!R.md"]);
    assert!(copy.transfer.link && copy.parents && copy.from.is_some_and(|from| from.text == "b"));
    let Kind::Add(add) = kind("ADD --keep-git-dir=TRUE --unpack=false --link=false [ \"x y\", \"/z\" ]") else {
        panic!("ADD")
    };
    assert_eq!((add.keep_git_dir, add.unpack, add.transfer.link), (Some(true), Some(false), false));
    assert_eq!(texts(&add.transfer.sources), ["x y"]);
    assert_eq!(errors("COPY a"), ["COPY a: COPY needs a source and a destination (write COPY source destination)"]);
    assert_eq!(
        errors("COPY --link=maybe --link= a b"),
        ["maybe: --link=maybe is neither true nor false", ": --link= is neither true nor false"]
    );
    assert_eq!(errors("COPY a <<EOF\nEOF"), ["<<EOF: a here-document cannot be the destination of COPY"]);
    assert!(errors("COPY --from=$x a b")[0].starts_with("$x: variables are not expanded in --from"));
}

#[test]
fn heredocs_belong_to_run_copy_and_add_in_text_form() {
    let Kind::Copy(copy) = kind("COPY <<a.txt x <<-\"b\" dir/\nA $x\na.txt\n\tB\n\tb\n") else { panic!("COPY") };
    let documents: Vec<_> = copy.transfer.documents.iter().map(|d| (d.name.as_str(), d.content(), d.expand)).collect();
    assert_eq!(documents, [("a.txt", "A $x\n".to_owned(), true), ("b", "B\n".to_owned(), false)]);
    assert_eq!(texts(&copy.transfer.sources), ["x"]);
    assert_eq!(kinds("CMD cat <<EOF\nCMD [\"x\"]").len(), 2);
    assert_eq!(kinds("RUN [\"cat\", \"<<EOF\"]\nCMD x").len(), 2);
    let Kind::Onbuild(text) = kind("ONBUILD RUN <<EOF\nhi\nEOF\n") else { panic!("ONBUILD") };
    assert_eq!(text.text, "RUN <<EOF\nhi\nEOF");
}

#[test]
fn env_and_label_have_two_forms() {
    let pairs = |text: &str| match kind(text) {
        Kind::Env(pairs) | Kind::Label(pairs) => {
            pairs.into_iter().map(|p| (p.name.text, p.value.text, p.legacy)).collect::<Vec<_>>()
        }
        other => panic!("{other:?}"),
    };
    let pair = |name: &str, value: &str, legacy| (name.to_owned(), value.to_owned(), legacy);
    assert_eq!(
        pairs("ENV a=1 b=\"x y\" c=x\\ y \\\n d= e=f=g"),
        [
            pair("a", "1", false),
            pair("b", "\"x y\"", false),
            pair("c", "x\\ y", false),
            pair("d", "", false),
            pair("e", "f=g", false),
        ]
    );
    assert_eq!(pairs("ENV foo bar  baz = qux"), [pair("foo", "bar  baz = qux", true)]);
    assert_eq!(pairs("LABEL \"a b\"=\"c \\\n  d\""), [pair("\"a b\"", "\"c   d\"", false)]);
}

#[test]
fn wrong_assignments_are_all_reported() {
    assert_eq!(
        errors("ENV a=1 b =c d=e"),
        [
            "b: \"b\" has no = (write name=value; a value with blanks stands in quotes)",
            "=c: \"=c\" has no name before the =",
        ]
    );
    assert_eq!(errors("ENV X"), ["X: ENV X has no value (write ENV X=VALUE)"]);
    assert_eq!(errors("LABEL"), ["LABEL: LABEL needs at least one argument"]);
    assert_eq!(errors("ENV --x a=b"), ["x: ENV has no flag --x"]);
    assert_eq!(errors("ARG =x"), ["=x: an argument has no name"]);
}

#[test]
fn a_healthcheck_has_durations_and_a_command() {
    let Kind::Healthcheck(Healthcheck::Check { command, interval_ns, start_interval_ns, retries, .. }) =
        kind("HEALTHCHECK --interval=5m --start-interval=1.5s --retries=2 cmd curl -f x || exit 1")
    else {
        panic!("HEALTHCHECK")
    };
    assert!(matches!(command, Command::Shell(word) if word.text == "curl -f x || exit 1"));
    assert_eq!((interval_ns, start_interval_ns, retries), (300_000_000_000, 1_500_000_000, 2));
    assert!(matches!(kind("HEALTHCHECK --nonsense none"), Kind::Healthcheck(Healthcheck::None)));
    for (text, message) in [
        ("HEALTHCHECK", "HEALTHCHECK has no argument"),
        ("HEALTHCHECK NONE x", "HEALTHCHECK NONE takes no arguments"),
        ("HEALTHCHECK CMD", "HEALTHCHECK CMD has no command"),
        ("HEALTHCHECK CMD []", "HEALTHCHECK CMD has no command"),
        ("HEALTHCHECK curl x", "HEALTHCHECK has no form CURL"),
        ("HEALTHCHECK --interval=5 CMD x", "--interval=5 is not a duration"),
        ("HEALTHCHECK --interval=1us CMD x", "--interval=1us is less than a millisecond"),
        ("HEALTHCHECK --retries=-1 CMD x", "--retries=-1 is not a number of at least 0"),
        ("HEALTHCHECK --intervall=1s CMD x", "HEALTHCHECK has no flag --intervall (did you mean --interval?)"),
    ] {
        assert!(errors(text)[0].contains(message), "{:?}", errors(text));
    }
}

#[test]
fn the_other_instructions_take_their_arguments() {
    let Kind::Volume(paths) = kind("VOLUME [\"/c d\", \" /e \"]") else { panic!("VOLUME") };
    assert_eq!(texts(&paths), ["/c d", "/e"]);
    let Kind::Expose(ports) = kind("EXPOSE 80 443/tcp $P 8000-8010/udp") else { panic!("EXPOSE") };
    assert_eq!(texts(&ports), ["$P", "443/tcp", "80", "8000-8010/udp"]);
    assert!(matches!(kind("WORKDIR /a b/c "), Kind::Workdir(word) if word.text == "/a b/c"));
    assert!(matches!(kind("STOPSIGNAL --dropped SIGKILL"), Kind::Stopsignal(word) if word.text == "SIGKILL"));
    assert!(matches!(kind("ARG --dropped X Y=2"), Kind::Arg(arguments) if arguments.len() == 2));
    assert!(matches!(kind("SHELL [\"/bin/bash\", \"-c\"]"), Kind::Shell(words) if words.len() == 2));
    assert_eq!(errors("USER"), ["USER: USER has no argument"]);
    assert_eq!(errors("VOLUME [\"\"]"), ["\"\": a volume has an empty path"]);
    assert!(errors("SHELL bash -c")[0].contains("SHELL takes a JSON array"));
    for (text, message) in [
        ("ONBUILD", "ONBUILD needs at least one argument"),
        ("ONBUILD onbuild RUN x", "ONBUILD cannot defer another ONBUILD"),
        ("ONBUILD FROM x", "ONBUILD cannot defer FROM"),
    ] {
        assert!(errors(text)[0].ends_with(message), "{:?}", errors(text));
    }
}

#[test]
fn several_errors_are_reported_at_once_each_at_its_place() {
    assert_eq!(
        errors("FORM x\nRUN --mont=x y\nCOPY --chwon=1 --platform=x a b\nfoo bar"),
        [
            "FORM: unknown instruction \"FORM\" (did you mean FROM?)",
            "mont: RUN has no flag --mont (did you mean --mount?)",
            "chwon: COPY has no flag --chwon (did you mean --chown?)",
            "platform: COPY has no flag --platform (--platform is a flag of FROM)",
            "foo: unknown instruction \"foo\" (an instruction that goes on in the next line ends in the escape character)",
        ]
    );
    let many = "x y\n".repeat(100);
    assert_eq!(errors(&many).len(), MAX_ERRORS);
}

#[test]
fn a_file_needs_a_stage_and_nothing_but_arg_before_it() {
    let message =
        |text: &str| parse(&file(text)).unwrap_err().errors.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(message(""), ["the file holds no instructions (begin with FROM)"]);
    assert_eq!(message("# only\n\n"), ["the file holds no instructions (begin with FROM)"]);
    assert_eq!(message("ARG A"), ["the file has no stage to build (add a FROM after the global ARG instructions)"]);
    assert_eq!(
        message("RUN x\nRUN y\nFROM a"),
        ["RUN stands before the first FROM (only ARG may; begin the stage with FROM)"]
    );
    assert_eq!(message("FROM a # c"), ["FROM takes one argument or three (a comment has a line of its own)"]);
    assert!(message("FROM a AS 1x")[0].starts_with("\"1x\" cannot be the name of a stage"));
    assert!(message("FROM")[0].starts_with("FROM has no argument"));
}

#[test]
fn checks_of_the_file_alone() {
    assert_eq!(
        warnings("FROM a as Foo\nRun x\nRUN y \\\n\n z\nMAINTAINER me\nFROM b AS foo\nFROM c AS scratch"),
        [
            "FromAsCasing at \"as\"",
            "StageNameCasing at \"Foo\"",
            "NoEmptyContinuation at \"\"",
            "MaintainerDeprecated at \"MAINTAINER me\"",
            "ConsistentInstructionCasing at \"Run\"",
            "DuplicateStageName at \"foo\"",
            "ReservedStageName at \"scratch\"",
        ]
    );
    assert_eq!(warnings("from a as b\nrun x"), [""; 0]);
    assert_eq!(warnings("from a AS b\nrun x"), ["FromAsCasing at \"AS\""]);
    assert_eq!(warnings("# check=skip=FromAsCasing, StageNameCasing\n#\n# x\n# check=skip=all\nFROM a as B"), [""; 0]);
}

#[test]
fn comments_describe_stages_and_arguments() {
    let dockerfile =
        parse_ok("# V the version\nARG V\n\n# not this\n\n# build makes it\nFROM a AS build\n# other\nARG X Y");
    assert_eq!(dockerfile.global_arguments[0].arguments[0].description.as_deref(), Some("the version"));
    assert_eq!(dockerfile.stages[0].description.as_deref(), Some("makes it"));
    assert_eq!(
        dockerfile.warnings.iter().map(|w| w.rule.unwrap()).collect::<Vec<_>>(),
        ["InvalidDefinitionDescription"]
    );
}

#[test]
fn every_instruction_knows_its_lines() {
    let text = "\u{feff}# escape=`\nFROM a\nRUN x `\n  # c\n  y\nCOPY <<E /\nb\nE\n";
    let dockerfile = parse_ok(text);
    let spans: Vec<&str> =
        dockerfile.stages[0].instructions.iter().map(|i| dockerfile.file.slice(i.head.span)).collect();
    assert_eq!(spans, ["RUN x `\n  # c\n  y", "COPY <<E /\nb\nE"]);
    assert_eq!(dockerfile.stages[0].instructions[0].head.text, "RUN x   y");
}
