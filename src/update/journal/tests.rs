//! The journal's promises: old and new readers, broken files, bounded lists.

use super::*;

const GOLDEN: &str = include_str!("../../../tests/golden/journal-v1.json");

fn digest(byte: u8) -> Sha256 {
    Sha256::from([byte; 32])
}

/// Every field set, as version 1 writes it.
fn full() -> Journal {
    Journal {
        version: 1,
        transaction: Some(Transaction {
            id: "0b54cf0a-3a1b-4a6e-9c39-0d5f2f6f2a11".into(),
            action: Action::Update,
            step: Step::Restoring,
            steps: 8,
            old: Binary { version: None, sha256: digest(0x0a) },
            new: Binary { version: Some("1.2.0".into()), sha256: digest(0x0b) },
            target: "/usr/local/bin/bamf-agent".into(),
            kept: "/usr/local/bin/.bamf-agent.previous".into(),
            method: Some(Method::Exchange),
            began: Began { at: "2026-07-13T10:00:00Z".into(), boot_id: "boot-1".into(), boottime_ms: 12_345 },
            trial: Some(Began { at: "2026-07-13T10:00:09Z".into(), boot_id: "boot-1".into(), boottime_ms: 21_345 }),
            health_timeout_ms: 90_000,
            starts: 2,
            service: ServiceBefore {
                unit: "bamf-agent.service".into(),
                was_running: true,
                no_restart: false,
                main_pid: Some(4711),
                restarts: 0,
                sessions: Some(20),
            },
            identity: Some(Identity {
                agent_name: "web-1".into(),
                agent_id: Some("agent-7".into()),
                certificate_sha256: "cd".repeat(32),
                certificate_not_before: Some("2026-07-13T09:00:00Z".into()),
            }),
            source: "https://github.com/mattrobinsonsre/bamf".into(),
            by: "root".into(),
            cause: Some(Cause { reason: "unhealthy".into(), message: "the unit failed".into() }),
            unknown: Map::new(),
        }),
        pin: Some(Pin { version: "1.2.0".into(), at: "2026-07-13T10:00:00Z".into(), by: "root".into() }),
        known_bad: vec![KnownBad {
            version: "1.1.9".into(),
            reason: "the unit failed".into(),
            at: "2026-07-01T10:00:00Z".into(),
        }],
        unknown: Map::new(),
    }
}

fn bad(version: &str) -> KnownBad {
    KnownBad { version: version.into(), reason: String::new(), at: String::new() }
}

#[test]
fn the_golden_journal_of_version_1_is_read_and_written_unchanged() {
    let journal: Journal = serde_json::from_str(GOLDEN).unwrap();
    assert_eq!(journal, full());
    assert_eq!(serde_json::to_string_pretty(&full()).unwrap() + "\n", GOLDEN);
}

#[test]
fn a_journal_survives_the_disk_and_is_for_its_owner_only() {
    use std::os::unix::fs::PermissionsExt;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state.json");
    full().store(&path).unwrap();
    let loaded = Journal::load(&path).unwrap();
    assert_eq!(loaded.journal, full());
    assert_eq!(loaded.set_aside, None);
    assert_eq!(path.metadata().unwrap().permissions().mode() & 0o7777, 0o600);
}

#[test]
fn an_old_reader_keeps_what_a_newer_writer_added() {
    let mut value: Value = serde_json::from_str(GOLDEN).unwrap();
    value["version"] = 2.into();
    value["ring"] = "canary".into();
    value["transaction"]["step"] = "migrating".into();
    value["transaction"]["wave"] = 3.into();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state.json");
    durable::write(&path, value.to_string().as_bytes(), 0o600).unwrap();

    let journal = Journal::load(&path).unwrap().journal;
    assert_eq!(journal.transaction.as_ref().unwrap().step, Step::Unknown);
    journal.store(&path).unwrap();
    let again: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    assert_eq!(again["version"], 2, "a newer writer's version is not lowered");
    assert_eq!((&again["ring"], &again["transaction"]["wave"]), (&"canary".into(), &3.into()));
}

#[test]
fn a_new_reader_fills_in_what_an_older_writer_did_not_know() {
    let zero = "0".repeat(64);
    let old = format!(
        r#"{{"version":1,"transaction":{{"id":"a","step":"swapped","old":{{"sha256":"{zero}"}},
        "new":{{"sha256":"{zero}"}},"target":"/b/a","kept":"/b/.p"}}}}"#
    );
    let journal = Journal::parse(old.as_bytes()).unwrap();
    let transaction = journal.transaction.unwrap();
    assert_eq!((transaction.step, transaction.starts, transaction.identity), (Step::Swapped, 0, None));
}

#[test]
fn every_cut_of_a_journal_is_set_aside_and_never_obeyed() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state.json");
    let whole = GOLDEN.trim_end();
    for cut in (0..whole.len()).step_by(37) {
        durable::write(&path, &whole.as_bytes()[..cut], 0o600).unwrap();
        let loaded = Journal::load(&path).unwrap();
        assert_eq!(loaded.journal, Journal::empty(), "cut at {cut}");
        assert!(loaded.set_aside.is_some() && !path.exists(), "cut at {cut}");
    }
}

#[test]
fn json_that_is_no_journal_is_set_aside() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state.json");
    for text in ["{}", "[]", "null", "{\"version\":0}", "{\"version\":1,\"transaction\":{\"id\":7}}", "\0\0\0\0"] {
        durable::write(&path, text.as_bytes(), 0o600).unwrap();
        assert!(Journal::load(&path).unwrap().set_aside.is_some(), "{text}");
    }
}

#[test]
fn no_more_than_a_few_broken_journals_are_kept() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state.json");
    for round in 0..20 {
        durable::write(&path, format!("broken {round}").as_bytes(), 0o600).unwrap();
        Journal::load(&path).unwrap();
    }
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 5);
    let newest = std::fs::read_to_string(directory.path().join("state.json.corrupt-5")).unwrap();
    assert_eq!(newest, "broken 19");
}

#[test]
fn a_missing_journal_is_an_empty_one() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state.json");
    assert_eq!(Journal::load(&path).unwrap().journal, Journal::empty());
    assert_eq!(Journal::peek(&path).unwrap(), None);
}

#[test]
fn looking_at_a_broken_journal_leaves_it_where_it_is() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state.json");
    durable::write(&path, b"broken", 0o600).unwrap();
    assert_eq!(Journal::peek(&path).unwrap(), None);
    assert!(path.exists());
}

#[test]
fn bad_versions_are_remembered_once_and_the_oldest_are_forgotten() {
    let mut journal = Journal::empty();
    for minor in 0..40 {
        journal.mark_bad(bad(&format!("1.{minor}.0")));
    }
    journal.mark_bad(bad("1.10.0"));
    assert_eq!(journal.known_bad.len(), KNOWN_BAD_LIMIT);
    assert_eq!(journal.known_bad.last().unwrap().version, "1.10.0");
    assert!(journal.bad("1.39.0").is_some() && journal.bad("1.0.0").is_none());
    journal.clear_bad("1.39.0");
    assert!(journal.bad("1.39.0").is_none());
}

#[test]
fn a_rollback_goes_from_the_new_file_to_the_old_one() {
    let mut transaction = full().transaction.unwrap();
    assert_eq!(transaction.to().sha256, digest(0x0b));
    transaction.action = Action::Rollback;
    assert_eq!((transaction.from().sha256, transaction.to().sha256), (digest(0x0b), digest(0x0a)));
}

#[test]
fn the_guard_and_the_updater_do_not_overwrite_each_other() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state.json");
    Journal::change(&path, |journal| *journal = Journal { transaction: full().transaction, ..Journal::empty() })
        .unwrap();
    std::thread::scope(|threads| {
        threads.spawn(|| (0..25).for_each(|_| drop(Journal::change_transaction(&path, |t| t.starts += 1).unwrap())));
        threads.spawn(|| {
            (0..25).for_each(|_| drop(Journal::change_transaction(&path, |t| t.enter(Step::Trial)).unwrap()));
        });
    });
    let transaction = Journal::load(&path).unwrap().journal.transaction.unwrap();
    assert_eq!((transaction.starts, transaction.steps, transaction.step), (2 + 25, 8 + 25, Step::Trial));
}

#[test]
fn the_lock_of_a_writer_is_released_by_its_end() {
    use std::os::unix::fs::PermissionsExt;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state.json");
    let held = lock(&path).unwrap();
    assert_eq!(path.with_extension("json.lock").metadata().unwrap().permissions().mode() & 0o7777, 0o600);
    drop(held);
    Journal::change_transaction(&path, |_| panic!("there is no transaction")).unwrap();
}

#[test]
fn words_of_a_newer_updater_are_read_as_unknown() {
    let text = GOLDEN.replace("\"exchange\"", "\"reflink\"").replace("\"update\"", "\"repair\"");
    let transaction = Journal::parse(text.as_bytes()).unwrap().transaction.unwrap();
    assert_eq!((transaction.action, transaction.method), (Action::Unknown, Some(Method::Unknown)));
}
