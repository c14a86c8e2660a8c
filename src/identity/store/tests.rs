//! The set on the disk, cut off at every step.

use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, SystemTime};

use bamf_lab::plane::CertificateAuthority;

use super::*;
use crate::secret::Secret;

struct Bench {
    ca: CertificateAuthority,
    directory: tempfile::TempDir,
    store: Store,
}

impl Bench {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::new(directory.path().join("data"));
        store.prepare().unwrap();
        Self { ca: CertificateAuthority::new(), directory, store }
    }

    /// A set whose validity begins `age` seconds ago.
    fn material(&self, age: u64) -> Material {
        let from = SystemTime::now() - Duration::from_secs(age);
        let issued = self.ca.identity("edge-1", from, from + Duration::from_secs(86400)).unwrap();
        Material {
            certificate_pem: Secret::new(issued.certificate_pem),
            private_key_pem: Secret::new(issued.private_key_pem),
            ca_pem: issued.ca_pem,
        }
    }

    fn join(&self, age: u64) -> Identity {
        self.store.reserve().unwrap().commit(self.material(age)).unwrap()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.store.directory().join(name)
    }

    /// A copy of the data directory, to try a crash on.
    fn copy(&self) -> Store {
        let copy = tempfile::tempdir_in(self.directory.path()).unwrap().keep();
        for entry in walkdir::WalkDir::new(self.store.directory()).into_iter().map(Result::unwrap) {
            let to = copy.join(entry.path().strip_prefix(self.store.directory()).unwrap());
            if entry.file_type().is_dir() {
                std::fs::create_dir_all(to).unwrap();
            } else {
                std::fs::copy(entry.path(), to).unwrap();
            }
        }
        Store::new(copy)
    }
}

#[test]
fn an_empty_directory_has_no_identity() {
    assert!(Bench::new().store.load().unwrap().is_none());
}

#[test]
fn a_stored_set_is_found_again_with_the_modes_of_the_go_agent() {
    let bench = Bench::new();
    let joined = bench.join(0);
    assert_eq!(bench.store.load().unwrap().unwrap().sha256, joined.sha256);
    for (name, mode) in [("agent.crt", 0o600), ("agent.key", 0o600), ("ca.crt", 0o644)] {
        let metadata = bench.path(name).symlink_metadata().unwrap();
        assert!(metadata.is_file(), "{name} is a plain file");
        assert_eq!(metadata.permissions().mode() & 0o7777, mode, "{name}");
    }
    let mut left: Vec<_> =
        std::fs::read_dir(bench.store.directory()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["agent.crt", "agent.key", "ca.crt"]);
}

#[test]
fn the_go_agents_directory_is_adopted_and_not_touched() {
    let bench = Bench::new();
    let material = bench.material(0);
    durable::write(&bench.path("agent.crt"), material.certificate_pem.expose().as_bytes(), 0o600).unwrap();
    durable::write(&bench.path("agent.key"), material.private_key_pem.expose().as_bytes(), 0o600).unwrap();
    durable::write(&bench.path("ca.crt"), material.ca_pem.as_bytes(), 0o644).unwrap();
    let before = bench.path("agent.key").metadata().unwrap().modified().unwrap();
    assert_eq!(bench.store.load().unwrap().unwrap().name, "edge-1");
    assert_eq!(bench.path("agent.key").metadata().unwrap().modified().unwrap(), before);
}

#[test]
fn a_renewal_cut_off_at_any_step_leaves_the_old_or_the_new_set() {
    let bench = Bench::new();
    let old = bench.join(100);
    // The steps of a commit, one by one, with a crash tried after each.
    let reservation = bench.store.reserve().unwrap();
    let after_reserve = bench.copy();
    let material = bench.material(0);
    let new = inspect::inspect(material.clone()).unwrap();
    files::fill(&bench.path(STAGING), &material).unwrap();
    let after_fill = bench.copy();
    bench.store.keep_present().unwrap();
    let after_keep = bench.copy();
    for store in [&after_reserve, &after_fill, &after_keep] {
        assert_eq!(store.load().unwrap().unwrap().sha256, old.sha256);
    }
    durable::rename(&bench.path(STAGING), &bench.path(NEXT)).unwrap();
    let mut stages = vec![bench.copy()];
    for name in files::NAMES {
        files::move_into_place(&bench.path(NEXT).join(name), &bench.path(name)).unwrap();
        stages.push(bench.copy());
    }
    for name in files::NAMES {
        std::fs::remove_file(bench.path(NEXT).join(name)).unwrap();
        stages.push(bench.copy());
    }
    for (step, store) in stages.iter().enumerate() {
        assert_eq!(store.peek().unwrap().unwrap().sha256, new.sha256, "seen at step {step}");
        assert_eq!(store.load().unwrap().unwrap().sha256, new.sha256, "loaded at step {step}");
        assert_eq!(store.load().unwrap().unwrap().sha256, new.sha256, "loaded again at step {step}");
        assert!(!store.directory().join(NEXT).exists(), "step {step} is finished");
    }
    drop(reservation);
}

#[test]
fn the_previous_set_is_kept_until_the_new_one_was_used() {
    let bench = Bench::new();
    let old = bench.join(200);
    let new = bench.join(100);
    assert!(bench.store.has_previous());
    assert_eq!(bench.store.load().unwrap().unwrap().sha256, new.sha256);
    assert_eq!(bench.store.revert().unwrap().unwrap().sha256, old.sha256);
    assert_eq!(bench.store.load().unwrap().unwrap().sha256, old.sha256);
    assert!(!bench.store.has_previous());

    let new = bench.join(0);
    bench.store.confirm().unwrap();
    assert!(bench.store.revert().unwrap().is_none());
    assert_eq!(bench.store.load().unwrap().unwrap().sha256, new.sha256);
}

#[test]
fn of_two_renewals_that_were_never_used_the_proven_set_is_kept() {
    let bench = Bench::new();
    let proven = bench.join(300);
    bench.join(200);
    bench.join(100);
    assert_eq!(bench.store.revert().unwrap().unwrap().sha256, proven.sha256);
}

#[test]
fn a_damaged_set_is_an_error_and_never_a_reason_to_join_again() {
    for name in files::NAMES {
        let bench = Bench::new();
        bench.join(0);
        std::fs::remove_file(bench.path(name)).unwrap();
        let error = bench.store.load().unwrap_err();
        assert!(matches!(error, Error::Damaged { flaw: Flaw::Missing { .. }, .. }), "{name}: {error}");
        assert!(error.to_string().contains("join --force"), "{error}");

        durable::write(&bench.path(name), b"garbage", 0o600).unwrap();
        let error = bench.store.load().unwrap_err();
        assert!(error.to_string().contains(name), "{error}");
        assert!(bench.path(name).exists(), "nothing is thrown away");
    }
}

#[test]
fn a_set_damaged_during_a_renewal_gives_way_to_the_kept_one() {
    let bench = Bench::new();
    let old = bench.join(100);
    bench.join(0);
    durable::write(&bench.path("agent.key"), b"garbage", 0o600).unwrap();
    assert_eq!(bench.store.load().unwrap().unwrap().sha256, old.sha256);
}

#[test]
fn what_the_go_agent_renewed_meanwhile_is_not_overwritten_by_an_older_leftover() {
    let bench = Bench::new();
    bench.join(200);
    let stale = bench.material(100);
    files::reserve(&bench.path(STAGING)).unwrap();
    files::fill(&bench.path(STAGING), &stale).unwrap();
    durable::rename(&bench.path(STAGING), &bench.path(NEXT)).unwrap();
    let younger = bench.material(0);
    durable::write(&bench.path("agent.crt"), younger.certificate_pem.expose().as_bytes(), 0o600).unwrap();
    durable::write(&bench.path("agent.key"), younger.private_key_pem.expose().as_bytes(), 0o600).unwrap();
    let expected = inspect::inspect(younger).unwrap().sha256;
    assert_eq!(bench.store.load().unwrap().unwrap().sha256, expected);
    assert!(!bench.path(NEXT).exists());
}

#[test]
fn a_set_that_does_not_fit_together_is_not_stored() {
    let bench = Bench::new();
    let old = bench.join(100);
    let mut mixed = bench.material(0);
    mixed.private_key_pem = bench.material(0).private_key_pem;
    assert!(matches!(bench.store.reserve().unwrap().commit(mixed), Err(Error::Unusable(Flaw::KeyMismatch))));
    assert_eq!(bench.store.load().unwrap().unwrap().sha256, old.sha256);
}

#[test]
fn an_unfinished_join_is_remembered_until_the_set_is_stored() {
    let bench = Bench::new();
    let intent = JoinIntent { name: "edge-1".into(), at: "2026-11-22T10:00:00Z".into() };
    bench.store.begin_join(&intent).unwrap();
    assert_eq!(bench.store.unfinished_join(), Some(intent));
    bench.join(0);
    assert_eq!(bench.store.unfinished_join(), None);
}

#[test]
fn two_processes_cannot_hold_one_identity() {
    let bench = Bench::new();
    let lock = bench.store.lock().unwrap();
    assert!(matches!(bench.store.lock(), Err(Error::InUse { .. })));
    drop(lock);
    bench.store.lock().unwrap();
}
