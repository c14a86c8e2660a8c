//! At every point of every sequence the installed path is a complete old or new file, and `recover` finds the way on.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;

use super::*;
use crate::update::elf::{Machine, own_header};
use crate::update::journal::{Action, Began, Binary, ServiceBefore, Step, Transaction};
use crate::update::recover::{self, Next, Running};
use crate::update::stage::{self, Expected};

const METHODS: [Method; 2] = [Method::Exchange, Method::LinkRename];

/// An install with `old` installed, a version before it kept, and `new` staged.
struct Install {
    directory: tempfile::TempDir,
    paths: Paths,
    old: Sha256,
    new: Sha256,
}

fn program(body: &str) -> Vec<u8> {
    let mut bytes = own_header();
    bytes.extend_from_slice(body.as_bytes());
    bytes
}

fn hash(bytes: &[u8]) -> Sha256 {
    Sha256::of_reader(bytes).unwrap()
}

impl Install {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let installed = directory.path().join("bamf-agent");
        durable::write(&installed, &program("old"), 0o755).unwrap();
        let paths = Paths::resolve(&installed).unwrap();
        durable::write(&paths.kept, &program("before"), 0o755).unwrap();
        let install = Self { directory, paths, old: hash(&program("old")), new: hash(&program("new")) };
        install.stage();
        install
    }

    fn stage(&self) -> Tried {
        let download = self.directory.path().join("download");
        durable::write(&download, &program("new"), 0o600).unwrap();
        let expected =
            Expected { sha256: self.new, size: program("new").len() as u64, machine: Machine::current().unwrap() };
        Tried::unchecked(stage::stage(&std::fs::File::open(download).unwrap(), &expected, &self.paths).unwrap())
    }

    fn installed(&self) -> Sha256 {
        Sha256::of_file(&self.paths.installed).unwrap().expect("the installed path always holds a file")
    }

    fn transaction(&self, step: Step) -> Transaction {
        Transaction {
            id: "t".into(),
            action: Action::Update,
            step,
            steps: 0,
            old: Binary { version: None, sha256: self.old },
            new: Binary { version: None, sha256: self.new },
            target: self.paths.installed.clone(),
            kept: self.paths.kept.clone(),
            method: None,
            began: Began::default(),
            trial: None,
            health_timeout_ms: 0,
            starts: 0,
            service: ServiceBefore { was_running: true, ..ServiceBefore::default() },
            identity: None,
            source: String::new(),
            by: String::new(),
            cause: None,
            unknown: serde_json::Map::new(),
        }
    }

    /// Follows `recover` to the end, as the updater does; the gate says what it is told to.
    fn recover(&self, mut transaction: Transaction, healthy: bool) -> Sha256 {
        let mut running = Running::Other;
        for _ in 0..8 {
            let next = recover::next(Some(&transaction), &self.paths.look().unwrap(), running);
            match next {
                Next::DiscardStaging => {
                    discard(&self.paths).unwrap();
                    return self.installed();
                }
                Next::FinishSwap => {
                    finish_swap(self.old, &self.paths).unwrap();
                    transaction.enter(Step::Swapped);
                }
                Next::Restart => {
                    transaction.enter(Step::Trial);
                    running = Running::Installed;
                }
                Next::ResumeGate => transaction.enter(if healthy { Step::Committing } else { Step::Restoring }),
                Next::Restore => {
                    restore(self.old, &self.paths).unwrap();
                    transaction.enter(Step::Restored);
                }
                Next::FinishRestore => {
                    restore(self.old, &self.paths).unwrap();
                    return self.installed();
                }
                Next::Commit => {
                    tidy(&self.paths).unwrap();
                    return self.installed();
                }
                Next::Nothing | Next::AwaitStart | Next::Abandon | Next::AskOperator(_) => panic!("{next:?}"),
            }
        }
        panic!("recovery goes in circles at {:?}", transaction.step);
    }

    fn assert_tidy_after_restore(&self) {
        assert_eq!(self.installed(), self.old);
        assert!(!self.paths.staged.exists() && !self.paths.aside.exists());
    }
}

fn prefixes(moves: &[Move]) -> impl Iterator<Item = &[Move]> {
    (0..=moves.len()).map(|cut| &moves[..cut])
}

#[test]
fn a_swap_installs_the_new_file_and_keeps_the_old_one() {
    let install = Install::new();
    let swapped = swap(install.stage(), install.old, &install.paths).unwrap();
    assert_eq!(swapped.method, Method::Exchange);
    let disk = install.paths.look().unwrap();
    assert_eq!(disk, Disk { installed: Some(install.new), kept: Some(install.old), ..Disk::default() });
}

#[test]
fn a_restore_goes_back_and_leaves_nothing_to_go_forward_to() {
    let install = Install::new();
    swap(install.stage(), install.old, &install.paths).unwrap();
    restore(install.old, &install.paths).unwrap();
    let disk = install.paths.look().unwrap();
    assert_eq!(disk, Disk { installed: Some(install.old), ..Disk::default() });
    assert_eq!(Sha256::of_file(&install.paths.failed).unwrap(), Some(install.new));
    restore(install.old, &install.paths).unwrap();
    assert!(matches!(restore(install.new, &install.paths).unwrap_err(), Error::NoPrevious(_)));
    tidy(&install.paths).unwrap();
    assert!(!install.paths.failed.exists());
}

#[test]
fn a_swap_cut_at_any_point_leaves_a_complete_file_and_recovers_both_ways() {
    for method in METHODS {
        for healthy in [true, false] {
            let moves = forward(&Install::new().paths, method).len();
            for cut in 0..=moves {
                let install = Install::new();
                let sequence = forward(&install.paths, method);
                for step in &sequence[..cut] {
                    step.perform().unwrap();
                    assert!([install.old, install.new].contains(&install.installed()));
                }
                let untouched = install.installed() == install.old;
                let end = install.recover(install.transaction(Step::Swapping), healthy);
                let expected = if healthy && !untouched { install.new } else { install.old };
                assert_eq!(end, expected, "{method:?} cut at {cut}, healthy {healthy}");
                assert!(!install.paths.staged.exists() && !install.paths.aside.exists());
                if untouched {
                    let kept = Sha256::of_file(&install.paths.kept).unwrap();
                    assert_eq!(kept, Some(hash(&program("before"))), "what to go back to is unchanged");
                }
            }
        }
    }
}

#[test]
fn a_restore_cut_at_any_point_leaves_a_complete_file_and_recovers() {
    for method in METHODS {
        let moves = back(&Install::new().paths, method).len();
        for cut in 0..=moves {
            let install = Install::new();
            swap(install.stage(), install.old, &install.paths).unwrap();
            for step in &back(&install.paths, method)[..cut] {
                step.perform().unwrap();
                assert!([install.old, install.new].contains(&install.installed()));
            }
            let end = install.recover(install.transaction(Step::Restoring), true);
            assert_eq!(end, install.old, "{method:?} cut at {cut}");
            install.assert_tidy_after_restore();
        }
    }
}

#[test]
fn a_restore_cut_off_and_resumed_by_the_other_method_recovers() {
    for (first, second) in [(Method::Exchange, Method::LinkRename), (Method::LinkRename, Method::Exchange)] {
        let install = Install::new();
        swap(install.stage(), install.old, &install.paths).unwrap();
        for prefix in prefixes(&back(&install.paths, first)) {
            let fresh = Install::new();
            swap(fresh.stage(), fresh.old, &fresh.paths).unwrap();
            for step in &back(&fresh.paths, first)[..prefix.len()] {
                step.perform().unwrap();
            }
            if fresh.installed() == fresh.new {
                back(&fresh.paths, second).iter().try_for_each(Move::perform).unwrap();
            }
            restore(fresh.old, &fresh.paths).unwrap();
            fresh.assert_tidy_after_restore();
        }
    }
}

#[test]
fn an_installed_file_that_somebody_changed_is_not_replaced() {
    let install = Install::new();
    let staged = install.stage();
    durable::write(&install.paths.installed, b"by hand", 0o755).unwrap();
    let error = swap(staged, install.old, &install.paths).unwrap_err();
    assert!(matches!(error, Error::Changed { .. }), "{error}");
    assert_eq!(std::fs::read(&install.paths.installed).unwrap(), b"by hand");
}

#[test]
fn a_staged_file_that_somebody_changed_is_not_installed() {
    let install = Install::new();
    let staged = install.stage();
    durable::write(&install.paths.staged, b"planted", 0o755).unwrap();
    assert!(matches!(swap(staged, install.old, &install.paths).unwrap_err(), Error::Changed { .. }));
    assert_eq!(install.installed(), install.old);
}

#[test]
fn a_missing_installed_file_is_put_back() {
    let install = Install::new();
    swap(install.stage(), install.old, &install.paths).unwrap();
    durable::remove_file(&install.paths.installed).unwrap();
    assert!(Paths::resolve(&install.paths.installed).is_err());
    assert_eq!(Paths::recorded(&install.paths.installed).unwrap(), install.paths);
    restore(install.old, &install.paths).unwrap();
    install.assert_tidy_after_restore();
}

#[test]
fn behind_a_link_the_file_is_replaced_and_the_link_stays() {
    let install = Install::new();
    let elsewhere = tempfile::tempdir().unwrap();
    let (one, two) = (elsewhere.path().join("bamf-agent"), elsewhere.path().join("hop"));
    std::os::unix::fs::symlink(&install.paths.installed, &two).unwrap();
    std::os::unix::fs::symlink("hop", &one).unwrap();
    let paths = Paths::resolve(&one).unwrap();
    assert_eq!(paths.installed, install.paths.installed);
    assert_eq!(paths.kept, install.paths.kept);
    swap(install.stage(), install.old, &paths).unwrap();
    assert_eq!(std::fs::read_link(&one).unwrap(), Path::new("hop"));
    assert_eq!(Sha256::of_reader(std::fs::File::open(&one).unwrap()).unwrap(), install.new);
}

#[test]
fn a_path_that_others_could_bend_is_refused() {
    let install = Install::new();
    let open = tempfile::tempdir().unwrap();
    std::fs::set_permissions(open.path(), Permissions::from_mode(0o777)).unwrap();
    let bent = open.path().join("bamf-agent");
    std::os::unix::fs::symlink(&install.paths.installed, &bent).unwrap();
    assert!(matches!(Paths::resolve(&bent).unwrap_err(), Error::Unsafe(_)));

    // The link itself lies safely, but goes through a directory that does not.
    let safe = tempfile::tempdir().unwrap();
    let outer = safe.path().join("bamf-agent");
    std::os::unix::fs::symlink(&bent, &outer).unwrap();
    assert!(matches!(Paths::resolve(&outer).unwrap_err(), Error::Unsafe(_)));
}

#[test]
fn loops_directories_and_files_of_others_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("loop");
    std::os::unix::fs::symlink("loop", &path).unwrap();
    assert!(matches!(Paths::resolve(&path).unwrap_err(), Error::Links(_)));
    assert!(matches!(Paths::resolve(directory.path()).unwrap_err(), Error::NotAFile(_)));
    if nix::unistd::geteuid().is_root() {
        let install = Install::new();
        std::os::unix::fs::chown(&install.paths.installed, Some(65534), None).unwrap();
        assert!(matches!(Paths::resolve(&install.paths.installed).unwrap_err(), Error::Unsafe(_)));
    }
}

#[test]
fn two_names_of_one_file_become_one() {
    let install = Install::new();
    durable::remove_file(&install.paths.kept).unwrap();
    for name in [&install.paths.aside, &install.paths.kept] {
        std::fs::hard_link(&install.paths.installed, name).unwrap();
    }
    Move::Rename(install.paths.aside.clone(), install.paths.kept.clone()).perform().unwrap();
    assert!(!install.paths.aside.exists() && install.paths.kept.exists());
}
