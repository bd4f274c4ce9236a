use std::sync::Arc;

use proptest::prelude::*;
use serde_json::{Value as Json, json};

use super::*;
use crate::config::diagnostics::{Code, Diagnostics, Severity};

fn load(text: &str) -> (Option<Node>, Diagnostics) {
    let mut diagnostics = Diagnostics::default();
    let node = parse(&Arc::from("f.yml"), text, &mut diagnostics);
    (node, diagnostics)
}

fn value(text: &str) -> Json {
    let (node, diagnostics) = load(text);
    node.unwrap_or_else(|| panic!("{text}: {diagnostics}")).to_json()
}

#[test]
fn scalars_are_read_as_yaml_1_1() {
    for (text, expected) in [
        ("on", json!(true)),
        ("Off", json!(false)),
        ("yes", json!(true)),
        ("NO", json!(false)),
        ("y", json!("y")),
        ("'on'", json!("on")),
        ("\"off\"", json!("off")),
        ("!!str on", json!("on")),
        ("~", json!(null)),
        ("null", json!(null)),
        ("30", json!(30)),
        ("+30", json!(30)),
        ("-1", json!(-1)),
        ("1_000", json!(1000)),
        ("0644", json!(420)),
        ("0o644", json!("0o644")),
        ("09", json!("09")),
        ("0x1F", json!(31)),
        ("0b101", json!(5)),
        ("1:30", json!(90)),
        ("1:99", json!("1:99")),
        ("0.5", json!(0.5)),
        ("1e3", json!("1e3")),
        ("1.0e+3", json!(1000.0)),
        (".5", json!(0.5)),
        ("1.2.3", json!("1.2.3")),
        ("10MB", json!("10MB")),
        ("99999999999999999999", json!("99999999999999999999")),
        ("--1", json!("--1")),
    ] {
        let read = value(&format!("v: {text}"));
        assert_eq!(read, json!({ "v": expected }), "{text}");
    }
}

#[test]
fn numbers_and_booleans_are_read_from_text_too() {
    for (text, int, flag) in [
        ("'30'", Some(30), None),
        ("\" 30 \"", Some(30), None),
        ("30.5", None, None),
        ("'on'", None, Some(true)),
        ("'FALSE'", None, Some(false)),
        ("1", Some(1), Some(true)),
        ("0", Some(0), Some(false)),
        ("2", Some(2), None),
        ("maybe", None, None),
    ] {
        let (node, _) = load(&format!("v: {text}"));
        let node = node.unwrap();
        let Data::Map(map) = node.data else { panic!() };
        let Data::Scalar(scalar) = &map.get("v").unwrap().node.data else { panic!() };
        assert_eq!((scalar.as_int(), scalar.as_bool()), (int, flag), "{text}");
    }
}

#[test]
fn a_json_number_survives() {
    for number in [json!(1), json!(-7), json!(1.5), json!(1e300), json!(1e-7), json!(100000.0)] {
        let node = Node::from_json(&number, &Origin::Dynamic);
        assert_eq!(node.to_json(), number);
    }
}

#[test]
fn anchors_aliases_and_merges_work() {
    let text = "
base: &base {a: 1, b: 2}
more: &more {b: 3, c: 4}
one: {<<: *base, b: 9}
two: {<<: [*base, *more]}
late:
  b: 9
  <<: *base
quoted: {'<<': 1}
again: *base
";
    let read = value(text);
    assert_eq!(read["one"], json!({"a": 1, "b": 9}));
    assert_eq!(read["two"], json!({"a": 1, "b": 2, "c": 4}));
    assert_eq!(read["late"], json!({"a": 1, "b": 9}));
    assert_eq!(read["quoted"], json!({"<<": 1}));
    assert_eq!(read["again"], json!({"a": 1, "b": 2}));
}

#[test]
fn a_key_written_twice_counts_the_second_time_and_is_reported() {
    let (node, diagnostics) = load("a: 1\nb: 2\na: 3\n");
    assert_eq!(node.unwrap().to_json(), json!({"a": 3, "b": 2}));
    let found: Vec<_> = diagnostics.iter().collect();
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].code, Code::DuplicateKey);
    assert_eq!(found[0].origin.to_string(), "f.yml:3:1");
    assert!(found[0].message.contains("f.yml:1:1"), "{}", found[0].message);
}

#[test]
fn faults_have_names_and_places() {
    let deep = "[".repeat(60);
    let nested = (0..60).map(|n| format!("{}a:\n", " ".repeat(n))).collect::<String>();
    let mut laughs = "a: &a [x,x,x,x,x,x,x,x,x]\n".to_owned();
    for (one, next) in ["a", "b", "c", "d", "e", "f", "g"].windows(2).map(|w| (w[0], w[1])) {
        laughs.push_str(&format!("{next}: &{next} [{}]\n", vec![format!("*{one}"); 9].join(",")));
    }
    for (text, code, place) in [
        ("a: 1\n\tb: 2\n", Code::YamlSyntax, "2:"),
        ("a: [1, 2\n", Code::YamlSyntax, "f.yml:"),
        ("a: 'open\n", Code::YamlSyntax, "f.yml:"),
        ("a: b: c\n", Code::YamlSyntax, "1:"),
        ("a: *nowhere\n", Code::YamlSyntax, "1:4"),
        ("a: &a [*a]\n", Code::YamlSyntax, "1:"),
        ("", Code::EmptyFile, "1:1"),
        ("# nothing\n", Code::EmptyFile, "1:1"),
        ("? [a]\n: 1\n", Code::ComplexKey, "1:3"),
        ("a: !secret x\n", Code::UnknownTag, "1:4"),
        ("a: {<<: 1}\n", Code::WrongType, "1:9"),
        (&nested, Code::TooLarge, "f.yml:"),
        (&laughs, Code::TooLarge, "f.yml:"),
        ("a: 1\n---\nb: 2\n", Code::SecondDocument, "2:1"),
    ] {
        let (_, diagnostics) = load(text);
        let found = diagnostics.iter().find(|d| d.code == code);
        let found = found.unwrap_or_else(|| panic!("{code} in {text:?}: {diagnostics}"));
        assert!(found.origin.to_string().contains(place), "{text:?}: {}", found.origin);
    }
    // Whatever it is called, it is refused.
    assert!(load(&deep).1.has_errors());
}

#[test]
fn a_tab_is_named_as_what_it_is() {
    let (_, diagnostics) = load("a:\n  b: 1\n\tc: 2\n");
    let help = diagnostics.iter().find_map(|d| d.help.as_deref());
    assert!(help.is_some_and(|help| help.contains("tab")), "{diagnostics}");
}

#[test]
fn layers_merge_section_by_section() {
    let map = |text: &str| match load(text).0.unwrap().data {
        Data::Map(map) => map,
        _ => panic!(),
    };
    let mut below = map("a: {x: 1, y: 2}\nb: [1]\nc: 3\n");
    below.overlay(map("a: {y: 5}\nb: [2]\nc: null\nd: 4\n"));
    let merged = Node::map(below, &Origin::Default).to_json();
    assert_eq!(merged, json!({"a": {"x": 1, "y": 5}, "b": [2], "d": 4}));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn no_text_makes_it_panic(text in "(?s)[ \t\n\\[\\]{}:,&*!|>'\"%@`#?<\\-a-c0-2~é]{0,60}") {
        let (node, diagnostics) = load(&text);
        prop_assert!(node.is_some() || diagnostics.count(Severity::Error) > 0);
    }

    #[test]
    fn any_text_is_read_or_refused(text in any::<String>()) {
        let (node, diagnostics) = load(&text);
        prop_assert!(node.is_some() || diagnostics.has_errors());
    }
}
