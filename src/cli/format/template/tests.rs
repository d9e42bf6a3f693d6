//! Templates against what Go makes of them (`testdata/format`), and what they say when they fail.

use proptest::prelude::*;
use proptest::strategy::Strategy;
use serde::Deserialize;
use serde_json::json;

use super::*;

#[derive(Deserialize)]
struct Case {
    template: String,
    output: Option<String>,
    differs: Option<String>,
}

fn data() -> Json {
    serde_json::from_str(include_str!("../../../../testdata/format/data.json")).unwrap()
}

fn render(template: &str, data: &Json) -> Result<String, String> {
    Template::parse(template).and_then(|template| template.render(data)).map_err(|error| error.to_string())
}

#[test]
fn templates_yield_what_go_yields() {
    let data = data();
    let mut wrong = Vec::new();
    for line in include_str!("../../../../testdata/format/templates.jsonl").lines() {
        let case: Case = serde_json::from_str(line).unwrap();
        let ours = render(&case.template, &data);
        let same = ours.as_ref().ok() == case.output.as_ref();
        if same == case.differs.is_some() {
            wrong.push(format!("{}\n  go:   {:?}\n  ours: {ours:?}", case.template, case.output));
        }
    }
    assert!(wrong.is_empty(), "{} wrong\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn a_mistake_is_shown_with_its_place_and_what_was_meant() {
    let data = json!({"ID": "x", "Names": "web", "State": {"Status": "up"}, "n": 3, "nothing": null});
    for (template, message) in [
        ("{{.ID}} {{.Nmaes}}", "column 11: there is no field `Nmaes`; did you mean `Names`?"),
        ("{{.State.Sttaus}}", "column 9: there is no field `Sttaus`; did you mean `Status`?"),
        ("a\n{{uper .ID}}", "line 2 column 3: there is no function `uper`; did you mean `upper`?"),
        ("{{define \"a\"}}{{end}}", "column 3: `define` is not supported: a format is one template"),
        ("{{.ID", "column 1: this action has no `}}`"),
        ("{{if .ID}}x", "column 3: this `if` has no `{{end}}`"),
        ("{{end}}", "column 1: `end` has nothing to end"),
        ("{{$name := .ID}}{{$nam}}", "column 19: there is no variable `$nam`; did you mean `$name`?"),
        ("{{truncate .ID}}", "column 3: `truncate` takes 2 arguments, not 1"),
        ("{{upper .n}}", "column 3: upper: argument 1 is a number, not a string"),
        ("{{eq .n \"3\"}}", "column 3: eq: a number and a string cannot be compared"),
        ("{{.ID.Foo}}", "column 6: there is no field `Foo` in a string"),
        ("{{.ID \"x\"}}", "column 3: a field takes no arguments"),
        ("é{{.ID ~}}", "column 8: unexpected '~'"),
        ("{{.nothing.Foo}}", "column 11: there is no field `Foo` in nothing (null)"),
    ] {
        assert_eq!(render(template, &data).unwrap_err(), format!("format template, {message}"), "{template}");
    }
}

#[test]
fn a_field_the_api_left_out_is_empty_in_conditions_and_an_error_in_print() {
    let data = json!({"State": {"Status": "running"}, "Config": {"Labels": {"a": "1"}}});
    for (template, output) in [
        ("{{if .State.Health}}{{.State.Health.Status}}{{else}}no check{{end}}", "no check"),
        ("{{with .State.Health}}{{.Status}}{{end}}", ""),
        ("{{range .Mounts}}{{.Source}}{{end}}", ""),
        ("{{if and .State.Health (eq .State.Health.Status \"healthy\")}}ok{{end}}", ""),
        ("{{if not .State.Health}}none{{end}}", "none"),
        ("{{json .State.Health}}", "null"),
        ("{{.Config.Labels.a}} {{.Config.Labels.b}}", "1 <no value>"),
        ("[{{index .Config.Labels \"b\"}}]", "[]"),
    ] {
        assert_eq!(render(template, &data).as_deref(), Ok(output), "{template}");
    }
    for template in ["{{.State.Health}}", "{{.State.Health.Status}}", "{{len .Mounts}}", "{{printf \"%s\" .Mounts}}"] {
        assert!(render(template, &data).unwrap_err().contains("there is no field"), "{template}");
    }
}

#[test]
fn the_names_of_go_and_of_json_reach_the_same_field() {
    let data = json!({"Id": "x", "HostConfig": {"CpuShares": 5}, "a": 1, "A": 2});
    assert_eq!(render("{{.ID}} {{.HostConfig.CPUShares}} {{.A}}", &data).as_deref(), Ok("x 5 2"));
}

#[test]
fn hostile_templates_end_with_an_error() {
    let data = json!({"s": "x".repeat(1000), "l": (0..1000).collect::<Vec<_>>()});
    let deep = format!("{{{{{}1{}}}}}", "(".repeat(10_000), ")".repeat(10_000));
    let nested = "{{if .s}}".repeat(10_000);
    let doubling = format!("{{{{$x := .s}}}}{}", "{{$x = print $x $x}}".repeat(100));
    for template in [
        "{{range 9223372036854775807}}{{end}}",
        "{{range .l}}{{range $.l}}{{range $.l}}{{range $.l}}x{{end}}{{end}}{{end}}{{end}}",
        "{{pad .s 9223372036854775807 9223372036854775807}}",
        "{{printf \"%1000000d %1000000d %1000000v\" 1 2 .l}}",
        "{{$x := .s}}{{range 100}}{{$x = join (split $x \"\") $x}}{{end}}",
        &doubling,
        &deep,
        &nested,
    ] {
        assert!(render(template, &data).is_err(), "{}", &template[..template.len().min(80)]);
    }
}

/// Words a template is likely to be made of, so that random ones get past the parser.
fn scraps() -> impl Strategy<Value = String> {
    const WORDS: &[&str] = &[
        "{{",
        "}}",
        "{{-",
        "-}}",
        " ",
        ".",
        ".list",
        ".m",
        ".n",
        ".ID",
        "$",
        "$x",
        ":=",
        "=",
        ",",
        "|",
        "(",
        ")",
        "if",
        "else",
        "end",
        "range",
        "with",
        "break",
        "continue",
        "and",
        "or",
        "not",
        "eq",
        "lt",
        "len",
        "index",
        "slice",
        "print",
        "printf",
        "println",
        "json",
        "join",
        "split",
        "title",
        "truncate",
        "pad",
        "\"%d\"",
        "\"%-5.2q\"",
        "\"é\"",
        "1",
        "-2",
        "0x1f",
        "1e3",
        "'a'",
        "nil",
        "true",
        "text",
        "\n",
        "/*",
        "*/",
        "`raw`",
        "{{range .list}}",
        "{{if .n}}",
        "{{end}}",
        "{{.}}",
        "{{$x := .ID}}",
    ];
    let scrap = prop_oneof![8 => prop::sample::select(WORDS).prop_map(str::to_owned), 1 => any::<char>().prop_map(String::from)];
    prop::collection::vec(scrap, 0..40).prop_map(|scraps| scraps.concat())
}

proptest! {
    #[test]
    fn no_template_panics_or_runs_forever(template in scraps()) {
        let _ = render(&template, &data());
    }

    #[test]
    fn text_without_actions_stays_as_it_is(text in "[^{]*") {
        prop_assert_eq!(render(&text, &Json::Null), Ok(text));
    }

    #[test]
    fn printf_never_panics(format in "(%[-+ 0#]{0,3}[0-9*]{0,2}(\\.[0-9*]{0,2})?[a-zA-Z%é]|.){0,6}") {
        let data = data();
        let template = format!("{{{{printf {} .ID .n .f .neg .list .m .null .t}}}}", Json::from(format.replace(['`', '\u{7f}'], "")));
        let _ = render(&template, &data);
    }
}
