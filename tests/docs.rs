//! The documents say what the program does: the table of keys, the examples, and the tests that they name.

use std::collections::BTreeSet;
use std::path::Path;

use bamf_agent::config::keys::{self, Key};
use bamf_agent::config::{Document, Environment, Origin, Overrides, interpret};

const CONFIGURATION: &str = include_str!("../docs/configuration.md");
const BEGIN: &str = "<!-- keys: begin -->\n";
const END: &str = "<!-- keys: end -->";

/// One line of the table; a sign that Markdown would read is written so that it stands for itself.
fn row(key: &Key) -> String {
    let text = |text: &str| text.replace('<', "\\<").replace('|', "\\|");
    let place = if key.in_file { "" } else { " (environment only)" };
    let variables: Vec<String> = key.variables.iter().map(|name| format!("`{name}`")).collect();
    format!(
        "| `{}`{place} | {} | {} | {} | {} |\n",
        key.path,
        variables.join(" "),
        text(key.default),
        text(key.expected),
        text(key.doc),
    )
}

fn table() -> String {
    let head = "| key | variables | default | expects | is |\n|---|---|---|---|---|\n";
    keys::ALL.iter().fold(head.to_owned(), |table, key| table + &row(key))
}

#[test]
fn the_reference_lists_every_key_as_the_program_knows_it() {
    let marked = CONFIGURATION.split_once(BEGIN).and_then(|(_, rest)| rest.split_once(END));
    let (listed, _) = marked.expect("docs/configuration.md has the two marks");
    assert_eq!(listed, table(), "put this between the marks of docs/configuration.md:\n\n{}", table());
}

#[test]
fn every_example_of_the_reference_is_a_valid_configuration_without_warnings() {
    let environment = Environment::from_pairs([("BAMF_JOIN_TOKEN", "t"), ("WIKI_HOST", "10.0.0.7")]);
    let examples: Vec<&str> =
        CONFIGURATION.split("```yaml\n").skip(1).filter_map(|rest| rest.split("```").next()).collect();
    assert!(examples.len() >= 2, "a minimal and a full one");
    for example in examples {
        let path = Path::new("agent.yaml").into();
        let document = Document { path, named_by: Origin::Default, text: example.to_owned() };
        let loaded = interpret(Some(&document), &Overrides::default(), &environment);
        let loaded = loaded.unwrap_or_else(|invalid| panic!("{invalid}\n{example}"));
        let warnings: Vec<String> = loaded.warnings.iter().map(ToString::to_string).collect();
        // The test has no host name, and examples leave out what it would give.
        let unexpected: Vec<&String> = warnings.iter().filter(|warning| !warning.contains("agent_name")).collect();
        assert!(unexpected.is_empty(), "{unexpected:?}\n{example}");
    }
}

/// Words in backticks that can only be names of tests: sentences of four words and more.
fn named_tests(text: &str) -> BTreeSet<&str> {
    let is_sentence = |word: &&str| {
        word.matches('_').count() >= 3 && word.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
    };
    text.split('`').skip(1).step_by(2).filter(is_sentence).collect()
}

#[test]
fn every_test_that_a_document_names_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let sources: String = ["src", "tests", "lab"]
        .iter()
        .flat_map(|directory| walkdir::WalkDir::new(root.join(directory)))
        .filter_map(Result::ok)
        .filter(|entry| entry.path().extension().is_some_and(|extension| extension == "rs"))
        .filter_map(|entry| std::fs::read_to_string(entry.path()).ok())
        .collect();
    for document in ["README.md", "ARCHITECTURE.md", "SECURITY.md", "docs/threat-model.md"] {
        let text = std::fs::read_to_string(root.join(document)).unwrap_or_else(|error| panic!("{document}: {error}"));
        for test in named_tests(&text) {
            assert!(sources.contains(&format!("fn {test}(")), "{document} names {test}, which is no test");
        }
    }
}

#[test]
fn the_map_of_the_code_shows_every_room() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let map = std::fs::read_to_string(root.join("ARCHITECTURE.md")).expect("ARCHITECTURE.md is part of the repository");
    for directory in ["src", "lab/src"] {
        let rooms = std::fs::read_dir(root.join(directory)).expect("the sources are part of the repository");
        for room in rooms.filter_map(Result::ok).filter(|entry| entry.path().extension().is_some_and(|e| e == "rs")) {
            let name = format!("`{directory}/{}`", room.file_name().to_string_lossy());
            assert!(map.contains(&name), "ARCHITECTURE.md does not show {name}");
        }
    }
}

#[test]
fn the_contract_lists_every_metric_and_no_other() {
    let names = |text: &str, before: char| -> BTreeSet<String> {
        let starts = text.match_indices("bamf_agent_").filter(|(at, _)| text[..*at].ends_with(before));
        let end = |rest: &str| rest.find(|c: char| !c.is_ascii_lowercase() && c != '_').unwrap_or(rest.len());
        starts.map(|(at, _)| text[at..at + end(&text[at..])].to_owned()).collect()
    };
    let read = |path: &str| std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).expect(path);
    let source = read("src/telemetry/metrics.rs");
    let shipped = source.split("#[cfg(test)]").next().unwrap();
    assert_eq!(names(&read("docs/contract.md"), '`'), names(shipped, '"'));
}
