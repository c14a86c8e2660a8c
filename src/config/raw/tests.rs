//! Hostile files: every one of them ends in a tree or in a problem with a place, soon and without a panic.

use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::*;

fn read(text: &str) -> (Option<Node>, Report) {
    let mut report = Report::default();
    let node = parse(&Arc::from(Path::new("agent.yaml")), text, &mut report);
    (node, report)
}

fn problem(text: &str) -> String {
    let (_, report) = read(text);
    assert_eq!(report.problems.len(), 1, "{text:?}: {:?}", report.problems);
    report.problems[0].to_string()
}

fn entries(text: &str) -> Vec<Entry> {
    let (node, report) = read(text);
    assert_eq!(report.problems, [], "{text:?}");
    let Body::Map(entries) = node.unwrap().body else { panic!("{text:?} is no map") };
    entries
}

/// `key=text` for every scalar of a flat map, `key!` for a null.
fn flat(text: &str) -> String {
    let one = |entry: &Entry| match &entry.value.body {
        Body::Text(text) => format!("{}={text}", entry.key),
        Body::Null => format!("{}!", entry.key),
        Body::List(_) | Body::Map(_) => format!("{}…", entry.key),
    };
    entries(text).iter().map(one).collect::<Vec<_>>().join(" ")
}

#[test]
fn scalars_keep_the_text_that_was_written() {
    for (text, expected) in [
        ("num: 5\nflag: yes\noct: 0o17\nbig: 1_000\nf: 1.50", "num=5 flag=yes oct=0o17 big=1_000 f=1.50"),
        ("a: ~\nb: null\nc:\nd: Null\ne: NULL\nf: nUll", "a! b! c! d! e! f=nUll"),
        ("a: '~'\nb: \"null\"\nc: ''\nd: !!str null\ne: !!str", "a=~ b=null c= d=null e="),
        ("a: !!int 5\nb: !!null x", "a=5 b!"),
        ("a: \"x\\ty\"\nb: 'it''s'\nc: |\n  l1\n  l2\nd: >-\n  f1\n  f2", "a=x\ty b=it's c=l1\nl2\n d=f1 f2"),
        ("a: b # comment\r\nc: d\r\n", "a=b c=d"),
        ("\u{feff}a: b", "a=b"),
        ("---\na: b\n...\n", "a=b"),
        ("on: yes\n5: five\n? plain\n: value", "on=yes 5=five plain=value"),
        ("a: &x one\nb: *x\n*x : c", "a=one b=one one=c"),
        ("&k a: 1\nb: *k", "a=1 b=a"),
        ("{a: 1, b: [x]}", "a=1 b…"),
    ] {
        assert_eq!(flat(text), expected, "{text:?}");
    }
}

#[test]
fn every_value_and_key_knows_its_line_and_column() {
    let entries = entries("# comment\n\na: b\nlist:\n  - x\n  -   y\n");
    assert_eq!((entries[0].mark, entries[0].value.mark), (Mark { line: 3, column: 1 }, Mark { line: 3, column: 4 }));
    let Body::List(items) = &entries[1].value.body else { panic!("list") };
    assert_eq!(items[1].mark, Mark { line: 6, column: 7 });
}

#[test]
fn merge_keys_fill_in_what_is_not_written() {
    assert_eq!(get_flat("b: &b {x: 1, y: 2}\nm: {<<: *b, y: 3}"), "y=3 x=1");
    assert_eq!(get_flat("b: &b {x: 1}\nc: &c {x: 2, z: 4}\nm: {<<: [*b, *c]}"), "x=1 z=4");
    assert!(problem("m: {<<: 5}").contains("1:9: found a merge key"), "{}", problem("m: {<<: 5}"));
}

fn get_flat(text: &str) -> String {
    let all = entries(text);
    let Some(Body::Map(map)) = get(&all, "m").map(|node| &node.body) else { panic!("{text}") };
    let one = |entry: &Entry| match &entry.value.body {
        Body::Text(text) => format!("{}={text}", entry.key),
        Body::Null | Body::List(_) | Body::Map(_) => entry.key.clone(),
    };
    map.iter().map(one).collect::<Vec<_>>().join(" ")
}

#[test]
fn empty_files_are_empty_configurations() {
    for text in ["", "\n\n", "# only a comment\n", "---\n", "\u{feff}", "~"] {
        let (node, report) = read(text);
        assert_eq!((node.unwrap().body, report.problems), (Body::Null, vec![]), "{text:?}");
    }
}

#[test]
fn files_that_are_no_yaml_are_refused_with_a_place() {
    for (text, line) in [
        (
            "a: b\n\tc: d\n",
            "agent.yaml:1:4: found YAML that cannot be read (while scanning a plain scalar, found a tab",
        ),
        ("a: [1, 2\nb: c\n", "agent.yaml:"),
        ("a: b\n c: d\n", "agent.yaml:2:"),
        ("a: 'x\n", "agent.yaml:"),
        ("a: *nowhere\n", "agent.yaml:1:"),
        ("a: b\n\u{0}c: d\n", "agent.yaml:2:1: found a control character"),
        ("\u{7f}ELF\u{2}\u{1}", "agent.yaml:1:1: found a control character"),
        ("a: 1\n---\nb: 2\n", "agent.yaml:2:1: found a second document"),
        ("a: &a [*a]\n", "agent.yaml:1:8: found an alias inside"),
        ("a: !vault x\n", "agent.yaml:1:"),
        ("a: !!binary aGk=\n", "agent.yaml:1:"),
        ("? [a, b]\n: c\n", "agent.yaml:1:3: found a key that is no text"),
    ] {
        let shown = problem(text);
        assert!(shown.starts_with(line), "{text:?}: {shown}");
        assert!(read(text).0.is_none(), "{text:?}");
    }
}

#[test]
fn every_duplicate_key_is_reported_and_the_first_value_stays() {
    let (node, report) = read("a: 1\nb: 2\na: 3\nb: 4\n");
    let shown: Vec<_> = report.problems.iter().map(ToString::to_string).collect();
    assert_eq!(
        shown,
        [
            "agent.yaml:3:1: a: found it a second time (first in line 1), expected every key once",
            "agent.yaml:4:1: b: found it a second time (first in line 2), expected every key once",
        ]
    );
    let Body::Map(entries) = node.unwrap().body else { panic!("map") };
    assert_eq!(get(&entries, "a").unwrap().body, Body::Text("1".into()));
}

#[test]
fn bombs_end_at_a_limit_and_soon() {
    let mut aliases = String::from("a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n");
    for level in 1..30 {
        let previous = vec![format!("*a{}", level - 1); 10].join(",");
        aliases.push_str(&format!("a{level}: &a{level} [{previous}]\n"));
    }
    let wide = format!("a: &a \"{}\"\nb: [{}]\n", "x".repeat(500_000), "*a,".repeat(100_000));
    for (name, text) in [
        ("aliases", aliases),
        ("wide aliases", wide),
        ("flow nesting", "[".repeat(1_000_000)),
        ("flow maps", "{a: ".repeat(250_000)),
        ("block nesting", "- ".repeat(500_000)),
        ("question marks", "? ".repeat(500_000)),
        ("many values", format!("a: [{}]", "b,".repeat(500_000))),
    ] {
        let started = Instant::now();
        let (node, report) = read(&text);
        assert!(node.is_none() && report.problems.len() == 1, "{name}");
        assert!(started.elapsed() < Duration::from_secs(20), "{name}: {:?}", started.elapsed());
    }
}

#[test]
fn a_megabyte_of_ordinary_configuration_is_no_bomb() {
    let mut text = String::from("resources:\n");
    while text.len() < 1_000_000 {
        text.push_str("  - name: database\n    type: postgres\n    hostname: database.example.com\n    port: 5432\n");
    }
    assert!(read(&text).0.is_some());
}

proptest! {
    #[test]
    fn no_text_makes_the_reader_panic(text in "\\PC{0,200}") {
        let _ = read(&text);
    }

    #[test]
    fn no_yaml_like_text_makes_the_reader_panic(
        pieces in proptest::collection::vec(proptest::sample::select(PIECES.to_vec()), 0..40)
    ) {
        let _ = read(&pieces.concat());
    }
}

/// What YAML gives a meaning to; random sequences of these reach deeper into the parser than random characters.
const PIECES: [&str; 40] = [
    "a",
    "b: ",
    "- ",
    "? ",
    ": ",
    "\n",
    "\n  ",
    "\n    ",
    "[",
    "]",
    "{",
    "}",
    ",",
    "&x ",
    "*x",
    "<<: ",
    "!!str ",
    "!t ",
    "|\n",
    ">-\n",
    "'",
    "\"",
    "\\",
    "#",
    " # c",
    "---\n",
    "...\n",
    "%YAML 1.2\n",
    "\t",
    "\r\n",
    "\u{feff}",
    "~",
    "null",
    "\u{85}",
    "é",
    "${A}",
    "@",
    "`",
    "%",
    "\r",
];
