//! The documents say what the program does: the table of keys, the examples, and the tests that they name.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

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

/// All documents for readers, by their path in the repository.
fn documents() -> Vec<(PathBuf, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut paths: Vec<PathBuf> = walkdir::WalkDir::new(root.join("docs"))
        .into_iter()
        .filter_map(Result::ok)
        .map(|entry| entry.into_path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "md"))
        .collect();
    paths.extend(
        ["README.md", "ARCHITECTURE.md", "SECURITY.md", "CHANGELOG.md", "fuzz/README.md"].map(|name| root.join(name)),
    );
    let read =
        |path: PathBuf| std::fs::read_to_string(&path).map(|text| (path, text)).expect("it is part of the repository");
    paths.into_iter().map(read).collect()
}

/// The anchors of a document's headings, as its readers' renderers make them.
fn anchors(text: &str) -> BTreeSet<String> {
    let headings = text.lines().filter(|line| line.starts_with('#')).map(|line| line.trim_start_matches('#').trim());
    let slug = |heading: &str| {
        let kept = heading.to_lowercase().replace(' ', "-");
        kept.chars().filter(|c| c.is_alphanumeric() || matches!(c, '-' | '_')).collect()
    };
    headings.map(slug).collect()
}

#[test]
fn every_link_between_documents_leads_somewhere() {
    for (path, text) in documents() {
        for (_, rest) in text.match_indices("](").map(|(at, _)| text.split_at(at + 2)) {
            let Some(link) = rest.split(')').next().filter(|link| !link.starts_with("http") && !link.contains(' '))
            else {
                continue;
            };
            let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = if file.is_empty() { path.clone() } else { path.parent().unwrap().join(file) };
            assert!(target.exists(), "{} links to {link}", path.display());
            if !anchor.is_empty() {
                let there = anchors(&std::fs::read_to_string(&target).unwrap());
                assert!(there.contains(anchor), "{} links to {link}; there are {there:#?}", path.display());
            }
        }
    }
}

/// The commands in blocks of the shell, each on its line; what is long is continued with a backslash.
fn commands(text: &str) -> Vec<String> {
    let blocks = text.split("```sh\n").skip(1).filter_map(|rest| rest.split("```").next());
    let lines = blocks.flat_map(|block| block.replace("\\\n", " ").lines().map(str::to_owned).collect::<Vec<_>>());
    lines.filter(|line| !line.trim().is_empty()).collect()
}

#[test]
fn every_command_of_the_agent_in_a_document_is_one_that_it_understands() {
    let mut tried = 0;
    for (path, text) in documents() {
        let in_blocks = commands(&text);
        // In tables as well, where they begin a cell's code.
        let in_cells =
            text.split('`').skip(1).step_by(2).filter(|code| code.starts_with("sudo bamf-agent ")).map(str::to_owned);
        for command in in_blocks.into_iter().chain(in_cells) {
            let words: Vec<&str> = command.split(['#', '|', '>', ';']).next().unwrap().split_whitespace().collect();
            let Some(at) = words.iter().position(|word| *word == "bamf-agent") else { continue };
            let leading = &words[..at];
            let arguments: Vec<&str> = words[at + 1..].iter().map(|word| word.trim_matches('\'')).collect();
            let is_command = leading.iter().all(|word| ["sudo", "-u", "bamf"].contains(word));
            // Everything before `--help` is read as it would be without it.
            if is_command && !arguments.contains(&"…") {
                let output = std::process::Command::new(env!("CARGO_BIN_EXE_bamf-agent"))
                    .args(&arguments)
                    .arg("--help")
                    .output();
                let output = output.unwrap();
                let said = String::from_utf8_lossy(&output.stderr);
                assert!(output.status.success(), "{}: {command}\n{said}", path.display());
                tried += 1;
            }
        }
    }
    assert!(tried > 30, "only {tried} commands were found");
}

#[test]
fn alerts_go_by_metrics_that_exist_and_are_explained() {
    let read = |path: &str| std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).expect(path);
    let (rules, source, explained) = (
        read("packaging/prometheus/bamf-agent.rules.yaml"),
        read("src/telemetry/metrics.rs"),
        read("docs/monitoring.md"),
    );
    let mut alerts = 0;
    for line in rules.lines() {
        if let Some(alert) = line.trim().strip_prefix("- alert: ") {
            assert!(explained.contains(&format!("| `{alert}` |")), "docs/monitoring.md does not explain {alert}");
            alerts += 1;
        }
        if let Some(expression) = line.trim().strip_prefix("expr: ") {
            for (at, _) in expression.match_indices("bamf_agent_") {
                let rest = &expression[at..];
                let end = rest.find(|c: char| !c.is_ascii_lowercase() && c != '_').unwrap_or(rest.len());
                assert!(source.contains(&format!("\"{}\"", &rest[..end])), "{} is no metric", &rest[..end]);
            }
        }
    }
    assert!(alerts > 5);
}
