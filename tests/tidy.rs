//! Holds what the compiler and clippy cannot: the promises that ARCHITECTURE.md makes about the shape of the code.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use bamf_agent::exit::{Exit, Reason};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn sources(directory: &str) -> Vec<(PathBuf, String)> {
    walkdir::WalkDir::new(root().join(directory))
        .into_iter()
        .map(Result::unwrap)
        .filter(|entry| entry.path().extension().is_some_and(|extension| extension == "rs"))
        .map(|entry| {
            let path = entry.path().strip_prefix(root()).unwrap().to_owned();
            (path, std::fs::read_to_string(entry.path()).unwrap())
        })
        .collect()
}

/// The part of a file that ships: everything before its tests, without comments.
fn shipped(path: &Path, text: &str) -> String {
    if path.ends_with("tests.rs") || path.components().any(|part| part.as_os_str() == "tests") {
        return String::new();
    }
    let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
    code.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

fn contract() -> String {
    std::fs::read_to_string(root().join("docs/contract.md")).unwrap()
}

#[test]
fn every_file_begins_with_a_sentence_about_itself() {
    for directory in ["src", "lab/src", "tests", "fuzz/src", "fuzz/fuzz_targets"] {
        for (path, text) in sources(directory) {
            assert!(text.starts_with("//! "), "{} has no module doc on line 1", path.display());
        }
    }
}

/// Rooms that decide and know neither clock, disk nor network.
const PURE: &[&str] = &[
    "src/agent/reaction.rs",
    "src/backoff.rs",
    "src/config/keys.rs",
    "src/config/raw.rs",
    "src/config/validate.rs",
    "src/config/window.rs",
    "src/exit.rs",
    "src/identity/inspect.rs",
    "src/identity/schedule.rs",
    "src/identity/shared/compare.rs",
    "src/kubernetes/failure.rs",
    "src/kubernetes/object.rs",
    "src/platform/sse.rs",
    "src/relay/body.rs",
    "src/relay/conversation.rs",
    "src/relay/conversation/request.rs",
    "src/relay/conversation/response.rs",
    "src/relay/conversation/state.rs",
    "src/relay/head.rs",
    "src/relay/headers.rs",
    "src/relay/pace.rs",
    "src/relay/route.rs",
    "src/stream.rs",
    "src/stream/connection.rs",
    "src/stream/frame.rs",
    "src/stream/inbox.rs",
    "src/stream/outbox.rs",
    "src/tunnel/record.rs",
    "src/tunnel/record/alert.rs",
    "src/tunnel/record/direction.rs",
    "src/tunnel/record/message.rs",
    "src/tunnel/record/secret.rs",
    "src/tunnel/record/state.rs",
    "src/tunnel/tls.rs",
    "src/uninstall/plan.rs",
    "src/update/gate.rs",
    "src/update/plan.rs",
    "src/update/unattended.rs",
];

#[test]
fn pure_rooms_know_no_clock_no_disk_and_no_network() {
    let banned = [
        "tokio",
        "std::fs",
        "std::net",
        "std::env",
        "std::process",
        "SystemTime::now",
        "Instant::now",
        "clock::now",
        "durable",
    ];
    for room in PURE {
        let text = std::fs::read_to_string(root().join(room)).unwrap_or_else(|error| panic!("{room}: {error}"));
        let code = shipped(Path::new(room), &text);
        for word in banned {
            assert!(!code.contains(word), "{room} is pure but knows {word}");
        }
    }
}

#[test]
fn what_only_one_room_may_do_is_done_there_only() {
    let rules = [
        ("std::env::var", &["src/config/source.rs", "src/service/fds.rs"][..]),
        ("std::fs::rename", &["src/durable.rs"][..]),
        (
            "sync_all(",
            &["src/durable.rs", "src/identity/store/files.rs", "src/update/stage.rs", "src/update/source/download.rs"]
                [..],
        ),
        ("println!", &[][..]),
        ("stdout()", &["src/cli/output.rs"][..]),
        ("process::exit", &[][..]),
        ("tokio::spawn", &["src/tasks.rs"][..]),
        ("unsafe", &["src/heap.rs", "src/service/fds.rs"][..]),
        ("todo!", &[][..]),
        // What a process says of itself must not decide what root trusts.
        ("/environ", &[][..]),
        ("/cmdline", &[][..]),
    ];
    for (path, text) in sources("src") {
        let code = shipped(&path, &text);
        for (word, allowed) in rules {
            let here = allowed.iter().any(|file| path == Path::new(file));
            assert!(here || !code.contains(word), "{} uses {word}, which only {allowed:?} may", path.display());
        }
    }
}

#[test]
fn the_agent_and_the_updater_never_call_each_other() {
    for (path, text) in sources("src") {
        let code = shipped(&path, &text);
        if path.starts_with("src/agent") || path == Path::new("src/agent.rs") {
            assert!(!code.contains("crate::update"), "{} reaches into the updater", path.display());
        }
        if path.starts_with("src/update") || path == Path::new("src/update.rs") {
            assert!(!code.contains("crate::agent"), "{} reaches into the agent", path.display());
        }
    }
}

#[test]
fn the_exit_codes_are_those_of_the_contract() {
    let listed: BTreeSet<u8> = contract()
        .lines()
        .skip_while(|line| !line.starts_with("### Exit codes"))
        .take_while(|line| !line.starts_with("`update --json`"))
        .filter_map(|line| line.strip_prefix("| ")?.split(' ').next()?.parse().ok())
        .collect();
    let ours: BTreeSet<u8> = Exit::ALL.iter().map(|exit| exit.code()).collect();
    assert_eq!(ours, listed);
}

#[test]
fn every_reason_word_of_the_contract_exists_and_every_word_is_in_the_contract() {
    let contract = contract();
    let (_, list) = contract.split_once("`reason` is a stable snake_case word:").unwrap();
    let list = list.split("\n\n").next().unwrap();
    let listed: BTreeSet<&str> = list.split('`').skip(1).step_by(2).collect();
    let ours: BTreeSet<&str> = Reason::ALL.iter().map(|reason| reason.word()).collect();
    assert_eq!(ours, listed, "docs/contract.md and src/exit.rs list the same words");
}

#[test]
fn no_text_of_the_project_names_the_place_where_it_was_made() {
    let here = root().display().to_string();
    let ours = |entry: &walkdir::DirEntry| !matches!(entry.file_name().to_str(), Some("target" | ".git"));
    for entry in walkdir::WalkDir::new(root()).into_iter().filter_entry(ours) {
        let path = entry.unwrap().into_path();
        let Ok(text) = std::fs::read_to_string(&path) else { continue };
        assert!(!text.contains(&here), "{} names {here}", path.display());
    }
}
