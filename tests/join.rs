//! The one join that an agent makes: refused, interrupted, repeated, and never done twice.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use bamf_lab::agent::{Home, LIMIT, NAME, identity, write};
use bamf_lab::plane::{ControlPlane, Endpoint, Fault, Options, RequestRecord};
use nix::sys::signal::Signal;

const BINARY: &str = env!("CARGO_BIN_EXE_bamf-agent");

fn plane() -> ControlPlane {
    ControlPlane::start(Options::default()).unwrap()
}

fn configure_without_token(home: &Home, plane: &ControlPlane) {
    home.configure(&format!("platform_url: {}\nagent_name: {NAME}\n", plane.url()));
}

fn configure_new_token(home: &Home, plane: &ControlPlane) {
    let token = plane.issue_token(1);
    home.configure(&format!("platform_url: {}\nagent_name: {NAME}\njoin_token: {token}\n", plane.url()));
}

#[test]
fn a_refused_token_ends_the_agent_with_advice_after_one_request() {
    let unknown = plane();
    let stranger = Home::of(BINARY, &unknown, "join_token: bamf_00112233445566778899aabbccddeeff\n");

    let revoked = plane();
    let token = revoked.issue_token(1);
    let late = Home::of(BINARY, &revoked, &format!("join_token: {token}\n"));
    revoked.revoke_token(&token);

    let spent = plane();
    let token = spent.issue_token(1);
    let first = Home::of(BINARY, &spent, &format!("agent_name: first\njoin_token: {token}\n"));
    assert_eq!(first.run(&["join"]).code, 0);
    let second = Home::of(BINARY, &spent, &format!("agent_name: second\njoin_token: {token}\n"));

    for (plane, home, before) in [(&unknown, &stranger, 0), (&revoked, &late, 0), (&spent, &second, 1)] {
        let words = ["does not accept the join token", "make a new one on the platform", "401"];
        home.start().wait(LIMIT).expect(78, &words);
        assert_eq!(plane.join_attempts() - before, 1, "asking again does not make the token better");
    }
}

#[test]
fn a_taken_name_ends_the_agent_with_advice_after_one_request() {
    let plane = plane();
    plane.register(&identity(&plane, NAME));
    let home = Home::joining(BINARY, &plane);
    home.start().wait(LIMIT).expect(78, &["already has an agent edge-1", "choose another agent_name", "409"]);
    assert_eq!(plane.join_attempts(), 1);
    assert!(home.files().keys().all(|file| !file.ends_with("join.json")), "the conflict is not this machine's");
}

#[test]
fn a_name_that_somebody_took_while_the_platform_was_away_is_not_called_interrupted() {
    let plane = plane();
    let home = Home::joining(BINARY, &plane);
    plane.stop_listening();
    let agent = home.start();
    agent.expect("trying again");
    plane.register(&identity(&plane, NAME));
    plane.resume().unwrap();
    let finished = agent.wait(LIMIT);
    finished.expect(78, &["choose another agent_name"]);
    assert!(!finished.stderr.contains("interrupted"), "an operator would delete somebody else's agent");
}

#[test]
fn an_interrupted_join_is_named_as_such_until_the_agent_is_deleted() {
    for cut in [Fault::CutBeforeAnswer, Fault::CutMidBody] {
        let plane = plane();
        let home = Home::joining(BINARY, &plane);
        plane.inject(Endpoint::Join, cut, 1);
        // The platform looks at the token first, and it is spent.
        let words = ["probably interrupted", "lists an agent edge-1", "delete it", "new token"];
        for attempts in 2..4 {
            home.start().wait(LIMIT).expect(78, &words);
            assert_eq!((plane.joins().len(), plane.join_attempts()), (1, attempts));
        }
        configure_new_token(&home, &plane);
        home.start().wait(LIMIT).expect(78, &["the join was interrupted", "delete the agent edge-1", "new token"]);
        assert!(plane.delete_agent(NAME));
        configure_new_token(&home, &plane);
        drop(home.connect(&plane));
        assert_eq!(plane.joins().len(), 2, "the second one after an administrator made room for it");
    }
}

#[test]
fn what_may_go_away_by_itself_is_waited_for_and_there_is_one_join() {
    let faults = [
        Fault::Status(500),
        Fault::Status(503),
        Fault::Html(502),
        Fault::Html(200),
        Fault::Html(401),
        Fault::Html(403),
        Fault::Html(404),
        Fault::Garbage,
        Fault::WrongShape,
        Fault::HugeBody,
        Fault::Redirect("https://elsewhere.invalid/login".into()),
        Fault::StatusWithRetryAfter(429, 1),
        Fault::StatusWithRetryAfter(503, 1),
    ];
    std::thread::scope(|scope| {
        for fault in faults {
            scope.spawn(move || {
                let plane = plane();
                let home = Home::joining(BINARY, &plane);
                plane.inject(Endpoint::Join, fault.clone(), 1);
                let agent = home.connect(&plane);
                assert!(agent.log().contains("not joined yet, trying again"), "{fault:?}\n{}", agent.log());
                assert_eq!((plane.joins().len(), plane.join_attempts()), (1, 2), "{fault:?}");
                assert_eq!(home.problem(), "", "{fault:?}");
            });
        }
    });
}

#[test]
fn an_agent_that_cannot_reach_the_platform_says_so_and_joins_when_it_is_back() {
    let plane = plane();
    let home = Home::joining(BINARY, &plane);
    plane.stop_listening();
    let agent = home.start();
    agent.expect("trying again");
    assert!(home.problem().contains("join cannot be reached"), "{}", home.problem());
    assert_eq!((agent.get("/health").0, agent.get("/ready").0), (200, 503));
    plane.resume().unwrap();
    agent.expect_ready(200);
    assert_eq!((plane.joins().len(), home.problem()), (1, String::new()));
}

#[test]
fn the_wait_that_the_platform_asks_for_is_kept_by_a_join() {
    let plane = plane();
    let home = Home::joining(BINARY, &plane);
    plane.inject(Endpoint::Join, Fault::StatusWithRetryAfter(429, 2), 1);
    drop(home.connect(&plane));
    let requests = plane.requests();
    let asked: Vec<_> = requests.iter().filter(|request| request.path.ends_with("/join")).map(|r| r.at).collect();
    let gap = asked[1].duration_since(asked[0]).unwrap();
    assert!((Duration::from_secs(2)..Duration::from_secs(4)).contains(&gap), "{gap:?}");
}

#[test]
fn a_join_that_is_killed_anywhere_leaves_one_agent_or_a_clear_message() {
    for step in 0..16_u32 {
        let plane = plane();
        let home = Home::joining(BINARY, &plane);
        // The first half dies while the platform works on the answer, the second while the agent stores it.
        let stored = step >= 6;
        plane.inject(Endpoint::Join, Fault::Delay(Duration::from_millis(20)), 1);
        let agent = home.start();
        assert!(plane.wait_for(LIMIT, |seen| seen.join_attempts == 1 && (!stored || seen.joins.total() == 1)));
        std::thread::sleep(Duration::from_millis(if stored { u64::from(step - 6) } else { u64::from(step) * 5 }));
        agent.kill();

        let agent = home.start();
        let settled = plane.wait_for(LIMIT, |seen| {
            let refused =
                |last: &RequestRecord| last.path.ends_with("/join") && last.status.is_some_and(|code| code >= 400);
            seen.heartbeats.total() > 0 || seen.requests.last().is_some_and(refused)
        });
        assert!(settled, "step {step}:\n{}", agent.log());
        if plane.heartbeats().is_empty() {
            // The answer was lost: the token is spent and the name is taken.
            agent.wait(LIMIT).expect(78, &["interrupted", "delete", "new token"]);
        } else {
            assert_eq!(home.fingerprint(), plane.joins()[0].certificate_sha256, "step {step}");
        }
        assert!(plane.joins().len() <= 1, "step {step}");
        home.run(&["status"]).expect(0, &[]);
    }
}

#[test]
fn without_a_certificate_and_a_token_the_agent_says_what_to_do() {
    let plane = plane();
    let home = Home::of(BINARY, &plane, "");
    let data_dir = home.data_dir().display().to_string();
    for command in ["run", "join", "selftest"] {
        home.run(&[command]).expect(78, &[&data_dir, "no", "token"]);
    }
    home.run(&["run"]).expect(78, &["BAMF_JOIN_TOKEN", "--token-file"]);
    home.configure(&format!("platform_url: {}\njoin_token: ${{EDGE_TOKEN}}\n", plane.url()));
    for command in ["run", "join", "selftest"] {
        home.run(&[command]).expect(78, &["EDGE_TOKEN", "not set"]);
    }
    assert_eq!(plane.requests().len(), 0);
}

#[test]
fn a_token_variable_that_is_gone_is_only_a_warning_once_a_certificate_is_stored() {
    let plane = plane();
    let home = Home::joining(BINARY, &plane);
    assert_eq!(home.run(&["join"]).code, 0);
    home.configure(&format!("platform_url: {}\njoin_token: ${{EDGE_TOKEN}}\n", plane.url()));
    let agent = home.connect(&plane);
    assert!(agent.log().contains("EDGE_TOKEN"), "{}", agent.log());
    home.run(&["selftest"]).expect(0, &[]);
}

/// Runs `script` before the agent in a mount namespace of its own; false where that needs root.
#[expect(clippy::print_stdout, reason = "a test that is skipped says so")]
fn with_mounts(home: &mut Home, script: &str) -> bool {
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: mounts need root");
        return false;
    }
    std::fs::create_dir_all(home.data_dir()).unwrap();
    home.launch_by(&["unshare", "-m", "sh", "-ec", &format!("{script}\nexec \"$@\""), "sh"]);
    true
}

#[test]
fn a_disk_that_cannot_take_the_certificate_is_found_out_before_the_platform_is_asked() {
    let read_only = |data: &str| format!("mount --bind {data} {data}\nmount -o remount,bind,ro {data}");
    let full = |data: &str| {
        format!("mount -t tmpfs -o size=40k tmpfs {data}\nhead -c 1M /dev/zero > {data}/filler 2>/dev/null || true")
    };
    let scripts: [&dyn Fn(&str) -> String; 2] = [&read_only, &full];
    for script in scripts {
        for command in ["run", "join"] {
            let plane = plane();
            let mut home = Home::joining(BINARY, &plane);
            let data_dir = home.data_dir().display().to_string();
            if !with_mounts(&mut home, &script(&data_dir)) {
                return;
            }
            home.run(&[command]).expect(74, &[&data_dir]);
            assert_eq!(plane.join_attempts(), 0, "{command}");
        }
    }
}

#[test]
fn an_agent_with_a_certificate_runs_from_a_read_only_disk() {
    let plane = plane();
    let mut home = Home::joining(BINARY, &plane);
    assert_eq!(home.run(&["join"]).code, 0);
    let data = home.data_dir().display().to_string();
    if !with_mounts(&mut home, &format!("mount --bind {data} {data}\nmount -o remount,bind,ro {data}")) {
        return;
    }
    let agent = home.connect(&plane);
    // The lock works all the same, for a process in the same place.
    home.launch_by(&[]);
    home.run(&["run"]).expect(1, &["another bamf-agent uses", &data]);
    assert_eq!(agent.terminate(LIMIT).code, 0);
}

#[test]
fn of_two_join_commands_at_one_time_the_second_is_turned_away() {
    let plane = plane();
    let home = Home::joining(BINARY, &plane);
    plane.inject(Endpoint::Join, Fault::Delay(Duration::from_millis(500)), 1);
    let first = home.command(&["join"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    assert!(plane.wait_for(LIMIT, |seen| seen.join_attempts == 1));
    home.run(&["join"]).expect(1, &["another bamf-agent uses", "stop it first"]);
    assert_eq!(first.wait_with_output().unwrap().status.code(), Some(0));
    assert_eq!((plane.joins().len(), plane.join_attempts()), (1, 1));
}

#[test]
fn a_machine_that_has_joined_is_told_so_whether_or_not_the_agent_runs() {
    let plane = plane();
    let home = Home::joining(BINARY, &plane);
    assert_eq!(home.run(&["join"]).code, 0);
    let told = |home: &Home| {
        let finished = home.run(&["join"]);
        assert_eq!(finished.code, 0, "{finished:?}");
        assert!(finished.stdout.contains("already joined as edge-1"), "{finished:?}");
    };
    told(&home);
    let _agent = home.connect(&plane);
    told(&home);
    home.run(&["join", "--force"]).expect(1, &["another bamf-agent uses"]);
    assert_eq!(plane.join_attempts(), 1);
}

#[test]
fn a_forced_join_that_is_refused_changes_nothing_and_one_that_works_replaces_all() {
    let plane = plane();
    let home = Home::joining(BINARY, &plane);
    assert_eq!(home.run(&["join"]).code, 0);
    let set = |home: &Home| -> BTreeMap<PathBuf, Vec<u8>> {
        home.files()
            .into_iter()
            .filter(|(name, _)| {
                ["agent.crt", "agent.key", "ca.crt"]
                    .iter()
                    .any(|own| name.ends_with(own) && name.components().count() == 1)
            })
            .collect()
    };
    let before = set(&home);
    configure_new_token(&home, &plane);
    home.run(&["join", "--force"]).expect(78, &["already has an agent edge-1"]);
    assert_eq!(set(&home), before);
    assert!(plane.delete_agent(NAME));
    assert_eq!(home.run(&["join", "--force"]).code, 0);
    assert_eq!(home.fingerprint(), plane.joins()[1].certificate_sha256);
    configure_without_token(&home, &plane);
    drop(home.connect(&plane));
}

#[test]
fn a_forced_join_mends_an_identity_that_is_damaged_beyond_reading() {
    for name in ["agent.crt", "agent.key", "ca.crt"] {
        let plane = plane();
        let home = Home::joining(BINARY, &plane);
        home.store(&identity(&plane, NAME));
        let path = home.data_dir().join(name);
        std::fs::remove_file(&path).unwrap();
        std::fs::create_dir(&path).unwrap();
        assert_ne!(home.run(&["join"]).code, 0, "without --force it is an error");
        assert_eq!(plane.join_attempts(), 0);
        let finished = home.run(&["join", "--force"]);
        assert_eq!((finished.code, plane.joins().len()), (0, 1), "{name}: {finished:?}");
        assert!(path.is_file(), "what lay in the way of {name} is gone");
        drop(home.connect(&plane));
    }
}

#[test]
fn a_token_is_taken_from_standard_input_or_a_file_and_an_empty_one_is_refused() {
    let plane = plane();
    for from_file in [false, true] {
        let name = format!("edge-{from_file}");
        let home = Home::of(BINARY, &plane, &format!("agent_name: {name}\n"));
        let token = format!("{}\n", plane.issue_token(1));
        write(home.path("token"), &token);
        let file = home.path("token").display().to_string();
        home.run_with_input(&["join", "--token-file", "-"], " \n").expect(78, &["the join token is empty"]);
        home.run(&["join", "--token-file", "/nowhere/token"]).expect(78, &["/nowhere/token"]);
        let finished = if from_file {
            home.run(&["join", "--token-file", &file])
        } else {
            home.run_with_input(&["join", "--token-file", "-"], &token)
        };
        assert_eq!(finished.code, 0, "{finished:?}");
        assert!(finished.stdout.contains(&format!("joined as {name}")), "{finished:?}");
    }
    assert_eq!(plane.join_attempts(), 2);
}

#[test]
fn the_join_command_gives_up_after_some_attempts_and_the_next_one_works() {
    let plane = plane();
    let home = Home::joining(BINARY, &plane);
    plane.stop_listening();
    home.run(&["join"]).expect(69, &["could not register agent edge-1 after 4 attempts", "cannot be reached"]);
    plane.resume().unwrap();
    assert_eq!(home.run(&["join"]).code, 0);
}

#[test]
fn an_agent_that_is_stopped_while_it_joins_keeps_what_the_platform_answers() {
    let plane = plane();
    let home = Home::joining(BINARY, &plane);
    plane.inject(Endpoint::Join, Fault::Delay(Duration::from_millis(700)), 1);
    let agent = home.start();
    assert!(plane.wait_for(LIMIT, |seen| seen.join_attempts == 1));
    agent.terminate(LIMIT).expect(0, &["joined the platform"]);
    assert_eq!(home.fingerprint(), plane.joins()[0].certificate_sha256);
    configure_without_token(&home, &plane);
    drop(home.connect(&plane));
    assert_eq!(plane.join_attempts(), 1);
}

#[test]
fn an_agent_that_waits_for_the_platform_stops_at_once() {
    let plane = plane();
    let home = Home::joining(BINARY, &plane);
    plane.inject(Endpoint::Join, Fault::StatusWithRetryAfter(503, 200), 1);
    let agent = home.start();
    agent.expect("trying again");
    let asked = Instant::now();
    assert_eq!(agent.terminate(LIMIT).code, 0);
    assert!(asked.elapsed() < Duration::from_secs(5), "{:?}", asked.elapsed());
}

#[test]
fn a_second_signal_does_not_wait_for_a_join_that_hangs() {
    let plane = plane();
    let home = Home::joining(BINARY, &plane);
    plane.inject(Endpoint::Join, Fault::Hang, 1);
    let agent = home.start();
    assert!(plane.wait_for(LIMIT, |seen| seen.join_attempts == 1));
    let asked = Instant::now();
    agent.signal(Signal::SIGTERM);
    agent.expect("SIGTERM: shutting down");
    agent.signal(Signal::SIGINT);
    agent.wait(LIMIT).expect(0, &["a second signal"]);
    assert!(asked.elapsed() < Duration::from_secs(5), "{:?}", asked.elapsed());
}

#[test]
fn nothing_secret_is_logged_or_shown_even_when_debugging() {
    let plane = plane();
    let home = Home::joining(BINARY, &plane);
    plane.inject(Endpoint::Join, Fault::Status(422), 1);
    home.run(&["run", "--debug"]).expect(78, &["check platform_url and agent_name"]);
    let agent = home.start_with(&["run", "--debug"]);
    assert!(plane.wait_for_stream(LIMIT));
    agent.expect("the event stream is open");
    // The harness searches everything that is printed here for the token, the key and the certificate.
    for arguments in [&["status"][..], &["status", "--json"], &["config", "show"], &["config", "show", "--json"]] {
        home.run(arguments).expect(0, &[]);
    }
    assert!(home.run(&["config", "show"]).stdout.contains("***"));
    assert_eq!(agent.terminate(LIMIT).code, 0);
}

#[test]
fn a_token_that_names_an_unset_variable_is_an_error_until_a_certificate_is_stored_and_a_warning_after() {
    let plane = plane();
    let home = Home::of(BINARY, &plane, "agent_name: edge-1\njoin_token: ${TOKEN_OF_EDGE}\n");
    for command in [&["config", "check"][..], &["selftest"], &["run"], &["join"]] {
        home.run(command).expect(78, &["join_token", "TOKEN_OF_EDGE", "not set"]);
    }
    let identity = identity(&plane, NAME);
    plane.register(&identity);
    home.store(&identity);
    for command in [&["config", "check"][..], &["selftest"]] {
        let finished = home.run(command);
        finished.expect(0, &["warning", "TOKEN_OF_EDGE", "a certificate is stored"]);
    }
    let agent = home.connect(&plane);
    assert_eq!(agent.log().matches("TOKEN_OF_EDGE").count(), 1, "{}", agent.log());
    assert_eq!(agent.terminate(LIMIT).code, 0);
}

#[test]
fn a_configuration_without_any_token_is_valid_and_cannot_run_yet() {
    let plane = plane();
    let home = Home::of(BINARY, &plane, "agent_name: edge-1\n");
    home.run(&["config", "check"]).expect(0, &[]);
    for command in ["selftest", "run"] {
        home.run(&[command]).expect(78, &["no certificate", "BAMF_JOIN_TOKEN"]);
    }
}
