//! The table of `recover`, row by row, and what holds for every row.

use proptest::prelude::*;

use super::*;
use crate::update::journal::{Action, Began, Binary, ServiceBefore};

const OLD: Option<Sha256> = Some(digest(1));
const NEW: Option<Sha256> = Some(digest(2));
const ELSE: Option<Sha256> = Some(digest(3));
const STEPS: [Step; 10] = [
    Step::Fetched,
    Step::Tried,
    Step::Swapping,
    Step::Swapped,
    Step::Restarting,
    Step::Trial,
    Step::Committing,
    Step::Restoring,
    Step::Restored,
    Step::Unknown,
];

const fn digest(byte: u8) -> Sha256 {
    Sha256::new([byte; 32])
}

fn transaction(step: Step) -> Transaction {
    Transaction {
        id: "t".into(),
        action: Action::Update,
        step,
        steps: 1,
        old: Binary { version: Some("1.1.0".into()), sha256: digest(1) },
        new: Binary { version: Some("1.2.0".into()), sha256: digest(2) },
        target: "/b/bamf-agent".into(),
        kept: "/b/.bamf-agent.previous".into(),
        method: None,
        began: Began::default(),
        trial: None,
        health_timeout_ms: 90_000,
        starts: 0,
        service: ServiceBefore { was_running: true, ..ServiceBefore::default() },
        identity: None,
        source: String::new(),
        by: String::new(),
        cause: None,
        unknown: serde_json::Map::new(),
    }
}

const fn disk(installed: Option<Sha256>, staged: Option<Sha256>, kept: Option<Sha256>) -> Disk {
    Disk { installed, staged, aside: None, kept }
}

fn decide(step: Step, on_disk: Disk, running: Running) -> Next {
    next(Some(&transaction(step)), &on_disk, running)
}

#[test]
fn without_a_transaction_only_leftovers_are_removed() {
    let cases = [
        (disk(OLD, None, None), Next::Nothing),
        (disk(OLD, None, ELSE), Next::Nothing),
        (disk(OLD, NEW, None), Next::DiscardStaging),
        (Disk { aside: OLD, ..disk(OLD, None, None) }, Next::DiscardStaging),
        (disk(None, None, ELSE), Next::AskOperator(Trouble::InstalledMissing)),
    ];
    for (on_disk, expected) in cases {
        assert_eq!(next(None, &on_disk, Running::Installed), expected, "{on_disk:?}");
    }
}

#[test]
fn before_the_swap_nothing_was_touched_and_the_staged_file_goes() {
    for step in [Step::Fetched, Step::Tried, Step::Swapping] {
        for on_disk in [disk(OLD, NEW, None), disk(OLD, None, ELSE), disk(OLD, ELSE, ELSE)] {
            assert_eq!(decide(step, on_disk, Running::Installed), Next::DiscardStaging, "{step:?} {on_disk:?}");
        }
    }
    // Somebody put the very same release there by hand.
    assert_eq!(decide(Step::Tried, disk(NEW, NEW, None), Running::Other), Next::DiscardStaging);
}

#[test]
fn a_swap_cut_off_in_the_middle_is_finished() {
    assert_eq!(decide(Step::Swapping, disk(NEW, OLD, ELSE), Running::Other), Next::FinishSwap);
    let linked = Disk { aside: OLD, ..disk(NEW, None, ELSE) };
    assert_eq!(decide(Step::Swapping, linked, Running::Other), Next::FinishSwap);
    assert_eq!(decide(Step::Swapping, disk(NEW, None, OLD), Running::Other), Next::Restart);
}

#[test]
fn a_finished_swap_is_followed_by_restart_and_gate() {
    for step in [Step::Swapped, Step::Restarting, Step::Unknown] {
        for (running, expected) in
            [(Running::Other, Next::Restart), (Running::Nothing, Next::Restart), (Running::Installed, Next::ResumeGate)]
        {
            assert_eq!(decide(step, disk(NEW, None, OLD), running), expected, "{step:?} {running:?}");
        }
    }
}

#[test]
fn a_trial_is_resumed_whatever_runs_because_the_gate_gives_the_verdict() {
    for running in [Running::Installed, Running::Other, Running::Nothing] {
        assert_eq!(decide(Step::Trial, disk(NEW, None, OLD), running), Next::ResumeGate);
    }
}

#[test]
fn an_agent_that_was_not_running_is_not_started() {
    let mut stopped = transaction(Step::Swapped);
    stopped.service.was_running = false;
    let on_disk = disk(NEW, None, OLD);
    assert_eq!(next(Some(&stopped), &on_disk, Running::Nothing), Next::Commit);
    assert_eq!(next(Some(&stopped), &on_disk, Running::Installed), Next::ResumeGate);
}

#[test]
fn without_restart_the_trial_waits_for_the_operator() {
    let mut unstarted = transaction(Step::Swapped);
    unstarted.service.no_restart = true;
    let on_disk = disk(NEW, None, OLD);
    for (running, expected) in [
        (Running::Other, Next::AwaitStart),
        (Running::Nothing, Next::AwaitStart),
        (Running::Installed, Next::ResumeGate),
    ] {
        assert_eq!(next(Some(&unstarted), &on_disk, running), expected, "{running:?}");
    }
}

#[test]
fn three_starts_without_health_or_too_many_steps_restore_the_old_file() {
    for step in [Step::Swapped, Step::Restarting, Step::Trial] {
        let mut crashing = transaction(step);
        crashing.starts = STARTS_LIMIT;
        assert_eq!(next(Some(&crashing), &disk(NEW, None, OLD), Running::Installed), Next::Restore);
        let mut circling = transaction(step);
        circling.steps = STEPS_LIMIT;
        assert_eq!(next(Some(&circling), &disk(NEW, None, OLD), Running::Other), Next::Restore);
    }
}

#[test]
fn a_healthy_version_is_committed_even_after_many_starts() {
    let mut healthy = transaction(Step::Committing);
    healthy.starts = 9;
    assert_eq!(next(Some(&healthy), &disk(NEW, None, OLD), Running::Installed), Next::Commit);
}

#[test]
fn a_restore_is_carried_to_its_end() {
    for step in [Step::Restoring, Step::Restored] {
        assert_eq!(decide(step, disk(NEW, None, OLD), Running::Installed), Next::Restore);
        assert_eq!(decide(step, disk(OLD, None, NEW), Running::Other), Next::FinishRestore);
        assert_eq!(decide(step, disk(OLD, None, None), Running::Installed), Next::FinishRestore);
    }
}

#[test]
fn an_old_file_that_came_back_by_other_hands_is_taken_as_restored() {
    for step in [Step::Swapped, Step::Restarting, Step::Trial, Step::Committing, Step::Unknown] {
        assert_eq!(decide(step, disk(OLD, None, NEW), Running::Other), Next::FinishRestore, "{step:?}");
    }
}

#[test]
fn a_file_of_somebody_else_is_left_alone_at_every_step() {
    for step in STEPS {
        assert_eq!(decide(step, disk(ELSE, None, OLD), Running::Installed), Next::Abandon, "{step:?}");
    }
}

#[test]
fn a_missing_installed_file_is_restored_from_wherever_the_old_one_is() {
    for step in STEPS {
        for on_disk in [disk(None, None, OLD), disk(None, OLD, ELSE), Disk { aside: OLD, ..disk(None, None, None) }] {
            assert_eq!(decide(step, on_disk, Running::Nothing), Next::Restore, "{step:?} {on_disk:?}");
        }
        let lost = Next::AskOperator(Trouble::OldFileLost);
        assert_eq!(decide(step, disk(None, NEW, ELSE), Running::Nothing), lost, "{step:?}");
    }
}

#[test]
fn a_restore_without_the_old_file_asks_the_operator() {
    let lost = Next::AskOperator(Trouble::OldFileLost);
    assert_eq!(decide(Step::Restoring, disk(NEW, None, ELSE), Running::Installed), lost);
    let mut crashing = transaction(Step::Trial);
    crashing.starts = STARTS_LIMIT;
    assert_eq!(next(Some(&crashing), &disk(NEW, None, None), Running::Nothing), lost);
}

#[test]
fn installing_the_same_bytes_again_commits_or_discards_and_never_restores() {
    let mut same = transaction(Step::Trial);
    same.new.sha256 = same.old.sha256;
    assert_eq!(next(Some(&same), &disk(OLD, None, OLD), Running::Installed), Next::ResumeGate);
    same.step = Step::Committing;
    assert_eq!(next(Some(&same), &disk(OLD, None, OLD), Running::Installed), Next::Commit);
}

fn any_file() -> impl Strategy<Value = Option<Sha256>> {
    prop::sample::select(vec![None, OLD, NEW, ELSE])
}

proptest! {
    #[test]
    fn no_state_of_the_disk_makes_it_restore_what_is_not_there_or_overwrite_a_stranger(
        step in prop::sample::select(STEPS.to_vec()),
        (installed, staged, aside, kept) in (any_file(), any_file(), any_file(), any_file()),
        running in prop::sample::select(vec![Running::Installed, Running::Other, Running::Nothing]),
        (starts, steps, was_running, no_restart) in (0_u32..5, 0_u32..40, any::<bool>(), any::<bool>()),
    ) {
        let mut subject = transaction(step);
        (subject.starts, subject.steps) = (starts, steps);
        (subject.service.was_running, subject.service.no_restart) = (was_running, no_restart);
        let on_disk = Disk { installed, staged, aside, kept };
        let decided = next(Some(&subject), &on_disk, running);
        prop_assert_ne!(decided, Next::Nothing, "a transaction is always brought to an end");
        if decided == Next::Restore {
            prop_assert!(staged == OLD || aside == OLD || kept == OLD);
            prop_assert!(installed.is_none() || installed == NEW);
        }
        if installed == ELSE {
            prop_assert_eq!(decided, Next::Abandon);
        }
        if matches!(decided, Next::Commit | Next::ResumeGate | Next::Restart | Next::FinishSwap) {
            prop_assert_eq!(installed, NEW);
        }
        if decided == Next::FinishRestore {
            prop_assert_eq!(installed, OLD);
        }
    }
}
