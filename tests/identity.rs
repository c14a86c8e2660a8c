//! The stored identity: damaged, adopted, renewed, refused, expired.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, SystemTime};

use bamf_lab::agent::{Agent, Home, LIMIT, NAME, until, write};
use bamf_lab::plane::{CertificateAuthority, ControlPlane, Endpoint, Fault, IssuedIdentity, Options};

const BINARY: &str = env!("CARGO_BIN_EXE_bamf-agent");

fn plane() -> ControlPlane {
    ControlPlane::start(Options::default()).unwrap()
}

/// Valid from `before` ago until `after` from now.
fn valid(plane: &ControlPlane, before: Duration, after: Duration) -> IssuedIdentity {
    let now = SystemTime::now();
    plane.ca().identity(NAME, now - before, now + after).unwrap()
}

const fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn fresh(plane: &ControlPlane) -> IssuedIdentity {
    valid(plane, seconds(60), seconds(86400))
}

/// Past half of its life, so that the agent renews it at once.
fn due(plane: &ControlPlane) -> IssuedIdentity {
    valid(plane, seconds(20), seconds(15))
}

/// Something done to a data directory.
type Damage = Box<dyn Fn(&Path)>;

/// What a damaged identity looks like, and the file that should be named for it.
fn damages(plane: &ControlPlane) -> Vec<(&'static str, &'static str, Damage)> {
    fn replace(name: &'static str, text: String) -> Damage {
        Box::new(move |data| write(data.join(name), &text))
    }
    fn remove(name: &'static str) -> Damage {
        Box::new(move |data| std::fs::remove_file(data.join(name)).unwrap())
    }
    let other = fresh(plane);
    let cut = |text: &str| text[..text.len() / 2].to_owned();
    let mut damages = vec![
        ("the key of another certificate", "agent.key", replace("agent.key", other.private_key_pem.clone())),
        ("the certificate of another key", "agent.crt", replace("agent.crt", other.certificate_pem.clone())),
        ("a foreign authority", "ca.crt", replace("ca.crt", CertificateAuthority::new().pem().to_owned())),
        ("half a certificate", "agent.crt", replace("agent.crt", cut(&other.certificate_pem))),
        ("half a key", "agent.key", replace("agent.key", cut(&other.private_key_pem))),
        ("a certificate as the key", "agent.key", replace("agent.key", other.certificate_pem.clone())),
    ];
    for name in ["agent.crt", "agent.key", "ca.crt"] {
        damages.push(("missing", name, remove(name)));
        damages.push(("empty", name, replace(name, String::new())));
        damages.push(("binary", name, replace(name, "\u{0}\u{1}".repeat(4000))));
        damages.push((
            "a directory",
            name,
            Box::new(move |data| {
                std::fs::remove_file(data.join(name)).unwrap();
                std::fs::create_dir(data.join(name)).unwrap();
            }),
        ));
    }
    damages
}

#[test]
fn a_damaged_identity_is_named_left_alone_and_no_reason_to_join_again() {
    let plane = plane();
    for (what, file, damage) in damages(&plane) {
        let home = Home::of(BINARY, &plane, &format!("join_token: {}\n", plane.issue_token(1)));
        home.store(&fresh(&plane));
        damage(&home.data_dir());
        let before = home.files();
        let words =
            [home.data_dir().display().to_string(), file.to_owned(), "from a backup".into(), "join --force".into()];
        let words: Vec<_> = words.iter().map(String::as_str).collect();
        for command in ["selftest", "status", "join", "run"] {
            let finished = home.run(&[command]);
            assert_eq!(finished.code, 78, "{what} {file}: {command}: {finished:?}");
            finished.expect(78, &words);
        }
        let mut after = home.files();
        after.remove(Path::new(".lock"));
        assert_eq!(after, before, "{what} {file}");
    }
    assert_eq!(plane.requests().len(), 0);
}

#[test]
fn a_file_that_the_agent_may_not_read_is_named_and_nothing_is_asked_of_the_platform() {
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: becoming another user needs root");
        return;
    }
    const NOBODY: u32 = 65534;
    let plane = plane();
    let mut home = Home::joined(BINARY, &plane, &fresh(&plane));
    let own = |path: &Path| std::os::unix::fs::chown(path, Some(NOBODY), Some(NOBODY)).unwrap();
    own(&home.path(""));
    own(&home.data_dir());
    std::fs::set_permissions(home.data_dir().join("agent.key"), PermissionsExt::from_mode(0o600)).unwrap();
    home.launch_by(&["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]);
    if home.run(&["version"]).code != 0 {
        println!("skipped: the binary lies where nobody may not go");
        return;
    }
    for command in ["selftest", "run", "join"] {
        let finished = home.run(&[command]);
        assert!(matches!(finished.code, 74 | 78), "{command}: {finished:?}");
        finished.expect(finished.code, &["agent.key", "Permission denied", "owner"]);
    }
    home.run(&["status"]).expect(77, &["agent.key", "Permission denied"]);
    assert_eq!(plane.requests().len(), 0);
}

/// Content, mode and time of last change.
fn state(home: &Home) -> Vec<(Vec<u8>, u32, i64, i64)> {
    let files = ["agent.crt", "agent.key", "ca.crt"].map(|name| home.data_dir().join(name));
    let state = files.iter().map(|path| {
        let meta = path.metadata().unwrap();
        (std::fs::read(path).unwrap(), meta.mode(), meta.mtime(), meta.mtime_nsec())
    });
    state.collect()
}

#[test]
fn a_directory_of_the_go_agent_is_adopted_as_it_is_and_its_name_wins() {
    let plane = plane();
    let home = Home::joined(BINARY, &plane, &fresh(&plane));
    home.configure(&format!("platform_url: {}\nagent_name: another\n", plane.url()));
    let before = state(&home);
    let agent = home.connect(&plane);
    assert!(agent.log().contains("agent_name differs from the certificate's name"), "{}", agent.log());
    assert_eq!(home.status()["agent_name"], NAME);
    assert_eq!(plane.heartbeats()[0].agent, NAME);
    assert_eq!(agent.terminate(LIMIT).code, 0);
    assert_eq!(state(&home), before);
    assert_eq!(plane.join_attempts(), 0);
}

#[test]
fn a_certificate_is_renewed_at_half_of_its_life_and_the_stream_stays() {
    let options = Options { certificate_lifetime: seconds(8), ..Options::default() };
    let plane = ControlPlane::start(options).unwrap();
    let mut home = Home::joining(BINARY, &plane);
    home.set("BAMF_HEARTBEAT_INTERVAL", "60s");
    let joined = SystemTime::now();
    let agent = home.connect(&plane);
    plane.set_certificate_lifetime(seconds(86400));
    // Holds the first use of the new certificate back, to see that the old one is kept until then.
    plane.inject(Endpoint::Heartbeat, Fault::Delay(seconds(1)), 1);
    assert!(plane.wait_for_renewals(1, LIMIT), "{}", agent.log());
    let waited = SystemTime::now().duration_since(joined).unwrap();
    assert!((seconds(3)..seconds(8)).contains(&waited), "{waited:?}");
    agent.expect("the certificate was renewed");
    assert!(home.data_dir().join(".previous").is_dir());
    let renewed = plane.renewals()[0].issued_sha256.clone();
    assert!(
        plane.wait_for(LIMIT, |seen| seen.heartbeats.last().is_some_and(|beat| beat.certificate_sha256 == renewed))
    );
    assert!(until(LIMIT, || !home.data_dir().join(".previous").exists()), "{}", agent.log());
    assert_eq!(home.fingerprint(), renewed);
    assert_eq!((plane.stream_opens(), plane.open_streams().len()), (1, 1), "the stream was not touched");
    assert_eq!(agent.terminate(LIMIT).code, 0);
    drop(home.connect(&plane));
    assert_eq!((plane.renewals().len(), plane.join_attempts()), (1, 1));
}

#[test]
fn a_renewal_that_fails_in_any_way_is_told_and_tried_until_it_works() {
    let faults = [
        Fault::Status(500),
        Fault::Status(401),
        Fault::Status(403),
        Fault::Status(404),
        Fault::Status(422),
        Fault::StatusWithRetryAfter(429, 1),
        Fault::StatusWithRetryAfter(503, 1),
        Fault::Html(200),
        Fault::Html(404),
        Fault::Garbage,
        Fault::WrongShape,
        Fault::HugeBody,
        Fault::CutBeforeAnswer,
        Fault::CutMidBody,
        Fault::Redirect("https://elsewhere.invalid/".into()),
    ];
    std::thread::scope(|scope| {
        for fault in faults {
            scope.spawn(move || {
                let plane = plane();
                let home = Home::joined(BINARY, &plane, &due(&plane));
                plane.inject(Endpoint::Renew, fault.clone(), 1);
                let agent = home.start();
                agent.expect("cannot be renewed: the platform did not renew it");
                agent.expect("the certificate was renewed");
                let issued = || plane.renewals().last().map(|renewal| renewal.issued_sha256.clone());
                assert!(until(LIMIT, || Some(home.fingerprint()) == issued()), "{fault:?}\n{}", agent.log());
                agent.expect_ready(200);
                assert!(until(LIMIT, || home.problem().is_empty()), "{fault:?}: {}", home.problem());
            });
        }
    });
}

#[test]
fn a_standing_renewal_failure_shows_in_the_status_with_the_end_of_the_certificate() {
    let plane = plane();
    let home = Home::joined(BINARY, &plane, &due(&plane));
    plane.inject(Endpoint::Renew, Fault::Status(500), 1000);
    let agent = home.connect(&plane);
    agent.expect("cannot be renewed");
    let problem = home.problem();
    assert!(problem.contains("valid until 2") && problem.contains("500 Internal server error"), "{problem}");
    agent.expect_ready(200);
}

#[test]
fn a_renewed_certificate_that_is_refused_gives_way_to_the_one_before_and_renewal_is_patient() {
    let plane = plane();
    let identity = due(&plane);
    let mut home = Home::joined(BINARY, &plane, &identity);
    home.set("BAMF_HEARTBEAT_INTERVAL", "60s");
    plane.inject(Endpoint::Renew, Fault::Delay(seconds(1)), 1);
    let agent = home.start();
    assert!(plane.wait_for_heartbeats(1, LIMIT));
    agent.expect("the platform accepts the agent's heartbeat");
    plane.inject(Endpoint::Heartbeat, Fault::Status(401), 1);
    agent.expect("the renewed certificate is refused, going back to the one before");
    assert!(plane.wait_for_heartbeats(2, LIMIT));
    assert_eq!(plane.heartbeats()[1].certificate_sha256, identity.sha256, "the old one is back in use");
    agent.expect_ready(200);
    let problem = home.problem();
    assert!(problem.contains("the renewed certificate was refused, the one before is in use"), "{problem}");
    // It is still due, so another one is asked for; that one is accepted.
    assert!(plane.wait_for_renewals(2, LIMIT), "{}", agent.log());
    let second = plane.renewals()[1].issued_sha256.clone();
    assert!(plane.wait_for(LIMIT, |seen| seen.heartbeats.last().is_some_and(|beat| beat.certificate_sha256 == second)));
    assert!(until(LIMIT, || home.problem().is_empty()), "{}", home.problem());
    assert_eq!(home.fingerprint(), second);
}

#[test]
fn an_agent_that_is_killed_while_it_renews_always_comes_back_with_a_sound_identity() {
    // Every certificate that is given out is past half of its life, so each start renews at once and again.
    let options =
        Options { certificate_lifetime: seconds(600), certificate_backdate: seconds(3600), ..Options::default() };
    let plane = ControlPlane::start(options).unwrap();
    let home = Home::joined(BINARY, &plane, &valid(&plane, seconds(3600), seconds(600)));
    for step in 0..20_u64 {
        let renewals = plane.renewals().len();
        let agent = home.start();
        assert!(plane.wait_for_renewals(renewals + 1, LIMIT), "step {step}:\n{}", agent.log());
        // The attack: the answer is on its way, being stored, or just stored.
        std::thread::sleep(Duration::from_micros(step * 700));
        agent.kill();
        home.run(&["selftest"]).expect(0, &[]);
    }
    let agent = home.connect(&plane);
    assert_eq!(agent.terminate(LIMIT).code, 0);
    assert_eq!(plane.join_attempts(), 0);
    let left: Vec<_> =
        home.files().into_keys().filter(|path| path.starts_with(".next") || path.starts_with(".next.tmp")).collect();
    assert_eq!(left, Vec::<std::path::PathBuf>::new());
}

#[test]
fn an_expired_certificate_ends_the_agent_with_advice_once_the_platform_agrees() {
    let plane = plane();
    let now = SystemTime::now();
    let identity = plane.ca().identity(NAME, now - seconds(7200), now - seconds(60)).unwrap();
    let home = Home::joined(BINARY, &plane, &identity);
    home.run(&["selftest"]).expect(78, &["expired"]);
    plane.stop_listening();
    let agent = home.start();
    agent.expect("trying again");
    assert_eq!((agent.get("/health").0, agent.get("/ready").0), (200, 503), "nobody has said that it is over");
    plane.resume().unwrap();
    agent.wait(LIMIT).expect(78, &["the certificate of agent edge-1 expired at", "join --force", "new join token"]);
    assert!(plane.drains().is_empty() && plane.offlines().is_empty() && plane.heartbeats().is_empty());
}

/// Starts an agent and waits until its log has `words`; it stays up and is not ready.
fn stands_by(home: &Home, words: &[&str]) -> Agent {
    let agent = home.start();
    for word in words {
        agent.expect(word);
    }
    assert_eq!((agent.get("/health").0, agent.get("/ready").0), (200, 503));
    let problem = home.problem();
    assert!(words.iter().all(|word| problem.contains(word)), "{problem}");
    agent
}

#[test]
fn a_certificate_that_is_not_valid_yet_is_blamed_on_the_clock() {
    let plane = plane();
    let now = SystemTime::now();
    let identity = plane.ca().identity(NAME, now + seconds(3600), now + seconds(7200)).unwrap();
    stands_by(&Home::joined(BINARY, &plane, &identity), &["this machine's clock is behind"]);
}

#[test]
fn a_certificate_that_is_revoked_or_of_a_replaced_authority_keeps_the_agent_up_with_advice() {
    let words = [
        "refuses the certificate of agent edge-1",
        "revoked, or the platform has a new certificate authority",
        "join --force",
    ];
    let revoked = plane();
    let identity = fresh(&revoked);
    let home = Home::joined(BINARY, &revoked, &identity);
    revoked.revoke_certificate(&identity.sha256);
    let agent = stands_by(&home, &words);
    let told = agent.log().matches("refuses the certificate").count();
    assert!(told <= 2, "once for each way to the platform, not {told} times");

    let rotated = plane();
    let home = Home::joined(BINARY, &rotated, &fresh(&rotated));
    rotated.rotate_ca();
    stands_by(&home, &words);
    for plane in [&revoked, &rotated] {
        assert!(plane.requests().len() <= 6, "{} requests for what a person has to mend", plane.requests().len());
        assert_eq!(plane.join_attempts(), 0);
    }
}

#[test]
fn an_agent_that_the_platform_does_not_know_or_takes_for_another_says_so() {
    let unknown = plane();
    let home = Home::of(BINARY, &unknown, "");
    home.store(&fresh(&unknown));
    stands_by(&home, &["does not know agent edge-1", "join --force"]);

    let forbidden = plane();
    let home = Home::joined(BINARY, &forbidden, &fresh(&forbidden));
    forbidden.inject(Endpoint::All, Fault::Status(403), 1000);
    stands_by(&home, &["not agent edge-1's", "check platform_url and data_dir"]);
}

#[test]
fn the_selftest_touches_nothing() {
    let plane = plane();
    let home = Home::joined(BINARY, &plane, &fresh(&plane));
    let listing = |home: &Home| {
        let output = Command::new("find").arg(home.path("")).args(["-printf", "%p %m %s %T@ %C@\n"]).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let before = listing(&home);
    home.run(&["selftest"]).expect(0, &[]);
    assert_eq!(listing(&home), before);
    std::fs::remove_file(home.data_dir().join("ca.crt")).unwrap();
    let before = listing(&home);
    home.run(&["selftest"]).expect(78, &["ca.crt is missing"]);
    assert_eq!(listing(&home), before);
    assert_eq!(plane.requests().len(), 0);
}
